"""What pictures of a product are made from, and what one is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from gdask.plot.layout import Layout
from gdask.plot.planes import Planes
from gdask.types import Frame


class Picture(NamedTuple):
    """A picture of a product.

    Attributes
    ----------
    key
        What it shows: preview, dq, depth, depth_map, background, noise, fwhm, residuals, frames,
        histogram, ratio.
    file
        Name of the PNG in the folder.
    title
        A few words.
    alt
        A sentence with numbers that tells what is seen.
    width, height
        Pixels.
    overlay_of
        Key of the picture of the same size over which it lies, itself transparent; '' for others.
    """

    key: str
    file: str
    title: str
    alt: str
    width: int
    height: int
    overlay_of: str = ""


class Material(NamedTuple):
    """What pictures of a product are made from."""

    frame: Frame
    kind: str
    planes: list[Planes]
    layout: Layout
    tables: dict[str, Any]
    numbers: dict[str, Any]
    predecessor: Path | None


#: A picture and the bytes of its PNG.
Made = tuple[Picture, bytes]


class Missing(Exception):
    """What a picture needs is not in the product; the text says what."""
