"""Input windows laid out for resampling, and the output pixels that see bad pixels of them.

Bad pixels are mended from good ones beside them (`estimate`), flags are gathered. A layout is a
plane with a border, row after row in one long array, in which the pixels that neighbouring output
pixels show lie beside one another: compiled loops over output pixels then read memory in order. It
is turned (`transposed`) and mirrored against the input as the array is against the output.

Compiled code finds pixels by unsigned numbers: signed ones are tested for counting from the end,
which keeps loops from being vectorised.
"""

from __future__ import annotations

import math
import threading
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from gdask.kernels.arrays import INNER
from gdask.kernels.compiled import njit
from gdask.kernels.geometry.projection import Floats
from gdask.kernels.resample.interpolation import PHASES
from gdask.model import DQ, UNUSABLE
from gdask.types import Flags, Image, Mask

#: An unsigned number in compiled code, whose types mypy does not follow.
Unsigned: TypeAlias = Any

BAD_BITS, NO_DATA = int(UNUSABLE), int(DQ.NO_DATA)
#: Bit that marks, beside the DQ bits, pixels that have no value: outside, or not mended.
HOLE = 0x8000
#: Elements of a plane beyond its last pixel: compiled loops read up to this many past a run.
SLACK = 64
#: Buffer that each thread uses again, and the most bytes of it that are kept.
_KEPT = threading.local()
_MOST_KEPT = 16_000_000

#: Share of the (signed) weight that known pixels must keep for unknown ones (outside, or not
#: mended) to be left out. With less, all values are used as they are, flagged.
MIN_GOOD_WEIGHT = 0.5
#: The most pixels of a block: its rows stay in the first cache. A row has room for the last, partly
#: filled, vector of a run.
BLOCK = 368
ROW = np.uint64(BLOCK + 16)
_1, _2 = np.uint64(1), np.uint64(2)
#: Flags with a share of the weight below the threshold by this much are not looked at closer: ten
#: times the errors of the table and of the series.
_SHARE_ERROR = 1e-5


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


class Kernel(NamedTuple):
    """An interpolation kernel for compiled code.

    table: interpolation.kernel_weights. series: interpolation.kernel_series. taps, pairs, powers:
    tuples for their lengths only (pixels along an axis, half as many, terms of a series), which
    the compiler then knows.
    """

    table: Image
    series: Image
    taps: tuple[int, ...]
    pairs: tuple[int, ...]
    powers: tuple[int, ...]


class Work(NamedTuple):
    """Buffers for a block of output pixels.

    rows: weights along a row of the layout, then across; value, noise; phases along and across
    (pixels from the middle between the two middle taps); sums of squared weights along and across;
    factors of data and variance. places: y and x in the window. nodes: y, x of one row at nodes.
    first: element of the layout at which the kernel begins, 0 for pixels outside. runs: where each
    run begins. flagged: pixels with flags under the kernel. flags: DQ.
    weights: along y, then x. share: weight by DQ bit.
    """

    rows: Image
    places: Floats
    nodes: Floats
    first: npt.NDArray[np.uint32]
    runs: npt.NDArray[np.uint32]
    flagged: npt.NDArray[np.uint32]
    flags: Flags
    weights: Image
    share: Floats


def empty_work(taps: int, nodes: int) -> Work:
    """Return buffers for a kernel of so many taps, and for so many nodes in a row."""
    row = int(ROW)
    return Work(
        np.ones((2 * taps + 8) * row, np.float32),
        np.zeros(2 * row),
        np.zeros(nodes),
        np.zeros(row, np.uint32),
        np.zeros(row, np.uint32),
        np.zeros(row, np.uint32),
        np.zeros(row, np.uint16),
        np.zeros(2 * taps, np.float32),
        np.zeros(16),
    )


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
    """Fill a layout from a window (ny, nx), as `estimate` and `Layout` say.

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
    for k in range(np.uint64(SLACK)):
        planes[size + size + k], flags[size + k] = np.nan, HOLE | NO_DATA
    for y in range(ny):
        values, noise, bits, good = data[y], variance[y], dq[y], usable[y]
        first, step = out.start + y * out.step_y, out.step_x
        for x in range(nx):
            good[x] = (
                (abs(values[x]) < np.inf) & (abs(noise[x]) < np.inf) & (bits[x] & BAD_BITS == 0)
            )
        if step == 1:
            begin = np.uint64(first)
            for x in range(np.uint64(nx)):
                planes[begin + x] = values[x]
            for x in range(np.uint64(nx)):
                planes[begin + size + x] = noise[x]
            for x in range(np.uint64(nx)):
                flags[begin + x] = bits[x]
        else:
            for x in range(nx):
                at = np.uint64(first + x * step)
                planes[at], planes[at + size], flags[at] = values[x], noise[x], bits[x]
    for y in range(ny):
        good = usable[y]
        for x in range(nx):
            if not good[x]:
                at = np.uint64(out.start + y * out.step_y + x * out.step_x)
                value, its_noise = estimate(data, variance, usable, y, x)
                planes[at], planes[at + size] = value, its_noise
                finite = abs(data[y, x]) < np.inf and abs(variance[y, x]) < np.inf
                flags[at] = dq[y, x] | np.uint16(0 if finite else NO_DATA)
                if not (math.isfinite(value) and math.isfinite(its_noise)):
                    flags[at] |= HOLE
    gather_flags(flags, taps, stride, out.which, out.near)


@njit(nogil=True, **INNER)
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


@njit(nogil=True, **INNER)
def estimate(data: Image, variance: Image, usable: Mask, y: int, x: int) -> tuple[float, float]:
    """Estimate data and variance of a bad pixel from good ones beside it; NaN where too few are.

    The estimate is a cubic (weights (-1, 4, 4, -1) / 6) through the four nearest pixels along the
    row and the column where these are all good, else the mean of at least three good ones of the
    eight around. That is enough for a kernel's outer taps. The variance is the neighbours' mean.
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


