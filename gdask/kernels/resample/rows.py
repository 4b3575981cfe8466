"""Compiled resampling of a laid-out window, in short blocks of output pixels.

A block's weights, sums and factors are rows of one array at constant distances, which lets the
compiler work on 8 or 16 pixels at once. Output pixels whose kernels follow one another in the
layout are a run, whose input is read in order; in blocks with short runs (arrays that lie askew)
each pixel is summed alone, in the same order of sums and with the same bits. Pixels with flags
under the kernel are looked at one by one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from gdask.kernels.geometry.areas import area_row
from gdask.kernels.geometry.grid import map_row
from gdask.kernels.geometry.projection import Floats
from gdask.kernels.resample.interpolation import PHASES
from gdask.kernels.resample.layout import HOLE, NO_DATA, Layout
from gdask.types import Flags, Image

#: Share of the (signed) weight that known pixels must keep for unknown ones (outside, or not
#: mended) to be left out. With less, all values are used as they are, flagged.
MIN_GOOD_WEIGHT = 0.5
#: The most pixels of a block: its rows stay in the first cache. A row has room for the last, partly
#: filled, vector of a run. Unsigned: see `layout`.
BLOCK = 368
_ROW = np.uint64(BLOCK + 16)
_VECTOR = np.uint64(16)
_0, _1, _2, _3, _4, _5 = (np.uint64(n) for n in range(6))
#: Pixels of a run, on average, from which on runs are faster than pixels one by one.
_SHORT_RUN = 6
#: Flags with a share of the weight below the threshold by this much are not looked at closer: ten
#: times the errors of the table and of the polynomials.
_SHARE_ERROR = 1e-5


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


class Places(NamedTuple):
    """Where output pixels lie in the array.

    ymap, xmap: coordinates, (ny, nx), or those of nodes (grid.MapNodes), with `weights` between
    them; without weights, of pixels. first_y, first_x: number of the first node. y, x: the grid
    pixel that is the first of the output. y0, x0: the window's first pixel in the array.
    areas: (2, ny, nx) factors of data and variance at nodes (areas.area_nodes), or without
    elements. area_y, area_x: number of their first node.
    """

    ymap: Floats
    xmap: Floats
    weights: Floats
    first_y: int
    first_x: int
    y: int
    x: int
    y0: float
    x0: float
    areas: Floats
    area_y: int
    area_x: int


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


@njit(cache=True, nogil=True)
def resample_rows(
    data: Image,
    variance: Image,
    layout: Layout,
    kernel: Kernel,
    places: Places,
    shape: tuple[int, int],
    threshold: float,
    area_ratio: float,
    corner: tuple[int, int],
    out: Image,
    out_var: Image,
    out_dq: Flags,
) -> None:
    """Resample pixels (ny, nx) = shape of the output into planes, from their pixel `corner` on.

    data, variance: the window as it is. layout: the same as `layout.lay_out` leaves it. A pixel of
    the planes is replaced where its DQ is higher than the new one.
    """
    taps = np.uint64(len(kernel.taps))
    rows = (_2 * taps + np.uint64(8)) * _ROW
    node_count = max(places.ymap.shape[1], places.areas.shape[2])
    work = Work(
        np.zeros(rows, np.float32),
        np.zeros(2 * _ROW, np.float64),
        np.zeros(2 * node_count, np.float64),
        np.zeros(_ROW, np.uint32),
        np.zeros(_ROW, np.uint32),
        np.zeros(_ROW, np.uint32),
        np.zeros(_ROW, np.uint16),
        np.zeros(2 * taps, np.float32),
        np.zeros(16, np.float64),
    )
    flat, flat_var, flat_dq = out.reshape(-1), out_var.reshape(-1), out_dq.reshape(-1)
    factors = (_2 * taps + np.uint64(6)) * _ROW
    work.rows[:] = 1.0
    parts = (shape[1] + BLOCK - 1) // BLOCK
    block = (shape[1] + parts - 1) // max(parts, 1)
    for j in range(shape[0]):
        for i in range(0, shape[1], block):
            count = min(block, shape[1] - i)
            n = np.uint64(count)
            if places.weights.size:
                y, x = places.y + j, places.x + i
                map_row(
                    places.ymap,
                    places.weights,
                    places.first_y,
                    places.first_x,
                    y,
                    x,
                    x + count,
                    work.nodes,
                    work.places,
                    0,
                    places.y0,
                )
                map_row(
                    places.xmap,
                    places.weights,
                    places.first_y,
                    places.first_x,
                    y,
                    x,
                    x + count,
                    work.nodes,
                    work.places,
                    BLOCK + 16,
                    places.x0,
                )
            else:
                for k in range(count):
                    work.places[k] = places.ymap[j, i + k] - places.y0
                    work.places[_ROW + np.uint64(k)] = places.xmap[j, i + k] - places.x0
            inside = _find_first(data.shape[0], data.shape[1], n, taps, layout, work)
            number, flagged = _find_runs(n, layout.near, work)
            if inside:
                _weigh(kernel, n, work)
                if number * _SHORT_RUN < inside:
                    _sum_runs(layout.planes, layout.size, _stride(layout), number, kernel, work)
                else:
                    _sum_each(layout.planes, layout.size, _stride(layout), n, kernel, work)
                if places.areas.size:
                    y, x = places.y + j, places.x + i
                    area_row(
                        places.areas,
                        places.area_y,
                        places.area_x,
                        y,
                        x,
                        x + count,
                        work.nodes,
                        work.rows,
                        factors,
                        factors + _ROW,
                    )
            _sum_flagged(data, variance, layout, kernel, flagged, threshold, work)
            k = np.uint64((corner[0] + j) * out.shape[1] + corner[1] + i)
            _merge(n, taps, area_ratio, k, flat, flat_var, flat_dq, work)


@njit(cache=True, nogil=True, inline="always")
def _stride(layout: Layout) -> int:
    """Return the elements of a row of the layout."""
    return max(abs(layout.step_y), abs(layout.step_x))


@njit(cache=True, nogil=True)
def _find_first(ny: int, nx: int, count: int, taps: int, layout: Layout, work: Work) -> int:
    """Find for each pixel of a block where its kernel begins, and its phases.

    Returns how many pixels are inside.
    """
    places, first, rows = work.places, work.first, work.rows
    along = (_2 * taps + _2) * _ROW
    step_y, step_x = np.int32(layout.step_y), np.int32(layout.step_x)
    mirrored = step_y == -1 or step_x == -1
    transposed = abs(step_x) > abs(step_y)
    reach = np.int64(taps) // 2
    sign = -1.0 if mirrored else 1.0
    # The first tap is reach - 1 pixels before along y and x; along a mirrored axis, reach after.
    start = layout.start - (reach - 1) * (abs(layout.step_y) + abs(layout.step_x))
    if mirrored:
        start -= 1
    begin = np.int32(start)
    row_phase = along if transposed else along + _ROW
    column_phase = along + _ROW if transposed else along
    sign_y, sign_x = (sign, 1.0) if transposed else (1.0, sign)
    inside = 0
    for i in range(count):
        y, x = places[i], places[_ROW + i]
        is_in = (y >= -0.5) & (y < ny - 0.5) & (x >= -0.5) & (x < nx - 0.5)
        y, x = (y if is_in else 0.0), (x if is_in else 0.0)
        iy, ix = np.int32(y + 1.0) - np.int32(1), np.int32(x + 1.0) - np.int32(1)
        first[i] = np.uint32(begin + iy * step_y + ix * step_x) if is_in else np.uint32(0)
        rows[row_phase + i] = sign_y * (y - iy - 0.5)
        rows[column_phase + i] = sign_x * (x - ix - 0.5)
        inside += is_in
    return inside


@njit(cache=True, nogil=True)
def _weigh(kernel: Kernel, count: int, work: Work) -> None:
    """Fill the rows of weights, and replace the phases by the sums of squared weights."""
    taps, pairs, powers = (
        np.uint64(len(kernel.taps)),
        np.uint64(len(kernel.pairs)),
        np.uint64(len(kernel.powers)),
    )
    rows, series = work.rows, kernel.series
    for axis in range(_2):
        phase, first = (_2 * taps + _2 + axis) * _ROW, taps * axis * _ROW
        squares = phase + _2 * _ROW
        for p in range(pairs):
            low, high = first + p * _ROW, first + (taps - _1 - p) * _ROW
            for i in range(count):
                u = rows[phase + i]
                s = u * u
                even, odd = series[p, 0, 0], series[p, 1, 0]
                for d in range(_1, powers):
                    even = even * s + series[p, 0, d]
                    odd = odd * s + series[p, 1, d]
                odd *= u
                one, other = even + odd, even - odd
                rows[low + i] = one
                rows[high + i] = other
                before = rows[squares + i] if p else np.float32(0)
                rows[squares + i] = before + (one * one + other * other)


@njit(cache=True, nogil=True)
def _find_runs(count: int, near: Flags, work: Work) -> tuple[int, int]:
    """List where runs begin, and which pixels have flags near; return how many there are of each.

    The end of the last run follows them.
    """
    first, runs, flagged = work.first, work.runs, work.flagged
    number, number_flagged = _0, _0
    before = np.int64(-2)
    for i in range(count):
        here = np.int64(first[i])
        runs[number], flagged[number_flagged] = i, i
        follows = (here == before + 1) | ((here == 0) & (before == 0))
        number += _0 if follows else _1
        number_flagged += _1 if near[first[i]] else _0
        before = here
    runs[number] = count
    return number, number_flagged


@njit(cache=True, nogil=True)
def _sum_runs(
    planes: Image, size: int, stride: int, number: int, kernel: Kernel, work: Work
) -> None:
    """Sum weight * data and weight^2 * variance over the taps, run by run.

    Runs are made longer to whole vectors: what comes out too much is replaced by the next run.
    Half of the taps at a time, so that the compiler can tell the arrays apart.
    """
    taps, pairs = np.uint64(len(kernel.taps)), np.uint64(len(kernel.pairs))
    rows, row, to_variance = work.rows, np.uint64(stride), np.uint64(size)
    for r in range(number):
        begin, end = np.uint64(work.runs[r]), np.uint64(work.runs[r + _1])
        place = np.uint64(work.first[begin])
        if place == _0:
            continue
        count = (end - begin + _VECTOR - _1) & ~(_VECTOR - _1)
        value = _2 * taps * _ROW + begin
        for half in range(_2):
            data = place + half * pairs * row
            across = (taps + half * pairs) * _ROW + begin
            for i in range(count):
                total = rows[value + i] if half else np.float32(0)
                noise = rows[value + _ROW + i] if half else np.float32(0)
                for a in range(pairs):
                    part, part_noise = np.float32(0), np.float32(0)
                    for b in range(taps):
                        k, w = data + a * row + i + b, rows[b * _ROW + begin + i]
                        part += w * planes[k]
                        part_noise += (w * w) * planes[k + to_variance]
                    w = rows[across + a * _ROW + i]
                    total += w * part
                    noise += (w * w) * part_noise
                rows[value + i] = total
                rows[value + _ROW + i] = noise


@njit(cache=True, nogil=True)
def _sum_each(
    planes: Image, size: int, stride: int, count: int, kernel: Kernel, work: Work
) -> None:
    """Do what `_sum_runs` does, pixel by pixel, in the same order of sums."""
    taps = np.uint64(len(kernel.taps))
    rows, row, to_variance = work.rows, np.uint64(stride), np.uint64(size)
    value = _2 * taps * _ROW
    for i in range(count):
        place = np.uint64(work.first[i])
        total, noise = np.float32(0), np.float32(0)
        for a in range(taps):
            part, part_noise = np.float32(0), np.float32(0)
            for b in range(taps):
                k, w = place + a * row + b, rows[b * _ROW + i]
                part += w * planes[k]
                part_noise += (w * w) * planes[k + to_variance]
            w = rows[(taps + a) * _ROW + i]
            total += w * part
            noise += (w * w) * part_noise
        rows[value + i] = total
        rows[value + _ROW + i] = noise


@njit(cache=True, nogil=True)
def _sum_flagged(
    data: Image,
    variance: Image,
    layout: Layout,
    kernel: Kernel,
    number: int,
    threshold: float,
    work: Work,
) -> None:
    """Set the flags of a block, and the sums of pixels that are outside or near to holes."""
    taps = np.uint64(len(kernel.taps))
    value = _2 * taps * _ROW
    work.flags[:] = 0
    for n in range(number):
        i = np.uint64(work.flagged[n])
        place = np.uint64(work.first[i])
        around = layout.near[place]
        if place == _0:
            work.flags[i] = NO_DATA
            work.rows[value + i] = 0.0
            work.rows[value + _ROW + i] = 0.0
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
                work.rows[value + _ROW + i] = noise * scale * scale


@njit(cache=True, nogil=True, inline="always")
def _is_heavy(layout: Layout, place: int, i: int, taps: int, threshold: float, work: Work) -> bool:
    """Tell whether flagged pixels may hold more of the absolute weight than the threshold."""
    rows, stride = work.rows, np.uint64(_stride(layout))
    flagged, along, across = np.float32(0), np.float32(0), np.float32(0)
    for b in range(taps):
        along += abs(rows[b * _ROW + i])
    for a in range(taps):
        weight = abs(rows[(taps + a) * _ROW + i])
        across += weight
        which = np.uint64(layout.which[place + a * stride])
        if which:
            part = np.float32(0)
            for b in range(taps):
                part += abs(rows[b * _ROW + i]) if which >> b & _1 else np.float32(0)
            flagged += weight * part
    return flagged > (threshold - _SHARE_ERROR) * along * across


@njit(cache=True, nogil=True)
def _weights_by_table(kernel: Kernel, i: int, work: Work) -> tuple[int, int]:
    """Fill work.weights for a pixel from the table, and return its first tap (y, x)."""
    taps = len(kernel.taps)
    y, x = 0, 0
    for axis in range(2):
        place = work.places[np.uint64(axis) * _ROW + np.uint64(i)]
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


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _flags_by_weight(
    layout: Layout, kernel: Kernel, top: int, left: int, threshold: float, work: Work
) -> int:
    """Return the DQ bits whose pixels hold more than `threshold` of the absolute weight."""
    share, weights, taps = work.share, work.weights, len(kernel.taps)
    share[:] = 0.0
    down, across, found = 0.0, 0.0, 0
    for a in range(taps):
        down += abs(weights[a])
        across += abs(weights[taps + a])
        for b in range(taps):
            k = layout.start + (top + a) * layout.step_y + (left + b) * layout.step_x
            flags = np.int64(layout.flags[k]) & ~HOLE
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


@njit(cache=True, nogil=True)
def _merge(
    count: int,
    taps: int,
    area_ratio: float,
    place: int,
    out: Image,
    out_var: Image,
    out_dq: Flags,
    work: Work,
) -> None:
    """Scale a block, and put its pixels from `place` on where those there have a higher DQ."""
    rows, value = work.rows, _2 * taps * _ROW
    along, factor = value + _4 * _ROW, value + np.uint64(6) * _ROW
    for i in range(count):
        better = work.flags[i] < out_dq[place + i]
        new = np.float32(rows[value + i] * area_ratio) * rows[factor + i]
        squares = np.float64(rows[along + i]) * np.float64(rows[along + _ROW + i])
        noise = rows[value + _ROW + i] / squares * area_ratio
        noise_of_new = np.float32(noise) * rows[factor + _ROW + i]
        out[place + i] = new if better else out[place + i]
        out_var[place + i] = noise_of_new if better else out_var[place + i]
        out_dq[place + i] = work.flags[i] if better else out_dq[place + i]
