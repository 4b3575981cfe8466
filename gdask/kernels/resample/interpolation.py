"""Interpolation kernels as tables of weights: separable, 2, 4 or 6 taps, no prefilter."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from gdask.kernels.geometry.projection import Floats
from gdask.model import GdaskError
from gdask.types import Image

#: Taps by kernel. "cubic": cubic convolution with a = -1/2 (Keys 1981), exact for parabolas. "lanczos3": sinc windowed
#: by sinc, scaled to sum 1. "quintic": the fifth-order polynomial through six pixels (Lagrange), exact to that order,
#: which is why it moves no centroid: a slowly varying sub-pixel phase makes the others' small shifts a flux error too.
TAPS = {"bilinear": 2, "cubic": 4, "lanczos3": 6, "quintic": 6}
#: Sub-pixel phases at which kernels are tabulated; linear interpolation between them is good to 1e-6.
PHASES = 1024


@lru_cache
def weights(interpolation: str) -> Image:
    """Weights (PHASES + 1, taps), float32, of the pixels around a point.

    Rows are its phase, 0..1, past the left one of the middle two pixels; each sums to 1.
    Raises GdaskError for an unknown name.
    """
    if interpolation not in TAPS:
        raise GdaskError(
            f"interpolation came as {interpolation!r}; expected one of {', '.join(TAPS)}"
        )
    taps = np.arange(1.0 - TAPS[interpolation] // 2, 1 + TAPS[interpolation] // 2)
    phase = np.linspace(0, 1, PHASES + 1)
    table = (
        _lagrange(phase, taps)
        if interpolation == "quintic"
        else _kernel(interpolation, phase, taps)
    )
    table = (table / table.sum(axis=1, keepdims=True)).astype(np.float32)
    table.setflags(write=False)
    return table


def reach(interpolation: str) -> int:
    """Pixels on each side that an output pixel can depend on: kernel, and two for mending. An input window's margin."""
    return weights(interpolation).shape[1] // 2 + 2


def noise_correlation(interpolation: str) -> float:
    """Scatter of a resampled pixel of white noise over the input's, rms over all sub-pixel phases in x and y."""
    return float(np.mean(np.sum(weights(interpolation)[:-1].astype(float) ** 2, axis=1)))


def lag_correlation(interpolation: str) -> Floats:
    """Covariance of resampled white noise at lags of 0, 1, 2 ... output pixels along an axis, input pixels of the same
    size, mean over all sub-pixel phases. With all lags of both signs it sums to 1; two axes multiply."""
    table = weights(interpolation)[:-1].astype(float)
    taps = table.shape[1]
    return np.array(
        [np.mean(np.sum(table[:, lag:] * table[:, : taps - lag], axis=1)) for lag in range(taps)]
    )


def aperture_noise(interpolation: str, radius: float) -> float:
    """rms of the sum in a round aperture of `radius` output pixels over sqrt(sum of VAR): 1 for a large one.

    Half a pixel's radius is a single pixel (`noise_correlation`). Output and input pixels are taken as equally large.
    """
    half = int(radius) + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    disk = np.clip(radius + 0.5 - np.hypot(y, x), 0, 1)
    lags = lag_correlation(interpolation)
    kernel = np.concatenate([lags[:0:-1], lags])
    smooth = np.apply_along_axis(
        np.convolve, 0, np.apply_along_axis(np.convolve, 1, disk, kernel), kernel
    )
    reached = lags.size - 1
    inside = smooth[reached : reached + disk.shape[0], reached : reached + disk.shape[1]]
    return float(np.sqrt(np.sum(disk * inside) / np.sum(disk * disk)))


def _kernel(interpolation: str, phase: Floats, taps: Floats) -> Floats:
    """Weights as a function of the distance from the point."""
    t = np.abs(phase[:, None] - taps)
    if interpolation == "bilinear":
        return np.maximum(1 - t, 0)
    if interpolation == "cubic":
        return np.where(
            t < 1,
            (1.5 * t - 2.5) * t * t + 1,
            np.where(t < 2, ((-0.5 * t + 2.5) * t - 4) * t + 2, 0),
        )
    return np.where(t < 3, np.sinc(t) * np.sinc(t / 3), 0)


def _lagrange(phase: Floats, taps: Floats) -> Floats:
    """Weights of the polynomial through all taps."""
    table = np.ones((phase.size, taps.size))
    for n, here in enumerate(taps):
        for other in np.delete(taps, n):
            table[:, n] *= (phase - other) / (here - other)
    return table
