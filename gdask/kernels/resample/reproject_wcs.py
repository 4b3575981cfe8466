"""World coordinate systems (APE 14) that hand a sampled pixel map to reproject."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from astropy.units import Quantity
from astropy.wcs import WCS
from astropy.wcs.wcsapi import BaseLowLevelWCS
from scipy.ndimage import map_coordinates

from gdask.kernels.arithmetic import inverse_of_two, least_squares, times_two
from gdask.kernels.geometry.projection import Floats

#: RA (degrees) at which the flat sky of `array_sky` is, far from the jump between 360 and 0.
SKY_RA = 180.0
#: Steps by which `invert_map` inverts a map: each leaves a few per cent of the error (GSAOI's
#: distortion).
INVERSION_STEPS = 8


class PixelMapWCS(BaseLowLevelWCS):
    """An APE-14 WCS between the pixels of an array and the pixel plane of an output window.

    maps: (ymap, xmap), array pixels at each output pixel and at `margin` pixels around the window.
    None for the output's own WCS: pixels are the world.
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

    def __init__(self, maps: tuple[Floats, Floats] | None = None, margin: int = 0) -> None:
        self.maps = maps
        self.margin = margin

    def pixel_to_world_values(self, *pixel: Any) -> Any:
        """Return the output's pixels as they are: they are the world."""
        if self.maps is not None:
            raise NotImplementedError("a pixel map is read from the output to the array only")
        return pixel

    def world_to_pixel_values(self, *world: Any) -> Any:
        """Return the array pixels (x, y) of whole output pixels (x, y)."""
        if self.maps is None:
            return world
        x, y = (np.asarray(values).astype(np.intp) + self.margin for values in world)
        return self.maps[1][y, x], self.maps[0][y, x]


def array_sky(origin: tuple[int, int] = (0, 0)) -> WCS:
    """Return a WCS that calls an array's pixels the sky: RA and Dec in arcsec, on the equator.

    origin: the array's (y, x) of the window's pixel (0, 0). A plate carree, so that differences are
    exact. Overlaps of pixels of one arcsec are exact to 1e-7, as long as the array is smaller than
    a few degrees (10^4 pixels).
    """
    sky = WCS(naxis=2)
    sky.wcs.ctype = ["RA---CAR", "DEC--CAR"]
    sky.wcs.cunit = ["deg", "deg"]
    sky.wcs.crval = [SKY_RA, 0.0]
    sky.wcs.cdelt = [1 / 3600, 1 / 3600]
    sky.wcs.crpix = [1.0 - origin[1], 1.0 - origin[0]]
    sky.wcs.set()
    return sky


class SkyMapWCS(BaseLowLevelWCS):
    """An APE-14 WCS of an output window on the flat sky of `array_sky`, for `reproject_exact`.

    maps: (ymap, xmap), array pixels at each output pixel and at one pixel around the window.
    """

    pixel_n_dim = 2
    world_n_dim = 2
    world_axis_physical_types = ("pos.eq.ra", "pos.eq.dec")
    world_axis_units = ("deg", "deg")

    def __init__(self, maps: tuple[Floats, Floats]) -> None:
        self.maps = maps
        self.sky = array_sky()

    @property
    def world_axis_object_components(self) -> Any:
        """The parts of a SkyCoord that are RA and Dec."""
        return self.sky.world_axis_object_components

    @property
    def world_axis_object_classes(self) -> Any:
        """A SkyCoord, as astropy's own WCS."""
        return self.sky.world_axis_object_classes

    def pixel_to_world_values(self, *pixel: Any) -> Any:
        """Return RA, Dec (degrees) of corners of output pixels: means of four map values."""
        i, j = ((np.asarray(values) + 0.5).astype(np.intp) for values in pixel)
        y, x = ((m[j, i] + m[j, i + 1] + m[j + 1, i] + m[j + 1, i + 1]) / 4 for m in self.maps)
        return self.sky.pixel_to_world_values(x, y)

    def world_to_pixel_values(self, *world: Any) -> Any:
        """Return output pixels (x, y), to tell reproject where to look for overlaps."""
        x, y = self.sky.world_to_pixel_values(*world)
        row, column = invert_map(self.maps, y, x)
        return column - 1, row - 1


def invert_map(maps: tuple[Floats, Floats], y: Floats, x: Floats) -> tuple[Floats, Floats]:
    """Return the places (row, column) of a pixel map at which it shows array pixels (y, x).

    Beyond the map's edges they are a linear guess. maps: (ymap, xmap), smooth. A fixed number of
    steps with the mean slope of the map, to 1e-9 pixel.
    """
    shape = maps[0].shape
    rows, columns = np.meshgrid(*(np.linspace(0, n - 1, 9) for n in shape), indexing="ij")
    samples = np.array([_between_nodes(m, rows, columns).ravel() for m in maps])
    finite = np.isfinite(samples).all(axis=0)
    terms = np.array([np.ones(rows.size), rows.ravel(), columns.ravel()])[:, finite]
    if finite.sum() < 3 or np.linalg.matrix_rank(terms) < 3:
        return np.full(y.shape, np.nan), np.full(y.shape, np.nan)
    fit = least_squares(terms.T, samples[:, finite].T).T
    slope, inverse = fit[:, 1:], inverse_of_two(fit[:, 1:])
    target = np.array([y, x])
    place = times_two(inverse, target - fit[:, :1, None])
    for _ in range(INVERSION_STEPS):
        nearest = np.clip(place, 0, np.array(shape)[:, None, None] - 1)
        seen = np.array([_between_nodes(m, *nearest) for m in maps])
        seen += times_two(slope, place - nearest)
        place = place + times_two(inverse, target - seen)
    return place[0], place[1]


def _between_nodes(plane: Floats, rows: Floats, columns: Floats) -> Floats:
    """Interpolate a plane linearly; beyond its edges take the edge."""
    return map_coordinates(plane, [rows, columns], order=1, mode="nearest")
