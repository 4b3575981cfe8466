"""All stars and all frames in one least-squares fit, and the tie of the whole group.

Each frame has up to 20 terms, those of `measured_stars`. Star positions are eliminated exactly and
conjugate gradients solve for the terms. Every sum runs in one fixed order in compiled code: no
BLAS, same bits always. What is common to all frames the fit does not see: it comes from the frames'
own headers, or from a reference catalogue, which move the whole group as one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gdask.kernels.astrometry.association import (
    NEAR_RADIUS,
    WIDE_RADIUS,
    WIDE_ROTATIONS,
    Shift,
    find_shift,
)
from gdask.kernels.astrometry.measured_stars import (
    FOLDS,
    MONOMIALS,
    TERM_COUNTS,
    TERMS,
    Measurements,
    Problem,
    SourceList,
    best_count,
    common_vectors,
    cross_validate,
    displace,
    fit_terms,
    frame_rows,
    instrument_vectors,
    monomial_coefficients,
    monomials,
    normal_matrices,
    solve_leading,
    term_sums,
    to_common_plane,
)
from gdask.kernels.compiled import njit
from gdask.types import Arcsec

#: Conjugate gradients end where the square of the residual has fallen by the square of this, ...
RELATIVE_TOLERANCE, MAX_STEPS = 1e-8, 500
#: ... or where chi-square can fall by no more than about this: terms are then known to 3e-3 of
#: their errors.
SETTLED_CHI2 = 1e-5
#: How far a free term moves at most or so in one solution (arcsec) where nothing measures it.
FREE_STEP: Arcsec = 0.02
#: Stars that each of TERM_COUNTS needs (shift, + rotation, linear, quadratic, cubic).
STARS_NEEDED = (4, 8, 20, 40, 80)
#: How many of the brightest stars of catalogue and frames are compared, one after the other.
BRIGHTEST_TRIED = (300, 1500)
#: Frames whose shift (rotation, scale at 60 arcsec) agrees with the median to this always count.
AGREEING_FRAMES: Arcsec = 0.05


def supported_terms(stars: int, most: int) -> int:
    """Terms, of TERM_COUNTS and at most `most`, that a number of stars supports; 0 for none."""
    counts = zip(TERM_COUNTS, STARS_NEEDED, strict=True)
    supported = [count for count, needed in counts if stars >= needed and count <= most]
    return supported[-1] if supported else 0


@njit(cache=True, nogil=True, error_model="numpy")
def _common_coefficients(cosine: np.ndarray, sine: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """(frames, 2, 10) coefficients of each frame's displacement along the common plane's axes."""
    out = np.zeros((terms.shape[0], 2, MONOMIALS))
    for f in range(terms.shape[0]):
        along = monomial_coefficients(terms[f])
        for k in range(MONOMIALS):
            out[f, 0, k] = cosine[f] * along[0, k] - sine[f] * along[1, k]
            out[f, 1, k] = sine[f] * along[0, k] + cosine[f] * along[1, k]
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _positions(
    frame: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    header_xi: np.ndarray,
    header_eta: np.ndarray,
    coefficients: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Corrected positions in the common plane."""
    values, xi, eta = np.zeros(MONOMIALS), np.empty(x.size), np.empty(x.size)
    for m in range(x.size):
        f = frame[m]
        monomials(x[m], y[m], values)
        dx, dy = 0.0, 0.0
        for k in range(MONOMIALS):
            dx += values[k] * coefficients[f, 0, k]
            dy += values[k] * coefficients[f, 1, k]
        xi[m], eta[m] = header_xi[m] + dx, header_eta[m] + dy
    return xi, eta


