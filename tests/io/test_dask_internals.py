"""Parts of dask and xarray that are not documented: they still do what gdask needs."""

from __future__ import annotations

import ast
import functools
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dask
import dask.array as da
import distributed
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from dask._task_spec import Alias
from gdask.cluster import connect

from gdask.io import dask_internals
from gdask.io.dask_internals import Node

ROOT = Path(__file__).resolve().parents[2]
#: The package's modules as they lie in a working copy.
PACKAGE = (ROOT / "gdask", ROOT / "recipes", ROOT / "cluster")
#: Modules whose names are documented, and single names that are, as far as gdask uses them.
DOCUMENTED_MODULES = ("dask.array", "dask.config", "dask.diagnostics")
DOCUMENTED_NAMES = (
    "dask",
    "dask.base.tokenize",
    "dask.callbacks.Callback",
    "dask.compute",
    "dask.highlevelgraph.HighLevelGraph",
    "dask.threaded.get",
)


def plus(*blocks: np.ndarray) -> np.ndarray:
    return sum(blocks)


def array_of(values: np.ndarray, name: str = "", chunks: tuple[int, ...] = (1, 2, 4)) -> da.Array:
    return da.from_array(values, chunks=chunks, name=name or False)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.arange(2 * 4 * 4, dtype="f4").reshape(2, 4, 4)


def tasks_by_function(tasks: dict) -> dict[str, Node]:
    """Each node of a graph that is a task, taken apart, by the name of its function."""
    parts = [dask_internals.take_apart(node) for node in tasks.values()]
    return {part.function.__name__: part for part in parts if part.kind == "task"}


# Building --------------------------------------------------------------------------------------


def with_place(place: tuple[int, ...], block: np.ndarray, level: np.ndarray) -> np.ndarray:
    return block + 100 * place[0] + 10 * place[1] + level[0]


def test_blockwise_array_matches_blocks_by_axes_and_gives_their_place(pixels: np.ndarray) -> None:
    level = da.from_array(np.array([0.25, 0.5]), chunks=1)
    array = array_of(pixels)
    result = dask_internals.blockwise_array(
        with_place,
        "placed-name",
        array.chunks,
        np.empty((0, 0, 0), "f4"),
        [(array, ("detector", "y", "x")), (level, ("detector",))],
        ("detector", "y", "x"),
        placed=True,
    )
    assert result.name == "placed-name" and result.chunks == array.chunks
    expected = pixels.astype("f8")
    expected += np.reshape([0.25, 100.5], (2, 1, 1)) + np.reshape([0, 0, 10, 10], (1, 4, 1))
    for scheduler in ("synchronous", "threads"):
        found = result.compute(scheduler=scheduler)
        np.testing.assert_array_equal(found, expected)


def test_blockwise_array_without_place_gives_the_blocks_alone(pixels: np.ndarray) -> None:
    arrays = [array_of(pixels), array_of(10 * pixels)]
    axes = ("detector", "y", "x")
    inputs = [(array, axes) for array in arrays]
    meta = np.empty((0, 0, 0), "f4")
    result = dask_internals.blockwise_array(
        plus, "sum-name", arrays[0].chunks, meta, inputs, axes, placed=False
    )
    np.testing.assert_array_equal(result.compute(scheduler="synchronous"), 11 * pixels)


def test_array_of_tasks_has_their_results_as_blocks(pixels: np.ndarray) -> None:
    array = array_of(pixels, "given", chunks=(1, 4, 4))
    tasks = {
        ("made", number): dask_internals.task(
            ("made", number), _sums_of, dask_internals.reference(("given", number, 0, 0))
        )
        for number in range(2)
    }
    result = dask_internals.array_of_tasks("made", tasks, [array], ((1, 1),), np.empty(0, "f4"))
    assert result.name == "made" and result.dtype == np.float32
    expected = pixels.sum(axis=(1, 2))
    np.testing.assert_array_equal(result.compute(scheduler="synchronous"), expected)


def _sums_of(block: np.ndarray) -> np.ndarray:
    return block.sum(axis=(1, 2))


def test_task_is_called_with_results_where_references_stand() -> None:
    graph = {
        "one": dask_internals.task("one", plus, 1),
        "sum": dask_internals.task("sum", plus, dask_internals.reference("one"), 20, 300),
    }
    assert dask.threaded.get(graph, "sum") == 321
    assert set(graph["sum"].dependencies) == {"one"}


