"""`gdask benchmark`: commands chosen by tags, real small runs, figures, comparison, wrong input."""

from __future__ import annotations

import json
import os
import re
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from gdask.cli import main
from gdask.cli.benchmark import _work_folder
from gdask.model import GdaskError, UsageError
from gdask.reduction import benchmark
from gdask.reduction import benchmark_report as report
from gdask.simulate import simulate_f2

PNG = b"\x89PNG\r\n\x1a\n"


# Which commands --------------------------------------------------------------------------------


def test_commands_are_those_of_the_gsaoi_tutorial(night: object) -> None:
    files = sorted(str(path) for path in (night.folder / "raw").glob("*.fits"))
    plan = benchmark.plan(files)
    assert plan.instrument == "GSAOI" and plan.calibrations == (night.bpm,)
    assert plan.unused == len(night.dark)
    assert {command.name: list(command.files) for command in plan.commands} == {
        "flat": sorted([*night.flat_on, *night.flat_off], key=os.path.basename),
        "standard": night.std,
        "checkWCS": night.sequence,
        "science": night.sequence,
    }
    assert [command.text() for command in plan.commands] == [
        "reduce @flat.list",
        "reduce @standard.list",
        "reduce @checkWCS.list -r checkWCS",
        "reduce @science.list -p skyCorrect:offset_sky=False prepare:bad_wcs=fix",
    ]
    assert plan.raw_bytes == sum(os.path.getsize(path) for path in plan.raw_files)


@pytest.mark.parametrize("band", ["Y", "Ks"])
def test_commands_are_those_of_the_f2_tutorial(tmp_path: Path, band: str) -> None:
    simulate_f2(tmp_path, size=64, filter=band, n_darks=3, n_short_darks=3, n_science=3)
    files = sorted(str(path) for path in (tmp_path / "raw").glob("*.fits"))
    plan = benchmark.plan(files)
    commands = {command.name: command for command in plan.commands}
    assert list(commands) == ["dark", "bpm", "flat", "checkWCS", "science"]
    assert plan.unused == 0 and len(commands["dark"].files) == len(commands["science"].files) == 3
    assert commands["bpm"].text() == "reduce @bpm.list -r makeProcessedBPM"
    assert commands["science"].text() == "reduce @science.list -p addDQ:user_bpm=BPM.fits"
    taken_off = set(commands["flat"].files) - set(commands["bpm"].files)
    assert bool(taken_off) == (band == "Ks")  # darks of the flats' exposure time


def test_calibrations_are_those_of_the_largest_set_of_science_frames(night: object) -> None:
    only = benchmark.plan([*night.flat_on, *night.flat_off])
    assert [command.name for command in only.commands] == ["flat"]
    with pytest.raises(UsageError, match="none of 1 files is a raw flat"):
        benchmark.plan([night.bpm])
    with pytest.raises(UsageError, match="two files have this name"):
        benchmark.plan([night.bpm, night.bpm])


# A real run ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the whole command on a night that it simulates; give the folder with the results."""
    folder = tmp_path_factory.mktemp("benchmark")
    options = ["--size", "256", "--roi", "200", "--frames", "5", "--repeat", "0", "--workers", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["benchmark", *options, "-o", "first", "--label", "a test"]) == 0
    return folder


def test_a_simulated_night_is_measured(simulated: Path) -> None:
    assert sorted(os.listdir(simulated)) == ["first.json", "first.md", "first.png"]
    result, page = report.load(str(simulated / "first.json")), (simulated / "first.md").read_text()
    (summary,) = result["summary"]
    rows = {row["name"]: row for row in summary["rows"]}
    assert list(rows) == ["flat", "standard", "checkWCS", "science", "all"]
    assert (rows["science"]["frames"], summary["workers"]) == (5, 2)
    assert len(rows["science"]["phases"]) == 6 and len(rows["flat"]["phases"]) == 2
    for row in rows.values():
        assert row["seconds"]["median"] > row["floor"]
        assert bool(row["floor"]) == bool(row["times_the_floor"]) == (row["name"] != "checkWCS")
        assert 0 < row["user"] + row["system"] < 2.2 * row["seconds"]["median"]
        assert row["frames_per_minute"] > 0 and row["read_per_raw"] > 0
        assert 100e6 < row["memory"] < 4e9
    phases = rows["science"]["phases"]
    outside = phases[-1]["seconds"]
    total = sum(phase["seconds"] for phase in phases)
    assert total == pytest.approx(rows["science"]["seconds"]["median"]) and outside > 0
    assert "| science  " in page and "science, phase 5" in page and "a test" in page
    assert (simulated / "first.png").read_bytes().startswith(PNG)


