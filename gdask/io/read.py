"""Multi-extension FITS files as lazy Frames: headers now, pixels by window in the task that needs them."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.io import fits

from gdask.io.headers import each_unit, is_tiled, open_stream, read_headers, untiled
from gdask.model import DIMS, DTYPES, EXTNAMES, BadFile, GdaskError
from gdask.types import Frame, Frames, Headers

_FITS_TYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
_COMPRESSED = (".gz", ".bz2", ".fz", ".Z", ".zip")


#: What layers of a graph are named that give pixels as they are in a file.
AS_READ = ("read-", "rechunk-")


class Plane(NamedTuple):
    """Where the pixels of one array lie in a file: `offset` in bytes, -1 where it is compressed and is decoded by its number."""

    path: str
    identity: tuple[int, int]  # size in bytes, modification time in ns
    extension: int
    offset: int
    fits_type: str
    zero: float
    scale: float
    shape: tuple[int, int]


def open_frame(path: str | os.PathLike[str], *, rows: int | None = None, tag: str = "") -> Frame:
    """The lazy Frame of a raw or processed multi-extension file. Only headers are read.

    Parameters
    ----------
    path
        A FITS file, as it is or compressed (.gz, .bz2, .fz).
    rows
        Rows per chunk; None makes each array one chunk.
    tag
        Part of the graph's names. Two consumers that use different tags read the pixels each for itself, so that
        neither has to keep them for the other.

    Returns
    -------
    xarray.Dataset
        `data` (float32) and, where the file has them, `variance` (float32), `dq` (uint16) and `objects` (bool), all
        with dims (detector, y, x); attributes: `path`, `name`, `phu`, `headers` (one per array), `tables`.

    Raises
    ------
    GdaskError
        The file is missing, not FITS, truncated, has no image, or its arrays differ in shape.
    """
    path = os.path.abspath(path)
    if not os.path.isfile(path):
        raise GdaskError(f"{path}: no such file")
    headers = read_headers(path)  # first: it says what is wrong with a file that is not whole
    layout = read_layout(path)
    if "data" not in layout and "dq" not in layout:
        raise GdaskError(
            f"{path}: no image extension; expected a multi-extension file with SCI arrays"
        )
    return _assemble(path, layout, headers, rows, tag)


def open_many(paths: list[str], *, rows: int | None = None) -> Frames:
    """`open_frame` for each of several files: a tuple of lazy Frames."""
    return tuple(open_frame(path, rows=rows) for path in paths)


def reopen(frame: Frame, *, rows: int, tag: str) -> Frame:
    """A file-backed Frame chunked for another consumer: the same pixels, read again in bands of `rows` rows.

    A Frame whose pixels are still to be computed is chunked in place (within the frame, never across frames).
    """
    layout = _as_read(frame)
    frame = frame.chunk({"y": rows, "x": -1}) if len(layout) < len(frame.data_vars) else frame
    return frame.assign(
        {name: (DIMS, pixels) for name, pixels in lazy_variables(layout, rows, tag).items()}
    )


def affine(frame: Frame, name: str, scales: Sequence[float], offsets: Sequence[float]) -> Frame:
    """The Frame with a variable of each array multiplied and then shifted: still read from its file, by window.

    Raises GdaskError where the variable is not on disk (end the phase first).
    """
    planes = on_disk(frame, name)
    changed = tuple(
        plane._replace(scale=plane.scale * scale, zero=plane.zero * scale + offset)
        for plane, scale, offset in zip(planes, scales, offsets, strict=True)
    )
    pixels = lazy_variables({name: changed})[name]
    return frame.assign({name: (DIMS, pixels)}).assign_attrs(
        layout=frame.attrs["layout"] | {name: changed}
    )


def on_disk(frame: Frame, name: str) -> tuple[Plane, ...]:
    """The places of a variable's arrays in a file; GdaskError where the pixels are others, which are still to be computed."""
    if name not in _as_read(frame):
        raise GdaskError(
            f"{frame.attrs['name']}: {name} is not on disk yet; end the phase with run.save, or write it"
        )
    return frame.attrs["layout"][name]


def _as_read(frame: Frame) -> dict[str, tuple[Plane, ...]]:
    """The layout of those variables that still are what their file holds, whoever has assigned to the Frame."""
    graphs = {name: getattr(frame[name].data, "dask", None) for name in frame}
    untouched = {
        name
        for name, graph in graphs.items()
        if graph and all(layer.startswith(AS_READ) for layer in graph.layers)
    }
    return {
        name: planes for name, planes in (frame.attrs["layout"] or {}).items() if name in untouched
    }


