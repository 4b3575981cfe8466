"""dataselect: choose files by tags and descriptors, make lists of them."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence

from gdask.cli import parser_for, run_command, split_commas
from gdask.cli.lists import expand_files, list_line, write_list
from gdask.dataselect.selection import Selection, parse_expression, select
from gdask.instruments import check_tags

DESCRIPTION = """\
Print the files that have all the tags given, none of the excluded ones, and for which the \
expression is true.
With -o they go to a list, which other commands take as @LIST. `showd --help` lists \
the descriptors."""

EXAMPLES = """\
  dataselect raw/*.fits --tags FLAT --expr "filter_name=='Kshort'" -o flats.list
  dataselect raw/*.fits --expr 'observation_class=="science" and exposure_time==60.'
  dataselect raw/*.fits --expr "ut_datetime>='2017-05-05 02:30:00' and \
object in ('9132', 'NGC5128')"
  dataselect @night.list --xtags CAL | showd -d object,exposure_time

In an expression: descriptors, == != < <= > >=, and, or, not, in, numbers, quoted text, \
dates as text.
Unless --strict, exposure_time matches within 1 % and filter_name is the short name \
(Kshort, not Kshort_G1105)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dataselect`; returns the exit code.

    0 ok, 1 failed (also if a file could not be read), 2 wrong usage.
    """
    parser = build_parser()
    return run_command(parser, argv, select_and_print)


def build_parser() -> argparse.ArgumentParser:
    """The command line of `dataselect`."""
    parser = parser_for("dataselect", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="FILE",
        help="FITS files, @LISTs of them; none: names from a pipe",
    )
    parser.add_argument(
        "-t", "--tags", action="append", metavar="TAG[,TAG...]", help="tags that a file must have"
    )
    parser.add_argument(
        "--xtags", action="append", metavar="TAG[,TAG...]", help="tags that a file must not have"
    )
    parser.add_argument(
        "--expr",
        dest="expression",
        metavar="EXPRESSION",
        help="what must be true of the descriptors",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="exact exposure times and wavelengths, filter names with component numbers",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="write the names to a list instead of printing them"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="with -o: print them, too")
    parser.add_argument(
        "-d", "--debug", action="store_true", help="show how the command line was understood"
    )
    return parser


def select_and_print(options: argparse.Namespace) -> int:
    """Select, then print or write."""
    tags, xtags = split_commas(options.tags), split_commas(options.xtags)
    if options.debug:
        print(options, file=sys.stderr)
    check_tags([*tags, *xtags])
    expression = (
        parse_expression(options.expression, options.strict)
        if options.expression is not None
        else None
    )
    if not options.inputs and sys.stdin is not None and sys.stdin.isatty():
        print("dataselect: no files given (dataselect --help)", file=sys.stderr)
        return 2
    selection = select(expand_files(options.inputs, stdin=True), tags, xtags, expression)
    if options.output:
        about = (
            f"Includes tags: {', '.join(tags) or 'any'}",
            f"Excludes tags: {', '.join(xtags) or 'none'}",
            f"Descriptor expression: {' '.join((options.expression or 'none').split())}",
        )
        write_list(options.output, about, selection.files)
        count = len(selection.files)
        print(f"{count} file{'' if count == 1 else 's'} in {options.output}", file=sys.stderr)
    if options.verbose or not options.output:
        for name in selection.files:
            print(list_line(name))
    if not selection.files:
        print(f"dataselect: no file matches{_advice(tags, selection)}", file=sys.stderr)
    return 1 if selection.skipped else 0


def _advice(tags: list[str], selection: Selection) -> str:
    """For a tag that no file has, the closest one that some file has."""
    for tag in tags:
        if selection.seen and tag.upper() not in selection.seen:
            close = difflib.get_close_matches(tag.upper(), sorted(selection.seen), n=1)
            return f": none has the tag {tag}{f' (is it {close[0]}?)' if close else ''}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
