"""One compute with a progress bar: on the local threads, or on the cluster that is connected."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gdask import memory
from gdask.model import GdaskError

log = logging.getLogger("gdask")

#: Counted by tests: how many computes have been run in this process.
COMPUTES = {"count": 0}


def compute(arrays: Sequence[object], text: str) -> tuple[object, ...]:
    """Compute lazy arrays together, once, with a progress bar on a terminal. Gives their values in order.

    Raises GdaskError before anything runs where the projected peak does not fit the budget (`gdask.memory`).
    """
    import dask
    from dask.base import get_scheduler

    COMPUTES["count"] += 1
    given = get_scheduler()
    client = getattr(given, "__self__", None)
    if client is None and given not in (None, dask.threaded.get):
        return dask.compute(*arrays)  # a scheduler of the user's own
    tasks, keys = _graph(arrays), [array.__dask_keys__() for array in arrays]  # type: ignore[attr-defined]
    with bar(text) as update:
        blocks = _here(tasks, keys, text, update) if client is None else _on_cluster(client, tasks, keys, text, update)
    finish = [array.__dask_postcompute__() for array in arrays]  # type: ignore[attr-defined]
    return tuple(put(parts, *more) for (put, more), parts in zip(finish, blocks, strict=True))


def _graph(arrays: Sequence[object]) -> dict[Any, Any]:
    """The tasks of all arrays, optimised together, each block of a result an end of its own.

    `dask.compute` adds tasks that gather the blocks of each array; with them dask's order puts off the writing of pixels
    until all frames are through, and keeps them all (9 frames: 127 MB at the peak, 51 MB without).
    """
    from dask import base

    # Optimised as one: `dask.optimize` goes array by array and would repeat in each what they share (2.6 times the work).
    if hasattr(base, "collections_to_expr"):
        return dict(base.collections_to_expr(list(arrays), True).optimize().__dask_graph__())
    return dict(base.collections_to_dsk(list(arrays), True))  # dask before 2025


def _here(tasks: dict[Any, Any], keys: list, text: str, update: Callable[[int, int], None]) -> Sequence[Any]:
    """On threads of this process: as many as the machine has or were asked for, fewer where memory is short."""
    import dask
    import psutil

    threads = dask.config.get("num_workers", None) or os.cpu_count() or 1
    base = max(memory.BASE, psutil.Process().memory_info().rss)
    fitting, projection = memory.fit(tasks, memory.budget(), threads, text, base)
    _report(text, projection, threads, fitting)
    with _counting(update):
        return dask.threaded.get(tasks, keys, num_workers=fitting)


def _on_cluster(client: Any, tasks: dict[Any, Any], keys: list, text: str, update: Callable[[int, int], None]) -> Sequence[Any]:
    """On the workers of a client; their threads are as they were started."""
    import dask
    from dask.core import flatten
    from distributed import as_completed

    threads = dask.config.get("gdask.threads", 1)
    projection = memory.fit(tasks, memory.budget(), threads, text, fixed=True)[1]
    _report(text, projection, threads, threads)
    with _losses_named(text, projection):
        packed = client.get(tasks, keys, sync=False)
        futures = list(flatten(packed))
        for number, done in enumerate(as_completed(futures), 1):
            done.result()
            update(number, len(futures))
        return client.gather(packed)


@contextmanager
def _losses_named(text: str, projection: memory.Projection) -> Iterator[None]:
    """Workers that died and a scheduler that went away, in words: a GdaskError with what to do."""
    from concurrent.futures import CancelledError

    from distributed import KilledWorker
    from distributed.comm import CommClosedError

    try:
        yield
    except KilledWorker as error:
        raise GdaskError(
            f"{text}: {error.last_worker.address} and others died over one task; its worker's log says why; if it was for want of memory, "
            f"{projection.largest / 1e6:.0f} MB were projected for the largest task: give more with --memory, or start fewer workers on a host"
        ) from None
    except (CancelledError, CommClosedError, asyncio.CancelledError):
        raise GdaskError(f"{text}: the scheduler has gone; start it again: the same command goes on from the last complete phase") from None


def _report(text: str, projection: memory.Projection, threads: int, fitting: int) -> None:
    log.debug("%s: %d tasks, at most %.0f MB in one, %.0f MB with %d at a time", text, projection.tasks, projection.largest / 1e6,
              projection.peak / 1e6, fitting)  # fmt: skip
    if fitting < threads:
        log.info("%s: %d tasks at a time and not %d, so that they fit the memory allowed", text, fitting, threads)


@contextmanager
def _counting(update: Callable[[int, int], None]) -> Iterator[None]:
    """Inside, tasks that end on threads move the bar."""
    from dask.callbacks import Callback

    class Counting(Callback):  # type: ignore[misc]
        def _start_state(self, dsk: object, state: dict) -> None:
            self.total = sum(len(state[key]) for key in ("ready", "waiting"))

        def _posttask(self, key: object, result: object, dsk: object, state: dict, worker: object) -> None:
            update(len(state["finished"]), self.total)

    with Counting():
        yield


@contextmanager
def bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error where that is a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
