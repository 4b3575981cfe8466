"""Stars and galaxies on pixels, with the pixel's true shape on the sky.

A star is a sum of Moffat profiles, integrated over each pixel. A Moffat profile of unit flux is
(beta - 1) / (pi a^2) (1 + r^2 / a^2)^-beta with a = FWHM / (2 sqrt(2^(1/beta) - 1)) (Moffat 1969,
A&A 3, 455). beta is a whole number, so that a pixel costs multiplications and one division.
Adaptive optics gives a sharp core on a halo as wide as the seeing; without it there is the halo
alone.

A galaxy is a disc and a bulge, convolved with the star's profile and with the pixel. All of it is
done in the Fourier plane, where each part is known in closed form, so that nothing is sampled too
coarsely: discs and bulges are Spergel (2010, ApJS 191, 58) profiles, whose transform for unit scale
is (1 + k^2)^-(1 + nu), with nu = 1/2 an exponential disc (Sersic index 1) and nu = -0.6 close to a
Sersic profile of index 4; a Moffat profile's transform is
2 / Gamma(beta - 1) (k a / 2)^(beta - 1) K_(beta - 1)(k a).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy.optimize import brentq
from scipy.special import gamma
from scipy.special import kv as bessel_k

from gdask.simulate.geometry import Real
from gdask.types import Image

Array = npt.NDArray[np.float64]


class Moffat(NamedTuple):
    """One component of a star's profile."""

    fraction: float  # of the flux
    fwhm: float  # full width at half maximum, arcsec
    beta: int  # exponent, a whole number, at least 2


PSF = tuple[Moffat, ...]

#: What of a star may fall outside its stamp: this fraction of its flux ...
MAX_LOST_FRACTION = 5e-4
#: ... or as many electrons, if that is more.
MAX_LOST_ELECTRONS = 8.0
#: Half size (pixels) of the box about a star whose pixels are integrated rather than sampled.
CORE_HALF_SIZE = 12

DISC_INDEX, BULGE_INDEX = 0.5, -0.6  # Spergel's index nu
BULGE_SIZE = 0.45  # half-light radius of a bulge over that of its disc
GALAXY_STAMP_SIDE = (64, 512)  # pixels, least and largest


# Stars ------------------------------------------------------------------------------------------


def profile_table(psf: PSF) -> Array:
    """Table of the components for `render`, (n, 4).

    Columns: fraction, a^2 (arcsec^2), beta, peak surface brightness (1/arcsec^2).
    """
    rows = []
    for component in psf:
        a2 = (component.fwhm / 2.0) ** 2 / (2.0 ** (1.0 / component.beta) - 1.0)
        peak = component.fraction * (component.beta - 1) / (np.pi * a2)
        rows.append((component.fraction, a2, float(component.beta), peak))
    return np.array(rows)


def stamp_radii(psf: PSF, electrons: Array) -> Array:
    """Stamp radius (arcsec) of each star, from the flux that may be lost outside."""
    lost = np.maximum(
        MAX_LOST_FRACTION, MAX_LOST_ELECTRONS / np.maximum(electrons, MAX_LOST_ELECTRONS)
    )
    radii = np.full(np.shape(electrons), 0.1)
    for fraction, a2, beta, _ in profile_table(psf):
        grown = np.maximum(fraction / lost, 1.0) ** (1.0 / (beta - 1.0)) - 1.0
        radii = np.maximum(radii, np.sqrt(a2 * grown))
    return radii


def peak_fraction(psf: PSF, pixel_area: float) -> float:
    """Estimate, from the peak, the fraction of a star's light in the pixel on which it is centred.

    pixel_area: arcsec^2.
    """
    return float(profile_table(psf)[:, 3].sum() * pixel_area)


@njit(cache=True, nogil=True)
def _surface_brightness(r2: float, table: Array) -> float:
    """Profile at the squared distance `r2` (arcsec^2) from the star, 1/arcsec^2."""
    total = 0.0
    for i in range(table.shape[0]):
        t = 1.0 + r2 / table[i, 1]
        power = t
        for _ in range(int(table[i, 2]) - 1):
            power *= t
        total += table[i, 3] / power
    return total


