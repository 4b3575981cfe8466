"""Every use that gdask makes of parts of dask which its documentation does not promise, in one place.

tests/io/test_dask_internals.py has a test for each function, so that a new version of dask that changes one of them
fails there, with its name, and not somewhere in a reduction.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import dask.array as da
from dask._task_spec import Alias, DataNode, NestedContainer, Task, TaskRef
from dask.base import collections_to_expr, get_scheduler
from dask.blockwise import blockwise
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph
from dask.layers import ArrayBlockIdDep

#: A graph: tasks by key.
Tasks = Mapping[Any, Any]
#: How names of layers begin that put values into blocks, and cut or join blocks, and change none.
_ARRANGING = ("xarray-", "rechunk-", "getitem-", "concatenate-")
#: Sizes of an array's blocks along each axis.
Chunks = tuple[tuple[int, ...], ...]


class Node(NamedTuple):
    """One node of a graph, taken apart for the projection of memory.

    kind: "task" (`function` of `arguments`), "alias" (another name of `arguments[0]`, a key), "value" (`arguments[0]`),
    "list" (results put together, as lists or other containers) or "fused" (`inner` tasks that run as one; `arguments` are what `names` stand for inside;
    `result` is the key of the inner task that gives the result).
    """

    kind: str
    needs: tuple[Hashable, ...]
    function: Any = None
    arguments: tuple[Any, ...] = ()
    inner: Tasks | None = None
    names: tuple[Hashable, ...] = ()
    result: Hashable = None


def blockwise_array(
    function: Callable[..., object],
    name: str,
    chunks: Chunks,
    meta: object,
    inputs: Sequence[tuple[da.Array, tuple[str, ...]]],
    axes: tuple[str, ...],
    placed: bool,
) -> da.Array:
    """Give the array whose blocks are `function` of the inputs' blocks, matched by the names of their axes.

    It is what `dask.array.blockwise` makes. That function looks through all keywords for lazy arrays and copies them for
    each block, which was most of what the client did between computes (1.7 against 0.35 ms for a call). With `placed` the
    block's indices come first.
    """
    given: list[object] = [ArrayBlockIdDep(chunks), axes] if placed else []
    for array, its_axes in inputs:
        given += [array.name, its_axes]
    blocks = {array.name: array.numblocks for array, _ in inputs}
    layer = blockwise(function, name, axes, *given, numblocks=blocks)
    arrays = [array for array, _ in inputs]
    return da.Array(HighLevelGraph.from_collections(name, layer, arrays), name, chunks, meta=meta)


def task(key: Hashable, function: Callable[..., object], *arguments: object) -> Task:
    """Give a task; arguments that `reference` made stand for results of other tasks."""
    return Task(key, function, *arguments)


def reference(key: Hashable) -> TaskRef:
    """Give what stands for the result of another task among a task's arguments."""
    return TaskRef(key)


def shared_value(key: Hashable, value: object) -> DataNode:
    """Give a node that holds a value which many tasks refer to: inside each it would travel to workers with each."""
    return DataNode(key, value)


def set_source(array: da.Array, source: object) -> da.Array:
    """Remember with an array's top layer what its pixels can be read from."""
    array.dask.layers[array.name].gdask_source = source
    return array


def source_of(array: object) -> Any:
    """Give what `set_source` remembered; None for arrays that are anything else by now."""
    layers = getattr(getattr(array, "dask", None), "layers", {})
    return getattr(layers.get(getattr(array, "name", None)), "gdask_source", None)


def is_only_chunked(array: object) -> bool:
    """Tell whether a dask array is values in memory that xarray has put into blocks, such as by `Dataset.chunk`, and cut."""
    layers = getattr(getattr(array, "dask", None), "layers", {})
    return bool(layers) and all(name.startswith(_ARRANGING) for name in layers)


def optimised_tasks(arrays: Sequence[object]) -> dict[Any, Any]:
    """Give the tasks of all arrays, optimised together, with each block of a result as an end of its own.

    `dask.compute` adds tasks that gather the blocks of each array. With them dask's order puts off the writing of pixels
    until all frames are through, and keeps them all (9 frames: 127 MB at the peak, 51 MB without). `dask.optimize` goes
    array by array and would repeat in each what they share (2.6 times the work).
    """
    return dict(collections_to_expr(list(arrays), True).optimize().__dask_graph__())


def run_order(tasks: Tasks) -> dict[Any, int]:
    """Give the priority in which dask runs the tasks, by key."""
    from dask.order import order

    return dict(order(tasks))


def needs_of(node: Any) -> tuple[Hashable, ...]:
    """Give the keys of the results that one node of a graph needs."""
    return tuple(node.dependencies)


def flat_list(nested: object) -> list[Any]:
    """Give the items of nested lists, such as the keys of an array's blocks, in one list."""
    return list(flatten(nested))


def scheduler_of_user() -> Any:
    """Give the scheduler that is set for computes: a function, a distributed client's method, or None."""
    return get_scheduler()


def take_apart(node: Any) -> Node:
    """Give the parts of one node of an optimised graph."""
    needs = needs_of(node)
    if isinstance(node, Alias):
        return Node("alias", needs, arguments=(node.target,))
    if isinstance(node, DataNode):
        return Node("value", needs, arguments=(node.value,))
    if isinstance(node, NestedContainer):
        return Node("list", needs, arguments=tuple(node.args))
    if getattr(node.func, "__name__", "") == "_execute_subgraph":
        inner, result, names, *given = node.args
        return Node("fused", needs, None, tuple(given), inner, tuple(names), result)
    return Node("task", needs, node.func, tuple(node.args))


def key_of(argument: object) -> Hashable | None:
    """Give the key that an argument of a task refers to; None where it is a value."""
    if isinstance(argument, Alias):
        return argument.target
    return argument.key if isinstance(argument, TaskRef) else None


def bare_function(function: Any) -> Any:
    """Give a function without what was bound to it; the type of something that is none."""
    while isinstance(function, functools.partial) or hasattr(function, "func"):
        function = function.func
    return function if hasattr(function, "__name__") else type(function)
