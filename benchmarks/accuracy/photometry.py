"""Aperture fluxes of a stack against the truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.spatial import cKDTree

from benchmarks.accuracy.matched_stack import (
    APERTURE,
    SKY_RING,
    MatchedStack,
    light_in_aperture,
)
from benchmarks.accuracy.statistics import (
    MEDIAN_ERROR,
    ROBUST_WIDTH_ERROR,
    excess,
    robust_sigma,
)
from gdask.kernels.geometry.projection import Floats
from gdask.model import DQ
from gdask.types import Flags, Image, Mask

#: DQ bits with which a pixel cannot be measured: bad, cosmic ray, no data, unilluminated.
UNMEASURABLE = int(DQ.BAD_PIXEL | DQ.COSMIC_RAY | DQ.NO_DATA | DQ.UNILLUMINATED)
#: S/N of the stars whose flux pulls are looked at.
PULL_SNR = (5.0, 40.0)
#: Relative flux error below which a star counts for bias and position dependence.
BRIGHT_FLUX_ERROR = 0.01
#: Relative error of the model of a neighbour's light: profiles are means over the frames.
NEIGHBOUR_MODEL_ERROR = 0.02
#: Good pixels that the ring of sky must have.
MIN_RING_PIXELS = 500


def flux_figures(
    stack: MatchedStack, whole: Mask, plots: dict[str, np.ndarray]
) -> dict[str, float]:
    """Ratios of measured flux to the truth: bias, scatter, pulls, dependence on the position.

    Light of all other stars is taken out by the model. whole: stars without unusable pixels.
    What the plots need is added to `plots`.
    """
    chosen, ratio, error = _flux_ratios(stack, whole)
    bright = np.isfinite(ratio) & (error < BRIGHT_FLUX_ERROR)
    faint = np.isfinite(ratio) & (error < 1 / PULL_SNR[0]) & (error > 1 / PULL_SNR[1])
    figures: dict[str, float] = {"phot_stars": int(bright.sum())}
    if faint.sum() > 20:
        pull = ((ratio - 1) / error)[faint]
        figures |= {
            "flux_pull": robust_sigma(pull),
            "flux_pull_error": ROBUST_WIDTH_ERROR / len(pull) ** 0.5,
            "flux_pull_plain": float(pull.std()),
            "flux_pull_stars": int(faint.sum()),
            "flux_pull_mean": float(pull.mean()),
        }
    if bright.sum() < 12:
        return figures
    x, y = stack.x[chosen][bright], stack.y[chosen][bright]
    plots |= {
        "phot_x": x,
        "phot_y": y,
        "ratio": ratio[bright],
        "ratio_error": error[bright],
        "phot_flux": (stack.flux * stack.aperture_share)[chosen][bright],
    }
    spread = robust_sigma(ratio[bright])
    weight = 1 / (error[bright] ** 2 + 0.002**2)
    range_, noise_range = _surface_range(x, y, ratio[bright], weight)
    return figures | {
        "flux_bias_percent": 100 * (float(np.median(ratio[bright])) - 1),
        "flux_scatter_percent": 100 * spread,
        "flux_bias_error_percent": 100 * MEDIAN_ERROR * spread / bright.sum() ** 0.5,
        "flux_surface_percent": 100 * range_,
        "flux_surface_noise_percent": 100 * noise_range,
        "flux_position_percent": 100 * excess(range_, noise_range),
    }


def _flux_ratios(stack: MatchedStack, whole: Mask) -> tuple[np.ndarray, Floats, Floats]:
    """Chosen stars, measured over true flux, and its error; NaN where no ratio can be trusted."""
    expected = stack.flux * stack.aperture_share
    noise_of_sky = np.sqrt(np.median(stack.variance[stack.variance > 0]))
    isolated = are_isolated(stack.x, stack.y, stack.flux, 2 * APERTURE, 0.1)
    chosen = np.flatnonzero(whole & isolated & (expected > 3 * APERTURE * noise_of_sky))
    x, y = stack.x[chosen], stack.y[chosen]
    left, noise = aperture_sums(stack.residual, stack.variance, stack.dq, x, y, APERTURE)
    own = stack.flux[chosen] * light_in_aperture(stack.profiles.mean(axis=0))
    modelled = aperture_sums(stack.model, stack.variance, stack.dq, x, y, APERTURE)[0]
    neighbours = np.abs(modelled - own)
    ratio, error = (left + own) / expected[chosen], noise / expected[chosen]
    tolerated = np.maximum(0.2 * noise, 2e-4 * own)
    known = (error > 0) & (NEIGHBOUR_MODEL_ERROR * neighbours < tolerated)
    return chosen, np.where(known, ratio, np.nan), error


def _surface_range(x: Floats, y: Floats, ratio: Floats, weight: Floats) -> tuple[float, float]:
    """Peak to peak, at the stars, of a quadratic surface through the ratios.

    And what noise alone gives in the mean: the stars' scatter about the surface, shuffled.
    """
    u, v = (x - x.mean()) / np.ptp(x) * 2, (y - y.mean()) / np.ptp(y) * 2
    design = np.column_stack([np.ones_like(u), u, v, u * u, u * v, v * v])
    keep = np.abs(ratio - np.median(ratio)) < 5 * robust_sigma(ratio)
    root = np.sqrt(weight[keep])[:, None]

    def fitted(values: Floats) -> Floats:
        solution = np.linalg.lstsq(design[keep] * root, values[keep] * root[:, 0], rcond=None)
        return design @ solution[0]

    surface = fitted(ratio)
    random, residual = np.random.default_rng(3), (ratio - surface)[keep]
    ranges = []
    for _ in range(200):
        values = np.zeros(len(ratio))
        values[keep] = random.permutation(residual)
        ranges.append(np.ptp(fitted(values)))
    return float(np.ptp(surface)), float(np.mean(ranges))


def are_isolated(x: Floats, y: Floats, flux: Floats, radius: float, share: float) -> Mask:
    """True where neighbours within `radius` have less than `share` of a star's flux together."""
    xy = np.column_stack([x, y])
    near = cKDTree(xy).query_ball_point(xy, radius)
    return np.array(
        [sum(flux[j] for j in group if j != k) < share * flux[k] for k, group in enumerate(near)],
        bool,
    )


