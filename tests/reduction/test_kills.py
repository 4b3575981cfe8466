"""Signals at seeded moments of a reduction.

What has a final name is whole, and the next run makes the same bytes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from astropy.io import fits
from test_faults import RECIPES

import gdask
from gdask import Reduce
from gdask.caldb import associate, open_databases
from gdask.reduction.verify import verify

#: Script that imports gdask once, then forks a process for each moment and stops it. It prints the
#: phase, and checks what is on disk.
KILLER = """
import glob, os, random, re, signal, sys, time, warnings
from pathlib import Path
import gdask.cli.reduce, gdask.reduction.reduce, gdask.reduction.run, gdask.recipes.common
from astropy.io import fits
from gdask import steps
from gdask.reduction.verify import verify
for name in steps.__all__:
    getattr(steps, name)
recipe, seconds, moments = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
products, signals = sys.argv[4], sys.argv[5].split()
line = ["-q", *sys.argv[6:], "-r", recipe]
if "image" in products:
    line += ["-p", "resampleToCommonFrame:pixel_scale=0.04"]
random = random.Random(1)
warnings.simplefilter("error")
stopped = tries = 0
while stopped < moments and tries < 4 * moments:
    number = getattr(signal, signals[stopped % len(signals)])
    tries += 1
    open("reduce.log", "w").close()
    child = os.fork()
    if not child:
        warnings.resetwarnings()
        os.dup2(os.open("stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os._exit(gdask.cli.reduce.main(line))
    time.sleep(0.05 + random.uniform(0, seconds))
    os.kill(child, number)
    _, status = os.waitpid(child, 0)
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    printed = Path("stderr").read_text()
    if os.path.getsize("reduce.log"):  # else it came before the command had begun
        assert "Traceback" not in printed, printed
        assert code in (0, -number if number == signal.SIGKILL else 128 + number), (code, printed)
    if code:
        stopped += 1
        ended = re.findall(r"INFO +phase .*", Path("reduce.log").read_text())
        print(number.name, "in phase", 1 + len(ended), flush=True)
    if number != signal.SIGKILL:
        # Of those killed before it, only what is there when it begins to write is removed.
        parts = [*glob.glob("**/*.part", recursive=True), *glob.glob(".*.part")]
        left = [path for path in parts if f"-{child}-" in path]
        assert not left, left
    for path in glob.glob(products, recursive=True):
        with fits.open(path, checksum=True) as hdus:
            hdus.verify("exception")
            [hdu.data for hdu in hdus]
        assert not verify(path).faults, (path, verify(path).faults)
        if random.random() < 0.5:
            os.unlink(path)
"""


@pytest.mark.parametrize("where", ["_writer", "set_cards"])
def test_a_signal_while_files_are_begun_or_ended_leaves_nothing(
    calibrated: Path, night: object, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Between the file's appearance and the note of it, or before its last cards are in it."""
    from gdask.io import write

    (calibrated / "mine.py").write_text(RECIPES)
    files = [Path(shutil.copy(path, calibrated)).name for path in night.std]

    def interrupted(*_: object) -> None:
        assert list(calibrated.glob("**/*.part"))
        raise KeyboardInterrupt

    monkeypatch.setattr(write, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        reduce(files, "mine.py:light", "*_light.fits")
    assert not list(calibrated.glob("**/*.part"))
    with pytest.raises(KeyboardInterrupt):
        write.write(gdask.open(files[0]), calibrated / "copy.fits")
    assert not list(calibrated.glob("**/*.part"))


def pixels(folder: Path, pattern: str) -> dict[str, bytes]:
    """Read all pixels of the products in a folder."""
    found = {}
    for path in sorted(folder.glob(pattern)):
        with fits.open(path) as hdus:
            found |= {
                f"{path.name} {hdu.name} {hdu.ver}": hdu.data.tobytes()
                for hdu in hdus[1:]
                if hdu.name in ("SCI", "VAR", "DQ")
            }
    return found


def reduce(files: list[str], recipe: str, products: str) -> None:
    reduction = Reduce()
    reduction.files.extend(files)
    reduction.recipename = recipe
    if recipe == "default" and "image" in products:
        reduction.uparms["resampleToCommonFrame:pixel_scale"] = 0.04
    reduction.runr()


#: What is reduced, with which recipe, the products, how often it is stopped, and by which signals
#: in turn.
KINDS = [
    pytest.param("std", "mine.py:light", "*_light.fits", 6, "SIGKILL SIGINT SIGTERM"),
    pytest.param("std", "default", "*_image.fits", 50, "SIGKILL", marks=pytest.mark.slow),
    pytest.param("flat", "default", "**/*_flat.fits", 50, "SIGKILL", marks=pytest.mark.slow),
    pytest.param("std", "default", "*_image.fits", 40, "SIGINT SIGTERM", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "recipe", "products", "moments", "signals"), KINDS)
def test_a_run_stopped_at_any_moment_leaves_nothing_wrong(
    calibrated: Path,
    night: object,
    kind: str,
    recipe: str,
    products: str,
    moments: int,
    signals: str,
) -> None:
    """After each signal what has a final name verifies.

    The next run makes the bytes of an undisturbed one.
    """
    here = calibrated
    (here / "mine.py").write_text(RECIPES)
    files = [
        Path(shutil.copy(path, here)).name
        for path in (night.std if kind == "std" else (*night.flat_on, *night.flat_off))
    ]
    reduce(files, recipe, products)
    for path in here.glob(products):
        path.unlink()
    begin = time.monotonic()
    reduce(files, recipe, products)  # now everything is compiled
    took = time.monotonic() - begin
    expected = pixels(here, products)
    assert expected
    for path in here.glob(products):
        path.unlink()
    (here / "killer.py").write_text(KILLER)
    line = [
        sys.executable,
        "killer.py",
        recipe,
        str(1.2 * took),
        str(moments),
        products,
        signals,
        *files,
    ]
    done = subprocess.run(
        line, capture_output=True, text=True, check=False, timeout=60 + 40 * moments * took
    )
    assert done.returncode == 0, done.stderr[-3000:]
    phases = Counter(re.findall(r"in phase (\d+)", done.stdout))
    print(
        f"\n{kind}: stopped {sum(phases.values())} times by {signals}, "
        f"an undisturbed run takes {took:.1f} s; by phase: {dict(sorted(phases.items()))}"
    )
    assert sum(phases.values()) == moments
    reduce(files, recipe, products)
    assert (
        pixels(here, products) == expected
        and not list(here.glob("**/*.part"))
        and not list(here.glob(".gdask/*"))
    )
    assert all(not verify(path).faults for path in here.glob(products))
    if kind == "flat":
        found = associate(night.science[0], "processed_flat", open_databases())
        assert (
            found.chosen and Path(found.chosen).parent == here / "calibrations" / "processed_flat"
        )
