"""gdask why: what a raw file was used for or why not; what a product was made of."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from gdask.cli import parser_for, run_command
from gdask.model import GdaskError, UsageError, clean


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = parser_for(
        "gdask why",
        "Of a raw file: the jobs that use it, or the rule that left it out. Of a product or job: "
        "all that went into it, and why; of one that reduce has made without a campaign what its "
        "own tables say. Of two products: what differs.",
        "  gdask why S20170505S0095.fits -o reduced\n"
        "  gdask why reduced/NGC5128/Kshort/all/S20170505S0095_image.fits\n"
        "  gdask why S20170505S0095_image.fits\n"
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
    if not args.out and all(_is_alone(name) for name in args.files):
        return _of_products(args.files)
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


def _of_products(names: Sequence[str]) -> int:
    """Say what products were made of that no campaign has made, by their own tables."""
    from gdask.reduction.made_of import made_of_lines

    told = [list(made_of_lines(name)) for name in names]
    if len(told) != 2:
        print("\n".join(clean(line) for lines in told for line in lines))
        return 0
    first, second = (lines[1:] for lines in told)
    lines = [f"only the first: {line.strip()}" for line in first if line not in second]
    lines += [f"only the second: {line.strip()}" for line in second if line not in first]
    print("\n".join(map(clean, lines or ["nothing that went in differs"])))
    return 0


def _is_alone(name: str) -> bool:
    """Tell whether a name is that of a product outside the results of any campaign."""
    from gdask.campaign.report import find_campaign

    if not os.path.isfile(name):
        return False
    try:
        find_campaign(name)
    except UsageError:
        return _has_account(name)
    return False


def _has_account(name: str) -> bool:
    from gdask.reduction.replay import account_of

    try:
        return bool(account_of(name))
    except GdaskError:
        return False


def _folder(name: str) -> str:
    """Give the folder to look from: that of the file, where it is in the results of a campaign."""
    from gdask.campaign.report import find_campaign

    try:
        return find_campaign(name) if os.path.exists(name) else "."
    except UsageError:
        return "."


if __name__ == "__main__":
    sys.exit(main())
