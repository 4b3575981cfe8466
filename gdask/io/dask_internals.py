"""All uses of parts of dask and xarray that their documentation does not promise.

tests/io/test_dask_internals.py has a test for each function, so that a new version that changes one
of them fails there, with its name, and not somewhere in a reduction.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import dask
import xarray as xr
from dask._task_spec import (
    Alias,
    DataNode,
    GraphNode,
    List,
    NestedContainer,
    Task,
    TaskRef,
    convert_legacy_graph,
)
from dask.base import get_scheduler
from dask.blockwise import Blockwise
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph

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


def dataset_with(
    dataset: Any,
    variables: Mapping[str, tuple[tuple[str, ...], Any]] | None = None,
    coordinates: Mapping[str, tuple[tuple[str, ...], Any]] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    """Give an xarray.Dataset with variables, coordinates and attributes set; others stay.

    Variables and coordinates are given as (dimensions, array). The result is that of `assign`,
    `assign_coords` and `assign_attrs`, which copy each variable and each index for it: 0.3 ms a
    call, and a reduction makes hundreds for each frame. Here the variables that stay are the same
    objects in both.
    """
    given = {**(variables or {}), **(coordinates or {})}
    sizes, indexes = dataset._dims, dataset._indexes
    for name, (dims, array) in given.items():
        if name in indexes or name in sizes or array.shape != tuple(sizes.get(d) for d in dims):
            changed = dataset.assign(variables or {}).assign_coords(coordinates or {})
            return changed.assign_attrs(attrs or {})
    made = {name: xr.Variable(dims, array, fastpath=True) for name, (dims, array) in given.items()}
    names = dataset._coord_names
    return dataset._replace(
        variables={**dataset._variables, **made},
        coord_names=(names - set(variables or ())) | set(coordinates or ()),
        attrs={**dataset.attrs, **(attrs or {})},
    )


def index_of(dataset: Any, name: str) -> Any:
    """Give the pandas index of a dimension, without the copies that `Dataset.indexes` makes."""
    return dataset._indexes[name].index


class LaterTasks(Mapping[Any, Any]):
    """The tasks of an array, which are made when a compute asks for them.

    Most arrays of a resampled frame are never asked for: a stack reads their source.
    """

    def __init__(self, make: Callable[[], Tasks]) -> None:
        self._make = make
        self._made: Tasks | None = None

    @property
    def _tasks(self) -> Tasks:
        if self._made is None:
            self._made = self._make()
        return self._made

    def __getitem__(self, key: Any) -> Any:
        return self._tasks[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)


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

    Where an input has several blocks along axes that the result lacks, they come as nested lists.

    The result is what `dask.array.blockwise` makes, but its tasks are known to depend on the blocks
    of the same place: `optimised_tasks` sees from this what runs as one. Graphs of dask's layers
    took the client 30 ms a frame to optimise where frames were 1000, and more for more.
    """
    known = [
        (array.name, tuple(zip(its_axes, array.numblocks, strict=True)))
        for array, its_axes in inputs
    ]
    is_joined = {
        name: any(count > 1 and axis not in axes for axis, count in its_axes)
        for name, its_axes in known
    }

    def make() -> dict[Any, Any]:
        tasks: dict[Any, Any] = {}
        for place in itertools.product(*(range(len(sizes)) for sizes in chunks)):
            number = dict(zip(axes, place, strict=True))
            blocks = [
                _blocks_in_lists((name,), its_axes, number)
                if is_joined[name]
                else TaskRef((name, *(number[a] if count > 1 else 0 for a, count in its_axes)))
                for name, its_axes in known
            ]
            key = (name, *place)
            tasks[key] = Task(key, function, *((place,) if placed else ()), *blocks)
        return tasks

    inputs_alone = [array for array, _ in inputs]
    made = array_of_tasks(name, LaterTasks(make), inputs_alone, chunks, meta)
    made.dask.layers[name].gdask_by_block = True
    return made


def _blocks_in_lists(
    key: tuple[Any, ...], axes: Sequence[tuple[str, int]], number: Mapping[str, int]
) -> Any:
    """Give an input's blocks for a block of the result, in lists along axes that it lacks."""
    if not axes:
        return TaskRef(cast(Any, key))
    (axis, count), rest = axes[0], axes[1:]
    if axis in number:
        return _blocks_in_lists((*key, number[axis] if count > 1 else 0), rest, number)
    return List(*(_blocks_in_lists((*key, i), rest, number) for i in range(count)))


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


def set_source(
    array: da.Array, source: object, awaited: Mapping[str, da.Array] | None = None
) -> da.Array:
    """Remember a source with an array's top layer: its pixels can be read from there.

    `awaited` are the lazy small results, by name, without whose values it cannot be read.
    """
    layer = array.dask.layers[array.name]
    layer.gdask_source, layer.gdask_awaited = source, awaited or {}
    return array


