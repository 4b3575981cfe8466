"""Who is at work in a folder that hosts may share: names of temporary files say whose they are, runs mark what they use.

A name ends in `.HOST-PID-RANDOM.part`; HOST is the host's name and a part of its boot's and process table's identity, so
that neither a restart nor a container makes one process look like another.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gdask.model import host, owner

#: A mark is touched so often (s); one of another host that was not touched for so long is that of a dead run.
BEAT, SILENT = 10.0, 45.0
#: Other files of other hosts are left alone until nobody has written to them for so long (s).
OLD = 86400.0
_OWNED = re.compile(r"\.(?P<host>[^.]+)-(?P<pid>\d+)-[0-9a-f]+(\.part)?$")
_MARK = "in-use"


def remove_stale_parts(folder: str) -> list[str]:
    """Remove what dead processes left under temporary names in `folder`; give the names removed."""
    removed = []
    for part in Path(folder).glob(".*.part"):
        if _is_left(part):
            part.unlink(missing_ok=True)
            removed.append(part.name)
    return removed


def _is_left(path: Path) -> bool:
    """Whether the owner of a file is dead: no such process here, or, on another host, nothing written for a day."""
    found = _OWNED.search(path.name)
    if not found:
        return False
    if found["host"] == host():
        return not _alive(int(found["pid"]))
    try:
        return time.time() - path.stat().st_mtime > OLD
    except OSError:
        return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def marked(folder: str) -> Iterator[bool]:
    """Inside, `folder` has a mark of this process, touched now and then; gives whether a living run has marked it, too.

    Whether a run on another host is alive shows in its mark: a young one is watched for up to 45 s. Times are compared
    as the file system gives them, so that clocks of hosts may differ.
    """
    mark = Path(folder, f"{_MARK}.{owner()}")
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(mark, done), daemon=True)
    beating.start()
    try:
        yield any(_is_used(other, mark) for other in _marks(folder) if other != mark)
    finally:
        done.set()
        beating.join()
        mark.unlink(missing_ok=True)


def is_marked(folder: str) -> bool:
    """Whether a run that may be alive has marked a folder; marks of dead ones of this host do not count."""
    return any(not _is_left(mark) for mark in _marks(folder))


def _marks(folder: str) -> list[Path]:
    return sorted(Path(folder).glob(f"{_MARK}.*"))


def _beat(mark: Path, done: threading.Event) -> None:
    while not done.wait(BEAT):
        try:
            os.utime(mark)  # the time is the file server's
        except OSError:
            continue  # removed with its folder, or the server is away: the next beat


def _is_used(other: Path, mine: Path) -> bool:
    """Whether the run of another mark is alive. Removes the mark of a dead one."""
    found = _OWNED.search(other.name)
    if found and found["host"] == host():
        alive = _alive(int(found["pid"]))
    else:
        alive = _beats(other, mine)
    if not alive:
        other.unlink(missing_ok=True)
    return alive


def _beats(other: Path, mine: Path) -> bool:
    try:
        first = other.stat().st_mtime
        while True:
            os.utime(mine)
            if mine.stat().st_mtime - first > SILENT:
                return False
            time.sleep(min(1.0, BEAT / 10))
            if other.stat().st_mtime != first:
                return True
    except OSError:  # removed by its run, which has ended
        return False
