"""Phase results on disk, addressed by what went in: a re-run finds the last complete phase and goes on from there.

A checkpoint is a folder named by the digest of its graph's names (which hold the identity of every raw file, each
kernel, each parameter). It holds one multi-extension file per Frame, the small results that the phase fetched, and,
written last, a file `complete`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gdask import __version__
from gdask.model import DIMS
from gdask.types import Frame, Frames

#: In `complete`, where every file of a checkpoint was flushed: any machine may trust it at any time.
FLUSHED = "flushed"
#: Small results of one phase: (frame number, name) -> one array per detector.
Fetched = dict[tuple[int, str], tuple[np.ndarray, ...]]


def folder_of(frames: Frames, variables: Sequence[str], scratch: str) -> str:
    """The checkpoint folder of these Frames: the same graph gives the same folder, in any process."""
    digest = hashlib.sha256(__version__.encode())
    for frame in frames:
        digest.update(frame.attrs["name"].encode())
        for name in sorted(variables):
            if name in frame:
                digest.update(frame[name].data.name.encode())
        for name in sorted(frame.attrs["pending"]):
            digest.update(frame.attrs["pending"][name].name.encode())
    return os.path.join(scratch, digest.hexdigest()[:32])


def is_complete(folder: str) -> bool:
    """Whether a checkpoint was finished: flushed to disk by hosts of a cluster, or since this machine's last start."""
    try:
        return Path(folder, "complete").read_text() in (_boot(), FLUSHED)
    except OSError:
        return False


def _is_flushed() -> bool:
    """Whether tasks flush what they write (on a cluster of hosts): such a checkpoint outlives a machine's end."""
    import dask

    return bool(dask.config.get("gdask.flush", False))


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def path_in(folder: str, number: int, frame: Frame) -> str:
    return os.path.join(folder, f"{number:05d}_{frame.attrs['name']}")


def complete(folder: str, fetched: Fetched) -> None:
    """Store the fetched results and mark the checkpoint as whole (the last thing that is written)."""
    os.makedirs(folder, exist_ok=True)
    named = {
        f"{number}/{name}/{detector}": array
        for (number, name), arrays in fetched.items()
        for detector, array in enumerate(arrays)
    }
    flush = _is_flushed()
    with open(os.path.join(folder, "fetched.npz"), "wb") as file:
        np.savez(file, **named)
        if flush:
            file.flush()
            os.fsync(file.fileno())
    temporary = Path(folder, "complete.part")
    temporary.write_text(FLUSHED if flush else _boot())
    temporary.replace(Path(folder, "complete"))


def fetched_of(folder: str) -> Fetched:
    """The small results of a complete checkpoint."""
    gathered: dict[tuple[int, str], dict[int, np.ndarray]] = {}
    with np.load(os.path.join(folder, "fetched.npz"), allow_pickle=False) as archive:
        for key in archive.files:
            number, name, detector = key.split("/")
            gathered.setdefault((int(number), name), {})[int(detector)] = archive[key]
    return {key: tuple(arrays[detector] for detector in sorted(arrays)) for key, arrays in gathered.items()}


def resume(frames: Frames, variables: Sequence[str], folder: str, fetched: Fetched) -> Frames:
    """The Frames with their pixels read from the checkpoint, and the fetched results in `attrs["results"]`."""
    return tuple(_resume_one(number, frame, variables, folder, fetched) for number, frame in enumerate(frames))


def _resume_one(number: int, frame: Frame, variables: Sequence[str], folder: str, fetched: Fetched) -> Frame:
    results = dict(frame.attrs.get("results", {}))
    results |= {name: arrays for (owner, name), arrays in fetched.items() if owner == number}
    attrs = frame.attrs | {"pending": {}, "results": results}
    names = [name for name in variables if name in frame]
    if names:
        from gdask.io.read import lazy_variables, read_layout

        layout = read_layout(path_in(folder, number, frame))
        stored = lazy_variables({name: layout[name] for name in names})
        frame = frame.assign({name: (DIMS, array) for name, array in stored.items()})
        attrs["layout"] = dict(frame.attrs.get("layout") or {}) | {name: layout[name] for name in names}
    return frame.assign_attrs(attrs)


def clean(scratch: str) -> None:
    """Remove the checkpoints of a run that has ended well."""
    shutil.rmtree(scratch, ignore_errors=True)


def remove_stale_parts(folder: str) -> list[str]:
    """Remove what dead processes left under temporary names in `folder`; give the names removed."""
    removed = []
    for part in Path(folder).glob(".*.part"):
        pid = part.suffixes[-2].lstrip(".") if len(part.suffixes) > 1 else ""
        if pid.isdigit() and not _alive(int(pid)):
            part.unlink(missing_ok=True)
            removed.append(part.name)
    return removed


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
