"""Positions and fluxes of stars from fits of the array's own mean star image.

All detections of an array are fitted, neighbours included. The star image is a sum of round
Gaussians whose weights come from the array's bright stars, so that an AO core with its halo and a
seeing disc are both described; its form (width, elongation) changes over the array as those stars
show. Whatever the true shape, a point-symmetric image is centred without bias. The shape decides
how near the error comes to the Cramer-Rao bound, and how right the fluxes are.
"""

from __future__ import annotations

import numpy as np

from gdask.kernels.arrays import as_kernel_input
from gdask.kernels.compiled import njit
from gdask.kernels.sources import photometry as ph
from gdask.kernels.sources.array_fit import MIN_FORM_SNR, StarFits, fit_stars, neighbour_light
from gdask.kernels.sources.flux_surface import flux_surface
from gdask.kernels.sources.growth import curve_of_growth
from gdask.kernels.sources.psf import fwhm_of_image
from gdask.kernels.sources.segmentation import bad_pixels
from gdask.kernels.sources.star_fit import FIT_RADIUS_FWHM
from gdask.model import DQ, UNUSABLE
from gdask.types import Flags, Image, Pixels

#: Flags of a position; `fit_positions` says what they mean. The last is one of fluxes alone:
#: `fit_photometry`.
NEIGHBOUR, SATURATED, EDGE, BAD_NEAR, FAILED, MISFIT = 1, 2, 4, 8, 16, 32
UNSCALED = 64

POSITIONS = np.dtype(
    [(n, "f8") for n in ("x", "y", "ex", "ey", "flux", "eflux", "fwhm")]
    + [("sky", "f4"), ("chi2", "f4"), ("flags", "i2")]
    + [(n, "f4", (len(ph.WIDE_RADII),)) for n in ("wide", "ewide", "share")]
)

#: Radii of apertures in units of the FWHM, and the dtype of stars measured in them.
APERTURES = (0.75, 1.0, 1.5, 2.0, 3.0)
#: That of them to whose light the fitted fluxes are tied over the image.
SURFACE_APERTURE = 3
PHOTOMETRY = np.dtype(
    [*POSITIONS.descr, *((n, "f4", (len(APERTURES),)) for n in ("aper", "eaper", "lost"))]
    + [("scaled", "f4"), ("escaled", "f4"), ("nscaled", "i4")]
)
#: A flux is flagged UNSCALED where its common factor is known no better than this fraction.
MAX_SCALE_ERROR = 0.01

#: Pixels to which positions are rounded: far below any error, far above the last bits in which
#: processors may differ, on which no later decision should hang.
POSITION_STEP: Pixels = 2.0**-20
#: Flags of centroids that are not used. A star near bad pixels is used: they are left out of its
#: fit, and its error says so.
UNUSABLE_CENTROID = SATURATED | EDGE | FAILED
#: Centroids of an array that make those near its edge superfluous; and how near these may be.
FEW_CENTROIDS, WHOLE_CORE_FWHM = 4, 1.0
#: A star is flagged NEIGHBOUR where its neighbours' light exceeds this share of its own peak.
MAX_NEIGHBOUR_LIGHT = 0.02
#: A star is flagged MISFIT where its chi-square per pixel, over what the array's good stars of this
#: flux have, exceeds this.
MAX_CHI2 = 2.0
#: With fewer good stars than this, the growth of chi-square with the S/N is not measured.
MIN_CHI2_STARS = 8
#: Errors due to the star image's own error, of positions (FWHM) and of fluxes (fraction), that are
#: assumed where there are too few stars to measure them.
DEFAULT_POSITION_FLOOR_FWHM, DEFAULT_FLUX_FLOOR = 0.002, 0.002
#: Error (fraction) that all fluxes of an array have in common where fewer than so many stars tell
#: the star image: what its wings are off by on one bright star in 256 pixels, in seeing. Nearer to
#: an edge than so many FWHM, it grows with the third power.
IMAGE_ERROR, FEW_IMAGE_STARS, IMAGE_MARGIN_FWHM = 0.008, 8, 0.7


