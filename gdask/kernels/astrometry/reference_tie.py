"""Moving a whole group of frames as one: its origin from the frames' own headers, or from a reference catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gdask.kernels.astrometry.distortion_terms import (
    LEVELS,
    TERMS,
    cross_validate,
    displace,
    fit_terms,
)
from gdask.kernels.astrometry.joint_fit import Problem
from gdask.kernels.astrometry.matching import Shift, apply_shift, find_shift, match_pairs
from gdask.kernels.astrometry.star_association import (
    WIDE,
    WIDE_ROTATIONS,
    Measurements,
    Places,
    pull_back,
    to_common,
)
from gdask.kernels.geometry.projection import tangent_plane
from gdask.types import Arcsec, Degrees

#: Stars that each level of LEVELS needs (shift, rotation, linear, quadratic, cubic).
NEEDED = (4, 8, 20, 40, 80)
#: Residuals beyond this many sigma of themselves (or of the stated errors, if larger) are left out.
REJECT, ROUNDS, FOLDS = 4.0, 6, 5
#: How many of the brightest stars of catalogue and frames are compared.
MOST_TRIED = (300, 1500)


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
    frames: Sequence[Measurements],
    problem: Problem,
    terms: np.ndarray,
    centre: tuple[Degrees, Degrees],
    move: np.ndarray,
) -> np.ndarray:
    """The frames' terms after a further displacement of the common plane by the 20 terms `move` about its centre.

    Fitted on a 9x9 grid over each frame: exact to a nano-arcsecond, as cubics of small cubics are.
    """
    out = terms.copy()
    for f, frame in enumerate(frames):
        gx, gy = np.meshgrid(
            *(
                np.linspace(v.min(initial=-30), v.max(initial=30), 9)
                for v in (np.asarray(frame.x), np.asarray(frame.y))
            )
        )
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
    frames: Sequence[Measurements],
    problem: Problem,
    terms: np.ndarray,
    active: np.ndarray,
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


def _first_shift(catalog: Places, stars: Places, search: Arcsec, radius: Arcsec) -> Shift:
    """By the brightest, then by more of them, as a catalogue may be of other colours or reach far beyond the field; then
    over a wide field. Of too few stars for a pattern, a shift on which all that can be the same agree."""
    for brightest in MOST_TRIED:
        start = find_shift(*catalog, *stars, search, brightest=brightest)
        if start.ok:
            return start
    wide = find_shift(*catalog, *stars, WIDE, rotations=WIDE_ROTATIONS)
    if wide.ok or min(len(catalog[0]), len(stars[0])) >= NEEDED[0]:
        return wide if wide.ok else start
    dx, dy = (a[:, None] - b for a, b in zip(catalog[:2], stars[:2], strict=True))
    near = np.hypot(dx, dy) <= search
    dx, dy = dx[near], dy[near]
    if (
        not len(dx)
        or max(near.sum(axis=0).max(), near.sum(axis=1).max()) > 1
        or max(np.ptp(dx), np.ptp(dy)) > radius
    ):
        return start
    return start._replace(dx=float(dx.mean()), dy=float(dy.mean()), n=len(dx), ok=True, reason="")


def tie_to(
    reference: Reference,
    x: np.ndarray,
    y: np.ndarray,
    error: np.ndarray,
    flux: np.ndarray,
    centre: tuple[Degrees, Degrees],
    search: Arcsec,
    radius: Arcsec,
    prior: np.ndarray,
) -> tuple[np.ndarray, Tie]:
    """The terms that move star positions (x, y about the centre, with errors, arcsec) onto the catalogue."""
    xr, yr = tangent_plane(reference.ra, reference.dec, *centre)
    start = _first_shift((xr, yr, np.asarray(reference.flux, float)), (x, y, flux), search, radius)
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
        weight = np.where(
            r <= REJECT * np.maximum(spread, np.sqrt(sigma2)), 1 / np.maximum(sigma2, 1e-8), 0.0
        )
        n = int(np.count_nonzero(weight))
        count = allowed(n, 6 if step < 2 else TERMS) or (
            LEVELS[0] if n and min(len(x), len(xr)) < NEEDED[0] else 0
        )
        if not count:
            return np.zeros(TERMS), Tie(
                n, float("nan"), 0, False, f"only {n} stars match the catalogue"
            )
        if step == ROUNDS - 2 and n >= 2 * FOLDS:
            counts = tuple(c for c in LEVELS if c <= count)
            chi2 = cross_validate(
                x[ib], y[ib], dx, dy, weight, np.arange(len(ib)) % FOLDS, counts, prior
            )
            count = counts[int(np.argmin(chi2 + np.array(counts)))]
        move = fit_terms(x[ib], y[ib], dx, dy, weight, count, prior)
        rms = 1000 * float(np.sqrt((weight * r**2).sum() / weight.sum()))
        if step == ROUNDS - 2:
            break
    return move, Tie(n, rms, count, True, "")
