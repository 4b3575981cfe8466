"""Throughputs of frames against those that were put in."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.accuracy.matched_stack import radial_profile, stars_image
from gdask.kernels.sources import photometry
from gdask.kernels.sources.centroids import fit_positions
from gdask.kernels.sources.photometry import WIDE_RADII
from gdask.kernels.sources.throughput import (
    FLUX_FLOOR,
    Throughputs,
    core_shares,
    measure_throughputs,
)

#: Shares of a star's light within three radii where images are narrow, and where they are wide.
NARROW, WIDE = (0.97, 0.99, 0.998), (0.55, 0.85, 0.98)


def measured(
    true: np.ndarray,
    spread: float = 0.0,
    shares: tuple[float, ...] = NARROW,
    stars: int = 60,
    seed: int = 1,
    noise: tuple[float, ...] = (100.0, 200.0, 400.0),
) -> Throughputs:
    """Measure frames whose light beyond each radius differs by `spread`, as a fraction of it."""
    rng, frames = np.random.default_rng(seed), len(true)
    flux = 10 ** rng.uniform(3.5, 6, stars)
    beyond = (1 - np.array(shares)) * np.exp(rng.normal(0, spread, frames))[:, None]
    frame, star = (v.ravel() for v in np.meshgrid(np.arange(frames), np.arange(stars)))
    keep = rng.uniform(size=len(star)) < 0.7
    frame, star = frame[keep], star[keep]
    clean = (flux[star] * true[frame])[:, None] * (1 - beyond[frame])
    error = np.hypot(np.array(noise), 0.005 * clean)
    value = clean + rng.normal(size=clean.shape) * error
    value[rng.uniform(size=len(clean)) < 0.02] *= 1.3
    share = np.broadcast_to(np.array(shares), value.shape)
    return measure_throughputs(star, frame, value, error, share, frames)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("spread", "shares"), [(0.15, NARROW), (0.0, NARROW), (0.05, WIDE)])
def test_transparency_is_found_and_taken_out(
    seed: int, spread: float, shares: tuple[float, ...]
) -> None:
    """With images that differ, too: a small radius would be off by 2 % with the wide ones."""
    true = np.exp(np.random.default_rng(seed + 40).normal(0, 0.03, 9))
    found = measured(true, spread, shares, seed=seed)
    expected = true / np.exp(np.log(true).mean())
    assert np.abs(found.value / expected - 1).max() < 4 * found.error.max() < 0.03
    left = expected * found.factor
    assert np.std(left) < 0.2 * np.std(true) and 0.01 < found.scatter < 0.05
    assert shares == NARROW or found.radius == 2


@pytest.mark.parametrize("true_scatter", [0.0, 0.002])
def test_throughputs_that_are_not_known_better_than_they_matter_change_nothing(
    true_scatter: float,
) -> None:
    """Star images that differ look like transparency within small radii, by 2 % here."""
    for seed in range(6):
        true = np.exp(np.random.default_rng(seed).normal(0, true_scatter, 9))
        assert (measured(true, 0.05, WIDE, seed=seed).factor == 1.0).all()
        far = measured(true, 0.05, WIDE, seed=seed, noise=(100.0, 2e5, 4e5))
        assert (far.factor == 1.0).all()


@pytest.mark.parametrize("seed", range(3))
def test_shares_of_light_in_the_cores_are_found(seed: int) -> None:
    """Whatever the transparency; cores differ by 3 %, light beyond each radius by 5 %."""
    rng, frames, stars = np.random.default_rng(seed), 9, 60
    shares = np.array([0.40, 0.57, 0.80, 0.97])
    core = np.exp(rng.normal(0, 0.03, frames))
    beyond = (1 - shares) * np.exp(rng.normal(0, 0.05, frames))[:, None]
    within = np.column_stack([shares[0] * core, 1 - beyond[:, 1:]])
    frame, star = (v.ravel() for v in np.meshgrid(np.arange(frames), np.arange(stars)))
    flux = 10 ** rng.uniform(4, 6, stars)[star] * np.exp(rng.normal(0, 0.05, frames))[frame]
    clean, error = flux[:, None] * within[frame], np.array([50.0, 100.0, 200.0, 400.0])
    value = clean + rng.normal(size=clean.shape) * error
    share = np.broadcast_to(shares, value.shape)
    errors = np.broadcast_to(error, value.shape)
    found = core_shares(star, frame, value, errors, share, frames)
    expected = core / np.exp(np.log(core).mean())
    assert np.std(found.value / expected) < 0.3 * np.std(core)
    assert np.abs(np.log(found.value / expected)).max() < 4 * found.error.max() < 0.04
    assert 0.5 < found.scatter / np.std(np.log(core), ddof=1) < 1.5
    none = core_shares(star, frame, value * np.nan, errors, share, frames)
    assert (none.value == 1).all() and np.isinf(none.error).all()


def as_radii(*columns: np.ndarray) -> list[np.ndarray]:
    """Columns as light within one radius that holds all of it."""
    return [*(column[:, None] for column in columns), np.ones((len(columns[0]), 1))]


def test_a_frame_without_shared_stars_is_left_alone() -> None:
    true = np.array([1.0, 0.9, 1.05, 0.95, 1.0])
    rng = np.random.default_rng(3)
    frame, star = (v.ravel() for v in np.meshgrid(np.arange(5), np.arange(40)))
    star = np.where(frame == 4, star + 100, star)
    flux = 10 ** rng.uniform(4, 5, 140)[star] * true[frame]
    found = measure_throughputs(star, frame, *as_radii(flux, 0.002 * flux), 5)
    assert np.isinf(found.error[4]) and found.factor[4] == 1.0 and found.value[4] == 1.0
    left = (true * found.factor)[:4]
    assert np.std(left / left.mean()) < 0.005


def test_one_star_that_outweighs_the_others_tells_nothing() -> None:
    """A star that is lost by 5 % in some frames (saturated, say), and nine faint ones."""
    rng = np.random.default_rng(5)
    frame, star = (v.ravel() for v in np.meshgrid(np.arange(9), np.arange(10)))
    lost = np.where(rng.uniform(size=9) < 0.4, 0.95, 1.0)
    flux = np.where(star == 0, 1e6 * lost[frame], 1e4)
    error = np.where(star == 0, 1e2, 2e3)
    value = flux + error * rng.normal(size=len(flux))
    found = measure_throughputs(star, frame, *as_radii(value, error), 9)
    assert (found.factor == 1.0).all()


def test_frames_that_differ_by_much_are_not_taken_for_wrong_stars() -> None:
    true = np.array([1.0, 0.4, 1.0, 0.95, 1.1, 0.7])
    rng = np.random.default_rng(7)
    frame, star = (v.ravel() for v in np.meshgrid(np.arange(6), np.arange(30)))
    flux = 10 ** rng.uniform(4, 5, 30)[star] * true[frame]
    value = flux * (1 + 0.003 * rng.normal(size=len(flux)))
    found = measure_throughputs(star, frame, *as_radii(value, 0.003 * flux), 6)
    assert np.abs(found.value / true * np.exp(np.log(true).mean()) - 1).max() < 0.01


def test_frames_of_which_nothing_is_known_do_not_count() -> None:
    star, frame = np.arange(40) % 20, np.arange(40) // 20
    unknown = np.full((40, 1), np.nan)
    found = measure_throughputs(star, frame, unknown, unknown, np.ones((40, 1)), 2)
    assert (found.factor == 1).all() and np.isinf(found.error).all() and found.scatter == 0


def test_a_cloud_over_one_frame_is_taken_out() -> None:
    """The scatter of the others says nothing, and they stay as they are."""
    true = np.where(np.arange(9) == 4, 0.9, 1.0)
    found = measured(true)
    left = true * found.factor
    assert abs(left[4] / np.mean(np.delete(left, 4)) - 1) < 0.025
    assert (np.delete(found.factor, 4) == 1.0).all()


def test_light_within_a_radius_has_the_ratio_of_throughputs_in_a_crowd() -> None:
    """Two frames of a crowded field in seeing of 0.55 and 0.62 arcsec, the second through a cloud.

    Neighbours' light is in both sums; the light of each frame's fitted stars would be off by what
    their star images are.
    """
    rng, size = np.random.default_rng(8), 500
    x, y = rng.uniform(0, size - 1, (2, 700))
    flux, found = 10 ** (6.3 - 2.7 * rng.uniform(0, 1, 700) ** 0.6), []
    for seeing, light in ((0.55, 1.0), (0.62, 0.9)):
        profile = radial_profile([(1.0, seeing, 3)], 0.18)
        image = stars_image((size, size), x, y, light * flux, profile, 1e-3)
        variance = 60.0**2 + np.maximum(image, 0) / 9
        data = image + rng.normal(size=image.shape) * np.sqrt(variance)
        bad = rng.uniform(size=image.shape) < 0.002
        planes = np.where(bad, 6e4, data).astype("f4"), variance.astype("f4"), bad.astype("u2")
        found.append(fit_positions(*planes, x, y, fwhm=seeing / 0.18))
    radius = WIDE_RADII.index(14.0)
    one, other = (stars["wide"][:, radius] for stars in found)
    both = np.isfinite(one) & np.isfinite(other)
    assert 15 < both.sum() <= 40
    ratio = other[both] / one[both]
    assert abs(np.median(ratio) / 0.9 - 1) < 0.006, ratio
    noise = [stars["ewide"][both, radius] / stars["wide"][both, radius] for stars in found]
    pull = (ratio / np.median(ratio) - 1) / np.sqrt(noise[0] ** 2 + noise[1] ** 2 + FLUX_FLOOR**2)
    assert 0.4 < 1.4826 * np.median(np.abs(pull)) < 1.6
    assert np.all((found[0]["share"][0] > 0.5) & (found[0]["share"][0] < 1.02))


def test_wide_fluxes_are_sums_of_the_pixels() -> None:
    """Against plain NumPy, with bad pixels inside, at the rim and in the ring, and an edge near."""
    rng = np.random.default_rng(8)
    data = rng.normal(20, 5, (200, 240)).astype("f4")
    variance = rng.uniform(20, 30, data.shape).astype("f4")
    bad = rng.uniform(size=data.shape) < 0.01
    bad[90:130, 150:156] = True
    params = np.zeros((2, 6))
    params[:, :3] = (101.3, 99.7, 1e5), (30.2, 60.9, 2e5)
    step = 4.0
    profile = np.exp(-np.arange(500) * step / 60)[None]
    flux, error = photometry.wide_fluxes(data, variance, bad, params, profile, step)
    rows, columns = np.indices(data.shape)
    for n, (x, y, light) in enumerate(params[:, :3]):
        r = np.hypot(columns - x, rows - y)
        for c, radius in enumerate(photometry.WIDE_RADII):
            if min(x, y, 239 - x, 199 - y) < radius:
                assert np.isnan(flux[n, c]) and np.isnan(error[n, c])
                continue
            inside = np.clip(radius + 0.5 - r, 0, 1)
            ring = (r > 1.2 * radius) & (r < 1.6 * radius) & ~bad
            sky = data[ring].mean(dtype=float)
            star = light * np.interp(r**2 / step, np.arange(500), profile[0])
            if inside[bad].sum() > photometry.MOST_BAD_INSIDE * inside.sum():
                assert np.isnan(flux[n, c])
                continue
            total = (inside * np.where(bad, star, data - sky)).sum()
            noise = (inside**2 * variance)[~bad].sum()
            noise += (inside.sum() / ring.sum()) ** 2 * variance[ring].sum(dtype=float)
            assert flux[n, c] == pytest.approx(total, rel=1e-5, abs=0.1)
            assert error[n, c] == pytest.approx(np.sqrt(noise), rel=1e-6)
    assert 5 <= np.isfinite(flux).sum() < flux.size
