"""What an element of a batch job runs: `python -m gdask.campaign.submitted FOLDER job LIST N`.

And, at the end, the tables: `python -m gdask.campaign.submitted FOLDER last 0`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from gdask.campaign import elsewhere, records, report
from gdask.campaign.index import write_tables
from gdask.campaign.jobs import MAX_TRIES
from gdask.campaign.processes import stop_all
from gdask.campaign.run import owned
from gdask.campaign.showing import write_report
from gdask.campaign.state import states_of
from gdask.campaign.sums import take_over
from gdask.io.whole import write_whole
from gdask.logutils import say
from gdask.model import GdaskError, clean, read_text

#: Seconds for which the last job waits for a run that owns the folder.
OWNER_PATIENCE = 600.0
#: Share of the memory of an allocation that a job plans with.
MEMORY_SHARE = 0.9


def main(argv: Sequence[str] | None = None) -> int:
    """Do one element; 0 made, 1 failed or blocked, 2 usage."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not (len(words) == 4 and words[1] == "job" or len(words) == 3 and words[1] == "last"):
        say("expected: FOLDER job LIST N, or FOLDER last 0", at_fault=True)
        return 2
    try:
        if words[1] == "last":
            return _tables(words[0])
        names = read_text(Path(words[0]) / words[2]).splitlines()
        return _job(words[0], names[int(words[3])])
    except GdaskError as error:
        say(f"gdask: {error}", at_fault=True)
        return 1


def _job(folder: str, name: str) -> int:
    """Do a job; near the end of the wall time, stop it and go into the queue again."""
    say(f"{_now()} {name} on {os.uname().nodename}")
    near = threading.Event()
    threads = int(os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("NCPUS") or 0) or None
    done: dict[str, Any] = {}

    def stop(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            near.set()
        threading.Thread(target=stop_all, daemon=True).start()

    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)

    def work() -> None:
        try:
            done.update(elsewhere.do_job(folder, name, threads, _memory()))
        except KeyboardInterrupt:
            done["status"] = "stopped"
        except (GdaskError, OSError) as error:
            done.update(status="failed", cause=str(error), unwritten=True)

    worker = threading.Thread(target=work)
    worker.start()
    while worker.is_alive():  # signals are heeded between
        worker.join(1.0)
    if not done:
        done.update(status="failed", cause="the job ended with a traceback; see above")
    if done["status"] == "stopped":
        return _again(folder, name) if near.is_set() else 143
    if done.get("unwritten"):
        _write_failed(folder, name, done["cause"])
    text = f": {done['cause']}" if done.get("cause") else ""
    say(clean(f"{_now()} {name}: {done['status']}{text}"))
    return int(done["status"] != "made")


def _memory() -> str | None:
    """Give the memory that the job may plan with: a share of what it was allotted."""
    given = os.environ.get("SLURM_MEM_PER_NODE", "")
    per_core = os.environ.get("SLURM_MEM_PER_CPU", "")
    cores = int(os.environ.get("SLURM_CPUS_PER_TASK") or 1)
    size = int(given) if given.isdigit() else int(per_core) * cores if per_core.isdigit() else 0
    return f"{int(MEMORY_SHARE * size)}MiB" if size else None


def _again(folder: str, name: str) -> int:
    """Put the element into the queue again, at most MAX_TRIES times in all.

    It goes on from its last checkpoint.
    """
    tries = int(os.environ.get("SLURM_RESTART_COUNT") or 0) + 1
    if tries >= MAX_TRIES or shutil.which("scontrol") is None:
        _write_failed(
            folder, name, f"time limit: stopped {tries} times near the end of its wall time; give "
            "more --walltime; it goes on from its last checkpoint",
        )  # fmt: skip
        return 1
    element = "_".join(
        os.environ.get(key, "") for key in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")
    )
    say(f"{_now()} {name}: the wall time is near; into the queue again")
    subprocess.run(["scontrol", "requeue", element], check=False)
    return 0


def _write_failed(folder: str, name: str, cause: str) -> None:
    """Write that a job has failed; it is tried again by the next submission."""
    handed = elsewhere.read_handed(folder, name)
    last = records.read_record(handed.place.out, handed.job) or {}
    record = {"products": [], "parts": {}, **last, "status": "failed", "cause": cause, "key": ""}
    records.write_record(handed.place.out, handed.job, record | {"ran": True})
    say(clean(f"{_now()} {name}: failed: {cause}"))


def _tables(folder: str, patience: float = OWNER_PATIENCE) -> int:
    """Write the tables of the campaign, and how it stands."""
    campaign, place = elsewhere.read_campaign(folder), elsewhere.read_place(folder)
    end = time.monotonic() + patience
    while True:
        try:
            with owned(place.out):
                take_over(place.out, place.cache)
                known = records.read_records(place.out, campaign)
                states = states_of(campaign, known, place)
                write_tables(place.out, campaign, known)
                write_report(place.out, say)
                lines = [clean(line) for line in report.status_lines(campaign, states, known)]
                write_whole(Path(folder) / "report.txt", "\n".join([*lines, ""]))
                for line in lines:
                    say(line)
                return int(any(not _is_made(known.get(job.id)) for job in campaign.jobs))
        except GdaskError:
            if time.monotonic() >= end:
                raise
            time.sleep(1.0)


def _is_made(record: Mapping[str, Any] | None) -> bool:
    return bool(record) and record is not None and record.get("status") == "made"


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


if __name__ == "__main__":
    sys.exit(main())
