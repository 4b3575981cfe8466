"""gdask why: what a raw file was used for or why not; what a product was made of."""

from __future__ import annotations

import argparse
import os
import sys

from gdask.cli import parser_for, run_command
from gdask.model import UsageError, clean


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = parser_for(
        "gdask why",
        "Of a raw file: the jobs that use it, or the rule that left it out. Of a product or job: "
        "all that went into it, and why. Of two products: what differs.",
        "  gdask why S20170505S0095.fits -o reduced\n"
        "  gdask why reduced/NGC5128/Kshort/all/S20170505S0095_image.fits\n"
        "  gdask why A/stack.fits B/stack.fits",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="raw files, products, job names")
    parser.add_argument(
        "-o",
        "--out",
        metavar="OUT",
        help="folder of results (default: where FILE is, or the working folder)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 2 usage."""
    return run_command(build_parser(), argv, _why)


def _why(args: argparse.Namespace) -> int:
    from gdask.campaign import records, report
    from gdask.campaign.survey import Options, survey

    found = []
    for name in args.files:
        out = args.out or _folder(name)
        campaign, place = survey(Options((), report.find_campaign(out)), lambda text: None)
        known = records.read_records(place.out, campaign)
        job = report.product_of(place.out, name, campaign, known)
        found.append(known.get(job.id) if job else None)
        if len(args.files) != 2 or job is None:
            for line in report.why_lines(place.out, name, campaign, known):
                print(clean(line))
    if len(args.files) == 2 and found[0] and found[1]:
        lines = report.between(found[0], found[1])
        print("\n".join(map(clean, lines or ["nothing that went in differs"])))
    elif len(args.files) == 2 and any(found):
        raise UsageError("two products can be compared, or files of one kind asked for")
    return 0


def _folder(name: str) -> str:
    """Give the folder to look from: that of the file, where it is in the results of a campaign."""
    from gdask.campaign.report import find_campaign

    try:
        return find_campaign(name) if os.path.exists(name) else "."
    except UsageError:
        return "."


if __name__ == "__main__":
    sys.exit(main())
