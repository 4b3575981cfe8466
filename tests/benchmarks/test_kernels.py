"""The table of kernels: each case runs or says what it misses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import kernels


@pytest.mark.parametrize("name", [name for name in kernels.CASES if "tiles" not in name])
def test_each_case_makes_its_pixels(name: str) -> None:
    try:
        call, pixels = kernels.CASES[name](64)
    except ImportError as missing:
        pytest.skip(str(missing))
    call()
    assert pixels in (64 * 64, 32 * 32)


def test_a_row_has_speed_and_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--only", "median, minmax", "--side", "64", "--json", str(tmp_path / "rows.json")]
    assert kernels.main(words) == 0
    row = json.loads((tmp_path / "rows.json").read_text())["combine: 9, median, minmax"]
    assert row["mpix_per_s"] > 0.01 and row["peak_mb"] >= 0 and not row["why"]
    assert "combine: 9, median, minmax" in capsys.readouterr().out


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    figures = kernels.measure("  SWarp, with weights", 64)
    assert math.isnan(figures.mpix_per_s) and "SWarp" in figures.why
