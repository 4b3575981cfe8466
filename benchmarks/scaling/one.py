"""One measured reduction, for `python -m benchmarks.scaling`: what each task, the client and the scheduler took.

    python -m benchmarks.scaling.one FOLDER CLUSTER RECORD

reduces the night in FOLDER on worker processes, and pickles a `Record` of it (its flat is made before). Seconds of
processes are CPU seconds, which other work on the machine does not change; seconds of tasks are as long as tasks took,
`busy` says how much of that was CPU.
"""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks.scaling.model import Phase, Record, Task
from benchmarks.scaling.nights import make_flat, reduce_night

#: Open files that a process may have in a run that measures memory.
MOST_FILES = 256


class Peak(threading.Thread):
    """The largest sums over this process and its descendants, looked at ten times a second: resident bytes, open files."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.files, self.over = 0, 0, threading.Event()

    def run(self) -> None:
        own = psutil.Process()
        while not self.over.wait(0.1):
            memory = files = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    memory += process.memory_info().rss
                    files = max(files, process.num_fds())
                except psutil.NoSuchProcess:
                    continue
            self.most, self.files = max(self.most, memory), max(self.files, files)


def measured_here(folder: Path, cluster: str = "threads:2") -> dict[str, float]:
    """Frames through threads, in a process of their own: peak bytes, open files, seconds, CPU seconds, tasks."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling.one", str(folder), cluster],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{folder}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def in_threads(folder: str, cluster: str) -> None:
    """One reduction with at most MOST_FILES open files, and what it took as a line of JSON."""
    import resource

    from gdask.engine import memory

    resource.setrlimit(resource.RLIMIT_NOFILE, (MOST_FILES, MOST_FILES))

    tasks: list[int] = []
    real = memory.fit

    def counting(graph: Mapping[Any, Any], *more: Any, **options: Any) -> Any:
        tasks.append(len(graph))
        return real(graph, *more, **options)

    memory.fit = counting
    logging.getLogger("gdask").setLevel(logging.WARNING)
    peak, begun = Peak(), time.time()
    peak.start()
    reduce_night(folder, cluster)
    print(
        json.dumps(
            {
                "peak": peak.most,
                "files": peak.files,
                "seconds": time.time() - begun,
                "cpu": time.process_time(),
                "tasks": sum(tasks),
            }
        )
    )


def main(folder: str, cluster: str, record: str) -> None:
    from gdask.engine import compute as progress

    logging.getLogger("gdask").setLevel(logging.WARNING)
    make_flat(folder, "threads")
    phases: list[Phase] = []
    real, empty, watching = progress._once, [0.0, 0.0], [0.0]

    def timed(client: Any, tasks: dict[Any, Any], *more: Any) -> Any:
        called = time.time()
        if not phases:
            empty[:] = _costs_of_nothing(client, tasks)
        before, begun = _cpu(client), time.time()
        client.get_task_stream(start=begun, count=0)
        result = real(client, tasks, *more)
        wall, after = time.time() - begun, _cpu(client)
        used = tuple(now - then for now, then in zip(after, before, strict=True))
        stream = {
            row["key"]: row for row in client.get_task_stream(start=begun) if row["key"] in tasks
        }
        phases.append(Phase(more[1], _tasks(tasks, stream), begun, wall, used[1]))
        watching[0] += time.time() - called - wall
        return result

    progress._once = timed
    peak = Peak()
    peak.start()
    begun = time.time()
    reduce_night(folder, cluster)
    seconds = time.time() - begun - watching[0]
    peak.over.set()
    whole = Record(seconds, peak.most, peak.files, empty[0], empty[1], tuple(phases))
    Path(record).write_bytes(pickle.dumps(whole))


def _tasks(graph: Mapping[Any, Any], stream: Mapping[Any, Mapping]) -> tuple[Task, ...]:
    """The tasks in dask's order, each with what it needs (by place), how long it took, and the bytes of its result."""
    from dask.order import order

    priority = order(graph)
    keys = sorted(graph, key=priority.__getitem__)
    place = {key: number for number, key in enumerate(keys)}
    rows = []
    for key in keys:
        row = stream.get(key, {})
        spent = {
            kind: sum(
                each["stop"] - each["start"]
                for each in row.get("startstops", ())
                if each["action"] == kind
            )
            for kind in ("compute", "transfer")
        }
        needs = tuple(place[need] for need in graph[key].dependencies if need in place)
        name = key[0] if isinstance(key, tuple) else key
        rows.append(
            Task(
                str(name).rpartition("-")[0],
                spent["compute"],
                spent["transfer"],
                int(row.get("nbytes") or 0),
                needs,
            )
        )
    return tuple(rows)


def nothing(*args: object) -> int:
    return len(args)


def _costs_of_nothing(client: Any, tasks: Mapping[Any, Any]) -> list[float]:
    """CPU seconds of the scheduler (with the client) and of a worker for each task of this graph, were its tasks empty."""
    from dask._task_spec import Task as Node
    from dask._task_spec import TaskRef

    name = {key: f"nothing-{number}" for number, key in enumerate(tasks)}
    graph = {
        name[key]: Node(
            name[key], nothing, *(TaskRef(name[need]) for need in task.dependencies if need in name)
        )
        for key, task in tasks.items()
    }
    before = _cpu(client)
    client.get(graph, list(graph))
    return [(now - then) / len(graph) for now, then in zip(_cpu(client), before, strict=True)]


def _cpu(client: Any) -> tuple[float, float]:
    """CPU seconds so far of the process of the scheduler (this one) and of all workers."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return time.process_time(), sum(each.user + each.system for each in times)


if __name__ == "__main__":
    (main if len(sys.argv) > 3 else in_threads)(*sys.argv[1:])
