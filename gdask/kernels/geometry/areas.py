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

from typing import Any

import numpy as np

from gdask.kernels.arrays import INNER, as_kernel_input
from gdask.kernels.compiled import njit
from gdask.kernels.geometry.grid import MAP_NODE_SPACING, Grid, MapNodes, Window, map_nodes
from gdask.kernels.geometry.projection import Floats, Geometry, pixel_area
from gdask.types import Image

#: Output pixels between the nodes at which areas are computed, a multiple of MAP_NODE_SPACING. For
#: GSAOI, linear interpolation is good to 1e-6.
AREA_NODE_SPACING = 64


def area_factors(
    geometry: Geometry, grid: Grid, window: Window, reference_area: float
) -> tuple[Image, Image]:
    """Return the factors of data and of variance for a window of the grid.

    geometry: of one array of one frame. window: (y1, y2, x1, x2). reference_area: A_ref (arcsec^2).
    Both results are float32 (y2 - y1, x2 - x1), and 1 where a ratio of areas is not between 0.5
    and 2. Nodes lie on multiples of AREA_NODE_SPACING: a pixel has the same bits in any window.
    """
    nodes, first_y, first_x = area_nodes(
        geometry, map_nodes(geometry, grid, window), reference_area
    )
    data, variance = _interpolate_nodes(nodes, first_y, first_x, *window)
    return data, variance


def area_nodes(
    geometry: Geometry, nodes: MapNodes, reference_area: float
) -> tuple[Floats, int, int]:
    """Return factors (2, ny, nx) of data and variance at nodes, and the first node's number (y, x).

    nodes: of the window of the grid; those of areas are some of them.
    """
    step = AREA_NODE_SPACING // MAP_NODE_SPACING
    first_y, first_x = -(-nodes.first_y // step), -(-nodes.first_x // step)
    chosen = np.s_[first_y * step - nodes.first_y :: step, first_x * step - nodes.first_x :: step]
    x, y = nodes.x[chosen], nodes.y[chosen]
    static_area = pixel_area(geometry._replace(correction_x=(), correction_y=()), x, y)
    of_data = static_area / pixel_area(geometry, x, y)
    ratios = np.stack([of_data, of_data * static_area / reference_area])
    plausible = np.isfinite(ratios) & (ratios > 0.5) & (ratios < 2.0)
    return as_kernel_input(np.where(plausible, ratios, 1.0), np.float64), first_y, first_x


@njit(cache=True, nogil=True)
def _interpolate_nodes(
    nodes: Floats, first_y: int, first_x: int, y1: int, y2: int, x1: int, x2: int
) -> Image:
    """Return both factors (2, ny, nx) for a window, row by row (`area_row`)."""
    ny, nx = y2 - y1, x2 - x1
    out = np.empty(2 * ny * nx, np.float32)
    row = np.empty(nodes.shape[2])
    for y in range(y1, y2):
        start = (y - y1) * nx
        area_row(nodes, first_y, first_x, y, x1, x2, row, out, start, start + ny * nx)
    return out.reshape((2, ny, nx))


@njit(nogil=True, **INNER)
def area_row(
    nodes: Floats,
    first_y: int,
    first_x: int,
    y: int,
    x1: int,
    x2: int,
    row: Floats,
    out: Image,
    data: Any,
    variance: Any,
) -> None:
    """Interpolate both factors linearly, along y and then along x.

    nodes, first_y, first_x: from `area_nodes`. Those of the pixels [x1, x2) of the grid's row y go
    to out[data:] and out[variance:]. row: work space for the nodes of a row.
    """
    j, down = y // AREA_NODE_SPACING - first_y, (y % AREA_NODE_SPACING) / AREA_NODE_SPACING
    first, last = x1 // AREA_NODE_SPACING - first_x, (x2 - 1) // AREA_NODE_SPACING + 2 - first_x
    for which in range(2):
        for i in range(first, last):
            row[i] = nodes[which, j, i] * (1 - down) + nodes[which, j + 1, i] * down
        for i in range(first, last - 1):
            a, b = row[i], row[i + 1]
            left = (i + first_x) * AREA_NODE_SPACING
            begin, end = max(x1 - left, 0), min(x2 - left, AREA_NODE_SPACING)
            place = np.uint64((variance if which else data) + left + begin - x1)
            for k in range(np.uint64(end - begin)):
                along = np.float64(begin + np.int64(k)) / AREA_NODE_SPACING
                out[place + k] = a * (1 - along) + b * along
