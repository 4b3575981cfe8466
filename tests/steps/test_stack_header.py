"""Headers of stacks against the truth of simulated nights: both instruments, 1 and more coadds."""

from __future__ import annotations

import csv
import io
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from helpers import shape_of, with_pixels

import gdask
from gdask import cli, steps
from gdask.instruments import descriptor
from gdask.io.frames import (
    array_headers,
    primary_header,
    with_fetched,
    with_headers,
    with_small,
)
from gdask.simulate import simulate_f2, simulate_gsaoi
from gdask.steps.frame_numbers import frame_numbers
from gdask.steps.frames import levels_on_grid, without_sky_in_levels
from gdask.types import Frame, Frames

SECONDS = {"gsaoi": 20.0, "f2": 15.0}
#: Electrons: read noise of one coadd (GSAOI: LNRS 8, by array; F2: LNRS 1).
READ_NOISE = {"gsaoi": [13.63, 9.85, 14.22, 16.78], "f2": [11.7]}
WELL = {"gsaoi": [127541.6, 101002.5, 129470.7, 138281.2], "f2": [155400.0]}


class Case(NamedTuple):
    """A night of three frames, prepared to electrons, and what is true of it."""

    name: str
    coadds: int
    frames: Frames
    truth: Table
    folder: Path

    @property
    def averaged(self) -> bool:
        return self.name == "gsaoi"


@pytest.fixture(scope="module", params=[("gsaoi", 1), ("gsaoi", 3), ("f2", 1), ("f2", 4)])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name, coadds = request.param
    folder = tmp_path_factory.mktemp(name)
    few = {"n_science": 3, "n_darks": 1, "size": 64, "exptime": SECONDS[name], "coadds": coadds}
    if name == "gsaoi":
        simulate_gsaoi(folder, **few, n_flats=1, n_sky=0, n_std=0)
    else:
        simulate_f2(folder, **few, n_short_darks=1, n_lamps=1)
    truth = Table.read(folder / "truth" / "frames.ecsv")
    truth = truth[(truth["kind"] == "science") & (truth["field"] != "sky")][:3]
    paths = [str(folder / "raw" / row["file"]) for row in truth]
    frames = steps.prepare(gdask.open_many(paths), bad_wcs="ignore")
    frames = steps.add_dq(frames, (None,) * 3, hidden_saturation=False, latency=False)
    frames = tuple(
        with_headers(
            steps.add_var(steps.adu_to_electrons(frame)),
            primary={"AIRMASS": 1.1 + 0.1 * n, "FLATIM": "S_flat.fits"},
        )
        for n, frame in enumerate(frames)
    )
    return Case(name, coadds, frames, truth, folder)


def test_exposures_and_noise(case: Case) -> None:
    stack = steps.stack_frames(case.frames)
    phu, arrays = primary_header(stack), array_headers(stack)
    one = SECONDS[case.name] * (1 if case.averaged else case.coadds)
    assert phu["EXPTIME"] == one and phu["TOTEXP"] == 3 * case.coadds * SECONDS[case.name]
    assert phu["AIRMASS"] == pytest.approx(1.2) and phu["NCOMBINE"] == 3
    gain = 3.0 * (case.coadds if case.averaged else 1)
    noise = np.array(READ_NOISE[case.name]) / 3**0.5
    noise *= case.coadds ** (-0.5 if case.averaged else 0.5)
    well = np.array(WELL[case.name]) * (1 if case.averaged else case.coadds)
    assert [header["GAIN"] for header in arrays] == pytest.approx([gain] * len(arrays))
    assert [header["RDNOISE"] for header in arrays] == pytest.approx(noise, rel=1e-3)
    for key in ("SATLEVEL", "SATURATE"):
        assert [header[key] for header in arrays] == pytest.approx(well, rel=2e-2), key
        assert phu[key] == pytest.approx(well.min(), rel=2e-2)
    assert all(0.5 < h["NONLINEA"] / h["SATLEVEL"] < 1 for h in arrays)
    assert phu["GAIN"] == pytest.approx(gain)
    assert phu["RDNOISE"] == pytest.approx(np.sqrt(np.mean(noise**2)), rel=1e-3)
    assert (phu["BPMIM"], phu["FLATIM"]) == ("none", "S_flat.fits")


def test_read_noise_is_that_of_the_variance(case: Case) -> None:
    """A frame without light: VAR is the read noise, and that of the stack is its header's."""
    dark = [
        steps.add_var(with_pixels(frame, data=np.zeros(shape_of(frame), "f4")))
        for frame in case.frames
    ]
    for operation in ("mean", "median"):
        stack = steps.stack_frames(tuple(dark), operation=operation, reject_method="none")
        noise = np.sqrt(stack["variance"].data.compute().mean(axis=(1, 2)))
        found = [header["RDNOISE"] for header in array_headers(stack)]
        assert found == pytest.approx(noise, rel=1e-3), operation


