"""Combining frames: darks, flats, images."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

import dask.array as da
import numpy as np
from dask._task_spec import DataNode, Task, TaskRef
from dask.base import tokenize

from gdask.engine.memory import rows_within
from gdask.instruments import descriptor, tags
from gdask.io.lazy_arrays import edges, from_tasks
from gdask.kernels.geometry.grid import Grid, Window
from gdask.kernels.stack.combine import combine
from gdask.kernels.stack.grow import GROW_MARGIN, Planes, combine_without_rejected, grow_rejected
from gdask.model import GdaskError
from gdask.params import Range
from gdask.steps.frames import PIXEL, array, map_planes, note, pack, replaced, unpack, with_headers
from gdask.steps.resample import Source, is_as_resampled, resample_window
from gdask.types import Frame, Frames

Operation = Literal["mean", "wtmean", "median", "lmedian"]
Reject = Literal["none", "minmax", "sigclip", "varclip", "noiseclip"]

#: Seconds to which exposure times are the same.
SAME_TIME = 0.01
#: Rows of a band of the stack, at least: its two rims do not touch.
FEWEST_ROWS = 2 * GROW_MARGIN
#: Rows in which rejected values' neighbours are left out at a time: what that takes beside the planes is a small part.
ROWS = 16
#: Bytes of all frames' pixels (data, variance, dq) that a task gathers: a tile of many frames is made in strips of rows.
STACK_BYTES = 32e6
#: Rows of a strip, at least: of what surrounds it, 2 rows on each side, and the resampling kernel needs more beside.
FEWEST_IN_STRIP = 16


def stack_frames(
    frames: Frames,
    *,
    operation: Operation = "mean",
    reject_method: Reject = "noiseclip",
    lsigma: Annotated[float, Range(0, None)] = 3.0,
    hsigma: Annotated[float, Range(0, None)] = 3.0,
    mclip: bool = True,
    max_iters: Annotated[int, Range(1, None)] | None = None,
    nlow: Annotated[int, Range(0, None)] = 0,
    nhigh: Annotated[int, Range(0, None)] = 0,
    grow: bool = True,
    zero: bool = False,
) -> Frame:
    """Combine frames pixel by pixel into one, aware of DQ, variance propagated. [stackFrames]

    Parameters
    ----------
    operation
        mean, wtmean (weights 1/variance), median or lmedian (the lower of the two middle values).
    reject_method
        none, minmax, sigclip (scatter of the values), varclip (their variance) or noiseclip (their median variance and,
        in starlight, the scatter of most of them: cosmic rays go, stars stay whole under changes of the seeing).
    lsigma, hsigma
        Limits of the clipping, in standard deviations.
    mclip
        Clip about the median; False clips about the mean.
    max_iters
        Most rounds of clipping; None goes on until nothing is rejected.
    nlow, nhigh
        Values that minmax rejects at each end, for a full set of inputs.
    grow
        Reject with two or more touching values of a frame all that touch them, too: the faint rims of cosmic rays.
        Not for none and minmax.
    zero
        Not offered for stacks: levels are matched by match_sky_levels. Must be False.
    """
    if zero:
        raise GdaskError(
            "stack_frames: zero=True is not offered; match_sky_levels makes the levels consistent"
        )
    check_alike(frames)
    how = {
        "method": operation,
        "reject": reject_method,
        "lsigma": lsigma,
        "hsigma": hsigma,
        "mclip": mclip,
        "max_iters": max_iters,
        "nlow": nlow,
        "nhigh": nhigh,
    }
    grow = grow and reject_method.endswith("clip")
    packed = (
        _resampled_stack(frames, how, grow)
        if all(map(is_as_resampled, frames))
        else _stacked(_in_whole_rows(frames), how, grow)
    )
    stack = replaced(frames[0], **unpack(packed)).assign_attrs(
        pending={}, provenance=_inputs_of(frames), inputs=_sources(frames)
    )
    text = f"{len(frames)} frames, {operation}, {reject_method}{_check_darks(frames)}"
    of_one = {key: None for key in stack.attrs["phu"] if key.startswith("SKYFR")}
    return note(with_headers(stack, primary=of_one | combined_keywords(frames)), text)


def combined_keywords(frames: Frames) -> dict[str, object]:
    """Header keywords of a stack: inputs, number, mean air mass, and the exposure time that is truly in it."""
    keywords: dict[str, object] = {"NCOMBINE": (len(frames), "Number of input images")}
    for number, frame in enumerate(frames, 1):
        keywords[f"IMCMB{number:03d}"] = frame.attrs["name"]
    times = [float(descriptor(frame, "exposure_time") or 0) for frame in frames]
    keywords["EXPTIME"] = (times[0], "Exposure time of the pixel values (s)")
    keywords["TOTEXP"] = (sum(times), "Total exposure time of all inputs (s)")
    air = [
        value for value in (descriptor(frame, "airmass") for frame in frames) if value is not None
    ]
    if air:
        keywords["AIRMASS"] = (float(np.mean(air)), "Mean airmass of the inputs")
    return keywords


def check_alike(frames: Frames) -> None:
    """Raise GdaskError where frames to be combined differ in shape, filter or unit."""
    if not frames:
        raise GdaskError("nothing to combine: every frame was set aside (see the list of reasons)")
    for frame in frames[1:]:
        for what, one, other in (
            ("shape", dict(frames[0].sizes), dict(frame.sizes)),
            (
                "filter",
                descriptor(frames[0], "filter_name", pretty=True),
                descriptor(frame, "filter_name", pretty=True),
            ),
        ):
            if one != other:
                raise GdaskError(
                    f"{frame.attrs['name']}: {what} {other}, but {frames[0].attrs['name']} has {one}; reduce them apart"
                )


def same_exposure(one: Frame, other: Frame) -> bool:
    """The same exposure time (to 0.01 s: headers say 60.001 and 60.002 s), coadds and read mode."""
    times = [float(descriptor(frame, "exposure_time")) for frame in (one, other)]
    alike = all(
        descriptor(one, name) == descriptor(other, name) for name in ("coadds", "read_mode")
    )
    return alike and abs(times[0] - times[1]) <= SAME_TIME


def _check_darks(frames: Frames) -> str:
    """Darks of one stack have one exposure time; a remark where the headers' values differ by a little."""
    if "DARK" not in tags(frames[0]):
        return ""
    for frame in frames[1:]:
        if not same_exposure(frames[0], frame):
            was, is_ = (
                f"{float(descriptor(f, 'exposure_time')):g} s x {descriptor(f, 'coadds')}, read mode {descriptor(f, 'read_mode')}"
                for f in (frames[0], frame)
            )
            raise GdaskError(
                f"{frame.attrs['name']}: a dark of {is_}, but {frames[0].attrs['name']} has {was}; reduce them apart"
            )
    times = sorted({float(descriptor(frame, "exposure_time")) for frame in frames})
    return f"; {times[0]:g} to {times[-1]:g} s taken as one exposure time" if len(times) > 1 else ""


