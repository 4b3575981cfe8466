"""`reduce --report`: pages of what a folder holds, also of a reduction that failed."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import Night

from gdask.cli import main


def facts() -> dict:
    return json.loads(Path("report/report.json").read_text())


def test_reduce_writes_a_report_also_when_it_fails(night: Night, workspace: Path) -> None:
    flats = [*night.flat_on, *night.flat_off]
    calibration = ["--user_cal", f"processed_bpm:{night.bpm}"]
    assert main(["reduce", "--report", "-q", *flats, *calibration]) == 0
    found = facts()
    (flat,) = found["products"]
    assert flat["of"] == "flat" and flat["state"] == "passed" and flat["filter"] == "Kshort"
    assert [job["state"] for job in found["jobs"]] == ["made"]
    page = Path("report", flat["page"]).read_text()
    assert "If not met" in page and "gdask replay" in page
    assert list(Path("report/pictures").glob("*/preview.png"))
    assert str(workspace) not in Path("report/report.json").read_text()

    # A frame alone has no sky.
    code = main(["reduce", "--report", "-q", night.science[0]])
    found = facts()
    failed = [job for job in found["jobs"] if job["state"] == "failed"]
    assert code == 1 and len(failed) == 1 and [one["of"] for one in found["products"]] == ["flat"]
    page = Path("report", failed[0]["page"]).read_text()
    assert failed[0]["cause"] in page.replace("&#39;", "'").replace("&lt;", "<")
    assert found["decisions"][0]["kind"] == "failed"
    assert list(Path("report/pictures").glob("job-*/preview.png"))
    assert "made" in [job["state"] for job in found["jobs"]]  # the earlier run is still known

    assert main(["report"]) == 0  # as it is, later
    assert [job["state"] for job in facts()["jobs"]].count("failed") == 1
