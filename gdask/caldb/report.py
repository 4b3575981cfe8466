"""An association in words."""

from __future__ import annotations

import os
from collections.abc import Iterable

from gdask.caldb.association import Association, Candidate
from gdask.model import NoCalibration


def explain(association: Association, limit: int | None = 5) -> str:
    """Which calibration was chosen for a frame and why, or why none fits.

    At most `limit` candidates are listed (None: all). Each has its name, how far it is in time, and
    the rules that it failed, or all of them if it fits.
    """
    lines = [_headline(association)]
    shown = association.candidates[:limit]
    for number, candidate in enumerate(shown, start=1):
        lines.append(f"  {number}. {_candidate_line(candidate)}")
        lines.extend(f"       {text}" for text in _verdict_lines(candidate))
    left = len(association.candidates) - len(shown)
    if left:
        lines.append(f"  ... and {left} more")
    if association.ties:
        same = ", ".join(os.path.basename(path) for path in association.ties)
        lines.append(f"  Equally good: {same}. The order is: nearest in time, the later one, name.")
    if association.chosen is None:
        lines.extend(_advice(association))
    return "\n".join(lines)


def _headline(association: Association) -> str:
    frame = os.path.basename(association.frame) or "the frame"
    subject = f"{association.caltype} for {frame}"
    if association.chosen is not None:
        return f"{subject}: {association.chosen}"
    count = len(association.candidates)
    if association.rules is None:
        return f"{subject}: none, because {association.instrument} has no rules for it"
    where = ", ".join(association.databases) or "no database (none is marked 'get')"
    if not count:
        return f"{subject}: none is registered for {association.instrument} in {where}"
    return (
        f"{subject}: none of the {count} registered for {association.instrument} fits "
        f"({where}); nearest first:"
    )


def _candidate_line(candidate: Candidate) -> str:
    if candidate.days is None:
        return candidate.path
    when = "later" if candidate.days >= 0 else "earlier"
    return f"{candidate.path} ({abs(candidate.days):.1f} d {when}) in {candidate.database}"


def _verdict_lines(candidate: Candidate) -> list[str]:
    if candidate.failed:
        return [f"failed  {verdict.text}" for verdict in candidate.failed]
    return [
        f"{'ok    ' if verdict.passed else 'less  '}  {verdict.text}"
        for verdict in candidate.verdicts
    ]


def _advice(association: Association) -> list[str]:
    if association.rules is None:
        return []
    if association.rules.note:
        return [f"  Note: {association.rules.note}"]
    return [
        "  Make one with 'reduce', add one with 'caldb add FILE', or name one with",
        f"  'reduce --user_cal {association.caltype}:FILE'.",
    ]


def no_calibrations(lacking: Iterable[tuple[str, Association]]) -> NoCalibration:
    """Give the error for frames, by name, that lack calibrations.

    It names the nearest candidates and the rule that each failed. Each type of calibration is
    explained once, for the first frame that lacks it.
    """
    first: dict[str, str] = {}
    for name, association in lacking:
        first.setdefault(
            association.caltype, f"{name}: no {association.caltype}\n{explain(association)}"
        )
    return NoCalibration("\n".join(first.values()))
