"""Align all frames of a target together, and tie them to a reference catalogue if there is one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any

import numpy as np

from gdask.instruments import descriptor
from gdask.io.catalog import at_epoch, read_catalog
from gdask.io.frames import (
    geometries,
    note,
    set_aside,
    shape_of,
    small,
    warn,
    with_attrs,
    with_geometries,
    with_small,
)
from gdask.io.lazy_arrays import changed_scale
from gdask.kernels.astrometry.association import match_pairs
from gdask.kernels.astrometry.joint_fit import Reference
from gdask.kernels.astrometry.measured_stars import Measurements
from gdask.kernels.astrometry.residuals import RESIDUAL_DTYPE
from gdask.kernels.astrometry.solution import FrameFit, Solution, solve
from gdask.kernels.geometry.projection import pixel_area, tangent_plane, to_plane, to_sky
from gdask.kernels.sources.centroids import EDGE, FAILED, SATURATED
from gdask.model import GdaskError
from gdask.params import Range
from gdask.steps.frames import arrays_of, on_group, with_arrays, with_scaled_levels
from gdask.steps.pointing import find_bad_wcs
from gdask.types import Frame, Frames

#: Julian epoch 2000.0, to a minute.
J2000 = datetime(2000, 1, 1, 12)
#: Arcsec within which sources of two aligned frames are one star.
SAME_STAR_ARCSEC = 0.2
#: Flags of centroids that are not used. A star near bad pixels is used: they are left out of its
#: fit, and its error says so.
UNUSABLE_CENTROID = SATURATED | EDGE | FAILED


@on_group
def add_reference_catalog(frames: Frames, *, source: str | None = None) -> Frames:
    """Attach a reference catalogue from a file (FITS, ECSV, VOTable, CSV). [addReferenceCatalog]

    Parameters
    ----------
    source
        The file; columns for RA and Dec are found by name or UCD. None: no catalogue.
    """
    if source is None:
        return tuple(
            note(frame, "none given: positions stay on the telescope's pointing")
            for frame in frames
        )
    catalog = read_catalog(source)
    return tuple(
        note(with_attrs(frame, refcat=os.path.abspath(source)), f"{len(catalog)} stars of {source}")
        for frame in frames
    )


@on_group
def determine_astrometric_solution(
    frames: Frames,
    *,
    order: Annotated[int, Range(0, 3)] = 3,
    search: Annotated[float, Range(0.01, None)] = 3.0,
    match_radius: Annotated[float, Range(0.001, None)] = 0.2,
    max_rms: Annotated[float, Range(0.0001, None)] = 0.05,
    reference_error: Annotated[float, Range(0.0001, None)] | None = None,
) -> Frames:
    """Solve all frames together and tie the group to the reference catalogue.

    [determineAstrometricSolution]

    Without a catalogue nothing is done: adjust_wcs_to_reference aligns the frames with each other.

    Parameters
    ----------
    order
        Highest order of a frame's own distortion; fewer terms where the stars do not support them.
    search
        Arcsec that pointings may be off before a wide search begins.
    match_radius
        Arcsec within which sources are the same star.
    max_rms
        Arcsec of residuals per axis above which a frame is set aside.
    reference_error
        Arcsec per axis of the catalogue's positions; None: as the catalogue says, or 0.02.
    """
    path = frames[0].attrs.get("refcat")
    if not path:
        return tuple(note(frame, "no reference catalogue") for frame in frames)
    catalog = read_catalog(path)
    ra, dec, error, text = at_epoch(catalog, _mean_year(frames), reference_error)
    reference = Reference(ra, dec, error, _catalog_flux(catalog))
    limits = {"order": order, "search": search, "match_radius": match_radius, "max_rms": max_rms}
    solution = _solve(frames, limits, reference)
    return _with_solution(frames, solution, text)


@on_group
def adjust_wcs_to_reference(
    frames: Frames,
    *,
    order: Annotated[int, Range(0, 3)] = 3,
    search: Annotated[float, Range(0.01, None)] = 3.0,
    match_radius: Annotated[float, Range(0.001, None)] = 0.2,
    max_rms: Annotated[float, Range(0.0001, None)] = 0.05,
) -> Frames:
    """Align the frames with each other by one solution for all of them. [adjustWCSToReference]

    Star positions and the corrections of all frames are solved together. No frame is the reference:
    its own distortion would stay in the stack. A frame with a few stars only is shifted by them;
    one where no star is to be expected keeps its header's pointing, with a warning. A frame that
    cannot be matched although it should, or whose residuals are too large, is set aside with the
    reason.

    Parameters
    ----------
    order
        Highest order of a frame's own distortion; fewer terms where the stars do not support them.
    search
        Arcsec that pointings may be off before a wide search begins.
    match_radius
        Arcsec within which sources are the same star.
    max_rms
        Arcsec of residuals per axis above which a frame is set aside.
    """
    if all(small(frame, "solution") is not None for frame in frames):
        return tuple(note(frame, "already solved with the catalogue") for frame in frames)
    if len(frames) == 1:
        return tuple(note(frame, "one frame: nothing to align") for frame in frames)
    limits = {"order": order, "search": search, "match_radius": match_radius, "max_rms": max_rms}
    return _with_solution(frames, _solve(frames, limits))


@on_group
def scale_counts_to_reference(
    frames: Frames, *, tolerance: Annotated[float, Range(0, 1)] = 0.0
) -> Frames:
    """Scale the frames to the first one's exposure time, or to its stars. [scaleCountsToReference]

    Parameters
    ----------
    tolerance
        Take the stars' ratio where it differs by less than this fraction from that of the times.
        The times are the exposure times; 0 takes these only.
    """
    first = float(descriptor(frames[0], "exposure_time"))
    return tuple(
        _scale(frame, frames[0], first / float(descriptor(frame, "exposure_time")), tolerance)
        for frame in frames
    )


def _solve(
    frames: Frames, limits: Mapping[str, Any], reference: Reference | None = None
) -> Solution:
    """Solve the frames together by their usable centroids. limits: parameters of `solve`."""
    first = float(descriptor(frames[0], "exposure_time") or 1.0)
    measured = [_measure(frame, first) for frame in frames]
    doubts = _reasons_to_doubt_pointing(frames)
    return solve(measured, **limits, reference=reference, untrusted=doubts)


def _reasons_to_doubt_pointing(frames: Frames) -> list[str]:
    """Give for each frame why check_wcs doubts its header's pointing; '' where it does not."""
    suspects = find_bad_wcs(frames, limit=30.0, dither_limit=10.0, max_deadtime=60.0)
    return [suspects.get(frame.attrs["name"], "") for frame in frames]


