"""The comparison of resampling engines: what the reduction is told, its rows, its speeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy import engines
from benchmarks.accuracy.cases import Case


def test_each_way_is_told_to_the_step() -> None:
    assert engines.parameters_of("default") == ()
    assert engines.parameters_of("reproject:adaptive") == (
        "resampleToCommonFrame:engine=reproject",
        "resampleToCommonFrame:interpolation=adaptive",
    )
    assert len(engines.WAYS) == 9 and set(engines.KERNELS) == set(engines.ENGINES)
    assert set(engines.KERNEL_OPTIONS) == set(engines.ENGINES)


def test_a_kernel_has_a_speed_where_its_interpolation_is_known() -> None:
    assert engines.kernel_speed("default") > 0.1
    assert engines.kernel_speed("reproject:bilinear") > 0.01
    assert engines.kernel_speed("reproject:adaptive") > 0.01
    assert str(engines.kernel_speed("gdask:nothing")) == "nan"


def test_a_row_for_each_way_and_empty_ones_for_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def figures(case: Case, folder: Path, calibrations: Path, work: Path, way: str) -> dict:
        if way == "reproject:adaptive":
            raise RuntimeError("no such interpolation")
        return {"astrometry_mas": 0.25, "flux_bias_percent": 0.1, "flux_bias_error_percent": 0.02}

    monkeypatch.setattr(engines, "_figures", figures)
    monkeypatch.setattr(engines, "kernel_speed", lambda way: 8.0)
    monkeypatch.setattr(engines.nights, "simulated_night", lambda case, size, out: out)
    monkeypatch.setattr(engines.nights, "calibrate", lambda case, folder: folder)
    assert command.main(["--engines", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "| gdask | quintic | 0.25 |  | 0.1 +- 0.02 |  |  | 8 |" in printed.out
    assert "| reproject | adaptive |  |  |  |  |  | 8 |" in printed.out
    assert "gsaoi-crowded-catalog, reproject:adaptive: no such interpolation" in printed.err
    stored = json.loads((tmp_path / "small" / "engines.json").read_text())
    assert list(stored["gsaoi-crowded-catalog"]) == list(engines.WAYS)
    assert command.main(["--engines", "default", "--only", "f2", "--out", str(tmp_path)]) == 0
    assert "f2-sparse-catalog" in capsys.readouterr().out


def test_cases_of_their_own_kind_are_not_compared(tmp_path: Path) -> None:
    """The night with and without cosmic rays measures rejection."""
    with pytest.raises(SystemExit):
        command.main(["--engines", "--only", "gsaoi-cosmic-rays", "--out", str(tmp_path)])
