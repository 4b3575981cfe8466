"""Shapes and fluxes of segmented sources, as SExtractor defines them.

The definitions are those of Bertin & Arnouts (1996, A&AS 117, 393) and of SExtractor's manual.
"""

from __future__ import annotations

import numpy as np

from gdask.kernels.arithmetic import arctangents, logarithm, sine_cosine
from gdask.kernels.compiled import njit
from gdask.types import Flags, Image, Mask

#: The Kron aperture has KRON_FACTOR Kron radii, but not less than MIN_KRON_AXES semi-axes.
KRON_FACTOR, MIN_KRON_AXES = 2.5, 3.5
#: Kron radii are measured within this many semi-axes of the isophotal ellipse ...
MAX_KRON_AXES = 6.0
#: ... and never further than this.
MAX_KRON_PIXELS = 150.0
#: Elliptical apertures are sums of rings; this is the number of rings to each semi-axis.
RINGS = 20
#: Second moments (pixels^2) of a square pixel, the least that a shape may have, and of the 3x3
#: smoothing kernel, which is taken away from shapes.
PIXEL_MOMENT, SMOOTH_MOMENT = 1.0 / 12.0, 0.5
#: The width of a core is measured on pixels above this share of the peak: they follow a Gaussian
#: for AO and seeing cores alike.
CORE_PEAK_SHARE = 0.4

#: Columns of `moments`: pixels of the isophote, good ones among them, flux; position, second
#: moments and errors of the position; peak; DQ bits and number of flagged pixels; extent.
(AREA, GOOD, FLUX, XM, YM, XX, YY, XY, EXX, EYY, EXY) = range(11)
(PEAK, DQ_OR, DQ_COUNT, X0, X1, Y0, Y1) = range(11, 18)
#: Columns of `kron_apertures`.
(R_KRON, F_AUTO, V_AUTO, R_HALF, SUSPECT, CUT) = range(6)


@njit(cache=True, nogil=True, error_model="numpy")
def moments(
    labels: np.ndarray,
    peak: np.ndarray,
    smoothed: np.ndarray,
    data: np.ndarray,
    variance: np.ndarray,
    dq: np.ndarray,
    bad: np.ndarray,
) -> np.ndarray:
    """Isophotal sums of each source: a float64 table (n, 18) with the columns named above.

    labels: int32 (ny, nx). peak: flat index of each source's peak. smoothed: the plane whose values
    weigh positions and shapes (always positive above the threshold). data and variance give flux
    and errors, from good pixels only; dq is OR-ed and counted. Positions are 0-based pixels; the
    smoothing is taken away from the shapes.
    """
    n, nx = peak.size, labels.shape[1]
    table = np.zeros((n, 18))
    weight = np.zeros(n)
    table[:, PEAK] = -np.inf
    table[:, X0] = table[:, Y0] = 1e9
    table[:, X1] = table[:, Y1] = -1.0
    for y in range(labels.shape[0]):
        for x in range(nx):
            k = labels[y, x] - 1
            if k < 0:
                continue
            row = table[k]
            w = float(smoothed[y, x])
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
                row[PEAK] = max(row[PEAK], data[y, x])
    for k in range(n):
        row = table[k]
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
    return table


