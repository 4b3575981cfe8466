"""Noise as it is: sums of apertures that lie on empty sky, at places that are fixed beforehand.

The noise of a pixel does not tell that of a source where pixels are correlated or the sky is
uneven. Sums of the same aperture on many empty places do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from gdask.model import UNUSABLE
from gdask.types import Flags, Image, Mask, Pixels, Window

#: One aperture: its middle (0-based), the sum of its pixels above the level of their square, the
#: noise that VAR gives it, both weighted by the share of each pixel inside; its radius, and the sum
#: of the squares of these weights (pixels); that level and its error; the number of its square.
APERTURE = np.dtype(
    [("x", "f4"), ("y", "f4"), ("sum", "f4"), ("noise", "f4"), ("radius", "f4"), ("pixels", "f4")]
    + [("level", "f4"), ("level_error", "f4"), ("square", "i4")]
)
#: Side (pixels) of the squares in which apertures lie, and the most squares of an image: 10^6
#: pixels, which tell the noise of apertures to 1 %.
SQUARE, MOST_SQUARES = 64, 256
#: Share of a square's pixels that must be free for its level to be known.
MIN_FREE_SHARE = 0.3
#: Points along each axis of a pixel that tell its share inside an aperture.
_POINTS = 8
_SIGMA_PER_MAD = 1.4826


def squares(shape: tuple[int, int], most: int = MOST_SQUARES) -> list[Window]:
    """Give windows (y1, y2, x1, x2) of an image, spread evenly: the same for the same shape."""
    counts = [max(size // SQUARE, 1) for size in shape]
    share = min((most / (counts[0] * counts[1])) ** 0.5, 1.0)
    counts = [max(int(count * share), 1) for count in counts]
    starts = [
        np.linspace(0, max(size - SQUARE, 0), count).astype(int).tolist()
        for size, count in zip(shape, counts, strict=True)
    ]
    return [
        (y, min(y + SQUARE, shape[0]), x, min(x + SQUARE, shape[1]))
        for y in starts[0]
        for x in starts[1]
    ]


def aperture_weights(radius: Pixels) -> npt.NDArray[np.float64]:
    """Give the share of each pixel that lies within `radius` of the middle one: (n, n), n odd."""
    half = int(np.ceil(radius - 0.5))
    points = (np.arange((2 * half + 1) * _POINTS) + 0.5) / _POINTS - half - 0.5
    inside = (points[:, None] ** 2 + points**2 <= radius**2).astype(float)
    return inside.reshape(2 * half + 1, _POINTS, 2 * half + 1, _POINTS).mean(axis=(1, 3))


def measure_square(
    data: Image,
    variance: Image,
    dq: Flags,
    objects: Mask | None,
    weights: npt.NDArray[np.float64],
) -> np.ndarray:
    """Measure the apertures of a square that hold neither bad pixels nor objects: APERTURE.

    They touch one another and do not overlap. x and y count from the square's first pixel.
    """
    free = (dq & np.uint16(UNUSABLE)) == 0
    if objects is not None:
        free &= ~objects.astype(bool)
    free &= np.isfinite(data) & (variance > 0)
    size = len(weights)
    if free.sum() < MIN_FREE_SHARE * free.size or min(data.shape) < size:
        return np.zeros(0, APERTURE)
    values = data[free].astype(np.float64)
    level = np.median(values)
    sigma = _SIGMA_PER_MAD * np.median(np.abs(values - level))
    inside = weights > 0
    every = slice(None, None, size)
    whole, sums, noises = (
        sliding_window_view(plane, (size, size))[every, every]
        for plane in (free, np.where(free, data - level, 0), np.where(free, variance, 0))
    )
    empty = (whole | ~inside).all(axis=(2, 3))
    rows, columns = np.nonzero(empty)
    found = np.zeros(len(rows), APERTURE)
    found["y"], found["x"] = rows * size + size // 2, columns * size + size // 2
    found["sum"] = (sums[empty].astype(np.float64) * weights).sum(axis=(1, 2))
    found["noise"] = np.sqrt((noises[empty].astype(np.float64) * weights**2).sum(axis=(1, 2)))
    found["level"], found["level_error"] = level, sigma * np.sqrt(np.pi / 2 / len(values))
    return found


def measure_squares(
    planes: Iterable[tuple[np.ndarray, ...]], windows: Sequence[Window], radii: Sequence[Pixels]
) -> np.ndarray:
    """Measure the apertures of several squares: APERTURE, x and y in pixels of the image.

    planes: data, variance, DQ, and objects where there are any, of each square, read one after
    another. radii: of the apertures (pixels); those of each lie apart, not from the others.
    """
    kinds = [(radius, aperture_weights(radius)) for radius in radii]
    parts = []
    for number, (found, window) in enumerate(zip(planes, windows, strict=True)):
        data, variance, dq, *objects = found
        for radius, weights in kinds:
            part = measure_square(data, variance, dq, objects[0] if objects else None, weights)
            part["x"] += window[2]
            part["y"] += window[0]
            part["square"], part["radius"], part["pixels"] = number, radius, np.sum(weights**2)
            parts.append(part)
    return np.concatenate(parts)


def pulls(places: np.ndarray, correlation: float) -> npt.NDArray[np.float64]:
    """Give sums of apertures over their noise, that of the level of their square in it.

    places: APERTURE; correlation: rms of sums of independent apertures over sqrt(sum of VAR).
    """
    by_level = np.pi * places["radius"].astype(float) ** 2 * places["level_error"]
    return places["sum"] / np.hypot(correlation * places["noise"].astype(float), by_level)
