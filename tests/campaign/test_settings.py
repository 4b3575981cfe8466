"""campaign.toml, flags and tables: what is refused, and that nothing is lost in writing."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from astropy.table import Table
from conftest import Night
from test_plan import flats, frames

from gdask.campaign.describe import check_known, describe
from gdask.campaign.gates import gates_of
from gdask.campaign.job import Campaign, Job
from gdask.campaign.pinned import pinned_lines
from gdask.campaign.plan import make_plan
from gdask.campaign.settings import Settings, add_flags, new_flag, pin, read_flags, read_settings
from gdask.campaign.survey import check_parameters
from gdask.campaign.tables import read_table, toml_lines, write_table
from gdask.cli.flag import check_calibration
from gdask.model import UsageError
from gdask.reduction.gates import shipped


@pytest.mark.parametrize(("text", "message"), [
    ("[campain]\n", r"line 1: campain: expected a table: .*did you mean campaign"),
    ("[campaign]\n\nnights = 'combin'\n", r"line 3: nights: combin came, expected combine, apart"),
    ("[campaign]\nnigths = 'apart'\n", r"line 2: nigths: expected .*did you mean nights"),
    ("[exclude]\nS20170505S0095 = 3\n", r"line 2: S20170505S0095: 3 came, a text in quotes"),
    ("[exclude]\nS1 = ''\n", "line 2: S1: a reason was expected"),
    ("[skies]\nNGC5128 = 'x'\n", r"line 2: NGC5128: a list of names"),
    ("[jobs.a]\ninput = []\n", r"line 2: input: expected .*did you mean inputs"),
    ("[campaign\n", "cannot be read"),
    ("# nights are kept\n[campaign]\nnights = 'combin'\n", "line 3: nights: combin came"),
    ("[skies]\na = ['b']\nb = 'x'\n", "line 3: b: a list of names"),
    ("[exclude]\nS1.fits = 'x'\n", "line 2: S1: .*a name with dots needs quotes"),
    ("[catalogs]\nNGC5128 = 'nowhere.fits'\n", "line 2: NGC5128: .*: no such catalogue file"),
    ("[catalogs]\nNGC5128 = '/etc/passwd'\n", "NGC5128: /etc/passwd: not a known cat"),
    ("[jobs.a]\ninputs = 'x'\n", "line 2: inputs: a list of exposures"),
    ("[jobs.a]\ncalibrations = 3\n", "line 2: calibrations: 3 came, a table was expected"),
    ("[jobs.a]\nparameters = []\n", "line 2: parameters: .* came, a table was expected"),
    ("[campaign]\naccept_level = true\n", "line 2: accept_level: True came, expected 0, 1, 2"),
])  # fmt: skip
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "campaign.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_settings(tmp_path)


def test_a_bomb_is_named(tmp_path: Path) -> None:
    """Texts that take all memory, or all of Python's stack."""
    for text, message in (
        ("a = " + "[" * 20000, "brackets are nested too deeply"),
        ("#" * (17 << 20), "longer than 16 MB"),
    ):
        (tmp_path / "campaign.toml").write_text(text)
        with pytest.raises(UsageError, match=f"campaign.toml: cannot be read: {message}"):
            read_settings(tmp_path)