def _night(frame: Frame) -> int:
    """Give the number of the night: it changes at 18 h UT, early afternoon at the telescope."""
    start = descriptor(frame, "ut_datetime")
    return (start - timedelta(hours=18)).toordinal() if start is not None else 0


def _mean_year(frames: Frames) -> float:
    """Give the mean Julian year of the exposures, at which moving stars are seen in the stack."""
    starts = [descriptor(frame, "ut_datetime") for frame in frames]
    seconds = [(start - J2000).total_seconds() for start in starts if start is not None]
    years = [2000 + value / (365.25 * 86400) for value in seconds]
    return float(np.mean(years)) if years else 2000.0


def _outline(frame: Frame) -> tuple[np.ndarray, ...]:
    """Give the corners (4, 2) of each array in the instrument's plane (arcsec)."""
    x, y = (
        np.array([0.0, 1, 1, 0]) * frame.sizes["x"] - 0.5,
        np.array([0.0, 0, 1, 1]) * frame.sizes["y"] - 0.5,
    )
    return tuple(np.column_stack(to_plane(geometry, x, y)) for geometry in geometries(frame))


def _measure(frame: Frame, exposure: float) -> Measurements:
    """Collect the usable centroids of a frame in the instrument's plane (arcsec).

    exposure: seconds for which signal to noise is given.
    """
    centroids = small(frame, "stars")
    if centroids is None:
        raise GdaskError(
            f"{frame.attrs['name']}: no centroids; run detect_sources and end the phase first"
        )
    columns: list[list[np.ndarray]] = [[] for _ in range(7)]
    time = float(descriptor(frame, "exposure_time") or 0.0) or exposure
    for number, (stars, geometry) in enumerate(zip(centroids, geometries(frame), strict=True)):
        good = usable(stars)
        x, y = to_plane(geometry._replace(correction_x=(), correction_y=()), good["x"], good["y"])
        scale = np.sqrt(pixel_area(geometry, good["x"], good["y"]))
        signal = good["flux"] / good["eflux"] * np.sqrt(exposure / time)
        values = (
            x,
            y,
            good["ex"] * scale,
            good["ey"] * scale,
            good["flux"] / time,
            np.full(len(good), number),
            signal,
        )
        for column, part in zip(columns, values, strict=True):
            column.append(np.atleast_1d(part))
    pointing = geometries(frame)[0]
    x, y, ex, ey, flux, array, signal = (np.concatenate(column) for column in columns)
    return Measurements(
        name=frame.attrs["name"],
        x=x,
        y=y,
        ex=ex,
        ey=ey,
        flux=flux,
        array=array,
        ra=pointing.ra,
        dec=pointing.dec,
        pa=pointing.pa,
        outline=_outline(frame),
        signal=signal,
        epoch=_night(frame),
    )


