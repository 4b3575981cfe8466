"""Words about a campaign: its plan as a tree, how it stands, why a file was used or not."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gdask.campaign import records
from gdask.campaign.cost import Cost
from gdask.campaign.job import Campaign, Choice, Job, is_named
from gdask.campaign.state import State
from gdask.campaign.uses import ends_of
from gdask.engine.account import describe_time
from gdask.model import UsageError
from gdask.params import closest

#: States in the order in which they are counted, and their words.
STATES = {
    "made": "done",
    "caveats": "done with caveats",
    "failed": "failed",
    "blocked": "blocked",
    "stale": "stale",
    "waiting": "waiting",
    "queued": "queued",
    "running": "running",
    "new": "to do",
}
#: As many files or jobs are named in a line; of more, the number is said.
NAMED = 5


def tree_lines(
    campaign: Campaign, states: Mapping[str, State], costs: Mapping[str, Cost]
) -> Iterator[str]:
    """Give the plan as a tree: targets with what they need, why each would run, and its cost."""
    for title, jobs in _by_target(campaign):
        yield title
        for job in jobs:
            state = states[job.id]
            yield f"  {_mark(state)} {job.id}: {_reason(state)}{_cost(costs.get(job.id))}"
            for choice in job.calibrations:
                yield f"        {choice_text(choice)}"
            for note in job.notes:
                yield f"        {note}"


def _by_target(campaign: Campaign) -> Iterator[tuple[str, list[Job]]]:
    groups: dict[str, list[Job]] = {}
    for job in campaign.jobs:
        groups.setdefault(job.target or "calibrations", []).append(job)
    yield from groups.items()


def _mark(state: State) -> str:
    return "*" if state.runs else "!" if state.name in ("failed", "blocked") else " "


def _reason(state: State) -> str:
    word = STATES[state.name]
    shown = ", ".join(state.reasons[:3]) + (" ..." if len(state.reasons) > 3 else "")
    return word if not shown or shown == "new" else f"{word} ({shown})"


def _cost(cost: Cost | None) -> str:
    if cost is None:
        return ""
    if cost.seconds is None or cost.memory is None or cost.product is None:
        return "  [cost unknown: nothing like it was measured yet]"
    time = describe_time(cost.seconds)
    return f"  [{time}, {_size(cost.memory)} memory, {_size(cost.product)} disk]"


def _size(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.0f} MiB"


def total_line(
    campaign: Campaign, states: Mapping[str, State], costs: Mapping[str, Cost], wall: float | None
) -> str:
    """Give the line below the tree: how many jobs run, and what they take together."""
    runs = sum(state.runs for state in states.values())
    text = f"{runs} of {len(campaign.jobs)} jobs would run"
    if wall is None:
        unknown = sum(cost.seconds is None for cost in costs.values())
        return f"{text}; time unknown: {unknown} of them are of a kind that was not measured yet"
    if not runs:
        return text
    memory = max((cost.memory or 0 for cost in costs.values()), default=0)
    disk = sum(cost.product or 0 for cost in costs.values())
    return (
        f"{text}: {describe_time(wall)}, at most {_size(memory)} memory a job, {_size(disk)} disk"
    )


def as_json(
    campaign: Campaign, states: Mapping[str, State], costs: Mapping[str, Cost], wall: float | None
) -> dict[str, Any]:
    """Give the plan with states and costs as names and values."""
    return {
        "jobs": [
            job._asdict()
            | {
                "calibrations": [choice._asdict() for choice in job.calibrations],
                "parameters": dict(job.parameters),
                "recipe": job.recipe,
                "state": states[job.id]._asdict(),
                "cost": costs[job.id]._asdict() if job.id in costs else None,
            }
            for job in campaign.jobs
        ],
        "files": dict(sorted(Counter(row["state"] for row in campaign.rows).items())),
        "seconds": wall,
    }


def choice_text(choice: Choice) -> str:
    """Say which calibration was chosen, how far it is, and the next best."""
    name = os.path.basename(choice.source) or "none"
    level = f", level {choice.level}" if choice.level else ""
    misses = f"; next: {'; '.join(choice.misses)}" if choice.misses else ""
    return f"{choice.caltype}: {name} ({choice.why}{level}){misses}"


# Status ----------------------------------------------------------------------------------------


def status_lines(
    campaign: Campaign, states: Mapping[str, State], known: Mapping[str, dict[str, Any]]
) -> Iterator[str]:
    """Say how a campaign stands: jobs by target, filter and night, failures by cause, files."""
    table: dict[tuple[str, str, str, str], Counter[str]] = {}
    for job in campaign.jobs:
        place = (job.target or "calibrations", job.filter, job.night, job.kind)
        table.setdefault(place, Counter())[states[job.id].name] += 1
    rows = [("target", "filter", "night", "job", "state")]
    rows += [
        (
            *place,
            ", ".join(
                f"{STATES[name]}" + (f" x{n}" if n > 1 else "") for name, n in counts.items()
            ),
        )
        for place, counts in sorted(table.items())
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
    yield ""
    counts = Counter(state.name for state in states.values())
    yield "jobs: " + ", ".join(
        f"{counts[name]} {word}" for name, word in STATES.items() if counts[name]
    )
    yield from _failures(campaign, states, known)
    files = Counter(row["state"] for row in campaign.rows)
    text = ", ".join(f"{count} {state}" for state, count in sorted(files.items()))
    yield f"files: {len(campaign.rows)} found: {text}"


def _failures(
    campaign: Campaign, states: Mapping[str, State], known: Mapping[str, dict[str, Any]]
) -> Iterator[str]:
    causes: dict[str, list[str]] = {}
    for job in campaign.jobs:
        state = states[job.id]
        if state.name in ("failed", "blocked"):
            text = state.reasons[0] if state.reasons else known.get(job.id, {}).get("cause", "?")
            causes.setdefault(f"{STATES[state.name]}: {text}", []).append(job.id)
    for cause, jobs in causes.items():
        yield f"{cause}"
        yield f"    {', '.join(jobs)}"


# Why -------------------------------------------------------------------------------------------


def why_lines(
    out: str, name: str, campaign: Campaign, known: Mapping[str, dict[str, Any]]
) -> Iterator[str]:
    """Say what a raw file was used for or why not; of a product, what it was made of."""
    product = product_of(out, name, campaign, known)
    if product:
        yield from _ancestry(product, campaign, known, "")
        return
    pairs = zip(campaign.files, campaign.rows, strict=True)
    rows = [(file, row) for file, row in pairs if is_named(file, name)]
    if not rows:
        names = [file.name for file in campaign.files]
        names += [job.id for job in campaign.jobs]
        raise UsageError(
            f"{name}: neither a raw file nor a product or job of this campaign"
            f"{closest(os.path.basename(name), names)}"
        )
    for file, row in rows:
        yield f"{row['path']}: {row['state']}" + (f": {row['why']}" if row["why"] else "")
        for job in filter(None, row["jobs"].split(",")):
            record = known.get(job, {})
            out_of = [text for text in record.get("left_out", ()) if text.startswith(row["file"])]
            yield f"    {job}: {record.get('status', 'not run yet')}"
            yield from (f"        left out there: {text}" for text in out_of)
            if not out_of:
                ends = ends_of(file, campaign.job(job), campaign, known)
                yield from (f"        {text}" for text in ends)


def product_of(
    out: str, name: str, campaign: Campaign, known: Mapping[str, dict[str, Any]]
) -> Job | None:
    """Give the job of an id, or that made this product."""
    for job in campaign.jobs:
        products = [one["path"] for one in known.get(job.id, {}).get("products", ())]
        names = {os.path.basename(path) for path in products}
        same = any(
            os.path.realpath(name) == os.path.realpath(os.path.join(out, path)) for path in products
        )
        if name == job.id or same or (os.sep not in name and name in names):
            return job
    return None


def _ancestry(
    job: Job, campaign: Campaign, known: Mapping[str, dict[str, Any]], indent: str
) -> Iterator[str]:
    record = known.get(job.id, {})
    yield f"{indent}{job.id}: {record.get('status', 'not run yet')}" + (
        f" by gdask {record['gdask']}" if record.get("gdask") else ""
    )
    inner = indent + "    "
    if record.get("cause"):
        yield f"{inner}because: {record['cause']}"
    if job.inputs:
        nights = Counter(key.partition("@")[2][:10] for key in job.inputs)
        yield f"{inner}{len(job.inputs)} raw frames of {', '.join(sorted(nights))} (UT)"
    yield from (f"{inner}left out: {text}" for text in record.get("left_out", ()))
    yield from (f"{inner}{key} = {value}" for key, value in job.parameters)
    yield from (f"{inner}{note}" for note in job.notes)
    choices = {choice.source: choice for choice in job.calibrations}
    for choice in job.calibrations:
        yield f"{inner}{choice_text(choice)}"
    jobs = {one.id: one for one in campaign.jobs}
    for name in job.needs:
        if name in jobs and (name not in choices or not indent):
            yield from _ancestry(jobs[name], campaign, known, inner)


def between(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Say what differs between two products: what went in, version, level, what was left out."""
    names = first.get("names", {}) | second.get("names", {})
    words = ("is only in the second", "is only in the first")
    found = records.changes(first.get("parts", {}), second.get("parts", {}), names, words)
    for key, word in (("gdask", "gdask"), ("level", "association level"), ("job", "job")):
        if first.get(key) != second.get(key):
            found.append(f"{word} {first.get(key)} -> {second.get(key)}")
    before, after = set(first.get("left_out", ())), set(second.get("left_out", ()))
    found += [f"left out only in the first: {text}" for text in sorted(before - after)]
    found += [f"left out only in the second: {text}" for text in sorted(after - before)]
    return found


