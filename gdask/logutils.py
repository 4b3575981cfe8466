"""The log: lines on the screen and in a file. `config` has the field's name and arguments."""

from __future__ import annotations

import logging
import sys
from io import TextIOWrapper

from gdask.model import UsageError, clean_lines, why_no_file


def config(file_name: str | None = "reduce.log", mode: str = "standard") -> None:
    """Send the log to the screen and to a file; a second call replaces both.

    Parameters
    ----------
    file_name
        Log file, appended to; None for none.
    mode
        'standard', 'quiet' (screen: warnings only), or 'debug'.

    Raises UsageError, at the first line, where the file cannot be written.
    """
    logger = logging.getLogger("gdask")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    screen = logging.StreamHandler(sys.stdout)
    screen.setLevel({"quiet": logging.WARNING, "debug": logging.DEBUG}.get(mode, logging.INFO))
    screen.setFormatter(_Plain())
    logger.addHandler(screen)
    if file_name:
        file = _File(file_name, delay=True)
        file.setFormatter(_Clean("%(asctime)s %(levelname)-8s %(message)s"))
        file.setLevel(logging.DEBUG)
        logger.addHandler(file)


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
