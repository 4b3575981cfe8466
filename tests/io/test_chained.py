"""Tests of chains: one compiled call gives the bits of kernels called one after another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from conftest import Night

import gdask
from gdask import steps
from gdask.io.chained import chained, prepared, read_together
from gdask.io.dask_internals import awaited_by
from gdask.io.sources import Awaited, Bound, Mapped
from gdask.kernels.detector import flat, linearity, quality
from gdask.kernels.detector.chains import INPUTS, Chain, run_chain
from gdask.model import GdaskError
from gdask.steps.frames import arrays_of
from gdask.types import Memo, Window

NY, NX = 37, 53

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered")


class Plane:
    """A source of one array in memory."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.shape, self.dtype = pixels, (1, *pixels.shape), pixels.dtype

    def read(self, detector: int, window: Window, memo: Memo) -> np.ndarray:
        y1, y2, x1, x2 = window
        return self.pixels[y1:y2, x1:x2]


def image(seed: int, low: float, high: float) -> Plane:
    """Pixels in a range, with some that are no number, infinite, zero and negative."""
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(low, high, (NY, NX)).astype(np.float32)
    for value in (np.nan, np.inf, -np.inf, 0.0, -3.0):
        pixels[rng.random(pixels.shape) < 0.02] = value
    return Plane(pixels)


def bits(seed: int, dtype: str = "u2") -> Plane:
    rng = np.random.default_rng(seed)
    hit = rng.random((NY, NX)) < 0.1
    return Plane(np.where(hit, 2 ** rng.integers(0, 7, hit.shape), 0).astype(dtype))


def made(kernel: Any, *sources: Any, dtype: str, windowed: bool = False, **keywords: Any) -> Mapped:
    values = {name: (value,) for name, value in keywords.items()}
    return Mapped(kernel, sources, values, {}, windowed, np.dtype(dtype))


