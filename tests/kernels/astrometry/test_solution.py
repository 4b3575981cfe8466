"""The joint solution's compiled parts against plain NumPy, and its benchmark in small."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.solution import run
from gdask.kernels.astrometry.distortion_terms import (
    LEVELS,
    TERMS,
    cross_validate,
    displace,
    fit_terms,
    normal_blocks,
    prior_weights,
    to_polynomials,
)
from gdask.kernels.astrometry.pair_search import nearest


def _designs(x, y):
    """(points, 20) displacement along x and y by each term."""
    both = [displace(x, y, unit) for unit in np.eye(TERMS)]
    return np.column_stack([u for u, _ in both]), np.column_stack([v for _, v in both])


@pytest.fixture
def points():
    rng = np.random.default_rng(3)
    x, y = rng.uniform(-50, 50, (2, 90))
    return x, y, rng.normal(0, 0.01, (2, 90)), rng.uniform(1e4, 1e6, 90)


def test_normal_matrices_are_the_sums_that_they_stand_for(points):
    x, y, _, weight = points
    group = np.arange(90) % 3
    got = normal_blocks(group, x, y, weight, 3)
    a, b = _designs(x, y)
    for g in range(3):
        mine = group == g
        want = (a[mine] * weight[mine, None]).T @ a[mine] + (b[mine] * weight[mine, None]).T @ b[
            mine
        ]
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
    want = np.zeros(len(LEVELS))
    for k in range(5):
        out = fold == k
        for n, count in enumerate(LEVELS):
            c = fit_terms(x[~out], y[~out], dx[~out], dy[~out], weight[~out], count, prior)
            u, v = displace(x[out], y[out], c)
            want[n] += (weight[out] * ((dx[out] - u) ** 2 + (dy[out] - v) ** 2)).sum()
    np.testing.assert_allclose(
        cross_validate(x, y, dx, dy, weight, fold, LEVELS, prior), want, rtol=1e-9
    )


@pytest.mark.parametrize(
    ("stars", "field", "radius"),
    [(400, 10.0, 0.3), (400, 10.0, 30.0), (1, 0.0, 0.2), (50, 0.0, 0.2), (300, 1e6, 1e-3)],
)
def test_nearest_is_nearest(stars, field, radius):
    rng = np.random.default_rng(stars)
    xa, ya = rng.uniform(-field, field, (2, stars))
    xb, yb = (
        np.append(xa, rng.uniform(-1.2 * field - 1, 1.2 * field + 1, 200)),
        np.append(ya + radius / 2, rng.uniform(-field, field, 200)),
    )
    xa[stars // 2], xb[-1], yb[-2] = (np.nan if stars > 1 else xa[0]), np.nan, np.inf
    got = nearest(xa, ya, xb, yb, radius)
    distance = np.hypot(xa[:, None] - xb, ya[:, None] - yb)
    distance = np.where(np.isfinite(distance), distance, np.inf)
    want = np.where(distance.min(axis=0) < radius, distance.argmin(axis=0), -1)
    np.testing.assert_array_equal(got, want)
    assert (want >= 0).sum() >= stars / 2 - 1
    assert (nearest(np.zeros(0), np.zeros(0), xb, yb, radius) == -1).all()


@pytest.mark.parametrize(
    ("stars", "frames", "field", "off"), [(200, 12, "one", 0.25), (400, 27, "chain", 1.0)]
)
def test_the_benchmark_finds_the_stars(stars, frames, field, off):
    figures = run(stars, frames, field)
    assert figures["used"] == frames and figures["offset_mas"] < off
    assert figures["seconds"] < 60 and figures["memory_mb"] < 200
