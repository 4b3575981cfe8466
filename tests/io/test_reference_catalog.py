"""Reference catalogues from files, whatever their columns are called."""

from __future__ import annotations

from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.table import MaskedColumn, Table

import gdask
from gdask import steps
from gdask.io.catalog import at_epoch, read_catalog
from gdask.model import GdaskError

RA, DEC = np.linspace(201.28, 201.31, 40), np.linspace(-43.12, -43.08, 40)
MAG = np.random.default_rng(1).uniform(10, 20, 40)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("g.fits", "fits"),
        ("g.ecsv", "ascii.ecsv"),
        ("g.xml", "votable"),
        ("g.vot", "votable"),
        ("g.csv", "ascii.csv"),
    ],
)
@pytest.mark.parametrize(
    ("ra", "dec"),
    [("ra", "dec"), ("RAJ2000", "DEJ2000"), ("RA_ICRS", "DE_ICRS"), ("X_WORLD", "Y_WORLD")],
)
def test_every_form_and_the_usual_names(
    tmp_path: Path, name: str, form: str, ra: str, dec: str
) -> None:
    Table({"source": np.arange(40), ra: RA, dec: DEC, "Ksmag": MAG, "e_Ksmag": 0.1 * MAG}).write(
        tmp_path / name, format=form
    )
    catalog = read_catalog(str(tmp_path / name))
    assert catalog.colnames[:3] == ["Id", "RAJ2000", "DEJ2000"] and {"Ksmag", "e_Ksmag"} <= set(
        catalog.colnames
    )
    np.testing.assert_allclose(catalog["RAJ2000"], RA, rtol=1e-12)
    np.testing.assert_allclose(catalog["DEJ2000"], DEC, rtol=1e-12)
    np.testing.assert_allclose(catalog["Ksmag"], MAG, rtol=1e-6)
    assert list(catalog["Id"]) == list(range(1, 41))


@pytest.mark.parametrize(("name", "form"), [("g.xml", "votable"), ("g.ecsv", "ascii.ecsv")])
def test_columns_are_found_by_ucd(tmp_path: Path, name: str, form: str) -> None:
    table = Table({"alpha": RA, "delta": DEC})
    for column, ucd in (("alpha", "pos.eq.ra;meta.main"), ("delta", "pos.eq.dec;meta.main")):
        table[column].info.meta = {"ucd": ucd}
    table.write(tmp_path / name, format=form)
    np.testing.assert_allclose(read_catalog(str(tmp_path / name))["DEJ2000"], DEC, rtol=1e-12)


def test_units_are_turned_into_degrees(tmp_path: Path) -> None:
    Table({"ra": RA / 15 * u.hourangle, "dec": np.radians(DEC) * u.rad}).write(tmp_path / "g.ecsv")
    catalog = read_catalog(str(tmp_path / "g.ecsv"))
    np.testing.assert_allclose(catalog["RAJ2000"], RA, rtol=1e-12)
    np.testing.assert_allclose(catalog["DEJ2000"], DEC, rtol=1e-12)


def test_rows_without_a_position_are_left_out(tmp_path: Path) -> None:
    dec = DEC.copy()
    dec[3] = np.nan
    Table({"ra": MaskedColumn(RA, mask=np.arange(40) == 7), "dec": dec}).write(tmp_path / "g.ecsv")
    catalog = read_catalog(str(tmp_path / "g.ecsv"))
    assert len(catalog) == 38 and not {4, 8} & set(catalog["Id"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.fits", None, "no such catalogue file"),
        ("g.txt", "1 2", "expected one of .fits"),
        ("g.csv", "a,b\n1,2\n", "no column for RAJ2000; it has a, b"),
        ("g.csv", "ra,b\n1,2\n", "no column for DEJ2000"),
        ("g.csv", "ra,dec\n13:25:10,-43:06:00\n", "column ra is text; expected degrees"),
        ("g.fits", "not FITS", "cannot be read as fits"),
        ("g.xml", "<not a votable", "cannot be read as votable"),
    ],
)
def test_messages(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(GdaskError, match=name) as error:
        read_catalog(str(tmp_path / name))
    assert words in str(error.value)


def test_a_votable_cannot_read_other_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("201.3")
    (tmp_path / "g.xml").write_text(
        f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY s SYSTEM "file://{tmp_path}/secret">]>\n'
        '<VOTABLE version="1.3"><RESOURCE><TABLE>'
        '<FIELD name="ra" datatype="double"/><FIELD name="dec" datatype="double"/>'
        "<DATA><TABLEDATA><TR><TD>&s;</TD><TD>-43.1</TD></TR></TABLEDATA></DATA>"
        "</TABLE></RESOURCE></VOTABLE>"
    )
    try:
        catalog = read_catalog(str(tmp_path / "g.xml"))
    except GdaskError:
        return
    assert 201.3 not in list(catalog["RAJ2000"])


