"""Pairs and shifts between two lists, against plain NumPy and chance."""

from __future__ import annotations

import numpy as np
import pytest

from gdask.kernels.astrometry.association import find_shift, match_pairs, nearest


def test_nothing_matches_between_unrelated_lists():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        n, m = rng.integers(1, 250, 2)
        places_a, places_b = rng.uniform(-40, 40, (2, n)), rng.uniform(-40, 40, (2, m))
        list_a, list_b = (*places_a, rng.pareto(1, n)), (*places_b, rng.pareto(1, m))
        shift = find_shift(list_a, list_b, (3.0, 10.0, 30.0)[seed % 3])
        assert not shift.ok and any(word in shift.reason for word in ("pair", "peak", "few"))


def test_pairs_are_mutual_and_one_to_one():
    xa, ya = np.array([0.0, 1.0, 5.0, 9.0]), np.zeros(4)
    xb, yb = np.array([5.1, 0.9, 0.2, 5.3, 20.0]), np.zeros(5)
    ia, ib = match_pairs(xa, ya, xb, yb, 0.5)
    assert list(ia) == [0, 1, 2] and list(ib) == [2, 1, 0]
    assert len(match_pairs(xa, ya, xb[:0], yb[:0], 1.0)[0]) == 0


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
