"""Facts of a campaign: read from its folder of results alone, without the raw files."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from gdask.campaign import records
from gdask.campaign.gates import gates_of, judged_products
from gdask.campaign.index import FILES, PLAN, read_plan
from gdask.campaign.job import Campaign, Choice, Job
from gdask.campaign.settings import read_flags
from gdask.campaign.tables import read_table
from gdask.model import UsageError, read_text
from gdask.report.private import cleaned, cleaned_facts, cleaner
from gdask.report.products import product_facts, read_tables, with_coverage, with_frames

#: Files that are not used and have a row each; of more, the first ones are shown.
MAX_UNUSED = 2000
#: Lines of a log that a page shows.
_LOG_LINES = 12

Clean = Callable[[str], str]
Facts = dict[str, Any]


class Look(NamedTuple):
    """What is read once for all facts. before: products of the last report, by path."""

    out: str
    name: str
    clean: Clean
    before: Mapping[str, Mapping[str, Any]]


def campaign_facts(out: str, internal: bool, before: Mapping[str, Mapping[str, Any]]) -> Facts:
    """Gather jobs, products and files of a campaign."""
    jobs = read_plan(Path(out) / PLAN)
    rows = _file_rows(out)
    roots = [os.path.dirname(row.get("path", "")) for row in rows] + records.known_places(out)
    clean = cleaner(os.path.abspath(out), {root for root in roots if root}, internal)
    name = os.path.abspath(out) if internal else os.path.basename(os.path.abspath(out))
    look = Look(out, name, clean, before)
    campaign = Campaign(jobs, (), ())
    known = records.read_records(out, campaign)
    used = _inputs(rows)
    table = gates_of(out)
    products = _products(campaign, known, look)
    described = [_job(job, known, used.get(job.id, []), look) for job in jobs]
    facts = {
        "kind": "campaign",
        "name": name,
        "jobs": described,
        "products": products,
        "gates": table,
        "files": cleaned(_files(rows, internal), clean),
        "flags": [cleaned(one._asdict(), clean) for one in read_flags(out)],
    }
    return cleaned_facts(facts, clean)


def raw_paths(out: str) -> dict[str, str]:
    """Give the paths of the raw files of a campaign, by name; {} where there is none."""
    return {row["file"]: row.get("path", "") for row in _file_rows(out)}


def _file_rows(out: str) -> list[dict[str, str]]:
    try:
        return read_table(Path(out) / FILES)
    except UsageError:
        return []


def _inputs(rows: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Give the raw files of each job."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if not row["kind"].startswith("processed_"):
            for job in filter(None, row["jobs"].split(",")):
                found.setdefault(job, []).append(row["file"])
    return found


def _files(rows: Sequence[Mapping[str, str]], internal: bool) -> Facts:
    unused = [row for row in rows if row["state"] != "used"]
    keys = ("file", "state", "why", "kind", "night", "object", *(("path",) if internal else ()))
    return {
        "counts": dict(sorted(Counter(row["state"] for row in rows).items())),
        "unused": [{key: row[key] for key in keys} for row in unused[:MAX_UNUSED]],
        "more": max(len(unused) - MAX_UNUSED, 0),
    }


# Products --------------------------------------------------------------------------------------


def _products(campaign: Campaign, known: Mapping[str, dict[str, Any]], look: Look) -> list[Facts]:
    """Give the products of all jobs that are made, in the order of the plan."""
    table = gates_of(look.out)
    judged = judged_products(campaign, known, table)
    verdicts = {one.product["path"]: one.verdicts for one in judged}
    found = []
    for job in campaign.jobs:
        record = known.get(job.id, {})
        for one in record.get("products", ()):
            path = one["path"]
            content = one.get("content", "")
            tables = read_tables(os.path.join(look.out, path), content, look.before.get(path))
            facts = product_facts(path, one.get("numbers", {}), verdicts.get(path, ()), tables)
            found.append(facts | _of_job(job, record, tables, one, look))
    frames = {one["name"]: one for one in found if one["of"] == "frame"}
    return [
        with_coverage(with_frames(one, frames, table), table) if one["of"] == "image" else one
        for one in found
    ]


def _of_job(
    job: Job,
    record: Mapping[str, Any],
    tables: Mapping[str, Any],
    one: Mapping[str, Any],
    look: Look,
) -> Facts:
    """Give what a product has from its job. raw: as `gdask flag` takes it."""
    path = os.path.join(look.name, one["path"])
    is_old = record.get("status") != "made"
    return {
        "job": job.id,
        "kind": job.kind,
        "instrument": job.instrument,
        "target": job.target,
        "filter": job.filter,
        "night": job.night,
        "level": record.get("level", 0),
        "gdask": record.get("gdask", ""),
        "left_out": cleaned(record.get("left_out", []), look.clean),
        "calibrations": [_choice(choice, look.clean) for choice in job.calibrations],
        "parameters": cleaned(dict(job.parameters), look.clean),
        "inputs": record.get("inputs"),
        "content": one.get("content", ""),
        "size": one.get("size"),
        "is_old": is_old,
        "raw": os.path.basename(path).removesuffix(".fits").rpartition("_")[0],
        "tables": dict(tables),
        "wavelength": tables.get("wavelength"),
        "object": tables.get("object", ""),
        "made_by": look.clean(record.get("command", "")),
        "commands": {
            "make it again and compare": shlex.join(["gdask", "replay", path]),
            "see what went in, and why": shlex.join(["gdask", "why", path]),
            "draw it, larger": shlex.join(["gdask", "show", path]),
            "gather what its job was given, with the line that makes it": shlex.join(
                ["gdask", "run", "-o", look.name, "--bundle", job.id, f"{job.id}.bundle"]
            ),
        },
    }


def _choice(choice: Choice, clean: Clean) -> Facts:
    return {
        "type": choice.caltype.removeprefix("processed_"),
        "source": os.path.basename(choice.source),
        "level": choice.level,
        "why": clean(choice.why),
        "misses": [clean(text) for text in choice.misses],
        "required": choice.required,
        "instead_of": list(choice.instead_of),
    }


# Jobs ------------------------------------------------------------------------------------------


def _job(job: Job, known: Mapping[str, dict[str, Any]], inputs: Sequence[str], look: Look) -> Facts:
    """Give the facts of a job: how it stands, what it took, what went wrong."""
    record = known.get(job.id, {})
    account, planned = record.get("account") or {}, record.get("planned") or {}
    state, cause = _state(job, record, look)
    begun = record.get("begun")
    return {
        "id": job.id,
        "kind": job.kind,
        "recipe": job.recipe,
        "instrument": job.instrument,
        "target": job.target,
        "filter": job.filter,
        "night": job.night,
        "state": state,
        "cause": look.clean(cause),
        "log": cleaned(_log(job, record, state, look.out), look.clean),
        "inputs": list(inputs),
        "frames_of": list(job.takes),
        "needs": list(job.needs),
        "calibrations": [_choice(one, look.clean) for one in job.calibrations],
        "parameters": cleaned(dict(job.parameters), look.clean),
        "notes": cleaned(list(job.notes), look.clean),
        "left_out": cleaned(record.get("left_out", []), look.clean),
        "level": record.get("level", 0),
        "gdask": record.get("gdask", ""),
        "begun": _time(begun),
        "waited": _waited(job, record, known),
        "seconds": record.get("seconds"),
        "seconds_planned": planned.get("seconds"),
        "memory": account.get("memory"),
        "memory_planned": planned.get("memory"),
        "written": account.get("written"),
        "read": account.get("read"),
        "tries": cleaned(record.get("tries", []), look.clean),
        "made_by": look.clean(record.get("command", "")),
        "products": [one["path"] for one in record.get("products", ())],
        "commands": _commands(job, state, look.name),
    }


def _state(job: Job, record: Mapping[str, Any], look: Look) -> tuple[str, str]:
    """Give the state of a job, and its cause in words."""
    if job.blocked:
        return "blocked", job.blocked
    if not record:
        begun = (_work(job, look.out) / "job.log").exists()
        return ("begun", "it was begun and has not ended") if begun else ("not run", "")
    if record["status"] != "made":
        return record["status"], record.get("cause", "")
    if text := records.lost_product(look.out, record):
        return "changed", text
    return "made", ""


def _work(job: Job, out: str) -> Path:
    return Path(out) / records.HIDDEN / "work" / job.id


def _log(job: Job, record: Mapping[str, Any], state: str, out: str) -> list[str]:
    """Give the last lines that a job has said, where it was not made."""
    if record.get("log"):
        return list(record["log"])
    if state in ("begun", "failed"):
        try:
            text = read_text(_work(job, out) / "job.log", errors="replace")
        except OSError:
            return []
        return [line for line in text.splitlines() if line.strip()][-_LOG_LINES:]
    return []


def _waited(
    job: Job, record: Mapping[str, Any], known: Mapping[str, dict[str, Any]]
) -> float | None:
    """Give the seconds from when a job could have begun until it did; None where not known.

    It can begin when the run was asked for and what it needs was made.
    """
    begun, asked = record.get("begun"), record.get("asked")
    if not begun or not asked:
        return None
    needed = [known.get(name, {}) for name in job.needs]
    ends = [one["begun"] + one["seconds"] for one in needed if one.get("begun")]
    ready = max([asked, *(end for end in ends if end <= begun)])
    return round(max(begun - ready, 0.0), 1)


def _time(seconds: float | None) -> str:
    if not seconds:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UT")


def _commands(job: Job, state: str, out: str) -> dict[str, str]:
    """Give the commands that may help with a job that is not made."""
    if state == "made":
        return {}
    found = {}
    if state == "failed":
        only = f"id=={job.id}"
        words = ["gdask", "run", "-o", out, "--only", only, "--retry"]
        found["try it again, when the cause is away"] = shlex.join(words)
    else:
        found["go on"] = shlex.join(["gdask", "run", "-o", out])
    bundle = ["gdask", "run", "-o", out, "--bundle", job.id, f"{job.id}.bundle"]
    return found | {"gather all that it needs in a folder": shlex.join(bundle)}
