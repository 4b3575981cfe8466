"""Frames as multi-extension FITS files that appear whole or not at all.

The client writes the headers into a temporary file of the final size beside the target; tasks write pixels into it,
each its own window; `finish` appends the tables, adds CHECKSUM and DATASUM, flushes to disk and renames.
"""

from __future__ import annotations

import errno
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BufferedWriter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.io import fits
from astropy.table import Table

from gdask.io.checksum import add_checksums
from gdask.io.tables import each_table, table_bytes
from gdask.model import EXTNAMES, GdaskError, owner, settings
from gdask.types import Frame

BLOCK = 2880
#: What a task has written: rows of `width` bytes, `stride` apart, from `offset`, and their CRC-32 (what checkpoints go by).
WINDOW = np.dtype(
    [("offset", "i8"), ("rows", "i8"), ("width", "i8"), ("stride", "i8"), ("sum", "u4")]
)
_BITPIX = {"data": -32, "variance": -32, "dq": 16, "objects": 8}
_STRUCTURE = (
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
_WCS_KEYWORD = re.compile(
    r"(CRPIX|CRVAL|CTYPE|CUNIT|CDELT|CROTA)[12]|(CD|PC)[12]_[12]|(A|B|AP|BP)_(ORDER|\d_\d)|RADECSYS|RADESYS|EQUINOX|WCSAXES"
)


class Place(NamedTuple):
    """Where the pixels of one variable of one array go: byte offset in the file and shape (ny, nx)."""

    offset: int
    shape: tuple[int, int]


class Output(NamedTuple):
    """A product under way: `arrays` are lazy; computing them writes the pixels into `temporary` and gives WINDOW records.

    `headers` are the records of what is written already.
    """

    temporary: str
    final: str
    arrays: tuple[object, ...]
    headers: np.ndarray


def start(
    frame: Frame,
    path: str | os.PathLike[str],
    variables: Sequence[str] | None = None,
    *,
    bare: bool = False,
) -> Output:
    """Lay out the file of a Frame under a temporary name, and give the lazy arrays that write its pixels.

    `bare` headers say where the pixels lie and no more: for checkpoints, whose Frames keep their headers (headers with their
    WCS took a third of the client's time for a frame). Raises GdaskError where the folder cannot be written or has no room for the whole file.
    """
    final = os.path.abspath(path)
    names = [
        name for name in EXTNAMES if name in frame and (variables is None or name in variables)
    ]
    chunks, places = _layout(frame, names, bare)
    temporary = temporary_name(final)
    headers = _create(temporary, final, chunks)
    arrays = tuple(
        _writer(frame[name].data, temporary, places[name], _BITPIX[name]) for name in names
    )
    return Output(temporary, final, arrays, headers)


def finish(
    output: Output,
    tables: Mapping[str, Table | Sequence[Table]] | None = None,
    *,
    checksum: bool = True,
) -> str:
    """Append `tables`, add checksums, flush to disk and give the product its final name. Returns that name.

    Without `checksum` the file is a checkpoint, which is not flushed either (its windows' sums are checked before it is used).
    """
    try:
        with open(output.temporary, "r+b") as file:
            file.seek(0, os.SEEK_END)
            file.writelines(table_bytes(name, *table) for name, table in each_table(tables or {}))
            if checksum:
                add_checksums(file)
                file.flush()
                os.fsync(file.fileno())
        os.replace(output.temporary, output.final)
    except OSError as error:
        discard(output)
        raise GdaskError(
            f"{output.final}: could not be written: {error.strerror}; {_remedy(error)}"
        ) from error
    return output.final


def discard(output: Output) -> None:
    """Remove what is left of a product that will not be finished."""
    Path(output.temporary).unlink(missing_ok=True)


def temporary_name(final: str) -> str:
    """The hidden name beside `final` that a product has until it is whole."""
    folder, name = os.path.split(final)
    return os.path.join(folder, f".{name}.{owner()}.part")


def _remedy(error: OSError) -> str:
    return (
        "free space and run again"
        if no_room(error)
        else "make the folder writable or change to another one"
    )


def no_room(error: OSError) -> bool:
    """Whether there is no space: the disk is full, a quota or the limit of a file's size is reached."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write(frame: Frame, path: str | os.PathLike[str]) -> str:
    """Compute a Frame and write it as SCI/VAR/DQ multi-extension FITS, atomically. Returns the path."""
    import dask

    output = start(frame, path)
    try:
        dask.compute(*output.arrays)
    except BaseException:
        discard(output)
        raise
    return finish(output, frame.attrs.get("tables"))


def _layout(
    frame: Frame, names: Sequence[str], bare: bool
) -> tuple[list[tuple[bytes, int]], dict[str, list[Place]]]:
    """The (header, data size) of each HDU in file order, and the place of every variable's arrays."""
    phu = fits.Header([("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0), ("EXTEND", True)])
    if not bare:
        phu.extend(_content(frame.attrs["phu"]), unique=False)
    chunks = [(_header_bytes(phu), 0)]
    places: dict[str, list[Place]] = {name: [] for name in names}
    position = len(chunks[0][0])
    for detector, base in enumerate(frame.attrs["headers"]):
        base = None if bare else _with_wcs(frame, detector, base)
        for name in names:
            shape = frame[name].shape[1:]
            header = (
                _bare_header(name, detector + 1, shape)
                if bare
                else _header_bytes(_image_header(base, name, detector + 1, shape))
            )
            size = _padded(shape[0] * shape[1] * abs(_BITPIX[name]) // 8)
            places[name].append(Place(position + len(header), shape))
            chunks.append((header, size))
            position += len(header) + size
    return chunks, places


def _with_wcs(frame: Frame, detector: int, base: fits.Header) -> fits.Header:
    """The header of an array with the WCS of its geometry as TAN-SIP, where the Frame has one."""
    geometry = frame.attrs.get("geometry")
    if not geometry:
        return base
    from gdask.kernels.geometry.wcs import array_wcs

    shape = (frame.sizes["y"], frame.sizes["x"])
    cards, _ = array_wcs(
        geometry[detector], shape, str(base.get("RADESYS", base.get("RADECSYS", "FK5"))).strip()
    )
    header = base.copy()
    for keyword in [key for key in header if _WCS_KEYWORD.fullmatch(key)]:
        del header[keyword]
    header.update(cards)
    return header


@lru_cache(maxsize=256)
def _bare_header(name: str, version: int, shape: tuple[int, int]) -> bytes:
    return _header_bytes(_image_header(fits.Header(), name, version, shape))


def _image_header(
    base: fits.Header, name: str, version: int, shape: tuple[int, int]
) -> fits.Header:
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
    if name == "variance" and "BUNIT" in header:
        header["BUNIT"] = f"{header['BUNIT']}**2" if header["BUNIT"] else ""
    if name in ("dq", "objects"):
        header.remove("BUNIT", ignore_missing=True)
    return header


def _content(header: fits.Header) -> fits.Header:
    """A header without the keywords that describe a file's structure, and without the blank cards of the archive."""
    cards = [card for card in header.cards if card.keyword not in _STRUCTURE and card.keyword != ""]
    return fits.Header(cards).copy()  # to be edited; the cards of a Frame are not


def _header_bytes(header: fits.Header) -> bytes:
    """The header with room for CHECKSUM and DATASUM, so that adding them later moves nothing."""
    header["CHECKSUM"] = ("0" * 16, "HDU checksum")
    header["DATASUM"] = ("0", "data unit checksum")
    return header.tostring(padding=True).encode("ascii")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _create(temporary: str, final: str, chunks: Sequence[tuple[bytes, int]]) -> np.ndarray:
    written: list[tuple[int, ...]] = []
    total = sum(len(header) + size for header, size in chunks)
    try:
        os.makedirs(os.path.dirname(final), exist_ok=True)
        Path(temporary).unlink(missing_ok=True)
        with open(
            temporary, "xb"
        ) as file:  # a file of its own: what a link of that name points at is not touched
            _reserve(file, total)
            position = 0
            for header, size in chunks:
                file.seek(position)
                file.write(header)
                written.append((position, 1, len(header), len(header), zlib.crc32(header)))
                position += len(header) + size
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise GdaskError(
            f"{final}: cannot be written ({error.strerror}; {total / 1e6:.1f} MB needed); {_remedy(error)}"
        ) from error
    return np.array(written, WINDOW)


def _reserve(file: BufferedWriter, total: int) -> None:
    """Take the space now, so that a full disk is found before any pixel is computed (where the system can)."""
    try:
        os.posix_fallocate(file.fileno(), 0, total)
    except OSError as error:
        if no_room(error):
            raise
        file.truncate(total)


def _writer(array: object, path: str, places: Sequence[Place], bitpix: int) -> object:
    from dask.base import tokenize

    from gdask.io.lazy_arrays import edges, map_blocks

    array = array.rechunk({0: 1})  # type: ignore[attr-defined]  # a no-op but for a user's own chunks
    return map_blocks(
        _write_block,
        array,
        name=f"write-{tokenize(array.name, path, places)}",
        dtype=WINDOW,
        chunks=tuple((1,) * len(axis) for axis in array.chunks),
        placed=True,
        path=path,
        places=tuple(places),
        bitpix=bitpix,
        flush=settings().flush,  # workers on other hosts: what they wrote is in their memory
        edges=edges(array.chunks),
    )


def _write_block(
    place: tuple[int, int, int],
    block: np.ndarray,
    path: str,
    places: tuple[Place, ...],
    bitpix: int,
    flush: bool,
    edges: tuple[tuple[int, ...], ...],
) -> np.ndarray:
    (y1, y2), (x1, x2) = (edges[axis][place[axis] : place[axis] + 2] for axis in (1, 2))
    start, (_, width) = places[place[0]]
    raw = _to_disk(block[0], bitpix)
    handle = os.open(path, os.O_WRONLY)
    try:
        if x2 - x1 == width:
            _write_all(handle, memoryview(raw).cast("B"), start + y1 * width * raw.itemsize)
        else:
            for row in range(y2 - y1):
                at = start + ((y1 + row) * width + x1) * raw.itemsize
                _write_all(handle, memoryview(raw[row]).cast("B"), at)
        if flush:
            os.fsync(handle)
    finally:
        os.close(handle)
    begin, size = start + (y1 * width + x1) * raw.itemsize, raw.itemsize
    return np.full(
        (1, 1, 1),
        np.array((begin, y2 - y1, (x2 - x1) * size, width * size, zlib.crc32(raw)), WINDOW),
    )


def _write_all(handle: int, content: memoryview, offset: int) -> None:
    while content:
        done = os.pwrite(handle, content, offset)
        content, offset = content[done:], offset + done


def _to_disk(plane: np.ndarray, bitpix: int) -> np.ndarray:
    if bitpix == 16:
        return np.ascontiguousarray(plane ^ np.uint16(0x8000)).byteswap()
    if bitpix == 8:
        return np.ascontiguousarray(plane, dtype=np.uint8)
    return np.ascontiguousarray(plane, dtype=np.float32).byteswap()
