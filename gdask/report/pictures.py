"""Pictures of products: drawn where they are missing, copied to the report where they changed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gdask.campaign.showing import PICTURES, are_fresh, picture_folder
from gdask.model import GdaskError

Facts = dict[str, Any]
#: Pixels of the longer side of a small picture on pages that show many.
_THUMBNAIL = 320


def draw_all(products: Sequence[str]) -> None:
    """Draw the pictures of these products into their folders; what fails is said at the end.

    Ends the process with 1 where a picture could not be made.
    """
    trouble = [text for path in products if (text := draw_one(Path(path)))]
    if trouble:
        print("; ".join(trouble), file=sys.stderr)
        sys.exit(1)


def draw_one(
    product: Path, folder: Path | None = None, raw: bool = False, predecessor: Path | None = None
) -> str:
    """Draw the pictures of a product, or of a raw file; gives what went wrong, or ''.

    predecessor: of a flat, which is shown over it, too.
    """
    folder = folder or picture_folder(product)
    try:
        from gdask.plot.product import make_pictures

        make_pictures(product, folder, raw=raw, predecessor=predecessor)
    except (GdaskError, OSError, ImportError, ValueError, TypeError, LookupError) as error:
        return f"{product.name}: no pictures ({type(error).__name__}: {error})"
    return ""


def shows_ratio(folder: Path, predecessor: Path) -> bool:
    """Tell whether pictures of a flat show it over this predecessor, as that is now."""
    if not are_fresh(predecessor, folder):
        return False
    from gdask.plot.product import read_notes, read_pictures

    said = [one.alt for one in read_pictures(folder) if one.key == "ratio"]
    said += [note for note in read_notes(folder) if note.startswith("ratio")]
    return any(predecessor.name in text for text in said)


def described(product: Path | None, folder: Path, key: str) -> list[Facts]:
    """Give the pictures of a product as a report has them; [] where they are not of it.

    product: None for pictures of a raw file, which does not change. key: name of the folder below
    the report's folder of pictures. source: the file to copy.
    """
    from gdask.plot.product import read_pictures

    if product is not None and not are_fresh(product, folder):
        return []
    try:
        found = read_pictures(folder)
    except (GdaskError, OSError, ValueError, TypeError, KeyError):
        return []
    return [
        one._asdict()
        | {"file": f"{PICTURES}/{key}/{os.path.basename(one.file)}", "source": folder / one.file}
        for one in found
        if (folder / one.file).is_file()
    ]


def thumbnail(source: Path, width: int, height: int) -> tuple[bytes, int, int]:
    """Give a small PNG of a picture, and its width and height in pixels."""
    import io

    from PIL import Image

    scale = min(1.0, _THUMBNAIL / max(width, height, 1))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    with Image.open(source) as picture:
        small = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "PNG", optimize=True)
    return stream.getvalue(), *size
