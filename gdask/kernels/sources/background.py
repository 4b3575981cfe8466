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
    data: np.ndarray, bad: np.ndarray, my: int, mx: int, samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Good pixels of each of my x mx cells on a regular stride, and how many they are.

    The rows of values, one for each cell, are padded with infinity; the number is -1 where too few
    pixels are good.
    """
    ny, nx = data.shape
    row_length = 0
    for j in range(my):
        for i in range(mx):
            h, w = (j + 1) * ny // my - j * ny // my, (i + 1) * nx // mx - i * nx // mx
            stride = max(1, int(np.sqrt(h * w / samples)))
            row_length = max(row_length, (h // stride + 1) * (w // stride + 1))
    values = np.full((my * mx, row_length), np.float32(np.inf))
    count = np.zeros(my * mx, np.int64)
    for j in range(my):
        y0, y1 = j * ny // my, (j + 1) * ny // my
        for i in range(mx):
            x0, x1 = i * nx // mx, (i + 1) * nx // mx
            stride = max(1, int(np.sqrt((y1 - y0) * (x1 - x0) / samples)))
            n, tried = 0, 0
            for y in range(y0, y1, stride):
                for x in range(x0, x1, stride):
                    tried += 1
                    if not bad[y, x]:
                        values[j * mx + i, n] = data[y, x]
                        n += 1
            count[j * mx + i] = n if n >= max(MIN_GOOD_SHARE * tried, MIN_GOOD_PIXELS) else -1
    return values, count


@njit(cache=True, nogil=True, error_model="numpy")
def _clipped_modes(values: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mode and sigma of each sorted row, clipped at 3 sigma about the median until it is stable."""
    level = np.full(count.size, np.nan)
    sigma = np.full(count.size, np.nan)
    for k in range(count.size):
        lo, hi = 0, count[k]
        for _ in range(20):
            if hi - lo < MIN_GOOD_PIXELS:
                break
            median = float(values[k, lo + (hi - lo) // 2])
            shift, square = 0.0, 0.0
            for i in range(lo, hi):
                shift += values[k, i] - median
            shift /= hi - lo
            for i in range(lo, hi):
                square += (values[k, i] - median - shift) ** 2
            sigma[k] = np.sqrt(square / (hi - lo))
            # Pearson's mode for clipped skewed counts (Bertin & Arnouts 1996, sec. 4); the median
            # where they are too skewed.
            level[k] = median - 1.5 * shift if abs(shift) < 0.3 * sigma[k] else median
            number = hi - lo
            while values[k, lo] < median - 3.0 * sigma[k]:
                lo += 1
            while values[k, hi - 1] > median + 3.0 * sigma[k]:
                hi -= 1
            if hi - lo == number:
                break
    return level, sigma


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
    values, count = _sample_cells(pixels, bad_pixels, my, mx, MAX_CELL_SAMPLES)
    values.sort(axis=1)
    level, sigma = _clipped_modes(values, count)
    return _fill_and_filter(level.reshape(my, mx)), _fill_and_filter(sigma.reshape(my, mx))


@njit(cache=True, nogil=True, error_model="numpy")
def _interpolate(mesh: np.ndarray, ny: int, nx: int) -> np.ndarray:
    """Compiled part of `interpolate_mesh`."""
    my, mx = mesh.shape
    out = np.empty((ny, nx), np.float32)
    left = np.empty(nx, np.int64)
    part = np.empty(nx)
    for x in range(nx):
        u = min(max((x + 0.5) * mx / nx - 0.5, 0.0), mx - 1.0)
        left[x] = min(int(u), max(mx - 2, 0))
        part[x] = u - left[x]
    row = np.empty(mx)
    for y in range(ny):
        v = min(max((y + 0.5) * my / ny - 0.5, 0.0), my - 1.0)
        j = min(int(v), max(my - 2, 0))
        t = v - j
        for i in range(mx):
            row[i] = mesh[j, i] * (1.0 - t) + mesh[min(j + 1, my - 1), i] * t
        for x in range(nx):
            i = left[x]
            out[y, x] = row[i] * (1.0 - part[x]) + row[min(i + 1, mx - 1)] * part[x]
    return out


def interpolate_mesh(mesh: np.ndarray, shape: tuple[int, int]) -> Image:
    """Interpolate a mesh of `background_mesh` to every pixel of an array of `shape` (ny, nx).

    The interpolation is bilinear between the centres of the cells; returns float32.
    """
    return _interpolate(np.ascontiguousarray(mesh, np.float64), shape[0], shape[1])
