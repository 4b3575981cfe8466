"""Which frames are sky, and which sky frames belong to which frame."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from gdask.instruments import descriptor, instrument_of
from gdask.io.frames import geometries, note, primary_header, set_aside, with_headers
from gdask.model import GdaskError
from gdask.params import Range
from gdask.steps.frames import on_group
from gdask.types import Frame, Frames


@on_group
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
    if not (ref_obj or ref_sky):
        check_one_target(frames, limit)
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
    marked = [
        _mark(frame, kind, group, text)
        for frame, kind, group in zip(frames, kinds, groups, strict=True)
    ]
    targets = tuple(frame for frame, kind in zip(marked, kinds, strict=True) if "object" in kind)
    if not targets:
        raise GdaskError(
            f"separate_sky: all {len(frames)} frames are on sky ({why}); name those on target with separateSky:ref_obj=..."
        )
    return targets, tuple(frame for frame, kind in zip(marked, kinds, strict=True) if "sky" in kind)


def merge_groups(targets: Frames, skies: Frames) -> Frames:
    """Targets and skies as one group again, each frame once, in order of name."""
    return tuple(
        sorted(
            {frame.attrs["name"]: frame for frame in (*skies, *targets)}.values(),
            key=lambda frame: frame.attrs["name"],
        )
    )


#: What `set_up` gives; by id of a frame, the middle of its exposure (s) and its set-up.
SetUp = tuple[tuple[object, ...], float]
Known = dict[int, tuple[float, SetUp]]


@on_group
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
    known = {
        id(frame): (middle_of_exposure(frame), set_up(frame)) for frame in (*frames, *skies)
    }  # once for each, not for each pair
    return tuple(
        _associate(frame, skies, known, distance, time, min_skies, max_skies, use_all, keep_lonely)
        for frame in frames
    )


def check_one_target(frames: Frames, limit: float) -> None:
    """Raise GdaskError where guided frames have targets (RA, DEC of the header) more than `limit` arcsec apart."""
    guided = [frame for frame in frames if descriptor(frame, "wavefront_sensor") is not None]
    targets = [
        (float(descriptor(f, "target_ra")), float(descriptor(f, "target_dec"))) for f in guided
    ]
    for frame, target in zip(guided, targets, strict=True):
        apart = separation(target, targets[0])
        if apart > limit:
            raise GdaskError(
                f"{frame.attrs['name']}: its target ({descriptor(frame, 'object')}) is {apart / 60:.1f} arcmin from that of "
                f"{guided[0].attrs['name']} ({descriptor(guided[0], 'object')}); reduce one target at a time, or say which"
                " frames are what with separateSky:ref_obj=... or separateSky:ref_sky=..."
            )


def middle_of_exposure(frame: Frame) -> float:
    start = descriptor(frame, "ut_datetime")
    return start.timestamp() + 0.5 * float(descriptor(frame, "exposure_time")) if start else 0.0


def separation(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Arcsec between two positions in degrees (haversine, exact at small angles)."""
    (ra1, dec1), (ra2, dec2) = np.radians(one), np.radians(other)
    half = (
        np.sin((dec2 - dec1) / 2) ** 2 + np.cos(dec1) * np.cos(dec2) * np.sin((ra2 - ra1) / 2) ** 2
    )
    return float(np.degrees(2 * np.arcsin(np.sqrt(half))) * 3600)


def _pointing(frame: Frame) -> tuple[float, float]:
    geometry = geometries(frame)[0]
    return geometry.ra, geometry.dec


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
    return {
        name.strip().removesuffix(".fits").partition("_")[0]
        for name in text.split(",")
        if name.strip()
    }


def _known_kinds(
    frames: Frames, groups: Sequence[int], objects: set[str], skies: set[str]
) -> tuple[list[set[str]], str]:
    known: dict[int, set[str]] = {group: set() for group in groups}
    reasons = []
    for frame, group in zip(frames, groups, strict=True):
        kind, reason = _kinds(frame, objects, skies)
        known[group] |= kind
        reasons += [reason] if kind else []
    return [set(known[group]) for group in groups], ", ".join(sorted(set(reasons)))


def _kinds(frame: Frame, objects: set[str], skies: set[str]) -> tuple[set[str], str]:
    """What is known of a frame by itself (object, sky, both or nothing), and from what."""
    stem = frame.attrs["name"].removesuffix(".fits").partition("_")[0]
    phu = primary_header(frame)
    if stem in objects | skies:
        return {
            kind for kind, names in (("object", objects), ("sky", skies)) if stem in names
        }, "ref_obj, ref_sky"
    keywords = {"OBJFRAME": "object", "SKYFRAME": "sky"}
    marked = {
        kind
        for keyword, kind in keywords.items()
        if str(phu.get(keyword, "")).strip().upper() in ("TRUE", "T")
    }
    if marked:
        return marked, "OBJFRAME, SKYFRAME"
    if descriptor(frame, "wavefront_sensor") is None and any(
        keyword.endswith("WFS_ST") or keyword.startswith("PWFS") for keyword in phu
    ):
        return {"sky"}, "not guided"
    return set(), ""


def _by_distance(frames: Frames, groups: Sequence[int]) -> tuple[list[set[str]], str]:
    if len(set(groups)) == 1:
        return [{"object", "sky"} for _ in frames], "one pointing group: dithered on target"
    target = (float(descriptor(frames[0], "target_ra")), float(descriptor(frames[0], "target_dec")))
    members: dict[int, list[Frame]] = {}
    for frame, group in zip(frames, groups, strict=True):
        members.setdefault(group, []).append(frame)
    far = {
        group: np.mean([separation(_pointing(f), target) for f in inside])
        for group, inside in members.items()
    }
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
    frame: Frame,
    skies: Frames,
    known: Known,
    distance: float,
    time: float,
    fewest: int,
    most: int | None,
    use_all: bool,
    lonely: bool,
) -> Frame:
    when, mine = known[id(frame)]
    near = [
        (abs(known[id(sky)][0] - when), sky.attrs["name"])
        for sky in skies
        if sky.attrs["name"] != frame.attrs["name"]
        and same_set_up(known[id(sky)][1], mine)
        and separation(_pointing(sky), _pointing(frame)) >= distance
    ]
    near.sort()
    chosen = (
        near
        if use_all
        else [entry for number, entry in enumerate(near) if entry[0] <= time or number < fewest]
    )
    names = tuple(sorted(name for _, name in chosen[:most]))
    frame = frame.assign_attrs(skies=json.dumps(names))
    if not names and not lonely:
        set_up = f"{descriptor(frame, 'filter_name', pretty=True)}, {descriptor(frame, 'exposure_time'):g} s"
        return set_aside(
            frame,
            f"no sky frame at least {distance:g} arcsec away with the same filter and exposure time ({set_up})",
        )
    return note(frame, f"{len(skies)} sky frames on offer")


def set_up(frame: Frame) -> SetUp:
    """What a frame and its sky frames have in common (filter, read mode, coadds, size), and its exposure time (s)."""
    names = ("filter_name", "read_mode", "read_speed_setting", "coadds")
    return (*(descriptor(frame, name) for name in names), dict(frame.sizes)), float(
        descriptor(frame, "exposure_time")
    )


def same_set_up(one: SetUp, other: SetUp) -> bool:
    return one[0] == other[0] and abs(one[1] - other[1]) < 0.01
