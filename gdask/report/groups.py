"""Facts of targets, nights and calibrations over time, from the facts of products and jobs."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Facts = dict[str, Any]
#: Numbers of frames that are shown by night: their median.
OF_NIGHT = ("fwhm", "zero_point", "sky_brightness", "sky_level", "noise_ratio")
#: Numbers of calibrations that are shown over time, by kind of product.
OF_SERIES = {
    "flat": ("mean_counts", "lamp_scatter", "bad_fraction"),
    "dark": ("dark_level", "read_noise", "read_noise_ratio"),
    "bpm": ("bad_pixels", "bad_in_flat", "bad_in_dark"),
}


def targets(products: Sequence[Facts]) -> list[Facts]:
    """Give targets, each with its filters, and of these the stacks: all nights first."""
    found: dict[str, dict[str, list[Facts]]] = {}
    for one in products:
        if one["of"] == "image" and one["target"]:
            found.setdefault(one["target"], {}).setdefault(one["filter"], []).append(one)
    rows = []
    for name, filters in sorted(found.items()):
        stacks = [
            {
                "filter": filter_name,
                "products": [one["path"] for one in sorted(ones, key=_all_nights_first)],
            }
            for filter_name, ones in sorted(filters.items())
        ]
        names = Counter(one["object"] for ones in filters.values() for one in ones)
        rows.append({"name": name, "filters": stacks, "objects": sorted(set(names) - {""})})
    return rows


def _all_nights_first(one: Mapping[str, Any]) -> tuple[bool, str, str]:
    return one["night"] != "all", one["night"], one["path"]


def nights(products: Sequence[Facts], jobs: Sequence[Facts], files: Facts) -> list[Facts]:
    """Give nights, each with jobs, products, medians of its frames, and what was left out."""
    names = {one["night"] for one in (*products, *jobs)} - {"", "all"}
    rows = []
    for name in sorted(names):
        own = [one for one in products if one["night"] == name]
        ran = [one for one in jobs if one["night"] == name]
        rows.append(
            {
                "night": name,
                "jobs": [one["id"] for one in ran],
                "products": [one["path"] for one in own],
                "targets": sorted({one["target"] for one in own} - {""}),
                "rows": _by_filter(own, ran),
                "left_out": sorted({text for one in ran for text in one["left_out"]}),
                "unused": [one for one in files["unused"] if one["night"] == name],
            }
        )
    return rows


def _by_filter(products: Sequence[Facts], jobs: Sequence[Facts]) -> list[Facts]:
    """Give for each instrument and filter of a night how jobs stand, and medians of the frames."""
    keys = sorted({(one["instrument"], one["filter"]) for one in (*products, *jobs)})
    rows = []
    for key in keys:
        own = [one for one in products if (one["instrument"], one["filter"]) == key]
        ran = [one for one in jobs if (one["instrument"], one["filter"]) == key]
        frames = [one for one in own if one["of"] == "frame"]
        rows.append(
            {
                "instrument": key[0],
                "filter": key[1],
                "states": dict(sorted(Counter(one["state"] for one in ran).items())),
                "frames": len(frames),
                "left_out": len({text for one in ran for text in one["left_out"]}),
                "values": {name: median_of(frames, name) for name in OF_NIGHT},
            }
        )
    return rows


def median_of(products: Iterable[Facts], name: str) -> float | None:
    """Give the median of a number over products that have it; None of none."""
    values = [one["values"].get(name) for one in products]
    known = [float(value) for value in values if isinstance(value, int | float)]
    return float(f"{statistics.median(known):.5g}") if known else None


def series(products: Sequence[Facts], ratios: Mapping[str, Facts]) -> list[Facts]:
    """Give calibrations over time: of one kind, instrument and filter, night by night.

    And zero points by night. ratios: of flats over their predecessor, by path.
    """
    found: dict[tuple[str, str, str, str], list[Facts]] = {}
    for one in products:
        if one["of"] in OF_SERIES:
            exposure = one["values"].get("exposure_time")
            more = f"{exposure:g} s" if one["of"] == "dark" and exposure else one["filter"]
            found.setdefault((one["of"], one["instrument"], more, ""), []).append(one)
    rows = []
    for (kind, instrument, more, _), ones in sorted(found.items()):
        ones = sorted(ones, key=lambda one: (one["night"], one["path"]))
        points = [
            {
                "night": one["night"],
                "product": one["path"],
                "state": one["state"],
                "values": {name: one["values"].get(name) for name in OF_SERIES[kind]},
                "ratio": ratios.get(one["path"]),
            }
            for one in ones
        ]
        title = " ".join(filter(None, (instrument, kind, more)))
        rows.append({"title": title, "kind": kind, "names": OF_SERIES[kind], "points": points})
    return rows + _zero_points(products)


def _zero_points(products: Sequence[Facts]) -> list[Facts]:
    """Give zero points by night, of stacks, one series for each instrument and filter."""
    found: dict[tuple[str, str], list[Facts]] = {}
    for one in products:
        if one["of"] == "image" and one["values"].get("zero_point") is not None:
            found.setdefault((one["instrument"], one["filter"]), []).append(one)
    names = ("zero_point", "zero_point_error", "zero_point_offset", "sky_brightness")
    rows = []
    for (instrument, filter_name), ones in sorted(found.items()):
        nightly = [one for one in ones if one["night"] != "all"] or ones
        nightly = sorted(nightly, key=lambda one: (one["night"], one["path"]))
        points = [
            {
                "night": one["night"],
                "product": one["path"],
                "state": one["state"],
                "values": {name: one["values"].get(name) for name in names},
                "ratio": None,
                "note": one["values"].get("zero_point_source", ""),
            }
            for one in nightly
        ]
        title = f"{instrument} zero point {filter_name}"
        rows.append({"title": title, "kind": "zero point", "names": names, "points": points})
    return rows


def predecessors(products: Sequence[Facts]) -> dict[str, str]:
    """Give for each flat the one before it, of the same instrument and filter, by path."""
    found: dict[tuple[str, str], list[Facts]] = {}
    for one in products:
        if one["of"] == "flat":
            found.setdefault((one["instrument"], one["filter"]), []).append(one)
    before: dict[str, str] = {}
    for ones in found.values():
        ones = sorted(ones, key=lambda one: (one["night"], one["path"]))
        before |= {later["path"]: first["path"] for first, later in itertools.pairwise(ones)}
    return before
