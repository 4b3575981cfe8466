"""Copies of calibrations under ./calibrations/TYPE/, and the registration of a fresh product."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from gdask.caldb.config import Database
from gdask.caldb.database import add, caltype_name, describe
from gdask.model import GdaskError, owner


def cache_path(
    path: str | os.PathLike[str], caltype: str, folder: str | os.PathLike[str] = "."
) -> Path:
    """Where the copy of a calibration belongs: FOLDER/calibrations/TYPE/NAME."""
    return Path(folder) / "calibrations" / caltype_name(caltype) / Path(path).name


def cache(path: str | os.PathLike[str], caltype: str, folder: str | os.PathLike[str] = ".") -> Path:
    """Copy a calibration to its cache path, whole or not at all; returns the copy's path.

    Nothing is done if it is there already. Raises GdaskError where it cannot be copied.
    """
    source, target = Path(path), cache_path(path, caltype, folder)
    try:
        if not _same(source, target):
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy_whole(source, target)
    except OSError as error:
        raise GdaskError(f"{source}: could not be copied to {target} ({error.strerror})") from error
    return target


def store(path: str | os.PathLike[str], databases: Sequence[Database]) -> Path:
    """Copy a product to its cache path and register the copy in databases marked 'store'.

    Returns the copy's path. Raises GdaskError if the file is not a processed calibration or a BPM.
    """
    caltype = describe(path)["caltype"]
    if caltype is None:
        raise GdaskError(
            f"{path}: not a processed calibration (flat, dark, BPM ...), so it cannot be "
            "stored as one"
        )
    copy = cache(path, caltype)
    for database in databases:
        if database.store and database.url:
            add(database, copy)
    return copy


def _same(source: Path, target: Path) -> bool:
    """Whether the target is the source, or has its size and time of modification."""
    if not target.exists():
        return False
    wanted, found = source.stat(), target.stat()
    return os.path.samestat(wanted, found) or (wanted.st_size, wanted.st_mtime_ns) == (
        found.st_size,
        found.st_mtime_ns,
    )


def _copy_whole(source: Path, target: Path) -> None:
    """Copy under a temporary name, flush to disk, rename."""
    partial = target.with_name(f".{target.name}.{owner()}.part")
    try:
        # A new file: what a link of that name points at is not touched.
        partial.unlink(missing_ok=True)
        shutil.copy2(source, partial)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