def _sources(frames: Frames) -> tuple[dict[str, object], ...]:
    """Of each input: name, geometry of its arrays, and how well it was aligned."""
    return tuple(
        {
            "name": frame.attrs["name"],
            "geometry": frame.attrs.get("source_geometry", ()),
            **(frame.attrs.get("solution") or {}),
        }
        for frame in frames
    )


def _inputs_of(frames: Frames) -> tuple[dict[str, str], ...]:
    rows = [row for frame in frames for row in frame.attrs.get("provenance", ())]
    return tuple({tuple(sorted(row.items())): row for row in rows}.values())


def _in_whole_rows(frames: Frames) -> Frames:
    """The frames in bands of whole rows, each high enough that what lies beyond the next one tells nothing."""
    bands: list[int] = []
    for height in frames[0]["data"].data.chunks[1]:
        if bands and (bands[-1] < FEWEST_ROWS or height < FEWEST_ROWS):
            bands[-1] += height
        else:
            bands.append(height)
    return tuple(frame.chunk({"y": tuple(bands), "x": -1}) for frame in frames)


def _stacked(frames: Frames, how: dict[str, object], grow: bool) -> da.Array:
    """PIXEL of the stack of frames in bands of whole rows."""
    planes = [array(frame, name) for name in ("data", "variance", "dq") for frame in frames]
    packed = map_planes(_combine, *planes, dtype=PIXEL, count=len(frames), how=how, grow=grow)
    if not grow or packed.numblocks[1] == 1:
        return packed
    rims = map_planes(_rims, *planes, dtype=object, whole=True, count=len(frames), how=how)
    return _with_neighbours(packed, rims, str(how["method"]))


