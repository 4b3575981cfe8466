"""Resample all arrays of a frame onto one tangent plane, tile by tile.

Each tile is made from the input windows that touch it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from dask.base import tokenize

from gdask.headers import Header
from gdask.instruments import descriptor, instrument_of
from gdask.io.dask_internals import set_source
from gdask.io.frames import (
    array_headers,
    geometries,
    grid_text,
    note,
    one_image_coords,
    primary_header,
    shape_of,
    small,
    with_headers,
    with_small,
)
from gdask.io.gather import gather_planes
from gdask.io.lazy_arrays import band_chunks, source_of
from gdask.io.read import open_frame
from gdask.io.sources import Field, Source
from gdask.kernels.geometry.grid import (
    MAX_MAP_ERROR,
    Grid,
    common_grid,
    footprint,
    map_error,
    pixel_map,
)
from gdask.kernels.geometry.projection import Geometry, pixel_area
from gdask.kernels.geometry.wcs import grid_from_header, grid_header, remove_wcs
from gdask.kernels.resample.interpolation import noise_correlation
from gdask.model import DIMS, GdaskError, late
from gdask.params import Range, refuses
from gdask.steps.frames import VARIABLE_TYPES, VARIABLES, arrays_of, levels_on_grid, named, on_group
from gdask.steps.resampled import INTERPOLATIONS, Resampled
from gdask.types import Flags, Frame, Frames, Image, Window

if TYPE_CHECKING:
    import dask.array as da
else:
    da = late("dask.array")

#: Side (pixels) of an output tile of a few frames. Tiles are squares, so that what they need of an
#: array that lies askew is little more than they show; dask's ordering takes time and memory with
#: the square of their number (3192: 16 s, 2.5 GB).
TILE_SIDE = 512
#: Number of frames from which on tiles have half that side: more tiles for more workers, which many
#: frames are worth.
MANY_FRAMES = 32
#: Bytes for each pixel of a tile that resampling it takes (the input window, the pixel map, the
#: planes): measured 44 and the input, with a fifth added.
TILE_BYTES = 70.0


def _engine_conflict(values: Mapping[str, Any]) -> str:
    """Say why parameters do not go together; '' where they do."""
    engine, wanted = values["engine"], values["interpolation"]
    if wanted is None or wanted in INTERPOLATIONS[engine]:
        return ""
    return (
        f"interpolation={wanted} is not of engine={engine}, which has "
        f"{', '.join(INTERPOLATIONS[engine])}; set resampleToCommonFrame:engine or another "
        "interpolation"
    )


@refuses(_engine_conflict)
@on_group
def resample_to_common_frame(
    frames: Frames,
    *,
    pixel_scale: Annotated[float, Range(0.001, 10)] | None = None,
    pa: Annotated[float, Range(-360, 360)] = 0.0,
    reference: str | None = None,
    engine: Literal["gdask", "reproject"] = "gdask",
    interpolation: Literal[
        "quintic",
        "bilinear",
        "cubic",
        "lanczos3",
        "nearest-neighbor",
        "bicubic",
        "adaptive",
        "exact",
    ]
    | None = None,
) -> Frames:
    """Resample every frame onto one tangent plane at the target. [resampleToCommonFrame]

    North is up and East left, but for `pa` and `reference`.

    Parameters
    ----------
    pixel_scale
        Arcsec per output pixel; None is the instrument's.
    pa
        Position angle of the output's +y axis, degrees East of North.
    reference
        Image whose pixel grid is taken instead.
    engine
        gdask: compiled kernels of its own; reproject: the package of that name (slower).
        docs/accuracy.md compares them.
    interpolation
        The interpolation kernel; None: the engine's default, quintic or bilinear.
        Of gdask: quintic, bilinear, cubic, lanczos3; of reproject: nearest-neighbor, bilinear,
        bicubic, adaptive, exact.
    """
    if conflict := _engine_conflict({"engine": engine, "interpolation": interpolation}):
        raise GdaskError(f"resample_to_common_frame: {conflict}")
    method = interpolation or INTERPOLATIONS[engine][0]
    scale = pixel_scale or float(instrument_of(frames[0]).facts["output_pixel_scale"])
    grid = _grid_of_file(reference) if reference else _grid_of_frames(frames, scale, pa)
    radesys = str(primary_header(frames[0]).get("FRAME", "FK5")).strip().upper()
    header = grid_header(grid, radesys if radesys in ("FK5", "ICRS", "FK4") else "FK5")
    frames = tuple(_with_map_error(frame, grid) for frame in frames)
    worst = max(small(frame, "solution")["map_px"] for frame in frames)
    text = (
        f"{grid.shape[1]} x {grid.shape[0]} pixels of {grid.scale:g} arcsec, "
        f"{_in_words(engine, method)}, map good to {worst:.1e} px"
    )
    side = TILE_SIDE if len(frames) < MANY_FRAMES else TILE_SIDE // 2
    return tuple(
        note(_resample_frame(frame, grid, header, (engine, method), side), text) for frame in frames
    )


def _in_words(engine: str, method: str) -> str:
    return method if engine == "gdask" else f"{engine} {method}"


def correlation(
    interpolation: str, ratio: float, engine: str = "gdask", sums: float = 1.0
) -> dict[str, tuple[object, str]]:
    """Give header keywords that say how resampled noise is correlated.

    VAR is that of sums: the rms of a sum over many pixels is CORRFAC sqrt(sum of VAR), that of
    single pixels is CORRPIX sqrt(VAR), the mean over all sub-pixel phases;
    `interpolation.aperture_noise` gives what lies between for gdask's kernels.

    Parameters
    ----------
    interpolation, engine
        As resample_to_common_frame takes them.
    ratio
        Area of an output pixel over that of an input pixel.
    sums
        CORRFAC: 1, but for reproject's nearest-neighbor.
    """
    if engine == "gdask":
        noise = noise_correlation(interpolation)
    else:
        from gdask.kernels.resample.reproject_methods import method_noise_correlation

        noise = method_noise_correlation(interpolation, ratio)
    return {
        "INTERPOL": (_in_words(engine, interpolation), "Interpolation kernel"),
        "CORRFAC": (round(sums, 5), "rms of a sum of many pixels / sqrt(sum VAR)"),
        "CORRPIX": (round(noise * ratio**0.5, 5), "rms of one pixel / sqrt(VAR)"),
    }


def _noise_of_sums(source: Resampled) -> float:
    """Give CORRFAC: 1, but for nearest-neighbor.

    That takes some pixels twice and others not at all: how often is counted on a part of the map.
    """
    if source.interpolation != "nearest-neighbor":
        return 1.0
    y1, y2, x1, x2 = source.footprints[0]
    y, x = (y1 + y2) // 2, (x1 + x2) // 2
    half = min(y2 - y1, x2 - x1, 512) // 2
    maps = pixel_map(source.geometries[0], source.grid, (y - half, y + half, x - half, x + half))
    nearest = np.floor(np.column_stack([np.ravel(plane) for plane in maps]) + 0.5)
    _, taken = np.unique(nearest, axis=0, return_counts=True)
    return float(np.sqrt(np.sum(taken**2) / np.sum(taken)))


def reference_area(geometries: tuple[Geometry, ...], shape: tuple[int, int]) -> float:
    """Give the median pixel area (arcsec^2) over all arrays, of the pixel for which a flat is 1."""
    y, x = np.meshgrid(
        np.linspace(0, shape[0] - 1, 33), np.linspace(0, shape[1] - 1, 33), indexing="ij"
    )
    return float(np.median([pixel_area(geometry, x, y) for geometry in geometries]))


def unit_area(frame: Frame) -> float:
    """Give the pixel area (arcsec^2) for which the flat of a frame is 1."""
    return float(
        frame.attrs.get("reference_area")
        or primary_header(frame).get("FLATAREA")
        or reference_area(geometries(frame), shape_of(frame))
    )


def _grid_of_frames(frames: Frames, scale: float, pa: float) -> Grid:
    placed = [(geometry, shape_of(frame)) for frame in frames for geometry in geometries(frame)]
    ra, dec = (float(descriptor(frames[0], name)) for name in ("target_ra", "target_dec"))
    found, shapes = [geometry for geometry, _ in placed], [shape for _, shape in placed]
    return common_grid(found, shapes, scale, pa, ra, dec)


def _grid_of_file(path: str) -> Grid:
    reference = open_frame(path)
    header = array_headers(reference)[0].copy()
    header["NAXIS1"], header["NAXIS2"] = reference.sizes["x"], reference.sizes["y"]
    return grid_from_header(header)


def resampled_source(frame: Frame) -> Resampled | None:
    """Give what a frame's pixels are resampled from.

    None where they are no longer those of resample_to_common_frame.
    """
    sources = [source_of(frame[name].data) for name in VARIABLES if name in frame]
    made = {id(planes): planes for planes in (getattr(each, "planes", None) for each in sources)}
    found = next(iter(made.values()), None)
    return found if len(sources) == 3 and len(made) == 1 and isinstance(found, Resampled) else None


def _with_map_error(frame: Frame, grid: Grid) -> Frame:
    """Put the error of the frame's sampled pixel map (px) into its `solution`.

    Raises GdaskError where it exceeds MAX_MAP_ERROR.
    """
    error = _map_error(frame, grid)
    if error > MAX_MAP_ERROR:
        raise GdaskError(
            f"{frame.attrs['name']}: the sampled pixel map is wrong by {error:.1e} px, "
            f"at most {MAX_MAP_ERROR:g} was expected; the fitted correction bends too fast: "
            "align with a lower order"
        )
    return with_small(frame, solution=(small(frame, "solution") or {}) | {"map_px": error})


def _map_error(frame: Frame, grid: Grid) -> float:
    """Give the worst error (px) of the sampled map over the frame.

    It is measured at points between the map's nodes, along and across each array.
    """
    worst = 0.0
    for geometry in geometries(frame):
        y1, y2, x1, x2 = footprint(geometry, shape_of(frame), grid)
        if y2 > y1:
            middle = (y1 + y2) // 2
            across = map_error(geometry, grid, (middle, middle + 1, x1, x2))
            worst = max(worst, across, map_error(geometry, grid, (y1, y2, x1, x1 + 1)))
    return worst


def _resample_frame(
    frame: Frame, grid: Grid, header: Any, method: tuple[str, str], side: int
) -> Frame:
    """Give the frame on the grid, in tiles of `side` pixels. method: engine and interpolation."""
    engine, interpolation = method
    found, size = geometries(frame), shape_of(frame)
    ratio = grid.scale**2 / unit_area(frame)
    arrays = arrays_of(frame)
    footprints = tuple(footprint(each, size, grid) for each in found)
    identity = tokenize([each.name for each in arrays], found, grid, method, ratio)
    source = Resampled((), found, footprints, size, grid, engine, interpolation, ratio, identity)
    variables = named(_tiles(arrays, source, side))
    base = array_headers(frame)[0].copy()
    for keyword in _ARRAY_KEYWORDS:
        base.remove(keyword, ignore_missing=True)
    remove_wcs(base)
    base.update(header)
    base.update(levels_on_grid(frame, ratio))
    base.update(correlation(interpolation, ratio, engine, _noise_of_sums(source)))
    resampled = _on_grid(frame, variables, grid, Header.from_astropy(base))
    resampled = with_headers(resampled, primary={"PIXSCALE": (grid.scale, "Pixel scale (arcsec)")})
    placed = {"geometry": found, **(small(frame, "solution") or {})}
    return with_small(resampled, placed=placed)


def _on_grid(frame: Frame, variables: dict[str, da.Array], grid: Grid, header: Header) -> Frame:
    """Make a Frame of one image on the grid, with the attributes of `frame`."""
    import xarray as xr

    ny, nx = grid.shape
    coords = one_image_coords((ny, nx), header)
    attrs = frame.attrs | {
        "grid": grid_text(grid),
        "file_shape": [1, ny, nx],
        "file_start": [0, 0],
        "tables": "",
    }
    pixels = {name: (DIMS, array) for name, array in variables.items()}
    return xr.Dataset(pixels, coords=coords, attrs=attrs)


def _tiles(arrays: Sequence[da.Array], source: Resampled, side: int) -> list[da.Array]:
    """Give data, variance and DQ of the resampled frame, lazy, in squares of `side` pixels."""
    chunks = ((1,), *(band_chunks(length, side) for length in source.grid.shape))

    def windows(_: int, __: int, window: Window) -> list[tuple[int, Window]]:
        return [(part.array, part.needed) for part in source.parts(window)]

    planes = gather_planes(
        _resample_tile,
        arrays,
        name=f"resample-{tokenize(source.identity, side)}",
        dtypes=VARIABLE_TYPES,
        chunks=chunks,
        windows=windows,
        scratch=TILE_BYTES * side * side,
        plan=source,
    )
    sources = tuple(source_of(each) for each in arrays)
    if all(each is not None for each in sources):
        made = source._replace(sources=sources)
        for number, plane in enumerate(planes):
            set_source(plane, Field(made, number, plane.dtype))
    return planes


def _resample_tile(
    sources: tuple[Source, ...], detector: int, window: Window, plan: Resampled
) -> tuple[Image, Image, Flags]:
    return plan._replace(sources=sources).read(detector, window, {})


#: Keywords that describe one array and its pixels, and not an image of all arrays.
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
