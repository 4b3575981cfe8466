"""The log and the screen. `config` has the field's name and arguments.

All that is told while work goes on is on standard output, the bar too: of two streams on one
terminal, or in one file, lines would run into each other. The bar is there only where standard
output is a terminal. In a pipe, a notebook or a batch job there are plain lines.
"""

from __future__ import annotations

import logging
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import TextIOWrapper
from typing import Any

from gdask.model import UsageError, clean_lines, why_no_file

#: The modes of the screen: from which level on messages are shown. 'null' shows none.
MODES = {
    "standard": logging.INFO,
    "quiet": logging.WARNING,
    "debug": logging.DEBUG,
    "null": logging.CRITICAL + 1,
}
#: An attribute of records (`extra=TOLD_AT_END`) that the command tells at its end anyway.
TOLD_AT_END = {"told_at_end": True}
#: The console of the terminal, the stream that it was made for, the level of the screen, and
#: whether a bar is shown.
_SCREEN: dict[str, Any] = {
    "stream": None,
    "console": None,
    "level": logging.INFO,
    "has_bar": False,
}


def config(
    file_name: str | None = "reduce.log", mode: str = "standard", tells_at_end: bool = False
) -> None:
    """Send the log to the screen and to a file; a second call replaces both.

    Parameters
    ----------
    file_name
        Log file, appended to; None for none.
    mode
        'standard', 'quiet' (screen: warnings only), 'debug', or 'null' (screen: nothing).
    tells_at_end
        Whether the program shows at its end what records with TOLD_AT_END say: the screen leaves
        these out.

    Raises UsageError for another mode, and, at the first line, where the file cannot be written.
    """
    if mode not in MODES:
        raise UsageError(f"log mode {mode}: expected one of {', '.join(MODES)}")
    logger = logging.getLogger("gdask")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    _SCREEN["level"] = MODES[mode]
    shown = _Screen()
    shown.setLevel(MODES[mode])
    shown.setFormatter(_Plain())
    if tells_at_end and mode != "debug":
        shown.addFilter(lambda record: not hasattr(record, "told_at_end"))
    logger.addHandler(shown)
    if file_name:
        file = _File(file_name, delay=True)
        file.setFormatter(_Clean("%(asctime)s %(levelname)-8s %(message)s"))
        file.setLevel(logging.DEBUG)
        logger.addHandler(file)


# The screen ------------------------------------------------------------------------------------


def say(text: str, at_fault: bool = False) -> None:
    """Show lines on the screen, above a bar where there is one, on a terminal folded at words.

    at_fault: on standard error, as what went wrong is.
    """
    stream, lines = sys.stderr if at_fault else sys.stdout, clean_lines(text)
    console = terminal()
    if console is not None and (_SCREEN["has_bar"] or stream.isatty()):
        lines = folded(lines, console.width)
    if _SCREEN["has_bar"]:
        _print(console, lines)
    else:
        print(lines, file=stream, flush=True)


def leave_closed_pipe() -> None:
    """Send to nowhere what standard output is still given: nobody reads it any more."""
    # Python flushes at exit: there must be something to flush to.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def terminal() -> Any:
    """Give the `rich` console of standard output; None where that is no terminal.

    One that cannot move its cursor (TERM=dumb) counts as none, and so does a cell of a notebook:
    Jupyter gives a command (`!reduce ...`) a terminal, and keeps each letter that it writes.
    """
    if _SCREEN["has_bar"]:
        return _SCREEN["console"]
    if not sys.stdout.isatty() or "JPY_PARENT_PID" in os.environ:
        return None
    if _SCREEN["stream"] is not sys.stdout:
        from rich.console import Console

        _SCREEN["stream"], _SCREEN["console"] = sys.stdout, Console(file=sys.stdout)
    return None if _SCREEN["console"].is_dumb_terminal else _SCREEN["console"]


@contextmanager
def bar(text: str) -> Iterator[Callable[..., None] | None]:
    """Show a bar on the terminal inside the `with` block.

    Gives a function that sets what it shows: `completed` and `total` counts, `about` (text). None
    where there is no terminal, another bar is there, or the screen shows warnings only: then the
    log has to say how it goes.
    """
    console = terminal()
    if console is None or _SCREEN["has_bar"] or _SCREEN["level"] > logging.INFO:
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(20 if console.width >= 100 else 10),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn(
            "{task.fields[about]}",
            markup=False,
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
        ),
    )
    with Progress(*columns, console=console, transient=True, expand=True) as progress:
        _SCREEN["has_bar"] = True  # `rich` stands in for both streams now
        try:
            yield partial(progress.update, progress.add_task(text, total=None, about=""))
        finally:
            _SCREEN["has_bar"] = False


def folded(text: str, width: int) -> str:
    """Give text with lines of at most `width` characters, broken between words; 0: as it is.

    A word that is longer, such as a path, stays whole. Lines that go on are indented by four.
    """
    if not width:
        return text
    fold = partial(textwrap.wrap, width=width, break_long_words=False, break_on_hyphens=False)
    lines = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        more = fold(line, subsequent_indent=f"{indent}    ") if len(line) > width else []
        lines += more or [line]
    return "\n".join(lines)


def _print(console: Any, text: str) -> None:
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


class _Screen(logging.Handler):
    """Records on standard output, whatever that is now: a notebook puts another one in its place.

    On a terminal they are above the bar, and folded at words.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text, console = self.format(record), terminal()
            if console is None:
                print(text, flush=True)
            else:
                _print(console, folded(text, console.width))
        except BrokenPipeError:  # `| head`: nobody reads the rest, the work and its log go on
            logging.getLogger("gdask").removeHandler(self)
            leave_closed_pipe()
        except Exception:  # noqa: BLE001 - as logging's own handlers do
            self.handleError(record)


# Formats ---------------------------------------------------------------------------------------


class _Clean(logging.Formatter):
    """Messages without escapes: nothing that a message quotes looks like a line of the log."""

    def format(self, record: logging.LogRecord) -> str:
        return clean_lines(super().format(record))


class _Plain(_Clean):
    """Messages as they are; warnings and errors begin with the name of their level."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname}: {text}"


class _File(logging.FileHandler):
    """A log file that stops a run before it begins if it cannot be written, and never later."""

    def _open(self) -> TextIOWrapper:
        problem = why_no_file(self.baseFilename)
        if problem not in ("", "no such file") and not self.baseFilename.startswith("/dev/"):
            raise UsageError(f"--logfile {self.baseFilename}: {problem}; name another one")
        try:
            return super()._open()
        except OSError as error:
            raise UsageError(
                f"--logfile {self.baseFilename}: cannot be written ({error.strerror}); name "
                "another one"
            ) from error

    def handleError(self, record: logging.LogRecord) -> None:
        logging.getLogger("gdask").removeHandler(self)
        logging.getLogger("gdask").warning(
            "%s: could not be written (%s); no log is kept from here on",
            self.baseFilename,
            sys.exc_info()[1],
        )
