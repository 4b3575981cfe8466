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

from gdask.kernels.astrometry.array_terms import groups_of, refit
from gdask.kernels.astrometry.distortion_terms import LEVELS, cross_validate, prior_weights
from gdask.kernels.astrometry.few_stars import Stars, place_sparse
from gdask.kernels.astrometry.joint_fit import (
    Problem,
    positions,
    solve_frames,
    star_means,
    turned_back,
)
from gdask.kernels.astrometry.moving_sources import moving_sources
from gdask.kernels.astrometry.reference_tie import (
    Reference,
    allowed,
    centre_on_headers,
    compose,
    tie_to,
)
from gdask.kernels.astrometry.residuals import (
    MAS,
    State,
    narrowed_radius,
    noise_floor,
    quality,
    residuals,
    robust_weights,
    star_flux,
)
from gdask.kernels.astrometry.solution import Solution, for_all_sources, report
from gdask.kernels.astrometry.star_association import (
    Measurements,
    brightness,
    centre_of,
    first_shifts,
    number_stars,
    pull_back,
    rows_of,
    set_up,
    with_outlines,
)
from gdask.model import GdaskError
from gdask.types import Arcsec

#: Terms that each order allows at most.
MOST = {0: 2, 1: 6, 2: 12, 3: 20}
PASSES, ROUNDS, FOLDS = 4, 2, 5
#: How a reason begins that more stars or another place would not mend.
RESIDUALS = "residuals"


def solve(
    frames: Sequence[Measurements],
    *,
    order: int = 3,
    prior: Arcsec = 0.01,
    search: Arcsec = 3.0,
    match_radius: Arcsec = 0.2,
    max_rms: Arcsec = 0.05,
    reference: Reference | None = None,
    untrusted: Sequence[str] = (),
) -> Solution:
    """Solve star positions and the corrections of all frames together.

    order: of the correction polynomial, at most (0..3); prior: expected size (arcsec, at 60 arcsec from the pointing)
    of a frame's own distortion terms; search: how far (arcsec) header pointings may be off before a blind search
    (30 arcsec, 2 degrees) starts; match_radius: how far matched sources may lie apart after the first shift; a frame
    whose weighted rms exceeds max_rms (arcsec) is set aside. Frames with too few stars for a pattern are shifted by
    those they have, or keep their header's pointing (`sparse.place_sparse`); untrusted: per frame, why that must not
    be ('' or nothing: it may). A single frame keeps its header's pointing, or is tied to the reference.
    """
    if not frames or not 0 <= order <= 3:
        raise GdaskError(
            f"astrometric solution: {len(frames)} frames, order {order}; expected frames and order 0..3"
        )
    frames = with_outlines(frames)
    centre = centre_of(frames)
    moving = moving_sources(frames, set_up(frames, centre), match_radius)
    used = [_some(frame, good) for frame, good in zip(frames, _split(frames, moving), strict=True)]
    solver = _Solver(
        set_up(used, centre), used, order, prior_weights(prior), search, match_radius, max_rms
    )
    state, reasons, contrast = _by_patterns(solver)
    few, by_header = np.zeros((2, len(frames)), bool)
    if len(frames) > 1 and any(reasons):
        state, few, by_header = _by_few_stars(
            solver, state, reasons, untrusted or [""] * len(frames)
        )
    terms = centre_on_headers(used, state.problem, state.terms, state.active, centre)
    terms[by_header] = 0.0
    tie = None
    if reference is not None:
        x, y, total = star_means(state.problem, *positions(state.problem, terms))
        good = total > 0
        flux = star_flux(used, state)
        move, tie = tie_to(
            reference,
            x[good],
            y[good],
            1 / np.sqrt(total[good]),
            flux[good],
            centre,
            search,
            match_radius,
            solver.prior,
        )
        terms = compose(used, state.problem, terms, centre, move)
    solution = report(
        used,
        state._replace(terms=terms),
        centre,
        contrast,
        reasons,
        tie,
        (few, by_header),
        solver.prior,
    )
    fits = zip(solution.frames, _split(frames, moving), strict=True)
    return solution._replace(frames=tuple(for_all_sources(fit, good) for fit, good in fits))


class _Solver(NamedTuple):
    problem: Problem
    frames: list[Measurements]
    order: int
    prior: np.ndarray
    search: Arcsec
    match_radius: Arcsec
    max_rms: Arcsec


