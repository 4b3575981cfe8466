"""What the header of a stack says: times, exposures, gain, read noise, levels, calibrations.

Levels, gain and read noise of a frame are those of its pixel values, so each step that changes the
values changes them too: `with_scaled_levels`, `without_sky_in_levels`, `levels_on_grid`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from gdask.instruments import descriptor
from gdask.io.frames import array_headers, primary_header, small, with_headers
from gdask.kernels.stack.combine import variance_factor
from gdask.types import Frame, Frames

_SECOND = timedelta(seconds=1)
_LEVELS = ("SATLEVEL", "NONLINEA")
#: Keywords of calibrations in the primary header.
_CALIBRATIONS = ("BPMIM", "FLATIM", "DARKIM")
_COMMENTS = {
    "GAIN": "Electrons per unit of the data, all inputs",
    "RDNOISE": "Read noise of a pixel of all inputs (e-)",
    "SATLEVEL": "Lowest saturation level of the inputs (e-)",
    "SATURATE": "Lowest saturation level of the inputs (e-)",
    "NONLINEA": "Lowest non-linear level of the inputs (e-)",
}


def combined_header(frames: Frames, method: str) -> dict[str, dict[str, Any]]:
    """Give the keywords of a stack, as `with_headers` takes them: `primary` and `each`.

    `method` is the operation of the stack. Gain and read noise are those where all inputs cover a
    pixel: the mean of n inputs has n times the gain of one (times the coadds that it averages), so
    that photon noise is sqrt(data / GAIN), and 1/sqrt(n) of its read noise; a median has a little
    more noise, by the factor that VAR has too.
    """
    primary: dict[str, Any] = {"NCOMBINE": (len(frames), "Number of input images")}
    for number, frame in enumerate(frames, 1):
        primary[f"IMCMB{number:03d}"] = frame.attrs["name"]
    primary |= _exposure_keywords(frames) | _calibration_keywords(frames)
    times, each = _time_keywords(frames)
    pixels = _pixel_keywords(frames, variance_factor(method, len(frames)))
    of_array = {
        key: [(value, _COMMENTS[key]) for value in values] for key, values in pixels.items()
    }
    count = len(array_headers(frames[0]))
    of_array |= {key: [value] * count for key, value in each.items()}
    return {"primary": primary | times | _summary(pixels), "each": of_array}


def _exposure_keywords(frames: Frames) -> dict[str, Any]:
    """Give exposure times and the mean air mass."""
    seconds = float(descriptor(frames[0], "exposure_time") or 0)
    total = sum(float(descriptor(frame, "total_exposure_time") or 0) for frame in frames)
    keywords: dict[str, Any] = {
        "EXPTIME": (seconds, "Exposure time of the pixel values (s)"),
        "TOTEXP": (total, "Total exposure time of all inputs (s)"),
    }
    airmasses = [descriptor(frame, "airmass") for frame in frames]
    known = [value for value in airmasses if value is not None]
    if known:
        keywords["AIRMASS"] = (float(np.mean(known)), "Mean airmass of the inputs")
    return keywords


def _calibration_keywords(frames: Frames) -> dict[str, Any]:
    """Give the calibrations used: names, several where the inputs differ."""
    found: dict[str, Any] = {}
    for key in _CALIBRATIONS:
        names = [str(primary_header(frame).get(key, "") or "") for frame in frames]
        for number, name in enumerate(dict.fromkeys(name for name in names if name)):
            used = f"{key[:-1]}{number + 1}" if number else key
            found[used] = (name, f"used for {names.count(name)} of {len(names)} inputs")
    return found


def _time_keywords(frames: Frames) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the times of a stack for the primary header, and those for each array.

    Start of the first input, end of the last, and the mean of the middles by exposure time.
    """
    known = [frame for frame in frames if descriptor(frame, "ut_datetime") is not None]
    if not known:
        return {}, {}
    first = min(known, key=lambda frame: descriptor(frame, "ut_datetime"))
    last = max(known, key=lambda frame: descriptor(frame, "mjd_end") or 0.0)
    start: datetime = descriptor(first, "ut_datetime")
    end: datetime = descriptor(last, "ut_end") or start
    weights = [float(descriptor(frame, "total_exposure_time") or 0) for frame in known]
    middles = [
        descriptor(frame, "ut_middle") or descriptor(frame, "ut_datetime") for frame in known
    ]
    after = [(middle - start).total_seconds() for middle in middles]
    is_weighted = sum(weights) > 0
    mean = float(np.average(after, weights=weights if is_weighted else None))
    mjd = float(descriptor(first, "mjd_start"))
    middle = start + (max(mean, 0.0) * _SECOND)
    stamps = {"BEG": (start, "Start, UT"), "AVG": (middle, "Middle, UT"), "END": (end, "End, UT")}
    days = {"BEG": mjd, "AVG": mjd + mean / 86400, "END": mjd + (end - start) / (86400 * _SECOND)}
    primary: dict[str, Any] = {"MJD-OBS": (mjd, "MJD at start of observation")}
    for name, (when, comment) in stamps.items():
        primary[f"DATE-{name}"] = (_iso(when), comment)
        primary[f"MJD-{name}"] = (days[name], comment.replace("UT", "MJD"))
    clock = _iso(start)[11:]
    phu = primary_header(frames[0])
    primary |= {"DATE-OBS": _iso(start)[:10], "UT": clock, "UTSTART": clock}
    primary |= {"UTEND": (_iso(end)[11:], "End of the last input")}
    primary |= {"TIME-OBS": clock} if "TIME-OBS" in phu else {}
    return primary, {"MJD-OBS": mjd, "DATE-OBS": _iso(start)}


