"""Pictures of pixels as PNG: grey levels, overlays, arrows, scale bar; made without matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image as pil
from PIL import ImageDraw, ImageFont

from gdask.model import DQ
from gdask.plot.layout import Layout
from gdask.types import Arcsec, Flags, Image

#: Grey levels: 0 is "no data" (blue-grey), 1 to LEVELS the values from `low` to `high`. 64 levels
#: of a noisy sky look as 255 do and take a quarter less room.
LEVELS, NO_DATA_COLOUR = 64, (38, 52, 71)
#: Colours that are not greys, after the levels of the palette: marks, and their shadow.
_MARK, _SHADOW = LEVELS + 1, LEVELS + 2
MARK_COLOUR = (255, 214, 102)
#: `low` and `high` of a picture: sky minus LOW_SIGMA, and the value that all but this share of the
#: pixels are below, at least HIGH_SIGMA above the sky; asinh is linear up to SOFT_SIGMA.
LOW_SIGMA, HIGH_SIGMA, HIGH_SHARE, SOFT_SIGMA = 3.0, 20.0, 0.002, 2.0
#: Bits of DQ, in the order in which a block of several shows them, with the colours of Okabe and
#: Ito (Color Universal Design, 2008), which the colour-blind tell apart, and their opacity.
DQ_COLOURS: tuple[tuple[DQ, str, tuple[int, int, int, int]], ...] = (
    (DQ.SATURATED, "saturated", (204, 121, 167, 255)),
    (DQ.BAD_PIXEL, "bad pixel", (213, 94, 0, 255)),
    (DQ.COSMIC_RAY, "cosmic ray", (240, 228, 66, 255)),
    (DQ.NON_LINEAR, "non-linear", (86, 180, 233, 255)),
    (DQ.UNILLUMINATED, "not lit", (0, 114, 178, 150)),
    (DQ.OVERLAP, "overlap", (0, 158, 115, 150)),
    (DQ.NO_DATA, "no data", (120, 120, 120, 150)),
)
#: Those colours in words, in the same order.
DQ_WORDS = ("purple", "orange", "yellow", "light blue", "blue", "green", "grey")
#: Values, about, by which a grey scale is chosen.
_SAMPLE = 500_000
#: Rows of a picture whose levels are found at a time, in float64.
_ROWS = 128
#: Lengths that a scale bar may have, in arcsec.
_BARS = tuple(m * 10.0**e for e in range(-3, 5) for m in (1, 2, 5))


class Limits(NamedTuple):
    """Grey scale of a picture: value of the first and last level, and where asinh bends.

    low, high, soft: in the unit of the pixels; soft is the distance from `low` up to which the
    scale is about linear.
    """

    low: float
    high: float
    soft: float


def limits_of(values: Image, *, linear: bool = False) -> Limits:
    """Choose the grey scale of a picture from its values, whatever shape; NaN are left out.

    linear: of a flat or dark, all but 0.5 % of the pixels at either end.
    """
    found = values[np.isfinite(values)]
    if not len(found):
        return Limits(0.0, 1.0, math.inf)
    found = found[:: max(1, len(found) // _SAMPLE)].astype(float)
    if linear:
        low, high = (float(value) for value in np.percentile(found, (0.5, 99.5)))
        return Limits(low, high if high > low else low + max(abs(low), 1.0), math.inf)
    level = float(np.median(found))
    sigma = 1.4826 * float(np.median(np.abs(found - level)))
    if not sigma > 0:
        sigma = float(np.std(found)) or max(abs(level), 1.0)
    high = float(np.quantile(found, 1 - HIGH_SHARE))
    low = level - LOW_SIGMA * sigma
    return Limits(low, max(high, level + HIGH_SIGMA * sigma), SOFT_SIGMA * sigma)


def grey_levels(values: Image, limits: Limits) -> npt.NDArray[np.uint8]:
    """Give the level of each pixel: 1 to LEVELS from low to high, 0 where it is not finite.

    level = 1 + (LEVELS - 1) asinh((value - low) / soft) / asinh((high - low) / soft), rounded;
    linear where `soft` is infinite.
    """
    levels = np.zeros(values.shape, np.uint8)
    for top in range(0, len(values), _ROWS):
        rows = values[top : top + _ROWS].astype(float)
        known = np.isfinite(rows)
        part = np.clip((rows[known] - limits.low) / (limits.high - limits.low), 0, 1)
        if math.isfinite(limits.soft):
            steepness = (limits.high - limits.low) / limits.soft
            part = np.arcsinh(part * steepness) / np.arcsinh(steepness)
        levels[top : top + _ROWS][known] = np.rint(1 + (LEVELS - 1) * part)
    return levels


def grey_picture(levels: npt.NDArray[np.uint8]) -> pil.Image:
    """Make a picture of grey levels, row 0 at the bottom."""
    picture = pil.fromarray(np.ascontiguousarray(levels[::-1]))
    greys = [round(255 * level / (LEVELS - 1)) for level in range(LEVELS)]
    palette = [*NO_DATA_COLOUR, *(grey for grey in greys for _ in range(3))]
    picture.putpalette([*palette, *MARK_COLOUR, 0, 0, 0])
    return picture


def flag_levels(flags: Flags) -> npt.NDArray[np.uint8]:
    """Give for each pixel the number of its colour in DQ_COLOURS, from 1; 0 where it has no bit."""
    levels = np.zeros(flags.shape, np.uint8)
    for number, (bit, *_) in reversed(list(enumerate(DQ_COLOURS, 1))):
        levels[(flags & int(bit)) != 0] = number
    return levels


def overlay(levels: npt.NDArray[np.uint8], colours: list[tuple[int, int, int, int]]) -> pil.Image:
    """Make a transparent picture: level 0 is clear, level n has colours[n - 1]."""
    picture = pil.fromarray(np.ascontiguousarray(levels[::-1]))
    picture.putpalette([0, 0, 0, *(part for colour in colours for part in colour[:3])])
    picture.info["transparency"] = bytes([0, *(colour[3] for colour in colours)])
    return picture


def png_bytes(picture: pil.Image) -> bytes:
    """Give the bytes of a PNG: always the same for the same picture, no dates, no versions."""
    stream = io.BytesIO()
    kept = picture.info.get("transparency")
    options: dict[str, Any] = {} if kept is None else {"transparency": kept}
    picture.save(stream, "PNG", compress_level=6, **options)
    return stream.getvalue()


# Marks -----------------------------------------------------------------------------------------


def mark_sky(picture: pil.Image, layout: Layout) -> None:
    """Draw a scale bar, and arrows to North and East, as far as the layout knows them."""
    size = min(picture.size)
    if size < 100:
        return
    draw, unit = ImageDraw.Draw(picture), max(10, size // 60)
    font = ImageFont.load_default(1.6 * unit)
    if layout.scale:
        _draw_bar(draw, picture.size, layout.scale, unit, font)
    if layout.north and layout.east:
        _draw_compass(draw, picture.size, layout.north, layout.east, unit, font)


def bar_length(width: int, scale: Arcsec) -> Arcsec:
    """Give the length of the scale bar: the longest of 1, 2, 5 ... that is a quarter of the width.

    width: pixels of the picture; scale: arcsec of one.
    """
    fitting = [length for length in _BARS if length / scale <= width / 4]
    return fitting[-1] if fitting else _BARS[0]


def bar_text(length: Arcsec) -> str:
    """Name a length as the sky's: seconds or minutes of arc."""
    return f"{length / 60:g}'" if length >= 60 and length % 60 == 0 else f'{length:g}"'


