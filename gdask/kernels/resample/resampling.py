"""Pixels of one array at the places that a pixel map gives: science, variance and DQ in one pass.

Kernels are local, so an output pixel needs a few input pixels only and has the same bits from any window that holds
them (a spline's prefilter needs all pixels). Bad pixels do not spread: isolated ones are mended from their neighbours
for the kernel's sake, others get no weight; both leave their flags.

Units. Flat-fielded pixels are surface brightness (the flat divides the pixel's area out too), so values are
interpolated as such; times `area_ratio` = area of an output pixel / area of the input pixel to which the flat is
normalised (the mean one), sums over the output are fluxes, wherever on the array.

Variance. Resampled noise is correlated between neighbours: one number per pixel cannot say both how a pixel and how a
sum of many scatters. VAR is the one that sums need: that of independent pixels with the same noise per area, which is
var * area_ratio^2 / (output area / input area) = var * area_ratio, a kernel-weighted mean. A single pixel scatters by
noise_correlation * sqrt(area_ratio) * sqrt(VAR).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from gdask.kernels.arrays import as_kernel_input
from gdask.kernels.geometry.projection import Floats
from gdask.kernels.resample.interpolation import PHASES, weights
from gdask.model import DQ, UNUSABLE, GdaskError
from gdask.types import Flags, Fraction, Image, Mask

#: Pixels that cannot be mended are left out while the others keep this share of the (signed) weight; otherwise the
#: values are used as they are, flagged.
LEAST_GOOD = 0.5
_BAD, _NO_DATA = int(UNUSABLE), int(DQ.NO_DATA)
#: Marks, beside the DQ bits, a neighbourhood with pixels that have no value (outside, or not mended).
_HOLE = 0x8000


def resample(
    data: Image,
    variance: Image,
    dq: Flags,
    ymap: Floats,
    xmap: Floats,
    *,
    interpolation: str = "quintic",
    threshold: Fraction = 0.05,
    area_ratio: float = 1.0,
    origin: tuple[int, int] = (0, 0),
) -> tuple[Image, Image, Flags]:
    """Resample a window of one array onto the pixels of `ymap`, `xmap` (see the module's text for units and variance).

    data, variance, dq: (ny, nx) window whose pixel (0, 0) is the array's 0-based (y, x) = `origin`; with a margin of
    interpolation.reach the result does not depend on the window. ymap, xmap: array coordinates of each output pixel
    (pixelmap.pixel_map), NaN for none. interpolation: a key of interpolation.TAPS. threshold: a DQ bit is set where
    input pixels that have it hold more than this share of the absolute weight. Outside the array: 0, 0, NO_DATA.
    Raises GdaskError where shapes differ.
    """
    table = weights(interpolation)
    data, variance, dq = planes(data, variance, dq, ymap, xmap)
    mended, mended_var = mend(data, variance, dq)
    near = _flags_near(dq, mended, table.shape[1])
    maps = as_kernel_input(ymap, np.float64), as_kernel_input(xmap, np.float64)
    scales = float(threshold), float(area_ratio), float(origin[0]), float(origin[1])
    return _resample(
        data, variance, dq, mended, mended_var, near, *maps, table, (0,) * table.shape[1], *scales
    )


def mend(data: Image, variance: Image, dq: Flags) -> tuple[Image, Image]:
    """Data and variance with each bad pixel estimated from good ones beside it, NaN where they are too few.

    Along row and column a cubic through the four nearest where all are good, else the mean of at least three of the
    eight around. A kernel's outer taps need no more; the pixel stays flagged. The inputs are not changed.
    """
    usable = (np.asarray(dq) & _BAD == 0) & np.isfinite(data) & np.isfinite(variance)
    if usable.all():
        return as_kernel_input(data, np.float32), as_kernel_input(variance, np.float32)
    mended = _mend(
        as_kernel_input(data, np.float32),
        as_kernel_input(variance, np.float32),
        as_kernel_input(usable, np.bool_),
    )
    return as_kernel_input(mended[0], np.float32), as_kernel_input(mended[1], np.float32)


def resample_mask(mask: Mask, ymap: Floats, xmap: Floats, origin: tuple[int, int] = (0, 0)) -> Mask:
    """The nearest pixel of a boolean mask whose pixel (0, 0) is the array's (y, x) = `origin`; False outside."""
    maps = as_kernel_input(ymap, np.float64), as_kernel_input(xmap, np.float64)
    return _nearest(as_kernel_input(mask, np.bool_), *maps, float(origin[0]), float(origin[1]))


def planes(
    data: Image, variance: Image, dq: Flags, ymap: Floats, xmap: Floats
) -> tuple[Image, Image, Flags]:
    """The planes in the memory layout of compiled code, pixels that are not finite flagged NO_DATA.

    Raises GdaskError where shapes differ (compiled code would read beyond the smaller one).
    """
    if not (data.shape == variance.shape == dq.shape and ymap.shape == xmap.shape):
        shapes = ", ".join(str(a.shape) for a in (data, variance, dq, ymap, xmap))
        raise GdaskError(
            f"data, variance, dq, ymap, xmap are {shapes}; expected one shape for planes, one for maps"
        )
    known = np.isfinite(data) & np.isfinite(variance)
    dq = dq if known.all() else np.where(known, dq, dq | np.uint16(_NO_DATA))
    return (
        as_kernel_input(data, np.float32),
        as_kernel_input(variance, np.float32),
        as_kernel_input(dq, np.uint16),
    )


@njit(cache=True, nogil=True)
def _mend(data: Image, variance: Image, usable: Mask) -> tuple[Image, Image]:
    """Copies with each unusable pixel replaced."""
    out, out_var = data.copy(), variance.copy()
    ny, nx = data.shape
    for y in range(ny):
        for x in range(nx):
            if not usable[y, x]:
                out[y, x], out_var[y, x] = _estimate(data, variance, usable, y, x)
    return out, out_var


@njit(cache=True, nogil=True)
def _estimate(data: Image, variance: Image, usable: Mask, y: int, x: int) -> tuple[float, float]:
    """A pixel's value from its neighbours, (-1, 4, 4, -1) / 6 being the cubic; the variance is the mean of theirs."""
    ny, nx = data.shape
    total = noise = value = 0.0
    good = count = 0
    for b in range(max(0, y - 1), min(ny, y + 2)):
        for a in range(max(0, x - 1), min(nx, x + 2)):
            if usable[b, a]:
                total += data[b, a]
                noise += variance[b, a]
                good += 1
    if (
        2 <= x < nx - 2
        and usable[y, x - 2]
        and usable[y, x - 1]
        and usable[y, x + 1]
        and usable[y, x + 2]
    ):
        value += (4.0 * (data[y, x - 1] + data[y, x + 1]) - data[y, x - 2] - data[y, x + 2]) / 6.0
        count += 1
    if (
        2 <= y < ny - 2
        and usable[y - 2, x]
        and usable[y - 1, x]
        and usable[y + 1, x]
        and usable[y + 2, x]
    ):
        value += (4.0 * (data[y - 1, x] + data[y + 1, x]) - data[y - 2, x] - data[y + 2, x]) / 6.0
        count += 1
    if count > 0:
        return value / count, noise / good
    if good >= 3:
        return total / good, noise / good
    return math.nan, math.nan


@njit(cache=True, nogil=True)
def _flags_near(dq: Flags, mended: Image, taps: int) -> Flags:
    """OR of the flags under a kernel whose left middle tap is pixel (y - 1, x - 1), shape (ny + 1, nx + 1).

    _HOLE is set where pixels under it are outside or have no value. Zero means that the short way will do.
    """
    ny, nx = dq.shape
    half = taps // 2
    rows = np.empty((ny, nx + 1), np.uint16)
    line = np.empty(nx, np.uint16)
    for y in range(ny):
        for x in range(nx):
            line[x] = dq[y, x] if math.isfinite(mended[y, x]) else dq[y, x] | _HOLE
        for x in range(nx + 1):
            flags = _HOLE if x < half or x + half > nx else 0
            for k in range(max(0, x - half), min(nx, x + half)):
                flags |= line[k]
            rows[y, x] = flags
    near = np.empty((ny + 1, nx + 1), np.uint16)
    for y in range(ny + 1):
        near[y] = _HOLE if y < half or y + half > ny else 0
        for k in range(max(0, y - half), min(ny, y + half)):
            for x in range(nx + 1):
                near[y, x] |= rows[k, x]
    return near


@njit(cache=True, nogil=True)
def _resample(
    data: Image,
    variance: Image,
    dq: Flags,
    mended: Image,
    mended_var: Image,
    near: Flags,
    ymap: Floats,
    xmap: Floats,
    table: Image,
    taps: tuple[int, ...],
    threshold: float,
    area_ratio: float,
    y0: float,
    x0: float,
) -> tuple[Image, Image, Flags]:
    """Loop over output pixels; most see good pixels only and take the short way.

    taps: a tuple for its length, which the compiler then knows: half the time. Sums are in float32 for the same reason.
    """
    ny, nx = data.shape
    out, out_var = np.zeros(ymap.shape, np.float32), np.zeros(ymap.shape, np.float32)
    out_dq = np.full(ymap.shape, _NO_DATA, np.uint16)
    half = len(taps) // 2
    wy, wx, share = np.empty(len(taps), np.float32), np.empty(len(taps), np.float32), np.empty(16)
    for j in range(ymap.shape[0]):
        for i in range(ymap.shape[1]):
            y = ymap[j, i] - y0
            x = xmap[j, i] - x0
            if not (y >= -0.5 and y < ny - 0.5 and x >= -0.5 and x < nx - 0.5):
                continue
            iy, ix = math.floor(y), math.floor(x)
            squares = _phase(table, taps, y - iy, wy) * _phase(table, taps, x - ix, wx)
            top, left = iy + 1 - half, ix + 1 - half
            around = near[iy + 1, ix + 1]
            out_dq[j, i] = _flags(dq, wy, wx, top, left, threshold, share) if around else 0
            if not around & _HOLE:
                value, noise = _sum(mended, mended_var, taps, wy, wx, top, left)
            else:
                good, value, noise = _sum_inside(mended, mended_var, wy, wx, top, left)
                if good < LEAST_GOOD:
                    good, value, noise = _sum_inside(data, variance, wy, wx, top, left)
                scale = 1.0 / good if good >= LEAST_GOOD else 0.0
                value, noise = value * scale, noise * scale * scale
            out[j, i] = value * area_ratio
            out_var[j, i] = noise / squares * area_ratio
    return out, out_var, out_dq


@njit(cache=True, nogil=True, inline="always")
def _phase(table: Image, taps: tuple[int, ...], phase: float, w: Image) -> float:
    """Fill w with the kernel at a phase in [0, 1); returns the sum of its squares."""
    position = phase * PHASES
    k = int(position)
    f = np.float32(position - k)
    squares = np.float32(0)
    for n in range(len(taps)):
        w[n] = table[k, n] + f * (table[k + 1, n] - table[k, n])
        squares += w[n] * w[n]
    return float(squares)


@njit(cache=True, nogil=True, inline="always")
def _sum(
    data: Image, variance: Image, taps: tuple[int, ...], wy: Image, wx: Image, top: int, left: int
) -> tuple[float, float]:
    """Sum of weight * data and of weight^2 * variance, all pixels inside and finite."""
    value, noise = np.float32(0), np.float32(0)
    for a in range(len(taps)):
        row, row_noise = np.float32(0), np.float32(0)
        for b in range(len(taps)):
            row += wx[b] * data[top + a, left + b]
            row_noise += wx[b] * wx[b] * variance[top + a, left + b]
        value += wy[a] * row
        noise += wy[a] * wy[a] * row_noise
    return float(value), float(noise)


@njit(cache=True, nogil=True)
def _sum_inside(
    data: Image, variance: Image, wy: Image, wx: Image, top: int, left: int
) -> tuple[float, float, float]:
    """Sum of weights, of weight * data and of weight^2 * variance over pixels that are inside and finite."""
    good = value = noise = 0.0
    for a in range(max(0, -top), min(wy.size, data.shape[0] - top)):
        for b in range(max(0, -left), min(wx.size, data.shape[1] - left)):
            v, n = data[top + a, left + b], variance[top + a, left + b]
            if math.isfinite(v) and math.isfinite(n):
                w = wy[a] * wx[b]
                good += w
                value += w * v
                noise += w * w * n
    return good, value, noise


@njit(cache=True, nogil=True)
def _flags(
    dq: Flags, wy: Image, wx: Image, top: int, left: int, threshold: float, share: Floats
) -> int:
    """DQ bits whose pixels hold more than `threshold` of the absolute weight. share: work space, one weight per bit."""
    share[:] = 0.0
    total = 0.0
    for a in range(wy.size):
        for b in range(wx.size):
            y, x = top + a, left + b
            flags = _NO_DATA
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


@njit(cache=True, nogil=True)
def _nearest(mask: Mask, ymap: Floats, xmap: Floats, y0: float, x0: float) -> Mask:
    out = np.zeros(ymap.shape, np.bool_)
    for j in range(ymap.shape[0]):
        for i in range(ymap.shape[1]):
            y = ymap[j, i] - y0 + 0.5
            x = xmap[j, i] - x0 + 0.5
            if y >= 0 and y < mask.shape[0] and x >= 0 and x < mask.shape[1]:
                out[j, i] = mask[int(y), int(x)]
    return out
