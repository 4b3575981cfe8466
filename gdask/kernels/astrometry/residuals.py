"""The state of a joint astrometric solution, its residuals, and the weights that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np

from gdask.kernels.astrometry.joint_fit import Problem, positions, star_means
from gdask.kernels.astrometry.star_association import Measurements, rows_of
from gdask.types import Arcsec

#: Huber's limit and the rejection limit, in sigma of a two-dimensional residual.
HUBER, REJECT = 3.0, 7.0
#: Median of chi-square with two degrees of freedom.
MEDIAN_CHI2 = 1.386
MAS = 1000.0
#: Measurements, about, from which the error beyond photon noise is found: it is then known to 0.3 per cent.
ENOUGH = 100_000


class State(NamedTuple):
    """Where the solution stands: measurements with star numbers and weights; terms (frames, 20); leading terms in use
    per frame; which measurements other frames share; error beyond photon noise; displacements of arrays
    (`array_terms.Arrays`), which the measurements have already."""

    problem: Problem
    terms: np.ndarray
    active: np.ndarray
    shared: np.ndarray
    floor: Arcsec
    arrays: Any = None


def residuals(problem: Problem, terms: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measured minus star (common plane, arcsec), and the share of the variance that the star's mean leaves."""
    xi, eta = positions(problem, terms)
    left = _about(problem.star, problem.weight, xi, eta, *star_means(problem, xi, eta))
    return xi, eta, left


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _about(
    star: np.ndarray,
    weight: np.ndarray,
    xi: np.ndarray,
    eta: np.ndarray,
    sx: np.ndarray,
    sy: np.ndarray,
    total: np.ndarray,
) -> np.ndarray:
    """Takes the star's mean from each position, in place; returns the share of the variance that is left."""
    left = np.ones(star.size)
    for m in range(star.size):
        s = star[m]
        xi[m] -= sx[s]
        eta[m] -= sy[s]
        if total[s] > 0:
            left[m] = max(1.0 - weight[m] / total[s], 0.02)
    return left


def narrowed_radius(state: State, xi: np.ndarray, eta: np.ndarray, widest: Arcsec) -> Arcsec:
    """Six times the median scatter of shared sources, at least 0.03 arcsec, at most the first radius."""
    dx, dy, _ = residuals(state.problem, state.terms)
    r = np.hypot(dx, dy)[state.shared]
    r = r[np.isfinite(r)]
    return float(np.clip(6 * np.median(r), 0.03, widest)) if len(r) else widest


def robust_weights(
    problem: Problem, terms: np.ndarray, errors: np.ndarray, shared: np.ndarray, floor: Arcsec
) -> np.ndarray:
    """Huber weights about the present solution; beyond REJECT sigma nothing."""
    base = np.where(shared, 1 / (errors + floor**2), 0.0)
    weighted = problem.weight > 0
    start = np.where(weighted & shared, problem.weight, base * 1e-6) if weighted.any() else base
    dx, dy, left = residuals(problem._replace(weight=start), terms)
    _huber(dx, dy, left, base)
    return base


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _huber(dx: np.ndarray, dy: np.ndarray, left: np.ndarray, base: np.ndarray) -> None:
    """Lowers the weights of large residuals, in place."""
    for m in range(base.size):
        t = np.sqrt((dx[m] ** 2 + dy[m] ** 2) * base[m] / 2 / left[m])
        if t > REJECT and t < np.inf:
            base[m] = 0.0
        elif t > HUBER and t < np.inf:
            base[m] *= HUBER / t


def noise_floor(problem: Problem, terms: np.ndarray, errors: np.ndarray) -> Arcsec:
    """The error to add to the photon errors so that the residuals of the better measured half are what they say."""
    dx, dy, left = residuals(problem, terms)
    use = problem.weight > 0
    if use.sum() < 20:
        return 0.003
    use &= errors <= np.median(errors[use])
    some = np.flatnonzero(use)
    some = some[:: max(1, len(some) // ENOUGH)]
    r2, e2 = (dx[some] ** 2 + dy[some] ** 2) / left[some], errors[some]
    low, high = 1e-5, 0.1
    for _ in range(40):
        middle = np.sqrt(low * high)
        low, high = (
            (middle, high) if np.median(r2 / (e2 + middle**2)) > MEDIAN_CHI2 else (low, middle)
        )
    return float(high)


def quality(state: State) -> list[tuple[int, float]]:
    """For each frame, its shared sources in use, and their weighted rms per axis (mas; NaN for none)."""
    dx, dy, _ = residuals(state.problem, state.terms)
    use = state.shared & (state.problem.weight > 0)
    w = np.where(use, state.problem.weight, 0.0)
    r2 = w * np.where(use, dx**2 + dy**2, 0.0)
    out = []
    for f in range(len(state.active)):
        i = rows_of(state.problem, f)
        n, total = int(np.count_nonzero(use[i])), w[i].sum()
        out.append((n, MAS * float(np.sqrt(r2[i].sum() / (2 * total))) if n else float("nan")))
    return out


def star_flux(frames: Sequence[Measurements], state: State) -> np.ndarray:
    """Mean flux of each star over the frames in use (NaN where none)."""
    flux = np.concatenate([f.flux for f in frames]).astype(float)
    seen = state.problem.weight > 0
    number = np.bincount(state.problem.star[seen], minlength=state.problem.stars)
    total = np.bincount(state.problem.star[seen], flux[seen], minlength=state.problem.stars)
    return np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0)