def _pixel_keywords(frames: Frames, factor: float) -> dict[str, list[float]]:
    """Give gain, read noise and levels of a stack for each array; those that all inputs have.

    `factor`: n times the variance of the result over that of one of n inputs.
    """
    count = len(array_headers(frames[0]))
    found: dict[str, list[float]] = {}
    gains = _each_input(frames, "GAIN", count)
    if gains is not None:
        averaged = [
            1 if descriptor(frame, "is_coadds_summed") else int(descriptor(frame, "coadds") or 1)
            for frame in frames
        ]
        own = [
            1.0 if "NCOMBINE" in primary_header(frame) else float(coadds)
            for frame, coadds in zip(frames, averaged, strict=True)
        ]
        shares = (1.0 / (gains * np.array(own)[:, np.newaxis])).sum(axis=0)
        found["GAIN"] = [float(value) for value in len(frames) ** 2 / shares / factor]
    noise = _each_input(frames, "RDNOISE", count)
    if noise is not None:
        mean = np.sqrt((noise**2).sum(axis=0) * factor) / len(frames)
        found["RDNOISE"] = [float(value) for value in mean]
    for key in _LEVELS:
        levels = _each_input(frames, key, count)
        if levels is not None:
            found[key] = [float(value) for value in levels.min(axis=0)]
    return found | ({"SATURATE": found["SATLEVEL"]} if "SATLEVEL" in found else {})


def _each_input(frames: Frames, key: str, count: int) -> np.ndarray | None:
    """Give a keyword of each array of each input (input, array); None where one lacks it."""
    rows = [[header.get(key) for header in array_headers(frame)] for frame in frames]
    is_whole = all(
        len(row) == count
        and all(isinstance(v, int | float) and (v > 0 or key in _LEVELS) for v in row)
        for row in rows
    )
    return np.array(rows, float) if is_whole else None


def _summary(pixels: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Give the keywords of all arrays together: least levels, rms of read noise, mean of gain."""
    together: dict[str, Callable[..., Any]] = {"GAIN": np.mean, "RDNOISE": _rms}
    return {
        key: (float(together.get(key, np.min)(values)), _COMMENTS[key])
        for key, values in pixels.items()
    }


def _iso(when: datetime) -> str:
    """Give a time as FITS has it, to a millisecond."""
    return when.isoformat(timespec="milliseconds")


def _rms(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def with_scaled_levels(frame: Frame, factor: float) -> Frame:
    """Give the frame with the levels, gain and read noise of pixels that were multiplied."""
    powers = {"SATLEVEL": 1, "NONLINEA": 1, "RDNOISE": 1, "GAIN": -1}
    return _changed(frame, {key: lambda v, _, p=p: v * factor**p for key, p in powers.items()})


def without_sky_in_levels(frame: Frame) -> Frame:
    """Give the frame with levels that are those of its pixels after sky subtraction.

    The sky is the median of its measured background (`measure_background`), array by array; where
    it was not measured, levels stay. SKYMED keeps it.
    """
    measured = small(frame, "background", lazy_is_none=True)
    headers = array_headers(frame)
    if not measured or len(measured) != len(headers) or "SKYMED" in headers[0]:
        return frame
    sky = [float(np.nanmedian(cells)) if np.isfinite(cells).any() else 0.0 for cells in measured]
    changed = _changed(frame, {key: lambda v, n: v - sky[n] for key in _LEVELS})
    return with_headers(changed, each={"SKYMED": [(v, "Median of the sky (e-)") for v in sky]})


def levels_on_grid(frame: Frame, ratio: float) -> dict[str, Any]:
    """Give the keywords of a frame put onto a grid, where the arrays become one image.

    `ratio` is the area of a pixel of the grid over that of an array, which values were multiplied
    by; the read noise is that which sums of pixels have, as VAR. Keywords that an array lacks are
    not given.
    """
    found: dict[str, Any] = {}
    for key in (*_LEVELS, "RDNOISE"):
        values = [header.get(key) for header in array_headers(frame)]
        if all(isinstance(value, int | float) for value in values):
            is_noise = key == "RDNOISE"
            one = _rms(values) * ratio**0.5 if is_noise else min(values) * ratio
            found[key] = (one, "of all arrays" if is_noise else "lowest of all arrays")
    return found


def _changed(frame: Frame, changes: Mapping[str, Any]) -> Frame:
    """Give the frame with keywords of its arrays changed, where they are numbers.

    changes: for each keyword a function of the value and the number of the array.
    """
    headers = array_headers(frame)
    each = {
        key: [change(header[key], number) for number, header in enumerate(headers)]
        for key, change in changes.items()
        if all(isinstance(header.get(key), int | float) for header in headers)
    }
    return with_headers(frame, each=each) if each else frame
