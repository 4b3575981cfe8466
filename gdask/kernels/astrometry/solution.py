"""The joint astrometric solution of all frames of a target, and its tie to a reference catalogue.

Fitting each frame to the first one leaves the first frame's own distortion in the stack. Here star
positions and the corrections of all frames come from one least-squares problem; only differences
between frames are measurable, so the mean correction over the frames is zero, and what remains is
the mean of the frames' true distortions: the distortion of one frame over the square root of their
number. A reference catalogue, where given, then ties the whole group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gdask.kernels.astrometry.association import number_stars
from gdask.kernels.astrometry.catalogue_tie import Reference, ReferenceTie
from gdask.kernels.astrometry.few_stars import HEADER_ERROR
from gdask.kernels.astrometry.groups import (
    apart,
    first_shifts,
    flag_real_sources,
    groups_on_headers,
    linked_groups,
    with_outlines,
)
from gdask.kernels.astrometry.joint_fit import (
    corrected_positions,
    fit_frames,
    predictive_counts,
    star_means,
    supported_terms,
)
from gdask.kernels.astrometry.measured_stars import (
    ORDER_OF_COUNT,
    TERM_COUNTS,
    TERMS,
    Measurements,
    Polynomials,
    Problem,
    by_frame,
    common_vectors,
    displace,
    frame_rows,
    good_sources,
    joint_problem,
    mean_flux,
    median_pointing,
    normal_matrices,
    prior_weights,
    solve_leading,
    to_polynomials,
)
from gdask.kernels.astrometry.placing import (
    RESIDUALS_REASON,
    Placed,
    place_sparse_frames,
    tie_groups,
)
from gdask.kernels.astrometry.residuals import (
    DEFAULT_FLOOR,
    MAS,
    FitState,
    array_corrections,
    array_groups,
    at_stars,
    frame_quality,
    narrowed_radius,
    noise_floor,
    refit_arrays,
    residuals,
    robust_weights,
)
from gdask.kernels.geometry.projection import tangent_sky
from gdask.model import GdaskError
from gdask.types import Arcsec, Degrees

#: Most terms that a correction polynomial of each order has, and those of the first pass.
MAX_TERMS = {0: 2, 1: 6, 2: 12, 3: 20}
MAX_FIRST_TERMS = 6
#: Passes of numbering the stars and fitting; in the first of them the numbers of terms follow from
#: those of the stars alone, and no frame is set aside before they have passed.
PASSES, FIRST_PASSES = 4, 2
#: Rounds of weights and fit in a pass; with displaced arrays the fit settles more slowly.
FIT_ROUNDS, ARRAY_FIT_ROUNDS = 2, 8
#: The fall of chi-square at which the fits of the first passes end.
FIRST_SETTLED_CHI2 = 0.01
#: What headers' position angles, the plate scale and its shears are good to: displacement at 60
#: arcsec from the pointing.
HEADER_TURN_ERROR: Arcsec = 0.003
#: Rows of the list of stars, see `Solution`.
STAR_DTYPE = np.dtype([(n, "f8") for n in ("ra", "dec", "x", "y", "error", "flux")] + [("n", "i4")])


class FrameFit(NamedTuple):
    """One frame's correction and how it was reached.

    correction_x, correction_y: ten coefficients each (arcsec), as `geometry.Geometry` takes them;
    terms and order in use; n: sources that other frames share; rms: weighted residual per axis
    (mas); shift: what the header's pointing was off by, East and North (arcsec); contrast: of the
    first match (sigma). ok False: set aside, for the reason given. how: "joint fit", "shift by 2
    stars" or "header"; error: of the frame's place among the others, per axis (mas), see
    `_placement_errors`. star: row of each source in the star list (-1 where the frame or the source
    was left out); residual_x, residual_y: measured minus star, East and North (arcsec). arrays:
    (correction_x, correction_y) of each array where arrays of this epoch have displacements of
    their own; to be taken instead then. group: frames of the same number hang together by stars
    that they share, the largest first (1; 0: no star ties this frame); tied: a catalogue ties it.
    """

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
    how: str
    error: float
    star: np.ndarray
    residual_x: np.ndarray
    residual_y: np.ndarray
    arrays: tuple[Polynomials, ...] = ()
    group: int = 0
    tied: bool = False


class Solution(NamedTuple):
    """The solution of all frames about its centre (ra, dec, degrees).

    stars (dtype STAR_DTYPE): ra, dec in degrees; x, y about the centre, error per axis, in arcsec;
    mean flux; number of frames. frames: one FrameFit per input. floor: the error beyond photon
    noise that the residuals show (mas). reference_tie: to the catalogue, or None without one.
    """

    ra: Degrees
    dec: Degrees
    stars: np.ndarray
    frames: tuple[FrameFit, ...]
    floor: float
    reference_tie: ReferenceTie | None


class _Settings(NamedTuple):
    """What stays the same in all passes: measurements without a star, and the choices of `solve`.

    variance: per axis of each measurement by its photons (arcsec^2); prior: 1 / sigma^2 of the 20
    terms.
    """

    problem: Problem
    frames: list[Measurements]
    variance: np.ndarray
    order: int
    prior: np.ndarray
    search: Arcsec
    match_radius: Arcsec
    max_rms: Arcsec


def solve(
    frames: Sequence[Measurements],
    *,
    order: int = 3,
    prior: Arcsec = 0.01,
    search: Arcsec = 30.0,
    match_radius: Arcsec = 0.2,
    max_rms: Arcsec = 0.05,
    reference: Reference | None = None,
    untrusted: Sequence[str] = (),
) -> Solution:
    """Solve star positions and the corrections of all frames together.

    order: of the correction polynomial, at most (0..3); prior: expected size (arcsec, at 60 arcsec
    from the pointing) of a frame's own distortion terms; search: how far (arcsec) header pointings
    may be off at most: the further, the more must speak for it (`groups.first_shifts`);
    match_radius: how far (arcsec) matched sources may lie apart after the first shift; a frame
    whose weighted rms exceeds max_rms (arcsec) is set aside. Frames with too few stars for a
    pattern are shifted by those they have, or keep their header's pointing
    (`few_stars.place_by_few_stars`); untrusted: per frame, why that must not be ('' or nothing: it
    may). A single frame keeps its header's pointing, or is tied to the reference. Without frames,
    or with another order, a GdaskError.
    """
    if not frames or not 0 <= order <= 3:
        raise GdaskError(
            f"astrometric solution: {len(frames)} frames, order {order};"
            " expected frames and order 0..3"
        )
    frames = with_outlines(frames)
    centre = median_pointing(frames)
    good = by_frame(frames, flag_real_sources(frames, joint_problem(frames, centre), match_radius))
    used = [good_sources(frame, rows) for frame, rows in zip(frames, good, strict=True)]
    variance = np.concatenate([(np.square(f.ex) + np.square(f.ey)) / 2 for f in used]).astype(float)
    problem, weights = joint_problem(used, centre), prior_weights(prior)
    settings = _Settings(problem, used, variance, order, weights, search, match_radius, max_rms)
    state, reasons, contrast = _solve_by_patterns(settings)
    placed = Placed(*np.zeros((2, len(frames)), bool))
    if len(frames) > 1 and any(reasons):
        untrusted = untrusted or [""] * len(frames)
        state, placed = _add_sparse_frames(settings, state, reasons, untrusted)
    terms = groups_on_headers(used, state.problem, state.terms, state.active, state.group)
    terms[placed.by_header] = 0.0
    state = state._replace(terms=terms)
    state = state._replace(group=_groups_by_stars(state, reasons))
    reference_tie, tied = None, np.zeros(len(frames), bool)
    if reference is not None:
        limits = (search, match_radius, weights)
        terms, reference_tie, tied = tie_groups(used, state, variance, reference, *limits)
    state = state._replace(terms=terms)
    fits = _frame_fits(settings, state, contrast, reasons, placed, tied)
    fits = [_with_left_out(fit, rows) for fit, rows in zip(fits, good, strict=True)]
    stars_found, floor = _star_list(used, state.problem, terms), MAS * state.floor
    return Solution(*centre, stars_found, tuple(fits), floor, reference_tie)


def _with_left_out(fit: FrameFit, good: np.ndarray) -> FrameFit:
    """The fit with a row for each measurement of the frame, those left out (-1, NaN) included."""
    if good.all():
        return fit
    star, x, y = np.full(len(good), -1), *np.full((2, len(good)), np.nan)
    star[good], x[good], y[good] = fit.star, fit.residual_x, fit.residual_y
    return fit._replace(star=star, residual_x=x, residual_y=y)


def _solve_by_patterns(settings: _Settings) -> tuple[FitState, list[str], tuple[float, ...]]:
    """Solve the frames that have stars enough to be recognised by their pattern.

    Returns the solution; why other frames are not in it (''); contrast of the matches (sigma).
    """
    problem, frames = settings.problem, settings.frames
    found = first_shifts(problem, frames, settings.search, settings.match_radius)
    reasons = list(found.reason)
    active, shared = np.zeros(len(frames), np.int64), np.zeros(len(problem.x), bool)
    state = FitState(
        problem, found.terms, active, shared, DEFAULT_FLOOR, array_groups(frames), found.group
    )
    by_few_stars = np.zeros(len(frames), bool)
    return _run_passes(settings, state, reasons, by_few_stars, 0), reasons, found.contrast


def _add_sparse_frames(
    settings: _Settings, state: FitState, reasons: list[str], untrusted: Sequence[str]
) -> tuple[FitState, Placed]:
    """Place other frames by few stars or by their headers, and solve with them; edits reasons."""
    radii = settings.search, settings.match_radius
    state, placed = place_sparse_frames(
        settings.frames, settings.problem, state, reasons, untrusted, *radii
    )
    if placed.by_few_stars.any():
        by_header = np.flatnonzero(placed.by_header).tolist()
        for f in by_header:
            reasons[f] = "by its header"  # takes no part in the fit
        state = _run_passes(settings, state, reasons, placed.by_few_stars, FIRST_PASSES)
        for f in by_header:
            reasons[f] = ""
    return state, placed


def _groups_by_stars(state: FitState, reasons: Sequence[str]) -> np.ndarray:
    """Number of each frame's group, by the stars that the fit made use of; -1 for none."""
    good = state.shared & (state.problem.weight > 0)
    good &= np.array([not reason for reason in reasons])[state.problem.frame]
    return linked_groups(state.problem.frame[good], state.problem.star[good], len(reasons))


