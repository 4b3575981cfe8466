"""showd: show descriptors of files in a table."""

from __future__ import annotations

import argparse
import csv
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from gdask.cli import parser_for, run_command, split_commas
from gdask.cli.lists import expand_files
from gdask.headers.numbers import names as number_names
from gdask.headers.numbers import read_numbers
from gdask.instruments import DESCRIPTORS, View, view
from gdask.instruments.view import unknown_descriptor
from gdask.model import GdaskError, UsageError, clean, clean_lines

DESCRIPTION = """\
Show values of descriptors (exposure_time, filter_name ...) of files, one file per line; of products
also their numbers (fwhm, zero_point, depth_5sigma ...)."""

EXAMPLES = """\
  showd raw/*.fits -d filter_name,exposure_time,object
  showd @science.list -d ut_datetime --csv
  dataselect raw/*.fits --tags FLAT | showd -d object
  showd *_image.fits -d fwhm,depth_5sigma,noise_ratio,gates

descriptors:
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `showd`; returns the exit code.

    0 ok, 1 failed (also if a file could not be read), 2 wrong usage.
    """
    return run_command(build_parser(), argv, show)


def build_parser() -> argparse.ArgumentParser:
    """The command line of `showd`."""
    names = textwrap.fill(", ".join(DESCRIPTORS), 100, initial_indent="  ", subsequent_indent="  ")
    of_products = textwrap.fill(
        ", ".join(_numbers()), 100, initial_indent="  ", subsequent_indent="  "
    )
    epilog = f"{EXAMPLES}{names}\n\nnumbers of products:\n{of_products}"
    parser = parser_for("showd", DESCRIPTION, epilog)
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="FILE",
        help="FITS files, @LISTs of them; none: names from a pipe",
    )
    parser.add_argument(
        "-d",
        "--descriptors",
        required=True,
        action="append",
        metavar="NAME[,NAME...]",
        help="what to show",
    )
    parser.add_argument(
        "--long", action="store_true", help="full values: filter names with component numbers ..."
    )
    parser.add_argument(
        "--csv", action="store_true", help="comma-separated values instead of a table"
    )
    parser.add_argument(
        "--debug", action="store_true", help="show how the command line was understood"
    )
    return parser


def show(options: argparse.Namespace) -> int:
    """Read the headers, print the table."""
    names = split_commas(options.descriptors)
    if options.debug:
        print(options, file=sys.stderr)
    for name in names:
        if name not in DESCRIPTORS and name not in _numbers():
            raise UsageError(unknown_descriptor(name, (*DESCRIPTORS, *_numbers())))
    if not options.inputs and sys.stdin is not None and sys.stdin.isatty():
        print("showd: no files given (showd --help)", file=sys.stderr)
        return 2
    rows, failed = [["filename", *names]], 0
    for path in expand_files(options.inputs, stdin=True):
        try:
            file = view(path)
            values = [str(_value(file, name, not options.long)) for name in names]
            rows.append([path, *values] if options.csv else [clean(one) for one in (path, *values)])
        except GdaskError as error:
            failed += 1
            print(clean_lines(f"showd: skipped: {error}"), file=sys.stderr)
    if options.csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
    else:
        print(table(rows))
    return 1 if failed else 0


def table(rows: list[list[str]]) -> str:
    """Columns three blanks apart, the heading between lines.

    The first column is aligned to the left, the others to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    rule = "-" * (sum(widths) + 3 * (len(widths) - 1))
    lines = [
        "   ".join(
            [
                row[0].ljust(widths[0]),
                *(text.rjust(width) for text, width in zip(row[1:], widths[1:])),
            ]
        )
        for row in rows
    ]
    return "\n".join([rule, lines[0], rule, *lines[1:]])


def _numbers() -> list[str]:
    """Give the names of numbers of products that are no descriptors."""
    return [name for name in ("kind", *number_names()) if name not in DESCRIPTORS]


def _value(file: View, name: str, pretty: bool) -> Any:
    if name not in DESCRIPTORS:
        return read_numbers(file.phu).get(name)
    return file(name, pretty=pretty) if file.accepts(name, "pretty") else file(name)


if __name__ == "__main__":
    sys.exit(main())
