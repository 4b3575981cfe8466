"""The memory of a compute, projected from its graph before anything runs, and fitted to a budget.

Each task declares its bytes (`lazy_arrays.Need`); the peak follows from the order in which dask
runs the tasks and from how many run at a time. No pixel is touched.

In this order: the budget; fitting a graph to it; the simulation of a graph; the cost of one task.
"""

from __future__ import annotations

import gc
import heapq
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from gdask.cluster import machine_memory, memory_limit
from gdask.io.dask_internals import Node, bare_function, key_of, needs_of, run_order, take_apart
from gdask.io.process_memory import return_freed_memory
from gdask.model import DIMS, MemoryRefused, UsageError, settings

#: Bytes of a process before any pixels: interpreter, libraries, compiled kernels. Measured in
#: reductions of small nights: 320 to 400 MB.
PROCESS_BYTES = 420e6
#: Share of the machine's memory, or of the limit of its control group, that is used where no
#: budget is given.
DEFAULT_MEMORY_SHARE = 0.8
#: Bytes for each pixel of a raw frame, and bytes beside, that are enough for each phase of the
#: shipped recipes: 16 full-size frames of GSAOI take 51 a pixel for their image, on two threads;
#: the catalogue of a crowded image of any size up to 0.4 GB.
AMPLE_PIXEL_BYTES, AMPLE_BYTES = 200.0, 1e9
#: Bytes of each unit of --memory, without its B.
_UNIT_BYTES = {
    "": 1,
    "b": 1,
    "k": 1e3,
    "m": 1e6,
    "g": 1e9,
    "t": 1e12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


class Value(NamedTuple):
    """The projected result of a task: pixels of its plane, and bytes of each of them (`item`).

    `items` are those of each plane where there are several.
    """

    pixels: float
    item: float
    items: tuple[float, ...] = ()

    @property
    def bytes(self) -> float:
        """Bytes of the whole plane."""
        return self.pixels * self.item


class Cost(NamedTuple):
    """The projected memory of one task.

    value: its result. scratch: bytes beside inputs and result while it runs. base: key of the task
    of whose result this one is a view; None where it has memory of its own. bundle: key of the task
    that has made this plane together with others; it is freed with the bundle or by itself,
    whichever comes later.
    """

    value: Value
    scratch: float
    base: object = None
    bundle: object = None


class Projection(NamedTuple):
    """The projected memory of one compute, without PROCESS_BYTES.

    tasks: their number. largest: bytes of the largest task with its inputs. peak: bytes at the
    peak.
    """

    tasks: int
    largest: float
    peak: float


#: The base of results inside a fused task that are inputs of the whole.
_OUTSIDE = "outside"
NO_COST = Cost(Value(0, 0.0), 0.0)


#: Share of the budget that a process may hold between phases without giving back what is free.
KEPT_SHARE = 0.1

#: Reductions that have paused the collection of garbage, and the thresholds from before.
_PAUSED: list[tuple[int, int, int]] = []
#: Computes since the first of them has begun.
_COMPUTES = {"count": 0}


@contextmanager
def garbage_left() -> Iterator[None]:
    """Collect no garbage inside the `with` block, but for computes (`garbage_collected`).

    The client builds frames and graphs that live on: Python looked through all of them again and
    again, a fifth of the client's time, for some 200 objects a frame that are garbage in a circle.
    It is the thresholds that are changed: dask switches the collection off and on by itself.
    """
    if not _PAUSED:
        _COMPUTES["count"] = 0
    _PAUSED.append(_PAUSED[0] if _PAUSED else gc.get_threshold())
    gc.set_threshold(0)
    try:
        yield
    finally:
        before = _PAUSED.pop()
        if not _PAUSED:
            gc.unfreeze()
            gc.set_threshold(*before)


@contextmanager
def garbage_collected() -> Iterator[None]:
    """Collect garbage inside the `with` block, where `garbage_left` has paused it.

    Tasks may make large garbage in circles (astropy's file objects).
    """
    if not _PAUSED:
        yield
        return
    if _COMPUTES["count"]:
        gc.collect()  # what the last compute has left
    _COMPUTES["count"] += 1
    gc.freeze()  # what the client has built lives on: looking through it takes 0.1 s
    gc.set_threshold(*_PAUSED[0])
    try:
        yield
    finally:
        if _PAUSED:
            gc.set_threshold(0)


def parse_bytes(text: str | float | None) -> int | None:
    """Give the bytes of '2GiB', '500 MB' or a number; None stays None. Else raise UsageError."""
    if text is None or isinstance(text, (int, float)) and not isinstance(text, bool) and text > 0:
        return None if text is None else int(text)
    number = str(text).strip().rstrip("bB").rstrip()
    unit = number.lstrip("0123456789.")
    try:
        size = float(number.removesuffix(unit)) * _UNIT_BYTES[unit.strip().lower()]
    except (ValueError, KeyError):
        raise UsageError(
            f"--memory {text}: expected a number with a unit, such as 2GiB or 500MB"
        ) from None
    if size < 1e6:
        raise UsageError(
            f"--memory {text}: that is {size:.0f} bytes; expected a unit, such as 2GiB"
        )
    return int(size)


def budget() -> float:
    """Give the bytes that one worker may use.

    They are what `gdask.cluster.connect` has set, from --memory or the workers' limits; else a
    share of the machine's memory.
    """
    return float(settings().memory or DEFAULT_MEMORY_SHARE * machine_memory())


def is_ample(frame: Any) -> bool:
    """Tell whether the budget is so large that no phase with Frames like this one is refused."""
    pixels = float(np.prod([frame.sizes[name] for name in DIMS]))
    return budget() >= process_bytes() + AMPLE_BYTES + AMPLE_PIXEL_BYTES * pixels


def process_bytes() -> float:
    """Give the bytes that this process takes before a compute."""
    import psutil

    return max(PROCESS_BYTES, float(psutil.Process().memory_info().rss))


def return_much_freed_memory() -> None:
    """Return freed memory to the system, between phases, where this process holds much of it.

    Much is KEPT_SHARE of the budget: given back and faulted in again it takes system time.
    """
    import psutil

    if psutil.Process().memory_info().rss > KEPT_SHARE * budget():
        return_freed_memory()


def fit(
    graph: Mapping[Any, Any],
    available: float,
    threads: int,
    what: str,
    base: float = PROCESS_BYTES,
    fixed: bool = False,
) -> tuple[int, Projection]:
    """Give the number of tasks that may run at a time, and the projection for that number.

    It is the largest number up to `threads` that fits `available` bytes, of which `base` are taken
    before any pixels. Raises MemoryRefused, which names the compute as `what`, where not even one
    task fits, or where the number is `fixed` and that many do not.
    """
    plan = _costed(graph)
    projection = simulate(*plan, threads)
    while base + projection.peak > available and threads > 1 and not fixed:
        threads -= 1
        projection = simulate(*plan, threads)
    if base + projection.peak > available:
        raise MemoryRefused(_refusal(what, available, base, projection, threads))
    return threads, projection


def _refusal(what: str, available: float, base: float, projection: Projection, threads: int) -> str:
    needed, gib = base + projection.peak, 2**30
    enough = np.ceil(needed / settings().share / gib * 10 + 0.5) / 10
    fewer_threads = f" or workers with fewer than {threads} threads" if threads > 1 else ""
    return (
        f"{what}: needs {needed / gib:.2f} GiB in one worker ({base / gib:.2f} for the process, "
        f"{projection.peak / gib:.2f} at the peak of {projection.tasks} tasks, "
        f"{projection.largest / gib:.2f} for the largest); {available / gib:.2f} GiB may be used"
        f"{_source_of_budget()}; "
        f"give --memory {enough:.1f}GiB{fewer_threads}"
    )


def _source_of_budget() -> str:
    """Say what the budget comes from where the user has given none."""
    if settings().memory:
        return ""
    return f", {100 * DEFAULT_MEMORY_SHARE:.0f} % of {memory_limit().source}"


def project(graph: Mapping[Any, Any], threads: int = 1) -> Projection:
    """Project an optimised graph with `threads` tasks at a time.

    Tasks begin in dask's order, as soon as their inputs are there.
    """
    return simulate(*_costed(graph), threads)


def _costed(graph: Mapping[Any, Any]) -> tuple[list, dict[object, tuple], dict[object, Cost]]:
    """Give the keys in dask's order, the keys that each needs, and the cost of each."""
    priority = run_order(graph)
    keys = sorted(graph, key=priority.__getitem__)
    needs = {key: needs_of(graph[key]) for key in keys}
    costs: dict[object, Cost] = {}
    for key in _after_inputs(keys, needs):
        costs[key] = cost_of(graph[key], costs)
    return keys, needs, costs


def simulate(
    keys: Sequence[Any], needs: Mapping[Any, Sequence[Any]], costs: Mapping[Any, Cost], threads: int
) -> Projection:
    """Run tasks on paper, in the order of `keys`, all taking the same time.

    A result lives until the last task has ended that reads it or a view of it.
    """
    place = {key: number for number, key in enumerate(keys)}
    held = {key: {_holder(need, costs) for need in needs[key]} for key in keys}
    users = Counter(holder for key in keys for holder in held[key])
    size = {key: costs[key].value.bytes if costs[key].base is None else 0.0 for key in keys}
    missing = {key: sum(need in place for need in needs[key]) for key in keys}
    waiting_for: dict[Any, list] = {}
    for key in keys:
        for need in needs[key]:
            waiting_for.setdefault(need, []).append(key)
    planes: dict[Any, list] = {}
    for key in keys:
        if costs[key].bundle is not None:
            planes.setdefault(costs[key].bundle, []).append(key)
    freed: set[Any] = set()

    def free(holder: Any) -> float:
        """Free a result without users; give the bytes that this gives back."""
        freed.add(holder)
        in_use = sum(size[plane] for plane in planes.get(holder, ()) if plane not in freed)
        is_in_bundle = (
            holder in costs
            and costs[holder].bundle is not None
            and costs[holder].bundle not in freed
        )
        return 0.0 if is_in_bundle else size.get(holder, 0.0) - in_use

    ready = [place[key] for key in keys if not missing[key]]  # in order, so a heap
    running: deque[Any] = deque()
    live = peak = largest = 0.0
    while ready or running:
        while ready and len(running) < threads:
            key = keys[heapq.heappop(ready)]
            running.append(key)
            live += costs[key].scratch + (size[key] if costs[key].bundle is None else 0.0)
            largest = max(
                largest,
                size[key] + costs[key].scratch + sum(size.get(holder, 0.0) for holder in held[key]),
            )
        peak = max(peak, live)
        key = running.popleft()
        live -= costs[key].scratch
        for holder in held[key]:
            users[holder] -= 1
            live -= free(holder) if not users[holder] else 0.0
        for waiting in waiting_for.get(key, ()):
            missing[waiting] -= 1
            if not missing[waiting]:
                heapq.heappush(ready, place[waiting])
    return Projection(len(keys), largest, peak)


def _holder(key: Any, costs: Mapping[Any, Cost]) -> Any:
    """Give the task to which the memory of a result belongs: itself, except for views."""
    while key in costs and costs[key].base is not None:
        key = costs[key].base
    return key


def _after_inputs(keys: Iterable[Any], needs: Mapping[Any, Sequence[Any]]) -> Iterable[Any]:
    """Give the keys and all that they need, each after its inputs."""
    done: set[Any] = set()
    for first in keys:
        stack = [first]
        while stack:
            waiting = [
                need for need in needs.get(stack[-1], ()) if need not in done and need in needs
            ]
            if waiting:
                stack.extend(waiting)
            elif (key := stack.pop()) not in done:
                done.add(key)
                yield key


def cost_of(node: Any, costs: Mapping[Any, Cost]) -> Cost:
    """Give the cost of one node of a graph, from the costs of what it needs.

    gdask's tasks declare what they need (`lazy_arrays.Need`). dask's own put results together or
    cut them.
    """
    parts = take_apart(node)
    if parts.kind == "alias":
        target = parts.arguments[0]
        return Cost(costs[target].value, 0.0, target) if target in costs else NO_COST
    if parts.kind == "fused":
        return _fused(parts, costs)
    inputs = [costs[key].value for key in parts.needs if key in costs]
    item = max((value.item for value in inputs), default=0.0)
    together = Value(sum(value.pixels for value in inputs), item)
    if parts.kind == "list":
        return Cost(together, 0.0)
    if parts.kind == "value":
        return NO_COST
    need = getattr(parts.function, "need", None)
    if need is not None:
        return Cost(Value(need.pixels, need.item, need.items), need.scratch)
    if bare_function(parts.function).__name__ == "getitem":
        if isinstance(parts.arguments[1], int):
            return _one_of_several(inputs[0], parts.arguments[1])._replace(bundle=parts.needs[0])
        base = next(iter(parts.needs), None)
        return Cost(Value(_cut(inputs, parts.arguments[1:]), item), 0.0, base)
    return Cost(together, 0.0)  # parts put together, at most all of them


def _one_of_several(planes: Value, number: int) -> Cost:
    """Give the cost of taking one of the planes that a task has made together."""
    items = planes.items or (planes.item,)
    return Cost(Value(planes.pixels, items[number % len(items)]), 0.0)


def _cut(inputs: Sequence[Value], index: Sequence[Any]) -> int:
    """Give the pixels of a plane cut by slices; all of them where the slices have open ends."""
    given = index[0] if index and isinstance(index[0], tuple) else ()
    slices = [part for part in given if isinstance(part, slice)]
    whole = int(sum(value.pixels for value in inputs))
    sides = [
        part.stop - part.start
        for part in slices[-2:]
        if isinstance(part.stop, int) and isinstance(part.start, int)
    ]
    return min(whole, int(np.prod(sides))) if len(sides) == 2 else whole


def _fused(parts: Node, costs: Mapping[Any, Cost]) -> Cost:
    """Give the cost of several tasks that run as one: their peak, without inputs of the whole."""
    known: dict[Any, Cost] = {}
    for name, argument in zip(parts.names, parts.arguments, strict=True):
        key = key_of(argument)
        known[name] = costs[key]._replace(scratch=0.0, base=_OUTSIDE) if key in costs else NO_COST
    inner = parts.inner or {}
    needs = {key: needs_of(task) for key, task in inner.items()}
    keys = [key for key in _after_inputs([parts.result], needs) if key not in known]
    for key in keys:
        known[key] = cost_of(inner[key], known)
    peak = simulate(keys, {key: needs[key] for key in keys}, known, 1).peak
    value, holder = known[parts.result].value, _holder(parts.result, known)
    if holder is _OUTSIDE:
        return Cost(value, peak, next(iter(parts.needs), None))
    kept = known[holder].value.bytes  # a view of what was made inside keeps all of it
    return Cost(Value(value.pixels, kept / max(value.pixels, 1)), max(peak - kept, 0.0))
