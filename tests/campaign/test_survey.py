"""A survey of several nights, targets and filters of both instruments, with all that goes wrong."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from gdask.campaign import records
from gdask.cli import main

pytestmark = pytest.mark.slow

#: What the table of files says of each kind of fault that headers, bytes or lists of sums show.
STATES = {
    "truncated": "unreadable",
    "unreadable": "unreadable",
    "missing": "missing",
    "duplicate": "duplicate",
    "other": "not ours",
    "acquisition": "set aside",
    "twilight": "set aside",
    "spectrum": "set aside",
    "exptime": "set aside",
    "lonely": "set aside",
}
KILLS = 20


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a simulated survey: 3 nights, 2 targets, 2 filters, both instruments."""
    folder = tmp_path_factory.mktemp("survey") / "survey"
    line = f"simulate campaign {folder} -q --nights 3 --targets 2 --filters Kshort,J --faults all"
    assert main(line.split()) == 0
    return folder


@pytest.fixture(scope="module")
def reduced_survey(survey: Path) -> tuple[Path, int]:
    """Give the folder of its results, and the exit code of the one command."""
    out = survey.parent / "reduced"
    return out, main(["run", str(survey / "raw"), "-o", str(out), "--jobs", "2", "-q"])


def test_every_file_and_every_fault_is_told(survey: Path, reduced_survey: tuple[Path, int]) -> None:
    out, _ = reduced_survey
    rows = {Path(row["path"]).name: row for row in Table.read(out / "files.ecsv")}
    truth = json.loads((survey / "truth/faults.json").read_text())["files"]
    for path, about in truth.items():
        if expected := STATES.get(about["fault"]):
            assert rows[Path(path).name]["state"] == expected, (path, about["fault"])
    there = {path.name for path in (survey / "raw").rglob("*.fits*")}
    assert there <= set(rows)


def test_all_that_can_be_made_is_made(reduced_survey: tuple[Path, int]) -> None:
    out, code = reduced_survey
    index = Table.read(out / "index.ecsv")
    status = {str(row["job"]): str(row["status"]) for row in index}
    failed = {name for name, state in status.items() if state in ("failed", "blocked")}
    assert code == (1 if failed else 3 if "failure" in list(index["gates"]) else 0)
    # The lamp of one night's flats was off in one filter: that flat alone fails.
    assert all(name.startswith("flat-") for name in failed), failed
    stacks = index[[str(row["job"]).endswith("-all") for row in index]]
    assert len(stacks) >= 7 and all(stacks["nights"] >= 2)


def test_stacks_of_all_nights_are_those_of_the_steps_by_hand(
    reduced_survey: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gdask import Reduce

    out, _ = reduced_survey
    index = Table.read(out / "index.ecsv")
    stack = next(row for row in index if str(row["job"]).startswith("stack-GSAOI")
                 and str(row["job"]).endswith("-all"))  # fmt: skip
    plan = (out / "plan" / f"{stack['job']}.toml").read_text()
    frames = [
        str(out / str(row["product"]))
        for row in index
        if row["kind"] == "frames" and f'"{row["job"]}"' in plan
    ]
    monkeypatch.chdir(tmp_path)
    reduction = Reduce()
    reduction.files.extend(frames)
    reduction.recipename = "alignAndStack"
    reduction.runr()
    with (
        fits.open(reduction.output_filenames[0]) as mine,
        fits.open(out / str(stack["product"])) as theirs,
    ):
        for name in ("SCI", "VAR", "DQ"):
            np.testing.assert_array_equal(mine[name].data, theirs[name].data)


def test_killed_at_any_moment_it_ends_with_the_same_products(survey: Path, tmp_path: Path) -> None:
    """20 seeded moments: the client is killed, typed again, and so on; at last left alone."""
    only = ["--only", "instrument==GSAOI,filter==Kshort"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    line = [sys.executable, "-m", "gdask.cli.run", str(survey / "raw"), *only, "-o"]
    subprocess.run([*line, str(whole)], stdout=subprocess.DEVNULL, check=False)
    moments = random.Random(16)
    for _ in range(KILLS):
        run = subprocess.Popen([*line, str(out)], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
        time.sleep(moments.uniform(0.5, 12))
        run.send_signal(moments.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        run.wait()
    subprocess.run([*line, str(out)], stdout=subprocess.DEVNULL, check=False)
    products = sorted(path.relative_to(whole) for path in whole.rglob("*.fits"))
    assert products and products == sorted(path.relative_to(out) for path in out.rglob("*.fits"))
    for product in products:
        twin = records.content_digest(out / product)
        assert twin == records.content_digest(whole / product), product
