"""The pixel map: the array coordinates that each output pixel shows.

The exact chain of projections is computed on sparse nodes, with cubic Lagrange interpolation
between them. Nodes lie on a lattice anchored at the grid's pixel (0, 0), and a pixel always uses
the same 4 x 4 of them, computed point by point: its coordinates have the same bits whatever the
tile.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gdask.kernels.geometry.grid import Grid, Window, grid_sky_point, pack_grid
from gdask.kernels.geometry.projection import Floats, Geometry, array_point, pack_geometry
from gdask.types import Pixels

#: Output pixels between nodes. GSAOI's distortion is then followed to 1e-8 pixel.
MAP_NODE_SPACING = 32
#: The error of the interpolated map above which a frame is refused (pixels).
MAX_MAP_ERROR: Pixels = 1e-4


def pixel_map(
    geometry: Geometry, grid: Grid, window: Window, spacing: int = MAP_NODE_SPACING
) -> tuple[Floats, Floats]:
    """Return the array coordinates (ymap, xmap) that the pixels of a window of the grid show.

    window: (y1, y2, x1, x2). spacing: grid pixels between nodes. Both maps are float64 (y2 - y1, x2
    - x1), in 0-based frame pixels; NaN where the inverse distortion does not converge, far outside
    the array.
    """
    y1, y2, x1, x2 = window
    first_y, first_x = y1 // spacing - 1, x1 // spacing - 1
    count = ((y2 - 1) // spacing + 3 - first_y, (x2 - 1) // spacing + 3 - first_x)
    ynodes, xnodes = _nodes(
        *pack_geometry(geometry), pack_grid(grid), first_y, first_x, count[0], count[1], spacing
    )
    weights = _cubic_node_weights(np.arange(spacing) / spacing)
    place = weights, first_y, first_x, y1, y2, x1, x2
    return _interpolate_nodes(ynodes, *place), _interpolate_nodes(xnodes, *place)


def exact_map(geometry: Geometry, grid: Grid, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return the array coordinates (y, x) of the grid pixels (x, y), 1-D, by the exact chain."""
    return _exact_points(*pack_geometry(geometry), pack_grid(grid), x, y)


def map_error(
    geometry: Geometry, grid: Grid, window: Window, spacing: int = MAP_NODE_SPACING
) -> Pixels:
    """Return the greatest error (pixels) of `pixel_map` over a window, and 0 if all of it is NaN.

    It is measured halfway between nodes, where it is greatest. Pixels that are NaN do not count.
    """
    y1, y2, x1, x2 = window
    step = max(1, spacing // 2)
    x, y = np.meshgrid(_points_between_nodes(x1, x2, step), _points_between_nodes(y1, y2, step))
    exact = exact_map(geometry, grid, x.ravel().astype(float), y.ravel().astype(float))
    worst = 0.0
    for sampled, truth in zip(pixel_map(geometry, grid, window, spacing), exact, strict=True):
        difference = np.abs(sampled[y.ravel() - y1, x.ravel() - x1] - truth)
        worst = max(worst, float(np.max(difference, initial=0.0, where=np.isfinite(difference))))
    return worst


def _points_between_nodes(start: int, stop: int, step: int) -> np.ndarray:
    """Return the odd multiples of `step` in [start, stop), and the two ends.

    step: half a node spacing.
    """
    multiples = np.arange(start // step * step, stop, step)
    halfway = multiples[(multiples >= start) & (multiples // step % 2 == 1)]
    return np.unique(np.concatenate([halfway, [start, stop - 1]]))


def _cubic_node_weights(t: Floats) -> Floats:
    """Return weights (t.size, 4) of nodes at -1, 0, 1, 2 for points t in [0, 1).

    They are those of the cubic through four nodes (Lagrange).
    """
    a, b, c, d = t + 1, t, t - 1, t - 2
    return np.stack([-b * c * d / 6, a * c * d / 2, -a * b * d / 2, a * b * c / 6], axis=1)


@njit(cache=True, nogil=True)
def _exact_points(
    c: Floats, k: Floats, p: Floats, q: Floats, x: Floats, y: Floats
) -> tuple[Floats, Floats]:
    """Return the array coordinates (y, x) of grid pixels.

    c, k, p: from projection.pack_geometry. q: from grid.pack_grid.
    """
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
    """Return the array coordinates (y, x) at the nodes.

    Node (j, i) is the grid pixel ((first_y + j) * spacing, (first_x + i) * spacing).
    """
    ynodes, xnodes = np.empty((ny, nx)), np.empty((ny, nx))
    for j in range(ny):
        for i in range(nx):
            ra, dec = grid_sky_point(
                q, float((first_x + i) * spacing), float((first_y + j) * spacing)
            )
            xnodes[j, i], ynodes[j, i] = array_point(c, k, p, ra, dec)
    return ynodes, xnodes


@njit(cache=True, nogil=True)
def _interpolate_nodes(
    nodes: Floats, weights: Floats, first_y: int, first_x: int, y1: int, y2: int, x1: int, x2: int
) -> Floats:
    """Interpolate node values by cubics, between four rows and then between four columns."""
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
