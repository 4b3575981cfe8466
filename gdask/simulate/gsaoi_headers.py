"""Headers of simulated GSAOI files, card by card as in the archive.

The archive's quirks of regions of interest are included.
"""

from __future__ import annotations

from datetime import timedelta

import numpy as np
from astropy.io.fits import Header

from gdask.simulate.gemini_headers import (
    PRIMARY,
    CardLike,
    Facts,
    clock,
    clock_values,
    fifteen_digits,
    filled,
    header,
    hours_of,
    image_cards,
    primary_cards,
    section,
    semester,
    telescope_values,
    who_and_what,
)
from gdask.simulate.geometry import FULL_SIZE, Window, offset, rotate
from gdask.simulate.gsaoi_plan import SETUP_TIME, frame_window, read_time
from gdask.simulate.options import GsaoiOptions
from gdask.simulate.plan import MJD_0, SECONDS_PER_DAY, Exposure, Identity, date_of, utc
from gdask.simulate.scene import Stars

DETSEC_ORIGIN = ((2048, 0), (0, 0), (0, 2048), (2048, 2048))  # of each array in the mosaic, (x, y)
ALIGNMENT = 0.959  # instrument alignment angle (IAA), degrees
PARKED_PA = 109.7  # degrees: position angle in the WCS of frames that do not look at the sky
HEADER_KINDS = {"science": "target", "flat_on": "flat", "flat_off": "flat", "dark": "flat"}
OBJECTS = {"std": "9132", "flat_on": "Domeflat", "flat_off": "Domeflat OFF", "dark": "Dark"}
FIELD_OBJECTS = {"crowded": "NGC5128", "extended": "NGC5128", "sparse": "NGC5128-halo"}
OBSCLASSES = {"science": "science", "sky": "science", "std": "partnerCal"}
OBSERVATION_NUMBERS = {"flat_on": 3, "flat_off": 4, "std": 5, "dark": 6}
SCIENCE_OBSERVATION_NUMBER = 21
#: The archive's read noise (e-) where it differs from the measured one, by array and reads.
READ_NOISE_IN_HEADER = {("H2RG-032-061", 8): 16.66}
NO_OFFSETS = dict.fromkeys(
    ("XOFFSET", "YOFFSET", "POFFSET", "QOFFSET", "RAOFFSET", "DECOFFSE", "PA"), 0.0
)
MAX_GUIDE_STARS = 3
GUIDE_STAR_MIN_MAG = 13.5
BRIGHTEST_GUIDE_STAR_COUNTS = 1512300.0


def primary_header(
    facts: Facts, options: GsaoiOptions, exposure: Exposure, stars: dict[str, Stars]
) -> Header:
    """The primary header of a raw frame. stars: by field."""
    kind = facts["kinds"][HEADER_KINDS.get(exposure.kind, exposure.kind)]
    values = _identity(options, exposure) | _times(exposure) | _optics(facts, options, exposure)
    if exposure.field:
        star = {"P1ARA": round(exposure.ra - 0.05, 8), "P1ADEC": round(exposure.dec + 0.04, 8)}
        values |= telescope_values(exposure, exposure.pa, ALIGNMENT) | star
    cards = primary_cards(facts, kind, values)
    if exposure.kind == "science":
        cards = _with_guide_stars(facts, cards, stars["target"])
    return header([*PRIMARY, *cards])


def _identity(options: GsaoiOptions, exposure: Exposure) -> dict[str, object]:
    """What was observed, and for which programme."""
    in_program = exposure.kind in ("science", "sky")
    program = f"{semester(exposure)}-Q-29" if in_program else f"GS-CAL{exposure.file[1:9]}"
    number = OBSERVATION_NUMBERS.get(exposure.kind, SCIENCE_OBSERVATION_NUMBER)
    usual = Identity(OBJECTS.get(exposure.kind, FIELD_OBJECTS[options.field]), program, number)
    released = utc(exposure.mjd) + timedelta(days=365 if exposure.field else 0)
    return {
        "OBSTYPE": "DARK" if exposure.kind == "dark" else "OBJECT",
        "OBSCLASS": OBSCLASSES.get(exposure.kind, "dayCal"),
        **who_and_what(exposure, usual),
        "RELEASE": f"{released:%Y-%m-%d}",
    }


