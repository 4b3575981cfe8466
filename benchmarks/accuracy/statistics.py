"""Scatter and fits that do not follow outliers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gdask.kernels.geometry.projection import Floats
from gdask.types import Image

#: Standard deviation of a Gaussian over its median absolute deviation.
SIGMA_PER_MAD = 1.4826
#: Relative error of a robust width of n Gaussian values is this over sqrt(n).
ROBUST_WIDTH_ERROR = 1.17
#: Standard error of the median of Gaussian values over that of their mean.
MEDIAN_ERROR = 1.2533


def median_absolute_deviation(values: Floats | Image) -> float:
    """Median absolute deviation from the median; NaN for no values."""
    return float(np.median(np.abs(values - np.median(values)))) if len(values) else float("nan")


def robust_sigma(values: Floats | Image) -> float:
    """Standard deviation of a Gaussian with the median absolute deviation of `values`.

    Rows of a 2-d array are taken together, each about its own median. NaN for no values.
    """
    rows = np.atleast_2d(np.asarray(values))
    if not rows.size:
        return float("nan")
    deviations = np.abs(rows - np.median(rows, axis=1, keepdims=True))
    return float(SIGMA_PER_MAD * np.median(deviations))


def rms(values: Floats) -> float:
    """Root mean square; NaN for no values."""
    return float(np.sqrt(np.mean(np.square(values)))) if np.size(values) else float("nan")


def excess(total: float, part: float) -> float:
    """Scatter that is left of `total` when `part` is taken out in quadrature; 0 where none is."""
    return float(np.sqrt(max(total**2 - part**2, 0.0)))


def sigma_about_zero(values: Floats) -> float:
    """Standard deviation of a Gaussian about 0 with the median absolute value of `values`."""
    return float(SIGMA_PER_MAD * np.median(np.abs(values)))


def linear_residuals(
    x: Floats, y: Floats, values: Floats, sigma: Callable[[Floats], float] = robust_sigma
) -> Floats:
    """Residuals of each row of `values` after a linear function of x and y.

    values: (rows, stars). The fit leaves out residuals beyond 5 times their `sigma`.
    """
    design = np.column_stack([np.ones_like(x), (x - x.mean()) / 1000, (y - y.mean()) / 1000])
    rows = []
    for row in values:
        keep = np.ones(len(x), bool)
        for _ in range(8):
            fit = np.linalg.lstsq(design[keep], row[keep], rcond=None)[0]
            residual = row - design @ fit
            keep = np.abs(residual) < max(5 * sigma(residual[keep]), 1e-3)
        rows.append(residual)
    return np.array(rows)
