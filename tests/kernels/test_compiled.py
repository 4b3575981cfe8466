"""Tests of how compiled functions are found on disk, shared by processes, and announced."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dask.base import tokenize

from gdask.kernels import compiled, compiled_files
from gdask.kernels.compiled import ACCOUNT, Account, Compiled, njit, types_of, types_text
from gdask.kernels.compiled_files import Use
from gdask.kernels.geometry import projection

#: A module of compiled functions that call one another, and what a process does with it.
MODULE = """
from gdask.kernels.compiled import njit

@njit(cache=True, nogil=True)
def inner(a):
    return a * 2

@njit(cache=True, nogil=True)
def doubled(values):
    total = values[0]
    for n in range(1, values.size):
        total += inner(values[n])
    return total
"""
CALLS = """
import json, sys
import numpy as np
import shared
from gdask.kernels.compiled import ACCOUNT
kinds = sys.argv[1:]
results = {kind: float(shared.doubled(np.arange(5).astype(kind))) for kind in kinds}
print(json.dumps([results, [list(use) for use in ACCOUNT.compiled]]))
"""


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Give a folder with a module of compiled functions and an empty folder for their code."""
    (tmp_path / "shared.py").write_text(MODULE)
    return tmp_path


def start(folder: Path, *kinds: str) -> subprocess.Popen[str]:
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(folder / "code"),
        "PYTHONPATH": str(folder),
    }
    return subprocess.Popen(
        [sys.executable, "-c", CALLS, *kinds], env=environment, stdout=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[dict[str, float], list[list[str]]]:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    results, compiled_there = json.loads(out)
    return results, compiled_there


def test_processes_that_begin_together_share_the_work_and_find_the_right_code(
    shared: Path,
) -> None:
    """Each of the functions and types is compiled once, whoever comes first."""
    orders = (("f8", "i8", "f4"), ("i8", "f4", "f8"), ("f4", "f8", "i8"), ("f8", "f4", "i8"))
    together = [ended(process) for process in [start(shared, *order) for order in orders]]
    for results, _ in together:
        assert results == {"f8": 20.0, "i8": 20.0, "f4": 20.0}
    made = sorted(tuple(use) for _, uses in together for use in uses)
    assert len(made) == len(set(made)) == len(list((shared / "code").glob("*/*.nbc")))
    assert {use[1] for use in made} == {"doubled", "inner"}
    assert not list((shared / "code").glob("*/*.claim")) + list((shared / "code").glob("*/*.part"))
    assert ended(start(shared, "f8", "f4", "i8")) == ({"f8": 20.0, "f4": 20.0, "i8": 20.0}, [])


def test_what_is_kept_is_loaded_without_what_compiling_needs(shared: Path) -> None:
    """numba's tables of types and of code for arrays take 0.25 s; a second type still compiles."""
    ended(start(shared, "float64"))
    code = CALLS + (
        "assert 'numba.np.arraymath' not in sys.modules\n"
        "assert shared.doubled(np.arange(5, dtype='i2')) == 20\n"
        "assert 'numba.np.arraymath' in sys.modules\n"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(shared / "code"), "PYTHONPATH": str(shared)}
    done = subprocess.run(
        [sys.executable, "-c", code, "float64"], env=environment, capture_output=True, check=True
    )
    assert json.loads(done.stdout)[0] == {"float64": 20.0}


def test_what_is_damaged_or_given_up_is_compiled_again(shared: Path) -> None:
    ended(start(shared, "f8"))
    kept = sorted((shared / "code").glob("*/shared.doubled*.nbc"))
    kept[0].write_bytes(kept[0].read_bytes()[:-100])
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    claim = kept[0].with_name(f"{kept[0].name}.claim")
    claim.write_text(f"{compiled_files.host()} {gone.pid}")  # of a process that was killed
    results, made = ended(start(shared, "f8"))
    assert results == {"f8": 20.0} and [use[1] for use in made] == ["doubled"]
    assert not claim.exists()


def test_where_nothing_can_be_written_it_is_compiled_for_the_process(shared: Path) -> None:
    (shared / "code").write_text("a file and no folder")
    assert ended(start(shared, "f8"))[0] == {"f8": 20.0}


def test_a_claim_of_another_host_is_waited_for_only_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled_files, "LONGEST_WAIT", 0.05)
    use = Use("gdask.kernels.none", "f", "int64")
    assert compiled_files.claim_or_wait(use) is None and compiled_files.is_claimed(use) is False
    (claim,) = tmp_path.glob("*/*.claim")
    claim.write_text("another-host 1")
    assert compiled_files.is_claimed(use)
    assert compiled_files.claim_or_wait(use) is None  # taken over
    compiled_files.write_kept(use, b"code")
    compiled_files.release(use)
    assert compiled_files.read_kept(use) == b"code" and compiled_files.is_kept(use)
    assert not list(tmp_path.glob("*/*.claim"))


