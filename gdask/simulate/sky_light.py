"""How the light of the sky differs over the field, from frame to frame and from field to field.

All of it is a share of the sky's level, on the plane of the instrument: slopes and curvatures that
drift, and a ring as an image of the telescope's pupil makes it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gdask.simulate.plan import SKY_PERIODS
from gdask.simulate.rendering import PSF
from gdask.simulate.seeds import generator
from gdask.types import Image

Array = npt.NDArray[np.float64]

#: Second-order terms are so much smaller than slopes.
CURVATURE = 0.5
#: Share of the ring that is of one field only, and that drifts.
RING_OF_FIELD, RING_DRIFT = 0.3, 0.1
#: Radius and width (sigma) of the ring, as shares of half the field.
RING_RADIUS, RING_WIDTH = 0.6, 0.12
#: UT (hours) from which the seeing drifts.
DRIFT_START = 2.4
#: Seeing is never better than this share of what it was.
BEST_SEEING = 0.3


class SkyShape(NamedTuple):
    """The sky of one exposure, as shares of its level.

    terms: factors of x, y, x^2 - 1/3, xy, y^2 - 1/3, with x and y from -1 to 1 over the field.
    ring: height of the ring. half_field: arcsec.
    """

    terms: tuple[float, ...]
    ring: float
    half_field: float


FLAT = SkyShape((0.0,) * 5, 0.0, 1.0)


def sky_shape(
    seed: int, field: str, mjd: float, gradient: float, ring: float, half_field: float
) -> SkyShape:
    """Shape of the sky of a field at a time.

    gradient: rms factor of a slope, half of its variance that of the field (on and off target
    differ), half waves in time. ring: height of the ring, as a share of the level.
    """
    if not (gradient or ring) or not field:
        return FLAT
    of_field = generator(seed, "sky shape", field).standard_normal(6)
    waves = _waves(seed, mjd)
    drawn = (of_field + waves) / np.sqrt(2.0)
    sizes = gradient * np.array([1.0, 1.0, CURVATURE, CURVATURE, CURVATURE])
    height = ring * (1.0 + RING_OF_FIELD * of_field[5] + RING_DRIFT * waves[5])
    return SkyShape(tuple(float(value) for value in drawn[:5] * sizes), float(height), half_field)


def _waves(seed: int, mjd: float) -> Array:
    """Six sums of waves in time, of unit variance."""
    rng = generator(seed, "sky waves")
    shape = 6, len(SKY_PERIODS)
    phases, amplitudes = rng.uniform(0, 2 * np.pi, shape), rng.standard_normal(shape)
    amplitudes *= np.sqrt(2.0 / len(SKY_PERIODS))
    turns = 2 * np.pi * (mjd % 1.0) * 1440.0 / np.array(SKY_PERIODS)
    total: Array = (amplitudes * np.sin(turns + phases)).sum(axis=1)
    return total


def share_of_sky(shape: SkyShape, u: Array, v: Array) -> Array:
    """Light of the sky over its level at places (u, v) of the instrument's plane, arcsec."""
    x, y = u / shape.half_field, v / shape.half_field
    terms = (x, y, x * x - 1 / 3, x * y, y * y - 1 / 3)
    share = 1.0 + sum(c * t for c, t in zip(shape.terms, terms))
    from_ring = (np.hypot(x, y) - RING_RADIUS) / RING_WIDTH
    result: Array = share + shape.ring * np.exp(-0.5 * from_ring**2)
    return result


def drifted(psf: PSF, drift: float, mjd: float) -> PSF:
    """A star's profile when the seeing grows by a fraction `drift` in an hour."""
    hours = 24.0 * (mjd % 1.0) - DRIFT_START
    factor = max(1.0 + drift * hours, BEST_SEEING)
    return tuple(part._replace(fwhm=part.fwhm * factor) for part in psf)


def row_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Image:
    """Noise of rows (ny, 1) with a spectrum of 1/f and rms `sigma`: the readout drifts."""
    ny = shape[0]
    spectrum = np.fft.rfft(rng.standard_normal(ny))
    frequency = np.arange(len(spectrum))
    spectrum[1:] /= np.sqrt(frequency[1:])
    spectrum[0] = 0.0
    noise = np.fft.irfft(spectrum, ny)
    scaled: Image = (noise * (sigma / noise.std())).astype(np.float32)[:, None]
    return scaled