def _run_passes(
    settings: _Settings, state: FitState, reasons: list[str], by_few_stars: np.ndarray, first: int
) -> FitState:
    """Run the passes from number `first`; frames that fail leave, with their reasons (edited).

    by_few_stars: frames (bool) that are to be shifted only.
    """
    number, narrow = first, False
    while number < PASSES:
        use = np.array([not reason for reason in reasons])
        state = _run_pass(settings, state, use, by_few_stars, number, narrow)
        number, narrow = number + 1, True
        checked = number >= FIRST_PASSES and len(use) > 1
        if checked and _set_aside(state, reasons, settings.max_rms):
            number = min(number, FIRST_PASSES)
    return state


def _run_pass(
    settings: _Settings,
    state: FitState,
    use: np.ndarray,
    by_few_stars: np.ndarray,
    number: int,
    narrow: bool,
) -> FitState:
    """Number the stars anew, choose terms, then alternate robust weights and the fit.

    use: frames (bool); number: of the pass; narrow: the match radius by the stars' scatter.
    """
    prior, variance, radius = settings.prior, settings.variance, settings.match_radius
    xi, eta = corrected_positions(state.problem, state.terms)
    known = star_means(state.problem, xi, eta)[:2] if number else (np.zeros(0), np.zeros(0))
    if state.group.max(initial=0) > 0:
        off, star_off = apart(state.problem, state.group)
        xi, known = xi + off, (known[0] + star_off[: len(known[0])], known[1])
    radius = narrowed_radius(state, radius) if narrow else radius
    problem = number_stars(state.problem, xi, eta, use, known, radius)
    seen = use[problem.frame]
    count = np.bincount(problem.star[seen], minlength=problem.stars)
    shared = seen & (count[problem.star] >= 2)
    sources = np.bincount(problem.frame[shared], minlength=len(use))
    most = min(MAX_TERMS[settings.order], TERMS if number else MAX_FIRST_TERMS)
    active = np.array([supported_terms(int(n), most) for n in sources], np.int64) * use
    active[by_few_stars] = np.where(use & (sources > 0), TERM_COUNTS[0], 0)[by_few_stars]
    floor, terms, arrays = state.floor, state.terms, state.arrays
    late = number >= FIRST_PASSES
    if late:
        weight = robust_weights(problem, terms, variance, shared, floor)
        active = predictive_counts(problem._replace(weight=weight), terms, active, prior)
    displaced = arrays is not None and arrays.terms.any()
    for _ in range(ARRAY_FIT_ROUNDS if displaced else FIT_ROUNDS):
        weight = robust_weights(problem, terms, variance, shared, floor)
        problem = problem._replace(weight=weight)
        settled = {} if late else {"settled": FIRST_SETTLED_CHI2}
        terms = fit_frames(at_stars(problem, terms), terms, active, prior, **settled)
        if late and arrays is not None:
            problem, arrays = refit_arrays(problem, terms, arrays)
        floor = noise_floor(problem, terms, variance)
    weight = robust_weights(problem, terms, variance, shared, floor)
    alone = np.where(seen, 1 / (variance + floor**2), 0)
    problem = problem._replace(weight=np.where(shared, weight, alone))
    return FitState(problem, terms, active, shared, floor, arrays, state.group)


