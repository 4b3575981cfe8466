"""Terms of displacements and their compiled sums against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from gdask.kernels.astrometry.measured_stars import (
    TERM_COUNTS,
    TERMS,
    cross_validate,
    displace,
    fit_terms,
    normal_matrices,
    prior_weights,
    to_polynomials,
)


def _term_displacements(x, y):
    """(points, 20) displacement along x and y by each term."""
    pairs = [displace(x, y, unit) for unit in np.eye(TERMS)]
    return np.column_stack([u for u, _ in pairs]), np.column_stack([v for _, v in pairs])


@pytest.fixture
def points():
    rng = np.random.default_rng(3)
    x, y = rng.uniform(-50, 50, (2, 90))
    return x, y, rng.normal(0, 0.01, (2, 90)), rng.uniform(1e4, 1e6, 90)


def test_normal_matrices_are_the_sums_that_they_stand_for(points):
    x, y, _, weight = points
    group = np.arange(90) % 3
    got = normal_matrices(group, x, y, weight, 3)
    a, b = _term_displacements(x, y)
    for g in range(3):
        ag, bg, wg = a[group == g], b[group == g], weight[group == g, None]
        want = (ag * wg).T @ ag + (bg * wg).T @ bg
        np.testing.assert_allclose(got[g], want, rtol=1e-12, atol=1e-9 * np.abs(want).max())


def test_terms_and_polynomials_say_the_same(points):
    x, y, _, _ = points
    c = np.random.default_rng(1).normal(size=TERMS)
    basis = np.stack(
        [(x / 60) ** (order - j) * (y / 60) ** j for order in range(4) for j in range(order + 1)]
    )
    px, py = to_polynomials(c)
    np.testing.assert_allclose(
        np.array([np.array(px) @ basis, np.array(py) @ basis]), displace(x, y, c), rtol=1e-12
    )


def test_chi_square_of_what_was_left_out_is_that_of_fits_without_it(points):
    x, y, (dx, dy), weight = points
    fold, prior = np.arange(90) % 5, prior_weights(0.01)
    want = np.zeros(len(TERM_COUNTS))
    for k in range(5):
        out = fold == k
        for n, count in enumerate(TERM_COUNTS):
            c = fit_terms(x[~out], y[~out], dx[~out], dy[~out], weight[~out], count, prior)
            u, v = displace(x[out], y[out], c)
            want[n] += (weight[out] * ((dx[out] - u) ** 2 + (dy[out] - v) ** 2)).sum()
    np.testing.assert_allclose(
        cross_validate(x, y, dx, dy, weight, fold, TERM_COUNTS, prior), want, rtol=1e-9
    )
