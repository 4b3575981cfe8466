"""Combine the sky of each frame from its sky frames, bring it to its level, and subtract it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from dask.base import tokenize

from gdask.io.frames import note, records, sky_names, with_headers, with_records
from gdask.io.gather import gather
from gdask.io.lazy_arrays import band_chunks, map_planes
from gdask.io.sources import Memo, Source
from gdask.kernels.stack.combine import combine
from gdask.kernels.statistics import fit_sky_level
from gdask.model import DQ, UNUSABLE, GdaskError, late
from gdask.params import Range, refuses
from gdask.steps.frames import (
    BAND_ROWS,
    PIXEL,
    VARIABLES,
    array,
    arrays_of,
    on_group,
    pack,
    strip_rows,
    unpack,
    with_arrays,
)
from gdask.steps.levels import SkyLevel, choose_level
from gdask.steps.sky_frames import middle_of_exposure
from gdask.types import Frame, Frames, Image, Window

if TYPE_CHECKING:
    import dask.array as da
else:
    da = late("dask.array")

#: Rows of a strip of sky frames that a task combines at a time, at least.
_FEWEST_ROWS = 16
#: Bytes that tasks take beside their result, measured by `python -m benchmarks.scaling.scratch`,
#: with a fifth to a third added: for each pixel of the array, its level (10: data, flags, mask,
#: sorting).
_LEVEL_BYTES = 13.0
#: For each pixel of a band, a subtraction (42: data, variance, flags and sky of the band, and
#: products of them).
_SUBTRACTION_BYTES = 50.0
#: For each byte of the pixels of all frames in a strip, a combination (1.0 to 1.1: the cubes; it
#: goes pixel by pixel).
_COMBINATION_SHARE = 1.3


def _level_conflict(values: Mapping[str, Any]) -> str:
    """Say why parameters do not go together; '' where they do."""
    both = values["offset_sky"] and values["scale_sky"]
    return "offset_sky and scale_sky are both True; set one of them to False" if both else ""


@refuses(_level_conflict)
@on_group
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

    Every sky frame is brought to level zero (or one, with `scale_sky`) before combining, and the
    sky is given a level again before it is subtracted: with `offset_sky` or `scale_sky` the level
    measured on the frame itself, array by array; with neither the level of the sky frames
    interpolated to the time of the frame, which is right where the target fills the field. (DRAGONS
    levels to the first sky frame of a group, so that the sky's drift stays in.)

    Where neither is given the data decide (`choose_level`): the frame's own level, shifted or
    scaled as is usual for the instrument, but that of off-target sky frames where the target fills
    the field. The log and the keywords SKYLEVEL and SKYWHY say what was chosen and why.

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
    if conflict := _level_conflict({"offset_sky": offset_sky, "scale_sky": scale_sky}):
        raise GdaskError(f"sky_correct: {conflict}")
    for frame in frames:
        if sky_names(frame) is None:
            raise GdaskError(
                f"sky_correct: {frame.attrs['name']} has no list of sky frames; "
                "associate_sky makes it"
            )
    level = choose_level(frames, skies, offset_sky, scale_sky)
    by_name = {sky.attrs["name"]: sky for sky in skies}
    names_of_frames = [sky_names(frame) or () for frame in frames]
    used_names = {name for names in names_of_frames for name in names}
    # Measured once, for all frames.
    levels = {
        name: sky_levels(by_name[name], mask_objects) for name in by_name if name in used_names
    }
    combination: dict[str, Any] = {
        "operation": operation,
        "reject": reject_method,
        "nlow": nlow,
        "nhigh": nhigh,
        "scale": level.mode == "scale",
    }
    masters: dict[tuple[str, ...], da.Array | None] = {}
    corrected = []
    for frame, names in zip(frames, names_of_frames, strict=True):
        used = tuple(by_name[name] for name in names)
        used_levels = tuple(levels[name] for name in names)
        if names not in masters:
            masters[names] = (
                _master_sky(used, used_levels, mask_objects, combination) if used else None
            )
        corrected.append(_subtract(frame, used, used_levels, masters[names], level, mask_objects))
    text = _remark(level, [len(names) for names in names_of_frames], len(masters))
    return tuple(note(frame, text) for frame in corrected)


def _remark(level: SkyLevel, counts: Sequence[int], n_masters: int) -> str:
    """Describe the skies in words. counts: sky frames of each frame."""
    mode = {
        "scale": "scaled to each frame",
        "offset": "shifted to each frame",
        "none": "at its own level",
    }[level.mode]
    if not max(counts):
        return "no sky frames: levels alone"
    fewest, most = min(counts), max(counts)
    number = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return f"sky {mode} ({level.why}), from {number} frames each, {n_masters} combinations"


def sky_levels(frame: Frame, mask_objects: bool = True) -> da.Array:
    """Give the background level of each array in the unit of the data, lazy.

    float64, shape (detector,).
    """
    names = ("data", "dq", "objects") if mask_objects and "objects" in frame else ("data", "dq")
    arrays = arrays_of(frame, names)
    count, ny, nx = arrays[0].shape
    whole = (0, ny, 0, nx)
    return gather(
        _level,
        arrays,
        name=f"level-{tokenize([each.name for each in arrays])}",
        dtype="f8",
        chunks=((1,) * count,),
        windows=lambda _, detector, __: [(detector, whole)],
        scratch=_LEVEL_BYTES * ny * nx,
        whole=whole,
    )


def transfer_objects(frames: Frames, masked: Frames) -> Frames:
    """Give the frames the object masks that were found on their sky-subtracted versions."""
    by_name = {frame.attrs["name"]: frame for frame in masked}
    return tuple(
        with_arrays(frame, objects=array(by_name[frame.attrs["name"]], "objects"))
        if frame.attrs["name"] in by_name
        else frame
        for frame in frames
    )


def _level(sources: tuple[Source, ...], detector: int, window: Window, whole: Window) -> Any:
    """Measure one array's level; sources: data, dq, and objects where they are left out."""
    data, dq, *objects = (source.read(detector, whole, {}) for source in sources)
    mask = (dq & np.uint16(UNUSABLE)) != 0
    for found in objects:
        mask |= found
    return float(fit_sky_level(data, mask)[0])


