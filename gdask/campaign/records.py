"""What a job has made, of what: one small file for each job, beside its products.

These files are the truth about a campaign. Tables and caches are made from them and can be deleted
at any time. A job is done again when what goes into it, by content, is not what its record says.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gdask.campaign.job import BITS, Campaign, Job
from gdask.headers import each_unit, open_stream
from gdask.io.whole import write_whole
from gdask.model import GdaskError, read_json
from gdask.reduction.replay import TIME_KEYWORDS

#: Folder of a campaign for what can be deleted when no run is going on.
HIDDEN = ".campaign"
#: Files in it: the places of raw files of the last run, and of a look without a run.
PLACES, LOOKED_AT = "places.json", "looked-at.json"
#: Tables of a product that hold times, names of files and versions: not what it says of the sky.
_ABOUT_THE_RUN = frozenset({"HISTORY", "PROVENANCE", "REDUCTION", "RECIPE"})
RECORD_VERSION = 2
#: Records that are kept in memory at a time.
RECORDS_KEPT = 64
#: What a record says of what went into a job, and how it was run.
_WENT_IN = frozenset({"parts", "names", "log", "command", "planned"})


def known_places(out: str | os.PathLike[str], name: str = PLACES) -> list[str]:
    """Give the folders of raw files of the last run of a campaign; none where it has not begun."""
    try:
        found = read_json(Path(out) / HIDDEN / name)
        return [str(one) for one in found]
    except (OSError, ValueError, TypeError):
        return []


def content_digest(path: str | os.PathLike[str]) -> str:
    """Give a digest of what a product holds: headers and checksums of data, not when it was made.

    Nor what the gates of that time said of it.

    Two products with the same digest have the same pixels, catalogues and headers. Only headers are
    read; where a unit has no DATASUM, its bytes count.
    """
    name, found = os.fspath(path), hashlib.sha256()
    with open_stream(name) as stream:
        for unit in each_unit(stream, name):
            if str(unit.header.get("EXTNAME", "")).strip() in _ABOUT_THE_RUN:
                continue
            cards = [
                text
                for keyword, text in unit.header.texts
                if keyword not in TIME_KEYWORDS and keyword not in ("FILENAME", "ORIGNAME", "GATES")
            ]
            found.update("\n".join([*cards, ""]).encode())
            datasum = unit.header.get("DATASUM")
            found.update(stream.read(unit.size) if datasum is None else str(datasum).encode())
    return found.hexdigest()[:32]


def record_path(out: str | os.PathLike[str], job: Job) -> Path:
    """Give the path of the record of a job."""
    return Path(out) / job.folder / f"{job.id}.json"


def read_record(out: str | os.PathLike[str], job: Job) -> dict[str, Any] | None:
    """Read the record of a job; None where it has none, or one of another version or damaged."""
    record = read_whole(record_path(out, job))
    return record if record and record["job"] == job.id else None


def read_whole(path: Path) -> dict[str, Any] | None:
    """Read a record; None where there is none, or its sum says that it is not as it was written."""
    try:
        record = read_json(path)
        is_whole = record.pop("sum") == _sum(record) and record["version"] == RECORD_VERSION
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if is_whole else None


def _sum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


class Records(Mapping[str, dict[str, Any]]):
    """The records of the jobs of a plan, by job; each is read when it is looked at.

    Those of 10^5 frames would take 300 MB. A few are kept, for jobs that need the same ones.
    """

    def __init__(self, out: str | os.PathLike[str], campaign: Campaign) -> None:
        jobs = {job.id: job for job in campaign.jobs}
        self._names = tuple(jobs)

        @functools.lru_cache(RECORDS_KEPT)
        def read(name: str) -> dict[str, Any] | None:
            return read_record(out, jobs[name]) if name in jobs else None

        self._read = read

    def __getitem__(self, name: str) -> dict[str, Any]:
        record = self._read(name)
        if record is None:
            raise KeyError(name)
        return record

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._names if self._read(name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def read_records(out: str | os.PathLike[str], campaign: Campaign) -> Records:
    """Give the records of the jobs of a plan, by job."""
    return Records(out, campaign)


def outline(record: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Give what a run needs of a record once the job has ended: not what went in.

    Of frames only the bytes of all products together.
    """
    kept = {name: value for name, value in record.items() if name not in _WENT_IN}
    if kind == "frames" and kept.get("products"):
        kept["products"] = [{"size": sum(one["size"] for one in kept["products"])}]
    return kept


