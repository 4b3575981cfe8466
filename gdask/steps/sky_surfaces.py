"""Make the sky of frames agree where they overlap, by surfaces that are subtracted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np

from gdask.instruments import instrument_of
from gdask.io.frames import (
    geometries,
    note,
    primary_header,
    shape_of,
    sky_names,
    small,
    warn,
    with_small,
)
from gdask.io.gather import measure_arrays
from gdask.io.level_changes import changed_scale, minus_surfaces
from gdask.kernels.geometry.grid import Grid, common_grid, sky_to_grid
from gdask.kernels.geometry.projection import Geometry, to_plane, to_sky
from gdask.kernels.sky.levels import sky_cell_medians
from gdask.kernels.sky.matching import KINDS, Levels, Surfaces, solve_surfaces
from gdask.kernels.surfaces import (
    Floats,
    Surface,
    fitted_terms,
    legendre_terms,
    nodes,
    surface_of_nodes,
)
from gdask.model import UNUSABLE, GdaskError, late
from gdask.params import Range
from gdask.steps.frames import array, arrays_of, is_measured, on_group, with_arrays
from gdask.steps.sky import LIGHT_SUBTRACTED
from gdask.types import Flags, Frame, Frames, Image, Mask

if TYPE_CHECKING:
    import dask.array as da
else:
    da = late("dask.array")

#: Side (pixels) of a block of an array that belongs to one cell of the sky as a whole.
BLOCK_PIXELS = 8
#: Bytes for each pixel whose level is measured: data, flags, mask, and what is sorted.
_LEVEL_BYTES = 20.0
#: Electrons to which factors of surfaces are rounded: sums differ in last bits from processor to
#: processor, where positions on the sky do; unrounded, so would each pixel of the stack.
OFFSET_STEP = 2.0**-12
#: Levels in shared cells that agree to more than so many times the noise of a cell are warned of.
#: (Simulated nights: 1 to 3 where the sky was right, 21 where the light of a crowded field was in
#: it.)
MAX_CELL_NOISES = 10.0
#: Groups of arrays that share no sky may differ by this share of it without a word.
MAX_APART = 0.003
#: The surface of a whole frame is a polynomial of higher order on the pixels of an array, by the
#: distortion.
_MORE_ORDERS = 1


@on_group
def measure_sky_levels(frames: Frames, *, cell: Annotated[float, Range(8, None)] = 64.0) -> Frames:
    """Measure the median level of every array in cells of the sky, for match_sky_levels.

    The result is fetched at the end of the phase.

    Parameters
    ----------
    cell
        Side of a cell in output pixels.
    """
    scale = float(instrument_of(frames[0]).facts["output_pixel_scale"]) * cell
    grid = _cell_grid(frames, scale)
    return tuple(with_small(frame, levels=_levels_in_cells(frame, grid)) for frame in frames)


def _cell_grid(frames: Frames, scale: float) -> Grid:
    placed = [(geometry, shape_of(frame)) for frame in frames for geometry in geometries(frame)]
    found, shapes = [geometry for geometry, _ in placed], [shape for _, shape in placed]
    return common_grid(found, shapes, scale, 0.0, found[0].ra, found[0].dec)


@on_group
def match_sky_levels(
    frames: Frames,
    *,
    surface: Literal["auto", "offset", "frame1", "frame2", "array1", "array2"] = "auto",
    overall: Literal["keep", "plane", "quadratic"] = "keep",
    tie: bool | None = None,
) -> Frames:
    """Subtract surfaces from all arrays so that shared cells of the sky have one level.

    The mean surface of frames that are connected by overlaps stays as it is: no overlap tells the
    sky's from light.

    Parameters
    ----------
    surface
        What is subtracted: offset is one number of each array. frame1 and frame2 add a plane or a
        quadratic surface of each frame, array1 and array2 are such surfaces of each array. auto
        takes the plainest that predicts the levels of cells it has not seen as well as any.
    overall
        What is subtracted from all frames alike: keep subtracts nothing, plane and quadratic the
        surface closest to the levels of all cells, which takes smooth light with it.
    tie
        Arrays that share no cell of the sky were each brought to its own level, where the target's
        frames are the sky. True gives them back what their levels differed by, which is right where
        the sky is flat and the target is not; False does not; None does in crowded fields.
    """
    measured = [small(frame, "levels") for frame in frames]
    if any(levels is None for levels in measured):
        raise GdaskError("match_sky_levels: no levels measured; measure_sky_levels does it")
    reach = _reach(frames)
    levels = _levels_of(frames, measured, reach)
    solved = solve_surfaces(levels, None if surface == "auto" else KINDS[surface])
    common = _overall(frames, levels, solved, {"keep": 0, "plane": 1, "quadratic": 2}[overall])
    apart = _levels_apart(frames, solved)
    tied = any(LIGHT_SUBTRACTED in primary_header(frame) for frame in frames)
    tied = bool(len(apart)) and (tied if tie is None else tie)
    if tied:
        solved.of_unit[:, 0] -= apart[solved.group]
    matched, unit, spans = [], 0, []
    for number, frame in enumerate(frames):
        count = frame.sizes["detector"]
        units = range(unit, unit + count)
        surfaces = _surfaces_of(frame, solved, number, units, reach, common)
        spans += [_span(each) for each in surfaces]
        matched.append(_without(frame, surfaces, solved.error[unit : unit + count]))
        unit += count
    text = _match_text(levels, solved, spans)
    told = _warned(tuple(matched), levels, solved)
    if len(apart):
        told = tuple(warn(frame, _apart_text(frames, apart, tied)) for frame in told)
    return tuple(note(frame, text) for frame in told)


def _levels_apart(frames: Frames, solved: Surfaces) -> Floats:
    """Give by how much (e-) the level of each group of arrays was above that of its frames.

    By number of the group; () where all arrays are connected, where the sky's level is that of
    frames off the target, and where levels differ by no more than MAX_APART of the sky.
    """
    groups = np.unique(solved.group[solved.cells > 0])
    found = [small(frame, "background", lazy_is_none=True) for frame in frames]
    names = {frame.attrs["name"] for frame in frames}
    is_own = all(
        primary_header(frame).get("SKYLEVEL") in ("offset", "scale")
        and set(sky_names(frame) or [""]) <= names
        for frame in frames
    )
    if len(groups) < 2 or not is_own or any(each is None for each in found):
        return np.zeros(0)
    levels = [
        np.array([np.median(mesh) if is_measured(mesh) else np.nan for mesh in each])
        for each in found
    ]
    if any(np.isnan(each).all() for each in levels):
        return np.zeros(0)
    over = np.concatenate([each - np.nanmean(each) for each in levels])
    apart = np.zeros(len(solved.group))
    for group in groups:
        known = over[(solved.group == group) & np.isfinite(over)]
        apart[group] = known.mean() if len(known) else 0.0
    sky = float(np.nanmedian(np.concatenate(levels)))
    return apart if np.ptp(apart[groups]) > MAX_APART * abs(sky) else np.zeros(0)


def _apart_text(frames: Frames, apart: Floats, tied: bool) -> str:
    """Say by how much arrays that share no sky differed, and what was done."""
    values = apart[np.flatnonzero(apart)]
    what = (
        "they were given back as light (match_sky_levels:tie=False leaves them out)"
        if tied
        else "each was brought to its own, so that there are steps of as much between them if"
        " this is light (match_sky_levels:tie=True gives it back)"
    )
    return (
        f"{len(values)} groups of arrays share no part of the sky, and their levels differed by"
        f" {np.ptp(values):.0f} e-, which may be sky or light of the target: {what}; frames of an"
        " empty field beside the target would tell"
    )


def _match_text(levels: Levels, solved: Surfaces, spans: Sequence[tuple[float, float]]) -> str:
    """Say what was subtracted, and how well levels agree."""
    noise = _noise(levels)
    low, high = min(span[0] for span in spans), max(span[1] for span in spans)
    known = solved.error[solved.cells > 0]
    error = f", known to {float(np.median(known)):.2f} e-" if len(known) else ""
    return (
        f"{solved.kind.text}, {low:.2f} to {high:.2f} e-{error}, "
        f"cells agree to {solved.rms:.2f} e- rms (noise of a cell {noise:.2f})"
    )


def _noise(levels: Levels) -> float:
    return float(np.median(levels.error)) if len(levels.error) else 0.0


def _warned(frames: Frames, levels: Levels, solved: Surfaces) -> Frames:
    """Warn where levels do not agree."""
    noise = _noise(levels)
    if solved.rms <= max(MAX_CELL_NOISES * noise, 1e-3):
        return frames
    worse = (
        f"levels of shared cells agree to {solved.rms:.1f} e- rms only,"
        f" {solved.rms / noise:.0f} times their noise: the sky that was subtracted is wrong by"
        " as much, as where objects cover the sky frames; frames of an empty field beside the"
        " target would help"
    )
    return tuple(warn(frame, worse) for frame in frames)


def _reach(frames: Frames) -> float:
    """Give the distance (arcsec) of the farthest corner of an array from the frame's middle."""
    farthest = 1e-6
    for frame in frames:
        ny, nx = shape_of(frame)
        y, x = np.meshgrid([0.0, ny - 1.0], [0.0, nx - 1.0], indexing="ij")
        for geometry in geometries(frame):
            places = to_plane(geometry, x, y)
            farthest = max(farthest, *(float(np.abs(each).max()) for each in places))
    return farthest


