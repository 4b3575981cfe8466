"""Combine the sky of each frame from its sky frames, bring it to its level, and subtract it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from gdask.io.frames import (
    note,
    primary_header,
    records,
    shape_of,
    sky_names,
    small,
    warn,
    with_headers,
    with_records,
    with_small,
)
from gdask.io.gather import measure_arrays
from gdask.io.lazy_arrays import map_planes
from gdask.kernels.statistics import fit_sky_level
from gdask.model import GdaskError, late
from gdask.params import Range, refuses
from gdask.steps.frames import (
    PIXEL_BYTES,
    array,
    arrays_of,
    is_measured,
    named,
    on_group,
    with_arrays,
    without_sky_in_levels,
)
from gdask.steps.levels import SkyLevel, choose_level
from gdask.steps.sky_subtraction import (
    GROUP_BYTES,
    MOST_IN_GROUP,
    Wanted,
    count_skies,
    subtract_skies,
)
from gdask.types import Flags, Frame, Frames, Image, Mask

if TYPE_CHECKING:
    import dask.array as da
else:
    da = late("dask.array")

#: Pixels of an array from whose rows its level is measured: the level is then good to 0.001 sigma.
_LEVEL_PIXELS = 2**20
#: Bytes for each of them: data, flags, masks, and what is counted.
_LEVEL_BYTES = 16.0
#: Objects cover so much (percent) of a crowded field: there the sky between them is too rarely
#: seen by several frames, and the light between them is no sky. (Simulated nights: 61 in the
#: crowded small field of FLAMINGOS-2, 27 in that of GSAOI, 7 in a sparse one.)
CROWDED_PERCENT = 20.0
#: Fewest frames of a crowded field of which a stack is subtracted from their skies.
FEWEST_FOR_STACK = 5
#: Keyword of sky frames, and of frames that have such ones, and its comment.
LIGHT_SUBTRACTED, LIGHT_COMMENT = "SKYSTACK", "light of a stack was subtracted from sky frames"


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
            _own_level(frame, by_name, mask_objects) if level.mode != "none" or not names else None,
            sky_structure([by_name[name] for name in names]),
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
    if mask_objects:
        corrected = [
            _with_counts(frame, each) for frame, each in zip(corrected, wanted, strict=True)
        ]
    text = _remark(level, [len(names) for names in names_of_frames], len(set(names_of_frames)))
    return tuple(note(without_sky_in_levels(frame), text) for frame in corrected)


def _with_counts(frame: Frame, each: Wanted) -> Frame:
    """Give a frame with the counts of pixels whose sky few frames show, for check_sky."""
    counts = count_skies(each)
    return frame if counts is None else with_small(frame, sky_counts=counts)


@on_group
def check_sky(
    frames: Frames,
    *,
    few: Annotated[float, Range(0, 100)] = 10.0,
    none: Annotated[float, Range(0, 100)] = 1.0,
) -> Frames:
    """Say for how many pixels objects leave few sky frames, or none.

    Such pixels have DQ bit 32. Those with none have the level of the sky subtracted alone.

    Parameters
    ----------
    few
        Percentage of pixels with one sky frame or none beyond which there is a warning.
    none
        Percentage of pixels without any.
    """
    found = [small(frame, "sky_counts", lazy_is_none=True) for frame in frames]
    known = [np.sum(counts, axis=0) for counts in found if counts is not None]
    if not known:
        return frames
    pixels, one_left, none_left = np.sum(known, axis=0)
    worst = max(float(counts[1] + counts[2]) / counts[0] for counts in known)
    shares = 100 * (one_left + none_left) / pixels, 100 * none_left / pixels
    text = (
        f"{shares[0]:.2g} % of the pixels (at most {100 * worst:.2g} % of a frame) have the sky of"
        f" one sky frame or none, {shares[1]:.2g} % of none: objects cover it on the others (DQ 32)"
    )
    if shares[0] > few or shares[1] > none:
        advice = "more or larger dithers, or sky frames beside the field, would show it"
        return tuple(warn(frame, f"{text}; {advice}") for frame in frames)
    return tuple(note(frame, text) for frame in frames)


def _own_level(frame: Frame, skies: Mapping[str, Frame], mask_objects: bool) -> da.Array:
    """Give the level of a frame's sky.

    Where the frame is a sky, too, from whose version there light may have been subtracted, it is
    the level of that.
    """
    return sky_levels(skies.get(frame.attrs["name"], frame), mask_objects)


def sky_structure(skies: Sequence[Frame]) -> tuple[float, ...]:
    """Give by how much the sky of each array differs from its level (e- rms).

    It is that of the mesh of measure_background, in the median of the sky frames; () where that is
    not known.
    """
    found = [small(sky, "background", lazy_is_none=True) for sky in skies]
    meshes = [np.stack(each) for each in found if each is not None]
    if not meshes or len({mesh.shape for mesh in meshes}) > 1 or meshes[0].ndim != 3:
        return ()
    found_of = [[mesh for mesh in of_array if is_measured(mesh)] for of_array in zip(*meshes)]
    flat = [[mesh - np.median(mesh) for mesh in each] for each in found_of]
    return tuple(float(np.median(each, axis=0).std()) if each else 0.0 for each in flat)


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
        _with_objects(frame, by_name[frame.attrs["name"]])
        if frame.attrs["name"] in by_name
        else frame
        for frame in frames
    )


def _with_objects(frame: Frame, masked: Frame) -> Frame:
    cover = primary_header(masked).get("SKYCOVER")
    known: dict[str, object] = {} if cover is None else {"SKYCOVER": cover}
    return with_headers(with_arrays(frame, objects=array(masked, "objects")), primary=known)


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
    if any(primary_header(sky).get(LIGHT_SUBTRACTED) for sky in skies):
        chosen[LIGHT_SUBTRACTED] = (True, LIGHT_COMMENT)
    primary = chosen | {"SKYFRMS": (len(skies), "sky frames combined")}
    primary |= {f"SKYFR{number:03d}": sky.attrs["name"] for number, sky in enumerate(skies, 1)}
    rows = [
        row | {"provenance_added_by": "sky_correct"}
        for sky in skies
        for row in records(sky, "provenance")[:1]
    ]
    subtracted = with_records(with_arrays(frame, **named(planes)), "provenance", rows)
    return with_headers(subtracted, primary=primary)


def is_crowded(targets: Frames, skies: Frames) -> bool:
    """Tell whether the skies are the targets themselves and objects cover much of them.

    Of fewer than FEWEST_FOR_STACK frames the answer is no: a stack of theirs would hold too much of
    the sky of each.
    """
    is_on_target = len(frames_among(skies, targets)) == len(skies) >= FEWEST_FOR_STACK
    return is_on_target and max(map(object_cover, skies)) > CROWDED_PERCENT


def frames_among(frames: Frames, others: Frames) -> Frames:
    """Give the frames whose names are among those of others."""
    names = {frame.attrs["name"] for frame in others}
    return tuple(frame for frame in frames if frame.attrs["name"] in names)


def object_cover(frame: Frame) -> float:
    """Give the part (percent) of the sky frames that objects cover, as share_objects wrote it."""
    return float(primary_header(frame).get("SKYCOVER", 0.0))


def _minus_level(data: Image, level: float) -> Image:
    return data - np.float32(level)
