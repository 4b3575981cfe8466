"""Which source of one list is which of another, and which source of a frame is which star.

First a blind shift (with a small rotation) by counting coordinate differences, then one-to-one
pairs. Nearest neighbours are found by cells: thousands of short searches, each without a tree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gdask.kernels.arithmetic import arctangent, exponential, logarithm, sine_cosine
from gdask.kernels.astrometry.measured_stars import Problem, SourceList, frame_rows
from gdask.kernels.compiled import njit
from gdask.types import Arcsec, Degrees

#: Fewest pairs that make a pattern.
MIN_PAIRS = 4
#: A shift is believed if its pairs make it a thousand times more probable than chance, see
#: `_log10_odds`; it must hold this share of the sources that could have matched (stars of different
#: depth still do). One of odds of 1:10^12 is believed without: a catalogue may reach far beyond the
#: field, or lack its brightest stars.
MIN_LOG10_ODDS, MIN_PAIRED_SHARE, CERTAIN_LOG10_ODDS = 3.0, 0.1, 12.0
#: Sigma per axis of the difference of two guided headers' pointings; and the share of pointings
#: that are wrong by anything up to WIDE_RADIUS.
HEADER_SIGMA: Arcsec = 0.4
WRONG_HEADER_SHARE = 0.02
#: Points along an axis by which the area of an overlap is measured.
OVERLAP_POINTS = 96
#: Pointings are looked for as near as NEAR_RADIUS first; a blind search follows, this far (arcsec),
#: turned by these angles (degrees). With fewer sources than WIDE_MIN_SOURCES any agreement among so
#: many trials would be chance.
NEAR_RADIUS: Arcsec = 3.0
WIDE_RADIUS: Arcsec = 30.0
WIDE_MIN_SOURCES = 8
WIDE_ROTATIONS = tuple(np.round(np.arange(-2.0, 2.01, 0.1), 1).tolist())


class Shift(NamedTuple):
    """What takes list B onto list A.

    (x, y) of B is turned by `rotation` (degrees, x towards y) about `centre` (arcsec) and scaled,
    then moved by (dx, dy) arcsec. n pairs agree; contrast is the histogram's peak in sigma of
    accidental pairs; ok is False, with the reason in words, where no peak convinces.
    """

    dx: Arcsec
    dy: Arcsec
    rotation: Degrees
    scale: float
    centre: tuple[Arcsec, Arcsec]
    n: int
    contrast: float
    ok: bool
    reason: str


class Field(NamedTuple):
    """What of the plane is seen: cells of a raster, row by row.

    x0, y0: corner of the first cell; width, height: of a cell (arcsec); seen: bool (rows, columns).
    """

    x0: Arcsec
    y0: Arcsec
    width: Arcsec
    height: Arcsec
    seen: np.ndarray


class _Overlap(NamedTuple):
    """Sources of both lists in the overlap that a shift implies, and its area (arcsec^2)."""

    n_a: int
    n_b: int
    area: float


@njit(cache=True, nogil=True, error_model="numpy")
def _sorted_by_cell(
    x: np.ndarray, y: np.ndarray, x0: float, y0: float, size: float, nx: int, ny: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where each cell of a grid begins among the rows, and the rows in the order of their cells.

    size: of a cell, in the unit of the places; places that are not finite are in no cell.
    """
    count = np.zeros(nx * ny + 1, np.int64)
    cell = np.full(x.size, -1, np.int64)
    for k in range(x.size):
        if np.isfinite(x[k]) and np.isfinite(y[k]):
            cell[k] = int((y[k] - y0) / size) * nx + int((x[k] - x0) / size)
            count[cell[k] + 1] += 1
    start = np.cumsum(count)
    fill, rows = start.copy(), np.empty(start[-1], np.int64)
    for k in range(x.size):
        if cell[k] >= 0:
            rows[fill[cell[k]]] = k
            fill[cell[k]] += 1
    return start, rows


