"""The plan of a simulated FLAMINGOS-2 night: every exposure, in order."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np

from gdask.simulate.geometry import Pose, offset, pointing
from gdask.simulate.options import F2Options
from gdask.simulate.plan import (
    Exposure,
    Sequence,
    calibration,
    date_of,
    dithered,
    file_name,
    second_group,
    sky_level,
    spiral,
    start_of,
    with_moving_object,
    with_stale_pointings,
)
from gdask.simulate.rendering import Moffat
from gdask.simulate.seeds import generator
from gdask.simulate.sky_light import drifted

TARGET = (25.0625, -35.0083)  # degrees
SKY_OFFSET = (330.0, -270.0)  # arcsec in p and q: 7.1 arcmin

SETUP_TIME = 3.8  # s from the start of a frame (UT) to that of the exposure (UTSTART)
READ_OUT_TIME = 7.2  # s from the end of the exposure to that of the read (UTEND)
OVERHEAD = 17.0  # s between exposures
BIG_OFFSET_TIME = 60.0  # s more that a big offset takes
SHORT_DARK_EXPTIME = 2.0  # s

DITHERS = (
    (0.0, 0.0),
    (14.12, 9.4),
    (-9.88, 13.65),
    (-13.4, -10.2),
    (10.6, -14.05),
    (0.4, 18.2),
    (18.4, -0.35),
    (-0.45, -18.6),
    (-18.15, 0.5),
)  # arcsec
DITHER_RADIUS = 20.0  # arcsec
FULL_DITHER_SIZE = 512.0  # pixels: smaller frames have smaller dithers

UNGUIDED_FACTOR = 4.0  # by which the pointing error of unguided frames is larger
SKY_FIELD_WCS_ERROR = 0.03  # error of CRVAL on the sky field, as a fraction of the offset
#: Rms of the plate scale, as a factor. Differential refraction at changing airmass makes a
#: milliarcsecond at the edge of the field.
PLATE_SCALE_SIGMA = 5e-6

FIRST_SCIENCE_NUMBER = 75  # in the file names, as in the tutorial's night


class CalibrationSet(NamedTuple):
    """Calibrations of one kind that are taken in the same way."""

    kind: str
    light: float  # e-/s in a mean pixel
    exptime: float  # s
    coadds: int
    lnrs: int
    files: list[tuple[datetime, int]]  # date in the name, number
    hours: float  # UT of the first


def exposure_time(options: F2Options, facts: dict[str, Any]) -> float:
    """Exposure time (s) of a coadd of science frames. facts: those of the filter."""
    return options.exptime if options.exptime > 0 else facts["exptime"]


def plan(options: F2Options, facts: dict[str, Any]) -> list[Exposure]:
    """Every exposure: darks, flats, science. facts: those of the filter."""
    exposures: list[Exposure] = []
    for calibrations in calibration_sets(options, facts):
        exposures += _calibrations(options, calibrations)
    place = Sequence(date_of(options.date), FIRST_SCIENCE_NUMBER, 2.5)
    exposures += science(options, facts, place, TARGET)
    return with_moving_object(exposures, options, TARGET)


def calibration_sets(options: F2Options, facts: dict[str, Any]) -> list[CalibrationSet]:
    """Darks and flats, filed as the tutorial's are: within eight days of the science."""
    date, flat = date_of(options.date), facts["flat"]
    n_on, n_off = options.n_lamps, options.n_lamps + options.n_lamps // 2
    short = max(369, FIRST_SCIENCE_NUMBER + options.n_science + options.n_sky)
    on_day, off_day = date + timedelta(days=8), date + timedelta(days=5)
    exptime, flat_exptime = exposure_time(options, facts), flat["exptime"]
    dark_files = _dark_files(date, options.n_darks)
    short_files = [(date, short + i) for i in range(options.n_short_darks)]
    off_files = [(off_day, 1111 + i) for i in range(n_off)]
    sets = [
        CalibrationSet("dark", 0.0, exptime, options.coadds, options.lnrs, dark_files, 9.6),
        CalibrationSet("dark", 0.0, SHORT_DARK_EXPTIME, 1, 1, short_files, 10.2),
        CalibrationSet("flat_off", flat["closed"], flat_exptime, 1, 1, off_files, 10.0),
    ]
    if flat["lamp"]:
        light, files = flat["lamp"] + flat["closed"], [(on_day, 320 + i) for i in range(n_on)]
        return [*sets, CalibrationSet("flat_on", light, flat_exptime, 1, 1, files, 10.0)]
    files = [(off_day, 1111 + n_off + i) for i in range(n_off)]
    return [*sets, CalibrationSet("dark", 0.0, flat_exptime, 1, 1, files, 11.0)]


def _dark_files(date: datetime, count: int) -> list[tuple[datetime, int]]:
    """Date and number of each dark, as the tutorial's darks are found.

    Six of the evening before, one of the night, the rest of the night after.
    """
    day = timedelta(days=1)
    files = [(date - day, 115 + i) for i in range(6)] + [(date, 10), (date + day, 12)]
    files += [(date + day, 438 + i) for i in range(max(0, count - len(files)))]
    return files[:count]


