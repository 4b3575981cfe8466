"""The one gate for numbers from headers: what a keyword's number can be, and words for what it is.

Ranges are what Gemini's instruments and their sequences can have, with room; a number outside comes
from a damaged or hostile file, and would turn into an overflow or a wrong place.
"""

from __future__ import annotations

import math
import re
from typing import Any

#: Lowest and highest value, by keyword. Times in s, offsets in arcsec (the telescope's own limits
#: are smaller than a degree), angles in degrees, scales in degrees a pixel.
RANGES: dict[str, tuple[float, float]] = {
    "EXPTIME": (0.0, 1e5),
    "COADDS": (1, 10_000),
    "LNRS": (1, 1000),
    "NFOWLER": (0, 1000),
    "PA": (-360.0, 360.0),
    "POFFSET": (-1e4, 1e4),
    "QOFFSET": (-1e4, 1e4),
    "RAOFFSET": (-1e5, 1e5),
    "DECOFFSE": (-1e5, 1e5),
    "RATRGOFF": (-1e5, 1e5),
    "DECTRGOF": (-1e5, 1e5),
    "CRVAL1": (-360.0, 720.0),
    "CRVAL2": (-90.0, 90.0),
    "CRPIX1": (-1e6, 1e6),
    "CRPIX2": (-1e6, 1e6),
    **{f"CD{i}_{j}": (-1.0, 1.0) for i in (1, 2) for j in (1, 2)},
    "PMRA": (-1e3, 1e3),
    "PMDEC": (-1e3, 1e3),
    "TOTEXP": (0.0, 1e9),
}
#: Values that stand for none, by keyword.
NONE = {"PA": -9999}
#: Keywords without which, or with a wrong number in which, a frame cannot be used.
REQUIRED = frozenset(RANGES) - {"PMRA", "PMDEC", "TOTEXP"}
#: No number of a header is larger: beyond it arithmetic overflows.
_ANY = (-1e30, 1e30)
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([EeDd][+-]?\d+)?\s*$")


def number_in_range(keyword: str, value: Any) -> Any:
    """Give a number, also one written as text, if it is within the keyword's range; else None."""
    if isinstance(value, str) and _NUMBER.match(value):
        value = float(value.replace("D", "E").replace("d", "e"))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    low, high = RANGES.get(keyword, _ANY)
    return value if low <= value <= high or value == NONE.get(keyword) else None


def problem_with(keyword: str, value: Any) -> str:
    """Say what is wrong with a keyword's value: keyword, value, range; '' if nothing is.

    A keyword that is missing or blank is no problem here.
    """
    is_blank = value is None or (isinstance(value, str) and not value.strip())
    if is_blank or type(value).__name__ == "Undefined":
        return ""
    if number_in_range(keyword, value) is not None:
        return ""
    low, high = RANGES.get(keyword, _ANY)
    shown = str(value) if len(str(value)) <= 40 else f"{str(value)[:37]}..."
    return f"{keyword} = {shown}: a number from {low:g} to {high:g} was expected"
