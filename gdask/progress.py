"""One compute with a progress bar: on the local threads, or on the cluster that is connected."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

#: Counted by tests: how many computes have been run in this process.
COMPUTES = {"count": 0}


def compute(arrays: Sequence[object], text: str) -> tuple[object, ...]:
    """Compute lazy arrays together, once, with a progress bar on a terminal. Gives their values in order."""
    import dask
    from dask.base import get_scheduler

    COMPUTES["count"] += 1
    client = getattr(get_scheduler(), "__self__", None)
    with bar(text) as update:
        if client is not None and hasattr(client, "scheduler_info"):
            return _compute_on_cluster(client, arrays, update)
        return _compute_here(dask, arrays, update)


def _compute_here(dask: object, arrays: Sequence[object], update: Callable[[int, int], None]) -> tuple[object, ...]:
    from dask.callbacks import Callback

    class Counting(Callback):  # type: ignore[misc]
        def _start_state(self, dsk: object, state: dict) -> None:
            self.total = sum(len(state[key]) for key in ("ready", "waiting"))

        def _posttask(self, key: object, result: object, dsk: object, state: dict, worker: object) -> None:
            update(len(state["finished"]), self.total)

    with Counting():
        return dask.compute(*arrays)  # type: ignore[attr-defined]


def _compute_on_cluster(client: object, arrays: Sequence[object], update: Callable[[int, int], None]) -> tuple[object, ...]:
    from distributed import as_completed

    futures = client.compute(list(arrays), optimize_graph=True)  # type: ignore[attr-defined]
    for number, done in enumerate(as_completed(futures), 1):
        done.result()
        update(number, len(futures))
    return tuple(client.gather(futures))  # type: ignore[attr-defined]


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
