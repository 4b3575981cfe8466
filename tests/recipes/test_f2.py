"""Tests of FLAMINGOS-2 recipes from raw frames to stacks, on small simulated nights.

One night has Y on target, the other Ks with offsets to sky.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from helpers import computed

import gdask
from benchmarks.accuracy.background import block_figures
from gdask import Reduce
from gdask.headers import read_headers
from gdask.instruments import f2, view
from gdask.io.frames import with_headers
from gdask.kernels.detector.probe_shadows import binned_medians, find_shadows, unbin_window
from gdask.kernels.geometry.projection import to_sky
from gdask.kernels.sources.centroids import fit_positions
from gdask.model import DQ, GdaskError
from gdask.reduction.recipe_library import find_recipe
from gdask.simulate import simulate_f2
from gdask.simulate.f2 import load_facts
from gdask.simulate.f2_headers import axes_matrix
from gdask.steps import add_dq, prepare, stack_frames

SIZE = 288


def reduce(files: list[str], recipe: str = "default", **parameters: object) -> list[str]:
    reduction = Reduce()
    reduction.files.extend(files)
    reduction.recipename = recipe
    reduction.uparms.update({key.replace("__", ":"): value for key, value in parameters.items()})
    reduction.runr()
    assert not reduction.set_aside
    return reduction.output_filenames


def kinds(folder: Path) -> dict[str, list[str]]:
    rows = Table.read(folder / "truth" / "frames.ecsv")
    found = {
        kind: sorted(str(folder / "raw" / row["file"]) for row in rows if row["kind"] == kind)
        for kind in set(rows["kind"])
    }
    times = {str(folder / "raw" / row["file"]): row["exptime"] * row["coadds"] for row in rows}
    longest = max(times[path] for path in found["science"])
    return found | {
        "long": [path for path in found["dark"] if times[path] == longest],
        "short": [path for path in found["dark"] if times[path] == 2],
        "lamp_dark": [path for path in found["dark"] if times[path] not in (2, longest)],
    }


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("f2")
    simulate_f2(
        folder, size=SIZE, n_science=6, n_darks=3, n_short_darks=3, n_lamps=3, field="crowded"
    )
    return folder


@pytest.fixture(scope="module")
def k_night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("f2k")
    simulate_f2(
        folder,
        size=SIZE,
        n_science=4,
        n_sky=3,
        n_darks=3,
        n_short_darks=2,
        n_lamps=3,
        field="crowded",
        filter="Ks",
        dither="offset",
        coadds=2,
        lnrs=4,
        pa=37.0,
        date="20180312",
    )
    return folder


@pytest.fixture(scope="module")
def tutorial(night: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reduce the night in a folder as in the field's tutorial."""
    folder, files = tmp_path_factory.mktemp("reduced"), kinds(night)
    with _inside(folder):
        reduce(files["science"], "checkWCS")
        reduce(files["long"])
        (bpm,) = reduce(
            [*files["flat_off"], *files["flat_on"], *files["short"]], "makeProcessedBPM"
        )
        reduce([*files["flat_off"], *files["flat_on"]], addDQ__user_bpm=bpm)
        reduce(files["science"], addDQ__user_bpm=bpm)
    return folder


class _inside:
    """Enter the working folder, which has its calibration database."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.patch = folder, pytest.MonkeyPatch()

    def __enter__(self) -> Path:
        (self.folder / "dragonsrc").write_text("[calibs]\ndatabases = cal_manager.db get store\n")
        self.patch.setenv("DRAGONSRC", str(self.folder / "dragonsrc"))
        self.patch.chdir(self.folder)
        return self.folder

    def __exit__(self, *args: object) -> None:
        self.patch.undo()


@pytest.fixture
def workspace(tutorial: Path, tmp_path: Path) -> Iterator[Path]:
    """Make a working folder with the tutorial's calibrations in a database that is only read."""
    with _inside(tmp_path):
        lines = (
            f"[calibs]\ndatabases = cal_manager.db get store\n    {tutorial}/cal_manager.db get\n"
        )
        (tmp_path / "dragonsrc").write_text(lines)
        yield tmp_path


def test_products_are_named_after_the_first_input(tutorial: Path, night: Path) -> None:
    files = kinds(night)
    for kind, suffix in (
        ("long", "dark"),
        ("flat_on", "bpm"),
        ("flat_on", "flat"),
        ("science", "image"),
    ):
        assert (tutorial / f"{Path(files[kind][0]).stem}_{suffix}.fits").is_file()


