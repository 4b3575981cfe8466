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
def _sort_by_cell(
    data: np.ndarray, good: np.ndarray, cells: np.ndarray, block: int, first: int, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Good values sorted by cell, and the place where each cell's values begin."""
    ny, nx = data.shape
    start = np.zeros(number + 1, np.int64)
    for y in range(ny):
        row = min(y // block, cells.shape[0] - 1)
        for x in range(nx):
            cell = cells[row, min(x // block, cells.shape[1] - 1)]
            if cell >= 0 and good[y, x] and np.isfinite(data[y, x]):
                start[cell - first + 1] += 1
    for k in range(number):
        start[k + 1] += start[k]
    next_place = start[:-1].copy()
    values = np.empty(start[number], np.float32)
    for y in range(ny):
        row = min(y // block, cells.shape[0] - 1)
        for x in range(nx):
            cell = cells[row, min(x // block, cells.shape[1] - 1)]
            if cell >= 0 and good[y, x] and np.isfinite(data[y, x]):
                values[next_place[cell - first]] = data[y, x]
                next_place[cell - first] += 1
    return values, start


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
def _quartiles(values: np.ndarray, start: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Lower quartile, median and upper quartile of each cell found.

    The median of an even number is the mean of the two middle values.
    """
    out = np.zeros((found.size, 3))
    for k in range(found.size):
        low, high = start[found[k]], start[found[k] + 1] - 1
        n = high - low + 1
        left, right = low + (n - 1) // 2, low + n // 2
        below, above = low + n // 4, low + (3 * n) // 4
        out[k, 1] = 0.5 * (_select(values, low, high, left) + _select(values, left, high, right))
        out[k, 0] = _select(values, low, left, below)
        out[k, 2] = _select(values, right, high, above)
    return out


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
    first, number = int(inside.min()), int(inside.max() - inside.min()) + 1
    values, start = _sort_by_cell(
        as_kernel_input(data, np.float32),
        as_kernel_input(good, np.bool_),
        as_kernel_input(cells, np.int32),
        block,
        first,
        number,
    )
    found = np.flatnonzero(np.diff(start) >= min_pixels)
    quartiles, n = _quartiles(values, start, found), np.diff(start)[found]
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
