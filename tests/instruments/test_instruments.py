"""Headers, tags and descriptors of synthetic headers, and of real ones where there are any."""

from __future__ import annotations

import bz2
import datetime as dt
import gzip
import json
import math
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import xarray as xr
from astropy.io import fits

from gdask import instruments
from gdask.headers import Header, Headers, read_headers, repair_card
from gdask.instruments import descriptor, instrument_of, register, step_defaults, tags, view
from gdask.instruments.f2_array import apparent_to_icrs
from gdask.instruments.rules import parse_section
from gdask.instruments.view import resolve, tagset
from gdask.model import GdaskError

SHARED = Path(__file__).resolve().parents[3] / "shared"
ARRAYS = ("H2RG-032-074", "H2RG-032-064", "H2RG-032-071", "H2RG-032-061")
DETSEC = ("[2049:4096,1:2048]", "[1:2048,1:2048]", "[1:2048,2049:4096]", "[2049:4096,2049:4096]")
CD = 0.0197 / 3600

GSAOI = {
    "INSTRUME": "GSAOI",
    "OBSERVAT": "Gemini-South",
    "OBJECT": "NGC 1851",
    "OBSTYPE": "OBJECT",
    "OBSCLASS": "science",
    "GEMPRGID": "GS-1",
    "OBSID": "GS-1-2",
    "RA": 78.5,
    "DEC": -40.0,
    "PA": 0.0,
    "INPORT": 1,
    "AIRMASS": 1.053,
    "TRKFRAME": "FK5",
    "FRAME": "FK5",
    "RATRACK": 0.0,
    "DECTRACK": 0.0,
    "POFFSET": 1.97,
    "QOFFSET": -0.0,
    "FILTER1": "Kshort_G1105",
    "FILTER2": "Clear   ",
    "WAVELENG": 21500.0,
    "DATE-OBS": "2013-01-26",
    "UT": "02:51:29.6",
    "LT": "23:51:28.6",
    "DETECTOR": "GSAOI",
    "READMODE": "FOWLER",
    "BUNIT": "ADU",
    "LNRS": 2,
    "COADDS": 1,
    "EXPTIME": 5.5,
    "RAWIQ": "Any",
    "RAWCC": "70-percentile",
    "RAWBG": "UNKNOWN",
    "GWFS1CFG": "TTGS1",
}
F2 = {
    "INSTRUME": "F2",
    "OBSERVAT": "Gemini-South",
    "OBJECT": "target",
    "OBSTYPE": "OBJECT",
    "OBSCLASS": "science",
    "OBSID": "GS-3-4",
    "RA": 121.6,
    "DEC": -41.4,
    "PA": 180.0,
    "INPORT": 5,
    "AIRMASS": 1.1,
    "TRKFRAME": "FK5",
    "FRAME": "FK5",
    "RATRACK": 0.0,
    "DECTRACK": 0.0,
    "POFFSET": 8.0,
    "QOFFSET": -5.0,
    "XOFFSET": 9.9,
    "YOFFSET": 0.0,
    "FILTER1": "J_G0802",
    "FILTER2": "Open",
    "GRISM": "Open",
    "LYOT": "f/16_G5830",
    "DECKER": "Open",
    "MOSPOS": "Open",
    "MASKNAME": "None",
    "WAVELENG": 12500.0,
    "DATE-OBS": "2015-01-01",
    "TIME-OBS": "04:04:26.7",
    "LNRS": 4,
    "COADDS": 3,
    "EXPTIME": 20.0,
    "PIXSCALE": 0.18124,
    "PWFS2_ST": "guiding",
    "MJD-OBS": 57195.0,
}


def header(values: dict) -> fits.Header:
    made = fits.Header()
    for name, value in values.items():
        made[name] = value
    return made


def wcs(scale: float = CD) -> dict:
    return {
        "CTYPE1": "RA---TAN",
        "CTYPE2": "DEC--TAN",
        "CRVAL1": 78.53,
        "CRVAL2": -40.04,
        "CRPIX1": 1.0,
        "CRPIX2": 2.0,
        "CD1_1": scale,
        "CD1_2": 0.0,
        "CD2_1": 0.0,
        "CD2_2": scale,
    }


def without(values: dict, *names: str) -> dict:
    return {name: value for name, value in values.items() if name not in names}


def gsaoi(ext: dict | None = None, **phu: object) -> Headers:
    """Give headers of a full frame; underscores in keywords stand for '-'."""
    common = {
        "EXTNAME": "SCI",
        "DATASEC": "[1:2048,1:2048]",
        "CCDSEC": "[1:2048,1:2048]",
        **wcs(),
        **(ext or {}),
    }
    arrays = tuple(
        header({**common, "ARRAYID": name, "DETSEC": sec}) for name, sec in zip(ARRAYS, DETSEC)
    )
    return Headers(header({**GSAOI, **phu}), arrays)


def f2(ext: dict | None = None, **phu: object) -> Headers:
    common = {
        "NAXIS": 3,
        "NAXIS1": 2048,
        "NAXIS2": 2048,
        "NAXIS3": 1,
        **wcs(0.18 / 3600),
        **(ext or {}),
    }
    return Headers(header({**F2, **phu}), (header(common),))


# Tags

