"""Headers from lists of cards, and multi-extension FITS files written one array at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from astropy.io.fits import Card, Header

CardLike = tuple[str, object, str]

BLOCK = 2880  # bytes: FITS records, padded with blanks (headers) or zeros (data)

PRIMARY: tuple[CardLike, ...] = (
    ("SIMPLE", True, "conforms to FITS standard"),
    ("BITPIX", 8, "array data type"),
    ("NAXIS", 0, "number of array dimensions"),
    ("EXTEND", True, ""),
    ("COMMENT", "  FITS (Flexible Image Transport System) format is defined in 'Astronomy", ""),
    ("COMMENT", "  and Astrophysics', volume 376, page 359; bibcode: 2001A&A...376..359H", ""),
)


def image_cards(shape: tuple[int, ...], bitpix: int, unsigned: bool = False) -> list[CardLike]:
    """The cards with which every image extension of `shape` (..., ny, nx) begins."""
    cards: list[CardLike] = [
        ("XTENSION", "IMAGE", "Image extension"),
        ("BITPIX", bitpix, "array data type"),
        ("NAXIS", len(shape), "number of array dimensions"),
        *((f"NAXIS{n}", length, "") for n, length in enumerate(reversed(shape), 1)),
        ("PCOUNT", 0, "number of parameters"),
        ("GCOUNT", 1, "number of groups"),
    ]
    return cards + ([("BSCALE", 1, ""), ("BZERO", 32768, "")] if unsigned else [])


def header(cards: Iterable[CardLike]) -> Header:
    """A FITS header of the cards, in their order."""
    return Header([Card(*card) for card in cards])


def write_mef(
    path: Path, primary: Header, extensions: Iterable[tuple[Header, npt.NDArray[np.generic]]]
) -> Path:
    """Write a MEF file; `extensions` may be a generator, so that one array is in memory at a time.

    Data: float32, int32 and uint8 as they are, uint16 with BZERO 32768. The file appears whole or not at all.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as out:
            out.write(primary.tostring().encode("ascii"))
            for head, data in extensions:
                out.write(head.tostring().encode("ascii"))
                raw = _big_endian(data)
                out.write(raw)
                out.write(bytes(-len(raw) % BLOCK))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _big_endian(data: npt.NDArray[np.generic]) -> bytes:
    if data.dtype == np.uint16:
        data = (data.astype(np.int32) - 32768).astype(np.int16)
    return data.astype(data.dtype.newbyteorder(">"), copy=False).tobytes()


def section(x1: int, x2: int, y1: int, y2: int) -> str:
    """An IRAF section, 1-based, both ends included."""
    return f"[{x1}:{x2},{y1}:{y2}]"


def filled(template: Sequence[Sequence[object]], values: dict[str, object]) -> list[CardLike]:
    """Cards of a template: [keyword, value, comment], or [keyword, comment] whose value `values` must hold.

    A value in `values` wins over one in the template.
    """
    cards = []
    for row in template:
        keyword, comment = str(row[0]), str(row[-1])
        cards.append(
            (keyword, values[keyword] if keyword in values or len(row) == 2 else row[1], comment)
        )
    return cards
