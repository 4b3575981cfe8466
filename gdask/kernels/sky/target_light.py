"""Find whether the target fills the field: then the level of a frame is not that of its sky."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gdask.types import Electrons, Fraction

Floats = npt.NDArray[np.float64]

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
