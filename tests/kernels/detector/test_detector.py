"""Kernels that treat one plane: linearity, DQ, variance, flat, statistics. Known answers and noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage, signal

from gdask.kernels import statistics as stats
from gdask.kernels.detector import flat as flats
from gdask.kernels.detector import linearity, variance
from gdask.kernels.detector import quality as flags
from gdask.model import GdaskError

CUBIC = (0.9947237, 3.040362e-07, 4.2870263e-12)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(12)


# linearity


def test_linearize_ramp() -> None:
    data = np.linspace(-500, 60000, 999, dtype=np.float32).reshape(27, 37)
    electrons = data.astype(float) * 2.434 / 3
    truth = (CUBIC[0] * electrons + CUBIC[1] * electrons**2 + CUBIC[2] * electrons**3) * 3 / 2.434
    out = linearity.linearize(data, CUBIC, 2.434, coadds=3)
    assert out.dtype == np.float32 and out.shape == data.shape
    np.testing.assert_allclose(out, truth, rtol=2e-7)
    assert linearity.linearized_level(50000, CUBIC, 2.434) == pytest.approx(54760.98, abs=0.01)
    np.testing.assert_array_equal(linearity.linearize(data.T.astype(">f4"), CUBIC, 2.434, 3), out.T)


def test_linearize_variance_adds_the_photons(rng: np.random.Generator) -> None:
    raw = rng.normal(20000, 8000, (31, 17)).astype(np.float32)
    raw[:2] = -3
    corrected = linearity.linearize(raw, CUBIC, 1.0)
    before = variance.add_variance(raw, 10.0, coadds=4)
    after = linearity.linearize_variance(before, raw, corrected, coadds_averaged=4)
    np.testing.assert_allclose(after, variance.add_variance(corrected, 10.0, coadds=4), rtol=1e-6)
    assert (after[:2] == 100).all()


def test_add_variance() -> None:
    data = np.array([[-50, 0, 7, 1000, np.nan]], np.float32)
    np.testing.assert_array_equal(
        variance.add_variance(data, 5, coadds=2), [[25, 25, 28.5, 525, np.nan]]
    )
    np.testing.assert_array_equal(variance.poisson_variance(data, 2), [[0, 0, 3.5, 500, np.nan]])
    np.testing.assert_array_equal(
        variance.add_variance(data, 5, poisson=False), np.full((1, 5), 25)
    )
    np.testing.assert_array_equal(variance.read_noise_variance((2, 3), 1.5), np.full((2, 3), 2.25))


# DQ


def test_flag_levels() -> None:
    data = np.array([1, 39999.9, 40000, 49999, 50000, 1e9, np.nan, np.inf, -np.inf], np.float32)
    np.testing.assert_array_equal(
        flags.flag_levels(data, None, 40000, 50000), [0, 0, 2, 2, 4, 4, 16, 16, 16]
    )
    bpm = np.full(9, 1, np.uint16)
    np.testing.assert_array_equal(flags.flag_levels(data, bpm, np.inf, np.inf), [1] * 6 + [17] * 3)
    assert (bpm == 1).all()
    with pytest.raises(GdaskError, match="cut it to the data"):
        flags.flag_levels(data, bpm[:4], 1, 2)


def star_field(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sky and a star at (40, 30) whose core of radius 5, within a saturated ring of radius 8, reads low."""
    y, x = np.mgrid[:64, :80]
    radius = np.hypot(x - 40, y - 30)
    data = rng.normal(700, 30, radius.shape).astype(np.float32)
    data[radius < 10] = 45000
    data[radius < 8] = 52000
    data[radius < 5] = 900
    return data, radius < 5


def hidden(data: np.ndarray, bpm: np.ndarray | None = None, **more: int) -> np.ndarray:
    return (
        flags.hidden_saturation(data, flags.flag_levels(data, bpm, 40000, 51000), 40000, **more)
        != 0
    )


def test_hidden_saturation_finds_the_core(rng: np.random.Generator) -> None:
    data, core = star_field(rng)
    np.testing.assert_array_equal(hidden(data), core)
    assert not hidden(data, max_size=50).any()
    bpm = np.zeros(data.shape, np.uint16)
    bpm[30, 44:60] = 1  # dead pixels cut through the ring: it holds
    data[bpm > 0] = 12
    np.testing.assert_array_equal(hidden(data, bpm), core & (bpm == 0))
    np.testing.assert_array_equal(
        flags.saturation_mask(data, bpm, 40000, 51000), hidden(data, bpm) | (data > 51000)
    )
    both = flags.saturation_mask(data, bpm, 40000, 51000, include_non_linear=True)
    assert (both & ~(data > 40000)).sum() == (core & (bpm == 0)).sum()


