"""Find out which frames are sky, and which sky frames belong to which frame."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, NamedTuple

import numpy as np

from gdask.instruments import descriptor, instrument_of
from gdask.io.frames import (
    geometries,
    note,
    primary_header,
    set_aside,
    sky_names,
    warn,
    with_attrs,
    with_headers,
)
from gdask.kernels.arithmetic import arctangent, sine_cosine
from gdask.model import GdaskError, UsageError
from gdask.params import Range, closest
from gdask.steps.frames import night_of, on_group
from gdask.types import Frame, Frames

#: What `set_up` gives: what frames must have in common, and the exposure time (s).
SetUp = tuple[tuple[object, ...], float]
#: Arcsec by which separations of many positions at once may differ from those of one pair.
ROUNDING_ARCSEC = 1e-6
#: Seconds by which exposure times of one set-up may differ.
SAME_EXPOSURE_SECONDS = 0.01


@on_group
def separate_sky(
    frames: Frames,
    *,
    frac_FOV: Annotated[float, Range(0.1, 2.0)] = 0.9,
    ref_obj: str = "",
    ref_sky: str = "",
) -> tuple[Frames, Frames]:
    """Sort frames into those on target and those on sky; a frame can be both. [separateSky]

    The user's lists and the OBJFRAME and SKYFRAME keywords win, then guiding (an unguided frame is
    sky); each kind spreads to all frames of its pointing group. If only one kind is known, the rest
    is the other. If nothing is known: one group is both; of several, those nearest to the target
    are objects until they are half of all frames.

    Parameters
    ----------
    frac_FOV
        Frames closer than this fraction of the field of view form one group.
    ref_obj
        Names of frames on target, between commas or blanks.
        Files (raw/NAME.fits), names without ending or suffix, and patterns are understood. A name
        that fits no frame raises UsageError.
    ref_sky
        Names of frames on sky, as for ref_obj.
    """
    objects, skies = find_named(frames, ref_obj=ref_obj, ref_sky=ref_sky)
    limit = frac_FOV * float(instrument_of(frames[0]).facts["field_of_view"])
    if not (ref_obj or ref_sky):
        check_one_target(frames, limit)
    groups = _groups([_pointing(frame) for frame in frames], limit)
    kinds, why = _known_kinds(frames, groups, objects, skies)
    if not any(kinds):
        kinds, why = _by_distance(frames, groups)
    elif not all(kinds):
        opposite = {"object": "sky", "sky": "object"}
        present = set().union(*kinds)
        rest = {opposite[next(iter(present))]} if len(present) == 1 else {"object"}
        kinds = [kind or rest for kind in kinds]
    n_targets, n_skies = (sum(kind in known for known in kinds) for kind in ("object", "sky"))
    text = f"{n_targets} on target, {n_skies} on sky ({why})"
    absent = _absent_text((objects | skies) - {frame.attrs["name"] for frame in frames})
    marked = [
        warn(_mark(frame, kind, group, text), absent)
        for frame, kind, group in zip(frames, kinds, groups, strict=True)
    ]
    targets = tuple(frame for frame, kind in zip(marked, kinds, strict=True) if "object" in kind)
    if not targets:
        raise GdaskError(
            f"separate_sky: all {len(frames)} frames are on sky ({why}); "
            "name those on target with separateSky:ref_obj=..."
        )
    return targets, tuple(frame for frame, kind in zip(marked, kinds, strict=True) if "sky" in kind)


def merge_groups(targets: Frames, skies: Frames) -> Frames:
    """Merge targets and skies into one group, each frame once, in order of name."""
    return tuple(
        sorted(
            {frame.attrs["name"]: frame for frame in (*skies, *targets)}.values(),
            key=lambda frame: frame.attrs["name"],
        )
    )


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
    exclude: str = "",
    keep_lonely: bool = False,
) -> Frames:
    """Name the sky frames of each frame, those nearest in time. [associateSky]

    They are of the frame's own night, if one of that fits; what differs from night to night (the
    flat, the sky's pattern) would stay in otherwise. A frame is never its own sky frame. A frame
    without any is set aside.

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
    exclude
        Names of frames that are no sky for others, as for ref_sky of separateSky.
    keep_lonely
        Keep a frame without sky frames (only its level is subtracted then).
    """
    unfit = frames_named(skies, exclude)
    on_offer = _offer(tuple(sky for sky in skies if sky.attrs["name"] not in unfit))
    fewest = len(skies) if use_all else min_skies
    associated = tuple(
        _associate(frame, on_offer, distance, time, fewest, max_skies, keep_lonely)
        for frame in frames
    )
    return _with_other_nights_told(associated, on_offer)


def _with_other_nights_told(frames: Frames, skies: _Offer) -> Frames:
    """Warn of frames whose sky frames are all of other nights, since their own has none."""
    night = dict(zip(skies.names, skies.nights, strict=True))
    strange = set()
    for frame in frames:
        nights = {night[name] for name in sky_names(frame) or ()}
        if nights and night_of(frame) not in nights:
            strange.add(frame.attrs["name"])
    text = (
        f"{len(strange)} of {len(frames)} frames have sky frames of other nights only: what "
        "differs from night to night, such as the flat, stays in their background"
    )
    return tuple(warn(frame, text) if frame.attrs["name"] in strange else frame for frame in frames)


def check_one_target(frames: Frames, limit: float) -> None:
    """Raise GdaskError where guided frames have targets more than `limit` arcsec apart.

    Targets are RA, DEC of the header.
    """
    guided = [frame for frame in frames if descriptor(frame, "wavefront_sensor") is not None]
    targets = [
        (float(descriptor(frame, "target_ra")), float(descriptor(frame, "target_dec")))
        for frame in guided
    ]
    for frame, target in zip(guided, targets, strict=True):
        distance = separation(target, targets[0])
        if distance > limit:
            raise GdaskError(
                f"{frame.attrs['name']}: its target ({descriptor(frame, 'object')}) is "
                f"{distance / 60:.1f} arcmin from that of "
                f"{guided[0].attrs['name']} ({descriptor(guided[0], 'object')}); "
                "reduce one target at a time, or say which"
                " frames are what with separateSky:ref_obj=... or separateSky:ref_sky=..."
            )


def middle_of_exposure(frame: Frame) -> float:
    """Give the time (s since 1970) of the middle of the exposure; 0 where the header has none."""
    start = descriptor(frame, "ut_datetime")
    seconds = descriptor(frame, "total_exposure_time")
    return start.timestamp() + 0.5 * float(seconds or 0.0) if start else 0.0


def separation(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Give the arcsec between two positions in degrees (haversine, exact at small angles)."""
    (ra1, dec1), (ra2, dec2) = first, second
    (across, _), (along, _) = (
        sine_cosine.few(float(each) / 2) for each in (ra2 - ra1, dec2 - dec1)
    )
    half = along**2 + sine_cosine.few(dec1)[1] * sine_cosine.few(dec2)[1] * across**2
    return 3600 * 2 * float(arctangent.few(math.sqrt(half), math.sqrt(max(1 - half, 0.0))))


