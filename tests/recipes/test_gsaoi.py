"""Tests of GSAOI recipes by the field's tutorial on a small night, against its truth."""

from __future__ import annotations

import glob
import json
import logging
import shutil
import warnings
from pathlib import Path

import dask
import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import CCDData
from astropy.table import Table
from astropy.wcs import WCS

import gdask
from benchmarks.accuracy.truth import compare_with_truth
from gdask import GdaskError, Reduce, cal_service, cli
from gdask.engine import compute as progress
from gdask.engine.compute import COMPUTES
from gdask.reduction.recipe_library import find_recipe, libraries, recipes_of, steps_in

#: For reductions whose image is not compared: a quarter of the pixels.
COARSE = {"resampleToCommonFrame:pixel_scale": 0.04}
IMAGE, FLAT = "S20170505S0095_image.fits", "S20170505S0030_flat.fits"


def reduce(files: list[str], recipe: str = "default", **settings: object) -> Reduce:
    reduction = Reduce()
    reduction.files.extend(files)
    reduction.recipename = recipe
    for name in ("ucals", "suffix", "uparms", "cluster"):
        if name in settings:
            setattr(reduction, name, settings[name])
    reduction.runr()
    return reduction


def planes(path: str | Path) -> dict[tuple[str, int], bytes]:
    """Give the bytes of every SCI, VAR and DQ of a file."""
    with fits.open(path) as hdus:
        return {
            (hdu.name, hdu.ver): hdu.data.tobytes()
            for hdu in hdus[1:]
            if hdu.name in ("SCI", "VAR", "DQ")
        }


def logged(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.name == "gdask")


# ---- finding recipes


@pytest.mark.parametrize(
    ("kind", "name", "recipe"),
    [
        ("flat_on", None, "make_processed_flat"),
        ("dark", None, "make_processed_dark"),
        ("science", None, "reduce"),
        ("science", "checkWCS", "check_wcs"),
        ("science", "reduce_nostack", "reduce_nostack"),
        ("science", "alignAndStack", "align_and_stack"),
        ("science", "ultradeep", "ultradeep"),
        ("flat_on", "makeProcessedBPM", "make_processed_bpm"),
        ("std", "default", "reduce"),
    ],
)
def test_recipes_are_found_by_tags_and_name(
    night: object, kind: str, name: str | None, recipe: str
) -> None:
    assert find_recipe(name, gdask.tags(getattr(night, kind)[0])).__name__ == recipe


def test_every_recipe_can_say_which_steps_it_uses() -> None:
    for module in libraries():
        for name, recipe in recipes_of(module).items():
            assert steps_in(recipe), f"{module.__name__}.{name}"
    used = steps_in(find_recipe("reduce", {"GSAOI", "IMAGE"}))
    assert {
        "prepare",
        "flat_correct",
        "sky_correct",
        "adjust_wcs_to_reference",
        "stack_frames",
    } <= used.keys()


# ---- products


def test_the_flat_of_the_night(reduced: Path, night: object) -> None:
    with fits.open(reduced / FLAT) as hdus:
        phu = hdus[0].header
        assert (
            "PROCFLAT" in phu and phu["DATALAB"].endswith("-FLAT") and phu["OBJECT"] == "Domeflat"
        )
        data, dq = (np.stack([hdus[name, n].data for n in range(1, 5)]) for name in ("SCI", "DQ"))
    assert {"PROCESSED", "FLAT", "CAL"} <= gdask.tags(
        reduced / FLAT
    ) and "LAMPON" not in gdask.tags(reduced / FLAT)
    expected = np.stack([fits.getdata(night.truth / f"flat_{n}.fits", "FLAT") for n in range(1, 5)])
    good = dq == 0
    ratio = data[good] / expected[good]
    assert np.std(ratio) / np.mean(ratio) < 0.02  # noise of 3 + 3 frames
    medians = np.array(
        [np.median(d[g] / e[g]) for d, e, g in zip(data, expected, good, strict=True)]
    )
    assert (
        np.ptp(medians) / medians.mean() < 0.005
    )  # one normalisation: gain steps between arrays are in the flat
    assert (reduced / "calibrations" / "processed_flat" / FLAT).exists()


