"""Headers of simulated GSAOI files, card by card as the archive's, quirks of regions of interest included."""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

import numpy as np
from astropy.io.fits import Header

from gdask.simulate.exposure import Exposure, utc
from gdask.simulate.gemini_headers import (
    LONGITUDE,
    Facts,
    clock,
    hours_of,
    semester,
    telescope,
    template,
)
from gdask.simulate.gsaoi_plan import SETUP, read_time
from gdask.simulate.mef import PRIMARY, CardLike, filled, header, image_cards, section
from gdask.simulate.options import GsaoiOptions
from gdask.simulate.scene import Stars
from gdask.simulate.sky import offset, rotate, sidereal_time

FULL = 2048
DETSEC_ORIGIN = ((2048, 0), (0, 0), (0, 2048), (2048, 2048))  # of each array in the mosaic, (x, y)
ALIGNMENT = 0.959  # instrument alignment angle (IAA), degrees
CONTROLLER_ROI = 1024  # the controller's own region of interest, whose rows are one off
ROW_ERROR = (1, 1, -1, -1)  # true rows are CCDSEC's plus this, by array
HEADER_KINDS = {"science": "target", "flat_on": "flat", "flat_off": "flat", "dark": "flat"}
OBJECTS = {"std": "9132", "flat_on": "Domeflat", "flat_off": "Domeflat OFF", "dark": "Dark"}
FIELD_OBJECTS = {"crowded": "NGC5128", "extended": "NGC5128", "sparse": "NGC5128-halo"}
READ_NOISE_IN_HEADER = {
    ("H2RG-032-061", 8): 16.66
}  # the archive's value differs from the measured one


class Window(NamedTuple):
    """A square part of an array: 0-based corner (x, y) as the header gives it, size, and the true first row."""

    x: int
    y: int
    size: int
    true_y: int


def window(size: int, roi: int, array: int) -> Window:
    """The central `size` (or `roi`) square of an array, with the row error of the controller's 1024 region."""
    n = roi or size
    corner = (FULL - n) // 2
    return Window(corner, corner, n, corner + (ROW_ERROR[array] if roi == CONTROLLER_ROI else 0))


def primary_header(
    facts: Facts, options: GsaoiOptions, exposure: Exposure, stars: dict[str, Stars]
) -> Header:
    """The primary header of a raw frame."""
    kind = facts["kinds"][HEADER_KINDS.get(exposure.kind, exposure.kind)]
    values = _identity(options, exposure) | _time(exposure) | _optics(facts, options, exposure)
    if exposure.field:
        star = {"P1ARA": round(exposure.ra - 0.05, 8), "P1ADEC": round(exposure.dec + 0.04, 8)}
        values |= telescope(exposure, options.pa, ALIGNMENT) | star
    cards = template(facts, kind, values)
    if exposure.kind == "science":
        cards = _guide_stars(facts, cards, stars["target"])
    return header([*PRIMARY, *cards])


def _identity(options: GsaoiOptions, exposure: Exposure) -> dict[str, object]:
    night = exposure.file[1:9]
    program = (
        f"GS-CAL{night}"
        if exposure.kind not in ("science", "sky")
        else f"{semester(exposure)}-Q-29"
    )
    number = {"flat_on": 3, "flat_off": 4, "std": 5, "dark": 6}.get(exposure.kind, 21)
    released = utc(exposure.mjd) + timedelta(days=365 if exposure.field else 0)
    return {
        "OBJECT": OBJECTS.get(exposure.kind, FIELD_OBJECTS[options.field]),
        "OBSTYPE": "DARK" if exposure.kind == "dark" else "OBJECT",
        "OBSCLASS": {"science": "science", "sky": "science", "std": "partnerCal"}.get(
            exposure.kind, "dayCal"
        ),
        "GEMPRGID": program,
        "OBSID": f"{program}-{number}",
        "DATALAB": f"{program}-{number}-{exposure.number:03d}",
        "RELEASE": f"{released:%Y-%m-%d}",
    }


def _time(exposure: Exposure) -> dict[str, object]:
    """Clocks: UT is the start of the frame, UTSTART and UTEND bracket the exposure; MJD-OBS is half a minute stale."""
    mjd, reads = exposure.mjd, read_time(exposure) * exposure.lnrs / 2
    start = mjd + (SETUP - 0.5 * bool(exposure.roi)) / 86400.0
    duration = exposure.coadds * exposure.exptime + reads + 0.6
    ut, date = clock(hours_of(mjd), 1), f"{utc(mjd):%Y-%m-%d}"
    return {
        "UT": ut,
        "TIME-OBS": ut,
        "DATE": date,
        "DATE-OBS": date,
        "MJD-OBS": round(mjd - 0.0004, 6),
        "TRKEPOCH": round(mjd - 0.003, 6),
        "LT": clock((hours_of(mjd) - 3.0) % 24.0, 1),
        "ST": clock(sidereal_time(mjd, LONGITUDE) / 15.0, 1),
        "UTSTART": clock(hours_of(start), 1),
        "UTEND": clock(hours_of(start + duration / 86400.0), 1),
        "EXPTIME": exposure.exptime,
        "COADDS": exposure.coadds,
        "LNRS": exposure.lnrs,
        "RDTIME": read_time(exposure),
        "ELAPSED": float(round(exposure.coadds * exposure.exptime + reads + 1.0)),
        "READDLAY": round(exposure.exptime - reads, 1),
    }


