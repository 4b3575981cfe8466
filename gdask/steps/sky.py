"""The sky of each frame: combined from its sky frames, brought to its level, subtracted."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from gdask.io.read import reopen
from gdask.kernels.combine import combine
from gdask.kernels.stats import background
from gdask.memory import rows_within
from gdask.model import DQ, UNUSABLE, GdaskError
from gdask.params import Range
from gdask.steps.frames import PIXEL, array, map_planes, note, pack, replaced, unpack, with_arrays, with_headers
from gdask.steps.skyframes import middle
from gdask.steps.skylevel import SkyLevel, choose_level
from gdask.types import Flags, Frame, Frames, Image

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
        raise GdaskError("sky_correct: offset_sky and scale_sky are both True; set one of them to False")
    for frame in frames:
        if "skies" not in frame.attrs:
            raise GdaskError(f"sky_correct: {frame.attrs['name']} has no list of sky frames; associate_sky makes it")
    level = choose_level(frames, skies, offset_sky, scale_sky)
    by_name = {sky.attrs["name"]: sky for sky in skies}
    used_names = {name for frame in frames for name in frame.attrs["skies"]}
    own_levels = {name: levels(sky, mask_objects) for name, sky in by_name.items() if name in used_names}  # once, for all frames
    how = {"operation": operation, "reject": reject_method, "nlow": nlow, "nhigh": nhigh, "scale": level.mode == "scale"}
    masters: dict[tuple[str, ...], Frame | None] = {}
    corrected = []
    for frame in frames:
        names = tuple(frame.attrs["skies"])
        used, at = tuple(by_name[name] for name in names), tuple(own_levels[name] for name in names)
        if names not in masters:
            masters[names] = _master(used, at, mask_objects, how) if used else None
        corrected.append(_subtract(frame, used, at, masters[names], level, mask_objects))
    mode = {"scale": "scaled to each frame", "offset": "shifted to each frame", "none": "at its own level"}[level.mode]
    counts = sorted(len(frame.attrs["skies"]) for frame in frames)
    some = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    text = f"sky {mode} ({level.why}), from {some} frames each, {len(masters)} combinations" if counts[-1] else "no sky frames: levels alone"
    return tuple(note(frame, text) for frame in corrected)


def levels(frame: Frame, mask_objects: bool = True) -> object:
    """The background level of each array, lazy: float64, shape (detector, 1, 1), in the unit of the data."""
    whole = reopen(frame, rows=frame.sizes["y"], tag="level")
    objects = array(whole, "objects") if mask_objects else None
    return map_planes(_level, array(whole, "data"), array(whole, "dq"), objects, dtype="f8", whole=True)


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
    layout = frame.attrs["layout"] | stored
    return with_arrays(frame, objects=array(masked, "objects")).assign_attrs(layout=layout)


def _level(data: Image, dq: Flags, objects: np.ndarray | None) -> float:
    mask = (dq & np.uint16(UNUSABLE)) != 0
    if objects is not None:
        mask |= objects
    return float(background(data, mask)[0])


def _master(skies: Frames, at: tuple[object, ...], mask_objects: bool, how: dict[str, object]) -> Frame:
    """The combination of sky frames, which are at these levels, at level zero (scale: one). Each task reads its own rows of every frame."""
    if how["reject"] == "minmax" and how["nlow"] + how["nhigh"] >= len(skies):  # type: ignore[operator]
        how = how | {"reject": "none"}  # nothing would be left
    tag = "sky-" + "-".join(sky.attrs["name"] for sky in skies)
    rows = rows_within(len(skies) * skies[0].sizes["x"] * PIXEL.itemsize, ROWS, 16)
    banded = [reopen(sky, rows=rows, tag=tag) for sky in skies]
    names = ["data", "variance", "dq"] + (["objects"] if mask_objects and all("objects" in sky for sky in skies) else [])
    planes = [array(sky, name) for name in names for sky in banded]
    packed = map_planes(_combine_skies, *planes, *at, dtype=PIXEL, count=len(skies), **how)
    ny = skies[0].sizes["y"]
    return replaced(skies[0], **unpack(packed)).chunk({"y": ny})


def _combine_skies(
    *planes: np.ndarray, count: int, operation: str, reject: str, nlow: int, nhigh: int, scale: bool
) -> np.ndarray:
    stacks = [np.stack(planes[at : at + count]) for at in range(0, len(planes) - count, count)]
    level = np.array([value.item() for value in planes[len(planes) - count :]])
    data, variance, dq = stacks[:3]
    if len(stacks) > 3:
        dq = dq | np.where(stacks[3], np.uint16(DQ.NO_DATA), np.uint16(0))
    scales = 1.0 / level if scale else np.ones(count)
    zeros = np.zeros(count) if scale else -level
    data, variance, dq, _ = combine(
        data, variance, dq, method=operation, reject=reject, nlow=nlow, nhigh=nhigh, scale=scales, zero=zeros
    )
    return pack(data, variance, dq)


def _subtract(
    frame: Frame, skies: Frames, at: tuple[object, ...], master: Frame | None, level: SkyLevel, mask_objects: bool
) -> Frame:
    own = levels(frame, mask_objects)
    chosen: dict[str, object] = {"SKYLEVEL": (level.mode, "sky shifted, scaled to the frame, or as it is"), "SKYWHY": level.why}
    if master is None:
        data = map_planes(_minus_level, array(frame, "data"), own, dtype="f4")
        return with_headers(with_arrays(frame, data=data), primary=chosen | {"SKYFRMS": (0, "only the level was subtracted")})
    if level.mode == "none":
        times = tuple(middle(sky) for sky in skies)
        own = map_planes(_interpolate, *at, dtype="f8", times=times, when=middle(frame))
    packed = map_planes(
        _minus_sky, *(array(frame, name) for name in ("data", "variance", "dq")),
        *(array(master, name).rechunk(frame["data"].data.chunks) for name in ("data", "variance", "dq")), own, dtype=PIXEL, scale=level.mode == "scale",
    )  # fmt: skip
    primary = chosen | {"SKYFRMS": (len(skies), "sky frames combined")}
    primary |= {f"SKYFR{number:03d}": sky.attrs["name"] for number, sky in enumerate(skies, 1)}
    rows = [row | {"provenance_added_by": "sky_correct"} for sky in skies for row in sky.attrs.get("provenance", ())[:1]]
    subtracted = with_arrays(frame, **unpack(packed)).assign_attrs(provenance=(*frame.attrs.get("provenance", ()), *rows))
    return with_headers(subtracted, primary=primary)


def _minus_level(data: Image, level: np.ndarray) -> Image:
    return data - np.float32(level.item())


def _minus_sky(
    data: Image, variance: Image, dq: Flags, sky: Image, sky_variance: Image, sky_dq: Flags, level: np.ndarray, scale: bool
) -> np.ndarray:
    value = np.float32(level.item())
    bad = np.where(sky_dq & np.uint16(DQ.NO_DATA), np.uint16(DQ.NO_DATA), np.uint16(0))
    if scale:
        return pack(data - sky * value, variance + sky_variance * (value * value), dq | bad)
    return pack(data - (sky + value), variance + sky_variance, dq | bad)


def _interpolate(*levels_: np.ndarray, times: tuple[float, ...], when: float) -> np.ndarray:
    """The level at `when`, linear between the sky frames around it and constant outside them; shape (1, 1)."""
    order = np.argsort(times, kind="stable")
    values = np.array([level.item() for level in levels_])[order]
    return np.interp([[when]], np.asarray(times)[order], values)
