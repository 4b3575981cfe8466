"""Jobs that run elsewhere, in a batch system or on workers: what is written for them, and how one
is done from that alone.

A job is handed out as one small file: itself, all jobs that it needs, and where their raw files
are. Whoever does it looks at records itself, and trusts nobody that what it needs was made.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gdask.campaign import records
from gdask.campaign.describe import RawFile
from gdask.campaign.index import write_plan
from gdask.campaign.job import Campaign, Choice, Job
from gdask.campaign.jobs import Place, run_job
from gdask.campaign.settings import FILE, FLAGS, Flag
from gdask.campaign.state import states_of
from gdask.campaign.sums import SharedSums, known_sums
from gdask.io.whole import write_whole
from gdask.model import GdaskError, read_json

#: Folder of what was handed out, below the hidden folder of a campaign.
FOLDER = "submitted"
#: Seconds after which a job looks once more for what it needs: the record may have been written on
#: another host a moment ago.
LOOK_AGAIN = 10.0
#: Kinds of files whose pixels no job reads.
_NO_INPUTS = ("duplicate", "unreadable", "missing")


class Handed(NamedTuple):
    """What a job that runs elsewhere is given. needs: all jobs that it needs, and what these do."""

    job: Job
    needs: tuple[Job, ...]
    files: dict[str, RawFile]
    sums: dict[str, str]
    place: Place


def new_folder(out: str | os.PathLike[str]) -> Path:
    """Make the folder of a submission, named by date and time."""
    name = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1, 1000):
        folder = Path(out) / records.HIDDEN / FOLDER / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise GdaskError(f"{folder}: no new folder can be made there")


def hand_out(
    folder: Path,
    campaign: Campaign,
    names: Iterable[str],
    place: Place,
    whole: Campaign | None = None,
) -> None:
    """Write what these jobs need to run elsewhere, and copy plan, campaign.toml and flags.

    whole: the plan of which tables will be written; `campaign` where none is given.
    """
    for name in (FILE, FLAGS):
        if os.path.exists(os.path.join(place.out, name)):
            shutil.copy2(os.path.join(place.out, name), folder)
    write_plan(folder / "plan", campaign)
    write_whole(folder / "place.json", json.dumps(_place_table(place)))
    saved = whole or campaign
    table = {
        "jobs": [job._asdict() for job in saved.jobs],
        "files": [_file_row(file) for file in saved.files],
        "rows": list(saved.rows),
    }
    write_whole(folder / "campaign.json", json.dumps(table, default=str))
    (folder / "jobs").mkdir()
    sums = known_sums(place.cache, campaign.files)
    tables = handed_tables(campaign, names)
    for name, one in tables.items():
        own = {json.dumps([os.path.basename(row[0]), row[1], row[2]]) for row in one["files"]}
        known = {key: sums[key] for key in sorted(own) if key in sums}
        write_whole(folder / "jobs" / f"{name}.json", json.dumps(one | {"sums": known}))


def handed_tables(campaign: Campaign, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Give what is written for each of these jobs, as it is read again from JSON."""
    jobs = {job.id: job for job in campaign.jobs}
    files: dict[str, RawFile] = {}
    for file in campaign.files:
        if file.kind not in _NO_INPUTS:
            files.setdefault(file.key, file)
    order = {name: number for number, name in enumerate(jobs)}
    tables = {}
    for name in names:
        wanted, waiting = {name}, list(jobs[name].needs)
        while waiting:
            need = waiting.pop()
            if need in jobs and need not in wanted:
                wanted.add(need)
                waiting += jobs[need].needs
        needed = [jobs[one] for one in sorted(wanted, key=order.__getitem__)]
        keys = dict.fromkeys(key for job in needed for key in job.inputs)
        table = {
            "job": jobs[name]._asdict(),
            "needs": [job._asdict() for job in needed if job.id != name],
            "files": [_file_row(files[key]) for key in keys if key in files],
        }
        tables[name] = json.loads(json.dumps(table, default=str))
    return tables


def read_table(folder: str | os.PathLike[str], name: str) -> dict[str, Any] | None:
    """Give what was written for a job, without checksums; None where it cannot be read."""
    try:
        table = read_json(Path(folder) / "jobs" / f"{name}.json")
    except (OSError, ValueError):
        return None
    return {key: value for key, value in table.items() if key != "sums"}


