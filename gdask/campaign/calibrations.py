"""The calibration of each type for a group of files, by the rules of association, and why it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gdask.caldb.association import (
    Candidate,
    TypeRules,
    rank_calibrations,
    rules_for_instrument,
)
from gdask.campaign.describe import RawFile
from gdask.campaign.groups import Group
from gdask.campaign.job import Choice, Job, row_of
from gdask.campaign.settings import Flag, Settings

#: Bad-pixel masks that are made from flats and darks of the campaign serve so many days before and
#: after: F2's bad pixels change slowly, and darks short enough for a mask are rare.
MADE_BPM_DAYS = 180
#: In which order calibrations are taken: those that are made, those that were found.
_ORDER = {"remake": (0, 1), "reuse": (1, 0), "nearest": (0, 0)}
#: Calibrations that the rules look at for one group.
MAX_JUDGED = 40


class Offers(NamedTuple):
    """Calibrations that there are to choose from.

    made: (job, row for the rules) of those that jobs would make, by type. found: processed ones
    among the files. failed: of jobs that failed, or whose products are not fit for use, why.
    """

    made: dict[str, list[tuple[Job, dict[str, Any]]]]
    found: Sequence[RawFile]
    settings: Settings
    flags: Sequence[Flag]
    failed: Mapping[str, str]


def choose(offers: Offers, caltype: str, group: Group, required: bool = True) -> Choice:
    """Choose the calibration of a type for a group, by the rules of association."""
    rules = rules_for_instrument(group.instrument).get(caltype, TypeRules())
    if caltype == "processed_bpm" and group.instrument == "F2":
        rules = rules._replace(valid_from=False, max_days=MADE_BPM_DAYS)
    made_order, found_order = _ORDER[offers.settings.calibrations]
    rows = [
        (made_order, "made", row)
        for job, row in offers.made.get(caltype, ())
        if row["instrument"] == group.instrument
    ]
    rows += [
        (found_order, "found", row_of(file) | {"path": file.path, "name": file.name})
        for file in offers.found
        if file.kind == caltype and file.instrument == group.instrument
    ]
    middle = group.files[len(group.files) // 2]
    ranking = rank_calibrations(row_of(middle), _near(rows, row_of(middle), rules), rules)
    blocked = {job.id: job.blocked for job, _ in offers.made.get(caltype, ()) if job.blocked}
    judged = [(one, _level(offers, one, rules, middle, blocked)) for one in ranking]
    fitting = [(one, level) for one, (level, why) in judged if not why]
    misses = tuple(f"{one.name}: {why}" for one, (_, why) in judged if why)[:3]
    lost = tuple(one.path for one in ranking if one.path in offers.failed)
    if not fitting:
        accepted = "" if ranking else f"none among the files for {group.instrument}"
        return Choice(caltype, "", 0, accepted or "none fits", misses, required, lost)
    best, level = min(fitting, key=lambda pair: (pair[1] > 1, ranking.index(pair[0])))
    others = tuple(f"{one.name}: {_when(one)}" for one, _ in fitting if one is not best)[:2]
    better = [one.path for one in ranking[: ranking.index(best)]]
    instead_of = tuple(name for name in lost if name in better)
    bad = ", ".join(f"{name} ({offers.failed[name]})" for name in instead_of)
    why = _when(best) + (f", instead of {bad}" if bad else "")
    return Choice(caltype, best.path, level, why, (*misses, *others), required, instead_of)


def _near(
    rows: list[tuple[int, str, dict[str, Any]]], frame: Mapping[str, Any], rules: TypeRules
) -> list[tuple[int, str, dict[str, Any]]]:
    """Give the calibrations nearest in time: those that agree with the frame, and some others.

    Of thousands the rules need not look at all: the best is among these, and the nearest miss.
    """
    if len(rows) <= MAX_JUDGED:
        return rows
    time = frame["ut_datetime"]
    when = [abs((row[2]["ut_datetime"] - time).total_seconds()) for row in rows]
    agrees = [all(row[2].get(k) == frame.get(k) for k in rules.equal) for row in rows]
    order = sorted(range(len(rows)), key=when.__getitem__)
    alike = [number for number in order if agrees[number]][: MAX_JUDGED - 5]
    others = [number for number in order if not agrees[number]][:5]
    return [rows[number] for number in (*alike, *others)]


def _level(
    offers: Offers, one: Candidate, rules: TypeRules, frame: RawFile, blocked: Mapping[str, str]
) -> tuple[int, str]:
    """Give the level of a candidate, and why it is not taken or ''."""
    if one.path in offers.failed:
        return 0, offers.failed[one.path]
    if one.path in blocked:
        return 0, f"its job is blocked: {blocked[one.path]}"
    if text := _expired(offers, one.path, frame):
        return 0, text
    if one.failed:
        only_time = {verdict.rule for verdict in one.failed} == {"time"}
        if only_time and one.days is not None and offers.settings.accept_level >= 2:
            return 2, ""
        return 2, "; ".join(verdict.text for verdict in one.failed)
    preferred = rules.preferred_days
    level = int(one.days is not None and preferred is not None and abs(one.days) > preferred)
    if level > offers.settings.accept_level:
        return level, f"{abs(one.days or 0):.1f} d apart, level {level} is not accepted"
    return level, ""


def _expired(offers: Offers, source: str, frame: RawFile) -> str:
    """Say since when a calibration is not good any more for a frame, by a flag; '' if it is."""
    for flag in offers.flags:
        until = flag.good_until
        is_meant = os.path.basename(flag.file) in (source, os.path.basename(source))
        if until and is_meant and frame.night > until.replace("-", ""):
            return f"flagged good until {until}"
    return ""


def lack(choices: Iterable[Choice]) -> str:
    """Say which calibrations are missing that a job cannot do without; '' where none is."""
    return "; ".join(
        f"no {one.caltype} ({one.why}" + (f"; nearest: {one.misses[0]})" if one.misses else ")")
        for one in choices
        if one.required and not one.source
    )


def _when(candidate: Candidate) -> str:
    if candidate.days is None:
        return "no time known"
    return f"{abs(candidate.days):.1f} d {'later' if candidate.days >= 0 else 'earlier'}"
