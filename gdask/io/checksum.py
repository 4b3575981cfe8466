"""Headers of products, completed in place: late cards, CHECKSUM and DATASUM (FITS 4.0, 4.4.2.7)."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from gdask.headers import CARD_LENGTH, RECORD_BYTES, each_unit, open_stream
from gdask.model import GdaskError, late

if TYPE_CHECKING:
    from astropy.io import fits
else:
    fits = late("astropy.io.fits")


#: Keywords of the sums, and their comments.
_SUMS = {"CHECKSUM": "HDU checksum", "DATASUM": "data unit checksum"}


def header_bytes(header: fits.Header, room: int = 0) -> bytes:
    """Give the bytes of a header with CHECKSUM and DATASUM, so that setting them moves nothing.

    room: blank cards before END, for cards that are known when the pixels are (`set_cards`).
    """
    header["CHECKSUM"] = ("0" * 16, _SUMS["CHECKSUM"])
    header["DATASUM"] = ("0", _SUMS["DATASUM"])
    text = header.tostring(endcard=False, padding=False)
    return _with_end(text, padded(len(text) + (room + 1) * CARD_LENGTH))


def padded(size: int) -> int:
    """Give the size in bytes of the whole FITS records that hold so many bytes."""
    return -(-size // RECORD_BYTES) * RECORD_BYTES


def _with_end(text: str, size: int) -> bytes:
    """Give the bytes of a header's cards in so many bytes, with END in the last record."""
    return (text.ljust(size - RECORD_BYTES) + f"{'END':{CARD_LENGTH}}").ljust(size).encode("ascii")


def set_cards(file: io.BufferedRandom, cards: Mapping[str, object]) -> None:
    """Set cards of the primary header of an open FITS file, in place; None removes one.

    A value is given alone or as (value, comment). Raises GdaskError where the header has no room.
    """
    if not cards:
        return
    file.flush()
    size = _header_size(file)
    raw = os.pread(file.fileno(), size, 0).decode("ascii")
    header = fits.Header.fromstring(raw)
    header.remove("", ignore_missing=True, remove_all=True)
    sums = {name: (header.pop(name), comment) for name, comment in _SUMS.items()}
    for keyword, value in cards.items():
        if value is None:
            header.remove(keyword, ignore_missing=True)
        else:
            header[keyword] = value
    header.update(sums)
    text = header.tostring(endcard=False, padding=False)
    if len(text) + CARD_LENGTH > size:
        raise GdaskError(f"{file.name}: no room for {len(cards)} cards in its primary header")
    os.pwrite(file.fileno(), _with_end(text, size), 0)


def _header_size(file: io.BufferedRandom) -> int:
    """Give the bytes of the first header of a file, whole records up to the one with END."""
    size = 0
    while record := os.pread(file.fileno(), RECORD_BYTES, size):
        size += RECORD_BYTES
        starts = range(0, len(record), CARD_LENGTH)
        if any(record[start : start + CARD_LENGTH].rstrip() == b"END" for start in starts):
            break
    return size


def add_checksums(file: io.BufferedRandom) -> None:
    """Set CHECKSUM and DATASUM of every unit of an open FITS file that has them blank.

    The header is changed in place, and the file not rewritten.
    """
    file.flush()
    with fits.open(file.name, memmap=False, lazy_load_hdus=False) as hdus:
        blank = [hdu.fileinfo() for hdu in hdus if hdu.header.get("CHECKSUM") == "0" * 16]
    for info in blank:
        _checksum_unit(
            file.fileno(), info["hdrLoc"], info["datLoc"], info["datLoc"] + info["datSpan"]
        )


