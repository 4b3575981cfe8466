"""What graphs of a product show, as plain numbers: maps in cells, pulls of pixels, residuals."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gdask.io.tables import geometries_of
from gdask.kernels.geometry.projection import tangent_plane, to_sky
from gdask.plot.planes import Planes
from gdask.types import Arcsec, Fraction, Image

Floats = npt.NDArray[np.float64]

#: Cells along the longer side of a map, points along the side of one at least, and good ones that
#: it needs.
CELLS, MIN_SIDE, MIN_PIXELS = 32, 6, 12
#: Cells along a side of the field in which residuals are averaged, at most; stars that each needs.
RESIDUAL_CELLS, MIN_RESIDUALS = 14, 3
#: 1.4826 median absolute deviations are a standard deviation; 1.2533 errors of a mean are that of a
#: median (both of a Gaussian).
MAD_TO_SIGMA, MEDIAN_ERROR = 1.4826, 1.2533


class CellMap(NamedTuple):
    """Medians in square cells of an array.

    Attributes
    ----------
    values
        (rows, columns), NaN where a cell has fewer than MIN_PIXELS pixels; row 0 is the lowest.
    errors
        Error of each median, from the scatter of the cell's pixels.
    side
        Side of a cell in pixels of the array.
    """

    values: Floats
    errors: Floats
    side: int


def background_map(planes: Planes) -> tuple[CellMap, float]:
    """Give the sky that is left in cells, and the noise of a pixel, in the unit of the pixels."""
    found = _cell_map(planes, planes.data, planes.empty)
    values = planes.data[planes.empty]
    noise = robust_scatter(values)
    return found, noise


def depth_map(planes: Planes) -> CellMap:
    """Give depth in cells over that of the median cell (mag): -1.25 log10 of the medians of VAR.

    Negative where it is less deep. Pixels of objects do not count.
    """
    if planes.variance is None:
        return CellMap(np.full((1, 1), np.nan), np.full((1, 1), np.nan), max(planes.shape))
    found = _cell_map(planes, planes.variance, planes.empty)
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = -1.25 * np.log10(found.values)
    known = depth[np.isfinite(depth)]
    middle = float(np.median(known)) if len(known) else math.nan
    return found._replace(values=depth - middle)


def _cell_map(planes: Planes, values: Image, good: npt.NDArray[np.bool_]) -> CellMap:
    ny, nx = values.shape
    width = max(MIN_SIDE, -(-max(ny, nx) // CELLS))
    shape = -(-ny // width), -(-nx // width)
    medians, errors = np.full(shape, np.nan), np.full(shape, np.nan)
    for row in range(shape[0]):
        for column in range(shape[1]):
            box = np.s_[row * width : (row + 1) * width, column * width : (column + 1) * width]
            pixels = values[box][good[box]]
            if len(pixels) >= MIN_PIXELS:
                medians[row, column] = np.median(pixels)
                scatter = robust_scatter(pixels)
                errors[row, column] = MEDIAN_ERROR * scatter / math.sqrt(len(pixels))
    return CellMap(medians, errors, width * planes.step)


def robust_scatter(values: npt.NDArray[Any]) -> float:
    """Give 1.4826 median absolute deviations from the median; 0 of no values."""
    if not len(values):
        return 0.0
    return MAD_TO_SIGMA * float(np.median(np.abs(values - np.median(values))))


def unevenness(found: CellMap, noise: float) -> Fraction:
    """Give the scatter of the cells beyond their errors, over the noise of a pixel."""
    known = np.isfinite(found.values)
    if known.sum() < 4 or not noise > 0:
        return math.nan
    beyond = np.var(found.values[known]) - np.mean(found.errors[known] ** 2)
    return math.sqrt(max(float(beyond), 0.0)) / noise


def pulls(planes: Planes, correlation: float = 1.0) -> Image:
    """Give (pixel - sky) / sigma of empty pixels, 1-D.

    sigma is sqrt(VAR), times `correlation` (CORRPIX: the rms of one resampled pixel over it); the
    sky is the median of the pixel's cell, so that an uneven sky is not taken for noise.
    """
    if planes.variance is None or not planes.empty.any():
        return np.empty(0, np.float32)
    found = _cell_map(planes, planes.data, planes.empty)
    width, (ny, nx) = found.side // planes.step, planes.data.shape
    sky = found.values.astype(np.float32).repeat(width, axis=0)[:ny].repeat(width, axis=1)[:, :nx]
    values = planes.data[planes.empty] - sky[planes.empty]
    values /= np.sqrt(planes.variance[planes.empty]) * np.float32(correlation)
    return values[np.isfinite(values)]


# Residuals -------------------------------------------------------------------------------------


class Residuals(NamedTuple):
    """Residuals of stars in frames, in the field about the telescope's pointing.

    Attributes
    ----------
    xi, eta
        Place of each measurement (arcsec East and North of its frame's pointing).
    dx, dy
        Measured minus the star's mean (arcsec, East and North).
    weights
        1 / error^2 per axis (arcsec^-2); the error is that of the pixels, and the scatter of the
        measurements whose errors are the least, in quadrature.
    stars
        Number of stars.
    """

    xi: Floats
    eta: Floats
    dx: Floats
    dy: Floats
    weights: Floats
    stars: int

    @property
    def rms(self) -> Arcsec:
        """Give the weighted rms per axis."""
        squares = (self.dx**2 + self.dy**2) / 2
        return math.sqrt(float(np.sum(self.weights * squares) / np.sum(self.weights)))


class ResidualCells(NamedTuple):
    """Weighted mean residual in cells of the field with MIN_RESIDUALS or more.

    xi, eta, dx, dy: arcsec, of each cell. over_chance: rms of the means over that of random
    residuals with the same weights; 1 is random.
    """

    xi: Floats
    eta: Floats
    dx: Floats
    dy: Floats
    over_chance: float


def residuals_of(tables: dict[str, Any]) -> Residuals | None:
    """Give the residuals of a stack by its tables RESIDUALS, FRAMES, ASTROM; None without them."""
    if not {"RESIDUALS", "FRAMES", "ASTROM"} <= set(tables):
        return None
    measured, frames, arrays = (tables[name] for name in ("RESIDUALS", "FRAMES", "ASTROM"))
    if not {"NAME", "ARRAY", "RA", "DEC"} <= set(arrays.colnames) or not len(measured):
        return None
    xi, eta = _places_in_field(measured, frames, arrays)
    dx, dy = (np.asarray(measured[name], float) for name in ("DX", "DY"))
    squares = sum(np.square(np.asarray(measured[name], float)) for name in ("DX_ERR", "DY_ERR")) / 2
    known = np.isfinite(xi) & np.isfinite(eta) & np.isfinite(dx) & np.isfinite(dy)
    known &= np.isfinite(squares) & (squares >= 0)
    if not known.any():
        return None
    xi, eta, dx, dy, squares = (values[known] for values in (xi, eta, dx, dy, squares))
    best = squares <= np.percentile(squares, 25)
    floor = robust_scatter(np.concatenate([dx[best], dy[best]]))
    weights = 1 / np.maximum(squares + floor**2, 1e-12)
    stars = len(np.unique(np.asarray(measured["STAR"])[known]))
    return Residuals(xi, eta, dx, dy, weights, stars)


def _places_in_field(measured: Any, frames: Any, arrays: Any) -> tuple[Floats, Floats]:
    """Give the place of each row of RESIDUALS about its frame's pointing; NaN if unknown."""
    names = {int(row["FRAME"]): _text(row["NAME"]) for row in frames}
    rows = {(_text(row["NAME"]), int(row["ARRAY"])): number for number, row in enumerate(arrays)}
    geometries = geometries_of(arrays)
    xi, eta = np.full(len(measured), np.nan), np.full(len(measured), np.nan)
    frame, array = (np.asarray(measured[name], int) for name in ("FRAME", "ARRAY"))
    x, y = (np.asarray(measured[name], float) - 1 for name in ("X", "Y"))
    for key in sorted(set(zip(frame.tolist(), array.tolist(), strict=True))):
        row = rows.get((names.get(key[0], ""), key[1]))
        if row is not None:
            those = (frame == key[0]) & (array == key[1])
            sky = to_sky(geometries[row], x[those], y[those])
            xi[those], eta[those] = tangent_plane(*sky, arrays["RA"][row], arrays["DEC"][row])
    return xi, eta


def _text(value: object) -> str:
    return (value.decode() if isinstance(value, bytes) else str(value)).strip()


def residual_cells(found: Residuals) -> ResidualCells:
    """Average residuals in square cells of the field, which have eight measurements in the mean."""
    count = int(np.clip(math.sqrt(len(found.xi) / 8), 2, RESIDUAL_CELLS))
    low = np.array([found.xi.min(), found.eta.min()])
    side = max(np.ptp(found.xi), np.ptp(found.eta), 1e-6) / count
    places = np.stack([found.xi, found.eta], axis=1)
    cells = np.minimum((places - low) // side, count - 1).astype(int)
    _, numbers, sizes = np.unique(
        cells[:, 1] * count + cells[:, 0], return_inverse=True, return_counts=True
    )
    sums = np.bincount(numbers, found.weights)
    means = [
        np.bincount(numbers, found.weights * values) / sums
        for values in (found.xi, found.eta, found.dx, found.dy)
    ]
    enough = sizes >= MIN_RESIDUALS
    xi, eta, dx, dy = (values[enough] for values in means)
    expected = np.mean(found.weights * (found.dx**2 + found.dy**2) / 2)
    chi = sums[enough] * (dx**2 + dy**2) / 2
    over = math.sqrt(np.mean(chi) / expected) if len(chi) and expected > 0 else math.nan
    return ResidualCells(xi, eta, dx, dy, over)


# Sources ---------------------------------------------------------------------------------------


def stars_of(catalog: Any, scale: Arcsec | None) -> tuple[Floats, Floats, Floats]:
    """Give x, y (pixels, 0-based) and FWHM (arcsec; pixels without a scale) of unblended stars.

    Stars have CLASS_STAR above 0.8 and no FLAGS.
    """
    columns = ("X_IMAGE", "Y_IMAGE", "FWHM_IMAGE", "CLASS_STAR", "FLAGS")
    if catalog is None or not set(columns) <= set(catalog.colnames):
        return np.empty(0), np.empty(0), np.empty(0)
    x, y, fwhm, star, flags = (np.asarray(catalog[name], float) for name in columns)
    good = (star > 0.8) & (flags == 0) & np.isfinite(x + y + fwhm) & (fwhm > 0)
    return x[good] - 1, y[good] - 1, fwhm[good] * (scale or 1.0)
