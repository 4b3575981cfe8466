"""Noise and background of a stack against its variance."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import uniform_filter

from benchmarks.accuracy.matched_stack import MatchedStack
from benchmarks.accuracy.statistics import ROBUST_WIDTH_ERROR, robust_sigma
from gdask.types import Image, Mask

#: Side (pixels) of a block of the background map.
BACKGROUND_BLOCK = 64
#: Radius (pixels) of the blank apertures.
BLANK_APERTURE = 6.0
#: Side (pixels) of the window whose mean is the local level.
LEVEL_WINDOW = 129


def noise_figures(stack: MatchedStack, plots: dict[str, np.ndarray]) -> dict[str, float]:
    """Pulls of blank pixels and of blank apertures about the local level.

    The background map has figures of its own. What the plots need is added to `plots`.
    """
    blank = blank_pixels(stack, 0.1)
    difference = stack.residual - local_level(stack.residual, blank)
    sigma = np.sqrt(np.maximum(stack.variance, 1e-9))
    pixel_factor, sum_factor = (
        float(stack.header.get(name, 1.0)) for name in ("CORRPIX", "CORRFAC")
    )
    pull = (difference / sigma)[blank] / pixel_factor
    plots["sky_pull"] = pull[:: max(1, len(pull) // 200000)]
    figures = {
        "corrpix": pixel_factor,
        "corrfac": sum_factor,
        "sky_pull": robust_sigma(pull),
        "sky_pull_plain": float(np.std(pull[np.abs(pull) < 8])),
        "sky_pixels": int(blank.sum()),
        "sky_tail_permille": 1000 * float(np.mean(np.abs(pull) > 5)),
    }
    sums = _blank_aperture_pulls(difference, stack.variance, blank) / sum_factor
    if len(sums) > 50:
        # The local level is the mean of a window: what the aperture adds to it is missing from
        # the difference.
        figures |= {
            "aperture_pull": robust_sigma(sums),
            "aperture_pull_error": ROBUST_WIDTH_ERROR / len(sums) ** 0.5,
            "aperture_pull_plain": float(np.std(sums)),
            "apertures": len(sums),
        }
    return figures


def _blank_aperture_pulls(difference: Image, variance: Image, blank: Mask) -> np.ndarray:
    """Sums of apertures that do not overlap and have blank pixels only, over sqrt(sum of VAR)."""
    step, half = int(2 * BLANK_APERTURE + 4), int(BLANK_APERTURE) + 1
    ny, nx = difference.shape
    grid_y, grid_x = np.mgrid[-half : half + 1, -half : half + 1]
    disk = np.hypot(grid_x, grid_y) <= BLANK_APERTURE
    pulls = []
    for j in range(half, ny - half, step):
        for i in range(half, nx - half, step):
            cut = np.s_[j - half : j + half + 1, i - half : i + half + 1]
            if blank[cut][disk].all():
                pulls.append(difference[cut][disk].sum() / np.sqrt(variance[cut][disk].sum()))
    return np.array(pulls)


def blank_pixels(stack: MatchedStack, sigmas: float) -> Mask:
    """Usable pixels whose true starlight is below so many standard deviations of the noise."""
    sigma = np.sqrt(np.maximum(stack.variance, 1e-9))
    return (stack.model < sigmas * sigma) & (stack.dq == 0) & (stack.variance > 0)


def local_level(residual: Image, blank: Mask) -> Image:
    """Mean of the blank pixels in a window about each pixel, deviant ones clipped at 4 sigma."""
    sigma = robust_sigma(residual[blank]) if blank.any() else 1.0
    values = np.where(blank, np.clip(residual, -4 * sigma, 4 * sigma), 0).astype(np.float64)
    share = uniform_filter(blank.astype(np.float64), LEVEL_WINDOW)
    return (uniform_filter(values, LEVEL_WINDOW) / np.maximum(share, 1e-6)).astype(np.float32)


def background_figures(stack: MatchedStack, plots: dict[str, np.ndarray]) -> dict[str, float]:
    """Level of the blank pixels' residual (e-), rms of its map, and what VAR predicts for the rms.

    The map is added to `plots`.
    """
    level, variance = _background_map(stack)
    plots["background"] = level
    known = np.isfinite(level)
    if known.sum() < 4:
        return {}
    rms, predicted = float(np.std(level[known])), float(np.sqrt(variance[known].mean()))
    return {
        "background_level_e": float(np.mean(level[known])),
        "background_rms_e": rms,
        "background_predicted_e": predicted,
        "background_ratio": rms / predicted,
    }


def _background_map(stack: MatchedStack) -> tuple[np.ndarray, np.ndarray]:
    """Mean residual of the blank pixels of each block, and its variance; NaN where few are."""
    ny, nx = (n // BACKGROUND_BLOCK for n in stack.data.shape)
    blank, residual = blank_pixels(stack, 0.3), stack.residual
    sigma = np.sqrt(np.median(stack.variance[blank])) if blank.any() else 1.0
    level, variance = np.full((2, ny, nx), np.nan)
    for j, i in np.ndindex(ny, nx):
        y, x = j * BACKGROUND_BLOCK, i * BACKGROUND_BLOCK
        cut = np.s_[y : y + BACKGROUND_BLOCK, x : x + BACKGROUND_BLOCK]
        good = blank[cut] & (np.abs(residual[cut]) < 8 * sigma)
        if good.sum() > 0.2 * BACKGROUND_BLOCK**2:
            level[j, i] = residual[cut][good].mean()
            variance[j, i] = stack.variance[cut][good].mean() / good.sum()
    return level, variance
