"""gdask report: pages that say how a campaign, or a folder of products, stands."""

from __future__ import annotations

import argparse
import sys

from gdask.cli import parser_for, run_command
from gdask.model import UsageError, clean


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = parser_for(
        "gdask report",
        "Write OUT/report, a folder of pages for a browser: what needs a decision, targets, "
        "nights,\ncalibrations, jobs, and a page for each product with pictures. OUT is a campaign "
        "(gdask run)\nor a folder with products of reduce. Only pages that have changed are "
        "written again;\npictures that are missing are made.",
        "  gdask report reduced\n  gdask report reduced --zip\n"
        "  gdask report reduced --against last_year/reduced",
    )
    parser.add_argument("out", metavar="OUT", nargs="?", default=".", help="folder of results")
    parser.add_argument(
        "--zip", action="store_true", help="write OUT/report.zip, too; not with --one-file"
    )
    parser.add_argument(
        "--one-file",
        action="store_true",
        help="write OUT/report.html, too: all pages and pictures in one file, of at most 20 "
        "stacks and calibrations (sky-subtracted frames do not count); not with --zip",
    )
    parser.add_argument(
        "--internal",
        action="store_true",
        help="with absolute paths and names of hosts and users, which are left out otherwise",
    )
    parser.add_argument(
        "--against",
        metavar="OLD",
        help="say what has changed in numbers: OLD is a folder of results or a report.json",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 1 failed, 2 usage."""
    return run_command(build_parser(), argv, _report)


def _report(args: argparse.Namespace) -> int:
    from gdask.report import write_report

    if args.zip and args.one_file:
        raise UsageError("--zip and --one-file: give one of them")
    first = write_report(
        args.out,
        internal=args.internal,
        old=args.against,
        as_zip=args.zip,
        as_one_file=args.one_file,
        say=lambda text: print(clean(text), file=sys.stderr),
    )
    print(clean(first))
    return 0


if __name__ == "__main__":
    sys.exit(main())
