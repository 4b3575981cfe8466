"""Align all frames of a target together, and tie them to a reference catalogue if there is one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

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
from gdask.kernels.arithmetic import sine_cosine
from gdask.kernels.astrometry.catalogue_tie import Reference, describe_tie, doubts
from gdask.kernels.astrometry.few_stars import HEADER_ERROR
from gdask.kernels.astrometry.measured_stars import Measurements
from gdask.kernels.astrometry.residuals import RESIDUAL_DTYPE
from gdask.kernels.astrometry.solution import FrameFit, Solution, solve
from gdask.kernels.geometry.projection import (
    CORRECTION_UNIT,
    pixel_area,
    rounded_terms,
    to_plane,
)
from gdask.kernels.sources.centroids import image_errors, usable
from gdask.model import GdaskError
from gdask.params import Range
from gdask.steps.frames import mjd_of_middle, night_of, on_group, outline_of
from gdask.steps.pointing import find_bad_wcs, tracking_rate
from gdask.steps.resample import unit_area
from gdask.types import Frame, Frames

#: Julian epoch 2000.0, to a minute.
J2000 = datetime(2000, 1, 1, 12)
#: Turn or skew (degrees) and change of scale from which stars contradict the axes of the headers.
AXES_TURN, AXES_SCALE = 0.06, 5e-4


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
    search: Annotated[float, Range(0.01, None)] = 30.0,
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
        Arcsec that pointings may be off, and no match is looked for beyond: the further off, the
        more stars must agree.
    match_radius
        Arcsec within which sources are the same star.
    max_rms
        Arcsec of residuals per axis above which a frame is set aside.
    reference_error
        Arcsec per axis of the catalogue's positions; None: as the catalogue says, or, where it has
        no errors, as the residuals say.
    """
    path = frames[0].attrs.get("refcat")
    if not path:
        return tuple(note(frame, "no reference catalogue") for frame in frames)
    catalog = read_catalog(path)
    at = at_epoch(catalog, _mean_year(frames), reference_error)
    moves = at.motion_x, at.motion_y, at.spread
    reference = Reference(at.ra, at.dec, at.error, _catalog_flux(catalog), *moves)
    limits = {"order": order, "search": search, "match_radius": match_radius, "max_rms": max_rms}
    solution = _solve(frames, limits, reference)
    return _with_solution(frames, solution, at.text)


@on_group
def adjust_wcs_to_reference(
    frames: Frames,
    *,
    order: Annotated[int, Range(0, 3)] = 3,
    search: Annotated[float, Range(0.01, None)] = 30.0,
    match_radius: Annotated[float, Range(0.001, None)] = 0.2,
    max_rms: Annotated[float, Range(0.0001, None)] = 0.05,
    follow: Literal["auto", "object", "stars", "both"] = "auto",
    rate_east: float | None = None,
    rate_north: float | None = None,
) -> Frames:
    """Align the frames with each other by one solution for all of them. [adjustWCSToReference]

    Star positions and the corrections of all frames are solved together. No frame is the reference:
    its own distortion would stay in the stack. A frame with a few stars only is shifted by them;
    one where no star is to be expected keeps its header's pointing, with a warning. A frame that
    cannot be matched although it should, or whose residuals are too large, is set aside.

    Parameters
    ----------
    order
        Highest order of a frame's own distortion; fewer terms where the stars do not support them.
    search
        Arcsec that pointings may be off, and no match is looked for beyond: the further off, the
        more stars must agree.
    match_radius
        Arcsec within which sources are the same star.
    max_rms
        Arcsec of residuals per axis above which a frame is set aside.
    follow
        What stands still: the object (auto: where tracking rates, tag NON_SIDEREAL, or given ones
        are not 0), the stars, or both: that on the stars is written as _imageOnStars.
    rate_east
        The object's motion to the East, arcsec per hour; None: as the headers say.
    rate_north
        The object's motion to the North, arcsec per hour; as the headers say if not given.
    """
    if len(frames) == 1:
        return tuple(note(frame, "one frame: nothing to align") for frame in frames)
    if all(small(frame, "solution") is not None for frame in frames):
        frames = tuple(note(frame, "already solved with the catalogue") for frame in frames)
    else:
        limits = {"order": order, "search": search, "match_radius": match_radius}
        frames = _with_solution(frames, _solve(frames, limits | {"max_rms": max_rms}))
    if not (rate_east or rate_north or any(any(tracking_rate(frame)) for frame in frames)):
        return frames
    from gdask.steps.moving import follow_object

    return follow_object(frames, follow, rate_east, rate_north)


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


def _mean_year(frames: Frames) -> float:
    """Give the mean Julian year of the exposures, at which moving stars are seen in the stack."""
    starts = [descriptor(frame, "ut_datetime") for frame in frames]
    seconds = [(start - J2000).total_seconds() for start in starts if start is not None]
    years = [2000 + value / (365.25 * 86400) for value in seconds]
    return float(np.mean(years)) if years else 2000.0


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
        good = usable(stars, shape_of(frame))
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
        outline=outline_of(frame),
        signal=signal,
        epoch=night_of(frame),
    )


