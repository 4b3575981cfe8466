"""Faults of a bad night: each has one line that names file, fact and remedy, and a defined outcome.

docs/faults.md is the table of them; the last test here keeps it true.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

import gdask
from gdask import GdaskError, Reduce, cal_service, cli
from gdask.io.write import start
from gdask.model import UsageError, host
from gdask.reduction import screening
from gdask.reduction.recipe_library import locate
from gdask.reduction.run import Run
from gdask.reduction.screening import with_skies
from gdask.simulate import simulate_f2

ROOT = Path(__file__).parents[2]

#: Recipes of one phase; `happens.py` in the working folder, if it is there, runs just before it.
RECIPES = """
import os, runpy
from gdask.recipes.common import calibrate
from gdask.steps import prepare, separate_sky
TAGS = {"GSAOI", "IMAGE"}
NOT_FOR = {"SPECT", "ACQUISITION"}

def light(run, frames):
    if os.path.exists("happens.py"):
        os.rename("happens.py", "happened.py")
        runpy.run_path("happened.py")
    return run.write_each(calibrate(run, frames), "_light")

def sort(run, frames):
    return run(separate_sky, run(prepare, frames))
"""


@pytest.fixture
def here(calibrated: Path, night: object) -> Path:
    """Give the working folder of a test, with recipes and copies of the three standards.

    These are the smallest frames.
    """
    (calibrated / "mine.py").write_text(RECIPES)
    for path in night.std:
        shutil.copy(path, calibrated)
    return calibrated


def reduce(files: list[str], recipe: str = "mine.py:light", **settings: object) -> Reduce:
    reduction = Reduce()
    reduction.files.extend(files)
    reduction.recipename = recipe
    for name, value in settings.items():
        setattr(reduction, name, value)
    reduction.runr()
    return reduction


def standards() -> list[str]:
    return sorted(path.name for path in Path().glob("S*0504*.fits") if "_" not in path.name)


def pixels(folder: Path) -> dict[str, bytes]:
    """Read all pixels of the products in a folder."""
    found = {}
    for path in sorted(folder.glob("*_light.fits")):
        with fits.open(path) as hdus:
            found |= {
                f"{path.name} {hdu.name} {hdu.ver}": hdu.data.tobytes()
                for hdu in hdus[1:]
                if hdu.name in ("SCI", "VAR", "DQ")
            }
    return found


def unreadable(*args: object, **kwargs: object) -> object:
    raise AssertionError("pixels were read")


# ---- files that are not what a list says


def edited(
    path: Path,
    primary: dict[str, object] | None = None,
    each: Callable[[fits.HDUList], fits.HDUList] | None = None,
) -> None:
    """Change keywords (None: removed everywhere), or all of a file.

    It becomes another exposure than the one it was copied from.
    """
    with fits.open(path) as hdus:
        new = fits.HDUList([hdu.copy() for hdu in hdus])
    new[0].header["DATALAB"] = path.name
    for keyword, value in (primary or {}).items():
        for hdu in new if value is None else new[:1]:
            if value is None:
                hdu.header.remove(keyword, ignore_missing=True, remove_all=True)
            else:
                hdu.header[keyword] = value
    (each(new) if each else new).writeto(path, overwrite=True, output_verify="ignore")


def keywords(**primary: object) -> Callable[[Path], None]:
    return lambda path: edited(
        path, {name.replace("_", "-"): value for name, value in primary.items()}
    )


def cut(size: int) -> Callable[[Path], None]:
    """Cut a file to `size` bytes, or by `-size`."""
    return lambda path: os.truncate(path, size if size >= 0 else path.stat().st_size + size)


def without_wcs(path: Path) -> None:
    edited(
        path,
        dict.fromkeys(
            (
                "CRVAL1",
                "CRVAL2",
                "CRPIX1",
                "CRPIX2",
                "CD1_1",
                "CD1_2",
                "CD2_1",
                "CD2_2",
                "CTYPE1",
                "CTYPE2",
            )
        ),
    )


def into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def rows(hdus: fits.HDUList, count: int, only: int | None = None) -> fits.HDUList:
    cut_down = [
        fits.ImageHDU(hdu.data[: count if only in (None, n) else None], hdu.header)
        for n, hdu in enumerate(hdus[1:], 1)
    ]
    return fits.HDUList([hdus[0], *cut_down])


#: What is done to a copy of a good frame, and what the account says of it.
FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated in a header": (
        cut(3000),
        "header of extension 0 is cut short (no END card); copy the file again",
    ),
    "truncated in the data": (
        cut(-20000),
        "pixels of extension 4 are cut short; copy the file again",
    ),
    "zero bytes": (cut(0), "the file is empty, a FITS file was expected; copy it again"),
    "not FITS": (lambda path: path.write_text("x" * 9000) and None, "not a FITS file"),
    "no image": (lambda path: edited(path, each=lambda hdus: hdus[:1]), "no image extension"),
    "another instrument": (
        keywords(INSTRUME="F2"),
        "it is of F2, the first file is of GSAOI; reduce it apart",
    ),
    "an unknown instrument": (keywords(INSTRUME="NIRI"), "is of instrument 'NIRI'; gdask knows"),
    "no instrument": (keywords(INSTRUME=None), "has no INSTRUME keyword"),
    "an acquisition": (keywords(OBSCLASS="acq"), "is for GSAOI IMAGE, this one is ACQUISITION"),
    "a product": (
        keywords(PREPARE="2017-05-05T00:00:00"),
        "it is no raw frame, and would be calibrated twice",
    ),
    "another filter": (
        keywords(FILTER1="J_G1103"),
        "filter J, the others have Kshort; reduce it apart",
    ),
    "missing extension": (
        lambda path: edited(path, each=lambda hdus: hdus[:4]),
        "number of arrays 3, the others have 4",
    ),
    "wrong shape": (
        lambda path: edited(path, each=lambda hdus: rows(hdus, 100)),
        "size of arrays 160 x 100, the others have 160 x 160",
    ),
    "arrays of two shapes": (
        lambda path: edited(path, each=lambda hdus: rows(hdus, 100, only=2)),
        "arrays of different shapes",
    ),
    "no EXPTIME": (
        keywords(EXPTIME=None),
        "no exposure time from its headers (EXPTIME missing or not valid)",
    ),
    "EXPTIME is text": (
        keywords(EXPTIME="long"),
        "EXPTIME = long: a number from 0 to 100000 was expected",
    ),
    "no FILTER": (
        keywords(FILTER1=None, FILTER2=None),
        "no filter name from its headers (FILTER1, FILTER2 missing",
    ),
    "no WCS": (without_wcs, "no wcs ra from its headers (CRVAL"),
    "no target": (keywords(RA=None), "no target ra from its headers (RA missing"),
    "no time": (
        keywords(
            DATE_OBS=None,
            DATE=None,
            UT=None,
            TIME_OBS=None,
            UTSTART=None,
            UTEND=None,
            UTDATE=None,
            MJD_OBS=None,
        ),
        "no ut datetime from its headers",
    ),
    "no time of day": (
        keywords(UT="??", TIME_OBS=None, UTSTART="1e5", MJD_OBS=None),
        "no ut time from its headers (UT, TIME-OBS missing or not valid)",
    ),
    "a folder": (into_a_folder, "is a folder, a FITS file was expected"),
    "a copy": (lambda path: None, "the same exposure as"),
}


@pytest.mark.parametrize("fault", FILES)
def test_a_bad_file_is_set_aside(
    here: Path,
    night: object,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """That happens before pixels are read; the rest goes on, with exit code 1 and a table.

    With --strict the run stops.
    """
    monkeypatch.setattr("gdask.io.stored.read_window", unreadable)
    damage, words = FILES[fault]
    bad = here / "S20170504S0999.fits"
    shutil.copy(night.std[1], bad)
    damage(bad)
    line = ["reduce", "-q", *night.std, bad.name, "-r", "mine.py:sort"]
    assert cli.main(line) == 1
    printed = capsys.readouterr().err
    assert re.search(rf"^    {bad.name}  \w+ +.*{re.escape(words)}", printed, re.MULTILINE), printed
    assert "1 left out:" in printed and "Traceback" not in printed
    assert cli.main([*line, "--strict"]) == 1
    printed = capsys.readouterr().err
    assert words in printed and "--strict stops here" in printed


def test_kinds_that_a_recipe_does_not_take(calibrated: Path, night: object, reduced: Path) -> None:
    """Flats, darks, masks, products among science frames; science frames among flats.

    The first file decides.
    """
    (flat,) = reduced.glob("S*_flat.fits")
    check = reduce(
        [night.science[0], night.flat_on[0], night.dark[0], night.bpm, str(flat), night.science[1]],
        "checkWCS",
    )
    assert [name for name, _, _ in check.set_aside] == [
        Path(p).name for p in (night.flat_on[0], night.dark[0], night.bpm, flat)
    ]
    why = {name: reason for name, _, reason in check.set_aside}
    assert (
        "it is a finished product" in why[flat.name]
        and "this one is CAL DARK GSAOI" in why[Path(night.dark[0]).name]
    )
    with pytest.raises(GdaskError, match="it is a finished product"):
        reduce([str(flat), *night.flat_on], "default")
    with pytest.raises(
        GdaskError, match="align_and_stack takes files tagged PREPARED, this one is GSAOI IMAGE"
    ):
        reduce(night.std, "alignAndStack")


@pytest.mark.parametrize(
    ("recipe", "also", "left"),
    [
        ("makeProcessedFlat", "dark", 3),
        ("makeProcessedBPM", "dark", 0),
        ("makeProcessedBPM", "std", 3),
    ],
)
def test_mixes_that_flat_recipes_take(night: object, recipe: str, also: str, left: int) -> None:
    files = [*night.flat_on, *night.flat_off, *getattr(night, also)]
    frames = screening.open_all(files).frames
    assert len(screening.screen(frames, *locate(recipe, gdask.tags(frames[0]))).set_aside) == left


def test_darks_of_another_exposure_time_are_set_aside(here: Path, night: object) -> None:
    for number, (path, seconds) in enumerate(zip(night.dark, (60.001, 60.002, 10.0), strict=True)):
        edited(Path(shutil.copy(path, here / f"S20170505S080{number}.fits")), {"EXPTIME": seconds})
    frames = screening.open_all(sorted(map(str, here.glob("S*S080*.fits")))).frames
    (left,) = screening.screen(frames, *locate(None, gdask.tags(frames[0]))).set_aside
    assert (
        left.name == "S20170505S0802.fits"
        and "exposure 10 s x 1" in left.reason
        and "the others have 60 s x 1" in left.reason
    )


def test_frames_without_a_sky_are_set_aside_by_their_headers(
    here: Path, night: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have another exposure time, serve no target, or their skies are all gone."""
    monkeypatch.setattr("gdask.io.stored.read_window", unreadable)
    for name, path in (
        ("S20170505S0998.fits", night.science[0]),
        ("S20170505S0999.fits", night.sky[0]),
    ):
        edited(Path(shutil.copy(path, name)), {"EXPTIME": 10.0})

    def left(paths: list[str], recipe: str = "default", **user: object) -> dict[str, str]:
        frames = screening.open_all(paths).frames
        kept = with_skies(
            frames,
            *locate(None if recipe == "default" else recipe, gdask.tags(frames[0])),
            [("user", {"prepare:bad_wcs": "fix", **user})],
        )
        assert len(kept.frames) + len(kept.set_aside) == len(frames) and {
            step for _, step, _ in kept.set_aside
        } <= {"skies"}
        return {name: why for name, _, why in kept.set_aside}

    found = left([*night.sequence, "S20170505S0998.fits", "S20170505S0999.fits"])
    assert not found, "the two are each other's"
    found = left([*night.sequence, "S20170505S0998.fits"])
    assert list(found) == ["S20170505S0998.fits"] and found["S20170505S0998.fits"].endswith(
        "the same filter and exposure time (Kshort, 10 s)"
    )
    found = left([*night.sequence, "S20170505S0999.fits"], "reduce_nostack")
    assert found == {
        "S20170505S0999.fits": "it is on sky, and no frame on target has its filter, "
        "exposure time and read mode"
    }
    assert len(left(night.science[:2], **{"associate_sky:distance": 60.0})) == 2 and not left(
        night.science[:2]
    )
    assert not left([*night.sequence, "S20170505S0998.fits"], "checkWCS") and not left(
        [*night.sequence, "S20170505S0998.fits"], "mine.py:sort"
    )
    assert not left([*night.sequence, "S20170505S0998.fits"], **{"prepare:bad_wcs": "exit"}), (
        "the run itself stops there"
    )


