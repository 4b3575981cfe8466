"""An infrared array: its fixed pattern, and how it turns expected electrons into raw counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from gdask.simulate.noise import generator
from gdask.types import Image

Array = npt.NDArray[np.float64]

#: Bits of the truth's bad-pixel maps.
DEAD, HOT, CLUSTER, REFERENCE, UNLISTED = 1, 2, 4, 8, 16

POISSON_BELOW = 25.0  # electrons: exact Poisson numbers below, a skewed normal above
PLATEAU = 1.006  # a saturated pixel reads this much above the nominal saturation level
PEDESTAL_FREE = (
    0.5  # of the well: what may arrive within the first group of reads before it eats the signal
)


class Pattern(NamedTuple):
    """Fixed pattern of a window of an array: response to a photon, dark current (e-/s), bits of what is bad."""

    response: Image
    dark: Image
    bad: npt.NDArray[np.uint8]


class Readout(NamedTuple):
    """One array as it is read: gain e-/ADU, read noise e-, saturation ADU, linearity, reads and coadds.

    linearity: true = c0 N + c1 N^2 + c2 N^3 with N the measured electrons per coadd. pedestal: length of the first
    group of non-destructive reads over the exposure time.
    """

    gain: float
    read_noise: float
    saturation: float
    linearity: tuple[float, float, float]
    coadds: int
    pedestal: float


ROWS = 64  # rows that share a generator, so that a window costs its own rows only


def smooth_response(seed: int, array: str, full: int, rows: Array, columns: Array) -> Array:
    """What varies slowly in the response of a `full` x `full` array, about 1, at 0-based rows and columns.

    Waves of a few per cent, and a step for each readout channel (strips of 64 columns).
    """
    rng = generator(seed, "array", array, "smooth")
    phases, sizes = rng.uniform(0.0, 2 * np.pi, (2, 4)), rng.normal(0.0, 0.03, (4, 4))
    channels = 1.0 + 0.004 * rng.standard_normal(-(-full // 64))
    down, across = (
        np.cos(np.pi * np.arange(4)[:, None] * at / full + phase[:, None])
        for at, phase in zip((rows, columns), phases)
    )
    total = np.ones((np.size(rows), np.size(columns)))
    for i in range(4):
        total += down[i][:, None] * sum(
            sizes[i, j] / (i + j) * across[j] for j in range(4) if i + j
        )
    return total * channels[np.asarray(columns, int) // 64]


def fixed_pattern(
    seed: int, array: str, full: int, border: int, corner: int, size: int
) -> tuple[Pattern, npt.NDArray[np.uint8]]:
    """Pattern of the square window of `size` at (corner, corner), and the bad pixels of the whole `full` array.

    The outer `border` pixels see no light. The same seed gives the same array whatever the window.
    """
    rng = generator(seed, "array", array, "faults")
    factor, heat = np.ones((full, full), np.float32), np.ones((full, full), np.float32)
    bad = np.zeros((full, full), np.uint8)
    _spots(rng, factor, 14, (4.0, 14.0), (0.86, 0.97))
    _sprinkle(rng, factor, bad, DEAD, 5e-4, lambda n: rng.uniform(0.0, 0.25, n))
    _sprinkle(rng, heat, bad, HOT, 1.5e-3, lambda n: 10.0 ** rng.uniform(3.0, 5.5, n))
    bad[_spots(rng, factor, 60, (1.5, 6.0), (0.02, 0.35))] |= CLUSTER
    edge = np.ones((full, full), bool)
    edge[border : full - border, border : full - border] = False
    factor[edge] = 0.0
    bad[edge] |= REFERENCE
    cut = np.s_[corner : corner + size, corner : corner + size]
    at = np.arange(corner, corner + size)
    grain, leak = _grain(seed, array, full, corner, size)
    response = smooth_response(seed, array, full, at, at).astype(np.float32) * (
        1.0 + np.float32(0.015) * grain
    )
    dark = np.float32(0.009) * np.exp(np.float32(0.3) * leak)
    return Pattern(response * factor[cut], dark * heat[cut], bad[cut].copy()), bad


def _grain(seed: int, array: str, full: int, corner: int, size: int) -> tuple[Image, Image]:
    """Unit normals for the response and the dark current of each pixel of a window."""
    blocks = [
        generator(seed, "array", array, "rows", block).standard_normal(
            (2, ROWS, full), dtype=np.float32
        )
        for block in range(corner // ROWS, (corner + size - 1) // ROWS + 1)
    ]
    first = corner % ROWS
    rows = np.concatenate(blocks, axis=1)[:, first : first + size, corner : corner + size]
    return rows[0], rows[1]


def _spots(
    rng: np.random.Generator,
    image: Image,
    count: int,
    radius: tuple[float, float],
    depth: tuple[float, float],
) -> npt.NDArray[np.bool_]:
    """Multiply round spots of `image` by a factor drawn from `depth`; where they are."""
    ny, nx = image.shape
    where = np.zeros(image.shape, bool)
    for _ in range(count):
        x, y, r, factor = (
            rng.uniform(0, nx),
            rng.uniform(0, ny),
            rng.uniform(*radius),
            rng.uniform(*depth),
        )
        box = np.s_[
            max(0, int(y - r)) : min(ny, int(y + r) + 2),
            max(0, int(x - r)) : min(nx, int(x + r) + 2),
        ]
        yy, xx = np.mgrid[box]
        inside = (xx - x) ** 2 + (yy - y) ** 2 <= r * r
        image[box][inside] *= factor
        where[box] |= inside
    return where


def _sprinkle(
    rng: np.random.Generator,
    image: Image,
    bad: npt.NDArray[np.uint8],
    bit: int,
    fraction: float,
    factor: Callable[[int], Array],
) -> None:
    """Multiply single pixels by factor(n) and mark them; one in fifty is unknown to the bad-pixel mask."""
    n = rng.poisson(fraction * image.size)
    where = rng.integers(0, image.size, n)
    image.reshape(-1)[where] *= factor(n).astype(np.float32)
    marks = np.where(rng.uniform(size=n) < 0.02, bit | UNLISTED, bit).astype(np.uint8)
    bad.reshape(-1)[where] |= marks


@njit(cache=True, nogil=True)
def _scatter(expected: Image, deviate: Image, coadds: int) -> None:
    """Photon noise, in place of the unit normal `deviate`: electrons per coadd, averaged over the coadds.

    Normal with the Poisson mean, variance and skewness (first Cornish-Fisher term).
    """
    for j in range(expected.shape[0]):
        for i in range(expected.shape[1]):
            mean = max(0.0, float(expected[j, i])) * coadds
            z = float(deviate[j, i])
            deviate[j, i] = (mean + np.sqrt(mean) * z + (z * z - 1.0) / 6.0) / coadds


@njit(cache=True, nogil=True)
def measured(true: float, c0: float, c1: float, c2: float) -> float:
    """The N for which c0 N + c1 N^2 + c2 N^3 = true: Newton's method from the linear answer."""
    n = true / c0
    for _ in range(8):
        step = (n * (c0 + n * (c1 + n * c2)) - true) / (c0 + n * (2.0 * c1 + n * 3.0 * c2))
        n -= step
        if abs(step) < 1e-4:
            break
    return n


