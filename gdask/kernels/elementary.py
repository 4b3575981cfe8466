"""Exponential, logarithm and arc tangent with the same bits on every processor.

Those of NumPy and of the C library take other ways where a processor has fused multiplication and
addition or wide registers, and differ in the last bit. Here are sums and products alone, one after
another, in compiled code that fuses nothing. Square roots and `hypot` are the same everywhere.
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
