"""How frames per minute, efficiency, memory and tasks change with frames and workers.

Measured for 1 and 2 worker processes and several numbers of frames, the frames of smaller numbers
being the first ones of the largest; then a discrete simulation from the measured tasks
(benchmarks/scaling/model.py says what it assumes), checked against the measurements, of 16 to 512
workers. `--memory` measures frames, peak and seconds in this machine's threads only.
"""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.scaling import model
from benchmarks.scaling.measured_run import measure_in_threads
from benchmarks.scaling.nights import first_frames_of, make_night
from gdask.steps.resample import MANY_FRAMES

#: Runs by (frames, workers).
Runs = dict[tuple[int, int], model.RunRecord]


def main(argv: list[str] | None = None) -> None:
    """Measure, then print the model."""
    args = _parser().parse_args(argv)
    folder, most = Path(args.folder), max(args.frames)
    whole = make_night(folder / f"night{most}x{args.size}", most, args.size)
    nights = {
        n: whole if n == most else first_frames_of(whole, n, folder / f"first{n}x{args.size}")
        for n in sorted(args.frames)
    }
    print(f"load {' '.join(f'{value:.1f}' for value in os.getloadavg())}, {os.cpu_count()} cores")
    if args.memory:
        for frames, night in nights.items():
            print(_memory_row(frames, measure_in_threads(night)), flush=True)
        return
    measure_in_threads(nights[min(nights)])  # whatever has to be compiled is compiled now
    runs: Runs = {}
    for frames, night in nights.items():
        for workers in args.workers:
            runs[frames, workers] = _measured(night, workers)
            print(_row(frames, workers, runs), flush=True)
    _print_check(runs, args)
    _print_campaign(runs, args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", help="where nights are simulated and reduced")
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--size", type=int, default=320, help="pixels of an array's side")
    parser.add_argument(
        "--campaign", type=int, default=1000, help="frames of the campaign that is modelled"
    )
    parser.add_argument(
        "--client",
        type=float,
        nargs=2,
        help="the client's seconds, once and for each frame, as runs with more frames of smaller"
        " arrays gave them",
    )
    parser.add_argument(
        "--memory",
        action="store_true",
        help="frames, peak memory and open files only, with two threads",
    )
    return parser


def _memory_row(frames: int, run: dict[str, Any]) -> str:
    return (
        f"{frames:4d} frames: peak {run['peak'] / 1e6:6.0f} MB, at most {run['files']} open files,"
        f" {run['seconds']:7.1f} s, {run['seconds'] / frames:.2f} s and"
        f" {run['cpu'] / frames:.2f} CPU s a frame, {run['tasks'] / frames:.0f} tasks a frame"
    )


def _measured(night: Path, workers: int) -> model.RunRecord:
    """Reduce the night on so many worker processes, in a process of its own."""
    record, module = night / f"processes{workers}.pickle", "benchmarks.scaling.measured_run"
    done = subprocess.run(
        [sys.executable, "-m", module, str(night), f"processes:{workers}", str(record)],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    shutil.rmtree(night / ".gdask", ignore_errors=True)
    if done.returncode:
        raise SystemExit(f"{night} with {workers} workers: {done.stderr[-2000:]}")
    return pickle.loads(record.read_bytes())


def _row(frames: int, workers: int, runs: Runs) -> str:
    """One run, beside that of one worker."""
    run = runs[frames, workers]
    single = runs.get((frames, 1)) or run
    tasks = sum(len(phase.tasks) for phase in run.phases)
    computing, single_computing = (
        sum(phase.wall for phase in each.phases) for each in (run, single)
    )
    return (
        f"{frames:4d} frames, {workers} workers: {run.seconds:7.1f} s,"
        f" {60 * frames / run.seconds:6.1f} frames/min,"
        f" efficiency {single.seconds / run.seconds / workers:.2f}"
        f" (computes alone {single_computing / computing / workers:.2f}),"
        f" peak {run.peak / 2**20:6.0f} MiB, {run.files} files, {tasks / frames:.0f} tasks/frame;"
        f" outside computes {model.seconds_between_phases(run):.1f} s,"
        f" scheduler {1e3 * run.scheduler:.2f} ms/task"
        f" = {100 * run.scheduler * tasks / run.seconds:.1f} % of wall,"
        f" workers had {100 * model.cpu_share(run):.0f} % of a core"
    )


def _print_check(runs: Runs, args: argparse.Namespace) -> None:
    """The model against what was measured, in seconds in computes."""
    fewest = min(args.workers)
    print("\nmodel against measurement (seconds in computes):")
    for (frames, workers), run in runs.items():
        sources = {"own tasks": run, f"tasks of {fewest} worker": runs.get((frames, fewest), run)}
        for name, source in sources.items():
            machine = model.Machine(workers, run.scheduler, run.worker)
            modelled = sum(model.makespan(phase.tasks, machine) for phase in source.phases)
            measured = sum(phase.wall for phase in run.phases)
            print(
                f"{frames:4d} frames, {workers} workers, {name}: {modelled:.1f} modelled,"
                f" {measured:.1f} measured, {100 * (modelled / measured - 1):+.0f} %"
            )


def _print_campaign(runs: Runs, args: argparse.Namespace) -> None:
    """The campaign as one command, then as groups of frames side by side.

    From the run with the most frames and the fewest workers.
    """
    most, few, workers_of_source = max(args.frames), min(args.frames), min(args.workers)
    measured = runs[most, workers_of_source]
    source, times = model.on_quiet_machine(measured), -(-args.campaign // most)
    phases = [
        *(model.repeated_phase(phase, times) for phase in source.phases[:-1]),
        model.stacking_phase(source.phases[-1], times),
    ]
    tasks = [task for phase in phases for task in phase.tasks]
    start, each_frame = args.client or model.client_seconds(
        (few, runs[few, workers_of_source]), (most, measured)
    )
    client, single = start + each_frame * times * most, sum(_walls(phases, 1, source))
    print(
        f"\n{times * most} frames, arrays of {args.size} x {args.size}:"
        f" {sum(task.seconds for task in tasks):.0f} s of tasks,"
        f" client {start:.1f} s and {each_frame:.2f} s a frame,"
        f" {len(tasks) * source.scheduler:.0f} s of scheduling;"
        f" longest task {max(task.seconds for task in tasks):.1f} s"
    )
    for workers in (1, 2, 16, 32, 64, 128, 256, 512):
        walls = _walls(phases, workers, source)
        total = sum(walls)
        print(
            f"{workers:4d} workers: {total + client:9.1f} s,"
            f" efficiency {(single + client) / (total + client) / workers:.2f};"
            f" computes alone {single / total / workers:.2f}"
            f" (phases {', '.join(f'{wall:.0f}' for wall in walls)} s)"
        )
    _print_groups(source, most, times, start, each_frame)


def _print_groups(
    source: model.RunRecord, frames: int, times: int, start: float, each_frame: float
) -> None:
    """`times` as many frames as the source's, in groups that are reduced side by side.

    start, each_frame: seconds of the client.
    """
    for size in (1, 2, 4):
        split = 1 if size * frames < 2 * MANY_FRAMES else model.TILE_SPLIT
        group = [
            *(model.repeated_phase(phase, size) for phase in source.phases[:-1]),
            model.stacking_phase(source.phases[-1], size, split),
        ]
        client, single = start + each_frame * size * frames, sum(_walls(group, 1, source))
        for workers in (1, 2, 4, 8, 16):
            seconds = sum(_walls(group, workers, source)) + client
            count = round(times / size)
            print(
                f"{count} groups of {size * frames} frames side by side, {workers} workers each,"
                f" {count * workers} in all: {seconds:.1f} s,"
                f" efficiency {(single + client) / seconds / workers:.2f}"
            )


def _walls(phases: Sequence[model.Phase], workers: int, source: model.RunRecord) -> list[float]:
    """Modelled seconds of each phase."""
    machine = model.Machine(workers, source.scheduler, source.worker)
    return [model.makespan(phase.tasks, machine) for phase in phases]


if __name__ == "__main__":
    main()
