"""The exposures of a simulated night, whatever the instrument.

An exposure holds what its header will claim and what is true of it. All randomness of a frame comes
from the seed and the frame's own name, so a frame does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np

from gdask.simulate.geometry import Pose, offset
from gdask.simulate.options import F2Options, GsaoiOptions
from gdask.simulate.rendering import PSF
from gdask.simulate.seeds import generator

MJD_0 = datetime(1858, 11, 17)
SECONDS_PER_DAY = 86400.0
UNKNOWN_POSE = Pose(np.nan, np.nan, np.nan, 1.0, np.zeros((2, 7)))
LAMP_SIGMA = 0.002  # of the light of a lamp from frame to frame, as a fraction
SKY_PERIODS = (7.0, 19.0, 37.0, 71.0, 150.0)  # minutes: waves of the sky's level
#: A spiral of dithers: turns by the golden angle (degrees), radii by the golden ratio.
GOLDEN_ANGLE, GOLDEN_RATIO = 137.50776405, 0.6180339887498949


class Identity(NamedTuple):
    """What a header says that a frame is of, and for whom it was taken."""

    object: str  # empty: what such frames are called
    program: str  # GS-2017A-Q-29
    observation: int  # in the programme


class Sequence(NamedTuple):
    """Where frames that are taken in a row stand in their night."""

    date: datetime  # in the file names, midnight UT
    number: int  # in the name of the first file
    hours: float  # UT, hours after midnight of `date` ...
    seconds: float = 0.0  # ... and so many seconds: start of the first frame
    night: int = 0  # from 0
    taken: int = 0  # frames of the same observation before these: data labels go on from there


class Exposure(NamedTuple):
    """One raw frame."""

    file: str
    kind: str  # science, sky, std, flat_on, flat_off, dark
    field: str  # target, sky, std, or nothing
    night: int  # from 0
    number: int  # in its sequence, from 1
    mjd: float  # start, UT
    exptime: float  # s, of a coadd
    coadds: int
    lnrs: int  # non-destructive reads
    roi: int  # pixels of a region of interest; 0: none
    ra: float  # target of the header, degrees
    dec: float  # degrees
    p: float  # offset, arcsec
    q: float  # arcsec
    header_ra0: float  # where the offsets of the header point, degrees
    header_dec0: float  # degrees
    claimed: tuple[float, float]  # where CRVAL says that the frame points: stale when bad_wcs
    bad_wcs: bool
    pose: Pose
    scale: float  # throughput
    psf: PSF
    light: float  # e-/s in a mean pixel: sky, lamp or thermal
    pa: float = 0.0  # position angle of the header, degrees
    identity: Identity | None = None  # None: that of the field's tutorial
    moving: tuple[float, float] | None = None  # place of the object in mid-exposure, degrees
    rate: tuple[float, float] = (0.0, 0.0)  # of the object among the stars, arcsec/s, E and N
    tracking: tuple[float, float] = (0.0, 0.0)  # of the telescope, arcsec/s


def utc(mjd: float) -> datetime:
    """Calendar time of a Modified Julian Date, to 0.1 ms."""
    return MJD_0 + timedelta(seconds=round(mjd * SECONDS_PER_DAY, 4))


def start_of(date: datetime, hours: float, seconds: float) -> float:
    """MJD of `hours` UT of the date plus `seconds`, to a tenth of a second as in headers."""
    return (date - MJD_0).days + (hours * 3600.0 + round(seconds, 1)) / SECONDS_PER_DAY


def date_of(text: str) -> datetime:
    """Midnight of a date YYYYMMDD."""
    return datetime.strptime(text, "%Y%m%d")


def file_name(date: datetime, number: int) -> str:
    """Name of a Gemini South raw file."""
    return f"S{date:%Y%m%d}S{number:04d}.fits"


def sky_level(seed: int, usual: float, mjd: float, spread: float) -> float:
    """Level of the sky at a time: waves of 7 to 150 minutes about the `usual` level.

    spread: rms amplitude of each wave, as a fraction.
    """
    rng = generator(seed, "sky")
    count = len(SKY_PERIODS)
    phases, amplitudes = rng.uniform(0, 2 * np.pi, count), rng.normal(0.0, spread, count)
    periods = np.array(SKY_PERIODS) / 1440.0
    waves = amplitudes * np.sin(2 * np.pi * (mjd % 1.0) / periods + phases)
    return usual * (1.0 + float(waves.sum()))


def calibration(
    seed: int,
    file: str,
    kind: str,
    *,
    night: int,
    number: int,
    mjd: float,
    exptime: float,
    coadds: int,
    lnrs: int,
    light: float,
) -> Exposure:
    """An exposure that does not look at the sky: a flat or a dark.

    light: e-/s in a mean pixel; it varies a little from frame to frame.
    """
    drift = 1.0 + LAMP_SIGMA * generator(seed, "frame", file).standard_normal()
    return Exposure(
        file=file,
        kind=kind,
        field="",
        night=night,
        number=number,
        mjd=mjd,
        exptime=exptime,
        coadds=coadds,
        lnrs=lnrs,
        roi=0,
        ra=0.0,
        dec=0.0,
        p=0.0,
        q=0.0,
        header_ra0=np.nan,
        header_dec0=np.nan,
        claimed=(np.nan, np.nan),
        bad_wcs=False,
        pose=UNKNOWN_POSE,
        scale=np.nan,
        psf=(),
        light=light * drift,
    )


def calibrations(
    seed: int,
    kind: str,
    sequence: Sequence,
    count: int,
    *,
    step: float,
    exptime: float,
    coadds: int,
    lnrs: int,
    light: float,
) -> Iterator[Exposure]:
    """Frames that do not look at the sky, one every `step` seconds, with the same `light`."""
    for i in range(count):
        yield calibration(
            seed,
            file_name(sequence.date, sequence.number + i),
            kind,
            night=sequence.night,
            number=sequence.taken + i + 1,
            mjd=start_of(sequence.date, sequence.hours, sequence.seconds + step * i),
            exptime=exptime,
            coadds=coadds,
            lnrs=lnrs,
            light=light,
        )


def dithered(
    order: list[str],
    step: float,
    big_offset_time: float,
    dither: Callable[[int, str], tuple[float, float]],
    sky_offset: tuple[float, float],
) -> Iterator[tuple[str, float, float, float]]:
    """Kind, start (s after the first) and offset (p, q) (arcsec) of each frame of a sequence.

    order: kinds of the frames, science or sky. step: s from frame to frame; big_offset_time: s more
    between target and sky. dither: offset of the i-th frame of a kind from the middle of its field.
    """
    seconds, counts = 0.0, {"science": 0, "sky": 0}
    for i, kind in enumerate(order):
        seconds += 0.0 if i == 0 else step + big_offset_time * (kind != order[i - 1])
        p, q = dither(counts[kind], kind)
        counts[kind] += 1
        if kind == "sky":
            p, q = p + sky_offset[0], q + sky_offset[1]
        yield kind, seconds, p, q


def second_group(order: list[str]) -> list[bool]:
    """Which frames are of the second group of pointings: every second one on the target."""
    counts = [order[:i].count("science") for i in range(len(order))]
    return [kind == "science" and n % 2 == 1 for kind, n in zip(order, counts)]


def spiral(i: int, largest: float) -> tuple[float, float]:
    """The i-th point (x, y) of a spiral that fills a circle of radius `largest` evenly."""
    radius, angle = largest * np.sqrt((i * GOLDEN_RATIO) % 1.0), np.radians(GOLDEN_ANGLE * i)
    return radius * np.cos(angle), radius * np.sin(angle)


def with_stale_pointings(
    exposures: Iterable[Exposure],
    stale: set[int],
    stale_pointing: tuple[float, float] | None = None,
) -> Iterator[Exposure]:
    """Make the headers of some frames claim the pointing of the frame before.

    stale: indices of these frames, not 0. stale_pointing: what they claim instead, degrees.
    """
    before = (np.nan, np.nan)
    for i, exposure in enumerate(exposures):
        if i in stale:
            exposure = exposure._replace(bad_wcs=True, claimed=stale_pointing or before)
        before = exposure.claimed
        yield exposure


def with_moving_object(
    exposures: list[Exposure], options: GsaoiOptions | F2Options, start: tuple[float, float]
) -> list[Exposure]:
    """Let an object move among the stars, and the telescope follow it where options say so.

    start: where it is (degrees) in the middle of the first exposure on the target.
    """
    east, north = options.object_east / 3600.0, options.object_north / 3600.0
    first = next((exposure for exposure in exposures if exposure.kind == "science"), None)
    if first is None or not (options.object_mag or east or north):
        return exposures
    moved = []
    for exposure in exposures:
        if exposure.kind in ("science", "sky"):
            seconds = _middle(exposure) - _middle(first)
            place = offset(*start, east * seconds, north * seconds)
            rate = east, north
            exposure = exposure._replace(moving=place if options.object_mag else None, rate=rate)
            if options.track == "object":
                exposure = _following(exposure, east * seconds, north * seconds)
        moved.append(exposure)
    return moved


def _middle(exposure: Exposure) -> float:
    """Seconds since MJD 0 of the middle of an exposure."""
    return exposure.mjd * SECONDS_PER_DAY + exposure.exptime * exposure.coadds / 2.0


def _following(exposure: Exposure, east: float, north: float) -> Exposure:
    """Point an exposure, its header and its target so many arcsec elsewhere; it follows its rate.

    The pose is that of the middle of the exposure.
    """
    pose = exposure.pose
    ra0, dec0 = offset(pose.ra0, pose.dec0, east, north)
    ra, dec = offset(exposure.ra, exposure.dec, east, north)
    header_ra0, header_dec0 = offset(exposure.header_ra0, exposure.header_dec0, east, north)
    return exposure._replace(
        pose=pose._replace(ra0=ra0, dec0=dec0),
        header_ra0=header_ra0,
        header_dec0=header_dec0,
        claimed=offset(*exposure.claimed, east, north),
        ra=ra,
        dec=dec,
        tracking=exposure.rate,
    )
