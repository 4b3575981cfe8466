"""Simulated GSAOI nights for these measurements, and their reduction."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from astropy.table import Table

PARAMETERS = {"prepare:bad_wcs": "fix", "skyCorrect:offset_sky": False}


def make_night(folder: str | Path, frames: int, size: int) -> Path:
    """A raw night with so many science frames, half on target and half on sky, and with a flat made from 3+3 lamps."""
    from gdask.simulate import simulate_gsaoi

    folder = Path(folder)
    if not (folder / "truth" / "frames.ecsv").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        simulate_gsaoi(folder, size=size, n_flats=3, n_darks=0, n_science=frames - frames // 2, n_sky=frames // 2, n_std=0)
    return folder


@contextmanager
def working_in(folder: str | Path) -> Iterator[None]:
    """Inside: `folder` is the working folder, with calibration databases of its own."""
    before, configured = os.getcwd(), os.environ.get("DRAGONSRC")
    os.chdir(folder)
    Path("dragonsrc").write_text("[calibs]\ndatabases = cal_manager.db get store\n")
    os.environ["DRAGONSRC"] = os.path.abspath("dragonsrc")
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.pop("DRAGONSRC") if configured is None else os.environ.__setitem__("DRAGONSRC", configured)


def files(kinds: tuple[str, ...]) -> list[str]:
    """Raw files of these kinds, below the working folder, in order of time."""
    rows = Table.read("truth/frames.ecsv")
    return sorted(os.path.join("raw", row["file"]) for row in rows if row["kind"] in kinds)


def reduce_night(folder: str | Path, cluster: str, memory: str | None = None) -> list[str]:
    """The flat (once for a folder), then the image; gives the products' names."""
    from gdask import Reduce, cal_service

    with working_in(folder):
        if not Path("cal_manager.db").exists():
            database = cal_service.set_local_database()
            database.init()
            for bpm in sorted(Path("raw").glob("bpm*.fits")):
                database.add_cal(str(bpm))
            _reduce(Reduce(), files(("flat_on", "flat_off")), {}, cluster, memory)
        return _reduce(Reduce(), files(("science", "sky")), PARAMETERS, cluster, memory)


def _reduce(reduction: object, paths: list[str], parameters: dict[str, object], cluster: str, memory: str | None) -> list[str]:
    reduction.files.extend(paths)
    reduction.uparms.update(parameters)
    reduction.cluster = cluster
    if memory:
        reduction.memory = memory
    reduction.runr()
    return list(reduction.output_filenames)
