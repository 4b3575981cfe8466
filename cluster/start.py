"""A distributed Client for each kind of profile.

It connects to, or starts, what is needed, and ends what it has started.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import dask
from distributed import Client, LocalCluster
from distributed.security import Security
from distributed.utils import get_ip
from gdask.cluster.checks import check_is_own, checked_workers
from gdask.cluster.options import job_options, scratch_of, worker_options
from gdask.cluster.profiles import ONE_THREAD, Profile, available_cores, machine_memory
from gdask.cluster.watch import Counters

from gdask.model import GdaskError, Settings, owner, use_settings

log = logging.getLogger("gdask")

#: Batch systems that dask-jobqueue serves, by the name in a profile.
BATCH_SYSTEMS = {"slurm": "SLURMCluster", "pbs": "PBSCluster"}
#: The settings of a profile that does not name them.
DEFAULTS = Settings()


@contextmanager
def connected_client(profile: Profile, where: str, memory: int | None = None) -> Iterator[Client]:
    """The client of a profile, its workers checked; `where` begins the text of errors."""
    kind = profile["kind"]
    begin = {
        "scheduler": _existing_scheduler,
        "processes": _local_processes,
        "ssh": _ssh_hosts,
        "jobqueue": _batch_system,
        "joined": _joined,
    }[kind]
    # Checkpoints that other hosts wrote must be safe before they are called complete. A nanny that
    # takes longer than dask's 15 s to start a worker anew (a busy machine) is not closed: the
    # cluster would lose its workers.
    patient = {"distributed.deploy.lost-worker-timeout": "1 hour"} if kind == "processes" else {}
    with (
        _quiet_libraries(),
        dask.config.set(patient),
        use_settings(
            flush=kind != "processes",
            patience=float(profile.get("patience", DEFAULTS.patience)),
            wait=float(profile.get("wait", DEFAULTS.wait)),
        ) as chosen,
        begin(profile, where, memory) as client,
        checked_workers(client, where, chosen.wait, started=kind != "scheduler") as kinds,
        use_settings(
            dashboard=_log_workers(client),
            processors=kinds,
            **_planning_settings(client, memory),
        ),
    ):
        client.register_plugin(Counters())
        yield client


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Inside, what dask logs of lost connections is suppressed: gdask says it in a line.

    Some of it comes with tracebacks. DASK_LOGGING__DISTRIBUTED brings it back.
    """
    libraries = (
        set()
        if "DASK_LOGGING__DISTRIBUTED" in os.environ
        else {"distributed", "tornado", "asyncio"}
    )
    names = libraries | {
        each for each in logging.root.manager.loggerDict if each.partition(".")[0] in libraries
    }
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _log_workers(client: Client) -> str:
    """Log the number of workers and the dashboard's address; return it, empty without one."""
    link = client.dashboard_link if importlib.util.find_spec("bokeh") else ""
    workers = len(client.scheduler_info(n_workers=-1)["workers"])
    log.info(
        "%d worker%s so far%s",
        workers,
        "s" * (workers != 1),
        f"; dashboard: {link}" if link else "",
    )
    return link


