"""All uses of parts of dask that its documentation does not promise.

tests/io/test_dask_internals.py has a test for each function, so that a new version of dask that
changes one of them fails there, with its name, and not somewhere in a reduction.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from dask._task_spec import Alias, DataNode, NestedContainer, Task, TaskRef
from dask.base import collections_to_expr, get_scheduler
from dask.blockwise import blockwise
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph
from dask.layers import ArrayBlockIdDep

from gdask.model import late

if TYPE_CHECKING:
    import dask.array as da
else:
    da = late("dask.array")

#: A graph: tasks by key.
Tasks = Mapping[Any, Any]
#: Beginnings of the names of layers that put values into blocks, or cut or join blocks; they change
#: no value.
_REARRANGING_LAYERS = ("xarray-", "rechunk-", "getitem-", "concatenate-")
#: Sizes of an array's blocks along each axis.
Chunks = tuple[tuple[int, ...], ...]


class Node(NamedTuple):
    """One node of a graph, taken apart for the projection of memory.

    Attributes
    ----------
    kind
        "task" (`function` of `arguments`), "alias" (another name of `arguments[0]`, a key), "value"
        (`arguments[0]`), "list" (results put together, as lists or other containers) or "fused"
        (`inner` tasks that run as one).
    needs
        Keys of the results that the node needs.
    function, arguments
        What a task calls. Of fused tasks, `arguments` are what `names` stand for inside.
    inner, names, result
        Of fused tasks: the tasks by key, the names of their inputs, and the key of the inner task
        that gives the result.
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
    """Give the array whose blocks are `function` of the inputs' blocks.

    Blocks are matched by the names of their axes. With `placed` the block's indices come first
    among the function's arguments.

    The result is what `dask.array.blockwise` makes. That function looks through all keywords for
    lazy arrays and copies them for each block, which was most of what the client did between
    computes (1.7 against 0.35 ms for a call).
    """
    arguments: list[object] = [ArrayBlockIdDep(chunks), axes] if placed else []
    for array, its_axes in inputs:
        arguments += [array.name, its_axes]
    blocks = {array.name: array.numblocks for array, _ in inputs}
    layer = blockwise(function, name, axes, *arguments, numblocks=blocks)
    return array_of_tasks(name, layer, [array for array, _ in inputs], chunks, meta)


def array_of_tasks(
    name: str, tasks: Tasks, inputs: Sequence[da.Array], chunks: Chunks, meta: object
) -> da.Array:
    """Give the array whose blocks are results of tasks, which may refer to blocks of the inputs."""
    # cast: an Array is a DaskCollection, but the types of its methods are declared otherwise.
    graph = HighLevelGraph.from_collections(name, tasks, cast(Any, inputs))
    return da.Array(graph, name, chunks, meta=meta)


def task(key: Hashable, function: Callable[..., object], *arguments: object) -> Task:
    """Give a task; arguments that `reference` made stand for results of other tasks."""
    return Task(key, function, *arguments)


def reference(key: Hashable) -> TaskRef:
    """Give the reference to the result of another task, for the arguments of a task."""
    return TaskRef(cast(Any, key))


def shared_value(key: Hashable, value: object) -> DataNode:
    """Give a node that holds a value to which many tasks refer.

    A value inside each task would travel to the workers with each of them.
    """
    return DataNode(key, value)


def set_source(array: da.Array, source: object) -> da.Array:
    """Remember a source with an array's top layer: its pixels can be read from there."""
    array.dask.layers[array.name].gdask_source = source
    return array


def source_of(array: object) -> Any:
    """Give the source that `set_source` remembered; None where the array was changed since."""
    layers = getattr(getattr(array, "dask", None), "layers", {})
    return getattr(layers.get(getattr(array, "name", None)), "gdask_source", None)


def is_only_chunked(array: object) -> bool:
    """Tell whether a dask array is values in memory, which xarray has put into blocks or cut.

    `Dataset.chunk` makes such arrays.
    """
    layers = getattr(getattr(array, "dask", None), "layers", {})
    return bool(layers) and all(name.startswith(_REARRANGING_LAYERS) for name in layers)


def optimised_tasks(arrays: Sequence[object]) -> dict[Any, Any]:
    """Give the tasks of all arrays, optimised together; each block of a result is an end by itself.

    `dask.compute` adds tasks that gather the blocks of each array. With them dask's order puts off
    the writing of pixels until all frames are through, and keeps them all (9 frames: 127 MB at the
    peak, 51 MB without). `dask.optimize` goes array by array and would repeat in each what they
    share (2.6 times the work).
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
    """Give the scheduler that is set for computes.

    It is a function, a distributed client's method, or None.
    """
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
        inner, result, names, *arguments = node.args
        return Node("fused", needs, None, tuple(arguments), inner, tuple(names), result)
    return Node("task", needs, node.func, tuple(node.args))


def key_of(argument: object) -> Hashable | None:
    """Give the key that an argument of a task refers to; None where it is a value."""
    if isinstance(argument, Alias):
        return argument.target
    return argument.key if isinstance(argument, TaskRef) else None


def bare_function(function: Any) -> Any:
    """Give a function without the arguments bound to it; of anything else, its type."""
    while isinstance(function, functools.partial) or hasattr(function, "func"):
        function = function.func
    return function if hasattr(function, "__name__") else type(function)
