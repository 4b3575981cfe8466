"""Tests of compiling ahead: the list is complete, in the background nothing is left over."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import kernel_list
from gdask import cli
from gdask.engine import warm_up
from gdask.kernels.compiled import by_name, types_of, types_text
from gdask.reduction.recipe_library import kernels_needed_by, libraries, recipes_of

DUE = "the list of compiled functions is out of date: python -m benchmarks.kernel_list"


def test_the_list_names_functions_types_and_recipes_that_there_are() -> None:
    listed = warm_up.listed()
    assert len(listed) == len(set(listed)) > 20
    for use in listed:
        assert hasattr(by_name(use.module, use.function), "dispatcher"), DUE
        assert types_text(types_of(use.types)) == use.types, DUE
    modules = [module.__name__.rpartition(".")[2] for module in libraries()]
    for module in modules:
        assert warm_up.listed(module), f"{module}: {DUE}"
    assert warm_up.listed("no_such_recipe") == []


def test_header_recipes_need_no_compiled_code() -> None:
    for module in libraries():
        for name, recipe in recipes_of(module).items():
            needed = kernels_needed_by(recipe, module.TAGS)
            assert needed == ("" if name == "check_wcs" else module.__name__.rpartition(".")[2])


def test_after_a_warm_up_the_tutorials_compile_nothing(tmp_path: Path) -> None:
    """Both instruments' tutorials, on small nights; what they call is on the list."""
    assert cli.main(["warm-up", "-q"]) == 0
    kernel_list.simulate(tmp_path)
    reductions = [each for each in kernel_list.REDUCTIONS if "ultradeep" not in each.more]
    for reduction in reductions:
        account = kernel_list.account_of(reduction, tmp_path)
        listed = set(warm_up.listed(reduction.module))
        assert [use for use in account.used if use not in listed] == [], DUE
        assert account.compilations == 0, f"{reduction.module}: {DUE}"


def test_warm_up_fills_a_folder_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two = [use for use in warm_up.listed() if use.module.endswith(("projection", "variance"))][:2]
    only = kernel_list.as_toml({use: ["gsaoi_flat"] for use in two})
    (tmp_path / "list.toml").write_text(only)
    monkeypatch.setattr(warm_up, "LIST", tmp_path / "list.toml")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "to be restored")

    def compile_here(*_: object) -> list[object]:
        """Processes of their own would read the whole list. Other tests may have compiled them."""
        for use in two:
            kernel = by_name(use.module, use.function)
            monkeypatch.setattr(kernel, "_dispatcher", None)
            warm_up.compile_one(use)
        return []

    monkeypatch.setattr(warm_up, "start_processes", compile_here)
    folder = str(tmp_path / "code")
    assert cli.main(["warm-up", "--check", "--folder", folder]) == 1
    assert "0 of 2" in capsys.readouterr().out
    assert cli.main(["warm-up", "--folder", folder, "-j", "2"]) == 0
    said = capsys.readouterr().out
    assert "2 of 2 functions are compiled" in said and f"NUMBA_CACHE_DIR={folder}" in said
    assert cli.main(["warm-up", "--check", "-q", "--folder", folder]) == 0
    assert cli.main(["warm-up", "-j", "0"]) == 2
    (tmp_path / "file").touch()
    assert cli.main(["warm-up", "--folder", str(tmp_path / "file")]) == 1
    assert "file" in capsys.readouterr().err


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_processes_in_the_background_end_with_what_started_them(tmp_path: Path) -> None:
    """At the end of the block, and when the process is killed; no claim is left."""
    code = """
import sys, time
from gdask.engine import warm_up
started = warm_up.start_processes
def start(*arguments):
    processes = started(*arguments)
    print(*(process.pid for process in processes), flush=True)
    return processes
warm_up.start_processes = start
with warm_up.in_background("gsaoi_image"):
    time.sleep(float(sys.argv[1]))
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def started(seconds: float) -> tuple[subprocess.Popen[str], list[int]]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(seconds)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        return process, [int(pid) for pid in process.stdout.readline().split()]

    process, pids = started(3.0)
    assert len(pids) == warm_up.process_count() and process.wait() == 0
    assert not any(alive(pid) for pid in pids)
    assert not list(tmp_path.glob("*/*.claim"))
    process, pids = started(600.0)
    time.sleep(1.0)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in pids)


def test_nothing_is_started_where_all_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(warm_up, "start_processes", lambda *given: started.append(given) or [])
    monkeypatch.setattr(warm_up, "missing", lambda uses: [])
    with warm_up.in_background("gsaoi_image"), warm_up.in_background(""):
        pass
    assert started == []
    monkeypatch.setattr(warm_up, "missing", lambda uses: list(uses))
    with warm_up.in_background("gsaoi_image"):
        time.sleep(0.2)
    assert len(started) == 1
