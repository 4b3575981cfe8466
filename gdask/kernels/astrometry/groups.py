"""Which frames share stars: groups of frames, each tied together by its stars and by no others.

A group grows from the frame with most sources by frames that fit its list of stars. Then groups are
tied to each other where what they share makes a shift more probable than the headers and chance do
(`association.find_shift`). Groups that share no stars stay where their headers put them: nothing
else says where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gdask.kernels.astrometry.association import (
    MIN_PAIRS,
    NEAR_RADIUS,
    WIDE_MIN_SOURCES,
    WIDE_ROTATIONS,
    WRONG_HEADER_SHARE,
    Field,
    Shift,
    apply_shift,
    find_shift,
    match_pairs,
    other_rows,
    rows_around,
    seen_in,
)
from gdask.kernels.astrometry.joint_fit import centre_on_headers
from gdask.kernels.astrometry.measured_stars import (
    TERMS,
    Measurements,
    Problem,
    SourceList,
    fit_terms,
    frame_rows,
    instrument_vectors,
    to_common_plane,
)
from gdask.types import Arcsec

#: Radii of the searches that follow each other until one convinces, as far as the user allows: the
#: nearer a shift, the fewer are the chance pairs that can make one. Frames join a group within
#: NEAR_RADIUS; further off whole groups are compared, of which more is known.
SEARCH_RADII: tuple[Arcsec, ...] = (1.0, NEAR_RADIUS)
#: Pairs of whole groups that may tie them near the place that their headers say.
MIN_GROUP_PAIRS = 2
#: Stars that two groups should share by their headers: if none is found, a header is wrong.
MAX_MISSED_STARS = 8
#: How the reason begins why a group of frames is refused as a whole.
STRANGERS_REASON = "shows stars"
#: Frames, one after another, that find no other to begin a group with: then the search for groups
#: ends. Larger groups that each group is compared with.
MAX_LONE_STARTS, MAX_COMPARED_GROUPS = 10, 3
#: Frames that each frame is compared with in the search for defects, at most; and sources with
#: which a frame is not searched for them.
MAX_COMPARED_FRAMES, MANY_SOURCES = 20, 48
#: Cells of the rasters: at least so large, and at most so many along an axis.
MIN_CELL: Arcsec = 0.25
MAX_CELLS = 1500
#: Distance in the lists of stars by which groups are kept apart: no two fields are so large.
_FAR: Arcsec = 1e6


class FirstShifts(NamedTuple):
    """First shift of each frame onto the stars of its group.

    terms: (frames, 20), arcsec; contrast of the histogram's peak; what failed ('' if nothing);
    group: number of each frame's group, the largest first; -1 for none.
    """

    terms: np.ndarray
    contrast: tuple[float, ...]
    reason: tuple[str, ...]
    group: np.ndarray


class _Group(NamedTuple):
    """Frames that share stars: the places of their sources, all their stars, what they see."""

    places: dict[int, tuple[np.ndarray, np.ndarray]]
    stars: SourceList
    field: Field


def flag_real_sources(
    frames: Sequence[Measurements], problem: Problem, tolerance: Arcsec
) -> np.ndarray:
    """Flag the measurements (bool) that are no defects of the detector.

    A defect is a source that keeps its place on the detector (to a quarter of the tolerance, in
    arcsec) while the telescope moves, in at least half of the frames that are pointed elsewhere.
    Frames with MANY_SOURCES or more are not searched: their stars outweigh what defects the
    bad-pixel mask has left, and should the telescope not have moved as a header says, all stars
    keep their places.
    """
    origin = np.zeros(1)
    pointings = [to_common_plane(f, origin, origin, problem.centre) for f in frames]
    pointing = np.array(pointings)[:, :, 0]
    good = np.ones(len(problem.frame), bool)
    for f in range(len(frames)):
        i = frame_rows(problem, f)
        if not 0 < len(i) < MANY_SOURCES:
            continue
        distance = np.hypot(*(pointing - pointing[f]).T)
        elsewhere = np.flatnonzero(distance > 4 * tolerance)
        elsewhere = elsewhere[:: max(1, len(elsewhere) // MAX_COMPARED_FRAMES)]
        if not len(elsewhere):
            continue
        kept = np.zeros(len(i))
        for g in map(int, elsewhere):
            j = frame_rows(problem, g)
            places = problem.x[i], problem.y[i], problem.x[j], problem.y[j]
            kept[match_pairs(*places, tolerance / 4)[0]] += 1
        good[i] = kept < max(len(elsewhere) / 2, 1)
    return good


def with_outlines(frames: Sequence[Measurements]) -> list[Measurements]:
    """Give frames without an outline the rectangle (at least 1 arcsec) around all sources."""
    x, y = (np.concatenate([getattr(f, name) for f in frames]) for name in "xy")
    x1, x2, y1, y2 = (x.min(), x.max(), y.min(), y.max()) if len(x) else (0.0, 0.0, 0.0, 0.0)
    x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
    rectangle = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], float)
    return [frame if frame.outline else frame._replace(outline=(rectangle,)) for frame in frames]


def inside_polygon(corners: np.ndarray, x: np.ndarray, y: np.ndarray, margin: Arcsec) -> np.ndarray:
    """Whether points are inside a convex polygon (n, 2), `margin` from its edges or more (bool)."""
    inside, turn = np.ones(np.shape(x), bool), np.sign(signed_area(corners))
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        cross = turn * ((x2 - x1) * (y - y1) - (y2 - y1) * (x - x1))
        inside &= cross / np.hypot(x2 - x1, y2 - y1) > margin
    return inside


def _inside_rows(corners: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether (y, x) is inside a convex polygon, for each of so many y and x (bool).

    It is what `inside_polygon` says of them without a margin: a - b > 0 where a > b.
    """
    inside, turn = np.ones((len(y), len(x)), bool), np.sign(signed_area(corners))
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        inside &= (turn * ((x2 - x1) * (y - y1)))[:, None] > turn * ((y2 - y1) * (x - x1))
    return inside


