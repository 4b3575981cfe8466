"""The sky of frames is made to agree: surfaces that are known, found from levels in cells."""

from __future__ import annotations

import numpy as np
import pytest

from gdask.kernels.sky import matching
from gdask.kernels.sky.levels import sky_cell_medians
from gdask.kernels.sky.matching import KINDS, Levels, Surfaces, solve_surfaces
from gdask.kernels.surfaces import (
    Surface,
    connected_groups,
    fitted_terms,
    legendre_terms,
    nodes,
    pulls_on_terms,
    sums_of_terms,
    surface_of_nodes,
)

#: Cells along the side of an array, and noise (e-) of a cell's level.
SIDE, NOISE = 12, 0.9
KIND_NAMES = tuple(KINDS)


def dithered(
    seed: int,
    frames: int = 9,
    *,
    slopes: float = 0.0,
    curves: float = 0.0,
    of_array: bool = False,
    common: float = 0.0,
    light: float = 0.0,
    throughput: float = 0.0,
    spoiled: float = 0.0,
    apart: int = SIDE + 2,
) -> tuple[Levels, np.ndarray]:
    """Levels of dithered frames of four arrays, and the true sky of each row.

    slopes, curves (e-, rms): of the sky of each frame, or of each array; common: of all alike.
    light: a bright source over the field. spoiled: share of levels that are too high. apart: cells
    from array to array, less than SIDE where they overlap.
    """
    rng = np.random.default_rng(seed)
    scene = rng.exponential(8, (90, 90))
    grid_y, grid_x = np.mgrid[0:90, 0:90]
    scene += light / (1 + ((grid_y - 22.0) ** 2 + (grid_x - 20.0) ** 2) / 40)
    half = (apart + SIDE) / 2
    sizes = np.array([slopes, slopes, curves, curves, curves])
    shared = common * rng.standard_normal(5) * (sizes > 0)
    rows, truth = [], []
    for f in range(frames):
        dither, scale = rng.integers(0, 6, 2), 1 + throughput * rng.standard_normal()
        of_frame = rng.standard_normal(5) * sizes
        for a in range(4):
            factors = rng.standard_normal(5) * sizes if of_array else of_frame
            cy, cx = (each.ravel() for each in np.mgrid[0:SIDE, 0:SIDE])
            v, u = cy + a // 2 * apart - half + 0.5, cx + a % 2 * apart - half + 0.5
            x, y = (cx + 0.5) / SIDE * 2 - 1, (cy + 0.5) / SIDE * 2 - 1
            place = (x, y) if of_array else (u / half, v / half)
            terms = legendre_terms(*place, 2)[1:]
            sky = rng.normal(0, 15) + sum(k * t for k, t in zip(factors + shared, terms))
            row, column = cy + dither[0] + a // 2 * apart + 3, cx + dither[1] + a % 2 * apart + 3
            level = scene[row, column] * scale + sky + rng.normal(0, NOISE, cy.size)
            bad = rng.uniform(size=cy.size) < spoiled
            level[bad] += rng.exponential(80, bad.sum())
            ones = np.ones(cy.size)
            whole = 4 * f + a, f, row, column
            rows.append(
                (*(each * ones for each in whole), level, NOISE * ones, x, y, u / half, v / half)
            )
            truth.append(sky)
    table = [np.concatenate(column) for column in zip(*rows, strict=True)]
    numbers = [column.astype(np.int64) for column in table[:4]]
    none = np.zeros(len(table[0]))
    levels = Levels(numbers[0], numbers[1], (numbers[2], numbers[3]), *table[4:], none, none)
    return levels, np.concatenate(truth)


def found_sky(levels: Levels, solved: Surfaces) -> np.ndarray:
    """The sky of each row, as it was found."""
    total = np.zeros(len(levels.level))
    for k, term in enumerate(legendre_terms(levels.x, levels.y, solved.kind.order)):
        total += solved.of_unit[levels.unit, k] * term
    for k, term in enumerate(legendre_terms(levels.u, levels.v, solved.kind.of_frame)[1:]):
        total += solved.of_frame[levels.frame, k] * term
    return total


