"""Simulated nights, kept by their options, and their reduction with the commands of users."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.table import Table

from benchmarks.accuracy.cases import SIZES, SPARSE_FIELD_OPTIONS, TWIN_OPTIONS, Case
from benchmarks.accuracy.catalogues import catalogue_of
from benchmarks.accuracy.positions import CATALOG_STARS
from gdask import simulate
from gdask.simulate.geometry import Chip, Pose, sky_to_pixel
from gdask.simulate.gsaoi import load_facts
from gdask.types import Mask

#: Stars up to so many pixels beside an array are in the reference catalogue.
CATALOG_MARGIN = 150


class Reduced(NamedTuple):
    """A stack, the truth of its night, seconds and peak memory (MB) of the command."""

    image: Path
    truth: Path
    seconds: float
    memory: float


def simulated_night(case: Case, size: str, out: Path, **changes: object) -> Path:
    """The folder of the case's raw frames and truth; simulated unless it is there already.

    changes: options of the simulator that take the place of the case's.
    """
    options = SIZES[size][case.instrument] | case.options
    if options["field"] != "crowded" and case.instrument == "gsaoi":
        options |= SPARSE_FIELD_OPTIONS[size]
    options |= (TWIN_OPTIONS[size] if case.twin else {}) | changes
    text = json.dumps([case.instrument, options], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    folder = out / "nights" / f"{case.instrument}-{options['field']}-{digest}"
    if not (folder / "complete").exists():
        if case.instrument == "gsaoi":
            simulate.simulate_gsaoi(folder, **options)
        else:
            simulate.simulate_f2(folder, **options)
        (folder / "complete").write_text(text)
    return folder


def make_catalog(folder: Path, error_mas: float, kind: str = "errors") -> Path:
    """A reference catalogue of the brightest true stars on or near the frames.

    Places have Gaussian errors per axis. kind: of `catalogues.KINDS`. The places and errors alone
    are written beside it: no stack that is tied to the catalogue can be better than these.
    """
    stars = Table.read(folder / "truth" / "catalog.ecsv")
    stars = stars[(stars["field"] == "target") & (stars["kind"] == "star")]
    stars = stars[_near_arrays(folder / "truth", stars)]
    stars = stars[np.argsort(stars["mag"], kind="stable")][:CATALOG_STARS]
    mjd = float(np.mean(Table.read(folder / "truth" / "frames.ecsv")["mjd"]))
    # Each night has a seed of its own: the same draw would give every case the same offset.
    seed = int(hashlib.sha256(folder.name.encode()).hexdigest()[:8], 16)
    drawn, path = folder / f"catalog_{error_mas:g}mas.fits", folder / f"catalog_{kind}.fits"
    for chosen, file in (("errors", drawn), (kind, path)):
        catalogue = catalogue_of(stars, chosen, error_mas, 2000 + (mjd - 51544.5) / 365.25, seed)
        catalogue.write(file, overwrite=True)
    return path


def _near_arrays(truth: Path, stars: Table) -> Mask:
    """Stars on an array of the first science frame, or within CATALOG_MARGIN of one."""
    scene = json.loads((truth / "scene.json").read_text())
    frames = Table.read(truth / "frames.ecsv")
    frame = frames[frames["kind"] == "science"][0]
    warp = np.array(json.loads(str(frame["warp"])))
    pose = Pose(frame["ra0"], frame["dec0"], frame["pa"], frame["plate_scale"], warp)
    if scene["instrument"] == "GSAOI":
        chips = [
            Chip(np.array(array["distortion_x"]), np.array(array["distortion_y"]))
            for array in load_facts()[1]
        ]
    else:
        chips = [Chip(np.array(scene["chip"]["u"]), np.array(scene["chip"]["v"]))]
    farthest = scene["options"]["size"] / 2 + CATALOG_MARGIN
    near = np.zeros(len(stars), bool)
    for chip in chips:
        x, y = sky_to_pixel(chip, pose, np.asarray(stars["ra"]), np.asarray(stars["dec"]))
        near |= np.maximum(np.abs(x - 1024.5), np.abs(y - 1024.5)) < farthest
    return near


def calibrate(case: Case, folder: Path) -> Path:
    """Make a night's calibrations, in a database of their own; the folder where they are.

    Flats, and for FLAMINGOS-2 darks and a bad-pixel mask.
    """
    work = folder / "calibrations"
    work.mkdir(exist_ok=True)
    (work / "dragonsrc").write_text(f"[calibs]\ndatabases = {work}/cal_manager.db get store\n")
    for path in (work / "cal_manager.db", *work.glob("*.fits")):
        path.unlink(missing_ok=True)
    frames = Table.read(folder / "truth" / "frames.ecsv")
    lamps = frames[np.isin(frames["kind"], ["flat_on", "flat_off"])]
    run_command(work, "caldb", "init")
    if case.instrument == "gsaoi":
        for bpm in sorted((folder / "raw").glob("bpm*.fits")):
            run_command(work, "caldb", "add", str(bpm))
        for number in sorted(set(frames["night"])):
            run_command(work, "reduce", *raw_files(folder, lamps[lamps["night"] == number]))
        return work
    exptime = float(json.loads((folder / "truth" / "scene.json").read_text())["exptime"])
    darks = frames[frames["kind"] == "dark"]
    of_science = np.abs(darks["exptime"] - exptime) < 0.1
    short = raw_files(folder, darks[~of_science & (darks["exptime"] < 3)])
    run_command(work, "reduce", *raw_files(folder, darks[of_science]))
    lamp_files = raw_files(folder, lamps)
    run_command(work, "reduce", *lamp_files, *short, "-r", "makeProcessedBPM")
    run_command(work, "reduce", *lamp_files, "-p", *_mask_parameters(case, work))
    return work


def _mask_parameters(case: Case, calibrations: Path) -> list[str]:
    """The mask that was made: FLAMINGOS-2 has none in the archive, so that the user names it."""
    if case.instrument == "gsaoi":
        return []
    return [f"addDQ:user_bpm={next(calibrations.glob('*_bpm.fits'))}"]


def raw_files(folder: Path, frames: Table) -> list[str]:
    """The raw files of rows of the truth's table."""
    return [str(folder / "raw" / name) for name in sorted(frames["file"])]


