"""Displacements as up to 20 terms: their values, least-squares fits of them, and how many are worth having.

The terms come in the order in which they are allowed as stars become enough: shift x, y; rotation; scale; two shears;
six quadratic and eight cubic ones. Every sum runs in one fixed order in compiled code: no BLAS, same bits always.
"""

from __future__ import annotations

import numba
import numpy as np

from gdask.types import Arcsec

TERMS = 20
#: Numbers of leading terms that may be in use (shift, + rotation, linear, quadratic, cubic), and their orders.
LEVELS = (2, 3, 6, 12, 20)
ORDER = {2: 0, 3: 1, 6: 1, 12: 2, 20: 3}
UNIT = 60.0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def terms_at(x: float, y: float, bx: np.ndarray, by: np.ndarray) -> None:
    """Displacement along x and y by each of the 20 terms at (x, y) arcsec, per unit coefficient (arcsec)."""
    u, v = x / UNIT, y / UNIT
    for k in range(TERMS):
        bx[k] = 0.0
        by[k] = 0.0
    bx[0] = by[1] = 1.0
    bx[2], by[2] = -v, u
    bx[3], by[3] = u, v
    bx[4], by[4] = u, -v
    bx[5], by[5] = v, u
    bx[6] = by[9] = u * u
    bx[7] = by[10] = u * v
    bx[8] = by[11] = v * v
    bx[12] = by[16] = u * u * u
    bx[13] = by[17] = u * u * v
    bx[14] = by[18] = u * v * v
    bx[15] = by[19] = v * v * v


def prior_weights(prior: Arcsec) -> np.ndarray:
    """1 / sigma^2 of each term: quadratic and cubic terms `prior` arcsec at 60 arcsec from the pointing; shears five
    times that; shift, rotation and scale are free (0)."""
    return np.array([0.0] * 4 + [1 / (5 * prior) ** 2] * 2 + [1 / prior**2] * 14)


def to_polynomials(c: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """20 terms -> coefficients of 1, x, y, x2, xy, y2, x3, x2y, xy2, y3 (x, y in 60 arcsec) for the x and y axes."""
    x = (c[0], c[3] + c[4], c[5] - c[2], *c[6:9], *c[12:16])
    y = (c[1], c[2] + c[5], c[3] - c[4], *c[9:12], *c[16:20])
    return tuple(float(a) for a in x), tuple(float(a) for a in y)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def displace(x: np.ndarray, y: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Displacement (arcsec, along x and y) of points by one set of 20 terms."""
    bx, by = np.zeros(TERMS), np.zeros(TERMS)
    dx, dy = np.zeros(x.size), np.zeros(x.size)
    for m in range(x.size):
        terms_at(x[m], y[m], bx, by)
        for k in range(TERMS):
            dx[m] += bx[k] * c[k]
            dy[m] += by[k] * c[k]
    return dx, dy


@numba.njit(cache=True, nogil=True, error_model="numpy")
def normal_blocks(
    frame: np.ndarray, x: np.ndarray, y: np.ndarray, weight: np.ndarray, frames: int
) -> np.ndarray:
    """Normal matrix of each frame: the sum of terms^T w terms."""
    out = np.zeros((frames, TERMS, TERMS))
    bx, by = np.zeros(TERMS), np.zeros(TERMS)
    for m in range(x.size):
        if not weight[m] > 0:
            continue
        f, w = frame[m], weight[m]
        terms_at(x[m], y[m], bx, by)
        for i in range(TERMS):
            for j in range(i + 1):
                out[f, i, j] += w * (bx[i] * bx[j] + by[i] * by[j])
    for f in range(frames):
        for i in range(TERMS):
            for j in range(i):
                out[f, j, i] = out[f, i, j]
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def solve_block(a: np.ndarray, b: np.ndarray, n: int) -> np.ndarray:
    """Solve the leading n x n part of a symmetric positive system by Cholesky; zeros elsewhere."""
    low, out = np.zeros((n, n)), np.zeros(b.size)
    for i in range(n):
        for j in range(i + 1):
            s = a[i, j]
            for k in range(j):
                s -= low[i, k] * low[j, k]
            low[i, j] = np.sqrt(max(s, 1e-300)) if i == j else s / low[j, j]
    for i in range(n):
        s = b[i]
        for k in range(i):
            s -= low[i, k] * out[k]
        out[i] = s / low[i, i]
    for r in range(n):
        i = n - 1 - r
        s = out[i]
        for k in range(i + 1, n):
            s -= low[k, i] * out[k]
        out[i] = s / low[i, i]
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _project(
    group: np.ndarray, x: np.ndarray, y: np.ndarray, dx: np.ndarray, dy: np.ndarray, weight: np.ndarray, groups: int
) -> np.ndarray:
    """Per group, the sum of terms^T w displacement."""
    out = np.zeros((groups, TERMS))
    bx, by = np.zeros(TERMS), np.zeros(TERMS)
    for m in range(x.size):
        if weight[m] > 0:
            terms_at(x[m], y[m], bx, by)
            for k in range(TERMS):
                out[group[m], k] += weight[m] * (bx[k] * dx[m] + by[k] * dy[m])
    return out


def fit_terms(
    x: np.ndarray, y: np.ndarray, dx: np.ndarray, dy: np.ndarray, weight: np.ndarray, count: int, prior: np.ndarray
) -> np.ndarray:
    """The `count` leading terms (others 0) that best give displacements (dx, dy) at (x, y), all arcsec, with weights
    and the prior's 1 / sigma^2."""
    one = np.zeros(len(x), np.int64)
    normal = normal_blocks(one, x, y, weight, 1)[0] + np.diag(prior)
    return solve_block(normal, _project(one, x, y, dx, dy, weight, 1)[0], count)


def cross_validate(
    x: np.ndarray, y: np.ndarray, dx: np.ndarray, dy: np.ndarray, weight: np.ndarray, fold: np.ndarray,
    counts: tuple[int, ...], prior: np.ndarray,
) -> np.ndarray:
    """For each of `counts`, the weighted squares of displacements that the fit did not see, summed over the folds
    (int64 0..k-1 per point). Other arguments as in `fit_terms`."""
    folds = int(fold.max()) + 1
    normals, rights = normal_blocks(fold, x, y, weight, folds), _project(fold, x, y, dx, dy, weight, folds)
    out = np.zeros(len(counts))
    for k in range(folds):
        normal, right = np.diag(prior), np.zeros(TERMS)
        for other in range(folds):
            if other != k:
                normal, right = normal + normals[other], right + rights[other]
        seen = fold == k
        for n, count in enumerate(counts):
            u, v = displace(x[seen], y[seen], solve_block(normal, right, count))
            out[n] += (weight[seen] * ((dx[seen] - u) ** 2 + (dy[seen] - v) ** 2)).sum()
    return out
