"""Stars on pixels: sums of Moffat profiles, integrated over each pixel, with the pixel's true shape on the sky.

A Moffat profile of unit flux is (beta - 1) / (pi a^2) (1 + r^2 / a^2)^-beta with a = FWHM / (2 sqrt(2^(1/beta) - 1))
(Moffat 1969, A&A 3, 455). beta is a whole number, so that a pixel costs multiplications and one division.
Adaptive optics gives a sharp core on a halo as wide as the seeing; without it there is the halo alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[np.float64]


class Moffat(NamedTuple):
    """One component: its fraction of the flux, full width at half maximum (arcsec), exponent (whole number >= 2)."""

    fraction: float
    fwhm: float
    beta: int


PSF = tuple[Moffat, ...]

LOST = 5e-4  # fraction of a star's flux that may fall outside its stamp ...
LOST_ELECTRONS = 8.0  # ... or as many electrons, if that is more
CORE = 12  # half size of the box (pixels) in which pixels are integrated rather than sampled


def parameters(psf: PSF) -> Array:
    """(n, 4) table of fraction, a^2 (arcsec^2), beta, peak surface brightness (1/arcsec^2) for `render`."""
    rows = []
    for part in psf:
        a2 = (part.fwhm / 2.0) ** 2 / (2.0 ** (1.0 / part.beta) - 1.0)
        rows.append(
            (part.fraction, a2, float(part.beta), part.fraction * (part.beta - 1) / (np.pi * a2))
        )
    return np.array(rows)


def radii(psf: PSF, electrons: Array) -> Array:
    """Stamp radius (arcsec) of each star, from the flux that may be lost outside (LOST, LOST_ELECTRONS)."""
    lost = np.maximum(LOST, LOST_ELECTRONS / np.maximum(electrons, LOST_ELECTRONS))
    reach = np.full(np.shape(electrons), 0.1)
    for fraction, a2, beta, _ in parameters(psf):
        grown = np.maximum(fraction / lost, 1.0) ** (1.0 / (beta - 1.0)) - 1.0
        reach = np.maximum(reach, np.sqrt(a2 * grown))
    return reach


def peak_fraction(psf: PSF, pixel_area: float) -> float:
    """Fraction of a star's light in a pixel of `pixel_area` (arcsec^2) on which it is centred, from the peak."""
    return float(parameters(psf)[:, 3].sum() * pixel_area)


@njit(cache=True, nogil=True)
def _surface(q: float, table: Array) -> float:
    total = 0.0
    for i in range(table.shape[0]):
        t = 1.0 + q / table[i, 1]
        power = t
        for _ in range(int(table[i, 2]) - 1):
            power *= t
        total += table[i, 3] / power
    return total


@njit(cache=True, nogil=True)
def _integral(dx: float, dy: float, a: float, b: float, c: float, table: Array) -> float:
    """Mean of the profile over the pixel at offset (dx, dy) from the star: 4 x 4 points of Gauss and Legendre."""
    nodes = (-0.43056815579702629, -0.16999052179242813, 0.16999052179242813, 0.43056815579702629)
    weights = (0.17392742256872693, 0.32607257743127307, 0.32607257743127307, 0.17392742256872693)
    total = 0.0
    for j in range(4):
        y = dy + nodes[j]
        for i in range(4):
            x = dx + nodes[i]
            total += (
                weights[i] * weights[j] * _surface(a * x * x + 2.0 * b * x * y + c * y * y, table)
            )
    return total


@njit(cache=True, nogil=True)
def _add_row(
    row: npt.NDArray[np.float32],
    dx: float,
    dy: float,
    a: float,
    b: float,
    c: float,
    f: float,
    table: Array,
) -> None:
    """Add f x profile, sampled at pixel centres, to a row whose first pixel lies at (dx, dy) from the star."""
    n = row.shape[0]
    for k in range(table.shape[0]):
        a2, beta, peak = table[k, 1], int(table[k, 2]), f * table[k, 3]
        qa, qb, qc = a / a2, 2.0 * b * dy / a2, 1.0 + c * dy * dy / a2
        if beta == 3:
            for i in range(n):
                x = dx + i
                t = qc + x * (qb + qa * x)
                row[i] += peak / (t * t * t)
        elif beta == 4:
            for i in range(n):
                x = dx + i
                t = qc + x * (qb + qa * x)
                t *= t
                row[i] += peak / (t * t)
        else:
            for i in range(n):
                x = dx + i
                row[i] += peak * (qc + x * (qb + qa * x)) ** -beta


@njit(cache=True, nogil=True)
def render(
    image: npt.NDArray[np.float32],
    x: Array,
    y: Array,
    electrons: Array,
    jacobians: Array,
    reach: Array,
    table: Array,
    core: int,
) -> None:
    """Add stars to `image` (ny, nx), in place.

    x, y: 0-based pixel positions; electrons: total signal of each; jacobians (n, 4): du/dx, du/dy, dv/dx, dv/dy in
    arcsec per pixel at the star; reach: stamp radius in arcsec; table: `parameters` of the PSF.
    """
    ny, nx = image.shape
    for s in range(x.size):
        ux, uy, vx, vy = jacobians[s, 0], jacobians[s, 1], jacobians[s, 2], jacobians[s, 3]
        a, b, c = ux * ux + vx * vx, ux * uy + vx * vy, uy * uy + vy * vy
        area = abs(ux * vy - uy * vx)
        flux = electrons[s] * area
        size = reach[s] / np.sqrt(area)
        jx, jy = int(np.floor(x[s] + 0.5)), int(np.floor(y[s] + 0.5))
        for j in range(
            max(0, int(np.ceil(y[s] - size))), min(ny - 1, int(np.floor(y[s] + size))) + 1
        ):
            dy = j - y[s]
            half = np.sqrt(max(0.0, size * size - dy * dy))
            lo, hi = max(0, int(np.ceil(x[s] - half))), min(nx - 1, int(np.floor(x[s] + half))) + 1
            if hi <= lo:
                continue
            if abs(j - jy) > core:
                _add_row(image[j, lo:hi], lo - x[s], dy, a, b, c, flux, table)
                continue
            left, right = min(max(lo, jx - core), hi), max(min(hi, jx + core + 1), lo)
            if left > lo:
                _add_row(image[j, lo:left], lo - x[s], dy, a, b, c, flux, table)
            for i in range(left, right):
                image[j, i] += flux * _integral(i - x[s], dy, a, b, c, table)
            if hi > max(right, left):
                _add_row(
                    image[j, max(right, left) : hi],
                    max(right, left) - x[s],
                    dy,
                    a,
                    b,
                    c,
                    flux,
                    table,
                )