def clipped_mean(values: Image) -> float:
    """Mean of the values, those beyond the 2nd and 98th percentile moved there."""
    return np.clip(values, *np.percentile(values, [2, 98])).mean()


def aperture_sums(
    data: Image,
    variance: Image,
    dq: Flags,
    x: Floats,
    y: Floats,
    radius: float,
    ring: tuple[float, float] = SKY_RING,
    ring_bits: int = UNMEASURABLE,
    sky_level: Callable[[Image], float] = clipped_mean,
) -> tuple[Floats, Floats]:
    """Sums within `radius` over the level of the sky in a ring, and their errors.

    x, y: 0-based pixels. Pixels of the ring that have one of `ring_bits` do not count. NaN where a
    pixel of the aperture cannot be measured, or at the edge of the image.
    """
    sums, errors = np.full((2, len(x)), np.nan)
    half = int(ring[1]) + 2
    grid_y, grid_x = np.mgrid[-half : half + 1, -half : half + 1]
    for k, (a, b) in enumerate(zip(x, y, strict=True)):
        i, j = round(float(a)), round(float(b))
        if min(i, j) < half or i >= data.shape[1] - half or j >= data.shape[0] - half:
            continue
        window = np.s_[j - half : j + half + 1, i - half : i + half + 1]
        cut, noise, flags = data[window], variance[window], dq[window]
        r = np.hypot(grid_x + i - a, grid_y + j - b)
        disk = np.clip(radius + 0.5 - r, 0, 1)
        sky = (r > ring[0]) & (r < ring[1]) & ((flags & ring_bits) == 0)
        if ((flags[disk > 0] & UNMEASURABLE) != 0).any() or sky.sum() < MIN_RING_PIXELS:
            continue
        sums[k] = (cut * disk).sum() - sky_level(cut[sky]) * disk.sum()
        errors[k] = np.sqrt(
            (noise * disk**2).sum() + disk.sum() ** 2 * noise[sky].mean() / sky.sum()
        )
    return sums, errors
