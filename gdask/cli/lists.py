"""Lists of files: names, patterns, @LIST and pipes of a command line; lists that are written."""

from __future__ import annotations

import glob
import json
import os
import stat
import sys
from collections.abc import Iterable
from contextlib import nullcontext

from gdask.io.whole import whole_file
from gdask.model import (
    GdaskError,
    UsageError,
    clean,
    read_text,
    reason_of,
)

#: Bounds of lists: bytes of one, names and lists in all, lists inside each other. They are far
#: above what a reduction can use.
LIST_MAX_BYTES, MAX_NAMES, MAX_LISTS, MAX_LIST_DEPTH = 16 << 20, 200_000, 1000, 20


def expand_files(args: Iterable[str], *, stdin: bool = False) -> list[str]:
    """File names from a command line.

    `@LIST` becomes the names in that file, a pattern the files that match it. A list has one name
    per line; blank lines and what follows a # are ignored; it may hold patterns and other @LISTs
    (looked for in the working folder, then beside the list). With `stdin`, no arguments or '-'
    stand for the names that come through a pipe.

    Raises UsageError if a list is missing, contains itself, is no list, or if a pattern matches
    nothing.
    """
    names = list(args)
    if stdin and (not names or "-" in names):
        place = names.index("-") if names else 0
        names[place : place + 1] = _names_from_pipe()
    found: list[str] = []
    opened: list[str] = []
    for name in names:
        _expand_name(name, (), found, opened)
    return found


def _expand_name(name: str, lists: tuple[str, ...], found: list[str], opened: list[str]) -> None:
    """Append the files that one name stands for. `lists`: the lists that it was found in."""
    if "\0" in name:
        raise UsageError(f"{name!r}{_origin(lists)}: not a name of a file")
    if isinstance(name, _Quoted):
        found.append(str(name))
    elif name.startswith("@"):
        _expand_list(name[1:], lists, found, opened)
    elif glob.has_magic(name) and not os.path.exists(name):
        matching = sorted(glob.glob(name))
        if not matching:
            raise UsageError(
                f"no file matches {name}{_origin(lists)}; check the pattern and the folder"
            )
        found += matching
    else:
        found.append(name)
    if len(found) > MAX_NAMES:
        raise UsageError(f"more than {MAX_NAMES} names{_origin(lists)}; give fewer")


def _expand_list(name: str, lists: tuple[str, ...], found: list[str], opened: list[str]) -> None:
    beside = os.path.join(os.path.dirname(lists[-1]), name) if lists else name
    path = name if os.path.exists(name) else beside
    if os.path.realpath(path) in map(os.path.realpath, lists):
        raise UsageError(f"@{name}: the list contains itself ({' -> '.join((*lists, path))})")
    opened.append(path)
    if len(lists) >= MAX_LIST_DEPTH or len(opened) > MAX_LISTS:
        raise UsageError(
            f"@{name}: more than {MAX_LIST_DEPTH} lists inside each other, or {MAX_LISTS} in all; "
            "write one with all names"
        )
    try:
        lines = read_text(path, LIST_MAX_BYTES).removeprefix("\ufeff").splitlines()
    except (OSError, ValueError) as error:
        unread = isinstance(error, UnicodeDecodeError)
        reason = "not a text file" if unread else reason_of(error)
        raise UsageError(f"@{name}: the list cannot be read{_origin(lists)}: {reason}") from error
    for line in _names_in(lines):
        _expand_name(line, (*lists, path), found, opened)


def _origin(lists: tuple[str, ...]) -> str:
    return f" (named in {lists[-1]})" if lists else ""


def _names_in(lines: Iterable[str]) -> list[str]:
    """Names without comments: a # at the beginning of a line or after a blank.

    A name in double quotes, with escapes as in JSON, is that file and no pattern or list.
    """
    return [name for name in map(_name_in, lines) if name]


def _name_in(line: str) -> str:
    text = line.strip()
    if text.startswith('"'):
        try:
            name, end = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):
            return text.partition(" #")[0].strip()
        if not text[end:].strip() or text[end:].strip().startswith("#"):
            return _Quoted(name)
    return f" {line}".partition(" #")[0].strip()


class _Quoted(str):
    """A name that was in quotes: to be taken as it is."""

    __slots__ = ()


def list_line(name: str) -> str:
    """Give the line of a list, or of a pipe, from which this name is read again.

    Names that would be taken for something else (outer blanks, ` #`, `@`, line breaks, escapes)
    are in double quotes.
    """
    is_plain = name.isprintable() and not name.startswith(("@", '"', "#"))
    return name if is_plain and _names_in([name]) == [name] else json.dumps(name)


def write_list(path: str, about: Iterable[str], names: Iterable[str]) -> None:
    """Write names to a list, after comments; whole or not at all.

    Raises GdaskError, with the name of the list, where it cannot be written.
    """
    lines = [*(f"# {clean(text)}" for text in about), *map(list_line, names)]
    content = "".join(f"{line}\n" for line in lines)
    is_special = os.path.exists(path) and not os.path.isfile(path)  # /dev/stdout, a pipe
    try:
        with (
            nullcontext(path) if is_special else whole_file(os.path.realpath(path)) as part,
            open(part, "w", encoding="utf-8", opener=_open_at_once) as out,
        ):
            out.write(content)
    except OSError as error:
        raise GdaskError(f"{path}: the list cannot be written ({error.strerror})") from None


def _open_at_once(path: str, flags: int) -> int:
    """Open a file for writing; a pipe that nobody reads is an error, and not waited for."""
    place = os.open(path, flags | (os.O_NONBLOCK if _is_pipe(path) else 0), 0o666)
    os.set_blocking(place, True)
    return place


def _is_pipe(path: str) -> bool:
    return os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode)


def _names_from_pipe() -> list[str]:
    """Names from standard input, none if it is a terminal."""
    return (
        [] if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty() else _names_in(sys.stdin)
    )