def corrected_positions(problem: Problem, terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All measurements in the common plane (arcsec), corrected by (frames, 20) terms."""
    coefficients = _common_coefficients(problem.cosine, problem.sine, terms)
    places = problem.x, problem.y, problem.header_xi, problem.header_eta
    return _positions(problem.frame, *places, coefficients)


@njit(cache=True, nogil=True, error_model="numpy")
def _star_means(
    star: np.ndarray, weight: np.ndarray, xi: np.ndarray, eta: np.ndarray, stars: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted mean position and total weight of each star (NaN, 0 where nothing is measured)."""
    sum_xi, sum_eta, total = np.zeros(stars), np.zeros(stars), np.zeros(stars)
    for m in range(star.size):
        s, w = star[m], weight[m]
        if w > 0:
            sum_xi[s] += w * xi[m]
            sum_eta[s] += w * eta[m]
            total[s] += w
    return sum_xi / total, sum_eta / total, total


def star_means(
    problem: Problem, xi: np.ndarray, eta: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted mean position (arcsec, common plane) and total weight of each star."""
    return _star_means(problem.star, problem.weight, xi, eta, problem.stars)


@njit(cache=True, nogil=True, error_model="numpy")
def _normal_times(
    frame: np.ndarray,
    star: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    cosine: np.ndarray,
    sine: np.ndarray,
    total: np.ndarray,
    header_xi: np.ndarray,
    header_eta: np.ndarray,
    terms: np.ndarray,
) -> np.ndarray:
    """Sum over a frame's measurements of terms^T w (position - mean of the star).

    In its instrument plane, for the terms on top of the positions by the headers (of no length:
    none). total: weight of each star.
    """
    coefficients, values = _common_coefficients(cosine, sine, terms), np.zeros(MONOMIALS)
    with_header = header_xi.size > 0
    mean, sums = np.zeros((total.size, 2)), np.zeros((cosine.size, 2, MONOMIALS))
    # First the stars' means, then what each measurement is off by: nothing is kept of either.
    for step in range(2):
        for m in range(x.size):
            w = weight[m]
            if not w > 0:
                continue
            f, s = frame[m], star[m]
            monomials(x[m], y[m], values)
            dx, dy = (header_xi[m], header_eta[m]) if with_header else (0.0, 0.0)
            for k in range(MONOMIALS):
                dx += values[k] * coefficients[f, 0, k]
                dy += values[k] * coefficients[f, 1, k]
            if step == 0:
                mean[s, 0] += w * dx
                mean[s, 1] += w * dy
            else:
                dx, dy = w * (dx - mean[s, 0]), w * (dy - mean[s, 1])
                for k in range(MONOMIALS):
                    sums[f, 0, k] += values[k] * dx
                    sums[f, 1, k] += values[k] * dy
        if step == 0:
            for s in range(total.size):
                mean[s, 0] /= total[s]
                mean[s, 1] /= total[s]
    out, turned = np.zeros((cosine.size, TERMS)), np.zeros((2, MONOMIALS))
    for f in range(cosine.size):
        for k in range(MONOMIALS):
            turned[0, k] = cosine[f] * sums[f, 0, k] + sine[f] * sums[f, 1, k]
            turned[1, k] = cosine[f] * sums[f, 1, k] - sine[f] * sums[f, 0, k]
        out[f] = term_sums(turned)
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """Sum of the products of two matrices' elements, in one fixed order."""
    total = 0.0
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            total += a[i, j] * b[i, j]
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def _solve_each(blocks: np.ndarray, right: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Solve each frame's block for its leading terms."""
    out = np.zeros(right.shape)
    for f in range(active.size):
        out[f] = solve_leading(blocks[f], right[f], active[f])
    return out


def fit_frames(
    problem: Problem,
    start: np.ndarray,
    active: np.ndarray,
    prior: np.ndarray,
    settled: float = SETTLED_CHI2,
) -> np.ndarray:
    """Terms (frames, 20), arcsec, that minimise the weighted scatter of each star plus the prior.

    start: terms to begin with; active: how many leading terms each frame may use, 0 for a frame
    that is left out; prior: 1 / sigma^2 of each term's size, 0 for the free ones. Only differences
    between frames are measured: what is common to all stays as in `start` for the free terms (their
    steps are damped by FREE_STEP, so repeat the call), and goes to zero for the others. settled:
    the fall of chi-square at which steps end.
    """
    frames = len(active)
    mask = (np.arange(TERMS) < active[:, None]).astype(float)
    weight = np.where(active[problem.frame] > 0, problem.weight, 0.0)
    begin = np.where(active[:, None] > 0, start * mask, start)
    total = np.bincount(problem.star, weight, problem.stars)
    measured = (problem.frame, problem.star, problem.x, problem.y, weight)
    sides = (*measured, problem.cosine, problem.sine, total)
    none = np.zeros(0)
    share = total[problem.star]
    # A measurement moves its star's mean along by its share of the star's weight.
    effective = weight * (1 - np.divide(weight, share, out=np.ones_like(weight), where=share > 0))
    del share
    damping = prior + np.where(prior > 0, 0.0, 1 / FREE_STEP**2)
    blocks = normal_matrices(problem.frame, problem.x, problem.y, effective, frames) + np.diag(
        damping
    )

    change = np.zeros((frames, TERMS))
    header = problem.header_xi, problem.header_eta
    rest = -(_normal_times(*sides, *header, begin) + prior * begin) * mask
    solved = _solve_each(blocks, rest, active)
    direction, fall = solved, _dot(rest, solved)
    first_fall, steps = fall, 0
    while steps < MAX_STEPS and fall > max(RELATIVE_TOLERANCE**2 * first_fall, settled):
        image = (_normal_times(*sides, none, none, direction) + damping * direction) * mask
        step = fall / _dot(direction, image)
        change, rest = change + step * direction, rest - step * image
        solved = _solve_each(blocks, rest, active)
        fall, before = _dot(rest, solved), fall
        direction = solved + fall / before * direction
        steps += 1
    return begin + change


def predictive_counts(
    problem: Problem, terms: np.ndarray, active: np.ndarray, prior: np.ndarray
) -> np.ndarray:
    """Per frame, the number of terms that best predicts the stars it was not fitted to.

    At most `active`. Positions of the stars are those of the other frames alone, in five folds of
    stars.
    """
    xi, eta = corrected_positions(problem, terms)
    star_xi, star_eta, total = star_means(problem, xi, eta)
    weight, whole = problem.weight, total[problem.star]
    out = active.copy()
    for f in map(int, np.flatnonzero(active > TERM_COUNTS[0])):
        i = frame_rows(problem, f)
        i = i[(weight[i] > 0) & (whole[i] > 1.000001 * weight[i])]
        if len(i) < 2 * FOLDS:
            continue
        star, rest = problem.star[i], whole[i] - weight[i]
        others_xi = (whole[i] * star_xi[star] - weight[i] * xi[i]) / rest
        others_eta = (whole[i] * star_eta[star] - weight[i] * eta[i]) / rest
        off = others_xi - problem.header_xi[i], others_eta - problem.header_eta[i]
        dx, dy = instrument_vectors(problem, f, *off)
        counts = tuple(n for n in TERM_COUNTS if n <= active[f])
        combined = 1 / (1 / weight[i] + 1 / rest)
        places = problem.x[i], problem.y[i]
        chi2 = cross_validate(*places, dx, dy, combined, star % FOLDS, counts, prior)
        out[f] = best_count(chi2, counts)
    return out


def displaced_group(
    frames: Sequence[Measurements], problem: Problem, terms: np.ndarray, move: np.ndarray
) -> np.ndarray:
    """The frames' terms after a further displacement of the common plane about its centre.

    terms: (frames, 20); move: 20 terms. Fitted on a 9x9 grid over each frame: exact to a
    nano-arcsecond, as cubics of small cubics are.
    """
    out = terms.copy()
    for f, frame in enumerate(frames):
        edges = (
            (v.min(initial=-30), v.max(initial=30)) for v in map(np.asarray, (frame.x, frame.y))
        )
        x, y = (v.ravel() for v in np.meshgrid(*(np.linspace(*ends, 9) for ends in edges)))
        xi, eta = to_common_plane(frame, x, y, problem.centre)
        dx, dy = displace(x, y, terms[f])
        c, s = problem.cosine[f], problem.sine[f]
        moved = displace(xi + c * dx - s * dy, eta + s * dx + c * dy, move)
        dx, dy = instrument_vectors(problem, f, *moved)
        out[f] += fit_terms(x, y, dx, dy, np.ones(len(x)), TERMS, np.full(TERMS, 1e-12))
    return out


def _mean_of_most(values: np.ndarray) -> float:
    """Mean of the values near their median: a frame with a wrong pointing does not move the group.

    Near: to 4 sigma of their scatter, or to AGREEING_FRAMES.
    """
    off = np.abs(values - np.median(values))
    return float(values[off <= max(4 * 1.4826 * np.median(off), AGREEING_FRAMES)].mean())


def centre_on_headers(
    frames: Sequence[Measurements], problem: Problem, terms: np.ndarray, active: np.ndarray
) -> np.ndarray:
    """Make the mean rotation, scale and then shift of the frames zero.

    The headers are right on average (outliers beyond 4 sigma do not count; agreement to 0.05
    arcsec, at 60 arcsec from the pointing for rotation, always does).
    """
    use = active > 0
    if not use.any():
        return terms
    move = np.zeros(TERMS)
    move[2], move[3] = -_mean_of_most(terms[use, 2]), -_mean_of_most(terms[use, 3])
    terms = displaced_group(frames, problem, terms, move)
    east, north = common_vectors(problem, np.arange(len(terms)), terms[:, 0], terms[:, 1])
    move = np.zeros(TERMS)
    move[0], move[1] = -_mean_of_most(east[use]), -_mean_of_most(north[use])
    return displaced_group(frames, problem, terms, move)


def shift_onto_catalogue(
    catalogue: SourceList, stars: SourceList, search: Arcsec, radius: Arcsec
) -> Shift:
    """The first shift of the stars onto the catalogue.

    By the brightest, then by more of them, as a catalogue may be of other colours or reach far
    beyond the field; then over a wide field. Of too few stars for a pattern, a shift on which all
    that can be the same agree to the radius.
    """
    near_radius = min(search, NEAR_RADIUS)
    for brightest in BRIGHTEST_TRIED:
        shift = find_shift(catalogue, stars, near_radius, brightest=brightest)
        if shift.ok:
            return shift
    wide = find_shift(catalogue, stars, min(search, WIDE_RADIUS), rotations=WIDE_ROTATIONS)
    if wide.ok:
        return wide
    if min(len(catalogue[0]), len(stars[0])) >= STARS_NEEDED[0]:
        return shift
    dx, dy = (a[:, None] - b for a, b in zip(catalogue[:2], stars[:2], strict=True))
    near = np.hypot(dx, dy) <= near_radius
    dx, dy = dx[near], dy[near]
    ambiguous = len(dx) and max(near.sum(axis=0).max(), near.sum(axis=1).max()) > 1
    if not len(dx) or ambiguous or max(np.ptp(dx), np.ptp(dy)) > radius:
        return shift
    return shift._replace(dx=float(dx.mean()), dy=float(dy.mean()), n=len(dx), ok=True, reason="")
