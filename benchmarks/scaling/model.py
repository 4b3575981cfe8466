"""What more workers would do: the tasks of each phase handed out to workers on paper.

Assumptions: tasks of a phase take the mean time that was measured and do not wait for each other within a frame (so a phase
ends with its slowest worker's last task); a phase begins when the one before has ended (a barrier, as in the code); the
scheduler handles one task after another, each in the measured time; work on the client (fits, tables) grows with the number
of frames; reading and writing are as fast for many workers as for one (a parallel file system).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple


class Phase(NamedTuple):
    """Of one phase: its name, tasks for each frame, seconds of one task, seconds on the client for each frame."""

    name: str
    tasks: float
    seconds: float
    client: float


def wall(phases: Sequence[Phase], frames: int, workers: int, per_task: float) -> float:
    """Seconds of a campaign: phase after phase, tasks given out by a scheduler that needs `per_task` seconds for each."""
    return sum(_phase(math.ceil(phase.tasks * frames), phase.seconds, workers, per_task) + phase.client * frames for phase in phases)


def efficiency(phases: Sequence[Phase], frames: int, workers: int, per_task: float) -> float:
    """Speed with so many workers, over so many times the speed of one."""
    return wall(phases, frames, 1, per_task) / workers / wall(phases, frames, workers, per_task)


def _phase(tasks: int, seconds: float, workers: int, per_task: float) -> float:
    """The end of the last task: each is begun by the first free worker, once the scheduler has come to it."""
    free = [0.0] * workers
    for number in range(tasks):
        begin = max(free[0], number * per_task)
        heapq.heapreplace(free, begin + seconds)
    return max(free, default=0.0) if tasks else 0.0
