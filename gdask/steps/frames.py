"""What steps share: mapping kernels over arrays, header changes, facts of a Frame. Builds graphs, computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize

from gdask.engine.memory import rows_within
from gdask.instruments import descriptor
from gdask.io.header import Header
from gdask.io.lazy_arrays import edges, map_blocks
from gdask.io.read import reopen
from gdask.model import DIMS, DTYPES
from gdask.types import Frame, Frames

#: One pixel of a kernel that gives several variables at once.
PIXEL = np.dtype([("data", "f4"), ("variance", "f4"), ("dq", "u2")])


def map_planes(
    kernel: Callable[..., object],
    *arrays: da.Array | None,
    dtype: np.dtype | str,
    each: Mapping[str, Sequence[object]] | None = None,
    whole: bool = False,
    windowed: bool = False,
    **shared: object,
) -> da.Array:
    """Apply a kernel to every (ny, nx) block of every array of one Frame.

    Parameters
    ----------
    kernel
        A module-level function of 2-D planes (one for each of `arrays`, None passed on).
    dtype
        Of what the kernel gives; `object` for a value that is not a plane.
    each
        Keyword arguments with one value per detector.
    whole
        True where the kernel gives one value per block and not a plane (the result has one element per block).
    windowed
        True where the kernel takes `window=(y1, y2, x1, x2)`, the block's place in the array.
    shared
        Keyword arguments that are the same for all blocks.
    """
    present = [array for array in arrays if array is not None]
    first = present[0]
    present = [
        array.rechunk(first.chunks)
        if array.shape == first.shape and array.chunks != first.chunks
        else array
        for array in present
    ]
    where = tuple(array is not None for array in arrays)
    values = {name: tuple(items) for name, items in (each or {}).items()}
    label = f"{kernel.__module__}.{kernel.__qualname__}"
    token = tokenize(
        label, [array.name for array in present], where, values, shared, str(dtype), whole
    )
    chunks = tuple(max((array.chunks[axis] for array in present), key=len) for axis in range(3))
    bound = {
        "kernel": kernel,
        "where": where,
        "shared": shared,
        "whole": whole,
        "out_type": np.dtype(dtype),
    }
    placed = bool(values) or windowed
    if placed:
        bound |= {"values": values, "edges": edges(first.chunks) if windowed else ()}
    return map_blocks(
        _call_at if placed else _call,
        *present,
        name=f"{kernel.__name__.strip('_')}-{token}",
        dtype=dtype,
        placed=placed,
        chunks=tuple((1,) * len(axis) for axis in chunks) if whole else chunks,
        **bound,
    )


def _call(
    *blocks: np.ndarray,
    kernel: Callable[..., object],
    where: tuple[bool, ...],
    shared: Mapping[str, object],
    whole: bool,
    out_type: np.dtype,
) -> np.ndarray:
    planes = iter(block[0] for block in blocks)
    result = kernel(*(next(planes) if present else None for present in where), **shared)
    if not whole:
        return np.asarray(result)[None]
    boxed = np.empty((1, 1, 1), out_type)
    boxed[0, 0, 0] = result
    return boxed


def _call_at(
    place: tuple[int, int, int],
    *blocks: np.ndarray,
    values: Mapping[str, tuple],
    edges: tuple[tuple[int, ...], ...],
    shared: Mapping[str, object],
    **how: Any,
) -> np.ndarray:
    """The same where some of the kernel's arguments go by the detector, or by the block's place."""
    given = dict(shared) | {name: items[place[0]] for name, items in values.items()}
    if edges:
        given["window"] = tuple(edges[axis][place[axis] + end] for axis in (1, 2) for end in (0, 1))
    return _call(*blocks, shared=given, **how)


def pack(data: np.ndarray, variance: np.ndarray, dq: np.ndarray) -> np.ndarray:
    """Three planes as one plane of PIXEL."""
    packed = np.empty(data.shape, PIXEL)
    packed["data"], packed["variance"], packed["dq"] = data, variance, dq
    return packed


def field(packed: np.ndarray, name: str) -> np.ndarray:
    """One variable of a plane of PIXEL, contiguous."""
    return np.ascontiguousarray(packed[name])


def unpack(packed: da.Array) -> dict[str, da.Array]:
    """The variables of a lazy array of PIXEL, by name."""
    return {
        name: map_planes(field, packed, dtype=DTYPES[name], name=name) for name in PIXEL.names or ()
    }


def item(box: np.ndarray, name: object) -> object:
    """One part of a kernel's several results, which came boxed (1, 1)."""
    return box[0, 0][name]


