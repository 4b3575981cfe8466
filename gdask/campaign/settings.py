"""`campaign.toml`, the only file of a campaign that a person edits, and the flags of its files.

[campaign]
calibrations = "remake"        # or "reuse", "nearest": of processed ones among the raw files
accept_level = 1               # 2: also calibrations older than the rules allow
nights = "combine"             # or "apart": no stacks of several nights

[exclude]                      # files, each with the reason
S20170505S0095 = "guide star lost"

[parameters]                   # of steps, for all jobs
"detectSources:threshold" = 3.0
[parameters.NGC5128]           # for a target, a filter, TARGET/FILTER, or a kind of job
"skyCorrect:offset_sky" = false

[catalogs]                     # reference catalogue of a target
NGC5128 = "ngc5128.fits"

[skies]                        # frames that are sky, of a target
NGC5128 = ["S20170505S0104"]

[jobs.JOB]                     # a pinned job: gdask plan OUT --pin JOB writes it
inputs = ["GS-2017A-Q-29-21-001@2017-05-05T01:02:03"]
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any, NamedTuple

from gdask.io.catalog_files import form_of
from gdask.io.whole import write_whole
from gdask.model import (
    MAX_TOML_BYTES,
    GdaskError,
    UsageError,
    parse_toml,
    read_text,
    reason_of,
)
from gdask.params import closest, normalise
from gdask.reduction.gates import layer_of, read_own

FILE = "campaign.toml"
FLAGS = "flags.ecsv"
GATES = "gates.toml"
#: What may be wrong with a file.
REASONS = ("cloud", "trail", "guiding", "pointing", "test", "bad")
#: What a flagged file is not used for.
USES = ("sky", "stack", "all")
#: The word of a row that takes back the earlier ones of its file.
WITHDRAWN = "withdrawn"
#: Columns of the table of flags.
FLAG_COLUMNS = ("time", "file", "flag", "use", "header", "good_until", "because", "array")
_TABLES = ("campaign", "exclude", "parameters", "catalogs", "skies", "jobs")
_CHOICES: dict[str, tuple[Any, ...]] = {
    "calibrations": ("remake", "reuse", "nearest"),
    "accept_level": (0, 1, 2),
    "nights": ("combine", "apart"),
}
_OF_A_JOB = ("inputs", "takes", "parameters", "calibrations")


class Settings(NamedTuple):
    """What a person has decided about a campaign; everything has a default."""

    calibrations: str = "remake"
    accept_level: int = 1
    nights: str = "combine"
    exclude: Mapping[str, str] = {}
    parameters: Mapping[str, Any] = {}
    catalogs: Mapping[str, str] = {}
    skies: Mapping[str, list[str]] = {}
    jobs: Mapping[str, Mapping[str, Any]] = {}
    gates: Mapping[str, float] = {}

    def parameters_of(self, kind: str, target: str, filter_name: str) -> dict[str, str]:
        """Give the parameters of a job, as text by `step:name`; the narrowest table wins.

        Gates that leave frames out of a stack do so as parameters of its steps (`gates`), where no
        table says otherwise.
        """
        found: dict[str, str] = {}
        for scope in ("", kind, filter_name, target, f"{target}/{filter_name}"):
            table = self.parameters if not scope else self.parameters.get(scope, {})
            if isinstance(table, Mapping):
                found |= {k: str(v) for k, v in table.items() if not isinstance(v, Mapping)}
        given = normalise(found)
        for key, limit in self.gates.items() if kind == "stack" else ():
            if key not in given and key.partition(":")[2] not in given:
                found[key] = str(limit)
        return found


class Flag(NamedTuple):
    """One row of the table of flags. array: number of the one that is meant, '' for the file."""

    time: str
    file: str
    flag: str
    use: str
    header: str
    good_until: str
    because: str
    array: str = ""


def read_settings(out: str | os.PathLike[str]) -> Settings:
    """Read campaign.toml of a folder of results; the defaults where there is none.

    Raises UsageError that names the line and what was expected. Gates of the folder's gates.toml
    that are parameters of steps are in it, too.
    """
    path, own = Path(out) / FILE, Path(out) / GATES
    gates = dict(layer_of(read_own(own))).get("gates", {}) if own.exists() else {}
    if not path.exists():
        return Settings(gates=gates)
    try:
        text = read_text(path, MAX_TOML_BYTES)
        tables = parse_toml(text)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {reason_of(error)}") from None

    def wrong(key: str, what: str) -> UsageError:
        return UsageError(f"{path}, line {_line_of(text, key)}: {key}: {what}")

    _check_tables(tables, wrong)
    catalogs = {
        name: os.path.join(os.path.abspath(out), os.path.expanduser(file))
        for name, file in tables.get("catalogs", {}).items()
    }
    for name, file in catalogs.items():
        try:
            form_of(file)
        except GdaskError as error:
            raise wrong(name, str(error)) from None
    others = {k: tables.get(k, {}) for k in _TABLES[1:]} | {"catalogs": catalogs}
    return Settings(**tables.get("campaign", {}), **others, gates=gates)


def _line_of(text: str, key: str) -> int:
    """Give the line, from 1, where a key has its value or a table its name; 0 where none has."""
    name = re.escape(key)
    as_key = re.compile(rf"""^\s*["']?{name}["']?\s*[.=]""")
    as_table = re.compile(rf"""^\s*\[[^#]*(?<![\w-]){name}(?![\w-])""")
    lines = list(enumerate(text.splitlines(), 1))
    for form in (as_key, as_table, re.compile(name)):
        if found := next((n for n, line in lines if form.search(line)), 0):
            return found
    return 0


def _check_tables(tables: Mapping[str, Any], wrong: Any) -> None:
    """Raise what `wrong` makes of a key and of what was expected there."""
    for name, table in tables.items():
        if name not in _TABLES or not isinstance(table, Mapping):
            raise wrong(name, f"expected a table: {', '.join(_TABLES)}{closest(name, _TABLES)}")
    for key, value in tables.get("campaign", {}).items():
        if key not in _CHOICES:
            raise wrong(key, f"expected {', '.join(_CHOICES)}{closest(key, _CHOICES)}")
        if value not in _CHOICES[key] or isinstance(value, bool):
            raise wrong(key, f"{value} came, expected {', '.join(map(str, _CHOICES[key]))}")
    for name in ("exclude", "catalogs"):
        for key, value in tables.get(name, {}).items():
            if not isinstance(value, str):
                also = "; a name with dots needs quotes, too" if isinstance(value, dict) else ""
                raise wrong(key, f"{value!r} came, a text in quotes was expected{also}")
    for key, value in tables.get("exclude", {}).items():
        if not value.strip():
            raise wrong(key, "a reason was expected, such as 'clouds'")
    for key, value in tables.get("skies", {}).items():
        if not _is_list_of_text(value):
            raise wrong(key, "a list of names of files was expected")
    for job, table in tables.get("jobs", {}).items():
        if not isinstance(table, Mapping):
            raise wrong(job, "a table was expected: [jobs.JOB]")
        for key in table:
            if key not in _OF_A_JOB:
                raise wrong(key, f"expected {', '.join(_OF_A_JOB)}{closest(key, _OF_A_JOB)}")
            if key in ("inputs", "takes"):
                if not _is_list_of_text(table[key]):
                    what = "exposures" if key == "inputs" else "jobs"
                    raise wrong(key, f"a list of {what} was expected")
            elif not isinstance(table[key], Mapping):
                raise wrong(key, f"{table[key]!r} came, a table was expected")
    for key, value in tables.get("parameters", {}).items():
        names = value if isinstance(value, Mapping) else [key]
        for one in names:
            if isinstance(value, Mapping) and isinstance(value[one], Mapping | list):
                raise wrong(one, "a number, text, true or false was expected")


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


# Flags -----------------------------------------------------------------------------------------


def read_flags(out: str | os.PathLike[str]) -> list[Flag]:
    """Read the flags of a campaign that hold; UsageError where the table is damaged."""
    found: list[Flag] = []
    for row in _flag_rows(out):
        if row.flag == WITHDRAWN:
            found = [one for one in found if one.file != row.file]
        else:
            found.append(row)
    return found


def _flag_rows(out: str | os.PathLike[str]) -> list[Flag]:
    """Read all rows of the table of flags, also those that were taken back."""
    path = Path(out) / FLAGS
    if not path.exists():
        return []
    from gdask.campaign.tables import read_table

    rows = read_table(path)
    if rows and {*rows[0], "array"} != set(FLAG_COLUMNS):  # tables of before had no arrays
        raise UsageError(f"{path}: expected the columns {' '.join(FLAG_COLUMNS)}")
    return [Flag(**row) for row in rows]


def add_flags(out: str | os.PathLike[str], flags: list[Flag]) -> None:
    """Append flags to the table, whole or not at all; nothing in it is changed."""
    from gdask.campaign.tables import write_table

    rows = [one._asdict() for one in [*_flag_rows(out), *flags]]
    write_table(Path(out) / FLAGS, rows, FLAG_COLUMNS, "What is wrong with which file.")


def withdrawals(flags: list[Flag], because: str = "") -> list[Flag]:
    """Give the rows that take back these flags, as of now: one for each file."""
    now = f"{datetime.now():%Y-%m-%dT%H:%M:%S}"
    files = dict.fromkeys(one.file for one in flags)
    return [Flag(now, file, WITHDRAWN, "all", "", "", because) for file in files]


def new_flag(
    file: str,
    flag: str = "",
    use: str = "all",
    header: str = "",
    good_until: str = "",
    because: str = "",
    array: int | None = None,
) -> Flag:
    """Make a flag as of now; UsageError for a word, header or date that is none."""
    if flag and flag not in REASONS:
        raise UsageError(f"--as {flag}: expected {', '.join(REASONS)}{closest(flag, REASONS)}")
    if use not in USES:
        raise UsageError(f"--for {use}: expected {', '.join(USES)}{closest(use, USES)}")
    if array is not None and (array < 1 or not flag or use != "all"):
        raise UsageError("--array N: expected a number from 1, with --as, for all uses")
    if header:
        from gdask.campaign.describe import check_card

        if not all(part.strip() for part in header.partition("=")):
            raise UsageError(f"--header {header}: expected KEYWORD=VALUE, such as EXPTIME=60")
        check_card(header)
    if good_until:
        try:
            date.fromisoformat(good_until)
        except ValueError:
            raise UsageError(
                f"--good-until {good_until}: expected a date, such as 2017-05-31"
            ) from None
    if not (flag or header or good_until):
        raise UsageError("nothing to flag: give --as, --header or --good-until")
    now, number = f"{datetime.now():%Y-%m-%dT%H:%M:%S}", "" if array is None else str(array)
    return Flag(now, file, flag, use, header, good_until, because, number)


def pin(out: str | os.PathLike[str], job: str, lines: list[str]) -> None:
    """Append the table of a job to campaign.toml; UsageError where it is pinned already."""
    path = Path(out) / FILE
    text = read_text(path) if path.exists() else ""
    if job in read_settings(out).jobs:
        raise UsageError(f"{path}: the job {job} is pinned already; edit it there")
    write_whole(path, "\n".join([text.rstrip("\n"), "", *lines, ""]).lstrip("\n"))