def test_steps_attach_it_to_every_frame(night: object, tmp_path: Path) -> None:
    Table({"ra": RA, "dec": DEC}).write(tmp_path / "g.csv")
    frames = steps.add_reference_catalog(
        gdask.open_many(night.science[:2]), source=str(tmp_path / "g.csv")
    )
    assert [frame.attrs["refcat"] for frame in frames] == [str(tmp_path / "g.csv")] * 2
    assert all(len(read_catalog(frame.attrs["refcat"])) == 40 for frame in frames)
    (without, _) = steps.add_reference_catalog(gdask.open_many(night.science[:2]))
    assert "refcat" not in without.attrs and "none given" in without.attrs["note"]


def test_gaia_stars_are_taken_to_the_epoch_of_the_frames(tmp_path: Path) -> None:
    pm = MaskedColumn(np.full(40, -36.5), mask=np.arange(40) == 5)
    Table(
        {
            "ra": RA,
            "dec": DEC,
            "ra_error": np.full(40, 0.3),
            "dec_error": np.full(40, 0.1),
            "pmra": pm,
            "pmdec": np.full(40, 10.0),
            "pmra_error": np.full(40, 0.4),
            "pmdec_error": np.full(40, 0.4),
            "ref_epoch": np.full(40, 2016.0),
        }
    ).write(tmp_path / "gaia.ecsv")
    catalog = read_catalog(str(tmp_path / "gaia.ecsv"))
    at = at_epoch(catalog, 2013.0, None)
    east = (at.ra - RA) * np.cos(np.radians(DEC)) * 3.6e6
    # The star whose motion is not known moves as the others do, and is as uncertain as they differ.
    np.testing.assert_allclose(east, 109.5, atol=1e-3)
    np.testing.assert_allclose((at.dec - DEC) * 3.6e6, -30.0, atol=1e-3)
    np.testing.assert_allclose(
        at.error, np.sqrt((0.3**2 + 0.1**2) / 2 + (3 * 0.4) ** 2) / 1000, rtol=1e-9
    )
    assert (np.arange(40)[at.motion_x == 0] == 5).all() and set(at.spread) == {0.0}
    assert at.text == (
        "39 of 40 stars moved from 2016.00 to 2013.00, 1 have no motion and took the mean of the "
        "others (-36.5, 10.0 mas/yr, spread 0.0)"
    )
    assert set(at_epoch(catalog, 2013.0, 0.005).error) == {0.005}


def test_units_of_errors_and_catalogues_without_motions(tmp_path: Path) -> None:
    Table(
        {
            "ra": RA,
            "dec": DEC,
            "e_RAJ2000": np.full(40, 0.07) * u.arcsec,
            "e_DEJ2000": np.full(40, 0.07) * u.arcsec,
        }
    ).write(tmp_path / "g.ecsv")
    at = at_epoch(read_catalog(str(tmp_path / "g.ecsv")), 2013.0, None)
    np.testing.assert_array_equal((at.ra, at.dec), (RA, DEC))
    np.testing.assert_allclose(at.error, 0.07)
    assert at.text == "no motions: its places are taken as they are"
    Table({"ra": RA, "dec": DEC}).write(tmp_path / "h.ecsv")
    assert np.isnan(at_epoch(read_catalog(str(tmp_path / "h.ecsv")), 2013.0, None).error).all()


def test_zeros_and_gaps_are_motions_that_are_missing(tmp_path: Path) -> None:
    """Many catalogues write 0 for a motion that nobody knows; others leave it out."""
    rng = np.random.default_rng(3)
    east, north = rng.normal(-6, 4, 40), rng.normal(3, 4, 40)
    east[:10] = north[:10] = 0.0
    east[10:20] = np.nan
    epoch = np.full(40, 2000.0)
    epoch[25] = np.nan
    Table({"ra": RA, "dec": DEC, "pmra": east, "pmdec": north, "ref_epoch": epoch}).write(
        tmp_path / "g.ecsv"
    )
    at = at_epoch(read_catalog(str(tmp_path / "g.ecsv")), 2010.0, None)
    moved = (at.ra - RA) * np.cos(np.radians(DEC)) * 3.6e6
    np.testing.assert_allclose(moved[20:], 10 * east[20:], atol=1e-3)
    np.testing.assert_allclose(moved[:20], 10 * np.median(east[20:]), atol=1e-3)
    assert (at.spread[:20] > 0.02).all() and (at.spread[20:] == 0).all()
