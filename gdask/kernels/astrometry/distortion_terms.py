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


#: Each term is one monomial along x and one along y (those of `monomials`), with these signs; 0 for none.
_ALONG_X = np.array([0, 0, 2, 1, 1, 2, 3, 4, 5, 0, 0, 0, 6, 7, 8, 9, 0, 0, 0, 0])
_ALONG_Y = np.array([0, 0, 1, 2, 2, 1, 0, 0, 0, 3, 4, 5, 0, 0, 0, 0, 6, 7, 8, 9])
_SIGN_X = np.array([1.0, 0, -1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0])
_SIGN_Y = np.array([0, 1.0, 1, 1, -1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1])
#: Monomials up to the third order, and their products, up to the sixth: number d (d + 1) / 2 + j has order d, j in y.
MONOMIALS, PRODUCTS = 10, 28
_ORDER = np.array([0, 1, 1, 2, 2, 2, 3, 3, 3, 3])
_IN_Y = np.array([0, 0, 1, 0, 1, 2, 0, 1, 2, 3])


@numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")
def monomials(x: float, y: float, b: np.ndarray) -> None:
    """1, u, v, u2, uv, v2, u3, u2v, uv2, v3 at (x, y) arcsec, in units of 60 arcsec."""
    u, v = x / UNIT, y / UNIT
    b[0], b[1], b[2] = 1.0, u, v
    b[3], b[4], b[5] = u * u, u * v, v * v
    b[6], b[7], b[8], b[9] = b[3] * u, b[3] * v, u * b[5], v * b[5]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def coefficients(c: np.ndarray) -> np.ndarray:
    """20 terms -> (2, 10) coefficients of the monomials along x and y."""
    out = np.zeros((2, MONOMIALS))
    for k in range(TERMS):
        out[0, _ALONG_X[k]] += _SIGN_X[k] * c[k]
        out[1, _ALONG_Y[k]] += _SIGN_Y[k] * c[k]
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def gathered(sums: np.ndarray) -> np.ndarray:
    """The transpose of `coefficients`: (2, 10) sums over monomials along x and y -> 20 sums over terms."""
    out = np.zeros(TERMS)
    for k in range(TERMS):
        out[k] = _SIGN_X[k] * sums[0, _ALONG_X[k]] + _SIGN_Y[k] * sums[1, _ALONG_Y[k]]
    return out


def prior_weights(prior: Arcsec) -> np.ndarray:
    """1 / sigma^2 of each term: quadratic and cubic terms `prior` arcsec at 60 arcsec from the pointing; shears five
    times that; shift, rotation and scale are free (0)."""
    return np.array([0.0] * 4 + [1 / (5 * prior) ** 2] * 2 + [1 / prior**2] * 14)


