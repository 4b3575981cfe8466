"""Why a command has failed, in a word or two, from its exit code and the last lines of its log."""

from __future__ import annotations

import signal
from collections.abc import Sequence


def cause_of(code: int, log: Sequence[str]) -> str:
    """Say in a word or two why a command has failed, from its exit code and last lines."""
    text = "\n".join(log)
    if "No space left" in text or "disk is full" in text:
        return "disk full"
    if "GiB may be used" in text:  # refused before it began, by the limit that was given
        return "too little memory"
    if "out of memory" in text or "MemoryError" in text or "does not fit" in text:
        return "out of memory"
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return "killed"
    if code < 0 or code > 128:
        return "killed" if code in (-signal.SIGTERM, 128 + signal.SIGTERM) else "crashed"
    return "refused" if code == 2 else "error"


def message_of(log: Sequence[str]) -> str:
    """Give what the command itself said of its failure; else its last line."""
    lines = [line for line in log if line.startswith(("reduce:", "reduce.py:"))]
    return (lines[-1] if lines else log[-1] if log else "no message").partition(": ")[2] or "?"