def test_the_folder_is_named_after_sources_versions_and_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert compiled_files.folder() == tmp_path / f"gdask-{compiled_files.version()}"
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")  # numba reads it when it is imported
    code = "from gdask.kernels.compiled_files import version; print(version())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() != compiled_files.version()
    monkeypatch.delenv("NUMBA_CPU_NAME")
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled_files, "_is_writable", lambda path: False)
    assert compiled_files.folder().parent == tmp_path / "gdask"


def test_types_are_read_as_they_were_written() -> None:
    from numba import typeof, types

    frozen = np.zeros((2, 3), np.float32)
    frozen.setflags(write=False)
    point = projection.Geometry(1.0, 1.0, (1.0, 2.0), (3.0,), 4.0, 5.0, 6.0)
    values = (frozen, np.zeros(3, bool), 1, 2.5, True, (1, 2.0), (1, 1), point[:2], None)
    kinds = tuple(typeof(value) for value in values)
    assert types_of(types_text(kinds)) == kinds
    named = (types.NamedTuple((types.int64, types.float32), Use),)
    text = types_text(named)
    assert text == "named('gdask.kernels.compiled_files', 'Use', int64, float32)"
    assert types_of(text) == named
    assert types_of("") == ()
    for wrong in ("open('x')", "int64.name", "unknown"):
        with pytest.raises(ValueError, match="not the type"):
            types_of(wrong)


def test_compiled_functions_travel_by_name_and_know_no_outer_variables() -> None:
    kernel: Any = projection.project
    assert isinstance(kernel, Compiled) and pickle.loads(pickle.dumps(kernel)) is kernel
    assert tokenize(kernel) == tokenize(projection.project) != tokenize(projection.deproject)
    outer = np.zeros(1)
    with pytest.raises(TypeError, match="outer variables"):
        njit(nogil=True)(lambda: outer)


def test_numba_is_imported_by_the_first_call_of_many_points() -> None:
    code = """
import sys
import numpy as np
from gdask.kernels.geometry.projection import tangent_sky
few = tangent_sky(1.0, 2.0, 200.0, -43.0)
assert "numba" not in sys.modules
many = tangent_sky(np.ones(20), np.full(20, 2.0), 200.0, -43.0)
assert "numba" in sys.modules and (few[0], few[1]) == (many[0][0], many[1][0])
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_long_compilation_is_announced_once_and_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="gdask")
    account = Account()
    with account.counted():
        pass
    account.report()
    assert caplog.records == [] and account.seconds == 0
    monkeypatch.setattr(compiled, "ANNOUNCED_AFTER", 0.0)
    for _ in range(2):
        with account.counted():
            for _ in range(1000):
                if caplog.records:
                    break
                compiled_files.time.sleep(0.01)
    account.report()
    first, last = (record.getMessage() for record in caplog.records)
    assert first.startswith("compiling for this machine, once (")
    assert last.startswith("compiling for this machine, once: ")
    account.report()
    assert len(caplog.records) == 2


def test_what_a_process_calls_is_noted_in_order() -> None:
    code = """
import numpy as np
from gdask.kernels.compiled import ACCOUNT
from gdask.kernels.geometry.projection import tangent_plane, tangent_sky
tangent_sky(np.ones(20), np.ones(20), 200.0, -43.0)
tangent_plane(np.ones(20), np.ones(20), 0.0, 0.0)
tangent_sky(np.ones(30), np.ones(30), 200.0, -43.0)
print(*(use.function for use in ACCOUNT.used))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["_deproject_points", "_project_points"]
    assert isinstance(ACCOUNT, Account)


@njit(nogil=True, borrows=True)
def add_rows(rows: np.ndarray, out: np.ndarray) -> None:
    for k in range(rows.shape[0]):
        row = rows[k]
        for i in range(out.size):
            out[i] += row[i]


@njit(nogil=True, borrows=True)
def make_row(rows: np.ndarray) -> float:
    made = np.empty(rows.shape[1])
    made[0] = rows[0, 0]
    return float(made[0])


def test_functions_that_borrow_arrays_leave_them_as_they_are_and_make_none() -> None:
    from numba.core.errors import TypingError

    rows, out = np.arange(12.0).reshape(3, 4), np.zeros(4)
    held = sys.getrefcount(rows)
    for _ in range(100):
        add_rows(rows, out)
    assert (out == 100 * rows.sum(axis=0)).all()
    assert sys.getrefcount(rows) == held
    with pytest.raises(TypingError):
        make_row(rows)
