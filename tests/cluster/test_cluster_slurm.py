"""The GSAOI reduction through a real SLURM of one node.

By a batch script, by worker jobs, and by jobs that reach their wall time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import slurm_node
from gdask.cluster.__main__ import main as tool
from test_cluster import IMAGE, planes

pytestmark = pytest.mark.skipif(bool(slurm_node.missing()), reason=f"SLURM: {slurm_node.missing()}")

BIN = Path(sys.executable).parent
PARAMETERS = ["-p", "prepare:bad_wcs=fix", "skyCorrect:offset_sky=False"]

#: The default recipe with a task, in the phase that ends at the given call, that never ends the
#: first time it is run.
STUCK = '''
import os
import time

from gdask.recipes.common import align, calibrate, mask_sky_sources, stack

from gdask.steps import associate_sky, detect_sources, sky_correct


def hang_once(block, marker):
    """Return the block; the first of all tasks that come here hangs."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return block
    time.sleep(3600)
    return block


def reduce(run, frames):
    targets, skies = mask_sky_sources(run, calibrate(run, frames))
    targets = run(sky_correct, run(associate_sky, targets, skies), skies)
    first = targets[0]
    data, marker = first["data"].data, os.path.abspath("hanging")
    data = data.map_blocks(hang_once, marker=marker, dtype="f4", meta=data._meta)
    targets = (first.assign(data=(first["data"].dims, data)), *targets[1:])
    frames = align(run, run.save(run.each(detect_sources, targets)))
    return run.write(stack(run, frames), "_image")
