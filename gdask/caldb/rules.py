"""Which calibration fits a frame: rules as data (rules.toml), a ranking with every rule's verdict as the result."""

from __future__ import annotations

import datetime as dt
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gdask.caldb.config import Database
from gdask.caldb.describe import Row, caltype_name, describe, what_is_wrong
from gdask.model import GdaskError
from gdask.types import Headers

if TYPE_CHECKING:
    from gdask.types import Frame

TOLERANCE = (
    0.01  # numbers closer than this are the same: headers round exposure times (60.001 s, 60.002 s)
)


class Spec(NamedTuple):
    """The rules for one type of calibration of one instrument, as rules.toml explains them."""

    needed_by: tuple[str, ...] = ()
    not_for: tuple[str, ...] = ()
    on_request: bool = False
    equal: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()
    max_days: float | None = None
    valid_from: bool = False
    note: str = ""


class Verdict(NamedTuple):
    """One rule applied to one calibration."""

    rule: str
    passed: bool
    text: str  # with the values: "filter: Kshort wanted, J found"
    required: bool = True


class Candidate(NamedTuple):
    """One registered calibration and how it did."""

    path: str
    name: str
    database: str
    order: int  # of its database: those asked first win
    days: float | None  # its time minus the frame's
    verdicts: tuple[Verdict, ...]
    row: Row

    @property
    def failed(self) -> tuple[Verdict, ...]:
        """The rules that rule it out."""
        return tuple(
            verdict for verdict in self.verdicts if verdict.required and not verdict.passed
        )


class Association(NamedTuple):
    """The answer: the path of the calibration to use (None if none fits) and the ranking that led to it."""

    frame: str
    instrument: str
    caltype: str
    chosen: str | None
    candidates: tuple[Candidate, ...]  # best first
    ties: tuple[str, ...]  # paths exactly as good as the chosen one
    databases: tuple[str, ...]  # the ones that were asked
    spec: Spec | None  # None: no rules for this instrument and type


def associate(
    source: Headers | Frame | str | os.PathLike[str],
    caltype: str,
    databases: Sequence[Database],
    spec: Spec | None = None,
) -> Association:
    """Find the calibration of a type ('processed_flat', 'flat' ...) for a frame, given by path, Headers or Frame.

    Databases are asked in order; the first with a fitting calibration wins. Within one: most preferences met, nearest
    in time, the later one, name. A calibration that is gone or changed on disk is not chosen. Only headers are read.
    """
    from gdask.headers import read_headers
    from gdask.instruments import view

    source = read_headers(source) if isinstance(source, str | os.PathLike) else source
    caltype, frame = caltype_name(caltype), describe(source)
    spec = spec if spec is not None else specs_for(source).get(caltype)
    asked = [database for database in databases if database.get and database.url]
    found = [
        (order, database.name, row)
        for order, database in enumerate(asked)
        for row in _rows(database, caltype, frame["instrument"])
    ]
    ranking = check_files(rank(frame, found, spec)) if spec is not None else ()
    chosen = ranking[0] if ranking and not ranking[0].failed else None
    ties = tuple(
        other.path for other in ranking[1:] if chosen and _merit(other)[:4] == _merit(chosen)[:4]
    )
    return Association(
        view(source).path,
        frame["instrument"],
        caltype,
        chosen.path if chosen else None,
        ranking,
        ties,
        tuple(database.name for database in asked),
        spec,
    )


def rank(frame: Row, found: Iterable[tuple[int, str, Row]], spec: Spec) -> tuple[Candidate, ...]:
    """Apply the rules to calibrations given as (order of database, its name, row), best first."""
    candidates = [
        Candidate(
            row["path"],
            row["name"],
            database,
            order,
            _days(frame, row),
            judge(frame, row, spec),
            row,
        )
        for order, database, row in found
    ]
    return tuple(sorted(candidates, key=_merit))


def judge(frame: Row, row: Row, spec: Spec) -> tuple[Verdict, ...]:
    """Every rule's verdict on one calibration, in the order: equal, arrays, time, preferences."""
    verdicts = [_equal(frame, row, name, required=True) for name in spec.equal]
    verdicts.append(_arrays(frame, row))
    if spec.max_days is not None:
        verdicts.append(_within(frame, row, spec.max_days))
    if spec.valid_from:
        verdicts.append(_valid_from(frame, row))
    return (*verdicts, *(_equal(frame, row, name, required=False) for name in spec.prefer))


def check_files(ranking: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Look at the files of the candidates that fit, rank those that are gone or changed last, drop second copies."""
    checked, seen = [], set()
    for candidate in ranking:
        if not candidate.failed:
            if candidate.row.get("md5") in seen:
                continue
            trouble = what_is_wrong(candidate.row)
            verdict = Verdict("file", not trouble, f"file: {trouble or 'as registered'}")
            candidate = candidate._replace(verdicts=(*candidate.verdicts, verdict))
            if not trouble and candidate.row.get("md5"):
                seen.add(candidate.row["md5"])
        checked.append(candidate)
    return tuple(sorted(checked, key=_merit))


def needed_types(tags: Iterable[str], specs: Mapping[str, Spec]) -> tuple[str, ...]:
    """The types of calibration that a frame with these tags can need, by the rules of its instrument."""
    have = set(tags)
    return tuple(
        caltype
        for caltype, spec in specs.items()
        if not spec.on_request
        and have.issuperset(spec.needed_by)
        and not have.intersection(spec.not_for)
    )


def specs_for(source: Headers | Frame | str | os.PathLike[str]) -> dict[str, Spec]:
    """The rules by type of calibration for a frame's instrument: the shipped ones, then those in its own facts."""
    from gdask.instruments import instrument_of

    instrument = instrument_of(source)
    table = _shipped_rules().get(instrument.name, {}) | instrument.facts.get("calibrations", {})
    return {
        caltype: spec_of(entry, f"{instrument.name}, {caltype}") for caltype, entry in table.items()
    }


def spec_of(entry: Mapping[str, Any], where: str = "rules") -> Spec:
    """A Spec from a table of TOML; GdaskError for a word that is none of its fields."""
    unknown = sorted(set(entry) - set(Spec._fields))
    if unknown:
        raise GdaskError(
            f"association rules of {where}: unknown '{unknown[0]}'; expected {', '.join(Spec._fields)}"
        )
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
    }
    return Spec(**values)


