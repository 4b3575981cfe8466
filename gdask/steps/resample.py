"""All arrays of a frame onto one common tangent plane, tile by tile, each tile from the input windows that touch it."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import numpy as np
from dask.base import tokenize

from gdask.instruments import descriptor, instrument_of
from gdask.io.lazy_arrays import map_blocks
from gdask.io.read import Plane, on_disk, read_window
from gdask.kernels.geometry.areas import area_factors
from gdask.kernels.geometry.grid import Grid, Window, common_grid, footprint, input_window
from gdask.kernels.geometry.pixel_map import MAX_MAP_ERROR, map_error, pixel_map
from gdask.kernels.geometry.projection import Geometry, pixel_area
from gdask.kernels.geometry.wcs import grid_from_header, grid_header
from gdask.kernels.resample.interpolation import kernel_margin, noise_correlation
from gdask.kernels.resample.resampling import resample
from gdask.model import DQ, GdaskError
from gdask.params import Range
from gdask.steps.frames import PIXEL, note, pack, replaced, unpack, with_headers
from gdask.types import Flags, Frame, Frames, Image

#: Side (pixels) of an output tile of a few frames. Tiles are squares, so that what they need of an array that lies askew is
#: little more than they show; dask's ordering takes time and memory with the square of their number (3192: 16 s, 2.5 GB).
SIDE = 512
#: From so many frames on tiles have half that side: there are more of them, for the workers that many frames are worth.
MANY = 32


class Source(NamedTuple):
    """What a frame's resampled pixels come from. planes: data, variance, dq of each array, on disk; windows: what each
    array can touch of the grid; ratio: area of an output pixel over that for which a flat is 1."""

    planes: tuple[tuple[Plane, Plane, Plane], ...]
    geometries: tuple[Geometry, ...]
    windows: tuple[Window, ...]
    interpolation: str
    ratio: float


def resample_to_common_frame(
    frames: Frames,
    *,
    pixel_scale: Annotated[float, Range(0.001, 10)] | None = None,
    pa: Annotated[float, Range(-360, 360)] = 0.0,
    reference: str | None = None,
    interpolation: Literal["bilinear", "cubic", "quintic", "lanczos3"] = "quintic",
) -> Frames:
    """Resample every frame onto one tangent plane at the target, North up and East left. [resampleToCommonFrame]

    Parameters
    ----------
    pixel_scale
        Arcsec per output pixel; None is the instrument's.
    pa
        Position angle of the output's +y axis, degrees East of North.
    reference
        Image whose pixel grid is taken instead.
    interpolation
        Interpolation kernel.
    """
    scale = pixel_scale or float(instrument_of(frames[0]).facts["output_pixel_scale"])
    grid = _grid_of_file(reference) if reference else _grid_of_frames(frames, scale, pa)
    radesys = str(frames[0].attrs["phu"].get("FRAME", "FK5")).strip().upper()
    header = grid_header(grid, radesys if radesys in ("FK5", "ICRS", "FK4") else "FK5")
    frames = tuple(_checked(frame, grid) for frame in frames)
    worst = max(frame.attrs["solution"]["map_px"] for frame in frames)
    text = f"{grid.shape[1]} x {grid.shape[0]} pixels of {grid.scale:g} arcsec, {interpolation}, map good to {worst:.1e} px"
    side = SIDE if len(frames) < MANY else SIDE // 2
    return tuple(
        note(_resample_frame(frame, grid, header, interpolation, side), text) for frame in frames
    )


def correlation(interpolation: str, ratio: float) -> dict[str, tuple[object, str]]:
    """Header keywords that say how resampled noise is correlated. ratio: area of an output over that of an input pixel.

    VAR is that of sums: the rms of a sum over many pixels is CORRFAC sqrt(sum of VAR), that of single pixels is CORRPIX
    sqrt(VAR), the mean over all sub-pixel phases; `interpolation.aperture_noise` gives what lies between.
    """
    return {
        "INTERPOL": (interpolation, "Interpolation kernel"),
        "CORRFAC": (1.0, "rms of a sum of many pixels / sqrt(sum VAR)"),
        "CORRPIX": (
            round(noise_correlation(interpolation) * ratio**0.5, 5),
            "rms of one pixel / sqrt(VAR)",
        ),
    }


def reference_area(geometries: tuple[Geometry, ...], shape: tuple[int, int]) -> float:
    """The median pixel area (arcsec^2) over all arrays: that of the pixel for which a flat is 1."""
    y, x = np.meshgrid(
        np.linspace(0, shape[0] - 1, 33), np.linspace(0, shape[1] - 1, 33), indexing="ij"
    )
    return float(np.median([pixel_area(geometry, x, y) for geometry in geometries]))


def _grid_of_frames(frames: Frames, scale: float, pa: float) -> Grid:
    geometries = [geometry for frame in frames for geometry in frame.attrs["geometry"]]
    shapes = [
        (frame.sizes["y"], frame.sizes["x"]) for frame in frames for _ in frame.attrs["geometry"]
    ]
    ra, dec = (float(descriptor(frames[0], name)) for name in ("target_ra", "target_dec"))
    return common_grid(geometries, shapes, scale, pa, ra, dec)


def _grid_of_file(path: str) -> Grid:
    from gdask.io.read import open_frame

    reference = open_frame(path)
    header = reference.attrs["headers"][0].copy()
    header["NAXIS1"], header["NAXIS2"] = reference.sizes["x"], reference.sizes["y"]
    return grid_from_header(header)


def is_as_resampled(frame: Frame) -> bool:
    """Whether a frame's pixels are still those that resample_to_common_frame gave it, from its `source`."""
    return frame.attrs.get("resampled") == _names(frame)


