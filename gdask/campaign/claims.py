"""Who works in a folder, told by a small file: also among hosts that share a file system.

Locks of the kernel hold on one host, and on a network only where its file system was mounted for
them. A claim is a file that its owner touches now and then; one that is not touched is dead.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gdask import model
from gdask.model import GdaskError, read_json

log = logging.getLogger("gdask")

#: Seconds between two touches of a claim, and without one after which its owner counts as dead.
BEAT, DEAD_AFTER = 10.0, 120.0
#: Seconds between two looks at somebody else's claim.
LOOK = 1.0
#: What a file system says that has no locks.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@contextlib.contextmanager
def claimed(
    path: str | os.PathLike[str],
    stopped: threading.Event | None = None,
    dead_after: float | None = None,
) -> Iterator[None]:
    """Inside, this process alone has the claim; before, wait for whoever has it.

    stopped: ends the waiting with KeyboardInterrupt. dead_after: seconds, DEAD_AFTER. Raises
    GdaskError where the file cannot be written.
    """
    path, stopped = Path(path), stopped or threading.Event()
    mine = f"{model.owner()}-{threading.get_ident()}"
    limit = DEAD_AFTER if dead_after is None else dead_after
    own = path.with_name(f".{path.name}.{mine}")
    try:
        own.write_text(json.dumps({"host": model.host(), "pid": os.getpid(), "owner": mine}))
    except OSError as error:
        raise GdaskError(f"{own}: cannot be written ({error.strerror})") from None
    try:
        is_told = False
        while not _taken(path, own, mine, limit):
            if not is_told and (other := read_claim(path)):
                is_told = True
                log.info(
                    "%s: waiting for process %s on %s",
                    path.stem,
                    other.get("pid"),
                    other.get("host"),
                )
            if stopped.wait(LOOK):
                raise KeyboardInterrupt
        with beating(path):
            yield
    finally:
        with contextlib.suppress(OSError):
            if read_claim(path).get("owner") == mine:
                path.unlink()
        with contextlib.suppress(OSError):
            own.unlink()


def _taken(path: Path, own: Path, mine: str, limit: float) -> bool:
    """Try to take a claim: a link is made by one only, also on a network file system."""
    with contextlib.suppress(FileExistsError):
        os.link(own, path)
    found = read_claim(path)
    if found.get("owner") == mine:
        return True
    os.utime(own)  # by the clock of the file server
    try:
        age = own.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return False  # it has just been given up
    if is_alive(found, age, limit):
        return False
    # One only moves it away; whoever moved a claim that is not the dead one puts it back.
    dead = path.with_name(f".{path.name}.dead.{mine}")
    with contextlib.suppress(OSError):
        os.rename(path, dead)
        if read_claim(dead) != found:
            os.link(dead, path)
        os.unlink(dead)
    return False


def is_alive(found: dict[str, Any], age: float, limit: float = DEAD_AFTER) -> bool:
    """Tell whether the process lives that a claim names: `age` seconds ago it gave a sign of life.

    found: `host` (`model.host`) and `pid`.
    """
    if age > limit:
        return False
    if found.get("host") != model.host():
        return True
    try:
        os.kill(int(found["pid"]), 0)
    except (ProcessLookupError, OverflowError, KeyError, TypeError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def read_claim(path: Path) -> dict[str, Any]:
    """Read who holds a claim; {} where nobody does, or it cannot be read."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextlib.contextmanager
def beating(path: Path) -> Iterator[None]:
    """Inside, a thread touches the claim."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def lock_here(handle: int, wait: bool = True) -> bool:
    """Lock an open file among the processes of this host; False where another one has it.

    A file system without locks gives True: the claim has to do.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True