def test_hidden_saturation_spares_the_rest(rng: np.random.Generator) -> None:
    data, _ = star_field(rng)
    assert not hidden(data[:, 40:]).any()  # cut by the array's edge
    assert not hidden(np.minimum(data, 50000)).any()  # non-linear, never saturated
    bpm = np.zeros(data.shape, np.uint16)
    bpm[data > 40000] = 1  # all of the wall is bad
    assert not hidden(data, bpm).any()
    bpm[:] = 0
    bpm[:, 40:] = 64  # half of it is
    assert not hidden(data, bpm).any()
    bright = np.where(data < 40000, 45000, data)  # a sky beyond linearity, a star and dead pixels
    bright[10:12, 10:12], bpm[:] = 3, 0
    bpm[10:12, 10:12] = 1
    assert not hidden(bright, bpm).any()


def test_masks_packed_and_cut(rng: np.random.Generator) -> None:
    mask = rng.random((37, 53)) < 0.1
    packed = flags.pack_mask(mask)
    assert packed.dtype == np.uint8 and packed.ndim == 1
    np.testing.assert_array_equal(flags.unpack_mask(packed, mask.shape), mask)
    np.testing.assert_array_equal(
        flags.unpack_window(packed, mask.shape, (3, 50, 11, 20)), mask[11:20, 3:50]
    )
    around = flags.unpack_window(packed, mask.shape, (-5, 60, -2, 41))
    np.testing.assert_array_equal(around, np.pad(mask, ((2, 4), (5, 7))))
    assert not flags.unpack_window(packed, mask.shape, (60, 70, 0, 5)).any()
    sparse = np.zeros((2048, 2048), bool)
    sparse[500:520, 700:720] = True
    assert flags.pack_mask(sparse).size < 5000


def test_border_mask() -> None:
    full = flags.border_mask((10, 12), 0, 0, (10, 12), 2)
    assert full.sum() == 120 - 6 * 8 and not full[2:8, 2:10].any()
    np.testing.assert_array_equal(flags.border_mask((5, 6), 6, 1, (10, 12), 2), full[1:6, 6:12])
    assert not flags.border_mask((4, 4), 4, 3, (10, 12), 2).any()


@pytest.mark.parametrize("radius", [0, 1, 1.5, 2.83, 7, 200])
def test_grow_is_a_disk(rng: np.random.Generator, radius: float) -> None:
    mask = rng.random((61, 47)) < 0.004
    mask[0, 0] = mask[33, 20:29] = True
    np.testing.assert_array_equal(
        flags.grow(mask, radius), ndimage.distance_transform_edt(~mask) <= radius
    )
    assert not flags.grow(np.zeros((5, 7), bool), radius).any()


def test_grow_refuses_nonsense() -> None:
    with pytest.raises(GdaskError, match="radius of 0 or more"):
        flags.grow(np.eye(3, dtype=bool), -1)


# flat


def test_divide_by_flat(rng: np.random.Generator) -> None:
    data = rng.normal(1000, 100, (23, 31)).astype(np.float32)
    flat = rng.uniform(0.5, 1.5, data.shape).astype(np.float32)
    var, flat_var = data * 1.1, flat * 1e-4
    dq, flat_dq = np.full(data.shape, 2, np.uint16), np.full(data.shape, 1, np.uint16)
    flat[0, :3] = 0, np.nan, -1
    got = flats.divide(data, var, dq, flat, flat_var, flat_dq)
    good = np.s_[1:]
    np.testing.assert_allclose(got[0][good], data[good] / flat[good], rtol=1e-6)
    want = (var[good] + (data[good] / flat[good]) ** 2 * flat_var[good]) / flat[good] ** 2
    np.testing.assert_allclose(got[1][good], want, rtol=1e-6)
    assert (got[2][0, :3] == 19).all() and (got[2][good] == 3).all()
    np.testing.assert_array_equal(got[0][0, :3], data[0, :3])
    np.testing.assert_array_equal(got[1], flats.flat_variance(data, var, flat, flat_var))
    with pytest.raises(GdaskError, match="shapes"):
        flats.flat_data(data, flat[1:])


