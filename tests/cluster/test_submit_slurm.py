"""`gdask run --submit slurm` with a real SLURM of one node."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_node
from conftest import Night

from gdask.campaign import records
from gdask.campaign.job import Campaign
from gdask.campaign.run import run_campaign
from gdask.campaign.submissions import LAST, live_elements, read_arrays
from gdask.campaign.survey import Options, survey
from gdask.campaign.tables import read_table

pytestmark = pytest.mark.skipif(bool(slurm_node.missing()), reason=f"SLURM: {slurm_node.missing()}")

FLAT, FRAMES = "flat-GSAOI-20170505-Kshort", "frames-GSAOI-NGC5128-Kshort-20170505"
STACK = "stack-GSAOI-NGC5128-Kshort-20170505"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run SLURM, with its commands and where it is in the environment."""
    (tmp_path / "slurm").mkdir()
    with slurm_node.one_node(tmp_path / "slurm") as environment:
        for name in ("SLURM_CONF", "PATH"):
            monkeypatch.setenv(name, environment[name])
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Give a folder of results with a name that scripts must quote."""
    (tmp_path / "50% done").mkdir()
    return tmp_path / "50% done"


def submit(raw: Path, out: Path, *options: str) -> subprocess.CompletedProcess:
    """Type the line of a submission."""
    return subprocess.run([*line(raw, out), *options], capture_output=True, text=True, check=False)


def line(raw: Path, out: Path) -> list[str]:
    """Give the line; only the target's jobs, for the time that tests have."""
    command = [sys.executable, "-m", "gdask.cli.run", str(raw), "-o", str(out), "--submit", "slurm"]
    return [*command, "--threads", "1", "--only", "target==NGC5128,night!=all"]


def wait_for_all(out: Path, seconds: float = 600) -> None:
    slurm_node.until(lambda: not live_elements(out), seconds)


def plan_of(raw: Path, out: Path) -> Campaign:
    return survey(Options((str(raw),), str(out), only=lambda job: job.target == "NGC5128"))[0]


def record(campaign: Campaign, out: Path, name: str) -> dict:
    found = records.read_record(out, campaign.job(name))
    assert found is not None, f"{name}: {logs(out)}"
    return found


def logs(out: Path) -> str:
    return "\n".join(
        path.read_text()[-1500:] for path in out.glob(".campaign/submitted/*/logs/*.log")
    )


def test_dependants_of_a_job_that_fails_are_blocked_and_the_tables_are_written(
    slurm: None, night: Night, out: Path
) -> None:
    """Killed in the middle and typed twice, it is submitted once. The flat cannot be made; the last
    job writes the tables all the same.
    """
    raw = night.folder / "raw"
    (out / "campaign.toml").write_text(
        '[parameters.flat]\n"addDQ:user_bpm" = "/nowhere/bpm.fits"\n'
    )
    later = "--batch-option=--begin=now+20"  # nothing ends before all of this is typed
    killed = subprocess.Popen([*line(raw, out), later], stdout=subprocess.DEVNULL)
    slurm_node.until(lambda: any(out.glob(".campaign/submitted/*/arrays/*.json")), 60)
    killed.kill()
    killed.wait()
    first, second = submit(raw, out, later), submit(raw, out, later)
    assert first.returncode == 0, first.stderr
    assert "0 jobs submitted" in second.stdout, second.stdout + second.stderr
    arrays = [array for array in read_arrays(out, with_ended=True) if array.id]
    submitted = sorted(name for array in arrays for name in array.jobs if name != LAST)
    assert submitted == sorted((FLAT, FRAMES, STACK))
    shown = subprocess.run(
        ["scontrol", "show", "jobs"], capture_output=True, text=True, check=True
    ).stdout
    assert {array.name for array in arrays} == set(re.findall(r"JobName=(\S+)", shown))
    (out / "index.ecsv").unlink(missing_ok=True)
    wait_for_all(out)
    status = {row["job"]: row for row in read_table(out / "index.ecsv")}
    assert status[FLAT]["status"] == "failed" and "/nowhere/bpm.fits" in status[FLAT]["because"], (
        logs(out)
    )
    assert (status[FRAMES]["status"], status[FRAMES]["because"]) == ("blocked", f"{FLAT} failed")
    assert status[STACK]["status"] == "blocked"
    *_, report = sorted(out.glob(".campaign/submitted/*/report.txt"))
    assert " 1 failed" in report.read_text() and FRAMES in report.read_text()
    assert f"{FLAT}: failed" in logs(out)


@pytest.mark.slow
def test_a_campaign_goes_through_kills_with_the_bytes_of_one_that_was_not_disturbed(
    slurm: None, night: Night, out: Path, tmp_path: Path
) -> None:
    """Elements are cancelled, one is warned of its wall time, the line is typed again."""
    raw = night.folder / "raw"
    assert submit(raw, out).returncode == 0
    slurm_node.until(lambda: running(out) == [FLAT], 60)
    cancel(out, FLAT, FRAMES)  # the flat in the middle, the frames before they begin
    wait_for_all(out)
    campaign = plan_of(raw, out)
    assert records.read_record(out, campaign.job(FLAT)) is None
    assert record(campaign, out, STACK)["status"] == "blocked", logs(out)
    assert "3 jobs submitted" in submit(raw, out).stdout
    slurm_node.until(lambda: running(out) == [FRAMES], 300)
    slurm_node.until(lambda: any(out.glob(f".campaign/work/{FRAMES}/.gdask/*/*/complete")), 300)
    (one,) = (live for live in live_elements(out) if live.array.jobs == (FRAMES,))
    job = f"{one.element.id}_0"
    subprocess.run(["scancel", "--signal=USR1", "--batch", job], check=True)
    slurm_node.until(lambda: "Restarts=1" in show(job), 60)
    slurm_node.until(lambda: "JobState=COMPLETING" not in show(job), 60)
    # SLURM lets it wait for two minutes, because a node refuses it right after its first end.
    time.sleep(5)
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)
    wait_for_all(out)
    assert "into the queue again" in logs(out)
    rows = {row["job"]: row["status"] for row in read_table(out / "index.ecsv")}
    assert rows == rows | dict.fromkeys((FLAT, FRAMES, STACK), "made"), logs(out)
    assert "0 jobs submitted" in submit(raw, out).stdout
    quiet = run_campaign(
        Options((str(raw),), str(tmp_path / "local"), threads=2, only=is_of_target), print
    )
    assert quiet.failed == [] and contents(out) == contents(tmp_path / "local")


def is_of_target(job: object) -> bool:
    return job.target == "NGC5128"  # type: ignore[attr-defined]


def contents(out: Path) -> dict[str, str]:
    """Give the digests of content of all products, by path."""
    found = {
        one["path"]: one["content"] for each in records.all_records(out) for one in each["products"]
    }
    assert len(found) >= 7
    return found


def running(out: Path) -> list[str]:
    return [
        one.array.jobs[one.element.number]
        for one in live_elements(out)
        if one.element.state == "running"
    ]


def cancel(out: Path, *jobs: str) -> None:
    for one in live_elements(out):
        if one.array.jobs[one.element.number] in jobs:
            subprocess.run(["scancel", f"{one.element.id}_{one.element.number}"], check=True)


def show(job: str) -> str:
    return subprocess.run(
        ["scontrol", "show", "job", job], capture_output=True, text=True, check=False
    ).stdout
