"""Input windows laid out for resampling: bad pixels mended, flags gathered, a border around.

A layout is a plane with a border, row after row in one long array, in which the pixels that
neighbouring output pixels show lie beside one another: compiled loops over output pixels then read
memory in order. It is turned (`transposed`) and mirrored against the input as the array is against
the output. Compiled code finds pixels by unsigned numbers, as signed ones are tested for counting
from the end, which keeps loops from being vectorised.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from gdask.model import DQ, UNUSABLE
from gdask.types import Flags, Image, Mask

BAD_BITS, NO_DATA = int(UNUSABLE), int(DQ.NO_DATA)
#: Bit that marks, beside the DQ bits, pixels that have no value: outside, or not mended.
HOLE = 0x8000
#: Elements of a plane beyond its last pixel: compiled loops read up to this many past a run.
SLACK = 64


class Layout(NamedTuple):
    """One window of an array as `lay_out` leaves it. All arrays have one axis.

    data, variance: planes with bad pixels mended, NaN where they have no value, one after another:
        variance begins `size` after data.
    flags: DQ, and HOLE. near_row, near: OR of the flags of `taps` pixels along a row, and of `taps`
        such rows, for the first pixel of each such place.
    size: elements of a plane.
    start, step_y, step_x: pixel (y, x) of the window is element start + y * step_y + x * step_x.
    """

    planes: Image
    flags: Flags
    near_row: Flags
    near: Flags
    size: int
    start: int
    step_y: int
    step_x: int


def empty_layout(
    shape: tuple[int, int], taps: int, transposed: bool, mirrored: bool
) -> tuple[Layout, int]:
    """Return a layout without pixels for a window (ny, nx), and its border (pixels).

    taps: pixels of the kernel along an axis. transposed: whether rows of the layout are columns of
    the window. mirrored: whether they begin at its last pixel.
    """
    border = taps // 2 + 1
    rows, columns = (shape[1], shape[0]) if transposed else shape
    stride = columns + 2 * border
    size = (rows + 2 * border) * stride
    along = -1 if mirrored else 1
    start = border * stride + border + (columns - 1 if mirrored else 0)
    steps = (along, stride) if transposed else (stride, along)
    planes = np.empty(2 * size + SLACK, np.float32)
    words = [np.empty(size + SLACK, np.uint16) for _ in range(3)]
    return Layout(planes, *words, size, start, *steps), border


@njit(cache=True, nogil=True)
def lay_out(
    data: Image, variance: Image, dq: Flags, taps: int, border: int, stride: int, out: Layout
) -> None:
    """Fill a layout from a window (ny, nx), as `resampling.mend` and `Layout` say.

    border, stride: of the layout's rows. Pixels that are not finite are flagged NO_DATA.
    """
    ny, nx = data.shape
    usable = np.empty((ny, nx), np.bool_)
    planes, flags, size = out.planes, out.flags, np.uint64(out.size)
    for k in range(np.uint64(out.planes.size)):
        planes[k] = np.nan
    for k in range(np.uint64(flags.size)):
        flags[k] = HOLE | NO_DATA
    for y in range(ny):
        values, noise, bits, good = data[y], variance[y], dq[y], usable[y]
        first, step = out.start + y * out.step_y, out.step_x
        for x in range(nx):
            good[x] = (
                (abs(values[x]) < np.inf) & (abs(noise[x]) < np.inf) & (bits[x] & BAD_BITS == 0)
            )
        if step == 1:
            k = np.uint64(first)
            for x in range(np.uint64(nx)):
                planes[k + x] = values[x]
            for x in range(np.uint64(nx)):
                planes[k + size + x] = noise[x]
            for x in range(np.uint64(nx)):
                flags[k + x] = bits[x]
        else:
            for x in range(nx):
                k = np.uint64(first + x * step)
                planes[k], planes[k + size], flags[k] = values[x], noise[x], bits[x]
    for y in range(ny):
        good = usable[y]
        for x in range(nx):
            if not good[x]:
                k = np.uint64(out.start + y * out.step_y + x * out.step_x)
                value, noise_of_it = estimate(data, variance, usable, y, x)
                planes[k], planes[k + size] = value, noise_of_it
                finite = abs(data[y, x]) < np.inf and abs(variance[y, x]) < np.inf
                flags[k] = (
                    dq[y, x]
                    | np.uint16(0 if finite else NO_DATA)
                    | np.uint16(0 if math.isfinite(value) and math.isfinite(noise_of_it) else HOLE)
                )
    gather_flags(flags, taps, stride, out.near_row, out.near)


@njit(cache=True, nogil=True)
def gather_flags(flags: Flags, taps: int, stride: int, near_row: Flags, near: Flags) -> None:
    """Fill near_row and near (see Layout) from flags. stride: elements of a row of the layout."""
    count = np.uint64(flags.size - taps)
    near_row[:] = flags
    for b in range(np.uint64(1), np.uint64(taps)):
        for k in range(count):
            near_row[k] |= flags[k + b]
    near[:] = near_row
    count = np.uint64(max(flags.size - taps * stride, 0))
    for a in range(np.uint64(1), np.uint64(taps)):
        step = a * np.uint64(stride)
        for k in range(count):
            near[k] |= near_row[k + step]


@njit(cache=True, nogil=True)
def estimate(data: Image, variance: Image, usable: Mask, y: int, x: int) -> tuple[float, float]:
    """Estimate a pixel from its neighbours as `resampling.mend` says.

    The cubic's weights are (-1, 4, 4, -1) / 6. The variance is the mean of the neighbours'.
    """
    ny, nx = data.shape
    total = noise = value = 0.0
    good = count = 0
    for b in range(max(0, y - 1), min(ny, y + 2)):
        for a in range(max(0, x - 1), min(nx, x + 2)):
            if usable[b, a]:
                total += data[b, a]
                noise += variance[b, a]
                good += 1
    if (
        2 <= x < nx - 2
        and usable[y, x - 2]
        and usable[y, x - 1]
        and usable[y, x + 1]
        and usable[y, x + 2]
    ):
        value += (4.0 * (data[y, x - 1] + data[y, x + 1]) - data[y, x - 2] - data[y, x + 2]) / 6.0
        count += 1
    if (
        2 <= y < ny - 2
        and usable[y - 2, x]
        and usable[y - 1, x]
        and usable[y + 1, x]
        and usable[y + 2, x]
    ):
        value += (4.0 * (data[y - 1, x] + data[y + 1, x]) - data[y - 2, x] - data[y + 2, x]) / 6.0
        count += 1
    if count > 0:
        return value / count, noise / good
    if good >= 3:
        return total / good, noise / good
    return math.nan, math.nan
