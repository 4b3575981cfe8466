"""Dividing by a flat, and what a flat or a dark says about bad pixels."""

from __future__ import annotations

import numpy as np
from numba import njit

from gdask.kernels.arrays import rows
from gdask.model import DQ
from gdask.types import Flags, Image, Mask

_BAD, _NO_DATA, _UNILLUMINATED = (
    np.uint16(bit) for bit in (DQ.BAD_PIXEL, DQ.NO_DATA, DQ.UNILLUMINATED)
)


@njit(cache=True, nogil=True)
def _quotient(data: Image, flat: Image) -> Image:
    out = np.empty(data.size, dtype=np.float32)
    for i in range(data.size):
        out[i] = data[i] / flat[i] if 0 < flat[i] < np.inf else data[i]
    return out


@njit(cache=True, nogil=True)
def _quotient_variance(
    data: Image, variance: Image, flat: Image, flat_variance: Image, level: float
) -> Image:
    out = np.empty(data.size, dtype=np.float32)
    for i in range(data.size):
        inverse = 1.0 / flat[i] if 0 < flat[i] < np.inf else 0.0
        corrected = data[i] * inverse - level
        quotient = (variance[i] + corrected * corrected * flat_variance[i]) * inverse * inverse
        out[i] = quotient if inverse > 0 else variance[i]
    return out


def flat_data(data: Image, flat: Image) -> Image:
    """data / flat; unchanged where the flat is not a positive number (`flat_flags` says so in the DQ)."""
    return _quotient(*rows(data, flat)).reshape(np.shape(data))


def flat_variance(
    data: Image, variance: Image, flat: Image, flat_variance: Image, level: float = 0.0
) -> Image:
    """Variance of data / flat, (var + (data/flat - level)^2 var_flat) / flat^2, for `data` and `variance` *before* division.

    level: light, in units of data / flat, whose flat-field error does not stay: that of the sky (`sky_level`), which is
    subtracted by frames that went through the same flat, pixel by pixel.
    """
    raw, noise, by, by_noise = rows(data, variance, flat, flat_variance)
    return _quotient_variance(raw, noise, by, by_noise, float(level)).reshape(np.shape(data))


def sky_level(data: Image, dq: Flags, flat: Image, flat_dq: Flags) -> float:
    """Median of data / flat over every fourth usable pixel along each axis; 0 where none is usable."""
    cut = np.s_[::4, ::4]
    good = (dq[cut] == 0) & (flat_dq[cut] == 0) & (flat[cut] > 0) & np.isfinite(data[cut])
    return float(np.median(data[cut][good] / flat[cut][good])) if good.any() else 0.0


def flat_flags(dq: Flags, flat: Image, flat_dq: Flags) -> Flags:
    """DQ of data / flat: the bits of both, and no-data where the flat is not a positive number."""
    useless = ~((flat > 0) & (flat < np.inf))
    return (
        np.asarray(dq, dtype=np.uint16) | np.asarray(flat_dq, dtype=np.uint16) | useless * _NO_DATA
    )


def divide(
    data: Image,
    variance: Image,
    dq: Flags,
    flat: Image,
    flat_variance_: Image,
    flat_dq: Flags,
    level: float = 0.0,
) -> tuple[Image, Image, Flags]:
    """Data, variance and DQ after division by the flat: `flat_data`, `flat_variance` and `flat_flags` together."""
    quotient_variance = flat_variance(data, variance, flat, flat_variance_, level)
    return flat_data(data, flat), quotient_variance, flat_flags(dq, flat, flat_dq)


def threshold(
    flat: Image, dq: Flags, lower: float = 0.01, upper: float = 10.0
) -> tuple[Image, Flags]:
    """A normalised flat that can be divided by, and its DQ.

    Pixels outside lower..upper (or NaN) that are not bad already become unilluminated (64). Those, and any pixel below
    `lower`, bad or not, get the value 1. The limits 0.01 and 10 are those of the field's standard reduction.
    """
    outside = ~((flat >= lower) & (flat <= upper))
    flags = dq | (outside & ((dq & _BAD) == 0)) * _UNILLUMINATED
    useless = ((flags & _UNILLUMINATED) != 0) | ~(flat >= lower)
    return np.where(useless, np.float32(1), flat).astype(np.float32), flags.astype(np.uint16)


def _outside(values: Image, lower: float | None, upper: float | None) -> Mask:
    low = -np.inf if lower is None else lower
    high = np.inf if upper is None else upper
    return ~((values >= low) & (values <= high))


def bpm_from_flat(flat: Image, dq: Flags | None, lower: float | None, upper: float | None) -> Flags:
    """Bad-pixel mask from a normalised flat: 1 outside lower..upper (None: no limit) or NaN, and where `dq` says bad.

    Unilluminated pixels (64 in `dq`) are kept as 64 alone: what the optics hide is not a defect of the detector.
    """
    bad = _outside(flat, lower, upper)
    if dq is None:
        return bad.astype(np.uint16)
    hidden = (dq & _UNILLUMINATED) != 0
    return np.where(hidden, _UNILLUMINATED, (bad | ((dq & _BAD) != 0)).astype(np.uint16))


def bpm_from_dark(dark: Image, dq: Flags | None, lower: float | None, upper: float | None) -> Flags:
    """Bad-pixel mask from a stacked short dark (electrons): 1 outside lower..upper or NaN, and where `dq` says bad."""
    bad = _outside(dark, lower, upper)
    return (bad if dq is None else bad | ((dq & _BAD) != 0)).astype(np.uint16)
