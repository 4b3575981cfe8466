"""Headers of simulated FLAMINGOS-2 files, card by card as the archive's, with the conventions of their date.

The instrument's own numbers pass through six significant digits and single precision on their way into the header:
a CRVAL above 100 degrees is good to 1.8 arcsec only, one above 10 to 0.18, and MJD-OBS to 0.05 days.
"""

from __future__ import annotations

from datetime import date as Date
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
from astropy.io.fits import Header

from gdask.simulate.exposure import Exposure, utc
from gdask.simulate.f2_plan import OVERHEAD, READ_OUT, SETUP
from gdask.simulate.gemini_headers import (
    LONGITUDE,
    Facts,
    clock,
    hours_of,
    semester,
    telescope,
    template,
)
from gdask.simulate.mef import PRIMARY, CardLike, header, image_cards
from gdask.simulate.noise import generator
from gdask.simulate.options import F2Options
from gdask.simulate.sky import rotate, sidereal_time

FULL = 2048
ALIGNMENT = 0.091  # instrument alignment angle (IAA), degrees
STALE = 0.1  # days by which MJD-OBS may be off, before it is rounded
KINDS = {"science": "target", "sky": "sky", "dark": "dark", "flat_on": "flat", "flat_off": "flat"}
OBJECTS = {"dark": "Dark", "flat_on": "GCALflat", "flat_off": "GCALflat"}
FIELD_OBJECTS = {"sparse": "J0140-3500", "crowded": "J0140-cluster", "extended": "J0140-galaxy"}
OBSTYPES = {"dark": "DARK", "flat_on": "FLAT", "flat_off": "FLAT"}
DK = ("DK_G0807", -28000)  # the blocker in the second filter wheel: name, position
WCS_COMMENT = "WCS matrix element ({},{}) in (deg/pix)"


class Clock(NamedTuple):
    """Times of an exposure: UT of the frame's start, of the exposure, of its end as UTEND has it. MJD."""

    start: float
    opened: float
    end: float


def single(value: float) -> float:
    """A number as it arrives in the header: six significant digits, then single precision, then 15 digits."""
    return float(f"{np.float32(f'{value:.6g}'):.15g}")


def of_date(exposure: Exposure) -> Date:
    """UT date at the start of an exposure."""
    return utc(exposure.mjd).date()


def reference_pixel(facts: Facts, day: Date) -> tuple[float, float]:
    """CRPIX (1-based, full array): where the telescope points at that date."""
    x, y = facts["wcs"]["crpix"][day >= facts["conventions"]["crpix"]]
    return x, y


def primary_header(
    facts: Facts, options: F2Options, exposure: Exposure, guide_star: tuple[float, float]
) -> Header:
    """The primary header of a raw frame. guide_star: degrees."""
    kind = KINDS[exposure.kind]
    values = (
        _identity(options, exposure)
        | _time(facts, options, exposure)
        | _optics(facts, options, exposure)
    )
    if exposure.field:
        values |= telescope(exposure, options.pa, ALIGNMENT)
    values |= {
        "P2ARA": round(guide_star[0], 8),
        "P2ADEC": round(guide_star[1], 8),
        "GCALSHUT": "OPEN" if exposure.kind == "flat_on" else "CLOSED",
    }
    cards = template(facts, facts["kinds"][kind], values)
    return header([*PRIMARY, *_of_the_time(facts, cards, exposure)])


def _of_the_time(facts: Facts, cards: list[CardLike], exposure: Exposure) -> list[CardLike]:
    """Cards that came, or changed their place, in the course of the years."""
    since, day = facts["conventions"], of_date(exposure)
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
    on_sky = bool(exposure.field)
    program = f"{semester(exposure)}-Q-20" if on_sky else f"GS-CAL{exposure.file[1:9]}"
    number = (
        8
        if on_sky
        else {"flat_off": 4, "flat_on": 5, "dark": 7 if exposure.exptime == 2.0 else 3}[
            exposure.kind
        ]
    )
    released = utc(exposure.mjd) + timedelta(days=540 if on_sky else 0)
    return {
        "OBJECT": OBJECTS.get(exposure.kind, FIELD_OBJECTS[options.field]),
        "OBSTYPE": OBSTYPES.get(exposure.kind, "OBJECT"),
        "OBSCLASS": "science" if on_sky else "dayCal",
        "GEMPRGID": program,
        "OBSID": f"{program}-{number}",
        "DATALAB": f"{program}-{number}-{exposure.number:03d}",
        "DHSLABEL": exposure.file.removesuffix(".fits"),
        "RELEASE": f"{released:%Y-%m-%d}",
    }


def times(facts: Facts, options: F2Options, exposure: Exposure) -> Clock:
    """When an exposure began and ended; early headers give the end of the exposure before it."""
    duration = exposure.exptime * exposure.coadds + READ_OUT
    jitter = generator(options.seed, "clock", exposure.file).uniform(-0.2, 0.2)
    opened = exposure.mjd + (SETUP + jitter) / 86400.0
    end = opened + duration / 86400.0
    if of_date(exposure) < facts["conventions"]["utend_own"]:
        idle = OVERHEAD - SETUP - READ_OUT if exposure.number > 1 else 30.0
        end = exposure.mjd - (idle - jitter) / 86400.0
    return Clock(exposure.mjd, opened, end)


