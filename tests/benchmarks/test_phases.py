"""Figures of commands and phases, their names, and two versions beside each other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks import phases


def test_figures_names_medians_and_ratios() -> None:
    phase = {"name": "phase 1", "seconds": 2.0, "user": 1.0, "system": 0.5, "memory": 2e8}
    phase |= {"read_per_raw": 3.0, "written_per_raw": 0.5}
    account = {"phases": [phase], "read_per_raw": 4.0, "written_per_raw": 1.0}
    taken = {"name": "science", "seconds": 5.0, "user": 3.0, "system": 1.0, "memory": 3e8}
    figures = phases.figures_of(taken | {"account": account})
    assert figures["science"] == {"cpu": 4.0, "wall": 5.0, "peak": 3e8, "read": 4.0, "written": 1.0}
    assert figures["science phase 1"]["cpu"] == 1.5
    older = phases.figures_of(taken | {"user": 7.0})  # without an account
    assert list(older) == ["science"] and "read" not in older["science"]
    slower = phases.figures_of(taken | {"seconds": 9.0, "account": account})
    assert phases.medians_of([figures, slower, slower])["science"]["wall"] == 9.0
    assert phases.asv_names(figures)["peakmem_science_phase_1"] == 2e8
    whole, part = phases.table(figures, older).splitlines()[2:]
    assert whole.endswith("| 8.00 | 5.00 | 300 | 2.00 | 1.00 |")
    assert part == "| science phase 1 | 1.50 | 2.00 | 200 | 3.0 | 0.5 |  |  |  |  |  |"


def test_a_night_is_measured(night: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    phases.main([*night.flat_on, *night.flat_off, "--repeat", "1", "--json", "x"])
    printed = capsys.readouterr().out
    assert "| flat phase 1 | " in printed and sys.executable not in printed
    assert '"time_flat_phase_1"' in Path("x").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
