"""The joint astrometric solution of all frames of a target, and its tie to a reference catalogue.

Fitting each frame to the first one leaves the first frame's own distortion in the stack. Here star positions and the
corrections of all frames come from one least-squares problem; only differences between frames are measurable, so the
mean correction over the frames is zero, and what remains is the mean of the frames' true distortions: the distortion
of one frame over the square root of their number. A reference catalogue, where given, then ties the whole group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gdask.kernels.associate import Measurements, centre_of, first_shifts, number_stars, pull_back, set_up
from gdask.kernels.geometry import tangent_sky
from gdask.kernels.joint import (
    LEVELS,
    ORDER,
    Problem,
    cross_validate,
    positions,
    prior_weights,
    solve_frames,
    star_means,
    to_polynomials,
)
from gdask.kernels.tie import Reference, Tie, allowed, centre_on_headers, compose, tie_to
from gdask.model import GdaskError
from gdask.types import Arcsec, Degrees

#: Terms that each order allows at most.
MOST = {0: 2, 1: 6, 2: 12, 3: 20}
#: Huber's limit and the rejection limit, in sigma of a two-dimensional residual.
HUBER, REJECT = 3.0, 7.0
#: Median of chi-square with two degrees of freedom.
MEDIAN_CHI2 = 1.386
PASSES, ROUNDS, FOLDS = 4, 2, 5
MAS = 1000.0

STARS = np.dtype([(n, "f8") for n in ("ra", "dec", "x", "y", "error", "flux")] + [("n", "i4")])


class FrameFit(NamedTuple):
    """One frame's correction and how it was reached. correction_x, correction_y: ten coefficients each (arcsec), as
    `geometry.Geometry` takes them; terms and order in use; n: sources that other frames share; rms: weighted residual
    per axis (mas); shift: what the header's pointing was off by, East and North (arcsec); star: row of each source in
    the star list (-1 where the frame was left out); residual_x, residual_y: measured minus star, East and North
    (arcsec). ok False: set aside, for the reason given."""

    name: str
    correction_x: tuple[float, ...]
    correction_y: tuple[float, ...]
    order: int
    terms: int
    n: int
    rms: float
    shift: tuple[Arcsec, Arcsec]
    contrast: float
    ok: bool
    reason: str
    star: np.ndarray
    residual_x: np.ndarray
    residual_y: np.ndarray


class Solution(NamedTuple):
    """Stars (dtype STARS: ra, dec in degrees; x, y about the centre, error per axis, in arcsec; mean flux; number of
    frames), one FrameFit per input, the error beyond photon noise that the residuals show (mas), the tie or None."""

    ra: Degrees
    dec: Degrees
    stars: np.ndarray
    frames: tuple[FrameFit, ...]
    floor: float
    tie: Tie | None


class _State(NamedTuple):
    problem: Problem
    terms: np.ndarray
    active: np.ndarray
    shared: np.ndarray
    floor: Arcsec


def solve(
    frames: Sequence[Measurements], *, order: int = 3, prior: Arcsec = 0.01, search: Arcsec = 3.0,
    match_radius: Arcsec = 0.2, max_rms: Arcsec = 0.05, reference: Reference | None = None,
) -> Solution:
    """Solve star positions and the corrections of all frames together.

    order: of the correction polynomial, at most (0..3); prior: expected size (arcsec, at 60 arcsec from the pointing)
    of a frame's own distortion terms; search: how far (arcsec) header pointings may be off before a blind search
    (30 arcsec, 2 degrees) starts; match_radius: how far matched sources may lie apart after the first shift; a frame
    whose weighted rms exceeds max_rms (arcsec), or that shares fewer than 4 stars, is set aside. A single frame keeps
    its header's pointing, or is tied to the reference.
    """
    if not frames or not 0 <= order <= 3:
        raise GdaskError(f"astrometric solution: {len(frames)} frames, order {order}; expected frames and order 0..3")
    centre = centre_of(frames)
    problem = set_up(frames, centre)
    found = first_shifts(problem, frames, search, match_radius)
    errors = np.concatenate([(np.square(f.ex) + np.square(f.ey)) / 2 for f in frames]).astype(float)
    reasons = list(found.reason)
    state = _State(problem, found.terms, np.zeros(len(frames), np.int64), np.zeros(len(errors), bool), 0.003)
    weights = prior_weights(prior)
    passed = 0
    while passed < PASSES:
        use = np.array([not r for r in reasons])
        state = _pass(state, errors, use, order, weights, match_radius, passed)
        passed += 1
        if passed >= 2 and len(frames) > 1 and _gate(state, reasons, max_rms):
            passed = min(passed, PASSES - 2)
    terms = centre_on_headers(frames, state.problem, state.terms, state.active, centre)
    tie = None
    if reference is not None:
        x, y, total = star_means(state.problem, *positions(state.problem, terms))
        good = total > 0
        flux = _star_flux(frames, state)
        move, tie = tie_to(
            reference, x[good], y[good], 1 / np.sqrt(total[good]), flux[good], centre, search, match_radius, weights
        )
        terms = compose(frames, state.problem, terms, centre, move)
    return _report(frames, state._replace(terms=terms), centre, found.contrast, reasons, tie)


def _pass(
    state: _State, errors: np.ndarray, use: np.ndarray, order: int, prior: np.ndarray, match_radius: Arcsec, passed: int
) -> _State:
    """Number the stars anew, choose terms, then alternate robust weights and the solution."""
    xi, eta = positions(state.problem, state.terms)
    known = star_means(state.problem, xi, eta)[:2] if passed else (np.zeros(0), np.zeros(0))
    radius = match_radius if passed == 0 else _match_radius(state, xi, eta, match_radius)
    problem = number_stars(state.problem, xi, eta, use, known, radius)
    seen = use[problem.frame]
    count = np.bincount(problem.star[seen], minlength=problem.stars)
    shared = seen & (count[problem.star] >= 2)
    number = np.bincount(problem.frame[shared], minlength=len(use))
    most = MOST[order] if passed else min(MOST[order], 6)
    active = np.array([allowed(n, most) if u else 0 for n, u in zip(number, use, strict=True)], np.int64)
    floor, terms = state.floor, state.terms
    if passed >= 2:
        weight = _robust(problem, terms, errors, shared, floor)
        active = _validated(problem._replace(weight=weight), terms, active, prior)
    for _ in range(ROUNDS):
        weight = _robust(problem, terms, errors, shared, floor)
        problem = problem._replace(weight=weight)
        terms, _steps = solve_frames(_at_stars(problem, terms), terms, active, prior)
        floor = _floor(problem, terms, errors)
    final = np.where(shared, _robust(problem, terms, errors, shared, floor), np.where(seen, 1 / (errors + floor**2), 0))
    return _State(problem._replace(weight=final), terms, active, shared, floor)


def _at_stars(problem: Problem, terms: np.ndarray) -> Problem:
    """The problem with its terms taken where the stars are, not where each noisy measurement puts them.

    With the measured places a common shrinking would lower chi-square, as it shrinks the noise too, and the solution
    would collapse; with the stars' places no change that is common to all frames alters chi-square to first order.
    """
    dx, dy, _ = _residuals(problem, terms)
    c, s = problem.cosine[problem.frame], problem.sine[problem.frame]
    known = (problem.weight > 0) & np.isfinite(dx)
    dx, dy = np.where(known, dx, 0.0), np.where(known, dy, 0.0)
    return problem._replace(x=problem.x - (c * dx + s * dy), y=problem.y - (c * dy - s * dx))


def _residuals(problem: Problem, terms: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measured minus star (common plane, arcsec), and the share of the variance that the star's mean leaves."""
    xi, eta = positions(problem, terms)
    sx, sy, total = star_means(problem, xi, eta)
    whole = total[problem.star]
    left = 1 - np.divide(problem.weight, whole, out=np.zeros_like(whole), where=whole > 0)
    return xi - sx[problem.star], eta - sy[problem.star], np.maximum(left, 0.02)


