"""The modelled scheduler of benchmarks/scaling against cases whose answer is known."""

from __future__ import annotations

import pytest

from benchmarks.scaling.model import (
    LATENCY,
    Machine,
    Phase,
    RunRecord,
    Task,
    client_seconds,
    makespan,
    repeated_phase,
    stacking_phase,
)


def chain(length: int, seconds: float = 1.0, nbytes: int = 0) -> tuple[Task, ...]:
    return tuple(
        Task("step", seconds, 0.0, nbytes, (number - 1,) if number else ())
        for number in range(length)
    )


def test_tasks_without_needs_are_shared_out() -> None:
    tasks = [Task("read", 2.0, 0.0, 0, ())] * 10
    assert makespan(tasks, Machine(1, 0.0, 0.0)) == 20.0
    assert makespan(tasks, Machine(4, 0.0, 0.0)) == 6.0
    assert makespan(tasks, Machine(20, 0.0, 0.0)) == 2.0


def test_what_needs_another_waits_for_it_and_stays_where_it_is() -> None:
    assert makespan(chain(5, nbytes=10**9), Machine(3, 0.0, 0.0)) == 5.0
    one, other = Task("read", 1.0, 0.0, 0, ()), Task("read", 1.0, 0.0, 10**9, ())
    assert makespan(
        [one, other, Task("sum", 1.0, 0.0, 0, (0, 1))], Machine(2, 0.0, 0.0)
    ) == pytest.approx(2.0 + LATENCY)


def test_the_scheduler_gives_out_one_after_another() -> None:
    tasks = [Task("read", 0.5, 0.0, 0, ())] * 100
    assert makespan(tasks, Machine(1000, 0.1, 0.0)) == pytest.approx(10.5)
    assert makespan(tasks, Machine(1, 0.1, 0.25)) == pytest.approx(85.0)


def test_a_campaign_is_the_phase_again_and_again() -> None:
    phase = Phase("phase 1", chain(3), 0.0, 0.0, 0.0)
    many = repeated_phase(phase, 8)
    assert len(many.tasks) == 24 and sum(task.seconds for task in many.tasks) == 24.0
    assert (
        makespan(many.tasks, Machine(1, 0.0, 0.0)) == 24.0
        and makespan(many.tasks, Machine(8, 0.0, 0.0)) == 3.0
    )


def test_stacks_have_longer_tiles_and_more_of_them() -> None:
    sources = Task("sources", 0.0, 0.0, 0, ())
    tiles = [Task("tile", 1.0, 0.0, 0, (0,))] * 2
    phase = Phase(
        "phase 5", (sources, *tiles, Task("catalogue", 1.5, 0.0, 0, (1, 2))), 0.0, 0.0, 0.0
    )
    assert [task.seconds for task in stacking_phase(phase, 4, split=1).tasks] == [
        0.0,
        4.0,
        4.0,
        1.5,
    ]
    more = stacking_phase(phase, 32, split=4)
    assert len(more.tasks) == 10 and sum(task.seconds for task in more.tasks) == 65.5
    assert makespan(more.tasks, Machine(8, 0.0, 0.0)) == pytest.approx(9.5, abs=0.01)


def test_the_client_takes_a_constant_and_so_much_for_each_frame() -> None:
    few, many = (
        RunRecord(seconds, 0, 0, 0.0, 0.0, (Phase("phase 1", (), 0.0, wall, 0.0),))
        for seconds, wall in ((30.0, 22.0), (60.0, 40.0))
    )
    assert client_seconds((16, few), (64, many)) == (4.0, 0.25)
    assert client_seconds((16, few), (16, few)) == (0.0, 0.5)
