"""What is on the sky in the fields of a simulated night: stars, galaxies, and smooth light."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gdask.simulate.geometry import deproject, project
from gdask.simulate.seeds import generator

Array = npt.NDArray[np.float64]


class Stars(NamedTuple):
    """Stars of one field, brightest first."""

    field: str
    id: list[str]
    ra: Array  # degrees
    dec: Array  # degrees
    mag: Array
    flux: Array  # e-/s at mean response


class Galaxies(NamedTuple):
    """Galaxies of one field, brightest first."""

    field: str
    id: list[str]
    ra: Array  # degrees
    dec: Array  # degrees
    mag: Array
    flux: Array  # e-/s at mean response
    radius: Array  # half-light radius of the disc along its major axis, arcsec
    ratio: Array  # of the axes
    angle: Array  # of the major axis, degrees East of North
    bulge: Array  # fraction of the light in the bulge


class Halo(NamedTuple):
    """Smooth light amp (1 + r^2 / scale^2)^-power about a position, not convolved with the PSF."""

    amp: float  # e-/s in a mean pixel
    ra: float  # degrees
    dec: float  # degrees
    scale: float  # arcsec
    power: float


class Density(NamedTuple):
    """How many stars a field has: their number per magnitude goes as 10^(slope m)."""

    stars: int
    bright: float  # magnitude of the brightest ...
    faint: float  # ... and of the faintest
    slope: float
    extra: int  # more stars, spread evenly from `bright` to one magnitude fainter


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

#: Magnitudes of galaxies: the first is drawn evenly between these two ...
FIRST_GALAXY_MAG = (15.5, 17.0)
#: ... and the others lie exponentially above the faint limit, with this mean, down to this bound.
FAINT_GALAXY_MAG, GALAXY_MAG_MEAN, BRIGHTEST_GALAXY_MAG = 21.5, 1.2, 15.0
GALAXY_MAX_RADIUS = 5.0  # arcsec


def star_field(
    seed: int,
    field: str,
    kind: str,
    centre: tuple[float, float],
    zero_point: float,
    half_size: float,
    placed: tuple[tuple[float, float, float], ...] = (),
) -> Stars:
    """Draw the stars of a field within a square.

    kind: a key of DENSITIES. centre: degrees. half_size: half the side of the square, arcsec.
    placed: (xi, eta, magnitude), arcsec from the centre, of stars that must be there.
    The same seed gives the same sky whatever is observed.
    """
    density = DENSITIES[kind]
    rng = generator(seed, "scene", field, kind)
    n = density.stars + density.extra
    xi, eta = rng.uniform(-half_size, half_size, (2, n))
    low, high = 10.0 ** (density.slope * np.array([density.bright, density.faint]))
    mag = np.log10(low + rng.uniform(size=n) * (high - low)) / density.slope
    mag[: density.extra] = density.bright + rng.uniform(size=density.extra)
    if placed:
        placed_xi, placed_eta, placed_mag = np.array(placed).T
        xi, eta = np.append(xi, placed_xi), np.append(eta, placed_eta)
        mag = np.append(mag, placed_mag)
    order = np.argsort(mag, kind="stable")
    ra, dec = deproject(xi[order], eta[order], *centre)
    mag = mag[order]
    names = [f"{field}-{i + 1:05d}" for i in range(mag.size)]
    return Stars(field, names, ra, dec, mag, magnitude_to_flux(mag, zero_point))


def galaxy_field(
    seed: int,
    field: str,
    count: int,
    centre: tuple[float, float],
    zero_point: float,
    half_size: float,
) -> Galaxies:
    """Draw `count` galaxies within a square, smaller when they are fainter.

    The other arguments are those of `star_field`.
    """
    rng = generator(seed, "galaxies", field)
    xi, eta = rng.uniform(-half_size, half_size, (2, count))
    first = rng.uniform(*FIRST_GALAXY_MAG, min(1, count))
    others = FAINT_GALAXY_MAG - rng.exponential(GALAXY_MAG_MEAN, max(0, count - 1))
    mag = np.maximum(np.sort(np.append(first, others)), BRIGHTEST_GALAXY_MAG)
    ra, dec = deproject(xi, eta, *centre)
    radius = 0.5 * 10.0 ** (0.17 * (FAINT_GALAXY_MAG - mag)) * rng.lognormal(0.0, 0.25, count)
    return Galaxies(
        field,
        [f"{field}-g{i + 1:04d}" for i in range(count)],
        ra,
        dec,
        mag,
        magnitude_to_flux(mag, zero_point),
        np.minimum(radius, GALAXY_MAX_RADIUS),
        ratio=rng.uniform(0.25, 1.0, count),
        angle=rng.uniform(0.0, 180.0, count),
        bulge=rng.uniform(0.0, 0.6, count),
    )


def magnitude_to_flux(mag: Array, zero_point: float) -> Array:
    """Flux (e-/s) of magnitudes; the zero point is the magnitude of 1 e-/s."""
    return 10.0 ** (0.4 * (zero_point - mag))


def halo_light(halo: Halo, ra: Array, dec: Array) -> Array:
    """Surface brightness of the halo at sky positions (degrees): e-/s in a mean pixel."""
    xi, eta = project(ra, dec, halo.ra, halo.dec)
    return halo.amp * (1.0 + (xi * xi + eta * eta) / halo.scale**2) ** -halo.power
