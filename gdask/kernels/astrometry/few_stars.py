"""Frames with too few stars for a pattern.

Such frames are placed by their headers, by brightness and by what the frames agree on. A shift is
believed where the stars of other frames support it; a cosmic ray or a bad pixel supports none.
Where no star is there to be seen, the telescope's offsets are all there is: they are good to
HEADER_ERROR. Where stars should be there and are not, the frame looked through clouds or
elsewhere, and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gdask.kernels.arithmetic import logarithms
from gdask.kernels.astrometry.association import NEAR_RADIUS, match_pairs, rows_around
from gdask.kernels.astrometry.groups import inside_polygon, signed_area
from gdask.kernels.astrometry.measured_stars import (
    Measurements,
    Problem,
    SourceList,
    frame_rows,
    to_instrument_plane,
)
from gdask.model import late
from gdask.types import Arcsec

if TYPE_CHECKING:
    from scipy import special
else:
    special = late("scipy.special")

#: What a guided telescope's offsets are good to, per axis.
HEADER_ERROR: Arcsec = 0.25
#: Sources of a frame, and stars in its field, up to which it is placed in this way; with more a
#: pattern must be found.
MAX_FEW_STARS = 8
#: Brightest sources of a frame that are tried, and candidate pairs.
MAX_SOURCES, MAX_PAIRS = 50, 1500
#: A pair may differ by a factor of e^MAX_LN_FLUX_RATIO = 3 in brightness.
MAX_LN_FLUX_RATIO = 1.1
#: Sigma of one pair's ln flux ratio; that of its shift is a third of the search radius. One star
#: must stay within SINGLE_STAR_MAX_SIGMA of both if nothing else supports it.
LN_FLUX_RATIO_SIGMA, SINGLE_STAR_MAX_SIGMA = 0.3, 2.5
#: So many agreements as good as the one found may be expected by chance: for a star that frames are
#: said to share, and for a frame that is said to show such stars.
MAX_STAR_CHANCE, MAX_FRAME_CHANCE = 0.01, 0.05
#: A star that this share of the frames show whose field it is in should be there.
RELIABLE_SHARE = 0.75
#: A star that this many frames show is counted as well supported.
FULL_SUPPORT_FRAMES = 3
#: Of the stars that should be there, the share that must be; but that all are missed by chance must
#: be as improbable as MAX_MISS_CHANCE. Stars of this signal to noise or more are not missed.
MIN_SEEN_SHARE, MAX_MISS_CHANCE, NEVER_MISSED_SIGNAL = 0.25, 0.1, 20.0
#: Brightest stars that are counted when it is asked how many a frame should show.
MAX_EXPECTED_STARS = 300
#: Rounds in which each frame is shifted onto the stars of the others; and frames, at most, that are
#: tried as the one with which these begin.
SWEEPS, MAX_ANCHORS = 3, 20


class Stars(NamedTuple):
    """Stars in the common plane: places (arcsec), fluxes, and in how many frames each was seen."""

    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    seen: np.ndarray


class Placement(NamedTuple):
    """How one frame was placed: shift in the common plane (arcsec), by n stars, or why not.

    n is 0 for a frame that is placed by its header; reason is '' for a frame that has a place;
    stars: numbers of the n stars, those known before first.
    """

    dx: Arcsec
    dy: Arcsec
    n: int
    reason: str
    stars: np.ndarray


class _Agreement(NamedTuple):
    """A trial shift (arcsec) of a frame's sources onto the stars, and what supports it.

    star_rows, source_rows: the pairs; sigma: of the pairs' mean shift and brightness ratio;
    alike: how many pairs of like brightness there are at any distance.
    """

    dx: Arcsec
    dy: Arcsec
    star_rows: np.ndarray
    source_rows: np.ndarray
    sigma: float
    alike: int


_NO_AGREEMENT = _Agreement(0.0, 0.0, np.zeros(0, int), np.zeros(0, int), np.inf, 0)


def with_comparable_flux(frame: Measurements) -> Measurements:
    """The frame with the brightness by which few stars are compared as its flux.

    That is signal to noise, or the flux where that is not known.
    """
    return frame._replace(
        flux=np.asarray(frame.flux if frame.signal is None else frame.signal, float)
    )


def place_by_few_stars(
    frames: Sequence[Measurements],
    problem: Problem,
    known: Stars,
    placed: np.ndarray,
    reasons: Sequence[str],
    untrusted: Sequence[str],
    search: Arcsec,
    tolerance: Arcsec,
) -> list[Placement]:
    """Place the frames that are not yet `placed` (bool per frame).

    Stars and sources further than NEAR_RADIUS apart are not compared, whatever `search` allows.

    known: the stars that the placed frames show. reasons: why each frame has no place yet.
    untrusted: why a frame's header pointing is wrong ('' if it is not): such a frame is not placed
    by it. search, tolerance: arcsec, as search and match_radius in `solution.solve`. Frames for
    which there are stars enough for a pattern, and none was found, keep their reason.
    """
    search = min(search, NEAR_RADIUS)
    missing = [f for f in range(len(frames)) if not placed[f]]
    rows = {f: _brightest_rows(problem, frames[f], f) for f in missing}
    certain = Stars(*(v[known.seen >= 2] for v in known))
    sparse = [
        f
        for f in missing
        if len(rows[f]) <= MAX_FEW_STARS
        or _in_field(frames[f], problem, certain, 0.0).sum() <= MAX_FEW_STARS
    ]
    lists = {f: _source_list(problem, frames[f], f, rows[f]) for f in sparse if len(rows[f])}
    fits, stars, star_of_source = _sweep(lists, known, search, tolerance)
    common_shift = _common_shift(fits, bool(placed.any()))
    counted = [f for f in range(len(frames)) if placed[f] or f in lists]
    could = _frames_that_could_see(frames, problem, stars, counted, 0.0)
    areas = {f: _field_area(frames[f]) for f in lists}
    shared = _shared_stars(stars, could, star_of_source, fits, common_shift, lists, areas)
    shared |= (np.arange(len(stars.x)) < len(known.x)) & (stars.seen >= 2)
    found: dict[int, _Agreement] = {}
    for f, sources in lists.items():
        seen_here = np.bincount(star_of_source[f], minlength=len(shared))
        supported = np.where(shared & (stars.seen - seen_here >= 1), stars.seen, 0)
        fit = _best_agreement(stars._replace(seen=supported), sources, search, tolerance)
        if _is_credible(fit, common_shift, areas[f], search, tolerance):
            found[f] = fit
    located = [f for f in range(len(frames)) if placed[f] or f in found]
    margin = 4 * tolerance + 2 * HEADER_ERROR
    expected = _expected_stars(frames, problem, stars, shared, located, sparse, margin)
    result = [Placement(0.0, 0.0, 0, reason, np.zeros(0, int)) for reason in reasons]
    for f in sparse:
        n = len(found[f].star_rows) if f in found else 0
        reason = _reason_without_place(n, *expected[f], untrusted[f])
        fit = found[f] if n and not reason else _NO_AGREEMENT
        result[f] = Placement(fit.dx, fit.dy, n, reason, fit.star_rows)
    return result


def _reason_without_place(n: int, expected: int, miss_chance: float, untrusted: str) -> str:
    """Why a frame that shows n of the expected stars has no place, '' if it has one.

    miss_chance: that all the expected stars are missed.
    """
    if n < MIN_SEEN_SHARE * expected and miss_chance <= MAX_MISS_CHANCE:
        return (
            f"too few stars: {n} of the {expected} that other frames show in its field"
            " (clouds, or pointed elsewhere)"
        )
    if n < 2 and untrusted:
        return (
            f"{n} stars in common with other frames, and its header's pointing cannot be trusted:"
            f" it {untrusted}"
        )
    return ""


def _brightest_rows(problem: Problem, frame: Measurements, f: int) -> np.ndarray:
    """Rows of the brightest sources of frame number f."""
    order = np.argsort(-np.asarray(frame.flux, float), kind="stable")
    return frame_rows(problem, f)[order[:MAX_SOURCES]]


def _source_list(problem: Problem, frame: Measurements, f: int, rows: np.ndarray) -> SourceList:
    """Places by the header and fluxes of some rows of frame number f."""
    flux = np.asarray(frame.flux, float)[rows - np.searchsorted(problem.frame, f)]
    return problem.header_xi[rows], problem.header_eta[rows], flux


def _sweep(
    lists: dict[int, SourceList], known: Stars, search: Arcsec, tolerance: Arcsec
) -> tuple[dict[int, _Agreement], Stars, dict[int, np.ndarray]]:
    """The best shift of each frame's sources against the stars of all others.

    Repeated as those become known. Returns the shifts; the stars, those known first; and the star
    of each source of each frame.
    """
    fits: dict[int, _Agreement] = {}
    stars = Stars(*(v.copy() for v in known))
    star_of_source: dict[int, np.ndarray] = {}
    if lists and not len(known.x):
        first = _anchor_frame(lists, search, tolerance)
        stars = Stars(*lists[first], np.ones(len(lists[first][0]), int))
        star_of_source = {first: np.arange(len(stars.x))}
    for _ in range(SWEEPS):
        for f, (x, y, flux) in lists.items():
            if f in star_of_source:
                stars.seen[star_of_source[f]] -= 1
            fits[f] = fit = _best_agreement(stars, lists[f], search, tolerance)
            number = np.full(len(x), -1)
            number[fit.source_rows] = fit.star_rows
            new = np.flatnonzero(number < 0)
            number[new] = len(stars.x) + np.arange(len(new))
            added = (x[new] + fit.dx, y[new] + fit.dy, flux[new], np.zeros(len(new), int))
            stars = Stars(*(np.append(old, more) for old, more in zip(stars, added, strict=True)))
            stars.seen[number] += 1
            star_of_source[f] = number
        keep = (stars.seen > 0) | (np.arange(len(stars.x)) < len(known.x))
        new_number = np.cumsum(keep) - 1
        stars = Stars(*(v[keep] for v in stars))
        star_of_source = {f: new_number[number] for f, number in star_of_source.items()}
    return fits, stars, star_of_source


def _common_shift(fits: dict[int, _Agreement], anchored: bool) -> tuple[Arcsec, Arcsec]:
    """The shift about which the frames' shifts scatter: their median; none if others hold them."""
    shifts = [(fit.dx, fit.dy) for fit in fits.values() if len(fit.star_rows)]
    east, north = np.median(shifts, axis=0) if shifts and not anchored else (0.0, 0.0)
    return float(east), float(north)


