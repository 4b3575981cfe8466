"""The questions of a reviewer about a stack or frame, answered from its numbers, with commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from gdask.report.products import suspicious

_ORDER = ("passed", "warning", "failure")


class _Question(NamedTuple):
    """A question: numbers that answer it, pictures to look at, and the frame that stands out.

    column: of the frames' table, by which a frame may be left out; lowest: whether its least value
    is the suspicious one. reason, because, alone: for `gdask flag`: `--as`, `--because` of a frame
    of a stack, and of a frame by itself.
    """

    text: str
    numbers: tuple[str, ...]
    pictures: tuple[str, ...]
    column: str
    lowest: bool
    reason: str
    because: str
    alone: str


_QUESTIONS = (
    _Question(
        "Is the noise as predicted?",
        ("noise_ratio", "depth_over_predicted"),
        ("noise",),
        "weight",
        True,
        "cloud",
        "lowest weight of the stack",
        "noise is not as predicted",
    ),
    _Question(
        "Is the field covered?",
        ("centre_covered", "area_covered", "worst_rejected_fraction"),
        ("depth_map",),
        "rejected",
        False,
        "trail",
        "largest rejected fraction of the stack",
        "pixels are missing",
    ),
    _Question(
        "Is the sky flat?",
        ("sky_unevenness",),
        ("background",),
        "sky",
        False,
        "bad",
        "highest sky of the stack",
        "sky is not flat",
    ),
    _Question(
        "Is the PSF as usual?",
        ("fwhm", "ellipticity"),
        ("fwhm",),
        "fwhm",
        False,
        "guiding",
        "widest stars of the stack",
        "stars are wide or long",
    ),
    _Question(
        "Are the residuals random?",
        ("astrometric_rms", "catalogue_rms", "fewest_matches"),
        ("residuals",),
        "rms",
        False,
        "pointing",
        "largest residuals of the stack",
        "residuals are not random",
    ),
)
_ANSWERS = {
    "passed": "yes, within the limits",
    "warning": "look at it",
    "failure": "no",
    "unchecked": "not checked: no gate judges it here",
}


def questions(product: Mapping[str, Any], out: str) -> list[dict[str, Any]]:
    """Give the questions about an image, each with answer, numbers, pictures and command.

    out: name of the folder of results, as the command is given it; '' where there is no campaign.
    """
    if product["of"] not in ("image", "frame"):
        return []
    asked = [_answered(one, product, out) for one in _QUESTIONS]
    return [one for one in asked if one["numbers"] or product["of"] == "image"]


def _answered(question: _Question, product: Mapping[str, Any], out: str) -> dict[str, Any]:
    judged = {one["number"]: one for one in product["verdicts"]}
    states = [judged[name]["state"] for name in question.numbers if name in judged]
    states = [one for one in states if one in _ORDER]
    state = max(states, key=_ORDER.index) if states else "unchecked"
    frame, row = _frame(question, product)
    because = question.because if row else question.alone
    return {
        "question": question.text,
        "state": state,
        "answer": _ANSWERS[state],
        "numbers": [name for name in question.numbers if name in product["values"]],
        "sentences": [
            judged[name]["sentence"]
            for name in question.numbers
            if name in judged and judged[name]["state"] in _ORDER[1:]
        ],
        "pictures": list(question.pictures),
        "frame": frame,
        "column": question.column if row else "",
        "value": row.get(question.column),
        "command": flag_command(frame, out, question.reason, because) if out else "",
    }


def _frame(question: _Question, product: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Give the frame that is the first to be left out, and its row."""
    if product["of"] == "frame":
        return product["raw"], {}
    row = suspicious(product["frames"], question.column, question.lowest)
    return str(row.get("raw", "")), row


def flag_command(frame: str, out: str, reason: str, because: str) -> str:
    """Give the command by which a frame is left out from the next run on; '' without a frame."""
    if not frame:
        return ""
    return shlex.join(
        ["gdask", "flag", frame, "-o", out, "--as", reason, "--for", "stack", "--because", because]
    )