@njit(cache=True, nogil=True)
def _pixel_mean(dx: float, dy: float, a: float, b: float, c: float, table: Array) -> float:
    """Mean of the profile over the pixel at offset (dx, dy) pixels from the star.

    Gauss-Legendre quadrature of 4 x 4 points. r^2 = a dx^2 + 2 b dx dy + c dy^2, arcsec^2.
    """
    nodes = (-0.43056815579702629, -0.16999052179242813, 0.16999052179242813, 0.43056815579702629)
    weights = (0.17392742256872693, 0.32607257743127307, 0.32607257743127307, 0.17392742256872693)
    total = 0.0
    for j in range(4):
        y = dy + nodes[j]
        for i in range(4):
            x = dx + nodes[i]
            r2 = a * x * x + 2.0 * b * x * y + c * y * y
            total += weights[i] * weights[j] * _surface_brightness(r2, table)
    return total


@njit(cache=True, nogil=True)
def _add_row(
    row: npt.NDArray[np.float32],
    dx: float,
    dy: float,
    a: float,
    b: float,
    c: float,
    flux: float,
    table: Array,
) -> None:
    """Add flux x profile, sampled at pixel centres, to a row of pixels.

    The first pixel of the row lies at (dx, dy) pixels from the star; a, b, c as in `_pixel_mean`.
    """
    n = row.shape[0]
    for k in range(table.shape[0]):
        a2, beta, peak = table[k, 1], int(table[k, 2]), flux * table[k, 3]
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
    image: Image,
    x: Array,
    y: Array,
    electrons: Array,
    jacobians: Array,
    radii: Array,
    table: Array,
    core: int,
) -> None:
    """Add stars to `image` (ny, nx), in place.

    x, y: 0-based pixel positions. electrons: total signal of each star. jacobians (n, 4): du/dx,
    du/dy, dv/dx, dv/dy in arcsec per pixel at the star. radii: of the stamps, arcsec. table:
    `profile_table` of the PSF. core: half size (pixels) of the box of integrated pixels.
    """
    ny, nx = image.shape
    for s in range(x.size):
        ux, uy, vx, vy = jacobians[s, 0], jacobians[s, 1], jacobians[s, 2], jacobians[s, 3]
        a, b, c = ux * ux + vx * vx, ux * uy + vx * vy, uy * uy + vy * vy
        area = abs(ux * vy - uy * vx)
        flux = electrons[s] * area
        radius = radii[s] / np.sqrt(area)
        nearest_x, nearest_y = int(np.floor(x[s] + 0.5)), int(np.floor(y[s] + 0.5))
        first_row = max(0, int(np.ceil(y[s] - radius)))
        last_row = min(ny - 1, int(np.floor(y[s] + radius)))
        for j in range(first_row, last_row + 1):
            dy = j - y[s]
            half = np.sqrt(max(0.0, radius * radius - dy * dy))
            lo = max(0, int(np.ceil(x[s] - half)))
            hi = min(nx - 1, int(np.floor(x[s] + half))) + 1
            if hi <= lo:
                continue
            if abs(j - nearest_y) > core:
                _add_row(image[j, lo:hi], lo - x[s], dy, a, b, c, flux, table)
                continue
            left = min(max(lo, nearest_x - core), hi)
            right = max(min(hi, nearest_x + core + 1), lo)
            if left > lo:
                _add_row(image[j, lo:left], lo - x[s], dy, a, b, c, flux, table)
            for i in range(left, right):
                image[j, i] += flux * _pixel_mean(i - x[s], dy, a, b, c, table)
            after = max(right, left)
            if hi > after:
                _add_row(image[j, after:hi], after - x[s], dy, a, b, c, flux, table)


# Galaxies ---------------------------------------------------------------------------------------


