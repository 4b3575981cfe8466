"""The sky of one array as a coarse mesh, and the mesh back at every pixel."""

from __future__ import annotations

import numba
import numpy as np
from scipy.ndimage import distance_transform_edt, median_filter

from gdask.kernels.arrays import plain
from gdask.types import Image, Mask

#: A mesh cell is estimated from at most about this many pixels, taken at a regular stride: the error of the median
#: is then below 1.25 sigma / sqrt(8192) = 0.014 sigma.
SAMPLES = 8192
#: Cells with a smaller share of good pixels than this take their neighbours' values.
MIN_GOOD = 0.1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _sample(
    data: np.ndarray, bad: np.ndarray, my: int, mx: int, samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Good pixels of each cell on a regular stride, padded with infinity, and how many; -1 where too few are good."""
    ny, nx = data.shape
    most = 0
    for j in range(my):
        for i in range(mx):
            h, w = (j + 1) * ny // my - j * ny // my, (i + 1) * nx // mx - i * nx // mx
            stride = max(1, int(np.sqrt(h * w / samples)))
            most = max(most, (h // stride + 1) * (w // stride + 1))
    values = np.full((my * mx, most), np.float32(np.inf))
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
            count[j * mx + i] = n if n >= max(MIN_GOOD * tried, 8) else -1
    return values, count


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _clip(values: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mode and sigma of each sorted row, clipped at 3 sigma about the median until nothing changes."""
    level = np.full(count.size, np.nan)
    sigma = np.full(count.size, np.nan)
    for k in range(count.size):
        lo, hi = 0, count[k]
        for _ in range(20):
            if hi - lo < 8:
                break
            middle = float(values[k, lo + (hi - lo) // 2])
            shift, square = 0.0, 0.0
            for i in range(lo, hi):
                shift += values[k, i] - middle
            shift /= hi - lo
            for i in range(lo, hi):
                square += (values[k, i] - middle - shift) ** 2
            sigma[k] = np.sqrt(square / (hi - lo))
            # Pearson's mode for clipped skewed counts (Bertin & Arnouts 1996, sec. 4); the median where too skewed.
            level[k] = middle - 1.5 * shift if abs(shift) < 0.3 * sigma[k] else middle
            before = hi - lo
            while values[k, lo] < middle - 3.0 * sigma[k]:
                lo += 1
            while values[k, hi - 1] > middle + 3.0 * sigma[k]:
                hi -= 1
            if hi - lo == before:
                break
    return level, sigma


def _fill(plane: np.ndarray) -> np.ndarray:
    """NaN cells take the value of the nearest good cell; zero where none is good. A 3x3 median then removes cells
    that a single bright star has pulled up."""
    missing = np.isnan(plane)
    if missing.all():
        return np.zeros_like(plane)
    if missing.any():
        nearest = distance_transform_edt(missing, return_distances=False, return_indices=True)
        plane = plane[tuple(nearest)]
    return median_filter(plane, 3, mode="nearest") if min(plane.shape) >= 3 else plane


def background_mesh(data: Image, bad: Mask, mesh: int) -> tuple[np.ndarray, np.ndarray]:
    """Sky level and sky noise in cells of about `mesh` pixels.

    data (ny, nx) float32, any unit; bad: True where a pixel must not count (NaN data must be bad).
    Returns (level, sigma), each (my, mx) float64 in the unit of data: the clipped mode as SExtractor takes it, cells
    equally dividing the array. sigma contains what stars survive the clipping.
    """
    my, mx = (max(1, round(n / mesh)) for n in data.shape)
    values, count = _sample(plain(data, np.float32), plain(bad, np.bool_), my, mx, SAMPLES)
    values.sort(axis=1)
    level, sigma = _clip(values, count)
    return _fill(level.reshape(my, mx)), _fill(sigma.reshape(my, mx))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _spread(plane: np.ndarray, ny: int, nx: int) -> np.ndarray:
    my, mx = plane.shape
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
            row[i] = plane[j, i] * (1.0 - t) + plane[min(j + 1, my - 1), i] * t
        for x in range(nx):
            i = left[x]
            out[y, x] = row[i] * (1.0 - part[x]) + row[min(i + 1, mx - 1)] * part[x]
    return out


def spread_mesh(plane: np.ndarray, shape: tuple[int, int]) -> Image:
    """A mesh of `background_mesh` at every pixel of an array of `shape`: bilinear between cell centres, float32."""
    return _spread(np.ascontiguousarray(plane, np.float64), shape[0], shape[1])
