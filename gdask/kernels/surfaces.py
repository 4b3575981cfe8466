"""Smooth surfaces over an array's pixels, and groups of arrays that are tied to each other.

Sums have one order: the bits do not depend on the processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gdask.kernels.compiled import njit
from gdask.types import Window

Floats = npt.NDArray[np.float64]

#: Rounds of a fit that leaves outliers out, and the sigma beyond which they are.
FIT_ROUNDS, FIT_SIGMA = 6, 2.5


class Surface(NamedTuple):
    """A polynomial over an array, in places from -1 (first pixel) to 1 (last).

    rows: for each power of y, the factors of the powers of x (e-). size: (ny, nx) of the array.
    """

    rows: tuple[tuple[float, ...], ...]
    size: tuple[int, int]

    def values(self, window: Window) -> Floats:
        """Give the surface in a window (y1, y2, x1, x2): the same bits for a pixel in any."""
        y1, y2, x1, x2 = window
        x = normalised(np.arange(x1, x2), self.size[1])
        y = normalised(np.arange(y1, y2), self.size[0])[:, None]
        total = np.zeros((y2 - y1, x2 - x1))
        for factors in reversed(self.rows):
            along = np.zeros(len(x))
            for factor in reversed(factors):
                along *= x
                along += factor
            total *= y
            total += along
        return total


def normalised(pixels: npt.ArrayLike, size: int) -> Floats:
    """Give places on an axis of `size` pixels, from -1 to 1."""
    return (2.0 * np.asarray(pixels, float) - (size - 1)) / max(size - 1, 1)


def term_orders(order: int) -> list[tuple[int, int]]:
    """Give the orders (in x, in y) of the Legendre terms of a surface, the constant first."""
    return [(total - j, j) for total in range(order + 1) for j in range(total + 1)]


def legendre_terms(x: Floats, y: Floats, order: int) -> list[Floats]:
    """Give the Legendre terms of `term_orders` at places from -1 to 1."""
    of_x, of_y = _legendre(x, order), _legendre(y, order)
    return [of_x[i] * of_y[j] for i, j in term_orders(order)]


def _legendre(x: Floats, order: int) -> list[Floats]:
    """Give the Legendre polynomials up to an order, by their recurrence."""
    found = [np.ones_like(x), np.asarray(x, float)]
    for n in range(1, order):
        found.append(((2 * n + 1) * x * found[n] - n * found[n - 1]) / (n + 1))
    return found[: order + 1]


def surface_of_nodes(values: Floats, order: int, size: tuple[int, int], step: float) -> Surface:
    """Give the surface of an order that is closest to values at `nodes` of an array, rounded.

    values: (nodes of y, nodes of x). step: of the Legendre factors. Sums have one order.
    """
    places, weights = np.polynomial.legendre.leggauss(values.shape[0])
    of_place = _legendre(places, order)
    rows = np.zeros((order + 1, order + 1))
    for i, j in term_orders(order):
        total = 0.0
        for row, wy, py in zip(values, weights, of_place[j], strict=True):
            for value, wx, px in zip(row, weights, of_place[i], strict=True):
                total += wy * py * wx * px * float(value)
        factor = total * (2 * i + 1) * (2 * j + 1) / 4
        factor = round(factor / step) * step
        rows[: j + 1, : i + 1] += factor * np.outer(_monomials(j), _monomials(i))
    return Surface(tuple(tuple(float(each) for each in row) for row in rows), size)


def nodes(order: int, size: tuple[int, int]) -> tuple[Floats, Floats]:
    """Give y and x (pixels) of the nodes at which `surface_of_nodes` takes values."""
    places = np.polynomial.legendre.leggauss(order + 2)[0]
    y, x = ((places * (n - 1) + (n - 1)) / 2 for n in size)
    grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
    return grid_y, grid_x


def _monomials(order: int) -> Floats:
    """Give the factors of the powers of x in a Legendre polynomial."""
    return np.asarray(np.polynomial.legendre.leg2poly([0.0] * order + [1.0]), float)


def fitted_terms(values: Sequence[Floats], level: Floats, error: Floats) -> Floats:
    """Give the factors of terms (each of all rows) that fit levels best, outliers left out.

    Gram-Schmidt over the terms, in one order of sums.
    """
    weight = np.maximum(error, 1e-6) ** -2.0
    factors = np.zeros(len(values))
    for _ in range(FIT_ROUNDS):
        factors = _weighted_fit(values, level, weight)
        rest = level - sum(f * v for f, v in zip(factors, values, strict=True))
        sigma = max(float(np.median(np.abs(rest))) / 0.6745, 1e-6)
        weight = np.where(np.abs(rest) > FIT_SIGMA * sigma, 0.0, error**-2.0)
    return np.asarray(factors, float)


def _weighted_fit(values: Sequence[Floats], level: Floats, weight: Floats) -> Floats:
    """Give the factors of a weighted least-squares fit of a few terms."""
    basis: list[Floats] = []
    made: list[Floats] = []  # each of the basis in the terms
    for k, term in enumerate(values):
        rest, factors = np.asarray(term, float).copy(), np.zeros(len(values))
        factors[k] = 1.0
        for each, of_each in zip(basis, made, strict=True):
            share = float((weight * rest * each).sum())
            rest, factors = rest - share * each, factors - share * of_each
        size = float((weight * rest * rest).sum()) ** 0.5
        if size > 1e-9:
            basis.append(rest / size)
            made.append(factors / size)
    total = np.zeros(len(values))
    for each, of_each in zip(basis, made, strict=True):
        total += float((weight * level * each).sum()) * of_each
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def sums_of_terms(places: np.ndarray, terms: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Give for each row the sum of its terms, each times its factor, from the first on.

    places, terms: (rows, terms); places: of each term's factor.
    """
    out = np.empty(places.shape[0])
    for row in range(places.shape[0]):
        total = 0.0
        for k in range(places.shape[1]):
            total += factors[np.uint32(places[row, k])] * terms[row, k]
        out[row] = total
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def pulls_on_terms(
    places: np.ndarray,
    terms: np.ndarray,
    cell: np.ndarray,
    of_cells: np.ndarray,
    weight: np.ndarray,
    values: np.ndarray,
    factors: int,
) -> np.ndarray:
    """Give for each factor the sum of weight * term * (value - mean of the cell), row after row.

    places, terms: as for `sums_of_terms`. cell, weight, values: of each row; of_cells: sums of the
    weights in cells.
    """
    mean, out = np.zeros(of_cells.size), np.zeros(factors)
    for row in range(cell.size):
        mean[cell[row]] += weight[row] * values[row]
    for k in range(mean.size):
        mean[k] /= max(of_cells[k], 1e-300)
    for row in range(cell.size):
        rest = weight[row] * (values[row] - mean[cell[row]])
        for k in range(places.shape[1]):
            out[np.uint32(places[row, k])] += terms[row, k] * rest
    return out


def connected_groups(
    unit: npt.NDArray[np.int64], cell: npt.NDArray[np.int64], units: int
) -> npt.NDArray[np.int64]:
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
