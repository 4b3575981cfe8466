"""The plan of a simulated GSAOI night: every exposure, in order."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import numpy as np

from gdask.simulate.geometry import (
    FULL_SIZE,
    MIDDLE,
    Chip,
    Pose,
    Window,
    offset,
    plane,
    pointing,
    rotate,
)
from gdask.simulate.options import GsaoiOptions
from gdask.simulate.plan import (
    GOLDEN_ANGLE,
    Exposure,
    Sequence,
    calibrations,
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
from gdask.simulate.rendering import PSF, Moffat
from gdask.simulate.seeds import generator
from gdask.simulate.sky_light import drifted

TARGET = (201.2925, -43.1015)  # degrees: NGC 5128, as in the field's tutorial night
STANDARD = (185.41388, -0.12028)  # degrees: star 9132
STANDARD_MAG = 11.9
STANDARD_EXPTIME = 30.0  # s
SKY_OFFSET = (210.0, -160.0)  # arcsec in p and q: 4.4 arcmin

SETUP_TIME = 7.5  # s from the start of a frame (UT) to that of the exposure (UTSTART)
READ_TIME = 0.98971703  # s per read of a full frame; half of it in a region of interest
OVERHEAD = 14.0  # s between exposures
BIG_OFFSET_TIME = 80.0  # s more that a big offset takes
FLAT_EXPTIME, FLAT_CADENCE, FLAT_PAUSE = 8.0, 27.0, 396.0  # s; pause between lamp on and off
STANDARD_CADENCE = 52.0  # s

DITHERS = (
    (0.0, 0.0),
    (1.6875, 1.125),
    (-1.125, 1.6875),
    (1.125, -1.6875),
    (-1.6875, -1.125),
    (2.25, 0.0),
    (0.0, 2.25),
    (-2.25, 0.0),
    (0.0, -2.25),
)  # arcsec
DITHER_RADIUS = 2.4  # arcsec
SKY_DITHER_STRETCH = 1.5  # of the dithers on the sky field
FULL_DITHER_SIZE = 384.0  # pixels: smaller frames have smaller dithers

UNGUIDED_FACTOR = 5.0  # by which the pointing error of unguided frames is larger
#: Rms over the square -1..1 of a sum of the seven WARP_TERMS with unit normal coefficients.
WARP_TERMS_RMS = 0.965

CONTROLLER_ROI = 1024  # the controller's own region of interest, whose rows are one off
ROW_ERROR = (1, 1, -1, -1)  # true rows are CCDSEC's plus this, by array


def frame_window(size: int, roi: int, array: int) -> Window:
    """The central `size` (or `roi`) square of an array.

    The controller's region of 1024 pixels has an error in its rows.
    """
    n = roi or size
    corner = (FULL_SIZE - n) // 2
    return Window(corner, corner, n, corner + (ROW_ERROR[array] if roi == CONTROLLER_ROI else 0))


def read_time(exposure: Exposure) -> float:
    """RDTIME: seconds per read."""
    return READ_TIME / 2 if exposure.roi else READ_TIME


def plan(
    options: GsaoiOptions, chips: list[Chip], filter_facts: dict[str, float]
) -> list[Exposure]:
    """Every exposure of all nights, in order of time within a night."""
    exposures: list[Exposure] = []
    for night in range(options.nights):
        exposures += _daytime(options, night, filter_facts)
        exposures += _standards(options, night, chips, filter_facts)
        exposures += science(options, filter_facts, _science_place(options, night), TARGET)
    # In the middle of an array: the target itself is in the gap between them.
    east, north = rotate(*plane(chips[0], MIDDLE, MIDDLE), options.pa)
    return with_moving_object(exposures, options, offset(*TARGET, float(east), float(north)))


def first_numbers(options: GsaoiOptions) -> dict[str, int]:
    """First file number of each sequence.

    Those of the tutorial's night, moved up where a sequence grows into the next.
    """
    off = max(60, 30 + options.n_flats)
    science = max(95, off + options.n_flats)
    std = max(114, science + options.n_science + options.n_sky)
    return {
        "flat_on": 30,
        "flat_off": off,
        "science": science,
        "std": std,
        "dark": max(200, std + options.n_std),
    }


def _date(options: GsaoiOptions, night: int) -> datetime:
    """Date in the names of a night's science frames."""
    return date_of(options.date) + timedelta(days=night)


