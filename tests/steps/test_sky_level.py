"""Tests of the sky's level: offset, scale or none is chosen from the data.

The user's choice wins, and nothing is silent.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from helpers import on_disk, raw, shape_of, with_pixels

from gdask.io.frames import lazy_small_results, primary_header, with_fetched
from gdask.kernels.sky.shared_masks import (
    find_target_light,
    interpolate_in_time,
    interpolation_error,
)
from gdask.model import GdaskError
from gdask.steps import measure_background, sky_correct
from gdask.steps.levels import choose_level
from gdask.types import Frames

LEVEL = 15000.0
TIMES, SKY_TIMES = np.arange(6) * 200.0, np.arange(6) * 200.0 + 100.0
RADIUS = np.hypot(*np.meshgrid(np.arange(8) - 3.5, np.arange(8) - 3.5))[None, None]


def cells(
    light: np.ndarray | float, times: np.ndarray, drift: float = 0.005, seed: int = 1
) -> np.ndarray:
    """Make six frames of two arrays.

    They have a sky that drifts, a fixed pattern of 1 %, the arrays' ratio, light, noise of 2 e-.
    """
    random = np.random.default_rng(9)
    pattern = random.normal(1.0, 0.01, (1, 2, 8, 8)) * np.array([1.0, 1.05])[None, :, None, None]
    sky = LEVEL * (1 + drift * np.sin(times / 400.0))[:, None, None, None]
    return sky * pattern + light + np.random.default_rng(seed).normal(0, 2, (len(times), 2, 8, 8))


def test_a_galaxy_over_the_whole_field_is_seen_against_the_sky_frames() -> None:
    galaxy = 3000.0 * (1 + RADIUS**2 / 4) ** -0.8
    verdict = find_target_light(
        cells(galaxy, TIMES), cells(0.0, SKY_TIMES, seed=2), TIMES, SKY_TIMES
    )
    assert verdict.fills_field and verdict.share > 0.8
    assert verdict.excess == pytest.approx(np.median(galaxy), abs=60) and 5 < verdict.error < 60


@pytest.mark.parametrize(
    ("what", "light"),
    [
        ("empty", 0.0),
        ("another sky level beside the target", 400.0),
        ("darker", -400.0),
        ("a galaxy in the middle", 9000.0 * np.exp(-(RADIUS**2))),
        ("a few stars", 500.0 * (RADIUS == RADIUS.max())),
    ],
)
def test_nothing_else_fills_the_field(what: str, light: np.ndarray | float) -> None:
    verdict = find_target_light(
        cells(light, TIMES), cells(0.0, SKY_TIMES, seed=2), TIMES, SKY_TIMES
    )
    assert not verdict.fills_field and verdict.share < 0.3


def test_without_sky_frames_the_fixed_pattern_is_allowed_for() -> None:
    flat = (
        cells(0.0, TIMES) / cells(0.0, TIMES, drift=0.0).mean(axis=0, keepdims=True) * LEVEL
    )  # patterns of the flat: none
    assert not find_target_light(flat, None, TIMES, np.zeros(0)).fills_field
    filled = find_target_light(
        flat + 3000.0 * (1 + RADIUS**2 / 4) ** -0.8, None, TIMES, np.zeros(0)
    )
    assert filled.fills_field and np.isnan(filled.excess)


def test_interpolation_in_time_and_its_error() -> None:
    times, values = np.array([30.0, 0.0, 10.0, 20.0]), np.array([7.0, 1.0, 3.0, 5.0])
    np.testing.assert_allclose(
        interpolate_in_time([5.0, -9.0, 99.0], times, values), [2.0, 1.0, 7.0]
    )
    assert interpolation_error(times, values) == pytest.approx(0.0, abs=1e-12)
    assert interpolation_error(times, np.array([7.0, 1.0, 4.0, 5.0])) == pytest.approx(
        np.sqrt((1 + 0.25) / 2)
    )
    assert interpolation_error(times[:2], values[:2]) == 0.0


def group(path: str, first: int, light: np.ndarray | float, seed: int) -> Frames:
    measured = cells(light, TIMES, seed=seed)
    return tuple(
        with_fetched(
            raw(path).assign_attrs(name=f"S{first + n}.fits", skies="[]"),
            {"background": tuple(np.repeat(measured[n], 2, axis=0))},
        )
        for n in range(3)
    )


def test_the_choice_and_its_reason(night: object, caplog: pytest.LogCaptureFixture) -> None:
    galaxy = 3000.0 * (1 + RADIUS**2 / 4) ** -0.8
    filled, empty, skies = (
        group(night.science[0], *what) for what in ((0, galaxy, 1), (0, 0.0, 1), (9, 0.0, 2))
    )
    with caplog.at_level(logging.WARNING, "gdask"):
        assert choose_level(empty, skies, None, None).mode == "offset"  # GSAOI's way
        none = choose_level(filled, skies, None, None)
        assert not caplog.records
        alone = choose_level(filled, filled, None, None)
    assert (
        none.mode == "none"
        and "% of the field" in none.why
        and "over the sky frames" in none.why
        and len(none.why) < 68
    )
    assert (
        alone.mode == "offset"
        and "separateSky:ref_sky" in caplog.text
        and "no sky frames off the target" in caplog.text
    )
    unmeasured = tuple(frame.drop_vars("background") for frame in skies)
    assert choose_level(filled, unmeasured, None, None).mode == "offset"


@pytest.mark.parametrize("offset", [True, False])
def test_a_choice_that_subtracts_the_target_is_followed_and_warned_about(
    night: object, caplog: pytest.LogCaptureFixture, offset: bool
) -> None:
    galaxy = 3000.0 * (1 + RADIUS**2 / 4) ** -0.8
    filled, empty, skies = (
        group(night.science[0], *what) for what in ((0, galaxy, 1), (0, 0.0, 1), (9, 0.0, 2))
    )
    mode = "offset" if offset else "none"
    with caplog.at_level(logging.WARNING, "gdask"):
        for frames in (empty, filled) if not offset else (empty,):
            assert choose_level(frames, skies, offset, None).mode == mode
        assert choose_level(empty, empty, offset, None).mode == mode
        assert not caplog.records
        assert choose_level(filled, filled, offset, None).mode == mode
        assert "no sky frames off the target" in caplog.text
        above = np.median(galaxy) - np.quantile(galaxy, 0.1)
        assert float(caplog.text.partition("median ")[2].split()[0]) == pytest.approx(
            above, rel=0.2
        )
        caplog.clear()
        if offset:
            assert choose_level(filled, skies, offset, None).mode == mode
            found = float(caplog.text.partition("field, ")[2].split()[0])
            assert found == pytest.approx(np.median(galaxy), abs=60)
            assert "was asked for" in caplog.text


def test_the_users_choice_wins(night: object) -> None:
    filled = group(night.science[0], 0, 3000.0 * (1 + RADIUS**2 / 4) ** -0.8, 1)
    expected = {
        (False, None): "none",
        (True, None): "offset",
        (None, False): "offset",
        (None, True): "scale",
        (False, False): "none",
        (False, True): "scale",
        (True, False): "offset",
    }
    for (offset, scale), mode in expected.items():
        assert choose_level(filled, filled, offset, scale) == (mode, "as asked")
    with pytest.raises(GdaskError, match="offset_sky and scale_sky are both True"):
        sky_correct(filled, filled, offset_sky=True, scale_sky=True)


def test_the_header_says_what_was_chosen(night: object, tmp_path: Path) -> None:
    frame = group(night.science[0], 0, 0.0, 1)[0]
    (frame,) = (
        stored.assign_attrs(skies="[]")
        for stored in on_disk((with_pixels(frame, dq=np.zeros(shape_of(frame), "u2")),), tmp_path)
    )
    (result,) = sky_correct((frame,), (frame,))
    assert (
        primary_header(result)["SKYLEVEL"] == "offset"
        and "no frames off target" in primary_header(result)["SKYWHY"]
    )


def test_cells_of_a_frame(night: object) -> None:
    frame = raw(night.science[0], low=100.0, high=20000.0)
    frame = measure_background(with_pixels(frame, dq=np.zeros(shape_of(frame), "u2")))
    (first, *_) = np.ravel(lazy_small_results(frame)["background"].compute())
    assert (
        first.shape == (8, 8)
        and (np.diff(first.mean(axis=1)) > 0).all()
        and first[4, 4] == pytest.approx(11300, rel=0.05)
    )