def _set_aside(state: FitState, reasons: list[str], max_rms: Arcsec) -> bool:
    """Set aside frames that fail; True if any newly did. Edits reasons."""
    changed, quality = False, frame_quality(state)
    for f, reason in enumerate(reasons):
        if reason:
            continue
        n, rms = quality[f]
        if not state.active[f]:
            reasons[f] = f"only {n} sources are shared with other frames (at least 4)"
        elif rms > MAS * max_rms:
            reasons[f] = (
                f"{RESIDUALS_REASON} of {rms:.1f} mas from {n} shared sources"
                f" exceed {MAS * max_rms:g} mas"
            )
        changed |= bool(reasons[f])
    return changed


def _star_list(frames: Sequence[Measurements], problem: Problem, terms: np.ndarray) -> np.ndarray:
    """The list of stars (dtype STAR_DTYPE)."""
    x, y, total = star_means(problem, *corrected_positions(problem, terms))
    stars = np.zeros(problem.stars, STAR_DTYPE)
    stars["ra"], stars["dec"] = tangent_sky(x, y, *problem.centre)
    stars["x"], stars["y"], stars["flux"] = x, y, mean_flux(frames, problem)
    stars["error"] = 1 / np.sqrt(np.where(total > 0, total, np.nan))
    stars["n"] = np.bincount(problem.star[problem.weight > 0], minlength=problem.stars)
    return stars


