"""When and where a frame was taken: descriptors of time and position."""

from __future__ import annotations

import datetime as dt
import math
import re
from typing import Any

import numpy as np

from gdask.instruments.rules import View, as_number, clean

_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)")
_EARLY_DATE = re.compile(r"(\d\d)/(\d\d)/(\d\d)$")  # FITS before 2000: DD/MM/YY
_TIME = re.compile(r"(\d{1,2}):(\d{1,2}):(\d{1,2})(?:\.(\d*))?$")


def parse_date(text: str) -> dt.date | None:
    match, early = _DATE.match(text), _EARLY_DATE.match(text)
    try:
        if early:
            return dt.date(1900 + int(early[3]), int(early[2]), int(early[1]))
        return dt.date(*map(int, match.groups())) if match else None
    except ValueError:
        return None


def parse_time(text: str) -> dt.time | None:
    match = _TIME.match(text)
    if match is None:
        return None
    hours, minutes, seconds = (int(part) for part in match.groups()[:3])
    try:
        if seconds == 60:  # 59.96 s, rounded: the next minute
            return (
                (dt.datetime(2000, 1, 1, hours, minutes) + dt.timedelta(minutes=1)).time()
                if (hours, minutes) < (23, 59)
                else dt.time.max
            )
        return dt.time(hours, minutes, seconds, int(f"{match[4] or '':0<6.6}"))
    except ValueError:
        return None


def ut_date(view: View) -> dt.date | None:
    """Date of the start, UT. DATE-OBS first; MJD-OBS last, where the instrument keeps it up to date."""
    for name in ("DATE-OBS", "UT_DATE", "DATE", "UTDATE"):
        if (found := parse_date(view.text(name))) is not None:
            return found
    start = _from_start(view)
    return start.date() if start else None


def ut_time(view: View) -> dt.time | None:
    """Time of the start, UT: part of DATE-OBS, or UT, TIME-OBS, UTSTART."""
    full = view.text("DATE-OBS")
    candidates = [full[11:] if full[10:11] == "T" else ""]
    candidates += [view.text(name) for name in ("UT", "TIME-OBS", "STARTUT", "UTSTART")]
    for text in candidates:
        if (found := parse_time(text)) is not None:
            return found
    start = _from_start(view)
    return start.time() if start else None


def ut_datetime(view: View) -> dt.datetime | None:
    """Start, UT. With a date and no time (a bad-pixel mask's valid-from date): midnight."""
    date = ut_date(view)
    return None if date is None else dt.datetime.combine(date, ut_time(view) or dt.time())


def _from_start(view: View) -> dt.datetime | None:
    mjd = view.number("MJD-OBS")
    if mjd is None and (start := view.text("OBSSTART"))[10:11] == "T":
        date, time = parse_date(start), parse_time(start[11:].rstrip("Z"))
        return dt.datetime.combine(date, time) if date and time else None
    if not view.facts.get("mjd_valid", True) or mjd is None or not 1 < mjd < 2e5:
        return None
    return dt.datetime(1858, 11, 17) + dt.timedelta(mjd)


def header_ra(view: View) -> float | None:
    """RA keyword in degrees; text hh:mm:ss (or with blanks) is understood."""
    return _angle(view.get("RA"), 15.0)


def header_dec(view: View) -> float | None:
    return _angle(view.get("DEC"), 1.0)


def _angle(value: Any, factor: float) -> float | None:
    if isinstance(value, str) and as_number(value) is None:
        parts = [as_number(part) for part in re.split(r"[:\s]+", value.lstrip("+-"))]
        if None in parts or len(parts) > 3:
            return None
        size = sum(part / 60.0**i for i, part in enumerate(parts))
        return factor * (-size if value.startswith("-") else size)
    return as_number(value)


def target_ra(view: View, offset: bool = False, pm: bool = True) -> float | None:
    """Right ascension of the target in degrees; with proper motion (PMRA in seconds of time a year, no cos dec) to the
    date of observation, on request with the telescope's and target's offsets."""
    value = header_ra(view)
    if value is None:
        return None
    if offset:
        degrees = (view.number("RAOFFSET") or 0.0) / 3600.0 + (
            view.number("RATRGOFF") or 0.0
        ) / 3600.0
        at = target_dec(view, offset=True)
        value += degrees / math.cos(math.radians(at)) if at is not None else 0.0
    rate = view.number("PMRA")
    years = _years_since_epoch(view) if pm and rate else None
    return value if years is None else value + rate * years * 15.0 / 3600.0