def _draw_bar(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], scale: Arcsec, unit: int, font: Any
) -> None:
    length = bar_length(size[0], scale)
    x, y = 2 * unit, size[1] - 2 * unit
    end, thick = x + round(length / scale), max(2, unit // 5)
    mark, shadow = _inks(draw)
    draw.rectangle((x - 1, y - thick - 1, end, y + 1), fill=shadow)
    draw.rectangle((x, y - thick, end - 1, y), fill=mark)
    _draw_text(draw, (x, y - thick - 2 * unit), bar_text(length), font)


def _draw_compass(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    north: tuple[float, float],
    east: tuple[float, float],
    unit: int,
    font: Any,
) -> None:
    """Draw two arrows from one point near the lower right corner."""
    x, y = size[0] - 8 * unit, size[1] - 8 * unit
    for name, (dx, dy) in (("N", north), ("E", east)):
        tip = x + 5 * unit * dx, y - 5 * unit * dy
        wings = []
        for turn in (2.6, -2.6):
            s, c = math.sin(turn), math.cos(turn)
            wings.append((tip[0] + unit * (c * dx - s * dy), tip[1] - unit * (s * dx + c * dy)))
        lines = [((x, y), tip), (tip, wings[0]), (tip, wings[1])]
        for colour, width in zip(_inks(draw)[::-1], (5, 2), strict=True):
            for line in lines:
                draw.line(line, fill=colour, width=max(2, width * unit // 14))
        place = x + 6.4 * unit * dx, y - 6.4 * unit * dy
        _draw_text(draw, place, name, font, anchor="mm")


def _draw_text(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, font: Any, anchor: str = "la"
) -> None:
    """Write a text with a shadow. A picture of levels has no grey between two inks: there the
    letters are drawn smoothly, and what is half covered is inked."""
    box = draw.textbbox(place, text, font=font, anchor=anchor, stroke_width=2)
    left, top, right, bottom = (round(edge) for edge in box)
    spot = place[0] - left + 2, place[1] - top + 2
    for width, ink in ((2, _inks(draw)[1]), (0, _inks(draw)[0])):
        layer = pil.new("L", (right - left + 5, bottom - top + 5))
        ImageDraw.Draw(layer).text(
            spot, text, fill=255, font=font, anchor=anchor, stroke_width=width, stroke_fill=255
        )
        mask = (
            layer.point([255 * (level > 110) for level in range(256)])
            if draw.mode == "P"
            else layer
        )
        draw.bitmap((left - 2, top - 2), mask, fill=ink)


def _inks(draw: ImageDraw.ImageDraw) -> tuple[Any, Any]:
    """Give the colours of marks and of their shadow, as the picture's kind takes them."""
    return (_MARK, _SHADOW) if draw.mode == "P" else (MARK_COLOUR, (0, 0, 0))


def draw_rings(
    picture: pil.Image, places: npt.NDArray[np.float64], colour: tuple[int, int, int]
) -> None:
    """Draw rings around places (n, 2: x, y in pixels, y upward) of an RGB picture."""
    draw, radius = ImageDraw.Draw(picture), max(3, min(picture.size) // 110)
    for x, y in places.tolist():
        middle = x, picture.size[1] - 1 - y
        box = (middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius)
        draw.ellipse(box, outline=colour)


def on_canvas(picture: pil.Image, size: tuple[int, int], name: str) -> pil.Image:
    """Put a picture on the lower left of a larger one, with a name above."""
    canvas = pil.new("RGB", size, NO_DATA_COLOUR)
    canvas.paste(picture.convert("RGB"), (0, size[1] - picture.size[1]))
    unit = max(8, min(size) // 60)
    font = ImageFont.load_default(1.6 * unit)
    _draw_text(ImageDraw.Draw(canvas), (unit, unit), name, font)
    colours = canvas.quantize(256, method=pil.Quantize.FASTOCTREE, dither=pil.Dither.NONE)
    return colours


def dq_sentence(counts: Mapping[int, int]) -> str:
    """Tell how many pixels have each bit of DQ, the most first, and in which colour."""
    names = [
        f"{name} ({colour})" for (_, name, _), colour in zip(DQ_COLOURS, DQ_WORDS, strict=True)
    ]
    numbers = [counts.get(int(bit), 0) for bit, _, _ in DQ_COLOURS]
    found = list(zip(numbers, names, strict=True))
    texts = [f"{number} as {name}" for number, name in sorted(found, reverse=True) if number]
    return ", ".join(texts) if texts else "no pixel is flagged"