def science_step(options: GsaoiOptions) -> float:
    """Seconds from one science frame (or its dark) to the next."""
    return options.exptime * options.coadds + READ_TIME * options.lnrs / 2 + OVERHEAD


def _daytime(options: GsaoiOptions, night: int, facts: dict[str, float]) -> Iterator[Exposure]:
    """Dome flats in the afternoon before (UT of the day before), darks in the morning."""
    date, first, n = _date(options, night), first_numbers(options), options.n_flats
    on = Sequence(date, first["flat_on"], -4.5, night=night)
    yield from flats(options, facts, on, lamp=True)
    pause = FLAT_CADENCE * n + FLAT_PAUSE
    yield from flats(options, facts, on._replace(number=first["flat_off"], seconds=pause), False)
    yield from calibrations(
        options.seed,
        "dark",
        Sequence(date, first["dark"], 10.5, night=night),
        options.n_darks,
        step=science_step(options),
        exptime=options.exptime,
        coadds=options.coadds,
        lnrs=options.lnrs,
        light=0.0,
    )


def flats(
    options: GsaoiOptions, facts: dict[str, float], sequence: Sequence, lamp: bool
) -> Iterator[Exposure]:
    """`options.n_flats` dome flats, with the lamp on or off. facts: those of the filter."""
    yield from calibrations(
        options.seed,
        "flat_on" if lamp else "flat_off",
        sequence,
        options.n_flats,
        step=FLAT_CADENCE,
        exptime=FLAT_EXPTIME,
        coadds=1,
        lnrs=2,
        light=facts["thermal"] + facts["lamp"] * lamp,
    )


def _standards(
    options: GsaoiOptions, night: int, chips: list[Chip], facts: dict[str, float]
) -> Iterator[Exposure]:
    """The standard in the middle of each array in turn, the evening before.

    Seeing limited, in a region of interest.
    """
    date, first = _date(options, night) - timedelta(days=1), first_numbers(options)["std"]
    for i in range(options.n_std):
        u, v = plane(chips[i % 4], MIDDLE, MIDDLE)
        angle = np.radians(GOLDEN_ANGLE * i)  # `std_offset` from the middle, somewhere else in each
        u, v = u + options.std_offset * np.cos(angle), v + options.std_offset * np.sin(angle)
        p, q = (-round(float(value) * 4) / 4 for value in (u, v))
        mjd = start_of(date, 0.9, STANDARD_CADENCE * i)
        file = file_name(date, first + i)
        yield _exposure(options, file, "std", night, i + 1, mjd, p, q, facts, options.pa, STANDARD)


def _science_place(options: GsaoiOptions, night: int) -> Sequence:
    """Where the science frames of a night stand in it."""
    taken = night * (options.n_science + options.n_sky)
    number = first_numbers(options)["science"]
    return Sequence(_date(options, night), number, 2.4, night=night, taken=taken)


def science(
    options: GsaoiOptions,
    facts: dict[str, float],
    sequence: Sequence,
    target: tuple[float, float],
) -> Iterator[Exposure]:
    """Blocks of three frames on the target, each followed by its share of the sky frames.

    facts: those of the filter. target: degrees.
    """
    order = frame_order(options.n_science, options.n_sky)
    second = second_group(order)

    def dither(i: int, kind: str) -> tuple[float, float]:
        return _dither(i, options.size, 1.0 if kind == "science" else SKY_DITHER_STRETCH)

    frames = dithered(order, science_step(options), BIG_OFFSET_TIME, dither, SKY_OFFSET)
    exposures = (
        _exposure(
            options,
            file_name(sequence.date, sequence.number + i),
            kind,
            sequence.night,
            sequence.taken + i + 1,
            start_of(sequence.date, sequence.hours, sequence.seconds + seconds),
            p + options.group_offset * second[i],
            q,
            facts,
            options.pa + options.group_pa * second[i],
            target,
        )
        for i, (kind, seconds, p, q) in enumerate(frames)
    )
    sky_pointing = None if options.n_sky else pointing(target, *SKY_OFFSET, options.pa)
    return with_stale_pointings(exposures, stale_frames(order, options.bad_wcs), sky_pointing)