def test_a_second_target_is_set_aside_and_two_alike_are_refused(here: Path, night: object) -> None:
    for name in ("S20170504S0998.fits", "S20170504S0999.fits"):
        edited(
            Path(shutil.copy(night.std[1], name)),
            {"RA": 200.0, "DEC": -50.0, "UTSTART": f"02:2{name[-6]}:01"},
        )
    found = reduce([*night.std, "S20170504S0999.fits"], "mine.py:sort").set_aside
    assert [name for name, _, _ in found] == [
        "S20170504S0999.fits"
    ] and "arcmin from that of the others; reduce it apart" in found[0][2]
    with pytest.raises(GdaskError, match=r"reduce one target at a time"):
        reduce([*night.std[:2], "S20170504S0998.fits", "S20170504S0999.fits"], "mine.py:sort")


def test_nothing_left_is_said_in_words(here: Path) -> None:
    for name in ("S20170504S0998.fits", "S20170504S0999.fits"):
        Path(name).write_bytes(b"")
    with pytest.raises(GdaskError, match="every frame was set aside"):
        reduce(["S20170504S0998.fits", "S20170504S0999.fits"])
    with pytest.raises(GdaskError, match=r"S20170504S0998.fits: the file is empty"):
        reduce(["S20170504S0998.fits"])


