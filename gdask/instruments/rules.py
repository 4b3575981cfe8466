"""What tags and descriptors are made of: a view of the headers of one file, and readers of values.

An instrument is a TOML of facts and a module of two tables of pure functions:

TAGS = {"name": rule}              rule(view) -> TagSet, a tuple of them, or None
DESCRIPTORS = {"name": function}   function(view, **options) -> value, None where unknown

Both add to the tables of every Gemini instrument (gemini.py), or replace entries by name. A
function sees the file only through its `View`: cleaned header values, the facts, the tags and
the other descriptors.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from typing import Any

import numpy as np

from gdask.instruments.view import Descriptor, View, as_number, header_number, header_value
from gdask.kernels.arithmetic import sine_cosine


def from_keyword(name: str) -> Descriptor:
    """Descriptor: a value of the primary header as it stands."""
    return lambda view: view.given(name)


def from_number_keyword(name: str) -> Descriptor:
    """Descriptor: a number of the primary header."""
    return lambda view: view.number(name)


def from_component_keyword(name: str) -> Descriptor:
    """Descriptor: name of a component in the beam.

    With `pretty` or `stripID` it is without its Gemini component number (_Gnnnn).
    """

    def value_of(view: View, pretty: bool = False, stripID: bool = False) -> str | None:
        value = view.get(name)
        return (
            without_component_number(str(value))
            if value is not None and (pretty or stripID)
            else value
        )

    return value_of


def from_section_keyword(name: str) -> Descriptor:
    """Descriptor: a section of each array, 0-based half-open [x1, x2, y1, y2].

    With `pretty` it is IRAF's text: 1-based, inclusive.
    """

    def value_of(view: View, pretty: bool = False) -> list[Any]:
        found = [parse_section(value) for value in view.each(name)]
        return [format_section(one) for one in found] if pretty else found

    return value_of


def from_header_if_prepared(name: str, function: Descriptor) -> Descriptor:
    """Descriptor: a number of each array, from its header if the file is prepared.

    The function gives it where the file is not prepared or an array lacks the keyword.
    """

    def value_of(view: View) -> list[Any]:
        values = [as_number(value) for value in view.each(name)] if view.prepared else []
        return values if values and None not in values else function(view)

    return value_of


def without_component_number(text: str) -> str:
    """Component name without its number: 'Kshort_G1105' -> 'Kshort', 'HK_G0806_good' -> 'HK'."""
    return text.split("_G", 1)[0]


def up_to_component_number(text: str) -> str:
    """Component name with its number and nothing after it.

    'HK_G0806_good' -> 'HK_G0806'; an incomplete number is dropped, 'HK_G08' -> 'HK'.
    """
    return re.sub(r"_G(?!\d{4}).*|(_G\d{4}).*", r"\1", text)


_SECTION = re.compile(r"\[\s*(\d+)\s*:\s*(\d+)\s*,\s*(\d+)\s*:\s*(\d+)\s*\]$")


def parse_section(text: Any) -> list[int] | None:
    """Section [x1, x2, y1, y2], 0-based half-open, from IRAF's text; None if it is not one.

    '[1:2048,513:1536]' (1-based, inclusive, either direction) -> [0, 2048, 512, 1536].
    """
    match = _SECTION.match(text) if isinstance(text, str) else None
    if match is None:
        return None
    x1, x2, y1, y2 = map(int, match.groups())
    return [min(x1, x2) - 1, max(x1, x2), min(y1, y2) - 1, max(y1, y2)]


def format_section(one: list[int] | None) -> str | None:
    """[0, 2048, 512, 1536] -> '[1:2048,513:1536]'."""
    return None if one is None else f"[{one[0] + 1}:{one[1]},{one[2] + 1}:{one[3]}]"


# Time and position of a frame

_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)")
_EARLY_DATE = re.compile(r"(\d\d)/(\d\d)/(\d\d)$")  # FITS before 2000: DD/MM/YY
_TIME = re.compile(r"(\d{1,2}):(\d{1,2}):(\d{1,2})(?:\.(\d*))?$")


def parse_date(text: str) -> dt.date | None:
    """Date at the beginning of an ISO text, or from DD/MM/YY (FITS before 2000); else None."""
    match, early = _DATE.match(text), _EARLY_DATE.match(text)
    try:
        if early:
            return dt.date(1900 + int(early[3]), int(early[2]), int(early[1]))
        return dt.date(*map(int, match.groups())) if match else None
    except ValueError:
        return None


def parse_time(text: str) -> dt.time | None:
    """Time from hh:mm:ss with any number of decimals; None if it is not one."""
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
    """Date of the start of the exposure, UT.

    DATE-OBS comes first, MJD-OBS last and only where the instrument keeps it up to date.
    """
    for name in ("DATE-OBS", "UT_DATE", "DATE", "UTDATE"):
        if (found := parse_date(view.text(name))) is not None:
            return found
    start = _start_from_other_keywords(view)
    return start.date() if start else None


def ut_time(view: View) -> dt.time | None:
    """Time of the start, UT: part of DATE-OBS, or UT, TIME-OBS, UTSTART."""
    full = view.text("DATE-OBS")
    candidates = [full[11:] if full[10:11] == "T" else ""]
    candidates += [view.text(name) for name in ("UT", "TIME-OBS", "STARTUT", "UTSTART")]
    for text in candidates:
        if (found := parse_time(text)) is not None:
            return found
    start = _start_from_other_keywords(view)
    return start.time() if start else None


def ut_datetime(view: View) -> dt.datetime | None:
    """Start, UT. With a date and no time (a bad-pixel mask's valid-from date): midnight."""
    date = ut_date(view)
    return None if date is None else dt.datetime.combine(date, ut_time(view) or dt.time())


def _start_from_other_keywords(view: View) -> dt.datetime | None:
    """Start of the exposure from MJD-OBS, or from OBSSTART; None where neither tells it."""
    mjd = view.number("MJD-OBS")
    if mjd is None and (start := view.text("OBSSTART"))[10:11] == "T":
        date, time = parse_date(start), parse_time(start[11:].rstrip("Z"))
        return dt.datetime.combine(date, time) if date and time else None
    if not view.facts.get("mjd_valid", True) or mjd is None or not 1 < mjd < 2e5:
        return None
    return dt.datetime(1858, 11, 17) + dt.timedelta(mjd)


def header_ra(view: View) -> float | None:
    """RA keyword in degrees; text hh:mm:ss (or with blanks) is understood."""
    return _angle_in_degrees(view.get("RA"), 15.0)


def header_dec(view: View) -> float | None:
    """DEC keyword in degrees; text dd:mm:ss (or with blanks) is understood."""
    return _angle_in_degrees(view.get("DEC"), 1.0)


def _angle_in_degrees(value: Any, factor: float) -> float | None:
    """Angle from a number (degrees) or sexagesimal text times `factor`; None if it is neither."""
    if isinstance(value, str) and as_number(value) is None:
        parts = [as_number(part) for part in re.split(r"[:\s]+", value.lstrip("+-"))]
        if None in parts or len(parts) > 3:
            return None
        size = sum(part / 60.0**i for i, part in enumerate(parts))
        return factor * (-size if value.startswith("-") else size)
    return as_number(value)


def target_ra(view: View, offset: bool = False, pm: bool = True) -> float | None:
    """Right ascension of the target in degrees.

    With `pm`, proper motion (PMRA in seconds of time per year, without cos dec) is added up to the
    date of observation; with `offset`, the telescope's and the target's offsets.
    """
    value = header_ra(view)
    if value is None:
        return None
    if offset:
        arcsec = (view.number("RAOFFSET") or 0.0, view.number("RATRGOFF") or 0.0)
        degrees = arcsec[0] / 3600.0 + arcsec[1] / 3600.0
        declination = target_dec(view, offset=True)
        value += 0.0 if declination is None else degrees / sine_cosine.few(declination)[1]
    rate = view.number("PMRA")
    years = _years_since_epoch(view) if pm and rate else None
    return value if years is None else value + rate * years * 15.0 / 3600.0


def target_dec(view: View, offset: bool = False, pm: bool = True) -> float | None:
    """Declination of the target in degrees; proper motion and offsets as in `target_ra`.

    PMDEC is in arcsec per year.
    """
    value = header_dec(view)
    if value is None:
        return None
    if offset:
        arcsec = (view.number("DECOFFSE") or 0.0, view.number("DECTRGOF") or 0.0)
        value += arcsec[0] / 3600.0 + arcsec[1] / 3600.0
    rate = view.number("PMDEC")
    years = _years_since_epoch(view) if pm and rate else None
    return value if years is None else value + rate * years / 3600.0


def _years_since_epoch(view: View) -> float | None:
    """Years from EPOCH (default 2000) to the start of the exposure; None without a date."""
    when, epoch = view("ut_datetime"), view.number("EPOCH")
    if when is None:
        return None
    start, end = dt.datetime(when.year, 1, 1), dt.datetime(when.year + 1, 1, 1)
    fraction = (when - start).total_seconds() / (end - start).total_seconds()
    return when.year + fraction - (2000.0 if epoch is None else epoch)


def celestial_headers(view: View) -> list[Any]:
    """For each array, the header that holds its WCS: its own or the primary one.

    None where that header describes no tangent plane in RA and Dec.
    """
    found = []
    for header in view.ext:
        source = header if header_value(header, "CRVAL1") is not None else view.phu
        types = [str(header_value(source, name)) for name in ("CTYPE1", "CTYPE2")]
        types = [name.removesuffix("-SIP") for name in types]  # products carry their distortion
        found.append(source if types == ["RA---TAN", "DEC--TAN"] else None)
    return found


def ra(view: View) -> float | None:
    """Right ascension (degrees) of the field, from the WCS; else of the target, from RA."""
    value = view("wcs_ra")
    return header_ra(view) if value is None else value


def dec(view: View) -> float | None:
    """Declination (degrees) of the field, from the WCS; else of the target, from DEC."""
    value = view("wcs_dec")
    return header_dec(view) if value is None else value


def wcs_position(view: View) -> tuple[float | None, float | None]:
    """Reference position (degrees) of the first array's WCS."""
    source = next(iter(celestial_headers(view)), None)
    if source is None:
        return None, None
    return header_number(source, "CRVAL1"), header_number(source, "CRVAL2")


def pixel_scale(view: View) -> float | None:
    """Arcsec per pixel from the CD matrices, the mean over the arrays.

    Where there is no CD matrix, CDELT and PC give it.
    """
    scales = [
        3600.0 * math.sqrt(abs(m[0][0] * m[1][1] - m[0][1] * m[1][0]))
        for one in celestial_headers(view)
        if (m := cd_matrix(one)) is not None
    ]
    return float(np.mean(scales)) if scales else None


def cd_matrix(header: Any) -> np.ndarray | None:
    """CD matrix of the first two axes, degrees per pixel; None if there is none."""
    if header is None:
        return None
    pairs = [(i, j) for i in (1, 2) for j in (1, 2)]
    terms = [header_number(header, f"CD{i}_{j}") for i, j in pairs]
    if all(term is None for term in terms):
        steps = {i: header_number(header, f"CDELT{i}") for i in (1, 2)}
        if None in steps.values():
            return None
        pc = [header_number(header, f"PC{i}_{j}") for i, j in pairs]
        terms = [steps[i] * (float(i == j) if p is None else p) for (i, j), p in zip(pairs, pc)]
    return np.array([0.0 if term is None else term for term in terms], float).reshape(2, 2)


# How long and when light was collected: of a frame from start, exposure time and coadds; a stack
# carries the answers in its primary header

MJD_0 = dt.datetime(1858, 11, 17)
#: By how much UTEND may be later than start and exposure time say, as a share of the exposure and
#: in seconds: reads of several coadds, set-up. Beyond it is not this exposure's (old F2 headers
#: give the end of the one before).
_LONGER, _READS = 0.5, 120.0


def total_exposure_time(view: View) -> float | None:
    """Seconds of light in all: of all coadds, and of all inputs of a stack.

    `exposure_time` is that of the pixel values: of one coadd where coadds are averaged.
    """
    total = view.number("TOTEXP")
    if total is not None and total > 0:
        return float(total)
    seconds = view("exposure_time")
    if seconds is None:
        return None
    return float(seconds) * (1 if view("is_coadds_summed") else view("coadds"))


def ut_middle(view: View) -> dt.datetime | None:
    """Middle of the exposure, UT; of a stack, the mean of its inputs by exposure time."""
    start, seconds = view("ut_datetime"), total_exposure_time(view)
    if (kept := _from_mjd(view, "MJD-AVG")) is not None:
        return kept
    if start is None or seconds is None:
        return None
    return start + dt.timedelta(seconds=seconds / 2)


def ut_end(view: View) -> dt.datetime | None:
    """End of the exposure, UT; of a stack, the end of its last input.

    It is UTEND where that can be this exposure's, else start and exposure time.
    """
    start, seconds = view("ut_datetime"), total_exposure_time(view)
    if (kept := _from_mjd(view, "MJD-END")) is not None:
        return kept
    if start is None or seconds is None:
        return None
    clock = parse_time(view.text("UTEND"))
    if clock is not None:
        end = dt.datetime.combine(start.date(), clock)
        end += dt.timedelta(days=1) if end < start else dt.timedelta(0)
        if seconds <= (end - start).total_seconds() <= seconds * (1 + _LONGER) + _READS:
            return end
    return start + dt.timedelta(seconds=seconds)


def mjd_of(name: str) -> Descriptor:
    """Descriptor: the time that another descriptor gives, as MJD (days, UTC)."""

    def value_of(view: View) -> float | None:
        when = view(name)
        return None if when is None else (when - MJD_0) / dt.timedelta(days=1)

    return value_of


def _from_mjd(view: View, keyword: str) -> dt.datetime | None:
    mjd = view.number(keyword)
    return MJD_0 + dt.timedelta(days=mjd) if mjd is not None and 1 < mjd < 2e5 else None


TIME_DESCRIPTORS: dict[str, Descriptor] = {
    "mjd_start": mjd_of("ut_datetime"),
    "mjd_middle": mjd_of("ut_middle"),
    "mjd_end": mjd_of("ut_end"),
    "total_exposure_time": total_exposure_time,
    "ut_middle": ut_middle,
    "ut_end": ut_end,
}
