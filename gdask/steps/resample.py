"""All arrays of a frame onto one common tangent plane, tile by tile, each tile from the input windows that touch it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import dask.array as da
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
from gdask.io.gather import gather
from gdask.io.lazy_arrays import band_chunks, source_of
from gdask.io.read import open_frame
from gdask.io.sources import Source, read_once
from gdask.io.stored import Memo
from gdask.kernels.geometry.areas import area_factors
from gdask.kernels.geometry.grid import Grid, common_grid, footprint, input_window
from gdask.kernels.geometry.pixel_map import MAX_MAP_ERROR, map_error, pixel_map
from gdask.kernels.geometry.projection import Geometry, pixel_area
from gdask.kernels.geometry.wcs import grid_from_header, grid_header
from gdask.kernels.resample.interpolation import kernel_margin, noise_correlation
from gdask.kernels.resample.resampling import resample
from gdask.model import DIMS, DQ, GdaskError
from gdask.params import Range
from gdask.steps.frames import PIXEL, arrays_of, on_group, pack, unpack
from gdask.types import Flags, Frame, Frames, Image, Window

#: Side (pixels) of an output tile of a few frames. Tiles are squares, so that what they need of an array that lies askew is
#: little more than they show; dask's ordering takes time and memory with the square of their number (3192: 16 s, 2.5 GB).
SIDE = 512
#: From so many frames on tiles have half that side: there are more of them, for the workers that many frames are worth.
MANY = 32
#: Bytes for each pixel of a tile that resampling it takes (the input window, the pixel map, the planes): measured 44 and
#: the input, with a fifth added.
TILE_BYTES = 70.0


class Resampled(NamedTuple):
    """A source of PIXEL: the pixels of a frame as a grid shows them.

    Attributes
    ----------
    sources
        Sources of data, variance and dq of the frame.
    geometries, footprints
        Of each array: its geometry, and the window of the grid that it can touch.
    size
        (ny, nx) of the arrays.
    ratio
        Area of an output pixel over that of the pixel for which a flat is 1.
    identity
        Stands for all of it in names of arrays.
    """

    sources: tuple[Any, ...]
    geometries: tuple[Geometry, ...]
    footprints: tuple[Window, ...]
    size: tuple[int, int]
    grid: Grid
    interpolation: str
    ratio: float
    identity: str

    @property
    def shape(self) -> tuple[int, int, int]:
        return (1, *self.grid.shape)

    @property
    def dtype(self) -> np.dtype:
        return PIXEL

    def read(self, detector: int, window: Window, memo: Memo) -> np.ndarray:
        shape = window[1] - window[0], window[3] - window[2]
        planes = np.empty(shape, "f4"), np.empty(shape, "f4"), np.empty(shape, "u2")
        self.fill(window, planes)
        return pack(*planes)

    def input_windows(self, window: Window) -> list[tuple[int, Window, Window]]:
        """Give (array, part of the window that it touches, window of the array that this part needs)."""
        found = []
        for number, (geometry, (top, bottom, left, right)) in enumerate(
            zip(self.geometries, self.footprints, strict=True)
        ):
            y1, y2 = max(window[0], top), min(window[1], bottom)
            x1, x2 = max(window[2], left), min(window[3], right)
            if y1 < y2 and x1 < x2:
                touched = y1, y2, x1, x2
                margin = kernel_margin(self.interpolation)
                needed = input_window(geometry, self.size, self.grid, touched, margin)
                if needed is not None:
                    found.append((number, touched, needed))
        return found

    def fill(self, window: Window, planes: tuple[Image, Image, Flags]) -> None:
        """Put a window of the grid into data, variance and DQ planes.

        The bits of a pixel do not depend on the window. Where two arrays overlap, the better pixel is taken; DQ is NO_DATA
        where there is none.
        """
        for plane, nothing in zip(planes, (0, 0, DQ.NO_DATA), strict=True):
            plane[:] = nothing
        for number, touched, needed in self.input_windows(window):
            memo: Memo = {}
            given = [read_once(source, number, needed, memo) for source in self.sources]
            y1, y2, x1, x2 = touched
            rows, columns = (
                slice(y1 - window[0], y2 - window[0]),
                slice(x1 - window[2], x2 - window[2]),
            )
            part = tuple(plane[rows, columns] for plane in planes)
            _merge(part, self._array(number, given, touched, needed))  # type: ignore[arg-type]

    def _array(
        self, number: int, given: Sequence[np.ndarray], touched: Window, needed: Window
    ) -> tuple[Image, Image, Flags]:
        """One array as a part of the grid shows it."""
        geometry = self.geometries[number]
        data, variance, dq = resample(
            *given,
            *pixel_map(geometry, self.grid, touched),
            interpolation=self.interpolation,
            area_ratio=self.ratio,
            origin=(needed[0], needed[2]),
        )
        area = self.grid.scale**2 / self.ratio
        of_data, of_variance = area_factors(geometry, self.grid, touched, area)
        return data * of_data, variance * of_variance, dq


@on_group
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
    radesys = str(primary_header(frames[0]).get("FRAME", "FK5")).strip().upper()
    header = grid_header(grid, radesys if radesys in ("FK5", "ICRS", "FK4") else "FK5")
    frames = tuple(_checked(frame, grid) for frame in frames)
    worst = max(small(frame, "solution")["map_px"] for frame in frames)
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
    placed = [(geometry, shape_of(frame)) for frame in frames for geometry in geometries(frame)]
    ra, dec = (float(descriptor(frames[0], name)) for name in ("target_ra", "target_dec"))
    return common_grid([g for g, _ in placed], [shape for _, shape in placed], scale, pa, ra, dec)


def _grid_of_file(path: str) -> Grid:
    reference = open_frame(path)
    header = array_headers(reference)[0].copy()
    header["NAXIS1"], header["NAXIS2"] = reference.sizes["x"], reference.sizes["y"]
    return grid_from_header(header)


def resampled_source(frame: Frame) -> Resampled | None:
    """Give what a frame's pixels are resampled from, where they are still those of resample_to_common_frame."""
    sources = [source_of(frame[name].data) for name in PIXEL.names or () if name in frame]
    records = {
        id(getattr(source, "records", None)): getattr(source, "records", None) for source in sources
    }
    found = next(iter(records.values()), None)
    return (
        found if len(sources) == 3 and len(records) == 1 and isinstance(found, Resampled) else None
    )


