"""Watching: raw files that arrive are reduced when their sequence is complete.

Folders are looked at again and again: network file systems tell nobody of new files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime

from gdask.campaign.job import Campaign, Job
from gdask.campaign.run import run_campaign
from gdask.campaign.scan import find_files
from gdask.campaign.survey import Options, survey
from gdask.model import GdaskError, UsageError, night_of


def watch(
    options: Options,
    settle: float,
    every: float,
    say: Callable[[str], None],
    rounds: int | None = None,
) -> None:
    """Run a campaign again and again, on what is complete, until it is stopped.

    Parameters
    ----------
    settle
        Seconds without a new file after which a sequence counts as complete; one of which a later
        file of another sequence is there does so at once.
    every
        Seconds between two looks.
    rounds
        Looks; None: until a signal comes.
    """
    seen: dict[str, tuple[int, int]] = {}
    done, told = 0, ""
    say(
        f"looking at {', '.join(options.places)} every {every:.0f} s for new files; a sequence is "
        f"reduced when another begins, or {settle:.0f} s after its last file; Ctrl-C stops"
    )
    standing = ""
    while rounds is None or done < rounds:
        try:
            sizes = _sizes(options)
            moving = {path for path, size in sizes.items() if seen.get(path) != size}
            seen = sizes
            now = _look(options, settle, moving, say) if sizes else "no file yet"
            if now != standing:
                say(now)
            standing, told = now, ""
        except (GdaskError, OSError) as error:
            if not done:
                raise
            # A disk that is away, another run, a word in campaign.toml: it may be well again.
            if str(error) != told:
                say(f"waiting: {error}")
            told = str(error)
        done += 1
        if rounds is None or done < rounds:
            time.sleep(every)


def _sizes(options: Options) -> dict[str, tuple[int, int]]:
    """Give size and time of each file; those that go away meanwhile are left out."""
    found = {}
    for path in find_files(options.places, options.out)[0]:
        try:
            status = os.stat(path)
        except OSError:
            continue
        found[path] = (status.st_size, status.st_mtime_ns)
    return found


def _look(options: Options, settle: float, moving: set[str], say: Callable[[str], None]) -> str:
    """Run the jobs whose files have stood still and whose sequence is complete.

    Gives in words how it stands.
    """
    campaign, _ = survey(options, lambda text: None)
    ready = ready_jobs(campaign, settle, moving, time.time())
    standing = (
        f"{len(campaign.rows)} files, {len(campaign.jobs)} jobs; {len(campaign.jobs) - len(ready)} "
        "wait until their files are complete"
    )
    if not ready:
        return standing
    wanted = options.only
    tonight = night_of(datetime.now(UTC).replace(tzinfo=None)).strftime("%Y%m%d")
    options = options._replace(tonight=tonight)
    try:
        run_campaign(
            options._replace(only=lambda job: job.id in ready and (wanted is None or wanted(job))),
            lambda text: None if text.endswith("already made") else say(text),
        )
    except UsageError as error:
        if "no job of the plan fits" not in str(error):
            raise
    return standing


def ready_jobs(campaign: Campaign, settle: float, moving: set[str], now: float) -> set[str]:
    """Give the ids of the jobs that may run: all that they need is complete.

    moving: paths of files that are still being written, or were not there at the last look. now:
    seconds since 1970.
    """
    files = {file.key: file for file in campaign.files if file.kind != "duplicate"}
    latest = max((file.time for file in files.values() if file.time), default="")
    ready: set[str] = set()
    for job in campaign.jobs:
        inputs = [files[key] for key in job.inputs if key in files]
        is_still = not any(file.path in moving for file in inputs)
        arrived = max((file.mtime_ns / 1e9 for file in inputs), default=0.0)
        has_moved_on = bool(inputs) and max(file.time for file in inputs) < latest
        if is_still and (has_moved_on or now - arrived > settle) and _has_all(job, ready):
            ready.add(job.id)
    return ready


def _has_all(job: Job, ready: set[str]) -> bool:
    return all(name in ready for name in job.needs)
