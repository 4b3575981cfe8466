"""A bundle: all that one job needs in one folder, for whoever wants to look at it or repeat it."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from gdask.campaign import records
from gdask.campaign.describe import write_corrected
from gdask.campaign.index import job_lines
from gdask.campaign.job import Campaign, Job, lacking
from gdask.campaign.jobs import Place, Sources, command_line, what_goes_in, write_inputs
from gdask.io.whole import write_whole
from gdask.model import GdaskError, UsageError


def make_bundle(campaign: Campaign, place: Place, name: str, folder: str) -> list[str]:
    """Gather raw files, calibrations, plan, record and log of a job in a new folder.

    Gives the names of what is there. Raises UsageError where the folder is there already,
    GdaskError where something that the job needs is not made yet.
    """
    job = campaign.job(name)
    target = Path(folder)
    if target.exists() and any(target.iterdir()):
        raise UsageError(f"--bundle {folder}: there is something in it already; name a new folder")
    known = records.read_records(place.out, campaign)
    status = {one: known.get(one, {}).get("status", "not run") for one in job.needs}
    if lost := lacking(job, {one: word for one, word in status.items() if word != "made"}):
        raise GdaskError(f"{name}: {', '.join(lost)}; gdask run makes what it needs")
    files = {file.key: file for file in campaign.files if file.kind != "duplicate"}
    _, sources = what_goes_in(job, files, known, place)
    copies: dict[str, str] = {}
    for kind, paths in (
        ("inputs", sources.inputs),
        ("calibrations", tuple(sources.calibrations.values())),
    ):
        (target / kind).mkdir(parents=True, exist_ok=True)
        for path, copy in _places(paths, target / kind).items():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copies[path] = os.path.relpath(copy, target)
            if path in sources.headers:
                write_corrected(path, sources.headers[path], copy)
            else:
                shutil.copy2(path, copy)
    write_whole(target / f"{job.id}.toml", "\n".join([*job_lines(job), ""]))
    record = records.record_path(place.out, job)
    log = Path(place.out) / records.HIDDEN / "work" / job.id / "job.log"
    for about in (record, record.with_suffix(".log"), log):
        if about.exists():
            shutil.copy2(about, target / about.name)
    _write_command(job, target, sources, copies, place)
    return sorted(os.path.relpath(path, target) for path in target.rglob("*") if path.is_file())


def _write_command(
    job: Job, target: Path, sources: Sources, copies: Mapping[str, str], place: Place
) -> None:
    """Write README, with the command that does the job within the bundle, and what it reads."""
    own = sources._replace(
        inputs=tuple(copies[path] for path in sources.inputs),
        calibrations={kind: copies[path] for kind, path in sources.calibrations.items()},
        headers={},
    )
    write_inputs(job, target, own)
    line = ["reduce", *command_line(job, own, f"threads:{place.threads}", place.memory)[3:]]
    write_whole(
        target / "README",
        f"All that the job {job.id} was given. To do it again in this folder:\n\n"
        f"    DRAGONSRC=dragonsrc {shlex.join(line)}\n",
    )


def _places(paths: Sequence[str], folder: Path) -> dict[str, Path]:
    """Give where each file is copied to; those of several folders keep these below what is common.

    Files of one name stay apart in this way.
    """
    if not paths:
        return {}
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return {path: folder / os.path.relpath(path, common) for path in paths}
