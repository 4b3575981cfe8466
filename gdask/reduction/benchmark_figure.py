"""A benchmark as a picture: seconds of each command by phase, and efficiency by workers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

#: Pixels.
WIDTH, MARGIN, BAR, GAP, NAMES, FIGURES = 1100, 24, 26, 14, 120, 300
INK, FAINT, RULE = (30, 30, 30), (190, 190, 190), (200, 30, 30)
#: Colours of the phases, in order; what is outside of them is FAINT.
PHASES = ((31, 92, 153), (78, 141, 196), (133, 182, 221), (222, 152, 68), (176, 98, 36))


def figure(result: Mapping[str, Any]) -> bytes:
    """Give the picture of a benchmark as the bytes of a PNG."""
    from PIL import Image, ImageDraw

    most, about = result["summary"][-1], result["about"]
    rows = most["rows"][:-1]
    efficiency = result["summary"] if len(result["summary"]) > 1 else ()
    lines = len(rows) + (len(efficiency) + 2 if efficiency else 0)
    height = 2 * MARGIN + 96 + lines * (BAR + GAP)
    image = Image.new("RGB", (WIDTH, height), "white")
    draw = ImageDraw.Draw(image)
    title = (
        f"gdask {about['versions']['gdask']}, {about['night']['instrument']}, "
        f"{about['night']['files']} raw files, {most['workers']} {about['kind']}"
    )
    _text(draw, MARGIN, MARGIN, title, 20)
    below = _legend(draw, MARGIN + 34, max(len(row["phases"]) - 1 for row in rows))
    below = _commands(draw, below, rows)
    if efficiency:
        _efficiencies(draw, below + GAP, efficiency, about["kind"])
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _legend(draw: Any, top: int, phases: int) -> int:
    """Draw what the colours mean; give the place below."""
    x = MARGIN
    for number in range(phases):
        draw.rectangle((x, top + 2, x + 14, top + 16), fill=PHASES[number % len(PHASES)])
        x = _text(draw, x + 20, top, f"phase {number + 1}", 14) + 16
    draw.rectangle((x, top + 2, x + 14, top + 16), fill=FAINT)
    x = _text(draw, x + 20, top, "outside phases", 14) + 16
    draw.line((x, top, x, top + 18), fill=RULE, width=3)
    _text(draw, x + 8, top, "floor: the same bytes read and written", 14)
    return top + 34


def _commands(draw: Any, top: int, rows: Sequence[Mapping[str, Any]]) -> int:
    """Draw a bar for each command; give the place below."""
    longest = max(row["seconds"]["median"] for row in rows)
    scale = (WIDTH - 2 * MARGIN - NAMES - FIGURES) / longest
    for row in rows:
        _text(draw, MARGIN, top + 4, row["name"], 16)
        x = start = MARGIN + NAMES
        for number, phase in enumerate(row["phases"]):
            colour = PHASES[number % len(PHASES)] if "user" in phase else FAINT
            end = x + max(phase["seconds"], 0.0) * scale
            draw.rectangle((x, top, end, top + BAR), fill=colour)
            x = end
        if row["floor"]:
            floor = start + row["floor"] * scale
            draw.line((floor, top - 3, floor, top + BAR + 3), fill=RULE, width=3)
        said = f"{row['seconds']['median']:.1f} s, {row['frames_per_minute']:.0f} frames/min, "
        _text(draw, x + 10, top + 4, f"{said}{row['raw_bytes_per_second'] / 1e6:.0f} MB/s", 16)
        top += BAR + GAP
    return top


def _efficiencies(draw: Any, top: int, summary: Sequence[Mapping[str, Any]], kind: str) -> None:
    """Draw a bar for each number of workers: the share of the fewest ones' speed that is kept."""
    _text(draw, MARGIN, top, f"efficiency of all commands, by number of {kind}", 16)
    top += BAR + GAP
    width = WIDTH - 2 * MARGIN - NAMES - FIGURES
    for one in summary:
        row = one["rows"][-1]
        _text(draw, MARGIN, top + 4, f"{one['workers']}", 16)
        x = MARGIN + NAMES
        end = x + min(row["efficiency"], 1.2) * width / 1.2
        draw.rectangle((x, top, end, top + BAR), fill=PHASES[0])
        said = f"{row['efficiency']:.2f} ({row['seconds']['median']:.1f} s)"
        _text(draw, end + 10, top + 4, said, 16)
        top += BAR + GAP
    ideal = MARGIN + NAMES + width / 1.2
    bottom = top - GAP
    draw.line((ideal, bottom - len(summary) * (BAR + GAP) + GAP, ideal, bottom), fill=RULE, width=2)


def _text(draw: Any, x: float, y: float, text: str, size: int) -> int:
    """Write a text; give the place to its right."""
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    draw.text((x, y), text, fill=INK, font=font)
    return int(draw.textbbox((x, y), text, font=font)[2])
