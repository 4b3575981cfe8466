"""What a campaign says of what it leaves: products that nothing plans, raw files without use."""

from __future__ import annotations

from pathlib import Path

from test_plan import flats, frames

from gdask.campaign import records
from gdask.campaign.job import Campaign
from gdask.campaign.plan import make_plan
from gdask.campaign.report import unplanned_lines


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
