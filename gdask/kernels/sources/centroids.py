"""Precise positions and fluxes: a fit of the array's own mean star image to each detected star, neighbours and all.

The star image is a sum of round Gaussians whose weights come from the array's bright stars, so that an AO core with its
halo and a seeing disc are both described; its form (width, elongation) changes over the array as those stars show.
Whatever the true shape, a point-symmetric image is centred without bias; the shape decides how near the error comes to
the Cramer-Rao bound, and how right the fluxes are.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from gdask.kernels.arrays import plain
from gdask.kernels.sources.photometry import aperture_fluxes, floors, local_sky, star_fluxes
from gdask.kernels.sources.psf import (
    FIRST_REACH,
    MOST_FORMS,
    REACH,
    half_maximum,
    isolated_stars,
    round_forms,
    smooth_forms,
    star_image,
    tabulate,
)
from gdask.kernels.sources.star_fit import FIT, fit_all, fit_shapes, light, take_out
from gdask.model import DQ, UNUSABLE
from gdask.types import Flags, Image, Pixels

#: Flags of a position.
NEIGHBOUR, SATURATED, EDGE, BAD_NEAR, FAILED, MISFIT = 1, 2, 4, 8, 16, 32

POSITIONS = np.dtype(
    [(n, "f8") for n in ("x", "y", "ex", "ey", "flux", "eflux", "fwhm")]
    + [("sky", "f4"), ("chi2", "f4"), ("flags", "i2")]
)

#: Radii of apertures in units of the FWHM, and the rows that come of them.
APERTURES = (0.75, 1.0, 1.5, 2.0, 3.0)
PHOTOMETRY = np.dtype(
    [*POSITIONS.descr, *((n, "f4", (len(APERTURES),)) for n in ("aper", "eaper", "lost"))]
)

#: In units of the FWHM: the annulus of the first local background.
INNER, OUTER = 3.0, 4.5
#: Most sweeps over the stars: with the first star image, with the final one.
FIRST_SWEEPS, SWEEPS = 2, 15
#: A star is flagged NEIGHBOUR where its neighbours' light exceeds this share of its own peak.
CONTAMINATION = 0.02
#: Chi-square per pixel, over what the array's good stars of this flux have, beyond which a star is flagged MISFIT.
WORST_CHI2 = 2.0
#: Errors that the star image's own error makes, positions (FWHM) and fluxes (fraction), where too few stars tell it.
PLACE_FLOOR, FLUX_FLOOR = 0.002, 0.002


class Fitted(NamedTuple):
    """An array's stars as fitted. left: the pixels without them; p, e: (n, 6) x, y, flux, sky, two slopes, and their
    errors; weights, table, step: the mean star image; forms (n, 3); stars: those that made it; failed: of
    each fit; bad: pixels left out; sky_error: of the local sky, NaN where unknown."""

    left: Image
    p: np.ndarray
    e: np.ndarray
    weights: np.ndarray
    table: np.ndarray
    step: float
    forms: np.ndarray
    stars: np.ndarray
    failed: np.ndarray
    bad: np.ndarray
    sky_error: np.ndarray


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _first(
    data: np.ndarray, bad: np.ndarray, x: np.ndarray, y: np.ndarray, fwhm: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Positions by a Gaussian window as wide as the star; flux within one FWHM; clipped mean of an annulus."""
    ny, nx = data.shape
    xo, yo, flux, sky = x.copy(), y.copy(), np.zeros(x.size), np.zeros(x.size)
    q = 1.0 / (2.0 * (fwhm / 2.3548) ** 2)
    for k in range(x.size):
        sky[k] = local_sky(data, data, bad, x[k], y[k], INNER * fwhm, OUTER * fwhm)[0]
        if not np.isfinite(sky[k]):
            sky[k] = 0.0
        for _ in range(12):
            s0, sx, sy, f = 0.0, 0.0, 0.0, 0.0
            for j in range(max(int(yo[k] - 2 * fwhm), 0), min(int(yo[k] + 2 * fwhm) + 2, ny)):
                for i in range(max(int(xo[k] - 2 * fwhm), 0), min(int(xo[k] + 2 * fwhm) + 2, nx)):
                    r2 = (i - xo[k]) ** 2 + (j - yo[k]) ** 2
                    if bad[j, i] or r2 > 4.0 * fwhm * fwhm:
                        continue
                    v = data[j, i] - sky[k]
                    w = np.exp(-q * r2) * v
                    s0 += w
                    sx += w * (i - xo[k])
                    sy += w * (j - yo[k])
                    if r2 < fwhm * fwhm:
                        f += v
            flux[k] = f
            if not s0 > 0:
                break
            dx, dy = 2.0 * sx / s0, 2.0 * sy / s0
            if (xo[k] + dx - x[k]) ** 2 + (yo[k] + dy - y[k]) ** 2 > fwhm * fwhm:
                xo[k], yo[k] = x[k], y[k]
                break
            xo[k] += dx
            yo[k] += dy
            if dx * dx + dy * dy < 1e-6:
                break
    return xo, yo, flux, sky


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _bits_near(dq: np.ndarray, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """The DQ bits of the square of half-width `radius` about each position, OR-ed."""
    out = np.zeros(x.size, np.int64)
    for k in range(x.size):
        for j in range(max(int(y[k] - radius), 0), min(int(y[k] + radius) + 2, dq.shape[0])):
            for i in range(max(int(x[k] - radius), 0), min(int(x[k] + radius) + 2, dq.shape[1])):
                out[k] |= dq[j, i]
    return out


def _reach(
    flux: np.ndarray, table: np.ndarray, step: float, fwhm: Pixels, noise: float
) -> np.ndarray:
    """Radius (pixels) within which each star is subtracted: to a twentieth of the sky noise, at most REACH FWHM."""
    n = np.searchsorted(-table[0], -0.05 * noise / np.maximum(flux, 1e-30))
    return np.clip(np.sqrt(n * step), FIT * fwhm, REACH * fwhm)


def _typical_noise(variance: Image, bad: np.ndarray) -> float:
    some = variance[::8, ::8][~bad[::8, ::8]]
    return float(np.sqrt(np.median(some))) if some.size else 0.0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _others(
    data: np.ndarray,
    left: np.ndarray,
    p: np.ndarray,
    forms: np.ndarray,
    table: np.ndarray,
    step: float,
) -> np.ndarray:
    """The light of the others at each star's centre over its own peak."""
    out = np.zeros(p.shape[0])
    for k in range(p.shape[0]):
        j = min(max(int(np.rint(p[k, 1])), 0), left.shape[0] - 1)
        i = min(max(int(np.rint(p[k, 0])), 0), left.shape[1] - 1)
        own, _ = light(i - p[k, 0], j - p[k, 1], forms[k], table, step)
        peak, _ = light(0.0, 0.0, forms[k], table, step)
        out[k] = (data[j, i] - left[j, i] - p[k, 2] * own) / (abs(p[k, 2]) * peak)
    return out


def fit_stars(
    data: Image,
    variance: Image,
    bad: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    clean: np.ndarray,
    fwhm: Pixels,
) -> Fitted:
    """Fit all stars of an array with a first, round star image; improve that without their neighbours; fit again.

    data, variance float32 (ny, nx); bad, bool, pixels to leave out; x, y: detections; clean: which of them may tell the
    star image.
    """
    xw, yw, flux, sky = _first(data, bad, x, y, fwhm)
    p, e = (
        np.column_stack([xw, yw, flux.clip(min=0), sky, np.zeros((len(x), 2))]),
        np.full((len(x), 6), np.nan),
    )
    stars, _ = isolated_stars(xw, yw, flux, clean, FIRST_REACH * fwhm)
    if not len(stars):
        stars = np.argsort(-flux, kind="stable")[:1]
    weights, noise = (
        star_image(data, bad, np.column_stack([xw, yw, flux, sky])[stars], fwhm),
        _typical_noise(variance, bad),
    )
    order, forms = np.argsort(-flux, kind="stable"), round_forms(len(x))
    table, step = tabulate(weights, fwhm)
    reach, left = _reach(flux, table, step, fwhm, noise), data.copy()
    failed = fit_all(
        left, variance, bad, order, x, y, p, e, forms, table, step, fwhm, reach, FIRST_SWEEPS, False
    )
    usable = (
        clean
        & ~failed
        & (p[:, 2] > 30 * e[:, 2])
        & (_others(data, left, p, forms, table, step) < 0.05)
    )
    order = np.argsort(-p[:, 2], kind="stable")
    stars = order[usable[order]][:MOST_FORMS]
    found, errors = fit_shapes(left, variance, bad, p[stars], forms[stars], table, step, FIT * fwhm)
    forms = smooth_forms(
        p[stars, 0], p[stars, 1], found, errors, p[:, 0], p[:, 1], (data.shape[0], data.shape[1])
    )
    if len(stars) >= 5:
        best, wide = isolated_stars(p[:, 0], p[:, 1], p[:, 2], usable, FIRST_REACH * fwhm)
        weights = star_image(
            left,
            bad,
            p[best, :4],
            fwhm,
            own=p[best, 2],
            forms=forms[best],
            known=(table, step),
            wide=wide,
        )
    table, step = tabulate(weights, fwhm)
    reach, left = _reach(p[:, 2], table, step, fwhm, noise), data.copy()
    take_out(left, p, forms, table, step, reach)
    failed = fit_all(
        left, variance, bad, order, x, y, p, e, forms, table, step, fwhm, reach, SWEEPS, True
    )
    return Fitted(
        left, p, e, weights, table, step, forms, stars, failed, bad, np.full(len(x), np.nan)
    )


def _misfit(chi2: np.ndarray, snr: np.ndarray, stars: np.ndarray) -> np.ndarray:
    """Chi-square over what good stars of the same S/N have: 1, and what an imperfect star image adds with S/N^2."""
    good = stars[np.isfinite(chi2[stars]) & np.isfinite(snr[stars])]
    if len(good) < 8:
        return chi2
    grows = max(float(np.median((chi2[good] - 1.0) / snr[good] ** 2)), 0.0)
    return chi2 / (1.0 + grows * snr**2)


def positions(
    data: Image, variance: Image, dq: Flags, x: np.ndarray, y: np.ndarray, *, fwhm: Pixels
) -> tuple[np.ndarray, Fitted]:
    """As `refine`, and the fit from which it comes, its sky with errors. At least one star."""
    bad = (dq & np.uint16(UNUSABLE)) != 0
    bad |= ~(np.isfinite(data) & np.isfinite(variance))
    data, variance, bad = plain(data, np.float32), plain(variance, np.float32), plain(bad, np.bool_)
    x, y = np.array(x, np.float64), np.array(y, np.float64)
    near = _bits_near(plain(dq, np.uint16), x, y, fwhm)
    flags = SATURATED * ((near & int(DQ.SATURATED)) != 0) + BAD_NEAR * ((near & int(UNUSABLE)) != 0)
    margin = np.minimum(np.minimum(x, data.shape[1] - 1 - x), np.minimum(y, data.shape[0] - 1 - y))
    flags = flags + EDGE * (margin < FIT * fwhm)
    fit = fit_stars(data, variance, bad, x, y, flags == 0, fwhm)
    phot = star_fluxes(fit.left, variance, bad, fit.p, fit.forms, fit.table, fit.step, fwhm)
    place, share = floors(phot, fit.p[:, 2], fit.stars)
    place = place if np.isfinite(place) else PLACE_FLOOR * fwhm
    share = share if np.isfinite(share) else FLUX_FLOOR
    known = np.isfinite(phot[:, 0])
    flux, eflux = np.where(known, phot[:, 0], fit.p[:, 2]), np.where(known, phot[:, 1], fit.e[:, 2])
    misfit = _misfit(phot[:, 3], flux / eflux, fit.stars)
    wide = np.sqrt(np.fmax(misfit, 1.0))
    out = np.zeros(len(x), POSITIONS)
    out["x"], out["y"], out["flux"], out["sky"] = (
        fit.p[:, 0],
        fit.p[:, 1],
        flux,
        np.where(known, phot[:, 2], fit.p[:, 3]),
    )
    out["ex"], out["ey"] = np.hypot(fit.e[:, 0] * wide, place), np.hypot(fit.e[:, 1] * wide, place)
    out["eflux"], out["chi2"] = np.hypot(eflux * wide, share * flux), misfit
    out["fwhm"] = half_maximum(fit.weights, fwhm)
    others = _others(data, fit.left, fit.p, fit.forms, fit.table, fit.step)
    failed = fit.failed | ~np.isfinite(fit.e[:, 0])
    out["flags"] = (
        flags
        + NEIGHBOUR * (others > CONTAMINATION)
        + FAILED * failed
        + MISFIT * (misfit > WORST_CHI2)
    )
    return out, fit._replace(sky_error=phot[:, 10])


def photometry(
    data: Image, variance: Image, dq: Flags, x: np.ndarray, y: np.ndarray, *, fwhm: Pixels
) -> np.ndarray:
    """As `refine`, with fluxes in circles of APERTURES * fwhm (of the mean star image), neighbours taken out: dtype
    PHOTOMETRY, which adds aper and eaper (unit of data), and lost: the share of each circle that is bad or outside, where
    the fitted star image stands in.
    """
    out = np.zeros(len(x), PHOTOMETRY)
    if not len(x):
        return out
    found, fit = positions(data, variance, dq, x, y, fwhm=fwhm)
    for name in POSITIONS.names or ():
        out[name] = found[name]
    sky, e_sky = np.nan_to_num(found["sky"].astype(float)), np.nan_to_num(fit.sky_error)
    radii = np.array(APERTURES) * found["fwhm"][0]
    flux, noise, out["lost"] = aperture_fluxes(
        fit.left,
        plain(variance, np.float32),
        fit.bad,
        fit.p,
        sky,
        e_sky,
        fit.forms,
        fit.table,
        fit.step,
        radii,
    )
    out["aper"], out["eaper"] = flux, np.sqrt(noise)
    return out


def refine(
    data: Image, variance: Image, dq: Flags, x: np.ndarray, y: np.ndarray, *, fwhm: Pixels
) -> np.ndarray:
    """Positions and fluxes of stars good to the photon limit.

    data, variance float32 (ny, nx), dq uint16; x, y: 0-based positions of all the detections of this array, good to
    half a FWHM (neighbours are fitted too, so leave none out); fwhm in pixels, `detect.measure_fwhm` gives it.
    Returns dtype POSITIONS, one row per input: x, y (0-based pixels) and their errors; flux of the fitted star image and
    its error (unit of data); fwhm of the array's mean star image; local sky; chi2 per pixel, 1 where a star fits as the
    array's good stars of its flux do; flags: NEIGHBOUR (others' light above 2 % of the star's peak), SATURATED and
    BAD_NEAR (within one FWHM), EDGE (within 2.5 FWHM of the array's edge), FAILED (nothing fitted: the window's position,
    errors NaN), MISFIT (chi2 above 2: blended with an unseen star, or no star). Errors are from the variance, times
    sqrt(chi2) where that is above 1, with a floor from the star image's own error.
    """
    if not len(x):
        return np.zeros(0, POSITIONS)
    return positions(data, variance, dq, x, y, fwhm=fwhm)[0]
