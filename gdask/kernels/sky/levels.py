"""Sky levels of frames made consistent where they overlap, so that no step shows at a frame's edge.

The sky is cut into cells. Every array of every frame gives the median of its unmasked pixels in each cell that it
covers; two frames see the same stars in the same cell, so that differences within a cell tell the difference of their
levels whatever the cell holds.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from gdask.kernels.arrays import plain
from gdask.model import GdaskError
from gdask.types import Electrons, Image, Mask

#: Cells whose difference lies beyond this many sigma count less (Huber), beyond the second not at all.
HUBER, REJECT = 2.5, 6.0
ROUNDS, MAX_STEPS, TOLERANCE = 8, 1000, 1e-12


class Levels(NamedTuple):
    """offset: what to subtract from each unit (a frame, or an array of a frame), data's unit; group: number of the
    connected group of each unit, each with weighted mean offset zero; cells: shared cells that each unit had; rms:
    scatter of the cells' levels after the solution."""

    offset: np.ndarray
    group: np.ndarray
    cells: np.ndarray
    rms: Electrons


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _gather(
    data: np.ndarray, good: np.ndarray, cells: np.ndarray, block: int, first: int, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Good values sorted by cell, and where each cell's begin."""
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
    at = start[:-1].copy()
    values = np.empty(start[number], np.float32)
    for y in range(ny):
        row = min(y // block, cells.shape[0] - 1)
        for x in range(nx):
            cell = cells[row, min(x // block, cells.shape[1] - 1)]
            if cell >= 0 and good[y, x] and np.isfinite(data[y, x]):
                values[at[cell - first]] = data[y, x]
                at[cell - first] += 1
    return values, start


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _select(v: np.ndarray, low: int, high: int, k: int) -> float:
    """The k-th smallest of v[low..high], k counted from v[0]; reorders v so that smaller ones come first (Hoare)."""
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


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _quartiles(values: np.ndarray, start: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Lower quartile, median (mean of the two middle ones) and upper quartile of each cell found."""
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


def cell_medians(
    data: Image, good: Mask, cells: np.ndarray, *, min_pixels: int = 64
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Median level of one array in each sky cell.

    data float32 (ny, nx); good: True where a pixel counts (not masked, not an object); cells int32 (my, mx): the sky
    cell of each block of ceil(ny / my) pixels squared, negative where there is none (my = ny: of each pixel).
    Returns, for the cells with at least min_pixels good pixels: cell number (rising), median, standard error of the
    median (1.2533 sigma / sqrt(n), sigma from the inter-quartile range), and n.
    """
    ny, nx = data.shape
    block = max(1, -(-ny // cells.shape[0]))
    if good.shape != data.shape or -(-nx // block) != cells.shape[1]:
        raise GdaskError(
            f"cell_medians: data {data.shape}, good {good.shape} and cells {cells.shape} do not agree"
        )
    inside = cells[cells >= 0]
    if not inside.size:
        return np.zeros(0, np.int64), np.zeros(0), np.zeros(0), np.zeros(0, np.int64)
    first, number = int(inside.min()), int(inside.max() - inside.min()) + 1
    planes = plain(data, np.float32), plain(good, np.bool_), plain(cells, np.int32)
    values, start = _gather(*planes, block, first, number)
    found = np.flatnonzero(np.diff(start) >= min_pixels)
    quartiles, n = _quartiles(values, start, found), np.diff(start)[found]
    # Half-way quartile distance of a Gaussian: 0.6745 sigma. Efficiency of the median: sqrt(pi / 2) = 1.2533.
    error = 1.2533 * (quartiles[:, 2] - quartiles[:, 0]) / (2 * 0.6745) / np.sqrt(n)
    return found + first, quartiles[:, 1], error, n


@numba.njit(cache=True, nogil=True)
def _groups(unit: np.ndarray, cell: np.ndarray, units: int, cells: int) -> np.ndarray:
    """Number of the connected group of each unit: units that share a cell, and so on."""
    parent = np.arange(units)
    holder = np.full(cells, -1, np.int64)
    for m in range(unit.size):
        a = unit[m]
        if holder[cell[m]] < 0:
            holder[cell[m]] = a
        b = holder[cell[m]]
        while parent[a] != a:
            a = parent[a]
        while parent[b] != b:
            b = parent[b]
        parent[max(a, b)] = min(a, b)
    for k in range(units):
        while parent[k] != parent[parent[k]]:
            parent[k] = parent[parent[k]]
    return parent


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _cell_means(
    cell: np.ndarray, value: np.ndarray, weight: np.ndarray, cells: int
) -> tuple[np.ndarray, np.ndarray]:
    total, norm = np.zeros(cells), np.zeros(cells)
    for m in range(cell.size):
        total[cell[m]] += weight[m] * value[m]
        norm[cell[m]] += weight[m]
    for k in range(cells):
        if norm[k] > 0:
            total[k] /= norm[k]
    return total, norm


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _pull(
    unit: np.ndarray,
    cell: np.ndarray,
    value: np.ndarray,
    weight: np.ndarray,
    units: int,
    cells: int,
) -> np.ndarray:
    """Per unit, the sum of weight x (value - mean of the cell)."""
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
    """Offsets by conjugate gradients from zero: every sum in one order, so always the same bits."""
    offset = np.zeros(units)
    norm = np.maximum(np.bincount(unit, weight, minlength=units), 1e-300)
    r = _pull(unit, cell, level, weight, units, cells)
    z = r / norm
    d, rz = z, float((r * z).sum())
    first = rz
    for _ in range(MAX_STEPS):
        if not rz > TOLERANCE**2 * first:
            break
        ad = _pull(unit, cell, d[unit], weight, units, cells)
        along = float((d * ad).sum())
        if not along > 0:
            break
        offset, r = offset + rz / along * d, r - rz / along * ad
        z = r / norm
        rz, before = float((r * z).sum()), rz
        d = z + rz / before * d
    return offset


def solve_levels(
    unit: np.ndarray, cell: np.ndarray, level: np.ndarray, error: np.ndarray
) -> Levels:
    """Offsets that make the levels of the units agree in every cell that they share.

    One row per unit and cell: unit (0..n-1: a frame, or an array of a frame), cell number, median level and its error
    (as `cell_medians` gives them). Weighted least squares with robust weights: a cell that a bad pixel cluster or a
    moving object spoils in one frame does not count. Each connected group keeps its weighted mean level; a unit that
    shares nothing keeps its own (offset 0).
    """
    unit, cell = np.asarray(unit, np.int64), np.asarray(cell, np.int64)
    units = int(unit.max()) + 1 if len(unit) else 0
    numbers, cell = np.unique(cell, return_inverse=True)
    level, variance = (
        np.asarray(level, float),
        np.maximum(np.square(np.asarray(error, float)), 1e-12),
    )
    shared = np.bincount(cell, minlength=len(numbers))[cell] >= 2
    u, c, v, base = unit[shared], cell[shared].astype(np.int64), level[shared], 1 / variance[shared]
    weight, offset, rms = base, np.zeros(units), 0.0
    for _ in range(ROUNDS if len(u) else 0):
        offset = _least_squares(u, c, v, weight, units, len(numbers))
        rest = v - offset[u]
        mean, norm = _cell_means(c, rest, np.maximum(weight, 1e-6 * base), len(numbers))
        left = np.maximum(1 - np.maximum(weight, 1e-6 * base) / norm[c], 0.02)
        rest = rest - mean[c]
        rms = float(np.sqrt((weight * rest**2 / left).sum() / weight.sum()))
        # The cells' own noise may exceed what the medians say (residual flat-field structure): scale by it.
        t = np.abs(rest) * np.sqrt(base / left)
        t = t / max(float(np.median(t)) / 0.6745, 1.0)
        weight = np.where(t > REJECT, 0.0, base * np.minimum(1.0, HUBER / np.maximum(t, 1e-9)))
    group = _groups(u, c, units, len(numbers))
    norm = np.bincount(u, base, minlength=units)
    whole = np.maximum(np.bincount(group, norm, minlength=units), 1e-300)
    mean = np.bincount(group, offset * norm, minlength=units) / whole
    return Levels(
        offset - mean[group],
        group,
        np.bincount(u, weight > 0, minlength=units).astype(np.int64),
        rms,
    )
