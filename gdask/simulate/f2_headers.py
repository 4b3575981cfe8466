"""Headers of simulated FLAMINGOS-2 files, card by card as in the archive at their date.

The instrument's own numbers pass through six significant digits and single precision on their way
into the header: a CRVAL above 100 degrees is good to 1.8 arcsec only, one above 10 to 0.18, and
MJD-OBS to 0.05 days.
"""

from __future__ import annotations

from datetime import date as Date
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
from astropy.io.fits import Header

from gdask.simulate.f2_plan import OVERHEAD, READ_OUT_TIME, SETUP_TIME
from gdask.simulate.gemini_headers import (
    PRIMARY,
    CardLike,
    Facts,
    clock,
    clock_values,
    fifteen_digits,
    header,
    hours_of,
    image_cards,
    primary_cards,
    semester,
    telescope_values,
    who_and_what,
)
from gdask.simulate.geometry import FULL_SIZE, rotate
from gdask.simulate.options import F2Options
from gdask.simulate.plan import SECONDS_PER_DAY, Exposure, Identity, utc
from gdask.simulate.seeds import generator

ALIGNMENT = 0.091  # instrument alignment angle (IAA), degrees
MAX_MJD_ERROR = 0.1  # days by which MJD-OBS may be off, before it is rounded
HEADER_KINDS = {
    "science": "target",
    "sky": "sky",
    "dark": "dark",
    "flat_on": "flat",
    "flat_off": "flat",
}
OBJECTS = {"dark": "Dark", "flat_on": "GCALflat", "flat_off": "GCALflat"}
FIELD_OBJECTS = {"sparse": "J0140-3500", "crowded": "J0140-cluster", "extended": "J0140-galaxy"}
OBSTYPES = {"dark": "DARK", "flat_on": "FLAT", "flat_off": "FLAT"}
READ_MODES = {1: "Bright", 4: "Medium", 6: "Medium", 8: "Dark"}  # by number of reads
DARK_BLOCKER = ("DK_G0807", -28000)  # in the second filter wheel: name, position
OPEN_WHEEL_1, OPEN_WHEEL_2 = ("Open", -400), ("Open", 1000)  # name, position
WCS_COMMENT = "WCS matrix element ({},{}) in (deg/pix)"


class FrameTimes(NamedTuple):
    """Times of a frame, MJD (UT)."""

    start: float  # of the frame
    opened: float  # start of the exposure
    end: float  # as UTEND has it


def six_digits(value: float) -> float:
    """A number as it arrives in the header.

    Six significant digits, then single precision, then 15 digits.
    """
    return fifteen_digits(np.float32(f"{value:.6g}"))


def date_of_exposure(exposure: Exposure) -> Date:
    """UT date at the start of an exposure."""
    return utc(exposure.mjd).date()


def reference_pixel(facts: Facts, day: Date) -> tuple[float, float]:
    """CRPIX (1-based, full array): where the telescope points at that date."""
    x, y = facts["wcs"]["crpix"][day >= facts["conventions"]["crpix"]]
    return x, y


def primary_header(
    facts: Facts, options: F2Options, exposure: Exposure, guide_star: tuple[float, float]
) -> Header:
    """The primary header of a raw frame. guide_star: ra, dec, degrees."""
    kind = facts["kinds"][HEADER_KINDS[exposure.kind]]
    values = (
        _identity(options, exposure)
        | _times(facts, options, exposure)
        | _optics(facts, options, exposure)
    )
    if exposure.field:
        values |= telescope_values(exposure, exposure.pa, ALIGNMENT)
    values |= {
        "P2ARA": round(guide_star[0], 8),
        "P2ADEC": round(guide_star[1], 8),
        "GCALSHUT": "OPEN" if exposure.kind == "flat_on" else "CLOSED",
    }
    cards = primary_cards(facts, kind, values)
    return header([*PRIMARY, *_cards_of_the_date(facts, cards, exposure)])