def _with_solution(frames: Frames, solution: Solution, catalog: str = "") -> Frames:
    """Give the frames with their corrections, a note about the solution, and warnings.

    catalog: what was done with the reference catalogue, in words.
    """
    text = _solution_text(solution, catalog)
    corrected = (
        note(with_residuals(_correct(frame, fit), fit, solution), text)
        for frame, fit in zip(frames, solution.frames, strict=True)
    )
    frames = tuple(
        _warn_if_by_header(frame, fit)
        for frame, fit in zip(corrected, solution.frames, strict=True)
    )
    if solution.reference_tie is None or solution.reference_tie.ok:
        return frames
    untied = (
        "not tied to the catalogue, positions stay on the telescope's pointing: "
        f"{solution.reference_tie.reason}; the catalogue must hold stars of this field that the "
        "frames show; `search` says how far the pointing may be off"
    )
    return tuple(frame if frame.attrs.get("warning") else warn(frame, untied) for frame in frames)


def _solution_text(solution: Solution, catalog: str) -> str:
    """Describe a solution in words: frames, stars, residuals, ways of placing, the catalogue."""
    fits = solution.frames
    good = [fit for fit in fits if fit.ok]
    text = f"{len(good)} of {len(fits)} frames, {len(solution.stars)} stars"
    fitted = [fit for fit in good if np.isfinite(fit.rms)]
    if fitted:
        rms, matches = [fit.rms for fit in fitted], [fit.n for fit in fitted]
        text += (
            f", {min(matches)}-{max(matches)} matches a frame, rms {np.median(rms):.1f} mas"
            f" (worst {max(rms):.1f}), order {max(fit.order for fit in fitted)}"
        )
    if good:
        text += f", pointing off by up to {max(np.hypot(*fit.shift) for fit in good):.2f} arcsec"
    ways = {
        way: [fit.name for fit in good if fit.how == way]
        for way in dict.fromkeys(fit.how for fit in good)
    }
    if list(ways) != ["joint fit"]:
        each = (
            f"{way} ({len(names)}{': ' + ', '.join(names) if way != 'joint fit' else ''})"
            for way, names in ways.items()
        )
        text += f"; placed by {', '.join(each)}"
    if solution.reference_tie is not None:
        tie = solution.reference_tie
        text += (
            f"; tied to the catalogue by {tie.n} stars, rms {tie.rms:.1f} mas ({catalog})"
            if tie.ok
            else f"; not tied to the catalogue: {tie.reason}"
        )
    return text


def _warn_if_by_header(frame: Frame, fit: FrameFit) -> Frame:
    """Give the frame with a warning if nothing but its header says where it is."""
    if not fit.ok or fit.how != "header":
        return frame
    error = f"good to {fit.error / 1000:g} arcsec"
    return warn(
        frame,
        f"{fit.name} kept on its header's pointing, {error}: 0 stars in common with other frames",
    )


def _correct(frame: Frame, fit: FrameFit) -> Frame:
    """Give the frame with the fitted correction of each array; set aside where there is no fit."""
    if not fit.ok:
        return set_aside(frame, fit.reason)
    before, of_frame = geometries(frame), (fit.correction_x, fit.correction_y)
    corrections = (*fit.arrays, *[of_frame] * (len(before) - len(fit.arrays)))
    corrected = tuple(
        geometry._replace(correction_x=x, correction_y=y)
        for geometry, (x, y) in zip(before, corrections, strict=True)
    )
    summary = {
        "matches": fit.n,
        "rms_mas": fit.rms,
        "order": fit.order,
        "terms": fit.terms,
        "shift_arcsec": fit.shift,
        "placed": fit.how,
        "error_mas": fit.error,
    }
    return with_small(with_geometries(frame, corrected), solution=summary)


