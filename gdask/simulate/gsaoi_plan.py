"""The plan of a simulated GSAOI night: every exposure, what its header will claim and what is true of it.

All randomness of a frame comes from the seed and the frame's own name, so a frame does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import numpy as np

from gdask.simulate.exposure import NOWHERE, Exposure, file_name, pointing, sky_level, start_of
from gdask.simulate.geometry import Chip, Pose, plane
from gdask.simulate.noise import generator
from gdask.simulate.options import GsaoiOptions
from gdask.simulate.psf import PSF, Moffat
from gdask.simulate.sky import offset

TARGET = (201.2925, -43.1015)  # NGC 5128, as in the field's tutorial night
STANDARD = (185.41388, -0.12028)  # star 9132
STANDARD_MAG = 11.9
SKY_OFFSET = (210.0, -160.0)  # arcsec in p and q: 4.4 arcmin
READ = 0.98971703  # s per read of a full frame; half of it in a region of interest
STALE_OFFSET = 80.0  # s that a big offset takes
SETUP = 7.5  # s from the start of a frame (UT) to that of the exposure (UTSTART)
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
)


def read_time(exposure: Exposure) -> float:
    """RDTIME: seconds per read."""
    return READ / 2 if exposure.roi else READ


def plan(
    options: GsaoiOptions, chips: list[Chip], filter_facts: dict[str, float]
) -> list[Exposure]:
    """Every exposure of all nights, in order of time within a night."""
    exposures: list[Exposure] = []
    for night in range(options.nights):
        exposures += _calibrations(options, night, filter_facts)
        exposures += _standards(options, night, chips, filter_facts)
        exposures += _science(options, night, filter_facts)
    return exposures


def numbers(options: GsaoiOptions) -> dict[str, int]:
    """First file number of each sequence: the tutorial night's, moved up where a sequence grows into the next."""
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
    return datetime.strptime(options.date, "%Y%m%d") + timedelta(days=night)


