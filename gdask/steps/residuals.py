"""What the joint solution leaves of each star in each frame, kept with the frame for the tables of the stack."""

from __future__ import annotations

import datetime as dt

import numpy as np

from gdask.instruments import descriptor
from gdask.io.frames import geometries, shape_of, small, with_small
from gdask.kernels.astrometry.residuals import RESIDUAL_DTYPE
from gdask.kernels.astrometry.solution import FrameFit, Solution
from gdask.kernels.geometry.projection import pixel_area
from gdask.kernels.sources.centroids import EDGE, FAILED, SATURATED
from gdask.types import Frame

#: Positions that are not used. Bad pixels near a star are left out of its fit, which its error tells: it is used.
USELESS = SATURATED | EDGE | FAILED


def usable(stars: np.ndarray) -> np.ndarray:
    """Those of an array's centroids that the joint solution takes."""
    return stars[((stars["flags"] & USELESS) == 0) & np.isfinite(stars["ex"]) & (stars["flux"] > 0)]


def with_residuals(frame: Frame, fit: FrameFit, solution: Solution) -> Frame:
    """Add to a Frame's `solution` its residuals, its time, its arrays' shape and the list of stars.

    Only stars that another frame holds, too: one that is alone has no residual.
    """
    if not fit.ok:
        return frame
    parts = []
    for number, (stars, geometry) in enumerate(
        zip(small(frame, "stars"), geometries(frame), strict=True)
    ):
        good = usable(stars)
        part = np.zeros(len(good), RESIDUAL_DTYPE)
        scale, angle = np.sqrt(pixel_area(geometry, good["x"], good["y"])), np.radians(geometry.pa)
        c, s = np.cos(angle) ** 2 * scale**2, np.sin(angle) ** 2 * scale**2
        part["array"], part["x"], part["y"], part["flags"] = (
            number,
            good["x"],
            good["y"],
            good["flags"],
        )
        part["edx"], part["edy"] = (
            np.sqrt(c * good["ex"] ** 2 + s * good["ey"] ** 2),
            np.sqrt(s * good["ex"] ** 2 + c * good["ey"] ** 2),
        )
        part["flux"], part["eflux"] = good["flux"], good["eflux"]
        parts.append(part)
    rows = np.concatenate(parts)
    rows["star"], rows["dx"], rows["dy"] = fit.star, fit.residual_x, fit.residual_y
    shared = (
        (fit.star >= 0) & (solution.stars["n"][np.maximum(fit.star, 0)] >= 2)
        if len(solution.stars)
        else np.zeros(len(rows), bool)
    )
    more = {
        "residuals": rows[shared],
        "mjd": _mjd_of_middle(frame),
        "shape": shape_of(frame),
        "stars": solution.stars,
        "centre": (solution.ra, solution.dec),
        "floor_mas": solution.floor,
    }
    return with_small(frame, solution=small(frame, "solution") | more)


def _mjd_of_middle(frame: Frame) -> float:
    """MJD of the middle of the exposure, as far as the header says; NaN where it has no date."""
    start = descriptor(frame, "ut_datetime")
    if start is None:
        return float("nan")
    seconds = float(descriptor(frame, "exposure_time") or 0.0)
    return (start - dt.datetime(1858, 11, 17)).total_seconds() / 86400 + seconds / 2 / 86400
