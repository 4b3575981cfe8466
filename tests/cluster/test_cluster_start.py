"""Each way of starting workers, each check of them, each error in one line.

Batch systems are stand-ins on PATH here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client, LocalCluster
from gdask.cluster import connect, profile_of
from gdask.cluster.__main__ import SCRIPTS
from gdask.cluster.__main__ import main as tool
from gdask.cluster.options import job_options, lifetime, worker_options
from helpers import loopback_cluster

from gdask import GdaskError
from gdask.model import use_settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a folder for stand-ins of commands in front of PATH, beside the working folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv(
        "PATH", f"{folder}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


def stand_in(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture(scope="module")
def scheduler() -> Iterator[LocalCluster]:
    """Run a scheduler with one worker in this process."""
    with loopback_cluster() as cluster:
        yield cluster


# Profiles


def test_specs_of_hosts_and_batch_systems() -> None:
    assert profile_of("ssh:node1,node2")["hosts"] == ["node1", "node2"]
    assert profile_of("ssh:node1:3") | {"hosts": ["node1"], "workers": 3} == profile_of(
        "ssh:node1:3"
    )
    assert profile_of("slurm:7") | {"kind": "jobqueue", "system": "slurm", "jobs": 7} == profile_of(
        "slurm:7"
    )
    assert (
        profile_of("pbs")["system"] == "pbs" and profile_of("tls://h:1")["address"] == "tls://h:1"
    )


def test_a_yaml_of_the_users(tmp_path: Path) -> None:
    single = tmp_path / "one.yaml"
    single.write_text("like: slurm\njobs: 9\noptions: {queue: fast, cores: 2}\n")
    found, shipped = profile_of(str(single)), profile_of("slurm")
    assert found["jobs"] == 9 and found["options"] == shipped["options"] | {
        "queue": "fast",
        "cores": 2,
    }
    several = tmp_path / "several.yml"
    several.write_text("a: {kind: processes, workers: 2}\nb: {kind: ssh, hosts: [n1]}\n")
    assert profile_of(f"{several}:b") == {"kind": "ssh", "hosts": ["n1"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: slurm\n", "kind 'slurm' is not known; expected threads"),
        (
            "kind: processes\nworker: 3\n",
            r"worker is no option of kind processes \(did you mean workers\?\)",
        ),
        ("kind: processes\nworkers: many\n", "workers: 'many' is not a whole number"),
        ("kind: processes\nworkers: true\n", "workers: True is not a whole number"),
        ("like: slrm\n", r"like: slrm \(did you mean slurm\?\)"),
        ("kind: scheduler\n", "needs address"),
        ("kind: joined\n", "needs scheduler_file: FILE, for the workers that join"),
        ("kind: ssh\n", "no hosts"),
        ("kind: ssh\nhosts: [-oProxyCommand=x]\n", "not the name of a host"),
        ("kind: [unclosed\n", "line 2: not YAML"),
        ("", "no profile in it"),
        (
            "a: {kind: threads}\nb: {kind: threads}\n",
            "several profiles; expected --cluster .*:NAME with one of a, b",
        ),
        ("a: threads\n", "'threads' where a profile was expected"),
    ],
)
def test_what_is_wrong_with_a_yaml_is_said_in_one_line(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(GdaskError, match=message) as caught:
        profile_of(str(tmp_path / "p.yaml"))
    assert "\n" not in str(caught.value) and "p.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("slrum", r"did you mean slurm\?"),
        ("ssh", "no hosts"),
        ("ssh:", "no hosts"),
        ("gone.yaml", "cannot be read"),
        ("slurm:no", "expected a number"),
        ("gone.json", "a scheduler file that exists"),
    ],
)
def test_specs_that_mean_nothing(
    spec: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GdaskError, match=message):
        profile_of(spec)


@pytest.mark.parametrize(
    ("walltime", "options"),
    [
        ("02:00:00", ["--lifetime", "6900s", "--lifetime-stagger", "150s"]),
        ("10:00", ["--lifetime", "540s", "--lifetime-stagger", "30s"]),
        ("1-00:00:00", ["--lifetime", "86100s", "--lifetime-stagger", "150s"]),
        ("30", ["--lifetime", "1620s", "--lifetime-stagger", "90s"]),
    ],
)
def test_workers_leave_before_the_wall_time(walltime: str, options: list[str]) -> None:
    assert lifetime(walltime) == options


# Checks of workers


def test_a_worker_with_another_version_is_refused(
    scheduler: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Client.get_versions

    def other(self: Client, **options: object) -> dict:
        found = real(self, **options)
        next(iter(found["workers"].values()))["packages"]["numpy"] = "1.0"
        return found

    monkeypatch.setattr(Client, "get_versions", other)
    with (
        pytest.raises(
            GdaskError,
            match=r"worker tcp://.* has numpy 1\.0, here it is .*same Python environment",
        ),
        connect(scheduler.scheduler_address),
    ):
        pass


def test_a_worker_that_sees_other_files_is_refused(
    scheduler: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gdask.cluster import checks

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        checks,
        "shared_file_problem",
        lambda path, text, real=checks.shared_file_problem: real(path + ".elsewhere", text),
    )
    with (
        pytest.raises(
            GdaskError, match="does not see the working folder .*a folder that all hosts share"
        ),
        connect(scheduler.scheduler_address),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "token").write_text("another")
    assert "sees another folder" in checks.shared_file_problem.__defaults__[0](
        str(tmp_path / "token"), "this"
    )


def test_a_worker_that_comes_later_is_asked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker ends itself where it does not see the working folder.

    Here it is one that comes after the token is gone.
    """
    monkeypatch.chdir(tmp_path)
    with loopback_cluster() as cluster:
        with connect(cluster.scheduler_address) as client:
            (token,) = tmp_path.glob(".cluster-*.part")
            text = token.read_text()
            token.unlink()
            assert cluster.sync(_one_more_worker, cluster.scheduler_address) == "closed"
            token.write_text(text)
            assert cluster.sync(_one_more_worker, cluster.scheduler_address) == "running"
            assert client.submit(sum, [1, 2]).result() == 3
        assert list(tmp_path.glob(".cluster-*")) == []
        assert (
            cluster.sync(_one_more_worker, cluster.scheduler_address) == "running"
        )  # of somebody else, after this run


