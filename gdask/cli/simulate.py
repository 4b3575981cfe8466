"""`gdask simulate INSTRUMENT OUT`: raw frames as the archive has them, and their truth."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import gdask.simulate
from gdask.model import GdaskError
from gdask.simulate.options import F2, GSAOI, OptionTable

ABOUT = {
    "gsaoi": "a GSAOI imaging night: dome flats, a standard, target and offset sky",
    "f2": "a FLAMINGOS-2 imaging night: darks, GCAL flats, dithers on the target or offset to sky",
}


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
        prog="gdask simulate", description="Raw nights with known truth."
    )
    commands = parser.add_subparsers(dest="instrument", required=True)
    for table in (GSAOI, F2):
        command = commands.add_parser(
            table.name,
            help=ABOUT[table.name],
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        _add_options(command, table)
    return parser


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
    return 0
