"""Gates: whether the numbers of a product are as they should be. gates.toml has the limits.

`judge` is the one function that says so, for header, log, index and report.
"""

from __future__ import annotations

import math
import os
import statistics
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple

from gdask.headers.numbers import Value, names
from gdask.model import UsageError, read_toml
from gdask.params import closest

Table = dict[str, dict[str, Any]]

#: Fewest fellows against which a number is judged.
MIN_FELLOWS = 5
STATES = ("passed", "warning", "failure")
ACTIONS = ("note", "leave out", "block")
KINDS = ("image", "frame", "flat", "dark", "bpm", "input")
_LIMITS = ("warning_below", "warning_above", "failure_below", "failure_above")
_BY_FELLOWS = ("warning_mad", "failure_mad")
#: Keys of a gate, and the types of their values.
_KEYS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys((*_LIMITS, *_BY_FELLOWS, "least_spread"), (int, float)),
    "of": (list,),
    "over": (str,),
    "side": (str,),
    "sentence": (str,),
    "action": (str,),
    "parameter": (str,),
    "off": (bool,),
}
#: Numbers of a stack's inputs, beside those of products.
INPUT_NUMBERS = ("weight", "transparency", "rejected", "sky")
#: Numbers of a stack that a report measures (`gdask.report.coverage`); no header has them.
REPORT_NUMBERS = ("centre_covered", "area_covered")
_SIGMA_PER_MAD = 1.4826


class Verdict(NamedTuple):
    """What a gate says of a number.

    state: one of STATES. value: the number, or its ratio to another. limit: the nearest one, or the
    one that is not met; None where there are too few fellows to have one. basis: 'limit' or
    'fellows'. sentence: what it means, with the numbers in it. action: one of ACTIONS.
    """

    number: str
    state: str
    value: float
    limit: float | None
    basis: str
    sentence: str
    action: str

    @property
    def is_met(self) -> bool:
        """Whether the number is within its limits."""
        return self.state == "passed"


def judge(
    numbers: Mapping[str, Any],
    fellows: Iterable[Mapping[str, Any]] = (),
    table: Table | None = None,
    kind: str = "",
) -> tuple[Verdict, ...]:
    """Judge the numbers of a product (`read_numbers`): a verdict of each gate that applies.

    Numbers that the product does not have are not judged.

    Parameters
    ----------
    numbers
        Plain names to values.
    fellows
        Numbers of products of the same kind, filter and exposure time, itself among them or not.
    table
        The gates (`merged`); None: the shipped ones.
    kind
        One of KINDS; '' is numbers['kind'].
    """
    kind = kind or str(numbers.get("kind", ""))
    others = tuple(fellows)
    verdicts = []
    for name, gate in (shipped() if table is None else table).items():
        value = _value_of(numbers, name, gate)
        if value is None or gate.get("off") or (kind and kind not in gate.get("of", (kind,))):
            continue
        known = [v for each in others if (v := _value_of(each, name, gate)) is not None]
        verdicts.append(_verdict(name, value, gate, known))
    return tuple(verdicts)


def worst(verdicts: Iterable[Verdict]) -> str:
    """Give the worst state of the verdicts; '' of none."""
    states = [STATES.index(verdict.state) for verdict in verdicts]
    return STATES[max(states)] if states else ""


def summary(verdicts: Sequence[Verdict]) -> str | None:
    """Give the card GATES: 'passed', or the gates that are not met; None without a verdict."""
    missed = [f"{v.number} ({v.state})" for v in verdicts if not v.is_met]
    return ", ".join(missed) or ("passed" if verdicts else None)


def _value_of(numbers: Mapping[str, Any], name: str, gate: Mapping[str, Any]) -> float | None:
    """Give a number, over another one where the gate says so; None where it is not known."""
    value, over = numbers.get(name), numbers.get(gate["over"]) if "over" in gate else 1.0
    if not isinstance(value, int | float) or not isinstance(over, int | float) or not over:
        return None
    ratio = float(value) / float(over)
    return ratio if math.isfinite(ratio) else None


