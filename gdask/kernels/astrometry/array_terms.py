"""Small displacements of single detector arrays, one set for each array and epoch, about the static distortion.

A warm-up may move an array by a few hundredths of a pixel, and the static table has errors of that size. Stars show it
only where other arrays or epochs see them too. Each array may shift, turn and change its scale by about TIGHT, and
only as far as stars that the fit did not see confirm it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gdask.kernels.astrometry.distortion_terms import (
    TERMS,
    UNIT,
    cross_validate,
    displace,
    fit_terms,
)
from gdask.kernels.astrometry.joint_fit import Problem, positions, star_means
from gdask.kernels.astrometry.star_association import Measurements
from gdask.types import Arcsec

#: Expected size of an array's displacement: of its shift, and at HALF arcsec from its middle of its turn and scale.
TIGHT: Arcsec = 0.002
HALF: Arcsec = 20.0
#: Terms tried, and folds of stars; a group needs so many stars that others see too.
COUNTS, FOLDS, FEWEST = (2, 4), 5, 20
_PRIOR = np.array([1 / TIGHT**2] * 2 + [(HALF / UNIT / TIGHT) ** 2] * 2 + [1.0] * (TERMS - 4))


class Arrays(NamedTuple):
    """Groups of one array in one epoch. group: int64 per measurement; of_frame: (frames, arrays) their numbers; centre:
    (groups, 2) middle of the array in the plane (arcsec); values: (groups, 20) terms about it, of which four are used."""

    group: np.ndarray
    of_frame: np.ndarray
    centre: np.ndarray
    values: np.ndarray


def groups_of(frames: Sequence[Measurements]) -> Arrays | None:
    """The groups of the frames, undisplaced; None for one array alone, whose displacement is the frames' own."""
    count = 1 + max((int(np.max(f.array)) for f in frames if len(f.array)), default=0)
    if count == 1:
        return None
    epochs = np.unique([f.epoch for f in frames], return_inverse=True)[1]
    of_frame = epochs[:, None] * count + np.arange(count)
    group = np.concatenate([of_frame[k][np.asarray(f.array, int)] for k, f in enumerate(frames)])
    x, y = (np.concatenate([getattr(f, name) for f in frames]) for name in "xy")
    array = np.concatenate([np.asarray(f.array, int) for f in frames])
    middle = np.zeros((count, 2))
    for k in np.unique(array):
        middle[k] = [(v[array == k].min() + v[array == k].max()) / 2 for v in (x, y)]
    total = int(of_frame.max()) + 1
    return Arrays(group, of_frame, middle[np.arange(total) % count], np.zeros((total, TERMS)))


class _Now(NamedTuple):
    """Where the sweep stands: corrected positions, sums and weights of the stars; all but the weights edited."""

    xi: np.ndarray
    eta: np.ndarray
    sx: np.ndarray
    sy: np.ndarray
    total: np.ndarray


def refit(problem: Problem, terms: np.ndarray, arrays: Arrays) -> tuple[Problem, Arrays]:
    """One sweep over the groups, each fitted to where the other groups see its stars; the problem displaced alike."""
    values = arrays.values.copy()
    problem = problem._replace(**{name: getattr(problem, name).copy() for name in "xypq"})
    xi, eta = positions(problem, terms)
    now = _Now(xi, eta, *star_means(problem, xi, eta))
    order = np.argsort(arrays.group, kind="stable")
    first = np.searchsorted(arrays.group[order], np.arange(len(values) + 1))
    for g in range(len(values)):
        rows = order[first[g] : first[g + 1]]
        i = rows[problem.weight[rows] > 0]
        if len(i) < FEWEST:
            continue
        new = _fit_group(problem, now, arrays._replace(values=values), g, i)
        if (new != values[g]).any():
            _move(problem, rows, arrays.centre[g], new - values[g])
            _follow(problem, terms, now, i)
            values[g] = new
    return problem, arrays._replace(values=values)


def _fit_group(problem: Problem, now: _Now, arrays: Arrays, g: int, i: np.ndarray) -> np.ndarray:
    """The terms of one group; zeros where its stars do not support any."""
    own = np.bincount(problem.star[i], problem.weight[i], problem.stars)
    rest = 1 - own[problem.star[i]] / now.total[problem.star[i]]
    i, rest = i[rest > 0.02], rest[rest > 0.02]
    star = problem.star[i]
    if len(np.unique(star)) < FEWEST:
        return np.zeros(TERMS)
    dx, dy = (now.xi[i] - now.sx[star]) / rest, (now.eta[i] - now.sy[star]) / rest
    c, s = problem.cosine[problem.frame[i]], problem.sine[problem.frame[i]]
    u, v = problem.x[i] - arrays.centre[g, 0], problem.y[i] - arrays.centre[g, 1]
    here = displace(u, v, arrays.values[g])
    # Moving the group moves its stars' means by the group's share in them.
    tx, ty = here[0] - (c * dx + s * dy), here[1] - (c * dy - s * dx)
    weight = problem.weight[i] * rest
    chi2 = cross_validate(u, v, tx, ty, weight, star % FOLDS, COUNTS, _PRIOR) + np.array(COUNTS)
    if chi2.min() >= (weight * (tx**2 + ty**2)).sum():
        return np.zeros(TERMS)
    return fit_terms(u, v, tx, ty, weight, COUNTS[int(np.argmin(chi2))], _PRIOR)


def _move(problem: Problem, i: np.ndarray, centre: np.ndarray, change: np.ndarray) -> None:
    """Displaces measurements by 20 terms about the array's middle, in place."""
    u, v = displace(problem.x[i] - centre[0], problem.y[i] - centre[1], change)
    c, s = problem.cosine[problem.frame[i]], problem.sine[problem.frame[i]]
    problem.x[i] += u
    problem.y[i] += v
    problem.p[i] += c * u - s * v
    problem.q[i] += s * u + c * v


def _follow(problem: Problem, terms: np.ndarray, now: _Now, i: np.ndarray) -> None:
    """Positions of measurements that have moved, and the means of their stars, in place."""
    some = problem._replace(
        **{name: getattr(problem, name)[i] for name in ("frame", "x", "y", "p", "q")}
    )
    star, weight = problem.star[i], problem.weight[i]
    for place, mean, new in zip(
        (now.xi, now.eta), (now.sx, now.sy), positions(some, terms), strict=True
    ):
        change = np.bincount(star, weight * (new - place[i]), problem.stars)
        mean += np.divide(change, now.total, out=np.zeros_like(mean), where=now.total > 0)
        place[i] = new


def with_frame(terms: np.ndarray, arrays: Arrays, g: int) -> np.ndarray:
    """One set of 20 terms about the pointing: the group's displacement, then that of a frame."""
    cx, cy = arrays.centre[g]
    gx, gy = np.meshgrid(np.linspace(cx - HALF, cx + HALF, 9), np.linspace(cy - HALF, cy + HALF, 9))
    gx, gy = gx.ravel(), gy.ravel()
    u, v = displace(gx - cx, gy - cy, arrays.values[g])
    dx, dy = displace(gx + u, gy + v, terms)
    # What remains beside the frame's own terms is small and nearly linear.
    ox, oy = displace(gx, gy, terms)
    return terms + fit_terms(
        gx, gy, u + dx - ox, v + dy - oy, np.ones(len(gx)), 12, np.full(TERMS, 1e-12)
    )
