"""All arrays of a frame onto one common tangent plane, tile by tile, each tile from the input windows that touch it."""

from __future__ import annotations

from typing import Annotated, Literal

import dask.array as da
import numpy as np
from dask.base import tokenize

from gdask.instruments import descriptor, instrument_of
from gdask.io.read import Plane, on_disk, read_window
from gdask.kernels.areas import area_factors
from gdask.kernels.geometry import Geometry, pixel_area
from gdask.kernels.grid import Grid, common_grid, footprint, input_window
from gdask.kernels.interpolation import noise_correlation, reach
from gdask.kernels.pixelmap import MOST_ERROR, map_error, pixel_map
from gdask.kernels.resample import resample
from gdask.kernels.wcs import grid_from_header, grid_header
from gdask.memory import rows_within
from gdask.model import DQ, GdaskError
from gdask.params import Range
from gdask.steps.frames import PIXEL, note, pack, replaced, unpack, with_headers
from gdask.types import Flags, Frame, Frames, Image

#: Bytes of all frames' pixels (data, variance, dq) that one task of the stack may gather.
STACK_BYTES = 64e6
#: Rows of an output tile: at least where memory allows it, at most. A tile has the full width: rows of the input are read
#: once and whole.
FEWEST_ROWS, MOST_ROWS = 16, 256


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
    row_bytes = len(frames) * grid.shape[1] * PIXEL.itemsize
    rows = rows_within(row_bytes, int(np.clip(STACK_BYTES / row_bytes, FEWEST_ROWS, MOST_ROWS)), 4)
    return tuple(note(_resample_frame(frame, grid, header, interpolation, rows), text) for frame in frames)


def correlation(interpolation: str, ratio: float) -> dict[str, tuple[object, str]]:
    """Header keywords that say how resampled noise is correlated. ratio: area of an output over that of an input pixel.

    VAR is that of sums: the rms of a sum over many pixels is CORRFAC sqrt(sum of VAR), that of single pixels is CORRPIX
    sqrt(VAR), the mean over all sub-pixel phases; `interpolation.aperture_noise` gives what lies between.
    """
    return {
        "INTERPOL": (interpolation, "Interpolation kernel"),
        "CORRFAC": (1.0, "rms of a sum of many pixels / sqrt(sum VAR)"),
        "CORRPIX": (round(noise_correlation(interpolation) * ratio**0.5, 5), "rms of one pixel / sqrt(VAR)"),
    }


def reference_area(geometries: tuple[Geometry, ...], shape: tuple[int, int]) -> float:
    """The median pixel area (arcsec^2) over all arrays: that of the pixel for which a flat is 1."""
    y, x = np.meshgrid(np.linspace(0, shape[0] - 1, 33), np.linspace(0, shape[1] - 1, 33), indexing="ij")
    return float(np.median([pixel_area(geometry, x, y) for geometry in geometries]))


def _grid_of_frames(frames: Frames, scale: float, pa: float) -> Grid:
    geometries = [geometry for frame in frames for geometry in frame.attrs["geometry"]]
    shapes = [(frame.sizes["y"], frame.sizes["x"]) for frame in frames for _ in frame.attrs["geometry"]]
    ra, dec = (float(descriptor(frames[0], name)) for name in ("target_ra", "target_dec"))
    return common_grid(geometries, shapes, scale, pa, ra, dec)


def _grid_of_file(path: str) -> Grid:
    from gdask.io.read import open_frame
    reference = open_frame(path)
    header = reference.attrs["headers"][0].copy()
    header["NAXIS1"], header["NAXIS2"] = reference.sizes["x"], reference.sizes["y"]
    return grid_from_header(header)