def wrong_sums(path: str) -> list[tuple[int, str]]:
    """Give (number of the extension, what is wrong) of each unit whose sums do not hold.

    Units without CHECKSUM and DATASUM are not checked.
    """
    wrong = []
    with open_stream(path) as stream:
        for unit in each_unit(stream, path):
            wanted = [unit.header.get(name) for name in ("DATASUM", "CHECKSUM")]
            if wanted == [None, None]:
                continue
            total = sum_stream(stream, unit.size + -unit.size % RECORD_BYTES)
            if wanted[0] is not None and str(wanted[0]).strip() != str(total):
                text = f"DATASUM is {wanted[0]}, of the data that are there {total}"
                wrong.append((unit.number, f"{text}; copy the file again"))
            whole = _fold(
                _sum_words(unit.raw.ljust(-(-len(unit.raw) // RECORD_BYTES) * RECORD_BYTES)) + total
            )
            if (
                wanted[1] is not None
                and whole not in (0, 0xFFFFFFFF)
                and not (wrong and wrong[-1][0] == unit.number)
            ):
                wrong.append(
                    (
                        unit.number,
                        "CHECKSUM does not hold: its header was changed after it was written",
                    )
                )
    return wrong


def sum_stream(stream: BinaryIO, size: int) -> int:
    """Give the sum of the next `size` bytes of a stream."""
    total, step = 0, 1 << 22
    while size > 0:
        piece = stream.read(min(step, size))
        if not piece:
            break
        total = _fold(total + _sum_words(piece.ljust(-(-len(piece) // 4) * 4, b"\0")))
        size -= len(piece)
    return total


def _checksum_unit(handle: int, header_start: int, data_start: int, end: int) -> None:
    """Set the sums of the unit that lies at these bytes of a file."""
    header = bytearray(os.pread(handle, data_start - header_start, header_start))
    datasum = _sum_file(handle, data_start, end)
    _set_card(header, b"DATASUM ", str(datasum))
    _set_card(header, b"CHECKSUM", "0" * 16)
    total = _fold(_sum_words(bytes(header)) + datasum)
    _set_card(header, b"CHECKSUM", _encode(0xFFFFFFFF - total))
    os.pwrite(handle, bytes(header), header_start)


def _set_card(header: bytearray, keyword: bytes, value: str) -> None:
    """Set the text value of the first card with this keyword, in place; its comment stays."""
    for start in range(0, len(header), CARD_LENGTH):
        if header[start : start + 8] == keyword:
            comment = bytes(header[start + 10 : start + CARD_LENGTH]).partition(b"/")[2]
            card = keyword + b"= " + f"'{value:<8}'".encode().ljust(20) + b" /" + comment
            header[start : start + CARD_LENGTH] = card.ljust(CARD_LENGTH)[:CARD_LENGTH]
            return


def _sum_file(handle: int, begin: int, end: int) -> int:
    """Give the sum of the bytes begin ... end - 1 of an open file."""
    total, step = 0, 1 << 24
    for start in range(begin, end, step):
        total = _fold(total + _sum_words(os.pread(handle, min(step, end - start), start)))
    return total


def _sum_words(content: bytes) -> int:
    """Give the sum of 32-bit words, not folded yet."""
    return int(np.frombuffer(content, ">u4").sum(dtype=np.uint64))


def _fold(total: int) -> int:
    """Add carries back, so that the sum is the ones' complement of 32 bits."""
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def _encode(value: int) -> str:
    """Give the 16 characters that add `value` to the sum of their unit (FITS 4.0, appendix J)."""
    excluded = {*range(0x3A, 0x41), *range(0x5B, 0x61)}
    characters = np.zeros((4, 4), int)
    for position in range(4):
        byte = (value >> (24 - 8 * position)) & 0xFF
        quotient, remainder = divmod(byte, 4)
        group = [quotient + remainder + 0x30, quotient + 0x30, quotient + 0x30, quotient + 0x30]
        while any(code in excluded for code in group):
            for first in (0, 2):
                if group[first] in excluded or group[first + 1] in excluded:
                    group[first] += 1
                    group[first + 1] -= 1
        characters[:, position] = group
    text = "".join(chr(code) for code in characters.ravel())
    return text[-1] + text[:-1]
