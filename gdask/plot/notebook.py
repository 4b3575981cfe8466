"""What a notebook displays of a file or Frame: thumbnail, shape, chunks, facts.

`gdask.show(x)` as the last line of a cell displays it. A Frame is an xarray.Dataset, whose own
display gdask leaves alone; `%load_ext gdask.plot.notebook` makes a notebook display Frames so, and
all other datasets as before.
"""

from __future__ import annotations

import base64
import html
import os
from typing import Any

from gdask.headers.numbers import NUMBERS, read_numbers
from gdask.io.frames import pixel_variables, primary_header
from gdask.io.lazy_arrays import is_stored, source_of
from gdask.model import GdaskError, clean
from gdask.plot.planes import frame_of
from gdask.plot.raster import png_bytes
from gdask.plot.show import Look, draw
from gdask.types import Frame

#: Longer side of a thumbnail in pixels.
THUMBNAIL = 320
#: Keywords of the primary header that are facts, with their names.
_FACTS = (
    ("object", "OBJECT"),
    ("instrument", "INSTRUME"),
    ("filter", "FILTER1"),
    ("date", "DATE-OBS"),
    ("exposure (s)", "EXPTIME"),
)
_UNITS = {number.name: number.unit for number in NUMBERS}


class Shown:
    """A file or Frame as a notebook displays it; `_repr_html_` makes the page when it is asked."""

    def __init__(self, product: Frame | str | os.PathLike[str]) -> None:
        self.frame = frame_of(product)

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in facts(self.frame))

    def _repr_html_(self) -> str:
        return frame_html(self.frame)


def show(product: Frame | str | os.PathLike[str]) -> Shown:
    """Give what a notebook displays of a file or Frame: picture, shape, chunks, facts, numbers.

    Of the pixels, only those that a file holds are read, for the thumbnail; nothing is computed.
    Raises GdaskError where a file cannot be read.
    """
    return Shown(product)


def facts(frame: Frame) -> list[tuple[str, str]]:
    """Give names and values of what a Frame is; numbers with their units."""
    header, sizes = primary_header(frame), frame.sizes
    rows = [("file", str(frame.attrs.get("name", "")))]
    rows += [(name, str(header[key])) for name, key in _FACTS if header.get(key) is not None]
    rows.append(("arrays, y, x", f"{sizes['detector']} x {sizes['y']} x {sizes['x']}"))
    for name in pixel_variables(frame):
        held = frame.variables[name]
        chunks = held.chunks
        text = "in memory" if chunks is None else "chunks of " + " x ".join(map(_sizes, chunks))
        rows.append((name, f"{held.dtype}, {held.nbytes / 1e6:.1f} MB, {text}"))
    numbers = read_numbers(header)
    rows += [
        (name.replace("_", " "), f"{value} {_UNITS[name]}".strip())
        for name, value in numbers.items()
        if name in _UNITS
    ]
    return [(name, clean(value)) for name, value in rows]


def _sizes(chunks: tuple[int, ...]) -> str:
    return str(chunks[0]) if len(set(chunks)) == 1 else f"{max(chunks)} at most"


def frame_html(frame: Frame) -> str:
    """Give the page of a Frame: a picture beside a table. It needs no other file."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in facts(frame)
    )
    return (
        "<div style='display:flex;flex-wrap:wrap;gap:1em;align-items:flex-start'>"
        f"{_thumbnail(frame)}<table>{rows}</table></div>"
    )


def _thumbnail(frame: Frame) -> str:
    name = html.escape(clean(frame.attrs.get("name", "frame")), quote=True)
    held = [frame.variables[one] for one in pixel_variables(frame)]
    if any(one.chunks is not None and not is_stored(source_of(one.data)) for one in held):
        return "<p>The pixels are still to be computed: no picture.</p>"
    try:
        picture = draw(frame, Look(pixels=THUMBNAIL))
    except GdaskError as error:
        return f"<p>{html.escape(clean(error))}</p>"
    text = base64.b64encode(png_bytes(picture)).decode()
    return f"<img alt='{name}' src='data:image/png;base64,{text}'>"


def load_ipython_extension(shell: Any) -> None:
    """Let a notebook display Frames with their picture (`%load_ext gdask.plot.notebook`)."""
    import xarray as xr

    shell.display_formatter.formatters["text/html"].for_type(xr.Dataset, _html_of)


def unload_ipython_extension(shell: Any) -> None:
    """Take back what `load_ipython_extension` has changed."""
    import xarray as xr

    shell.display_formatter.formatters["text/html"].pop(xr.Dataset, None)


def _html_of(dataset: Any) -> str:
    is_one = "phu" in dataset.attrs and bool(pixel_variables(dataset))
    return frame_html(dataset) if is_one else dataset._repr_html_()
