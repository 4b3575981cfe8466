"""One measured reduction, for `python -m benchmarks.scaling`: prints what it measured as one line of JSON."""

from __future__ import annotations

import json
import sys
import threading
import time

import psutil

from benchmarks.scaling.nights import reduce_night


class Peak(threading.Thread):
    """The largest sum of resident memory of this process and all its descendants, looked at ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.over = 0, threading.Event()

    def run(self) -> None:
        own = psutil.Process()
        while not self.over.wait(0.1):
            total = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.most = max(self.most, total)


def main(folder: str, cluster: str) -> None:
    """Reduce once to load what is compiled, then with the clock running."""
    from gdask import progress

    reduce_night(folder, cluster)
    phases: list[dict] = []
    real = progress._on_cluster

    def timed(client: object, tasks: dict, keys: list, text: str, update: object) -> object:
        before, used = time.monotonic(), _scheduler_cpu(client)
        result = real(client, tasks, keys, text, update)
        phases.append({"name": text, "tasks": len(tasks), "wall": time.monotonic() - before, "ended": time.monotonic(),
                       "begun": before, "scheduling": _scheduler_cpu(client) - used})  # fmt: skip
        return result

    progress._on_cluster = timed
    peak = Peak()
    peak.start()
    begun = time.monotonic()
    reduce_night(folder, cluster)
    seconds = time.monotonic() - begun
    peak.over.set()
    workers = int(cluster.partition(":")[2] or 1)
    last = begun
    for phase in phases:
        phase["client"], phase["busy"] = phase["begun"] - last, phase["wall"] * workers
        last = phase.pop("ended")
        del phase["begun"]
    print(json.dumps({"seconds": seconds, "peak": peak.most, "scheduling": sum(p["scheduling"] for p in phases), "phases": phases}))


def _scheduler_cpu(client: object) -> float:
    """Seconds of CPU that the process of the scheduler (this one, for worker processes of this machine) has used."""
    own = psutil.Process().cpu_times()
    return own.user + own.system


if __name__ == "__main__":
    main(*sys.argv[1:])
