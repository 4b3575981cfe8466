"""The only place that builds tasks: lazy arrays (detector, y, x) from kernels, from files, and gathered from many sources.

A *source* gives pixels by window: `read(detector, window, memo)`. A file's variable is one (`StoredArray`), and so is what
a kernel makes pixel by pixel of other sources (`Mapped`). An array that was made from a source remembers it, until
somebody changes the array. `gather` builds tasks that read windows of many arrays: from their sources where they have
one, else from the blocks of the array that the windows touch. Nothing else has to know where pixels live.

Each task declares the bytes that it needs (`Need`), which the projection of memory reads.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from gdask.io import dask_internals
from gdask.io.dask_internals import Chunks, set_source
from gdask.io.stored import Memo, StoredArray
from gdask.types import Window

_AXES = ("detector", "y", "x")
#: What is not in task_memory.toml is taken to need so many bytes for each pixel and so many times its inputs.
_UNKNOWN_TASK = {"scratch": 16.0, "inputs": 2.0}


class Source(Protocol):
    """What gives pixels by window."""

    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def read(self, detector: int, window: Window, memo: Memo) -> np.ndarray: ...


class Need(NamedTuple):
    """What one task needs, at most: pixels of its result, bytes for each of them, bytes beside inputs and result."""

    pixels: float
    item: float
    scratch: float


class Mapped(NamedTuple):
    """What a kernel makes of other sources pixel by pixel. `values` are its arguments that go by the detector."""

    kernel: Callable[..., np.ndarray]
    sources: tuple[Any, ...]  # None where the kernel is given None
    values: Mapping[str, tuple]
    shared: Mapping[str, Any]
    windowed: bool
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        return next(source.shape for source in self.sources if source is not None)

    def read(self, detector: int, window: Window, memo: Memo) -> np.ndarray:
        planes = [
            None if one is None else read_once(one, detector, window, memo) for one in self.sources
        ]
        given = dict(self.shared) | {name: items[detector] for name, items in self.values.items()}
        if self.windowed:
            given["window"] = window
        return np.asarray(self.kernel(*planes, **given))


class Cut(NamedTuple):
    """A part of another source: for each detector, the other's detector and where its pixel (0, 0) lies there (y, x)."""

    source: Any
    places: tuple[tuple[int, int, int], ...]
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        return (len(self.places), *self.size)

    @property
    def dtype(self) -> np.dtype:
        return self.source.dtype

    def read(self, detector: int, window: Window, memo: Memo) -> np.ndarray:
        number, y, x = self.places[detector]
        y1, y2, x1, x2 = window
        return read_once(self.source, number, (y1 + y, y2 + y, x1 + x, x2 + x), memo)


class Field(NamedTuple):
    """One variable of a source of records."""

    records: Any
    name: str

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.records.shape

    @property
    def dtype(self) -> np.dtype:
        return self.records.dtype[self.name]

    def read(self, detector: int, window: Window, memo: Memo) -> np.ndarray:
        return np.ascontiguousarray(read_once(self.records, detector, window, memo)[self.name])


class Blocks(NamedTuple):
    """Blocks of a lazy array that a task was given, as a source; `corners` are the (detector, y, x) of each block's first
    pixel."""

    blocks: tuple[np.ndarray, ...]
    corners: tuple[tuple[int, int, int], ...]
    shape: tuple[int, int, int]
    dtype: np.dtype

    def read(self, detector: int, window: Window, memo: Memo) -> np.ndarray:
        y1, y2, x1, x2 = window
        out = np.empty((y2 - y1, x2 - x1), self.dtype)
        for block, (first, top, left) in zip(self.blocks, self.corners, strict=True):
            if not first <= detector < first + block.shape[0]:
                continue
            ya, yb = max(y1, top), min(y2, top + block.shape[1])
            xa, xb = max(x1, left), min(x2, left + block.shape[2])
            if ya < yb and xa < xb:
                plane = block[detector - first]
                out[ya - y1 : yb - y1, xa - x1 : xb - x1] = plane[
                    ya - top : yb - top, xa - left : xb - left
                ]
        return out


