"""One measured reduction: what each task, the client and the scheduler took.

    python -m benchmarks.scaling.measured_run FOLDER CLUSTER RECORD

reduces the night in FOLDER on worker processes, and pickles a `RunRecord` of it (its flat is made
before). Seconds of processes are CPU seconds, which other work on the machine does not change;
seconds of tasks are as long as tasks took, `cpu_share` says how much of that was CPU. Without
RECORD it prints a line of JSON of the whole run.
"""

from __future__ import annotations

import json
import logging
import pickle
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks.scaling.model import Phase, RunRecord, Task
from benchmarks.scaling.nights import make_flat, reduce_night

#: Open files that a process may have in a run that measures memory.
MAX_OPEN_FILES = 256


class PeakWatch(threading.Thread):
    """Looks ten times a second at this process and its descendants until `stopped` is set.

    peak: most resident bytes of all together; files: most open files of one of them.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.files, self.stopped = 0, 0, threading.Event()

    def run(self) -> None:
        """Watch."""
        this_process = psutil.Process()
        while not self.stopped.wait(0.1):
            memory = files = 0
            for process in (this_process, *this_process.children(recursive=True)):
                try:
                    memory += process.memory_info().rss
                    files = max(files, process.num_fds())
                except psutil.NoSuchProcess:
                    continue
            self.peak, self.files = max(self.peak, memory), max(self.files, files)


def measure_in_threads(
    folder: Path, cluster: str = "threads:2", max_files: int = MAX_OPEN_FILES
) -> dict[str, float]:
    """Reduce a night with threads in a process of its own, which may have max_files open files.

    Returns peak (bytes), files (open at most, of those seen), seconds, cpu (s), tasks.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling.measured_run", str(folder), cluster],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (max_files, max_files)),
    )
    if done.returncode:
        raise SystemExit(f"{folder}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_in_threads(folder: str, cluster: str) -> None:
    """One reduction; prints what it took as JSON."""
    from gdask.engine import memory

    tasks: list[int] = []
    original_fit = memory.fit

    def counting_fit(graph: Mapping[Any, Any], *more: Any, **options: Any) -> Any:
        tasks.append(len(graph))
        return original_fit(graph, *more, **options)

    memory.fit = counting_fit
    logging.getLogger("gdask").setLevel(logging.WARNING)
    watch, begun = PeakWatch(), time.time()
    watch.start()
    reduce_night(folder, cluster)
    print(
        json.dumps(
            {
                "peak": watch.peak,
                "files": watch.files,
                "seconds": time.time() - begun,
                "cpu": time.process_time(),
                "tasks": sum(tasks),
            }
        )
    )


def run_on_workers(folder: str, cluster: str, record: str) -> None:
    """One reduction on worker processes; pickles its RunRecord to the file `record`."""
    from gdask.engine import compute

    logging.getLogger("gdask").setLevel(logging.WARNING)
    make_flat(folder, "threads")
    phases: list[Phase] = []
    original, empty_task, overhead = compute._attempt_on_workers, [0.0, 0.0], [0.0]

    def timed(client: Any, tasks: dict[Any, Any], *more: Any) -> Any:
        called = time.time()
        if not phases:
            empty_task[:] = _empty_task_seconds(client, tasks)
        before, begun = _cpu_seconds(), time.time()
        client.get_task_stream(start=begun, count=0)
        result = original(client, tasks, *more)
        wall, after = time.time() - begun, _cpu_seconds()
        used = tuple(now - then for now, then in zip(after, before, strict=True))
        stream = {
            row["key"]: row for row in client.get_task_stream(start=begun) if row["key"] in tasks
        }
        phases.append(Phase(more[1], _tasks(tasks, stream), begun, wall, used[1]))
        overhead[0] += time.time() - called - wall
        return result

    compute._attempt_on_workers = timed  # type: ignore[assignment]
    watch = PeakWatch()
    watch.start()
    begun = time.time()
    reduce_night(folder, cluster)
    seconds = time.time() - begun - overhead[0]
    watch.stopped.set()
    whole = RunRecord(seconds, watch.peak, watch.files, empty_task[0], empty_task[1], tuple(phases))
    Path(record).write_bytes(pickle.dumps(whole))


def _tasks(graph: Mapping[Any, Any], stream: Mapping[Any, Mapping]) -> tuple[Task, ...]:
    """The tasks in dask's order, as measured. stream: rows of the task stream, by key."""
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


def do_nothing(*args: object) -> int:
    """What an empty task calls."""
    return len(args)


def _empty_task_seconds(client: Any, tasks: Mapping[Any, Any]) -> list[float]:
    """CPU seconds of scheduler (with client) and worker for each task, were its tasks empty."""
    from dask._task_spec import Task as Node
    from dask._task_spec import TaskRef

    name = {key: f"nothing-{number}" for number, key in enumerate(tasks)}
    graph = {
        name[key]: Node(
            name[key],
            do_nothing,
            *(TaskRef(name[need]) for need in task.dependencies if need in name),
        )
        for key, task in tasks.items()
    }
    before = _cpu_seconds()
    client.get(graph, list(graph))
    return [(now - then) / len(graph) for now, then in zip(_cpu_seconds(), before, strict=True)]


def _cpu_seconds() -> tuple[float, float]:
    """CPU seconds so far of the scheduler's process (this one) and of all workers."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return time.process_time(), sum(each.user + each.system for each in times)


if __name__ == "__main__":
    (run_on_workers if len(sys.argv) > 3 else run_in_threads)(*sys.argv[1:])
