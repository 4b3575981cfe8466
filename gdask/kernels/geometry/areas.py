"""Factors by which the areas of pixels change the sums and the variance of a resampled image.

Four areas matter, all in arcsec^2. A_static: a pixel's area in the geometry that all frames share;
a flat of uniform light holds it. A: its area on the sky, to which a frame's own distortion moves
the pixel's outline; the flat does not hold it. A_ref: the area of the pixel for which the flat is
1. A_out: the area of an output pixel.

A star puts its electrons into pixels whatever their outline. Sums over the output are therefore its
electrons when a flat-fielded value times A_out / A_ref is further multiplied by A_static / A. The
electrons' noise is that of A_out / A input pixels. The factor A_out / A_ref is already in the
variance of the kernel (`resample`), so that A_static / A x A_static / A_ref remains.
"""

from __future__ import annotations

import numpy as np

from gdask.kernels.arrays import as_kernel_input
from gdask.kernels.compiled import njit
from gdask.kernels.geometry.grid import Grid, Window, grid_to_sky
from gdask.kernels.geometry.projection import Floats, Geometry, from_sky, pixel_area
from gdask.types import Image

#: Output pixels between the nodes at which areas are computed. For GSAOI, linear interpolation is
#: good to 1e-6.
AREA_NODE_SPACING = 64


def area_factors(
    geometry: Geometry, grid: Grid, window: Window, reference_area: float
) -> tuple[Image, Image]:
    """Return the factors of data and of variance for a window of the grid.

    geometry: of one array of one frame. window: (y1, y2, x1, x2). reference_area: A_ref (arcsec^2).
    Both results are float32 (y2 - y1, x2 - x1), and 1 where a ratio of areas is not between 0.5
    and 2. Nodes lie on multiples of AREA_NODE_SPACING: a pixel has the same bits in any window.
    """
    y1, y2, x1, x2 = window
    node_rows, node_columns = _nodes_around(y1, y2), _nodes_around(x1, x2)
    grid_x, grid_y = np.meshgrid(
        node_columns * float(AREA_NODE_SPACING), node_rows * float(AREA_NODE_SPACING)
    )
    x, y = from_sky(geometry, *grid_to_sky(grid, grid_x, grid_y))
    static_area = pixel_area(geometry._replace(correction_x=(), correction_y=()), x, y)
    of_data = static_area / pixel_area(geometry, x, y)
    factors = []
    for ratios in (of_data, of_data * static_area / reference_area):
        plausible = np.isfinite(ratios) & (ratios > 0.5) & (ratios < 2.0)
        nodes = as_kernel_input(np.where(plausible, ratios, 1.0), np.float64)
        factors.append(
            _interpolate_nodes(nodes, y1, y2, x1, x2, int(node_rows[0]), int(node_columns[0]))
        )
    return factors[0], factors[1]


def _nodes_around(start: int, stop: int) -> np.ndarray:
    """Return the numbers of the nodes before, between and after the pixels [start, stop)."""
    return np.arange(start // AREA_NODE_SPACING, (stop - 1) // AREA_NODE_SPACING + 2)


@njit(cache=True, nogil=True)
def _interpolate_nodes(
    nodes: Floats, y1: int, y2: int, x1: int, x2: int, first_y: int, first_x: int
) -> Image:
    """Interpolate node values linearly, along y and then along x.

    nodes[0, 0] is the node (first_y, first_x); the result covers the pixels [y1, y2), [x1, x2).
    """
    out = np.empty((y2 - y1, x2 - x1), np.float32)
    row = np.empty(nodes.shape[1])
    for y in range(y1, y2):
        j, down = y // AREA_NODE_SPACING - first_y, (y % AREA_NODE_SPACING) / AREA_NODE_SPACING
        for i in range(row.size):
            row[i] = nodes[j, i] * (1 - down) + nodes[j + 1, i] * down
        for x in range(x1, x2):
            i, along = x // AREA_NODE_SPACING - first_x, (x % AREA_NODE_SPACING) / AREA_NODE_SPACING
            out[y - y1, x - x1] = row[i] * (1 - along) + row[i + 1] * along
    return out
