"""Numbers of products against the truth of simulated nights."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from conftest import Night
from scipy.spatial import cKDTree

from gdask import Reduce
from gdask.cli import main
from gdask.headers.numbers import NUMBERS, read_numbers
from gdask.instruments import view
from gdask.reduction.verify import verify

IMAGE = "S20170505S0095_image.fits"


def run(files: list[str], recipe: str = "default", **given: object) -> list[str]:
    reduction = Reduce()
    reduction.files.extend(files)
    reduction.recipename = recipe
    for name, value in given.items():
        setattr(reduction, name, value)
    reduction.runr()
    return reduction.output_filenames


@pytest.fixture(scope="module")
def tied(night: Night, reduced: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reduce the night with a catalogue of two magnitudes; give the image."""
    folder = tmp_path_factory.mktemp("tied")
    catalog = Table.read(night.truth / "catalog.ecsv")
    stars = catalog[catalog["kind"] == "star"]["ra", "dec", "mag"]
    stars.rename_column("mag", "Ksmag")
    stars["Hmag"] = stars["Ksmag"] + 0.7
    stars.write(folder / "stars.fits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(
            night.sequence,
            uparms={
                "prepare:bad_wcs": "fix",
                "skyCorrect:offset_sky": False,
                "addReferenceCatalog:source": str(folder / "stars.fits"),
            },
            ucals={
                "processed_flat": str(next(reduced.glob("*_flat.fits"))),
                "processed_bpm": night.bpm,
            },
        )
    return folder / IMAGE


def truth_of(night: Night) -> Table:
    frames = Table.read(night.truth / "frames.ecsv")
    return frames[frames["kind"] == "science"]


def test_an_image_is_as_wide_as_the_simulator_made_it(night: Night, reduced: Path) -> None:
    numbers = read_numbers(reduced / IMAGE)
    cores = [min(width for _, width, _ in ast.literal_eval(row["psf"])) for row in truth_of(night)]
    pixel = 0.02 * 0.68  # a pixel's own width, as a Gaussian's FWHM in its place
    expected = np.hypot(np.mean(cores), pixel)
    assert numbers["fwhm_of_frames"] == pytest.approx(expected, rel=0.1)
    assert numbers["fwhm"] == pytest.approx(expected, rel=0.1)
    assert numbers["fwhm_scatter"] < 0.1 * expected
    table = Table.read(reduced / IMAGE, hdu="FRAMES")
    np.testing.assert_allclose(np.mean(table["FWHM"]), numbers["fwhm_of_frames"], rtol=1e-4)
    assert 0 < numbers["ellipticity"] < 0.2 and numbers["fwhm_stars"] > 10


def test_the_zero_point_is_true_within_its_error(night: Night, tied: Path, reduced: Path) -> None:
    numbers, frames = read_numbers(tied), truth_of(night)
    truth = float(frames["zp"][0]) + 2.5 * np.log10(np.mean(frames["scale"]))
    assert numbers["zero_point_source"] == "catalogue Ksmag"
    assert numbers["zero_point_stars"] > 20 and numbers["zero_point_error"] < 0.05
    assert abs(numbers["zero_point"] - truth) < 3 * numbers["zero_point_error"]
    assert abs(numbers["zero_point_offset"]) < 0.1
    without = read_numbers(reduced / IMAGE)
    assert without["zero_point_source"] == "nominal" and "zero_point_error" not in without
    assert without["zero_point"] == pytest.approx(float(frames["zp"][0]), abs=0.01)


