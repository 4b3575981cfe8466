"""The shadow of a guide probe is found and followed to its tip; nothing else is taken for one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from helpers import computed, raw, with_pixels

from gdask.io.frames import lazy_small_results, with_fetched, with_headers
from gdask.kernels.detector.probe_shadows import (
    BIN_SIZE,
    binned_medians,
    binned_usable_counts,
    find_shadows,
    unbin_window,
)
from gdask.model import DQ
from gdask.steps import flag_shadows, measure_shadows

SIZE, LEVEL, RADIUS = 512, 17000.0, 250.0
Y, X = np.mgrid[:SIZE, :SIZE].astype(float)
OUTSIDE = np.hypot(X - 256, Y - 256) > RADIUS
DARK = np.where(OUTSIDE, DQ.UNILLUMINATED, 0).astype(np.uint16)


def light_left(tip: float) -> np.ndarray:
    """Fraction of the light that an arm along y = 256 leaves.

    40 % is gone beyond the tip, which fades over 12 pixels.
    """
    return 1 - 0.4 / (1 + np.exp(np.clip((X - tip) / -12, -50, 50))) * np.exp(
        -(((Y - 256) / 30) ** 4)
    )


def noisy_medians(light: np.ndarray, seed: int = 1) -> np.ndarray:
    """Binned medians of a frame with this light and the photon noise of LEVEL."""
    data = np.random.default_rng(seed).normal(light, np.sqrt(LEVEL)).astype(np.float32)
    return binned_medians(data, DARK)


def flagged(tips: list[float], places: list[tuple[float, float]]) -> list[np.ndarray]:
    """Lit pixels of frames that are flagged, with arms that reach to `tips` (x)."""
    levels = [noisy_medians(LEVEL * light_left(tip), seed) for seed, tip in enumerate(tips)]
    return [
        unbin_window(bins, 0, SIZE, 0, SIZE) & ~OUTSIDE
        for bins in find_shadows(levels, places, 0.15)
    ]


def test_a_tip_too_faint_to_be_seen_is_flagged_where_the_guide_star_says() -> None:
    """The first frame's arm shows where that of the second ends.

    There 2 % of the light is missing at the edge of the field.
    """
    tips = [440.0, 543.0]
    deep, faint = flagged(tips, [(tip, 256.0) for tip in tips])
    for mask, tip in ((deep, tips[0]), (faint, tips[1])):
        missing = 1 - light_left(tip)
        assert not OUTSIDE[missing > 0.001].all() and mask[(missing > 0.001) & ~OUTSIDE].all()
        assert mask.sum() < 3 * np.count_nonzero((missing > 0.001) & ~OUTSIDE) + 4000
    alone = flagged(tips[1:], [(tips[1], 256.0)])[0]
    assert not alone.any()


def test_a_frame_whose_arm_is_elsewhere_keeps_its_light() -> None:
    """It is unguided, far away, or visibly without the shadow that another frame's would make."""
    assert not flagged([440.0, 900.0], [(440.0, 256.0), (np.nan, np.nan)])[1].any()
    assert not flagged([440.0, 900.0], [(440.0, 256.0), (9000.0, -5000.0)])[1].any()
    assert not flagged([440.0, 900.0], [(440.0, 256.0), (440.0, 256.0)])[1].any()


def star_light(number: int, brightest: float, seed: int = 5) -> np.ndarray:
    """Light of stars with a power law of fluxes and Moffat profiles."""
    random, light = np.random.default_rng(seed), np.zeros((SIZE, SIZE))
    for x, y, flux in zip(
        *random.uniform(0, SIZE, (2, number)),
        brightest * random.pareto(1.2, number).clip(0, 30),
        strict=True,
    ):
        i, j = int(x), int(y)
        cut = np.s_[max(j - 40, 0) : j + 41, max(i - 40, 0) : i + 41]
        light[cut] += flux * (1 + ((X[cut] - x) ** 2 + (Y[cut] - y) ** 2) / 9) ** -3
    return light