def _frame_fits(
    settings: _Settings,
    state: FitState,
    contrast: Sequence[float],
    reasons: list[str],
    placed: Placed,
    tied: np.ndarray,
) -> list[FrameFit]:
    """What the solution says of each frame, for the sources that were used.

    tied: which frames a reference catalogue holds by themselves (bool).
    """
    problem = state.problem
    quality, errors, fits = frame_quality(state), _placement_errors(state, settings.prior), []
    dx, dy, _ = residuals(problem, state.terms)
    shift = common_vectors(problem, np.arange(len(reasons)), *state.terms[:, :2].T)
    for f, reason in enumerate(reasons):
        i, (n, rms), count = frame_rows(problem, f), quality[f], int(state.active[f])
        how, error = _placement(n, errors[f], placed.by_few_stars[f], placed.by_header[f])
        if n <= 1 and how.startswith("shift") and not reason:
            rms = float("nan")  # one star alone fits always
        correction_x, correction_y = to_polynomials(state.terms[f])
        fits.append(
            FrameFit(
                name=settings.frames[f].name,
                correction_x=correction_x,
                correction_y=correction_y,
                order=ORDER_OF_COUNT.get(count, 0),
                terms=count,
                n=n,
                rms=rms,
                shift=(float(shift[0][f]), float(shift[1][f])),
                contrast=contrast[f],
                ok=not reason,
                reason=reason,
                how="" if reason else how,
                error=float("nan") if reason else error,
                star=np.where(not reason, problem.star[i], -1),
                residual_x=dx[i],
                residual_y=dy[i],
                arrays=array_corrections(state, f),
                group=int(state.group[f]) + 1,
                tied=bool(tied[f]),
            )
        )
    return fits


def _placement(n: int, error: Arcsec, by_few_stars: bool, by_header: bool) -> tuple[str, float]:
    """How a frame was placed, in words, and the error per axis of its place (mas)."""
    if by_header or np.isnan(error):
        return "header", MAS * HEADER_ERROR
    if by_few_stars:
        return f"shift by {n} star{'s' if n > 1 else ''}", MAS * error
    return "joint fit", MAS * error


def _placement_errors(state: FitState, prior: np.ndarray) -> np.ndarray:
    """Error per axis (arcsec) with which the terms in use place each frame; NaN without any.

    On average over its stars. Of frames that are shifted only, at the pointing: their turn, scale
    and distortion, as large as headers (prior) and stars leave them, move the few stars, and the
    shift follows those. Many stars would have shown them, and been fitted.
    """
    problem, out = state.problem, np.full(len(state.active), np.nan)
    weight = np.where(state.shared, problem.weight, 0.0)
    normals = normal_matrices(problem.frame, problem.x, problem.y, weight, len(out))
    expected = np.append(np.full(6, HEADER_TURN_ERROR), 1 / np.sqrt(prior[6:]))
    for f in map(int, np.flatnonzero(state.active)):
        normal, count, total = normals[f], int(state.active[f]), normals[f, 0, 0]
        if not total > 0:
            continue
        whole = normal + np.diag(prior)
        shares = (solve_leading(whole, normal[k], count)[k] for k in range(count))
        variance = sum(shares) / (2 * total)
        if count == TERM_COUNTS[0]:
            i = frame_rows(problem, f)
            for k, size in enumerate(expected[count:], count):
                u, v = displace(problem.x[i], problem.y[i], np.eye(TERMS)[k])
                moved = (weight[i] * u).sum() ** 2 + (weight[i] * v).sum() ** 2
                told = max(normal[k, k] - np.square(normal[k, :count]).sum() / total, 0.0)
                variance += moved / (2 * total**2) / (1 / size**2 + told)
        out[f] = np.sqrt(variance)
    return out
