"""The tie of all frames to a reference catalogue, and what the residuals say of the catalogue.

Catalogues of users have errors or none, motions of all stars, of some or of none, and an epoch that
may be wrong. Weights and terms depend on the errors: taken too large, distortion stays; taken too
small, the terms fit noise. So the errors that are used are those which the residuals confirm, and
the difference is told.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gdask.kernels.astrometry.association import apply_shift, match_pairs
from gdask.kernels.astrometry.joint_fit import (
    STARS_NEEDED,
    shift_onto_catalogue,
    supported_terms,
)
from gdask.kernels.astrometry.measured_stars import (
    FOLDS,
    TERM_COUNTS,
    TERMS,
    SourceList,
    best_count,
    cross_validate,
    displace,
    fit_terms,
)
from gdask.kernels.geometry.projection import tangent_plane
from gdask.types import Arcsec, Degrees

#: Error per axis that stars of a catalogue without errors have until the residuals tell it: that of
#: a ground-based survey tied to Gaia. (2MASS: 0.08.)
DEFAULT_ERROR: Arcsec = 0.02
#: Residuals from the catalogue beyond this many sigma of themselves (or of the errors, if larger)
#: are left out; rounds of pairing and fitting, of which the first ones fit linear terms only.
TIE_REJECT_SIGMA, TIE_ROUNDS, LINEAR_ROUNDS = 4.0, 10, 2
#: Residuals say how large errors are where they have so many degrees of freedom.
FEWEST_FREEDOMS = 12
#: Stated errors are kept where the residuals confirm them to this factor; beyond, they are warned
#: about, and the residuals' are used.
CONFIRMED = 1.5
#: The least error that residuals can show, as a share of themselves.
LEAST_SHARE = 0.3
#: The median of the mean square of two Gaussian coordinates over their variance.
MEDIAN_OF_SQUARE = 0.6931
#: Years by which the residuals and the motions of the stars contradict the catalogue's epoch, ...
LEAST_YEARS = 0.3
#: ... at the least, and in units of their error, from so many stars that have motions.
EPOCH_SIGMA, EPOCH_STARS = 6.0, 10
#: More years are no error of an epoch (photographic plates are of 1890 and later).
MOST_YEARS = 150.0
#: A match may be so many errors of the catalogue apart, where that is more than the radius, ...
RADIUS_SIGMA = 3.5
#: ... as long as so few stars of the frames lie within it by chance.
MAX_CHANCE = 0.1


class Reference(NamedTuple):
    """A reference catalogue at the frames' epoch; arrays of one value per star.

    ra, dec: degrees; error: arcsec per axis, NaN where the catalogue has none; flux: any unit,
    larger is brighter. motion_x, motion_y: arcsec per year East and North as the catalogue has
    them, 0 where it has none (None: none at all). spread: arcsec per axis, by which places are
    uncertain because motions are missing.
    """

    ra: np.ndarray
    dec: np.ndarray
    error: np.ndarray
    flux: np.ndarray
    motion_x: np.ndarray | None = None
    motion_y: np.ndarray | None = None
    spread: np.ndarray | None = None


class ReferenceTie(NamedTuple):
    """How the group was tied to the catalogue: stars, weighted rms per axis (mas), terms.

    ok False: it was not, for the reason given. stated: median error of the matched stars that the
    catalogue or the user gives (mas, NaN where none is given); used: that which was used, as the
    residuals tell it (both of stars that have motions, if any has); place_error: error per axis
    with which the tie places the whole group (mas). years: by which stars are seen later than the
    catalogue's epoch and the frames' dates say, and its error; applied where `moved`.
    """

    n: int
    rms: float
    terms: int
    ok: bool
    reason: str
    stated: float = float("nan")
    used: float = float("nan")
    place_error: float = float("nan")
    years: float = 0.0
    years_error: float = float("nan")
    moved: bool = False


class _Matched(NamedTuple):
    """Matched stars: rows of catalogue and stars, offsets from star to catalogue, rest of the fit.

    rest: (2, n), what the terms leave; variance: per axis of each, photons and catalogue; good: in
    use. All in arcsec.
    """

    ia: np.ndarray
    ib: np.ndarray
    dx: np.ndarray
    dy: np.ndarray
    rest: np.ndarray
    variance: np.ndarray
    good: np.ndarray


class _Errors(NamedTuple):
    """Errors per axis (arcsec): of the catalogue's stars now, as given, of the frames' stars.

    given: NaN where there is none; spread: by missing motions; sure: stars whose motion is known.
    """

    now: np.ndarray
    given: np.ndarray
    spread: np.ndarray
    star: np.ndarray


def _failed(n: int, reason: str) -> tuple[np.ndarray, ReferenceTie]:
    return np.zeros(TERMS), ReferenceTie(n, float("nan"), 0, False, reason)


def tie_to_reference(
    reference: Reference,
    stars: SourceList,
    error: np.ndarray,
    centre: tuple[Degrees, Degrees],
    search: Arcsec,
    radius: Arcsec,
    prior: np.ndarray,
) -> tuple[np.ndarray, ReferenceTie]:
    """The 20 terms that move stars onto the catalogue, zeros where it fails, and how it went.

    stars: positions about the centre (RA, Dec in degrees) and fluxes; error: of their positions,
    search, radius of matches: arcsec; prior: 1 / sigma^2 of the terms.
    """
    x, y, _ = stars
    xr, yr = tangent_plane(reference.ra, reference.dec, *centre)
    start = shift_onto_catalogue((xr, yr, np.asarray(reference.flux, float)), stars, search, radius)
    if not start.ok:
        return _failed(0, start.reason)
    u, v = apply_shift(start, x, y)
    move = fit_terms(x, y, u - x, v - y, np.ones(len(x)), 4, np.full(TERMS, 1e-9))
    errors, motion = _first_errors(reference, error), _motions(reference)
    years, years_error, count = 0.0, float("nan"), 0
    for step in range(TIE_ROUNDS):
        places = xr + years * motion[0], yr + years * motion[1]
        match = _match(places, (x, y), move, errors, _radius(radius, errors, x, y))
        n, linear = int(np.count_nonzero(match.good)), step < LINEAR_ROUNDS
        count = supported_terms(n, 6 if linear else TERMS)
        if not count and n and min(len(x), len(xr)) < STARS_NEEDED[0]:
            count = TERM_COUNTS[0]
        if not count:
            return _failed(n, f"only {n} stars match the catalogue")
        weight = np.where(match.good, 1 / np.maximum(match.variance, 1e-8), 0.0)
        if step > LINEAR_ROUNDS and n >= 2 * FOLDS:
            count = _predictive_count(match, (x, y), weight, count, prior)
        move = fit_terms(x[match.ib], y[match.ib], match.dx, match.dy, weight, count, prior)
        match = _with_rest(match, (x, y), move)
        if step == TIE_ROUNDS - 1:
            break
        change, years_error = _years_off(match, motion, years)
        years += change
        errors = errors._replace(now=_confirmed_errors(errors, match, count))
    return move, _report(match, weight, errors, count, years, years_error)


def _first_errors(reference: Reference, error: np.ndarray) -> _Errors:
    """Errors as the catalogue gives them, or the default."""
    given = np.asarray(reference.error, float)
    spread = np.zeros(len(given)) if reference.spread is None else np.asarray(reference.spread)
    now = np.where(np.isfinite(given), given, DEFAULT_ERROR)
    return _Errors(now, given, spread.astype(float), np.asarray(error, float))


def _motions(reference: Reference) -> np.ndarray:
    """(2, n) motions, arcsec per year; 0 where there is none."""
    if reference.motion_x is None or reference.motion_y is None:
        return np.zeros((2, len(reference.ra)))
    return np.nan_to_num(np.array([reference.motion_x, reference.motion_y], float))


def _radius(radius: Arcsec, errors: _Errors, x: np.ndarray, y: np.ndarray) -> Arcsec:
    """Radius of matches: wider for a catalogue of large errors, as long as chance finds few."""
    area = max(float(np.ptp(x) * np.ptp(y)), 1.0)
    widest = float(np.sqrt(MAX_CHANCE * area / (np.pi * max(len(x), 1))))
    return max(radius, min(RADIUS_SIGMA * float(np.median(errors.now)), widest))


def _match(
    places: tuple[np.ndarray, np.ndarray],
    stars: tuple[np.ndarray, np.ndarray],
    move: np.ndarray,
    errors: _Errors,
    radius: Arcsec,
) -> _Matched:
    """Pair catalogue and stars after the move, and leave out what lies too far off."""
    (xr, yr), (x, y) = places, stars
    u, v = displace(x, y, move)
    ia, ib = match_pairs(xr, yr, x + u, y + v, radius)
    dx, dy = xr[ia] - x[ib], yr[ia] - y[ib]
    rest = np.array([dx - u[ib], dy - v[ib]])
    variance = np.square(errors.now[ia]) + np.square(errors.spread[ia]) + errors.star[ib] ** 2
    pull = np.hypot(*rest) / np.sqrt(2 * np.maximum(variance, 1e-12))
    # Scatter in units of the errors, for each kind of star by itself: where the terms are still
    # wrong, stars of small errors are all far off, and must not be left out for it.
    kind = 2 * np.isfinite(errors.given[ia]) + (errors.spread[ia] > 0)
    good = np.zeros(len(ia), bool)
    for number in range(4):
        of_kind = kind == number
        if of_kind.any():
            scatter = max(1.2 * float(np.median(pull[of_kind])), 1.0)
            good[of_kind] = pull[of_kind] <= TIE_REJECT_SIGMA * scatter
    return _Matched(ia, ib, dx, dy, rest, variance, good)


def _with_rest(match: _Matched, stars: tuple[np.ndarray, np.ndarray], move: np.ndarray) -> _Matched:
    """The match with what these terms leave."""
    u, v = displace(stars[0][match.ib], stars[1][match.ib], move)
    return match._replace(rest=np.array([match.dx - u, match.dy - v]))


def _predictive_count(
    match: _Matched,
    stars: tuple[np.ndarray, np.ndarray],
    weight: np.ndarray,
    most: int,
    prior: np.ndarray,
) -> int:
    """Number of terms, at most `most`, that best predicts stars which the fit has not seen."""
    counts, fold = tuple(c for c in TERM_COUNTS if c <= most), np.arange(len(match.ib)) % FOLDS
    x, y = stars[0][match.ib], stars[1][match.ib]
    return best_count(cross_validate(x, y, match.dx, match.dy, weight, fold, counts, prior), counts)


def _years_off(match: _Matched, motion: np.ndarray, years: float) -> tuple[float, float]:
    """By how many more years the stars have moved than was assumed, and the error of it.

    The residuals over the motions, both without what is common to all (the terms take that). 0
    where few stars move, and where the years found so far and this change are none to speak of.
    """
    moving = match.good & np.any(motion[:, match.ia] != 0, axis=0)
    if np.count_nonzero(moving) < EPOCH_STARS:
        return 0.0, float("nan")
    weight = 1 / np.maximum(match.variance[moving], 1e-8)
    pm, rest = motion[:, match.ia[moving]], match.rest[:, moving]
    pm = pm - (weight * pm).sum(axis=1, keepdims=True) / weight.sum()
    rest = rest - (weight * rest).sum(axis=1, keepdims=True) / weight.sum()
    information = float((weight * pm**2).sum())
    if not information > 0:
        return 0.0, float("nan")
    # The stated errors may be too small: the scatter itself says how sure this is.
    scatter = max(float(np.median(weight * (rest**2).mean(axis=0))) / MEDIAN_OF_SQUARE, 1.0)
    # rest is catalogue minus star: where it lags behind, its stars must move on.
    change, error = -float((weight * pm * rest).sum()) / information, (scatter / information) ** 0.5
    total = abs(years + change)
    if total < max(LEAST_YEARS, EPOCH_SIGMA * error) or total > MOST_YEARS:
        return -years, error
    return change, error


def _confirmed_errors(errors: _Errors, match: _Matched, count: int) -> np.ndarray:
    """The errors that the residuals confirm: estimated where none are given, else kept or changed.

    Errors that are given are kept where the residuals agree to CONFIRMED; otherwise an error is
    added to all, or all are multiplied. The matches are told apart by whether an error is given,
    and stars without a motion of their own are asked only where there are too few others.
    """
    given, out = np.isfinite(errors.given), errors.now.copy()
    for group in (given, ~given):
        chosen = match.good & group[match.ia]
        sure = chosen & (errors.spread[match.ia] == 0)
        chosen = sure if 2 * np.count_nonzero(sure) >= FEWEST_FREEDOMS + count else chosen
        freedoms = 2 * np.count_nonzero(chosen) - count
        if freedoms < FEWEST_FREEDOMS:
            continue
        ia, ib = match.ia[chosen], match.ib[chosen]
        square = (match.rest[:, chosen] ** 2).mean(axis=0)
        square *= 2 * np.count_nonzero(chosen) / freedoms
        known = errors.spread[ia] ** 2 + errors.star[ib] ** 2
        whole = error_of_residuals(square, np.zeros_like(square))
        # Errors far below those of the frames' own stars cannot be told from none.
        found = max(error_of_residuals(square, known), LEAST_SHARE * whole)
        if not given[ia[0]]:
            out[group] = found
            continue
        stated = errors.given[ia]
        beyond = error_of_residuals(square, known + stated**2)
        typical = max(float(np.median(stated)), 1e-9)
        if np.hypot(beyond, typical) > CONFIRMED * typical:
            out[group] = np.hypot(errors.given[group], beyond)
            continue
        out[group] = errors.given[group] * (found / typical if typical > CONFIRMED * whole else 1.0)
    return out


def error_of_residuals(square: np.ndarray, variance: np.ndarray) -> Arcsec:
    """The error per axis, beyond `variance`, that residuals show; 0 where they show none.

    square: mean square of both coordinates of each (arcsec^2). By the median, so that wrong pairs
    do not count.
    """
    low, high = 0.0, float(np.sqrt(square.max(initial=0.0)) * 2)
    for _ in range(50):
        half = (low + high) / 2
        above = np.median(square / np.maximum(variance + half**2, 1e-18)) > MEDIAN_OF_SQUARE
        low, high = (half, high) if above else (low, half)
    return high if high > 1e-7 else 0.0


def _report(
    match: _Matched,
    weight: np.ndarray,
    errors: _Errors,
    count: int,
    years: float,
    years_error: float,
) -> ReferenceTie:
    """What the tie came to; the errors are medians of the matched stars."""
    good, off = match.good, np.hypot(*match.rest) / np.sqrt(2)
    ia = match.ia[good]
    sure = errors.spread[ia] == 0
    ia = ia[sure] if sure.any() else ia
    stated = np.hypot(errors.given[ia], errors.spread[ia])
    stated = stated[np.isfinite(stated)]
    return ReferenceTie(
        n=int(np.count_nonzero(good)),
        rms=1000 * float(np.sqrt((weight * off**2).sum() / weight.sum())),
        terms=count,
        ok=True,
        reason="",
        stated=1000 * float(np.median(stated)) if len(stated) else float("nan"),
        used=1000 * float(np.median(np.hypot(errors.now[ia], errors.spread[ia]))),
        place_error=1000 * float(weight.sum() ** -0.5),
        years=years,
        years_error=years_error,
        moved=years != 0.0,
    )


def describe_tie(tie: ReferenceTie) -> str:
    """Say in words how the group was tied: with errors as given, and as the residuals show."""
    if not tie.ok:
        return f"not tied to the catalogue: {tie.reason}"
    if not np.isfinite(tie.stated):
        errors = f"no errors given, {tie.used:.2g} mas by the residuals"
    elif is_confirmed(tie):
        errors = f"errors of {tie.stated:.2g} mas"
    else:
        errors = f"errors of {tie.stated:.2g} mas given, {tie.used:.2g} mas by the residuals"
    text = f"tied to the catalogue by {tie.n} stars, rms {tie.rms:.1f} mas, {errors}"
    text += f", {tie.terms} terms, the group placed to {tie.place_error:.2g} mas"
    if tie.moved:
        text += f", its epoch changed by {-tie.years:+.1f} years (error {tie.years_error:.2g})"
    return text


def doubts(tie: ReferenceTie) -> str:
    """Say what a user should look into, with the numbers; '' where all is as expected."""
    if not tie.ok:
        return (
            "not tied to the catalogue, positions stay on the telescope's pointing: "
            f"{tie.reason}; the catalogue must hold stars of this field that the frames show; "
            "`search` says how far the pointing may be off"
        )
    found = []
    if not is_confirmed(tie):
        more = tie.used > tie.stated
        found.append(
            f"the {tie.n} stars of the catalogue leave residuals of {tie.used:.2g} mas "
            f"{'beside' if more else 'only, with'} its errors of {tie.stated:.2g} mas; "
            f"{tie.used:.2g} mas are used"
            + ("; look at its errors, motions and epoch, and at `reference_error`" if more else "")
        )
    if tie.moved:
        found.append(
            f"the stars' motions say that the catalogue's epoch is off by {-tie.years:.1f} years "
            f"(error {tie.years_error:.2g}): its places were moved to the epoch that they show"
        )
    return "; ".join(found)


def is_confirmed(tie: ReferenceTie) -> bool:
    """Whether the residuals confirm the errors that were given; True where none were."""
    if not np.isfinite(tie.stated):
        return True
    return tie.stated / CONFIRMED <= tie.used <= CONFIRMED * tie.stated
