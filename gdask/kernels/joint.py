"""The linear heart of the joint astrometric solution: all stars and all frames in one weighted least squares.

Each frame has up to 20 terms, in the order in which they are allowed as stars become enough: shift x, y; rotation;
scale; two shears; six quadratic and eight cubic ones. Star positions are eliminated exactly and conjugate gradients
solve for the terms. Every sum runs in one fixed order in compiled code: no BLAS, same bits always.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from gdask.types import Arcsec, Degrees

TERMS = 20
#: Numbers of leading terms that may be in use (shift, + rotation, linear, quadratic, cubic), and their orders.
LEVELS = (2, 3, 6, 12, 20)
ORDER = {2: 0, 3: 1, 6: 1, 12: 2, 20: 3}
UNIT = 60.0
TOLERANCE, MAX_STEPS = 1e-8, 500
#: How far a free term moves at most or so in one solution (arcsec) where nothing measures it.
FREE_STEP: Arcsec = 0.02


class Problem(NamedTuple):
    """Measurements of all frames, one after the other (float64 unless said).

    frame, star: int64 indices; x, y: instrument plane, arcsec; p, q: the same sources in the common tangent plane
    with no correction, arcsec; weight: 1 / arcsec^2, 0 to ignore; cosine, sine: per frame, what turns the instrument
    plane into the common one: (c x - s y, s x + c y); stars: their number; centre: RA, Dec (degrees) of the common
    plane's origin.
    """

    frame: np.ndarray
    star: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray
    q: np.ndarray
    weight: np.ndarray
    cosine: np.ndarray
    sine: np.ndarray
    stars: int
    centre: tuple[Degrees, Degrees]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _terms(x: float, y: float, bx: np.ndarray, by: np.ndarray) -> None:
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
        _terms(x[m], y[m], bx, by)
        for k in range(TERMS):
            dx[m] += bx[k] * c[k]
            dy[m] += by[k] * c[k]
    return dx, dy


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _positions(
    frame: np.ndarray, x: np.ndarray, y: np.ndarray, p: np.ndarray, q: np.ndarray, cosine: np.ndarray,
    sine: np.ndarray, c: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Corrected positions in the common plane."""
    bx, by = np.zeros(TERMS), np.zeros(TERMS)
    xi, eta = p.copy(), q.copy()
    for m in range(x.size):
        f = frame[m]
        _terms(x[m], y[m], bx, by)
        dx, dy = 0.0, 0.0
        for k in range(TERMS):
            dx += bx[k] * c[f, k]
            dy += by[k] * c[f, k]
        xi[m] += cosine[f] * dx - sine[f] * dy
        eta[m] += sine[f] * dx + cosine[f] * dy
    return xi, eta


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _means(
    star: np.ndarray, weight: np.ndarray, xi: np.ndarray, eta: np.ndarray, stars: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted mean position and total weight of each star (NaN, 0 where nothing is measured)."""
    sx, sy, sw = np.zeros(stars), np.zeros(stars), np.zeros(stars)
    for m in range(star.size):
        s, w = star[m], weight[m]
        if w > 0:
            sx[s] += w * xi[m]
            sy[s] += w * eta[m]
            sw[s] += w
    return sx / sw, sy / sw, sw


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _gradient(
    frame: np.ndarray, star: np.ndarray, x: np.ndarray, y: np.ndarray, weight: np.ndarray, cosine: np.ndarray,
    sine: np.ndarray, xi: np.ndarray, eta: np.ndarray, stars: int,
) -> np.ndarray:
    """Sum over a frame's measurements of terms^T w (position - mean of the star), in its instrument plane."""
    out = np.zeros((cosine.size, TERMS))
    bx, by = np.zeros(TERMS), np.zeros(TERMS)
    sx, sy, _ = _means(star, weight, xi, eta, stars)
    for m in range(x.size):
        if not weight[m] > 0:
            continue
        f, s = frame[m], star[m]
        rx, ry = weight[m] * (xi[m] - sx[s]), weight[m] * (eta[m] - sy[s])
        gx, gy = cosine[f] * rx + sine[f] * ry, cosine[f] * ry - sine[f] * rx
        _terms(x[m], y[m], bx, by)
        for k in range(TERMS):
            out[f, k] += bx[k] * gx + by[k] * gy
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _blocks(
    frame: np.ndarray, x: np.ndarray, y: np.ndarray, weight: np.ndarray, frames: int
) -> np.ndarray:
    """Normal matrix of each frame: the sum of terms^T w terms."""
    out = np.zeros((frames, TERMS, TERMS))
    bx, by = np.zeros(TERMS), np.zeros(TERMS)
    for m in range(x.size):
        if not weight[m] > 0:
            continue
        f, w = frame[m], weight[m]
        _terms(x[m], y[m], bx, by)
        for i in range(TERMS):
            for j in range(i + 1):
                out[f, i, j] += w * (bx[i] * bx[j] + by[i] * by[j])
    for f in range(frames):
        for i in range(TERMS):
            for j in range(i):
                out[f, j, i] = out[f, i, j]
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _dot(a: np.ndarray, b: np.ndarray) -> float:
    total = 0.0
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            total += a[i, j] * b[i, j]
    return total


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


def solve_frames(problem: Problem, start: np.ndarray, active: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, int]:
    """Terms (frames, 20) that minimise the weighted scatter of each star's positions plus the prior.

    start: terms to begin with; active: how many leading terms each frame may use, 0 for a frame that is left out;
    prior: 1 / sigma^2 of each term's size, 0 for the free ones. Only differences between frames are measured: what is
    common to all stays as in `start` for the free terms (their steps are damped by FREE_STEP, so repeat the call), and
    goes to zero for the others. Returns (terms in arcsec, conjugate-gradient steps).
    """
    frames = len(active)
    mask = (np.arange(TERMS) < active[:, None]).astype(float)
    weight = np.where(active[problem.frame] > 0, problem.weight, 0.0)
    begin = np.where(active[:, None] > 0, start * mask, start)
    xi, eta = positions(problem, begin)
    zero = np.zeros_like(problem.p)
    still = (problem.frame, problem.x, problem.y, zero, zero, problem.cosine, problem.sine)
    sides = (problem.frame, problem.star, problem.x, problem.y, weight, problem.cosine, problem.sine)
    total = _means(problem.star, weight, zero, zero, problem.stars)[2][problem.star]
    own = weight * (1 - np.divide(weight, total, out=np.ones_like(weight), where=total > 0))
    damping = prior + np.where(prior > 0, 0.0, 1 / FREE_STEP**2)
    blocks = _blocks(problem.frame, problem.x, problem.y, own, frames) + np.diag(damping)

    def precondition(r: np.ndarray) -> np.ndarray:
        return np.stack([solve_block(blocks[f], r[f], int(active[f])) for f in range(frames)])

    c = np.zeros((frames, TERMS))
    r = -(_gradient(*sides, xi, eta, problem.stars) + prior * begin) * mask
    z = precondition(r)
    d, rz = z, _dot(r, z)
    first, steps = rz, 0
    while steps < MAX_STEPS and rz > TOLERANCE**2 * first and rz > 0:
        ad = (_gradient(*sides, *_positions(*still, d), problem.stars) + damping * d) * mask
        step = rz / _dot(d, ad)
        c, r = c + step * d, r - step * ad
        z = precondition(r)
        rz, before = _dot(r, z), rz
        d = z + rz / before * d
        steps += 1
    return begin + c, steps


def positions(problem: Problem, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corrected positions of all measurements in the common plane (arcsec) for the terms c."""
    return _positions(problem.frame, problem.x, problem.y, problem.p, problem.q, problem.cosine, problem.sine, c)


def star_means(problem: Problem, xi: np.ndarray, eta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted mean position (arcsec, common plane) and total weight of each star."""
    return _means(problem.star, problem.weight, xi, eta, problem.stars)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _project(
    group: np.ndarray, x: np.ndarray, y: np.ndarray, dx: np.ndarray, dy: np.ndarray, weight: np.ndarray, groups: int
) -> np.ndarray:
    """Per group, the sum of terms^T w displacement."""
    out = np.zeros((groups, TERMS))
    bx, by = np.zeros(TERMS), np.zeros(TERMS)
    for m in range(x.size):
        if weight[m] > 0:
            _terms(x[m], y[m], bx, by)
            for k in range(TERMS):
                out[group[m], k] += weight[m] * (bx[k] * dx[m] + by[k] * dy[m])
    return out


def fit_terms(
    x: np.ndarray, y: np.ndarray, dx: np.ndarray, dy: np.ndarray, weight: np.ndarray, count: int, prior: np.ndarray
) -> np.ndarray:
    """The `count` leading terms (others 0) that best give displacements (dx, dy) at (x, y), all arcsec, with weights
    and the prior's 1 / sigma^2."""
    one = np.zeros(len(x), np.int64)
    normal = _blocks(one, x, y, weight, 1)[0] + np.diag(prior)
    return solve_block(normal, _project(one, x, y, dx, dy, weight, 1)[0], count)


def cross_validate(
    x: np.ndarray, y: np.ndarray, dx: np.ndarray, dy: np.ndarray, weight: np.ndarray, fold: np.ndarray,
    counts: tuple[int, ...], prior: np.ndarray,
) -> np.ndarray:
    """For each of `counts`, the weighted squares of displacements that the fit did not see, summed over the folds
    (int64 0..k-1 per point). Other arguments as in `fit_terms`."""
    folds = int(fold.max()) + 1
    normals, rights = _blocks(fold, x, y, weight, folds), _project(fold, x, y, dx, dy, weight, folds)
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
