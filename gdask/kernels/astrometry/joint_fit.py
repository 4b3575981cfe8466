"""The linear heart of the joint astrometric solution: all stars and all frames in one weighted least squares.

Each frame has up to 20 terms, those of `kernels.terms`. Star positions are eliminated exactly and conjugate gradients
solve for the terms. Every sum runs in one fixed order in compiled code: no BLAS, same bits always.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from gdask.kernels.astrometry.distortion_terms import (
    MONOMIALS,
    TERMS,
    coefficients,
    gathered,
    monomials,
    normal_blocks,
    solve_block,
)
from gdask.types import Arcsec, Degrees

TOLERANCE, MAX_STEPS = 1e-8, 500
#: Steps end, too, where chi-square can fall by no more than about this: terms are then known to 3e-3 of their errors.
SETTLED = 1e-5
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
def _turned(cosine: np.ndarray, sine: np.ndarray, c: np.ndarray) -> np.ndarray:
    """(frames, 2, 10) coefficients of each frame's displacement along the axes of the common plane."""
    out = np.zeros((c.shape[0], 2, MONOMIALS))
    for f in range(c.shape[0]):
        own = coefficients(c[f])
        for k in range(MONOMIALS):
            out[f, 0, k] = cosine[f] * own[0, k] - sine[f] * own[1, k]
            out[f, 1, k] = sine[f] * own[0, k] + cosine[f] * own[1, k]
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _positions(
    frame: np.ndarray, x: np.ndarray, y: np.ndarray, p: np.ndarray, q: np.ndarray, along: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Corrected positions in the common plane."""
    b, xi, eta = np.zeros(MONOMIALS), np.empty(x.size), np.empty(x.size)
    for m in range(x.size):
        f = frame[m]
        monomials(x[m], y[m], b)
        dx, dy = 0.0, 0.0
        for k in range(MONOMIALS):
            dx += b[k] * along[f, 0, k]
            dy += b[k] * along[f, 1, k]
        xi[m], eta[m] = p[m] + dx, q[m] + dy
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
def _normal_times(
    frame: np.ndarray,
    star: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    cosine: np.ndarray,
    sine: np.ndarray,
    total: np.ndarray,
    p: np.ndarray,
    q: np.ndarray,
    c: np.ndarray,
) -> np.ndarray:
    """Sum over a frame's measurements of terms^T w (position - mean of the star), in its instrument plane, for the
    terms c on top of the positions p, q (of no length: none). total: weight of each star."""
    along, b, origin = _turned(cosine, sine, c), np.zeros(MONOMIALS), p.size > 0
    mean, sums = np.zeros((total.size, 2)), np.zeros((cosine.size, 2, MONOMIALS))
    for step in range(
        2
    ):  # first the stars' means, then what each measurement is off by: nothing is kept of either
        for m in range(x.size):
            w = weight[m]
            if not w > 0:
                continue
            f, s = frame[m], star[m]
            monomials(x[m], y[m], b)
            dx, dy = (p[m], q[m]) if origin else (0.0, 0.0)
            for k in range(MONOMIALS):
                dx += b[k] * along[f, 0, k]
                dy += b[k] * along[f, 1, k]
            if step == 0:
                mean[s, 0] += w * dx
                mean[s, 1] += w * dy
            else:
                dx, dy = w * (dx - mean[s, 0]), w * (dy - mean[s, 1])
                for k in range(MONOMIALS):
                    sums[f, 0, k] += b[k] * dx
                    sums[f, 1, k] += b[k] * dy
        if step == 0:
            for s in range(total.size):
                mean[s, 0] /= total[s]
                mean[s, 1] /= total[s]
    out, own = np.zeros((cosine.size, TERMS)), np.zeros((2, MONOMIALS))
    for f in range(cosine.size):
        for k in range(MONOMIALS):
            own[0, k] = cosine[f] * sums[f, 0, k] + sine[f] * sums[f, 1, k]
            own[1, k] = cosine[f] * sums[f, 1, k] - sine[f] * sums[f, 0, k]
        out[f] = gathered(own)
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _dot(a: np.ndarray, b: np.ndarray) -> float:
    total = 0.0
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            total += a[i, j] * b[i, j]
    return total


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _solve_blocks(blocks: np.ndarray, r: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Each frame's own block solved for its leading terms."""
    out = np.zeros(r.shape)
    for f in range(active.size):
        out[f] = solve_block(blocks[f], r[f], active[f])
    return out


def solve_frames(
    problem: Problem,
    start: np.ndarray,
    active: np.ndarray,
    prior: np.ndarray,
    settled: float = SETTLED,
) -> tuple[np.ndarray, int]:
    """Terms (frames, 20) that minimise the weighted scatter of each star's positions plus the prior.

    start: terms to begin with; active: how many leading terms each frame may use, 0 for a frame that is left out;
    prior: 1 / sigma^2 of each term's size, 0 for the free ones. Only differences between frames are measured: what is
    common to all stays as in `start` for the free terms (their steps are damped by FREE_STEP, so repeat the call), and
    goes to zero for the others. settled: the fall of chi-square at which steps end. Returns (terms in arcsec, conjugate-gradient steps).
    """
    frames = len(active)
    mask = (np.arange(TERMS) < active[:, None]).astype(float)
    weight = np.where(active[problem.frame] > 0, problem.weight, 0.0)
    begin = np.where(active[:, None] > 0, start * mask, start)
    total = np.bincount(problem.star, weight, problem.stars)
    sides = (
        problem.frame,
        problem.star,
        problem.x,
        problem.y,
        weight,
        problem.cosine,
        problem.sine,
        total,
    )
    none = np.zeros(0)
    share = total[problem.star]
    own = weight * (1 - np.divide(weight, share, out=np.ones_like(weight), where=share > 0))
    del share
    damping = prior + np.where(prior > 0, 0.0, 1 / FREE_STEP**2)
    blocks = normal_blocks(problem.frame, problem.x, problem.y, own, frames) + np.diag(damping)

    c = np.zeros((frames, TERMS))
    r = -(_normal_times(*sides, problem.p, problem.q, begin) + prior * begin) * mask
    z = _solve_blocks(blocks, r, active)
    d, rz = z, _dot(r, z)
    first, steps = rz, 0
    while steps < MAX_STEPS and rz > max(TOLERANCE**2 * first, settled):
        ad = (_normal_times(*sides, none, none, d) + damping * d) * mask
        step = rz / _dot(d, ad)
        c, r = c + step * d, r - step * ad
        z = _solve_blocks(blocks, r, active)
        rz, before = _dot(r, z), rz
        d = z + rz / before * d
        steps += 1
    return begin + c, steps


def positions(problem: Problem, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corrected positions of all measurements in the common plane (arcsec) for the terms c."""
    return _positions(
        problem.frame,
        problem.x,
        problem.y,
        problem.p,
        problem.q,
        _turned(problem.cosine, problem.sine, c),
    )


def star_means(
    problem: Problem, xi: np.ndarray, eta: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted mean position (arcsec, common plane) and total weight of each star."""
    return _means(problem.star, problem.weight, xi, eta, problem.stars)


def turned_back(problem: Problem, dx: np.ndarray, dy: np.ndarray) -> None:
    """Vectors of all measurements in the common plane become vectors in their instrument planes, in place."""
    _turn(problem.frame, problem.cosine, problem.sine, dx, dy)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _turn(
    frame: np.ndarray, cosine: np.ndarray, sine: np.ndarray, dx: np.ndarray, dy: np.ndarray
) -> None:
    for m in range(frame.size):
        c, s = cosine[frame[m]], sine[frame[m]]
        dx[m], dy[m] = c * dx[m] + s * dy[m], c * dy[m] - s * dx[m]
