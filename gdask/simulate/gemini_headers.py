"""Parts of raw headers that the simulated Gemini South instruments have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from astropy.io.fits import Card, Header

from gdask.simulate.geometry import rotate
from gdask.simulate.plan import Exposure, Identity, utc

Facts = dict[str, Any]
Values = Mapping[str, object]
CardLike = tuple[str, object, str]  # keyword, value, comment

LATITUDE, LONGITUDE = -30.24075, -70.73669  # Gemini South, degrees
LOCAL_TIME = -3.0  # hours from UT

PRIMARY: tuple[CardLike, ...] = (
    ("SIMPLE", True, "conforms to FITS standard"),
    ("BITPIX", 8, "array data type"),
    ("NAXIS", 0, "number of array dimensions"),
    ("EXTEND", True, ""),
    ("COMMENT", "  FITS (Flexible Image Transport System) format is defined in 'Astronomy", ""),
    ("COMMENT", "  and Astrophysics', volume 376, page 359; bibcode: 2001A&A...376..359H", ""),
)


# Cards ------------------------------------------------------------------------------------------


def header(cards: Iterable[CardLike]) -> Header:
    """A FITS header of the cards, in their order."""
    return Header([Card(*card) for card in cards])


def image_cards(shape: tuple[int, ...], bitpix: int, unsigned: bool = False) -> list[CardLike]:
    """The cards with which every image extension of `shape` (..., ny, nx) begins."""
    cards: list[CardLike] = [
        ("XTENSION", "IMAGE", "Image extension"),
        ("BITPIX", bitpix, "array data type"),
        ("NAXIS", len(shape), "number of array dimensions"),
        *((f"NAXIS{n}", length, "") for n, length in enumerate(reversed(shape), 1)),
        ("PCOUNT", 0, "number of parameters"),
        ("GCOUNT", 1, "number of groups"),
    ]
    return cards + ([("BSCALE", 1, ""), ("BZERO", 32768, "")] if unsigned else [])


def primary_cards(facts: Facts, kind: Facts, values: Values) -> list[CardLike]:
    """The primary header's cards with the differences of a kind of frame applied.

    The values of the kind win over `values`, those of the frame.
    """
    like = facts["kinds"].get(kind.get("like", ""), {})
    values = {**values, **like.get("set", {}), **kind.get("set", {})}
    rows: list[list[object]] = []
    for row in facts["primary"]:
        if row[0] not in kind.get("drop", ()):
            rows.append(row)
        if row[0] == kind.get("after"):
            rows += kind["add"]
    return filled(rows, values)


def filled(template: Sequence[Sequence[object]], values: Values) -> list[CardLike]:
    """Cards of a template: [keyword, value, comment], or [keyword, comment].

    `values` must hold the value of the latter; one in `values` wins over one in the template.
    """
    cards = []
    for row in template:
        keyword, comment = str(row[0]), str(row[-1])
        from_values = keyword in values or len(row) == 2
        cards.append((keyword, values[keyword] if from_values else row[1], comment))
    return cards


def section(x1: int, x2: int, y1: int, y2: int) -> str:
    """An IRAF section, 1-based, both ends included."""
    return f"[{x1}:{x2},{y1}:{y2}]"


def fifteen_digits(value: float | np.floating[Any]) -> float:
    """A number as a header with 15 digits has it."""
    return float(f"{value:.15g}")


def who_and_what(exposure: Exposure, usual: Identity) -> dict[str, object]:
    """What was observed, and for which programme. usual: for a frame that does not say it."""
    name, program, observation = exposure.identity or usual
    return {
        "OBJECT": name or usual.object,
        "GEMPRGID": program,
        "OBSID": f"{program}-{observation}",
        "DATALAB": f"{program}-{observation}-{exposure.number:03d}",
    }


# Times ------------------------------------------------------------------------------------------


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


def clock_values(mjd: float) -> dict[str, object]:
    """Date and clocks at the start of a frame."""
    ut, date = clock(hours_of(mjd), 1), f"{utc(mjd):%Y-%m-%d}"
    return {
        "UT": ut,
        "TIME-OBS": ut,
        "DATE": date,
        "DATE-OBS": date,
        "LT": clock((hours_of(mjd) + LOCAL_TIME) % 24.0, 1),
        "ST": clock(sidereal_time(mjd, LONGITUDE) / 15.0, 1),
    }


# Telescope --------------------------------------------------------------------------------------


def telescope_values(exposure: Exposure, pa: float, alignment: float) -> dict[str, object]:
    """Where the telescope is and what offsets it has made. alignment: IAA, degrees."""
    hour_angle = (sidereal_time(exposure.mjd, LONGITUDE) - exposure.ra + 180.0) % 360.0 - 180.0
    azimuth, elevation, parallactic = horizontal(hour_angle, exposure.dec, LATITUDE)
    last_hour_angle = hour_angle + exposure.exptime * exposure.coadds / 240.0
    last_elevation = horizontal(last_hour_angle, exposure.dec, LATITUDE)[1]
    p, q, iaa = exposure.p, exposure.q, np.radians(alignment)
    east, north = rotate(p, q, pa)
    airmass = [round(1.0 / float(np.sin(np.radians(e))), 3) for e in (elevation, last_elevation)]
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
        "RATRACK": exposure.tracking[0] / 15.0 / float(np.cos(np.radians(exposure.dec))),
        "DECTRACK": exposure.tracking[1],
    }


def sidereal_time(mjd: float, longitude: float) -> float:
    """Mean sidereal time in degrees at East `longitude`.

    Meeus, Astronomical Algorithms, eq. 12.4, without UT1-UTC.
    """
    return (280.46061837 + 360.98564736629 * (mjd - 51544.5) + longitude) % 360.0


def horizontal(hour_angle: float, dec: float, latitude: float) -> tuple[float, float, float]:
    """Azimuth (North through East), elevation and parallactic angle of a point, all degrees."""
    h, d, phi = np.radians([hour_angle, dec, latitude])
    up = np.sin(phi) * np.sin(d) + np.cos(phi) * np.cos(d) * np.cos(h)
    north = np.cos(phi) * np.sin(d) - np.sin(phi) * np.cos(d) * np.cos(h)
    east = -np.cos(d) * np.sin(h)
    parallactic = np.arctan2(np.sin(h), np.tan(phi) * np.cos(d) - np.sin(d) * np.cos(h))
    azimuth = np.degrees(np.arctan2(east, north)) % 360.0
    return float(azimuth), float(np.degrees(np.arcsin(up))), float(np.degrees(parallactic))