def signed_area(corners: np.ndarray) -> float:
    """Area of a polygon (arcsec^2), positive if its corners (n, 2) go from x towards y."""
    x, y = corners.T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def first_shifts(
    problem: Problem, frames: Sequence[Measurements], search: Arcsec, tolerance: Arcsec
) -> FirstShifts:
    """Group the frames by the stars that they share, and shift them onto those.

    frames: with outlines; search: how far pointings may be off (arcsec), in no case more;
    tolerance: within which sources of the list and a frame are the same (arcsec).
    """
    alone = _lone_groups(problem, frames)
    contrast, reason = [0.0] * len(frames), [""] * len(frames)
    for f, frame in enumerate(frames):
        if len(frame.x) < MIN_PAIRS:
            reason[f] = f"{len(frame.x)} sources are too few to match (at least {MIN_PAIRS})"
    groups = _grown_groups(alone, reason, contrast, search, tolerance)
    groups = _tied_groups(groups, reason, contrast, search, tolerance)
    _refuse_strangers(groups, reason)
    terms, number = np.zeros((len(frames), TERMS)), np.full(len(frames), -1)
    for k, group in enumerate(groups):
        for f, (x, y) in group.places.items():
            if reason[f]:
                continue
            i, free, number[f] = frame_rows(problem, f), np.full(TERMS, 1e-9), k
            off = x - problem.header_xi[i], y - problem.header_eta[i]
            dx, dy = instrument_vectors(problem, f, *off)
            terms[f] = fit_terms(problem.x[i], problem.y[i], dx, dy, np.ones(len(i)), 4, free)
    return FirstShifts(terms, tuple(contrast), tuple(reason), number)


def _lone_groups(problem: Problem, frames: Sequence[Measurements]) -> list[_Group]:
    """Each frame as a group of its own, where its header says."""
    outlines = [
        [
            np.column_stack(to_common_plane(f, corners[:, 0], corners[:, 1], problem.centre))
            for corners in f.outline
        ]
        for f in frames
    ]
    corners = np.concatenate([np.concatenate(outline) for outline in outlines])
    low, high = corners.min(axis=0) - 1, corners.max(axis=0) + 1
    width, height = np.maximum((high - low) / MAX_CELLS, MIN_CELL).tolist()
    groups = []
    for f, frame in enumerate(frames):
        i = frame_rows(problem, f)
        places = problem.header_xi[i], problem.header_eta[i]
        field = _raster(outlines[f], float(low[0]), float(low[1]), width, height)
        groups.append(_Group({f: places}, (*places, np.asarray(frame.flux, float)), field))
    return groups


def _raster(
    polygons: Sequence[np.ndarray], x0: Arcsec, y0: Arcsec, width: Arcsec, height: Arcsec
) -> Field:
    """The cells, of a grid that begins at (x0, y0), whose middles are inside polygons."""
    corners = np.concatenate(polygons)
    i, j = np.floor((corners.min(axis=0) - (x0, y0)) / (width, height)).astype(int)
    m, n = np.ceil((corners.max(axis=0) - (x0, y0)) / (width, height)).astype(int)
    x, y = x0 + (np.arange(i, m) + 0.5) * width, y0 + (np.arange(j, n) + 0.5) * height
    seen = np.zeros((len(y), len(x)), bool)
    for polygon in polygons:
        seen |= _inside_rows(polygon, x, y)
    return Field(x0 + i * width, y0 + j * height, width, height, seen)


