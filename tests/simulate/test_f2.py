"""FLAMINGOS-2 nights against real headers, astropy's projection and their own truth."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS, FITSFixedWarning

from gdask import dataselect
from gdask.cli import simulate as command
from gdask.model import GdaskError
from gdask.simulate import f2, simulate_f2
from gdask.simulate.f2_headers import six_digits
from gdask.simulate.f2_plan import frame_order
from gdask.simulate.geometry import pixel_to_sky
from gdask.simulate.options import f2_options

SIZE = 256
CORNER = (2048 - SIZE) // 2
SAMPLES = Path(os.environ.get("GDASK_SAMPLES", "/nowhere")) / "f2"
FACTS, _ = f2.load_facts()
GAIN, LINEARITY = 4.44, (0.9999107, -4.2854848e-8, 1.0096585e-12)
pytestmark = pytest.mark.filterwarnings("ignore", category=FITSFixedWarning)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tutorial's night, small."""
    out = tmp_path_factory.mktemp("night")
    simulate_f2(out, size=SIZE)
    return out


@pytest.fixture(scope="module")
def offset_night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A later night in Ks: rotated, offsets to sky, several reads and coadds, one stale WCS."""
    out = tmp_path_factory.mktemp("offset")
    simulate_f2(
        out,
        size=SIZE,
        filter="Ks",
        dither="offset",
        pa=37.0,
        date="20200312",
        n_science=3,
        bad_wcs=1,
        lnrs=4,
        coadds=3,
        exptime=6.0,
        n_darks=2,
        n_short_darks=1,
        n_lamps=2,
    )
    return out


def truth_of(out: Path) -> Table:
    """The table of frames, by file."""
    table = Table.read(out / "truth" / "frames.ecsv", fill_values=None)
    table.add_index("file")
    return table


def true_wcs(row: Table.Row, scene: dict) -> WCS:
    """The frame's true geometry, from what scene.json says.

    It is astropy's own projection of a linear WCS.
    """
    u, v = (np.array(scene["chip"][axis]) for axis in "uv")
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [row["ra0"], row["dec0"]]
    wcs.wcs.crpix = [-v[0] / v[1] - CORNER, -u[0] / u[2] - CORNER]
    c, s = np.cos(np.radians(row["pa"])), np.sin(np.radians(row["pa"]))
    wcs.wcs.cd = (
        row["plate_scale"] / 3600.0 * np.array([[s * v[1], c * u[2]], [c * v[1], -s * u[2]]])
    )
    return wcs


def electrons(out: Path, row: Table.Row) -> np.ndarray:
    """Linearised electrons per coadd."""
    pedestal = json.loads((out / "truth" / "scene.json").read_text())["pedestal"]
    offset = np.repeat(pedestal, 64)[CORNER : CORNER + SIZE] * row["lnrs"] * row["coadds"]
    raw = (fits.getdata(out / "raw" / row["file"])[0] - offset) * (
        GAIN / row["lnrs"] / row["coadds"]
    )
    c0, c1, c2 = LINEARITY
    return raw * (c0 + raw * (c1 + raw * c2))


def planes(out: Path) -> list[np.ndarray]:
    """FLAT, RESPONSE, DARK, and which pixels are good."""
    with fits.open(out / "truth" / "flat_1.fits") as hdus:
        maps = [hdus[name].data.astype(float) for name in ("FLAT", "RESPONSE", "DARK")]
    return [*maps, fits.getdata(out / "truth" / "bad_pixels.fits", 1) == 0]


def test_files_are_the_tutorials_and_its_lines_select_them(night: Path) -> None:
    files = sorted(str(path) for path in (night / "raw").glob("*.fits"))

    def chosen(tags: list[str], without: list[str], expression: str = "True") -> list[str]:
        picked = dataselect.select_data(files, tags, without, dataselect.expr_parser(expression))
        return [Path(name).name for name in picked]

    assert chosen(["DARK"], [], "exposure_time==120") == [
        *(f"S20131120S{n:04d}.fits" for n in range(115, 121)),
        "S20131121S0010.fits",
        "S20131122S0012.fits",
        "S20131122S0438.fits",
        "S20131122S0439.fits",
    ]
    assert chosen(["DARK"], [], "exposure_time==2") == [
        f"S20131121S{n:04d}.fits" for n in range(369, 376)
    ]
    flats = (
        [f"S20131126S{n:04d}.fits" for n in range(1111, 1117)],
        [f"S20131129S{n:04d}.fits" for n in range(320, 324)],
    )
    assert chosen(["FLAT"], []) == flats[0] + flats[1]
    assert (chosen(["LAMPOFF"], []), chosen(["LAMPON"], [])) == flats
    assert chosen([], ["CAL"]) == [f"S20131121S{n:04d}.fits" for n in range(75, 84)]
    assert len(files) == 36


def test_images_are_whole_numbers_in_a_cube_without_units_or_sections(night: Path) -> None:
    for path in (night / "raw").glob("*.fits"):
        with fits.open(path) as hdus:
            hdus.verify("exception")
            data, head = hdus[1].data, hdus[1].header
            assert data.shape == (1, SIZE, SIZE) and head["BITPIX"] == 32 and head["CD3_3"] == 1.0
            assert not {"BUNIT", "DETSEC", "CCDSEC", "DATASEC"} & {*head, *hdus[0].header}
            assert (
                hdus[0].header["GAIN"] == pytest.approx(4.44) and hdus[0].header["RDNOISE"] == 0.0
            )


@pytest.mark.parametrize("which", ["night", "offset_night"])
def test_header_wcs_agrees_with_the_true_pointing_but_for_its_known_faults(
    which: str, request: pytest.FixtureRequest
) -> None:
    out = request.getfixturevalue(which)
    scene = json.loads((out / "truth" / "scene.json").read_text())
    table = truth_of(out)
    on_sky = [row for row in table if row["field"]]
    assert sum(row["bad_wcs"] for row in on_sky) == scene["options"]["bad_wcs"] and len(on_sky) in (
        6,
        9,
    )
    for row in on_sky:
        head = fits.getheader(out / "raw" / row["file"], 1)
        x, y = np.array([20.0, 200.0]), np.array([230.0, 100.0])
        ra, dec = WCS(head, naxis=2).wcs_pix2world(x, y, 1)
        true = true_wcs(row, scene).wcs_pix2world(x, y, 1)
        apart = 3600 * np.hypot((ra - true[0]) * np.cos(np.radians(dec)), dec - true[1])
        low, high = {
            True: (100.0, 600.0),
            False: (10.0, 20.0) if row["kind"] == "sky" else (0.0, 1.5),
        }[row["bad_wcs"]]
        assert np.all((apart >= low) & (apart < high)), (row["file"], apart)


@pytest.mark.parametrize("which", ["night", "offset_night"])
def test_level_and_noise_of_smooth_light_and_of_darks(
    which: str, request: pytest.FixtureRequest
) -> None:
    out = request.getfixturevalue(which)
    flat, _, dark, good = planes(out)
    noise = {1: 11.7, 4: 6.0}
    for row in truth_of(out):
        light = electrons(out, row)
        level = (row["sky"] * flat + dark) * row["exptime"]
        counting = (GAIN / row["lnrs"]) ** 2 / 12 / row["coadds"] ** 2  # whole numbers
        sigma = np.sqrt((level + noise[row["lnrs"]] ** 2) / row["coadds"] + counting)
        ok = good & (level < 1e5)
        pull = ((light - level) / sigma)[ok]
        middle, spread = pull[np.abs(pull) < 5].mean(), pull[np.abs(pull) < 5].std()
        assert abs(middle) < (0.25 if row["field"] else 0.05), row["file"]  # faint sources
        assert spread == pytest.approx(1.0, abs=0.1 if row["field"] else 0.03), row["file"]


def test_bright_stars_are_where_the_catalogue_and_astropy_say_with_their_flux(
    tmp_path: Path,
) -> None:
    """Through truth files alone: aperture of 7 pixels, corrected for the Moffat profile."""
    prepared = f2.prepare_night(f2_options(size=SIZE, probe="none", pa=20.0))
    (detector,) = prepared.detectors
    pattern = detector.pattern
    exposure = next(e for e in prepared.exposures if e.kind == "science")
    x, y, flux = np.array([60.3, 180.8]), np.array([200.1, 70.55]), np.array([2000.0, 900.0])
    ra, dec = pixel_to_sky(detector.chip, exposure.pose, x + CORNER + 1, y + CORNER + 1)
    stars = prepared.stars["target"]._replace(ra=ra, dec=dec, flux=flux)
    only_stars = prepared._replace(stars={"target": stars}, galaxies={})
    image = f2.expected(only_stars, exposure).astype(float)
    image -= detector.flat * exposure.light * exposure.exptime + pattern.dark * exposure.exptime
    image /= np.maximum(pattern.response, 0.3)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    a = exposure.psf[0].fwhm / 2 / np.sqrt(2 ** (1 / 3) - 1) / 0.1797
    for i in range(2):
        r = np.hypot(columns - x[i], rows - y[i])
        ok = (r < 7.0) & (pattern.bad == 0)
        model = (1 + r**2 / a**2) ** -3.0
        share = (1 - (1 + 49 / a**2) ** -2.0) * model[ok].sum() / model[r < 7.0].sum()
        assert image[ok].sum() / share == pytest.approx(
            flux[i] * exposure.scale * exposure.exptime, rel=4e-3
        )
        assert (image * (columns - x[i]))[ok].sum() / image[ok].sum() == pytest.approx(
            0.0, abs=0.03
        )


def test_a_small_frame_is_a_part_of_a_larger_one() -> None:
    small, large = (f2.prepare_night(f2_options(size=size, field="extended")) for size in (64, 512))
    frames = [next(e for e in n.exposures if e.kind == "flat_on") for n in (small, large)]
    images = [f2.expected(n, e) for n, e in zip((small, large), frames)]
    np.testing.assert_allclose(images[0], images[1][224:288, 224:288], rtol=2e-6)


def test_clocks_of_early_frames_are_stale(night: Path, offset_night: Path) -> None:
    for out, early in ((night, True), (offset_night, False)):
        for row in truth_of(out):
            head = fits.getheader(out / "raw" / row["file"])
            start, opened, end = (
                sum(float(v) * f for v, f in zip(head[name].split(":"), (3600, 60, 1)))
                for name in ("UT", "UTSTART", "UTEND")
            )
            assert 3.0 < opened - start < 5.0
            assert (
                -40.0 < end - start < 0.0
                if early
                else end - opened > row["exptime"] * row["coadds"]
            )
            assert abs(head["MJD-OBS"] - row["mjd"]) < 0.16 and head["MJD-OBS"] == six_digits(
                head["MJD-OBS"]
            )


def test_conventions_follow_the_date(night: Path, offset_night: Path) -> None:
    old, new = (
        fits.open(out / "raw" / name)
        for out, name in ((night, "S20131121S0075.fits"), (offset_night, "S20200312S0075.fits"))
    )
    with old, new:
        assert list(old[0].header)[-2:] == ["", "RELEASE"] and list(old[1].header)[8:10] == [
            "EXTNAME",
            "EXTVER",
        ]
        assert "PROP_MD" not in old[0].header and old[1].header["CRPIX1"] + CORNER == pytest.approx(
            1064.9, abs=1e-4
        )
        cards = list(new[0].header)
        assert (
            cards[cards.index("AMEND") :][:3] == ["AMEND", "PROP_MD", "RELEASE"]
            and cards[-1] == "ORIGNAME"
        )
        assert list(new[1].header)[-2:] == ["EXTVER", "EXTNAME"] and "SEQEXVER" in cards
        assert new[1].header["CRPIX1"] + CORNER == pytest.approx(1023.91, abs=1e-4)
        assert old[0].header["PWFS2_ST"] == "guiding" and "P2ARA" in cards
    sky = fits.getheader(offset_night / "raw" / "S20200312S0076.fits")
    assert sky["PWFS2_ST"] == "frozen" and "P2ARA" not in sky and sky["OBSCLASS"] == "science"


def test_k_band_has_closed_flats_and_their_darks(offset_night: Path) -> None:
    heads = [fits.getheader(path) for path in sorted((offset_night / "raw").glob("S20200317*"))]
    assert [head["OBSTYPE"] for head in heads] == ["FLAT"] * 3 + ["DARK"] * 3
    assert {head["EXPTIME"] for head in heads} == {10.0} and {h["GCALSHUT"] for h in heads[:3]} == {
        "CLOSED"
    }


def test_order_of_target_and_sky() -> None:
    assert "".join(kind[1] for kind in frame_order(3, 3)) == "ckkcck"
    assert "".join(kind[1] for kind in frame_order(4, 1)) == "ckccc"
    assert frame_order(2, 0) == ["science"] * 2


def test_a_frame_depends_on_the_seed_and_its_name_alone(night: Path, tmp_path: Path) -> None:
    few = {"size": SIZE, "n_science": 2, "n_darks": 0, "n_short_darks": 0, "n_lamps": 0}
    simulate_f2(tmp_path / "again", **few)
    simulate_f2(tmp_path / "other", seed=2, **few)
    name = "S20131121S0076.fits"
    assert (tmp_path / "again" / "raw" / name).read_bytes() == (night / "raw" / name).read_bytes()
    assert (
        np.mean(
            fits.getdata(tmp_path / "other" / "raw" / name) == fits.getdata(night / "raw" / name)
        )
        < 0.05
    )


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("n_lamp", 4, "did you mean 'n_lamps'"),
        ("size", 65, "must be even"),
        ("filter", "K", "expected one of Y, J"),
        ("n_sky", 4, "dither offset"),
        ("date", "2013", "YYYYMMDD"),
        ("lnrs", 2, "expected one of 1, 4"),
    ],
)
def test_options_that_cannot_be_are_refused(option: str, value: object, says: str) -> None:
    with pytest.raises(GdaskError, match=says):
        f2_options(**{"size": 128, option: value})


def test_command_writes_a_night_and_reports_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [
        "--n-science",
        "1",
        "--n-darks",
        "1",
        "--n-short-darks",
        "1",
        "--n-lamps",
        "1",
        "--size",
        "64",
    ]
    assert command.main(["f2", str(tmp_path), *few]) == 0
    assert "5 raw files" in capsys.readouterr().err
    assert command.main(["f2", str(tmp_path), "--size", "63"]) == 2
    assert "size" in capsys.readouterr().err


@pytest.mark.skipif(not SAMPLES.exists(), reason="no samples to compare with")
@pytest.mark.parametrize(
    "file", ["S20131121S0075", "S20131120S0115", "S20131129S0320", "S20131126S1111"]
)
def test_every_keyword_of_an_archive_like_sample_is_there(night: Path, file: str) -> None:
    with (
        fits.open(SAMPLES / "raw" / f"{file}.fits.gz") as want,
        fits.open(night / "raw" / f"{file}.fits") as got,
    ):
        for a, b in zip(want, got, strict=True):
            assert {k for k in a.header if k not in b.header} <= {"PROP_MD"}  # of later years
            assert [k for k in b.header if k and k not in a.header] == []
            assert [
                k
                for k in a.header
                if k in b.header and k != "COMMENT" and type(a.header[k]) is not type(b.header[k])
            ] == []
