"""Faults of workers and machines: the run goes on, or says in a line what happened.

Workers run out of memory or stand still, disks fill, hosts are cut off.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cloudpickle
import dask
import dask.array as da
import distributed
import numpy as np
import pytest
from gdask.cluster import connect
from gdask.cluster.watch import WorkerWatch
from helpers import loopback_cluster
from slurm_node import until
from test_cluster_kills import assert_same_bytes, command, finish, wait_for

from gdask import GdaskError
from gdask.engine.compute import compute

IS_ROOT = os.geteuid() == 0
SELF = sys.modules[__name__]


@contextmanager
def workers(folder: Path, text: str) -> Iterator[distributed.Client]:
    """Start a cluster from a profile; functions of this file reach its workers."""
    (folder / "p.yaml").write_text(f"kind: processes\n{text}\n")
    cloudpickle.register_pickle_by_value(SELF)
    try:
        with (
            dask.config.set({"distributed.scheduler.allowed-failures": 1}),
            connect(str(folder / "p.yaml")) as client,
        ):
            yield client
    finally:
        cloudpickle.unregister_pickle_by_value(SELF)


def hold(block: np.ndarray, size: int) -> np.ndarray:
    """Return the block after `size` bytes were in use for two seconds."""
    held = np.ones(size, np.uint8)
    time.sleep(2)
    return block + held[0] - 1


def hang_once(block: np.ndarray, marker: str) -> np.ndarray:
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return block
    time.sleep(3600)
    return block


def rest(block: np.ndarray) -> np.ndarray:
    time.sleep(2)
    return block


def hang(block: np.ndarray) -> np.ndarray:
    time.sleep(3600)
    return block


NUMBERS, EMPTY = da.arange(4, chunks=2), np.empty(0, int)


# Workers that stand still


def test_a_worker_that_stands_still_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with workers(tmp_path, "workers: 1\npatience: 6"):
        (result,) = compute(
            [NUMBERS.map_blocks(hang_once, marker=str(tmp_path / "hung"), dtype=int, meta=EMPTY)],
            "phase 1: a test",
        )
    assert result.tolist() == [0, 1, 2, 3] and (tmp_path / "hung").exists()
    assert "has ended no task for 6 s: it is started anew" in caplog.text


@pytest.mark.slow
def test_a_task_that_hangs_everywhere_ends_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with workers(tmp_path, "workers: 1\npatience: 4"), pytest.raises(GdaskError) as caught:
        compute([NUMBERS.map_blocks(hang, dtype=int, meta=EMPTY)], "phase 2: a test")
    assert "phase 2: a test: 2 times a worker ended no task for 4 s (" in str(
        caught.value
    ) and "\n" not in str(caught.value)


def test_a_worker_that_waits_for_data_is_replaced_soon(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker that has them stands still; patience for tasks that run is much longer."""
    monkeypatch.setattr("gdask.cluster.watch.DATA_PATIENCE_S", 3.0)
    place = {"host": "127.0.0.1", "dashboard_address": None}
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, **place) as cluster,
        distributed.Client(cluster) as client,
    ):
        holder, other = client.scheduler_info()["workers"]
        pid = client.run(os.getpid)[holder]
        data = client.submit(np.zeros, 10, workers=[holder], pure=False)
        distributed.wait(data)
        with WorkerWatch(client, lambda usage: None, lambda: None, 900.0, 60.0) as watch:
            os.kill(pid, signal.SIGSTOP)
            try:
                length = client.submit(len, data, workers=[other], allow_other_workers=True)
                until(lambda: watch.replaced, 60)
            finally:
                os.kill(pid, signal.SIGCONT)
            assert length.result(60) == 10
    assert f"worker {other} has waited for data of others for 3 s" in caplog.text


def test_a_run_without_workers_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers have left, and nobody starts others."""
    monkeypatch.chdir(tmp_path)
    with loopback_cluster() as cluster:
        (tmp_path / "p.yaml").write_text(
            f"kind: scheduler\nwait: 3\naddress: {cluster.scheduler_address}\n"
        )
        with connect(str(tmp_path / "p.yaml")):
            threading.Timer(1.0, cluster.scale, (0,)).start()
            with pytest.raises(
                GdaskError,
                match=(
                    "phase 5: a test: no worker has been there for 3 s; the same command again "
                    "goes on"
                ),
            ) as caught:
                compute([NUMBERS.map_blocks(rest, dtype=int, meta=EMPTY)], "phase 5: a test")
    assert "\n" not in str(caught.value)


# Memory


@pytest.mark.slow
def test_workers_that_run_out_of_memory_are_given_fewer_tasks_at_a_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tasks of 210 MB do not fit 550 MB beside the process; one does."""
    monkeypatch.chdir(tmp_path)
    with workers(tmp_path, "workers: 1\nthreads: 2\nmemory: 550MB"):
        (result,) = compute(
            [NUMBERS.map_blocks(hold, size=210_000_000, dtype=int, meta=EMPTY)], "phase 3: a test"
        )
    assert result.tolist() == [0, 1, 2, 3]
    assert (
        "ran out of memory" in caplog.text
        and "once more with 1 task at a time in each" in caplog.text
    )