def _master_sky(
    skies: Frames, levels: tuple[da.Array, ...], mask_objects: bool, combination: dict[str, Any]
) -> da.Array:
    """Combine sky frames at level zero (with scale: one) into PIXEL, in bands of rows.

    levels: the level of each sky frame. combination: parameters of `_combine_skies`.
    """
    rejects_all = combination["nlow"] + combination["nhigh"] >= len(skies)
    if combination["reject"] == "minmax" and rejects_all:
        combination = combination | {"reject": "none"}
    masked = mask_objects and all("objects" in sky for sky in skies)
    names = (*VARIABLES, "objects") if masked else VARIABLES
    arrays = [each for sky in skies for each in arrays_of(sky, names)]
    count, ny, nx = arrays[0].shape
    row_bytes = len(skies) * nx * PIXEL.itemsize
    rows = min(strip_rows(row_bytes, _FEWEST_ROWS), BAND_ROWS)
    identity = [each.name for each in (*arrays, *levels)]
    return gather(
        _combine_skies,
        arrays,
        name=f"sky-{tokenize(identity, combination)}",
        dtype=PIXEL,
        chunks=((1,) * count, band_chunks(ny, BAND_ROWS), (nx,)),
        windows=lambda _, detector, window: [(detector, window)],
        values=levels,
        scratch=_COMBINATION_SHARE * rows * row_bytes,
        names=names,
        rows=rows,
        **combination,
    )


def _combine_skies(
    sources: tuple[Source, ...],
    detector: int,
    window: Window,
    *levels: float,
    names: tuple[str, ...],
    rows: int,
    operation: str,
    reject: str,
    nlow: int,
    nhigh: int,
    scale: bool,
) -> np.ndarray:
    """Combine a band of the master sky, so many rows at a time.

    sources: the variables `names` of each frame in turn.
    """
    y1, y2, x1, x2 = window
    values = np.array(levels)
    scales = 1.0 / values if scale else np.ones(len(values))
    zeros = np.zeros(len(values)) if scale else -values
    band = np.empty((y2 - y1, x2 - x1), PIXEL)
    for y in range(y1, y2, rows):
        strip = (y, min(y + rows, y2), x1, x2)
        planes = combine(
            *_read_skies(sources, detector, strip, names),
            method=operation,
            reject=reject,
            nlow=nlow,
            nhigh=nhigh,
            scale=scales,
            zero=zeros,
        )[:3]
        pack(*planes, out=band[y - y1 : strip[1] - y1])
    return band


