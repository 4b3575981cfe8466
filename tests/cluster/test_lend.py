"""Workers of a cluster that join a large job of a campaign."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Night
from slurm_node import until
from test_spread import FRAMES, a_job, contents, is_of_target, run_toys

from gdask.campaign import lend, records
from gdask.campaign.run import run_campaign
from gdask.campaign.survey import Options

#: A command that computes on all who join it, and says who they were; of four, one is killed.
COMMAND = """
import json, os, signal, sys, time
from gdask.cluster import connect

def who(number, kills):
    time.sleep(0.1)
    if kills and not os.path.exists(kills):
        open(kills, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return number, os.getpid()

with connect("cluster.yaml") as client:
    client.wait_for_workers(int(sys.argv[1]), timeout=60)
    mark = os.path.abspath("killed")
    futures = [client.submit(who, n, mark if n == 17 else "", pure=False) for n in range(40)]
    found = client.gather(futures)
    limits = [one["memory_limit"] for one in client.scheduler_info()["workers"].values()]
with open("found.json", "w") as file:
    json.dump([found, limits], file)
"""
STACK = "stack-GSAOI-NGC5128-Kshort-20170505"


def computing(
    folder: str, name: str, threads: int, memory: str | None, profile: Any = None
) -> dict[str, Any]:
    """Do a toy of a job: a command on threads, or on those who join."""
    work = Path(folder).parents[1] / "work" / name
    work.mkdir(parents=True, exist_ok=True)
    if profile is None:
        (work / "alone").touch()
    else:
        (work / "cluster.yaml").write_text(json.dumps(profile))
        line = [sys.executable, "-c", COMMAND, "2"]
        subprocess.run(line, cwd=work, check=True, timeout=120)
    return {"status": "made", "cause": "", "ran": True, "products": []}


def test_an_idle_worker_joins_a_large_job_and_its_death_costs_nothing(tmp_path: Path) -> None:
    """Of two workers one has a large job, the other a small one, and then joins."""
    jobs = [a_job("large", size=2**31), a_job("small", size=1)]
    done = run_toys(jobs, tmp_path, do=computing)
    assert [one["status"] for one in done.values()] == ["made"] * 2
    work = tmp_path / ".campaign" / "work"
    assert (work / "small" / "alone").exists() and (work / "large" / "killed").exists()
    found, limits = json.loads((work / "large" / "found.json").read_text())
    assert [number for number, _ in found] == list(range(40))
    assert len({pid for _, pid in found}) >= 2
    assert len(set(limits)) == 2  # the one beside the command has less


def dying_once(
    folder: str, name: str, threads: int, memory: str | None, profile: Any = None
) -> dict[str, Any]:
    """Do a toy of a job that kills its worker while another one waits to join it."""
    mark = Path(folder).parents[2] / "died"
    if not mark.exists():
        mark.touch()
        time.sleep(3)
        os.kill(os.getpid(), signal.SIGKILL)
    return {"status": "made", "cause": "", "ran": True, "products": []}


def test_who_had_joined_does_the_job_when_its_own_worker_dies(tmp_path: Path) -> None:
    """Of two workers that nobody starts again, with nothing else to do."""
    file, here = str(tmp_path / "scheduler.json"), Path(__file__).parent
    folders = os.pathsep.join(str(folder) for folder in (here, here.parent, here.parents[1]))
    line = [sys.executable, "-m"]
    common = ["--scheduler-file", file, "--no-dashboard"]
    lines = [
        [*line, "distributed.cli.dask_scheduler", *common, "--host", "127.0.0.1", "--port", "0"]
    ]
    lines += [[*line, "distributed.cli.dask_worker", *common, "--no-nanny", "--nthreads", "1"]] * 2
    processes = [
        subprocess.Popen(
            each,
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": folders},
        )
        for each in lines
    ]
    try:
        until(Path(file).exists, 60)
        done = run_toys([a_job("large", size=2**31)], tmp_path, 1, file, dying_once, 60.0)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert (tmp_path / "died").exists() and done["large"]["status"] == "made"


def test_who_joins_what() -> None:
    """The job with most bytes for each of its workers gets the next one, up to what is of use."""
    gib = 2**30
    large, small, tiny = (a_job(n, size=s) for n, s in (("a", 16 * gib), ("b", 4 * gib), ("c", 1)))
    assert [lend.most_workers(job, 1) for job in (large, small, tiny)] == [16, 4, 1]
    assert lend.most_workers(large, 16) == 4
    assert lend.is_open(small, workers=4, threads=1, ready=4, left=100 * gib)
    assert not lend.is_open(small, workers=4, threads=1, ready=5, left=100 * gib)
    assert lend.is_open(large, workers=8, threads=1, ready=99, left=100 * gib)
    jobs = [(large, 1), (small, 1), (tiny, 1)]
    assert lend.shared_out(jobs, 5, 1) == ["a", "a", "a", "a", "b"]
    assert len(lend.shared_out(jobs, 100, 1)) == 15 + 3


@pytest.fixture(scope="module")
def alone(night: Night, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Give the digests of what one process makes."""
    out = tmp_path_factory.mktemp("alone")
    raw = str(night.folder / "raw")
    outcome = run_campaign(Options((raw,), str(out), threads=1, only=is_of_target), print)
    assert outcome.failed == []
    return contents(out)


@pytest.mark.slow
def test_a_group_on_two_workers_has_the_bytes_of_one_process(
    night: Night, alone: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of those who joined is killed over frames; the worker of the command, over the stack."""
    monkeypatch.setattr(lend, "WORKER_BYTES", 2**20)
    monkeypatch.setattr(lend, "THREAD_BYTES", 2**20)
    out, killed, over = tmp_path / "out", dict[str, int](), threading.Event()
    victims: dict[str, Callable[[int, list[int]], int | None]] = {
        FRAMES: lambda own, joined: joined[0] if joined else None,
        STACK: lambda own, joined: own if joined else None,
    }

    def kill() -> None:
        while not over.wait(0.05):
            for name, choose in victims.items():
                work = out / ".campaign" / "work" / name
                if name in killed or not any(work.glob(".gdask/*/*/complete")):
                    continue
                own, joined = workers_of(work)
                if own and (victim := choose(own, joined)):
                    os.kill(victim, signal.SIGKILL)
                    killed[name] = victim

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        options = Options(
            (str(night.folder / "raw"),), str(out), cluster="processes:2", only=is_of_target
        )
        outcome = run_campaign(options, print)
    finally:
        over.set()
        thread.join()
    assert outcome.failed == [] and killed.keys() == victims.keys()
    assert contents(out) == alone
    found = {one["job"]: one for one in records.all_records(out)}
    assert found[FRAMES]["tries"][-1]["shared"] and not found[STACK]["tries"][-1]["shared"]
    log = next(out.rglob(f"{FRAMES}.log")).read_text()
    assert "fullest of 2 workers" in log
    time.sleep(1)
    assert not [one for one in psutil.process_iter(["cmdline"]) if str(out) in str(one.info)]


def workers_of(work: Path) -> tuple[int, list[int]]:
    """Give the process that a job's command belongs to, and worker processes of others for it."""
    own, workers = 0, []
    for one in psutil.process_iter(["cmdline", "cwd", "ppid"]):
        words = " ".join(one.info["cmdline"] or ())
        if one.info["cwd"] == str(work) and "gdask.cli.reduce" in words:
            own = one.info["ppid"]
        elif "dask_worker" in words and "--death-timeout" in words:
            workers.append(one)
    return own, [one.pid for one in workers if one.info["ppid"] != own]