def test_the_sky_of_a_crowded_field_holds_none_of_its_light(tutorial: Path, night: Path) -> None:
    """The sky is taken on target, and objects cover half of the field."""
    (image,) = tutorial.glob("*_image.fits")
    found = block_figures(str(image), str(night / "truth"), block=32)
    assert found["blocks"] > 40
    assert found["plain_over_predicted"] < 2
    header = fits.getheader(image)
    assert header["SKYSTACK"] is True and header["SKYCOVER"] > 20


def test_the_mask_holds_the_bad_pixels_that_show(tutorial: Path, night: Path) -> None:
    (path,) = tutorial.glob("*_bpm.fits")
    true = fits.getdata(night / "truth" / "bad_pixels.fits", 1)
    found = (fits.getdata(path, 1) & 1) != 0
    assert not found[true == 0].any()
    dead = (true & 1) != 0
    assert dead.sum() > 20 and found[dead].mean() > 0.95


def test_the_dark_and_the_flat_are_the_true_ones(tutorial: Path, night: Path) -> None:
    true = {name: fits.getdata(night / "truth" / "flat_1.fits", name) for name in ("FLAT", "DARK")}
    (flat,), (dark,) = tutorial.glob("*_flat.fits"), tutorial.glob("*_dark.fits")
    with fits.open(flat) as hdus:
        good = hdus["DQ"].data == 0
        ratio = (hdus["SCI"].data / true["FLAT"])[good]
        pull = ((hdus["SCI"].data / np.median(ratio) - true["FLAT"]) / np.sqrt(hdus["VAR"].data))[
            good
        ]
    assert np.median(np.abs(pull)) == pytest.approx(0.6745, rel=0.06)
    with fits.open(dark) as hdus:
        good = (hdus["DQ"].data == 0) & (true["DARK"] * 120 < 5000)
        rest = hdus["SCI"].data - true["DARK"] * 120
        pull = ((rest - np.median(rest, axis=0)) / np.sqrt(hdus["VAR"].data))[
            good
        ]  # columns have their own zero
    assert np.abs(np.median(rest, axis=0)).max() < 40
    assert np.median(np.abs(pull)) == pytest.approx(0.6745, rel=0.06)


def test_stars_are_where_they_are_in_the_sky(tutorial: Path, night: Path) -> None:
    (path,) = tutorial.glob("*_image.fits")
    with fits.open(path) as hdus:
        data, variance, dq, where = (
            hdus["SCI"].data,
            hdus["VAR"].data,
            hdus["DQ"].data,
            WCS(hdus["SCI"].header),
        )
        assert hdus[0].header["NCOMBINE"] == 6 and hdus[0].header["TOTEXP"] == 720
    stars = Table.read(night / "truth" / "catalog.ecsv")
    stars = stars[(stars["kind"] == "star") & (stars["field"] == "target") & (stars["mag"] < 21)]
    x, y = where.world_to_pixel_values(stars["ra"], stars["dec"])
    near = np.hypot(x[:, None] - x, y[:, None] - y) < 9
    alone = (near * np.asarray(stars["flux"])).sum(axis=1) < 1.03 * stars["flux"]
    inside = (
        alone
        & (stars["mag"] < 18.5)
        & (x > 20)
        & (y > 20)
        & (x < data.shape[1] - 20)
        & (y < data.shape[0] - 20)
    )
    found = fit_positions(data, variance, dq, x[inside], y[inside], fwhm=3.4)
    good = (found["flags"] == 0) & np.isfinite(found["ex"])
    dx, dy = (found[name][good] - true[inside][good] for name, true in (("x", x), ("y", y)))
    assert good.sum() > 5
    assert max(abs(np.median(dx)), abs(np.median(dy))) * 0.18 < 0.3  # the header's pointing
    # 0.010 arcsec of 15 stars, whose median deviation is uncertain by a fifth
    assert max(np.median(np.abs(v - np.median(v))) for v in (dx, dy)) * 0.18 < 0.0125


def test_a_frame_is_never_its_own_sky(workspace: Path, night: Path) -> None:
    for path in reduce(kinds(night)["science"], "reduce_nostack"):
        header = fits.getheader(path)
        skies = [header[f"SKYFR{number:03d}"] for number in range(1, header["SKYFRMS"] + 1)]
        assert len(skies) >= 3 and header["ORIGNAME"] not in skies


@pytest.mark.slow
def test_ultradeep_in_parts_is_ultradeep_in_one(workspace: Path, night: Path) -> None:
    science = kinds(night)["science"]
    reduce(science, "ultradeep_part1")
    reduce(sorted(map(str, workspace.glob("*_flatCorrected.fits"))), "ultradeep_part2")
    (image,) = reduce(
        sorted(map(str, workspace.glob("*_objmaskTransferred.fits"))), "ultradeep_part3"
    )
    parts = fits.getdata(image, "SCI")
    one = fits.getdata(reduce(science, "ultradeep")[-1], "SCI")
    plain = fits.getdata(workspace / Path(image).name.replace("image", "firstPass"), "SCI")
    assert np.abs(parts - one).max() < 0.01
    assert np.abs(plain - one).max() > 1


