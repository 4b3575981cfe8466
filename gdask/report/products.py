"""Facts of each product: its numbers with what gates say, its frames, and what it was made of."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gdask.headers.numbers import NUMBERS, read_numbers
from gdask.model import GdaskError
from gdask.reduction.gates import Table, Verdict, judge, worst
from gdask.report.tables import strehl_proxy, tables_of

#: Numbers that come first: what decides whether a stack is as good as it should be.
FIRST = ("noise_ratio", "depth_over_predicted")
#: Order in which the other numbers of a product stand: that of the table of numbers.
_ORDER = {number.name: place for place, number in enumerate(NUMBERS)}


_OF_VAR = "VAR of the stack, one row and column of 32"
#: Numbers that are not of the table of numbers: unit, keyword or where they are from, meaning.
_OTHERS = {
    "exposure_time": ("s", "EXPTIME", "Exposure time of a frame"),
    "total_exposure_time": ("s", "TOTEXP", "Exposure time of all frames"),
    "combined": ("", "NCOMBINE", "Frames combined"),
    "airmass": ("", "AIRMASS", "Air mass"),
    "flat": ("", "FLATIM", "Flat"),
    "dark": ("", "DARKIM", "Dark"),
    "bpm": ("", "BPMIM", "Bad-pixel mask"),
    "strehl_proxy": (
        "", "made of fwhm for this page",
        "(wavelength / 7.9 m / FWHM) squared: goes with the Strehl ratio",
    ),
    "centre_covered": (
        "", _OF_VAR,
        "Fraction of the middle half of the picture, along x and y, with half of the exposure of "
        + "the deepest pixels or more",
    ),
    "area_covered": (
        "", _OF_VAR,
        "Fraction of the pixels with data with half of the exposure of the deepest or more",
    ),
}  # fmt: skip


def definitions() -> dict[str, dict[str, str]]:
    """Give unit, source and meaning of every number, by plain name."""
    known = [(one.name, one.unit, one.keyword, one.comment) for one in NUMBERS]
    rows = [row for row in known if row[0] != "gates"]
    rows += [(name, *row) for name, row in _OTHERS.items()]
    return {
        name: {
            "unit": unit,
            "source": f"{source}, primary header" if source.isupper() else source,
            "meaning": meaning,
        }
        for name, unit, source, meaning in rows
    }


def product_facts(
    path: str,
    numbers: Mapping[str, Any],
    verdicts: Iterable[Verdict],
    tables: Mapping[str, Any],
) -> dict[str, Any]:
    """Give the facts of one product that are its own. path: below the folder of results.

    state: worst of the gates that have judged it; 'unchecked' where none has.
    """
    verdicts = tuple(verdicts)
    judged = [one for one in verdicts if one.limit is not None]
    values = {key: value for key, value in numbers.items() if key not in ("kind", "gates")}
    order = sorted(values, key=lambda key: (key not in FIRST, _ORDER.get(key, len(_ORDER)), key))
    values = {key: values[key] for key in order}
    if proxy := strehl_proxy(_number(values.get("fwhm")), tables.get("wavelength")):
        values["strehl_proxy"] = proxy
    return {
        "path": path,
        "name": os.path.basename(path),
        "of": str(numbers.get("kind", "")),
        "state": worst(judged) or "unchecked",
        "values": values,
        "verdicts": [verdict_facts(one) for one in verdicts],
        "frames": [dict(row) for row in tables["frames"]],
        "skies": list(tables["skies"]),
        "sources": tables["sources"],
        "versions": dict(tables["versions"]),
        "settings": tables["settings"],
        "trouble": tables["trouble"],
    }


def verdict_facts(one: Verdict) -> dict[str, Any]:
    """Give a verdict as names and values; 'unchecked' where there was no limit to check by.

    That is a gate against fellows, of which there are too few.
    """
    return {
        "number": one.number,
        "state": "unchecked" if one.limit is None else one.state,
        "value": float(f"{one.value:.5g}"),
        "limit": None if one.limit is None else float(f"{one.limit:.5g}"),
        "basis": one.basis,
        "sentence": one.sentence,
    }


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def with_frames(
    product: dict[str, Any], by_name: Mapping[str, Mapping[str, Any]], table: Table
) -> dict[str, Any]:
    """Give a stack whose rows of frames have what the frames' own products know, and verdicts.

    by_name: facts of sky-subtracted frames by name of file.
    """
    rows = []
    for row in product["frames"]:
        own = by_name.get(str(row.get("name")), {})
        values = own.get("values", {})
        more = {
            "zero_point": values.get("zero_point"),
            "sources": own.get("sources"),
            "depth_5sigma": values.get("depth_5sigma"),
            "strehl_proxy": strehl_proxy(_number(row.get("fwhm")), product["wavelength"]),
            "skies": own.get("skies", []),
            "calibrations": [values[key] for key in ("flat", "dark", "bpm") if key in values],
            "product": own.get("path", ""),
            "raw": raw_name(str(row.get("name", ""))),
        }
        inputs = {key: row[key] for key in ("weight", "rejected") if row.get(key) is not None}
        verdicts = [verdict_facts(one) for one in judge(inputs, table=table, kind="input")]
        rows.append({**row, **more, "verdicts": verdicts})
    return {**product, "frames": rows}


def with_coverage(product: dict[str, Any], table: Table) -> dict[str, Any]:
    """Give a stack whose numbers and verdicts have those of its coverage."""
    numbers = product["tables"].get("coverage", {})
    verdicts = [verdict_facts(one) for one in judge(numbers, table=table, kind="image")]
    states = ("unchecked", "passed", "warning", "failure")
    worst = max([product["state"], *(one["state"] for one in verdicts)], key=states.index)
    return product | {
        "values": {**product["values"], **numbers},
        "verdicts": [*product["verdicts"], *verdicts],
        "state": worst,
    }


def raw_name(product: str) -> str:
    """Give the name of the raw file of a sky-subtracted frame, as `gdask flag` takes it."""
    return product.removesuffix(".fits").removesuffix("_skyCorrected")


def read_tables(
    path: str | os.PathLike[str], content: str, before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Give the tables of a product; those of the last report where it has the same content."""
    if before and content and before.get("content") == content and "tables" in before:
        return dict(before["tables"])
    return tables_of(path)


def numbers_of(path: Path) -> dict[str, Any]:
    """Read the numbers of a product; none where it is no product or cannot be read."""
    try:
        numbers = read_numbers(path)
    except (GdaskError, OSError):
        return {}
    return dict(numbers) if numbers.get("kind") else {}


def suspicious(rows: Sequence[Mapping[str, Any]], key: str, lowest: bool) -> Mapping[str, Any]:
    """Give the row that stands out most in a column, the lowest or the highest; {} of none."""
    known = [row for row in rows if isinstance(row.get(key), int | float)]
    if not known:
        return {}
    return (min if lowest else max)(known, key=lambda row: float(row[key]))
