"""Simulated nights for measurements of scaling, and their reduction."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from astropy.table import Table

if TYPE_CHECKING:
    from gdask import Reduce

#: Parameters of the image's reduction, as the tutorial gives them.
IMAGE_PARAMETERS = {"prepare:bad_wcs": "fix", "skyCorrect:offset_sky": False}


def make_night(folder: str | Path, frames: int, size: int) -> Path:
    """A raw GSAOI night with 3+3 lamps; half of its science frames are on target, half on sky."""
    from gdask.simulate import simulate_gsaoi

    folder = Path(folder)
    if not (folder / "truth" / "frames.ecsv").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        simulate_gsaoi(
            folder,
            size=size,
            n_flats=3,
            n_darks=0,
            n_science=frames - frames // 2,
            n_sky=frames // 2,
            n_std=0,
        )
    return folder


def first_frames_of(night: Path, frames: int, folder: Path) -> Path:
    """The first science frames of a night, and its flats, as a night of their own.

    Its files are links to the same files.
    """
    if not (folder / "truth" / "frames.ecsv").is_file():
        rows = Table.read(night / "truth" / "frames.ecsv")
        science = [row["file"] for row in rows if row["kind"] in ("science", "sky")][:frames]
        kept = [row["file"] in science or row["kind"].startswith("flat") for row in rows]
        for part in ("raw", "truth"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for path in [
            *(night / "raw" / row["file"] for row in rows[kept]),
            *(night / "raw").glob("bpm*.fits"),
        ]:
            os.link(path, folder / "raw" / path.name)
        rows[kept].write(folder / "truth" / "frames.ecsv")
    return folder


@contextmanager
def working_in(folder: str | Path) -> Iterator[None]:
    """Work in a folder, with a calibration database of its own."""
    before, configured = os.getcwd(), os.environ.get("DRAGONSRC")
    os.chdir(folder)
    Path("dragonsrc").write_text("[calibs]\ndatabases = cal_manager.db get store\n")
    os.environ["DRAGONSRC"] = os.path.abspath("dragonsrc")
    try:
        yield
    finally:
        os.chdir(before)
        if configured is None:
            del os.environ["DRAGONSRC"]
        else:
            os.environ["DRAGONSRC"] = configured


def raw_files_of_kinds(kinds: tuple[str, ...]) -> list[str]:
    """Raw files of these kinds, below the working folder, in order of time."""
    rows = Table.read("truth/frames.ecsv")
    return sorted(os.path.join("raw", row["file"]) for row in rows if row["kind"] in kinds)


def reduce_night(folder: str | Path, cluster: str, memory: str | None = None) -> list[str]:
    """Make the flat (once for a folder), then the image; returns the products' names."""
    from gdask import Reduce

    make_flat(folder, cluster, memory)
    with working_in(folder):
        return _reduce(
            Reduce(), raw_files_of_kinds(("science", "sky")), IMAGE_PARAMETERS, cluster, memory
        )


def make_flat(folder: str | Path, cluster: str, memory: str | None = None) -> None:
    """Make a night's flat and its calibration database, where it has none."""
    from gdask import Reduce, cal_service

    with working_in(folder):
        if not Path("cal_manager.db").exists():
            database = cal_service.set_local_database()
            database.init()
            for bpm in sorted(Path("raw").glob("bpm*.fits")):
                database.add_cal(str(bpm))
            _reduce(Reduce(), raw_files_of_kinds(("flat_on", "flat_off")), {}, cluster, memory)


def make_f2_night(folder: str | Path, frames: int, size: int) -> Path:
    """A raw FLAMINGOS-2 night, dithered on the target, with three frames of each calibration."""
    from gdask.simulate import simulate_f2

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    simulate_f2(
        folder, size=size, n_science=frames, n_darks=3, n_short_darks=3, n_lamps=3, field="crowded"
    )
    return folder


def reduce_f2_night(folder: str | Path, cluster: str, memory: str | None = None) -> list[str]:
    """Make dark, bad-pixel mask and flat (once for a folder), then the image.

    Returns the products' names.
    """
    from gdask import Reduce, cal_service

    def reduced(paths: list[str], recipe: str = "default", **parameters: object) -> list[str]:
        reduction = Reduce()
        reduction.recipename = recipe
        named = {key.replace("__", ":"): value for key, value in parameters.items()}
        return _reduce(reduction, paths, named, cluster, memory)

    with working_in(folder):
        science, lamps, darks = (
            raw_files_of_kinds(("science",)),
            raw_files_of_kinds(("flat_on", "flat_off")),
            raw_files_of_kinds(("dark",)),
        )
        rows = Table.read("truth/frames.ecsv")
        short = [
            os.path.join("raw", row["file"])
            for row in rows
            if row["kind"] == "dark" and row["exptime"] * row["coadds"] == 2
        ]
        if not Path("cal_manager.db").exists():
            cal_service.set_local_database().init()
            reduced([path for path in darks if path not in short])
            (bpm,) = reduced([*lamps, *short], "makeProcessedBPM")
            reduced(lamps, addDQ__user_bpm=bpm)
        (bpm,) = sorted(str(path) for path in Path().glob("*_bpm.fits"))
        return reduced(science, addDQ__user_bpm=bpm)


def _reduce(
    reduction: Reduce,
    paths: list[str],
    parameters: dict[str, object],
    cluster: str,
    memory: str | None,
) -> list[str]:
    reduction.files.extend(paths)
    reduction.uparms.update(parameters)
    reduction.cluster = cluster
    if memory:
        reduction.memory = memory
    reduction.runr()
    return list(reduction.output_filenames)
