"""The code of docs/extending.md, as it stands there: a recipe, a step, a step with a kernel."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gdask
from gdask.cli.reduce import main as reduce
from gdask.cli.showpars import main as showpars

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()


def code(section: str, number: int = 0) -> str:
    """Give the Python code of a section, block by block."""
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)[number]


def command(section: str) -> list[str]:
    """Give the words of the section's `reduce` line after the list of files."""
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    (line,) = re.findall(r"^    reduce @science.list (.*)$", text, re.MULTILINE)
    return line.split()


def test_a_recipe_of_the_page(night: Any, calibrated: Path) -> None:
    (calibrated / "mine.py").write_text(code("A recipe"))
    assert reduce([*night.sequence, *command("A recipe"), "-q"]) == 0
    assert len(list(calibrated.glob("*_aligned.fits"))) == len(night.science)


def test_a_step_of_the_page(
    night: Any, calibrated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its parameter is found, limited, recorded, and does what it says."""
    (calibrated / "mine.py").write_text(code("A step"))
    words = command("A step")
    refused = [word.replace("level=100", "level=-1") for word in words]
    assert reduce([*night.sequence, *refused]) == 2
    assert "addPedestal" in capsys.readouterr().err.replace("add_pedestal", "addPedestal")
    assert reduce([*night.sequence, *words, "-q"]) == 0
    (path,) = calibrated.glob("*_image.fits")
    image = gdask.open(str(path))
    history = gdask.tables(image)["HISTORY"]
    assert "add_pedestal" in " ".join(str(row) for row in history)
    names: dict[str, Any] = {}
    exec(code("A step"), names)  # noqa: S102  (the page is the project's)
    frame = gdask.open(night.science[0])
    higher = names["add_pedestal"](frame, level=100.0)
    np.testing.assert_array_equal(higher.data, frame.data.compute() + np.float32(100))
    assert higher.data.dtype == np.float32 and showpars([night.science[0]]) == 0


def test_a_step_with_a_kernel_of_the_page(night: Any) -> None:
    names: dict[str, Any] = {}
    exec(code("A step", 1), names)  # noqa: S102  (the page is the project's)
    frame = gdask.open(night.science[0])
    gain = np.array(gdask.descriptor(frame, "gain"), "f4")[:, None, None]
    found = names["data_in_electrons"](frame)
    np.testing.assert_array_equal(found.data, frame.data.compute().data * gain)
