"""Gathering: tasks that make one block from windows of many arrays.

Such a block is a band of a sky or a tile of a stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import getitem
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from dask.base import tokenize

from gdask.io import dask_internals
from gdask.io.chained import chained, prepared, read_together
from gdask.io.dask_internals import Chunks, awaited_by
from gdask.io.lazy_arrays import Need, block_pixels, boxed, edges, empty_meta, with_need
from gdask.io.process_memory import keep_freed_memory
from gdask.io.sources import Blocks, Bound
from gdask.model import late
from gdask.types import Window

if TYPE_CHECKING:
    import dask.array as da
else:
    da = late("dask.array")

#: Window of a result that is one value for each detector.
NO_WINDOW: Window = (0, 0, 0, 0)
#: Rows that a sample of an array takes together.
SAMPLED_ROWS = 8


def gather(
    function: Callable[..., np.ndarray],
    arrays: Sequence[Any],
    *,
    name: str,
    dtype: npt.DTypeLike,
    chunks: Chunks,
    windows: Callable[[int, int, Window], Sequence[tuple[int, Window]]],
    values: Sequence[da.Array] = (),
    scratch: float,
    result_bytes: float | None = None,
    **bound: object,
) -> da.Array:
    """Give the array of which one task makes each block, from windows of many arrays.

    Parameters
    ----------
    function
        function(sources, detector, window, *values, **bound) -> plane of the window. `sources` has
        a source for each of `arrays`, so that the task can read one after another, and no more of
        each than it needs at a time.
    arrays
        Lazy arrays (detector, y, x), or sources. An array that has a source is read from it inside
        the task, which waits for the small results that the source awaits. Of any other the task
        waits for the blocks that its windows touch.
    chunks
        Of the result. Where the result has one value for each detector: ((1, 1, ...),).
    windows
        windows(number of the array, detector, window of the result) -> the (detector, window) pairs
        of that array that the task reads.
    values
        Arrays of shape (detector,). The function is given this detector's value of each, in order.
    scratch
        Bytes that a task takes beside its result.
    result_bytes
        Bytes of one block of the result where its shape and dtype do not say it, as for an object
        of each detector.
    """
    pixels = block_pixels(chunks) if len(chunks) == 3 else 1
    item = float(np.dtype(dtype).itemsize) if result_bytes is None else result_bytes / pixels
    call = with_need(
        _gather_block,
        Need(pixels, item, scratch),
        {"function": function, "bound": bound, "dtype_of_value": np.dtype(dtype)},
    )
    return _gathered(call, arrays, name, np.dtype(dtype), chunks, windows, values)


def gather_planes(
    function: Callable[..., Sequence[np.ndarray]],
    arrays: Sequence[Any],
    *,
    name: str,
    dtypes: Sequence[npt.DTypeLike],
    chunks: Chunks,
    windows: Callable[[int, int, Window], Sequence[tuple[int, Window]]],
    values: Sequence[da.Array] = (),
    scratch: float,
    total: Callable[..., object] | None = None,
    **bound: object,
) -> list[da.Array]:
    """Give several arrays of one shape: one task makes a block of each.

    The arguments are those of `gather`, but `dtypes` has the type of each array, and the function
    gives a plane for each. With `total` it gives a small value, too, after the planes, and the last
    of the arrays is total(*values of all blocks, in order) of each detector: (detector,).
    """
    types = [np.dtype(dtype) for dtype in dtypes]
    items = tuple(float(dtype.itemsize) for dtype in types) + (0.0,) * (total is not None)
    need = Need(block_pixels(chunks), sum(items), scratch, items)
    options = {"function": function, "bound": bound, "dtype_of_value": None}
    call = with_need(_gather_block, need, options)
    together = _gathered(call, arrays, name, np.dtype(object), chunks, windows, values)
    planes = [_picked(together, number, dtype) for number, dtype in enumerate(types)]
    return planes if total is None else [*planes, _totalled(together, len(types), total)]


def measure_arrays(
    kernel: Callable[..., object],
    *arrays: da.Array | None,
    dtype: npt.DTypeLike = object,
    each: Mapping[str, Sequence[object]] | None = None,
    scratch: float,
    sample: int | None = None,
    **shared: object,
) -> da.Array:
    """Measure each array of a Frame: kernel(*planes, **keywords), shape (detector,).

    Unlike `map_arrays`, a task reads the pixels for itself and holds no array of which it needs a
    sample.

    Parameters
    ----------
    arrays, each, shared
        As `map_planes` takes them; an array of shape (detector,) gives the kernel its value, after
        the planes.
    scratch
        Bytes for each pixel of an array, or of the sample, that a task takes.
    sample
        Number of pixels that are enough: of an array that has twice as many or more, the planes
        have the rows of `sampled_rows` only. None: all rows.
    """
    planes = [array for array in arrays if array is not None and array.ndim == 3]
    small = [array for array in arrays if array is not None and array.ndim == 1]
    count, ny, nx = planes[0].shape
    rows = sampled_rows(ny, nx, sample)
    given = tuple(array is not None for array in arrays if array is None or array.ndim == 3)
    values = {name: tuple(items) for name, items in (each or {}).items()}
    label = f"{kernel.__module__}.{kernel.__qualname__}"
    names = [array.name for array in (*planes, *small)]
    identity = tokenize(label, names, given, values, shared, rows, str(dtype))
    return gather(
        _measure,
        planes,
        name=f"{kernel.__name__.strip('_')}-{identity}",
        dtype=dtype,
        chunks=((1,) * count,),
        windows=lambda _, detector, __: [(detector, (y1, y2, 0, nx)) for y1, y2 in rows],
        values=small,
        scratch=scratch * nx * sum(y2 - y1 for y1, y2 in rows),
        kernel=kernel,
        given=given,
        rows=rows,
        each=values,
        shared=shared,
    )


def _measure(
    sources: tuple[Any, ...],
    detector: int,
    window: Window,
    *small: Any,
    kernel: Callable[..., object],
    given: tuple[bool, ...],
    rows: tuple[tuple[int, int], ...],
    each: Mapping[str, tuple],
    shared: Mapping[str, object],
) -> Any:
    nx, height = sources[0].shape[2], sum(y2 - y1 for y1, y2 in rows)
    if len(rows) == 1:
        planes = read_together(sources, detector, (*rows[0], 0, nx))
    else:
        planes = tuple(np.empty((height, nx), source.dtype) for source in sources)
        done, chain = 0, chained(sources, detector, (rows[0][0], rows[-1][1]))
        for y1, y2 in rows:
            parts = [plane[done : done + y2 - y1] for plane in planes]
            at_hand = prepared(sources, detector, (y1, y2, 0, nx), chain)
            read_together(sources, detector, (y1, y2, 0, nx), parts, at_hand)
            done += y2 - y1
    each_plane = iter(planes)
    keywords = dict(shared) | {name: items[detector] for name, items in each.items()}
    return kernel(
        *(next(each_plane) if is_given else None for is_given in given), *small, **keywords
    )


def sampled_rows(ny: int, nx: int, sample: int | None) -> tuple[tuple[int, int], ...]:
    """Give (first, last + 1) of the rows of an array that are a sample of about so many pixels.

    They are SAMPLED_ROWS of every so many, and all of a small array, or without a `sample`.
    """
    step = ny * nx // sample if sample else 1
    if step < 2:
        return ((0, ny),)
    return tuple((y, min(y + SAMPLED_ROWS, ny)) for y in range(0, ny, step * SAMPLED_ROWS))


def _picked(together: da.Array, number: int, dtype: np.dtype) -> da.Array:
    """Give one of the arrays whose blocks a task makes together."""
    name = f"{together.name}-{number}"

    def make() -> dict[Any, Any]:
        tasks = {}
        for (_, *place), _, _ in _blocks_of(together.name, together.chunks):
            key, block = (name, *place), dask_internals.reference((together.name, *place))
            tasks[key] = dask_internals.task(key, getitem, block, number)
        return tasks

    later, meta = dask_internals.LaterTasks(make), empty_meta(dtype, 3)
    return dask_internals.array_of_tasks(name, later, [together], together.chunks, meta)


def _totalled(together: da.Array, number: int, total: Callable[..., object]) -> da.Array:
    """Give total(*values) of each detector, of the values that tasks make beside their planes.

    Each value is picked by a task of its own, so that no block's planes wait for the others.
    """
    name = f"{together.name}-total"
    count = together.shape[0]
    call = with_need(_total, Need(1, 0.0, 0.0), {"total": total})

    def make() -> dict[Any, Any]:
        tasks: dict[Any, Any] = {}
        picked: list[list[Any]] = [[] for _ in range(count)]
        for (_, *place), detector, _ in _blocks_of(together.name, together.chunks):
            key, block = (
                (f"{name}-value", *place),
                dask_internals.reference((together.name, *place)),
            )
            tasks[key] = dask_internals.task(key, getitem, block, number)
            picked[detector].append(dask_internals.reference(key))
        for detector, values in enumerate(picked):
            key = (name, detector)
            tasks[key] = dask_internals.task(key, call, *values)
        return tasks

    later, meta = dask_internals.LaterTasks(make), empty_meta(np.dtype(object), 1)
    return dask_internals.array_of_tasks(name, later, [together], ((1,) * count,), meta)


def _total(*values: Any, total: Callable[..., object]) -> np.ndarray:
    """Make the value of a detector of those of its blocks, each in a tuple of one."""
    return boxed(total(*(value[0] for value in values)), np.dtype(object))


def _gathered(
    call: Callable[..., object],
    arrays: Sequence[Any],
    name: str,
    dtype: np.dtype,
    chunks: Chunks,
    windows: Callable[[int, int, Window], Sequence[tuple[int, Window]]],
    values: Sequence[da.Array],
) -> da.Array:
    """Give the array whose tasks are `call`, each given its sources, values and blocks."""
    known = [awaited_by(array) if _is_lazy(array) else (array, {}) for array in arrays]
    sources = tuple(source for source, _ in known)
    awaited: dict[str, da.Array] = {}
    for _, waiting in known:
        awaited |= waiting
    shared_key = f"sources-{name}"
    lazy = [number for number, source in enumerate(sources) if source is None]
    waiting_numbers = tuple(number for number, (_, waiting) in enumerate(known) if waiting)
    finders = {number: _BlockFinder(arrays[number]) for number in lazy}
    reference = dask_internals.reference

    def make() -> dict[Any, Any]:
        tasks: dict[Any, Any] = {shared_key: dask_internals.shared_value(shared_key, sources)}
        for key, detector, window in _blocks_of(name, chunks):
            references = [reference((value.name, detector)) for value in values]
            touched = {d for n in waiting_numbers for d, _ in windows(n, detector, window)}
            small = tuple((each, d) for each in awaited for d in sorted(touched))
            references += [reference(key_of_value) for key_of_value in small]
            parts = []
            for number in lazy:
                keys, corners = finders[number].touched(windows(number, detector, window))
                references += [reference(key_of_block) for key_of_block in keys]
                parts.append((number, corners, arrays[number].shape, arrays[number].dtype))
            what = Inputs(detector, window, len(values), small, waiting_numbers, tuple(parts))
            tasks[key] = dask_internals.task(key, call, reference(shared_key), what, *references)
        return tasks

    inputs = [*(arrays[number] for number in lazy), *values, *awaited.values()]
    later = dask_internals.LaterTasks(make)
    return dask_internals.array_of_tasks(
        name, later, inputs, chunks, empty_meta(dtype, len(chunks))
    )


def _is_lazy(array: object) -> bool:
    return isinstance(array, da.Array)


class Inputs(NamedTuple):
    """What a task makes, and what it is given beside its sources, in this order.

    Attributes
    ----------
    detector, window
        Of the block.
    count
        Number of values for the function.
    small
        (name, detector) of the small results that sources await.
    waiting
        Numbers of these sources.
    parts
        Of each array without a source: its number, the corners of the blocks that the task is
        given, its shape and its type.
    """

    detector: int
    window: Window
    value_count: int
    small: tuple[tuple[str, int], ...]
    waiting: tuple[int, ...]
    parts: tuple[tuple[int, tuple[tuple[int, int, int], ...], tuple[int, int, int], np.dtype], ...]


def _blocks_of(name: str, chunks: Chunks) -> Iterator[tuple[tuple, int, Window]]:
    """Yield key, detector and window of each block of a result."""
    if len(chunks) == 1:
        yield from (((name, detector), detector, NO_WINDOW) for detector in range(len(chunks[0])))
        return
    _, ys, xs = edges(chunks)
    for detector in range(len(chunks[0])):
        for j in range(len(chunks[1])):
            for i in range(len(chunks[2])):
                yield (name, detector, j, i), detector, (ys[j], ys[j + 1], xs[i], xs[i + 1])


class _BlockFinder:
    """Finds the blocks of one lazy array that windows touch."""

    def __init__(self, array: da.Array) -> None:
        self.name, self.edges = array.name, edges(array.chunks)

    def touched(
        self, windows: Sequence[tuple[int, Window]]
    ) -> tuple[list[tuple], tuple[tuple[int, int, int], ...]]:
        """Give the keys of the blocks, and the (detector, y, x) of each one's first pixel."""
        found: dict[tuple[int, ...], tuple[int, int, int]] = {}
        for detector, (y1, y2, x1, x2) in windows:
            spans = [
                self._span(axis, *bounds)
                for axis, bounds in enumerate(((detector, detector + 1), (y1, y2), (x1, x2)))
            ]
            for d in spans[0]:
                for j in spans[1]:
                    for i in spans[2]:
                        found[d, j, i] = (self.edges[0][d], self.edges[1][j], self.edges[2][i])
        return [(self.name, *place) for place in found], tuple(found.values())

    def _span(self, axis: int, start: int, stop: int) -> range:
        """Give the numbers of the blocks along an axis that have pixels from start to stop - 1."""
        if start >= stop:
            return range(0)
        first = np.searchsorted(self.edges[axis], start, side="right") - 1
        return range(int(first), int(np.searchsorted(self.edges[axis], stop, side="left")))


def _gather_block(
    sources: tuple[Any, ...],
    what: Inputs,
    *given: Any,
    function: Callable[..., Any],
    bound: Mapping[str, object],
    dtype_of_value: np.dtype | None,
) -> Any:
    """Make one block, in a task; `given` are results of other tasks, in the order of `Inputs`.

    Without `dtype_of_value` the function gives several planes.
    """
    keep_freed_memory()
    filled, blocks = list(sources), list(given[what.value_count :])
    if what.small:
        small = {key: box[0] for key, box in zip(what.small, blocks, strict=False)}
        for number in what.waiting:
            filled[number] = Bound(filled[number], small)
        del blocks[: len(small)]
    for number, corners, shape, dtype in what.parts:
        filled[number] = Blocks(tuple(blocks[: len(corners)]), corners, shape, dtype)
        del blocks[: len(corners)]
    values = (value[0] for value in given[: what.value_count])
    result = function(tuple(filled), what.detector, what.window, *values, **bound)
    if dtype_of_value is None:
        return tuple(part[None] if getattr(part, "ndim", 0) == 2 else (part,) for part in result)
    return result[None] if what.window != NO_WINDOW else boxed(result, dtype_of_value)