def _split(frames: Sequence[Measurements], values: np.ndarray) -> list[np.ndarray]:
    return np.split(values, np.cumsum([len(f.x) for f in frames])[:-1])


def _some(frame: Measurements, good: np.ndarray) -> Measurements:
    """A frame's measurements without those that are not good."""
    if good.all():
        return frame
    names = (
        "x",
        "y",
        "ex",
        "ey",
        "flux",
        "array",
        *(("signal",) if frame.signal is not None else ()),
    )
    return frame._replace(**{name: np.asarray(getattr(frame, name))[good] for name in names})


def _errors(frames: Sequence[Measurements]) -> np.ndarray:
    """Variance per axis of each measurement (arcsec^2)."""
    return np.concatenate([(np.square(f.ex) + np.square(f.ey)) / 2 for f in frames]).astype(float)


def _by_patterns(solver: _Solver) -> tuple[State, list[str], tuple[float, ...]]:
    """Frames with stars enough to be recognised by their pattern; why others are not (''), contrast of the match."""
    count = len(solver.frames)
    found = first_shifts(solver.problem, solver.frames, solver.search, solver.match_radius)
    reasons = list(found.reason)
    state = State(
        solver.problem,
        found.terms,
        np.zeros(count, np.int64),
        np.zeros(len(solver.problem.x), bool),
        0.003,
    )
    state = state._replace(arrays=groups_of(solver.frames))
    return _passes(solver, state, reasons, np.zeros(count, bool), 0), reasons, found.contrast


def _by_few_stars(
    solver: _Solver, state: State, reasons: list[str], untrusted: Sequence[str]
) -> tuple[State, np.ndarray, np.ndarray]:
    """Place the other frames by few stars or by their headers; edits reasons. Which are placed in which of these ways."""
    frames = [frame._replace(flux=brightness(frame)) for frame in solver.frames]
    state = state._replace(
        terms=centre_on_headers(
            frames, state.problem, state.terms, state.active, solver.problem.centre
        )
    )
    patterned = np.array([not reason for reason in reasons])
    settled = patterned | [reason.startswith(RESIDUALS) for reason in reasons]
    x, y, total = star_means(state.problem, *positions(state.problem, state.terms))
    good = total > 0 if patterned.any() else np.zeros(len(total), bool)
    seen = np.bincount(state.problem.star[state.problem.weight > 0], minlength=len(total))
    known = Stars(x[good], y[good], star_flux(frames, state)[good], seen[good])
    where = place_sparse(
        frames,
        solver.problem,
        known,
        settled,
        reasons,
        untrusted,
        solver.search,
        solver.match_radius,
    )
    few, by_header = np.zeros((2, len(frames)), bool)
    terms = state.terms.copy()
    for f in np.flatnonzero(~settled):
        reasons[f] = where[f].reason
        if not where[f].reason:
            few[f], by_header[f] = where[f].n > 0, where[f].n == 0
            terms[f] = 0.0
            terms[f, :2] = pull_back(state.problem, f, *np.array([where[f].dx, where[f].dy]))
    state = state._replace(terms=terms)
    if few.any():
        out = [
            reason or ("by its header" if kept else "")
            for reason, kept in zip(reasons, by_header, strict=True)
        ]
        state = _passes(solver, state, out, few, PASSES - 2)
        reasons[:] = ["" if kept else reason for reason, kept in zip(out, by_header, strict=True)]
    return state, few, by_header


def _passes(
    solver: _Solver, state: State, reasons: list[str], few: np.ndarray, first: int
) -> State:
    """Passes from number `first`; frames that fail leave, with their reasons (edited). few: frames to be shifted only."""
    errors, passed, fresh = _errors(solver.frames), first, True
    while passed < PASSES:
        use = np.array([not r for r in reasons])
        state = _pass(solver, state, errors, use, few, passed, fresh)
        passed, fresh = passed + 1, False
        if passed >= 2 and len(use) > 1 and _gate(state, reasons, solver.max_rms):
            passed = min(passed, PASSES - 2)
    return state


