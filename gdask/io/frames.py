"""What a Frame holds beside its pixels: headers, places on the detector, geometry, small results.

A Frame is an xarray.Dataset with dimensions (detector, y, x). What belongs to one array goes along
the dimension `detector`: coordinates `header`, `geometry`, `x_offset`, `y_offset`, and small
results such as catalogues as variables of type object. Attributes are only texts and numbers, so
that `to_netcdf` and `to_zarr` can write them. Functions that change a Frame give a new one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np

from gdask.headers import Header, HeaderText, frame_headers, parse_header
from gdask.io.dask_internals import dataset_with, index_of, is_only_chunked
from gdask.kernels.geometry.grid import Grid
from gdask.kernels.geometry.projection import Geometry
from gdask.model import DIMS, DTYPES, GdaskError, coordinate
from gdask.types import Frame

#: 0-based half-open (x1, x2, y1, y2) of an array's pixels on the full array.
Section = tuple[int, int, int, int]

# Headers ---------------------------------------------------------------------------------------


def primary_header(frame: Frame) -> Header:
    """Give the primary header."""
    return parse_header(frame.attrs["phu"])


def array_headers(frame: Frame) -> tuple[Header, ...]:
    """Give the header of each array."""
    return frame_headers(frame).ext


def with_headers(
    frame: Frame,
    primary: Mapping[str, object] | None = None,
    each: Mapping[str, Sequence[object]] | None = None,
) -> Frame:
    """Give the Frame with keywords set in its primary header and in each array's header.

    A value is given alone or as (value, comment); None removes the keyword. `each` has one value
    for each array.
    """
    if primary:
        frame = with_primary_header(frame, primary_header(frame).changed(primary))
    if each:
        rows = zip(*each.values(), strict=True)
        changed = [
            header.changed(dict(zip(each, row, strict=True)))
            for header, row in zip(array_headers(frame), rows, strict=True)
        ]
        frame = with_array_headers(frame, changed)
    return frame


def with_primary_header(frame: Frame, header: Header) -> Frame:
    """Give the Frame with another primary header."""
    return with_attrs(frame, phu=header.text)


def with_array_headers(frame: Frame, headers: Sequence[Header]) -> Frame:
    """Give the Frame with other headers of its arrays."""
    texts = object_array([header.text for header in headers])
    return dataset_with(frame, coordinates={"header": (("detector",), texts)})


def with_attrs(frame: Frame, **attrs: Any) -> Frame:
    """Give the Frame with attributes set."""
    return dataset_with(frame, attrs=attrs)


def with_pixels(frame: Frame, arrays: Mapping[str, Any]) -> Frame:
    """Give the Frame with variables of pixels, arrays (detector, y, x), set."""
    return dataset_with(frame, {name: (DIMS, array) for name, array in arrays.items()})


def with_same_headers(frame: Frame, other: Frame) -> Frame:
    """Give the Frame with the headers of another one with as many arrays."""
    texts = coordinate(other, "header")
    phu = {"phu": other.attrs["phu"]}
    return dataset_with(frame, coordinates={"header": (("detector",), texts)}, attrs=phu)


def made_once(frame: Frame, name: str, make: Callable[[Frame], Any]) -> Any:
    """Give what `make` gives for a Frame, and the same again to the next who asks.

    It may depend on the headers and the name of the Frame alone. What screening has found of a
    Frame is so known to the recipe, and not kept after that.
    """
    phu, key = frame.attrs["phu"], (coordinate(frame, "header"), frame.attrs["name"])
    memo = phu.memo if isinstance(phu, HeaderText) else {}
    known = memo.pop(name, None)
    if known and known[0] is key[0] and known[1] == key[1]:
        return known[2]
    memo[name] = made = (*key, make(frame))
    return made[2]


def object_array(items: Sequence[object]) -> np.ndarray:
    """Give a 1-D array of objects, whatever they are."""
    boxed = np.empty(len(items), object)
    for number, item in enumerate(items):
        boxed[number] = item
    return boxed


# Where the pixels are --------------------------------------------------------------------------


def sections(frame: Frame) -> tuple[Section, ...]:
    """Give the section of the full array that the pixels of each array cover."""
    y, x = (_start_and_size(frame, name) for name in ("y", "x"))
    down, right = (coordinate(frame, name).tolist() for name in ("y_offset", "x_offset"))
    return tuple(
        (x[0] + dx, x[0] + dx + x[1], y[0] + dy, y[0] + dy + y[1])
        for dx, dy in zip(right, down, strict=True)
    )


def _start_and_size(frame: Frame, name: str) -> tuple[int, int]:
    """Give the first pixel and the number of pixels along y or x.

    Raises GdaskError where the pixels are no range without gaps.
    """
    pixels = index_of(frame, name)
    if getattr(pixels, "step", 0) == 1:  # a range, as files have it
        return int(pixels.start), len(pixels)
    first, size = int(pixels[0]), len(pixels)
    if int(pixels[-1]) - first != size - 1:
        raise GdaskError(
            f"{frame.attrs['name']}: {name} is not a range of neighbouring pixels"
            f" ({size} of {int(pixels[-1]) - first + 1}); cut frames by slices with step 1"
        )
    return first, size


def array_numbers(frame: Frame) -> list[int]:
    """Give the number (from 1) that each array of the Frame has in its file."""
    return [int(number) for number in coordinate(frame, "array_number")]


def one_image_coords(shape: tuple[int, int], header: Header) -> dict[str, Any]:
    """Give the coordinates of a Frame that is one image of its own, not an array of a detector."""
    import pandas as pd

    return {
        "detector": np.array(["image"], object),
        "y": pd.RangeIndex(shape[0]),
        "x": pd.RangeIndex(shape[1]),
        "array_number": ("detector", np.array([1])),
        "y_offset": ("detector", np.array([0])),
        "x_offset": ("detector", np.array([0])),
        "header": ("detector", object_array([header.text])),
    }


def shape_of(frame: Frame) -> tuple[int, int]:
    """Give (ny, nx) of the arrays of a Frame."""
    return frame.sizes["y"], frame.sizes["x"]


def refuse_part(frame: Frame, step: str, why: str, *, rows: bool = True) -> None:
    """Raise GdaskError where a Frame lacks arrays of its file, or (`rows`) a part of each array.

    `step` and `why` go into the message: the step that refuses the part, and its reason.
    """
    whole = [int(size) for size in frame.attrs["file_shape"]]
    present = [frame.sizes[name] for name in DIMS]
    if present[0] < whole[0] or (rows and present[1:] != whole[1:]):
        raise GdaskError(
            f"{step}: {frame.attrs['name']} is a part of its file"
            f" ({_size_text(present)} of {_size_text(whole)} pixels): {why};"
            " give it the whole Frame, and cut what it gives"
        )


def _size_text(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)


# Geometry --------------------------------------------------------------------------------------


def geometries(frame: Frame) -> tuple[Geometry, ...]:
    """Give the geometry of each array, for the Frame's pixels; () where none is known yet."""
    if "geometry" not in frame.coords:
        return ()
    stored = [_parsed_geometry(text) for text in coordinate(frame, "geometry").tolist()]
    return tuple(
        geometry._replace(x0=x1 + 1.0, y0=y1 + 1.0)
        for geometry, (x1, _, y1, _) in zip(stored, sections(frame), strict=True)
    )


