"""Opening of multi-extension FITS files as lazy Frames.

Headers are read at once, pixels by window in the task that needs them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gdask.headers import FileUnits, Header, Headers, image_headers, open_hdus, read_units
from gdask.instruments import instrument_of, view
from gdask.io.stored import FITS_TYPES, Plane, StoredArray
from gdask.model import DIMS, DTYPES, EXTNAMES, GdaskError, late, why_no_file
from gdask.types import Frame, Frames

if TYPE_CHECKING:
    from astropy.io import fits
else:
    fits = late("astropy.io.fits")

_COMPRESSED_ENDINGS = (".gz", ".bz2", ".fz", ".Z", ".zip")


def open_frame(path: str | os.PathLike[str], *, keep: bool = False) -> Frame:
    """Open the lazy Frame of a raw or processed multi-extension file. Only headers are read.

    Parameters
    ----------
    path
        A FITS file, as it is or compressed (.gz, .bz2, .fz).
    keep
        Whether each process keeps windows that it has read: for a calibration of many frames.

    Returns
    -------
    xarray.Dataset
        Dimensions (detector, y, x). Variables: `data` (float32) and, where the file has them,
        `variance` (float32), `dq` (uint16) and `objects` (bool). Coordinates: `detector` (names of
        the arrays), `y` and `x` (pixels of the full array, 0-based; for arrays of a region of
        interest that lie elsewhere on their detector `y_offset` and `x_offset` are added), `header`
        of each array. Attributes: `path`, `name`, `phu` (the primary header), and other texts and
        numbers, all of which netCDF can hold.

    Raises
    ------
    GdaskError
        The file is missing, not FITS, truncated, has no image, or its arrays differ in shape.
    """
    return open_with(path, _kept_variable if keep else _lazy_variable)


def open_with(
    path: str | os.PathLike[str], variable_of: Callable[[str, StoredArray], Any]
) -> Frame:
    """Open a file as `open_frame` does, with variables that `variable_of` makes.

    variable_of(name, stored array) -> what xarray takes for a variable.
    """
    name = os.path.abspath(path)
    if problem := why_no_file(name):
        raise GdaskError(f"{name}: {problem}; an image file was expected")
    units = read_units(name)  # it says what is wrong with a file that is not whole
    stored = stored_arrays(name, units)
    if "data" not in stored and "dq" not in stored:
        raise GdaskError(
            f"{name}: no image extension; expected a multi-extension file with SCI arrays"
        )
    shapes = {plane.shape for array in stored.values() for plane in array.planes}
    if len(shapes) > 1:
        raise GdaskError(
            f"{name}: arrays of different shapes {sorted(shapes)};"
            " expected one shape for all arrays"
        )
    variables = {key: variable_of(key, array) for key, array in stored.items() if key in DTYPES}
    return _assemble(name, stored, variables, image_headers(units, name), units.has_tables)


def open_many(paths: Sequence[str | os.PathLike[str]]) -> Frames:
    """Open several files: a tuple of lazy Frames."""
    return tuple(open_frame(path) for path in paths)


def stored_arrays(path: str, units: FileUnits | None = None) -> dict[str, StoredArray]:
    """Give each variable of a file as a stored array, by name.

    `units` are those of the file, where they have been read before. Raises GdaskError where the
    file is not whole.
    """
    groups: dict[str, list[Plane]] = {}
    stat = os.stat(path)
    units = units or read_units(path)
    for number, (header, begin) in enumerate(zip(units.headers, units.begins, strict=True)):
        plane = _plane(path, (stat.st_size, stat.st_mtime_ns), number, header, begin)
        if plane is not None:
            groups.setdefault(_variable_of(header), []).append(plane)
    if set(groups) == {"data"} and _is_mask(units):
        groups = {"dq": groups["data"]}
    count = len(groups.get("data") or max(groups.values(), key=len, default=[]))
    return {
        name: StoredArray(tuple(planes), DTYPES.get(name, np.dtype("f4")))
        for name, planes in groups.items()
        if len(planes) == count
    }


def _is_mask(units: FileUnits) -> bool:
    """Tell whether a file is a bad-pixel mask, whose flags are in SCI."""
    phu, *others = units.headers
    named = any(keyword in phu for keyword in ("BPMASK", "PROCBPM"))
    return named and all(
        isinstance(bits := header.get("BITPIX"), int) and bits > 0
        for header in others
        if str(header.get("XTENSION", "")).strip() == "IMAGE"
    )


def lazy_variables(stored: Mapping[str, StoredArray]) -> dict[str, Any]:
    """Give the lazy arrays of those stored arrays that are variables of Frames.

    They have one block for each detector.
    """
    return {
        name: _lazy_variable(name, array)[1] for name, array in stored.items() if name in DTYPES
    }


def _lazy_variable(name: str, stored: StoredArray) -> tuple[tuple[str, ...], Any]:
    from gdask.io.lazy_arrays import from_source

    return DIMS, from_source(stored, f"read-{name}")


def _kept_variable(name: str, stored: StoredArray) -> tuple[tuple[str, ...], Any]:
    return _lazy_variable(name, replace(stored, is_kept=True))


def _variable_of(header: Header) -> str:
    """Give the name of the variable to which the array of a unit belongs."""
    names = {on_disk: name for name, on_disk in EXTNAMES.items()}
    name = str(header.get("EXTNAME") or "").strip().upper() or "SCI"
    return names.get(name, name.lower())


def _plane(
    path: str, identity: tuple[int, int], number: int, header: Header, begin: int
) -> Plane | None:
    """Give the place of the pixels of a unit; None where it is no image or has no pixels."""
    if number and str(header.get("XTENSION", "")).strip() != "IMAGE" or header["NAXIS"] < 2:
        return None
    if any(header[f"NAXIS{axis}"] != 1 for axis in range(3, header["NAXIS"] + 1)):
        raise GdaskError(
            f"{path}: extension {number} has more than one plane; expected a 2-D image"
        )
    shape = (header["NAXIS2"], header["NAXIS1"])
    if 0 in shape:
        return None
    zero, scale = _scaling(header, path)
    return Plane(path, identity, number, begin, FITS_TYPES[header["BITPIX"]], zero, scale, shape)


def _scaling(header: Header, path: str) -> tuple[float, float]:
    """Give BZERO and BSCALE; GdaskError where they would make nonsense of the pixels."""
    found = []
    for keyword, default, low, high in (("BZERO", 0, 0.0, 1e12), ("BSCALE", 1, 1e-12, 1e12)):
        value = header.get(keyword)
        value = default if value is None else value
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and low <= abs(value) <= high):
            least = f"{low:g} to " if low else "at most "
            raise GdaskError(
                f"{path}: {keyword} = {str(value)[:40]}: a number of size {least}{high:g} was "
                "expected; the file is damaged"
            )
        found.append(value)
    return found[0], found[1]


def _assemble(
    path: str,
    stored: Mapping[str, StoredArray],
    variables: Mapping[str, Any],
    headers: Headers,
    has_tables: bool,
) -> Frame:
    from gdask.io.dask_internals import dataset_with
    from gdask.io.frames import object_array

    count, ny, nx = next(iter(stored.values())).shape
    science = tuple(header for header in headers.ext if _variable_of(header) == "data")
    headers = headers._replace(ext=(science or headers.ext)[:count])
    names, sections = _labels(headers, count), _sections(headers, count, (ny, nx))
    left, bottom = sections[0][0], sections[0][2]
    texts = object_array([header.text for header in headers.ext])
    attrs: dict[str, Any] = {
        "path": path,
        "name": _bare_name(path),
        "phu": headers.phu.text,
        "file_shape": [count, ny, nx],
        "file_start": [bottom, left],
        "file_identity": list(next(iter(stored.values())).planes[0].identity),
    }
    if has_tables:
        attrs["tables"] = path
    frame = _empty_frame(tuple(names), tuple(sections), (ny, nx))
    if not all(isinstance(variable, tuple) for variable in variables.values()):
        frame, variables = frame.assign(variables), {}
    frame = dataset_with(frame, variables, {"header": (("detector",), texts)}, attrs)
    return _with_geometry(frame, path, headers)


@lru_cache(maxsize=64)  # the frames of a night have the same arrays; xarray takes a millisecond
def _empty_frame(
    names: tuple[str, ...],
    sections: tuple[tuple[int, int, int, int], ...],
    shape: tuple[int, int],
) -> Frame:
    """Give a Frame without pixels and headers, whose arrays have these names and sections."""
    import pandas as pd
    import xarray as xr

    left, bottom = sections[0][0], sections[0][2]
    coords = {
        "detector": np.array(names, object),
        "y": pd.RangeIndex(bottom, bottom + shape[0]),
        "x": pd.RangeIndex(left, left + shape[1]),
        "array_number": ("detector", np.arange(1, len(names) + 1)),
        "y_offset": ("detector", np.array([section[2] - bottom for section in sections])),
        "x_offset": ("detector", np.array([section[0] - left for section in sections])),
    }
    return xr.Dataset(coords=coords)


def _labels(headers: Headers, count: int) -> list[str]:
    """Give the names of the arrays as the instrument calls them.

    They are numbers from 1 where arrays have no names, or two have the same.
    """
    try:
        names = [str(name or "").strip() for name in view(headers)("array_name")]
    except (GdaskError, TypeError):  # a file of no known instrument, or without the keywords
        names = []
    return (
        names if len(set(names)) == count and all(names) else [str(n) for n in range(1, count + 1)]
    )


def _sections(
    headers: Headers, count: int, shape: tuple[int, int]
) -> list[tuple[int, int, int, int]]:
    """Give the section of the full array that the pixels of each array cover.

    It is the whole image where the headers do not say it.
    """
    whole = (0, shape[1], 0, shape[0])
    try:
        found = list(instrument_of(headers).module.true_sections(view(headers), shape))
    except (GdaskError, AttributeError, IndexError, KeyError, TypeError):  # as for the labels
        return [whole] * count
    fitting = [(x1, x2, y1, y2) for x1, x2, y1, y2 in found if (y2 - y1, x2 - x1) == shape]
    return fitting if len(fitting) == count else [whole] * count


def _with_geometry(frame: Frame, path: str, headers: Headers) -> Frame:
    """Give the Frame with the geometry of its arrays.

    It is what gdask stored with a processed file, else what the headers say. The geometry is found
    here, where all arrays of the file are at hand: some instruments take the pointing from one.
    """
    from gdask.io.frames import with_geometries
    from gdask.io.tables import geometries_of

    if any("INTERPOL" in header for header in headers.ext):
        return frame  # a resampled frame has the WCS of its header and no other geometry
    table = _stored_geometry(path) if "PREPARE" in headers.phu else None
    if table is not None and len(table) == frame.sizes["detector"]:
        return with_geometries(frame, geometries_of(table))
    shape = (frame.sizes["y"], frame.sizes["x"])
    try:
        return with_geometries(
            frame, instrument_of(headers).module.geometries(view(headers), shape)
        )
    except (GdaskError, AttributeError, IndexError, KeyError, TypeError, ValueError):
        return frame  # of no known instrument, or without a pointing


def _stored_geometry(path: str) -> Any:
    """Give the table ASTROM of a file, None where it has none."""
    from astropy.table import Table

    try:
        with open_hdus(path, memmap=False) as hdus:
            return Table(hdus["ASTROM"].data) if "ASTROM" in hdus else None
    except Exception as error:  # astropy's errors are of many kinds
        raise GdaskError(
            f"{path}: table ASTROM cannot be read ({error}); copy the file again"
        ) from error


def _bare_name(path: str) -> str:
    """Give the name of a file without its folder and without the ending of compressed files."""
    name = Path(path).name
    for ending in _COMPRESSED_ENDINGS:
        name = name.removesuffix(ending)
    return name