def _times(exposure: Exposure) -> dict[str, object]:
    """Clocks and times of a frame.

    UT is the start of the frame, UTSTART and UTEND bracket the exposure; MJD-OBS is half a minute
    stale.
    """
    mjd, reads = exposure.mjd, read_time(exposure) * exposure.lnrs / 2
    start = mjd + (SETUP_TIME - 0.5 * bool(exposure.roi)) / SECONDS_PER_DAY
    duration = exposure.coadds * exposure.exptime + reads + 0.6
    return clock_values(mjd) | {
        "MJD-OBS": round(mjd - 0.0004, 6),
        "TRKEPOCH": round(mjd - 0.003, 6),
        "UTSTART": clock(hours_of(start), 1),
        "UTEND": clock(hours_of(start + duration / SECONDS_PER_DAY), 1),
        "EXPTIME": exposure.exptime,
        "COADDS": exposure.coadds,
        "LNRS": exposure.lnrs,
        "RDTIME": read_time(exposure),
        "ELAPSED": float(round(exposure.coadds * exposure.exptime + reads + 1.0)),
        "READDLAY": round(exposure.exptime - reads, 1),
    }


def _optics(facts: Facts, options: GsaoiOptions, exposure: Exposure) -> dict[str, object]:
    """Filter wheels; no offsets yet."""
    filter_facts = facts["filters"][options.filter]
    blocked = exposure.kind == "dark"
    return {
        **NO_OFFSETS,
        "FILTER1": "Blocked1_G1114" if blocked else filter_facts["wheel"],
        "FILT1POS": 66033 if blocked else filter_facts["position"],
        "WAVELENG": filter_facts["wavelength"],
    }


def _with_guide_stars(facts: Facts, cards: list[CardLike], stars: Stars) -> list[CardLike]:
    """Add natural guide stars after REQMAXAM, and their counts before AIRMASS."""
    bright_enough = [i for i in range(stars.mag.size) if stars.mag[i] >= GUIDE_STAR_MIN_MAG]
    chosen = bright_enough[:MAX_GUIDE_STARS]
    positions: list[CardLike] = []
    counts: list[CardLike] = []
    for n, star in enumerate(chosen, 1):
        values = {
            "GWFSNCFG": f"TTGS{n}",
            "GWFSNOBJ": stars.id[star],
            "GWFSNRA": round(float(stars.ra[star]), 8),
            "GWFSNDEC": round(float(stars.dec[star]), 8),
        }
        sensor = f"WFS{n}"
        for keyword, value, comment in filled(facts["guide_star"], values):
            comment = comment.replace("WFSN", sensor).replace("star N", f"star {n}")
            positions.append((keyword.replace("WFSN", sensor), value, comment))
        fainter = float(stars.mag[star]) - float(stars.mag[chosen[0]])
        rate = BRIGHTEST_GUIDE_STAR_COUNTS * 10.0 ** (-0.4 * fainter)
        comment = facts["guide_counts"][1].replace("WFSN", sensor)
        counts.append((f"GWFS{n}CTS", float(round(rate, -2)), comment))
    names = [card[0] for card in cards]
    first, second = names.index("REQMAXAM") + 1, names.index("AIRMASS")
    return cards[:first] + positions + cards[first:second] + counts + cards[second:]


