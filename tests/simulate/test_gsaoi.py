"""GSAOI nights against real headers, astropy's projection and their own truth."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from gdask.cli import simulate as command
from gdask.model import GdaskError
from gdask.simulate import geometry, gsaoi, simulate_gsaoi
from gdask.simulate.detector import (
    Pattern,
)
from gdask.simulate.geometry import Pose
from gdask.simulate.gsaoi_plan import frame_order, stale_frames
from gdask.simulate.options import gsaoi_options

SIZE = 256
SAMPLES = Path(os.environ.get("GDASK_SAMPLES", "/nowhere")) / "gsaoi"
FACTS, ARRAYS = gsaoi.load_facts()
CHIPS = gsaoi.chips_of(ARRAYS)
FIRST_SKY = "S20170505S0098.fits"


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small night with all kinds of frames; 9 on target and 7 on sky as in the tutorial."""
    out = tmp_path_factory.mktemp("night")
    simulate_gsaoi(out, size=SIZE, n_flats=1, n_darks=1, pa=37.0)
    return out


@pytest.fixture(scope="module")
def frames(night: Path) -> Table:
    """The night's table of frames, by file."""
    table = Table.read(night / "truth" / "frames.ecsv")
    table.add_index("file")
    return table


def pose_of(row: Table.Row) -> Pose:
    """Where a frame truly pointed."""
    return Pose(
        row["ra0"], row["dec0"], row["pa"], row["plate_scale"], np.array(json.loads(row["warp"]))
    )


def no_latent(index: int, array: int) -> gsaoi.Latent:
    raise AssertionError(f"no frame before has left a latent: {index}, {array}")


def test_order_of_frames_and_of_bad_wcs_is_the_tutorial_nights() -> None:
    order = frame_order(9, 7)
    assert "".join(kind[1] for kind in order) == "ccckkccckkccckkk"
    assert sorted(stale_frames(order, 3)) == [10, 13, 14]
    assert stale_frames(frame_order(6, 0), 2) == {1, 2}


def test_files_of_the_night_are_the_tutorials(night: Path, frames: Table) -> None:
    names = sorted(path.name for path in (night / "raw").iterdir())
    assert names == sorted(
        [
            *(f"S20170504S{n:04d}.fits" for n in range(114, 118)),
            "S20170505S0030.fits",
            "S20170505S0060.fits",
            *(f"S20170505S{n:04d}.fits" for n in range(95, 111)),
            "S20170505S0200.fits",
            "bpm_20121104_gsaoi_gsaoi_11_full_4amp.fits",
        ]
    )
    assert list(frames["file"][frames["bad_wcs"]]) == [
        f"S20170505S{n:04d}.fits" for n in (105, 108, 109)
    ]


def test_headers_say_what_the_tutorial_selects(night: Path, frames: Table) -> None:
    for row in frames:
        head = fits.getheader(night / "raw" / row["file"])
        assert head["INSTRUME"] == "GSAOI" and head["BUNIT"] == "ADU" and head["NEXTEND"] == 4
        guided = row["kind"] == "science"
        assert ("GWFS1CFG" in head) == guided
        want = {"std": "partnerCal", "science": "science", "sky": "science"}.get(
            row["kind"], "dayCal"
        )
        assert head["OBSCLASS"] == want
        assert head["OBJECT"] == {
            "std": "9132",
            "flat_on": "Domeflat",
            "flat_off": "Domeflat OFF",
            "dark": "Dark",
        }.get(row["kind"], "NGC5128")
        assert head["FILTER1"] == ("Blocked1_G1114" if row["kind"] == "dark" else "Kshort_G1105")
        assert head["EXPTIME"] == row["exptime"]
    assert fits.getheader(night / "raw" / "S20170504S0114.fits")["PWFS1_ST"] == "guiding"


