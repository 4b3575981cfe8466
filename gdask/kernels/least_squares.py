"""Least squares in a fixed order of sums, free or with nothing below zero.

LAPACK sums in another order on another processor, and its results differ in their last bits. All
matrices here are small in one direction: a handful of unknowns, tens to thousands of rows.
"""

from __future__ import annotations

import numpy as np

from gdask.kernels.compiled import njit

#: A column is taken to be a sum of others where less than this share of it is left beside them.
DEPENDENT_SHARE = 1e-10
#: A column that may come in lowers the sum of squares; not where its cosine with what is left, as a
#: share of the right side, is below this.
NO_GAIN = 1e-12


@njit(cache=True, nogil=True, error_model="numpy")
def _triangle(rows: np.ndarray, columns: int) -> np.ndarray:
    """Turn rows (m, n) by Householder's reflections of the first `columns`, in place.

    What was left of each of these columns, beside those before it, as a share of its length, is
    returned; rows below the diagonal then hold nothing of them.
    """
    m, n = rows.shape
    left = np.zeros(columns)
    for c in range(columns):
        whole, rest = 0.0, 0.0
        for i in range(m):
            whole += rows[i, c] * rows[i, c]
            rest += rows[i, c] * rows[i, c] if i >= c else 0.0
        left[c] = np.sqrt(rest / whole) if whole > 0 else 0.0
        if not left[c] > 0:
            continue
        size = -np.sqrt(rest) if rows[c, c] > 0 else np.sqrt(rest)
        head = rows[c, c] - size
        scale = size * head  # half the square of the reflecting vector, less its sign
        for k in range(c + 1, n):
            product = head * rows[c, k]
            for i in range(c + 1, m):
                product += rows[i, c] * rows[i, k]
            factor = product / scale
            rows[c, k] += factor * head
            for i in range(c + 1, m):
                rows[i, k] += factor * rows[i, c]
        rows[c, c] = size
        for i in range(c + 1, m):
            rows[i, c] = 0.0
    return left


@njit(cache=True, nogil=True, error_model="numpy")
def _solved(rows: np.ndarray, left: np.ndarray, column: int) -> np.ndarray:
    """Solve a turned triangle for a right side, which is its column `column`; dependent ones: 0."""
    out = np.zeros(left.size)
    for c in range(left.size - 1, -1, -1):
        if left[c] > DEPENDENT_SHARE:
            rest = rows[c, column]
            for k in range(c + 1, left.size):
                rest -= rows[c, k] * out[k]
            out[c] = rest / rows[c, c]
    return out


def inverse_of_two(matrix: np.ndarray) -> np.ndarray:
    """Invert a matrix of 2 x 2."""
    (a, b), (c, d) = matrix
    return np.array([[d, -b], [-c, a]]) / (a * d - b * c)


def times_two(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Multiply a matrix of 2 x 2 by two rows, or two planes."""
    return np.stack([a * values[0] + b * values[1] for a, b in matrix])


def least_squares(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Find x (n,) or (n, k) with the least sum of squares of matrix @ x - values.

    matrix: (m, n), m >= n; values: (m,) or (m, k), float64. Columns that are sums of others get 0.
    """
    right = values.reshape(len(values), -1)
    out = _least_squares(np.concatenate([matrix, right], axis=1, dtype=float), matrix.shape[1])
    return out.reshape(out.shape[: values.ndim])


@njit(cache=True, nogil=True, error_model="numpy")
def _least_squares(rows: np.ndarray, n: int) -> np.ndarray:
    """Compiled part of `least_squares`: rows hold the matrix and then the right sides."""
    left = _triangle(rows, n)
    out = np.zeros((n, rows.shape[1] - n))
    for k in range(out.shape[1]):
        out[:, k] = _solved(rows, left, n + k)
    return out


def nonnegative_least_squares(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Find x >= 0 (n,) with the least sum of squares of matrix @ x - values.

    matrix: (m, n), values: (m,), float64. Lawson and Hanson's method (1995, ch. 23) on the triangle
    to which the matrix is turned first: the sum of squares differs by a constant.
    """
    n = matrix.shape[1]
    rows = np.zeros((max(len(values), n + 1), n + 1))
    rows[: len(values), :n], rows[: len(values), n] = matrix, values
    return _nonnegative(rows)


@njit(cache=True, nogil=True, error_model="numpy")
def _nonnegative(rows: np.ndarray) -> np.ndarray:
    """Compiled part of `nonnegative_least_squares`: rows hold the matrix, then the values."""
    n = rows.shape[1] - 1
    _triangle(rows, n)
    top = rows[: n + 1].copy()
    x, used, barred = np.zeros(n), np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    for _ in range(3 * n):
        best = _most_gain(top, x, used | barred)
        if best < 0:
            break
        used[best] = True
        if not _settle(top, x, used, best):
            used[best], barred[best], x[best] = False, True, 0.0
        else:
            barred[:] = False
    return x


@njit(cache=True, nogil=True, error_model="numpy")
def _most_gain(top: np.ndarray, x: np.ndarray, out_of_play: np.ndarray) -> int:
    """Find the column whose light in what is left is the largest; -1 where none has any."""
    n = x.size
    rest, whole = np.zeros(n + 1), 0.0
    for i in range(n + 1):
        whole += top[i, n] * top[i, n]
        rest[i] = top[i, n]
        for c in range(n):
            rest[i] -= top[i, c] * x[c]
    found, most = -1, 0.0
    for c in range(n):
        if out_of_play[c]:
            continue
        gain, size = 0.0, 0.0
        for i in range(n + 1):
            gain += top[i, c] * rest[i]
            size += top[i, c] * top[i, c]
        if gain > NO_GAIN * np.sqrt(size * whole) and gain > most:
            found, most = c, gain
    return found


@njit(cache=True, nogil=True, error_model="numpy")
def _settle(top: np.ndarray, x: np.ndarray, used: np.ndarray, new: int) -> bool:
    """Move x to the least squares of the columns in use; those that reach zero leave, in place.

    False where the new column is no help: it depends on others, or comes out below zero.
    """
    n = x.size
    first = True
    while True:
        columns = np.flatnonzero(used)
        part = np.zeros((n + 1, columns.size + 1))
        for k in range(columns.size):
            part[:, k] = top[:, columns[k]]
        part[:, columns.size] = top[:, n]
        left = _triangle(part, columns.size)
        found = _solved(part, left, columns.size)
        share = 1.0
        for k in range(columns.size):
            c = columns[k]
            if first and (not left[k] > DEPENDENT_SHARE or (c == new and not found[k] > 0)):
                return False
            if found[k] <= 0:
                share = min(share, x[c] / (x[c] - found[k]))
        for k in range(columns.size):
            c = columns[k]
            x[c] += share * (found[k] - x[c])
            if found[k] <= 0 and not x[c] > 1e-14 * abs(found[k]):
                x[c], used[c] = 0.0, False
        if not share < 1.0:
            return True
        first = False