def steps(levels: Levels, error: np.ndarray, group: np.ndarray) -> float:
    """Rms by which the errors of the sky differ between frames in cells that they share."""
    row, column = levels.cell
    _, cell = np.unique(row * 1000 + column, return_inverse=True)
    count = np.bincount(cell)
    mean = np.bincount(cell, error) / count
    return float(np.sqrt(np.mean((error - mean[cell])[count[cell] > 1] ** 2)))


@pytest.mark.parametrize("spoiled", [0.0, 0.05])
def test_offsets_of_dithered_arrays(spoiled: float) -> None:
    levels, truth = dithered(2, spoiled=spoiled, apart=SIDE - 2)
    solved = solve_surfaces(levels)
    assert solved.kind == KINDS["offset"] and len(set(solved.group)) == 1
    assert steps(levels, found_sky(levels, solved) - truth, solved.group) < 0.25
    assert 0.7 < solved.rms < 1.3 and solved.cells.min() > 90
    assert abs(found_sky(levels, solved).mean()) < 1.0  # the mean level stays
    again = solve_surfaces(levels)
    assert again.of_unit.tobytes() == solved.of_unit.tobytes()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("offset", {}),
        ("frame1", {"slopes": 12.0}),
        ("frame2", {"slopes": 12.0, "curves": 6.0}),
        ("array1", {"slopes": 12.0, "of_array": True}),
        ("array2", {"slopes": 12.0, "curves": 6.0, "of_array": True}),
    ],
)
def test_the_kind_follows_from_the_cells(name: str, options: dict) -> None:
    """The plainest kind that fits is taken, and leaves steps of a fifth of a cell's noise."""
    levels, truth = dithered(4, **options)
    solved = solve_surfaces(levels)
    assert KIND_NAMES[list(KINDS.values()).index(solved.kind)] == name
    left = steps(levels, found_sky(levels, solved) - truth, solved.group)
    offsets = solve_surfaces(levels, KINDS["offset"])
    assert left < 0.25 * NOISE
    if options:
        assert steps(levels, found_sky(levels, offsets) - truth, solved.group) > 2 * NOISE
    assert np.median(solved.error) == pytest.approx(left, rel=1.0)


