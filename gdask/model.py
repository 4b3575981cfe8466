"""Words that all modules share: variables and DQ bits of a Frame, errors, settings of a run.

Also the name of this process, for files that it may leave behind, and how text files are read.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import date, datetime, timedelta
from enum import IntFlag
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DETECTOR, Y, X = "detector", "y", "x"
DIMS = (DETECTOR, Y, X)

#: Variables of a Frame and the type that each has, in memory and in checkpoints.
DTYPES: dict[str, np.dtype] = {
    "data": np.dtype("float32"),
    "variance": np.dtype("float32"),
    "dq": np.dtype("uint16"),
    "objects": np.dtype("bool"),
}

#: What each variable is called on disk.
EXTNAMES: dict[str, str] = {"data": "SCI", "variance": "VAR", "dq": "DQ", "objects": "OBJMASK"}


def coordinate(frame: Any, name: str) -> np.ndarray:
    """Give the values of a Frame's coordinate.

    `Dataset.chunk` and `open_dataset(chunks=...)` make coordinates lazy, too. They are computed in
    this thread, whatever scheduler is set: steps ask for them again and again.
    """
    held = frame.variables[name].data
    return np.asarray(held.compute(scheduler="synchronous") if hasattr(held, "dask") else held)


class DQ(IntFlag):
    """Data-quality bits, the field's own (as DRAGONS writes them)."""

    GOOD = 0
    BAD_PIXEL = 1
    NON_LINEAR = 2
    SATURATED = 4
    COSMIC_RAY = 8
    NO_DATA = 16
    OVERLAP = 32
    UNILLUMINATED = 64


#: Bits that make a pixel useless for levels, fits and stacks. (A non-linear pixel has been
#: corrected and is used.)
UNUSABLE = DQ.BAD_PIXEL | DQ.SATURATED | DQ.COSMIC_RAY | DQ.NO_DATA | DQ.UNILLUMINATED


class GdaskError(Exception):
    """An error that the user can act on.

    Its text names the file, what was found, what was expected and what to do.
    """


class UsageError(GdaskError):
    """A request that is malformed, or for something that does not exist.

    It may be an option, a parameter, a recipe or the name of a file. Nothing was done; the exit
    code is 2.
    """


class MemoryRefused(GdaskError):
    """A compute that does not fit the memory allowed; nothing of it was begun."""


class NoCalibration(GdaskError):
    """A calibration that is needed and is in no database; the text explains why."""


class BadPixels(GdaskError):
    """Pixels of input files that turned out to be of no use, with `reasons` by path.

    The files can be set aside.
    """

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__(reasons)
        self.reasons = reasons

    def __str__(self) -> str:
        return "; ".join(f"{path}: {reason}" for path, reason in self.reasons.items())


