"""Lists that hold flats, masks and science frames: what is said of them, and that it works."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

import pytest

from gdask import Reduce, cli
from gdask.cli import lists
from gdask.model import GdaskError


def reduced(files: list[str]) -> Reduce:
    reduction = Reduce()
    reduction.files.extend(files)
    reduction.uparms["prepare:bad_wcs"] = "fix"
    reduction.runr()
    return reduction


def test_a_folder_with_its_flats_says_what_to_do_first(workspace: Path, night: object) -> None:
    everything = sorted(map(str, Path("raw").glob("*.fits")))
    science = next(p for p in everything if Path(p).name == Path(night.science[0]).name)
    with pytest.raises(GdaskError, match="no processed_flat") as caught:
        reduced([science, *everything])
    commands = [line.strip() for line in str(caught.value).splitlines() if "reduce @" in line]
    kinds = [line.split("-o ")[1].split(";")[0] for line in commands]
    assert kinds == ["darks.list", "flats.list", "images.list"]
    assert "(this run)" in commands[2] and "caldb add raw/bpm_" in str(caught.value)
    # What was said is typed, and works.
    (add,) = [line.strip() for line in str(caught.value).splitlines() if "caldb add raw" in line]
    assert cli.main(shlex.split(add)) == 0
    for line in commands[1:]:
        select = line.split(";")[0]
        assert cli.main(shlex.split(select)) == 0
    flats = lists.expand_files(["@flats.list"])
    assert len(flats) == 6
    reduced(flats)
    names = [Path(path).name for path in lists.expand_files(["@images.list"])]
    assert set(names) == {Path(path).name for path in (*night.sequence, *night.std)}


def test_the_flats_of_a_mixed_list_are_reduced_and_the_rest_is_named(
    workspace: Path, night: object, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "gdask"):
        reduction = reduced([*night.flat_on, *night.flat_off, *night.science])
    assert len(reduction.output_filenames) == 1
    assert "6 flats, 5 images" in caplog.text and "reduce @images.list" in caplog.text


def test_a_missing_mask_is_a_warning_and_in_the_header(
    workspace: Path, night: object, caplog: pytest.LogCaptureFixture
) -> None:
    from astropy.io import fits

    flats = [*night.flat_on, *night.flat_off]
    with caplog.at_level(logging.INFO, "gdask"):
        (name,) = reduced(flats).output_filenames
    (warned,) = [r for r in caplog.records if "processed_bpm" in r.getMessage()]
    assert warned.levelno == logging.WARNING and "6 of 6 frames" in warned.getMessage()
    assert fits.getheader(name)["BPMIM"] == "none"
    caplog.clear()
    reduction = Reduce()
    reduction.files.extend(flats)
    reduction.uparms["add_dq:user_bpm"] = night.bpm
    with caplog.at_level(logging.INFO, "gdask"):
        reduction.runr()
    (said,) = [r for r in caplog.records if "processed_bpm" in r.getMessage()]
    assert said.levelno == logging.INFO and "user_bpm alone is used" in said.getMessage()
    assert f"static BPM none, user_bpm {Path(night.bpm).name}" in caplog.text
    assert fits.getheader(reduction.output_filenames[0])["BPMIM"] == Path(night.bpm).name
