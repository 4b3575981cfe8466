"""`python -m benchmarks.accuracy`: simulate, reduce, measure, report."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.accuracy import nights, rejection, report
from benchmarks.accuracy.cases import CASES, Case
from benchmarks.accuracy.measure import measure
from benchmarks.accuracy.scene import read


def main(argv: list[str] | None = None) -> int:
    """Run the cases; 0 when all were measured, whether they reach their targets or not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument(
        "--size",
        choices=("full", "small"),
        default="small",
        help="size of the nights (default: small)",
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="cases whose names contain this; may be repeated",
    )
    parser.add_argument(
        "--out",
        default="accuracy",
        metavar="DIR",
        help="nights, stacks, table and plots (default: ./accuracy)",
    )
    args = parser.parse_args(argv)
    cases = [
        case for case in CASES if not args.only or any(part in case.name for part in args.only)
    ]
    if not cases:
        parser.error(
            f"--only {args.only}: no such case; there are {', '.join(case.name for case in CASES)}"
        )
    out = Path(args.out).resolve() / args.size
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, float]] = {}
    calibrations: dict[Path, Path] = {}
    for case in cases:
        started = time.monotonic()
        results[case.name] = run(case, args.size, out, calibrations)
        print(f"{case.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        table = report.write(results, args.size, out)
    print(table.read_text())
    return 0


def run(case: Case, size: str, out: Path, calibrations: dict[Path, Path]) -> dict[str, float]:
    """One case: its figures. calibrations: those made so far, by night."""
    if case.twin:
        return _twin(case, size, out, calibrations)
    folder = nights.night(case, size, out)
    if folder not in calibrations:
        calibrations[folder] = nights.calibrate(case, folder)
    reduced = nights.stack(case, folder, calibrations[folder], out / "stacks" / case.name)
    figures, plots = measure(read(reduced.image, reduced.truth), case.catalog)
    report.plot(case.name, plots, out)
    return figures | {"seconds": reduced.seconds, "memory_mb": reduced.memory}


def _twin(case: Case, size: str, out: Path, calibrations: dict[Path, Path]) -> dict[str, float]:
    """The same night with and without cosmic rays; both are reduced with the calibrations of the one without."""
    clean = nights.night(case, size, out, cr_rate=0.0)
    hit = nights.night(case, size, out)
    if clean not in calibrations:
        calibrations[clean] = nights.calibrate(case, clean)

    def reduce(cosmics: bool, *parameters: str) -> Path:
        work = (
            out
            / "stacks"
            / case.name
            / f"{'hit' if cosmics else 'clean'}{'_all' if parameters else ''}"
        )
        return nights.stack(
            case, hit if cosmics else clean, calibrations[clean], work, *parameters
        ).image

    return rejection.compare(read(reduce(False), clean / "truth"), reduce)


if __name__ == "__main__":
    sys.exit(main())
