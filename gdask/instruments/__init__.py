"""Tags and descriptors of a file, from its headers alone, and the facts of its instrument."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from gdask.headers import Headers, HeaderText, frame_headers, read_headers
from gdask.instruments import f2, gemini, gsaoi
from gdask.instruments.view import Instrument, View, header_value, unknown_descriptor
from gdask.model import GdaskError, UsageError
from gdask.params import closest

__all__ = [
    "DESCRIPTORS",
    "Instrument",
    "View",
    "check_tags",
    "descriptor",
    "instrument_named",
    "instrument_of",
    "register",
    "step_defaults",
    "tags",
    "view",
]

#: Names of the descriptors, sorted.
DESCRIPTORS: list[str] = sorted(gemini.DESCRIPTORS)

_BY_INSTRUME: dict[str, Instrument] = {}


def register(toml_path: str | os.PathLike[str], module: ModuleType) -> Instrument:
    """Make an instrument known from a TOML of facts (at least `name`) and a module of rules.

    What the module of rules holds is explained in rules.py. Files are recognised by INSTRUME, in
    any case, equal to `name` or to an entry of the optional list `instrume`.

    Raises GdaskError where the facts cannot be read or have no `name`.
    """
    path = Path(toml_path)
    try:
        facts = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise GdaskError(f"{path}: facts of an instrument cannot be read: {error}") from error
    if "name" not in facts:
        raise GdaskError(f"{path}: facts of an instrument need a `name`")
    instrument = Instrument(facts["name"], facts, module)
    for value in (facts["name"], *facts.get("instrume", ())):
        _BY_INSTRUME[value.upper()] = instrument
    DESCRIPTORS[:] = sorted({*DESCRIPTORS, *getattr(module, "DESCRIPTORS", {})})
    return instrument


def instrument_of(source: Any) -> Instrument:
    """The instrument of a file, its Headers or its Frame.

    Raises GdaskError where INSTRUME is missing or names an instrument that gdask does not know.
    """
    headers = _headers(source)
    name = header_value(headers.phu, "INSTRUME")
    instrument = _BY_INSTRUME.get(str(name).upper())
    if instrument is None:
        what = "has no INSTRUME keyword" if name is None else f"is of instrument '{name}'"
        known = ", ".join(sorted({one.name for one in _BY_INSTRUME.values()}))
        raise GdaskError(f"{headers.path or 'header'}: {what}; gdask knows {known}")
    return instrument


def instrument_named(name: str) -> Instrument:
    """The instrument of a name, as the descriptor `instrument` gives it; GdaskError for others."""
    if name.upper() not in _BY_INSTRUME:
        known = ", ".join(sorted({one.name for one in _BY_INSTRUME.values()}))
        raise GdaskError(f"{name}: no instrument of this name; gdask knows {known}")
    return _BY_INSTRUME[name.upper()]


def view(source: Any) -> View:
    """The tags and descriptors of one file, whose headers are read once.

    With `v = view(path)`, `v.tags` are the tags and `v("gain")` is the value of a descriptor.
    """
    headers = _headers(source)
    _, facts, module = instrument_of(headers)
    memo = _memo_of(source)
    known = memo.get("view")
    if known and known[0] is headers and known[1] is facts:
        return known[2]
    made = View(
        headers,
        facts,
        {**gemini.TAGS, **getattr(module, "TAGS", {})},
        {**gemini.DESCRIPTORS, **getattr(module, "DESCRIPTORS", {})},
    )
    memo["view"] = headers, facts, made
    return made


def _memo_of(source: Any) -> dict[str, tuple[Any, ...]]:
    """Where a Frame keeps its view as long as its headers are the same; a new place for others."""
    phu = getattr(source, "attrs", {}).get("phu")
    return phu.memo if isinstance(phu, HeaderText) else {}


def tags(source: Any) -> set[str]:
    """Tags of a file (path), its Headers or its Frame."""
    return set(view(source).tags)


def check_tags(names: Iterable[str]) -> None:
    """Raise UsageError, with the nearest, for a tag that no rule of any instrument gives."""
    known = set(gemini.KNOWN_TAGS)
    for one in _BY_INSTRUME.values():
        known |= {one.name.upper()} | set(getattr(one.module, "KNOWN_TAGS", ()))
    for name in names:
        if name.upper() not in known:
            raise UsageError(
                f"tag {name}: unknown{closest(name, sorted(known)) or '.'} There are "
                f"{' '.join(sorted(known))}"
            )


def descriptor(source: Any, name: str, **options: Any) -> Any:
    """Value of a descriptor: one value, or one for each array in a list; None where unknown.

    Sections are 0-based half-open [x1, x2, y1, y2]. Wavelengths are in metres, angles in degrees,
    times are datetime objects (UT). Options, where they make sense: `pretty`, `stripID`;
    `asMicrometers`, `asNanometers`, `asAngstroms`.

    Raises GdaskError for a name that is no descriptor.
    """
    if name not in DESCRIPTORS:
        raise GdaskError(unknown_descriptor(name, DESCRIPTORS))
    return view(source)(name, **options)


def step_defaults(instrument: Instrument, step_name: str) -> dict[str, Any]:
    """Defaults of a step that the instrument changes: the table [steps.NAME] of its facts."""
    return dict(instrument.facts.get("steps", {}).get(step_name, {}))


def _headers(source: Any) -> Headers:
    """Headers of a path, of Headers, or of a Frame (attrs with phu, headers and path)."""
    if isinstance(source, Headers):
        return source
    if isinstance(source, (str, os.PathLike)):
        return read_headers(source)
    if "phu" in getattr(source, "attrs", {}):
        return frame_headers(source)
    raise GdaskError(
        f"tags and descriptors need a path, Headers or a Frame, not {type(source).__name__}"
    )


for _module in (gsaoi, f2):
    register(Path(__file__).with_name(f"{_module.__name__.rpartition('.')[2]}.toml"), _module)
