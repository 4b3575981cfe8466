"""How each job of a plan stands, and why it would be run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gdask.campaign import records
from gdask.campaign.describe import RawFile
from gdask.campaign.job import Campaign, Job
from gdask.campaign.jobs import Place, what_goes_in
from gdask.model import GdaskError


class State(NamedTuple):
    """The state of a job.

    name: 'made', 'caveats' (made, something left out or a calibration far in time), 'failed' (and
    nothing has changed since), 'blocked', 'stale', 'new' or 'waiting' (run if what it needs
    changes). reasons: in words. runs: whether it would be run.
    """

    name: str
    reasons: tuple[str, ...] = ()
    runs: bool = False


def states_of(
    campaign: Campaign, known: Mapping[str, dict[str, Any]], place: Place
) -> dict[str, State]:
    """Give the state of each job of a plan, without running anything. known: records by job."""
    files: dict[str, RawFile] = {}
    for file in campaign.files:
        if file.kind not in ("duplicate", "unreadable", "missing"):
            files.setdefault(file.key, file)
    states: dict[str, State] = {}
    for job in campaign.jobs:
        states[job.id] = _state(job, known.get(job.id), files, known, states, place)
    return states


def _state(
    job: Job,
    record: dict[str, Any] | None,
    files: Mapping[str, RawFile],
    known: Mapping[str, dict[str, Any]],
    states: Mapping[str, State],
    place: Place,
) -> State:
    if job.blocked:
        return State("blocked", (job.blocked,))
    lost = [name for name in job.needs if name in states and _gives_nothing(states[name])]
    optional = {one.source for one in job.calibrations if not one.required}
    lost = [name for name in lost if name not in optional]
    if lost and not (job.kind == "stack" and len(lost) < len(job.takes)):
        return State("blocked", tuple(f"{name} {states[name].name}" for name in lost))
    if record is None:
        return State("new", ("new",), True)
    waits = [name for name in job.needs if name in states and states[name].runs]
    before = {name: known[name] for name in job.needs if name in known and name not in waits}
    if waits:
        return State("waiting", tuple(f"if {name} changes" for name in waits), True)
    try:
        parts, _ = what_goes_in(job, files, before, place)
    except (GdaskError, OSError, KeyError) as error:
        return State("stale", (f"what goes in cannot be read: {error}",), True)
    if record["key"] != records.key_of(parts):
        reasons = records.changes(record.get("parts", {}), parts) or ["it was not finished"]
        return State("stale", tuple(reasons), True)
    if record["status"] == "failed":
        return State("failed", (record["cause"],), place.retry)
    if text := records.lost_product(place.out, record):
        return State("stale", (text,), True)
    caveats = [*record.get("left_out", ())]
    if record.get("level", 0):
        caveats.append(f"association level {record['level']}")
    return State("caveats" if caveats else "made", tuple(caveats))


def _gives_nothing(state: State) -> bool:
    return state.name == "blocked" or (state.name == "failed" and not state.runs)
