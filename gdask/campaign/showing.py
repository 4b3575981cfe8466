"""Pictures of products and the report of a campaign, each in a process of its own.

They are for people to look at: nothing becomes stale by them, and a failure of theirs is told and
stops nothing. Drawing libraries stay out of the process that runs jobs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

#: Folder of pictures, beside the products; one folder below for each product.
PICTURES = "pictures"
#: Kinds of jobs whose products are drawn when they are made. To draw a sky-subtracted frame takes a
#: fifth of the time in which it is made: `gdask report` draws frames, when somebody wants to look.
DRAWN = ("dark", "bpm", "flat", "stack")
#: Seconds after which a process that draws the pictures of a product, or a report, is given up.
PATIENCE, REPORT_PATIENCE = 300.0, 3600.0
_DRAW = "import sys; from gdask.report.pictures import draw_all; draw_all(sys.argv[1:])"
_REPORT = "import sys; from gdask.report import end_of_run; sys.exit(end_of_run(sys.argv[1]))"


def picture_folder(product: str | os.PathLike[str]) -> Path:
    """Give the folder of the pictures of a product."""
    path = Path(product)
    return path.parent / PICTURES / path.name.removesuffix(".fits")


def draw_pictures(products: Sequence[str]) -> str:
    """Draw pictures of products into their folders; gives what went wrong, or ''."""
    return _run(["-c", _DRAW, *products], PATIENCE * max(len(products), 1)) if products else ""


def write_report(out: str | os.PathLike[str], say: Callable[[str], None]) -> None:
    """Write OUT/report anew from records and tables; what goes wrong is said, and no more."""
    if trouble := _run(["-c", _REPORT, os.fspath(out)], REPORT_PATIENCE):
        say(f"the report was not written ({trouble}); gdask report {os.fspath(out)} tries again")


def _run(words: Sequence[str], seconds: float) -> str:
    """Run Python with these words; gives its last words where it fails, or ''.

    Ctrl-C is not for it but for this process, whose next one ends it.
    """
    try:
        done = subprocess.run(
            [sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return f"it took more than {seconds:.0f} s"
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {done.returncode}"
