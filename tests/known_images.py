"""Inputs with known answers for tests of geometry and resampling: arrays, maps, noise, stars."""

from __future__ import annotations

import math
import tomllib
from importlib.resources import files

import numpy as np
from scipy.special import erf

from gdask.kernels.geometry.projection import Geometry

Planes = tuple[np.ndarray, np.ndarray, np.ndarray]

#: Shape (ny, nx) of a GSAOI array.
FULL_ARRAY = (2048, 2048)
#: `turned_map`: output pixel over input pixel, angle (degrees), input (y, x) of the output pixel
#: (0, 0).
SCALE, TURN, SHIFT = 1.015, 0.9, (5.3, 22.7)
#: Half the side (pixels) of the box in which `star_image` puts a star.
STAR_BOX = 20
FWHM_PER_SIGMA = 2.3548


def gsaoi(
    pa: float = 37.0, dec: float = -43.1, corrected: bool = False, x0: int = 1, y0: int = 1
) -> tuple[Geometry, ...]:
    """The four arrays of GSAOI, with a fitted correction of about 20 mas if asked."""
    rng = np.random.default_rng(8)
    out = []
    for array in tomllib.loads((files("gdask.instruments") / "gsaoi.toml").read_text())["arrays"]:
        terms = [tuple(rng.normal(0, 0.02, 10)) if corrected else () for _ in range(2)]
        distortion = tuple(array["distortion_x"]), tuple(array["distortion_y"])
        out.append(Geometry(x0, y0, *distortion, 359.99, dec, pa, *terms))
    return tuple(out)


def noisy_planes(shape: tuple[int, int], seed: int = 1, bad: float = 0.0) -> Planes:
    """Data of 100 with noise of 5, variance of 20 to 30, and DQ bits in a share of the pixels.

    bad: that share.
    """
    rng = np.random.default_rng(seed)
    dq = np.where(rng.random(shape) < bad, rng.choice([1, 2, 4, 8, 9], shape), 0).astype("u2")
    return rng.normal(100, 5, shape).astype("f4"), rng.uniform(20, 30, shape).astype("f4"), dq


def turned_map(
    shape: tuple[int, int],
    scale: float = SCALE,
    turn: float = TURN,
    shift: tuple[float, float] = SHIFT,
    margin: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """A pixel map (ymap, xmap) with all sub-pixel phases.

    shape: of the output; `margin` pixels are added on each side.
    """
    y, x = np.mgrid[-margin : shape[0] + margin, -margin : shape[1] + margin].astype(float)
    c, s = scale * math.cos(math.radians(turn)), scale * math.sin(math.radians(turn))
    return c * y + s * x + shift[0], c * x - s * y + shift[1]


def turned_places(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Output (x, y) at which the default `turned_map` shows input (x, y)."""
    ymap, xmap = turned_map((2, 2))
    matrix = np.array([[m[0, 1] - m[0, 0], m[1, 0] - m[0, 0]] for m in (xmap, ymap)])
    return np.linalg.solve(matrix, np.array([x - SHIFT[1], y - SHIFT[0]]))


def star_image(
    shape: tuple[int, int], x: np.ndarray, y: np.ndarray, flux: np.ndarray, fwhm: float
) -> np.ndarray:
    """Gaussian stars integrated over pixels."""
    image = np.zeros(shape)
    edges = (np.arange(-STAR_BOX, STAR_BOX + 2) - 0.5) / (fwhm / FWHM_PER_SIGMA * math.sqrt(2))
    step = edges[1] - edges[0]
    for xs, ys, total in zip(x, y, flux, strict=True):
        i, j = round(xs), round(ys)
        row, column = (np.diff(erf(edges - step * offset)) / 2 for offset in (xs - i, ys - j))
        box = np.s_[j - STAR_BOX : j + STAR_BOX + 1, i - STAR_BOX : i + STAR_BOX + 1]
        image[box] += total * np.outer(column, row)
    return image


def lattice(shape: tuple[int, int], step: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Positions (x, y) on a lattice of `step` pixels, each with its own sub-pixel phase."""
    j, i = np.mgrid[step : shape[0] - step : step, step : shape[1] - step : step]
    phase = np.random.default_rng(seed).uniform(-0.5, 0.5, (2, j.size))
    return i.ravel() + phase[0], j.ravel() + phase[1]


def box_sums(image: np.ndarray, x: np.ndarray, y: np.ndarray, half: int = 15) -> np.ndarray:
    """Sums over boxes of 2 `half` + 1 pixels' side about the pixels nearest to (x, y)."""
    boxes = (
        np.s_[round(v) - half : round(v) + half + 1, round(u) - half : round(u) + half + 1]
        for u, v in zip(x, y, strict=True)
    )
    return np.array([image[box].sum(dtype=float) for box in boxes])


def centroid(image: np.ndarray, x: float, y: float, fwhm: float) -> tuple[float, float]:
    """Gaussian-windowed centroid, converged."""
    j, i = np.mgrid[round(y) - 12 : round(y) + 13, round(x) - 12 : round(x) + 13]
    box = image[j, i]
    for _ in range(40):
        w = box * np.exp(-4 * math.log(2) * ((i - x) ** 2 + (j - y) ** 2) / fwhm**2)
        x, y = x + 2 * ((w * i).sum() / w.sum() - x), y + 2 * ((w * j).sum() / w.sum() - y)
    return x, y
