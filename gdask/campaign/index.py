"""The tables and plan files of a campaign: made from plan and records, to be read by people."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gdask.campaign.gates import Judged, gates_of, judged_products
from gdask.campaign.job import Campaign, Choice, Job
from gdask.campaign.tables import read_table, toml_lines, write_database, write_table
from gdask.model import UsageError, read_toml
from gdask.reduction.gates import worst

FILES, INDEX, DATABASE, PLAN = "files.ecsv", "index.ecsv", "index.sqlite", "plan"
FILE_COLUMNS = (
    "file", "state", "kind", "jobs", "why", "label", "night", "object", "filter", "exposure",
    "path",
)  # fmt: skip
INDEX_COLUMNS = (
    "product", "job", "kind", "instrument", "target", "filter", "night", "status", "gates", "level",
    "inputs", "left_out", "seconds", "memory", "because", "gdask",
)  # fmt: skip
_PLAN_COLUMNS = (
    "job", "kind", "recipe", "instrument", "target", "filter", "night", "inputs", "needs",
    "level", "blocked",
)  # fmt: skip


def write_tables(
    out: str | os.PathLike[str], campaign: Campaign, known: Mapping[str, dict[str, Any]]
) -> list[Judged]:
    """Write files.ecsv, index.ecsv, index.sqlite and the plan; give the products, judged by gates.

    Raises AssertionError if files do not add up.
    """
    counts = Counter(row["path"] for row in campaign.rows)
    assert len(counts) == len(campaign.rows) == len({one.path for one in campaign.files})
    write_table(Path(out) / FILES, campaign.rows, FILE_COLUMNS, "Every file found, and its use.")
    judged = judged_products(campaign, known, gates_of(out))
    of_job: dict[str, list[Judged]] = {}
    for one in judged:
        of_job.setdefault(one.job.id, []).append(one)
    rows = []
    for job in campaign.jobs:
        products = of_job.get(job.id) or [Judged(job, {}, ())]
        rows += [index_row(one, known.get(job.id)) for one in products]
    about = "One row for each product, with its numbers; one for each job that has none."
    numbers = sorted({name for row in rows for name in row} - set(INDEX_COLUMNS))
    columns = (*INDEX_COLUMNS, *numbers)
    write_table(Path(out) / INDEX, rows, columns, about)
    tables = {"products": (rows, columns), "files": (campaign.rows, FILE_COLUMNS)}
    write_database(Path(out) / DATABASE, tables)
    write_plan(Path(out) / PLAN, campaign)
    return judged


def index_row(judged: Judged, record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Give the row of a product in the index."""
    record, job = record or {}, judged.job
    missed = [one.sentence for one in judged.verdicts if not one.is_met]
    row = {
        "product": judged.product.get("path", ""),
        "job": job.id,
        "kind": job.kind,
        "instrument": job.instrument,
        "target": job.target,
        "filter": job.filter,
        "night": job.night,
        "status": record.get("status", "not run"),
        "gates": worst(judged.verdicts),
        "level": record.get("level"),
        "inputs": record.get("inputs"),
        "left_out": len(record.get("left_out", ())),
        "seconds": record.get("seconds"),
        "memory": (record.get("account") or {}).get("memory"),
        "because": "; ".join(filter(None, [record.get("cause", ""), *missed])),
        "gdask": record.get("gdask", ""),
    }
    numbers = judged.product.get("numbers", {})
    return row | {name: value for name, value in numbers.items() if name not in row}


def write_plan(folder: Path, campaign: Campaign) -> None:
    """Write one TOML file for each job, and a table of all. Those of jobs no more planned go."""
    rows = [
        {
            "job": job.id,
            "kind": job.kind,
            "recipe": job.recipe,
            "instrument": job.instrument,
            "target": job.target,
            "filter": job.filter,
            "night": job.night,
            "inputs": len(job.inputs) or None,
            "needs": ",".join(job.needs),
            "level": job.level,
            "blocked": job.blocked,
        }
        for job in campaign.jobs
    ]
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    write_table(new / "index.ecsv", rows, _PLAN_COLUMNS, "The jobs of the plan, in order.")
    for job in campaign.jobs:
        (new / f"{job.id}.toml").write_text("\n".join([*job_lines(job), ""]), encoding="utf-8")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def read_plan(folder: Path) -> tuple[Job, ...]:
    """Read the jobs of a plan that `write_plan` wrote, in their order; () where there is none.

    Calibrations that are no jobs are names of files, without their folder. Jobs whose file is not
    there are left out: the plan is being written.
    """
    try:
        rows = read_table(folder / "index.ecsv")
    except UsageError:
        return ()
    found = []
    for row in rows:
        try:
            table = read_toml(folder / f"{row['job']}.toml")
            found.append(_job_of(table, row))
        except (OSError, ValueError, KeyError):
            continue
    return tuple(found)


def _job_of(table: Mapping[str, Any], row: Mapping[str, str]) -> Job:
    calibrations = tuple(
        Choice(
            caltype,
            one["source"],
            one["level"],
            one["why"],
            tuple(one["misses"]),
            one["required"],
        )
        for caltype, one in table.get("calibrations", {}).items()
    )
    return Job(
        table["job"],
        table["kind"],
        row["instrument"],
        row["target"],
        row["filter"],
        row["night"],
        table["folder"],
        tuple(table["inputs"]),
        tuple(table["takes"]),
        calibrations,
        tuple(table.get("parameters", {}).items()),
        tuple(table["not_stacked"]),
        notes=tuple(table["notes"]),
        blocked=table["blocked"],
    )


def job_lines(job: Job) -> list[str]:
    """Give the lines of a job in TOML."""
    lines = toml_lines(
        {
            "job": job.id,
            "kind": job.kind,
            "recipe": job.recipe,
            "folder": job.folder,
            "inputs": list(job.inputs),
            "takes": list(job.takes),
            "not_stacked": list(job.not_stacked),
            "notes": list(job.notes),
            "blocked": job.blocked,
            "parameters": dict(job.parameters),
        }
    )
    for choice in job.calibrations:
        lines += ["", *toml_lines(_choice_table(choice), f"calibrations.{choice.caltype}")]
    return lines


def _choice_table(choice: Choice) -> dict[str, Any]:
    return {
        "source": os.path.basename(choice.source),
        "level": choice.level,
        "why": choice.why,
        "misses": list(choice.misses),
        "required": choice.required,
    }
