"""Nearest neighbours between two lists of places, by cells: thousands of short searches, each without a tree."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _sorted_by_cell(
    x: np.ndarray, y: np.ndarray, x0: float, y0: float, cell: float, nx: int, ny: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows in order of their cells, and where each cell begins; places that are not finite are in none."""
    count = np.zeros(nx * ny + 1, np.int64)
    own = np.full(x.size, -1, np.int64)
    for k in range(x.size):
        if np.isfinite(x[k]) and np.isfinite(y[k]):
            own[k] = int((y[k] - y0) / cell) * nx + int((x[k] - x0) / cell)
            count[own[k] + 1] += 1
    start = np.cumsum(count)
    fill, rows = start.copy(), np.empty(start[-1], np.int64)
    for k in range(x.size):
        if own[k] >= 0:
            rows[fill[own[k]]] = k
            fill[own[k]] += 1
    return start, rows


@numba.njit(cache=True, nogil=True, error_model="numpy")
def nearest(
    xa: np.ndarray, ya: np.ndarray, xb: np.ndarray, yb: np.ndarray, radius: float
) -> np.ndarray:
    """The row of list A that is nearest to each place of list B and less than `radius` from it, -1 for none; of equals
    the first."""
    out = np.full(xb.size, -1, np.int64)
    x0, x1, y0, y1, n = np.inf, -np.inf, np.inf, -np.inf, 0
    for k in range(xa.size):
        if np.isfinite(xa[k]) and np.isfinite(ya[k]):
            x0, x1, y0, y1, n = (
                min(x0, xa[k]),
                max(x1, xa[k]),
                min(y0, ya[k]),
                max(y1, ya[k]),
                n + 1,
            )
    if n == 0 or not radius > 0:
        return out
    # Cells no smaller than the radius, of which there are about as many as places.
    cell = max(radius, np.sqrt((x1 - x0) * (y1 - y0) / n), (x1 - x0 + y1 - y0) / n)
    nx, ny = int((x1 - x0) / cell) + 1, int((y1 - y0) / cell) + 1
    start, rows = _sorted_by_cell(xa, ya, x0, y0, cell, nx, ny)
    for k in range(xb.size):
        u, v = xb[k] - x0, yb[k] - y0
        if not (-radius < u < x1 - x0 + radius and -radius < v < y1 - y0 + radius):
            continue
        best = radius * radius
        first, last = int(max(u - radius, 0.0) / cell), min(int((u + radius) / cell), nx - 1)
        for j in range(int(max(v - radius, 0.0) / cell), min(int((v + radius) / cell), ny - 1) + 1):
            for r in range(start[j * nx + first], start[j * nx + last + 1]):
                a = rows[r]
                d2 = (xa[a] - xb[k]) ** 2 + (ya[a] - yb[k]) ** 2
                if d2 < best or (d2 == best and 0 <= a < out[k]):
                    best, out[k] = d2, a
    return out
