"""What a campaign is made of: raw files found, and the plan of all jobs. Nothing is run here."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from gdask.campaign import records
from gdask.campaign.job import STAGES, Campaign, Job, corrected_cards
from gdask.campaign.jobs import Place
from gdask.campaign.plan import make_plan, plan_again
from gdask.campaign.scan import Memory, check_apart, scan, unseen_line
from gdask.campaign.settings import Settings, read_flags, read_settings
from gdask.campaign.state import states_of
from gdask.campaign.sums import take_over
from gdask.io.whole import write_whole
from gdask.model import UsageError


class Options(NamedTuple):
    """How to run. places: of raw files; empty: those of the last time. at_a_time: jobs, or those
    of each worker of a cluster. tonight: the night whose files still arrive (--watch)."""

    places: tuple[str, ...]
    out: str
    at_a_time: int = 1
    threads: int | None = None
    memory: str | None = None
    only: Callable[[Job], bool] | None = None
    until: str = "stacks"
    forget_missing: bool = False
    retry: bool = False
    cluster: str = ""
    tonight: str = ""


def survey(
    options: Options, say: Callable[[str], None] = print, learns: bool = False
) -> tuple[Campaign, Place]:
    """Scan the raw files and plan; nothing is run.

    learns: for what runs jobs. Places and files are remembered for the next time. What only looks
    remembers headers alone, and where a first look was taken, for others that only look.
    """
    out = os.path.abspath(options.out)
    check_apart(options.places, out)
    hidden = Path(out) / records.HIDDEN
    hidden.mkdir(parents=True, exist_ok=True)
    places = _places(options, hidden, learns)
    place = Place(
        out,
        options.threads or max(1, _cores() // options.at_a_time),
        options.memory,
        tuple(read_flags(out)),
        options.retry,
        since=time.time(),
        tonight=options.tonight,
    )
    take_over(out, place.cache)
    files = scan(
        places,
        place.cache,
        out,
        lambda done, total: say(f"read {done} of {total} headers"),
        lambda file: corrected_cards(file, place.flags),
        Memory(options.forget_missing, learns),
    )
    if options.places:  # what cannot be scanned is not remembered
        write_whole(hidden / (records.PLACES if learns else records.LOOKED_AT), json.dumps(places))
    if unseen := unseen_line(places, out):
        say(unseen)
    settings = read_settings(out)
    check_parameters(settings)
    campaign = with_next_best(make_plan(files, settings, place.flags), place)
    return chosen(campaign, options), place


def check_parameters(settings: Settings) -> None:
    """Raise UsageError, with the nearest, for a parameter of campaign.toml that no step has."""
    from gdask import params
    from gdask.reduction.recipe_library import known_steps

    tables = [settings.parameters, *settings.parameters.values()]
    tables += [job.get("parameters", {}) for job in settings.jobs.values()]
    for table in tables:
        if isinstance(table, Mapping):
            plain = {k: v for k, v in table.items() if not isinstance(v, Mapping)}
            given = params.normalise({key: str(value) for key, value in plain.items()})
            params.check_user(given, known_steps(), "campaign.toml:")


#: Why a calibration is not taken whose job failed.
FAILED = "its job failed"


def with_next_best(campaign: Campaign, place: Place) -> Campaign:
    """Give the whole plan in which nothing needs jobs that give nothing: the next best is taken.

    They are those that failed the last time and of which nothing has changed since, and those that
    have made what a gate lets nobody use. When something changes, or with `retry`, those that
    failed are tried.
    """
    settings = read_settings(place.out)
    failed: dict[str, str] = {}
    while True:
        campaign = plan_again(campaign, settings, place.flags, failed)
        states = states_of(campaign, records.read_records(place.out, campaign), place)
        new = {name: one.unfit for name, one in states.items() if one.unfit}
        if not place.retry:
            new |= {name: FAILED for name, one in states.items() if one.name == "failed"}
        if new.keys() <= failed.keys():
            return campaign
        failed = new | failed


def _places(options: Options, hidden: Path, learns: bool) -> list[str]:
    """Give the places of raw files: those named, else those of the last time.

    A run goes by what a run was given: a folder that was only looked at may have been a wrong one.
    """
    if options.places:
        return [os.path.abspath(place) for place in options.places]
    for name in (records.PLACES,) if learns else (records.PLACES, records.LOOKED_AT):
        if found := records.known_places(hidden.parent, name):
            return found
    raise UsageError(
        f"{options.out}: no campaign there yet; name folders of raw files: gdask run RAW... -o OUT"
    )


def _cores() -> int:
    from gdask.cluster import available_cores

    return available_cores()


def chosen(campaign: Campaign, options: Options) -> Campaign:
    """Give the plan with the jobs that were asked for, and those that they need."""
    stages = list(STAGES)
    kinds = {kind for stage in stages[: stages.index(options.until) + 1] for kind in STAGES[stage]}
    jobs = [job for job in campaign.jobs if job.kind in kinds]
    if options.until == "nights":
        jobs = [job for job in jobs if job.kind != "stack" or len(job.takes) == 1]
    if options.only:
        wanted = {job.id for job in jobs if options.only(job)}
        if not wanted:
            raise UsageError("--only: no job of the plan fits; gdask plan OUT lists them")
        for job in reversed(jobs):
            if job.id in wanted:
                wanted |= {*job.needs, *job.replaced}
        jobs = [job for job in jobs if job.id in wanted]
    return campaign._replace(jobs=tuple(jobs))


def whole_plan(campaign: Campaign, place: Place) -> Campaign:
    """Give the plan of the same files with all jobs, also those that were not asked for."""
    return with_next_best(campaign, place._replace(retry=False))
