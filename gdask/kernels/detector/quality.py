"""Data-quality flags of raw planes: levels, hidden saturation, masks to carry to later frames, dilation."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy import ndimage

from gdask.kernels.arrays import plain, rows
from gdask.model import DQ, GdaskError
from gdask.types import Flags, Mask, Pixels

_BRIGHT = np.uint16(DQ.NON_LINEAR | DQ.SATURATED)
_SATURATED = np.uint16(DQ.SATURATED)
_DEFECTS = np.uint16(DQ.BAD_PIXEL | DQ.NO_DATA | DQ.UNILLUMINATED)
_NON_LINEAR_BIT, _SATURATED_BIT, _NO_DATA_BIT = (
    int(DQ.NON_LINEAR),
    int(DQ.SATURATED),
    int(DQ.NO_DATA),
)


@njit(cache=True, nogil=True)
def _flag_levels(
    data: npt.NDArray[np.float32], flags: Flags, non_linear: float, saturated: float
) -> None:
    for i in range(data.size):
        value = data[i]
        bit = 0
        if not np.isfinite(value):
            bit = _NO_DATA_BIT
        elif value >= saturated:
            bit = _SATURATED_BIT
        elif value >= non_linear:
            bit = _NON_LINEAR_BIT
        flags[i] |= np.uint16(bit)


def flag_levels(
    data: npt.ArrayLike, bpm: Flags | None, non_linear: float, saturated: float
) -> Flags:
    """DQ of a plane (any shape): the bits of `bpm`, with 4 at or above `saturated`, 2 from `non_linear` to below it.

    Both levels are in the units of `data` (inf: no such level). NaN and infinite pixels are no data (16).
    """
    flags = (
        np.zeros(np.shape(data), dtype=np.uint16)
        if bpm is None
        else np.array(bpm, dtype=np.uint16, order="C")
    )
    (values,) = rows(data)
    if flags.size != values.size:
        raise GdaskError(
            f"a bad-pixel mask of shape {np.shape(bpm)} for data of {np.shape(data)}: cut it to the data"
        )
    _flag_levels(values, flags.reshape(-1), float(non_linear), float(saturated))
    return flags


def hidden_saturation(
    data: npt.ArrayLike, dq: Flags, non_linear: float, max_size: int = 10000
) -> Flags:
    """4 in the holes of saturated blobs, 0 elsewhere: grossly saturated cores read low in Fowler sampling.

    `dq` (ny, nx) holds the plane's level and bad-pixel flags, `non_linear` is the level that made its bit 2. A hole is
    a 4-connected region below that level, of at most `max_size` pixels, enclosed by an 8-connected blob of bright
    pixels of which at least one is saturated. Bad pixels in its wall do not open it, but make at most a quarter of it;
    a region that touches the array's edge, or is mostly bad pixels itself, is no hole. So neither the sky nor what
    defects or the border cut off is flagged.
    """
    flags = np.zeros(dq.shape, dtype=np.uint16)
    bad = (dq & _DEFECTS) != 0
    saturated = ((dq & _SATURATED) != 0) & ~bad
    if not saturated.any():
        return flags
    blobs, _ = ndimage.label((dq & _BRIGHT) != 0, structure=np.ones((3, 3)))
    low = np.asarray(data) < non_linear
    boxes = ndimage.find_objects(blobs)
    for blob in _saturated_blobs(blobs, saturated, bad):
        box = boxes[blob - 1]
        holes = _holes(blobs[box] == blob, bad[box], max_size)
        flags[box][holes & low[box]] = _SATURATED
    return flags


def _saturated_blobs(
    blobs: npt.NDArray[np.int32], saturated: Mask, bad: Mask
) -> npt.NDArray[np.intp]:
    """Labels of the blobs that can have a hole: four pixels or more, saturated somewhere, not mostly defects."""
    bright = np.flatnonzero(blobs)
    label = blobs.reshape(-1)[bright]
    size = np.bincount(label)
    defects = np.bincount(label, weights=bad.reshape(-1)[bright])
    peaks = np.bincount(blobs[saturated], minlength=size.size)
    return np.flatnonzero((size >= 4) & (peaks > 0) & (2 * defects <= size))


def _holes(blob: Mask, bad: Mask, max_size: int) -> Mask:
    """Holes of one blob within its bounding box; `bad` counts as wall, but not for more than a quarter of the wall."""
    regions, number = ndimage.label(~(blob | bad))
    if number == 0:
        return regions > 0
    hole = np.bincount(regions.reshape(-1), minlength=number + 1) <= max_size
    hole[0] = False
    for edge in (regions[0], regions[-1], regions[:, 0], regions[:, -1]):
        hole[edge] = False
    hole &= _wall(regions, blob) >= 3 * _wall(regions, bad & ~blob)
    return hole[regions]


def _wall(regions: npt.NDArray[np.int32], wall: Mask) -> npt.NDArray[np.intp]:
    """For each region, the number of sides on which its pixels touch `wall`."""
    number = int(regions.max()) + 1
    inside = (slice(None, -1), slice(1, None))
    sides = np.zeros(number, dtype=np.intp)
    for here, there in (inside, inside[::-1]):
        sides += np.bincount(regions[here][wall[there]], minlength=number)
        sides += np.bincount(regions[:, here][wall[:, there]], minlength=number)
    return sides


def saturation_mask(
    data: npt.ArrayLike,
    bpm: Flags | None,
    non_linear: float,
    saturated: float,
    include_non_linear: bool = False,
) -> Mask:
    """Pixels of a raw plane (ny, nx) that may leave persistence in later frames: saturated, hidden saturation included.

    Levels as in `flag_levels`; with `include_non_linear` the non-linear pixels too. Bad pixels are left out: they are
    flagged in every frame anyway.
    """
    dq = flag_levels(data, bpm, non_linear, saturated)
    dq |= hidden_saturation(data, dq, non_linear)
    wanted = _BRIGHT if include_non_linear else _SATURATED
    return ((dq & wanted) != 0) & ((dq & _DEFECTS) == 0)


def pack_mask(mask: Mask) -> npt.NDArray[np.uint8]:
    """A mask as compressed bits (zlib level 1): 1-D uint8, a few kB for a sparse mask of 2048 x 2048."""
    return np.frombuffer(zlib.compress(np.packbits(mask).tobytes(), 1), dtype=np.uint8)


def unpack_mask(packed: npt.NDArray[np.uint8], shape: tuple[int, int]) -> Mask:
    """The mask of `shape` (ny, nx) that `pack_mask` packed."""
    ny, nx = shape
    return unpack_window(packed, shape, (0, nx, 0, ny))


def unpack_window(
    packed: npt.NDArray[np.uint8], shape: tuple[int, int], window: tuple[int, int, int, int]
) -> Mask:
    """A window of a packed mask of `shape` (ny, nx).

    `window` is (x1, x2, y1, y2), 0-based and half-open as sections are, in the packed mask's own pixels. It may reach
    beyond the mask: nothing is known there, so False.
    """
    ny, nx = shape
    x1, x2, y1, y2 = window
    out = np.zeros((y2 - y1, x2 - x1), dtype=np.bool_)
    left, right, bottom, top = max(x1, 0), min(x2, nx), max(y1, 0), min(y2, ny)
    if left >= right or bottom >= top:
        return out
    bits = np.frombuffer(zlib.decompress(packed.tobytes()), dtype=np.uint8)
    first = bottom * nx // 8
    skip = bottom * nx - 8 * first
    band = np.unpackbits(bits[first : -(-top * nx // 8)])[
        skip : skip + (top - bottom) * nx
    ].reshape(-1, nx)
    out[bottom - y1 : top - y1, left - x1 : right - x1] = band[:, left:right]
    return out


def border_mask(
    shape: tuple[int, int], x1: int, y1: int, full_shape: tuple[int, int], width: int
) -> Mask:
    """True within `width` pixels of the *full* array's edge, for a sub-array of `shape` (ny, nx).

    The sub-array's first pixel is at 0-based (x1, y1) of the full array of `full_shape` (ny, nx).
    """
    x = np.arange(x1, x1 + shape[1])
    y = np.arange(y1, y1 + shape[0])
    outer_x = (x < width) | (x >= full_shape[1] - width)
    outer_y = (y < width) | (y >= full_shape[0] - width)
    return outer_y[:, None] | outer_x[None, :]


def circle_mask(
    shape: tuple[int, int], x1: int, y1: int, centre: tuple[float, float], radius: float
) -> Mask:
    """True outside a circle of `centre` (x, y) and `radius` (0-based pixels of the full array), for a sub-array of `shape`.

    The sub-array's first pixel is at 0-based (x1, y1) of the full array.
    """
    dx = np.arange(x1, x1 + shape[1]) - centre[0]
    dy = np.arange(y1, y1 + shape[0]) - centre[1]
    return dy[:, None] ** 2 + dx[None, :] ** 2 > radius**2


@njit(cache=True, nogil=True)
def _runs(mask: Mask) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Runs of True: `first[y] : first[y + 1]` are those of row y in `ends`, whose rows are (start, last + 1)."""
    ny, nx = mask.shape
    first = np.zeros(ny + 1, np.int64)
    for y in range(ny):
        count = 0
        for x in range(nx):
            if mask[y, x] and (x == 0 or not mask[y, x - 1]):
                count += 1
        first[y + 1] = first[y] + count
    ends = np.empty((first[ny], 2), np.int32)
    for y in range(ny):
        run = first[y] - 1
        for x in range(nx if first[y + 1] > first[y] else 0):
            if mask[y, x]:
                if x == 0 or not mask[y, x - 1]:
                    run += 1
                    ends[run, 0] = x
                ends[run, 1] = x + 1
    return first, ends