BASE = {"GEMINI", "SOUTH", "RAW", "UNPREPARED", "SIDEREAL"}
LAMP = {"GCALLAMP": "IRhigh", "OBSTYPE": "FLAT", "OBJECT": "GCALflat", "OBSCLASS": "dayCal"}


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (gsaoi(), BASE | {"GSAOI", "IMAGE"}),
        (gsaoi(INSTRUME="gsaoi "), BASE | {"GSAOI", "IMAGE"}),
        (
            gsaoi(OBJECT="Domeflat OFF"),
            BASE | {"GSAOI", "IMAGE", "FLAT", "DOMEFLAT", "CAL", "LAMPOFF"},
        ),
        (gsaoi(OBJECT="Domeflat"), BASE | {"GSAOI", "IMAGE", "FLAT", "DOMEFLAT", "CAL", "LAMPON"}),
        (gsaoi(**LAMP, GCALSHUT="OPEN"), BASE | {"GSAOI", "IMAGE", "FLAT", "GCALFLAT", "CAL"}),
        (gsaoi(OBSTYPE="DARK", FILTER1="Blocked1_G1114"), BASE | {"GSAOI", "DARK", "CAL"}),
        (gsaoi(OBSCLASS="acqCal"), BASE | {"GSAOI", "IMAGE", "ACQUISITION"}),
        (f2(), BASE | {"F2", "IMAGE"}),
        (f2(INSTRUME="Flam"), BASE | {"F2", "IMAGE"}),
        (
            f2(**LAMP, GCALSHUT="CLOSED"),
            BASE | {"F2", "IMAGE", "FLAT", "GCALFLAT", "CAL", "GCAL_IR_OFF", "LAMPOFF"},
        ),
        (
            f2(**LAMP, GCALSHUT="OPEN"),
            BASE | {"F2", "IMAGE", "FLAT", "GCALFLAT", "CAL", "GCAL_IR_ON", "LAMPON"},
        ),
        (f2(FILTER2="DK_G0807"), BASE | {"F2", "DARK", "CAL"}),
        (f2(OBSTYPE="DARK", GRISM="JH_G5801", MOSPOS="4pix-slit"), BASE | {"F2", "DARK", "CAL"}),
        (f2(GRISM="JH_G5801", DECKER="Long_slit"), BASE | {"F2", "SPECT", "LS"}),
        (f2(GRISM="R3K_G5803", MOSPOS="mos3"), BASE | {"F2", "SPECT", "MOS"}),
        (
            f2(GRISM="HK_G5802", MOSPOS="3pix-slit", OBSTYPE="ARC"),
            BASE | {"F2", "SPECT", "LS", "ARC", "CAL"},
        ),
        (
            f2(MOSPOS="2pix-slit", OBSCLASS="acq"),
            BASE | {"F2", "IMAGE", "LS", "THRUSLIT", "ACQUISITION"},
        ),
        (f2(RATRACK=0.1), BASE - {"SIDEREAL"} | {"F2", "IMAGE", "NON_SIDEREAL"}),
        (f2(TRKFRAME="No Value", FRAME="No Value"), BASE - {"SIDEREAL"} | {"F2", "IMAGE"}),
        (
            f2(FRAME="AZEL_TOPO", RATRACK=1.0, AIRMASS=1.0),
            BASE - {"SIDEREAL"} | {"F2", "IMAGE", "NON_SIDEREAL", "AZEL_TARGET", "AT_ZENITH"},
        ),
    ],
)
def test_tags_of_raw_files(made: Headers, expected: set[str]) -> None:
    assert tags(made) == expected


@pytest.mark.parametrize(
    ("made", "more", "less"),
    [
        (gsaoi(OBJECT="Twilight flat"), "TWILIGHT FLAT CAL", ""),
        (
            gsaoi(OBSTYPE="DARK", OBJECT="Domeflat"),
            "DARK CAL LAMPON",
            "IMAGE",
        ),  # a set with IMAGE in it falls as a whole
        (gsaoi(OBSTYPE="MASK"), "MASK", "IMAGE"),
        (gsaoi(GCALLAMP="QHalogen"), "GCALFLAT FLAT CAL", ""),
        (gsaoi(GCALLAMP="IRhigh & Ar"), "", ""),  # not the lamp alone
        (gsaoi(GCALLAMP="IRlow", GCALSHUT="OPEN"), "", ""),  # GSAOI's state is in OBJECT
        (gsaoi(OBSMODE="LS"), "LS SPECT", ""),
        (gsaoi(OBSMODE="image"), "", ""),
        (gsaoi(DATATYPE="marked-nodandchop"), "NODCHOP", ""),
        (gsaoi(GIFRINGE="t"), "FRINGE CAL PROCESSED", ""),
        (gsaoi(PROCTELL="t"), "TELLURIC CAL", ""),
        (gsaoi(PROCTELL=" "), "", ""),
        (gsaoi(EXTRACT="t"), "EXTRACTED", ""),
        (gsaoi(EXTRACTS="t"), "", ""),
        (gsaoi(PREPARSE="t"), "PREPARED", "UNPREPARED"),
        (
            gsaoi(PROCSCI="t", OBSTYPE="FLAT"),
            "FLAT CAL",
            "",
        ),  # only objects become processed science
        (gsaoi(PROCILLM="t", **{"GEM-TLM": "t"}), "PROCESSED", "RAW"),
        (gsaoi(RATRACK="0.0"), "", ""),
        (gsaoi(RATRACK="?"), "NON_SIDEREAL", "SIDEREAL"),
        (gsaoi(OBSERVAT=" ", TELESCOP="Gemini-South"), "", "SOUTH"),
        (gsaoi(OBSERVAT="Gemini-North"), "NORTH", "SOUTH"),
        (f2(GCALLAMP="IRlow", GCALSHUT="OPEN"), "GCAL_IR_ON LAMPON", ""),
        (f2(GCALLAMP="QHalogen", GCALSHUT="OPEN", PROCFLAT="t"), "GCALFLAT FLAT CAL PROCESSED", ""),
        (f2(GCALLAMP="No Value", GCALSHUT="CLOSED"), "GCAL_IR_OFF LAMPOFF", ""),
        (f2(GCALLAMP="Ar", GCALSHUT="OPEN", OBSTYPE="ARC"), "ARC CAL", ""),
        (f2(OBJECT="twilight"), "TWILIGHT CAL", ""),
        (f2(OBJECT="Twilight", OBSTYPE="FLAT"), "TWILIGHT FLAT CAL", ""),
        (
            f2(OBJECT="Twilight", OBSTYPE="FLAT", GRISM="JH_G5801"),
            "TWILIGHT CAL",
            "IMAGE",
        ),  # blocks the flat of a spectrum
        (f2(PROCSTND="t"), "STANDARD CAL PROCESSED", ""),
        (f2(DISPERSR="DISP_WOLLASTON"), "POL", ""),
        (f2(DISPERSR="DISP_PRISM_G1"), "SPECT IFU", ""),
        (f2(DCKERPOS="Long_slit"), "LS THRUSLIT", ""),
        (f2(DECKER="mos"), "MOS THRUSLIT", ""),
        (f2(DECKER="mos", GRISM="closed"), "", "IMAGE"),  # neither spectrum nor image
        (f2(GRISM="HK_G5802", MOSPOS="pix-slit"), "LS SPECT", "IMAGE"),
        (f2(BPMASK="t", FRAME="AZEL_TOPO"), "BPM CAL PROCESSED", "IMAGE"),
    ],
)
def test_tags_by_one_keyword(made: Headers, more: str, less: str) -> None:
    usual = BASE | {"IMAGE", "GSAOI" if made.phu["INSTRUME"] == "GSAOI" else "F2"}
    assert tags(made) == usual - set(less.split()) | set(more.split())


