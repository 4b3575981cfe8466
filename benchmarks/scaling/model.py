"""What more workers would do: the measured tasks of a run, as often as the campaign has frames, handed to workers on paper.

Assumptions, all of them:

- A campaign has the graphs of the measured run once for each so many frames, with the times and results that were measured.
  But for the last phase: its tiles take as many times longer as there are more frames, and there are SPLIT as many of them
  (`gdask.steps.resample.MANY`); what follows the tiles stays as it is. The field is that of the measured run.
- A phase begins when all of the one before has ended and the client has built its graph (a barrier, as in the code). What
  the client does between phases is a constant (its start, that of the workers) and so much for each frame, from the runs with
  the fewest and the most frames.
- The scheduler gives out one task after another, each in `scheduler` CPU seconds, in dask's order; a worker adds `worker` to
  each task. Both were measured with the same graphs of empty tasks.
- A task goes to the free worker that holds most of what it needs; what others hold comes at BANDWIDTH after LATENCY.
- Reading and writing is as fast for many workers as for one (a parallel file system), and no worker fails.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

#: Bytes a second, and seconds, of a result's way from worker to worker: 10 Gbit/s Ethernet.
BANDWIDTH, LATENCY = 1e9, 1e-3
#: Free workers that are looked at for the one that holds most of what a task needs.
LOOKED_AT = 8
#: As many times more tiles has the stack of many frames.
SPLIT = 4


class Task(NamedTuple):
    """A task as it was measured: kind, seconds of its own and of fetching, bytes of its result, places of what it needs."""

    kind: str
    seconds: float
    fetching: float
    nbytes: int
    needs: tuple[int, ...]


class Phase(NamedTuple):
    """A compute as it was measured: its tasks in dask's order, when it began, its wall seconds, CPU seconds of all workers in it."""

    name: str
    tasks: tuple[Task, ...]
    begun: float
    wall: float
    cpu: float


class Record(NamedTuple):
    """A reduction: wall seconds, bytes and open files of the process tree at most, CPU seconds of the scheduler and of a worker for a task that does nothing, its phases."""

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


def busy(record: Record) -> float:
    """CPU seconds of workers over seconds of tasks: 1 on a quiet machine, less where others had the cores."""
    return sum(p.cpu for p in record.phases) / max(
        sum(t.seconds + record.worker for p in record.phases for t in p.tasks), 1e-9
    )


def quiet(record: Record) -> Record:
    """The record with tasks as long as the CPU that they took: as on a machine that does nothing else."""
    share = min(busy(record), 1.0)
    return record._replace(
        phases=tuple(
            phase._replace(
                tasks=tuple(task._replace(seconds=task.seconds * share) for task in phase.tasks)
            )
            for phase in record.phases
        )
    )


def between_phases(record: Record) -> float:
    """Seconds outside computes: what the client does alone, with its start and that of the workers."""
    return record.seconds - sum(phase.wall for phase in record.phases)


def client_of(few: tuple[int, Record], many: tuple[int, Record]) -> tuple[float, float]:
    """Seconds of the client that do not depend on frames, and for each frame; from two runs, (frames, record)."""
    (n, one), (m, other) = few, many
    if n == m:
        return 0.0, between_phases(one) / n
    slope = max(between_phases(other) - between_phases(one), 0.0) / (m - n)
    return max(between_phases(one) - n * slope, 0.0), slope


def campaign(phase: Phase, times: int) -> Phase:
    """A phase of `times` as many frames."""
    count, more = len(phase.tasks), []
    for copy in range(times):
        more += [
            task._replace(needs=tuple(need + copy * count for need in task.needs))
            for task in phase.tasks
        ]
    return phase._replace(tasks=tuple(more))


def stacking(phase: Phase, times: int, split: int = SPLIT) -> Phase:
    """The last phase of `times` as many frames: `split` tiles (tasks of the kind with most of the time) for each."""
    kind = tile_kind(phase)
    place: dict[int, list[int]] = {}
    tasks: list[Task] = []
    for number, task in enumerate(phase.tasks):
        copies = split if task.kind == kind else 1
        needs = tuple(there for need in task.needs for there in place[need])
        place[number] = list(range(len(tasks), len(tasks) + copies))
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
    after: list[list[int]] = [[] for _ in tasks]
    for number, task in enumerate(tasks):
        for need in set(task.needs):
            after[need].append(number)
    ready = [number for number, count in enumerate(missing) if not count]
    free, home = list(range(machine.workers)), [0] * len(tasks)
    heapq.heapify(ready)
    ends: list[tuple[float, int, int]] = []
    now = scheduler = 0.0
    while ready or ends:
        while ready and free:
            number = heapq.heappop(ready)
            at = _best(tasks, tasks[number].needs, home, free)
            worker = home[number] = free[at]
            free[at] = free[-1]
            free.pop()
            scheduler = max(scheduler, now) + machine.scheduler
            elsewhere = [tasks[need].nbytes for need in tasks[number].needs if home[need] != worker]
            fetching = sum(elsewhere) / BANDWIDTH + LATENCY * bool(elsewhere)
            heapq.heappush(
                ends,
                (scheduler + machine.worker + fetching + tasks[number].seconds, number, worker),
            )
        now, number, worker = heapq.heappop(ends)
        free.append(worker)
        for other in after[number]:
            missing[other] -= 1
            if not missing[other]:
                heapq.heappush(ready, other)
    return now


def _best(
    tasks: Sequence[Task], needs: Sequence[int], home: Sequence[int], free: Sequence[int]
) -> int:
    """The place in `free` of the worker that holds most of what is needed."""
    if not needs:
        return len(free) - 1
    held: dict[int, int] = {}
    for need in needs:
        held[home[need]] = held.get(home[need], 0) + tasks[need].nbytes
    first = max(0, len(free) - LOOKED_AT)
    best = max(range(first, len(free)), key=lambda at: held.get(free[at], -1))
    holder = max(held, key=held.__getitem__)
    return best if held.get(free[best]) or holder not in free else free.index(holder)
