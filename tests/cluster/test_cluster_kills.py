"""SIGKILL of any process of a reduction at seeded moments: the same command again, same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from distributed import Client
from test_cluster import IMAGE, planes

BIN = Path(sys.executable).parent
PARAMETERS = ["-p", "prepare:bad_wcs=fix", "skyCorrect:offset_sky=False"]
SCHEDULER = "scheduler.json"


def command(night: object, cluster: str, *options: str) -> subprocess.Popen:
    return subprocess.Popen(
        [BIN / "reduce", *night.sequence, *PARAMETERS, "--cluster", cluster, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    """Give what a command printed; it must end within a time that a hung one would not."""
    try:
        return process.communicate(timeout=600)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"hangs: {process.communicate()[0][-2000:]}") from None


def complete_phases() -> int:
    return len(list(Path(".gdask").glob("*/*/complete")))


def wait_for(phases: int, process: subprocess.Popen, more: float) -> None:
    """Wait until `phases` are complete, and `more` seconds; or the command has ended."""
    while complete_phases() < phases and process.poll() is None:
        time.sleep(0.05)
    end = time.monotonic() + more
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.05)


def assert_same_bytes(reduced: Path) -> None:
    found, expected = planes(IMAGE), planes(reduced / IMAGE)
    assert (
        found.keys() == expected.keys()
        and [key for key in found if found[key] != expected[key]] == []
    )
    assert [
        path.name for path in Path().iterdir() if path.name.endswith(".part")
    ] == [] and not Path(".gdask").exists()


@contextmanager
def cluster() -> Iterator[tuple[subprocess.Popen, list[subprocess.Popen]]]:
    """Start a scheduler and two workers with nannies, each a process of its own."""
    Path(SCHEDULER).unlink(missing_ok=True)
    quiet = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "env": os.environ | {"DASK_LOGGING__DISTRIBUTED": "critical"},
    }
    where = ["--scheduler-file", SCHEDULER, "--host", "127.0.0.1", "--no-dashboard"]
    python = [sys.executable, "-m"]
    scheduler = subprocess.Popen(
        [*python, "distributed.cli.dask_scheduler", *where, "--port", "0"], **quiet
    )
    nannies = [
        subprocess.Popen(
            [
                *python,
                "distributed.cli.dask_worker",
                *where,
                "--nthreads",
                "1",
                "--death-timeout",
                "20",
            ],
            **quiet,
        )
        for _ in range(2)
    ]
    processes = [scheduler, *nannies]
    try:
        while not Path(SCHEDULER).exists():
            time.sleep(0.1)
        # dask does not start a worker anew that was killed while it began.
        with Client(scheduler_file=SCHEDULER, timeout=60) as client:
            client.wait_for_workers(len(nannies), 120)
        yield scheduler, nannies
    finally:
        family = [
            child
            for process in processes
            if process.poll() is None
            for child in psutil.Process(process.pid).children(recursive=True)
        ]
        for process in processes:
            process.kill()
            process.wait()
        for child in family:
            with_signal(child, signal.SIGKILL)


def with_signal(process: psutil.Process, number: int) -> bool:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


def workers_of(nannies: list[subprocess.Popen]) -> list[psutil.Process]:
    """Give the workers: Python children of the nannies, without multiprocessing's helpers."""
    children = [
        child
        for nanny in nannies
        if nanny.poll() is None
        for child in psutil.Process(nanny.pid).children()
    ]
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def victims(
    kind: str,
    client: subprocess.Popen,
    scheduler: subprocess.Popen,
    nannies: list[subprocess.Popen],
) -> list[psutil.Process]:
    if kind in ("worker", "workers"):
        return workers_of(nannies)[: 1 if kind == "worker" else None]
    one = {"client": client, "scheduler": scheduler, "nanny": nannies[0]}[kind]
    return [psutil.Process(one.pid)] if one.poll() is None else []


def test_a_command_that_is_killed_goes_on(calibrated: Path, reduced: Path, night: object) -> None:
    first = command(night, "threads")
    wait_for(1, first, random.Random(1).uniform(0, 1.5))
    first.kill()
    finish(first)
    assert not Path(IMAGE).exists() and complete_phases() >= 1
    again = command(
        night, "threads:1", "--memory", "1500MB"
    )  # elsewhere, with less: the same checkpoints
    assert "already on disk, continuing from there" in finish(again) and again.returncode == 0
    assert_same_bytes(reduced)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["worker", "workers", "scheduler", "client", "nanny"])
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_whatever_is_killed(
    calibrated: Path, reduced: Path, night: object, kind: str, seed: int
) -> None:
    """A kill at a seeded moment of a seeded phase.

    Where the command ends over it, a new cluster and the same command follow.
    """
    moment = random.Random(f"{kind} {seed}")
    with cluster() as (scheduler, nannies):
        first = command(night, SCHEDULER)
        wait_for(moment.randrange(4), first, moment.uniform(0.5, 4))
        killed = sum(
            with_signal(process, signal.SIGKILL)
            for process in victims(kind, first, scheduler, nannies)
        )
        printed = finish(first)
    assert killed, f"nothing was there to be killed any more: {printed[-1000:]}"
    if kind in ("worker", "nanny", "workers"):
        assert first.returncode == 0, printed[
            -3000:
        ]  # the others take over, or nannies start new ones
    elif first.returncode:
        assert "Traceback" not in printed, printed[-3000:]
        with cluster():
            again = command(night, SCHEDULER)
            printed = finish(again)
        assert again.returncode == 0, printed[-3000:]
    assert_same_bytes(reduced)