DONE = {"PREPARE": "2026-01-01T00:00:00", "GEM-TLM": "2026-01-01T00:00:00"}
WORKED = {"GEMINI", "SOUTH", "SIDEREAL", "PREPARED"}


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (gsaoi(**DONE), WORKED | {"GSAOI", "IMAGE"}),
        (
            gsaoi(**DONE, OBJECT="Domeflat", PROCFLAT="t"),
            WORKED | {"GSAOI", "IMAGE", "FLAT", "DOMEFLAT", "CAL", "PROCESSED"},
        ),
        (gsaoi(**DONE, PROCSCI="t"), WORKED | {"GSAOI", "IMAGE", "PROCESSED", "PROCESSED_SCIENCE"}),
        (
            gsaoi(**DONE, OBJECT="BPM", OBSTYPE="BPM", BPMASK="t", FRAME="AZEL_TOPO"),
            WORKED | {"GSAOI", "BPM", "CAL", "PROCESSED"},
        ),
        (
            f2(**DONE, **LAMP, GCALSHUT="OPEN", PROCFLAT="t"),
            WORKED | {"F2", "IMAGE", "FLAT", "GCALFLAT", "CAL", "PROCESSED"},
        ),
        (f2(**DONE, FILTER2="DK_G0807", PROCDARK="t"), WORKED | {"F2", "DARK", "CAL", "PROCESSED"}),
        (
            f2(PROCSCI="t"),
            {
                "GEMINI",
                "SOUTH",
                "SIDEREAL",
                "UNPREPARED",
                "F2",
                "IMAGE",
                "PROCESSED",
                "PROCESSED_SCIENCE",
            },
        ),
        (
            gsaoi(**DONE, SUBOVER="t", TRIMOVER="t"),
            WORKED | {"GSAOI", "IMAGE", "OVERSCAN_SUBTRACTED", "OVERSCAN_TRIMMED"},
        ),
    ],
)
def test_tags_of_processed_files(made: Headers, expected: set[str]) -> None:
    assert tags(made) == expected


def test_a_set_of_tags_falls_as_a_whole() -> None:
    dome = tagset("DOMEFLAT IMAGE")
    assert resolve([dome, tagset("MASK", blocks="IMAGE")]) == {"MASK"}
    assert resolve([tagset("LAMPON", blocked_by="PROCESSED"), tagset("PROCESSED"), dome]) == {
        "PROCESSED",
        *dome.add,
    }


# Descriptors


def test_gsaoi_numbers() -> None:
    made = gsaoi(COADDS=3, LNRS=8)
    assert descriptor(made, "gain") == [2.434, 2.01, 2.411, 2.644]
    assert descriptor(made, "read_noise") == [7.87, 5.69, 8.21, 9.69]
    assert descriptor(made, "saturation_level") == [52400, 50250, 53700, 52300]
    assert descriptor(made, "non_linear_level") == pytest.approx([38252, 32160, 40812, 39225])
    assert descriptor(made, "read_speed_setting") == "Faint Objects"
    assert descriptor(made, "exposure_time") == 5.5  # coadds are averaged
    assert descriptor(made, "nominal_photometric_zeropoint")[0] == pytest.approx(
        26.201 - 2.5 * math.log10(2.434)
    )
    assert descriptor(made, "pixel_scale") == pytest.approx(0.0197)
    assert descriptor(made, "detector_x_offset") == pytest.approx(
        -100
    )  # flipped at the bottom port
    assert math.copysign(1, descriptor(made, "detector_y_offset")) == 1
    assert descriptor(made, "array_name") == list(ARRAYS)


