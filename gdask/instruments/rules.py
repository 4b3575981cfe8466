"""What tags and descriptors are made of. An instrument is a TOML of facts and a module of two tables of pure functions:

TAGS = {"name": rule}              rule(view) -> TagSet, a tuple of them, or None
DESCRIPTORS = {"name": function}   function(view, **options) -> value, None where unknown

Both add to, or replace by name, those of every Gemini instrument (gemini.py). A function sees the file only through
its `View`: cleaned header values, the facts, the tags and the other descriptors.
"""

from __future__ import annotations

import datetime as dt
import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from astropy.io.fits import VerifyError

from gdask.model import GdaskError
from gdask.types import Headers

if TYPE_CHECKING:
    from gdask.io.header import Header

#: Names of the extensions that accompany an array of pixels and are not one themselves.
COMPANIONS = frozenset({"VAR", "DQ", "OBJMASK"})


class Instrument(NamedTuple):
    """An instrument: its name, the facts (the content of its TOML) and its module of rules."""

    name: str
    facts: dict[str, Any]
    module: ModuleType


class TagSet(NamedTuple):
    """Tags that come together: dropped as a whole if one of them is blocked, or if a tag of `blocked_by` is set."""

    add: frozenset[str]
    blocks: frozenset[str] = frozenset()
    blocked_by: frozenset[str] = frozenset()
    if_present: frozenset[str] = frozenset()


def tagset(add: str, blocks: str = "", blocked_by: str = "", if_present: str = "") -> TagSet:
    """A TagSet from blank-separated names."""
    return TagSet(*(frozenset(names.split()) for names in (add, blocks, blocked_by, if_present)))


Rule = Callable[["View"], "TagSet | tuple[TagSet, ...] | None"]
Descriptor = Callable[..., Any]


def resolve(sets: Iterable[TagSet]) -> frozenset[str]:
    """The tags of a file. Sets that block others speak first, those that can be blocked or need others speak last."""
    tags: set[str] = set()
    blocked: set[str] = set()
    for one in sorted(sets, key=lambda s: (len(s.if_present), len(s.blocked_by), -len(s.blocks))):
        if one.if_present <= tags and not tags & one.blocked_by and not one.add & blocked:
            tags |= one.add
            blocked |= one.blocks
    return frozenset(tags)


class View:
    """What the rules see of one file. Calling it gives a descriptor: `view("gain")`."""

    def __init__(
        self,
        headers: Headers,
        facts: Mapping[str, Any],
        rules: Mapping[str, Rule],
        descriptors: Mapping[str, Descriptor],
    ) -> None:
        self.phu, self.path = headers.phu, headers.path
        self.ext = science(headers.ext)
        self.facts = facts
        self._rules, self._descriptors = rules, descriptors

    def __call__(self, name: str, **options: Any) -> Any:
        function = self._descriptors.get(name)
        if function is None:
            raise GdaskError(unknown(name, self._descriptors))
        allowed = option_names(function) if options else ()
        if not set(options) <= set(allowed):
            raise GdaskError(
                f"descriptor {name} takes the options {', '.join(allowed) or 'none'}; got {', '.join(options)}"
            )
        return function(self, **options)

    def accepts(self, name: str, option: str) -> bool:
        """Whether a descriptor has an option (False if there is no such descriptor)."""
        return name in self._descriptors and option in option_names(self._descriptors[name])

    @cached_property
    def tags(self) -> frozenset[str]:
        found = (rule(self) for rule in self._rules.values())
        return resolve(
            one for sets in found if sets for one in ((sets,) if isinstance(sets, TagSet) else sets)
        )

    @property
    def prepared(self) -> bool:
        return "PREPARED" in self.tags

    def get(self, keyword: str) -> Any:
        """Value in the primary header; None if it is missing or blank."""
        return clean(self.phu, keyword)

    def given(self, keyword: str) -> Any:
        """Value in the primary header; '' for an empty string, None if there is none."""
        return clean(self.phu, keyword, empty="")

    def text(self, keyword: str) -> str:
        """Value in the primary header as text, '' if it is missing."""
        value = self.get(keyword)
        return "" if value is None else str(value)

    def number(self, keyword: str) -> Any:
        """Number in the primary header (int or float, also if written as a string); None if there is none."""
        return as_number(self.get(keyword))

    def each(self, keyword: str) -> list[Any]:
        """Value in the header of each array."""
        return [clean(header, keyword) for header in self.ext]


