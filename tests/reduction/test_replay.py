"""`gdask replay`: a product knows what it was made of, and is made again, byte for byte."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from gdask import Reduce, cal_service
from gdask.cli import main
from gdask.model import GdaskError, arithmetic_of_processor, use_settings
from gdask.reduction import replay as replay_module
from gdask.reduction.provenance import versions
from gdask.reduction.replay import account_of, differences, find_files, replay

RECIPE = '''"""A recipe with a letter outside ASCII: \N{LATIN SMALL LETTER E WITH ACUTE}."""
from gdask.recipes.gsaoi_flat import make_processed_flat


def own(run, frames):
    return make_processed_flat(run, frames)
'''


@pytest.fixture(scope="module")
def flat(reduced: Path) -> Path:
    (found,) = reduced.glob("*_flat.fits")
    return found


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty working folder without a calibration database."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DRAGONSRC", str(folder / "rc"))
    (folder / "rc").write_text("[calibs]\ndatabases = none.db get\n")
    return folder


def test_a_product_knows_its_reduction(flat: Path, night: object, reduced: Path) -> None:
    account = account_of(flat)
    inputs = [file for file in account.files if file["role"] == "input"]
    assert [file["name"] for file in inputs] == [
        Path(path).name for path in (*night.flat_on, *night.flat_off)
    ]
    assert all(
        len(file["md5"]) == 32 and file["size"] == Path(night.flat_on[0]).stat().st_size
        for file in inputs
    )
    assert [file["name"] for file in account.files if file["role"] == "calibration"] == [
        Path(night.bpm).name
    ]
    assert (
        account.recipe["name"] == "default"
        and account.recipe["file"] == "gsaoi_flat.py"
        and len(account.recipe["sha256"]) == 64
    )
    assert any("def make_processed_flat(run, frames)" in line for line in account.source)
    assert {"gdask", "code", "python", "numpy", "numba", "astropy", "dask"} <= set(account.versions)
    (image,) = reduced.glob("*_image.fits")
    science = account_of(image)
    assert science.parameters["user"] == {"prepare:bad_wcs": "fix", "sky_correct:offset_sky": False}
    assert {file["name"] for file in science.files if file["role"] == "calibration"} == {
        Path(night.bpm).name,
        flat.name,
    }


def test_a_product_says_on_what_kind_of_processor_it_was_made(flat: Path) -> None:
    then = account_of(flat).versions
    assert then["processors"] == arithmetic_of_processor() and len(then["processors"]) == 8
    assert list(replay_module._changed_versions(then)) == []
    other = then | {"processors": "01234567 89abcdef"}
    (text,) = replay_module._changed_versions(other)
    assert text == (
        "made on another kind of processor (processors 01234567 89abcdef then,"
        f" {arithmetic_of_processor()} now)"
    )
    older = {name: value for name, value in then.items() if name != "processors"}
    assert "another kind" not in " ".join(replay_module._changed_versions(older))


def test_workers_that_are_of_other_kinds_are_recorded() -> None:
    with use_settings(processors=("01234567", "89abcdef")):
        assert versions()["processors"] == "01234567 89abcdef"
    assert versions()["processors"] == arithmetic_of_processor()


def test_every_parameter_has_its_layer(reduced: Path) -> None:
    (image,) = reduced.glob("*_image.fits")
    with fits.open(image) as units:
        rows = {row["primitive"]: json.loads(row["args"]) for row in units["HISTORY"].data}
    assert (
        rows["sky_correct"]["offset_sky"] is False
        and rows["sky_correct"]["from"]["offset_sky"] == "user"
    )
    assert rows["detect_sources"]["from"]["min_pixels"] == "instrument"
    assert "radius" in rows["mask_sources"] if "mask_sources" in rows else True


def test_the_same_bytes_again(
    flat: Path, night: object, elsewhere: Path, capsys: pytest.CaptureFixture
) -> None:
    before = flat.read_bytes()
    raw = str(night.folder / "raw")
    assert main(["replay", str(flat), "--inputs", raw, "--keep", str(elsewhere / "kept")]) == 0
    assert "the same, byte for byte" in capsys.readouterr().out
    again = elsewhere / "kept" / flat.name
    assert list(differences(str(flat), str(again))) == [] and flat.read_bytes() == before
    assert sorted(path.name for path in elsewhere.iterdir()) == ["kept", "rc"]
    with fits.open(again, mode="update") as units:
        units["SCI", 2].data[5, 5] += 1
        units[0].header["OBJECT"] = "other"
        units["PROVENANCE"].data["md5"][0] = "0" * 32
    found = list(differences(str(flat), str(again)))
    assert found[0].startswith("primary: OBJECT is 'Domeflat', again 'other'")
    assert any(text.startswith("SCI,2: ") and "bytes differ" in text for text in found)
    assert any(text.startswith("PROVENANCE,1: row 1: md5 is") for text in found) and len(found) == 3
    with pytest.raises(GdaskError, match="the folder of the product itself"):
        replay(flat, [raw], keep=str(flat.parent))


def test_a_mask_that_a_parameter_names_is_used_once(
    night: object, elsewhere: Path, capsys: pytest.CaptureFixture
) -> None:
    """Named by a relative path, which is another one where the product is made again."""
    mask = shutil.copy(night.bpm, elsewhere)
    flats = Reduce()
    flats.files.extend([*night.flat_on, *night.flat_off])
    flats.uparms["addDQ:user_bpm"] = os.path.basename(mask)
    flats.runr()
    (name,) = flats.output_filenames
    with fits.open(name) as units:
        assert units[0].header["BPMIM"] == os.path.basename(mask)
    raw = str(night.folder / "raw")
    code = main(["replay", name, "--inputs", raw, str(elsewhere)])
    assert code == 0, capsys.readouterr().out


def test_what_is_missing_or_changed_is_named(
    flat: Path, night: object, elsewhere: Path, capsys: pytest.CaptureFixture
) -> None:
    alone = Path(shutil.copy(flat, elsewhere))
    account = account_of(alone)
    with pytest.raises(GdaskError) as caught:
        find_files(account, ["."])
    assert all(file["name"] in str(caught.value) for file in account.files) and str(
        caught.value
    ).count("not found") == len(account.files)
    inputs = elsewhere / "inputs"
    shutil.copytree(night.folder / "raw", inputs)
    first, second = (inputs / Path(path).name for path in night.flat_on[:2])
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    second.unlink()
    assert main(["replay", str(alone), "--inputs", str(inputs)]) == 1
    printed = capsys.readouterr().err
    assert (
        f"{first.name} (input): " in printed
        and "another checksum" in printed
        and f"{second.name} (input): not found" in printed
    )
    assert printed.count("input)") == 2


def test_a_users_recipe_is_only_run_when_it_is_named(
    night: object, elsewhere: Path, capsys: pytest.CaptureFixture
) -> None:
    made = elsewhere / "made"
    made.mkdir()
    (made / "mine.py").write_text(RECIPE, encoding="utf-8")
    (made / "rc").write_text("[calibs]\ndatabases = cal.db get store\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        patch.setenv("DRAGONSRC", str(made / "rc"))
        cal_service.set_local_database().add_cal(night.bpm)
        reduction = Reduce()
        reduction.files.extend([*night.flat_on, *night.flat_off])
        reduction.recipename = "mine.py:own"
        reduction.runr()
    (product,) = (made / name for name in reduction.output_filenames)
    assert main(["replay", str(product), "--show-recipe"]) == 0
    assert "def own(run, frames):" in capsys.readouterr().out
    raw = str(night.folder / "raw")
    with pytest.raises(GdaskError, match="name it: --recipe FILE.py:own"):
        replay(product, [raw])
    (elsewhere / "other.py").write_text(RECIPE + "\n# changed\n", encoding="utf-8")
    with pytest.raises(GdaskError, match="not the file that the product was made with"):
        replay(product, [raw], recipe=str(elsewhere / "other.py"))
    assert replay(product, [raw], recipe=f"{made / 'mine.py'}:own").differences == ()


@pytest.mark.slow
def test_an_image_again(
    reduced: Path, night: object, elsewhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    (image,) = reduced.glob("*_image.fits")
    assert replay(image, [str(night.folder / "raw"), str(reduced)]).differences == ()


@pytest.mark.parametrize("damage", ["no table", "no json", "a path for a name"])
def test_damaged_accounts_are_explained(damage: str, flat: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(flat, tmp_path))
    with fits.open(copy, memmap=False) as units:
        if damage == "no table":
            del units["REDUCTION"]
        else:
            values = units["REDUCTION"].data["value"]
            rows = np.flatnonzero(units["REDUCTION"].data["item"] == "input")
            values[rows[0]] = (
                "{"
                if damage == "no json"
                else json.dumps({"name": "../S1.fits", "size": 1, "md5": "0" * 32})
            )
        units.writeto(copy, overwrite=True)
    with pytest.raises(
        GdaskError, match="no table REDUCTION" if damage == "no table" else "REDUCTION is damaged"
    ):
        account_of(copy)


@pytest.mark.parametrize(
    "name", ["replay.rc", "replay.db", "replay.db-journal", ".gdask", "calibrations"]
)
def test_a_replay_writes_through_no_link(flat: Path, night: object, elsewhere: Path, name: str):
    """Whatever it writes under a name of its own: a link, a hard link, a pipe."""
    kept, victim = elsewhere / "kept", elsewhere / "victim"
    kept.mkdir()
    raw = str(night.folder / "raw")
    if "." in name[1:]:
        victim.write_text("mine")
    else:
        victim.mkdir()
    (kept / name).symlink_to(victim)
    with pytest.raises(GdaskError, match=f"{name}: a symbolic link"):
        replay(flat, [raw], keep=str(kept))
    if victim.is_dir():
        assert list(victim.iterdir()) == []
        return
    (kept / name).unlink()
    (kept / name).hardlink_to(victim)
    with pytest.raises(GdaskError, match=f"{name}: has another name elsewhere"):
        replay(flat, [raw], keep=str(kept))
    assert victim.read_text() == "mine"
    (kept / name).unlink()
    os.mkfifo(kept / name)
    with pytest.raises(GdaskError, match=f"{name}: not a regular file"):
        replay(flat, [raw], keep=str(kept))