def test_a_file_without_permission(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    original = builtins.open

    def opened(path: object, *args: object, **kwargs: object) -> object:
        if str(path).endswith("S20170504S0115.fits"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", opened)
    (left,) = screening.open_all(standards()).set_aside
    assert left.name == "S20170504S0115.fits" and "ermission" in left.reason


# ---- pixels


def scribble(path: str, value: float, *arrays: int) -> None:
    with fits.open(path, mode="update") as hdus:
        for number in arrays:
            hdus[number].data[:] = value


@pytest.mark.parametrize(
    ("fault", "value", "words"),
    [
        ("NaN", np.nan, "no usable pixels: 100 % NaN or no data"),
        ("saturated", 65000.0, "no usable pixels: 100 % saturated"),
    ],
)
def test_a_frame_without_usable_pixels_is_set_aside(
    here: Path, fault: str, value: float, words: str
) -> None:
    """The other frames' products are, bit by bit, those of a run without it."""
    files = standards()
    reduce([files[0], files[2]])
    expected = pixels(here)
    scribble(files[1], value, 1, 2, 3, 4)
    found = reduce(files)
    assert found.set_aside == [(files[1], "pixels", words)]
    assert pixels(here) == expected and len(found.output_filenames) == 2
    assert not list(here.glob("**/*.part"))


def test_an_array_without_usable_pixels_is_named(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scribble(standards()[1], np.nan, 2)
    found = reduce(standards())
    assert (
        not found.set_aside
        and "S20170504S0115.fits: array 2 is 100 % NaN or no data; only its other arrays are used"
        in caplog.text
    )


#: What happens to the second standard while the run goes on, after headers were read.
ACCIDENTS = {
    "truncated": (
        "os.truncate(path, 60000)",
        "changed during the run; run again with the file at rest",
    ),
    "changed": (
        "os.utime(path, (1, 1))",
        "changed during the run; run again with the file at rest",
    ),
    "vanished": ("os.unlink(path)", "vanished during the run"),
}


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_a_file_that_goes_bad_during_the_run_is_set_aside(here: Path, accident: str) -> None:
    files = standards()
    reduce([files[0], files[2]])
    expected = pixels(here)
    code, words = ACCIDENTS[accident]
    Path("happens.py").write_text(f"import os\npath = {files[1]!r}\n{code}\n")
    found = reduce(files)
    assert [entry[0] for entry in found.set_aside] == [files[1]] and words in found.set_aside[0][2]
    assert pixels(here) == expected
    shutil.copy(files[0], files[1])
    Path("happens.py").write_text(f"import os\npath = {files[2]!r}\n{code}\n")
    with pytest.raises(GdaskError, match=files[2]):
        reduce([files[0], files[2]], strict=True)


def test_a_damaged_compressed_file_is_set_aside(here: Path) -> None:
    import gzip

    files = standards()
    content = bytearray(gzip.compress(Path(files[1]).read_bytes(), mtime=0))
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    Path("S20170504S0997.fits.gz").write_bytes(content)
    found = reduce([files[0], "S20170504S0997.fits.gz", files[2]])
    assert [entry[0] for entry in found.set_aside] == ["S20170504S0997.fits"] and len(
        found.output_filenames
    ) == 2


def test_a_calibration_that_goes_bad_stops_the_run(
    here: Path, reduced: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (flat,) = reduced.glob("S*_flat.fits")
    mine = shutil.copy(flat, here / "mine_flat.fits")
    Path("happens.py").write_text(f"import os\nos.utime({str(mine)!r}, (1, 1))\n")
    original = Run.calibration

    def late(run: Run, caltype: str, *args: object, **kwargs: object) -> object:
        found = original(run, caltype, *args, **kwargs)
        if caltype == "processed_flat":
            os.utime(mine, (2, 2))
        return found

    monkeypatch.setattr(Run, "calibration", late)
    with pytest.raises(GdaskError, match="mine_flat.fits: changed during the run"):
        reduce(standards(), ucals={"processed_flat": str(mine)})
    assert not list(here.glob("*_light.fits")) and not list(here.glob("**/*.part"))


# ---- calibrations


def test_a_missing_flat_is_found_before_pixels_and_steps(
    workspace: Path,
    night: object,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "gdask")
    monkeypatch.setattr("gdask.io.stored.read_window", unreadable)
    with pytest.raises(
        GdaskError, match=r"S20170504S0114.fits: no processed_flat\n.*none is registered"
    ):
        reduce(night.std, "reduce_nostack")
    assert "prepare" not in caplog.text


@pytest.fixture(scope="module")
def f2(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Simulate a tiny FLAMINGOS-2 night; give its files by kind."""
    folder = tmp_path_factory.mktemp("f2")
    simulate_f2(folder, size=64, n_science=3, n_darks=2, n_short_darks=2, n_lamps=2)
    files: dict[str, list[str]] = {"science": [], "dark": [], "flat": []}
    for path in sorted(map(str, (folder / "raw").glob("*.fits"))):
        files[
            next((kind for kind in ("dark", "flat") if kind.upper() in gdask.tags(path)), "science")
        ].append(path)
    return files


def test_a_missing_dark_and_flat_are_named_together(
    workspace: Path, f2: dict[str, list[str]]
) -> None:
    with pytest.raises(GdaskError, match="no processed_dark") as error:
        reduce(f2["science"], "default")
    assert "no processed_flat" in str(error.value) and not list(workspace.glob("**/*.part"))


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [
        ("GRISM", "JH_G5801", "is for F2 IMAGE, this one is F2"),
        ("OBSCLASS", "acq", "ACQUISITION"),
        ("MASKTYPE", 1, "LS"),
    ],
)
def test_spectra_and_acquisitions_in_a_list_of_images(
    workspace: Path, f2: dict[str, list[str]], keyword: str, value: object, words: str
) -> None:
    bad = Path(shutil.copy(f2["science"][1], "S20131120S0999.fits"))
    cards = {
        "GRISM": {"GRISM": value, "GRISMPOS": value},
        "MASKTYPE": {
            "MASKTYPE": 1,
            "DECKER": "Long_slit",
            "MASKNAME": "2pix-slit",
            "MOSPOS": "2pix-slit",
        },
    }
    edited(bad, cards.get(keyword, {keyword: value}))
    (left,) = reduce([f2["science"][0], f2["science"][2], str(bad)], "checkWCS").set_aside
    assert left[0] == bad.name and words in left[2]
    with pytest.raises(GdaskError, match="gdask reduces images|no recipes for files tagged"):
        reduce([str(bad), *f2["science"]], "checkWCS")


def flat_copies(folder: Path, flat: Path, *names: str) -> None:
    """Register flats of one time that differ in one pixel."""
    for number, name in enumerate(names):
        shutil.copy(flat, folder / name)
        with fits.open(folder / name, mode="update") as hdus:
            hdus["SCI", 1].data[0, 0] = number
        cal_service.set_local_database().add_cal(folder / name)


def test_two_equally_good_calibrations_and_one_that_was_deleted(
    workspace: Path, night: object, reduced: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The choice between equals is always the same, and is logged.

    A deleted file is not chosen, and is named if it is the last.
    """
    (flat,) = reduced.glob("S*_flat.fits")
    cal_service.set_local_database().init()
    flat_copies(workspace, flat, "a_flat.fits", "b_flat.fits")
    Path("mine.py").write_text(RECIPES)
    reduce(night.std[:1])
    assert (
        "b_flat.fits would fit as well as" in caplog.text
        and caplog.text.count("would fit as well") == 1
    )
    assert fits.getheader("S20170504S0114_light.fits")["FLATIM"] == "a_flat.fits"
    (workspace / "a_flat.fits").unlink()
    reduce(night.std[:1])
    assert fits.getheader("S20170504S0114_light.fits")["FLATIM"] == "b_flat.fits"
    (workspace / "b_flat.fits").unlink()
    with pytest.raises(GdaskError, match=r"no processed_flat(.|\n)*b_flat.fits(.|\n)*file: "):
        reduce(night.std[:1])


@pytest.mark.parametrize(("have", "lack"), [("flat_on", "lamp-off"), ("flat_off", "lamp-on")])
def test_flats_of_one_kind_alone(
    workspace: Path, night: object, have: str, lack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gdask.io.stored.read_window", unreadable)
    with pytest.raises(
        GdaskError,
        match=f"but no {lack} ones; a Kshort flat needs both: add the {lack} frames to the list",
    ):
        reduce(getattr(night, have), "default")


def test_a_flat_of_saturated_lamps_is_not_written(workspace: Path, night: object) -> None:
    files = []
    for path in [*night.flat_on, *night.flat_off]:
        files.append(shutil.copy(path, workspace))
        if path in night.flat_on:
            scribble(files[-1], 65000.0, 1, 2, 3, 4)
    with pytest.raises(GdaskError, match="but no lamp-on ones"):
        reduce(files, "default")
    assert not list(workspace.glob("*_flat.fits"))


def test_a_skipped_calibration_is_not_looked_for(workspace: Path, night: object) -> None:
    (workspace / "mine.py").write_text(RECIPES)
    found = reduce(night.std[:1], uparms={"flatCorrect:skip_primitive": True})
    assert "FLATIM" not in fits.getheader(found.output_filenames[0])


# ---- products


def test_a_disk_that_fills_in_the_middle_of_a_product(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Nothing under a final name, no temporary file; the same command works when there is room."""
    original, left = os.pwrite, [7]

    def pwrite(*args: object) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args)

    line = ["reduce", "-q", *standards(), "-r", "mine.py:light"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        assert cli.main(line) == 1
    assert (
        "could not be written (No space left on device); free space and run again"
        in capsys.readouterr().err
    )
    assert not list(here.glob("*_light.fits")) and not list(here.glob("**/*.part"))
    assert cli.main(line) == 0


def test_a_limit_on_the_size_of_files_is_found_before_the_compute(
    here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gdask.io.stored.read_window", unreadable)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
        assert cli.main(["reduce", "-q", *standards(), "-p", "flatCorrect:write_outputs=True"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert re.search(
        r"cannot be written \(.*; \d+\.\d MB needed\); free space and run again",
        capsys.readouterr().err,
    )
    assert not list(here.glob("**/*.part"))


def test_a_folder_that_cannot_be_written(here: Path) -> None:
    frame = gdask.open(standards()[0])
    with pytest.raises(
        GdaskError,
        match=r"/proc/no/x.fits: cannot be written .*; "
        r"make the folder writable or change to another one",
    ):
        start(frame, "/proc/no/x.fits")
    assert cli.main(["reduce", *standards(), "--logfile", "/proc/no/x.log"]) == 2


def test_an_older_product_is_replaced_as_a_whole_and_an_input_never(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gdask")
    Path("S20170504S0114_light.fits").write_text("old")
    reduce(standards()[:1])
    assert "S20170504S0114_light.fits: an older one is replaced" in caplog.text
    fits.open("S20170504S0114_light.fits", checksum=True).close()
    shutil.copy(standards()[1], "S20170504S0115_light.fits")
    with pytest.raises(GdaskError, match="the product would replace an input"):
        reduce(["S20170504S0115_light.fits"])
    assert not list(here.glob("**/*.part"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_in_order(
    here: Path, number: int, code: int, capsys: pytest.CaptureFixture
) -> None:
    """Products under way are discarded, and the old handlers are back.

    The same command again goes on from the last phase.
    """
    before = signal.getsignal(signal.SIGTERM)
    line = ["reduce", "-q", *standards(), "-r", "mine.py:light"]
    (here / "mine.py").write_text(
        RECIPES.replace("calibrate(run, frames), ", "stop(calibrate(run, frames)), ")
        + (
            "\ndef stop(frames):\n    import signal\n    if not os.path.exists('once'):\n"
            "        open('once', 'w').close()\n"
            f"        os.kill(os.getpid(), {int(number)})\n    return frames\n"
        )
    )
    assert cli.main(line) == code
    assert "stopped" in capsys.readouterr().err and signal.getsignal(signal.SIGTERM) == before
    assert not list(here.glob("*_light.fits")) and not list(here.glob("**/*.part"))
    assert cli.main(line) == 0
    assert "phase 1: 3 frames already on disk" in Path("reduce.log").read_text()


def test_temporaries_of_dead_processes_are_removed_at_the_next_start(here: Path) -> None:
    (here / f".S1_light.fits.{host()}-{2**22 + 1}-0a1b2c3d.part").write_text(
        "half"
    )  # above the highest process number
    reduce(standards()[:1])
    assert not list(here.glob(".*.part"))


# ---- lists and names on the command line: wrong usage, exit code 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["@gone.list"], "@gone.list: the list cannot be read"),
        (["@binary.list"], "not a text file"),
        (["@empty.list"], "@empty.list: names no file; the list is empty"),
        (["@loop.list"], "the list contains itself"),
        (["@names.list"], "gone.fits: no such file"),
        (["none*.fits"], "no file matches none*.fits"),
        (["gone.fits"], "gone.fits: no such file"),
        (["S20170504S0114.fits", "-r", "mine.py:lihgt"], "did you mean light?"),
        (["S20170504S0114.fits", "-r", "lost.py"], "no file lost.py"),
        (
            ["S20170504S0114.fits", "-r", "broken.py"],
            "the file does not run: line 2: ZeroDivisionError",
        ),
        (
            ["S20170504S0114.fits", "-p", "addDQ:user_bpm=gone.fits"],
            "add_dq:user_bpm=gone.fits: no such file",
        ),
        (
            ["S20170504S0114.fits", "-c", "wrong.toml"],
            "no parameter 'offset_ski' in sky_correct; did you mean offset_sky?",
        ),
        (["S20170504S0114.fits", "--qa"], "gdask has one mode"),
        (["S20170504S0114.fits", "--ql"], "gdask has one mode"),
    ],
)
def test_wrong_usage_ends_with_code_2_and_does_nothing(
    here: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture
) -> None:
    for name, text in {
        "empty.list": "# nothing\n\n",
        "loop.list": "@loop.list\n",
        "names.list": "S20170504S0114.fits\ngone.fits\n",
        "broken.py": "import os\n1 / 0\n",
        "wrong.toml": "[skyCorrect]\noffset_ski = true\n",
    }.items():
        Path(name).write_text(text)
    Path("binary.list").write_bytes(bytes(range(128, 256)))
    assert cli.main(["reduce", *arguments]) == 2
    printed = capsys.readouterr().err
    assert words in printed and "Traceback" not in printed
    assert not list(here.glob("*_*.fits"))


def test_modes_that_are_not_offered_are_refused_in_python_too(here: Path) -> None:
    with pytest.raises(UsageError, match="mode qa: not offered"):
        reduce(standards(), mode="qa")


# ---- the table


def names_in_the_table() -> Iterator[tuple[str, str]]:
    for line in (ROOT / "docs" / "faults.md").read_text().splitlines():
        yield from re.findall(r"`((?:\w+/)*test_\w+\.py)::(test_\w+)", line)


def test_every_row_of_the_table_names_a_test_that_is_there() -> None:
    rows = [
        line
        for line in (ROOT / "docs" / "faults.md").read_text().splitlines()
        if line.startswith("|")
    ][2:]
    assert len(rows) >= 40 and all("::test_" in row for row in rows)
    names = list(names_in_the_table())
    assert len(names) >= len(rows)
    for file, test in names:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"
    text = (ROOT / "docs" / "faults.md").read_text()
    assert all(f"| {fault} |" in text for fault in FILES)
