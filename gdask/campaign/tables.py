"""Tables of a campaign: as ECSV, as TOML, as a database."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gdask.io.whole import write_whole
from gdask.model import UsageError, clean, read_text, reason_of

#: Rows of a table, and its columns.
Rows = tuple[Sequence[Mapping[str, Any]], Sequence[str]]


def write_table(
    path: str | os.PathLike[str],
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    about: str = "",
) -> None:
    """Write rows as ECSV (astropy, TOPCAT): columns of numbers where all known values are, or text.

    A number that is not known is empty, which readers take as masked.
    """
    rows = list(rows)
    kinds = {name: _kind([row.get(name) for row in rows]) for name in columns}
    head = ["%ECSV 1.0", "---", "datatype:"]
    head += [f"- {{name: {name}, datatype: {kind}}}" for name, kind in kinds.items()]
    if about:
        head.append(f"meta: {{comments: [{json.dumps(about)}]}}")
    lines = [" ".join(columns)]
    lines += [" ".join(_cell(row.get(name)) for name in columns) for row in rows]
    write_whole(path, "".join([*(f"# {line}\n" for line in head), *(f"{s}\n" for s in lines)]))


def write_database(path: str | os.PathLike[str], tables: Mapping[str, Rows]) -> None:
    """Write tables, (rows, columns) by name, as an SQLite file; whole or not at all.

    Numbers are numbers; what is not known is NULL. It is made in memory: file systems that hosts
    share may have no locks.
    """
    with contextlib.closing(sqlite3.connect(":memory:")) as base:
        for name, (rows, columns) in tables.items():
            names = ", ".join(f'"{column}"' for column in columns)
            base.execute(f'CREATE TABLE "{name}" ({names})')
            marks = ", ".join("?" * len(columns))
            values = ([_stored(row.get(column)) for column in columns] for row in rows)
            base.executemany(f'INSERT INTO "{name}" VALUES ({marks})', values)
        base.commit()
        write_whole(path, base.serialize())


def _stored(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float | str) else str(value)


def read_table(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Read a table that `write_table` or astropy wrote, as text by column; else UsageError."""
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {reason_of(error)}") from None
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    rows = list(csv.reader(lines, delimiter=" "))
    if rows and any(len(row) != len(rows[0]) for row in rows):
        raise UsageError(f"{path}: a row has not as many values as there are columns")
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def _kind(values: Sequence[Any]) -> str:
    known = [value for value in values if value is not None]
    for kind, name in ((bool, "bool"), (int, "int64"), (float, "float64")):
        types = (int, float) if kind is float else (kind,)
        if known and all(type(value) in types for value in known):
            return name
    return "string"


def _cell(value: Any) -> str:
    text = "" if value is None else repr(value) if isinstance(value, float) else clean(value)
    plain = text and not any(c in text for c in " \t\"'#")
    return text if plain else '"' + text.replace('"', '""') + '"'


def toml_lines(table: Mapping[str, Any], name: str = "") -> list[str]:
    """Give the lines of a table in TOML; values are text, numbers, lists or tables of these."""
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"[{name}]"] if name else []
    for key, value in plain.items():
        if isinstance(value, list | tuple) and len(value) > 1:
            lines += [f"{toml_key(key)} = [", *(f"    {json.dumps(one)}," for one in value), "]"]
        else:
            lines.append(f"{toml_key(key)} = {json.dumps(value)}")
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += ["", *toml_lines(value, f"{name}.{toml_key(key)}" if name else toml_key(key))]
    return lines


def toml_key(key: str) -> str:
    """Give a key of TOML, in quotes where it needs them."""
    is_bare = key and all(c.isascii() and (c.isalnum() or c in "-_") for c in key)
    return key if is_bare else json.dumps(key)