def test_k_flats_are_lamp_off_frames_minus_darks(k_night: Path, tmp_path: Path) -> None:
    files = kinds(k_night)
    with _inside(tmp_path):
        with pytest.raises(GdaskError, match="no processed_dark"):
            reduce(files["flat_off"])
        with pytest.raises(GdaskError, match="no dark of 10 s in the list"):
            reduce([*files["flat_off"], *files["long"]])
        (name,) = reduce([*files["flat_off"], *files["lamp_dark"]])
        listed = fits.getdata(name, "SCI")
        reduce(files["lamp_dark"])
        reduce(files["flat_off"])
        np.testing.assert_allclose(fits.getdata(name, "SCI"), listed, atol=1e-5)
        true = fits.getdata(k_night / "truth" / "flat_1.fits", "FLAT")
        good = fits.getdata(name, "DQ") == 0
        assert (
            np.std((listed / np.median(listed[good]) / true * np.median(true[good]))[good]) < 0.02
        )
        reduce(files["long"])
        (image,) = reduce([*files["science"], *files["sky"]])
        assert fits.getheader(image)["NCOMBINE"] == 4


def test_k_masks_take_the_darks_of_the_flats_from_the_list(k_night: Path, tmp_path: Path) -> None:
    files = kinds(k_night)
    with _inside(tmp_path):
        (name,) = reduce(
            [*files["flat_off"], *files["lamp_dark"], *files["short"]], "makeProcessedBPM"
        )
        found = (fits.getdata(name, 1) & 1) != 0
    true = fits.getdata(k_night / "truth" / "bad_pixels.fits", 1)
    dead = (true & 1) != 0
    assert not found[true == 0].any()
    assert dead.sum() > 20 and found[dead].mean() > 0.95


def test_axes_scale_and_pointing(night: Path, k_night: Path) -> None:
    """At position angle 0, +y is East and +x is North.

    Raw frames point where the truth says, to the pointing error.
    """
    for folder, scale in ((night, 0.1797), (k_night, 0.1791)):
        rows = Table.read(folder / "truth" / "frames.ecsv")
        row = rows[[str(kind) == "science" for kind in rows["kind"]]][0]
        seen = view(read_headers(folder / "raw" / row["file"]))
        (geometry,) = f2.geometries(seen, (SIZE, SIZE))
        middle = (2048 - SIZE) // 2
        assert f2.true_sections(seen, (SIZE, SIZE)) == (
            (middle, middle + SIZE, middle, middle + SIZE),
        )
        ra, dec = to_sky(geometry, [100.0, 100.0, 101.0], [100.0, 101.0, 100.0])
        east, north = (
            ((ra - ra[0]) * np.cos(np.radians(dec[0])) * 3600)[1:],
            ((dec - dec[0]) * 3600)[1:],
        )
        c, s = np.cos(np.radians(row["pa"])), np.sin(np.radians(row["pa"]))
        day = (datetime(1858, 11, 17) + timedelta(days=float(row["mjd"]))).date()
        along_x, along_y = 3600 * axes_matrix(load_facts()[0], day).T
        truth = np.array([[c, s], [-s, c]]) @ np.column_stack([along_y, along_x])
        # By the headers alone the array is turned by 0.02 degrees or so: the mount's error.
        np.testing.assert_allclose([east, north], truth, atol=1e-3 * scale)
        assert (
            np.hypot(
                (geometry.ra - row["ra0"]) * np.cos(np.radians(row["dec0"])),
                geometry.dec - row["dec0"],
            )
            * 3600
            < 2
        )


def test_outside_the_circle_nothing_is_lit_but_darks_do_not_care(
    night: Path, tmp_path: Path
) -> None:
    """The reference pixel says which part of the array the files have: here one at the edge."""
    files = kinds(night)
    frames = []
    for path in (files["science"][0], files["long"][0]):
        moved = shutil.copy(path, tmp_path)
        with fits.open(moved, mode="update") as hdus:
            hdus[1].header["CRPIX1"] += 880 - 1500
            hdus[1].header["CRPIX2"] += 880 - 1700
        frames.append(gdask.open(moved))
    science, dark = add_dq(prepare(tuple(frames), bad_wcs="ignore"), (None, None))
    y, x = np.mgrid[1700 : 1700 + SIZE, 1500 : 1500 + SIZE]
    outside = np.hypot(x - 1049.9, y - 1054.9) > 1054.1
    assert 0.05 < outside.mean() < 0.95
    unlit = (computed(science)["dq"][0] & DQ.UNILLUMINATED) != 0
    np.testing.assert_array_equal(unlit, outside)
    assert not (computed(dark)["dq"] & DQ.UNILLUMINATED).any()