def _shared_stars(
    stars: Stars,
    could: np.ndarray,
    star_of_source: dict[int, np.ndarray],
    fits: dict[int, _Agreement],
    common_shift: tuple[Arcsec, Arcsec],
    lists: dict[int, SourceList],
    areas: dict[int, float],
) -> np.ndarray:
    """Which of the stars the frames agree upon (bool).

    Those are seen by two frames at least, by half of those that could see them, and more often than
    chance lets sources of like brightness lie within the shifts that brought them together.
    could: frames that could see each star; areas: of the frames' fields (arcsec^2).
    """
    alike, farthest = np.zeros(len(stars.x)), np.zeros(len(stars.x))
    for f, (_, _, flux) in lists.items():
        ln_ratio = np.abs(logarithms(stars.flux)[:, None] - logarithms(flux))
        alike += (ln_ratio <= MAX_LN_FLUX_RATIO).sum(axis=1) / len(lists)
        seen_here = np.isin(np.arange(len(stars.x)), star_of_source[f])
        shift = np.hypot(fits[f].dx - common_shift[0], fits[f].dy - common_shift[1])
        farthest = np.where(seen_here, np.maximum(farthest, shift), farthest)
    area = np.mean(list(areas.values())) if areas else 1.0
    share = np.minimum(alike * np.pi * np.maximum(farthest, HEADER_ERROR) ** 2 / area, 1.0)
    ways = special.comb(np.maximum(could, stars.seen) - 1, stars.seen - 1)
    others = np.maximum(stars.seen - 1, 0)
    chance = np.maximum(alike, 1) * len(lists) * ways * share**others
    return (stars.seen >= 2) & (stars.seen >= could / 2) & (chance <= MAX_STAR_CHANCE)


