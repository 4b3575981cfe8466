"""Rejection of values: which planes of each pixel `combine` uses, for a block of pixels at a time.

Compiled functions take a block of `size` pixels in `work` and change it in place. low, high: limits
of rejection. rounds: the most rounds of clipping. about_median: clip about the median in all
rounds, not about the mean from the second on.

Clipping by the noise that a pixel should have leaves the cores of stars whole. It is for stacks of
sky-subtracted images. In starlight, frames differ by more than noise (seeing, Strehl ratio,
throughput). Limits by the noise alone would cut the cores of stars, and limits by the scatter of
the values would miss a lone outlier among few. Here the noise is the median variance of the planes,
and starlight may scatter further, as far as most planes do.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gdask.kernels.arrays import INNER, as_kernel_input
from gdask.kernels.compiled import njit
from gdask.model import DQ
from gdask.types import Flags, Image, Mask

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.uint16]

#: DQ bits that make a pixel worse, from bad to worst: the ranking of the field's standard reduction
#: (DRAGONS). Non-linear (it has been corrected) and saturated pixels rank with perfect ones:
#: otherwise a star that is saturated in the sharpest frames would be averaged over the other
#: frames, and no flag would tell.
HIERARCHY = (DQ.COSMIC_RAY, DQ.OVERLAP, DQ.BAD_PIXEL, DQ.UNILLUMINATED, DQ.NO_DATA)
_BITS = tuple(int(bit) for bit in HIERARCHY)
_NO_DATA_RANK = len(HIERARCHY)
#: All of them.
WORSE_BITS = np.uint16(sum(_BITS))
#: Shares of a pixel's light by which frames may scatter beyond their noise before a value is
#: clipped: the first always, up to the second where the values themselves scatter so. The first is
#: what seeing whose width changes by 5 % does to cores and wings. Nine values tell their own
#: scatter too roughly to go below it (with 3 %, the stars of a simulated FLAMINGOS-2 night lost
#: 0.07 %). The second keeps a cosmic ray on a star from passing for seeing.
MIN_STARLIGHT_SCATTER, MAX_STARLIGHT_SCATTER = 0.1, 0.3
#: Standard deviation of Gaussian values over their median absolute deviation.
_SIGMA_PER_MAD = 1.4826


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


class Stack(NamedTuple):
    """The combined planes, each as one row of pixels.

    used: number of planes that each pixel takes.
    """

    data: Image
    variance: Image
    dq: Flags
    used: Counts


class Work(NamedTuple):
    """Buffers for a block of pixels: planes along the first axis, pixels along the last.

    pixels: where they are in the planes. values, variances: scaled. flags: DQ. ranks: how bad each
    value is, 0 the best. use: values that are used. ordered: usable values in ascending order, then
    inf; those of ordered[first:last] survive rejection. noise: variances in ascending order.
    trimmed: how many were rejected in symmetric pairs, which do not change a median. counts, total,
    spread, bits: number of values, sums of values and variances, OR of DQ. left: pixels that
    `averages.combine_common` leaves over. centre, limit, sums, squares: for clipping. numbers,
    ends: of `medians`. keep: of the planes of a pixel.
    """

    pixels: npt.NDArray[np.int64]
    values: Image
    variances: Image
    flags: Flags
    ranks: npt.NDArray[np.uint8]
    use: Mask
    ordered: Image
    noise: Image
    first: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]
    trimmed: npt.NDArray[np.int64]
    counts: npt.NDArray[np.uint16]
    total: Floats
    spread: Floats
    bits: Flags
    left: Mask
    centre: Floats
    limit: Floats
    sums: Floats
    squares: Floats
    numbers: npt.NDArray[np.int32]
    ends: Image
    keep: Mask


def empty_work(planes: int, pixels: int) -> Work:
    """Return buffers for so many planes and pixels."""
    block = planes, pixels
    return Work(
        pixels=np.empty(pixels, np.int64),
        values=np.empty(block, np.float32),
        variances=np.empty(block, np.float32),
        flags=np.empty(block, np.uint16),
        ranks=np.empty(block, np.uint8),
        use=np.empty(block, np.bool_),
        ordered=np.empty(block, np.float32),
        noise=np.empty(block, np.float32),
        first=np.empty(pixels, np.int64),
        last=np.empty(pixels, np.int64),
        trimmed=np.empty(pixels, np.int64),
        counts=np.empty(pixels, np.uint16),
        total=np.empty(pixels),
        spread=np.empty(pixels),
        bits=np.empty(pixels, np.uint16),
        left=np.empty(pixels, np.bool_),
        centre=np.empty(pixels),
        limit=np.empty(pixels),
        sums=np.empty(pixels),
        squares=np.empty(pixels),
        numbers=np.empty((3, pixels), np.int32),
        ends=np.empty((4, pixels), np.float32),
        keep=np.empty(planes, np.bool_),
    )


@njit(nogil=True, **INNER)
def use_best(size: int, work: Work) -> None:
    """Use the least bad values of each pixel; none where these are NO_DATA or not finite."""
    best, number, n = work.bits, work.counts, work.values.shape[0]
    for x in range(size):
        best[x], number[x] = _NO_DATA_RANK, 0
    for k in range(n):
        values, variances = work.values[k], work.variances[k]
        ranks, flags = work.ranks[k], work.flags[k]
        for x in range(size):
            rank = 0
            for i in range(_NO_DATA_RANK):
                rank = i + 1 if flags[x] & _BITS[i] else rank
            rank = rank if abs(values[x]) < np.inf and abs(variances[x]) < np.inf else _NO_DATA_RANK
            ranks[x] = rank
            best[x] = min(best[x], ranks[x])
    for k in range(n):
        values, ranks, use, ordered = work.values[k], work.ranks[k], work.use[k], work.ordered[k]
        for x in range(size):
            use[x] = (ranks[x] == best[x]) & (best[x] < _NO_DATA_RANK)
            number[x] += use[x]
        for x in range(size):
            ordered[x] = values[x] if use[x] else np.float32(np.inf)
    for x in range(size):
        work.first[x], work.last[x], work.trimmed[x] = 0, number[x], 0


@njit(nogil=True, **INNER)
def sort_rows(pairs: npt.NDArray[np.int64], size: int, ordered: Image) -> None:
    """Sort the values of each pixel, (n, pixels), in place. pairs: from `sorting_network`."""
    for p in range(pairs.shape[0]):
        low, high = ordered[pairs[p, 0]], ordered[pairs[p, 1]]
        for x in range(size):
            a, b = low[x], high[x]
            low[x] = min(a, b)
            high[x] = max(a, b)


@njit(nogil=True, **INNER)
def median_of_ordered(ordered: Image, first: int, last: int, x: int) -> float:
    """Return the median of ordered[first:last] of pixel x."""
    half = (first + last) // 2
    if (last - first) % 2:
        return np.float64(ordered[half, x])
    return 0.5 * (np.float64(ordered[half - 1, x]) + np.float64(ordered[half, x]))


@njit(nogil=True, **INNER)
def drop_outside(size: int, work: Work) -> None:
    """Stop using values that are not in ordered[first:last].

    Of equal values at an end, those of the earlier planes are dropped.
    """
    low, high, inside = work.sums, work.squares, work.counts
    for x in range(size):
        low[x], high[x], inside[x] = 0.0, 0.0, 0
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


@njit(nogil=True, **INNER)
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


@njit(nogil=True, **INNER)
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


@njit(nogil=True, **INNER)
def clip_scatter(
    low: float, high: float, rounds: int, about_median: bool, size: int, work: Work
) -> None:
    """Clip beyond low, high standard deviations of the values themselves.

    Survivors are a stretch of the ordered values, so that only its two ends are tried.
    """
    ordered = work.ordered
    total, squares, centre = work.sums, work.squares, work.centre
    for x in range(size):
        total[x], squares[x] = 0.0, 0.0
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


@njit(nogil=True, **INNER)
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


@njit(nogil=True, **INNER)
def clip_variance(
    low: float, high: float, rounds: int, about_median: bool, size: int, work: Work
) -> None:
    """Clip beyond low, high times the square root of each value's own variance."""
    n, keep = work.use.shape[0], work.keep
    for x in range(size):
        for turn in range(rounds):
            centre = median_of_ordered(work.ordered, 0, work.last[x], x) if work.last[x] else 0.0
            if turn > 0 and not about_median:
                centre = 0.0
                for k in range(work.last[x]):
                    centre += work.ordered[k, x]
                centre /= work.last[x]
            kept = 0
            for k in range(n):
                deviation, sigma = work.values[k, x] - centre, np.sqrt(work.variances[k, x])
                keep[k] = work.use[k, x] and not (
                    deviation < -low * sigma or deviation > high * sigma
                )
                kept += keep[k]
            if kept == 0 or kept == work.last[x]:
                break
            for k in range(n):
                if work.use[k, x] and not keep[k]:  # it is taken out of those in order
                    place = 0
                    while work.ordered[place, x] != work.values[k, x]:
                        place += 1
                    work.last[x] -= 1
                    for i in range(place, work.last[x]):
                        work.ordered[i, x] = work.ordered[i + 1, x]
                work.use[k, x] = keep[k]


