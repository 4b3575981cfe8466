"""The output tangent plane: its pixels on the sky, in arrays, and the input that they need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gdask.kernels.arrays import INNER, as_kernel_input
from gdask.kernels.compiled import njit
from gdask.kernels.geometry.projection import (
    Floats,
    Geometry,
    array_point,
    deproject,
    from_sky,
    pack_geometry,
    pointing_values,
    project,
    to_sky,
)
from gdask.types import Arcsec, Degrees, Pixels

#: A rectangle of 0-based pixels, half-open: (y1, y2, x1, x2).
Window = tuple[int, int, int, int]
#: Spacing (pixels) of the points that trace an outline. GSAOI's distortion bends by 2e-3 pixel
#: between them.
OUTLINE_STEP = 32


class Grid(NamedTuple):
    """A gnomonic output image, with North up and East left at pa 0.

    ra, dec: reference position (degrees), at the 0-based pixel (x_ref, y_ref).
    pa: direction of +y, East of North (degrees).
    scale: arcsec per pixel.
    shape: (ny, nx).
    """

    ra: Degrees
    dec: Degrees
    pa: Degrees
    scale: Arcsec
    x_ref: Pixels
    y_ref: Pixels
    shape: tuple[int, int]


def grid_to_sky(grid: Grid, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Convert grid pixels (0-based) to RA, Dec (degrees); any shape, broadcast."""
    x, y = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
    ra, dec = _sky_points(pack_grid(grid), x.ravel(), y.ravel())
    return ra.reshape(x.shape)[()], dec.reshape(x.shape)[()]


