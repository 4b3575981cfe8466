"""Sky levels and medians of planes against known answers and noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import signal

from gdask.kernels.statistics import (
    fit_sky_level,
    median_from_histograms,
    mergeable_histogram,
    middle,
)
from gdask.model import DQ, GdaskError


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(12)


def stars(rng: np.random.Generator, shape: tuple[int, int], number: int) -> np.ndarray:
    """Light of stars with a power law of fluxes and Moffat profiles."""
    light = np.zeros(shape)
    flux = np.minimum(20 * rng.random(number) ** (-1 / 0.7), 1e6)
    np.add.at(light, (rng.integers(0, shape[0], number), rng.integers(0, shape[1], number)), flux)
    y, x = np.mgrid[-30:31, -30:31]
    profile = (1 + (x**2 + y**2) / 9.0) ** -2.5
    return signal.fftconvolve(light, profile / profile.sum(), mode="same")


def test_sky_level_of_noise(rng: np.random.Generator) -> None:
    """It has no bias and the scatter sigma / sqrt(n) of an ideal estimate, also with a mask."""
    n = 40000
    planes = rng.normal(700, 30, (150, n)).astype(np.float32)
    results = [fit_sky_level(plane) for plane in planes]
    levels = np.array([result.level for result in results])
    ideal_error = 30 / np.sqrt(n)
    assert abs(levels.mean() - 700) < 4 * ideal_error / np.sqrt(len(levels))
    assert levels.std() < 1.3 * ideal_error
    assert np.mean([result.sigma for result in results]) == pytest.approx(30, rel=2e-3)
    mask = rng.random(n) < 0.3
    spoilt = np.where(mask, rng.choice([-1e4, np.nan, 1e5], n), planes[0]).astype(np.float32)
    level, sigma, number = fit_sky_level(spoilt, mask)
    assert number == (~mask).sum() and abs(level - 700) < 5 * ideal_error and abs(sigma - 30) < 1
    assert fit_sky_level(spoilt, mask) == fit_sky_level(
        spoilt.reshape(200, 200), mask.reshape(200, 200)
    )


@pytest.mark.parametrize(("number", "most"), [(100, 0.04), (2500, 0.6)])
def test_sky_level_among_stars(rng: np.random.Generator, number: int, most: float) -> None:
    """Its bias is at most `most` sigma, and never more than 0.8 of that of a clipped median."""
    plane = rng.normal(0, 1, (512, 512)) + stars(rng, (512, 512), number)
    rest = plane.ravel()
    for _ in range(10):
        rest = rest[np.abs(rest - np.median(rest)) < 3 * rest.std()]
    level = fit_sky_level(plane.astype(np.float32)).level
    assert -0.01 < level < min(most, max(0.8 * np.median(rest), 0.04))


def test_sky_level_of_odd_planes(rng: np.random.Generator) -> None:
    nothing = fit_sky_level(np.full((9, 9), np.nan, np.float32))
    assert np.isnan(nothing.level) and nothing.n == 0
    assert fit_sky_level(np.full((300, 300), 5, np.float32)) == (5, 0, 90000)
    with pytest.raises(GdaskError, match="cut it to the plane"):
        fit_sky_level(np.full((300, 300), 5, np.float32), np.ones((9, 9), bool))
    few = rng.normal(10, 1, 60).astype(np.float32)
    assert fit_sky_level(few).level == pytest.approx(np.median(few))
    assert fit_sky_level(rng.uniform(0, 1, 50000).astype(np.float32)).level == pytest.approx(
        0.5, abs=0.01
    )


def test_median_of_many_planes(rng: np.random.Generator) -> None:
    """It is right to 1e-4, the same for any chunks, and for numbers of any size and sign."""
    planes = [
        rng.normal(level, 0.05, (101, 53)).astype(np.float32) for level in (0.9, 1.0, 1.05, 1.2)
    ]
    masks = [rng.random((101, 53)) < 0.1 for _ in planes]
    planes[1][0, 0], masks[1][0, 0] = np.nan, False
    whole = median_from_histograms(
        *(mergeable_histogram(p, m) for p, m in zip(planes, masks, strict=True))
    )
    good = np.concatenate([p[~m & np.isfinite(p)] for p, m in zip(planes, masks, strict=True)])
    assert whole == pytest.approx(np.median(good), rel=1e-4)
    cuts = [
        mergeable_histogram(p[y : y + 17], m[y : y + 17])
        for p, m in zip(planes, masks, strict=True)
        for y in range(0, 101, 17)
    ]
    assert median_from_histograms(*cuts[::-1]) == whole
    for values in ([-3e20, -2e20, 5], [1e-30], [-4, 8], [-7, -6, -5, -4], [-0.0, 0.0, 0.0]):
        array = np.array(values, np.float32)
        assert median_from_histograms(mergeable_histogram(array)) == pytest.approx(
            np.median(array), rel=1e-4, abs=1e-35
        )
    assert np.isnan(median_from_histograms(mergeable_histogram(planes[0], np.ones_like(masks[0]))))


@pytest.mark.parametrize("number", [1, 2, 9, 1000, 4097])
def test_the_middle_is_the_median(rng: np.random.Generator, number: int) -> None:
    values = rng.normal(5, 1, number).astype(np.float32)
    before = values.copy()
    assert middle(values) == np.median(values) and middle(values).dtype == np.float32
    np.testing.assert_array_equal(values, before)


def test_unusable_pixels_are_left_out(rng: np.random.Generator) -> None:
    """DQ counts as a mask of its unusable pixels; non-linear ones are usable."""
    plane = rng.normal(700, 30, (211, 307)).astype(np.float32)
    bits = np.array([0, DQ.BAD_PIXEL, DQ.NON_LINEAR, DQ.SATURATED, DQ.NO_DATA], np.uint16)
    dq = rng.choice(bits, plane.shape, p=(0.6, 0.1, 0.1, 0.1, 0.1))
    objects = rng.random(plane.shape) < 0.2
    unusable = (dq & ~np.uint16(DQ.NON_LINEAR)) != 0
    plane[unusable] = rng.choice([-1e4, 1e4, np.nan], unusable.sum())
    for mask in (None, objects):
        left_out = unusable if mask is None else unusable | mask
        found = fit_sky_level(plane, mask, dq)
        assert found == fit_sky_level(plane, left_out)
        assert found.n == (~left_out).sum() and found.level == pytest.approx(700, abs=1)
        np.testing.assert_array_equal(
            mergeable_histogram(plane, mask, dq), mergeable_histogram(plane, left_out)
        )
    with pytest.raises(GdaskError, match="cut it to the plane"):
        mergeable_histogram(plane, dq=dq[1:])