def _read_skies(
    sources: tuple[Source, ...], detector: int, strip: Window, names: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read cubes (frame, y, x) of data, variance and DQ; pixels of objects are flagged NO_DATA."""
    count = len(sources) // len(names)
    shape = count, strip[1] - strip[0], strip[3] - strip[2]
    cubes = data, variance, dq = np.empty(shape, "f4"), np.empty(shape, "f4"), np.empty(shape, "u2")
    for number in range(count):
        of_frame = sources[number * len(names) : (number + 1) * len(names)]
        memo: Memo = {}
        for cube, source in zip(cubes, of_frame, strict=False):
            cube[number] = source.read(detector, strip, memo)
        if len(of_frame) > len(cubes):
            dq[number][of_frame[3].read(detector, strip, memo)] |= np.uint16(DQ.NO_DATA)
    return data, variance, dq


def _subtract(
    frame: Frame,
    skies: Frames,
    levels: tuple[da.Array, ...],
    master: da.Array | None,
    level: SkyLevel,
    mask_objects: bool,
) -> Frame:
    """Subtract from a frame its sky, brought to its level, or without sky frames its level alone.

    levels: of the sky frames. master: what they were combined into.
    """
    chosen: dict[str, object] = {
        "SKYLEVEL": (level.mode, "sky shifted, scaled to the frame, or as it is"),
        "SKYWHY": level.why,
    }
    if master is None:
        own_level = sky_levels(frame, mask_objects)
        data = map_planes(_minus_level, array(frame, "data"), own_level, dtype="f4")
        chosen["SKYFRMS"] = (0, "only the level was subtracted")
        return with_headers(with_arrays(frame, data=data), primary=chosen)
    times = None
    if level.mode == "none":
        times = tuple(middle_of_exposure(sky) for sky in skies), middle_of_exposure(frame)
    given_levels = levels if times else (sky_levels(frame, mask_objects),)
    arrays = [*arrays_of(frame), master]
    identity = [each.name for each in (*arrays, *given_levels)]
    scale = level.mode == "scale"
    packed = gather(
        _minus_sky,
        arrays,
        name=f"minus_sky-{tokenize(identity, scale, times)}",
        dtype=PIXEL,
        chunks=(master.chunks[0], (master.shape[1],), master.chunks[2]),
        windows=lambda _, detector, window: [(detector, window)],
        values=given_levels,
        scratch=_SUBTRACTION_BYTES * min(BAND_ROWS, master.shape[1]) * master.shape[2],
        scale=scale,
        times=times,
    )
    primary = chosen | {"SKYFRMS": (len(skies), "sky frames combined")}
    primary |= {f"SKYFR{number:03d}": sky.attrs["name"] for number, sky in enumerate(skies, 1)}
    rows = [
        row | {"provenance_added_by": "sky_correct"}
        for sky in skies
        for row in records(sky, "provenance")[:1]
    ]
    subtracted = with_records(with_arrays(frame, **unpack(packed)), "provenance", rows)
    return with_headers(subtracted, primary=primary)


def _minus_level(data: Image, level: float) -> Image:
    return data - np.float32(level)


def _minus_sky(
    sources: tuple[Source, ...],
    detector: int,
    window: Window,
    *levels: float,
    scale: bool,
    times: tuple[tuple[float, ...], float] | None,
) -> np.ndarray:
    """Subtract the sky from a window; sources: data, variance and dq of the frame, and the sky.

    levels: that of the frame, or, with `times`, those of the sky frames. times: of the sky frames,
    and of the frame (s), for which the level is interpolated.
    """
    value = np.float32(_interpolate(levels, *times) if times else levels[0])
    y1, y2, x1, x2 = window
    packed = np.empty((y2 - y1, x2 - x1), PIXEL)
    for y in range(y1, y2, BAND_ROWS):
        band = (y, min(y + BAND_ROWS, y2), x1, x2)
        data, variance, dq, sky = (source.read(detector, band, {}) for source in sources)
        rows = packed[y - y1 : band[1] - y1]
        light = sky["data"] * value if scale else sky["data"] + value
        rows["data"] = data - light
        noise = sky["variance"] * (value * value) if scale else sky["variance"]
        rows["variance"] = variance + noise
        rows["dq"] = dq | sky["dq"] & np.uint16(DQ.NO_DATA)
    return packed


def _interpolate(levels: Sequence[float], times: tuple[float, ...], when: float) -> float:
    """Give the level at time `when`: linear between sky frames, constant before and after them."""
    order = np.argsort(times, kind="stable")
    return float(np.interp(when, np.asarray(times)[order], np.array(levels)[order]))
