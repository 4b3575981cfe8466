"""Tests of flats, darks, bad-pixel masks and stacks against their kernels, in any row bands."""

from __future__ import annotations

from collections.abc import Callable

import dask
import numpy as np
import pytest
from helpers import BANDS, assert_same, computed, electrons, flags, ramp, shape_of, with_pixels

from gdask import steps
from gdask.instruments import descriptor
from gdask.io.frames import (
    array_headers,
    pixel_variables,
    primary_header,
    records,
    with_headers,
)
from gdask.kernels.stack.combine import METHODS, REJECTIONS, combine
from gdask.model import DQ, GdaskError
from gdask.types import Frame, Frames


def several(
    paths: list[str], rows: int | None = None, level: float = 1000.0, seed: int = 10
) -> Frames:
    """Make frames of one scene, each with its noise, variance, flags and a wild pixel."""
    frames = []
    for number, path in enumerate(paths):
        frame = electrons(path, seed + number, rows)
        shape = shape_of(frame)
        data = ramp(shape, 1, 0.5 * level, 1.5 * level) + np.random.default_rng(
            seed + number
        ).normal(0, 20, shape)
        data[:, 10 + number, 20] += 50 * level
        frames.append(
            with_pixels(
                frame,
                rows,
                data=data.astype("f4"),
                variance=ramp(shape, seed + number, 300, 500),
                dq=flags(shape, seed + number),
            )
        )
    return tuple(frames)


def stacked(frames: Frames, **combination: object) -> dict[str, np.ndarray]:
    """Combine the frames by the kernel, array by array."""
    planes = [computed(frame) for frame in frames]
    result = [
        combine(
            *(np.stack([p[name][d] for p in planes]) for name in ("data", "variance", "dq")),
            **combination,
        )[:3]
        for d in range(4)
    ]
    return {
        name: np.stack([of_array[k] for of_array in result])
        for k, name in enumerate(("data", "variance", "dq"))
    }


def lamps(night: object, rows: int | None = None) -> Frames:
    return (*several(night.flat_on, rows, 5000.0), *several(night.flat_off, rows, 300.0, seed=30))


PIXELWISE: dict[str, Callable[[object, int | None], Frame]] = {
    "stack_frames": lambda night, rows: steps.stack_frames(several(night.dark, rows)),
    "make_lamp_flat": lambda night, rows: steps.make_lamp_flat(lamps(night, rows)),
    "normalize_flat": lambda night, rows: steps.normalize_flat(
        steps.make_lamp_flat(lamps(night, rows))
    ),
    "threshold_flatfield": lambda night, rows: steps.threshold_flatfield(flat(night, rows)),
    "make_bpm": lambda night, rows: steps.make_bpm(
        flat(night, rows), several(night.dark[:1], rows, 5.0)[0]
    ),
}


def flat(night: object, rows: int | None = None) -> Frame:
    """Make a flat of about 1, with values beyond every limit."""
    frame = electrons(night.flat_on[0], 3, rows)
    data = ramp(shape_of(frame), 3, 0.4, 1.6)
    data[:, 3, 4:9] = (-1.0, 0.005, 0.02, 11.0, np.nan)
    return with_pixels(frame, rows, data=data)


@pytest.mark.parametrize("step", PIXELWISE)
def test_the_same_bits_in_any_row_bands_with_nothing_computed_to_build(
    night: object, step: str, no_compute: None
) -> None:
    frames = [PIXELWISE[step](night, rows) for rows in BANDS]
    with dask.config.set(scheduler="threads"):
        whole, *banded = (computed(frame) for frame in frames)
    for frame in banded:
        assert_same(whole, frame)


@pytest.mark.parametrize("operation", METHODS)
@pytest.mark.parametrize("reject", REJECTIONS)
def test_stacks_are_the_kernels(night: object, operation: str, reject: str) -> None:
    frames = several([*night.std, *night.std])
    limits = {"nlow": 1, "nhigh": 2, "lsigma": 2.5, "hsigma": 4.0, "mclip": False, "max_iters": 3}
    stack = steps.stack_frames(frames, operation=operation, reject_method=reject, **limits)
    assert_same(computed(stack), stacked(frames, method=operation, reject=reject, **limits))


def test_a_stack_says_what_is_in_it(night: object) -> None:
    frames = several(night.science)
    frames = tuple(
        with_headers(frame, primary={"AIRMASS": 1.0 + 0.1 * n}) for n, frame in enumerate(frames)
    )
    phu = primary_header(steps.stack_frames(frames))
    assert phu["NCOMBINE"] == 5 and [phu[f"IMCMB{n:03d}"] for n in range(1, 6)] == [
        f.attrs["name"] for f in frames
    ]
    assert (
        phu["EXPTIME"] == 60.0 and phu["TOTEXP"] == 300.0 and phu["AIRMASS"] == pytest.approx(1.2)
    )
    assert [row["filename"] for row in records(steps.stack_frames(frames), "provenance")] == [
        f.attrs["name"] for f in frames
    ]
    assert "NCOMBINE" not in primary_header(frames[0])


