"""Give steps the variables of a Frame as lazy arrays, and facts of its arrays and its time.

The functions build graphs and compute nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from gdask import model
from gdask.instruments import descriptor, instrument_of, view
from gdask.io.frames import (
    array_headers,
    array_numbers,
    geometries,
    is_frame,
    primary_header,
    sections,
    shape_of,
    small,
    with_headers,
    with_pixels,
)
from gdask.io.lazy_arrays import cut_out
from gdask.kernels.geometry.projection import to_plane
from gdask.model import DETECTOR, DIMS, DTYPES, GdaskError, X, Y, late, usual_errors
from gdask.types import Frame, Frames

if TYPE_CHECKING:
    import dask.array as da
else:
    da = late("dask.array")

VARIABLES = ("data", "variance", "dq")
#: Their types, and their bytes for each pixel.
VARIABLE_TYPES = tuple(DTYPES[name] for name in VARIABLES)
PIXEL_BYTES = sum(dtype.itemsize for dtype in VARIABLE_TYPES)
#: Rows of a band of an image that one task makes.
BAND_ROWS = 256
#: Bytes of all frames' pixels (data, variance, dq) that a task holds at a time: it makes its block
#: in strips of rows. It is a constant, and not a share of the memory allowed, so that graphs have
#: the same names on every machine.
STRIP_BYTES = 32e6

Step = TypeVar("Step", bound=Callable[..., Any])


def on_group(step: Step) -> Step:
    """Let a step on tuples of Frames take a single Frame too, and give a single one back."""

    @functools.wraps(step)
    @usual_errors()
    def for_one_or_many(frames: Any, *arguments: Any, **parameters: Any) -> Any:
        if not is_frame(frames):
            return step(tuple(frames), *arguments, **parameters)
        wrapped = (
            (argument,) if is_frame(argument) or argument is None else argument
            for argument in arguments
        )
        result = step((frames,), *wrapped, **parameters)
        is_one = isinstance(result, tuple) and len(result) == 1 and is_frame(result[0])
        return result[0] if is_one else result

    return for_one_or_many  # type: ignore[return-value]


def named(arrays: Sequence[da.Array]) -> dict[str, da.Array]:
    """Give lazy arrays of data, variance and dq by name."""
    return dict(zip(VARIABLES, arrays, strict=True))


def array(frame: Frame, name: str) -> da.Array | None:
    """Give a variable's lazy array, one detector to a block; None without such a variable."""
    if name not in frame:
        return None
    pixels = frame.variables[name].data
    if not hasattr(pixels, "dask"):  # in memory, or read lazily by xarray
        pixels = frame[name].chunk({DETECTOR: 1, Y: -1, X: -1}).data
    return (
        pixels if pixels.numblocks[0] == pixels.shape[0] else pixels.rechunk({0: 1}, method="tasks")
    )


def arrays_of(frame: Frame, names: Sequence[str] = VARIABLES) -> list[da.Array]:
    """Give the lazy arrays of variables that a Frame has to have."""
    return [_needed(frame, name) for name in names]


def _needed(frame: Frame, name: str) -> da.Array:
    pixels = array(frame, name)
    if pixels is None:
        made_by = {"variance": "add_var", "dq": "add_dq", "objects": "detect_sources"}
        raise GdaskError(
            f"{frame.attrs['name']}: has no {name}; {made_by.get(name, 'open')} makes it, "
            "call it before"
        )
    return pixels


def with_arrays(frame: Frame, **arrays: da.Array | None) -> Frame:
    """Give the Frame with these variables set (None: left as it is)."""
    return with_pixels(
        frame, {name: values for name, values in arrays.items() if values is not None}
    )


def replaced(frame: Frame, **arrays: da.Array) -> Frame:
    """Give a Frame with these variables only, and the attributes and coordinates of `frame`."""
    return with_arrays(frame.drop_vars(list(frame.data_vars)), **arrays)


