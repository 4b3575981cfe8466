"""Resampling of one array to the places of a pixel map: science, variance and DQ at once.

Kernels are local: an output pixel needs a few input pixels only, and has the same bits from any
window that holds them (a spline's prefilter needs all pixels). Bad pixels do not spread: isolated
ones are mended from their neighbours for the kernel's sake, others get no weight. Both leave their
flags.

Units. Flat-fielded pixels are surface brightness (the flat divides the pixel's area out, too), and
values are interpolated as such. They are multiplied by `area_ratio`, the area of an output pixel
over that of the input pixel to which the flat is normalised (the mean one), so that sums over the
output are fluxes, wherever on the array.

Variance. Resampled noise is correlated between neighbours: one number per pixel cannot say both how
a pixel and how a sum of many scatters. VAR is the one that sums need: that of independent pixels
with the same noise per area, which is var * area_ratio^2 / (output area / input area) = var *
area_ratio, where var is a kernel-weighted mean. A single pixel scatters by noise_correlation *
sqrt(area_ratio) * sqrt(VAR).

Speed. Output is made in short blocks of pixels. A block's weights, sums and factors are rows of one
array at constant distances, which lets the compiler work on 8 or 16 pixels at once. Output pixels
whose kernels follow one another in the layout of the input are a run, whose input is read in order;
in blocks with short runs (arrays that lie askew) each pixel is summed alone, in the same order of
sums and with the same bits. Pixels with flags under the kernel are looked at one by one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gdask.kernels.arrays import INNER, as_kernel_input
from gdask.kernels.compiled import njit
from gdask.kernels.geometry.areas import area_row
from gdask.kernels.geometry.grid import MapNodes, map_row
from gdask.kernels.geometry.projection import Floats
from gdask.kernels.resample.interpolation import kernel_series, kernel_weights
from gdask.kernels.resample.layout import (
    BLOCK,
    Kernel,
    Layout,
    Unsigned,
    Work,
    empty_layout,
    empty_work,
    lay_out,
    row_step,
    sum_flagged,
)
from gdask.kernels.resample.layout import ROW as _ROW
from gdask.model import GdaskError
from gdask.types import Flags, Fraction, Image, Window

#: Elements of a vector, and small numbers, all unsigned: see `layout`.
_VECTOR = np.uint64(16)
_0, _1, _2, _4 = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(4)
#: All bits but OVERLAP.
_OTHERS = 0xFFDF
#: Pixels of a run, on average, from which on runs are faster than pixels one by one.
_SHORT_RUN = 6
_NO_WEIGHTS, _NO_AREAS = np.empty(0), np.empty((2, 0, 0))
for _empty in (_NO_WEIGHTS, _NO_AREAS):
    _empty.setflags(write=False)


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


def resample(
    data: Image,
    variance: Image,
    dq: Flags,
    ymap: Floats,
    xmap: Floats,
    *,
    interpolation: str = "quintic",
    threshold: Fraction = 0.05,
    area_ratio: float = 1.0,
    origin: tuple[int, int] = (0, 0),
) -> tuple[Image, Image, Flags]:
    """Resample a window of one array onto the pixels of a map.

    data, variance, dq: (ny, nx) window whose pixel (0, 0) is the array's 0-based (y, x) = `origin`.
        With a margin of interpolation.kernel_margin the result does not depend on the window.
    ymap, xmap: array coordinates of each output pixel (pixel_map.pixel_map), NaN for none.
    interpolation: a key of interpolation.TAPS.
    threshold: a DQ bit is set where input pixels that have it hold more than this share of the
        absolute weight.
    area_ratio: area of an output pixel over that of the input pixel for which the flat is 1.

    Units and variance are those of the module's text. Outside the array: 0, 0, NO_DATA. Raises
    GdaskError where shapes differ.
    """
    if not ymap.shape == xmap.shape:
        raise GdaskError(f"ymap, xmap are {ymap.shape}, {xmap.shape}; expected one shape")
    ny, nx = ymap.shape
    worst = np.full(ymap.shape, np.iinfo(np.uint16).max, np.uint16)  # every pixel is replaced
    out = np.empty(ymap.shape, np.float32), np.empty(ymap.shape, np.float32), worst
    places = Places(
        as_kernel_input(ymap, np.float64),
        as_kernel_input(xmap, np.float64),
        *(_NO_WEIGHTS, 0, 0, 0, 0, float(origin[0]), float(origin[1]), _NO_AREAS, 0, 0),
    )
    options = interpolation, float(threshold), float(area_ratio)
    _resample((data, variance, dq), places, (ny, nx), options, (False, False), (0, 0), out)
    return out


def resample_onto(
    planes: tuple[Image, Image, Flags],
    origin: tuple[int, int],
    nodes: MapNodes,
    areas: tuple[Floats, int, int],
    window: Window,
    out: tuple[Image, Image, Flags],
    corner: tuple[int, int],
    *,
    interpolation: str,
    area_ratio: float,
    orientation: tuple[bool, bool],
    threshold: Fraction = 0.05,
) -> None:
    """Resample a window of one array as `resample` does, into planes that show a larger window.

    planes: data, variance and DQ of the array from its pixel `origin` on. nodes, areas: of the
    window (y1, y2, x1, x2) of the grid (grid.map_nodes, areas.area_nodes), whose factors are
    applied. out: planes of which pixels from `corner` (y, x) on are replaced where their DQ is
    higher. orientation: grid.orientation, for speed; values depend on it by their rounding.
    """
    y1, y2, x1, x2 = window
    places = Places(*nodes, y1, x1, float(origin[0]), float(origin[1]), *areas)
    options = interpolation, float(threshold), float(area_ratio)
    _resample(planes, places, (y2 - y1, x2 - x1), options, orientation, corner, out)


def _resample(
    planes: tuple[Image, Image, Flags],
    places: Places,
    shape: tuple[int, int],
    options: tuple[str, float, float],
    orientation: tuple[bool, bool],
    corner: tuple[int, int],
    out: tuple[Image, Image, Flags],
) -> None:
    """Lay the input out and resample it; see `resample` and `resample_onto`.

    options: interpolation, threshold, area_ratio.
    """
    interpolation, threshold, area_ratio = options
    data, variance = (as_kernel_input(plane, np.float32) for plane in planes[:2])
    dq = as_kernel_input(planes[2], np.uint16)
    if not data.shape == variance.shape == dq.shape:
        shapes = ", ".join(str(plane.shape) for plane in planes)
        raise GdaskError(f"data, variance, dq are {shapes}; expected one shape")
    table, series = kernel_weights(interpolation), kernel_series(interpolation)
    taps = table.shape[1]
    lengths = ((0,) * length for length in (taps, *series.shape[::2]))
    layout, border = empty_layout(data.shape, taps, *orientation)
    stride = max(abs(layout.step_y), abs(layout.step_x))
    lay_out(data, variance, dq, taps, border, stride, layout)
    kernel = Kernel(table, series, *lengths)
    work = empty_work(taps, max(places.ymap.shape[1], places.areas.shape[2]))
    flat = out[0].shape[1], out[0].ravel("A"), out[1].ravel("A"), out[2].ravel("A")
    if not all(np.shares_memory(a, b) for a, b in zip(out, flat[1:], strict=True)):
        raise GdaskError("the planes to be filled are not contiguous")
    _resample_rows(
        data, variance, layout, kernel, places, shape, threshold, area_ratio, corner, work, flat
    )


@njit(cache=True, nogil=True, borrows=True)
def _resample_rows(
    data: Image,
    variance: Image,
    layout: Layout,
    kernel: Kernel,
    places: Places,
    shape: tuple[int, int],
    threshold: float,
    area_ratio: float,
    corner: tuple[int, int],
    work: Work,
    out: tuple[int, Image, Image, Flags],
) -> None:
    """Resample pixels (ny, nx) = shape of the output into planes, from their pixel `corner` on.

    data, variance: the window as it is. layout: the same as `layout.lay_out` leaves it. A pixel of
    the planes is replaced where its DQ is higher than the new one. out: pixels of a row, planes.
    """
    taps, (width, flat, flat_var, flat_dq) = np.uint64(len(kernel.taps)), out
    factors, stride = (_2 * taps + np.uint64(6)) * _ROW, row_step(layout)
    parts = (shape[1] + BLOCK - 1) // BLOCK
    block = (shape[1] + parts - 1) // max(parts, 1)
    for j in range(shape[0]):
        y = places.y + j
        for i in range(0, shape[1], block):
            count, x = np.uint64(min(block, shape[1] - i)), places.x + i
            _find_places(places, j, i, count, work)
            inside = _find_first(data.shape[0], data.shape[1], count, taps, layout, work)
            number, flagged = _find_runs(count, layout.near, work)
            if inside:
                _weigh(kernel, count, work)
                if number * _SHORT_RUN < inside:
                    _sum_runs(layout.planes, layout.size, stride, number, kernel, work)
                else:
                    _sum_each(layout.planes, layout.size, stride, count, kernel, work)
                if places.areas.size:
                    last = min(x + block, places.x + shape[1])
                    nodes = places.areas, places.area_y, places.area_x
                    area_row(*nodes, y, x, last, work.nodes, work.rows, factors, factors + _ROW)
            sum_flagged(data, variance, layout, kernel, count, flagged, threshold, work)
            k = np.uint64((corner[0] + j) * width + corner[1] + i)
            _merge(count, taps, area_ratio, k, flat, flat_var, flat_dq, work)


@njit(nogil=True, **INNER)
def _find_places(places: Places, j: int, i: int, count: Unsigned, work: Work) -> None:
    """Find the coordinates in the window of the output pixels (j, i), (j, i + 1) ... of a block."""
    if not places.weights.size:
        for k in range(count):
            work.places[k] = places.ymap[j, i + np.int64(k)] - places.y0
            work.places[_ROW + k] = places.xmap[j, i + np.int64(k)] - places.x0
        return
    y, x = places.y + j, places.x + i
    for axis in range(2):
        nodes, origin = (places.xmap, places.x0) if axis else (places.ymap, places.y0)
        first = places.weights, places.first_y, places.first_x
        pixels = y, x, x + int(count)
        map_row(nodes, *first, *pixels, work.nodes, work.places, axis * (BLOCK + 16), origin)


@njit(nogil=True, **INNER)
def _find_first(
    ny: int, nx: int, count: Unsigned, taps: Unsigned, layout: Layout, work: Work
) -> int:
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


@njit(nogil=True, **INNER)
def _weigh(kernel: Kernel, count: Unsigned, work: Work) -> None:
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


@njit(nogil=True, **INNER)
def _find_runs(count: Unsigned, near: Flags, work: Work) -> tuple[Unsigned, Unsigned]:
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


@njit(nogil=True, **INNER)
def _sum_runs(
    planes: Image, size: int, stride: int, number: Unsigned, kernel: Kernel, work: Work
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


@njit(nogil=True, **INNER)
def _sum_each(
    planes: Image, size: int, stride: int, count: Unsigned, kernel: Kernel, work: Work
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


@njit(nogil=True, **INNER)
def _merge(
    count: Unsigned,
    taps: Unsigned,
    area_ratio: float,
    place: Unsigned,
    out: Image,
    out_var: Image,
    out_dq: Flags,
    work: Work,
) -> None:
    """Scale a block, and put its pixels from `place` on where those there have a higher DQ."""
    rows, value = work.rows, _2 * taps * _ROW
    along, factor = value + _4 * _ROW, value + np.uint64(6) * _ROW
    for i in range(count):
        # OVERLAP (32), the sky of few frames, must not lose against NO_DATA (16): twice the other
        # bits, and one for it.
        own, there = work.flags[i], out_dq[place + i]
        better = ((own & _OTHERS) << 1) + (own >> 5 & 1) < ((there & _OTHERS) << 1) + (
            there >> 5 & 1
        )
        new = np.float32(rows[value + i] * area_ratio) * rows[factor + i]
        squares = np.float64(rows[along + i]) * np.float64(rows[along + _ROW + i])
        noise = rows[value + _ROW + i] / squares * area_ratio
        noise_of_new = np.float32(noise) * rows[factor + _ROW + i]
        out[place + i] = new if better else out[place + i]
        out_var[place + i] = noise_of_new if better else out_var[place + i]
        out_dq[place + i] = work.flags[i] if better else out_dq[place + i]
