"""Coverage of a stack: planted exposures, gaps and objects give the planted fractions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from synthetic import synthetic

from gdask.model import DQ
from gdask.report.coverage import coverage


def covered(folder: Path, exposure: np.ndarray, **others: np.ndarray) -> dict[str, float]:
    """Give the coverage of a stack of these exposures; where they are 0 there are no data."""
    with np.errstate(divide="ignore"):
        variance = np.where(exposure > 0, 100 / exposure, 0).astype("f4")
    dq = np.where(exposure > 0, 0, int(DQ.NO_DATA)).astype("u2")
    planes = {"VAR": variance, "DQ": dq, **others}
    units = [fits.PrimaryHDU(), *(fits.ImageHDU(v, name=k, ver=1) for k, v in planes.items())]
    fits.HDUList(units).writeto(folder / "stack.fits", overwrite=True)
    with fits.open(folder / "stack.fits") as found:
        return coverage(found)


def dithered(side: int) -> np.ndarray:
    """Full exposure in the middle, a quarter of it in a margin of a fifth of the side."""
    exposure = np.full((side, side), 0.25)
    margin = side // 5
    exposure[margin:-margin, margin:-margin] = 1.0
    return exposure


@pytest.mark.parametrize("side", [200, 2000])
def test_the_middle_is_covered_and_the_margin_is_not(side: int, tmp_path: Path) -> None:
    found = covered(tmp_path, dithered(side))
    assert found["centre_covered"] == 1.0
    assert found["area_covered"] == pytest.approx(0.36, abs=0.03)


def test_a_gap_in_the_middle_is_not_covered_and_an_object_does_not_count(tmp_path: Path) -> None:
    exposure = dithered(400)
    exposure[195:205] = 0.0
    objects = np.zeros(exposure.shape, "u1")
    objects[100:150, 100:300] = 1
    exposure[100:150, 100:300] = 0.01  # the light of an object in VAR
    found = covered(tmp_path, exposure, OBJMASK=objects)
    assert found["centre_covered"] == pytest.approx(1 - 10 * 200 / (200 * 150), abs=0.002)


def test_small_regions_of_four_arrays_have_no_middle(tmp_path: Path) -> None:
    exposure = dithered(400)
    exposure[90:310] = 0.0
    assert set(covered(tmp_path, exposure)) == {"area_covered"}


def test_without_variance_nothing_is_told(tmp_path: Path) -> None:
    assert coverage(fits.HDUList([fits.PrimaryHDU()])) == {}
    assert covered(tmp_path, np.zeros((50, 50))) == {}


def test_the_question_has_the_number_its_limits_and_its_state() -> None:
    report = synthetic(10)
    (one,) = [product for product in report["products"] if product["of"] == "image"]
    question = one["questions"][1]
    assert question["question"] == "Is the field covered?" and question["state"] == "passed"
    assert question["numbers"][:2] == ["centre_covered", "area_covered"]
    assert report["gates"]["centre_covered"]["limits"] == "≥ 0.75; fails < 0.25"
    about: dict[str, Any] = report["numbers"]["centre_covered"]
    assert about["source"].startswith("VAR of the stack") and "middle half" in about["meaning"]
