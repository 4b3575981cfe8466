"""The log: lines on the screen and in a file. `config` has the field's name and arguments."""

from __future__ import annotations

import logging
import sys


def config(file_name: str | None = "reduce.log", mode: str = "standard") -> None:
    """Send the log to the screen and to a file; calling it again changes both, without doubled lines.

    Parameters
    ----------
    file_name
        Log file, appended to; None for none.
    mode
        'standard', 'quiet' (screen: warnings only), or 'debug'.
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
        file = logging.FileHandler(file_name, delay=True)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)-8s %(message)s"))
        file.setLevel(logging.DEBUG)
        logger.addHandler(file)


class _Plain(logging.Formatter):
    """Messages as they are; warnings and errors say so."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname}: {text}"
