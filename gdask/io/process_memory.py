"""Memory of a process that computes: freed memory is kept for later arrays, and given back in time.

Given back as it was freed and faulted in again, page by page, it took half of all CPU time (science
of 16 full GSAOI frames: 36 of 78 s).
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
import time
from pathlib import Path

#: Parameters in malloc.h, and their values. More than 256 MB at the end of the heap are given back.
#: One arena, so that what one thread frees another one uses.
MALLOC_SETTINGS = {
    "M_TRIM_THRESHOLD": (-1, 2**28),
    "M_MMAP_THRESHOLD": (-3, 2**30),
    "M_ARENA_MAX": (-8, 1),
}
#: Variable of the environment by which users set the same. Not MALLOC_TRIM_THRESHOLD_, which dask
#: sets for its workers.
USERS_SETTING = "MALLOC_MMAP_THRESHOLD_"
#: Share of a worker's memory above which freed memory is given back, and seconds between two looks.
#: dask's workers begin no task above 0.8 of theirs, and look five times a second.
RETURN_SHARE, LOOK_INTERVAL = 0.55, 0.2


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library of Linux keep freed memory for later arrays, in this process from now on.

    In a process with a limit, a worker of dask, it is given back when much is held. Where
    USERS_SETTING is set, all stays as it is: whoever measures memory needs that.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "malloc_trim") or USERS_SETTING in os.environ:
        return
    for parameter, value in MALLOC_SETTINGS.values():
        library.mallopt(parameter, value)
    limit = _limit_of_worker()
    if limit:
        threading.Thread(target=_give_back_above, args=(limit,), daemon=True).start()


def return_freed_memory() -> None:
    """Return freed memory to the system, now."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def _limit_of_worker() -> int:
    """Give the bytes that the dask worker of this process may use; 0 where there is none."""
    if "distributed.worker" not in sys.modules:
        return 0
    from distributed import get_worker

    try:
        return int(get_worker().memory_manager.memory_limit or 0)
    except (ValueError, AttributeError):
        return 0


def _give_back_above(limit: int) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    while True:
        time.sleep(LOOK_INTERVAL)
        if int(Path("/proc/self/statm").read_text().split()[1]) * page > RETURN_SHARE * limit:
            return_freed_memory()