def _levels_of(frames: Frames, measured: Sequence[Sequence[Floats]], reach: float) -> Levels:
    """Put the levels of all arrays into one table."""
    columns: list[tuple[Floats, ...]] = []
    unit = 0
    for number, (frame, of_arrays) in enumerate(zip(frames, measured, strict=True)):
        ny, nx = shape_of(frame)
        for geometry, of_cells in zip(geometries(frame), of_arrays, strict=True):
            row, column, level, error, y, x, *off = of_cells
            u, v = to_plane(geometry, x, y)
            place = x / max((nx - 1) / 2, 0.5) - 1, y / max((ny - 1) / 2, 0.5) - 1
            ones = np.ones(len(level))
            place = (*place, u / reach, v / reach, *off)
            columns.append((unit * ones, number * ones, row, column, level, error, *place))
            unit += 1
    table = [np.concatenate(column) for column in zip(*columns, strict=True)]
    whole = [column.astype(np.int64) for column in table[:4]]
    level, error, x, y, u, v, down, right = table[4:]
    cell, sizes = (whole[2], whole[3]), (unit, len(frames))
    return Levels(whole[0], whole[1], cell, level, error, x, y, u, v, down, right, sizes)


def _surfaces_of(
    frame: Frame,
    solved: Surfaces,
    number: int,
    units: range,
    reach: float,
    common: Callable[[Geometry, Floats, Floats], Floats],
) -> list[Surface]:
    """Give the surface to subtract from each array of a frame."""
    order = solved.kind.order
    order = 3 if common is not _nothing else order + _MORE_ORDERS if order else 0
    size, found = shape_of(frame), []
    y, x = nodes(order, size)
    place = x / max((size[1] - 1) / 2, 0.5) - 1, y / max((size[0] - 1) / 2, 0.5) - 1
    for unit, geometry in zip(units, geometries(frame), strict=True):
        values = np.zeros(x.shape)
        for factor, term in zip(
            solved.of_unit[unit], legendre_terms(*place, solved.kind.order), strict=True
        ):
            values += factor * term
        if solved.kind.of_frame:
            u, v = to_plane(geometry, x, y)
            terms = legendre_terms(u / reach, v / reach, solved.kind.of_frame)[1:]
            for factor, term in zip(solved.of_frame[number], terms, strict=True):
                values += factor * term
        values += common(geometry, x, y)
        found.append(surface_of_nodes(values, order, size, OFFSET_STEP))
    return found


