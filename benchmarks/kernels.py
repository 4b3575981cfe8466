"""Time and peak memory of compiled kernels, beside those of others that do the same.

    python -m benchmarks.kernels [--only TEXT] [--side PIXELS] [--json FILE]

A row is one case, run in a process of its own: Mpix/s of output (CPU seconds of the process, the
least of five calls, one thread), and the most memory that a call took beyond its input. gdask gives
science, variance and DQ; the references give science alone where nothing else is said. Those that
are not installed are skipped with a line.

To add a kernel: a function that takes the side of its images (pixels) and returns the call and the
number of pixels that it makes, and a line of CASES. Imports of what it needs belong into it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

#: Calls that are timed, after one that compiles.
CALLS = 5
#: Share of bad pixels, frames of a stack, and share of values that a cosmic ray has hit.
BAD_SHARE, FRAMES, HIT_SHARE = 0.005, 9, 0.001
#: Pointing (degrees) and pixel scale (arcsec) of the resampled array.
RA, DEC, SCALE = 150.0, -30.0, 0.02

Made = tuple[Callable[[], Any], int]


class Memory:
    """A source of planes in memory, as gdask.io.sources reads files."""

    def __init__(self, plane: np.ndarray) -> None:
        self.plane = plane

    def read(self, _: int, window: tuple[int, int, int, int], __: object) -> np.ndarray:
        y1, y2, x1, x2 = window
        return np.ascontiguousarray(self.plane[y1:y2, x1:x2])


def planes(shape: tuple[int, ...], level: float = 1000.0) -> tuple[np.ndarray, ...]:
    """Return data, variance and DQ: noise about a level, a few bad pixels."""
    rng = np.random.default_rng(1)
    data = rng.normal(level, 30, shape).astype(np.float32)
    dq = np.where(rng.random(shape) < BAD_SHARE, 1, 0).astype(np.uint16)
    return data, np.full(shape, 900, np.float32), dq


# Resampling ------------------------------------------------------------------------------------


def array_on_grid(side: int, pa: float) -> tuple[Any, Any]:
    """Return the geometry of a GSAOI array, cut to a side, and the grid that holds it."""
    from gdask.kernels.geometry.grid import common_grid
    from gdask.kernels.geometry.projection import Geometry

    facts = tomllib.loads((files("gdask.instruments") / "gsaoi.toml").read_text())["arrays"][0]
    terms = tuple(facts["distortion_x"]), tuple(facts["distortion_y"])
    geometry = Geometry(1, 1, *terms, RA, DEC, pa)
    return geometry, common_grid([geometry], [(side, side)], SCALE, 0.0, RA, DEC)


def resample_tiles(side: int, pa: float) -> Made:
    """Resample an array in tiles as a stack does: map, areas, mending, flags, all in the call."""
    from gdask.kernels.geometry.grid import footprint
    from gdask.steps.resampled import Resampled

    geometry, grid = array_on_grid(side, pa)
    size = side, side
    place = (geometry,), (footprint(geometry, size, grid),), size, grid
    sources = tuple(Memory(plane) for plane in planes(size))
    source = Resampled(sources, *place, "gdask", "quintic", 1.03, "benchmark")
    out = [np.empty((512, 512), kind) for kind in (np.float32, np.float32, np.uint16)]

    def call() -> None:
        for y in range(0, grid.shape[0], 512):
            for x in range(0, grid.shape[1], 512):
                y2, x2 = min(y + 512, grid.shape[0]), min(x + 512, grid.shape[1])
                tile = [plane.ravel()[: (y2 - y) * (x2 - x)] for plane in out]
                data, variance, dq = (plane.reshape(y2 - y, x2 - x) for plane in tile)
                source.fill((y, y2, x, x2), (data, variance, dq))

    return call, side * side


def resample_map(side: int, interpolation: str) -> Made:
    """Resample at the places of a map that is given."""
    from gdask.kernels.geometry.grid import pixel_map
    from gdask.kernels.resample.resampling import resample

    geometry, grid = array_on_grid(side, 180.0)
    maps = pixel_map(geometry, grid, (0, grid.shape[0], 0, grid.shape[1]))
    data, variance, dq = planes((side, side))
    return lambda: resample(data, variance, dq, *maps, interpolation=interpolation), side * side


def reproject_wcs(side: int, order: str) -> Made:
    """Science alone by reproject_interp, with the array's header and its distortion."""
    from reproject import reproject_interp

    from gdask.kernels.geometry.wcs import array_wcs, grid_header

    geometry, grid = array_on_grid(side, 180.0)
    image = planes((side, side))[0], array_wcs(geometry, (side, side))[0]
    header = grid_header(grid)
    return lambda: reproject_interp(image, header, order=order), side * side