def test_reference_stands_for_a_block_and_is_told_from_its_key() -> None:
    graph = {("block", 0): dask_internals.task(("block", 0), plus, 5)}
    for argument, expected in ((dask_internals.reference(("block", 0)), 6), (("block", 0), None)):
        graph["end"] = dask_internals.task("end", _one_more_where_number, argument)
        assert dask.threaded.get(graph, "end") == expected


def _one_more_where_number(value: object) -> int | None:
    return value + 1 if isinstance(value, int) else None


class Held:
    """A value that is not copied where it is shared."""


def test_shared_value_is_the_same_object_in_all_tasks() -> None:
    held = Held()
    graph = {"shared": dask_internals.shared_value("shared", (held,))}
    for number in range(3):
        shared = dask_internals.reference("shared")
        graph[number] = dask_internals.task(number, _first_of, shared)
    assert all(found is held for found in dask.threaded.get(graph, [0, 1, 2]))


def _first_of(items: tuple[object, ...]) -> object:
    return items[0]


def test_set_source_is_remembered_with_the_array(pixels: np.ndarray) -> None:
    array, source = array_of(pixels, "stored"), object()
    assert dask_internals.set_source(array, source) is array
    assert dask_internals.source_of(array) is source


@pytest.mark.parametrize(
    "change",
    [
        lambda array: array + 1,
        lambda array: array[:, 1:],
        lambda array: array.rechunk((2, 4, 4)),
        lambda array: array.persist(scheduler="synchronous"),
        lambda array: array.compute(scheduler="synchronous"),
        lambda array: None,
    ],
    ids=["changed", "cut", "in other blocks", "persisted", "computed", "none"],
)
def test_source_of_an_array_that_is_something_else_is_none(
    pixels: np.ndarray, change: object
) -> None:
    array = dask_internals.set_source(array_of(pixels, "stored"), object())
    assert dask_internals.source_of(change(array)) is None


def test_awaited_by_gives_the_source_and_the_small_results_that_it_awaits(
    pixels: np.ndarray,
) -> None:
    level = array_of(np.ones(2), "level", chunks=(1,))
    array = dask_internals.set_source(array_of(pixels), "a source", {"level": level})
    source, awaited = dask_internals.awaited_by(array)
    assert source == "a source" and awaited["level"] is level
    assert dask_internals.source_of(array) is None, "it cannot be read without the level"
    assert dask_internals.awaited_by(array + 1) == (None, {})


def test_source_of_an_array_goes_through_xarray(pixels: np.ndarray) -> None:
    import xarray as xr

    source = object()
    array = dask_internals.set_source(array_of(pixels, "stored"), source)
    frame = xr.Dataset({"data": (("detector", "y", "x"), array)}).assign_attrs(name="S1.fits")
    assert dask_internals.source_of(frame["data"].data) is source
    assert dask_internals.source_of((frame["data"] * 2).data) is None


def test_is_only_chunked_where_xarray_made_blocks_of_values(pixels: np.ndarray) -> None:
    import xarray as xr

    frame = xr.Dataset({"data": (("detector", "y", "x"), pixels), "top": ("detector", [1.0, 2.0])})
    chunked = frame.chunk({"y": 2})
    assert all(dask_internals.is_only_chunked(chunked[name].data) for name in frame.data_vars)
    assert all(dask_internals.is_only_chunked(v.data) for v in chunked.chunk(detector=1).values())
    cut = chunked.isel(detector=[1], y=slice(1, 3))
    joined = xr.concat([chunked.isel(detector=[1]), chunked], "detector")
    for part in (cut, joined):
        assert all(dask_internals.is_only_chunked(each.data) for each in part.values())
    for other in (chunked["top"].data + 1, array_of(pixels), pixels, None):
        assert not dask_internals.is_only_chunked(other)


# Running ---------------------------------------------------------------------------------------

CALLS: list[int] = []


def counted(block: np.ndarray) -> np.ndarray:
    CALLS.append(1)
    return block * 2


def test_optimised_tasks_share_what_arrays_share_and_keep_each_block(pixels: np.ndarray) -> None:
    shared = array_of(pixels).map_blocks(counted, dtype="f4", meta=np.empty((0, 0, 0), "f4"))
    arrays = [shared + 1, shared + 2]
    tasks = dask_internals.optimised_tasks(arrays)
    keys = [key for array in arrays for key in dask_internals.flat_list(array.__dask_keys__())]
    assert len(keys) == 8 and set(keys) <= set(tasks)
    CALLS.clear()
    blocks = dask.threaded.get(tasks, keys)
    assert len(CALLS) == shared.npartitions
    np.testing.assert_array_equal(blocks[0], 2 * pixels[:1, :2] + 1)
    np.testing.assert_array_equal(blocks[-1], 2 * pixels[1:, 2:] + 2)
    needed = {need for node in tasks.values() for need in dask_internals.needs_of(node)}
    assert not needed & set(keys), "tasks that put the blocks of a result together"


