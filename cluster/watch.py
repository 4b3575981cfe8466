"""Watch workers while they compute.

Their bytes and memory are shown, a worker that stands still is replaced, and workers that run
out of memory are given fewer tasks at a time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Self

from distributed import Client, WorkerPlugin
from gdask.cluster.profiles import Counted, Usage, counters

log = logging.getLogger("gdask")

#: Seconds between two looks at the scheduler.
LOOK_INTERVAL_S = 2.0
#: Seconds after which a worker is replaced that runs nothing and waits for data of others, if none
#: comes. (A host was cut off from the network; the other's worker waited for it for 10 minutes.)
DATA_PATIENCE_S = 120.0


class WorkerState(NamedTuple):
    """One worker as its scheduler knows it.

    busy: a number that changes with its tasks and with the data that it is sent (0: no task).
    memory, limit: bytes. counted: values of `Counted`. nanny: address of the process that looks
    after it, None if there is none. waits: whether none of its tasks runs, since data are missing.
    """

    busy: int
    memory: int
    limit: int
    counted: tuple[float, ...]
    nanny: str | None
    waits: bool = False


class Counters(WorkerPlugin):
    """Adds what a worker's process has counted to what it reports with each heartbeat."""

    name = "gdask-counters"

    def setup(self, worker: Any) -> None:
        worker.metrics["gdask"] = lambda worker: tuple(counters())


def worker_states(dask_scheduler: Any) -> dict[str, tuple]:
    """Values of `WorkerState` of each worker by its address; runs on the scheduler."""
    found = {}
    for address, worker in dask_scheduler.workers.items():
        tasks = tuple(sorted(str(task.key) for task in worker.processing))
        got = worker.metrics.get("transfer", {}).get("incoming_count_total", 0)
        counts = worker.metrics.get("task_counts", {})
        found[address] = (
            hash((tasks, got)) if tasks else 0,
            worker.metrics.get("memory", 0),
            worker.memory_limit or 0,
            tuple(worker.metrics.get("gdask") or ()),
            worker.nanny,
            worker.status.name == "running"
            and bool(counts.get("flight", 0) + counts.get("fetch", 0))
            and not counts.get("executing", 0) + counts.get("ready", 0),
        )
    return found


