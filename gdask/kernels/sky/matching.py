"""Find the surfaces that make the sky of frames agree where they overlap.

The sky is cut into cells. Every array of every frame gives its level in each cell that it covers.
Two frames see the same stars in the same cell, so the difference of their levels is that of their
skies, whatever the cell holds. What all frames have in common cannot be told from light of the sky:
the mean surface stays as it is.

All sums have one order, without a library for matrices: the bits do not depend on threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gdask.kernels.surfaces import (
    Floats,
    connected_groups,
    fitted_terms,
    legendre_terms,
    pulls_on_terms,
    sums_of_terms,
)
from gdask.types import Electrons

Numbers = npt.NDArray[np.int64]

#: Cells whose level is off by more than the first limit count less (Huber's weights), beyond the
#: second not at all.
HUBER_SIGMA, REJECT_SIGMA = 2.5, 6.0
#: Rounds of the robust weights.
WEIGHT_ROUNDS = 6
#: Most steps of conjugate gradients; relative gradient that ends a solution, and a trial of a kind.
MAX_GRADIENT_STEPS, GRADIENT_TOLERANCE, TRIAL_TOLERANCE = 400, 1e-9, 1e-5
#: Surfaces are expected within so many times the scatter that offsets alone leave; the throughput
#: of frames is expected to differ by so much, as a fraction.
PRIOR_SPREAD, PRIOR_THROUGHPUT = 3.0, 0.05
#: The field has light where its cells differ by so many times their noise.
MIN_LIGHT_NOISES = 5.0
#: Quantile of the cells' levels over which there is light. Its error, as a fraction, and the error
#: by its slope, as a fraction of the difference to the next cell.
DARK_QUANTILE, LIGHT_ERROR, SLOPE_ERROR = 0.1, 0.01, 0.03
#: Parts into which cells are divided to test a kind of surface on cells that it has not seen, and
#: cells along a side of what is left out together.
FOLDS, FOLD_CELLS = 4, 2
#: A richer kind of surface is taken where it is better by so many standard errors, and by so much
#: of the mean squared deviation.
MIN_GAIN_SIGMA, MIN_GAIN = 3.0, 0.01
#: Deviations of cells that the fit has not seen count up to so many sigma.
MOST_SIGMA = 5.0


class Kind(NamedTuple):
    """What is taken from each array: a surface of an order, and one of the whole frame.

    of_array: 0 is an offset of each array. of_frame: 0 is none.
    """

    of_array: int
    of_frame: int

    @property
    def order(self) -> int:
        return max(self)

    @property
    def text(self) -> str:
        names = ("offsets", "planes", "quadratic surfaces")
        if self.of_frame:
            return f"{names[self.of_frame]} of frames and offsets of arrays"
        return f"{names[self.of_array]} of arrays"


#: From the plainest on.
KINDS = {
    "offset": Kind(0, 0),
    "frame1": Kind(0, 1),
    "frame2": Kind(0, 2),
    "array1": Kind(1, 0),
    "array2": Kind(2, 0),
}


class Levels(NamedTuple):
    """Levels in cells of the sky: one row for each array of a frame and cell.

    unit: number of the array of the frame, from 0; frame: that of the frame; cell: row and column
    of the cell. level, error (e-): the median, and its error. x, y: where on the array it was
    measured, u, v: where on the frame, from -1 to 1. row, column: by how many cells that is off the
    middle of the cell. sizes: units and frames, also those without a row at the end.
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
    row: Floats
    column: Floats
    sizes: tuple[int, int] = (0, 0)