def read_once(source: Source, detector: int, window: Window, memo: Memo) -> np.ndarray:
    """Read a window of a source, or give what the same task has read before. Nobody may write into the result."""
    key = id(source), detector, window
    if key not in memo:
        memo[key] = source.read(detector, window, memo)
    return memo[key]


def source_of(array: object) -> Any:
    """Give the source that an array's pixels can be read from by window; None where there is none."""
    return dask_internals.source_of(array)


def is_stored(source: object) -> bool:
    """Tell whether a source is a file's variable."""
    return isinstance(source, StoredArray)


def edges(chunks: Chunks) -> tuple[tuple[int, ...], ...]:
    """Give for each axis where its blocks begin, and where the last one ends."""
    return tuple(tuple(accumulate(axis, initial=0)) for axis in chunks)


def band_chunks(length: int, rows: int) -> tuple[int, ...]:
    """Give the sizes of blocks of `rows` along an axis of this length; the last one may be smaller."""
    return tuple(min(rows, length - start) for start in range(0, length, rows))


@functools.cache
def declared_memory() -> dict[str, dict[str, float]]:
    """Give scratch and results of functions in tasks (task_memory.toml), by module and name."""
    text = resources.files(__package__).joinpath("task_memory.toml").read_text()
    return tomllib.loads(text)["task"]


def need_of(
    function: Callable[..., object], pixels: float, item: float, input_bytes: float
) -> Need:
    """Give what a task needs: `pixels` of its largest plane, bytes of a pixel of the result and of all its inputs."""
    row = declared_memory().get(f"{function.__module__}.{function.__name__}", _UNKNOWN_TASK)
    scratch = row.get("scratch", 0.0) * pixels + row.get("inputs", 0.0) * input_bytes
    return Need(pixels, row.get("result", item), scratch)


def _with_need(
    function: Callable[..., object], need: Need, bound: Mapping[str, object]
) -> Callable[..., object]:
    call = functools.partial(function, **bound)
    call.need = need  # type: ignore[attr-defined]
    return call


@functools.cache
def _empty(dtype: np.dtype, dimensions: int) -> np.ndarray:
    return np.empty((0,) * dimensions, dtype)


def _block_pixels(chunks: Chunks) -> int:
    return max(chunks[1], default=0) * max(chunks[2], default=0)


def _item_bytes(array: da.Array) -> float:
    return 0.0 if array.dtype == object else float(array.dtype.itemsize)


def map_blocks(
    function: Callable[..., object],
    *arrays: da.Array,
    name: str,
    dtype: np.dtype | str,
    chunks: Chunks,
    measured: Callable[..., object] | None = None,
    placed: bool = False,
    **bound: object,
) -> da.Array:
    """Give the array whose blocks are function(*blocks of the arrays, **bound).

    Parameters
    ----------
    function
        Of the module level; gives a block. An array that has one block along an axis gives it to all.
    name
        Of the array, a function of all that goes into it.
    chunks
        Of the result: three axes, or one (detector) where the function makes one value of a whole array.
    measured
        The function whose memory is declared, where it is not `function`.
    placed
        The block's (detector, band, 0) comes first among the arguments.
    """
    dtype = np.dtype(dtype)
    pixels = [_block_pixels(array.chunks) for array in arrays if array.ndim == 3]
    if len(chunks) == 3:
        pixels.append(_block_pixels(chunks))
    taken = sum(
        _item_bytes(array) * _block_pixels(array.chunks) for array in arrays if array.ndim == 3
    )
    item = 0.5 if dtype == object else float(dtype.itemsize)
    need = need_of(measured or function, max(pixels, default=1), item, taken)
    inputs = [(array, _AXES[: array.ndim]) for array in arrays]
    return dask_internals.blockwise_array(
        _with_need(function, need, bound),
        name,
        chunks,
        _empty(dtype, len(chunks)),
        inputs,
        _AXES[: len(chunks)],
        placed,
    )