def test_gsaoi_words() -> None:
    made = gsaoi()
    assert descriptor(made, "filter_name") == "Kshort_G1105&Clear"
    assert descriptor(made, "filter_name", pretty=True) == "Kshort"
    assert (
        descriptor(gsaoi(FILTER1="Blocked1_G1114"), "filter_name", pretty=True) == "Blocked1&blank"
    )
    assert descriptor(made, "wavelength_band") == "K"
    assert descriptor(made, "central_wavelength") == 2.15e-06
    assert descriptor(made, "central_wavelength", asMicrometers=True) == 2.15
    assert descriptor(made, "wavefront_sensor") == "GEMS"
    assert [descriptor(made, f"raw_{band}") for band in ("iq", "cc", "bg", "wv")] == [
        100,
        70,
        None,
        None,
    ]
    assert descriptor(made, "group_id") == f"GS-1-2_Kshort_5.5_FOWLER_{list(DETSEC)!r}"
    assert descriptor(gsaoi(OBJECT="Domeflat"), "group_id").startswith("Kshort_5.5_GS-1_FOWLER_")
    assert descriptor(gsaoi(INSTRUME="gsaoi"), "instrument") == "GSAOI"


def test_region_of_interest() -> None:
    made = gsaoi({"CCDSEC": "[513:1536,513:1536]", "DATASEC": "[1:1024,1:1024]"})
    assert descriptor(made, "array_section") == [[512, 1536, 512, 1536]] * 4
    assert descriptor(made, "data_section") == [[0, 1024, 0, 1024]] * 4
    assert descriptor(made, "data_section", pretty=True) == ["[1:1024,1:1024]"] * 4
    assert parse_section("[1024:513,1:512]") == [512, 1024, 0, 512]
    assert parse_section("[*,*]") is None


def test_f2_numbers() -> None:
    made = f2()
    assert descriptor(made, "gain") == [1.11]  # reads are summed
    assert descriptor(made, "read_noise") == [6.0]
    assert descriptor(made, "saturation_level") == [int(155400 / 1.11)]
    assert descriptor(f2(LNRS=1), "non_linear_level") == [25200]
    assert descriptor(made, "exposure_time") == 60.0  # coadds are summed
    assert descriptor(made, "position_angle") == 270.0
    assert descriptor(made, "telescope_y_offset") == -9.9
    assert math.copysign(1, descriptor(made, "telescope_x_offset")) == -1
    assert descriptor(made, "detector_x_offset") == pytest.approx(5 / 0.18)
    assert descriptor(made, "detector_section") == [[0, 2048, 0, 2048]]
    assert descriptor(f2(MASKNAME="3pix-slit", MOSPOS="3pix-slit"), "slit_width") == pytest.approx(
        3 * 0.18
    )


@pytest.mark.parametrize(
    ("phu", "raw", "pretty"),
    [
        ({}, "J_G0802&Open", "J"),
        ({"FILTER1": "Open", "FILTER2": "HK_G0806_good"}, "Open&HK_G0806_good", "HK"),
        ({"FILTER2": "DK_G0807"}, "J_G0802&DK_G0807", "dark"),
        ({"FILTER1": "Open"}, "Open&Open", "open"),
        ({"FILTER1": "Open", "LYOT": "K-blue_G0814"}, "Open&Open&K-blue_G0814", "K-blue"),
        ({"FILTER1": "Get Timed Out?"}, "Get Timed Out?&Open", "Get Timed Out?"),
    ],
)
def test_f2_filters(phu: dict, raw: str, pretty: str) -> None:
    made = f2(**phu)
    assert (descriptor(made, "filter_name"), descriptor(made, "filter_name", pretty=True)) == (
        raw,
        pretty,
    )
    assert descriptor(made, "camera") == "f/16_G5830"


def test_old_keywords() -> None:
    made = f2()._replace(
        phu=header(
            {
                **without(F2, "FILTER1", "FILTER2", "GRISM", "LYOT", "DECKER"),
                "FILT1POS": "J",
                "FILT2POS": "open",
                "GRISMPOS": "Open",
                "LYOTPOS": "f/16",
                "DCKERPOS": "imaging",
            }
        )
    )
    assert "IMAGE" in tags(made)
    assert descriptor(made, "filter_name", pretty=True) == "J"
    assert descriptor(made, "lyot_stop") == "f/16"


def test_f2_wavelengths() -> None:
    assert descriptor(f2(FILTER1="K-long_G0812", WAVELENG=20000.0), "central_wavelength") == 2.2e-06
    assert descriptor(f2(GRISM="R3K_G5803", WAVELENG=-9999.0), "central_wavelength") == 1.25e-06
    assert descriptor(f2(WAVELENG=-9999.0), "central_wavelength") is None
    assert descriptor(f2(FILTER1="H_G0803"), "effective_wavelength") == pytest.approx(1.631e-06)


def test_times() -> None:
    made = gsaoi()
    assert descriptor(made, "ut_datetime") == dt.datetime(2013, 1, 26, 2, 51, 29, 600000)
    assert (descriptor(made, "ut_date"), descriptor(made, "ut_time")) == (
        dt.date(2013, 1, 26),
        dt.time(2, 51, 29, 600000),
    )
    assert descriptor(made, "local_time") == dt.time(23, 51, 28, 600000)
    assert descriptor(f2(), "ut_time") == dt.time(4, 4, 26, 700000)  # TIME-OBS
    full = gsaoi(**{"DATE-OBS": "2017-05-05T23:59:59.9999999"})
    assert descriptor(full, "ut_datetime") == dt.datetime(2017, 5, 5, 23, 59, 59, 999999)
    bpm = Headers(header(without(GSAOI, "UT")), gsaoi().ext)
    assert descriptor(bpm, "ut_datetime") == dt.datetime(2013, 1, 26)
    stale = f2()._replace(phu=header(without(F2, "DATE-OBS", "TIME-OBS")))
    assert descriptor(stale, "ut_datetime") is None  # MJD-OBS of F2 is not to be used