def _planning_settings(client: Client, memory: int | None) -> dict[str, Any]:
    """Settings by which a phase is planned: memory (bytes), share, threads of a worker."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    limits = [worker["memory_limit"] for worker in workers if worker["memory_limit"]] + (
        [memory] if memory else []
    )
    # Above this share of its limit a worker begins no task.
    share = float(dask.config.get("distributed.worker.memory.pause") or 1.0)
    threads = max((worker["nthreads"] for worker in workers), default=1)
    return {
        "memory": share * min(limits) if limits else None,
        "share": share,
        "threads": threads,
    }


@contextmanager
def _existing_scheduler(profile: Profile, where: str, memory: int | None) -> Iterator[Client]:
    """The client of a scheduler that runs already."""
    given = {key: profile[key] for key in ("address", "scheduler_file") if key in profile}
    if "scheduler_file" in given and "address" not in given:
        check_is_own(str(given["scheduler_file"]), where)
    try:
        client = Client(
            **given,
            timeout=profile.get("timeout", 30),
            security=_security(profile, where),
            set_as_default=False,
        )
    except (OSError, ValueError) as error:
        raise GdaskError(
            f"{where}: the scheduler does not answer ({_first_line(error)}); is it running?"
        ) from None
    except TypeError as error:  # what distributed raises for tls:// without certificates
        raise GdaskError(
            f"{where}: {_first_line(error)}; give certificates, see tls: in docs/cluster.md"
        ) from None
    with _current(client):
        yield client


@contextmanager
def _current(client: Client) -> Iterator[Client]:
    """Inside, the client is the place of all computes.

    A default client that fails or is shut down would stay that place.
    """
    with client, client.as_current(), dask.config.set(scheduler="dask.distributed"):
        yield client


@contextmanager
def _local_processes(profile: Profile, where: str, memory: int | None) -> Iterator[Client]:
    """A scheduler in this process and worker processes on this machine."""
    # Workers are silent: gdask itself says what is of use, and what they log at the end (the
    # scheduler left first) is long and no news.
    environment = ONE_THREAD | {
        "DASK_LOGGING__DISTRIBUTED": os.environ.get("DASK_LOGGING__DISTRIBUTED", "critical")
    }
    workers = profile.get("workers") or available_cores()
    with _environment(environment):
        cluster = LocalCluster(
            n_workers=1 if profile.get("adaptive") else workers,
            threads_per_worker=profile.get("threads", 1),
            processes=True,
            host="127.0.0.1",
            dashboard_address=profile.get("dashboard", "127.0.0.1:0"),
            # dask's own "auto" does not see the limits of nested control groups
            memory_limit=memory or profile.get("memory") or int(machine_memory() / workers),
            local_directory=scratch_of(profile),
            silence_logs=40,
            lifetime=profile.get("lifetime"),
            lifetime_stagger=profile.get("lifetime_stagger", "0 s"),
            lifetime_restart=True,
            env=environment,  # of workers that come later, too
        )
    with cluster, _current(Client(cluster, set_as_default=False)) as client:
        if profile.get("adaptive"):
            cluster.adapt(minimum=1, maximum=workers)
        yield client


@contextmanager
def _ssh_hosts(profile: Profile, where: str, memory: int | None) -> Iterator[Client]:
    """A scheduler in this process and workers on other hosts.

    The workers are started by the `ssh` command with the user's settings.
    """
    command = shlex.split(profile.get("command", "ssh -o BatchMode=yes"))
    if shutil.which(command[0]) is None:
        raise GdaskError(
            f"{where}: no command {command[0]}; install an ssh client, or name another with "
            "command: in a YAML"
        )
    with _scheduler_here(profile, where) as (cluster, client):
        started = {
            host: _start_over_ssh(command, host, profile, cluster.scheduler_address, memory)
            for host in profile["hosts"]
        }
        try:
            with _failures_named(started, where, client):
                yield client
        finally:
            client.shutdown()  # the workers leave when their scheduler does
            for process in started.values():
                _end_process(process)


@contextmanager
def _scheduler_here(profile: Profile, where: str) -> Iterator[tuple[LocalCluster, Client]]:
    """A scheduler in this process that other hosts reach, without workers, and its client."""
    security = _security(profile, where)
    cluster = LocalCluster(
        n_workers=0,
        host=profile.get("host") or get_ip(),
        protocol="tls://" if security else "tcp://",
        dashboard_address=profile.get("dashboard", "127.0.0.1:0"),
        security=security,
        silence_logs=40,
    )
    with cluster, _current(Client(cluster, set_as_default=False)) as client:
        yield cluster, client


@contextmanager
def _joined(profile: Profile, where: str, memory: int | None) -> Iterator[Client]:
    """A scheduler in this process, for workers that others start: its address is in a file.

    The file is there as long as the scheduler is.
    """
    path = os.path.abspath(profile["scheduler_file"])
    with _scheduler_here(profile, where) as (cluster, client):
        hidden = f"{path}.{owner()}.part"
        with open(os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump({"address": cluster.scheduler_address}, file)
        os.replace(hidden, path)
        try:
            yield client
        finally:
            with suppress(OSError):
                os.unlink(path)
            client.shutdown()  # the workers leave when their scheduler does


def _start_over_ssh(
    command: list[str], host: str, profile: Profile, address: str, memory: int | None
) -> subprocess.Popen:
    worker = [
        profile.get("python", sys.executable),
        "-m",
        "distributed.cli.dask_worker",
        address,
        "--name",
        host,
        *worker_options(profile),
    ]
    limit = memory or profile.get("memory")
    worker += ["--memory-limit", str(limit)] if limit else []
    words = [
        "cd",
        os.getcwd(),
        "&&",
        "exec",
        "env",
        *(f"{key}={value}" for key, value in ONE_THREAD.items()),
        *worker,
    ]
    text = " ".join(word if word == "&&" else shlex.quote(word) for word in words)
    return subprocess.Popen(
        [*command, host, text],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextmanager
def _failures_named(
    started: Mapping[str, subprocess.Popen], where: str, client: Client
) -> Iterator[None]:
    """Inside, an error for want of workers is extended by what ssh has said."""
    try:
        yield
    except GdaskError as error:
        said = {
            host: (process.stderr.read() if process.stderr else "").strip()
            for host, process in started.items()
            if process.poll() is not None
        }
        if not said:
            raise
        text = "; ".join(
            f"{host}: {(text.splitlines() or ['ended'])[-1]}" for host, text in said.items()
        )
        raise GdaskError(f"{error} ({text})") from None


def _end_process(process: subprocess.Popen) -> None:
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait(10)
    finally:
        if process.stderr:
            process.stderr.close()


@contextmanager
def _batch_system(profile: Profile, where: str, memory: int | None) -> Iterator[Client]:
    """Worker jobs of a batch system, through dask-jobqueue; the scheduler is in this process."""
    try:
        jobqueue = importlib.import_module("dask_jobqueue")
    except ImportError:
        raise GdaskError(
            f"{where}: needs dask-jobqueue: pip install 'gdask[jobqueue]'; a batch script does "
            "without "
            "(python -m gdask.cluster script slurm)"
        ) from None
    system, options = profile.get("system"), job_options(profile, memory)
    if system not in BATCH_SYSTEMS:
        raise GdaskError(f"{where}: system: {system}; expected {' or '.join(BATCH_SYSTEMS)}")
    submit = getattr(jobqueue, BATCH_SYSTEMS[system]).job_cls.submit_command.split()[0]
    if shutil.which(submit) is None:
        raise GdaskError(
            f"{where}: no command {submit} on this machine; run gdask where jobs are submitted from"
        )
    try:
        cluster = getattr(jobqueue, BATCH_SYSTEMS[system])(**options, silence_logs=40)
    except (TypeError, ValueError) as error:
        raise GdaskError(
            f"{where}: options: {_first_line(error)}; see dask-jobqueue's {BATCH_SYSTEMS[system]}"
        ) from None
    jobs = profile.get("jobs", 1)
    with cluster, _current(Client(cluster, set_as_default=False)) as client:
        # Jobs end at their wall time: whoever keeps the number must be able to submit the next one.
        cluster.adapt(minimum_jobs=1 if profile.get("adaptive", True) else jobs, maximum_jobs=jobs)
        yield client


def _security(profile: Profile, where: str) -> Security | None:
    """Certificates of the profile, `tls: {ca, cert, key}`; None takes dask's configuration."""
    names = {"ca": "tls_ca_file", "cert": "cert", "key": "key"}
    given = profile.get("tls")
    if given is None:
        return None
    if set(given) != set(names):
        raise GdaskError(
            f"{where}: tls: expected ca, cert and key, three file names; came "
            f"{', '.join(map(str, given)) or 'nothing'}"
        )
    missing = [path for path in given.values() if not os.path.isfile(str(path))]
    if missing:
        raise GdaskError(f"{where}: tls: {missing[0]}: no such file")
    client = {f"tls_client_{key}": given[key] for key in ("cert", "key")}
    return Security(
        tls_ca_file=given["ca"],
        require_encryption=True,
        **client,
        **{
            f"tls_{who}_{key}": given[key]
            for who in ("scheduler", "worker")
            for key in ("cert", "key")
        },
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Inside, these environment variables are set."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.__setitem__(key, value)
