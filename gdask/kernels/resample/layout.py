"""Input windows laid out for resampling: bad pixels mended, flags gathered, a border around.

A layout is a plane with a border, row after row in one long array, in which the pixels that
neighbouring output pixels show lie beside one another: compiled loops over output pixels then read
memory in order. It is turned (`transposed`) and mirrored against the input as the array is against
the output. Compiled code finds pixels by unsigned numbers, as signed ones are tested for counting
from the end, which keeps loops from being vectorised.
"""

from __future__ import annotations

import math
import threading
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
#: Buffer that each thread uses again, and the most bytes of it that are kept.
_KEPT = threading.local()
_MOST_KEPT = 16_000_000


class Layout(NamedTuple):
    """One window of an array as `lay_out` leaves it. All arrays have one axis.

    planes: data, and variance from `size` on, with bad pixels mended, NaN where they have no value.
    flags: DQ, and HOLE. which: which of `taps` pixels from here on along a row have flags, the
        first in the lowest bit. near: OR of the flags of these and of the pixels below, `taps`
        rows in all.
    size: elements of a plane.
    start, step_y, step_x: pixel (y, x) of the window is element start + y * step_y + x * step_x.
    """

    planes: Image
    flags: Flags
    which: Flags
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
    count = size + SLACK
    words = _buffer(2 * (size + count) + 3 * count)
    planes = words[: 2 * (size + count)].view(np.float32)
    flags, which, near = words[2 * (size + count) :].reshape(3, count)
    return Layout(planes, flags, which, near, size, start, *steps), border


def _buffer(count: int) -> Flags:
    """Return this thread's buffer of so many 16-bit words, or a new one where that would be large.

    Fresh memory for each window costs the system more time than laying the window out.
    """
    kept: Flags | None = getattr(_KEPT, "words", None)
    if kept is None or kept.size < count:
        kept = np.empty(count, np.uint16)
        if kept.nbytes <= _MOST_KEPT:
            _KEPT.words = kept
    return kept[:count]


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
    rows = np.int64(out.size) // stride
    for row in range(rows):  # the border, and of the inside rows no more than their ends
        is_inside = border <= row < rows - border
        for part in range(2 if is_inside else 1):
            first = row * stride + part * (stride - border)
            for k in range(np.uint64(first), np.uint64(first + (border if is_inside else stride))):
                planes[k], planes[k + size], flags[k] = np.nan, np.nan, HOLE | NO_DATA
    planes[2 * out.size :] = np.nan
    flags[out.size :] = HOLE | NO_DATA
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
    gather_flags(flags, taps, stride, out.which, out.near)


@njit(cache=True, nogil=True)
def gather_flags(flags: Flags, taps: int, stride: int, which: Flags, near: Flags) -> None:
    """Fill which and near (see Layout) from flags. stride: elements of a row of the layout."""
    count = np.uint64(flags.size - taps)
    for k in range(np.uint64(flags.size)):
        which[k] = flags[k] != 0
        near[k] = flags[k]
    for b in range(np.uint64(1), np.uint64(taps)):
        bit = np.uint16(1 << np.int64(b))
        for k in range(count):
            which[k] |= bit if flags[k + b] else np.uint16(0)
            near[k] |= flags[k + b]
    reach = 1  # rows that near covers; those ahead are OR-ed to a row before they are changed
    while reach < taps:
        rows = min(reach, taps - reach)
        ahead = np.uint64(rows * stride)
        for k in range(np.uint64(max(flags.size - rows * stride, 0))):
            near[k] |= near[k + ahead]
        reach += rows


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