def reproject_map(side: int, order: str) -> Made:
    """Science alone by reproject_interp, at the places of a map that is given."""
    from reproject import reproject_interp

    from gdask.kernels.geometry.grid import pixel_map
    from gdask.kernels.resample.reproject_wcs import PixelMapWCS

    geometry, grid = array_on_grid(side, 180.0)
    maps = pixel_map(geometry, grid, (0, grid.shape[0], 0, grid.shape[1]))
    image, target = (planes((side, side))[0], PixelMapWCS(maps)), PixelMapWCS()
    options = {"order": order, "shape_out": grid.shape, "roundtrip_coords": False}
    return lambda: reproject_interp(image, target, **options), side * side


def swarp(side: int) -> Made:
    """Resample science and weights by SWarp (LANCZOS3), its own process and files included."""
    from astropy.io import fits

    from gdask.kernels.geometry.wcs import array_wcs

    program = shutil.which("swarp") or shutil.which("SWarp")
    if program is None:
        raise ImportError("SWarp is not installed")
    folder = tempfile.mkdtemp()
    geometry, _ = array_on_grid(side, 180.0)
    header = fits.Header.fromstring(array_wcs(geometry, (side, side))[0].tostring())
    data, variance, _ = planes((side, side))
    fits.writeto(f"{folder}/in.fits", data, header)
    fits.writeto(f"{folder}/in.weight.fits", 1 / variance, header)
    words = [program, "in.fits", "-RESAMPLING_TYPE", "LANCZOS3", "-WEIGHT_TYPE", "MAP_WEIGHT"]
    words += ["-COMBINE", "N", "-NTHREADS", "1", "-VERBOSE_TYPE", "QUIET", "-SUBTRACT_BACK", "N"]
    return lambda: subprocess.run(words, cwd=folder, check=True), side * side


# Combination -----------------------------------------------------------------------------------


