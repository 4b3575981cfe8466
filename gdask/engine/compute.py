"""One compute with a display of how far it is: on the local threads, or on the cluster that is connected."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from gdask.engine import memory
from gdask.io.dask_internals import flat_list, optimised_tasks, scheduler_of_user
from gdask.model import GdaskError, settings

log = logging.getLogger("gdask")

#: Counted by tests: how many computes have been run in this process.
COMPUTES = {"count": 0}
#: M_TRIM_THRESHOLD of malloc.h.
TRIM_THRESHOLD = -1


def compute(arrays: Sequence[object], text: str) -> tuple[object, ...]:
    """Compute lazy arrays together, once, with a display of how far it is. Gives their values in order.

    Raises GdaskError before anything runs where the projected peak does not fit the budget (`gdask.engine.memory`).
    """
    import dask

    COMPUTES["count"] += 1
    given = scheduler_of_user()
    client = getattr(given, "__self__", None)
    if client is None and given not in (None, dask.threaded.get):
        return dask.compute(*arrays)  # a scheduler of the user's own
    tasks, keys = optimised_tasks(arrays), [array.__dask_keys__() for array in arrays]  # type: ignore[attr-defined]
    blocks = _here(tasks, keys, text) if client is None else _on_cluster(client, tasks, keys, text)
    finish = [array.__dask_postcompute__() for array in arrays]  # type: ignore[attr-defined]
    return tuple(put(parts, *more) for (put, more), parts in zip(finish, blocks, strict=True))


# Threads ------------------------------------------------------------------------------------------------------------


def _here(tasks: dict[Any, Any], keys: list, text: str) -> Sequence[Any]:
    """On threads of this process: as many as the machine has or were asked for, fewer where memory is short."""
    import dask
    import psutil

    threads = dask.config.get("num_workers", None) or os.cpu_count() or 1
    base = max(memory.BASE, psutil.Process().memory_info().rss)
    fitting, projection = memory.fit(tasks, memory.budget(), threads, text, base)
    _report(text, projection, threads, fitting)
    with meter(text) as display, _counting(display), _metered(display):
        return dask.threaded.get(tasks, keys, num_workers=fitting)


@contextmanager
def _counting(display: Meter) -> Iterator[None]:
    """Inside, tasks that end on threads move the display."""
    from dask.callbacks import Callback

    class Counting(Callback):  # type: ignore[misc]
        def _start_state(self, dsk: object, state: dict) -> None:
            self.total = sum(len(state[key]) for key in ("ready", "waiting"))

        def _posttask(
            self, key: object, result: object, dsk: object, state: dict, worker: object
        ) -> None:
            display.count(len(state["finished"]), self.total)

    with Counting():
        yield


@contextmanager
def _metered(display: Meter) -> Iterator[None]:
    """Inside, bytes and memory of this process are shown twice a second; at a good end, the phase's line."""
    import psutil

    from gdask.cluster import Usage, counters

    process, (read, written), done = psutil.Process(), counters(), threading.Event()
    peak, allowed = process.memory_info().rss, int(memory.budget())

    def usage() -> Usage:
        nonlocal peak
        now, peak = counters(), max(peak, process.memory_info().rss)
        return Usage(now[0] - read, now[1] - written, peak, allowed)

    def watch() -> None:
        while not done.wait(0.5):
            give_back()  # threads that have made many small arrays keep their memory: 130 to 200 MB of 256 frames
            display.show(usage())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
        display.end(usage())
    finally:
        done.set()
        thread.join()


def give_back() -> None:
    """Return freed memory to the system, now and as it is freed. The C library of Linux keeps blocks of up to 32 MB for
    later (430 of 970 MB after 64 frames); distributed sets the same threshold for its workers."""
    import ctypes

    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.mallopt(TRIM_THRESHOLD, 65536)
        library.malloc_trim(0)


# Workers ------------------------------------------------------------------------------------------------------------


def _on_cluster(client: Any, tasks: dict[Any, Any], keys: list, text: str) -> Sequence[Any]:
    """On the workers of a client. Where they die over a task: again with half as many at a time, as often as that goes."""
    from distributed import KilledWorker

    from gdask.cluster.watch import TaskLimit, halve_task_limit

    threads = at_once = settings().threads
    projection = memory.fit(tasks, memory.budget(), threads, text, fixed=True)[1]
    _report(text, projection, threads, threads)
    begun = time.time()
    try:
        while True:
            try:
                with _losses_named(text):
                    return _once(client, tasks, keys, text)
            except KilledWorker as error:
                at_once = halve_task_limit(client, at_once)
                if not at_once:
                    raise GdaskError(_died(client, text, error, begun, projection)) from None
                log.warning(
                    "%s: %s; once more with %d task%s at a time in each",
                    text,
                    _deaths(client, error, begun),
                    at_once,
                    "s" * (at_once > 1),
                )
    finally:
        if at_once < threads:
            with suppress(Exception):  # the scheduler may be gone, and the plugin with it
                client.unregister_worker_plugin(TaskLimit.name)