def ellipses(table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Semi-axes a, b and angle of the ellipses of a table of `moments`.

    The axes are in pixels, at least sqrt(1/12); the angle is in degrees from x towards y.
    """
    xx, yy = np.maximum(table[:, XX], PIXEL_MOMENT), np.maximum(table[:, YY], PIXEL_MOMENT)
    xy = table[:, XY]
    mean, half = (xx + yy) / 2, np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    a, b = np.sqrt(mean + half), np.sqrt(np.maximum(mean - half, PIXEL_MOMENT))
    return a, b, 0.5 * arctangents(2 * xy, xx - yy)


@njit(cache=True, nogil=True, error_model="numpy")
def core_fwhm(
    labels: np.ndarray, data: np.ndarray, bad: np.ndarray, table: np.ndarray
) -> np.ndarray:
    """FWHM in pixels of each source's core.

    It is that of a Gaussian, from ln(value) against r^2, weighted by value^2, for the good pixels
    of the source above 0.4 of its peak. NaN with fewer than 4 of them or where the light does not
    fall outwards.
    """
    out = np.full(table.shape[0], np.nan)
    for k in range(table.shape[0]):
        row = table[k]
        n, s0, s1, s2, z0, z1 = 0, 0.0, 0.0, 0.0, 0.0, 0.0
        for y in range(int(row[Y0]), int(row[Y1]) + 1):
            for x in range(int(row[X0]), int(row[X1]) + 1):
                value = float(data[y, x])
                if (
                    labels[y, x] != k + 1
                    or bad[y, x]
                    or value <= CORE_PEAK_SHARE * row[PEAK]
                    or value <= 0
                ):
                    continue
                q = (x - row[XM]) ** 2 + (y - row[YM]) ** 2
                w = value * value
                z = logarithm(value)
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


@njit(cache=True, nogil=True, error_model="numpy")
def _sum_rings(
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
    """Sum up source k in elliptical rings, RINGS to each semi-axis.

    The columns of `ring` are set to: value, variance, pixels in the array, replaced ones among
    them, all pixels. A bad pixel or one of a neighbour is replaced by the one opposite the source's
    centre, or by sky (0).
    """
    ny, nx = data.shape
    label, rings, outside = k + 1, ring.shape[0], (ring.shape[0] / RINGS) ** 2
    ring[:] = 0.0
    for y in range(int(yc) - half, int(yc) + half + 1):
        dy = y - yc
        root = np.sqrt(max((cxy * dy) ** 2 - 4.0 * cxx * (cyy * dy * dy - outside), 0.0))
        left, right = (-cxy * dy - root) / (2.0 * cxx) + xc, (-cxy * dy + root) / (2.0 * cxx) + xc
        first, last = max(int(left) - 2, int(xc) - half), min(int(right) + 2, int(xc) + half)
        for x in range(first, last + 1):
            dx = x - xc
            q = cxx * (dx * dx) + cyy * (dy * dy) + cxy * dx * dy
            if q >= outside:
                continue
            i = int(RINGS * np.sqrt(q))
            if i >= rings:
                continue
            ring[i, 4] += 1.0
            if y < 0 or x < 0 or y >= ny or x >= nx:
                continue
            ring[i, 2] += 1.0
            if not bad[y, x] and (labels[y, x] == 0 or labels[y, x] == label):
                ring[i, 0] += data[y, x]
                ring[i, 1] += variance[y, x]
                continue
            ring[i, 3] += 1.0
            x2, y2 = int(np.rint(2 * xc - x)), int(np.rint(2 * yc - y))
            if x2 < 0 or y2 < 0 or x2 >= nx or y2 >= ny or bad[y2, x2]:
                continue
            if labels[y2, x2] == 0 or labels[y2, x2] == label:
                ring[i, 0] += data[y2, x2]
                ring[i, 1] += variance[y2, x2]


@njit(cache=True, nogil=True, error_model="numpy")
def _measure_rings(ring: np.ndarray, out: np.ndarray) -> None:
    """Set the columns of `kron_apertures` from the rings of one source; radii in semi-axes."""
    rv, v = 0.0, 0.0
    for i in range(ring.shape[0]):
        rv += (i + 0.5) / RINGS * ring[i, 0]
        v += ring[i, 0]
    kron = KRON_FACTOR * rv / v if v > 0 and rv > 0 else 0.0
    n = int(RINGS * min(max(kron, MIN_KRON_AXES), MAX_KRON_AXES))
    flux, variance, inside, replaced, all_pixels = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(n):
        flux, variance = flux + ring[i, 0], variance + ring[i, 1]
        inside, replaced = inside + ring[i, 2], replaced + ring[i, 3]
        all_pixels += ring[i, 4]
    out[R_KRON], out[F_AUTO], out[V_AUTO] = n / RINGS, flux, variance
    out[SUSPECT] = 1.0 if replaced > 0.1 * inside else 0.0
    out[CUT] = 1.0 if inside < all_pixels else 0.0
    out[R_HALF] = np.nan
    inner = 0.0
    for i in range(n):
        if flux > 0 and inner + ring[i, 0] >= 0.5 * flux:
            out[R_HALF] = (i + (0.5 * flux - inner) / ring[i, 0]) / RINGS
            break
        inner += ring[i, 0]


@njit(cache=True, nogil=True, error_model="numpy")
def _kron_apertures(
    data: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    labels: np.ndarray,
    table: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    theta: np.ndarray,
) -> np.ndarray:
    """Compiled part of `kron_apertures`; theta in degrees."""
    out = np.zeros((table.shape[0], 6))
    ring = np.zeros((int(RINGS * MAX_KRON_AXES), 5))
    for k in range(table.shape[0]):
        s, c = sine_cosine(theta[k])
        ia, ib = 1.0 / a[k] ** 2, 1.0 / b[k] ** 2
        cxx, cyy, cxy = c * c * ia + s * s * ib, s * s * ia + c * c * ib, 2.0 * c * s * (ia - ib)
        half = int(min(MAX_KRON_AXES * a[k], MAX_KRON_PIXELS)) + 1
        _sum_rings(
            data, variance, bad, labels, k, table[k, XM], table[k, YM], cxx, cyy, cxy, half, ring
        )
        _measure_rings(ring, out[k])
        out[k, R_HALF] *= np.sqrt(a[k] * b[k])
    return out


def kron_apertures(
    data: Image, variance: Image, bad: Mask, labels: Flags, table: np.ndarray
) -> np.ndarray:
    """Kron photometry of each source: a float64 table (n, 6) with the columns named above.

    They are: Kron radius in units of a and b, flux and its variance in that ellipse, half-light
    radius (pixels), whether more than 10 % of the ellipse was replaced (neighbours, bad pixels),
    whether the array's edge cuts it. data must be free of sky; table is one of `moments`.
    """
    a, b, theta = ellipses(table)
    return _kron_apertures(data, variance, bad, labels, table, a, b, theta)