def read_layout(path: str) -> dict[str, tuple[Plane, ...]]:
    """For each Frame variable in a file, the place of each array's pixels. Checks that the file is whole."""
    groups: dict[str, list[Plane]] = {}
    stat = os.stat(path)
    identity = (stat.st_size, stat.st_mtime_ns)
    with open_stream(path) as stream:
        units = [(unit.header, unit.begin) for unit in each_unit(stream, path)]
        packed = type(stream) is not io.BufferedReader
    if any(is_tiled(header) for header, _ in units):
        units = [(header, -1) for header in untiled(path)]
    for number, (header, begin) in enumerate(units):
        plane = _plane(path, identity, number, header, -1 if packed else begin)
        if plane is not None:
            groups.setdefault(_variable_of(header), []).append(plane)
    count = len(groups.get("data") or max(groups.values(), key=len, default=[]))
    return {name: tuple(planes) for name, planes in groups.items() if len(planes) == count}


def read_window(plane: Plane, y1: int, y2: int, x1: int, x2: int, dtype: np.dtype) -> np.ndarray:
    """The pixels [y1:y2, x1:x2] of one array, in native byte order as `dtype`.

    Raises GdaskError where the file is not the one whose headers were read.
    """
    if plane.offset < 0:
        _check_unchanged(plane, plane.path)
        return _decode(plane, y1, y2, x1, x2, dtype)
    width, item = plane.shape[1], np.dtype(plane.fits_type).itemsize
    try:
        # Looked at once it is open: a network file system asks its server then, and not for every look at a name.
        with open(plane.path, "rb", buffering=0) as file:
            _check_unchanged(plane, file.fileno())
            if (
                2 * (x2 - x1) < width
            ):  # a tile of an image: whole rows would be read for each tile of them anew
                parts = (
                    os.pread(
                        file.fileno(), (x2 - x1) * item, plane.offset + (y * width + x1) * item
                    )
                    for y in range(y1, y2)
                )
                raw = np.frombuffer(bytearray(b"".join(parts)), plane.fits_type)
                width, x1, x2 = x2 - x1, 0, x2 - x1
            else:
                raw = np.fromfile(
                    file,
                    plane.fits_type,
                    (y2 - y1) * width,
                    offset=plane.offset + y1 * width * item,
                )
    except FileNotFoundError as error:
        raise BadFile(
            plane.path, f"vanished during the run ({error.strerror}); put it back and run again"
        ) from None
    except OSError as error:
        raise BadFile(
            plane.path,
            f"cannot be read during the run ({error.strerror}); make it readable and run again",
        ) from None
    if raw.size != (y2 - y1) * width:
        raise BadFile(
            plane.path,
            f"extension {plane.extension} ends before row {y2}: it was cut short; copy it again",
        )
    return _to_type(raw.reshape(y2 - y1, width)[:, x1:x2], plane, dtype)


def _to_type(raw: np.ndarray, plane: Plane, dtype: np.dtype) -> np.ndarray:
    if plane.zero == 32768 and plane.scale == 1 and raw.dtype.itemsize == 2:
        return (raw.astype(np.int16).view(np.uint16) ^ np.uint16(0x8000)).astype(dtype, copy=False)
    if plane.zero == 0 and plane.scale == 1:
        if raw.dtype.newbyteorder("=") == dtype and raw.flags.c_contiguous:
            return raw.byteswap(inplace=True).view(dtype) if raw.dtype != dtype else raw
        return raw.astype(dtype)
    return (raw * plane.scale + plane.zero).astype(dtype)


def _check_unchanged(plane: Plane, file: str | int) -> None:
    try:
        stat = os.stat(file)
    except OSError as error:
        raise BadFile(
            plane.path, f"vanished during the run ({error.strerror}); put it back and run again"
        ) from None
    if (stat.st_size, stat.st_mtime_ns) != plane.identity:
        raise BadFile(plane.path, "changed during the run; run again with the file at rest")


def _decode(plane: Plane, y1: int, y2: int, x1: int, x2: int, dtype: np.dtype) -> np.ndarray:
    """From a file whose pixels are packed: this array is unpacked whole."""
    try:
        pixels = _unpacked(plane, dtype)
    except Exception as error:  # decompressors raise errors of many kinds
        raise BadFile(
            plane.path,
            f"extension {plane.extension} cannot be decompressed ({error}); copy it again",
        ) from error
    return np.ascontiguousarray(pixels.reshape(plane.shape)[y1:y2, x1:x2].astype(dtype))


