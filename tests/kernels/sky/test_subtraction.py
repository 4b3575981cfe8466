"""Tests of what is done to skies and frames pixel by pixel, against the same in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from gdask.kernels.sky.subtraction import (
    FEW_SKIES,
    fill_hidden,
    subtract_sky,
    without_objects,
)
from gdask.model import DQ, UNUSABLE

SHAPE = 5, 12, 40


def planes(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make data, variance and DQ of five frames."""
    rng = np.random.default_rng(seed)
    data = rng.normal(1000, 30, SHAPE).astype(np.float32)
    variance = rng.uniform(900, 1100, SHAPE).astype(np.float32)
    dq = rng.choice([0, 0, 1, 2, 4, 16], SHAPE).astype(np.uint16)
    return data, variance, dq


def test_objects_are_left_out_and_nothing_else() -> None:
    _, _, dq = planes(1)
    hidden = np.random.default_rng(2).random(SHAPE) < 0.3
    expected = np.where(hidden, dq | np.uint16(DQ.NO_DATA), dq)
    assert np.array_equal(without_objects(dq, hidden), expected)


@pytest.mark.parametrize("chosen", [(0, 2, 4), (3,), (4, 1, 0, 2, 3)])
def test_hidden_pixels_get_the_level_and_bad_ones_do_not(chosen: tuple[int, ...]) -> None:
    data, variance, dq = planes(3)
    hidden = np.random.default_rng(4).random(SHAPE) < 0.7
    sky = data[0].copy(), variance[0].copy(), dq[0].copy()
    expected = tuple(plane.copy() for plane in sky)
    counts = len(chosen) - hidden[list(chosen)].sum(axis=0)
    shown = (dq[list(chosen)] & np.uint16(UNUSABLE) == 0).any(axis=0)
    none_left = (counts == 0) & shown
    assert none_left.any() and ((counts == 0) & ~shown).any()
    expected[0][none_left], expected[1][none_left], expected[2][none_left] = 0.5, 9.0, 0
    expected[2][counts <= min(1, len(chosen) - 1)] |= np.uint16(FEW_SKIES)
    fill_hidden(sky, dq, hidden, chosen, 0.5, 9.0)
    for plane, wanted in zip(sky, expected, strict=True):
        assert np.array_equal(plane, wanted)


@pytest.mark.parametrize("scale", [False, True])
def test_a_sky_is_brought_to_its_level_in_the_arithmetic_of_the_planes(scale: bool) -> None:
    frame, sky = (tuple(plane[0] for plane in planes(seed)) for seed in (5, 6))
    level = np.float32(1.2345678)
    light = sky[0] * level if scale else sky[0] + level
    noise = sky[1] * (level * level) if scale else sky[1]
    bits = sky[2] & np.uint16(DQ.NO_DATA | FEW_SKIES)
    out = tuple(np.empty_like(plane) for plane in frame)
    subtract_sky(frame, sky, level, scale, out)
    assert np.array_equal(out[0], frame[0] - light)
    assert np.array_equal(out[1], frame[1] + noise)
    assert np.array_equal(out[2], frame[2] | bits)