def far_apart(first: tuple[float, float], others: np.ndarray, limit: float) -> np.ndarray:
    """Tell which of many positions (n, 2; degrees) are at least `limit` arcsec from the first one.

    The answers are those of `separation`, for each.
    """
    ra, dec = np.radians(others).T
    ra1, dec1 = np.radians(first)
    half = np.sin((dec - dec1) / 2) ** 2 + np.cos(dec1) * np.cos(dec) * np.sin((ra - ra1) / 2) ** 2
    found = np.degrees(2 * np.arcsin(np.sqrt(half))) * 3600
    far = found >= limit
    for number in np.flatnonzero(np.abs(found - limit) < ROUNDING_ARCSEC):
        far[number] = separation(tuple(others[number]), first) >= limit
    return far


def _pointing(frame: Frame) -> tuple[float, float]:
    geometry = geometries(frame)[0]
    return geometry.ra, geometry.dec


def _groups(pointings: Sequence[tuple[float, float]], limit: float) -> list[int]:
    """Give each pointing the number of its group.

    Pointings that can be reached from each other in steps shorter than `limit` arcsec are a group.
    """
    groups = np.arange(len(pointings))
    positions = np.array(pointings, np.float64).reshape(-1, 2)
    for i, pointing in enumerate(pointings):
        near = ~far_apart(pointing, positions[:i], limit)
        reached = np.unique([i, *groups[:i][near]])
        groups[np.isin(groups, reached)] = reached[0]
    numbers = np.unique(groups, return_inverse=True)[1]
    return [int(number) for number in numbers]