def frame_order(n_science: int, n_sky: int) -> list[str]:
    """Kinds of frames in order: three on the target, then sky, and again.

    The last sky block is the longest.
    """
    blocks = max(1, -(-n_science // 3))
    order: list[str] = []
    for block in range(blocks):
        order += ["science"] * min(3, n_science - 3 * block)
        order += ["sky"] * ((block + 1) * n_sky // blocks - block * n_sky // blocks)
    return order


def stale_frames(order: list[str], count: int) -> set[int]:
    """Indices of the `count` frames whose CRVAL is stale.

    First frames after a big offset, and those that follow the last big offset.
    """
    starts = [i for i in range(1, len(order)) if order[i] != order[i - 1]]
    last = starts[-1] if starts else 1
    ranked = (
        starts[-2:-1]
        + list(range(last, len(order) - bool(starts)))
        + starts[-3::-1]
        + list(range(1, len(order)))
    )
    return set(list(dict.fromkeys(ranked))[:count])


def _dither(i: int, size: int, stretch: float) -> tuple[float, float]:
    """Offset (p, q) of the i-th frame of a field, arcsec: the tutorial's nine, then a spiral."""
    shrink = min(1.0, size / FULL_DITHER_SIZE) * stretch
    if i < len(DITHERS):
        return DITHERS[i][0] * shrink, DITHERS[i][1] * shrink
    p, q = spiral(i, DITHER_RADIUS)
    return round(p * shrink, 4), round(q * shrink, 4)


def _exposure(
    options: GsaoiOptions,
    file: str,
    kind: str,
    night: int,
    number: int,
    mjd: float,
    p: float,
    q: float,
    facts: dict[str, float],
    pa: float,
    target: tuple[float, float],
) -> Exposure:
    """An exposure of the sky, with what is true of it drawn from the seed and its name."""
    is_std = kind == "std"
    commanded = pointing(target, p, q, pa)
    rng = generator(options.seed, "frame", file)
    error = rng.normal(0.0, options.pointing * (UNGUIDED_FACTOR if kind == "sky" else 1.0), 2)
    true_pointing = offset(*commanded, float(error[0]), float(error[1]))
    twist = generator(options.seed, "night", night).normal(0.034, 0.01) + rng.normal(0.0, 0.0015)
    warp = np.round(rng.normal(0.0, 1.0, (2, 7)) * options.warp / WARP_TERMS_RMS, 6)
    plate_scale = 1.0 + float(rng.normal(0.0, 0.003 * options.warp))
    usual = facts["sky"] if options.sky < 0 else options.sky
    sky = sky_level(options.seed, usual, mjd, 0.012) * {"sky": 1.008, "std": 0.98}.get(kind, 1.0)
    return Exposure(
        file=file,
        kind=kind,
        field="target" if kind == "science" else kind,
        night=night,
        number=number,
        mjd=mjd,
        exptime=STANDARD_EXPTIME if is_std else options.exptime,
        coadds=1 if is_std else options.coadds,
        lnrs=2 if is_std else options.lnrs,
        roi=options.roi if is_std else 0,
        ra=target[0],
        dec=target[1],
        p=p,
        q=q,
        header_ra0=commanded[0],
        header_dec0=commanded[1],
        claimed=commanded,
        bad_wcs=False,
        pose=Pose(*true_pointing, pa + float(twist), plate_scale, warp),
        scale=max(float(rng.normal(1.0, options.transparency)), 0.05),
        psf=drifted(_psf(rng, kind), options.seeing_drift, mjd),
        light=sky,
        pa=pa,
    )


def _psf(rng: np.random.Generator, kind: str) -> PSF:
    """Core and halo with the AO loop closed, the seeing's Moffat profile with it open."""
    strehl, core, halo, seeing = rng.normal([0.42, 0.083, 0.45, 0.51], [0.012, 0.0025, 0.012, 0.02])
    if kind == "science":
        return (Moffat(float(strehl), float(core), 4), Moffat(float(1.0 - strehl), float(halo), 3))
    return (Moffat(1.0, float(seeing), 3),)
