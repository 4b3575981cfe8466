"""Files that are reduced together: darks, flats, and frames of a target, by night and set-up.

Targets are told by position and programme, not by name. No pixel and no header is read here.
"""

from __future__ import annotations

import bisect
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterable, Sequence
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

from gdask.campaign.describe import RawFile

#: Frames whose targets are closer than this fraction of the field of view have one target.
SAME_TARGET_FOV = 0.5
#: Darks of nights that are at most so many days apart make one dark: they change slowly, and the
#: darks of a programme are often spread over neighbouring nights.
POOL_DARKS_DAYS = 3
#: Frames of one exposure that a night needs, so that one can be the sky of another.
MIN_FRAMES = 2


class Group(NamedTuple):
    """Files of one kind, set-up and night. name: of the target, or the kind.

    extra: what tells it from another group that would have the same name; '' where none would.
    """

    kind: str  # dark, flat, science
    name: str
    instrument: str
    filter: str
    night: str
    exposure: float
    coadds: int
    read_mode: str
    size: str
    files: tuple[RawFile, ...]
    extra: str = ""

    @property
    def first(self) -> RawFile:
        """The first file in order of time."""
        return self.files[0]

    @property
    def nights(self) -> tuple[str, ...]:
        """Nights of its files, in order."""
        return tuple(sorted({file.night for file in self.files}))


class Grouped(NamedTuple):
    """Groups, in a fixed order, and the files that are in none with the reason."""

    groups: tuple[Group, ...]
    left_out: tuple[tuple[RawFile, str], ...]


def make_groups(files: Iterable[RawFile], unused: Container[str] = ()) -> Grouped:
    """Put files of USED_KINDS into groups. The order of the files does not matter.

    unused: paths of files that people have taken out of use. They are in no group, but groups and
    names are as if they were: taking out a frame renames nothing.
    """
    ordered = sorted(files, key=lambda file: (file.time, file.name, file.path))
    targets = name_targets([file for file in ordered if file.kind == "science"])
    groups: list[Group] = []
    for kind in ("dark", "flat", "science"):
        members = [file for file in ordered if file.kind == kind]
        for found in _by(members, lambda file: _set_up(file, targets)).values():
            if kind == "dark":
                groups += [_group(kind, pool, targets) for pool in _pools(found)]
            else:
                nights = _by(found, lambda file: file.night)
                groups += [_group(kind, one, targets) for one in nights.values()]
    alone = [one for one in groups if _is_alone(one)]
    left = [
        group._replace(files=tuple(one for one in group.files if one.path not in unused))
        for group in (*_told_apart([one for one in groups if not _is_alone(one)]), *alone)
    ]
    return Grouped(
        tuple(group for group in left if group.files and not _is_alone(group)),
        tuple(
            (one, _why_alone(group)) for group in left if _is_alone(group) for one in group.files
        ),
    )


def _is_alone(group: Group) -> bool:
    return group.kind == "science" and len(group.files) < MIN_FRAMES


def _why_alone(group: Group) -> str:
    return (
        f"alone: no other frame of {group.name} in {group.filter} with "
        f"{group.exposure:g} s in the night {group.night}, so there is no sky for it"
    )


def set_up_of(file: RawFile) -> dict[str, Any]:
    """Give what frames that are reduced together have in common."""
    row = file.row
    shape = row.get("shape") or []
    sizes = {f"{one[0]}x{one[1]}" for one in shape if one}
    sections = json.dumps(row.get("detector_section"))
    return {
        "instrument": file.instrument,
        "filter": str(row.get("filter_name") or ""),
        "exposure": round(float(row.get("exposure_time") or 0.0), 1),
        "coadds": int(row.get("coadds") or 1),
        "read_mode": str(row.get("read_mode") or ""),
        "speed": str(row.get("read_speed_setting") or ""),
        "lyot_stop": str(row.get("lyot_stop") or ""),
        "camera": str(row.get("camera") or ""),
        "size": f"{len(shape)}x" + "+".join(sorted(sizes)),
        "sections": sections,
    }


def _set_up(file: RawFile, targets: dict[str, str]) -> Hashable:
    found = set_up_of(file)
    if file.kind == "dark":
        found["filter"] = found["lyot_stop"] = ""
    return (targets.get(file.path, ""), *found.values())


def _group(kind: str, files: Sequence[RawFile], targets: dict[str, str]) -> Group:
    found = set_up_of(files[0])
    return Group(
        kind,
        targets.get(files[0].path, kind),
        found["instrument"],
        "" if kind == "dark" else found["filter"],
        files[0].night,
        found["exposure"],
        found["coadds"],
        found["read_mode"],
        found["size"],
        tuple(files),
    )


def _pools(darks: Sequence[RawFile]) -> list[list[RawFile]]:
    """Divide darks where more than POOL_DARKS_DAYS lie between two nights."""
    pools: list[list[RawFile]] = []
    for dark in darks:
        near = pools and _days(pools[-1][-1].night, dark.night) <= POOL_DARKS_DAYS
        if near:
            pools[-1].append(dark)
        else:
            pools.append([dark])
    return pools


def _days(first: str, second: str) -> float:
    if not (first and second):
        return math.inf
    days: timedelta = _date(second) - _date(first)
    return abs(days.days)


def _date(night: str) -> date:
    return date(int(night[:4]), int(night[4:6]), int(night[6:]))


def _by(
    files: Iterable[RawFile], key: Callable[[RawFile], Hashable]
) -> dict[Hashable, list[RawFile]]:
    groups: dict[Hashable, list[RawFile]] = {}
    for file in files:
        groups.setdefault(key(file), []).append(file)
    return groups


