"""The shadow of a guide probe's arm on flat-fielded frames: found where it is deep, followed to where it is lost."""

from __future__ import annotations

from collections.abc import Sequence

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
#: A frame that should show a shadow of this many times `depth`, and shows none, has its arm elsewhere.
REFUTED = 1.5

Cells = npt.NDArray[np.float64]


def shadow_cells(levels: Sequence[Cells], places: npt.ArrayLike, depth: Fraction) -> list[Mask]:
    """True in the cells of each frame that lie in the shadow of what reaches into the field from its edge.

    levels: per frame, `cell_medians` before the sky is subtracted, all of one shape. places: (frames, 2), the pixel
    (x, y) of one and the same point of the sky on each frame; NaN for a frame whose arm is not at a star of this field.

    A shadow is a connected region of cells whose median is below that of the frame, by more than `depth` of it
    somewhere, that touches the edge of what is lit. The arm stays at its guide star: where one frame has its shadow,
    others have it too, moved with the star, and a tip too faint to be seen on them is flagged by that.
    """
    found = [_own_shadow(level, depth) for level in levels]
    at = np.asarray(places, float)
    shadows = []
    for number, (level, own) in enumerate(zip(levels, found, strict=True)):
        mask = own.copy()
        for other, shadow in enumerate(found):
            shift = at[number] - at[other]
            if other != number and shadow.any() and np.isfinite(shift).all():
                expected = _moved(np.where(shadow, _missing(levels[other]), 0.0), shift)
                if not ((expected > REFUTED * depth) & np.isfinite(level) & ~own).any():
                    mask |= _moved(shadow.astype(float), shift) > 0
        shadows.append(mask)
    return shadows


def cell_medians(data: Image, dq: Flags) -> Cells:
    """Median of the good pixels in cells of CELL x CELL pixels, NaN where less than a quarter of the cell is good."""
    good = (dq & np.uint16(UNUSABLE)) == 0
    ny, nx = (-(-size // CELL) for size in data.shape)
    values = np.full((ny * CELL, nx * CELL), np.inf, np.float32)
    values[: data.shape[0], : data.shape[1]] = np.where(good, data, np.inf)
    samples = (
        values[::2, ::2]
        .reshape(ny, CELL // 2, nx, CELL // 2)
        .transpose(0, 2, 1, 3)
        .reshape(ny, nx, -1)
    )
    samples = np.sort(samples, axis=-1)
    number = np.isfinite(samples).sum(axis=-1)
    middle = np.take_along_axis(samples, np.maximum(number - 1, 0)[..., None] // 2, axis=-1)[..., 0]
    return np.where(4 * number >= samples.shape[-1], middle, np.nan).astype(np.float64)


def cell_counts(dq: Flags) -> npt.NDArray[np.int64]:
    """How many pixels of each cell are usable."""
    ny, nx = (-(-size // CELL) for size in dq.shape)
    good = np.zeros((ny * CELL, nx * CELL), bool)
    good[: dq.shape[0], : dq.shape[1]] = (dq & np.uint16(UNUSABLE)) == 0
    return good.reshape(ny, CELL, nx, CELL).sum(axis=(1, 3), dtype=np.int64)


def pixels_of(cells: Mask, y1: int, y2: int, x1: int, x2: int) -> Mask:
    """The cells' values at the pixels of a window (0-based, ends excluded)."""
    return cells[np.arange(y1, y2)[:, None] // CELL, np.arange(x1, x2) // CELL]


def _missing(level: Cells) -> Cells:
    """The fraction of the frame's median level that each cell lacks; 0 where a cell has no level."""
    middle = np.nanmedian(level) if np.isfinite(level).any() else 0.0
    return (
        np.where(np.isfinite(level), 1.0 - level / middle, 0.0)
        if middle > 0
        else np.zeros(level.shape)
    )


def _own_shadow(level: Cells, depth: Fraction) -> Mask:
    missing, dark = _missing(level), ~np.isfinite(level)
    regions, count = ndimage.label(missing > FLOOR, structure=np.ones((3, 3)))
    size = np.bincount(regions.ravel(), minlength=count + 1)
    deepest = np.asarray(ndimage.maximum(missing, regions, np.arange(count + 1)))
    beside = ndimage.binary_dilation(
        np.pad(dark, 1, constant_values=True), structure=np.ones((3, 3))
    )[1:-1, 1:-1]
    at_edge = np.isin(np.arange(count + 1), regions[beside])
    shadow = (deepest > depth) & at_edge & (size < LARGEST * np.count_nonzero(~dark))
    shadow[0] = False
    grown = shadow[regions]
    return (
        ndimage.binary_dilation(grown, structure=np.ones((3, 3)), iterations=GROW)
        if grown.any()
        else grown
    )


def _moved(cells: Cells, shift: npt.NDArray[np.float64]) -> Cells:
    """Cells moved by a shift (x, y) in pixels: the largest value of any cell that comes to lie on a part of each."""
    out = np.zeros_like(cells)
    for dy in {int(np.floor(shift[1] / CELL)), int(np.ceil(shift[1] / CELL))}:
        for dx in {int(np.floor(shift[0] / CELL)), int(np.ceil(shift[0] / CELL))}:
            (to_y, from_y), (to_x, from_x) = (
                _overlap(dy, cells.shape[0]),
                _overlap(dx, cells.shape[1]),
            )
            out[to_y, to_x] = np.maximum(out[to_y, to_x], cells[from_y, from_x])
    return out


def _overlap(shift: int, size: int) -> tuple[slice, slice]:
    """Where the shifted cells of one axis arrive, and where they come from; empty where nothing overlaps."""
    low, high = min(max(shift, 0), size), max(min(size + shift, size), 0)
    return slice(low, max(high, low)), slice(low - shift, max(high, low) - shift)