def test_flat_variance_is_the_scatter(rng: np.random.Generator) -> None:
    data = rng.normal(500, 20, 200000).astype(np.float32)
    flat = rng.normal(0.8, 0.01, data.size).astype(np.float32)
    out = flats.flat_data(data, flat).astype(float)
    predicted = flats.flat_variance(data, np.full_like(data, 400), flat, np.full_like(flat, 1e-4))
    assert out.var() / predicted.mean() == pytest.approx(1, abs=0.02)


def test_flat_noise_of_the_sky_goes_with_the_sky(rng: np.random.Generator) -> None:
    """Frame minus sky frame, both through one noisy flat: the variances that are left out at the level are not there."""
    shape, sky, star = (400, 500), 20000.0, 3000.0
    true = rng.uniform(0.7, 1.3, shape)
    flat = (true * rng.normal(1, 0.004, shape)).astype(np.float32)
    frame, other = (
        rng.normal(light * true, np.sqrt(light * true)).astype(np.float32)
        for light in (sky + star, sky)
    )
    flat_var, dq = (0.004**2 * true**2).astype(np.float32), np.zeros(shape, np.uint16)
    level = flats.sky_level(other, dq, flat, dq)
    assert level == pytest.approx(sky, rel=1e-3)
    left = flats.flat_data(frame, flat).astype(float) - flats.flat_data(other, flat)
    variance = sum(
        flats.flat_variance(raw, raw, flat, flat_var, level).astype(float) for raw in (frame, other)
    )
    assert np.var(left) / np.mean(variance) == pytest.approx(1, abs=0.015)
    naive = sum(
        flats.flat_variance(raw, raw, flat, flat_var).astype(float) for raw in (frame, other)
    )
    assert np.var(left) / np.mean(naive) < 0.8
    assert flats.sky_level(other, dq + np.uint16(1), flat, dq) == 0


def test_threshold() -> None:
    flat = np.array([0.5, 0.001, 20, 0.001, 20, np.nan, 1.2], np.float32)
    dq = np.array([0, 0, 0, 1, 1, 0, 64], np.uint16)
    out, bits = flats.threshold(flat, dq)
    np.testing.assert_array_equal(out, np.array([0.5, 1, 1, 1, 20, 1, 1], np.float32))
    np.testing.assert_array_equal(bits, [0, 64, 64, 1, 1, 64, 64])
    assert out.dtype == np.float32 and bits.dtype == np.uint16 and flat[1] == np.float32(0.001)


def test_bad_pixels_from_flat_and_dark() -> None:
    flat = np.array([1, 0.5, 1.5, 0.2, np.nan, 1], np.float32)
    dq = np.array([0, 0, 0, 64, 0, 1], np.uint16)
    np.testing.assert_array_equal(flats.bpm_from_flat(flat, dq, 0.68, 1.28), [0, 1, 1, 64, 1, 1])
    np.testing.assert_array_equal(flats.bpm_from_flat(flat, None, 0.5, None), [0, 0, 0, 1, 1, 0])
    dark = np.array([-151, -150, 0, 3051, 40, 40], np.float32)
    np.testing.assert_array_equal(flats.bpm_from_dark(dark, dq, -150, 3050), [1, 0, 0, 1, 0, 1])
    np.testing.assert_array_equal(flats.bpm_from_dark(dark, None, None, 3050), [0, 0, 0, 1, 0, 0])


# statistics


def stars(rng: np.random.Generator, shape: tuple[int, int], number: int) -> np.ndarray:
    """Light of stars with a power law of fluxes and Moffat profiles."""
    light = np.zeros(shape)
    flux = np.minimum(20 * rng.random(number) ** (-1 / 0.7), 1e6)
    np.add.at(light, (rng.integers(0, shape[0], number), rng.integers(0, shape[1], number)), flux)
    y, x = np.mgrid[-30:31, -30:31]
    profile = (1 + (x**2 + y**2) / 9.0) ** -2.5
    return signal.fftconvolve(light, profile / profile.sum(), mode="same")


