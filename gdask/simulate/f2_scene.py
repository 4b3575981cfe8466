"""Galaxies as FLAMINGOS-2 sees them: a disc and a bulge, convolved with the star's profile and with the pixel.

Everything is done in the Fourier plane, where each part is known in closed form, so that nothing is sampled too
coarsely: discs and bulges are Spergel (2010, ApJS 191, 58) profiles, transform (1 + k^2)^-(1 + nu) for unit scale,
nu = 1/2 an exponential disc (Sersic index 1), nu = -0.6 close to a Sersic profile of index 4; a Moffat profile's
transform is 2 / Gamma(beta - 1) (k a / 2)^(beta - 1) K_(beta - 1)(k a).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import gamma
from scipy.special import kv as bessel_k

from gdask.simulate.noise import generator
from gdask.simulate.psf import PSF, parameters
from gdask.simulate.sky import deproject
from gdask.types import Image

Array = npt.NDArray[np.float64]

DISC, BULGE = 0.5, -0.6  # Spergel's index nu
BULGE_SIZE = 0.45  # half-light radius of a bulge over that of its disc
FEW, MANY = 15, 60  # galaxies in the sparse and extended fields
STAMP = (64, 512)  # pixels, least and largest side of a galaxy's stamp


class Galaxies(NamedTuple):
    """Galaxies of one field, brightest first: ids, degrees, magnitudes, e-/s, shapes.

    radius: half-light radius of the disc along its major axis, arcsec; ratio: of the axes; angle: of the major axis,
    degrees East of North; bulge: fraction of the light in the bulge.
    """

    field: str
    id: list[str]
    ra: Array
    dec: Array
    mag: Array
    flux: Array
    radius: Array
    ratio: Array
    angle: Array
    bulge: Array


def galaxy_field(
    seed: int, field: str, count: int, ra0: float, dec0: float, zero_point: float, half_size: float
) -> Galaxies:
    """Galaxies within `half_size` arcsec of (ra0, dec0), smaller when they are fainter."""
    rng = generator(seed, "galaxies", field)
    xi, eta = rng.uniform(-half_size, half_size, (2, count))
    mag = np.sort(
        np.append(
            rng.uniform(15.5, 17.0, min(1, count)), 21.5 - rng.exponential(1.2, max(0, count - 1))
        )
    )
    mag = np.maximum(mag, 15.0)
    ra, dec = deproject(xi, eta, ra0, dec0)
    radius = np.minimum(0.5 * 10.0 ** (0.17 * (21.5 - mag)) * rng.lognormal(0.0, 0.25, count), 5.0)
    return Galaxies(
        field,
        [f"{field}-g{i + 1:04d}" for i in range(count)],
        ra,
        dec,
        mag,
        10.0 ** (0.4 * (zero_point - mag)),
        radius,
        rng.uniform(0.25, 1.0, count),
        rng.uniform(0.0, 180.0, count),
        rng.uniform(0.0, 0.6, count),
    )


def half_light(nu: float) -> float:
    """Half-light radius of Spergel's profile of unit scale."""

    def missing(r: float) -> float:
        # light beyond r is 2 (1 + nu) (r / 2)^(nu + 1) K_(nu + 1)(r) / Gamma(nu + 2)
        return (
            2.0 * (1.0 + nu) * (r / 2.0) ** (nu + 1.0) * bessel_k(nu + 1.0, r) / gamma(nu + 2.0)
            - 0.5
        )

    return float(brentq(missing, 1e-6, 20.0))


def seeing_transform(psf: PSF, k: Array) -> Array:
    """Transform of the star's profile at angular frequencies k (radians per arcsec)."""
    total = np.zeros_like(k)
    for fraction, a2, beta, _ in parameters(psf):
        x, order = np.maximum(k * np.sqrt(a2), 1e-6), beta - 1.0
        total += fraction * 2.0 / gamma(order) * (x / 2.0) ** order * bessel_k(order, x)
    return total


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

    x, y: 0-based pixel position; jacobian: du/dx, du/dy, dv/dx, dv/dy, arcsec per pixel; pa: position angle of the
    frame; the rest as in Galaxies.
    """
    scale = float(np.sqrt(abs(jacobian[0] * jacobian[3] - jacobian[1] * jacobian[2])))
    wanted = (12.0 * radius + 10.0 * psf[0].fwhm) / scale
    n = int(np.clip(2 ** np.ceil(np.log2(wanted)), *STAMP))
    left, low = int(np.floor(x + 0.5)) - n // 2, int(np.floor(y + 0.5)) - n // 2
    ny, nx = image.shape
    if left >= nx or low >= ny or left + n <= 0 or low + n <= 0:
        return
    stamp = _stamp(n, x - left, y - low, jacobian, pa, psf, radius, ratio, angle, bulge)
    ys, xs = slice(max(0, low), min(ny, low + n)), slice(max(0, left), min(nx, left + n))
    image[ys, xs] += (
        np.float32(electrons)
        * stamp[ys.start - low : ys.stop - low, xs.start - left : xs.stop - left]
    )


def _stamp(
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
    ku, kv = (
        2.0
        * np.pi
        * np.linalg.solve(np.array(jacobian).reshape(2, 2).T, np.stack([fx.ravel(), fy.ravel()]))
    )
    along = np.radians(angle - pa)  # of the major axis, from +v towards +u
    major = radius * (ku * np.sin(along) + kv * np.cos(along))
    minor = radius * ratio * (ku * np.cos(along) - kv * np.sin(along))
    k2 = major**2 + minor**2
    light = (1.0 - bulge) * (1.0 + k2 / half_light(DISC) ** 2) ** -(1.0 + DISC) + bulge * (
        1.0 + k2 * (BULGE_SIZE / half_light(BULGE)) ** 2
    ) ** -(1.0 + BULGE)
    light *= seeing_transform(psf, np.hypot(ku, kv))
    light = (
        light.reshape(fy.shape)
        * np.sinc(fx)
        * np.sinc(fy)
        * np.exp(-2j * np.pi * (fx * x + fy * y))
    )
    return np.fft.irfft2(light, (n, n)).astype(np.float32)
