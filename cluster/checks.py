"""Checks of workers before they get work.

They must have the same software and see the same files; scratch without room and thread pools
of libraries are warned of. Everything here that runs on a worker travels to it by value, so that
a worker without gdask can say so.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
from distributed import Client, WorkerPlugin
from distributed.comm import CommClosedError
from gdask.cluster.profiles import ONE_THREAD

from gdask.model import GdaskError, arithmetic_of_processor, owner

log = logging.getLogger("gdask")

#: What makes the bits of a product, or carries the graphs: these must be the same everywhere.
SAME_VERSION_PACKAGES = (
    "gdask",
    "dask",
    "distributed",
    "numpy",
    "scipy",
    "numba",
    "astropy",
    "xarray",
    "cloudpickle",
    "msgpack",
)
#: Bytes that should be free in a worker's scratch folder.
SCRATCH_MIN_FREE_BYTES = 1e9


def check_is_own(path: str, where: str) -> None:
    """Check who may change a scheduler file, and so say whom this command trusts with its code.

    Raises GdaskError where anybody may; warns where others may read it.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # the client says so
    if mode & stat.S_IWOTH:
        raise GdaskError(
            f"{where}: everybody may change this scheduler file, and with it who runs your code; "
            f"start the scheduler under umask 077 (chmod go= {path})"
        )
    if mode & (stat.S_IROTH | stat.S_IWGRP):
        log.warning(
            "%s: others may read or change this scheduler file: who reaches the scheduler can run "
            "code as you; start it under umask 077",
            where,
        )


class SameFiles(WorkerPlugin):
    """Ends a worker that does not see this run's working folder, also one that comes later."""

    name = "gdask-same-files"

    def __init__(self, path: str, text: str) -> None:
        self.path, self.text = path, text

    def setup(self, worker: Any) -> None:
        """Called by every worker as it starts, and by those that are there already."""
        problem = shared_file_problem(self.path, self.text)
        if problem:  # an exception alone would be logged, and the worker be given work
            worker.loop.add_callback(worker.close, reason=problem)
            raise RuntimeError(problem)


def shared_file_problem(path: str, text: str) -> str:
    """What is wrong with a file of this run as a worker sees it; '' where it is the same."""
    try:
        with open(path) as file:
            found = file.read()
    except OSError as error:
        return f"does not see the working folder {os.path.dirname(path)} ({error.strerror})"
    return "" if found == text else f"sees another folder under the name {os.path.dirname(path)}"


def worker_environment(dask_worker: Any) -> dict[str, Any]:
    """Host, scratch folder, bytes free there (-1: not writable), thread pools, arithmetic."""
    import shutil
    import socket

    from gdask.model import arithmetic_of_processor

    folder = dask_worker.local_directory
    free = shutil.disk_usage(folder).free if os.access(folder, os.W_OK) else -1
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {
        "host": socket.gethostname(),
        "scratch": folder,
        "free": free,
        "pools": {n: os.environ.get(n) for n in names},
        "arithmetic": arithmetic_of_processor(),
    }


@contextmanager
def checked_workers(
    client: Client, where: str, wait: float, started: bool
) -> Iterator[tuple[str, ...]]:
    """Inside, the workers of `client` have been checked, and those that join are.

    Gives the kinds of their processors (`arithmetic_of_processor`), in order.

    Raises GdaskError where no worker comes within `wait` seconds or one is unfit, with what to do.
    """
    _wait_for_one(client, where, wait, started)
    _check_versions(client, where)
    # A name that a later run clears away, should this one be killed.
    token = Path.cwd() / f".cluster-{secrets.token_hex(4)}.{owner()}.part"
    text = secrets.token_hex(16)
    token.write_text(text)
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        _check_files(client, where, str(token), text)
        workers = client.run(worker_environment, on_error="ignore")
        _warn_of_environment(workers)
        client.register_plugin(SameFiles(str(token), text))
        try:
            yield tuple(sorted({found["arithmetic"] for found in workers.values()}))
        finally:
            _forget(client)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
        token.unlink(missing_ok=True)


