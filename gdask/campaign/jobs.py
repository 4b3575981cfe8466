"""One job: `reduce` in a process of its own, and its record.

A crash costs the job, not the campaign. A job that was killed goes on from its last checkpoint when
it is run again. It registers nothing in any database: calibrations are given by path.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gdask import __version__
from gdask.campaign import cost, records
from gdask.campaign.causes import cause_of, message_of
from gdask.campaign.claims import claimed, lock_here
from gdask.campaign.describe import RawFile, write_corrected
from gdask.campaign.gates import blocking, gates_of, unfit_frames
from gdask.campaign.job import Job, corrected_cards, lacking
from gdask.campaign.processes import ENDS_WITH_PARENT, STOPPED, ended_by_all
from gdask.campaign.quicklook import name_of, with_right_names
from gdask.campaign.scan import known_sum
from gdask.campaign.settings import GATES, Flag
from gdask.campaign.showing import DRAW_FRAMES, draw_pictures, move_pictures, picture_folder
from gdask.campaign.sums import SharedSums
from gdask.campaign.tables import toml_lines
from gdask.headers.numbers import read_numbers
from gdask.io.whole import write_whole
from gdask.model import GdaskError, read_json, read_text
from gdask.reduction.gates import Table
from gdask.reduction.provenance import product_name

#: What the products of each kind of job are called.
SUFFIXES = {
    "dark": "_dark",
    "bpm": "_bpm",
    "flat": "_flat",
    "frames": "_skyCorrected",
    "stack": "_image",
}
#: Times that a job is tried at most, when it was killed or wanted memory.
MAX_TRIES = 3
#: Lines of the log that the record of a failed job keeps.
LOG_LINES = 12
#: `reduce`, as a process.
_REDUCE = f"""{ENDS_WITH_PARENT}
from gdask.cli.reduce import main
code = main()
%ssys.exit(code)
"""


class Place(NamedTuple):
    """Where and how jobs run. out: folder of results. flags: of the campaign. retry: whether jobs
    that have failed before, and of which nothing has changed, are tried again. sums: of raw files,
    for jobs that run elsewhere and must not write to the cache of the scan. since: when the run or
    the submission began, in seconds since 1970. tonight: the night of which files still arrive,
    or ''. profile: of the cluster that a job's command makes (`gdask.cluster`); None: threads."""

    out: str
    threads: int
    memory: str | None = None
    flags: tuple[Flag, ...] = ()
    retry: bool = False
    sums: SharedSums | None = None
    since: float = 0.0
    tonight: str = ""
    profile: Mapping[str, Any] | None = None

    @property
    def cache(self) -> str:
        """The cache of the scan."""
        return os.path.join(self.out, records.HIDDEN, "scan.sqlite")

    def sum_of(self, file: RawFile) -> str:
        """Give the checksum of the pixels of a file; elsewhere not from the cache of the scan."""
        return self.sums.of(file) if self.sums else known_sum(self.cache, file)


#: Causes of failures that are the machine's, or of what it was told, and not the job's.
_OF_THE_MACHINE = ("disk full", "too little memory")
#: Files of the profile of a job's cluster and of its scheduler's address, in its folder.
_PROFILE, SCHEDULER = "cluster.yaml", "scheduler.json"


