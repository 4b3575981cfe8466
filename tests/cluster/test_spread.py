"""`gdask run --cluster`: jobs of a campaign on workers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import Night
from distributed import LocalCluster
from slurm_node import until

from gdask.campaign import records, spread
from gdask.campaign.job import Campaign, Job
from gdask.campaign.jobs import Place
from gdask.campaign.run import run_campaign
from gdask.campaign.survey import Options
from gdask.model import GdaskError

FRAMES = "frames-GSAOI-NGC5128-Kshort-20170505"


def toy(folder: str, name: str, threads: int, memory: str | None) -> dict:
    """Write when a job was done, by whom, and with what; some kill their worker."""
    out = Path(folder).parents[2]
    with open(out / f"{name}.begun", "a") as log:
        log.write("x")
    begun = time.time()
    kills = name.startswith("killer") or (
        name.startswith("once") and (out / f"{name}.begun").read_text() == "x"
    )
    if kills:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    text = f"{begun} {time.time()} {os.getpid()} {threads} {memory}"
    (out / f"{name}.times").write_text(text)
    return {"status": "made", "cause": "", "ran": True, "products": []}


def a_job(name: str, needs: tuple[str, ...] = (), size: int = 1) -> Job:
    return Job(
        name, "frames", "GSAOI", "T", "K", "20170505", "T/K", takes=needs, raw_bytes=size
    )  # fmt: skip


def run_toys(
    jobs: list[Job],
    out: Path,
    at_a_time: int = 1,
    spec: str = "processes:2",
    do: Callable[..., dict] = toy,
    seconds: float = 600.0,
) -> dict[str, dict]:
    """Do jobs that are no reductions; what has not begun after so many seconds is not run."""
    end = time.monotonic() + seconds
    place = Place(str(out), 1)
    out.joinpath(".campaign").mkdir(exist_ok=True)
    wanted = spread.Wanted(tuple(job.id for job in jobs), spec, at_a_time, None, do)
    campaign = Campaign(tuple(jobs), (), ())
    return spread.run_on_cluster(
        campaign,
        place,
        wanted,
        (lambda *_: None,) * 2,
        lambda: "too late" if time.monotonic() > end else "",
    )


def test_jobs_follow_what_they_need_and_a_death_costs_the_job_alone(tmp_path: Path) -> None:
    """One worker dies once in the middle; over one job each worker dies, three times."""
    jobs = [a_job(f"flat-{n}") for n in range(4)]
    jobs += [a_job("once"), a_job("killer")]
    jobs += [a_job(f"stack-{n}", (f"flat-{n}", "once")) for n in range(4)]
    done = run_toys(jobs, tmp_path)
    assert {name for name, one in done.items() if one["status"] == "failed"} == {"killer"}
    assert "3 workers died" in done["killer"]["cause"]
    assert len(done) == len(jobs)
    times = {path.stem: path.read_text().split() for path in tmp_path.glob("*.times")}
    for job in jobs:
        for need in job.needs:
            assert float(times[need][1]) <= float(times[job.id][0])
    counts = {path.stem: len(path.read_text()) for path in tmp_path.glob("*.begun")}
    assert counts.pop("once") == 2 and counts.pop("killer") == 3
    assert set(counts.values()) == {1}
    assert len({times[job.id][2] for job in jobs if job.id in times}) >= 2
    for found in times.values():
        assert found[3] == "1" and int(found[4]) > 0  # threads and memory of a worker


def test_a_standing_cluster_of_nodes_is_shared(tmp_path: Path) -> None:
    """Two jobs at a time on a worker of four threads have two each, and half of its memory."""
    with LocalCluster(
        n_workers=2, threads_per_worker=4, memory_limit="1GiB", dashboard_address=None
    ) as cluster:
        jobs = [a_job(f"job-{n}") for n in range(10)]
        done = run_toys(jobs, tmp_path, 2, cluster.scheduler_address)
        kept = cluster.scheduler.tasks
        assert len(kept) <= 4, kept  # jobs that are done are not kept
    assert {one["status"] for one in done.values()} == {"made"}
    times = [path.read_text().split() for path in tmp_path.glob("*.times")]
    assert {tuple(found[3:]) for found in times} == {("2", str(2**29))}
    for begun, _, worker, *_ in times:
        at_once = [one for one in times if one[2] == worker and one[0] <= begun < one[1]]
        assert len(at_once) <= 2
    assert not list(tmp_path.glob(".campaign/submitted/*"))


@pytest.mark.slow
def test_a_scheduler_that_dies_ends_the_run_in_a_line(tmp_path: Path) -> None:
    """The client tries for half a minute to reach it again."""
    file, here = str(tmp_path / "scheduler.json"), Path(__file__).parent
    folders = [str(folder) for folder in (here, here.parent, here.parents[1])]  # of this module
    scheduler, worker = (
        subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--scheduler-file", file, *more],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
        )
        for kind, more in (
            ("scheduler", ("--host", "127.0.0.1", "--port", "0", "--no-dashboard")),
            ("worker", ("--nworkers", "1", "--nthreads", "1", "--no-dashboard")),
        )
    )

    def kill() -> None:
        while not (tmp_path / "job-3.begun").exists() and worker.poll() is None:
            time.sleep(0.05)
        scheduler.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        until(Path(file).exists, 60)
        with pytest.raises(GdaskError, match="the scheduler is gone"):
            run_toys([a_job(f"job-{n}") for n in range(100)], tmp_path, 1, file)
    finally:
        worker.kill()
        thread.join()
        for process in (scheduler, worker):
            process.wait()


def test_that_on_which_most_depends_begins_first() -> None:
    jobs = [a_job("a", size=5), a_job("b", size=1), a_job("c", ("b",), 10)]
    found = spread._urgency(jobs)
    assert sorted(found, key=found.get, reverse=True) == ["b", "c", "a"]


@pytest.mark.slow
def test_a_worker_that_is_killed_in_the_middle_costs_nothing_but_time(
    night: Night, tmp_path: Path
) -> None:
    """Killed while its job has a checkpoint; the job goes on from it, with the same bytes."""
    raw, out = night.folder / "raw", tmp_path / "out"
    only = "target==NGC5128"
    command = [sys.executable, "-m", "gdask.cli.run", str(raw), "-o", str(out), "--only", only]
    process = subprocess.Popen(
        [*command, "--cluster", "processes:2"], stdout=subprocess.PIPE, text=True
    )
    killed: list[int] = []
    went_on: list[str] = []

    def kill() -> None:
        work = out / ".campaign" / "work" / FRAMES
        while process.poll() is None and not went_on:
            if not killed and any(work.glob(".gdask/*/*/complete")):
                (child,) = (p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(work))
                killed.append(child.ppid())
                os.kill(child.ppid(), signal.SIGKILL)
            with contextlib.suppress(OSError):
                log = (work / "job.log").read_text()
                went_on.extend(line for line in log.splitlines() if "already on disk" in line)
            time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    shown, _ = process.communicate(timeout=900)
    thread.join()
    assert process.returncode == 0 and killed and went_on, shown
    quiet = run_campaign(
        Options((str(raw),), str(tmp_path / "local"), threads=2, only=is_of_target), print
    )
    assert quiet.failed == []
    assert contents(out) == contents(tmp_path / "local")


def is_of_target(job: Job) -> bool:
    return job.target == "NGC5128"


def contents(out: Path) -> dict[str, str]:
    """Give the digests of content of all products, by path."""
    found = {
        one["path"]: one["content"] for each in records.all_records(out) for one in each["products"]
    }
    assert len(found) >= 7
    return found
