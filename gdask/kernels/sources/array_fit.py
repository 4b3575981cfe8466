"""Fit all stars of an array together with the array's star image.

A first, round star image comes from the pixels as they are. When the stars are fitted with it,
their neighbours can be subtracted: that gives the form of the image over the array, and a better
mean image, with which all stars are fitted again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gdask.kernels.arithmetic import exponential
from gdask.kernels.compiled import njit
from gdask.kernels.sources.photometry import local_sky
from gdask.kernels.sources.psf import (
    FIRST_PROFILE_RADIUS_FWHM,
    MAX_FORM_STARS,
    PROFILE_RADIUS_FWHM,
    isolated_stars,
    mean_star_image,
    round_forms,
    smooth_forms,
    tabulate,
)
from gdask.kernels.sources.star_fit import (
    FIT_RADIUS_FWHM,
    fit_all_stars,
    fit_forms,
    star_light,
)
from gdask.types import Image, Mask, Pixels

#: Radii of the annulus of the first local background, in FWHM.
FIRST_SKY_INNER_FWHM, FIRST_SKY_OUTER_FWHM = 3.0, 4.5
#: Most sweeps over the stars: with the first star image, and with the final one.
FIRST_SWEEPS, FINAL_SWEEPS = 2, 15
#: A star is subtracted to where its light is this share of the sky noise.
SUBTRACTION_LIMIT = 0.05
#: The form of the image is measured on stars with an S/N above this, ...
MIN_FORM_SNR = 30
#: ... and with neighbours' light below this share of their own peak.
MAX_FORM_NEIGHBOUR_LIGHT = 0.05
#: With fewer of them, the first star image is kept.
MIN_FORM_STARS = 5


class StarFits(NamedTuple):
    """The stars of an array as fitted.

    residual: the pixels without the stars. params, errors: (n, 6) x, y, flux, sky and its slopes,
    and their errors. weights: of the Gaussians of the mean star image; profile, profile_step: that
    image as a table. forms: (n, 3). image_stars: indices of the stars on which the star image was
    measured, from bright to faint. failed: whether each fit failed. bad: pixels left out.
    sky_error: of the local sky of each star, NaN where unknown. radii: half the sides (pixels) of
    the squares in which the stars are subtracted.
    """

    residual: Image
    params: np.ndarray
    errors: np.ndarray
    weights: np.ndarray
    profile: np.ndarray
    profile_step: float
    forms: np.ndarray
    image_stars: np.ndarray
    failed: np.ndarray
    bad: Mask
    sky_error: np.ndarray
    radii: np.ndarray


@njit(cache=True, nogil=True, error_model="numpy")
def _windowed_centroids(
    data: np.ndarray, bad: np.ndarray, x: np.ndarray, y: np.ndarray, fwhm: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """First positions, by a Gaussian window as wide as the star; fluxes and sky levels.

    The flux is that within one FWHM, the sky the clipped mean of an annulus. A position that would
    move by more than one FWHM stays at the detection.
    """
    ny, nx = data.shape
    xo, yo, flux, sky = x.copy(), y.copy(), np.zeros(x.size), np.zeros(x.size)
    q = 1.0 / (2.0 * (fwhm / 2.3548) ** 2)
    inner, outer = FIRST_SKY_INNER_FWHM * fwhm, FIRST_SKY_OUTER_FWHM * fwhm
    for k in range(x.size):
        sky[k] = local_sky(data, data, bad, x[k], y[k], inner, outer)[0]
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
                    w = exponential(-q * r2) * v
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


def _subtraction_radii(
    flux: np.ndarray, profile: np.ndarray, profile_step: float, fwhm: Pixels, noise: float
) -> np.ndarray:
    """Radius (pixels) within which each star is subtracted.

    It reaches to a twentieth of the sky noise, at most to PROFILE_RADIUS_FWHM.
    """
    limit = SUBTRACTION_LIMIT * noise / np.maximum(flux, 1e-30)
    n = np.searchsorted(-profile[0], -limit)
    return np.clip(np.sqrt(n * profile_step), FIT_RADIUS_FWHM * fwhm, PROFILE_RADIUS_FWHM * fwhm)


def _typical_noise(variance: Image, bad: np.ndarray) -> float:
    """Square root of the median variance of every eighth pixel along each axis."""
    sample = variance[::8, ::8][~bad[::8, ::8]]
    return float(np.sqrt(np.median(sample))) if sample.size else 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def neighbour_light(
    data: np.ndarray,
    residual: np.ndarray,
    params: np.ndarray,
    forms: np.ndarray,
    profile: np.ndarray,
    profile_step: float,
) -> np.ndarray:
    """The light of all other stars at each star's centre, as a share of its own peak."""
    out = np.zeros(params.shape[0])
    for k in range(params.shape[0]):
        x, y, flux = params[k, 0], params[k, 1], params[k, 2]
        j = min(max(int(np.rint(y)), 0), residual.shape[0] - 1)
        i = min(max(int(np.rint(x)), 0), residual.shape[1] - 1)
        share, _ = star_light(i - x, j - y, forms[k], profile, profile_step)
        peak, _ = star_light(0.0, 0.0, forms[k], profile, profile_step)
        out[k] = (data[j, i] - residual[j, i] - flux * share) / (abs(flux) * peak)
    return out


