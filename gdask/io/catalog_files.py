"""Catalogue files as tables: whole in memory, within bounds, and nothing but the file itself.

A VOTable can name other files and addresses (a STREAM with href, entities); they are not read.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import zlib
from typing import TYPE_CHECKING, Any, NoReturn
from xml.parsers import expat

from gdask.model import GdaskError, clean, late, read_at_most, reason_of

if TYPE_CHECKING:
    from astropy import table as astable
else:
    astable = late("astropy.table")

_FORMATS = {
    ".fits": "fits",
    ".fit": "fits",
    ".ecsv": "ascii.ecsv",
    ".xml": "votable",
    ".vot": "votable",
    ".csv": "ascii.csv",
}
#: Bounds: bytes after unpacking, of a form that is tables of numbers and of one that is text (which
#: takes ten times as much to read), and lines of text. A million stars of Gaia are 200 MB of text.
MAX_BINARY_BYTES, MAX_TEXT_BYTES, MAX_LINES = 1 << 30, 1 << 28, 3_000_000


def read_table(path: str) -> astable.Table:
    """Read the table of a catalogue file; its form follows from the ending, `.gz` may follow it.

    Raises GdaskError where it is missing, of no known form, too large, damaged, or where it refers
    to something else to be read.
    """
    kind = form_of(path)
    content = _content(path, MAX_BINARY_BYTES if kind == "fits" else MAX_TEXT_BYTES)
    if kind != "fits" and content.count(b"\n") > MAX_LINES:
        raise GdaskError(f"{path}: more than {MAX_LINES} lines; cut it to the field of the frames")
    if kind == "votable":
        _check_refers_to_nothing(path, content)
    try:
        return astable.Table.read(io.BytesIO(content), format=kind)
    except Exception as error:
        raise GdaskError(f"{path}: cannot be read as {kind}: {clean(error)}") from error


def form_of(path: str) -> str:
    """Give the form of a catalogue file, as astropy names it, without a look into the file.

    Raises GdaskError where it is missing or of no known form.
    """
    if not os.path.isfile(path):
        what = "not a regular file" if os.path.exists(path) else "no such catalogue file"
        raise GdaskError(f"{path}: {what}")
    kind = _FORMATS.get(os.path.splitext(path.removesuffix(".gz"))[1].lower())
    if kind is None:
        raise GdaskError(
            f"{path}: not a known catalogue form; expected one of {', '.join(_FORMATS)}"
        )
    return kind


def _content(path: str, most: int) -> bytes:
    """Read a file, unpacked; GdaskError where it holds more than `most` bytes or cannot be read."""
    try:
        with open(path, "rb") as raw:
            if not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
                raise GdaskError(f"{path}: not a regular file; a catalogue was expected")
            is_packed = raw.peek(2)[:2] == b"\x1f\x8b"
            with gzip.open(raw) if is_packed else raw as stream:
                content = read_at_most(stream, most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise GdaskError(
            f"{path}: cannot be read ({reason_of(error)}); copy the file again"
        ) from error
    if len(content) > most:
        unpacked = " unpacked" if is_packed else ""
        raise GdaskError(
            f"{path}: more than {most >> 20} MiB{unpacked}; cut it to the field of the frames"
        )
    return content


def _check_refers_to_nothing(path: str, content: bytes) -> None:
    """Raise GdaskError where an XML text names other files or addresses, or declares entities."""

    def refuse(what: str) -> NoReturn:
        raise GdaskError(
            f"{path}: {clean(what)[:200]}: gdask reads nothing that a catalogue names; give a "
            "VOTable with its data inside (TABLEDATA, BINARY)"
        )

    def element(name: str, attributes: dict[str, Any]) -> None:
        local = name.rpartition(":")[2].upper()
        for key, value in attributes.items():
            if local in ("STREAM", "INCLUDE") and key.rpartition(":")[2].lower() == "href":
                refuse(f"its {local} refers to {value}")

    parser = expat.ParserCreate()
    parser.StartElementHandler = element
    parser.EntityDeclHandler = lambda *given: refuse(f"it declares the entity {given[0]}")
    parser.ExternalEntityRefHandler = lambda *given: refuse(f"it refers to {given[2]}")
    parser.SkippedEntityHandler = lambda name, _: refuse(f"it refers to the entity {name}")
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise GdaskError(f"{path}: cannot be read as votable: {error}") from error
