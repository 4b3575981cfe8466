"""What a look at a campaign without a run leaves behind, and how often a run plans."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Night
from test_plan import flats, frames, raw

from gdask.campaign import plan, records, survey
from gdask.campaign.describe import sharing
from gdask.campaign.job import row_of
from gdask.campaign.settings import FILE
from gdask.campaign.survey import Options
from gdask.cli import main
from gdask.model import GdaskError, UsageError


def some_of(night: Night, folder: Path, count: int) -> str:
    """Copy science frames into a folder."""
    folder.mkdir()
    for path in night.sequence[:count]:
        shutil.copy(path, folder)
    return str(folder)


def look(raw: str, out: Path, learns: bool, **more: Any) -> int:
    """Give the number of files that a look finds."""
    places = (raw,) if raw else ()
    options = Options(places, str(out), **more)
    return len(survey.survey(options, lambda text: None, learns)[0].files)


def test_a_dry_run_of_a_wrong_folder_does_not_bind_the_next_run(
    night: Night, tmp_path: Path
) -> None:
    wrong, right = (some_of(night, tmp_path / name, n) for name, n in (("wrong", 2), ("right", 4)))
    out = tmp_path / "out"
    assert main(["run", wrong, "-o", str(out), "--dry-run"]) == 0
    assert look("", out, learns=False) == 2  # status, plan and why need no name
    with pytest.raises(UsageError, match="no campaign there yet"):
        look("", out, learns=True)
    assert look(right, out, learns=True) == 4
    assert look("", out, learns=False) == 4
    with pytest.raises(GdaskError, match="is a disk not mounted"):  # and now it is bound
        look(wrong, out, learns=True)
    assert look(wrong, out, learns=False, forget_missing=True) == 2
    assert look("", out, learns=True) == 4


def test_raw_files_in_the_folder_of_results_are_told(night: Night, tmp_path: Path) -> None:
    raw = some_of(night, tmp_path / "raw", 2)
    some_of(night, tmp_path / "raw" / "20170505", 3)
    said: list[str] = []
    options = Options((raw,), str(tmp_path / "raw" / "20170505"))
    survey.survey(options, said.append)
    (line,) = [text for text in said if "not looked at" in text]
    assert line.startswith("3 FITS files in ")
    said.clear()
    survey.survey(Options((raw,), str(tmp_path / "raw" / "reduced")), said.append)
    assert not said


def test_a_plan_is_made_again_only_if_something_has_changed(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    make = plan.make_plan

    def counted(*given: Any) -> Any:
        made.append(1)
        return make(*given)

    for module in (plan, survey):
        monkeypatch.setattr(module, "make_plan", counted)
    out = tmp_path / "out"
    options = Options((str(night.folder / "raw"),), str(out), until="calibrations")
    campaign, place = survey.survey(options, lambda text: None)
    whole = survey.whole_plan(survey.with_next_best(campaign, place), place)
    assert len(made) == 1 and len(whole.jobs) > len(campaign.jobs)
    (out / FILE).write_text("[exclude]\n" + f'"{Path(night.flat_on[0]).name}" = "dark"\n')
    assert survey.whole_plan(whole, place).jobs != whole.jobs
    assert len(made) == 2


def test_files_share_what_they_have_alike() -> None:
    """Of 10^5 files each took 5 kB; what is alike is held once."""
    known: dict[Any, Any] = {}
    first, second = (sharing(one, known) for one in frames(5)[:2])
    assert first.row is second.row and first.tags is second.tags and first.row is not None
    assert row_of(first)["ut_datetime"] != row_of(second)["ut_datetime"]
    assert sharing(raw("science", "2017-05-05T03:00", filter="J"), known).row is not first.row
    rows = plan.make_plan([*frames(5), *flats(5)]).rows
    assert rows[0]["file"] and [row["state"] for row in rows[:2]] == ["used", "used"]


def test_records_are_read_when_they_are_looked_at(tmp_path: Path) -> None:
    """A run of 10^5 frames holds no record of a job, but for the few words that it ends with."""
    campaign = plan.make_plan([*frames(5), *frames(6), *flats(5)])
    for job in campaign.jobs[:-1]:
        products = [{"path": f"{job.folder}/{n}.fits", "size": n, "numbers": {}} for n in (1, 2)]
        told = {"status": "made", "products": products, "parts": {"inputs": {}}, "names": {}}
        records.write_record(tmp_path, job, told)
    known = records.read_records(tmp_path, campaign)
    names = [job.id for job in campaign.jobs]
    assert list(known) == names[:-1] and len(known) == len(names) - 1
    assert names[-1] not in known and known.get("no such job") is None
    first = known[names[0]]
    records.write_record(tmp_path, campaign.jobs[0], {"status": "failed"})
    assert records.read_records(tmp_path, campaign)[names[0]]["status"] == "failed"
    kept = records.outline(first, "frames")
    assert kept["products"] == [{"size": 3}] and not {"parts", "names"} & kept.keys()
    assert records.outline(first, "stack")["products"] == first["products"]
