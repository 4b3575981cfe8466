"""Interpolation kernels as tables of weights.

Kernels are separable, with 2, 4 or 6 taps and without a prefilter.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from gdask.kernels.arithmetic import cosines, least_squares, sines
from gdask.kernels.arrays import as_kernel_input
from gdask.kernels.geometry.projection import Floats
from gdask.model import GdaskError
from gdask.types import Image

#: Taps (pixels along one axis) by kernel. "cubic": cubic convolution with a = -1/2 (Keys 1981),
#: exact for parabolas. "lanczos3": sinc windowed by sinc, scaled to sum 1. "quintic": the
#: fifth-order polynomial through six pixels (Lagrange), exact to that order, and therefore without
#: a shift of centroids. The small shifts of the other kernels are flux errors, too, where the
#: sub-pixel phase varies slowly.
TAPS = {"bilinear": 2, "cubic": 4, "lanczos3": 6, "quintic": 6}
#: Distance (pixels) up to which `layout.estimate` looks at the neighbours of a bad pixel.
MEND_MARGIN = 2
#: Terms (even and odd) of the series of each kernel: those of polynomials are exact, that of
#: "lanczos3" is good to 1e-7.
SERIES_TERMS = {"bilinear": 1, "cubic": 2, "lanczos3": 6, "quintic": 3}
#: Sub-pixel phases at which kernels are tabulated. Linear interpolation between them is good to
#: 1e-6.
PHASES = 1024


@lru_cache
def kernel_weights(interpolation: str) -> Image:
    """Return weights (PHASES + 1, taps), float32, of the pixels around a point along one axis.

    interpolation: a key of TAPS. Rows are phases 0..1: how far (pixels) the point is past the left
    one of the middle two pixels. Each row sums to 1. Raises GdaskError for an unknown name.
    """
    if interpolation not in TAPS:
        raise GdaskError(
            f"interpolation came as {interpolation!r}; expected one of {', '.join(TAPS)}"
        )
    table = _exact_weights(interpolation, np.linspace(0, 1, PHASES + 1)).astype(np.float32)
    table.setflags(write=False)
    return table


def _exact_weights(interpolation: str, phase: Floats) -> Floats:
    """Return the weights (phase.size, taps) of a kernel; each row sums to 1."""
    taps = np.arange(1.0 - TAPS[interpolation] // 2, 1 + TAPS[interpolation] // 2)
    if interpolation == "quintic":
        weights = _quintic_weights(phase, taps)
    else:
        weights = _weights_at_distance(interpolation, np.abs(phase[:, None] - taps))
    return weights / weights.sum(axis=1, keepdims=True)


@lru_cache
def kernel_series(interpolation: str) -> Image:
    """Return the weights as series of the phase u from the middle, -0.5 <= u < 0.5.

    The result is (taps / 2, 2, terms), float32, from the highest power on: tap n has the weight
    even(u^2) + u odd(u^2), its mirror image taps - 1 - n the weight even(u^2) - u odd(u^2). They
    differ from the table's by less than 1e-6, the error of its linear interpolation. Raises
    GdaskError for an unknown name.
    """
    taps, terms = kernel_weights(interpolation).shape[1], SERIES_TERMS[interpolation]
    u = cosines(180 * (np.arange(64) + 0.5) / 64) / 2
    exact = _exact_weights(interpolation, u + 0.5)
    powers = np.cumprod(np.stack([np.ones(64), *[u] * (2 * terms - 1)], axis=1), axis=1)
    found = least_squares(powers, exact[:, : taps // 2])
    series = np.stack([found[0::2], found[1::2]])[:, ::-1].transpose(2, 0, 1)
    return as_kernel_input(series, np.float32)


def kernel_margin(interpolation: str) -> int:
    """Return the input pixels that a window needs around those that the output shows.

    They are those of the kernel, and two for mending.
    """
    return kernel_weights(interpolation).shape[1] // 2 + MEND_MARGIN


def noise_correlation(interpolation: str) -> float:
    """Return the scatter of a resampled pixel of white noise over that of an input pixel.

    It is the rms over all sub-pixel phases in x and y.
    """
    return float(np.mean(np.sum(kernel_weights(interpolation)[:-1].astype(float) ** 2, axis=1)))


def lag_correlation(interpolation: str) -> Floats:
    """Return the covariance of resampled white noise at lags of 0, 1, 2 ... pixels.

    The lags are along one axis, and the input's variance is 1. It is the mean over all sub-pixel
    phases, for output pixels as large as input pixels. With all lags of both signs it sums to 1;
    the covariances along two axes multiply.
    """
    table = kernel_weights(interpolation)[:-1].astype(float)
    taps = table.shape[1]
    return np.array(
        [np.mean(np.sum(table[:, lag:] * table[:, : taps - lag], axis=1)) for lag in range(taps)]
    )


def aperture_noise(interpolation: str, radius: float) -> float:
    """Return the rms of the sum in a round aperture over sqrt(sum of VAR).

    It is 1 for a large aperture. radius: in output pixels; at half a pixel it is that of a single
    pixel (`noise_correlation`). Output and input pixels are taken as equally large.
    """
    half = int(radius) + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    disk = np.clip(radius + 0.5 - np.hypot(y, x), 0, 1)
    lags = lag_correlation(interpolation)
    kernel = np.concatenate([lags[:0:-1], lags])
    smooth = np.apply_along_axis(
        np.convolve, 0, np.apply_along_axis(np.convolve, 1, disk, kernel), kernel
    )
    border = lags.size - 1
    inside = smooth[border : border + disk.shape[0], border : border + disk.shape[1]]
    return float(np.sqrt(np.sum(disk * inside) / np.sum(disk * disk)))


def _weights_at_distance(interpolation: str, t: Floats) -> Floats:
    """Return the weights of pixels at distances `t` >= 0 (pixels) from the point.

    They are not yet scaled to sum 1.
    """
    if interpolation == "bilinear":
        return np.maximum(1 - t, 0)
    if interpolation == "cubic":
        inner = (1.5 * t - 2.5) * t * t + 1
        outer = ((-0.5 * t + 2.5) * t - 4) * t + 2
        return np.where(t < 1, inner, np.where(t < 2, outer, 0))
    return np.where(t < 3, _sinc(t) * _sinc(t / 3), 0)


def _sinc(t: Floats) -> Floats:
    """Return sin(pi t) / (pi t)."""
    return sines(180 * t) / np.where(t == 0, 1.0, np.pi * t) + (t == 0)


def _quintic_weights(phase: Floats, taps: Floats) -> Floats:
    """Return the weights (phase.size, taps.size) of the polynomial through all taps (Lagrange)."""
    table = np.ones((phase.size, taps.size))
    for n, tap in enumerate(taps):
        for zero in np.delete(taps, n):
            table[:, n] *= (phase - zero) / (tap - zero)
    return table