def from_source(
    source: Any, kind: str, rows: int | None = None, tag: str = "", identity: object = None
) -> da.Array:
    """Give the lazy array of a source, in blocks of one detector and `rows` rows (None: all).

    `identity` stands for the source in the array's name; None: the source does. Arrays of one source with different tags have tasks of their own: their users do not wait for each other, and no
    block is kept in memory for the second one.
    """
    count, ny, nx = source.shape
    heights = band_chunks(ny, rows or max(ny, 1))
    name = f"{kind}-{tokenize(source if identity is None else identity, heights, tag)}"
    chunks = ((1,) * count, heights, (nx,))
    array = map_blocks(
        _read_block,
        name=name,
        dtype=source.dtype,
        chunks=chunks,
        placed=True,
        source=source,
        block_edges=edges(chunks),
    )
    return set_source(array, source) if getattr(source, "is_windowed", True) else array


def _read_block(
    place: tuple[int, int, int], source: Any, block_edges: tuple[tuple[int, ...], ...]
) -> np.ndarray:
    y1, y2 = block_edges[1][place[1] : place[1] + 2]
    return source.read(place[0], (y1, y2, 0, block_edges[2][-1]), {})[None]


def read_apart(array: da.Array, rows: int | None = None, tag: str = "") -> da.Array:
    """Give the same pixels in blocks of `rows` rows for another user, read anew where the array has a source."""
    source = source_of(array)
    if source is None:
        return array.rechunk({0: 1, 1: rows or -1, 2: -1})
    return from_source(
        source, "read", rows, tag, identity=None if is_stored(source) else array.name
    )


def cut_out(
    array: da.Array, places: Sequence[tuple[int, int, int]], size: tuple[int, int]
) -> da.Array:
    """Give a part of an array: for each detector of the result, the (detector, y, x) of its pixel (0, 0) in the array."""
    source = source_of(array)
    if source is not None:
        part = Cut(source, tuple(places), size)
        return from_source(part, "cut", identity=(array.name, part.places, size))
    planes = [array[d : d + 1, y : y + size[0], x : x + size[1]] for d, y, x in places]
    return da.concatenate(planes).rechunk((1, -1, -1))


def changed_scale(array: da.Array, scales: Sequence[float], offsets: Sequence[float]) -> da.Array:
    """Give an array with each detector's pixels multiplied and then shifted; a file is read with it."""
    source = source_of(array)
    if is_stored(source):
        return from_source(source.changed(scales, offsets), "read")
    values = {"scale": tuple(scales), "offset": tuple(offsets)}
    return map_planes(_rescale, array, dtype=array.dtype, each=values)


def _rescale(pixels: np.ndarray, scale: float, offset: float) -> np.ndarray:
    return pixels * scale + offset


def map_planes(
    kernel: Callable[..., object],
    *arrays: da.Array | None,
    dtype: np.dtype | str,
    each: Mapping[str, Sequence[object]] | None = None,
    pixelwise: bool = True,
    windowed: bool = False,
    **shared: object,
) -> da.Array:
    """Apply a kernel to every (ny, nx) block of every array of one Frame.

    Parameters
    ----------
    kernel
        A module-level function of 2-D planes (one for each of `arrays`, None passed on).
    dtype
        Of what the kernel gives.
    each
        Keyword arguments with one value per detector.
    pixelwise
        False where a pixel of the result depends on other pixels of the block.
    windowed
        True where the kernel takes `window=(y1, y2, x1, x2)`, the block's place in the array.
    shared
        Keyword arguments that are the same for all blocks.
    """
    present = _alike([array for array in arrays if array is not None])
    values = {name: tuple(items) for name, items in (each or {}).items()}
    given = tuple(array is not None for array in arrays)
    planes = [array for array in present if array.ndim == 3]
    chunks = tuple(max((array.chunks[axis] for array in planes), key=len) for axis in range(3))
    result = map_blocks(
        _call_for_plane,
        *present,
        name=_name_of(kernel, present, given, values, shared, str(dtype)),
        dtype=dtype,
        chunks=chunks,
        measured=kernel,
        placed=True,
        kernel=kernel,
        given=given,
        values=values,
        shared=shared,
        block_edges=edges(chunks) if windowed else (),
    )
    sources = [source_of(array) for array in present]
    if pixelwise and all(source is not None and source.shape == result.shape for source in sources):
        each_source = iter(sources)
        matched = tuple(next(each_source) if is_given else None for is_given in given)
        set_source(result, Mapped(kernel, matched, values, shared, windowed, np.dtype(dtype)))  # type: ignore[arg-type]
    return result


