"""Median levels of an array in cells of the sky, by which `surfaces` matches frames."""

from __future__ import annotations

import numpy as np

from gdask.kernels.arrays import as_kernel_input
from gdask.kernels.compiled import njit
from gdask.model import GdaskError
from gdask.types import Image, Mask

#: Bins of the histogram that finds the quartiles of a cell, and values of the sample that sets
#: its range.
CELL_BINS, SAMPLE_VALUES = 1024, 64


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
