"""What a file or a Frame is, in plain values: descriptors, sky coordinates of arrays, tables."""

from __future__ import annotations

from typing import Any

from gdask.types import Frame


def descriptor(source: Any, name: str, **options: Any) -> Any:
    """Give a descriptor of a file (path) or Frame in plain form.

    Sections are 0-based half-open [x1, x2, y1, y2], wavelengths are in metres, dates and times are
    ISO texts. Where each array has a value they are in a list. A value that is not known is None.
    `gdask.instruments.descriptor` gives dates and times as objects.
    """
    from gdask.instruments import descriptor as value_of

    value = value_of(source, name, **options)
    return value.isoformat() if hasattr(value, "isoformat") else value


def wcs(frame: Frame) -> list[Any]:
    """Give an astropy WCS for each array of a Frame.

    It is the TAN-SIP of the exact geometry, or the plain TAN of a stack. Its pixels are those of
    the Frame: where a Frame has been cut, pixel (0, 0) is the first that is left.
    """
    from astropy.wcs import WCS

    from gdask.io.frames import array_headers, geometries, shape_of
    from gdask.kernels.geometry.wcs import array_wcs

    array_geometries = geometries(frame)
    if array_geometries:
        return [WCS(array_wcs(geometry, shape_of(frame))[0]) for geometry in array_geometries]
    y, x = (
        int(frame.indexes[name][0]) - start
        for name, start in zip(("y", "x"), frame.attrs["file_start"], strict=True)
    )
    plain = []
    for header in array_headers(frame):
        cards = header.copy()
        for keyword, shift in (("CRPIX1", x), ("CRPIX2", y)):
            if shift and isinstance(cards.get(keyword), (int, float)):
                cards[keyword] = cards[keyword] - shift
        plain.append(WCS(cards))
    return plain


def tables(frame: Frame) -> dict[str, Any]:
    """Give the tables of a Frame by name: one for the file, or a list with one for each array.

    They are those of the file from which it was opened (OBJCAT, REFCAT, ASTROM, FRAMES, HISTORY,
    PROVENANCE, REDUCTION ...), replaced by what has been found since. Raises GdaskError where they
    cannot be read, or are still to be computed.
    """
    from gdask.io.tables import source_tables, stored_tables

    return stored_tables(frame) | source_tables(frame)