def _match_radius(state: _State, xi: np.ndarray, eta: np.ndarray, widest: Arcsec) -> Arcsec:
    """Six times the median scatter of shared sources, at least 0.03 arcsec, at most the first radius."""
    dx, dy, _ = _residuals(state.problem, state.terms)
    r = np.hypot(dx, dy)[state.shared]
    r = r[np.isfinite(r)]
    return float(np.clip(6 * np.median(r), 0.03, widest)) if len(r) else widest


def _robust(problem: Problem, terms: np.ndarray, errors: np.ndarray, shared: np.ndarray, floor: Arcsec) -> np.ndarray:
    """Huber weights about the present solution; beyond REJECT sigma nothing."""
    base = np.where(shared, 1 / (errors + floor**2), 0.0)
    start = np.where(problem.weight > 0, problem.weight, base * 1e-6) if (problem.weight > 0).any() else base
    dx, dy, left = _residuals(problem._replace(weight=np.where(shared, start, 0.0)), terms)
    t = np.sqrt((dx**2 + dy**2) * base / 2 / left)
    t = np.where(np.isfinite(t), t, 0.0)
    return np.where(t > REJECT, 0.0, base * np.minimum(1.0, HUBER / np.maximum(t, 1e-9)))


def _floor(problem: Problem, terms: np.ndarray, errors: np.ndarray) -> Arcsec:
    """The error to add to the photon errors so that the residuals of the better measured half are what they say."""
    dx, dy, left = _residuals(problem, terms)
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


