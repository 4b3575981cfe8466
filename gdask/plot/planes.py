"""Pixels of a file or Frame at the scale of a picture, read in strips of rows."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gdask.io.lazy_arrays import is_stored, source_of
from gdask.io.read import open_frame
from gdask.model import DETECTOR, DQ, DTYPES, UNUSABLE
from gdask.types import Flags, Frame, Image, Mask

#: Bytes of pixels of one variable that are read at a time.
STRIP_BYTES = 4e6
#: read(detector, y1, y2) -> rows y1:y2 of one array.
Reader = Callable[[int, int, int], npt.NDArray[Any]]


class Planes(NamedTuple):
    """One array at the scale of a picture: pixel (i, j) stands for a block of step x step pixels.

    All planes have the shape (ceil(ny / step), ceil(nx / step)); row 0 is the array's first row.

    Attributes
    ----------
    step
        Pixels of the array along each side of a block.
    shape
        (ny, nx) of the array.
    mean
        Mean of the block's pixels that have data, in the file's unit; NaN where there is none.
    flags
        DQ bits of all pixels of the block, so that none is lost; None without DQ.
    data, variance
        The block's first pixel; variance None without VAR.
    empty
        Whether this pixel is usable (DQ) and finite, and outside all objects (OBJMASK).
    counts
        Pixels of the whole array by DQ bit: {bit: number}.
    """

    step: int
    shape: tuple[int, int]
    mean: Image
    flags: Flags | None
    data: Image
    variance: Image | None
    empty: Mask
    counts: dict[int, int]


def frame_of(product: Frame | str | os.PathLike[str]) -> Frame:
    """Give the lazy Frame of a file, or the Frame itself. Raises GdaskError as `gdask.open`."""
    return open_frame(product) if isinstance(product, str | os.PathLike) else product


def step_for(frame: Frame, pixels: int, across: int = 1) -> int:
    """Give the step with which a Frame fits `pixels` along its longer side.

    across: number of arrays side by side.
    """
    longest = across * max(frame.sizes["y"], frame.sizes["x"])
    return max(1, -(-longest // pixels))


def read_planes(frame: Frame, step: int) -> list[Planes]:
    """Read all arrays of a Frame at the scale of a picture; memory is that of the result."""
    return [read_array(frame, number, step) for number in range(frame.sizes[DETECTOR])]


def read_array(frame: Frame, number: int, step: int) -> Planes:
    """Read one array (`number` from 0) at the scale of a picture.

    SCI and DQ are read whole, in strips; of VAR and OBJMASK one row of `step`. A mask without SCI
    (a BPM) has its flags as data.
    """
    readers = {name: _reader(frame, name) for name in DTYPES if name in frame.variables}
    main = "data" if "data" in readers else "dq"
    ny, nx = int(frame.sizes["y"]), int(frame.sizes["x"])
    shape = -(-ny // step), -(-nx // step)
    mean, data = np.full(shape, np.nan, "f4"), np.full(shape, np.nan, "f4")
    flags = np.zeros(shape, "u2") if "dq" in readers else None
    empty, counts = np.zeros(shape, bool), dict.fromkeys((int(bit) for bit in DQ if bit), 0)
    for top, bottom in _strips(ny, nx, step):
        rows = slice(top // step, -(-bottom // step))
        values = readers[main](number, top, bottom).astype("f4", copy=False)
        dq = readers["dq"](number, top, bottom) if flags is not None else None
        mean[rows] = _block_means(values, dq, step)
        data[rows] = values[::step, ::step]
        empty[rows] = np.isfinite(data[rows])
        if dq is not None and flags is not None:
            flags[rows] = _block_flags(dq, step)
            _count_bits(dq, counts)
            empty[rows] &= (dq[::step, ::step] & int(UNUSABLE)) == 0
    variance = None
    if "variance" in readers:
        variance = _sampled_rows(readers["variance"], number, ny, step)
        empty &= np.isfinite(variance) & (variance > 0)
    if "objects" in readers:
        empty &= ~_sampled_rows(readers["objects"], number, ny, step)
    return Planes(step, (ny, nx), mean, flags, data, variance, empty, counts)


def means_on_one_level(planes: Sequence[Planes], kind: str) -> list[Image]:
    """Give the means of blocks of the arrays of a file, as one grey scale can show them.

    Arrays of a raw file (`kind` '', as by `kind_of`) differ in sky and bias by many times their
    noise, so that some would be all black or white: each is moved so that its median is that of the
    medians of all. Products keep their values, and so does a file of one array.
    """
    means = [plane.mean for plane in planes]
    if kind or len(means) < 2:
        return means
    levels = [
        float(np.median(found)) if len(found := mean[np.isfinite(mean)]) else math.nan
        for mean in means
    ]
    if not np.isfinite(levels).any():
        return means
    common = float(np.nanmedian(levels))
    return [
        mean + np.float32(common - level) if math.isfinite(level) else mean
        for mean, level in zip(means, levels, strict=True)
    ]


def _reader(frame: Frame, name: str) -> Reader:
    """Give the function that reads rows of a variable: of a file, or of what dask computes.

    Arrays that no file holds are computed one by one, each once; so are those of compressed files.
    """
    variable = frame.variables[name]
    if variable.chunks is None:  # in memory, or xarray reads it as it is indexed
        return lambda number, y1, y2: variable[number, y1:y2].values
    source, width = source_of(variable.data), int(frame.sizes["x"])
    if is_stored(source) and source.is_windowed:
        return lambda number, y1, y2: source.read(number, (y1, y2, 0, width), {})
    kept: dict[int, npt.NDArray[Any]] = {}

    def computed(number: int, y1: int, y2: int) -> npt.NDArray[Any]:
        if number not in kept:
            kept.clear()
            kept[number] = variable[number].values
        return kept[number][y1:y2]

    return computed


def _strips(ny: int, nx: int, step: int) -> Iterator[tuple[int, int]]:
    height = max(1, int(STRIP_BYTES / (4 * nx * step))) * step
    return ((top, min(top + height, ny)) for top in range(0, ny, height))


def _sampled_rows(read: Reader, number: int, ny: int, step: int) -> npt.NDArray[Any]:
    """Give the first pixel of each block, reading one row of `step`."""
    return np.stack([read(number, y, y + 1)[0, ::step] for y in range(0, ny, step)])


def _block_means(values: Image, dq: Flags | None, step: int) -> Image:
    """Give the means over blocks of the pixels that are finite and have data."""
    good = np.isfinite(values)
    if dq is not None:
        good &= (dq & int(DQ.NO_DATA)) == 0
    if step == 1:
        return np.where(good, values, np.float32(np.nan))
    if good.all():
        numbers = _block_sums(np.ones((len(values), 1), "f4"), step)
        widths = _block_sums(np.ones((1, values.shape[1]), "f4"), step)
        return _block_sums(values, step) / (numbers * widths)
    sums = _block_sums(np.where(good, values, np.float32(0)), step)
    numbers = _block_sums(good.astype("f4"), step)
    return np.where(numbers > 0, sums / np.maximum(numbers, 1), np.float32(np.nan))


def _block_sums(values: Image, step: int) -> Image:
    """Sum blocks of step x step pixels; those at the upper and right edges may be smaller."""
    with np.errstate(over="ignore"):  # values near the largest float32: inf, which has no level
        rows = values[::step].copy()
        for first in range(1, step):
            part = values[first::step]
            rows[: len(part)] += part
        sums = rows[:, ::step].copy()
        for first in range(1, step):
            part = rows[:, first::step]
            sums[:, : part.shape[1]] += part
    return sums


def _block_flags(dq: Flags, step: int) -> Flags:
    """Give the bits of all pixels of each block."""
    rows = dq[::step].copy()
    for first in range(1, step):
        part = dq[first::step]
        rows[: len(part)] |= part
    flags = rows[:, ::step].copy()
    for first in range(1, step):
        part = rows[:, first::step]
        flags[:, : part.shape[1]] |= part
    return flags


def _count_bits(dq: Flags, counts: dict[int, int]) -> None:
    """Add the number of pixels with each bit to `counts`."""
    numbers = np.bincount(dq[dq != 0])
    (values,) = np.nonzero(numbers)
    for bit in counts:
        counts[bit] += int(numbers[values[(values & bit) != 0]].sum())
