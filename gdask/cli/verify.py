"""verify: whether files are whole and say what they are."""

from __future__ import annotations

import argparse
import os
import sys

from gdask.cli import parser_for, run_command
from gdask.cli.lists import expand_files
from gdask.model import clean


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = parser_for(
        "verify",
        "Check files, raw or reduced: checksums, structure, pixels, units, WCS, provenance. "
        "One line for each fault.\n"
        "exit code: 0 all is well, 1 something is wrong, 2 wrong usage",
        "  gdask verify S20170505S0095_image.fits\n  gdask verify raw\n  gdask verify "
        "@science.list",
    )
    parser.add_argument("files", nargs="*", help="FITS files, folders, or @FILE for a list of them")
    parser.add_argument("-q", "--quiet", action="store_true", help="print faults only")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 all is well, 1 something is wrong, 2 usage."""
    parser = build_parser()
    return run_command(parser, argv, lambda args: _verify(parser, args))


def _verify(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from gdask.cal_service import fits_files
    from gdask.reduction.verify import verify

    if not args.files:
        parser.error("no files; give file names, folders or @LIST")
    bad = total = 0
    for name in expand_files(args.files):
        folder = os.path.isdir(name)
        paths = [str(path) for path in fits_files(name)] if folder else [name]
        if folder and not paths:
            print(f"{clean(name)}: no FITS file in this folder", file=sys.stderr)
            bad += 1
        for path in paths:
            report = verify(path)
            total, bad = total + 1, bad + bool(report.faults)
            for fault in report.faults:
                print(clean(fault))
            if not report.faults and not args.quiet:
                print(clean(f"{path}: well ({report.kind})"))
    if not args.quiet and total > 1:
        print(f"{total} files, {bad} with faults")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
