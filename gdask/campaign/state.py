"""How each job of a plan stands, and why it would be run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gdask.campaign import records
from gdask.campaign.describe import RawFile
from gdask.campaign.gates import blocking, gates_of
from gdask.campaign.job import Campaign, Job, lacking
from gdask.campaign.jobs import Place, what_goes_in
from gdask.campaign.quicklook import has_quick_look
from gdask.model import GdaskError
from gdask.reduction.gates import Table


class State(NamedTuple):
    """The state of a job.

    name: 'made', 'caveats' (made, something left out or a calibration far in time), 'failed' (and
    nothing has changed since), 'blocked', 'stale', 'new' or 'waiting' (run if what it needs
    changes). reasons: in words. runs: whether it would be run. unfit: why nothing may be made of
    its products, or ''.
    """

    name: str
    reasons: tuple[str, ...] = ()
    runs: bool = False
    unfit: str = ""

    @property
    def gives_nothing(self) -> bool:
        """Whether nothing can be made of the job as it stands."""
        return self.name == "blocked" or (self.name == "failed" and not self.runs)


def states_of(
    campaign: Campaign, known: Mapping[str, dict[str, Any]], place: Place
) -> dict[str, State]:
    """Give the state of each job of a plan, without running anything. known: records by job."""
    files: dict[str, RawFile] = {}
    for file in campaign.files:
        if file.kind not in ("duplicate", "unreadable", "missing"):
            files.setdefault(file.key, file)
    states: dict[str, State] = {}
    table = gates_of(place.out)
    for job in campaign.jobs:
        states[job.id] = _state(job, known, files, states, place, table)
    return states


def _state(
    job: Job,
    known: Mapping[str, dict[str, Any]],
    files: Mapping[str, RawFile],
    states: Mapping[str, State],
    place: Place,
    table: Table,
) -> State:
    record = known.get(job.id)
    if job.blocked:
        return State("blocked", (job.blocked,))
    needs = {name: states[name] for name in job.needs if name in states}
    lost = [f"{name} is {one.unfit}" for name, one in needs.items() if one.unfit]
    lost += lacking(job, {name: one.name for name, one in needs.items() if one.gives_nothing})
    if lost:
        return State("blocked", tuple(lost))
    if record is None:
        return State("new", ("new",), True)
    waits = [name for name, one in needs.items() if one.runs]
    before = {name: known[name] for name in job.needs if name in known and name not in waits}
    if waits:
        return State("waiting", tuple(f"if {name} changes" for name in waits), True)
    try:
        parts, _ = what_goes_in(job, files, before, place)
    except (GdaskError, OSError, KeyError) as error:
        return State("stale", (f"what goes in cannot be read: {error}",), True)
    if record["key"] != records.key_of(parts):
        names = record.get("names", {}) | {file_key: file.name for file_key, file in files.items()}
        reasons = records.changes(record.get("parts", {}), parts, names) or ["it was not finished"]
        return State("stale", tuple(reasons), True)
    if record["status"] == "failed":
        return State("failed", (record["cause"],), place.retry)
    if text := records.lost_product(place.out, record):
        return State("stale", (text,), True)
    caveats = [*record.get("left_out", ())]
    if record.get("level", 0):
        caveats.append(f"association level {record['level']}")
    if has_quick_look(record):
        caveats.append("a quick look of a night that is not over")
    unfit = blocking(record, job.kind, table)
    return State("caveats" if caveats else "made", tuple(caveats), unfit=unfit)
