"""Noise in empty apertures: known noise is found, wrong variances and an uneven sky show."""

from __future__ import annotations

import numpy as np
import pytest

from gdask.kernels.sources.empty_apertures import (
    APERTURE,
    MOST_SQUARES,
    aperture_weights,
    measure_squares,
    pulls,
    squares,
)
from gdask.model import DQ

RADIUS = 3.3


def measured(
    data: np.ndarray, variance: np.ndarray, dq: np.ndarray | None = None, radius: float = RADIUS
) -> np.ndarray:
    dq = np.zeros(data.shape, np.uint16) if dq is None else dq
    windows = squares(data.shape)
    planes = [tuple(p[y1:y2, x1:x2] for p in (data, variance, dq)) for y1, y2, x1, x2 in windows]
    return measure_squares(planes, windows, [radius])


def ratio(found: np.ndarray) -> float:
    pulls = found["sum"] / found["noise"]
    return float(1.4826 * np.median(np.abs(pulls - np.median(pulls))))


def noise(shape: tuple[int, int] = (700, 640), sigma: float = 7.0) -> np.ndarray:
    return np.random.default_rng(3).normal(100, sigma, shape).astype("f4")


def test_weights_are_the_shares_of_a_circle() -> None:
    weights = aperture_weights(RADIUS)
    assert weights.shape == (7, 7) and weights[3, 3] == 1 and weights[0, 0] == 0
    assert weights.sum() == pytest.approx(np.pi * RADIUS**2, rel=0.01)
    np.testing.assert_array_equal(weights, weights[::-1, ::-1])


@pytest.mark.parametrize(("given", "expected"), [(49.0, 1.0), (49.0 / 4, 2.0), (196.0, 0.5)])
def test_the_noise_is_found_and_a_wrong_variance_shows(given: float, expected: float) -> None:
    data = noise()
    found = measured(data, np.full_like(data, given))
    assert len(found) > 5000
    assert ratio(found) == pytest.approx(expected, rel=0.04)  # known to 1 %


def test_correlated_noise_has_more_in_apertures_than_in_pixels() -> None:
    """The mean of 3 x 3 pixels has a third of the scatter, sums in apertures have nearly all."""
    from scipy.ndimage import uniform_filter

    smooth = uniform_filter(noise(), 3)
    found = measured(smooth, np.full_like(smooth, 49.0 / 9))
    assert 2.0 < ratio(found) < 3.0


def test_bad_pixels_and_objects_are_left_out() -> None:
    data, dq = noise(), np.zeros((700, 640), np.uint16)
    whole = measured(data, np.full_like(data, 49.0))
    wrong = np.random.default_rng(1).random(data.shape) < 0.003
    data[wrong], dq[wrong] = 1e5, DQ.BAD_PIXEL
    data[5:200, 7] = np.nan
    found = measured(data, np.full_like(data, 49.0), dq)
    assert 0.8 < len(found) / len(whole) < 0.95  # 37 pixels each, of which 0.3 % are bad
    assert ratio(found) == pytest.approx(ratio(whole), rel=0.05)
    places = found["y"].astype(int), found["x"].astype(int)
    assert not wrong[places].any() and np.isfinite(found["sum"]).all()
    dq[:] = DQ.NO_DATA
    assert len(measured(data, np.full_like(data, 49.0), dq)) == 0
    objects = np.ones((64, 64), bool)
    square = data[300:364, 300:364], np.full((64, 64), 49.0, "f4"), dq[:64, :64] * 0
    assert len(measure_squares([(*square, objects)], [(0, 64, 0, 64)], [RADIUS])) == 0


def test_places_are_fixed_spread_and_few() -> None:
    for shape in ((4600, 4700), (512, 512), (30, 90), (64, 64), (100, 9000)):
        windows = squares(shape)
        assert windows == squares(shape) and 1 <= len(windows) <= MOST_SQUARES
        assert all(
            0 <= y1 < y2 <= shape[0] and 0 <= x1 < x2 <= shape[1] for y1, y2, x1, x2 in windows
        )
        assert min(w[0] for w in windows) == 0 and max(w[1] for w in windows) >= shape[0] - 64
    assert len(squares((4600, 4700), 64)) <= 64


def test_apertures_do_not_overlap() -> None:
    found = measured(noise(), np.full((700, 640), 49.0, "f4"))
    first = found[found["square"] == 0]
    apart = np.hypot(
        first["x"][:, None] - first["x"], first["y"][:, None] - first["y"]
    ) + 1e3 * np.eye(len(first))
    assert apart.min() >= 2 * RADIUS and found.dtype == APERTURE


def test_noise_that_is_correlated_over_many_pixels_shows_in_wide_apertures() -> None:
    """Of 0.3 e- over 15 pixels, as of light in sky frames: 1 % of small sums, 20 % of wide ones.

    White noise has a ratio of 1 at both radii, the error of the level in it.
    """
    from scipy.ndimage import gaussian_filter

    rng, shape = np.random.default_rng(7), (1024, 1024)
    white = rng.normal(0, 7, shape)
    slow = gaussian_filter(rng.normal(size=shape), 6.0)
    variance = np.full(shape, 49.0, "f4")
    windows, ratios = squares(shape), []
    for data in (white, white + 0.3 * slow / slow.std()):
        planes = (
            (data[y1:y2, x1:x2].astype("f4"), variance[y1:y2, x1:x2], np.zeros((64, 64), "u2"))
            for y1, y2, x1, x2 in windows
        )
        found = measure_squares(planes, windows, [RADIUS, 12.0])
        kinds = [pulls(found[found["radius"] == radius], 1.0) for radius in np.float32([3.3, 12])]
        assert [len(each) for each in kinds] == [256 * 81, 256 * 4]
        ratios.append([float(np.std(each)) for each in kinds])
    (small, wide), (small_uneven, wide_uneven) = ratios
    assert abs(small - 1) < 0.02 and abs(wide - 1) < 0.08
    assert 1 < small_uneven / small < 1.05 and 1.12 < wide_uneven / wide < 1.5