def test_frames_that_do_not_belong_together_are_refused(night: object) -> None:
    frames = several(night.science[:2])
    in_j = with_headers(frames[1], primary={"FILTER1": "J_G1101"})
    with pytest.raises(GdaskError, match=f"{in_j.attrs['name']}: filter J"):
        steps.stack_frames((frames[0], in_j))
    with pytest.raises(GdaskError, match="shape"):
        steps.stack_frames((frames[0], *several(night.std[:1])))
    with pytest.raises(GdaskError, match="nothing to combine"):
        steps.stack_frames(())
    with pytest.raises(GdaskError, match="zero"):
        steps.stack_frames(frames, zero=True)


def test_red_flats_are_lamp_on_minus_lamp_off(night: object) -> None:
    frames = lamps(night)
    result = steps.make_lamp_flat(frames[::-1])
    on, off = stacked(frames[:3]), stacked(frames[3:])
    np.testing.assert_array_equal(computed(result)["data"], on["data"] - off["data"])
    np.testing.assert_array_equal(computed(result)["variance"], on["variance"] + off["variance"])
    np.testing.assert_array_equal(computed(result)["dq"], on["dq"] | off["dq"])
    assert len(records(result, "provenance")) == 6


def test_blue_flats_are_lamp_on_alone(night: object) -> None:
    frames = tuple(
        with_headers(frame, primary={"FILTER1": "J_G1101"})
        for frame in several(night.flat_on, level=5000.0)
    )
    assert descriptor(frames[0], "filter_name", pretty=True) == "J"
    assert_same(computed(steps.make_lamp_flat(frames)), stacked(frames))
    # Where there are frames with the lamp off all the same, they are no light of the lamp.
    mixed = tuple(with_headers(one, primary={"FILTER1": "J_G1101"}) for one in lamps(night))
    flat, on, off = steps.make_lamp_flat(mixed), stacked(mixed[:3]), stacked(mixed[3:])
    np.testing.assert_array_equal(computed(flat)["data"], on["data"] - off["data"])


@pytest.mark.parametrize(
    ("starts", "nights"),
    [
        (["2017-05-05T23:00:00", "2017-05-06T10:30:00"], 1),  # before and after one night
        (["2017-05-06T10:30:00", "2017-05-06T22:00:00"], 2),
        (["2017-05-05T17:55:00", "2017-05-05T18:05:00"], 1),  # over the boundary, in one go
        (["2017-05-05T20:00:00", "2017-05-06T20:00:00", "2017-05-08T20:00:00"], 3),
    ],
)
def test_flats_of_several_nights_are_named(night: object, starts: list, nights: int) -> None:
    def at(frame: Frame, start: str) -> Frame:
        return with_headers(frame, primary={"DATE-OBS": start[:10], "UT": start[11:]})

    frames = lamps(night)
    dated = tuple(at(frame, starts[n % len(starts)]) for n, frame in enumerate(frames))
    flats = [steps.make_lamp_flat(dated)]
    in_j = [with_headers(frame, primary={"FILTER1": "J_G1101"}) for frame in dated]
    flats.append(steps.make_lamp_flat(tuple(in_j)))
    for made in flats:
        warning = made.attrs.get("warning", "")
        assert (f"frames of {nights} nights go into one flat" in warning) == (nights > 1)
        for frame, start in zip(dated[:nights], starts, strict=False):
            assert nights == 1 or (frame.attrs["name"] in warning and start[:10] in warning)


@pytest.mark.parametrize(("kind", "missing"), [("flat_on", "lamp-off"), ("flat_off", "lamp-on")])
def test_a_red_flat_needs_both_lamp_states(night: object, kind: str, missing: str) -> None:
    with pytest.raises(GdaskError, match=f"no {missing} ones.*add the {missing} frames"):
        steps.make_lamp_flat(several(getattr(night, kind)))


def test_a_science_frame_among_flats_is_refused(night: object) -> None:
    stray = several(night.science[:1])
    with pytest.raises(GdaskError, match=f"{stray[0].attrs['name']}: not a flat"):
        steps.make_lamp_flat((*lamps(night), *stray))


def test_a_flat_may_have_no_limits(night: object) -> None:
    frame = flat(night)
    before, after = (
        computed(frame),
        computed(steps.threshold_flatfield(frame, lower=None, upper=None)),
    )
    kept = np.isfinite(before["data"]) & ((before["dq"] & DQ.UNILLUMINATED) == 0)
    np.testing.assert_array_equal(after["data"][kept], before["data"][kept])
    assert (after["data"][~kept] == 1).all()