def test_optimised_tasks_of_graphs_that_are_not_of_tasks_alone(pixels: np.ndarray) -> None:
    """Blocks that somebody has put into a graph as values, such as those kept on workers."""
    graph = {("held", d, 0, 0): pixels[d : d + 1] for d in range(2)}
    held = da.Array(graph, "held", ((1, 1), (4,), (4,)), meta=np.empty((0, 0, 0), "f4"))
    result = held.map_blocks(counted, dtype="f4")
    tasks = dask_internals.optimised_tasks([result])
    found = dask.threaded.get(tasks, dask_internals.flat_list(result.__dask_keys__()))
    np.testing.assert_array_equal(np.concatenate(found), 2 * pixels)


def by_block(array: da.Array, name: str, *others: da.Array) -> da.Array:
    axes = ("detector", "y", "x")
    inputs = [(each, axes) for each in (array, *others)]
    return dask_internals.blockwise_array(
        plus, name, array.chunks, np.empty((0, 0, 0), "f4"), inputs, axes, placed=False
    )


def test__needed_tasks_are_the_ends_and_what_they_need() -> None:
    graph = {
        "read": dask_internals.task("read", plus, 1),
        "other": dask_internals.task("other", plus, 1),
        "end": dask_internals.task("end", plus, dask_internals.reference("read")),
    }
    tasks, ends = dask_internals._needed_tasks(graph, ["end"])
    assert set(tasks) == {"read", "end"} and ends == {"end"}


def test__fused_tasks_run_as_one_where_no_other_needs_them(pixels: np.ndarray) -> None:
    """A tree of kernels is one task; what two tasks need, and what is asked for, stays apart."""
    first, second = array_of(pixels, "first"), array_of(2 * pixels, "second")
    left, right = by_block(first, "left"), by_block(second, "right")
    top = by_block(left, "top", right)
    blocks = top.npartitions
    assert len(dask_internals.optimised_tasks([top])) == 3 * blocks  # with two values each
    shared = dask_internals.optimised_tasks([top, by_block(left, "user")])
    names = [key[0] for key in shared if isinstance(key, tuple)]
    assert [names.count(name) for name in ("top", "user", "left", "right")] == [blocks] * 3 + [0]
    asked = dask_internals.optimised_tasks([top, right])
    assert sum(isinstance(key, tuple) and key[0] == "right" for key in asked) == blocks
    keys = dask_internals.flat_list(top.__dask_keys__())
    for tasks in (shared, asked):
        np.testing.assert_array_equal(
            dask.threaded.get(tasks, keys)[0], plus(pixels[:1, :2], 2 * pixels[:1, :2])
        )


def test__takes_block_not_where_it_comes_in_a_list(pixels: np.ndarray) -> None:
    """The blocks that one task joins are made by tasks of their own, side by side."""
    array = by_block(array_of(pixels, "given"), "made")
    joined = dask_internals.blockwise_array(
        _of_lists,
        "joined",
        ((1, 1),),
        np.empty(0, "f4"),
        [(array, ("detector", "y", "x"))],
        ("detector",),
        placed=False,
    )
    tasks = dask_internals.optimised_tasks([joined])
    assert not dask_internals._takes_block(tasks["joined", 0], ("made", 0, 0, 0))
    assert sum(key[0] == "made" for key in tasks if isinstance(key, tuple)) == array.npartitions
    direct = by_block(array, "direct").dask["direct", 0, 1, 0]
    assert dask_internals._takes_block(direct, ("made", 0, 1, 0))


def test__blocks_in_lists_along_the_axes_that_the_result_lacks(pixels: np.ndarray) -> None:
    found = dask_internals._blocks_in_lists(
        ("a",), (("detector", 2), ("y", 2), ("x", 1)), {"detector": 1}
    )
    rows = [dask_internals.take_apart(row).arguments for row in found]
    assert [[each.key for each in row] for row in rows] == [[("a", 1, 0, 0)], [("a", 1, 1, 0)]]


