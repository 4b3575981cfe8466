"""Checkpoints: the results of a phase on disk, found again by what went into them.

A checkpoint is a folder named by the digest of the code and of its graph's names (which hold the
identity of every raw file, each kernel, each parameter). It holds one multi-extension file per
Frame, the small results that the phase fetched, the checksums of every window that was written,
and, written last, a file `complete`. It is used where all of them hold: a re-run finds the last
complete phase and goes on from there.

In this order: the scratch folder of a reduction; one checkpoint in it (name, writing, checking,
reading); marks that tell whether another run is alive, and the files that dead runs have left.
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
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from gdask import __version__
from gdask.headers import FileUnits, read_units
from gdask.io.dask_internals import awaited_by
from gdask.io.frames import lazy_small_results, pixel_variables, with_fetched, with_pixels
from gdask.io.lazy_arrays import bound_to
from gdask.io.read import lazy_variables, stored_arrays
from gdask.io.write import Output
from gdask.model import DIMS, host, owner, settings
from gdask.types import Frame, Frames

log = logging.getLogger("gdask")

#: Number that stands for all frames in `Fetched`.
ALL_FRAMES = -1
#: Small results of one phase: (frame number, name) -> one array per detector. Those on which pixels
#: wait are under ALL_FRAMES, by the names of their arrays.
Fetched = dict[tuple[int, str], tuple[np.ndarray, ...]]
#: Packages, beside gdask, on which the bits depend.
PACKAGES = ("numpy", "scipy", "numba", "astropy", "reproject")
#: Days for which checkpoints of reductions that did not end are kept.
KEPT_DAYS = 7
#: Bytes that are read at a time where checksums are checked.
READ_BYTES = 1 << 24
#: Seconds between two touches of the mark of a living run.
MARK_TOUCH_INTERVAL = 10.0
#: Seconds after which an untouched mark of another host is that of a dead run.
DEAD_MARK_AGE = 45.0
#: Seconds after which other files of another host, to which nobody writes, are those of a dead run.
DEAD_FILE_AGE = 86400.0
_OWNED = re.compile(r"\.(?P<host>[^.]+)-(?P<pid>\d+)-[0-9a-f]+(\.part)?$")
_MARK = "in-use"
MARK_TRIES = 20


# Scratch folder of a reduction ----------------------------------------------------------------


@contextmanager
def scratch_folder(folder: str, inputs: Sequence[str]) -> Iterator[str]:
    """Give the folder below `folder`/.gdask for the checkpoints of a reduction of these inputs.

    The same inputs have the same folder. It is removed at the end of the `with` block, and stays
    where what is inside fails. A second run of the same inputs, while the first one lives, has a
    folder of its own.
    """
    root = Path(folder, ".gdask")
    digest = hashlib.sha256(
        "\n".join(sorted(os.path.abspath(path) for path in inputs)).encode()
    ).hexdigest()[:16]
    scratch = root / digest
    try:
        with mark_in_use(str(scratch)) as has_other_run:
            if has_other_run:
                scratch = root / f"{digest}.{owner()}"
                log.info(
                    "another run of the same files is under way in this folder; "
                    "their checkpoints are kept apart"
                )
            else:  # half-written files of a dead run take up room
                for part in scratch.glob("*/.*.part"):
                    part.unlink(missing_ok=True)
            yield str(scratch)
            # While this run is marked no other one takes its folder over; marks of others stay.
            _remove_checkpoints(scratch)
    finally:
        _tidy(root, root / digest)


def _remove_checkpoints(scratch: Path) -> None:
    """Remove all of a scratch folder but the marks of runs."""
    for path in set(scratch.glob("*")) - set(_marks(str(scratch))):
        shutil.rmtree(path, ignore_errors=True)


def _remove_unused(scratch: Path) -> None:
    if not _is_in_use(str(scratch)):
        shutil.rmtree(scratch, ignore_errors=True)


def _tidy(root: Path, scratch: Path) -> None:
    """Remove checkpoints that nobody came back for, and empty folders; others may do so, too."""
    own = root / f"{scratch.name}.{owner()}"
    for other in set(root.glob("*")) - {scratch, own}:
        with suppress(FileNotFoundError):
            if time.time() - other.stat().st_mtime > KEPT_DAYS * 86400:
                _remove_unused(other)
    for folder in (scratch, own, root):
        try:
            os.rmdir(folder)
        except OSError:
            continue  # not empty, or not there


# One checkpoint -------------------------------------------------------------------------------


def checkpoint_folder(frames: Frames, variables: Sequence[str], scratch: str) -> str:
    """Give the path of the checkpoint of these Frames below the folder `scratch`.

    The same graph and code give the same path, in any process.
    """
    digest = hashlib.sha256(__version__.encode() + code_digest().encode())
    for package in PACKAGES:
        digest.update(f"{package} {metadata.version(package)}".encode())
    for frame in frames:
        digest.update(frame.attrs["name"].encode())
        stored = stored_variables(frame, variables)
        arrays = {name: frame.variables[name].data for name in stored}
        arrays |= lazy_small_results(frame) | awaited_small_results(frame)
        for name in sorted(arrays):
            digest.update(f"{name} {arrays[name].name}".encode())
    return os.path.join(scratch, digest.hexdigest()[:32])


def stored_variables(frame: Frame, variables: Sequence[str]) -> list[str]:
    """Give those of the variables whose pixels a checkpoint has to hold.

    Pixels that are read from a file, or made from one by kernels, cost less to make again than to
    write and read.
    """
    return [name for name in variables if name in frame and awaited_by(frame[name].data)[0] is None]


def awaited_small_results(frame: Frame) -> dict[str, Any]:
    """Give the small results on which pixels of a Frame wait, by the names of their arrays."""
    awaited: dict[str, Any] = {}
    for name in pixel_variables(frame):
        awaited |= awaited_by(frame[name].data)[1]
    return awaited


@functools.cache
def code_digest() -> str:
    """Give the SHA-256 of gdask's modules and facts, which tells a changed copy from a release.

    Recipes and cluster profiles do not count: a product keeps its recipe's text, and neither
    changes what a graph holds.
    """
    package = Path(__file__).parents[1]
    left_out = package / "recipes", package / "cluster"  # in the package once it is installed
    digest = hashlib.sha256()
    for path in sorted(path for ending in ("py", "toml") for path in package.rglob(f"*.{ending}")):
        if not any(path.is_relative_to(folder) for folder in left_out):
            digest.update(path.relative_to(package).as_posix().encode() + b"\0")
            digest.update(path.read_bytes())
    return digest.hexdigest()


def frame_path(folder: str, number: int, frame: Frame) -> str:
    """Give the path of the file of a Frame, the `number`th one, in a checkpoint."""
    return os.path.join(folder, f"{number:05d}_{frame.attrs['name']}")


def complete(
    folder: str, fetched: Fetched, windows: Mapping[str, np.ndarray] | None = None
) -> None:
    """Store fetched results and checksums, and last of all the file `complete`.

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


