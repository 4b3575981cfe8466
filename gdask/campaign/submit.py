"""A campaign as jobs of a batch system: one element of an array for each job that would run.

Dependencies of the batch system save waiting, and nothing is trusted to them: an element looks at
what it needs itself (`gdask.campaign.elsewhere`).
"""

from __future__ import annotations

import math
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gdask.campaign import cost, elsewhere, records
from gdask.campaign.batch import Patience, Pbs, Refused, Request, Slurm, check_installed, user_name
from gdask.campaign.job import Campaign, Job
from gdask.campaign.jobs import Place, run_job
from gdask.campaign.run import owned, write_all_tables
from gdask.campaign.state import State, states_of
from gdask.campaign.submissions import (
    LAST,
    Array,
    Live,
    last_ends,
    live_elements,
    system_of,
    write_array,
)
from gdask.campaign.survey import Options, survey, whole_plan
from gdask.io.whole import write_whole
from gdask.model import GdaskError, UsageError

#: Threads of a job where none are given.
THREADS = 4
#: What is asked for is what like jobs took, times this: memory, time; and so much more (MiB,
#: minutes). A job that is killed for want of either costs more than what is asked for too much.
MEMORY_FACTOR, MEMORY_MORE = 1.5, 512
TIME_FACTOR, TIME_MORE = 3.0, 5

#: In place of the record of a job that has none.
NOT_RUN = {"status": "not run", "cause": "", "products": []}


class Wish(NamedTuple):
    """What the user asks of the batch system. memory: MiB; minutes: of wall time.

    at_a_time: elements of an array, 0 for no limit.
    """

    system: str
    partition: str = ""
    account: str = ""
    minutes: int | None = None
    memory: int | None = None
    options: tuple[str, ...] = ()
    at_a_time: int = 0


class Submitted(NamedTuple):
    """What a submission has come to: jobs in the queue anew and before, cancelled, blocked."""

    new: tuple[str, ...]
    before: tuple[str, ...]
    cancelled: tuple[str, ...]
    blocked: tuple[str, ...]
    folder: str


def submit_campaign(
    options: Options,
    wish: Wish,
    say: Callable[[str], None] = print,
    system: Slurm | Pbs | None = None,
) -> Submitted:
    """Submit all jobs that would run and are not in the queue; cancel what can never start.

    Raises UsageError and GdaskError; what was submitted until then is known to the next call.
    """
    system = system or system_of(wish.system, Patience(say=say))
    check_installed(system)
    _check_words(options, wish)
    campaign, place = survey(options, say, learns=True)
    place = place._replace(threads=options.threads or THREADS)
    with owned(place.out):
        states = states_of(campaign, records.read_records(place.out, campaign), place)
        blocked = _write_blocked(campaign, states, place)
        wanted = [job.id for job in campaign.jobs if states[job.id].runs]
        kept, planned, cancelled = _looked_through(campaign, place, wanted, system, say)
        have = {_name(one) for one in kept if one in planned}
        new = [name for name in wanted if name not in have]
        folder = ""
        if new or _lack_tables(kept):
            folder = str(_submit(campaign, place, new, kept, wish, system, say))
        write_all_tables(campaign, place)
    before = tuple(name for name in wanted if name in have)
    return Submitted(tuple(new), before, tuple(cancelled), tuple(blocked), folder)


def _check_words(options: Options, wish: Wish) -> None:
    """Raise UsageError for what cannot stand in a script of a batch system."""
    for name in ("partition", "account"):
        value = getattr(wish, name)
        if any(not c.isprintable() or c.isspace() for c in value):
            raise UsageError(f"--{name} {value!r}: expected one word")
    out = os.path.abspath(options.out)
    for name, value in (("--out", out), *(("--batch-option", one) for one in wish.options)):
        if not value.isprintable() or (name == "--out" and set(value) & set('"\\')):
            raise UsageError(f"{name} {value!r}: batch systems cannot be given such a name or line")


def _write_blocked(campaign: Campaign, states: Mapping[str, State], place: Place) -> list[str]:
    """Write the records of jobs that are blocked; nothing of them is submitted."""
    known, new = records.read_records(place.out, campaign), dict[str, dict[str, Any]]()
    found = [job for job in campaign.jobs if states[job.id].name == "blocked"]
    for job in found:
        needed = {name: new.get(name) or known.get(name) for name in job.needs}
        before = {name: one or dict(NOT_RUN) for name, one in needed.items()}
        new[job.id] = run_job(job, {}, before, place)
    return [job.id for job in found]


