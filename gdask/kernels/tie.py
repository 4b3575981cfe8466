"""Moving a whole group of frames as one: its origin from the frames' own headers, or from a reference catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gdask.kernels.associate import WIDE, WIDE_ROTATIONS, Measurements, pull_back, to_common
from gdask.kernels.geometry import tangent_plane
from gdask.kernels.joint import Problem
from gdask.kernels.match import apply_shift, find_shift, match_pairs
from gdask.kernels.terms import LEVELS, TERMS, cross_validate, displace, fit_terms
from gdask.types import Arcsec, Degrees

#: Stars that each level of LEVELS needs (shift, rotation, linear, quadratic, cubic).
NEEDED = (4, 8, 20, 40, 80)
#: Residuals beyond this many sigma of themselves (or of the stated errors, if larger) are left out.
REJECT, ROUNDS, FOLDS = 4.0, 6, 5


class Reference(NamedTuple):
    """A catalogue: ra, dec (degrees), error (arcsec per axis) and flux (any unit, larger is brighter) of each star."""

    ra: np.ndarray
    dec: np.ndarray
    error: np.ndarray
    flux: np.ndarray


class Tie(NamedTuple):
    """How the group was tied to the catalogue: stars, weighted rms per axis (mas), terms; ok False: it was not."""

    n: int
    rms: float
    terms: int
    ok: bool
    reason: str


def allowed(number: int, most: int) -> int:
    """Terms, of LEVELS and at most `most`, that `number` stars support; 0 where they support nothing."""
    fit = [n for n, needed in zip(LEVELS, NEEDED, strict=True) if number >= needed and n <= most]
    return fit[-1] if fit else 0


def compose(
    frames: Sequence[Measurements], problem: Problem, terms: np.ndarray, centre: tuple[Degrees, Degrees],
    move: np.ndarray,
) -> np.ndarray:
    """The frames' terms after a further displacement of the common plane by the 20 terms `move` about its centre.

    Fitted on a 9x9 grid over each frame: exact to a nano-arcsecond, as cubics of small cubics are.
    """
    out = terms.copy()
    for f, frame in enumerate(frames):
        gx, gy = np.meshgrid(*(
            np.linspace(v.min(initial=-30), v.max(initial=30), 9) for v in (np.asarray(frame.x), np.asarray(frame.y))
        ))
        gx, gy = gx.ravel(), gy.ravel()
        p, q = to_common(frame, gx, gy, centre)
        dx, dy = displace(gx, gy, terms[f])
        c, s = problem.cosine[f], problem.sine[f]
        u, v = displace(p + c * dx - s * dy, q + s * dx + c * dy, move)
        back = pull_back(problem, f, u, v)
        out[f] += fit_terms(gx, gy, *back, np.ones(len(gx)), TERMS, np.full(TERMS, 1e-12))
    return out


def _mean_of_most(values: np.ndarray, tolerance: float) -> float:
    """Mean of the values near their median: a frame with a wrong pointing does not move the group."""
    off = np.abs(values - np.median(values))
    return float(values[off <= max(4 * 1.4826 * np.median(off), tolerance)].mean())


def centre_on_headers(
    frames: Sequence[Measurements], problem: Problem, terms: np.ndarray, active: np.ndarray,
    centre: tuple[Degrees, Degrees],
) -> np.ndarray:
    """Make the mean rotation, scale and then shift of the frames zero: the headers are right on average (outliers
    beyond 4 sigma do not count; agreement to 0.05 arcsec, at 60 arcsec from the pointing for rotation, always does)."""
    use = active > 0
    if not use.any():
        return terms
    move = np.zeros(TERMS)
    move[2], move[3] = -_mean_of_most(terms[use, 2], 0.05), -_mean_of_most(terms[use, 3], 0.05)
    terms = compose(frames, problem, terms, centre, move)
    east = problem.cosine * terms[:, 0] - problem.sine * terms[:, 1]
    north = problem.sine * terms[:, 0] + problem.cosine * terms[:, 1]
    move = np.zeros(TERMS)
    move[0], move[1] = -_mean_of_most(east[use], 0.05), -_mean_of_most(north[use], 0.05)
    return compose(frames, problem, terms, centre, move)


def tie_to(
    reference: Reference, x: np.ndarray, y: np.ndarray, error: np.ndarray, flux: np.ndarray,
    centre: tuple[Degrees, Degrees], search: Arcsec, radius: Arcsec, prior: np.ndarray,
) -> tuple[np.ndarray, Tie]:
    """The terms that move star positions (x, y about the centre, with errors, arcsec) onto the catalogue."""
    xr, yr = tangent_plane(reference.ra, reference.dec, *centre)
    start = find_shift(xr, yr, np.asarray(reference.flux, float), x, y, flux, search)
    if not start.ok:
        start = find_shift(xr, yr, np.asarray(reference.flux, float), x, y, flux, WIDE, rotations=WIDE_ROTATIONS)
    if not start.ok:
        return np.zeros(TERMS), Tie(0, float("nan"), 0, False, start.reason)
    u, v = apply_shift(start, x, y)
    free = np.full(TERMS, 1e-9)
    move = fit_terms(x, y, u - x, v - y, np.ones(len(x)), 4, free)
    count, rms, n = 0, float("nan"), 0
    for step in range(ROUNDS):
        u, v = displace(x, y, move)
        ia, ib = match_pairs(xr, yr, x + u, y + v, radius)
        dx, dy = xr[ia] - x[ib], yr[ia] - y[ib]
        r = np.hypot(dx - u[ib], dy - v[ib]) / np.sqrt(2)
        sigma2 = np.square(np.asarray(reference.error, float)[ia]) + np.square(error[ib])
        spread = max(1.2 * float(np.median(r)), 1e-6) if len(r) else 1.0
        weight = np.where(r <= REJECT * np.maximum(spread, np.sqrt(sigma2)), 1 / np.maximum(sigma2, 1e-8), 0.0)
        n = int(np.count_nonzero(weight))
        count = allowed(n, 6 if step < 2 else TERMS)
        if not count:
            return np.zeros(TERMS), Tie(n, float("nan"), 0, False, f"only {n} stars match the catalogue")
        if step == ROUNDS - 2 and n >= 2 * FOLDS:
            counts = tuple(c for c in LEVELS if c <= count)
            chi2 = cross_validate(x[ib], y[ib], dx, dy, weight, np.arange(len(ib)) % FOLDS, counts, prior)
            count = counts[int(np.argmin(chi2 + np.array(counts)))]
        move = fit_terms(x[ib], y[ib], dx, dy, weight, count, prior)
        rms = 1000 * float(np.sqrt((weight * r**2).sum() / weight.sum()))
        if step == ROUNDS - 2:
            break
    return move, Tie(n, rms, count, True, "")