@njit(cache=True, nogil=True, error_model="numpy")
def _flags_near(dq: np.ndarray, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """The DQ bits of the square of half-width `radius` about each position, OR-ed."""
    out = np.zeros(x.size, np.int64)
    for k in range(x.size):
        for j in range(max(int(y[k] - radius), 0), min(int(y[k] + radius) + 2, dq.shape[0])):
            for i in range(max(int(x[k] - radius), 0), min(int(x[k] + radius) + 2, dq.shape[1])):
                out[k] |= dq[j, i]
    return out


def _relative_chi2(chi2: np.ndarray, snr: np.ndarray, stars: np.ndarray) -> np.ndarray:
    """Chi-square over what good stars of the same S/N have.

    That is 1, and what an imperfect star image adds, which grows with S/N^2.
    """
    good = stars[np.isfinite(chi2[stars]) & np.isfinite(snr[stars])]
    if len(good) < MIN_CHI2_STARS:
        return chi2
    growth = max(float(np.median((chi2[good] - 1.0) / snr[good] ** 2)), 0.0)
    return chi2 / (1.0 + growth * snr**2)


def fit_positions_and_image(
    data: Image, variance: Image, dq: Flags, x: np.ndarray, y: np.ndarray, *, fwhm: Pixels
) -> tuple[np.ndarray, StarFits]:
    """Do what `fit_positions` does; returns also the fits, their sky with errors.

    There must be at least one star.
    """
    data, variance = as_kernel_input(data, np.float32), as_kernel_input(variance, np.float32)
    dq = as_kernel_input(dq, np.uint16)
    bad, _ = bad_pixels(data, variance, dq, int(UNUSABLE), int(DQ.SATURATED))
    x, y = np.array(x, np.float64), np.array(y, np.float64)
    flags = _pixel_flags(dq, x, y, fwhm)
    fits = fit_stars(data, variance, bad, x, y, flags == 0, fwhm)
    params, errors, forms = fits.params, fits.errors, fits.forms
    profile, profile_step = fits.profile, fits.profile_step
    table = ph.star_fluxes(fits.residual, variance, bad, params, forms, profile, profile_step, fwhm)
    position_floor, flux_floor = ph.error_floors(table, params[:, 2], fits.image_stars)
    if not np.isfinite(position_floor):
        position_floor = DEFAULT_POSITION_FLOOR_FWHM * fwhm
    if not np.isfinite(flux_floor):
        flux_floor = DEFAULT_FLUX_FLOOR
    measured = np.isfinite(table[:, ph.FLUX])
    flux = np.where(measured, table[:, ph.FLUX], params[:, 2])
    flux_error = np.where(measured, table[:, ph.FLUX_ERROR], errors[:, 2])
    chi2 = _relative_chi2(table[:, ph.CHI2], flux / flux_error, fits.image_stars)
    widening = np.sqrt(np.fmax(chi2, 1.0))
    out = np.zeros(len(x), POSITIONS)
    out["x"], out["y"], out["flux"] = params[:, 0], params[:, 1], flux
    out["sky"] = np.where(measured, table[:, ph.SKY], params[:, 3])
    out["ex"] = np.hypot(errors[:, 0] * widening, position_floor)
    out["ey"] = np.hypot(errors[:, 1] * widening, position_floor)
    out["eflux"], out["chi2"] = np.hypot(flux_error * widening, flux_floor * flux), chi2
    out["fwhm"] = fwhm_of_image(fits.weights, fwhm)
    contamination = neighbour_light(data, fits.residual, params, forms, profile, profile_step)
    out["flags"] = (
        flags
        + NEIGHBOUR * (contamination > MAX_NEIGHBOUR_LIGHT)
        + FAILED * (fits.failed | ~np.isfinite(errors[:, 0]))
        + MISFIT * (chi2 > MAX_CHI2)
    )
    _round(out)
    return out, fits._replace(sky_error=table[:, ph.SKY_ERROR])


def _round(stars: np.ndarray) -> None:
    """Round positions to whole POSITION_STEPs and the rest to 24 bits, in place."""
    for name in ("x", "y"):
        stars[name] = np.round(stars[name] / POSITION_STEP) * POSITION_STEP
    for name in ("ex", "ey", "flux", "eflux", "fwhm"):
        stars[name] = stars[name].astype(np.float32)


def _pixel_flags(dq: Flags, x: np.ndarray, y: np.ndarray, fwhm: Pixels) -> np.ndarray:
    """Flags of positions that come from their surroundings: SATURATED, BAD_NEAR and EDGE."""
    ny, nx = dq.shape
    near = _flags_near(dq, x, y, fwhm)
    flags = SATURATED * ((near & int(DQ.SATURATED)) != 0) + BAD_NEAR * ((near & int(UNUSABLE)) != 0)
    margin = np.minimum(np.minimum(x, nx - 1 - x), np.minimum(y, ny - 1 - y))
    return flags + EDGE * (margin < FIT_RADIUS_FWHM * fwhm)


def fit_photometry(
    data: Image, variance: Image, dq: Flags, x: np.ndarray, y: np.ndarray, *, fwhm: Pixels
) -> np.ndarray:
    """Measure stars as `fit_positions` does, and in circles of APERTURES * fwhm too.

    The FWHM of the circles is that of the mean star image; neighbours are subtracted. Returns dtype
    PHOTOMETRY, which adds aper and eaper (unit of data), and lost: the share of each circle that is
    bad or outside, where the fitted star image stands in. Fluxes of the star image are multiplied
    by `scaled`, which curves of growth of `nscaled` bright stars tell (`growth`), to be those of
    all the light; escaled is its error as a fraction, common to all and not in eflux. flags has
    UNSCALED where that is above 1 % or not known.
    """
    out = np.zeros(len(x), PHOTOMETRY)
    if not len(x):
        return out
    found, fits = fit_positions_and_image(data, variance, dq, x, y, fwhm=fwhm)
    for name in POSITIONS.names or ():
        out[name] = found[name]
    flux, noise, out["lost"] = ph.aperture_fluxes(
        fits.residual,
        as_kernel_input(variance, np.float32),
        fits.bad,
        fits.params,
        np.nan_to_num(found["sky"].astype(float)),
        np.nan_to_num(fits.sky_error),
        fits.forms,
        fits.profile,
        fits.profile_step,
        np.array(APERTURES) * found["fwhm"][0],
    )
    out["aper"], out["eaper"] = flux, np.sqrt(noise)
    _scale_to_total(out, fits, variance)
    return out


def _scale_to_total(out: np.ndarray, fits: StarFits, variance: Image) -> None:
    """Give fluxes the unit of the stars' total light, in place, and say how well it is known."""
    unspoiled = (out["flags"] & (SATURATED | EDGE | FAILED | MISFIT | NEIGHBOUR)) == 0
    plane, fwhm = as_kernel_input(variance, np.float32), float(out["fwhm"][0])
    clean = unspoiled & (out["lost"][:, SURFACE_APERTURE] == 0)
    light = out["aper"][:, SURFACE_APERTURE].astype(float)
    change, its_error = flux_surface(
        out["x"], out["y"], out["flux"], out["eflux"], light, clean, variance.shape
    )
    out["flux"] *= change
    out["eflux"] = np.hypot(out["eflux"] * change, its_error * out["flux"])
    growth = curve_of_growth(fits, plane, out["flux"], out["eflux"], unspoiled, fwhm)
    if np.isfinite(growth.scatter):
        out["eflux"] = np.hypot(out["eflux"], growth.scatter * out["flux"])
    out["flux"] *= growth.factor
    out["eflux"] *= growth.factor
    out["scaled"], out["escaled"], out["nscaled"] = growth[:3]
    if not growth.error <= MAX_SCALE_ERROR:
        out["flags"] |= UNSCALED


def fit_positions(
    data: Image,
    variance: Image,
    dq: Flags,
    x: np.ndarray,
    y: np.ndarray,
    *,
    fwhm: Pixels,
) -> np.ndarray:
    """Measure positions and fluxes of stars that are good to the photon limit.

    data, variance: float32 (ny, nx); dq: uint16. x, y: 0-based positions of all the detections of
    this array, good to half a FWHM (neighbours are fitted too, so leave none out). fwhm: in pixels;
    `detection.measure_fwhm` gives it.
    Returns dtype POSITIONS, one row per input: x, y (0-based pixels) and their errors; flux of the
    fitted star image and its error (unit of data); fwhm of the array's mean star image; local sky;
    chi2 per pixel, 1 where a star fits as the array's good stars of its flux do; flags: NEIGHBOUR
    (others' light above 2 % of the star's peak), SATURATED and BAD_NEAR (within one FWHM), EDGE
    (within 2.5 FWHM of the array's edge), FAILED (nothing fitted: the window's position, errors
    NaN), MISFIT (chi2 above 2: blended with an unseen star, or no star). Errors are from the
    variance, times sqrt(chi2) where that is above 1, with a floor from the star image's own error.
    wide, ewide: of the brightest of the array, light within photometry.WIDE_RADII less a ring of
    sky, neighbours and all, and its error (NaN elsewhere); share: what of a star's light that is.
    """
    if not len(x):
        return np.zeros(0, POSITIONS)
    out, fits = fit_positions_and_image(data, variance, dq, x, y, fwhm=fwhm)
    out["wide"] = out["ewide"] = np.nan
    sound = (out["flags"] & (SATURATED | EDGE | BAD_NEAR | FAILED)) == 0
    snr = np.where(sound, out["flux"] / out["eflux"], 0.0)
    order = np.argsort(-np.where(sound, out["flux"], 0.0), kind="stable")
    stars = order[snr[order] > ph.MIN_WIDE_SNR][: ph.MOST_WIDE_STARS]
    out["share"] = ph.wide_shares(fits.profile, fits.profile_step)
    image = fits.params[stars], fits.profile, fits.profile_step
    out["wide"][stars], out["ewide"][stars] = ph.wide_fluxes(data, variance, fits.bad, *image)
    return out


def usable(stars: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Select the centroids of an array of this shape (..., ny, nx) that the joint solution takes.

    Near the edge part of a star is not fitted. Where an array has fewer than FEW_CENTROIDS others,
    as in a small region of interest with one bright star, those with an edge no nearer than
    WHOLE_CORE_FWHM widths are taken, too.
    """
    sound = np.isfinite(stars["ex"]) & (stars["flux"] > 0)
    inner = sound & ((stars["flags"] & UNUSABLE_CENTROID) == 0)
    if inner.sum() >= FEW_CENTROIDS:
        return stars[inner]
    x, y = stars["x"], stars["y"]
    margin = np.minimum(np.minimum(x, shape[-1] - 1 - x), np.minimum(y, shape[-2] - 1 - y))
    near = margin >= WHOLE_CORE_FWHM * stars["fwhm"]
    return stars[inner | (sound & near & ((stars["flags"] & UNUSABLE_CENTROID & ~EDGE) == 0))]


def image_errors(stars: np.ndarray, chosen: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Give the error (fraction) of fluxes of the chosen stars that the star image makes.

    stars: of an array of this shape. It is 0 where enough of them tell the image.
    """
    sound = (stars["flags"] == 0) & (stars["flux"] > MIN_FORM_SNR * stars["eflux"])
    if np.count_nonzero(sound) >= FEW_IMAGE_STARS:
        return np.zeros(len(chosen))
    x, y = chosen["x"], chosen["y"]
    margin = np.minimum(np.minimum(x, shape[-1] - 1 - x), np.minimum(y, shape[-2] - 1 - y))
    near = IMAGE_MARGIN_FWHM * chosen["fwhm"] / np.maximum(margin, 1.0)
    return IMAGE_ERROR * np.maximum(near * near * near, 1.0)
