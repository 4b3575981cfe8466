"""CHECKSUM and DATASUM of FITS files, set in place without rewriting them (FITS 4.0 standard, section 4.4.2.7)."""

from __future__ import annotations

import io
import os
from typing import BinaryIO

import numpy as np
from astropy.io import fits

from gdask.headers import RECORD_BYTES, each_unit, open_stream


def add_checksums(file: io.BufferedRandom) -> None:
    """Set CHECKSUM and DATASUM of every HDU of an open FITS file in place (FITS 4.0 standard, section 4.4.2.7)."""
    file.flush()
    with fits.open(file.name, memmap=False, lazy_load_hdus=False) as hdus:
        blank = [hdu.fileinfo() for hdu in hdus if hdu.header.get("CHECKSUM") == "0" * 16]
    for info in blank:
        _checksum_hdu(
            file.fileno(), info["hdrLoc"], info["datLoc"], info["datLoc"] + info["datSpan"]
        )


def wrong_sums(path: str) -> list[tuple[int, str]]:
    """(number of the extension, what is wrong) of each unit whose CHECKSUM or DATASUM, where it has them, does not hold."""
    wrong = []
    with open_stream(path) as stream:
        for unit in each_unit(stream, path):
            wanted = [unit.header.get(name) for name in ("DATASUM", "CHECKSUM")]
            if wanted == [None, None]:
                continue
            total = _sum_stream(stream, unit.size + -unit.size % RECORD_BYTES)
            if wanted[0] is not None and str(wanted[0]).strip() != str(total):
                wrong.append(
                    (
                        unit.number,
                        f"DATASUM is {wanted[0]}, of the data that are there {total}; copy the file again",
                    )
                )
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


def _sum_stream(stream: BinaryIO, size: int) -> int:
    total, step = 0, 1 << 22
    while size > 0:
        piece = stream.read(min(step, size))
        if not piece:
            break
        total = _fold(total + _sum_words(piece.ljust(-(-len(piece) // 4) * 4, b"\0")))
        size -= len(piece)
    return total


def _checksum_hdu(handle: int, start_at: int, data_at: int, end: int) -> None:
    header = bytearray(os.pread(handle, data_at - start_at, start_at))
    datasum = _sum_file(handle, data_at, end)
    _set_card(header, b"DATASUM ", str(datasum))
    _set_card(header, b"CHECKSUM", "0" * 16)
    total = _fold(_sum_words(bytes(header)) + datasum)
    _set_card(header, b"CHECKSUM", _encode(0xFFFFFFFF - total))
    os.pwrite(handle, bytes(header), start_at)


def _set_card(header: bytearray, keyword: bytes, value: str) -> None:
    for at in range(0, len(header), 80):
        if header[at : at + 8] == keyword:
            comment = bytes(header[at + 10 : at + 80]).partition(b"/")[2]
            card = keyword + b"= " + f"'{value:<8}'".encode().ljust(20) + b" /" + comment
            header[at : at + 80] = card.ljust(80)[:80]
            return


def _sum_file(handle: int, begin: int, end: int) -> int:
    total, step = 0, 1 << 24
    for at in range(begin, end, step):
        total = _fold(total + _sum_words(os.pread(handle, min(step, end - at), at)))
    return total


def _sum_words(content: bytes) -> int:
    return int(np.frombuffer(content, ">u4").sum(dtype=np.uint64))


def _fold(total: int) -> int:
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def _encode(value: int) -> str:
    """16 characters that add `value` to the sum of their HDU (FITS standard, appendix J)."""
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
