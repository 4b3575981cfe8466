"""What is on the sky: catalogues of stars, and smooth light, of the fields that a simulated night looks at."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gdask.simulate.noise import generator
from gdask.simulate.sky import deproject, project

Array = npt.NDArray[np.float64]


class Stars(NamedTuple):
    """Stars of one field, brightest first: ids, degrees, magnitudes, electrons per second at mean response."""

    field: str
    id: list[str]
    ra: Array
    dec: Array
    mag: Array
    flux: Array


class Halo(NamedTuple):
    """Smooth light amp (1 + r^2 / scale^2)^-power about (ra, dec): e-/s in a mean pixel, arcsec. Not convolved."""

    amp: float
    ra: float
    dec: float
    scale: float
    power: float


class Density(NamedTuple):
    """Stars per magnitude go as 10^(slope m) between `bright` and `faint`; `extra` more are even in `bright`..+1."""

    stars: int
    bright: float
    faint: float
    slope: float
    extra: int


HALF_SIZE = (
    68.0  # arcsec: half the side of the square that holds stars; covers GSAOI at any position angle
)

DENSITIES = {
    "crowded": Density(24000, 13.8, 22.5, 0.31, 60),
    "sparse": Density(700, 13.8, 21.0, 0.22, 12),
    "extended": Density(4000, 13.8, 22.0, 0.28, 20),
    "sky": Density(1000, 14.5, 21.0, 0.22, 0),
    "std": Density(900, 12.8, 18.5, 0.20, 0),
    # a field of FLAMINGOS-2, fourteen times as large
    "f2-sparse": Density(1300, 14.4, 23.8, 0.24, 8),
    "f2-crowded": Density(30000, 13.8, 22.8, 0.30, 60),
    "f2-extended": Density(1300, 14.4, 23.8, 0.24, 8),
    "f2-sky": Density(1300, 14.4, 23.8, 0.24, 0),
}

#: e-/s per mean pixel, arcsec North of the pointing, scale, power: light of an unresolved background, and a galaxy.
HALOS = {"crowded": (2.0, 35.0, 70.0, 1.5), "extended": (60.0, -5.0, 8.0, 1.0)}


def star_field(
    seed: int,
    field: str,
    kind: str,
    ra0: float,
    dec0: float,
    zero_point: float,
    placed: tuple[tuple[float, float, float], ...] = (),
    half_size: float = HALF_SIZE,
) -> Stars:
    """Stars of the `field`, drawn for `kind` (a key of DENSITIES) within `half_size` arcsec of (ra0, dec0).

    placed: (xi, eta, magnitude) of stars that must be there. The same seed gives the same sky whatever is observed.
    """
    density = DENSITIES[kind]
    rng = generator(seed, "scene", field, kind)
    n = density.stars + density.extra
    xi, eta = rng.uniform(-half_size, half_size, (2, n))
    low, high = 10.0 ** (density.slope * np.array([density.bright, density.faint]))
    mag = np.log10(low + rng.uniform(size=n) * (high - low)) / density.slope
    mag[: density.extra] = density.bright + rng.uniform(size=density.extra)
    if placed:
        extra = np.array(placed)
        xi, eta, mag = (
            np.append(xi, extra[:, 0]),
            np.append(eta, extra[:, 1]),
            np.append(mag, extra[:, 2]),
        )
    order = np.argsort(mag, kind="stable")
    ra, dec = deproject(xi[order], eta[order], ra0, dec0)
    mag = mag[order]
    return Stars(
        field,
        [f"{field}-{i + 1:05d}" for i in range(mag.size)],
        ra,
        dec,
        mag,
        10.0 ** (0.4 * (zero_point - mag)),
    )


def halo_light(halo: Halo, ra: Array, dec: Array) -> Array:
    """Surface brightness of the halo at sky positions (degrees): e-/s in a mean pixel."""
    xi, eta = project(ra, dec, halo.ra, halo.dec)
    return halo.amp * (1.0 + (xi * xi + eta * eta) / halo.scale**2) ** -halo.power
