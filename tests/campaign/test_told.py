"""What a campaign says of what it leaves: products that nothing plans, raw files without use."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_plan import flats, frames

from gdask.campaign import records
from gdask.campaign.job import Campaign
from gdask.campaign.plan import make_plan
from gdask.campaign.report import unplanned_lines, unused_line
from gdask.campaign.survey import Options, survey
from gdask.model import UsageError


def test_products_of_jobs_that_are_no_longer_planned_are_told(tmp_path: Path) -> None:
    plan = make_plan([*frames(5), *frames(6), *flats(5)])
    for job in plan.jobs:
        product = {"path": f"{job.folder}/{job.id}.fits"}
        records.write_record(tmp_path, job, {"status": "made", "products": [product]})
        (tmp_path / product["path"]).touch()
    assert list(unplanned_lines(tmp_path, plan)) == []
    (line,) = unplanned_lines(tmp_path, plan._replace(jobs=plan.jobs[:-2]))
    assert line.startswith("2 products of jobs that are no longer planned: ")
    assert all(job.id in line for job in plan.jobs[-2:]) and plan.jobs[0].id not in line
    (line,) = unplanned_lines(tmp_path, Campaign((), (), ()))
    assert "and 1 more" in line
    (tmp_path / plan.jobs[-1].folder / f"{plan.jobs[-1].id}.fits").unlink()
    (line,) = unplanned_lines(tmp_path, plan._replace(jobs=plan.jobs[:-2]))
    assert line.startswith("1 product of jobs")


def test_files_without_use_are_told_and_the_unreadable_by_name(tmp_path: Path) -> None:
    rows = [{"file": f"S{n}.fits", "state": "used"} for n in range(5)]
    assert unused_line(Campaign((), (), tuple(rows))) == ""
    rows += [
        {"file": "cut.fits", "state": "unreadable"},
        {"file": "twice.fits", "state": "duplicate"},
    ]
    assert unused_line(Campaign((), (), tuple(rows))) == (
        "2 of 7 files are not used: 1 duplicate, 1 unreadable (cut.fits); files.ecsv says why"
    )


def test_results_do_not_go_into_the_raw_files(tmp_path: Path) -> None:
    """Nothing is written there: later commands would take it for a campaign."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "link").symlink_to("raw")
    for out in ("raw", "link"):
        with pytest.raises(UsageError, match="cannot go into the folder of raw files"):
            survey(Options((str(tmp_path / "raw"),), str(tmp_path / out)))
    assert list((tmp_path / "raw").iterdir()) == []
