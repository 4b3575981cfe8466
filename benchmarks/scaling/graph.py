"""The graph of many frames on a real scheduler: tasks, memory, and what 1e5 frames would take.

    python -m benchmarks.scaling.graph NIGHT [--frames 250 1000] [--phases N]

reduces the night in NIGHT with threads (with --phases: no further than that phase's graph), takes
the phase with the most tasks, repeats its graph under other names until it has so many frames, and
submits it to a scheduler without workers.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.scaling.nights import make_flat, raw_files_of_kinds, reduce_night, working_in


def main(argv: list[str] | None = None) -> None:
    """Submit graphs of many frames; print what the scheduler needs for them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling.graph", description=__doc__)
    parser.add_argument("night", type=Path)
    parser.add_argument("--frames", type=int, nargs="+", default=[250, 1000])
    parser.add_argument("--phases", type=int, default=99)
    args = parser.parse_args(argv)
    graphs = phase_graphs(args.night, args.phases)
    with working_in(args.night):
        frames = len(raw_files_of_kinds(("science", "sky")))
    print(f"{frames} frames: " + "; ".join(f"{name}: {len(graph)} tasks" for name, graph in graphs))
    graph = max((graph for _, graph in graphs), key=len)
    rows = []
    for count in args.frames:
        many = repeated_graph(graph, max(1, round(count / frames)))
        added, seconds = submit_to_scheduler(many)
        rows.append((len(many), added))
        print(
            f"{count} frames: {len(many)} tasks, scheduler {added / 1e6:.0f} MB more"
            f" ({added / len(many):.0f} bytes a task, {added / count / 1e3:.0f} kB a frame),"
            f" {seconds:.0f} s until it has them",
            flush=True,
        )
    bytes_per_task = (
        (rows[-1][1] - rows[0][1]) / (rows[-1][0] - rows[0][0])
        if len(rows) > 1
        else rows[0][1] / rows[0][0]
    )
    print(
        f"100000 frames: {len(graph) / frames * 1e5 / 1e6:.1f} million tasks,"
        f" {bytes_per_task * len(graph) / frames * 1e5 / 1e9:.0f} GB in the scheduler"
    )


class _EnoughPhases(Exception):
    """As many graphs as were asked for are there."""


def phase_graphs(night: Path, phases: int) -> list[tuple[str, dict]]:
    """Name and optimised graph of the first `phases` phases of a reduction of the night.

    Its flat is made before.
    """
    from gdask.engine import memory

    make_flat(night, "threads:2")
    logging.getLogger("gdask").setLevel(logging.WARNING)
    found: list[tuple[str, dict]] = []
    original_fit = memory.fit

    def recording_fit(
        graph: Any, available: float, threads: int, what: str, *more: Any, **options: Any
    ) -> Any:
        found.append((what, dict(graph)))
        if len(found) == phases:
            raise _EnoughPhases
        return original_fit(graph, available, threads, what, *more, **options)

    memory.fit = recording_fit
    try:
        reduce_night(night, "threads:2")
    except _EnoughPhases:
        pass
    finally:
        memory.fit = original_fit
    return found


def repeated_graph(graph: dict[Any, Any], times: int) -> dict[Any, Any]:
    """`times` graphs of the same shape, under other names."""
    many: dict[Any, Any] = {}
    for copy in range(times):
        names = {key: _renamed(key, copy) for key in graph}
        for key, task in graph.items():
            many[names[key]] = task.substitute(names, key=names[key])
    return many


def _renamed(key: Any, copy: int) -> Any:
    return (f"{key[0]}-{copy}", *key[1:]) if isinstance(key, tuple) else f"{key}-{copy}"


def submit_to_scheduler(graph: dict[Any, Any]) -> tuple[float, float]:
    """Bytes by which a scheduler process grows with a graph, and seconds until it has it."""
    from distributed import Client

    with tempfile.TemporaryDirectory() as folder:
        address = f"{folder}/scheduler.json"
        command = [
            sys.executable,
            "-m",
            "distributed.cli.dask_scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
            "--scheduler-file",
            address,
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not Path(address).exists():
                time.sleep(0.2)
            with Client(scheduler_file=address, set_as_default=False) as client:
                before, begun = client.run_on_scheduler(_resident_bytes), time.time()
                futures = client.get(graph, list(graph), sync=False)
                while client.run_on_scheduler(_task_count) < len(graph):
                    time.sleep(1)
                added, seconds = (
                    client.run_on_scheduler(_resident_bytes) - before,
                    time.time() - begun,
                )
                del futures
        finally:
            process.terminate()
            process.wait()
    return added, seconds


def _resident_bytes() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def _task_count(dask_scheduler: Any = None) -> int:
    return len(dask_scheduler.tasks)


if __name__ == "__main__":
    main()