def _optics(facts: Facts, options: GsaoiOptions, exposure: Exposure) -> dict[str, object]:
    filter_facts = facts["filters"][options.filter]
    blocked = exposure.kind == "dark"
    zero = dict.fromkeys(
        ("XOFFSET", "YOFFSET", "POFFSET", "QOFFSET", "RAOFFSET", "DECOFFSE", "PA"), 0.0
    )
    return zero | {
        "FILTER1": "Blocked1_G1114" if blocked else filter_facts["wheel"],
        "FILT1POS": 66033 if blocked else filter_facts["position"],
        "WAVELENG": filter_facts["wavelength"],
    }


def _guide_stars(facts: Facts, cards: list[CardLike], stars: Stars) -> list[CardLike]:
    """Three natural guide stars after REQMAXAM, their counts before AIRMASS."""
    chosen = [i for i in range(stars.mag.size) if stars.mag[i] >= 13.5][:3]
    added: list[CardLike] = []
    counts: list[CardLike] = []
    for n, star in enumerate(chosen, 1):
        values = {
            "GWFSNCFG": f"TTGS{n}",
            "GWFSNOBJ": stars.id[star],
            "GWFSNRA": round(float(stars.ra[star]), 8),
            "GWFSNDEC": round(float(stars.dec[star]), 8),
        }
        added += [
            (
                k.replace("WFSN", f"WFS{n}"),
                v,
                c.replace("WFSN", f"WFS{n}").replace("star N", f"star {n}"),
            )
            for k, v, c in filled(facts["guide_star"], values)
        ]
        rate = 1512300.0 * 10.0 ** (-0.4 * (float(stars.mag[star]) - float(stars.mag[chosen[0]])))
        counts.append(
            (
                f"GWFS{n}CTS",
                float(round(rate, -2)),
                facts["guide_counts"][1].replace("WFSN", f"WFS{n}"),
            )
        )
    names = [card[0] for card in cards]
    first, second = names.index("REQMAXAM") + 1, names.index("AIRMASS")
    return cards[:first] + added + cards[first:second] + counts + cards[second:]


def extension_header(
    facts: Facts, arrays: list[Facts], array: int, options: GsaoiOptions, exposure: Exposure | None
) -> Header:
    """The header of one array's image; without an exposure, that of the full-frame bad-pixel mask."""
    size, roi = (options.size, exposure.roi) if exposure else (FULL, 0)
    w = window(size, roi, array)
    cards = image_cards((w.size, w.size), -32 if exposure else 16, unsigned=exposure is None)
    cards += [
        ("EXTNAME", "SCI", "ad1406: added by AstroData"),
        ("EXTVER", array + 1, "ad1410: added by AstroData"),
        ("INHERIT", False, "inherit the primary header"),
        ("CCDNAME", f"G{array + 1}", "Array name"),
        ("CCDSIZE", f"[1:{FULL},1:{FULL}]", "Array dimensions"),
        ("CCDSUM", "1 1", "Array binning"),
    ]
    cards += _sections(w, array) + _wcs(facts, w, array, options, exposure, roi)
    return header(cards + _end(arrays[array], array, facts, exposure.lnrs if exposure else 2))


def _sections(w: Window, array: int) -> list[CardLike]:
    """CCDSEC, amplifiers, DETSEC, DATASEC. Every second amplifier runs backwards, and the rows of the upper arrays."""
    dx, dy = DETSEC_ORIGIN[array]
    x1, x2, y1, y2 = w.x + 1, w.x + w.size, w.y + 1, w.y + w.size
    amps = _amplifiers(x1, x2, y1, y2, upper=array > 1)
    last = "D" if array == 0 else "C"
    cards: list[CardLike] = []
    for n, (name, text) in enumerate(amps, 1):
        cards += [
            (f"AMPNAME{n}", last if name == "D" else name, f"Amplifier {n} name"),
            (f"AMPSEC{n}", text, f"Amplifier {n} section"),
        ]
    cut = 2 if len(amps) == 4 else len(cards)
    return [
        ("CCDSEC", section(x1, x2, y1, y2), "Array section"),
        *cards[:cut],
        ("DETSEC", section(x1 + dx, x2 + dx, y1 + dy, y2 + dy), "Detector section (wrt mosaic)"),
        ("DATASEC", section(1, w.size, 1, w.size), "Current datasection of the frame"),
        *cards[cut:],
    ]


