"""`python -m benchmarks.scaling FOLDER`: frames per minute, efficiency, memory and tasks as frames and workers grow; a model of more.

Measured for 1 and 2 worker processes and several numbers of frames, the frames of smaller numbers being the first ones of
the largest; then a discrete simulation from the measured tasks (benchmarks/scaling/model.py says what it assumes), checked
against the measurements, of 16 to 512 workers. `--memory` measures frames, peak and seconds in this machine's threads only.
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

from benchmarks.scaling import model
from benchmarks.scaling.nights import first_of, make_night
from benchmarks.scaling.one import measured_here
from gdask.steps.resample import MANY


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
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
        help="the client's seconds, once and for each frame, as runs with more frames of smaller arrays gave them",
    )
    parser.add_argument(
        "--memory",
        action="store_true",
        help="frames, peak memory and open files only, with two threads",
    )
    args = parser.parse_args(argv)
    whole = make_night(
        Path(args.folder) / f"night{max(args.frames)}x{args.size}", max(args.frames), args.size
    )
    nights = {
        n: whole
        if n == max(args.frames)
        else first_of(whole, n, Path(args.folder) / f"first{n}x{args.size}")
        for n in sorted(args.frames)
    }
    print(f"load {' '.join(f'{value:.1f}' for value in os.getloadavg())}, {os.cpu_count()} cores")
    if args.memory:
        for frames, night in nights.items():
            print(_memory_row(frames, measured_here(night)), flush=True)
        return
    measured_here(nights[min(nights)])  # whatever has to be compiled is compiled now
    runs = {}
    for frames, night in nights.items():
        for workers in args.workers:
            runs[frames, workers] = _measured(night, workers)
            print(_row(frames, workers, runs), flush=True)
    _model(runs, args)


def _memory_row(frames: int, run: dict) -> str:
    return (
        f"{frames:4d} frames: peak {run['peak'] / 1e6:6.0f} MB, at most {run['files']} open files, {run['seconds']:7.1f} s, "
        f"{run['seconds'] / frames:.2f} s and {run['cpu'] / frames:.2f} CPU s a frame, {run['tasks'] / frames:.0f} tasks a frame"
    )


def _measured(night: Path, workers: int) -> model.Record:
    record = night / f"processes{workers}.pickle"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.scaling.one",
            str(night),
            f"processes:{workers}",
            str(record),
        ],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    shutil.rmtree(night / ".gdask", ignore_errors=True)
    if done.returncode:
        raise SystemExit(f"{night} with {workers} workers: {done.stderr[-2000:]}")
    return pickle.loads(record.read_bytes())


def _row(frames: int, workers: int, runs: dict[tuple[int, int], model.Record]) -> str:
    run, one = runs[frames, workers], runs.get((frames, 1)) or runs[frames, workers]
    tasks = sum(len(phase.tasks) for phase in run.phases)
    computing = sum(phase.wall for phase in run.phases)
    return (
        f"{frames:4d} frames, {workers} workers: {run.seconds:7.1f} s, {60 * frames / run.seconds:6.1f} frames/min, efficiency "
        f"{one.seconds / run.seconds / workers:.2f} (computes alone {sum(p.wall for p in one.phases) / computing / workers:.2f}), peak "
        f"{run.peak / 2**20:6.0f} MiB, {run.files} files, {tasks / frames:.0f} tasks/frame; outside computes {model.between_phases(run):.1f} s, "
        f"scheduler {1e3 * run.scheduler:.2f} ms/task = {100 * run.scheduler * tasks / run.seconds:.1f} % of wall, workers had {100 * model.busy(run):.0f} % of a core"
    )


def _model(runs: dict[tuple[int, int], model.Record], args: argparse.Namespace) -> None:
    """Check against what was measured; the campaign, from the run with the most frames and one worker, as one command and as groups."""
    print("\nmodel against measurement (seconds in computes):")
    for (frames, workers), run in runs.items():
        one = runs.get((frames, min(args.workers)), run)
        for name, source in (("own tasks", run), (f"tasks of {min(args.workers)} worker", one)):
            said = sum(
                model.makespan(p.tasks, model.Machine(workers, run.scheduler, run.worker))
                for p in source.phases
            )
            found = sum(p.wall for p in run.phases)
            print(
                f"{frames:4d} frames, {workers} workers, {name}: {said:.1f} modelled, {found:.1f} measured, {100 * (said / found - 1):+.0f} %"
            )
    frames = max(args.frames)
    source = model.quiet(runs[frames, min(args.workers)])
    times = -(-args.campaign // frames)
    phases = [
        *(model.campaign(p, times) for p in source.phases[:-1]),
        model.stacking(source.phases[-1], times),
    ]
    work = sum(task.seconds for phase in phases for task in phase.tasks)
    few = min(args.frames)
    start, each_frame = args.client or model.client_of(
        (few, runs[few, min(args.workers)]), (frames, runs[frames, min(args.workers)])
    )
    client, alone = start + each_frame * times * frames, _walls(phases, 1, source)
    print(
        f"\n{times * frames} frames, arrays of {args.size} x {args.size}: {work:.0f} s of tasks, client {start:.1f} s and {each_frame:.2f} s a frame, "
        f"{sum(len(p.tasks) for p in phases) * source.scheduler:.0f} s of scheduling; longest task {max(t.seconds for p in phases for t in p.tasks):.1f} s"
    )
    for workers in (1, 2, 16, 32, 64, 128, 256, 512):
        walls = _walls(phases, workers, source)
        each = ", ".join(f"{wall:.0f}" for wall in walls)
        print(
            f"{workers:4d} workers: {sum(walls) + client:9.1f} s, efficiency {(sum(alone) + client) / (sum(walls) + client) / workers:.2f}; "
            f"computes alone {sum(alone) / sum(walls) / workers:.2f} (phases {each} s)"
        )
    for many in (1, 2, 4):
        group = [
            *(model.campaign(p, many) for p in source.phases[:-1]),
            model.stacking(source.phases[-1], many, 1 if many * frames < 2 * MANY else model.SPLIT),
        ]
        own, alone = start + each_frame * many * frames, _walls(group, 1, source)
        for workers in (1, 2, 4, 8, 16):
            one = sum(_walls(group, workers, source)) + own
            count = round(times / many)
            print(
                f"{count} groups of {many * frames} frames side by side, {workers} workers each, {count * workers} in all: {one:.1f} s, "
                f"efficiency {(sum(alone) + own) / one / workers:.2f}"
            )


def _walls(phases: Sequence[model.Phase], workers: int, source: model.Record) -> list[float]:
    return [
        model.makespan(phase.tasks, model.Machine(workers, source.scheduler, source.worker))
        for phase in phases
    ]


if __name__ == "__main__":
    main()
