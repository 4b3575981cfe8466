"""Parts of raw headers that the simulated Gemini South instruments have in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from gdask.simulate.exposure import Exposure, utc
from gdask.simulate.mef import CardLike, filled
from gdask.simulate.sky import horizontal, rotate, sidereal_time

Facts = dict[str, Any]

LATITUDE, LONGITUDE = -30.24075, -70.73669  # Gemini South, degrees


def template(facts: Facts, kind: Facts, values: dict[str, object]) -> list[CardLike]:
    """The primary header's cards with a kind's differences applied. Its values win over those of the frame."""
    values = (
        values | facts["kinds"].get(kind.get("like", ""), {}).get("set", {}) | kind.get("set", {})
    )
    rows: list[list[object]] = []
    for row in facts["primary"]:
        if row[0] not in kind.get("drop", ()):
            rows.append(row)
        if row[0] == kind.get("after"):
            rows += kind["add"]
    return filled(rows, values)


def semester(exposure: Exposure) -> str:
    """Semester of a frame as programmes are named after it: GS-2013B."""
    start = utc(exposure.mjd)
    year = start.year - (start.month == 1)
    return f"GS-{year}{'A' if 2 <= start.month <= 7 else 'B'}"


def clock(hours: float, digits: int, sign: bool = False) -> str:
    """hh:mm:ss.s of a number of hours."""
    total = round(abs(hours) * 3600.0, digits)
    width = 3 + digits
    text = f"{int(total // 3600):02d}:{int(total % 3600 // 60):02d}:{total % 60:0{width}.{digits}f}"
    return ("-" if hours < 0 else "+") + text if sign else text


def hours_of(mjd: float) -> float:
    """Hours since midnight UT."""
    return (mjd % 1.0) * 24.0


def telescope(exposure: Exposure, pa: float, alignment: float) -> dict[str, object]:
    """Where the telescope is and what offsets it has made; alignment: IAA, degrees."""
    hour_angle = (sidereal_time(exposure.mjd, LONGITUDE) - exposure.ra + 180.0) % 360.0 - 180.0
    azimuth, elevation, parallactic = horizontal(hour_angle, exposure.dec, LATITUDE)
    end = horizontal(
        hour_angle + exposure.exptime * exposure.coadds / 240.0, exposure.dec, LATITUDE
    )[1]
    p, q, iaa = exposure.p, exposure.q, np.radians(alignment)
    east, north = rotate(np.array(p), np.array(q), pa)
    airmass = [round(1.0 / float(np.sin(np.radians(e))), 3) for e in (elevation, end)]
    return {
        "RA": exposure.ra,
        "DEC": exposure.dec,
        "PA": pa,
        "HA": clock(hour_angle / 15.0, 2, sign=True),
        "AZIMUTH": azimuth,
        "ELEVATIO": elevation,
        "CRPA": -((parallactic + alignment + pa) % 360.0 - 180.0),
        "AMSTART": airmass[0],
        "AMEND": airmass[1],
        "AIRMASS": airmass[0],
        "POFFSET": p,
        "QOFFSET": q,
        "RAOFFSET": float(east),
        "DECOFFSE": float(north),
        "XOFFSET": float(-(p * np.cos(iaa) + q * np.sin(iaa))),
        "YOFFSET": float(p * np.sin(iaa) - q * np.cos(iaa)),
    }
