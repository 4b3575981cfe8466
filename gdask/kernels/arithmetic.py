"""Arithmetic that is alike on every processor: elementary functions and least squares.

Those of NumPy, LAPACK and the C library take other ways where a processor has fused multiplication
and addition or wide registers, and differ in the last bits. Here are sums and products alone, one
after another, in compiled code that fuses nothing. Square roots and `hypot` are alike everywhere.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from gdask.kernels.arrays import as_kernel_input
from gdask.kernels.compiled import njit

Floats = npt.NDArray[np.float64]

#: ln 2 in two parts: whole multiples up to 2^11 of the first are exact.
LN2_HIGH, LN2_LOW = 0.693147180369123816490, 1.90821492927058770002e-10
#: The C library's result is taken as a place near the right one, in these steps (exact in binary;
#: of angles in degrees): what differs between processors, its last bits, does not count.
LOGARITHM_STEP, ANGLE_STEP = 2.0**-16, 2.0**-8
#: Arguments of the exponential beyond which it is 0 or infinite.
LOWEST_EXPONENT, HIGHEST_EXPONENT = -745.0, 709.7
#: A column is taken to be a sum of others where less than this share of it is left beside them.
DEPENDENT_SHARE = 1e-10
#: A column that may come in lowers the sum of squares; not where its cosine with what is left, as a
#: share of the right side, is below this.
NO_GAIN = 1e-12

# Elementary functions ---------------------------------------------------------------------------


@njit(cache=True, nogil=True, error_model="numpy")
def exponential(x: float) -> float:
    """Return e^x, good to 3e-16 of it."""
    if not (x > LOWEST_EXPONENT and x < HIGHEST_EXPONENT):
        return math.inf if x > 0 else (0.0 if x < 0 else math.nan)
    k = math.floor(x / LN2_HIGH + 0.5)
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    total = 1 / 87178291200.0  # 1 / 14!; |r| < 0.35: the next term is below 1e-19
    for coefficient in (
        *(1 / 6227020800.0, 1 / 479001600.0, 1 / 39916800.0, 1 / 3628800.0, 1 / 362880.0),
        *(1 / 40320.0, 1 / 5040.0, 1 / 720.0, 1 / 120.0, 1 / 24.0, 1 / 6.0, 0.5, 1.0, 1.0),
    ):
        total = total * r + coefficient
    half = k // 2
    return total * 2.0**half * 2.0 ** (k - half)


@njit(cache=True, nogil=True, error_model="numpy")
def logarithm(x: float) -> float:
    """Return ln x, good to 3e-16 of it and 1e-16; NaN below 0."""
    if not (x > 0 and x < math.inf):
        return math.inf if x > 0 else (-math.inf if x == 0 else math.nan)
    near = math.floor(math.log(x) / LOGARITHM_STEP + 0.5) * LOGARITHM_STEP
    # In two parts, so that subnormal numbers lose nothing.
    r = (x * exponential(-near / 2.0)) * exponential(-near / 2.0) - 1.0
    return near + r * (1.0 - r * (0.5 - r * (1.0 / 3.0 - r * 0.25)))


@njit(cache=True, nogil=True)
def sine_cosine(degrees: float) -> tuple[float, float]:
    """Return sine and cosine of an angle (degrees), good to 2e-16.

    Taylor's series about the next multiple of 90 degrees: the first term that is left out is below
    1e-19.
    """
    quarter = math.floor(degrees / 90.0 + 0.5)
    x = math.radians(degrees - 90.0 * quarter)
    z = x * x
    sine = 1 / 355687428096000.0
    cosine = -1 / 6402373705728000.0
    for odd, even in (
        (-1 / 1307674368000.0, 1 / 20922789888000.0),
        (1 / 6227020800.0, -1 / 87178291200.0),
        (-1 / 39916800.0, 1 / 479001600.0),
        (1 / 362880.0, -1 / 3628800.0),
        (-1 / 5040.0, 1 / 40320.0),
        (1 / 120.0, -1 / 720.0),
        (-1 / 6.0, 1 / 24.0),
        (1.0, -0.5),
    ):
        sine = sine * z + odd
        cosine = cosine * z + even
    sine *= x
    cosine = cosine * z + 1.0
    turn = quarter % 4
    if turn == 0:
        return sine, cosine
    if turn == 1:
        return cosine, -sine
    if turn == 2:
        return -sine, -cosine
    return -cosine, sine


@njit(cache=True, nogil=True)
def arctangent(y: float, x: float) -> float:
    """Return the direction of (x, y) in degrees, -180 to 180, good to 3e-16 of it and 3e-14."""
    found = math.degrees(math.atan2(y, x))
    if not (abs(y) > 0 and abs(x) + abs(y) < math.inf):
        return found  # along x, or no number: no last bits
    near = math.floor(found / ANGLE_STEP + 0.5) * ANGLE_STEP
    sine, cosine = sine_cosine(near)
    t = (y * cosine - x * sine) / (x * cosine + y * sine)
    z = t * t  # below 5e-9: the next term is below 1e-25
    return near + math.degrees(t * (1.0 - z * (1.0 / 3.0 - z / 5.0)))


def exponentials(values: npt.ArrayLike) -> Floats:
    """Return e^x of each value of an array."""
    flat, shape = _flat(values)
    return _exponentials(flat).reshape(shape)


def logarithms(values: npt.ArrayLike) -> Floats:
    """Return ln x of each value of an array."""
    flat, shape = _flat(values)
    return _logarithms(flat).reshape(shape)


def sines(degrees: npt.ArrayLike) -> Floats:
    """Return the sine of each angle of an array."""
    flat, shape = _flat(degrees)
    return _sines_cosines(flat)[0].reshape(shape)


def cosines(degrees: npt.ArrayLike) -> Floats:
    """Return the cosine of each angle of an array."""
    flat, shape = _flat(degrees)
    return _sines_cosines(flat)[1].reshape(shape)


def arctangents(y: npt.ArrayLike, x: npt.ArrayLike) -> Floats:
    """Return the directions (degrees) of arrays of one shape."""
    flat, shape = _flat(y)
    return _arctangents(flat, _flat(x)[0]).reshape(shape)


def _flat(values: npt.ArrayLike) -> tuple[Floats, tuple[int, ...]]:
    """Give values in one layout, for which the loops are compiled once, and their shape."""
    array = np.asarray(values, np.float64)
    return as_kernel_input(array.ravel(), np.float64), array.shape


@njit(cache=True, nogil=True)
def _exponentials(x: Floats) -> Floats:
    out = np.empty(x.size)
    for i in range(x.size):
        out[i] = exponential(x[i])
    return out


@njit(cache=True, nogil=True)
def _logarithms(x: Floats) -> Floats:
    out = np.empty(x.size)
    for i in range(x.size):
        out[i] = logarithm(x[i])
    return out


@njit(cache=True, nogil=True)
def _sines_cosines(degrees: Floats) -> Floats:
    out = np.empty((2, degrees.size))
    for i in range(degrees.size):
        out[0, i], out[1, i] = sine_cosine(degrees[i])
    return out


@njit(cache=True, nogil=True)
def _arctangents(y: Floats, x: Floats) -> Floats:
    out = np.empty(x.size)
    for i in range(x.size):
        out[i] = arctangent(y[i], x[i])
    return out


# Least squares ----------------------------------------------------------------------------------


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
