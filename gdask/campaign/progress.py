"""What a run of a campaign says while it goes: jobs that begin, run, have ended, and the time left.

On a terminal that is a bar; elsewhere a line when a job begins, and one every minute.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from gdask import logutils
from gdask.campaign import cost
from gdask.campaign.job import Campaign, Job
from gdask.campaign.state import State
from gdask.engine.account import describe_time

#: Seconds between two lines that say how a run stands, where there is no bar, and between two
#: changes of the bar.
LINE_INTERVAL, BAR_INTERVAL = 60.0, 1.0


class Progress:
    """The jobs of one pass over a plan: which run since when, how many have ended or failed.

    states: of all jobs, before the first begins. threads: of a job, for predictions. at_a_time:
    jobs. say: shows a line.
    """

    def __init__(
        self,
        campaign: Campaign,
        states: Mapping[str, State],
        threads: int,
        at_a_time: int,
        say: Callable[[str], None],
    ) -> None:
        self.campaign, self.threads, self.at_a_time, self.say = campaign, threads, at_a_time, say
        self.waiting = {job.id: job for job in campaign.jobs if states[job.id].runs}
        self.running: dict[str, float] = {}
        self.ended_count = self.failed_count = 0
        self._rates = cost.read_rates()
        self._lock = threading.Lock()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show inside the `with` block how it stands."""
        total, to_do = len(self.campaign.jobs), len(self.waiting)
        if to_do:
            self.say(f"{to_do} of {total} jobs to do, {self._time_text() or 'time unknown'}")
        over = threading.Event()
        with logutils.bar("gdask run") as bar:

            def watch() -> None:
                while not over.wait(BAR_INTERVAL if bar else LINE_INTERVAL):
                    if bar:
                        bar(completed=self.ended_count, total=total, about=self.running_text())
                    else:
                        self.say(self.line())

            thread = threading.Thread(target=watch, daemon=True)
            if to_do:
                thread.start()
            try:
                yield
            finally:
                over.set()
                if to_do:
                    thread.join()

    def began(self, job: Job) -> None:
        """Note that a job begins, and say it; one that is made already is not told."""
        if job.id not in self.waiting:
            return
        with self._lock:
            self.running[job.id] = time.monotonic()
        seconds = self._seconds(job)
        about = f", about {describe_time(seconds)}" if seconds is not None else ""
        count = len(job.inputs) or len(job.takes)
        what = "file" if job.inputs else "night"
        self.say(f"{job.id}: begins, {count} {what if count == 1 else f'{what}s'}{about}")

    def ended(self, job: Job, record: Mapping[str, Any]) -> int:
        """Note that a job has ended; give how many have."""
        measured = cost.measured(job, record) if record.get("ran") else None
        with self._lock:
            self.running.pop(job.id, None)
            self.waiting.pop(job.id, None)
            self._rates += [measured] if measured else []
            self.ended_count += 1
            self.failed_count += record["status"] in ("failed", "blocked")
            return self.ended_count

    def line(self) -> str:
        """Say how it stands."""
        failed = f", {self.failed_count} failed or blocked" if self.failed_count else ""
        return (
            f"{self.ended_count} of {len(self.campaign.jobs)} jobs done{failed}; "
            f"{self.running_text()}"
        )

    def running_text(self) -> str:
        """Say what runs, since when, and the time left."""
        with self._lock:
            running = dict(self.running)
        now = time.monotonic()
        names = [f"{name} ({describe_time(now - since)})" for name, since in running.items()]
        shown = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
        left = self._time_text()
        text = f"{len(names)} running: {shown}" if names else "none running"
        return f"{left} left; {text}" if left else text

    def _seconds(self, job: Job) -> float | None:
        return cost.predict(job, self._rates, self.threads).seconds

    def _time_text(self) -> str:
        """Say the time that what has not ended will take; '' where nothing like it was measured."""
        now, left = time.monotonic(), {}
        with self._lock:
            waiting, running = dict(self.waiting), dict(self.running)
        for name, job in waiting.items():
            seconds = self._seconds(job)
            if seconds is None:
                return ""
            left[name] = max(seconds - (now - running.get(name, now)), 1.0)
        return f"about {describe_time(cost.wall_seconds(self.campaign, left, self.at_a_time))}"