def find_named(frames: Frames, **lists: str) -> list[set[str]]:
    """Give, for each list of frames of the user's, the names of the frames that it means.

    `lists` are texts by parameter (ref_obj, ref_sky). Frames of the reduction that have been set
    aside (attribute `listed`) may be named too. Raises UsageError for a name that fits none, with
    the nearest one, and for one that fits several.
    """
    known = {frame.attrs["name"] for frame in frames}
    for frame in frames[:1]:
        known.update(json.loads(frame.attrs.get("listed", "[]")))
    return [_meant(parameter, text, sorted(known)) for parameter, text in lists.items()]


def _meant(parameter: str, text: str, known: Sequence[str]) -> set[str]:
    """Give the known names that the text of a parameter means."""
    if text.strip().lower() == "none":
        return set()
    step = "associate_sky" if parameter == "exclude" else "separate_sky"
    found: set[str] = set()
    for piece in re.split(r"[,;\n]", text):
        words = [piece.strip()] if _fitting(piece, known) else piece.split()
        for word in words:
            fitting = _fitting(word, known)
            if not fitting:
                stems = [_stem(name) for name in known]
                raise UsageError(
                    f"{step}:{parameter}: no frame {word!r} among the {len(known)} of this "
                    f"reduction{closest(_stem(word), stems)}; a name of one of them was expected, "
                    "such as " + " or ".join(stems[:1] + stems[1:][-1:])
                )
            if len({_stem(name) for name in fitting}) > 1 and not set(word) & set("*?["):
                raise UsageError(
                    f"{step}:{parameter}: {word!r} fits {len(fitting)} frames "
                    f"({', '.join(fitting[:3])}{' ...' if fitting[3:] else ''}); "
                    "give the whole name"
                )
            found.update(fitting)
    return found


def _fitting(word: str, known: Iterable[str]) -> list[str]:
    """Give the known names that a word fits: whole, by a pattern, or up to their suffixes."""
    wanted = _stem(word)
    if not wanted:
        return []
    whole = [name for name in known if _stem(name) == wanted]
    patterns = [name for name in known if fnmatchcase(_stem(name), wanted)]
    first = wanted.partition("_")[0]
    return whole or patterns or [n for n in known if first and _stem(n).partition("_")[0] == first]


def frames_named(frames: Frames, text: str) -> set[str]:
    """Give the names of those of the frames that a list of names means; others may be meant too."""
    known = [frame.attrs["name"] for frame in frames]
    words = [word for word in re.split(r"[,\s]+", text) if word]
    return {name for word in words for name in _fitting(word, known)}


def _stem(name: str) -> str:
    """Give the name of a file without folder and endings: raw/S1_x.fits.gz gives S1_x."""
    return re.sub(r"\.fits(\.\w+)?$", "", name.strip().strip("'\"").rpartition("/")[2])


def _absent_text(names: Iterable[str]) -> str:
    """Give the warning for named frames that have been set aside; '' without any."""
    absent = ", ".join(sorted(names))
    return absent and f"{absent} of ref_obj or ref_sky: set aside before, so it says nothing"


def _known_kinds(
    frames: Frames, groups: Sequence[int], objects: set[str], skies: set[str]
) -> tuple[list[set[str]], str]:
    """Give what is known of each frame by any frame of its group, and from what.

    objects, skies: names that the user gave.
    """
    known: dict[int, set[str]] = {group: set() for group in groups}
    reasons = []
    for frame, group in zip(frames, groups, strict=True):
        kind, reason = _kinds(frame, objects, skies)
        known[group] |= kind
        reasons += [reason] if kind else []
    return [set(known[group]) for group in groups], ", ".join(sorted(set(reasons)))


