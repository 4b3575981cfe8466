"""Tests of the star image: what hangs on the last bit of a sum must not decide."""

from __future__ import annotations

import numpy as np
import pytest

from gdask.kernels.sources import psf


@pytest.mark.parametrize("stars", [2, 4, 6, 8])
def test_half_of_equal_weights_lies_between_two_stars(stars: int) -> None:
    """A last bit of a weight moves the median by nothing, not from one star to the next."""
    rng = np.random.default_rng(stars)
    for _ in range(50):
        values = rng.normal(size=stars)
        weight = np.full(stars, rng.uniform(1, 1e12))
        found, error = psf._weighted_median(values, weight)
        assert found == pytest.approx(np.median(values), rel=1e-12)
        for change in (-1, 1):
            other = weight.copy()
            for k in rng.integers(0, stars, 3):
                other[k] = np.nextafter(other[k], change * np.inf)
            again = psf._weighted_median(values, other)
            assert again == pytest.approx((found, error), rel=1e-9)


def test_weights_decide_the_median() -> None:
    values, weight = np.array([3.0, 1.0, 2.0, np.nan]), np.array([5.0, 1.0, 1.0, 9.0])
    assert psf._weighted_median(values, weight)[0] == 3.0
    assert psf._weighted_median(values, np.array([1.0, 3.0, 2.0, 1.0]))[0] == 1.5
