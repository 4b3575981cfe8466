"""typewalk: list the files of a folder with their tags."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence

from gdask.cli import parser_for, run_command, split_commas
from gdask.cli.lists import write_list
from gdask.headers import read_headers
from gdask.instruments import check_tags, tags
from gdask.model import GdaskError, UsageError, clean, clean_lines, folders_below

DESCRIPTION = """\
List the FITS files of a folder, and of the folders below it, with their tags \
(what kind of data they are).
With --tags only files that have all of them are shown; with --or, files that have any of them."""

EXAMPLES = """\
  typewalk -d raw                                   everything in raw and below
  typewalk -n --tags GSAOI FLAT                     flats in this folder only
  typewalk -d raw --tags FLAT DARK --or -o cals.list
  typewalk -d raw --xtags CAL                       all but calibrations"""

FITS_NAME = r".*\.(fits|fit|fts)(\.(gz|bz2|fz))?$|.*\.fz$"
INDENT = " " * 5
#: Column where the tags begin, as in DRAGONS' listing.
COLUMN = 40


def main(argv: Sequence[str] | None = None) -> int:
    """Run `typewalk`; returns the exit code: 0 ok, 1 files cannot be read, 2 wrong usage."""
    return run_command(build_parser(), argv, walk)


def build_parser() -> argparse.ArgumentParser:
    """The command line of `typewalk`."""
    parser = parser_for("typewalk", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "-d", "--dir", default=".", metavar="DIR", help="folder to look into (default: this one)"
    )
    parser.add_argument("-n", "--norecurse", action="store_true", help="not the folders below it")
    parser.add_argument(
        "-f",
        "--filemask",
        type=_regex,
        default=_regex(FITS_NAME, re.IGNORECASE | re.DOTALL),
        metavar="REGEX",
        help="only files whose name matches this regular expression (default: all FITS names)",
    )
    parser.add_argument(
        "--tags", nargs="+", metavar="TAG", help="only files that have all these tags"
    )
    parser.add_argument(
        "--or",
        "--any",
        dest="any",
        action="store_true",
        help="with --tags: files that have any of them",
    )
    parser.add_argument(
        "--xtags", nargs="+", metavar="TAG", help="no files that have any of these tags"
    )
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="write the files shown to a list, for use as @FILE"
    )
    parser.add_argument(
        "-b", "--batch", type=int, metavar="N", help="accepted for compatibility, without effect"
    )
    return parser


def walk(options: argparse.Namespace) -> int:
    """List the folder."""
    if not os.path.isdir(options.dir):
        raise UsageError(f"{options.dir}: no such folder")
    wanted, unwanted = (set(_upper(names)) for names in (options.tags, options.xtags))
    check_tags(sorted(wanted | unwanted))
    shown: list[str] = []
    unreadable: list[str] = []
    for folder, names in folders(options.dir, options.norecurse):
        first = True
        for name in filter(options.filemask.match, names):
            path = os.path.join(folder, name)
            found = _tags(path, unreadable)
            if found is None or found & unwanted or not _matches(found, wanted, options.any):
                continue
            if first:
                print(f"\n{_colour('36', 'directory:')}  {clean(folder)}")
                first = False
            print(line(clean(name), found))
            shown.append(path)
    if options.out:
        from gdask import __version__

        tags_text = " ".join(_upper(options.tags)) or "any"
        about = (
            f"Written by typewalk, gdask {__version__}, {time.ctime()}",
            f"Tags: {tags_text}{' (any of them)' if options.any else ''}",
            f"Excluded tags: {' '.join(_upper(options.xtags)) or 'none'}",
        )
        write_list(options.out, about, shown)
        print(
            f"{len(shown)} file{'' if len(shown) == 1 else 's'} in {options.out}", file=sys.stderr
        )
    elif not shown:
        print(f"typewalk: no file below {options.dir} has these tags", file=sys.stderr)
    if unreadable:
        count = f"{len(unreadable)} file{'' if len(unreadable) == 1 else 's'}"
        print(f"typewalk: {count} cannot be read: {', '.join(unreadable)}", file=sys.stderr)
    return 1 if unreadable else 0


def folders(top: str, only_top: bool) -> Iterator[tuple[str, list[str]]]:
    """Folders from `top` down, in order, each with the names of its files, sorted."""
    for folder, names in folders_below(top):
        yield folder, names
        if only_top:
            return


def line(name: str, found: set[str]) -> str:
    """A file and its tags; a long name gets a line of its own."""
    tags_text = _colour("91", " ".join(f"({tag})" for tag in sorted(found)))
    if len(name) > COLUMN - len(INDENT) - 2:
        return f"{INDENT}{_colour('94', name)}\n{INDENT}{'.' * (COLUMN - len(INDENT))} {tags_text}"
    dots = "." * (COLUMN - len(INDENT) - len(name) - 1)
    return f"{INDENT}{_colour('94', name)} {dots} {tags_text}"


def _tags(path: str, unreadable: list[str]) -> set[str] | None:
    """Give the tags of a file; None, with a message, of one that is damaged or of no instrument
    of gdask's. One that is damaged is added to `unreadable`."""
    try:
        return tags(path)
    except GdaskError as error:
        sys.stdout.flush()
        print(f"{INDENT}{clean_lines(error)}", file=sys.stderr)
        try:
            read_headers(path)
        except GdaskError:
            unreadable.append(clean(path))
        return None


def _matches(found: set[str], wanted: set[str], any_of: bool) -> bool:
    return not wanted or (bool(found & wanted) if any_of else wanted <= found)


def _upper(names: list[str] | None) -> list[str]:
    return [name.upper() for name in split_commas(names)]


def _regex(text: str, flags: int = 0) -> re.Pattern[str]:
    try:
        return re.compile(text, flags)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"not a regular expression: {text} ({error})") from error


def _colour(code: str, text: str) -> str:
    wanted = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return f"\033[{code}m{text}\033[0m" if wanted else text


if __name__ == "__main__":
    sys.exit(main())
