"""Sources that are defects of the detector: they keep their place on it while the telescope moves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gdask.kernels.astrometry.joint_fit import Problem
from gdask.kernels.astrometry.matching import match_pairs
from gdask.kernels.astrometry.star_association import Measurements, rows_of, to_common
from gdask.types import Arcsec

#: Frames that each is compared with, at most; sources with which a frame is not sparse.
COMPARED, MANY = 20, 48


def moving_sources(
    frames: Sequence[Measurements], problem: Problem, tolerance: Arcsec
) -> np.ndarray:
    """Bool per measurement: False for a detector's defect, a source that keeps its place on the detector (to a quarter
    of the tolerance) while the telescope moves, in at least half of the frames that are pointed elsewhere.

    Frames with MANY sources or more are not looked at: their stars outweigh what defects the bad-pixel mask has left,
    and should the telescope not have moved as a header says, all stars keep their places.
    """
    centres = np.array(
        [to_common(frame, np.zeros(1), np.zeros(1), problem.centre) for frame in frames]
    )[:, :, 0]
    good = np.ones(len(problem.frame), bool)
    for f in range(len(frames)):
        i = rows_of(problem, f)
        if not 0 < len(i) < MANY:
            continue
        away = [
            g for g in range(len(frames)) if np.hypot(*(centres[g] - centres[f])) > 4 * tolerance
        ]
        away = away[:: max(1, len(away) // COMPARED)]
        if not away:
            continue
        kept = np.zeros(len(i))
        for g in away:
            j = rows_of(problem, g)
            kept[
                match_pairs(problem.x[i], problem.y[i], problem.x[j], problem.y[j], tolerance / 4)[
                    0
                ]
            ] += 1
        good[i] = kept < max(len(away) / 2, 1)
    return good
