"""Mended pixels, and flags, of resampling by a method of reproject."""

from __future__ import annotations

import math

import numpy as np

from gdask.kernels.arrays import as_kernel_input
from gdask.kernels.compiled import njit
from gdask.kernels.geometry.projection import Floats
from gdask.kernels.resample.interpolation import PHASES
from gdask.kernels.resample.layout import BAD_BITS, HOLE, NO_DATA, estimate
from gdask.model import GdaskError
from gdask.types import Flags, Fraction, Image, Mask


def mend(data: Image, variance: Image, dq: Flags) -> tuple[Image, Image]:
    """Return data and variance with each bad pixel estimated from good ones beside it.

    See `layout.estimate`; the pixel stays flagged. The inputs are not changed.
    """
    usable = (np.asarray(dq) & BAD_BITS == 0) & np.isfinite(data) & np.isfinite(variance)
    if usable.all():
        return as_kernel_input(data, np.float32), as_kernel_input(variance, np.float32)
    mended = _mend(
        as_kernel_input(data, np.float32),
        as_kernel_input(variance, np.float32),
        as_kernel_input(usable, np.bool_),
    )
    return as_kernel_input(mended[0], np.float32), as_kernel_input(mended[1], np.float32)


def flags_on_map(
    dq: Flags, mended: Image, ymap: Floats, xmap: Floats, table: Image, threshold: Fraction
) -> Flags:
    """Return the DQ of a window on the pixels of a map, by the rule of `resample`; NO_DATA outside.

    mended: data of the window, not finite where no value is known. ymap, xmap: pixels of the
    window. table: weights as `interpolation.kernel_weights` gives them. threshold: share of the
    absolute weight above which a bit is set.
    """
    near = _flags_under_kernel(dq, mended, table.shape[1])
    maps = as_kernel_input(ymap, np.float64), as_kernel_input(xmap, np.float64)
    return _flags_on_map(
        as_kernel_input(dq, np.uint16), near, *maps, table, (0,) * table.shape[1], float(threshold)
    )


def checked_planes(
    data: Image, variance: Image, dq: Flags, ymap: Floats, xmap: Floats
) -> tuple[Image, Image, Flags]:
    """Return the planes in the memory layout of compiled code.

    Pixels that are not finite are flagged NO_DATA. Raises GdaskError where shapes differ: compiled
    code would read beyond the smaller one.
    """
    if not (data.shape == variance.shape == dq.shape and ymap.shape == xmap.shape):
        shapes = ", ".join(str(a.shape) for a in (data, variance, dq, ymap, xmap))
        raise GdaskError(
            f"data, variance, dq, ymap, xmap are {shapes};"
            " expected one shape for planes, one for maps"
        )
    finite = np.isfinite(data) & np.isfinite(variance)
    dq = dq if finite.all() else np.where(finite, dq, dq | np.uint16(NO_DATA))
    return (
        as_kernel_input(data, np.float32),
        as_kernel_input(variance, np.float32),
        as_kernel_input(dq, np.uint16),
    )


@njit(cache=True, nogil=True)
def _mend(data: Image, variance: Image, usable: Mask) -> tuple[Image, Image]:
    """Return copies of data and variance with each unusable pixel replaced by its estimate."""
    out, out_var = data.copy(), variance.copy()
    ny, nx = data.shape
    for y in range(ny):
        for x in range(nx):
            if not usable[y, x]:
                out[y, x], out_var[y, x] = estimate(data, variance, usable, y, x)
    return out, out_var


@njit(cache=True, nogil=True)
def _flags_under_kernel(dq: Flags, mended: Image, taps: int) -> Flags:
    """Return the OR of the flags under a kernel, for each place of the kernel.

    The result is (ny + 1, nx + 1); at (y, x) the kernel's left middle tap is pixel (y - 1, x - 1).
    HOLE is set where pixels under it are outside or have no value. Where the result is zero, all
    pixels are good.
    """
    ny, nx = dq.shape
    half = taps // 2
    rows = np.empty((ny, nx + 1), np.uint16)
    line = np.empty(nx, np.uint16)
    for y in range(ny):
        for x in range(nx):
            line[x] = dq[y, x] if math.isfinite(mended[y, x]) else dq[y, x] | HOLE
        for x in range(nx + 1):
            flags = HOLE if x < half or x + half > nx else 0
            for k in range(max(0, x - half), min(nx, x + half)):
                flags |= line[k]
            rows[y, x] = flags
    near = np.empty((ny + 1, nx + 1), np.uint16)
    for y in range(ny + 1):
        near[y] = HOLE if y < half or y + half > ny else 0
        for k in range(max(0, y - half), min(ny, y + half)):
            for x in range(nx + 1):
                near[y, x] |= rows[k, x]
    return near


@njit(cache=True, nogil=True)
def _flags_on_map(
    dq: Flags,
    near: Flags,
    ymap: Floats,
    xmap: Floats,
    table: Image,
    taps: tuple[int, ...],
    threshold: float,
) -> Flags:
    """Return the DQ that `_resample` gives, without resampling data."""
    out = np.full(ymap.shape, NO_DATA, np.uint16)
    half = len(taps) // 2
    wy, wx, share = np.empty(len(taps), np.float32), np.empty(len(taps), np.float32), np.empty(16)
    for j in range(ymap.shape[0]):
        for i in range(ymap.shape[1]):
            y, x = ymap[j, i], xmap[j, i]
            if not (y >= -0.5 and y < dq.shape[0] - 0.5 and x >= -0.5 and x < dq.shape[1] - 0.5):
                continue
            iy, ix = math.floor(y), math.floor(x)
            out[j, i] = 0
            if near[iy + 1, ix + 1]:
                _weights_at_phase(table, taps, y - iy, wy)
                _weights_at_phase(table, taps, x - ix, wx)
                out[j, i] = _flags_by_weight(
                    dq, wy, wx, iy + 1 - half, ix + 1 - half, threshold, share
                )
    return out


@njit(cache=True, nogil=True, inline="always")
def _weights_at_phase(table: Image, taps: tuple[int, ...], phase: float, w: Image) -> float:
    """Fill `w` with the weights at a phase in [0, 1), and return the sum of their squares."""
    position = phase * PHASES
    k = int(position)
    f = np.float32(position - k)
    squares = np.float32(0)
    for n in range(len(taps)):
        w[n] = table[k, n] + f * (table[k + 1, n] - table[k, n])
        squares += w[n] * w[n]
    return float(squares)


@njit(cache=True, nogil=True)
def _flags_by_weight(
    dq: Flags, wy: Image, wx: Image, top: int, left: int, threshold: float, share: Floats
) -> int:
    """Return the DQ bits whose pixels hold more than `threshold` of the absolute weight.

    share: work space, the weight of each bit.
    """
    share[:] = 0.0
    total = 0.0
    for a in range(wy.size):
        for b in range(wx.size):
            y, x = top + a, left + b
            flags = NO_DATA
            if 0 <= y < dq.shape[0] and 0 <= x < dq.shape[1]:
                flags = int(dq[y, x])
            w = abs(wy[a] * wx[b])
            total += w
            bit = 0
            while flags:
                if flags & 1:
                    share[bit] += w
                flags >>= 1
                bit += 1
    out = 0
    for bit in range(16):
        if share[bit] > threshold * total:
            out |= 1 << bit
    return out
