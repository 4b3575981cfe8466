"""Does the target fill the field? Then the level of a frame is not that of its sky."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gdask.types import Electrons, Fraction

Floats = npt.NDArray[np.float64]

#: Part of the sky's level by which a cell must be brighter than the field's darkest ones to hold light of the target:
#: beside off-target sky frames, which share the flat's errors, and without them.
FAINT, FAINT_ALONE = 0.003, 0.02
#: The darkest cells of a frame: this part of them.
DARKEST = 0.1
#: The target fills the field where its light is seen in more than this part of the cells.
FILLS = 0.4
#: The target's frames must be brighter than their sky frames by this many standard errors.
SIGNIFICANT = 3.0


class Verdict(NamedTuple):
    """fills: the target fills the field; share: part of the cells in which its light is seen; excess: by how much its
    frames are brighter than their sky frames, and error: of that (NaN without off-target sky)."""

    fills: bool
    share: Fraction
    excess: Electrons
    error: Electrons


def judge(cells: Floats, skies: Floats | None, times: Floats, sky_times: Floats) -> Verdict:
    """Whether the target fills the field.

    cells: (frames, arrays, my, mx), sky level of cells of the target's frames, sources left out, e-. skies: the same of
    off-target sky frames, or None where the target's own frames are the sky. times, sky_times: seconds.
    """
    if skies is None:
        level = np.quantile(cells, DARKEST, axis=(2, 3), keepdims=True)
        share = float(np.mean(cells > level * (1 + FAINT_ALONE)))
        return Verdict(share > FILLS, share, float("nan"), float("nan"))
    sky = np.median(skies, axis=(1, 2, 3))
    pattern = np.median(skies / sky[:, None, None, None], axis=0)
    flat = cells / pattern
    level = np.quantile(flat, DARKEST, axis=(1, 2, 3), keepdims=True)
    share = float(np.mean(flat > level * (1 + FAINT)))
    excess = np.median(flat, axis=(1, 2, 3)) - interpolated(times, sky_times, sky)
    error = max(interpolation_error(sky_times, sky), 1e-3 * float(np.median(sky))) / np.sqrt(
        len(times)
    )
    mean = float(np.mean(excess))
    return Verdict(bool(share > FILLS and mean > SIGNIFICANT * error), share, mean, float(error))


def interpolated(when: npt.ArrayLike, times: Floats, values: Floats) -> Floats:
    """Values at other times: linear between neighbours, constant outside."""
    order = np.argsort(times, kind="stable")
    return np.interp(when, np.asarray(times)[order], np.asarray(values)[order])


def interpolation_error(times: Floats, values: Floats) -> float:
    """Rms error of `interpolated`, from each inner value against its neighbours; 0 with fewer than three."""
    order = np.argsort(times, kind="stable")
    t, v = np.asarray(times)[order], np.asarray(values)[order]
    rest = [v[i] - np.interp(t[i], np.delete(t, i), np.delete(v, i)) for i in range(1, len(t) - 1)]
    return float(np.sqrt(np.mean(np.square(rest)))) if rest else 0.0