def test_run_order_gives_each_task_a_number_after_its_inputs(pixels: np.ndarray) -> None:
    tasks = dask_internals.optimised_tasks([array_of(pixels).sum(), array_of(pixels + 1).max()])
    order = dask_internals.run_order(tasks)
    assert sorted(order.values()) == list(range(len(tasks)))
    for key, node in tasks.items():
        assert all(order[need] < order[key] for need in dask_internals.needs_of(node))


def test_needs_of_a_node_are_the_keys_of_its_inputs() -> None:
    one, other = (dask_internals.reference(key) for key in (("a", 0), "b"))
    node = dask_internals.task("end", plus, one, 3, other, one)
    assert set(dask_internals.needs_of(node)) == {("a", 0), "b"}
    assert dask_internals.needs_of(dask_internals.shared_value("c", ("a", 0))) == ()


def test_flat_list_opens_lists_and_leaves_keys_whole() -> None:
    nested = [[[("a", 0, 0)], [("a", 1, 0)]], [], "b", [["c"]]]
    assert dask_internals.flat_list(nested) == [("a", 0, 0), ("a", 1, 0), "b", "c"]


def test_scheduler_of_user_is_what_was_set() -> None:
    def get(graph: object, keys: object, **more: object) -> None:
        raise AssertionError("nothing is computed")

    assert dask_internals.scheduler_of_user() is None
    with dask.config.set(scheduler=get):
        assert dask_internals.scheduler_of_user() is get
    with dask.config.set(scheduler="threads"):
        assert dask_internals.scheduler_of_user() is dask.threaded.get


def test_scheduler_of_user_leads_to_the_client_of_a_cluster() -> None:
    with connect("processes:1"):
        client = distributed.default_client()
        assert dask_internals.scheduler_of_user().__self__ is client


def test_scheduler_of_user_does_not_load_distributed() -> None:
    code = """
import sys
import dask
from gdask.io.dask_internals import scheduler_of_user
assert scheduler_of_user() is None
with dask.config.set(scheduler="threads"):
    assert scheduler_of_user() is dask.threaded.get
assert "distributed" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_load_dask_array_leaves_out_what_no_reduction_needs_and_changes_nothing_else() -> None:
    code = """
import sys
import dask.utils
from gdask.io.dask_internals import load_dask_array
texts_of = dask.utils._derived_from
load_dask_array()
assert not {"scipy.fftpack", "scipy.sparse"} & set(sys.modules)
assert dask.utils._derived_from is texts_of
import dask.array as da
assert da.stack([da.arange(4, chunks=2)] * 3).mean(axis=0).compute().tolist() == [0, 1, 2, 3]
assert da.fft.fft(da.ones(4, chunks=4)).compute()[0] == 4
import scipy.sparse, scipy.fftpack
load_dask_array()
assert "scipy.sparse" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Taking apart ----------------------------------------------------------------------------------


def test_take_apart_a_task() -> None:
    call = functools.partial(plus, start=1)
    reference = dask_internals.reference("a")
    parts = dask_internals.take_apart(dask_internals.task("end", call, reference, 7))
    assert (parts.kind, parts.needs, parts.function) == ("task", ("a",), call)
    assert [dask_internals.key_of(argument) for argument in parts.arguments] == ["a", None]
    assert parts.arguments[1] == 7


def test_take_apart_a_value() -> None:
    parts = dask_internals.take_apart(dask_internals.shared_value("a", "held"))
    assert parts == Node("value", (), None, ("held",))


def test_take_apart_an_alias(pixels: np.ndarray) -> None:
    """A block that another layer has made already has two names."""
    array = array_of(pixels, "base", (1, 4, 4)).map_blocks(counted, dtype="f4", name="made")
    tasks = dask_internals.optimised_tasks([array, array.blocks[1]])
    aliases = [
        parts for parts in map(dask_internals.take_apart, tasks.values()) if parts.kind == "alias"
    ]
    assert aliases and all(parts.needs == parts.arguments for parts in aliases)
    assert {parts.arguments[0] for parts in aliases} <= set(tasks)