class Surfaces(NamedTuple):
    """The surfaces that were found.

    kind: of all. of_unit: (units, terms), Legendre factors (e-) in x and y of each array, to the
    kind's order, of_frame: (frames, terms), in u and v of each frame, without a constant. group:
    number of each unit's connected group. cells: how many shared cells of each unit were not
    rejected. error: that of each unit's surface (e-), from the noise of its cells. rms: scatter
    (e-) of the cells' levels about the solution. level: of each row without its surface.
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
    """A least-squares problem: rows of shared cells, and the terms of each row (rows, terms)."""

    places: npt.NDArray[np.int32]
    value: Floats
    cell: Numbers
    cells: int
    level: Floats
    full_weight: Floats
    prior: Floats


def solve_surfaces(levels: Levels, kind: Kind | None = None) -> Surfaces:
    """Find the surfaces that make levels agree in every cell that arrays share.

    kind: None takes the plainest of KINDS that no other predicts cells better than. Least squares
    with robust weights: a cell that a cluster of bad pixels or a moving object spoils in one frame
    does not count. Each connected group keeps its mean level; an array that shares nothing
    keeps its own. Frames show the light of the field by their throughput: a factor of each takes up
    what it differs by, since surfaces cannot follow the light.
    """
    count, cell, neighbours = _cells_of(levels)
    shared = np.bincount(cell)[cell] >= 2 if len(cell) else np.zeros(0, bool)
    units, _ = _units(levels)
    none = np.zeros(len(cell))
    plain = _problem(levels, cell, shared, KINDS["offset"], none, 0.0)
    found, _, rms = _robust(plain, GRADIENT_TOLERANCE)
    whole, rest = plain._replace(cell=cell, cells=count), levels.level - found[levels.unit]
    mean, _ = _mean_of_cells(whole, rest, levels.error**-2.0)
    light, error = _light(levels, cell, mean, neighbours)
    levels = levels._replace(level=_at_middle(levels, cell, mean, neighbours), error=error)
    if kind is None:
        kind = _best_kind(levels, cell, shared, light, rms)
    problem = _problem(levels, cell, shared, kind, light, rms)
    solved = _robust(problem, GRADIENT_TOLERANCE)
    groups = connected_groups(levels.unit[shared], cell[shared], units)
    return _surfaces(levels, shared, kind, problem, solved, groups, light)


def _cells_of(levels: Levels) -> tuple[int, Numbers, list[Numbers]]:
    """Give the number of cells, that of each row, and the neighbours of each cell, or itself.

    Neighbours: in the next column, in that before, in the next row, in that before.
    """
    row, column = levels.cell
    width = int(column.max(initial=0)) + 2
    keys, cell = np.unique(row * width + column, return_inverse=True)
    neighbours = []
    for step in (1, -1, width, -width):
        place = np.minimum(np.searchsorted(keys, keys + step), max(len(keys) - 1, 0))
        known = keys[place] == keys + step
        neighbours.append(np.where(known, place, np.arange(len(keys))))
    return len(keys), cell, neighbours


def _at_middle(levels: Levels, cell: Numbers, mean: Floats, neighbours: list[Numbers]) -> Floats:
    """Give the levels as they are in the middles of cells, by the slope of all levels.

    Arrays show a part of the cells at their edges. Without this, a slope of the light would be
    taken for one of the sky: no other cells can tell them.
    """
    level = levels.level
    if len(cell):
        for (after, before), off in zip(
            (neighbours[2:], neighbours[:2]), (levels.row, levels.column), strict=True
        ):
            own = np.arange(len(mean))
            steps = np.maximum((after != own).astype(int) + (before != own), 1)
            level = level - ((mean[after] - mean[before]) / steps)[cell] * off
    return level


def _light(
    levels: Levels, cell: Numbers, mean: Floats, neighbours: list[Numbers]
) -> tuple[Floats, Floats]:
    """Give the light (e-) of the field at each row, over its median, and errors with what it adds.

    The light is 0 throughout where it is little more than the noise.
    """
    if not len(cell):
        return np.zeros(0), levels.error
    light, over = mean - float(np.median(mean)), mean - float(np.quantile(mean, DARK_QUANTILE))
    slope = np.max([np.abs(mean[each] - mean) for each in neighbours], axis=0)
    typical = float(np.median(levels.error))
    is_bright = float(np.sqrt(np.mean(light**2))) > MIN_LIGHT_NOISES * typical
    added = np.hypot(LIGHT_ERROR * np.maximum(over, 0.0), SLOPE_ERROR * slope)
    error = np.hypot(levels.error, is_bright * np.maximum(added - typical / 2, 0.0)[cell])
    return light[cell] * is_bright, error


def _surfaces(
    levels: Levels,
    shared: npt.NDArray[np.bool_],
    kind: Kind,
    problem: _Problem,
    solved: tuple[Floats, Floats, float],
    group: Numbers,
    light: Floats,
) -> Surfaces:
    """Put a solution into surfaces, the mean of each group taken out."""
    found, weight, rms = solved
    unit, units = levels.unit[shared], len(group)
    _, frames = _units(levels)
    terms, more = _count(kind.of_array), _count(kind.of_frame) - 1
    of_unit = np.zeros((units, _count(kind.order)))
    of_unit[:, :terms] = found[: units * terms].reshape(units, terms)
    of_frame = found[units * terms : units * terms + frames * more].reshape(frames, more)
    if light.any():
        frame = np.zeros(units, np.int64)
        frame[levels.unit] = levels.frame
        throughput = found[units * terms + frames * more :][frame]
        of_unit += _smooth_light(levels, kind, units, light) * throughput[:, None]
    rest = levels.level - _values(levels, kind, of_unit, of_frame)
    rows = np.bincount(unit, minlength=units)
    taken = np.bincount(unit, (levels.level - rest)[shared], minlength=units) / np.maximum(rows, 1)
    mean = np.bincount(group, taken, minlength=units) / np.maximum(
        np.bincount(group, rows > 0, minlength=units), 1
    )
    of_unit[:, 0] -= mean[group]
    counted = np.bincount(unit, weight > 0, minlength=units).astype(np.int64)
    # A surface of k terms through n values has k / n of their variance, the cells' means as much.
    free = terms + more * frames / max(units, 1)
    noise = np.bincount(unit, weight, minlength=units)
    scale = max(_scale(problem, found, weight), 1.0)
    error = np.where(noise > 0, scale * np.sqrt(2 * free / np.maximum(noise, 1e-300)), 0.0)
    return Surfaces(
        kind, of_unit, of_frame, group, counted, error, rms, rest + mean[group][levels.unit]
    )


def _smooth_light(levels: Levels, kind: Kind, units: int, light: Floats) -> Floats:
    """Give the Legendre factors (units, terms) of the surface closest to the light of each."""
    factors = np.zeros((units, _count(kind.order)))
    for unit in range(units):
        rows = levels.unit == unit
        if np.count_nonzero(rows) > 2 * factors.shape[1]:
            terms = legendre_terms(levels.x[rows], levels.y[rows], kind.order)
            factors[unit] = fitted_terms(terms, light[rows], levels.error[rows])
    return factors


def _values(levels: Levels, kind: Kind, of_unit: Floats, of_frame: Floats) -> Floats:
    """Give the surfaces at all rows."""
    total = np.zeros(len(levels.level))
    for k, term in enumerate(legendre_terms(levels.x, levels.y, kind.order)):
        total += of_unit[levels.unit, k] * term
    for k, term in enumerate(legendre_terms(levels.u, levels.v, kind.of_frame)[1:]):
        total += of_frame[levels.frame, k] * term
    return total


def _units(levels: Levels) -> tuple[int, int]:
    """Give the number of units and of frames."""
    units, frames = (int(each.max(initial=-1)) + 1 for each in (levels.unit, levels.frame))
    return max(units, levels.sizes[0]), max(frames, levels.sizes[1])


def _count(order: int) -> int:
    return (order + 1) * (order + 2) // 2


def _problem(
    levels: Levels,
    cell: Numbers,
    rows: npt.NDArray[np.bool_],
    kind: Kind,
    light: Floats,
    spread: float,
) -> _Problem:
    """Set up the terms of some rows. spread: of levels (e-) without surfaces."""
    unit, frame = levels.unit[rows], levels.frame[rows]
    units, frames = _units(levels)
    terms, more = _count(kind.of_array), _count(kind.of_frame) - 1
    index = [unit * terms + k for k in range(terms)]
    value = legendre_terms(levels.x[rows], levels.y[rows], kind.of_array)
    if more:
        index += [units * terms + frame * more + k for k in range(more)]
        value += legendre_terms(levels.u[rows], levels.v[rows], kind.of_frame)[1:]
    error = np.maximum(levels.error[rows], 1e-6)
    typical = float(np.median(error)) if len(error) else 1.0
    prior = np.full(units * terms + frames * more, max(PRIOR_SPREAD * spread, typical) ** -2.0)
    # Without a limit on offsets, the mean of a group would be free.
    prior[: units * terms : terms] = 1e-9 / typical**2
    if light.any():
        index.append(len(prior) + frame)
        value.append(light[rows])
        prior = np.append(prior, np.full(frames, PRIOR_THROUGHPUT**-2.0))
    used, inverse = np.unique(cell[rows], return_inverse=True)
    places, terms_of = np.stack(index, axis=1).astype(np.int32), np.stack(value, axis=1)
    return _Problem(places, terms_of, inverse, len(used), levels.level[rows], error**-2.0, prior)


def _predicted(problem: _Problem, found: Floats) -> Floats:
    """Give the surfaces at the rows of a problem."""
    return sums_of_terms(problem.places, problem.value, found)


def _mean_of_cells(problem: _Problem, values: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Give the weighted mean of the values in each cell, and the sum of the weights."""
    norm = np.bincount(problem.cell, weight, minlength=problem.cells)
    total = np.bincount(problem.cell, weight * values, minlength=problem.cells)
    return np.asarray(total / np.maximum(norm, 1e-300), float), np.asarray(norm, float)


