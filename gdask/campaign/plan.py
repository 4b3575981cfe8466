"""The plan of a campaign: jobs, what each takes, and why.

It is made anew each time from the raw files, campaign.toml and the flags, and is the same for the
same exposures, whatever their files are called and wherever they are.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from gdask.campaign.describe import USED_KINDS, RawFile
from gdask.campaign.groups import Group, make_groups
from gdask.campaign.job import RECIPES, Basis, Campaign, Job, is_named, named
from gdask.campaign.planner import Planner
from gdask.campaign.settings import Flag, Settings
from gdask.model import UsageError
from gdask.params import closest


def make_plan(
    files: Sequence[RawFile],
    settings: Settings | None = None,
    flags: Sequence[Flag] = (),
    failed: Mapping[str, str] | None = None,
) -> Campaign:
    """Plan the jobs for these files.

    failed: of jobs that have failed or made what is not fit for use, why: what needs them takes the
    next best.
    """
    settings, flags = settings or Settings(), tuple(flags)
    states = _left_out_by_people(files, settings, flags)
    files = _with_other_copies(files, states)
    used = [one for one in files if one.kind in USED_KINDS and one.path not in states]
    sorts = ("dark", "flat", "science")
    grouped = make_groups([one for one in files if one.kind in sorts], states)
    states |= {file.path: ("set aside", why) for file, why in grouped.left_out}
    _check_scopes(grouped.groups, settings)
    planner = Planner(grouped.groups, used, settings, flags, failed or {})
    jobs = planner.jobs()
    _check_pinned(jobs, settings)
    using: dict[str, list[str]] = {}
    for job in jobs:
        for source in (*job.inputs, *(one.source for one in job.calibrations)):
            using.setdefault(source, []).append(job.id)
    some = [one for one in flags if one.header or one.array or (one.flag and one.use != "all")]
    rows = Rows(files, [_use(file, states, using, _said(file, some)) for file in files])
    basis = Basis(settings, flags, dict(failed or {}), tuple(jobs))
    return Campaign(tuple(jobs), tuple(files), rows, basis)


def plan_again(
    campaign: Campaign, settings: Settings, flags: Sequence[Flag], failed: Mapping[str, str]
) -> Campaign:
    """Give the whole plan of the same files; it is made only if what it depends on has changed."""
    basis = campaign.basis
    if basis and (basis.settings, basis.flags, basis.failed) == (settings, tuple(flags), failed):
        return campaign._replace(jobs=basis.jobs)
    return make_plan(campaign.files, settings, flags, failed)


def _left_out_by_people(
    files: Sequence[RawFile], settings: Settings, flags: Sequence[Flag]
) -> dict[str, tuple[str, str]]:
    """Give (state, why) by path of files that campaign.toml or a flag takes out of every use."""
    states: dict[str, tuple[str, str]] = {}
    for name, reason in settings.exclude.items():
        found = named(files, name)
        if not found:
            known = [file.name for file in files]
            raise UsageError(
                f"campaign.toml, [exclude]: {name}: no such file{closest(name, known)}"
            )
        states |= {file.path: ("excluded", f"campaign.toml: {reason}") for file in found}
    for flag in flags:
        if flag.flag and flag.use == "all" and not flag.array:
            why = f"flagged {flag.flag} ({flag.because})"
            states |= {one.path: ("excluded", why) for one in named(files, flag.file)}
    return states


def _with_other_copies(
    files: Sequence[RawFile], states: Mapping[str, tuple[str, str]]
) -> list[RawFile]:
    """Give the files with the next copy in use of an exposure whose first one is taken out.

    states: those that are taken out, by path.
    """
    out = {one.key: one for one in files if one.path in states and one.kind in USED_KINDS}
    changed: dict[str, RawFile] = {}
    for file in files:
        if file.kind == "duplicate" and file.path not in states and file.key in out:
            first = out.pop(file.key)
            changed[first.path] = first._replace(kind="duplicate")
            changed[file.path] = file._replace(kind=first.kind, why="")
    return [changed.get(file.path, file) for file in files]


def _check_scopes(groups: Sequence[Group], settings: Settings) -> None:
    """Raise UsageError where a table of campaign.toml is for a target or filter that is not there.

    Its words would otherwise be left without effect, and nobody would know.
    """
    science = [group for group in groups if group.kind == "science"]
    targets = {group.name for group in science}
    scopes = {*RECIPES, *targets, *(group.filter for group in groups)}
    scopes |= {f"{group.name}/{group.filter}" for group in science}
    tables = {name for name, table in settings.parameters.items() if isinstance(table, Mapping)}
    for title, names, known, what in (
        ("parameters", tables, scopes, "target, filter, TARGET/FILTER or kind of job"),
        ("catalogs", settings.catalogs, targets, "target"),
        ("skies", settings.skies, targets, "target"),
    ):
        for name in sorted(names):
            if name not in known:
                raise UsageError(
                    f"campaign.toml, [{title}]: {name}: no such {what} among the files; there are "
                    f"{', '.join(sorted(filter(None, known)))}{closest(name, known)}"
                )
    for target, listed in settings.skies.items():
        files = [file for group in science if group.name == target for file in group.files]
        for name in listed:
            if not any(is_named(file, name) for file in files):
                near = closest(name, [file.name for file in files])
                raise UsageError(
                    f"campaign.toml, [skies]: {name}: no frame of {target} that is used{near}"
                )


def _check_pinned(jobs: Sequence[Job], settings: Settings) -> None:
    known = [job.id for job in jobs]
    for name in settings.jobs:
        if name not in known:
            nearest = f"{closest(name, known)} (gdask plan OUT lists them)"
            raise UsageError(f"campaign.toml, [jobs.{name}]: no such job{nearest}")
        (job,) = (job for job in jobs if job.id == name)
        types = [one.caltype for one in job.calibrations]
        for caltype, source in settings.jobs[name].get("calibrations", {}).items():
            where = f"campaign.toml, [jobs.{name}.calibrations]: {caltype}"
            if caltype not in types:
                raise UsageError(f"{where}: the job takes {', '.join(types) or 'none'}")
            if source not in known and not os.path.isfile(str(source)):
                raise UsageError(f"{where}: {source}: neither a job of the plan nor a file")


class Rows(Sequence[dict[str, Any]]):
    """One row for each file, made when it is looked at: 10^5 of them would take 50 MB.

    uses: state, jobs and why of each file.
    """

    def __init__(self, files: Sequence[RawFile], uses: Sequence[tuple[str, str, str]]) -> None:
        self._files, self._uses = files, uses

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        file, (state, jobs, why) = self._files[number], self._uses[number]
        return {
            "file": file.name,
            "state": state,
            "kind": file.kind,
            "jobs": jobs,
            "why": why,
            "label": file.label,
            "night": file.night,
            "object": file.object,
            "filter": str(file.row.get("filter_name") or ""),
            "exposure": file.row.get("exposure_time"),
            "path": file.path,
        }


def _use(
    file: RawFile,
    states: Mapping[str, tuple[str, str]],
    using: Mapping[str, list[str]],
    said: str,
) -> tuple[str, str, str]:
    """Give state, jobs and why of a file. said: by flags, of a used file."""
    jobs = [*using.get(file.key, ()), *using.get(file.path, ())]
    if file.path in states:
        (state, why), jobs = states[file.path], []
    elif file.kind in USED_KINDS and jobs:
        state, why = "used", said
    elif file.kind in USED_KINDS:
        state, why = "set aside", _why_unused(file)
    else:
        state = {"other": "set aside"}.get(file.kind, file.kind)
        why = file.why
    return state, sys.intern(",".join(dict.fromkeys(jobs))), why


def _said(file: RawFile, flags: Sequence[Flag]) -> str:
    """Say what flags change of a file that is used: a header, or for what it is not used."""
    return "; ".join(
        f"with {flag.header}"
        if flag.header
        else f"not array {flag.array}: {flag.flag} ({flag.because})"
        if flag.array
        else f"not for {flag.use}: {flag.flag} ({flag.because})"
        for flag in flags
        if is_named(file, flag.file)
    )


def _why_unused(file: RawFile) -> str:
    if file.kind == "dark" and file.instrument == "GSAOI":
        return "GSAOI's dark current is so low that no recipe needs darks"
    what = file.kind.removeprefix("processed_")
    return f"no frame needs this {what}: another fits better, or none has its set-up"
