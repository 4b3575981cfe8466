"""A campaign of a small night, run for real: products, unchanged runs, changes, kills, faults."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from conftest import Night

from gdask.campaign import records
from gdask.campaign.bundle import make_bundle
from gdask.campaign.job import stem_of
from gdask.campaign.report import between
from gdask.campaign.run import Outcome, owned, run_campaign
from gdask.campaign.scan import scan
from gdask.campaign.settings import add_flags, new_flag, read_flags
from gdask.campaign.showing import DRAW_FRAMES, picture_folder
from gdask.campaign.state import states_of
from gdask.campaign.survey import Options, survey
from gdask.campaign.uses import ends_of
from gdask.cli import main
from gdask.model import GdaskError
from gdask.reduction.replay import differences

FLAT = "flat-GSAOI-20170505-Kshort"
FRAMES = "frames-GSAOI-NGC5128-Kshort-20170505"
STACK = "stack-GSAOI-NGC5128-Kshort-20170505"
#: What is run here: not the standard, to save its time.
ONLY = "target==NGC5128"


def quiet(text: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module", autouse=True)
def _own_rates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def options(raw: Path | str, out: Path, **given: object) -> Options:
    from gdask.cli.run import only_of

    return Options((str(raw),), str(out), only=only_of(ONLY), threads=2)._replace(**given)


@pytest.fixture(scope="module")
def done(night: Night, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Give the folder of results of the night, and how the run ended."""
    out = tmp_path_factory.mktemp("campaign") / "out"
    return out, run_campaign(options(night.folder / "raw", out), quiet)


@pytest.fixture
def copy(done: tuple[Path, Outcome], tmp_path: Path) -> Path:
    """Give a copy of these results, to be changed."""
    return Path(shutil.copytree(done[0], tmp_path / "out"))


