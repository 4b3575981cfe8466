"""The state of a joint astrometric solution, its residuals, and the weights that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gdask.kernels.associate import Measurements, rows_of
from gdask.kernels.joint import Problem, positions, star_means
from gdask.types import Arcsec

#: Huber's limit and the rejection limit, in sigma of a two-dimensional residual.
HUBER, REJECT = 3.0, 7.0
#: Median of chi-square with two degrees of freedom.
MEDIAN_CHI2 = 1.386
MAS = 1000.0


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
    sx, sy, total = star_means(problem, xi, eta)
    whole = total[problem.star]
    left = 1 - np.divide(problem.weight, whole, out=np.zeros_like(whole), where=whole > 0)
    return xi - sx[problem.star], eta - sy[problem.star], np.maximum(left, 0.02)


def narrowed_radius(state: State, xi: np.ndarray, eta: np.ndarray, widest: Arcsec) -> Arcsec:
    """Six times the median scatter of shared sources, at least 0.03 arcsec, at most the first radius."""
    dx, dy, _ = residuals(state.problem, state.terms)
    r = np.hypot(dx, dy)[state.shared]
    r = r[np.isfinite(r)]
    return float(np.clip(6 * np.median(r), 0.03, widest)) if len(r) else widest


def robust_weights(problem: Problem, terms: np.ndarray, errors: np.ndarray, shared: np.ndarray, floor: Arcsec) -> np.ndarray:
    """Huber weights about the present solution; beyond REJECT sigma nothing."""
    base = np.where(shared, 1 / (errors + floor**2), 0.0)
    start = np.where(problem.weight > 0, problem.weight, base * 1e-6) if (problem.weight > 0).any() else base
    dx, dy, left = residuals(problem._replace(weight=np.where(shared, start, 0.0)), terms)
    t = np.sqrt((dx**2 + dy**2) * base / 2 / left)
    t = np.where(np.isfinite(t), t, 0.0)
    return np.where(t > REJECT, 0.0, base * np.minimum(1.0, HUBER / np.maximum(t, 1e-9)))


def noise_floor(problem: Problem, terms: np.ndarray, errors: np.ndarray) -> Arcsec:
    """The error to add to the photon errors so that the residuals of the better measured half are what they say."""
    dx, dy, left = residuals(problem, terms)
    use = problem.weight > 0
    if use.sum() < 20:
        return 0.003
    use &= errors <= np.median(errors[use])
    r2, e2 = ((dx**2 + dy**2) / left)[use], errors[use]
    low, high = 1e-5, 0.1
    for _ in range(40):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if np.median(r2 / (e2 + middle**2)) > MEDIAN_CHI2 else (low, middle)
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
