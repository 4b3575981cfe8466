"""What a plan will take: seconds, memory and disk, from what like jobs have taken before."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gdask.campaign.job import Campaign, Job
from gdask.io.whole import write_whole
from gdask.model import read_json

#: Jobs of one kind that are kept of earlier campaigns.
MAX_KEPT = 50
#: Seconds that any job takes to start, to load Python's packages and compiled code: what checkWCS
#: of nine frames takes in all (docs/performance.md).
START_SECONDS = 0.8


class Cost(NamedTuple):
    """Seconds of wall, most bytes of memory, bytes of products; None where nothing was measured."""

    seconds: float | None
    memory: float | None
    product: float | None


class Measured(NamedTuple):
    """What one job has taken."""

    instrument: str
    kind: str
    raw: int
    threads: int
    seconds: float
    memory: int
    product: int


def rates_file() -> Path:
    """Give the file of what jobs of all campaigns of this user have taken on this machine."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "gdask" / f"campaign-rates-{os.uname().nodename}.json"


def measured(job: Job, record: Mapping[str, Any]) -> Measured | None:
    """Give what a job that was made has taken; None where several workers have made it."""
    account = record.get("account") or {}
    if record.get("status") != "made" or not account or not record.get("tries"):
        return None
    if record["tries"][-1].get("shared"):
        return None
    return Measured(
        job.instrument,
        job.kind,
        job.raw_bytes,
        int(record["tries"][-1]["threads"]),
        float(record["seconds"]),
        int(account.get("memory", 0)),
        sum(one["size"] for one in record["products"]),
    )


def read_rates(path: Path | None = None) -> list[Measured]:
    """Read what jobs of earlier campaigns have taken; nothing where the file cannot be read."""
    try:
        rows = read_json(path or rates_file())
        return [Measured(*row) for row in rows]
    except (OSError, ValueError, TypeError):
        return []


def keep_rates(new: Iterable[Measured], path: Path | None = None) -> None:
    """Add measurements to those that are kept; the oldest of a kind go. Never an error."""
    path = path or rates_file()
    rows = [*read_rates(path), *new]
    kept: list[Measured] = []
    for kind in dict.fromkeys((one.instrument, one.kind) for one in rows):
        kept += [one for one in rows if (one.instrument, one.kind) == kind][-MAX_KEPT:]
    try:
        write_whole(path, json.dumps(kept))
    except OSError:
        return


def predict(job: Job, rates: Sequence[Measured], threads: int) -> Cost:
    """Predict the cost of a job: what like jobs took for a byte of raw data, times its bytes.

    Like jobs are of the same instrument and kind; those of as many threads are preferred, then
    those nearest in size. The median of five counts.
    """
    like = [one for one in rates if (one.instrument, one.kind) == (job.instrument, job.kind)]
    same = [one for one in like if one.threads == threads] or like
    near = sorted(same, key=lambda one: abs(_log(one.raw) - _log(job.raw_bytes)))[:5]
    if not near or not job.raw_bytes:
        return Cost(None, None, None)
    per_byte = statistics.median(
        max(one.seconds - START_SECONDS, 0.0) / max(one.raw, 1) for one in near
    )
    return Cost(
        START_SECONDS + per_byte * job.raw_bytes,
        statistics.median(one.memory for one in near),
        statistics.median(one.product / max(one.raw, 1) for one in near) * job.raw_bytes,
    )


def _log(size: int) -> float:
    import math

    return math.log(max(size, 1))


def wall_seconds(campaign: Campaign, seconds: Mapping[str, float], at_a_time: int) -> float:
    """Give the seconds that jobs take together, so many at a time, each after those it needs."""
    ends: dict[str, float] = {}
    free = [0.0] * max(at_a_time, 1)
    for job in campaign.jobs:
        if job.id not in seconds:
            continue
        ready = max((ends.get(name, 0.0) for name in job.needs), default=0.0)
        place = min(range(len(free)), key=free.__getitem__)
        ends[job.id] = free[place] = max(free[place], ready) + seconds[job.id]
    return max(ends.values(), default=0.0)
