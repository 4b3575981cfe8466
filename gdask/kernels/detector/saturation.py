"""Find the saturated pixels of raw planes, the holes of saturated cores among them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gdask.kernels.arrays import as_kernel_input
from gdask.kernels.compiled import njit
from gdask.kernels.detector.quality import Indices
from gdask.model import DQ, GdaskError
from gdask.types import Flags, Mask

#: A raw plane (ny, nx).
Plane = npt.NDArray[np.float32]

_SATURATED = np.uint16(DQ.SATURATED)
_BRIGHT = np.uint16(DQ.NON_LINEAR | DQ.SATURATED)
_DEFECTS = np.uint16(DQ.BAD_PIXEL | DQ.NO_DATA | DQ.UNILLUMINATED)
#: About so many pixels are looked at together for bright ones: they stay in the processor's cache.
_STRIP_PIXELS = 65536
#: The largest hole of a saturated core, in pixels.
_MAX_HOLE = 10000


def _list_bright(data: Plane, bpm: Flags | None, from_level: np.float32) -> Indices:
    """Flat indices of the pixels at or above a level, and of those that `bpm` says are bright."""
    found = [np.empty(0, np.int32)]
    rows = max(1, _STRIP_PIXELS // data.shape[1])
    for y in range(0, data.shape[0], rows):
        bright = data[y : y + rows] >= from_level
        static = None if bpm is None else bpm[y : y + rows]
        if static is not None and np.bitwise_or.reduce(static, axis=None) & _BRIGHT:
            bright |= (static & _BRIGHT) != 0
        if bright.any():
            found.append((np.flatnonzero(bright) + y * data.shape[1]).astype(np.int32))
    return np.concatenate(found)


@njit(cache=True, nogil=True)
def _join_runs(start: Indices, stop: Indices, row: Indices, width: int, blob: Indices) -> None:
    """Number the blob (8-connected) of each run of pixels in a row by the blob's first run.

    start, stop: the run's first pixel and last + 1, flat, rising. blob: rising numbers; changed.
    """
    above = 0
    for r in range(start.size):
        while stop[above] + width < start[r]:
            above += 1
        q = above
        while q < r and start[q] + width <= stop[r]:
            if row[q] + 1 == row[r]:
                a, b = blob[q], blob[r]
                while blob[a] != a:
                    blob[a] = blob[blob[a]]
                    a = blob[a]
                while blob[b] != b:
                    blob[b] = blob[blob[b]]
                    b = blob[b]
                if a < b:
                    blob[b] = a
                else:
                    blob[a] = b
            q += 1
    for r in range(start.size):
        blob[r] = blob[blob[r]]


@njit(cache=True, nogil=True)
def _flood_holes(
    box: npt.NDArray[np.uint8],
    w: int,
    start: Indices,
    stop: Indices,
    queue: Indices,
    max_size: int,
) -> int:
    """List the pixels of the holes of a blob in `queue`, and give their number.

    box: 0 open, 2 a defect, in rows of `w` pixels that reach to the edges of the blob; changed.
    start, stop: first pixel and last + 1 of the blob's runs. queue: as long as the box; regions
    that are no holes are listed in it for a while.
    """
    for r in range(start.size):
        for i in range(start[r], stop[r]):
            box[i] = 1
    n = 0
    for seed in range(w, box.size - w):
        if box[seed] != 0:
            continue
        box[seed] = 3
        queue[n] = seed
        taken, end = n, n + 1
        closed, on_blob, on_defects = True, 0, 0
        while taken < end:
            place = queue[taken]
            taken += 1
            x = place % w
            closed &= w <= place < box.size - w and 0 < x < w - 1
            for side in range(4):
                beside = place + (-w if side == 0 else w if side == 1 else -1 if side == 2 else 1)
                if beside < 0 or beside >= box.size:
                    continue
                if (side == 2 and x == 0) or (side == 3 and x == w - 1):
                    continue
                kind = box[beside]
                on_blob += kind == 1
                on_defects += kind == 2
                if kind == 0:
                    box[beside] = 3
                    queue[end] = beside
                    end += 1
        if closed and end - n <= max_size and on_blob >= 3 * on_defects:
            n = end
    return n


def _least_float32(level: float) -> np.float32:
    """Give the smallest float32 that is not below `level`.

    A float32 is at or above the one exactly where it is at or above the other.
    """
    with np.errstate(over="ignore"):
        nearest = np.float32(level)
    return nearest if float(nearest) >= level else np.nextafter(nearest, np.float32(np.inf))


class _Blobs(NamedTuple):
    """Runs of bright pixels in rows, blob by blob (8-connected).

    start, stop: first pixel and last + 1 of each run, flat. first: the place of each blob's first
    run, and the end. usable: whether the blob can have a hole (it has four pixels or more, is
    saturated somewhere, and is not mostly defects).
    """

    start: Indices
    stop: Indices
    first: npt.NDArray[np.intp]
    usable: Mask


def _blobs(data: Plane, bpm: Flags | None, listed: Indices, levels: tuple[float, float]) -> _Blobs:
    """Find the blobs of the listed pixels that are bright; there are none if nothing is saturated.

    levels: non-linear, saturated.
    """
    non_linear, saturation = (_least_float32(level) for level in levels)
    values = data.reshape(-1)[listed]
    finite = np.isfinite(values)
    flags = np.zeros(values.size, np.uint16) if bpm is None else bpm.reshape(-1)[listed]
    bad = ~finite | ((flags & _DEFECTS) != 0)
    saturated = ((values >= saturation) & finite) | ((flags & _SATURATED) != 0)
    bright = saturated | ((values >= non_linear) & finite) | ((flags & _BRIGHT) != 0)
    peaks = saturated & ~bad
    if not peaks.any():
        return _Blobs(listed[:0], listed[:0], np.zeros(1, np.intp), np.zeros(0, np.bool_))
    if not bright.all():
        listed, bad, peaks = listed[bright], bad[bright], peaks[bright]
    width = np.int32(data.shape[1])
    begins = listed % width == 0
    begins[0] = True
    begins[1:] |= listed[1:] - listed[:-1] != 1
    first = np.flatnonzero(begins)
    start, size = listed[first], np.diff(first, append=listed.size)
    stop = start + size.astype(np.int32)
    blob = np.arange(first.size, dtype=np.int32)
    _join_runs(start, stop, start // width, data.shape[1], blob)
    sizes, peaks_of, defects = (
        np.bincount(blob, weights=number)
        for number in (
            size,
            *(np.add.reduceat(mask, first, dtype=np.int64) for mask in (peaks, bad)),
        )
    )
    numbers, runs = np.unique(blob, return_counts=True)
    usable = (sizes >= 4) & (peaks_of > 0) & (2 * defects <= sizes)
    order = np.argsort(blob, kind="stable")
    places = np.concatenate([[0], np.cumsum(runs)])
    return _Blobs(start[order], stop[order], places, usable[numbers])


def _holes(
    data: Plane,
    bpm: Flags | None,
    listed: Indices,
    levels: tuple[float, float],
    max_size: int,
) -> Indices:
    """Sorted flat indices of the holes of saturated blobs of listed pixels.

    levels: non-linear, saturated.
    """
    blobs, width = _blobs(data, bpm, listed, levels), data.shape[1]
    found = [np.empty(0, np.int32)]
    for number in np.flatnonzero(blobs.usable):
        runs = slice(*blobs.first[number : number + 2])
        y, x = np.divmod(blobs.start[runs], np.int32(width))
        ends = x + blobs.stop[runs] - blobs.start[runs]
        top, left = y[0], x.min()
        h, w = y[-1] + 1 - top, ends.max() - left
        if min(h, w) < 3:
            continue
        box = np.s_[top : top + h, left : left + w]
        kinds = np.where(np.isfinite(data[box]), np.uint8(0), np.uint8(2))
        if bpm is not None:
            kinds[(bpm[box] & _DEFECTS) != 0] = 2
        row, queue = (y - top) * w - left, np.empty(kinds.size, np.int32)
        n = _flood_holes(kinds.reshape(-1), kinds.shape[1], row + x, row + ends, queue, max_size)
        pixels = (queue[:n] // w + top) * width + queue[:n] % w + left
        found.append(pixels[data.reshape(-1)[pixels] < np.float32(levels[0])])
    return _sorted_once(*found)


def _sorted_once(*lists: Indices) -> Indices:
    """Give the numbers of some lists, rising, each of them once."""
    together = np.sort(np.concatenate(lists))
    return together[np.concatenate([[True], together[1:] != together[:-1]])[: together.size]]


def saturated_pixels(
    data: npt.ArrayLike,
    bpm: Flags | None,
    non_linear: float,
    saturated: float,
    *,
    flag_non_linear: bool = True,
    max_size: int = _MAX_HOLE,
) -> tuple[Indices, Indices]:
    """List what is saturated on a raw plane (ny, nx), in one pass over it.

    Returns two lists of flat indices (y * nx + x; int32, rising) for `flag_pixels`:

    - the holes of saturated cores, which read low in Fowler sampling. With `flag_non_linear` False
      the saturation level stands for the non-linear one;
    - the pixels that may leave persistence in later frames: the non-linear and the saturated ones,
      and the holes that are found without the bad-pixel mask.

    A hole is a 4-connected region below the non-linear level, of at most `max_size` pixels,
    enclosed by an 8-connected blob of four or more bright (non-linear or saturated) pixels of which
    at least one is saturated and no defect. Bad pixels in its wall do not open it, but make at most
    a quarter of the wall. A region that touches the array's edge, or a blob that is mostly bad
    pixels, has no hole. So neither the sky nor what defects or the border cut off is listed.

    The levels, and the unit of `data`, are those of `flag_levels`; bright bits of `bpm` count as
    its levels do. Raises GdaskError where `bpm` has not the shape of `data`.
    """
    pixels = as_kernel_input(data, np.float32)
    static = None if bpm is None else as_kernel_input(bpm, np.uint16)
    if static is not None and static.shape != pixels.shape:
        raise GdaskError(
            f"a bad-pixel mask of shape {static.shape} for data of {pixels.shape}: "
            "cut it to the data"
        )
    from_level = _least_float32(min(non_linear, saturated))
    listed = _list_bright(pixels, static, from_level)
    lowest = non_linear if flag_non_linear else saturated
    holes = _holes(pixels, static, listed, (lowest, saturated), max_size)
    other_holes = (
        holes
        if static is None and flag_non_linear
        else _holes(pixels, None, listed, (non_linear, saturated), max_size)
    )
    values = pixels.reshape(-1)[listed]
    bright = listed[(values >= from_level) & np.isfinite(values)]
    return holes, _sorted_once(bright, other_holes) if other_holes.size else bright