def _verdict(name: str, value: float, gate: Mapping[str, Any], fellows: Sequence[float]) -> Verdict:
    """Judge one number by the limits of its gate, the worst first."""
    limits = [*_absolute(gate), *_relative(gate, fellows)]
    for state in reversed(STATES[1:]):
        for of_state, side, limit, basis in limits:
            if of_state == state and (value < limit if side == "below" else value > limit):
                return _said(name, state, value, limit, basis, gate)
    nearest = min(limits, key=lambda row: abs(row[2] - value), default=("", "", None, "limit"))
    return _said(name, "passed", value, nearest[2], nearest[3], gate)


def _said(
    name: str, state: str, value: float, limit: float | None, basis: str, gate: Mapping[str, Any]
) -> Verdict:
    words = str(gate.get("sentence", "{value}"))
    words = words.replace("{value}", _text(value)).replace("{limit}", _text(limit))
    return Verdict(name, state, value, limit, basis, words, gate.get("action", "note"))


def _text(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _absolute(gate: Mapping[str, Any]) -> list[tuple[str, str, float, str]]:
    """Give state, side, limit and basis of each absolute limit."""
    keys = [(key, *key.split("_", 1)) for key in _LIMITS if key in gate]
    return [(state, side, float(gate[key]), "limit") for key, state, side in keys]


def _relative(
    gate: Mapping[str, Any], fellows: Sequence[float]
) -> list[tuple[str, str, float, str]]:
    """Give the limits by the fellows' median and scatter, where there are enough of them."""
    if len(fellows) < MIN_FELLOWS:
        return []
    middle = statistics.median(fellows)
    spread = _SIGMA_PER_MAD * statistics.median(abs(value - middle) for value in fellows)
    spread = max(spread, abs(middle) * float(gate.get("least_spread", 0.0)))
    sides = {"above": 1, "below": -1}
    return [
        (key.split("_")[0], side, middle + sign * float(gate[key]) * spread, "fellows")
        for key in _BY_FELLOWS
        if key in gate
        for side, sign in sides.items()
        if gate.get("side", side) == side
    ]


def sentence(verdict: Verdict) -> str:
    """Say what a verdict means: the gate, how far it is missed, and the limit."""
    against = "its fellows'" if verdict.basis == "fellows" else "the"
    limit = "" if verdict.limit is None else f" ({against} limit is {_text(verdict.limit)})"
    said = {"failure": "gate failed", "warning": "gate not met", "passed": "gate passed"}
    number = f"{verdict.number} = {_text(verdict.value)}{limit}"
    return f"{said[verdict.state]}: {number}: {verdict.sentence}"


# The table ---------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def shipped() -> Table:
    """Give the gates that come with gdask."""
    text = resources.files(__package__).joinpath("gates.toml").read_text(encoding="utf-8")
    return _checked(tomllib.loads(text), "gates.toml")


def read_own(path: str | os.PathLike[str]) -> Table:
    """Read the gates of a user's file, for `merged`.

    Raises UsageError, with the file and what was expected, where the file cannot be used.
    """
    try:
        given = read_toml(path)
    except OSError as error:
        raise UsageError(f"--gates {path}: {error.strerror}; give a TOML file of gates") from None
    except ValueError as error:
        raise UsageError(f"--gates {path}: not TOML: {error}") from None
    return _checked(given, f"--gates {path}")


def merged(given: Mapping[str, Any], where: str = "gates") -> Table:
    """Give the shipped gates with these in their place, key by key.

    Raises UsageError where they cannot be used.
    """
    if not given:
        return shipped()
    own = _checked(given, where)
    every = {
        name: {**shipped().get(name, {}), **own.get(name, {})} for name in {**shipped(), **own}
    }
    return _checked(every, where)


def _checked(table: Mapping[str, Any], where: str) -> Table:
    """Give the table; raise UsageError for a number, key or value that no gate has."""
    known = {*names(), *INPUT_NUMBERS, *REPORT_NUMBERS}
    for name, gate in table.items():
        if name not in known:
            raise UsageError(f"{where}: [{name}]: no such number{closest(name, known)}")
        if not isinstance(gate, Mapping):
            raise UsageError(f"{where}: {name}: a table [{name}] with limits was expected")
        for key, value in gate.items():
            _check_key(f"{where}: [{name}] {key}", key, value, known)
    return {name: dict(gate) for name, gate in table.items()}


def _check_key(place: str, key: str, value: object, known: Iterable[str]) -> None:
    if key not in _KEYS:
        raise UsageError(f"{place}: no such key{closest(key, _KEYS)}; expected {', '.join(_KEYS)}")
    kinds = _KEYS[key]
    if not isinstance(value, kinds) or isinstance(value, bool) != (kinds == (bool,)):
        raise UsageError(f"{place} = {value!r}: expected {' or '.join(k.__name__ for k in kinds)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{place} = {value}: a finite number was expected; off = true ends a gate")
    choices = {"action": ACTIONS, "side": ("above", "below"), "over": tuple(known), "of": KINDS}
    for one in value if isinstance(value, list) else [value]:
        if key in choices and one not in choices[key]:
            raise UsageError(f"{place} = {one!r}: expected one of {', '.join(choices[key])}")


def step_parameters(table: Table) -> dict[str, float]:
    """Give the parameters of steps that leave frames out by a gate: 'step:name' to the limit."""
    return {
        gate["parameter"]: 0.0 if gate.get("off") else float(gate.get("failure_below", 0.0))
        for gate in table.values()
        if "parameter" in gate
    }


def layer_of(given: Mapping[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Give the layer of parameters by which gates of the user's leave frames out; none by default.

    The shipped limits are the steps' own.
    """
    own = step_parameters(merged(given))
    return [("gates", own)] if own != step_parameters(shipped()) else []


# Words -------------------------------------------------------------------------------------------


def describe(numbers: Mapping[str, Value]) -> list[str]:
    """Give one or two lines with the numbers of a product, for the end of the log."""
    lines = (
        _joined(_FIRST, numbers),
        _joined(_SECOND, numbers),
    )
    return [line for line in lines if line]


#: What lines say, each part where its first number is known: numbers, text, factor of the numbers.
_FIRST = (
    (("fwhm",), "FWHM {} arcsec"),
    (("fwhm_of_frames", "fwhm_scatter"), "frames {} +- {}"),
    (("zero_point", "zero_point_error", "zero_point_source"), "zero point {} +- {} ({})"),
    (("zero_point", "zero_point_source"), "zero point {} ({})"),
    (("depth_5sigma",), "5 sigma at {} mag"),
    (("noise_ratio",), "noise {} of what VAR says"),
    (("depth_over_predicted",), "{} of what the exposure promises"),
    (("mean_counts",), "{} e-"),
    (("dark_level",), "level {} e-"),
    (("read_noise",), "read noise {} e-"),
    (("bad_pixels",), "{} bad pixels"),
    (("bad_in_flat", "bad_in_dark"), "{} by the flat, {} by the dark"),
    (("lamp_scatter",), "frames differ by {}"),
    (("level_scatter",), "frames differ by {} e-"),
    (("bad_fraction",), "{} bad"),
)
_SECOND = (
    (("sky_level",), "sky {} e-"),
    (("sky_brightness",), "{} mag/arcsec2"),
    (("astrometric_rms", "astrometric_stars"), "positions to {} mas in frames ({} stars)"),
    (("catalogue_rms", "catalogue_stars"), "{} mas to the catalogue ({})"),
    (("frames", "nights", "frames_considered"), "frames {}, nights {}, considered {}"),
    (("frames",), "frames {}"),
    (("worst_rejected_fraction",), "at most {} of a frame rejected"),
)


def _joined(parts: Sequence[tuple[tuple[str, ...], str]], numbers: Mapping[str, Value]) -> str:
    said: dict[str, str] = {}
    for wanted, text in parts:
        if wanted[0] not in said and all(name in numbers for name in wanted):
            said[wanted[0]] = text.format(*(_short(numbers[name]) for name in wanted))
    return ", ".join(said.values())


def _short(value: Value) -> str:
    """Write a number with the digits that it deserves in a log."""
    if isinstance(value, str | int):
        return str(value)
    digits = 0 if abs(value) >= 100 else 2
    return f"{value:.{digits}f}" if abs(value) >= 10 else f"{value:.3g}"
