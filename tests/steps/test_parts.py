"""Tests of steps on a part of a Frame: they give that part of what they give for the whole.

Steps that cannot refuse with one line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import dask
import numpy as np
import pytest

import gdask
from gdask import steps
from gdask.io.frames import lazy_small_results, with_fetched
from gdask.model import DIMS, GdaskError
from gdask.types import Frame

ARRAYS = (0, 2, 3)
CROP = {"y": slice(40, 300), "x": slice(11, 200)}


class Inputs(NamedTuple):
    """Frames that steps need.

    Raw frames, a mask, a flat, and calibrated frames with objects and sky frames.
    """

    raw: tuple[Frame, ...]
    bpm: Frame
    flat: Frame
    calibrated: tuple[Frame, ...]


@pytest.fixture(scope="module")
def inputs(night: Any, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("parts")
    raw = gdask.open_many(night.science[:3])
    bpm = gdask.open(night.bpm)
    lamps = steps.prepare(gdask.open_many([*night.flat_on, *night.flat_off]))
    lamps = steps.add_dq(lamps, (bpm,) * len(lamps), hidden_saturation=False, latency=False)
    lamps = tuple(steps.add_var(steps.adu_to_electrons(frame)) for frame in lamps)
    flat = steps.threshold_flatfield(steps.normalize_flat(steps.make_lamp_flat(lamps)))
    flat = gdask.open(gdask.write(flat, folder / "S1_flat.fits"))
    frames = steps.prepare(raw, bad_wcs="ignore")
    frames = steps.add_dq(frames, (bpm,) * len(frames))
    frames = tuple(
        steps.flat_correct(steps.add_var(steps.adu_to_electrons(frame)), flat) for frame in frames
    )
    written = [gdask.write(f, folder / f"{f.attrs['name']}") for f in frames]
    return Inputs(raw, bpm, flat, gdask.open_many(written))


def prepared(inputs: Inputs) -> Frame:
    return steps.prepare(inputs.raw[0], bad_wcs="ignore")


def flagged(inputs: Inputs) -> Frame:
    return steps.add_dq(prepared(inputs), inputs.bpm, latency=False)


def subtracted(frame: Frame, inputs: Inputs, part: dict[str, Any]) -> Frame:
    skies = tuple(sky.isel(part) for sky in inputs.calibrated)
    frame = frame.assign_attrs(skies=f'["{skies[1].attrs["name"]}", "{skies[2].attrs["name"]}"]')
    return steps.sky_correct(frame, skies, offset_sky=True)


#: Name: (the Frame that the step takes, the step, whether it works pixel by pixel).
CASES: dict[str, tuple[Callable[[Inputs], Frame], Callable[..., Frame], bool]] = {
    "prepare": (
        lambda i: i.raw[0],
        lambda f, i, p: steps.prepare(f, bad_wcs="ignore"),
        True,
    ),
    "check_wcs": (lambda i: i.raw[0], lambda f, i, p: steps.check_wcs(f), True),
    "add_dq": (
        prepared,
        lambda f, i, p: steps.add_dq(f, i.bpm, hidden_saturation=False, latency=False),
        True,
    ),
    "add_dq with holes": (prepared, lambda f, i, p: steps.add_dq(f, i.bpm), False),
    "nonlinearity_correct": (flagged, lambda f, i, p: steps.nonlinearity_correct(f), True),
    "adu_to_electrons": (flagged, lambda f, i, p: steps.adu_to_electrons(f), True),
    "add_var": (flagged, lambda f, i, p: steps.add_var(steps.adu_to_electrons(f)), True),
    "dark_correct": (
        lambda i: i.calibrated[0],
        lambda f, i, p: steps.dark_correct(f, i.calibrated[1]),
        True,
    ),
    "flat_correct": (
        lambda i: i.calibrated[0],
        lambda f, i, p: steps.flat_correct(f, i.flat),
        False,  # the sky's level goes into the variance
    ),
    "measure_background": (
        lambda i: i.calibrated[0],
        lambda f, i, p: steps.measure_background(f),
        False,
    ),
    "measure_shadows": (
        lambda i: i.calibrated[0],
        lambda f, i, p: steps.measure_shadows(f),
        False,
    ),
    "sky_correct": (lambda i: i.calibrated[0], subtracted, False),
    "detect_sources": (lambda i: i.calibrated[0], lambda f, i, p: steps.detect_sources(f), False),
    "detect_sources, mask": (
        lambda i: i.calibrated[0],
        lambda f, i, p: steps.detect_sources(f, products="mask"),
        False,
    ),
    "scale_counts_to_reference": (
        lambda i: i.calibrated[0],
        lambda f, i, p: steps.scale_counts_to_reference(f),
        True,
    ),
    "stack_frames": (
        lambda i: i.calibrated[0],
        lambda f, i, p: steps.stack_frames(
            (f, *(frame.isel(p) for frame in i.calibrated[1:])), grow=False
        ),
        True,
    ),
    "threshold_flatfield": (lambda i: i.flat, lambda f, i, p: steps.threshold_flatfield(f), True),
    "make_bpm": (lambda i: i.flat, lambda f, i, p: steps.make_bpm(f), True),
}
#: Steps that solve for all that they are given together: for a part the (right) answer is another.
JOINT = {
    "separate_sky",
    "associate_sky",
    "add_reference_catalog",
    "adjust_wcs_to_reference",
    "determine_astrometric_solution",
    "measure_sky_levels",
    "match_sky_levels",
    "check_sky",
    "flag_trails",
    "subtract_stack",
    "resample_to_common_frame",
    "flag_shadows",
    "make_lamp_flat",
}
REFUSING = {"normalize_flat"}


def computed(frame: Frame) -> Frame:
    lazy = lazy_small_results(frame)
    values = dask.compute(*lazy.values())
    return with_fetched(frame, dict(zip(lazy, values, strict=True))).compute()


#: What a step says of a Frame as a whole: of a part it says it of the part.
OF_THE_WHOLE = {"solution", "counted", "bad_kinds"}


def assert_identical(result: Frame, expected: Frame) -> None:
    result, expected = computed(result), computed(expected)
    assert set(result.variables) == set(expected.variables)
    for name in set(result.variables) - OF_THE_WHOLE:
        values, expected_values = result[name].data, expected[name].data
        assert values.dtype == expected_values.dtype, name
        if values.dtype == object:
            pairs = zip(np.ravel(values), np.ravel(expected_values), strict=True)
            assert all(bits_of(value) == bits_of(wanted) for value, wanted in pairs), name
        else:
            np.testing.assert_array_equal(values, expected_values, err_msg=str(name))


def bits_of(value: Any) -> object:
    """Give a text, or the bytes of an array: tables have NaN, which equals nothing."""
    return value.tobytes() if isinstance(value, np.ndarray) else str(value)


def test_every_public_step_is_here() -> None:
    tested = {name.partition(" ")[0].rstrip(",") for name in CASES}
    assert tested | JOINT | REFUSING == set(steps.__all__)


@pytest.mark.parametrize("name", CASES)
def test_arrays_of_a_frame(inputs: Inputs, name: str) -> None:
    frame_of, step, _ = CASES[name]
    frame, part = frame_of(inputs), {"detector": list(ARRAYS)}
    assert_identical(step(frame, inputs, {}).isel(part), step(frame.isel(part), inputs, part))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2]])
def test_windows_of_a_frame(inputs: Inputs, name: str) -> None:
    frame_of, step, _ = CASES[name]
    frame = frame_of(inputs)
    part = CROP | {"detector": [1]}
    assert_identical(step(frame, inputs, {}).isel(part), step(frame.isel(part), inputs, part))


def test_the_gain_is_that_of_the_array(inputs: Inputs) -> None:
    """Array 2's gain is 21 % from array 1's."""
    whole, alone = (
        steps.adu_to_electrons(frame).data.isel(detector=index).mean().compute().item()
        for frame, index in ((prepared(inputs), 1), (prepared(inputs).isel(detector=[1]), 0))
    )
    assert whole == alone


def test_what_needs_all_arrays_refuses_a_part(inputs: Inputs) -> None:
    for part in ({"detector": [1]}, CROP):
        with pytest.raises(GdaskError, match="normalize_flat: .* is a part of its file") as caught:
            steps.normalize_flat(inputs.flat.isel(part))
        assert "\n" not in str(caught.value)
        with pytest.raises(GdaskError, match="flat_correct: S1_flat.fits is a part of its file"):
            steps.flat_correct(inputs.calibrated[0], inputs.flat.isel(part))


def test_rows_with_gaps_are_refused(inputs: Inputs) -> None:
    with pytest.raises(GdaskError, match="y is not a range of neighbouring pixels"):
        steps.add_dq(prepared(inputs).isel(y=slice(None, None, 2)), inputs.bpm)


def test_the_sky_of_a_pixel_does_not_depend_on_the_crop(inputs: Inputs) -> None:
    for frame in (inputs.raw[0], prepared(inputs), inputs.calibrated[0]):
        whole = gdask.wcs(frame)
        cut = gdask.wcs(frame.isel(CROP | {"detector": [3, 1]}))
        for number, wcs in zip((3, 1), cut, strict=True):
            there = np.array(whole[number].pixel_to_world_values(60.0, 100.0))
            here = np.array(wcs.pixel_to_world_values(60.0 - 11, 100.0 - 40))
            np.testing.assert_allclose(
                here, there, rtol=0, atol=2e-3 / 3600
            )  # SIP of another window


def test_a_cut_frame_is_written_and_opened_where_it_is(inputs: Inputs, tmp_path: Any) -> None:
    part = CROP | {"detector": [2]}
    cut = prepared(inputs).isel(part)
    again = gdask.open(gdask.write(cut, tmp_path / "S1_cut.fits"))
    assert list(again.detector.data) == list(cut.detector.data)
    for name in ("y", "x"):
        np.testing.assert_array_equal(again[name], cut[name])
    np.testing.assert_array_equal(again.data, cut.data)
    assert again.data.dims == DIMS
