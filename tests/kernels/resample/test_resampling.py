"""Interpolation and resampling of science, variance and DQ, against polynomials, known stars, noise and reproject."""

from __future__ import annotations

import math
import tomllib
from importlib.resources import files

import numpy as np
import pytest
from reproject import reproject_interp
from scipy.special import erf

from gdask.kernels.geometry.grid import common_grid, footprint, input_window, sky_to_grid
from gdask.kernels.geometry.pixel_map import pixel_map
from gdask.kernels.geometry.projection import Geometry, pixel_area, to_sky
from gdask.kernels.geometry.wcs import array_wcs, grid_header
from gdask.kernels.resample.interpolation import TAPS, noise_correlation, reach, weights
from gdask.kernels.resample.reproject_engine import resample_reprojected
from gdask.kernels.resample.resampling import mend, resample, resample_mask
from gdask.model import DQ, GdaskError

Planes = tuple[np.ndarray, np.ndarray, np.ndarray]
#: The map of these tests: scale and turn (degrees) between output and input.
SCALE, TURN, SHIFT = 1.015, 0.9, (5.3, 22.7)
FULL = (2048, 2048)


def gsaoi(
    pa: float = 37.0, corrected: bool = False, x0: int = 1, y0: int = 1
) -> tuple[Geometry, ...]:
    """The four arrays, with a fitted correction of about 20 mas if asked."""
    rng = np.random.default_rng(8)
    out = []
    for array in tomllib.loads((files("gdask.instruments") / "gsaoi.toml").read_text())["arrays"]:
        terms = [tuple(rng.normal(0, 0.02, 10)) if corrected else () for _ in range(2)]
        distortion = tuple(array["distortion_x"]), tuple(array["distortion_y"])
        out.append(Geometry(x0, y0, *distortion, 359.99, -43.1, pa, *terms))
    return tuple(out)


def noisy(shape: tuple[int, int], seed: int = 1, bad: float = 0.0) -> Planes:
    rng = np.random.default_rng(seed)
    dq = np.where(rng.random(shape) < bad, rng.choice([1, 2, 4, 8, 9], shape), 0).astype("u2")
    return rng.normal(100, 5, shape).astype("f4"), rng.uniform(20, 30, shape).astype("f4"), dq