def per_array(frame: Frame, name: str) -> tuple[Any, ...]:
    """Give a descriptor's value for each array: a value that is one for all is repeated."""
    values = descriptor(frame, name)
    count = len(array_headers(frame))
    is_for_each = isinstance(values, (list, tuple)) and len(values) == count
    return tuple(values) if is_for_each else (values,) * count


def match_region(calibration: Frame, frame: Frame) -> Frame:
    """Cut a calibration to the arrays and the region of interest of a Frame.

    Arrays are matched by name. Raises GdaskError where the calibration does not contain the Frame's
    arrays.
    """
    if problem := section_problem(calibration):
        raise GdaskError(f"{calibration.attrs['name']}: {problem}")
    wanted, have = sections(frame), sections(calibration)
    places = []
    for section, number in zip(wanted, _matching_arrays(calibration, frame), strict=True):
        outer = have[number]
        x, y = section[0] - outer[0], section[2] - outer[2]
        if x < 0 or y < 0 or section[1] > outer[1] or section[3] > outer[3]:
            raise GdaskError(
                f"{calibration.attrs['name']} covers pixels {_pixels_text(outer)} of array "
                f"{number + 1}, {frame.attrs['name']} needs {_pixels_text(section)}; "
                "use a full-frame one"
            )
        places.append((number, y, x))
    size = shape_of(frame)
    if places == [(n, 0, 0) for n in range(len(have))] and size == shape_of(calibration):
        return calibration
    parts = {
        str(name): cut_out(arrays_of(calibration, [str(name)])[0], places, size)
        for name in calibration.data_vars
        if calibration[name].dims == DIMS
    }
    cut = calibration.isel(
        detector=[number for number, _, _ in places], y=slice(0, size[0]), x=slice(0, size[1])
    )
    return with_arrays(cut.drop_vars(list(cut.data_vars)).drop_vars(["y", "x"]), **parts)


def section_problem(frame: Frame) -> str:
    """Say what is wrong where a file's headers do not tell which pixels of the array it has.

    '' where they do. Planes that were cut need section keywords that were changed with them: those
    of the whole array would put the pixels at the wrong place.
    """
    whole = tuple(int(size) for size in frame.attrs["file_shape"][1:])
    try:
        instrument = instrument_of(frame)
        if whole == tuple(instrument.facts.get("array_shape", whole)):
            return ""
        found = instrument.module.true_sections(view(frame), whole)
    except GdaskError as error:
        return str(error).removeprefix(f"{frame.attrs['path']}: ")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return ""  # of no known instrument: compared by the size of its planes
    wrong = next((s for s in found if (s[3] - s[2], s[1] - s[0]) != whole), None)
    if wrong is None:
        return ""
    return (
        f"its planes have {whole[1]} x {whole[0]} pixels, but its section keyword (CCDSEC, DETSEC) "
        f"says {_pixels_text(wrong)}; correct the keyword, or use a file of the full array"
    )


def _pixels_text(section: Sequence[int]) -> str:
    """Write a 0-based half-open (x1, x2, y1, y2) as headers do: [1:2048,1:2048]."""
    x1, x2, y1, y2 = section
    return f"[{x1 + 1}:{x2},{y1 + 1}:{y2}]"


def _matching_arrays(calibration: Frame, frame: Frame) -> list[int]:
    """Give the index in the calibration of each array of a Frame.

    Arrays are matched by name, or by number where the calibration has no names.
    """
    names = [str(name) for name in calibration.indexes["detector"]]
    labels = [str(name) for name in frame.indexes["detector"]]
    if not set(labels) <= set(names) and names == [str(n) for n in array_numbers(calibration)]:
        labels = [str(number) for number in array_numbers(frame)]
    missing = [label for label in labels if label not in names]
    if missing and len(names) < len(labels):
        raise GdaskError(
            f"{calibration.attrs['name']} has {len(names)} array{'s' * (len(names) > 1)} "
            f"({', '.join(names)}) of the {len(labels)} that {frame.attrs['name']} has: "
            f"{', '.join(missing)} missing; give a mask or calibration with all of them, "
            "in extensions named as in the raw files"
        )
    if missing:
        raise GdaskError(
            f"{frame.attrs['name']} has the arrays {', '.join(labels)}, "
            f"{calibration.attrs['name']} has {', '.join(names)}; "
            "take the incomplete file out of the list, or copy it again"
        )
    return [names.index(label) for label in labels]