def test_the_depth_is_that_of_apertures_at_other_places(reduced: Path) -> None:
    """Sums at random empty places, and the light of bright stars in such apertures."""
    numbers = read_numbers(reduced / IMAGE)
    with fits.open(reduced / IMAGE) as hdus:
        data, dq = (np.asarray(hdus[name].data) for name in ("SCI", "DQ"))
        busy = np.asarray(hdus["OBJMASK"].data, bool) | (dq != 0)
        seconds = hdus[0].header["EXPTIME"]
    objects = Table.read(reduced / IMAGE, hdu="OBJCAT")
    radius = numbers["depth_aperture"] / 0.02
    half = int(radius) + 1
    rng = np.random.default_rng(5)
    y, x = (rng.integers(40, size - 40, 60000) for size in data.shape)
    dy, dx = np.mgrid[-half : half + 1, -half : half + 1]
    inside = np.clip(radius + 0.5 - np.hypot(dy, dx), 0, 1)
    sums = []
    for j, i in zip(y, x, strict=True):
        window = np.s_[j - half : j + half + 1, i - half : i + half + 1]
        if not busy[window].any():
            wide = np.s_[j - 30 : j + 31, i - 30 : i + 31]
            sums.append(np.sum(inside * (data[window] - np.median(data[wide][~busy[wide]]))))
    assert len(sums) > 2000
    sigma = 1.4826 * np.median(np.abs(sums - np.median(sums)))
    good = ((objects["FLAGS_PSF"] & ~64) == 0) & (objects["FLUX_PSF"] > 50 * objects["FLUXERR_PSF"])
    share = np.median(objects["FLUX_APER"][good][:, 0] / objects["FLUX_PSF"][good])
    expected = numbers["zero_point"] - 2.5 * np.log10(5 * sigma / share / seconds)
    assert numbers["depth_5sigma"] == pytest.approx(expected, abs=0.12)
    assert numbers["depth_places"] > 500


def test_the_noise_is_what_var_and_the_exposure_promise(reduced: Path) -> None:
    numbers = read_numbers(reduced / IMAGE)
    assert 0.9 < numbers["noise_ratio"] < 1.3
    assert 0.9 < numbers["depth_over_predicted"] < 1.6  # the noise of 3 or 4 sky frames is in it
    assert numbers["gates"] == "passed"


def test_sky_frames_and_positions_are_those_of_the_night(night: Night, reduced: Path) -> None:
    numbers, frames = read_numbers(reduced / IMAGE), truth_of(night)
    expected = np.mean(frames["sky"] * frames["exptime"])
    assert numbers["sky_level"] == pytest.approx(expected, rel=0.1)
    assert numbers["frames"] == len(night.science) == numbers["frames_considered"]
    assert numbers["nights"] == 1 and numbers["bpm"] == Path(night.bpm).name
    table = Table.read(reduced / IMAGE, hdu="FRAMES")
    matches = table["N_STARS"]
    assert 0 < numbers["fewest_matches"] and numbers["astrometric_stars"] > matches.max() / 2
    expected = np.sqrt(np.average(table["RMS_MAS"] ** 2, weights=matches))
    assert numbers["astrometric_rms"] == pytest.approx(expected, rel=0.1)
    assert (table["REJECTED"] < 0.02).all() and (table["REJECTED"] >= 0).all()
    assert numbers["worst_rejected_fraction"] == pytest.approx(table["REJECTED"].max(), rel=1e-3)
    np.testing.assert_allclose(table["WEIGHT"], 1, atol=0.6)
    assert numbers["lowest_weight"] == pytest.approx(table["WEIGHT"].min(), rel=1e-3)
    np.testing.assert_allclose(table["SKY"], frames["sky"] * frames["exptime"], rtol=0.1)


