"""Which frames are sky, which sky belongs to which frame, and its subtraction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np

from gdask.instruments import descriptor, instrument_of
from gdask.io.read import reopen
from gdask.kernels.combine import combine
from gdask.kernels.stats import background
from gdask.model import DQ, UNUSABLE, GdaskError
from gdask.params import Range
from gdask.steps.frames import PIXEL, array, aside, map_planes, note, pack, replaced, unpack, with_arrays, with_headers
from gdask.types import Flags, Frame, Frames, Image

#: Rows of each sky frame that one task reads: 16 frames x 256 x 2048 pixels x 10 bytes = 84 MB.
ROWS = 256


def separate_sky(
    frames: Frames,
    *,
    frac_FOV: Annotated[float, Range(0.1, 2.0)] = 0.9,
    ref_obj: str = "",
    ref_sky: str = "",
) -> tuple[Frames, Frames]:
    """Sort frames into those on target and those on sky; a frame can be both. [separateSky]

    The user's lists and the OBJFRAME and SKYFRAME keywords win, then guiding (an unguided frame is sky); each kind
    spreads to all frames of its pointing group. If only one kind is known, the rest is the other. If nothing is known:
    one group is both; of several, those nearest to the target are objects until they are half of all frames.

    Parameters
    ----------
    frac_FOV
        Frames closer than this fraction of the field of view form one group.
    ref_obj
        Comma-separated names of frames on target.
    ref_sky
        Comma-separated names of frames on sky.
    """
    limit = frac_FOV * float(instrument_of(frames[0]).facts["field_of_view"])
    groups = _groups([_pointing(frame) for frame in frames], limit)
    kinds, why = _known_kinds(frames, groups, _names(ref_obj), _names(ref_sky))
    if not any(kinds):
        kinds, why = _by_distance(frames, groups)
    elif not all(kinds):
        other = {"object": "sky", "sky": "object"}
        present = set().union(*kinds)
        rest = {other[next(iter(present))]} if len(present) == 1 else {"object"}
        kinds = [kind or rest for kind in kinds]
    text = f"{sum('object' in k for k in kinds)} on target, {sum('sky' in k for k in kinds)} on sky ({why})"
    marked = [_mark(frame, kind, group, text) for frame, kind, group in zip(frames, kinds, groups, strict=True)]
    targets = tuple(frame for frame, kind in zip(marked, kinds, strict=True) if "object" in kind)
    if not targets:
        raise GdaskError(f"separate_sky: all {len(frames)} frames are on sky ({why}); name those on target with separateSky:ref_obj=...")
    return targets, tuple(frame for frame, kind in zip(marked, kinds, strict=True) if "sky" in kind)


def associate_sky(
    frames: Frames,
    skies: Frames,
    *,
    distance: Annotated[float, Range(0, None)] = 3.0,
    time: Annotated[float, Range(0, None)] = 600.0,
    min_skies: Annotated[int, Range(1, None)] = 3,
    max_skies: Annotated[int, Range(1, None)] | None = None,
    use_all: bool = False,
    keep_lonely: bool = False,
) -> Frames:
    """Name the sky frames of each frame: nearest in time, never itself; without any it is set aside. [associateSky]

    Parameters
    ----------
    distance
        Arcsec that a sky frame must be away from the frame.
    time
        Seconds within which all sky frames are used.
    min_skies
        Use at least this many, even if they are further away in time.
    max_skies
        Use at most this many.
    use_all
        Use all sky frames that are far enough.
    keep_lonely
        Keep a frame without sky frames (only its level is subtracted then).
    """
    return tuple(_associate(frame, skies, distance, time, min_skies, max_skies, use_all, keep_lonely) for frame in frames)


def sky_correct(
    frames: Frames,
    skies: Frames,
    *,
    offset_sky: bool = False,
    scale_sky: bool = True,
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

    Parameters
    ----------
    offset_sky
        Shift the sky to the frame's own background level.
    scale_sky
        Scale the sky to the frame's own background level.
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
    by_name = {sky.attrs["name"]: sky for sky in skies}
    how = {"operation": operation, "reject": reject_method, "nlow": nlow, "nhigh": nhigh, "scale": scale_sky}
    masters: dict[tuple[str, ...], Frame | None] = {}
    corrected = []
    for frame in frames:
        names = tuple(frame.attrs["skies"])
        used = tuple(by_name[name] for name in names)
        if names not in masters:
            masters[names] = _master(used, mask_objects, how) if used else None
        corrected.append(_subtract(frame, used, masters[names], offset_sky, scale_sky, mask_objects))
    mode = "scaled to each frame" if scale_sky else "shifted to each frame" if offset_sky else "at its own level"
    counts = sorted(len(frame.attrs["skies"]) for frame in frames)
    text = f"sky {mode}, from {counts[0]}-{counts[-1]} frames, {len(masters)} combinations" if counts else ""
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


def _master(skies: Frames, mask_objects: bool, how: dict[str, object]) -> Frame:
    """The combination of sky frames at level zero (scale: one). Each task reads its own rows of every frame."""
    if how["reject"] == "minmax" and how["nlow"] + how["nhigh"] >= len(skies):  # type: ignore[operator]
        how = how | {"reject": "none"}  # nothing would be left
    tag = "sky-" + "-".join(sky.attrs["name"] for sky in skies)
    banded = [reopen(sky, rows=ROWS, tag=tag) for sky in skies]
    names = ["data", "variance", "dq"] + (["objects"] if mask_objects and all("objects" in sky for sky in skies) else [])
    planes = [array(sky, name) for name in names for sky in banded]
    packed = map_planes(_combine_skies, *planes, *(levels(sky, mask_objects) for sky in skies), dtype=PIXEL, count=len(skies), **how)
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
    frame: Frame, skies: Frames, master: Frame | None, offset: bool, scale: bool, mask_objects: bool
) -> Frame:
    own = levels(frame, mask_objects)
    if master is None:
        data = map_planes(_minus_level, array(frame, "data"), own, dtype="f4")
        return with_headers(with_arrays(frame, data=data), primary={"SKYFRMS": (0, "only the level was subtracted")})
    if not (offset or scale):
        times = tuple(_middle(sky) for sky in skies)
        own = map_planes(_interpolate, *(levels(sky, mask_objects) for sky in skies), dtype="f8", times=times, when=_middle(frame))
    packed = map_planes(
        _minus_sky, *(array(frame, name) for name in ("data", "variance", "dq")),
        *(array(master, name).rechunk(frame["data"].data.chunks) for name in ("data", "variance", "dq")), own, dtype=PIXEL, scale=scale,
    )  # fmt: skip
    primary: dict[str, object] = {"SKYFRMS": (len(skies), "sky frames combined")}
    primary |= {f"SKYFR{number:03d}": sky.attrs["name"] for number, sky in enumerate(skies, 1)}
    return with_headers(with_arrays(frame, **unpack(packed)), primary=primary)


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


def _middle(frame: Frame) -> float:
    start = descriptor(frame, "ut_datetime")
    return start.timestamp() + 0.5 * float(descriptor(frame, "exposure_time")) if start else 0.0


def _pointing(frame: Frame) -> tuple[float, float]:
    geometry = frame.attrs["geometry"][0]
    return geometry.ra, geometry.dec


def separation(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Arcsec between two positions in degrees (haversine, exact at small angles)."""
    (ra1, dec1), (ra2, dec2) = np.radians(one), np.radians(other)
    half = np.sin((dec2 - dec1) / 2) ** 2 + np.cos(dec1) * np.cos(dec2) * np.sin((ra2 - ra1) / 2) ** 2
    return float(np.degrees(2 * np.arcsin(np.sqrt(half))) * 3600)


