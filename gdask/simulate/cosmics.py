"""Cosmic rays: tracks of charge across an infrared array."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Hits(NamedTuple):
    """Pixels that cosmic rays hit, 0-based, each pixel once, with the electrons left there."""

    y: npt.NDArray[np.int64]
    x: npt.NDArray[np.int64]
    electrons: npt.NDArray[np.float64]


STEP = 0.2  # pixels between points of a track
DIFFUSION = 0.35  # pixels, rms sideways spread of the charge
CHARGE = (
    900.0  # electrons per pixel of path, median (minimum-ionising particle in 5 micron of HgCdTe)
)
LENGTH = 2.5  # pixels, mean projected length of a track


def cosmic_rays(rng: np.random.Generator, shape: tuple[int, int], expected: float) -> Hits:
    """Poisson(`expected`) tracks on an array of `shape` (ny, nx): position, direction, length and charge are random."""
    ny, nx = shape
    points: list[npt.NDArray[np.float64]] = []
    for _ in range(int(rng.poisson(expected))):
        x, y, angle = rng.uniform(0, nx), rng.uniform(0, ny), rng.uniform(0, 2 * np.pi)
        count = 1 + int(rng.exponential(LENGTH) / STEP)
        charge = CHARGE * rng.lognormal(0.0, 0.8) * max(1.0, count * STEP) / count
        along = STEP * np.arange(count)
        scatter = rng.normal(0.0, DIFFUSION, (2, count))
        points.append(
            np.stack(
                [
                    x + along * np.cos(angle) + scatter[0],
                    y + along * np.sin(angle) + scatter[1],
                    np.full(count, charge),
                ]
            )
        )
    if not points:
        return Hits(np.zeros(0, int), np.zeros(0, int), np.zeros(0))
    return _binned(np.concatenate(points, axis=1), ny, nx)


def _binned(points: npt.NDArray[np.float64], ny: int, nx: int) -> Hits:
    x, y = np.floor(points[:2]).astype(int)
    inside = (x >= 0) & (x < nx) & (y >= 0) & (y < ny)
    flat, where = np.unique(y[inside] * nx + x[inside], return_inverse=True)
    return Hits(flat // nx, flat % nx, np.bincount(where, points[2][inside], minlength=flat.size))
