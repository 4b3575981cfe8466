"""Median levels of an array in cells of the sky."""

from __future__ import annotations

import numpy as np
import pytest

from gdask.kernels.sky.levels import sky_cell_medians
from gdask.model import GdaskError


def test_cell_medians_are_those_of_numpy():
    rng = np.random.default_rng(1)
    data = rng.normal(2000, 45, (120, 200)).astype("f4") + np.arange(200, dtype="f4")
    data[3, 4] = np.nan
    good = rng.uniform(size=data.shape) > 0.3
    cells = (7 + np.arange(15)[:, None] // 5 * 10 + np.arange(25) // 5).astype("i4")
    cells[0, 0] = -1
    number, median, error, count = sky_cell_medians(data, good, cells)
    full = np.repeat(np.repeat(cells, 8, axis=0), 8, axis=1)
    assert list(number) == sorted(set(cells[cells >= 0]))
    for n, m, e, k in zip(number, median, error, count, strict=True):
        values = data[good & (full == n) & np.isfinite(data)]
        assert k == len(values) and m == pytest.approx(np.median(values.astype(float)), abs=1e-9)
        assert e == pytest.approx(1.2533 * values.std() / np.sqrt(k), rel=0.15)
    assert list(sky_cell_medians(data, good, full.astype("i4"))[1]) == list(median)
    few = sky_cell_medians(
        data, np.arange(data.size).reshape(data.shape) % 29 == 0, cells, min_pixels=64
    )
    assert len(few[0]) == 0


@pytest.mark.parametrize("kind", ["sky", "few", "equal", "whole numbers", "heavy tails", "huge"])
def test_quartiles_are_exact_whatever_the_histogram(kind):
    rng = np.random.default_rng(3)
    values = rng.normal(0, 20, (64, 64))
    if kind == "equal":
        values[:] = 3.0
        values[5, 5:9] = -1e30, 7, 1e30, 3
    if kind == "whole numbers":
        values = np.rint(values / 20)
    if kind == "heavy tails":
        values = rng.standard_cauchy((64, 64)) * np.linspace(0, 1, 64) ** 8
    if kind == "huge":
        values = np.sign(values) * 3e38
    data = values.astype("f4")
    good = np.arange(data.size).reshape(data.shape) % (61 if kind == "few" else 3) > 0
    if kind == "few":
        good = ~good
    _, median, error, n = sky_cell_medians(data, good, np.zeros((8, 8), "i4"))
    ordered = np.sort(data[good]).astype(float)
    assert median[0] == 0.5 * (ordered[(n[0] - 1) // 2] + ordered[n[0] // 2])
    width = ordered[3 * n[0] // 4] - ordered[n[0] // 4]
    assert error[0] == pytest.approx(1.2533 * width / (2 * 0.6745) / np.sqrt(n[0]), rel=1e-12)


def test_planes_that_do_not_agree_are_refused():
    data = np.ones((100, 100), "f4")
    with pytest.raises(GdaskError, match="do not agree"):
        sky_cell_medians(data, data[:50] > 0, np.zeros((10, 10), "i4"))
