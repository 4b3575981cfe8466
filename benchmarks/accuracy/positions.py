"""Positions of a stack's stars against the truth, and what photon noise and a catalogue allow."""

from __future__ import annotations

import numpy as np
from astropy.table import Table
from scipy.spatial import cKDTree

from benchmarks.accuracy.matched_stack import RADII, MatchedStack
from benchmarks.accuracy.statistics import excess, linear_residuals, rms, robust_sigma
from gdask.kernels.geometry.projection import Floats
from gdask.kernels.sources.centroids import fit_positions
from gdask.kernels.sources.detection import detect, measure_fwhm
from gdask.types import Flags, Image, Mask

#: Photon limit (pixels per axis) below which a star counts as bright.
BRIGHT_PHOTON_LIMIT = 0.015
#: S/N of FLUX_PSF above which a star of OBJCAT counts as bright.
BRIGHT_SNR = 150.0
#: A true star is looked for within this distance (pixels).
MATCH_RADIUS = 5.0
#: Stars of the reference catalogues that are made from the truth: so many of the brightest.
CATALOG_STARS = 3000
#: Photon limit (pixels per axis) of the faintest catalogue star that the stack can be tied to.
CATALOG_PHOTON_LIMIT = 0.3


def find_stars(data: Image, variance: Image, dq: Flags) -> tuple[float, np.ndarray]:
    """FWHM (pixels) and refined centroids of the stars of an image, as the pipeline measures."""
    detected, _ = detect(data, variance, dq, threshold=1.5, min_pixels=8, mesh=128)
    fwhm = float(measure_fwhm(detected))
    x, y = detected["X_IMAGE"] - 1, detected["Y_IMAGE"] - 1
    return fwhm, fit_positions(data, variance, dq, x, y, fwhm=fwhm)


def nearest_found(
    found: np.ndarray, x: Floats, y: Floats, radius: float = MATCH_RADIUS
) -> tuple[Floats, np.ndarray]:
    """Distance (pixels) of the found star nearest to each place, inf beyond `radius`; its row."""
    tree = cKDTree(np.column_stack([found["x"], found["y"]]))
    return tree.query(np.column_stack([x, y]), distance_upper_bound=radius)


def displacement(
    stack: MatchedStack, found: np.ndarray, isolated: Mask, with_distortion: bool
) -> Floats:
    """Distance (pixels) of the stack's stars from their true places: (2, stars).

    A linear function of x and y, and with_distortion the frames' mean distortion.
    """
    distortion = np.array([stack.mean_distortion[0], -stack.mean_distortion[1]])
    distortion = distortion / stack.pixel * with_distortion
    bright = isolated & (stack.frame_count > 0) & (stack.flux > 2e4)
    distance, index = nearest_found(found, stack.x, stack.y)
    bright &= np.isfinite(distance)
    if bright.sum() < 6:
        return distortion
    star = found[index[bright]]
    shift = np.array([star["x"] - stack.x[bright], star["y"] - stack.y[bright]])
    shift = shift - distortion[:, bright]
    residual = linear_residuals(stack.x[bright], stack.y[bright], shift)
    keep = np.all(np.abs(residual) < 5 * robust_sigma(residual) + 1e-3, axis=0)
    design = np.column_stack([np.ones_like(stack.x), stack.x / 1000, stack.y / 1000])
    fit = np.linalg.lstsq(design[bright][keep], shift[:, keep].T, rcond=None)[0]
    return distortion + (design @ fit).T


def photon_limits(stack: MatchedStack) -> Floats:
    """Cramer-Rao bound (pixels, per axis) of each star's position.

    From the mean true profile, the stack's median VAR of blank pixels scaled to the star's number
    of frames, and the star's own photons.
    """
    profile = stack.profiles.mean(axis=0)
    slope = np.gradient(profile, RADII)
    sigma = np.sqrt(np.maximum(stack.variance, 1e-9))
    blank = stack.variance[(stack.model < 3 * sigma) & (stack.variance > 0)]
    variance_of_one_frame = np.median(blank) * np.max(stack.frame_count)
    limits = np.full(len(stack.x), np.inf)
    for k in np.flatnonzero(stack.frame_count > 0):
        count, flux = stack.frame_count[k], stack.flux[k]
        variance = variance_of_one_frame / count + flux * profile / count
        information = (flux * slope) ** 2 / variance * np.pi * RADII
        limits[k] = np.trapezoid(information, RADII) ** -0.5
    return limits


