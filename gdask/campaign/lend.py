"""Several workers of a cluster for one large job: workers that have nothing to do join it.

The command of a large job has a scheduler of its own, in its process on the job's worker. Whoever
joins starts a worker process for that scheduler, and ends with it. So pixels, names of tasks and
deaths of one job never meet those of another, and the scheduler of the campaign sees jobs alone.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gdask.campaign import records
from gdask.campaign.job import Job
from gdask.campaign.jobs import SCHEDULER
from gdask.campaign.processes import ENDS_WITH_PARENT, STOPPED, ended_by_all
from gdask.cluster import ONE_THREAD
from gdask.model import read_json

#: Bytes of raw data that are worth a worker, and each of its threads: 16 full frames of GSAOI, half
#: a minute of one thread, and 4. To join takes some 3 seconds.
WORKER_BYTES, THREAD_BYTES = 2**30, 2**28
#: Bytes that are left to the command of a job on its own worker: its frames and graphs take 0.3 MB
#: a frame (docs/cluster.md).
COMMAND_BYTES = 512 * 2**20
#: Seconds that somebody who joins waits for the scheduler of the job, and between two looks.
PATIENCE, LOOK = 300.0, 0.5
#: A worker process, which ends in order when the process that started it is gone.
_WORKER = f"""{ENDS_WITH_PARENT}
from distributed.cli.dask_worker import main
main()
"""
_TLS_OPTIONS = {"ca": "--tls-ca-file", "cert": "--tls-cert", "key": "--tls-key"}


class Joining(NamedTuple):
    """What a worker gives to a job. out: folder of results. memory: bytes, None: without limit.
    options: certificates and patience, as in a profile. over: a file that is there once the job
    has ended."""

    out: str
    job: str
    threads: int
    memory: int | None
    options: Mapping[str, Any]
    over: str


def most_workers(job: Job, threads: int) -> int:
    """Give the number of workers of so many threads that have enough to do in a job; at least 1."""
    return max(1, math.floor(job.raw_bytes / max(WORKER_BYTES, THREAD_BYTES * threads)))


def is_open(job: Job, workers: int, threads: int, ready: int, left: int) -> bool:
    """Tell whether a job that begins should be one that others may join.

    It is large, and some of the workers will be idle before it ends: no more jobs are ready than
    there are workers, or it is more than each worker's part of the bytes of jobs that are left.
    """
    soon_idle = ready <= workers or job.raw_bytes * workers > left
    return soon_idle and most_workers(job, threads) > 1


def shared_out(jobs: Sequence[tuple[Job, int]], idle: int, threads: int) -> list[str]:
    """Share idle workers among jobs, given with the number of workers that they have.

    Each worker goes to the job that has most bytes for each of its workers. Gives a job's id for
    each worker that is of use.
    """
    open_jobs = [
        (-job.raw_bytes / have, number, job, have)
        for number, (job, have) in enumerate(jobs)
        if have < most_workers(job, threads)
    ]
    heapq.heapify(open_jobs)
    found: list[str] = []
    while open_jobs and len(found) < idle:
        _, number, job, have = open_jobs[0]
        found.append(job.id)
        if have + 1 < most_workers(job, threads):
            heapq.heapreplace(open_jobs, (-job.raw_bytes / (have + 1), number, job, have + 1))
        else:
            heapq.heappop(open_jobs)
    return found


@contextlib.contextmanager
def joinable(joining: Joining) -> Iterator[dict[str, Any]]:
    """Inside, a worker process of this worker is ready to join the job; give the job's profile."""
    from distributed import get_worker
    from distributed.comm import get_address_host

    over = threading.Event()
    profile = {
        "kind": "joined",
        "scheduler_file": SCHEDULER,
        "host": get_address_host(get_worker().address),
        **joining.options,
    }
    if joining.memory:
        left = max(joining.memory - COMMAND_BYTES, joining.memory // 2)
        joining = joining._replace(memory=left)
    scratch = get_worker().local_directory
    thread = threading.Thread(target=_join, args=(joining, scratch, over), daemon=True)
    thread.start()
    try:
        yield profile
    finally:
        over.set()
        thread.join()


def join(joining: Joining) -> None:
    """Work for a job, from a worker that is not its own, until the job has ended."""
    from distributed import get_worker

    _join(joining, get_worker().local_directory, threading.Event())


def _join(joining: Joining, scratch: str, over: threading.Event) -> None:
    """Start a worker process once the job has a scheduler; return when the process has ended."""
    path = Path(joining.out) / records.HIDDEN / "work" / joining.job / SCHEDULER
    begun = time.monotonic()

    def is_over() -> bool:
        ended = os.path.exists(joining.over) or not os.path.isdir(os.path.dirname(joining.over))
        return ended or over.is_set() or STOPPED.is_set()

    while not (address := _address_in(path)):
        if is_over() or time.monotonic() - begun > PATIENCE:
            return
        over.wait(LOOK)
    process = subprocess.Popen(
        _worker_line(joining, address, scratch),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | ONE_THREAD,
    )
    with ended_by_all(process):
        while process.poll() is None:
            if is_over():
                process.terminate()
                process.wait()
            over.wait(LOOK)


def _address_in(path: Path) -> str:
    """Give the address of a scheduler from its file; '' where it is not there yet."""
    with contextlib.suppress(OSError, ValueError):
        return str(read_json(path)["address"])
    return ""


def _worker_line(joining: Joining, address: str, scratch: str) -> list[str]:
    """Give the command line of a worker process for the scheduler of a job."""
    line = [sys.executable, "-c", _WORKER, address, "--nworkers", "1", "--no-dashboard"]
    line += ["--nthreads", str(joining.threads), "--memory-limit", str(joining.memory or 0)]
    line += ["--death-timeout", "30", "--local-directory", scratch]
    for name, path in joining.options.get("tls", {}).items():
        line += [_TLS_OPTIONS[name], path]
    return line
