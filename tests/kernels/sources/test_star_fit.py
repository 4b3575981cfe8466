"""Fits of single stars whose every parameter is known."""

from __future__ import annotations

import numpy as np
import pytest

from gdask.kernels.sources.psf import GAUSSIAN_SIGMAS_FWHM, isolated_stars, tabulate
from gdask.kernels.sources.star_fit import (
    fit_all_stars,
    fit_forms,
    solve_cholesky,
    star_light,
)

FWHM = 4.5
FORM = np.array([[1.1, 0.08, 0.95]])


def star_image():
    """Profile of one Gaussian with the FWHM, and its step."""
    weights = np.zeros(len(GAUSSIAN_SIGMAS_FWHM))
    nearest = np.argmin(np.abs(GAUSSIAN_SIGMAS_FWHM - 1 / 2.3548))
    weights[nearest] = 1 / (2 * np.pi * (GAUSSIAN_SIGMAS_FWHM[nearest] * FWHM) ** 2)
    return tabulate(weights, FWHM)


def planes(x, y, flux, form, sky=0.0):
    """Data with one star, its variance, and no bad pixel."""
    profile, step = star_image()
    data = np.full((60, 70), sky)
    for j in range(60):
        for i in range(70):
            data[j, i] += flux * star_light(i - x, j - y, form, profile, step)[0]
    return data.astype("f4"), np.full((60, 70), 4.0, "f4"), np.zeros((60, 70), bool)


def test_cholesky_solves_and_inverts():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 9))
    matrix, right = root @ root.T, rng.normal(size=6)
    lower, b, x = np.tril(matrix), right.copy(), np.zeros(6)
    assert solve_cholesky(lower, b, x, np.zeros((6, 6)))
    assert np.allclose(x, np.linalg.solve(matrix, right), rtol=1e-9)
    assert np.allclose(b, np.diag(np.linalg.inv(matrix)), rtol=1e-9)
    assert not solve_cholesky(np.zeros((6, 6)), right, x, np.zeros((6, 6)))


@pytest.mark.parametrize("place", [(31.3, 28.8), (3.2, 57.6), (68.4, 1.1)])
@pytest.mark.parametrize("spoiled", [False, True])
def test_a_fit_finds_every_parameter(place, spoiled):
    x, y = place
    data, variance, bad = planes(x, y, 5000.0, FORM[0], sky=7.0)
    data += (0.05 * (np.arange(70) - x))[None].astype("f4")
    if spoiled:
        bad[int(y), int(x) - 1 : int(x) + 1] = True
        data[bad], variance[0, ::5] = np.nan, 0.0
    params = np.array([[x + 0.6, y - 0.5, 3000.0, 0.0, 0.0, 0.0]])
    errors, residual = np.full((1, 6), np.nan), data.copy()
    profile, step = star_image()
    first = np.zeros(1, np.int64), np.array([x]), np.array([y])
    radii = np.array([20.0])
    failed = fit_all_stars(
        residual, variance, bad, *first, params, errors, FORM, profile, step, FWHM, radii, 4, False
    )
    assert not failed[0]
    assert params[0, :4] == pytest.approx([x, y, 5000.0, 7.0], abs=2e-2)
    assert np.abs(params[0, :2] - place).max() < 2e-4
    assert params[0, 4:] == pytest.approx([0.05 * 2.5 * FWHM, 0.0], abs=2e-2)
    ys, xs = np.mgrid[:60, :70]
    near = (np.hypot(xs - x, ys - y) < 10) & ~bad
    assert np.abs(residual - 7.0 - 0.05 * (xs - x))[near].max() < 0.05
    assert np.isfinite(errors).all() and 0.005 < errors[0, 0] < 0.1


def subtracted(data, params, forms, radius=200.0):
    """The data without stars as they are in params."""
    profile, step = star_image()
    left, n = data.copy(), len(params)
    rest = np.ones(data.shape, "f4"), np.ones(data.shape, bool), np.arange(n), *params.T[:2].copy()
    radii = np.full(n, radius)
    full = np.column_stack([params, np.zeros((n, 6 - params.shape[1]))])
    fit_all_stars(left, *rest, full, full * 0, forms, profile, step, FWHM, radii, 0, True)
    return left


def test_a_star_is_subtracted_as_its_image_says():
    data, _, _ = planes(33.3, 20.9, 900.0, FORM[0])
    left = subtracted(data, np.array([[33.3, 20.9, 900.0]]), FORM)
    assert np.abs(left).max() < 1e-5 * data.max()


def test_a_form_is_found():
    profile, step = star_image()
    data, variance, bad = planes(33.3, 20.9, 9000.0, FORM[0], sky=3.0)
    params, forms = np.array([[33.3, 20.9, 9000.0, 3.0]]), np.array([[1.0, 0.0, 1.0]])
    residual = subtracted(data, params, forms)
    found, errors = fit_forms(residual, variance, bad, params, forms, profile, step, 2.5 * FWHM)
    assert found[0] == pytest.approx(FORM[0], abs=3e-3) and np.isfinite(errors).all()


def test_isolated_stars_have_no_neighbour():
    x, y = np.array([10.0, 50, 90, 13, 200, 94]), np.array([10.0, 50, 90, 14, 7, 90])
    flux = np.array([100.0, 300, 200, 6, 50, 9])
    usable = np.array([True, True, True, True, True, False])
    stars, isolated = isolated_stars(x, y, flux, usable, 6.0)
    assert isolated and list(stars) == [1, 2, 4]  # that of 9 is too faint beside 200
    stars, isolated = isolated_stars(x, y, flux, usable, 500.0)
    assert not isolated and list(stars) == [1, 2, 0, 4, 3]
