"""`python -m benchmarks.scaling FOLDER`: frames per minute, efficiency, memory and tasks as frames and workers grow; a model of more.

Measured for 1 and 2 worker processes and several numbers of frames; then a discrete simulation, checked against these,
says what 16 to 512 workers would do (benchmarks/scaling/model.py writes down what it assumes).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.scaling.model import Phase, efficiency, wall
from benchmarks.scaling.nights import make_night


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("folder", help="where nights are simulated and reduced")
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--size", type=int, default=512, help="pixels of an array's side")
    parser.add_argument("--campaign", type=int, default=1000, help="frames of the campaign that is modelled")
    args = parser.parse_args(argv)
    runs = []
    for frames in args.frames:
        folder = make_night(Path(args.folder) / f"{frames}x{args.size}", frames, args.size)
        for workers in args.workers:
            runs.append(_measured(folder, frames, workers))
            shutil.rmtree(folder / ".gdask", ignore_errors=True)
            print(_row(runs[-1], runs[0]), flush=True)
    _model(runs, args)


def _measured(folder: Path, frames: int, workers: int) -> dict:
    """One reduction in a process of its own: seconds, peak of the process tree, and each phase's tasks."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.scaling.one", str(folder), f"processes:{workers}"],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{folder} with {workers} workers: {done.stderr[-2000:]}")
    return {"frames": frames, "workers": workers} | json.loads(done.stdout.splitlines()[-1])


def _row(run: dict, first: dict) -> str:
    rate, base = run["frames"] / run["seconds"], first["frames"] / first["seconds"]
    tasks = sum(phase["tasks"] for phase in run["phases"])
    return (f"{run['frames']:4d} frames, {run['workers']} workers: {run['seconds']:7.1f} s, {60 * rate:6.1f} frames/min, efficiency "
            f"{rate / base / run['workers'] * first['workers']:.2f}, peak {run['peak'] / 2**20:6.0f} MiB, {tasks / run['frames']:.0f} tasks/frame, "
            f"scheduling {100 * run['scheduling'] / run['seconds']:.1f} %")  # fmt: skip


def _model(runs: list[dict], args: argparse.Namespace) -> None:
    """The campaign: each phase's tasks and their seconds per frame as in the run with the most frames and one worker."""
    most = max((run for run in runs if run["workers"] == min(args.workers)), key=lambda run: run["frames"])
    phases = [Phase(p["name"], p["tasks"] / most["frames"], p["busy"] / max(p["tasks"], 1), p["client"] / most["frames"]) for p in most["phases"]]
    per_task = most["scheduling"] / max(sum(p["tasks"] for p in most["phases"]), 1)
    print(f"\nscheduler: {1e6 * per_task:.0f} us per task")
    for run in runs:
        print(f"model against measurement, {run['frames']} frames, {run['workers']} workers: {wall(phases, run['frames'], run['workers'], per_task):.1f} s, {run['seconds']:.1f} s")
    for workers in (16, 32, 64, 128, 256, 512):
        print(f"{args.campaign} frames, {workers:3d} workers: {wall(phases, args.campaign, workers, per_task):8.1f} s, "
              f"efficiency {efficiency(phases, args.campaign, workers, per_task):.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
