"""Products in the hands of other programs, and files of others in ours: docs/ecosystem.md, by rows.

Packages are in the extra `test`; SExtractor, SWarp and STILTS are Debian's, and their tests are
skipped where they are absent.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, VarianceUncertainty
from astropy.table import Table
from astropy.wcs import WCS
from conftest import Night

import gdask
from gdask import Reduce
from gdask.cli import regions as regions_command
from gdask.instruments import tags
from gdask.reduction.verify import verify

astrodata = pytest.importorskip("astrodata")
photutils_aperture = pytest.importorskip("photutils.aperture")

#: What is made of the small nights; `image` is stacked from raw frames, `stack` from `frame`.
KINDS = ("flat", "frame", "image", "stack", "f2_dark", "f2_bpm", "f2_flat")


def reduce(files: list[str], recipe: str = "default", **parameters: object) -> Path:
    """Reduce files in this folder; give the first product."""
    reduction = Reduce()
    reduction.files.extend(files)
    reduction.recipename = recipe
    reduction.uparms.update({key.replace("__", ":"): value for key, value in parameters.items()})
    reduction.runr()
    return Path.cwd() / reduction.output_filenames[0]


@pytest.fixture(scope="module")
def products(
    night: Night, reduced: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Give one product of each kind of both instruments."""
    from gdask.simulate import simulate_f2

    folder = tmp_path_factory.mktemp("ecosystem")
    (found,) = reduced.glob("*_image.fits")
    (flat,) = reduced.glob("*_flat.fits")
    made = {"image": found, "flat": flat}
    with pytest.MonkeyPatch.context() as patch:
        (folder / "dragonsrc").write_text(
            f"[calibs]\ndatabases = {reduced}/cal_manager.db get\n    {folder}/f2.db get store\n"
        )
        patch.setenv("DRAGONSRC", str(folder / "dragonsrc"))
        patch.chdir(folder)
        made["frame"] = reduce(night.sequence, "reduce_nostack", prepare__bad_wcs="fix")
        frames = sorted(str(path) for path in folder.glob("*_skyCorrected.fits"))
        made["stack"] = reduce(frames, "alignAndStack")
        simulate_f2(folder / "f2", size=288, n_science=1, n_darks=3, n_short_darks=3, n_lamps=3)
        rows = Table.read(folder / "f2" / "truth" / "frames.ecsv")
        lamps, darks = (
            [str(folder / "f2" / "raw" / row["file"]) for row in rows if row["kind"] in kinds]
            for kinds in (("lamp", "flat", "flat_on", "flat_off"), ("dark",))
        )
        short = [path for path in darks if fits.getheader(path)["EXPTIME"] == 2]
        made["f2_dark"] = reduce([path for path in darks if path not in short][:3])
        made["f2_bpm"] = reduce([*lamps, *short], "makeProcessedBPM")
        made["f2_flat"] = reduce(lamps, addDQ__user_bpm=str(made["f2_bpm"]))
    return made


