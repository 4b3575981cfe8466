"""Which calibration fits a frame: databases, rules as data (rules.toml), and a ranking.

Databases are the lines `databases` in section [calibs] of ~/.dragons/dragonsrc, or
./cal_manager.db. The ranking of what is registered keeps the verdict of every rule.
"""

from __future__ import annotations

import datetime as dt
import functools
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gdask.caldb.config import Database, Row
from gdask.headers import Headers
from gdask.model import GdaskError

if TYPE_CHECKING:
    from gdask.instruments import Instrument
    from gdask.types import Frame

#: Section and shape of each array of a file, by its name or number.
_Sections = dict[str, tuple[list[int] | None, list[int] | None]]
#: Numbers closer than this are the same: headers round exposure times (60.001 s, 60.002 s).
NUMBER_TOLERANCE = 0.01


class TypeRules(NamedTuple):
    """The rules for one type of calibration of one instrument, as rules.toml explains them."""

    needed_by: tuple[str, ...] = ()
    not_for: tuple[str, ...] = ()
    on_request: bool = False
    equal: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()
    max_days: float | None = None
    preferred_days: float | None = None
    valid_from: bool = False
    note: str = ""


class RuleVerdict(NamedTuple):
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
    verdicts: tuple[RuleVerdict, ...]
    row: Row

    @property
    def failed(self) -> tuple[RuleVerdict, ...]:
        """The rules that rule it out."""
        return tuple(one for one in self.verdicts if one.required and not one.passed)


class Association(NamedTuple):
    """The path of the calibration to use (None if none fits), and the ranking behind it."""

    frame: str
    instrument: str
    caltype: str
    chosen: str | None
    candidates: tuple[Candidate, ...]  # best first
    ties: tuple[str, ...]  # paths exactly as good as the chosen one
    databases: tuple[str, ...]  # the ones that were asked
    rules: TypeRules | None  # None: no rules for this instrument and type


def associate(
    source: Headers | Frame | str | os.PathLike[str],
    caltype: str,
    databases: Sequence[Database],
    rules: TypeRules | None = None,
    answers: dict[tuple[str, ...], Any] | None = None,
) -> Association:
    """Find the calibration of a type ('processed_flat', 'flat' ...) for a frame.

    The first database with a fitting calibration wins. Within one: most preferences met, nearest in
    time, the later one, name. A calibration that is gone or changed on disk is not chosen. Only
    headers are read. Calls that share `answers` ask each database once for a type, and look at each
    file once.
    """
    from gdask.caldb.database import caltype_name, describe, rows
    from gdask.headers import read_headers
    from gdask.instruments import view

    source = read_headers(source) if isinstance(source, str | os.PathLike) else source
    caltype, frame = caltype_name(caltype), describe(source)
    rules = rules if rules is not None else rules_for(source).get(caltype)
    asked = [database for database in databases if database.get and database.url]
    found = [
        (order, database.name, row)
        for order, database in enumerate(asked)
        for row in _once(
            answers,
            ("rows", database.name, database.url, caltype, frame["instrument"]),
            functools.partial(rows, database, caltype, frame["instrument"]),
        )
    ]
    ranking: tuple[Candidate, ...] = ()
    if rules is not None:
        ranking = check_files(rank_calibrations(frame, found, rules), answers)
    chosen = ranking[0] if ranking and not ranking[0].failed else None
    ties = tuple(
        other.path
        for other in ranking[1:]
        if chosen and _ranking_key(other)[:4] == _ranking_key(chosen)[:4]
    )
    return Association(
        view(source).path,
        frame["instrument"],
        caltype,
        chosen.path if chosen else None,
        ranking,
        ties,
        tuple(database.name for database in asked),
        rules,
    )


def rank_calibrations(
    frame: Row, found: Iterable[tuple[int, str, Row]], rules: TypeRules
) -> tuple[Candidate, ...]:
    """Apply the rules to calibrations given as (order of database, its name, row), best first."""
    candidates = []
    for order, database, row in found:
        days, verdicts = _days(frame, row), judge_calibration(frame, row, rules)
        candidates.append(Candidate(row["path"], row["name"], database, order, days, verdicts, row))
    return tuple(sorted(candidates, key=_ranking_key))