def test_every_product_is_whole_and_showd_shows_its_numbers(
    reduced: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = verify(reduced / IMAGE)
    assert report.faults == ()
    assert main(["showd", str(reduced / IMAGE), "-d", "kind,fwhm,object,gates", "--csv"]) == 0
    row = capsys.readouterr().out.splitlines()[1].split(",")
    numbers = read_numbers(reduced / IMAGE)
    assert row[1:] == [
        "image",
        str(numbers["fwhm"]),
        view(str(reduced / IMAGE))("object"),
        "passed",
    ]
    assert main(["showd", str(reduced / IMAGE), "-d", "fwmh"]) == 2
    assert "'fwhm'" in capsys.readouterr().err


def test_a_flat_says_its_counts_and_how_steady_the_lamp_was(night: Night, reduced: Path) -> None:
    numbers = read_numbers(next(reduced.glob("*_flat.fits")))
    on, off = (
        np.median([fits.getdata(path, 1) for path in paths])
        for paths in (night.flat_on, night.flat_off)
    )
    gain = 2.434  # of the first array, of which the others' gains are 0.83 to 1.09
    assert numbers["mean_counts"] == pytest.approx((on - off) * gain, rel=0.1)
    assert numbers["frames"] == len(night.flat_on) and numbers["kind"] == "flat"
    assert 0 <= numbers["lamp_scatter"] < 0.02 and 0 < numbers["bad_fraction"] < 0.2


def test_darks_say_level_and_read_noise(night: Night, workspace: Path) -> None:
    (name,) = run(night.dark, ucals={"processed_bpm": night.bpm})
    numbers, (path, *_) = read_numbers(name), night.dark
    expected = np.sqrt(np.mean(np.square(view(path)("read_noise"))))
    assert numbers["read_noise"] == pytest.approx(expected, rel=0.05)
    assert numbers["read_noise_ratio"] == pytest.approx(1.0, abs=0.05)
    assert numbers["dark_level"] == pytest.approx(
        float(fits.getheader(path)["EXPTIME"]) * 0.01, abs=3
    )
    assert numbers["gates"] == "passed" and numbers["frames"] == len(night.dark)


def test_sky_subtracted_frames_have_numbers_and_a_stack_of_them_has_its_own(
    night: Night, reduced: Path, workspace: Path
) -> None:
    shutil.copy(next(reduced.glob("*_flat.fits")), "flat.fits")
    flat = {"processed_flat": "flat.fits"}
    frames = run(night.sequence, "reduce_nostack", uparms={"prepare:bad_wcs": "fix"}, ucals=flat)
    (image,) = run(frames, "align_and_stack")
    each = [read_numbers(name) for name in frames]
    assert all(numbers["kind"] == "frame" for numbers in each)
    assert all(0.8 < numbers["noise_ratio"] < 1.5 for numbers in each)
    assert "frames" not in each[0] and "depth_5sigma" not in each[0]
    numbers = read_numbers(image)
    assert numbers["kind"] == "image" and numbers["frames"] == len(frames)
    mean = np.mean([numbers["fwhm"] for numbers in each])
    assert numbers["fwhm_of_frames"] == pytest.approx(mean, rel=0.05)
    header = fits.getheader(image)
    assert all(list(header).count(number.keyword) < 2 for number in NUMBERS)


def test_stars_of_that_magnitude_have_that_light(night: Night, tied: Path) -> None:
    """Stars of the catalogue near 5 sigma, where nothing else is, in apertures at their places."""
    numbers, sky = read_numbers(tied), Table.read(night.truth / "catalog.ecsv")
    with fits.open(tied) as hdus:
        data, wcs = np.asarray(hdus["SCI"].data), WCS(hdus["SCI"].header)
        covered = np.asarray(hdus["DQ"].data) == 0
    place = np.column_stack(wcs.all_world2pix(sky["ra"], sky["dec"], 0))
    magnitude, depth = np.asarray(sky["mag"]), numbers["depth_5sigma"]
    tree, radius = cKDTree(place), numbers["depth_aperture"] / 0.02
    offsets = np.arange(-6, 7)
    weights = np.clip(radius + 0.5 - np.hypot(*np.meshgrid(offsets, offsets)), 0, 1)
    ratios = []
    for number in np.flatnonzero((magnitude > depth - 2.5) & (magnitude < depth)):
        (x, y), near = place[number], np.array(tree.query_ball_point(place[number], 60))
        j, i = round(y), round(x)
        apart = np.hypot(*(place[near] - place[number]).T)
        limit = magnitude[number] + np.where(apart < 15, 1.5, -2.0)
        bright = near[(magnitude[near] < limit) & (near != number)]
        inside = 60 < j < data.shape[0] - 60 and 60 < i < data.shape[1] - 60
        if not inside or len(bright) or not covered[j - 30 : j + 31, i - 30 : i + 31].all():
            continue
        window, around = data[j - 6 : j + 7, i - 6 : i + 7], data[j - 30 : j + 31, i - 30 : i + 31]
        light = np.sum(weights * (window - np.median(around)))
        ratios.append(light / 10 ** (0.4 * (depth - magnitude[number])))  # a fifth is sigma
    assert len(ratios) > 30
    sigma = np.median(ratios) / 5
    assert 1.2533 * np.std(ratios) / len(ratios) ** 0.5 < 0.1 * np.median(ratios)
    with fits.open(tied) as hdus:
        noise = np.sqrt(np.sum(weights**2) * np.median(hdus["VAR"].data[covered]))
    assert sigma == pytest.approx(noise * numbers["noise_ratio"], rel=0.2)