# What is in the queue --------------------------------------------------------------------------


def _looked_through(
    campaign: Campaign,
    place: Place,
    wanted: Sequence[str],
    system: Slurm | Pbs,
    say: Callable[[str], None],
) -> tuple[list[Live], set[Live], list[str]]:
    """Give what stays in the queue, what is there as planned, and jobs that were cancelled.

    What waits is cancelled if it can never start, its job need not or cannot be run any more, or
    would be run by a plan that no longer holds. What runs is left alone.
    """
    kept: list[Live] = []
    cancelled: list[Live] = []
    live = live_elements(place.out, system.patience)
    planned = _as_planned(live, campaign, place, wanted)
    for one in live:
        waits = one.element.state != "running"
        if one.array.system != system.name:
            raise GdaskError(
                f"{_name(one)} is in the queue of {one.array.system} ({one.element.id}); wait for "
                f"it or cancel it there before anything is submitted to {system.name}"
            )
        is_useful = _name(one) == LAST or one in planned
        if waits and (one.element.state == "never" or not is_useful):
            cancelled.append(one)
        else:
            kept.append(one)
    if cancelled:
        system.cancel([one.element for one in cancelled])
        for one in cancelled:
            why = one.element.reason if one.element.state == "never" else "the plan has changed"
            say(f"cancelled {one.element.id}_{one.element.number}, {_name(one)}: {why}")
    return kept, planned, [_name(one) for one in cancelled]


def _lack_tables(kept: Sequence[Live]) -> bool:
    """Tell whether nothing in the queue writes the tables after all that is there.

    A command that was killed has perhaps submitted all jobs but that one.
    """
    folders = {one.array.folder for one in kept if _name(one) != LAST}
    with_tables = {one.array.folder for one in kept if _name(one) == LAST}
    return bool(folders) and max(folders) > max(with_tables, default=Path())


def _name(one: Live) -> str:
    return one.array.jobs[one.element.number]


def _as_planned(
    live: Sequence[Live], campaign: Campaign, place: Place, wanted: Sequence[str]
) -> set[Live]:
    """Give the elements that will do what the plan of now wants of their jobs."""
    names = {_name(one) for one in live} & set(wanted)
    now = elsewhere.handed_tables(campaign, names)
    corrected = [flag for flag in place.flags if flag.header]
    folders: dict[Path, bool] = {}
    for one in live:
        folder = one.array.folder
        if folder not in folders:
            try:
                flags = elsewhere.read_place(folder).flags
            except (OSError, ValueError, KeyError, TypeError):
                flags = ()
            folders[folder] = corrected == [flag for flag in flags if flag.header]
    return {
        one
        for one in live
        if _name(one) in now
        and folders[one.array.folder]
        and elsewhere.read_table(one.array.folder, _name(one)) == now[_name(one)]
    }


# Submitting ------------------------------------------------------------------------------------


def _submit(
    campaign: Campaign,
    place: Place,
    names: Sequence[str],
    kept: Sequence[Live],
    wish: Wish,
    system: Slurm | Pbs,
    say: Callable[[str], None],
) -> Path:
    """Hand out these jobs and submit them, array by array, then the last job."""
    folder = elsewhere.new_folder(place.out)
    elsewhere.hand_out(folder, campaign, names, place, whole_plan(campaign, place))
    for name in ("arrays", "logs"):
        (folder / name).mkdir()
    jobs = {job.id: job for job in campaign.jobs}
    costs, ends = _costs(campaign, names, place), last_ends(place.out, names, system)
    most, token = system.max_array(), secrets.token_hex(3)
    ids: dict[str, list[str]] = {}
    for one in kept:
        ids.setdefault(_name(one), []).append(one.element.id)
    for number, group in enumerate(_arrays([jobs[name] for name in names], most)):
        needs = [need for job in group for need in (*job.needs, job.id)]
        after = dict.fromkeys(id_ for need in needs for id_ in ids.get(need, ()))
        request = Request(
            f"gdask-{token}-{number}-{group[0].kind}",
            len(group),
            str(folder),
            _command(folder, "job", f"{number}.list"),
            place.threads,
            *_asked(group, costs, ends, wish),
            wish.partition,
            wish.account,
            wish.options,
            tuple(after),
            wish.at_a_time,
        )
        write_whole(folder / f"{number}.list", "".join(f"{job.id}\n" for job in group))
        id_ = _submit_one(folder, request, [job.id for job in group], system)
        for job in group:
            ids.setdefault(job.id, []).append(id_)
        say(f"submitted {id_}: {_words(group)}")
    after = dict.fromkeys(id_ for found in ids.values() for id_ in found)
    last = Request(
        f"gdask-{token}-last", 1, str(folder), _command(folder, "last"), 1,
        wish.memory, wish.minutes, wish.partition, wish.account, wish.options, tuple(after),
    )  # fmt: skip
    id_ = _submit_one(folder, last, [LAST], system)
    say(f"submitted {id_}: the tables, after all jobs")
    return folder


