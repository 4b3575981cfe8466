"""Give steps the variables of a Frame as lazy arrays, and facts of its arrays and its time.

The functions build graphs and compute nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from gdask.instruments import descriptor, instrument_of, view
from gdask.io.frames import (
    array_headers,
    array_numbers,
    geometries,
    is_frame,
    sections,
    shape_of,
    with_pixels,
)
from gdask.io.lazy_arrays import cut_out
from gdask.kernels.arrays import usual_errors
from gdask.kernels.geometry.projection import to_plane
from gdask.model import DETECTOR, DIMS, DTYPES, GdaskError, X, Y, late
from gdask.types import Frame

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
    return pixels if pixels.numblocks[0] == pixels.shape[0] else pixels.rechunk({0: 1})


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
    """Give the number of the night: it changes at 18 h UT, early afternoon at the telescope."""
    start = descriptor(frame, "ut_datetime")
    return (start - timedelta(hours=18)).toordinal() if start is not None else 0


def mjd_of_middle(frame: Frame) -> float:
    """Give the MJD of the middle of the exposure; NaN where the header has no date."""
    start = descriptor(frame, "ut_datetime")
    if start is None:
        return float("nan")
    seconds = float(descriptor(frame, "exposure_time") or 0.0)
    return (start - datetime(1858, 11, 17)).total_seconds() / 86400 + seconds / 2 / 86400


def outline_of(frame: Frame) -> tuple[np.ndarray, ...]:
    """Give the corners (4, 2) of each array in the instrument's plane (arcsec)."""
    x, y = (
        np.array([0.0, 1, 1, 0]) * frame.sizes["x"] - 0.5,
        np.array([0.0, 0, 1, 1]) * frame.sizes["y"] - 0.5,
    )
    return tuple(np.column_stack(to_plane(geometry, x, y)) for geometry in geometries(frame))
