"""The mean star image of an array, round and smooth, from its own bright stars."""

from __future__ import annotations

import numba
import numpy as np
from scipy.optimize import nnls

from gdask.types import Image, Pixels

#: Radius (in FWHM) to which the mean image is known, and a fitted star subtracted before its neighbours are fitted.
REACH = 8.0
#: Widths of the Gaussians that make up the mean image: sigma in units of the FWHM.
WIDTHS = 0.25 * 1.45 ** np.arange(9)
#: Stars that make the mean image, and the steps of its table in r^2.
SHAPE_STARS, STEPS = 60, 4096


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _profile(
    data: np.ndarray, bad: np.ndarray, x: np.ndarray, y: np.ndarray, flux: np.ndarray, sky: np.ndarray, step: float,
    rings: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Per star and ring of width `step`: mean (value - sky) / flux (NaN where empty), and mean r^2 over all stars."""
    ny, nx = data.shape
    out = np.empty((x.size, rings))
    r2sum, count = np.zeros(rings), np.zeros(rings)
    half = int(step * rings) + 1
    for k in range(x.size):
        total, n = np.zeros(rings), np.zeros(rings)
        for j in range(max(int(y[k]) - half, 0), min(int(y[k]) + half + 2, ny)):
            for i in range(max(int(x[k]) - half, 0), min(int(x[k]) + half + 2, nx)):
                r2 = (i - x[k]) ** 2 + (j - y[k]) ** 2
                ring = int(np.sqrt(r2) / step)
                if ring < rings and not bad[j, i]:
                    total[ring] += (data[j, i] - sky[k]) / flux[k]
                    n[ring] += 1.0
                    r2sum[ring] += r2
                    count[ring] += 1.0
        for ring in range(rings):
            out[k, ring] = total[ring] / n[ring] if n[ring] > 0 else np.nan
    return out, r2sum / count


def isolated_stars(x: np.ndarray, y: np.ndarray, flux: np.ndarray, usable: np.ndarray, reach: Pixels) -> np.ndarray:
    """Indices of the bright usable stars without a neighbour of 5 % of their flux within reach; else the brightest."""
    order = np.argsort(-flux, kind="stable")
    order = order[usable[order] & (flux[order] > 0)]
    alone = [k for k in order[: 10 * SHAPE_STARS]
             if np.count_nonzero((np.hypot(x - x[k], y - y[k]) < reach) & (flux > 0.05 * flux[k])) <= 1]
    return np.array(alone[:SHAPE_STARS] if len(alone) >= 3 else order[:SHAPE_STARS], int)


def star_image(
    data: Image, bad: np.ndarray, x: np.ndarray, y: np.ndarray, flux: np.ndarray, sky: np.ndarray, fwhm: Pixels
) -> np.ndarray:
    """Weights (per pixel^2, sum of volumes 1) of round Gaussians with sigma WIDTHS * fwhm that describe these stars.

    The median over stars of their mean profiles, fitted with non-negative weights together with a constant: a pedestal
    that the local background left.
    """
    step = max(fwhm / 6.0, 0.5)
    profiles, r2 = _profile(data, bad, x, y, flux, sky, step, int(REACH * fwhm / step))
    seen = np.isfinite(profiles).any(axis=0) & np.isfinite(r2)
    value = np.array([np.median(p[np.isfinite(p)]) for p in profiles[:, seen].T])
    sigma2 = (WIDTHS * fwhm) ** 2
    basis = np.exp(-r2[seen, None] / (2 * sigma2)) / (2 * np.pi * sigma2)
    # Errors of a ring: a relative part, and a sky part that falls with its pixels.
    error = 0.02 * value.clip(min=0) + 2e-4 * value.max() / np.sqrt(np.sqrt(r2[seen] / fwhm**2) + 0.3)
    columns = np.column_stack([basis, np.full(len(value), 1 / fwhm**2), np.full(len(value), -1 / fwhm**2)])
    weights, _ = nnls(columns / error[:, None], value / error)
    weights = weights[: len(sigma2)]
    if not weights.sum() > 0:  # nothing like a star: one Gaussian of this FWHM
        weights = (np.arange(len(sigma2)) == np.argmin(np.abs(WIDTHS - 1 / 2.3548))).astype(float)
    return weights / weights.sum() / (2 * np.pi * sigma2)


def tabulate(weights: np.ndarray, fwhm: Pixels) -> tuple[np.ndarray, Pixels]:
    """The mean image as a table in r^2: value and -2 x its derivative by r^2; and the step in r^2."""
    step = (REACH * fwhm) ** 2 / (STEPS - 2)
    q = 1 / (2 * (WIDTHS * fwhm) ** 2)
    r2 = np.arange(STEPS) * step
    light = np.exp(-r2[:, None] * q) * weights
    return np.stack([light.sum(axis=1), 2 * (light * q).sum(axis=1)]), step


def half_maximum(weights: np.ndarray, fwhm: Pixels) -> Pixels:
    """FWHM of a sum of Gaussians."""
    r = np.linspace(0, 4 * fwhm, 2001)
    light = (np.exp(-(r[:, None] ** 2) / (2 * (WIDTHS * fwhm) ** 2)) * weights).sum(axis=1)
    return float(2 * r[np.argmax(light < light[0] / 2)])
