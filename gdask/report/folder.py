"""Facts of a folder of products that `reduce` made, without the records of a campaign."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gdask import __version__
from gdask.instruments import view
from gdask.model import GdaskError, night_of
from gdask.reduction.gates import judge, shipped
from gdask.report.private import cleaned, cleaned_facts, cleaner
from gdask.report.products import numbers_of, product_facts, with_coverage, with_frames
from gdask.report.tables import tables_of

Facts = dict[str, Any]


def folder_facts(out: str, internal: bool, runs: Sequence[Mapping[str, Any]]) -> Facts:
    """Gather the products of a folder. runs: what is known of runs of `reduce` there."""
    path = os.path.abspath(out)
    clean = cleaner(path, (), internal)
    found = [_product(one, clean) for one in sorted(Path(out).glob("*.fits"))]
    products = _judged([one for one in found if one is not None])
    facts = {
        "kind": "folder",
        "name": path if internal else os.path.basename(path),
        "jobs": [cleaned(dict(one), clean) for one in runs],
        "products": products,
        "gates": shipped(),
        "files": {"counts": {}, "unused": [], "more": 0},
        "flags": [],
    }
    return cleaned_facts(facts, clean)


def run_facts(
    command: Sequence[str],
    files: Sequence[str],
    *,
    recipe: str,
    cause: str,
    log: Sequence[str],
    account: Mapping[str, Any],
    products: Sequence[str],
    left_out: Sequence[Sequence[str]],
) -> Facts:
    """Give the facts of one run of `reduce`, in the form of a campaign's job."""
    names = [os.path.basename(name) for name in files]
    first = (names[0] if names else "").partition(".")[0]
    line = shlex.join(["reduce", *command])
    return {
        "id": f"{recipe} {first}".strip(),
        "kind": "reduce",
        "recipe": recipe,
        "instrument": "",
        "target": "",
        "filter": "",
        "night": "",
        "state": "failed" if cause else "made",
        "cause": cause,
        "log": list(log) if cause else [],
        "inputs": names,
        "frames_of": [],
        "needs": [],
        "calibrations": [],
        "parameters": {},
        "notes": [],
        "left_out": ["  ".join(row) for row in left_out],
        "level": 0,
        "gdask": __version__,
        "begun": "",
        "waited": None,
        "seconds": account.get("seconds"),
        "seconds_planned": None,
        "memory": account.get("memory"),
        "memory_planned": None,
        "written": account.get("written"),
        "read": account.get("read"),
        "tries": [],
        "made_by": line,
        "products": [os.path.basename(name) for name in products],
        "commands": {"try it again, when the cause is away": line} if cause else {},
    }


def _product(path: Path, clean: Callable[[str], str]) -> Facts | None:
    """Give the facts of a product; None where a file is none."""
    numbers = numbers_of(path)
    if not numbers:
        return None
    tables = tables_of(path)
    facts = product_facts(path.name, numbers, (), tables)
    return facts | {
        **_what(path),
        "job": "",
        "kind": facts["of"],
        "target": tables.get("object", "") if facts["of"] in ("image", "frame") else "",
        "level": 0,
        "gdask": tables["versions"].get("gdask", ""),
        "left_out": [],
        "calibrations": _calibrations(numbers),
        "parameters": {},
        "inputs": numbers.get("combined"),
        "content": "",
        "size": path.stat().st_size,
        "is_old": False,
        "raw": path.stem.rpartition("_")[0],
        "tables": tables,
        "wavelength": tables.get("wavelength"),
        "object": tables.get("object", ""),
        "made_by": "",
        "settings": cleaned(tables["settings"], clean),
        "commands": {
            "make it again and compare": shlex.join(["gdask", "replay", path.name]),
            "see what went in, and why": shlex.join(["gdask", "why", path.name]),
            "draw it, larger": shlex.join(["gdask", "show", path.name]),
        },
    }


def _what(path: Path) -> Facts:
    """Give instrument, filter and night of a product, from its headers."""
    try:
        about = view(str(path))
        time = about("ut_datetime")
        return {
            "instrument": str(about("instrument")),
            "filter": str(about("filter_name", pretty=True) or ""),
            "night": night_of(time).strftime("%Y%m%d") if time else "",
        }
    except (GdaskError, ValueError, TypeError, KeyError):
        return {"instrument": "", "filter": "", "night": ""}


def _calibrations(numbers: Mapping[str, Any]) -> list[Facts]:
    return [
        {
            "type": kind, "source": str(numbers[kind]), "level": 0, "why": "", "misses": [],
            "required": True, "instead_of": [],
        }
        for kind in ("flat", "dark", "bpm")
        if kind in numbers
    ]  # fmt: skip


def _judged(products: Sequence[Facts]) -> list[Facts]:
    """Give products with what gates say of them, each against its fellows."""
    found = []
    for one in products:
        key = _series(one)
        fellows = [other["values"] for other in products if _series(other) == key]
        verdicts = judge(one["values"], fellows, kind=one["of"])
        again = product_facts(one["path"], {**one["values"], "kind": one["of"]}, verdicts, one)
        found.append(one | {key: again[key] for key in ("state", "verdicts", "values")})
    frames = {one["name"]: one for one in found if one["of"] == "frame"}
    table = shipped()
    return [
        with_coverage(with_frames(one, frames, table), table) if one["of"] == "image" else one
        for one in found
    ]


def _series(one: Facts) -> tuple[Any, ...]:
    return one["of"], one["instrument"], one["filter"], one["values"].get("exposure_time")
