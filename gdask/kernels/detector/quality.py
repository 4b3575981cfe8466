"""Data-quality flags of raw planes: levels, hidden saturation, and masks for later frames."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gdask.kernels.arrays import flatten_planes
from gdask.kernels.compiled import njit
from gdask.model import DQ, GdaskError, late
from gdask.types import Flags, Mask

if TYPE_CHECKING:
    from scipy import ndimage
else:
    ndimage = late("scipy.ndimage")

_NON_LINEAR_OR_SATURATED = np.uint16(DQ.NON_LINEAR | DQ.SATURATED)
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
    """Compiled part of `flag_levels`: add the bit of each pixel's level to `flags`."""
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
    """DQ of a plane (any shape): the bits of `bpm`, and those of the level of each pixel.

    A pixel is saturated (4) at or above `saturated`, non-linear (2) from `non_linear` to below
    that. Both levels are in the units of `data` (inf: no such level). NaN and infinite pixels are
    no data (16). Raises GdaskError where `bpm` has not the size of `data`.
    """
    flags = (
        np.zeros(np.shape(data), dtype=np.uint16)
        if bpm is None
        else np.array(bpm, dtype=np.uint16, order="C")
    )
    (values,) = flatten_planes(data)
    if flags.size != values.size:
        raise GdaskError(
            f"a bad-pixel mask of shape {flags.shape} for data of {np.shape(data)}: "
            "cut it to the data"
        )
    _flag_levels(values, flags.reshape(-1), float(non_linear), float(saturated))
    return flags


def hidden_saturation(
    data: npt.ArrayLike, dq: Flags, non_linear: float, max_size: int = 10000
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
    flags = np.zeros(dq.shape, dtype=np.uint16)
    bad = (dq & _DEFECTS) != 0
    saturated = ((dq & _SATURATED) != 0) & ~bad
    if not saturated.any():
        return flags
    blobs, _ = ndimage.label((dq & _NON_LINEAR_OR_SATURATED) != 0, structure=np.ones((3, 3)))
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
    """Labels of the blobs that can have a hole.

    They have four pixels or more, are saturated somewhere, and are not mostly defects.
    """
    bright = np.flatnonzero(blobs)
    label = blobs.reshape(-1)[bright]
    size = np.bincount(label)
    defects = np.bincount(label, weights=bad.reshape(-1)[bright])
    peaks = np.bincount(blobs[saturated], minlength=size.size)
    return np.flatnonzero((size >= 4) & (peaks > 0) & (2 * defects <= size))


def _holes(blob: Mask, bad: Mask, max_size: int) -> Mask:
    """Holes of one blob within its bounding box.

    `bad` counts as wall, but not for more than a quarter of the wall.
    """
    regions, number = ndimage.label(~(blob | bad))
    if number == 0:
        return regions > 0
    hole = np.bincount(regions.reshape(-1), minlength=number + 1) <= max_size
    hole[0] = False
    for edge in (regions[0], regions[-1], regions[:, 0], regions[:, -1]):
        hole[edge] = False
    hole &= _sides_on_wall(regions, blob) >= 3 * _sides_on_wall(regions, bad & ~blob)
    return hole[regions]


def _sides_on_wall(regions: npt.NDArray[np.int32], wall: Mask) -> npt.NDArray[np.intp]:
    """Count, for each region, the pixel sides on which it touches `wall`."""
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
    """Find the pixels of a raw plane (ny, nx) that may leave persistence in later frames.

    They are the saturated ones, hidden saturation included, and with `include_non_linear` the
    non-linear ones too. The levels are those of `flag_levels`. Bad pixels are left out: they are
    flagged in every frame anyway.
    """
    dq = flag_levels(data, bpm, non_linear, saturated)
    dq |= hidden_saturation(data, dq, non_linear)
    wanted = _NON_LINEAR_OR_SATURATED if include_non_linear else _SATURATED
    return ((dq & wanted) != 0) & ((dq & _DEFECTS) == 0)


def pack_mask(mask: Mask) -> npt.NDArray[np.uint8]:
    """Compress a mask to bits (zlib level 1).

    Returns 1-D uint8, a few kB for a sparse mask of 2048 x 2048.
    """
    return np.frombuffer(zlib.compress(np.packbits(mask).tobytes(), 1), dtype=np.uint8)


def unpack_mask(packed: npt.NDArray[np.uint8], shape: tuple[int, int]) -> Mask:
    """Restore the mask of `shape` (ny, nx) that `pack_mask` packed."""
    bits = np.frombuffer(zlib.decompress(packed.tobytes()), dtype=np.uint8)
    return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).astype(np.bool_)


def border_mask(
    shape: tuple[int, int], x1: int, y1: int, full_shape: tuple[int, int], width: int
) -> Mask:
    """Mask the border of a detector array: True within `width` pixels of the *full* array's edge.

    The mask is that of a sub-array of `shape` (ny, nx) whose first pixel is at 0-based (x1, y1) of
    the full array of `full_shape` (ny, nx).
    """
    x = np.arange(x1, x1 + shape[1])
    y = np.arange(y1, y1 + shape[0])
    outer_x = (x < width) | (x >= full_shape[1] - width)
    outer_y = (y < width) | (y >= full_shape[0] - width)
    return outer_y[:, None] | outer_x[None, :]


def outside_circle_mask(
    shape: tuple[int, int], x1: int, y1: int, centre: tuple[float, float], radius: float
) -> Mask:
    """Mask what is outside a circle: True at more than `radius` from `centre` (x, y).

    Both are in 0-based pixels of the full array. The mask is that of a sub-array of `shape`
    (ny, nx) whose first pixel is at 0-based (x1, y1) of the full array.
    """
    dx = np.arange(x1, x1 + shape[1]) - centre[0]
    dy = np.arange(y1, y1 + shape[0]) - centre[1]
    return dy[:, None] ** 2 + dx[None, :] ** 2 > radius**2
