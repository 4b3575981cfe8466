"""Subtract the skies of a group of frames: one task makes a band of rows of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from dask.base import tokenize

from gdask.io.chained import prepared, read_together
from gdask.io.dask_internals import awaited_by
from gdask.io.gather import gather, gather_planes, sampled_rows
from gdask.io.lazy_arrays import band_chunks
from gdask.io.sources import Source, stored_arrays
from gdask.kernels.sky.subtraction import fill_hidden, subtract_sky, without_objects
from gdask.kernels.stack.combine import combine
from gdask.model import late
from gdask.steps.frames import (
    BAND_ROWS,
    PIXEL_BYTES,
    VARIABLE_TYPES,
    VARIABLES,
    array,
    arrays_of,
)
from gdask.steps.sky_frames import middle_of_exposure
from gdask.types import Flags, Frame, Frames, Image, Mask, Window

if TYPE_CHECKING:
    import dask.array as da
else:
    da = late("dask.array")

#: Bytes of whole arrays that a group of frames may take between its bands and its detection, and
#: the most frames in a group. Constants, so that graphs have the same names on every machine.
GROUP_BYTES, MOST_IN_GROUP = 4e8, 16
#: Rows of all frames that a task combines at a time, at most and at least, and the bytes of their
#: pixels that should not be exceeded: what the processor's caches hold.
_MOST_ROWS, _FEWEST_ROWS, _STRIP_BYTES = 16, 4, 8e6
#: Bytes of raw rows that a task reads ahead from files.
_AHEAD_BYTES = 32e6
#: Bytes for each pixel of a strip: of each frame (its pixels, its mask, its DQ without objects), of
#: each sky (its pixels, the number of frames, what they show), and of the frame that is calibrated
#: at the moment, with all that lies in between.
_FRAME_BYTES, _SKY_BYTES, _CALIBRATION_BYTES = PIXEL_BYTES + 3, PIXEL_BYTES + 5, 60
#: Pixels of an array in whose rows they are counted, and bytes for each.
_COUNTED_PIXELS, _COUNT_BYTES = 2**18, 8.0


class Wanted(NamedTuple):
    """A frame whose sky is wanted.

    Attributes
    ----------
    frame, skies
        The frame, and its sky frames.
    levels
        The lazy level of each sky frame.
    own_level
        The lazy level to which the sky is brought; None: the levels of the sky frames, interpolated
        to the time of the frame.
    structure
        By how much the sky of each array differs from its level (e- rms): the error of a pixel for
        which no sky frame is left.
    """

    frame: Frame
    skies: Frames
    levels: tuple[da.Array, ...]
    own_level: da.Array | None
    structure: tuple[float, ...] = ()


class Plan(NamedTuple):
    """How a task makes a band of one frame: numbers of frames and levels among all of the task.

    Attributes
    ----------
    frame, skies
        Numbers of the frame and of its sky frames.
    levels, own_level
        Numbers of the levels of the sky frames, and of its own one (None: interpolated).
    times
        Of the sky frames, and of the frame (s).
    reject
        How deviant values are rejected.
    masked
        Whether objects are left out.
    structure
        Of the sky in each array (e- rms).
    """

    frame: int
    skies: tuple[int, ...]
    levels: tuple[int, ...]
    own_level: int | None
    times: tuple[tuple[float, ...], float] | None
    reject: str
    masked: bool
    structure: tuple[float, ...]


def subtract_skies(
    group: Sequence[Wanted], mask_objects: bool, combination: Mapping[str, Any]
) -> list[list[da.Array]]:
    """Give data, variance and dq, lazy, of each frame of a group without its sky.

    combination: operation, reject, nlow, nhigh, scale. All frames have arrays of one shape.
    """
    frames: dict[tuple[str, ...], tuple[int, Frame]] = {}
    levels: dict[str, tuple[int, da.Array]] = {}

    def number_of(frame: Frame) -> int:
        key = tuple(each.name for each in arrays_of(frame))
        number, known = frames.setdefault(key, (len(frames), frame))
        if "objects" in frame and "objects" not in known:
            frames[key] = number, frame
        return number

    def level_number(level: da.Array) -> int:
        return levels.setdefault(level.name, (len(levels), level))[0]

    plans = []
    for frame, skies, sky_levels, own_level, structure in group:
        rejects_all = combination["nlow"] + combination["nhigh"] >= len(skies)
        times = tuple(middle_of_exposure(sky) for sky in skies), middle_of_exposure(frame)
        plans.append(
            Plan(
                number_of(frame),
                tuple(number_of(sky) for sky in skies),
                tuple(level_number(level) for level in sky_levels),
                None if own_level is None else level_number(own_level),
                times if own_level is None else None,
                "none"
                if rejects_all and combination["reject"] == "minmax"
                else combination["reject"],
                mask_objects and all("objects" in sky for sky in skies),
                structure,
            )
        )
    used = [frame for _, frame in frames.values()]
    masks = _masks_of(used, plans)
    arrays = [each for frame in used for each in arrays_of(frame)]
    planes = _gather_bands(
        [*arrays, *masks.values()],
        [level for _, level in levels.values()],
        tuple(plans),
        tuple(masks),
        {name: combination[name] for name in ("operation", "nlow", "nhigh", "scale")},
    )
    count = len(VARIABLES)
    return [planes[start : start + count] for start in range(0, len(planes), count)]


def _masks_of(frames: Sequence[Frame], plans: Sequence[Plan]) -> dict[int, da.Array]:
    """Give the object mask of each frame, by its number, that is left out of a sky."""
    masked = sorted({number for plan in plans if plan.masked for number in plan.skies})
    masks = {number: array(frames[number], "objects") for number in masked}
    return {number: mask for number, mask in masks.items() if mask is not None}


def count_skies(each: Wanted) -> da.Array | None:
    """Count for each array, lazily: pixels, those with the sky of one frame left, of none.

    None where no sky frame has a mask. The counts are those of a sample of rows.
    """
    masks = [array(sky, "objects") for sky in each.skies]
    known = [mask for mask in masks if mask is not None]
    if not known:
        return None
    count, ny, nx = known[0].shape
    rows = sampled_rows(ny, nx, _COUNTED_PIXELS)
    return gather(
        _count_skies,
        known,
        name=f"count_skies-{tokenize([mask.name for mask in known], len(masks))}",
        dtype=object,
        chunks=((1,) * count,),
        windows=lambda _, detector, __: [(detector, (y1, y2, 0, nx)) for y1, y2 in rows],
        scratch=_COUNT_BYTES * nx * sum(y2 - y1 for y1, y2 in rows),
        result_bytes=100.0,
        rows=rows,
        number=len(masks),
    )


def _count_skies(
    sources: tuple[Source, ...],
    detector: int,
    window: Window,
    rows: tuple[tuple[int, int], ...],
    number: int,
) -> np.ndarray:
    nx, pixels, found = sources[0].shape[2], 0, np.zeros(2, np.int64)
    for y1, y2 in rows:
        hidden = [source.read(detector, (y1, y2, 0, nx), {}) for source in sources]
        counts = sky_counts(hidden, number)
        pixels += (y2 - y1) * nx
        if counts is not None:
            found += [np.count_nonzero(counts == left) for left in (1, 0)]
    return np.array([pixels, *(found if number > 1 else (0, found[1]))])


def _gather_bands(
    arrays: Sequence[da.Array],
    levels: Sequence[da.Array],
    plans: tuple[Plan, ...],
    masked: tuple[int, ...],
    combination: Mapping[str, Any],
) -> list[da.Array]:
    count, ny, nx = arrays[0].shape
    n_frames = (len(arrays) - len(masked)) // len(VARIABLES)
    row_bytes = n_frames * nx * (PIXEL_BYTES + 1)
    rows = int(min(max(_STRIP_BYTES // max(row_bytes, 1), _FEWEST_ROWS), _MOST_ROWS))
    ahead = int(max(_AHEAD_BYTES // max(4 * n_frames * nx * rows, 1), 1)) * rows
    skies = len({(plan.skies, plan.reject, plan.masked) for plan in plans})
    in_strip = n_frames * _FRAME_BYTES + skies * _SKY_BYTES + _CALIBRATION_BYTES
    read = read_bytes(arrays, min(ahead, BAND_ROWS), BAND_ROWS)
    identity = [each.name for each in (*arrays, *levels)]
    return gather_planes(
        _subtract_band,
        arrays,
        name=f"minus_sky-{tokenize(identity, plans, masked, combination)}",
        dtypes=VARIABLE_TYPES * len(plans),
        chunks=((1,) * count, band_chunks(ny, BAND_ROWS), (nx,)),
        windows=lambda _, detector, window: [(detector, window)],
        values=levels,
        scratch=float(nx) * (rows * in_strip + read),
        plans=plans,
        masked=masked,
        rows=rows,
        ahead=ahead,
        combination=combination,
    )


def read_bytes(arrays: Sequence[da.Array], ahead: int, rows: int) -> float:
    """Give the bytes for each column that a task holds of what these arrays are read from.

    Of frames and masks it holds so many rows `ahead`, one of them twice as it is read; of the
    calibrations, which the next task finds in memory, all `rows`.
    """
    stored = stored_arrays([awaited_by(each)[0] for each in arrays])
    items = [ahead * each.dtype.itemsize for each in stored if not each.is_kept]
    kept = [rows * each.dtype.itemsize for each in stored if each.is_kept]
    return float(sum(items) + sum(kept) + max(items, default=0))


def _subtract_band(
    sources: tuple[Source, ...],
    detector: int,
    window: Window,
    *levels: float,
    plans: tuple[Plan, ...],
    masked: tuple[int, ...],
    rows: int,
    ahead: int,
    combination: Mapping[str, Any],
) -> list[np.ndarray]:
    """Subtract the sky from a band of each frame of a group, so many rows at a time.

    sources: data, variance and dq of each frame, and the object masks of the frames `masked`.
    """
    y1, y2, x1, x2 = window
    n_frames = (len(sources) - len(masked)) // len(VARIABLES)
    of_frames = [sources[n * len(VARIABLES) : (n + 1) * len(VARIABLES)] for n in range(n_frames)]
    masks = dict(zip(masked, sources[n_frames * len(VARIABLES) :], strict=True))
    shape = y2 - y1, x2 - x1
    bands = [np.empty(shape, dtype) for _ in plans for dtype in VARIABLE_TYPES]
    sky_levels = [float(_level_of(plan, levels)) for plan in plans]
    for first in range(y1, y2, ahead):
        last = min(first + ahead, y2)
        at_hand = [prepared(each, detector, (first, last, x1, x2)) for each in of_frames]
        masks_at_hand = prepared(tuple(masks.values()), detector, (first, last, x1, x2))
        for y in range(first, last, rows):
            strip = y, min(y + rows, last), x1, x2
            cubes = _read_strip(of_frames, detector, strip, at_hand)
            hidden = np.zeros(cubes[2].shape, bool)
            for number, mask in masks.items():
                hidden[number] = mask.read(detector, strip, dict(masks_at_hand))
            shown = without_objects(cubes[2], hidden) if masks else cubes[2]
            skies: dict[object, tuple[Image, Image, Flags]] = {}
            for number, plan in enumerate(plans):
                key = plan.skies, plan.reject, plan.masked
                if key not in skies:
                    skies[key] = _combine_skies(
                        cubes, shown, hidden, plan, detector, levels, combination
                    )
                of_frame = cubes[0][plan.frame], cubes[1][plan.frame], cubes[2][plan.frame]
                part = slice(y - y1, strip[1] - y1)
                data, variance, dq = (band[part] for band in bands[3 * number : 3 * number + 3])
                level, scale = sky_levels[number], combination["scale"]
                subtract_sky(of_frame, skies[key], level, scale, (data, variance, dq))
    return bands


def _read_strip(
    of_frames: Sequence[tuple[Source, ...]], detector: int, strip: Window, at_hand: Sequence[Any]
) -> tuple[np.ndarray, ...]:
    """Read cubes (frame, y, x) of data, variance and DQ."""
    shape = len(of_frames), strip[1] - strip[0], strip[3] - strip[2]
    cubes = tuple(np.empty(shape, dtype) for dtype in VARIABLE_TYPES)
    for number, sources in enumerate(of_frames):
        planes = [cube[number] for cube in cubes]
        read_together(sources, detector, strip, planes, at_hand[number])
    return cubes


def _combine_skies(
    cubes: tuple[np.ndarray, ...],
    shown: Flags,
    hidden: Mask,
    plan: Plan,
    detector: int,
    levels: Sequence[float],
    combination: Mapping[str, Any],
) -> tuple[Image, Image, Flags]:
    """Combine the sky frames of a plan, each brought to level zero, or one if skies are scaled.

    cubes: data, variance and DQ (frame, y, x). shown: DQ with the objects of the frames, `hidden`,
    left out. Where these hide the sky of all but one frame, or of all, the result has FEW_SKIES; of
    all: its level alone, with the variance of the sky's structure.
    """
    values = np.array([levels[number] for number in plan.levels])
    scale = combination["scale"]
    data, noise, flags, _ = combine(
        cubes[0],
        cubes[1],
        shown if plan.masked else cubes[2],
        method=combination["operation"],
        reject=plan.reject,
        nlow=combination["nlow"],
        nhigh=combination["nhigh"],
        scale=1.0 / values if scale else np.ones(len(values)),
        zero=np.zeros(len(values)) if scale else -values,
        chosen=plan.skies,
    )
    sky = data, noise, flags
    if plan.masked:
        structure = plan.structure[detector] if plan.structure else 0.0
        variance = float(np.float32(structure / (values.mean() if scale else 1.0)) ** 2)
        fill_hidden(sky, cubes[2], hidden, plan.skies, 1.0 if scale else 0.0, variance)
    return sky


def sky_counts(hidden: Sequence[Mask], number: int) -> np.ndarray | None:
    """Give how many of `number` sky frames show the sky of each pixel; None where all of them do.

    hidden: masks of the objects of those that have masks.
    """
    if not any(mask.any() for mask in hidden):
        return None
    counts = np.full(hidden[0].shape, number, np.int16)
    for mask in hidden:
        counts -= mask
    return counts


def _level_of(plan: Plan, levels: Sequence[float]) -> np.float32:
    if plan.own_level is not None or plan.times is None:
        return np.float32(levels[plan.own_level or 0])
    return np.float32(interpolate([levels[number] for number in plan.levels], *plan.times))


def interpolate(levels: Sequence[float], times: tuple[float, ...], when: float) -> float:
    """Give the level at time `when`: linear between sky frames, constant before and after them."""
    order = np.argsort(times, kind="stable")
    return float(np.interp(when, np.asarray(times)[order], np.array(levels)[order]))
