"""Make the sky levels of frames agree where they overlap, so that no step shows at a frame's edge.

The sky is cut into cells. Every array of every frame gives the median of its unmasked pixels in
each sky cell that it covers. Two frames see the same stars in the same cell, so the difference of
their medians is the difference of their levels, whatever the cell holds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gdask.kernels.arrays import as_kernel_input
from gdask.kernels.compiled import njit
from gdask.model import GdaskError
from gdask.types import Electrons, Image, Mask

#: Cells whose level is off by more than the first limit count less (Huber's weights), beyond the
#: second not at all.
HUBER_SIGMA, REJECT_SIGMA = 2.5, 6.0
#: Rounds of the robust weights.
WEIGHT_ROUNDS = 8
#: Most steps of the conjugate gradients, and the relative size of the gradient that ends them.
MAX_GRADIENT_STEPS, GRADIENT_TOLERANCE = 1000, 1e-12
#: Bins of the histogram that finds the quartiles of a cell, and values of the sample that sets
#: its range.
CELL_BINS, SAMPLE_VALUES = 1024, 64


class LevelOffsets(NamedTuple):
    """Offsets that make levels agree, for each unit (a frame, or an array of a frame).

    offset: what to subtract, in the unit of the data. group: number of the unit's connected group;
    the weighted mean offset of each group is zero. cells: how many shared cells of the unit were
    not rejected. rms: scatter of the cells' levels after the solution.
    """

    offset: np.ndarray
    group: np.ndarray
    cells: np.ndarray
    rms: Electrons


@njit(cache=True, nogil=True, error_model="numpy")
def _select(v: np.ndarray, low: int, high: int, k: int) -> float:
    """Find the k-th smallest of v[low..high] (k counted from v[0]) by Hoare's method.

    This reorders v in place: smaller values come first.
    """
    while low < high:
        pivot, i, j = v[(low + high) // 2], low, high
        while i <= j:
            while v[i] < pivot:
                i += 1
            while pivot < v[j]:
                j -= 1
            if i <= j:
                v[i], v[j] = v[j], v[i]
                i += 1
                j -= 1
        if k <= j:
            high = j
        elif k >= i:
            low = i
        else:
            break
    return np.float64(v[k])  # float() would keep single precision here


@njit(cache=True, nogil=True, error_model="numpy")
def _blocks_by_cell(cells: np.ndarray, first: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of the blocks, sorted by cell, and the place where each cell's blocks begin."""
    start = np.zeros(number + 1, np.int64)
    for row in cells:
        for cell in row:
            if cell >= 0:
                start[cell - first + 1] += 1
    for k in range(number):
        start[k + 1] += start[k]
    blocks = np.empty(start[number], np.int64)
    place = start.copy()
    for j in range(cells.shape[0]):
        for i in range(cells.shape[1]):
            cell = cells[j, i]
            if cell >= 0:
                blocks[place[cell - first]] = j * cells.shape[1] + i
                place[cell - first] += 1
    return blocks, start


@njit(cache=True, nogil=True, error_model="numpy")
def _gather_cell(
    data: np.ndarray,
    good: np.ndarray,
    blocks: np.ndarray,
    start: int,
    stop: int,
    block: int,
    values: np.ndarray,
) -> int:
    """Copy the good pixels of blocks[start:stop] to values; returns how many they are."""
    ny, nx = data.shape
    across = (nx + block - 1) // block
    n = 0
    while start < stop:
        length = 1  # blocks side by side are read together, row by row
        while (
            start + length < stop
            and blocks[start + length] == blocks[start] + length
            and blocks[start + length] % across > 0
        ):
            length += 1
        y0, x0 = blocks[start] // across * block, blocks[start] % across * block
        for y in range(y0, min(y0 + block, ny)):
            for x in range(x0, min(x0 + length * block, nx)):
                value = data[y, x]
                values[n] = value
                n += good[y, x] & np.isfinite(value)
        start += length
    return n