def test_the_stack_of_the_night_has_its_headers_and_tables(reduced: Path, night: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fits.open(reduced / IMAGE, checksum=True) as hdus:
            hdus.verify("exception")
            phu, science = hdus[0].header, hdus["SCI"].header
            assert [hdu.data is not None for hdu in hdus[1:]]
            assert (
                hdus["SCI"].data.dtype.newbyteorder("="),
                hdus["VAR"].data.dtype.newbyteorder("="),
                hdus["DQ"].data.dtype,
            ) == ("f4", "f4", "u2")
            provenance, history = Table(hdus["PROVENANCE"].data), Table(hdus["HISTORY"].data)
            objects = Table(hdus["OBJCAT"].data)
    names = [Path(path).name for path in night.science]
    assert phu["NCOMBINE"] == 5 and [phu[f"IMCMB{n:03d}"] for n in range(1, 6)] == names
    assert (
        phu["EXPTIME"] == 60.0
        and phu["TOTEXP"] == 300.0
        and phu["PROCSOFT"] == "gdask"
        and phu["PROCMODE"] == "sq"
    )
    assert (
        science["BUNIT"] == "electron"
        and science["CTYPE1"] == "RA---TAN"
        and "A_ORDER" not in science
    )
    assert set(names) | {FLAT, Path(night.bpm).name} <= set(provenance["filename"])
    assert history["primitive"][0] == "prepare" and "stack_frames" in list(history["primitive"])
    args = {row["primitive"]: json.loads(row["args"]) for row in history}
    assert (
        args["sky_correct"]["offset_sky"] is False
        and args["sky_correct"]["from"]["offset_sky"] == "user"
    )
    assert args["prepare"]["bad_wcs"] == "fix" and args["detect_sources"]["min_pixels"] == 20
    assert len(objects) > 50 and {
        "X_IMAGE",
        "Y_IMAGE",
        "X_WORLD",
        "Y_WORLD",
        "FLUX_AUTO",
        "FLAGS",
    } <= set(objects.colnames)
    assert not [path for path in reduced.iterdir() if path.name.endswith(".part")]


def test_north_is_up_and_east_is_left(reduced: Path) -> None:
    wcs = WCS(fits.getheader(reduced / IMAGE, "SCI"))
    matrix = wcs.pixel_scale_matrix * 3600
    np.testing.assert_allclose(matrix, [[-0.02, 0], [0, 0.02]], atol=1e-7)
    (frame_wcs,) = gdask.wcs(gdask.open(reduced / IMAGE))
    np.testing.assert_allclose(frame_wcs.wcs.crval, wcs.wcs.crval)
    ccd = CCDData.read(reduced / IMAGE, hdu=1)
    assert ccd.unit == "electron" and ccd.wcs is not None


def test_the_stack_agrees_with_the_truth(reduced: Path, night: object) -> None:
    found = compare_with_truth(str(reduced / IMAGE), str(night.truth))
    assert found["stars"] > 25 and found["recovered"] >= 0.9
    assert found["mad_x_mas"] < 2.5 and found["mad_y_mas"] < 2.5
    assert (
        np.hypot(found["offset_x_mas"], found["offset_y_mas"]) < 150
    )  # what the telescope's pointing is good for
    assert abs(found["rotation_deg"]) < 0.03


# ---- recipes, one after the other


def test_every_phase_is_one_compute(
    calibrated: Path,
    night: object,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """dask computes when a phase ends and at no other time."""
    caplog.set_level(logging.INFO, "gdask")
    computes = []
    original = progress._compute_in_threads

    def counting(*args: object, **kwargs: object) -> object:
        computes.append(len(args))
        return original(*args, **kwargs)

    def refuse(*args: object, **kwargs: object) -> object:
        raise AssertionError("a compute outside of a phase")

    monkeypatch.setattr(progress, "_compute_in_threads", counting)
    monkeypatch.setattr(dask, "compute", refuse)
    monkeypatch.setattr("dask.array.Array.compute", refuse)
    before = COMPUTES["count"]
    reduce(night.sequence, uparms={"prepare:bad_wcs": "fix", **COARSE})
    assert COMPUTES["count"] - before == len(computes) == 5
    text = logged(caplog)
    assert all(f"phase {number}:" in text for number in range(1, 5))


def test_dark_and_bpm_recipes(workspace: Path, night: object) -> None:
    dark = reduce(night.dark)
    assert dark.output_filenames == ["S20170505S0200_dark.fits"]
    assert {"DARK", "PROCESSED"} <= gdask.tags(dark.output_filenames[0])
    with fits.open(dark.output_filenames[0]) as hdus:
        assert "PROCDARK" in hdus[0].header and hdus[0].header["NCOMBINE"] == 3
        assert abs(np.median(hdus["SCI", 1].data)) < 20
    bpm = reduce([*night.flat_on, *night.flat_off, *night.dark], "makeProcessedBPM")
    assert bpm.output_filenames == ["S20170505S0030_bpm.fits"]
    assert "BPM" in gdask.tags(bpm.output_filenames[0])
    with fits.open(bpm.output_filenames[0]) as hdus:
        assert {hdu.name for hdu in hdus} >= {"SCI"} and "DQ" not in {hdu.name for hdu in hdus}
        found = np.stack([hdus["SCI", n].data for n in range(1, 5)]) & 1
    with fits.open(night.truth / "bad_pixels.fits") as hdus:
        dead = np.stack([(hdu.data & 1) != 0 for hdu in hdus[1:]])
    assert dead.sum() > 20 and found[dead].mean() > 0.9 and found.mean() < 0.02
    registered = {entry.caltype for entry in cal_service.set_local_database().list_files()}
    assert registered == {"processed_dark", "processed_bpm"}


def test_check_wcs_lists_the_bad_frames_and_changes_nothing(
    workspace: Path, night: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gdask")
    check = reduce(night.sequence, "checkWCS")
    rows = Table.read(night.truth / "frames.ecsv")
    bad = sorted(str(row["file"]) for row in rows if row["bad_wcs"])
    listed = sorted(
        line.split()[0] for line in logged(caplog).splitlines() if line.startswith("    S2017")
    )
    assert listed == bad and len(bad) == 3
    assert check.output_filenames == [] and not list(workspace.glob("*.fits"))
    with pytest.raises(
        GdaskError, match="bad_wcs=fix"
    ) as error:  # the default of prepare is to stop
        reduce(night.sequence, ucals={"processed_flat": night.bpm})
    assert all(name in str(error.value) for name in bad)


def test_nostack_then_align_and_stack_is_the_same_as_reduce(
    calibrated: Path, reduced: Path, night: object
) -> None:
    settings = {"skyCorrect:offset_sky": False, "prepare:bad_wcs": "fix"}
    first = reduce(night.sequence, "reduce_nostack", uparms=settings)
    assert first.output_filenames == [
        Path(path).name.replace(".fits", "_skyCorrected.fits") for path in night.science
    ]
    with fits.open(first.output_filenames[0]) as hdus:
        assert [(h.name, h.ver) for h in hdus[1:4]] == [("SCI", 1), ("VAR", 1), ("DQ", 1)] and hdus[
            "SCI", 4
        ].header["BUNIT"] == "electron"
    second = reduce(first.output_filenames, "alignAndStack")
    assert second.output_filenames == [IMAGE]
    with fits.open(IMAGE) as in_two_parts, fits.open(reduced / IMAGE) as at_once:
        assert in_two_parts["SCI"].data.shape == at_once["SCI"].data.shape
        np.testing.assert_array_equal(in_two_parts["SCI"].data, at_once["SCI"].data)
        assert in_two_parts[0].header["NCOMBINE"] == 5
        # The distortion of the frames' first array is not that of the image.
        assert not [key for key in in_two_parts["SCI"].header if key.endswith("_ORDER")]


def test_standards_in_a_region_of_interest(calibrated: Path, night: object) -> None:
    """Full-frame flat and BPM are cut to it.

    The window of a small night holds one star to align by.
    """
    result = reduce(night.std, "reduce_nostack")
    assert len(result.output_filenames) == 3 and not result.set_aside
    with fits.open(result.output_filenames[1]) as hdus:
        data, dq = (np.stack([hdus[name, n].data for n in range(1, 5)]) for name in ("SCI", "DQ"))
    assert data.shape == (4, 160, 160) and (dq & 1).any()
    assert (
        np.median(
            [abs(np.median(plane[flags == 0])) for plane, flags in zip(data, dq, strict=True)]
        )
        < 15
    )
    (image,) = reduce(
        result.output_filenames, "alignAndStack"
    ).output_filenames  # by the one star in the window
    with fits.open(image) as hdus:
        assert hdus[0].header["NCOMBINE"] == 3 and set(hdus["ASTROM"].data["PLACED"]) == {
            "shift by 1 star"
        }
        usable = (hdus["DQ"].data & 1) == 0
        assert np.isfinite(hdus["SCI"].data[usable]).all()


def test_user_calibrations_win(workspace: Path, reduced: Path, night: object) -> None:
    with pytest.raises(GdaskError, match="no processed_flat"):
        reduce(night.std, "reduce_nostack")
    user_flat = shutil.copy(reduced / FLAT, workspace / "mine_flat.fits")
    result = reduce(
        night.std, "reduce_nostack", ucals={"processed_flat": "mine_flat.fits"}, suffix="_mine"
    )
    assert result.output_filenames == [
        Path(path).name.replace(".fits", "_mine.fits") for path in night.std
    ]
    with fits.open(result.output_filenames[0]) as hdus:
        assert hdus[0].header["FLATIM"] == Path(user_flat).name


def test_a_calibration_of_the_user_that_does_not_fit_is_told(
    calibrated: Path, reduced: Path, night: object, caplog: pytest.LogCaptureFixture
) -> None:
    flat = str(shutil.copy(reduced / FLAT, calibrated / "mine_flat.fits"))
    for card, value in (("FILTER1", "J_G1102"), ("FILTER2", "Clear"), ("FILTER", "J")):
        fits.setval(flat, card, value=value)
    caplog.set_level(logging.WARNING, "gdask")
    reduce(night.std, "reduce_nostack", ucals={"processed_flat": "mine_flat.fits"})
    (said,) = [text for text in caplog.messages if "used as asked" in text]
    assert said.startswith(f"processed_flat mine_flat.fits: for {Path(night.std[0]).name} and ")
    assert "Kshort wanted, J found" in said
    fits.setval(flat, "INSTRUME", value="F2")
    with pytest.raises(GdaskError, match=r"mine_flat.fits: instrument F2 came, GSAOI is wanted"):
        reduce(night.std, "reduce_nostack", ucals={"processed_flat": "mine_flat.fits"})


def test_outputs_of_steps_on_request(calibrated: Path, night: object) -> None:
    result = reduce(
        night.std,
        "reduce_nostack",
        uparms=[
            ("flatCorrect:write_outputs", True),
            ("addDQ:write_outputs", "True"),
            ("addDQ:suffix", "_flags"),
        ],
    )
    made = sorted(path.name for path in calibrated.glob("*.fits"))
    stems = [Path(path).stem for path in night.std]
    assert made == sorted(
        f"{stem}{suffix}.fits"
        for stem in stems
        for suffix in ("_flags", "_flatCorrected", "_skyCorrected")
    )
    assert set(result.output_filenames) == set(made)
    with fits.open(f"{stems[0]}_flatCorrected.fits") as hdus:
        assert hdus["SCI", 1].header["BUNIT"] == "electron" and "HISTORY" in hdus


@pytest.mark.parametrize("step", ["associateSky", "separateSky"])
def test_steps_that_others_need_cannot_be_skipped(
    calibrated: Path, night: object, step: str
) -> None:
    with pytest.raises(GdaskError, match=gdask.params.snake_case(step)):
        reduce(night.std, "reduce_nostack", uparms={f"{step}:skip_primitive": True})


@pytest.mark.parametrize("step", ["nonlinearityCorrect", "flatCorrect", "skyCorrect", "addVAR"])
def test_skipped_steps(calibrated: Path, night: object, step: str) -> None:
    try:
        reduce(night.std, "reduce_nostack", uparms={f"{step}:skip_primitive": True})
    except GdaskError as error:
        assert step == "addVAR" and str(error)
        return
    with fits.open("S20170504S0114_skyCorrected.fits") as hdus:
        done = [str(row["primitive"]) for row in hdus["HISTORY"].data]
        level = np.median(hdus["SCI", 1].data)
    assert gdask.params.snake_case(step) not in done and "prepare" in done
    assert (abs(level) > 100) == (step == "skyCorrect")


def test_one_frame_is_a_stack_of_one(calibrated: Path, night: object) -> None:
    result = reduce([night.science[0], *night.sky], uparms={"prepare:bad_wcs": "fix", **COARSE})
    assert result.output_filenames == [IMAGE]
    assert fits.getheader(IMAGE)["NCOMBINE"] == 1
    with pytest.raises(
        GdaskError,
        match=r"S20170505S0095.fits: no sky frame at least 1 arcsec away with the same filter "
        r"and exposure time \(Kshort, 60 s\)",
    ):
        reduce(night.science[:1])
    assert not list(calibrated.glob(".*.part"))


def hardest_to_please(night: object) -> tuple[str, float]:
    """Give the standard whose farthest other frame is nearest, and a distance (arcsec).

    It is the only one that finds no sky at that distance.
    """
    rows = Table.read(night.truth / "frames.ecsv")
    rows = rows[rows["kind"] == "std"]
    east, north = np.cos(np.radians(rows["dec0"])) * rows["ra0"] * 3600, rows["dec0"] * 3600
    farthest = np.hypot(np.subtract.outer(east, east), np.subtract.outer(north, north)).max(axis=1)
    first, second = np.sort(farthest)[:2]
    return str(rows["file"][np.argmin(farthest)]), round(float(first + second) / 2, 3)


def test_options_of_the_command(
    calibrated: Path, night: object, reduced: Path, capsys: pytest.CaptureFixture
) -> None:
    """A config file yields to -p, and the user may give a calibration and a suffix.

    A frame left out makes the exit code 1.
    """
    (calibrated / "std.list").write_text(f"# standards\n{night.std[0]}  # first\n@more.list\n")
    (calibrated / "more.list").write_text("\n".join(night.std[1:]))
    lonely, distance = hardest_to_please(night)
    (calibrated / "mine.toml").write_text(
        'suffix = "_config"\n[skyCorrect]\noperation = "mean"\nreject_method = "none"\n'
    )
    line = [
        "reduce",
        "@std.list",
        "-r",
        "reduce_nostack",
        "-c",
        "mine.toml",
        "-p",
        "skyCorrect:reject_method=minmax",
        f"distance={distance}",
    ]
    assert (
        cli.main(
            [
                *line,
                "--user_cal",
                f"processed_flat:{reduced / FLAT}",
                "--suffix",
                "_x",
                "--logfile",
                "mine.log",
                "-q",
            ]
        )
        == 1
    )
    made = [
        Path(path).name.replace(".fits", "_x.fits")
        for path in night.std
        if Path(path).name != lonely
    ]
    said = capsys.readouterr()
    assert [line for line in said.out.splitlines() if line.endswith("_x.fits")] == made
    assert "1 left out:" in said.err and f"{lonely}  skies        no sky frame" in said.err
    with fits.open(made[0]) as hdus:
        args = [
            json.loads(row["args"])
            for row in hdus["HISTORY"].data
            if row["primitive"] == "sky_correct"
        ][-1]
    assert (args["operation"], args["reject_method"]) == ("mean", "minmax")
    assert (args["from"]["operation"], args["from"]["reject_method"]) == ("config", "user")
    assert "set aside" in (calibrated / "mine.log").read_text()


def test_a_recipe_of_the_users(calibrated: Path, night: object) -> None:
    (calibrated / "mine.py").write_text(
        "import numpy as np\n"
        "from gdask.recipes.common import calibrate\n"
        "from gdask.io.lazy_arrays import map_planes\n"
        "from gdask.steps.frames import with_arrays, array\n"
        "def kernel(plane, factor):\n    return plane * np.float32(factor)\n"
        "def brighten(frame, *, factor: float = 2.0):\n"
        "    '''Multiply.\n\n    Parameters\n    ----------\n"
        "    factor\n        By what.\n    '''\n"
        "    brighter = map_planes(kernel, array(frame, 'data'), dtype='f4', factor=factor)\n"
        "    return with_arrays(frame, data=brighter)\n"
        "def bright(run, frames):\n    '''Calibrated and brightened.'''\n"
        "    frames = calibrate(run, frames)\n"
        "    return run.write_each(run.each(brighten, frames), '_bright')\n"
    )
    for factor, settings in ((2.0, {}), (3.0, {"brighten:factor": "3"})):
        result = reduce(
            night.std[:1], "mine.py:bright", uparms={"flatCorrect:write_outputs": True, **settings}
        )
        (bright,) = [name for name in result.output_filenames if name.endswith("_bright.fits")]
        with (
            fits.open(bright) as hdus,
            fits.open(bright.replace("_bright", "_flatCorrected")) as plain,
        ):
            np.testing.assert_allclose(
                hdus["SCI", 3].data, plain["SCI", 3].data * factor, rtol=1e-6
            )
    with pytest.raises(GdaskError, match="no parameter 'fctor' in brighten; did you mean factor?"):
        reduce(night.std[:1], "mine.py:bright", uparms={"brighten:fctor": 3})
    with pytest.raises(GdaskError, match="no function brigt; .*did you mean bright?"):
        reduce(night.std[:1], "mine.py:brigt")


def test_ultradeep_masks_what_the_stack_shows(calibrated: Path, night: object) -> None:
    result = reduce(night.sequence, "ultradeep", uparms={"prepare:bad_wcs": "fix", **COARSE})
    assert result.output_filenames[-1] == IMAGE and not result.set_aside
    with fits.open(IMAGE) as hdus:
        assert hdus[0].header["NCOMBINE"] == len(night.science)
        done = [str(row["primitive"]) for row in hdus["HISTORY"].data]
    assert "objects_from_stack" in done and done.count("sky_correct") >= 1


# ---- as users type it


def test_the_tutorial_in_python(workspace: Path, night: object) -> None:
    """The listing of the field's tutorial; only the import lines are ours."""
    from gdask import Reduce, cal_service, dataselect, logutils

    logutils.config(file_name="gsaoi_data_reduction.log")
    caldb = cal_service.set_local_database()
    caldb.init()
    all_files = glob.glob("raw/*.fits")
    all_files.sort()
    list_of_flats_Ks = dataselect.select_data(
        all_files, ["FLAT"], [], dataselect.expr_parser('filter_name=="Kshort"')
    )
    list_of_std_stars = dataselect.select_data(
        all_files, [], [], dataselect.expr_parser('observation_class=="partnerCal"')
    )
    list_of_science_images = dataselect.select_data(
        all_files,
        [],
        [],
        dataselect.expr_parser('(observation_class=="science" and exposure_time==60.)'),
    )
    assert [
        len(each) for each in (list_of_flats_Ks, list_of_std_stars, list_of_science_images)
    ] == [6, 3, 9]
    for bpm in dataselect.select_data(all_files, ["BPM"]):
        caldb.add_cal(bpm)
    reduce_flats = Reduce()
    reduce_flats.files.extend(list_of_flats_Ks)
    reduce_flats.runr()
    check = Reduce()
    check.files.extend(list_of_science_images)
    check.recipename = "checkWCS"
    check.runr()
    reduce_target = Reduce()
    reduce_target.files.extend(list_of_science_images)
    reduce_target.uparms.append(("skyCorrect:offset_sky", False))
    reduce_target.uparms["prepare:bad_wcs"] = "fix"
    reduce_target.uparms.update(COARSE)
    reduce_target.runr()
    assert reduce_flats.output_filenames == [FLAT] and reduce_target.output_filenames == [IMAGE]
    log = (workspace / "gsaoi_data_reduction.log").read_text()
    assert log.count("stack_frames: 1 frame") == 1 and "these files have a bad WCS" in log


def test_the_tutorial_on_the_command_line(
    workspace: Path,
    night: object,
    reduced: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = sorted(glob.glob("raw/*.fits"))
    lines = (
        ["typewalk", "-d", "raw"],
        [
            "dataselect",
            "--tags",
            "FLAT",
            "--expr",
            "filter_name=='Kshort'",
            *raw,
            "-o",
            "flats_Kshort.list",
        ],
        ["showd", *raw, "-d", "filter_name"],
        ["dataselect", "--expr", 'object=="9132"', *raw, "-o", "std_9132.list"],
        [
            "dataselect",
            "--expr",
            '(observation_class=="science" and exposure_time==60.)',
            *raw,
            "-o",
            "science.list",
        ],
        ["caldb", "init"],
        ["caldb", "config"],
        ["caldb", "add", *glob.glob("raw/bpm*.fits")],
        ["caldb", "list"],
        ["reduce", "@flats_Kshort.list"],
        ["reduce", "@science.list", "-r", "checkWCS"],
    )
    for line in lines:
        assert cli.main(line) == 0, capsys.readouterr().err
    science = [
        "reduce",
        "-q",
        "@science.list",
        "-p",
        "skyCorrect:offset_sky=False",
        "prepare:bad_wcs=fix",
    ]
    with monkeypatch.context() as patch:
        patch.setattr("gdask.steps.stack.combine", interrupt)
        assert cli.main(science) == 130
    assert not list(workspace.glob("*_image.fits")) and not list(workspace.glob(".*.part"))
    assert cli.main(science) == 0  # the same line again: it goes on from the last complete phase
    assert "phase 3: 5 frames already on disk" in (workspace / "reduce.log").read_text()
    assert capsys.readouterr().out.splitlines()[-1] == IMAGE
    assert "phase 1" in (workspace / "reduce.log").read_text()
    assert planes(IMAGE) == planes(reduced / IMAGE)  # what was made from Python
    assert not (workspace / ".gdask").exists()
    assert cli.main(["caldb", "remove", FLAT]) == 0
    assert cli.main(["reduce", "@science.list", "-p", "bad_wcs=fix"]) == 1
    assert "no processed_flat" in capsys.readouterr().err


def interrupt(*args: object, **kwargs: object) -> object:
    raise KeyboardInterrupt


@pytest.mark.parametrize("strip_bytes", [1.0, 5e5])
def test_flats_are_the_same_in_other_strips(
    calibrated: Path,
    reduced: Path,
    night: object,
    strip_bytes: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stack is made in bands of rows, each in strips of as many rows as a task may hold."""
    monkeypatch.setattr("gdask.steps.frames.STRIP_BYTES", strip_bytes)
    monkeypatch.setattr("gdask.steps.stack.BAND_ROWS", 97)
    reduce([*night.flat_on, *night.flat_off])
    assert planes(FLAT) == planes(reduced / FLAT)


@pytest.mark.slow
def test_a_larger_night_against_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine frames on target and standards in a region of interest.

    Completeness, positions, fluxes and sky steps at edges are checked.
    """
    from gdask.simulate import simulate_gsaoi

    simulate_gsaoi(tmp_path, size=1020, roi=1018, n_flats=5)
    (tmp_path / "dragonsrc").write_text("[calibs]\ndatabases = cal_manager.db get store\n")
    monkeypatch.setenv("DRAGONSRC", str(tmp_path / "dragonsrc"))
    monkeypatch.chdir(tmp_path)
    rows = Table.read("truth/frames.ecsv")
    files = {
        kind: [f"raw/{row['file']}" for row in rows if row["kind"] in kind.split()]
        for kind in ("flat_on flat_off", "std", "science sky")
    }
    cal_service.set_local_database().init()
    cal_service.set_local_database().add_cal(glob.glob("raw/bpm*.fits")[0])
    reduce(files["flat_on flat_off"])
    standard = reduce(files["std"])
    assert not standard.set_aside and fits.getheader(standard.output_filenames[0])["NCOMBINE"] == 4
    found = compare_with_truth(standard.output_filenames[0], "truth", "std")
    assert found["recovered"] >= 0.9 and found["mad_x_mas"] < 5 and found["mad_y_mas"] < 5
    image = reduce(
        sorted(files["science sky"]),
        uparms={"skyCorrect:offset_sky": False, "prepare:bad_wcs": "fix"},
    )
    assert not image.set_aside and fits.getheader(image.output_filenames[0])["NCOMBINE"] == 9
    found = compare_with_truth(image.output_filenames[0], "truth")
    assert found["recovered"] >= 0.98 and found["mad_x_mas"] <= 1.2 and found["mad_y_mas"] <= 1.2
    assert abs(found["flux_ratio"] - 1) < 0.03 and abs(found["rotation_deg"]) < 0.02
    assert found["edge_step_median_abs_e"] < 1.0
