"""Variance of raw pixels: read noise and photon noise, in electrons squared."""

from __future__ import annotations

import numpy as np

from gdask.kernels.arrays import flatten_planes
from gdask.kernels.compiled import njit
from gdask.types import Electrons, Image


@njit(cache=True, nogil=True)
def _variance(electrons: Image, constant: float, per_electron: float) -> Image:
    """Compiled part of `add_variance`: constant + max(electrons, 0) * per_electron."""
    out = np.empty(electrons.size, dtype=np.float32)
    for i in range(electrons.size):
        out[i] = constant + max(electrons[i], np.float32(0)) * per_electron
    return out


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
    return _variance(electrons, float(constant), 1.0 / coadds).reshape(np.shape(data_e))