@njit(cache=True, nogil=True, error_model="numpy")
def _quartiles(
    values: np.ndarray, n: int, bins: np.ndarray, counts: np.ndarray, out: np.ndarray
) -> None:
    """Set out to the lower quartile, median and upper quartile of values[:n], exactly.

    The median of an even number is the mean of the two middle values. A histogram between two
    values of a sample says in which bins the four ranks lie: only the values of these are
    selected from. It reorders values. bins (n) and counts: work arrays.
    """
    sample, few = np.empty(SAMPLE_VALUES, np.float32), min(n, SAMPLE_VALUES)
    for i in range(few):
        value, k = values[i * n // few], i
        while k > 0 and sample[k - 1] > value:
            sample[k] = sample[k - 1]
            k -= 1
        sample[k] = value
    low, high = sample[few // 16], sample[few - 1 - few // 16]
    scale = np.float32(CELL_BINS) / (high - low) if high > low else np.float32(0.0)
    last = np.float32(CELL_BINS - 1)
    for i in range(n):
        # Rounding may move a value to the next bin, but never past another value.
        u = (values[i] - low) * scale
        u = u if u > 0 else np.float32(0.0)
        bins[i] = np.uint16(min(last, u))
    counts[:] = 0
    for i in range(n):
        counts[bins[i]] += 1
    ranks, place, found = np.zeros(4, np.int64), np.zeros(4, np.int64), np.zeros(4)
    ranks[0], ranks[1], ranks[2], ranks[3] = n // 4, (n - 1) // 2, n // 2, (3 * n) // 4
    below, kept, q = 0, 0, 0
    for k in range(CELL_BINS):
        wanted = False
        while q < 4 and ranks[q] < below + counts[k]:
            place[q] = kept + ranks[q] - below
            wanted = True
            q += 1
        below += counts[k]
        if wanted:
            kept += counts[k]
        counts[k] = wanted
    kept = 0
    for i in range(n):
        if counts[bins[i]]:
            values[kept] = values[i]
            kept += 1
    for q in range(4):
        found[q] = _select(values, 0, kept - 1, place[q])
    out[0], out[1], out[2] = found[0], 0.5 * (found[1] + found[2]), found[3]


@njit(cache=True, nogil=True, error_model="numpy")
def _cell_quartiles(
    data: np.ndarray,
    good: np.ndarray,
    cells: np.ndarray,
    block: int,
    first: int,
    number: int,
    fewest: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Quartiles (number, 3) and number of the good values of the cells from `first` on.

    Those of cells with fewer than `fewest` values are 0.
    """
    blocks, start = _blocks_by_cell(cells, first, number)
    size = 0
    for k in range(number):
        size = max(size, start[k + 1] - start[k])
    values = np.empty(size * block * block, np.float32)
    bins, counts = np.empty(values.size, np.uint16), np.empty(CELL_BINS, np.int32)
    quartiles, found = np.zeros((number, 3)), np.zeros(number, np.int64)
    for k in range(number):
        found[k] = _gather_cell(data, good, blocks, start[k], start[k + 1], block, values)
        if found[k] >= fewest:
            _quartiles(values, found[k], bins, counts, quartiles[k])
    return quartiles, found


def sky_cell_medians(
    data: Image, good: Mask, cells: np.ndarray, *, min_pixels: int = 64
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Median level of one array in each sky cell.

    data: float32 (ny, nx). good: True where a pixel counts (not masked, not an object). cells:
    int32 (my, mx), number of the sky cell of each block of ceil(ny / my) pixels squared, negative
    where there is none (with my = ny: of each pixel).
    Returns, for the cells with at least min_pixels good pixels: cell number (rising), median,
    standard error of the median (1.2533 sigma / sqrt(n), sigma from the inter-quartile range),
    and n. Raises GdaskError where the shapes do not agree.
    """
    ny, nx = data.shape
    block = max(1, -(-ny // cells.shape[0]))
    if good.shape != data.shape or -(-nx // block) != cells.shape[1]:
        raise GdaskError(
            f"sky_cell_medians: data {data.shape}, good {good.shape} and cells {cells.shape} "
            "do not agree"
        )
    inside = cells[cells >= 0]
    if not inside.size:
        return np.zeros(0, np.int64), np.zeros(0), np.zeros(0), np.zeros(0, np.int64)
    first, count = int(inside.min()), int(np.ptp(inside)) + 1
    quartiles, number = _cell_quartiles(
        as_kernel_input(data, np.float32),
        as_kernel_input(good, np.bool_),
        as_kernel_input(cells, np.int32),
        block,
        first,
        count,
        max(min_pixels, 1),
    )
    found = np.flatnonzero(number >= max(min_pixels, 1))
    quartiles, n = quartiles[found], number[found]
    # A Gaussian's quartiles are 0.6745 sigma from its centre. The error of a median is that of a
    # mean times sqrt(pi / 2) = 1.2533.
    error = 1.2533 * (quartiles[:, 2] - quartiles[:, 0]) / (2 * 0.6745) / np.sqrt(n)
    return found + first, quartiles[:, 1], error, n


@njit(cache=True, nogil=True)
def _connected_groups(unit: np.ndarray, cell: np.ndarray, units: int, cells: int) -> np.ndarray:
    """Number of each unit's group: units are connected that share a cell, also through others."""
    parent = np.arange(units)
    first_unit = np.full(cells, -1, np.int64)
    for m in range(unit.size):
        a = unit[m]
        if first_unit[cell[m]] < 0:
            first_unit[cell[m]] = a
        b = first_unit[cell[m]]
        while parent[a] != a:
            a = parent[a]
        while parent[b] != b:
            b = parent[b]
        parent[max(a, b)] = min(a, b)
    for k in range(units):
        while parent[k] != parent[parent[k]]:
            parent[k] = parent[parent[k]]
    return parent


@njit(cache=True, nogil=True, error_model="numpy")
def _cell_means(
    cell: np.ndarray, value: np.ndarray, weight: np.ndarray, cells: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean of the values in each cell, and the sum of the weights."""
    total, norm = np.zeros(cells), np.zeros(cells)
    for m in range(cell.size):
        total[cell[m]] += weight[m] * value[m]
        norm[cell[m]] += weight[m]
    for k in range(cells):
        if norm[k] > 0:
            total[k] /= norm[k]
    return total, norm


@njit(cache=True, nogil=True, error_model="numpy")
def _unit_gradient(
    unit: np.ndarray,
    cell: np.ndarray,
    value: np.ndarray,
    weight: np.ndarray,
    units: int,
    cells: int,
) -> np.ndarray:
    """For each unit, the sum of weight * (value - mean of the cell)."""
    mean, _ = _cell_means(cell, value, weight, cells)
    out = np.zeros(units)
    for m in range(unit.size):
        out[unit[m]] += weight[m] * (value[m] - mean[cell[m]])
    return out


def _least_squares(
    unit: np.ndarray,
    cell: np.ndarray,
    level: np.ndarray,
    weight: np.ndarray,
    units: int,
    cells: int,
) -> np.ndarray:
    """Offsets of the units by conjugate gradients from zero.

    Every sum has one order, so that the bits are always the same.
    """
    offset = np.zeros(units)
    norm = np.maximum(np.bincount(unit, weight, minlength=units), 1e-300)
    residual = _unit_gradient(unit, cell, level, weight, units, cells)
    scaled = residual / norm
    direction, size = scaled, float((residual * scaled).sum())
    first_size = size
    for _ in range(MAX_GRADIENT_STEPS):
        if not size > GRADIENT_TOLERANCE**2 * first_size:
            break
        change = _unit_gradient(unit, cell, direction[unit], weight, units, cells)
        curvature = float((direction * change).sum())
        if not curvature > 0:
            break
        offset = offset + size / curvature * direction
        residual = residual - size / curvature * change
        scaled = residual / norm
        size, last_size = float((residual * scaled).sum()), size
        direction = scaled + size / last_size * direction
    return offset


def solve_levels(
    unit: np.ndarray, cell: np.ndarray, level: np.ndarray, error: np.ndarray
) -> LevelOffsets:
    """Find the offsets that make the levels of the units agree in every cell that they share.

    There is one row per unit and cell: unit (0..n-1: a frame, or an array of a frame), cell number,
    median level and its error, as `sky_cell_medians` gives them. This is weighted least squares
    with robust weights: a cell that a cluster of bad pixels or a moving object spoils in one frame
    does not count. Each connected group keeps its weighted mean level; a unit that shares nothing
    keeps its own (offset 0).
    """
    unit, cell = np.asarray(unit, np.int64), np.asarray(cell, np.int64)
    units = int(unit.max()) + 1 if len(unit) else 0
    numbers, cell = np.unique(cell, return_inverse=True)
    cells, level = len(numbers), np.asarray(level, float)
    variance = np.maximum(np.square(np.asarray(error, float)), 1e-12)
    shared = np.bincount(cell, minlength=cells)[cell] >= 2
    unit, cell, level = unit[shared], cell[shared].astype(np.int64), level[shared]
    full_weight = 1 / variance[shared]
    weight, offset, rms = full_weight, np.zeros(units), 0.0
    for _ in range(WEIGHT_ROUNDS if len(unit) else 0):
        offset = _least_squares(unit, cell, level, weight, units, cells)
        rest = level - offset[unit]
        positive_weight = np.maximum(weight, 1e-6 * full_weight)
        mean, norm = _cell_means(cell, rest, positive_weight, cells)
        # A value pulls the mean of its own cell: this share of its deviation is left.
        left = np.maximum(1 - positive_weight / norm[cell], 0.02)
        rest = rest - mean[cell]
        rms = float(np.sqrt((weight * rest**2 / left).sum() / weight.sum()))
        deviation = np.abs(rest) * np.sqrt(full_weight / left)
        # The noise of the cells may exceed what the medians' errors say (residual structure of the
        # flat field): scale by it.
        deviation = deviation / max(float(np.median(deviation)) / 0.6745, 1.0)
        huber = np.minimum(1.0, HUBER_SIGMA / np.maximum(deviation, 1e-9))
        weight = np.where(deviation > REJECT_SIGMA, 0.0, full_weight * huber)
    group = _connected_groups(unit, cell, units, cells)
    norm = np.bincount(unit, full_weight, minlength=units)
    group_norm = np.maximum(np.bincount(group, norm, minlength=units), 1e-300)
    mean = np.bincount(group, offset * norm, minlength=units) / group_norm
    counted = np.bincount(unit, weight > 0, minlength=units).astype(np.int64)
    return LevelOffsets(offset - mean[group], group, counted, rms)