@njit(nogil=True, inline="always", **INNER)
def row_step(layout: Layout) -> int:
    """Return the elements of a row of the layout."""
    return max(abs(layout.step_y), abs(layout.step_x))


@njit(nogil=True, **INNER)
def sum_flagged(
    data: Image,
    variance: Image,
    layout: Layout,
    kernel: Kernel,
    count: Unsigned,
    number: Unsigned,
    threshold: float,
    work: Work,
) -> None:
    """Set the flags of a block, and the sums of pixels that are outside or near to holes."""
    taps = np.uint64(len(kernel.taps))
    value = _2 * taps * ROW
    for k in range(count):
        work.flags[k] = 0
    for n in range(number):
        i = np.uint64(work.flagged[n])
        place = np.uint64(work.first[i])
        around = layout.near[place]
        if place == 0:
            work.flags[i] = NO_DATA
            work.rows[value + i] = 0.0
            work.rows[value + ROW + i] = 0.0
            continue
        hole = around & HOLE
        if hole or _is_heavy(layout, place, i, taps, threshold, work):
            top, left = _weights_by_table(kernel, i, work)
            work.flags[i] = _flags_by_weight(layout, kernel, top, left, threshold, work)
            if hole:
                good, total_value, noise = _sums_of_known(
                    data, variance, layout, True, kernel, top, left, work
                )
                if good < MIN_GOOD_WEIGHT:
                    good, total_value, noise = _sums_of_known(
                        data, variance, layout, False, kernel, top, left, work
                    )
                scale = 1.0 / good if good >= MIN_GOOD_WEIGHT else 0.0
                work.rows[value + i] = total_value * scale
                work.rows[value + ROW + i] = noise * scale * scale


@njit(nogil=True, inline="always", **INNER)
def _is_heavy(
    layout: Layout, place: Unsigned, i: Unsigned, taps: Unsigned, threshold: float, work: Work
) -> Any:
    """Tell whether flagged pixels may hold more of the absolute weight than the threshold."""
    rows, stride = work.rows, np.uint64(row_step(layout))
    flagged, along, across = np.float32(0), np.float32(0), np.float32(0)
    for b in range(taps):
        along += abs(rows[b * ROW + i])
    for a in range(taps):
        weight = abs(rows[(taps + a) * ROW + i])
        across += weight
        which = np.uint64(layout.which[place + a * stride])
        if which:
            part = np.float32(0)
            for b in range(taps):
                part += abs(rows[b * ROW + i]) if which >> b & _1 else np.float32(0)
            flagged += weight * part
    return flagged > (threshold - _SHARE_ERROR) * along * across


@njit(nogil=True, **INNER)
def _weights_by_table(kernel: Kernel, i: Unsigned, work: Work) -> tuple[int, int]:
    """Fill work.weights for a pixel from the table, and return its first tap (y, x)."""
    taps = len(kernel.taps)
    y, x = 0, 0
    for axis in range(2):
        place = work.places[np.uint64(axis) * ROW + np.uint64(i)]
        whole = int(place + 1.0) - 1
        position = (place - whole) * PHASES
        k = min(int(position), PHASES - 1)
        f = np.float32(position - k)
        for t in range(taps):
            work.weights[axis * taps + t] = kernel.table[k, t] + f * (
                kernel.table[k + 1, t] - kernel.table[k, t]
            )
        if axis == 0:
            y = whole + 1 - taps // 2
        else:
            x = whole + 1 - taps // 2
    return y, x


@njit(nogil=True, **INNER)
def _sums_of_known(
    data: Image,
    variance: Image,
    layout: Layout,
    mended: bool,
    kernel: Kernel,
    top: int,
    left: int,
    work: Work,
) -> tuple[float, float, float]:
    """Return the sums of weight, weight * data and weight^2 * variance over known pixels.

    These are inside and finite. mended: whether to take mended pixels, or pixels as they are.
    """
    taps = len(kernel.taps)
    good = value = noise = 0.0
    for a in range(max(0, -top), min(taps, data.shape[0] - top)):
        for b in range(max(0, -left), min(taps, data.shape[1] - left)):
            y, x = top + a, left + b
            if mended:
                k = layout.start + y * layout.step_y + x * layout.step_x
                v, n = layout.planes[k], layout.planes[k + layout.size]
            else:
                v, n = data[y, x], variance[y, x]
            if math.isfinite(v) and math.isfinite(n):
                w = work.weights[a] * work.weights[taps + b]
                good += w
                value += w * v
                noise += w * w * n
    return good, value, noise


@njit(nogil=True, **INNER)
def _flags_by_weight(
    layout: Layout, kernel: Kernel, top: int, left: int, threshold: float, work: Work
) -> int:
    """Return the DQ bits whose pixels hold more than `threshold` of the absolute weight."""
    share, weights, taps = work.share, work.weights, len(kernel.taps)
    for bit in range(16):
        share[bit] = 0.0
    down, across, found = 0.0, 0.0, 0
    for a in range(taps):
        down += abs(weights[a])
        across += abs(weights[taps + a])
        for b in range(taps):
            k = layout.start + (top + a) * layout.step_y + (left + b) * layout.step_x
            flags = int(layout.flags[k]) & ~HOLE
            found |= flags
            bit = 0
            while flags:
                if flags & 1:
                    share[bit] += abs(weights[a] * weights[taps + b])
                flags >>= 1
                bit += 1
    out = 0
    for bit in range(16):
        if found >> bit & 1 and share[bit] > threshold * down * across:
            out |= 1 << bit
    return out