def _groups(pointings: Sequence[tuple[float, float]], limit: float) -> list[int]:
    """Group numbers: frames that can be reached from each other in steps shorter than `limit` are one group."""
    group = list(range(len(pointings)))
    for i, here in enumerate(pointings):
        for j in range(i):
            if group[i] != group[j] and separation(here, pointings[j]) < limit:
                low, high = sorted((group[i], group[j]))
                group = [low if number == high else number for number in group]
    names = sorted(set(group))
    return [names.index(number) for number in group]


def _names(text: str) -> set[str]:
    return {name.strip().removesuffix(".fits").partition("_")[0] for name in text.split(",") if name.strip()}


def _known_kinds(
    frames: Frames, groups: Sequence[int], objects: set[str], skies: set[str]
) -> tuple[list[set[str]], str]:
    known: dict[int, set[str]] = {group: set() for group in groups}
    reasons = []
    for frame, group in zip(frames, groups, strict=True):
        kind, reason = _kind(frame, objects, skies)
        if kind:
            known[group].add(kind)
            reasons.append(reason)
    return [set(known[group]) for group in groups], ", ".join(sorted(set(reasons)))


def _kind(frame: Frame, objects: set[str], skies: set[str]) -> tuple[str, str]:
    stem = frame.attrs["name"].removesuffix(".fits").partition("_")[0]
    phu = frame.attrs["phu"]
    if stem in objects:
        return "object", "ref_obj"
    if stem in skies:
        return "sky", "ref_sky"
    for keyword, kind in (("OBJFRAME", "object"), ("SKYFRAME", "sky")):
        if str(phu.get(keyword, "")).strip().upper() in ("TRUE", "T"):
            return kind, keyword
    if descriptor(frame, "wavefront_sensor") is None and any(keyword.endswith("WFS_ST") or keyword.startswith("PWFS") for keyword in phu):
        return "sky", "not guided"
    return "", ""