'''


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Give the environment of a running SLURM, with gdask's commands on PATH."""
    with slurm_node.one_node(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment | {
            "PATH": f"{BIN}{os.pathsep}{environment['PATH']}",
            "GDASK_SCHEDULER_OPTIONS": "--host 127.0.0.1",
            "GDASK_WORKER_OPTIONS": "--host 127.0.0.1",
        }


@pytest.fixture
def science(calibrated: Path, night: object) -> list[str]:
    """Give the files of the science reduction; the working folder has flat and BPM at hand."""
    Path("stuck.py").write_text(STUCK)
    return night.sequence


def submit(environment: dict[str, str], command: list[str], *options: str) -> str:
    """Submit a job and give its number; its log is job.log in the working folder."""
    done = subprocess.run(
        ["sbatch", "--parsable", "--output=job.log", *options, "gdask.sh", *command],
        env=environment | {"DRAGONSRC": os.environ["DRAGONSRC"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def script(capsys: pytest.CaptureFixture) -> None:
    """Print the shipped batch script into a file, as a user does."""
    assert tool(["script", "slurm"]) == 0
    Path("gdask.sh").write_text(capsys.readouterr().out)


def shorten(job: str, environment: dict[str, str], seconds: int) -> None:
    """Once the job hangs, let its wall time end in `seconds`.

    SLURM looks every 30 s whether to warn.
    """
    slurm_node.until(Path("hanging").exists, 600)
    change(
        job,
        environment,
        f"EndTime={time.strftime('%Y-%m-%dT%H:%M:%S', time.localtime(time.time() + seconds))}",
    )


def change(job: str, environment: dict[str, str], setting: str) -> None:
    subprocess.run(["scontrol", "update", f"JobId={job}", setting], env=environment, check=True)


def nobody_is_here() -> bool:
    """Tell whether no other process has this working folder."""
    return all(
        process.pid == os.getpid() or process.info["cwd"] != os.getcwd()
        for process in psutil.process_iter(["cwd"])
    )


def assert_same_bytes(reduced: Path) -> None:
    """`reduced` was made by threads."""
    found, expected = planes(IMAGE), planes(reduced / IMAGE)
    assert (
        found.keys() == expected.keys()
        and [key for key in found if found[key] != expected[key]] == []
    )


def test_a_batch_job_that_reaches_its_wall_time_goes_on(
    slurm: dict, science: list, reduced: Path, capsys: pytest.CaptureFixture
) -> None:
    """The job hangs until SLURM's warning, and puts itself into the queue again.

    It goes on from its last complete phase.
    """
    script(capsys)
    job = submit(
        slurm,
        ["reduce", *science, "-r", "stuck.py:reduce", *PARAMETERS],
        "--time=10",
        "--signal=B:USR1@30",
    )
    shorten(job, slurm, 40)
    slurm_node.until(
        lambda: slurm_node.state_of(job, slurm)["Restarts"] == "1" and slurm_node.is_idle(slurm),
        240,
    )
    time.sleep(3)  # what was told to end must not be started again in the same second
    change(job, slurm, "TimeLimit=10")
    change(job, slurm, "StartTime=now")  # SLURM lets a job that was put back wait for two minutes
    state = slurm_node.ended(job, slurm, 600)
    log = Path("job.log").read_text()
    assert state["JobState"] == "COMPLETED" and state["Restarts"] == "1", f"{state}\n{log[-3000:]}"
    assert "the wall time is near" in log and "into the queue again" in log
    assert "phase 1: 9 frames already on disk" in log and Path("hanging").exists()
    assert_same_bytes(reduced)
    assert sorted(path.name for path in Path().glob(".*")) == []


def test_worker_jobs(slurm: dict, science: list, reduced: Path, tmp_path: Path) -> None:
    """The jobqueue profile: scheduler in the command's process, workers in two jobs."""
    pytest.importorskip("dask_jobqueue")
    profile(tmp_path)
    done = subprocess.run(
        [BIN / "reduce", *science, *PARAMETERS, "--cluster", str(tmp_path / "mine.yaml")],
        env=os.environ | slurm | {"DRAGONSRC": os.environ["DRAGONSRC"]},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == IMAGE, done.stderr[-3000:]
    assert_same_bytes(reduced)
    history = subprocess.run(
        ["scontrol", "show", "jobs"], env=slurm, capture_output=True, text=True, check=True
    ).stdout
    assert history.count("JobName=dask-worker") >= 1


@pytest.mark.slow
def test_a_job_that_is_ended_at_its_wall_time_is_submitted_again(
    slurm: dict, science: list, reduced: Path, capsys: pytest.CaptureFixture
) -> None:
    """Without a warning: SLURM kills all of it; sbatch by hand goes on."""
    script(capsys)
    command = ["reduce", *science, "-r", "stuck.py:reduce", *PARAMETERS]
    job = submit(slurm, command, "--time=10", "--signal=B:CONT@1", "--no-requeue")
    shorten(job, slurm, 5)
    first = slurm_node.ended(job, slurm, 400)
    assert first["JobState"] == "TIMEOUT" and not Path(IMAGE).exists(), Path("job.log").read_text()[
        -3000:
    ]
    slurm_node.until(
        nobody_is_here, 90
    )  # a run that is ending keeps its checkpoints to itself, and SLURM does not wait for it
    second = slurm_node.ended(submit(slurm, command, "--time=10"), slurm, 600)
    assert second["JobState"] == "COMPLETED" and "already on disk" in Path("job.log").read_text()
    assert_same_bytes(reduced)


@pytest.mark.slow
def test_worker_jobs_that_reach_their_wall_time_are_replaced(
    slurm: dict, science: list, reduced: Path, tmp_path: Path
) -> None:
    """The command goes on: its scheduler gives what was lost to the workers of the next job."""
    pytest.importorskip("dask_jobqueue")
    profile(tmp_path, 1, "00:01:00")
    begun = time.monotonic()
    done = subprocess.run(
        [
            BIN / "reduce",
            *science,
            *PARAMETERS,
            "-r",
            "stuck.py:reduce",
            "--cluster",
            str(tmp_path / "mine.yaml"),
        ],
        env=os.environ | slurm | {"DRAGONSRC": os.environ["DRAGONSRC"]},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0 and time.monotonic() - begun > 50, done.stderr[-3000:]
    assert_same_bytes(reduced)


def profile(folder: Path, jobs: int = 2, walltime: str = "00:20:00") -> None:
    (folder / "mine.yaml").write_text(
        f"like: slurm\njobs: {jobs}\nadaptive: false\nwait: 60\n"
        f"options: {{cores: 1, processes: 1, memory: 3GiB, interface: lo, walltime: "
        f"'{walltime}', log_directory: '{folder}'}}\n"
    )
