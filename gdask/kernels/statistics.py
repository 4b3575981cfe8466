"""Levels of planes with stars: robust sky level, medians, and one median over many planes without gathering them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from gdask.kernels.arrays import plain
from gdask.model import GdaskError
from gdask.types import Image, Mask

Counts = npt.NDArray[np.int64]

_BINS_PER_SIGMA, _HALF_RANGE = 16, 6  # the sky histogram: bins of sigma/16 over +-6 sigma
_BINS = 2 * _HALF_RANGE * _BINS_PER_SIGMA
_BELOW, _ABOVE, _SYMMETRIC = 3.0, 1.0, 3.0  # windows of the fit, in sigma
_SAMPLE = 65536  # pixels of the first guess
_PEAK_FRACTION = 0.05  # of the good pixels within 1 sigma of the peak, or it is none
_FEWEST = 200  # good pixels below which no histogram is fitted
_MAD_TO_SIGMA = 1.482602218505602  # 1 / (normal quantile of 3/4)
_KEY_SHIFT = 10  # 13 of 23 mantissa bits are kept: bins 1.2e-4 wide, relative


class Background(NamedTuple):
    """A sky level: `level` and `sigma` (pixel noise) in the units of the data, from `n` good pixels."""

    level: float
    sigma: float
    n: int


def _good(data: Image, mask: Mask | None, stride: int = 1) -> Image:
    values = np.asarray(data, dtype=np.float32).reshape(-1)[::stride]
    good = np.isfinite(values)
    if mask is not None:
        good &= ~np.asarray(mask, dtype=np.bool_).reshape(-1)[::stride]
    return values[good]


def _bits(mask: Mask | None, values: Image) -> Mask:
    """The mask as one row; of no length where there is none."""
    bits = plain(np.empty(0) if mask is None else mask, np.bool_).reshape(-1)
    if mask is not None and bits.size != values.size:
        raise GdaskError(
            f"a mask of {bits.size} pixels for a plane of {values.size}: cut it to the plane"
        )
    return bits


def _robust(values: Image) -> tuple[float, float]:
    """Median and scatter (from the median absolute deviation; the standard deviation where that is 0)."""
    if values.size == 0:
        return np.nan, np.nan
    level = np.median(values)
    sigma = _MAD_TO_SIGMA * np.median(np.abs(values - level))
    return float(level), float(sigma if sigma > 0 else np.std(values, dtype=np.float64))


@njit(cache=True, nogil=True)
def _count(data: Image, mask: Mask, low: float, bins_per_unit: float) -> tuple[Counts, int]:
    counts = np.zeros(_BINS, np.int64)
    number = 0
    masked = mask.size > 0
    for i in range(data.size):
        if masked and mask[i]:
            continue
        number += np.isfinite(data[i])
        position = (data[i] - low) * bins_per_unit
        if 0 <= position < _BINS:  # false for NaN
            counts[int(position)] += 1
    return counts, number


@njit(cache=True, nogil=True)
def _fit_parabola(counts: Counts, low: float, high: float) -> tuple[float, float]:
    """Centre and sigma of a Gaussian through the counts with low < t < high (t in first-guess sigma).

    The log of a Gaussian is a parabola, so this is Poisson regression with a log link: exact maximum likelihood for
    binned counts in a truncated window, concave, by Newton's method. Returns NaN where it does not converge.
    """
    a, b, c = np.log(counts.max() + 1.0), 0.0, -0.5
    for _ in range(50):
        g0 = g1 = g2 = h0 = h1 = h2 = h3 = h4 = 0.0
        for i in range(counts.size):
            t = (i + 0.5) / _BINS_PER_SIGMA - _HALF_RANGE
            if low < t < high:
                model = np.exp(min(a + t * (b + t * c), 60.0))
                rest = counts[i] - model
                g0, g1, g2 = g0 + rest, g1 + rest * t, g2 + rest * t * t
                h0, h1, h2 = h0 + model, h1 + model * t, h2 + model * t * t
                h3, h4 = h3 + model * t**3, h4 + model * t**4
        m0, m1, m2 = h2 * h4 - h3 * h3, h2 * h3 - h1 * h4, h1 * h3 - h2 * h2
        determinant = h0 * m0 + h1 * m1 + h2 * m2
        if not determinant > 0:
            return np.nan, np.nan
        da = (m0 * g0 + m1 * g1 + m2 * g2) / determinant
        db = (m1 * g0 + (h0 * h4 - h2 * h2) * g1 + (h1 * h2 - h0 * h3) * g2) / determinant
        dc = (m2 * g0 + (h1 * h2 - h0 * h3) * g1 + (h0 * h2 - h1 * h1) * g2) / determinant
        step = 1.0 / max(1.0, abs(da), abs(db), abs(dc))
        a, b, c = a + da * step, b + db * step, c + dc * step
        if abs(da) + abs(db) + abs(dc) < 1e-9:
            break
    if not c < 0:
        return np.nan, np.nan
    return -b / (2 * c), np.sqrt(-0.5 / c)


@njit(cache=True, nogil=True)
def _fit_window(counts: Counts, below: float, above: float) -> tuple[float, float]:
    """The Gaussian whose fit within centre - below * sigma .. centre + above * sigma is itself."""
    centre, sigma = 0.0, 1.0
    for _ in range(15):
        last = centre
        centre, sigma = _fit_parabola(counts, centre - below * sigma, centre + above * sigma)
        if not abs(centre - last) > 1e-3:
            break
    return centre, sigma


def background(data: Image, mask: Mask | None = None) -> Background:
    """Sky level of a plane with stars (any shape), without the pixels of `mask` and those that are not finite.

    A Gaussian is fitted (maximum likelihood) to the histogram of all good pixels between -3 and +1 sigma of its own
    centre, where starlight, which only adds, matters least. Where a symmetric window (3 sigma) agrees with it to the
    noise of the fits, there is no starlight to avoid and the more precise symmetric fit is taken. A fixed-stride
    sample of about 65536 pixels only sets the histogram's first range. Deterministic.

    Measured: noise of the level on pure Gaussian noise 1.03 sigma/sqrt(n), no bias (the one-sided fit: 1.95); in
    crowded fields about 0.7 of the bias of a sigma-clipped median (0.24 sigma where that is 0.31, 1.05 where it is
    1.5); photon noise being skew, up to 0.35 e- below the mean for a sky of 700 e-, the same for frames alike.

    With no good pixel: NaN, NaN, 0. With fewer than 200, or a histogram without a peak: median and scaled median
    absolute deviation (of the sample).
    """
    values = plain(data, np.float32).reshape(-1)
    bits = _bits(mask, values)
    sample = _good(data, mask, max(1, values.size // _SAMPLE) | 1)
    if sample.size < _FEWEST:
        sample = _good(data, mask)
    level, sigma = guess = _robust(sample)
    number = sample.size
    for _ in range(6):
        if sample.size < _FEWEST or not sigma > 0:
            break
        counts, number = _count(values, bits, level - _HALF_RANGE * sigma, _BINS_PER_SIGMA / sigma)
        centre, width = _peak(counts)
        near = np.abs((np.arange(_BINS) + 0.5) / _BINS_PER_SIGMA - _HALF_RANGE - centre) < width
        if not (
            abs(centre) < _HALF_RANGE
            and 0.05 < width < 5
            and counts[near].sum() > _PEAK_FRACTION * number
        ):
            level, sigma = guess
            break
        level, sigma = level + centre * sigma, sigma * width
        if abs(centre) < 0.5 and 0.7 < width < 1.4:
            break
    return Background(level, sigma, int(number))


def _peak(counts: Counts) -> tuple[float, float]:
    """Centre and sigma of the sky's peak, in first-guess sigma: of the symmetric fit where the lower side agrees."""
    centre, sigma = _fit_window(counts, _BELOW, _ABOVE)
    symmetric = _fit_window(counts, _SYMMETRIC, _SYMMETRIC)
    noise = (
        1.7 * sigma / np.sqrt(max(counts.sum(), 1))
    )  # of the difference of the two fits, by simulation
    return symmetric if abs(symmetric[0] - centre) < 5 * noise else (centre, sigma)


