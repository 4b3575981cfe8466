"""What a reduction has spent its time on, as a page for a browser: dask's own report, of a cluster or of threads."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from gdask.model import GdaskError, UsageError


def check(path: str | None) -> None:
    """UsageError where a report is asked for that cannot be made: without bokeh."""
    if path and importlib.util.find_spec("bokeh") is None:
        raise UsageError("--performance-report: needs bokeh: pip install 'gdask[dashboard]'")


@contextmanager
def performance_report(path: str | None, client: object | None) -> Iterator[None]:
    """Inside, what is computed goes into a report, written to `path` at the end, also where it fails; None is no report.

    On a cluster: task stream, worker memory, bandwidth, profile (`distributed.performance_report`). On threads: the task
    stream, and memory and processor use (`dask.diagnostics`). GdaskError where the file cannot be written.
    """
    if path is None:
        yield
        return
    try:
        with open(path, "a"):
            pass
    except OSError as error:
        raise GdaskError(
            f"--performance-report {path}: cannot be written ({error.strerror})"
        ) from None
    if client is not None:
        from distributed import performance_report as of_cluster

        with of_cluster(filename=path, mode="inline"):
            yield
        return
    from dask.diagnostics import Profiler, ResourceProfiler, visualize

    tasks, resources = Profiler(), ResourceProfiler(dt=0.5)
    try:
        with tasks, resources:
            yield
    finally:
        shown = [each for each in (tasks, resources) if each.results]
        if shown:
            visualize(shown, filename=path, show=False, save=True, mode="inline")