def test_header_wcs_agrees_with_the_true_pointing_except_where_it_is_stale(
    night: Path, frames: Table
) -> None:
    for row in frames[np.isfinite(frames["ra0"])]:
        pose = pose_of(row)
        with fits.open(night / "raw" / row["file"]) as hdus:
            for array, hdu in enumerate(hdus[1:]):
                head = hdu.header.copy()
                corner = [int(part.split(":")[0]) for part in head["CCDSEC"].strip("[]").split(",")]
                if row["roi"]:  # the archive subtracts DETSEC's origin there: add it back
                    origin = [
                        int(part.split(":")[0]) for part in head["DETSEC"].strip("[]").split(",")
                    ]
                    head["CRPIX1"], head["CRPIX2"] = (
                        head[f"CRPIX{i + 1}"] + origin[i] - corner[i] for i in (0, 1)
                    )
                ra, dec = WCS(head).wcs_pix2world(100.0, 60.0, 1)
                place = np.array([[99.0 + corner[0]], [59.0 + corner[1]]])
                true = geometry.pixel_to_sky(CHIPS[array], pose, *place)
                apart = 3600 * np.hypot(
                    (ra - true[0][0]) * np.cos(np.radians(dec)), dec - true[1][0]
                )
                assert (apart > 200.0) if row["bad_wcs"] else (apart < 2.5), (row["file"], array)


def test_bad_pixel_mask_is_the_truth_but_for_the_unlisted(night: Path) -> None:
    corner = (2048 - SIZE) // 2
    with (
        fits.open(night / "raw" / "bpm_20121104_gsaoi_gsaoi_11_full_4amp.fits") as mask,
        fits.open(night / "truth" / "bad_pixels.fits") as bad,
    ):
        for array in range(1, 5):
            data = mask[array].data
            assert data.dtype == np.uint16 and data.shape == (2048, 2048)
            assert data[:4].all() and data[:, -4:].all() and 0.002 < data[4:-4, 4:-4].mean() < 0.01
            truth = bad[array].data
            listed = (truth != 0) & (truth & 16 == 0)
            np.testing.assert_array_equal(data[corner:-corner, corner:-corner] != 0, listed)


def linear_electrons(night: Path, row: Table.Row, array: int) -> tuple[np.ndarray, ...]:
    """Linearised electrons without dark current, FLAT, RESPONSE, good pixels of the window."""
    raw = fits.getdata(night / "raw" / row["file"], array + 1).astype(float) * ARRAYS[array]["gain"]
    c0, c1, c2 = ARRAYS[array]["linearity"]
    planes = [
        fits.getdata(night / "truth" / f"flat_{array + 1}.fits", name)
        for name in ("FLAT", "RESPONSE", "DARK")
    ]
    bad = fits.getdata(night / "truth" / "bad_pixels.fits", array + 1)
    edge = (SIZE - raw.shape[0]) // 2
    flat, response, dark, bad = (p[edge : SIZE - edge, edge : SIZE - edge] for p in (*planes, bad))
    return raw * (c0 + raw * (c1 + raw * c2)) - dark * row["exptime"], flat, response, bad == 0


@pytest.mark.parametrize("file", ["S20170505S0030.fits", "S20170505S0060.fits", FIRST_SKY])
def test_level_and_noise_of_smooth_light(night: Path, frames: Table, file: str) -> None:
    row = frames.loc[file]
    modes = FACTS["read_modes"][str(row["lnrs"])]
    for array in range(4):
        electrons, flat, _, good = linear_electrons(night, row, array)
        level, noise = row["sky"] * row["exptime"], ARRAYS[array]["read_noise"][modes]
        pull = (electrons - level * flat)[good] / np.sqrt(level * flat[good] + noise**2)
        spread = 1.4826 * np.median(np.abs(pull - np.median(pull)))
        assert abs(np.median(pull)) < (
            0.1 if row["kind"] == "sky" else 0.03
        )  # faint stars in the sky field
        assert spread == pytest.approx(1.0, abs=0.08 if row["kind"] == "sky" else 0.03)


