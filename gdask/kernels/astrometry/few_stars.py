"""Frames with too few stars for a pattern: placed by their headers, by brightness and by what the frames agree on.

A shift is believed where the stars of other frames support it; a cosmic ray or a bad pixel supports none. Where no star
is there to be seen, the telescope's offsets are all there is: they are good to HEADER_ERROR. Where stars should be
there and are not, the frame looked through clouds or elsewhere, and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import comb

from gdask.kernels.astrometry.joint_fit import Problem
from gdask.kernels.astrometry.matching import match_pairs
from gdask.kernels.astrometry.star_association import Measurements, Places, from_common, rows_of
from gdask.types import Arcsec

#: What a guided telescope's offsets are good to, per axis (arcsec).
HEADER_ERROR: Arcsec = 0.25
#: Sources of a frame, and stars in its field, up to which it is placed in this way; with more a pattern must be found.
FEW = 8
#: Brightest sources of a frame that are tried, and candidate pairs.
MOST_SOURCES, MOST_PAIRS = 50, 1500
#: A pair may differ by a factor of e^FLUX_RANGE = 3 in brightness; FLUX_SIGMA (ln flux) and a third of the search
#: radius are the sigmas of one pair, which must stay within LONELY sigma if nothing else supports it.
FLUX_RANGE, FLUX_SIGMA, LONELY = 1.1, 0.3, 2.5
#: So many agreements as good as the one found may be expected by chance: for a star that frames are said to share,
#: and for a frame that is said to show such stars.
STAR_CHANCE, FRAME_CHANCE = 0.01, 0.05
#: A star that so many of the frames show whose field it is in should be there (FULL: is counted as well supported).
RELIABLE, FULL = 0.75, 3
#: Of the stars that should be there, the share that must be; but that all are missed by chance, not being bright (signal
#: to noise BRIGHT or more are not missed), must be as improbable as MISSED.
MIN_SEEN, BRIGHT, MISSED = 0.25, 20.0, 0.1
SWEEPS, ANCHORS = 3, 20


class Stars(NamedTuple):
    """Stars in the common plane (arcsec): places, fluxes, and in how many frames each was seen."""

    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    seen: np.ndarray


class Placed(NamedTuple):
    """How one frame was placed: shift in the common plane (arcsec), by n stars (0: by its header), or why not."""

    dx: Arcsec
    dy: Arcsec
    n: int
    reason: str


class _Fit(NamedTuple):
    """A trial shift (arcsec): pairs (rows of the stars, of the sources), sigmas of the pairs' mean, and how many pairs
    of like brightness there are at all."""

    dx: Arcsec
    dy: Arcsec
    ia: np.ndarray
    ib: np.ndarray
    sigmas: float
    alike: int


_NOTHING = _Fit(0.0, 0.0, np.zeros(0, int), np.zeros(0, int), np.inf, 0)


def place_sparse(
    frames: Sequence[Measurements],
    problem: Problem,
    known: Stars,
    placed: np.ndarray,
    reasons: Sequence[str],
    untrusted: Sequence[str],
    search: Arcsec,
    tolerance: Arcsec,
) -> list[Placed]:
    """Place the frames that are not yet `placed` (bool per frame; the stars that those show are `known`).

    reasons: why each frame has no place yet. untrusted: why a frame's header pointing is
    wrong ('' if it is not): such a frame is not placed by it. search, tolerance: arcsec, as in `fit.solve`.
    Frames for which there are stars enough for a pattern, and none was found, keep their reason.
    """
    poor = [f for f in range(len(frames)) if not placed[f]]
    own = {f: _brightest(problem, frames[f], f) for f in poor}
    certain = Stars(*(v[known.seen >= 2] for v in known))
    rich = {
        f
        for f in poor
        if len(own[f]) > FEW and _in_field(frames[f], problem, certain, 0.0).sum() > FEW
    }
    lists = {
        f: (problem.p[own[f]], problem.q[own[f]], _flux_of(problem, frames[f], f, own[f]))
        for f in poor
        if len(own[f]) and f not in rich
    }
    fits, stars, which = _sweep(lists, known, search, tolerance)
    middle = _middle(fits, bool(placed.any()))
    agreed = _agreed(frames, problem, stars, which, fits, middle, lists, placed, len(known.x))
    found: dict[int, _Fit] = {}
    for f, sources in lists.items():
        others = agreed & (stars.seen - np.bincount(which[f], minlength=len(agreed)) >= 1)
        fit = _best(
            stars._replace(seen=np.where(others, stars.seen, 0)), sources, search, tolerance
        )
        if _believed(fit, middle, frames[f], search, tolerance):
            found[f] = fit
    everywhere = [f for f in range(len(frames)) if placed[f] or f in found]
    expected = _expected(
        frames, problem, stars, agreed, everywhere, poor, 4 * tolerance + 2 * HEADER_ERROR
    )
    result = [Placed(0.0, 0.0, 0, reason) for reason in reasons]
    for f in (f for f in poor if f not in rich):
        n = len(found[f].ia) if f in found else 0
        reason = _verdict(n, *expected[f], untrusted[f])
        fit = found[f] if n and not reason else _NOTHING
        result[f] = Placed(fit.dx, fit.dy, n, reason)
    return result


def _verdict(n: int, expected: int, missed: float, untrusted: str) -> str:
    """Why a frame that shows n of the expected stars has no place, '' if it has one; missed: chance to see none."""
    if n < MIN_SEEN * expected and missed <= MISSED:
        return f"too few stars: {n} of the {expected} that other frames show in its field (clouds, or pointed elsewhere)"
    if n < 2 and untrusted:
        return f"{n} stars in common with other frames, and its header's pointing cannot be trusted: it {untrusted}"
    return ""


def _brightest(problem: Problem, frame: Measurements, f: int) -> np.ndarray:
    """Rows of a frame's brightest sources."""
    return rows_of(problem, f)[
        np.argsort(-np.asarray(frame.flux, float), kind="stable")[:MOST_SOURCES]
    ]


