"""Combine the sky of each frame from its sky frames, bring it to its level, and subtract it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from gdask.io.frames import note, records, shape_of, sky_names, with_headers, with_records
from gdask.io.gather import measure_arrays
from gdask.io.lazy_arrays import map_planes
from gdask.kernels.statistics import fit_sky_level
from gdask.model import GdaskError, late
from gdask.params import Range, refuses
from gdask.steps.frames import (
    PIXEL_BYTES,
    array,
    arrays_of,
    named,
    on_group,
    with_arrays,
    without_sky_in_levels,
)
from gdask.steps.levels import SkyLevel, choose_level
from gdask.steps.sky_subtraction import GROUP_BYTES, MOST_IN_GROUP, Wanted, subtract_skies
from gdask.types import Flags, Frame, Frames, Image, Mask

if TYPE_CHECKING:
    import dask.array as da
else:
    da = late("dask.array")

#: Pixels of an array from whose rows its level is measured: the level is then good to 0.001 sigma.
_LEVEL_PIXELS = 2**20
#: Bytes for each of them: data, flags, masks, and what is counted.
_LEVEL_BYTES = 16.0


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
    wanted = [
        Wanted(
            frame,
            tuple(by_name[name] for name in names),
            tuple(levels[name] for name in names),
            sky_levels(frame, mask_objects) if level.mode != "none" or not names else None,
        )
        for frame, names in zip(frames, names_of_frames, strict=True)
    ]
    subtracted: dict[int, list[da.Array]] = {}
    for group in _groups(wanted):
        members = [wanted[number] for number in group]
        subtracted |= zip(group, subtract_skies(members, mask_objects, combination), strict=True)
    corrected = [
        _corrected(each, subtracted.get(number), level) for number, each in enumerate(wanted)
    ]
    text = _remark(level, [len(names) for names in names_of_frames], len(set(names_of_frames)))
    return tuple(note(without_sky_in_levels(frame), text) for frame in corrected)


def _groups(wanted: Sequence[Wanted]) -> list[list[int]]:
    """Sort frames with sky frames into groups of which one task makes a band of rows.

    Neighbours in time have most of their sky frames in common, which the task reads once. Gives
    the numbers of the members of each group.
    """
    groups: list[list[int]] = []
    for number, each in enumerate(wanted):
        if not each.skies:
            continue
        shape = array_shape(each.frame)
        most = max(int(GROUP_BYTES // max(PIXEL_BYTES * shape[1] * shape[2], 1)), 1)
        is_full = not groups or len(groups[-1]) >= min(most, MOST_IN_GROUP)
        if is_full or array_shape(wanted[groups[-1][0]].frame) != shape:
            groups.append([])
        groups[-1].append(number)
    return groups


def array_shape(frame: Frame) -> tuple[int, int, int]:
    """Give (detectors, ny, nx) of a Frame."""
    return (frame.sizes["detector"], *shape_of(frame))


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
    masked = array(frame, "objects") if mask_objects else None
    return measure_arrays(
        _level,
        *arrays_of(frame, ("data", "dq")),
        masked,
        dtype="f8",
        scratch=_LEVEL_BYTES,
        sample=_LEVEL_PIXELS,
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


def _level(data: Image, dq: Flags, objects: Mask | None) -> float:
    """Measure one array's level, without objects where they are known."""
    return fit_sky_level(data, objects, dq).level


def _corrected(each: Wanted, planes: list[da.Array] | None, level: SkyLevel) -> Frame:
    """Give a frame with its sky, or without sky frames its level alone, subtracted."""
    frame, skies = each.frame, each.skies
    chosen: dict[str, object] = {
        "SKYLEVEL": (level.mode, "sky shifted, scaled to the frame, or as it is"),
        "SKYWHY": level.why,
    }
    if planes is None:
        data = map_planes(_minus_level, array(frame, "data"), each.own_level, dtype="f4")
        chosen["SKYFRMS"] = (0, "only the level was subtracted")
        return with_headers(with_arrays(frame, data=data), primary=chosen)
    primary = chosen | {"SKYFRMS": (len(skies), "sky frames combined")}
    primary |= {f"SKYFR{number:03d}": sky.attrs["name"] for number, sky in enumerate(skies, 1)}
    rows = [
        row | {"provenance_added_by": "sky_correct"}
        for sky in skies
        for row in records(sky, "provenance")[:1]
    ]
    subtracted = with_records(with_arrays(frame, **named(planes)), "provenance", rows)
    return with_headers(subtracted, primary=primary)


def _minus_level(data: Image, level: float) -> Image:
    return data - np.float32(level)