@pytest.mark.parametrize("name", ["campaign.toml", "gates.toml", "flags.ecsv"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, name: str, kind: str) -> None:
    """A pipe would be waited for, /dev/zero read until memory is full."""
    path = tmp_path / name
    {"pipe": os.mkfifo, "folder": Path.mkdir, "device": lambda p: p.symlink_to("/dev/zero")}[kind](
        path
    )
    with pytest.raises(UsageError, match=f"{name}: .*(not a regular file|directory)"):
        read_flags(tmp_path) if name == "flags.ecsv" else read_settings(tmp_path)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_limit_that_nothing_can_fail_is_refused(tmp_path: Path, value: str) -> None:
    (tmp_path / "gates.toml").write_text(f"[fwhm]\nfailure_above = {value}\n")
    with pytest.raises(UsageError, match="a finite number was expected; off = true"):
        read_settings(tmp_path)


def test_flags_are_appended_and_read_back(tmp_path: Path) -> None:
    flags = [
        new_flag("a b.fits", "cloud", because='thin "cirrus" # all night'),
        new_flag("c.fits", header="EXPTIME=60"),
    ]
    add_flags(tmp_path, flags[:1])
    add_flags(tmp_path, flags[1:])
    assert read_flags(tmp_path) == flags
    assert list(Table.read(tmp_path / "flags.ecsv")["file"]) == ["a b.fits", "c.fits"]


@pytest.mark.parametrize(("given", "message"), [
    ({"flag": "clouds"}, "did you mean cloud"),
    ({"flag": "cloud", "use": "skies"}, "expected sky, stack, all"),
    ({"header": "EXPTIME"}, "expected KEYWORD=VALUE"),
    ({"header": "NAXIS=3"}, "NAXIS says how the file is built"),
    ({"header": "naxis2=3"}, "NAXIS2 says how the file is built"),
    ({"header": "BZERO=0"}, "BZERO says how the file is built"),
    ({"header": "EXPTIME=abc"}, r"^EXPTIME=abc: no keyword and value of FITS; .*EXPTIME='abc'$"),
    ({"header": "EXPTIME='abc'"}, "EXPTIME = abc: a number from"),
    ({"header": "EXPTIME=-5"}, "EXPTIME = -5: a number from"),
    ({"good_until": "tomorrow"}, "expected a date"),
    ({}, "nothing to flag"),
])  # fmt: skip
def test_wrong_flags_are_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        new_flag("a.fits", **given)


def test_tables_are_ecsv_that_astropy_reads(tmp_path: Path) -> None:
    rows = [
        {"a": 1, "b": 0.1, "c": "x y", "d": None, "e": None},
        {"a": 2, "b": 2, "c": "", "d": "\x1b[0m", "e": 3.5},
    ]
    write_table(tmp_path / "t.ecsv", rows, ("a", "b", "c", "d", "e"), "about")
    table = Table.read(tmp_path / "t.ecsv")
    assert table["e"].mask.tolist() == [True, False] and table["e"][1] == 3.5
    assert list(table["a"]) == [1, 2] and list(table["b"]) == [0.1, 2.0]
    assert read_table(tmp_path / "t.ecsv")[0] == {
        "a": "1",
        "b": "0.1",
        "c": "x y",
        "d": "",
        "e": "",
    }
    assert "\x1b" not in (tmp_path / "t.ecsv").read_text()


def test_a_pinned_job_is_read_back(tmp_path: Path) -> None:
    lines = toml_lines({"inputs": ["a@1", 'b"@2'], "parameters": {"x:y": "1"}}, "jobs.stack-1")
    pin(tmp_path, "stack-1", lines)
    assert read_settings(tmp_path).jobs["stack-1"] == {
        "inputs": ["a@1", 'b"@2'],
        "parameters": {"x:y": "1"},
    }
    with pytest.raises(UsageError, match="pinned already"):
        pin(tmp_path, "stack-1", lines)


def test_a_job_whose_name_has_dots_is_pinned(tmp_path: Path) -> None:
    job = Job("dark-F2-20170505-1.5s", "dark", "F2", "", "", "20170505", "f", takes=("a", "b"))
    pin(tmp_path, job.id, pinned_lines(job, Campaign((job,), (), ())))
    assert read_settings(tmp_path).jobs[job.id]["takes"] == ["a", "b"]


@pytest.mark.parametrize("kind", ["frames", "stack", "flat"])
def test_what_is_pinned_is_the_plan_and_can_be_edited(tmp_path: Path, kind: str) -> None:
    """Also of a job without parameters; each line that is offered as a comment may be taken."""
    files = [*frames(5), *frames(6), *flats(5)]
    plan = make_plan(files)
    job = next(one for one in reversed(plan.jobs) if one.kind == kind)
    lines = pinned_lines(job, plan)
    pin(tmp_path, job.id, lines)
    (note,) = set(make_plan(files, read_settings(tmp_path)).job(job.id).notes) - set(job.notes)
    assert note == "pinned in campaign.toml"
    held = make_plan(files, read_settings(tmp_path)).job(job.id)
    assert held.inputs == job.inputs and held.takes == job.takes
    assert held.parameters == job.parameters and held.needs == job.needs
    offered = [line.removeprefix("# ") for line in lines if re.match(r'# "\w+:\w+" = ', line)]
    assert len(offered) > 10
    at = lines.index(f"[jobs.{job.id}.parameters]") + 1
    edited = "\n".join([*lines[:at], *offered, *lines[at:]])
    (tmp_path / "campaign.toml").write_text(edited)
    settings = read_settings(tmp_path)
    check_parameters(settings)
    assert len(make_plan(files, settings).job(job.id).parameters) >= len(offered)
    if kind == "stack":
        fewer = Settings(jobs={job.id: {"takes": list(job.takes[:1])}})
        assert make_plan(files, fewer).job(job.id).takes == job.takes[:1]
        with pytest.raises(UsageError, match="no job whose frames it can stack"):
            make_plan(files, Settings(jobs={job.id: {"takes": ["flat-1"]}}))


def test_catalogs_are_beside_campaign_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.fits").write_text("")
    (tmp_path / "campaign.toml").write_text("[catalogs]\nNGC5128 = 'c.fits'\n")
    monkeypatch.chdir("/")
    assert read_settings(tmp_path).catalogs == {"NGC5128": str(tmp_path / "c.fits")}


def test_numbers_stay_numbers_where_some_are_not_there(tmp_path: Path) -> None:
    rows = [{"n": 5, "x": 1.5, "ok": True}, {"n": None, "x": None, "ok": None}, {"n": 7, "x": 2}]
    write_table(tmp_path / "t.ecsv", rows, ("n", "x", "ok"))
    table = Table.read(tmp_path / "t.ecsv")
    assert [table[name].dtype.kind for name in ("n", "x", "ok")] == ["i", "f", "b"]
    assert list(table["n"].mask) == [False, True, False] and table["x"].sum() == 3.5


def test_own_gates_change_limits_and_leave_the_others(tmp_path: Path) -> None:
    assert gates_of(tmp_path) == shipped()
    (tmp_path / "gates.toml").write_text("[mean_counts]\nwarning_below = 9000\n")
    found = gates_of(tmp_path)
    assert found["mean_counts"]["warning_below"] == 9000
    assert found["mean_counts"]["failure_below"] == shipped()["mean_counts"]["failure_below"]
    assert found.keys() == shipped().keys()


def test_a_keyword_that_no_file_has_is_no_correction(night: Night) -> None:
    files = [describe(night.science[0]), describe(night.flat_on[0])]
    for card in ("EXPTIME=60", "object='x'", "FILTER1='H'"):
        check_known(card, files[:1], files)
    with pytest.raises(UsageError, match="no file here has a keyword EXPTIM; did you mean EXPTIME"):
        check_known("EXPTIM=60", files[:1], files)


def test_only_a_calibration_is_good_until_a_night(night: Night) -> None:
    files = [describe(night.science[0]), describe(night.flat_on[0])]
    with pytest.raises(UsageError, match="is no calibration .science"):
        check_calibration("S1", files[:1], ())
    check_calibration("S2", files[1:], ())
    job = Job("flat-a", "flat", "GSAOI", "", "K", "20170505", "calibrations")
    check_calibration("flat-a", (), (job,))
    with pytest.raises(UsageError, match="is no calibration .frames"):
        check_calibration("f", (), (job._replace(id="f", kind="frames"),))


def test_the_gate_of_weights_reaches_the_recipe(tmp_path: Path) -> None:
    """As a parameter of the stack, so that another limit makes stacks stale, and nothing else."""
    files = [*frames(5), *frames(6), *flats(5)]
    before = make_plan(files)
    (tmp_path / "gates.toml").write_text(
        "[weight]\nfailure_below = 0.2\n[mean_counts]\noff = true\n"
    )
    after = make_plan(files, read_settings(tmp_path))
    for then, now in zip(before.jobs, after.jobs, strict=True):
        new = dict(now.parameters).items() - dict(then.parameters).items()
        expected = (
            {("scale_counts_to_reference:min_weight", "0.2")} if now.kind == "stack" else set()
        )
        assert new == expected
    check_parameters(read_settings(tmp_path))
    (tmp_path / "campaign.toml").write_text(
        '[parameters.stack]\n"scaleCountsToReference:min_weight" = 0\n'
    )
    stack = next(
        job for job in make_plan(files, read_settings(tmp_path)).jobs if job.kind == "stack"
    )
    assert dict(stack.parameters) == {"scaleCountsToReference:min_weight": "0"}
