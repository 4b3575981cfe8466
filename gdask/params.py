"""A step's keyword-only signature is its parameter table: names, types, defaults, limits, help.

A parameter's type is its annotation: bool, int, float, str, a `Literal`, `X | None`, or
`Annotated[X, Range(low, high)]`. Layers, low to high: signature, instrument TOML, config file,
`-p par=value`, `-p step:par=value`, pinned in the recipe.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union

from gdask.model import UsageError, read_toml, reason_of, why_no_file

Step = TypeVar("Step", bound=Callable[..., Any])


class Range(NamedTuple):
    """The allowed values of a number, both ends included; None is no limit."""

    low: float | None = None
    high: float | None = None


class Parameter(NamedTuple):
    """One parameter of a step."""

    name: str
    kind: type
    default: object
    optional: bool
    choices: tuple[object, ...]
    limits: Range
    help: str


class Setting(NamedTuple):
    """A parameter's value and the layer that it came from."""

    value: object
    layer: str


#: Understood for every step, whatever its signature.
COMMON_PARAMETERS: tuple[Parameter, ...] = (
    Parameter("skip_primitive", bool, False, False, (), Range(), "leave this step out"),
    Parameter(
        "write_outputs", bool, False, False, (), Range(), "write this step's output frames to disk"
    ),
    Parameter("suffix", str, None, True, (), Range(), "file-name suffix of what this step writes"),
)


def snake_case(name: str) -> str:
    """The gdask name of a DRAGONS step or recipe.

    skyCorrect -> sky_correct, ADUToElectrons -> adu_to_electrons.
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return spaced.lower()


def parameters(step: Callable[..., object]) -> dict[str, Parameter]:
    """The parameters of a step by name, those common to all steps last."""
    hints = typing.get_type_hints(step, include_extras=True)
    texts = _help_texts(inspect.getdoc(step) or "")
    of_step = {
        name: _parameter(name, hints.get(name, str), value.default, texts.get(name, ""))
        for name, value in inspect.signature(step).parameters.items()
        if value.kind is inspect.Parameter.KEYWORD_ONLY
    }
    return of_step | {
        common.name: common for common in COMMON_PARAMETERS if common.name not in of_step
    }


def check(step: str, parameter: Parameter, value: object) -> object:
    """`value` (text from a command line, or a Python value) as the parameter's type.

    Raises UsageError with the step, the parameter, what came and what was expected, where it is of
    another type or outside the parameter's limits.
    """
    where = f"{step}:{parameter.name}"
    if value is None or (
        isinstance(value, str)
        and value.strip().lower() in ("none", "")
        and parameter.kind is not str
    ):
        if parameter.optional:
            return None
        raise UsageError(f"{where}: None came; expected {describe(parameter)}")
    if isinstance(value, str) and value == "None" and parameter.optional:
        return None
    converted = _convert(where, parameter, value)
    if parameter.choices and converted not in parameter.choices:
        raise UsageError(
            f"{where}: {value!r} came; expected "
            f"{describe(parameter)}{closest(str(value), parameter.choices)}"
        )
    low, high = parameter.limits
    number = converted if isinstance(converted, int | float) else 0.0
    if (low is not None and number < low) or (high is not None and number > high):
        raise UsageError(f"{where}: {value!r} came; expected {describe(parameter)}")
    return converted


def describe(parameter: Parameter) -> str:
    """What the parameter takes, in words: 'one of exit, fix', 'a number from 0 up to 1' ..."""
    words = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}.get(
        parameter.kind, "a value"
    )
    if parameter.choices:
        words = "one of " + ", ".join(str(choice) for choice in parameter.choices)
    low, high = parameter.limits
    if low is not None:
        words += f" from {low:g}"
    if high is not None:
        words += f" up to {high:g}"
    return words + (" or None" if parameter.optional else "")


def closest(name: str, names: Iterable[object]) -> str:
    """'; did you mean X?' for the nearest of `names`, or nothing."""
    found = difflib.get_close_matches(name.lower(), [str(other).lower() for other in names], 1, 0.5)
    match = next((other for other in names if found and str(other).lower() == found[0]), None)
    return f"; did you mean {match}?" if match is not None else ""


def parse_pairs(pairs: Iterable[str]) -> dict[str, str]:
    """`-p` arguments 'par=value' or 'step:par=value' as a dictionary, step names in snake case."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"-p {pair}: expected parameter=value or step:parameter=value")
        found[_key_in_snake_case(key.strip())] = value.strip().strip("'\"")
    return found


def read_config(path: str) -> dict[str, object]:
    """Parameters from a TOML file.

    `par = value` holds for every step that has it, a table [step] for one step. Raises UsageError
    where the file cannot be read.
    """
    if problem := why_no_file(path):
        raise UsageError(f"-c {path}: cannot be read: {problem}")
    try:
        content = read_toml(path)
    except (OSError, ValueError) as error:  # not TOML, or no text
        raise UsageError(f"-c {path}: cannot be read: {reason_of(error)}") from error
    found: dict[str, object] = {}
    for key, value in content.items():
        entries = (
            {f"{key}:{name}": inner for name, inner in value.items()}
            if isinstance(value, dict)
            else {key: value}
        )
        found |= {_key_in_snake_case(name): inner for name, inner in entries.items()}
    return found


def normalise(settings: Mapping[str, object] | Iterable[tuple[str, object]]) -> dict[str, object]:
    """The user's parameters, a dictionary or a list of pairs, with step names in snake case."""
    items = settings.items() if isinstance(settings, Mapping) else settings
    return {_key_in_snake_case(key): value for key, value in items}