def judge_calibration(frame: Row, row: Row, rules: TypeRules) -> tuple[RuleVerdict, ...]:
    """Every rule's verdict on one calibration, in the order: equal, arrays, time, preferences."""
    verdicts = [_judge_equality(frame, row, name, required=True) for name in rules.equal]
    verdicts.append(_judge_arrays(frame, row))
    if rules.max_days is not None:
        verdicts.append(_judge_time(frame, row, rules.max_days))
    if rules.valid_from:
        verdicts.append(_judge_valid_from(frame, row))
    return (
        *verdicts,
        *(_judge_equality(frame, row, name, required=False) for name in rules.prefer),
    )


def doubts_of(frames: Iterable[Frame], path: str, caltype: str) -> dict[str, list[str]]:
    """Say which required rules a calibration that somebody names breaks, with values.

    Gives the names of the frames for which it breaks each. Raises GdaskError where it is of another
    instrument, or of another kind.
    """
    from gdask.caldb.database import caltype_name, describe

    caltype, row = caltype_name(caltype), describe(path)
    doubts: dict[str, list[str]] = {}
    for frame in frames:
        wanted = describe(frame)
        for name, value in (("instrument", wanted["instrument"]), ("caltype", caltype)):
            if row.get(name) and row[name] != value:
                raise GdaskError(
                    f"{caltype} {path}: {name} {row[name]} came, {value} is wanted for these"
                    " frames; give another one"
                )
        rules = rules_for(frame).get(caltype)
        for verdict in judge_calibration(wanted, row, rules) if rules else ():
            if verdict.required and not verdict.passed:
                doubts.setdefault(verdict.text, []).append(frame.attrs["name"])
    return doubts


def _once(
    answers: dict[tuple[str, ...], Any] | None, question: tuple[str, ...], find: Callable[[], Any]
) -> Any:
    """Give what `find` gives, or has given for the same question."""
    if answers is None:
        return find()
    if question not in answers:
        answers[question] = find()
    return answers[question]


def check_files(
    ranking: Sequence[Candidate], answers: dict[tuple[str, ...], Any] | None = None
) -> tuple[Candidate, ...]:
    """Look at the files of the candidates that fit.

    Those that are gone or changed are ranked last, second copies of a file are dropped.
    """
    from gdask.caldb.database import file_problem

    checked, seen = [], set()
    for candidate in ranking:
        if not candidate.failed:
            if candidate.row.get("md5") in seen:
                continue
            look = functools.partial(file_problem, candidate.row)
            trouble = _once(answers, ("file", candidate.database, candidate.path), look)
            verdict = RuleVerdict("file", not trouble, f"file: {trouble or 'as registered'}")
            candidate = candidate._replace(verdicts=(*candidate.verdicts, verdict))
            if not trouble and candidate.row.get("md5"):
                seen.add(candidate.row["md5"])
        checked.append(candidate)
    return tuple(sorted(checked, key=_ranking_key))


def needed_types(tags: Iterable[str], rules_by_type: Mapping[str, TypeRules]) -> tuple[str, ...]:
    """The types of calibration that a frame with these tags can need."""
    have = set(tags)
    return tuple(
        caltype
        for caltype, rules in rules_by_type.items()
        if not rules.on_request
        and have.issuperset(rules.needed_by)
        and not have.intersection(rules.not_for)
    )


def rules_for(source: Headers | Frame | str | os.PathLike[str]) -> dict[str, TypeRules]:
    """The rules for a frame's instrument by type: those of its own facts, else the shipped."""
    from gdask.instruments import instrument_of

    return _rules_of(instrument_of(source))


def rules_for_instrument(name: str) -> dict[str, TypeRules]:
    """The rules for an instrument by type of calibration."""
    from gdask.instruments import instrument_named

    return _rules_of(instrument_named(name))


def _rules_of(instrument: Instrument) -> dict[str, TypeRules]:
    table = _shipped_rules().get(instrument.name, {}) | instrument.facts.get("calibrations", {})
    return {
        caltype: rules_from_table(entry, f"{instrument.name}, {caltype}")
        for caltype, entry in table.items()
    }


def rules_from_table(entry: Mapping[str, Any], where: str = "rules") -> TypeRules:
    """A Spec from a table of TOML; GdaskError for a word that is none of its fields."""
    unknown = sorted(set(entry) - set(TypeRules._fields))
    if unknown:
        raise GdaskError(
            f"association rules of {where}: unknown '{unknown[0]}'; expected "
            f"{', '.join(TypeRules._fields)}"
        )
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
    }
    return TypeRules(**values)


