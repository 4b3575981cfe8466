"""How long a campaign takes on many workers: a model, calibrated on jobs that were measured.

    python -m benchmarks.campaigns OUT [--frames 10000 100000] [--workers 16 64 512] [--json FILE]

OUT: results of a campaign; its records say what a job of each kind takes: seconds to begin, and
for each byte of raw data. The model's campaign is planned by `make_plan` from made-up files, GSAOI
frames of full size: in each night 6 targets in 2 filters, 9 frames on each and 3 of sky, and flats
of both filters. Jobs are done as `gdask run --cluster` does them: a free worker takes the ready one
on which most depends; handing one over takes the client CLIENT_SECONDS, one after another. Workers
for which there is none join large jobs, by the rules of `gdask.campaign.lend`.

Of a job that others join, it is assumed that so much is done by its command alone, one thing after
another: SERIAL_SECONDS, SERIAL_FRAME for each frame, for a stack SERIAL_STACK (its sources). The
rest is done by all of its workers, each SHARE as fast as one alone; a worker that joins begins
after JOIN_SECONDS. These were measured with one and two workers (docs/cluster.md); with more,
nothing was.

efficiency: seconds of all jobs over workers times wall seconds. bound: the best there can be, by
the longest chain of jobs (flat, frames, stacks), each by one worker. Also printed: seconds and
memory of the client for the plan. --alone: no worker joins.
"""

from __future__ import annotations

import argparse
import heapq
import json
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from gdask.campaign import lend
from gdask.campaign.describe import RawFile, sharing
from gdask.campaign.job import Campaign, Job
from gdask.campaign.plan import make_plan
from gdask.campaign.records import all_records
from gdask.model import night_of

#: Bytes of a raw frame of full size, and what a night holds.
FRAME_BYTES, TARGETS, FILTERS, ON_TARGET, ON_SKY, FLATS = 67_200_000, 6, ("Kshort", "J"), 9, 3, 10
#: Seconds of the client and its scheduler for each job: 0.006 of CPU were measured with 400 jobs
#: that do nothing; a record to read and a line to say come to it.
CLIENT_SECONDS = 0.01
#: Seconds that a job takes to begin, at least (docs/performance.md).
START_SECONDS = 0.8
#: Of a job that others join (docs/cluster.md, "Scaling"): seconds of its command's start and that
#: of workers, of each frame, and of the sources of a stack, while others can do nothing; how fast
#: each of several workers is, of one alone; seconds until one that joins does something.
SERIAL_SECONDS, SERIAL_FRAME, SERIAL_STACK, SHARE, JOIN_SECONDS = 4.9, 0.035, 5.5, 0.89, 3.0


def frame(
    kind: str, when: datetime, number: int, target: int, filter_name: str, lamp: str
) -> RawFile:
    """Give a made-up file as a scan describes it."""
    row = {
        "instrument": "GSAOI", "filter_name": filter_name,
        "exposure_time": 60.0 if kind == "science" else 8.0, "coadds": 1, "read_mode": "FOWLER",
        "read_speed_setting": None, "lyot_stop": "f/16", "camera": None, "disperser": "Open",
        "focal_plane_mask": "None", "detector_x_bin": 1, "detector_y_bin": 1,
        "array_name": ["A1", "A2", "A3", "A4"], "detector_section": [[0, 2048, 0, 2048]] * 4,
        "shape": [[2048, 2048]] * 4, "caltype": None,
    }  # fmt: skip
    is_flat = kind == "flat"
    night = night_of(when).strftime("%Y%m%d")
    name = f"S{night}S{number:04d}.fits"
    return RawFile(
        f"/raw/{name}", FRAME_BYTES, 1, name, kind, label=f"{night}-{number}", instrument="GSAOI",
        tags=("CAL", "FLAT", "IMAGE", "GSAOI") if is_flat else ("IMAGE", "RAW", "GSAOI"),
        night=night, time=when.isoformat(), object=f"T{target}", observation_class="science",
        program=f"GS-2017A-Q-{target}", observation=f"GS-2017A-Q-{target}-1",
        ra=None if is_flat else 20.0 * target, dec=None if is_flat else -43.0,
        guided=None if is_flat else True, lamp=lamp, field_of_view=83.5, row=row,
    )  # fmt: skip


def made_up(frames: int) -> list[RawFile]:
    """Give about so many science frames of full size, with their flats, night after night."""
    files: list[RawFile] = []
    known: dict[Any, Any] = {}  # as a scan does
    science, night = 0, 0
    while science < frames:
        when = datetime(2017, 1, 1, 0, 0) + timedelta(days=night)
        number = 0
        for target in range(TARGETS):
            for filter_name in FILTERS:
                for _ in range(ON_TARGET + ON_SKY):
                    number += 1
                    when += timedelta(seconds=70)
                    name = target + night // 30 * TARGETS
                    one = frame("science", when, number, name, filter_name, "")
                    files.append(sharing(one, known))
                    science += 1
        for filter_name in FILTERS:
            for k in range(FLATS):
                number += 1
                when += timedelta(seconds=30)
                lamp = "on" if k < FLATS // 2 else "off"
                files.append(sharing(frame("flat", when, number, 0, filter_name, lamp), known))
        night += 1
    return files


