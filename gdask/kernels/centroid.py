"""Precise positions for astrometry: a fit of the array's own mean star image to each detected star.

The image of a star is taken as round and as a sum of Gaussians whose weights come from the array's bright stars, so
that an AO core with its halo and a seeing disc are both described. Whatever the true shape, a point-symmetric image
is centred without bias; the shape only decides how near the error comes to the Cramer-Rao bound.
"""

from __future__ import annotations

import numba
import numpy as np

from gdask.kernels.arrays import plain
from gdask.kernels.psf import REACH, half_maximum, isolated_stars, star_image, tabulate
from gdask.model import DQ, UNUSABLE
from gdask.types import Flags, Image, Pixels

#: Flags of a position.
NEIGHBOUR, SATURATED, EDGE, BAD_NEAR, FAILED = 1, 2, 4, 8, 16

POSITIONS = np.dtype([(n, "f8") for n in ("x", "y", "ex", "ey", "flux", "eflux", "fwhm")] + [("flags", "i2")])

#: In units of the FWHM: radius of the fit, and the annulus of the first local background.
FIT, INNER, OUTER = 2.5, 3.0, 4.5
#: Most sweeps over the stars, and the move (pixels) below which a star is left alone after the second.
SWEEPS, SETTLED = 15, 0.003
#: A star is flagged NEIGHBOUR where its neighbours' light exceeds this share of its own peak.
CONTAMINATION = 0.02


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _first(
    data: np.ndarray, bad: np.ndarray, x: np.ndarray, y: np.ndarray, fwhm: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Positions by a Gaussian window as wide as the star; flux within one FWHM; clipped mean of an annulus."""
    ny, nx = data.shape
    xo, yo, flux, sky = x.copy(), y.copy(), np.zeros(x.size), np.zeros(x.size)
    q = 1.0 / (2.0 * (fwhm / 2.3548) ** 2)
    half = int(OUTER * fwhm) + 1
    for k in range(x.size):
        y0, y1 = max(int(y[k]) - half, 0), min(int(y[k]) + half + 1, ny)
        x0, x1 = max(int(x[k]) - half, 0), min(int(x[k]) + half + 1, nx)
        low, high = -np.inf, np.inf
        for _ in range(4):
            n, s1, s2 = 0, 0.0, 0.0
            for j in range(y0, y1):
                for i in range(x0, x1):
                    r2 = (i - x[k]) ** 2 + (j - y[k]) ** 2
                    if bad[j, i] or r2 < (INNER * fwhm) ** 2 or r2 > (OUTER * fwhm) ** 2:
                        continue
                    v = data[j, i]
                    if low <= v <= high:
                        n += 1
                        s1 += v
                        s2 += v * v
            if n < 4:
                break
            sky[k] = s1 / n
            sigma = np.sqrt(max(s2 / n - sky[k] ** 2, 0.0))
            low, high = sky[k] - 2.0 * sigma, sky[k] + 2.0 * sigma
        for _ in range(12):
            s0, sx, sy, f = 0.0, 0.0, 0.0, 0.0
            for j in range(max(int(yo[k] - 2 * fwhm), 0), min(int(yo[k] + 2 * fwhm) + 2, ny)):
                for i in range(max(int(xo[k] - 2 * fwhm), 0), min(int(xo[k] + 2 * fwhm) + 2, nx)):
                    r2 = (i - xo[k]) ** 2 + (j - yo[k]) ** 2
                    if bad[j, i] or r2 > 4.0 * fwhm * fwhm:
                        continue
                    v = data[j, i] - sky[k]
                    w = np.exp(-q * r2) * v
                    s0 += w
                    sx += w * (i - xo[k])
                    sy += w * (j - yo[k])
                    if r2 < fwhm * fwhm:
                        f += v
            flux[k] = f
            if not s0 > 0:
                break
            dx, dy = 2.0 * sx / s0, 2.0 * sy / s0
            if (xo[k] + dx - x[k]) ** 2 + (yo[k] + dy - y[k]) ** 2 > fwhm * fwhm:
                xo[k], yo[k] = x[k], y[k]
                break
            xo[k] += dx
            yo[k] += dy
            if dx * dx + dy * dy < 1e-6:
                break
    return xo, yo, flux, sky


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _subtract(
    left: np.ndarray, x: float, y: float, flux: float, table: np.ndarray, step: float, reach: float
) -> None:
    ny, nx = left.shape
    for j in range(max(int(y - reach), 0), min(int(y + reach) + 2, ny)):
        for i in range(max(int(x - reach), 0), min(int(x + reach) + 2, nx)):
            u = ((i - x) ** 2 + (j - y) ** 2) / step
            n = int(u)
            if n + 1 < table.shape[1]:
                left[j, i] -= flux * (table[0, n] + (u - n) * (table[0, n + 1] - table[0, n]))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _solve(a: np.ndarray, b: np.ndarray) -> tuple[bool, np.ndarray]:
    """Cholesky in place of a symmetric positive matrix; returns the solution and leaves the inverse's diagonal in b."""
    n = b.size
    for i in range(n):
        for j in range(i + 1):
            s = a[i, j]
            for k in range(j):
                s -= a[i, k] * a[j, k]
            if i == j:
                if not s > 1e-12 * abs(a[i, i]):
                    return False, b
                a[i, i] = np.sqrt(s)
            else:
                a[i, j] = s / a[j, j]
    inverse = np.zeros((n, n))
    for c in range(n):
        for i in range(c, n):
            s = 1.0 if i == c else 0.0
            for k in range(c, i):
                s -= a[i, k] * inverse[k, c]
            inverse[i, c] = s / a[i, i]
    half, out = np.zeros(n), np.zeros(n)
    for i in range(n):
        for k in range(i + 1):
            half[i] += inverse[i, k] * b[k]
    for i in range(n):
        b[i] = 0.0
        for k in range(i, n):
            out[i] += inverse[k, i] * half[k]
            b[i] += inverse[k, i] ** 2
    return True, out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _fit_one(
    left: np.ndarray, variance: np.ndarray, bad: np.ndarray, p: np.ndarray, e: np.ndarray, table: np.ndarray,
    step: float, radius: float,
) -> bool:
    """Gauss-Newton for (x, y, flux, sky, slope in x, slope in y) in p, errors to e. The slopes take up a halo."""
    ny, nx = left.shape
    normal, right, g = np.zeros((6, 6)), np.zeros(6), np.zeros(6)
    ok = False
    for _ in range(8):
        for a in range(6):
            right[a] = 0.0
            for b in range(6):
                normal[a, b] = 0.0
        for j in range(max(int(p[1] - radius), 0), min(int(p[1] + radius) + 2, ny)):
            for i in range(max(int(p[0] - radius), 0), min(int(p[0] + radius) + 2, nx)):
                dx, dy = i - p[0], j - p[1]
                u = (dx * dx + dy * dy) / step
                if bad[j, i] or not variance[j, i] > 0 or dx * dx + dy * dy > radius * radius:
                    continue
                n = int(u)
                light = table[0, n] + (u - n) * (table[0, n + 1] - table[0, n])
                slope = p[2] * (table[1, n] + (u - n) * (table[1, n + 1] - table[1, n]))
                g[0], g[1], g[2] = slope * dx, slope * dy, light
                g[3], g[4], g[5] = 1.0, dx / radius, dy / radius
                w = 1.0 / variance[j, i]
                r = left[j, i] - p[2] * light - p[3] - p[4] * g[4] - p[5] * g[5]
                for a in range(6):
                    right[a] += w * g[a] * r
                    for b in range(a + 1):
                        normal[a, b] += w * g[a] * g[b]
        ok, change = _solve(normal, right)
        if not ok:
            return False
        longest = max(abs(change[0]), abs(change[1]))
        scale = min(1.0, 0.25 * radius / FIT / longest) if longest > 0 else 1.0
        for a in range(6):
            p[a] += scale * change[a] if a < 2 else change[a]
            e[a] = np.sqrt(right[a])
        if longest < 1e-4:
            break
    return ok


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _fit_all(
    data: np.ndarray, variance: np.ndarray, bad: np.ndarray, order: np.ndarray, p: np.ndarray, e: np.ndarray,
    table: np.ndarray, step: float, fwhm: float, reach: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """From bright to faint, fit each star on what is left when all others are subtracted; again for all,
    then for those that still move (close pairs, which take turns to converge).
    Returns the light of the others at each star's centre over its own peak, and which fits failed."""
    left = data.copy()
    others, failed = np.zeros(order.size), np.zeros(order.size, np.bool_)
    x, y, one, error = p[:, 0].copy(), p[:, 1].copy(), np.zeros(6), np.zeros(6)
    moved = np.ones(order.size)
    for sweep in range(SWEEPS):
        for k in order:
            if sweep > 1 and not moved[k] > SETTLED:
                continue
            if sweep > 0:
                _subtract(left, p[k, 0], p[k, 1], -p[k, 2], table, step, reach[k])
            for a in range(6):
                one[a] = p[k, a]
            ok = _fit_one(left, variance, bad, one, error, table, step, FIT * fwhm)
            failed[k] = not (ok and one[2] > 0 and (one[0] - x[k]) ** 2 + (one[1] - y[k]) ** 2 < fwhm * fwhm)
            moved[k] = 0.0
            if not failed[k]:
                moved[k] = np.hypot(one[0] - p[k, 0], one[1] - p[k, 1])
                for a in range(6):
                    p[k, a] = one[a]
                    e[k, a] = error[a]
            _subtract(left, p[k, 0], p[k, 1], p[k, 2], table, step, reach[k])
    for k in order:
        j = min(max(int(np.rint(p[k, 1])), 0), left.shape[0] - 1)
        i = min(max(int(np.rint(p[k, 0])), 0), left.shape[1] - 1)
        u = ((i - p[k, 0]) ** 2 + (j - p[k, 1]) ** 2) / step
        own = p[k, 2] * table[0, min(int(u), table.shape[1] - 1)]
        others[k] = (data[j, i] - left[j, i] - own) / (abs(p[k, 2]) * table[0, 0])
    return others, failed


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _bits_near(dq: np.ndarray, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """The DQ bits of the square of half-width `radius` about each position, OR-ed."""
    out = np.zeros(x.size, np.int64)
    for k in range(x.size):
        for j in range(max(int(y[k] - radius), 0), min(int(y[k] + radius) + 2, dq.shape[0])):
            for i in range(max(int(x[k] - radius), 0), min(int(x[k] + radius) + 2, dq.shape[1])):
                out[k] |= dq[j, i]
    return out


def _reach(flux: np.ndarray, table: np.ndarray, step: float, fwhm: Pixels, noise: float) -> np.ndarray:
    """Radius (pixels) within which each star is subtracted: to a twentieth of the sky noise, at most REACH FWHM."""
    n = np.searchsorted(-table[0], -0.05 * noise / np.maximum(flux, 1e-30))
    return np.clip(np.sqrt(n * step), FIT * fwhm, REACH * fwhm)


def _typical_noise(variance: Image, bad: np.ndarray) -> float:
    some = variance[::8, ::8][~bad[::8, ::8]]
    return float(np.sqrt(np.median(some))) if some.size else 0.0


def refine(
    data: Image, variance: Image, dq: Flags, x: np.ndarray, y: np.ndarray, *, fwhm: Pixels
) -> np.ndarray:
    """Positions of stars good to the photon limit.

    data, variance float32 (ny, nx), dq uint16; x, y: 0-based positions of all the detections of this array, good to
    half a FWHM (neighbours are fitted too, so leave none out); fwhm in pixels, `detect.measure_fwhm` gives it.
    Returns dtype POSITIONS, one row per input: x, y (0-based pixels), their errors from the variance, flux and its
    error (unit of data, within 8 FWHM), fwhm of the array's mean star image, and flags: NEIGHBOUR (others' light above
    2 % of the star's peak), SATURATED and BAD_NEAR (within one FWHM), EDGE (within 2.5 FWHM of the array's edge),
    FAILED (nothing fitted: the window's position, errors NaN).
    """
    out = np.zeros(len(x), POSITIONS)
    if not len(x):
        return out
    bad = (dq & np.uint16(UNUSABLE)) != 0
    bad |= ~(np.isfinite(data) & np.isfinite(variance))
    data, variance, bad = plain(data, np.float32), plain(variance, np.float32), plain(bad, np.bool_)
    x, y = np.array(x, np.float64), np.array(y, np.float64)
    xw, yw, flux, sky = _first(data, bad, x, y, fwhm)
    near = _bits_near(plain(dq, np.uint16), x, y, fwhm)
    flags = SATURATED * ((near & int(DQ.SATURATED)) != 0) + BAD_NEAR * ((near & int(UNUSABLE)) != 0)
    margin = np.minimum(np.minimum(x, data.shape[1] - 1 - x), np.minimum(y, data.shape[0] - 1 - y))
    flags = flags + EDGE * (margin < FIT * fwhm)
    stars = isolated_stars(xw, yw, flux, flags == 0, REACH * fwhm)
    if not len(stars):
        stars = np.argsort(-flux, kind="stable")[:1]
    weights = star_image(data, bad, xw[stars], yw[stars], flux[stars], sky[stars], fwhm)
    table, step = tabulate(weights, fwhm)
    zero = np.zeros(len(x))
    p, e = np.column_stack([xw, yw, flux.clip(min=0), sky, zero, zero]), np.full((len(x), 6), np.nan)
    order = np.argsort(-flux, kind="stable")
    reach = _reach(flux, table, step, fwhm, _typical_noise(variance, bad))
    others, failed = _fit_all(data, variance, bad, order, p, e, table, step, fwhm, reach)
    out["x"], out["y"], out["flux"] = p[:, 0], p[:, 1], p[:, 2]
    out["ex"], out["ey"], out["eflux"] = e[:, 0], e[:, 1], e[:, 2]
    out["fwhm"] = half_maximum(weights, fwhm)
    out["flags"] = flags + NEIGHBOUR * (others > CONTAMINATION) + FAILED * (failed | ~np.isfinite(e[:, 0]))
    return out
