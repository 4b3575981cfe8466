"""Skies of crowded fields: sky frames without the light that a stack of all frames shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from dask.base import tokenize

from gdask.io.chained import read_together
from gdask.io.frames import (
    array_headers,
    geometries,
    note,
    shape_of,
    with_attrs,
    with_headers,
)
from gdask.io.gather import gather_planes
from gdask.io.sources import Source
from gdask.kernels.geometry.grid import Grid, footprint, sky_to_grid
from gdask.kernels.geometry.projection import Geometry, pixel_area, to_sky
from gdask.kernels.geometry.wcs import grid_from_header
from gdask.model import DQ
from gdask.params import Range
from gdask.steps.frames import arrays_of, on_group, with_arrays
from gdask.steps.sky import LIGHT_COMMENT, LIGHT_SUBTRACTED, object_cover
from gdask.types import Frame, Frames, Image, Mask, Window

#: Pixels between the points of an array at which its place on a stack is computed exactly.
NODE_SPACING = 16
#: Bytes for each pixel of an array that a task takes: places, model, spline, masks.
_MODEL_BYTES = 80.0
#: Pixels of the stack around one without data that are not used: the reach of the interpolation.
_REACH_PIXELS = 2


@on_group
def without_skies(frames: Frames) -> Frames:
    """Give frames of a crowded field no sky frames: sky_correct subtracts their level alone."""
    share = max(map(object_cover, frames))
    text = (
        f"objects cover {share:.0f} % of the field and no sky frames are beside it: a stack"
        " is made with the level alone subtracted, and its light taken out of the sky frames"
    )
    return tuple(note(with_attrs(frame, skies="[]"), text) for frame in frames)


@on_group
def subtract_stack(
    frames: Frames, deep: Frame, aligned: Frames, *, limit: Annotated[float, Range(0, None)] = 3.0
) -> Frames:
    """Subtract from each frame what a stack of all shows at its pixels: what is left is sky.

    Pixels become objects where the light subtracted is more than `limit` times their noise, since
    no two frames have stars of the same shape, or where the stack has no data.

    Parameters
    ----------
    limit
        Light of the stack in standard deviations of a pixel, beyond which a pixel is masked.
    """
    header = array_headers(deep)[0].copy()
    header["NAXIS1"], header["NAXIS2"] = deep.sizes["x"], deep.sizes["y"]
    grid = grid_from_header(header, deep.attrs["name"])
    solved = {frame.attrs["name"]: geometries(frame) for frame in aligned}
    text = f"light of a stack of {len(aligned)} subtracted, masked beyond {limit:g} sigma"
    return tuple(
        note(_residual(frame, deep, grid, solved[frame.attrs["name"]], limit), text)
        for frame in frames
        if frame.attrs["name"] in solved
    )


def _residual(
    frame: Frame, deep: Frame, grid: Grid, solved: tuple[Geometry, ...], limit: float
) -> Frame:
    arrays = [*arrays_of(deep, ("data", "dq")), *arrays_of(frame, ("data", "variance"))]
    ny, nx = shape_of(frame)
    parts = [footprint(geometry, (ny, nx), grid) for geometry in solved]
    most = max((y2 - y1) * (x2 - x1) for y1, y2, x1, x2 in parts)
    data, objects = gather_planes(
        _subtract_light,
        arrays,
        name=f"subtract_stack-{tokenize([each.name for each in arrays], solved, grid, limit)}",
        dtypes=("f4", "bool"),
        chunks=((1,) * frame.sizes["detector"], (ny,), (nx,)),
        windows=lambda number, detector, window: [
            (detector, window) if number > 1 else (0, parts[detector])
        ],
        scratch=_MODEL_BYTES * ny * nx + 24.0 * most,
        solved=solved,
        grid=grid,
        parts=tuple(parts),
        limit=limit,
    )
    marked = with_headers(frame, primary={LIGHT_SUBTRACTED: (True, LIGHT_COMMENT)})
    return with_arrays(marked, data=data, objects=objects)


def _subtract_light(
    sources: tuple[Source, ...],
    detector: int,
    window: Window,
    solved: tuple[Geometry, ...],
    grid: Grid,
    parts: tuple[Window, ...],
    limit: float,
) -> list[np.ndarray]:
    """Give data of an array without the light of the stack, and where it is not known.

    sources: data and dq of the stack, data and variance of the frame.
    """
    part, geometry = parts[detector], solved[detector]
    stack, flags = (source.read(0, part, {}) for source in sources[:2])
    data, variance = read_together(sources[2:], detector, window)
    shape = data.shape
    y, x = _nodes(shape)
    gx, gy = sky_to_grid(grid, *to_sky(geometry, x, y))
    area = pixel_area(geometry, x, y) / grid.scale**2
    gy, gx, area = (_between(values, shape) for values in (gy - part[0], gx - part[2], area))
    light, known = _light_at(stack, flags, gy, gx)
    light *= area
    hidden = ~known | (light > limit * np.sqrt(variance))
    return [(data - light).astype(np.float32), hidden]


def _light_at(
    stack: Image, flags: np.ndarray, gy: np.ndarray, gx: np.ndarray
) -> tuple[np.ndarray, Mask]:
    """Interpolate a stack at places, and tell where it has data around them."""
    from scipy.ndimage import map_coordinates, maximum_filter

    empty = (flags & np.uint16(DQ.NO_DATA)) != 0
    light = map_coordinates(stack, [gy, gx], order=3, mode="nearest")
    near = maximum_filter(empty, size=2 * _REACH_PIXELS + 1)
    j, i = np.rint(gy).astype(np.int32), np.rint(gx).astype(np.int32)
    inside = (j >= 0) & (i >= 0) & (j < stack.shape[0]) & (i < stack.shape[1])
    j, i = np.clip(j, 0, stack.shape[0] - 1), np.clip(i, 0, stack.shape[1] - 1)
    return light.astype(np.float64), inside & ~near[j, i]


def _nodes(shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    spans = [np.arange(0, size + NODE_SPACING, NODE_SPACING, dtype=float) for size in shape]
    y, x = np.meshgrid(*spans, indexing="ij")
    return y, x


def _between(nodes: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Interpolate values at every NODE_SPACING pixels bilinearly."""
    fy, fx = (np.arange(n) / NODE_SPACING for n in shape)
    iy, ix = fy.astype(int), fx.astype(int)
    ty, tx = (fy - iy)[:, None], fx - ix
    rows = nodes[iy] * (1 - ty) + nodes[iy + 1] * ty
    return rows[:, ix] * (1 - tx) + rows[:, ix + 1] * tx