def _combine(*planes: np.ndarray, count: int, how: dict[str, object], grow: bool) -> np.ndarray:
    return pack(*_combined(_cubes(planes, count), how, grow))


def _combined(cubes: Planes, how: dict[str, object], grow: bool) -> Planes:
    """Data, variance and DQ of the stack of planes (n, ny, nx)."""
    rejected = np.zeros(cubes[0].shape, bool) if grow else None
    result = combine(*cubes, **how, rejected=rejected)[:3]  # type: ignore[arg-type]
    if rejected is not None:
        near = grow_rejected(rejected)
        for start in range(0, rejected.shape[1], ROWS):
            rows = slice(start, start + ROWS)
            part = tuple(plane[rows] for plane in result)
            combine_without_rejected(
                part,
                tuple(cube[:, rows] for cube in cubes),
                rejected[:, rows],
                near[:, rows],
                str(how["method"]),
            )  # type: ignore[arg-type]
    return result


def _resampled_stack(frames: Frames, how: dict[str, object], grow: bool) -> da.Array:
    """PIXEL of the stack of resampled frames. A task makes a tile from the files of all frames, one frame after another: in
    a graph with a tile of each frame as a task, 5365 of them, 64 frames took 1 GB, and their number grew with the frames."""
    sources, grid = tuple(frame.attrs["source"] for frame in frames), frames[0].attrs["grid"]
    chunks = frames[0]["data"].data.chunks
    _, ys, xs = edges(chunks)
    name = f"stack-{tokenize(sources, grid, how, grow, chunks)}"
    given = f"sources-{name}"
    tasks: dict[object, object] = {
        given: DataNode(given, sources)
    }  # one node: in each task they would travel with each
    for j, (y1, y2) in enumerate(pairwise(ys)):
        for i, (x1, x2) in enumerate(pairwise(xs)):
            key, row = (name, 0, j, i), len(frames) * (x2 - x1) * PIXEL.itemsize
            rows = min(
                rows_within(row, max(int(STACK_BYTES / row), FEWEST_IN_STRIP), FEWEST_IN_STRIP),
                y2 - y1,
            )
            tasks[key] = Task(
                key,
                _stack_tile,
                TaskRef(given),
                grid=grid,
                window=(y1, y2, x1, x2),
                rows=rows,
                gathers=rows * row,
                how=how,
                grow=grow,
            )
    return from_tasks(name, tasks, (), dtype=PIXEL, chunks=chunks)


def _stack_tile(
    sources: tuple[Source, ...],
    grid: Grid,
    window: Window,
    rows: int,
    gathers: int,
    how: dict[str, object],
    grow: bool,
) -> np.ndarray:
    """The stack in a window of the grid, so many rows at a time. gathers: bytes, for the projection of memory."""
    y1, y2, x1, x2 = window
    return np.concatenate(
        [
            _strip(sources, grid, (y, min(y + rows, y2), x1, x2), how, grow)
            for y in range(y1, y2, rows)
        ]
    )[None]


