"""Compare the sky of frames: surfaces that make them agree, and light of the target in it.

The sky is cut into cells. Every array of every frame gives its level in each cell that it covers.
Two frames see the same stars in the same cell, so the difference of their levels is that of their
skies, whatever the cell holds. What all frames have in common cannot be told from light of the sky:
the mean surface stays as it is.

All sums have one order, and no library for matrices is used: the bits do not depend on threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gdask.kernels.arrays import Floats, legendre_terms
from gdask.types import Electrons, Fraction

Numbers = npt.NDArray[np.int64]

#: Cells whose level is off by more than the first limit count less (Huber's weights), beyond the
#: second not at all.
HUBER_SIGMA, REJECT_SIGMA = 2.5, 6.0
#: Rounds of the robust weights.
WEIGHT_ROUNDS = 6
#: Most steps of the conjugate gradients, and the relative size of the gradient that ends them.
MAX_GRADIENT_STEPS, GRADIENT_TOLERANCE = 400, 1e-9
#: Surfaces are expected within so many times the scatter that offsets alone leave.
PRIOR_SPREAD = 3.0
#: Parts into which cells are divided to test a kind of surface on cells that it has not seen, and
#: cells along a side of what is left out together.
FOLDS, FOLD_CELLS = 4, 2
#: A richer kind of surface is taken where it is better by so many standard errors,
MIN_GAIN_SIGMA = 3.0
#: and by so much of the mean squared deviation.
MIN_GAIN = 0.01
#: Deviations of cells that the fit has not seen count up to so many sigma.
MOST_SIGMA = 5.0

#: A mesh cell holds light of the target where it is brighter than the field's darkest cells by
#: more than this fraction of the sky's level. With off-target sky frames, which share the errors
#: of the flat, a smaller excess can be seen than without them.
MIN_EXCESS_WITH_SKY, MIN_EXCESS_WITHOUT_SKY = 0.003, 0.02
#: The level of the darkest cells is this quantile of all.
DARKEST_QUANTILE = 0.1
#: The target fills the field where its light is seen in more than this part of the cells.
MIN_FILLED_SHARE = 0.4
#: The target's frames must be brighter than their sky frames by this many standard errors.
MIN_EXCESS_SIGMA = 3.0


class Kind(NamedTuple):
    """What is taken from each array: a surface of an order, and one of the whole frame.

    of_array: 0 is an offset of each array. of_frame: 0 is none.
    """

    of_array: int
    of_frame: int

    @property
    def text(self) -> str:
        names = ("offsets", "planes", "quadratic surfaces", "cubic surfaces")
        if self.of_frame:
            return f"{names[self.of_frame]} of frames and offsets of arrays"
        return f"{names[self.of_array]} of arrays"


#: From the plainest on.
KINDS = {
    "offset": Kind(0, 0),
    "frame1": Kind(0, 1),
    "frame2": Kind(0, 2),
    "array1": Kind(1, 0),
    "frame3": Kind(0, 3),
    "array2": Kind(2, 0),
    "array3": Kind(3, 0),
}


class Levels(NamedTuple):
    """Levels in cells of the sky: one row for each array of a frame and cell.

    unit: number of the array of the frame, from 0; frame: that of the frame; cell: row and column
    of the cell. level, error (e-): the median, and its error. x, y: where on the array it was
    measured, u, v: where on the frame, from -1 to 1.
    """

    unit: Numbers
    frame: Numbers
    cell: tuple[Numbers, Numbers]
    level: Floats
    error: Floats
    x: Floats
    y: Floats
    u: Floats
    v: Floats


class Surfaces(NamedTuple):
    """The surfaces that were found.

    kind: of all. of_unit: (units, terms), Legendre factors (e-) in x and y of each array, of_frame:
    (frames, terms), in u and v of each frame, without a constant. group: number of each unit's
    connected group. cells: how many shared cells of each unit were not rejected. error: that of
    each unit's surface (e-), from the noise of its cells. rms: scatter (e-) of the cells' levels
    about the solution. level: of each row without its surface.
    """

    kind: Kind
    of_unit: Floats
    of_frame: Floats
    group: Numbers
    cells: Numbers
    error: Floats
    rms: Electrons
    level: Floats


class _Problem(NamedTuple):
    """A least-squares problem: rows of shared cells, and the terms of each row."""

    index: list[Numbers]
    value: list[Floats]
    cell: Numbers
    cells: int
    level: Floats
    full_weight: Floats
    prior: Floats


def solve_surfaces(levels: Levels, kind: Kind | None = None) -> Surfaces:
    """Find the surfaces that make levels agree in every cell that arrays share.

    kind: None takes the plainest of KINDS that no other predicts cells better than. Least squares
    with robust weights: a cell that a cluster of bad pixels or a moving object spoils in one frame
    does not count. Each connected group keeps its weighted mean level; an array that shares nothing
    keeps its own.
    """
    row, column = levels.cell
    _, cell = np.unique(row * (int(column.max(initial=0)) + 1) + column, return_inverse=True)
    shared = np.bincount(cell)[cell] >= 2 if len(cell) else np.zeros(0, bool)
    units = int(levels.unit.max(initial=-1)) + 1
    plain = _problem(levels, cell, shared, KINDS["offset"], units, 0.0)
    found, weight, rms = _robust(plain)
    if kind is None:
        kind = _best_kind(levels, cell, shared, units, rms)
    problem = plain
    if kind != KINDS["offset"]:
        problem = _problem(levels, cell, shared, kind, units, rms)
        found, weight, rms = _robust(problem)
    group = connected_groups(levels.unit[shared], cell[shared], units)
    return _surfaces(levels, shared, kind, problem, (found, weight, rms), group)


def _surfaces(
    levels: Levels,
    shared: npt.NDArray[np.bool_],
    kind: Kind,
    problem: _Problem,
    solved: tuple[Floats, Floats, float],
    group: Numbers,
) -> Surfaces:
    """Put a solution into surfaces, the weighted mean of each group taken out."""
    found, weight, rms = solved
    unit, units = levels.unit[shared], len(group)
    terms = _count(kind.of_array)
    of_unit = found[: units * terms].reshape(units, terms)
    of_frame = found[units * terms :].reshape(-1, max(_count(kind.of_frame) - 1, 0) or 1)
    if not kind.of_frame:
        of_frame = np.zeros((int(levels.frame.max(initial=-1)) + 1, 0))
    full = problem.full_weight
    norm = np.maximum(np.bincount(group[unit], full, minlength=units), 1e-300)
    mean = np.bincount(group[unit], full * _predicted(problem, found), minlength=units) / norm
    of_unit = of_unit.copy()
    of_unit[:, 0] -= mean[group]
    counted = np.bincount(unit, weight > 0, minlength=units).astype(np.int64)
    # The mean variance of a surface of k terms through n values is k / n of one value's; a value
    # pulls the mean of its own cell, which takes as much again with two frames.
    free = terms + (_count(kind.of_frame) - 1) * units_per_frame(levels) ** -1
    noise = np.bincount(unit, weight, minlength=units)
    scale = max(_scale(problem, found, weight), 1.0)
    error = np.where(noise > 0, scale * np.sqrt(2 * free / np.maximum(noise, 1e-300)), 0.0)
    every = _problem(levels, levels.unit, np.ones(len(levels.unit), bool), kind, units, 0.0)
    solution = np.concatenate([of_unit.ravel(), of_frame.ravel()])
    rest = levels.level - _predicted(every, solution)
    return Surfaces(kind, of_unit, of_frame, group, counted, error, rms, rest)


def units_per_frame(levels: Levels) -> float:
    """Give the arrays of a frame, in the mean."""
    units, frames = (int(each.max(initial=0)) + 1 for each in (levels.unit, levels.frame))
    return units / frames


def _count(order: int) -> int:
    return (order + 1) * (order + 2) // 2


def _problem(
    levels: Levels,
    cell: Numbers,
    rows: npt.NDArray[np.bool_],
    kind: Kind,
    units: int,
    spread: float,
) -> _Problem:
    """Set up the terms of some rows. spread: of levels (e-) without surfaces."""
    unit, frame = levels.unit[rows], levels.frame[rows]
    frames = int(levels.frame.max(initial=-1)) + 1
    terms, more = _count(kind.of_array), _count(kind.of_frame) - 1
    index = [unit * terms + k for k in range(terms)]
    value = legendre_terms(levels.x[rows], levels.y[rows], kind.of_array)
    if more:
        index += [units * terms + frame * more + k for k in range(more)]
        value += legendre_terms(levels.u[rows], levels.v[rows], kind.of_frame)[1:]
    error = np.maximum(levels.error[rows], 1e-6)
    prior = np.full(units * terms + frames * more, 1.0)
    prior[: units * terms : terms] = 0.0
    typical = float(np.median(error)) if len(error) else 1.0
    prior /= max(PRIOR_SPREAD * spread, typical) ** 2
    # Without a limit on offsets, the mean of a group would be free.
    prior += 1e-9 / typical**2
    used, inverse = np.unique(cell[rows], return_inverse=True)
    return _Problem(index, value, inverse, len(used), levels.level[rows], error**-2.0, prior)


def _predicted(problem: _Problem, found: Floats) -> Floats:
    """Give the surfaces at the rows of a problem."""
    total = np.zeros(len(problem.level))
    for index, value in zip(problem.index, problem.value, strict=True):
        total += found[index] * value
    return total


def _mean_of_cells(problem: _Problem, values: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Give the weighted mean of the values in each cell, and the sum of the weights."""
    norm = np.bincount(problem.cell, weight, minlength=problem.cells)
    total = np.bincount(problem.cell, weight * values, minlength=problem.cells)
    return total / np.maximum(norm, 1e-300), norm


