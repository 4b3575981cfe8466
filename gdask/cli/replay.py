"""replay: make a product again from what it says of itself, and compare."""

from __future__ import annotations

import argparse
import os
import sys

from gdask.cli import parser_for, run_command
from gdask.model import UsageError, clean


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = parser_for(
        "replay",
        "Make a product again, in a temporary folder, from the inputs, calibrations, recipe "
        "and parameters that it names,\n"
        "and compare: every byte of data, tables and headers but times.\n"
        "exit code: 0 the same, 1 something differs or an input is missing or changed, 2 wrong "
        "usage",
        "  gdask replay S20170505S0095_image.fits\n  gdask replay product.fits --inputs "
        "/archive/2017 calibrations",
    )
    parser.add_argument("product", help="a product of reduce")
    parser.add_argument(
        "-i",
        "--inputs",
        metavar="FOLDER",
        nargs="+",
        action="extend",
        default=[],
        help=(
            "folders to look for inputs in, and below (also: the working folder, that of the "
            "product, and of a campaign's product its results and raw files)"
        ),
    )
    parser.add_argument(
        "-r",
        "--recipe",
        metavar="FILE.py:FUNCTION",
        help="your recipe file, if the product was made with one",
    )
    parser.add_argument(
        "-k", "--keep", metavar="FOLDER", help="write the new product to this folder and keep it"
    )
    parser.add_argument(
        "--show-recipe",
        action="store_true",
        help="print the text of the recipe, and do nothing else",
    )
    parser.add_argument(
        "--cluster", metavar="SPEC", default="threads", help="where to compute, as in reduce"
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show the log of the reduction"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 the same, 1 something differs or cannot be replayed, 2 usage."""
    return run_command(build_parser(), argv, _replay)


def _replay(args: argparse.Namespace) -> int:
    from gdask import logutils
    from gdask.reduction.replay import account_of, replay

    if args.show_recipe:
        print("\n".join(map(clean, account_of(args.product).source)))
        return 0
    logutils.config(None, "standard" if args.verbose else "quiet")
    folders = [*args.inputs, *_of_campaign(args.product)]
    found = replay(args.product, folders, args.recipe, args.cluster, args.keep)
    for text in found.differences:
        print(clean(f"{args.product}: {text}"))
    if found.versions:
        print(clean(f"{args.product}: versions: {'; '.join(found.versions)}"))
    if not found.differences:
        print(f"{args.product}: the same, byte for byte (times apart)")
    return int(bool(found.differences))


def _of_campaign(product: str) -> list[str]:
    """Give the folders where inputs of a product of a campaign are: its results, its raw files."""
    from gdask.campaign.records import known_places
    from gdask.campaign.report import find_campaign

    try:
        out = find_campaign(product)
    except UsageError:
        return []
    return [out, *(place for place in known_places(out) if os.path.isdir(place))]


if __name__ == "__main__":
    sys.exit(main())