@pytest.fixture
def product(products: dict[str, Path], request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Copy the product of a kind, to be changed."""
    return Path(shutil.copy(products[request.param], tmp_path))


def test_products_are_well(products: dict[str, Path]) -> None:
    """Also a stack of sky-subtracted frames says of what it is made."""
    assert {kind: verify(path).faults for kind, path in products.items()} == dict.fromkeys(
        products, ()
    )
    rows = Table.read(products["stack"], "PROVENANCE")
    assert {name.strip() for name in rows["filename"]} == {
        path.name for path in products["frame"].parent.glob("*_skyCorrected.fits")
    }


def each(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("product", kinds or KINDS, indirect=True)


def stars_of(path: Path) -> Table:
    """Give sources of the catalogue that stand alone."""
    table = Table.read(path, "OBJCAT")
    return table[(table["FLAGS"] == 0) & (table["FLUX_AUTO"] > 0)].filled(np.nan)


# astropy ---------------------------------------------------------------------------------------


@each("flat", "frame", "image", "stack", "f2_dark", "f2_flat")
def test_ccddata_has_a_variance_and_a_unit(product: Path) -> None:
    """Without being told: UTYPE says that VAR is a variance, BUNIT what the pixels are."""
    frame = CCDData.read(product, hdu="SCI", hdu_uncertainty="VAR", hdu_mask="DQ", hdu_flags=None)
    by_number = CCDData.read(product, hdu=1, hdu_uncertainty="VAR", hdu_flags=None)
    with fits.open(product) as units:
        variance, unit = units["VAR", 1].data, units["SCI", 1].header["BUNIT"]
        flags = units["DQ", 1].data
    assert isinstance(frame.uncertainty, VarianceUncertainty)
    assert isinstance(by_number.uncertainty, VarianceUncertainty)
    assert np.array_equal(frame.uncertainty.array, variance, equal_nan=True)
    assert frame.unit == u.Unit(unit) == (u.one if "flat" in product.name else u.electron)
    assert frame.uncertainty.unit == frame.unit**2
    assert np.array_equal(frame.mask, flags > 0)


@each()
def test_astropy_has_nothing_to_say_of_a_product(
    product: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No FITSFixedWarning, no fault by `verify`, no remark about SIP, in any image."""
    caplog.set_level(logging.INFO, "astropy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fits.open(product, checksum=True) as units:
            units.verify("exception")
            for unit in units[1:]:
                if isinstance(unit, fits.ImageHDU):
                    WCS(unit.header)
                else:
                    Table.read(unit)
    with fits.open(product) as units, caplog.at_level(logging.INFO):
        from astropy import log

        with log.log_to_list() as said:
            for unit in units[1:]:
                if isinstance(unit, fits.ImageHDU):
                    WCS(unit.header)
    assert not said


@each("frame", "image", "stack")
def test_the_wcs_is_that_of_the_catalogue(product: Path) -> None:
    """Also of a stack of frames whose headers had a distortion: astropy applies what is left."""
    count = 0
    with fits.open(product) as units:
        for unit in units:
            if unit.name != "OBJCAT" or not len(unit.data):
                continue
            wcs = WCS(units["SCI", unit.ver].header)
            sky = wcs.pixel_to_world(unit.data["X_IMAGE"] - 1, unit.data["Y_IMAGE"] - 1)
            off = np.hypot(
                (sky.ra.deg - unit.data["X_WORLD"]) * np.cos(sky.dec.rad),
                sky.dec.deg - unit.data["Y_WORLD"],
            )
            assert 3.6e6 * off.max() < 0.5  # mas
            count += len(unit.data)
    assert count > 10


@each("image", "stack")
def test_a_catalogue_goes_through_votable(product: Path, tmp_path: Path) -> None:
    """TOPCAT and others read VOTable; columns, units and descriptions stay."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = Table.read(product, "OBJCAT")
        table.write(tmp_path / "objcat.vot", format="votable")
        again = Table.read(tmp_path / "objcat.vot", format="votable")
    assert again.colnames == table.colnames and len(again) == len(table) > 5
    for name in table.colnames:
        assert again[name].unit == table[name].unit, name
        assert np.array_equal(np.asarray(again[name]), np.asarray(table[name]), equal_nan=True)
    assert str(table["X_WORLD"].unit) == "deg"
    header = fits.getheader(product, "OBJCAT")
    ucds = {header[f"TTYPE{n}"]: header.get(f"TUCD{n}") for n in range(1, header["TFIELDS"] + 1)}
    assert (ucds["X_WORLD"], ucds["MAG_AUTO"]) == ("pos.eq.ra", "phot.mag")


@each("image", "stack")
def test_stilts_reads_the_catalogue_and_its_ucds(product: Path, tmp_path: Path) -> None:
    """STILTS is TOPCAT's own reader without a window: from FITS, and from astropy's VOTable."""
    program = astromatic("stilts")
    table = Table.read(product, "OBJCAT")
    votable, columns = tmp_path / "objcat.vot", "NUMBER X_WORLD Y_WORLD MAG_AUTO FLAGS"
    table.write(votable, format="votable")
    for source in (f"{product}#OBJCAT", str(votable)):
        out = tmp_path / "read.csv"
        line = [program, "tpipe", f"in={source}", f"cmd=keepcols '{columns}'", f"out={out}"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        read = Table.read(out, format="csv")
        assert read.colnames == columns.split() and len(read) == len(table) > 5
        for name in read.colnames:
            theirs, ours = (
                np.ma.filled(np.ma.asarray(one[name], float), np.nan) for one in (read, table)
            )
            assert np.allclose(theirs, ours, rtol=1e-7, atol=0, equal_nan=True), name
    line = [program, "tpipe", f"in={product}#OBJCAT", "cmd=meta Name Units UCD", "ofmt=csv"]
    said = subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "X_WORLD,deg,pos.eq.ra" in said and "MAG_AUTO,mag,phot.mag" in said


# astrodata -------------------------------------------------------------------------------------


@each()
def test_astrodata_opens_and_rewrites(product: Path) -> None:
    """The same arrays, uncertainties, masks and tables come back, and gdask takes the new file."""
    opened = astrodata.open(product)
    with fits.open(product) as units:
        count = sum(unit.name == "SCI" for unit in units)
        assert len(opened) == count > 0
        for number, array in enumerate(opened, 1):
            assert np.array_equal(array.data, units["SCI", number].data, equal_nan=True)
            if ("VAR", number) in units:
                assert np.array_equal(array.variance, units["VAR", number].data, equal_nan=True)
                assert np.array_equal(array.mask, units["DQ", number].data)
        tables = {unit.name for unit in units if "EXTVER" not in unit.header and unit.name}
    assert {"HISTORY", "REDUCTION"} <= set(opened.tables) <= tables
    path = product.with_name(f"again_{product.name}")
    opened.write(path)
    again = astrodata.open(path)
    for first, second in zip(opened, again, strict=True):
        assert np.array_equal(first.data, second.data, equal_nan=True)
        assert (first.variance is None) == (second.variance is None)
    assert tags(path) == tags(product)


@each("flat", "image")
def test_astrodata_tags_are_what_rules_of_its_users_say(product: Path) -> None:
    """A class of tags, as instrument packages have them, sees what it needs in a product."""

    class Ours(astrodata.AstroData):
        @staticmethod
        def _matches_data(source: fits.HDUList) -> bool:
            return source[0].header.get("INSTRUME", "").upper() == "GSAOI"

        @astrodata.astro_data_tag
        def _processed(self) -> astrodata.TagSet | None:
            keywords = {"PROCFLAT", "PROCSCI", "PROCDARK", "PROCBPM"} & set(self.phu)
            return astrodata.TagSet({"PROCESSED"}) if keywords else None

    astrodata.factory.add_class(Ours)
    try:
        opened = astrodata.open(product)
        assert type(opened) is Ours and "PROCESSED" in opened.tags
    finally:
        astrodata.factory.remove_class(Ours)


# Photometry, resampling, regions -----------------------------------------------------------------


@each("image", "stack")
def test_photutils_measures_the_catalogues_fluxes(product: Path) -> None:
    frame = CCDData.read(product, hdu="SCI", hdu_uncertainty="VAR", hdu_flags=None)
    stars = stars_of(product)
    stars = stars[np.argsort(stars["FLUX_AUTO"])[::-1][:8]]
    places = np.transpose([stars["X_IMAGE"] - 1, stars["Y_IMAGE"] - 1])
    error = np.sqrt(frame.uncertainty.array)
    radius = 2.0 * float(np.nanmedian(stars["FWHM_IMAGE"]))
    circle = photutils_aperture.CircularAperture(places, r=radius)
    around = photutils_aperture.CircularAnnulus(places, 2 * radius, 3 * radius)
    sky = photutils_aperture.ApertureStats(frame.data, around).median
    found = photutils_aperture.aperture_photometry(frame.data, circle, error=error)
    flux = np.asarray(found["aperture_sum"]) - sky * circle.area
    share = flux / np.asarray(stars["FLUX_AUTO"])
    good = np.isfinite(share)
    assert good.sum() >= 5
    assert 0.6 < np.median(share[good]) < 1.1 and np.std(share[good]) < 0.2, share
    assert np.all(np.asarray(found["aperture_sum_err"])[good] > 0)


@each("image", "stack")
def test_reproject_puts_stars_where_they_are(product: Path) -> None:
    from reproject import reproject_interp

    with fits.open(product) as units:
        data, header = units["SCI", 1].data, units["SCI", 1].header
    stars = stars_of(product)
    brightest = stars[np.argmax(stars["FLUX_AUTO"])]
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval = brightest["X_WORLD"], brightest["Y_WORLD"]
    wcs.wcs.crpix = 21.0, 21.0
    wcs.wcs.cd = WCS(header).wcs.cd
    made, covered = reproject_interp((data, header), wcs, shape_out=(41, 41))
    y, x = np.unravel_index(np.nanargmax(made), made.shape)
    assert abs(x - 20) <= 2 and abs(y - 20) <= 2 and covered[20, 20] == 1


@each("image", "stack", "frame")
def test_regions_and_ds9_read_the_catalogue(
    product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions = pytest.importorskip("regions")
    monkeypatch.chdir(tmp_path)
    assert regions_command.main([str(product)]) == 0
    path = tmp_path / f"{product.stem}.reg"
    found = regions.Regions.read(path, format="ds9")
    with fits.open(product) as units:
        rows = [row for unit in units if unit.name == "OBJCAT" for row in unit.data]
        wcs = WCS(units["SCI", 1].header)
    assert len(found) == len(rows) > 5
    for region, row in zip(found, rows, strict=True):
        assert region.center.ra.deg == pytest.approx(row["X_WORLD"], abs=1e-6)
        assert region.visual["edgecolor"] == ("red" if row["FLAGS"] else "green")
    first = found[0].to_pixel(wcs)
    assert first.center.x == pytest.approx(rows[0]["X_IMAGE"] - 1, abs=0.1)


def test_a_product_without_a_catalogue_has_no_regions(
    flat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert regions_command.main([str(flat)]) == 1
    assert "has no catalogue (OBJCAT)" in capsys.readouterr().err


@each("image", "stack", "frame")
def test_ginga_finds_pixels_and_positions(product: Path) -> None:
    pytest.importorskip("ginga")
    from ginga.AstroImage import AstroImage
    from ginga.misc.log import NullLogger
    from ginga.util import wcsmod

    wcsmod.use("astropy")
    image = AstroImage(logger=NullLogger())
    with fits.open(product) as units:
        image.load_hdu(units["SCI", 1])
        data, row = units["SCI", 1].data, units["OBJCAT", 1].data[0]
    assert np.array_equal(image.get_data(), data, equal_nan=True)
    ra, dec = image.pixtoradec(row["X_IMAGE"] - 1, row["Y_IMAGE"] - 1)
    assert (ra, dec) == pytest.approx((row["X_WORLD"], row["Y_WORLD"]), abs=1e-7)


# SExtractor and SWarp ----------------------------------------------------------------------------


def astromatic(*names: str) -> str:
    """Give the path of one of these programs, or skip the test."""
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"{names[0]} is not here (Debian: apt install {names[0].lower()})")
    return path


@each("image", "stack")
def test_sextractor_takes_var_as_its_weight_map(
    product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stars are where the catalogue has them, with like fluxes, and errors by VAR."""
    program = astromatic("source-extractor", "sex")
    monkeypatch.chdir(tmp_path)
    names = ("X_IMAGE", "Y_IMAGE", "X_WORLD", "Y_WORLD", "FLUX_AUTO", "FLUXERR_AUTO", "FLAGS")
    Path("default.param").write_text("\n".join([*names, ""]))
    options = {
        "PARAMETERS_NAME": "default.param",
        "FILTER": "N",
        "DETECT_THRESH": "5",
        "CATALOG_TYPE": "FITS_1.0",
        "CATALOG_NAME": "found.fits",
        "WEIGHT_TYPE": "MAP_VAR",
        "WEIGHT_IMAGE": f"{product}[2]",
        "FLAG_IMAGE": f"{product}[3]",
        "MAG_ZEROPOINT": "0",
    }
    line = [program, f"{product}[1]"]
    for key, value in options.items():
        if key != "FLAG_IMAGE":
            line += [f"-{key}", value]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs, ours = Table.read("found.fits"), stars_of(product)
    ours = ours[np.argsort(ours["FLUX_AUTO"])[::-1][:5]]
    for star in ours:
        distance = np.hypot(
            theirs["X_IMAGE"] - star["X_IMAGE"], theirs["Y_IMAGE"] - star["Y_IMAGE"]
        )
        match = theirs[np.argmin(distance)]
        assert distance.min() < 1.0
        assert match["FLUX_AUTO"] / star["FLUX_AUTO"] == pytest.approx(1.0, abs=0.3)
        assert 0.2 < match["FLUXERR_AUTO"] / star["FLUXERR_AUTO"] < 5
        sky = np.hypot(
            (match["X_WORLD"] - star["X_WORLD"]) * np.cos(np.radians(star["Y_WORLD"])),
            match["Y_WORLD"] - star["Y_WORLD"],
        )
        assert 3600 * sky < 0.05  # its WCS, not ours


@each("image", "stack")
def test_swarp_resamples_with_var_as_its_weight_map(
    product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = astromatic("SWarp", "swarp")
    monkeypatch.chdir(tmp_path)
    with fits.open(product) as units:  # it takes whole files, not extensions of one
        for name in ("SCI", "VAR"):
            fits.PrimaryHDU(units[name, 1].data, units[name, 1].header).writeto(f"{name}.fits")
    options = {
        "IMAGEOUT_NAME": "out.fits",
        "WEIGHTOUT_NAME": "out.weight.fits",
        "WEIGHT_TYPE": "MAP_VARIANCE",
        "WEIGHT_IMAGE": "VAR.fits",
        "SUBTRACT_BACK": "N",
        "RESAMPLING_TYPE": "BILINEAR",
        "WRITE_XML": "N",
    }
    line = [program, "SCI.fits"]
    for key, value in options.items():
        line += [f"-{key}", value]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    stars = stars_of(product)
    star = stars[np.argmax(stars["FLUX_AUTO"])]
    with fits.open("out.fits") as units, fits.open("out.weight.fits") as weights:
        data, wcs = units[0].data, WCS(units[0].header)
        x, y = wcs.world_to_pixel_values(star["X_WORLD"], star["Y_WORLD"])
        part = data[int(y) - 3 : int(y) + 5, int(x) - 3 : int(x) + 5]
        assert np.nanmax(part) > 0.3 * star["FLUX_MAX"]
        assert np.nanmax(weights[0].data) > 0


def test_a_mask_is_as_the_peer_has_it(products: dict[str, Path]) -> None:
    """Flags are in SCI, as in its own, and gdask reads them as flags."""
    with fits.open(products["f2_bpm"]) as units:
        images = [unit for unit in units if isinstance(unit, fits.ImageHDU)]
        assert [unit.name for unit in images] == ["SCI"] and images[0].data.dtype == np.uint16
        values = images[0].data
    frame = gdask.open(products["f2_bpm"])
    assert set(frame.data_vars) == {"dq"} and np.array_equal(frame["dq"][0].values, values)
    assert 0 < (values > 0).mean() < 0.5


# Files of the peer -------------------------------------------------------------------------------


def by_astrodata(path: Path, out: Path, **keywords: object) -> Path:
    """Write a file again as astrodata does, with keywords of the peer, and without our tables."""
    opened = astrodata.open(path)
    for name in ("REDUCTION", "RECIPE", "ASTROM", "FRAMES", "RESIDUALS", "EPOCHS"):
        if name in opened.tables:
            delattr(opened, name)
    for name in ("CHECKSUM", "DATASUM"):
        opened.phu.remove(name, ignore_missing=True)
    opened.phu.update({"PROCMODE": "sq", **keywords})
    for array in opened:
        array.hdr["BUNIT"] = "electron"
    opened.write(out, overwrite=True)
    return out


def test_a_flat_by_astrodata_is_used(
    products: dict[str, Path], night: Night, calibrated: Path
) -> None:
    """Named by --user_cal; frames have the same bytes of pixels as with our own."""
    flat = by_astrodata(products["flat"], calibrated / "peer_flat.fits")
    assert {"FLAT", "PROCESSED"} <= tags(flat)
    reduction = Reduce()
    reduction.files.extend(night.sequence)
    reduction.recipename = "reduce_nostack"
    reduction.uparms["prepare:bad_wcs"] = "fix"
    reduction.ucals = {"processed_flat": str(flat)}
    reduction.runr()
    (name,) = [one for one in reduction.output_filenames if one == products["frame"].name]
    with fits.open(name) as ours, fits.open(products["frame"]) as other:
        for number in range(1, 5):
            for plane in ("SCI", "VAR", "DQ"):
                assert np.array_equal(
                    ours[plane, number].data, other[plane, number].data, equal_nan=True
                ), (plane, number)


def test_frames_by_astrodata_are_stacked(products: dict[str, Path], calibrated: Path) -> None:
    """Without our tables their geometry is that of the headers."""
    frames = sorted(products["frame"].parent.glob("*_skyCorrected.fits"))
    names = [str(by_astrodata(path, calibrated / path.name)) for path in frames]
    stack = reduce(names, "alignAndStack")
    assert verify(stack).faults == ()
    with fits.open(stack) as ours, fits.open(products["stack"]) as other:
        assert ours["SCI", 1].header["BUNIT"] == "electron"
        assert ours[0].header["NCOMBINE"] == other[0].header["NCOMBINE"]
        assert np.nanmedian(ours["VAR", 1].data) == pytest.approx(
            np.nanmedian(other["VAR", 1].data), rel=0.05
        )
