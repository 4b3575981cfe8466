"""SIGKILL of any process of a campaign on a cluster at 20 seeded moments: the same products."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from test_cluster_kills import SCHEDULER, cluster, victims, with_signal

from gdask.campaign import records
from gdask.cli import main

pytestmark = pytest.mark.slow

KINDS = ("client", "worker", "scheduler", "job", "nanny")
KILLS = 20


def products(out: Path) -> dict[str, str]:
    """Give the digests of content of all products, by path."""
    found = {
        path.relative_to(out): path for path in out.rglob("*.fits") if ".campaign" not in str(path)
    }
    return {str(name): records.content_digest(path) for name, path in sorted(found.items())}


def begin(out: Path) -> subprocess.Popen:
    """Begin the one command of the campaign, on the cluster."""
    line = [sys.executable, "-m", "gdask.cli.run", "sky/raw", "-o", str(out)]
    with open("run.log", "a") as log:
        return subprocess.Popen(
            [*line, "--cluster", SCHEDULER], stdout=log, stderr=subprocess.STDOUT
        )


def jobs_of(nannies: list[subprocess.Popen]) -> list[psutil.Process]:
    """Give the processes of jobs: those that work in a folder of their own."""
    family = [
        child
        for nanny in nannies
        if nanny.poll() is None
        for child in psutil.Process(nanny.pid).children(recursive=True)
    ]
    found = []
    for child in family:
        try:
            if ".campaign" in child.cwd():
                found.append(child)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def test_whatever_of_a_campaign_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time the same line is typed again; a whole campaign is compared, and made anew."""
    monkeypatch.chdir(tmp_path)
    line = "simulate campaign sky -q --nights 2 --instruments gsaoi --compress none"
    assert main(line.split()) == 0
    assert main(["run", "sky/raw", "-o", "whole", "-q"]) in (0, 3)
    whole, out = products(Path("whole")), Path("out")
    assert len(whole) >= 5
    moments = random.Random(17)
    killed: list[str] = []
    compared = 0
    while len(killed) < KILLS or not compared:
        with cluster() as (scheduler, nannies):
            run = begin(out)
            while run.poll() is None and scheduler.poll() is None:
                try:
                    run.wait(moments.uniform(1.0, 12.0))
                except subprocess.TimeoutExpired:
                    kind = KINDS[len(killed) % len(KINDS)]
                    aims = (
                        jobs_of(nannies)[:1]
                        if kind == "job"
                        else victims(kind, run, scheduler, nannies)
                    )
                    if len(killed) < KILLS and sum(with_signal(p, signal.SIGKILL) for p in aims):
                        killed.append(kind)
                        nannies = [each for each in nannies if each.poll() is None] or nannies
            # Without its scheduler it ends by itself, with a line that says so.
            assert run.wait(300) in (0, 1, 3, -signal.SIGKILL)
        if run.returncode in (0, 3):
            assert products(out) == whole
            compared += 1
            shutil.rmtree(out)
    assert {kind: killed.count(kind) for kind in KINDS} == dict.fromkeys(KINDS, KILLS // len(KINDS))
    assert "Traceback" not in Path("run.log").read_text()