class BadFile(BadPixels):
    """A file whose pixels cannot be read: it was cut short, or changed or gone during the run."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__({path: reason})

    def __reduce__(self) -> tuple[type[BadFile], tuple[str, str]]:
        (item,) = self.reasons.items()
        return BadFile, item


#: Names by which a shell gives what a command writes: @<(command).
FROM_SHELL = ("/dev/fd/", "/proc/self/fd/", "/dev/stdin")


class Settings(NamedTuple):
    """Settings by which the computes of a run are planned, written and watched.

    `gdask.cluster.connect` sets them in the client.
    """

    #: Bytes that one worker (for threads, this process) may use; None: a share of what the machine
    #: has.
    memory: float | None = None
    #: Tasks that run at a time in one worker.
    threads: int = 1
    #: Share of a worker's memory limit that may be in use before it begins no further task.
    share: float = 1.0
    #: Whether written files are flushed to the disk: needed where workers are on other hosts.
    flush: bool = False
    #: Folder for what workers keep for themselves; None: the batch job's, or dask's default.
    scratch: str | None = None
    #: Address of dask's dashboard; empty where there is none.
    dashboard: str = ""
    #: Seconds after which a worker that has tasks, ends none and is given none is replaced.
    patience: float = 900.0
    #: Seconds without any worker, at the start or later, after which a run ends.
    wait: float = 120.0
    #: Kinds of the processors that work (`arithmetic_of_processor`); empty: this process works.
    processors: tuple[str, ...] = ()


_DEFAULTS = Settings()
_CURRENT_SETTINGS: ContextVar[Settings] = ContextVar("gdask_settings", default=_DEFAULTS)


def settings() -> Settings:
    """Give the settings that hold here.

    A new thread has the defaults: read the settings before it starts.
    """
    return _CURRENT_SETTINGS.get()


def why_no_file(path: str | os.PathLike[str]) -> str:
    """Say why a path is not the regular file that was expected; '' where it is one.

    To open a pipe that has a name waits until somebody writes to it, for ever as a rule. What a
    shell names /dev/fd/N, for <(command), is taken for a file.
    """
    name = os.fspath(path)
    try:
        mode = os.stat(name).st_mode
    except OSError as error:
        return "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)
    except ValueError:
        return "not a name of a file"
    if stat.S_ISREG(mode) or name.startswith(FROM_SHELL):
        return ""
    return "is a folder" if stat.S_ISDIR(mode) else "not a regular file (a pipe or a device)"


#: Most bytes of a text file, and of one that a person writes; more is a mistake (a plan
#: of 10^5 frames has a tenth of it).
MAX_TEXT_BYTES, MAX_TOML_BYTES = 1 << 30, 16 << 20
NESTED, _PIECE_BYTES = "brackets are nested too deeply", 1 << 20


def read_text(
    path: str | os.PathLike[str], most: int = MAX_TEXT_BYTES, errors: str = "strict"
) -> str:
    """Read a text file (UTF-8) that a person or a program has put there.

    Raises OSError where it cannot be read or is a pipe or a device, ValueError where it has more
    than `most` bytes or is no text. errors: as of bytes.decode.
    """
    problem = why_no_file(path)
    if problem.startswith("not a regular file"):
        raise OSError(errno.EINVAL, problem, os.fspath(path))
    with open(path, "rb") as stream:
        content = read_at_most(stream, most + 1)
    if len(content) > most:
        raise ValueError(f"longer than {most >> 20} MB")
    return content.decode("utf-8", errors)


def read_at_most(stream: Any, most: int) -> bytes:
    """Read a stream to its end, or `most` bytes; Python itself takes memory for `most` first."""
    parts: list[bytes] = []
    left = most
    while left and (part := stream.read(min(left, _PIECE_BYTES))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file. Raises OSError or ValueError where it cannot be read or is none."""
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError(NESTED) from None


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a TOML file. Raises OSError or ValueError where it cannot be read or is none."""
    return parse_toml(read_text(path, MAX_TOML_BYTES))


def parse_toml(text: str) -> dict[str, Any]:
    """Give the tables of a text. Raises ValueError where it is no TOML."""
    import tomllib

    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError(NESTED) from None


def reason_of(error: BaseException) -> str:
    """Say why a file could not be read, without its name, which the system's errors repeat."""
    return str(getattr(error, "strerror", None) or error)


@functools.cache
def arithmetic_of_processor() -> str:
    """Sum up how NumPy computes on this processor: products of matrices, sines, exponentials.

    Eight hexadecimal digits, which differ where libraries take other ways on another processor. The
    matrices are too small for several threads.
    """
    values = np.random.default_rng(1).normal(size=(40, 20))
    found = (values.T @ values, np.sin(values), np.arctan2(values, 1.7), np.exp(values))
    return hashlib.sha256(b"".join(each.tobytes() for each in found)).hexdigest()[:8]


@contextlib.contextmanager
def use_settings(**changes: Any) -> Iterator[Settings]:
    """Change fields of the settings inside the `with` block.

    Raises ValueError for a name that is no field.
    """
    token = _CURRENT_SETTINGS.set(settings()._replace(**changes))
    try:
        yield settings()
    finally:
        _CURRENT_SETTINGS.reset(token)