def test_coordinates() -> None:
    assert descriptor(gsaoi(), "ra") == 78.53
    moved = Headers(gsaoi().phu, tuple(header({"ARRAYID": name}) for name in ARRAYS))
    assert (
        descriptor(moved, "wcs_ra"),
        descriptor(moved, "ra"),
        descriptor(moved, "pixel_scale"),
    ) == (None, 78.5, None)
    in_phu = moved._replace(phu=header({**GSAOI, **wcs()}))
    assert (descriptor(in_phu, "wcs_dec"), descriptor(in_phu, "pixel_scale")) == (
        -40.04,
        pytest.approx(0.0197),
    )
    bad = f2({"CTYPE2": "?3"})
    assert (descriptor(bad, "wcs_ra"), descriptor(bad, "dec"), descriptor(bad, "pixel_scale")) == (
        None,
        -41.4,
        0.18124,
    )
    assert descriptor(gsaoi(RA="05:14:08.5", DEC="-00:02:38.1"), "target_ra") == pytest.approx(
        15 * (5 + 14 / 60 + 8.5 / 3600)
    )
    assert descriptor(gsaoi(DEC="-00:02:38.1"), "target_dec") == pytest.approx(
        -(2 / 60 + 38.1 / 3600)
    )
    year = {"DATE-OBS": "2010-01-01", "UT": "00:00:00", "EPOCH": 2000.0}
    assert descriptor(gsaoi(**year, PMRA=0.036, PMDEC=-0.36), "target_ra") == pytest.approx(
        78.5 + 0.0015
    )
    assert descriptor(gsaoi(**year, PMDEC=-0.36), "target_dec") == pytest.approx(-40.001)
    assert descriptor(
        gsaoi(RAOFFSET=36.0, DECOFFSE=0.0), "target_ra", offset=True
    ) == pytest.approx(78.5 + 0.01 / math.cos(math.radians(-40)))


def test_positions_of_gsaoi_are_known_axis_by_axis() -> None:
    half = gsaoi({"CTYPE2": "LINEAR"})
    assert (descriptor(half, "wcs_ra"), descriptor(half, "wcs_dec"), descriptor(half, "dec")) == (
        78.53,
        None,
        -40.0,
    )
    assert descriptor(f2({"CTYPE2": "LINEAR"}), "wcs_ra") is None


@pytest.mark.parametrize(
    ("text", "degrees"),
    [
        ("05:14:08.5", 78.5354166667),
        ("05 14 08.5", 78.5354166667),
        ("78.5", 78.5),
        ("none", None),
        ("5:x:7", None),
        ("1:2:3:4", None),
    ],
)
def test_right_ascension_as_text(text: str, degrees: float | None) -> None:
    assert descriptor(gsaoi(RA=text), "target_ra") == (
        None if degrees is None else pytest.approx(degrees)
    )


@pytest.mark.parametrize(
    ("date", "found"),
    [
        ("26/01/13", dt.date(1913, 1, 26)),
        ("2013-02-30", None),
        ("yesterday", None),
        ("2013-01-26T01:02:03", dt.date(2013, 1, 26)),
    ],
)
def test_dates_of_all_forms(date: str, found: dt.date | None) -> None:
    assert descriptor(gsaoi(**{"DATE-OBS": date}), "ut_date") == found


def test_start_of_observation_is_the_last_source_of_time() -> None:
    made = Headers(
        header({**without(GSAOI, "DATE-OBS", "UT"), "OBSSTART": "2014-05-06T01:02:03.5Z"}),
        gsaoi().ext,
    )
    assert descriptor(made, "ut_datetime") == dt.datetime(2014, 5, 6, 1, 2, 3, 500000)
    first = made._replace(phu=header({**made.phu, "MJD-OBS": 56700.25}))
    assert descriptor(first, "ut_datetime") == dt.datetime(2014, 2, 12, 6)


def test_rare_descriptors() -> None:
    made = gsaoi(AOSEEING=0.6, DATALAB="GS-1-2-003_stack", SLIT="none", DETECTOR="GSAOI_G1")
    assert [descriptor(made, name) for name in ("ao_seeing", "calibration_key", "slit")] == [
        0.6,
        "GS-1-2-003",
        "none",
    ]
    assert descriptor(gsaoi(RZEROVAL=10.0), "ao_seeing") == pytest.approx(1.01, abs=0.01)
    assert (descriptor(made, "camera"), descriptor(made, "camera", pretty=True)) == (
        "GSAOI_G1",
        "GSAOI",
    )
    assert (
        descriptor(gsaoi(FILTER1="H2(1-0)_G1121_old"), "filter_name", keepID=True)
        == "H2(1-0)_G1121"
    )
    assert descriptor(gsaoi(GCALLAMP="IRhigh", GCALSHUT="CLOSED"), "gcal_lamp") == "Off"
    assert descriptor(gsaoi(GCALLAMP="No Value", GCALSHUT=""), "gcal_lamp") == "Off"
    assert descriptor(gsaoi(GCALLAMP="Ar", GCALSHUT="OPEN"), "gcal_lamp") == "Ar"
    assert descriptor(gsaoi(GCALLAMP="Ar"), "gcal_lamp") is None