def _flux_of(problem: Problem, frame: Measurements, f: int, rows: np.ndarray) -> np.ndarray:
    return np.asarray(frame.flux, float)[rows - np.searchsorted(problem.frame, f)]


def _sweep(
    lists: dict[int, Places], known: Stars, search: Arcsec, tolerance: Arcsec
) -> tuple[dict[int, _Fit], Stars, dict[int, np.ndarray]]:
    """The best shift of each frame's sources against the stars of all others, repeated as those become known; the
    stars, those known first; and the star of each frame's source."""
    fits: dict[int, _Fit] = {}
    stars, which = Stars(*(v.copy() for v in known)), {}
    if lists and not len(known.x):
        first = _anchor(lists, search, tolerance)
        stars, which = (
            Stars(*lists[first], np.ones(len(lists[first][0]), int)),
            {first: np.arange(len(lists[first][0]))},
        )
    for _ in range(SWEEPS):
        for f, (x, y, flux) in lists.items():
            if f in which:
                stars.seen[which[f]] -= 1
            fits[f] = fit = _best(stars, lists[f], search, tolerance)
            number = np.full(len(x), -1)
            number[fit.ib] = fit.ia
            new = np.flatnonzero(number < 0)
            number[new] = len(stars.x) + np.arange(len(new))
            added = (x[new] + fit.dx, y[new] + fit.dy, flux[new], np.zeros(len(new), int))
            stars = Stars(*(np.append(old, more) for old, more in zip(stars, added, strict=True)))
            stars.seen[number] += 1
            which[f] = number
        keep = (stars.seen > 0) | (np.arange(len(stars.x)) < len(known.x))
        renumber = np.cumsum(keep) - 1
        stars, which = (
            Stars(*(v[keep] for v in stars)),
            {f: renumber[number] for f, number in which.items()},
        )
    return fits, stars, which