def _cards_of_the_date(facts: Facts, cards: list[CardLike], exposure: Exposure) -> list[CardLike]:
    """Add or move the cards that came, or changed their place, in the course of the years."""
    since, day = facts["conventions"], date_of_exposure(exposure)
    if day < since["metadata"]:
        return [*cards[:-1], ("", "", ""), cards[-1]]
    release = ("RELEASE", cards[-1][1], "End of proprietary period YYY-MM-DD")
    place = [card[0] for card in cards].index("AMEND") + 1
    cards = [*cards[:place], ("PROP_MD", False, "Proprietary Metadata"), release, *cards[place:-1]]
    if day >= since["added_last"]:
        cards = [*cards, ("ORIGNAME", exposure.file, "Original filename prior to processing")]
    if day >= since["seqexec"]:
        cards = [cards[0], ("SEQEXVER", "20200101-00000000", "Seqexec version"), *cards[1:]]
    return cards


def _identity(options: F2Options, exposure: Exposure) -> dict[str, object]:
    """What was observed, and for which programme."""
    on_sky = bool(exposure.field)
    program = f"{semester(exposure)}-Q-20" if on_sky else f"GS-CAL{exposure.file[1:9]}"
    dark_number = 7 if exposure.exptime == 2.0 else 3
    numbers = {"flat_off": 4, "flat_on": 5, "dark": dark_number, "science": 8, "sky": 8}
    number = numbers[exposure.kind]
    usual = Identity(OBJECTS.get(exposure.kind, FIELD_OBJECTS[options.field]), program, number)
    released = utc(exposure.mjd) + timedelta(days=540 if on_sky else 0)
    return {
        "OBSTYPE": OBSTYPES.get(exposure.kind, "OBJECT"),
        "OBSCLASS": "science" if on_sky else "dayCal",
        **who_and_what(exposure, usual),
        "DHSLABEL": exposure.file.removesuffix(".fits"),
        "RELEASE": f"{released:%Y-%m-%d}",
    }


def frame_times(facts: Facts, options: F2Options, exposure: Exposure) -> FrameTimes:
    """When an exposure began and ended.

    Early headers give the end of the exposure before it.
    """
    duration = exposure.exptime * exposure.coadds + READ_OUT_TIME
    jitter = generator(options.seed, "clock", exposure.file).uniform(-0.2, 0.2)
    opened = exposure.mjd + (SETUP_TIME + jitter) / SECONDS_PER_DAY
    end = opened + duration / SECONDS_PER_DAY
    if date_of_exposure(exposure) < facts["conventions"]["utend_own"]:
        idle = OVERHEAD - SETUP_TIME - READ_OUT_TIME if exposure.number > 1 else 30.0
        end = exposure.mjd - (idle - jitter) / SECONDS_PER_DAY
    return FrameTimes(exposure.mjd, opened, end)


def header_mjd(options: F2Options, exposure: Exposure) -> float:
    """MJD-OBS as the header has it: stale, rounded to a tenth of a day."""
    rng = generator(options.seed, "stale", exposure.kind, int(exposure.mjd))
    return six_digits(exposure.mjd + rng.uniform(-MAX_MJD_ERROR, MAX_MJD_ERROR))


def _times(facts: Facts, options: F2Options, exposure: Exposure) -> dict[str, object]:
    """Clocks and times of a frame."""
    mjd, times = exposure.mjd, frame_times(facts, options, exposure)
    year = date_of_exposure(exposure).year
    epoch = year + (utc(mjd) - datetime(year, 1, 1)).days / 365.25
    return clock_values(mjd) | {
        "MJD-OBS": header_mjd(options, exposure),
        "OBSEPOCH": six_digits(epoch),
        "TRKEPOCH": round(mjd - 0.007, 6),
        "UTSTART": clock(hours_of(times.opened), 6),
        "UTEND": clock(hours_of(times.end), 6),
        "EXPTIME": exposure.exptime,
        "COADDS": exposure.coadds,
        "LNRS": exposure.lnrs,
        "NREADS": exposure.lnrs,
    }