def _anchor_frame(lists: dict[int, SourceList], search: Arcsec, tolerance: Arcsec) -> int:
    """The frame whose sources most others share; of equals the one with the smallest sigmas."""
    tried = list(lists)[:: max(1, len(lists) // MAX_ANCHORS)]
    scores = []
    for anchor in tried:
        stars = Stars(*lists[anchor], np.ones(len(lists[anchor][0]), int))
        fits = [_best_agreement(stars, lists[f], search, tolerance) for f in tried if f != anchor]
        pairs = sum(len(fit.star_rows) for fit in fits)
        scores.append((pairs, -sum(fit.sigma for fit in fits if len(fit.star_rows))))
    return tried[max(range(len(tried)), key=lambda k: scores[k])]


def _best_agreement(
    stars: Stars, sources: SourceList, search: Arcsec, tolerance: Arcsec
) -> _Agreement:
    """The shift of the sources that the most, and most often seen, stars support.

    Of equals the one with the shortest shift and the most similar brightness.
    """
    x, y, flux = sources
    rows = np.flatnonzero(stars.seen > 0)
    rows = rows[rows_around(stars.x[rows], stars.y[rows], x, y, search)]
    dx, dy = stars.x[rows][:, None] - x, stars.y[rows][:, None] - y
    ln_ratio = logarithms(stars.flux[rows])[:, None] - logarithms(flux)
    i, j = np.nonzero((np.hypot(dx, dy) <= search) & (np.abs(ln_ratio) <= MAX_LN_FLUX_RATIO))
    if not len(i):
        return _NO_AGREEMENT
    sigmas = np.hypot(np.hypot(dx, dy)[i, j] / (search / 3), ln_ratio[i, j] / LN_FLUX_RATIO_SIGMA)
    # In the order of their sigmas the first of equals is the best.
    order = np.argsort(sigmas, kind="stable")[:MAX_PAIRS]
    i, j = i[order], j[order]
    u, v = dx[i, j], dy[i, j]
    weight = np.minimum(stars.seen[rows][i], FULL_SUPPORT_FRAMES).astype(float)
    agree = np.hypot(u[:, None] - u, v[:, None] - v) <= tolerance
    near = agree[int(np.argmax((agree * weight).sum(axis=1)))]
    shift = float(u[near].mean()), float(v[near].mean())
    star_xy = stars.x[rows], stars.y[rows]
    ia, ib = match_pairs(*star_xy, x + shift[0], y + shift[1], tolerance)
    similar = np.abs(ln_ratio[ia, ib]) <= MAX_LN_FLUX_RATIO
    ia, ib = ia[similar], ib[similar]
    if not len(ia):
        return _NO_AGREEMENT
    ratios = ln_ratio[ia, ib]
    shift = float(dx[ia, ib].mean()), float(dy[ia, ib].mean())
    sigma = np.hypot(np.hypot(*shift) / (search / 3), ratios.mean() / LN_FLUX_RATIO_SIGMA)
    alike = np.count_nonzero(np.abs(ln_ratio) <= max(np.abs(ratios).max(), LN_FLUX_RATIO_SIGMA))
    return _Agreement(*shift, rows[ia], ib, float(sigma), int(alike))


def _is_credible(
    fit: _Agreement,
    common_shift: tuple[Arcsec, Arcsec],
    area: float,
    search: Arcsec,
    tolerance: Arcsec,
) -> bool:
    """Whether a frame's sources agree with the stars better than chance lets them.

    By chance, pairs of like brightness lie as near to each other as the shift is long, and further
    ones at the same distance. A single star must also be about where, and as bright as, it should
    be. area: of the frame's field (arcsec^2).
    """
    n = len(fit.star_rows)
    if n == 0 or (n == 1 and fit.sigma > SINGLE_STAR_MAX_SIGMA):
        return False
    length = float(np.hypot(fit.dx - common_shift[0], fit.dy - common_shift[1]))
    length = min(max(length, HEADER_ERROR), search)
    further = (fit.alike * np.pi * tolerance**2 / area) ** (n - 1)
    return fit.alike * np.pi * length**2 / area * further <= MAX_FRAME_CHANCE


def _field_area(frame: Measurements) -> float:
    """Area of a frame's arrays, arcsec^2."""
    return sum(abs(signed_area(corners)) for corners in frame.outline)


def _in_field(frame: Measurements, problem: Problem, stars: Stars, margin: Arcsec) -> np.ndarray:
    """Which stars lie in a field by its header, `margin` arcsec inside the arrays' edges."""
    x, y = to_instrument_plane(frame, stars.x, stars.y, problem.centre)
    inside = np.zeros(len(stars.x), bool)
    for corners in frame.outline:
        inside |= inside_polygon(corners, x, y, margin)
    return inside


def _frames_that_could_see(
    frames: Sequence[Measurements],
    problem: Problem,
    stars: Stars,
    numbers: Sequence[int],
    margin: Arcsec,
) -> np.ndarray:
    """For each star, how many of the frames of these numbers have it in their field."""
    count = np.zeros(len(stars.x), int)
    for f in numbers:
        count += _in_field(frames[f], problem, stars, margin)
    return count


def _expected_stars(
    frames: Sequence[Measurements],
    problem: Problem,
    stars: Stars,
    shared: np.ndarray,
    placed: list[int],
    sparse: list[int],
    margin: Arcsec,
) -> dict[int, tuple[int, float]]:
    """For each sparse frame, how many stars should be there, and the chance that all are missed.

    Those are in its field, shared, and seen by most frames that could; the chance is as often as
    other frames miss them.
    """
    rows = np.flatnonzero(shared)
    rows = rows[np.argsort(-stars.flux[rows], kind="stable")[:MAX_EXPECTED_STARS]]
    bright = Stars(*(v[rows] for v in stars))
    could = _frames_that_could_see(frames, problem, bright, placed, margin)
    reliable = bright.seen >= RELIABLE_SHARE * np.maximum(could, 1)
    miss = 1 - np.minimum(bright.seen / (could + 1), 1.0)
    miss = np.where(bright.flux >= NEVER_MISSED_SIGNAL, 0.0, miss)
    expected = {f: _in_field(frames[f], problem, bright, margin) & reliable for f in sparse}
    return {f: (int(seen.sum()), float(np.prod(miss[seen]))) for f, seen in expected.items()}
