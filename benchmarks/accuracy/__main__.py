"""Simulate nights, reduce them, measure the stacks against the truth, report."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.accuracy import engines, nights, report
from benchmarks.accuracy.cases import CASES, Case, measured_catalog
from benchmarks.accuracy.cosmic_rays import rejection_figures
from benchmarks.accuracy.matched_stack import read_matched_stack
from benchmarks.accuracy.measure import figures_of_merit

#: Cases that --engines reduces unless --only names others.
ENGINE_CASES = ("gsaoi-crowded-catalog",)


def main(argv: list[str] | None = None) -> int:
    """Run the cases; 0 when all were measured, whether they reach their targets or not."""
    parser = _parser()
    args = parser.parse_args(argv)
    wanted = args.only or (ENGINE_CASES if args.engines is not None else [""])
    cases = [case for case in CASES if any(part in case.name for part in wanted)]
    if args.engines is not None:
        cases = [case for case in cases if not case.twin]
    if not cases:
        names = ", ".join(case.name for case in CASES)
        parser.error(f"--only {args.only}: no such case; there are {names}")
    out = Path(args.out).resolve() / args.size
    out.mkdir(parents=True, exist_ok=True)
    if args.engines is not None:
        return engines.run(cases, args.engines or engines.WAYS, args.size, out)
    results: dict[str, dict[str, float]] = {}
    calibrations: dict[Path, Path] = {}
    for case in cases:
        started = time.monotonic()
        results[case.name] = run_case(case, args.size, out, calibrations)
        print(f"{case.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        table = report.write(results, args.size, out)
    print(table.read_text())
    return 0


def _parser() -> argparse.ArgumentParser:
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
    ways = (engines.DEFAULT, *engines.WAYS)
    parser.add_argument(
        "--engines",
        nargs="*",
        choices=ways,
        metavar="ENGINE:INTERPOLATION",
        help=f"compare ways of resampling, on {', '.join(ENGINE_CASES)} unless --only names other"
        f" cases: {', '.join(ways)} (default: all but {engines.DEFAULT})",
    )
    return parser


def run_case(case: Case, size: str, out: Path, calibrations: dict[Path, Path]) -> dict[str, float]:
    """Figures of one case. calibrations: those made so far, by night."""
    if case.twin:
        return _run_twin(case, size, out, calibrations)
    folder = nights.simulated_night(case, size, out)
    if folder not in calibrations:
        calibrations[folder] = nights.calibrate(case, folder)
    work = out / "stacks" / case.name
    reduced = nights.reduce_science(case, folder, calibrations[folder], work)
    figures, plots = figures_of_merit(
        read_matched_stack(reduced.image, reduced.truth), measured_catalog(case)
    )
    report.plot(case.name, plots, out)
    return figures | {"seconds": reduced.seconds, "memory_mb": reduced.memory}


def _run_twin(case: Case, size: str, out: Path, calibrations: dict[Path, Path]) -> dict[str, float]:
    """Figures of the same night with and without cosmic rays.

    Both are reduced with the calibrations of the one without.
    """
    clean = nights.simulated_night(case, size, out, cr_rate=0.0)
    hit = nights.simulated_night(case, size, out)
    if clean not in calibrations:
        calibrations[clean] = nights.calibrate(case, clean)

    def reduce(cosmics: bool, *parameters: str) -> Path:
        name = f"{'hit' if cosmics else 'clean'}{'_all' if parameters else ''}"
        work = out / "stacks" / case.name / name
        folder = hit if cosmics else clean
        return nights.reduce_science(case, folder, calibrations[clean], work, *parameters).image

    return rejection_figures(read_matched_stack(reduce(False), clean / "truth"), reduce)


if __name__ == "__main__":
    sys.exit(main())