def _joined_fields(one: Field, other: Field, dx: Arcsec, dy: Arcsec) -> Field:
    """What is seen in one field, or in another of the same cells that is moved by (dx, dy)."""
    i = int(np.round((other.x0 + dx - one.x0) / one.width))
    j = int(np.round((other.y0 + dy - one.y0) / one.height))
    (rows, columns), (m, n) = one.seen.shape, other.seen.shape
    left, low = min(i, 0), min(j, 0)
    seen = np.zeros((max(rows, j + m) - low, max(columns, i + n) - left), bool)
    seen[-low : rows - low, -left : columns - left] = one.seen
    seen[j - low : j - low + m, i - left : i - left + n] |= other.seen
    return one._replace(x0=one.x0 + left * one.width, y0=one.y0 + low * one.height, seen=seen)


def _joined(group: _Group, other: _Group, shift: Shift, tolerance: Arcsec) -> _Group:
    """A group with the frames of another one, which is moved by the shift."""
    moved = {f: apply_shift(shift, *places) for f, places in other.places.items()}
    sources: SourceList = (*apply_shift(shift, *other.stars[:2]), other.stars[2])
    stars = _with_new_stars(group.stars, sources, tolerance)
    field = _joined_fields(group.field, other.field, shift.dx, shift.dy)
    return _Group(group.places | moved, stars, field)


def _grown_groups(
    alone: Sequence[_Group],
    reason: list[str],
    contrast: list[float],
    search: Arcsec,
    tolerance: Arcsec,
) -> list[_Group]:
    """Groups of frames that share stars, the largest first; edits contrasts.

    Frames with a reason are left out.
    """
    left = [f for f in range(len(alone)) if not reason[f]]
    left.sort(key=lambda f: (-len(alone[f].stars[0]), f))
    groups: list[_Group] = []
    lone = 0
    while left:
        start, *rest = left
        group, compared = alone[start], 0
        if lone < MAX_LONE_STARTS:
            middle = [(alone[f].stars[0].mean(), alone[f].stars[1].mean()) for f in left]
            distance = np.hypot(*(np.array(middle[1:]).reshape(-1, 2) - middle[0]).T)
            order = [rest[k] for k in np.argsort(distance, kind="stable")]
            group, compared = _grown(group, alone, order, contrast, search, tolerance)
        left = [f for f in left if f not in group.places]
        lone = lone + 1 if len(group.places) == 1 and compared else 0
        groups.append(group)
    return sorted(groups, key=lambda group: -len(group.places))


def _grown(
    group: _Group,
    alone: Sequence[_Group],
    order: Sequence[int],
    contrast: list[float],
    search: Arcsec,
    tolerance: Arcsec,
) -> tuple[_Group, int]:
    """A group with the frames, tried twice in this order, that fit it; how many it could reach."""
    tried: dict[int, int] = {}  # how long the list was when a frame was last tried
    reached = set()
    for f in (*order, *order):
        if f in group.places or tried.get(f) == len(group.stars[0]):
            continue
        tried[f] = len(group.stars[0])
        if not _can_reach(group, alone[f], min(search, NEAR_RADIUS)):
            continue
        reached.add(f)
        shift = _found_shift(group, alone[f], min(search, NEAR_RADIUS), MIN_PAIRS)
        contrast[f] = shift.contrast
        if shift.ok:
            group = _joined(group, alone[f], shift, tolerance)
    return group, len(reached)


def _can_reach(group: _Group, other: _Group, radius: Arcsec) -> bool:
    """Whether stars of two groups are within the radius of each other's rectangle."""
    rows = rows_around(*group.stars[:2], *other.stars[:2], radius)
    return len(rows) > 0


def _found_shift(
    group: _Group, other: _Group, search: Arcsec, fewest: int, blind: bool = False
) -> Shift:
    """Shift of another group onto a group: the nearest one that convinces.

    fewest: pairs that may tie them within the first radius; blind: search turned fields beyond
    NEAR_RADIUS. Where more than MAX_MISSED_STARS that should be shared are not, a header is wrong.
    """
    lists, fields = (group.stars, other.stars), (group.field, other.field)
    wrong = WRONG_HEADER_SHARE
    radii = [radius for radius in SEARCH_RADII if radius < search] + [search]
    shift = Shift(0.0, 0.0, 0.0, 1.0, (0.0, 0.0), 0, 0.0, False, "no stars in reach")
    many = min(len(group.stars[0]), len(other.stars[0])) >= WIDE_MIN_SOURCES
    for number, radius in enumerate(radii):
        least = fewest if number == 0 else MIN_PAIRS
        turns = WIDE_ROTATIONS if blind and many and radius > NEAR_RADIUS else (0.0,)
        found = find_shift(
            *lists, radius, fields=fields, fewest=least, rotations=turns, wrong_headers=wrong
        )
        if found.ok and np.hypot(found.dx, found.dy) <= search:
            return found
        if radius == NEAR_RADIUS and _common_by_headers(group, other) > MAX_MISSED_STARS:
            wrong = 1.0
        shift = shift if found.ok else found
    return shift