def with_geometries(frame: Frame, found: Sequence[Geometry]) -> Frame:
    """Give the Frame with these geometries of its arrays; none where `found` is empty."""
    if not found:
        return frame.drop_vars("geometry", errors="ignore")
    texts = object_array([_geometry_text(each) for each in found])
    return dataset_with(frame, coordinates={"geometry": (("detector",), texts)})


class _GeometryText(str):
    """A geometry as JSON that remembers the Geometry which it says, as `HeaderText` does."""

    __slots__ = ("geometry",)

    geometry: Geometry

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


def _parsed_geometry(text: str) -> Geometry:
    return text.geometry if isinstance(text, _GeometryText) else _read_geometry(text)


@lru_cache(maxsize=4096)
def _read_geometry(text: str) -> Geometry:
    stored = json.loads(text).items()
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored}
    return Geometry(**fields)


def _geometry_text(geometry: Geometry) -> str:
    plain = json.dumps(geometry._asdict())
    text = _GeometryText(plain)
    text.geometry = _read_geometry(plain)
    return text


def grid_of(frame: Frame) -> Grid | None:
    """Give the tangent plane that a resampled Frame or a stack lies on; None for others."""
    return _parsed_grid(frame.attrs["grid"]) if frame.attrs.get("grid") else None


def grid_text(grid: Grid) -> str:
    """Give a grid as text for the attribute `grid`."""
    return json.dumps(grid._asdict())


@lru_cache(maxsize=256)
def _parsed_grid(text: str) -> Grid:
    values = json.loads(text)
    return Grid(**(values | {"shape": tuple(values["shape"])}))


# Small results ---------------------------------------------------------------------------------


def pixel_variables(frame: Frame) -> list[str]:
    """Give the names of the variables that are pixels."""
    return [
        str(name)
        for name in frame.data_vars
        if name in DTYPES and frame.variables[name].dims == DIMS
    ]


def with_small(frame: Frame, **results: Any) -> Frame:
    """Give the Frame with small results.

    A result is a lazy array of shape (detector,), or one object of the whole Frame.
    """
    return dataset_with(frame, {name: _small_variable(value) for name, value in results.items()})


