"""What needs a decision of a person, the worst first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

Facts = dict[str, Any]
#: Kinds of decisions in the order in which they are listed, each with its word and state.
KINDS = {
    "failed": ("failed", "failure"),
    "blocked": ("blocked", "failure"),
    "gate failed": ("gate failed", "failure"),
    "begun": ("not ended", "failure"),
    "changed": ("product changed", "failure"),
    "unreadable": ("cannot be read", "failure"),
    "gate": ("gate not met", "warning"),
    "level": ("far calibration", "warning"),
    "versions": ("mixed versions", "warning"),
    "left out": ("left out", "warning"),
    "not run": ("not run", "unchecked"),
}


def decisions(jobs: Sequence[Facts], products: Sequence[Facts]) -> list[Facts]:
    """Give what needs a decision: kind, about what (job or product), and why in words."""
    rows = [*_jobs(jobs), *_gates(products), *_levels(jobs), *_versions(products)]
    rows += _left_out(jobs)
    order = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(rows, key=lambda row: order[row["kind"]])


def _row(kind: str, why: str, job: str = "", product: str = "") -> Facts:
    word, state = KINDS[kind]
    return {"kind": kind, "word": word, "state": state, "why": why, "job": job, "product": product}


def _jobs(jobs: Iterable[Facts]) -> Iterable[Facts]:
    for job in jobs:
        if job["state"] in ("failed", "blocked", "begun", "changed"):
            yield _row(job["state"], job["cause"] or "no cause is known", job=job["id"])
        elif job["state"] == "not run":
            yield _row("not run", "planned, and not made yet", job=job["id"])


def _gates(products: Iterable[Facts]) -> Iterable[Facts]:
    for one in products:
        if one["trouble"]:
            yield _row("unreadable", one["trouble"], product=one["path"])
        for state, kind in (("failure", "gate failed"), ("warning", "gate")):
            missed = [each["sentence"] for each in one["verdicts"] if each["state"] == state]
            if missed:
                yield _row(kind, "; ".join(missed), product=one["path"])


def _levels(jobs: Iterable[Facts]) -> Iterable[Facts]:
    for job in jobs:
        far = [one for one in job["calibrations"] if one["level"]]
        for one in far:
            age = "beyond the longest time" if one["level"] > 1 else "beyond the preferred time"
            text = f"{one['type']} {one['source']}: {one['why']}, level {one['level']} ({age})"
            yield _row("level", text, job=job["id"])


def _versions(products: Sequence[Facts]) -> Iterable[Facts]:
    counts = Counter(one["gdask"] for one in products if one["gdask"])
    if len(counts) > 1:
        said = ", ".join(f"{count} by gdask {name}" for name, count in sorted(counts.items()))
        yield _row("versions", f"products were made by different versions: {said}")


def _left_out(jobs: Iterable[Facts]) -> Iterable[Facts]:
    for job in jobs:
        if job["left_out"] and job["state"] == "made":
            shown = "; ".join(job["left_out"][:3])
            more = f"; and {len(job['left_out']) - 3} more" if len(job["left_out"]) > 3 else ""
            yield _row("left out", shown + more, job=job["id"])
