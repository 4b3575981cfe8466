"""What commands show on terminals of 80 and 120 columns, and in a pipe.

A terminal is a real one (a pseudo-terminal of the kernel); `pyte` shows what a person would see.
"""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from conftest import Night

from gdask import cli, logutils
from gdask.cli import dataselect, typewalk
from gdask.cli import reduce as reduce_command

pyte = pytest.importorskip("pyte")

#: Rows of the terminal: more than any command here shows, so that nothing scrolls away.
ROWS = 400
#: A command as a program of its own.
RUN = [sys.executable, "-c", "import sys; from gdask.cli import main; sys.exit(main())"]


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Take away what commands set for the rest of the process: handlers and level of the log."""
    logger = logging.getLogger("gdask")
    before = list(logger.handlers), logger.level, logger.propagate, dict(logutils._SCREEN)
    yield
    logger.handlers[:], logger.level, logger.propagate = before[:3]
    logutils._SCREEN.update(before[3])


def in_terminal(
    command: Sequence[str], columns: int, folder: Path
) -> tuple[list[str], list[list[str]], str]:
    """Run a command of gdask in a terminal.

    Gives the lines on the screen at the end, the screens after each part of the output, and all
    that came, as text.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [*RUN, *command],
        cwd=folder,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment | {"TERM": "xterm-256color"},
        start_new_session=True,
    )
    os.close(slave)
    screen = pyte.Screen(columns, ROWS)
    stream = pyte.ByteStream(screen)
    content, screens = b"", []
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the program has ended
            break
        if not part:
            break
        content += part
        stream.feed(part)
        screens.append(shown(screen))
    os.close(master)
    assert process.wait() in (0, 3), content.decode()
    return shown(screen), screens, content.decode()


def shown(screen: object) -> list[str]:
    """Give the lines of a screen down to the last that is not empty."""
    lines = [line.rstrip() for line in screen.display]  # type: ignore[attr-defined]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def in_pipe(command: Sequence[str], folder: Path) -> tuple[str, str]:
    """Run a command of gdask with its output in pipes; give both."""
    done = subprocess.run([*RUN, *command], cwd=folder, capture_output=True, check=False)
    assert done.returncode in (0, 3), done.stderr.decode()
    return done.stdout.decode(), done.stderr.decode()


def unfolded(lines: Sequence[str]) -> list[str]:
    """Give lines as they were before they were folded, with # for numbers."""
    found: list[str] = []
    for line in lines:
        if line.startswith("    ") and found:
            found[-1] += " " + line.strip()
        else:
            found.append(line)
    # What is compiled depends on what earlier runs have left.
    return [without_numbers(line) for line in found if line and not line.startswith("compiling")]


def without_numbers(line: str) -> str:
    line = re.sub(r"\d[\d.e+-]*( (MB|GB|kB|GiB|MiB|s|min)\b)?", "#", " ".join(line.split()))
    return line


@pytest.mark.parametrize("columns", [80, 120])
def test_reduce_on_a_terminal(columns: int, night: Night, calibrated: Path) -> None:
    """The bar is in lines of its own, and the log has the lines that it has in a pipe."""
    command = ["reduce", *night.flat_on, *night.flat_off]
    piped, _ = in_pipe(command, calibrated)
    for product in calibrated.glob("*_flat.fits"):
        product.unlink()
    lines, screens, content = in_terminal(command, columns, calibrated)
    assert unfolded(lines) == unfolded(piped.splitlines())
    assert all(len(line) <= columns for line in lines if " " in line.strip())
    bars = [line for screen in screens for line in screen if "━" in line]
    assert bars, "no bar was seen"
    for bar in bars:
        assert re.match(r"phase \d: \S+( frames?)? +[━╸╺ ]+ +\d+%", bar), bar
        assert len(bar) <= columns
    for screen in screens:
        assert sum("━" in line for line in screen) <= 1
    assert "━" not in "".join(lines)
    assert content.count("\x1b[?25l") == content.count("\x1b[?25h")  # the cursor is there again


def test_reduce_in_a_pipe(night: Night, calibrated: Path) -> None:
    out, err = in_pipe(["reduce", *night.flat_on, *night.flat_off], calibrated)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out + err)
    assert "━" not in out and "phase 1: " in out


def test_a_pipe_and_a_terminal_that_does_not_move_its_cursor_have_no_bar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert logutils.terminal() is None  # pytest's own output is a file
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    assert logutils.terminal() is None
    with logutils.bar("text") as bar:
        assert bar is None


