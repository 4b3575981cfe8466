"""Simulate an infrared array: its fixed pattern, cosmic rays, and how it reads electrons out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from gdask.simulate.geometry import pixel_range
from gdask.simulate.seeds import generator
from gdask.types import Image

Array = npt.NDArray[np.float64]
BadBits = npt.NDArray[np.uint8]

#: Bits of the truth's bad-pixel maps.
DEAD, HOT, CLUSTER, REFERENCE, UNLISTED = 1, 2, 4, 8, 16

# Fixed pattern.
CHANNEL_COLUMNS = 64  # columns of a readout channel
ROW_BLOCK = 64  # rows that share a generator, so that a window draws only what it needs
WAVES = 4  # cosines in each direction in the smooth response
WAVE_SIGMA = 0.03  # of one wave, as a fraction of the response
CHANNEL_SIGMA = 0.004  # of a channel's response
GRAIN_SIGMA = 0.015  # of a pixel's response
DARK_MEDIAN = 0.009  # e-/s
DARK_SIGMA = 0.3  # of the natural logarithm of the dark current
DEAD_FRACTION, HOT_FRACTION = 5e-4, 1.5e-3  # of all pixels
UNLISTED_FRACTION = 0.02  # of single bad pixels: unknown to the bad-pixel mask

# Cosmic rays.
TRACK_STEP = 0.2  # pixels between points of a track
CHARGE_DIFFUSION = 0.35  # pixels, rms sideways spread of the charge
#: Electrons per pixel of path, median: a minimum-ionising particle in 5 micron of HgCdTe.
TRACK_CHARGE = 900.0
TRACK_CHARGE_SIGMA = 0.8  # of the natural logarithm of the charge
TRACK_LENGTH = 2.5  # pixels, mean projected length of a track

# Readout.
POISSON_MAX = 25.0  # electrons: exact Poisson numbers below, a skewed normal distribution above
PLATEAU = 1.006  # a saturated pixel reads so many times the nominal saturation level
#: Of the well: charge that may arrive within the first group of reads without lowering the signal.
PEDESTAL_FREE = 0.5


class Pattern(NamedTuple):
    """Fixed pattern of a window of an array, (ny, nx) each."""

    response: Image  # to a photon, about 1
    dark: Image  # dark current, e-/s
    bad: BadBits  # bits of what is bad


class Hits(NamedTuple):
    """Pixels that cosmic rays hit, each pixel once."""

    y: npt.NDArray[np.int64]  # 0-based
    x: npt.NDArray[np.int64]  # 0-based
    electrons: Array  # left there


class Readout(NamedTuple):
    """How one array is read."""

    gain: float  # e-/ADU
    read_noise: float  # e-
    saturation: float  # ADU
    #: true = c0 N + c1 N^2 + c2 N^3, with N the measured electrons per coadd
    linearity: tuple[float, float, float]
    coadds: int
    pedestal: float  # length of the first group of non-destructive reads over the exposure time


# Fixed pattern ----------------------------------------------------------------------------------


def smooth_response(
    seed: int, array_name: str, full_size: int, rows: Array, columns: Array
) -> Array:
    """The slowly varying response of an array, about 1, at 0-based rows and columns: (ny, nx).

    Waves of a few per cent, and a step at each readout channel (a strip of columns).
    """
    rng = generator(seed, "array", array_name, "smooth")
    phases = rng.uniform(0.0, 2 * np.pi, (2, WAVES))
    amplitudes = rng.normal(0.0, WAVE_SIGMA, (WAVES, WAVES))
    channels = 1.0 + CHANNEL_SIGMA * rng.standard_normal(-(-full_size // CHANNEL_COLUMNS))
    down, across = (
        np.cos(np.pi * np.arange(WAVES)[:, None] * pixels / full_size + phase[:, None])
        for pixels, phase in zip((rows, columns), phases)
    )
    total = np.ones((np.size(rows), np.size(columns)))
    for i in range(WAVES):
        total += down[i][:, None] * sum(
            amplitudes[i, j] / (i + j) * across[j] for j in range(WAVES) if i + j
        )
    return total * channels[np.asarray(columns, int) // CHANNEL_COLUMNS]


def fixed_pattern(
    seed: int, array_name: str, full_size: int, border: int, corner: int, size: int
) -> tuple[Pattern, BadBits]:
    """Pattern of the square window of `size` at (corner, corner), and the full array's bad pixels.

    The outer `border` pixels see no light. The same seed gives the same array whatever the window.
    """
    rng = generator(seed, "array", array_name, "faults")
    factor = np.ones((full_size, full_size), np.float32)
    heat = np.ones((full_size, full_size), np.float32)
    bad = np.zeros((full_size, full_size), np.uint8)
    _multiply_spots(rng, factor, 14, (4.0, 14.0), (0.86, 0.97))
    _multiply_pixels(rng, factor, bad, DEAD, DEAD_FRACTION, lambda n: rng.uniform(0.0, 0.25, n))
    _multiply_pixels(rng, heat, bad, HOT, HOT_FRACTION, lambda n: 10.0 ** rng.uniform(3.0, 5.5, n))
    bad[_multiply_spots(rng, factor, 60, (1.5, 6.0), (0.02, 0.35))] |= CLUSTER
    edge = np.ones((full_size, full_size), bool)
    edge[border : full_size - border, border : full_size - border] = False
    factor[edge] = 0.0
    bad[edge] |= REFERENCE
    window = np.s_[corner : corner + size, corner : corner + size]
    pixels = pixel_range(corner, size)
    grain, leak = _pixel_normals(seed, array_name, full_size, corner, size)
    response = smooth_response(seed, array_name, full_size, pixels, pixels).astype(np.float32) * (
        1.0 + np.float32(GRAIN_SIGMA) * grain
    )
    # In double precision: of single numbers NumPy's exponential depends on the processor.
    dark = (DARK_MEDIAN * np.exp(DARK_SIGMA * leak.astype(float))).astype(np.float32)
    return Pattern(response * factor[window], dark * heat[window], bad[window].copy()), bad


def _pixel_normals(
    seed: int, array_name: str, full_size: int, corner: int, size: int
) -> tuple[Image, Image]:
    """Unit normals for the response and the dark current of each pixel of a window."""
    blocks = [
        generator(seed, "array", array_name, "rows", block).standard_normal(
            (2, ROW_BLOCK, full_size), dtype=np.float32
        )
        for block in range(corner // ROW_BLOCK, (corner + size - 1) // ROW_BLOCK + 1)
    ]
    first = corner % ROW_BLOCK
    rows = np.concatenate(blocks, axis=1)[:, first : first + size, corner : corner + size]
    return rows[0], rows[1]


def _multiply_spots(
    rng: np.random.Generator,
    image: Image,
    count: int,
    radii: tuple[float, float],
    factors: tuple[float, float],
) -> npt.NDArray[np.bool_]:
    """Multiply round spots of `image` in place, and return where they are.

    radii: least and largest, pixels. factors: least and largest.
    """
    ny, nx = image.shape
    spots = np.zeros(image.shape, bool)
    for _ in range(count):
        x, y = rng.uniform(0, nx), rng.uniform(0, ny)
        radius, factor = rng.uniform(*radii), rng.uniform(*factors)
        box = np.s_[
            max(0, int(y - radius)) : min(ny, int(y + radius) + 2),
            max(0, int(x - radius)) : min(nx, int(x + radius) + 2),
        ]
        yy, xx = np.mgrid[box]
        inside = (xx - x) ** 2 + (yy - y) ** 2 <= radius * radius
        image[box][inside] *= factor
        spots[box] |= inside
    return spots


def _multiply_pixels(
    rng: np.random.Generator,
    image: Image,
    bad: BadBits,
    bit: int,
    fraction: float,
    factors: Callable[[int], Array],
) -> None:
    """Multiply a random `fraction` of the pixels by factors(n), and mark them as bad, in place.

    A few of them (UNLISTED_FRACTION) are unknown to the bad-pixel mask.
    """
    n = rng.poisson(fraction * image.size)
    chosen = rng.integers(0, image.size, n)
    image.reshape(-1)[chosen] *= factors(n).astype(np.float32)
    unlisted = rng.uniform(size=n) < UNLISTED_FRACTION
    bad.reshape(-1)[chosen] |= np.where(unlisted, bit | UNLISTED, bit).astype(np.uint8)


# Cosmic rays ------------------------------------------------------------------------------------


def cosmic_rays(rng: np.random.Generator, shape: tuple[int, int], expected: float) -> Hits:
    """Draw Poisson(`expected`) tracks of charge on an array of `shape` (ny, nx).

    Position, direction, length and charge are random.
    """
    ny, nx = shape
    points: list[Array] = []
    for _ in range(int(rng.poisson(expected))):
        x, y, angle = rng.uniform(0, nx), rng.uniform(0, ny), rng.uniform(0, 2 * np.pi)
        count = 1 + int(rng.exponential(TRACK_LENGTH) / TRACK_STEP)
        charge = TRACK_CHARGE * rng.lognormal(0.0, TRACK_CHARGE_SIGMA)
        charge *= max(1.0, count * TRACK_STEP)
        distance = TRACK_STEP * np.arange(count)
        scatter = rng.normal(0.0, CHARGE_DIFFUSION, (2, count))
        points.append(
            np.stack(
                [
                    x + distance * np.cos(angle) + scatter[0],
                    y + distance * np.sin(angle) + scatter[1],
                    np.full(count, charge / count),
                ]
            )
        )
    if not points:
        return Hits(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return _sum_by_pixel(np.concatenate(points, axis=1), ny, nx)


def _sum_by_pixel(points: Array, ny: int, nx: int) -> Hits:
    """Add up the charge of points (x, y, electrons) that fall on the same pixel."""
    x, y = np.floor(points[:2]).astype(int)
    inside = (x >= 0) & (x < nx) & (y >= 0) & (y < ny)
    pixels, number = np.unique(y[inside] * nx + x[inside], return_inverse=True)
    charge = np.bincount(number, points[2][inside], minlength=pixels.size)
    return Hits(pixels // nx, pixels % nx, charge.astype(np.float64))


# Readout ----------------------------------------------------------------------------------------


def full_well(readout: Readout) -> float:
    """True electrons per coadd at which a pixel saturates."""
    n = _plateau_electrons(readout)
    c0, c1, c2 = readout.linearity
    return n * (c0 + n * (c1 + n * c2))


def _plateau_electrons(readout: Readout) -> float:
    """Measured electrons per coadd that a saturated pixel reads."""
    return PLATEAU * readout.saturation * readout.gain


def read_out(
    rng: np.random.Generator, expected: Image, readout: Readout, hits: Hits | None = None
) -> Image:
    """Raw counts (ADU) of an array on which `expected` electrons per coadd fall, (ny, nx).

    Photon noise, cosmic rays (`hits`), non-linearity, saturation, read noise, gain; coadds are
    averaged.
    """
    electrons = rng.standard_normal(expected.shape, dtype=np.float32)
    _photon_noise(expected, electrons, readout.coadds)
    few = expected < POISSON_MAX / readout.coadds
    electrons[few] = rng.poisson(np.maximum(expected[few], 0.0) * readout.coadds) / readout.coadds
    if hits is not None:
        electrons[hits.y, hits.x] += (hits.electrons / readout.coadds).astype(np.float32)
    raw = rng.standard_normal(expected.shape, dtype=np.float32)
    _electrons_to_counts(
        electrons,
        raw,
        readout.gain,
        readout.read_noise / np.sqrt(readout.coadds),
        _plateau_electrons(readout),
        full_well(readout),
        *readout.linearity,
        readout.pedestal,
    )
    return raw


@njit(cache=True, nogil=True)
def _photon_noise(expected: Image, deviate: Image, coadds: int) -> None:
    """Turn the unit normals `deviate` into electrons per coadd, averaged over coadds, in place.

    Normal with the Poisson mean, variance and skewness (first Cornish-Fisher term).
    """
    for j in range(expected.shape[0]):
        for i in range(expected.shape[1]):
            mean = max(0.0, float(expected[j, i])) * coadds
            z = float(deviate[j, i])
            deviate[j, i] = (mean + np.sqrt(mean) * z + (z * z - 1.0) / 6.0) / coadds


@njit(cache=True, nogil=True)
def measured_electrons(true: float, c0: float, c1: float, c2: float) -> float:
    """The N for which c0 N + c1 N^2 + c2 N^3 = true: Newton's method from the linear answer."""
    n = true / c0
    for _ in range(8):
        step = (n * (c0 + n * (c1 + n * c2)) - true) / (c0 + n * (2.0 * c1 + n * 3.0 * c2))
        n -= step
        if abs(step) < 1e-4:
            break
    return n


@njit(cache=True, nogil=True)
def _electrons_to_counts(
    electrons: Image,
    deviate: Image,
    gain: float,
    noise: float,
    plateau: float,
    well: float,
    c0: float,
    c1: float,
    c2: float,
    pedestal: float,
) -> None:
    """Turn electrons per coadd into ADU, written into `deviate` (unit normals, the read noise).

    A pixel that fills (`well`) reads `plateau`; when it fills within the first group of reads, that
    group is subtracted too (Fowler sampling), and the core of a very bright star reads low.
    """
    for j in range(electrons.shape[0]):
        for i in range(electrons.shape[1]):
            e = float(electrons[j, i])
            if e >= well:
                n = plateau - min(max(e * pedestal - PEDESTAL_FREE * well, 0.0), plateau)
            else:
                n = measured_electrons(e, c0, c1, c2)
            deviate[j, i] = (n + noise * deviate[j, i]) / gain
