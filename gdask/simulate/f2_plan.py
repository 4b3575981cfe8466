"""The plan of a simulated FLAMINGOS-2 night: every exposure, what its header will claim and what is true of it.

All randomness of a frame comes from the seed and the frame's own name, so a frame does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np

from gdask.simulate.exposure import NOWHERE, Exposure, file_name, pointing, sky_level, start_of
from gdask.simulate.geometry import Pose
from gdask.simulate.noise import generator
from gdask.simulate.options import F2Options
from gdask.simulate.psf import Moffat
from gdask.simulate.sky import offset

TARGET = (25.0625, -35.0083)
SKY_OFFSET = (330.0, -270.0)  # arcsec in p and q: 7.1 arcmin
SETUP = 3.8  # s from the start of a frame (UT) to that of the exposure (UTSTART)
READ_OUT = 7.2  # s from the end of the exposure to that of the read (UTEND)
OVERHEAD = 17.0  # s between exposures
BIG_OFFSET = 60.0  # s more that a big offset takes
SHORT_DARK = 2.0  # s
FAR_ERROR = 0.03  # CRVAL of the offset field is off by so much of the offset
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
)


class Sequence(NamedTuple):
    """Calibrations of one kind: where their light comes from (e-/s/pixel), how they are taken, where they are filed."""

    kind: str
    light: float
    exptime: float
    coadds: int
    lnrs: int
    files: list[tuple[datetime, int]]  # date in the name, number
    hours: float  # UT of the first


def exposure_time(options: F2Options, facts: dict[str, Any]) -> float:
    """Exposure time of a coadd of science frames, s."""
    return options.exptime if options.exptime > 0 else facts["exptime"]


def plan(options: F2Options, facts: dict[str, Any]) -> list[Exposure]:
    """Every exposure: darks, flats, science. facts: those of the filter."""
    exposures: list[Exposure] = []
    for sequence in sequences(options, facts):
        exposures += _calibrations(options, sequence)
    return exposures + list(_science(options, facts))


def sequences(options: F2Options, facts: dict[str, Any]) -> list[Sequence]:
    """Darks and flats, filed as the tutorial's are: within eight days of the science."""
    date, flat = datetime.strptime(options.date, "%Y%m%d"), facts["flat"]
    n, off = options.n_lamps, options.n_lamps + options.n_lamps // 2
    short = max(369, 75 + options.n_science + options.n_sky)
    on_day, off_day = date + timedelta(days=8), date + timedelta(days=5)
    rows = [
        Sequence(
            "dark",
            0.0,
            exposure_time(options, facts),
            options.coadds,
            options.lnrs,
            _dark_files(date, options.n_darks),
            9.6,
        ),
        Sequence(
            "dark",
            0.0,
            SHORT_DARK,
            1,
            1,
            [(date, short + i) for i in range(options.n_short_darks)],
            10.2,
        ),
        Sequence(
            "flat_off",
            flat["closed"],
            flat["exptime"],
            1,
            1,
            [(off_day, 1111 + i) for i in range(off)],
            10.0,
        ),
    ]
    if flat["lamp"]:
        return [
            *rows,
            Sequence(
                "flat_on",
                flat["lamp"] + flat["closed"],
                flat["exptime"],
                1,
                1,
                [(on_day, 320 + i) for i in range(n)],
                10.0,
            ),
        ]
    return [
        *rows,
        Sequence(
            "dark",
            0.0,
            flat["exptime"],
            1,
            1,
            [(off_day, 1111 + off + i) for i in range(off)],
            11.0,
        ),
    ]


def _dark_files(date: datetime, count: int) -> list[tuple[datetime, int]]:
    """Six of the evening before, one of the night, the rest of the night after: as the tutorial's darks are found."""
    day = timedelta(days=1)
    files = [(date - day, 115 + i) for i in range(6)] + [(date, 10), (date + day, 12)]
    files += [(date + day, 438 + i) for i in range(max(0, count - len(files)))]
    return files[:count]


def _calibrations(options: F2Options, sequence: Sequence) -> Iterator[Exposure]:
    """Exposures of one kind, each day's in a row."""
    number = dict.fromkeys((day for day, _ in sequence.files), 0)
    step = sequence.exptime * sequence.coadds + OVERHEAD
    for day, filed in sequence.files:
        name = file_name(day, filed)
        light = sequence.light * (
            1.0 + 0.002 * generator(options.seed, "frame", name).standard_normal()
        )
        start = start_of(day, sequence.hours, step * number[day])
        number[day] += 1
        yield Exposure(
            name,
            sequence.kind,
            "",
            0,
            number[day],
            start,
            sequence.exptime,
            sequence.coadds,
            sequence.lnrs,
            0,
            0.0,
            0.0,
            0.0,
            0.0,
            np.nan,
            np.nan,
            (np.nan, np.nan),
            False,
            NOWHERE,
            np.nan,
            (),
            light,
        )