def _names(frame: Frame) -> tuple[str, ...]:
    return tuple(frame[name].data.name for name in PIXEL.names or () if name in frame)


def _checked(frame: Frame, grid: Grid) -> Frame:
    """The Frame with the error of its sampled map (px) in `attrs["solution"]`; GdaskError where it exceeds MAX_MAP_ERROR."""
    error = _map_error(frame, grid)
    if error > MAX_MAP_ERROR:
        raise GdaskError(
            f"{frame.attrs['name']}: the sampled pixel map is wrong by {error:.1e} px, at most {MAX_MAP_ERROR:g} was expected;"
            " the fitted correction bends too fast: align with a lower order"
        )
    return frame.assign_attrs(solution=(frame.attrs.get("solution") or {}) | {"map_px": error})


def _map_error(frame: Frame, grid: Grid) -> float:
    """The worst error (px) of the sampled map over the frame, at points between its nodes along and across each array."""
    worst = 0.0
    for geometry in frame.attrs["geometry"]:
        y1, y2, x1, x2 = footprint(geometry, (frame.sizes["y"], frame.sizes["x"]), grid)
        if y2 > y1:
            middle = (y1 + y2) // 2
            worst = max(
                worst,
                map_error(geometry, grid, (middle, middle + 1, x1, x2)),
                map_error(geometry, grid, (y1, y2, x1, x1 + 1)),
            )
    return worst


def _resample_frame(
    frame: Frame, grid: Grid, header: object, interpolation: str, side: int
) -> Frame:
    planes = tuple(zip(*(on_disk(frame, name) for name in ("data", "variance", "dq")), strict=True))
    geometries, shape = frame.attrs["geometry"], (frame.sizes["y"], frame.sizes["x"])
    area = (
        frame.attrs.get("reference_area")
        or frame.attrs["phu"].get("FLATAREA")
        or reference_area(geometries, shape)
    )
    ratio = grid.scale**2 / area
    source = Source(
        planes,
        geometries,
        tuple(footprint(each, shape, grid) for each in geometries),
        interpolation,
        ratio,
    )
    chunks = (
        (1,),
        *(tuple(min(side, whole - at) for at in range(0, whole, side)) for whole in grid.shape),
    )
    name = f"resample-{tokenize(source, grid, side)}"
    packed = map_blocks(
        _resample_tile,
        name=name,
        dtype=PIXEL,
        chunks=chunks,
        placed=True,
        source=source,
        planes=planes,
        grid=grid,
        rows=side,
    )
    onto = replaced(frame, **unpack(packed))
    base = frame.attrs["headers"][0].copy()
    for keyword in _ARRAY_KEYWORDS:
        base.remove(keyword, ignore_missing=True)
    base.update(header)
    base.update(correlation(interpolation, ratio))
    onto = with_headers(onto, primary={"PIXSCALE": (grid.scale, "Pixel scale (arcsec)")})
    return onto.assign_attrs(
        headers=(base,),
        geometry=(),
        source_geometry=geometries,
        grid=grid,
        source=source,
        resampled=_names(onto),
        pending={},
        results={},
    )


