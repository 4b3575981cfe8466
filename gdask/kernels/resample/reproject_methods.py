"""The methods of reproject: their weights, the input that they need, the noise that they leave."""

from __future__ import annotations

import math

import numpy as np

from gdask.kernels.geometry.projection import Floats
from gdask.kernels.resample.interpolation import MEND_MARGIN, PHASES, kernel_weights
from gdask.model import GdaskError
from gdask.types import Image

#: Methods by their names in reproject: three orders of `reproject_interp`, `reproject_adaptive`,
#: `reproject_exact`.
REPROJECT_METHODS = ("nearest-neighbor", "bilinear", "bicubic", "adaptive", "exact")
#: Methods whose output pixels depend on a few input pixels only: the same bits from any window with
#: its margin. The others ("bicubic": the prefilter of the spline passes over all pixels) need whole
#: arrays.
LOCAL_METHODS = ("nearest-neighbor", "bilinear", "adaptive", "exact")
#: Width of the Gaussian of "adaptive" and half the side of the square that it is cut to, in pixels
#: of the coarser of the two images; the weight is exp(-2 (distance / width)^2) (DeForest 2004). The
#: width is reproject's default. Its default for the square (half of sample_region_width = 4) leaves
#: errors of 0.5 % in the flux of single stars.
ADAPTIVE_WIDTH, ADAPTIVE_HALF_SIDE = 1.3, 2.5
#: Taps of the spline's weights: 6 hold all that exceed 2 %; 24 are exact to 1e-6 (they fall by 2 -
#: sqrt(3) a pixel).
SPLINE_TAPS, ALL_SPLINE_TAPS = 6, 24


def margin_of(method: str, area_ratio: float = 1.0) -> int | None:
    """Return the input pixels that a window needs around those shown, None for all pixels.

    method: one of REPROJECT_METHODS. area_ratio: area of an output pixel over that of an input
    pixel. Raises GdaskError for an unknown method.

    The influence of a pixel on a spline falls by 2 + sqrt(3) a pixel and is nowhere zero. Of
    160,000 pixels among stars of up to 3e6 electrons, a margin of 12 pixels changed the last bits
    of 15, of 16 pixels those of 1, of 20 pixels none. A window of 430 x 430 pixels takes 0.16 s, an
    array of 2048 x 2048 pixels 3 s, nearly all for the prefilter.
    """
    if method not in LOCAL_METHODS:
        method_weights(method, area_ratio)  # raises for an unknown method
        return None
    turned = 1 if map_margin_of(method) else 0  # corners of turned pixels, and local scale
    return method_weights(method, area_ratio).shape[1] // 2 + turned + MEND_MARGIN


def map_margin_of(method: str) -> int:
    """Return how many output pixels a pixel map needs around the wanted window.

    "adaptive" takes the map's derivative from neighbours, "exact" the corners of pixels.
    """
    return 1 if method in ("adaptive", "exact") else 0


def method_weights(method: str, area_ratio: float = 1.0, spline_taps: int = SPLINE_TAPS) -> Image:
    """Return the weights (PHASES + 1, taps), float32, of a method along one axis.

    They are what `interpolation.kernel_weights` gives for gdask's own kernels. spline_taps: for
    "bicubic". Rows are phases 0..1 past the left one of the middle two pixels, and sum to 1.
    "nearest-neighbor" has those of "bilinear", meant for places that are rounded to whole pixels.
    "exact" is that of pixels with parallel edges. Raises GdaskError for an unknown method.
    """
    if method not in REPROJECT_METHODS:
        raise GdaskError(
            f"method came as {method!r}; expected one of {', '.join(REPROJECT_METHODS)}"
        )
    if method in ("nearest-neighbor", "bilinear"):
        return kernel_weights("bilinear")
    size = math.sqrt(area_ratio)
    if method == "bicubic":
        half = spline_taps // 2
    elif method == "adaptive":
        half = math.ceil(ADAPTIVE_HALF_SIDE * max(size, 1.0))
    else:
        half = math.ceil((size + 1) / 2)
    taps = np.arange(1.0 - half, 1 + half)
    distance = np.abs(np.linspace(0, 1, PHASES + 1)[:, None] - taps)
    if method == "bicubic":
        table = _cardinal_spline(distance)
    elif method == "adaptive":
        table = _adaptive_gaussian(distance, max(size, 1.0))
    else:
        table = np.clip((size + 1) / 2 - distance, 0, min(size, 1.0))
    table = (table / table.sum(axis=1, keepdims=True)).astype(np.float32)
    table.setflags(write=False)
    return table


def method_noise_correlation(method: str, area_ratio: float = 1.0) -> float:
    """Return the scatter of a resampled pixel of white noise over that of an input pixel.

    It is the rms over all sub-pixel phases. It is what `interpolation.noise_correlation` is for own
    kernels: with area_ratio = area of an output pixel over that of an input pixel, the header's
    CORRPIX is this times sqrt(area_ratio). At a ratio of 1: nearest-neighbor 1, bilinear 0.667,
    bicubic 0.874, adaptive 0.434, exact 0.667.

    Measured on white noise, pixels scatter so to 1.1 % (turns of 0.9 to 37 degrees, output pixels
    with sides of 0.8 to 1.3 input pixels). The rms of a sum over many pixels is sqrt(sum VAR)
    (CORRFAC is 1) to 0.5 %, to 2.5 % for sides of 1.3. Not so for "nearest-neighbor", which takes
    some pixels twice and others not at all: there it is 1.015 sqrt(sum VAR) for a side of 1.015 and
    a turn of up to 5 degrees, 1.16 at 37 degrees, 1.3 for a side of 1.3. These are
    sqrt(area_ratio * sum over output pixels of the autocorrelation of the weights).
    """
    if method == "nearest-neighbor":
        return 1.0
    table = method_weights(method, area_ratio, ALL_SPLINE_TAPS)[:-1].astype(float)
    return float(np.mean(np.sum(table**2, axis=1)))


def _cardinal_spline(distance: Floats) -> Floats:
    """Return the weights of cubic-spline interpolation at distances (pixels) from a point.

    Unser 1999 (IEEE Signal Processing Magazine 16, 22): the B-spline after its prefilter, whose
    response falls by its pole.
    """
    pole = math.sqrt(3) - 2
    total = np.zeros_like(distance)
    for k in range(-ALL_SPLINE_TAPS, ALL_SPLINE_TAPS + 1):
        t = np.abs(distance - k)
        inner = 2 / 3 - t * t + t**3 / 2
        outer = np.clip(2 - t, 0, None) ** 3 / 6
        total += -6 * pole / (1 - pole**2) * pole ** abs(k) * np.where(t < 1, inner, outer)
    return total


def _adaptive_gaussian(distance: Floats, size: float) -> Floats:
    """Return the Gaussian of "adaptive" at distances (pixels) from a point.

    size: side (input pixels) of an output pixel, at least 1.
    """
    inside = distance <= ADAPTIVE_HALF_SIDE * size
    return np.where(inside, np.exp(-2 * (distance / (ADAPTIVE_WIDTH * size)) ** 2), 0.0)
