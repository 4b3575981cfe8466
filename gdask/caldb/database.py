"""The tables of the calibration store, and what it knows of a file from its headers.

SQLite or PostgreSQL, through SQLAlchemy with bound parameters only.
"""

from __future__ import annotations

import datetime as dt
import difflib
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.schema import CreateColumn, CreateTable

from gdask.caldb.config import Database, Row, sqlite_path
from gdask.headers import Headers
from gdask.model import GdaskError

if TYPE_CHECKING:
    from gdask.types import Frame

#: Descriptors whose values are text.
TEXT_DESCRIPTORS = (
    "data_label",
    "filter_name",
    "disperser",
    "lyot_stop",
    "focal_plane_mask",
    "camera",
    "read_mode",
    "read_speed_setting",
    "gain_setting",
    "well_depth_setting",
)
#: Descriptors that the store keeps, one column each, and how a value is made fit for its column.
DESCRIPTORS: dict[str, Callable[[Any], Any]] = {
    "instrument": str,
    "ut_datetime": lambda value: value,
    **dict.fromkeys(TEXT_DESCRIPTORS, str),
    "exposure_time": float,
    **dict.fromkeys(("coadds", "detector_x_bin", "detector_y_bin"), int),
    **dict.fromkeys(("array_name", "detector_section"), list),
}
#: Kept without component numbers: the same filter may have had several.
SHORT_NAMED = frozenset({"filter_name"})
#: Types of calibration, and the tags that make a file one (first match wins).
CALTYPES: dict[str, frozenset[str]] = {
    "processed_bpm": frozenset({"BPM"}),
    "processed_flat": frozenset({"PROCESSED", "FLAT"}),
    "processed_dark": frozenset({"PROCESSED", "DARK"}),
    "processed_arc": frozenset({"PROCESSED", "ARC"}),
    "processed_standard": frozenset({"PROCESSED", "STANDARD"}),
}

SCHEMA_VERSION = 1
#: How long a writer waits for another one (s).
BUSY_SECONDS = 30
_SQLITE_MAGIC = b"SQLite format 3\x00"
#: Any constant: one process at a time makes the tables of a PostgreSQL database.
_SCHEMA_LOCK = 0x6764_6173

_META = sa.MetaData()
# The names leave room for the tables of DRAGONS, whose own cal_manager.db may be the same file.
SCHEMA = sa.Table("gdask_schema", _META, sa.Column("version", sa.Integer, nullable=False))
CALIBRATIONS = sa.Table(
    "gdask_calibrations",
    _META,
    sa.Column("path", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, index=True),
    sa.Column("size", sa.BigInteger),
    sa.Column("mtime_ns", sa.BigInteger),
    sa.Column("md5", sa.String(32)),
    sa.Column("added", sa.DateTime),
    sa.Column("caltype", sa.Text, nullable=False),
    sa.Column("instrument", sa.Text, nullable=False),
    sa.Column("ut_datetime", sa.DateTime),
    *(sa.Column(name, sa.Text) for name in TEXT_DESCRIPTORS),
    sa.Column("exposure_time", sa.Float),
    sa.Column("coadds", sa.Integer),
    sa.Column("detector_x_bin", sa.Integer),
    sa.Column("detector_y_bin", sa.Integer),
    sa.Column("array_name", sa.JSON),
    sa.Column("detector_section", sa.JSON),
    sa.Column("shape", sa.JSON),
)
_SEARCH = sa.Index("gdask_calibrations_search", CALIBRATIONS.c.instrument, CALIBRATIONS.c.caltype)


def caltype_name(text: str) -> str:
    """The full name of a type of calibration: 'flat' gives 'processed_flat'.

    Raises GdaskError, with the closest name, for a type that does not exist.
    """
    name = text.strip().lower()
    for candidate in (name, f"processed_{name}"):
        if candidate in CALTYPES:
            return candidate
    short = {caltype.removeprefix("processed_"): caltype for caltype in CALTYPES}
    near = difflib.get_close_matches(name.removeprefix("processed_"), short, n=1, cutoff=0.4)
    hint = f"; did you mean '{short[near[0]]}'?" if near else ""
    raise GdaskError(
        f"'{text}': unknown type of calibration; expected one of {', '.join(CALTYPES)}{hint}"
    )