def _least_squares(problem: _Problem, weight: Floats, start: Floats, tolerance: float) -> Floats:
    """Give the factors, by conjugate gradients from `start` to a relative size of the gradient."""
    norm, square = problem.prior.copy(), weight[:, None] * problem.value * problem.value
    for index, value in zip(problem.places.T, square.T, strict=True):
        norm += np.bincount(index, value, minlength=len(norm))
    of_cells = np.bincount(problem.cell, weight, minlength=problem.cells)

    def gradient(values: Floats) -> Floats:
        places, terms, cell = problem.places, problem.value, problem.cell
        return pulls_on_terms(places, terms, cell, of_cells, weight, values, len(norm))

    norm = np.maximum(norm, 1e-300)
    first = gradient(problem.level)
    first_size = float((first * first / norm).sum())
    found = start.copy()
    residual = gradient(problem.level - _predicted(problem, found))
    residual -= problem.prior * found
    scaled = residual / norm
    direction, size = scaled, float((residual * scaled).sum())
    for _ in range(MAX_GRADIENT_STEPS):
        if not size > tolerance**2 * first_size:
            break
        change = gradient(_predicted(problem, direction)) + problem.prior * direction
        curvature = float((direction * change).sum())
        if not curvature > 0:
            break
        found = found + size / curvature * direction
        residual = residual - size / curvature * change
        scaled = residual / norm
        size, last_size = float((residual * scaled).sum()), size
        direction = scaled + size / last_size * direction
    return found