def test_coadds_are_summed(k_night: Path) -> None:
    raw = gdask.open(kinds(k_night)["science"][0])
    (frame,) = prepare((raw,), bad_wcs="ignore")
    one, two = (gdask.descriptor(each, "saturation_level")[0] for each in (raw, frame))
    assert two == 2 * one
    assert gdask.descriptor(raw, "exposure_time") == gdask.descriptor(frame, "exposure_time") == 16


def test_exposure_times_that_are_nearly_equal_are_one(
    night: Path, caplog: pytest.LogCaptureFixture
) -> None:
    darks = kinds(night)["long"]
    frames = tuple(
        with_headers(gdask.open(path), primary={"EXPTIME": time})
        for path, time in zip(darks, (60.001, 60.002, 60.001), strict=True)
    )
    frames = prepare(frames)
    ready = tuple(
        frame.assign(variance=frame["data"], dq=frame["data"].astype("u2")) for frame in frames
    )
    assert "60.001 to 60.002 s taken as one exposure time" in stack_frames(ready).attrs["note"]
    short = with_headers(ready[0], primary={"EXPTIME": 2.0})
    with pytest.raises(GdaskError, match="a dark of 60.002 s x 1.*has 2 s.*reduce them apart"):
        stack_frames((short, *ready[1:]))


def test_a_missing_static_mask_is_a_note(
    workspace: Path, night: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "gdask"):
        reduce(kinds(night)["long"])
    assert "no static BPM exists for F2: this is usual" in caplog.text


@pytest.mark.parametrize(
    "tags",
    [
        {"SPECT", "LS"},
        {"IMAGE", "THRUSLIT", "MOS"},
        {"IMAGE", "ACQUISITION"},
        {"SPECT", "MOS", "FLAT", "CAL"},
    ],
)
def test_spectra_and_acquisitions_are_refused(tags: set[str]) -> None:
    with pytest.raises(GdaskError, match="gdask reduces images"):
        find_recipe(None, {"F2", *tags})


@pytest.mark.parametrize(
    "tags", ["F2 IMAGE TWILIGHT CAL", "F2 IMAGE TWILIGHT FLAT CAL", "GSAOI IMAGE TWILIGHT FLAT CAL"]
)
def test_twilight_flats_are_refused(tags: str) -> None:
    with pytest.raises(
        GdaskError, match="twilight flats are not handled by makeProcessedFlat: take lamp flats"
    ):
        find_recipe(None, set(tags.split()))


@pytest.mark.parametrize(("width", "flagged"), [(30, True), (400, False)])
def test_shadows_from_the_edge_are_flagged(width: int, flagged: bool) -> None:
    """A bar that takes 40 % of the light is a shadow.

    Where half of the field is darker the rest is a nebula.
    """
    random = np.random.default_rng(3)
    y, x = np.mgrid[:512, :512]
    bar = (x > 300) & (np.abs(y - 200) < width) if flagged else x > 512 - width // 2
    data = (random.normal(17000, 130, (512, 512)) * np.where(bar, 0.6, 1.0)).astype(np.float32)
    spot = np.hypot(x - 100, y - 400) < 25  # dark, but not from the edge
    data[spot] *= 0.7
    (cells,) = find_shadows([binned_medians(data, np.zeros((512, 512), np.uint16))], [(0, 0)], 0.15)
    mask = unbin_window(cells, 0, 512, 0, 512)
    assert mask[bar].all() == flagged and not mask[spot].any()
    assert mask.mean() < (0.2 if flagged else 1e-9)


@pytest.mark.slow
def test_the_tutorial_as_it_is_written(tmp_path: Path) -> None:
    """The first block of commands in docs/f2.md's tutorial, character by character."""
    simulate_f2(tmp_path, size=SIZE, field="crowded")
    text = (
        (Path(__file__).parents[2] / "docs" / "f2.md")
        .read_text()
        .split("## The tutorial")[1]
        .split("**What the last line")[0]
    )
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    assert len(lines) == 11 and sum(line.startswith("reduce ") for line in lines) == 5
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DRAGONSRC": str(tmp_path / "dragonsrc"),
    }
    (tmp_path / "dragonsrc").write_text("[calibs]\ndatabases = cal_manager.db get store\n")
    for line in lines:
        subprocess.run(
            ["sh", "-e", "-c", line], cwd=tmp_path, env=environment, check=True, capture_output=True
        )
    for name in (
        "S20131120S0115_dark",
        "S20131129S0320_bpm",
        "S20131129S0320_flat",
        "S20131121S0075_image",
    ):
        assert (tmp_path / f"{name}.fits").is_file()
