"""`gdask benchmark`: how fast this machine reduces a night, and what limits it."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdask.cli import parser_for, run_command
from gdask.cli.lists import expand_files

if TYPE_CHECKING:
    from gdask.reduction.benchmark import Place, Plan

#: Options of the simulated night: a small one, and the tutorial's at full size.
SMALL: dict[str, dict[str, object]] = {
    "gsaoi": {"size": 768, "roi": 766, "n_flats": 5},
    "f2": {"size": 768, "field": "crowded"},
}
#: Of so many GSAOI science frames so many are on the target, the others on the sky beside it.
ON_TARGET, OF_FRAMES = 9, 16


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = parser_for(
        "gdask benchmark",
        "Measure how fast this machine reduces a night: seconds, frames a minute, MB/s, bytes read "
        "and\nwritten, CPU seconds, memory, for each command of the tutorial and each of its "
        "phases.\n\n"
        "Without files, a small night is simulated. With your own raw frames, the largest set of "
        "science\nframes of one filter is reduced with the calibrations that are among the files. "
        "All work is done\nin a folder beside the result, which is removed at the end; nothing "
        "else is changed. Results are\nprinted, and saved as NAME.json, NAME.md and NAME.png; "
        "they hold no name of a host, user or folder.",
        "  gdask benchmark                                  # a small night, a few minutes\n"
        "  gdask benchmark --full                           # the tutorial's night, 3 GB\n"
        "  gdask benchmark raw/*.fits -o before             # your own frames\n"
        "  gdask benchmark raw/*.fits -o after --against before.json\n"
        "  gdask benchmark --workers 1,2,4 --kind processes # how well more workers help",
    )
    parser.add_argument(
        "files", nargs="*", metavar="RAW", help="raw frames with their calibrations, or @LIST"
    )
    _add_night_options(parser)
    _add_run_options(parser)
    return parser


def _add_night_options(parser: argparse.ArgumentParser) -> None:
    night = parser.add_argument_group("the simulated night")
    night.add_argument(
        "--instrument", choices=sorted(SMALL), default="gsaoi", help="(default: gsaoi)"
    )
    night.add_argument("--full", action="store_true", help="whole arrays, as many files as real")
    night.add_argument("--size", type=int, metavar="N", help="arrays of N x N pixels")
    night.add_argument("--frames", type=int, metavar="N", help="N science frames")
    night.add_argument(
        "--roi", type=int, metavar="N", help="GSAOI: pixels of the standard's region of interest"
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    runs = parser.add_argument_group("what is measured")
    runs.add_argument(
        "--workers", metavar="N,N", help="numbers of workers, such as 1,2,4 (default: all cores)"
    )
    runs.add_argument(
        "--kind", choices=("threads", "processes"), default="threads", help="(default: threads)"
    )
    runs.add_argument("--memory", metavar="SIZE", help="most memory of each, as in reduce")
    runs.add_argument(
        "--repeat",
        type=int,
        default=2,
        metavar="N",
        help="runs for each number of workers after the first run, which is told apart (default: "
        "2; 0: the first run alone)",
    )
    runs.add_argument(
        "--cold",
        action="store_true",
        help="let the first run compile everything, as after an installation",
    )
    saved = parser.add_argument_group("results")
    saved.add_argument(
        "-o", "--output", metavar="NAME", help="of the results (default: benchmark-DATE-TIME)"
    )
    saved.add_argument("--against", metavar="FILE", help="JSON of an earlier run to compare with")
    saved.add_argument("--label", default="", help="what to call this run in the results")
    saved.add_argument("--keep", action="store_true", help="keep the night and the last products")
    saved.add_argument("-q", "--quiet", action="store_true", help="no progress on the screen")


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 1 a reduction failed, 2 usage."""
    return run_command(build_parser(), argv, _benchmark)


def _benchmark(args: argparse.Namespace) -> int:
    from gdask.reduction import benchmark_report as report
    from gdask.reduction.benchmark_figure import figure

    counts = _worker_counts(args.workers)
    _check(args, counts)
    earlier = report.load(args.against) if args.against else None
    output = Path(args.output or time.strftime("benchmark-%Y%m%d-%H%M%S"))
    files = _outputs(output)
    with _work_folder(output, args.keep) as work:
        raw = expand_files(args.files) if args.files else _simulate(args, work)
        result = report.result_of(*_measure(args, raw, counts, work))
    page = report.page(result, earlier)
    files[0].write_text(json.dumps(result, indent=1) + "\n")
    files[1].write_text(page)
    files[2].write_bytes(figure(result))
    print(page)
    print(f"saved: {' '.join(str(file) for file in files)}")
    return 0


def _outputs(output: Path) -> list[Path]:
    """The files of the results; UsageError where one is there already, or cannot be."""
    from gdask.model import UsageError

    if not output.parent.is_dir():
        raise UsageError(f"-o {output}: there is no folder {output.parent}")
    files = [output.parent / f"{output.name}.{ending}" for ending in ("json", "md", "png")]
    if there := next((file for file in files if file.exists()), None):
        raise UsageError(f"-o {output}: {there} is there already; give another name")
    return files


def _check(args: argparse.Namespace, counts: list[int]) -> None:
    """Raise UsageError for options that do not go together or cannot be."""
    from gdask.engine.memory import parse_bytes
    from gdask.model import UsageError

    given = [name for name in ("full", "size", "frames", "roi") if getattr(args, name)]
    if args.files and given:
        raise UsageError(f"--{given[0]} is for a simulated night; leave it, or the files, out")
    if args.full and args.size:
        raise UsageError("--full and --size: give one of them")
    if args.roi and args.instrument == "f2":
        raise UsageError("--roi: F2 reads its whole array; leave it out")
    if args.repeat < (1 if len(counts) > 1 else 0):
        raise UsageError(
            f"--repeat {args.repeat}: expected 0 or more, 1 with several numbers of workers"
        )
    if args.frames is not None and args.frames < 3:
        raise UsageError(f"--frames {args.frames}: expected 3 or more")
    parse_bytes(args.memory)