def array(frame: Frame, name: str) -> da.Array | None:
    """A variable's dask array, one detector to a chunk, or None where the Frame has no such variable."""
    if name not in frame:
        return None
    pixels = frame[name].data
    return pixels if pixels.numblocks[0] == pixels.shape[0] else pixels.rechunk({0: 1})


def with_arrays(frame: Frame, **arrays: da.Array | None) -> Frame:
    """The Frame with these variables set (None: left as it is). They are no longer what its file holds."""
    changed = {name: (DIMS, values) for name, values in arrays.items() if values is not None}
    layout = {
        name: planes
        for name, planes in (frame.attrs["layout"] or {}).items()
        if name not in changed
    }
    return frame.assign(changed).assign_attrs(layout=layout)


def replaced(frame: Frame, **arrays: da.Array) -> Frame:
    """A Frame with these variables and no others, and the attributes of `frame`."""
    return with_arrays(frame.drop_vars(list(frame.data_vars)), **arrays).assign_attrs(layout={})


def with_headers(
    frame: Frame,
    primary: Mapping[str, object] | None = None,
    each: Mapping[str, Sequence[object]] | None = None,
) -> Frame:
    """The Frame with keywords set (None: removed) in its primary header and in each array's header, where any are."""
    phu, headers = frame.attrs["phu"], frame.attrs["headers"]
    if primary:
        phu = Header.of(phu).changed(primary)
    if each:
        rows = zip(*each.values(), strict=True)
        headers = tuple(
            Header.of(header).changed(dict(zip(each, row, strict=True)))
            for header, row in zip(headers, rows, strict=True)
        )
    return frame.assign_attrs(phu=phu, headers=headers)


def per_array(frame: Frame, name: str) -> tuple:
    """A descriptor's value for each array."""
    values = descriptor(frame, name)
    count = len(frame.attrs["headers"])
    return (
        tuple(values)
        if isinstance(values, (list, tuple)) and len(values) == count
        else (values,) * count
    )


def in_bands(frames: Frames, rows: int) -> Frames:
    """Frames on disk in bands of at most `rows` rows, fewer where a band of all of them would not fit the memory allowed."""
    rows = rows_within(sum(frame.sizes["x"] for frame in frames) * PIXEL.itemsize, rows, 16)
    return tuple(reopen(frame, rows=rows, tag="rows") for frame in frames)


def pending(frame: Frame, **arrays: da.Array) -> Frame:
    """The Frame with small results to be fetched at the end of the phase."""
    return frame.assign_attrs(pending=frame.attrs["pending"] | arrays)


def with_provenance(frame: Frame, source: Frame, step: str) -> Frame:
    """The Frame with a file that went into it on record; its checksum is computed with the product."""
    row = {
        "filename": source.attrs["name"],
        "path": source.attrs["path"],
        "provenance_added_by": step,
    }
    return frame.assign_attrs(provenance=(*frame.attrs.get("provenance", ()), row))


def note(frame: Frame, text: str) -> Frame:
    """The Frame with a remark for the log line of its step."""
    return frame.assign_attrs(note=text)


def warn(frame: Frame, text: str) -> Frame:
    """The Frame with a warning for the log."""
    return frame.assign_attrs(warning=text)


def aside(frame: Frame, reason: str) -> Frame:
    """The Frame marked as left out, with the reason."""
    return frame.assign_attrs(set_aside=reason)


def _is_frame(value: object) -> bool:
    return hasattr(value, "data_vars")


def frames_in(value: object) -> list[Frame]:
    """All Frames in a step's argument or result, however its tuples are nested."""
    if _is_frame(value):
        return [value]  # type: ignore[list-item]
    return (
        [frame for item in value for frame in frames_in(item)]
        if isinstance(value, (tuple, list))
        else []
    )


def map_frames(function: Callable[[Frame], Frame], value: object) -> object:
    """The same nesting with every Frame replaced by what `function` gives."""
    if _is_frame(value):
        return function(value)  # type: ignore[arg-type]
    return (
        tuple(map_frames(function, item) for item in value) if isinstance(value, tuple) else value
    )


def without_set_aside(value: object) -> object:
    """The same nesting without the Frames that were set aside."""
    if isinstance(value, tuple):
        return tuple(
            without_set_aside(item)
            for item in value
            if not (_is_frame(item) and item.attrs.get("set_aside"))
        )
    return value