def _robust(problem: _Problem, tolerance: float) -> tuple[Floats, Floats, float]:
    """Give the factors, the weights of the rows, and the scatter (e-) about the solution."""
    weight, found, rms = problem.full_weight, np.zeros(len(problem.prior)), 0.0
    for _ in range(WEIGHT_ROUNDS if len(weight) else 0):
        found = _least_squares(problem, weight, found, tolerance)
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
    """Give the scatter of the cells about the solution over their noise; 1 without cells."""
    if not len(weight):
        return 1.0
    rest, left = _deviations(problem, problem.level - _predicted(problem, found), weight)
    return float(np.median(np.abs(rest) * np.sqrt(problem.full_weight / left))) / 0.6745


def _best_kind(
    levels: Levels, cell: Numbers, shared: npt.NDArray[np.bool_], light: Floats, spread: float
) -> Kind:
    """Give the plainest kind that no richer one predicts cells better than."""
    kinds = _possible_kinds(levels, shared)
    row, column = (each[shared] // FOLD_CELLS for each in levels.cell)
    fold = (row + 2 * column) % FOLDS
    best, best_loss = kinds[0], None
    for kind in kinds:
        problem = _problem(levels, cell, shared, kind, light, spread)
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


def _possible_kinds(levels: Levels, shared: npt.NDArray[np.bool_]) -> list[Kind]:
    """Give the kinds of which the shared cells hold enough for all factors."""
    (units, frames), rows = _units(levels), int(shared.sum())
    kinds = []
    for kind in KINDS.values():
        if kind.of_frame and units == frames:
            continue
        factors = units * _count(kind.of_array) + frames * (_count(kind.of_frame) - 1)
        if kind == KINDS["offset"] or rows > 4 * factors:
            kinds.append(kind)
    return kinds


def _unseen_loss(problem: _Problem, fold: Numbers) -> Floats:
    """Give for each row its squared deviation (in sigma, limited) when its cell is left out."""
    loss = np.zeros(len(problem.level))
    found, weight, _ = _robust(problem, TRIAL_TOLERANCE)
    for number in range(FOLDS):
        out = fold == number
        if not out.any():
            continue
        found = _least_squares(problem, np.where(out, 0.0, weight), found, TRIAL_TOLERANCE)
        values = problem.level - _predicted(problem, found)
        rest, left = _deviations(problem, values, problem.full_weight)
        squared = rest**2 * problem.full_weight / left
        loss[out] = np.minimum(squared[out], MOST_SIGMA**2)
    return loss