def _science(options: F2Options, facts: dict[str, Any]) -> Iterator[Exposure]:
    """Dithers on the target; with offsets to sky, in the order target, sky, sky, target and again."""
    date, order = (
        datetime.strptime(options.date, "%Y%m%d"),
        sequence_of(options.n_science, options.n_sky),
    )
    bad = bad_frames(order, options.bad_wcs)
    step = exposure_time(options, facts) * options.coadds + OVERHEAD
    seconds, counts, claimed = 0.0, {"science": 0, "sky": 0}, None
    for i, kind in enumerate(order):
        seconds += 0.0 if i == 0 else step + BIG_OFFSET * (kind != order[i - 1])
        p, q = dither(counts[kind], options.size)
        counts[kind] += 1
        if kind == "sky":
            p, q = p + SKY_OFFSET[0], q + SKY_OFFSET[1]
        exposure = _exposure(
            options, facts, file_name(date, 75 + i), kind, i + 1, start_of(date, 2.5, seconds), p, q
        )
        if i in bad and claimed is not None:
            exposure = exposure._replace(bad_wcs=True, claimed=claimed)
        claimed = exposure.claimed
        yield exposure


def sequence_of(n_science: int, n_sky: int) -> list[str]:
    """Kinds of frames in order: ABBA while there are both, then the rest."""
    left, order = {"science": n_science, "sky": n_sky}, []
    for i in range(2 * (n_science + n_sky)):
        kind = ("science", "sky", "sky", "science")[i % 4]
        if not left[kind]:
            kind = "sky" if kind == "science" else "science"
        if left[kind]:
            left[kind] -= 1
            order.append(kind)
    return order


def bad_frames(order: list[str], count: int) -> set[int]:
    """Indices of the frames whose CRVAL is stale: those after a big offset, from the last one back; then any others."""
    ranked = [i for i in range(len(order) - 1, 0, -1) if order[i] != order[i - 1]]
    return set(list(dict.fromkeys(ranked + list(range(len(order) - 1, 0, -1))))[:count])


def dither(i: int, size: int) -> tuple[float, float]:
    """Offset (p, q) of the i-th frame of a field, arcsec: the tutorial's nine, then a spiral; less in small frames."""
    shrink = min(1.0, size / 512.0)
    if i < len(DITHERS):
        return round(DITHERS[i][0] * shrink, 4), round(DITHERS[i][1] * shrink, 4)
    radius, angle = 20.0 * np.sqrt((i * 0.6180339887498949) % 1.0), np.radians(137.50776405 * i)
    return round(float(radius * np.cos(angle)) * shrink, 2), round(
        float(radius * np.sin(angle)) * shrink, 2
    )


def _exposure(
    options: F2Options,
    facts: dict[str, Any],
    file: str,
    kind: str,
    number: int,
    mjd: float,
    p: float,
    q: float,
) -> Exposure:
    """An exposure of the sky, with what is true of it drawn from the seed and its name."""
    header = pointing(TARGET, p, q, options.pa)
    rng = generator(options.seed, "frame", file)
    error = rng.normal(0.0, options.pointing * (4.0 if kind == "sky" else 1.0), 2)
    truth = offset(*header, float(error[0]), float(error[1]))
    twist = generator(options.seed, "night", 0).normal(-0.02, 0.01) + rng.normal(0.0, 3e-4)
    # differential refraction at changing airmass: a milliarcsec at the edge of the field
    pose = Pose(
        *truth, options.pa + float(twist), 1.0 + float(rng.normal(0.0, 5e-6)), np.zeros((2, 7))
    )
    claimed = (
        pointing(TARGET, p - FAR_ERROR * q, q + FAR_ERROR * p, options.pa)
        if kind == "sky"
        else header
    )
    seeing = float(options.seeing * rng.lognormal(0.0, 0.03))
    usual = facts["sky"] if options.sky < 0 else options.sky
    sky = sky_level(options.seed, usual, mjd, 0.02) * (1.01 if kind == "sky" else 1.0)
    return Exposure(
        file,
        kind,
        "target" if kind == "science" else "sky",
        0,
        number,
        mjd,
        exposure_time(options, facts),
        options.coadds,
        options.lnrs,
        0,
        *TARGET,
        p,
        q,
        *header,
        claimed,
        False,
        pose,
        float(rng.normal(1.0, 0.01)),
        (Moffat(1.0, seeing, 3),),
        sky,
    )