def _middle(fits: dict[int, _Fit], anchored: bool) -> tuple[Arcsec, Arcsec]:
    """The shift about which the frames' shifts scatter: none if other frames hold them, else their median."""
    shifts = [(fit.dx, fit.dy) for fit in fits.values() if len(fit.ia)]
    east, north = np.median(shifts, axis=0) if shifts and not anchored else (0.0, 0.0)
    return float(east), float(north)


def _agreed(
    frames: Sequence[Measurements],
    problem: Problem,
    stars: Stars,
    which: dict[int, np.ndarray],
    fits: dict[int, _Fit],
    middle: tuple[Arcsec, Arcsec],
    lists: dict[int, Places],
    placed: np.ndarray,
    known: int,
) -> np.ndarray:
    """Which stars are: seen by two frames at least, by half of those that could, and more often than chance lets
    sources of like brightness lie within the shifts that it took to bring them together."""
    could, alike, reach = (np.zeros(len(stars.x)) for _ in range(3))
    for f in (f for f in range(len(frames)) if placed[f] or f in lists):
        could += _in_field(frames[f], problem, stars, 0.0)
    for f, (_, _, flux) in lists.items():
        alike += (np.abs(np.log(stars.flux)[:, None] - np.log(flux)) <= FLUX_RANGE).sum(
            axis=1
        ) / len(lists)
        mine = np.isin(np.arange(len(stars.x)), which[f])
        shift = np.hypot(fits[f].dx - middle[0], fits[f].dy - middle[1])
        reach = np.where(mine, np.maximum(reach, shift), reach)
    size = np.mean([_field_area(frames[f]) for f in lists]) if lists else 1.0
    share = np.minimum(alike * np.pi * np.maximum(reach, HEADER_ERROR) ** 2 / size, 1.0)
    ways = comb(np.maximum(could, stars.seen) - 1, stars.seen - 1)
    chance = np.maximum(alike, 1) * len(lists) * ways * share ** np.maximum(stars.seen - 1, 0)
    certain = (np.arange(len(stars.x)) < known) & (stars.seen >= 2)
    return certain | ((stars.seen >= 2) & (stars.seen >= could / 2) & (chance <= STAR_CHANCE))


