"""Products as other programs expect them, and calibrations of DRAGONS used here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import CCDData
from astropy.table import Table
from astropy.wcs import WCS
from helpers import assert_same, computed, electrons

import gdask
from gdask import cal_service
from gdask.caldb import associate
from gdask.instruments import descriptor, tags
from gdask.reduction.verify import verify
from gdask.steps.calibrate import dark_correct, flat_correct
from gdask.steps.pointing import prepare
from gdask.steps.quality import add_dq

# Products read by other programs ---------------------------------------------------------------


def test_other_readers_find_what_they_expect(image: Path, flat: Path) -> None:
    """They follow the conventions of astrodata, CCDData, ginga and ds9.

    These concern EXTNAME and EXTVER, a VAR that is a variance, integer DQ, WCS and BUNIT.
    """
    with fits.open(image, checksum=True) as units:
        science, variance, flags = units["SCI", 1], units["VAR", 1], units["DQ", 1]
        assert (science.header["BUNIT"], variance.header["BUNIT"]) == ("electron", "electron**2")
        assert (science.data.dtype.kind, flags.data.dtype.kind) == ("f", "u")
        assert science.data.shape == variance.data.shape == flags.data.shape
        celestial = WCS(science.header)
        assert celestial.has_celestial and celestial.pixel_n_dim == 2
        middle = celestial.pixel_to_world(science.data.shape[1] / 2, science.data.shape[0] / 2)
        assert middle.separation(celestial.pixel_to_world(0, 0)).arcsec < 60
    frame = CCDData.read(
        image,
        hdu="SCI",
        hdu_uncertainty="VAR",
        uncertainty_type="var",
        hdu_mask=None,
        hdu_flags=None,
    )
    assert (
        str(frame.unit) == "electron"
        and frame.uncertainty.array.shape == frame.data.shape
        and frame.wcs.has_celestial
    )
    with fits.open(flat) as units:
        names = [(unit.name, unit.ver) for unit in units[1:]]
    assert names[:12] == [
        (name, version) for version in range(1, 5) for name in ("SCI", "VAR", "DQ")
    ]


@pytest.mark.slow
def test_astrodata_reads_products(image: Path, flat: Path) -> None:
    """astrodata 3 finds arrays with variance, mask, WCS and tables.

    With gemini_instruments it finds tags, too.
    """
    astrodata = pytest.importorskip("astrodata")
    for path, count in ((image, 1), (flat, 4)):
        opened = (
            astrodata.from_file(path) if hasattr(astrodata, "from_file") else astrodata.open(path)
        )
        assert len(opened) == count
        for number, array in enumerate(opened, 1):
            with fits.open(path) as units:
                assert np.array_equal(array.data, units["SCI", number].data, equal_nan=True)
                assert np.array_equal(array.variance, units["VAR", number].data, equal_nan=True)
                assert np.array_equal(array.mask, units["DQ", number].data)
        assert {"HISTORY", "PROVENANCE", "REDUCTION"} <= set(opened.tables)
        assert isinstance(opened.HISTORY, Table)
        opened.write(path.parent / f"again_{path.name}")
        again = astrodata.open(path.parent / f"again_{path.name}")
        assert len(again) == count and np.array_equal(again[0].data, opened[0].data, equal_nan=True)


@pytest.mark.slow
def test_astrodata_knows_what_products_are(image: Path, flat: Path) -> None:
    """With DRAGONS' instruments it finds the same tags and descriptors as gdask.

    (DRAGONS' processed dome flats keep LAMPON.)
    """
    astrodata = pytest.importorskip("astrodata")
    pytest.importorskip("gemini_instruments")
    for path in (image, flat):
        opened = astrodata.open(path)
        assert opened.tags - {"LAMPON"} == tags(path) and "PROCESSED" in opened.tags
        for name in (
            "instrument",
            "filter_name",
            "exposure_time",
            "gain",
            "read_noise",
            "saturation_level",
            "object",
            "ut_datetime",
        ):
            assert getattr(opened, name)() == descriptor(path, name), name
        assert opened.pixel_scale() == pytest.approx(descriptor(path, "pixel_scale"), rel=1e-6)


# Files of DRAGONS read here ---------------------------------------------------------------------


def as_dragons(ours: Path, path: Path, obstype: dict[str, str]) -> Path:
    """Write a file with the structure of one that DRAGONS wrote.

    It has BUNIT on every plane, no checksums, and DRAGONS' tables and keywords.
    """
    with fits.open(ours, memmap=False) as units:
        phu = units[0].header.copy()
        for name in ("PROCFLAT", "PROCDARK", "PROCBPM", "CHECKSUM", "DATASUM"):
            phu.remove(name, ignore_missing=True)
        phu.update(
            obstype
            | {
                "PROCMODE": "sq",
                "GEM-TLM": "2026-11-20T19:55:51.574966",
                "PREPARE": "2026-11-20T19:55:42.810070",
            }
        )
        made = [fits.PrimaryHDU(header=phu)]
        for unit in units[1:]:
            if unit.name in ("SCI", "VAR", "DQ"):
                header = unit.header.copy()
                for name in ("CHECKSUM", "DATASUM"):
                    header.remove(name, ignore_missing=True)
                header.update(
                    {
                        "BUNIT": "electron",
                        "INHERIT": False,
                        "WCSDIM": 2,
                        "VARNOISE": "read, Poisson",
                    }
                )
                made.append(fits.ImageHDU(unit.data, header))
    wide = "x" * 120
    for name, columns in (
        ("HISTORY", ("primitive", "args", "timestamp_start", "timestamp_stop")),
        ("PROVENANCE", ("timestamp", "filename", "md5", "provenance_added_by")),
    ):
        made.append(fits.table_to_hdu(Table({column: [wide, "y"] for column in columns})))
        made[-1].header["EXTNAME"] = name
    fits.HDUList(made).writeto(path)
    return path


def database_with(*paths: Path) -> cal_service.LocalDB:
    service = cal_service.set_local_database(str(paths[0].parent / "cal.db"))
    service.init()
    for path in paths:
        service.add_cal(path)
    return service


def test_a_flat_of_dragons_is_registered_and_used(
    flat: Path, night: object, tmp_path: Path
) -> None:
    """It gives the same pixels as a gdask flat of the same values.

    Its BUNIT on VAR and DQ does no harm.
    """
    (tmp_path / "theirs").mkdir()
    theirs = as_dragons(
        flat,
        tmp_path / "theirs" / "S20170505S0030_flat.fits",
        {"PROCFLAT": "2026-11-20T19:55:51.574966"},
    )
    assert {"PROCESSED", "FLAT", "CAL"} <= tags(theirs) and not {"LAMPON", "RAW"} & tags(theirs)
    assert verify(theirs).faults == ()
    service = database_with(theirs)
    found = associate(night.science[0], "processed_flat", (service.database,))
    assert found.chosen == str(theirs)
    frame = electrons(night.science[0])
    assert_same(
        computed(flat_correct(frame, gdask.open(theirs))),
        computed(flat_correct(frame, gdask.open(flat))),
    )


def test_a_dark_of_dragons_is_registered_and_used(
    flat: Path, night: object, tmp_path: Path
) -> None:
    (tmp_path / "theirs").mkdir()
    with fits.open(night.dark[0]) as units:
        raw = {
            key: units[0].header[key]
            for key in (
                "OBSTYPE",
                "OBJECT",
                "FILTER1",
                "EXPTIME",
                "LNRS",
                "COADDS",
                "DATE-OBS",
                "UT",
                "READMODE",
            )
        }
    theirs = as_dragons(
        flat,
        tmp_path / "theirs" / "S20170505S0100_dark.fits",
        raw | {"PROCDARK": "2026-11-20T19:59:15"},
    )
    assert {"PROCESSED", "DARK", "CAL"} <= tags(theirs)
    assert [entry.caltype for entry in database_with(theirs).list_files()] == ["processed_dark"]
    frame = electrons(night.science[0])
    before, dark, after = (
        computed(frame),
        computed(gdask.open(theirs)),
        computed(dark_correct(frame, gdask.open(theirs))),
    )
    assert np.array_equal(after["data"], before["data"] - dark["data"], equal_nan=True)
    assert np.array_equal(after["dq"], before["dq"] | dark["dq"])


@pytest.mark.parametrize("kind", [np.uint16, np.int16])
def test_a_bad_pixel_mask_of_dragons_is_registered_and_used(
    kind: type, night: object, tmp_path: Path
) -> None:
    """Its planes are called SCI and are 16-bit integers, with or without sign.

    (makeProcessedBPM makes them.)
    """
    path = tmp_path / "S20170504S0320_bpm.fits"
    with fits.open(night.bpm, memmap=False) as units:
        phu = units[0].header.copy()
        phu.update(
            {
                "BPMASK": "2026-11-20T19:59:32",
                "OBJECT": "BPM",
                "OBSTYPE": "FLAT",
                "GEM-TLM": "t",
                "PREPARE": "t",
            }
        )
        planes = [fits.ImageHDU(unit.data.astype(kind), unit.header.copy()) for unit in units[1:5]]
        for unit in planes:
            unit.header.update({"BUNIT": "electron", "EXTNAME": "SCI"})
        fits.HDUList([fits.PrimaryHDU(header=phu), *planes]).writeto(path)
    assert {"BPM", "CAL", "PROCESSED"} <= tags(path) and not {"IMAGE", "FLAT", "LAMPON"} & tags(
        path
    ) - {"FLAT"}
    found = associate(night.science[0], "processed_bpm", (database_with(path).database,))
    assert found.chosen == str(path)
    frames = prepare((gdask.open(night.science[0]),), bad_wcs="ignore")
    theirs, ours = (
        add_dq(frames, (gdask.open(one),), hidden_saturation=False, latency=False)
        for one in (path, night.bpm)
    )
    assert (
        np.array_equal(computed(theirs[0])["dq"], computed(ours[0])["dq"])
        and (computed(ours[0])["dq"] & 1).any()
    )
