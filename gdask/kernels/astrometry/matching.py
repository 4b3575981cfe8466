"""Which source of one list is which of another: a blind shift (with a small rotation), then one-to-one pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gdask.kernels.astrometry.pair_search import nearest
from gdask.types import Arcsec, Degrees

#: The histogram's peak must stand this many sigma of the accidental pairs above them, with at least MIN_PAIRS pairs.
#: With up to 10^5 bins, 5.5 sigma is reached by chance less than once in 1000 searches (Poisson, expectation > 1).
MIN_CONTRAST, MIN_PAIRS = 5.5, 4
#: ... and hold this share of the sources that could have matched: stars of different depth still do. A peak of CERTAIN
#: sigma is believed without: a catalogue may reach far beyond the field, or lack its brightest stars.
MIN_SHARE, CERTAIN = 0.1, 12.0


class Shift(NamedTuple):
    """What takes list B onto list A: (x, y) of B is turned by `rotation` (degrees, x towards y) about `centre` and
    scaled, then moved by (dx, dy) arcsec. n pairs agree; contrast is the histogram's peak in sigma of accidental
    pairs; ok is False, with the reason in words, where no peak convinces."""

    dx: Arcsec
    dy: Arcsec
    rotation: Degrees
    scale: float
    centre: tuple[Arcsec, Arcsec]
    n: int
    contrast: float
    ok: bool
    reason: str


def apply_shift(shift: Shift, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of list B (arcsec) on list A."""
    c, s = np.cos(np.radians(shift.rotation)), np.sin(np.radians(shift.rotation))
    u, v = (x - shift.centre[0]) * shift.scale, (y - shift.centre[1]) * shift.scale
    return shift.centre[0] + c * u - s * v + shift.dx, shift.centre[1] + s * u + c * v + shift.dy