def all_records(out: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read every record below a folder of results, also those of jobs that are planned no more."""
    records = []
    for path in sorted(Path(out).rglob("*.json")):
        if HIDDEN in path.relative_to(out).parts:
            continue
        if record := read_whole(path):
            records.append(record)
    return records


def write_record(out: str | os.PathLike[str], job: Job, record: Mapping[str, Any]) -> None:
    """Write the record of a job, whole or not at all."""
    whole = {"version": RECORD_VERSION, "job": job.id, **record}
    whole = json.loads(json.dumps(whole))  # as it will be read
    text = json.dumps(whole | {"sum": _sum(whole)}, indent=1)
    write_whole(record_path(out, job), text + "\n")


def products_of(out: str | os.PathLike[str], record: Mapping[str, Any]) -> list[str]:
    """Give the paths of the products of a record."""
    return [os.path.join(out, one["path"]) for one in record.get("products", ())]


def lost_product(out: str | os.PathLike[str], record: Mapping[str, Any]) -> str:
    """Name a product of a record that is gone or was changed by somebody else; '' if none is.

    One of another time is looked at by its content.
    """
    for one in record.get("products", ()):
        path = os.path.join(out, one["path"])
        try:
            status = os.stat(path)
            if status.st_size != one["size"]:
                return f"{one['path']} has changed"
            if status.st_mtime_ns != one["mtime_ns"] and content_digest(path) != one["content"]:
                return f"{one['path']} has changed"
        except (OSError, GdaskError):
            return f"{one['path']} is gone"
    return ""


# What goes into a job --------------------------------------------------------------------------


def parts_of(
    job: Job,
    sums: Mapping[str, str],
    calibrations: Mapping[str, str],
    frames: Mapping[str, str],
    headers: Mapping[str, Iterable[str]],
) -> dict[str, Any]:
    """Give all that decides what a job makes.

    sums: checksum of the pixels of each input, by key. calibrations: digest of content by type.
    frames: digest of content by name. headers: corrected cards by key.
    """
    return {
        "recipe": job.recipe,
        "bits": BITS[job.kind],
        "parameters": dict(job.parameters),
        "inputs": dict(sorted(sums.items())),
        "calibrations": dict(sorted(calibrations.items())),
        "frames": dict(sorted(frames.items())),
        "headers": {key: sorted(cards) for key, cards in sorted(headers.items())},
    }


def key_of(parts: Mapping[str, Any]) -> str:
    """Give one digest of all parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def changes(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    names: Mapping[str, str] = MappingProxyType({}),
    words: tuple[str, str] = ("is new", "is not in it any more"),
) -> list[str]:
    """Say in words what differs between the parts of a record and those of now.

    names: of files, by key of the exposure. words: of what only the second, and only the first has.
    """
    found = []
    if before.get("recipe") != now["recipe"]:
        found.append(f"recipe {before.get('recipe')} -> {now['recipe']}")
    if before.get("bits") != now["bits"]:
        found.append(f"bits number {before.get('bits')} -> {now['bits']}")
    titles = {
        "inputs": "input",
        "calibrations": "calibration",
        "frames": "frame",
        "headers": "header of",
        "parameters": "parameter",
    }
    for name, word in titles.items():
        then, after = before.get(name, {}), now[name]
        for key in sorted({*then, *after}):
            if then.get(key) == after.get(key):
                continue
            if name == "parameters":
                found.append(
                    f"parameter {key}: {then.get(key, 'default')} -> {after.get(key, 'default')}"
                )
            elif key not in then:
                found.append(f"{word} {names.get(key, key)} {words[0]}")
            elif key not in after:
                found.append(f"{word} {names.get(key, key)} {words[1]}")
            else:
                found.append(f"{word} {names.get(key, key)} has changed")
    return found