@pytest.mark.slow
def test_a_task_that_never_fits_is_reported_with_phase_and_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        workers(tmp_path, "workers: 1\nthreads: 2\nmemory: 550MB"),
        pytest.raises(GdaskError) as caught,
    ):
        compute(
            [NUMBERS.map_blocks(hold, size=460_000_000, dtype=int, meta=EMPTY)], "phase 4: a test"
        )
    printed = str(caught.value)
    assert (
        printed.startswith("phase 4: a test: ")
        and "workers ran out of memory (" in printed
        and " of 550 MB held)" in printed
    )
    assert (
        "also with one task at a time" in printed and "--memory" in printed and "\n" not in printed
    )


# Disks


@pytest.mark.slow
@pytest.mark.skipif(not IS_ROOT, reason="a file system of its own needs root")
@pytest.mark.parametrize("where", ["threads", "processes:2"])
def test_a_disk_that_fills(calibrated: Path, reduced: Path, night: object, where: str) -> None:
    """The working folder's disk has room for less than a phase.

    The run ends in one line and leaves nothing half-written; with room it gives the same bytes.
    """
    disk = calibrated.parent / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", disk], check=True)
    try:
        shutil.copytree(calibrated, disk / "work", symlinks=True)
        os.chdir(disk / "work")
        first = command(night, where)
        printed = finish(first)
        assert first.returncode == 1 and "Traceback" not in printed, printed[-3000:]
        assert "No space left on device" in printed and "free space and run again" in printed
        assert not list(Path().glob("*_image.fits")) and not list(Path().rglob("*.part"))
        subprocess.run(["mount", "-o", "remount,size=400m", disk], check=True)
        again = command(night, where)
        printed = finish(again)
        assert again.returncode == 0, printed[-3000:]
        assert_same_bytes(reduced)
    finally:
        os.chdir(calibrated)
        subprocess.run(["umount", "-l", disk], check=True)


# Networks

#: `ssh HOST COMMAND` where a host is a network namespace of this machine.
SSH = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do [[ $1 == -o ]] && shift; shift; done
exec ip netns exec "$1" bash -c "$2"
"""


@contextmanager
def hosts() -> Iterator[list[str]]:
    """Give the names of two hosts with addresses of their own, 10.99.0.2 and 10.99.0.3.

    They are on a switch with this host, 10.99.0.1.
    """
    switch, names = (
        f"gdask{os.getpid() % 10000}",
        [f"gdask{os.getpid() % 10000}{letter}" for letter in "ab"],
    )
    lines = [
        f"link add {switch} type bridge",
        f"addr add 10.99.0.1/24 dev {switch}",
        f"link set {switch} up",
    ]
    for number, name in enumerate(names, 2):
        lines += [
            f"netns add {name}",
            f"link add {name} type veth peer name eth0 netns {name}",
            f"link set {name} master {switch}",
            f"link set {name} up",
            f"-n {name} addr add 10.99.0.{number}/24 dev eth0",
            f"-n {name} link set eth0 up",
            f"-n {name} link set lo up",
        ]
    try:
        for line in lines:
            subprocess.run(["ip", *line.split()], check=True, capture_output=True)
        yield names
    finally:
        for name in (*names, switch):
            subprocess.run(["ip", "link", "del", name], check=False, capture_output=True)
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def cannot() -> str:
    """Say why there can be no network namespaces here."""
    if not IS_ROOT or shutil.which("ip") is None:
        return "network namespaces need root and iproute2"
    probe = subprocess.run(
        ["ip", "netns", "add", "gdaskprobe"], capture_output=True, text=True, check=False
    )
    subprocess.run(["ip", "netns", "del", "gdaskprobe"], capture_output=True, check=False)
    return probe.stderr.strip()


@pytest.mark.slow
@pytest.mark.skipif(bool(cannot()), reason=cannot())
@pytest.mark.parametrize("phase", [1, 2])
def test_a_host_that_is_cut_off(
    calibrated: Path, reduced: Path, night: object, tmp_path: Path, phase: int
) -> None:
    """One of two hosts loses its link in the middle of a phase: the other does its work."""
    (tmp_path / "ssh").write_text(SSH)
    (tmp_path / "ssh").chmod(0o755)
    with hosts() as names:
        Path("hosts.yaml").write_text(
            f"like: ssh\nhosts: {names}\nhost: 10.99.0.1\ncommand: {tmp_path / 'ssh'}\npython: "
            f"{sys.executable}\n".replace("'", "")
        )
        running = command(night, "hosts.yaml")
        wait_for(phase, running, 1.0)
        cut = running.poll() is None
        subprocess.run(["ip", "link", "set", names[1], "down"], check=True)
        printed = finish(running)
    assert cut and running.returncode == 0, printed[-3000:]
    Path("hosts.yaml").unlink()
    assert_same_bytes(reduced)