def _brightest(
    x: np.ndarray, y: np.ndarray, flux: np.ndarray, keep: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    index = np.flatnonzero(keep & np.isfinite(flux) & np.isfinite(x) & np.isfinite(y))
    index = index[np.argsort(-flux[index], kind="stable")[:n]]
    return x[index], y[index]


def _peak(
    dx: np.ndarray, dy: np.ndarray, radius: Arcsec, cell: Arcsec
) -> tuple[Arcsec, Arcsec, float, float]:
    """Centre of the fullest 3x3 bins of the differences, its count, and its contrast against all bins."""
    n = max(int(np.ceil(2 * radius / cell)), 3)
    near = np.flatnonzero((np.abs(dx) <= radius) & (np.abs(dy) <= radius))  # few, as a rule
    dx, dy = dx[near], dy[near]
    i = np.floor((dx + radius) / (2 * radius) * n).astype(int)
    j = np.floor((dy + radius) / (2 * radius) * n).astype(int)
    inside = (i >= 0) & (i < n) & (j >= 0) & (j < n)
    top, most = _fullest(i[inside], j[inside], n)
    # Accidental pairs: those outside the peak, spread over the bins outside it.
    background = max(9 * (np.count_nonzero(inside) - most) / max(n * n - 9, 1), 0.0)
    contrast = (most - background) / np.sqrt(background + 1)
    width = 2 * radius / n
    return (
        (top % n + 0.5) * width - radius,
        (top // n + 0.5) * width - radius,
        float(most),
        float(contrast),
    )


def _fullest(i: np.ndarray, j: np.ndarray, n: int) -> tuple[int, int]:
    """The bin (row times n plus column) of an n x n histogram whose 3x3 bins hold most, and how many; the first of
    equals."""
    if not len(i):
        return 0, 0
    if 50 * len(i) > n * n:
        count = np.zeros((n + 2, n + 2), np.int64)
        count[1:-1, 1:-1] = np.bincount(j * n + i, minlength=n * n).reshape(n, n)
        rows = count[:-2] + count[1:-1] + count[2:]
        nine = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
        top = int(np.argmax(nine))
        return top, int(nine.flat[top])
    du, dv = np.meshgrid((-1, 0, 1), (-1, 0, 1))  # few pairs: only the bins about them
    u, v = i[:, None] + du.ravel(), j[:, None] + dv.ravel()
    there = (u >= 0) & (u < n) & (v >= 0) & (v < n)
    bins, number = np.unique(v[there] * n + u[there], return_counts=True)
    top = int(np.argmax(number))
    return int(bins[top]), int(number[top])


def _similarity(
    xa: np.ndarray, ya: np.ndarray, xb: np.ndarray, yb: np.ndarray, turn: bool
) -> tuple[float, float, float, float]:
    """Least-squares shift of B's mean point, rotation (radians) and scale of B onto A; without turning: 0 and 1."""
    ma, mb, na, nb = xa.mean(), xb.mean(), ya.mean(), yb.mean()
    u, v, p, q = xb - mb, yb - nb, xa - ma, ya - na
    size = (u * u + v * v).sum()
    if not turn or not size > 0:
        return ma - mb, na - nb, 0.0, 1.0
    c, s = (u * p + v * q).sum() / size, (u * q - v * p).sum() / size
    return ma - mb, na - nb, float(np.arctan2(s, c)), float(np.hypot(c, s))


def find_shift(
    xa: np.ndarray,
    ya: np.ndarray,
    fa: np.ndarray,
    xb: np.ndarray,
    yb: np.ndarray,
    fb: np.ndarray,
    radius: Arcsec,
    *,
    brightest: int = 300,
    tolerance: Arcsec = 0.1,
    rotations: Sequence[Degrees] = (0.0,),
) -> Shift:
    """Find the shift of list B onto list A by counting coordinate differences.

    Positions in arcsec in (nearly) one tangent plane, fluxes in any unit: the `brightest` of each list count, of A
    only those that B's field can reach within `radius` (arcsec). `tolerance`: how far apart matched sources may lie
    before the fit (distortion). rotations: angles (degrees) to try; with more than one the final rotation and scale
    are fitted, from at least 8 pairs. A wide blind search is radius 30, rotations -2..2 in steps of 0.1.
    """
    if min(len(xa), len(xb)) < MIN_PAIRS:
        reason = f"{min(len(xa), len(xb))} sources are too few to match (at least {MIN_PAIRS})"
        return Shift(0.0, 0.0, 0.0, 1.0, (0.0, 0.0), 0, 0.0, False, reason)
    xb1, yb1 = _brightest(xb, yb, fb, np.ones(len(xb), bool), brightest)
    centre = (float(xb1.mean()), float(yb1.mean()))
    near = (
        np.abs(xa - centre[0]) <= np.ptp(xb1) / 2 + np.abs(xb1 - centre[0]).max() / 2 + radius
    ) & (np.abs(ya - centre[1]) <= np.ptp(yb1) / 2 + np.abs(yb1 - centre[1]).max() / 2 + radius)
    xa1, ya1 = _brightest(xa, ya, fa, near, brightest)
    best: tuple[float, ...] = (-1.0,)
    for angle in rotations:
        trial = Shift(0.0, 0.0, angle, 1.0, centre, 0, 0.0, True, "")
        x, y = apply_shift(trial, xb1, yb1)
        dx, dy, count, contrast = _peak(
            (xa1[:, None] - x).ravel(), (ya1[:, None] - y).ravel(), radius, tolerance
        )
        if contrast > best[0]:
            best = (contrast, dx, dy, angle, count)
    contrast, dx, dy, angle, count = best
    start = Shift(dx, dy, angle, 1.0, centre, int(count), contrast, True, "")
    return _judge(
        _polish(start, xa1, ya1, xb1, yb1, tolerance, len(rotations) > 1),
        len(xa1),
        len(xb1),
        radius,
    )


def _polish(
    shift: Shift,
    xa: np.ndarray,
    ya: np.ndarray,
    xb: np.ndarray,
    yb: np.ndarray,
    tolerance: Arcsec,
    turn: bool,
) -> Shift:
    """Repeat: pair within the tolerance, fit shift (and rotation and scale), from the centre of the peak."""
    for step in range(6):
        x, y = apply_shift(shift, xb, yb)
        ia, ib = match_pairs(xa, ya, x, y, (2.0 if step < 2 else 1.0) * tolerance)
        if len(ia) < MIN_PAIRS:
            return shift._replace(n=len(ia))
        dx, dy, angle, scale = _similarity(xa[ia], ya[ia], x[ib], y[ib], turn and len(ia) >= 8)
        # The fit turns about the mean of the pairs: bring it to the fixed centre, which shift.dx, dy refer to.
        cx, cy = (
            shift.centre[0] + shift.dx - x[ib].mean(),
            shift.centre[1] + shift.dy - y[ib].mean(),
        )
        c, s = np.cos(angle) * scale, np.sin(angle) * scale
        shift = shift._replace(
            dx=float(shift.dx + dx + c * cx - s * cy - cx),
            dy=float(shift.dy + dy + s * cx + c * cy - cy),
            rotation=float(shift.rotation + np.degrees(angle)),
            scale=float(shift.scale * scale),
            n=len(ia),
        )
    return shift


def _judge(shift: Shift, na: int, nb: int, radius: Arcsec) -> Shift:
    possible = min(na, nb)
    if shift.n < MIN_PAIRS:
        reason = f"only {shift.n} sources pair up within {radius:g} arcsec"
    elif shift.contrast < MIN_CONTRAST and shift.n < 0.5 * possible:
        reason = f"no clear peak among the differences ({shift.contrast:.1f} sigma, {shift.n} of {possible} pairs)"
    elif shift.n < MIN_SHARE * possible and shift.contrast < CERTAIN:
        reason = f"only {shift.n} of {possible} sources pair up"
    else:
        return shift
    return shift._replace(ok=False, reason=reason)


def match_pairs(
    xa: np.ndarray, ya: np.ndarray, xb: np.ndarray, yb: np.ndarray, radius: Arcsec
) -> tuple[np.ndarray, np.ndarray]:
    """One-to-one pairs of two lists: each is the other's nearest, within radius (the unit of the coordinates).

    Returns indices (ia, ib) into the lists, rising in ia.
    """
    if not len(xa) or not len(xb):
        return np.zeros(0, int), np.zeros(0, int)
    xa, ya, xb, yb = (np.ascontiguousarray(v, float) for v in (xa, ya, xb, yb))
    to_b, to_a = nearest(xb, yb, xa, ya, radius), nearest(xa, ya, xb, yb, radius)
    ia = np.flatnonzero(to_b >= 0)
    ia = ia[to_a[to_b[ia]] == ia]
    return ia, to_b[ia]
