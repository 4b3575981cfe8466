"""All that a report says, as one dictionary: report.json. Pages are made of it and of pictures.

It holds no absolute path and no name of a user or host, unless it is for internal use, and no time
but those of data and of jobs: the same results give the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gdask
from gdask.campaign import records
from gdask.io.whole import write_whole
from gdask.model import UsageError, read_json
from gdask.report import groups, words
from gdask.report.against import against, read_report
from gdask.report.campaign import campaign_facts
from gdask.report.decisions import decisions
from gdask.report.flats import flat_ratio
from gdask.report.folder import folder_facts
from gdask.report.names import page_names
from gdask.report.private import OWN, cleaned, cleaner
from gdask.report.products import definitions
from gdask.report.questions import questions

#: Raised when a reader of report.json would have to change.
SCHEMA = 1
FOLDER, FILE = "report", "report.json"
#: What was read from products for the last report, by content: may be deleted at any time.
_CACHE = "report-cache.json"
#: What another version has kept is not read: what it holds may have changed.
_MADE_BY = [SCHEMA, gdask.__version__]

Facts = dict[str, Any]


def gather(
    out: str | os.PathLike[str],
    *,
    internal: bool = False,
    old: str | os.PathLike[str] | None = None,
    runs: Sequence[Mapping[str, Any]] = (),
) -> Facts:
    """Give all that the report of a folder of results says.

    internal: with absolute paths. old: another folder of results, or a report.json, to compare
    with. runs: runs of `reduce` in a folder that is no campaign's. Raises UsageError where there
    is nothing to report on.
    """
    folder = os.fspath(out)
    if not os.path.isdir(folder):
        raise UsageError(f"{folder}: no such folder; name that of a campaign or of products")
    if (Path(folder) / records.HIDDEN).is_dir():
        cache = _read_cache(folder)
        facts = campaign_facts(folder, internal, cache.get("products", {}))
        ratios = _ratios(folder, facts["products"], cache)
        _write_cache(folder, facts["products"], ratios)
    else:
        names = {one["id"] for one in runs}
        earlier = [one for one in _earlier_runs(folder) if one["id"] not in names]
        facts = folder_facts(folder, internal, [*earlier, *runs])
        if not facts["products"] and not facts["jobs"]:
            raise UsageError(
                f"{folder}: neither a campaign (gdask run) nor products of reduce are there"
            )
        ratios = _ratios(folder, facts["products"], {})
    found = completed(facts, {path: one["ratio"] for path, one in ratios.items()})
    if not old:
        return found | {"against": None}
    changes = against(found, read_report(old) or gather(old))
    # Two folders of results often have one name: that of the folder around it tells them apart.
    changes["name"] = "/".join(Path(old).absolute().parts[1:][-2:])
    clean = cleaner(os.path.abspath(folder), (), internal)
    return found | {"against": cleaned(changes, clean, OWN | {"new", "gone"})}


def completed(facts: Facts, ratios: Mapping[str, Facts]) -> Facts:
    """Give the facts with pages, groups, decisions and answers."""
    products, jobs = facts["products"], facts["jobs"]
    name = facts["name"] if facts["kind"] == "campaign" else ""
    pages = page_names("products", [one["path"] for one in products])
    for one in products:
        one.pop("tables", None)
        one["page"] = pages[one["path"]]
        one["ratio"] = ratios.get(one["path"])
        one["questions"] = questions(one, name)
    job_pages = page_names("jobs", [one["id"] for one in jobs])
    for job in jobs:
        job["page"] = job_pages[job["id"]] if job["state"] != "made" else ""
    targets = groups.targets(products)
    nights = groups.nights(products, jobs, facts["files"])
    series = groups.series(products, ratios)
    _add_pages(targets, "name", "targets")
    _add_pages(nights, "night", "nights")
    _add_pages(series, "title", "calibrations")
    gates = {
        key: gate | {"limits": words.limits(gate), "words": words.sentence(gate)}
        for key, gate in facts["gates"].items()
        if not gate.get("off")
    }
    return {
        "schema": SCHEMA,
        "kind": facts["kind"],
        "name": facts["name"],
        "numbers": definitions(),
        "gates": gates,
        "decisions": decisions(jobs, products),
        "targets": targets,
        "nights": nights,
        "series": series,
        "jobs": jobs,
        "products": products,
        "files": facts["files"],
        "flags": facts["flags"],
        "versions": sorted({one["gdask"] for one in products} - {""}),
        "before": groups.predecessors(products),
    }


def _add_pages(rows: list[Facts], key: str, folder: str) -> None:
    pages = page_names(folder, [row[key] for row in rows])
    for row in rows:
        row["page"] = pages[row[key]]


def _ratios(folder: str, products: Sequence[Facts], cache: Facts) -> dict[str, Facts]:
    """Give each flat over its predecessor; as before where both have the same content."""
    contents = {one["path"]: one["content"] for one in products}
    known = cache.get("ratios", {})
    found = {}
    for path, before in groups.predecessors(products).items():
        key = f"{contents[before]} {contents[path]}"
        last = known.get(path, {})
        if contents[path] and last.get("key") == key:
            found[path] = last
        else:
            ratio = flat_ratio(os.path.join(folder, path), os.path.join(folder, before))
            found[path] = {"key": key, "ratio": {**ratio, "before": before}}
    return found


def _cache_file(folder: str) -> Path:
    return Path(folder) / records.HIDDEN / _CACHE


def _read_cache(folder: str) -> Facts:
    try:
        found = read_json(_cache_file(folder))
        return dict(found) if found.get("made_by") == _MADE_BY else {}
    except (OSError, ValueError, AttributeError):
        return {}


def _write_cache(folder: str, products: Sequence[Facts], ratios: Mapping[str, Facts]) -> None:
    kept = {one["path"]: {"content": one["content"], "tables": one["tables"]} for one in products}
    text = json.dumps({"made_by": _MADE_BY, "products": kept, "ratios": ratios})
    try:
        write_whole(_cache_file(folder), text)
    except OSError:
        return  # it saves time, and nothing else


def _earlier_runs(folder: str) -> list[Facts]:
    """Give the runs of `reduce` that the last report of a folder knew of."""
    try:
        last = read_json(Path(folder) / FOLDER / FILE)
        return list(last["jobs"]) if last["schema"] == SCHEMA else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
