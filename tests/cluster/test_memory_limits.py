"""The memory that a process may use: nested control groups, `ulimit -v`, and what is said of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gdask.cluster import profiles

from gdask.engine.memory import fit
from gdask.model import GdaskError


def _process(folder: Path, groups: str, mounts: str) -> str:
    folder.mkdir()
    (folder / "cgroup").write_text(groups)
    (folder / "mountinfo").write_text(mounts)
    return str(folder)


@pytest.mark.parametrize("version", [1, 2])
def test_the_smallest_limit_of_nested_groups_is_found(tmp_path: Path, version: int) -> None:
    """SLURM sets the limit of a step's group; the groups above and below it have none."""
    name = "memory.limit_in_bytes" if version == 1 else "memory.max"
    kind, options = ("cgroup", "rw,memory") if version == 1 else ("cgroup2", "rw")
    group = tmp_path / "tree" / "slurm" / "job_7" / "step_0" / "task_0"
    group.mkdir(parents=True)
    no_limit = "9223372036854771712" if version == 1 else "max"
    for folder in (group, group.parent.parent, group.parent.parent.parent):
        (folder / name).write_text(no_limit)
    (group.parent / name).write_text("3000000000\n")
    path = "/slurm/job_7/step_0/task_0"
    groups = f"5:cpu:/\n4:memory:{path}\n0::/\n" if version == 1 else f"0::{path}\n"
    mounts = f"35 31 0:32 / {tmp_path / 'tree'} rw,relatime - {kind} {kind} {options}\n"
    limit = profiles.memory_limit(_process(tmp_path / "proc", groups, mounts))
    assert limit.size == 3e9
    assert str(group.parent / name) in limit.source


def test_in_a_container_the_mounted_group_is_the_process_s_own(tmp_path: Path) -> None:
    """The path in /proc is then that of the host, and no such folder is mounted."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "memory.max").write_text("2000000000\n")
    mounts = f"35 31 0:32 /docker/abc {tmp_path / 'tree'} rw - cgroup2 cgroup2 rw\n"
    proc = _process(tmp_path / "proc", "0::/docker/abc\n", mounts)
    assert profiles.memory_limit(proc).size == 2e9


@pytest.mark.parametrize("text", ["", "nonsense\n", "4:memory\n", "0::/../../x\n"])
def test_odd_files_leave_the_memory_of_the_machine(tmp_path: Path, text: str) -> None:
    proc = _process(tmp_path / "proc", text, "odd line\n")
    assert profiles.memory_limit(proc).source == "the memory of the machine"
    assert profiles.memory_limit(str(tmp_path / "absent")).source == "the memory of the machine"


def _told(prepare: str) -> str:
    code = (
        "import os, resource\n"
        f"{prepare}\n"
        "from gdask.cluster import memory_limit\n"
        "print(*memory_limit(), sep='|')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_ulimit_v_is_seen() -> None:
    size, source = _told("resource.setrlimit(resource.RLIMIT_AS, (3 * 10**9, 3 * 10**9))").split(
        "|"
    )
    assert source.strip() == "ulimit -v"
    assert 1e9 < float(size) <= 3e9


def test_a_real_nested_control_group_is_seen() -> None:
    """Where this machine lets a test make one (version 1, as root)."""
    root = Path("/sys/fs/cgroup/memory")
    outer = root / f"gdask_test_{os.getpid()}"
    try:
        outer.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    inner = outer / "inner"
    try:
        inner.mkdir()
        (outer / "memory.limit_in_bytes").write_text("2000000000")
        size, source = _told(
            f"open({str(inner / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))"
        ).split("|")
    finally:
        inner.rmdir()
        outer.rmdir()
    assert 1.99e9 < float(size) <= 2e9
    assert str(outer) in source


def test_a_refusal_says_where_the_budget_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    from gdask.engine import memory

    limit = profiles.MemoryLimit(1e9, "the control group (/a/b)")
    monkeypatch.setattr(memory, "memory_limit", lambda: limit)
    with pytest.raises(GdaskError, match=r"may be used, 80 % of the control group \(/a/b\); give"):
        fit({}, 0.0, 1, "phase 1")


def test_want_of_memory_is_one_line_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    from gdask import cli

    def greedy(_: object) -> int:
        raise MemoryError("Unable to allocate 8.00 EiB")

    assert cli.run_command(cli.parser_for("reduce", "text", "example"), [], greedy) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "Unable to allocate 8.00 EiB" in text and "--memory" in text
