"""The graph of many frames on a real scheduler: tasks, bytes sent, memory of the scheduler, and what 1e5 frames would take.

    python -m benchmarks.scaling.graph NIGHT [--frames 250 1000] [--phases N]

reduces the night in NIGHT with threads (with --phases: no further than that phase's graph), takes the phase with the most
tasks, repeats its graph under other names until it has so many frames, and submits it to a scheduler without workers.
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

from benchmarks.scaling.nights import files, make_flat, reduce_night, working_in


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling.graph", description=__doc__)
    parser.add_argument("night", type=Path)
    parser.add_argument("--frames", type=int, nargs="+", default=[250, 1000])
    parser.add_argument("--phases", type=int, default=99)
    args = parser.parse_args(argv)
    graphs = graphs_of(args.night, args.phases)
    with working_in(args.night):
        frames = len(files(("science", "sky")))
    print(f"{frames} frames: " + "; ".join(f"{name}: {len(graph)} tasks" for name, graph in graphs))
    graph = max((graph for _, graph in graphs), key=len)
    rows = []
    for count in args.frames:
        many = repeated(graph, max(1, round(count / frames)))
        held, seconds = on_a_scheduler(many)
        rows.append((len(many), held))
        print(
            f"{count} frames: {len(many)} tasks, scheduler {held / 1e6:.0f} MB more ({held / len(many):.0f} bytes a task, {held / count / 1e3:.0f} kB a frame), "
            f"{seconds:.0f} s until it has them",
            flush=True,
        )
    slope = (
        (rows[-1][1] - rows[0][1]) / (rows[-1][0] - rows[0][0])
        if len(rows) > 1
        else rows[0][1] / rows[0][0]
    )
    print(
        f"100000 frames: {len(graph) / frames * 1e5 / 1e6:.1f} million tasks, {slope * len(graph) / frames * 1e5 / 1e9:.0f} GB in the scheduler"
    )


class _Enough(Exception):
    """The graph that was wanted is there."""


def graphs_of(night: Path, phases: int) -> list[tuple[str, dict]]:
    """(phase, optimised graph) of the first so many phases of a reduction of the night, but for its flat."""
    from gdask.engine import memory

    make_flat(night, "threads:2")
    logging.getLogger("gdask").setLevel(logging.WARNING)
    found: list[tuple[str, dict]] = []
    real = memory.fit

    def noting(
        graph: Any, available: float, threads: int, what: str, *more: Any, **options: Any
    ) -> Any:
        found.append((what, dict(graph)))
        if len(found) == phases:
            raise _Enough
        return real(graph, available, threads, what, *more, **options)

    memory.fit = noting
    try:
        reduce_night(night, "threads:2")
    except _Enough:
        pass
    finally:
        memory.fit = real
    return found


def repeated(graph: dict[Any, Any], times: int) -> dict[Any, Any]:
    """So many graphs of the same shape, under other names."""
    many: dict[Any, Any] = {}
    for copy in range(times):
        names = {key: _renamed(key, copy) for key in graph}
        for key, task in graph.items():
            many[names[key]] = task.substitute(names, key=names[key])
    return many


def _renamed(key: Any, copy: int) -> Any:
    return (f"{key[0]}-{copy}", *key[1:]) if isinstance(key, tuple) else f"{key}-{copy}"


def on_a_scheduler(graph: dict[Any, Any]) -> tuple[float, float]:
    """Bytes by which a scheduler process grows when it is given a graph, and seconds until it has it."""
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
                before, begun = client.run_on_scheduler(_resident), time.time()
                futures = client.get(graph, list(graph), sync=False)
                while client.run_on_scheduler(_tasks) < len(graph):
                    time.sleep(1)
                held, seconds = client.run_on_scheduler(_resident) - before, time.time() - begun
                del futures
        finally:
            process.terminate()
            process.wait()
    return held, seconds


def _resident() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def _tasks(dask_scheduler: Any = None) -> int:
    return len(dask_scheduler.tasks)


if __name__ == "__main__":
    main()