def _gradient(problem: _Problem, values: Floats, weight: Floats) -> Floats:
    """Give for each factor the sum of weight * term * (value - mean of the cell)."""
    mean, _ = _mean_of_cells(problem, values, weight)
    rest = weight * (values - mean[problem.cell])
    total = np.zeros(len(problem.prior))
    for index, value in zip(problem.index, problem.value, strict=True):
        total += np.bincount(index, value * rest, minlength=len(total))
    return total


def _least_squares(problem: _Problem, weight: Floats, start: Floats) -> Floats:
    """Give the factors, by conjugate gradients from `start`."""
    norm = problem.prior.copy()
    for index, value in zip(problem.index, problem.value, strict=True):
        norm += np.bincount(index, weight * value * value, minlength=len(norm))
    norm = np.maximum(norm, 1e-300)
    first = _gradient(problem, problem.level, weight)
    first_size = float((first * first / norm).sum())
    found = start.copy()
    residual = _gradient(problem, problem.level - _predicted(problem, found), weight)
    residual -= problem.prior * found
    scaled = residual / norm
    direction, size = scaled, float((residual * scaled).sum())
    for _ in range(MAX_GRADIENT_STEPS):
        if not size > GRADIENT_TOLERANCE**2 * first_size:
            break
        change = _gradient(problem, _predicted(problem, direction), weight)
        change += problem.prior * direction
        curvature = float((direction * change).sum())
        if not curvature > 0:
            break
        found = found + size / curvature * direction
        residual = residual - size / curvature * change
        scaled = residual / norm
        size, last_size = float((residual * scaled).sum()), size
        direction = scaled + size / last_size * direction
    return found


