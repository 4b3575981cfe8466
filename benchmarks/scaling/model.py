"""What more workers would do: measured tasks, repeated and given to workers on paper.

Assumptions, all of them:

- A campaign has the graphs of the measured run, once for each as many frames, with the times and
  results that were measured. But for the last phase: its tiles take as many times longer as there
  are more frames, and there are TILE_SPLIT as many of them
  (`gdask.steps.resample.MANY_FRAMES`); what follows the tiles stays as it is. The field is that of
  the measured run.
- A phase begins when all of the one before has ended and the client has built its graph (a
  barrier, as in the code). What the client does between phases is a constant (its start, that of
  the workers) and so much for each frame, from the runs with the fewest and the most frames.
- The scheduler gives out one task after another, each in `scheduler` CPU seconds, in dask's order;
  a worker adds `worker` to each task. Both were measured with the same graphs of empty tasks.
- A task goes to the free worker that holds most of what it needs; what others hold comes at
  BANDWIDTH after LATENCY.
- Reading and writing is as fast for many workers as for one (a parallel file system), and no
  worker fails.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

#: Bytes a second, and seconds, of a result's way between workers: 10 Gbit/s Ethernet.
BANDWIDTH, LATENCY = 1e9, 1e-3
#: Free workers that are compared for the one that holds most of what a task needs.
WORKERS_COMPARED = 8
#: The stack of many frames has so many times more tiles.
TILE_SPLIT = 4


class Task(NamedTuple):
    """A task as it was measured.

    seconds: of its own; fetching: of fetching what it needs; nbytes: of its result; needs: places
    of the tasks whose results it needs.
    """

    kind: str
    seconds: float
    fetching: float
    nbytes: int
    needs: tuple[int, ...]


class Phase(NamedTuple):
    """A compute as it was measured.

    tasks: in dask's order; begun: when (s since the epoch); wall: s; cpu: s of all workers.
    """

    name: str
    tasks: tuple[Task, ...]
    begun: float
    wall: float
    cpu: float


class RunRecord(NamedTuple):
    """A measured reduction.

    seconds: wall; peak, files: most bytes and open files of the process tree; scheduler, worker:
    CPU seconds of each for a task that does nothing.
    """

    seconds: float
    peak: int
    files: int
    scheduler: float
    worker: float
    phases: tuple[Phase, ...]


class Machine(NamedTuple):
    """Workers, and seconds that the scheduler and a worker need for each task."""

    workers: int
    scheduler: float
    worker: float


def cpu_share(record: RunRecord) -> float:
    """CPU seconds of workers over seconds of tasks.

    1 on a quiet machine, less where others had the cores.
    """
    cpu = sum(phase.cpu for phase in record.phases)
    spent = sum(task.seconds + record.worker for phase in record.phases for task in phase.tasks)
    return cpu / max(spent, 1e-9)


def on_quiet_machine(record: RunRecord) -> RunRecord:
    """The record with tasks as long as their CPU time: as on a machine that does nothing else."""
    share = min(cpu_share(record), 1.0)
    return record._replace(
        phases=tuple(
            phase._replace(
                tasks=tuple(task._replace(seconds=task.seconds * share) for task in phase.tasks)
            )
            for phase in record.phases
        )
    )


def seconds_between_phases(record: RunRecord) -> float:
    """Seconds outside computes: what the client does alone, its start and that of the workers."""
    return record.seconds - sum(phase.wall for phase in record.phases)


def client_seconds(
    fewest: tuple[int, RunRecord], most: tuple[int, RunRecord]
) -> tuple[float, float]:
    """Seconds of the client once, and for each frame; from two runs, (frames, record)."""
    frames, more_frames = fewest[0], most[0]
    seconds, more_seconds = (seconds_between_phases(run[1]) for run in (fewest, most))
    if frames == more_frames:
        return 0.0, seconds / frames
    each_frame = max(more_seconds - seconds, 0.0) / (more_frames - frames)
    return max(seconds - frames * each_frame, 0.0), each_frame


def repeated_phase(phase: Phase, times: int) -> Phase:
    """A phase of `times` as many frames."""
    count = len(phase.tasks)
    tasks: list[Task] = []
    for copy in range(times):
        tasks += [
            task._replace(needs=tuple(need + copy * count for need in task.needs))
            for task in phase.tasks
        ]
    return phase._replace(tasks=tuple(tasks))


def stacking_phase(phase: Phase, times: int, split: int = TILE_SPLIT) -> Phase:
    """The last phase of `times` as many frames.

    Tiles (tasks of the kind that takes most of the time) become `split` tiles each.
    """
    kind = tile_kind(phase)
    places: dict[int, list[int]] = {}
    tasks: list[Task] = []
    for number, task in enumerate(phase.tasks):
        copies = split if task.kind == kind else 1
        needs = tuple(place for need in task.needs for place in places[need])
        places[number] = list(range(len(tasks), len(tasks) + copies))
        seconds = task.seconds * times / copies if task.kind == kind else task.seconds
        tasks += [
            task._replace(seconds=seconds, nbytes=task.nbytes // copies, needs=needs)
        ] * copies
    return phase._replace(tasks=tuple(tasks))


def tile_kind(phase: Phase) -> str:
    """The kind of tasks that take most of the time."""
    sums: dict[str, float] = {}
    for task in phase.tasks:
        sums[task.kind] = sums.get(task.kind, 0.0) + task.seconds
    return max(sums, key=lambda kind: (sums[kind], kind))


def makespan(tasks: Sequence[Task], machine: Machine) -> float:
    """Seconds until the last task has ended."""
    missing = [len(set(task.needs)) for task in tasks]
    dependents: list[list[int]] = [[] for _ in tasks]
    for number, task in enumerate(tasks):
        for need in set(task.needs):
            dependents[need].append(number)
    ready = [number for number, count in enumerate(missing) if not count]
    free, worker_of = list(range(machine.workers)), [0] * len(tasks)
    heapq.heapify(ready)
    ends: list[tuple[float, int, int]] = []
    now = scheduler = 0.0
    while ready or ends:
        while ready and free:
            number = heapq.heappop(ready)
            needs = tasks[number].needs
            place = _place_of_best_worker(tasks, needs, worker_of, free)
            worker = worker_of[number] = free[place]
            free[place] = free[-1]
            free.pop()
            scheduler = max(scheduler, now) + machine.scheduler
            remote = [tasks[need].nbytes for need in needs if worker_of[need] != worker]
            fetching = sum(remote) / BANDWIDTH + LATENCY * bool(remote)
            end = scheduler + machine.worker + fetching + tasks[number].seconds
            heapq.heappush(ends, (end, number, worker))
        now, number, worker = heapq.heappop(ends)
        free.append(worker)
        for dependent in dependents[number]:
            missing[dependent] -= 1
            if not missing[dependent]:
                heapq.heappush(ready, dependent)
    return now


def _place_of_best_worker(
    tasks: Sequence[Task], needs: Sequence[int], worker_of: Sequence[int], free: Sequence[int]
) -> int:
    """The place in `free` of the worker that holds most of what is needed."""
    if not needs:
        return len(free) - 1
    held: dict[int, int] = {}
    for need in needs:
        held[worker_of[need]] = held.get(worker_of[need], 0) + tasks[need].nbytes
    first = max(0, len(free) - WORKERS_COMPARED)
    best = max(range(first, len(free)), key=lambda place: held.get(free[place], -1))
    holder = max(held, key=held.__getitem__)
    return best if held.get(free[best]) or holder not in free else free.index(holder)