def fit_stars(
    data: Image,
    variance: Image,
    bad: Mask,
    x: np.ndarray,
    y: np.ndarray,
    clean: np.ndarray,
    fwhm: Pixels,
) -> StarFits:
    """Fit all stars of an array, first with a round star image, then with the improved one.

    data, variance: float32 (ny, nx). bad: pixels to leave out. x, y: detections. clean: which of
    them may be used for the star image. The final image is made without the stars' neighbours.
    """
    noise = _typical_noise(variance, bad)
    first = _fit_with_round_image(data, variance, bad, x, y, clean, fwhm, noise)
    params, errors, residual = first.params, first.errors, first.residual
    profile, profile_step = first.profile, first.profile_step
    contamination = neighbour_light(data, residual, params, first.forms, profile, profile_step)
    usable = clean & ~first.failed & (params[:, 2] > MIN_FORM_SNR * errors[:, 2])
    usable &= contamination < MAX_FORM_NEIGHBOUR_LIGHT
    order = np.argsort(-params[:, 2], kind="stable")
    stars = order[usable[order]][:MAX_FORM_STARS]
    forms = _forms_over_array(first, variance, stars, fwhm)
    weights = first.weights
    if len(stars) >= MIN_FORM_STARS:
        radius = FIRST_PROFILE_RADIUS_FWHM * fwhm
        best, isolated = isolated_stars(params[:, 0], params[:, 1], params[:, 2], usable, radius)
        weights = mean_star_image(
            residual,
            bad,
            params[best, :4],
            fwhm,
            subtracted_flux=params[best, 2],
            forms=forms[best],
            subtracted_profile=(profile, profile_step),
            isolated=isolated,
        )
    profile, profile_step = tabulate(weights, fwhm)
    radii = _subtraction_radii(params[:, 2], profile, profile_step, fwhm, noise)
    np.copyto(residual, data)  # a new plane would cost fresh pages
    failed = fit_all_stars(
        residual,
        variance,
        bad,
        order,
        x,
        y,
        params,
        errors,
        forms,
        profile,
        profile_step,
        fwhm,
        radii,
        FINAL_SWEEPS,
        True,
    )
    return first._replace(
        residual=residual,
        weights=weights,
        profile=profile,
        profile_step=profile_step,
        forms=forms,
        image_stars=stars,
        failed=failed,
        radii=radii,
    )


def _fit_with_round_image(
    data: Image,
    variance: Image,
    bad: Mask,
    x: np.ndarray,
    y: np.ndarray,
    clean: np.ndarray,
    fwhm: Pixels,
    noise: float,
) -> StarFits:
    """Fit all stars of an array with a first, round star image; arguments as for `fit_stars`.

    noise: that of a pixel of the sky.
    """
    first_x, first_y, flux, sky = _windowed_centroids(data, bad, x, y, fwhm)
    slopes = np.zeros((len(x), 2))
    params = np.column_stack([first_x, first_y, flux.clip(min=0), sky, slopes])
    errors, residual = np.full((len(x), 6), np.nan), data.copy()
    radius = FIRST_PROFILE_RADIUS_FWHM * fwhm
    stars, _ = isolated_stars(first_x, first_y, flux, clean, radius)
    order = np.argsort(-flux, kind="stable")
    if not len(stars):
        stars = order[:1]
    measured = np.column_stack([first_x, first_y, flux, sky])[stars]
    weights, forms = mean_star_image(data, bad, measured, fwhm), round_forms(len(x))
    profile, profile_step = tabulate(weights, fwhm)
    radii = _subtraction_radii(flux, profile, profile_step, fwhm, noise)
    failed = fit_all_stars(
        residual,
        variance,
        bad,
        order,
        x,
        y,
        params,
        errors,
        forms,
        profile,
        profile_step,
        fwhm,
        radii,
        FIRST_SWEEPS,
        False,
    )
    sky_error = np.full(len(x), np.nan)
    return StarFits(
        residual,
        params,
        errors,
        weights,
        profile,
        profile_step,
        forms,
        stars,
        failed,
        bad,
        sky_error,
        radii,
    )


def _forms_over_array(
    fits: StarFits, variance: Image, stars: np.ndarray, fwhm: Pixels
) -> np.ndarray:
    """Forms (n, 3) of all stars, from those of `stars` (indices)."""
    params, (ny, nx) = fits.params, fits.residual.shape
    found, errors = fit_forms(
        fits.residual,
        variance,
        fits.bad,
        params[stars],
        fits.forms[stars],
        fits.profile,
        fits.profile_step,
        FIT_RADIUS_FWHM * fwhm,
    )
    x, y = params[:, 0], params[:, 1]
    return smooth_forms(x[stars], y[stars], found, errors, x, y, (ny, nx))