def read_handed(folder: str | os.PathLike[str], name: str) -> Handed:
    """Read what was written for a job. Raises GdaskError where it cannot be read."""
    path = Path(folder) / "jobs" / f"{name}.json"
    try:
        table = read_json(path)
        job, needs = _job_from(table["job"]), tuple(map(_job_from, table["needs"]))
        files = [_file_from(row) for row in table["files"]]
        place = read_place(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GdaskError(
            f"{path}: what was handed out for {name} cannot be read on {os.uname().nodename} "
            f"({error}); all hosts must see the folder of results under the same name"
        ) from None
    return Handed(job, needs, {file.key: file for file in files}, table["sums"], place)


def read_campaign(folder: str | os.PathLike[str]) -> Campaign:
    """Read the plan that was saved when jobs were handed out; files without rows."""
    table = read_json(Path(folder) / "campaign.json")
    return Campaign(
        tuple(map(_job_from, table["jobs"])),
        tuple(map(_file_from, table["files"])),
        tuple(table["rows"]),
    )


def read_place(folder: str | os.PathLike[str]) -> Place:
    """Read where and how jobs that were handed out run."""
    table = read_json(Path(folder) / "place.json")
    return Place(**table | {"flags": tuple(Flag(*row) for row in table["flags"])})


def do_job(
    folder: str | os.PathLike[str],
    name: str,
    threads: int | None = None,
    memory: str | None = None,
    look_again: float = LOOK_AGAIN,
    profile: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Do a job that was handed out, and give its record. profile: see `Place`.

    It ends as blocked where what it needs is not made as the plan wants it: a record of an earlier
    time does not count.
    """
    handed = read_handed(folder, name)
    place = handed.place._replace(
        threads=threads or handed.place.threads,
        memory=memory or handed.place.memory,
        profile=profile,
    )
    sums = SharedSums(place.out, name, [job.id for job in handed.needs], handed.sums)
    place = place._replace(sums=sums)
    try:
        before, is_young = _look(handed, place)
        if is_young:
            time.sleep(look_again)
            before, _ = _look(handed, place)
        return run_job(handed.job, handed.files, before, place)
    finally:
        sums.keep()


def _look(handed: Handed, place: Place) -> tuple[dict[str, dict[str, Any]], bool]:
    """Give the records of what a job needs, and whether one is missing that may yet be seen.

    A record that is not as the plan wants it is given with its state in place of 'made'.
    """
    for job in handed.needs:  # a network file system asks its server when a folder is opened
        folder = records.record_path(place.out, job).parent
        if folder.is_dir():
            os.listdir(folder)
    campaign = Campaign(handed.needs, tuple(handed.files.values()), ())
    known = records.read_records(place.out, campaign)
    states = states_of(campaign, known, place)
    before, is_young = {}, False
    for name in handed.job.needs:
        record, state = known.get(name), states.get(name)
        if record is not None and state is not None and state.name in ("made", "caveats"):
            before[name] = record
            continue
        word = "not run" if state is None or state.name == "new" else state.name
        before[name] = {"job": name, "status": word, "cause": "", "products": []}
        is_young |= word in ("not run", "stale", "waiting")
    return before, is_young


# As text ---------------------------------------------------------------------------------------


def _place_table(place: Place) -> dict[str, Any]:
    table = place._replace(sums=None)._asdict()
    return table | {"flags": [list(flag) for flag in place.flags]}


def _file_row(file: RawFile) -> list[Any]:
    """Give a file without what only planning looks at."""
    return [list(value) if isinstance(value, tuple) else value for value in file[:-1]]


def _file_from(row: list[Any]) -> RawFile:
    values: list[Any] = [tuple(value) if isinstance(value, list) else value for value in row]
    return RawFile(*values)


def _job_from(table: Mapping[str, Any]) -> Job:
    found = {key: _as_tuples(value) for key, value in table.items()}
    return Job(**found | {"calibrations": tuple(Choice(*one) for one in found["calibrations"])})


def _as_tuples(value: Any) -> Any:
    """Give a value from JSON with tuples in place of lists, as jobs have them."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