def _anchor(lists: dict[int, Places], search: Arcsec, tolerance: Arcsec) -> int:
    """The frame whose sources most others share, best."""
    some = list(lists)[:: max(1, len(lists) // ANCHORS)]
    scores = []
    for a in some:
        stars = Stars(*lists[a], np.ones(len(lists[a][0]), int))
        fits = [_best(stars, lists[f], search, tolerance) for f in some if f != a]
        scores.append(
            (sum(len(fit.ia) for fit in fits), -sum(fit.sigmas for fit in fits if len(fit.ia)))
        )
    return some[max(range(len(some)), key=lambda k: scores[k])]


def _best(stars: Stars, sources: Places, search: Arcsec, tolerance: Arcsec) -> _Fit:
    """The shift of the sources that the most, and most often seen, stars support; the shortest of equals."""
    x, y, flux = sources
    there = np.flatnonzero(stars.seen > 0)
    there = there[_near(stars.x[there], x, search) & _near(stars.y[there], y, search)]
    if not len(there) or not len(x):
        return _NOTHING
    dx, dy = stars.x[there][:, None] - x, stars.y[there][:, None] - y
    ratio = np.log(stars.flux[there])[:, None] - np.log(flux)
    i, j = np.nonzero((np.hypot(dx, dy) <= search) & (np.abs(ratio) <= FLUX_RANGE))
    if not len(i):
        return _NOTHING
    sigmas = np.hypot(np.hypot(dx, dy)[i, j] / (search / 3), ratio[i, j] / FLUX_SIGMA)
    order = np.argsort(sigmas, kind="stable")[:MOST_PAIRS]
    i, j, sigmas = i[order], j[order], sigmas[order]
    u, v, weight = dx[i, j], dy[i, j], np.minimum(stars.seen[there][i], FULL).astype(float)
    agree = np.hypot(u[:, None] - u, v[:, None] - v) <= tolerance
    top = int(
        np.argmax(agree @ weight)
    )  # the pairs are in order of their sigmas: the first of equals is the best
    for _ in range(3):
        near = np.hypot(u - u[top], v - v[top]) <= tolerance
        shift = float(u[near].mean()), float(v[near].mean())
    ia, ib = match_pairs(stars.x[there], stars.y[there], x + shift[0], y + shift[1], tolerance)
    good = np.abs(ratio[ia, ib]) <= FLUX_RANGE
    ia, ib = ia[good], ib[good]
    if not len(ia):
        return _NOTHING
    shift = float(dx[ia, ib].mean()), float(dy[ia, ib].mean())
    off = np.hypot(*shift) / (search / 3), ratio[ia, ib].mean() / FLUX_SIGMA
    like = np.abs(ratio) <= max(np.abs(ratio[ia, ib]).max(), FLUX_SIGMA)
    return _Fit(*shift, there[ia], ib, float(np.hypot(*off)), int(np.count_nonzero(like)))


def _near(stars: np.ndarray, sources: np.ndarray, search: Arcsec) -> np.ndarray:
    return (stars >= sources.min() - search) & (stars <= sources.max() + search)


def _believed(
    fit: _Fit, middle: tuple[Arcsec, Arcsec], frame: Measurements, search: Arcsec, tolerance: Arcsec
) -> bool:
    """Whether a frame's sources agree with the stars better than chance lets them: pairs of like brightness lie as near
    to each other as the shift is long, and further ones at the same distance. A lonely star must also be about where,
    and as bright as, it should be."""
    n = len(fit.ia)
    if n == 0 or (n == 1 and fit.sigmas > LONELY):
        return False
    reach = min(max(float(np.hypot(fit.dx - middle[0], fit.dy - middle[1])), HEADER_ERROR), search)
    size = _field_area(frame)
    chance = (
        fit.alike * np.pi * reach**2 / size * (fit.alike * np.pi * tolerance**2 / size) ** (n - 1)
    )
    return chance <= FRAME_CHANCE


def _field_area(frame: Measurements) -> float:
    """Area of a frame's arrays, arcsec^2."""
    return sum(abs(_area(corners)) for corners in frame.outline)


def _in_field(frame: Measurements, problem: Problem, stars: Stars, margin: Arcsec) -> np.ndarray:
    """Which stars lie in a frame's field by its header, at least `margin` arcsec inside its arrays' edges."""
    x, y = from_common(frame, stars.x, stars.y, problem.centre)
    inside = np.zeros(len(stars.x), bool)
    for corners in frame.outline:
        mine = np.ones(len(stars.x), bool)
        turn = np.sign(_area(corners))
        for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            distance = (
                turn * ((x2 - x1) * (y - y1) - (y2 - y1) * (x - x1)) / np.hypot(x2 - x1, y2 - y1)
            )
            mine &= distance > margin
        inside |= mine
    return inside


def _area(corners: np.ndarray) -> float:
    x, y = corners.T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def _expected(
    frames: Sequence[Measurements],
    problem: Problem,
    stars: Stars,
    agreed: np.ndarray,
    placed: list[int],
    poor: list[int],
    margin: Arcsec,
) -> dict[int, tuple[int, float]]:
    """For each poor frame, how many stars should be there: in its field, agreed upon, and seen by most that could; and
    the chance that all are missed, as often as other frames miss them."""
    some = np.flatnonzero(agreed)
    some = some[np.argsort(-stars.flux[some], kind="stable")[:300]]
    bright = Stars(*(v[some] for v in stars))
    could = np.zeros(len(some), int)
    for f in placed:
        could += _in_field(frames[f], problem, bright, margin)
    reliable = bright.seen >= RELIABLE * np.maximum(could, 1)
    missed = np.where(bright.flux >= BRIGHT, 0.0, 1 - np.minimum(bright.seen / (could + 1), 1.0))
    there = {f: _in_field(frames[f], problem, bright, margin) & reliable for f in poor}
    return {f: (int(stars.sum()), float(np.prod(missed[stars]))) for f, stars in there.items()}
