"""Resampling of one array to the places of a pixel map: science, variance and DQ at once.

Kernels are local: an output pixel needs a few input pixels only, and has the same bits from any
window that holds them (a spline's prefilter needs all pixels). Bad pixels do not spread: isolated
ones are mended from their neighbours for the kernel's sake, others get no weight. Both leave their
flags.

Units. Flat-fielded pixels are surface brightness (the flat divides the pixel's area out, too), and
values are interpolated as such. They are multiplied by `area_ratio`, the area of an output pixel
over that of the input pixel to which the flat is normalised (the mean one), so that sums over the
output are fluxes, wherever on the array.

Variance. Resampled noise is correlated between neighbours: one number per pixel cannot say both how
a pixel and how a sum of many scatters. VAR is the one that sums need: that of independent pixels
with the same noise per area, which is var * area_ratio^2 / (output area / input area) = var *
area_ratio, where var is a kernel-weighted mean. A single pixel scatters by noise_correlation *
sqrt(area_ratio) * sqrt(VAR).
"""

from __future__ import annotations

import math

import numpy as np

from gdask.kernels.arrays import as_kernel_input
from gdask.kernels.compiled import njit
from gdask.kernels.geometry.projection import Floats
from gdask.kernels.resample.interpolation import PHASES, kernel_weights
from gdask.model import DQ, UNUSABLE, GdaskError
from gdask.types import Flags, Fraction, Image, Mask

#: Share of the (signed) weight that known pixels must keep for unknown ones (outside, or not
#: mended) to be left out. With less, all values are used as they are, flagged.
MIN_GOOD_WEIGHT = 0.5
_BAD, _NO_DATA = int(UNUSABLE), int(DQ.NO_DATA)
#: Bit that marks, beside the DQ bits, a neighbourhood with pixels that have no value (outside, or
#: not mended).
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
    """Resample a window of one array onto the pixels of a map.

    data, variance, dq: (ny, nx) window whose pixel (0, 0) is the array's 0-based (y, x) = `origin`.
        With a margin of interpolation.kernel_margin the result does not depend on the window.
    ymap, xmap: array coordinates of each output pixel (pixel_map.pixel_map), NaN for none.
    interpolation: a key of interpolation.TAPS.
    threshold: a DQ bit is set where input pixels that have it hold more than this share of the
        absolute weight.
    area_ratio: area of an output pixel over that of the input pixel for which the flat is 1.

    Units and variance are those of the module's text. Outside the array: 0, 0, NO_DATA. Raises
    GdaskError where shapes differ.
    """
    table = kernel_weights(interpolation)
    data, variance, dq = checked_planes(data, variance, dq, ymap, xmap)
    mended, mended_var = mend(data, variance, dq)
    near = _flags_under_kernel(dq, mended, table.shape[1])
    maps = as_kernel_input(ymap, np.float64), as_kernel_input(xmap, np.float64)
    scales = float(threshold), float(area_ratio), float(origin[0]), float(origin[1])
    return _resample(
        data, variance, dq, mended, mended_var, near, *maps, table, (0,) * table.shape[1], *scales
    )


def mend(data: Image, variance: Image, dq: Flags) -> tuple[Image, Image]:
    """Return data and variance with each bad pixel estimated from good ones beside it.

    Where these are too few, the estimate is NaN. The estimate is a cubic through the four nearest
    pixels along the row and the column where these are all good, else the mean of at least three
    good ones of the eight around. That is enough for a kernel's outer taps; the pixel stays
    flagged. The inputs are not changed.
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
    dq = dq if finite.all() else np.where(finite, dq, dq | np.uint16(_NO_DATA))
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
                out[y, x], out_var[y, x] = _estimate(data, variance, usable, y, x)
    return out, out_var


@njit(cache=True, nogil=True)
def _estimate(data: Image, variance: Image, usable: Mask, y: int, x: int) -> tuple[float, float]:
    """Estimate a pixel from its neighbours as `mend` says.

    The cubic's weights are (-1, 4, 4, -1) / 6. The variance is the mean of the neighbours'.
    """
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
def _flags_under_kernel(dq: Flags, mended: Image, taps: int) -> Flags:
    """Return the OR of the flags under a kernel, for each place of the kernel.

    The result is (ny + 1, nx + 1); at (y, x) the kernel's left middle tap is pixel (y - 1, x - 1).
    _HOLE is set where pixels under it are outside or have no value. Where the result is zero, all
    pixels are good.
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
    """Resample all output pixels; most see good pixels only and take the short way.

    taps: a tuple for its length only, which the compiler then knows. That halves the time, and so
    do float32 sums.
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
            squares = _weights_at_phase(table, taps, y - iy, wy) * _weights_at_phase(
                table, taps, x - ix, wx
            )
            top, left = iy + 1 - half, ix + 1 - half
            around = near[iy + 1, ix + 1]
            out_dq[j, i] = (
                _flags_by_weight(dq, wy, wx, top, left, threshold, share) if around else 0
            )
            if not around & _HOLE:
                value, noise = _sums(mended, mended_var, taps, wy, wx, top, left)
            else:
                good, value, noise = _sums_of_known(mended, mended_var, wy, wx, top, left)
                if good < MIN_GOOD_WEIGHT:
                    good, value, noise = _sums_of_known(data, variance, wy, wx, top, left)
                scale = 1.0 / good if good >= MIN_GOOD_WEIGHT else 0.0
                value, noise = value * scale, noise * scale * scale
            out[j, i] = value * area_ratio
            out_var[j, i] = noise / squares * area_ratio
    return out, out_var, out_dq


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
    out = np.full(ymap.shape, _NO_DATA, np.uint16)
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


@njit(cache=True, nogil=True, inline="always")
def _sums(
    data: Image, variance: Image, taps: tuple[int, ...], wy: Image, wx: Image, top: int, left: int
) -> tuple[float, float]:
    """Return the sums of weight * data and of weight^2 * variance.

    All pixels are inside and finite.
    """
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
def _sums_of_known(
    data: Image, variance: Image, wy: Image, wx: Image, top: int, left: int
) -> tuple[float, float, float]:
    """Return the sums of weight, weight * data and weight^2 * variance over known pixels.

    These are inside and finite.
    """
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