def run_job(
    job: Job, files: Mapping[str, RawFile], before: Mapping[str, dict[str, Any]], place: Place
) -> dict[str, Any]:
    """Do a job where it is not done yet, and give its record.

    before: records of the jobs that it needs. The record's status is 'made', 'failed' or 'blocked';
    `ran` tells whether anything was run.
    """
    last = records.read_record(place.out, job)
    if blocked := job.blocked or _blocked_by(job, before, gates_of(place.out)):
        # Products of an earlier time stay known, but nothing is made of them.
        record = {"products": [], **(last or {}), "status": "blocked", "cause": blocked, "key": ""}
        records.write_record(place.out, job, record)
        return record | {"ran": False}
    with _folder_of(job, place) as (work, lock):
        parts, sources = what_goes_in(job, files, before, place)
        key = records.key_of(parts)
        if last and last["key"] == key:
            if last["status"] == "made" and not records.lost_product(place.out, last):
                return with_right_names(place.out, job, last, place.tonight) | {"ran": False}
            if last["status"] == "failed" and not place.retry:
                return last | {"ran": False}
        record = _try(job, work, lock, sources, place)
        record["names"] = {name: files[name].name for name in job.inputs}
        record |= {"key": key, "parts": parts, "gdask": __version__, "ran": True}
        if record["cause"].startswith(_OF_THE_MACHINE):
            record["key"] = ""  # nothing is wrong with the job: the next run tries it again
        record["level"] = max([job.level, *(one.get("level", 0) for one in before.values())])
        record["products"] = (last or {}).get("products", [])
        if record["status"] == "made":
            record["products"] = _moved(job, work, place, last)
            shutil.copyfile(
                work / "job.log", records.record_path(place.out, job).with_suffix(".log")
            )
        records.write_record(place.out, job, record)
        if record["status"] == "made":
            shutil.rmtree(work, ignore_errors=True)
            record["pictures"] = draw_pictures(records.products_of(place.out, record))
        return record


def _blocked_by(job: Job, before: Mapping[str, dict[str, Any]], table: Table) -> str:
    """Say what a job waits for in vain; '' where all that it needs is made and fit for use."""
    gone, unfit = {}, []
    for name in job.needs:
        record = before.get(name, {})
        if record.get("status") != "made":
            gone[name] = record.get("status", "not run")
        elif why := blocking(record, name.partition("-")[0], table):
            unfit.append(f"{name} is {why}")
    return ", ".join([*unfit, *lacking(job, gone)])


# What goes in ----------------------------------------------------------------------------------


class Sources(NamedTuple):
    """Files that a job is given: inputs, calibrations by type, corrected headers by path.

    gates: the text of the campaign's own gates.toml, '' where it has none.
    """

    inputs: tuple[str, ...]
    calibrations: dict[str, str]
    headers: dict[str, tuple[str, ...]]
    missing: tuple[str, ...]
    gates: str = ""


def what_goes_in(
    job: Job, files: Mapping[str, RawFile], before: Mapping[str, dict[str, Any]], place: Place
) -> tuple[dict[str, Any], Sources]:
    """Give what decides what a job makes (`records.parts_of`), and the files."""
    inputs = [files[key] for key in job.inputs]
    sums = {file.key: place.sum_of(file) for file in inputs}
    headers = {file.key: corrected_cards(file, place.flags) for file in inputs}
    headers = {key: cards for key, cards in headers.items() if cards}
    calibrations, digests = _calibrations(job, before, place)
    frames: dict[str, str] = {}
    paths = [file.path for file in inputs]
    made = [name for name in job.takes if before.get(name, {}).get("status") == "made"]
    products = [one for name in made for one in before[name]["products"]]
    unfit = unfit_frames(products, gates_of(place.out)) if products else {}
    for one in products:
        base = os.path.basename(one["path"])
        if not _is_out(base, job.not_stacked) and one["path"] not in unfit:
            frames[base] = one["content"]
            paths.append(os.path.join(place.out, one["path"]))
    missing = tuple(f"frames of {name}" for name in job.takes if name not in made)
    missing += tuple(f"{os.path.basename(path)} gate {why}" for path, why in unfit.items())
    corrected = {files[key].path: cards for key, cards in headers.items()}
    parts = records.parts_of(job, sums, digests, frames, headers)
    own = Path(place.out) / GATES
    gates = read_text(own) if own.exists() else ""
    return parts, Sources(tuple(paths), calibrations, corrected, missing, gates)


def _is_out(product: str, names: tuple[str, ...]) -> bool:
    return any(product == product_name(name, SUFFIXES["frames"]) for name in names)


def _calibrations(
    job: Job, before: Mapping[str, dict[str, Any]], place: Place
) -> tuple[dict[str, str], dict[str, str]]:
    """Give path and digest of content of each calibration, by type."""
    paths: dict[str, str] = {}
    for choice in job.calibrations:
        record = before.get(choice.source)
        if record is not None and record["status"] == "made":
            paths[choice.caltype] = os.path.join(place.out, record["products"][0]["path"])
        elif choice.source and record is None:
            paths[choice.caltype] = choice.source
    return paths, {caltype: records.content_digest(path) for caltype, path in paths.items()}


