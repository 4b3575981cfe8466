"""Sky levels made consistent where frames overlap, so that no step shows at a frame's edge in the stack."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from gdask.instruments import instrument_of
from gdask.io.read import affine
from gdask.kernels.geometry.grid import Grid, common_grid, sky_to_grid
from gdask.kernels.geometry.projection import Geometry, to_sky
from gdask.kernels.sky.levels import sky_cell_medians, solve_levels
from gdask.model import UNUSABLE
from gdask.params import Range
from gdask.steps.frames import array, map_planes, note, pending
from gdask.types import Flags, Frame, Frames, Image, Mask

#: Pixels of a block that is given to one cell as a whole.
BLOCK = 8


def measure_sky_levels(frames: Frames, *, cell: Annotated[float, Range(8, None)] = 64.0) -> Frames:
    """Median level of every array in cells of the sky, fetched at the end of the phase for match_sky_levels.

    Parameters
    ----------
    cell
        Side of a cell in output pixels.
    """
    scale = float(instrument_of(frames[0]).facts["output_pixel_scale"]) * cell
    geometries = [geometry for frame in frames for geometry in frame.attrs["geometry"]]
    shapes = [
        (frame.sizes["y"], frame.sizes["x"]) for frame in frames for _ in frame.attrs["geometry"]
    ]
    grid = common_grid(geometries, shapes, scale, 0.0, geometries[0].ra, geometries[0].dec)
    return tuple(pending(frame, levels=_levels(frame, grid)) for frame in frames)


def match_sky_levels(frames: Frames) -> Frames:
    """Shift every array of every frame so that shared cells of the sky have one level.

    The mean level of frames that are connected by overlaps stays as it is.
    """
    parts = [
        (number, levels)
        for number, levels in enumerate(
            levels for frame in frames for levels in frame.attrs["results"]["levels"]
        )
    ]
    columns = [np.concatenate([levels[k] for _, levels in parts]) for k in range(3)]
    unit = np.concatenate([np.full(levels.shape[1], number) for number, levels in parts])
    solved = solve_levels(unit, columns[0].astype(np.int64), columns[1], columns[2])
    offsets = np.zeros(len(parts))
    offsets[: len(solved.offset)] = solved.offset
    text = f"shifted by {offsets.min():.2f} to {offsets.max():.2f} e-, cells agree to {solved.rms:.2f} e- rms"
    shifted, at = [], 0
    for frame in frames:
        count = frame.sizes["detector"]
        shifted.append(
            note(
                affine(
                    frame,
                    "data",
                    [1.0] * count,
                    [float(-value) for value in offsets[at : at + count]],
                ),
                text,
            )
        )
        at += count
    return tuple(shifted)


def _levels(frame: Frame, grid: Grid) -> object:
    whole = frame.chunk({"y": -1, "x": -1})
    planes = [array(whole, name) for name in ("data", "dq", "objects")]
    return map_planes(
        _cell_levels,
        *planes,
        dtype=object,
        whole=True,
        each={"geometry": frame.attrs["geometry"]},
        grid=grid,
    )


def _cell_levels(
    data: Image, dq: Flags, objects: Mask | None, geometry: Geometry, grid: Grid
) -> np.ndarray:
    """Rows: cell number, median, error of the median; one column per cell."""
    good = (dq & np.uint16(UNUSABLE)) == 0
    if objects is not None:
        good &= ~objects
    cell, level, error, _ = sky_cell_medians(data, good, _cells(geometry, data.shape, grid))
    return np.stack([cell.astype(np.float64), level, error])


def _cells(geometry: Geometry, shape: tuple[int, int], grid: Grid) -> np.ndarray:
    """The cell of every block of pixels, by the block's centre."""
    y, x = np.meshgrid(
        *(np.arange(0, size, BLOCK) + (BLOCK - 1) / 2 for size in shape), indexing="ij"
    )
    gx, gy = (
        np.floor(v + 0.5).astype(np.int64) for v in sky_to_grid(grid, *to_sky(geometry, x, y))
    )
    inside = (gx >= 0) & (gy >= 0) & (gx < grid.shape[1]) & (gy < grid.shape[0])
    return np.where(inside, gy * grid.shape[1] + gx, -1).astype(np.int32)
