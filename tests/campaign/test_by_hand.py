"""The products of a campaign are those of the step-by-step commands on the raw files."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from gdask.cli import main

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
NIGHTS = ("20170505", "20170506")
DARKS = "--tags F2,DARK --expr exposure_time"
SCIENCE = "--expr 'observation_class==\"science\"'"
#: What the tutorials type, in order; of the second instrument's darks two nights make one.
COMMANDS = {
    "GSAOI": [
        "caldb add {raw}/bpm_20121104_gsaoi_gsaoi_11_full_4amp.fits",
        *(
            line
            for night in NIGHTS
            for line in (
                f"dataselect --tags GSAOI,FLAT {{raw}}/{night}/*.fits -o flats.list",
                "reduce @flats.list",
            )
        ),
    ],
    "F2": [
        *(
            line
            for seconds in (8, 10)
            for line in (
                f"dataselect {DARKS}=={seconds} {{raw}}/*/*.fits -o darks.list",
                "reduce @darks.list",
            )
        ),
        f"dataselect {DARKS}==10 {{raw}}/*/*.fits -o own.list",
        f"dataselect {DARKS}==2 {{raw}}/*/*.fits -o short.list",
        *(
            line
            for night in NIGHTS
            for line in (
                f"dataselect --tags F2,FLAT {{raw}}/{night}/*.fits -o flats.list",
                "reduce @flats.list @own.list @short.list -r makeProcessedBPM",
                "reduce @flats.list",
            )
        ),
    ],
}


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a reduced campaign: two nights, the second one in bad seeing."""
    folder = tmp_path_factory.mktemp("survey")
    line = f"simulate campaign {folder / 'sky'} -q --nights 2 --faults seeing --compress none"
    assert main(line.split()) == 0
    assert main(["run", str(folder / "sky/raw"), "-o", str(folder / "out"), "-q"]) in (0, 3)
    return folder


def type_in(line: str, folder: Path) -> None:
    """Type a command in a folder; patterns of names are for the shell."""
    program, rest = line.split(maxsplit=1)
    done = subprocess.run(
        f"{shlex.quote(str(BIN / program))} {rest}",
        shell=True,
        cwd=folder,
        env=os.environ | {"DRAGONSRC": "dragonsrc"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def assert_same_content(mine: Path, theirs: Path) -> None:
    """Compare pixels and the catalogue of two products."""
    with fits.open(mine) as one, fits.open(theirs) as other:
        assert [unit.name for unit in one] == [unit.name for unit in other]
        for unit, twin in zip(one[1:], other[1:], strict=True):
            if unit.is_image:
                np.testing.assert_array_equal(unit.data, twin.data, err_msg=unit.name)
            elif unit.name in ("OBJCAT", "RESIDUALS", "EPOCHS"):
                for name in unit.columns.names:
                    np.testing.assert_array_equal(unit.data[name], twin.data[name], err_msg=name)


@pytest.mark.parametrize("instrument", COMMANDS)
def test_products_are_those_of_the_commands_on_raw_files(
    survey: Path, tmp_path: Path, instrument: str
) -> None:
    raw = shlex.quote(str(survey / "sky/raw"))
    (tmp_path / "dragonsrc").write_text("[calibs]\ndatabases = cal_manager.db get store\n")
    type_in("caldb init", tmp_path)
    for line in COMMANDS[instrument]:
        type_in(line.format(raw=raw), tmp_path)
    for name, folder in (("all_nights", "*"), *zip(NIGHTS, NIGHTS, strict=True)):
        files = f"{raw}/{folder}/*.fits"
        type_in(f"dataselect --tags {instrument} {SCIENCE} {files} -o {name}.list", tmp_path)
        type_in(f"reduce @{name}.list -p prepare:bad_wcs=fix --suffix _{name}", tmp_path)
    index = Table.read(survey / "out/index.ecsv")
    stacks = {
        row["night"]: survey / "out" / row["product"]
        for row in index
        if row["instrument"] == instrument and row["kind"] == "stack"
    }
    assert set(stacks) == {"all", *NIGHTS}
    for night, product in stacks.items():
        (mine,) = tmp_path.glob(f"*_{'all_nights' if night == 'all' else night}.fits")
        assert_same_content(mine, product)
    weights = Table.read(stacks["all"], "FRAMES")["WEIGHT"]
    assert min(weights[:5]) > 2 * max(weights[5:])  # in bad seeing, so that weighing shows