def unplanned_lines(out: str | os.PathLike[str], campaign: Campaign) -> Iterator[str]:
    """Say which products there are of jobs that the whole plan does not have; nothing uses them."""
    planned = {job.id for job in campaign.jobs}
    names, count = [], 0
    for record in records.all_records(out):
        there = [path for path in records.products_of(out, record) if os.path.exists(path)]
        if record["job"] not in planned and there:
            names.append(str(record["job"]))
            count += len(there)
    if names:
        yield (
            f"{count} product{'s' * (count != 1)} of jobs that are no longer planned: "
            f"{_some(names)}; nothing uses them: remove them, with NAME.json of each job, when you "
            "do not need them"
        )


def unused_line(campaign: Campaign) -> str:
    """Say how many raw files no job uses, why in a word, and which cannot be read; '' for none."""
    states: dict[str, list[str]] = {}
    for row in campaign.rows:
        states.setdefault(str(row["state"]), []).append(str(row["file"]))
    used = len(states.pop("used", []))
    if not states:
        return ""
    counts = [
        f"{len(names)} {state}"
        + (f" ({_some(names)})" if state in ("unreadable", "missing") else "")
        for state, names in sorted(states.items())
    ]
    count = sum(map(len, states.values()))
    return f"{count} of {used + count} files are not used: {', '.join(counts)}; files.ecsv says why"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def find_campaign(start: str) -> str:
    """Give the folder of results that holds a file or folder; UsageError where none does."""
    path = Path(os.path.abspath(start))
    for folder in (path, *path.parents):
        if (folder / records.HIDDEN).is_dir():
            return str(folder)
    if not path.exists():
        raise UsageError(f"{start}: no such folder")
    raise UsageError(f"{start}: not in the results of a campaign; give -o OUT")