def _forget(client: Client) -> None:
    """Take the plugin off a scheduler that lives on.

    Later workers of others have nothing to do with this run's files.
    """
    try:
        client.unregister_worker_plugin(SameFiles.name)
    except Exception as error:  # noqa: BLE001 - the scheduler is gone: so is the plugin
        log.debug("the plugin was not taken off: %s", error)


def _wait_for_one(client: Client, where: str, wait: float, started: bool) -> None:
    if not client.scheduler_info(n_workers=-1)["workers"]:
        log.info("%s: waiting for a worker, %.0f s at most", where, wait)
    try:
        client.wait_for_workers(1, timeout=wait)
    except TimeoutError:
        why = (
            "is the queue full, are the hosts up?"
            if started
            else "it has no workers; start some (dask worker ADDRESS)"
        )
        raise GdaskError(f"{where}: no worker within {wait:.0f} s: {why}") from None


def _check_versions(client: Client, where: str) -> None:
    found: Any = client.get_versions(packages=list(SAME_VERSION_PACKAGES))
    here = _versions_of_packages(found["client"])
    for who, there in [
        ("the scheduler", found["scheduler"]),
        *((f"worker {name}", v) for name, v in found["workers"].items()),
    ]:
        for name, version in (
            _versions_of_packages(there) if isinstance(there, Mapping) else {}
        ).items():
            if version != here[name]:
                raise GdaskError(
                    f"{where}: {who} has {name} {version or 'not at all'}, here it is "
                    f"{here[name]}; "
                    "start it from the same Python environment"
                )


def _versions_of_packages(versions: Mapping[str, Mapping[str, str]]) -> dict[str, str | None]:
    python = ".".join(str(versions["packages"].get("python", "?")).split(".")[:2])
    return {"python": python} | {
        name: versions["packages"].get(name) for name in SAME_VERSION_PACKAGES
    }


def _check_files(client: Client, where: str, path: str, text: str) -> None:
    for worker, problem in client.run(shared_file_problem, path, text, on_error="return").items():
        # One that dies at this moment sees nothing; the next worker in its place is asked, too.
        if problem and not isinstance(problem, CommClosedError):
            raise GdaskError(
                f"{where}: worker {worker} {problem}; work in a folder that all hosts share"
            )


def _warn_of_environment(workers: Mapping[str, Mapping[str, Any]]) -> None:
    """Warn of what costs speed or may fail later; say which workers' processors are of a kind."""
    kinds: dict[str, set[str]] = {}
    for found in workers.values():
        kinds.setdefault(found["arithmetic"], set()).add(found["host"])
    if len(kinds | {arithmetic_of_processor(): set()}) > 1:
        log.info(
            "processors of several kinds, whose libraries differ in last bits (this host: %s; %s): "
            "products are made so that these do not count, and say which kinds there were "
            "(docs/cluster.md)",
            arithmetic_of_processor(),
            "; ".join(f"{kind}: {', '.join(sorted(hosts))}" for kind, hosts in kinds.items()),
        )
    for worker, found in workers.items():
        many = [
            f"{name}={value or 'unset'}" for name, value in found["pools"].items() if value != "1"
        ]
        if many:
            log.warning(
                "worker %s on %s: %s; start it with %s=1, or libraries' threads compete for "
                "its cores",
                worker,
                found["host"],
                ", ".join(many),
                "=1 ".join(ONE_THREAD),
            )
        if found["free"] < SCRATCH_MIN_FREE_BYTES:
            room = (
                "cannot be written"
                if found["free"] == -1
                else f"has {found['free'] / 1e6:.0f} MB free"
            )
            log.warning(
                "worker %s on %s: its scratch folder %s %s; set scratch: of the profile to a "
                "local disk with room",
                worker,
                found["host"],
                found["scratch"],
                room,
            )