@pytest.mark.parametrize(
    ("met", "quality", "state"),
    [
        ("YES", "USABLE", "Pass"),
        ("No", "usable", "Usable"),
        ("YES", "BAD", "Fail"),
        ("CHECK", "USABLE", "CHECK"),
        ("YES", "UNKNOWN", "Undefined"),
        ("no", "PASS", "no:PASS"),
    ],
)
def test_quality(met: str, quality: str, state: str) -> None:
    assert descriptor(gsaoi(RAWPIREQ=met, RAWGEMQA=quality), "qa_state") == state


def test_apparent_place() -> None:
    """Compare with astropy's full transformation at 1 mas: polar motion is below that."""
    from astropy.coordinates import CIRS, SkyCoord
    from astropy.time import Time
    from astropy.utils import iers

    when = dt.datetime(2015, 6, 22, 0, 18, 35)
    truth = SkyCoord(266.2, -28.9, unit="deg", frame="icrs")
    with iers.conf.set_temp("auto_download", False):
        at_date = truth.transform_to(CIRS(obstime=Time(when)))
    import erfa

    origins = math.degrees(erfa.eo06a(*(Time(when).tt.jd1, Time(when).tt.jd2)))
    found = apparent_to_icrs(at_date.ra.deg - origins, at_date.dec.deg, when)
    assert found == pytest.approx((266.2, -28.9), abs=1 / 3.6e6)


def test_prepared_files_tell_their_levels() -> None:
    prepared_values = {
        "GAIN": 1.0,
        "RDNOISE": 13.0,
        "SATLEVEL": 1e5,
        "NONLINEA": 9e4,
        "BUNIT": "electron",
    }
    made = gsaoi(prepared_values, **DONE)
    assert [
        descriptor(made, name)[1]
        for name in ("gain", "read_noise", "saturation_level", "non_linear_level")
    ] == [1.0, 13.0, 1e5, 9e4]
    assert descriptor(gsaoi(prepared_values), "gain")[1] == 2.01  # raw: the header is not asked
    bare = gsaoi({"GAIN": 1.0}, **DONE)  # in electrons
    assert descriptor(bare, "saturation_level")[0] == pytest.approx(52400 * 2.434)
    assert descriptor(f2(prepared_values, **DONE), "exposure_time") == 20.0
    companions = tuple(header({"EXTNAME": name, "GAIN": 7.0}) for name in ("VAR", "DQ"))
    assert descriptor(made._replace(ext=made.ext + companions), "gain") == [1.0] * 4
    assert len(view(Headers(made.phu, companions[1:])).ext) == 1


def test_missing_and_blank_keywords_give_none() -> None:
    for made in (
        Headers(header({"INSTRUME": "GSAOI"}), (fits.Header(),)),
        Headers(header({"INSTRUME": "f2"}), ()),
    ):
        values = {name: descriptor(made, name) for name in instruments.DESCRIPTORS}
        assert (
            values["filter_name"]
            is values["ut_datetime"]
            is values["pixel_scale"]
            is values["wavelength_band"]
            is None
        )
    assert (
        descriptor(gsaoi(OBJECT="   ", EXPTIME=-1.0, AIRMASS="  "), "object") == ""
    )  # a string, as it stands
    assert (
        descriptor(gsaoi(OBJECT=None), "object")
        is descriptor(gsaoi(OBSID=None), "observation_id")
        is None
    )
    assert descriptor(gsaoi(EXPTIME=-1.0), "exposure_time") is None
    assert descriptor(gsaoi(AIRMASS="1.5 "), "airmass") == 1.5
    assert descriptor(gsaoi(LNRS=4), "read_noise") == [None] * 4
    assert descriptor(gsaoi({"EXTNAME": ""}), "gain") == [2.434, 2.01, 2.411, 2.644]


def test_what_was_compared_with_the_established_reader() -> None:
    """Check the cases in which hundreds of changed real headers showed a difference."""
    assert descriptor(gsaoi(GWFS1CFG=" "), "wavefront_sensor") == "GEMS"  # the card is there
    assert descriptor(gsaoi(GWFS1CFG=None), "wavefront_sensor") is None
    assert descriptor(
        gsaoi({"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"}), "pixel_scale"
    ) == descriptor(gsaoi(), "pixel_scale")
    assert descriptor(gsaoi(OBSID=""), "group_id").startswith("_Kshort_5.5_")


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("02:51:60.0", "02:52:00"),
        ("23:59:60", "23:59:59.999999"),
        ("2:59:60", "03:00:00"),
        ("02:51:61", None),
    ],
)
def test_sixty_seconds(text: str, time: str | None) -> None:
    found = descriptor(gsaoi(UT=text), "ut_time")
    assert found == (None if time is None else dt.time.fromisoformat(time))


@pytest.mark.parametrize(
    ("made", "metres"),
    [
        (f2(), None),
        (f2(GRISM="JH_G5801", FILTER1="JH_G0816", FILTER2="Open"), [-6.51e-10]),
        (f2(GRISM="HK_G5802", FILTER1="HK_G0806_good"), [-7.57e-10]),
        (f2(GRISM="R3K_G5803", FILTER1="Open", FILTER2="Ks_G0804"), [-3.49e-10]),
        (f2(GRISM="R3K_G5803", FILTER1="Y_G0811"), None),
        (gsaoi(), None),
        (gsaoi({"WDELTA": 2e-10}), [2e-10] * 4),
        (gsaoi(WDELTA=3e-10), [3e-10] * 4),
    ],
)
def test_dispersion(made: Headers, metres: list[float] | None) -> None:
    assert descriptor(made, "dispersion") == metres
    assert descriptor(made, "dispersion", asNanometers=True) == (
        metres and [pytest.approx(value * 1e9, rel=1e-6) for value in metres]
    )
    assert descriptor(made, "dispersion_axis") == ([2] if len(made.ext) == 1 else None)