def _catalog_flux(catalog: Any) -> np.ndarray:
    """Give a brightness to choose stars by: from the first magnitude column, or 1 for all."""
    names = [
        name for name in catalog.colnames if "mag" in name.lower() and "err" not in name.lower()
    ]
    if not names:
        return np.ones(len(catalog))
    magnitudes: Any = np.asarray(catalog[names[0]], np.float64)
    return 10 ** (-0.4 * np.nan_to_num(magnitudes, nan=99.0))


def _scale(frame: Frame, first: Frame, by_time: float, tolerance: float) -> Frame:
    """Scale a frame to the first one; by_time: ratio of exposure times (first / frame)."""
    factor, text = by_time, "by exposure time"
    if tolerance > 0:
        by_stars = _star_ratio(frame, first)
        if by_stars is not None and abs(by_stars / by_time - 1) < tolerance:
            factor, text = by_stars, f"by stars within {tolerance:g} of the exposure times"
    if factor == 1.0:
        return note(frame, text)
    count = frame.sizes["detector"]
    data, variance = arrays_of(frame, ("data", "variance"))
    scaled = with_arrays(
        frame,
        data=changed_scale(data, [factor] * count, [0.0] * count),
        variance=changed_scale(variance, [factor**2] * count, [0.0] * count),
    )
    return note(with_scaled_levels(scaled, factor), text)


def _star_ratio(frame: Frame, first: Frame) -> float | None:
    """Give the median flux ratio (first / frame) of common stars; None with fewer than five."""
    first_east, first_north, first_flux = _clean_stars(first)
    east, north, flux = _clean_stars(frame)
    i, j = match_pairs(first_east, first_north, east, north, SAME_STAR_ARCSEC)
    good = (first_flux[i] > 0) & (flux[j] > 0)
    return float(np.median(first_flux[i][good] / flux[j][good])) if good.sum() >= 5 else None


def _clean_stars(frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give East, North (arcsec about the target) and flux of a frame's stars without flags."""
    centre = float(descriptor(frame, "target_ra")), float(descriptor(frame, "target_dec"))
    parts = []
    for stars, geometry in zip(small(frame, "stars"), geometries(frame), strict=True):
        good = stars[(stars["flags"] == 0) & (stars["flux"] > 20 * stars["eflux"])]
        parts.append(
            (*tangent_plane(*to_sky(geometry, good["x"], good["y"]), *centre), good["flux"])
        )
    east, north, flux = (
        np.concatenate([np.atleast_1d(column) for column in columns])
        for columns in zip(*parts, strict=True)
    )
    return east, north, flux


def usable(stars: np.ndarray) -> np.ndarray:
    """Select the centroids of an array that the joint solution takes."""
    unflagged = (stars["flags"] & UNUSABLE_CENTROID) == 0
    return stars[unflagged & np.isfinite(stars["ex"]) & (stars["flux"] > 0)]


def with_residuals(frame: Frame, fit: FrameFit, solution: Solution) -> Frame:
    """Add to a Frame's `solution` its residuals, its time, its arrays' shape and the list of stars.

    Residuals are given for stars that another frame holds, too: a star seen once has none.
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
        part["array"] = number
        for column in ("x", "y", "flags", "flux", "eflux"):
            part[column] = good[column]
        part["edx"] = np.sqrt(c * good["ex"] ** 2 + s * good["ey"] ** 2)
        part["edy"] = np.sqrt(s * good["ex"] ** 2 + c * good["ey"] ** 2)
        parts.append(part)
    rows = np.concatenate(parts)
    rows["star"], rows["dx"], rows["dy"] = fit.star, fit.residual_x, fit.residual_y
    shared = (
        (fit.star >= 0) & (solution.stars["n"][np.maximum(fit.star, 0)] >= 2)
        if len(solution.stars)
        else np.zeros(len(rows), bool)
    )
    details = {
        "residuals": rows[shared],
        "mjd": _mjd_of_middle(frame),
        "shape": shape_of(frame),
        "stars": solution.stars,
        "centre": (solution.ra, solution.dec),
        "floor_mas": solution.floor,
    }
    return with_small(frame, solution=small(frame, "solution") | details)


def _mjd_of_middle(frame: Frame) -> float:
    """Give the MJD of the middle of the exposure; NaN where the header has no date."""
    start = descriptor(frame, "ut_datetime")
    if start is None:
        return float("nan")
    seconds = float(descriptor(frame, "total_exposure_time") or 0.0)
    return (start - datetime(1858, 11, 17)).total_seconds() / 86400 + seconds / 2 / 86400
