"""The tests themselves: each process of a parallel run must find the same ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def test_two_processes_collect_the_same_tests() -> None:
    """A name with something random in it, or in the order of a set, stops `make test-slow`."""
    command = [sys.executable, "-P", "-m", "pytest", "-q", "--co", "-p", "no:xdist", str(TESTS)]
    running = [
        subprocess.Popen(
            [*command, "-p", "no:cacheprovider"],
            cwd=TESTS.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        for seed in ("1", "2")
    ]
    found = [
        [line for line in (process.communicate(timeout=300)[0]).splitlines() if "::" in line]
        for process in running
    ]
    assert len(found[0]) > 1000
    assert found[0] == found[1]
