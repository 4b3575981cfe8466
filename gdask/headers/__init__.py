"""Headers of FITS files, read without the pixels."""

from gdask.headers.header import (
    CARD_LENGTH,
    Header,
    Headers,
    HeaderText,
    frame_headers,
    parse_header,
)
from gdask.headers.reading import (
    RECORD_BYTES,
    FileUnits,
    Unit,
    each_unit,
    image_headers,
    is_tiled,
    open_hdus,
    open_stream,
    read_headers,
    read_units,
    repair_card,
)

__all__ = [
    "CARD_LENGTH",
    "RECORD_BYTES",
    "FileUnits",
    "Header",
    "HeaderText",
    "Headers",
    "Unit",
    "each_unit",
    "frame_headers",
    "image_headers",
    "is_tiled",
    "open_hdus",
    "open_stream",
    "parse_header",
    "read_headers",
    "read_units",
    "repair_card",
]
