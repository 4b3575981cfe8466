"""Expressions of descriptors: what they mean, what they refuse and how they say so."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from astropy.io import fits

from gdask.dataselect import expr_parser, select_data
from gdask.dataselect.selection import EXPRESSION_MAX_LENGTH, parse_expression, select
from gdask.model import GdaskError

FILE = {
    "exposure_time": 60.001,
    "filter_name": "Kshort",
    "object": "9132",
    "observation_class": "science",
    "coadds": 1,
    "central_wavelength": 2.15e-06,
    "airmass": 1.05,
    "gcal_lamp": None,
    "is_ao": True,
    "raw_iq": 70,
    "gain": [2.434, 2.01],
    "array_name": ["a", "b"],
    "array_section": [[0, 2048, 0, 2048], [0, 2048, 0, 2048]],
    "detector_x_offset": -1.5,
    "ut_datetime": dt.datetime(2017, 5, 5, 2, 24, 0, 500000),
    "ut_date": dt.date(2017, 5, 5),
    "ut_time": dt.time(2, 24, 0, 500000),
    "tags": frozenset({"IMAGE", "FLAT"}),
}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('filter_name=="Kshort"', True),
        ("filter_name == 'H'", False),
        ('(observation_class=="science" and exposure_time==60.)', True),
        ("exposure_time==60.6", True),  # within 1 %
        ("exposure_time==61", False),
        ("exposure_time!=60", False),
        ("exposure_time in (20, 60)", True),
        ("exposure_time not in [20, 60]", False),
        ("exposure_time>60", True),
        ("central_wavelength==2.15001e-6", True),
        ("airmass==1.051", False),
        ("1 < airmass <= 1.05 < 2", True),
        ("1 < airmass < 1.05", False),
        ("object in ('9132', 'NGC5128')", True),
        ("object not in ('9132',)", False),
        ("'91' in object", True),
        ("not is_ao", False),
        ("is_ao and not (coadds==2 or coadds==3)", True),
        ("is_ao==True and True", True),
        ("gcal_lamp==None", True),
        ("gcal_lamp!='Off'", True),
        ("raw_iq<=70 and gcal_lamp<'x'", False),
        ("detector_x_offset==-1.5 and detector_x_offset < +0", True),
        ("gain>2", True),  # for every array
        ("gain>2.2", False),
        ("3 > gain", True),
        ("gain==[2.434, 2.01]", True),
        ("gain==2.01", False),
        ("gain!=2.01", True),
        ("'a' in array_name", True),
        ("'c' in array_name", False),
        ("array_name in ('a', 'b', 'c')", True),
        ("array_section==[0, 2048, 0, 2048]", True),
        ("array_section==(0, 1024, 0, 2048)", False),
        ("'FLAT' in tags and 'DARK' not in tags", True),
        ("ut_date=='2017-05-05'", True),
        ("ut_date in ('2017-05-04', '2017-05-06')", False),
        ("'2017-05-05 02:24:00' < ut_datetime <= '2017-05-05T02:24:00.5'", True),
        ("ut_datetime>='2017-05-06'", False),
        ("ut_time<'02:24:01'", True),
        ("ut_time=='02:24:00'", False),
    ],
)
def test_meaning(text: str, answer: bool) -> None:
    assert parse_expression(text)(FILE) is answer


def test_strict() -> None:
    assert not parse_expression("exposure_time==60", strict=True)(FILE)
    assert parse_expression("exposure_time==60.001", strict=True)(FILE)


@pytest.mark.parametrize(
    ("text", "column", "why"),
    [
        ("expsoure_time==60", 0, "closest is 'exposure_time'"),
        ("object=='x' and fltr_name=='H'", 16, "closest is 'filter_name'"),
        ("exposure_time=60", 13, "use == to compare"),
        ("coadds==1 && is_ao", 11, "use 'and' and 'or'"),
        ("object==9132", 8, "text needs quotes"),
        ("coadds=='1'", 8, "text needs quotes"),
        ("filter_name in 'H'", 15, "a list is expected"),
        ("ut_date=='2017-13-05'", 9, "not a date like"),
        ("ut_time in ('2 pm',)", 12, "not a time like"),
        ("ut_datetime<'yesterday'", 12, "not a date and time like"),
        ("ut_time<3", 8, "cannot be compared"),
        ("__import__('os').system('true')", 0, "function call is not allowed"),
        ("is_ao and open('x')", 10, "function call is not allowed"),
        ("coadds.__class__==1", 0, "'.' is not allowed"),
        ("coadds+1==2", 0, "arithmetic is not allowed"),
        ("gain[0]>2", 0, "is not allowed"),
        ("coadds==(lambda: 1)", 9, "Lambda is not allowed"),
        ("object==f'{coadds}'", 8, "JoinedStr is not allowed"),
        ("object==b'9132'", 8, "Constant is not allowed"),
        ("[coadds for coadds in gain]==1", 0, "ListComp is not allowed"),
        ("coadds==-object", 8, "UnaryOp is not allowed"),
        ("gcal_lamp is None", 0, "instead of 'is'"),
        ("is_ao and 'science'", 10, "a comparison is expected"),
        ("coadds", 0, "neither true nor false"),
        ("'é'==object and foo", 16, "no descriptor 'foo'"),
        ("", 0, "empty"),
        ("(coadds==1", 0, "never closed"),
    ],
)
def test_refusals_point_at_the_place(text: str, column: int, why: str) -> None:
    with pytest.raises(GdaskError) as caught:
        parse_expression(text)(FILE)
    first, line, caret = str(caught.value).splitlines()
    assert why in first
    assert line.strip() == text
    assert caret == " " * (column + 2) + "^"


@pytest.mark.parametrize(
    "text",
    [
        "coadds==1 or " * 200 + "is_ao",
        "not " * 60 + "is_ao",
        "(" * 300 + "is_ao" + ")" * 300,
        "gain==" + "[" * 60 + "1" + "]" * 60,
        "is_ao\0",
    ],
)
def test_limits(text: str) -> None:
    with pytest.raises(GdaskError):
        parse_expression(text)(FILE)
    assert EXPRESSION_MAX_LENGTH >= 500


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = []
    for number, (name, seconds) in enumerate(
        (("Kshort_G1105", 60.0), ("Kshort_G1105", 8.0), ("H_G1103", 60.2))
    ):
        phu = fits.PrimaryHDU()
        phu.header.update(
            {
                "INSTRUME": "GSAOI",
                "FILTER1": name,
                "FILTER2": "Clear",
                "EXPTIME": seconds,
                "OBJECT": "Domeflat" if seconds < 10 else "9132",
            }
        )
        paths.append(str(tmp_path / f"f{number}.fits"))
        fits.HDUList([phu, fits.ImageHDU()]).writeto(paths[-1])
    return paths


def test_select_data(files: list[str]) -> None:
    assert select_data(files, ["FLAT"], [], expr_parser('filter_name=="Kshort"')) == files[1:2]
    assert select_data(files, [], ["flat"], expr_parser("exposure_time==60.")) == [
        files[0],
        files[2],
    ]
    assert select_data(files, [], [], expr_parser("exposure_time==60.", strict=True)) == files[:1]
    assert select_data(files, expression="filter_name=='H'") == files[2:]
    assert (
        select_data(files, [], [], expr_parser("filter_name=='H_G1103&Clear'", strict=True))
        == files[2:]
    )
    assert select_data(files, "IMAGE,FLAT") == files[1:2]


def test_unreadable_files_are_reported(
    files: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = tmp_path / "bad.fits"
    bad.write_bytes(b"no FITS")
    found = select([files[0], str(bad), files[2]], ["IMAGE"])
    assert found.files == [files[0], files[2]]
    assert list(found.skipped) == [str(bad)]
    assert "bad.fits: not a FITS file" in caplog.text
    assert "GSAOI" in found.seen
