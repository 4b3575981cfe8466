"""Where the work runs: threads of this process, processes of this machine, or a scheduler that is already there.

Profiles are data, `profiles.yaml` beside this file or a file of the user's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

from gdask.model import GdaskError

#: One thread pool per core is enough: libraries must not start their own inside a worker.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


@contextmanager
def connect(spec: str = "threads", profiles: str | None = None) -> Iterator[object | None]:
    """Make `spec` the place where everything inside the `with` block is computed.

    Parameters
    ----------
    spec
        `threads` or `threads:N` (this process), `processes` or `processes:N` (worker processes on this machine),
        `tcp://host:port` or `tls://...` (an existing scheduler), the path of a scheduler file, or a profile's name.
    profiles
        A YAML file of profiles; the shipped ones are always known.

    Yields
    ------
    The distributed Client, or None for threads.

    Raises
    ------
    GdaskError
        An unknown spec, or a scheduler that does not answer.
    """
    profile = profile_of(spec, profiles)
    if profile["kind"] == "threads":
        import dask

        workers = profile.get("workers") or available_cores()
        with dask.config.set(scheduler="threads", num_workers=workers):
            yield None
        return
    with _client(profile, spec) as client:
        yield client


def profile_of(spec: str, profiles: str | None = None) -> dict[str, Any]:
    """The profile that a spec means, as a dictionary with `kind` and the options of that kind."""
    name, _, count = spec.partition(":")
    if spec.startswith(("tcp://", "tls://", "ucx://")):
        return {"kind": "scheduler", "address": spec}
    if os.path.isfile(spec):
        return {"kind": "scheduler", "scheduler_file": spec}
    known = load_profiles(profiles)
    if name not in known:
        raise GdaskError(f"--cluster {spec}: not known; expected tcp://host:port, a scheduler file, or one of {', '.join(sorted(known))}")
    profile = dict(known[name])
    if count:
        if not count.isdigit() or int(count) < 1:
            raise GdaskError(f"--cluster {spec}: expected a number of workers from 1 after the colon, as in {name}:4")
        profile["workers"] = int(count)
    return profile


def load_profiles(path: str | None = None) -> dict[str, dict[str, Any]]:
    """The shipped profiles, and those of the user's file over them."""
    import yaml

    known = yaml.safe_load(resources.files(__package__).joinpath("profiles.yaml").read_text())
    if path:
        with open(path) as file:
            known |= yaml.safe_load(file) or {}
    return known


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _client(profile: dict[str, Any], spec: str) -> Iterator[object]:
    from distributed import Client, LocalCluster

    if profile["kind"] == "scheduler":
        where = {key: profile[key] for key in ("address", "scheduler_file") if key in profile}
        try:
            client = Client(**where, timeout=profile.get("timeout", 30))
        except (OSError, ValueError) as error:
            raise GdaskError(f"--cluster {spec}: the scheduler does not answer ({error}); is it running?") from None
        with client:
            yield client
        return
    if profile["kind"] != "processes":
        raise GdaskError(f"--cluster {spec}: kind {profile['kind']!r} is not known; expected threads, processes or scheduler")
    with _environment(ONE_THREAD):
        cluster = LocalCluster(
            n_workers=profile.get("workers") or available_cores(), threads_per_worker=profile.get("threads", 1),
            processes=True, host="127.0.0.1", dashboard_address=profile.get("dashboard", "127.0.0.1:0"),
            memory_limit=profile.get("memory", "auto"), silence_logs=40,
        )  # fmt: skip
    with cluster, Client(cluster) as client:
        yield client


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.__setitem__(key, value)