def test_lines_are_folded_at_words() -> None:
    path = "/a/long/path/that/must/stay/whole/to/be/copied.fits"
    text = f"one two three four five six {path} seven"
    lines = logutils.folded(text, 30).split("\n")
    assert lines == ["one two three four five six", f"    {path}", "    seven"]
    assert logutils.folded("a b\n\n    c", 30) == "a b\n\n    c"
    assert logutils.folded(text, 0) == text


def test_a_frame_that_is_left_out_is_told_once(
    night: Night, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The screen has it in the table at the end; the log file also at its time."""
    assert reduce_command.main([*night.flat_on, *night.flat_off, night.dark[0]]) == 1
    name = os.path.basename(night.dark[0])
    said = capsys.readouterr()
    assert (said.out + said.err).count(name) == 1
    assert "1 left out:" in said.err and name in said.err
    assert Path("reduce.log").read_text().count(f"{name} set aside") == 1


@pytest.mark.parametrize("columns", [80, 120, 0])
def test_a_campaign_says_what_happens(columns: int, night: Night, tmp_path: Path) -> None:
    command = ["run", str(night.folder / "raw"), "-o", "out", "--until", "calibrations"]
    if not columns:
        out, err = in_pipe(command, tmp_path)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out + err)
        lines = out.splitlines()
    else:
        lines, screens, _ = in_terminal(command, columns, tmp_path)
        assert all(len(line) <= columns for line in lines if " " in line.strip())
        bars = [line for screen in screens for line in screen if "━" in line]
        assert any(re.match(r"gdask run +[━╸╺ ]+ +\d+% .*1 running: flat-", bar) for bar in bars)
        assert all(len(bar) <= columns and "begins" not in bar for bar in bars)
        assert "━" not in "".join(lines)
    text = " ".join(" ".join(lines).split())
    begins = text.index("begins, 6 files")
    assert text.index("1 of 1 jobs to do, ") < begins < text.index("[1/1] flat-")


# Words -----------------------------------------------------------------------------------------


def test_a_list_says_how_many(night: Night, capsys: pytest.CaptureFixture[str]) -> None:
    raw = str(night.folder / "raw")
    names = sorted(str(path) for path in Path(raw).glob("S*.fits"))
    out = str(night.folder / "a.list")
    assert dataselect.main([*names, "--tags", "FLAT", "-o", out]) == 0
    assert capsys.readouterr().err == f"6 files in {out}\n"
    assert typewalk.main(["-d", raw, "--tags", "DARK", "-o", out]) == 0
    assert capsys.readouterr().err == f"3 files in {out}\n"


@pytest.mark.parametrize("option", ["--tags", "--xtags"])
def test_an_unknown_tag_is_refused_with_the_nearest(
    option: str, night: Night, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typewalk.main(["-d", str(night.folder), option, "FLATT"]) == 2
    said = capsys.readouterr()
    assert not said.out and "tag FLATT: unknown; did you mean FLAT? There are " in said.err
    assert dataselect.main([night.bpm, option, "flat,darkk"]) == 2
    assert "tag darkk: unknown; did you mean DARK?" in capsys.readouterr().err


def test_a_known_tag_that_no_file_has_is_told(
    night: Night, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typewalk.main(["-d", str(night.folder), "--tags", "TWILIGHT"]) == 0
    assert "no file below" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mode", "qa"], "one mode, science quality"),
        (["--ql"], "one mode, science quality"),
        (["--drpkg", "mydr"], "--drpkg mydr: not offered: gdask's recipes are its own"),
        (["--adpkg", "soar_instruments"], "GSAOI and FLAMINGOS-2 by rules of its own"),
        (["--upload", "metrics", "science"], "--upload metrics science: not offered"),
        (["--local_db_dir", "."], "name the database in dragonsrc"),
        (["--logmode", "loud"], "invalid choice: 'loud'"),
        (["-q", "--logmode", "debug"], "two log modes"),
    ],
)
def test_options_of_the_peer_that_are_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reduce_command.main(["x.fits", *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_options_of_the_peer_that_are_understood(
    night: Night, calibrated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from gdask import __version__

    assert reduce_command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"gdask {__version__}\n"
    words = ["--mode", "sq", "--drpkg", "geminidr", "--logmode", "null", "-r", "checkWCS"]
    assert cli.main(["reduce", *night.science[:2], *words]) == 0
    said = capsys.readouterr()
    assert not said.out and not said.err
