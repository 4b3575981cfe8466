"""`gdask run --submit`: what a batch system is asked, and what an element does by itself.

The batch system only remembers here; tests/cluster/test_submit_slurm.py has a real one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Night
from fake_slurm import Fake

from gdask.campaign import cost, elsewhere, records
from gdask.campaign.batch import Patience, Pbs, Request, Slurm, ask, parse_qstat
from gdask.campaign.job import Job
from gdask.campaign.jobs import run_job
from gdask.campaign.state import states_of
from gdask.campaign.submissions import LAST, live_elements, read_arrays, with_queue
from gdask.campaign.submit import Submitted, Wish, _arrays, submit_campaign
from gdask.campaign.survey import Options, survey
from gdask.campaign.tables import read_table
from gdask.cli.run import main as run
from gdask.cli.status import main as status
from gdask.model import GdaskError, UsageError

SHORT = Patience(30.0, 0.01)
FLAT, FRAMES = "flat-GSAOI-20170505-Kshort", "frames-GSAOI-NGC5128-Kshort-20170505"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Give a SLURM that only remembers, whose commands are found first."""
    fake = Fake(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{fake.folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return fake


@pytest.fixture
def options(night: Night, tmp_path: Path) -> Options:
    return Options((str(night.folder / "raw"),), str(tmp_path / "out"), threads=1)


def submit(options: Options, patience: Patience = SHORT, /, **wish: object) -> Submitted:
    return submit_campaign(options, Wish("slurm")._replace(**wish), print, Slurm(patience))


def planned(options: Options) -> list[str]:
    return sorted(job.id for job in survey(options)[0].jobs)


def a_job(name: str, kind: str = "frames", needs: tuple[str, ...] = ()) -> Job:
    return Job(name, kind, "GSAOI", "T", "K", "20170505", "T/K", takes=needs)


# What is asked ---------------------------------------------------------------------------------


def test_arrays_are_cut_to_the_sites_size_and_come_in_order_of_need() -> None:
    flats = [a_job(f"flat-{n}", "flat") for n in range(3)]
    frames = [a_job(f"frames-{n}", needs=(f"flat-{n % 3}",)) for n in range(25)]
    stacks = [a_job(f"stack-{n}", "stack", (f"frames-{n}",)) for n in range(25)]
    groups = list(_arrays([*flats, *frames, *stacks], 10))
    assert [(one[0].kind, len(one)) for one in groups] == [
        ("flat", 3), ("frames", 10), ("frames", 10), ("frames", 5), ("stack", 10), ("stack", 10),
        ("stack", 5),
    ]  # fmt: skip
    assert sorted(job.id for one in groups for job in one) == sorted(
        job.id for job in [*flats, *frames, *stacks]
    )


def test_each_job_is_submitted_once_after_what_it_needs(slurm: Fake, options: Options) -> None:
    done = submit(options)
    assert sorted(done.new) == sorted(slurm.submitted()) == planned(options)
    arrays = {array.name: array for array in read_arrays(options.out)}
    by_id = {job["id"]: job for job in slurm.state()["jobs"]}
    jobs = {job.id: job for job in survey(options)[0].jobs}
    id_of = {name: array.id for array in arrays.values() for name in array.jobs}
    for job in jobs.values():
        assert {id_of[need] for need in job.needs} <= set(by_id[id_of[job.id]]["after"])
    last = by_id[id_of["(tables)"]]
    assert set(last["after"]) == set(by_id) - {last["id"]}
    folder = Path(done.folder)
    assert (folder / "plan" / f"{FLAT}.toml").exists() and (folder / "campaign.json").exists()
    assert len(list(folder.glob("*.sh"))) == len(by_id)
    assert (Path(options.out) / "index.ecsv").exists()


def test_a_second_submission_submits_none_twice(slurm: Fake, options: Options) -> None:
    submit(options)
    calls = slurm.calls("sbatch")
    again = submit(options)
    assert not again.new and sorted(again.before) == planned(options)
    assert slurm.calls("sbatch") == calls and again.cancelled == ()


def test_a_command_that_fails_is_asked_again(slurm: Fake, options: Options) -> None:
    slurm.fail("scontrol", "Unable to contact slurm controller (connect failure)")
    slurm.fail("sbatch", *["Batch job submission failed: Resource temporarily unavailable"] * 3)
    slurm.fail("squeue", "Unable to contact slurm controller", "Socket timed out")
    submit(options)
    assert sorted(slurm.submitted()) == planned(options)


def test_sbatch_that_fails_though_it_took_the_job(slurm: Fake, options: Options) -> None:
    """SLURM's "Socket timed out": asked again, the same job would be there twice."""
    slurm.fail("sbatch", "taken", "", "taken")
    submit(options)
    assert sorted(slurm.submitted()) == planned(options)
    assert all(array.id for array in read_arrays(options.out))


def test_a_refused_request_and_a_dead_controller_end_in_a_line(
    slurm: Fake, options: Options
) -> None:
    slurm.fail("sbatch", "invalid partition specified: nope")
    with pytest.raises(GdaskError, match=r"sbatch refuses: .*invalid partition specified: nope"):
        submit(options, partition="nope")
    slurm.fail("sbatch", *["Unable to contact slurm controller"] * 50)
    with pytest.raises(GdaskError, match=r"sbatch has failed for 0 s.*again goes on"):
        submit(options, Patience(0.2, 0.05))
    slurm.fail("sbatch")
    submit(options)
    assert sorted(slurm.submitted()) == planned(options)


@pytest.mark.parametrize("arrays", [1, 3])
def test_a_command_that_is_killed_before_it_knows_the_id(
    slurm: Fake, options: Options, arrays: int
) -> None:
    """The next one finds the array in the queue by its name, and submits the rest.

    That may be nothing but the last job, which writes the tables.
    """
    slurm.fail("sbatch", *[""] * (arrays - 1), "killed")
    command = [sys.executable, "-m", "gdask.cli.run", *options.places, "-o", options.out]
    done = subprocess.run([*command, "--submit", "slurm", "--threads", "1"], check=False)
    assert done.returncode == -9 and len(slurm.state()["jobs"]) == arrays
    found = [bool(array.id) for array in read_arrays(options.out)]
    assert found == [*[True] * (arrays - 1), False]
    submit(options)
    assert sorted(slurm.submitted()) == planned(options)
    by_id = {job["id"]: job for job in slurm.state()["jobs"]}
    known = {array.id: array for array in read_arrays(options.out)}
    assert known.keys() == by_id.keys()
    (last,) = (id_ for id_, array in known.items() if array.jobs == (LAST,))
    assert set(by_id[last]["after"]) == by_id.keys() - {last}
    assert submit(options).new == () and len(slurm.state()["jobs"]) == len(by_id)


def test_what_can_never_start_is_cancelled_and_submitted_anew(
    slurm: Fake, options: Options
) -> None:
    submit(options)
    slurm.change("2_0", "PENDING", "DependencyNeverSatisfied")
    stuck = read_arrays(options.out)[1].jobs[0]
    states = with_queue(dict.fromkeys(planned(options), None), live_elements(options.out, SHORT))
    assert "cannot start" in states[stuck].reasons[1]
    done = submit(options)
    assert done.cancelled == done.new == (stuck,)
    assert sorted(slurm.submitted()) == planned(options)


def test_what_waits_by_an_old_plan_is_submitted_by_the_new_one(
    slurm: Fake, options: Options
) -> None:
    """What runs by it is left alone, and the new one waits for that."""
    submit(options)
    first = read_arrays(options.out)[0]
    slurm.change(f"{first.id}_0", "RUNNING")
    Path(options.out, "campaign.toml").write_text('[parameters]\n"prepare:bad_wcs" = "ignore"\n')
    done = submit(options)
    assert set(done.cancelled) == set(planned(options)) - set(first.jobs)
    assert sorted(done.new) == planned(options)
    again = [array for array in read_arrays(options.out) if first.jobs[0] in array.jobs]
    (job,) = (job for job in slurm.state()["jobs"] if job["id"] == again[-1].id)
    assert len(again) == 2 and first.id in job["after"]


def test_a_run_beside_jobs_in_the_queue_is_refused_and_status_shows_them(
    slurm: Fake, options: Options, capsys: pytest.CaptureFixture
) -> None:
    submit(options)
    assert run(["-o", options.out]) == 1
    assert "are in the queue of slurm" in capsys.readouterr().err
    slurm.change("1_0", "RUNNING")
    assert status([options.out]) == 0
    shown = capsys.readouterr().out
    assert "1 running" in shown and f"{len(planned(options)) - 1} waiting" in shown


def test_memory_and_time_are_what_is_said_or_what_like_jobs_took(
    slurm: Fake, options: Options
) -> None:
    campaign, _ = survey(options)
    flat = campaign.job(FLAT)
    cost.keep_rates([cost.Measured("GSAOI", "flat", flat.raw_bytes, 1, 601.5, 1 << 30, 1)])
    submit(options)
    found = {job["name"].rpartition("-")[2]: job["options"] for job in slurm.state()["jobs"]}
    # 1.5 times 1 GiB and 512 MiB; 3 times 601.5 s and 5 minutes; nothing like frames was measured
    assert (found["flat"]["mem"], found["flat"]["time"]) == ("2048M", "36")
    assert not {"mem", "time"} & set(found["frames"])
    slurm.answer(jobs=[])
    submit(options, memory=4096, minutes=90, account="ast1", options=("--qos=long",))
    said = slurm.state()["jobs"][0]["options"]
    assert (said["mem"], said["time"], said["account"], said["qos"]) == (
        "4096M", "90", "ast1", "long",
    )  # fmt: skip


def test_what_was_killed_for_want_of_memory_or_time_gets_twice_as_much(
    slurm: Fake, options: Options
) -> None:
    submit(options, memory=1000, minutes=30)
    ids = {job["name"].rpartition("-")[2]: job["id"] for job in slurm.state()["jobs"]}
    ends = f"{ids['flat']}_0|OUT_OF_MEMORY\n{ids['frames']}_0|TIMEOUT\n"
    slurm.answer(jobs=[], ends=ends)
    submit(options, memory=1000, minutes=30)
    found = {job["name"].rpartition("-")[2]: job["options"] for job in slurm.state()["jobs"]}
    assert (found["flat"]["mem"], found["flat"]["time"]) == ("2000M", "30")
    assert (found["frames"]["mem"], found["frames"]["time"]) == ("1000M", "60")
    assert (found["stack"]["mem"], found["stack"]["time"]) == ("1000M", "30")


def test_jobs_of_another_cluster_are_not_taken_for_ended(slurm: Fake, options: Options) -> None:
    submit(options)
    slurm.answer(jobs=[], cluster="two")
    with pytest.raises(GdaskError, match="submitted on the cluster one, and this is two"):
        submit(options)
    assert not slurm.state()["jobs"]


# Scripts ---------------------------------------------------------------------------------------


def test_scripts_of_slurm_and_pbs() -> None:
    """Of PBS there is no server to try: its scripts are compared as text only."""
    request = Request("gdask-1-flat", 3, "/data/50% done", ("python", "-m", "x", "/data/50% done"))
    text = Slurm().script(request)
    assert '#SBATCH "--output=/data/50%% done/logs/gdask-1-flat-%a.log"' in text
    assert "#SBATCH --array=0-2\n" in text and "--time" not in text and "--mem" not in text
    assert "exec python -m x '/data/50% done' $SLURM_ARRAY_TASK_ID\n" in text
    full = request._replace(
        threads=8, memory=3000, minutes=90, partition="long", account="a1", options=("-l x=1",)
    )
    assert Pbs().script(full) == (
        "#!/bin/sh\n#PBS -N gdask-1-flat\n#PBS -J 0-2\n"
        "#PBS -l select=1:ncpus=8:mem=3000mb\n#PBS -l walltime=01:30:00\n#PBS -q long\n#PBS -A a1\n"
        "#PBS -j oe\n#PBS -r y\n#PBS -V\n#PBS -l x=1\n\n"
        "# One element is one job of the campaign. It looks itself at what it needs.\n"
        "cd '/data/50% done' || exit 1\n"
        "exec python -m x '/data/50% done' ${PBS_ARRAY_INDEX:-0}\n"
    )
    assert "-J" not in Pbs().script(full._replace(elements=1))  # PBS has no array of one


def test_the_queue_of_pbs_is_read() -> None:
    text = (
        "Job Id: 12[].pbs\n    Job_Name = gdask-1-flat\n    job_state = B\n\n"
        "Job Id: 12[0].pbs\n    Job_Name = gdask-1-flat\n    job_state = R\n"
        "    Variable_List = A=1,\n\tB=2\n\n"
        "Job Id: 12[1].pbs\n    Job_Name = gdask-1-flat\n    job_state = X\n\n"
        "Job Id: 13.pbs\n    Job_Name = gdask-1-last\n    job_state = H\n"
        "    depend = afterany:12[].pbs\n\n"
    )
    found = [(one.name, one.id, one.number, one.state) for one in parse_qstat(text)]
    assert found == [
        ("gdask-1-flat", "12[].pbs", 0, "running"),
        ("gdask-1-last", "13.pbs", 0, "waiting"),
    ]


# What an element does --------------------------------------------------------------------------


def test_an_element_trusts_records_and_not_the_batch_system(options: Options) -> None:
    """Without the flat, and with a flat of an earlier plan, its frames are blocked."""
    campaign, place = survey(options)
    folder = elsewhere.new_folder(place.out)
    elsewhere.hand_out(folder, campaign, [FRAMES], place)
    record = elsewhere.do_job(folder, FRAMES, look_again=0.0)
    assert (record["status"], record["cause"]) == ("blocked", f"{FLAT} not run")
    flat = campaign.job(FLAT)
    old = {"status": "made", "key": "of an earlier plan", "parts": {}, "products": []}
    records.write_record(place.out, flat, old)
    record = elsewhere.do_job(folder, FRAMES, look_again=0.0)
    assert (record["status"], record["cause"]) == ("blocked", f"{FLAT} stale")
    assert records.read_record(place.out, campaign.job(FRAMES))["status"] == "blocked"


def test_what_is_handed_out_is_the_plan(options: Options) -> None:
    """Jobs, files and flags come back as they were; the key of a job is that of a run here."""
    campaign, place = survey(options)
    folder = elsewhere.new_folder(place.out)
    elsewhere.hand_out(folder, campaign, [job.id for job in campaign.jobs], place)
    assert elsewhere.read_campaign(folder).jobs == campaign.jobs
    for job in campaign.jobs:
        handed = elsewhere.read_handed(folder, job.id)
        assert handed.job == job and handed.place == place
        assert {need.id for need in handed.needs} >= set(job.needs)
        assert set(job.inputs) <= set(handed.files)
    states = states_of(campaign, {}, place)
    assert all(state.runs for state in states.values())


def test_checksums_of_elements_are_taken_over_and_not_computed_again(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An element leaves the scan's cache alone: many of them write at a time."""
    from gdask.campaign import scan, sums

    campaign, place = survey(options)
    flat = campaign.job(FLAT)
    files = {file.key: file for file in campaign.files}
    shared = sums.SharedSums(place.out, FLAT)
    before = Path(place.cache).read_bytes()
    found = {key: shared.of(files[key]) for key in flat.inputs}
    shared.keep()
    assert Path(place.cache).read_bytes() == before
    assert found == {key: scan.data_sums(files[key].path) for key in flat.inputs}
    campaign, place = survey(options)
    monkeypatch.setattr(scan, "data_sums", lambda path: pytest.fail(f"{path} is read again"))
    assert found == {key: place.sum_of(files[key]) for key in flat.inputs}


def test_blocked_jobs_are_recorded_and_not_submitted(slurm: Fake, options: Options) -> None:
    campaign, place = survey(options)
    flat = campaign.job(FLAT)
    files = {file.key: file for file in campaign.files}
    Path(options.out, "campaign.toml").write_text(
        '[parameters.flat]\n"addDQ:user_bpm" = "/nowhere/bpm.fits"\n'
    )
    campaign, place = survey(options)
    flat = campaign.job(FLAT)
    assert run_job(flat, files, {}, place)["status"] == "failed"
    done = submit(options)
    assert FLAT not in done.new and FRAMES in done.blocked
    rows = {row["job"]: row for row in read_table(Path(options.out, "index.ecsv"))}
    assert rows[FRAMES]["status"] == "blocked" and "failed" in rows[FRAMES]["because"]


def test_a_machine_without_slurm_says_so_at_once(
    options: Options, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="^sbatch: not found; "):
        submit_campaign(options, Wish("slurm"))
    with pytest.raises(UsageError, match="^qsub: not found; "):
        submit_campaign(options, Wish("pbs"))
    assert not Path(options.out).exists()


def test_a_command_that_fails_is_asked_again_and_says_so_once(tmp_path: Path) -> None:
    command = tmp_path / "squeue"
    command.write_text("#!/bin/sh\necho no controller >&2\nexit 1\n")
    command.chmod(0o755)
    said: list[str] = []
    with pytest.raises(GdaskError, match="has failed"):
        ask([str(command)], Patience(0.2, 0.02, said.append))
    assert len(said) == 1 and "fails: no controller; asked again for" in said[0]