def _command(folder: Path, *words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "gdask.campaign.submitted", str(folder), *words)


def _submit_one(folder: Path, request: Request, jobs: Sequence[str], system: Slurm | Pbs) -> str:
    """Submit one array. What is to be submitted is written before, its id after."""
    file = folder / "arrays" / f"{request.name}.json"
    names = tuple(jobs)
    array = Array(file, system.name, request.name, names, user_name(), system.where())
    script = folder / f"{request.name}.sh"
    write_whole(script, system.script(request))
    write_array(array)
    try:
        id_ = system.submit(script, request)
    except Refused:
        array.file.unlink()  # nothing was submitted
        raise
    write_array(array._replace(id=id_))
    return id_


def _arrays(jobs: Sequence[Job], most: int) -> Iterator[list[Job]]:
    """Give jobs in groups of one level of dependency, kind and instrument, of at most so many."""
    levels: dict[str, int] = {}
    groups: dict[tuple[int, str, str], list[Job]] = {}
    for job in jobs:
        levels[job.id] = 1 + max((levels[need] for need in job.needs if need in levels), default=-1)
        groups.setdefault((levels[job.id], job.kind, job.instrument), []).append(job)
    for key in sorted(groups):
        for begin in range(0, len(groups[key]), most):
            yield groups[key][begin : begin + most]


def _costs(campaign: Campaign, names: Sequence[str], place: Place) -> dict[str, cost.Cost]:
    """Predict what jobs take, from earlier campaigns and from what this one has done."""
    known = records.read_records(place.out, campaign)
    own = [cost.measured(job, known[job.id]) for job in campaign.jobs if job.id in known]
    rates = [*cost.read_rates(), *(one for one in own if one)]
    jobs = {job.id: job for job in campaign.jobs}
    return {name: cost.predict(jobs[name], rates, place.threads) for name in names}


def _asked(
    group: Sequence[Job], costs: Mapping[str, cost.Cost], ends: Mapping[str, str], wish: Wish
) -> tuple[int | None, int | None]:
    """Give memory (MiB) and minutes to ask for: what the user says, else what is predicted.

    Twice as much of what one of them wanted the last time. ends: how the last element of a job has
    ended.
    """
    memory, minutes = wish.memory, wish.minutes
    found = [costs[job.id] for job in group]
    sizes = [one.memory for one in found if one.memory is not None]
    times = [one.seconds for one in found if one.seconds is not None]
    if memory is None and len(sizes) == len(found):
        memory = math.ceil(MEMORY_FACTOR * max(sizes) / 2**20) + MEMORY_MORE
    if minutes is None and len(times) == len(found):
        minutes = math.ceil(TIME_FACTOR * max(times) / 60) + TIME_MORE
    last = {ends.get(job.id) for job in group}
    memory = 2 * memory if memory and "OUT_OF_MEMORY" in last else memory
    minutes = 2 * minutes if minutes and "TIMEOUT" in last else minutes
    return memory, minutes


def _words(group: Sequence[Job]) -> str:
    first = group[0]
    return f"{len(group)} x {first.kind} of {first.instrument}" if len(group) > 1 else first.id


def result_line(done: Submitted) -> str:
    """Say in a line what a submission has come to."""
    parts = [f"{len(done.new)} jobs submitted"]
    parts += [f"{len(done.before)} are in the queue already"] if done.before else []
    parts += [f"{len(done.cancelled)} cancelled"] if done.cancelled else []
    parts += [f"{len(done.blocked)} blocked"] if done.blocked else []
    where = f"; scripts and logs: {os.path.relpath(done.folder)}" if done.folder else ""
    return ", ".join(parts) + where