def science(headers: tuple[Header, ...]) -> tuple[Header, ...]:
    """The headers of the arrays: SCI or nameless extensions; without any, whatever does not accompany an array;
    without that, all (a bad-pixel mask may hold nothing but DQ)."""
    names = [str(clean(header, "EXTNAME") or "SCI").upper() for header in headers]
    for wanted in (lambda n: n == "SCI", lambda n: n not in COMPANIONS):
        chosen = tuple(header for header, name in zip(headers, names) if wanted(name))
        if chosen:
            return chosen
    return headers


def clean(header: Header, keyword: str, empty: str | None = None) -> Any:
    """Header value, strings stripped; None if missing, undefined or unreadable, `empty` for a string of blanks."""
    try:
        value = header.get(keyword)
    except (VerifyError, ValueError, AttributeError):  # a card that cannot be parsed is no value
        return None
    if isinstance(value, str):
        return value.strip() or empty
    return value if isinstance(value, (bool, int, float)) else None


def as_number(value: Any) -> Any:
    """int or float, also from text; None for anything else, NaN and infinity included."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def keyword(name: str) -> Descriptor:
    """Descriptor: a value of the primary header as it stands."""
    return lambda view: view.given(name)


def number(name: str) -> Descriptor:
    """Descriptor: a number of the primary header."""
    return lambda view: view.number(name)


def component(name: str) -> Descriptor:
    """Descriptor: name of a component in the beam, with or without its Gemini component number (_Gnnnn)."""

    def of(view: View, pretty: bool = False, stripID: bool = False) -> str | None:
        value = view.get(name)
        return without_id(str(value)) if value is not None and (pretty or stripID) else value

    return of


def section(name: str) -> Descriptor:
    """Descriptor: a section of each array, 0-based half-open [x1, x2, y1, y2]; IRAF strings if pretty."""

    def of(view: View, pretty: bool = False) -> list[Any]:
        found = [parse_section(value) for value in view.each(name)]
        return [format_section(one) for one in found] if pretty else found

    return of


def from_header_if_prepared(name: str, function: Descriptor) -> Descriptor:
    """Descriptor: the keyword of the extensions if the file is prepared and all of them have it, else the function."""

    def of(view: View) -> list[Any]:
        values = [as_number(value) for value in view.each(name)] if view.prepared else []
        return values if values and None not in values else function(view)

    return of


def without_id(text: str) -> str:
    """Component name without its number: 'Kshort_G1105' -> 'Kshort', 'HK_G0806_good' -> 'HK'."""
    return text.split("_G", 1)[0]


def with_id_only(text: str) -> str:
    """Component name with its number and nothing after it: 'HK_G0806_good' -> 'HK_G0806', 'HK_G08' -> 'HK'."""
    return re.sub(r"_G(?!\d{4}).*|(_G\d{4}).*", r"\1", text)


_SECTION = re.compile(r"\[\s*(\d+)\s*:\s*(\d+)\s*,\s*(\d+)\s*:\s*(\d+)\s*\]$")


def parse_section(text: Any) -> list[int] | None:
    """'[1:2048,513:1536]' (1-based, inclusive, either direction) -> [0, 2048, 512, 1536]; None if it is none."""
    match = _SECTION.match(text) if isinstance(text, str) else None
    if match is None:
        return None
    x1, x2, y1, y2 = map(int, match.groups())
    return [min(x1, x2) - 1, max(x1, x2), min(y1, y2) - 1, max(y1, y2)]


def format_section(one: list[int] | None) -> str | None:
    """[0, 2048, 512, 1536] -> '[1:2048,513:1536]'."""
    return None if one is None else f"[{one[0] + 1}:{one[1]},{one[2] + 1}:{one[3]}]"


def option_names(function: Descriptor) -> tuple[str, ...]:
    """Names of a descriptor's options."""
    return tuple(inspect.signature(function).parameters)[1:]


def unknown(name: str, known: Iterable[str]) -> str:
    """Message for a descriptor that does not exist."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return (
        f"no descriptor '{name}'; the closest is '{close[0]}'"
        if close
        else f"no descriptor '{name}' ('showd --help' lists them; text needs quotes)"
    )


# Time and position of a frame

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
