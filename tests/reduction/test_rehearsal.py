"""The memory of a whole recipe is checked before its first pixel."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from gdask import GdaskError, Reduce
from gdask.engine import compute, memory
from gdask.engine.memory import parse_bytes
from gdask.model import MemoryRefused, use_settings
from gdask.reduction import rehearsal


def _reduction(night: Any, kind: str, allowed: int | None = None) -> Reduce:
    reduction = Reduce()
    if kind == "flat":
        reduction.files.extend([*night.flat_on, *night.flat_off])
    else:
        reduction.files.extend(night.sequence)
        reduction.uparms = {"prepare:bad_wcs": "fix", "skyCorrect:offset_sky": False}
    reduction.memory = allowed
    return reduction


@contextmanager
def _projections(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int, float]]]:
    """Collect phase, tasks and projected bytes of each call of `memory.fit`."""
    seen: list[tuple[str, int, float]] = []
    fit = memory.fit

    def recording(
        graph: Any, available: float, threads: int, what: str, *rest: Any, **more: Any
    ) -> Any:
        found = memory.project(graph, 1)
        seen.append((what.partition(":")[0], found.tasks, found.peak))
        return fit(graph, available, threads, what, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(memory, "fit", recording)
        yield seen


@pytest.mark.parametrize(("kind", "phases"), [("flat", 1), ("science", 5)])
def test_a_rehearsal_projects_what_the_run_projects(
    calibrated: Path, night: Any, kind: str, phases: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each phase, before the first pixel: peaks within a tenth of those of the run itself.

    The image is as large as the headers' pointings have it; the stars shift frames by a little.
    """
    monkeypatch.setattr(memory, "is_ample", lambda frame: False)
    computed = compute.COMPUTES["count"]
    counts: list[int] = []
    with _projections(monkeypatch) as seen:
        check = rehearsal.check_memory

        def counting(arrays: Any, text: str) -> None:
            counts.append(compute.COMPUTES["count"] - computed)
            check(arrays, text)

        monkeypatch.setattr(rehearsal, "check_memory", counting)
        _reduction(night, kind).runr()
    rehearsed, run = seen[:phases], seen[phases:]
    assert counts == [0] * phases
    assert [name for name, _, _ in rehearsed] == [name for name, _, _ in run]
    assert [name for name, _, _ in run] == [f"phase {n}" for n in range(1, phases + 1)]
    small = 2e6  # sums of the inputs, which only the run computes
    for (name, _, before), (_, _, then) in zip(rehearsed, run, strict=True):
        print(f"{name}: {before / 1e6:.1f} MB rehearsed, {then / 1e6:.1f} MB run")
        assert abs(before - then) < 0.1 * then + small, name


@pytest.mark.parametrize("kind", ["flat", "science"])
def test_more_memory_is_never_worse_and_advice_works(
    calibrated: Path, night: Any, kind: str
) -> None:
    """Budgets from nothing to plenty: refused before any compute up to one, made from there on."""
    base = max(memory.PROCESS_BYTES, psutil.Process().memory_info().rss)
    refused, advice, computed = [], "", compute.COMPUTES["count"]
    for extra in (-50e6, 0.0, 1e6, 3e6, 6e6, 10e6, 20e6, 40e6, 100e6, 200e6, 500e6):
        try:
            _rehearsed(_reduction(night, kind, int(base + extra)))
        except MemoryRefused as error:
            refused.append(True)
            advice = re.search(r"give --memory (\S+)", str(error))[1]
        else:
            refused.append(False)
    assert refused == sorted(refused, reverse=True) and refused[0] and not refused[-1]
    assert compute.COMPUTES["count"] == computed
    _reduction(night, kind, parse_bytes(advice)).runr()


def _rehearsed(reduction: Reduce) -> None:
    """Run a reduction up to its first compute."""

    class Begun(Exception):
        pass

    def stop(arrays: Any, text: str) -> None:
        raise Begun

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gdask.reduction.phases.compute", stop)
        try:
            reduction.runr()
        except Begun:
            return


def test_a_refusal_leaves_nothing_behind(calibrated: Path, night: Any) -> None:
    before = sorted(path.name for path in calibrated.iterdir())
    with pytest.raises(MemoryRefused, match=r"phase \d.*give --memory"):
        _reduction(night, "science", int(memory.PROCESS_BYTES)).runr()
    after = {path.name for path in calibrated.iterdir()} - {"reduce.log", ".gdask"}
    assert sorted(after) == [name for name in before if name not in ("reduce.log", ".gdask")]
    assert list(calibrated.glob(".gdask/*/rehearsal-*")) == []


def test_a_recipe_that_cannot_be_rehearsed_is_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes on with small results that the rehearsal does not know: the run itself decides."""

    def odd(run: Any, frames: Any) -> None:
        raise GdaskError("no stars")

    with caplog.at_level(logging.DEBUG, "gdask"), use_settings(memory=10**9):
        rehearsal.rehearse(odd, (), scratch=str(tmp_path), databases=())
    assert "memory of 0 phases checked, not of more: no stars" in caplog.text
