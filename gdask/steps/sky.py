"""The sky of each frame: combined from its sky frames, brought to its level, subtracted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Any, Literal

import dask.array as da
import numpy as np
from dask._task_spec import Task, TaskRef
from dask.base import tokenize

from gdask.engine.memory import rows_within
from gdask.io.lazy_arrays import from_tasks, map_blocks
from gdask.io.read import Plane, on_disk, read_window
from gdask.kernels.stack.combine import combine
from gdask.kernels.statistics import fit_sky_level
from gdask.model import DQ, UNUSABLE, GdaskError
from gdask.params import Range
from gdask.steps.frames import (
    PIXEL,
    array,
    map_planes,
    note,
    pack,
    unpack,
    with_arrays,
    with_headers,
)
from gdask.steps.sky_frames import middle
from gdask.steps.sky_level import SkyLevel, choose_level
from gdask.types import Frame, Frames, Image

#: Rows of each sky frame that one task reads, at most: 16 frames x 256 x 2048 pixels x 10 bytes = 84 MB.
ROWS = 256


def sky_correct(
    frames: Frames,
    skies: Frames,
    *,
    offset_sky: bool | None = None,
    scale_sky: bool | None = None,
    mask_objects: bool = True,
    operation: Literal["mean", "wtmean", "median", "lmedian"] = "median",
    reject_method: Literal["none", "minmax", "sigclip", "varclip"] = "minmax",
    nlow: Annotated[int, Range(0, None)] = 1,
    nhigh: Annotated[int, Range(0, None)] = 1,
) -> Frames:
    """Subtract from each frame the combination of its sky frames. [skyCorrect]

    Every sky frame is brought to level zero (or one, with `scale_sky`) before combining, and the sky is given a level
    again before it is subtracted: with `offset_sky` or `scale_sky` the level measured on the frame itself, array by
    array; with neither the level of the sky frames interpolated to the time of the frame, which is right where the
    target fills the field. (DRAGONS levels to the first sky frame of a group, so that the sky's drift stays in.)

    Where neither is given the data decide (`choose_level`): the frame's own level, shifted or scaled as is usual for the
    instrument, but that of off-target sky frames where the target fills the field. The log and the keywords SKYLEVEL
    and SKYWHY say what was chosen and why.

    The pixels are read where they are on disk, by the tasks that need them; GdaskError where a step has changed them
    since (run.save, or write, before).

    Parameters
    ----------
    offset_sky
        Shift the sky to the frame's own background level; None: as the data or scale_sky say.
    scale_sky
        Scale the sky to the frame's own background level; None: as the data or offset_sky say.
    mask_objects
        Leave out the pixels of objects found on the sky frames.
    operation
        How sky frames are combined.
    reject_method
        How deviant pixels are rejected.
    nlow, nhigh
        Values rejected at each end by minmax.
    """
    if offset_sky and scale_sky:
        raise GdaskError(
            "sky_correct: offset_sky and scale_sky are both True; set one of them to False"
        )
    for frame in frames:
        if "skies" not in frame.attrs:
            raise GdaskError(
                f"sky_correct: {frame.attrs['name']} has no list of sky frames; associate_sky makes it"
            )
    level = choose_level(frames, skies, offset_sky, scale_sky)
    by_name = {sky.attrs["name"]: sky for sky in skies}
    used_names = {name for frame in frames for name in frame.attrs["skies"]}
    own_levels = {
        name: levels(sky, mask_objects) for name, sky in by_name.items() if name in used_names
    }  # once, for all frames
    how: dict[str, Any] = {
        "operation": operation,
        "reject": reject_method,
        "nlow": nlow,
        "nhigh": nhigh,
        "scale": level.mode == "scale",
    }
    masters: dict[tuple[str, ...], da.Array | None] = {}
    corrected = []
    for frame in frames:
        names = tuple(frame.attrs["skies"])
        used, at = tuple(by_name[name] for name in names), tuple(own_levels[name] for name in names)
        if names not in masters:
            masters[names] = _master(used, at, mask_objects, how) if used else None
        corrected.append(_subtract(frame, used, at, masters[names], level, mask_objects))
    mode = {
        "scale": "scaled to each frame",
        "offset": "shifted to each frame",
        "none": "at its own level",
    }[level.mode]
    counts = sorted(len(frame.attrs["skies"]) for frame in frames)
    some = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    text = (
        f"sky {mode} ({level.why}), from {some} frames each, {len(masters)} combinations"
        if counts[-1]
        else "no sky frames: levels alone"
    )
    return tuple(note(frame, text) for frame in corrected)


def levels(frame: Frame, mask_objects: bool = True) -> da.Array:
    """The background level of each array, lazy: float64, shape (detector, 1, 1), in the unit of the data.

    Raises GdaskError where the pixels are not on disk.
    """
    planes = _planes(
        frame, ("data", "dq", "objects") if mask_objects and "objects" in frame else ("data", "dq")
    )
    name = f"level-{tokenize(planes)}"
    tasks = {key: Task(key, _level, planes=own) for key, own in _keyed(name, planes)}
    return from_tasks(name, tasks, (), dtype="f8", chunks=((1,) * len(planes), (1,), (1,)))


def transfer_objects(frames: Frames, masked: Frames) -> Frames:
    """The frames with the object masks that were found on the sky-subtracted versions of them."""
    by_name = {frame.attrs["name"]: frame for frame in masked}
    return tuple(
        _with_objects(frame, by_name[frame.attrs["name"]])
        if frame.attrs["name"] in by_name
        else frame
        for frame in frames
    )


def _with_objects(frame: Frame, masked: Frame) -> Frame:
    stored = {name: planes for name, planes in masked.attrs["layout"].items() if name == "objects"}
    changed = with_arrays(frame, objects=array(masked, "objects"))
    return changed.assign_attrs(layout=changed.attrs["layout"] | stored)


def _planes(frame: Frame, names: Sequence[str]) -> list[tuple[Plane, ...]]:
    """For each array where these variables are on disk."""
    return list(zip(*(on_disk(frame, name) for name in names), strict=True))


def _keyed(
    name: str, planes: list[tuple[Plane, ...]]
) -> list[tuple[tuple[str, int, int, int], tuple[Plane, ...]]]:
    """Keys of an array with one block for each detector, and the planes of each."""
    return [((name, detector, 0, 0), own) for detector, own in enumerate(planes)]


def _whole(plane: Plane, dtype: str) -> np.ndarray:
    return read_window(plane, 0, plane.shape[0], 0, plane.shape[1], np.dtype(dtype))


def _level(planes: tuple[Plane, ...]) -> np.ndarray:
    """One array's level; planes: data, dq, and objects where they are to be left out."""
    mask = (_whole(planes[1], "u2") & np.uint16(UNUSABLE)) != 0
    if len(planes) > 2:
        mask |= _whole(planes[2], "bool")
    return np.full((1, 1, 1), float(fit_sky_level(_whole(planes[0], "f4"), mask)[0]))


def _master(
    skies: Frames, at: tuple[da.Array, ...], mask_objects: bool, how: dict[str, Any]
) -> da.Array:
    """PIXEL of the combination of sky frames, which are at these levels, at level zero (scale: one), in bands of rows.

    Each task reads its own rows of every frame from their files.
    """
    if how["reject"] == "minmax" and how["nlow"] + how["nhigh"] >= len(skies):
        how = how | {"reject": "none"}  # nothing would be left
    names = ("data", "variance", "dq") + (
        ("objects",) if mask_objects and all("objects" in sky for sky in skies) else ()
    )
    planes = list(
        zip(*(_planes(sky, names) for sky in skies), strict=True)
    )  # for each array, of each frame
    ny, nx = skies[0].sizes["y"], skies[0].sizes["x"]
    rows = rows_within(len(skies) * nx * PIXEL.itemsize, ROWS, 16)
    if any(plane.offset < 0 for own in planes for each in own for plane in each):
        rows = ny  # a compressed file is decoded whole
    bands = tuple(min(rows, ny - y) for y in range(0, ny, rows))
    name = f"sky-{tokenize(planes, rows, how, [level.name for level in at])}"
    tasks: dict[object, object] = {}
    for detector, own in enumerate(planes):
        of_frames = [TaskRef((level.name, detector, 0, 0)) for level in at]
        for band, height in enumerate(bands):
            key, window = (name, detector, band, 0), (band * rows, band * rows + height, 0, nx)
            tasks[key] = Task(
                key,
                _combine_skies,
                *of_frames,
                planes=own,
                window=window,
                gathers=len(skies) * height * nx * PIXEL.itemsize,
                **how,
            )
    return from_tasks(name, tasks, at, dtype=PIXEL, chunks=((1,) * len(planes), bands, (nx,)))


def _combine_skies(
    *levels_: np.ndarray,
    planes: tuple[tuple[Plane, ...], ...],
    window: tuple[int, int, int, int],
    gathers: int,
    operation: str,
    reject: str,
    nlow: int,
    nhigh: int,
    scale: bool,
) -> np.ndarray:
    """A band of the master sky; planes: data, variance, dq and perhaps objects of each frame; gathers: bytes, for the
    projection of memory."""
    count = len(planes)
    shape = count, window[1] - window[0], window[3] - window[2]
    cubes = data, variance, dq = np.empty(shape, "f4"), np.empty(shape, "f4"), np.empty(shape, "u2")
    for number, own in enumerate(planes):
        for cube, plane in zip(cubes, own, strict=False):
            cube[number] = read_window(plane, *window, cube.dtype)
        if len(own) > 3:
            dq[number][read_window(own[3], *window, np.dtype(bool))] |= np.uint16(DQ.NO_DATA)
    level = np.array([value.item() for value in levels_])
    scales = 1.0 / level if scale else np.ones(count)
    zeros = np.zeros(count) if scale else -level
    return pack(
        *combine(
            data,
            variance,
            dq,
            method=operation,
            reject=reject,
            nlow=nlow,
            nhigh=nhigh,
            scale=scales,
            zero=zeros,
        )[:3]
    )[None]


def _subtract(
    frame: Frame,
    skies: Frames,
    at: tuple[da.Array, ...],
    master: da.Array | None,
    level: SkyLevel,
    mask_objects: bool,
) -> Frame:
    chosen: dict[str, object] = {
        "SKYLEVEL": (level.mode, "sky shifted, scaled to the frame, or as it is"),
        "SKYWHY": level.why,
    }
    if master is None:
        data = map_planes(
            _minus_level, array(frame, "data"), levels(frame, mask_objects), dtype="f4"
        )
        return with_headers(
            with_arrays(frame, data=data),
            primary=chosen | {"SKYFRMS": (0, "only the level was subtracted")},
        )
    between = (tuple(middle(sky) for sky in skies), middle(frame)) if level.mode == "none" else None
    planes = _planes(frame, ("data", "variance", "dq"))
    of = at if between else (levels(frame, mask_objects),)
    how = {"planes": planes, "scale": level.mode == "scale", "between": between}
    packed = map_blocks(
        _minus_sky,
        *of,
        in_bands=master,
        name=f"minus_sky-{tokenize([each.name for each in of], master.name, how)}",
        dtype=PIXEL,
        chunks=(master.chunks[0], (master.shape[1],), master.chunks[2]),
        placed=True,
        **how,
    )
    primary = chosen | {"SKYFRMS": (len(skies), "sky frames combined")}
    primary |= {f"SKYFR{number:03d}": sky.attrs["name"] for number, sky in enumerate(skies, 1)}
    rows = [
        row | {"provenance_added_by": "sky_correct"}
        for sky in skies
        for row in sky.attrs.get("provenance", ())[:1]
    ]
    subtracted = with_arrays(frame, **unpack(packed)).assign_attrs(
        provenance=(*frame.attrs.get("provenance", ()), *rows)
    )
    return with_headers(subtracted, primary=primary)


def _minus_level(data: Image, level: np.ndarray) -> Image:
    return data - np.float32(level.item())


def _minus_sky(
    place: tuple[int, int, int],
    *given: Any,
    planes: list[tuple[Plane, ...]],
    scale: bool,
    between: tuple[tuple[float, ...], float] | None,
) -> np.ndarray:
    """One array without the sky. given: the array's level, and the bands of the sky; planes: data, variance, dq of each array.

    between: with the levels of several frames instead, the times of these and the time for which the level is wanted.
    """
    *levels_, sky = given
    own_planes = planes[place[0]]
    value = np.float32(_interpolate(levels_, *between) if between else levels_[0].item())
    packed = np.empty((1, *own_planes[0].shape), PIXEL)
    for band, y in zip(sky, accumulate((band.shape[1] for band in sky), initial=0), strict=False):
        window = y, y + band.shape[1], 0, band.shape[2]
        data, variance, dq = (
            read_window(plane, *window, np.dtype(kind))
            for plane, kind in zip(own_planes, ("f4", "f4", "u2"), strict=True)
        )
        own, rows = band[0], packed[0, y : y + band.shape[1]]
        rows["data"] = data - own["data"] * value if scale else data - (own["data"] + value)
        rows["variance"] = variance + (
            own["variance"] * (value * value) if scale else own["variance"]
        )
        rows["dq"] = dq | own["dq"] & np.uint16(DQ.NO_DATA)
    return packed


def _interpolate(levels_: Sequence[np.ndarray], times: tuple[float, ...], when: float) -> float:
    """The level at `when`, linear between the sky frames around it and constant outside them."""
    order = np.argsort(times, kind="stable")
    values = np.array([level.item() for level in levels_])[order]
    return float(np.interp(when, np.asarray(times)[order], values))