def test_take_apart_results_that_are_put_together(pixels: np.ndarray) -> None:
    """Blocks along an axis that the result does not have come as a list."""
    array = array_of(pixels, chunks=(1, 2, 4)).map_blocks(counted, dtype="f4")
    tasks = dict(
        dask_internals.blockwise_array(
            _of_lists,
            "lists",
            ((1, 1),),
            np.empty(0, "f8"),
            [(array, ("detector", "y", "x"))],
            ("detector",),
            placed=False,
        ).__dask_graph__()
    )
    parts = dask_internals.take_apart(tasks["lists", 0])
    assert parts.kind == "task" and set(parts.needs) == {(array.name, 0, j, 0) for j in (0, 1)}
    assert set(parts.needs) <= set(tasks)
    (argument,) = parts.arguments
    inner = dask_internals.take_apart(argument)
    assert inner.kind == "list" and set(inner.needs) == set(parts.needs)


def _of_lists(blocks: list) -> np.ndarray:
    return np.array([sum(block.sum() for rows in blocks for block in rows)])


def test_take_apart_tasks_that_run_as_one(pixels: np.ndarray) -> None:
    """Two kernels in a row are fused; the inner graph holds both, and what comes from outside."""
    first = array_of(pixels, chunks=(1, 4, 4)).map_blocks(counted, dtype="f4")
    shared = first + 0
    tasks = dask_internals.optimised_tasks([(first * 3) - 1, shared])
    found = {key: dask_internals.take_apart(node) for key, node in tasks.items()}
    fused = {key: parts for key, parts in found.items() if parts.kind == "fused"}
    assert fused
    for key, parts in fused.items():
        assert parts.inner is not None and parts.result in parts.inner
        assert len(parts.names) == len(parts.arguments)
        outside = {dask_internals.key_of(argument) for argument in parts.arguments}
        assert outside - {None} == set(parts.needs)
        inside = {dask_internals.take_apart(node).kind for node in parts.inner.values()}
        assert "task" in inside, key
        needed = {n for node in parts.inner.values() for n in dask_internals.needs_of(node)}
        assert needed <= set(parts.inner) | set(parts.names)


def test_take_apart_finds_the_function_in_a_fused_call_with_place(pixels: np.ndarray) -> None:
    """It is the function that was given, and not one of dask's that calls it."""
    call = functools.partial(with_place)
    call.need = "declared"
    array, level = array_of(pixels, chunks=(1, 2, 4)), da.from_array(np.zeros(2), chunks=1)
    axes = ("detector", "y", "x")
    result = dask_internals.blockwise_array(
        call,
        "placed",
        array.chunks,
        np.empty((0, 0, 0), "f8"),
        [(array, axes), (level, axes[:1])],
        axes,
        placed=True,
    )
    parts = [
        inner
        for node in dask_internals.optimised_tasks([result]).values()
        for inner in _inner_parts(node)
        if getattr(inner.function, "need", None) == "declared"
    ]
    assert len(parts) == array.npartitions and all(part.kind == "task" for part in parts)


def _inner_parts(node: object) -> Iterator[Node]:
    """A node taken apart, and, where it is fused, those inside it."""
    parts = dask_internals.take_apart(node)
    yield parts
    for inner in (parts.inner or {}).values():
        yield from _inner_parts(inner)


def test_key_of_references_and_of_nothing_else() -> None:
    assert dask_internals.key_of(dask_internals.reference(("a", 1))) == ("a", 1)
    assert dask_internals.key_of(Alias(("b", 2), ("a", 1))) == ("a", 1)
    assert dask_internals.key_of(dask_internals.shared_value("a", 1)) is None
    for value in (("a", 1), "a", 3.5, np.zeros(2), None):
        assert dask_internals.key_of(value) is None


class Callable_:
    def __call__(self) -> None: ...


def test_bare_function_is_what_was_written() -> None:
    bound = functools.partial(functools.partial(plus, 1), 2)
    assert dask_internals.bare_function(bound) is plus
    assert dask_internals.bare_function(plus) is plus
    assert dask_internals.bare_function(Callable_()) is Callable_


# Datasets --------------------------------------------------------------------------------------


def a_dataset() -> xr.Dataset:
    return xr.Dataset(
        {"data": (("detector", "y"), np.ones((2, 3)))},
        coords={
            "detector": np.array(["a", "b"], object),
            "y": pd.RangeIndex(4, 7),
            "header": ("detector", np.array(["one", "two"], object)),
        },
        attrs={"name": "x.fits"},
    )


