"""Fluxes of the fitted star image against sums of the same light, over an image.

The form of the star image is a smooth function of the place. Where it is a per cent too wide,
fitted fluxes are a per cent too large: by half a per cent over the field of a stack of dithered
frames. The light within two FWHM does not depend on the form, and hardly on how wide the image is
at a place. Its ratio to the fitted flux is the same for all stars where the form is right; a
surface through the ratios of bright stars takes out what is not. (In a circle of one FWHM it would
follow an image that really changes.)
"""

from __future__ import annotations

import numpy as np

from gdask.kernels.arithmetic import least_squares
from gdask.kernels.sources.psf import polynomial_terms

#: (stars, terms): number of terms (1, linear, quadratic in x and y) for at least so many stars.
SURFACE_TERMS = ((30, 6), (12, 3))
#: Least S/N of the stars, and most of them, from the brightest.
LEAST_SNR, MOST_STARS = 50.0, 400
#: Size (fraction) that a term is expected to have, and error of a ratio beyond noise.
PRIOR, RATIO_FLOOR = 0.01, 0.002
#: Rounds of robust weights; ratios this many sigma off weigh less.
ROUNDS, REJECT_SIGMA = 6, 3.0


def flux_surface(
    x: np.ndarray,
    y: np.ndarray,
    flux: np.ndarray,
    error: np.ndarray,
    light: np.ndarray,
    clean: np.ndarray,
    shape: tuple[int, int],
) -> tuple[np.ndarray, float]:
    """Give what fitted fluxes are to be multiplied by, 1 in the mean of the stars, and its error.

    x, y: places (pixels) on an image of `shape` (ny, nx); flux, error: fitted; light: within two
    FWHM; clean: stars that may be used. The factors are an array (stars,), the error a fraction:
    that of the surface at a typical star. With fewer than 12 stars nothing changes.
    """
    same = np.ones(len(x))
    snr = np.where(clean & (flux > 0) & (light > 0), flux / np.maximum(error, 1e-30), 0.0)
    order = np.argsort(-snr, kind="stable")[:MOST_STARS]
    stars = order[snr[order] > LEAST_SNR]
    count = next((terms for least, terms in SURFACE_TERMS if len(stars) >= least), 0)
    if not count:
        return same, 0.0
    ratio = light[stars] / flux[stars]
    change = ratio / np.median(ratio) - 1
    terms = polynomial_terms(x[stars], y[stars], shape)[:, :count]
    weight = 1 / (1 / snr[stars] ** 2 + RATIO_FLOOR**2)
    factors, share = np.zeros(count), np.ones(len(stars))
    widening = 1.0
    for _ in range(ROUNDS):
        root = np.sqrt(weight * share) / widening
        rows = np.vstack([terms * root[:, None], np.eye(count)[1:] / PRIOR])
        factors = least_squares(rows, np.append(change * root, np.zeros(count - 1)))
        pull = np.abs(change - (terms * factors).sum(axis=1)) * np.sqrt(weight)
        widening = max(float(np.median(pull)) / 0.6745, 1e-3)
        share = 1 / (1 + np.minimum(pull / (widening * REJECT_SIGMA), 1e6) ** 4)
    found = (polynomial_terms(x, y, shape)[:, :count] * factors).sum(axis=1)
    middle = float(np.median(found[stars]))
    surface_error = widening * float(np.sqrt(count / (weight * share).sum()))
    return 1 + np.clip(found - middle, -0.1, 0.1), surface_error
