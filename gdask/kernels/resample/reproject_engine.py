"""Resampling by the methods of reproject, with the conventions of `resampling`.

reproject spends its time on world coordinates, so it gets two APE-14 WCS that share a flat world:
for interpolation and "adaptive" the output's pixel plane, for "exact" (which needs the sky) the
array's pixel plane, one arcsec a pixel. Either way the pixel map is a table that is looked up.

Science and variance are planes of one call. DQ goes through gdask's compiled kernel, with the
weights of the method (`reproject_methods.method_weights`). A million output pixels take, on one
core, science and variance with holes: nearest-neighbor and bilinear 0.2 s, bicubic 0.5 s, adaptive
1.6 s, exact 14 s; gdask's own kernels 0.04 to 0.09 s.

Units and variance are those of `resampling`: values are surface brightness, times `area_ratio`;
reproject's own `conserve_flux` would multiply by the local area, which the flat has divided out
already. reproject averages the variance with its weights, where `resampling` takes their squares:
both are means of the input's variance, so that VAR is that of sums, and a single pixel scatters by
reproject_methods.method_noise_correlation * sqrt(area_ratio) * sqrt(VAR).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from reproject import reproject_adaptive, reproject_exact, reproject_interp

from gdask.kernels.geometry.projection import Floats
from gdask.kernels.resample.layout import MIN_GOOD_WEIGHT
from gdask.kernels.resample.reproject_flags import checked_planes, flags_on_map, mend
from gdask.kernels.resample.reproject_methods import (
    ADAPTIVE_HALF_SIDE,
    ADAPTIVE_WIDTH,
    map_margin_of,
    method_weights,
)
from gdask.kernels.resample.reproject_wcs import PixelMapWCS, SkyMapWCS, array_sky
from gdask.model import DQ, GdaskError
from gdask.types import Flags, Fraction, Image

#: Holes that hold less than this share of the weight are overlooked: above the rounding of float32
#: sums, far below noise.
HOLE_TOLERANCE = 1e-5


def resample_reprojected(
    data: Image,
    variance: Image,
    dq: Flags,
    ymap: Floats,
    xmap: Floats,
    *,
    method: str = "bicubic",
    threshold: Fraction = 0.05,
    area_ratio: float = 1.0,
    origin: tuple[int, int] = (0, 0),
    map_margin: int = 0,
) -> tuple[Image, Image, Flags]:
    """Resample a window of one array as `resampling.resample` does, by a method of reproject.

    data, variance, dq: (ny, nx) window whose pixel (0, 0) is the array's 0-based (y, x) = `origin`,
        with a margin of reproject_methods.margin_of (the whole array where that is None).
    ymap, xmap: array coordinates of each output pixel, NaN for none, and of `map_margin` pixels
        around the wanted window (at least reproject_methods.map_margin_of).
    method: one of reproject_methods.REPROJECT_METHODS.
    threshold: a DQ bit is set where input pixels that have it hold more than this share of the
        absolute weight of the method.
    area_ratio: area of an output pixel over that of the input pixel for which the flat is 1.

    Pixels that cannot be mended get no weight where the others keep MIN_GOOD_WEIGHT of it;
    elsewhere the values are used as they are (0 for what is not finite), flagged. Outside the
    array: 0, 0, NO_DATA. Raises GdaskError for a method, shape or margin that does not fit.
    """
    data, variance, dq = checked_planes(data, variance, dq, ymap, xmap)
    if map_margin < map_margin_of(method) or min(ymap.shape) <= 2 * map_margin:
        raise GdaskError(
            f"a map of {ymap.shape} came with a margin of {map_margin} for {method!r};"
            f" expected at least {map_margin_of(method)}, and pixels inside"
        )
    table = method_weights(method, area_ratio)
    mended, mended_var = mend(data, variance, dq)
    maps = ymap, xmap
    wanted_y, wanted_x = (
        _without_margin(m, map_margin) - first for m, first in zip(maps, origin, strict=True)
    )
    if method == "nearest-neighbor":
        place = np.floor(wanted_y + 0.5), np.floor(wanted_x + 0.5)
    else:
        place = wanted_y, wanted_x
    out_dq = flags_on_map(dq, mended, *place, table, threshold)
    known = np.isfinite(mended)
    raw = [np.nan_to_num(plane, posinf=0, neginf=0) for plane in (data, variance)]
    inputs = [np.where(known, mended, 0), np.where(known, mended_var, 0)]
    if not known.all():
        inputs += [known, *raw]
    out = _by_reproject(np.array(inputs, np.float32), maps, method, origin, map_margin)
    value, noise = out[:2] if known.all() else _without_holes(out)
    ny, nx = data.shape
    inside = (wanted_y >= -0.5) & (wanted_y < ny - 0.5) & (wanted_x >= -0.5) & (wanted_x < nx - 0.5)
    inside &= np.isfinite(value) & np.isfinite(noise)
    nearest_noise = _nearest(np.where(known, mended_var, raw[1]), *place)
    noise = np.where(noise > 0, noise, nearest_noise)  # a spline undershoots beside a star
    ratio = np.float32(area_ratio)
    return (
        np.where(inside, value * ratio, np.float32(0)),
        np.where(inside, noise * ratio, np.float32(0)),
        np.where(inside, out_dq, np.uint16(DQ.NO_DATA)),
    )


def _by_reproject(
    inputs: Image, maps: tuple[Floats, Floats], method: str, origin: tuple[int, int], margin: int
) -> Image:
    """Return planes on the wanted pixels of the map, by one call of reproject; NaN outside.

    inputs: (n, ny, nx). margin: pixels of the map around the wanted ones.
    """
    surplus, margin = margin - map_margin_of(method), map_margin_of(method)
    maps = _without_margin(maps[0], surplus), _without_margin(maps[1], surplus)
    shape = maps[0].shape
    out = np.empty((len(inputs), shape[0] - 2 * margin, shape[1] - 2 * margin), np.float32)
    options: dict[str, Any] = {
        "output_array": out,
        "shape_out": out.shape,
        "return_footprint": False,
    }
    if method == "exact":
        reproject_exact((inputs, array_sky(origin)), SkyMapWCS(maps), **options)
        return out
    window = PixelMapWCS((maps[0] - origin[0], maps[1] - origin[1]), margin)
    options["roundtrip_coords"] = False
    if method == "adaptive":
        options |= {"kernel_width": ADAPTIVE_WIDTH, "sample_region_width": 2 * ADAPTIVE_HALF_SIDE}
        reproject_adaptive((inputs, window), PixelMapWCS(), boundary_mode="ignore", **options)
    else:
        reproject_interp((inputs, window), PixelMapWCS(), order=method, **options)
    return out


def _without_holes(out: Image) -> tuple[Image, Image]:
    """Return data and variance of five resampled planes, as if holes had no weight.

    Where the others do not keep enough of it, values are used as they are. out: data and variance
    that are zero in holes, the weight outside holes, and data and variance as they are.
    """
    share = out[2]
    as_it_is = ~(share >= MIN_GOOD_WEIGHT)
    partial = ~as_it_is & (np.abs(share - 1) > HOLE_TOLERANCE)
    scale = 1 / np.where(partial, share, np.float32(1))
    return np.where(as_it_is, out[3], out[0] * scale), np.where(as_it_is, out[4], out[1] * scale)


def _without_margin(plane: Floats, margin: int) -> Floats:
    """Return the inside of a plane, without `margin` pixels on each side."""
    cut = slice(margin, -margin or None)
    return plane[cut, cut]


def _nearest(plane: Image, y: Floats, x: Floats) -> Image:
    """Return the value of the pixel of the array that is nearest to each place (y, x)."""
    j, i = (
        np.clip(np.nan_to_num(np.floor(places + 0.5)), 0, n - 1).astype(np.intp)
        for places, n in zip((y, x), plane.shape, strict=True)
    )
    return plane[j, i]