def _checked(frame: Frame, grid: Grid) -> Frame:
    """The Frame with the error of its sampled map (px) in `attrs["solution"]`; GdaskError where it exceeds MOST_ERROR."""
    error = _map_error(frame, grid)
    if error > MOST_ERROR:
        raise GdaskError(
            f"{frame.attrs['name']}: the sampled pixel map is wrong by {error:.1e} px, at most {MOST_ERROR:g} was expected;"
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
            worst = max(worst, map_error(geometry, grid, (middle, middle + 1, x1, x2)), map_error(geometry, grid, (y1, y2, x1, x1 + 1)))
    return worst


def _resample_frame(frame: Frame, grid: Grid, header: object, interpolation: str, rows: int) -> Frame:
    planes = tuple(zip(*(on_disk(frame, name) for name in ("data", "variance", "dq")), strict=True))
    geometries = frame.attrs["geometry"]
    area = frame.attrs.get("reference_area") or frame.attrs["phu"].get("FLATAREA") or reference_area(geometries, (frame.sizes["y"], frame.sizes["x"]))
    ratio = grid.scale**2 / area
    ny, nx = grid.shape
    chunks = ((1,), tuple(min(rows, ny - y) for y in range(0, ny, rows)), (nx,))
    token = tokenize(planes, geometries, grid, interpolation, ratio, rows)
    packed = da.map_blocks(
        _resample_tile, planes=planes, geometries=geometries, grid=grid, interpolation=interpolation, ratio=ratio,
        rows=rows, name=f"resample-{token}", chunks=chunks, dtype=PIXEL, meta=np.empty((0, 0, 0), PIXEL),
    )  # fmt: skip
    onto = replaced(frame, **unpack(packed))
    base = frame.attrs["headers"][0].copy()
    for keyword in _ARRAY_KEYWORDS:
        base.remove(keyword, ignore_missing=True)
    base.update(header)
    base.update(correlation(interpolation, ratio))
    onto = with_headers(onto, primary={"PIXSCALE": (grid.scale, "Pixel scale (arcsec)")})
    return onto.assign_attrs(headers=(base,), geometry=(), source_geometry=geometries, grid=grid, pending={}, results={})


#: What describes one array and its pixels, and not an image of all arrays.
_ARRAY_KEYWORDS = (
    "ARRAYID", "CCDSEC", "DETSEC", "ARRAYSEC", "DATASEC", "CCDNAME", "AMPNAME", "LTM1_1", "LTM2_2", "LTV1", "LTV2",
    "CD1_1", "CD1_2", "CD2_1", "CD2_2", "CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2", "CTYPE1", "CTYPE2", "SATLEVEL", "NONLINEA",
    "RADECSYS", "RDNOISE", "XSCALE", "YSCALE", "CCDSIZE", "FRMNAME", "FRAMEID",
    *(f"AMP{kind}{number}" for kind in ("NAME", "SEC") for number in range(1, 5)),
)  # fmt: skip


def _resample_tile(
    planes: tuple[tuple[Plane, Plane, Plane], ...], geometries: tuple[Geometry, ...], grid: Grid, interpolation: str,
    ratio: float, rows: int, block_id: tuple[int, int, int],
) -> np.ndarray:
    """One tile from the windows of the arrays that touch it; where two arrays overlap, the better pixel is taken."""
    y1 = block_id[1] * rows
    y2 = min(y1 + rows, grid.shape[0])
    shape = (y2 - y1, grid.shape[1])
    result = (np.zeros(shape, "f4"), np.zeros(shape, "f4"), np.full(shape, DQ.NO_DATA, "u2"))
    for three, geometry in zip(planes, geometries, strict=True):
        _, _, x1, x2 = footprint(geometry, three[0].shape, grid)
        window = (y1, y2, x1, x2)
        inside = input_window(geometry, three[0].shape, grid, window, reach(interpolation)) if x2 > x1 else None
        if inside is None:
            continue
        data, variance, dq = (
            read_window(plane, *inside, np.dtype(kind)) for plane, kind in zip(three, ("f4", "f4", "u2"), strict=True)
        )
        ymap, xmap = pixel_map(geometry, grid, window)
        part = tuple(plane[:, x1:x2] for plane in result)
        data, variance, dq = resample(
            data, variance, dq, ymap, xmap, interpolation=interpolation, area_ratio=ratio, origin=(inside[0], inside[2]),
        )  # fmt: skip
        of_data, of_variance = area_factors(geometry, grid, window, grid.scale**2 / ratio)
        _merge(part, (data * of_data, variance * of_variance, dq))
    return pack(*result)[None]


def _merge(result: tuple[Image, Image, Flags], added: tuple[Image, Image, Flags]) -> None:
    better = added[2] < result[2]
    for mine, other in zip(result, added, strict=True):
        mine[better] = other[better]
