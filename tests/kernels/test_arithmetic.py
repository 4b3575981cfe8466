"""Elementary functions against the C library's; the same bits without a processor's features."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest

from gdask.kernels import arithmetic
from gdask.kernels.arithmetic import least_squares, nonnegative_least_squares

#: What one process computes: of NumPy's own functions, and of these.
DIGESTS = """
import hashlib
import numpy as np
from gdask.kernels import arithmetic
x = np.random.default_rng(1).normal(size=(40, 200))
y = np.abs(x[0]) + 0.01

def digest(*found):
    content = b"".join(np.ascontiguousarray(each).tobytes() for each in found)
    return hashlib.sha256(content).hexdigest()

print(digest(x.T @ x, np.arctan2(x, 1.7), np.sin(x), np.exp(x), np.log(np.abs(x))))
fits = arithmetic.least_squares(x.T[:, :8], x.T[:, 9:12])
some = arithmetic.nonnegative_least_squares(np.abs(x.T[:, :8]), y)
angles = arithmetic.arctangents(x[0], x[1]), arithmetic.sines(x), arithmetic.cosines(x)
print(digest(arithmetic.exponentials(x), arithmetic.logarithms(y), fits, some, *angles))
"""


def test_values_are_those_of_the_c_library() -> None:
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.uniform(-700, 700, 20000), rng.uniform(-1, 1, 2000), [0.0]])
    assert np.abs(arithmetic.exponentials(x) / np.exp(x) - 1).max() < 5e-16
    y = np.exp(x)
    assert np.abs(arithmetic.logarithms(y) - x).max() < 4e-13  # e^x is rounded
    near_one = 1 + rng.uniform(-1e-6, 1e-6, 1000)
    exact = np.log1p(near_one - 1)
    assert np.abs(arithmetic.logarithms(near_one) - exact).max() < 3e-22 + 2e-16
    angle = rng.uniform(-180, 180, 20000)
    sine, cosine = arithmetic.sines(angle), arithmetic.cosines(angle)
    assert np.abs(sine - np.sin(np.radians(angle))).max() < 5e-16
    assert np.abs(sine**2 + cosine**2 - 1).max() < 1e-15
    length = np.exp(rng.uniform(-50, 50, angle.size))
    assert np.abs(arithmetic.arctangents(length * sine, length * cosine) - angle).max() < 1e-13


@pytest.mark.parametrize("value", [0.0, -0.0, -1.0, math.inf, -math.inf, math.nan, 5e-324, 1e308])
def test_values_at_the_ends(value: float) -> None:
    with np.errstate(all="ignore"):
        expected = np.exp(value), np.log(value)
    found = arithmetic.exponential(value), arithmetic.logarithm(value)
    np.testing.assert_allclose(found, expected, rtol=3e-16)
    for other in (0.0, 1.0, -1.0):
        assert arithmetic.arctangent(value, other) == pytest.approx(
            math.degrees(math.atan2(value, other)), rel=3e-16, nan_ok=True
        )


def test_plain_and_compiled_code_agree() -> None:
    for value in (0.3, -700.0, 12.5, 1e-9):
        assert arithmetic.exponential.few(value) == arithmetic.exponential(value)
        assert arithmetic.logarithm.few(abs(value)) == arithmetic.logarithm(abs(value))
        assert arithmetic.arctangent.few(value, 0.7) == arithmetic.arctangent(value, 0.7)


def test_bits_do_not_depend_on_the_processor() -> None:
    """NumPy's do, where this processor has anything to take away."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    other = {
        "NPY_DISABLE_CPU_FEATURES": " ".join(n for n in __cpu_dispatch__ if __cpu_features__[n]),
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F",
        "OPENBLAS_CORETYPE": "Prescott",
    }
    here, there = (
        subprocess.run(
            [sys.executable, "-c", DIGESTS],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | more,
        ).stdout.splitlines()
        for more in ({}, other)
    )
    if here[0] == there[0]:
        pytest.skip("libraries compute here as on any processor")
    assert here[1] == there[1]


@pytest.mark.parametrize("rows, columns", [(80, 12), (12, 12), (5, 9), (1, 1)])
def test_nonnegative_least_squares_are_as_low_as_those_of_scipy(rows: int, columns: int) -> None:
    from scipy.optimize import nnls

    rng = np.random.default_rng(rows)
    for trial in range(60):
        matrix = rng.normal(size=(rows, columns))
        if trial % 2:  # sums of Gaussians, which are nearly alike
            matrix = np.exp(-np.linspace(0, 9, rows)[:, None] / 1.45 ** np.arange(columns))
        if trial % 3 == 0 and columns > 1:  # a level of either sign
            matrix[:, -1] = -matrix[:, 0]
        values = matrix @ np.maximum(rng.normal(size=columns), 0) + 0.1 * rng.normal(size=rows)
        found = nonnegative_least_squares(matrix, values)
        assert (found >= 0).all()
        least = nnls(matrix, values)[1]
        rest = np.linalg.norm(matrix @ found - values)
        assert rest <= least + 1e-10 * np.linalg.norm(values)


def test_nothing_of_nothing() -> None:
    assert (nonnegative_least_squares(np.zeros((4, 3)), np.ones(4)) == 0).all()
    assert (nonnegative_least_squares(np.ones((4, 2)), -np.ones(4)) == 0).all()
    assert (least_squares(np.zeros((4, 3)), np.ones(4)) == 0).all()


def test_least_squares_are_those_of_lapack() -> None:
    rng = np.random.default_rng(5)
    matrix, values = rng.normal(size=(200, 20)), rng.normal(size=(200, 2))
    expected = np.linalg.lstsq(matrix, values, rcond=None)[0]
    np.testing.assert_allclose(least_squares(matrix, values), expected, rtol=1e-10, atol=1e-13)
    one = least_squares(matrix, values[:, 0])
    assert one.shape == (20,) and np.allclose(one, expected[:, 0], rtol=1e-10)
