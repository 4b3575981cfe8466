"""Detector non-linearity, and variance from read noise and photon noise.

Non-linearity is a cubic in electrons per coadd: N' = c0 N + c1 N^2 + c2 N^3. The form and the
coefficients are those of the instrument teams, as the field's standard reduction uses them.
"""

from __future__ import annotations

import numpy as np

from gdask.kernels.arrays import flatten_planes
from gdask.kernels.compiled import njit
from gdask.types import Electrons, Image

Coefficients = tuple[float, float, float]


@njit(cache=True, nogil=True)
def linearize_row(data: Image, factor: float, c0: float, c1: float, c2: float, out: Image) -> None:
    """Compiled part of `linearize`; factor: electrons per coadd and ADU of the data."""
    for i in range(data.size):
        electrons = data[i] * factor
        out[i] = data[i] * (c0 + electrons * (c1 + electrons * c2))


@njit(cache=True, nogil=True)
def multiply_row(data: Image, factor: np.float32, out: Image) -> None:
    """Compiled part of `times`."""
    for i in range(data.size):
        out[i] = data[i] * factor


@njit(cache=True, nogil=True)
def shift_row(variance: Image, raw: Image, corrected: Image, divisor: float, out: Image) -> None:
    """Compiled part of `linearize_variance`; divisor: gain times averaged coadds."""
    no_counts = np.float32(0)
    for i in range(variance.size):
        out[i] = variance[i] + (max(corrected[i], no_counts) - max(raw[i], no_counts)) / divisor


def linearize(data: Image, coefficients: Coefficients, gain: float, coadds: int = 1) -> Image:
    """Linearise data of any shape; ADU in and out.

    `gain` is in e-/ADU (1 for data in electrons). `coadds` is the number of coadds that are
    *summed* in the data (1 where they are averaged), because the detector is non-linear per coadd.
    """
    c0, c1, c2 = (float(c) for c in coefficients)
    (raw,) = flatten_planes(data)
    out = np.empty(np.shape(data), np.float32)
    linearize_row(raw, float(gain / coadds), c0, c1, c2, out.reshape(-1))
    return out


def times(data: Image, factor: float) -> Image:
    """Multiply data of any shape by a factor, in float32."""
    (values,) = flatten_planes(data)
    out = np.empty(np.shape(data), np.float32)
    multiply_row(values, np.float32(factor), out.reshape(-1))
    return out


def linearized_level(
    level: float, coefficients: Coefficients, gain: float, coadds: int = 1
) -> float:
    """Saturation or non-linear level after `linearize`, from that before; both in ADU.

    `coefficients`, `gain` and `coadds` are those of `linearize`.
    """
    c0, c1, c2 = coefficients
    electrons = level * gain / coadds
    return level * (c0 + electrons * (c1 + electrons * c2))


def linearize_variance(
    variance: Image,
    data_raw: Image,
    data_corrected: Image,
    gain: float = 1.0,
    coadds_averaged: int = 1,
) -> Image:
    """Correct a variance that already holds Poisson noise, after its data were linearised.

    This is the FLAMINGOS-2 order of steps. The photons are those of the corrected counts, so the
    Poisson part grows by (corrected - raw) / (gain * coadds), with negative counts taken as none,
    as `variance.add_variance` takes them. `gain` is 1 for data in electrons; `coadds_averaged` is
    1 where coadds are summed. Units: those of the data, squared.
    """
    noise, raw, corrected = flatten_planes(variance, data_raw, data_corrected)
    divisor = float(gain * coadds_averaged)
    out = np.empty(np.shape(variance), np.float32)
    shift_row(noise, raw, corrected, divisor, out.reshape(-1))
    return out


@njit(cache=True, nogil=True)
def variance_row(electrons: Image, constant: float, per_electron: float, out: Image) -> None:
    """Compiled part of `add_variance`: constant + max(electrons, 0) * per_electron."""
    for i in range(electrons.size):
        out[i] = constant + max(electrons[i], np.float32(0)) * per_electron


def add_variance(
    data_e: Image, read_noise: Electrons, coadds: int = 1, poisson: bool = True, read: bool = True
) -> Image:
    """Variance (e-^2) of data in electrons: read_noise^2 + max(data, 0) / coadds.

    Either term can be left out (`read`, `poisson`). `read_noise` is that of the whole frame
    (already divided by sqrt(coadds) where coadds are averaged). `coadds` counts the *averaged*
    ones, 1 where they are summed: an average of c coadds holds c times the photons that its value
    says (GSAOI), a sum holds just those (FLAMINGOS-2). NaN stays NaN.
    """
    constant = read_noise**2 if read else 0.0
    if not poisson:
        return np.full(np.shape(data_e), constant, dtype=np.float32)
    (electrons,) = flatten_planes(data_e)
    out = np.empty(np.shape(data_e), np.float32)
    variance_row(electrons, float(constant), 1.0 / coadds, out.reshape(-1))
    return out
