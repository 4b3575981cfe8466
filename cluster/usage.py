"""What a worker has and uses: cores, threads of libraries, bytes read, written and held."""

from __future__ import annotations

import os
from typing import NamedTuple

#: One thread pool per core is enough: libraries must not start their own inside a worker.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Usage(NamedTuple):
    """What a compute reads, writes and holds.

    read, written: bytes. memory, limit: bytes of the fullest worker and its limit (0: none).
    workers: their number.
    """

    read: int = 0
    written: int = 0
    memory: int = 0
    limit: int = 0
    workers: int = 0


def counters() -> tuple[int, int]:
    """Bytes that this process has read and written so far; zeros where nothing counts them."""
    import psutil

    try:
        found = psutil.Process().io_counters()
    except (AttributeError, OSError):
        return 0, 0
    return getattr(found, "read_chars", found.read_bytes), getattr(
        found, "write_chars", found.write_bytes
    )