def _told_apart(groups: Sequence[Group]) -> list[Group]:
    """Give groups that would have one name what tells them apart, and put them in order."""
    named: dict[Hashable, list[Group]] = {}
    for group in groups:
        named.setdefault(
            (group.kind, group.name, group.instrument, group.filter, group.night)
            + ((group.exposure,) if group.kind == "dark" else ()),
            [],
        ).append(group)
    result = []
    for same in named.values():
        fields: dict[str, Callable[[Group], str]] = {
            "exposure": lambda group: f"{group.exposure:g}s",
            "coadds": lambda group: f"{group.coadds}coadds",
            "read_mode": lambda group: safe_name(group.read_mode),
            "size": lambda group: safe_name(group.size),
        }
        differing = [text for text in fields.values() if len({text(group) for group in same}) > 1]
        seen: Counter[str] = Counter()
        for group in sorted(same, key=lambda group: (group.first.time, group.first.key)):
            extra = "-".join(text(group) for text in differing)
            seen[extra] += 1
            if seen[extra] > 1:
                extra = "-".join(filter(None, [extra, str(seen[extra])]))
            result.append(group._replace(extra=extra))
    return sorted(
        result,
        key=lambda g: (g.instrument, g.kind, g.name, g.filter, g.night, g.exposure, g.extra),
    )


# Targets ---------------------------------------------------------------------------------------


def name_targets(files: Sequence[RawFile]) -> dict[str, str]:
    """Give the name of the target of each science frame, by path.

    Guided frames of one programme whose targets are close have one target; its name is that which
    most of them give. An unguided frame (sky) belongs to the target of its observation, else to the
    nearest in time of its programme.
    """
    clusters = _clusters([file for file in files if file.guided])
    _adopt([file for file in files if not file.guided], clusters)
    for group in clusters:
        group.sort(key=lambda one: (one.time, one.name))
    names: dict[str, str] = {}
    taken: Counter[str] = Counter()
    for group in sorted(clusters, key=lambda group: (group[0].time, group[0].key)):
        name = safe_name(Counter(one.object for one in group).most_common(1)[0][0] or "target")
        taken[name] += 1
        if taken[name] > 1:
            name = f"{name}-{safe_name(group[0].program) or taken[name]}"
            taken[name] += 1
            name = name if taken[name] == 1 else f"{name}-{taken[name]}"
        names |= {one.path: name for one in group}
    return names


def _clusters(files: Sequence[RawFile]) -> list[list[RawFile]]:
    """Put files into groups of one programme whose targets are close, link by link."""
    places: dict[Hashable, list[RawFile]] = {}  # the frames of a sequence have the same target
    for file in files:
        places.setdefault((file.program, file.ra, file.dec), []).append(file)
    of_program: dict[str, list[list[list[RawFile]]]] = {}
    for members in places.values():
        groups = of_program.setdefault(members[0].program, [])
        near = [group for group in groups if any(_same_target(members[0], one[0]) for one in group)]
        for group in near[1:]:
            near[0].extend(group)
            groups.remove(group)
        if near:
            near[0].append(members)
        else:
            groups.append([members])
    return [
        [file for members in group for file in members]
        for groups in of_program.values()
        for group in groups
    ]


def _adopt(files: Sequence[RawFile], clusters: list[list[RawFile]]) -> None:
    """Add unguided frames to the targets that they belong to; to one of their own if to none."""
    by_observation: dict[Hashable, list[tuple[float, int]]] = {}
    by_program: dict[Hashable, list[tuple[float, int]]] = {}
    for number, group in enumerate(clusters):
        for file in group:
            row = (_seconds(file), number)
            by_observation.setdefault((file.program, file.observation), []).append(row)
            by_program.setdefault(file.program, []).append(row)
    for rows in (*by_observation.values(), *by_program.values()):
        rows.sort()
    for file in files:
        own = by_observation.get((file.program, file.observation), [])
        rows = own or by_program.get(file.program, [])
        if not rows:
            clusters.append([file])
            row = (_seconds(file), len(clusters) - 1)
            by_observation[file.program, file.observation] = by_program[file.program] = [row]
            continue
        place = bisect.bisect_left(rows, (_seconds(file), 0))
        near = rows[max(place - 1, 0) : place + 1]
        clusters[min(near, key=lambda row: (abs(row[0] - _seconds(file)), row))[1]].append(file)


def _seconds(file: RawFile) -> float:
    return datetime.fromisoformat(file.time).timestamp() if file.time else 0.0


def _same_target(first: RawFile, second: RawFile) -> bool:
    if first.program != second.program or None in (first.ra, first.dec, second.ra, second.dec):
        return False
    limit = SAME_TARGET_FOV * max(first.field_of_view, second.field_of_view)
    return separation(first, second) <= limit


def separation(first: RawFile, second: RawFile) -> float:
    """Arcsec between the targets of two frames."""
    assert first.ra is not None and first.dec is not None
    assert second.ra is not None and second.dec is not None
    a, b = math.radians(first.dec), math.radians(second.dec)
    half = math.radians(second.ra - first.ra) / 2
    h = math.sin((b - a) / 2) ** 2 + math.cos(a) * math.cos(b) * math.sin(half) ** 2
    return math.degrees(2 * math.asin(min(1.0, math.sqrt(h)))) * 3600


def safe_name(text: str) -> str:
    """Give a text as a part of file names and job names: letters, digits, + - . and _."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", text).strip("_.") or ""