@njit(cache=True, nogil=True, error_model="numpy")
def nearest(
    xa: np.ndarray, ya: np.ndarray, xb: np.ndarray, yb: np.ndarray, radius: float
) -> np.ndarray:
    """The row of list A that is nearest to each place of list B.

    It must be less than `radius` from it, else -1; of equals the first.
    """
    out = np.full(xb.size, -1, np.int64)
    x0, x1, y0, y1, n = np.inf, -np.inf, np.inf, -np.inf, 0
    for k in range(xa.size):
        if np.isfinite(xa[k]) and np.isfinite(ya[k]):
            x0, x1, n = min(x0, xa[k]), max(x1, xa[k]), n + 1
            y0, y1 = min(y0, ya[k]), max(y1, ya[k])
    if n == 0 or not radius > 0:
        return out
    # Cells no smaller than the radius, of which there are about as many as places.
    size = max(radius, np.sqrt((x1 - x0) * (y1 - y0) / n), (x1 - x0 + y1 - y0) / n)
    nx, ny = int((x1 - x0) / size) + 1, int((y1 - y0) / size) + 1
    start, rows = _sorted_by_cell(xa, ya, x0, y0, size, nx, ny)
    for k in range(xb.size):
        u, v = xb[k] - x0, yb[k] - y0
        if not (-radius < u < x1 - x0 + radius and -radius < v < y1 - y0 + radius):
            continue
        best = radius * radius
        first, last = int(max(u - radius, 0.0) / size), min(int((u + radius) / size), nx - 1)
        for j in range(int(max(v - radius, 0.0) / size), min(int((v + radius) / size), ny - 1) + 1):
            for r in range(start[j * nx + first], start[j * nx + last + 1]):
                a = rows[r]
                d2 = (xa[a] - xb[k]) ** 2 + (ya[a] - yb[k]) ** 2
                if d2 < best or (d2 == best and 0 <= a < out[k]):
                    best, out[k] = d2, a
    return out


def match_pairs(
    xa: np.ndarray, ya: np.ndarray, xb: np.ndarray, yb: np.ndarray, radius: Arcsec
) -> tuple[np.ndarray, np.ndarray]:
    """One-to-one pairs of two lists: each is the other's nearest, within radius.

    The radius has the unit of the coordinates. Returns rows of both lists, rising in list A's.
    """
    if not len(xa) or not len(xb):
        return np.zeros(0, int), np.zeros(0, int)
    xa, ya, xb, yb = (np.ascontiguousarray(v, float) for v in (xa, ya, xb, yb))
    to_b, to_a = nearest(xb, yb, xa, ya, radius), nearest(xa, ya, xb, yb, radius)
    rows = np.flatnonzero(to_b >= 0)
    rows = rows[to_a[to_b[rows]] == rows]
    return rows, to_b[rows]


