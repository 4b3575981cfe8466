"""Shapes and fluxes of segmented sources, as SExtractor defines them (Bertin & Arnouts 1996 and its manual)."""

from __future__ import annotations

import numba
import numpy as np

from gdask.types import Flags, Image, Mask

KRON_FACTOR, KRON_MIN = 2.5, 3.5
#: Kron radii are measured within 6 times the isophotal ellipse, never further than this many pixels.
KRON_REACH, MAX_REACH = 6.0, 150.0
#: Elliptical apertures are sums of rings, so many of them to each semi-axis.
RINGS = 20
#: Second moments of a square pixel and of the 3x3 smoothing kernel, both taken away from or kept out of the shapes.
PIXEL_MOMENT, SMOOTH_MOMENT = 1.0 / 12.0, 0.5
#: Pixels above this share of the peak tell the width of a core: they follow a Gaussian for AO and seeing cores alike.
CORE = 0.4

(AREA, GOOD, FLUX, XM, YM, XX, YY, XY, EXX, EYY, EXY, TOP, DQ_OR, DQ_COUNT, X0, X1, Y0, Y1) = range(
    18
)
(R_KRON, F_AUTO, V_AUTO, R_HALF, SUSPECT, CUT) = range(6)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def moments(
    labels: np.ndarray,
    peak: np.ndarray,
    shape: np.ndarray,
    data: np.ndarray,
    variance: np.ndarray,
    dq: np.ndarray,
    bad: np.ndarray,
) -> np.ndarray:
    """Isophotal sums of each source: a float64 table (n, 18) with the columns named above.

    labels int32 (ny, nx), peak flat index of each source's peak; shape is the smoothed plane, whose values weigh
    positions and shapes (always positive above the threshold); data and variance give flux and errors, good pixels
    only; dq is OR-ed and counted. Positions are 0-based pixels, shapes are rid of the smoothing.
    """
    n, nx = peak.size, labels.shape[1]
    t = np.zeros((n, 18))
    weight = np.zeros(n)
    t[:, TOP] = -np.inf
    t[:, X0] = t[:, Y0] = 1e9
    t[:, X1] = t[:, Y1] = -1.0
    for y in range(labels.shape[0]):
        for x in range(nx):
            k = labels[y, x] - 1
            if k < 0:
                continue
            row = t[k]
            w = float(shape[y, x])
            dx, dy = x - float(peak[k] % nx), y - float(peak[k] // nx)
            weight[k] += w
            row[AREA] += 1.0
            row[XM] += w * dx
            row[YM] += w * dy
            row[XX] += w * dx * dx
            row[YY] += w * dy * dy
            row[XY] += w * dx * dy
            row[X0], row[X1] = min(row[X0], x), max(row[X1], x)
            row[Y0], row[Y1] = min(row[Y0], y), max(row[Y1], y)
            row[DQ_OR] = float(np.int64(row[DQ_OR]) | np.int64(dq[y, x]))
            row[DQ_COUNT] += dq[y, x] != 0
            if not bad[y, x]:
                v = float(variance[y, x])
                row[GOOD] += 1.0
                row[FLUX] += data[y, x]
                row[EXX] += v * dx * dx
                row[EYY] += v * dy * dy
                row[EXY] += v * dx * dy
                row[TOP] = max(row[TOP], data[y, x])
    for k in range(n):
        row = t[k]
        for c in (XM, YM, XX, YY, XY):
            row[c] /= weight[k]
        mx, my = row[XM], row[YM]
        row[XX] -= mx * mx + SMOOTH_MOMENT
        row[YY] -= my * my + SMOOTH_MOMENT
        row[XY] -= mx * my
        row[XM] += peak[k] % nx
        row[YM] += peak[k] // nx
        for c in (EXX, EYY, EXY):
            row[c] /= weight[k] * weight[k]
    return t


def ellipses(t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Semi-axes a, b (pixels, at least sqrt(1/12)) and angle (radians from x towards y) of a table of `moments`."""
    xx, yy, xy = np.maximum(t[:, XX], PIXEL_MOMENT), np.maximum(t[:, YY], PIXEL_MOMENT), t[:, XY]
    mean, half = (xx + yy) / 2, np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    a, b = np.sqrt(mean + half), np.sqrt(np.maximum(mean - half, PIXEL_MOMENT))
    return a, b, 0.5 * np.arctan2(2 * xy, xx - yy)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def core_fwhm(labels: np.ndarray, data: np.ndarray, bad: np.ndarray, t: np.ndarray) -> np.ndarray:
    """FWHM in pixels of each source's core: ln(value) against r^2, weighted by value^2, for the good pixels of the
    source above 0.4 of its peak; NaN with fewer than 4 of them or where light does not fall outwards."""
    out = np.full(t.shape[0], np.nan)
    for k in range(t.shape[0]):
        row = t[k]
        n, s0, s1, s2, z0, z1 = 0, 0.0, 0.0, 0.0, 0.0, 0.0
        for y in range(int(row[Y0]), int(row[Y1]) + 1):
            for x in range(int(row[X0]), int(row[X1]) + 1):
                value = float(data[y, x])
                if labels[y, x] != k + 1 or bad[y, x] or value <= CORE * row[TOP] or value <= 0:
                    continue
                q = (x - row[XM]) ** 2 + (y - row[YM]) ** 2
                w = value * value
                z = np.log(value)
                n += 1
                s0 += w
                s1 += w * q
                s2 += w * q * q
                z0 += w * z
                z1 += w * q * z
        slope = (s0 * z1 - s1 * z0) / (s0 * s2 - s1 * s1) if n >= 4 else np.nan
        if slope < 0:
            out[k] = 2.0 * np.sqrt(-np.log(2.0) / slope)
    return out


@numba.njit(cache=True, nogil=True)
def _pixel(
    data: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    labels: np.ndarray,
    k: int,
    x: int,
    y: int,
    xc: float,
    yc: float,
) -> tuple[float, float, int]:
    """Value and variance of a pixel for source k: a bad or a neighbour's pixel is replaced by the one opposite the
    source's centre, or by sky. Third: 0 as measured, 1 replaced."""
    if not bad[y, x] and (labels[y, x] == 0 or labels[y, x] == k + 1):
        return data[y, x], variance[y, x], 0
    x2, y2 = int(np.rint(2 * xc - x)), int(np.rint(2 * yc - y))
    if x2 < 0 or y2 < 0 or x2 >= data.shape[1] or y2 >= data.shape[0] or bad[y2, x2]:
        return 0.0, 0.0, 1
    if labels[y2, x2] != 0 and labels[y2, x2] != k + 1:
        return 0.0, 0.0, 1
    return data[y2, x2], variance[y2, x2], 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _rings(
    data: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    labels: np.ndarray,
    k: int,
    xc: float,
    yc: float,
    cxx: float,
    cyy: float,
    cxy: float,
    half: int,
    ring: np.ndarray,
) -> None:
    """Sums of source k in elliptical rings, RINGS to each semi-axis: value, variance, pixels in the array, those of
    them replaced, all pixels."""
    ny, nx = data.shape
    ring[:] = 0.0
    for y in range(int(yc) - half, int(yc) + half + 1):
        for x in range(int(xc) - half, int(xc) + half + 1):
            i = int(
                RINGS
                * np.sqrt(cxx * (x - xc) ** 2 + cyy * (y - yc) ** 2 + cxy * (x - xc) * (y - yc))
            )
            if i >= ring.shape[1]:
                continue
            ring[4, i] += 1.0
            if y < 0 or x < 0 or y >= ny or x >= nx:
                continue
            value, noise, swapped = _pixel(data, variance, bad, labels, k, x, y, xc, yc)
            ring[0, i] += value
            ring[1, i] += noise
            ring[2, i] += 1.0
            ring[3, i] += swapped


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _kron(ring: np.ndarray, out: np.ndarray) -> None:
    """Kron radius (in semi-axes), flux and variance within it, half-light radius (in semi-axes), two warnings."""
    rv, v = 0.0, 0.0
    for i in range(ring.shape[1]):
        rv += (i + 0.5) / RINGS * ring[0, i]
        v += ring[0, i]
    kron = KRON_FACTOR * rv / v if v > 0 and rv > 0 else 0.0
    n = int(RINGS * min(max(kron, KRON_MIN), KRON_REACH))
    total = np.zeros(5)
    for i in range(n):
        for c in range(5):
            total[c] += ring[c, i]
    out[R_KRON], out[F_AUTO], out[V_AUTO] = n / RINGS, total[0], total[1]
    out[SUSPECT] = total[3] > 0.1 * total[2]
    out[CUT] = total[2] < total[4]
    out[R_HALF] = np.nan
    inner = 0.0
    for i in range(n):
        if total[0] > 0 and inner + ring[0, i] >= 0.5 * total[0]:
            out[R_HALF] = (i + (0.5 * total[0] - inner) / ring[0, i]) / RINGS
            break
        inner += ring[0, i]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _apertures(
    data: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    labels: np.ndarray,
    t: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    theta: np.ndarray,
) -> np.ndarray:
    out = np.zeros((t.shape[0], 6))
    ring = np.zeros((5, int(RINGS * KRON_REACH)))
    for k in range(t.shape[0]):
        c, s = np.cos(theta[k]), np.sin(theta[k])
        ia, ib = 1.0 / a[k] ** 2, 1.0 / b[k] ** 2
        cxx, cyy, cxy = c * c * ia + s * s * ib, s * s * ia + c * c * ib, 2.0 * c * s * (ia - ib)
        half = int(min(KRON_REACH * a[k], MAX_REACH)) + 1
        _rings(data, variance, bad, labels, k, t[k, XM], t[k, YM], cxx, cyy, cxy, half, ring)
        _kron(ring, out[k])
        out[k, R_HALF] *= np.sqrt(a[k] * b[k])
    return out


def apertures(data: Image, variance: Image, bad: Mask, labels: Flags, t: np.ndarray) -> np.ndarray:
    """Kron photometry of each source: a float64 table (n, 6): Kron radius in units of a and b, flux and its variance
    in that ellipse, half-light radius (pixels), whether more than 10 % of the ellipse was replaced (neighbours, bad
    pixels), whether the array's edge cuts it. data must be sky-free; t is a table of `moments`."""
    a, b, theta = ellipses(t)
    return _apertures(data, variance, bad, labels, t, a, b, theta)
