"""How the end of the command of a job is judged, without running it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from test_plan import frames, raw

from gdask.campaign import cost, jobs, records
from gdask.campaign.job import Campaign, Job
from gdask.campaign.plan import make_plan
from gdask.campaign.state import states_of

Try = Callable[..., dict]


@pytest.fixture
def one_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Try:
    """Give what a job's record says when its command leaves these files and exit codes."""
    flats = [raw("flat", f"2017-05-05T20:0{k}", lamp="on" if k < 2 else "off") for k in range(4)]
    job: Job = next(one for one in make_plan([*frames(6), *flats]).jobs if one.kind == "frames")

    def try_it(*ends: tuple[int, bool, str], profile: dict | None = None) -> dict:
        left = list(ends)

        def run(line: list[str], work: Path, lock: int) -> int:
            code, has_account, name = left.pop(0)
            (work / "job.log").write_text("reduce: S1: cannot be written\n")
            (work / "account.json").unlink(missing_ok=True)
            if has_account:
                (work / "account.json").write_text(json.dumps({"seconds": 1.0}))
            (work / f"{name}_skyCorrected.fits").write_text("")
            return code

        monkeypatch.setattr(jobs, "_run", run)
        sources = jobs.Sources(("/data/S1.fits",), {}, {}, ())
        place = jobs.Place(str(tmp_path), 1, profile=profile)
        return jobs._try(job, tmp_path, 0, sources, place)

    return try_it


def test_a_command_that_fails_after_some_products_has_failed(one_try: Try) -> None:
    record = one_try((1, False, "S1"))
    assert (record["status"], record["cause"]) == ("failed", "error: S1: cannot be written")


def test_a_command_that_left_frames_out_is_done(one_try: Try) -> None:
    assert one_try((1, True, "S1"))["status"] == "made"


def test_what_fails_on_several_workers_is_tried_alone(one_try: Try) -> None:
    """The cluster may be the reason, and what several have taken does not tell what one takes."""
    record = one_try((1, False, "S1"), (0, True, "S1"), profile={"kind": "joined"})
    assert [one["shared"] for one in record["tries"]] == [True, False]
    assert record["status"] == "made" and "threads:1" in record["command"]
    record = one_try((0, True, "S1"), profile={"kind": "joined"})
    assert record["status"] == "made" and "threads:1" in record["command"]
    job = Job("j", "frames", "GSAOI", "T", "K", "20170505", "T/K", raw_bytes=1)
    assert cost.measured(job, record | {"account": {"memory": 1}}) is None


def test_products_of_a_failed_try_do_not_come_into_the_next(one_try: Try, tmp_path: Path) -> None:
    assert one_try((1, False, "S1"))["status"] == "failed"
    assert one_try((0, True, "S2"))["status"] == "made"
    assert [path.name for path in tmp_path.glob("*.fits")] == ["S2_skyCorrected.fits"]


def test_a_job_that_met_a_full_disk_is_tried_again_without_a_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job("dark-F2-20170505-8s", "dark", "F2", "", "", "20170505", "calibrations/20170505")
    calls: list[int] = []

    def attempt(text: str) -> Callable[..., dict]:
        def fake(*_: object) -> dict:
            calls.append(1)
            return {"status": "failed", "cause": text, "products": [], "left_out": []}

        return fake

    place = jobs.Place(str(tmp_path), 1)
    for text, tried in (("disk full: S1", 2), ("error: S1", 1)):
        calls.clear()
        monkeypatch.setattr(jobs, "_try", attempt(text))
        for _ in range(2):
            assert jobs.run_job(job, {}, {}, place)["status"] == "failed"
        assert len(calls) == tried
        record = records.read_record(tmp_path, job)
        state = states_of(Campaign((job,), (), ()), {job.id: record}, place)[job.id]
        assert state.runs == (tried == 2)