@functools.lru_cache(maxsize=1)
def _shipped_rules() -> dict[str, dict[str, dict[str, Any]]]:
    return tomllib.loads((Path(__file__).parent / "rules.toml").read_text(encoding="utf-8"))


def _ranking_key(candidate: Candidate) -> tuple[Any, ...]:
    """Sort key, smaller is better: four parts for how good it is, others for a fixed order."""
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


def _judge_equality(frame: Row, row: Row, name: str, required: bool) -> RuleVerdict:
    wanted, found = frame.get(name), row.get(name)
    label = name.removesuffix("_name").replace("_", " ")
    if wanted is None or found is None:
        where = "the frame" if wanted is None else "the calibration"
        return RuleVerdict(
            label, False, f"{label}: unknown in {where} (no such keyword?)", required
        )
    if wanted == found:
        return RuleVerdict(label, True, f"{label}: {wanted}", required)
    numbers = isinstance(wanted, int | float) and isinstance(found, int | float)
    if numbers and abs(wanted - found) <= NUMBER_TOLERANCE:
        return RuleVerdict(label, True, f"{label}: {found} taken as equal to {wanted}", required)
    verb = "wanted" if required else "preferred"
    return RuleVerdict(label, False, f"{label}: {wanted} {verb}, {found} found", required)


def _judge_time(frame: Row, row: Row, limit: float) -> RuleVerdict:
    days = _days(frame, row)
    if days is None:
        return RuleVerdict("time", False, "time: unknown (no date or time in the header)")
    return RuleVerdict(
        "time", abs(days) <= limit, f"time: {abs(days):.1f} d apart, limit {limit:g} d"
    )


def _judge_valid_from(frame: Row, row: Row) -> RuleVerdict:
    """Whether the calibration is valid on the UT day of the frame; hours do not count."""
    when, start = frame["ut_datetime"], row["ut_datetime"]
    if when is None or start is None:
        return RuleVerdict("valid from", False, "valid from: unknown (no date in the header)")
    passed = start.date() <= when.date()
    text = f"valid from: {start.date()}" + ("" if passed else f", the frame is of {when.date()}")
    return RuleVerdict("valid from", passed, text)


def _judge_arrays(frame: Row, row: Row) -> RuleVerdict:
    """Whether each array of the frame lies within the calibration's array of the same name.

    Where arrays have no names, those at the same place are compared.
    """
    named = all(one["array_name"] and all(one["array_name"]) for one in (frame, row))
    wanted, found = _sections_by_array(frame, named), _sections_by_array(row, named)
    problem = next((text for key in wanted if (text := _array_problem(key, wanted, found))), "")
    if problem:
        return RuleVerdict("arrays", False, f"arrays: {problem}")
    text = "arrays: all covered" if wanted else "arrays: the frame has none"
    return RuleVerdict("arrays", bool(wanted), text)


def _array_problem(key: str, wanted: _Sections, found: _Sections) -> str:
    """Why the calibration does not cover this array of the frame; '' where it does."""
    if key not in found:
        return f"{key} wanted, {', '.join(map(str, found)) or 'none'} found"
    (section, shape), (covered, covered_shape) = wanted[key], found[key]
    if section is None or covered is None:
        return f"{key}: section unknown (no DETSEC?)"
    x1, x2, y1, y2 = section
    if not (covered[0] <= x1 and x2 <= covered[1] and covered[2] <= y1 and y2 <= covered[3]):
        return f"{key}: {section} wanted, {covered} found (0-based [x1, x2, y1, y2])"
    if section == covered and shape != covered_shape:  # the header's section is not the real one
        return f"{key}: {shape} pixels wanted, {covered_shape} found"
    return ""


def _sections_by_array(row: Row, named: bool) -> _Sections:
    """{array name, or its number: (section, shape)} of a row."""
    sections, shapes = row["detector_section"] or [], row["shape"] or []
    names = (
        row["array_name"] if named else [f"array {number + 1}" for number in range(len(sections))]
    )
    padded = [*shapes, *[None] * len(sections)]
    return {name: (section, shape) for name, section, shape in zip(names, sections, padded)}


def remarks_on(association: Association) -> list[str]:
    """Give the remarks for the log: values taken as equal; the rules' note if nothing is chosen."""
    if association.chosen:
        return [v.text for v in association.candidates[0].verdicts if "taken as equal" in v.text]
    note = association.rules.note if association.rules is not None else ""
    return [note] if note else []