def _with_solution(frames: Frames, solution: Solution, catalog: str = "") -> Frames:
    """Give the frames with their corrections, a note about the solution, and warnings.

    catalog: what was done with the reference catalogue, in words.
    """
    text = _solution_text(solution, catalog)
    corrected = (
        note(with_residuals(_correct(frame, fit, solution), fit, solution), text)
        for frame, fit in zip(frames, solution.frames, strict=True)
    )
    untied = _groups_on_headers(solution)
    frames = tuple(
        _warn_if_by_header(frame, fit, solution, untied.get(fit.group, ""))
        for frame, fit in zip(corrected, solution.frames, strict=True)
    )
    doubt = "" if solution.reference_tie is None else doubts(solution.reference_tie)
    if not doubt:
        return frames
    return tuple(frame if frame.attrs.get("warning") else warn(frame, doubt) for frame in frames)


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
    sizes = Counter(fit.group for fit in good if fit.group)
    if len(sizes) > 1:
        each = (f"{sizes[group]} frames" for group in sorted(sizes))
        text += f"; {len(sizes)} groups that share no stars ({', '.join(each)})"
    if solution.reference_tie is not None:
        tie = solution.reference_tie
        text += f"; {describe_tie(tie)}"
        text += f" ({catalog}){_axes_text(good)}" if tie.ok else ""
    return text


def _axes_text(fits: Sequence[FrameFit]) -> str:
    """Say by how much the axes of the headers are off, on average over the frames; '' for nothing.

    Without a catalogue no star shows what is common to all frames.
    """
    linear = [(*fit.correction_x[1:3], *fit.correction_y[1:3]) for fit in fits if fit.terms > 2]
    if not linear:
        return ""
    along_x, y_to_x, x_to_y, along_y = np.mean(linear, axis=0) / CORRECTION_UNIT
    turn, skew = np.degrees((y_to_x - x_to_y) / 2), np.degrees(y_to_x + x_to_y)
    scale = 1 + (along_x + along_y) / 2
    against = abs(turn) > AXES_TURN or abs(skew) > AXES_TURN or abs(scale - 1) > AXES_SCALE
    return (
        f"; stars turn the headers' axes by {turn:.3f} degrees, skew {skew:.3f} degrees, scale"
        f" {scale:.5f}{': they contradict the headers' if against else ''}"
    )


def _groups_on_headers(solution: Solution) -> dict[int, str]:
    """Give for each group but the largest that nothing ties to it a warning that names its frames.

    Groups of frames share no stars with each other; a catalogue may tie them.
    """
    good = [fit for fit in solution.frames if fit.ok and fit.group > 0]
    first = [fit.name for fit in good if fit.group == 1]
    by_catalogue = {fit.group for fit in good if fit.tied}
    texts = {}
    for group in sorted({fit.group for fit in good} - by_catalogue - {1}):
        names = [fit.name for fit in good if fit.group == group]
        texts[group] = (
            f"{', '.join(names)} share no stars with {', '.join(first)}: these {len(names)} frames"
            f" and those {len(first)} lie among each other as their headers say, good to"
            f" {HEADER_ERROR:g} arcsec; a reference catalogue would tie them"
        )
    return texts


def _warn_if_by_header(frame: Frame, fit: FrameFit, solution: Solution, untied: str) -> Frame:
    """Give the frame with a warning if its header alone says where it, or its group, is.

    untied: the warning about its group, '' for none.
    """
    if not fit.ok or fit.tied:
        return frame
    if fit.how != "header":
        return warn(frame, untied) if untied else frame
    error = f"good to {fit.error / 1000:g} arcsec"
    others = sum(other.ok for other in solution.frames) - 1
    return warn(
        frame,
        f"{fit.name} kept on its header's pointing, {error}: 0 stars in common with the {others}"
        " other frames",
    )


def _tie(fit: FrameFit, solution: Solution) -> str:
    """Say in words what ties a frame to the others."""
    mates = sum(other.ok and other.group == fit.group for other in solution.frames) - 1
    ties = [f"{fit.n} stars with {mates} frames"] if fit.group else []
    ties += ["catalogue"] if fit.tied else []
    return ", ".join(ties) or "header"


def _correct(frame: Frame, fit: FrameFit, solution: Solution) -> Frame:
    """Give the frame with the fitted correction of each array; set aside where there is no fit."""
    if not fit.ok:
        return set_aside(frame, fit.reason)
    before, of_frame = geometries(frame), (fit.correction_x, fit.correction_y)
    corrections = (*fit.arrays, *[of_frame] * (len(before) - len(fit.arrays)))
    corrected = tuple(
        geometry._replace(correction_x=rounded_terms(x), correction_y=rounded_terms(y))
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
        "group": fit.group,
        "tie": _tie(fit, solution),
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
        good = usable(stars, shape_of(frame))
        part = np.zeros(len(good), RESIDUAL_DTYPE)
        scale = np.sqrt(pixel_area(geometry, good["x"], good["y"]))
        s, c = (value**2 * scale**2 for value in sine_cosine.few(geometry.pa))
        part["array"] = number
        for column in ("x", "y", "flags"):
            part[column] = good[column]
        # A flat divides by the area of a pixel, of which a star knows nothing.
        static = geometry._replace(correction_x=(), correction_y=())
        area = pixel_area(static, good["x"], good["y"]) / unit_area(frame)
        of_image = image_errors(stars, good, shape_of(frame))
        part["flux"] = area * good["flux"]
        part["eflux"] = area * np.hypot(good["eflux"], of_image * good["flux"])
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
        "mjd": mjd_of_middle(frame),
        "shape": shape_of(frame),
        "stars": solution.stars,
        "centre": (solution.ra, solution.dec),
        "floor_mas": solution.floor,
        "reference_tie": solution.reference_tie._asdict() if solution.reference_tie else {},
    }
    return with_small(frame, solution=small(frame, "solution") | details)
