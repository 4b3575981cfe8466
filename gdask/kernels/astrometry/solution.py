"""What the joint astrometric solution gives: stars, and for each frame its correction and how it was reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gdask.kernels.astrometry.array_terms import with_frame
from gdask.kernels.astrometry.distortion_terms import (
    LEVELS,
    ORDER,
    TERMS,
    displace,
    normal_blocks,
    solve_block,
    to_polynomials,
)
from gdask.kernels.astrometry.few_stars import HEADER_ERROR
from gdask.kernels.astrometry.joint_fit import positions, star_means
from gdask.kernels.astrometry.reference_tie import Tie
from gdask.kernels.astrometry.residuals import MAS, State, quality, star_flux
from gdask.kernels.astrometry.star_association import Measurements, rows_of
from gdask.kernels.geometry.projection import tangent_sky
from gdask.types import Arcsec, Degrees

#: What headers' position angles, the plate scale and its shears are good to: displacement at 60 arcsec from the pointing.
TURN_ERROR: Arcsec = 0.003

STARS = np.dtype([(n, "f8") for n in ("ra", "dec", "x", "y", "error", "flux")] + [("n", "i4")])


class FrameFit(NamedTuple):
    """One frame's correction and how it was reached. correction_x, correction_y: ten coefficients each (arcsec), as
    `geometry.Geometry` takes them; terms and order in use; n: sources that other frames share; rms: weighted residual
    per axis (mas); shift: what the header's pointing was off by, East and North (arcsec); star: row of each source in
    the star list (-1 where the frame or the source was left out); residual_x, residual_y: measured minus star, East
    and North (arcsec). ok False: set aside, for the reason given. how: "joint fit", "shift by 2 stars" or "header";
    error: of the frame's place among the others, per axis (mas), `place_errors`. arrays: (correction_x, correction_y) of each array
    where arrays of this epoch have displacements of their own; to be taken instead then."""

    name: str
    correction_x: tuple[float, ...]
    correction_y: tuple[float, ...]
    order: int
    terms: int
    n: int
    rms: float
    shift: tuple[Arcsec, Arcsec]
    contrast: float
    ok: bool
    reason: str
    how: str
    error: float
    star: np.ndarray
    residual_x: np.ndarray
    residual_y: np.ndarray
    arrays: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = ()


class Solution(NamedTuple):
    """Stars (dtype STARS: ra, dec in degrees; x, y about the centre, error per axis, in arcsec; mean flux; number of
    frames), one FrameFit per input, the error beyond photon noise that the residuals show (mas), the tie or None."""

    ra: Degrees
    dec: Degrees
    stars: np.ndarray
    frames: tuple[FrameFit, ...]
    floor: float
    tie: Tie | None


def for_all_sources(fit: FrameFit, good: np.ndarray) -> FrameFit:
    """The fit with a row for each measurement of the frame, those left out (-1, NaN) included."""
    if good.all():
        return fit
    star, x, y = np.full(len(good), -1), *np.full((2, len(good)), np.nan)
    star[good], x[good], y[good] = fit.star, fit.residual_x, fit.residual_y
    return fit._replace(star=star, residual_x=x, residual_y=y)


def report(
    frames: Sequence[Measurements],
    state: State,
    centre: tuple[Degrees, Degrees],
    contrast: Sequence[float],
    reasons: list[str],
    tie: Tie | None,
    sparse: tuple[np.ndarray, np.ndarray],
    prior: np.ndarray,
) -> Solution:
    """The solution in the form in which it is given out. sparse: which frames were placed by few stars, by headers;
    prior: 1 / sigma^2 of the frames' terms."""
    problem = state.problem
    xi, eta = positions(problem, state.terms)
    x, y, total = star_means(problem, xi, eta)
    stars = np.zeros(problem.stars, STARS)
    stars["ra"], stars["dec"] = tangent_sky(x, y, *centre)
    stars["x"], stars["y"], stars["flux"] = x, y, star_flux(frames, state)
    stars["error"] = 1 / np.sqrt(np.where(total > 0, total, np.nan))
    stars["n"] = np.bincount(problem.star[problem.weight > 0], minlength=problem.stars)
    fits, measured, errors = [], quality(state), place_errors(state, prior)
    for f, frame in enumerate(frames):
        i = rows_of(problem, f)
        ok, terms, count = not reasons[f], state.terms[f], int(state.active[f])
        n, rms = measured[f]
        how, error = (
            _how(n, errors[f], *(bool(kind[f]) for kind in sparse)) if ok else ("", float("nan"))
        )
        shift = (
            problem.cosine[f] * terms[0] - problem.sine[f] * terms[1],
            problem.sine[f] * terms[0] + problem.cosine[f] * terms[1],
        )
        rms = (
            rms if n > 1 or not how.startswith("shift") else float("nan")
        )  # one star alone fits always
        cx, cy = to_polynomials(terms)
        fits.append(
            FrameFit(
                frame.name,
                cx,
                cy,
                ORDER.get(count, 0),
                count,
                n,
                rms,
                (float(shift[0]), float(shift[1])),
                contrast[f],
                ok,
                reasons[f],
                how,
                error,
                np.where(ok, problem.star[i], -1),
                xi[i] - x[problem.star[i]],
                eta[i] - y[problem.star[i]],
                _of_arrays(state, f),
            )
        )
    return Solution(*centre, stars, tuple(fits), MAS * state.floor, tie)


def _of_arrays(state: State, f: int) -> tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]:
    """The corrections of a frame's arrays, where they differ."""
    arrays = state.arrays
    if arrays is None or not arrays.values[arrays.of_frame[f]].any():
        return ()
    return tuple(
        to_polynomials(with_frame(state.terms[f], arrays, int(g))) for g in arrays.of_frame[f]
    )


def _how(n: int, error: Arcsec, few: bool, by_header: bool) -> tuple[str, float]:
    """How a frame was placed, in words, and the error per axis of its place among the others (mas)."""
    if by_header or np.isnan(error):
        return "header", MAS * HEADER_ERROR
    return f"shift by {n} star{'s' if n > 1 else ''}" if few else "joint fit", MAS * error


def place_errors(state: State, prior: np.ndarray) -> np.ndarray:
    """Error per axis (arcsec) with which the terms in use place each frame, on average over its stars; NaN without any.

    Of frames that are shifted only, at the pointing: their turn, scale and distortion (prior) move the few stars, and the
    shift follows those.
    """
    problem, out = state.problem, np.full(len(state.active), np.nan)
    weight = np.where(state.shared, problem.weight, 0.0)
    normals = normal_blocks(problem.frame, problem.x, problem.y, weight, len(out))
    expected = np.append(np.full(6, TURN_ERROR), 1 / np.sqrt(prior[6:]))
    for f in np.flatnonzero(state.active):
        normal, n, total = normals[f], int(state.active[f]), normals[f, 0, 0]
        if not total > 0:
            continue
        whole = normal + np.diag(prior)
        variance = sum(solve_block(whole, normal[k], n)[k] for k in range(n)) / (2 * total)
        if n == LEVELS[0]:
            i = rows_of(problem, int(f))
            for unit, size in zip(np.eye(TERMS)[n:], expected[n:], strict=True):
                u, v = displace(problem.x[i], problem.y[i], unit)
                variance += (
                    size**2
                    * ((weight[i] * u).sum() ** 2 + (weight[i] * v).sum() ** 2)
                    / (2 * total**2)
                )
        out[f] = np.sqrt(variance)
    return out