def _amplifiers(x1: int, x2: int, y1: int, y2: int, upper: bool) -> list[tuple[str, str]]:
    """Name and section of each amplifier that reads part of columns x1..x2."""
    strips = [("A", 1, 512, 1), ("B", 513, 1024, -1), ("C", 1025, 1536, 1), ("D", 1537, 2048, -1)]
    if upper:
        strips = [(name, lo, hi, step) for name, (_, lo, hi, step) in zip("ABCD", reversed(strips))]
    amps = []
    for name, lo, hi, step in strips:
        lo, hi = max(lo, x1), min(hi, x2)
        if lo <= hi:
            ends = (lo, hi) if step > 0 else (hi, lo)
            amps.append((name, section(*ends, *((y2, y1) if upper else (y1, y2)))))
    return amps


def _wcs(
    facts: Facts, w: Window, array: int, options: GsaoiOptions, exposure: Exposure | None, roi: int
) -> list[CardLike]:
    """CRVAL from the claimed pointing; CRPIX loses CCDSEC's origin, or, in a region of interest, DETSEC's."""
    wcs = facts["wcs"]
    dx, dy = DETSEC_ORIGIN[array] if roi else (0, 0)
    crpix = (wcs["crpix"][array][0] - w.x - dx, wcs["crpix"][array][1] - w.y - dy)
    on_sky = exposure is not None and bool(exposure.field)
    pa = options.pa if on_sky else 109.7
    (c11, c21), (c12, c22) = (
        rotate(*np.array(wcs["cd"][array]).reshape(2, 2)[:, i], pa) for i in (0, 1)
    )
    crval = wcs["parked_crval"]
    if exposure is not None and on_sky:
        crval = offset(
            *exposure.claimed, *map(float, rotate(*np.array(wcs["crval_offset"]), options.pa))
        )
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
        *((n, float(f"{float(v):.15g}"), c) for n, v, c in zip(names, values, comments)),
        ("RADECSYS", "FK5", "R.A./DEC. coordinate system reference"),
        ("XSCALE", wcs["scale"][array][0], "Pixel scale in X (in arcsec)"),
        ("YSCALE", wcs["scale"][array][1], "Pixel scale in Y (in arcsec)"),
    ]


def _end(array_facts: Facts, array: int, facts: Facts, lnrs: int) -> list[CardLike]:
    name = array_facts["name"]
    noise = READ_NOISE_IN_HEADER.get(
        (name, lnrs), array_facts["read_noise"][facts["read_modes"][str(lnrs)]]
    )
    single = [float(f"{np.float32(v):.15g}") for v in (array_facts["gain"], noise)]
    return [
        ("ARRAYID", name, "Array serial number"),
        ("FRMNAME", f"GSAOI_Frame{array + 1}", "Name assigned to a data frame"),
        ("FRAMEID", str(array), "GSAOI Frame identifier"),
        ("DATATYP", "Intensity", "Type of data frame"),
        ("GAIN", single[0], "Gain (e-/ADU)"),
        ("RDNOISE", single[1], "Read noise (e-)"),
    ]


def bpm_header(facts: Facts, date: str) -> Header:
    """Primary header of the bad-pixel mask, valid from midnight UT of `date` (YYYYMMDD)."""
    day = f"{date[:4]}-{date[4:6]}-{date[6:]}"
    program, stamp = f"GS-CAL{date}", f"{day}T00:00:00"
    zero = dict.fromkeys(
        ("XOFFSET", "YOFFSET", "POFFSET", "QOFFSET", "RAOFFSET", "DECOFFSE", "PA"), 0.0
    )
    clock = dict.fromkeys(("UT", "TIME-OBS", "UTSTART", "UTEND"), "00:00:00.0")
    return header(
        [
            *PRIMARY,
            *template(
                facts,
                facts["kinds"]["bpm"],
                zero
                | clock
                | {
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
                    "DATE": day,
                    "DATE-OBS": day,
                    "RELEASE": day,
                    "MJD-OBS": float(
                        (np.datetime64(day) - np.datetime64("1858-11-17")).astype(int)
                    ),
                    "EXPTIME": 8.0,
                    "COADDS": 1,
                    "LNRS": 2,
                    "RDTIME": 5.27849082,
                    "ELAPSED": 14.0,
                    "READDLAY": 2.7,
                    "BPMASK": stamp,
                    "PREPARE": stamp,
                    "GEM-TLM": stamp,
                },
            ),
        ]
    )
