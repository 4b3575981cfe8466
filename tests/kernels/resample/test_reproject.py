"""Resampling by reproject's methods: known answers, tiles, DQ, noise, reproject with headers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from astropy.wcs import WCS
from known_images import (
    FULL_ARRAY,
    SCALE,
    box_sums,
    gsaoi,
    lattice,
    noisy_planes,
    star_image,
    turned_map,
    turned_places,
)
from reproject import reproject_adaptive, reproject_exact, reproject_interp
from scipy.ndimage import map_coordinates

from gdask.kernels.geometry.grid import Window, common_grid, footprint, input_window, pixel_map
from gdask.kernels.resample.reproject_engine import resample_reprojected
from gdask.kernels.resample.reproject_methods import (
    ALL_SPLINE_TAPS,
    LOCAL_METHODS,
    REPROJECT_METHODS,
    map_margin_of,
    margin_of,
    method_noise_correlation,
    method_weights,
)
from gdask.kernels.resample.reproject_wcs import invert_map
from gdask.kernels.resample.resampling import resample
from gdask.model import DQ, GdaskError


def with_margin(window: Window, margin: int) -> Window:
    return window[0] - margin, window[1] + margin, window[2] - margin, window[3] + margin


def reprojected(planes: tuple, shape: tuple[int, int], method: str, **options: object) -> tuple:
    """By a method, on the turned map with the margin that the method needs."""
    margin = map_margin_of(method)
    maps = turned_map(shape, margin=margin)
    return resample_reprojected(*planes, *maps, method=method, map_margin=margin, **options)


@pytest.mark.parametrize("method", REPROJECT_METHODS)
def test_whole_pixel_shifts_return_the_input(method: str) -> None:
    planes = noisy_planes((40, 50), bad=0.1)
    planes[2][:] &= 2
    y, x = np.mgrid[9:31, 7:41].astype(float)
    out = resample_reprojected(*planes, y, x, method=method, map_margin=1)
    cut = np.s_[10:30, 8:40]
    if method == "adaptive":
        assert np.abs(out[0] - planes[0][cut]).max() > 1  # it smooths
        return
    same = {"nearest-neighbor": 0, "bilinear": 0}.get(method, 2e-6)
    np.testing.assert_allclose(out[0], planes[0][cut], rtol=same)
    np.testing.assert_allclose(out[1], planes[1][cut], rtol=same)
    np.testing.assert_array_equal(out[2], planes[2][cut])


@pytest.mark.parametrize("method", REPROJECT_METHODS)
def test_ramp_comes_out_at_the_mapped_places(method: str) -> None:
    """ "exact" takes pixels as evenly lit tiles, which is a ramp to 1 % of its slope only."""
    y, x = np.mgrid[:100, :120]
    planes = [(3 + 0.5 * x - 0.25 * y).astype("f4"), (53 + 0.5 * x - 0.25 * y).astype("f4")]
    out = reprojected((*planes, np.zeros(x.shape, "u2")), (60, 65), method, area_ratio=1.5)
    ymap, xmap = turned_map((60, 65))
    if method == "nearest-neighbor":
        ymap, xmap = np.floor(ymap + 0.5), np.floor(xmap + 0.5)
    truth = 1.5 * (3 + 0.5 * xmap - 0.25 * ymap)
    tolerance = {"exact": 0.01, "adaptive": 2e-3, "bicubic": 3e-3}.get(method, 3e-5)
    assert np.abs(out[0] - truth).max() < tolerance
    assert np.abs(out[1] - truth - 75).max() < tolerance
    assert not out[2].any()
    assert [plane.dtype for plane in out] == [np.float32, np.float32, np.uint16]


@pytest.mark.parametrize(
    ("method", "worst"),
    [("bilinear", 5e-3), ("bicubic", 1e-5), ("adaptive", 3e-4), ("exact", 1e-6)],
)
def test_stars_keep_their_fluxes(method: str, worst: float) -> None:
    """Linear interpolation errs by up to 0.5 % where the phase hardly changes over a star.

    gdask's own bilinear kernel does the same.
    """
    x, y = lattice((420, 420), 45)
    image = star_image((420, 420), x, y, np.full(x.size, 1e5), 3.0).astype("f4")
    planes = image, image + 1, np.zeros(image.shape, "u2")
    out = reprojected(planes, (390, 380), method, area_ratio=SCALE**2)[0]
    places = turned_places(x, y)
    seen = np.all((places > 20) & (places < 360), axis=0)
    assert seen.sum() > 40
    fluxes = box_sums(out, *places[:, seen]) / 1e5
    assert np.abs(fluxes - 1).max() < worst
    assert abs(fluxes.mean() - 1) < 3e-4
    if method == "bilinear":
        own = resample(*planes, *turned_map((390, 380)), interpolation=method, area_ratio=SCALE**2)[
            0
        ]
        np.testing.assert_allclose(fluxes, box_sums(own, *places[:, seen]) / 1e5, rtol=1e-6)


def distorted_case() -> tuple:
    """An array with distortion, its grid, its pixels, and a window with an edge of the array."""
    geometry = gsaoi(corrected=True)[1]
    planes = noisy_planes(FULL_ARRAY, bad=0.02)
    planes[0][500:520, 500:540] = np.nan
    grid = common_grid(gsaoi(), [FULL_ARRAY] * 4, 0.02, 12.3, 359.99, -43.1)
    y1, _y2, x1, _x2 = footprint(geometry, FULL_ARRAY, grid)
    return geometry, grid, planes, (y1 + 760, y1 + 900, x1 + 420, x1 + 560)


@pytest.mark.parametrize("method", REPROJECT_METHODS)
def test_same_bits_from_any_tile(method: str) -> None:
    geometry, grid, planes, window = distorted_case()
    margin = map_margin_of(method)

    def tile(shown: Window, extra: int) -> tuple:
        crop = input_window(geometry, FULL_ARRAY, grid, shown, extra)
        cut = [plane[crop[0] : crop[1], crop[2] : crop[3]] for plane in planes]
        maps = pixel_map(geometry, grid, with_margin(shown, margin))
        options = {"origin": (crop[0], crop[2]), "map_margin": margin, "area_ratio": 1.03}
        return resample_reprojected(*cut, *maps, method=method, **options)

    needed = margin_of(method, 1.03)
    all_pixels = needed is None
    assert all_pixels == (method not in LOCAL_METHODS)
    whole = tile(window, 4000 if all_pixels else 25)
    assert 0.3 < np.mean(whole[2] == 0) < 0.95
    assert np.mean(whole[2] & DQ.NO_DATA > 0) > 0.02
    rng = np.random.default_rng(6)
    different = 0
    for _ in range(5):
        a, b = np.sort(rng.choice(np.arange(window[0], window[1]), 2, replace=False))
        c, d = np.sort(rng.choice(np.arange(window[2], window[3]), 2, replace=False))
        part = np.s_[a - window[0] : b - window[0], c - window[2] : d - window[2]]
        part_of_tile = tile((a, b, c, d), 4000 if all_pixels else needed)
        for got, expected in zip(part_of_tile, whole, strict=True):
            np.testing.assert_array_equal(got, expected[part])
        different += all_pixels and not np.array_equal(tile((a, b, c, d), 4)[0], whole[0][part])
    assert bool(different) == all_pixels


def test_flags_are_those_of_the_own_kernel() -> None:
    """The same rule; only the weights differ.

    Of data with few bad pixels the bilinear values are the same, too.
    """
    planes = noisy_planes((200, 230), bad=0.03)
    planes[0][60:70, 80:90] = np.nan
    maps = turned_map((150, 160))
    for threshold in (0.05, 0.3):
        own = resample(*planes, *maps, interpolation="bilinear", threshold=threshold)
        got = resample_reprojected(*planes, *maps, method="bilinear", threshold=threshold)
        np.testing.assert_array_equal(got[2], own[2])
        filled = own[2] & DQ.NO_DATA == 0
        np.testing.assert_allclose(got[0][filled], own[0][filled], rtol=1e-5)
        np.testing.assert_allclose(
            got[1][filled], own[1][filled], rtol=0.5
        )  # weights, not squares of them
    nearest = resample_reprojected(*planes, *maps, method="nearest-neighbor")
    y, x = (np.floor(m + 0.5).astype(int) for m in maps)
    np.testing.assert_array_equal(nearest[2] & ~np.uint16(16), planes[2][y, x])
    good = nearest[2] == 0
    np.testing.assert_array_equal(nearest[0][good], planes[0][y, x][good])


@pytest.mark.parametrize("method", REPROJECT_METHODS)
def test_bad_pixels_do_not_spread_and_leave_their_own_flags(method: str) -> None:
    y, x = np.mgrid[:70, :90]
    truth = (200 + 40 * np.sin(x / 6) * np.cos(y / 7)).astype("f4")
    data, dq = truth.copy(), np.zeros(truth.shape, "u2")
    for place, bit in {(20, 30): DQ.BAD_PIXEL, (30, 45): DQ.COSMIC_RAY}.items():
        data[place], dq[place] = 60000, bit
    data[40:48, 50:58], dq[40:48, 50:58] = 50000, DQ.SATURATED
    clean = reprojected((truth, truth, np.zeros_like(dq)), (50, 45), method)[0]
    out, variance, flags = reprojected((data, truth, dq), (50, 45), method)
    ymap, xmap = turned_map((50, 45))
    good = flags == 0
    assert np.abs(out - clean)[good].max() < 8
    assert 0.02 < 1 - good.mean() < 0.1
    for (j, i), bit in {(20, 30): DQ.BAD_PIXEL, (30, 45): DQ.COSMIC_RAY}.items():
        flagged, distance = flags & bit > 0, np.hypot(xmap - i, ymap - j)
        assert flagged[distance < 0.5].all()
        assert not flagged[distance > 3].any()
    middle = (np.abs(xmap - 53.5) < 1) & (np.abs(ymap - 43.5) < 1)
    assert (flags[middle] == DQ.SATURATED).all()
    np.testing.assert_allclose(out[middle], 50000, rtol=1e-3 if "bi" not in method else 2e-2)
    assert (variance > 0).all()


@pytest.mark.parametrize("method", REPROJECT_METHODS)
def test_outside_is_no_data_and_places_without_a_map_too(method: str) -> None:
    planes = noisy_planes((30, 40))
    y, x = np.mgrid[-1:12, -6:47].astype(float)
    maps = 9.3 + y, x.copy()
    maps[1][:, 20] = np.nan
    out = resample_reprojected(*planes, *maps, method=method, map_margin=1)
    shown = maps[1][1:-1, 1:-1]
    empty = ~((shown >= -0.5) & (shown < 39.5))
    if map_margin_of(method):  # derivatives and corners are not known beside it either
        empty[:, 18] = empty[:, 20] = True
    np.testing.assert_array_equal(out[2][empty], DQ.NO_DATA)
    assert not out[0][empty].any() and not out[1][empty].any()
    assert (np.abs(out[0][~empty] - 100) < 25).all() and (out[1][~empty] > 0).all()
    flagged = out[2] & DQ.NO_DATA > 0
    assert not flagged[:, 10:16].any()
    assert flagged.mean() < empty.mean() + 0.15


def test_a_spline_leaves_no_negative_variance() -> None:
    variance = np.ones((60, 60), "f4")
    variance[30, 30] = 1e5
    out = reprojected((variance, variance, np.zeros(variance.shape, "u2")), (30, 30), "bicubic")
    assert out[0].min() < -1e3
    assert out[1].min() > 0


@pytest.mark.parametrize("method", REPROJECT_METHODS)
@pytest.mark.parametrize("scale", [SCALE, 1.3])
def test_pixels_scatter_by_the_noise_correlation_of_the_method(method: str, scale: float) -> None:
    """Pixels of white noise scatter as the method says, and sums over many pixels by VAR.

    "nearest-neighbor" misses the latter, for it takes pixels twice or not at all.
    """
    rng = np.random.default_rng(7)
    data, variance = rng.normal(0, 5, (440, 440)).astype("f4"), np.full((440, 440), 25, "f4")
    shape = (400, 400) if scale < 1.1 else (300, 300)
    maps = turned_map(shape, scale, margin=1)
    ratio = scale**2
    planes = data, variance, np.zeros(data.shape, "u2")
    out = resample_reprojected(*planes, *maps, method=method, area_ratio=ratio, map_margin=1)
    good = out[2] == 0
    assert good.mean() > 0.98
    assert np.allclose(out[1][good], 25 * ratio, rtol=1e-5)
    scatter = out[0][good].std() / np.sqrt(25 * ratio)
    expected = method_noise_correlation(method, ratio) * math.sqrt(ratio)
    assert scatter == pytest.approx(expected, rel=0.015)
    blocks = [
        plane.astype(float).reshape(shape[0] // 20, 20, shape[1] // 20, 20).sum(axis=(1, 3))
        for plane in out[:2]
    ]
    pulls = (blocks[0] / np.sqrt(blocks[1])).std()
    if method == "nearest-neighbor":
        assert pulls > 1.01
    else:
        assert pulls == pytest.approx(1, abs=0.14)


def test_weights_are_those_of_the_methods() -> None:
    """The spline's against scipy's; all sum to 1; what is cut off the spline for DQ is small."""
    pixel = np.zeros(101)
    pixel[50] = 1
    half = ALL_SPLINE_TAPS // 2
    seen = map_coordinates(pixel, [50 + np.arange(-half, half) + 0.25], order=3)
    table = method_weights("bicubic", spline_taps=ALL_SPLINE_TAPS)[256]
    np.testing.assert_allclose(table[::-1], seen, atol=1e-6)
    for method in REPROJECT_METHODS:
        for ratio in (0.5, 1.0, 1.03, 4.0):
            weights = method_weights(method, ratio)
            np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
            np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-6)
    assert method_noise_correlation("bilinear") == pytest.approx(2 / 3, rel=1e-5)
    assert method_noise_correlation("exact") == pytest.approx(2 / 3, rel=1e-5)
    assert method_noise_correlation("nearest-neighbor") == 1
    assert [margin_of(method) for method in REPROJECT_METHODS] == [3, 3, None, 6, 4]


@pytest.mark.parametrize("method", REPROJECT_METHODS)
def test_the_pixel_map_gives_what_headers_give(method: str) -> None:
    """The map between two tangent planes of 20 and 21 mas gives what their headers give."""
    shape, data = (140, 150), noisy_planes((140, 150))[0]

    def tangent(scale: float, turn: float, pixel: tuple[float, float]) -> WCS:
        wcs = WCS(naxis=2)
        wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [80, -40], pixel
        c, s = (f(math.radians(turn)) * scale / 3600 for f in (math.cos, math.sin))
        wcs.wcs.cd = [[-c, s], [s, c]]
        return wcs

    array, output = tangent(0.02, 0.0, (70, 71)), tangent(0.021, 3.0, (50, 50))
    if method == "adaptive":
        full = reproject_adaptive((data, array), output, (100, 100), boundary_mode="ignore")[0]
    elif method == "exact":
        full = reproject_exact((data, array), output, (100, 100))[0]
    else:
        full = reproject_interp((data, array), output, (100, 100), order=method)[0]
    y, x = np.mgrid[-2:102, -2:102].astype(float)
    xmap, ymap = array.all_world2pix(*output.all_pix2world(x, y, 0), 0)
    dq = np.zeros(shape, "u2")
    got = resample_reprojected(data, data, dq, ymap, xmap, method=method, map_margin=2)
    tolerance = 1e-3 if method in ("adaptive", "exact") else 2e-5
    np.testing.assert_allclose(got[0], full, rtol=tolerance)


def test_a_map_is_inverted_also_beyond_its_edges() -> None:
    y, x = np.mgrid[:90, :120].astype(float)
    maps = 30 + 1.02 * y + 0.1 * x + 1e-4 * x * y, 5 + 0.98 * x - 0.1 * y + 1e-4 * x**2
    rows, columns = np.array([[3.0, 40.0, 88.5]]), np.array([[2.0, 77.0, 118.0]])
    shown = [map_coordinates(m, [rows, columns], order=1) for m in maps]
    got = invert_map(maps, *shown)
    np.testing.assert_allclose(got, [rows, columns], atol=1e-8)
    beyond = invert_map(maps, maps[0][:1, :1] - 3, maps[1][:1, :1])
    assert beyond[0] == pytest.approx(-3, abs=0.2)
    assert np.isnan(invert_map((maps[0] * np.nan, maps[1]), rows, columns)).all()


def test_errors_name_what_was_expected() -> None:
    planes, maps = noisy_planes((40, 40)), turned_map((10, 10))
    with pytest.raises(GdaskError, match=r"'sinc'.*nearest-neighbor"):
        resample_reprojected(*planes, *maps, method="sinc")
    with pytest.raises(GdaskError, match="'sinc'"):
        margin_of("sinc")
    with pytest.raises(GdaskError, match="at least 1"):
        resample_reprojected(*planes, *maps, method="adaptive")
    with pytest.raises(GdaskError, match="pixels inside"):
        resample_reprojected(*planes, *maps, method="bilinear", map_margin=5)
