"""Divide by a flat field, and find bad pixels on flats and darks."""

from __future__ import annotations

import numpy as np

from gdask.kernels.arrays import as_kernel_input, flatten_planes
from gdask.kernels.compiled import njit
from gdask.kernels.statistics import middle
from gdask.model import DQ, GdaskError
from gdask.types import Flags, Image, Mask

_BAD, _NO_DATA, _UNILLUMINATED = (
    np.uint16(bit) for bit in (DQ.BAD_PIXEL, DQ.NO_DATA, DQ.UNILLUMINATED)
)


@njit(cache=True, nogil=True, error_model="numpy")
def divide_row(data: Image, flat: Image, out: Image) -> None:
    """Compiled part of `flat_data`."""
    for i in range(data.size):
        out[i] = data[i] / flat[i] if 0 < flat[i] < np.inf else data[i]


@njit(cache=True, nogil=True, error_model="numpy")
def divide_variance_row(
    data: Image, variance: Image, flat: Image, flat_variance: Image, level: float, out: Image
) -> None:
    """Compiled part of `flat_variance`."""
    for i in range(data.size):
        inverse = 1.0 / flat[i] if 0 < flat[i] < np.inf else 0.0
        corrected = data[i] * inverse - level
        quotient = (variance[i] + corrected * corrected * flat_variance[i]) * inverse * inverse
        out[i] = quotient if inverse > 0 else variance[i]


@njit(cache=True, nogil=True)
def divide_flags_row(dq: Flags, flat: Image, flat_dq: Flags, out: Flags) -> None:
    """Compiled part of `flat_flags`."""
    for i in range(dq.size):
        no_data = np.uint16(not 0 < flat[i] < np.inf) * _NO_DATA
        out[i] = dq[i] | flat_dq[i] | no_data


def flat_data(data: Image, flat: Image) -> Image:
    """Divide data by a flat of the same shape.

    Data stay unchanged where the flat is not a positive number; `flat_flags` says so in the DQ.
    """
    raw, response = flatten_planes(data, flat)
    out = np.empty(np.shape(data), np.float32)
    divide_row(raw, response, out.reshape(-1))
    return out


def flat_variance(
    data: Image, variance: Image, flat: Image, flat_variance: Image, level: float = 0.0
) -> Image:
    """Variance of data / flat: (var + (data/flat - level)^2 var_flat) / flat^2.

    `data` and `variance` are those *before* the division. level: the light, in units of data /
    flat, whose flat-field error does not stay. That is the sky's (`sky_level`), which is subtracted
    by frames that went through the same flat, pixel by pixel.
    """
    raw, noise, response, response_variance = flatten_planes(data, variance, flat, flat_variance)
    out = np.empty(np.shape(data), np.float32)
    divide_variance_row(raw, noise, response, response_variance, float(level), out.reshape(-1))
    return out


def sky_level(data: Image, dq: Flags, flat: Image, flat_dq: Flags) -> float:
    """Median of data / flat over the usable ones of every fourth pixel along each axis.

    It is 0 where no pixel is usable: one with DQ 0 in data and flat, and a positive flat.
    """
    grid = np.s_[::4, ::4]
    good = (dq[grid] == 0) & (flat_dq[grid] == 0) & (flat[grid] > 0) & np.isfinite(data[grid])
    return float(middle(data[grid][good] / flat[grid][good])) if good.any() else 0.0


def flat_flags(dq: Flags, flat: Image, flat_dq: Flags) -> Flags:
    """DQ of data / flat: the bits of both, and no data (16) where the flat is not positive."""
    (response,) = flatten_planes(flat)
    flags, flat_bits = (as_kernel_input(plane, np.uint16).reshape(-1) for plane in (dq, flat_dq))
    if not flags.size == response.size == flat_bits.size:
        raise GdaskError(
            f"flags of shapes {np.shape(dq)} and {np.shape(flat_dq)} for a flat of "
            f"{np.shape(flat)}: cut them to one shape first"
        )
    out = np.empty(np.shape(dq), np.uint16)
    divide_flags_row(flags, response, flat_bits, out.reshape(-1))
    return out


def divide(
    data: Image,
    variance: Image,
    dq: Flags,
    flat: Image,
    flat_variance_: Image,
    flat_dq: Flags,
    level: float = 0.0,
) -> tuple[Image, Image, Flags]:
    """Divide data, variance and DQ by a flat: `flat_data`, `flat_variance` and `flat_flags`."""
    quotient_variance = flat_variance(data, variance, flat, flat_variance_, level)
    return flat_data(data, flat), quotient_variance, flat_flags(dq, flat, flat_dq)


def threshold(
    flat: Image, dq: Flags, lower: float = 0.01, upper: float = 10.0
) -> tuple[Image, Flags]:
    """Make a normalised flat one that can be divided by; returns it and its DQ.

    Pixels outside lower..upper (or NaN) that are not bad already become unilluminated (64). Those,
    and any pixel below `lower`, bad or not, get the value 1. The limits 0.01 and 10 are those of
    the field's standard reduction.
    """
    flags = dq | (_outside(flat, lower, upper) & ((dq & _BAD) == 0)) * _UNILLUMINATED
    useless = ((flags & _UNILLUMINATED) != 0) | ~(flat >= lower)
    return np.where(useless, np.float32(1), flat).astype(np.float32), flags.astype(np.uint16)


def _outside(values: Image, lower: float | None, upper: float | None) -> Mask:
    """Whether each value is outside lower..upper (None: no limit) or NaN."""
    low = -np.inf if lower is None else lower
    high = np.inf if upper is None else upper
    return ~((values >= low) & (values <= high))


def bpm_from_flat(flat: Image, dq: Flags | None, lower: float | None, upper: float | None) -> Flags:
    """Bad-pixel mask from a normalised flat.

    It is 1 outside lower..upper (None: no limit) or NaN, and where `dq` says bad. Unilluminated
    pixels (64 in `dq`) are kept as 64 alone: what the optics hide is no defect of the detector.
    """
    bad = _outside(flat, lower, upper)
    if dq is None:
        return bad.astype(np.uint16)
    hidden = (dq & _UNILLUMINATED) != 0
    return np.where(hidden, _UNILLUMINATED, (bad | ((dq & _BAD) != 0)).astype(np.uint16))


def bpm_from_dark(dark: Image, dq: Flags | None, lower: float | None, upper: float | None) -> Flags:
    """Bad-pixel mask from a stacked short dark (electrons).

    It is 1 outside lower..upper (None: no limit) or NaN, and where `dq` says bad.
    """
    bad = _outside(dark, lower, upper)
    return (bad if dq is None else bad | ((dq & _BAD) != 0)).astype(np.uint16)