def position_figures(
    stack: MatchedStack,
    found: np.ndarray,
    limits: Floats,
    wanted: Mask,
    catalog_mas: float | None,
    plots: dict[str, np.ndarray],
) -> dict[str, float]:
    """Residuals of bright stars (mas) after one linear transform, beyond the photon limit.

    found: of `find_stars`. limits: of `photon_limits`. wanted: whole, isolated stars. catalog_mas:
    error per axis of the night's reference catalogue. What the plots need is added to `plots`.
    """
    mas = 1000 * stack.pixel
    distance, index = nearest_found(found, stack.x, stack.y)
    bright = wanted & np.isfinite(distance) & (limits < BRIGHT_PHOTON_LIMIT)
    star = found[index[bright]]
    clean = (star["flags"] & ~1) == 0
    bright[np.flatnonzero(bright)[~clean]] = False
    star = star[clean]
    bound = limits[bright] * mas
    figures = {"bright_stars": int(bright.sum()), "photon_limit_mas": rms(bound)}
    if bright.sum() < 10:
        return figures
    x, y = stack.x[bright], stack.y[bright]
    shift = np.array([star["x"] - x, star["y"] - y]) * mas
    # +x is West; the stack has its stars at minus the mean distortion.
    east, north = stack.mean_distortion[:, bright]
    distortion = np.array([-east, north]) * 1000
    residual, floor = linear_residuals(x, y, shift), linear_residuals(x, y, distortion)
    # Without a catalogue no frame-to-frame alignment can see the mean of the true distortions.
    beyond_floor = linear_residuals(x, y, shift + distortion) if catalog_mas is None else residual
    plots |= {"star_x": x, "star_y": y, "shift": beyond_floor, "bound": bound}
    figures |= {
        "rms_mas": rms(residual),
        "mad_sigma_mas": robust_sigma(residual),
        "floor_mas": rms(floor),
        "beyond_floor_rms_mas": rms(beyond_floor),
        "astrometry_mas": excess(rms(beyond_floor), rms(bound)),
        "astrometry_mad_mas": excess(robust_sigma(beyond_floor), float(np.median(bound))),
        "offset_east_mas": -float(np.median(shift[0])),
        "offset_north_mas": float(np.median(shift[1])),
        "rotation_mas_per_arcmin": _rotation(x, y, shift) * 60 / stack.pixel,
    }
    if catalog_mas is None:
        return figures
    known = wanted & np.isfinite(distance)
    return figures | _catalog_figures(stack, found[index[known]], known, limits, catalog_mas)


def catalogue_pulls(stack: MatchedStack, wanted: Mask, radius: float) -> dict[str, float]:
    """Robust widths of (OBJCAT - truth) / error of bright stars: positions, FLUX_PSF.

    wanted: whole, isolated stars; radius: pixels within which a row of OBJCAT is a star. Positions
    are compared after a linear transform, fluxes after one factor: a pull of 1 says that errors are
    as large as they are said to be. Stars above BRIGHT_SNR, where errors that all of them share,
    such as distortion, outweigh the photons'.
    """
    catalog = stack.catalog
    listed = np.column_stack([catalog["XPSF_IMAGE"] - 1, catalog["YPSF_IMAGE"] - 1]).astype(float)
    known = np.flatnonzero(np.isfinite(listed).all(axis=1))
    places = np.column_stack([stack.x, stack.y])[wanted]
    distance, index = cKDTree(listed[known]).query(places)
    rows = known[index[distance < radius]]
    flux, error = (np.asarray(catalog[n][rows], float) for n in ("FLUX_PSF", "FLUXERR_PSF"))
    good = (np.asarray(catalog["FLAGS_PSF"][rows]) & ~64 == 0) & (flux > BRIGHT_SNR * error)
    if good.sum() < 10:
        return {"bright_listed_stars": int(good.sum())}
    true, rows = places[distance < radius][good], rows[good]
    shift = (listed[rows] - true).T * 1000 * stack.pixel
    mas = np.array([catalog[name][rows] for name in ("RA_ERR", "DEC_ERR")], float)
    pulls = linear_residuals(*true.T, shift) / mas
    ratio = flux[good] / stack.flux[wanted][distance < radius][good]
    return {
        "bright_listed_stars": int(good.sum()),
        "position_pull": robust_sigma(pulls),
        "bright_flux_pull": robust_sigma((ratio / np.median(ratio) - 1) * (flux / error)[good]),
        "position_error_mas": float(np.median(mas)),
    }