def _tied_groups(
    groups: list[_Group],
    reason: list[str],
    contrast: list[float],
    search: Arcsec,
    tolerance: Arcsec,
) -> list[_Group]:
    """Tie groups to larger ones where common stars do so; edits reasons of lone frames."""
    ahead = len(groups) + 1
    while len(groups) < ahead:
        ahead = len(groups)
        tied: list[_Group] = []
        for group in groups:
            for k, larger in enumerate(tied[:MAX_COMPARED_GROUPS]):
                if not _can_reach(larger, group, search):
                    continue
                shift = _found_shift(larger, group, search, MIN_GROUP_PAIRS, blind=True)
                for f in group.places:
                    contrast[f] = max(contrast[f], shift.contrast) if shift.ok else contrast[f]
                    reason[f] = "" if shift.ok or len(group.places) > 1 else shift.reason
                if shift.ok:
                    tied[k] = _joined(larger, group, shift, tolerance)
                    break
            else:
                tied.append(group)
        groups = sorted(tied, key=lambda group: -len(group.places))
    for group in groups:
        (first, *others) = group.places
        if not others and not reason[first] and len(reason) > 1:
            reason[first] = "no other frame shares its stars"
    return groups


def _common_by_headers(one: _Group, other: _Group) -> int:
    """How many stars two groups should share if both are where their headers say."""
    seen_by_other = seen_in(other.field, *one.stars[:2])
    seen_by_one = seen_in(one.field, *other.stars[:2])
    return int(min(seen_by_other.sum(), seen_by_one.sum()))


def _refuse_strangers(groups: Sequence[_Group], reason: list[str]) -> None:
    """Refuse groups of several frames that should share stars with a larger one; edits reasons.

    Frames alone are looked at more closely, in `few_stars`.
    """
    for k, group in enumerate(groups):
        if len(group.places) < 2:
            continue
        for larger in groups[:k]:
            expected = _common_by_headers(larger, group)
            if expected > MAX_MISSED_STARS:
                for f in group.places:
                    reason[f] = (
                        f"{STRANGERS_REASON} that {len(group.places)} frames share, but none of"
                        f" the {expected} that {len(larger.places)} others show there by the"
                        " headers (pointed elsewhere, or further off than `search` allows)"
                    )
                break


def _with_new_stars(stars: SourceList, sources: SourceList, tolerance: Arcsec) -> SourceList:
    """The list of stars with those sources that are none of them; fluxes brought to the list's."""
    x, y, flux = sources
    near = rows_around(stars[0], stars[1], x, y, tolerance)
    ia, ib = match_pairs(stars[0][near], stars[1][near], x, y, tolerance)
    ratio = float(np.median(stars[2][near[ia]] / flux[ib])) if len(ia) else 1.0
    new = other_rows(len(x), ib)
    added = (x[new], y[new], flux[new] * ratio)
    x, y, flux = (np.append(old, more) for old, more in zip(stars, added, strict=True))
    return x, y, flux


def apart(problem: Problem, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What to add to the positions of measurements, and of stars, to keep groups apart (arcsec).

    group: number of each frame's group.
    """
    of_measurement = np.maximum(group, 0)[problem.frame] * _FAR
    of_star = np.zeros(problem.stars)
    of_star[problem.star] = of_measurement
    return of_measurement, of_star


def groups_on_headers(
    frames: Sequence[Measurements],
    problem: Problem,
    terms: np.ndarray,
    active: np.ndarray,
    group: np.ndarray,
) -> np.ndarray:
    """The frames' terms with the frames of each group on their headers, on average."""
    numbers = np.unique(group[active > 0])
    if len(numbers) <= 1:
        return centre_on_headers(frames, problem, terms, active)
    out = terms
    for number in numbers.tolist():
        moved = centre_on_headers(frames, problem, terms, active * (group == number))
        out = np.where((group == number)[:, None], moved, out)
    return out


def linked_groups(frame: np.ndarray, star: np.ndarray, frames: int) -> np.ndarray:
    """Number the groups of frames that share stars, the largest first; -1 for frames of no star.

    frame, star: of each link (int64); frames that have links to one star belong together.
    """
    label = np.arange(frames)
    before = label - 1
    while (label != before).any():
        before = label.copy()
        of_star = np.full(int(star.max(initial=-1)) + 1, frames)
        np.minimum.at(of_star, star, label[frame])
        np.minimum.at(label, frame, of_star[star])
        label = label[label]
    out = np.full(frames, -1)
    linked = np.unique(frame)
    first, count = np.unique(label[linked], return_counts=True)
    for k, root in enumerate(first[np.argsort(-count, kind="stable")].tolist()):
        out[linked[label[linked] == root]] = k
    return out
