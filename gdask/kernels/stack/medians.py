"""Medians of the good values of pixels, a block at a time, also where planes have no good value.

Most pixels of a sky have a good value in all planes but those in which an object or a defect hides
it. Here a value that is not good is infinite, so that it comes last in order, and what depends on
the number of good values is chosen from rows: no pixel is looked at by itself. Left over are pixels
without any good value, and those with equal values at an end of which some are rejected.

The bits are those of `averages.average_used`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gdask.kernels.arrays import INNER
from gdask.kernels.compiled import njit
from gdask.kernels.stack.rejection import WORSE_BITS, Floats, Stack, Work, sort_rows
from gdask.types import Flags, Image, Mask

Numbers = npt.NDArray[np.int32]

_INFINITE = np.float32(np.inf)


@njit(nogil=True, error_model="numpy", **INNER)
def combine_medians(
    planes: tuple[Image, Image, Flags],
    chosen: npt.NDArray[np.int64],
    levels: tuple[Floats, Floats],
    pairs: npt.NDArray[np.int64],
    variance_factors: Floats,
    choice: tuple[int, int],
    limits: tuple[float, float, int, bool],
    start: int,
    size: int,
    work: Work,
    out: Stack,
) -> int:
    """Combine the pixels start ... start + size - 1, and mark in work.left those left over.

    Returns their number. The arguments are those of `averages.combine_common`; the method is one of
    the medians, the rejection none or that of the lowest and highest.
    """
    left, numbers = work.left, work.numbers
    count, expected, number = numbers[0], numbers[1], numbers[2]
    _read_good(planes, chosen, levels, start, size, work)
    sort_rows(pairs, size, work.ordered)
    _choose_by_number(chosen.size, choice, limits, variance_factors, size, work)
    _add_inside(planes, chosen, levels, start, size, work)
    _put(out, start, size, work)
    return _leave(count, expected, number, left, size)


@njit(nogil=True, **INNER)
def _leave(count: Numbers, expected: Numbers, number: Numbers, left: Mask, size: int) -> int:
    """Mark pixels without a good value, and those with more values at an end than are used."""
    total = 0
    for x in range(size):
        others = count[x], expected[x], number[x]
        left[x] = (others[0] == np.int32(0)) | (others[1] != others[2])
    for x in range(size):
        total += left[x]
    return total


@njit(nogil=True, error_model="numpy", **INNER)
def _put(out: Stack, start: int, size: int, work: Work) -> None:
    """Put what was found into the planes; slices, since sums as indices are not vectorised."""
    stop = start + size
    data, variance = out.data[start:stop], out.variance[start:stop]
    dq, used = out.dq[start:stop], out.used[start:stop]
    lower, upper, square, factor = work.ends[2], work.ends[3], work.centre, work.limit
    spread, bits, number = work.spread, work.bits, work.numbers[2]
    for x in range(size):
        data[x] = 0.5 * (np.float64(lower[x]) + np.float64(upper[x]))
    for x in range(size):
        variance[x] = np.float32(spread[x] / square[x]) * factor[x]
    for x in range(size):
        dq[x] = bits[x]
    for x in range(size):
        used[x] = number[x]


@njit(nogil=True, **INNER)
def _read_good(
    planes: tuple[Image, Image, Flags],
    chosen: npt.NDArray[np.int64],
    levels: tuple[Floats, Floats],
    start: int,
    size: int,
    work: Work,
) -> None:
    """Fill values and ordered with the values that are good, and count them.

    All is done in one loop, which is half as long as four.
    """
    stop, count = start + size, work.numbers[0]
    for x in range(size):
        count[x] = 0
    for k in range(chosen.size):
        plane, scale, square = chosen[k], levels[0][k], levels[0][k] * levels[0][k]
        zero = levels[1][k] + 0.0  # not -0, which would let a value stay -0
        raw, raw_variance = planes[0][plane, start:stop], planes[1][plane, start:stop]
        flags, good, ordered = planes[2][plane, start:stop], work.values[k], work.ordered[k]
        if scale == 1.0:
            for x in range(size):
                value, variance = np.float32(raw[x] + zero), raw_variance[x]
                is_good = (abs(value) < _INFINITE) & (abs(variance) < _INFINITE)
                is_good &= flags[x] & WORSE_BITS == 0
                value = value if is_good else _INFINITE
                good[x], ordered[x] = value, value
                count[x] += np.int32(is_good)
        else:
            for x in range(size):
                value = np.float32(raw[x] * scale + zero)
                variance = np.float32(raw_variance[x] * square)
                is_good = (abs(value) < _INFINITE) & (abs(variance) < _INFINITE)
                is_good &= flags[x] & WORSE_BITS == 0
                value = value if is_good else _INFINITE
                good[x], ordered[x] = value, value
                count[x] += np.int32(is_good)


@njit(nogil=True, **INNER)
def _choose_by_number(
    n: int,
    choice: tuple[int, int],
    limits: tuple[float, float, int, bool],
    variance_factors: Floats,
    size: int,
    work: Work,
) -> None:
    """Choose from the values in order what the number of good ones says.

    In `ends`: the lowest and highest that are used, and the middle two. In numbers[1]: how many are
    used; in centre and limit: its square, and the variance factor.
    """
    (method, reject), count, expected = choice, work.numbers[0], work.numbers[1]
    # To unpack an array would give rows of any layout, and loops that are not vectorised.
    low, high, lower, upper = work.ends[0], work.ends[1], work.ends[2], work.ends[3]
    square, factor = work.centre, work.limit
    present = np.int32(0)
    for x in range(size):
        present |= np.int32(1) << min(count[x], np.int32(31))
    for good in range(n + 1):
        if not present >> min(good, 31) & 1:
            continue
        below = above = 0
        if reject == 1:
            below, above = int(good * limits[0] / n + 0.001), int(good * limits[1] / n + 0.001)
            if below + above >= good:
                below = above = 0
        used = good - below - above
        middle = below + used // 2
        before = middle if used % 2 else max(middle - 1, 0)
        after = before if method == 3 else min(middle, n - 1)
        before = min(before, n - 1)
        after = min(after, n - 1)
        untrimmed = used + 2 * min(below, above)
        its_factor = variance_factors[untrimmed] * used / untrimmed if untrimmed else 0.0
        its_square = np.float64(max(used, 1)) * np.float64(max(used, 1))
        first, last = work.ordered[min(below, n - 1)], work.ordered[max(below + used - 1, 0)]
        one, other = work.ordered[before], work.ordered[after]
        _take(count, good, first, low)
        _take(count, good, last, high)
        _take(count, good, one, lower)
        _take(count, good, other, upper)
        for x in range(size):
            old = expected[x]
            expected[x] = np.int32(used) if count[x] == np.int32(good) else old
        for x in range(size):
            old_square = square[x]
            square[x] = its_square if count[x] == np.int32(good) else old_square
        for x in range(size):
            old_factor = factor[x]
            factor[x] = its_factor if count[x] == np.int32(good) else old_factor


@njit(nogil=True, **INNER)
def _take(count: Numbers, good: int, row: Image, out: Image) -> None:
    """Put a row into `out` where so many values are good: each loop alone is vectorised."""
    number = np.int32(good)
    for x in range(out.size):
        new, old = row[x], out[x]  # both are read: where a branch reads, nothing is vectorised
        out[x] = new if count[x] == number else old


@njit(nogil=True, **INNER)
def _add_inside(
    planes: tuple[Image, Image, Flags],
    chosen: npt.NDArray[np.int64],
    levels: tuple[Floats, Floats],
    start: int,
    size: int,
    work: Work,
) -> None:
    """Sum the variances of good values between the ends, OR their bits, and count them."""
    low, high, number = work.ends[0], work.ends[1], work.numbers[2]
    spread, bits, stop = work.spread, work.bits, start + size
    for x in range(size):
        spread[x], bits[x], number[x] = 0.0, 0, 0
    for k in range(chosen.size):
        plane, square = chosen[k], levels[0][k] * levels[0][k]
        values, variances = work.values[k], planes[1][plane, start:stop]
        flags = planes[2][plane, start:stop]
        if square != 1.0:
            variances = work.variances[k]
            raw_variance = planes[1][plane, start:stop]
            for x in range(size):
                work.variances[k, x] = raw_variance[x] * square
        for x in range(size):
            inside = (low[x] <= values[x]) & (values[x] <= high[x])
            variance, added = variances[x], flags[x]
            spread[x] += variance if inside else np.float32(0)
            number[x] += np.int32(inside)
            bits[x] |= added if inside else np.uint16(0)


@njit(nogil=True, **INNER)
def list_pixel(
    planes: tuple[Image, Image, Flags],
    chosen: npt.NDArray[np.int64],
    levels: tuple[Floats, Floats],
    pixel: int,
    number: int,
    listed: Work,
) -> None:
    """Put a pixel, scaled, into a list of those that are left over, at place `number`."""
    listed.pixels[number] = pixel
    for k in range(chosen.size):
        plane, scale = chosen[k], levels[0][k]
        value = planes[0][plane, pixel] * scale + (levels[1][k] + 0.0)
        listed.values[k, number] = value
        listed.variances[k, number] = planes[1][plane, pixel] * (scale * scale)
        listed.flags[k, number] = planes[2][plane, pixel]