def modified_julian_date(options: F2Options, exposure: Exposure) -> float:
    """MJD-OBS as the header has it: stale, rounded to a tenth of a day."""
    key = (exposure.kind, int(exposure.mjd))
    return single(exposure.mjd + generator(options.seed, "stale", *key).uniform(-STALE, STALE))


def _time(facts: Facts, options: F2Options, exposure: Exposure) -> dict[str, object]:
    mjd, at = exposure.mjd, times(facts, options, exposure)
    ut, day = clock(hours_of(mjd), 1), of_date(exposure)
    year = day.year + (utc(mjd) - datetime(day.year, 1, 1)).days / 365.25
    return {
        "UT": ut,
        "TIME-OBS": ut,
        "DATE": f"{day}",
        "DATE-OBS": f"{day}",
        "MJD-OBS": modified_julian_date(options, exposure),
        "OBSEPOCH": single(year),
        "TRKEPOCH": round(mjd - 0.007, 6),
        "LT": clock((hours_of(mjd) - 3.0) % 24.0, 1),
        "ST": clock(sidereal_time(mjd, LONGITUDE) / 15.0, 1),
        "UTSTART": clock(hours_of(at.opened), 6),
        "UTEND": clock(hours_of(at.end), 6),
        "EXPTIME": exposure.exptime,
        "COADDS": exposure.coadds,
        "LNRS": exposure.lnrs,
        "NREADS": exposure.lnrs,
    }


def _optics(facts: Facts, options: F2Options, exposure: Exposure) -> dict[str, object]:
    wheel = facts["filters"][options.filter]
    first, place, second, other = wheel["wheel"], wheel["position"], "Open", 1000
    if exposure.kind == "dark":
        first, place, (second, other) = "Open", -400, DK
    return {
        "FILTER": second if exposure.kind == "dark" else first,
        "FILTER1": first,
        "FILTER2": second,
        "FIL1STEP": place,
        "FIL2STEP": other,
        "FILT1ID": wheel["wheel"][-5:],
        "WAVELENG": wheel["wavelength"],
        "READMODE": {1: "Bright", 4: "Medium", 6: "Medium", 8: "Dark"}[exposure.lnrs],
    }


def extension_header(facts: Facts, options: F2Options, exposure: Exposure) -> Header:
    """The header of the image: a cube of one plane, without sections or units."""
    added: list[CardLike] = [
        ("EXTNAME", "SCI", "ad1406: added by AstroData"),
        ("EXTVER", 1, "ad1410: added by AstroData"),
    ]
    last: list[CardLike] = []
    if of_date(exposure) >= facts["conventions"]["added_last"]:
        added, last = (
            [],
            [
                ("EXTVER", 1, "Number assigned to a FITS extension."),
                ("EXTNAME", "SCI", "Added by AstroData"),
            ],
        )
    cards: list[CardLike] = [
        *image_cards((1, options.size, options.size), 32),
        *added,
        *(
            (f"AXISLAB{n}", name, "Axis label")
            for n, name in enumerate(("Xaxis", "Yaxis", "Extensions"), 1)
        ),
        *((f"AMPDAC{n:02d}", 180.0, f"Preamp {n:02d} voltage (in bits)") for n in range(1, 33)),
        *_wcs(facts, options, exposure),
        ("MJD-OBS", modified_julian_date(options, exposure), "MJD at start of observation"),
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


def _wcs(facts: Facts, options: F2Options, exposure: Exposure) -> list[CardLike]:
    """CRVAL from the claimed pointing; flats and darks keep what was left there."""
    wcs, day, corner = facts["wcs"], of_date(exposure), (FULL - options.size) // 2
    crpix = [single(pixel) - corner for pixel in reference_pixel(facts, day)]
    cd = np.array(wcs["cd"][day >= facts["conventions"]["crpix"]]).reshape(2, 2)
    (c11, c21), (c12, c22) = (rotate(*cd[:, i], options.pa) for i in (0, 1))
    crval = exposure.claimed
    if not exposure.field:
        c11, c12, c21, c22 = wcs["parked_cd"]
        crval = wcs["parked"][KINDS[exposure.kind]]
    names = ("CD1_1", "CD1_2", "CD2_1", "CD2_2")
    return [
        *(
            (name, single(float(value)), WCS_COMMENT.format(name[2], name[4]))
            for name, value in zip(names, (c11, c12, c21, c22))
        ),
        ("CD3_3", 1.0, WCS_COMMENT.format(3, 3)),
        *(
            (f"CRPIX{n}", float(f"{np.float32(value):.15g}"), "Pixel at which reference applies")
            for n, value in enumerate(crpix, 1)
        ),
        *(
            (f"CRVAL{n}", single(value), "Ref pixel value in degrees")
            for n, value in enumerate(crval, 1)
        ),
    ]
