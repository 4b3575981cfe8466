"""Time and peak memory of each command and phase, beside those of another version of gdask.

    python -m benchmarks.phases RAW... [--repeat N] [--threads N] [--other PYTHON] [--json FILE]

reduces a night (raw frames with their calibrations, as `gdask benchmark` chooses them) N times
after a first run that is not counted. With --other, the interpreter of an environment that has
another version of gdask does the same, in turns, so that both meet the same machine; one from
before `reduce --account` is compared by commands alone. Figures are medians: CPU seconds (user and
system of the whole tree), seconds, peak memory (MB), bytes read and written per raw byte. The names
in the JSON are as asv has them: time_science_phase_1, peakmem_science_phase_1,
track_read_science_phase_1.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gdask.cluster import available_cores

from gdask.cli.lists import expand_files
from gdask.model import GdaskError
from gdask.reduction.benchmark import (
    Place,
    Plan,
    measure_command,
    plan,
    prepare_folder,
    run_command,
)

#: Figures of one command or phase: cpu, wall (s), peak (bytes), and where known read, written
#: (bytes per raw byte).
Figures = dict[str, float]
#: The name of each figure in asv's manner.
ASV_NAMES = {
    "cpu": "time",
    "wall": "track_wall",
    "peak": "peakmem",
    "read": "track_read",
    "written": "track_written",
}


def main(argv: list[str] | None = None) -> None:
    """Measure, print a table, and save the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", help="raw frames with their calibrations, or @LIST")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--other", metavar="PYTHON", help="interpreter with another gdask")
    parser.add_argument("--json", help="write the figures to this file")
    given = parser.parse_args(argv)
    night = plan(expand_files(given.files))
    pythons = [sys.executable, *([given.other] if given.other else [])]
    runs: dict[str, list[dict[str, Figures]]] = {python: [] for python in pythons}
    for number in range(given.repeat + 1):
        # The one that goes first finds other caches than the one that follows.
        for python in pythons if number % 2 else reversed(pythons):
            figures = one_run(night, python, given.threads)
            if number:
                runs[python].append(figures)
    medians = [medians_of(runs[python]) for python in pythons]
    print(table(medians[0], medians[1] if given.other else None))
    if given.json:
        names = [asv_names(each) for each in medians]
        text = json.dumps(dict(zip(("this", "other"), names, strict=False)), indent=1)
        Path(given.json).write_text(text + "\n")


def one_run(night: Plan, python: str, threads: int) -> dict[str, Figures]:
    """Reduce the night in a folder of its own; give the figures of commands and phases by name."""
    found: dict[str, Figures] = {}
    folder = Path(tempfile.mkdtemp(prefix="phases-", dir=Path.cwd()))
    try:
        place = Place(folder / "run", "threads", threads, python=python)
        prepare_folder(night, place.folder)
        for command in night.commands:
            if gives_account(python):
                found |= figures_of(measure_command(command, place))
                continue
            taken, failure = run_command(command, place)
            if failure:
                raise GdaskError(failure)
            found |= figures_of(taken)
    finally:
        shutil.rmtree(folder)
    return found


@functools.cache
def gives_account(python: str) -> bool:
    """Tell whether the gdask of an interpreter knows `reduce --account`."""
    line = [python, "-P", "-m", "gdask.cli.reduce", "--help"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    given = os.environ if python == sys.executable else environment
    done = subprocess.run(line, env=given, capture_output=True, text=True, check=True)
    return "--account" in done.stdout


def figures_of(taken: Mapping[str, Any]) -> dict[str, Figures]:
    """Give the figures of a command (as `measure_command` gives it) and of its phases by name."""
    account = taken.get("account", {"phases": ()})
    parts = {taken["name"]: taken | _per_raw(account)}
    parts |= {f"{taken['name']} {phase['name']}": phase for phase in account["phases"]}
    return {
        name: {
            "cpu": one["user"] + one["system"],
            "wall": one["seconds"],
            "peak": one["memory"],
            **({"read": one["read_per_raw"]} if "read_per_raw" in one else {}),
            **({"written": one["written_per_raw"]} if "written_per_raw" in one else {}),
        }
        for name, one in parts.items()
    }


def _per_raw(account: Mapping[str, Any]) -> dict[str, float]:
    return {name: account[name] for name in ("read_per_raw", "written_per_raw") if name in account}


def medians_of(runs: list[dict[str, Figures]]) -> dict[str, Figures]:
    """Give the median of each figure over runs."""
    return {
        name: {key: statistics.median(run[name][key] for run in runs) for key in figures}
        for name, figures in runs[0].items()
    }


def asv_names(figures: Mapping[str, Figures]) -> dict[str, float]:
    """Give all figures in one dictionary, named as asv names them."""
    return {
        f"{ASV_NAMES[key]}_{name.replace(' ', '_')}": value
        for name, one in figures.items()
        for key, value in one.items()
    }


def table(this: Mapping[str, Figures], other: Mapping[str, Figures] | None = None) -> str:
    """Give the figures as Markdown; with those of another version beside them, and ratios."""
    heads = ["", "CPU s", "s", "peak MB", "read", "written"]
    heads += ["other: CPU s", "s", "peak MB", "CPU, times less", "s, times less"] if other else []
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for name, one in this.items():
        cells = [name, f"{one['cpu']:.2f}", f"{one['wall']:.2f}", f"{one['peak'] / 1e6:.0f}"]
        cells += [f"{one[key]:.1f}" if key in one else "" for key in ("read", "written")]
        beside = (other or {}).get(name)
        if beside:
            cells += [f"{beside['cpu']:.2f}", f"{beside['wall']:.2f}"]
            cells += [f"{beside['peak'] / 1e6:.0f}"]
            cells += [f"{beside[key] / max(one[key], 1e-9):.2f}" for key in ("cpu", "wall")]
        lines.append(f"| {' | '.join(cells + [''] * (len(heads) - len(cells)))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
