"""What the joint fit leaves: weights, displaced detector arrays, positions by epoch.

Residuals are measured minus star, in arcsec: they show the error beyond photon noise, and which
measurements are wrong. They also show small displacements of single detector arrays, one set for
each array and epoch: a warm-up may move an array by a few hundredths of a pixel, and the static
distortion table has errors of that size. Stars show it only where other arrays or epochs see them
too. Each array may shift, turn and change its scale by about ARRAY_SHIFT, and only as far as stars
that the fit did not see confirm it. Residuals by star and epoch give proper motions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gdask.kernels.astrometry.joint_fit import corrected_positions, star_means
from gdask.kernels.astrometry.measured_stars import (
    FOLDS,
    TERMS,
    Measurements,
    Polynomials,
    Problem,
    best_count,
    common_vectors,
    cross_validate,
    displace,
    fit_terms,
    frame_rows,
    instrument_vectors,
    to_polynomials,
    turn_to_instrument,
)
from gdask.kernels.compiled import njit
from gdask.kernels.geometry.projection import CORRECTION_UNIT
from gdask.model import nights_of
from gdask.types import Arcsec

#: Sigma of a two-dimensional residual beyond which a measurement weighs less (Huber), and beyond
#: which it weighs nothing.
HUBER_SIGMA, REJECT_SIGMA = 3.0, 7.0
#: Median of chi-square with two degrees of freedom.
MEDIAN_CHI2 = 1.386
#: Milliarcseconds in an arcsecond.
MAS = 1000.0
#: Measurements, about, from which the error beyond photon noise is found: it is then known to 0.3
#: per cent. With fewer than MIN_FLOOR_SAMPLE it is taken to be DEFAULT_FLOOR.
FLOOR_SAMPLE, MIN_FLOOR_SAMPLE = 100_000, 20
DEFAULT_FLOOR: Arcsec = 0.003
#: Stars are matched within this many times their median scatter, and at least within this radius.
RADIUS_SCATTERS = 6
MIN_MATCH_RADIUS: Arcsec = 0.03

#: Expected size of an array's displacement: of its shift, and at ARRAY_HALF from its middle of its
#: turn and scale.
ARRAY_SHIFT: Arcsec = 0.002
ARRAY_HALF: Arcsec = 20.0
#: Numbers of terms that are tried for an array, and stars that others see too that it needs.
ARRAY_TERM_COUNTS, MIN_ARRAY_STARS = (2, 4), 20
_TURN_PRIOR = (ARRAY_HALF / CORRECTION_UNIT / ARRAY_SHIFT) ** 2
_ARRAY_PRIOR = np.array([1 / ARRAY_SHIFT**2] * 2 + [_TURN_PRIOR] * 2 + [1.0] * (TERMS - 4))

#: Measurements that tell the error beyond photon noise within epochs.
MIN_EPOCH_SAMPLE = 20
#: One star in one frame. star: row of the star list; array: 0-based; x, y: 0-based pixels; dx, dy:
#: measured minus star, East and North, with their errors (arcsec); flux in the frame's unit.
RESIDUAL_DTYPE = np.dtype(
    [("star", "i4"), ("array", "i2"), ("flags", "i2")]
    + [(n, "f4") for n in ("x", "y", "dx", "dy", "edx", "edy", "flux", "eflux")]
)
#: One star in one epoch: mean offsets East and North from its overall position, errors (arcsec),
#: frames in use.
EPOCH_DTYPE = np.dtype(
    [("star", "i4"), ("epoch", "i2"), ("n", "i2")] + [(n, "f4") for n in ("dx", "dy", "edx", "edy")]
)


class ArrayDisplacements(NamedTuple):
    """Displacements of groups: a group is all that one detector array measures in one epoch.

    group: int64 per measurement; of_frame: (frames, arrays) numbers of the groups; centre: (groups,
    2) middle of the array in the instrument plane (arcsec); terms: (groups, 20) about it, of which
    four are used.
    """

    group: np.ndarray
    of_frame: np.ndarray
    centre: np.ndarray
    terms: np.ndarray


class FitState(NamedTuple):
    """Where the solution stands.

    problem: measurements with star numbers and weights; terms (frames, 20); active: leading terms
    in use per frame; shared: which measurements other frames share; floor: error beyond photon
    noise; arrays: displacements of arrays, which the measurements have already; group: number of
    each frame's group, -1 for none: groups share no stars.
    """

    problem: Problem
    terms: np.ndarray
    active: np.ndarray
    shared: np.ndarray
    floor: Arcsec
    arrays: ArrayDisplacements | None
    group: np.ndarray


def residuals(problem: Problem, terms: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measured minus star (common plane, arcsec), and the share of the variance that is left.

    The star's mean follows each of its measurements, and takes the rest of the variance.
    """
    xi, eta = corrected_positions(problem, terms)
    means = star_means(problem, xi, eta)
    left = _subtract_means(problem.star, problem.weight, xi, eta, *means)
    return xi, eta, left


