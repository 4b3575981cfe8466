"""The processes that run jobs for this one: all of them end when it ends, or when it says so."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator

#: A program whose process the kernel (Linux) ends in order when the one that started it is gone.
ENDS_WITH_PARENT = """\
import ctypes, signal, sys
try:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
except (OSError, AttributeError):
    pass"""
#: Processes of this one that run a job: they end when it ends.
_RUNNING: set[subprocess.Popen] = set()
#: Set once `stop_all` was called.
STOPPED = threading.Event()


def begin_all() -> None:
    """Let jobs run in this process again, after `stop_all`."""
    STOPPED.clear()


def stop_all() -> None:
    """End the processes of all jobs, in order: what they have done until now is kept.

    No job runs in this process from now on, until `begin_all`.
    """
    STOPPED.set()
    for process in list(_RUNNING):
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    for process in list(_RUNNING):
        process.wait()


@contextlib.contextmanager
def ended_by_all(process: subprocess.Popen) -> Iterator[None]:
    """Inside, `stop_all` ends this process, too."""
    _RUNNING.add(process)
    try:
        yield
    finally:
        _RUNNING.discard(process)
