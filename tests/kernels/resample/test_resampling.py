"""Interpolation and resampling against polynomials, known stars, noise and reproject."""

from __future__ import annotations

import math

import numpy as np
import pytest
from known_images import (
    FULL_ARRAY,
    SCALE,
    box_sums,
    centroid,
    gsaoi,
    lattice,
    noisy_planes,
    star_image,
    turned_map,
    turned_places,
)
from reproject import reproject_interp

from gdask.kernels.geometry.grid import common_grid, footprint, input_window, pixel_map, sky_to_grid
from gdask.kernels.geometry.projection import pixel_area, to_sky
from gdask.kernels.geometry.wcs import array_wcs, grid_header
from gdask.kernels.resample.interpolation import (
    TAPS,
    kernel_margin,
    kernel_weights,
    noise_correlation,
)
from gdask.kernels.resample.reproject_flags import mend
from gdask.kernels.resample.resampling import resample
from gdask.model import DQ, GdaskError


@pytest.mark.parametrize(
    ("name", "order"), [("bilinear", 1), ("cubic", 2), ("quintic", 5), ("lanczos3", 0)]
)
def test_kernel_is_exact_for_polynomials_of_its_order(name: str, order: int) -> None:
    table = kernel_weights(name).astype(float)
    phase = np.linspace(0, 1, len(table))[:, None]
    offset = np.arange(1 - TAPS[name] // 2, TAPS[name] // 2 + 1) - phase
    for power in range(order + 1):
        assert np.abs((table * offset**power).sum(axis=1) - (power == 0)).max() < 3e-5
    assert np.abs((table * offset ** (order + 1)).sum(axis=1)).max() > 1e-3


def test_unknown_kernel_is_named() -> None:
    with pytest.raises(GdaskError, match=r"'sinc'.*quintic"):
        kernel_weights("sinc")


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
    data, variance, dq = noisy_planes((40, 50), bad=0.1)
    y, x = np.mgrid[10:30, 8:40].astype(float)
    out = resample(data, variance, dq & 2, y, x, interpolation=name)
    assert np.allclose(out[0], data[10:30, 8:40], rtol=1e-6)
    assert np.allclose(out[1], variance[10:30, 8:40], rtol=1e-6)
    assert np.array_equal(out[2], (dq & 2)[10:30, 8:40])


@pytest.mark.parametrize("name", ["quintic", "bilinear"])
def test_same_bits_from_any_tile(name: str) -> None:
    geometry = gsaoi(corrected=True)[1]
    planes = noisy_planes(FULL_ARRAY, bad=0.02)
    planes[0][700:720, 600:640] = np.nan
    grid = common_grid(gsaoi(), [FULL_ARRAY] * 4, 0.02, 12.3, 359.99, -43.1)
    y1, _y2, x1, _x2 = footprint(geometry, FULL_ARRAY, grid)
    window = (y1 + 600, y1 + 1000, x1 + 350, x1 + 700)
    whole = resample(*planes, *pixel_map(geometry, grid, window), interpolation=name)
    assert 0.05 < np.mean(whole[2] == 0) < 0.98
    rng = np.random.default_rng(6)
    for _ in range(8):
        a, b = np.sort(rng.choice(np.arange(window[0], window[1]), 2, replace=False))
        c, d = np.sort(rng.choice(np.arange(window[2], window[3]), 2, replace=False))
        crop = input_window(geometry, FULL_ARRAY, grid, (a, b, c, d), kernel_margin(name))
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
    data, variance, dq = noisy_planes((30, 40))
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
    data, variance, dq = noisy_planes((80, 90))
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
    data, variance, dq = noisy_planes((60, 80))
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
    x, y = lattice((420, 420), 45)
    image = star_image((420, 420), x, y, np.full(x.size, 1e5), fwhm).astype("f4")
    ymap, xmap = turned_map((390, 380))
    out = resample(image, image + 1, np.zeros(image.shape, "u2"), ymap, xmap, area_ratio=SCALE**2)[
        0
    ].astype(float)
    places = turned_places(x, y)
    seen = np.all((places > 20) & (places < 360), axis=0)
    found = np.array([centroid(out, *p, fwhm) for p in places[:, seen].T])
    assert len(found) > 40
    assert np.hypot(*(found - places[:, seen].T).T).max() < 0.005
    fluxes = box_sums(out, *places[:, seen])
    assert np.abs(fluxes / 1e5 - 1).max() < 2e-4


def test_fluxes_through_the_distortion_do_not_depend_on_position() -> None:
    geometry = gsaoi(pa=0.0)[0]
    x, y = lattice(FULL_ARRAY, 170)
    flux = np.full(x.size, 1e5)
    j, i = np.mgrid[: FULL_ARRAY[0], : FULL_ARRAY[1]]
    area = pixel_area(geometry, i, j)
    reference = float(area.mean())
    electrons = star_image(FULL_ARRAY, x, y, flux, 4.0)
    brightness = (electrons / (area / reference)).astype(
        "f4"
    )  # what a flat of uniform light, normalised to 1, leaves
    grid = common_grid([geometry], [FULL_ARRAY], 0.02, 0.0, geometry.ra, geometry.dec)
    maps = pixel_map(geometry, grid, (0, grid.shape[0], 0, grid.shape[1]))
    out = resample(
        brightness,
        brightness + 1,
        np.zeros(FULL_ARRAY, "u2"),
        *maps,
        area_ratio=grid.scale**2 / reference,
    )[0]

    before = box_sums(brightness, x, y) / flux
    after = box_sums(out, *sky_to_grid(grid, *to_sky(geometry, x, y))) / flux
    assert np.ptp(before) > 0.02
    assert np.abs(after - 1).max() < 1e-3


def test_whole_chain_is_reprojects_with_the_arrays_header() -> None:
    geometry = gsaoi(pa=20.0, corrected=True, x0=801, y0=901)[2]
    shape = (250, 260)
    x, y = lattice(shape, 30)
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


def test_shapes_must_agree() -> None:
    data, variance, dq = noisy_planes((20, 20))
    with pytest.raises(GdaskError, match=r"\(20, 20\), \(19, 20\)"):
        resample(data, variance[1:], dq, *turned_map((10, 10)))
