"""From the source lists of many frames to one list of stars: common tangent plane, first shifts, star numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gdask.kernels.astrometry.distortion_terms import TERMS, fit_terms
from gdask.kernels.astrometry.joint_fit import Problem
from gdask.kernels.astrometry.matching import Shift, apply_shift, find_shift, match_pairs
from gdask.kernels.geometry.projection import tangent_plane, tangent_sky
from gdask.types import Arcsec, Degrees

#: Where the search within the wanted radius finds nothing, a blind one follows: this far, turned by these angles.
#: With fewer sources any agreement among so many trials would be chance.
WIDE: Arcsec = 30.0
WIDE_SOURCES = 8
WIDE_ROTATIONS = tuple(np.round(np.arange(-2.0, 2.01, 0.1), 1).tolist())


class Measurements(NamedTuple):
    """The usable sources of one frame. x, y: instrument plane (arcsec) after the static distortion, uncorrected;
    ex, ey: errors (arcsec); flux: any unit, the same for all frames; array: index of the detector array; ra, dec, pa:
    the header's pointing and position angle (degrees), which take the plane to the sky as in `geometry.Geometry`;
    outline: corners (4, 2) of each array in the plane (none: the rectangle around all frames' sources); signal: flux
    over its error, brought to one exposure time for all frames (none: the flux), by which a few stars are compared:
    the scale of a fitted flux hangs on the star image, of which a few stars say little; epoch: number of the night."""

    name: str
    x: np.ndarray
    y: np.ndarray
    ex: np.ndarray
    ey: np.ndarray
    flux: np.ndarray
    array: np.ndarray
    ra: Degrees
    dec: Degrees
    pa: Degrees
    outline: tuple[np.ndarray, ...] = ()
    signal: np.ndarray | None = None
    epoch: int = 0


class Found(NamedTuple):
    """First shift of each frame: terms (frames, 20), contrast of the histogram's peak, and what failed ('' if not)."""

    terms: np.ndarray
    contrast: tuple[float, ...]
    reason: tuple[str, ...]


def centre_of(frames: Sequence[Measurements]) -> tuple[Degrees, Degrees]:
    """Median pointing (ra, dec, degrees)."""
    first = frames[0]
    xi, eta = tangent_plane(
        np.array([f.ra for f in frames]), np.array([f.dec for f in frames]), first.ra, first.dec
    )
    ra, dec = tangent_sky(np.median(xi), np.median(eta), first.ra, first.dec)
    return float(ra), float(dec)


def to_common(
    frame: Measurements, x: np.ndarray, y: np.ndarray, centre: tuple[Degrees, Degrees]
) -> tuple[np.ndarray, np.ndarray]:
    """Instrument plane of a frame -> tangent plane about the centre (arcsec), exactly, as its header says."""
    c, s = np.cos(np.radians(frame.pa)), np.sin(np.radians(frame.pa))
    ra, dec = tangent_sky(c * x + s * y, -s * x + c * y, frame.ra, frame.dec)
    return tangent_plane(ra, dec, *centre)


def from_common(
    frame: Measurements, p: np.ndarray, q: np.ndarray, centre: tuple[Degrees, Degrees]
) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `to_common`."""
    c, s = np.cos(np.radians(frame.pa)), np.sin(np.radians(frame.pa))
    xi, eta = tangent_plane(*tangent_sky(p, q, *centre), frame.ra, frame.dec)
    return c * xi - s * eta, s * xi + c * eta


def rows_of(problem: Problem, f: int) -> np.ndarray:
    """The measurements of frame f."""
    return np.arange(*np.searchsorted(problem.frame, [f, f + 1]))


def with_outlines(frames: Sequence[Measurements]) -> list[Measurements]:
    """The frames, those without an outline with the rectangle (at least 1 arcsec) around the sources of all."""
    x, y = (np.concatenate([getattr(f, name) for f in frames]) for name in "xy")
    x1, x2, y1, y2 = (x.min(), x.max(), y.min(), y.max()) if len(x) else (0.0, 0.0, 0.0, 0.0)
    x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
    rectangle = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], float)
    return [frame if frame.outline else frame._replace(outline=(rectangle,)) for frame in frames]


def brightness(frame: Measurements) -> np.ndarray:
    """By what a frame's sources are compared with another's: signal to noise, or flux."""
    return np.asarray(frame.flux if frame.signal is None else frame.signal, float)


def set_up(frames: Sequence[Measurements], centre: tuple[Degrees, Degrees]) -> Problem:
    """All measurements in a row; star numbers and weights are still 0."""
    sizes = [len(f.x) for f in frames]
    common = [to_common(f, np.asarray(f.x, float), np.asarray(f.y, float), centre) for f in frames]
    # The two tangent planes differ by a shift and a turn, to 1e-7 of any correction: take it at the pointing.
    probe = np.array([30.0, -30.0, 0.0, 0.0])
    turned = [to_common(f, probe, probe[[2, 3, 0, 1]], centre) for f in frames]
    cosine = np.array([(p[0] - p[1] + q[2] - q[3]) / 120 for p, q in turned])
    sine = np.array([(q[0] - q[1] - p[2] + p[3]) / 120 for p, q in turned])
    frame = np.repeat(np.arange(len(frames)), sizes)
    return Problem(
        frame,
        np.zeros_like(frame),
        np.concatenate([f.x for f in frames]).astype(float),
        np.concatenate([f.y for f in frames]).astype(float),
        np.concatenate([p for p, _ in common]),
        np.concatenate([q for _, q in common]),
        np.zeros(len(frame)),
        cosine,
        sine,
        1,
        centre,
    )


def pull_back(
    problem: Problem, f: int, dxi: np.ndarray, deta: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors in the common plane as vectors in the instrument plane of frame f."""
    c, s = problem.cosine[f], problem.sine[f]
    return c * dxi + s * deta, c * deta - s * dxi


Places = tuple[np.ndarray, np.ndarray, np.ndarray]  # x, y, flux


def _search(master: Places, mine: Places, radius: Arcsec) -> Shift:
    shift = find_shift(*master, *mine, radius)
    if shift.ok or radius >= WIDE or min(len(master[0]), len(mine[0])) < WIDE_SOURCES:
        return shift
    wide = find_shift(*master, *mine, WIDE, rotations=WIDE_ROTATIONS)
    return wide if wide.ok else shift


def first_shifts(
    problem: Problem, frames: Sequence[Measurements], radius: Arcsec, tolerance: Arcsec
) -> Found:
    """Shift every frame onto a growing list that starts with the frame with most sources; the nearest come first.

    Where most frames do not fit the start, the next richest frame is tried as start (three at most).
    """
    richest = np.argsort([-len(f.x) for f in frames], kind="stable")[:3]
    best: Found | None = None
    for start in richest:
        found = _from_start(problem, frames, int(start), radius, tolerance)
        if best is None or found.reason.count("") > best.reason.count(""):
            best = found
        if best.reason.count("") > len(frames) / 2:
            break
    assert best is not None
    return best


def _from_start(
    problem: Problem, frames: Sequence[Measurements], start: int, radius: Arcsec, tolerance: Arcsec
) -> Found:
    own = [rows_of(problem, f) for f in range(len(frames))]
    place = np.array(
        [(problem.p[i].mean(), problem.q[i].mean()) if len(i) else (1e9, 1e9) for i in own]
    )
    order = [
        int(f) for f in np.argsort(np.hypot(*(place - place[start]).T), kind="stable") if f != start
    ]
    terms, contrast, reason = (
        np.zeros((len(frames), TERMS)),
        [0.0] * len(frames),
        [""] * len(frames),
    )
    master: Places = (
        problem.p[own[start]],
        problem.q[own[start]],
        np.asarray(frames[start].flux, float),
    )
    tried: dict[int, int] = {}  # how long the list was when a frame was last tried
    for f in order + order:
        if (contrast[f] and not reason[f]) or tried.get(f) == len(master[0]):
            continue
        tried[f] = len(master[0])
        i, flux = own[f], np.asarray(frames[f].flux, float)
        shift = _search(master, (problem.p[i], problem.q[i], flux), radius)
        contrast[f], reason[f] = shift.contrast, shift.reason
        if not shift.ok:
            continue
        x, y = apply_shift(shift, problem.p[i], problem.q[i])
        dx, dy = pull_back(problem, f, x - problem.p[i], y - problem.q[i])
        terms[f] = fit_terms(
            problem.x[i], problem.y[i], dx, dy, np.ones(len(i)), 4, np.full(TERMS, 1e-9)
        )
        near = _around(master[0], master[1], x, y, tolerance)
        ia, ib = match_pairs(master[0][near], master[1][near], x, y, tolerance)
        ia = near[ia]
        ratio = float(np.median(master[2][ia] / flux[ib])) if len(ia) else 1.0
        new = _without(len(i), ib)
        mx, my, mf = master
        master = np.append(mx, x[new]), np.append(my, y[new]), np.append(mf, flux[new] * ratio)
    return Found(terms, tuple(contrast), tuple(reason))


def _without(n: int, rows: np.ndarray) -> np.ndarray:
    """The rows 0..n-1 that are not among these."""
    left = np.ones(n, bool)
    left[rows] = False
    return np.flatnonzero(left)


def _around(
    sx: np.ndarray, sy: np.ndarray, x: np.ndarray, y: np.ndarray, margin: Arcsec
) -> np.ndarray:
    """Rows of a list that lie within the rectangle around some places, and a margin: the rest is not searched."""
    if not len(x):
        return np.zeros(0, int)
    inside = (sx >= x.min() - margin) & (sx <= x.max() + margin)
    return np.flatnonzero(inside & (sy >= y.min() - margin) & (sy <= y.max() + margin))


def number_stars(
    problem: Problem,
    xi: np.ndarray,
    eta: np.ndarray,
    use: np.ndarray,
    known: tuple[np.ndarray, np.ndarray],
    radius: Arcsec,
) -> Problem:
    """Give each measurement of the frames in use (bool per frame) the number of the nearest star of the list `known`
    (positions in the common plane) or a new one; one-to-one within a frame, within `radius` arcsec."""
    good = np.isfinite(known[0])
    sx, sy = known[0][good], known[1][good]
    star = np.zeros(len(xi), np.int64)
    for f in np.flatnonzero(use):
        i = rows_of(problem, int(f))
        near = _around(sx, sy, xi[i], eta[i], radius)
        ia, ib = match_pairs(sx[near], sy[near], xi[i], eta[i], radius)
        star[i[ib]] = near[ia]
        new = _without(len(i), ib)
        star[i[new]] = len(sx) + np.arange(len(new))
        sx, sy = np.concatenate([sx, xi[i[new]]]), np.concatenate([sy, eta[i[new]]])
    return problem._replace(star=star, stars=max(len(sx), 1))