@njit(cache=True, nogil=True, error_model="numpy")
def _subtract_means(
    star: np.ndarray,
    weight: np.ndarray,
    xi: np.ndarray,
    eta: np.ndarray,
    star_xi: np.ndarray,
    star_eta: np.ndarray,
    total: np.ndarray,
) -> np.ndarray:
    """Take the star's mean from each position, in place; the share of the variance that is left."""
    left = np.ones(star.size)
    for m in range(star.size):
        s = star[m]
        xi[m] -= star_xi[s]
        eta[m] -= star_eta[s]
        if total[s] > 0:
            left[m] = max(1.0 - weight[m] / total[s], 0.02)
    return left


def at_stars(problem: Problem, terms: np.ndarray) -> Problem:
    """The problem with its terms taken where the stars are, not at each noisy measurement.

    With the measured places a common shrinking would lower chi-square, as it shrinks the noise too,
    and the solution would collapse; with the stars' places no change that is common to all frames
    alters chi-square to first order.
    """
    dx, dy, _ = residuals(problem, terms)
    off = ~((problem.weight > 0) & np.isfinite(dx))
    dx[off] = dy[off] = 0.0
    turn_to_instrument(problem.frame, problem.cosine, problem.sine, dx, dy)
    return problem._replace(x=problem.x - dx, y=problem.y - dy)


def narrowed_radius(state: FitState, widest: Arcsec) -> Arcsec:
    """Match radius (arcsec): six times the median scatter of shared sources, 0.03 to `widest`."""
    dx, dy, _ = residuals(state.problem, state.terms)
    off = np.hypot(dx, dy)[state.shared]
    off = off[np.isfinite(off)]
    if not len(off):
        return widest
    return float(np.clip(RADIUS_SCATTERS * np.median(off), MIN_MATCH_RADIUS, widest))


def robust_weights(
    problem: Problem, terms: np.ndarray, variance: np.ndarray, shared: np.ndarray, floor: Arcsec
) -> np.ndarray:
    """Huber weights (1 / arcsec^2) about the present solution; beyond REJECT_SIGMA nothing.

    variance: per axis of each measurement by its photons (arcsec^2); shared: bool; others get 0.
    """
    base = np.where(shared, 1 / (variance + floor**2), 0.0)
    weighted = problem.weight > 0
    start = np.where(weighted & shared, problem.weight, base * 1e-6) if weighted.any() else base
    dx, dy, left = residuals(problem._replace(weight=start), terms)
    _lower_outliers(dx, dy, left, base)
    return base


@njit(cache=True, nogil=True, error_model="numpy")
def _lower_outliers(dx: np.ndarray, dy: np.ndarray, left: np.ndarray, weight: np.ndarray) -> None:
    """Lower the weights of large residuals, in place."""
    for m in range(weight.size):
        sigma = np.sqrt((dx[m] ** 2 + dy[m] ** 2) * weight[m] / 2 / left[m])
        if sigma > REJECT_SIGMA and sigma < np.inf:
            weight[m] = 0.0
        elif sigma > HUBER_SIGMA and sigma < np.inf:
            weight[m] *= HUBER_SIGMA / sigma


