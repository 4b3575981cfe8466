"""The calibration service from Python.

`caldb = cal_service.set_local_database(); caldb.init(); caldb.add_cal(path)`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from gdask.caldb.config import (
    DEFAULT_CONFIG,
    Database,
    config_file,
    database_at,
    open_databases,
    sqlite_path,
)
from gdask.model import GdaskError, folders_below

FITS_ENDINGS = (".fits", ".fits.gz", ".fits.bz2", ".fits.fz")


class Entry(NamedTuple):
    """One registered calibration file, as `list_files` gives it."""

    name: str
    path: str  # the folder is that of the file when it was added
    caltype: str
    instrument: str


class LocalDB:
    """A calibration database that the user manages: the methods that the field's scripts use."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def __repr__(self) -> str:
        return f"LocalDB({self.database.name!r})"

    @property
    def name(self) -> str:
        """Where the database is, without a password."""
        return self.database.name

    @property
    def config(self) -> str:
        """The configuration in words, as `caldb config` prints it."""
        return config_text()

    def init(self, wipe: bool = False) -> None:
        """Make the database if it does not exist; `wipe=True` deletes every entry.

        The calibration files stay on disk.
        """
        from gdask.caldb.database import init

        init(self.database, wipe)

    def add_cal(self, path: str | os.PathLike[str]) -> None:
        """Register a processed calibration or a BPM; GdaskError if the file is neither."""
        from gdask.caldb.database import add

        add(self.database, path)

    def add_directory(self, path: str | os.PathLike[str], walk: bool = False) -> list[str]:
        """Register the calibrations in a folder; returns their paths. Other files are skipped.

        With `walk`, those in the folders below, too.
        """
        added = []
        for file in fits_files(path, walk):
            try:
                self.add_cal(file)
            except GdaskError:
                continue
            added.append(str(file))
        return added

    def remove_cal(self, name: str | os.PathLike[str]) -> None:
        """Delete the entry of a calibration by file name, or by path where several have the name.

        Raises GdaskError if there is none of that name, or several and the path is of none of them.
        """
        from gdask.caldb.database import remove

        if not remove(self.database, os.fspath(name)):
            raise GdaskError(
                f"{os.path.basename(name)}: not in {self.name}; 'caldb list' shows what is"
            )

    def list_files(self) -> list[Entry]:
        """What is registered, by name."""
        from gdask.caldb.database import rows

        return [
            Entry(row["name"], row["path"], row["caltype"], row["instrument"])
            for row in rows(self.database)
        ]


def set_local_database(path: str | os.PathLike[str] | None = None) -> LocalDB:
    """The calibration database at a path or postgresql:// URL.

    By default it is the configured one, ./cal_manager.db without a configuration.
    """
    return LocalDB(database_at(path) if path is not None else only_database(open_databases()))


def only_database(databases: tuple[Database, ...]) -> Database:
    """The one database that `caldb init`, `add` and `remove` act on.

    It is the only one, or the only one with 'store'. Raises GdaskError where there is no such one.
    """
    local = [database for database in databases if database.url]
    choices = local if len(local) == 1 else [database for database in local if database.store]
    if len(choices) == 1:
        return choices[0]
    names = ", ".join(database.name for database in local) or "none"
    raise GdaskError(
        f"calibration databases configured: {names}; exactly one is needed here: name it with "
        "--database"
    )


def fits_files(folder: str | os.PathLike[str], walk: bool = False) -> list[Path]:
    """The FITS files in a folder, sorted by path; with `walk`, those below it, too."""
    paths = (
        [Path(where, name) for where, names in folders_below(folder) for name in names]
        if walk
        else list(Path(folder).glob("*"))
    )
    return sorted(path for path in paths if path.name.endswith(FITS_ENDINGS) and path.is_file())


def config_text(config: str | os.PathLike[str] | None = None) -> str:
    """What `caldb config` prints: the file in force and every database with its flags and state."""
    path = config_file(config)
    origin = (
        path
        or f"none ({DEFAULT_CONFIG} does not exist and $DRAGONSRC is not set): built-in default"
    )
    blocks = [f"Configuration file: {origin}"]
    for database in open_databases(config):
        blocks.append(
            f"\n{database.name}\n  Type:  {_kind(database)}\n  Get:   {database.get}\n"
            f"  Store: {database.store}"
        )
    return "\n".join(blocks)


def _kind(database: Database) -> str:
    if not database.url:
        return "remote service (never asked: gdask does not download calibrations)"
    path = sqlite_path(database)
    if path is None:
        return "PostgreSQL"
    return (
        "SQLite file"
        if path.exists()
        else "SQLite file (does not exist yet: made when first needed)"
    )