def caltype_of(tags: Iterable[str]) -> str | None:
    """The type of calibration that a file with these tags is, None if it is not one."""
    return next((caltype for caltype, needed in CALTYPES.items() if needed.issubset(tags)), None)


def describe(source: str | os.PathLike[str] | Headers | Frame) -> Row:
    """The descriptors of a file as a row of the store, from headers alone.

    'caltype' is None for a file that is not a calibration; 'shape' lists [nx, ny] of each array.
    """
    from gdask.instruments import view

    seen = view(source)
    row: Row = {}
    for name, fit in DESCRIPTORS.items():
        value = seen(name, **({"pretty": True} if name in SHORT_NAMED else {}))
        row[name] = None if value is None else fit(value)
    row["caltype"] = caltype_of(seen.tags)
    row["shape"] = [[header.get("NAXIS1"), header.get("NAXIS2")] for header in seen.ext]
    return row


def describe_file(path: str | os.PathLike[str]) -> Row:
    """The row of `describe` with the file's identity.

    Absolute path, name, size in bytes, mtime in ns, md5 of the whole file.
    """
    full = os.path.abspath(os.fspath(path))
    row = describe(full)
    status = os.stat(full)
    row |= {"path": full, "name": os.path.basename(full), "md5": md5_of(full)}
    return row | {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def md5_of(path: str | os.PathLike[str]) -> str:
    """The MD5 sum of a file in hexadecimal: the field's checksum, no secret depends on it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def file_problem(row: Row) -> str:
    """Why a registered file cannot be used: gone, unreadable or changed; '' if it can.

    A file of the same size and time is taken as unchanged; with another time the checksum decides.
    """
    try:
        status = os.stat(row["path"])
        if status.st_size != row["size"]:
            return (
                f"changed on disk: {status.st_size} bytes, {row['size']} when registered; add "
                "it again"
            )
        if status.st_mtime_ns != row["mtime_ns"] and md5_of(row["path"]) != row["md5"]:
            return "changed on disk: another checksum than when registered; add it again"
    except OSError as error:
        return f"gone from disk ({error.strerror}: {row['path']})"
    return ""


def add(database: Database, path: str | os.PathLike[str]) -> Row:
    """Register a calibration file, or renew its entry; returns its row.

    Raises GdaskError if the file is not a processed calibration or a BPM.
    """
    row = describe_file(path)
    if row["caltype"] is None:
        raise GdaskError(
            f"{path}: neither a processed calibration (flat, dark ...) nor a BPM; reduce it first, "
            f"then add the product"
        )
    row["added"] = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    with _connection(database, write=True) as connection:
        # Only the dialect in use is loaded: PostgreSQL's takes 0.04 s.
        insert = import_module(f"sqlalchemy.dialects.{connection.dialect.name}").insert
        renewed = {name: value for name, value in row.items() if name != "path"}
        statement = (
            insert(CALIBRATIONS)
            .values(row)
            .on_conflict_do_update(index_elements=["path"], set_=renewed)
        )
        connection.execute(statement)
    return row


def remove(database: Database, name: str) -> int:
    """Delete the entry of a file name (of several, of its path); GdaskError asks which. 0 or 1."""
    base, places = os.path.basename(name), (os.path.abspath(name), os.path.realpath(name))
    paths = [row["path"] for row in rows(database) if row["name"] == base]
    chosen = [path for path in paths if len(paths) == 1 or path in places]
    if paths and not chosen:
        text = f"{base}: {len(paths)} entries have this name: {', '.join(paths)}"
        raise GdaskError(f"{text}; give the path of the one that is to go")
    if not chosen:
        return 0
    with _connection(database, write=True) as connection:
        statement = sa.delete(CALIBRATIONS).where(CALIBRATIONS.c.path.in_(chosen))
        return connection.execute(statement).rowcount


def rows(
    database: Database, caltype: str | None = None, instrument: str | None = None
) -> list[Row]:
    """All entries, or those of a type and an instrument, ordered by name and path.

    There are none if the database does not exist yet.
    """
    if not exists(database):
        return []
    query = sa.select(CALIBRATIONS).order_by(CALIBRATIONS.c.name, CALIBRATIONS.c.path)
    if caltype is not None:
        query = query.where(CALIBRATIONS.c.caltype == caltype)
    if instrument is not None:
        query = query.where(CALIBRATIONS.c.instrument == instrument)
    with _connection(database) as connection:
        version = _version(connection)
        if version == SCHEMA_VERSION:
            return _read(connection, query, database)
    if version is None:
        return []
    # An older database: opening it to write brings it up to date.
    with _connection(database, write=True) as connection:
        return _read(connection, query, database)


def _read(connection: sa.Connection, query: sa.Select, database: Database) -> list[Row]:
    """Rows with values of the columns' types.

    Raises GdaskError, with the name of the entry, where another program has left other values.
    """
    try:
        found = [dict(row) for row in connection.execute(query).mappings()]
    except (ValueError, TypeError, RecursionError, sa.exc.StatementError) as error:
        raise GdaskError(
            f"{database.name}: damaged: an entry cannot be read ({error}); move the file away "
            "and add the "
            f"calibrations again"
        ) from error
    for row in found:
        for name, value in row.items():
            if not _is_valid(name, value):
                raise GdaskError(
                    f"{database.name}: damaged: {name} of {row.get('name')!r} is "
                    f"{str(value)[:40]!r}; "
                    f"'caldb remove' it and add it again"
                )
    return found


def _is_valid(name: str, value: object) -> bool:
    """Whether a column may hold this value."""
    if value is None:
        return True
    if name in ("detector_section", "shape"):
        size = {"detector_section": 4, "shape": 2}[name]
        return isinstance(value, list) and all(
            one is None
            or isinstance(one, list)
            and len(one) == size
            and all(type(part) is int for part in one)
            for one in value
        )
    if name == "array_name":
        return isinstance(value, list) and all(one is None or isinstance(one, str) for one in value)
    if isinstance(value, float) and not math.isfinite(value):
        return False
    types: dict[type, type | tuple[type, ...]] = {
        sa.Text: str,
        sa.String: str,
        sa.Float: (int, float),
        sa.DateTime: dt.datetime,
    }
    return isinstance(value, types.get(type(CALIBRATIONS.c[name].type), int))


def init(database: Database, wipe: bool = False) -> None:
    """Make the tables where they are missing; with `wipe`, delete every entry first.

    Calibration files stay on disk.
    """
    path = sqlite_path(database)
    if wipe and path is not None and path.exists():
        _check_is_sqlite(path)
        try:
            _drop(database)
        except GdaskError:
            if _readable(database):
                raise
            path.unlink()  # damaged beyond use, and the user asked for a new one
    elif wipe:
        _drop(database)
    with _connection(database, write=True):
        pass


def exists(database: Database) -> bool:
    """Whether there is something to ask: a SQLite file that exists, or a server."""
    path = sqlite_path(database)
    return bool(database.url) and (path is None or path.exists())


@lru_cache(maxsize=16)
def _engine(url: str) -> sa.Engine:
    # No pool: a connection lives for one operation, so nothing stays locked or open between them or
    # across a fork.
    if url.startswith("sqlite"):
        # isolation_level None: we say BEGIN ourselves. The journal stays SQLite's default one: the
        # write-ahead log needs shared memory, which network file systems do not have.
        # Not from the text: any character may be in the file's name.
        file = sa.URL.create("sqlite", database=url.removeprefix("sqlite:///"))
        return sa.create_engine(
            file,
            poolclass=sa.NullPool,
            connect_args={"timeout": BUSY_SECONDS, "isolation_level": None},
        )
    return sa.create_engine(
        url, poolclass=sa.NullPool, connect_args={"connect_timeout": BUSY_SECONDS}
    )


@contextmanager
def _connection(database: Database, write: bool = False) -> Iterator[sa.Connection]:
    """A connection in one transaction.

    To write, the tables are made or brought up to date first. Raises GdaskError with what failed.
    """
    if not database.url:
        raise GdaskError(
            f"{database.name}: a remote service, which gdask does not use; name a file or a "
            "postgresql:// URL"
        )
    try:
        path = sqlite_path(database)
        if path is not None and write:
            path.parent.mkdir(parents=True, exist_ok=True)
        with _engine(database.url).connect() as connection:
            if write:
                _begin(connection)
                _make_tables(connection, database)
            yield connection
            connection.commit()
    except ImportError as error:
        raise GdaskError(
            f"{database.name}: PostgreSQL needs its driver: pip install 'gdask[postgresql]'"
        ) from error
    except (sa.exc.SQLAlchemyError, OSError) as error:
        raise GdaskError(_failure_message(database, error)) from error
    except UnicodeDecodeError as error:  # the driver's, for texts in a damaged file
        raise GdaskError(
            f"{database.name}: damaged or not a calibration database ({error}); move it away "
            f"and add the calibrations again"
        ) from error


def _begin(connection: sa.Connection) -> None:
    if connection.dialect.name == "sqlite":
        # The write lock is taken now: there is one wait for it and never a deadlock.
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _version(connection: sa.Connection) -> int | None:
    if not sa.inspect(connection).has_table(SCHEMA.name):
        return None
    return connection.execute(sa.select(sa.func.max(SCHEMA.c.version))).scalar()


def _make_tables(connection: sa.Connection, database: Database) -> None:
    version = _version(connection)
    if version == SCHEMA_VERSION:
        return
    if version is not None and version > SCHEMA_VERSION:
        raise GdaskError(
            f"{database.name}: made by a newer gdask (layout {version}, this one knows "
            f"{SCHEMA_VERSION}); "
            f"update gdask or name another database"
        )
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
    for table in (SCHEMA, CALIBRATIONS):
        connection.execute(CreateTable(table, if_not_exists=True))
    _add_missing_columns(connection)
    for index in CALIBRATIONS.indexes:
        index.create(connection, checkfirst=True)
    connection.execute(sa.delete(SCHEMA))
    connection.execute(sa.insert(SCHEMA).values(version=SCHEMA_VERSION))


def _add_missing_columns(connection: sa.Connection) -> None:
    """Bring an older table up to date: columns that it lacks are added empty (unknown)."""
    present = {column["name"] for column in sa.inspect(connection).get_columns(CALIBRATIONS.name)}
    table = connection.dialect.identifier_preparer.format_table(CALIBRATIONS)
    for column in CALIBRATIONS.columns:
        if column.name not in present:
            definition = CreateColumn(column).compile(dialect=connection.dialect)
            connection.execute(sa.DDL(f"ALTER TABLE {table} ADD COLUMN {definition}"))


def _drop(database: Database) -> None:
    with _connection(database) as connection:
        _begin(connection)
        for table in (CALIBRATIONS, SCHEMA):
            table.drop(connection, checkfirst=True)


def _check_is_sqlite(path: os.PathLike[str]) -> None:
    with open(path, "rb") as file:
        start = file.read(len(_SQLITE_MAGIC))
    if start not in {b"", _SQLITE_MAGIC}:
        raise GdaskError(
            f"{path}: not a calibration database, so it is not wiped; move it away or name "
            "another one"
        )


def _readable(database: Database) -> bool:
    try:
        with _connection(database) as connection:
            return connection.exec_driver_sql("PRAGMA quick_check").scalar() == "ok"
    except GdaskError:
        return False


def _failure_message(database: Database, error: Exception) -> str:
    cause = getattr(error, "orig", None) or getattr(error, "strerror", None) or error
    reason = str(cause).strip().splitlines()[0]
    if "locked" in reason:
        return (
            f"{database.name}: kept locked by another process for {BUSY_SECONDS} s; try again "
            "when it has ended"
        )
    if "not a database" in reason or "malformed" in reason:
        return (
            f"{database.name}: damaged or not a calibration database ({reason}); move it away "
            f"and add the calibrations again"
        )
    return (
        f"{database.name}: the calibration database cannot be used ({reason}); check the path "
        "and its permissions"
    )
