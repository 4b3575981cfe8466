"""Targets that move among the stars: stack them, or the stars, or both; check their headers."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from gdask.instruments import descriptor
from gdask.io.frames import geometries, note, small, warn, with_headers
from gdask.kernels.geometry.projection import tangent_plane
from gdask.model import GdaskError
from gdask.params import Range
from gdask.steps.frames import on_group
from gdask.steps.pointing import (
    expected_pointing,
    exposure_times,
    find_bad_wcs,
    has_pointing,
    listing,
    moved,
    standardised,
    tracking_rate,
)
from gdask.types import Frame, Frames

#: Motion (arcsec over all frames) below which a target rests.
MIN_MOTION = 0.001
#: Arcsec by which headers may miss the motion of a target over all frames, and still follow it.
MAX_DRIFT_ERROR = 1.0


@on_group
def check_wcs(
    frames: Frames,
    *,
    limit: Annotated[float, Range(2, None)] = 30.0,
    dither_limit: Annotated[float, Range(0.5, None)] = 10.0,
    max_deadtime: Annotated[float, Range(0, None)] = 60.0,
) -> Frames:
    """List the frames whose WCS disagrees with target and offsets; change nothing. [checkWCS]

    Parameters
    ----------
    limit
        Arcsec that a pointing may be from target + offsets.
    dither_limit
        Arcsec that a frame may be from base + offsets.
    max_deadtime
        Seconds between two exposures of one observation that begin a new group.
    """
    frames = tuple(standardised(frame) for frame in frames)
    suspects = find_bad_wcs(frames, limit, dither_limit, max_deadtime)
    text = listing(suspects) if suspects else "every WCS agrees with its target and offsets"
    drift = _drift_text(frames)
    if drift:
        return tuple(warn(note(frame, text), drift) for frame in frames)
    return tuple(note(frame, text) for frame in frames)


def _drift_text(frames: Frames) -> str:
    """Say how fast a moving target and the pointings of its headers move; '' for one that rests."""
    moving = [frame for frame in frames if any(tracking_rate(frame)) and has_pointing(frame)]
    if len(moving) < 2:
        return ""
    rate = 3600 * np.mean([tracking_rate(frame) for frame in moving], axis=0)
    hours = np.array([_middle_seconds(frame, moving[0]) for frame in moving]) / 3600
    own = np.array([_header_motion(frame, moving[0]) for frame in moving])
    text = f"the target moves at {rate[0]:.2f}, {rate[1]:.2f} arcsec/h (E, N) by the tracking rates"
    if not np.ptp(hours) > 0:
        return text
    off = hours - hours.mean()
    drift = (off[:, None] * own).sum(axis=0) / (off**2).sum()
    text += f"; the headers' pointings less offsets move at {drift[0]:.2f}, {drift[1]:.2f}"
    agrees, rests = (
        np.hypot(*(drift - expected)) * np.ptp(hours) < MAX_DRIFT_ERROR
        for expected in (rate, np.zeros(2))
    )
    if agrees:
        return f"{text}: they follow it"
    return f"{text}: {'they stay' if rests else 'they do neither follow it nor stay'}"


def follow_object(frames: Frames, follow: str, east: float | None, north: float | None) -> Frames:
    """Give aligned frames with pointings in which the moving target, not the stars, stands still.

    It stands where it is at the mean time of the frames. follow: auto and object (the object),
    stars, or both (the object, and `frames_on_stars` gives the others); east, north: its rate,
    arcsec per hour (None: as the headers say). Frames that no star has aligned, whose headers may
    follow the object or not, move as their headers do not.
    """
    rates = np.mean([tracking_rate(frame) for frame in frames], axis=0)
    for axis, given in enumerate((east, north)):
        rates[axis] = rates[axis] if given is None else given / 3600
    if not rates.any() or len(frames) < 2:
        return frames
    times = np.array([_middle_seconds(frame, frames[0]) for frame in frames])
    span = float(np.hypot(*rates) * np.ptp(times))
    if span < MIN_MOTION:
        return frames
    speed = f"the target moves at {3600 * rates[0]:.2f}, {3600 * rates[1]:.2f} arcsec/h (E, N)"
    trail = np.hypot(*rates) * max(float(descriptor(f, "exposure_time") or 0.0) for f in frames)
    if follow == "stars":
        text = f"{speed}: aligned on the stars, it is spread over {span:.2f} arcsec; follow=object"
        text += " stacks it on itself, follow=both writes both stacks"
        return tuple(_with_rate(_with_warning(frame, text), "stars", rates) for frame in frames)
    text = (
        f"{speed}: aligned on it, stars are spread over {span:.2f} arcsec between frames and trail"
        f" by {trail:.2f} in a frame; "
    )
    text += (
        "the stack aligned on the stars is written beside"
        if follow == "both"
        else "follow=stars stacks the stars, follow=both writes both stacks"
    )
    solved = [(small(frame, "solution") or {}).get("placed", "header") for frame in frames]
    by_header = np.array([placed == "header" for placed in solved])
    moves = (times - times.mean())[:, None] * rates
    own = np.array([_header_motion(frame, frames[0]) for frame in frames])
    moves = np.where(by_header[:, None], own - own.mean(axis=0), moves)
    return tuple(
        _with_rate(moved(_with_warning(frame, text), -move, follow), "object", rates)
        for frame, move in zip(frames, moves, strict=True)
    )


def _with_rate(frame: Frame, what: str, rates: np.ndarray) -> Frame:
    """Say in the header what stands still, and how fast the target moves among the stars."""
    east, north = (round(3600 * float(rate), 6) for rate in rates)
    cards = {
        "FOLLOWS": (what, "what stands still in the stack: object or stars"),
        "RATEEAST": (east, "[arcsec/h] motion of the object to the East"),
        "RATENRTH": (north, "[arcsec/h] motion of the object to the North"),
    }
    return with_headers(frame, primary=cards)


def _with_warning(frame: Frame, text: str) -> Frame:
    """Give the frame with a warning beside those that it has."""
    return warn(frame, "; ".join(filter(None, [frame.attrs.get("warning", ""), text])))


def _header_motion(frame: Frame, first: Frame) -> np.ndarray:
    """Give where the header points, less the offsets, from the first frame's target (arcsec)."""
    target = tuple(float(descriptor(first, name)) for name in ("target_ra", "target_dec"))
    own = tuple(float(descriptor(frame, name)) for name in ("target_ra", "target_dec"))
    geometry = geometries(frame)[0]
    pointing = np.array(tangent_plane(geometry.ra, geometry.dec, *target), float)
    return pointing - np.array(tangent_plane(*expected_pointing(frame), *own), float)


def _middle_seconds(frame: Frame, first: Frame) -> float:
    """Give the seconds from the begin of the first frame to the middle of this one."""
    for each in (frame, first):
        if descriptor(each, "ut_datetime") is None:
            raise GdaskError(
                f"{each.attrs['name']}: no DATE-OBS and UT that say when it was taken, which is "
                "needed to follow a moving target; align on the stars with follow=stars"
            )
    begin, end = exposure_times(frame)
    return (begin - exposure_times(first)[0] + (end - begin) / 2).total_seconds()