def check_user(
    settings: Mapping[str, object], steps: Mapping[str, Callable[..., object]], origin: str = "-p"
) -> None:
    """Refuse unknown steps and parameters and values of a wrong type, before any pixel is read."""
    tables = {name: parameters(step) for name, step in steps.items()}
    everywhere = {name for table in tables.values() for name in table}
    for key, value in settings.items():
        step, _, name = key.rpartition(":")
        if step and step not in tables:
            raise UsageError(
                f"{origin} {key}: no step {step!r} in this recipe{closest(step, tables)}"
            )
        known = tables[step] if step else everywhere
        if name not in known:
            raise UsageError(
                f"{origin} {key}: no parameter {name!r}"
                + (f" in {step}" if step else "")
                + closest(name, known)
            )
        for owner in [step] if step else [owner for owner in tables if name in tables[owner]]:
            check(owner, tables[owner][name], value)


def refuses(conflict: Callable[[Mapping[str, Any]], str]) -> Callable[[Step], Step]:
    """Give a step a check of its values together.

    `conflict` takes the values by name and says what is wrong with them, '' if nothing is.
    """

    def with_check(step: Step) -> Step:
        step.conflict = conflict  # type: ignore[attr-defined]
        return step

    return with_check


def check_together(
    steps: Mapping[str, Callable[..., object]],
    layers: Iterable[tuple[str, Mapping[str, object]]],
) -> None:
    """Raise UsageError where values of a step do not go together (`refuses`).

    It is called before any pixel is read.
    """
    layers = list(layers)
    for name, step in steps.items():
        conflict = getattr(step, "conflict", None)
        text = conflict(own_values(step, resolve(step, layers, {}))) if conflict else ""
        if text:
            raise UsageError(f"{name}: {text}")


def resolve(
    step: Callable[..., object],
    layers: Iterable[tuple[str, Mapping[str, object]]],
    pinned: Mapping[str, object],
) -> dict[str, Setting]:
    """The value of each parameter of a step and the layer that it came from.

    `layers` go from low to high, (name, settings) with keys 'par' or 'step:par'; within a layer
    'step:par' wins.
    """
    name = step.__name__
    table = parameters(step)
    settings = {key: Setting(value.default, "default") for key, value in table.items()}
    for layer, values in layers:
        for key, parameter in table.items():
            for spelled in (key, f"{name}:{key}"):
                if spelled in values:
                    settings[key] = Setting(check(name, parameter, values[spelled]), layer)
    for key, value in pinned.items():
        if key in table:
            settings[key] = Setting(check(name, table[key], value), "recipe")
    return settings


def own_values(step: Callable[..., object], settings: Mapping[str, Setting]) -> dict[str, object]:
    """The resolved values that a step itself takes, without those common to all steps."""
    of_step = {
        name for name, parameter in parameters(step).items() if parameter not in COMMON_PARAMETERS
    }
    return {name: setting.value for name, setting in settings.items() if name in of_step}


def changed(settings: Mapping[str, Setting]) -> str:
    """What differs from the defaults, in words: 'mesh=256 (instrument), ...'."""
    return ", ".join(
        f"{name}={s.value} ({s.layer})"
        for name, s in settings.items()
        if s.layer not in ("default", "recipe")
    )


def _key_in_snake_case(key: str) -> str:
    step, colon, name = key.rpartition(":")
    return f"{snake_case(step)}{colon}{name}"


def _parameter(name: str, hint: Any, default: object, text: str) -> Parameter:
    limits = Range()
    if typing.get_origin(hint) is Annotated:
        hint, *extras = typing.get_args(hint)
        limits = next((extra for extra in extras if isinstance(extra, Range)), limits)
    optional = False
    if typing.get_origin(hint) in (Union, types.UnionType):
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        optional = len(members) < len(typing.get_args(hint))
        inner = _parameter(name, members[0], default, text)
        return inner._replace(
            optional=optional, limits=limits if limits != Range() else inner.limits
        )
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        return Parameter(name, type(choices[0]), default, optional, choices, limits, text)
    return Parameter(
        name, hint if isinstance(hint, type) else str, default, optional, (), limits, text
    )


def _convert(where: str, parameter: Parameter, value: object) -> object:
    kind = parameter.kind
    if kind is bool:
        truth = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
        if str(value).strip().lower() in truth:
            return truth[str(value).strip().lower()]
    elif kind is str:
        many = isinstance(value, list | tuple)  # names, as scripts and configurations give them
        return ", ".join(map(str, value)) if many else str(value)  # type: ignore[call-overload]
    elif not isinstance(value, bool):
        try:
            number = float(value)  # type: ignore[arg-type]
            if kind is float and not math.isnan(number):
                return number
            if kind is int and number == int(number):
                return int(number)
        except (TypeError, ValueError, OverflowError):
            pass
    raise UsageError(f"{where}: {value!r} came; expected {describe(parameter)}")


def _help_texts(doc: str) -> dict[str, str]:
    """First line of each entry of a numpydoc Parameters section, by name.

    An entry begins with 'name' or 'a, b' on a line of its own.
    """
    texts: dict[str, str] = {}
    lines = doc.splitlines()
    for number, line in enumerate(lines[:-1]):
        if re.fullmatch(r"[a-z_][\w, ]*", line) and lines[number + 1].startswith("    "):
            for name in line.split(","):
                texts[name.strip()] = lines[number + 1].strip()
    return texts