@njit(cache=True, nogil=True)
def _read(
    electrons: Image,
    deviate: Image,
    gain: float,
    noise: float,
    full: float,
    full_true: float,
    c0: float,
    c1: float,
    c2: float,
    pedestal: float,
) -> None:
    """Electrons per coadd to ADU, into `deviate` (unit normals, for the read noise).

    A pixel that fills reads `full`; when it fills within the first group of reads, that group is subtracted too
    (Fowler sampling), and the core of a very bright star reads low.
    """
    for j in range(electrons.shape[0]):
        for i in range(electrons.shape[1]):
            e = float(electrons[j, i])
            if e >= full_true:
                n = full - min(max(e * pedestal - PEDESTAL_FREE * full_true, 0.0), full)
            else:
                n = measured(e, c0, c1, c2)
            deviate[j, i] = (n + noise * deviate[j, i]) / gain


def well(readout: Readout) -> float:
    """True electrons per coadd at which a pixel saturates (no longer fills)."""
    n = PLATEAU * readout.saturation * readout.gain
    c0, c1, c2 = readout.linearity
    return n * (c0 + n * (c1 + n * c2))


def read_out(
    rng: np.random.Generator,
    expected: Image,
    readout: Readout,
    hits: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Array] | None = None,
) -> Image:
    """Raw counts (ADU) of an array on which `expected` electrons per coadd fall.

    Photon noise, cosmic rays (`hits`: y, x, electrons), non-linearity, saturation, read noise, gain; coadds averaged.
    """
    electrons = rng.standard_normal(expected.shape, dtype=np.float32)
    _scatter(expected, electrons, readout.coadds)
    few = expected < POISSON_BELOW / readout.coadds
    electrons[few] = rng.poisson(np.maximum(expected[few], 0.0) * readout.coadds) / readout.coadds
    if hits is not None:
        electrons[hits[0], hits[1]] += (hits[2] / readout.coadds).astype(np.float32)
    raw = rng.standard_normal(expected.shape, dtype=np.float32)
    noise = readout.read_noise / np.sqrt(readout.coadds)
    full = PLATEAU * readout.saturation * readout.gain
    _read(
        electrons,
        raw,
        readout.gain,
        noise,
        full,
        well(readout),
        *readout.linearity,
        readout.pedestal,
    )
    return raw