def test_flux_and_centroid_of_stars_in_an_ideal_frame() -> None:
    """Stars at known places of an array without faults.

    Checked are their light in an aperture, and where it is.
    """
    prepared = gsaoi.prepare_night(
        gsaoi_options(size=512, field="sparse", n_flats=0, n_std=0, afterglow=0.0)
    )
    exposure = next(e for e in prepared.exposures if e.kind == "sky")
    ones = np.ones((512, 512), np.float32)
    ideal = prepared._replace(
        detectors=[
            detector._replace(pattern=Pattern(ones, 0 * ones, detector.pattern.bad), flat=0 * ones)
            for detector in prepared.detectors
        ]
    )
    edge, x, y = 768, np.array([100.25, 400.5, 250.8]), np.array([110.6, 130.0, 390.37])
    flux = np.array([1e4, 3e3, 5e4])
    rows, columns = np.mgrid[:512, :512]
    fwhm = exposure.psf[0].fwhm
    inside = 1 - (1 + 1.4**2 / (fwhm**2 / 4 / (2 ** (1 / 3) - 1))) ** -2.0
    for array in range(4):
        ra, dec = geometry.pixel_to_sky(CHIPS[array], exposure.pose, x + edge + 1, y + edge + 1)
        stars = prepared.stars["sky"]._replace(ra=ra, dec=dec, flux=flux)
        image = gsaoi.expected(
            ideal._replace(stars={"sky": stars}), exposure, array, no_latent
        ).astype(float)
        u, v = geometry.plane(CHIPS[array], columns + edge + 1.0, rows + edge + 1.0)
        for i in range(3):
            u0, v0 = geometry.plane(CHIPS[array], x[i] + edge + 1, y[i] + edge + 1)
            light = np.where(np.hypot(u - u0, v - v0) < 1.4, image, 0.0)
            assert light.sum() / (flux[i] * exposure.scale * 60.0) == pytest.approx(
                inside, abs=1e-3
            )
            weight = image * np.exp(-((columns - x[i]) ** 2 + (rows - y[i]) ** 2) / 2 / 4.0**2)
            place = [(weight * axis).sum() / weight.sum() for axis in (columns, rows)]
            np.testing.assert_allclose(place, [x[i], y[i]], rtol=0, atol=1e-3)


def test_a_small_frame_is_a_part_of_a_larger_one() -> None:
    small, large = (gsaoi.prepare_night(gsaoi_options(size=size, n_flats=0)) for size in (64, 128))
    frame = [
        next(e for e in n.exposures if e.file == "S20170505S0095.fits") for n in (small, large)
    ]
    images = [gsaoi.expected(n, e, 2, no_latent) for n, e in zip((small, large), frame)]
    np.testing.assert_allclose(images[0], images[1][32:96, 32:96], rtol=2e-6)


def test_saturated_pixels_leave_a_latent_that_fades() -> None:
    prepared = gsaoi.prepare_night(gsaoi_options(size=512, n_flats=0, n_std=0))
    find = gsaoi.latent_finder(prepared)
    index = next(i for i, e in enumerate(prepared.exposures) if e.kind == "science")
    burnt = find(index, 1)  # the very bright star of array 2
    assert burnt.x.size > 20

    def only(i: int, _: int) -> gsaoi.Latent:
        return burnt if i == index else gsaoi.Latent(burnt.y[:0], burnt.x[:0], burnt.fill[:0])

    extra = []
    for later in (1, 3):
        exposure = prepared.exposures[index + later]
        without = prepared._replace(options=prepared.options._replace(afterglow=0.0))
        glow = gsaoi.expected(prepared, exposure, 1, only) - gsaoi.expected(
            without, exposure, 1, only
        )
        extra.append(glow[burnt.y - 768, burnt.x - 768].mean())
        assert np.count_nonzero(glow) <= burnt.x.size
    assert extra[0] > extra[1] > 10.0