def _catalog_figures(
    stack: MatchedStack, star: np.ndarray, known: Mask, limits: Floats, catalog_mas: float
) -> dict[str, float]:
    """Offset of the stack from the true sky, compared with what the catalogue's errors allow.

    star: the found stars that belong to `known`.
    """
    mas = 1000 * stack.pixel
    bright = known & (limits < 5 * BRIGHT_PHOTON_LIMIT)
    star = star[bright[known]]
    # The pipeline's own weights: at the few brightest stars alone the fitted terms are worse than
    # in the mean.
    weight = 1 / ((limits[bright] * mas) ** 2 + catalog_mas**2)
    shift = np.array([star["x"] - stack.x[bright], star["y"] - stack.y[bright]]) * mas
    deviation = np.abs(shift - np.median(shift, axis=1, keepdims=True))
    near = np.all(deviation < 5 * mas * limits[bright] + 1.0, axis=0)
    offset = (shift * weight * near).sum(axis=1) / (weight * near).sum()
    rank = np.argsort(np.argsort(stack.stars["mag"], kind="stable"), kind="stable")
    listed = (stack.frame_count > 0) & (rank < CATALOG_STARS) & (limits < CATALOG_PHOTON_LIMIT)
    weights = 1 / (catalog_mas**2 + (limits * mas) ** 2)
    expected = np.sum(1 / (catalog_mas**2 + (limits[listed] * mas) ** 2)) ** -0.5
    drawn = _catalog_offset(stack, listed, weights, catalog_mas)
    return {
        "tie_stars": int(listed.sum()),
        "tie_expected_mas": float(expected),
        # Ten terms per axis are fitted to the catalogue.
        "catalog_limit_mas": float(expected * np.sqrt(10)),
        "tie_ratio": float(np.hypot(*offset) / np.sqrt(2) / expected),
        "tie_beyond_catalog_mas": float(
            np.hypot(-offset[0] - drawn[0], offset[1] - drawn[1]) / np.sqrt(2)
        ),
    }


def _catalog_offset(
    stack: MatchedStack, listed: Mask, weights: Floats, catalog_mas: float
) -> Floats:
    """Mean error (East, North, mas) that the night's catalogue happens to have.

    No stack that is tied to it can be better.
    """
    catalog = Table.read(stack.truth.parent / f"catalog_{catalog_mas:g}mas.fits")
    cosine = np.cos(np.radians(np.mean(stack.stars["dec"])))
    true = np.column_stack([np.asarray(stack.stars["ra"]) * cosine, stack.stars["dec"]])
    given = np.column_stack([np.asarray(catalog["RAJ2000"]) * cosine, catalog["DEJ2000"]])
    distance, index = cKDTree(given).query(true)
    known = listed & (distance < 10 * catalog_mas / 3.6e6)
    error = (given[index[known]] - true[known]) * 3.6e6
    return np.average(error, axis=0, weights=weights[known])


def _rotation(x: Floats, y: Floats, shift: Floats) -> float:
    """Rotation of the shifts (mas) over the places (pixels): mas per pixel of distance."""
    cx, cy = x - x.mean(), y - y.mean()
    return float(np.sum(cx * shift[1] - cy * shift[0]) / np.sum(cx**2 + cy**2))
