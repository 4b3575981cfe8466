"""Signals that come when a command has ended and its interpreter has not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

#: Runs a command as a program; NUMBER comes while functions run that are called at the exit, or
#: when the interpreter takes its objects down, behind its own handlers.
PROGRAM = """
import atexit, os, sys
from gdask import cli

class Last:
    def __init__(self):
        self.kill, self.number = os.kill, NUMBER
        self.own = os.getpid()
    def __del__(self):
        self.kill(self.own, self.number)

if "LATE":
    sys.last_of_all = Last()
sys.argv = ["gdask", "typewalk", "-d", "."]
code = cli.main()
if not "LATE":
    atexit.register(os.kill, os.getpid(), NUMBER)
sys.exit(code)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("late", ["", "yes"])
def test_a_signal_at_the_end_is_an_exit_code(
    number: signal.Signals, late: str, tmp_path: Path
) -> None:
    """128 and its number, or, where nothing is left to be stopped, that of the command."""
    text = PROGRAM.replace("NUMBER", str(int(number))).replace("LATE", late)
    done = subprocess.run(
        [sys.executable, "-c", text],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == (0 if late else 128 + number), done.stderr
    assert "Traceback" not in done.stderr


def test_a_signal_while_a_connection_ends_is_one_line(tmp_path: Path) -> None:
    """SQLAlchemy would tell of it with a traceback where nobody else listens to its log."""
    program = """
import os, signal, sys
from sqlalchemy import event, pool
from gdask import cli

event.listen(pool.Pool, "reset", lambda *_: os.kill(os.getpid(), signal.SIGINT))
sys.argv = ["gdask", "caldb", "init"]
sys.exit(cli.main())
"""
    (tmp_path / "dragonsrc").write_text("[calibs]\ndatabases = cal_manager.db get store\n")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "DRAGONSRC": "dragonsrc"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (130, -signal.SIGINT), done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
