"""Errors of a stack's positions that the pixels do not tell: of the frames' alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gdask.kernels.arithmetic import least_squares, sine_cosine
from gdask.kernels.geometry.projection import (
    CORRECTION_UNIT,
    Geometry,
    polynomial_order,
    powers,
    tangent_plane,
)

MAS_PER_ARCSEC = 1000.0
#: Terms of a frame's correction, or of a tie, up to the first order (shift, turn, scale, shears).
LINEAR_TERMS = 6
#: Fewest positions of which a linear function is taken out of distortions.
STARS_FOR_LINEAR = 10


def error_floor(inputs: Sequence[Mapping[str, Any]]) -> float:
    """Give the error per frame and axis beyond photon noise (mas) that the joint solution found.

    It is 0 without a solution.
    """
    floors = [
        float(source["floor_mas"])
        for source in inputs
        if np.isfinite(source.get("floor_mas", np.nan))
    ]
    return floors[0] if floors else 0.0


def placement_error(inputs: Sequence[Mapping[str, Any]]) -> float:
    """Give the rms error per frame and axis (mas) with which the solution places frames.

    It is 0 without a solution, or where all frames were placed by their headers.
    """
    errors = [
        float(source["error_mas"])
        for source in inputs
        if source.get("placed", "header") != "header"
    ]
    errors = [error for error in errors if np.isfinite(error)]
    return float(np.sqrt(np.mean(np.square(errors)))) if errors else 0.0


def common_distortion_errors(
    ra: np.ndarray, dec: np.ndarray, inputs: Sequence[Mapping[str, Any]]
) -> np.ndarray:
    """Give the error per axis (mas) at each position of what distorts all frames alike.

    Frames that are solved together show how their distortions differ, not their mean, which stays
    in all positions. Where each frame has one of its own, as behind adaptive optics, the mean of n
    is off by their scatter at that place over sqrt(n): the unbiased standard deviation of the
    fitted terms, without what a linear function of these positions makes of them, for shift, turn,
    scale and shears belong to the pointing. Of groups of frames that share no stars the largest
    error counts. Where a reference catalogue has terms beyond the linear ones in its tie, they are
    as good as the tie: `place_error` is that of one term along an axis. `ra` and `dec` are in
    degrees; errors are 0 where no frame has such terms, and where `ra` is NaN.
    """
    tie: Mapping[str, Any] = next(
        (source["reference_tie"] for source in inputs if source.get("reference_tie")), {}
    )
    if tie.get("ok") and tie["terms"] > LINEAR_TERMS:
        terms_along_axis = (tie["terms"] - LINEAR_TERMS) / 2
        return np.full(len(ra), float(tie["place_error"]) * terms_along_axis**0.5)
    groups: dict[int, list[Geometry]] = {}
    for source in inputs:
        if source.get("terms", 0) > LINEAR_TERMS and source["geometry"]:
            groups.setdefault(int(source.get("group", 0)), []).append(source["geometry"][0])
    known, out = np.isfinite(ra + dec), np.zeros(len(ra))
    for group in groups.values():
        if len(group) > 1 and known.any():
            errors = _scatter_of_distortions(ra[known], dec[known], group)
            out[known] = np.maximum(out[known], errors / len(group) ** 0.5)
    return MAS_PER_ARCSEC * out


def _scatter_of_distortions(
    ra: np.ndarray, dec: np.ndarray, frames: Sequence[Geometry]
) -> np.ndarray:
    """Give the standard deviation per axis (arcsec) of frames' distortions at each position.

    Both axes together, as a few frames tell each poorly.
    """
    moves = np.array([_fitted_distortion(frame, ra, dec) for frame in frames])
    if len(ra) >= STARS_FOR_LINEAR:
        xi, eta = tangent_plane(ra, dec, float(ra[0]), float(dec[0]))
        linear = np.array([np.ones(len(ra)), xi / CORRECTION_UNIT, eta / CORRECTION_UNIT])
        sides = moves.reshape(-1, len(ra))
        for side, terms in zip(sides, least_squares(linear.T, sides.T).T, strict=True):
            side -= terms[0] + terms[1] * linear[1] + terms[2] * linear[2]
    mean, variance = np.zeros(moves.shape[1:]), np.zeros(moves.shape[1:])
    for move in moves:
        mean += move / len(moves)
    for move in moves:
        variance += np.square(move - mean) / (len(moves) - 1)
    return np.sqrt((variance[0] + variance[1]) / 2)


def _fitted_distortion(geometry: Geometry, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Give what an array's fitted terms beyond the linear ones move positions by.

    (2, positions), arcsec East and North.
    """
    xi, eta = tangent_plane(ra, dec, geometry.ra, geometry.dec)
    sine, cosine = sine_cosine.few(geometry.pa)
    x = (cosine * xi - sine * eta) / CORRECTION_UNIT
    y = (sine * xi + cosine * eta) / CORRECTION_UNIT
    moved = np.zeros((2, len(ra)))
    for axis, terms in enumerate((geometry.correction_x, geometry.correction_y)):
        for (i, j), value in zip(powers(polynomial_order(len(terms))), terms, strict=True):
            if i + j > 1:
                power = np.ones(len(ra))
                for factor in [x] * i + [y] * j:
                    power = power * factor
                moved[axis] += value * power
    return np.array([cosine * moved[0] + sine * moved[1], cosine * moved[1] - sine * moved[0]])
