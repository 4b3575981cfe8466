"""What the joint fit cannot place: sparse frames, and groups of frames among each other.

Frames without a pattern are placed by few stars or by their headers, and a reference catalogue ties
each group of frames by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gdask.kernels.astrometry.catalogue_tie import Reference, ReferenceTie, tie_to_reference
from gdask.kernels.astrometry.few_stars import Stars, place_by_few_stars, with_comparable_flux
from gdask.kernels.astrometry.groups import (
    STRANGERS_REASON,
    groups_on_headers,
    linked_groups,
)
from gdask.kernels.astrometry.joint_fit import (
    corrected_positions,
    displaced_group,
    star_means,
)
from gdask.kernels.astrometry.measured_stars import (
    TERMS,
    Measurements,
    Problem,
    instrument_vectors,
    mean_flux,
)
from gdask.kernels.astrometry.residuals import FitState
from gdask.types import Arcsec

#: How a reason begins that more stars or another place would not mend.
RESIDUALS_REASON = "residuals"
_FINAL_REASONS = (RESIDUALS_REASON, STRANGERS_REASON)


class Placed(NamedTuple):
    """How frames were placed that have no pattern (bool per frame): by few stars, by headers."""

    by_few_stars: np.ndarray
    by_header: np.ndarray


def place_sparse_frames(
    frames: Sequence[Measurements],
    problem: Problem,
    state: FitState,
    reasons: list[str],
    untrusted: Sequence[str],
    search: Arcsec,
    tolerance: Arcsec,
) -> tuple[FitState, Placed]:
    """Place the frames that no pattern has placed by few stars, or by their headers.

    state: of the solution of the others; reasons: why these are not in it, edited; problem: without
    stars. Other arguments as in `place_by_few_stars`. Returns the state with the frames' terms and
    groups, and how they were placed.
    """
    frames = [with_comparable_flux(frame) for frame in frames]
    terms = groups_on_headers(frames, state.problem, state.terms, state.active, state.group)
    patterned = np.array([not reason for reason in reasons])
    settled = patterned | [reason.startswith(_FINAL_REASONS) for reason in reasons]
    x, y, total = star_means(state.problem, *corrected_positions(state.problem, terms))
    good = total > 0 if patterned.any() else np.zeros(len(total), bool)
    used = state.problem.weight > 0
    seen = np.bincount(state.problem.star[used], minlength=len(total))
    known = Stars(x[good], y[good], mean_flux(frames, state.problem)[good], seen[good])
    places = place_by_few_stars(
        frames, problem, known, settled, reasons, untrusted, search, tolerance
    )
    used &= good[state.problem.star]
    number = np.cumsum(good) - 1
    links = [(state.problem.frame[used], number[state.problem.star[used]])]
    placed, terms = Placed(*np.zeros((2, len(frames)), bool)), terms.copy()
    for f in map(int, np.flatnonzero(~settled)):
        place = places[f]
        reasons[f] = place.reason
        if not place.reason:
            placed.by_few_stars[f], placed.by_header[f] = place.n > 0, place.n == 0
            terms[f] = 0.0
            shift = np.array([place.dx, place.dy])
            terms[f, :2] = instrument_vectors(state.problem, f, *shift)
            links.append((np.full(place.n, f), place.stars))
    frame, star = (np.concatenate(column) for column in zip(*links, strict=True))
    group = linked_groups(frame, star, len(frames))
    return state._replace(terms=terms, group=group), placed


def tie_groups(
    frames: Sequence[Measurements],
    state: FitState,
    variance: np.ndarray,
    reference: Reference,
    search: Arcsec,
    tolerance: Arcsec,
    prior: np.ndarray,
) -> tuple[np.ndarray, ReferenceTie, np.ndarray]:
    """Tie each group, and each frame that no star ties to others, to the catalogue by itself.

    variance: of each measurement per axis (arcsec^2). Where that fails it moves with the largest
    group. Returns the frames' terms; how the largest group was tied; which frames are tied (bool).
    """
    problem, terms = state.problem, state.terms
    xi, eta = corrected_positions(problem, terms)
    group = state.group if (state.group >= 0).any() else np.arange(len(frames))
    alone = np.flatnonzero(group < 0)
    group = group.copy()
    group[alone] = group.max(initial=-1) + 1 + np.arange(len(alone))
    flux = np.concatenate([np.asarray(f.flux, float) for f in frames])
    out, tied = terms.copy(), np.zeros(len(frames), bool)
    ties: list[tuple[np.ndarray, ReferenceTie]] = []
    for number in range(int(group.max()) + 1):
        of_group = group == number
        rows = of_group[problem.frame]
        weight = np.where(rows, problem.weight, 0.0)
        mine = problem._replace(weight=weight)
        x, y, total = star_means(mine, xi, eta)
        stars, seen = (x, y, mean_flux(frames, mine)), total > 0
        if np.count_nonzero(of_group) == 1:  # its sources are nobody's stars
            stars, seen = (xi[rows], eta[rows], flux[rows]), np.ones(rows.sum(), bool)
            total = 1 / (variance[rows] + state.floor**2)
        sources = stars[0][seen], stars[1][seen], stars[2][seen]
        error = 1 / np.sqrt(total[seen])
        if len(error):
            limits = (search, tolerance, prior)
            move, tie = tie_to_reference(reference, sources, error, problem.centre, *limits)
            tied |= of_group & tie.ok
        else:
            move, tie = np.zeros(TERMS), ReferenceTie(0, np.nan, 0, False, "it shows no stars")
        ties.append((move, tie))
        moved = displaced_group(frames, problem, terms, move if tie.ok else ties[0][0])
        out = np.where(of_group[:, None], moved, out)
    return out, ties[0][1], tied