def _once(client: Any, tasks: dict[Any, Any], keys: list, text: str) -> Sequence[Any]:
    from distributed import KilledWorker, as_completed

    from gdask.cluster.watch import WorkerWatch

    packed = client.get(tasks, keys, sync=False)
    futures = flat_list(packed)
    with meter(text, settings().dashboard) as display:
        patience, wait = settings().patience, settings().wait
        watch = WorkerWatch(client, display.show, lambda: client.cancel(futures), patience, wait)
        try:
            with watch:
                for number, done in enumerate(as_completed(futures), 1):
                    done.result()
                    display.count(number, len(futures))
                values = client.gather(packed)
        except BaseException as error:
            for future in futures:  # what failed must not be found failed by a second attempt
                future.release()
            if isinstance(error, KilledWorker) and watch.replaced:
                watch.failure = f"{error.allowed_failures + 1} times a worker ended no task for {patience:.0f} s ({str(error.task)[:60]}); more with patience: in the profile"
            if watch.failure:
                raise GdaskError(
                    f"{text}: {watch.failure}; the same command again goes on from the last complete phase"
                ) from None
            raise
        display.end(watch.usage)
        return values


@contextmanager
def _losses_named(text: str) -> Iterator[None]:
    """A scheduler that went away, in words: a GdaskError with what to do."""
    from concurrent.futures import CancelledError

    from distributed.comm import CommClosedError

    try:
        yield
    except (CancelledError, CommClosedError, asyncio.CancelledError):
        raise GdaskError(
            f"{text}: the scheduler has gone; start it again: the same command goes on from the last complete phase"
        ) from None


def _died(client: Any, text: str, error: Any, since: float, projection: memory.Projection) -> str:
    return (
        f"{text}: {_deaths(client, error, since)}, also with one task at a time in each; {projection.largest / 1e6:.0f} MB were projected "
        "for the largest task: if it was for want of memory, give more with --memory, or start fewer workers on a host; else see the workers' logs"
    )


def _deaths(client: Any, error: Any, since: float) -> str:
    """What is known of the workers that died over one task."""
    from gdask.cluster.watch import memory_deaths

    held, name = memory_deaths(client, since), str(error.task)[:60]
    if not held:
        return f"{error.allowed_failures + 1} workers died over one task ({name}), the last was {error.last_worker.address}"
    limit = (
        f" of {error.last_worker.memory_limit / 1e6:.0f} MB"
        if error.last_worker.memory_limit
        else ""
    )
    return f"{len(held)} workers ran out of memory ({max(held) / 1e6:.0f} MB{limit} held), {error.allowed_failures + 1} of them over one task ({name})"


def _report(text: str, projection: memory.Projection, threads: int, fitting: int) -> None:
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


#: Seconds between two lines of the log.
EVERY = 30.0


class Meter:
    """Of one compute: tasks ended, bytes read and written, memory of the fullest worker against what it may use."""

    def __init__(self, text: str, bar: Any = None, dashboard: str = "") -> None:
        self.text, self.dashboard = text, dashboard
        self.done = self.total = 0
        self.amounts = ""
        self._bar, self._task = (
            bar,
            bar.add_task(text, total=None, amounts=dashboard) if bar else None,
        )
        self._begun = self._said = time.monotonic()

    def count(self, done: int, total: int) -> None:
        """So many of all tasks have ended."""
        self.done, self.total = done, total
        if self._bar:
            self._bar.update(self._task, completed=done, total=total)

    def show(self, usage: Any) -> None:
        """Bytes and memory (`gdask.cluster.Usage`), on the bar, or in the log if it is time for it."""
        self.amounts = amounts(usage)
        if self._bar:
            self._bar.update(self._task, amounts=f"{self.amounts} {self.dashboard}".rstrip())
        elif time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            share = (
                f"{100 * self.done / self.total:.0f} % of {self.total} tasks, "
                if self.total
                else ""
            )
            log.info("%s: %s%s", self.text, share, self.amounts)

    def end(self, usage: Any) -> None:
        """The line of a phase that is done."""
        log.info("%s, %.1f s, %s", self.text, time.monotonic() - self._begun, amounts(usage))


def amounts(usage: Any) -> str:
    """'read 1.2 GB, wrote 0.4 GB, 1.1 of 6.2 GiB used' and, on a cluster, the number of workers."""
    workers = f" in the fullest of {usage.workers} workers" if usage.workers > 1 else ""
    return (
        f"read {_bytes(usage.read)}, wrote {_bytes(usage.written)}, "
        f"{usage.memory / 2**30:.1f} of {usage.limit / 2**30:.1f} GiB used{workers}"
    )


def _bytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


@contextmanager
def meter(text: str, dashboard: str = "") -> Iterator[Meter]:
    """The display of one compute, on standard error where that is a terminal."""
    if not sys.stderr.isatty():
        yield Meter(text, dashboard=dashboard)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(20),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[amounts]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Meter(text, progress, dashboard)