def _optics(facts: Facts, options: F2Options, exposure: Exposure) -> dict[str, object]:
    """Filter wheels and read mode."""
    filter_facts, is_dark = facts["filters"][options.filter], exposure.kind == "dark"
    wheel_1 = OPEN_WHEEL_1 if is_dark else (filter_facts["wheel"], filter_facts["position"])
    wheel_2 = DARK_BLOCKER if is_dark else OPEN_WHEEL_2
    return {
        "FILTER": wheel_2[0] if is_dark else wheel_1[0],
        "FILTER1": wheel_1[0],
        "FILTER2": wheel_2[0],
        "FIL1STEP": wheel_1[1],
        "FIL2STEP": wheel_2[1],
        "FILT1ID": filter_facts["wheel"][-5:],
        "WAVELENG": filter_facts["wavelength"],
        "READMODE": READ_MODES[exposure.lnrs],
    }


def image_header(facts: Facts, options: F2Options, exposure: Exposure) -> Header:
    """The header of the image: a cube of one plane, without sections or units."""
    added: list[CardLike] = [
        ("EXTNAME", "SCI", "ad1406: added by AstroData"),
        ("EXTVER", 1, "ad1410: added by AstroData"),
    ]
    last: list[CardLike] = []
    if date_of_exposure(exposure) >= facts["conventions"]["added_last"]:
        added = []
        last = [
            ("EXTVER", 1, "Number assigned to a FITS extension."),
            ("EXTNAME", "SCI", "Added by AstroData"),
        ]
    cards: list[CardLike] = [
        *image_cards((1, options.size, options.size), 32),
        *added,
        *(
            (f"AXISLAB{n}", name, "Axis label")
            for n, name in enumerate(("Xaxis", "Yaxis", "Extensions"), 1)
        ),
        *((f"AMPDAC{n:02d}", 180.0, f"Preamp {n:02d} voltage (in bits)") for n in range(1, 33)),
        *_wcs(facts, options, exposure),
        ("MJD-OBS", header_mjd(options, exposure), "MJD at start of observation"),
        ("INHERIT", False, "Inherits primary header"),
        ("CTYPE1", "RA---TAN", "RA---TAN X-axis"),
        ("CTYPE2", "DEC--TAN", "DEC--TAN Y-axis"),
        ("RADECSYS", "FK5", "R.A./DEC. coordinate system reference"),
        ("FRMNAME", " 1 of 1", "Name assigned to a frame of data."),
        ("FRAMEID", "0", "Frame ID"),
        ("DATATYP", "Intensity", "Type of data frame"),
        *last,
    ]
    return header(cards)


def axes_matrix(facts: Facts, day: Date) -> np.ndarray:
    """The headers' CD matrix at position angle 0, degrees per pixel, at a date."""
    return np.array(facts["wcs"]["cd"][day >= facts["conventions"]["crpix"]]).reshape(2, 2)


def _wcs(facts: Facts, options: F2Options, exposure: Exposure) -> list[CardLike]:
    """The WCS: CRVAL is the claimed pointing; flats and darks keep what was left there."""
    wcs, day = facts["wcs"], date_of_exposure(exposure)
    corner = (FULL_SIZE - options.size) // 2
    crpix = [six_digits(pixel) - corner for pixel in reference_pixel(facts, day)]
    if exposure.field:
        cd = axes_matrix(facts, day)
        (c11, c21), (c12, c22) = (rotate(cd[0, i], cd[1, i], exposure.pa) for i in (0, 1))
        crval = exposure.claimed
    else:
        c11, c12, c21, c22 = wcs["parked_cd"]
        crval = wcs["parked"][HEADER_KINDS[exposure.kind]]
    matrix = {(1, 1): c11, (1, 2): c12, (2, 1): c21, (2, 2): c22}
    return [
        *(
            (f"CD{i}_{j}", six_digits(float(value)), WCS_COMMENT.format(i, j))
            for (i, j), value in matrix.items()
        ),
        ("CD3_3", 1.0, WCS_COMMENT.format(3, 3)),
        *(
            (f"CRPIX{n}", fifteen_digits(np.float32(value)), "Pixel at which reference applies")
            for n, value in enumerate(crpix, 1)
        ),
        *(
            (f"CRVAL{n}", six_digits(value), "Ref pixel value in degrees")
            for n, value in enumerate(crval, 1)
        ),
    ]
