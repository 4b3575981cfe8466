"""What a product says that it was made of: `gdask why` of a file that no campaign has made."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from gdask.io.tables import read_rows
from gdask.reduction.replay import Account, account_of

#: Where a calibration came from, by its role in the table REDUCTION.
_FROM = {
    "calibration": "found in a database by the rules of association",
    "user_cal": "given with --user_cal",
    "file": "given as a parameter",
}
#: What the calibration of a step is called.
_KINDS = {
    "add_dq": "processed_bpm",
    "dark_correct": "processed_dark",
    "flat_correct": "processed_flat",
}
#: Layers of parameters, as people know them.
_LAYERS = {"user": "-p", "config": "the configuration file"}


def made_of_lines(product: str | os.PathLike[str]) -> Iterator[str]:
    """Say what a product was made of: frames, sky frames, calibrations, parameters, what was left
    out. Raises GdaskError where it has no table REDUCTION."""
    account = account_of(product)
    steps = _steps(read_rows(os.fspath(product), "PROVENANCE"))
    version = account.versions.get("gdask", "?")
    name = account.recipe.get("name", "?")
    yield f"{product}: recipe {name} of {account.recipe.get('file', '?')}, gdask {version}"
    yield from (f"    {line}" for line in _contents(account, steps))
    for layer, settings in account.parameters.items():
        where = _LAYERS.get(layer, layer)
        yield from (f"    {key} = {value} ({where})" for key, value in settings.items())
    yield from (f"    left out: {' '.join(map(str, row))}" for row in account.left_out)


def _steps(rows: Iterable[dict[str, str]]) -> dict[str, list[str]]:
    """Give the steps that used each file, by its name."""
    found: dict[str, list[str]] = {}
    for row in rows:
        steps = found.setdefault(row.get("filename", ""), [])
        if (step := row.get("provenance_added_by", "")) not in steps:
            steps.append(step)
    return found


def _contents(account: Account, steps: dict[str, list[str]]) -> Iterator[str]:
    """Say which files are in the product, which are its sky, and which calibrate it."""
    inputs = [file["name"] for file in account.files if file["role"] == "input"]
    plain = {_plain(name): name for name in steps}
    sky = [name for name in inputs if _is_sky(steps.get(plain.get(_plain(name), ""), []))]
    used = [name for name in inputs if _plain(name) in plain and name not in sky]
    for word, names in (
        ("made of", used),
        ("sky of it", sky),
        ("given too, and not in it", [n for n in inputs if n not in {*used, *sky}]),
    ):
        if names:
            yield f"{word}: {', '.join(names)}"
    given = {file["name"] for file in account.files if file["role"] == "file"}
    for file in account.files:
        name, role = file["name"], file["role"]
        if role != "input" and not (role == "calibration" and name in given):
            own = steps.get(name, [])
            kind = file.get("kind") or next((_KINDS[one] for one in own if one in _KINDS), "file")
            by = f", used by {', '.join(own)}" if own else ""
            yield f"{kind}: {name} ({_FROM[role]}{by})"


def _plain(name: str) -> str:
    return name.partition(".")[0]


def _is_sky(steps: list[str]) -> bool:
    """Tell whether a file was sky and nothing else: a frame of its own is prepared or stacked."""
    return bool(steps) and set(steps) <= {"sky_correct", "subtract_sky"}
