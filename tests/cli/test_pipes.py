"""Pipes that have a name where a file is expected: said truly, and never waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gdask.cli import main

#: Commands, of which the word PIPE is a pipe that nobody writes to or reads;
#: frame.fits is a frame.
COMMANDS = {
    "frame": "reduce PIPE.fits",
    "frame in a list": "reduce @PIPE.list",
    "calibration": "reduce frame.fits --user_cal processed_dark:PIPE.fits",
    "mask": "reduce frame.fits -p addDQ:user_bpm=PIPE.fits",
    "catalogue": "reduce frame.fits -p addReferenceCatalog:source=PIPE.csv",
    "parameters": "reduce frame.fits -c PIPE.toml",
    "profile": "reduce frame.fits --cluster PIPE.yaml",
    "recipe": "reduce frame.fits -r PIPE.py:recipe",
    "log": "reduce frame.fits --logfile PIPE.log",
    "headers": "showd -d object PIPE.fits",
    "caldb add": "caldb add PIPE.fits",
    "verify": "verify PIPE.fits",
    "replay": "replay PIPE.fits --inputs .",
    "configuration": "caldb list --config PIPE.rc",
}


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """Let a command that waits for a pipe fail: SIGALRM is no error that commands catch."""

    def stop(*_: object) -> None:
        raise SystemError("waits for a pipe")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("what", COMMANDS)
def test_a_pipe_is_no_file(
    what: str,
    workspace: Path,
    night: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    os.symlink(night.science[0], "frame.fits")
    words = COMMANDS[what].split()
    pipe = next(word for word in words if "PIPE" in word).rpartition("=")[2].lstrip("@")
    pipe = pipe.removesuffix(":recipe").removeprefix("processed_dark:")
    os.mkfifo(pipe)
    code = main(words)
    said = capsys.readouterr()
    assert code in (1, 2), said
    said_of = said.out + said.err
    assert "no such file" not in said_of, said
    assert "not a regular file" in said_of, said
    assert pipe in said_of


def test_a_list_into_a_pipe_needs_a_reader(
    workspace: Path, night: object, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo("pipe")
    words = ["dataselect", "--tags", "GSAOI", night.science[0], "-o", "pipe"]
    assert main(words) == 1
    assert "pipe: the list cannot be written" in capsys.readouterr().err
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert main(words) == 0
    assert os.path.basename(night.science[0]) in os.read(reader, 1 << 16).decode()
    os.close(reader)


LOGS = """
import logging, sys
from gdask import logutils
from gdask.cli import flush_quietly
logutils.config("own.log")
for number in range(20000):
    logging.getLogger("gdask").info("line %d", number)
flush_quietly()
"""


def test_the_log_goes_on_without_a_reader_of_the_screen(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", LOGS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, text=True, **pipes) as process:
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert (tmp_path / "own.log").read_text().endswith("line 19999\n")
