"""Helpers of the pipeline's tests: frames with known pixels, frames as plain arrays."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import dask
import dask.array as da
import numpy as np
from astropy.io import fits

import gdask
from gdask.io.frames import (
    geometries,
    lazy_small_results,
    pixel_variables,
    small_results,
    with_geometries,
    with_headers,
)
from gdask.steps.frames import with_arrays
from gdask.steps.pointing import prepare
from gdask.types import Frame, Frames

if TYPE_CHECKING:
    from distributed import LocalCluster

#: Heights of the row bands that every pixel-wise step is tried with: whole arrays, even bands,
#: uneven bands.
BANDS = (None, 64, 97)
#: A time of this run, in a header.
TIME_OF_RUN = re.compile(rf"{datetime.now(UTC):%Y-%m}-\d\dT\d\d:")
#: Tables of a product that hold times of the run, or the parameters that differ here.
TABLES_OF_RUN = ("HISTORY", "PROVENANCE", "REDUCTION")


def loopback_cluster(n_workers: int = 1) -> LocalCluster:
    """Give a scheduler that this process runs, with workers of one thread each, on loopback."""
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=n_workers,
        threads_per_worker=1,
        processes=False,
        protocol="tcp",
        dashboard_address=None,
        host="127.0.0.1",
    )


def ramp(
    shape: tuple[int, ...], seed: int, low: float = 100.0, high: float = 20000.0
) -> np.ndarray:
    """Give float32 planes of a ramp from `low` to `high`, with noise of 1 % of the range."""
    values = np.linspace(low, high, int(np.prod(shape[-2:]))).reshape(shape[-2:])
    return (values + np.random.default_rng(seed).normal(0.0, 0.01 * (high - low), shape)).astype(
        np.float32
    )


def flags(shape: tuple[int, ...], seed: int, share: float = 0.05) -> np.ndarray:
    """Give uint16 planes with one of the DQ bits in a random `share` of the pixels."""
    random = np.random.default_rng(seed)
    bits = random.choice([1, 2, 4, 8, 16, 64], shape).astype(np.uint16)
    return np.where(random.random(shape) < share, bits, 0).astype(np.uint16)


def with_pixels(frame: Frame, rows: int | None = None, **planes: np.ndarray) -> Frame:
    """Give the Frame with these pixels, chunked in bands of `rows` rows."""
    lazy = {
        name: da.from_array(values, chunks=(1, rows or values.shape[1], -1), asarray=True)
        for name, values in planes.items()
    }
    return with_arrays(frame, **lazy)


def shape_of(frame: Frame) -> tuple[int, int, int]:
    """Give (detector, y, x) of a Frame."""
    return frame.sizes["detector"], frame.sizes["y"], frame.sizes["x"]


def raw(
    path: str,
    seed: int = 1,
    rows: int | None = None,
    primary: dict[str, object] | None = None,
    **limits: float,
) -> Frame:
    """Give a raw file's headers, with `primary` changed, prepared, with a ramp as pixels."""
    (frame,) = prepare((with_headers(gdask.open(path), primary=primary),), bad_wcs="ignore")
    return with_pixels(frame, rows, data=ramp(shape_of(frame), seed, **limits))


def electrons(path: str, seed: int = 1, rows: int | None = None, **limits: float) -> Frame:
    """Give a raw file's headers, prepared, with a ramp as data and another as variance.

    Flags are in 5 % of the pixels.
    """
    frame = raw(path, seed, rows, **limits)
    shape = shape_of(frame)
    return with_pixels(
        frame, rows, variance=ramp(shape, seed + 1000, 10.0, 500.0), dq=flags(shape, seed + 2000)
    )


def computed(frame: Frame) -> dict[str, np.ndarray]:
    """Compute all pixels of a Frame as plain arrays by variable."""
    names = pixel_variables(frame)
    return dict(zip(names, dask.compute(*(frame[name].data for name in names)), strict=True))


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Check that two Frames' arrays have the same variables with the same bits (NaN included)."""
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert values.dtype == other[name].dtype and values.shape == other[name].shape, name
        assert values.tobytes() == other[name].tobytes(), (
            f"{name}: {np.sum(values != other[name])} pixels differ"
        )


def on_disk(frames: Frames, folder: object) -> Frames:
    """Write Frames to `folder` and open them again; keep what files do not hold."""
    result = []
    for frame in frames:
        again = gdask.open(gdask.write(frame, f"{folder}/{frame.attrs['name']}"))
        kept = set(small_results(frame)) - set(lazy_small_results(frame))
        again = again.assign({name: frame[name].variable for name in kept})
        if "provenance" in frame.attrs:
            again = again.assign_attrs(provenance=frame.attrs["provenance"])
        result.append(with_geometries(again, geometries(frame)))
    return tuple(result)


def content(path: Path) -> dict[tuple[str, int], object]:
    """Read the bytes of every image and table of a product, except for tables of the run."""
    with fits.open(path) as hdus:
        return {
            (hdu.name, hdu.ver): (hdu.data.dtype.str, hdu.data.tobytes())
            for hdu in hdus[1:]
            if hdu.name not in TABLES_OF_RUN
        }