def _small_variable(value: Any) -> tuple[tuple[str, ...], Any]:
    if getattr(value, "ndim", None) == 1 and hasattr(value, "dask"):
        return ("detector",), value
    boxed = np.empty((), object)
    boxed[()] = value
    return (), boxed


def small_results(frame: Frame) -> list[str]:
    """Give the names of a Frame's small results, computed or not."""
    return [str(name) for name in frame.data_vars if frame.variables[name].dims != DIMS]


def lazy_small_results(frame: Frame) -> dict[str, Any]:
    """Give the small results that are still to be computed, by name."""
    held = {name: frame.variables[name].data for name in small_results(frame)}
    return {name: result for name, result in held.items() if _is_lazy(result)}


def _is_lazy(held: Any) -> bool:
    """Tell whether a result is still to be computed.

    One that is computed may be a dask array, too: `Dataset.chunk` makes blocks of it.
    """
    return hasattr(held, "dask") and not is_only_chunked(held)


def small(frame: Frame, name: str, *, lazy_is_none: bool = False) -> Any:
    """Give a small result: a tuple with an item for each array, or the object of the whole Frame.

    It is None where the Frame has none. Raises GdaskError where it is not computed yet (with
    `lazy_is_none`: gives None).
    """
    if name not in frame.data_vars:
        return None
    held = frame.variables[name].data
    if _is_lazy(held):
        if lazy_is_none:
            return None
        raise GdaskError(
            f"{frame.attrs['name']}: {name} is not computed yet;"
            " end the phase with run.save or run.fetch"
        )
    values = held.compute(scheduler="synchronous") if hasattr(held, "dask") else np.asarray(held)
    return (
        values.item()
        if values.ndim == 0
        else tuple(values.tolist() if values.dtype == object else values)
    )


def with_fetched(frame: Frame, results: Mapping[str, Sequence[object]]) -> Frame:
    """Give the Frame with small results that have been computed: one item for each array."""
    return dataset_with(
        frame, {name: (("detector",), object_array(items)) for name, items in results.items()}
    )


# Remarks and records ---------------------------------------------------------------------------


def sky_names(frame: Frame) -> tuple[str, ...] | None:
    """Give the names of a Frame's sky frames; None where associate_sky has not been called."""
    return tuple(json.loads(frame.attrs["skies"])) if "skies" in frame.attrs else None


def note(frame: Frame, text: str) -> Frame:
    """Give the Frame with a remark for the log line of its step."""
    return with_attrs(frame, note=text)


def warn(frame: Frame, text: str) -> Frame:
    """Give the Frame with a warning for the log."""
    return with_attrs(frame, warning=text)


def set_aside(frame: Frame, reason: str) -> Frame:
    """Give the Frame marked as left out, with the reason."""
    return with_attrs(frame, set_aside=reason)


def records(frame: Frame, name: str) -> tuple[dict[str, str], ...]:
    """Give the rows of an attribute that holds records: `history` or `provenance`."""
    return tuple(json.loads(line) for line in frame.attrs.get(name, "").splitlines())


def with_records(frame: Frame, name: str, rows: Sequence[Mapping[str, object]]) -> Frame:
    """Give the Frame with rows added to an attribute that holds records."""
    lines = [line for line in (frame.attrs.get(name, ""), *map(_json_line, rows)) if line]
    return with_attrs(frame, **{name: "\n".join(lines)})


def _json_line(row: Mapping[str, object]) -> str:
    return json.dumps(row, default=str)


def with_provenance(frame: Frame, source: Frame, step: str) -> Frame:
    """Give the Frame with a record that a step has used the file of another one for it.

    The checksum of that file is computed with the product.
    """
    row = {
        "filename": source.attrs["name"],
        "path": source.attrs["path"],
        "provenance_added_by": step,
    }
    return with_records(frame, "provenance", [row])


# Tuples of Frames ------------------------------------------------------------------------------


def is_frame(value: object) -> bool:
    """Tell whether something is a Frame."""
    return hasattr(value, "data_vars")


def frames_in(value: object) -> list[Frame]:
    """Give all Frames in a step's argument or result, however its tuples are nested."""
    if is_frame(value):
        return [cast(Frame, value)]
    return (
        [frame for item in value for frame in frames_in(item)]
        if isinstance(value, (tuple, list))
        else []
    )


def map_frames(function: Callable[[Frame], Frame], value: object) -> object:
    """Give the same nesting with every Frame replaced by what `function` gives."""
    if is_frame(value):
        return function(cast(Frame, value))
    return (
        tuple(map_frames(function, item) for item in value) if isinstance(value, tuple) else value
    )


def without_set_aside(value: object) -> object:
    """Give the same nesting without the Frames that were set aside."""
    if isinstance(value, tuple):
        return tuple(
            without_set_aside(item)
            for item in value
            if not (is_frame(item) and item.attrs.get("set_aside"))
        )
    return value