@pytest.mark.parametrize(
    ("what", "light"),
    [
        ("sparse", lambda: star_light(40, 3000.0)),
        (
            "crowded",
            lambda: (
                star_light(3000, 3000.0)
                + 850 * (1 + ((X - 256) ** 2 + (Y - 256) ** 2) / 150**2) ** -1.5
            ),
        ),
        ("extended", lambda: 17000 * (1 + ((X - 256) ** 2 + (Y - 256) ** 2) / 40**2) ** -1.2),
        (
            "galaxy at the edge",
            lambda: 17000 * (1 + ((X - 480) ** 2 + (Y - 256) ** 2) / 60**2) ** -1.5,
        ),
        (
            "bright star at the edge",
            lambda: 2e6 * (1 + ((X - 500) ** 2 + (Y - 256) ** 2) / 9) ** -1.5,
        ),
        (
            "lane of dust",
            lambda: 3000.0 * (np.hypot(X - 256, Y - 256) < 200) * (np.abs(Y - X) > 30),
        ),
    ],
)
def test_nothing_is_flagged_without_a_probe(what: str, light: Callable[[], np.ndarray]) -> None:
    scene = light()
    levels = [noisy_medians(LEVEL + np.roll(scene, shift, 1), shift) for shift in (0, 16)]
    assert not any(mask.any() for mask in find_shadows(levels, [(0, 0), (16, 0)], 0.15))


def test_bins_are_given_to_the_pixels_of_a_window() -> None:
    bins = np.random.default_rng(2).random((6, 5)) > 0.5
    whole = bins.repeat(BIN_SIZE, 0).repeat(BIN_SIZE, 1)
    np.testing.assert_array_equal(unbin_window(bins, 7, 90, 3, 71), whole[7:90, 3:71])


def test_usable_pixels_of_bins_are_counted() -> None:
    dq = np.zeros((40, 50), np.uint16)
    dq[3, 5] = DQ.BAD_PIXEL
    counts = binned_usable_counts(dq)
    assert counts[0, 0] == BIN_SIZE**2 - 1 and counts.sum() == 40 * 50 - 1


@pytest.mark.parametrize("rows", [None, 97])
def test_steps_flag_the_shadows_and_report_them(night: object, rows: int | None) -> None:
    frames = []
    for number, tip in enumerate((200.0, 318.0)):
        frame = raw(night.science[0])
        y, x = np.mgrid[:320, :320].astype(float)
        left = 1 - 0.4 / (1 + np.exp(np.clip((x - tip) / -8, -50, 50))) * (np.abs(y - 160) < 24)
        data = (
            np.random.default_rng(number)
            .normal(LEVEL * left, 130, (4, 320, 320))
            .astype(np.float32)
        )
        frame = with_pixels(frame, rows, data=data, dq=np.zeros(data.shape, "u2")).assign_attrs(
            name=f"S{number}.fits"
        )
        frame = measure_shadows(with_headers(frame))
        frame = with_fetched(frame, {"shadows": lazy_small_results(frame)["shadows"].compute()})
        frames.append(frame.assign_coords(x=frame.indexes["x"] - round(tip - 200.0)))
    deep, faint = flag_shadows(tuple(frames))
    masks = [(computed(frame)["dq"] & DQ.UNILLUMINATED) != 0 for frame in (deep, faint)]
    assert masks[0][:, 140:180, 210:].all() and masks[1][:, 140:180, 300:].all()
    assert not masks[0][:, :90].any() and not masks[1][:, :, :200].any()
    counts = [int(mask.sum()) for mask in masks]
    assert (
        deep.attrs["note"]
        == f"2 of them with the shadow of a guide probe, {min(counts)} to {max(counts)} pixels each"
    )
    assert flag_shadows(tuple(frames), depth=0.9)[0].attrs["note"] == "no shadow of a guide probe"
