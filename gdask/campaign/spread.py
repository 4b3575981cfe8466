"""The jobs of a campaign on the workers of a cluster: a worker is a node, or a share of it.

A worker is given the name of a job and the folder in which all that it needs is written: so the
scheduler and what it holds do not grow with frames. A job is handed over when what it needs is made
and a worker is free for it: handed over beforehand, it could wait behind another one while a worker
is idle, and a worker's death would count against all jobs that wait for it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, NamedTuple

from gdask.campaign import elsewhere, lend, records
from gdask.campaign.job import Campaign, Job
from gdask.campaign.jobs import MAX_TRIES, Place
from gdask.campaign.processes import begin_all, stop_all
from gdask.model import GdaskError

#: Seconds between two looks at the cluster, and without any worker after which a run ends.
LOOK, WAIT = 1.0, 600.0
_GONE = (
    "the scheduler is gone, or the connection to it; jobs that workers have begun may still be "
    "done; the same line again goes on, once there is a scheduler"
)
#: What a worker gives back of a record; the rest is on disk.
_SUMMARY = ("status", "cause", "ran", "pictures")


class Share(NamedTuple):
    """What one of so many jobs at a time gets of a worker. memory: bytes, None: without limit.

    is_whole: whether it is all of the worker."""

    slots: int
    threads: int
    memory: int | None
    is_whole: bool


class _Running(NamedTuple):
    """A job on its worker. joined: the tasks of others that work for it, with their workers."""

    job: Job
    worker: str
    begun: float
    is_joinable: bool
    joined: dict[Any, str]


class Wanted(NamedTuple):
    """What is run where. names: jobs of the campaign. spec: as for `gdask.cluster.connect`.

    at_a_time: jobs of one worker. threads: of a job; None: those of its worker, or its share of
    them. do: what a worker runs.
    """

    names: tuple[str, ...]
    spec: str
    at_a_time: int = 1
    threads: int | None = None
    do: Callable[..., dict[str, Any]] = elsewhere.do_job


def run_on_cluster(
    campaign: Campaign,
    place: Place,
    wanted: Wanted,
    told: tuple[Callable[[Job], None], Callable[[Job, dict[str, Any], float], None]],
    is_stopped: Callable[[], str],
) -> dict[str, dict[str, Any]]:
    """Do jobs of a plan on the workers of a cluster, each after those that it needs.

    told: called with a job that begins, and with job, record and seconds at its end. is_stopped:
    why nothing new is begun, or ''. Gives the records by job. Raises GdaskError where there is no
    cluster, or workers do not see the files.
    """
    from gdask.cluster import connect
    from gdask.engine.memory import parse_bytes

    memory = parse_bytes(place.memory)
    with (
        _gone_in_words(),
        connect(wanted.spec, memory=int(memory) if memory else None) as client,
    ):
        _check_files(client, place, campaign)
        client.run(begin_all, on_error="ignore")  # a worker may be dying at this moment
        folder = elsewhere.new_folder(place.out)
        elsewhere.hand_out(folder, campaign, wanted.names, place)
        spread = _Spread(client, campaign, place, folder, wanted)
        try:
            done = spread.run(told, is_stopped)
        except CancelledError:
            raise
        except BaseException:
            spread.stop()
            raise
        shutil.rmtree(folder, ignore_errors=True)
        return done


@contextlib.contextmanager
def _gone_in_words() -> Iterator[None]:
    """Inside, what distributed raises for a lost connection becomes a GdaskError."""
    from distributed.comm import CommClosedError

    try:
        yield
    except (CancelledError, CommClosedError):
        raise GdaskError(_GONE) from None


class _Spread:
    """Jobs that wait, and those that workers do."""

    def __init__(
        self, client: Any, campaign: Campaign, place: Place, folder: Path, wanted: Wanted
    ) -> None:
        from gdask.engine.memory import parse_bytes

        self.client, self.place, self.folder, self.wanted = client, place, folder, wanted
        self.memory = parse_bytes(place.memory)
        jobs = [job for job in campaign.jobs if job.id in set(wanted.names)]
        self.waiting = {job.id: job for job in jobs}
        self.needs = {job.id: set(job.needs) & self.waiting.keys() for job in jobs}
        self.urgency = _urgency(jobs)
        self.running: dict[Any, _Running] = {}
        self.lost: dict[str, list[str]] = {}
        self.done: dict[str, dict[str, Any]] = {}
        self.token = secrets.token_hex(4)
        self.options = _joining_options(client, wanted.spec)
        self.left: set[tuple[str, str]] = set()  # workers that have left a job that goes on
        self.parting: dict[Any, str] = {}  # what works for jobs that have ended, by task

    def run(
        self,
        told: tuple[Callable[[Job], None], Callable[[Job, dict[str, Any], float], None]],
        is_stopped: Callable[[], str],
    ) -> dict[str, dict[str, Any]]:
        """Hand jobs to free workers until all have ended."""
        began, ended = told
        alone_since = time.monotonic()
        while self.waiting or self.running:
            workers = self._workers()
            if workers:
                alone_since = time.monotonic()
            elif time.monotonic() - alone_since > WAIT:
                raise GdaskError(
                    f"no worker for {WAIT:.0f} s: are the hosts up? The same line again goes on"
                )
            why = is_stopped()
            if why:
                for job in self.waiting.values():
                    self.done[job.id] = {"status": "not run", "cause": why, "products": []}
                self.waiting.clear()
            for job in self._hand_over(workers):
                began(job)
            if not why:
                self._lend(workers)
            for future in self._ended(workers):
                one = self.running.pop(future)
                self.parting |= one.joined
                self._over(one.job.id).touch()
                record = self._record(one, future)
                if record is not None:
                    ended(one.job, record, time.monotonic() - one.begun)
                    self.done[one.job.id] = records.outline(record, one.job.kind)
        return {name: record | {"job": name} for name, record in self.done.items()}

    def _workers(self) -> dict[str, Share]:
        """Give the workers that there are now, and what a job gets of each."""
        try:
            found = self.client.scheduler_info(n_workers=-1)["workers"]
        except Exception as error:  # noqa: BLE001 - whatever a lost connection raises
            raise GdaskError(f"the scheduler does not answer ({error})") from None
        if self.client.status != "running":
            raise GdaskError(_GONE)
        shares = {}
        for address, worker in found.items():
            slots = max(1, min(self.wanted.at_a_time, worker["nthreads"]))
            threads = self.wanted.threads or max(1, worker["nthreads"] // slots)
            limits = [worker["memory_limit"] / slots] if worker["memory_limit"] else []
            limits += [self.memory] if self.memory else []
            shares[address] = Share(
                slots,
                threads,
                int(min(limits)) if limits else None,
                slots == 1 and threads == worker["nthreads"],
            )
        return shares

    def _busy(self, workers: Mapping[str, Share]) -> dict[str, int]:
        """Give how many places of each worker are taken."""
        busy = dict.fromkeys(workers, 0)
        for one in self.running.values():
            for address in (one.worker, *one.joined.values()):
                busy[address] = busy.get(address, 0) + 1
        for address in self.parting.values():
            busy[address] = busy.get(address, 0) + 1
        return busy

    def _may_be_joined(self, job: Job, share: Share) -> bool:
        """Tell whether others can join a job, and may: not one over which a worker has died."""
        return self.options is not None and share.is_whole and job.id not in self.lost

    def _lend(self, workers: Mapping[str, Share]) -> None:
        """Let workers that have nothing to do join large jobs."""
        open_jobs = {one.job.id: one for one in self.running.values() if one.is_joinable}
        busy = self._busy(workers)
        idle = [one for one, share in workers.items() if not busy[one] and share.is_whole]
        if not open_jobs or not idle:
            return
        threads = max(workers[one].threads for one in idle)
        counted = [(one.job, 1 + len(one.joined)) for one in open_jobs.values()]
        for name in lend.shared_out(counted, len(idle), threads):
            address = next((one for one in idle if (one, name) not in self.left), None)
            if address is None:
                continue
            idle.remove(address)
            future = self.client.submit(
                lend.join,
                self._joining(name, workers[address]),
                key=f"join-{self.token}-{name}-{secrets.token_hex(4)}",
                workers=[address],
                allow_other_workers=False,
                pure=False,
                retries=0,
            )
            open_jobs[name].joined[future] = address

    def _over(self, name: str) -> Path:
        return self.folder / f"{name}.over"

    def _joining(self, name: str, share: Share) -> lend.Joining:
        out, over = self.place.out, str(self._over(name))
        return lend.Joining(out, name, share.threads, share.memory, self.options or {}, over)

    def _parted(self, workers: Mapping[str, Share]) -> None:
        """Take note of workers that work no more for a job."""
        for future, address in list(self.parting.items()):
            if future.status != "pending" or address not in workers:
                future.cancel()
                del self.parting[future]
        for one in self.running.values():
            for future, address in list(one.joined.items()):
                if future.status != "pending" or address not in workers:
                    future.cancel()
                    del one.joined[future]
                    self.left.add((address, one.job.id))

    def _hand_over(self, workers: Mapping[str, Share]) -> list[Job]:
        """Give each free place of a worker the most urgent job that can be done; give these."""
        handed: list[Job] = []
        busy = self._busy(workers)
        ready = [job for name, job in self.waiting.items() if self.needs[name] <= self.done.keys()]
        ready.sort(key=lambda job: -self.urgency[job.id])
        left = sum(job.raw_bytes for job in self.waiting.values())
        for job in ready:
            free = [address for address in workers if busy[address] < workers[address].slots]
            if not free:
                break
            address = min(free, key=lambda one: (busy[one], one))
            busy[address] += 1
            share = workers[address]
            tried = len(self.lost.get(job.id, ()))
            del self.waiting[job.id]
            joinable = self._may_be_joined(job, share) and lend.is_open(
                job, len(workers), share.threads, len(ready), left
            )
            left -= job.raw_bytes
            future = self.client.submit(
                on_worker,
                self.wanted.do,
                str(self.folder),
                job.id,
                share.threads,
                share.memory,
                self._joining(job.id, share) if joinable else None,
                key=f"{job.kind}-{self.token}-{job.id}-{tried}",
                workers=[address],
                allow_other_workers=False,
                pure=False,
                retries=0,
            )
            self.running[future] = _Running(job, address, time.monotonic(), joinable, {})
            handed.append(job)
        return handed

    def _ended(self, workers: Mapping[str, Share]) -> list[Any]:
        """Wait a little; give the tasks that have ended, or whose worker is gone."""
        from distributed import wait

        if self.running:
            with contextlib.suppress(TimeoutError):
                wait(list(self.running), timeout=LOOK, return_when="FIRST_COMPLETED")
        else:
            time.sleep(LOOK)
        # Also without a running job: those who still leave one that was lost are free for it then.
        self._parted(workers)
        return [
            future
            for future, one in self.running.items()
            if future.status != "pending" or one.worker not in workers
        ]

    def _record(self, one: _Running, future: Any) -> dict[str, Any] | None:
        """Give the record of a job that has ended; None where it is to be done once more."""
        if future.status == "finished":
            summary = dict(future.result())
            record = records.read_record(self.place.out, one.job) or {"products": []}
            return record | summary
        if future.status == "error":
            # An error of a job is in its record; this is one of handing it over.
            error = future.exception()
            return self._failed(one.job, f"worker {one.worker}: {error}")
        future.cancel()
        lost = self.lost.setdefault(one.job.id, [])
        lost.append(one.worker)
        if len(lost) < MAX_TRIES:
            self.waiting[one.job.id] = one.job
            return None
        return self._failed(one.job, f"lost worker: {len(lost)} workers died over it")

    def _failed(self, job: Job, cause: str) -> dict[str, Any]:
        last = records.read_record(self.place.out, job) or {}
        record = {"products": [], "parts": {}, **last, "status": "failed", "cause": cause}
        records.write_record(self.place.out, job, record | {"key": "", "ran": True})
        return record | {"key": "", "ran": True}

    def stop(self) -> None:
        """End what workers do, in order: it goes on from there the next time."""
        with contextlib.suppress(Exception):
            self.client.run(stop_all, on_error="ignore")
            self.client.cancel(list(self.running))


def _urgency(jobs: Sequence[Job]) -> dict[str, float]:
    """Give how much hangs on a job: bytes of raw data on the longest way from it to an end."""
    found: dict[str, float] = {}
    followers: dict[str, list[str]] = {}
    for job in jobs:
        for need in job.needs:
            followers.setdefault(need, []).append(job.id)
    for job in reversed(jobs):
        behind = max(
            (found[name] for name in followers.get(job.id, ()) if name in found), default=0
        )
        found[job.id] = behind + max(job.raw_bytes, 1)
    return found


def on_worker(
    do: Callable[..., dict[str, Any]],
    folder: str,
    name: str,
    threads: int,
    memory: int | None,
    joining: lend.Joining | None = None,
) -> dict[str, Any]:
    """Do a job on a worker, and give a few words of its record. joining: others may join it."""
    size = str(memory) if memory else None
    try:
        if joining is None:
            record = do(folder, name, threads, size)
        else:
            with lend.joinable(joining) as profile:
                record = do(folder, name, threads, size, profile=profile)
    except KeyboardInterrupt:  # the run was stopped; dask would end the worker
        return {"status": "not run", "cause": "stopped", "ran": False}
    return {key: record[key] for key in _SUMMARY if key in record}


def _joining_options(client: Any, spec: str) -> dict[str, Any] | None:
    """Give the options of a profile by which jobs may be joined; None where they cannot be.

    Certificates of dask's own configuration are not known here, and workers inside a process can
    be reached by no other.
    """
    from gdask.cluster import profile_of

    profile = profile_of(spec)
    options = {name: profile[name] for name in ("patience",) if name in profile}
    if tls := profile.get("tls"):
        return options | {"tls": {name: os.path.abspath(path) for name, path in tls.items()}}
    return options if client.scheduler.address.startswith("tcp://") else None


def _check_files(client: Any, place: Place, campaign: Campaign) -> None:
    """Raise GdaskError where a worker does not see the folder of results or a raw file."""
    paths = [place.out, *dict.fromkeys(os.path.dirname(one.path) for one in campaign.files)][:100]
    for worker, missing in client.run(_not_seen, paths, on_error="ignore").items():
        if missing:
            raise GdaskError(
                f"worker {worker} does not see {missing[0]}; all hosts must see the raw files and "
                "the folder of results under the same names"
            )


def _not_seen(paths: list[str]) -> list[str]:
    return [path for path in paths if not os.path.exists(path)]
