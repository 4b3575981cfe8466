"""The jobs for groups of files, each with its calibrations."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from gdask.caldb.association import needed_types, rules_for_instrument
from gdask.campaign.calibrations import MADE_BPM_DAYS, Offers, choose, lack
from gdask.campaign.describe import RawFile
from gdask.campaign.groups import Group, safe_name
from gdask.campaign.job import Job, is_named, lacking, row_of
from gdask.campaign.settings import Flag, Settings
from gdask.model import UsageError
from gdask.params import closest
from gdask.reduction.provenance import product_name

#: Short darks within so many days of the flats are all near enough: the shortest ones are taken.
NEAR_DARKS_DAYS = 10
#: Darks that are at most so long (s) can show the bad pixels of a mask.
SHORT_DARK_SECONDS = 10.0


class Planner:
    """What making a plan looks at; in the order of the jobs."""

    def __init__(
        self,
        groups: Sequence[Group],
        files: Sequence[RawFile],
        settings: Settings,
        flags: Sequence[Flag],
        failed: Mapping[str, str],
    ) -> None:
        self.groups, self.settings, self.flags = groups, settings, flags
        self.by_key = {file.key: file for file in files}
        found = [file for file in files if file.kind.startswith("processed")]
        self.offers = Offers({}, found, settings, flags, failed)

    def jobs(self) -> list[Job]:
        """Give all jobs that are needed, each after those that it needs."""
        kinds = {
            kind: [one for one in self.groups if one.kind == kind]
            for kind in ("dark", "flat", "science")
        }
        darks = [one for one in kinds["dark"] if one.instrument == "F2"]
        self._offer("processed_dark", [(self._dark(one), one) for one in darks])
        masks = [(self._mask(one, darks), one) for one in self._flats_for_masks(kinds["flat"])]
        self._offer("processed_bpm", [(job, one) for job, one in masks if job])
        flats = [(self._flat(one, kinds["flat"]), one) for one in kinds["flat"]]
        self._offer("processed_flat", [(job, one) for job, one in flats if job])
        science = [(self._frames(one), one) for one in kinds["science"]]
        frames = [job for job, _ in science]
        calibrations = [job for offers in self.offers.made.values() for job, _ in offers]
        known = {job.id: job for job in calibrations}
        wanted = self._wanted(frames, known) if frames else set(known)
        order = ("dark", "bpm", "flat")
        kept = [
            job for kind in order for job in calibrations if job.kind == kind and job.id in wanted
        ]
        return [self._pinned(job) for job in (*kept, *frames, *self._stacks(science))]

    def _wanted(self, frames: Iterable[Job], known: Mapping[str, Job]) -> set[str]:
        """Give the ids of calibrations that frames need, and those that these need."""
        wanted: set[str] = set()
        waiting = [name for job in frames for name in (*job.needs, *job.replaced)]
        while waiting:
            name = waiting.pop()
            if name not in wanted and name in known:
                wanted.add(name)
                waiting += [*known[name].needs, *known[name].replaced]
        return wanted

    def _offer(self, caltype: str, pairs: Iterable[tuple[Job, Group]]) -> None:
        """Keep what a job would make as a row that the rules can look at."""
        for job, group in pairs:
            row = row_of(group.first) | {"caltype": caltype, "path": job.id, "name": job.id}
            self.offers.made.setdefault(caltype, []).append((job, row | {"md5": None}))

    # Jobs of each kind

    def _job(self, kind: str, group: Group, name: str, **more: Any) -> Job:
        parts = [name, group.extra]
        files = more.pop("files", group.files)
        return Job(
            "-".join(filter(None, (kind, safe_name(group.instrument), *parts))),
            kind,
            group.instrument,
            group.name if group.kind == "science" else "",
            group.filter,
            group.night,
            inputs=tuple(file.key for file in files),
            raw_bytes=sum(file.size for file in files),
            parameters=tuple(sorted((self._parameters(kind, group) | self._arrays(files)).items())),
            **more,
        )

    def _parameters(self, kind: str, group: Group) -> dict[str, str]:
        target = group.name if group.kind == "science" else ""
        given = self.settings.parameters_of(kind, target, group.filter)
        if kind == "frames":
            skies = [
                one
                for one in self.settings.skies.get(group.name, ())
                if any(is_named(file, one) for file in group.files)
            ]
            no_sky = [file.name for file in group.files if self._has_flag(file, "sky")]
            given = {"prepare:bad_wcs": "fix"} | given
            given |= {"separateSky:ref_sky": ",".join(skies)} if skies else {}
            given |= {"associateSky:exclude": ",".join(no_sky)} if no_sky else {}
        return given

    def _arrays(self, files: Iterable[RawFile]) -> dict[str, str]:
        """Give the parameter that says which arrays of which files are not to be used."""
        bad = [
            f"{file.name}:{flag.array}"
            for file in files
            for flag in self.flags
            if flag.array and is_named(file, flag.file)
        ]
        return {"addDQ:bad_arrays": ",".join(dict.fromkeys(bad))} if bad else {}

    def _has_flag(self, file: RawFile, use: str) -> bool:
        return any(
            flag.flag and flag.use == use and is_named(file, flag.file) for flag in self.flags
        )

    def _dark(self, group: Group) -> Job:
        name = f"{group.night}-{group.exposure:g}s"
        return self._job("dark", group, name, folder=f"calibrations/{group.night}")

    def _flats_for_masks(self, flats: Sequence[Group]) -> list[Group]:
        """Give one group of F2 flats for each night: a mask serves all filters.

        Flats of K, which need darks of their own, are taken where the night has no others.
        """
        chosen: dict[str, Group] = {}
        for group in (one for one in flats if one.instrument == "F2"):
            best = chosen.get(group.night)
            if self._with_lamp_off(group)[0] is not None and (
                best is None or _rank_for_mask(group) > _rank_for_mask(best)
            ):
                chosen[group.night] = group
        return list(chosen.values())

    def _mask(self, group: Group, darks: Sequence[Group]) -> Job | None:
        short = [
            one
            for one in darks
            if one.exposure <= SHORT_DARK_SECONDS and one.exposure != group.exposure
        ]
        near, (files, _) = _shortest(short, group), self._with_lamp_off(group)
        if near is None or files is None or _days(near, group) > MADE_BPM_DAYS:
            return None
        own: tuple[RawFile, ...] = ()
        if group.filter.startswith("K"):
            dark = _nearest((one for one in darks if one.exposure == group.exposure), group)
            if dark is None:
                return None
            own = dark.files
        note = f"short darks of {near.night}, {near.exposure:g} s"
        return self._job(
            "bpm",
            group,
            group.night,
            files=(*files, *own, *near.files),
            folder=f"calibrations/{group.night}",
            notes=(note,),
        )

    def _with_lamp_off(self, group: Group) -> tuple[tuple[RawFile, ...] | None, str]:
        """Give the flats with those of the lamp off; where the night has none, the nearest.

        None where this group is none of lamp-on frames, and where nothing fits.
        """
        lamps = {file.lamp for file in group.files}
        if group.filter.startswith("K") and group.instrument == "F2":
            return (group.files, "") if "off" in lamps or "" in lamps else (None, "")
        if "on" not in lamps:
            return (group.files, "") if lamps == {""} else (None, "")
        if "off" in lamps:
            return group.files, ""
        others = [
            one
            for one in self.groups
            if one.kind == "flat"
            and _same_lamp_set_up(one, group)
            and any(file.lamp == "off" for file in one.files)
        ]
        near = _nearest(others, group)
        if near is None:
            return group.files, "no frame with the lamp off"
        off = tuple(file for file in near.files if file.lamp == "off")
        return (*group.files, *off), f"frames with the lamp off of {near.night}"

    def _flat(self, group: Group, flats: Sequence[Group]) -> Job | None:
        files, note = self._with_lamp_off(group)
        if files is None:
            return None
        choices = [choose(self.offers, "processed_bpm", group, required=False)]
        if group.instrument == "F2" and group.filter.startswith("K"):
            choices.append(choose(self.offers, "processed_dark", group))
        return self._job(
            "flat",
            group,
            f"{group.night}-{safe_name(group.filter)}",
            files=files,
            folder=f"calibrations/{group.night}",
            calibrations=tuple(choices),
            notes=tuple(filter(None, [note])),
            blocked=lack(choices),
        )

    def _frames(self, group: Group) -> Job:
        rules = rules_for_instrument(group.instrument)
        types = needed_types(group.first.tags, rules)
        choices = tuple(
            choose(self.offers, caltype, group, required=caltype != "processed_bpm")
            for caltype in types
            if caltype != "processed_standard"
        )
        folder = "/".join((group.name, safe_name(group.filter), _folder_night(group)))
        return self._job(
            "frames",
            group,
            f"{group.name}-{safe_name(group.filter)}-{group.night}",
            folder=f"{folder}/frames",
            calibrations=choices,
            blocked="; ".join(filter(None, [lack(choices), one_name(group.files)])),
        )

    def _stacks(self, frames: Sequence[tuple[Job, Group]]) -> list[Job]:
        """Give one stack for each night, and one of all nights of a target and filter."""
        stacks = [
            self._stack([job], job.id.replace("frames-", "stack-", 1), os.path.dirname(job.folder))
            for job, _ in frames
        ]
        if self.settings.nights == "apart":
            return stacks
        series: dict[Any, list[tuple[Job, Group]]] = {}
        for job, group in frames:
            set_up = (group.exposure, group.coadds, group.read_mode, group.size)
            series.setdefault((job.instrument, job.target, job.filter, set_up), []).append(
                (job, group)
            )
        for pairs in series.values():
            jobs = [job for job, _ in pairs]
            if len({job.night for job in jobs}) > 1:
                target, filter_name = jobs[0].target, safe_name(jobs[0].filter)
                nights = "-".join(filter(None, ("all", pairs[0][1].extra)))
                name = f"stack-{safe_name(jobs[0].instrument)}-{target}-{filter_name}-{nights}"
                stacks.append(self._stack(jobs, name, f"{target}/{filter_name}/{nights}"))
        return stacks

    def _stack(self, jobs: Sequence[Job], name: str, folder: str) -> Job:
        first = jobs[0]
        given = self.settings.parameters_of("stack", first.target, first.filter)
        if catalog := self.settings.catalogs.get(first.target):
            given |= {"addReferenceCatalog:source": catalog}
        names = [flag.file for flag in self.flags if flag.flag and flag.use == "stack"]
        keys = [key for job in jobs for key in job.inputs] if names else []
        files = [self.by_key[key] for key in keys]
        out = tuple(
            sorted(file.name for file in files if any(is_named(file, name) for name in names))
        )
        same = one_name([self.by_key[key] for job in jobs for key in job.inputs])
        stack = Job(
            name,
            "stack",
            first.instrument,
            first.target,
            first.filter,
            first.night if len({job.night for job in jobs}) == 1 else "all",
            folder,
            takes=tuple(job.id for job in jobs),
            parameters=tuple(sorted(given.items())),
            not_stacked=out,
            raw_bytes=sum(job.raw_bytes for job in jobs),
        )
        lost = lacking(stack, {job.id: "is blocked" for job in jobs if job.blocked})
        return stack._replace(blocked="; ".join(lost) or same)

    def _pinned(self, job: Job) -> Job:
        """Give a job with what campaign.toml says of it."""
        table = self.settings.jobs.get(job.id)
        if not table:
            return job
        inputs = tuple(table.get("inputs", job.inputs))
        for name in inputs:
            if name not in self.by_key:
                raise UsageError(
                    f"campaign.toml, [jobs.{job.id}]: {name}: no such exposure among the files"
                    f"{closest(name, self.by_key)}"
                )
        takes = tuple(table.get("takes", job.takes))
        if other := [name for name in takes if name not in job.takes]:
            raise UsageError(
                f"campaign.toml, [jobs.{job.id}]: takes: {other[0]}: no job whose frames it can "
                f"stack{closest(other[0], job.takes)}"
            )
        given = dict(job.parameters) | {k: str(v) for k, v in table.get("parameters", {}).items()}
        pinned = table.get("calibrations", {})
        choices = tuple(
            one._replace(source=pinned[one.caltype], level=0, why="pinned in campaign.toml")
            if one.caltype in pinned
            else one
            for one in job.calibrations
        )
        return job._replace(
            inputs=inputs,
            takes=takes,
            parameters=tuple(sorted(given.items())),
            calibrations=choices,
            blocked=lack(choices) if choices else job.blocked,
            notes=(*job.notes, "pinned in campaign.toml"),
        )


def one_name(files: Iterable[RawFile]) -> str:
    """Say which files would give products of one name, that up to the first _; '' where none."""
    seen: dict[str, RawFile] = {}
    for file in files:
        stem = product_name(file.name, "")
        if stem in seen:
            return (
                f"{seen[stem].path} and {file.path}: their products would have one name, "
                f"{stem}; rename one of them"
            )
        seen[stem] = file
    return ""


def _shortest(groups: Iterable[Group], to: Group) -> Group | None:
    """Give the darks of the shortest exposure, the nearest of these; near ones before others."""
    return min(
        groups,
        key=lambda one: (_days(one, to) > NEAR_DARKS_DAYS, one.exposure, _days(one, to)),
        default=None,
    )


def _rank_for_mask(group: Group) -> tuple[bool, int]:
    return not group.filter.startswith("K"), len(group.files)


def _nearest(groups: Iterable[Group], to: Group) -> Group | None:
    return min(groups, key=lambda one: (_days(one, to), one.night, one.exposure), default=None)


def _days(first: Group, second: Group) -> float:
    apart: timedelta = datetime.fromisoformat(first.first.time) - datetime.fromisoformat(
        second.first.time
    )
    return abs(apart / timedelta(days=1))


def _same_lamp_set_up(first: Group, second: Group) -> bool:
    return all(
        getattr(first, name) == getattr(second, name)
        for name in ("instrument", "filter", "exposure", "coadds", "read_mode", "size")
    )


def _folder_night(group: Group) -> str:
    return "-".join(filter(None, (group.night, group.extra)))
