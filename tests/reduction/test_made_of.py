"""`gdask why` of products that `reduce` has made without a campaign: by their own tables."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import Night

from gdask.cli import main


@pytest.fixture
def alone(reduced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder with the products of a night, away from any campaign."""
    for path in reduced.glob("*.fits"):
        shutil.copy2(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_product_says_its_frames_calibrations_and_parameters(
    alone: Path, night: Night, capsys: pytest.CaptureFixture[str]
) -> None:
    (image,) = (path.name for path in alone.glob("*_image.fits"))
    assert main(["why", image]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{image}: recipe default of gsaoi_image.py, gdask 0.")
    told = {line.strip().partition(": ")[0]: line.strip().partition(": ")[2] for line in lines}
    names = {name for path in night.sequence if (name := Path(path).name)}
    assert set(told["made of"].split(", ")) == {Path(path).name for path in night.science}
    skies = names - {Path(path).name for path in night.science}
    assert skies <= set(", ".join(told.values()).split(", "))
    found = "found in a database by the rules of association"
    assert told["processed_flat"].endswith(f"_flat.fits ({found}, used by flat_correct)")
    assert told["processed_bpm"].startswith("bpm") and "used by add_dq" in told["processed_bpm"]
    assert "    prepare:bad_wcs = fix (-p)" in lines


def test_two_products_say_what_differs(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (image,) = alone.glob("*_image.fits")
    (flat,) = alone.glob("*_flat.fits")
    shutil.copy2(image, "again.fits")
    assert main(["why", str(image), "again.fits"]) == 0
    assert capsys.readouterr().out == "nothing that went in differs\n"
    assert main(["why", str(image), str(flat)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("only the second: made of: ") for line in lines)


def test_a_raw_file_away_from_a_campaign_has_no_answer(
    alone: Path, night: Night, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy2(night.science[0], alone / "raw.fits")
    assert main(["why", "raw.fits"]) == 2
    assert "not in the results of a campaign; give -o OUT" in capsys.readouterr().err
