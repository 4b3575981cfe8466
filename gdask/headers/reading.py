"""Headers of FITS files, read without the pixels, and `Header`, the read-only header of a Frame.

Files may be plain, gzip, bzip2 (also where the name does not say so) or compressed in tiles. Nobody edits a `Header` in
place, so cards that are alike, in one header or in thousands, are one object: a night's headers differ in a few cards
out of hundreds, and as astropy's headers they took half the client's memory for each frame.
"""

from __future__ import annotations

import bz2
import gzip
import io
import math
import os
import re
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import BinaryIO, NamedTuple, cast

from astropy.io import fits

from gdask.headers.header import CARD, Header, Headers
from gdask.model import GdaskError

RECORD_BYTES = 2880  # bytes in a FITS record (FITS standard 4.0, section 3.1)
BITPIX = (8, 16, 32, 64, -32, -64)
MAX_CARDS = 100_000  # far above any header: what has more has lost its END
MAX_BYTES = 1 << 50  # far above any file
_COMMENTARY = ("COMMENT ", "HISTORY ", "CONTINUE", "HIERARCH", "        ", "END     ")
_KEYWORD = re.compile(r"[A-Z0-9_-]+ *$")
#: What may follow "= " on a card: a string, logical, number, complex number or nothing, then a comment.
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[EeDd][+-]?\d+)?"
_VALUE = re.compile(
    rf"\s*('(?:[^']|'')*'|[TF]|{_NUMBER}|\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)|)\s*(/.*)?$"
)


class Unit(NamedTuple):
    """One unit of a file: its number, its header as bytes and read, where its data begin and their size without fill."""

    number: int
    raw: bytes
    header: Header
    begin: int
    size: int


class FileUnits(NamedTuple):
    """The units of a file: header of each, where its data begin (-1: compressed), and whether tables are among them."""

    headers: tuple[Header, ...]
    begins: tuple[int, ...]
    has_tables: bool


def read_units(path: str | os.PathLike[str]) -> FileUnits:
    """Read the headers of all units; pixels of an uncompressed file are skipped by a seek.

    Tile-compressed images come with the headers that they had before compression. Invalid cards are repaired (see
    `repair_card`). GdaskError if the file is missing, empty, not FITS, or cut short.
    """
    name = os.fspath(path)
    with open_stream(name) as stream:
        units = [(unit.header, unit.begin) for unit in each_unit(stream, name)]
        packed = type(stream) is not io.BufferedReader
    headers, begins = [header for header, _ in units], [begin for _, begin in units]
    tables = any(_kind(header) == "BINTABLE" and not is_tiled(header) for header in headers)
    if any(is_tiled(header) for header in headers):
        headers, packed = untiled(name), True
    return FileUnits(tuple(headers), tuple([-1] * len(headers) if packed else begins), tables)


def read_headers(path: str | os.PathLike[str]) -> Headers:
    """Read the primary header and one header for each image extension, in file order; errors as `read_units`."""
    return image_headers(read_units(path), path)


def image_headers(units: FileUnits, path: str | os.PathLike[str]) -> Headers:
    """Give the primary header and that of each image; an image in the primary unit counts where there is no other."""
    phu, rest = units.headers[0], units.headers[1:]
    images = tuple(header for header in rest if _kind(header) == "IMAGE")
    if not images and phu.get("NAXIS", 0):
        images = (phu,)
    return Headers(phu, images, os.fspath(path))


def _kind(header: Header) -> str:
    return str(header.get("XTENSION", "")).strip()


def repair_card(card: str) -> str:
    """The 80-character card, made readable: text that is no FITS value becomes a string, a bad keyword a comment."""
    if card.isspace() or card.startswith(_COMMENTARY):
        return card
    if card[8] != "=":
        return card if _KEYWORD.match(card[:8].upper()) else f"COMMENT {card}"[:CARD]
    keyword = card[:8].upper()
    if not _KEYWORD.match(keyword):
        return f"COMMENT {card}"[:CARD]
    value = (
        card[10:] if card[9] == " " else card[9:]
    )  # "KEY     ='x'": the blank after = is missing
    if not _VALUE.match(value):
        value = _quoted(value.strip())
    return f"{keyword}= {value}"[:CARD].ljust(CARD)


def _quoted(text: str) -> str:
    """A string value from what is none: an unclosed quote, INDEF, NaN, 12:34:56 without quotes ..."""
    text = text[1:] if text.startswith("'") else text.partition(" /")[0]
    room = CARD - 12
    text = text.strip().replace("'", "''")[:room]
    if (len(text) - len(text.rstrip("'"))) % 2:  # the cut went through a doubled quote
        text = text[:-1]
    return f"'{text:<8}'"