class WorkerWatch:
    """A thread that looks at the scheduler during one compute.

    `failure` is set, and `cancel` called, where the compute must end. `stalled` says what the last
    worker that was replaced did, and for how long; `advice` what to do where that comes again.

    Parameters
    ----------
    client, show
        Whose workers; called with the Usage after each look.
    cancel
        Ends the compute: called where no worker has been there for `wait` seconds.
    patience
        Seconds after which a worker that stands still is replaced.
    """

    def __init__(
        self,
        client: Client,
        show: Callable[[Usage], None],
        cancel: Callable[[], None],
        patience: float,
        wait: float,
    ) -> None:
        self.client, self.show, self.cancel, self.patience, self.wait = (
            client,
            show,
            cancel,
            patience,
            wait,
        )
        self.failure, self.replaced, self.usage = "", 0, Usage()
        self.stalled = self.advice = ""
        self._since: dict[str, tuple[int, float]] = {}
        self._first: dict[str, Counted] = {}
        self._last: dict[str, Counted] = {}
        self._seen_at = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._first = self.client.run(counters, on_error="ignore")
        self._account(self._look(), {})
        self._thread.start()
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._done.set()
        self._thread.join(10)
        if kind is not None:
            return
        with suppress(OSError):  # the scheduler has gone: so be it, if the results are here
            self._account(self._look(), self.client.run(counters, on_error="ignore"))

    def _look(self) -> dict[str, WorkerState]:
        return {
            address: WorkerState(*values)
            for address, values in self.client.run_on_scheduler(worker_states).items()
        }

    def _watch(self) -> None:
        while not self._done.wait(LOOK_INTERVAL_S):
            try:
                self._look_once(self._look())
            except Exception as error:  # noqa: BLE001 - gone, which the compute itself finds out
                log.debug("no look at the scheduler: %s", error)

    def _look_once(self, seen: Mapping[str, WorkerState]) -> None:
        now = time.monotonic()
        counted = {name: Counted(*one.counted) for name, one in seen.items() if one.counted}
        self._account(seen, counted)
        self.show(self.usage)
        self._seen_at = now if seen else self._seen_at
        if now - self._seen_at > self.wait:
            self.failure = f"no worker has been there for {self.wait:.0f} s"
            self.cancel()
        for address, one in seen.items():
            patience = min(self.patience, DATA_PATIENCE_S) if one.waits else self.patience
            if self._has_stalled(address, one.busy, now, patience):
                self._replace_worker(address, one, patience)

    def _account(self, seen: Mapping[str, WorkerState], counted: Mapping[str, Counted]) -> None:
        """Update `usage`: what was counted since the beginning, the most memory of one worker.

        Workers that have left count, too.
        """
        import psutil

        self._last |= counted
        read, written, user, system = (
            sum(
                max(now[k] - self._first.get(one, Counted())[k], 0)
                for one, now in self._last.items()
            )
            for k in range(len(Counted._fields))
        )
        fullest = max(
            seen.values(),
            key=lambda one: one.memory / max(one.limit, 1),
            default=WorkerState(0, 0, self.usage.limit, (), None),
        )
        together = psutil.Process().memory_info().rss + sum(one.memory for one in seen.values())
        self.usage = Usage(
            int(read),
            int(written),
            max(fullest.memory, self.usage.memory),
            fullest.limit,
            len(seen),
            user,
            system,
            max(together, self.usage.together),
        )

    def _has_stalled(self, address: str, busy: int, now: float, patience: float) -> bool:
        if not busy or self._since.get(address, (0, 0.0))[0] != busy:
            self._since[address] = (busy, now)
        return now - self._since[address][1] > patience

    def _replace_worker(self, address: str, state: WorkerState, patience: float) -> None:
        what, self.advice = (
            ("waited for data of others", "do all hosts reach each other?")
            if state.waits
            else ("ended no task", "more with patience: in the profile")
        )
        self.stalled = f"{what} for {patience:.0f} s"
        log.warning(
            "worker %s has %s: %s",
            address,
            self.stalled,
            "it is started anew, its tasks are given to the others"
            if state.nanny
            else "its tasks are given to the others",
        )
        self.replaced += 1
        self._since.pop(address)
        if state.nanny:
            self.client.restart_workers([address], timeout=60, raise_for_error=False)
        else:
            self.client.run_on_scheduler(_remove_worker, address)


async def _remove_worker(address: str, dask_scheduler: Any) -> None:
    stimulus = f"gdask-still-{address}"
    await dask_scheduler.remove_worker(address, stimulus_id=stimulus, safe=False)


# Fewer tasks at a time


class TaskLimit(WorkerPlugin):
    """Limits the tasks that a worker runs at a time, until the plugin is taken off.

    Workers that come later are limited, too.
    """

    name = "gdask-fewer"

    def __init__(self, most: int) -> None:
        self.most = most

    def setup(self, worker: Any) -> None:
        self.before = worker.state.nthreads
        worker.state.nthreads = min(self.before, self.most)

    def teardown(self, worker: Any) -> None:
        worker.state.nthreads = self.before


def halve_task_limit(client: Client, now: int) -> int:
    """Halve the number of tasks that a worker runs at a time, which is `now`.

    Returns the new number; after 1 it is 0, and nothing is done.
    """
    if now > 1:
        client.register_plugin(TaskLimit(now // 2))
    return now // 2


def memory_deaths(client: Client, since: float) -> list[int]:
    """Bytes that workers held when their nannies ended them for want of memory.

    since: only those from this moment on (seconds of the epoch).
    """
    return [
        int(event["rss"])
        for stamp, event in client.get_events("worker-restart-memory")
        if stamp >= since
    ]
