"""A user who may not write the installation, and a clock that jumps."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from astropy.io import fits
from helpers import content

import gdask

#: A user of every Linux system without rights, and nobody's home.
NOBODY, NO_HOME = 65534, "/nonexistent"
#: Moves the clock a day back while pixels are computed: libfaketime reads the offset from a file.
JUMPS = """
import os, sys, time
from gdask.engine import compute as module
from gdask.reduction import phases

def jumping(*arguments):
    with open(os.environ["FAKETIME_TIMESTAMP_FILE"], "w") as file:
        file.write("-1d")
    return found(*arguments)

found, phases.compute = phases.compute, jumping
before = time.time()
from gdask.cli.reduce import main
code = main(sys.argv[1:])
print("clock", round((time.time() - before) / 86400))
sys.exit(code)
"""


@pytest.fixture
def others_folder() -> Iterator[Path]:
    """Give a folder of user nobody; those of pytest are for their owner alone."""
    if os.getuid() != 0:
        pytest.skip("only root can be somebody else")
    folder = Path(tempfile.mkdtemp(prefix="gdask-other-"))
    os.chown(folder, NOBODY, NOBODY)
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_nobody(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as user nobody, who can read everything and write nothing but a folder."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("no setpriv (util-linux)")
    # Where the interpreter lies in root's home, nobody may read there; write they may not.
    reading = [f"--{which}-caps=+dac_read_search" for which in ("inh", "ambient")]
    user = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    program = "import sys; from gdask.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [setpriv, *user, *reading, "--no-new-privs", sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": NO_HOME, "TMPDIR": str(folder)},
    )
    if done.stderr.startswith("setpriv"):
        pytest.skip(f"rights cannot be given away here: {done.stderr.strip()}")
    return done


def installation() -> dict[str, int]:
    """Give the files of the package, with their times of change."""
    package = Path(gdask.__file__).parent
    return {str(path): path.stat().st_mtime_ns for path in package.rglob("*") if path.is_file()}


def test_headers_are_read_by_whoever_may_read_the_installation(
    others_folder: Path, night: object
) -> None:
    shutil.copy(night.science[0], others_folder / "S1.fits")
    before = installation()
    done = as_nobody(["showd", "-d", "object", "S1.fits"], others_folder)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "S1.fits" in done.stdout and installation() == before
    assert os.listdir(others_folder) == ["S1.fits"]


@pytest.mark.slow
def test_nobody_reduces_with_an_installation_that_is_read_only(
    others_folder: Path, night: object
) -> None:
    """With no home what is compiled is not kept, or is read from beside the code."""
    names = [shutil.copy(path, others_folder) for path in night.dark]
    before = installation()
    done = as_nobody(["reduce", *map(os.path.basename, names)], others_folder)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and installation() == before
    (product,) = others_folder.glob("*_dark.fits")
    assert product.stat().st_uid == NOBODY
    with fits.open(product, checksum=True) as hdus:
        assert [hdu.verify_checksum() for hdu in hdus] == [1] * len(hdus)


def test_a_folder_of_others_is_not_written(others_folder: Path, night: object) -> None:
    """A product in a folder of root's is refused in one line."""
    locked = others_folder / "locked"
    locked.mkdir(mode=0o755)
    os.chown(locked, 0, 0)
    names = [shutil.copy(path, locked) for path in night.dark]
    done = as_nobody(["reduce", *map(os.path.basename, names)], locked)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
    assert "Permission denied" in done.stderr or "cannot be written" in done.stderr
    assert sorted(os.listdir(locked)) == sorted(map(os.path.basename, names))


def test_a_clock_that_jumps_back_changes_nothing(
    workspace: Path, night: object, tmp_path: Path
) -> None:
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        pytest.skip("no libfaketime (Debian: apt-get install libfaketime)")
    offset = tmp_path / "offset"
    products = []
    for jumps in (False, True):
        offset.write_text("+0")
        fake = {
            "LD_PRELOAD": str(libraries[0]),
            "FAKETIME_TIMESTAMP_FILE": str(offset),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", JUMPS, *night.dark],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | (fake if jumps else {"FAKETIME_TIMESTAMP_FILE": str(offset)}),
        )
        assert done.returncode == 0, done.stderr
        assert f"clock {-1 if jumps else 0}" in done.stdout, done.stdout
        said = done.stdout + done.stderr
        assert not re.search(r"(?<![\w.])-\d[\d.]* (s|frames/min|MB)", said), said
        (path,) = workspace.glob("*_dark.fits")
        products.append(content(path))
        path.unlink()
        assert not (workspace / ".gdask").exists()
    assert products[0] == products[1]