def _nothing(geometry: Geometry, x: Floats, y: Floats) -> Floats:
    return np.zeros(x.shape)


def _overall(
    frames: Frames, levels: Levels, solved: Surfaces, order: int
) -> Callable[[Geometry, Floats, Floats], Floats]:
    """Give the surface over the whole sky that is subtracted from all frames alike."""
    if not order or not len(solved.level):
        return _nothing
    grid = _cell_grid(frames, 1.0)
    ny, nx = grid.shape

    def places(geometry: Geometry, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        gx, gy = sky_to_grid(grid, *to_sky(geometry, x, y))
        return 2 * gx / nx - 1, 2 * gy / ny - 1

    row, column = levels.cell
    across = 2 * column / max(int(column.max()), 1) - 1, 2 * row / max(int(row.max()), 1) - 1
    terms = legendre_terms(across[0], across[1], order)
    factors = fitted_terms(terms, solved.level, levels.error)

    def common(geometry: Geometry, x: Floats, y: Floats) -> Floats:
        found = legendre_terms(*places(geometry, x, y), order)
        return sum((f * t for f, t in zip(factors, found, strict=True)), np.zeros(x.shape))

    return common


def _span(surface: Surface) -> tuple[float, float]:
    """Give the least and the largest value at the corners and in the middle."""
    ny, nx = surface.size
    values = [
        float(surface.values((y, y + 1, x, x + 1))[0, 0])
        for y in (0, ny // 2, ny - 1)
        for x in (0, nx // 2, nx - 1)
    ]
    return min(values), max(values)


def _without(frame: Frame, surfaces: Sequence[Surface], error: Floats) -> Frame:
    """Subtract a surface (e-) from each array, and add the variance of it."""
    data, variance = arrays_of(frame, ("data", "variance"))
    count = len(surfaces)
    added = [float(np.float32(each)) ** 2 for each in error]
    return with_arrays(
        frame,
        data=minus_surfaces(data, surfaces),
        variance=changed_scale(variance, [1.0] * count, added),
    )


def _levels_in_cells(frame: Frame, grid: Grid) -> da.Array:
    """Measure the level of each array in the cells of a grid: see `_cell_levels`.

    Of all rows: of some, frames would see other parts of the light in a cell each (in a crowded
    field levels were off by 0.4 e- then).
    """
    arrays = [*arrays_of(frame, ("data", "dq")), array(frame, "objects")]
    return measure_arrays(
        _cell_levels,
        *arrays,
        each={"geometry": geometries(frame)},
        scratch=_LEVEL_BYTES,
        grid=grid,
    )


def _cell_levels(
    data: Image,
    dq: Flags,
    objects: Mask | None,
    geometry: Geometry,
    grid: Grid,
) -> np.ndarray:
    """Measure the level of an array in cells.

    Rows (8, n): row and column of the cell, median, error of the median, y and x (pixels) of the
    middle of what was measured, and by how many cells that is off the cell's middle, in rows and
    columns.
    """
    good = (dq & np.uint16(UNUSABLE)) == 0
    if objects is not None:
        good &= ~objects
    numbers = _cell_numbers(geometry, data.shape, grid)
    cell, level, error, _ = sky_cell_medians(data, good, numbers)
    y, x = _middles(good, numbers, cell)
    row, column = np.divmod(cell.astype(np.float64), grid.shape[1])
    gx, gy = sky_to_grid(grid, *to_sky(geometry, x, y))
    return np.stack([row, column, level, error, y, x, gy - row, gx - column])


def _block_middles(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Give y and x (pixels) of the middles of the blocks of an array."""
    y, x = (np.arange(0, size, BLOCK_PIXELS) + (BLOCK_PIXELS - 1) / 2 for size in shape)
    return tuple(np.meshgrid(y, x, indexing="ij"))


def _middles(good: Mask, numbers: np.ndarray, cell: np.ndarray) -> tuple[Floats, Floats]:
    """Give y and x (pixels) of the middle of the good pixels in each cell."""
    count = _count_in_blocks(good).ravel()
    places = _block_middles(good.shape)
    inside = np.flatnonzero(np.isin(numbers.ravel(), cell))
    found = np.searchsorted(cell, numbers.ravel()[inside])
    weight = np.bincount(found, count[inside], minlength=len(cell))
    sums = (
        np.bincount(found, count[inside] * place.ravel()[inside], minlength=len(cell))
        for place in places
    )
    y, x = (total / np.maximum(weight, 1) for total in sums)
    return y, x


def _count_in_blocks(good: Mask) -> np.ndarray:
    """Count the good pixels of each block of an array; blocks at its end may be cut."""
    ny, nx = (-(-size // BLOCK_PIXELS) for size in good.shape)
    whole = ny * BLOCK_PIXELS, nx * BLOCK_PIXELS
    if good.shape != whole:
        good, part = np.zeros(whole, bool), good
        good[: part.shape[0], : part.shape[1]] = part
    # Along y first, where a byte holds a sum: as whole numbers of 8 bytes it took 20 times as long.
    in_columns = good.reshape(ny, BLOCK_PIXELS, -1).sum(axis=1, dtype=np.uint8)
    counts: np.ndarray = in_columns.reshape(ny, nx, BLOCK_PIXELS).sum(axis=2, dtype=np.int64)
    return counts


def _cell_numbers(geometry: Geometry, shape: tuple[int, ...], grid: Grid) -> np.ndarray:
    """Give the number of the cell of each block, by the block's centre; -1 off the grid."""
    y, x = _block_middles(shape)
    gx, gy = (
        np.floor(v + 0.5).astype(np.int64) for v in sky_to_grid(grid, *to_sky(geometry, x, y))
    )
    inside = (gx >= 0) & (gy >= 0) & (gx < grid.shape[1]) & (gy < grid.shape[0])
    return np.where(inside, gy * grid.shape[1] + gx, -1).astype(np.int32)
