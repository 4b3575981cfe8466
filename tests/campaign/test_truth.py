"""Campaigns with faults that leave frames readable: what is known of a frame holds everywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from gdask import Reduce
from gdask.cli import main

TARGET = "J1109-3512/Kshort"


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of two nights: a cloud, a satellite, and flats of a night without light."""
    folder = tmp_path_factory.mktemp("survey")
    line = f"simulate campaign {folder / 'sky'} -q --nights 2 --instruments gsaoi --compress none"
    assert main([*line.split(), "--faults", "cloud,trail,lampoff"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert main(["run", str(folder / "sky/raw"), "-o", str(folder / "out")]) == 1
    return folder


def frame_with(survey: Path, fault: str) -> str:
    """Give the name, without ending, of the frame that has a fault."""
    truth = json.loads((survey / "sky/truth/faults.json").read_text())["files"]
    return next(Path(path).stem for path, about in truth.items() if about["fault"] == fault)


def stack_of(survey: Path, night: str) -> Path:
    """Give the path of a stack."""
    (path,) = (survey / "out" / TARGET / night).glob("*_image.fits")
    return path


def test_a_frame_through_a_cloud_is_in_no_stack(survey: Path) -> None:
    """Its throughput is 0.05: it deserves 0.25 % of the weight of the others."""
    cloudy = frame_with(survey, "cloud")
    nights = {night: list(Table.read(stack_of(survey, night), "FRAMES")["NAME"])
              for night in ("20170505", "20170506", "all")}  # fmt: skip
    assert not [name for names in nights.values() for name in names if cloudy in name]
    assert len(nights["all"]) == 9
    (record,) = (survey / "out" / TARGET / "all").glob("*.json")
    (why,) = json.loads(record.read_text())["left_out"]
    assert cloudy in why and "of the median frame's" in why


def test_throughputs_of_frames_are_those_of_the_truth(survey: Path) -> None:
    truth = Table.read(survey / "sky/truth/gsaoi_Kshort_J1109-3512/frames.ecsv")
    scale = {Path(row["file"]).stem: row["scale"] for row in truth}
    for night in ("20170505", "20170506", "all"):
        rows = Table.read(stack_of(survey, night), "FRAMES")
        given = np.array([scale[str(name).partition("_")[0]] for name in rows["NAME"]])
        found = np.ma.filled(rows["THRUPUT"], np.nan) * np.median(given)
        assert np.isfinite(found).sum() >= len(rows) - 1
        assert np.nanmax(np.abs(found / given - 1)) < 0.1


def test_flats_without_light_are_used_for_nothing(survey: Path) -> None:
    index = Table.read(survey / "out/index.ecsv")
    status = {str(row["job"]): str(row["status"]) for row in index}
    dark = "flat-GSAOI-20170505-Kshort"
    assert [name for name, state in status.items() if state != "made"] == [dark]
    (record,) = (survey / "out" / TARGET / "20170505/frames").glob("*.json")
    assert "calibrations/20170506/" in json.loads(record.read_text())["command"]
    plan = (survey / f"out/plan/{record.stem}.toml").read_text()
    assert f"instead of {dark} (its job failed)" in plan


def trailing(paths: list[Path], folder: Path) -> list[str]:
    """Copy frames; the second one gets a trail of 20 pixels across its third array."""
    copies = [shutil.copy(path, folder) for path in paths]
    with fits.open(copies[1], mode="update") as units:
        data = units["SCI", 3].data
        y, x = np.indices(data.shape)
        across = 0.6 * (y - 0.4 * data.shape[0]) - 0.8 * (x - 0.5 * data.shape[1])
        data += 1000 * np.exp(-0.5 * (across / 8.5) ** 2)
        for unit in units:
            unit.add_checksum()
    return copies


def test_no_trail_of_a_satellite_is_left_in_the_stack(
    survey: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where other frames cover it, the stack is the same without it; elsewhere it is flagged."""
    cloudy = frame_with(survey, "cloud")
    frames = sorted((survey / "out" / TARGET / "20170505/frames").glob("*_skyCorrected.fits"))
    frames = [path for path in frames if cloudy not in path.name]
    planes = []
    for name, make in (("clean", lambda *_: list(map(str, frames))), ("trail", trailing)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        reduction = Reduce()
        reduction.files.extend(make(frames, tmp_path / name))
        reduction.recipename = "alignAndStack"
        reduction.runr()
        (path,) = reduction.output_filenames
        with fits.open(path) as units:
            planes.append({key: units[key].data.copy() for key in ("SCI", "VAR", "DQ")})
        rejected = Table.read(path, "FRAMES")["REJECTED"]
        assert rejected[1] < 0.005
    clean, trail = planes
    flagged = ((trail["DQ"] & 8) > 0) & ((clean["DQ"] & 8) == 0)
    assert 100 < flagged.sum() < 0.05 * flagged.size
    good = (clean["DQ"] == 0) & (trail["DQ"] == 0) & (trail["VAR"] > 1.1 * clean["VAR"])
    assert good.sum() > 3000  # the trail is there, of one frame less
    difference = (trail["SCI"] - clean["SCI"])[good]
    error = np.sqrt(np.mean(trail["VAR"][good]) / good.sum())
    assert abs(difference.mean()) < 5 * error
    assert np.abs(difference).max() < 6 * np.sqrt(trail["VAR"][good].max())
