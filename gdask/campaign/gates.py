"""What gates say of the products of a campaign; OUT/gates.toml, if there is one, changes limits."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gdask.campaign.job import STAGES, Campaign, Job
from gdask.campaign.settings import GATES
from gdask.reduction.gates import Table, Verdict, judge, merged, read_own, shipped

#: What the gates call the products of each kind of job.
KINDS = {"dark": "dark", "bpm": "bpm", "flat": "flat", "frames": "frame", "stack": "image"}


class Judged(NamedTuple):
    """One product of a job, its numbers, and the verdict of each gate."""

    job: Job
    product: dict[str, Any]
    verdicts: tuple[Verdict, ...]


def gates_of(out: str | os.PathLike[str]) -> Table:
    """Give the gates of a campaign: the shipped ones, changed by those of OUT/gates.toml."""
    path = Path(out) / GATES
    return merged(read_own(path), str(path)) if path.exists() else shipped()


def judged_products(
    campaign: Campaign, known: Mapping[str, dict[str, Any]], table: Table
) -> list[Judged]:
    """Judge every product, against its fellows: of the same kind, instrument and filter."""
    series: dict[Any, list[tuple[Job, dict[str, Any]]]] = {}
    for job in campaign.jobs:
        record = known.get(job.id, {})
        if record.get("status") == "made":
            key = (job.kind, job.instrument, job.filter)
            series.setdefault(key, []).extend((job, one) for one in record["products"])
    found = []
    for members in series.values():
        numbers = [one.get("numbers", {}) for _, one in members]
        for job, one in members:
            exposure = one.get("numbers", {}).get("exposure_time")
            fellows = [each for each in numbers if each.get("exposure_time") == exposure]
            verdicts = judge(one.get("numbers", {}), fellows, table, KINDS[job.kind])
            found.append(Judged(job, one, verdicts))
    return found


def failures(judged: Iterable[Judged]) -> Iterator[str]:
    """Say which products do not meet a gate, as failures."""
    for one in judged:
        for verdict in one.verdicts:
            if verdict.state == "failure":
                yield f"{one.product['path']}: {verdict.sentence}"


def unfit_frames(products: Iterable[Mapping[str, Any]], table: Table) -> dict[str, str]:
    """Give frames that a gate leaves out of stacks, by path, with the reason."""
    products = list(products)
    fellows = [one.get("numbers", {}) for one in products]
    found = {}
    for one in products:
        for verdict in judge(one.get("numbers", {}), fellows, table, "frame"):
            if verdict.state == "failure" and verdict.action == "leave out":
                found[one["path"]] = verdict.sentence
    return found


def blocking(record: Mapping[str, Any], kind: str, table: Table) -> str:
    """Say why nothing may be made of a job's products, calibrations of a kind; '' where it may."""
    if kind not in STAGES["calibrations"] or record.get("status") != "made":
        return ""
    for one in record.get("products", ()):
        for verdict in judge(one.get("numbers", {}), (), table, KINDS[kind]):
            if verdict.state == "failure" and verdict.action == "block":
                return f"not fit for use: {verdict.sentence}"
    return ""