@njit(cache=True, nogil=True)
def _grow(mask: Mask, half_widths: npt.NDArray[np.int64]) -> Mask:
    """Each run reaches row distance dy widened by half_widths[dy]; its ends are summed up along the row."""
    ny, nx = mask.shape
    first, ends = _runs(mask)
    out = np.zeros((ny, nx), np.bool_)
    edges = np.zeros(nx + 1, np.int32)
    reach = half_widths.size - 1
    for y in range(ny):
        lower, upper = max(0, y - reach), min(ny - 1, y + reach)
        if first[lower] == first[upper + 1]:
            continue
        edges[:] = 0
        for source in range(lower, upper + 1):
            width = half_widths[abs(source - y)]
            for run in range(first[source], first[source + 1]):
                edges[max(0, ends[run, 0] - width)] += 1
                edges[min(nx, ends[run, 1] + width)] -= 1
        depth = 0
        for x in range(nx):
            depth += edges[x]
            out[y, x] = depth > 0
    return out


def grow(mask: Mask, radius: Pixels) -> Mask:
    """The mask (ny, nx) dilated by a disk: True wherever a True pixel's centre is within `radius` pixels (exact)."""
    if not radius >= 0:
        raise GdaskError(f"a mask cannot grow by {radius} pixels: give a radius of 0 or more")
    distance = np.arange(int(radius) + 1)
    half_widths = np.floor(np.sqrt(radius**2 - distance**2) + 1e-9).astype(np.int64)
    return _grow(plain(mask, np.bool_), half_widths)
