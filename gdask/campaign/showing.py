"""Pictures of products and the report of a campaign, never in the process that runs jobs.

They are for people to look at: nothing becomes stale by them, and a failure of theirs is told and
stops nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

#: Folder of pictures, beside the products; one folder below for each product.
PICTURES = "pictures"
#: Seconds after which a process that draws the pictures of a product, or a report, is given up.
PATIENCE, REPORT_PATIENCE = 300.0, 3600.0
#: Draws frames in the process that has made them (`code`: its exit code), in its folder. There all
#: is loaded; in a process of their own it would take twice as long. What fails is drawn later.
DRAW_FRAMES = """\
if code in (0, 1):
    from contextlib import suppress
    from pathlib import Path
    with suppress(Exception):
        from gdask.report.pictures import draw_one
        for path in sorted(Path().glob("*.fits")):
            draw_one(path)
"""
_DRAW = "import sys; from gdask.report.pictures import draw_all; draw_all(sys.argv[1:])"
_REPORT = "import sys; from gdask.report import end_of_run; sys.exit(end_of_run(sys.argv[1]))"


def picture_folder(product: str | os.PathLike[str]) -> Path:
    """Give the folder of the pictures of a product."""
    path = Path(product)
    return path.parent / PICTURES / path.name.removesuffix(".fits")


def draw_pictures(products: Sequence[str]) -> str:
    """Draw pictures of those products that have none; gives what went wrong, or ''."""
    wanted = [path for path in products if not are_fresh(Path(path), picture_folder(path))]
    return _run(["-c", _DRAW, *wanted], PATIENCE * len(wanted)) if wanted else ""


def are_fresh(product: Path, folder: Path) -> bool:
    """Tell whether the pictures of a product are there and not older than itself."""
    try:
        return (folder / "pictures.json").stat().st_mtime_ns >= product.stat().st_mtime_ns
    except OSError:
        return False


def move_pictures(product: str | os.PathLike[str], final: str | os.PathLike[str]) -> None:
    """Move the pictures of a product, where it has any, to the place of its final name."""
    drawn, place = picture_folder(product), picture_folder(final)
    shutil.rmtree(place, ignore_errors=True)
    if drawn.is_dir():
        place.parent.mkdir(exist_ok=True)
        os.replace(drawn, place)


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
