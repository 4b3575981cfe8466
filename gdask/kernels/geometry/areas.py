"""What the areas of pixels do to the sums and to the variance of a resampled image.

A flat of uniform light holds the area of each pixel, A_static: that of the geometry that all frames share. A frame's own
distortion is not in the flat, and moves the pixel's outline on the sky to A. A star puts its electrons into pixels whatever
their outline, so that sums over the output (pixels of A_out) are its electrons, in the unit of the pixel A_ref for which the
flat is 1, when a flat-fielded value times A_out / A_ref is further multiplied by A_static / A. The electrons' noise is that
of A_out / A input pixels; with the factor A_out / A_ref already in the kernel's variance (`resample`), the rest is
A_static / A x A_static / A_ref.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gdask.kernels.arrays import as_kernel_input
from gdask.kernels.geometry.grid import Grid, Window, grid_to_sky
from gdask.kernels.geometry.projection import Floats, Geometry, from_sky, pixel_area
from gdask.types import Image

#: Output pixels between the nodes at which areas are computed: linear between them is good to 1e-6 for GSAOI.
SPACING = 64


def area_factors(
    geometry: Geometry, grid: Grid, window: Window, reference: float
) -> tuple[Image, Image]:
    """Factors of data and of variance, float32 (y2 - y1, x2 - x1), for the pixels of a window of the grid.

    reference: A_ref, arcsec^2. Nodes lie on multiples of SPACING, so that a pixel has the same bits in any window.
    """
    y1, y2, x1, x2 = window
    ynodes, xnodes = _around(y1, y2), _around(x1, x2)
    gx, gy = np.meshgrid(xnodes * float(SPACING), ynodes * float(SPACING))
    x, y = from_sky(geometry, *grid_to_sky(grid, gx, gy))
    static = pixel_area(geometry._replace(correction_x=(), correction_y=()), x, y)
    moved = static / pixel_area(geometry, x, y)
    factors = []
    for nodes in (moved, moved * static / reference):
        nodes = np.where(np.isfinite(nodes) & (nodes > 0.5) & (nodes < 2.0), nodes, 1.0)
        factors.append(
            _between(
                as_kernel_input(nodes, np.float64), y1, y2, x1, x2, int(ynodes[0]), int(xnodes[0])
            )
        )
    return factors[0], factors[1]


def _around(start: int, stop: int) -> np.ndarray:
    return np.arange(start // SPACING, (stop - 1) // SPACING + 2)


@njit(cache=True, nogil=True)
def _between(
    nodes: Floats, y1: int, y2: int, x1: int, x2: int, first_y: int, first_x: int
) -> Image:
    """Linear interpolation of lattice values, along y and then along x."""
    out = np.empty((y2 - y1, x2 - x1), np.float32)
    row = np.empty(nodes.shape[1])
    for y in range(y1, y2):
        j, down = y // SPACING - first_y, (y % SPACING) / SPACING
        for i in range(row.size):
            row[i] = nodes[j, i] * (1 - down) + nodes[j + 1, i] * down
        for x in range(x1, x2):
            i, along = x // SPACING - first_x, (x % SPACING) / SPACING
            out[y - y1, x - x1] = row[i] * (1 - along) + row[i + 1] * along
    return out