def _kinds(frame: Frame, objects: set[str], skies: set[str]) -> tuple[set[str], str]:
    """Give what is known of a frame by itself (object, sky, both, nothing), and from what."""
    name = frame.attrs["name"]
    phu = primary_header(frame)
    if name in objects | skies:
        listed = {kind for kind, names in (("object", objects), ("sky", skies)) if name in names}
        return listed, "ref_obj, ref_sky"
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
    """Give the kinds of frames by their groups' distance to the target, if nothing is known."""
    if len(set(groups)) == 1:
        return [{"object", "sky"} for _ in frames], "one pointing group: dithered on target"
    target = (float(descriptor(frames[0], "target_ra")), float(descriptor(frames[0], "target_dec")))
    members: dict[int, list[Frame]] = {}
    for frame, group in zip(frames, groups, strict=True):
        members.setdefault(group, []).append(frame)
    distances = {
        group: np.mean([separation(_pointing(frame), target) for frame in of_group])
        for group, of_group in members.items()
    }
    chosen: set[int] = set()
    for group in sorted(distances, key=lambda number: (distances[number], number)):
        if chosen and 2 * sum(len(members[number]) for number in chosen) >= len(frames):
            break
        chosen.add(group)
        if len(members) == 2:
            break
    return [{"object"} if group in chosen else {"sky"} for group in groups], "nearest to the target"


def _mark(frame: Frame, kind: set[str], group: int, text: str) -> Frame:
    """Write a frame's kind and group into its header."""
    keywords: dict[str, object] = {"EXPGROUP": group}
    keywords |= {"OBJFRAME": "TRUE"} if "object" in kind else {}
    keywords |= {"SKYFRAME": "TRUE"} if "sky" in kind else {}
    return note(with_headers(frame, primary=keywords), text)


class _Offer(NamedTuple):
    """What is known of all sky frames, looked up once for each and not for each pair of frames.

    positions: degrees (n, 2); middles: of the exposures (s); nights: as of `night_of`.
    """

    names: np.ndarray
    positions: np.ndarray
    middles: np.ndarray
    nights: np.ndarray
    set_ups: list[SetUp]


def _offer(skies: Frames) -> _Offer:
    return _Offer(
        np.array([sky.attrs["name"] for sky in skies], object),
        np.array([_pointing(sky) for sky in skies], np.float64).reshape(-1, 2),
        np.array([middle_of_exposure(sky) for sky in skies], np.float64),
        np.array([night_of(sky) for sky in skies], np.int64),
        [set_up(sky) for sky in skies],
    )


def _associate(
    frame: Frame,
    skies: _Offer,
    distance: float,
    time: float,
    fewest: int,
    most: int | None,
    keep_lonely: bool,
) -> Frame:
    """Name the sky frames of one frame, at least `fewest`; see associate_sky."""
    own = set_up(frame)
    fitting = skies.names != frame.attrs["name"]
    fitting &= np.array([same_set_up(sky, own) for sky in skies.set_ups], bool)
    fitting &= far_apart(_pointing(frame), skies.positions, distance)
    of_night = fitting & (skies.nights == night_of(frame))
    fitting = of_night if of_night.any() else fitting
    difference = np.abs(skies.middles[fitting] - middle_of_exposure(frame))
    nearest = np.sort(difference)[:fewest]
    near = difference <= max(time, nearest[-1] if len(nearest) else 0.0)
    candidates = sorted(
        zip(difference[near].tolist(), skies.names[fitting][near].tolist(), strict=True)
    )
    chosen = [
        name
        for number, (seconds, name) in enumerate(candidates)
        if seconds <= time or number < fewest
    ]
    names = tuple(sorted(chosen[:most]))
    frame = with_attrs(frame, skies=json.dumps(names))
    if not names and not keep_lonely:
        filter_name = descriptor(frame, "filter_name", pretty=True)
        reason = (
            f"no sky frame at least {distance:g} arcsec away with the same filter and exposure time"
            f" ({filter_name}, {descriptor(frame, 'exposure_time'):g} s)"
        )
        return set_aside(frame, reason)
    return note(frame, f"{len(skies.names)} sky frames on offer")


def set_up(frame: Frame) -> SetUp:
    """Give what a frame and its sky frames must have in common.

    These are filter, read mode, coadds and size, and the exposure time (s).
    """
    names = ("filter_name", "read_mode", "read_speed_setting", "coadds")
    shared = (*(descriptor(frame, name) for name in names), dict(frame.sizes))
    return shared, float(descriptor(frame, "exposure_time"))


def same_set_up(first: SetUp, second: SetUp) -> bool:
    """Whether two set-ups are the same, exposure times to SAME_EXPOSURE_SECONDS."""
    return first[0] == second[0] and abs(first[1] - second[1]) < SAME_EXPOSURE_SECONDS
