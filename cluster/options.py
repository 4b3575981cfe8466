"""What workers are started with: options of `dask worker` and of dask-jobqueue from a profile."""

from __future__ import annotations

import os
from typing import Any

from gdask.cluster.profiles import ONE_THREAD, Profile

from gdask.model import settings

#: A worker leaves before its job's wall time by this share of it, and at most by so many seconds.
LIFETIME_MARGIN_SHARE, LIFETIME_MARGIN_MAX_S = 0.1, 300


def worker_options(profile: Profile) -> list[str]:
    """Options of the `dask worker` command that follow from a profile."""
    options = [
        "--nworkers",
        str(profile.get("workers") or "auto"),
        "--death-timeout",
        "60",
        "--no-dashboard",
    ]
    options += ["--nthreads", str(profile.get("threads", 1))] if profile.get("workers") else []
    scratch = scratch_of(profile)
    if profile.get("lifetime"):
        options += [
            "--lifetime",
            profile["lifetime"],
            "--lifetime-stagger",
            profile.get("lifetime_stagger", "0 s"),
            "--lifetime-restart",
        ]
    return options + (["--local-directory", scratch] if scratch else [])


def job_options(profile: Profile, memory: int | None = None) -> dict[str, Any]:
    """The options of a dask-jobqueue cluster.

    They are the profile's, with one thread pool for each core and a lifetime within the wall time.
    """
    options = dict(profile.get("options", {}))
    extra = list(options.pop("worker_extra_args", []))
    if profile.get("lifetime"):
        extra += [
            "--lifetime",
            profile["lifetime"],
            "--lifetime-stagger",
            profile.get("lifetime_stagger", "0 s"),
        ]
    elif "walltime" in options and "--lifetime" not in extra:
        extra += lifetime(str(options["walltime"]))
    if memory:
        options["memory"] = f"{memory * int(options.get('processes', 1))}B"
    scratch = scratch_of(profile)
    if scratch:
        options.setdefault("local_directory", scratch)
    options["scheduler_options"] = {"dashboard_address": "127.0.0.1:0"} | options.get(
        "scheduler_options", {}
    )
    prologue = [f"export {key}={value}" for key, value in ONE_THREAD.items()]
    return options | {
        "worker_extra_args": extra,
        "job_script_prologue": prologue + list(options.get("job_script_prologue", [])),
    }


def lifetime(walltime: str) -> list[str]:
    """Worker options so that workers leave before the wall time, and not all at once.

    The wall time is D-HH:MM:SS, HH:MM:SS, MM:SS or minutes.
    """
    days, _, clock = walltime.rpartition("-")
    parts = [int(part) for part in clock.split(":")] if ":" in clock or days else [0, int(clock), 0]
    parts = parts + [0] * (3 - len(parts)) if days else [0] * (3 - len(parts)) + parts
    seconds = int(days or 0) * 86400 + parts[0] * 3600 + parts[1] * 60 + parts[2]
    margin = min(LIFETIME_MARGIN_SHARE * seconds, LIFETIME_MARGIN_MAX_S)
    return ["--lifetime", f"{seconds - margin:.0f}s", "--lifetime-stagger", f"{margin / 2:.0f}s"]


def scratch_of(profile: Profile) -> str | None:
    """Folder for what a worker keeps for itself: the profile's, the settings', or the job's."""
    return profile.get("scratch") or settings().scratch or os.environ.get("SLURM_TMPDIR")