def awaited_by(array: object) -> tuple[Any, Mapping[str, da.Array]]:
    """Give the source that `set_source` remembered, and what it awaits.

    It is None where the array was changed since.
    """
    layers = getattr(getattr(array, "dask", None), "layers", {})
    layer = layers.get(getattr(array, "name", None))
    return getattr(layer, "gdask_source", None), getattr(layer, "gdask_awaited", {})


def source_of(array: object) -> Any:
    """Give the source of an array that awaits nothing; None where there is no such source."""
    source, awaited = awaited_by(array)
    return None if awaited else source


def is_only_chunked(array: object) -> bool:
    """Tell whether a dask array is values in memory, which xarray has put into blocks or cut.

    `Dataset.chunk` makes such arrays.
    """
    layers = getattr(getattr(array, "dask", None), "layers", {})
    return bool(layers) and all(name.startswith(_REARRANGING_LAYERS) for name in layers)


def optimised_tasks(arrays: Sequence[Any]) -> dict[Any, Any]:
    """Give the tasks of all arrays, optimised together; each block of a result is an end by itself.

    Tasks that are not needed are left out. A task that one other needs runs as one with it where
    both were made block by block (`blockwise_array`, dask's own blockwise functions), or where the
    other needs nothing else.

    `dask.compute` adds tasks that gather the blocks of each array. With them dask's order puts off
    the writing of pixels until all frames are through, and keeps them all (9 frames: 127 MB at the
    peak, 51 MB without). `dask.optimize` goes array by array and would repeat in each what they
    share (2.6 times the work).
    """
    layers: dict[str, Any] = {}
    for array in arrays:
        if array.name not in layers:
            layers.update(array.__dask_graph__().layers)
    every: dict[Any, Any] = {}
    by_block: set[Any] = set()
    for layer in layers.values():
        found = dict(layer)
        every.update(found)
        if getattr(layer, "gdask_by_block", False) or isinstance(layer, Blockwise):
            by_block.update(found)
    if not all(isinstance(node, GraphNode) for node in every.values()):
        every = convert_legacy_graph(every)  # blocks that are values, results kept on workers
    ends = flatten([array.__dask_keys__() for array in arrays])
    return _fused_tasks(*_needed_tasks(every, ends), by_block)


def _needed_tasks(every: Tasks, ends: Iterable[Hashable]) -> tuple[dict[Any, Any], set[Any]]:
    """Give the tasks that the ends need, with themselves, and the ends."""
    wanted = list(ends)
    tasks: dict[Any, Any] = {}
    stack = wanted[::-1]
    while stack:
        key = stack.pop()
        if key not in tasks and key in every:
            tasks[key] = every[key]
            stack.extend(every[key].dependencies)
    return tasks, set(wanted)


def _fused_tasks(tasks: dict[Any, Any], ends: set[Any], by_block: set[Any]) -> dict[Any, Any]:
    """Give the tasks with those put together that run as one: see `optimised_tasks`."""
    user: dict[Any, Any] = {}  # of each result, the only task that needs it; None for several
    for key, node in tasks.items():
        for need in node.dependencies:
            user[need] = None if need in user else key
    joined: dict[Any, list[Any]] = {}
    for key, node in tasks.items():
        target = user.get(key)
        if target is None or key in ends or isinstance(node, DataNode):
            continue
        other = tasks[target]
        if (key in by_block and target in by_block and _takes_block(other, key)) or (
            len(other.dependencies) == 1
        ):
            joined.setdefault(target, []).append(key)
    if not joined:
        return tasks
    inside = {key for keys in joined.values() for key in keys}
    fused: dict[Any, Any] = {}
    for key, node in tasks.items():
        if key in inside:
            continue
        if key not in joined:
            fused[key] = node
            continue
        members = [key]
        for member in members:
            members += joined.get(member, ())
        fused[key] = Task.fuse(*(tasks[member] for member in reversed(members)))
    return fused


def _takes_block(node: Any, key: Hashable) -> bool:
    """Tell whether a task takes the block `key` as it is, and not in a list of blocks."""
    return any(isinstance(each, TaskRef) and each.key == key for each in node.args)


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
    if "distributed" not in sys.modules:  # dask would load it, to ask it for a client: 0.1 CPU s
        wanted = dask.config.get("scheduler", None)
        if wanted in (None, "threads"):
            return dask.threaded.get if wanted else None
    return get_scheduler()


def load_dask_array() -> None:
    """Import dask.array without what no reduction asks for: for the command alone.

    Left out are the texts of its documentation, and that it takes scipy's sparse matrices and
    Fourier transforms: 0.2 of its 0.3 CPU seconds. Nothing is done where it is loaded already.
    """
    if "dask.array" in sys.modules:
        return
    left_out = [name for name in ("scipy.fftpack", "scipy.sparse") if name not in sys.modules]
    texts_of = dask.utils._derived_from
    sys.modules.update(dict.fromkeys(left_out))  # type: ignore[arg-type]  # None: not to be had
    dask.utils._derived_from = lambda *method, **more: ""
    try:
        importlib.import_module("dask.array")
    finally:
        dask.utils._derived_from = texts_of
        for name in left_out:
            del sys.modules[name]


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
