"""One raw frame of a simulated night, whatever the instrument: what its header will claim and what is true of it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np

from gdask.simulate.geometry import Pose
from gdask.simulate.noise import generator
from gdask.simulate.psf import PSF
from gdask.simulate.sky import offset, rotate

MJD_0 = datetime(1858, 11, 17)
NOWHERE = Pose(np.nan, np.nan, np.nan, 1.0, np.zeros((2, 7)))


class Exposure(NamedTuple):
    """One raw frame. Angles are degrees; p, q arcsec; mjd is the start (UT)."""

    file: str
    kind: str  # science, sky, std, flat_on, flat_off, dark
    field: str  # target, sky, std, or nothing
    night: int
    number: int  # in its sequence, from 1
    mjd: float
    exptime: float
    coadds: int
    lnrs: int
    roi: int  # pixels of a region of interest; 0: none
    ra: float  # target of the header
    dec: float
    p: float
    q: float
    header_ra0: float  # where the offsets of the header point
    header_dec0: float
    claimed: tuple[float, float]  # where CRVAL says that the frame points: stale when bad_wcs
    bad_wcs: bool
    pose: Pose
    scale: float  # throughput
    psf: PSF
    light: float  # e-/s in a mean pixel: sky, lamp or thermal


def utc(mjd: float) -> datetime:
    """Calendar time of a Modified Julian Date, to 0.1 ms."""
    return MJD_0 + timedelta(seconds=round(mjd * 86400.0, 4))


def start_of(date: datetime, hours: float, seconds: float) -> float:
    """MJD of `hours` UT of the date plus `seconds`, on a tenth of a second as the headers give it."""
    return (date - MJD_0).days + (hours * 3600.0 + round(seconds, 1)) / 86400.0


def file_name(date: datetime, number: int) -> str:
    """Name of a Gemini South raw file."""
    return f"S{date:%Y%m%d}S{number:04d}.fits"


def pointing(target: tuple[float, float], p: float, q: float, pa: float) -> tuple[float, float]:
    """Sky position of the offset (p, q) arcsec from the target at a position angle."""
    xi, eta = rotate(np.array(p), np.array(q), pa)
    return offset(*target, float(xi), float(eta))


def sky_level(seed: int, usual: float, mjd: float, spread: float) -> float:
    """Sky at a time: waves of 7 to 150 minutes about `usual`, each with an amplitude of `spread` (a fraction) rms."""
    rng = generator(seed, "sky")
    phases, amplitudes = rng.uniform(0, 2 * np.pi, 5), rng.normal(0.0, spread, 5)
    periods = np.array([7.0, 19.0, 37.0, 71.0, 150.0]) / 1440.0
    return usual * (
        1.0 + float((amplitudes * np.sin(2 * np.pi * (mjd % 1.0) / periods + phases)).sum())
    )