def _store(path: str, arrays: Mapping[str, Any]) -> str:
    """Write arrays as an `.npz` file; give its SHA-256."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    with open(path, "wb") as file:
        file.write(content.getbuffer())
        if settings().flush:  # other hosts count on it, even where this one ends
            file.flush()
            os.fsync(file.fileno())
    return hashlib.sha256(content.getbuffer()).hexdigest()


def window_records(
    outputs: Sequence[Output], values: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Give all WRITTEN_WINDOW records of each output by its path.

    `values` are the computed `arrays` of all outputs, in order.
    """
    remaining = iter(values)
    return {
        output.final: np.concatenate(
            [output.headers, *(np.ravel(next(remaining)) for _ in output.arrays)]
        )
        for output in outputs
    }


def is_whole(folder: str) -> bool:
    """Tell whether a checkpoint was finished and each byte is as it was written.

    A warning names what is damaged.
    """
    try:
        digests = Path(folder, "complete").read_text().splitlines()
    except OSError:
        return False
    try:
        contents = [Path(folder, name).read_bytes() for name in ("fetched.npz", "windows.npz")]
        if digests != [hashlib.sha256(content).hexdigest() for content in contents]:
            return _warn_of_damage(folder, "its small results")
        with np.load(io.BytesIO(contents[1]), allow_pickle=False) as archive:
            windows = {name: archive[name] for name in archive.files}
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            whole = list(
                pool.map(
                    lambda name: _sums_hold(os.path.join(folder, name), windows[name]), windows
                )
            )
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        return _warn_of_damage(folder, f"{type(error).__name__} {error}")
    wrong = [name for name, good in zip(windows, whole, strict=True) if not good]
    return _warn_of_damage(folder, ", ".join(wrong)) if wrong else True


def _warn_of_damage(folder: str, what: str) -> bool:
    """Warn that a checkpoint is damaged; give False, since it is not whole."""
    log.warning(
        "checkpoint %s is damaged: %s; this phase is computed again", os.path.basename(folder), what
    )
    return False


def _sums_hold(path: str, windows: np.ndarray) -> bool:
    """Tell whether the checksum of every window of a file is right."""
    with open(path, "rb", buffering=0) as file:
        return all(
            _window_sum(
                file, *(int(window[name]) for name in ("offset", "rows", "width", "stride"))
            )
            == window["sum"]
            for window in windows
        )


def _window_sum(file: io.FileIO, offset: int, rows: int, width: int, stride: int) -> int:
    """Give the CRC-32 of a window of a file: rows of `width` bytes, `stride` bytes apart."""
    if width == stride:
        rows, width = 1, rows * width
    total = 0
    for row in range(rows):
        row_begin = offset + row * stride
        row_end = row_begin + width
        for begin in range(row_begin, row_end, READ_BYTES):
            count = min(READ_BYTES, row_end - begin)
            total = zlib.crc32(os.pread(file.fileno(), count, begin), total)
    return total