@njit(nogil=True, **INNER)
def clip_noise(
    pairs: npt.NDArray[np.int64],
    low: float,
    high: float,
    rounds: int,
    about_median: bool,
    size: int,
    work: Work,
) -> None:
    """Clip beyond low, high times the noise that a pixel should have, the same for all planes.

    A cosmic ray's own variance is inflated by its charge; the median variance of the planes is not.
    Survivors are a stretch of the ordered values. pairs: sorting_network.
    """
    for k in range(work.use.shape[0]):
        use, variances, noise = work.use[k], work.variances[k], work.noise[k]
        for x in range(size):
            noise[x] = variances[x] if use[x] else np.float32(np.inf)
    sort_rows(pairs, size, work.noise)
    clipped = False
    for x in range(size):
        last = work.last[x]
        if rounds > 0 and last > 2:
            centre = median_of_ordered(work.ordered, 0, last, x)
            sigma = np.sqrt(np.float64(max(work.noise[0, x], np.float32(0))))
            if (
                work.ordered[0, x] < centre - low * sigma
                or work.ordered[last - 1, x] > centre + high * sigma
            ):
                sigma = _expected_noise(centre, x, work)
                clipped |= _clip_stretch(low * sigma, high * sigma, rounds, about_median, x, work)
    if clipped:
        drop_outside(size, work)