def test_trials_take_few_steps_and_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which kind is best is known long before the last digit of each."""
    levels, _ = dithered(4, slopes=12.0)
    counted, real = [0], matching.pulls_on_terms

    def pulls(*arguments: object) -> np.ndarray:
        counted[0] += 1
        return real(*arguments)

    monkeypatch.setattr(matching, "pulls_on_terms", pulls)
    solved, taken = solve_surfaces(levels), counted[0]
    monkeypatch.setattr(matching, "TRIAL_TOLERANCE", matching.GRADIENT_TOLERANCE)
    exact = solve_surfaces(levels)
    print(taken, counted[0] - taken)
    assert taken < 0.75 * (counted[0] - taken)
    assert solved.of_frame.tobytes() == exact.of_frame.tobytes()
    assert solved.of_unit.tobytes() == exact.of_unit.tobytes()


def test_what_all_frames_have_in_common_stays() -> None:
    """A surface that is in all frames cannot be told from light: it is not subtracted."""
    levels, truth = dithered(5, slopes=5.0, curves=2.0, common=8.0)
    plain, _ = dithered(5, slopes=5.0, curves=2.0)
    solved = solve_surfaces(levels)
    assert steps(levels, found_sky(levels, solved) - truth, solved.group) < 0.4
    assert np.abs(solved.of_frame.mean(axis=0)).max() < 1.0
    assert solve_surfaces(plain).kind == solved.kind


def test_a_bright_galaxy_is_not_taken_for_sky() -> None:
    """Frames show a galaxy by their throughput; its light stays, and surfaces do not follow it."""
    levels, truth = dithered(6, slopes=8.0, light=800.0, throughput=0.01)
    solved = solve_surfaces(levels)
    error = found_sky(levels, solved) - truth
    assert solved.kind in (KINDS["frame1"], KINDS["frame2"])
    assert error.std() < 4.0  # of 800 e- of light, 8 e- of throughput
    left = [error[levels.frame == frame].mean() for frame in range(9)]
    assert np.abs(left - np.mean(left)).max() < 4.0


def test_cells_that_arrays_show_in_part_do_not_give_a_slope_of_the_sky() -> None:
    """At its edge an array shows a part of a cell, which on a slope has another level."""
    levels, _ = dithered(7, light=0.0)
    slope = 40.0  # e- a cell, of the light
    edge = (np.abs(levels.x) > 1 - 1.5 / SIDE).astype(float)
    off = -0.4 * np.sign(levels.x) * edge
    level = levels.level + slope * (levels.cell[1] + off)
    levels = levels._replace(x=levels.x + off * 2 / SIDE)
    solved = solve_surfaces(levels._replace(level=level, column=off), KINDS["array1"])
    blind = solve_surfaces(levels._replace(level=level), KINDS["array1"])
    slopes = [float(np.abs(each.of_unit[:, 1:]).max()) for each in (solved, blind)]
    assert slopes[0] < 20.0 < slopes[1] / 5


def test_groups_without_overlap_keep_their_own_level() -> None:
    levels, truth = dithered(3, apart=SIDE + 8)
    solved = solve_surfaces(levels)
    assert list(np.unique(solved.group)) == [0, 1, 2, 3]
    error = found_sky(levels, solved) - truth
    for group in range(4):
        members = solved.group[levels.unit] == group
        assert error[members].std() < 0.5
        assert abs(found_sky(levels, solved)[members].mean()) < 0.5
    lonely = levels._replace(
        unit=np.append(levels.unit, 36),
        frame=np.append(levels.frame, 9),
        cell=(np.append(levels.cell[0], 80), np.append(levels.cell[1], 80)),
        **{
            name: np.append(getattr(levels, name), 1.0)
            for name in ("level", "error", "x", "y", "u", "v", "row", "column")
        },
    )
    found = solve_surfaces(lonely, KINDS["offset"])
    assert found.cells[36] == 0 and abs(found.of_unit[36, 0]) < 1e-6 and found.group[36] == 36
    none = [np.zeros(0, np.int64)] * 2, [np.zeros(0)] * 8
    empty = Levels(*none[0], (none[0][0], none[0][0]), *none[1])
    assert len(solve_surfaces(empty).of_unit) == 0


def test_arrays_without_any_level_at_the_end_have_no_surface() -> None:
    """All of an array may be bad, or none of it may show the sky."""
    levels, _ = dithered(2)
    units, frames = int(levels.unit.max()) + 1, int(levels.frame.max()) + 1
    solved = solve_surfaces(levels._replace(sizes=(units + 4, frames + 1)))
    plain = solve_surfaces(levels)
    assert len(solved.of_unit) == len(solved.error) == units + 4
    np.testing.assert_allclose(solved.of_unit[:units], plain.of_unit, atol=1e-9)
    assert not solved.of_unit[units:].any()


def test_pixels_of_dithered_frames_give_their_offsets() -> None:
    """Three dithered frames of one starry sky, with levels 30 e- apart, then agree to 0.8 e-."""
    rng = np.random.default_rng(5)
    sky = np.full((640, 640), 1800.0)
    for y, x, flux in zip(*rng.integers(5, 635, (2, 300)), rng.pareto(1, 300) * 2000, strict=True):
        yy, xx = np.mgrid[max(y - 20, 0) : min(y + 21, 640), max(x - 20, 0) : min(x + 21, 640)]
        sky[yy, xx] += flux / 60 * (1 + ((yy - y) ** 2 + (xx - x) ** 2) / 9) ** -2
    truth, columns = (-10.0, 3.0, 20.0), []
    for unit, (y0, x0) in enumerate(((0, 0), (64, 30), (100, 128))):
        part = sky[y0 : y0 + 512, x0 : x0 + 512]
        data = (part + truth[unit] + rng.normal(size=part.shape) * 45).astype("f4")
        yy, xx = np.mgrid[y0 + 4 : y0 + 512 : 8, x0 + 4 : x0 + 512 : 8]
        cells = (yy // 32 * 20 + xx // 32).astype("i4")
        number, median, error, _ = sky_cell_medians(data, part < 1860, cells)
        zero, one = np.zeros(len(number)), np.ones(len(number))
        columns.append((unit * one, unit * one, *np.divmod(number, 20), median, error, *[zero] * 6))
    table = [np.concatenate(column) for column in zip(*columns, strict=True)]
    whole = [column.astype(np.int64) for column in table[:4]]
    levels = Levels(whole[0], whole[1], (whole[2], whole[3]), *table[4:])
    solved = solve_surfaces(levels, KINDS["offset"])
    error = solved.of_unit[:, 0] - truth
    assert np.ptp(error) < 0.8 and solved.cells.min() > 100


def test_a_surface_has_the_same_bits_in_any_window() -> None:
    size = (40, 56)
    y, x = nodes(3, size)
    surface = surface_of_nodes(3 + 0.2 * x - 0.1 * y + 0.01 * x * y - 0.002 * y**2, 3, size, 2**-12)
    whole = surface.values((0, 40, 0, 56))
    yy, xx = np.mgrid[0:40, 0:56]
    np.testing.assert_allclose(
        whole, 3 + 0.2 * xx - 0.1 * yy + 0.01 * xx * yy - 0.002 * yy**2, atol=2e-3
    )
    for window in ((3, 9, 20, 51), (39, 40, 0, 1)):
        y1, y2, x1, x2 = window
        np.testing.assert_array_equal(surface.values(window), whole[y1:y2, x1:x2])
    assert Surface(((2.5,),), (1, 1)).values((0, 1, 0, 1))[0, 0] == 2.5


def test_fits_leave_outliers_out() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-1, 1, (2, 400))
    terms = legendre_terms(x, y, 2)
    level = 4 * terms[0] - 3 * terms[1] + 2 * terms[5] + rng.normal(0, 0.1, 400)
    level[:40] += 50
    found = fitted_terms(terms, level, np.full(400, 0.1))
    np.testing.assert_allclose(found, [4, -3, 0, 0, 0, 2], atol=0.06)


def test_groups_are_those_that_share_cells() -> None:
    unit, cell = np.array([0, 0, 1, 2, 2, 3, 4]), np.array([0, 1, 1, 2, 3, 3, 9])
    assert connected_groups(unit, cell, 6).tolist() == [0, 0, 2, 2, 4, 5]
    chain = np.repeat(np.arange(200), 2)[1:-1]
    links = np.repeat(np.arange(199), 2)
    assert connected_groups(chain, links, 200).tolist() == [0] * 200


def test_pulls_on_terms_are_those_of_plain_sums() -> None:
    """To the bit: the compiled sums have the order of NumPy's `bincount`."""
    rng = np.random.default_rng(4)
    rows, terms, units, cells = 4000, 3, 12, 500
    unit = np.sort(rng.integers(0, units, rows))
    places = (unit[:, None] * terms + np.arange(terms)).astype(np.int32)
    values, factors = rng.normal(size=(rows, terms)), rng.normal(size=units * terms)
    cell, weight = rng.integers(0, cells, rows), rng.uniform(0, 2, rows)
    at_rows = sums_of_terms(places, values, factors)
    expected = np.zeros(rows)
    for k in range(terms):
        expected += factors[places[:, k]] * values[:, k]
    np.testing.assert_array_equal(at_rows, expected)
    norm = np.bincount(cell, weight, minlength=cells)
    mean = np.bincount(cell, weight * at_rows, minlength=cells) / np.maximum(norm, 1e-300)
    rest = weight * (at_rows - mean[cell])
    expected = np.zeros(len(factors))
    for k in range(terms):
        expected += np.bincount(places[:, k], values[:, k] * rest, minlength=len(factors))
    found = pulls_on_terms(places, values, cell, norm, weight, at_rows, len(factors))
    np.testing.assert_array_equal(found, expected)
