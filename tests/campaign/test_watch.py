"""Which jobs may run while files arrive."""

from __future__ import annotations

from datetime import datetime

import pytest
from test_plan import flats, frames

from gdask.campaign import watch
from gdask.campaign.plan import make_plan
from gdask.campaign.survey import Options
from gdask.campaign.watch import ready_jobs

FRAMES = "frames-GSAOI-NGC5128-Kshort-20170505"
LATER = "frames-GSAOI-M83-Kshort-20170505"


def at(file, seconds):
    return file._replace(mtime_ns=int(seconds * 1e9))


def test_a_sequence_is_reduced_when_it_moves_on_or_has_settled() -> None:
    files = [at(file, 1000) for file in [*flats(4), *frames(5), *frames(5, hour=6, object="M83",
             ra=204.0)]]  # fmt: skip
    plan = make_plan(files)
    ready = ready_jobs(plan, settle=600, moving=set(), now=1100)
    assert FRAMES in ready and LATER not in ready
    assert LATER in ready_jobs(plan, settle=600, moving=set(), now=1700)


def test_files_that_are_still_written_wait_and_so_does_what_needs_them() -> None:
    files = [at(file, 1000) for file in [*flats(4), *frames(5), *frames(5, hour=6, object="M83",
             ra=204.0)]]  # fmt: skip
    plan = make_plan(files)
    flat = next(file for file in files if file.kind == "flat")
    assert ready_jobs(plan, 600, {flat.path}, 2000) == set()
    assert datetime.fromisoformat(flat.time).hour == 11


def test_a_watch_goes_on_when_a_look_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([{}, OSError("stale handle"), OSError("stale handle"), {}])

    def sizes(options: Options) -> dict:
        look = next(looks)
        if isinstance(look, OSError):
            raise look
        return look

    monkeypatch.setattr(watch, "_sizes", sizes)
    said: list[str] = []
    watch.watch(Options(("raw",), "out"), 1.0, 0.0, said.append, rounds=4)
    first, *others = said
    assert first.startswith("looking at raw every 0 s for new files; ")
    assert others == ["no file yet", "waiting: stale handle"] and next(looks, None) is None
    monkeypatch.setattr(watch, "_sizes", lambda options: (_ for _ in ()).throw(OSError("none")))
    with pytest.raises(OSError, match="none"):
        watch.watch(Options(("raw",), "out"), 1.0, 0.0, said.append, rounds=2)
