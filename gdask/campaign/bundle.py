"""A bundle: all that one job needs in one folder, for whoever wants to look at it or repeat it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from gdask.campaign import records
from gdask.campaign.index import job_lines
from gdask.campaign.job import Campaign
from gdask.campaign.jobs import Place, what_goes_in
from gdask.campaign.tables import write_whole
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
    lacking = [one for one in job.needs if known.get(one, {}).get("status") != "made"]
    if lacking:
        raise GdaskError(f"{name}: {', '.join(lacking)} not made yet; gdask run makes it")
    files = {file.key: file for file in campaign.files if file.kind != "duplicate"}
    _, sources = what_goes_in(job, files, known, place)
    for kind, paths in (
        ("inputs", sources.inputs),
        ("calibrations", sources.calibrations.values()),
    ):
        (target / kind).mkdir(parents=True, exist_ok=True)
        for path in paths:
            shutil.copy2(path, target / kind)
    write_whole(target / f"{job.id}.toml", "\n".join([*job_lines(job), ""]))
    record = records.record_path(place.out, job)
    log = Path(place.out) / records.HIDDEN / "work" / job.id / "job.log"
    for about in (record, record.with_suffix(".log"), log):
        if about.exists():
            shutil.copy2(about, target / about.name)
    command = known.get(job.id, {}).get("command", "")
    write_whole(
        target / "README",
        f"All that the job {job.id} was given. To do it again here:\n\n"
        f"    ls inputs/* > inputs.list\n    {command}\n\n"
        "with the paths of calibrations below calibrations/.\n",
    )
    return sorted(os.path.relpath(path, target) for path in target.rglob("*") if path.is_file())
