"""What the rules of an instrument see of one file, and how tags come of them."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from types import ModuleType
from typing import Any, NamedTuple

from gdask.headers import Header, Headers
from gdask.model import GdaskError

#: Names of the extensions that accompany an array of pixels and are not one themselves.
COMPANION_EXTENSIONS = frozenset({"VAR", "DQ", "OBJMASK"})


class Instrument(NamedTuple):
    """An instrument: its name, the facts (the content of its TOML) and its module of rules."""

    name: str
    facts: dict[str, Any]
    module: ModuleType


class TagSet(NamedTuple):
    """Tags that are set together or not at all.

    They are dropped if one of them is blocked by another set, if a tag of `blocked_by` is set, or
    if a tag of `if_present` is missing.
    """

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
    """The tags of a file from the sets that its rules give.

    Sets that block others are applied first, sets that can be blocked or need others last.
    """
    tags: set[str] = set()
    blocked: set[str] = set()
    for one in sorted(sets, key=lambda s: (len(s.if_present), len(s.blocked_by), -len(s.blocks))):
        if one.if_present <= tags and not tags & one.blocked_by and not one.add & blocked:
            tags |= one.add
            blocked |= one.blocks
    return frozenset(tags)


def array_headers(headers: tuple[Header, ...]) -> tuple[Header, ...]:
    """The headers of the arrays of pixels.

    These are the extensions named SCI or without a name; without any, those that do not accompany
    an array; without any of these, all (a bad-pixel mask may hold nothing but DQ).
    """
    names = [str(header_value(header, "EXTNAME") or "SCI").upper() for header in headers]
    for wanted in (lambda n: n == "SCI", lambda n: n not in COMPANION_EXTENSIONS):
        chosen = tuple(header for header, name in zip(headers, names) if wanted(name))
        if chosen:
            return chosen
    return headers


def header_value(header: Header, keyword: str, empty: str | None = None) -> Any:
    """Value of a keyword, text without blanks at its ends.

    None if it is missing, undefined or unreadable; `empty` for a text of blanks.
    """
    try:
        value = header.get(keyword)
    except (ValueError, AttributeError):  # a card that cannot be parsed is no value
        return None
    if isinstance(value, str):
        return value.strip() or empty
    return value if isinstance(value, (bool, int, float)) else None


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
    "PMRA": (-1e4, 1e4),  # -9999 where the telescope told nothing: taken as it is, as DRAGONS does
    "PMDEC": (-1e4, 1e4),
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


def header_number(header: Header, keyword: str) -> Any:
    """Number of a keyword; None if it is missing, no number, or none that the keyword can have."""
    return number_in_range(keyword, header_value(header, keyword))


def number_problem(headers: Iterable[Header]) -> str:
    """Say which number of these headers a frame cannot have; '' if all are well."""
    for header in headers:
        for keyword in REQUIRED.intersection(header):
            try:
                value = header.get(keyword)
            except (ValueError, AttributeError):  # a card that cannot be parsed is no value
                continue
            if text := problem_with(keyword, value):
                return text
    return ""


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


def option_names(function: Descriptor) -> tuple[str, ...]:
    """Names of a descriptor's options."""
    return tuple(inspect.signature(function).parameters)[1:]


def unknown_descriptor(name: str, known: Iterable[str]) -> str:
    """Message for a descriptor that does not exist."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return (
        f"no descriptor '{name}'; the closest is '{close[0]}'"
        if close
        else f"no descriptor '{name}' ('showd --help' lists them; text needs quotes)"
    )


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
        self.ext = array_headers(headers.ext)
        self.facts = facts
        self._rules, self._descriptors = rules, descriptors

    def __call__(self, name: str, **options: Any) -> Any:
        function = self._descriptors.get(name)
        if function is None:
            raise GdaskError(unknown_descriptor(name, self._descriptors))
        allowed = option_names(function) if options else ()
        if not set(options) <= set(allowed):
            raise GdaskError(
                f"descriptor {name} takes the options {', '.join(allowed) or 'none'}; got "
                f"{', '.join(options)}"
            )
        return function(self, **options)

    def accepts(self, name: str, option: str) -> bool:
        """Whether a descriptor has an option (False if there is no such descriptor)."""
        return name in self._descriptors and option in option_names(self._descriptors[name])

    @cached_property
    def tags(self) -> frozenset[str]:
        """All tags of the file."""
        found = (rule(self) for rule in self._rules.values())
        return resolve(
            one for sets in found if sets for one in ((sets,) if isinstance(sets, TagSet) else sets)
        )

    @property
    def prepared(self) -> bool:
        """Whether `prepare` has been run on the file: arrays carry their own keywords then."""
        return "PREPARED" in self.tags

    def get(self, keyword: str) -> Any:
        """Value in the primary header; None if it is missing or blank."""
        return header_value(self.phu, keyword)

    def given(self, keyword: str) -> Any:
        """Value in the primary header; '' for an empty string, None if there is none."""
        return header_value(self.phu, keyword, empty="")

    def text(self, keyword: str) -> str:
        """Value in the primary header as text, '' if it is missing."""
        value = self.get(keyword)
        return "" if value is None else str(value)

    def number(self, keyword: str) -> Any:
        """Number in the primary header, also if written as text.

        None if there is none, or one that the keyword cannot have (`RANGES`).
        """
        return number_in_range(keyword, self.get(keyword))

    def each(self, keyword: str) -> list[Any]:
        """Value in the header of each array."""
        return [header_value(header, keyword) for header in self.ext]
