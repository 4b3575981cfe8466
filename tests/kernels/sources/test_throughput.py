"""Throughputs of frames against those that were put in."""

from __future__ import annotations

import numpy as np
import pytest

from gdask.kernels.sources.throughput import Throughputs, measure_throughputs


def measured(
    true: np.ndarray, scale_error: float, stars: int = 60, seed: int = 1, seen: float = 0.7
) -> Throughputs:
    """Measure frames of four arrays; each array's fluxes are off by an error of their own."""
    rng, frames = np.random.default_rng(seed), len(true)
    flux = 10 ** rng.uniform(3.5, 6, stars)
    common = np.exp(rng.normal(0, scale_error, (frames, 4)))
    frame, star = (v.ravel() for v in np.meshgrid(np.arange(frames), np.arange(stars)))
    keep = rng.uniform(size=len(star)) < seen
    frame, star = frame[keep], star[keep]
    array = (star + frame) % 4
    clean = flux[star] * true[frame] * common[frame, array]
    error = np.hypot(100.0, 0.005 * clean)
    value = clean + rng.normal(size=len(clean)) * error
    value[rng.uniform(size=len(clean)) < 0.02] *= 1.3
    given = np.full((frames, 4), scale_error)
    return measure_throughputs(star, frame, array, value, error, given, frames)


@pytest.mark.parametrize("seed", range(3))
def test_transparency_is_found_and_taken_out(seed: int) -> None:
    true = np.exp(np.random.default_rng(seed + 40).normal(0, 0.03, 9))
    found = measured(true, 0.004, seed=seed)
    expected = true / np.exp(np.log(true).mean())
    assert np.abs(found.value / expected - 1).max() < 4 * found.error.max() < 0.02
    left = expected * found.factor
    assert np.std(left) < 0.2 * np.std(true) and 0.015 < found.scatter < 0.05


@pytest.mark.parametrize("scale_error", [0.01, 0.03])
def test_throughputs_that_are_not_known_better_than_they_matter_change_nothing(
    scale_error: float,
) -> None:
    for seed in range(5):
        true = np.exp(np.random.default_rng(seed).normal(0, 0.003, 9))
        assert (measured(true, scale_error, seed=seed).factor == 1.0).all()


def test_a_frame_without_shared_stars_is_left_alone() -> None:
    true = np.array([1.0, 0.9, 1.05, 0.95, 1.0])
    rng = np.random.default_rng(3)
    frame, star = (v.ravel() for v in np.meshgrid(np.arange(5), np.arange(40)))
    star = np.where(frame == 4, star + 100, star)
    flux = 10 ** rng.uniform(4, 5, 140)[star] * true[frame]
    none = np.zeros(len(star), int)
    found = measure_throughputs(star, frame, none, flux, 0.002 * flux, np.full((5, 1), 1e-3), 5)
    assert np.isinf(found.error[4]) and found.factor[4] == 1.0 and found.value[4] == 1.0
    left = (true * found.factor)[:4]
    assert np.std(left / left.mean()) < 0.005


def test_a_frame_that_is_badly_known_is_left_alone_and_moves_no_other() -> None:
    """As a crowded frame with a sky that is not flat: 33 % off, with an error of 5 %."""
    rng = np.random.default_rng(5)
    frame, star = (v.ravel() for v in np.meshgrid(np.arange(9), np.arange(60)))
    true = np.exp(rng.normal(0, 0.004, 9))
    off = np.where(np.arange(9) == 1, 1.33, np.exp(rng.normal(0, 0.012, 9)))
    flux = 10 ** rng.uniform(4, 5, 60)[star] * (true * off)[frame]
    error = np.where(np.arange(9) == 1, 0.05, 0.006)[:, None]
    found = measure_throughputs(star, frame, 0 * star, flux, 0.005 * flux, error, 9)
    assert (found.factor == 1.0).all() and found.value[1] == 1.0


def test_arrays_of_which_nothing_is_known_do_not_count() -> None:
    star, frame = np.arange(40) % 20, np.arange(40) // 20
    flux = np.full(40, 1e4)
    unknown = np.full((2, 1), np.nan)
    found = measure_throughputs(star, frame, np.zeros(40, int), flux, 0.01 * flux, unknown, 2)
    assert (found.factor == 1).all() and np.isinf(found.error).all() and found.scatter == 0