def strip_rows(row_bytes: float, fewest: int) -> int:
    """Give the rows of a strip if a task holds `row_bytes` for each row: at least `fewest`."""
    return max(int(STRIP_BYTES / max(row_bytes, 1)), fewest)


def night_of(frame: Frame) -> int:
    """Give the number of the night (days since the year 1), 0 where the header has no date."""
    start = descriptor(frame, "ut_datetime")
    return model.night_of(start).toordinal() if start is not None else 0


def by_night(frames: Frames) -> list[Frames]:
    """Sort frames by night: a group for each night, in order of time; in it their order here."""
    nights: dict[int, list[Frame]] = {}
    for frame in frames:
        nights.setdefault(night_of(frame), []).append(frame)
    return [tuple(nights[night]) for night in sorted(nights)]


def of_the_night(frames: Frames, night: Frames) -> Frames:
    """Give the frames of the night of others; all of them where none is of it."""
    date = night_of(night[0])
    return tuple(frame for frame in frames if night_of(frame) == date) or frames


def mjd_of_middle(frame: Frame) -> float:
    """Give the MJD of the middle of the exposure; NaN where the header has no date."""
    start = descriptor(frame, "ut_datetime")
    if start is None:
        return float("nan")
    seconds = float(descriptor(frame, "total_exposure_time") or 0.0)
    return (start - datetime(1858, 11, 17)).total_seconds() / 86400 + seconds / 2 / 86400


def outline_of(frame: Frame) -> tuple[np.ndarray, ...]:
    """Give the corners (4, 2) of each array in the instrument's plane (arcsec)."""
    x, y = (
        np.array([0.0, 1, 1, 0]) * frame.sizes["x"] - 0.5,
        np.array([0.0, 0, 1, 1]) * frame.sizes["y"] - 0.5,
    )
    return tuple(np.column_stack(to_plane(geometry, x, y)) for geometry in geometries(frame))


# Levels, gain and read noise of pixels that steps change -----------------------------------------

LEVELS = ("SATLEVEL", "NONLINEA")
_COMMENTS = {
    "GAIN": "Electrons per unit of the data, all inputs",
    "RDNOISE": "Read noise of a pixel of all inputs (e-)",
    "SATLEVEL": "Lowest saturation level of the inputs (e-)",
    "SATURATE": "Lowest saturation level of the inputs (e-)",
    "NONLINEA": "Lowest non-linear level of the inputs (e-)",
}


