"""What a plan is made of: jobs, the calibrations chosen for them, and the files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from gdask.campaign.describe import RawFile
from gdask.campaign.settings import Flag, Settings
from gdask.model import UsageError
from gdask.params import closest

#: The recipe of each kind of job, and its bits number. The number is raised when the bytes of its
#: products change; a test with stored checksums fails when they change and the number does not.
RECIPES = {
    "dark": "makeProcessedDark",
    "bpm": "makeProcessedBPM",
    "flat": "makeProcessedFlat",
    "frames": "reduce_nostack",
    "stack": "alignAndStack",
}
BITS = {"dark": 1, "bpm": 1, "flat": 2, "frames": 1, "stack": 5}
#: Kinds of jobs in the order in which they are listed and run; what `--until` names.
STAGES = {
    "calibrations": ("dark", "bpm", "flat"),
    "frames": ("frames",),
    "nights": ("stack",),
    "stacks": ("stack",),
}


class Choice(NamedTuple):
    """The calibration of one type for a job.

    source: id of the job that makes it, or a path; '' if there is none. level: 0 within the
    preferred time, 1 within the longest, 2 beyond it. misses: the next best, each with the reason.
    instead_of: jobs that would have made better ones and failed.
    """

    caltype: str
    source: str
    level: int
    why: str
    misses: tuple[str, ...] = ()
    required: bool = True
    instead_of: tuple[str, ...] = ()


class Job(NamedTuple):
    """One reduction. takes: jobs whose frames it stacks. blocked: why it cannot run, or ''."""

    id: str
    kind: str
    instrument: str
    target: str
    filter: str
    night: str
    folder: str
    inputs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    calibrations: tuple[Choice, ...] = ()
    parameters: tuple[tuple[str, str], ...] = ()
    not_stacked: tuple[str, ...] = ()
    raw_bytes: int = 0
    notes: tuple[str, ...] = ()
    blocked: str = ""

    @property
    def recipe(self) -> str:
        """The recipe's name."""
        return RECIPES[self.kind]

    @property
    def level(self) -> int:
        """The worst level of its own calibrations."""
        return max((one.level for one in self.calibrations), default=0)

    @property
    def needs(self) -> tuple[str, ...]:
        """Ids of the jobs that have to be done before."""
        made = [one.source for one in self.calibrations if one.source and "/" not in one.source]
        return tuple(dict.fromkeys([*made, *self.takes]))

    @property
    def replaced(self) -> tuple[str, ...]:
        """Ids of the jobs that failed and in whose place it takes the next best."""
        return tuple(name for one in self.calibrations for name in one.instead_of)


class Basis(NamedTuple):
    """What a plan was made of, beside its files, and all its jobs. failed: see `make_plan`."""

    settings: Settings
    flags: tuple[Flag, ...]
    failed: Mapping[str, str]
    jobs: tuple[Job, ...]


class Campaign(NamedTuple):
    """Jobs, each after those that it needs, and one row for each file found.

    basis: None where the plan was read again, in part.
    """

    jobs: tuple[Job, ...]
    files: tuple[RawFile, ...]
    rows: Sequence[dict[str, Any]]
    basis: Basis | None = None

    def job(self, name: str) -> Job:
        """The job of an id; UsageError, with the nearest, where there is none."""
        found = next((job for job in self.jobs if job.id == name), None)
        if found is None:
            known = [job.id for job in self.jobs]
            raise UsageError(
                f"{name}: no such job in the plan{closest(name, known)} (gdask plan OUT lists them)"
            )
        return found


def lacking(job: Job, gone: Mapping[str, str]) -> list[str]:
    """Say what a job lacks to be run; nothing where it can do without.

    gone: of jobs that give nothing, why. A stack is made of the nights that there are.
    """
    optional = {one.source for one in job.calibrations if not one.required}
    found = [f"{name} {gone[name]}" for name in job.needs if name in gone and name not in optional]
    return [] if job.kind == "stack" and len(found) < len(job.takes) else found


def is_named(file: RawFile, name: str) -> bool:
    """Tell whether a name, path, label or key means this file."""
    base = os.path.basename(name)
    own = {file.path, file.name, stem_of(file.name), file.label, file.key}
    return bool(name) and (name in own or base in own or stem_of(base) in own)


def named(files: Iterable[RawFile], name: str) -> list[RawFile]:
    """Give the files that a name means: of copies of one name, those below its folder."""
    found = [file for file in files if is_named(file, name)]
    if os.sep not in name:
        return found
    return [one for one in found if f"/{one.path}".endswith(f"/{name.lstrip('/')}")] or found


def stem_of(name: str) -> str:
    """Give the name of a file without the endings of FITS files: a.b.fits.bz2 gives a.b."""
    return re.sub(r"(\.(fits|fit|fts))?(\.(gz|bz2|fz))?$", "", name, flags=re.IGNORECASE)


def corrected_cards(file: RawFile, flags: Iterable[Flag]) -> tuple[str, ...]:
    """Give the cards of a file, as KEYWORD=VALUE, that flags correct."""
    return tuple(flag.header for flag in flags if flag.header and is_named(file, flag.file))


def row_of(file: RawFile) -> dict[str, Any]:
    """Give what the rules of association look at, with its time as a time."""
    time = datetime.fromisoformat(file.time) if file.time else None
    return {**file.row, "ut_datetime": time}
