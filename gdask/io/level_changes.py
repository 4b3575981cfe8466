"""Changes of the level of arrays: scales, offsets, surfaces; of files, while they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gdask.io.lazy_arrays import from_source, is_stored, map_planes, source_of
from gdask.kernels.surfaces import Surface
from gdask.types import Window

if TYPE_CHECKING:
    import dask.array as da


def changed_scale(array: da.Array, scales: Sequence[float], offsets: Sequence[float]) -> da.Array:
    """Give an array with each detector's pixels multiplied and then shifted.

    Pixels of a file are changed while they are read.
    """
    source = source_of(array)
    if is_stored(source):
        return from_source(source.changed(scales, offsets), "read")
    values = {"scale": tuple(scales), "offset": tuple(offsets)}
    return map_planes(_rescale, array, dtype=array.dtype, each=values)


def _rescale(pixels: np.ndarray, scale: float, offset: float) -> np.ndarray:
    return pixels * scale + offset


def minus_surfaces(array: da.Array, surfaces: Sequence[Surface]) -> da.Array:
    """Give an array from each of whose detectors a surface is subtracted.

    Pixels of a file are changed while they are read.
    """
    source = source_of(array)
    if is_stored(source):
        return from_source(source.minus(surfaces), "read")
    values = {"surface": tuple(surfaces)}
    return map_planes(_minus_surface, array, dtype=array.dtype, each=values, windowed=True)


def _minus_surface(pixels: np.ndarray, surface: Surface, window: Window) -> np.ndarray:
    return (pixels - surface.values(window)).astype(pixels.dtype)
