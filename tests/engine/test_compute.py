"""Computes: shared work is done once; progress is shown; reports are written."""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
from gdask.cluster import Usage, connect

from gdask import GdaskError, logutils
from gdask.cli import main
from gdask.engine import compute as compute_module
from gdask.engine.account import recorded
from gdask.engine.compute import compute

CALLS: list[int] = []


def _level(block: np.ndarray) -> np.ndarray:
    CALLS.append(1)
    return np.array([[block.mean()]])


def _less(block: np.ndarray, *levels: np.ndarray) -> np.ndarray:
    return block - sum(level.item() for level in levels)


def test_what_results_share_is_computed_once() -> None:
    frames = [da.from_array(np.full((4, 4), value), chunks=4) for value in (1.0, 2.0, 3.0)]
    levels = [
        frame.map_blocks(_level, chunks=((1,), (1,)), dtype=float, meta=np.empty((0, 0)))
        for frame in frames
    ]
    results = [
        frame.map_blocks(_less, *levels, dtype=float, chunks=((4,), (4,)), meta=np.empty((0, 0)))
        for frame in frames
    ]
    CALLS.clear()
    values = compute(results, "a test")
    assert [value[0, 0] for value in values] == [-5.0, -4.0, -3.0]
    assert len(CALLS) == 3


# Progress --------------------------------------------------------------------------------------


def _writes(block: np.ndarray, path: str) -> np.ndarray:
    with open(path, "wb") as file:
        file.write(bytes(7_000_000))
    with open(path, "rb", buffering=0) as file:
        file.read(3_000_000)
    time.sleep(0.7)
    return block


def test_without_a_terminal_lines_of_the_log_say_how_far_it_is(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Phase, share, bytes, memory against the budget; no control characters anywhere."""
    monkeypatch.setattr(compute_module, "LOG_INTERVAL", 0.0)
    caplog.set_level(logging.INFO, "gdask")
    array = da.arange(2, chunks=1).map_blocks(
        _writes, path=str(tmp_path / "x"), dtype=int, meta=np.empty(0, int)
    )
    with connect("threads:1", memory=3 * 2**30):
        compute([array], "phase 2: 5 frames")
    *under_way, last = [
        record.message for record in caplog.records if record.message.startswith("phase 2")
    ]
    assert under_way and all(
        line.startswith("phase 2: 5 frames: ") and "of 3.0 GiB used" in line for line in under_way
    )
    assert "50 % of " in " ".join(under_way)
    assert "s, read 6 MB, wrote 14 MB, CPU 0." in last and last.endswith(" of 3.0 GiB used")
    out, err = capfd.readouterr()
    assert not set("\r\x1b\b") & set(out + err + caplog.text)


def test_on_a_terminal_a_bar_shows_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setitem(logutils._SCREEN, "level", logging.INFO)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    with compute_module.progress_display(
        "phase 3: 5 frames", "http://127.0.0.1:1/status"
    ) as display:
        display.count(3, 4)
        display.show(Usage(2_000_000_000, 30_000_000, 2**30, 2**31, 4))
        time.sleep(0.3)
    shown = sys.stdout.getvalue()
    for part in (
        "phase 3: 5 frames",
        "75%",
        "read 2.0 GB, wrote 30 MB, 1.0 of 2.0 GiB used in the fullest of 4 workers",
        "http://127.0.0.1:1/status",
    ):
        assert part in shown


def test_bytes_and_memory_of_workers_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cloudpickle

    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "gdask")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        with recorded([]) as recorder, connect("processes:1", memory=2**30):
            array = da.arange(2, chunks=1).map_blocks(
                _writes, path=str(tmp_path / "x"), dtype=int, meta=np.empty(0, int)
            )
            compute([array], "phase 1: a test")
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    (line,) = [
        record.message
        for record in caplog.records
        if record.message.startswith("phase 1: a test, ")
    ]
    assert "wrote 14 MB" in line and " of 1.0 GiB used" in line and "0.0 of" not in line
    assert "1 worker so far" in caplog.text
    (phase,), whole = recorder.phases, recorder.account()
    assert phase.workers == 1 and whole.written >= phase.written >= 14_000_000
    assert phase.user + phase.system > 0 and whole.user > phase.user  # the client's is in it
    assert whole.memory >= phase.memory > 200_000_000  # of client and worker together


# Reports ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["threads", "processes:1"])
def test_a_performance_report_is_written(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bokeh")
    monkeypatch.chdir(tmp_path)
    with connect(where, report="report.html"):
        compute([da.arange(4, chunks=2) + 1], "a test")
    page = Path("report.html").read_text()
    assert "<html" in page and "bokeh" in page.lower() and len(page) > 10_000


def test_a_report_that_cannot_be_made_is_refused_before_anything_runs(
    workspace: Path, night: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import importlib.util

    line = ["reduce", night.science[0], "-r", "checkWCS", "--performance-report"]
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, real=importlib.util.find_spec: None if name == "bokeh" else real(name),
    )
    assert (
        main([*line, "r.html"]) == 2
        and "needs bokeh: pip install 'gdask[dashboard]'" in capsys.readouterr().err
    )
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, real=importlib.util.find_spec: name
    )
    with (
        pytest.raises(GdaskError, match="no/r.html: cannot be written"),
        connect("threads", report="no/r.html"),
    ):
        pass
    assert sorted(os.listdir()) == ["dragonsrc", "raw", "reduce.log"]
