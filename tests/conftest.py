"""A small simulated night that the tests of the pipeline share, and folders to reduce it in."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import dask
import pytest

_TESTS = Path(__file__).parent
# For helpers.py, for benchmarks/, and for what tests of clusters, of faults and of files share.
sys.path += [
    str(path)
    for path in (
        _TESTS,
        _TESTS.parent,
        *(_TESTS / name for name in ("cluster", "reduction", "campaign", "io", "plot", "report")),
    )
]

# A shell's background jobs ignore interrupts, and so would what they start; tests that interrupt
# need them.
signal.signal(signal.SIGINT, signal.default_int_handler)

#: Kinds of raw files of the night, beside the mask.
KINDS = ("science", "sky", "flat_on", "flat_off", "dark", "std")


class Night(NamedTuple):
    """The raw files of a night by kind, in order of time, and the folder that they are in."""

    folder: Path
    science: list[str]
    sky: list[str]
    flat_on: list[str]
    flat_off: list[str]
    dark: list[str]
    std: list[str]
    bpm: str

    @property
    def sequence(self) -> list[str]:
        """All science frames, on target and on sky, in order of time."""
        return sorted([*self.science, *self.sky])

    @property
    def truth(self) -> Path:
        return self.folder / "truth"


@pytest.fixture(autouse=True)
def no_scheduler_is_left() -> Iterator[None]:
    """Check that a test leaves no cluster as the place of all computes, for the later ones."""
    yield
    assert dask.config.get("scheduler", None) is None


@pytest.fixture(scope="session")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """Simulate a night of a crowded field.

    5 frames on target and 4 on sky, of which 3 have a bad WCS; 3+3 flats, 3 darks, 3 standards.
    """
    from astropy.table import Table

    from gdask.simulate import simulate_gsaoi

    folder = tmp_path_factory.mktemp("night")
    simulate_gsaoi(folder, size=320, n_flats=3, n_darks=3, n_science=5, n_sky=4, n_std=3)
    rows = Table.read(folder / "truth" / "frames.ecsv")
    files = {
        kind: sorted(str(folder / "raw" / row["file"]) for row in rows if row["kind"] == kind)
        for kind in KINDS
    }
    (bpm,) = (folder / "raw").glob("bpm*.fits")
    return Night(folder, bpm=str(bpm), **files)


@contextmanager
def _working_folder(folder: Path, night: Night, *other_databases: Path) -> Iterator[Path]:
    """Work in `folder` inside the `with` block, with raw/ and calibration databases of its own."""
    (folder / "raw").symlink_to(night.folder / "raw")
    lines = ["cal_manager.db get store", *(f"{path} get" for path in other_databases)]
    (folder / "dragonsrc").write_text("[calibs]\ndatabases = " + "\n    ".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRAGONSRC", str(folder / "dragonsrc"))
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="session")
def reduced(night: Night, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reduce the night in a folder: BPM registered, flat made, science frames stacked."""
    from gdask import Reduce, cal_service

    folder = tmp_path_factory.mktemp("reduced")
    with _working_folder(folder, night):
        database = cal_service.set_local_database()
        database.init()
        database.add_cal(night.bpm)
        flats = Reduce()
        flats.files.extend([*night.flat_on, *night.flat_off])
        flats.runr()
        science = Reduce()
        science.files.extend(night.sequence)
        science.uparms["prepare:bad_wcs"] = "fix"
        science.uparms["skyCorrect:offset_sky"] = False
        science.runr()
    return folder


@pytest.fixture
def workspace(night: Night, tmp_path: Path) -> Iterator[Path]:
    """Give the working folder of one test: raw/, an empty calibration database, nothing else."""
    folder = tmp_path / "work"
    folder.mkdir()
    with _working_folder(folder, night):
        yield folder


@pytest.fixture
def calibrated(night: Night, reduced: Path, tmp_path: Path) -> Iterator[Path]:
    """Give the working folder of one test: raw/, and BPM and flat of `reduced` in a database.

    This database is only read.
    """
    folder = tmp_path / "work"
    folder.mkdir()
    with _working_folder(folder, night, reduced / "cal_manager.db"):
        yield folder


@pytest.fixture
def no_compute() -> Iterator[None]:
    """Let every compute of dask fail during a test."""

    def refuse(*args: object, **kwargs: object) -> object:
        raise AssertionError("a compute while a graph is built")

    with dask.config.set(scheduler=refuse):
        yield


@pytest.fixture(autouse=True)
def _quiet_log() -> Iterator[None]:
    """Restore the log after a test, without the handlers of a command that it has run."""
    yield
    logger = logging.getLogger("gdask")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True, scope="session")
def _fast() -> Iterator[None]:
    """Let no library start threads, for test processes share the cores; wait for no disk."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def flat(reduced: Path, tmp_path: Path) -> Path:
    """Copy the flat of `reduced`, to be changed."""
    (found,) = reduced.glob("*_flat.fits")
    return Path(shutil.copy(found, tmp_path))


@pytest.fixture
def image(reduced: Path, tmp_path: Path) -> Path:
    """Copy the stack of `reduced`, to be changed."""
    (found,) = reduced.glob("*_image.fits")
    return Path(shutil.copy(found, tmp_path))
