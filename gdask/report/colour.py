"""A target in colour: the stacks of three filters, the longest wavelength in red."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gdask.io.whole import write_whole
from gdask.model import GdaskError
from gdask.types import Frame, Image

Facts = dict[str, Any]
#: Pixels of the longer side.
_PIXELS = 1000


def stacks_in_colour(target: Facts, products: Mapping[str, Facts]) -> list[Facts]:
    """Give the stacks for red, green and blue: the longest, the middle, the shortest wavelength.

    Of each filter the stack of all nights, else the first; [] where there are no three.
    """
    first = [products[row["products"][0]] for row in target["filters"]]
    known = [one for one in first if one.get("wavelength")]
    known.sort(key=lambda one: -one["wavelength"])
    if len({one["wavelength"] for one in known}) < 3:
        return []
    return [known[0], known[len(known) // 2], known[-1]]


def draw_colour(stacks: Sequence[Facts], root: Path, folder: Path) -> Facts | None:
    """Give the picture of three stacks; drawn where these, as they are now, were not yet drawn.

    root: folder of results. folder: where drawn pictures are kept. None where it cannot be made.
    """
    paths = [root / one["path"] for one in stacks]
    try:
        times = [path.stat().st_mtime_ns for path in paths]
        names = [one["path"] for one in stacks]
        key = hashlib.sha256(repr((names, times)).encode()).hexdigest()[:16]
        file = folder / f"{key}.png"
        if not file.exists():
            _draw(paths, file)
        from PIL import Image as pil

        with pil.open(file) as picture:
            width, height = picture.size
    except (GdaskError, OSError, ImportError, ValueError, LookupError):
        return None
    filters = ", ".join(
        f"{name} {one['filter']}"
        for name, one in zip(("red", "green", "blue"), stacks, strict=True)
    )
    alt = f"{stacks[0]['target']} in colour, each filter with an asinh scale of its own: {filters}."
    return {
        "key": "colour", "title": f"In colour: {filters}", "alt": alt, "width": width,
        "height": height, "overlay_of": "", "source": file,
    }  # fmt: skip


def _draw(paths: Sequence[Path], file: Path) -> None:
    """Draw three stacks on the pixels of the first, and keep the picture."""
    from PIL import Image as pil

    from gdask.plot import raster
    from gdask.plot.planes import frame_of, read_planes, step_for

    frames = [frame_of(os.fspath(path)) for path in paths]
    step = step_for(frames[0], _PIXELS)
    levels = []
    for frame in frames:
        values = _on_first(read_planes(frame, step)[0].mean, frame, frames[0], step)
        grey = raster.grey_levels(values, raster.limits_of(values)).astype(np.float32)
        levels.append(np.clip((grey - 1) / (raster.LEVELS - 1), 0, 1) * 255)
    picture = pil.fromarray(np.stack(levels, axis=-1)[::-1].astype(np.uint8), "RGB")
    write_whole(file, raster.png_bytes(picture), durable=False)


def _on_first(values: Image, frame: Frame, first: Frame, step: int) -> Image:
    """Give a picture of a stack, of one pixel for `step` x `step`, on the pixels of the first's."""
    from gdask.plot.layout import celestial

    if frame is first:
        return values
    systems, wanted = celestial(frame), celestial(first)
    if not systems or not wanted:
        raise GdaskError("no WCS that tells where the pixels are")
    shape = (-(-first.sizes["y"] // step), -(-first.sizes["x"] // step))
    rows, columns = np.indices(shape, dtype=float)
    middle = (step - 1) / 2
    sky = wanted[0].pixel_to_world_values(columns * step + middle, rows * step + middle)
    x, y = systems[0].world_to_pixel_values(*sky)
    column, row = (np.rint((place - middle) / step).astype(int) for place in (x, y))
    inside = (row >= 0) & (row < values.shape[0]) & (column >= 0) & (column < values.shape[1])
    found = np.full(shape, np.nan, np.float32)
    found[inside] = values[row[inside], column[inside]]
    return found
