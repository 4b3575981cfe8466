"""Gathering: tasks that make one block from windows of many arrays.

Such a block is a band of a sky or a tile of a stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gdask.io import dask_internals
from gdask.io.dask_internals import Chunks
from gdask.io.lazy_arrays import Need, block_pixels, boxed, edges, empty_meta, source_of, with_need
from gdask.io.sources import Blocks
from gdask.model import late
from gdask.types import Window

if TYPE_CHECKING:
    import dask.array as da
else:
    da = late("dask.array")


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
        the task. Of any other the task waits for the blocks that its windows touch.
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
    sources = tuple(source_of(array) if isinstance(array, da.Array) else array for array in arrays)
    shared_key = f"sources-{name}"
    tasks: dict[Any, Any] = {shared_key: dask_internals.shared_value(shared_key, sources)}
    lazy = [number for number, source in enumerate(sources) if source is None]
    finders = {number: _BlockFinder(arrays[number]) for number in lazy}
    pixels = block_pixels(chunks) if len(chunks) == 3 else 1
    item = float(np.dtype(dtype).itemsize) if result_bytes is None else result_bytes / pixels
    need = Need(pixels, item, scratch)
    options = {"bound": bound, "one_value": len(chunks) == 1, "dtype_of_value": np.dtype(dtype)}
    call = with_need(_gather_block, need, {"function": function} | options)
    for key, detector, window in _blocks_of(name, chunks):
        block_references, parts = [], []
        for number in lazy:
            keys, corners = finders[number].touched(windows(number, detector, window))
            block_references += [dask_internals.reference(key_of_block) for key_of_block in keys]
            parts.append((number, corners, arrays[number].shape, arrays[number].dtype))
        value_references = [dask_internals.reference((value.name, detector)) for value in values]
        tasks[key] = dask_internals.task(
            key,
            call,
            dask_internals.reference(shared_key),
            detector,
            window,
            tuple(parts),
            len(value_references),
            *value_references,
            *block_references,
        )
    inputs = [*(arrays[number] for number in lazy), *values]
    meta = empty_meta(np.dtype(dtype), len(chunks))
    return dask_internals.array_of_tasks(name, tasks, inputs, chunks, meta)


def _blocks_of(name: str, chunks: Chunks) -> Iterator[tuple[tuple, int, Window]]:
    """Yield key, detector and window of each block of a result."""
    if len(chunks) == 1:
        yield from (
            ((name, detector), detector, (0, 0, 0, 0)) for detector in range(len(chunks[0]))
        )
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
    detector: int,
    window: Window,
    parts: tuple[tuple[int, tuple[tuple[int, int, int], ...], tuple[int, int, int], np.dtype], ...],
    n_values: int,
    *given: Any,
    function: Callable[..., np.ndarray],
    bound: Mapping[str, object],
    one_value: bool,
    dtype_of_value: np.dtype,
) -> np.ndarray:
    """Make one block, in a task. `given` has the values, then the blocks of each of `parts`."""
    filled, blocks = list(sources), list(given[n_values:])
    for number, corners, shape, dtype in parts:
        filled[number] = Blocks(tuple(blocks[: len(corners)]), corners, shape, dtype)
        del blocks[: len(corners)]
    result = function(
        tuple(filled), detector, window, *(value[0] for value in given[:n_values]), **bound
    )
    if not one_value:
        return result[None]
    return boxed(result, dtype_of_value)
