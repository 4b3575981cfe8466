"""A reduction in a notebook: what its cells keep is a few plain lines."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Night

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

#: Everything that moves a cursor, erases or colours; line ends are no such thing.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def texts(cell: Any) -> str:
    """Give what a cell shows as text."""
    assert not [one for one in cell.outputs if one.output_type == "error"], cell.outputs
    return "".join(one.get("text", "") for one in cell.outputs).replace("\r\n", "\n")


def test_a_reduction_in_a_notebook_leaves_plain_lines(calibrated: Path, night: Night) -> None:
    """By `Reduce`, and by the command after `!`, which has a terminal there."""
    flats = [*night.flat_on, *night.flat_off]
    (calibrated / "flats.list").write_text("".join(f"{path}\n" for path in flats))
    command = f'"{sys.executable}" -m gdask.cli.reduce @flats.list'
    cells = [
        "from gdask import Reduce, logutils\nlogutils.config(file_name='gdask.log')",
        f"flat = Reduce()\nflat.files.extend({flats!r})\nflat.runr()\nflat.output_filenames",
        f"!{command} --suffix _again",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    where = {"metadata": {"path": str(calibrated)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    for cell in notebook.cells[1:]:
        text = texts(cell)
        lines = text.splitlines()
        assert not CONTROL.search(text), text
        assert 5 <= len(lines) <= 120 and max(map(len, lines)) < 500
        assert len([line for line in lines if re.search(r"phase|frames, ", line)]) <= 60
        assert "_flat.fits" in text or "_again.fits" in text
    assert list(calibrated.glob("*_flat.fits"))
