"""Data-quality flags: levels of raw planes, listed pixels, borders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gdask.kernels.arithmetic import cosines, sines
from gdask.kernels.arrays import as_kernel_input, flatten_planes
from gdask.kernels.compiled import njit
from gdask.model import DQ, GdaskError
from gdask.types import Flags, Window

#: Flat indices of some pixels of a plane, rising.
Indices = npt.NDArray[np.int32]

_NON_LINEAR_BIT, _SATURATED_BIT, _NO_DATA_BIT = (
    int(DQ.NON_LINEAR),
    int(DQ.SATURATED),
    int(DQ.NO_DATA),
)
_UNILLUMINATED = np.uint16(DQ.UNILLUMINATED)


@njit(cache=True, nogil=True)
def flag_levels_row(
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
    flag_levels_row(values, flags.reshape(-1), float(non_linear), float(saturated))
    return flags


@njit(cache=True, nogil=True)
def flag_listed(
    flags: Flags, indices: Indices, bit: np.uint16, width: int, up: int, right: int
) -> None:
    """Compiled part of `flag_pixels`: (up, right) is the place of the flags' first pixel."""
    first, last = 0, indices.size
    while first < last:
        middle = (first + last) // 2
        if indices[middle] < up * width:
            first = middle + 1
        else:
            last = middle
    end = (up + flags.shape[0]) * width
    while first < indices.size and indices[first] < end:
        x = indices[first] % width - right
        if 0 <= x < flags.shape[1]:
            flags[indices[first] // width - up, x] |= bit
        first += 1


def flag_pixels(
    dq: Flags,
    listed: Sequence[Indices],
    bit: int,
    window: Window,
    widths: Sequence[int],
    offsets: Sequence[tuple[int, int]],
) -> Flags:
    """Give DQ with a bit set at listed pixels.

    dq: uint16, the window (y1, y2, x1, x2) of an array. listed: of each list, the flat indices
    y * width + x (int32, rising) of an array of its width, as from `saturated_pixels`. offsets:
    what to add to a pixel (x, y) of the window's array to get that of each list's array.
    """
    flags, bits = np.array(dq, dtype=np.uint16, order="C"), np.uint16(bit)
    for indices, width, (right, up) in zip(listed, widths, offsets, strict=True):
        rising = as_kernel_input(indices, np.int32)
        flag_listed(flags, rising, bits, width, window[0] + up, window[2] + right)
    return flags


def holes_of(listed: Indices) -> Indices:
    """Give the holes of saturated cores in a list of saturated pixels.

    The list has their number, then the holes, then the pixels that may leave latent images.
    """
    return listed[1 : 1 + listed[0]]


def bright_of(listed: Indices) -> Indices:
    """Give the pixels that may leave latent images in a list as `holes_of` takes it."""
    return listed[1 + listed[0] :]


def flag_holes(dq: Flags, listed: Indices, window: Window, width: int) -> Flags:
    """Give DQ that is saturated (4) in the holes of saturated cores.

    dq: the window (y1, y2, x1, x2) of an array of this width. listed: as `holes_of` takes it.
    """
    return flag_pixels(dq, [holes_of(listed)], DQ.SATURATED, window, [width], [(0, 0)])


def flag_latents(
    dq: Flags,
    *listed: Indices,
    offsets: Sequence[tuple[int, int]],
    widths: Sequence[int],
    window: Window,
) -> Flags:
    """Give DQ with a latent image (8) where earlier frames were bright.

    dq: the window (y1, y2, x1, x2) of an array. listed, widths, offsets: of each earlier frame its
    list as `holes_of` takes it, its width, and what to add to (x, y) of a pixel to get its own.
    """
    bright = [bright_of(pixels) for pixels in listed]
    return flag_pixels(dq, bright, DQ.COSMIC_RAY, window, widths, offsets)


def flag_border(
    dq: Flags, corner: tuple[int, int], window: Window, full: tuple[int, int], width: int
) -> Flags:
    """Give DQ that is unilluminated (64) within `width` pixels of the edge of the *full* array.

    dq: uint16, the window (y1, y2, x1, x2) of an array whose first pixel is at 0-based `corner`
    (x, y) of the full array of shape `full` (ny, nx).
    """
    flags = np.array(dq, dtype=np.uint16, order="C")
    sides = (window[0] + corner[1], window[2] + corner[0])
    for turned, first, size in zip((flags, flags.T), sides, full, strict=True):
        turned[: max(width - first, 0)] |= _UNILLUMINATED
        turned[max(size - width - first, 0) :] |= _UNILLUMINATED
    return flags


@njit(cache=True, nogil=True)
def _flag_far(
    flags: Flags, along: npt.NDArray[np.float64], across: npt.NDArray[np.float64], square: float
) -> None:
    """Compiled part of `flag_outside`; along, across: squared distances of rows and columns."""
    ny, nx = flags.shape
    for y in range(ny):
        for x in range(nx):
            flags[y, x] |= np.uint16(along[y] + across[x] > square) * _UNILLUMINATED


def flag_outside(
    dq: Flags,
    corner: tuple[int, int],
    window: Window,
    centre: tuple[float, float],
    radius: float,
) -> Flags:
    """Give DQ that is unilluminated (64) at more than `radius` from `centre` (x, y).

    Both are in 0-based pixels of the full array. dq, window, corner: as for `flag_border`.
    """
    flags = np.array(dq, dtype=np.uint16, order="C")
    y, x = window[0] + corner[1], window[2] + corner[0]
    along = (np.arange(y, y + dq.shape[0]) - float(centre[1])) ** 2
    across = (np.arange(x, x + dq.shape[1]) - float(centre[0])) ** 2
    _flag_far(flags, along, across, float(radius**2))
    return flags


def flag_strips(
    dq: Flags, *, strips: Sequence[tuple[float, ...]], flag: int, window: Window
) -> Flags:
    """Flag the pixels of straight strips, (x, y, angle, half width) each; gives a new array.

    x, y: a point of its middle line, from 0 on the array; angle: degrees from +x towards +y; half
    width: pixels. window: that of `dq` on its array.
    """
    (y1, y2, x1, x2), out = window, dq.copy()
    for x, y, angle, half_width in strips:
        (c,), (s,) = cosines([angle]), sines([angle])
        across = c * (np.arange(y1, y2) - y)[:, None] - s * (np.arange(x1, x2) - x)
        out[np.abs(across) <= half_width] |= np.uint16(flag)
    return out
