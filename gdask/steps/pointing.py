"""Bring headers into standard form, and check the pointing that they claim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import numpy as np

from gdask import __version__
from gdask.instruments import descriptor, instrument_of, tags, view
from gdask.instruments.view import header_number, number_problem
from gdask.io.frames import (
    array_headers,
    geometries,
    made_once,
    note,
    primary_header,
    shape_of,
    with_geometries,
    with_headers,
    with_provenance,
    with_same_headers,
)
from gdask.kernels.geometry.projection import sine_cosine, tangent_plane, tangent_sky
from gdask.model import GdaskError
from gdask.params import Range
from gdask.steps.frames import on_group, per_array
from gdask.types import Frame, Frames

#: Keywords of an axis of length 1 that raw files have.
_THIRD_AXIS = (
    "CD3_3",
    "CD1_3",
    "CD2_3",
    "CD3_1",
    "CD3_2",
    "CRPIX3",
    "CRVAL3",
    "CTYPE3",
    "CUNIT3",
    "AXISLAB3",
)
#: Arcsec that a pointing may be off for each arcsec of offset: those of far sky frames are, without
#: being wrong.
ERROR_PER_OFFSET = 0.04
#: RATRACK (seconds of RA per second) above which the telescope does not follow the sky at all.
STANDING_RATE = 0.5
#: Tags of frames that point at nothing on the sky.
_NO_POINTING = {"ARC", "BIAS", "DARK", "FLAT", "PINHOLE", "BPM"}


@on_group
def prepare(
    frames: Frames,
    *,
    bad_wcs: Literal["exit", "fix", "new", "ignore"] = "exit",
    limit: Annotated[float, Range(2, None)] = 30.0,
    dither_limit: Annotated[float, Range(0.5, None)] = 10.0,
    max_deadtime: Annotated[float, Range(0, None)] = 60.0,
) -> Frames:
    """Standardise headers, and check the WCS by the offsets. [prepare, standardizeWCS]

    Frames are grouped by observation and by the dead time between exposures. The first frame of a
    group whose pointing agrees with its target and offsets is the base; later ones must move from
    it as their offsets say.

    Parameters
    ----------
    bad_wcs
        What to do with frames whose WCS disagrees with the offsets: exit, fix, new or ignore.
        exit stops and lists them, fix rebuilds them from the base pointing and the offsets, new
        rebuilds all from target and offsets, ignore takes the headers as they are.
    limit
        Arcsec that a pointing may be from target + offsets.
        (GSAOI's reference pixel is 20 arcsec off by itself.)
    dither_limit
        Arcsec that a frame may be from base + offsets.
    max_deadtime
        Seconds between two exposures of one observation that begin a new group.
    """
    frames = tuple(standardised(frame) for frame in frames)
    if bad_wcs == "ignore":
        return frames
    suspects = {} if bad_wcs == "new" else find_bad_wcs(frames, limit, dither_limit, max_deadtime)
    if bad_wcs == "exit" and suspects:
        raise GdaskError(
            listing(suspects)
            + "\nSet prepare:bad_wcs=fix to rebuild them, or ignore to go on as they are"
        )
    return _repair(frames, suspects, bad_wcs == "new", max_deadtime)


def find_bad_wcs(
    frames: Frames, limit: float, dither_limit: float, max_deadtime: float
) -> dict[str, str]:
    """Give the names of the frames with a bad WCS, and why, in words.

    limit, dither_limit (arcsec), max_deadtime (s): as for `prepare`.
    """
    suspects: dict[str, str] = {}
    for group in _groups(frames, max_deadtime):
        base: np.ndarray | None = None
        base_expected = (0.0, 0.0)
        for frame in group:
            miss = _miss(frame)
            if np.hypot(*miss) > limit:
                suspects[frame.attrs["name"]] = (
                    f"points {np.hypot(*miss):.1f} arcsec from its target and offsets"
                )
            elif base is None:
                base, base_expected = miss, expected_pointing(frame)
                begun = exposure_times(frame)[0]
            elif np.hypot(*(miss - base)) > dither_limit + ERROR_PER_OFFSET * np.hypot(
                *tangent_plane(*expected_pointing(frame), *base_expected)
            ) + np.hypot(*tracking_rate(frame)) * _seconds(begun, frame):
                suspects[frame.attrs["name"]] = (
                    f"is {np.hypot(*(miss - base)):.1f} arcsec from where its offsets put it"
                )
    return suspects


def expected_pointing(frame: Frame) -> tuple[float, float]:
    """Give RA, Dec (degrees) of target plus telescope offsets.

    Offsets P, Q (arcsec) are rotated by the position angle (dRA cos Dec = P cos PA + Q sin PA,
    dDec = -P sin PA + Q cos PA): RAOFFSET and DECOFFSE hold unrotated values in some real headers.
    """
    phu = primary_header(frame)
    if problem := number_problem([phu]):
        raise GdaskError(f"{frame.attrs['name']}: {problem}; repair the header")
    angle, p, q, more_east, more_north = (
        float(header_number(phu, keyword) or 0.0)
        for keyword in ("PA", "POFFSET", "QOFFSET", "RATRGOFF", "DECTRGOF")
    )
    sine, cosine = sine_cosine.few(angle)
    east = p * cosine + q * sine + more_east
    north = -p * sine + q * cosine + more_north
    ra, dec = tangent_sky(
        east, north, float(descriptor(frame, "target_ra")), float(descriptor(frame, "target_dec"))
    )
    return float(ra), float(dec)


def tracking_rate(frame: Frame) -> tuple[float, float]:
    """Give how fast the telescope follows the target among the stars, arcsec per second, E and N.

    RATRACK is in seconds of right ascension per second (1.0027 where the telescope stands still, as
    in a dome flat), DECTRACK in arcsec per second. (0, 0) for what is no target that moves.
    """
    if "NON_SIDEREAL" not in tags(frame) or tags(frame) & _NO_POINTING:
        return 0.0, 0.0
    phu, dec = primary_header(frame), float(descriptor(frame, "target_dec") or 0.0)
    ra_rate, dec_rate = (float(phu.get(key, 0.0) or 0.0) for key in ("RATRACK", "DECTRACK"))
    if abs(ra_rate) > STANDING_RATE:
        return 0.0, 0.0
    return 15 * ra_rate * float(sine_cosine.few(dec)[1]), dec_rate


def _seconds(begun: datetime, frame: Frame) -> float:
    """Give the seconds from a time to the begin of a frame, without sign."""
    return abs((exposure_times(frame)[0] - begun).total_seconds())


def frames_on_stars(frames: Frames) -> Frames:
    """Give frames that follow=both has aligned on a moving target as aligned on the stars.

    () where no target moves or only one of the two stacks is wanted.
    """
    if not frames or any("on_target" not in frame.attrs for frame in frames):
        return ()
    return tuple(_on_stars(frame) for frame in frames)


def _on_stars(frame: Frame) -> Frame:
    """Point a frame back to where its stars stand still."""
    move = np.array([float(part) for part in frame.attrs["on_target"].split()])
    text = "aligned on the stars; the target, which moves, is spread in this stack"
    frame = with_headers(moved(frame, -move, ""), primary={"FOLLOWS": "stars"})
    return note(frame.assign_attrs(on_target="", warning=""), text)


def moved(frame: Frame, move: np.ndarray, follow: str) -> Frame:
    """Point the frame's geometry `move` arcsec (East, North) elsewhere; keep that for both."""
    moved = []
    for geometry in geometries(frame):
        ra, dec = tangent_sky(move[0], move[1], geometry.ra, geometry.dec)
        moved.append(geometry._replace(ra=float(ra), dec=float(dec)))
    frame = with_geometries(frame, tuple(moved))
    if follow != "both":
        return frame
    return frame.assign_attrs(on_target=f"{float(move[0])!r} {float(move[1])!r}")


def standardised(frame: Frame) -> Frame:
    """Give the frame with geometries, original name, levels, and the raw file as provenance."""
    if not geometries(frame):
        frame = _with_header_geometry(frame)
    standard = made_once(frame, "standardised", _with_standard_headers)
    return with_provenance(with_same_headers(frame, standard), frame, "prepare")


def _with_standard_headers(frame: Frame) -> Frame:
    """Give the frame with the headers that prepare leaves in it."""
    name = frame.attrs["name"]
    primary = {
        "ORIGNAME": (
            primary_header(frame).get("ORIGNAME", name),
            "Original filename prior to processing",
        ),
        "PROCSOFT": ("gdask", "Data processing software used"),
        "PROCSVER": (__version__, "Data processing software version"),
        "PROCMODE": ("sq", "Processing mode"),
        "PREPARE": (f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}", "UT time stamp for prepare"),
    }
    # From here on these come from the headers, and those of raw files are not right (array 4,
    # several coadds).
    descriptors = {
        "GAIN": "gain",
        "RDNOISE": "read_noise",
        "SATLEVEL": "saturation_level",
        "NONLINEA": "non_linear_level",
    }
    each = (
        {keyword: per_array(frame, name) for keyword, name in descriptors.items()}
        | _missing_sections(frame)
        | _removed_third_axis(frame)
    )
    start = descriptor(frame, "ut_datetime")
    if start is not None and not instrument_of(frame).facts.get("mjd_valid", True):
        # The raw MJD-OBS is stale, and software trusts it.
        mjd = (start - datetime(1858, 11, 17)) / timedelta(days=1)
        primary["MJD-OBS"] = (mjd, "MJD at start of observation")
        each["MJD-OBS"] = [mjd] * frame.sizes["detector"]
        each["DATE-OBS"] = [start.isoformat(timespec="milliseconds")] * frame.sizes["detector"]
    if descriptor(frame, "is_coadds_summed"):
        primary["EXPTIME"] = (descriptor(frame, "exposure_time"), "Exposure time of all coadds (s)")
        each |= _levels_of_sums(frame, each)
    return with_headers(frame, primary=primary, each=each)


def _with_header_geometry(frame: Frame) -> Frame:
    """Give the Frame the geometry of its headers; GdaskError says why where there is none."""
    shape = shape_of(frame)
    return with_geometries(frame, instrument_of(frame).module.geometries(view(frame), shape))


def _missing_sections(frame: Frame) -> dict[str, Sequence[Any]]:
    """Give section keywords that the raw file does not have."""
    names = {"DETSEC": "detector_section", "ARRAYSEC": "array_section", "DATASEC": "data_section"}
    missing = {
        key: name
        for key, name in names.items()
        if all(key not in header for header in array_headers(frame))
    }
    return {key: descriptor(frame, name, pretty=True) for key, name in missing.items()}


def _removed_third_axis(frame: Frame) -> dict[str, Sequence[Any]]:
    """Give keywords to remove: those of an axis of length 1 that only the raw file has."""
    headers = array_headers(frame)
    return {
        key: [None] * len(headers)
        for key in _THIRD_AXIS
        if any(key in header for header in headers)
    }


def _levels_of_sums(frame: Frame, each: dict[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Give levels and read noise of the sum of the coadds, from those of one.

    Levels grow by their number, read noise by the root of it.
    """
    coadds = 1 if tags(frame) & {"PREPARED"} else int(descriptor(frame, "coadds") or 1)
    factors = {"SATLEVEL": coadds, "NONLINEA": coadds, "RDNOISE": math.sqrt(coadds)}
    return {
        key: [value and value * factor for value in each[key]] for key, factor in factors.items()
    }


def has_pointing(frame: Frame) -> bool:
    """Whether a frame points at the sky."""
    return not (tags(frame) & _NO_POINTING) and descriptor(frame, "target_ra") is not None


def _groups(frames: Frames, max_deadtime: float) -> list[list[Frame]]:
    """Group frames that point at the sky by observation and dead time (s)."""
    groups: list[list[Frame]] = []
    last: tuple[str, datetime] | None = None
    for frame in (frame for frame in frames if has_pointing(frame)):
        begin, end = exposure_times(frame)
        observation = str(descriptor(frame, "observation_id"))
        gap = 0.0 if last is None else (begin - last[1]).total_seconds()
        if last is None or observation != last[0] or not 0 <= gap + 86400 <= max_deadtime + 86400:
            groups.append([])
        groups[-1].append(frame)
        last = (observation, end)
    return groups


def exposure_times(frame: Frame) -> tuple[datetime, datetime]:
    """Give the begin of a frame, and its end by the exposure time.

    UTEND of old F2 files is that of the frame before.
    """
    begin = descriptor(frame, "ut_datetime")
    return begin, begin + timedelta(seconds=float(descriptor(frame, "total_exposure_time") or 0.0))


def _miss(frame: Frame) -> np.ndarray:
    """Give the arcsec (East, North) from target plus offsets to where the WCS points."""
    geometry = geometries(frame)[0]
    east_north = tangent_plane(geometry.ra, geometry.dec, *expected_pointing(frame))
    return np.array([float(value) for value in east_north])


def _repair(frames: Frames, suspects: dict[str, str], all_new: bool, max_deadtime: float) -> Frames:
    """Rebuild suspects' WCS from their group's base; with all_new, everyone's from the offsets."""
    miss: dict[str, np.ndarray] = {}
    for group in _groups(frames, max_deadtime):
        good = [frame for frame in group if frame.attrs["name"] not in suspects]
        base = np.zeros(2) if all_new else _miss(good[0]) if good else None
        for frame in group:
            if all_new or frame.attrs["name"] in suspects:
                miss[frame.attrs["name"]] = base if base is not None else np.zeros(2)
    text = (
        f"WCS rebuilt from offsets: {', '.join(miss)}"
        if miss
        else "every WCS agrees with its target and offsets"
    )
    return tuple(note(_repoint(frame, miss.get(frame.attrs["name"])), text) for frame in frames)


def _repoint(frame: Frame, miss: np.ndarray | None) -> Frame:
    """Point the frame at target + offsets + `miss` arcsec (East, North), and shift all its WCS."""
    if miss is None:
        return frame
    position = tangent_sky(miss[0], miss[1], *expected_pointing(frame))
    ra, dec = (float(coordinate) for coordinate in position)
    old = geometries(frame)[0]
    moved = tuple(geometry._replace(ra=ra, dec=dec) for geometry in geometries(frame))
    each: dict[str, Sequence[object]] = {
        key: [
            None if header.get(key) is None else header[key] + shift
            for header in array_headers(frame)
        ]
        for key, shift in (("CRVAL1", ra - old.ra), ("CRVAL2", dec - old.dec))
    }
    return with_headers(with_geometries(frame, moved), each=each)


def listing(suspects: dict[str, str]) -> str:
    """List the frames with a bad WCS, and why."""
    lines = [f"    {name} {why}" for name, why in suspects.items()]
    return "\n".join(["these files have a bad WCS:", *lines])
