"""Fitted fluxes that are too large or too small over an image, against the light in a circle."""

from __future__ import annotations

import numpy as np
import pytest

from gdask.kernels.sources.flux_surface import LEAST_SNR, flux_surface

SHAPE = (900, 1200)


def catalogue(seed: int, n: int, slope: float) -> tuple[np.ndarray, ...]:
    """Stars whose fitted flux is off by a quadratic function of the place, up to `slope`.

    x, y, fitted flux, its error, light within a circle, true flux. One star in 20 has a neighbour
    in its circle.
    """
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, SHAPE[1], n), rng.uniform(0, SHAPE[0], n)
    true, error = 10 ** rng.uniform(3.5, 5.5, n), np.full(n, 60.0)
    u, v = 2 * x / SHAPE[1] - 1, 2 * y / SHAPE[0] - 1
    off = 1 + slope * (u * u + 0.5 * v - 0.4 * u * v)
    noise = 1 + error / true * rng.normal(size=n)
    light = 0.4 * true * noise * (1 + 0.002 * rng.normal(size=n)) + 0.4 * error * rng.normal(size=n)
    light[rng.uniform(size=n) < 0.05] *= 1.2
    return x, y, true * off * noise, error, light, true


def scatter(values: np.ndarray) -> float:
    return float(1.4826 * np.median(np.abs(values / np.median(values) - 1)))


@pytest.mark.parametrize("seed", range(3))
def test_what_changes_over_the_image_is_taken_out(seed: int) -> None:
    x, y, flux, error, light, true = catalogue(seed, 300, 0.01)
    change, its_error = flux_surface(x, y, flux, error, light, np.ones(300, bool), SHAPE)
    bright = true > 3e4
    before, after = scatter((flux / true)[bright]), scatter((flux * change / true)[bright])
    assert before > 0.003 and after < 0.0016, (before, after)
    assert abs(np.median(change[bright]) - 1) < 1e-3
    assert 1e-4 < its_error < 1e-3


def test_the_error_is_that_of_the_surface() -> None:
    """Of fluxes that are right, many times: what the surface does to them is its error."""
    done, told = [], []
    for seed in range(20):
        x, y, flux, error, light, _ = catalogue(seed, 60, 0.0)
        change, its_error = flux_surface(x, y, flux, error, light, np.ones(60, bool), SHAPE)
        done.append(np.sqrt(np.mean((change[np.argsort(-flux)[:40]] - 1) ** 2)))
        told.append(its_error)
    assert 0.6 < np.sqrt(np.mean(np.square(done))) / np.mean(told) < 1.6


def test_few_or_faint_stars_change_nothing() -> None:
    x, y, flux, error, light, _ = catalogue(1, 300, 0.01)
    clean = np.arange(300) < 11
    for usable, its in ((clean, error), (np.ones(300, bool), flux / (LEAST_SNR - 1))):
        change, its_error = flux_surface(x, y, flux, its, light, usable, SHAPE)
        assert (change == 1).all() and its_error == 0
