"""Lazy arrays (detector, y, x) of dask, made from sources and by kernels.

A block is one array of a detector, or a band of its rows. This module and `gather` are the only
places that build tasks. An array that was made from a source remembers it until somebody changes
the array; what a kernel makes pixel by pixel of such arrays has a source, too (`sources.Mapped`).
Each task declares the bytes that it needs (`Need`), which the projection of memory reads.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from dask.base import tokenize

from gdask.io import dask_internals
from gdask.io.chained import read_together
from gdask.io.dask_internals import Chunks, awaited_by, set_source
from gdask.io.sources import Awaited, Bound, Cut, Mapped
from gdask.io.stored import StoredArray
from gdask.model import late

if TYPE_CHECKING:
    import dask.array as da
else:
    da = late("dask.array")

_AXES = ("detector", "y", "x")
#: Need of a function that is not in task_memory.toml: bytes for each pixel, and times its inputs.
_UNKNOWN_TASK = {"scratch": 16.0, "inputs": 2.0}


class Need(NamedTuple):
    """What one task needs at most.

    `pixels` are those of its largest plane, `item` the bytes of each pixel of the result, `scratch`
    the bytes that it takes beside its inputs and its result. `items` are the bytes of a pixel of
    each plane where the result is several.
    """

    pixels: float
    item: float
    scratch: float
    items: tuple[float, ...] = ()


def source_of(array: object) -> Any:
    """Give the source from which an array's pixels can be read by window, or None."""
    return dask_internals.source_of(array)


def is_stored(source: object) -> bool:
    """Tell whether a source is a file's variable."""
    return isinstance(source, StoredArray)


def edges(chunks: Chunks) -> tuple[tuple[int, ...], ...]:
    """Give for each axis where its blocks begin, and where the last one ends."""
    return tuple(tuple(accumulate(axis, initial=0)) for axis in chunks)


def band_chunks(length: int, rows: int) -> tuple[int, ...]:
    """Give the sizes of blocks of `rows` along an axis of this length; the last may be smaller."""
    return tuple(min(rows, length - start) for start in range(0, length, rows))


@functools.cache
def declared_memory() -> dict[str, dict[str, float]]:
    """Give the declared memory of functions in tasks (task_memory.toml), by module and name."""
    text = resources.files(__package__).joinpath("task_memory.toml").read_text()
    return tomllib.loads(text)["task"]


def need_of(
    function: Callable[..., object], pixels: float, item: float, input_bytes: float
) -> Need:
    """Give what a task needs, by the table of declared memory.

    `pixels` are those of its largest plane, `item` is the bytes of a pixel of the result,
    `input_bytes` are those of all inputs.
    """
    row = declared_memory().get(f"{_module_of(function)}.{function.__name__}", _UNKNOWN_TASK)
    scratch = row.get("scratch", 0.0) * pixels + row.get("fixed", 0.0)
    scratch += row.get("inputs", 0.0) * input_bytes
    return Need(pixels, row.get("result", item), scratch)


def with_need(
    function: Callable[..., object], need: Need, bound: Mapping[str, object]
) -> Callable[..., object]:
    """Give a function with arguments bound to it and its need declared."""
    call = functools.partial(function, **bound)
    call.need = need  # type: ignore[attr-defined]
    return call


@functools.cache
def empty_meta(dtype: np.dtype, dimensions: int) -> np.ndarray:
    """Give the empty array by which dask knows the type of an array's blocks."""
    return np.empty((0,) * dimensions, dtype)


def block_pixels(chunks: Chunks) -> int:
    """Give the pixels of the largest block of an array (detector, y, x)."""
    return max(chunks[1], default=0) * max(chunks[2], default=0)


def _item_bytes(array: da.Array) -> float:
    return 0.0 if array.dtype == object else float(array.dtype.itemsize)