def test_wrong_names_are_refused_with_the_closest() -> None:
    with pytest.raises(GdaskError, match="'target_x_offset'; the closest is 'detector_x_offset'"):
        descriptor(gsaoi(), "target_x_offset")
    with pytest.raises(
        GdaskError, match="takes the options pretty, stripID, keepID; got asMicrometers"
    ):
        descriptor(gsaoi(), "filter_name", asMicrometers=True)
    with pytest.raises(GdaskError, match="instrument 'GMOS-S'; gdask knows F2, GSAOI"):
        tags(gsaoi(INSTRUME="GMOS-S"))


def test_a_frame_is_a_source() -> None:
    made = gsaoi()
    texts = np.array([Header.from_astropy(header).text for header in made.ext], object)
    frame = xr.Dataset(
        coords={"header": ("detector", texts)},
        attrs={"phu": Header.from_astropy(made.phu).text, "path": "x.fits"},
    )
    assert descriptor(frame, "array_name") == list(ARRAYS)
    assert tags(frame) == tags(made)


def test_a_third_instrument(tmp_path: Path) -> None:
    facts = tmp_path / "third.toml"
    facts.write_text(
        'name = "THIRD"\ninstrume = ["Old3"]\n[filters]\nred = '
        '0.7\n[steps.stack_frames]\nmethod = "median"\n'
    )
    module = ModuleType("third")
    module.TAGS = {"kind": lambda v: tagset("IMAGE") if v.get("MIRROR") == "IN" else None}
    module.DESCRIPTORS = {
        "filter_name": lambda v: v.get("FILTER"),
        "mirror": lambda v: v.get("MIRROR"),
    }
    before = list(instruments.DESCRIPTORS)
    try:
        register(facts, module)
        made = Headers(
            header({"INSTRUME": "old3", "MIRROR": "IN", "FILTER": "red", "EXPTIME": 3}), ()
        )
        assert {"THIRD", "IMAGE", "RAW"} <= tags(made)
        assert (descriptor(made, "mirror"), descriptor(made, "exposure_time")) == ("IN", 3.0)
        assert step_defaults(instrument_of(made), "stack_frames") == {"method": "median"}
        assert step_defaults(instrument_of(made), "other") == {}
    finally:
        instruments.DESCRIPTORS[:] = before
        for name in ("THIRD", "OLD3"):
            instruments._BY_INSTRUME.pop(name)


# Reading headers


@pytest.fixture
def mef(tmp_path: Path) -> Path:
    """Write a file of three arrays, one of them nameless, and a table between."""
    path = tmp_path / "S20130126S0134.fits"
    ramp = np.arange(60, dtype=np.float32).reshape(6, 10)
    units = [
        fits.PrimaryHDU(header=header(GSAOI)),
        fits.ImageHDU(ramp, name="SCI"),
        fits.BinTableHDU.from_columns([fits.Column("x", "J", array=np.arange(5))], name="OBJCAT"),
        fits.ImageHDU(ramp),
        fits.ImageHDU(ramp, name="DQ"),
    ]
    for number, unit in enumerate(units[1:]):
        unit.header["NUMBER"] = number
    fits.HDUList(units).writeto(path)
    return path


def test_read_headers(mef: Path, tmp_path: Path) -> None:
    found = read_headers(mef)
    assert [header["NUMBER"] for header in found.ext] == [0, 2, 3]
    assert (found.phu["OBJECT"], found.path) == ("NGC 1851", str(mef))
    for name, packed in (
        ("a.fits.gz", gzip.compress(mef.read_bytes())),
        ("b.fits.bz2", bz2.compress(mef.read_bytes())),
        ("c.fits", bz2.compress(mef.read_bytes())),
    ):
        (tmp_path / name).write_bytes(packed)
        assert [header["NUMBER"] for header in read_headers(tmp_path / name).ext] == [0, 2, 3]
    junk = tmp_path / "junk.fits"
    junk.write_bytes(mef.read_bytes() + b"\0" * 2880)
    assert len(read_headers(junk).ext) == 3


def test_read_headers_of_tile_compressed_files(tmp_path: Path) -> None:
    path = tmp_path / "x.fits.fz"
    ramp = np.arange(900, dtype=np.int32).reshape(30, 30)
    unit = fits.CompImageHDU(ramp, header=header({"ARRAYID": ARRAYS[0], **wcs()}), name="SCI")
    fits.HDUList([fits.PrimaryHDU(header=header(GSAOI)), unit]).writeto(path)
    found = read_headers(path)
    one = found.ext[0]
    assert (one["NAXIS"], one["NAXIS1"], one["BITPIX"], one["ARRAYID"], len(found.ext)) == (
        2,
        30,
        32,
        ARRAYS[0],
        1,
    )
    assert "ZIMAGE" not in one
    assert descriptor(found, "wcs_ra") == 78.53


def test_an_image_in_the_primary_unit(tmp_path: Path) -> None:
    fits.PrimaryHDU(np.ones((3, 4), np.float32), header(GSAOI)).writeto(tmp_path / "p.fits")
    assert read_headers(tmp_path / "p.fits").ext[0]["NAXIS1"] == 4