@lru_cache(maxsize=1)
def _shipped_rules() -> dict[str, dict[str, dict[str, Any]]]:
    return tomllib.loads((Path(__file__).parent / "rules.toml").read_text(encoding="utf-8"))


def _rows(database: Database, caltype: str, instrument: str) -> list[Row]:
    from gdask.caldb.database import rows

    return rows(database, caltype, instrument)


def _merit(candidate: Candidate) -> tuple[Any, ...]:
    """Smaller is better; the first four say how good it is, the others only make the order certain."""
    missed = sum(not verdict.passed for verdict in candidate.verdicts if not verdict.required)
    days = candidate.days
    distance = abs(days) if days is not None else float("inf")
    return (
        len(candidate.failed),
        candidate.order,
        missed,
        distance,
        -(days or 0.0),
        candidate.name,
        candidate.path,
    )


def _days(frame: Row, row: Row) -> float | None:
    if frame["ut_datetime"] is None or row["ut_datetime"] is None:
        return None
    return (row["ut_datetime"] - frame["ut_datetime"]) / dt.timedelta(days=1)


def _label(name: str) -> str:
    return name.removesuffix("_name").replace("_", " ")


def _equal(frame: Row, row: Row, name: str, required: bool) -> Verdict:
    wanted, found, label = frame.get(name), row.get(name), _label(name)
    if wanted is None or found is None:
        where = "the frame" if wanted is None else "the calibration"
        return Verdict(label, False, f"{label}: unknown in {where} (no such keyword?)", required)
    if wanted == found:
        return Verdict(label, True, f"{label}: {wanted}", required)
    numbers = isinstance(wanted, int | float) and isinstance(found, int | float)
    if numbers and abs(wanted - found) <= TOLERANCE:
        return Verdict(label, True, f"{label}: {found} taken as equal to {wanted}", required)
    verb = "wanted" if required else "preferred"
    return Verdict(label, False, f"{label}: {wanted} {verb}, {found} found", required)


def _within(frame: Row, row: Row, limit: float) -> Verdict:
    days = _days(frame, row)
    if days is None:
        return Verdict("time", False, "time: unknown (no date or time in the header)")
    return Verdict("time", abs(days) <= limit, f"time: {abs(days):.1f} d apart, limit {limit:g} d")


def _valid_from(frame: Row, row: Row) -> Verdict:
    """The date counts, not the hour: a calibration serves the whole of the UT day that it is valid from."""
    when, start = frame["ut_datetime"], row["ut_datetime"]
    if when is None or start is None:
        return Verdict("valid from", False, "valid from: unknown (no date in the header)")
    passed = start.date() <= when.date()
    text = f"valid from: {start.date()}" + ("" if passed else f", the frame is of {when.date()}")
    return Verdict("valid from", passed, text)


def _arrays(frame: Row, row: Row) -> Verdict:
    """Each array of the frame must lie within the calibration's array of the same name (same place if unnamed)."""
    named = all(one["array_name"] and all(one["array_name"]) for one in (frame, row))
    ours, theirs = _pieces(frame, named), _pieces(row, named)
    for key, (section, shape) in ours.items():
        if key not in theirs:
            return Verdict(
                "arrays",
                False,
                f"arrays: {key} wanted, {', '.join(map(str, theirs)) or 'none'} found",
            )
        other, other_shape = theirs[key]
        if section is None or other is None:
            return Verdict("arrays", False, f"arrays: {key}: section unknown (no DETSEC?)")
        x1, x2, y1, y2 = section
        inside = other[0] <= x1 and x2 <= other[1] and other[2] <= y1 and y2 <= other[3]
        if not inside:
            return Verdict(
                "arrays",
                False,
                f"arrays: {key}: {section} wanted, {other} found (0-based [x1, x2, y1, y2])",
            )
        if (
            section == other and shape != other_shape
        ):  # the section in the header is not the real one
            return Verdict(
                "arrays", False, f"arrays: {key}: {shape} pixels wanted, {other_shape} found"
            )
    return Verdict(
        "arrays", bool(ours), "arrays: all covered" if ours else "arrays: the frame has none"
    )


def _pieces(row: Row, named: bool) -> dict[str, tuple[list[int] | None, list[int] | None]]:
    """{array name, or its number: (section, shape)} of a row."""
    sections, shapes = row["detector_section"] or [], row["shape"] or []
    names = (
        row["array_name"] if named else [f"array {number + 1}" for number in range(len(sections))]
    )
    padded = [*shapes, *[None] * len(sections)]
    return {name: (section, shape) for name, section, shape in zip(names, sections, padded)}