def turned_map(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A pixel map with all sub-pixel phases."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    c, s = SCALE * math.cos(math.radians(TURN)), SCALE * math.sin(math.radians(TURN))
    return c * y + s * x + SHIFT[0], c * x - s * y + SHIFT[1]


def star_image(
    shape: tuple[int, int], x: np.ndarray, y: np.ndarray, flux: np.ndarray, fwhm: float
) -> np.ndarray:
    """Gaussian stars integrated over pixels."""
    image = np.zeros(shape)
    edges = (np.arange(-20, 22) - 0.5) / (fwhm / 2.3548 * math.sqrt(2))
    step = edges[1] - edges[0]
    for xs, ys, total in zip(x, y, flux, strict=True):
        i, j = round(xs), round(ys)
        row, column = (np.diff(erf(edges - step * offset)) / 2 for offset in (xs - i, ys - j))
        image[j - 20 : j + 21, i - 20 : i + 21] += total * np.outer(column, row)
    return image


def centroid(image: np.ndarray, x: float, y: float, fwhm: float) -> tuple[float, float]:
    """Gaussian-windowed centroid, converged."""
    j, i = np.mgrid[round(y) - 12 : round(y) + 13, round(x) - 12 : round(x) + 13]
    box = image[j, i]
    for _ in range(40):
        w = box * np.exp(-4 * math.log(2) * ((i - x) ** 2 + (j - y) ** 2) / fwhm**2)
        x, y = x + 2 * ((w * i).sum() / w.sum() - x), y + 2 * ((w * j).sum() / w.sum() - y)
    return x, y


def scattered(shape: tuple[int, int], step: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Positions on a lattice, each with its own sub-pixel phase."""
    j, i = np.mgrid[step : shape[0] - step : step, step : shape[1] - step : step]
    phase = np.random.default_rng(seed).uniform(-0.5, 0.5, (2, j.size))
    return i.ravel() + phase[0], j.ravel() + phase[1]


@pytest.mark.parametrize(
    ("name", "order"), [("bilinear", 1), ("cubic", 2), ("quintic", 5), ("lanczos3", 0)]
)
def test_kernel_is_exact_for_polynomials_of_its_order(name: str, order: int) -> None:
    table = weights(name).astype(float)
    phase = np.linspace(0, 1, len(table))[:, None]
    offset = np.arange(1 - TAPS[name] // 2, TAPS[name] // 2 + 1) - phase
    for power in range(order + 1):
        assert np.abs((table * offset**power).sum(axis=1) - (power == 0)).max() < 3e-5
    assert np.abs((table * offset ** (order + 1)).sum(axis=1)).max() > 1e-3


def test_unknown_kernel_is_named() -> None:
    with pytest.raises(GdaskError, match=r"'sinc'.*quintic"):
        weights("sinc")


@pytest.mark.parametrize("name", TAPS)
def test_ramp_comes_out_at_the_mapped_places(name: str) -> None:
    y, x = np.mgrid[:90, :110]
    ymap, xmap = turned_map((60, 65))
    data = (3 + 0.5 * x - 0.25 * y).astype("f4")
    out, variance, dq = resample(
        data, data + 50, np.zeros(data.shape, "u2"), ymap, xmap, interpolation=name, area_ratio=1.5
    )
    tolerance = 0.05 if name == "lanczos3" else 2e-5
    assert np.abs(out - 1.5 * (3 + 0.5 * xmap - 0.25 * ymap)).max() < tolerance
    assert np.abs(variance - 1.5 * (53 + 0.5 * xmap - 0.25 * ymap)).max() < 0.5
    assert not dq.any()


@pytest.mark.parametrize("name", TAPS)
def test_whole_pixel_shifts_return_the_input(name: str) -> None:
    data, variance, dq = noisy((40, 50), bad=0.1)
    y, x = np.mgrid[10:30, 8:40].astype(float)
    out = resample(data, variance, dq & 2, y, x, interpolation=name)
    assert np.allclose(out[0], data[10:30, 8:40], rtol=1e-6)
    assert np.allclose(out[1], variance[10:30, 8:40], rtol=1e-6)
    assert np.array_equal(out[2], (dq & 2)[10:30, 8:40])


@pytest.mark.parametrize("name", ["quintic", "bilinear"])
def test_same_bits_from_any_tile(name: str) -> None:
    geometry = gsaoi(corrected=True)[1]
    planes = noisy(FULL, bad=0.02)
    planes[0][700:720, 600:640] = np.nan
    grid = common_grid(gsaoi(), [FULL] * 4, 0.02, 12.3, 359.99, -43.1)
    y1, _y2, x1, _x2 = footprint(geometry, FULL, grid)
    window = (y1 + 600, y1 + 1000, x1 + 350, x1 + 700)
    whole = resample(*planes, *pixel_map(geometry, grid, window), interpolation=name)
    assert 0.05 < np.mean(whole[2] == 0) < 0.98
    rng = np.random.default_rng(6)
    for _ in range(8):
        a, b = np.sort(rng.choice(np.arange(window[0], window[1]), 2, replace=False))
        c, d = np.sort(rng.choice(np.arange(window[2], window[3]), 2, replace=False))
        crop = input_window(geometry, FULL, grid, (a, b, c, d), reach(name))
        if crop is None:
            continue
        cut = [p[crop[0] : crop[1], crop[2] : crop[3]] for p in planes]
        tile = resample(
            *cut,
            *pixel_map(geometry, grid, (a, b, c, d)),
            interpolation=name,
            origin=(crop[0], crop[2]),
        )
        part = np.s_[a - window[0] : b - window[0], c - window[2] : d - window[2]]
        assert all(np.array_equal(t, w[part]) for t, w in zip(tile, whole, strict=True))


def test_outside_is_no_data_and_edges_are_flagged() -> None:
    data, variance, dq = noisy((30, 40))
    xmap = np.array([[-3.0, -0.6, -0.4, 0.5, 5.2, 38.6, 39.4, 39.6, np.nan]])
    out, out_var, flags = resample(data, variance, dq, np.full(xmap.shape, 15.3), xmap)
    assert list(flags[0] & DQ.NO_DATA > 0) == [
        True,
        True,
        True,
        True,
        False,
        True,
        True,
        True,
        True,
    ]
    assert not out[0, [0, 1, 7, 8]].any()
    assert not out_var[0, [0, 1, 7, 8]].any()
    assert np.all(np.abs(out[0, 2:7] - 100) < 15)


def test_bad_pixels_do_not_spread_and_leave_their_own_flags() -> None:
    y, x = np.mgrid[:60, :80]
    truth = (200 + 40 * np.sin(x / 6) * np.cos(y / 7)).astype("f4")
    dq = np.zeros(truth.shape, "u2")
    data = truth.copy()
    spots = {(20, 20): 1, (30, 40): 8, (40, 22): 4}
    for place, bit in spots.items():
        data[place], dq[place] = 60000, bit
    data[25, 50] = np.nan
    dq[45, 45], data[45, 45] = DQ.NON_LINEAR, 500
    ymap, xmap = turned_map((50, 45))
    clean = resample(truth, truth, np.zeros_like(dq), ymap, xmap)[0]
    out, _variance, flags = resample(data, truth, dq, ymap, xmap)
    near = np.hypot(xmap - 45, ymap - 45) > 5
    assert np.abs(out - clean)[near].max() < 1.0
    assert np.abs(out - clean)[~near].max() > 100
    for (j, i), bit in {**spots, (25, 50): 16, (45, 45): 2}.items():
        flagged = flags & bit > 0
        distance = np.hypot(xmap - i, ymap - j)
        assert flagged[distance < 0.7].all()
        assert not flagged[(distance > 2.5) & (flags & ~np.uint16(bit) == 0)].any()


def test_threshold_is_a_share_of_the_weight() -> None:
    data, variance, dq = noisy((80, 90))
    dq[40, 40] = DQ.COSMIC_RAY
    maps = turned_map((70, 60))
    counts = [
        np.count_nonzero(resample(data, variance, dq, *maps, threshold=t)[2])
        for t in (0.001, 0.05, 0.2, 0.99)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 15 > counts[1] > counts[2] >= 1 > counts[3]


def test_mending_is_a_cubic_where_it_can_be() -> None:
    y, x = np.mgrid[:20, :20].astype("f4")
    truth = 5 + x - 0.1 * x * y + 0.01 * y**3
    dq = np.zeros(truth.shape, "u2")
    dq[8, 9] = dq[0, 0] = DQ.BAD_PIXEL
    dq[12:17, 3:8] = DQ.SATURATED
    mended, variance = mend(
        np.where(dq, -1e6, truth).astype("f4"), np.where(dq, np.inf, 2 + truth), dq
    )
    assert mended[8, 9] == pytest.approx(truth[8, 9], abs=1e-4)
    assert variance[8, 9] == pytest.approx(2 + truth[7:10, 8:11].mean(), rel=0.02)
    assert mended[0, 0] == pytest.approx(truth[[0, 1, 1], [1, 0, 1]].mean(), rel=1e-6)
    assert np.isnan(mended[13:16, 4:7]).all()
    assert np.array_equal(mended[dq == 0], truth[dq == 0])


def test_large_defects_keep_their_value_and_flag() -> None:
    data, variance, dq = noisy((60, 80))
    data[20:40, 30:50], dq[20:40, 30:50] = 50000, DQ.SATURATED
    ymap, xmap = turned_map((50, 50))
    out, _variance, flags = resample(data, variance, dq, ymap, xmap)
    middle = (np.abs(xmap - 39.5) < 5) & (np.abs(ymap - 29.5) < 5)
    outside = (np.abs(xmap - 39.5) > 11.5) | (np.abs(ymap - 29.5) > 11.5)
    assert np.allclose(out[middle], 50000, rtol=1e-5)
    assert (flags[middle] == DQ.SATURATED).all()
    assert np.abs(out[outside & (flags == 0)] - 100).max() < 40


@pytest.mark.parametrize("name", TAPS)
def test_variance_is_that_of_sums_and_pixels_scatter_by_the_noise_correlation(name: str) -> None:
    rng = np.random.default_rng(7)
    data, variance = rng.normal(0, 5, (900, 900)).astype("f4"), np.full((900, 900), 25, "f4")
    maps, ratio = turned_map((840, 840)), SCALE**2
    out, out_var, _dq = resample(
        data, variance, np.zeros(data.shape, "u2"), *maps, interpolation=name, area_ratio=ratio
    )
    assert np.allclose(out_var, 25 * ratio, rtol=1e-5)
    scatter = out.std() / np.sqrt(out_var.mean())
    assert scatter == pytest.approx(noise_correlation(name) * math.sqrt(ratio), rel=0.01)
    sums = out[:840, :840].astype(float).reshape(42, 20, 42, 20).sum(axis=(1, 3))
    pulls = sums / np.sqrt(out_var.reshape(42, 20, 42, 20).sum(axis=(1, 3)))
    assert pulls.std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("fwhm", [3.0, 4.0])
def test_default_kernel_moves_no_centroid_and_keeps_fluxes(fwhm: float) -> None:
    x, y = scattered((420, 420), 45)
    image = star_image((420, 420), x, y, np.full(x.size, 1e5), fwhm).astype("f4")
    ymap, xmap = turned_map((390, 380))
    out = resample(image, image + 1, np.zeros(image.shape, "u2"), ymap, xmap, area_ratio=SCALE**2)[
        0
    ].astype(float)
    matrix = np.array([[m[0, 1] - m[0, 0], m[1, 0] - m[0, 0]] for m in (xmap, ymap)])
    places = np.linalg.solve(matrix, np.array([x - SHIFT[1], y - SHIFT[0]]))
    seen = np.all((places > 20) & (places < 360), axis=0)
    found = np.array([centroid(out, *p, fwhm) for p in places[:, seen].T])
    assert len(found) > 40
    assert np.hypot(*(found - places[:, seen].T).T).max() < 0.005
    boxes = (
        np.s_[round(v) - 15 : round(v) + 16, round(u) - 15 : round(u) + 16]
        for u, v in places[:, seen].T
    )
    fluxes = np.array([out[box].sum() for box in boxes])
    assert np.abs(fluxes / 1e5 - 1).max() < 2e-4


def test_fluxes_through_the_distortion_do_not_depend_on_position() -> None:
    geometry = gsaoi(pa=0.0)[0]
    x, y = scattered(FULL, 170)
    flux = np.full(x.size, 1e5)
    j, i = np.mgrid[: FULL[0], : FULL[1]]
    area = pixel_area(geometry, i, j)
    reference = float(area.mean())
    electrons = star_image(FULL, x, y, flux, 4.0)
    brightness = (electrons / (area / reference)).astype(
        "f4"
    )  # what a flat of uniform light, normalised to 1, leaves
    grid = common_grid([geometry], [FULL], 0.02, 0.0, geometry.ra, geometry.dec)
    maps = pixel_map(geometry, grid, (0, grid.shape[0], 0, grid.shape[1]))
    out = resample(
        brightness,
        brightness + 1,
        np.zeros(FULL, "u2"),
        *maps,
        area_ratio=grid.scale**2 / reference,
    )[0]

    def sums(image: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        cut = (
            np.s_[round(b) - 15 : round(b) + 16, round(a) - 15 : round(a) + 16]
            for a, b in zip(u, v, strict=True)
        )
        return np.array([image[c].sum(dtype=float) for c in cut])

    before = sums(brightness, x, y) / flux
    after = sums(out, *sky_to_grid(grid, *to_sky(geometry, x, y))) / flux
    assert np.ptp(before) > 0.02
    assert np.abs(after - 1).max() < 1e-3


def test_reproject_gives_the_same() -> None:
    data, variance, dq = noisy((200, 230))
    dq[50, 60] = DQ.SATURATED
    maps = turned_map((150, 160))
    own = resample(data, variance, dq, *maps, interpolation="bilinear", threshold=0.1)
    theirs = resample_reprojected(
        data, variance, dq, *maps, interpolation="bilinear", threshold=0.1
    )
    assert np.allclose(own[0], theirs[0], rtol=1e-5)
    assert np.array_equal(own[2], theirs[2])
    assert 1 <= np.count_nonzero(own[2]) <= 9
    spline = resample_reprojected(data, variance, dq, *maps)
    smooth = resample(data, variance, dq, *maps)
    assert np.corrcoef(spline[0].ravel(), smooth[0].ravel())[0, 1] > 0.99


def test_whole_chain_is_reprojects_with_the_arrays_header() -> None:
    geometry = gsaoi(pa=20.0, corrected=True, x0=801, y0=901)[2]
    shape = (250, 260)
    x, y = scattered(shape, 30)
    data = star_image(shape, x, y, np.full(x.size, 1e4), 4.0).astype("f4")
    grid = common_grid([geometry], [shape], 0.02, 0.0, geometry.ra, geometry.dec)
    window = footprint(geometry, shape, grid)
    own = resample(
        data,
        data + 1,
        np.zeros(shape, "u2"),
        *pixel_map(geometry, grid, window),
        interpolation="bilinear",
    )
    size = (window[1] - window[0], window[3] - window[2])
    header = grid_header(
        grid._replace(x_ref=grid.x_ref - window[2], y_ref=grid.y_ref - window[0], shape=size)
    )
    full, seen = reproject_interp(
        (data, array_wcs(geometry, shape)[0]), header, shape_out=size, order="bilinear"
    )
    inside = (seen > 0) & (own[2] == 0)
    assert inside.mean() > 0.5
    assert np.abs(own[0] - full)[inside].max() < 2e-4 * data.max()


def test_mask_takes_the_nearest_pixel() -> None:
    rng = np.random.default_rng(5)
    mask = rng.random((50, 60)) < 0.3
    ymap, xmap = turned_map((45, 55))
    inside = (ymap < 49.5) & (xmap < 59.5)
    out = resample_mask(mask[3:, 4:], ymap, xmap, origin=(3, 4))
    expected = mask[np.rint(ymap[inside]).astype(int), np.rint(xmap[inside]).astype(int)]
    assert np.array_equal(out[inside], expected)
    assert not out[~inside].any()


def test_shapes_must_agree() -> None:
    data, variance, dq = noisy((20, 20))
    with pytest.raises(GdaskError, match=r"\(20, 20\), \(19, 20\)"):
        resample(data, variance[1:], dq, *turned_map((10, 10)))
