"""Find the saturated pixels of raw planes, the holes of saturated cores among them."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt
from numba import njit

from gdask.kernels.arrays import as_kernel_input
from gdask.kernels.detector.quality import Indices, flag_levels
from gdask.model import DQ, GdaskError
from gdask.types import Flags, Image, Mask

#: A raw plane (ny, nx).
Plane = npt.NDArray[np.float32]

_NON_LINEAR_BIT, _SATURATED_BIT, _NO_DATA_BIT = (
    int(DQ.NON_LINEAR),
    int(DQ.SATURATED),
    int(DQ.NO_DATA),
)
_BRIGHT_BITS = int(DQ.NON_LINEAR | DQ.SATURATED)
_DEFECT_BITS = int(DQ.BAD_PIXEL | DQ.NO_DATA | DQ.UNILLUMINATED)
#: Pixels that are looked at together for bright ones.
_PIECE = 1024
#: Largest hole of a saturated core, in pixels.
_MAX_HOLE = 10000


@njit(cache=True, nogil=True)
def _list_bright(data: Image, bpm: Flags, from_level: np.float32) -> Indices:
    """Flat indices of the pixels at or above a level, and of those that `bpm` says are bright.

    Pieces without one are passed over at the speed of a comparison.
    """
    has_bpm = bpm.size > 0
    wanted = np.uint16(_BRIGHT_BITS)
    none = np.uint16(0)
    found = np.empty(4096, np.int32)
    n = 0
    for first in range(0, data.size, _PIECE):
        last = min(first + _PIECE, data.size)
        piece = data[first:last]
        flags = bpm[first:last] if has_bpm else bpm
        number = np.uint32(0)
        bits = none
        for k in range(piece.size):
            number += np.uint32(piece[k] >= from_level)
        for k in range(flags.size):
            bits |= flags[k]
        if number == 0 and (bits & wanted) == none:
            continue
        if n + _PIECE + 1 > found.size:
            longer = np.empty(2 * found.size, np.int32)
            for k in range(n):
                longer[k] = found[k]
            found = longer
        for k in range(piece.size):
            # Every pixel is written, and stays only where the next place is taken.
            found[n] = np.int32(first + k)
            bright = piece[k] >= from_level
            if has_bpm:
                bright |= (flags[k] & wanted) != none
            n += int(bright)
    return found[:n]


@njit(cache=True, nogil=True)
def _label_blobs(
    data: Image,
    bpm: Flags,
    listed: Indices,
    width: int,
    non_linear: np.float32,
    saturated: np.float32,
) -> npt.NDArray[np.int32]:
    """Rows of listed bright pixels, and which belong together: (runs, 7) int32.

    Columns: first pixel of the run, last + 1 (flat), first run of the blob (8-connected), and for
    a blob, in its first run: its pixels, those that are saturated and no defects, its defects, and
    its last row.
    """
    code = np.empty(listed.size, np.uint8)  # 0: not bright, 1: bright, 2: saturated, 3: a defect
    number = 0
    before = -2
    for k in range(listed.size):
        i = listed[k]
        flags = bpm[i] if bpm.size > 0 else np.uint16(0)
        value = data[i]
        if not np.isfinite(value):
            flags |= np.uint16(_NO_DATA_BIT)
        elif value >= saturated:
            flags |= np.uint16(_SATURATED_BIT)
        elif value >= non_linear:
            flags |= np.uint16(_NON_LINEAR_BIT)
        code[k] = 0
        if flags & np.uint16(_BRIGHT_BITS):
            is_saturated = (flags & np.uint16(_SATURATED_BIT)) != 0
            code[k] = 3 if flags & np.uint16(_DEFECT_BITS) else 2 if is_saturated else 1
            number += i != before + 1 or i % width == 0
            before = int(i)
    runs = np.zeros((number, 7), np.int32)
    r, before = -1, -2
    for k in range(listed.size):
        if code[k]:
            i = listed[k]
            if i != before + 1 or i % width == 0:
                r += 1
                runs[r, 0] = i
                runs[r, 2] = r
            before = int(i)
            runs[r, 1] = i + 1
            runs[r, 3] += 1
            runs[r, 4] += code[k] == 2
            runs[r, 5] += code[k] == 3
    return runs


@njit(cache=True, nogil=True)
def _join_runs(runs: npt.NDArray[np.int32], width: int) -> None:
    """Find what runs of neighbouring rows touch, and sum up each blob in its first run."""
    above = 0
    for r in range(len(runs)):
        while runs[above, 1] + width < runs[r, 0]:
            above += 1
        q = above
        while q < r and runs[q, 0] + width <= runs[r, 1]:
            if runs[q, 0] // width + 1 == runs[r, 0] // width:
                a, b = runs[q, 2], runs[r, 2]
                while runs[a, 2] != a:
                    a = runs[a, 2]
                while runs[b, 2] != b:
                    b = runs[b, 2]
                runs[max(a, b), 2] = min(a, b)
                runs[q, 2] = min(a, b)
            q += 1
    for r in range(len(runs)):
        root = runs[runs[r, 2], 2]
        runs[r, 2] = root
        if root != r:
            for column in range(3, 6):
                runs[root, column] += runs[r, column]
        runs[root, 6] = runs[r, 0] // width


@njit(cache=True, nogil=True)
def _list_holes(
    data: Image,
    bpm: Flags,
    runs: npt.NDArray[np.int32],
    width: int,
    low_below: np.float32,
    max_size: int,
) -> Indices:
    """Flat indices of the low pixels in the holes of blobs, one blob after another."""
    holes = np.empty(1024, np.int32)
    n = 0
    box = np.empty(4096, np.uint8)  # 0: open, 1: the blob, 2: a defect, 3: seen
    queue = np.empty(4096, np.int32)
    for root in range(len(runs)):
        if runs[root, 2] != root or runs[root, 3] < 4 or runs[root, 4] == 0:
            continue
        if 2 * runs[root, 5] > runs[root, 3]:
            continue
        top, bottom = runs[root, 0] // width, runs[root, 6]
        left, right, end = width, 0, root
        while end < len(runs) and runs[end, 0] < (bottom + 1) * width:
            if runs[end, 2] == root:
                left = min(left, runs[end, 0] % width)
                right = max(right, (runs[end, 1] - 1) % width)
            end += 1
        h, w = bottom - top + 1, right - left + 1
        if h < 3 or w < 3:
            continue
        if h * w > box.size:
            box = np.empty(h * w, np.uint8)
            queue = np.empty(h * w, np.int32)
        for y in range(h):
            for x in range(w):
                i = (top + y) * width + left + x
                bad = not np.isfinite(data[i])
                if bpm.size > 0:
                    bad |= (bpm[i] & np.uint16(_DEFECT_BITS)) != 0
                box[y * w + x] = 2 if bad else 0
        for r in range(root, end):
            if runs[r, 2] == root:
                shift = (runs[r, 0] // width - top) * w - runs[r, 0] // width * width - left
                for i in range(runs[r, 0], runs[r, 1]):
                    box[i + shift] = 1
        for start in range(w, (h - 1) * w):
            if box[start] != 0:
                continue
            size = _flood(box, queue, start, h, w)
            if size == 0 or size > max_size:
                continue
            if n + size > holes.size:
                longer = np.empty(2 * holes.size + size, np.int32)
                for k in range(n):
                    longer[k] = holes[k]
                holes = longer
            for k in range(size):
                i = (top + queue[k] // w) * width + left + queue[k] % w
                holes[n] = i
                n += data[i] < low_below
    return holes[:n]


@njit(cache=True, nogil=True)
def _flood(
    box: npt.NDArray[np.uint8], queue: npt.NDArray[np.int32], start: int, h: int, w: int
) -> int:
    """List an open region of a box in `queue`, mark it as seen, and give its size.

    The size is 0 where the region is no hole: it touches the box's edge, or defects make more than
    a quarter of its wall.
    """
    queue[0] = start
    box[start] = 3
    taken, size = 0, 1
    closed, on_blob, on_defects = True, 0, 0
    while taken < size:
        place = queue[taken]
        taken += 1
        y, x = place // w, place % w
        closed &= 0 < y < h - 1 and 0 < x < w - 1
        for side in range(4):
            if (
                (side == 0 and y == 0)
                or (side == 1 and y == h - 1)
                or (side == 2 and x == 0)
                or (side == 3 and x == w - 1)
            ):
                continue
            beside = place + (-w if side == 0 else w if side == 1 else -1 if side == 2 else 1)
            kind = box[beside]
            on_blob += kind == 1
            on_defects += kind == 2
            if kind == 0:
                box[beside] = 3
                queue[size] = beside
                size += 1
    return size if closed and on_blob >= 3 * on_defects else 0


def _least_float32(level: float) -> np.float32:
    """Give the smallest float32 that is not below `level`.

    A float32 is at or above the one exactly where it is at or above the other.
    """
    with np.errstate(over="ignore"):
        nearest = np.float32(level)
    return nearest if nearest >= level else np.nextafter(nearest, np.float32(np.inf))


def _holes(
    data: Plane,
    bpm: Flags,
    listed: Indices,
    non_linear: float,
    saturated: float,
    low_below: float,
    max_size: int,
) -> Indices:
    """Sorted flat indices of the holes of saturated blobs of listed pixels."""
    width = data.shape[1]
    values, defects = data.reshape(-1), bpm.reshape(-1)
    levels = _least_float32(non_linear), _least_float32(saturated)
    runs = _label_blobs(values, defects, listed, width, *levels)
    _join_runs(runs, width)
    return np.unique(_list_holes(values, defects, runs, width, np.float32(low_below), max_size))


def saturated_pixels(
    data: npt.ArrayLike,
    bpm: Flags | None,
    non_linear: float,
    saturated: float,
    *,
    flag_non_linear: bool = True,
) -> tuple[Indices, Indices]:
    """List what is saturated on a raw plane (ny, nx), in one pass over it.

    Returns two lists of flat indices (y * nx + x; int32, rising) for `flag_pixels`:

    - the holes of saturated cores, which read low, as `hidden_saturation` finds them on a plane
      with the DQ of `flag_levels`. With `flag_non_linear` False that DQ has no non-linear pixels;
    - the pixels that may leave persistence in later frames: the non-linear and the saturated ones,
      and the holes that are found without the bad-pixel mask.

    The levels, and the unit of `data`, are those of `flag_levels`. Raises GdaskError where `bpm`
    has not the shape of `data`.
    """
    pixels = as_kernel_input(data, np.float32)
    flags = as_kernel_input(np.empty((0, 0)) if bpm is None else bpm, np.uint16)
    if bpm is not None and flags.shape != pixels.shape:
        raise GdaskError(
            f"a bad-pixel mask of shape {flags.shape} for data of {pixels.shape}: "
            "cut it to the data"
        )
    from_level = _least_float32(min(non_linear, saturated))
    listed = _list_bright(pixels.reshape(-1), flags.reshape(-1), from_level)
    no_flags = as_kernel_input(np.empty((0, 0)), np.uint16)
    lowest = non_linear if flag_non_linear else saturated
    with_bpm = _holes(pixels, flags, listed, lowest, saturated, lowest, _MAX_HOLE)
    without = (
        with_bpm
        if bpm is None and flag_non_linear
        else _holes(pixels, no_flags, listed, non_linear, saturated, non_linear, _MAX_HOLE)
    )
    values = pixels.reshape(-1)[listed]
    bright = listed[(values >= from_level) & np.isfinite(values)]
    return with_bpm, np.union1d(bright, without) if without.size else bright


def hidden_saturation(
    data: npt.ArrayLike, dq: Flags, non_linear: float, max_size: int = _MAX_HOLE
) -> Flags:
    """Flag as saturated (4) the holes of saturated blobs; 0 elsewhere.

    The cores of grossly saturated stars read low in Fowler sampling. `dq` (ny, nx) holds the
    plane's level and bad-pixel flags, `non_linear` is the level that made its bit 2. A hole is a
    4-connected region below that level, of at most `max_size` pixels, enclosed by an 8-connected
    blob of bright (non-linear or saturated) pixels of which at least one is saturated. Bad pixels
    in its wall do not open it, but make at most a quarter of the wall. A region that touches the
    array's edge, or a blob that is mostly bad pixels, has no hole. So neither the sky nor what
    defects or the border cut off is flagged.
    """
    pixels, levels = as_kernel_input(data, np.float32), as_kernel_input(dq, np.uint16)
    listed = _list_bright(pixels.reshape(-1), levels.reshape(-1), np.float32(np.inf))
    flags = np.zeros(dq.shape, dtype=np.uint16)
    holes = _holes(pixels, levels, listed, np.inf, np.inf, non_linear, max_size)
    flags.reshape(-1)[holes] = np.uint16(DQ.SATURATED)
    return flags


def saturation_mask(
    data: npt.ArrayLike,
    bpm: Flags | None,
    non_linear: float,
    saturated: float,
    include_non_linear: bool = False,
) -> Mask:
    """Find the pixels of a raw plane (ny, nx) that may leave persistence in later frames.

    They are the saturated ones, hidden saturation included, and with `include_non_linear` the
    non-linear ones too. The levels are those of `flag_levels`. Bad pixels are left out: they are
    flagged in every frame anyway.
    """
    dq = flag_levels(data, bpm, non_linear, saturated)
    dq |= hidden_saturation(data, dq, non_linear)
    wanted = np.uint16(_BRIGHT_BITS if include_non_linear else _SATURATED_BIT)
    return ((dq & wanted) != 0) & ((dq & np.uint16(_DEFECT_BITS)) == 0)


def pack_mask(mask: Mask) -> npt.NDArray[np.uint8]:
    """Compress a mask to bits (zlib level 1).

    Returns 1-D uint8, a few kB for a sparse mask of 2048 x 2048.
    """
    return np.frombuffer(zlib.compress(np.packbits(mask).tobytes(), 1), dtype=np.uint8)


def unpack_mask(packed: npt.NDArray[np.uint8], shape: tuple[int, int]) -> Mask:
    """Restore the mask of `shape` (ny, nx) that `pack_mask` packed."""
    bits = np.frombuffer(zlib.decompress(packed.tobytes()), dtype=np.uint8)
    return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).astype(np.bool_)
