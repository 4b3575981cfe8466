"""Words for numbers, limits and states, the same in report.json and on every page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

#: Names of numbers as people say them; others are their plain name with blanks.
LABELS = {
    "noise_ratio": "measured / predicted noise",
    "depth_over_predicted": "5σ flux / expected",
    "depth_5sigma": "depth, 5σ",
    "fwhm": "FWHM",
    "fwhm_of_frames": "FWHM of frames",
    "fwhm_scatter": "scatter of FWHM",
    "astrometric_rms": "rms of positions",
    "catalogue_rms": "rms to the catalogue",
    "sky_unevenness": "unevenness of sky",
    "dark_level": "level",
    "mean_counts": "counts",
    "rms": "residual rms",
    "strehl_proxy": "Strehl proxy",
    "fwhm_stars": "stars that tell FWHM",
    "rejected": "rejected fraction",
    "sky": "sky level",
    "centre_covered": "middle of the field with half of the exposure",
    "area_covered": "area with half of the exposure",
}
#: Units as they are written on a page.
UNITS = {"electron": "e⁻"}
_DIGITS = 4


def label(name: str) -> str:
    """Give what people call a number."""
    return LABELS.get(name, name.replace("_", " "))


def number(value: Any, unit: str = "") -> str:
    """Write a number with four digits, or a text as it is; a dash for what is not known.

    unit: less than 10^-4 of an electron is nothing that a detector knows: 0.
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f") if abs(value) >= 10000 else str(value)
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return "–"
    if unit == "electron" and abs(value) < 1e-4:
        return "0"
    if value and (abs(value) < 1e-4 or abs(value) >= 1e7):
        return f"{value:.3g}"
    digits = max(_DIGITS - 1 - math.floor(math.log10(abs(value))), 0) if value else 0
    text = f"{value:.{min(digits, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text and abs(value) < 1 else text


def seconds(value: float | None) -> str:
    """Write a time in seconds, minutes or hours; a dash for what is not known."""
    if value is None:
        return "–"
    if value < 100:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 6000 else f"{value / 3600:.1f} h"


def size(value: float | None) -> str:
    """Write a number of bytes in MiB or GiB; a dash for what is not known."""
    if value is None:
        return "–"
    return f"{value / 2**30:.2f} GiB" if value >= 2**28 else f"{value / 2**20:.0f} MiB"


def night(name: str) -> str:
    """Write the name of a night as a date."""
    is_date = len(name) == 8 and name.isdigit()
    return f"{name[:4]}-{name[4:6]}-{name[6:]}" if is_date else name


def limits(gate: Mapping[str, Any]) -> str:
    """Say the limits of a gate: within which all is well, beyond which it fails."""
    times = f" × {label(str(gate['over']))}" if gate.get("over") else ""
    parts = []
    low, high = gate.get("warning_below"), gate.get("warning_above")
    if low is not None and high is not None:
        parts.append(f"{low:g} to {high:g}{times}")
    elif low is not None or high is not None:
        parts.append((f"≤ {high:g}" if low is None else f"≥ {low:g}") + times)
    low, high = gate.get("failure_below"), gate.get("failure_above")
    beyond = [f"< {low:g}" if low is not None else "", f"> {high:g}" if high is not None else ""]
    if any(beyond):
        parts.append(f"fails {' or '.join(filter(None, beyond))}{times}")
    if "warning_mad" in gate:
        side = {"above": "≤ +", "below": "≥ −"}.get(str(gate.get("side", "")), "± ")
        parts.append(f"{side}{gate['warning_mad']:g}σ of its fellows")
    if "failure_mad" in gate:
        parts.append(f"fails beyond {gate['failure_mad']:g}σ")
    return "; ".join(parts)


def sentence(gate: Mapping[str, Any]) -> str:
    """Give the sentence of a gate without numbers in it."""
    return str(gate.get("sentence", "")).replace("{value}", "…").replace("{limit}", "…")


def first_large(text: str) -> str:
    """Give a sentence with a capital at its beginning; the rest stays."""
    return text[:1].upper() + text[1:]
