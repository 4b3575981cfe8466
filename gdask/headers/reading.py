"""Reading of the headers of FITS files without the pixels.

Files may be plain, gzip, bzip2 (also where the name does not say so) or compressed in tiles. Nobody
edits a `Header` in place, so equal cards, in one header or in thousands, are one object: a night's
headers differ in a few cards out of hundreds, and as astropy's headers they took half the client's
memory for each frame.
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
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from gdask.headers.header import CARD_LENGTH, Header, Headers
from gdask.model import GdaskError, late, reason_of

if TYPE_CHECKING:
    from astropy.io import fits
else:
    fits = late("astropy.io.fits")

RECORD_BYTES = 2880  # bytes in a FITS record (FITS standard 4.0, section 3.1)
VALID_BITPIX = (8, 16, 32, 64, -32, -64)
MAX_CARDS = 20_000  # far above any header (some hundred): one with more has lost its END card
MAX_DATA_BYTES = 1 << 50  # of one unit, far above any file
_CARDS_WITHOUT_VALUE = ("COMMENT ", "HISTORY ", "CONTINUE", "HIERARCH", "        ", "END     ")
_KEYWORD = re.compile(r"[A-Z0-9_-]+ *$")
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[EeDd][+-]?\d+)?"
#: What may follow "= " on a card: a string, logical, number, complex number or nothing, then a
#: comment.
_VALUE = re.compile(
    rf"\s*('(?:[^']|'')*'|[TF]|{_NUMBER}|\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)|)\s*(/.*)?$"
)


class Unit(NamedTuple):
    """One unit of a file: a header and the data that follow it.

    Attributes
    ----------
    number
        From 0, the primary unit.
    raw
        The header as it is in the file.
    header
        The header, read.
    begin
        First byte of the data.
    size
        Bytes of the data, without fill.
    """

    number: int
    raw: bytes
    header: Header
    begin: int
    size: int


class FileUnits(NamedTuple):
    """Units of a file: their headers, first bytes of their data, and whether some are tables.

    The first byte is -1 in a compressed file.
    """

    headers: tuple[Header, ...]
    begins: tuple[int, ...]
    has_tables: bool


def read_units(path: str | os.PathLike[str]) -> FileUnits:
    """Read the headers of all units; pixels of an uncompressed file are skipped by a seek.

    Tile-compressed images come with the headers that they had before compression. Invalid cards are
    repaired (see `repair_card`). Raises GdaskError where the file is missing, empty, not FITS, or
    cut short.
    """
    name = os.fspath(path)
    with open_stream(name) as stream:
        units = [(unit.header, unit.begin) for unit in each_unit(stream, name)]
        packed = type(stream) is not io.BufferedReader
    headers, begins = [header for header, _ in units], [begin for _, begin in units]
    tables = any(_kind(header) == "BINTABLE" and not is_tiled(header) for header in headers)
    if any(is_tiled(header) for header in headers):
        headers, packed = headers_before_tiling(name), True
    return FileUnits(tuple(headers), tuple([-1] * len(headers) if packed else begins), tables)


def read_headers(path: str | os.PathLike[str]) -> Headers:
    """Read the primary header and one header for each image extension, in file order.

    Errors are those of `read_units`.
    """
    return image_headers(read_units(path), path)


def image_headers(units: FileUnits, path: str | os.PathLike[str]) -> Headers:
    """Give the primary header and that of each image.

    An image in the primary unit counts where there is no other.
    """
    phu, rest = units.headers[0], units.headers[1:]
    images = tuple(header for header in rest if _kind(header) == "IMAGE")
    if not images and phu.get("NAXIS", 0):
        images = (phu,)
    return Headers(phu, images, os.fspath(path))


def _kind(header: Header) -> str:
    return str(header.get("XTENSION", "")).strip()


def repair_card(card: str) -> str:
    """Make an 80-character card readable.

    Text that is no FITS value becomes a string, a card with a bad keyword a comment.
    """
    if card.isspace() or card.startswith(_CARDS_WITHOUT_VALUE):
        return card
    if card[8] != "=":
        return card if _KEYWORD.match(card[:8].upper()) else f"COMMENT {card}"[:CARD_LENGTH]
    keyword = card[:8].upper()
    if not _KEYWORD.match(keyword):
        return f"COMMENT {card}"[:CARD_LENGTH]
    value = card[10:] if card[9] == " " else card[9:]  # KEY     ='x': no blank after the =
    if not _VALUE.match(value):
        value = _quoted(value.strip())
    return f"{keyword}= {value}"[:CARD_LENGTH].ljust(CARD_LENGTH)


def _quoted(text: str) -> str:
    """Make a string value of invalid text: an open quote, INDEF, NaN, 12:34:56 unquoted ..."""
    text = text[1:] if text.startswith("'") else text.partition(" /")[0]
    room = CARD_LENGTH - 12
    text = text.strip().replace("'", "''")[:room]
    if (len(text) - len(text.rstrip("'"))) % 2:  # a doubled quote has been cut in half
        text = text[:-1]
    return f"'{text:<8}'"


@contextmanager
def open_stream(name: str) -> Iterator[BinaryIO]:
    """Open a file for reading its bytes, unpacked where it is packed.

    Errors of the system inside the `with` block become a GdaskError that names the file.
    """
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
    """Say for the user why a file cannot be read."""
    if isinstance(error, FileNotFoundError):
        return "no such file; check the name and the folder"
    if isinstance(error, IsADirectoryError):
        return "is a folder, a FITS file was expected"
    if isinstance(error, EOFError):
        return "the compressed file is cut short; copy it again"
    return f"cannot be read ({reason_of(error)})"


def each_unit(stream: BinaryIO, name: str) -> Iterator[Unit]:
    """Yield the units of a FITS file.

    A unit's data may be read from the stream before the next unit is asked for.
    """
    number = 0
    while (cards := _header_cards(stream, name, number)) is not None:
        raw, texts = cards
        header = Header.from_cards(texts)
        begin, size = stream.tell(), _data_bytes(header, name)
        yield Unit(number, raw, header, begin, size)
        _skip(stream, begin + size, name, number)
        number += 1


def _header_cards(stream: BinaryIO, name: str, number: int) -> tuple[bytes, list[str]] | None:
    """Read the next header: its bytes, and its cards repaired; None where the file ends."""
    first_bytes = b"XTENSION" if number else b"SIMPLE  ="
    cards: list[str] = []
    whole = b""
    while True:
        block = stream.read(RECORD_BYTES)
        whole += block
        if not cards and not block.startswith(first_bytes):
            if number:
                return None  # the end, or the special records that may follow the last extension
            raise GdaskError(f"{name}: not a FITS file (it does not begin with SIMPLE =)")
        for start in range(0, len(block) - CARD_LENGTH + 1, CARD_LENGTH):
            raw = block[start : start + CARD_LENGTH]
            if raw.rstrip(b" \0") == b"END":
                return whole, _without_padding(cards)
            cards.append(_repaired(raw))
        if len(cards) > MAX_CARDS:
            raise GdaskError(
                f"{name}: header of extension {number} has more than {MAX_CARDS} cards and no end;"
                " copy the file again"
            )
        if len(block) < RECORD_BYTES:
            raise GdaskError(
                f"{name}: header of extension {number} is cut short (no END card);"
                " copy the file again"
            )


@lru_cache(maxsize=8192)  # the cards that the files of a night share
def _repaired(raw: bytes) -> str:
    return repair_card(_ascii(raw))


def _ascii(raw: bytes) -> str:
    """Give a card as printable text; "?" and blanks stand for what is not."""
    text = raw.decode("latin-1")
    return (
        text
        if text.isascii() and text.isprintable()
        else "".join(c if " " <= c <= "~" else "?" if c > "\x7f" else " " for c in text)
    )


def _without_padding(cards: list[str]) -> list[str]:
    """Drop the blank cards that only reserve space before END (a GSAOI file has hundreds)."""
    last = len(cards)
    while last and cards[last - 1].isspace():
        last -= 1
    return cards[:last]


def _data_bytes(header: Header, name: str) -> int:
    """Give the bytes of data after a header without fill (FITS standard 4.0, sections 4.4.1, 6)."""
    try:
        if header["BITPIX"] not in VALID_BITPIX:
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
        if size > MAX_DATA_BYTES:
            raise ValueError(f"{size} bytes of data")
        return size
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise GdaskError(
            f"{name}: no valid BITPIX and NAXIS in a header ({error}); the file is damaged"
        ) from error


def _skip(stream: BinaryIO, end: int, name: str, number: int) -> None:
    """Go to the record after `end`, the end of a unit's data.

    The last byte is read, to know that it is there; GdaskError where it is not.
    """
    if end > stream.tell() or end % RECORD_BYTES:
        stream.seek(end - 1)
        if not stream.read(1):
            raise GdaskError(
                f"{name}: pixels of extension {number} are cut short; copy the file again"
            )
    stream.seek(end + -end % RECORD_BYTES)


def is_tiled(header: Header) -> bool:
    """Tell whether a unit is an image compressed in tiles, which is on disk as a table."""
    return header.get("ZIMAGE") is True


@contextmanager
def open_hdus(name: str | os.PathLike[str], **options: Any) -> Iterator[fits.HDUList]:
    """Open a FITS file with astropy. options: as of `astropy.io.fits.open`.

    Raises OSError where its units do not lie one after the other: astropy takes sizes as a damaged
    header gives them, and would go round for ever, with a unit more in memory each time.
    """
    with fits.open(name, lazy_load_hdus=True, **options) as units:
        end = 0
        for number, unit in enumerate(units):
            # A unit that astropy cannot make sense of has no fileinfo.
            place = unit.fileinfo() if hasattr(unit, "fileinfo") else None
            if not place or place["hdrLoc"] < end or place["datSpan"] < 0:
                raise OSError(f"the header of extension {number} is damaged")
            end = place["datLoc"] + place["datSpan"]
        yield units


def headers_before_tiling(name: str) -> list[Header]:
    """Read the headers of a file whose images are compressed in tiles, as before compression."""
    try:
        with open_hdus(name, memmap=True) as units:
            return [Header.from_astropy(unit.header) for unit in units]
    except Exception as error:  # astropy raises errors of many kinds
        raise GdaskError(
            f"{name}: its compressed images cannot be read ({error}); copy the file again"
        ) from error
