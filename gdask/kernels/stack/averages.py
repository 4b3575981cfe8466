"""Averages of the used values of pixels: in blocks of all pixels, and for what these leave over.

`combine_common` combines a block of neighbours as if all their values were good and none were
rejected (but for the lowest and highest of min-max rejection). Pixels for which that is not so are
left over. `combine` lists them, finds what they use (`rejection`) and has them averaged by
`average_used`. Both ways give the same bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gdask.kernels.arrays import INNER
from gdask.kernels.compiled import njit
from gdask.kernels.stack.rejection import (
    WORSE_BITS,
    Floats,
    Stack,
    Work,
    median_of_ordered,
    sort_rows,
)
from gdask.model import DQ
from gdask.types import Flags, Image

_NO_DATA = int(DQ.NO_DATA)


@njit(nogil=True, error_model="numpy", **INNER)
def combine_common(
    planes: tuple[Image, Image, Flags],
    chosen: npt.NDArray[np.int64],
    weights: Image,
    levels: tuple[Floats, Floats],
    pairs: npt.NDArray[np.int64],
    variance_factors: Floats,
    choice: tuple[int, int],
    limits: tuple[float, float, int, bool],
    common: bool,
    start: int,
    size: int,
    work: Work,
    out: Stack,
) -> int:
    """Combine the pixels start ... start + size - 1, and mark in work.left those left over.

    Returns their number: all where most have a value that is not good, or where not `common`.

    planes: data, variance, dq (planes, pixels), of which `chosen` are combined. levels: scale and
    zero of each of these. choice: codes of the method and the rejection. limits: see
    `combine._combine`, and the rest, too.
    """
    n, (method, reject), (low, high, rounds, _) = chosen.size, choice, limits
    _add_up(planes, chosen, levels, reject != 1, start, size, work)
    total, spread, bits, left = work.total, work.spread, work.bits, work.left
    below = above = number = 0
    for x in range(size):
        is_good = (abs(total[x]) < np.inf) & (abs(spread[x]) < np.inf)
        left[x] = (bits[x] & WORSE_BITS != 0) | ~is_good
        number += left[x]
    if 2 * number > size or not common:
        return size
    if method >= 2 or reject >= 1:
        sort_rows(pairs, size, work.ordered)
    if reject == 1:
        below, above = int(n * low / n + 0.001), int(n * high / n + 0.001)
        if below + above >= n:
            below = above = 0
        _drop_ends(planes[2], chosen, below, n - above, method < 2, start, size, work)
    elif reject >= 2 and rounds > 0 and (n > 2 or reject == 3):
        _find_deviating(reject, low, high, size, work)
    number = n - below - above
    count = np.float64(number)
    for x in range(size):
        out.data[start + x] = total[x] / count
        out.variance[start + x] = spread[x] / (count * count)
        out.dq[start + x] = bits[x]
        out.used[start + x] = number
    if method == 1:
        _weigh(weights, start, size, work, out)
    elif method >= 2:
        middle, untrimmed = (below + n - above) // 2, number + 2 * min(below, above)
        factor = variance_factors[untrimmed] * number / untrimmed
        upper, lower = work.ordered[middle], work.ordered[max(middle - 1, 0)]
        for x in range(size):
            if number % 2:
                out.data[start + x] = upper[x]
            elif method == 3:
                out.data[start + x] = lower[x]
            else:
                out.data[start + x] = 0.5 * (np.float64(lower[x]) + np.float64(upper[x]))
            out.variance[start + x] *= factor
    number = 0
    for x in range(size):
        number += left[x]
    return min(number, size - 1)


@njit(nogil=True, **INNER)
def _add_up(
    planes: tuple[Image, Image, Flags],
    chosen: npt.NDArray[np.int64],
    levels: tuple[Floats, Floats],
    with_sums: bool,
    start: int,
    size: int,
    work: Work,
) -> None:
    """Fill values, ordered (not yet in order) and variances of a block, their sums and OR of DQ.

    Sums are finite only where all values are; so are the zeros in their place without `with_sums`.
    """
    total, spread, bits, stop = work.total, work.spread, work.bits, start + size
    check = work.noise[0]
    for x in range(size):
        total[x], spread[x], bits[x], check[x] = 0.0, 0.0, 0, np.float32(0)
    for k in range(chosen.size):
        scale, zero, plane = levels[0][k], levels[1][k], chosen[k]
        raw, raw_variance = planes[0][plane, start:stop], planes[1][plane, start:stop]
        flags = planes[2][plane, start:stop]
        values, variances, ordered = work.values[k], work.variances[k], work.ordered[k]
        if scale == 1.0 and zero == 0.0:
            for x in range(size):
                values[x] = raw[x] + np.float32(0)  # as a sum, which turns -0 to 0
        else:
            for x in range(size):
                values[x] = raw[x] * scale + zero
        if scale == 1.0:
            for x in range(size):
                variances[x] = raw_variance[x]
        else:
            for x in range(size):
                variances[x] = raw_variance[x] * (scale * scale)
        if with_sums:
            for x in range(size):
                total[x] += values[x]
                spread[x] += variances[x]
        else:
            for x in range(size):
                check[x] += (values[x] - values[x]) + (variances[x] - variances[x])
        for x in range(size):
            ordered[x] = values[x]
        for x in range(size):
            bits[x] |= flags[x]
    if not with_sums:
        for x in range(size):
            total[x] = check[x]


@njit(nogil=True, **INNER)
def _drop_ends(
    dq: Flags,
    chosen: npt.NDArray[np.int64],
    first: int,
    last: int,
    is_mean: bool,
    start: int,
    size: int,
    work: Work,
) -> None:
    """Sum values (for means only) and variances within ordered[first:last].

    Pixels with equal values at an end, of which some would have to go, are left over.
    """
    total, spread, bits, number = work.total, work.spread, work.bits, work.counts
    low, high = work.ordered[first], work.ordered[last - 1]
    for x in range(size):
        total[x], spread[x], bits[x], number[x] = 0.0, 0.0, 0, 0
    for k in range(chosen.size):
        values, variances = work.values[k], work.variances[k]
        flags, inside = dq[chosen[k], start : start + size], work.use[k]
        for x in range(size):
            inside[x] = (low[x] <= values[x]) & (values[x] <= high[x])
        if is_mean:
            for x in range(size):
                total[x] += values[x] if inside[x] else np.float32(0)
        for x in range(size):
            spread[x] += variances[x] if inside[x] else np.float32(0)
        for x in range(size):
            number[x] += inside[x]
            bits[x] |= flags[x] if inside[x] else np.uint16(0)
    for x in range(size):
        work.left[x] |= number[x] != last - first


@njit(nogil=True, error_model="numpy", **INNER)
def _find_deviating(reject: int, low: float, high: float, size: int, work: Work) -> None:
    """Leave over the pixels in which the first round of clipping may reject a value."""
    n, left, centre, limit = work.values.shape[0], work.left, work.centre, work.limit
    middle, before = work.ordered[n // 2], work.ordered[max(n // 2 - 1, 0)]
    for x in range(size):
        if n % 2:
            centre[x] = middle[x]
        else:
            centre[x] = 0.5 * (np.float64(before[x]) + np.float64(middle[x]))
    if reject == 3:
        for k in range(n):
            values, variances = work.values[k], work.variances[k]
            for x in range(size):
                deviation, sigma = values[x] - centre[x], np.sqrt(variances[x])
                left[x] |= (deviation < -low * sigma) | (deviation > high * sigma)
        return
    if reject == 2:
        sums, squares = work.sums, work.squares
        for x in range(size):
            sums[x], squares[x] = 0.0, 0.0
        for k in range(n):
            values = work.ordered[k]
            for x in range(size):
                deviation = values[x] - centre[x]
                sums[x] += deviation
                squares[x] += deviation * deviation
        for x in range(size):
            mean = sums[x] / n
            limit[x] = np.sqrt(max(squares[x] / n - mean * mean, 0.0))
    else:
        least = work.noise[0]
        for x in range(size):
            least[x] = np.float32(np.inf)
        for k in range(n):
            variances = work.variances[k]
            for x in range(size):
                least[x] = min(least[x], variances[x])
        for x in range(size):
            limit[x] = np.sqrt(np.float64(max(least[x], np.float32(0))))
    lowest, highest = work.ordered[0], work.ordered[n - 1]
    for x in range(size):
        if reject == 2:
            is_low = lowest[x] - centre[x] < -low * limit[x]
            is_high = highest[x] - centre[x] > high * limit[x]
        else:
            is_low = lowest[x] < centre[x] - low * limit[x]
            is_high = highest[x] > centre[x] + high * limit[x]
        left[x] |= is_low | is_high


@njit(nogil=True, error_model="numpy", **INNER)
def _weigh(weights: Image, start: int, size: int, work: Work, out: Stack) -> None:
    """Replace means by weighted ones where any weight is positive.

    weights: (n, 1), (n, pixels), or (n, 0) for 1/variance.
    """
    total, spread, norm = work.sums, work.squares, work.limit
    columns = weights.shape[1]
    for x in range(size):
        total[x], spread[x], norm[x] = 0.0, 0.0, 0.0
    for k in range(work.values.shape[0]):
        values, variances = work.values[k], work.variances[k]
        for x in range(size):
            variance = np.float64(variances[x])
            if columns:
                weight: float = np.float64(weights[k, 0 if columns == 1 else start + x])
            else:
                weight = 1 / variance if variance > 0 else 0.0
            weight = weight if 0 < weight < np.inf else 0.0
            total[x] += weight * values[x]
            spread[x] += weight * weight * variance
            norm[x] += weight
    for x in range(size):
        if norm[x] > 0:
            out.data[start + x] = total[x] / norm[x]
            out.variance[start + x] = spread[x] / (norm[x] * norm[x])


@njit(nogil=True, **INNER)
def average_used(
    weights: Image,
    variance_factors: Floats,
    method: int,
    size: int,
    work: Work,
    out: Stack,
) -> None:
    """Put the averages of the used values of work.pixels into `out`: means, and what replaces them.

    Also their propagated variance, the OR of their bits, and their number.
    """
    total, spread, bits, number = work.total, work.spread, work.bits, work.counts
    for x in range(size):
        total[x], spread[x], bits[x], number[x] = 0.0, 0.0, 0, 0
    for k in range(work.use.shape[0]):
        use, flags = work.use[k], work.flags[k]
        values, variances = work.values[k], work.variances[k]
        for x in range(size):
            total[x] += values[x] if use[x] else np.float32(0)
            spread[x] += variances[x] if use[x] else np.float32(0)
        for x in range(size):
            number[x] += use[x]
            bits[x] |= flags[x] if use[x] else np.uint16(0)
    for x in range(size):
        n, place = np.float64(number[x]), work.pixels[x]
        out.data[place] = total[x] / n if n else 0.0
        out.variance[place] = spread[x] / (n * n) if n else 0.0
        out.dq[place] = bits[x] if n else np.uint16(_NO_DATA)
        out.used[place] = number[x]
        first, last = work.first[x], work.last[x]
        if method == 1:
            _weigh_used(weights, x, place, work, out)
        elif method >= 2 and last > first:
            count = last - first
            if method == 3 and count % 2 == 0:
                out.data[place] = work.ordered[first + count // 2 - 1, x]
            else:
                out.data[place] = median_of_ordered(work.ordered, first, last, x)
            untrimmed = count + work.trimmed[x]
            out.variance[place] *= variance_factors[untrimmed] * count / untrimmed


@njit(nogil=True, **INNER)
def _weigh_used(weights: Image, x: int, place: int, work: Work, out: Stack) -> None:
    """Do for one pixel what `_weigh` does."""
    total = spread = norm = 0.0
    for k in range(work.use.shape[0]):
        if work.use[k, x]:
            variance = np.float64(work.variances[k, x])
            if weights.size:
                weight: float = np.float64(weights[k, 0 if weights.shape[1] == 1 else place])
            else:
                weight = 1 / variance if variance > 0 else 0.0
            if 0 < weight < np.inf:
                total += weight * work.values[k, x]
                spread += weight * weight * variance
                norm += weight
    if norm > 0:
        out.data[place] = total / norm
        out.variance[place] = spread / (norm * norm)
