"""How far a compute is: a bar on a terminal; elsewhere a line of the log now and then, without control characters."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger("gdask")

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