def _calibrations(options: F2Options, calibrations: CalibrationSet) -> Iterator[Exposure]:
    """Exposures of one kind, each day's in a row."""
    taken = dict.fromkeys((day for day, _ in calibrations.files), 0)
    step = calibrations.exptime * calibrations.coadds + OVERHEAD
    for day, number in calibrations.files:
        start = start_of(day, calibrations.hours, step * taken[day])
        taken[day] += 1
        yield calibration(
            options.seed,
            file_name(day, number),
            calibrations.kind,
            night=0,
            number=taken[day],
            mjd=start,
            exptime=calibrations.exptime,
            coadds=calibrations.coadds,
            lnrs=calibrations.lnrs,
            light=calibrations.light,
        )


def science(
    options: F2Options, facts: dict[str, Any], sequence: Sequence, target: tuple[float, float]
) -> Iterator[Exposure]:
    """Dithers on the target; with offsets to sky, as target, sky, sky, target, repeated.

    facts: those of the filter. target: degrees.
    """
    order = frame_order(options.n_science, options.n_sky)
    second = second_group(order)
    step = exposure_time(options, facts) * options.coadds + OVERHEAD

    def dither(i: int, _: str) -> tuple[float, float]:
        return _dither(i, options.size)

    exposures = (
        _exposure(
            options,
            facts,
            file_name(sequence.date, sequence.number + i),
            kind,
            sequence.night,
            sequence.taken + i + 1,
            start_of(sequence.date, sequence.hours, sequence.seconds + seconds),
            p + options.group_offset * second[i],
            q,
            options.pa + options.group_pa * second[i],
            target,
        )
        for i, (kind, seconds, p, q) in enumerate(
            dithered(order, step, BIG_OFFSET_TIME, dither, SKY_OFFSET)
        )
    )
    return with_stale_pointings(exposures, stale_frames(order, options.bad_wcs))


def frame_order(n_science: int, n_sky: int) -> list[str]:
    """Kinds of frames in order: ABBA while there are both, then the rest."""
    left = {"science": n_science, "sky": n_sky}
    order: list[str] = []
    for i in range(2 * (n_science + n_sky)):
        kind = ("science", "sky", "sky", "science")[i % 4]
        if not left[kind]:
            kind = "sky" if kind == "science" else "science"
        if left[kind]:
            left[kind] -= 1
            order.append(kind)
    return order


def stale_frames(order: list[str], count: int) -> set[int]:
    """Indices of the `count` frames whose CRVAL is stale.

    Those after a big offset, from the last one back; then any others.
    """
    ranked = [i for i in range(len(order) - 1, 0, -1) if order[i] != order[i - 1]]
    return set(list(dict.fromkeys(ranked + list(range(len(order) - 1, 0, -1))))[:count])


def _dither(i: int, size: int) -> tuple[float, float]:
    """Offset (p, q) of the i-th frame of a field, arcsec: the tutorial's nine, then a spiral."""
    shrink = min(1.0, size / FULL_DITHER_SIZE)
    if i < len(DITHERS):
        return round(DITHERS[i][0] * shrink, 4), round(DITHERS[i][1] * shrink, 4)
    p, q = spiral(i, DITHER_RADIUS)
    return round(float(p) * shrink, 2), round(float(q) * shrink, 2)


def _exposure(
    options: F2Options,
    facts: dict[str, Any],
    file: str,
    kind: str,
    night: int,
    number: int,
    mjd: float,
    p: float,
    q: float,
    pa: float,
    target: tuple[float, float],
) -> Exposure:
    """An exposure of the sky, with what is true of it drawn from the seed and its name."""
    is_sky = kind == "sky"
    commanded = pointing(target, p, q, pa)
    rng = generator(options.seed, "frame", file)
    error = rng.normal(0.0, options.pointing * (UNGUIDED_FACTOR if is_sky else 1.0), 2)
    true_pointing = offset(*commanded, float(error[0]), float(error[1]))
    twist = generator(options.seed, "night", night).normal(-0.02, 0.01) + rng.normal(0.0, 3e-4)
    plate_scale = 1.0 + float(rng.normal(0.0, PLATE_SCALE_SIGMA))
    claimed = commanded
    if is_sky:
        wrong_p, wrong_q = p - SKY_FIELD_WCS_ERROR * q, q + SKY_FIELD_WCS_ERROR * p
        claimed = pointing(target, wrong_p, wrong_q, pa)
    seeing = float(options.seeing * rng.lognormal(0.0, 0.03))
    usual = facts["sky"] if options.sky < 0 else options.sky
    sky = sky_level(options.seed, usual, mjd, 0.02) * (1.01 if is_sky else 1.0)
    return Exposure(
        file=file,
        kind=kind,
        field="sky" if is_sky else "target",
        night=night,
        number=number,
        mjd=mjd,
        exptime=exposure_time(options, facts),
        coadds=options.coadds,
        lnrs=options.lnrs,
        roi=0,
        ra=target[0],
        dec=target[1],
        p=p,
        q=q,
        header_ra0=commanded[0],
        header_dec0=commanded[1],
        claimed=claimed,
        bad_wcs=False,
        pose=Pose(*true_pointing, pa + float(twist), plate_scale, np.zeros((2, 7))),
        scale=max(float(rng.normal(1.0, options.transparency)), 0.05),
        psf=drifted((Moffat(1.0, seeing, 3),), options.seeing_drift, mjd),
        light=sky,
        pa=pa,
    )