def test_all_arrays_are_normalised_by_one_number(night: object) -> None:
    """Steps of gain and sensitivity between arrays stay in the flat, which removes them."""
    frame = electrons(night.flat_on[0], 3)
    gains = np.array([0.8, 1.0, 1.1, 1.3], "f4")[:, None, None]
    data = ramp(shape_of(frame), 3, 3000, 5000) * gains
    dq = flags(data.shape, 4)
    data[dq != 0] = 60000.0  # must not count
    frame = with_pixels(frame, data=data, dq=dq)
    result, level = (
        computed(steps.normalize_flat(frame)),
        np.median(data[(dq & ~np.uint16(2)) == 0]),
    )
    ratio = (result["data"] / data)[dq == 0]
    assert np.ptp(ratio) < 1e-9 and ratio[0] * level == pytest.approx(1, rel=1e-3)
    assert np.median(result["data"][(dq & ~np.uint16(2)) == 0]) == pytest.approx(1, rel=1e-3)
    np.testing.assert_allclose(
        result["variance"], computed(frame)["variance"] * ratio[0] ** 2, rtol=1e-5
    )


def test_useless_flat_pixels_are_flagged_and_one(night: object) -> None:
    frame = flat(night)
    before, after = computed(frame), computed(steps.threshold_flatfield(frame))
    bad = (before["dq"] & DQ.BAD_PIXEL) != 0
    outside = ~((before["data"] >= 0.01) & (before["data"] <= 10))
    assert outside.sum() >= 12
    np.testing.assert_array_equal(
        (after["dq"] & DQ.UNILLUMINATED) != 0, (outside & ~bad) | ((before["dq"] & 64) != 0)
    )
    hidden = ((after["dq"] & DQ.UNILLUMINATED) != 0) | outside
    np.testing.assert_array_equal(after["data"][hidden & ~(bad & (before["data"] > 10))], 1.0)
    np.testing.assert_array_equal(after["data"][~hidden], before["data"][~hidden])
    wide = computed(steps.threshold_flatfield(frame, lower=0.001, upper=20.0))
    assert not (wide["dq"][:, 3, 5:8] & DQ.UNILLUMINATED).all()


def test_a_bpm_holds_what_flat_and_dark_say(night: object) -> None:
    lamp, (dark,) = flat(night), several(night.dark[:1], level=5.0)
    one, two = computed(lamp), computed(dark)
    mask = steps.make_bpm(
        lamp,
        dark,
        flat_lo_thresh=0.5,
        flat_hi_thresh=1.5,
        dark_lo_thresh=-50.0,
        dark_hi_thresh=100.0,
    )
    assert (
        pixel_variables(mask) == ["dq"]
        and primary_header(mask)["OBJECT"] == "BPM"
        and "BUNIT" not in array_headers(mask)[0]
    )
    result = computed(mask)["dq"]
    hidden = (one["dq"] & DQ.UNILLUMINATED) != 0
    from_flat = ~((one["data"] >= 0.5) & (one["data"] <= 1.5)) | ((one["dq"] & 1) != 0)
    from_dark = ~((two["data"] >= -50) & (two["data"] <= 100)) | ((two["dq"] & 1) != 0)
    expected = np.where(hidden, 64, from_flat) | from_dark
    np.testing.assert_array_equal(result, expected)
    assert from_dark.sum() > 100 and from_flat.sum() > 1000
    kinds = np.sum(dask.compute(mask["bad_kinds"].data)[0].tolist(), axis=0)
    assert kinds.tolist() == [np.count_nonzero(from_flat & ~hidden), np.count_nonzero(from_dark)]
    np.testing.assert_array_equal(
        computed(steps.make_bpm(lamp, flat_hi_thresh=1.5))["dq"], np.where(hidden, 64, from_flat)
    )


def test_a_dark_without_limits_takes_them_from_itself(night: object) -> None:
    frame = electrons(night.dark[0], 3)
    data = np.random.default_rng(5).normal(3.0, 5.0, shape_of(frame)).astype("f4")
    data[2, 40:42, 50] = 300.0
    dark = with_pixels(frame, 64, data=data, dq=np.zeros(data.shape, "u2"))
    lamp = with_pixels(frame, data=ramp(data.shape, 3, 0.9, 1.1), dq=np.zeros(data.shape, "u2"))
    np.testing.assert_array_equal(
        np.argwhere(computed(steps.make_bpm(lamp, dark))["dq"]), [(2, 40, 50), (2, 41, 50)]
    )
