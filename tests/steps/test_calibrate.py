"""Tests of calibration from ADU to flat-fielded electrons.

Each step is its kernel on one chunk, and gives the same in any row bands.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import dask.array as da
import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from helpers import BANDS, assert_same, computed, electrons, flags, ramp, raw, shape_of, with_pixels

import gdask
from gdask import steps
from gdask.instruments import descriptor, instrument_of
from gdask.io.frames import array_headers, primary_header, records, sections, with_headers
from gdask.kernels.detector import flat as flat_kernels
from gdask.kernels.detector import quality as dq_kernels
from gdask.kernels.detector.linearity import add_variance, linearize, linearized_level
from gdask.model import DQ, GdaskError
from gdask.steps.frames import match_region, with_arrays
from gdask.types import Frame


@pytest.fixture
def path(night: object) -> str:
    return night.science[0]


def flat_like(path: str, seed: int = 50, rows: int | None = None) -> Frame:
    """Make a normalised flat: values about 1, some of them not positive, some flagged."""
    frame = electrons(path, seed, rows, low=0.6, high=1.4)
    values = ramp(shape_of(frame), seed, 0.6, 1.4)
    values[:, 5, 5:9] = (0.0, -0.5, np.nan, 0.01)
    return with_pixels(
        frame,
        rows,
        data=values,
        variance=ramp(values.shape, seed + 1, 1e-6, 1e-4),
        dq=flags(values.shape, seed + 2, 0.02),
    )


PIXELWISE: dict[str, Callable[[str, int | None], Frame]] = {
    "nonlinearity_correct": lambda path, rows: steps.nonlinearity_correct(electrons(path, 1, rows)),
    "adu_to_electrons": lambda path, rows: steps.adu_to_electrons(electrons(path, 1, rows)),
    "add_var": lambda path, rows: steps.add_var(raw(path, 1, rows, low=-200.0)),
    "dark_correct": lambda path, rows: steps.dark_correct(
        electrons(path, 1, rows), electrons(path, 2, rows)
    ),
    "flat_correct": lambda path, rows: steps.flat_correct(
        electrons(path, 1, rows), flat_like(path, 50, rows)
    ),
    "add_dq": lambda path, rows: steps.add_dq(
        (raw(path, 1, rows, high=60000.0),), (None,), hidden_saturation=False, latency=False
    )[0],
}


@pytest.mark.parametrize("step", PIXELWISE)
def test_the_same_bits_in_any_row_bands(path: str, step: str) -> None:
    whole = computed(PIXELWISE[step](path, None))
    for rows in BANDS[1:]:
        assert_same(whole, computed(PIXELWISE[step](path, rows)))


@pytest.mark.parametrize("step", PIXELWISE)
def test_nothing_is_computed_to_build_and_frames_are_not_edited(
    path: str, step: str, no_compute: None
) -> None:
    frame = PIXELWISE[step](path, 64)
    assert {name: frame[name].dtype for name in frame}.items() <= {
        "data": "f4",
        "variance": "f4",
        "dq": "u2",
    }.items()
    assert set(frame.data.data.__dask_graph__()) == set(
        PIXELWISE[step](path, 64).data.data.__dask_graph__()
    )


def test_frames_are_never_edited_in_place(path: str) -> None:
    frame = electrons(path)
    before = (
        {name: frame[name].data.name for name in frame},
        frame.attrs["phu"],
        [h.text for h in array_headers(frame)],
    )
    flat = flat_like(path)
    for result in (
        steps.nonlinearity_correct(frame),
        steps.adu_to_electrons(frame),
        steps.add_var(frame),
        steps.dark_correct(frame, frame),
        steps.flat_correct(frame, flat),
        steps.add_dq((frame,), (None,), latency=False)[0],
    ):
        assert result is not frame
        after = (
            {name: frame[name].data.name for name in frame},
            frame.attrs["phu"],
            [h.text for h in array_headers(frame)],
        )
        assert after == before


def test_linearity_is_the_kernel_with_each_arrays_coefficients(path: str) -> None:
    frame = raw(path, high=50000.0)
    data = computed(frame)["data"]
    corrected = steps.nonlinearity_correct(frame)
    arrays = instrument_of(frame).facts["arrays"]
    result = computed(corrected)["data"]
    for number, array in enumerate(arrays):
        expected = linearize(data[number], tuple(array["linearity"]), array["gain"])
        np.testing.assert_array_equal(result[number], expected)
        level = linearized_level(array["saturation"], tuple(array["linearity"]), array["gain"])
        assert array_headers(corrected)[number]["SATLEVEL"] == pytest.approx(level)
    assert np.abs(result / data - 1).max() > 0.005


def test_electrons_have_unit_gain_and_levels_follow(path: str) -> None:
    frame = electrons(path)
    before, converted = computed(frame), steps.adu_to_electrons(frame)
    after, gain = computed(converted), np.float32([2.434, 2.010, 2.411, 2.644])[:, None, None]
    np.testing.assert_allclose(after["data"], before["data"] * gain, rtol=1e-6)
    np.testing.assert_allclose(after["variance"], before["variance"] * gain**2, rtol=1e-6)
    assert [h["GAIN"] for h in array_headers(converted)] == [1.0] * 4
    assert {h["BUNIT"] for h in array_headers(converted)} == {"electron"}
    level = [52400 * 2.434, 50250 * 2.010, 53700 * 2.411, 52300 * 2.644]
    assert descriptor(converted, "saturation_level") == pytest.approx(level)


@pytest.mark.parametrize(("read", "poisson"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("coadds", [1, 4])
def test_variance_is_read_noise_and_photons(
    path: str, read: bool, poisson: bool, coadds: int
) -> None:
    frame = steps.adu_to_electrons(raw(path, low=-500.0, primary={"COADDS": coadds}))
    data = computed(frame)["data"]
    result = steps.add_var(frame, read_noise=read, poisson_noise=poisson)
    noise = np.array([13.63, 9.85, 14.22, 16.78]) / np.sqrt(coadds)
    for number in range(4):
        expected = add_variance(
            data[number], round(noise[number], 2), coadds, poisson=poisson, read=read
        )
        np.testing.assert_allclose(computed(result)["variance"][number], expected, rtol=1e-3)
    assert array_headers(result)[0]["VARNOISE"] == ", ".join(
        kind for kind, on in (("read", read), ("Poisson", poisson)) if on
    )


def test_a_dark_is_subtracted(path: str, night: object) -> None:
    frame, dark = electrons(path), electrons(night.dark[0], 9)
    one, two, result = computed(frame), computed(dark), steps.dark_correct(frame, dark)
    assert_same(
        computed(result),
        {
            "data": one["data"] - two["data"],
            "variance": one["variance"] + two["variance"],
            "dq": one["dq"] | two["dq"],
        },
    )
    assert primary_header(result)["DARKIM"] == dark.attrs["name"]
    assert steps.dark_correct(frame, None) is frame


def test_a_flat_divides(path: str) -> None:
    frame, flat = electrons(path), flat_like(path)
    one, two, result = computed(frame), computed(flat), computed(steps.flat_correct(frame, flat))
    for number in range(4):
        planes = [x[name][number] for x in (one, two) for name in ("data", "variance", "dq")]
        level = flat_kernels.sky_level(planes[0], planes[2], planes[3], planes[5])
        assert level > 100
        for name, expected in zip(
            ("data", "variance", "dq"), flat_kernels.divide(*planes, level), strict=True
        ):
            np.testing.assert_array_equal(result[name][number], expected)
    assert (result["dq"][:, 5, 5:8] & DQ.NO_DATA).all() and not np.isnan(result["data"]).any()


# ---- regions of interest


def opened_at(
    frame: Frame, corners: list[tuple[int, int]], folder: object, name: str = "at.fits"
) -> Frame:
    """Write and open the frame with these 0-based corners (x, y) of its arrays in its headers.

    DETSEC is left alone.
    """
    size = frame.sizes["x"]
    text = [f"[{x + 1}:{x + size},{y + 1}:{y + size}]" for x, y in corners]
    frame = with_headers(frame, each={"CCDSEC": text, "ARRAYSEC": text})
    return gdask.open(gdask.write(frame, f"{folder}/{name}"))


def square(frame: Frame, size: int, **variables: da.Array) -> Frame:
    """Give the frame whole arrays of size x size pixels, with these variables."""
    nowhere = ("detector", np.zeros(4, int))
    pixels = pd.RangeIndex(size)
    bare = frame.drop_vars([*frame.data_vars, "y", "x"]).assign_coords(
        y=pixels, x=pixels, y_offset=nowhere, x_offset=nowhere
    )
    whole = {"file_shape": [4, size, size], "file_start": [0, 0]}
    return with_arrays(bare.assign_attrs(whole), **variables)


def full_frame(path: str, size: int = 2048) -> Frame:
    """Make a full frame, lazily, whose pixel (d, y, x) is 10000 d + y + x / 4096."""
    d, y, x = (da.arange(n, chunks=chunk) for n, chunk in ((4, 1), (size, 256), (size, size)))
    values = 10000.0 * d[:, None, None] + y[None, :, None] + x[None, None, :] / 4096
    kinds = {"data": "f4", "variance": "f4", "dq": "u2"}
    planes = {name: values.astype(kind) for name, kind in kinds.items()}
    return square(electrons(path), size, **planes)


def test_a_full_frame_is_cut_to_each_arrays_window(path: str, tmp_path: object) -> None:
    corners = [(10, 20), (1700, 30), (500, 1728), (0, 0)]
    frame = opened_at(electrons(path), corners, tmp_path)
    cut = match_region(full_frame(path), frame)
    assert cut.data.data.chunks == frame.data.data.chunks
    data = computed(cut)["data"]
    for number, (x, y) in enumerate(corners):
        expected = 10000.0 * number + np.arange(y, y + 320)[:, None] + np.arange(x, x + 320) / 4096
        np.testing.assert_array_equal(data[number], expected.astype("f4"))


@pytest.mark.parametrize(
    ("date", "shift"), [("2013-05-12", (0, 0, 0, 0)), ("2017-05-04", (1, 1, -1, -1))]
)
def test_the_central_kilopixel_is_a_row_off_since_2013(
    night: object, date: str, shift: tuple[int, ...], tmp_path: object
) -> None:
    path = night.std[0]
    frame = with_headers(gdask.open(path), primary={"DATE-OBS": date})
    zeros = da.zeros((4, 1024, 1024), "f4", chunks=(1, 512, 1024))
    frame = opened_at(square(frame, 1024, data=zeros), [(512, 512)] * 4, tmp_path)
    assert sections(frame) == tuple((512, 1536, 512 + s, 1536 + s) for s in shift)
    cut = match_region(full_frame(path), frame)
    first = [float(cut.data[d, 0, 0].data.compute()) - 10000 * d for d in range(4)]
    assert first == [512.125 + s for s in shift]


def test_a_calibration_that_does_not_cover_the_frame_is_refused(
    path: str, tmp_path: object
) -> None:
    frame = opened_at(electrons(path), [(10, 20)] * 4, tmp_path)
    with pytest.raises(GdaskError, match=f"{frame.attrs['name']} needs .* use a full-frame one"):
        match_region(electrons(path), frame)


@pytest.mark.parametrize("rows", BANDS)
def test_a_calibration_in_a_file_is_that_in_memory(
    path: str, tmp_path: object, rows: int | None
) -> None:
    flat = flat_like(path)
    stored = gdask.open(gdask.write(flat, f"{tmp_path}/{flat.attrs['name']}"))
    frame = electrons(path, rows=rows)
    results = [computed(steps.flat_correct(frame, each)) for each in (flat, stored)]
    assert_same(*results)


# ---- data quality


def test_levels_flag_non_linear_and_saturated_pixels(path: str) -> None:
    frame = raw(path, low=20000.0, high=60000.0)
    data = computed(frame)["data"]
    (result,) = steps.add_dq((frame,), (None,), hidden_saturation=False, latency=False)
    dq = computed(result)["dq"]
    for number, (saturation, fraction) in enumerate(
        ((52400, 0.73), (50250, 0.64), (53700, 0.76), (52300, 0.75))
    ):
        expected = dq_kernels.flag_levels(data[number], None, fraction * saturation, saturation)
        np.testing.assert_array_equal(dq[number], expected)
        assert set(np.unique(expected)) == {0, DQ.NON_LINEAR, DQ.SATURATED}
    (saturated_only,) = steps.add_dq(
        (frame,), (None,), non_linear=False, hidden_saturation=False, latency=False
    )
    np.testing.assert_array_equal(computed(saturated_only)["dq"], dq & DQ.SATURATED)


def test_the_hole_of_a_saturated_star_is_flagged(path: str) -> None:
    frame = raw(path, low=200.0, high=400.0)
    data = computed(frame)["data"]
    y, x = np.mgrid[:320, :320]
    radius = np.hypot(x - 100, y - 150)
    data[2][radius < 12] = 55000.0
    data[2][radius < 4] = 9000.0  # reads low after Fowler sampling
    (result,) = steps.add_dq((with_pixels(frame, data=data),), (None,), latency=False)
    dq = computed(result)["dq"]
    np.testing.assert_array_equal((dq[2] & DQ.SATURATED) != 0, radius < 12)
    (without,) = steps.add_dq(
        (with_pixels(frame, data=data),), (None,), latency=False, hidden_saturation=False
    )
    assert not (computed(without)["dq"][2][radius < 4]).any()


def test_static_and_user_masks_are_both_used(path: str, night: object, tmp_path: object) -> None:
    frame = raw(path, low=200.0, high=400.0)
    bpm = gdask.open(night.bpm)
    user_flags = np.zeros(shape_of(frame), "u2")
    user_flags[1, 33, 44] = user_flags[3, 200:202, 7] = 1
    user = gdask.write(
        with_pixels(frame, dq=user_flags).drop_vars("data"), f"{tmp_path}/mine_bpm.fits"
    )
    (result,) = steps.add_dq((frame,), (bpm,), user_bpm=user)
    section = sections(frame)
    static = np.stack(
        [bpm.dq[d, s[2] : s[3], s[0] : s[1]].data.compute() for d, s in enumerate(section)]
    )
    np.testing.assert_array_equal(computed(result)["dq"], static | user_flags)
    assert static.any() and [row["filename"] for row in records(result, "provenance")][1:] == [
        bpm.attrs["name"],
        "mine_bpm.fits",
    ]
    truth = fits.open(night.truth / "bad_pixels.fits")
    expected = np.stack([(hdu.data & 0b0001111) != 0 for hdu in truth[1:]]) & np.stack(
        [(hdu.data & 16) == 0 for hdu in truth[1:]]
    )
    assert ((static & 1) != 0)[expected].mean() > 0.99


@pytest.mark.parametrize("rows", BANDS)
def test_the_outer_four_rows_and_columns_see_no_light(
    path: str, rows: int | None, tmp_path: object
) -> None:
    corners = [(0, 0), (1728, 0), (1728, 1728), (100, 2)]
    frame = opened_at(raw(path, low=200.0, high=400.0), corners, tmp_path)
    frame = with_pixels(frame, rows, data=computed(frame)["data"])
    (result,) = steps.add_dq((frame,), (None,), latency=False)
    for dq, (x1, y1) in zip(computed(result)["dq"], corners, strict=True):
        y, x = np.mgrid[y1 : y1 + 320, x1 : x1 + 320]
        np.testing.assert_array_equal(
            dq == DQ.UNILLUMINATED, (x < 4) | (x >= 2044) | (y < 4) | (y >= 2044)
        )


def taken(
    path: str,
    folder: object,
    name: str,
    seconds: float,
    spot: tuple[int, int] | None,
    corner: int | None = None,
) -> Frame:
    """Write a file begun so many seconds after 2017-05-05 02:00 UT.

    It is saturated about one pixel (x, y) of array 2.
    """
    frame = raw(path, low=200.0, high=400.0)
    data = computed(frame)["data"]
    if spot:
        x, y = spot
        data[1, y - 1 : y + 2, x - 1 : x + 2] = 60000.0
    start = datetime(2017, 5, 5, 2) + timedelta(seconds=seconds)
    frame = with_headers(
        with_pixels(frame, data=data),
        primary={key: f"{start:%H:%M:%S.%f}" for key in ("UT", "UTSTART")}
        | {"DATE-OBS": f"{start:%Y-%m-%d}"},
    )
    if corner is not None:
        return opened_at(frame, [(corner, corner)] * 4, folder, name)
    return gdask.open(gdask.write(frame, f"{folder}/{name}"))


def test_saturated_pixels_of_earlier_frames_are_latent(path: str, tmp_path: object) -> None:
    early, soon, late = (
        taken(path, tmp_path, "a.fits", 0, (50, 60)),
        taken(path, tmp_path, "b.fits", 120, (90, 90)),
        taken(path, tmp_path, "c.fits", 901, None),
    )
    result = [
        computed(frame)["dq"] for frame in steps.add_dq((late, early, soon), (None, None, None))
    ]
    expected = np.zeros((3, *result[0].shape), bool)
    expected[2, 1, 59:62, 49:52] = expected[0, 1, 89:92, 89:92] = (
        True  # the first is too long ago for the last
    )
    np.testing.assert_array_equal((np.stack(result) & DQ.COSMIC_RAY) != 0, expected)
    longer = computed(steps.add_dq((late, early), (None, None), time=2000.0)[0])["dq"]
    assert (longer[1, 59:62, 49:52] == DQ.COSMIC_RAY).all() and (longer & DQ.COSMIC_RAY).astype(
        bool
    ).sum() == 9
    assert not (
        computed(steps.add_dq((late, early, soon), (None,) * 3, latency=False)[2])["dq"]
        & DQ.COSMIC_RAY
    ).any()


def test_latent_images_keep_their_place_on_the_array(path: str, tmp_path: object) -> None:
    """The same pixel of the array in two regions of interest that are 30 pixels apart."""
    early, soon = (
        taken(path, tmp_path, "a.fits", 0, (50, 60), corner=100),
        taken(path, tmp_path, "b.fits", 100, None, corner=130),
    )
    dq = computed(steps.add_dq((early, soon), (None, None))[1])["dq"]
    np.testing.assert_array_equal(
        np.argwhere(dq & DQ.COSMIC_RAY), [(1, y, x) for y in (29, 30, 31) for x in (19, 20, 21)]
    )
