"""Rejection of values: which planes of each pixel `combine` uses, for a block of pixels at a time.

Compiled functions take a block of `size` pixels in `work` and change it in place. low, high: limits
of rejection. rounds: the most rounds of clipping. about_median: clip about the median in all
rounds, not about the mean from the second on.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gdask.kernels.arrays import as_kernel_input
from gdask.kernels.compiled import njit
from gdask.model import DQ
from gdask.types import Flags, Image, Mask

Floats = npt.NDArray[np.float64]

#: DQ bits that make a pixel worse, from bad to worst: the ranking of the field's standard reduction
#: (DRAGONS). Non-linear (it has been corrected) and saturated pixels rank with perfect ones:
#: otherwise a star that is saturated in the sharpest frames would be averaged over the other
#: frames, and no flag would tell.
HIERARCHY = (DQ.COSMIC_RAY, DQ.OVERLAP, DQ.BAD_PIXEL, DQ.UNILLUMINATED, DQ.NO_DATA)
_BITS = tuple(int(bit) for bit in HIERARCHY)
_NO_DATA_RANK = len(HIERARCHY)


@lru_cache(maxsize=64)
def sorting_network(number: int) -> npt.NDArray[np.int64]:
    """Return a sorting network for `number` rows: pairs (n, 2) of rows to compare and exchange.

    It is Batcher's odd-even merge sort; whole rows of pixels are sorted at once.
    """
    pairs = []
    merge = 1
    while merge < number:
        step = merge
        while step >= 1:
            for first in range(step % merge, number - step, 2 * step):
                for i in range(first, min(first + step, number - step)):
                    if i // (2 * merge) == (i + step) // (2 * merge):
                        pairs.append((i, i + step))
            step //= 2
        merge *= 2
    return as_kernel_input(np.array(pairs, dtype=np.int64).reshape(-1, 2), np.int64)


class Work(NamedTuple):
    """Buffers for a block of pixels: planes along the first axis, pixels along the last.

    values, variances: scaled. ranks: how bad each value is, 0 the best. use: values that are used.
    ordered: usable values in ascending order, then inf; those of ordered[first:last] survive
    rejection. trimmed: how many were rejected in symmetric pairs, which do not change a median.
    """

    values: Image
    variances: Image
    ranks: npt.NDArray[np.uint8]
    use: Mask
    ordered: Image
    first: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]
    trimmed: npt.NDArray[np.int64]


@njit(cache=True, nogil=True)
def gather(
    data: Image,
    variance: Image,
    dq: Flags,
    scale: Floats,
    zero: Floats,
    start: int,
    size: int,
    work: Work,
) -> None:
    """Fill a block with scaled values and variances, and use the least bad ones of each pixel."""
    best = np.full(size, _NO_DATA_RANK, np.uint8)
    stop = start + size
    for k in range(data.shape[0]):
        raw, raw_variance, bits = data[k, start:stop], variance[k, start:stop], dq[k, start:stop]
        values, variances, ranks = work.values[k], work.variances[k], work.ranks[k]
        for x in range(size):
            values[x] = raw[x] * scale[k] + zero[k]
            variances[x] = raw_variance[x] * (scale[k] * scale[k])
        for x in range(size):
            rank = 0
            for i in range(_NO_DATA_RANK):
                rank = i + 1 if bits[x] & _BITS[i] else rank
            rank = rank if abs(values[x]) < np.inf and abs(variances[x]) < np.inf else _NO_DATA_RANK
            ranks[x] = rank
            best[x] = min(best[x], ranks[x])
    _use_best(best, size, work)


@njit(cache=True, nogil=True)
def _use_best(best: npt.NDArray[np.uint8], size: int, work: Work) -> None:
    """Use the values of the best rank of each pixel; none where that is _NO_DATA_RANK."""
    number = np.zeros(size, np.uint16)
    for k in range(work.use.shape[0]):
        ranks, use = work.ranks[k], work.use[k]
        for x in range(size):
            use[x] = (ranks[x] == best[x]) & (best[x] < _NO_DATA_RANK)
            number[x] += use[x]
    for x in range(size):
        work.first[x], work.last[x], work.trimmed[x] = 0, number[x], 0


@njit(cache=True, nogil=True)
def sort_planes(pairs: npt.NDArray[np.int64], size: int, work: Work) -> None:
    """Sort the used values of each pixel into work.ordered.

    pairs: from `sorting_network`.
    """
    values, use, ordered = work.values, work.use, work.ordered
    for k in range(values.shape[0]):
        for x in range(size):
            ordered[k, x] = values[k, x] if use[k, x] else np.float32(np.inf)
    for p in range(pairs.shape[0]):
        low, high = ordered[pairs[p, 0]], ordered[pairs[p, 1]]
        for x in range(size):
            a, b = low[x], high[x]
            low[x] = min(a, b)
            high[x] = max(a, b)


@njit(cache=True, nogil=True)
def median_of_ordered(ordered: Image, first: int, last: int, x: int) -> float:
    """Return the median of ordered[first:last] of pixel x."""
    half = (first + last) // 2
    if (last - first) % 2:
        return np.float64(ordered[half, x])
    return 0.5 * (np.float64(ordered[half - 1, x]) + np.float64(ordered[half, x]))


@njit(cache=True, nogil=True)
def drop_outside(size: int, work: Work) -> None:
    """Stop using values that are not in ordered[first:last].

    Of equal values at an end, those of the earlier planes are dropped.
    """
    low, high = np.zeros(size, np.float32), np.zeros(size, np.float32)
    inside = np.zeros(size, np.int64)
    for x in range(size):
        if work.last[x] > work.first[x]:
            low[x], high[x] = work.ordered[work.first[x], x], work.ordered[work.last[x] - 1, x]
    for k in range(work.use.shape[0]):
        for x in range(size):
            used = work.use[k, x] & (low[x] <= work.values[k, x]) & (work.values[k, x] <= high[x])
            work.use[k, x] = used
            inside[x] += used
    for x in range(size):
        if inside[x] > work.last[x] - work.first[x]:
            _drop_ties(x, low[x], work.first[x], work.last[x], work)
            _drop_ties(x, high[x], work.first[x], work.last[x], work)


@njit(cache=True, nogil=True)
def _drop_ties(x: int, value: float, first: int, last: int, work: Work) -> None:
    """Stop using surplus values of pixel x that are equal to `value`.

    As many are dropped as are used beyond those in ordered[first:last]; earlier planes first.
    """
    surplus = 0
    for k in range(work.use.shape[0]):
        surplus += work.use[k, x] and work.values[k, x] == value
    for k in range(first, last):
        surplus -= work.ordered[k, x] == value
    for k in range(work.use.shape[0]):
        if surplus > 0 and work.use[k, x] and work.values[k, x] == value:
            work.use[k, x] = False
            surplus -= 1


@njit(cache=True, nogil=True)
def reject_minmax(low: float, high: float, size: int, work: Work) -> None:
    """Drop the lowest and highest values, in proportion where planes are not usable (IRAF's rule).

    low, high: how many to drop where all planes are usable.
    """
    n = work.use.shape[0]
    for x in range(size):
        usable = work.last[x]
        below, above = int(usable * low / n + 0.001), int(usable * high / n + 0.001)
        if below + above < usable:
            work.first[x], work.last[x] = below, usable - above
            work.trimmed[x] = 2 * min(below, above)
    drop_outside(size, work)


@njit(cache=True, nogil=True)
def clip_scatter(
    low: float, high: float, rounds: int, about_median: bool, size: int, work: Work
) -> None:
    """Clip beyond low, high standard deviations of the values themselves.

    Survivors are a stretch of the ordered values, so that only its two ends are tried.
    """
    ordered = work.ordered
    total, squares, centre = np.zeros(size), np.zeros(size), np.zeros(size)
    for x in range(size):
        centre[x] = median_of_ordered(ordered, 0, work.last[x], x) if work.last[x] else 0.0
    for k in range(ordered.shape[0]):
        values = ordered[k]
        for x in range(size):
            deviation = values[x] - centre[x] if values[x] < np.inf else 0.0
            total[x] += deviation
            squares[x] += deviation * deviation
    clipped = False
    for x in range(size):
        if rounds > 0 and work.last[x] > 2:
            mean = total[x] / work.last[x]
            sigma = np.sqrt(max(squares[x] / work.last[x] - mean * mean, 0.0))
            lowest, highest = ordered[0, x] - centre[x], ordered[work.last[x] - 1, x] - centre[x]
            if lowest < -low * sigma or highest > high * sigma:
                _clip_pixel(low, high, rounds, about_median, x, work)
                clipped = True
    if clipped:
        drop_outside(size, work)


@njit(cache=True, nogil=True)
def _clip_pixel(
    low: float, high: float, rounds: int, about_median: bool, x: int, work: Work
) -> None:
    """Narrow ordered[first:last] of pixel x, round by round, as `clip_scatter` says."""
    ordered, first, last = work.ordered, work.first[x], work.last[x]
    for turn in range(rounds):
        number = last - first
        centre = median_of_ordered(ordered, first, last, x)
        total = squares = 0.0
        for k in range(first, last):
            deviation = ordered[k, x] - centre
            total += deviation
            squares += deviation * deviation
        mean = total / number
        sigma = np.sqrt(max(squares / number - mean * mean, 0.0))
        if turn > 0 and not about_median:
            centre += mean
        new_first, new_last = first, last
        while new_first < last and ordered[new_first, x] < centre - low * sigma:
            new_first += 1
        while new_last > new_first and ordered[new_last - 1, x] > centre + high * sigma:
            new_last -= 1
        if new_last == new_first or new_last - new_first == number:
            break
        first, last = new_first, new_last
        if last - first < 3:
            break
    work.first[x], work.last[x] = first, last


@njit(cache=True, nogil=True)
def clip_variance(
    low: float, high: float, rounds: int, about_median: bool, size: int, work: Work
) -> None:
    """Clip beyond low, high times the square root of each value's own variance."""
    n = work.use.shape[0]
    keep = np.empty(n, np.bool_)
    for x in range(size):
        for turn in range(rounds):
            centre = median_of_ordered(work.ordered, 0, work.last[x], x) if work.last[x] else 0.0
            if turn > 0 and not about_median:
                centre = work.ordered[: work.last[x], x].astype(np.float64).mean()
            kept = 0
            for k in range(n):
                deviation, sigma = work.values[k, x] - centre, np.sqrt(work.variances[k, x])
                keep[k] = work.use[k, x] and not (
                    deviation < -low * sigma or deviation > high * sigma
                )
                kept += keep[k]
            if kept == 0 or kept == work.last[x]:
                break
            work.last[x] = 0
            for k in range(n):
                work.use[k, x] = keep[k]
                if keep[k]:  # an insertion sort puts the survivors in order
                    place = work.last[x]
                    while place > 0 and work.ordered[place - 1, x] > work.values[k, x]:
                        work.ordered[place, x] = work.ordered[place - 1, x]
                        place -= 1
                    work.ordered[place, x] = work.values[k, x]
                    work.last[x] += 1
