"""Where each output pixel looks in an array: the exact chain on sparse nodes, cubic Lagrange interpolation between.

Nodes lie on a lattice anchored at the grid's pixel (0, 0) and a pixel always uses the same 4 x 4 of them, computed
point by point: a pixel's coordinates have the same bits whatever the tile.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gdask.kernels.geometry.grid import Grid, Window, grid_sky_point, pack_grid
from gdask.kernels.geometry.projection import Floats, Geometry, array_point, pack
from gdask.types import Pixels

#: Pixels between nodes: GSAOI's distortion is then followed to 1e-8 pixel.
SPACING = 32
#: The most by which a sampled map may be wrong (pixels).
MOST_ERROR: Pixels = 1e-4


def pixel_map(
    geometry: Geometry, grid: Grid, window: Window, spacing: int = SPACING
) -> tuple[Floats, Floats]:
    """Array coordinates (ymap, xmap) that the pixels of a window of the grid show: 0-based frame pixels, float64.

    window: (y1, y2, x1, x2). NaN where the inverse distortion does not converge, far outside the array.
    """
    y1, y2, x1, x2 = window
    first_y, first_x = y1 // spacing - 1, x1 // spacing - 1
    count = ((y2 - 1) // spacing + 3 - first_y, (x2 - 1) // spacing + 3 - first_x)
    ynodes, xnodes = _nodes(
        *pack(geometry), pack_grid(grid), first_y, first_x, count[0], count[1], spacing
    )
    weights = _lagrange(np.arange(spacing) / spacing)
    place = weights, first_y, first_x, y1, y2, x1, x2
    return _interpolate(ynodes, *place), _interpolate(xnodes, *place)


def exact_map(geometry: Geometry, grid: Grid, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Array coordinates (y, x) of the grid pixels (x, y), 1-D, by the exact chain."""
    return _exact(*pack(geometry), pack_grid(grid), x, y)


def map_error(geometry: Geometry, grid: Grid, window: Window, spacing: int = SPACING) -> Pixels:
    """The greatest error (pixels) of `pixel_map` over a window, at points between the nodes, where it is greatest.

    NaN pixels do not count; 0 if nothing else is there.
    """
    y1, y2, x1, x2 = window
    step = max(1, spacing // 2)
    x, y = np.meshgrid(_between(x1, x2, step), _between(y1, y2, step))
    exact = exact_map(geometry, grid, x.ravel().astype(float), y.ravel().astype(float))
    worst = 0.0
    for sampled, truth in zip(pixel_map(geometry, grid, window, spacing), exact, strict=True):
        difference = np.abs(sampled[y.ravel() - y1, x.ravel() - x1] - truth)
        worst = max(worst, float(np.max(difference, initial=0.0, where=np.isfinite(difference))))
    return worst


def _between(start: int, stop: int, step: int) -> np.ndarray:
    """Odd multiples of half a node spacing in [start, stop), and the ends."""
    inner = np.arange(start // step * step, stop, step)
    return np.unique(
        np.concatenate([inner[(inner >= start) & (inner // step % 2 == 1)], [start, stop - 1]])
    )


def _lagrange(t: Floats) -> Floats:
    """Weights (t.size, 4) of nodes at -1, 0, 1, 2 for points t in [0, 1): the cubic through four nodes."""
    a, b, c, d = t + 1, t, t - 1, t - 2
    return np.stack([-b * c * d / 6, a * c * d / 2, -a * b * d / 2, a * b * c / 6], axis=1)


@njit(cache=True, nogil=True)
def _exact(
    c: Floats, k: Floats, p: Floats, q: Floats, x: Floats, y: Floats
) -> tuple[Floats, Floats]:
    out_y, out_x = np.empty_like(x), np.empty_like(x)
    for n in range(x.size):
        ra, dec = grid_sky_point(q, x[n], y[n])
        out_x[n], out_y[n] = array_point(c, k, p, ra, dec)
    return out_y, out_x


@njit(cache=True, nogil=True)
def _nodes(
    c: Floats,
    k: Floats,
    p: Floats,
    q: Floats,
    first_y: int,
    first_x: int,
    ny: int,
    nx: int,
    spacing: int,
) -> tuple[Floats, Floats]:
    """Array coordinates at the lattice points (first_y + j, first_x + i) * spacing of the grid."""
    ynodes, xnodes = np.empty((ny, nx)), np.empty((ny, nx))
    for j in range(ny):
        for i in range(nx):
            ra, dec = grid_sky_point(
                q, float((first_x + i) * spacing), float((first_y + j) * spacing)
            )
            xnodes[j, i], ynodes[j, i] = array_point(c, k, p, ra, dec)
    return ynodes, xnodes


@njit(cache=True, nogil=True)
def _interpolate(
    nodes: Floats, weights: Floats, first_y: int, first_x: int, y1: int, y2: int, x1: int, x2: int
) -> Floats:
    """Cubic interpolation of lattice values: the four rows of nodes are blended first, then the four in a row."""
    spacing = weights.shape[0]
    out = np.empty((y2 - y1, x2 - x1))
    row = np.empty(nodes.shape[1])
    for y in range(y1, y2):
        j = y // spacing - 1 - first_y
        w = weights[y % spacing]
        for i in range(row.size):
            row[i] = (
                w[0] * nodes[j, i]
                + w[1] * nodes[j + 1, i]
                + w[2] * nodes[j + 2, i]
                + w[3] * nodes[j + 3, i]
            )
        for x in range(x1, x2):
            i = x // spacing - 1 - first_x
            v = weights[x % spacing]
            out[y - y1, x - x1] = (
                v[0] * row[i] + v[1] * row[i + 1] + v[2] * row[i + 2] + v[3] * row[i + 3]
            )
    return out