def test_gain_is_that_of_the_photon_noise(case: Case) -> None:
    """VAR of the stack beyond its read noise is data / GAIN."""
    level = 5000.0
    bright = [
        steps.add_var(with_pixels(f, data=np.full(shape_of(f), level, "f4")), read_noise=False)
        for f in case.frames
    ]
    for operation in ("mean", "median", "lmedian"):
        stack = steps.stack_frames(tuple(bright), operation=operation, reject_method="none")
        variance = stack["variance"].data.compute().mean()
        assert level / variance == pytest.approx(array_headers(stack)[0]["GAIN"], rel=1e-4)


def test_times(case: Case) -> None:
    # The first frame of the list is not the first in time.
    stack = steps.stack_frames((case.frames[1], case.frames[0], case.frames[2]))
    phu = primary_header(stack)
    start, exposed = np.array(case.truth["mjd"]), case.coadds * SECONDS[case.name]
    second = 1 / 86400
    assert phu["MJD-OBS"] == phu["MJD-BEG"] == pytest.approx(start.min(), abs=0.2 * second)
    assert phu["MJD-AVG"] == pytest.approx(start.mean() + exposed * second / 2, abs=second)
    assert -0.01 < (phu["MJD-END"] - start.max()) * 86400 - exposed < 40
    for name in ("BEG", "AVG", "END"):
        when = datetime.fromisoformat(phu[f"DATE-{name}"])
        days = (when - datetime(1858, 11, 17)) / timedelta(days=1)
        assert days == pytest.approx(phu[f"MJD-{name}"], abs=0.01 * second)
    assert f"{phu['DATE-OBS']}T{phu['UT']}" == phu["DATE-BEG"] and phu["UT"] == phu["UTSTART"]
    assert phu["UTEND"] == phu["DATE-END"][11:]
    for header in array_headers(stack):
        assert header["DATE-OBS"] == phu["DATE-BEG"] and header["MJD-OBS"] == phu["MJD-BEG"]


def test_each_array_of_a_prepared_frame_has_both_dates_or_none(case: Case) -> None:
    for header in array_headers(case.frames[0]):
        assert ("DATE-OBS" in header) == ("MJD-OBS" in header) == (case.name == "f2")