def image_header(
    facts: Facts, arrays: list[Facts], array: int, options: GsaoiOptions, exposure: Exposure | None
) -> Header:
    """The header of one array's image.

    Without an exposure, that of the full-frame bad-pixel mask.
    """
    size, roi = (options.size, exposure.roi) if exposure else (FULL_SIZE, 0)
    window = frame_window(size, roi, array)
    bitpix = -32 if exposure else 16
    cards = image_cards((window.size, window.size), bitpix, unsigned=exposure is None)
    cards += [
        ("EXTNAME", "SCI", "ad1406: added by AstroData"),
        ("EXTVER", array + 1, "ad1410: added by AstroData"),
        ("INHERIT", False, "inherit the primary header"),
        ("CCDNAME", f"G{array + 1}", "Array name"),
        ("CCDSIZE", f"[1:{FULL_SIZE},1:{FULL_SIZE}]", "Array dimensions"),
        ("CCDSUM", "1 1", "Array binning"),
    ]
    cards += _sections(window, array) + _wcs(facts, window, array, options, exposure, roi)
    lnrs = exposure.lnrs if exposure else 2
    return header(cards + _array_cards(arrays[array], array, facts, lnrs))


def _sections(window: Window, array: int) -> list[CardLike]:
    """CCDSEC, amplifiers, DETSEC, DATASEC.

    Every second amplifier runs backwards, and so do the rows of the upper arrays.
    """
    dx, dy = DETSEC_ORIGIN[array]
    x1, x2, y1, y2 = window.x + 1, window.x + window.size, window.y + 1, window.y + window.size
    amplifiers = _amplifiers(x1, x2, y1, y2, upper=array > 1)
    last = "D" if array == 0 else "C"
    cards: list[CardLike] = []
    for n, (name, text) in enumerate(amplifiers, 1):
        cards += [
            (f"AMPNAME{n}", last if name == "D" else name, f"Amplifier {n} name"),
            (f"AMPSEC{n}", text, f"Amplifier {n} section"),
        ]
    before_detsec = 2 if len(amplifiers) == 4 else len(cards)
    return [
        ("CCDSEC", section(x1, x2, y1, y2), "Array section"),
        *cards[:before_detsec],
        ("DETSEC", section(x1 + dx, x2 + dx, y1 + dy, y2 + dy), "Detector section (wrt mosaic)"),
        ("DATASEC", section(1, window.size, 1, window.size), "Current datasection of the frame"),
        *cards[before_detsec:],
    ]


def _amplifiers(x1: int, x2: int, y1: int, y2: int, upper: bool) -> list[tuple[str, str]]:
    """Name and section of each amplifier that reads part of columns x1..x2."""
    strips = [("A", 1, 512, 1), ("B", 513, 1024, -1), ("C", 1025, 1536, 1), ("D", 1537, 2048, -1)]
    if upper:
        strips = [(name, lo, hi, step) for name, (_, lo, hi, step) in zip("ABCD", reversed(strips))]
    rows = (y2, y1) if upper else (y1, y2)
    amplifiers = []
    for name, lo, hi, step in strips:
        lo, hi = max(lo, x1), min(hi, x2)
        if lo <= hi:
            columns = (lo, hi) if step > 0 else (hi, lo)
            amplifiers.append((name, section(*columns, *rows)))
    return amplifiers


