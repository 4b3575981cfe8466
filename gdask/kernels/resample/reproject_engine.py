"""The same resampling through reproject, for those who want its bilinear or cubic-spline interpolation.

reproject spends its time on world coordinates, so it gets a WCS whose world is the output's pixel plane and whose
inverse looks up the pixel map. It is several times slower than gdask's own kernels, interpolates every DQ bit as a
plane of its own, and a spline from a window differs in the last bits from one of the whole array.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from astropy.units import Quantity
from astropy.wcs.wcsapi import BaseLowLevelWCS
from reproject import reproject_interp

from gdask.kernels.geometry.projection import Floats
from gdask.kernels.resample.resampling import mend, planes
from gdask.model import DQ
from gdask.types import Flags, Fraction, Image


class PixelMapWCS(BaseLowLevelWCS):
    """An APE-14 WCS between the pixels of an array and the pixel plane of an output window.

    ymap, xmap: array pixels at each output pixel. None for the output's own WCS: pixels are the world.
    """

    pixel_n_dim = 2
    world_n_dim = 2
    world_axis_physical_types = ("custom:output.x", "custom:output.y")
    world_axis_units = ("pix", "pix")
    world_axis_object_components = (("x", 0, "value"), ("y", 0, "value"))
    world_axis_object_classes: ClassVar = {
        "x": (Quantity, (), {"unit": "pix"}),
        "y": (Quantity, (), {"unit": "pix"}),
    }

    def __init__(self, maps: tuple[Floats, Floats] | None = None) -> None:
        self.maps = maps

    def pixel_to_world_values(self, *pixel: Any) -> Any:
        """Only the output's pixels have a world here: they are it."""
        if self.maps is not None:
            raise NotImplementedError("a pixel map is read from the output to the array only")
        return pixel

    def world_to_pixel_values(self, *world: Any) -> Any:
        """Array pixels (x, y) of whole output pixels (x, y)."""
        if self.maps is None:
            return world
        x, y = (np.asarray(v).astype(np.intp) for v in world)
        return self.maps[1][y, x], self.maps[0][y, x]


def resample_planes(planes: Image, ymap: Floats, xmap: Floats, order: str) -> Image:
    """Planes (n, ny, nx) on the pixels of the map, by reproject's NumPy path in one call; NaN outside.

    ymap, xmap: pixels of the planes. order: "bilinear" or "bicubic" (a spline).
    """
    out = np.empty((len(planes), *ymap.shape), np.float32)
    reproject_interp(
        (planes, PixelMapWCS((ymap, xmap))),
        PixelMapWCS(),
        shape_out=out.shape,
        order=order,
        output_array=out,
        roundtrip_coords=False,
        return_footprint=False,
    )
    return out


def resample_reprojected(
    data: Image,
    variance: Image,
    dq: Flags,
    ymap: Floats,
    xmap: Floats,
    *,
    interpolation: str = "bicubic",
    threshold: Fraction = 0.001,
    area_ratio: float = 1.0,
    origin: tuple[int, int] = (0, 0),
) -> tuple[Image, Image, Flags]:
    """As resample.resample, by reproject; interpolation: "bilinear" or "bicubic" (an order-3 spline).

    Data, variance and each DQ bit that occurs are planes of one call; a bit is set where its plane exceeds `threshold`
    in absolute value.
    """
    data, variance, dq = planes(data, variance, dq, ymap, xmap)
    mended = np.stack(mend(data, variance, dq))
    mended = np.where(np.isnan(mended), np.nan_to_num(np.stack([data, variance])), mended)
    bits = [bit for bit in range(16) if np.any(dq >> bit & 1)]
    shares = np.array([dq >> bit & 1 for bit in bits], np.float32).reshape(-1, *dq.shape)
    out = resample_planes(
        np.concatenate([mended, shares]), ymap - origin[0], xmap - origin[1], interpolation
    )
    out_dq = np.where(np.isnan(out[0]), np.uint16(DQ.NO_DATA), np.uint16(0))
    for bit, plane in zip(bits, np.nan_to_num(out[2:]), strict=True):
        out_dq |= (np.abs(plane) > threshold).astype(np.uint16) << np.uint16(bit)
    value, noise = np.nan_to_num(out[:2]) * np.float32(area_ratio)
    return value, np.maximum(noise, 0), out_dq