@njit(nogil=True, **INNER)
def _expected_noise(centre: float, x: int, work: Work) -> float:
    """Return the noise that one value of pixel x should have.

    It is the median variance and, in starlight, the robust scatter of the planes. centre: median of
    the values.
    """
    last = work.last[x]
    variance = median_of_ordered(work.noise, 0, last, x)
    # Deviations from the centre, the smallest first: from the middle of the values outwards.
    above, below = (last + 1) // 2, (last + 1) // 2 - 1
    before = deviation = 0.0
    for _ in range(last // 2 + 1):
        before = deviation
        down = centre - work.ordered[below, x] if below >= 0 else np.inf
        up = work.ordered[above, x] - centre if above < last else np.inf
        if down <= up:
            deviation, below = abs(down), below - 1
        else:
            deviation, above = abs(up), above + 1
    scatter = _SIGMA_PER_MAD * (deviation if last % 2 else 0.5 * (before + deviation))
    light = max(centre, 0.0)
    beyond_noise = min(
        max(scatter * scatter - variance, (MIN_STARLIGHT_SCATTER * light) ** 2),
        (MAX_STARLIGHT_SCATTER * light) ** 2,
    )
    return np.sqrt(variance + beyond_noise)


@njit(nogil=True, **INNER)
def _clip_stretch(
    below: float, above: float, rounds: int, about_median: bool, x: int, work: Work
) -> bool:
    """Narrow ordered[first:last] of pixel x to the values within the limits of its centre.

    Returns True if any value was dropped. below, above: limits in the unit of the data.
    """
    ordered, first, last = work.ordered, work.first[x], work.last[x]
    for turn in range(rounds):
        centre = median_of_ordered(ordered, first, last, x)
        if turn > 0 and not about_median:
            total = 0.0
            for k in range(first, last):
                total += ordered[k, x]
            centre = total / (last - first)
        new_first, new_last = first, last
        while new_first < last and ordered[new_first, x] < centre - below:
            new_first += 1
        while new_last > new_first and ordered[new_last - 1, x] > centre + above:
            new_last -= 1
        if new_last == new_first or new_last - new_first == last - first:
            break
        first, last = new_first, new_last
    changed = last - first < work.last[x] - work.first[x]
    work.first[x], work.last[x] = first, last
    return changed