def map_blocks(
    function: Callable[..., object],
    *arrays: da.Array,
    name: str,
    dtype: npt.DTypeLike,
    chunks: Chunks,
    measured: Callable[..., object] | None = None,
    placed: bool = False,
    **bound: object,
) -> da.Array:
    """Give the array whose blocks are function(*blocks of the arrays, **bound).

    Parameters
    ----------
    function
        A function of the module level that gives a block. An input with one block along an axis
        gives this block to all tasks along it.
    name
        The name of the array, which must depend on all that goes into it.
    chunks
        Of the result: three axes, or one (detector) where the function makes one value of a whole
        array.
    measured
        The function whose memory is declared, where it is not `function`.
    placed
        Whether the block's (detector, band, 0) comes first among the arguments.
    """
    dtype = np.dtype(dtype)
    pixels = [block_pixels(array.chunks) for array in arrays if array.ndim == 3]
    if len(chunks) == 3:
        pixels.append(block_pixels(chunks))
    input_bytes = sum(
        _item_bytes(array) * block_pixels(array.chunks) for array in arrays if array.ndim == 3
    )
    item = 0.5 if dtype == object else float(dtype.itemsize)
    need = need_of(measured or function, max(pixels, default=1), item, input_bytes)
    inputs = [(array, _AXES[: array.ndim]) for array in arrays]
    return dask_internals.blockwise_array(
        with_need(function, need, bound),
        name,
        chunks,
        empty_meta(dtype, len(chunks)),
        inputs,
        _AXES[: len(chunks)],
        placed,
    )


def from_source(
    source: Any, kind: str, rows: int | None = None, identity: object = None
) -> da.Array:
    """Give the lazy array of a source, in blocks of one detector and `rows` rows (None: all).

    `identity` stands for the source in the array's name; None: the source does.
    """
    count, ny, nx = source.shape
    heights = band_chunks(ny, rows or max(ny, 1))
    name = f"{kind}-{tokenize(source if identity is None else identity, heights)}"
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
    return read_together((source,), place[0], (y1, y2, 0, block_edges[2][-1]))[0][None]


def bound_to(array: da.Array, values: Mapping[str, Sequence[object]]) -> da.Array:
    """Give an array whose pixels no longer wait for small results.

    `values` has for each by the name of its array an item for each detector. Arrays that await
    others, or nothing, or have no source, stay as they are.
    """
    source, awaited = awaited_by(array)
    if source is None or not awaited or not set(awaited) <= set(values):
        return array
    known = {
        (name, detector): value for name in awaited for detector, value in enumerate(values[name])
    }
    return from_source(Bound(source, known), "bound", identity=array.name)


def cut_out(
    array: da.Array, places: Sequence[tuple[int, int, int]], size: tuple[int, int]
) -> da.Array:
    """Give a part of an array.

    `places` has for each detector of the part the (detector, y, x) of its pixel (0, 0) in the
    array; `size` is (ny, nx).
    """
    source = source_of(array)
    if source is not None:
        part = Cut(source, tuple(places), size)
        return from_source(part, "cut", identity=(array.name, part.places, size))
    planes = [array[d : d + 1, y : y + size[0], x : x + size[1]] for d, y, x in places]
    return da.concatenate(planes).rechunk((1, -1, -1), method="tasks")


