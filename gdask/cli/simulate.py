"""`gdask simulate gsaoi OUT`: raw frames as the archive holds them, and the truth about them."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from gdask.model import GdaskError
from gdask.simulate.options import CHOICES, HELP, GsaoiOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; 0 when all was written, 2 when an option cannot be."""
    arguments = vars(_parser().parse_args(argv))
    arguments.pop("instrument")
    try:
        return _gsaoi(**arguments)
    except GdaskError as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"simulate: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gdask simulate", description="Raw nights with known truth.")
    verbs = parser.add_subparsers(dest="instrument", required=True)
    gsaoi = verbs.add_parser("gsaoi", help="a GSAOI imaging night: dome flats, a standard, target and offset sky",
                             formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    gsaoi.add_argument("out", help="folder: raw frames go to OUT/raw, truth to OUT/truth")
    gsaoi.add_argument("-q", "--quiet", action="store_true", help="no progress on standard error")
    for name, default in GsaoiOptions()._asdict().items():
        flag = "--" + name.replace("_", "-")
        if isinstance(default, bool):
            gsaoi.add_argument(flag, action="store_true", help=HELP[name])
        else:
            gsaoi.add_argument(flag, type=type(default), default=default, choices=CHOICES.get(name), help=HELP[name],
                               metavar=None if name in CHOICES else type(default).__name__.upper())
    return parser


def _gsaoi(out: str, quiet: bool, **options: object) -> int:
    from gdask.simulate.gsaoi import simulate_gsaoi

    start, done = time.monotonic(), 0

    def progress(file: str) -> None:
        nonlocal done
        done += 1
        print(f"\rsimulate gsaoi: {done} {file}", end="", file=sys.stderr, flush=True)

    live = not quiet and sys.stderr.isatty()
    paths = simulate_gsaoi(out, progress=progress if live else None, **options)
    if not quiet:
        print(("\r" if live else "") + f"simulate gsaoi: {len(paths)} raw files in {out}/raw, truth in {out}/truth "
              f"({time.monotonic() - start:.1f} s)", file=sys.stderr)
    return 0