def test_unreadable_files_are_named(mef: Path, tmp_path: Path) -> None:
    whole = mef.read_bytes()
    for name, content, why in (
        ("empty.fits", b"", "is empty"),
        ("text.fits", b"hello" * 1000, "not a FITS file"),
        ("head.fits", whole[:1000], "cut short"),
        ("pixels.fits", whole[:-2880], "pixels .* cut"),
        ("half.fits.gz", gzip.compress(whole)[:-400], "compressed file is cut short"),
        ("second.fits", whole[: whole.index(b"XTENSION") + 400], "header of extension 1"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(GdaskError, match=f"{re.escape(name)}: .*{why}"):
            read_headers(tmp_path / name)
    with pytest.raises(GdaskError, match="no such file"):
        read_headers(tmp_path / "none.fits")
    with pytest.raises(GdaskError, match="is a folder"):
        read_headers(tmp_path)


@pytest.mark.parametrize(
    ("card", "name", "value"),
    [
        ("OBJECT  = 'never closed", "OBJECT", "never closed"),
        (
            (
                "OBSERVER= 'a name that is far too long and so goes on and on up to the end of the "
                "card of x"
            ),
            "OBSERVER",
            "a name",
        ),
        ("EQUINOX =                INDEF / none", "EQUINOX", "INDEF"),
        ("AIRMASS =                  NaN", "AIRMASS", "NaN"),
        ("UT      =          02:51:29.6", "UT", "02:51:29.6"),
        ("object  = 'low'", "OBJECT", "low"),
        ("OBJECT  ='tight'", "OBJECT", "tight"),
        ("OBJECT  = 'O''Hara'  / fine", "OBJECT", "O'Hara"),
        ("EXPTIME =                 1.5D1 / double", "EXPTIME", 15.0),
    ],
)
def test_invalid_cards_are_repaired(card: str, name: str, value: object) -> None:
    repaired = repair_card(card[:80].ljust(80))
    assert len(repaired) == 80
    found = fits.Header.fromstring(repaired)[name]
    assert found.startswith(value) if isinstance(value, str) else found == value


def test_duplicated_blank_and_foreign_cards(mef: Path) -> None:
    raw = mef.read_bytes()
    extra = [
        b"OBJECT  = 'second'",
        b"",
        b"BAD KEY = 1",
        b"COMMENT \xe9t\xe9",
        b"OBSERVER= 'caf\xe9'",
    ]
    head = raw.index(b"END" + b" " * 77)
    cards = b"".join(card.ljust(80) for card in [*extra, b"END"])
    header_end = head + -head % 2880
    filled = (raw[:head] + cards).ljust(-(-(head + len(cards)) // 2880) * 2880)
    mef.write_bytes(filled + raw[header_end:])
    phu = read_headers(mef).phu
    assert (phu["OBJECT"], phu["OBSERVER"], descriptor(mef, "object")) == (
        "NGC 1851",
        "caf?",
        "NGC 1851",
    )
    assert any("BAD KEY" in text for text in phu["COMMENT"])


# Real headers


def dumped(path: Path) -> Headers:
    """Read headers from a text: a card per line, units divided by '--- HDU 1 ---'."""
    units: list[list[str]] = []
    for line in path.read_text(encoding="latin-1").splitlines():
        if re.match(r"--- .* ---", line):
            units.append([])
        elif units and line.strip():
            units[-1].append(repair_card(line[:80].ljust(80)))
    made = [fits.Header.fromstring("".join(cards)) for cards in units]
    return Headers(made[0], tuple(made[1:]), path.name)


def as_json(value: object) -> object:
    return value.isoformat() if isinstance(value, (dt.date, dt.time)) else value


#: Made of the CD matrix, or with the pixel scale that is.
COMPUTED = ("pixel_scale", "position_angle", "detector_x_offset", "detector_y_offset", "slit_width")


@pytest.mark.skipif(not (SHARED / "headers").is_dir(), reason="no real headers at hand")
def test_real_headers() -> None:
    expected = json.loads((SHARED / "headers" / "expected.json").read_text())
    wrong = []
    for name, values in expected.items():
        seen = view(dumped(SHARED / "headers" / "raw" / f"{name}.header"))
        found = {"tags": sorted(seen.tags), "filter_name_pretty": seen("filter_name", pretty=True)}
        for key, value in values.items():
            if isinstance(value, dict):
                assert key not in instruments.DESCRIPTORS
                continue
            got = found[key] if key in found else as_json(seen(key))
            # apparent place to ICRS: to 1e-12 of a degree; what is made of the CD matrix: but for
            # the last bits, in which processors differ; all else to the last digit, types and signs
            # of zero included
            place = key in ("ra", "dec", "wcs_ra", "wcs_dec")
            computed = key in COMPUTED and isinstance(got, float)
            limits = {"abs": 1e-12} if place else {"abs": 0.0, "rel": 4e-15}
            same = (
                got == pytest.approx(value, **limits)
                if place or (computed and isinstance(value, float))
                else json.dumps(got) == json.dumps(value)
            )
            wrong += [] if same else [(name, key, got, value)]
    assert not wrong
    assert len(expected) == len(list((SHARED / "headers" / "raw").glob("*.header")))


@pytest.mark.skipif(not (SHARED / "headers").is_dir(), reason="no real headers at hand")
@pytest.mark.parametrize(
    ("name", "noise"),
    [("S20140124S0039", 28.65902999056318), ("S20141129S0331", 30.95529033945571)],
)
def test_real_processed_darks(name: str, noise: float) -> None:
    seen = view(dumped(SHARED / "headers" / "processed" / f"{name}_dark.fits.header"))
    assert seen.tags == {
        "AT_ZENITH",
        "AZEL_TARGET",
        "CAL",
        "DARK",
        "F2",
        "GEMINI",
        "NON_SIDEREAL",
        "PREPARED",
        "PROCESSED",
        "SOUTH",
    }
    assert (seen("read_noise"), seen("gain"), seen("data_section")) == (
        [noise],
        [4.44],
        [[0, 2048, 0, 2048]],
    )
