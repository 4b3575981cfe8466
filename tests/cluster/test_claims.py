"""Claims: one process at a time, also without locks of the file system; dead ones are taken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Night

from gdask.campaign import claims
from gdask.campaign.run import owned
from gdask.campaign.survey import Options, survey
from gdask.model import GdaskError, host


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "LOOK", 0.01)


def write_claim(path: Path, where: str, pid: int, age: float) -> None:
    path.write_text(json.dumps({"host": where, "pid": pid, "owner": "somebody"}))
    os.utime(path, (time.time() - age,) * 2)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_many_that_want_a_dead_ones_claim_have_it_one_at_a_time(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "job.owner", [], []
    write_claim(path, host(), dead_pid(), 0)

    def work(number: int) -> None:
        with claims.claimed(path):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.002)
            inside.remove(number)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(40)))
    assert len(most) == 40 and max(most) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("where", "age", "is_free"), [
    ("another-host", 0, False), ("another-host", 1000, True), (host(), 0, False),
    (host(), 1000, True),
])  # fmt: skip
def test_who_lives_keeps_a_claim(tmp_path: Path, where: str, age: float, is_free: bool) -> None:
    """On another host its touches tell; on this one also whether its process exists."""
    path, stopped = tmp_path / "job.owner", threading.Event()
    write_claim(path, where, os.getpid(), age)
    threading.Timer(0.3, stopped.set).start()
    had = []
    try:
        with claims.claimed(path, stopped):
            had.append(json.loads(path.read_text())["pid"] == os.getpid())
    except KeyboardInterrupt:
        assert path.exists()
    assert bool(had) == is_free


def test_a_file_system_without_locks_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as Lustre without `-o flock`: the owner's file has to do."""
    import errno

    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    second = owned(tmp_path)
    with owned(tmp_path), pytest.raises(GdaskError, match="a run is going on there"):
        second.__enter__()


def test_many_processes_may_scan_at_a_time(night: Night, tmp_path: Path) -> None:
    """The cache that is being made by one is not torn from it by another."""
    out = tmp_path / "out"
    code = (
        "import sys; from gdask.campaign.survey import Options, survey; "
        "print(len(survey(Options((sys.argv[1],), sys.argv[2]), lambda text: None)[0].rows))"
    )
    line = [sys.executable, "-c", code, str(night.folder / "raw"), str(out)]
    runs = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for _ in range(5)]
    counts = [run.communicate()[0].strip() for run in runs]
    expected = len(survey(Options((str(night.folder / "raw"),), str(out)))[0].rows)
    assert counts == [str(expected)] * 5 and [run.returncode for run in runs] == [0] * 5
