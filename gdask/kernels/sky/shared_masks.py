"""What frames of one sky tell together.

Object masks that they share: what is found on one frame is masked on all. Whether the target fills
the field: then the level of a frame is not that of its sky.

A star is missed on a frame where all of its sky frames have light at the same pixels. Another
frame, whose dither puts the star elsewhere, shows it. Masks are compared in blocks of
OUTLINE_PIXELS pixels and in cells of the sky of the same size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gdask.types import Electrons, Fraction, Mask

Floats = npt.NDArray[np.float64]

#: Side (pixels) of the blocks of an array whose outlines frames share.
OUTLINE_PIXELS = 4
#: A place is masked on all frames where this share of the frames that show it, at least one, have
#: found something: one of up to ten. (A false find of one frame among many is not shared.)
MIN_FOUND_SHARE = 0.1
#: Masked blocks of a frame by which it is brought onto the others, at most.
_SAMPLE_BLOCKS = 2000
#: An overlap with the others has to grow by this factor to be worth a shift.
_MIN_GAIN = 1.1
#: By this share the overlap counts less at the largest shift.
_SHIFT_PENALTY = 0.7
#: Keys of cells are row * _KEY_ROW + column.
_KEY_ROW = 2**32

#: A mesh cell holds light of the target where it is brighter than the field's darkest cells by
#: more than this fraction of the sky's level. With off-target sky frames, which share the errors
#: of the flat, a smaller excess can be seen than without them.
MIN_EXCESS_WITH_SKY, MIN_EXCESS_WITHOUT_SKY = 0.003, 0.02
#: The level of the darkest cells is this quantile of all.
DARKEST_QUANTILE = 0.1
#: The target fills the field where its light is seen in more than this part of the cells.
MIN_FILLED_SHARE = 0.4
#: The target's frames must be brighter than their sky frames by this many standard errors.
MIN_EXCESS_SIGMA = 3.0

Keys = npt.NDArray[np.int64]


class Outline(NamedTuple):
    """The masked blocks of one array, and where they are on the sky.

    frame: number of the frame. blocks: (my, mx), True where something is masked. x, y: of the
    corners of blocks, in cells of the sky (my + 1, mx + 1).
    """

    frame: int
    blocks: Mask
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]


def outline(mask: Mask) -> Mask:
    """Give the blocks, OUTLINE_PIXELS a side, of a mask (ny, nx) in which a pixel is set."""
    ny, nx = mask.shape
    rows = np.logical_or.reduceat(mask, np.arange(0, ny, OUTLINE_PIXELS), axis=0)
    return np.logical_or.reduceat(rows, np.arange(0, nx, OUTLINE_PIXELS), axis=1)


def share_outlines(outlines: Sequence[Outline], reach: int) -> list[Mask]:
    """Give the blocks of each array to mask beside its own: what other frames have found there.

    Blocks next to masked ones of the array itself do not count: what it has found itself has its
    own outline. reach: cells by which the pointing of a frame may be off; within it the frames are
    brought onto one another by their masks. All is done in whole numbers: the same for any order of
    sums.
    """
    numbers = sorted({each.frame for each in outlines})
    of_frame = {n: [each for each in outlines if each.frame == n] for n in numbers}
    found = {n: _unique([_masked_cells(each) for each in of_frame[n]]) for n in numbers}
    shifts = _register([found[n] for n in numbers], reach)
    moved = {n: found[n] + shift for n, shift in zip(numbers, shifts, strict=True)}
    keys, votes = np.unique(np.concatenate([*moved.values(), _none()]), return_counts=True)
    shown = np.zeros(len(keys), np.int64)
    cells = {}
    for n, shift in zip(numbers, shifts, strict=True):
        cells[n] = [_middle_cells(each) + shift for each in of_frame[n]]
        places = [_places(each.ravel(), keys) for each in cells[n]]
        shown[_unique([each[each >= 0] for each in places])] += 1
    shared = keys[votes >= np.maximum(np.ceil(MIN_FOUND_SHARE * shown), 1)]
    added = {}
    for n in numbers:
        for each, of_blocks in zip(of_frame[n], cells[n], strict=True):
            is_shared = _places(of_blocks.ravel(), shared).reshape(of_blocks.shape) >= 0
            added[id(each)] = is_shared & ~_widened(each.blocks)
    return [added[id(each)] for each in outlines]


def _none() -> Keys:
    return np.zeros(0, np.int64)


def _unique(parts: Sequence[Keys]) -> Keys:
    """Give the keys of all parts, each once, rising.

    As np.unique does, whose table of hashes takes 60 times as long for keys like these.
    """
    keys = np.sort(np.concatenate([*parts, _none()]))
    is_first = np.ones(len(keys), bool)
    is_first[1:] = keys[1:] != keys[:-1]
    return keys[is_first]


def _keys(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> Keys:
    """Give the keys of the cells in which places are."""
    return np.floor(y).astype(np.int64) * _KEY_ROW + np.floor(x).astype(np.int64)


def _masked_cells(each: Outline) -> Keys:
    """Give the keys of the cells in which the corners of masked blocks are."""
    j, i = np.nonzero(each.blocks)
    corners = [(j + down, i + right) for down in (0, 1) for right in (0, 1)]
    return _unique([_keys(each.x[corner], each.y[corner]) for corner in corners])


def _middle_cells(each: Outline) -> Keys:
    """Give the key of the cell in which the middle of each block is, (my, mx)."""
    x, y = (0.5 * (corners[:-1, :-1] + corners[1:, 1:]) for corners in (each.x, each.y))
    return _keys(x, y)


def _places(wanted: Keys, known: Keys) -> Keys:
    """Give the place of each wanted key among the known ones, which rise; -1 where it is none."""
    if not len(known):
        return np.full(len(wanted), -1)
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[places] == wanted, places, -1)


def _widened(blocks: Mask) -> Mask:
    """Give the masked blocks and all that touch them."""
    rows = blocks.copy()
    rows[1:] |= blocks[:-1]
    rows[:-1] |= blocks[1:]
    wide = rows.copy()
    wide[:, 1:] |= rows[:, :-1]
    wide[:, :-1] |= rows[:, 1:]
    return wide


def _register(found: Sequence[Keys], reach: int) -> list[int]:
    """Give the shift of each frame, as a difference of keys, that brings it onto those before."""
    shifts, known = [], _none()
    for keys in found:
        shift = _best_shift(keys, known, reach) if len(known) and len(keys) else 0
        shifts.append(shift)
        known = _unique([known, keys + shift])
    return shifts


def _best_shift(keys: Keys, known: Keys, reach: int) -> int:
    """Give the shift, at most `reach` cells along each axis, with the largest overlap.

    A large shift counts less, as headers are seldom far off: a few objects fit at many places.
    """
    sample = keys[:: max(len(keys) // _SAMPLE_BLOCKS, 1)]

    def overlap(down: int, right: int) -> float:
        found = np.count_nonzero(_places(sample + down * _KEY_ROW + right, known) >= 0)
        return float(found * (1 - _SHIFT_PENALTY * max(abs(down), abs(right)) / max(reach, 1)))

    best = start = (overlap(0, 0), 0, 0)
    step = max(reach // 3, 1)
    while step:
        middle = best
        for down in range(-3 * step, 3 * step + 1, step):
            for right in range(-3 * step, 3 * step + 1, step):
                place = middle[1] + down, middle[2] + right
                if max(map(abs, place)) <= reach:
                    found = overlap(*place), *place
                    best = found if found[0] > best[0] else best
        step //= 3
    return best[1] * _KEY_ROW + best[2] if best[0] > _MIN_GAIN * start[0] else 0


# Light of the target ------------------------------------------------------------------------


class TargetLight(NamedTuple):
    """How far the light of the target extends.

    fills_field: whether the target fills the field. share: part of the cells in which its light is
    seen. excess: by how much its frames are brighter than their sky frames, and error: that of the
    excess (both NaN without off-target sky).
    """

    fills_field: bool
    share: Fraction
    excess: Electrons
    error: Electrons


def find_target_light(
    levels: Floats, sky_levels: Floats | None, times: Floats, sky_times: Floats
) -> TargetLight:
    """Find whether the target fills the field.

    levels: (frames, arrays, my, mx), levels (e-) in the mesh cells of the target's frames, without
    sources. sky_levels: the same of off-target sky frames, or None where the target's own frames
    are the sky. times, sky_times: when they were taken, in seconds.
    """
    if sky_levels is None:
        darkest = np.quantile(levels, DARKEST_QUANTILE, axis=(2, 3), keepdims=True)
        share = float(np.mean(levels > darkest * (1 + MIN_EXCESS_WITHOUT_SKY)))
        return TargetLight(share > MIN_FILLED_SHARE, share, float("nan"), float("nan"))
    sky = np.median(sky_levels, axis=(1, 2, 3))
    pattern = np.median(sky_levels / sky[:, None, None, None], axis=0)
    flattened = levels / pattern
    darkest = np.quantile(flattened, DARKEST_QUANTILE, axis=(1, 2, 3), keepdims=True)
    share = float(np.mean(flattened > darkest * (1 + MIN_EXCESS_WITH_SKY)))
    excess = np.median(flattened, axis=(1, 2, 3)) - interpolate_in_time(times, sky_times, sky)
    error = max(interpolation_error(sky_times, sky), 1e-3 * float(np.median(sky)))
    error_of_mean, mean = float(error / np.sqrt(len(times))), float(np.mean(excess))
    fills_field = share > MIN_FILLED_SHARE and mean > MIN_EXCESS_SIGMA * error_of_mean
    return TargetLight(bool(fills_field), share, mean, error_of_mean)


def interpolate_in_time(when: npt.ArrayLike, times: Floats, values: Floats) -> Floats:
    """Interpolate values to other times: linear between neighbours, constant outside."""
    order = np.argsort(times, kind="stable")
    return np.interp(
        np.asarray(when, dtype=np.float64), np.asarray(times)[order], np.asarray(values)[order]
    )


def interpolation_error(times: Floats, values: Floats) -> float:
    """Rms error of `interpolate_in_time`, from each inner value against its two neighbours.

    It is 0 with fewer than three values.
    """
    order = np.argsort(times, kind="stable")
    t, v = np.asarray(times)[order], np.asarray(values)[order]
    rest = [v[i] - np.interp(t[i], np.delete(t, i), np.delete(v, i)) for i in range(1, len(t) - 1)]
    return float(np.sqrt(np.mean(np.square(rest)))) if rest else 0.0
