"""A flat over its predecessor: planted factors come back, bad pixels do not count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from gdask.model import DQ
from gdask.report.flats import flat_ratio


def flat(path: Path, factors: tuple[float, ...], side: int = 320) -> Path:
    """Write a flat whose arrays are these factors times one pattern; its first rows are bad."""
    pattern = 1 + 0.1 * np.random.default_rng(3).normal(size=(side, side))
    dq = np.zeros((side, side), "u2")
    dq[:100] = DQ.BAD_PIXEL
    units: list[fits.hdu.base.ExtensionHDU] = []
    for number, factor in enumerate(factors, 1):
        values = factor * pattern
        values[:100] = -5.0 * number * factor
        units.append(fits.ImageHDU(values.astype("f4"), name="SCI", ver=number))
        units.append(fits.ImageHDU(dq, name="DQ", ver=number))
    fits.HDUList([fits.PrimaryHDU(), *units]).writeto(path)
    return path


def test_planted_ratios_come_back(tmp_path: Path) -> None:
    found = flat_ratio(
        flat(tmp_path / "b.fits", (1.02, 0.99)), flat(tmp_path / "a.fits", (1.0, 1.0))
    )
    assert found["trouble"] == "" and found["arrays"] == pytest.approx([1.02, 0.99], abs=1e-5)
    assert found["median"] == pytest.approx(1.005, abs=0.016)


def test_flats_of_other_shapes_are_not_compared(tmp_path: Path) -> None:
    first, second = flat(tmp_path / "a.fits", (1.0,)), flat(tmp_path / "b.fits", (1.0,), 330)
    assert (
        "array 1 has (330, 330) pixels, and had (320, 320)" in flat_ratio(second, first)["trouble"]
    )
