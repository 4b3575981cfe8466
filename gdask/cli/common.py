"""Shared by the commands: lists of files, and a main that ends well whatever happens."""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from gdask.model import GdaskError


def expand_files(args: Iterable[str], *, stdin: bool = False) -> list[str]:
    """File names from a command line: `@LIST` becomes the names in that file, a pattern the files that match it.

    A list has one name per line; blank lines and what follows a # are ignored; it may hold patterns and other @LISTs
    (looked for in the working folder, then beside the list). With `stdin`, no arguments or '-' stand for the names
    that come through a pipe. GdaskError if a list is missing, contains itself, or a pattern matches nothing.
    """
    names = list(args)
    if stdin and (not names or "-" in names):
        at = names.index("-") if names else 0
        names[at : at + 1] = _piped()
    return [name for one in names for name in _expand(one, ())]


def _expand(name: str, lists: tuple[str, ...]) -> list[str]:
    if name.startswith("@"):
        return _listed(name[1:], lists)
    if glob.has_magic(name) and not os.path.exists(name):
        found = sorted(glob.glob(name))
        if not found:
            raise GdaskError(f"no file matches {name}; check the pattern and the folder")
        return found
    return [name]


def _listed(name: str, lists: tuple[str, ...]) -> list[str]:
    beside = os.path.join(os.path.dirname(lists[-1]), name) if lists else name
    path = name if os.path.exists(name) else beside
    if os.path.realpath(path) in map(os.path.realpath, lists):
        raise GdaskError(f"@{name}: the list contains itself ({' -> '.join((*lists, path))})")
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        origin = f" (named in {lists[-1]})" if lists else ""
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise GdaskError(f"@{name}: the list cannot be read{origin}: {reason}") from error
    return [found for line in _names(lines) for found in _expand(line, (*lists, path))]


def _names(lines: Iterable[str]) -> list[str]:
    """Names without comments: a # at the beginning of a line or after a blank."""
    cut = (f" {line}".partition(" #")[0].strip() for line in lines)
    return [name for name in cut if name]


def _piped() -> list[str]:
    return [] if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty() else _names(sys.stdin)


def split_commas(values: Iterable[str] | None) -> list[str]:
    """Parts of comma-separated arguments."""
    return [part.strip() for value in values or () for part in value.split(",") if part.strip()]


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None,
        command: Callable[[argparse.Namespace], int]) -> int:
    """Parse the command line, run the command, return its exit code: 0 ok, 1 failed, 2 wrong usage.

    A GdaskError or OSError becomes a message; a closed pipe (`| head`) ends quietly; Ctrl-C gives 130.
    """
    try:
        options = parser.parse_args(argv)
    except SystemExit as leave:  # argparse has printed the help or the error
        return int(leave.code or 0)
    try:
        code = command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more to flush at exit
        return 0
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped", file=sys.stderr)
        return 130
    except GdaskError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        print(f"{parser.prog}: {what}", file=sys.stderr)
        return 1


def parser_for(prog: str, description: str, examples: str) -> argparse.ArgumentParser:
    """An argument parser whose help shows the description and the examples as they are written."""
    return argparse.ArgumentParser(prog=prog, description=description, epilog=f"examples:\n{examples}",
                                   formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=True)