def test_nothing_saved_names_host_user_or_folder(simulated: Path) -> None:
    for name in ("first.json", "first.md"):
        text = (simulated / name).read_text()
        for word in (os.uname().nodename, str(simulated), str(Path.home()), ".fits,", "S2017"):
            assert not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text), word
        assert not re.search(r"[\" ](/[a-z]+){2,}", text)


def test_own_frames_on_processes_against_an_earlier_run(
    simulated: Path, night: object, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("flats.list").write_text("\n".join([*night.flat_on, *night.flat_off, night.bpm]))
    earlier = str(simulated / "first.json")
    options = ["--kind", "processes", "--workers", "1", "--repeat", "1", "--memory", "2GiB"]
    code = main(["benchmark", "@flats.list", *options, "-o", "second", "--against", earlier])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "## Against a test of " in out and "## Commands, 1 process\n" in out
    assert "no number of workers is in both" in out and "kind: was threads, is processes" in out
    assert "run 2 of 2, processes:1" in err and out.endswith("second.json second.md second.png\n")
    (summary,) = report.load("second.json")["summary"]
    flat = summary["rows"][0]
    assert flat["first_seconds"] > 0 and summary["runs"] == 1
    assert flat["memory"] > 250e6  # of reduce and its worker together
    assert len(os.listdir()) == 4  # the folder of the work is gone


def test_a_reduction_that_fails_is_told(night: object, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    plan = benchmark.plan(night.science)  # no flat
    place = benchmark.Place(tmp_path / "run", "threads", 1)
    benchmark.prepare_folder(plan, place.folder)
    with pytest.raises(GdaskError, match="(?s)reduce @science.list .*failed.*no processed_flat"):
        benchmark.measure_command(plan.commands[-1], place)
    assert main(["benchmark", *night.science, "-q", "--repeat", "0"]) == 1
    assert os.listdir() == ["run"]


def test_the_folder_of_the_work_goes_unless_it_is_kept(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for keep in (False, True):
        with _work_folder(Path("x"), keep) as folder:
            assert folder.is_absolute() and folder.parent == tmp_path.resolve()
        assert folder.is_dir() == keep


# Figures ---------------------------------------------------------------------------------------


def run_of(workers: int, seconds: float, *, first: bool = False, read: int = 300) -> dict[str, Any]:
    """Give a run of two commands, one of them a header check."""
    account = {"raw": 100, "product": 50, "read": read, "written": 150, "left_out": 0, "frames": 8}
    phase = {"name": "phase 1", "seconds": seconds / 2, "read_per_raw": 3.0, "memory": 2**30}
    phase |= {"written_per_raw": 1.5, "user": 1.0, "system": 1.0}
    taken = {"user": 2.0, "system": 1.0, "memory": 2**30, "floor": 0.5, "others": 0.0}
    commands = [
        taken | {"name": "science", "seconds": seconds, "account": account | {"phases": [phase]}},
        taken | {"name": "checkWCS", "seconds": 1.0, "account": account | {"phases": []}},
    ]
    return {"workers": workers, "first": first, "commands": commands}


ABOUT = {
    "label": "",
    "date": "2026-01-01 00:00",
    "kind": "threads",
    "memory": None,
    "cold": False,
    "machine": {
        "processor": "P",
        "cores": 2,
        "memory": 2**33,
        "file_system": "ext4",
        "system": "S",
    },
    "versions": {"gdask": "0.1.0", "code": "abc", "python": "3.12"},
    "night": {"instrument": "GSAOI", "source": "a night", "files": 8, "raw": 100},
}


def test_medians_spread_efficiency_and_ratios() -> None:
    runs = [run_of(2, 40.0, first=True)]
    runs += [run_of(1, s) for s in (30.0, 20.0, 22.0)] + [run_of(2, s) for s in (14.0, 11.0, 12.0)]
    one, two = report.summarise(runs)
    science, check, whole = two["rows"]
    assert (one["workers"], two["workers"], two["runs"]) == (1, 2, 3)
    assert science["seconds"] == {"median": 12.0, "least": 11.0, "most": 14.0}
    assert science["first_seconds"] == 40.0 and one["rows"][0]["first_seconds"] is None
    assert science["efficiency"] == pytest.approx(22 / 24)
    assert science["frames_per_minute"] == 40.0 and science["times_the_floor"] == 24.0
    assert (science["read_per_raw"], science["written_per_raw"]) == (3.0, 1.5)
    assert [phase["seconds"] for phase in science["phases"]] == [6.0, 6.0]
    assert whole["seconds"]["median"] == 13.0 and whole["frames"] == 8 and whole["raw"] == 100
    assert check["phases"] == [{"name": "outside phases", "seconds": 1.0}]


def test_a_comparison_says_what_is_faster_and_what_else_differs() -> None:
    then = report.result_of(ABOUT, [run_of(2, 24.0, first=True, read=900)])
    now = report.result_of(
        ABOUT | {"versions": ABOUT["versions"] | {"code": "def"}}, [run_of(2, 12.0, first=True)]
    )
    found = report.compare(then, now)
    assert found["remarks"] == ["versions: code was abc, is def"] and found["workers"] == (2, 2)
    page = report.page(now, then)
    (line,) = (line for line in page.split("## Against")[1].splitlines() if "science" in line)
    assert "24.0, 12.0" in line and " 2.00x " in line and "9.0, 3.0" in line
    assert "The first run alone" in page and "Other processes" not in page


def test_a_busy_machine_is_told() -> None:
    run = run_of(2, 12.0, first=True)
    for command in run["commands"]:
        command["others"] = 0.7
    assert "kept 0.7 of 2 cores busy" in report.page(report.result_of(ABOUT, [run]))


def test_the_floor_reads_and_writes_and_leaves_nothing(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(3_000_000))
    before = os.times()
    assert benchmark.floor_seconds([str(raw)] * 3, 40_000_000, tmp_path, 2) > 0
    assert os.times().elapsed > before.elapsed and os.listdir(tmp_path) == ["raw"]


def test_the_file_system_is_that_of_the_deepest_mount() -> None:
    mount = namedtuple("mount", "mountpoint fstype")
    mounts = [mount("/", "overlay"), mount("/data", "ext4"), mount("/data", "lustre")]
    assert benchmark.file_system(Path("/data/night"), mounts) == "lustre"
    assert benchmark.file_system(Path("/database"), mounts) == "overlay"
    assert set(benchmark.machine(Path.cwd())) >= {"processor", "cores", "memory"}


# Wrong input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--workers", "0"], "--workers 0: expected numbers from 1 on"),
        (["--workers", "two"], "--workers two: expected numbers from 1 on"),
        (["--full", "--size", "256"], "--full and --size: give one of them"),
        (["--instrument", "f2", "--roi", "100"], "--roi: F2 reads its whole array"),
        (["--repeat", "-1"], "--repeat -1: expected 0 or more"),
        (["--repeat", "0", "--workers", "1,2"], "1 with several numbers of workers"),
        (["--frames", "2"], "--frames 2: expected 3 or more"),
        (["--memory", "lots"], "--memory lots: expected a number with a unit"),
        (["--size", "255"], "size is 255, which must be even"),
        (["--against", "none.json"], "--against none.json: cannot be read"),
        (["--against", "other.json"], "--against other.json: not a result of gdask benchmark"),
        (["--against", "old.json"], "--against old.json: of format 0, 1 was expected"),
        (["-o", "no/name"], "-o no/name: there is no folder no"),
        (["-o", "other"], "-o other: other.json is there already"),
        (["raw.fits", "--full"], "--full is for a simulated night"),
        (["@none.list"], "@none.list: the list cannot be read"),
        (["--kind", "gpus"], "invalid choice: 'gpus'"),
    ],
)
def test_wrong_input_is_refused_before_any_work(
    line: list[str], said: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.json").write_text(json.dumps({"format": 1}))
    Path("old.json").write_text(json.dumps({"format": 0}))
    assert main(["benchmark", *line]) == 2
    assert said in capsys.readouterr().err
    assert sorted(os.listdir()) == ["old.json", "other.json"]