def _calibrations(options: GsaoiOptions, night: int, facts: dict[str, float]) -> Iterator[Exposure]:
    """Dome flats in the afternoon before (UT of the day before), darks in the morning."""
    date, first, n = _date(options, night), numbers(options), options.n_flats
    lamp = facts["lamp"] + facts["thermal"]
    rows = [("flat_on", i, -4.5, 27.0 * i, 8.0, 1, 2, lamp) for i in range(n)]
    rows += [
        ("flat_off", i, -4.5, 27.0 * (n + i) + 396.0, 8.0, 1, 2, facts["thermal"]) for i in range(n)
    ]
    step = options.exptime * options.coadds + READ * options.lnrs / 2 + 14.0
    rows += [
        ("dark", i, 10.5, step * i, options.exptime, options.coadds, options.lnrs, 0.0)
        for i in range(options.n_darks)
    ]
    for kind, i, hours, seconds, exptime, coadds, lnrs, light in rows:
        name = file_name(date, first[kind] + i)
        light *= 1.0 + 0.002 * generator(options.seed, "frame", name).standard_normal()
        yield Exposure(
            name,
            kind,
            "",
            night,
            i + 1,
            start_of(date, hours, seconds),
            exptime,
            coadds,
            lnrs,
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


def _standards(
    options: GsaoiOptions, night: int, chips: list[Chip], facts: dict[str, float]
) -> Iterator[Exposure]:
    """The standard in the middle of each array in turn, the evening before; seeing limited, in a region of interest."""
    date, first = _date(options, night) - timedelta(days=1), numbers(options)["std"]
    for i in range(options.n_std):
        u, v = plane(chips[i % 4], 1024.5, 1024.5)
        p, q = (-round(float(value) * 4) / 4 for value in (u, v))
        mjd = start_of(date, 0.9, 52.0 * i)
        yield _exposure(
            options, file_name(date, first + i), "std", "std", night, i + 1, mjd, p, q, facts
        )


def _science(options: GsaoiOptions, night: int, facts: dict[str, float]) -> Iterator[Exposure]:
    """Blocks of three frames on the target, each followed by its share of the sky frames."""
    date, first = _date(options, night), numbers(options)["science"]
    order = sequence(options.n_science, options.n_sky)
    bad = bad_frames(order, options.bad_wcs)
    seconds, counts, claimed = 0.0, {"science": 0, "sky": 0}, None
    step = options.exptime * options.coadds + READ * options.lnrs / 2 + 14.0
    for i, kind in enumerate(order):
        seconds += 0.0 if i == 0 else step + STALE_OFFSET * (kind != order[i - 1])
        p, q = _dither(counts[kind], options.size, 1.0 if kind == "science" else 1.5)
        counts[kind] += 1
        if kind == "sky":
            p, q = p + SKY_OFFSET[0], q + SKY_OFFSET[1]
        exposure = _exposure(
            options,
            file_name(date, first + i),
            kind,
            "target" if kind == "science" else "sky",
            night,
            night * len(order) + i + 1,
            start_of(date, 2.4, seconds),
            p,
            q,
            facts,
        )
        if i in bad:
            stale = claimed if options.n_sky else pointing(TARGET, *SKY_OFFSET, options.pa)
            exposure = exposure._replace(bad_wcs=True, claimed=stale)
        claimed = exposure.claimed
        yield exposure


def sequence(n_science: int, n_sky: int) -> list[str]:
    """Kinds of frames in order: three on the target, then sky, and again; the last sky block is the longest."""
    blocks = max(1, -(-n_science // 3))
    order: list[str] = []
    for block in range(blocks):
        order += ["science"] * min(3, n_science - 3 * block)
        order += ["sky"] * ((block + 1) * n_sky // blocks - block * n_sky // blocks)
    return order


def bad_frames(order: list[str], count: int) -> set[int]:
    """Indices of the frames whose CRVAL is stale: first frames after a big offset, and those that follow the last."""
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
    """Offset (p, q) of the i-th frame of a field, arcsec: the tutorial's nine, then a spiral; less in small frames."""
    shrink = min(1.0, size / 384.0) * stretch
    if i < len(DITHERS):
        return DITHERS[i][0] * shrink, DITHERS[i][1] * shrink
    radius, angle = 2.4 * np.sqrt((i * 0.6180339887498949) % 1.0), np.radians(137.50776405 * i)
    return round(radius * np.cos(angle) * shrink, 4), round(radius * np.sin(angle) * shrink, 4)


def _exposure(
    options: GsaoiOptions,
    file: str,
    kind: str,
    field: str,
    night: int,
    number: int,
    mjd: float,
    p: float,
    q: float,
    facts: dict[str, float],
) -> Exposure:
    """An exposure of the sky, with what is true of it drawn from the seed and its name."""
    std = kind == "std"
    target = STANDARD if std else TARGET
    header = pointing(target, p, q, options.pa)
    rng = generator(options.seed, "frame", file)
    error = rng.normal(0.0, options.pointing * (5.0 if kind == "sky" else 1.0), 2)
    truth = offset(*header, float(error[0]), float(error[1]))
    twist = generator(options.seed, "night", night).normal(0.034, 0.01) + rng.normal(0.0, 0.0015)
    # 0.965: rms over the square -1..1 of a sum of the seven terms with unit normal coefficients
    warp = np.round(rng.normal(0.0, 1.0, (2, 7)) * options.warp / 0.965, 6)
    pose = Pose(
        *truth, options.pa + float(twist), 1.0 + float(rng.normal(0.0, 0.003 * options.warp)), warp
    )
    exptime, coadds, lnrs, roi = options.exptime, options.coadds, options.lnrs, 0
    if std:
        exptime, coadds, lnrs, roi = 30.0, 1, 2, options.roi
    usual = facts["sky"] if options.sky < 0 else options.sky
    sky = sky_level(options.seed, usual, mjd, 0.012) * {"sky": 1.008, "std": 0.98}.get(field, 1.0)
    return Exposure(
        file,
        kind,
        field,
        night,
        number,
        mjd,
        exptime,
        coadds,
        lnrs,
        roi,
        *target,
        p,
        q,
        *header,
        header,
        False,
        pose,
        float(rng.normal(1.0, 0.01)),
        _psf(rng, kind),
        sky,
    )


def _psf(rng: np.random.Generator, kind: str) -> PSF:
    """Core and halo with the AO loop closed, the seeing's Moffat profile with it open."""
    strehl, core, halo, seeing = rng.normal([0.42, 0.083, 0.45, 0.51], [0.012, 0.0025, 0.012, 0.02])
    if kind == "science":
        return (Moffat(float(strehl), float(core), 4), Moffat(float(1.0 - strehl), float(halo), 3))
    return (Moffat(1.0, float(seeing), 3),)