def _validated(problem: Problem, terms: np.ndarray, active: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Per frame, the number of terms that best predicts the stars it was not fitted to: positions from the other
    frames alone, in five folds of stars; each term costs one unit of chi-square, so that chance does not choose it."""
    xi, eta = positions(problem, terms)
    sx, sy, total = star_means(problem, xi, eta)
    w, whole = problem.weight, total[problem.star]
    out = active.copy()
    for f in map(int, np.flatnonzero(active > LEVELS[0])):
        i = np.flatnonzero((problem.frame == f) & (w > 0) & (whole > 1.000001 * w))
        s, rest = problem.star[i], whole[i] - w[i]
        ox, oy = (whole[i] * sx[s] - w[i] * xi[i]) / rest, (whole[i] * sy[s] - w[i] * eta[i]) / rest
        dx, dy = pull_back(problem, f, ox - problem.p[i], oy - problem.q[i])
        counts = tuple(n for n in LEVELS if n <= active[f])
        weight = 1 / (1 / w[i] + 1 / rest)
        if len(i) >= 2 * FOLDS:
            chi2 = cross_validate(problem.x[i], problem.y[i], dx, dy, weight, s % FOLDS, counts, prior)
            out[f] = counts[int(np.argmin(chi2 + np.array(counts)))]
    return out


def _gate(state: _State, reasons: list[str], max_rms: Arcsec) -> bool:
    """Set aside frames that fail; True if any newly did. Edits reasons."""
    changed = False
    for f, reason in enumerate(reasons):
        if reason:
            continue
        n, rms = _quality(state, f)
        if not state.active[f]:
            reasons[f] = f"only {n} sources are shared with other frames (at least 4)"
        elif rms > MAS * max_rms:
            reasons[f] = f"residuals of {rms:.1f} mas from {n} shared sources exceed {MAS * max_rms:g} mas"
        changed |= bool(reasons[f])
    return changed


def _quality(state: _State, f: int) -> tuple[int, float]:
    """Shared sources in use, and their weighted rms per axis (mas)."""
    i = np.flatnonzero((state.problem.frame == f) & state.shared & (state.problem.weight > 0))
    if not len(i):
        return 0, float("nan")
    dx, dy, _ = _residuals(state.problem, state.terms)
    w = state.problem.weight[i]
    return len(i), MAS * float(np.sqrt((w * (dx[i] ** 2 + dy[i] ** 2)).sum() / (2 * w.sum())))


def _star_flux(frames: Sequence[Measurements], state: _State) -> np.ndarray:
    """Mean flux of each star over the frames in use (NaN where none)."""
    flux = np.concatenate([f.flux for f in frames]).astype(float)
    seen = state.problem.weight > 0
    number = np.bincount(state.problem.star[seen], minlength=state.problem.stars)
    total = np.bincount(state.problem.star[seen], flux[seen], minlength=state.problem.stars)
    return np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0)


def _report(
    frames: Sequence[Measurements], state: _State, centre: tuple[Degrees, Degrees], contrast: Sequence[float],
    reasons: list[str], tie: Tie | None,
) -> Solution:
    problem = state.problem
    xi, eta = positions(problem, state.terms)
    x, y, total = star_means(problem, xi, eta)
    stars = np.zeros(problem.stars, STARS)
    stars["ra"], stars["dec"] = tangent_sky(x, y, *centre)
    stars["x"], stars["y"], stars["flux"] = x, y, _star_flux(frames, state)
    stars["error"] = 1 / np.sqrt(np.where(total > 0, total, np.nan))
    stars["n"] = np.bincount(problem.star[problem.weight > 0], minlength=problem.stars)
    fits = []
    for f, frame in enumerate(frames):
        i = np.flatnonzero(problem.frame == f)
        ok, terms, count = not reasons[f], state.terms[f], int(state.active[f])
        n, rms = _quality(state, f)
        shift = (problem.cosine[f] * terms[0] - problem.sine[f] * terms[1],
                 problem.sine[f] * terms[0] + problem.cosine[f] * terms[1])
        cx, cy = to_polynomials(terms)
        fits.append(FrameFit(
            frame.name, cx, cy, ORDER.get(count, 0), count, n, rms, (float(shift[0]), float(shift[1])), contrast[f], ok,
            reasons[f], np.where(ok, problem.star[i], -1), xi[i] - x[problem.star[i]], eta[i] - y[problem.star[i]],
        ))
    return Solution(*centre, stars, tuple(fits), MAS * state.floor, tie)
