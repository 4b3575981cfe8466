"""Code of docs/interactive.md, run as in a notebook: raw to stack with public functions alone."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gdask

ROOT = Path(__file__).parents[1]


def cells(page: str) -> list[str]:
    """Give the Python code of a page, cell by cell."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def run_cells(page: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run a page's cells one after another in one name space, and give this name space."""
    for number, cell in enumerate(cells(page), 1):
        code = compile(cell, f"{page}, cell {number}", "exec")
        exec(code, names)  # noqa: S102  (the page is the project's)
    return names


@pytest.fixture
def folder(night: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "raw").symlink_to(Path(night.science[0]).parent)
    (tmp_path / "dragonsrc").write_text("[calibs]\ndatabases = cal_manager.db get store\n")
    monkeypatch.setenv("DRAGONSRC", str(tmp_path / "dragonsrc"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_goes_from_raw_to_stack(folder: Path) -> None:
    left = run_cells("docs/interactive.md", {})
    image = left["image"]
    assert len(left["aligned"]) == 5 and "cells agree" in left["aligned"][0].attrs["note"]
    assert float(image.data.max()) > 1e4 and float(image.variance.mean()) > 0
    tables = gdask.tables(image)
    assert len(tables["OBJCAT"][0]) > 20 and "ASTROM" in tables and "FRAMES" in tables
    copy = gdask.open(gdask.write(image, "copy.fits"))
    again = gdask.tables(copy)
    assert set(again) == set(tables)
    for name, table in tables.items():
        pairs = (
            zip(table, again[name], strict=True)
            if isinstance(table, list)
            else [(table, again[name])]
        )
        for one, other in pairs:
            assert one.colnames == other.colnames and len(one) == len(other), name
            assert one.as_array().tobytes() == other.as_array().tobytes(), name
    np.testing.assert_array_equal(copy.data, image.data)


def test_what_the_page_keeps_on_the_way(folder: Path) -> None:
    names: dict[str, Any] = {}
    for cell in cells("docs/interactive.md")[:4]:
        exec(cell, names)  # noqa: S102  (the page is the project's)
    assert names["part"].sizes == {"detector": 1, "y": 100, "x": 320}
    kept = gdask.open("electrons.fits")
    np.testing.assert_array_equal(kept.dq, names["frames"][0].dq)
    assert kept.variance.dtype == np.float32 and os.path.getsize("part.nc") > 0
