"""Simulated nights, kept by their options, and their reduction with the commands that users type."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.table import Table

from benchmarks.accuracy.cases import SIZES, SPARSE, TWIN, Case
from gdask import simulate
from gdask.simulate.geometry import Chip, Pose, sky_to_pixel
from gdask.simulate.gsaoi import load_facts


class Reduced(NamedTuple):
    """A stack, the truth of its night, seconds and peak memory (MB) of the command that made it."""

    image: Path
    truth: Path
    seconds: float
    memory: float


def night(case: Case, size: str, out: Path, **changes: object) -> Path:
    """The folder of the case's raw frames and truth; simulated unless it is there already."""
    options = SIZES[size][case.instrument] | case.options
    options |= SPARSE[size] if options["field"] != "crowded" and case.instrument == "gsaoi" else {}
    options |= (TWIN[size] if case.twin else {}) | changes
    text = json.dumps([case.instrument, options], sort_keys=True)
    folder = (
        out
        / "nights"
        / f"{case.instrument}-{options['field']}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    )
    if not (folder / "complete").exists():
        make = {"gsaoi": simulate.simulate_gsaoi, "f2": simulate.simulate_f2}[case.instrument]
        make(folder, **options)
        (folder / "complete").write_text(text)
    return folder


def catalog_file(folder: Path, error_mas: float) -> Path:
    """A reference catalogue: true stars on or near the frames with Gaussian errors per axis, the brightest 3000."""
    path = folder / f"catalog_{error_mas:g}mas.fits"
    stars = Table.read(folder / "truth" / "catalog.ecsv")
    stars = stars[(stars["field"] == "target") & (stars["kind"] == "star")]
    stars = stars[_seen(folder / "truth", stars)]
    stars = stars[np.argsort(stars["mag"], kind="stable")][:3000]
    # Each night has a catalogue of its own: the same draw would give every case the same offset.
    east, north = np.random.default_rng(
        int(hashlib.sha256(folder.name.encode()).hexdigest()[:8], 16)
    ).normal(0.0, error_mas / 3.6e6, (2, len(stars)))
    ra = stars["ra"] + east / np.cos(np.radians(stars["dec"]))
    Table({"RAJ2000": ra, "DEJ2000": stars["dec"] + north, "mag": stars["mag"]}).write(
        path, overwrite=True
    )
    return path


def _seen(truth: Path, stars: Table) -> np.ndarray:
    """Stars that fall on an array of the first science frame, or within 150 pixels of one."""
    scene, frames = (
        json.loads((truth / "scene.json").read_text()),
        Table.read(truth / "frames.ecsv"),
    )
    frame = frames[frames["kind"] == "science"][0]
    pose = Pose(
        frame["ra0"],
        frame["dec0"],
        frame["pa"],
        frame["plate_scale"],
        np.array(json.loads(str(frame["warp"]))),
    )
    if scene["instrument"] == "GSAOI":
        chips = [
            Chip(np.array(a["distortion_x"]), np.array(a["distortion_y"])) for a in load_facts()[1]
        ]
    else:
        chips = [Chip(np.array(scene["chip"]["u"]), np.array(scene["chip"]["v"]))]
    seen = np.zeros(len(stars), bool)
    for chip in chips:
        x, y = sky_to_pixel(chip, pose, np.asarray(stars["ra"]), np.asarray(stars["dec"]))
        seen |= (
            np.maximum(np.abs(x - 1024.5), np.abs(y - 1024.5)) < scene["options"]["size"] / 2 + 150
        )
    return seen


def calibrate(case: Case, folder: Path) -> Path:
    """Flats (and for F2 darks and a bad-pixel mask) of a night, in a calibration database of their own."""
    work = folder / "calibrations"
    work.mkdir(exist_ok=True)
    (work / "dragonsrc").write_text(f"[calibs]\ndatabases = {work}/cal_manager.db get store\n")
    for path in (work / "cal_manager.db", *work.glob("*.fits")):
        path.unlink(missing_ok=True)
    frames = Table.read(folder / "truth" / "frames.ecsv")
    if case.instrument == "gsaoi":
        run(work, "caldb", "init")
        for bpm in sorted((folder / "raw").glob("bpm*.fits")):
            run(work, "caldb", "add", str(bpm))
        for number in sorted(set(frames["night"])):
            flats = frames[
                (frames["night"] == number) & np.isin(frames["kind"], ["flat_on", "flat_off"])
            ]
            run(work, "reduce", *paths(folder, flats))
        return work
    run(work, "caldb", "init")
    long = float(json.loads((folder / "truth" / "scene.json").read_text())["exptime"])
    darks = frames[frames["kind"] == "dark"]
    lamps = frames[np.isin(frames["kind"], ["flat_on", "flat_off"])]
    same = np.abs(darks["exptime"] - long) < 0.1
    run(work, "reduce", *paths(folder, darks[same]))
    run(
        work,
        "reduce",
        *paths(folder, lamps),
        *paths(folder, darks[~same & (darks["exptime"] < 3)]),
        "-r",
        "makeProcessedBPM",
    )
    run(work, "reduce", *paths(folder, lamps), *_mask(case, work))
    return work


def _mask(case: Case, calibrations: Path) -> list[str]:
    """FLAMINGOS-2 has no mask in the archive: the user names the one that was made."""
    return (
        []
        if case.instrument == "gsaoi"
        else ["-p", f"addDQ:user_bpm={next(calibrations.glob('*_bpm.fits'))}"]
    )


def paths(folder: Path, frames: Table) -> list[str]:
    """The raw files of rows of the truth's table."""
    return [str(folder / "raw" / name) for name in sorted(frames["file"])]


def stack(case: Case, folder: Path, calibrations: Path, work: Path, *parameters: str) -> Reduced:
    """Reduce the science frames of a night to an image. parameters: more of `-p`."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "dragonsrc").write_text(f"[calibs]\ndatabases = {calibrations}/cal_manager.db get\n")
    for path in work.glob("*_image.fits"):
        path.unlink()
    frames = Table.read(folder / "truth" / "frames.ecsv")
    science = frames[np.isin(frames["kind"], ["science", "sky"])]
    chosen = [*parameters, *_mask(case, calibrations)[1:]]
    if case.catalog is not None:
        chosen += [f"addReferenceCatalog:source={catalog_file(folder, case.catalog)}"]
        chosen += [f"determineAstrometricSolution:reference_error={case.catalog / 1000:g}"]
    seconds, memory = run(
        work, "reduce", *paths(folder, science), *(["-p", *chosen] if chosen else [])
    )
    images = sorted(work.glob("*_image.fits"))
    if len(images) != 1:
        raise RuntimeError(
            f"{case.name}: {len(images)} images in {work}: {(work / 'reduce.log').read_text()[-1500:]}"
        )
    (image,) = images
    return Reduced(image, folder / "truth", seconds, memory)


def run(folder: Path, command: str, *arguments: str) -> tuple[float, float]:
    """Run a command of the package in a folder: seconds, peak resident memory (MB). Its output goes to a file there."""
    code = f"import sys; from gdask.cli.{command} import main; sys.exit(main(sys.argv[1:]))"
    environment: dict[str, Any] = os.environ | {"DRAGONSRC": str(folder / "dragonsrc")}
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(
        [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    started = time.monotonic()
    with (folder / f"{command}.log").open("w") as log:
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
        raise RuntimeError(
            f"{command} in {folder} gave {child.returncode}: {(folder / f'{command}.log').read_text()[-2000:]}"
        )
    return time.monotonic() - started, usage.ru_maxrss / 1024
