"""One compute of lazy arrays, on the threads of this process or on the workers of a cluster.

In this order: `compute`, the only entrance; computing on threads; computing on workers, with what
happens when they die; the progress display that both share.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from gdask import logutils
from gdask.engine import account, memory
from gdask.io.dask_internals import flat_list, optimised_tasks, scheduler_of_user
from gdask.io.process_memory import return_freed_memory
from gdask.model import GdaskError, settings, usual_errors

log = logging.getLogger("gdask")

#: How many computes have been run in this process; tests read it.
COMPUTES = {"count": 0}
#: Seconds between two readings of the memory of this process.
MEMORY_READING_INTERVAL = 0.5
#: Share of the memory allowed from which on freed memory is returned to the system.
RETURN_SHARE = 0.8
#: Seconds between two progress lines in the log.
LOG_INTERVAL = 30.0


@usual_errors()
def compute(arrays: Sequence[Any], text: str) -> tuple[Any, ...]:
    """Compute lazy arrays together, once, and return their values in order.

    `text` names the compute in the progress display and in errors. Raises GdaskError before
    anything runs where the projected peak does not fit the budget (`gdask.engine.memory`).
    """
    import dask

    COMPUTES["count"] += 1
    scheduler = scheduler_of_user()
    client = getattr(scheduler, "__self__", None)
    if client is None and scheduler not in (None, dask.threaded.get):
        return dask.compute(*arrays)  # a scheduler of the user's own
    tasks, keys = optimised_tasks(arrays), [array.__dask_keys__() for array in arrays]
    with memory.garbage_collected():
        if client is None:
            blocks = _compute_in_threads(tasks, keys, text)
        else:
            blocks = _compute_on_workers(client, tasks, keys, text)
    finish = [array.__dask_postcompute__() for array in arrays]
    return tuple(join(parts, *more) for (join, more), parts in zip(finish, blocks, strict=True))


def check_memory(arrays: Sequence[Any], text: str) -> None:
    """Raise MemoryRefused where `compute` would refuse these lazy arrays; compute nothing."""
    import dask

    scheduler = scheduler_of_user()
    client = getattr(scheduler, "__self__", None)
    if client is None and scheduler not in (None, dask.threaded.get):
        return  # a scheduler of the user's own, whose memory is not known
    tasks = optimised_tasks(arrays)
    if client is None:
        memory.fit(tasks, memory.budget(), _threads_here(), text, memory.process_bytes())
    else:
        memory.fit(tasks, memory.budget(), settings().threads, text, fixed=True)


def _threads_here() -> int:
    """Give the threads of a compute in this process."""
    import dask

    return int(dask.config.get("num_workers", None) or os.cpu_count() or 1)


def _log_projection(text: str, projection: memory.Projection, threads: int, fitting: int) -> None:
    log.debug(
        "%s: %d tasks, at most %.0f MB in one, %.0f MB with %d at a time",
        text,
        projection.tasks,
        projection.largest / 1e6,
        projection.peak / 1e6,
        fitting,
    )
    if fitting < threads:
        log.info(
            "%s: %d tasks at a time and not %d, so that they fit the memory allowed",
            text,
            fitting,
            threads,
        )


# On threads -----------------------------------------------------------------------------------


def _compute_in_threads(tasks: dict[Any, Any], keys: list, text: str) -> Sequence[Any]:
    """Compute on as many threads as the machine has or were asked for, fewer for want of memory."""
    import dask

    threads = _threads_here()
    fitting, projection = memory.fit(tasks, memory.budget(), threads, text, memory.process_bytes())
    _log_projection(text, projection, threads, fitting)
    with progress_display(text) as display, _tasks_counted(display), _memory_shown(display):
        return dask.threaded.get(tasks, keys, num_workers=fitting)


@contextmanager
def _tasks_counted(display: ProgressDisplay) -> Iterator[None]:
    """Count on the display the tasks that end on threads inside the `with` block."""
    from dask.callbacks import Callback

    class TaskCounter(Callback):  # type: ignore[misc]
        def _start_state(self, dsk: object, state: dict) -> None:
            self.total = sum(len(state[key]) for key in ("ready", "waiting"))

        def _posttask(
            self, key: object, result: object, dsk: object, state: dict, worker: object
        ) -> None:
            display.count(len(state["finished"]), self.total)

    with TaskCounter():
        yield


@contextmanager
def _memory_shown(display: ProgressDisplay) -> Iterator[None]:
    """Show bytes and memory of this process inside the `with` block, and log them at a good end."""
    from gdask.cluster import Usage, counters

    before, peak_before = counters(), account.peak_memory()
    peak, allowed = account.resident_memory(), int(memory.budget())

    def usage() -> Usage:
        nonlocal peak
        read, written, user, system = (
            now - then for now, then in zip(counters(), before, strict=True)
        )
        peak = max(peak, account.resident_memory())
        held = account.peak_since(peak_before, peak)
        return Usage(int(read), int(written), held, allowed, 0, user, system)

    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(MEMORY_READING_INTERVAL):
            if account.resident_memory() > RETURN_SHARE * allowed:
                return_freed_memory()
            display.show(usage())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
        display.end(usage())
    finally:
        stopped.set()
        thread.join()


# On workers -----------------------------------------------------------------------------------


def _compute_on_workers(client: Any, tasks: dict[Any, Any], keys: list, text: str) -> Sequence[Any]:
    """Compute on the workers of a client.

    Where workers die over a task, start again with half as many tasks at a time in each, until
    there is one.
    """
    from distributed import KilledWorker

    from gdask.cluster.watch import TaskLimit, halve_task_limit

    threads = at_once = settings().threads
    projection = memory.fit(tasks, memory.budget(), threads, text, fixed=True)[1]
    _log_projection(text, projection, threads, threads)
    begun = time.time()
    try:
        while True:
            try:
                with _lost_scheduler_named(text):
                    return _attempt_on_workers(client, tasks, keys, text)
            except KilledWorker as error:
                at_once = halve_task_limit(client, at_once)
                if not at_once:
                    message = _refusal_after_deaths(client, text, error, begun, projection)
                    raise GdaskError(message) from None
                log.warning(
                    "%s: %s; once more with %d task%s at a time in each",
                    text,
                    _describe_deaths(client, error, begun),
                    at_once,
                    "s" * (at_once > 1),
                )
    finally:
        if at_once < threads:
            with suppress(Exception):  # the scheduler may be gone, and the plugin with it
                client.unregister_worker_plugin(TaskLimit.name)


def _attempt_on_workers(client: Any, tasks: dict[Any, Any], keys: list, text: str) -> Sequence[Any]:
    """Compute once on the workers; GdaskError where they stop ending tasks or do not come."""
    from distributed import KilledWorker, as_completed

    from gdask.cluster.watch import WorkerWatch

    packed = client.get(tasks, keys, sync=False)
    futures = flat_list(packed)
    with progress_display(text, settings().dashboard) as display:
        patience, wait = settings().patience, settings().wait
        watch = WorkerWatch(client, display.show, lambda: client.cancel(futures), patience, wait)
        try:
            with watch:
                for number, done in enumerate(as_completed(futures), 1):
                    # Asking each for its result would fetch it, one by one: 0.4 ms a task.
                    if done.status != "finished":
                        done.result()
                    display.count(number, len(futures))
                values = client.gather(packed)
        except BaseException as error:
            for future in futures:  # what failed must not be found failed by a second attempt
                future.release()
            if isinstance(error, KilledWorker) and watch.replaced:
                watch.failure = (
                    f"{error.allowed_failures + 1} times a worker {watch.stalled} "
                    f"({str(error.task)[:60]}); {watch.advice}"
                )
            if watch.failure:
                raise GdaskError(
                    f"{text}: {watch.failure}; the same command again goes on from the last "
                    "complete phase"
                ) from None
            raise
        display.end(watch.usage)
        return values


@contextmanager
def _lost_scheduler_named(text: str) -> Iterator[None]:
    """Turn the errors of a scheduler that has gone into a GdaskError that says what to do."""
    from concurrent.futures import CancelledError

    from distributed.comm import CommClosedError

    try:
        yield
    except (CancelledError, CommClosedError, asyncio.CancelledError):
        raise GdaskError(
            f"{text}: the scheduler has gone; start it again: the same command goes on from the "
            "last complete phase"
        ) from None


def _refusal_after_deaths(
    client: Any, text: str, error: Any, begun: float, projection: memory.Projection
) -> str:
    """Say that workers died even with one task at a time, and what may help."""
    return (
        f"{text}: {_describe_deaths(client, error, begun)}, also with one task at a time in each; "
        f"{projection.largest / 1e6:.0f} MB were projected for the largest task: if it was for "
        "want of memory, give more with --memory, or start fewer workers on a host; else see the "
        "workers' logs"
    )


def _describe_deaths(client: Any, error: Any, begun: float) -> str:
    """Say what is known of the workers that have died over one task since the time `begun`."""
    from gdask.cluster.watch import memory_deaths

    bytes_held, task_name = memory_deaths(client, begun), str(error.task)[:60]
    worker = error.last_worker
    if not bytes_held:
        return (
            f"{error.allowed_failures + 1} workers died over one task ({task_name}), the last was "
            f"{worker.address}"
        )
    limit = f" of {worker.memory_limit / 1e6:.0f} MB" if worker.memory_limit else ""
    return (
        f"{len(bytes_held)} workers ran out of memory ({max(bytes_held) / 1e6:.0f} MB{limit} held),"
        f" {error.allowed_failures + 1} of them over one task ({task_name})"
    )


# Progress display -----------------------------------------------------------------------------


@contextmanager
def progress_display(text: str, dashboard: str = "") -> Iterator[ProgressDisplay]:
    """Give the display of one compute: a bar on a terminal, otherwise lines in the log."""
    with logutils.bar(text) as bar:
        yield ProgressDisplay(text, bar, dashboard)


class ProgressDisplay:
    """The progress of one compute: tasks ended, bytes read and written, memory against its limit.

    `bar` sets what a bar shows (`logutils.bar`), or is None for lines in the log; `dashboard` is
    the address of the cluster's page, shown beside the bar.
    """

    def __init__(
        self, text: str, bar: Callable[..., None] | None = None, dashboard: str = ""
    ) -> None:
        self.text, self.dashboard = text, dashboard
        self.done = self.total = 0
        self.amounts = ""
        self._bar = bar
        self._begun = self._logged = time.monotonic()
        if bar:
            bar(about=dashboard)

    def count(self, done: int, total: int) -> None:
        """Set the number of tasks that have ended, and of all."""
        self.done, self.total = done, total
        if self._bar:
            self._bar(completed=done, total=total)

    def show(self, usage: Any) -> None:
        """Show bytes and memory (`gdask.cluster.Usage`) on the bar, or in the log if it is time."""
        self.amounts = account.describe_usage(usage)
        if self._bar:
            self._bar(about=f"{self._left()}{self.amounts} {self.dashboard}".rstrip())
        elif time.monotonic() - self._logged >= LOG_INTERVAL:
            self._logged = time.monotonic()
            share = 100 * self.done / self.total if self.total else 0.0
            tasks = f"{share:.0f} % of {self.total} tasks, " if self.total else ""
            log.info("%s: %s%s%s", self.text, tasks, self._left(), self.amounts)

    def _left(self) -> str:
        """Say the time left if the remaining tasks go as fast as those that have ended."""
        if not self.done:
            return ""
        left = (time.monotonic() - self._begun) * (self.total - self.done) / self.done
        return f"{account.describe_time(left)} left, "

    def end(self, usage: Any) -> None:
        """Log the line of a compute that is done, and record it in the account of the run."""
        seconds = time.monotonic() - self._begun
        account.record_phase(self.text, seconds, usage)
        taken = account.describe_phase(usage, account.raw_bytes())
        log.info("%s, %.1f s, %s", self.text, seconds, taken)