def median(values: Image, mask: Mask | None = None) -> float:
    """Exact median of the finite pixels outside `mask` (mean of the middle two of an even number); NaN if none."""
    good = _good(values, mask)
    return float(np.median(good)) if good.size else float("nan")


@njit(cache=True, nogil=True)
def _count_keys(bits: npt.NDArray[np.uint32], mask: Mask) -> npt.NDArray[np.int32]:
    counts = np.zeros(1 << (32 - _KEY_SHIFT), np.int32)
    masked = mask.size > 0
    for i in range(bits.size):
        pattern = bits[i]
        if (masked and mask[i]) or (pattern & 0x7F800000) == 0x7F800000:  # NaN, infinite
            continue
        ordered = (pattern ^ 0xFFFFFFFF) if pattern & 0x80000000 else (pattern | 0x80000000)
        counts[ordered >> _KEY_SHIFT] += 1
    return counts


def histogram(data: Image, mask: Mask | None = None) -> Counts:
    """A plane's part of `median_from_histograms`: rows (bin number, count), of shape (2, occupied bins).

    The bins are those of the float32 numbers themselves with a mantissa of 13 bits: the same for every plane, 1.2e-4
    wide relative to the value whatever its size, and merged by adding, so that no chunking and no order matters.
    """
    values = plain(data, np.float32).reshape(-1)
    counts = _count_keys(values.view(np.uint32), _bits(mask, values))
    occupied = np.flatnonzero(counts)
    return np.stack([occupied, counts[occupied]]).astype(np.int64)


def _edge(key: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Lower edge of a bin of `histogram`."""
    ordered = key.astype(np.uint64) << np.uint64(_KEY_SHIFT)
    negative = ordered < 0x80000000
    pattern = np.where(
        negative, ordered ^ np.uint64(0xFFFFFFFF), ordered & np.uint64(0x7FFFFFFF)
    ).astype(np.uint32)
    return pattern.view(np.float32).astype(np.float64)


def median_from_histograms(*parts: Counts) -> float:
    """The median over all pixels of the planes whose `histogram` are the `parts`, to 6e-5 of its value; NaN if none."""
    keys, place = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
    counts = np.zeros(keys.size, dtype=np.int64)
    np.add.at(counts, place, np.concatenate([part[1] for part in parts]))
    cumulative = np.cumsum(counts)
    if keys.size == 0:
        return float("nan")
    number = cumulative[-1]
    ranks = np.array([(number - 1) // 2, number // 2])
    found = np.searchsorted(cumulative, ranks, side="right")
    low, high = _edge(keys[found]), _edge(keys[found] + 1)
    fraction = (ranks - (cumulative[found] - counts[found]) + 0.5) / counts[found]
    return float(np.mean(low + fraction * (high - low)))