def test_a_frame_depends_on_the_seed_and_its_name_alone(night: Path, tmp_path: Path) -> None:
    simulate_gsaoi(
        tmp_path / "again", size=SIZE, n_science=3, n_sky=1, bad_wcs=0, n_flats=0, n_std=0, pa=37.0
    )
    simulate_gsaoi(
        tmp_path / "other", size=SIZE, n_flats=0, n_std=0, n_sky=0, n_science=1, pa=37.0, seed=2
    )
    for file in ("S20170505S0095.fits", FIRST_SKY):
        assert (tmp_path / "again" / "raw" / file).read_bytes() == (
            night / "raw" / file
        ).read_bytes()
    other = fits.getdata(tmp_path / "other" / "raw" / "S20170505S0095.fits", 2)
    assert np.mean(other == fits.getdata(night / "raw" / "S20170505S0095.fits", 2)) < 0.01


def test_nights_have_their_own_files_and_poses(tmp_path: Path) -> None:
    paths = simulate_gsaoi(
        tmp_path, size=64, nights=2, n_science=2, n_sky=1, n_flats=1, n_std=1, bad_wcs=0
    )
    assert len(paths) == len(set(paths)) == 2 * 6 + 1
    table = Table.read(tmp_path / "truth" / "frames.ecsv")
    science = table[table["kind"] == "science"]
    assert len({name[:9] for name in science["file"]}) == 2
    assert abs(np.median(science["pa"][:2]) - np.median(science["pa"][2:])) > 1e-4


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("sizes", 64, "did you mean 'size'"),
        ("size", 33, "expected 64 to 2048"),
        ("size", 65, "must be even"),
        ("filter", "Q", "expected one of"),
        ("date", "2017-05-05", "YYYYMMDD"),
        ("roi", 2046, "less than the size"),
        ("exptime", "long", "expected float"),
    ],
)
def test_options_that_cannot_be_are_refused(option: str, value: object, says: str) -> None:
    with pytest.raises(GdaskError, match=says):
        gsaoi_options(**{"size": 128, option: value})


def test_command_writes_a_night_and_reports_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "n"
    few = ["--n-science", "1", "--n-sky", "0", "--n-flats", "1", "--n-std", "1", "--size", "64"]
    assert command.main(["gsaoi", str(out), *few]) == 0
    assert "5 raw files" in capsys.readouterr().err
    assert command.main(["gsaoi", str(out), "--size", "63"]) == 2
    assert "size" in capsys.readouterr().err


@pytest.mark.skipif(not SAMPLES.exists(), reason="no samples to compare with")
@pytest.mark.parametrize(
    "file", ["S20170505S0095", FIRST_SKY[:-5], "S20170505S0030", "S20170504S0114"]
)
def test_every_keyword_of_an_archive_like_sample_is_there(
    tmp_path: Path, night: Path, file: str
) -> None:
    with (
        fits.open(SAMPLES / "raw" / f"{file}.fits.gz") as want,
        fits.open(night / "raw" / f"{file}.fits") as got,
    ):
        for a, b in zip(want, got, strict=True):
            assert [k for k in a.header if k not in b.header] == []
            assert [
                k
                for k in a.header
                if k and k != "COMMENT" and type(a.header[k]) is not type(b.header[k])
            ] == []


def test_every_second_frame_of_a_target_may_point_elsewhere_and_be_turned(tmp_path):
    night = {"size": 64, "n_science": 4, "n_sky": 1, "n_flats": 0, "n_std": 0, "bad_wcs": 0}
    simulate_gsaoi(tmp_path, **night, pa=20.0, group_offset=25.0, group_pa=90.0, pointing=0.0)
    rows = Table.read(tmp_path / "truth" / "frames.ecsv")
    headers = [fits.getheader(tmp_path / "raw" / row["file"]) for row in rows]
    for row, header in zip(rows, headers):
        assert abs(row["pa"] - header["PA"]) < 0.1
    science = [h for row, h in zip(rows, headers) if row["kind"] == "science"]
    assert [header["PA"] for header in science] == [20.0, 110.0, 20.0, 110.0]
    assert [header["POFFSET"] > 20 for header in science] == [False, True, False, True]
    (sky,) = (h for row, h in zip(rows, headers) if row["kind"] == "sky")
    assert sky["PA"] == 20.0
