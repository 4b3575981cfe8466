"""The shadow of a guide probe's arm on a flat-fielded frame."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from gdask.model import UNUSABLE
from gdask.types import Flags, Fraction, Image, Mask

#: Pixels of a cell's side. Every other pixel of a row and column is looked at: 64 of 256.
CELL = 16
#: A shadow reaches from its darkest part out to where this fraction of the light is missing, and GROW cells further.
FLOOR, GROW = 0.01, 3
#: What covers more than this part of the cells is no shadow: the rest of the field is brighter than the sky.
LARGEST = 0.2


def shadow_mask(data: Image, dq: Flags, depth: Fraction) -> Mask:
    """True in the shadow of what reaches into the field from its edge; planes (ny, nx), sky not yet subtracted.

    A shadow is a connected region of cells whose median is below that of the frame, by more than `depth` of it
    somewhere, that touches the edge of what is lit.
    """
    level = cell_medians(data, (dq & np.uint16(UNUSABLE)) == 0)
    dark = ~np.isfinite(level)
    if dark.all() or not np.nanmedian(level) > 0:
        return np.zeros(data.shape, bool)
    missing = np.where(dark, 0.0, 1.0 - level / np.nanmedian(level))
    regions, count = ndimage.label(missing > FLOOR, structure=np.ones((3, 3)))
    size = np.bincount(regions.ravel(), minlength=count + 1)
    deepest = np.asarray(ndimage.maximum(missing, regions, np.arange(count + 1)))
    beside = ndimage.binary_dilation(np.pad(dark, 1, constant_values=True), structure=np.ones((3, 3)))[1:-1, 1:-1]
    at_edge = np.isin(np.arange(count + 1), regions[beside])
    shadow = (deepest > depth) & at_edge & (size < LARGEST * np.count_nonzero(~dark))
    shadow[0] = False
    grown = shadow[regions]
    if grown.any():
        grown = ndimage.binary_dilation(grown, structure=np.ones((3, 3)), iterations=GROW)
    return grown.repeat(CELL, 0).repeat(CELL, 1)[: data.shape[0], : data.shape[1]]


def cell_medians(data: Image, good: Mask) -> npt.NDArray[np.float64]:
    """Median of the good pixels in cells of CELL x CELL pixels, NaN where less than a quarter of the cell is good."""
    ny, nx = (-(-size // CELL) for size in data.shape)
    values = np.full((ny * CELL, nx * CELL), np.inf, np.float32)
    values[: data.shape[0], : data.shape[1]] = np.where(good, data, np.inf)
    samples = values[::2, ::2].reshape(ny, CELL // 2, nx, CELL // 2).transpose(0, 2, 1, 3).reshape(ny, nx, -1)
    samples = np.sort(samples, axis=-1)
    number = np.isfinite(samples).sum(axis=-1)
    middle = np.take_along_axis(samples, np.maximum(number - 1, 0)[..., None] // 2, axis=-1)[..., 0]
    return np.where(4 * number >= samples.shape[-1], middle, np.nan).astype(np.float64)