def _worker_counts(text: str | None) -> list[int]:
    from gdask.cluster import available_cores
    from gdask.model import UsageError

    try:
        counts = sorted({int(part) for part in text.split(",")}) if text else [available_cores()]
    except ValueError:
        counts = [0]
    if counts[0] < 1:
        raise UsageError(f"--workers {text}: expected numbers from 1 on, such as 1,2,4")
    return counts


@contextmanager
def _work_folder(output: Path, keep: bool) -> Iterator[Path]:
    """A folder beside the results for all that is simulated and reduced; removed at the end."""
    parent = output.parent.resolve()  # what runs in the folder is given paths in it
    folder = Path(tempfile.mkdtemp(prefix=f"{output.name}-work-", dir=parent))
    try:
        yield folder
    finally:
        if keep:
            print(f"benchmark: kept {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _simulate(args: argparse.Namespace, work: Path) -> list[str]:
    """Simulate the night in a process of its own; give its raw files.

    UsageError where the simulator refuses an option, GdaskError where it fails.
    """
    from gdask.model import GdaskError, UsageError

    options = {} if args.full else dict(SMALL[args.instrument])
    if args.size:
        options["size"] = args.size
        if args.instrument == "gsaoi":
            options["roi"] = args.size - 2
    if args.roi:
        options["roi"] = args.roi
    if args.frames:
        options["n_science"] = args.frames
        if args.instrument == "gsaoi":
            options["n_science"] = max(1, args.frames * ON_TARGET // OF_FRAMES)
            options["n_sky"] = args.frames - options["n_science"]
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    if not args.quiet:
        print(f"simulating a night of {args.instrument}", file=sys.stderr, flush=True)
    code = "import sys; from gdask.cli import main; sys.exit(main())"
    line = [sys.executable, "-c", code, "simulate", args.instrument, str(work / "night"), "-q"]
    done = subprocess.run([*line, *given], capture_output=True, text=True, check=False)
    if done.returncode:
        message = done.stderr.strip().splitlines()[-1:] or ["it gave no reason"]
        raise (UsageError if done.returncode == 2 else GdaskError)(message[0])
    return sorted(str(path) for path in (work / "night" / "raw").glob("*.fits"))


def _measure(
    args: argparse.Namespace, raw: list[str], counts: list[int], work: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run the night as often as was asked for; give what it was about, and the runs."""
    from gdask.reduction import benchmark

    night = benchmark.plan(raw)
    _check_room(night, work)
    if night.unused and not args.quiet:
        print(f"{night.unused} of {len(raw)} files are not used", file=sys.stderr)
    say = _progress(args.quiet, night, 1 + args.repeat * len(counts))
    cache = str(work / "numba") if args.cold else None
    runs: list[dict[str, Any]] = []

    def run(workers: int) -> None:
        folder = work / f"run{len(runs) + 1}"
        place = benchmark.Place(folder, args.kind, workers, args.memory, cache)
        taken = _one_run(night, place, say)
        runs.append({"workers": workers, "first": not runs, "commands": taken})
        if not args.keep or len(runs) <= args.repeat * len(counts):
            shutil.rmtree(folder)

    run(counts[-1])
    for _ in range(args.repeat):  # in turns, so that a busy hour does not fall on one number
        for workers in reversed(counts):
            run(workers)
    return _about(args, night, work), runs


def _one_run(night: Plan, place: Place, say: Callable[..., None]) -> list[dict[str, Any]]:
    from gdask.reduction.benchmark import measure_night

    say(None, place)
    return measure_night(night, place, say)


def _check_room(night: Plan, work: Path) -> None:
    """Raise GdaskError where the disk has no room for the scratch of a run."""
    from gdask.model import GdaskError
    from gdask.reduction.benchmark import SCRATCH_PER_RAW

    needed, free = SCRATCH_PER_RAW * night.raw_bytes, shutil.disk_usage(work).free
    if free < needed:
        raise GdaskError(
            f"{needed / 1e9:.1f} GB are needed for results and scratch, {free / 1e9:.1f} GB are "
            "free; work where there is more room (-o FOLDER/NAME)"
        )


def _progress(quiet: bool, night: Plan, total: int) -> Callable[..., None]:
    """What is called with a place before each run, and with a text before and after a command."""
    done = 0

    def say(text: str | None, place: Place | None = None) -> None:
        nonlocal done
        if quiet:
            return
        if place is not None:
            done += 1
            print(f"run {done} of {total}, {place.kind}:{place.workers}", file=sys.stderr)
        elif text in {command.name for command in night.commands}:
            print(f"  {text:<10}", end="", file=sys.stderr, flush=True)
        else:
            print(f"{text:>10}", file=sys.stderr, flush=True)

    return say


def _about(args: argparse.Namespace, night: Plan, work: Path) -> dict[str, Any]:
    """What was measured, and where: nothing that names host, user or folder."""
    from gdask.reduction import benchmark

    return {
        "label": args.label,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "kind": args.kind,
        "memory": args.memory,
        "cold": args.cold,
        "machine": benchmark.machine(work),
        "versions": dict(benchmark.versions()),
        "night": {
            "instrument": night.instrument,
            "source": "frames of the user" if args.files else "a simulated night",
            "files": len(night.raw_files),
            "raw": night.raw_bytes,
            "unused": night.unused,
            "commands": [command.text() for command in night.commands],
        },
    }


if __name__ == "__main__":
    sys.exit(main())
