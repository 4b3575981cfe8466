"""Where the work runs: threads, processes of this machine, hosts, a batch system, a scheduler.

Profiles are data: `profiles.yaml` beside this file, or a file of the user's
(`gdask.cluster.profiles`). How each kind is started is in `gdask.cluster.start`, the checks of
workers before they get work in `gdask.cluster.checks`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gdask.cluster.profiles import (
    ONE_THREAD,
    Counted,
    Usage,
    available_cores,
    counters,
    load_profiles,
    machine_memory,
    memory_limit,
    profile_of,
)

from gdask.model import GdaskError, UsageError, use_settings

__all__ = [
    "ONE_THREAD",
    "Counted",
    "Usage",
    "available_cores",
    "connect",
    "counters",
    "load_profiles",
    "machine_memory",
    "memory_limit",
    "profile_of",
]


@contextmanager
def connect(
    spec: str = "threads",
    profiles: str | None = None,
    memory: int | None = None,
    report: str | None = None,
) -> Iterator[Any]:
    """Make `spec` the place where everything inside the `with` block is computed.

    Parameters
    ----------
    spec
        `threads` or `threads:N` (this process), `processes` or `processes:N` (worker processes on
        this machine), `ssh:host1,host2`, `slurm` or `pbs` with or without `:N` jobs,
        `tcp://host:port` or `tls://...` (an existing scheduler), the path of a scheduler file, a
        YAML of profiles (`FILE.yaml` or `FILE.yaml:NAME`).
    profiles
        A YAML file of profiles; the shipped ones are always known.
    memory
        Bytes that each worker (for threads, this process) may use; None is the profile's limit, or
        what the machine has.
    report
        File for a report of what the time was spent on (`performance_report`); None for none.

    Yields
    ------
    The distributed Client, or None for threads.

    Raises
    ------
    GdaskError
        An unknown spec, a scheduler that does not answer, no worker in time, or workers that are
        unfit: other versions of what makes the bits, or other files.
    """
    profile = profile_of(spec, profiles)
    require_bokeh(report)
    if profile["kind"] == "threads":
        import dask

        workers = profile.get("workers") or available_cores()
        with (
            dask.config.set(scheduler="threads", num_workers=workers),
            use_settings(threads=workers, memory=memory),
            performance_report(report, None),
        ):
            yield None
        return
    from gdask.cluster.start import connected_client

    with (
        connected_client(profile, f"--cluster {spec}", memory) as client,
        performance_report(report, client),
    ):
        yield client


def require_bokeh(path: str | None) -> None:
    """Raise UsageError where a report is asked for that cannot be made: without bokeh."""
    if path and importlib.util.find_spec("bokeh") is None:
        raise UsageError("--performance-report: needs bokeh: pip install 'gdask[dashboard]'")


@contextmanager
def performance_report(path: str | None, client: object | None) -> Iterator[None]:
    """Inside, record what is computed; write the report to `path` at the end, also on failure.

    On a cluster: task stream, worker memory, bandwidth, profile (`distributed.performance_report`).
    On threads: the task stream, and memory and processor use (`dask.diagnostics`). None is no
    report. Raises GdaskError where the file cannot be written.
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
        from distributed import performance_report as report_of_cluster

        with report_of_cluster(filename=path, mode="inline"):
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