def to_polynomials(c: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """20 terms -> coefficients of 1, x, y, x2, xy, y2, x3, x2y, xy2, y3 (x, y in 60 arcsec) for the x and y axes."""
    x, y = coefficients(np.asarray(c, float))
    return tuple(x.tolist()), tuple(y.tolist())


@numba.njit(cache=True, nogil=True, error_model="numpy")
def displace(x: np.ndarray, y: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Displacement (arcsec, along x and y) of points by one set of 20 terms."""
    along, b = coefficients(c), np.zeros(MONOMIALS)
    dx, dy = np.zeros(x.size), np.zeros(x.size)
    for m in range(x.size):
        monomials(x[m], y[m], b)
        for k in range(MONOMIALS):
            dx[m] += b[k] * along[0, k]
            dy[m] += b[k] * along[1, k]
    return dx, dy


@numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _product(a: int, b: int) -> int:
    """Number of the product of two monomials."""
    order = _ORDER[a] + _ORDER[b]
    return order * (order + 1) // 2 + _IN_Y[a] + _IN_Y[b]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def normal_blocks(
    frame: np.ndarray, x: np.ndarray, y: np.ndarray, weight: np.ndarray, frames: int
) -> np.ndarray:
    """Normal matrix of each frame: the sum of terms^T w terms, from the sums of the monomials' products."""
    sums, b, powers = np.zeros((frames, PRODUCTS)), np.zeros(MONOMIALS), np.zeros(PRODUCTS)
    for m in range(x.size):
        w = weight[m]
        if not w > 0:
            continue
        monomials(x[m], y[m], b)
        for k in range(MONOMIALS):
            powers[k] = b[k]
        for k in range(
            4
        ):  # order 3 times the pure powers of each axis gives the others, one order after the other
            powers[10 + k], powers[15 + k], powers[21 + k] = (
                b[6 + k] * b[1],
                b[6 + k] * b[3],
                b[6 + k] * b[6],
            )
        powers[14], powers[19], powers[20] = b[9] * b[2], b[9] * b[4], b[9] * b[5]
        powers[25], powers[26], powers[27] = b[9] * b[7], b[9] * b[8], b[9] * b[9]
        f = frame[m]
        for k in range(PRODUCTS):
            sums[f, k] += w * powers[k]
    out = np.zeros((frames, TERMS, TERMS))
    for f in range(frames):
        for i in range(TERMS):
            for j in range(i + 1):
                out[f, i, j] = _SIGN_X[i] * _SIGN_X[j] * sums[f, _product(_ALONG_X[i], _ALONG_X[j])]
                out[f, i, j] += (
                    _SIGN_Y[i] * _SIGN_Y[j] * sums[f, _product(_ALONG_Y[i], _ALONG_Y[j])]
                )
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
    group: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    dx: np.ndarray,
    dy: np.ndarray,
    weight: np.ndarray,
    groups: int,
) -> np.ndarray:
    """Per group, the sum of terms^T w displacement."""
    sums, b, out = np.zeros((groups, 2, MONOMIALS)), np.zeros(MONOMIALS), np.zeros((groups, TERMS))
    for m in range(x.size):
        if weight[m] > 0:
            monomials(x[m], y[m], b)
            g, u, v = group[m], weight[m] * dx[m], weight[m] * dy[m]
            for k in range(MONOMIALS):
                sums[g, 0, k] += b[k] * u
                sums[g, 1, k] += b[k] * v
    for g in range(groups):
        out[g] = gathered(sums[g])
    return out


def fit_terms(
    x: np.ndarray,
    y: np.ndarray,
    dx: np.ndarray,
    dy: np.ndarray,
    weight: np.ndarray,
    count: int,
    prior: np.ndarray,
) -> np.ndarray:
    """The `count` leading terms (others 0) that best give displacements (dx, dy) at (x, y), all arcsec, with weights
    and the prior's 1 / sigma^2."""
    one = np.zeros(len(x), np.int64)
    normal = normal_blocks(one, x, y, weight, 1)[0] + np.diag(prior)
    return solve_block(normal, _project(one, x, y, dx, dy, weight, 1)[0], count)


def cross_validate(
    x: np.ndarray,
    y: np.ndarray,
    dx: np.ndarray,
    dy: np.ndarray,
    weight: np.ndarray,
    fold: np.ndarray,
    counts: tuple[int, ...],
    prior: np.ndarray,
) -> np.ndarray:
    """For each of `counts`, the weighted squares of displacements that the fit did not see, summed over the folds
    (int64 0..k-1 per point). Other arguments as in `fit_terms`."""
    folds = int(fold.max()) + 1
    normals, rights = (
        normal_blocks(fold, x, y, weight, folds),
        _project(fold, x, y, dx, dy, weight, folds),
    )
    squares = np.bincount(fold, weight * (dx**2 + dy**2), folds)
    return _left_out(normals, rights, squares, np.array(counts), prior)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _left_out(
    normals: np.ndarray,
    rights: np.ndarray,
    squares: np.ndarray,
    counts: np.ndarray,
    prior: np.ndarray,
) -> np.ndarray:
    """Chi-square of each fold about the fit to the others, summed, from the folds' normal equations."""
    out = np.zeros(counts.size)
    for k in range(squares.size):
        normal, right = np.diag(prior), np.zeros(TERMS)
        for other in range(squares.size):
            if other != k:
                normal, right = normal + normals[other], right + rights[other]
        for n in range(counts.size):
            c = solve_block(normal, right, counts[n])
            chi2 = squares[k]
            for i in range(TERMS):
                chi2 -= 2.0 * c[i] * rights[k, i]
                for j in range(TERMS):
                    chi2 += c[i] * normals[k, i, j] * c[j]
            out[n] += chi2
    return out