def noise_floor(problem: Problem, terms: np.ndarray, variance: np.ndarray) -> Arcsec:
    """The error to add to the photon errors so that residuals are as large as expected.

    Those of the better measured half, by the median. variance: as in `robust_weights`.
    """
    dx, dy, left = residuals(problem, terms)
    use = problem.weight > 0
    if use.sum() < MIN_FLOOR_SAMPLE:
        return DEFAULT_FLOOR
    use &= variance <= np.median(variance[use])
    rows = np.flatnonzero(use)
    rows = rows[:: max(1, len(rows) // FLOOR_SAMPLE)]
    square, photons = (dx[rows] ** 2 + dy[rows] ** 2) / left[rows], variance[rows]
    low, high = 1e-5, 0.1
    for _ in range(40):
        middle = np.sqrt(low * high)
        too_low = np.median(square / (photons + middle**2)) > MEDIAN_CHI2
        low, high = (middle, high) if too_low else (low, middle)
    return float(high)


def frame_quality(state: FitState) -> list[tuple[int, float]]:
    """For each frame, its shared sources in use, and their weighted rms per axis (mas, or NaN)."""
    dx, dy, _ = residuals(state.problem, state.terms)
    use = state.shared & (state.problem.weight > 0)
    weight = np.where(use, state.problem.weight, 0.0)
    square = weight * np.where(use, dx**2 + dy**2, 0.0)
    out = []
    for f in range(len(state.active)):
        i = frame_rows(state.problem, f)
        n, total = int(np.count_nonzero(use[i])), weight[i].sum()
        rms = MAS * float(np.sqrt(square[i].sum() / (2 * total))) if n else float("nan")
        out.append((n, rms))
    return out


def array_groups(frames: Sequence[Measurements]) -> ArrayDisplacements | None:
    """The groups of the frames, undisplaced; None for one array, which moves with its frames."""
    count = 1 + max((int(np.max(f.array)) for f in frames if len(f.array)), default=0)
    if count == 1:
        return None
    epochs = np.unique([f.epoch for f in frames], return_inverse=True)[1]
    of_frame = epochs[:, None] * count + np.arange(count)
    arrays = [np.asarray(f.array, int) for f in frames]
    group = np.concatenate([of_frame[k][array] for k, array in enumerate(arrays)])
    x, y = (np.concatenate([getattr(f, name) for f in frames]) for name in "xy")
    array = np.concatenate(arrays)
    middle = np.zeros((count, 2))
    for k in np.unique(array):
        middle[k] = [(v[array == k].min() + v[array == k].max()) / 2 for v in (x, y)]
    total = int(of_frame.max()) + 1
    centre = middle[np.arange(total) % count]
    return ArrayDisplacements(group, of_frame, centre, np.zeros((total, TERMS)))


class _Means(NamedTuple):
    """Corrected positions, and positions and weights of the stars; edited except the weights."""

    xi: np.ndarray
    eta: np.ndarray
    star_xi: np.ndarray
    star_eta: np.ndarray
    total: np.ndarray


def refit_arrays(
    problem: Problem, terms: np.ndarray, arrays: ArrayDisplacements
) -> tuple[Problem, ArrayDisplacements]:
    """Fit each group to where the other groups see its stars, one after the other.

    Returns the problem with its measurements displaced, and the displacements.
    """
    arrays = arrays._replace(terms=arrays.terms.copy())
    moved = ("x", "y", "header_xi", "header_eta")
    problem = problem._replace(**{name: getattr(problem, name).copy() for name in moved})
    xi, eta = corrected_positions(problem, terms)
    means = _Means(xi, eta, *star_means(problem, xi, eta))
    order = np.argsort(arrays.group, kind="stable")
    first = np.searchsorted(arrays.group[order], np.arange(len(arrays.terms) + 1))
    for g in range(len(arrays.terms)):
        rows = order[first[g] : first[g + 1]]
        used = rows[problem.weight[rows] > 0]
        if len(used) < MIN_ARRAY_STARS:
            continue
        new = _fit_group(problem, means, arrays, g, used)
        if (new != arrays.terms[g]).any():
            _displace_rows(problem, rows, arrays.centre[g], new - arrays.terms[g])
            _update_means(problem, terms, means, used)
            arrays.terms[g] = new
    return problem, arrays


def _fit_group(
    problem: Problem, means: _Means, arrays: ArrayDisplacements, g: int, rows: np.ndarray
) -> np.ndarray:
    """The terms of group g; zeros where its stars do not support any. rows: those in use."""
    star = problem.star[rows]
    group_weight = np.bincount(star, problem.weight[rows], problem.stars)
    rest = 1 - group_weight[star] / means.total[star]
    i, rest = rows[rest > 0.02], rest[rest > 0.02]
    star = problem.star[i]
    if len(np.unique(star)) < MIN_ARRAY_STARS:
        return np.zeros(TERMS)
    # Moving the group moves its stars' means by the group's share in them.
    dxi = (means.xi[i] - means.star_xi[star]) / rest
    deta = (means.eta[i] - means.star_eta[star]) / rest
    x, y = problem.x[i] - arrays.centre[g, 0], problem.y[i] - arrays.centre[g, 1]
    present = displace(x, y, arrays.terms[g])
    off = instrument_vectors(problem, problem.frame[i], dxi, deta)
    dx, dy = present[0] - off[0], present[1] - off[1]
    weight, counts = problem.weight[i] * rest, ARRAY_TERM_COUNTS
    chi2 = cross_validate(x, y, dx, dy, weight, star % FOLDS, counts, _ARRAY_PRIOR)
    if (chi2 + np.array(counts)).min() >= (weight * (dx**2 + dy**2)).sum():
        return np.zeros(TERMS)
    return fit_terms(x, y, dx, dy, weight, best_count(chi2, counts), _ARRAY_PRIOR)


def _displace_rows(
    problem: Problem, rows: np.ndarray, centre: np.ndarray, change: np.ndarray
) -> None:
    """Displace measurements by 20 terms about the array's middle, in place."""
    dx, dy = displace(problem.x[rows] - centre[0], problem.y[rows] - centre[1], change)
    dxi, deta = common_vectors(problem, problem.frame[rows], dx, dy)
    problem.x[rows] += dx
    problem.y[rows] += dy
    problem.header_xi[rows] += dxi
    problem.header_eta[rows] += deta


def _update_means(problem: Problem, terms: np.ndarray, means: _Means, rows: np.ndarray) -> None:
    """Update positions of measurements that have moved, and the means of their stars, in place."""
    names = ("frame", "x", "y", "header_xi", "header_eta")
    moved = problem._replace(**{name: getattr(problem, name)[rows] for name in names})
    star, weight = problem.star[rows], problem.weight[rows]
    axes = ((means.xi, means.star_xi), (means.eta, means.star_eta))
    for (place, mean), new in zip(axes, corrected_positions(moved, terms), strict=True):
        change = np.bincount(star, weight * (new - place[rows]), problem.stars)
        mean += np.divide(change, means.total, out=np.zeros_like(mean), where=means.total > 0)
        place[rows] = new


def array_corrections(state: FitState, f: int) -> tuple[Polynomials, ...]:
    """The corrections of the arrays of frame f about its pointing; () where they do not differ.

    That is the displacement of each array's group, then the terms of the frame.
    """
    arrays, terms = state.arrays, state.terms[f]
    if arrays is None or not arrays.terms[arrays.of_frame[f]].any():
        return ()
    out = []
    for g in arrays.of_frame[f]:
        cx, cy = arrays.centre[g]
        ends = ((centre - ARRAY_HALF, centre + ARRAY_HALF) for centre in (cx, cy))
        x, y = (v.ravel() for v in np.meshgrid(*(np.linspace(*pair, 9) for pair in ends)))
        u, v = displace(x - cx, y - cy, arrays.terms[g])
        moved, still = displace(x + u, y + v, terms), displace(x, y, terms)
        # What remains beside the frame's own terms is small and nearly linear.
        dx, dy = u + moved[0] - still[0], v + moved[1] - still[1]
        rest = fit_terms(x, y, dx, dy, np.ones(len(x)), 12, np.full(TERMS, 1e-12))
        out.append(to_polynomials(terms + rest))
    return tuple(out)


def number_epochs(mjd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The epoch (night) of each frame (0, 1 ... by time), and the mean MJD of each epoch."""
    nights, number = np.unique(nights_of(mjd), return_inverse=True)
    return number, np.array([mjd[number == k].mean() for k in range(len(nights))])


@njit(cache=True, nogil=True, error_model="numpy")
def _robust_means(
    offset: np.ndarray, variance: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Robust weighted mean of each group of offsets, its error, and how many were used.

    offset, variance: (n, 2); a group is the rows starts[g]:starts[g + 1].
    """
    groups = starts.size - 1
    mean, error, used = np.zeros((groups, 2)), np.zeros((groups, 2)), np.zeros(groups, np.int64)
    for g in range(groups):
        i, j = starts[g], starts[g + 1]
        mx, my = np.median(offset[i:j, 0]), np.median(offset[i:j, 1])
        sums = np.zeros((2, 2))
        for k in range(i, j):
            dx, dy = offset[k, 0] - mx, offset[k, 1] - my
            sigma = np.sqrt((dx**2 / variance[k, 0] + dy**2 / variance[k, 1]) / 2.0)
            if sigma > REJECT_SIGMA:
                continue
            used[g] += 1
            for axis in range(2):
                w = min(1.0, HUBER_SIGMA / max(sigma, 1e-9)) / variance[k, axis]
                sums[axis, 0] += w
                sums[axis, 1] += w * offset[k, axis]
        for axis in range(2):
            mean[g, axis] = sums[axis, 1] / sums[axis, 0]
            error[g, axis] = 1.0 / np.sqrt(sums[axis, 0])
    return mean, error, used


def epoch_means(measured: np.ndarray, epoch: np.ndarray, floor: Arcsec) -> np.ndarray:
    """Mean offset of each star in each epoch: rows of dtype EPOCH_DTYPE, by star and epoch.

    measured: dtype RESIDUAL_DTYPE, of all frames; epoch: of each row; floor: error per measurement
    and axis (arcsec) beyond the photons', as the solution found it. What the measurements of a star
    in one epoch show is taken where it is less: for the solution, motions from epoch to epoch are
    errors.
    """
    known = (measured["star"] >= 0) & np.isfinite(measured["dx"])
    known &= np.isfinite(measured["edx"]) & (measured["edx"] > 0)
    rows, epoch = measured[known], epoch[known]
    order = np.lexsort((epoch, rows["star"]))
    rows, epoch = rows[order], epoch[order]
    first = np.flatnonzero(np.diff(rows["star"], prepend=-1) | np.diff(epoch, prepend=-1))
    starts = np.append(first, len(rows))
    offset = np.stack([rows["dx"], rows["dy"]], axis=1).astype(float)
    photons = np.stack([rows["edx"], rows["edy"]], axis=1).astype(float) ** 2
    for _ in range(2):
        mean = _robust_means(offset, photons + floor**2, starts)[0]
        floor = min(floor, _floor_within_groups(offset, photons, mean, starts, floor))
    mean, error, used = _robust_means(offset, photons + floor**2, starts)
    out = np.zeros(len(first), EPOCH_DTYPE)
    out["star"], out["epoch"], out["n"] = rows["star"][first], epoch[first], used
    out["dx"], out["dy"], out["edx"], out["edy"] = mean[:, 0], mean[:, 1], error[:, 0], error[:, 1]
    return out[used > 0]


def _floor_within_groups(
    offset: np.ndarray, photons: np.ndarray, mean: np.ndarray, starts: np.ndarray, known: Arcsec
) -> Arcsec:
    """The error beyond photon noise that the scatter within groups shows; at most `known`.

    Of the better measured half; `known` where fewer than MIN_EPOCH_SAMPLE measurements tell.
    Arguments as in `_robust_means`; photons: the variance (arcsec^2) by photons alone.
    """
    variance = photons + known**2
    size = np.diff(starts)
    group = np.repeat(np.arange(len(size)), size)
    total = np.add.reduceat(1 / variance, starts[:-1], axis=0) if len(group) else variance
    left = 1 - 1 / (variance * total[group]) if len(group) else variance
    telling = (left > 0.2).all(axis=1) & (size[group] > 1) & np.isfinite(mean[group]).all(axis=1)
    rows = np.flatnonzero(telling)
    rows = rows[np.argsort(photons[rows].sum(axis=1), kind="stable")[: (len(rows) + 1) // 2]]
    if len(rows) < MIN_EPOCH_SAMPLE:
        return known
    square, photons = (offset[rows] - mean[group[rows]]) ** 2 / left[rows], photons[rows]
    low, high = 0.0, known
    for _ in range(30):
        middle = (low + high) / 2
        chi2 = (square / (photons + middle**2)).sum(axis=1)
        low, high = (middle, high) if np.median(chi2) > MEDIAN_CHI2 else (low, middle)
    return high