def test_background_of_noise(rng: np.random.Generator) -> None:
    """No bias, and the scatter sigma / sqrt(n) of an ideal estimate, also under a mask."""
    n = 40000
    planes = rng.normal(700, 30, (150, n)).astype(np.float32)
    results = [stats.fit_sky_level(plane) for plane in planes]
    levels = np.array([result.level for result in results])
    unit = 30 / np.sqrt(n)
    assert abs(levels.mean() - 700) < 4 * unit / np.sqrt(len(levels))
    assert levels.std() < 1.3 * unit
    assert np.mean([result.sigma for result in results]) == pytest.approx(30, rel=2e-3)
    mask = rng.random(n) < 0.3
    spoilt = np.where(mask, rng.choice([-1e4, np.nan, 1e5], n), planes[0]).astype(np.float32)
    level, sigma, number = stats.fit_sky_level(spoilt, mask)
    assert number == (~mask).sum() and abs(level - 700) < 5 * unit and abs(sigma - 30) < 1
    assert stats.fit_sky_level(spoilt, mask) == stats.background(
        spoilt.reshape(200, 200), mask.reshape(200, 200)
    )


@pytest.mark.parametrize(("number", "most"), [(100, 0.04), (2500, 0.6)])
def test_background_among_stars(rng: np.random.Generator, number: int, most: float) -> None:
    """In sigma, and never more than 0.8 of what a clipped median is off."""
    plane = rng.normal(0, 1, (512, 512)) + stars(rng, (512, 512), number)
    rest = plane.ravel()
    for _ in range(10):
        rest = rest[np.abs(rest - np.median(rest)) < 3 * rest.std()]
    level = stats.fit_sky_level(plane.astype(np.float32)).level
    assert -0.01 < level < min(most, max(0.8 * np.median(rest), 0.04))


def test_background_of_odd_planes(rng: np.random.Generator) -> None:
    nothing = stats.fit_sky_level(np.full((9, 9), np.nan, np.float32))
    assert np.isnan(nothing.level) and nothing.n == 0
    assert stats.fit_sky_level(np.full((300, 300), 5, np.float32)) == (5, 0, 90000)
    with pytest.raises(GdaskError, match="cut it to the plane"):
        stats.fit_sky_level(np.full((300, 300), 5, np.float32), np.ones((9, 9), bool))
    few = rng.normal(10, 1, 60).astype(np.float32)
    assert stats.fit_sky_level(few).level == pytest.approx(np.median(few))
    assert stats.fit_sky_level(rng.uniform(0, 1, 50000).astype(np.float32)).level == pytest.approx(
        0.5, abs=0.01
    )


def test_median(rng: np.random.Generator) -> None:
    values = rng.normal(3, 1, (20, 21)).astype(np.float32)
    mask = rng.random(values.shape) < 0.5
    values[3, 3], mask[3, 3] = np.nan, False
    good = values[~mask & np.isfinite(values)]
    assert stats.median(values, mask) == np.median(good)
    assert np.isnan(stats.median(values, np.ones_like(mask)))


def test_median_over_many_planes(rng: np.random.Generator) -> None:
    """Right to 1e-4, the same number for any chunking, and for numbers of any size and sign."""
    planes = [
        rng.normal(level, 0.05, (101, 53)).astype(np.float32) for level in (0.9, 1.0, 1.05, 1.2)
    ]
    masks = [rng.random((101, 53)) < 0.1 for _ in planes]
    planes[1][0, 0], masks[1][0, 0] = np.nan, False
    whole = stats.median_from_histograms(
        *(stats.mergeable_histogram(p, m) for p, m in zip(planes, masks, strict=True))
    )
    good = np.concatenate([p[~m & np.isfinite(p)] for p, m in zip(planes, masks, strict=True)])
    assert whole == pytest.approx(np.median(good), rel=1e-4)
    cuts = [
        stats.mergeable_histogram(p[y : y + 17], m[y : y + 17])
        for p, m in zip(planes, masks, strict=True)
        for y in range(0, 101, 17)
    ]
    assert stats.median_from_histograms(*cuts[::-1]) == whole
    for values in ([-3e20, -2e20, 5], [1e-30], [-4, 8], [-7, -6, -5, -4], [-0.0, 0.0, 0.0]):
        array = np.array(values, np.float32)
        assert stats.median_from_histograms(stats.mergeable_histogram(array)) == pytest.approx(
            np.median(array), rel=1e-4, abs=1e-35
        )
    assert np.isnan(
        stats.median_from_histograms(stats.mergeable_histogram(planes[0], np.ones_like(masks[0])))
    )
