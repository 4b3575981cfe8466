"""Source of a resampled frame: gives any window of the grid from the arrays that touch it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gdask.io.sources import read_once
from gdask.kernels.geometry.areas import area_factors, area_nodes
from gdask.kernels.geometry.grid import Grid, input_window, map_nodes, orientation, pixel_map
from gdask.kernels.geometry.projection import Geometry
from gdask.kernels.resample.interpolation import kernel_margin
from gdask.kernels.resample.resampling import resample_onto
from gdask.model import DQ
from gdask.types import Flags, Image, Memo, Window

#: Interpolation kernels of each engine, the default first. Those of reproject have its names.
INTERPOLATIONS = {
    "gdask": ("quintic", "bilinear", "cubic", "lanczos3"),
    "reproject": ("bilinear", "nearest-neighbor", "bicubic", "adaptive", "exact"),
}
#: Margin and side (pixels) of the squares in which a spline is evaluated. A spline's pixel depends
#: on all pixels of the array, by a share that falls 3.7 times a pixel (Unser 1999): to 1e-18 at
#: this margin. The squares of the grid are always the same, so that the bits do not depend on the
#: tiling. (Whole arrays would take 3 s for each tile in place of 0.2 s.)
SPLINE_MARGIN, SPLINE_SQUARE = 32, 128


Planes = tuple[Image, Image, Flags]


class Resampled(NamedTuple):
    """The planes of a frame as a grid shows it.

    `sources.Field` makes a source of each of them.

    Attributes
    ----------
    sources
        Sources of data, variance and dq of the frame.
    geometries, footprints
        Geometry of each array, and the window of the grid that it can touch.
    size
        (ny, nx) of the arrays.
    grid
        The output's tangent plane, scale and shape.
    engine, interpolation
        As resample_to_common_frame takes them.
    ratio
        Area of an output pixel over that of the pixel for which a flat is 1.
    identity
        Token that stands for all of this in names of arrays.
    """

    sources: tuple[Any, ...]
    geometries: tuple[Geometry, ...]
    footprints: tuple[Window, ...]
    size: tuple[int, int]
    grid: Grid
    engine: str
    interpolation: str
    ratio: float
    identity: str

    @property
    def shape(self) -> tuple[int, int, int]:
        return (1, *self.grid.shape)

    def read(self, detector: int, window: Window, memo: Memo) -> tuple[Image, Image, Flags]:
        """Give data, variance and DQ in a window (y1, y2, x1, x2) of the grid."""
        shape = window[1] - window[0], window[3] - window[2]
        planes = np.empty(shape, "f4"), np.empty(shape, "f4"), np.empty(shape, "u2")
        self.fill(window, planes)
        return planes

    def parts(self, window: Window) -> Iterator[Part]:
        """Give the parts of a window that arrays touch, and what each is made from."""
        for number, footprint_of_array in enumerate(self.footprints):
            touched = _overlap(window, footprint_of_array)
            for made in self._made_windows(touched, footprint_of_array):
                shown = _overlap(touched, made)
                needed = self._input_window(number, made)
                if needed is not None and _has_pixels(shown):
                    yield Part(number, shown, made, needed)

    def _made_windows(self, touched: Window, limits: Window) -> list[Window]:
        """Give the windows of the grid that are each made as a whole, to show `touched`."""
        if not _has_pixels(touched):
            return []
        if self.interpolation != "bicubic":
            return [touched]
        starts = [
            range(first // SPLINE_SQUARE * SPLINE_SQUARE, last, SPLINE_SQUARE)
            for first, last in (touched[:2], touched[2:])
        ]
        side = SPLINE_SQUARE
        return [_overlap((y, y + side, x, x + side), limits) for y in starts[0] for x in starts[1]]

    def _input_window(self, number: int, made: Window) -> Window | None:
        """Give the window of an array that a window of the grid is made from, None without any."""
        if self.engine == "gdask":
            margin = kernel_margin(self.interpolation)
        else:
            from gdask.kernels.resample.reproject_methods import margin_of

            margin = margin_of(self.interpolation, self.ratio) or SPLINE_MARGIN
        return input_window(self.geometries[number], self.size, self.grid, made, margin)

    def fill(self, window: Window, planes: Planes) -> None:
        """Put a window of the grid into data, variance and DQ planes.

        The bits of a pixel do not depend on the window. Where two arrays overlap, the better pixel
        is taken; DQ is NO_DATA where there is none.
        """
        data, variance, dq = planes
        data[:], variance[:], dq[:] = 0, 0, DQ.NO_DATA
        fill_part = self._fill_part if self.engine == "gdask" else self._fill_reprojected
        for part in self.parts(window):
            memo: Memo = {}
            inputs = [read_once(source, part.array, part.needed, memo) for source in self.sources]
            fill_part(part, inputs, window, planes)

    def _fill_part(
        self,
        part: Part,
        inputs: Sequence[np.ndarray],
        window: Window,
        planes: tuple[Image, Image, Flags],
    ) -> None:
        """Resample windows of data, variance and DQ of one array onto a part of the planes."""
        geometry = self.geometries[part.array]
        nodes = map_nodes(geometry, self.grid, part.made)
        data, variance, dq = inputs
        resample_onto(
            (data, variance, dq),
            (part.needed[0], part.needed[2]),
            nodes,
            area_nodes(geometry, nodes, self.grid.scale**2 / self.ratio),
            part.made,
            planes,
            (part.made[0] - window[0], part.made[2] - window[2]),
            interpolation=self.interpolation,
            area_ratio=self.ratio,
            orientation=orientation(geometry, self.size, self.grid),
        )

    def _fill_reprojected(
        self,
        part: Part,
        inputs: Sequence[np.ndarray],
        window: Window,
        planes: tuple[Image, Image, Flags],
    ) -> None:
        """Do what `_fill_part` does by the engine reproject."""
        from gdask.kernels.resample.reproject_engine import resample_reprojected
        from gdask.kernels.resample.reproject_methods import map_margin_of

        geometry, margin = self.geometries[part.array], map_margin_of(self.interpolation)
        y1, y2, x1, x2 = part.made
        with_margin = (y1 - margin, y2 + margin, x1 - margin, x2 + margin)
        data, variance, dq = inputs
        data, variance, dq = resample_reprojected(
            data,
            variance,
            dq,
            *pixel_map(geometry, self.grid, with_margin),
            method=self.interpolation,
            area_ratio=self.ratio,
            origin=(part.needed[0], part.needed[2]),
            map_margin=margin,
        )
        area = self.grid.scale**2 / self.ratio
        factors = area_factors(geometry, self.grid, part.made, area)
        shown, place = (_slices(part.shown, origin) for origin in (part.made, window))
        made = data * factors[0], variance * factors[1], dq
        _take_better([plane[place] for plane in planes], [plane[shown] for plane in made])


class Part(NamedTuple):
    """Part of a window of the grid that one array shows.

    array: its number; shown: the part; made: the window of the grid that is resampled as a whole;
    needed: the window of the array that this takes.
    """

    array: int
    shown: Window
    made: Window
    needed: Window


def _overlap(first: Window, second: Window) -> Window:
    """Give what two windows have in common; without pixels where that is nothing."""
    return (
        max(first[0], second[0]),
        min(first[1], second[1]),
        max(first[2], second[2]),
        min(first[3], second[3]),
    )


def _has_pixels(window: Window) -> bool:
    return window[0] < window[1] and window[2] < window[3]


def _slices(window: Window, origin: Window) -> tuple[slice, slice]:
    """Give the place of a window in an image of the window `origin`."""
    y1, y2, x1, x2 = window
    return slice(y1 - origin[0], y2 - origin[0]), slice(x1 - origin[2], x2 - origin[2])


def _take_better(result: Sequence[np.ndarray], added: Sequence[np.ndarray]) -> None:
    """Replace the pixels of `result` where those of `added` have a lower DQ."""
    # OVERLAP, the sky of few frames, must not lose against NO_DATA, whose number is smaller.
    others = np.uint16(0xFFFF - DQ.OVERLAP)
    ranks = [2 * (dq & others) + (dq & ~others != 0) for dq in (added[2], result[2])]
    better = ranks[0] < ranks[1]
    for old, new in zip(result, added, strict=True):
        old[better] = new[better]