def listed(seed: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    holes, bright = (np.sort(rng.choice(NY * width, 40, replace=False)) for _ in range(2))
    return np.concatenate([[40], holes, bright]).astype(np.int32)


def infrared_frame(read_first: bool, poisson: bool) -> tuple[list[Bound], Mapping]:
    """Data, variance and DQ through all that a chain knows, in the order of either camera."""
    raw, bpm = image(1, -50, 60000), bits(2, "u1")
    dark, its_noise, its_bits = image(3, -9, 9), image(4, 1, 3), bits(5)
    field, field_noise, field_bits = image(6, 0.3, 1.5), image(7, 1e-5, 1e-4), bits(8)
    cubic = {"coefficients": (0.99, 3e-7, 4e-12), "gain": 2.4, "coadds": 2}
    noise = {"read_noise": 13.6, "coadds": 2, "poisson": poisson, "read": True}
    if read_first:
        variance: Any = made(linearity.add_variance, raw, dtype="f4", **noise)
        data = made(linearity.linearize, raw, dtype="f4", **cubic)
        shift = {"gain": 2.4, "coadds_averaged": 2}
        variance = made(linearity.linearize_variance, variance, raw, data, dtype="f4", **shift)
    else:
        data = made(linearity.linearize, raw, dtype="f4", **cubic)
        data = made(linearity.times, data, dtype="f4", factor=2.4)
        variance = made(linearity.add_variance, data, dtype="f4", **noise)
    corner = {"corner": (3, 2)}
    edge = corner | {"full": (NY + 4, NX + 6), "width": 4}
    circle = corner | {"centre": (25.5, 20.25), "radius": 22.0}
    levels = {"non_linear": 40000.0, "saturated": 52000.0}
    dq = made(quality.flag_levels, raw, bpm, dtype="u2", **levels)
    holes, first, second = (Awaited(name) for name in ("holes", "first", "second"))
    dq = made(quality.flag_holes, dq, holes, dtype="u2", windowed=True, width=NX)
    dq = made(quality.flag_border, dq, dtype="u2", windowed=True, **edge)
    dq = made(quality.flag_outside, dq, dtype="u2", windowed=True, **circle)
    shifts = {"offsets": [(0, 0), (-2, 5)], "widths": (NX, NX + 9)}
    dq = made(quality.flag_latents, dq, first, second, dtype="u2", windowed=True, **shifts)
    data = made(np.subtract, data, dark, dtype="f4")
    variance = made(np.add, variance, its_noise, dtype="f4")
    dq = made(np.bitwise_or, dq, its_bits, dtype="u2")
    level = Awaited("level")
    planes = [
        made(flat.flat_data, data, field, dtype="f4"),
        made(flat.flat_variance, data, variance, field, field_noise, level, dtype="f4"),
        made(flat.flat_flags, dq, field, field_bits, dtype="u2"),
    ]
    values = {
        ("holes", 0): listed(9, NX),
        ("first", 0): listed(10, NX),
        ("second", 0): listed(11, NX + 9),
        ("level", 0): 1500.25,
    }
    return [Bound(plane, values) for plane in planes], values


@pytest.mark.parametrize("read_first", [False, True])
@pytest.mark.parametrize("poisson", [False, True])
@pytest.mark.parametrize("window", [(0, NY, 0, NX), (3, 36, 0, NX), (5, 6, 7, 50)])
def test_same_bits_as_kernels_one_after_another(
    read_first: bool, poisson: bool, window: Window
) -> None:
    sources, values = infrared_frame(read_first, poisson)
    assert chained(sources, 0, window[:2]).made == (0, 1, 2)
    found = read_together(sources, 0, window)
    for plane, source in zip(found, sources, strict=True):
        expected = source.read(0, window, dict(values))
        assert plane.dtype == expected.dtype
        np.testing.assert_array_equal(plane.view("u1"), np.ascontiguousarray(expected).view("u1"))


def test_a_plane_that_is_wanted_and_used_is_made_once_and_right() -> None:
    sources, values = infrared_frame(False, True)
    data, variance, _ = (source.source for source in sources)
    inner_data, inner_dq = data.sources[0], sources[2].source.sources[0]
    wanted = [Bound(one, values) for one in (inner_data, variance, inner_dq)]
    found = read_together(wanted, 0, (0, NY, 0, NX))
    for plane, source in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(plane, source.read(0, (0, NY, 0, NX), dict(values)))
    both = [Bound(inner_dq, values), sources[2]]  # bits are not added to the one that is wanted
    for plane, source in zip(read_together(both, 0, (0, NY, 0, NX)), both, strict=True):
        np.testing.assert_array_equal(plane, source.read(0, (0, NY, 0, NX), dict(values)))


def test_planes_with_gaps_are_filled() -> None:
    sources, values = infrared_frame(False, True)
    out = [np.zeros((NY, NX + 3), source.dtype)[:, :NX] for source in sources]
    read_together(sources, 0, (0, NY, 0, NX), out)
    for plane, source in zip(out, sources, strict=True):
        np.testing.assert_array_equal(plane, source.read(0, (0, NY, 0, NX), dict(values)))


def doubled(pixels: np.ndarray) -> np.ndarray:
    return pixels * np.float32(2)


def test_an_unknown_kernel_is_called_and_its_result_goes_in() -> None:
    raw = image(1, 0, 100)
    own = made(doubled, raw, dtype="f4")
    sources = [made(linearity.times, own, dtype="f4", factor=3.0), own]
    chain = chained(sources, 0, (0, NY))
    assert chain.made == (0,) and chain.images == (own,)
    found = read_together(sources, 0, (0, NY, 0, NX))
    np.testing.assert_array_equal(found[1], raw.pixels * np.float32(2))
    np.testing.assert_array_equal(found[0], found[1] * np.float32(3))


def test_what_does_not_fit_is_made_by_its_kernels() -> None:
    deep = made(np.subtract, Plane(np.ones((NY, NX))), image(2, 0, 1), dtype="f4")  # of float64
    assert not chained([deep], 0, (0, NY)).made
    total: Any = image(0, 0, 1)
    for seed in range(1, INPUTS + 1):
        total = made(np.add, total, image(seed, 0, 1), dtype="f4")
    assert not chained([total], 0, (0, NY)).made
    expected = total.read(0, (0, NY, 0, NX), {})
    np.testing.assert_array_equal(read_together([total], 0, (0, NY, 0, NX))[0], expected)


def test_planes_of_another_shape_are_refused() -> None:
    chain = Chain(np.zeros((0, 6), np.int64), np.zeros((0, 6)), np.zeros(0, np.int32))
    with pytest.raises(GdaskError, match="contiguous"):
        run_chain(chain, [np.zeros((3, 4), "f4")], [], [], [], (0, 3, 0, 5), (0, 0))


def test_calibrated_frames_are_made_in_one_call(night: Night) -> None:
    """Whoever gives a step another kernel is told here that chains must know it."""
    bpm = gdask.open(night.bpm)
    frames = steps.add_dq(
        steps.prepare(gdask.open_many(night.science[:3]), bad_wcs="ignore"), (bpm,) * 3
    )
    frame = steps.add_var(steps.adu_to_electrons(steps.nonlinearity_correct(frames[2])))
    bound = []
    for each in arrays_of(frame):
        source, awaited = awaited_by(each)
        values = {
            (name, detector): value
            for name, lazy in awaited.items()
            for detector, value in enumerate(lazy.compute(scheduler="sync"))
        }
        bound.append(Bound(source, values))
    ny, nx = bound[0].shape[1:]
    assert chained(bound, 1, (0, ny)).made == (0, 1, 2)
    at_hand = prepared(bound, 1, (0, ny, 0, nx))
    found = read_together(bound, 1, (20, 60, 0, nx), at_hand=at_hand)
    for plane, source in zip(found, bound, strict=True):
        np.testing.assert_array_equal(plane, source.read(1, (20, 60, 0, nx), {}))