def rates(out: str) -> dict[str, float]:
    """Give the seconds for each byte of raw data, by kind of job, of the jobs of a campaign."""
    found: dict[str, list[float]] = {}
    for record in all_records(out):
        if record.get("status") == "made" and record.get("raw_bytes"):
            each = max(record["seconds"] - START_SECONDS, 0.0) / record["raw_bytes"]
            found.setdefault(record["job"].partition("-")[0], []).append(each)
    return {kind: statistics.median(each) for kind, each in found.items()}


class Running:
    """A job that runs: work left (seconds of one worker) since `at`, by so many workers.

    The command works alone until `alone`.
    """

    def __init__(self, work: float, serial: float, now: float, is_open: bool) -> None:
        self.work, self.alone, self.at, self.count, self.is_open = (
            work,
            now + serial,
            now,
            1,
            is_open,
        )

    @property
    def rate(self) -> float:
        return self.count * SHARE if self.count > 1 else 1.0

    def join(self, now: float) -> None:
        """Let one more worker join, which needs some seconds to begin."""
        self.work -= max(now - max(self.at, self.alone), 0.0) * self.rate
        self.at = max(now, self.alone)
        self.count += 1
        self.work += JOIN_SECONDS * SHARE

    @property
    def end(self) -> float:
        return max(self.at, self.alone) + self.work / self.rate


def simulated(
    campaign: Campaign, seconds: Mapping[str, float], workers: int, alone: bool = False
) -> dict[str, float]:
    """Do all jobs on so many workers; give wall seconds, efficiency, and the bound of both."""
    jobs = {job.id: job for job in campaign.jobs}
    users: dict[str, list[str]] = {name: [] for name in jobs}
    waits = {}
    for job in campaign.jobs:
        needs = [name for name in job.needs if name in users]
        waits[job.id] = len(needs)
        for name in needs:
            users[name].append(job.id)
    below: dict[str, float] = {}
    for name in reversed(jobs):  # each after those that it needs
        below[name] = seconds[name] + max((below[one] for one in users[name]), default=0.0)
    ready = [(-below[name], name) for name, count in waits.items() if not count]
    heapq.heapify(ready)
    running: dict[str, Running] = {}
    ends: list[tuple[float, str]] = []
    now = client = 0.0
    free = workers
    left = sum(job.raw_bytes for job in campaign.jobs)
    while ready or running:
        count = len(ready)
        while ready and free:
            client = max(client, now) + CLIENT_SECONDS
            name = heapq.heappop(ready)[1]
            left -= jobs[name].raw_bytes
            serial = min(_serial(jobs[name]), seconds[name])
            is_open = not alone and lend.is_open(jobs[name], workers, 1, count, left)
            running[name] = Running(seconds[name] - serial, serial, client, is_open)
            heapq.heappush(ends, (running[name].end, name))
            free -= 1
        if free:
            counted = [(jobs[name], one.count) for name, one in running.items() if one.is_open]
            for name in lend.shared_out(counted, free, 1):
                client = max(client, now) + CLIENT_SECONDS
                running[name].join(client)
                heapq.heappush(ends, (running[name].end, name))
                free -= 1
        now, name = heapq.heappop(ends)
        while name not in running or running[name].end > now + 1e-6:
            now, name = heapq.heappop(ends)
        free += running.pop(name).count
        for one in users[name]:
            waits[one] -= 1
            if not waits[one]:
                heapq.heappush(ready, (-below[one], one))
    work = sum(seconds.values())
    least = max(work / workers, max(below.values()))
    return {"wall": now, "efficiency": work / workers / now, "bound": work / workers / least}


def _serial(job: Job) -> float:
    frames = job.raw_bytes / FRAME_BYTES
    return SERIAL_SECONDS + SERIAL_FRAME * frames + (SERIAL_STACK if job.kind == "stack" else 0.0)


def measure(
    out: str, frames: int, workers: Sequence[int], alone: bool = False
) -> list[dict[str, Any]]:
    """Plan a campaign of so many frames, and do it in the model."""
    each = rates(out)
    files = made_up(frames)
    begun = time.perf_counter()
    campaign = make_plan(files)
    planned = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = {
        job.id: START_SECONDS + each.get(job.kind, 0.0) * job.raw_bytes for job in campaign.jobs
    }
    about = {"frames": frames, "jobs": len(seconds), "plan_seconds": planned, "client_MB": peak}
    return [about | {"workers": n} | simulated(campaign, seconds, n, alone) for n in workers]


def main() -> None:
    """Print one line for each number of frames and workers."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("out", help="results of a campaign, whose records say what jobs take")
    parser.add_argument("--frames", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[16, 64, 256, 512])
    parser.add_argument("--alone", action="store_true", help="no worker joins the job of another")
    parser.add_argument("--json", type=Path, help="write the numbers there, too")
    args = parser.parse_args()
    print("seconds for a byte:", {k: f"{v:.3g}" for k, v in rates(args.out).items()})
    rows = [
        row for frames in args.frames for row in measure(args.out, frames, args.workers, args.alone)
    ]
    for row in rows:
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
