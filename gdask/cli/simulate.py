"""`gdask simulate gsaoi|f2|campaign OUT`: raw frames as the archive has them, and their truth."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gdask.simulate
from gdask.model import GdaskError
from gdask.simulate.campaign_options import CAMPAIGN, FAULTS
from gdask.simulate.options import F2, GSAOI, OptionTable

ABOUT = {
    "gsaoi": "a GSAOI imaging night: dome flats, a standard, target and offset sky",
    "f2": "a FLAMINGOS-2 imaging night: darks, GCAL flats, dithers on the target or offset to sky",
    "campaign": "several nights of both instruments, targets and filters, with faults to be found",
}
CAMPAIGN_TEXT = """\
A campaign is what a survey downloads: folders of nights with science frames of several targets and
filters, their calibrations, md5sum.txt, and, with --faults, what goes wrong in real ones.

  OUT/raw/YYYYMMDD/       files of a night, numbered in order of time; raw/bpm*.fits is GSAOI's mask
  OUT/truth/files.ecsv    one row for each file: what it is; faults.json: what is wrong with which
  OUT/truth/gsaoi_.../    the truth about a target in a filter, as of a single simulated night

Examples:
  gdask simulate campaign survey
  gdask simulate campaign survey --nights 3 --targets 2 --filters Kshort,J --faults all
  gdask simulate campaign survey --instruments f2 --faults cloud,trail --seed 7

--list-faults says what kinds of faults there are.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns 0 when all was written, 1 when a file could not be, 2 when an option cannot be.
    """
    try:
        return _simulate(**vars(_parser().parse_args(argv)))
    except GdaskError as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"simulate: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gdask simulate", description="Raw nights and campaigns with known truth."
    )
    commands = parser.add_subparsers(dest="instrument", required=True)
    for table in (GSAOI, F2, CAMPAIGN):
        is_campaign = table is CAMPAIGN
        command = commands.add_parser(
            table.name,
            help=ABOUT[table.name],
            description=CAMPAIGN_TEXT if is_campaign else None,
            formatter_class=_CampaignHelp if is_campaign else _Help,
        )
        _add_options(command, table)
        if is_campaign:
            command.add_argument(
                "--list-faults", action=_ListFaults, help="list the kinds of faults, and end"
            )
    return parser


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that gives the defaults."""


class _CampaignHelp(_Help, argparse.RawDescriptionHelpFormatter):
    """Help that gives the defaults and leaves the lines of the description."""


class _ListFaults(argparse.Action):
    """An option that lists the kinds of faults and ends the command."""

    def __init__(self, option_strings: Sequence[str], dest: str, **others: Any) -> None:
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "nargs": 0} | others
        super().__init__(option_strings, argparse.SUPPRESS, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        for kind, about in FAULTS.items():
            print(f"{kind:<12} {about}")
        parser.exit()


def _add_options(command: argparse.ArgumentParser, table: OptionTable) -> None:
    """Add the arguments and options of an instrument's command."""
    command.add_argument("out", help="folder: raw frames go to OUT/raw, truth to OUT/truth")
    command.add_argument("-q", "--quiet", action="store_true", help="no progress on standard error")
    for name, default in table.defaults._asdict().items():
        flag, about = "--" + name.replace("_", "-"), table.help[name]
        if isinstance(default, bool):
            command.add_argument(flag, action="store_true", help=about)
            continue
        choices, kind = table.choices.get(name), type(default)
        command.add_argument(
            flag,
            type=kind,
            default=default,
            choices=choices,
            help=about,
            metavar=None if choices else kind.__name__.upper(),
        )


def _say_faults(path: Path, quiet: bool) -> None:
    """Say how many files have faults, and, even if quiet, which kinds found no place."""
    faults = json.loads(path.read_text())
    if faults["kinds"] and not quiet:
        count = len(faults["files"])
        print(f"simulate campaign: {count} files have faults: {path}", file=sys.stderr)
    for kind, why in faults["left_out"].items():
        print(f"simulate campaign: fault {kind} left out: {why}", file=sys.stderr)


def _simulate(instrument: str, out: str, quiet: bool, **options: object) -> int:
    """Simulate a night and say where it is; returns 0."""
    start, done = time.monotonic(), 0

    def progress(file: str) -> None:
        nonlocal done
        done += 1
        print(f"\rsimulate {instrument}: {done} {file}", end="", file=sys.stderr, flush=True)

    live = not quiet and sys.stderr.isatty()
    simulator = getattr(gdask.simulate, f"simulate_{instrument}")
    paths = simulator(out, progress=progress if live else None, **options)
    if not quiet:
        print(
            ("\r" if live else "") + f"simulate {instrument}: {len(paths)} raw files in {out}/raw, "
            f"truth in {out}/truth ({time.monotonic() - start:.1f} s)",
            file=sys.stderr,
        )
    if instrument == "campaign":
        _say_faults(Path(out) / "truth" / "faults.json", quiet)
    return 0