def _unpacked(plane: Plane, dtype: np.dtype) -> np.ndarray:
    with open_stream(plane.path) as stream:
        for unit in each_unit(stream, plane.path):
            if is_tiled(unit.header):
                break
            if unit.number == plane.extension:
                return _to_type(
                    np.frombuffer(bytearray(stream.read(unit.size)), plane.fits_type), plane, dtype
                )
    with fits.open(plane.path, memmap=False) as hdus:
        return hdus[plane.extension].data


def _variable_of(header: fits.Header) -> str:
    names = {on_disk: name for name, on_disk in EXTNAMES.items()}
    name = str(header.get("EXTNAME") or "").strip().upper() or "SCI"
    return names.get(name, name.lower())


def _plane(
    path: str, identity: tuple[int, int], number: int, header: fits.Header, begin: int
) -> Plane | None:
    if number and str(header.get("XTENSION", "")).strip() != "IMAGE" or header["NAXIS"] < 2:
        return None
    if any(header[f"NAXIS{axis}"] != 1 for axis in range(3, header["NAXIS"] + 1)):
        raise GdaskError(
            f"{path}: extension {number} has more than one plane; expected a 2-D image"
        )
    shape = (header["NAXIS2"], header["NAXIS1"])
    if 0 in shape:
        return None
    return Plane(
        path,
        identity,
        number,
        begin,
        _FITS_TYPES[header["BITPIX"]],
        _number(header, "BZERO", 0),
        _number(header, "BSCALE", 1),
        shape,
    )


def _number(header: fits.Header, keyword: str, default: float) -> float:
    value = header.get(keyword)
    return value if isinstance(value, (int, float)) and math.isfinite(value) else default


def _assemble(
    path: str, layout: dict[str, tuple[Plane, ...]], headers: Headers, rows: int | None, tag: str
) -> Frame:
    import xarray as xr

    shapes = {plane.shape for planes in layout.values() for plane in planes}
    if len(shapes) > 1:
        raise GdaskError(
            f"{path}: arrays of different shapes {sorted(shapes)}; expected one shape for all arrays"
        )
    variables = lazy_variables(layout, rows, tag)
    science = tuple(header for header in headers.ext if _is_science(header))
    attrs = {
        "path": path,
        "name": _bare_name(path),
        "phu": headers.phu,
        "headers": science or headers.ext,
        "layout": layout,
        "tables": {},
        "pending": {},
    } | _stored_geometry(path, headers)
    return xr.Dataset({name: (DIMS, array) for name, array in variables.items()}, attrs=attrs)


def _stored_geometry(path: str, headers: Headers) -> dict[str, object]:
    """The geometry that gdask stored with a processed file, as an attribute."""
    if "PREPARE" not in headers.phu:
        return {}
    from astropy.table import Table

    from gdask.io.tables import geometries_of

    try:
        with fits.open(path, memmap=False, lazy_load_hdus=True) as hdus:
            return (
                {"geometry": geometries_of(Table(hdus["ASTROM"].data))} if "ASTROM" in hdus else {}
            )
    except Exception as error:  # astropy's errors are of many kinds
        raise GdaskError(
            f"{path}: table ASTROM cannot be read ({error}); copy the file again"
        ) from error


def _is_science(header: fits.Header) -> bool:
    return _variable_of(header) == "data"


def _bare_name(path: str) -> str:
    name = Path(path).name
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    return name


def lazy_variables(
    layout: dict[str, tuple[Plane, ...]], rows: int | None = None, tag: str = ""
) -> dict[str, object]:
    return {
        name: _lazy(name, planes, rows, tag) for name, planes in layout.items() if name in DTYPES
    }


def _lazy(name: str, planes: tuple[Plane, ...], rows: int | None, tag: str) -> object:
    from dask.base import tokenize

    from gdask.io.lazy_arrays import map_blocks

    ny, nx = planes[0].shape
    # A compressed file is decoded whole, so its chunks are whole arrays.
    height = ny if rows is None or planes[0].offset < 0 else min(rows, ny)
    bands = tuple(min(height, ny - y) for y in range(0, ny, height))
    dtype = DTYPES[name]
    return map_blocks(
        _read_block,
        name=f"read-{name}-{tokenize(planes, height, tag, str(dtype))}",
        dtype=dtype,
        chunks=((1,) * len(planes), bands, (nx,)),
        placed=True,
        planes=planes,
        height=height,
        pixel_type=dtype,
    )


def _read_block(
    place: tuple[int, int, int], planes: tuple[Plane, ...], height: int, pixel_type: np.dtype
) -> np.ndarray:
    detector, band, _ = place
    plane = planes[detector]
    y1 = band * height
    y2 = min(y1 + height, plane.shape[0])
    return read_window(plane, y1, y2, 0, plane.shape[1], pixel_type)[None]