def rms(values: Sequence[float]) -> float:
    """Give the root of the mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def with_scaled_levels(frame: Frame, factor: float) -> Frame:
    """Give the frame with the levels, gain and read noise of pixels that were multiplied."""
    powers = {"SATLEVEL": 1, "NONLINEA": 1, "RDNOISE": 1, "GAIN": -1}
    return _changed(frame, {key: lambda v, _, p=p: v * factor**p for key, p in powers.items()})


def without_sky_in_levels(frame: Frame) -> Frame:
    """Give the frame with levels that are those of its pixels after sky subtraction.

    The sky is the median of its measured background (`measure_background`), array by array; where
    it was not measured, levels stay. SKYMED keeps it; arrays without usable pixels have none.
    """
    measured = small(frame, "background", lazy_is_none=True)
    headers = array_headers(frame)
    if not measured or len(measured) != len(headers) or any("SKYMED" in one for one in headers):
        return frame
    sky = [float(np.nanmedian(cells)) if is_measured(cells) else None for cells in measured]
    changed = _changed(frame, {key: lambda v, n: v - (sky[n] or 0.0) for key in LEVELS})
    cards = [None if v is None else (v, "Median of the sky (e-)") for v in sky]
    return with_headers(changed, each={"SKYMED": cards})


def is_measured(cells: np.ndarray) -> bool:
    """Tell whether a mesh of `measure_background` is of an array that has usable pixels.

    That of an array without any is zero in all cells.
    """
    return bool(np.any(np.isfinite(cells) & (np.asarray(cells) != 0)))


def levels_on_grid(frame: Frame, ratio: float) -> dict[str, Any]:
    """Give the keywords of a frame put onto a grid, where the arrays become one image.

    `ratio` is the area of a pixel of the grid over that of an array, which values were multiplied
    by; the read noise is that which sums of pixels have, as VAR. Keywords that an array lacks are
    not given; arrays without usable pixels have no say.
    """
    found: dict[str, Any] = {}
    every = array_headers(frame)
    headers = [header for header in every if "SKYMED" in header] or every
    for key in (*LEVELS, "RDNOISE"):
        values = [header.get(key) for header in headers]
        if all(isinstance(value, int | float) for value in values):
            is_noise = key == "RDNOISE"
            one = rms(values) * ratio**0.5 if is_noise else min(values) * ratio
            found[key] = (one, "of all arrays" if is_noise else "lowest of all arrays")
    return found


def _changed(frame: Frame, changes: Mapping[str, Any]) -> Frame:
    """Give the frame with keywords of its arrays changed, where they are numbers.

    changes: for each keyword a function of the value and the number of the array.
    """
    headers = array_headers(frame)
    each = {
        key: [change(header[key], number) for number, header in enumerate(headers)]
        for key, change in changes.items()
        if all(isinstance(header.get(key), int | float) for header in headers)
    }
    return with_headers(frame, each=each) if each else frame


def stacked_levels(frames: Frames, factor: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give gain, read noise and levels of a stack: of all arrays together, and of each.

    `factor`: n times the variance of the result over that of one of n inputs. Keywords that an
    input lacks are not given.
    """
    pixels = _levels_of_stack(frames, factor)
    each = {key: [(value, _COMMENTS[key]) for value in values] for key, values in pixels.items()}
    return _summary(pixels), each


def _levels_of_stack(frames: Frames, factor: float) -> dict[str, list[float]]:
    """Give gain, read noise and levels of a stack for each array; those that all inputs have.

    `factor`: n times the variance of the result over that of one of n inputs.
    """
    count = len(array_headers(frames[0]))
    found: dict[str, list[float]] = {}
    gains = _each_input(frames, "GAIN", count)
    if gains is not None:
        averaged = [
            1 if descriptor(frame, "is_coadds_summed") else int(descriptor(frame, "coadds") or 1)
            for frame in frames
        ]
        own = [
            1.0 if "NCOMBINE" in primary_header(frame) else float(coadds)
            for frame, coadds in zip(frames, averaged, strict=True)
        ]
        shares = (1.0 / (gains * np.array(own)[:, np.newaxis])).sum(axis=0)
        found["GAIN"] = [float(value) for value in len(frames) ** 2 / shares / factor]
    noise = _each_input(frames, "RDNOISE", count)
    if noise is not None:
        mean = np.sqrt((noise**2).sum(axis=0) * factor) / len(frames)
        found["RDNOISE"] = [float(value) for value in mean]
    for key in LEVELS:
        levels = _each_input(frames, key, count)
        if levels is not None:
            found[key] = [float(value) for value in levels.min(axis=0)]
    return found | ({"SATURATE": found["SATLEVEL"]} if "SATLEVEL" in found else {})


def _each_input(frames: Frames, key: str, count: int) -> np.ndarray | None:
    """Give a keyword of each array of each input (input, array); None where one lacks it."""
    rows = [[header.get(key) for header in array_headers(frame)] for frame in frames]
    is_whole = all(
        len(row) == count
        and all(isinstance(v, int | float) and (v > 0 or key in LEVELS) for v in row)
        for row in rows
    )
    return np.array(rows, float) if is_whole else None


def _summary(pixels: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Give the keywords of all arrays together: least levels, rms of read noise, mean of gain."""
    together: dict[str, Callable[..., Any]] = {"GAIN": np.mean, "RDNOISE": rms}
    return {
        key: (float(together.get(key, np.min)(values)), _COMMENTS[key])
        for key, values in pixels.items()
    }