def apply_shift(shift: Shift, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take positions of list B (arcsec) onto list A."""
    s, c = sine_cosine.few(shift.rotation)
    u, v = (x - shift.centre[0]) * shift.scale, (y - shift.centre[1]) * shift.scale
    return shift.centre[0] + c * u - s * v + shift.dx, shift.centre[1] + s * u + c * v + shift.dy


def find_shift(
    list_a: SourceList,
    list_b: SourceList,
    radius: Arcsec,
    *,
    brightest: int = 300,
    tolerance: Arcsec = 0.1,
    rotations: Sequence[Degrees] = (0.0,),
    fields: tuple[Field, Field] | None = None,
    fewest: int = MIN_PAIRS,
    wrong_headers: float = WRONG_HEADER_SHARE,
) -> Shift:
    """Find the shift of list B onto list A by counting coordinate differences.

    Positions in arcsec in (nearly) one tangent plane, fluxes in any unit: the `brightest` of each
    list count, of A only those that B's field can reach within `radius` (arcsec). `tolerance`: how
    far apart (arcsec) matched sources may lie before the fit (distortion). rotations: angles
    (degrees) to try; with more than one the final rotation and scale are fitted, from at least 8
    pairs. A wide blind search is radius 30, rotations -2..2 in steps of 0.1. fields: what is seen
    of the plane in A and in B (the rectangles around the sources if not given); fewest: pairs;
    wrong_headers: share of pointings that are far off, before the stars are looked at.
    """
    (xa, ya, flux_a), (xb, yb, flux_b) = list_a, list_b
    poorer = min(len(xa), len(xb))
    if poorer < fewest:
        reason = f"{poorer} sources are too few to match (at least {fewest})"
        return Shift(0.0, 0.0, 0.0, 1.0, (0.0, 0.0), 0, 0.0, False, reason)
    field_a, field_b = fields or (_rectangle(xa, ya), _rectangle(xb, yb))
    xb, yb = _brightest_places(xb, yb, flux_b, np.ones(len(xb), bool), brightest)
    centre = (float(xb.mean()), float(yb.mean()))
    limit_x = np.ptp(xb) / 2 + np.abs(xb - centre[0]).max() / 2 + radius
    limit_y = np.ptp(yb) / 2 + np.abs(yb - centre[1]).max() / 2 + radius
    reachable = (np.abs(xa - centre[0]) <= limit_x) & (np.abs(ya - centre[1]) <= limit_y)
    xa, ya = _brightest_places(xa, ya, flux_a, reachable, brightest)
    best, background = Shift(0.0, 0.0, 0.0, 1.0, centre, 0, -1.0, True, ""), 0.0
    for angle in rotations:
        trial = best._replace(dx=0.0, dy=0.0, rotation=angle)
        x, y = apply_shift(trial, xb, yb)
        peak = _histogram_peak(
            (xa[:, None] - x).ravel(), (ya[:, None] - y).ravel(), radius, tolerance
        )
        dx, dy, count, contrast = peak[:4]
        if contrast > best.contrast:
            best = trial._replace(dx=dx, dy=dy, n=int(count), contrast=contrast)
            background = peak[4]
    best = _refined(best, (xa, ya), (xb, yb), tolerance, len(rotations) > 1, fewest)
    if best.n < fewest:
        reason = f"only {best.n} sources pair up within {radius:g} arcsec"
        return best._replace(ok=False, reason=reason)
    overlap = _overlap(best, (xa, ya), (xb, yb), field_a, field_b)
    chance = max(overlap.n_a * overlap.n_b * np.pi * tolerance**2 / overlap.area, background)
    prior = _header_density(float(np.hypot(best.dx, best.dy)), wrong_headers) / len(rotations)
    odds = _log10_odds(best.n, overlap, chance, prior * np.pi * tolerance**2)
    return _judged(best, min(overlap.n_a, overlap.n_b), odds)


def _rectangle(x: np.ndarray, y: np.ndarray) -> Field:
    """The field of which nothing is known but its sources."""
    x0, y0 = np.nanmin(x) - 1.0, np.nanmin(y) - 1.0
    return Field(x0, y0, np.nanmax(x) + 1 - x0, np.nanmax(y) + 1 - y0, np.ones((1, 1), bool))


def seen_in(field: Field, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether each place (arcsec) is in a field (bool)."""
    rows, columns = field.seen.shape
    i = np.floor((np.asarray(x) - field.x0) / field.width)
    j = np.floor((np.asarray(y) - field.y0) / field.height)
    inside = (i >= 0) & (i < columns) & (j >= 0) & (j < rows)
    out = np.zeros(inside.shape, bool)
    out[inside] = field.seen[j[inside].astype(int), i[inside].astype(int)]
    return out


def _overlap(
    shift: Shift,
    places_a: tuple[np.ndarray, np.ndarray],
    places_b: tuple[np.ndarray, np.ndarray],
    field_a: Field,
    field_b: Field,
) -> _Overlap:
    """What of both lists lies in the overlap that a shift of B onto A implies.

    A's sources are taken back to B by the shift without its turn, which is small.
    """
    n_a = int(seen_in(field_b, places_a[0] - shift.dx, places_a[1] - shift.dy).sum())
    n_b = int(seen_in(field_a, *apply_shift(shift, *places_b)).sum())
    rows, columns = np.nonzero(field_b.seen)
    x0, x1 = columns.min() * field_b.width, (columns.max() + 1) * field_b.width
    y0, y1 = rows.min() * field_b.height, (rows.max() + 1) * field_b.height
    along = (np.arange(OVERLAP_POINTS) + 0.5) / OVERLAP_POINTS
    x, y = np.meshgrid(field_b.x0 + x0 + (x1 - x0) * along, field_b.y0 + y0 + (y1 - y0) * along)
    both = seen_in(field_b, x, y) & seen_in(field_a, *apply_shift(shift, x, y))
    point = (x1 - x0) * (y1 - y0) / OVERLAP_POINTS**2
    # Pairs at the very rim are pairs, whatever the raster says.
    return _Overlap(max(n_a, shift.n), max(n_b, shift.n), max(float(both.sum()), 1.0) * point)


def _header_density(length: Arcsec, wrong: float) -> float:
    """How probable a shift of this length is before any star is seen, per arcsec^2.

    wrong: the share of pointings that may be off by anything up to WIDE_RADIUS.
    """
    core = exponential.few(-((length / HEADER_SIGMA) ** 2) / 2) / (2 * np.pi * HEADER_SIGMA**2)
    return float((1 - wrong) * core + wrong / (np.pi * WIDE_RADIUS**2))


def _log10_odds(n: int, overlap: _Overlap, chance: float, prior: float) -> float:
    """Decimal logarithm of how much more probable the shift is than chance, given its n pairs.

    If it is true, any number of pairs from none to all in its overlap is as probable; by chance
    they are a Poisson number of which `chance` are expected. prior: probability that the headers
    give to a shift as near to this one as pairs are to each other.
    """
    if n <= chance:
        return -np.inf
    # The sum of a Poisson distribution from n on, at most.
    log_tail = n * logarithm.few(max(chance, 1e-300)) - chance - math.lgamma(n + 1)
    log_tail -= logarithm.few(1 - chance / (n + 1))
    log_true = logarithm.few(prior) - logarithm.few(min(overlap.n_a, overlap.n_b) + 1.0)
    return float((log_true - log_tail) / logarithm.few(10.0))


def _brightest_places(
    x: np.ndarray, y: np.ndarray, flux: np.ndarray, keep: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Places of the n brightest among the sources to keep (bool); the first of equals."""
    rows = np.flatnonzero(keep & np.isfinite(flux) & np.isfinite(x) & np.isfinite(y))
    rows = rows[np.argsort(-flux[rows], kind="stable")[:n]]
    return x[rows], y[rows]


def _histogram_peak(
    dx: np.ndarray, dy: np.ndarray, radius: Arcsec, cell: Arcsec
) -> tuple[Arcsec, Arcsec, int, float, float]:
    """Centre of the fullest 3x3 bins of the differences, its count, and its contrast in sigma.

    Then the accidental pairs to be expected within a circle whose radius is the cell.
    """
    n = max(int(np.ceil(2 * radius / cell)), 3)
    near = np.flatnonzero((np.abs(dx) <= radius) & (np.abs(dy) <= radius))  # few, as a rule
    dx, dy = dx[near], dy[near]
    i = np.floor((dx + radius) / (2 * radius) * n).astype(int)
    j = np.floor((dy + radius) / (2 * radius) * n).astype(int)
    inside = (i >= 0) & (i < n) & (j >= 0) & (j < n)
    top, most = _fullest_bins(i[inside], j[inside], n)
    # Accidental pairs: those outside the peak, spread over the bins outside it.
    background = max(9 * (np.count_nonzero(inside) - most) / max(n * n - 9, 1), 0.0)
    contrast = (most - background) / np.sqrt(background + 1)
    width = 2 * radius / n
    dx_top, dy_top = (top % n + 0.5) * width - radius, (top // n + 0.5) * width - radius
    in_circle = float(background) * np.pi * (cell / width) ** 2 / 9
    return dx_top, dy_top, most, float(contrast), in_circle


def _fullest_bins(i: np.ndarray, j: np.ndarray, n: int) -> tuple[int, int]:
    """Middle of the 3x3 bins of an n x n histogram that hold most, and how many they hold.

    i, j: column and row of each entry. The middle is row times n plus column; the first of equals.
    """
    if not len(i):
        return 0, 0
    if 50 * len(i) > n * n:
        count = np.zeros((n + 2, n + 2), np.int64)
        count[1:-1, 1:-1] = np.bincount(j * n + i, minlength=n * n).reshape(n, n)
        rows = count[:-2] + count[1:-1] + count[2:]
        nine = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
        top = int(np.argmax(nine))
        return top, int(nine.flat[top])
    # Of few pairs only the bins around them are counted.
    di, dj = np.meshgrid((-1, 0, 1), (-1, 0, 1))
    u, v = i[:, None] + di.ravel(), j[:, None] + dj.ravel()
    inside = (u >= 0) & (u < n) & (v >= 0) & (v < n)
    bins, number = np.unique(v[inside] * n + u[inside], return_counts=True)
    top = int(np.argmax(number))
    return int(bins[top]), int(number[top])


def _similarity(
    xa: np.ndarray, ya: np.ndarray, xb: np.ndarray, yb: np.ndarray, turn: bool
) -> tuple[float, float, float, float]:
    """Least-squares shift of B's mean point, rotation (degrees) and scale of B onto A.

    Without turning, rotation and scale are 0 and 1.
    """
    mean_xa, mean_xb, mean_ya, mean_yb = xa.mean(), xb.mean(), ya.mean(), yb.mean()
    u, v, p, q = xb - mean_xb, yb - mean_yb, xa - mean_xa, ya - mean_ya
    size = (u * u + v * v).sum()
    if not turn or not size > 0:
        return mean_xa - mean_xb, mean_ya - mean_yb, 0.0, 1.0
    c, s = (u * p + v * q).sum() / size, (u * q - v * p).sum() / size
    rotation, scale = float(arctangent.few(s, c)), float(np.hypot(c, s))
    return mean_xa - mean_xb, mean_ya - mean_yb, rotation, scale


def _refined(
    shift: Shift,
    places_a: tuple[np.ndarray, np.ndarray],
    places_b: tuple[np.ndarray, np.ndarray],
    tolerance: Arcsec,
    turn: bool,
    fewest: int,
) -> Shift:
    """Pair within the tolerance and fit the shift (and rotation and scale), six times.

    The first two times within twice the tolerance, as the peak is known to a bin only.
    """
    (xa, ya), (xb, yb) = places_a, places_b
    for step in range(6):
        x, y = apply_shift(shift, xb, yb)
        ia, ib = match_pairs(xa, ya, x, y, (2.0 if step < 2 else 1.0) * tolerance)
        if len(ia) < fewest:
            return shift._replace(n=len(ia))
        dx, dy, angle, scale = _similarity(xa[ia], ya[ia], x[ib], y[ib], turn and len(ia) >= 8)
        # The fit turns about the mean of the pairs; dx and dy refer to the fixed centre.
        cx = shift.centre[0] + shift.dx - x[ib].mean()
        cy = shift.centre[1] + shift.dy - y[ib].mean()
        s, c = (value * scale for value in sine_cosine.few(angle))
        shift = shift._replace(
            dx=float(shift.dx + dx + c * cx - s * cy - cx),
            dy=float(shift.dy + dy + s * cx + c * cy - cy),
            rotation=float(shift.rotation + angle),
            scale=float(shift.scale * scale),
            n=len(ia),
        )
    return shift


def _judged(shift: Shift, possible: int, odds: float) -> Shift:
    """The shift, refused with the reason where its pairs, of those possible, do not convince."""
    if odds < MIN_LOG10_ODDS:
        reason = (
            f"no clear peak among the differences ({shift.contrast:.1f} sigma,"
            f" {shift.n} of {possible} pairs, {np.hypot(shift.dx, shift.dy):.2f} arcsec off)"
        )
    elif shift.n < MIN_PAIRED_SHARE * possible and odds < CERTAIN_LOG10_ODDS:
        reason = f"only {shift.n} of {possible} sources pair up"
    else:
        return shift
    return shift._replace(ok=False, reason=reason)


def other_rows(n: int, rows: np.ndarray) -> np.ndarray:
    """The rows 0..n-1 that are not among `rows`."""
    left = np.ones(n, bool)
    left[rows] = False
    return np.flatnonzero(left)


def rows_around(
    star_x: np.ndarray, star_y: np.ndarray, x: np.ndarray, y: np.ndarray, margin: Arcsec
) -> np.ndarray:
    """Rows of a list of stars within the rectangle around some places, and a margin.

    The rest of the list need not be searched.
    """
    if not len(x):
        return np.zeros(0, int)
    inside = (star_x >= x.min() - margin) & (star_x <= x.max() + margin)
    return np.flatnonzero(inside & (star_y >= y.min() - margin) & (star_y <= y.max() + margin))


def number_stars(
    problem: Problem,
    xi: np.ndarray,
    eta: np.ndarray,
    use: np.ndarray,
    known: tuple[np.ndarray, np.ndarray],
    radius: Arcsec,
) -> Problem:
    """Give each measurement the number of its star: the nearest of a list, or a new one.

    xi, eta: corrected positions; use: bool per frame; known: positions of the list, all in the
    common plane (arcsec). One-to-one within a frame, within `radius` (arcsec).
    """
    finite = np.isfinite(known[0])
    star_xi, star_eta = known[0][finite], known[1][finite]
    star = np.zeros(len(xi), np.int64)
    for f in map(int, np.flatnonzero(use)):
        i = frame_rows(problem, f)
        near = rows_around(star_xi, star_eta, xi[i], eta[i], radius)
        ia, ib = match_pairs(star_xi[near], star_eta[near], xi[i], eta[i], radius)
        star[i[ib]] = near[ia]
        new = i[other_rows(len(i), ib)]
        star[new] = len(star_xi) + np.arange(len(new))
        star_xi, star_eta = np.append(star_xi, xi[new]), np.append(star_eta, eta[new])
    return problem._replace(star=star, stars=max(len(star_xi), 1))