class late:
    """A module that is imported when one of its names is first asked for.

    For packages that take long to load and that many commands do without. Type checkers are shown
    the import: `if TYPE_CHECKING: import x` `else: x = late("x")`.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


@functools.cache
def host() -> str:
    """Give a name of this host as it runs now.

    It has the host's name and a digest of the identities of its boot and of its process table, so
    that process numbers of one name can be compared.
    """
    identities = []
    for name in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):  # systems without them
            identities.append(os.readlink(name) if os.path.islink(name) else Path(name).read_text())
    name = re.sub(r"[^A-Za-z0-9]+", "_", os.uname().nodename)
    return f"{name}-{hashlib.sha256(' '.join(identities).encode()).hexdigest()[:8]}"


class usual_errors(np.errstate):
    """Inside, floating-point errors are treated as NumPy does by default.

    A script's `np.seterr(all="raise")` would stop a reduction where a number underflows to zero,
    as it should.
    """

    def __init__(self) -> None:
        super().__init__(divide="warn", over="warn", under="ignore", invalid="warn")


def clean(text: object) -> str:
    """Give a text from outside (a name, a value of a header) as one line that is safe to print.

    What would move the cursor, colour the screen, begin another line, turn the direction of writing
    or is no text (single surrogates) is written as an escape: a new line as \\n, ESC as \\x1b.
    """
    shown = str(text)
    return shown if shown.isprintable() else _UNSAFE.sub(_escape, shown)


def clean_lines(text: object) -> str:
    """Give a message of several lines as `clean` does, each after the first one indented.

    So nothing that a message quotes looks like a line of its own.
    """
    first, *others = [clean(line) for line in str(text).split("\n")]
    indented = [line if line[:1] in ("", " ") else f"    {line}" for line in others]
    return "\n".join([first, *indented])


def _escape(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


#: Control characters, line and paragraph separators, marks that turn the direction of writing,
#: invisible ones, surrogates.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


#: A night turns at 18 h UT, as Gemini's file names do: early afternoon at the telescope in Chile.
#: Flats of the afternoon belong to the night that follows, those of the morning to the one before.
NIGHT_TURNS_HOURS = 18


def night_of(time: datetime) -> date:
    """Give the night of a time (UT), by the date on which it ends: that of Gemini's file names."""
    return (time + timedelta(hours=24 - NIGHT_TURNS_HOURS)).date()


def nights_of(mjd: np.ndarray) -> np.ndarray:
    """Give the night of each MJD (days, UT) as a whole number: the MJD on which it ends."""
    return np.floor(np.asarray(mjd) + (24 - NIGHT_TURNS_HOURS) / 24).astype(np.int64)


def folders_below(top: str | os.PathLike[str]) -> Iterator[tuple[str, list[str]]]:
    """Give the folders from `top` down, through symbolic links, with the names of their files.

    Both in order of name. A folder is visited once, however many links lead to it, and a link to a
    folder around `top` is not followed. Raises OSError for a folder that cannot be looked into:
    its files would be missing, and nobody would know.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # it has gone away meanwhile
            raise error

    start = os.path.realpath(top)
    seen = {start}
    for folder, below, names in os.walk(top, onerror=refuse, followlinks=True):
        kept = []
        for name in sorted(below):
            real = os.path.realpath(os.path.join(folder, name))
            if real not in seen and not start.startswith(real.rstrip(os.sep) + os.sep):
                seen.add(real)
                kept.append(name)
        below[:] = kept
        yield folder, sorted(names)


def owner() -> str:
    """Give HOST-PID-RANDOM of this process.

    It goes into names of files that the process may leave behind in a folder that others share.
    """
    return f"{host()}-{os.getpid()}-{_RANDOM}"


_RANDOM = os.urandom(4).hex()