def _by_distance(frames: Frames, groups: Sequence[int]) -> tuple[list[set[str]], str]:
    if len(set(groups)) == 1:
        return [{"object", "sky"} for _ in frames], "one pointing group: dithered on target"
    target = (float(descriptor(frames[0], "target_ra")), float(descriptor(frames[0], "target_dec")))
    members: dict[int, list[Frame]] = {}
    for frame, group in zip(frames, groups, strict=True):
        members.setdefault(group, []).append(frame)
    far = {group: np.mean([separation(_pointing(f), target) for f in inside]) for group, inside in members.items()}
    chosen: set[int] = set()
    for group in sorted(far, key=lambda number: (far[number], number)):
        if chosen and 2 * sum(len(members[g]) for g in chosen) >= len(frames):
            break
        chosen.add(group)
        if len(members) == 2:
            break
    return [{"object"} if group in chosen else {"sky"} for group in groups], "nearest to the target"


def _mark(frame: Frame, kind: set[str], group: int, text: str) -> Frame:
    keywords: dict[str, object] = {"EXPGROUP": group}
    keywords |= {"OBJFRAME": "TRUE"} if "object" in kind else {}
    keywords |= {"SKYFRAME": "TRUE"} if "sky" in kind else {}
    return note(with_headers(frame, primary=keywords), text)


def _associate(
    frame: Frame, skies: Frames, distance: float, time: float, fewest: int, most: int | None, use_all: bool, lonely: bool
) -> Frame:
    near = [
        (abs(_middle(sky) - _middle(frame)), sky.attrs["name"])
        for sky in skies
        if sky.attrs["name"] != frame.attrs["name"]
        and separation(_pointing(sky), _pointing(frame)) >= distance
        and _same_set_up(sky, frame)
    ]
    near.sort()
    chosen = near if use_all else [entry for number, entry in enumerate(near) if entry[0] <= time or number < fewest]
    names = tuple(sorted(name for _, name in chosen[:most]))
    frame = frame.assign_attrs(skies=names)
    if not names and not lonely:
        return aside(frame, f"no sky frame at least {distance:g} arcsec away with the same filter and exposure time")
    return note(frame, f"{len(skies)} sky frames on offer")


def _same_set_up(one: Frame, other: Frame) -> bool:
    same = all(descriptor(one, name) == descriptor(other, name) for name in ("filter_name", "read_mode", "read_speed_setting", "coadds"))
    shape = dict(one.sizes) == dict(other.sizes)
    return same and shape and abs(float(descriptor(one, "exposure_time")) - float(descriptor(other, "exposure_time"))) < 0.01