def map_planes(
    kernel: Callable[..., object],
    *arrays: da.Array | None,
    dtype: npt.DTypeLike,
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
        True where the kernel takes `window=(y1, y2, x1, x2)`, the pixels of the block in the array.
    shared
        Keyword arguments that are the same for all blocks.
    """
    present = _in_same_blocks([array for array in arrays if array is not None])
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
    if pixelwise:
        _remember_source(result, kernel, present, given, values, shared, windowed)
    return result


def _remember_source(
    result: da.Array,
    kernel: Callable[..., object],
    present: Sequence[da.Array],
    given: Sequence[bool],
    values: Mapping[str, tuple],
    shared: Mapping[str, object],
    windowed: bool,
) -> None:
    """Give an array its source, if all that it is made of has one, or is a small result."""
    sources: list[Any] = []
    awaited: dict[str, da.Array] = {}
    for array in present:
        if array.ndim == 1:
            sources.append(Awaited(array.name))
            awaited[array.name] = array
            continue
        source, waiting = awaited_by(array)
        if source is None or source.shape != result.shape:
            return
        sources.append(source)
        awaited |= waiting
    each_source = iter(sources)
    matched = tuple(next(each_source) if is_given else None for is_given in given)
    made = Mapped(kernel, matched, values, shared, windowed, result.dtype)
    set_source(result, made, awaited)


def map_arrays(
    kernel: Callable[..., object],
    *arrays: da.Array | None,
    dtype: npt.DTypeLike = object,
    each: Mapping[str, Sequence[object]] | None = None,
    **shared: object,
) -> da.Array:
    """Apply a kernel to each whole array of one Frame: one value for each, shape (detector,).

    The arguments are those of `map_planes`; an array of shape (detector,) gives the kernel its
    value.
    """
    present = [
        array if array.ndim == 1 else array.rechunk({0: 1, 1: -1, 2: -1}, method="tasks")
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


def _in_same_blocks(arrays: list[da.Array]) -> list[da.Array]:
    """Give arrays of the first one's shape in its blocks, and all others as they are."""
    first = arrays[0]
    return [
        array.rechunk(first.chunks, method="tasks")
        if array.shape == first.shape and array.chunks != first.chunks
        else array
        for array in arrays
    ]


def _module_of(function: Callable[..., object]) -> str:
    """Give a function's module, which those of NumPy before 2 do not know."""
    return getattr(function, "__module__", "numpy")


def _name_of(kernel: Callable[..., object], arrays: Sequence[da.Array], *others: object) -> str:
    """Give a name that depends on the kernel and all that goes into its result."""
    label = f"{_module_of(kernel)}.{getattr(kernel, '__qualname__', kernel.__name__)}"
    names = [array.name for array in arrays]
    return f"{kernel.__name__.strip('_')}-{tokenize(label, names, *others)}"


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
    """Give the plane of one block, or the value of an array that has one for each detector."""
    # Several blocks along axes that the result does not have come as nested lists.
    while isinstance(block, list):
        block = block[0]
    return block[0]


def _call_for_value(
    place: tuple[int, ...], *blocks: Any, dtype_of_value: np.dtype, **how: Any
) -> np.ndarray:
    return boxed(_call_kernel(place, *blocks, **how), dtype_of_value)


def of_all_arrays(
    function: Callable[..., object], values: da.Array, *, dtype: npt.DTypeLike = object
) -> da.Array:
    """Give an array (detector,) that has function(*values of all detectors) for each detector.

    One task calls the function.
    """
    name = _name_of(function, [values], str(dtype))
    count, shared_key = values.shape[0], f"all-{name}"
    call = with_need(function, need_of(function, 1, 8.0, 0.0), {})
    boxes = [dask_internals.reference((values.name, detector)) for detector in range(count)]
    shared = dask_internals.task(shared_key, _call_unboxed, call, *boxes)
    tasks: dict[Any, Any] = {shared_key: shared}
    for detector in range(count):
        key = (name, detector)
        result = dask_internals.reference(shared_key)
        tasks[key] = dask_internals.task(key, boxed, result, np.dtype(dtype))
    meta = empty_meta(np.dtype(dtype), 1)
    return dask_internals.array_of_tasks(name, tasks, [values], ((1,) * count,), meta)


def _call_unboxed(function: Callable[..., object], *boxes: np.ndarray) -> object:
    return function(*(box[0] for box in boxes))


def boxed(value: object, dtype: np.dtype) -> np.ndarray:
    """Give an array of one element that is `value`, also where the value is a sequence."""
    box = np.empty(1, dtype)
    box[0] = value
    return box