def map_arrays(
    kernel: Callable[..., object],
    *arrays: da.Array | None,
    dtype: np.dtype | str = object,
    each: Mapping[str, Sequence[object]] | None = None,
    **shared: object,
) -> da.Array:
    """Apply a kernel to each whole array of one Frame: one value for each, shape (detector,).

    The arguments are those of `map_planes`; an array of shape (detector,) gives the kernel its value.
    """
    present = [
        array if array.ndim == 1 else array.rechunk({0: 1, 1: -1, 2: -1})
        for array in arrays
        if array is not None
    ]
    values = {name: tuple(items) for name, items in (each or {}).items()}
    given = tuple(array is not None for array in arrays)
    return map_blocks(
        _call_for_value,
        *present,
        name=_name_of(kernel, present, given, values, shared, str(dtype)),
        dtype=dtype,
        chunks=(present[0].chunks[0],),
        measured=kernel,
        placed=True,
        kernel=kernel,
        given=given,
        values=values,
        shared=shared,
        dtype_of_value=np.dtype(dtype),
    )


def _alike(arrays: list[da.Array]) -> list[da.Array]:
    """The arrays in the blocks of the first; those of values, or with other shapes, as they are."""
    first = arrays[0]
    return [
        array.rechunk(first.chunks)
        if array.shape == first.shape and array.chunks != first.chunks
        else array
        for array in arrays
    ]


def _name_of(kernel: Callable[..., object], arrays: Sequence[da.Array], *others: object) -> str:
    label = f"{kernel.__module__}.{kernel.__qualname__}"
    return (
        f"{kernel.__name__.strip('_')}-{tokenize(label, [array.name for array in arrays], *others)}"
    )


def _call_kernel(
    place: tuple[int, ...],
    *blocks: Any,
    kernel: Callable[..., object],
    given: tuple[bool, ...],
    values: Mapping[str, tuple],
    shared: Mapping[str, object],
    block_edges: tuple[tuple[int, ...], ...] = (),
) -> Any:
    keywords = dict(shared) | {name: items[place[0]] for name, items in values.items()}
    if block_edges:
        keywords["window"] = tuple(
            block_edges[axis][place[axis] + end] for axis in (1, 2) for end in (0, 1)
        )
    planes = iter(_plane_of(block) for block in blocks)
    return kernel(*(next(planes) if is_given else None for is_given in given), **keywords)


def _call_for_plane(place: tuple[int, ...], *blocks: Any, **how: Any) -> np.ndarray:
    return np.asarray(_call_kernel(place, *blocks, **how))[None]


def _plane_of(block: Any) -> Any:
    """The plane of one block, or the value of an array that has one for each detector."""
    while isinstance(
        block, list
    ):  # dask gives blocks along axes that the result does not have as nested lists
        block = block[0]
    return block[0]


def _call_for_value(
    place: tuple[int, ...], *blocks: Any, dtype_of_value: np.dtype, **how: Any
) -> np.ndarray:
    return _boxed(_call_kernel(place, *blocks, **how), dtype_of_value)


