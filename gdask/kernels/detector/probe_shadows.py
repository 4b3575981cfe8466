"""Find the shadow of a guide probe's arm on flat-fielded frames, and follow it to its faint tip.

The frames are measured in square bins of BIN_SIZE pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gdask.model import UNUSABLE, late
from gdask.types import Flags, Fraction, Image, Mask

if TYPE_CHECKING:
    from scipy import ndimage
else:
    ndimage = late("scipy.ndimage")

#: Pixels of a bin's side. Every other pixel of its rows and columns is used: 64 of 256.
BIN_SIZE = 16
#: A shadow reaches from its darkest part out to where this fraction of the light is missing ...
MIN_MISSING_LIGHT = 0.01
#: ... and this many bins further.
GROWN_BINS = 3
#: What covers more than this part of the bins is no shadow: then the rest of the field is brighter
#: than the sky.
MAX_SHADOW_SHARE = 0.2
#: A frame that should show a shadow of this many times `depth`, and shows none, has its arm
#: elsewhere.
REFUTING_DEPTH_RATIO = 1.5

BinnedLevels = npt.NDArray[np.float64]

_WITH_DIAGONALS = np.ones((3, 3))


def find_shadows(
    levels: Sequence[BinnedLevels], sky_places: npt.ArrayLike, depth: Fraction
) -> list[Mask]:
    """Find the bins of each frame that lie in the shadow of what reaches into the field.

    levels: per frame, `binned_medians` before the sky is subtracted, all of one shape. sky_places:
    (frames, 2), the pixel (x, y) of one and the same point of the sky on each frame; NaN for a
    frame whose arm is not at a star of this field. Returns a mask of bins per frame.

    A shadow is a connected region of bins that touches the edge of the illuminated field. The
    median of its bins is below that of the frame, by more than `depth` of it somewhere. The arm
    stays at its guide star: where one frame has its shadow, others have it too, moved with the
    star, and a tip too faint to be seen on them is flagged by that.
    """
    found = [_find_own_shadow(level, depth) for level in levels]
    places = np.asarray(sky_places, float)
    shadows = []
    for number, (level, own_shadow) in enumerate(zip(levels, found, strict=True)):
        mask = own_shadow.copy()
        for donor, shadow in enumerate(found):
            shift = places[number] - places[donor]
            if donor != number and shadow.any() and np.isfinite(shift).all():
                expected = _move_bins(np.where(shadow, _missing_light(levels[donor]), 0.0), shift)
                refuting = (expected > REFUTING_DEPTH_RATIO * depth) & np.isfinite(level)
                if not (refuting & ~own_shadow).any():
                    mask |= _move_bins(shadow.astype(float), shift) > 0
        shadows.append(mask)
    return shadows


def binned_medians(data: Image, dq: Flags) -> BinnedLevels:
    """Median of the usable pixels in each bin; NaN where less than a quarter of the bin is usable.

    data, dq: (ny, nx); every other row and column is used. Returns (my, mx) float64 in the
    unit of the data. Of an even number of pixels the lower middle one is taken.
    """
    (ny, nx), side = _bins_per_axis(data.shape), BIN_SIZE // 2
    sampled, flags = data[::2, ::2], dq[::2, ::2]
    values = np.full((ny * side, nx * side), np.inf, np.float32)
    values[: sampled.shape[0], : sampled.shape[1]] = np.where(
        (flags & np.uint16(UNUSABLE)) == 0, sampled, np.inf
    )
    samples = values.reshape(ny, side, nx, side).transpose(0, 2, 1, 3).reshape(ny, nx, -1)
    samples = np.sort(samples, axis=-1)
    number = np.count_nonzero(np.isfinite(samples), axis=-1)
    median_place = np.maximum(number - 1, 0)[..., None] // 2
    medians = np.take_along_axis(samples, median_place, axis=-1)[..., 0]
    return np.where(4 * number >= samples.shape[-1], medians, np.nan).astype(np.float64)


def binned_usable_counts(dq: Flags) -> npt.NDArray[np.int64]:
    """Count the usable pixels of each bin: (my, mx) for a plane of (ny, nx)."""
    ny, nx = _bins_per_axis(dq.shape)
    good = np.zeros((ny * BIN_SIZE, nx * BIN_SIZE), bool)
    good[: dq.shape[0], : dq.shape[1]] = (dq & np.uint16(UNUSABLE)) == 0
    # Along y first: sums of whole rows are fast, and up to 255 fit into a byte.
    in_columns = good.reshape(ny, BIN_SIZE, -1).sum(axis=1, dtype=np.uint8)
    return in_columns.reshape(ny, nx, BIN_SIZE).sum(axis=2, dtype=np.int64)


def unbin_window(bins: Mask, y1: int, y2: int, x1: int, x2: int) -> Mask:
    """Give the pixels of a window (0-based, ends excluded) the values of their bins."""
    first = y1 // BIN_SIZE
    rows = bins[first : -(-y2 // BIN_SIZE), np.arange(x1, x2) // BIN_SIZE]
    return rows[np.arange(y1, y2) // BIN_SIZE - first]


def _bins_per_axis(shape: tuple[int, ...]) -> tuple[int, int]:
    """Number of bins along y and x; the last ones may be cut by the edge of the array."""
    return -(-shape[0] // BIN_SIZE), -(-shape[1] // BIN_SIZE)


def _missing_light(level: BinnedLevels) -> BinnedLevels:
    """Fraction of the frame's median level that each bin lacks; 0 where a bin has no level."""
    frame_level = np.nanmedian(level) if np.isfinite(level).any() else 0.0
    return (
        np.where(np.isfinite(level), 1.0 - level / frame_level, 0.0)
        if frame_level > 0
        else np.zeros(level.shape)
    )


