"""What a compute will need at its peak, projected from its graph before anything runs, and a plan that fits the budget.

Each task's bytes follow from the blocks that it reads, its declared scratch (`memory.toml`) and its result; the peak
follows from the order in which dask runs the tasks, with so many at a time. No pixel is touched.
"""

from __future__ import annotations

import functools
import heapq
import tomllib
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gdask.model import GdaskError, UsageError, settings

#: Bytes of a process before any pixels: interpreter, libraries, compiled kernels. Reductions of small nights hold 320 to 400 MB.
BASE = 420e6
#: Share of the machine's memory, or of the limit of its control group, that is used where no budget is given.
SHARE = 0.8
#: Share of the budget that one stage of a task may gather (the stages of a fused task overlap, and there is scratch).
GATHERED = 0.15
_UNITS = {
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
    """A task's result as it is projected: pixels of its plane, bytes for each of them."""

    pixels: int
    item: float

    @property
    def bytes(self) -> float:
        return self.pixels * self.item


class Cost(NamedTuple):
    """Of one task: its result, bytes taken beside inputs and result while it runs, whose memory the result is a view of."""

    value: Value
    scratch: float
    base: object = None
    literal: object = None  # where it is no task but a value that is part of the graph


class Projection(NamedTuple):
    """Of one compute: number of tasks, bytes of the largest task with its inputs, bytes at the peak, both without BASE."""

    tasks: int
    largest: float
    peak: float


#: Memory that a fused task has not made itself.
_OUTSIDE = "outside"
#: Bytes of one pixel's data, variance and data quality.
_PACKED = 10.0
NOTHING = Cost(Value(0, 0.0), 0.0)


def parse_bytes(text: str | float | None) -> int | None:
    """'2GiB', '500 MB' or a number of bytes; None stays None. UsageError for anything else."""
    if text is None or isinstance(text, (int, float)) and not isinstance(text, bool) and text > 0:
        return None if text is None else int(text)
    number = str(text).strip().rstrip("bB").rstrip()
    unit = number.lstrip("0123456789.")
    try:
        size = float(number.removesuffix(unit)) * _UNITS[unit.strip().lower()]
    except (ValueError, KeyError):
        raise UsageError(
            f"--memory {text}: expected a number with a unit, such as 2GiB or 500MB"
        ) from None
    if size < 1e6:
        raise UsageError(
            f"--memory {text}: that is {size:.0f} bytes; expected a unit, such as 2GiB"
        )
    return int(size)


def of_the_machine() -> float:
    """Bytes that this machine, or the control group that this process is in, has."""
    import psutil

    limits = [float(psutil.virtual_memory().total)]
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(float(Path(name).read_text()))
        except (OSError, ValueError):
            continue  # no control group, or no limit: "max"
    return min(limits)


def budget() -> float:
    """Bytes that one worker may use: what `gdask.cluster.connect` has set, from --memory or the workers, else the machine's."""
    return float(settings().memory or SHARE * of_the_machine())


def rows_within(row_bytes: float, most: int, fewest: int) -> int:
    """Rows of a band of which one task gathers `row_bytes` for each row: as many as the budget allows, within limits."""
    threads = max(settings().threads, 1)
    return int(np.clip((budget() - BASE) / threads * GATHERED / max(row_bytes, 1), fewest, most))


def fit(
    graph: Mapping[Any, Any],
    available: float,
    threads: int,
    what: str,
    base: float = BASE,
    fixed: bool = False,
) -> tuple[int, Projection]:
    """How many tasks may run at a time within `available` bytes, at most `threads`, and the projection for that number.

    Raises GdaskError with the numbers where not even one does (where the number is `fixed`: where that many do not).
    """
    plan = _costed(graph)
    projection = _simulate(*plan, threads)
    while base + projection.peak > available and threads > 1 and not fixed:
        threads -= 1
        projection = _simulate(*plan, threads)
    if base + projection.peak > available:
        raise GdaskError(_refusal(what, available, base, projection, threads))
    return threads, projection


def _refusal(what: str, available: float, base: float, projection: Projection, threads: int) -> str:
    needed, gib = base + projection.peak, 2**30
    knob = np.ceil(needed / settings().share / gib * 10 + 0.5) / 10
    return (
        f"{what}: needs {needed / gib:.2f} GiB in one worker ({base / gib:.2f} for the process, {projection.peak / gib:.2f} at the peak of "
        f"{projection.tasks} tasks, {projection.largest / gib:.2f} for the largest); {available / gib:.2f} GiB may be used; "
        f"give --memory {knob:.1f}GiB{f' or workers with fewer than {threads} threads' if threads > 1 else ''}"
    )


@functools.cache
def declared() -> dict[str, dict[str, float]]:
    """Scratch and results of functions in tasks, `memory.toml`: bytes per pixel of the largest plane, share of the inputs."""
    return tomllib.loads(resources.files(__package__).joinpath("memory.toml").read_text())["task"]


def project(graph: Mapping[Any, Any], threads: int = 1) -> Projection:
    """The peak of an optimised graph with `threads` tasks at a time, begun in dask's order as their inputs are there."""
    return _simulate(*_costed(graph), threads)


def _costed(graph: Mapping[Any, Any]) -> tuple[list, dict[object, tuple], dict[object, Cost]]:
    """Keys in dask's order, what each needs, what each costs."""
    from dask.order import order

    priority = order(graph)
    keys = sorted(graph, key=priority.__getitem__)
    needs = {key: tuple(graph[key].dependencies) for key in keys}
    costs: dict[object, Cost] = {}
    for key in _after_inputs(keys, needs):
        costs[key] = cost_of(graph[key], costs)
    return keys, needs, costs


def _simulate(
    keys: Sequence[Any], needs: Mapping[Any, Sequence[Any]], costs: Mapping[Any, Cost], threads: int
) -> Projection:
    """Run the tasks on paper, each as long as the others. A result lives until the last that reads it, or a view of it, has ended."""
    place = {key: number for number, key in enumerate(keys)}
    held = {key: {_holder(need, costs) for need in needs[key]} for key in keys}
    users = Counter(holder for key in keys for holder in held[key])
    size = {key: costs[key].value.bytes if costs[key].base is None else 0.0 for key in keys}
    missing = {key: sum(need in place for need in needs[key]) for key in keys}
    after: dict[Any, list] = {}
    for key in keys:
        for need in needs[key]:
            after.setdefault(need, []).append(key)
    ready = [place[key] for key in keys if not missing[key]]  # in order, so a heap
    running: deque[Any] = deque()
    live = peak = largest = 0.0
    while ready or running:
        while ready and len(running) < threads:
            key = keys[heapq.heappop(ready)]
            running.append(key)
            live += size[key] + costs[key].scratch
            largest = max(
                largest,
                size[key] + costs[key].scratch + sum(size.get(one, 0.0) for one in held[key]),
            )
        peak = max(peak, live)
        key = running.popleft()
        live -= costs[key].scratch
        for holder in held[key]:
            users[holder] -= 1
            live -= size.get(holder, 0.0) if not users[holder] else 0.0
        for other in after.get(key, ()):
            missing[other] -= 1
            if not missing[other]:
                heapq.heappush(ready, place[other])
    return Projection(len(keys), largest, peak)


def _holder(key: Any, costs: Mapping[Any, Cost]) -> Any:
    """The task whose memory a result is: itself, but for views."""
    while key in costs and costs[key].base is not None:
        key = costs[key].base
    return key


def _after_inputs(keys: Iterable[Any], needs: Mapping[Any, Sequence[Any]]) -> Iterable[Any]:
    """The keys and all that they need, each after its inputs."""
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
    """What one node of a graph costs, given the costs of what it needs."""
    if hasattr(node, "target"):  # another name for a result
        return Cost(costs[node.target].value, 0.0, node.target) if node.target in costs else NOTHING
    inputs = [costs[key].value for key in node.dependencies if key in costs]
    if not hasattr(node, "func"):
        if not inputs:
            return NOTHING._replace(literal=getattr(node, "value", None))
        return Cost(
            Value(sum(v.pixels for v in inputs), max((v.item for v in inputs), default=0.0)), 0.0
        )
    function, options = _bare(node.func), getattr(node.func, "keywords", {}) | node.kwargs
    if function.__name__ == "_execute_subgraph":
        return _fused(node, costs)
    if function.__name__ == "_pass_extra_kwargs":
        first = node.args[0]  # the function itself, or where it is
        key = getattr(first, "key", None)  # of a reference; a literal of the graph has none
        function = _bare(costs[key].literal if key is not None and key in costs else first.value)
    label = f"{function.__module__}.{function.__name__}"
    if label.endswith(".getitem"):
        base = next(iter(node.dependencies), None)
        return Cost(
            Value(_cut(inputs, node.args[1:]), max((v.item for v in inputs), default=0.0)),
            0.0,
            base,
        )
    return _of_task(label, options, inputs)


def _bare(function: Any) -> Any:
    """A function without what was bound to it; something with a name where it is none."""
    while hasattr(function, "func"):
        function = function.func
    return function if hasattr(function, "__name__") else type(function)


def _cut(inputs: Sequence[Value], index: Sequence[Any]) -> int:
    """Pixels of a plane cut by slices; all of them where the slices leave that open."""
    slices = [
        part
        for part in (index[0] if index and isinstance(index[0], tuple) else ())
        if isinstance(part, slice)
    ]
    whole = sum(value.pixels for value in inputs)
    sides = [
        part.stop - part.start
        for part in slices[-2:]
        if isinstance(part.stop, int) and isinstance(part.start, int)
    ]
    return min(whole, int(np.prod(sides))) if len(sides) == 2 else whole


def _of_task(label: str, options: Mapping[str, Any], inputs: Sequence[Value]) -> Cost:
    """Result and scratch of a function, by what is declared of it; of one that is not known, what its inputs take."""
    sizes = [v.pixels for v in inputs if v.item >= 1] or [
        v.pixels for v in inputs
    ]  # a level, say, is small whatever it is of
    pixels, taken = max(sizes, default=0), sum(v.bytes for v in inputs)
    result = max((v.item for v in inputs), default=1.0)
    if "kernel" in options:
        label = f"{options['kernel'].__module__}.{options['kernel'].__name__}"
        result = 0.5 if options.get("whole") else float(options["out_type"].itemsize)
    elif not label.startswith("gdask."):  # dask's own: parts put together, at most all of them
        return Cost(Value(sum(v.pixels for v in inputs), result), 0.0)
    planes = options.get("planes", ())
    if planes:
        plane = planes[0][0] if isinstance(planes[0][0], tuple) else planes[0]
        grid = options.get("grid")
        width = min(options["rows"], grid.shape[1]) if grid else plane.shape[1]
        pixels = (
            int(
                min(
                    options.get("height") or options.get("rows") or plane.shape[0],
                    (grid or plane).shape[0],
                )
            )
            * width
        )
        taken = float(np.prod(plane.shape)) * _PACKED if grid or plane.offset < 0 else 0.0
        result = float(np.dtype(options.get("pixel_type", "f4")).itemsize)
    if "gathers" in options:  # a tile from the files of many frames
        y1, y2, x1, x2 = options["window"]
        pixels, result, taken = (y2 - y1) * (x2 - x1), _PACKED, options["gathers"]
    row = declared().get(label, {"scratch": 16.0, "inputs": 2.0})
    result = max(row.get("result", result), row.get("gives", 0.0) * taken / max(pixels, 1))
    return Cost(
        Value(pixels, result), row.get("scratch", 0.0) * pixels + row.get("inputs", 0.0) * taken
    )


def _fused(node: Any, costs: Mapping[Any, Cost]) -> Cost:
    """Several tasks run as one: their peak without what came from outside."""
    inner, out, names, *given = node.args
    known: dict[Any, Cost] = {}
    for name, value in zip(names, given, strict=True):
        key = getattr(value, "key", None) if type(value).__name__ in ("TaskRef", "Alias") else None
        known[name] = (
            costs[key]._replace(scratch=0.0, base=_OUTSIDE)
            if key in costs
            else NOTHING._replace(literal=getattr(value, "value", value))
        )
    needs = {key: tuple(task.dependencies) for key, task in inner.items()}
    keys = [key for key in _after_inputs([out], needs) if key not in known]
    for key in keys:
        known[key] = cost_of(inner[key], known)
    peak = _simulate(keys, {key: needs[key] for key in keys}, known, 1).peak
    value, holder = known[out].value, _holder(out, known)
    if holder is _OUTSIDE:
        return Cost(value, peak, next(iter(node.dependencies), None))
    kept = known[holder].value.bytes  # a view of what was made inside keeps all of it
    return Cost(Value(value.pixels, kept / max(value.pixels, 1)), max(peak - kept, 0.0))
