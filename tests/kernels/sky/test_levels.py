"""Sky levels of frames are made to agree: medians of cells, and offsets that are known."""

from __future__ import annotations

import numpy as np
import pytest

from gdask.kernels.sky.levels import sky_cell_medians, solve_levels
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


def observations(seed, frames=9, spoiled=0.0):
    """Levels in sky cells of dithered frames of four arrays over a starry sky.

    Returns unit, cell, level and error of each row, and the true offset of each unit. A share
    `spoiled` of the levels is too high.
    """
    rng = np.random.default_rng(seed)
    scene = rng.exponential(30, (90, 90))
    truth = rng.uniform(-10, 10, 4 * frames) + np.repeat(rng.normal(0, 20, frames), 4)
    rows = []
    for f in range(frames):
        oy, ox = rng.integers(0, 16, 2)
        for a in range(4):
            cy, cx = np.mgrid[0:31, 0:31]
            cy, cx = (cy + oy + a // 2 * 34).ravel(), (cx + ox + a % 2 * 34).ravel()
            level = 2000 + scene[cy, cx] * rng.normal(1, 0.003, cy.size) + truth[4 * f + a]
            level += rng.normal(0, 0.9, cy.size)
            bad = rng.uniform(size=cy.size) < spoiled
            level[bad] += rng.exponential(80, bad.sum())
            rows.append((np.full(cy.size, 4 * f + a), 90 * cy + cx, level, np.full(cy.size, 0.9)))
    return [np.concatenate(column) for column in zip(*rows, strict=True)], truth


@pytest.mark.parametrize("spoiled", [0.0, 0.05])
def test_offsets_of_dithered_arrays(spoiled):
    rows, truth = observations(2, spoiled=spoiled)
    levels = solve_levels(*rows)
    assert len(set(levels.group)) == 1 and levels.cells.min() > 700
    error = levels.offset - truth
    assert np.ptp(error) < 0.5 and (error - error.mean()).std() < 0.15
    assert 0.7 < levels.rms < 1.3
    weights = levels.cells / levels.cells.sum()
    assert abs((weights * levels.offset).sum()) < 0.05 * truth.std()
    again = solve_levels(*rows)
    assert again.offset.tobytes() == levels.offset.tobytes()


def test_groups_without_overlap_keep_their_own_level():
    rows, truth = observations(3, frames=16)
    unit, cell, level, error = rows
    cell = np.where(unit >= 32, cell + 100000, cell)
    unit = np.append(unit, 64)
    levels = solve_levels(
        unit, np.append(cell, 999999), np.append(level, 5000.0), np.append(error, 1.0)
    )
    assert levels.offset[64] == 0 and levels.cells[64] == 0
    assert list(levels.group) == [0] * 32 + [32] * 32 + [64]
    for members in (slice(0, 32), slice(32, 64)):
        assert np.ptp((levels.offset[:64] - truth)[members]) < 0.5
        assert abs(np.average(levels.offset[members], weights=levels.cells[members])) < 0.5
    assert len(solve_levels(unit[:0], cell[:0], level[:0], error[:0]).offset) == 0


def test_pixels_of_dithered_frames_give_their_offsets():
    """Three dithered frames of one starry sky, with levels 30 e- apart, then agree to 0.8 e-."""
    rng = np.random.default_rng(5)
    sky = np.full((640, 640), 1800.0)
    for y, x, flux in zip(*rng.integers(5, 635, (2, 300)), rng.pareto(1, 300) * 2000, strict=True):
        yy, xx = np.mgrid[max(y - 20, 0) : min(y + 21, 640), max(x - 20, 0) : min(x + 21, 640)]
        sky[yy, xx] += flux / 60 * (1 + ((yy - y) ** 2 + (xx - x) ** 2) / 9) ** -2
    truth, rows = (-10.0, 3.0, 20.0), []
    for unit, (y0, x0) in enumerate(((0, 0), (64, 30), (100, 128))):
        part = sky[y0 : y0 + 512, x0 : x0 + 512]
        data = (part + truth[unit] + rng.normal(size=part.shape) * 45).astype("f4")
        yy, xx = np.mgrid[y0 + 4 : y0 + 512 : 8, x0 + 4 : x0 + 512 : 8]
        number, median, error, _ = sky_cell_medians(
            data, part < 1860, (yy // 32 * 20 + xx // 32).astype("i4")
        )
        rows.append((np.full(len(number), unit), number, median, error))
    levels = solve_levels(*(np.concatenate(column) for column in zip(*rows, strict=True)))
    error = levels.offset - truth
    assert np.ptp(error) < 0.8 and levels.cells.min() > 100