def test_dataset_with_is_assign_without_its_copies(pixels: np.ndarray) -> None:
    lazy = array_of(pixels[:, :3, 0], chunks=(1, 3))
    texts, one = np.array(["three", "four"], object), np.empty((), object)
    variables = {"data": (("detector", "y"), lazy), "small": ((), one)}
    coordinates = {"header": (("detector",), texts), "number": (("detector",), np.arange(2))}
    before, original = a_dataset(), a_dataset()
    made = dask_internals.dataset_with(before, variables, coordinates, {"note": "n"})
    expected = before.assign(variables).assign_coords(coordinates).assign_attrs(note="n")
    assert made.identical(expected) and before.identical(original)
    assert set(made.coords) == set(expected.coords) and made.sizes == expected.sizes
    assert made["data"].data is lazy and made.variables["y"] is before.variables["y"]
    assert made.isel(detector=[1], y=slice(0, 2)).identical(
        expected.isel(detector=[1], y=slice(0, 2))
    )


@pytest.mark.parametrize(
    "given",
    [
        {"variables": {"plane": (("z",), np.zeros(3))}},  # another dimension
        {"variables": {"y": (("y",), np.zeros(3))}},  # an index
        {"coordinates": {"detector": (("detector",), np.array(["c", "d"], object))}},
    ],
)
def test_dataset_with_leaves_dimensions_and_indexes_to_xarray(given: dict) -> None:
    made, before = dask_internals.dataset_with(a_dataset(), **given), a_dataset()
    expected = before.assign(given.get("variables", {}))
    assert made.identical(expected.assign_coords(given.get("coordinates", {})))


def test_dataset_with_refuses_another_size() -> None:
    with pytest.raises(ValueError, match="detector"):
        dask_internals.dataset_with(a_dataset(), {"small": (("detector",), np.zeros(3))})


def test_index_of_a_range() -> None:
    index = dask_internals.index_of(a_dataset(), "y")
    assert index.equals(a_dataset().indexes["y"]) and (index.start, index.step) == (4, 1)


# The room --------------------------------------------------------------------------------------


def test_each_function_has_a_test() -> None:
    """In this file, called test_NAME..., so that the failure has the name of what changed."""
    functions = [
        name
        for name, value in vars(dask_internals).items()
        if inspect.isfunction(value) and value.__module__ == dask_internals.__name__
    ]
    tests = [name for name in globals() if name.startswith("test_")]
    assert len(functions) > 10
    untested = [
        name for name in functions if not any(test.startswith(f"test_{name}_") for test in tests)
    ]
    assert untested == []


def uses_of_dask(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of what a module imports of dask, or takes from it by attributes."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "dask":
                    names[alias.asname or "dask"] = alias.name if alias.asname else "dask"
                    yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dask":
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}", node.lineno
    for node in ast.walk(tree):
        dotted = _dotted(node)
        root, _, rest = dotted.partition(".")
        if rest and root in names:
            yield f"{names[root]}.{rest}", node.lineno


def _dotted(node: ast.AST) -> str:
    """a.b.c of an attribute of a name; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def is_documented(name: str) -> bool:
    """Whether a dotted name, or what leads to it, is among those that the documentation lists."""
    if any(part.startswith("_") for part in name.split(".")):
        return False
    leads_to_one = any(known.startswith(f"{name}.") for known in DOCUMENTED_NAMES)
    below_one = any(f"{name}.".startswith(f"{module}.") for module in DOCUMENTED_MODULES)
    below_name = any(name.startswith(f"{known}.") for known in DOCUMENTED_NAMES[1:])
    return name in DOCUMENTED_NAMES or leads_to_one or below_one or below_name


def test_no_other_module_uses_parts_of_dask_that_are_not_documented() -> None:
    paths = [path for folder in PACKAGE for path in folder.rglob("*.py")]
    assert len(paths) > 100
    found = {
        path.relative_to(ROOT).as_posix(): [
            f"{line}: {name}"
            for name, line in uses_of_dask(ast.parse(path.read_text()))
            if not is_documented(name)
        ]
        for path in paths
    }
    assert found.pop("gdask/io/dask_internals.py")
    assert {path: uses for path, uses in found.items() if uses} == {}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import dask._task_spec", False),
        ("from dask._task_spec import Task", False),
        ("from dask.core import flatten", False),
        ("from dask import order", False),
        ("import dask\ndask.base.get_scheduler()", False),
        ("import dask\ndask.core.flatten([])", False),
        ("import dask.array as da\nda.core.slices_from_chunks(())", True),
        ("import dask\ndask.compute(1)", True),
        ("from dask.base import tokenize", True),
    ],
)
def test_what_is_not_documented_is_found(code: str, expected: bool) -> None:
    assert all(is_documented(name) for name, _ in uses_of_dask(ast.parse(code))) == expected
