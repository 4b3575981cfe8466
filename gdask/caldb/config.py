"""Which calibration databases there are.

They are the lines `databases` in section [calibs] of ~/.dragons/dragonsrc, or ./cal_manager.db.
"""

from __future__ import annotations

import configparser
import os
import shlex
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from gdask.model import GdaskError, read_text, why_no_file

#: One file as the store knows it: {column: value}, None where unknown.
Row = dict[str, Any]
DEFAULT_NAME = "cal_manager.db"
DEFAULT_CONFIG = "~/.dragons/dragonsrc"


class Database(NamedTuple):
    """One place where calibrations are registered.

    A remote service has an empty url: it is listed and never asked.
    """

    given: str  # the path as the user wrote it, or the URL without its password
    url: str  # SQLAlchemy's URL, password included
    get: bool = True
    store: bool = True

    @property
    def name(self) -> str:
        """The name to show: as it was given, or the whole path where that means another file now.

        It does after a change of the working folder.
        """
        path = sqlite_path(self)
        same = path is None or Path(self.given).expanduser().absolute() == path
        return self.given if same else str(path)

    def __repr__(self) -> str:
        """Without the url, which may hold a password."""
        return f"Database({self.name!r}, get={self.get}, store={self.store})"


def config_file(config: str | os.PathLike[str] | None = None) -> Path | None:
    """The configuration file in force, None if there is none.

    It is the one given, else $DRAGONSRC, else ~/.dragons/dragonsrc. Raises GdaskError where the
    user named a file that does not exist; the default file may be absent.
    """
    named = config if config is not None else os.environ.get("DRAGONSRC") or None
    path = Path(named if named is not None else DEFAULT_CONFIG).expanduser()
    if path.is_file():
        return path
    if named is None and not path.exists():
        return None
    if (problem := why_no_file(path)) != "no such file":
        raise GdaskError(f"{path}: {problem}; a configuration file was expected")
    origin = "--config" if config is not None else "$DRAGONSRC"
    raise GdaskError(
        f"{path}: no such configuration file, though {origin} names it; correct it or leave it out"
    )


def database_lines(path: Path) -> tuple[str, ...]:
    """The non-empty lines of `databases` (formerly `database_dir`) in section [calibs]."""
    parser = configparser.ConfigParser(interpolation=None)  # a URL may hold %-escapes
    try:
        parser.read_string(read_text(path), source=str(path))
    except (configparser.Error, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise GdaskError(
            f"{path}: not a readable configuration file ({reason}); expected [calibs] and a line "
            f"'databases = PATH get store'"
        ) from error
    section = parser["calibs"] if parser.has_section("calibs") else {}
    text = section.get("databases") or section.get("database_dir") or ""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def database_at(place: str | os.PathLike[str], get: bool = True, store: bool = True) -> Database:
    """The Database at a path (file or folder, `~` allowed) or a PostgreSQL URL."""
    text = os.fspath(place)
    if "://" in text:
        return _database_of_url(text, get, store)
    path = Path(text).expanduser()
    if path.is_dir() or text.endswith(os.sep):
        path, text = path / DEFAULT_NAME, os.path.join(text, DEFAULT_NAME)
    return Database(text, f"sqlite:///{path.absolute()}", get, store)


def _database_of_url(url: str, get: bool, store: bool) -> Database:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise GdaskError(
            f"a calibration database's URL is not understood ({error}); expected "
            "postgresql://user@host/name"
        ) from error
    scheme = parts.scheme.split("+")[0]
    if scheme in {"http", "https"}:
        return Database(url, "", get, store)
    if scheme not in {"postgresql", "postgres"}:
        raise GdaskError(
            f"{scheme}://...: unknown kind of calibration database; expected a path or a "
            "postgresql:// URL"
        )
    rest = url.split("://", 1)[1]
    user = f"{parts.username}@" if parts.username else ""
    port = f":{parts.port}" if parts.port else ""
    shown = f"postgresql://{user}{parts.hostname or ''}{port}{parts.path}"
    return Database(shown, f"postgresql+psycopg://{rest}", get, store)


def _parse_line(line: str, source: Path) -> Database:
    try:
        place, *flags = shlex.split(line)
    except ValueError as error:
        raise GdaskError(
            f"{source}: cannot read the line 'databases = {line}' ({error}); quote the path"
        ) from error
    unknown = [flag for flag in flags if flag not in {"get", "store"}]
    if unknown:
        raise GdaskError(
            f"{source}: unknown word '{unknown[0]}' after a database; expected 'get', 'store' "
            "or both"
        )
    # As DRAGONS has it: no word means get; once there is a word, get must be among them.
    get, store = not flags or "get" in flags, "store" in flags
    if _is_host(place):
        return Database(place, "", get, store)
    return database_at(place, get, store)


def _is_host(place: str) -> bool:
    """Whether a bare word is a remote host, as in the field's files (archive.gemini.edu)."""
    path = Path(place).expanduser()
    return not (path.exists() or "/" in place or path.suffix in {"", ".db", ".sqlite", ".sqlite3"})


def open_databases(config: str | os.PathLike[str] | None = None) -> tuple[Database, ...]:
    """The calibration databases in the order in which they are asked.

    Without a configuration (or without databases in it): cal_manager.db in the working folder, get
    and store. Nothing is created or connected to here.
    """
    path = config_file(config)
    found = (
        tuple(_parse_line(line, path) for line in database_lines(path)) if path is not None else ()
    )
    return found or (database_at(DEFAULT_NAME),)


def sqlite_path(database: Database) -> Path | None:
    """The file of a SQLite database; None for other kinds."""
    prefix = "sqlite:///"
    return Path(database.url.removeprefix(prefix)) if database.url.startswith(prefix) else None
