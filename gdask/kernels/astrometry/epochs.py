"""Positions of stars epoch by epoch, from the residuals of the joint solution: what proper motions are measured from."""

from __future__ import annotations

import numba
import numpy as np

from gdask.kernels.astrometry.residuals import MEDIAN_CHI2
from gdask.types import Arcsec

#: Days between two frames that make a new epoch.
EPOCH_GAP = 0.5
#: Sigma beyond which a measurement weighs less, and beyond which nothing, about the median of its star and epoch.
HUBER, REJECT = 3.0, 7.0
#: Measurements that tell their error beyond photon noise.
ENOUGH = 20

#: One star in one frame. star: row of the star list; array: 0-based; x, y: 0-based pixels; dx, dy: measured minus star,
#: East and North, with their errors (arcsec); flux in the frame's unit.
MEASURED = np.dtype(
    [("star", "i4"), ("array", "i2"), ("flags", "i2")]
    + [(n, "f4") for n in ("x", "y", "dx", "dy", "edx", "edy", "flux", "eflux")]
)
#: One star in one epoch: mean offsets East and North from its overall position, errors (arcsec), frames in use.
EPOCH = np.dtype(
    [("star", "i4"), ("epoch", "i2"), ("n", "i2")] + [(n, "f4") for n in ("dx", "dy", "edx", "edy")]
)


def epochs_of(mjd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The epoch of each frame (0, 1 ... in order of time; gaps of half a day part them), and the mean MJD of each epoch."""
    order = np.argsort(mjd, kind="stable")
    number = np.zeros(len(mjd), np.int64)
    number[order] = np.cumsum(np.diff(mjd[order], prepend=mjd[order][:1]) > EPOCH_GAP)
    count = int(number.max(initial=-1)) + 1
    return number, np.array([mjd[number == k].mean() for k in range(count)])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _means(
    d: np.ndarray, variance: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Robust weighted mean of each group d[starts[g]:starts[g + 1]] (n, 2), its error, and how many were used."""
    groups = starts.size - 1
    mean, error, used = np.zeros((groups, 2)), np.zeros((groups, 2)), np.zeros(groups, np.int64)
    for g in range(groups):
        i, j = starts[g], starts[g + 1]
        mx, my = np.median(d[i:j, 0]), np.median(d[i:j, 1])
        sums = np.zeros((2, 2))
        for k in range(i, j):
            t = np.sqrt(
                ((d[k, 0] - mx) ** 2 / variance[k, 0] + (d[k, 1] - my) ** 2 / variance[k, 1]) / 2.0
            )
            if t > REJECT:
                continue
            used[g] += 1
            for axis in range(2):
                w = min(1.0, HUBER / max(t, 1e-9)) / variance[k, axis]
                sums[axis, 0] += w
                sums[axis, 1] += w * d[k, axis]
        for axis in range(2):
            mean[g, axis] = sums[axis, 1] / sums[axis, 0]
            error[g, axis] = 1.0 / np.sqrt(sums[axis, 0])
    return mean, error, used


def epoch_means(measured: np.ndarray, epoch: np.ndarray, floor: Arcsec) -> np.ndarray:
    """Rows of dtype EPOCH, by star and epoch. measured: dtype MEASURED, of all frames; epoch: of each row; floor: error
    per measurement and axis (arcsec) beyond the photons', as the solution found it. What the measurements of a star in one
    epoch show is taken where it is less: for the solution, motions from epoch to epoch are errors."""
    known = (
        (measured["star"] >= 0)
        & np.isfinite(measured["dx"])
        & np.isfinite(measured["edx"])
        & (measured["edx"] > 0)
    )
    rows, epoch = measured[known], epoch[known]
    order = np.lexsort((epoch, rows["star"]))
    rows, epoch = rows[order], epoch[order]
    new = np.flatnonzero(np.diff(rows["star"], prepend=-1) | np.diff(epoch, prepend=-1))
    d = np.stack([rows["dx"], rows["dy"]], axis=1).astype(float)
    photons = np.stack([rows["edx"], rows["edy"]], axis=1).astype(float) ** 2
    starts = np.append(new, len(rows))
    for _ in range(2):
        mean, error, used = _means(d, photons + floor**2, starts)
        floor = min(floor, _floor(d, photons, mean, photons + floor**2, starts, floor))
    mean, error, used = _means(d, photons + floor**2, starts)
    out = np.zeros(len(new), EPOCH)
    out["star"], out["epoch"], out["n"] = rows["star"][new], epoch[new], used
    out["dx"], out["dy"], out["edx"], out["edy"] = mean[:, 0], mean[:, 1], error[:, 0], error[:, 1]
    return out[used > 0]


def _floor(
    d: np.ndarray,
    photons: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    starts: np.ndarray,
    known: Arcsec,
) -> Arcsec:
    """The error beyond photon noise that makes the scatter within groups what it says, for the better measured half;
    `known` where fewer than ENOUGH measurements tell."""
    group = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    total = np.add.reduceat(1 / variance, starts[:-1], axis=0) if len(group) else variance
    left = 1 - 1 / (variance * total[group]) if len(group) else variance
    some = np.flatnonzero(
        (left > 0.2).all(axis=1)
        & (np.diff(starts)[group] > 1)
        & np.isfinite(mean[group]).all(axis=1)
    )
    some = some[np.argsort(photons[some].sum(axis=1), kind="stable")[: (len(some) + 1) // 2]]
    if len(some) < ENOUGH:
        return known
    r2, e2 = (d[some] - mean[group[some]]) ** 2 / left[some], photons[some]
    low, high = 0.0, known
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if np.median((r2 / (e2 + middle**2)).sum(axis=1)) > MEDIAN_CHI2
            else (low, middle)
        )
    return high
