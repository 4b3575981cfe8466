"""Memory of a process: what it may use; freed memory is kept for later arrays, and given back.

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
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

#: Parameters in malloc.h, and their values. More than 256 MB at the end of the heap are given back.
#: One arena, so that what one thread frees another one uses.
MALLOC_SETTINGS = {
    "M_TRIM_THRESHOLD": (-1, 2**28),
    "M_MMAP_THRESHOLD": (-3, 2**30),
    "M_ARENA_MAX": (-8, 1),
}
#: Share of a worker's memory above which freed memory is given back, and seconds between two looks.
#: dask's workers begin no task above 0.8 of theirs, and look five times a second.
RETURN_SHARE, LOOK_INTERVAL = 0.55, 0.2


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library of Linux keep freed memory for later arrays, in this process from now on.

    In a process with a limit, a worker of dask, it is given back when much is held.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "malloc_trim"):
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


# What the process may use ----------------------------------------------------------------------


class MemoryLimit(NamedTuple):
    """A limit: its bytes, and in words what sets it."""

    size: float
    source: str


def machine_memory() -> float:
    """Give the bytes of memory that this process may use: see `memory_limit`."""
    return memory_limit().size


def memory_limit(proc: Path = Path("/proc/self")) -> MemoryLimit:
    """Give the smallest of the limits of memory that hold for this process.

    They are the memory of the machine, the limits of the control group that the process is in and
    of all groups above it (SLURM, systemd and containers set them), and the address space that
    `ulimit -v` leaves. `proc`: folder of the process in /proc.
    """
    import psutil

    limits = [MemoryLimit(float(psutil.virtual_memory().total), "the memory of the machine")]
    for file in _control_group_files(proc):
        try:
            limits.append(MemoryLimit(float(file.read_text()), f"the control group ({file})"))
        except (OSError, ValueError):
            continue  # no such group, or no limit: "max"
    return min(limits + _address_space())


def _address_space() -> list[MemoryLimit]:
    """Give the limit that `ulimit -v` sets on resident memory, if any.

    Libraries and the stacks of threads reserve address space that they never touch: that part of it
    is not left for pixels.
    """
    try:
        import resource
    except ImportError:
        return []  # not on this system
    import psutil

    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    if soft == resource.RLIM_INFINITY:
        return []
    now = psutil.Process().memory_info()
    return [MemoryLimit(max(float(soft - now.vms + now.rss), 0.0), "ulimit -v")]


def _control_group_files(proc: Path) -> Iterator[Path]:
    """Give the files that may hold the limits of memory of this process's control groups."""
    roots = _control_group_roots(proc)
    try:
        groups = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in (group for group in groups if len(group) == 3):
        kind = "cgroup2" if not controllers else "cgroup"
        if controllers and "memory" not in controllers.split(","):
            continue
        names = ("memory.limit_in_bytes",) if controllers else ("memory.max", "memory.high")
        for top, mounted in roots.get(kind, ()):
            yield from (
                folder / name for folder in _folders_of(path, top, mounted) for name in names
            )


def _folders_of(path: str, top: str, mounted: Path) -> Iterator[Path]:
    """Give the folders of the control group `path` and of those above it, up to the mounted one.

    `top` is the group that is mounted. In a container, it may be the process's own, and the path
    that of the host: then the mounted group is all that is to be seen.
    """
    below = Path(path.removeprefix(top.rstrip("/")).lstrip("/"))
    yield from (mounted / part for part in (below, *below.parents) if ".." not in part.parts)


def _control_group_roots(proc: Path) -> dict[str, list[tuple[str, Path]]]:
    """Give, for "cgroup" with memory and "cgroup2", the group and the folder of each mount."""
    roots: dict[str, list[tuple[str, Path]]] = {}
    try:
        lines = (proc / "mountinfo").read_text().splitlines()
    except OSError:
        return roots
    for line in lines:
        fields, _, rest = line.partition(" - ")
        kind, options = rest.split(" ")[0], rest.split(" ")[-1].split(",")
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options):
            group, folder = fields.split(" ")[3:5]
            roots.setdefault(kind, []).append((group, Path(folder)))
    return roots
