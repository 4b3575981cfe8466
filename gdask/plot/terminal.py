"""Pictures in a terminal that can show them: the protocols of kitty, iTerm2 and sixel."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image as pil

#: Bytes of text in one escape sequence of kitty (its protocol's limit).
KITTY_CHUNK = 4096
#: Colours of a sixel picture.
SIXEL_COLOURS = 64
#: Terminals that understand sixel, by the beginning of TERM.
_SIXEL_TERMS = ("foot", "mlterm", "yaft", "contour")


def protocol(environment: Mapping[str, str], stream: Any) -> str:
    """Name the protocol with which a terminal shows pictures: kitty, iterm2, sixel; '' if none.

    Told by the environment alone, and only for a stream that is a terminal; never inside tmux or
    screen, which swallow pictures.
    """
    if not stream.isatty() or "TMUX" in environment or "STY" in environment:
        return ""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if term.startswith(("xterm-kitty", "xterm-ghostty")) or "KITTY_WINDOW_ID" in environment:
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    return "sixel" if term.startswith(_SIXEL_TERMS) or "sixel" in term else ""


def escape(picture: pil.Image, name: str) -> str:
    """Give the text that shows a picture in a terminal of this protocol, with a line's end."""
    if name == "sixel":
        return sixel_text(picture) + "\n"
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    text = base64.b64encode(stream.getvalue()).decode()
    if name == "iterm2":
        size = len(stream.getvalue())
        return f"\x1b]1337;File=inline=1;size={size};preserveAspectRatio=1:{text}\x07\n"
    parts = [text[first : first + KITTY_CHUNK] for first in range(0, len(text), KITTY_CHUNK)]
    sequences = []
    for number, part in enumerate(parts):
        first, more = "a=T,f=100," if number == 0 else "", int(number < len(parts) - 1)
        sequences.append(f"\x1b_G{first}m={more};{part}\x1b\\")
    return "".join(sequences) + "\n"


def sixel_text(picture: pil.Image) -> str:
    """Encode a picture as sixel (DEC STD 070, chapter 10): bands of six rows, colour by colour."""
    shown = picture.convert("RGB").quantize(SIXEL_COLOURS)
    pixels = np.asarray(shown)
    palette = np.array(shown.getpalette() or [], int).reshape(-1, 3)
    height, width = pixels.shape
    used = np.unique(pixels).tolist()
    percents = {colour: (100 * palette[colour] + 127) // 255 for colour in used}
    parts = [f'\x1bPq"1;1;{width};{height}']
    parts += [f"#{c};2;{r};{g};{b}" for c, (r, g, b) in percents.items()]
    for top in range(0, height, 6):
        band = pixels[top : top + 6]
        weights = (1 << np.arange(len(band)))[:, None]
        for colour in np.unique(band).tolist():
            sixels = ((band == colour) * weights).sum(axis=0)
            parts.append(f"#{colour}{_runs(sixels)}$")
        parts.append("-")
    return "".join(parts) + "\x1b\\"


def _runs(sixels: Any) -> str:
    """Write a row of sixels, with repeats counted."""
    (changes,) = np.nonzero(np.diff(sixels))
    starts = [0, *(changes + 1).tolist(), len(sixels)]
    texts = []
    for first, last in itertools.pairwise(starts):
        letter, count = chr(63 + int(sixels[first])), last - first
        texts.append(f"!{count}{letter}" if count > 3 else letter * count)
    return "".join(texts)