@contextmanager
def open_stream(name: str) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked where it is packed. What goes wrong inside is a GdaskError that names the file."""
    try:
        with _open(name) as stream:
            yield stream
    except (OSError, EOFError, zlib.error) as error:
        raise GdaskError(f"{name}: {_reason(error)}") from error


def _open(name: str) -> BinaryIO:
    if "\0" in name:
        raise GdaskError(f"{name!r}: not a name of a file")
    if os.path.isdir(name):
        raise IsADirectoryError(name)
    if not stat.S_ISREG(os.stat(name).st_mode):
        raise GdaskError(f"{name}: not a regular file; a FITS file was expected")
    with open(name, "rb") as raw:
        magic = raw.read(9)
    if not magic:
        raise GdaskError(f"{name}: the file is empty, a FITS file was expected; copy it again")
    if magic.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.open(name, "rb"))
    if magic.startswith(b"BZh"):
        return cast(BinaryIO, bz2.open(name, "rb"))
    return open(name, "rb")


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file; check the name and the folder"
    if isinstance(error, IsADirectoryError):
        return "is a folder, a FITS file was expected"
    if isinstance(error, EOFError):
        return "the compressed file is cut short; copy it again"
    return f"cannot be read ({getattr(error, 'strerror', None) or error})"


def each_unit(stream: BinaryIO, name: str) -> Iterator[Unit]:
    """The units of a FITS file one after another. A unit's data may be read from the stream before the next is asked for."""
    number = 0
    while (cards := _header_cards(stream, name, number)) is not None:
        raw, kept = cards
        header = Header.read(kept)
        begin, size = stream.tell(), _data_bytes(header, name)
        yield Unit(number, raw, header, begin, size)
        _skip(stream, begin + size, name, number)
        number += 1


def _header_cards(stream: BinaryIO, name: str, number: int) -> tuple[bytes, list[str]] | None:
    """The next header as it is in the file, and its cards, repaired; None where the file ends."""
    start = b"XTENSION" if number else b"SIMPLE  ="
    cards: list[str] = []
    whole = b""
    while True:
        block = stream.read(RECORD_BYTES)
        whole += block
        if not cards and not block.startswith(start):
            if number:
                return None  # the end, or the special records that may follow the last extension
            raise GdaskError(f"{name}: not a FITS file (it does not begin with SIMPLE =)")
        for at in range(0, len(block) - CARD + 1, CARD):
            raw = block[at : at + CARD]
            if raw.rstrip(b" \0") == b"END":
                return whole, _without_padding(cards)
            cards.append(_repaired(raw))
        if len(cards) > MAX_CARDS:
            raise GdaskError(
                f"{name}: header of extension {number} has no end; copy the file again"
            )
        if len(block) < RECORD_BYTES:
            raise GdaskError(
                f"{name}: header of extension {number} is cut short (no END card); copy the file again"
            )


@lru_cache(maxsize=8192)  # what the files of a night have in common
def _repaired(raw: bytes) -> str:
    return repair_card(_ascii(raw))


def _ascii(raw: bytes) -> str:
    text = raw.decode("latin-1")
    return (
        text
        if text.isascii() and text.isprintable()
        else "".join(c if " " <= c <= "~" else "?" if c > "\x7f" else " " for c in text)
    )


def _without_padding(cards: list[str]) -> list[str]:
    """Without the blank cards that only reserve space before END (a GSAOI file has hundreds)."""
    last = len(cards)
    while last and cards[last - 1].isspace():
        last -= 1
    return cards[:last]


def _data_bytes(header: Header, name: str) -> int:
    """Bytes of the data that follow a header, without fill (FITS standard 4.0, sections 4.4.1 and 6)."""
    try:
        if header["BITPIX"] not in BITPIX:
            raise ValueError(f"BITPIX = {header['BITPIX']}")
        if not 0 <= header["NAXIS"] <= 999:
            raise ValueError(f"NAXIS = {header['NAXIS']}")
        axes = [header[f"NAXIS{i}"] for i in range(1, header["NAXIS"] + 1)]
        groups, heap = header.get("GCOUNT", 1), header.get("PCOUNT", 0)
        if not all(type(size) is int and size >= 0 for size in (groups, heap, *axes)):
            raise ValueError("a size that is no whole number")
        if axes and axes[0] == 0 and header.get("GROUPS", False):
            axes = axes[1:]
        elements = math.prod(axes) if axes else 0
        size = abs(int(header["BITPIX"])) // 8 * groups * (heap + elements)
        if size > MAX_BYTES:
            raise ValueError(f"{size} bytes of data")
        return size
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise GdaskError(
            f"{name}: no valid BITPIX and NAXIS in a header ({error}); the file is damaged"
        ) from error


def _skip(stream: BinaryIO, end: int, name: str, number: int) -> None:
    """Step to the record after `end`, the end of a unit's data; its last byte is read to know that it is there."""
    if end > stream.tell() or end % RECORD_BYTES:
        stream.seek(end - 1)
        if not stream.read(1):
            raise GdaskError(
                f"{name}: pixels of extension {number} are cut short; copy the file again"
            )
    stream.seek(end + -end % RECORD_BYTES)


def is_tiled(header: Header) -> bool:
    """Whether a unit is an image compressed in tiles, which is on disk as a table."""
    return header.get("ZIMAGE") is True


def untiled(name: str) -> list[Header]:
    """Headers as astropy gives them for images that are compressed in tiles: as before compression."""
    try:
        with fits.open(name, memmap=True) as units:
            return [Header.of(unit.header) for unit in units]
    except Exception as error:  # astropy raises errors of many kinds
        raise GdaskError(
            f"{name}: its compressed images cannot be read ({error}); copy the file again"
        ) from error