def read_fetched(folder: str) -> Fetched:
    """Read the small results of a complete checkpoint."""
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
    """Give the Frames with lazy pixels from the checkpoint, and with their fetched results.

    Pixels that waited for small results are given their values.
    """
    by_frame: dict[int, dict[str, tuple[np.ndarray, ...]]] = {}
    for (number, name), arrays in fetched.items():
        by_frame.setdefault(number, {})[name] = arrays
    values = {
        name: [array[()] for array in arrays]
        for name, arrays in by_frame.get(ALL_FRAMES, {}).items()
    }
    resumed: list[Frame] = []
    units: dict[object, FileUnits] = {}
    for number, frame in enumerate(frames):
        names = stored_variables(frame, variables)
        before = {name: frame.variables[name].data for name in pixel_variables(frame)}
        pixels = {name: bound_to(array, values) for name, array in before.items()}
        if names:
            path = frame_path(folder, number, frame)
            # Files of the same arrays are laid out alike (`write.start` with bare headers).
            layout = (*names, *(frame.sizes[name] for name in DIMS))
            units[layout] = units.get(layout) or read_units(path)
            stored = stored_arrays(path, units[layout])
            pixels |= lazy_variables({name: stored[name] for name in names})
        changed = {name: array for name, array in pixels.items() if array is not before[name]}
        frame = with_fetched(frame, by_frame.get(number, {}))
        resumed.append(with_pixels(frame, changed) if changed else frame)
    return tuple(resumed)


# Living and dead runs -------------------------------------------------------------------------


@contextmanager
def mark_in_use(folder: str) -> Iterator[bool]:
    """Mark `folder` as in use by this process; give whether another living run has marked it.

    The mark is a file that is touched now and then, and removed at the end of the `with` block.
    Whether a run on another host is alive shows in its mark: a young one is watched for up to 45 s.
    Times are compared as the file system gives them, so that clocks of hosts may differ.
    """
    mark = Path(folder, f"{_MARK}.{owner()}")
    for _ in range(MARK_TRIES):  # a run that ends may remove the empty folder
        with suppress(FileNotFoundError):
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            break
    stopped = threading.Event()
    toucher = threading.Thread(target=_keep_touching, args=(mark, stopped), daemon=True)
    toucher.start()
    try:
        yield any(_is_alive(other, mark) for other in _marks(folder) if other != mark)
    finally:
        stopped.set()
        toucher.join()
        mark.unlink(missing_ok=True)


def _is_in_use(folder: str) -> bool:
    """Tell whether a run that may be alive has marked a folder."""
    return any(not _is_of_dead_run(mark) for mark in _marks(folder))


def _marks(folder: str) -> list[Path]:
    return sorted(Path(folder).glob(f"{_MARK}.*"))


def _keep_touching(mark: Path, stopped: threading.Event) -> None:
    while not stopped.wait(MARK_TOUCH_INTERVAL):
        try:
            os.utime(mark)  # sets the file server's time
        except OSError:
            continue  # removed with its folder, or the server is away: the next time


def _is_alive(other_mark: Path, own_mark: Path) -> bool:
    """Tell whether the run of another mark is alive; remove the mark of a dead one."""
    found = _OWNED.search(other_mark.name)
    if found and found["host"] == host():
        is_alive = _process_exists(int(found["pid"]))
    else:
        is_alive = _is_touched(other_mark, own_mark)
    if not is_alive:
        other_mark.unlink(missing_ok=True)
    return is_alive


def _is_touched(other_mark: Path, own_mark: Path) -> bool:
    """Watch another mark until it is touched, or older by DEAD_MARK_AGE than a touch of the own."""
    try:
        first = other_mark.stat().st_mtime
        while True:
            os.utime(own_mark)
            if own_mark.stat().st_mtime - first > DEAD_MARK_AGE:
                return False
            time.sleep(min(1.0, MARK_TOUCH_INTERVAL / 10))
            if other_mark.stat().st_mtime != first:
                return True
    except OSError:  # removed by its run, which has ended
        return False


def remove_stale_parts(folder: str) -> list[str]:
    """Remove the temporary files of dead processes from `folder`; give their names."""
    removed = []
    for part in Path(folder).glob(".*.part"):
        if _is_of_dead_run(part):
            part.unlink(missing_ok=True)
            removed.append(part.name)
    return removed


def _is_of_dead_run(path: Path) -> bool:
    """Tell whether the owner of a file is dead.

    On this host there is no such process; on another one nothing was written for DEAD_FILE_AGE.
    """
    found = _OWNED.search(path.name)
    if not found:
        return False
    if found["host"] == host():
        return not _process_exists(int(found["pid"]))
    try:
        return time.time() - path.stat().st_mtime > DEAD_FILE_AGE
    except OSError:
        return False


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