def _checked(frame: Frame, grid: Grid) -> Frame:
    """The Frame with the error of its sampled map (px) in its `solution`; GdaskError where it exceeds MAX_MAP_ERROR."""
    error = _map_error(frame, grid)
    if error > MAX_MAP_ERROR:
        raise GdaskError(
            f"{frame.attrs['name']}: the sampled pixel map is wrong by {error:.1e} px, at most {MAX_MAP_ERROR:g} was expected;"
            " the fitted correction bends too fast: align with a lower order"
        )
    return with_small(frame, solution=(small(frame, "solution") or {}) | {"map_px": error})


def _map_error(frame: Frame, grid: Grid) -> float:
    """The worst error (px) of the sampled map over the frame, at points between its nodes along and across each array."""
    worst = 0.0
    for geometry in geometries(frame):
        y1, y2, x1, x2 = footprint(geometry, shape_of(frame), grid)
        if y2 > y1:
            middle = (y1 + y2) // 2
            across = map_error(geometry, grid, (middle, middle + 1, x1, x2))
            worst = max(worst, across, map_error(geometry, grid, (y1, y2, x1, x1 + 1)))
    return worst


def _resample_frame(frame: Frame, grid: Grid, header: Any, interpolation: str, side: int) -> Frame:
    found, size = geometries(frame), shape_of(frame)
    area = (
        frame.attrs.get("reference_area")
        or primary_header(frame).get("FLATAREA")
        or reference_area(found, size)
    )
    ratio = grid.scale**2 / area
    arrays = arrays_of(frame)
    footprints = tuple(footprint(each, size, grid) for each in found)
    identity = tokenize([each.name for each in arrays], found, grid, interpolation, ratio)
    source = Resampled((), found, footprints, size, grid, interpolation, ratio, identity)
    variables = unpack(_tiles(arrays, source, side))
    base = array_headers(frame)[0].copy()
    for keyword in _ARRAY_KEYWORDS:
        base.remove(keyword, ignore_missing=True)
    base.update(header)
    base.update(correlation(interpolation, ratio))
    onto = _on_grid(frame, variables, grid, Header.of(base))
    onto = with_headers(onto, primary={"PIXSCALE": (grid.scale, "Pixel scale (arcsec)")})
    placed = {"geometry": found, **(small(frame, "solution") or {})}
    return with_small(onto, placed=placed)


def _on_grid(frame: Frame, variables: dict[str, da.Array], grid: Grid, header: Header) -> Frame:
    """A Frame of one image on the grid, with the attributes of `frame`."""
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


def _tiles(arrays: Sequence[da.Array], source: Resampled, side: int) -> da.Array:
    """PIXEL of the resampled frame in squares of `side` pixels."""
    chunks = ((1,), *(band_chunks(length, side) for length in source.grid.shape))

    def windows(_: int, __: int, window: Window) -> list[tuple[int, Window]]:
        return [(number, needed) for number, _, needed in source.input_windows(window)]

    packed = gather(
        _resample_tile,
        arrays,
        name=f"resample-{tokenize(source.identity, side)}",
        dtype=PIXEL,
        chunks=chunks,
        windows=windows,
        scratch=TILE_BYTES * side * side,
        plan=source,
    )
    sources = tuple(source_of(each) for each in arrays)
    if all(each is not None for each in sources):
        set_source(packed, source._replace(sources=sources))
    return packed


def _resample_tile(
    sources: tuple[Source, ...], detector: int, window: Window, plan: Resampled
) -> np.ndarray:
    return plan._replace(sources=sources).read(detector, window, {})


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


def _merge(result: tuple[Image, Image, Flags], added: tuple[Image, Image, Flags]) -> None:
    better = added[2] < result[2]
    for old, new in zip(result, added, strict=True):
        old[better] = new[better]