#: What describes one array and its pixels, and not an image of all arrays.
_ARRAY_KEYWORDS = (
    "ARRAYID",
    "CCDSEC",
    "DETSEC",
    "ARRAYSEC",
    "DATASEC",
    "CCDNAME",
    "AMPNAME",
    "LTM1_1",
    "LTM2_2",
    "LTV1",
    "LTV2",
    "CD1_1",
    "CD1_2",
    "CD2_1",
    "CD2_2",
    "CRPIX1",
    "CRPIX2",
    "CRVAL1",
    "CRVAL2",
    "CTYPE1",
    "CTYPE2",
    "SATLEVEL",
    "NONLINEA",
    "RADECSYS",
    "RDNOISE",
    "XSCALE",
    "YSCALE",
    "CCDSIZE",
    "FRMNAME",
    "FRAMEID",
    *(f"AMP{kind}{number}" for kind in ("NAME", "SEC") for number in range(1, 5)),
)


def _resample_tile(
    place: tuple[int, int, int], source: Source, planes: object, grid: Grid, rows: int
) -> np.ndarray:
    """One square of `rows` pixels' side. planes: for the projection of memory."""
    y1, x1 = place[1] * rows, place[2] * rows
    window = y1, min(y1 + rows, grid.shape[0]), x1, min(x1 + rows, grid.shape[1])
    shape = window[1] - y1, window[3] - x1
    result = (np.empty(shape, "f4"), np.empty(shape, "f4"), np.empty(shape, "u2"))
    resample_window(source, grid, window, result)
    return pack(*result)[None]


def resample_window(
    source: Source, grid: Grid, window: Window, result: tuple[Image, Image, Flags]
) -> None:
    """Put into `result` (data, variance, DQ) a frame as a window of the grid shows it. The bits of a pixel do not depend on
    the window; where two arrays overlap, the better pixel is taken, NO_DATA where there is none."""
    for plane, nothing in zip(result, (0, 0, DQ.NO_DATA), strict=True):
        plane[:] = nothing
    for three, geometry, (top, bottom, left, right) in zip(
        source.planes, source.geometries, source.windows, strict=True
    ):
        y1, y2, x1, x2 = (
            max(window[0], top),
            min(window[1], bottom),
            max(window[2], left),
            min(window[3], right),
        )
        touched = y1, y2, x1, x2
        inside = (
            input_window(
                geometry, three[0].shape, grid, touched, kernel_margin(source.interpolation)
            )
            if y1 < y2 and x1 < x2
            else None
        )
        if inside is None:
            continue
        planes = (
            read_window(plane, *inside, np.dtype(kind))
            for plane, kind in zip(three, ("f4", "f4", "u2"), strict=True)
        )
        data, variance, dq = resample(
            *planes,
            *pixel_map(geometry, grid, touched),
            interpolation=source.interpolation,
            area_ratio=source.ratio,
            origin=(inside[0], inside[2]),
        )
        of_data, of_variance = area_factors(geometry, grid, touched, grid.scale**2 / source.ratio)
        part = tuple(
            plane[y1 - window[0] : y2 - window[0], x1 - window[2] : x2 - window[2]]
            for plane in result
        )
        _merge(part, (data * of_data, variance * of_variance, dq))  # type: ignore[arg-type]


def _merge(result: tuple[Image, Image, Flags], added: tuple[Image, Image, Flags]) -> None:
    better = added[2] < result[2]
    for mine, other in zip(result, added, strict=True):
        mine[better] = other[better]