def _robust(problem: _Problem) -> tuple[Floats, Floats, float]:
    """Give the factors, the weights of the rows, and the scatter (e-) about the solution."""
    weight, found, rms = problem.full_weight, np.zeros(len(problem.prior)), 0.0
    for _ in range(WEIGHT_ROUNDS if len(weight) else 0):
        found = _least_squares(problem, weight, found)
        rest, left = _deviations(problem, problem.level - _predicted(problem, found), weight)
        rms = float(np.sqrt((weight * rest**2 / left).sum() / weight.sum()))
        deviation = np.abs(rest) * np.sqrt(problem.full_weight / left)
        # The noise of the cells may exceed what the medians' errors say (residual structure of the
        # flat field): scale by it.
        deviation = deviation / max(float(np.median(deviation)) / 0.6745, 1.0)
        huber = np.minimum(1.0, HUBER_SIGMA / np.maximum(deviation, 1e-9))
        weight = np.where(deviation > REJECT_SIGMA, 0.0, problem.full_weight * huber)
    return found, weight, rms


def _deviations(problem: _Problem, values: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Give the deviations of values from the means of their cells, and what is left of each.

    A value pulls the mean of its own cell: a share of its deviation is left.
    """
    positive = np.maximum(weight, 1e-6 * problem.full_weight)
    mean, norm = _mean_of_cells(problem, values, positive)
    left = np.maximum(1 - positive / norm[problem.cell], 0.02)
    return values - mean[problem.cell], left


def _scale(problem: _Problem, found: Floats, weight: Floats) -> float:
    """Give the scatter of the cells about the solution over their noise."""
    if not len(weight):
        return 1.0
    rest, left = _deviations(problem, problem.level - _predicted(problem, found), weight)
    return float(np.median(np.abs(rest) * np.sqrt(problem.full_weight / left))) / 0.6745


def _best_kind(
    levels: Levels, cell: Numbers, shared: npt.NDArray[np.bool_], units: int, spread: float
) -> Kind:
    """Give the plainest kind that no richer one predicts cells better than."""
    kinds = _possible_kinds(levels, shared, units)
    row, column = (each[shared] // FOLD_CELLS for each in levels.cell)
    fold = (row + 2 * column) % FOLDS
    best, best_loss = kinds[0], None
    for kind in kinds:
        problem = _problem(levels, cell, shared, kind, units, spread)
        loss = _unseen_loss(problem, fold)
        if best_loss is None:
            best_loss = loss
            continue
        gain = best_loss - loss
        error = float(gain.std()) / max(len(gain), 1) ** 0.5
        least = max(MIN_GAIN_SIGMA * error, MIN_GAIN * float(best_loss.mean()))
        if float(gain.mean()) > least:
            best, best_loss = kind, loss
    return best


def _possible_kinds(levels: Levels, shared: npt.NDArray[np.bool_], units: int) -> list[Kind]:
    """Give the kinds of which the shared cells hold enough for all factors."""
    per_frame = units_per_frame(levels)
    rows = int(shared.sum())
    kinds = []
    for kind in KINDS.values():
        if kind.of_frame and per_frame == 1:
            continue
        factors = units * _count(kind.of_array) + units / per_frame * (_count(kind.of_frame) - 1)
        if kind == KINDS["offset"] or rows > 4 * factors:
            kinds.append(kind)
    return kinds


def _unseen_loss(problem: _Problem, fold: Numbers) -> Floats:
    """Give for each row its squared deviation (in sigma, limited) when its cell is left out."""
    loss = np.zeros(len(problem.level))
    found, weight, _ = _robust(problem)
    for number in range(FOLDS):
        out = fold == number
        if not out.any():
            continue
        found = _least_squares(problem, np.where(out, 0.0, weight), found)
        values = problem.level - _predicted(problem, found)
        rest, left = _deviations(problem, values, problem.full_weight)
        squared = rest**2 * problem.full_weight / left
        loss[out] = np.minimum(squared[out], MOST_SIGMA**2)
    return loss


def connected_groups(unit: Numbers, cell: Numbers, units: int) -> Numbers:
    """Give the number of each unit's group: units that share a cell, also through others.

    The number is that of the group's first unit.
    """
    parent = np.arange(units)
    if not len(unit):
        return parent
    while True:
        lowest = np.full(int(cell.max()) + 1, units)
        np.minimum.at(lowest, cell, parent[unit])
        joined = parent.copy()
        np.minimum.at(joined, unit, lowest[cell])
        joined = joined[joined]
        if (joined == parent).all():
            return parent
        parent = joined


# Light of the target ------------------------------------------------------------------------


class TargetLight(NamedTuple):
    """How far the light of the target extends.

    fills_field: whether the target fills the field. share: part of the cells in which its light is
    seen. excess: by how much its frames are brighter than their sky frames, and error: that of the
    excess (both NaN without off-target sky).
    """

    fills_field: bool
    share: Fraction
    excess: Electrons
    error: Electrons


def find_target_light(
    levels: Floats, sky_levels: Floats | None, times: Floats, sky_times: Floats
) -> TargetLight:
    """Find whether the target fills the field.

    levels: (frames, arrays, my, mx), levels (e-) in the mesh cells of the target's frames, without
    sources. sky_levels: the same of off-target sky frames, or None where the target's own frames
    are the sky. times, sky_times: when they were taken, in seconds.
    """
    if sky_levels is None:
        darkest = np.quantile(levels, DARKEST_QUANTILE, axis=(2, 3), keepdims=True)
        share = float(np.mean(levels > darkest * (1 + MIN_EXCESS_WITHOUT_SKY)))
        return TargetLight(share > MIN_FILLED_SHARE, share, float("nan"), float("nan"))
    sky = np.median(sky_levels, axis=(1, 2, 3))
    pattern = np.median(sky_levels / sky[:, None, None, None], axis=0)
    flattened = levels / pattern
    darkest = np.quantile(flattened, DARKEST_QUANTILE, axis=(1, 2, 3), keepdims=True)
    share = float(np.mean(flattened > darkest * (1 + MIN_EXCESS_WITH_SKY)))
    excess = np.median(flattened, axis=(1, 2, 3)) - interpolate_in_time(times, sky_times, sky)
    error = max(interpolation_error(sky_times, sky), 1e-3 * float(np.median(sky)))
    error_of_mean, mean = float(error / np.sqrt(len(times))), float(np.mean(excess))
    fills_field = share > MIN_FILLED_SHARE and mean > MIN_EXCESS_SIGMA * error_of_mean
    return TargetLight(bool(fills_field), share, mean, error_of_mean)


def interpolate_in_time(when: npt.ArrayLike, times: Floats, values: Floats) -> Floats:
    """Interpolate values to other times: linear between neighbours, constant outside."""
    order = np.argsort(times, kind="stable")
    return np.interp(
        np.asarray(when, dtype=np.float64), np.asarray(times)[order], np.asarray(values)[order]
    )


def interpolation_error(times: Floats, values: Floats) -> float:
    """Rms error of `interpolate_in_time`, from each inner value against its two neighbours.

    It is 0 with fewer than three values.
    """
    order = np.argsort(times, kind="stable")
    t, v = np.asarray(times)[order], np.asarray(values)[order]
    rest = [v[i] - np.interp(t[i], np.delete(t, i), np.delete(v, i)) for i in range(1, len(t) - 1)]
    return float(np.sqrt(np.mean(np.square(rest)))) if rest else 0.0