def states(raw: Path | str, out: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    campaign, place = survey(options(raw, out), quiet)
    known = records.read_records(out, campaign)
    return {k: (v.name, v.reasons) for k, v in states_of(campaign, known, place).items()}


def test_nothing_is_made_of_a_flat_that_is_not_fit_for_use(copy: Path, night: Night) -> None:
    """Its gate blocks it: what needs it takes the next best, and is blocked where there is none."""
    (copy / "gates.toml").write_text("[mean_counts]\nfailure_below = 1e9\n")
    said: list[str] = []
    again = run_campaign(options(night.folder / "raw", copy), said.append)
    assert not any(one["ran"] for one in again.records.values())
    assert again.records[FLAT]["status"] == "made" and again.failed == [FRAMES, STACK]
    why = again.records[FRAMES]["cause"]
    assert why.startswith("no processed_flat") and f"{FLAT}: not fit for use: the flat has" in why
    assert states(night.folder / "raw", copy)[FRAMES] == ("blocked", (why,))
    (copy / "gates.toml").unlink()
    assert run_campaign(options(night.folder / "raw", copy), quiet).failed == []


def test_the_header_of_a_product_has_the_verdict_of_the_campaigns_own_gates(
    done: tuple[Path, Outcome], night: Night, tmp_path: Path
) -> None:
    """Other limits alone make nothing again, nor does their verdict make a calibration another."""
    first, out = done[0], tmp_path / "out"
    out.mkdir()
    (out / "gates.toml").write_text("[mean_counts]\nwarning_below = 1e9\n")
    run_campaign(options(night.folder / "raw", out, only=None, until="calibrations"), quiet)
    campaign, _ = survey(options(night.folder / "raw", out), quiet)
    flat = next(job for job in campaign.jobs if job.id == FLAT)
    kept, now = (records.read_record(folder, flat) for folder in (first, out))
    product = now["products"][0]["path"]
    assert "mean_counts (warning)" in fits.getheader(out / product)["GATES"]
    assert fits.getheader(first / product)["GATES"] == "passed"
    assert kept["products"][0]["content"] == now["products"][0]["content"]
    assert "--gates gates.toml" in now["command"]


def test_every_product_has_its_pictures_when_its_job_has_ended(done: tuple[Path, Outcome]) -> None:
    products = [one["path"] for job in records.all_records(done[0]) for one in job["products"]]
    assert {Path(path).stem.rpartition("_")[2] for path in products} == {
        "flat",
        "skyCorrected",
        "image",
    }
    for path in products:
        assert (picture_folder(done[0] / path) / "preview.png").is_file(), path


@pytest.mark.parametrize("code", [0, 1, 2])
def test_frames_that_cannot_be_drawn_do_not_change_how_their_job_ends(
    tmp_path: Path, code: int
) -> None:
    """Whatever fails in it: what was reduced is whole by then."""
    (tmp_path / "S1_skyCorrected.fits").touch()
    broken = "import gdask.report.pictures as p; p.draw_one = lambda path: path.no_such_thing"
    program = f"import sys\n{broken}\ncode = {code}\n{DRAW_FRAMES}sys.exit(code)"
    done = subprocess.run([sys.executable, "-P", "-c", program], cwd=tmp_path, check=False)
    assert done.returncode == code


def test_pictures_that_cannot_be_made_are_told_and_stop_nothing(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gdask.campaign.showing._DRAW", "import sys; sys.exit('no room')")
    said: list[str] = []
    outcome = run_campaign(
        options(night.folder / "raw", tmp_path / "out", only=None, until="calibrations"),
        said.append,
    )
    assert outcome.records[FLAT]["status"] == "made" and outcome.failed == []
    assert any(f"{FLAT}: made in" in text and "no pictures (no room)" in text for text in said)


def test_stacks_of_a_night_that_is_not_over_are_called_quick_looks(
    copy: Path, night: Night
) -> None:
    """They are that until a run after the night: nothing is done again for the name."""
    folder, raw = copy / "NGC5128/Kshort/20170505", night.folder / "raw"
    (image,) = folder.glob("*_image.fits")
    content = image.read_bytes()
    for tonight, name in (("20170505", "*_quicklook.fits"), ("20170506", "*_image.fits")):
        outcome = run_campaign(options(raw, copy, tonight=tonight), quiet)
        assert not any(one["ran"] for one in outcome.records.values())
        (found,) = folder.glob("S*.fits")
        assert found.match(name) and found.read_bytes() == content
        (row,) = [row for row in Table.read(copy / "index.ecsv") if row["job"] == STACK]
        assert str(row["product"]) == f"NGC5128/Kshort/20170505/{found.name}"
        words = states(raw, copy)[STACK][1]
        assert any("quick look" in text for text in words) == (tonight == "20170505")


def test_products_are_those_of_the_steps_by_hand(
    done: tuple[Path, Outcome], reduced: Path, night: Night
) -> None:
    out, outcome = done
    assert outcome.failed == [] and not outcome.stopped
    image = (
        out
        / "NGC5128/Kshort/20170505"
        / Path(night.sequence[0]).name.replace(".fits", "_image.fits")
    )
    flat = next((out / "calibrations/20170505").glob("*_flat.fits"))
    for product in (image, flat):
        (by_hand,) = reduced.glob(product.name)
        different = [
            text
            for text in differences(str(product), str(by_hand))
            if not text.startswith(("HISTORY", "PROVENANCE", "REDUCTION", "extensions"))
        ]
        assert [text for text in different if "bytes differ" in text] == []


def test_files_add_up_and_tables_say_what_was_made(
    done: tuple[Path, Outcome], night: Night
) -> None:
    out, _ = done
    files = Table.read(out / "files.ecsv")
    there = {path.name for path in (night.folder / "raw").glob("*.fits")}
    assert set(files["file"]) == there and len(files) == len(there)
    index = Table.read(out / "index.ecsv")
    status = dict(zip(index["job"], index["status"], strict=True))
    assert all(status[name] == "made" for name in (FLAT, FRAMES, STACK))
    frames = index[index["job"] == FRAMES]
    assert len(frames) == len(night.science) and len(set(frames["product"])) == len(frames)
    (stack,) = index[index["job"] == STACK]
    assert stack["frames"] == len(night.science) and stack["fwhm"] > 0 and stack["gates"]
    assert "not run" in status.values()  # the standard was not asked for
    assert (out / "plan" / f"{STACK}.toml").exists()


def test_nothing_is_left_of_the_work_and_nothing_beside_the_raw_files(
    done: tuple[Path, Outcome], night: Night
) -> None:
    out, _ = done
    assert [path.name for path in (out / ".campaign/work").iterdir() if path.is_dir()] == []
    assert {path.suffix for path in (night.folder / "raw").iterdir()} == {".fits"}


def test_an_unchanged_campaign_starts_no_job(copy: Path, night: Night) -> None:
    again = run_campaign(options(night.folder / "raw", copy), quiet)
    assert [one["ran"] for one in again.records.values()] == [False] * 3


def test_moved_and_compressed_raw_files_start_no_job(
    copy: Path, night: Night, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere" / "deep"
    moved.mkdir(parents=True)
    for number, path in enumerate(sorted((night.folder / "raw").glob("*.fits"))):
        shutil.copy2(path, moved)
        if number % 3 == 0:
            subprocess.run(["gzip", str(moved / path.name)], check=True)
    assert {name for name, _ in states(moved, copy).values()} == {"made"}


def test_tables_and_caches_can_be_deleted(copy: Path, night: Night) -> None:
    shutil.rmtree(copy / ".campaign")
    shutil.rmtree(copy / "plan")
    (copy / "files.ecsv").unlink()
    again = run_campaign(options(night.folder / "raw", copy), quiet)
    assert [one["ran"] for one in again.records.values()] == [False] * 3
    assert (copy / "files.ecsv").exists()


def test_a_change_says_what_it_touches(copy: Path, night: Night) -> None:
    raw = night.folder / "raw"
    (copy / "campaign.toml").write_text('[parameters.stack]\n"stackFrames:hsigma" = 2.5\n')
    found = states(raw, copy)
    assert found[FLAT][0] == found[FRAMES][0] == "made"
    assert found[STACK] == ("stale", ("parameter stackFrames:hsigma: default -> 2.5",))
    (copy / "campaign.toml").unlink()
    add_flags(copy, [new_flag(night.science[1], "trail", because="satellite")])
    found = states(raw, copy)
    assert found[FLAT][0] == "made" and found[FRAMES][0] == "stale"
    assert "is not in it any more" in found[FRAMES][1][0]
    assert found[STACK] == ("waiting", (f"if {FRAMES} changes",))


def test_a_product_that_is_gone_is_made_again_and_nothing_else(copy: Path, night: Night) -> None:
    """Early cutoff: the flat is made again with the same content, so nothing else is."""
    next((copy / "calibrations").rglob("*_flat.fits")).unlink()
    again = run_campaign(options(night.folder / "raw", copy), quiet)
    assert {name for name, one in again.records.items() if one["ran"]} == {FLAT}


def test_corrected_headers_and_the_raw_file_as_it_was(copy: Path, night: Night) -> None:
    raw = night.folder / "raw"
    path = Path(night.flat_on[0])
    before = path.read_bytes()
    add_flags(copy, [new_flag(path.name, header="AIRMASS=1.5")])
    assert states(raw, copy)[FLAT][0] == "stale"
    outcome = run_campaign(options(raw, copy, only=None, until="calibrations"), quiet)
    assert outcome.records[FLAT]["ran"] and outcome.records[FLAT]["status"] == "made"
    assert path.read_bytes() == before


@pytest.fixture
def dark_lamp(night: Night, tmp_path: Path) -> Path:
    """Give the raw files with the lamp-on flats of the night spoiled, and good ones of another."""
    raw = tmp_path / "raw"
    shutil.copytree(night.folder / "raw", raw)
    for number, path in enumerate([*night.flat_on, *night.flat_off]):
        name = Path(path).name
        with fits.open(raw / name) as units:
            units[0].header["DATE-OBS"] = "2017-05-08"
            units[0].header["DATALAB"] = f"GS-CAL20170508-3-{number:03d}"
            units.writeto(raw / name.replace("20170505", "20170508"))
    for path in night.flat_on:
        with fits.open(raw / Path(path).name, mode="update") as units:
            for unit in units[1:]:
                unit.data = np.zeros_like(unit.data)
    return raw


def test_a_calibration_that_fails_is_replaced_and_said(dark_lamp: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "out"
    outcome = run_campaign(options(dark_lamp, out, until="frames"), said.append)
    assert outcome.records[FLAT]["status"] == "failed"
    assert outcome.records["flat-GSAOI-20170509-Kshort"]["status"] == "made"
    assert outcome.records[FRAMES]["status"] == "made"
    assert any("takes the next best" in text for text in said)
    again = run_campaign(options(dark_lamp, out, until="frames"), quiet)
    assert not any(one["ran"] for one in again.records.values())
    assert outcome.failed == again.failed == [FLAT]


def test_two_runs_at_once_are_refused_and_a_dead_owner_is_not(tmp_path: Path) -> None:
    code = (
        "import sys, time; from gdask.campaign.run import owned\n"
        "with owned(sys.argv[1]): print('mine', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "mine\n"
    with pytest.raises(GdaskError, match=f"process {other.pid} on"), owned(tmp_path):
        pass
    other.kill()
    other.wait()
    with owned(tmp_path):
        pass
    assert not (tmp_path / ".campaign/owner.json").exists()


@pytest.mark.parametrize("seconds", [1.5, 4.0, 8.0])
def test_a_killed_run_goes_on_with_the_same_bytes(
    done: tuple[Path, Outcome], night: Night, tmp_path: Path, seconds: float
) -> None:
    """SIGKILL at some moment; the same line again ends with the same products."""
    out = tmp_path / "out"
    line = [sys.executable, "-m", "gdask.cli.run", str(night.folder / "raw"), "-o", str(out)]
    line += ["--only", ONLY, "--threads", "2"]
    first = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert subprocess.run(line, stdout=subprocess.DEVNULL, check=False).returncode == 0
    for product in done[0].rglob("*.fits"):
        twin = out / product.relative_to(done[0])
        assert records.content_digest(twin) == records.content_digest(product), product.name


def test_missing_raw_files_stop_before_planning(copy: Path, night: Night, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for path in [*night.flat_on, *night.flat_off]:
        os.link(path, raw / Path(path).name)
    with pytest.raises(GdaskError, match="is a disk not mounted"):
        survey(options(raw, copy), quiet)
    survey(options(raw, copy, only=None, forget_missing=True), quiet)


def test_files_of_every_kind_are_told(night: Night, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    good = Path(night.science[0])
    shutil.copy2(good, raw)
    shutil.copy2(good, raw / "copy_of_it.fits")
    (raw / "text.fits").write_text("this is no FITS file")
    (raw / "short.fits").write_bytes(Path(night.science[1]).read_bytes()[:-50_000])
    with fits.open(night.science[2]) as units:
        units[0].header["INSTRUME"] = "GMOS-S"
        units.writeto(raw / "gmos.fits")
        units[0].header["INSTRUME"] = "GSAOI"
        units[0].header["EXPTIME"] = 1e20
        units.writeto(raw / "exptime.fits")
    (raw / "md5sums.txt").write_text(f"{'0' * 32}  gone.fits\n{'1' * 32}  gmos.fits\n")
    found = {file.name: file for file in scan([str(raw)])}
    assert {name: file.kind for name, file in found.items()} == {
        good.name: "science",
        "copy_of_it.fits": "duplicate",
        "text.fits": "unreadable",
        "short.fits": "unreadable",
        "gmos.fits": "unreadable",
        "exptime.fits": "other",
        "gone.fits": "missing",
    }
    assert "MD5" in found["gmos.fits"].why and "EXPTIME" in found["exptime.fits"].why


def test_the_commands_say_what_there_is(
    done: tuple[Path, Outcome], night: Night, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(done[0])
    assert main(["status", out]) == 0
    text = capsys.readouterr().out
    assert "NGC5128" in text and "files:" in text
    assert main(["why", Path(night.science[0]).name, "-o", out]) == 0
    assert FRAMES in capsys.readouterr().out
    (image,) = (done[0] / "NGC5128/Kshort/20170505").glob("*_image.fits")
    assert main(["why", str(image)]) == 0
    text = capsys.readouterr().out
    assert STACK in text and FRAMES in text and "processed_flat" in text
    assert main(["why", "S20170505S9999.fits", "-o", out]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert main(["run", "-o", out, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert {job["id"] for job in plan["jobs"]} >= {FLAT, FRAMES, STACK}
    assert main(["run", "-o", out, "--only", "taget==x"]) == 2
    assert "did you mean target" in capsys.readouterr().err


def test_costs_are_predicted_from_what_was_measured(
    done: tuple[Path, Outcome],
    night: Night,
    copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of jobs of the same bytes: what they took, whatever else the machine did then or does now."""
    from gdask.campaign.cost import START_SECONDS, keep_rates, measured
    from gdask.campaign.run import predicted

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (copy / "campaign.toml").write_text('[parameters]\n"detectSources:threshold" = 4.0\n')
    campaign, place = survey(options(night.folder / "raw", copy), quiet)
    states = states_of(campaign, records.read_records(copy, campaign), place)
    assert predicted(campaign, states, place, 1)[1] is None  # nothing was measured
    seconds = {name: one["seconds"] for name, one in done[1].records.items()}
    taken = {name: max(value, START_SECONDS) for name, value in seconds.items()}
    rates = [measured(job, done[1].records[job.id]) for job in campaign.jobs]
    keep_rates([one for one in rates if one is not None])
    costs, wall = predicted(campaign, states, place, 1)
    assert {name: one.seconds for name, one in costs.items()} == pytest.approx(taken, rel=1e-6)
    assert wall == pytest.approx(sum(taken.values()), rel=1e-6)


def test_a_run_ends_with_the_numbers_of_its_stacks(
    done: tuple[Path, Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    """One line for each; the same numbers as in the record."""
    from gdask.cli.run import _tell_numbers

    _, outcome = done
    stacks = [job for job in outcome.campaign.jobs if job.kind == "stack"]
    _tell_numbers(outcome)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(stacks) > 0
    for job, line in zip(stacks, lines, strict=True):
        (product,) = outcome.records[job.id]["products"]
        depth = product["numbers"]["depth_5sigma"]
        assert line.startswith(f"{product['path']}: FWHM ") and f"5 sigma at {depth:.4g}" in line


def test_a_cause_that_three_jobs_share_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four jobs three have too little memory: the fourth would meet the same, and is not run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    line = f"simulate campaign {tmp_path / 'sky'} -q --nights 1 --instruments f2 --size 64"
    assert main([*line.split(), "--compress", "none"]) == 0
    said: list[str] = []
    little = Options((str(tmp_path / "sky/raw"),), str(tmp_path / "out"), threads=1)
    little = little._replace(memory="1MiB", until="calibrations")
    outcome = run_campaign(little, said.append)
    assert outcome.stopped.startswith("3 jobs failed alike (too little memory): dark-F2-"), said
    failed = [one for one in outcome.records.values() if one["status"] == "failed"]
    assert len(failed) == 3 and all(len(one["tries"]) == 1 for one in failed)
    assert "give --memory" in failed[0]["cause"]
    flats = [one for name, one in outcome.records.items() if name.startswith("flat-")]
    assert all(one["status"] == "blocked" for one in flats)
    again = run_campaign(little._replace(memory=None), said.append)
    assert not again.stopped and not again.failed


def test_the_command_of_a_bundle_works_in_the_bundle(
    copy: Path, night: Night, tmp_path: Path
) -> None:
    campaign, place = survey(options(night.folder / "raw", copy), quiet)
    (job,) = (one for one in campaign.jobs if one.id == FRAMES)
    job = job._replace(parameters=(*job.parameters, ("prepare:suffix", "_prepared")))
    jobs = tuple(job if one.id == FRAMES else one for one in campaign.jobs)
    make_bundle(campaign._replace(jobs=jobs), place, FRAMES, str(tmp_path / "first"))
    shutil.rmtree(copy)
    folder = (tmp_path / "first").rename(tmp_path / "fb")
    text = (folder / "README").read_text()
    (command,) = (line for line in text.splitlines() if line.startswith("    "))
    lines = (folder / "inputs.list").read_text() + text
    assert str(tmp_path) not in lines and str(night.folder) not in lines
    assert "-c parameters.toml" in command and "processed_flat:calibrations/" in command
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", command], cwd=folder, env=os.environ | {"PATH": path}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(folder.glob("*_skyCorrected.fits")) and not list(tmp_path.glob("*.fits"))


def test_folders_that_cannot_be_those_of_results_are_named(
    night: Night, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    shutil.copy2(night.science[0], raw)
    assert main(["run", str(raw), "-o", str(raw)]) == 2
    assert "results cannot go into the folder of raw files" in capsys.readouterr().err
    assert main(["status", str(tmp_path / "nosuch")]) == 2
    assert "nosuch: no such folder" in capsys.readouterr().err


def test_reasons_name_files_and_sides(copy: Path, night: Night) -> None:
    raw, name = night.folder / "raw", Path(night.science[0]).name
    add_flags(copy, [new_flag(name, "bad", because="x")])
    assert f"input {name} is not in it any more" in states(raw, copy)[FRAMES][1]
    first = {"parts": {"inputs": {"a@1": "x"}}, "names": {"a@1": "a.fits"}}
    second = {"parts": {"inputs": {}, "recipe": None, "bits": None}}
    first["parts"] |= {"recipe": None, "bits": None}
    for one in (first, second):
        one["parts"] |= {k: {} for k in ("calibrations", "frames", "headers", "parameters")}
    assert between(first, second) == ["input a.fits is only in the first"]
    assert between(second, first) == ["input a.fits is only in the second"]


def test_a_calibration_goes_into_stacks(copy: Path, night: Night) -> None:
    campaign, _ = survey(options(night.folder / "raw", copy), quiet)
    (job,) = (one for one in campaign.jobs if one.id == FRAMES)
    (flat,) = (one for one in campaign.files if one.path == night.flat_on[0])
    lines = list(ends_of(flat, job, campaign, records.read_records(copy, campaign)))
    assert lines and not [line for line in lines if "if it is" in line]
    assert any(line.startswith(f"goes into {STACK} (made)") for line in lines)


def test_a_sky_frame_is_said_to_be_one(copy: Path, night: Night) -> None:
    """Frames on sky alone make no product, and nobody waits for them in a stack."""
    campaign, _ = survey(options(night.folder / "raw", copy), quiet)
    (job,) = (one for one in campaign.jobs if one.id == FRAMES)
    known = records.read_records(copy, campaign)
    made = {one["path"] for one in known[FRAMES]["products"]}
    skies = [
        one
        for one in campaign.files
        if one.key in job.inputs and not any(stem_of(one.name) in path for path in made)
    ]
    assert skies
    for file in skies:
        (line,) = ends_of(file, job, campaign, known)
        assert line.startswith("is sky for the frames on target there")
    for file in skies:  # before anything is made, nobody knows yet
        assert all("if it is on target" in line for line in ends_of(file, job, campaign, {}))


def test_a_flag_is_taken_back(copy: Path, night: Night, capsys: pytest.CaptureFixture[str]) -> None:
    raw, name = night.folder / "raw", Path(night.science[0]).stem
    before = states(raw, copy)[FRAMES]
    words = ["flag", name, "-o", str(copy)]
    assert main([*words, "--as", "trail", "--because", "satellite"]) == 0
    assert states(raw, copy)[FRAMES] != before
    capsys.readouterr()
    assert main([*words, "--withdraw", "--as", "bad"]) == 2
    assert main([*words, "--withdraw", "--because", "a reflection"]) == 0
    assert "1 flag withdrawn" in capsys.readouterr().out
    assert states(raw, copy)[FRAMES] == before and read_flags(copy) == []
    rows = Table.read(copy / "flags.ecsv")
    assert list(rows["flag"]) == ["trail", "withdrawn"]  # a log: nothing is deleted
    assert main([*words, "--withdraw"]) == 2
    assert f"{name}: no flag of it holds; files with flags: none" in capsys.readouterr().err
    assert main([*words, "--as", "cloud", "--because", "again"]) == 0
    assert [one.flag for one in read_flags(copy)] == ["cloud"]