def _strip(
    sources: tuple[Source, ...], grid: Grid, window: Window, how: dict[str, object], grow: bool
) -> np.ndarray:
    """What lies around the window is looked at as far as it tells which neighbours of rejected values go."""
    reach = GROW_MARGIN if grow else 0
    (y1, y2, x1, x2), (ny, nx) = window, grid.shape
    around = max(y1 - reach, 0), min(y2 + reach, ny), max(x1 - reach, 0), min(x2 + reach, nx)
    shape = len(sources), around[1] - around[0], around[3] - around[2]
    cubes = np.empty(shape, "f4"), np.empty(shape, "f4"), np.empty(shape, "u2")
    for number, source in enumerate(sources):
        resample_window(source, grid, around, tuple(cube[number] for cube in cubes))  # type: ignore[arg-type]
    rows, columns = slice(y1 - around[0], y2 - around[0]), slice(x1 - around[2], x2 - around[2])
    return pack(*(plane[rows, columns] for plane in _combined(cubes, how, grow)))


def _cubes(planes: tuple[np.ndarray, ...], count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(np.stack(planes[at : at + count]) for at in (0, count, 2 * count))  # type: ignore[return-value]


class _Rim(NamedTuple):
    """At one end of a band: the planes of the GROW_MARGIN outermost rows, and the rejected values of twice as many."""

    planes: Planes
    rejected: np.ndarray


def _rims(*planes: np.ndarray, count: int, how: dict[str, object]) -> tuple[_Rim, _Rim]:
    """First and last rows of a band."""
    rims = []
    for rows, outer in (
        (slice(None, 2 * GROW_MARGIN), slice(None, GROW_MARGIN)),
        (slice(-2 * GROW_MARGIN, None), slice(-GROW_MARGIN, None)),
    ):
        cubes = _cubes(tuple(plane[rows] for plane in planes), count)
        rejected = np.zeros(cubes[0].shape, bool)
        combine(*cubes, **how, rejected=rejected)  # type: ignore[arg-type]
        rims.append(_Rim(tuple(np.ascontiguousarray(cube[:, outer]) for cube in cubes), rejected))  # type: ignore[arg-type]
    return rims[0], rims[1]


def _with_neighbours(packed: da.Array, rims: da.Array, method: str) -> da.Array:
    """The stack with its bands' outermost rows grown into from the bands beside them."""
    nothing = da.full((rims.shape[0], 1, 1), None, dtype=object, chunks=1)
    above = da.concatenate([nothing, rims[:, :-1]], axis=1)
    below = da.concatenate([rims[:, 1:], nothing], axis=1)
    name = f"grow-{tokenize(packed.name, rims.name, method)}"
    return da.map_blocks(
        _grow_rims,
        packed,
        rims,
        above,
        below,
        method=method,
        name=name,
        chunks=packed.chunks,
        dtype=PIXEL,
        meta=np.empty((0, 0, 0), PIXEL),
    )


def _grow_rims(
    packed: np.ndarray, own: np.ndarray, above: np.ndarray, below: np.ndarray, method: str
) -> np.ndarray:
    """One band; above, below: the rims of its neighbours, or None."""
    out = packed.copy()
    (first, last), before, after = own[0, 0, 0], above[0, 0, 0], below[0, 0, 0]
    for mine, rows, other, at in (
        (
            first,
            slice(None, GROW_MARGIN),
            before and before[1],
            slice(GROW_MARGIN, 2 * GROW_MARGIN),
        ),
        (last, slice(-GROW_MARGIN, None), after and after[0], slice(GROW_MARGIN, 2 * GROW_MARGIN)),
    ):
        if other is None:
            continue
        both = (
            (other.rejected[:, -GROW_MARGIN:], mine.rejected)
            if rows.stop
            else (mine.rejected, other.rejected[:, :GROW_MARGIN])
        )
        result = tuple(np.ascontiguousarray(out[name][0, rows]) for name in PIXEL.names or ())
        context = np.concatenate(both, axis=1)
        combine_without_rejected(
            result, mine.planes, context[:, at], grow_rejected(context)[:, at], method
        )  # type: ignore[arg-type]
        for name, plane in zip(PIXEL.names or (), result, strict=True):
            out[name][0, rows] = plane
    return out