def add_galaxy(
    image: Image,
    x: float,
    y: float,
    electrons: float,
    jacobian: Array,
    pa: float,
    psf: PSF,
    radius: float,
    ratio: float,
    angle: float,
    bulge: float,
) -> None:
    """Add one galaxy to `image` (ny, nx), in place.

    x, y: 0-based pixel position. jacobian: du/dx, du/dy, dv/dx, dv/dy, arcsec per pixel. pa:
    position angle of the frame, degrees. radius, ratio, angle, bulge: as in `scene.Galaxies`.
    """
    scale = float(np.sqrt(abs(jacobian[0] * jacobian[3] - jacobian[1] * jacobian[2])))
    side = galaxy_extent(radius, psf) / scale
    n = int(np.clip(2 ** np.ceil(np.log2(side)), *GALAXY_STAMP_SIDE))
    left, low = int(np.floor(x + 0.5)) - n // 2, int(np.floor(y + 0.5)) - n // 2
    ny, nx = image.shape
    if left >= nx or low >= ny or left + n <= 0 or low + n <= 0:
        return
    stamp = _galaxy_stamp(n, x - left, y - low, jacobian, pa, psf, radius, ratio, angle, bulge)
    rows, columns = slice(max(0, low), min(ny, low + n)), slice(max(0, left), min(nx, left + n))
    image[rows, columns] += (
        np.float32(electrons)
        * stamp[rows.start - low : rows.stop - low, columns.start - left : columns.stop - left]
    )


def galaxy_extent(radius: Real, psf: PSF) -> Real:
    """Width (arcsec) of the stamp that holds a galaxy of a half-light radius (arcsec)."""
    return 12.0 * radius + 10.0 * psf[0].fwhm


def half_light(nu: float) -> float:
    """Half-light radius of Spergel's profile of index `nu` and unit scale."""

    def missing(r: float) -> float:
        # light beyond r is 2 (1 + nu) (r / 2)^(nu + 1) K_(nu + 1)(r) / Gamma(nu + 2)
        return (
            2.0 * (1.0 + nu) * (r / 2.0) ** (nu + 1.0) * bessel_k(nu + 1.0, r) / gamma(nu + 2.0)
            - 0.5
        )

    return float(brentq(missing, 1e-6, 20.0))


def seeing_transform(psf: PSF, k: Array) -> Array:
    """Fourier transform of the star's profile at angular frequencies k (radians per arcsec)."""
    total = np.zeros_like(k)
    for fraction, a2, beta, _ in profile_table(psf):
        x, order = np.maximum(k * np.sqrt(a2), 1e-6), beta - 1.0
        total += fraction * 2.0 / gamma(order) * (x / 2.0) ** order * bessel_k(order, x)
    return total


def _galaxy_stamp(
    n: int,
    x: float,
    y: float,
    jacobian: Array,
    pa: float,
    psf: PSF,
    radius: float,
    ratio: float,
    angle: float,
    bulge: float,
) -> Image:
    """Light of a galaxy of unit flux at pixel (x, y) of an n x n stamp."""
    fy, fx = np.meshgrid(np.fft.fftfreq(n), np.fft.rfftfreq(n), indexing="ij")  # cycles per pixel
    matrix = np.array(jacobian).reshape(2, 2).T
    frequencies = np.linalg.solve(matrix, np.stack([fx.ravel(), fy.ravel()]))
    ku, kv = 2.0 * np.pi * frequencies
    axis = np.radians(angle - pa)  # direction of the major axis, from +v towards +u
    major = radius * (ku * np.sin(axis) + kv * np.cos(axis))
    minor = radius * ratio * (ku * np.cos(axis) - kv * np.sin(axis))
    k2 = major**2 + minor**2
    bulge_scale = BULGE_SIZE / half_light(BULGE_INDEX)
    light = (1.0 - bulge) * (1.0 + k2 / half_light(DISC_INDEX) ** 2) ** -(
        1.0 + DISC_INDEX
    ) + bulge * (1.0 + k2 * bulge_scale**2) ** -(1.0 + BULGE_INDEX)
    light *= seeing_transform(psf, np.hypot(ku, kv))
    shift = np.exp(-2j * np.pi * (fx * x + fy * y))
    spectrum = light.reshape(fy.shape) * np.sinc(fx) * np.sinc(fy) * shift
    return np.fft.irfft2(spectrum, (n, n)).astype(np.float32)