def test_showd_gives_them(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = gdask.write(steps.stack_frames(case.frames), str(tmp_path / "S_image.fits"))
    expected = {
        "total_exposure_time": "TOTEXP",
        "exposure_time": "EXPTIME",
        "airmass": "AIRMASS",
        "mjd_start": "MJD-BEG",
        "mjd_middle": "MJD-AVG",
        "mjd_end": "MJD-END",
        "number_combined": "NCOMBINE",
    }
    texts = {"flat_used": "S_flat.fits", "bpm_used": "none"}
    lists = {
        "gain": "GAIN",
        "read_noise": "RDNOISE",
        "saturation_level": "SATLEVEL",
        "non_linear_level": "NONLINEA",
    }
    names = [*expected, *texts, *lists, "ut_datetime", "ut_middle", "ut_end"]
    assert cli.main(["showd", path, "-d", ",".join(names), "--csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    with fits.open(path) as hdus:
        phu = hdus[0].header
        for name, key in expected.items():
            assert float(row[name]) == pytest.approx(phu[key], abs=1e-9), name
        arrays = [hdu.header for hdu in hdus if hdu.name == "SCI"]
        for name, key in lists.items():
            values = [float(value) for value in row[name].strip("[]").split(",")]
            assert values == pytest.approx([header[key] for header in arrays]), name
        for name, end in (("ut_datetime", "BEG"), ("ut_middle", "AVG"), ("ut_end", "END")):
            shown, kept = (datetime.fromisoformat(t) for t in (row[name], phu[f"DATE-{end}"]))
            assert abs((shown - kept).total_seconds()) < 0.002, name
    assert {name: row[name] for name in texts} == texts


def test_levels_follow_the_pixels(case: Case) -> None:
    frame = case.frames[0]
    count = frame.sizes["detector"]
    sky = tuple(np.full((8, 8), 100.0 * (n + 1)) for n in range(count))
    lowered = without_sky_in_levels(with_fetched(frame, {"background": sky}))
    for n, (old, new) in enumerate(zip(array_headers(frame), array_headers(lowered), strict=True)):
        assert new["SKYMED"] == 100 * (n + 1)
        for key in ("SATLEVEL", "NONLINEA"):
            assert new[key] == pytest.approx(old[key] - 100 * (n + 1))
    assert without_sky_in_levels(lowered) is lowered  # once
    found = levels_on_grid(lowered, 1.21)
    assert found["SATLEVEL"][0] == pytest.approx(
        1.21 * min(header["SATLEVEL"] for header in array_headers(lowered))
    )
    noise = np.array([header["RDNOISE"] for header in array_headers(frame)])
    assert found["RDNOISE"][0] == pytest.approx(1.1 * np.sqrt((noise**2).mean()))


def test_frames_with_other_flats_and_without_dates(case: Case) -> None:
    def other(frame: Frame) -> Frame:
        gone = dict.fromkeys(("DATE-OBS", "UT_DATE", "DATE", "UTDATE", "MJD-OBS", "OBSSTART"))
        frame = with_headers(frame, primary={"FLATIM": "S_other_flat.fits", "BPMIM": "b.fits"})
        return with_headers(frame, primary=gone)

    stack = steps.stack_frames((*case.frames[:2], other(case.frames[2])))
    phu = primary_header(stack)
    assert (phu["FLATIM"], phu["FLATI2"]) == ("S_flat.fits", "S_other_flat.fits")
    assert phu["MJD-OBS"] == pytest.approx(min(case.truth["mjd"][:2]), abs=1e-5)
    assert descriptor(stack, "total_exposure_time") == phu["TOTEXP"]


def test_arrays_without_usable_pixels_have_no_sky(case: Case) -> None:
    frame = case.frames[0]
    count = frame.sizes["detector"]
    if count < 2:
        pytest.skip("one array")
    sky = tuple(np.full((8, 8), 0.0 if n == 1 else 100.0) for n in range(count))
    lowered = without_sky_in_levels(with_fetched(frame, {"background": sky}))
    headers = array_headers(lowered)
    assert [header.get("SKYMED") for header in headers] == [100.0, None, *[100.0] * (count - 2)]
    assert headers[1]["SATLEVEL"] == array_headers(frame)[1]["SATLEVEL"]
    numbers = frame_numbers(lowered)
    noise = np.array([header["RDNOISE"] for n, header in enumerate(headers) if n != 1])
    averaged = 1 if descriptor(frame, "is_coadds_summed") else descriptor(frame, "coadds") or 1
    assert numbers["sky"] == 100.0
    assert numbers["variance"] == pytest.approx(100 / averaged + (noise**2).mean())
    assert levels_on_grid(lowered, 1.0)["RDNOISE"][0] == pytest.approx(np.sqrt((noise**2).mean()))
    assert without_sky_in_levels(lowered) is lowered


def test_weighted_frames_have_the_mean_variance_and_header_of_their_weights(case: Case) -> None:
    given = np.array([1.0, 0.25, 2.0])
    frames = tuple(
        with_small(frame, solution={"numbers": {"weight": weight}})
        for frame, weight in zip(case.frames, given, strict=True)
    )
    how = {"reject_method": "none", "grow": False}
    stack = steps.stack_frames(frames, operation="weighted", **how)
    plain = steps.stack_frames(frames, **how)
    data, variance, dq = (
        np.array([frame[name].values for frame in frames]) for name in ("data", "variance", "dq")
    )
    whole = (dq == 0).all(axis=0)
    weights = given[:, None, None, None] / given.sum()
    expected = (weights * data).sum(axis=0), (weights**2 * variance).sum(axis=0)
    for name, values in zip(("data", "variance"), expected, strict=True):
        np.testing.assert_allclose(stack[name].values[whole], values[whole], rtol=1e-5)
    lost = len(given) * (given**2).sum() / given.sum() ** 2  # 3 over the number that they count as
    pairs = zip(array_headers(stack), array_headers(plain), strict=True)
    for weighted, equal in pairs:
        assert weighted["GAIN"] == pytest.approx(equal["GAIN"] / lost)
        assert weighted["RDNOISE"] == pytest.approx(equal["RDNOISE"] * np.sqrt(lost))
    nights = tuple(
        with_headers(frame, primary={"DATE-OBS": f"2016-03-{day}"})
        for frame, day in zip(frames, (11, 12, 12), strict=True)
    )
    chosen = steps.stack_frames(nights, **how)  # of two nights: weighted without being asked
    assert "3 frames of 2 nights, weighted (0.25 to 2)" in chosen.attrs["note"]
    np.testing.assert_array_equal(chosen["data"].values, stack["data"].values)
    same = steps.stack_frames(case.frames, operation="weighted", **how)  # nothing is known
    np.testing.assert_allclose(same["data"].values, plain["data"].values, rtol=1e-6)
