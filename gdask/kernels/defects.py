"""Sources that are defects of the detector: they keep their place on it while the telescope moves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gdask.kernels.associate import Measurements, rows_of, to_common
from gdask.kernels.joint import Problem
from gdask.kernels.match import match_pairs
from gdask.types import Arcsec

#: Frames that each is compared with, at most; sources of which all may be stars of a telescope that did not move.
COMPARED, MANY = 20, 48


def moving_sources(frames: Sequence[Measurements], problem: Problem, tolerance: Arcsec) -> np.ndarray:
    """Bool per measurement: False for a detector's defect, a source that keeps its place on the detector (to a quarter
    of the tolerance) while the telescope moves, in at least half of the frames that are pointed elsewhere.

    A telescope that did not move as its header says keeps all sources in place: where that is so for nearly all of
    many, none is left out.
    """
    centres = np.array([to_common(frame, np.zeros(1), np.zeros(1), problem.centre) for frame in frames])[:, :, 0]
    good = np.ones(len(problem.frame), bool)
    for f in range(len(frames)):
        i = rows_of(problem, f)
        away = [g for g in range(len(frames)) if np.hypot(*(centres[g] - centres[f])) > 4 * tolerance]
        away = away[:: max(1, len(away) // COMPARED)]
        if not len(i) or not away:
            continue
        kept = np.zeros(len(i))
        for g in away:
            j = rows_of(problem, g)
            kept[match_pairs(problem.x[i], problem.y[i], problem.x[j], problem.y[j], tolerance / 4)[0]] += 1
        fixed = kept >= max(len(away) / 2, 1)
        if len(i) < MANY or fixed.mean() < 0.8:
            good[i] = ~fixed
    return good