def target_dec(view: View, offset: bool = False, pm: bool = True) -> float | None:
    """Declination of the target in degrees; proper motion (PMDEC in arcsec a year) and offsets as for `target_ra`."""
    value = header_dec(view)
    if value is None:
        return None
    if offset:
        value += (view.number("DECOFFSE") or 0.0) / 3600.0 + (
            view.number("DECTRGOF") or 0.0
        ) / 3600.0
    rate = view.number("PMDEC")
    years = _years_since_epoch(view) if pm and rate else None
    return value if years is None else value + rate * years / 3600.0


def _years_since_epoch(view: View) -> float | None:
    when, epoch = view("ut_datetime"), view.number("EPOCH")
    if when is None:
        return None
    start, end = dt.datetime(when.year, 1, 1), dt.datetime(when.year + 1, 1, 1)
    fraction = (when - start).total_seconds() / (end - start).total_seconds()
    return when.year + fraction - (2000.0 if epoch is None else epoch)


def celestial(view: View) -> list[Any]:
    """The header of each array that holds its WCS (its own, or the primary one), None without a RA/Dec plane."""
    found = []
    for header in view.ext:
        source = header if clean(header, "CRVAL1") is not None else view.phu
        types = [
            str(clean(source, name)).removesuffix("-SIP") for name in ("CTYPE1", "CTYPE2")
        ]  # products' distortion
        found.append(source if types == ["RA---TAN", "DEC--TAN"] else None)
    return found


def ra(view: View) -> float | None:
    """Right ascension (degrees) of the field: from the WCS, else of the target as the header has it."""
    value = view("wcs_ra")
    return header_ra(view) if value is None else value


def dec(view: View) -> float | None:
    """Declination (degrees) of the field: from the WCS, else of the target as the header has it."""
    value = view("wcs_dec")
    return header_dec(view) if value is None else value


def wcs_position(view: View) -> tuple[float | None, float | None]:
    """Reference position (degrees) of the first array's WCS."""
    source = next(iter(celestial(view)), None)
    if source is None:
        return None, None
    return as_number(clean(source, "CRVAL1")), as_number(clean(source, "CRVAL2"))


def pixel_scale(view: View) -> float | None:
    """Arcsec per pixel, from the CD matrices, the mean of the arrays (CDELT and PC where there is no CD)."""
    scales = [
        3600.0 * math.sqrt(abs(np.linalg.det(m)))
        for one in celestial(view)
        if (m := cd_matrix(one)) is not None
    ]
    return float(np.mean(scales)) if scales else None


def cd_matrix(header: Any) -> np.ndarray | None:
    """CD matrix of the first two axes, degrees per pixel; None if there is none."""
    if header is None:
        return None
    pairs = [(i, j) for i in (1, 2) for j in (1, 2)]
    terms = [as_number(clean(header, f"CD{i}_{j}")) for i, j in pairs]
    if all(term is None for term in terms):
        steps = {i: as_number(clean(header, f"CDELT{i}")) for i in (1, 2)}
        if None in steps.values():
            return None
        pc = [as_number(clean(header, f"PC{i}_{j}")) for i, j in pairs]
        terms = [steps[i] * (float(i == j) if p is None else p) for (i, j), p in zip(pairs, pc)]
    return np.array([0.0 if term is None else term for term in terms], float).reshape(2, 2)


def apparent_to_icrs(ra: float, dec: float, when: dt.datetime) -> tuple[float, float]:
    """Apparent place (equinox of date, geocentric, degrees) at a UTC time -> ICRS, by the SOFA routines (pyerfa)."""
    import warnings

    import erfa

    with (
        warnings.catch_warnings()
    ):  # a date that no leap second is known for: good to seconds, enough here
        warnings.simplefilter("ignore", erfa.ErfaWarning)
        utc = erfa.dtf2d(
            "UTC",
            when.year,
            when.month,
            when.day,
            when.hour,
            when.minute,
            when.second + when.microsecond / 1e6,
        )
        tt = erfa.taitt(*erfa.utctai(*utc))
    tdb = erfa.tttdb(*tt, erfa.dtdb(*tt, 0.0, 0.0, 0.0, 0.0))
    # The equation of the origins changes by 0.1 mas in a minute: UTC in the place of TDB does no harm, and gives the
    # digits that the field's listings show.
    _, origins = erfa.apci13(*utc)
    astrometry, _ = erfa.apci13(*tdb)
    found = erfa.aticq(math.radians(ra) + origins, math.radians(dec), astrometry)
    return math.degrees(found[0]) % 360.0, math.degrees(found[1])