def _wcs(
    facts: Facts,
    window: Window,
    array: int,
    options: GsaoiOptions,
    exposure: Exposure | None,
    roi: int,
) -> list[CardLike]:
    """The WCS: CRVAL is the claimed pointing.

    CRPIX loses CCDSEC's origin, or, in a region of interest, DETSEC's.
    """
    wcs = facts["wcs"]
    dx, dy = DETSEC_ORIGIN[array] if roi else (0, 0)
    crpix = (wcs["crpix"][array][0] - window.x - dx, wcs["crpix"][array][1] - window.y - dy)
    pa, crval = PARKED_PA, wcs["parked_crval"]
    if exposure is not None and exposure.field:
        pa, (offset_x, offset_y) = exposure.pa, wcs["crval_offset"]
        east, north = rotate(offset_x, offset_y, pa)
        crval = offset(*exposure.claimed, float(east), float(north))
    cd = np.array(wcs["cd"][array]).reshape(2, 2)
    (c11, c21), (c12, c22) = (rotate(cd[0, i], cd[1, i], pa) for i in (0, 1))
    values = (*crpix, *crval, c11, c12, c21, c22)
    names = ("CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2", "CD1_1", "CD1_2", "CD2_1", "CD2_2")
    comments = (
        "Ref pix of axis 1",
        "Ref pix of axis 2",
        "RA at Ref pix in decimal degrees",
        "DEC. at Ref pix in decimal degrees",
        "partial of first axis coord w.r.t. x",
        "partial of first axis coord w.r.t. y",
        "partial of second axis coord w.r.t. x",
        "partial of second axis coord w.r.t. y",
    )
    return [
        ("CTYPE1", "RA---TAN", "R.A. in tangent plane projection"),
        ("CTYPE2", "DEC--TAN", "DEC. in tangent plane projection"),
        *((n, fifteen_digits(float(v)), c) for n, v, c in zip(names, values, comments)),
        ("RADECSYS", "FK5", "R.A./DEC. coordinate system reference"),
        ("XSCALE", wcs["scale"][array][0], "Pixel scale in X (in arcsec)"),
        ("YSCALE", wcs["scale"][array][1], "Pixel scale in Y (in arcsec)"),
    ]


def _array_cards(array_facts: Facts, array: int, facts: Facts, lnrs: int) -> list[CardLike]:
    """Which array it is, its gain and its read noise."""
    name = array_facts["name"]
    measured = array_facts["read_noise"][facts["read_modes"][str(lnrs)]]
    noise = READ_NOISE_IN_HEADER.get((name, lnrs), measured)
    return [
        ("ARRAYID", name, "Array serial number"),
        ("FRMNAME", f"GSAOI_Frame{array + 1}", "Name assigned to a data frame"),
        ("FRAMEID", str(array), "GSAOI Frame identifier"),
        ("DATATYP", "Intensity", "Type of data frame"),
        ("GAIN", fifteen_digits(np.float32(array_facts["gain"])), "Gain (e-/ADU)"),
        ("RDNOISE", fifteen_digits(np.float32(noise)), "Read noise (e-)"),
    ]


def bpm_header(facts: Facts, date: str) -> Header:
    """Primary header of the bad-pixel mask, valid from midnight UT of `date` (YYYYMMDD)."""
    day = f"{date[:4]}-{date[4:6]}-{date[6:]}"
    program, stamp = f"GS-CAL{date}", f"{day}T00:00:00"
    values = {
        **NO_OFFSETS,
        **dict.fromkeys(("UT", "TIME-OBS", "UTSTART", "UTEND"), "00:00:00.0"),
        **dict.fromkeys(("DATE", "DATE-OBS", "RELEASE"), day),
        **dict.fromkeys(("BPMASK", "PREPARE", "GEM-TLM"), stamp),
        "OBJECT": "BPM",
        "OBSTYPE": "BPM",
        "OBSCLASS": "dayCal",
        "GEMPRGID": program,
        "OBSID": f"{program}-900",
        "DATALAB": f"{program}-900-001",
        "LT": "12:34:59.0",
        "ST": "18:08:25.2",
        "TRKEPOCH": 56666.643709,
        "WAVELENG": 10150.0,
        "FILTER1": "Z_G1101",
        "FILT1POS": 4267,
        "MJD-OBS": float((date_of(date) - MJD_0).days),
        "EXPTIME": 8.0,
        "COADDS": 1,
        "LNRS": 2,
        "RDTIME": 5.27849082,
        "ELAPSED": 14.0,
        "READDLAY": 2.7,
    }
    return header([*PRIMARY, *primary_cards(facts, facts["kinds"]["bpm"], values)])
