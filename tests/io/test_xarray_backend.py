"""xarray.open_dataset(engine="gdask"), and Frames as netCDF and Zarr."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import gdask
from gdask import steps
from gdask.io import stored
from gdask.types import Frame


@pytest.fixture
def raw(night: Any) -> str:
    return night.science[0]


def test_it_opens_the_frame_through_the_entry_point(raw: str) -> None:
    frame, opened = gdask.open(raw), xr.open_dataset(raw, engine="gdask")
    assert opened.attrs == frame.attrs and set(opened.coords) == set(frame.coords)
    for name in frame.coords:
        assert [*map(str, opened[name].data)] == [*map(str, frame[name].data)]
    np.testing.assert_array_equal(opened.data, frame.data)
    assert (
        opened.data.dtype == np.float32 and xr.open_dataset(raw).sizes == frame.sizes
    )  # by its ending


@pytest.mark.parametrize(
    "index",
    [
        {"detector": 1, "y": slice(10, 20), "x": 5},
        {"detector": [2, 0], "y": [3, 1, 7]},
        {"y": slice(None, None, 3), "x": slice(300, 100, -7)},
        {"detector": slice(1, 3), "x": slice(0, 0)},
        {"y": -1},
    ],
)
def test_windows_are_what_numpy_gives(raw: str, index: dict[str, Any]) -> None:
    whole = gdask.open(raw).data.compute()
    part = xr.open_dataset(raw, engine="gdask").data.isel(index)
    np.testing.assert_array_equal(part.data, whole.isel(index).data)


def test_only_the_window_is_read(raw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, ...]] = []
    window_of = stored.read_window
    monkeypatch.setattr(
        stored,
        "read_window",
        lambda plane, *window: read.append(window[:4]) or window_of(plane, *window),
    )
    opened = xr.open_dataset(raw, engine="gdask")
    assert read == []
    opened.data.isel(detector=[2], y=slice(7, 9), x=slice(100, 110)).load()
    assert read == [(7, 9, 100, 110)]


def test_chunks_make_dask_arrays(raw: str) -> None:
    arrays = xr.open_dataset(raw, engine="gdask", chunks={})
    assert arrays.data.chunks == ((1,) * 4, (320,), (320,))
    bands = xr.open_dataset(raw, engine="gdask", chunks={"y": 100})
    assert bands.data.chunks[1] == (100, 100, 100, 20)
    np.testing.assert_array_equal(bands.data, gdask.open(raw).data)


def test_steps_take_what_it_opens(raw: str) -> None:
    wanted = calibrated(gdask.open(raw))
    for options in ({}, {"chunks": {}}, {"chunks": {"y": 64}}):
        found = calibrated(xr.open_dataset(raw, engine="gdask", **options))
        for name in ("data", "variance", "dq"):
            assert found[name].compute().data.tobytes() == wanted[name].compute().data.tobytes()


def calibrated(frame: Frame) -> Frame:
    frame = steps.add_dq(steps.prepare(frame), None)
    return steps.add_var(steps.adu_to_electrons(steps.nonlinearity_correct(frame)))


def test_variables_can_be_left_out_and_errors_are_gdasks(raw: str, tmp_path: Path) -> None:
    assert not xr.open_dataset(raw, engine="gdask", drop_variables="data").data_vars
    (tmp_path / "no.fits").write_text("no FITS")
    with pytest.raises(gdask.GdaskError, match="not a FITS file"):
        xr.open_dataset(tmp_path / "no.fits", engine="gdask")


def test_frames_go_to_netcdf_and_zarr(raw: str, tmp_path: Path) -> None:
    frame = calibrated(gdask.open(raw))
    for name, frame_ in (("raw", gdask.open(raw)), ("calibrated", frame)):
        frame_.to_netcdf(tmp_path / f"{name}.nc", engine="netcdf4")
        frame_.to_zarr(tmp_path / f"{name}.zarr", mode="w", consolidated=False)
        stored = (
            xr.open_dataset(tmp_path / f"{name}.nc", engine="netcdf4"),
            xr.open_zarr(tmp_path / f"{name}.zarr", consolidated=False),
        )
        for again in stored:
            np.testing.assert_array_equal(again.data, frame_.data)
            assert again.attrs["phu"] == frame_.attrs["phu"]
            assert list(again.detector.data) == list(frame_.detector.data)
            assert list(again.header.data) == list(frame_.header.data)
            again.close()