def reduce_science(
    case: Case, folder: Path, calibrations: Path, work: Path, *parameters: str
) -> Reduced:
    """Reduce the science frames of a night to an image, in the folder `work`.

    parameters: more of `reduce -p`. RuntimeError where there is not one image.
    """
    work.mkdir(parents=True, exist_ok=True)
    (work / "dragonsrc").write_text(f"[calibs]\ndatabases = {calibrations}/cal_manager.db get\n")
    for path in work.glob("*_image.fits"):
        path.unlink()
    frames = Table.read(folder / "truth" / "frames.ecsv")
    science = raw_files(folder, frames[np.isin(frames["kind"], ["science", "sky"])])
    chosen = [*parameters, *_mask_parameters(case, calibrations)]
    if case.catalog is not None:
        catalogue = make_catalog(folder, case.catalog, case.catalog_kind)
        chosen += [f"addReferenceCatalog:source={catalogue}"]
    seconds, memory = run_command(work, "reduce", *science, *(["-p", *chosen] if chosen else []))
    images = sorted(work.glob("*_image.fits"))
    if len(images) != 1:
        log = (work / "reduce.log").read_text()[-1500:]
        raise RuntimeError(f"{case.name}: {len(images)} images in {work}: {log}")
    return Reduced(images[0], folder / "truth", seconds, memory)


def run_command(folder: Path, command: str, *arguments: str) -> tuple[float, float]:
    """Run a command of the package in a folder; its output goes to a file there.

    Returns seconds and peak resident memory (MB). RuntimeError where the exit code is above 1.
    """
    code = f"import sys; from gdask.cli.{command} import main; sys.exit(main(sys.argv[1:]))"
    root, search_path = str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")
    environment = os.environ | {
        "DRAGONSRC": str(folder / "dragonsrc"),
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [search_path])]),
    }
    started, path = time.monotonic(), folder / f"{command}.log"
    with path.open("w") as log:
        child = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
        )
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in (0, 1):
        end = path.read_text()[-2000:]
        raise RuntimeError(f"{command} in {folder} gave {child.returncode}: {end}")
    return time.monotonic() - started, usage.ru_maxrss / 1024