def stack_of(side: int, frames: int = FRAMES, level: float = 0.0) -> tuple[np.ndarray, ...]:
    """Return planes (frames, side / 2, side / 2) with cosmic rays."""
    data, variance, dq = planes((frames, side // 2, side // 2), level)
    data[np.random.default_rng(2).random(data.shape) < HIT_SHARE] += 2000
    return data, variance, dq


def combine_planes(side: int, frames: int = FRAMES, level: float = 0.0, **options: Any) -> Made:
    from gdask.kernels.stack.combine import combine

    data, variance, dq = stack_of(side, frames, level)
    return lambda: combine(data, variance, dq, **options), data[0].size


def combine_and_grow(side: int) -> Made:
    """Combine as `stack_frames` does by default: noiseclip, and neighbours of what is rejected."""
    from gdask.steps.stack import _combine_planes

    data, variance, dq = stack_of(side)
    options = {"method": "mean", "reject": "noiseclip"}
    return lambda: _combine_planes((data, variance, dq), options, True), data[0].size


def bottleneck(side: int, name: str) -> Made:
    """Science alone, bad pixels as NaN, nothing rejected."""
    import bottleneck

    data, _, dq = stack_of(side)
    data[dq > 0] = np.nan
    function = getattr(bottleneck, name)
    return lambda: function(data, axis=0), data[0].size


def ccdproc(side: int) -> Made:
    """Mean of science with clipping at 3 sigma by the scatter, without variance."""
    from astropy.nddata import CCDData
    from ccdproc import combine

    data, _, dq = stack_of(side)
    frames = [CCDData(d, unit="electron", mask=m > 0) for d, m in zip(data, dq, strict=True)]
    options = {"sigma_clip_low_thresh": 3, "sigma_clip_high_thresh": 3}
    return lambda: combine(frames, method="average", sigma_clip=True, **options), data[0].size


MINMAX = {"method": "median", "reject": "minmax", "nlow": 1, "nhigh": 1}
#: Name of each case, and what makes it from the side of its images.
CASES: dict[str, Callable[[int], Made]] = {
    "resample: tiles, pa 180": lambda side: resample_tiles(side, 180.0),
    "resample: tiles, pa 0 (mirrored)": lambda side: resample_tiles(side, 0.0),
    "resample: tiles, pa 90 (on its side)": lambda side: resample_tiles(side, 90.0),
    "resample: tiles, pa 37": lambda side: resample_tiles(side, 37.0),
    "resample: map given, quintic": lambda side: resample_map(side, "quintic"),
    "resample: map given, bilinear": lambda side: resample_map(side, "bilinear"),
    "  reproject, full WCS, bilinear": lambda side: reproject_wcs(side, "bilinear"),
    "  reproject, full WCS, bicubic": lambda side: reproject_wcs(side, "bicubic"),
    "  reproject, map given, bilinear": lambda side: reproject_map(side, "bilinear"),
    "  reproject, map given, bicubic": lambda side: reproject_map(side, "bicubic"),
    "  SWarp, with weights": swarp,
    "combine: 9, mean, noiseclip": lambda side: combine_planes(side, reject="noiseclip"),
    "combine: 9, mean, noiseclip, grow": combine_and_grow,
    "combine: 9, mean": lambda side: combine_planes(side, reject="none"),
    "combine: 9, median, minmax": lambda side: combine_planes(side, **MINMAX),
    "combine: 30, mean, varclip": lambda side: combine_planes(side, 30, 1e4, reject="varclip"),
    "combine: 30, mean, sigclip": lambda side: combine_planes(side, 30, 1e4, reject="sigclip"),
    "  bottleneck nanmean": lambda side: bottleneck(side, "nanmean"),
    "  bottleneck nanmedian": lambda side: bottleneck(side, "nanmedian"),
    "  ccdproc combine, sigma clip": ccdproc,
}


class Figures(NamedTuple):
    """Mpix/s, and MB that a call took at most; `why` where there is nothing to measure."""

    mpix_per_s: float
    peak_mb: float
    why: str = ""


def measure(name: str, side: int) -> Figures:
    """Measure a case in this process."""
    try:
        call, pixels = CASES[name](side)
    except ImportError as missing:
        return Figures(float("nan"), float("nan"), str(missing))
    call()  # compiles it
    before = _resident_kb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    call()
    peak = (_resident_kb("VmHWM") - before) / 1024
    seconds = []
    for _ in range(CALLS):
        begun = sum(_cpu_seconds())
        call()
        seconds.append(sum(_cpu_seconds()) - begun)
    return Figures(pixels / 1e6 / min(seconds), max(peak, 0.0))


def _cpu_seconds() -> tuple[float, float]:
    """Return the CPU seconds of this process and of its children that have ended."""
    times = os.times()
    return time.process_time(), times.children_user + times.children_system


def _resident_kb(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    return 0


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="only cases whose names hold this text")
    parser.add_argument("--side", type=int, default=2048, help="side of images, pixels")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.case:
        print(json.dumps(measure(given.case, given.side)))
        return 0
    found: dict[str, Figures] = {}
    print(f"{'':38}  Mpix/s  peak MB")
    for name in CASES:
        if given.only not in name:
            continue
        child = [sys.executable, "-m", "benchmarks.kernels", "--side", str(given.side)]
        done = subprocess.run([*child, "--case", name], capture_output=True, text=True, check=True)
        found[name] = row = Figures(*json.loads(done.stdout.splitlines()[-1]))
        text = f"skipped: {row.why}" if row.why else f"{row.mpix_per_s:7.1f} {row.peak_mb:8.0f}"
        print(f"{name:38} {text}", flush=True)
    if given.json:
        rows = {name.strip(): row._asdict() for name, row in found.items()}
        Path(given.json).write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
