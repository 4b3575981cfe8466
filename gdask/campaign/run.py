"""A campaign as one dask graph whose tasks are jobs: scan, plan, run, tables.

Kill it at any time and type the same line again: what is whole is kept, the rest is done.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gdask import model
from gdask.campaign import cost, records
from gdask.campaign.claims import beating, is_alive, lock_here, read_claim
from gdask.campaign.describe import RawFile
from gdask.campaign.gates import Judged, blocking, failures, gates_of
from gdask.campaign.index import write_tables
from gdask.campaign.job import STAGES, Campaign, Job
from gdask.campaign.jobs import Place, run_job
from gdask.campaign.plan import plan_again
from gdask.campaign.processes import begin_all, stop_all
from gdask.campaign.progress import Progress
from gdask.campaign.report import unplanned_lines
from gdask.campaign.settings import read_settings
from gdask.campaign.showing import write_report
from gdask.campaign.spread import Wanted, run_on_cluster
from gdask.campaign.state import State, states_of
from gdask.campaign.survey import FAILED, Options, chosen, survey, whole_plan, with_next_best
from gdask.io.whole import write_whole
from gdask.model import GdaskError

#: After so many failures of different jobs for one cause, a run stops.
MAX_LIKE_FAILURES = 3
#: Causes of which it is known that other jobs may do well.
_OF_ONE_JOB = ("error", "refused")


class Outcome(NamedTuple):
    """What a run has come to: the plan, the record of each job, and why it stopped or ''.

    gates: in words, the gates that products of the whole campaign do not meet, as failures.
    """

    campaign: Campaign
    records: dict[str, dict[str, Any]]
    stopped: str
    gates: tuple[str, ...] = ()

    @property
    def failed(self) -> list[str]:
        """Jobs that failed or are blocked."""
        return [
            name for name, one in self.records.items() if one["status"] in ("failed", "blocked")
        ]


# Running ---------------------------------------------------------------------------------------


def run_campaign(options: Options, say: Callable[[str], None] = print) -> Outcome:
    """Do all jobs of a campaign that are not done yet; write its tables and report.

    Raises UsageError and GdaskError for what stops it before the first job. The failure of a job
    is in its record.
    """
    campaign, place = survey(options, say, learns=True)
    with owned(place.out):
        _write_plan(options, campaign, place)
        try:
            outcome = _run(options, campaign, place, say)
        finally:
            judged = write_all_tables(campaign, place, say)
            write_report(place.out, say)
        ran = [job for job in outcome.campaign.jobs if outcome.records.get(job.id, {}).get("ran")]
        taken = (cost.measured(job, outcome.records[job.id]) for job in ran)
        cost.keep_rates(one for one in taken if one is not None)
    return outcome._replace(gates=tuple(failures(judged)))


def _write_plan(options: Options, campaign: Campaign, place: Place) -> None:
    """Write the tables before the first job: whatever comes, the plan is there to be looked at."""
    if options.only is None and options.until == "stacks":
        write_tables(place.out, campaign, records.read_records(place.out, campaign))
    else:
        write_all_tables(campaign, place)


def write_all_tables(
    campaign: Campaign, place: Place, say: Callable[[str], None] | None = None
) -> list[Judged]:
    """Write the tables of the whole plan, also of jobs that were not asked for.

    Gives the products with what gates say of them. say: is told of products no longer planned.
    """
    whole = whole_plan(campaign, place)
    if say:
        for line in unplanned_lines(place.out, whole):
            say(line)
    return write_tables(place.out, whole, records.read_records(place.out, whole))


def _run(options: Options, campaign: Campaign, place: Place, say: Callable[[str], None]) -> Outcome:
    """Run the plan; where a calibration fails, once more with the next best."""
    campaign = chosen(with_next_best(campaign, place), options)
    failed = dict(campaign.basis.failed) if campaign.basis else {}
    table = gates_of(place.out)
    done: dict[str, dict[str, Any]] = {}
    while True:
        now = _Runner(campaign, place, options, say).run()
        done |= now.records
        new: dict[str, str] = {}
        for name, one in now.records.items():
            kind = campaign.job(name).kind
            bad = FAILED if one["status"] == "failed" else blocking(one, kind, table)
            if bad and kind in STAGES["calibrations"] and name not in failed:
                new[name] = bad
        if now.stopped or not new:
            return Outcome(
                campaign,
                {job.id: done[job.id] for job in campaign.jobs if job.id in done},
                now.stopped,
            )
        failed |= new
        for name, why in sorted(new.items()):
            say(f"{name}: {why}: what needs it takes the next best")
        again = plan_again(campaign, read_settings(place.out), place.flags, failed)
        campaign = chosen(again, options)


class _Ran(NamedTuple):
    records: dict[str, dict[str, Any]]
    stopped: str


class _Runner:
    """The tasks of one pass over a plan, and what they share: progress, and a reason to stop."""

    def __init__(
        self, campaign: Campaign, place: Place, options: Options, say: Callable[[str], None]
    ) -> None:
        self.campaign, self.place, self.options, self.say = campaign, place, options, say
        self.files: dict[str, RawFile] = {}
        for file in campaign.files:
            if file.kind not in ("duplicate", "unreadable", "missing"):
                self.files.setdefault(file.key, file)
        self.jobs = {job.id: job for job in campaign.jobs}
        self.lock = threading.Lock()
        known = records.read_records(place.out, campaign)
        self.states = states_of(campaign, known, place)
        at_a_time = options.at_a_time
        self.progress = Progress(campaign, self.states, place.threads, at_a_time, say)
        self.stopped = ""
        self.causes: dict[str, list[str]] = {}

    def run(self) -> _Ran:
        """Run all jobs as one dask graph, in threads of this process, or on a cluster."""
        with self.progress.shown():
            return self._ran(self._on_cluster() if self.options.cluster else self._here())

    def _here(self) -> dict[str, dict[str, Any]]:
        """Run all jobs in threads of this process, each of which waits for a process."""
        import dask.threaded

        jobs = self.jobs
        graph = {
            name: (functools.partial(self._task, job), [need for need in job.needs if need in jobs])
            for name, job in jobs.items()
        }
        names = list(graph)
        begin_all()
        try:
            results = dask.threaded.get(graph, names, num_workers=self.options.at_a_time)
        except BaseException:
            stop_all()
            raise
        return dict(zip(names, results, strict=True))

    def _on_cluster(self) -> dict[str, dict[str, Any]]:
        """Run what is not done yet on the workers of a cluster; none is started for nothing."""
        done: dict[str, dict[str, Any]] = {}
        states = self.states
        for job in self.campaign.jobs:
            if not states[job.id].runs:
                done[job.id] = self._task(job, [])
        names = tuple(job.id for job in self.campaign.jobs if states[job.id].runs)
        if names:
            options = self.options
            wanted = Wanted(names, options.cluster, options.at_a_time, options.threads)
            place, stopped = self.place, lambda: self.stopped
            told = self.progress.began, self._tell
            done |= run_on_cluster(self.campaign, place, wanted, told, stopped)
        return done

    def _ran(self, done: dict[str, dict[str, Any]]) -> _Ran:
        return _Ran({k: v for k, v in done.items() if v["status"] != "not run"}, self.stopped)

    def _task(self, job: Job, _: list[dict[str, Any]]) -> dict[str, Any]:
        """Do a job, after those that it needs; what these have made is read from their records."""
        if self.stopped:
            return {"job": job.id, "status": "not run", "cause": self.stopped, "products": []}
        needed = [self.jobs[name] for name in job.needs if name in self.jobs]
        read = ((one.id, records.read_record(self.place.out, one)) for one in needed)
        before = {name: record for name, record in read if record is not None}
        begun = time.monotonic()
        self.progress.began(job)
        try:
            record = run_job(job, self.files, before, self.place)
        except (GdaskError, OSError) as error:
            record = {
                "status": "failed",
                "cause": str(error),
                "products": [],
                "ran": True,
                "key": "",
                "parts": {},
            }
            records.write_record(self.place.out, job, record)
        record = record | {"job": job.id}
        self._tell(job, record, time.monotonic() - begun)
        return records.outline(record, job.kind)

    def _tell(self, job: Job, record: dict[str, Any], seconds: float) -> None:
        with self.lock:
            ended = self.progress.ended(job, record)
            text = {"made": f"made in {seconds:.0f} s" if record["ran"] else "already made"}.get(
                record["status"], f"{record['status'].upper()}: {record['cause']}"
            )
            out = len(record.get("left_out", ()))
            if record["status"] == "made" and out:
                text += f", {out} left out"
            text += f"; no pictures ({record['pictures']})" if record.get("pictures") else ""
            total = len(self.campaign.jobs)
            self.say(f"[{ended}/{total}] {job.id}: {text}")
            if record["status"] == "failed" and record["ran"]:
                self._count_failure(job, record["cause"].partition(":")[0])

    def _count_failure(self, job: Job, cause: str) -> None:
        """Stop the run where failures have one cause that the next jobs would meet too."""
        same = self.causes.setdefault(cause, [])
        same.append(job.id)
        if cause == "disk full":
            self.stopped = f"the disk is full ({job.id}); nothing new is started: {_room(self)}"
        elif cause not in _OF_ONE_JOB and len(same) >= MAX_LIKE_FAILURES:
            self.stopped = f"{len(same)} jobs failed alike ({cause}): {', '.join(same)}"


def _room(runner: _Runner) -> str:
    import shutil

    free = shutil.disk_usage(runner.place.out).free
    raw = max((job.raw_bytes for job in runner.campaign.jobs), default=0)
    return (
        f"{free / 1e9:.1f} GB are free, the largest job takes up to {5 * raw / 1e9:.1f} GB of "
        "scratch and products"
    )


# One run at a time -----------------------------------------------------------------------------


@contextlib.contextmanager
def owned(out: str | os.PathLike[str]) -> Iterator[None]:
    """Own a folder of results; GdaskError where another run that lives owns it.

    The owner says every few seconds that it lives. A dead one's folder is taken over.
    """
    path = Path(out) / records.HIDDEN / "owner.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = open(path.with_suffix(".lock"), "w")  # noqa: SIM115 (closed in the end)
    is_free = lock_here(lock.fileno(), wait=False)
    other = read_claim(path)
    with contextlib.suppress(OSError):  # it has just been given up
        os.utime(lock.name)  # by the clock of the file server
        age = os.fstat(lock.fileno()).st_mtime - path.stat().st_mtime
        if other and (not is_free or is_alive(other, age)):
            lock.close()
            raise GdaskError(
                f"{out}: a run is going on there, process {other.get('pid')} on "
                f"{other.get('host')}, since {other.get('since')}; wait for it, or stop it"
            )
    if not is_free:
        lock.close()
        raise GdaskError(f"{out}: a run is beginning there; wait for it, or stop it")
    mine = {
        "host": model.host(),
        "pid": os.getpid(),
        "owner": model.owner(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    write_whole(path, json.dumps(mine))
    try:
        with beating(path):
            yield
    finally:
        with contextlib.suppress(OSError):
            if read_claim(path).get("owner") == mine["owner"]:
                path.unlink()
        lock.close()


def predicted(
    campaign: Campaign, states: dict[str, State], place: Place, at_a_time: int
) -> tuple[dict[str, cost.Cost], float | None]:
    """Predict the cost of each job that would run, and the seconds of all; None: unknown."""
    rates = cost.read_rates()
    costs = {
        job.id: cost.predict(job, rates, place.threads)
        for job in campaign.jobs
        if states[job.id].runs
    }
    known = {name: one.seconds for name, one in costs.items() if one.seconds is not None}
    if len(known) < len(costs):
        return costs, None
    return costs, cost.wall_seconds(campaign, known, at_a_time)
