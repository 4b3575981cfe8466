"""A SLURM of one node for tests: munged, slurmctld and slurmd of this machine, on loopback.

Nothing is installed and nothing outside its folder is written: configuration, key, sockets, spool
and logs are in it, the ports are free ones. Needs root, and Debian's packages slurm-wlm and munge
(or the like).
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))

CONFIGURATION = """
ClusterName=gdask-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
KillWait=5
MinJobAge=30
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Say why there can be no SLURM here; nothing where there can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    return (
        f"not installed: {', '.join(absent)}"
        if absent
        else ""
        if os.geteuid() == 0
        else "needs root"
    )


@contextmanager
def one_node(folder: Path) -> Iterator[dict[str, str]]:
    """Run SLURM inside the `with` block; give the environment in which sbatch finds it."""
    (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
    (folder / "munge.key").chmod(0o400)
    host, free = socket.gethostname().split(".")[0], [_free_port(), _free_port()]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=host, ports=free))
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    environment = dict(os.environ) | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}
    munge = [
        f"--{name}={folder}/munge.{end}"
        for name, end in (
            ("socket", "socket"),
            ("key-file", "key"),
            ("pid-file", "pid"),
            ("log-file", "log"),
            ("seed-file", "seed"),
        )
    ]
    started = []
    try:
        for command in (
            ["munged", "--foreground", "--force", *munge],
            ["slurmctld", "-D"],
            ["slurmd", "-D"],
        ):
            with open(folder / f"{command[0]}.out", "wb") as log:
                started.append(
                    subprocess.Popen(
                        command, env=environment, stdout=log, stderr=log, start_new_session=True
                    )
                )
            until(lambda: (folder / "munge.socket").exists(), 10, folder)
        until(lambda: is_idle(environment), 30, folder)
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, check=False, timeout=20)
        until(lambda: not _output(["squeue", "-h"], environment), 20)
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def state_of(job: str, environment: dict[str, str]) -> dict[str, str]:
    """Give what `scontrol show job` says, by name."""
    words = _output(["scontrol", "show", "job", job], environment).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def is_idle(environment: dict[str, str]) -> bool:
    """Tell whether the node is up, and no job is on it or about to leave it."""
    return _output(["sinfo", "-h", "-o", "%t"], environment).strip() == "idle"


def ended(job: str, environment: dict[str, str], seconds: float) -> dict[str, str]:
    """Give the state of a job once it has ended and does not wait to run again."""
    over = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY")
    until(lambda: state_of(job, environment).get("JobState") in over, seconds)
    return state_of(job, environment)


def _output(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=30
    ).stdout


def until(ready: object, seconds: float, folder: Path | None = None) -> None:
    """Wait for `ready()`, looking five times a second.

    Raises TimeoutError after so many seconds, with the logs in `folder`.
    """
    end = time.monotonic() + seconds
    while not ready():  # type: ignore[operator]
        if time.monotonic() > end:
            logs = {
                path.name: path.read_text(errors="replace")[-500:]
                for path in (folder.glob("*.out") if folder else ())
            }
            raise TimeoutError(f"not within {seconds:.0f} s {logs}")
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