def _find_own_shadow(level: BinnedLevels, depth: Fraction) -> Mask:
    """Find the bins in the shadow that can be seen on a frame itself."""
    missing, dark = _missing_light(level), ~np.isfinite(level)
    regions, count = ndimage.label(missing > MIN_MISSING_LIGHT, structure=_WITH_DIAGONALS)
    size = np.bincount(regions.ravel(), minlength=count + 1)
    deepest = np.asarray(ndimage.maximum(missing, regions, np.arange(count + 1)))
    beside_dark = ndimage.binary_dilation(
        np.pad(dark, 1, constant_values=True), structure=_WITH_DIAGONALS
    )[1:-1, 1:-1]
    at_edge = np.isin(np.arange(count + 1), regions[beside_dark])
    small = size < MAX_SHADOW_SHARE * np.count_nonzero(~dark)
    is_shadow = (deepest > depth) & at_edge & small
    is_shadow[0] = False
    shadow = is_shadow[regions]
    if not shadow.any():
        return shadow
    return ndimage.binary_dilation(shadow, structure=_WITH_DIAGONALS, iterations=GROWN_BINS)


def _move_bins(bins: BinnedLevels, shift: npt.NDArray[np.float64]) -> BinnedLevels:
    """Move bins by a shift (x, y) in pixels.

    Each bin gets the largest value of those that come to lie on a part of it.
    """
    moved = np.zeros_like(bins)
    for dy in {int(np.floor(shift[1] / BIN_SIZE)), int(np.ceil(shift[1] / BIN_SIZE))}:
        for dx in {int(np.floor(shift[0] / BIN_SIZE)), int(np.ceil(shift[0] / BIN_SIZE))}:
            to_y, from_y = _overlap(dy, bins.shape[0])
            to_x, from_x = _overlap(dx, bins.shape[1])
            moved[to_y, to_x] = np.maximum(moved[to_y, to_x], bins[from_y, from_x])
    return moved


def _overlap(shift: int, size: int) -> tuple[slice, slice]:
    """Where the shifted bins of one axis arrive, and where they come from.

    Both slices are empty where nothing overlaps.
    """
    low, high = min(max(shift, 0), size), max(min(size + shift, size), 0)
    return slice(low, max(high, low)), slice(low - shift, max(high, low) - shift)
