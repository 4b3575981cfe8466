"""What a compute reads, writes and holds."""

from __future__ import annotations

from typing import NamedTuple


class Usage(NamedTuple):
    """Bytes read and written in a compute; memory of the fullest worker and its limit (0: none); number of workers."""

    read: int = 0
    written: int = 0
    memory: int = 0
    limit: int = 0
    workers: int = 0


def counters() -> tuple[int, int]:
    """Bytes that this process has read and written so far; zeros where the system does not count."""
    import psutil

    try:
        found = psutil.Process().io_counters()
    except (AttributeError, OSError):
        return 0, 0
    return getattr(found, "read_chars", found.read_bytes), getattr(
        found, "write_chars", found.write_bytes
    )