async def _one_more_worker(address: str) -> str:
    from distributed import Worker

    async with Worker(address, nthreads=1, name="late") as worker:
        await asyncio.sleep(0.3)
        return worker.status.name


def test_threads_and_scratch_of_workers_are_remarked(
    scheduler: LocalCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from gdask.cluster import checks

    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setattr(checks, "SCRATCH_MIN_FREE_BYTES", 1e18)
    with connect(scheduler.scheduler_address):
        pass
    assert (
        "OMP_NUM_THREADS=8" in caplog.text and "MB free; set scratch: of the profile" in caplog.text
    )


def test_lost_connections_are_not_told_twice(
    scheduler: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dask's words for lost connections, some with tracebacks, are suppressed.

    They were seen where a scheduler was killed in the middle of a phase.
    """
    monkeypatch.delenv("DASK_LOGGING__DISTRIBUTED", raising=False)
    names = (
        "distributed.batched",
        "distributed.client",
        "distributed.comm.tcp",
        "tornado.application",
        "asyncio",
    )
    before = [logging.getLogger(name).level for name in names]
    with connect(scheduler.scheduler_address):
        for name in names:
            assert not logging.getLogger(name).isEnabledFor(logging.ERROR), name
    assert [logging.getLogger(name).level for name in names] == before  # they are the user's


def test_a_scheduler_without_workers(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("kind: scheduler\nwait: 0.2\naddress: ADDRESS\n")
    with loopback_cluster(n_workers=0) as cluster:
        (tmp_path / "p.yaml").write_text(
            f"kind: scheduler\nwait: 0.2\naddress: {cluster.scheduler_address}\n"
        )
        with (
            pytest.raises(GdaskError, match="no worker within 0 s: it has no workers; start some"),
            connect(str(tmp_path / "p.yaml")),
        ):
            pass


def test_certificates_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "kind: scheduler\naddress: tls://127.0.0.1:9\ntls: {ca: no.pem, cert: no.pem, key: "
        "no.pem}\n"
    )
    with (
        pytest.raises(GdaskError, match=r"no\.pem: no such file"),
        connect(str(tmp_path / "p.yaml")),
    ):
        pass
    with pytest.raises(GdaskError, match="TLS"), connect("tls://127.0.0.1:9"):
        pass


# ssh

SSH = (
    'while [[ $1 == -* ]]; do [[ $1 == -o ]] && shift; shift; done; echo "$1" >> ../hosts; '
    'shift; exec bash -c "$1"'
)


def test_workers_over_ssh(commands: Path, tmp_path: Path) -> None:
    """Two hosts with one worker each, in this folder with one thread pool.

    The stand-in for ssh stays on this machine.
    """
    stand_in(commands, "ssh", SSH)
    (tmp_path / "hosts.yaml").write_text("like: ssh\nhosts: [one, two]\nhost: 127.0.0.1\n")
    with connect(str(tmp_path / "hosts.yaml"), memory=2**30) as client:
        client.wait_for_workers(2, timeout=60)
        workers = client.scheduler_info(n_workers=-1)["workers"]
        assert sorted(str(worker["name"]) for worker in workers.values()) == ["one", "two"]
        assert {worker["memory_limit"] for worker in workers.values()} == {2**30}
        assert set(client.run(lambda: (os.getcwd(), os.environ["OMP_NUM_THREADS"])).values()) == {
            (str(tmp_path / "work"), "1")
        }
    assert sorted((tmp_path / "hosts").read_text().split()) == ["one", "two"]


def test_a_host_that_cannot_be_reached_is_named(commands: Path, tmp_path: Path) -> None:
    stand_in(commands, "ssh", "echo 'ssh: Could not resolve hostname nowhere' >&2; exit 255")
    (tmp_path / "hosts.yaml").write_text(
        "like: ssh\nhosts: [nowhere]\nhost: 127.0.0.1\nwait: 1.5\n"
    )
    with (
        pytest.raises(GdaskError, match=r"no worker within 2 s.*nowhere: ssh: Could not resolve"),
        connect(str(tmp_path / "hosts.yaml")),
    ):
        pass


# Batch systems


def test_without_the_batch_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GdaskError, match="no command sbatch on this machine"), connect("slurm"):
        pass
    with pytest.raises(GdaskError, match="no command qsub on this machine"), connect("pbs"):
        pass


def test_without_dask_jobqueue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with (
        pytest.raises(
            GdaskError, match=r"pip install 'gdask\[jobqueue\]'; a batch script does without"
        ),
        connect("slurm"),
    ):
        pass


@pytest.mark.parametrize("system", ["slurm", "pbs"])
def test_options_of_jobs_are_those_of_dask_jobqueue(system: str) -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    cluster = {"slurm": jobqueue.SLURMCluster, "pbs": jobqueue.PBSCluster}[system]
    options = job_options(profile_of(system), memory=2**30)
    assert options["memory"] == f"{8 * 2**30}B"
    script = cluster.job_cls(
        scheduler="tcp://127.0.0.1:9",
        name="w",
        **{k: v for k, v in options.items() if k != "scheduler_options"},
    ).job_script()
    assert (
        "export OMP_NUM_THREADS=1" in script
        and "--lifetime 6900s" in script
        and "02:00:00" in script
    )


def test_options_that_dask_jobqueue_does_not_know(commands: Path, tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    stand_in(commands, "sbatch", "exit 1")
    (tmp_path / "p.yaml").write_text("like: slurm\noptions: {colour: red}\n")
    with pytest.raises(GdaskError, match="options: .*colour"), connect(str(tmp_path / "p.yaml")):
        pass


@pytest.mark.parametrize("system", ["slurm", "pbs"])
def test_batch_scripts_hold_scheduler_workers_and_command(
    system: str, commands: Path, capsys: pytest.CaptureFixture
) -> None:
    """The script as it is printed, with stand-ins that start two workers here.

    The command's exit code is the job's.
    """
    assert tool(["script", system]) == 0
    Path("gdask.sh").write_text(capsys.readouterr().out)
    twice = '"$@" & one=$!; "$@" & two=$!; trap "kill $one $two" TERM; wait; wait'
    stand_in(commands, "srun", f"while [[ $1 == --* ]]; do shift; done; {twice}")
    stand_in(commands, "pbsdsh", f"shift; {twice}")
    stand_in(commands, "work", f'exec "{sys.executable}" -c \'{COMMAND}\' "$@"')
    environment = dict(os.environ) | {
        "SLURM_JOB_ID": "1",
        "PBS_JOBID": "1.host",
        "PBS_O_WORKDIR": os.getcwd(),
        "GDASK_COMMAND": "work",
        "GDASK_PYTHON": sys.executable,
        "SLURM_MEM_PER_CPU": "1024",
        "GDASK_MEMORY": "1GiB",
    }
    done = subprocess.run(
        ["bash", "gdask.sh", "work"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 5 and "2 workers of 1.0 GiB" in done.stdout, done.stderr[-2000:]
    assert [path.name for path in Path().glob(".gdask-scheduler*")] == []


COMMAND = """
import sys
import time
from gdask.cluster import connect
if __name__ == "__main__":
    assert sys.argv[1] == "--cluster"
    with connect(sys.argv[2]) as client:
        client.wait_for_workers(2, timeout=60)
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        least = min(w["memory_limit"] for w in workers)
        print(len(workers), "workers of %.1f GiB" % (least / 2**30))
    sys.exit(5)
"""


@pytest.mark.parametrize("system", ["slurm", "pbs"])
def test_batch_scripts_without_a_command(system: str, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "PBS_O_WORKDIR": str(tmp_path), "SLURM_JOB_ID": "1"}
    done = subprocess.run(
        ["bash", str(ROOT / "cluster" / SCRIPTS[system])],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "no command; expected: " in done.stderr


def test_the_profiles_and_a_check_are_printed(
    scheduler: LocalCluster, capsys: pytest.CaptureFixture
) -> None:
    assert tool(["profiles"]) == 0 and "slurm        jobqueue" in capsys.readouterr().out
    assert (
        tool(["check", scheduler.scheduler_address]) == 0 and "1 thread" in capsys.readouterr().out
    )
    assert tool(["check", "slrum"]) == 1 and "did you mean slurm?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "is_requeued", "left"), [(0, False, 0), (3, False, 3), (None, True, 0)]
)
def test_only_a_job_whose_command_was_stopped_goes_into_the_queue_again(
    commands: Path, code: int | None, is_requeued: bool, left: int
) -> None:
    """Only a job whose command was stopped goes into the queue again.

    The warning comes while the workers are told to leave (the command has ended), or while the
    command works (None).
    """
    stand_in(
        commands,
        "srun",
        'touch working; trap "sleep 1; exit 0" TERM; while true; do sleep 0.1; done',
    )
    stand_in(commands, "scontrol", 'echo "$@" >> ../requeued')
    stand_in(
        commands,
        "python",
        'trap "exit 0" TERM; while [[ $1 != --scheduler-file ]]; do shift; done; echo there > '
        '"$2"; while true; do sleep 0.1; done',
    )
    stand_in(
        commands,
        "work",
        "until [ -e working ]; do sleep 0.1; done; touch begun; "
        f"{'exec sleep 60' if code is None else f'exit {code}'}",
    )
    environment = dict(os.environ) | {"SLURM_JOB_ID": "1", "GDASK_PYTHON": "python"}
    job = subprocess.Popen(
        ["bash", str(ROOT / "cluster" / SCRIPTS["slurm"]), "work"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 20
    while not Path("begun").exists() and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(0.5)
    job.send_signal(signal.SIGUSR1)
    text = job.communicate(timeout=30)[0]
    assert job.returncode == left and ("into the queue again" in text) == is_requeued
    assert Path("../requeued").exists() == is_requeued


# Good citizens


def test_workers_come_with_the_work_live_as_long_and_keep_their_files_where_the_profile_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`adaptive`, `lifetime` with its stagger, and `scratch` of a profile."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(
        "kind: processes\nworkers: 2\nadaptive: true\nlifetime: 2 hours\nlifetime_stagger: 10 "
        f"minutes\nscratch: {tmp_path}/own\n"
    )
    with connect(str(tmp_path / "p.yaml")) as client:
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == 1
        (about,) = client.run(
            lambda dask_worker: (dask_worker.lifetime, dask_worker.local_directory)
        ).values()
        assert 6600 <= about[0] <= 7800 and about[1].startswith(f"{tmp_path}/own/")
        slow = client.map(time.sleep, [3 + number / 100 for number in range(8)])
        client.wait_for_workers(2, timeout=60)
        client.cancel(slow)
        assert set(
            client.run(
                lambda: (os.environ["NUMBA_NUM_THREADS"], os.environ["DASK_LOGGING__DISTRIBUTED"])
            ).values()
        ) == {("1", "critical")}


def test_lifetimes_and_scratch_of_jobs_and_hosts_are_data() -> None:
    ending = {"lifetime": "50m", "lifetime_stagger": "5m"}
    words = ["--lifetime", "50m", "--lifetime-stagger", "5m"]
    assert job_options(profile_of("slurm") | ending)["worker_extra_args"] == words
    assert worker_options(profile_of("ssh:one") | ending)[-5:] == [*words, "--lifetime-restart"]
    assert job_options(profile_of("slurm") | {"scratch": "/local"})["local_directory"] == "/local"
    with use_settings(scratch="/node"):
        assert worker_options(profile_of("ssh:one"))[-2:] == ["--local-directory", "/node"]


def test_every_shipped_profile_is_whole() -> None:
    from gdask.cluster import load_profiles

    for name in load_profiles():
        assert profile_of(f"{name}:host" if name == "ssh" else name)["kind"]


def test_the_pages_name_what_there_is() -> None:
    """Each `--cluster SPEC` and each `python -m gdask.cluster VERB` that is to be typed."""
    import re

    text = "".join(
        page.read_text()
        for page in [*(ROOT / "cluster").glob("*.md"), ROOT / "docs" / "cluster.md"]
    )
    specs = set(re.findall(r"--cluster ([a-z0-9:,.]+[a-z0-9])", text)) - {"mine.yaml", "s.json"}
    assert len(specs) >= 5 and all(profile_of(spec)["kind"] for spec in specs)
    assert set(re.findall(r"python -m gdask\.cluster ([a-z]+)", text)) == {
        "profiles",
        "script",
        "check",
    }
    for page in re.findall(r"\]\(([a-z_./]+\.md)\)", (ROOT / "cluster" / "README.md").read_text()):
        assert (ROOT / "cluster" / page).exists()