def gather(
    function: Callable[..., np.ndarray],
    arrays: Sequence[Any],
    *,
    name: str,
    dtype: np.dtype | str,
    chunks: Chunks,
    windows: Callable[[int, int, Window], Sequence[tuple[int, Window]]],
    values: Sequence[da.Array] = (),
    scratch: float,
    **bound: object,
) -> da.Array:
    """Give the array whose blocks are each made by one task from windows of many arrays.

    Parameters
    ----------
    function
        function(sources, detector, window, *values, **bound) -> plane of the window; `sources` has a source for each of
        `arrays`, so that the task can read one after another, and no more of each than it needs at a time.
    arrays
        Lazy arrays (detector, y, x), or sources. An array that has a source is read from it inside the task. Of any other
        the task waits for the blocks that its windows touch.
    chunks
        Of the result. Where the result has one value for each detector: ((1, 1, ...),).
    windows
        windows(number of the array, detector, window of the result) -> the (detector, window) pairs of that array that the
        task reads.
    values
        Arrays of shape (detector,) of which the function is given all blocks of this detector, in order.
    scratch
        Bytes that a task takes beside its result.
    """
    sources = tuple(source_of(array) if isinstance(array, da.Array) else array for array in arrays)
    shared_key = f"sources-{name}"
    tasks: dict[Any, Any] = {shared_key: dask_internals.shared_value(shared_key, sources)}
    lazy = [number for number, source in enumerate(sources) if source is None]
    places = {number: _BlockFinder(arrays[number]) for number in lazy}
    need = Need(
        _block_pixels(chunks) if len(chunks) == 3 else 1, float(np.dtype(dtype).itemsize), scratch
    )
    how = {"bound": bound, "whole": len(chunks) == 1, "dtype_of_value": np.dtype(dtype)}
    call = _with_need(_gather_block, need, {"function": function} | how)
    for key, detector, window in _blocks_of(name, chunks):
        found, parts = [], []
        for number in lazy:
            keys, corners = places[number].touched(windows(number, detector, window))
            found += [dask_internals.reference(one) for one in keys]
            parts.append((number, corners, arrays[number].shape, arrays[number].dtype))
        given = [dask_internals.reference((value.name, detector)) for value in values]
        tasks[key] = dask_internals.task(
            key,
            call,
            dask_internals.reference(shared_key),
            detector,
            window,
            tuple(parts),
            len(given),
            *given,
            *found,
        )
    inputs = [*(arrays[number] for number in lazy), *values]
    graph = HighLevelGraph.from_collections(name, tasks, inputs)
    return da.Array(graph, name, chunks, meta=_empty(np.dtype(dtype), len(chunks)))


def _blocks_of(name: str, chunks: Chunks) -> Iterator[tuple[tuple, int, Window]]:
    """Key, detector and window of each block of a result."""
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
        """Keys of the blocks, and the (detector, y, x) of each one's first pixel."""
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
    whole: bool,
    dtype_of_value: np.dtype,
) -> np.ndarray:
    filled, blocks = list(sources), list(given[n_values:])
    for number, corners, shape, dtype in parts:
        filled[number] = Blocks(tuple(blocks[: len(corners)]), corners, shape, dtype)
        del blocks[: len(corners)]
    result = function(
        tuple(filled), detector, window, *(value[0] for value in given[:n_values]), **bound
    )
    if not whole:
        return result[None]
    return _boxed(result, dtype_of_value)


def of_all_arrays(
    function: Callable[..., object], values: da.Array, *, dtype: np.dtype | str = object
) -> da.Array:
    """Give function(*values of all detectors) for each detector, (detector,), made by one task."""
    name = _name_of(function, [values], str(dtype))
    count, together = values.shape[0], f"all-{name}"
    call = _with_need(function, need_of(function, 1, 8.0, 0.0), {})
    boxes = [dask_internals.reference((values.name, detector)) for detector in range(count)]
    tasks: dict[Any, Any] = {together: dask_internals.task(together, _call_unboxed, call, *boxes)}
    for detector in range(count):
        key = (name, detector)
        result = dask_internals.reference(together)
        tasks[key] = dask_internals.task(key, _boxed, result, np.dtype(dtype))
    graph = HighLevelGraph.from_collections(name, tasks, [values])
    return da.Array(graph, name, ((1,) * count,), meta=_empty(np.dtype(dtype), 1))


def _call_unboxed(function: Callable[..., object], *boxes: np.ndarray) -> object:
    return function(*(box[0] for box in boxes))


def _boxed(value: object, dtype: np.dtype) -> np.ndarray:
    boxed = np.empty(1, dtype)
    boxed[0] = value
    return boxed