# Running ---------------------------------------------------------------------------------------


def command_line(job: Job, sources: Sources, cluster: str, memory: str | None) -> list[str]:
    """Give the command line of a job, in its folder. cluster: as for `gdask.cluster.connect`."""
    code = _REDUCE % (DRAW_FRAMES if job.kind == "frames" else "")
    line = [sys.executable, "-c", code, "@inputs.list", "-r", job.recipe]
    if job.parameters:
        line += ["-c", "parameters.toml"]
    if sources.gates:
        line += ["--gates", GATES]
    given = dict(sources.calibrations)
    if job.instrument == "F2" and (mask := given.pop("processed_bpm", "")):
        line += ["-p", f"addDQ:user_bpm={mask}"]  # its rules want one that was made before
    if given:
        line += ["--user_cal", *(f"{caltype}:{path}" for caltype, path in given.items())]
    line += ["--cluster", cluster, "--account", "account.json"]
    return line + (["--memory", memory] if memory else [])


def _try(job: Job, work: Path, lock: int, sources: Sources, place: Place) -> dict[str, Any]:
    """Run the command until it ends well, or fails for good; give what there is to record.

    What has failed on several workers is tried again in threads: the cluster may be the reason.
    """
    write_inputs(job, work, sources)
    if place.profile is not None:
        write_whole(work / _PROFILE, json.dumps(place.profile))
    for product in _products(job, work):
        product.unlink()  # of a try that failed, perhaps with other inputs
    tries: list[dict[str, Any]] = []
    threads, memory = place.threads, place.memory
    begun, code, is_shared = time.time(), 0, place.profile is not None
    while len(tries) < MAX_TRIES:
        spec = _PROFILE if is_shared else f"threads:{threads}"
        line = command_line(job, sources, spec, memory)
        code = _run(line, work, lock)
        log = _tail(work / "job.log")
        cause = "" if _has_ended_well(job, work, code) else cause_of(code, log)
        tries.append({"threads": threads, "memory": memory, "code": code, "cause": cause})
        tries[-1]["shared"] = is_shared
        if not cause or STOPPED.is_set() or cause in ("disk full", "refused"):
            break
        if is_shared:
            is_shared = False
            continue
        if cause not in ("killed", "out of memory"):
            break
        if cause == "out of memory" and threads == 1:
            memory = _twice(memory)
        threads = max(1, threads // 2)
    if STOPPED.is_set():
        raise KeyboardInterrupt
    cause, line = tries[-1]["cause"], command_line(job, sources, f"threads:{threads}", memory)
    return {
        "status": "failed" if cause else "made",
        "cause": f"{cause}: {message_of(log)}" if cause else "",
        "log": log if cause else [],
        "command": " ".join(["reduce", *line[3:]]),
        "tries": tries,
        "planned": cost.predict(job, cost.read_rates(), place.threads)._asdict(),
        "asked": place.since,
        "begun": begun,
        "seconds": time.time() - begun,
        "left_out": [*_left_out(work), *sources.missing],
        "account": _account(work),
        "inputs": len(sources.inputs),
        "raw_bytes": job.raw_bytes,
        "products": [],
    }


def _has_ended_well(job: Job, work: Path, code: int) -> bool:
    """Tell whether all products are whole: `reduce` says with 1 that it has left out frames, and
    also that it has failed, perhaps after some of the products. Its account comes at the end."""
    return code in (0, 1) and bool(_account(work)) and bool(_products(job, work))


def _twice(memory: str | None) -> str | None:
    from gdask.engine.memory import parse_bytes

    size = parse_bytes(memory)
    return str(int(2 * size)) if size else None


def write_inputs(job: Job, work: Path, sources: Sources) -> None:
    """Write list, parameters and configuration of a job, and copies with corrected headers."""
    paths = [
        _corrected(path, sources.headers[path], work) if path in sources.headers else path
        for path in sources.inputs
    ]
    write_whole(work / "inputs.list", "".join(f"{json.dumps(path)}\n" for path in paths))
    write_whole(work / "dragonsrc", "[calibs]\ndatabases = none.db get\n")
    if job.parameters:
        lines = toml_lines({key: value for key, value in job.parameters})
        write_whole(work / "parameters.toml", "\n".join([*lines, ""]))
    if sources.gates:
        write_whole(work / GATES, sources.gates)


def _corrected(path: str, cards: tuple[str, ...], work: Path) -> str:
    """Copy a raw file with corrected cards into the folder of its job; give the copy."""
    folder = work / "raw"
    folder.mkdir(exist_ok=True)
    copy = folder / os.path.basename(path).removesuffix(".bz2").removesuffix(".gz")
    write_corrected(path, cards, copy)
    return str(copy)


def _run(line: list[str], work: Path, lock: int) -> int:
    """Run a command in the folder of its job; its words go to job.log. Gives the exit code.

    The process holds the lock of the folder too, until it has ended.
    """
    if STOPPED.is_set():
        raise KeyboardInterrupt
    (work / "account.json").unlink(missing_ok=True)  # it tells that this try has ended well
    (work / SCHEDULER).unlink(missing_ok=True)
    with open(work / "job.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            line,
            cwd=work,
            env=os.environ | {"DRAGONSRC": "dragonsrc"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(lock,),
        )
        with ended_by_all(process):
            return process.wait()


@contextlib.contextmanager
def _folder_of(job: Job, place: Place) -> Iterator[tuple[Path, int]]:
    """Give the working folder of a job, which no other process has while this one has it."""
    work = Path(place.out) / records.HIDDEN / "work" / job.id
    work.mkdir(parents=True, exist_ok=True)
    with (
        claimed(work.with_name(f"{job.id}.owner"), STOPPED),
        open(work.with_name(f"{job.id}.lock"), "w") as lock,
    ):
        lock_here(lock.fileno())
        work.mkdir(parents=True, exist_ok=True)
        yield work, lock.fileno()


def _tail(path: Path) -> list[str]:
    lines = read_text(path, errors="replace").splitlines()
    return [line for line in lines if line.strip()][-LOG_LINES:]


def _account(work: Path) -> dict[str, Any]:
    try:
        found = read_json(work / "account.json")
    except (OSError, ValueError):
        return {}
    return {
        key: found[key]
        for key in ("seconds", "read", "written", "user", "system", "memory", "product", "raw")
        if key in found
    }


def _left_out(work: Path) -> list[str]:
    """Give the lines of the table of what the reduction has left out."""
    text = read_text(work / "job.log", errors="replace")
    _, found, rest = text.rpartition(" left out:\n")
    lines = rest.splitlines()[1:] if found else []
    return [" ".join(line.split()) for line in lines if line.startswith("    ")]


def _products(job: Job, work: Path) -> list[Path]:
    return sorted(work.glob(f"*{SUFFIXES[job.kind]}.fits"))


def _moved(
    job: Job, work: Path, place: Place, last: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Move the products to their folder; give path, size, time and digest of each.

    Those of the last time that are not made any more go.
    """
    folder = Path(place.out) / job.folder
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for product in _products(job, work):
        final = folder / name_of(product.name, job, place.tonight)
        _check_own(job, final)
        os.replace(product, final)
        move_pictures(product, final)
        status = final.stat()
        found.append(
            {
                "path": f"{job.folder}/{final.name}",
                "size": status.st_size,
                "mtime_ns": status.st_mtime_ns,
                "content": records.content_digest(final),
                "numbers": read_numbers(final),
            }
        )
    now = {one["path"] for one in found}
    for one in (last or {}).get("products", ()):
        if one["path"] not in now:
            path = os.path.join(place.out, one["path"])
            with contextlib.suppress(OSError):
                os.unlink(path)
            shutil.rmtree(picture_folder(path), ignore_errors=True)
    if not found:
        raise GdaskError(f"{job.id}: no product was found in {work}")
    return found


def _check_own(job: Job, final: Path) -> None:
    """Raise GdaskError where a file of this name is the product of another job."""
    for path in final.parent.glob("*.json"):
        if path.stem == job.id or not final.exists():
            continue
        others = (records.read_whole(path) or {}).get("products", ())
        if any(os.path.basename(one["path"]) == final.name for one in others):
            raise GdaskError(
                f"{job.id}: {final.name} would replace that of {path.stem}: raw files of both "
                "have one name; rename one of them"
            )