def _pass(
    solver: _Solver,
    state: State,
    errors: np.ndarray,
    use: np.ndarray,
    few: np.ndarray,
    passed: int,
    fresh: bool,
) -> State:
    """Number the stars anew, choose terms, then alternate robust weights and the solution."""
    xi, eta = positions(state.problem, state.terms)
    known = star_means(state.problem, xi, eta)[:2] if passed else (np.zeros(0), np.zeros(0))
    radius = solver.match_radius if fresh else narrowed_radius(state, xi, eta, solver.match_radius)
    problem = number_stars(state.problem, xi, eta, use, known, radius)
    seen = use[problem.frame]
    count = np.bincount(problem.star[seen], minlength=problem.stars)
    shared = seen & (count[problem.star] >= 2)
    number = np.bincount(problem.frame[shared], minlength=len(use))
    most = MOST[solver.order] if passed else min(MOST[solver.order], 6)
    active = np.array(
        [allowed(n, most) if u else 0 for n, u in zip(number, use, strict=True)], np.int64
    )
    active[few] = np.where(use[few] & (number[few] > 0), LEVELS[0], 0)
    floor, terms, arrays = state.floor, state.terms, state.arrays
    if passed >= 2:
        weight = robust_weights(problem, terms, errors, shared, floor)
        active = _validated(problem._replace(weight=weight), terms, active, solver.prior)
    for _ in range(ROUNDS if arrays is None or not arrays.values.any() else 4 * ROUNDS):
        weight = robust_weights(problem, terms, errors, shared, floor)
        problem = problem._replace(weight=weight)
        how_far = {"settled": 0.01} if passed < 2 else {}
        terms, _steps = solve_frames(
            _at_stars(problem, terms), terms, active, solver.prior, **how_far
        )
        if passed >= 2 and arrays is not None:
            problem, arrays = refit(problem, terms, arrays)
        floor = noise_floor(problem, terms, errors)
    weight = robust_weights(problem, terms, errors, shared, floor)
    final = np.where(shared, weight, np.where(seen, 1 / (errors + floor**2), 0))
    return State(problem._replace(weight=final), terms, active, shared, floor, arrays)


def _at_stars(problem: Problem, terms: np.ndarray) -> Problem:
    """The problem with its terms taken where the stars are, not where each noisy measurement puts them.

    With the measured places a common shrinking would lower chi-square, as it shrinks the noise too, and the solution
    would collapse; with the stars' places no change that is common to all frames alters chi-square to first order.
    """
    dx, dy, _ = residuals(problem, terms)
    off = ~((problem.weight > 0) & np.isfinite(dx))
    dx[off] = dy[off] = 0.0
    turned_back(problem, dx, dy)
    return problem._replace(x=problem.x - dx, y=problem.y - dy)


def _validated(
    problem: Problem, terms: np.ndarray, active: np.ndarray, prior: np.ndarray
) -> np.ndarray:
    """Per frame, the number of terms that best predicts the stars it was not fitted to: positions from the other
    frames alone, in five folds of stars; each term costs one unit of chi-square, so that chance does not choose it."""
    xi, eta = positions(problem, terms)
    sx, sy, total = star_means(problem, xi, eta)
    w, whole = problem.weight, total[problem.star]
    out = active.copy()
    for f in map(int, np.flatnonzero(active > LEVELS[0])):
        i = rows_of(problem, f)
        i = i[(w[i] > 0) & (whole[i] > 1.000001 * w[i])]
        s, rest = problem.star[i], whole[i] - w[i]
        ox, oy = (whole[i] * sx[s] - w[i] * xi[i]) / rest, (whole[i] * sy[s] - w[i] * eta[i]) / rest
        dx, dy = pull_back(problem, f, ox - problem.p[i], oy - problem.q[i])
        counts = tuple(n for n in LEVELS if n <= active[f])
        weight = 1 / (1 / w[i] + 1 / rest)
        if len(i) >= 2 * FOLDS:
            chi2 = cross_validate(
                problem.x[i], problem.y[i], dx, dy, weight, s % FOLDS, counts, prior
            )
            out[f] = counts[int(np.argmin(chi2 + np.array(counts)))]
    return out


def _gate(state: State, reasons: list[str], max_rms: Arcsec) -> bool:
    """Set aside frames that fail; True if any newly did. Edits reasons."""
    changed, measured = False, quality(state)
    for f, reason in enumerate(reasons):
        if reason:
            continue
        n, rms = measured[f]
        if not state.active[f]:
            reasons[f] = f"only {n} sources are shared with other frames (at least 4)"
        elif rms > MAS * max_rms:
            reasons[f] = (
                f"{RESIDUALS} of {rms:.1f} mas from {n} shared sources exceed {MAS * max_rms:g} mas"
            )
        changed |= bool(reasons[f])
    return changed
