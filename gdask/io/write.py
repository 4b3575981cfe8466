"""Frames as multi-extension FITS files that appear whole or not at all.

The client writes the headers into a temporary file of the final size beside the target; tasks
write pixels into it, each its own window; `finish` appends the tables, adds CHECKSUM and DATASUM,
flushes to disk and renames.
"""

from __future__ import annotations

import errno
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BufferedWriter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gdask.headers import Header
from gdask.instruments.rules import format_section, parse_section
from gdask.io.checksum import add_checksums, header_bytes, padded, set_cards
from gdask.io.frames import (
    array_headers,
    geometries,
    lazy_small_results,
    primary_header,
    shape_of,
    with_fetched,
)
from gdask.io.tables import each_table, source_tables, stored_tables, table_bytes
from gdask.model import DIMS, EXTNAMES, GdaskError, late, owner, settings
from gdask.types import Frame

if TYPE_CHECKING:
    import dask.array as da
    from astropy import table as astable
    from astropy.io import fits
else:
    fits = late("astropy.io.fits")
    astable = late("astropy.table")

log = logging.getLogger("gdask")

#: What a task has written: rows of `width` bytes, `stride` bytes apart, from `offset`, and their
#: CRC-32, by which a checkpoint is verified.
WRITTEN_WINDOW = np.dtype(
    [("offset", "i8"), ("rows", "i8"), ("width", "i8"), ("stride", "i8"), ("sum", "u4")]
)
_BITPIX = {"data": -32, "variance": -32, "dq": 16, "objects": 8}
_STRUCTURE_KEYWORDS = (
    "SIMPLE",
    "XTENSION",
    "BITPIX",
    "NAXIS",
    "NAXIS1",
    "NAXIS2",
    "NAXIS3",
    "PCOUNT",
    "GCOUNT",
    "EXTEND",
    "GROUPS",
    "BSCALE",
    "BZERO",
    "EXTNAME",
    "EXTVER",
    "CHECKSUM",
    "DATASUM",
    "END",
)
_PRIMARY_CARDS = [("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0), ("EXTEND", True)]


class OutputPlane(NamedTuple):
    """Where in a file the pixels of one array go: offset in bytes, and shape (ny, nx)."""

    offset: int
    shape: tuple[int, int]


class Output(NamedTuple):
    """A product under way.

    Computing the lazy `arrays` writes the pixels into the file `temporary` and gives records of
    type WRITTEN_WINDOW. `headers` has such records of what is written already.
    """

    temporary: str
    final: str
    arrays: tuple[da.Array, ...]
    headers: np.ndarray


def start(
    frame: Frame,
    path: str | os.PathLike[str],
    variables: Sequence[str] | None = None,
    *,
    bare: bool = False,
    room: int = 0,
) -> Output:
    """Lay out the file of a Frame under a temporary name; give lazy arrays that write its pixels.

    `bare` headers say where the pixels lie and no more: for checkpoints, whose Frames keep their
    headers (headers with their WCS took a third of the client's time for a frame). `room` is the
    number of cards that `finish` may add to the primary header. Raises GdaskError where the folder
    cannot be written or has no room for the whole file.
    """
    final = os.path.abspath(path)
    names = [
        name for name in EXTNAMES if name in frame and (variables is None or name in variables)
    ]
    units, planes = _layout(frame, names, bare, room)
    temporary = temporary_name(final)
    headers = _create(temporary, final, units)
    arrays = tuple(
        _writer(frame.variables[name].data, temporary, planes[name], _BITPIX[name])
        for name in names
    )
    return Output(temporary, final, arrays, headers)


def finish(
    output: Output,
    tables: Mapping[str, astable.Table | Sequence[astable.Table]] | None = None,
    *,
    checksum: bool = True,
    cards: Mapping[str, object] | None = None,
) -> str:
    """Append `tables`, add checksums, flush to disk and give the product its final name.

    `cards` are set in the primary header, which has room for them (`start`); None removes one.
    Without `checksum` the file is a checkpoint, which is not flushed either (its windows' sums are
    checked before it is used). Returns the final name. Raises GdaskError where the file cannot be
    written.
    """
    try:
        with open(output.temporary, "r+b") as file:
            file.seek(0, os.SEEK_END)
            file.writelines(table_bytes(name, *table) for name, table in each_table(tables or {}))
            set_cards(file, cards or {})
            if checksum:
                add_checksums(file)
                file.flush()
                os.fsync(file.fileno())
        os.replace(output.temporary, output.final)
    except OSError as error:
        discard(output.final)
        raise GdaskError(
            f"{output.final}: could not be written: {error.strerror}; {_remedy(error)}"
        ) from error
    return output.final


def discard(final: str) -> None:
    """Remove what there is, under its temporary name, of a product that will not be finished."""
    Path(temporary_name(os.path.abspath(final))).unlink(missing_ok=True)


def temporary_name(final: str) -> str:
    """Give the hidden name beside `final` that a product has until it is whole."""
    folder, name = os.path.split(final)
    return os.path.join(folder, f".{name}.{owner()}.part")


def _remedy(error: OSError) -> str:
    return (
        "free space and run again"
        if no_room(error)
        else "make the folder writable or change to another one"
    )


def no_room(error: OSError) -> bool:
    """Tell whether there was no room: a full disk, a quota, or the limit of a file's size."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write(frame: Frame, path: str | os.PathLike[str]) -> str:
    """Compute a Frame and write it as SCI/VAR/DQ multi-extension FITS, whole or not at all.

    Tables go with it: those of what the Frame holds (catalogues, geometry), and those of the file
    from which it was opened. A Frame that is a part of its file leaves the latter out, with a
    warning: they describe the whole. Returns the path.
    """
    import dask

    file_tables = {} if _leaves_tables_out(frame) else stored_tables(frame)
    try:
        output = start(frame, path)
        lazy = lazy_small_results(frame)
        values = dask.compute(*lazy.values(), *output.arrays)
        frame = with_fetched(frame, dict(zip(lazy, values, strict=False)))
        return finish(output, file_tables | source_tables(frame))
    except BaseException:
        discard(os.fspath(path))
        raise


def _leaves_tables_out(frame: Frame) -> bool:
    """Tell whether the tables of a Frame's file are left out, and warn where they are."""
    if not frame.attrs.get("tables") or list(frame.attrs["file_shape"]) == [
        frame.sizes[name] for name in DIMS
    ]:
        return False
    log.warning(
        "%s: a part of the file; its tables describe the whole and are left out",
        frame.attrs["name"],
    )
    return True


def _layout(
    frame: Frame, names: Sequence[str], bare: bool, room: int
) -> tuple[list[tuple[bytes, int]], dict[str, list[OutputPlane]]]:
    """Lay out a file: (header, bytes of data) of each unit, and the planes of each variable."""
    units = [(_primary_header(None if bare else primary_header(frame), room), 0)]
    planes: dict[str, list[OutputPlane]] = {name: [] for name in names}
    position = len(units[0][0])
    shape = shape_of(frame)
    for detector, header_of_frame in enumerate(array_headers(frame)):
        base = None if bare else _with_place(frame, _with_wcs(frame, detector, header_of_frame))
        for name in names:
            if base is None:
                header = _bare_header(name, detector + 1, shape)
            else:
                content = _image_header(base, name, detector + 1, shape)
                if list(names) == ["dq"]:
                    content["EXTNAME"] = "SCI"  # the field's layout of bad-pixel masks
                header = header_bytes(content)
            size = padded(shape[0] * shape[1] * abs(_BITPIX[name]) // 8)
            planes[name].append(OutputPlane(position + len(header), shape))
            units.append((header, size))
            position += len(header) + size
    return units, planes


def _with_place(frame: Frame, base: Header | fits.Header) -> Header | fits.Header:
    """Give the header of an array with the section keywords and CRPIX of the Frame's pixels.

    They change where the Frame is a part of its file.
    """
    down, right = (
        frame.indexes[name][0] - start
        for name, start in zip(("y", "x"), frame.attrs["file_start"], strict=True)
    )
    ny, nx = shape_of(frame)
    if (down, right) == (0, 0) and [ny, nx] == list(frame.attrs["file_shape"][1:]):
        return base
    header = base.copy()
    for keyword in ("CCDSEC", "DETSEC", "ARRAYSEC"):
        section = parse_section(header.get(keyword))
        if section:
            x1, y1 = section[0] + int(right), section[2] + int(down)
            header[keyword] = format_section([x1, x1 + nx, y1, y1 + ny])
    if "DATASEC" in header:
        header["DATASEC"] = format_section([0, nx, 0, ny])
    if not geometries(frame):  # else the WCS is that of the geometry, which knows the place
        for keyword, shift in (("CRPIX1", right), ("CRPIX2", down)):
            if isinstance(header.get(keyword), (int, float)):
                header[keyword] = header[keyword] - float(shift)
    return header


def _with_wcs(frame: Frame, detector: int, base: Header) -> Header | fits.Header:
    """Give the header of an array with the WCS of its geometry as TAN-SIP, where it has one."""
    geometry = geometries(frame)
    if not geometry:
        return base
    from gdask.kernels.geometry.wcs import array_wcs, remove_wcs

    shape = (frame.sizes["y"], frame.sizes["x"])
    cards, _ = array_wcs(
        geometry[detector], shape, str(base.get("RADESYS", base.get("RADECSYS", "FK5"))).strip()
    )
    header = base.copy()
    remove_wcs(header)
    header.update(cards)
    return header


def _primary_header(content: Header | None, room: int) -> bytes:
    """Give the primary header with the content of another one; that of a bare file without."""
    if content is None:
        return _bare_primary_header()
    phu = fits.Header(_PRIMARY_CARDS)
    phu.extend(_content(content), unique=False)
    return header_bytes(phu, room)


@lru_cache(maxsize=1)
def _bare_primary_header() -> bytes:
    return header_bytes(fits.Header(_PRIMARY_CARDS))


@lru_cache(maxsize=256)
def _bare_header(name: str, version: int, shape: tuple[int, int]) -> bytes:
    return header_bytes(_image_header(fits.Header(), name, version, shape))


def _image_header(
    base: Header | fits.Header, name: str, version: int, shape: tuple[int, int]
) -> fits.Header:
    """Give the header of the extension of one array's variable, with the content of `base`."""
    header = fits.Header()
    header["XTENSION"] = ("IMAGE", "Image extension")
    header["BITPIX"] = (_BITPIX[name], "array data type")
    header["NAXIS"] = 2
    header["NAXIS1"], header["NAXIS2"] = shape[1], shape[0]
    header["PCOUNT"], header["GCOUNT"] = 0, 1
    if name == "dq":
        header["BSCALE"], header["BZERO"] = 1, 32768
    header["EXTNAME"], header["EXTVER"] = EXTNAMES[name], version
    header.extend(_content(base), unique=True)
    if name == "variance":
        header["UTYPE"] = ("VarianceUncertainty", "what astropy.nddata takes it for")
        if header.get("BUNIT", "1") != "1":
            header["BUNIT"] = f"{header['BUNIT']}**2" if header["BUNIT"] else ""
    if name in ("dq", "objects"):
        header.remove("BUNIT", ignore_missing=True)
    return header


def _content(header: Header | fits.Header) -> fits.Header:
    """Give a header without the keywords of a file's structure, and without blank cards."""
    cards = [
        card
        for card in header.cards
        if card.keyword not in _STRUCTURE_KEYWORDS and card.keyword != ""
    ]
    return fits.Header(cards).copy()  # to be edited; the cards of a Frame are not


def _create(temporary: str, final: str, units: Sequence[tuple[bytes, int]]) -> np.ndarray:
    """Create the temporary file with its headers; give records of what was written."""
    written: list[tuple[int, ...]] = []
    total = sum(len(header) + size for header, size in units)
    try:
        os.makedirs(os.path.dirname(final), exist_ok=True)
        Path(temporary).unlink(missing_ok=True)
        # "x": a new file, so that no file is touched to which a link of that name points.
        with open(temporary, "xb") as file:
            _reserve(file, total)
            position = 0
            for header, size in units:
                file.seek(position)
                file.write(header)
                written.append((position, 1, len(header), len(header), zlib.crc32(header)))
                position += len(header) + size
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise GdaskError(
            f"{final}: cannot be written ({error.strerror}; {total / 1e6:.1f} MB needed);"
            f" {_remedy(error)}"
        ) from error
    return np.array(written, WRITTEN_WINDOW)


def _reserve(file: BufferedWriter, total: int) -> None:
    """Take the space now, where the system can: a full disk is found before pixels are computed."""
    try:
        os.posix_fallocate(file.fileno(), 0, total)
    except OSError as error:
        if no_room(error):
            raise
        file.truncate(total)


def _writer(array: da.Array, path: str, planes: Sequence[OutputPlane], bitpix: int) -> da.Array:
    """Give the lazy array whose tasks write the blocks of another one into a file."""
    from dask.base import tokenize

    from gdask.io.lazy_arrays import edges, map_blocks

    array = array.rechunk({0: 1}, method="tasks")  # changes only chunks that a user has made
    return map_blocks(
        _write_block,
        array,
        name=f"write-{tokenize(array.name, path, planes)}",
        dtype=WRITTEN_WINDOW,
        chunks=tuple((1,) * len(axis) for axis in array.chunks),
        placed=True,
        path=path,
        planes=tuple(planes),
        bitpix=bitpix,
        flush=settings().flush,  # what workers on other hosts wrote is still in their memory
        block_edges=edges(array.chunks),
    )


def _write_block(
    place: tuple[int, int, int],
    block: np.ndarray,
    path: str,
    planes: tuple[OutputPlane, ...],
    bitpix: int,
    flush: bool,
    block_edges: tuple[tuple[int, ...], ...],
) -> np.ndarray:
    """Write one block into a file, in a task, and give the record of it."""
    (y1, y2), (x1, x2) = (block_edges[axis][place[axis] : place[axis] + 2] for axis in (1, 2))
    plane_start, (_, width) = planes[place[0]]
    raw = _to_disk(block[0], bitpix)
    handle = os.open(path, os.O_WRONLY)
    try:
        if x2 - x1 == width:
            _write_all(handle, raw.data.cast("B"), plane_start + y1 * width * raw.itemsize)
        else:
            for row in range(y2 - y1):
                row_start = plane_start + ((y1 + row) * width + x1) * raw.itemsize
                _write_all(handle, raw[row].data.cast("B"), row_start)
        if flush:
            os.fsync(handle)
    finally:
        os.close(handle)
    size = raw.itemsize
    start = plane_start + (y1 * width + x1) * size
    written = (start, y2 - y1, (x2 - x1) * size, width * size, zlib.crc32(raw.data))
    return np.array([[[written]]], WRITTEN_WINDOW)


def _write_all(handle: int, content: memoryview, offset: int) -> None:
    """Write all bytes at an offset of a file, however many one call of the system takes."""
    while content:
        count = os.pwrite(handle, content, offset)
        content, offset = content[count:], offset + count


def _to_disk(plane: np.ndarray, bitpix: int) -> np.ndarray:
    """Give pixels as they are on disk: big-endian, unsigned numbers shifted by BZERO = 32768."""
    if bitpix == 16:
        return np.ascontiguousarray(plane ^ np.uint16(0x8000)).byteswap()
    if bitpix == 8:
        return np.ascontiguousarray(plane, dtype=np.uint8)
    return np.ascontiguousarray(plane, dtype=np.float32).byteswap()
