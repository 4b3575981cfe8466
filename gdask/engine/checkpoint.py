"""Phase results on disk, addressed by what went in: a re-run finds the last complete phase and goes on from there.

A checkpoint is a folder named by the digest of the code and of its graph's names (which hold the identity of every raw
file, each kernel, each parameter). It holds one multi-extension file per Frame, the small results that the phase fetched,
the checksums of every window that was written, and, written last, a file `complete`. It is used where all of them hold.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import os
import re
import shutil
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from gdask import __version__
from gdask.io.frames import lazy_small_results, with_fetched
from gdask.io.read import lazy_variables, stored_arrays
from gdask.io.write import Output
from gdask.model import DIMS, host, owner, settings
from gdask.types import Frame, Frames

log = logging.getLogger("gdask")

#: Small results of one phase: (frame number, name) -> one array per detector.
Fetched = dict[tuple[int, str], tuple[np.ndarray, ...]]
#: What makes the bits beside gdask.
PACKAGES = ("numpy", "scipy", "numba", "astropy", "reproject")
#: Checkpoints of reductions that did not end are kept for so many days.
DAYS = 7
#: Bytes that are read at a time where checksums are checked.
PIECE = 1 << 24


def folder_of(frames: Frames, variables: Sequence[str], scratch: str) -> str:
    """Give the checkpoint folder of these Frames: the same graph and code give the same folder, in any process."""
    digest = hashlib.sha256(__version__.encode() + code_digest().encode())
    for package in PACKAGES:
        digest.update(f"{package} {metadata.version(package)}".encode())
    for frame in frames:
        digest.update(frame.attrs["name"].encode())
        names = [name for name in variables if name in frame]
        arrays = {name: frame[name].data for name in names} | lazy_small_results(frame)
        for name in sorted(arrays):
            digest.update(f"{name} {arrays[name].name}".encode())
    return os.path.join(scratch, digest.hexdigest()[:32])


@functools.cache
def code_digest() -> str:
    """Give the SHA-256 of gdask's modules and facts, so that a changed working copy is told from a release.

    Recipes and cluster profiles do not count: a product keeps its recipe's text, and neither changes what a graph holds.
    """
    package = Path(__file__).parents[1]
    apart = package / "recipes", package / "cluster"  # in the package once it is installed
    digest = hashlib.sha256()
    for path in sorted(path for ending in ("py", "toml") for path in package.rglob(f"*.{ending}")):
        if not any(path.is_relative_to(folder) for folder in apart):
            digest.update(path.relative_to(package).as_posix().encode() + b"\0")
            digest.update(path.read_bytes())
    return digest.hexdigest()


def path_in(folder: str, number: int, frame: Frame) -> str:
    return os.path.join(folder, f"{number:05d}_{frame.attrs['name']}")


def complete(
    folder: str, fetched: Fetched, windows: Mapping[str, np.ndarray] | None = None
) -> None:
    """Store fetched results and checksums and mark the checkpoint as whole (the last thing that is written).

    `windows` are records of what was written (`io.write.WRITTEN_WINDOW`), by path.
    """
    os.makedirs(folder, exist_ok=True)
    named = {
        f"{number}/{name}/{detector}": array
        for (number, name), arrays in fetched.items()
        for detector, array in enumerate(arrays)
    }
    sums = {os.path.basename(path): records for path, records in (windows or {}).items()}
    digests = [
        _store(os.path.join(folder, name), arrays)
        for name, arrays in (("fetched.npz", named), ("windows.npz", sums))
    ]
    temporary = Path(folder, f"complete.{owner()}.part")
    temporary.write_text("\n".join(digests))
    temporary.replace(Path(folder, "complete"))


def _store(path: str, arrays: Mapping[str, np.ndarray]) -> str:
    content = io.BytesIO()
    np.savez(content, **arrays)
    with open(path, "wb") as file:
        file.write(content.getbuffer())
        if settings().flush:  # a host that ends must not take along what others count on
            file.flush()
            os.fsync(file.fileno())
    return hashlib.sha256(content.getbuffer()).hexdigest()


def windows_of(outputs: Sequence[Output], values: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """All WRITTEN_WINDOW records of each output by its path; `values` are the computed arrays of all, in order."""
    each = iter(values)
    return {
        output.final: np.concatenate(
            [output.headers, *(np.ravel(next(each)) for _ in output.arrays)]
        )
        for output in outputs
    }


def is_whole(folder: str) -> bool:
    """Whether a checkpoint was finished and each byte of it is as it was written. A damaged one is said to be so."""
    try:
        digests = Path(folder, "complete").read_text().splitlines()
    except OSError:
        return False
    try:
        contents = [Path(folder, name).read_bytes() for name in ("fetched.npz", "windows.npz")]
        if digests != [hashlib.sha256(content).hexdigest() for content in contents]:
            return _damaged(folder, "its small results")
        with np.load(io.BytesIO(contents[1]), allow_pickle=False) as archive:
            windows = {name: archive[name] for name in archive.files}
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            whole = list(
                pool.map(lambda name: _holds(os.path.join(folder, name), windows[name]), windows)
            )
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        return _damaged(folder, f"{type(error).__name__} {error}")
    wrong = [name for name, good in zip(windows, whole, strict=True) if not good]
    return _damaged(folder, ", ".join(wrong)) if wrong else True


def _damaged(folder: str, what: str) -> bool:
    log.warning(
        "checkpoint %s is damaged: %s; this phase is computed again", os.path.basename(folder), what
    )
    return False


def _holds(path: str, windows: np.ndarray) -> bool:
    """Whether the checksum of every window of a file holds."""
    with open(path, "rb", buffering=0) as file:
        return all(
            _sum(file, *(int(window[name]) for name in ("offset", "rows", "width", "stride")))
            == window["sum"]
            for window in windows
        )


def _sum(file: io.FileIO, offset: int, rows: int, width: int, stride: int) -> int:
    if width == stride:
        rows, width = 1, rows * width
    total = 0
    for row in range(rows):
        for at in range(offset + row * stride, offset + row * stride + width, PIECE):
            total = zlib.crc32(
                os.pread(file.fileno(), min(PIECE, offset + row * stride + width - at), at), total
            )
    return total


def fetched_of(folder: str) -> Fetched:
    """The small results of a complete checkpoint."""
    gathered: dict[tuple[int, str], dict[int, np.ndarray]] = {}
    with np.load(os.path.join(folder, "fetched.npz"), allow_pickle=False) as archive:
        for key in archive.files:
            number, name, detector = key.split("/")
            gathered.setdefault((int(number), name), {})[int(detector)] = archive[key]
    return {
        key: tuple(arrays[detector] for detector in sorted(arrays))
        for key, arrays in gathered.items()
    }


def resume(frames: Frames, variables: Sequence[str], folder: str, fetched: Fetched) -> Frames:
    """Give the Frames with their pixels read from the checkpoint, and their small results computed."""
    return tuple(
        _resume_one(number, frame, variables, folder, fetched)
        for number, frame in enumerate(frames)
    )


def _resume_one(
    number: int, frame: Frame, variables: Sequence[str], folder: str, fetched: Fetched
) -> Frame:
    frame = with_fetched(
        frame, {name: arrays for (of, name), arrays in fetched.items() if of == number}
    )
    names = [name for name in variables if name in frame]
    if not names:
        return frame
    stored = stored_arrays(path_in(folder, number, frame))
    pixels = lazy_variables({name: stored[name] for name in names})
    return frame.assign({name: (DIMS, array) for name, array in pixels.items()})


@contextmanager
def scratch_of(folder: str, inputs: Sequence[str]) -> Iterator[str]:
    """The folder of a reduction's checkpoints, below `folder`/.gdask: the same inputs, the same folder; removed at its end.

    Where what is inside fails, the checkpoints stay. A second run of the same inputs, while the first one lives, has its own.
    """
    root = Path(folder, ".gdask")
    digest = hashlib.sha256(
        "\n".join(sorted(os.path.abspath(path) for path in inputs)).encode()
    ).hexdigest()[:16]
    scratch = root / digest
    try:
        with marked(str(scratch)) as is_taken:
            if is_taken:
                scratch = root / f"{digest}.{owner()}"
                log.info(
                    "another run of the same files is under way in this folder; their checkpoints are kept apart"
                )
            else:  # what a dead run left half-written takes room
                for part in scratch.glob("*/.*.part"):
                    part.unlink(missing_ok=True)
            yield str(scratch)
        _remove(scratch)
    finally:
        _tidy(root, root / digest)


def _remove(scratch: Path) -> None:
    if not is_marked(str(scratch)):
        shutil.rmtree(scratch, ignore_errors=True)


def _tidy(root: Path, *own: Path) -> None:
    """Remove checkpoints that nobody came back for, and folders that are empty; say what is left of other reductions."""
    for scratch in root.glob("*"):
        if (
            scratch not in own
            and time.time() - scratch.stat().st_mtime > DAYS * OLD
            and not is_marked(str(scratch))
        ):
            shutil.rmtree(scratch, ignore_errors=True)
    for empty in (*own, root):
        try:
            os.rmdir(empty)
        except OSError:
            continue  # not empty, or not there


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