def sky_to_grid(grid: Grid, ra: npt.ArrayLike, dec: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Convert RA, Dec (degrees) to grid pixels (0-based); NaN on the other hemisphere."""
    ra, dec = np.broadcast_arrays(np.asarray(ra, np.float64), np.asarray(dec, np.float64))
    x, y = _grid_points(pack_grid(grid), ra.ravel(), dec.ravel())
    return x.reshape(ra.shape)[()], y.reshape(ra.shape)[()]


def common_grid(
    geometries: Sequence[Geometry],
    shapes: Sequence[tuple[int, int]],
    scale: Arcsec,
    pa: Degrees,
    ra: Degrees,
    dec: Degrees,
) -> Grid:
    """Return the smallest grid that holds all arrays, with (ra, dec) on the centre of a pixel.

    geometries, shapes (ny, nx): one of each per array; their order does not matter. scale: arcsec
    per pixel.
    """
    origin = Grid(ra, dec, pa, scale, 0.0, 0.0, (1, 1))
    lowest, highest = np.full(2, np.inf), np.full(2, -np.inf)
    for geometry, shape in zip(geometries, shapes, strict=True):
        xy = np.stack(sky_to_grid(origin, *to_sky(geometry, *outline((0, shape[0], 0, shape[1])))))
        lowest = np.minimum(lowest, xy.min(axis=1))
        highest = np.maximum(highest, xy.max(axis=1))
    x1, y1 = (int(v) for v in np.floor(lowest + 0.5))
    x2, y2 = (int(v) for v in np.ceil(highest + 0.5))
    return origin._replace(x_ref=float(-x1), y_ref=float(-y1), shape=(y2 - y1, x2 - x1))


def footprint(geometry: Geometry, shape: tuple[int, int], grid: Grid) -> Window:
    """Return the window of the grid that an array can touch, with a pixel to spare.

    shape: (ny, nx) of the array. (0, 0, 0, 0) if it does not touch the grid.
    """
    x, y = sky_to_grid(grid, *to_sky(geometry, *outline((0, shape[0], 0, shape[1]))))
    return _window_around(x, y, 1, grid.shape) or (0, 0, 0, 0)


@lru_cache(maxsize=4096)
def orientation(geometry: Geometry, shape: tuple[int, int], grid: Grid) -> tuple[bool, bool]:
    """Return whether an array lies on its side on the grid, and whether it is mirrored along x.

    On its side: the grid's x is nearer to the array's y than to its x. Mirrored: the axis that is
    nearer runs against the grid's x. shape: (ny, nx) of the array, in whose middle this is found.
    """
    y, x = (shape[0] - 1) / 2, (shape[1] - 1) / 2
    columns, _ = sky_to_grid(
        grid, *to_sky(geometry, np.array([x, x + 1, x]), np.array([y, y, y + 1]))
    )
    along_x, along_y = columns[1] - columns[0], columns[2] - columns[0]
    transposed = bool(abs(along_y) > abs(along_x))
    return transposed, bool((along_y if transposed else along_x) < 0)


def input_window(
    geometry: Geometry, shape: tuple[int, int], grid: Grid, out_window: Window, margin: int
) -> Window | None:
    """Return the window of an array that a window of the grid shows, with a margin.

    shape: (ny, nx) of the array. margin: pixels around what is shown. None if the two do not touch.
    With the margin of a kernel (`interpolation.kernel_margin`), resampling from this window equals
    resampling from the whole array. Where a part of the outline has no place in the array's plane,
    the window is the whole array.
    """
    x, y = from_sky(geometry, *grid_to_sky(grid, *outline(out_window)))
    has_place = np.isfinite(x)
    if has_place.all():
        return _window_around(x, y, margin + 1, shape)
    return (0, shape[0], 0, shape[1]) if has_place.any() else None


def outline(window: Window) -> tuple[Floats, Floats]:
    """Return points (x, y) along the outer edges of a window's pixels, corners included."""
    y1, y2, x1, x2 = window
    xs, ys = _edge_points(x1, x2), _edge_points(y1, y2)
    x = np.concatenate([xs, np.full(ys.size, x2 - 0.5), xs, np.full(ys.size, x1 - 0.5)])
    y = np.concatenate([np.full(xs.size, y1 - 0.5), ys, np.full(xs.size, y2 - 0.5), ys])
    return x, y


def _edge_points(start: int, stop: int) -> Floats:
    """Return points from the outer edge of pixel `start` to that of pixel `stop` - 1."""
    return np.linspace(start - 0.5, stop - 0.5, 2 + (stop - start) // OUTLINE_STEP)


def _window_around(x: Floats, y: Floats, margin: int, shape: tuple[int, int]) -> Window | None:
    """Return the window of whole pixels around finite points, with a margin.

    shape: (ny, nx) of the image that the window is cut to. None if it is empty.
    """
    finite = np.isfinite(x) & np.isfinite(y)
    if not finite.any():
        return None
    x1, y1 = (max(0, math.floor(v[finite].min() + 0.5) - margin) for v in (x, y))
    x2, y2 = (
        min(n, math.ceil(v[finite].max() + 0.5) + margin) for v, n in ((x, shape[1]), (y, shape[0]))
    )
    return (y1, y2, x1, x2) if x1 < x2 and y1 < y2 else None


def pack_grid(grid: Grid) -> Floats:
    """Return the grid as an array for compiled code.

    The array is (RA, sin Dec, cos Dec, cos PA, sin PA, scale, x_ref, y_ref).
    """
    pointing = pointing_values(grid.ra, grid.dec, grid.pa)
    return np.array([*pointing, grid.scale, grid.x_ref, grid.y_ref], np.float64)


@njit(cache=True, nogil=True)
def grid_sky_point(q: Floats, x: float, y: float) -> tuple[float, float]:
    """Return RA, Dec (degrees) of a grid pixel. q: from `pack_grid`."""
    u = (q[6] - x) * q[5]
    v = (y - q[7]) * q[5]
    return deproject(q, q[3] * u + q[4] * v, q[3] * v - q[4] * u)


@njit(cache=True, nogil=True)
def _sky_points(q: Floats, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return RA, Dec (degrees) of grid pixels."""
    ra, dec = np.empty_like(x), np.empty_like(x)
    for n in range(x.size):
        ra[n], dec[n] = grid_sky_point(q, x[n], y[n])
    return ra, dec


@njit(cache=True, nogil=True)
def _grid_points(q: Floats, ra: Floats, dec: Floats) -> tuple[Floats, Floats]:
    """Return the grid pixels of RA, Dec (degrees)."""
    x, y = np.empty_like(ra), np.empty_like(ra)
    for n in range(ra.size):
        xi, eta = project(q, ra[n], dec[n])
        x[n] = q[6] - (q[3] * xi - q[4] * eta) / q[5]
        y[n] = q[7] + (q[4] * xi + q[3] * eta) / q[5]
    return x, y


#: Output pixels between nodes. GSAOI's distortion is then followed to 1e-8 pixel.
MAP_NODE_SPACING = 32
#: The error of the interpolated map above which a frame is refused (pixels).
MAX_MAP_ERROR: Pixels = 1e-4


class MapNodes(NamedTuple):
    """Array coordinates at nodes of the grid, from which those of pixels are interpolated.

    y, x: float64 (ny, nx); node (j, i) is the grid pixel ((first_y + j) * spacing, (first_x + i) *
    spacing). weights: (4 * spacing,), of four nodes for each pixel between the middle two.
    """

    y: Floats
    x: Floats
    weights: Floats
    first_y: int
    first_x: int


def map_nodes(
    geometry: Geometry, grid: Grid, window: Window, spacing: int = MAP_NODE_SPACING
) -> MapNodes:
    """Return the nodes that `pixel_map` takes for a window (y1, y2, x1, x2) of the grid."""
    y1, y2, x1, x2 = window
    first_y, first_x = y1 // spacing - 1, x1 // spacing - 1
    count = ((y2 - 1) // spacing + 3 - first_y, (x2 - 1) // spacing + 3 - first_x)
    y, x = _nodes(
        *pack_geometry(geometry), pack_grid(grid), first_y, first_x, count[0], count[1], spacing
    )
    return MapNodes(y, x, _cubic_node_weights(spacing), first_y, first_x)


def pixel_map(
    geometry: Geometry, grid: Grid, window: Window, spacing: int = MAP_NODE_SPACING
) -> tuple[Floats, Floats]:
    """Return the array coordinates (ymap, xmap) that the pixels of a window of the grid show.

    window: (y1, y2, x1, x2). spacing: grid pixels between nodes. Both maps are float64 (y2 - y1, x2
    - x1), in 0-based frame pixels; NaN where the inverse distortion does not converge, far outside
    the array.
    """
    nodes = map_nodes(geometry, grid, window, spacing)
    place = nodes.weights, nodes.first_y, nodes.first_x, *window
    return _interpolate_nodes(nodes.y, *place), _interpolate_nodes(nodes.x, *place)


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


@lru_cache
def _cubic_node_weights(spacing: int) -> Floats:
    """Return weights (4 * spacing,) of nodes at -1, 0, 1, 2 for points t = k / spacing in [0, 1).

    They are those of the cubic through four nodes (Lagrange), all of the first node first.
    """
    t = np.arange(spacing) / spacing
    a, b, c, d = t + 1, t, t - 1, t - 2
    weights = [-b * c * d / 6, a * c * d / 2, -a * b * d / 2, a * b * c / 6]
    return as_kernel_input(np.concatenate(weights), np.float64)


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
    """Return node values interpolated for a window, row by row (`map_row`)."""
    out = np.empty((y2 - y1) * (x2 - x1))
    row = np.empty(nodes.shape[1])
    for y in range(y1, y2):
        start = (y - y1) * (x2 - x1)
        map_row(nodes, weights, first_y, first_x, y, x1, x2, row, out, start, 0.0)
    return out.reshape((y2 - y1, x2 - x1))


@njit(nogil=True, **INNER)
def map_row(
    nodes: Floats,
    weights: Floats,
    first_y: int,
    first_x: int,
    y: int,
    x1: int,
    x2: int,
    row: Floats,
    out: Floats,
    start: int,
    origin: float,
) -> None:
    """Interpolate node values by cubics, between four rows and then between four columns.

    nodes, weights, first_y, first_x: one of MapNodes. The pixels [x1, x2) of the grid's row y go to
    out[start:], less `origin`. row: work space for the nodes of a row.
    """
    spacing = weights.size // 4
    j, t = y // spacing - 1 - first_y, y % spacing
    first, last = x1 // spacing - 1 - first_x, (x2 - 1) // spacing + 3 - first_x
    for i in range(first, last):
        row[i] = (
            weights[t] * nodes[j, i]
            + weights[spacing + t] * nodes[j + 1, i]
            + weights[2 * spacing + t] * nodes[j + 2, i]
            + weights[3 * spacing + t] * nodes[j + 3, i]
        )
    step = np.uint64(spacing)
    for i in range(first, last - 3):
        a, b, c, d = row[i], row[i + 1], row[i + 2], row[i + 3]
        left = (i + 1 + first_x) * spacing
        begin, end = max(x1 - left, 0), min(x2 - left, spacing)
        place = np.uint64(start + left + begin - x1)
        at = np.uint64(begin)
        for k in range(np.uint64(end - begin)):
            out[place + k] = (
                weights[at + k] * a
                + weights[at + step + k] * b
                + weights[at + step + step + k] * c
                + weights[at + step + step + step + k] * d
            ) - origin
