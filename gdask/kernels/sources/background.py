"""Measure the sky of one array in the cells of a coarse mesh, and interpolate it to pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gdask.kernels.arrays import as_kernel_input
from gdask.kernels.compiled import njit
from gdask.model import late
from gdask.types import Image, Mask

if TYPE_CHECKING:
    from scipy import ndimage
else:
    ndimage = late("scipy.ndimage")

#: A mesh cell is estimated from at most about this many pixels, taken at a regular stride: the
#: error of the median is then below 1.25 sigma / sqrt(8192) = 0.014 sigma.
MAX_CELL_SAMPLES = 8192
#: Cells with a smaller share of good pixels than this take their neighbours' values ...
MIN_GOOD_SHARE = 0.1
#: ... and so do those with fewer good pixels than this.
MIN_GOOD_PIXELS = 8


@njit(cache=True, nogil=True, error_model="numpy")
def _sample_cells(
    data: np.ndarray, bad: np.ndarray, j: int, my: int, values: np.ndarray, count: np.ndarray
) -> None:
    """Set values to the good pixels of row j of the cells on a regular stride; count them.

    The rows of values, one for each cell, are padded with infinity; the count is -1 where too few
    pixels are good.
    """
    (ny, nx), mx = data.shape, count.size
    y0, y1 = j * ny // my, (j + 1) * ny // my
    for i in range(mx):
        x0, x1 = i * nx // mx, (i + 1) * nx // mx
        stride = max(1, int(np.sqrt((y1 - y0) * (x1 - x0) / MAX_CELL_SAMPLES)))
        n, tried = 0, 0
        for y in range(y0, y1, stride):
            for x in range(x0, x1, stride):
                values[i, n] = data[y, x]
                n += not bad[y, x]
            tried += (x1 - x0 + stride - 1) // stride
        count[i] = n if n >= max(MIN_GOOD_SHARE * tried, MIN_GOOD_PIXELS) else -1
        for k in range(n, values.shape[1]):
            values[i, k] = np.inf


@njit(cache=True, nogil=True, error_model="numpy")
def _clipped_modes(
    values: np.ndarray, count: np.ndarray, level: np.ndarray, sigma: np.ndarray
) -> None:
    """Set mode and sigma of each sorted row, clipped at 3 sigma about the median until stable."""
    for k in range(count.size):
        row, lo, hi = values[k], 0, count[k]
        for _ in range(20):
            if hi - lo < MIN_GOOD_PIXELS:
                break
            n, median = hi - lo, np.float64(row[lo + (hi - lo) // 2])
            # Four sums side by side: one would wait for each addition.
            s0, s1, s2, s3, q0, q1, q2, q3 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for i in range(lo, lo + n // 4 * 4, 4):
                d0, d1 = row[i] - median, row[i + 1] - median
                d2, d3 = row[i + 2] - median, row[i + 3] - median
                s0, s1, s2, s3 = s0 + d0, s1 + d1, s2 + d2, s3 + d3
                q0, q1, q2, q3 = q0 + d0 * d0, q1 + d1 * d1, q2 + d2 * d2, q3 + d3 * d3
            for i in range(lo + n // 4 * 4, hi):
                d0 = row[i] - median
                s0, q0 = s0 + d0, q0 + d0 * d0
            shift = ((s0 + s1) + (s2 + s3)) / n
            sigma[k] = np.sqrt(max(((q0 + q1) + (q2 + q3)) / n - shift * shift, 0.0))
            # Pearson's mode for clipped skewed counts (Bertin & Arnouts 1996, sec. 4); the median
            # where they are too skewed.
            level[k] = median - 1.5 * shift if abs(shift) < 0.3 * sigma[k] else median
            while row[lo] < median - 3.0 * sigma[k]:
                lo += 1
            while row[hi - 1] > median + 3.0 * sigma[k]:
                hi -= 1
            if hi - lo == n:
                break


def _fill_and_filter(mesh: np.ndarray) -> np.ndarray:
    """Fill cells without a value, and remove cells that a single bright star has pulled up.

    NaN cells take the value of the nearest good cell; zero where none is good. A 3x3 median then
    takes away what stands out.
    """
    missing = np.isnan(mesh)
    if missing.all():
        return np.zeros_like(mesh)
    if missing.any():
        nearest = ndimage.distance_transform_edt(
            missing, return_distances=False, return_indices=True
        )
        mesh = mesh[tuple(nearest)]
    return ndimage.median_filter(mesh, 3, mode="nearest") if min(mesh.shape) >= 3 else mesh


def background_mesh(data: Image, bad: Mask, cell_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Measure sky level and sky noise in cells of about `cell_size` pixels.

    data: (ny, nx) float32, any unit. bad: True where a pixel must not count (NaN data must be bad).
    Returns (level, sigma), each (my, mx) float64 in the unit of data: the clipped mode as
    SExtractor takes it, in cells that equally divide the array. sigma contains those stars that
    survive the clipping.
    """
    my, mx = (max(1, round(n / cell_size)) for n in data.shape)
    pixels, bad_pixels = as_kernel_input(data, np.float32), as_kernel_input(bad, np.bool_)
    level, sigma = np.full((my, mx), np.nan), np.full((my, mx), np.nan)
    height, width = -(-data.shape[0] // my), -(-data.shape[1] // mx)
    # A row of cells at a time stays in the cache.
    values, count = np.empty((mx, height * width + 1), np.float32), np.empty(mx, np.int64)
    for j in range(my):
        _sample_cells(pixels, bad_pixels, j, my, values, count)
        values.sort(axis=1)
        _clipped_modes(values, count, level[j], sigma[j])
    return _fill_and_filter(level), _fill_and_filter(sigma)


@njit(cache=True, nogil=True, error_model="numpy")
def mesh_columns(mx: int, nx: int) -> tuple[np.ndarray, np.ndarray]:
    """Give what `mesh_row` needs for rows of nx pixels on mx cells.

    They are the first pixel of each pair of neighbouring cells' centres (and nx behind the last),
    and the share of the right one of the pair at each pixel.
    """
    pairs = max(mx - 1, 1)
    first, part = np.zeros(pairs + 1, np.int64), np.empty(nx)
    for x in range(nx):
        u = min(max((x + 0.5) * mx / nx - 0.5, 0.0), mx - 1.0)
        left = min(int(u), pairs - 1)
        part[x] = u - left
        first[left + 1] = x + 1
    for i in range(pairs):
        first[i + 1] = max(first[i + 1], first[i])
    return first, part


@njit(cache=True, nogil=True, error_model="numpy")
def mesh_row(
    mesh: np.ndarray, y: int, ny: int, first: np.ndarray, part: np.ndarray, out: np.ndarray
) -> None:
    """Set out (nx, float32) to row y of a mesh, interpolated bilinearly to an array of ny rows.

    first, part: of `mesh_columns`.
    """
    my, mx = mesh.shape
    v = min(max((y + 0.5) * my / ny - 0.5, 0.0), my - 1.0)
    j = min(int(v), max(my - 2, 0))
    t, above = v - j, min(j + 1, my - 1)
    for i in range(first.size - 1):
        right = min(i + 1, mx - 1)
        a = mesh[j, i] * (1.0 - t) + mesh[above, i] * t
        b = mesh[j, right] * (1.0 - t) + mesh[above, right] * t
        piece, share = out[first[i] : first[i + 1]], part[first[i] : first[i + 1]]
        for x in range(piece.size):
            piece[x] = a * (1.0 - share[x]) + b * share[x]


@njit(cache=True, nogil=True, error_model="numpy")
def _interpolate(mesh: np.ndarray, ny: int, nx: int) -> np.ndarray:
    """Compiled part of `interpolate_mesh`."""
    out = np.empty((ny, nx), np.float32)
    first, part = mesh_columns(mesh.shape[1], nx)
    for y in range(ny):
        mesh_row(mesh, y, ny, first, part, out[y])
    return out


def interpolate_mesh(mesh: np.ndarray, shape: tuple[int, int]) -> Image:
    """Interpolate a mesh of `background_mesh` to every pixel of an array of `shape` (ny, nx).

    The interpolation is bilinear between the centres of the cells; returns float32.
    """
    return _interpolate(np.ascontiguousarray(mesh, np.float64), shape[0], shape[1])


@njit(cache=True, nogil=True, error_model="numpy")
def mesh_value(mesh: np.ndarray, y: int, x: int, ny: int, nx: int) -> np.float32:
    """Value (float32) of `interpolate_mesh` at one pixel of an array of (ny, nx)."""
    my, mx = mesh.shape
    u = min(max((x + 0.5) * mx / nx - 0.5, 0.0), mx - 1.0)
    v = min(max((y + 0.5) * my / ny - 0.5, 0.0), my - 1.0)
    i, j = min(int(u), max(mx - 2, 0)), min(int(v), max(my - 2, 0))
    s, t, right, above = u - i, v - j, min(i + 1, mx - 1), min(j + 1, my - 1)
    a = mesh[j, i] * (1.0 - t) + mesh[above, i] * t
    b = mesh[j, right] * (1.0 - t) + mesh[above, right] * t
    return np.float32(a * (1.0 - s) + b * s)


def mesh_values(mesh: np.ndarray, pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Values (float32) of `interpolate_mesh` at pixels alone, given by their flat indices."""
    places = np.divmod(pixels, shape[1])
    low, high, part = [], [], []
    for place, cells, size in zip(places, mesh.shape, shape, strict=True):
        v = np.clip((place + 0.5) * cells / size - 0.5, 0.0, cells - 1.0)
        left = np.minimum(v.astype(int), max(cells - 2, 0))
        low.append(left)
        high.append(np.minimum(left + 1, cells - 1))
        part.append(v - left)
    t, s = part
    a = mesh[low[0], low[1]] * (1.0 - t) + mesh[high[0], low[1]] * t
    b = mesh[low[0], high[1]] * (1.0 - t) + mesh[high[0], high[1]] * t
    return (a * (1.0 - s) + b * s).astype(np.float32)
