"""The GSAOI simulator against what real headers say, against astropy's projection, and against its own truth."""

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
    PLATEAU,
    Pattern,
    Readout,
    cosmic_rays,
    full_well,
    measured_electrons,
    read_out,
)
from gdask.simulate.geometry import Pose
from gdask.simulate.gsaoi_plan import frame_order, stale_frames
from gdask.simulate.options import gsaoi_options
from gdask.simulate.rendering import (
    CORE_HALF_SIZE,
    Moffat,
    profile_table,
    render,
    stamp_radii,
)
from gdask.simulate.seeds import generator

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
    table = Table.read(night / "truth" / "frames.ecsv")
    table.add_index("file")
    return table


def pose_of(row: Table.Row) -> Pose:
    return Pose(
        row["ra0"], row["dec0"], row["pa"], row["plate_scale"], np.array(json.loads(row["warp"]))
    )


def test_pixel_to_sky_is_the_projection_of_astropy() -> None:
    x, y = np.random.default_rng(1).uniform(-100.0, 2150.0, (2, 200))
    pose = Pose(201.3, -43.1, 37.0, 1.0002, np.random.default_rng(2).normal(0.0, 0.01, (2, 7)))
    ra, dec = geometry.pixel_to_sky(CHIPS[2], pose, x, y)
    u, v = geometry.distort(pose, *geometry.plane(CHIPS[2], x, y))
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [pose.ra0, pose.dec0]
    c, s = np.cos(np.radians(37.0)), np.sin(np.radians(37.0))
    wcs.wcs.cd = np.array([[c, s], [-s, c]]) / 3600.0
    np.testing.assert_allclose(np.array(wcs.wcs_pix2world(u, v, 1)), [ra, dec], rtol=0, atol=1e-11)
    np.testing.assert_allclose(
        geometry.sky_to_pixel(CHIPS[2], pose, ra, dec), [x, y], rtol=0, atol=1e-7
    )


def test_origin_falls_where_target_and_offsets_land() -> None:
    x, y = geometry.plane_to_pixel(CHIPS[3], np.zeros(1), np.zeros(1))
    np.testing.assert_allclose([x[0], y[0]], [195.5, 212.2], atol=0.5)


def test_pixel_area_is_the_determinant_of_the_jacobian() -> None:
    x, y = np.array([1.0, 700.0, 2048.0]), np.array([3.0, 1500.0])
    ux, uy, vx, vy = geometry.jacobian(CHIPS[1], *np.meshgrid(x, y))
    np.testing.assert_allclose(geometry.pixel_area(CHIPS[1], x, y), ux * vy - uy * vx, rtol=1e-12)


def no_latent(index: int, array: int) -> gsaoi.Latent:
    raise AssertionError(f"no frame before has left a latent: {index}, {array}")


@pytest.mark.parametrize(
    "psf", [(Moffat(0.42, 0.083, 4), Moffat(0.58, 0.45, 3)), (Moffat(1.0, 0.5, 3),)]
)
def test_a_rendered_star_has_its_flux_and_place(psf: tuple[Moffat, ...]) -> None:
    jacobian = np.array([[0.0197, 0.0004, 0.0002, 0.0195]])
    image = np.zeros((401, 401), np.float32)
    x, y = np.array([200.37]), np.array([199.81])
    radii = stamp_radii(psf, np.array([1e7]))
    table = profile_table(psf)
    render(image, x, y, np.array([1e7]), jacobian, radii, table, CORE_HALF_SIZE)
    assert image.sum(dtype=float) == pytest.approx(1e7, rel=1e-3)
    near = np.s_[190:211, 190:211]
    fine = (np.arange(21 * 20) + 0.5) / 20 - 0.5 + 190
    dx, dy = np.meshgrid(fine - x[0], fine - y[0])
    u, v = 0.0197 * dx + 0.0004 * dy, 0.0002 * dx + 0.0195 * dy
    total = np.zeros_like(u)
    for fraction, fwhm, beta in psf:
        a2 = fwhm**2 / 4 / (2 ** (1 / beta) - 1)
        total += fraction * (beta - 1) / (np.pi * a2) * (1 + (u * u + v * v) / a2) ** -beta
    truth = total.reshape(21, 20, 21, 20).mean((1, 3)) * 1e7 * (0.0197 * 0.0195 - 0.0004 * 0.0002)
    np.testing.assert_allclose(image[near], truth, rtol=3e-4)
    weight = image[near].astype(float)
    rows, columns = np.mgrid[near]
    for axis in (columns, rows):
        got, want = (weight * axis).sum() / weight.sum(), (truth * axis).sum() / truth.sum()
        assert got == pytest.approx(want, abs=1e-4)


def test_measured_signal_is_the_inverse_of_the_linearity_polynomial() -> None:
    for array in ARRAYS:
        c0, c1, c2 = array["linearity"]
        for n in np.linspace(-50.0, 140000.0, 30):
            assert measured_electrons(n * (c0 + n * (c1 + n * c2)), c0, c1, c2) == pytest.approx(
                n, abs=1e-3
            )


@pytest.mark.parametrize("coadds", [1, 4])
@pytest.mark.parametrize("level", [3.0, 100.0, 20000.0])
def test_noise_of_a_read(level: float, coadds: int) -> None:
    readout = Readout(2.0, 10.0, 50000.0, (1.0, 0.0, 0.0), coadds, 0.1)
    raw = (
        read_out(generator(1, "test"), np.full((300, 300), level, np.float32), readout).astype(
            float
        )
        * 2.0
    )
    sigma = np.sqrt((level + 100.0) / coadds)
    assert raw.mean() == pytest.approx(level, abs=4 * sigma / 300)
    assert raw.std() == pytest.approx(sigma, rel=0.012)


def test_saturated_pixels_read_a_plateau_and_very_bright_cores_read_low() -> None:
    readout = Readout(2.4, 10.0, 52000.0, tuple(ARRAYS[0]["linearity"]), 1, 1 / 15)
    full = full_well(readout)
    expected = (full * np.array([[0.5, 1.2, 3.0, 6.0, 12.0, 30.0]])).astype(np.float32)
    raw = read_out(generator(1, "test"), expected, readout)[0]
    assert raw[0] < 0.6 * 52000
    np.testing.assert_allclose(raw[1:4], PLATEAU * 52000, rtol=1e-3)
    assert np.all(raw[1:4] >= 52000) and raw[3] > raw[4] > raw[5]
    assert raw[5] < 0.1 * 52000


def test_cosmic_rays_have_the_asked_rate_and_stay_inside() -> None:
    counts = [cosmic_rays(generator(i, "cr"), (64, 80), 5.0) for i in range(200)]
    tracks = np.array([hits.x.size > 0 for hits in counts])
    assert tracks.mean() > 0.97
    assert all(
        (hits.x < 80).all() and (hits.y < 64).all() and (hits.electrons > 0).all()
        for hits in counts
    )
    assert 5 * 2 < np.mean([hits.x.size for hits in counts]) < 5 * 10


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
    """Linearised electrons, less dark current; FLAT, RESPONSE, good pixels, on the frame's window."""
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
    """Stars put at known places of an array without faults: their light in an aperture, and where it is."""
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
