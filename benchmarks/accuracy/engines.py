"""The same nights with each resampling engine and interpolation."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy import nights
from benchmarks.accuracy.cases import Case, measured_catalog
from benchmarks.accuracy.matched_stack import read_matched_stack
from benchmarks.accuracy.measure import figures_of_merit
from benchmarks.accuracy.report import number, table_lines
from gdask.kernels.resample.reproject_engine import resample_reprojected
from gdask.kernels.resample.reproject_methods import REPROJECT_METHODS, map_margin_of
from gdask.kernels.resample.resampling import resample
from gdask.model import DQ, GdaskError

#: Interpolations of each engine.
ENGINES = {
    "gdask": ("bilinear", "cubic", "quintic", "lanczos3"),
    "reproject": REPROJECT_METHODS,
}
#: The kernel of each engine: science, variance and DQ of one array at the places of a pixel map.
KERNELS: dict[str, Callable] = {"gdask": resample, "reproject": resample_reprojected}
#: What the kernel of each engine calls its interpolation.
KERNEL_OPTIONS = {"gdask": "interpolation", "reproject": "method"}
#: The step's own choice: no parameter is given.
DEFAULT = "default"
#: Ways of resampling, "engine:interpolation".
WAYS = tuple(f"{engine}:{name}" for engine, names in ENGINES.items() for name in names)
#: Figures of a row; Mpix/s of the kernel with variance and DQ, on one core.
COLUMNS = ("astrometry_mas", "rms_mas", "flux_bias_percent", "sky_pull", "aperture_pull")
SPEED = "kernel_mpix_per_s"

#: Side (pixels) of the array whose resampling is timed, and the share of its pixels that are bad.
SPEED_SIZE, SPEED_BAD_SHARE = 1024, 0.005
#: Its output pixels over input pixels (GSAOI: 20 and 19.7 mas), and its rotation (degrees).
SPEED_SCALE, SPEED_ROTATION = 0.02 / 0.0197, 1.0


def run(cases: Sequence[Case], ways: Sequence[str], size: str, out: Path) -> int:
    """Reduce the cases in each way; print a table for each case and write engines.json.

    Returns 1 where a way could not be reduced: its row is empty but for the speed.
    """
    speeds = {way: {SPEED: kernel_speed(way)} for way in ways}
    results: dict[str, dict[str, dict[str, float]]] = {}
    failed = False
    for case in cases:
        folder = nights.simulated_night(case, size, out)
        calibrations = nights.calibrate(case, folder)
        rows = results[case.name] = dict(speeds)
        for way in ways:
            work = out / "stacks" / f"{case.name}-{way.replace(':', '-')}"
            try:
                rows[way] = _figures(case, folder, calibrations, work, way) | speeds[way]
            except RuntimeError as error:
                failed = True
                print(f"{case.name}, {way}: {error}", file=sys.stderr, flush=True)
        print("\n".join(["", case.name, "", *rows_of(rows)]), flush=True)
    (out / "engines.json").write_text(json.dumps(results, indent=1))
    return int(failed)


def rows_of(figures: dict[str, dict[str, float]]) -> list[str]:
    """A Markdown table of one case, a row for each engine and interpolation."""
    columns = (*COLUMNS, SPEED)
    return table_lines(
        ["engine", "interpolation", *columns],
        [
            [*_split(way), *(number(column, values) for column in columns)]
            for way, values in figures.items()
        ],
    )


def _split(way: str) -> tuple[str, str]:
    """Engine and interpolation; of the default no interpolation."""
    engine, _, interpolation = way.partition(":")
    return engine, interpolation


def parameters_of(way: str) -> tuple[str, ...]:
    """What `reduce -p` gets for a way of resampling."""
    if way == DEFAULT:
        return ()
    engine, interpolation = _split(way)
    step = "resampleToCommonFrame"
    return f"{step}:engine={engine}", f"{step}:interpolation={interpolation}"


def _figures(
    case: Case, folder: Path, calibrations: Path, work: Path, way: str
) -> dict[str, float]:
    reduced = nights.reduce_science(case, folder, calibrations, work, *parameters_of(way))
    stack = read_matched_stack(reduced.image, reduced.truth)
    return figures_of_merit(stack, measured_catalog(case))[0]


def kernel_speed(way: str) -> float:
    """Mpix/s (output pixels, CPU seconds of this process) of a kernel; the best of three.

    NaN where the engine does not know the interpolation.
    """
    engine, interpolation = _split(way)
    options: dict[str, Any] = {}
    margin = 0
    if way != DEFAULT:
        options[KERNEL_OPTIONS[engine]] = interpolation
    if engine == "reproject" and interpolation in REPROJECT_METHODS:
        margin = options["map_margin"] = map_margin_of(interpolation)
    kernel = KERNELS["gdask" if way == DEFAULT else engine]
    rng, shape = np.random.default_rng(1), (SPEED_SIZE, SPEED_SIZE)
    data = rng.normal(1000, 30, shape).astype(np.float32)
    dq = np.where(rng.random(shape) < SPEED_BAD_SHARE, DQ.BAD_PIXEL, 0).astype(np.uint16)
    side = slice(-margin, SPEED_SIZE + margin)
    y, x = (grid - SPEED_SIZE / 2 for grid in np.mgrid[side, side])
    angle = math.radians(SPEED_ROTATION)
    cosine, sine = SPEED_SCALE * math.cos(angle), SPEED_SCALE * math.sin(angle)
    ymap, xmap = (cosine * y - sine * x, sine * y + cosine * x)
    planes = data, np.full_like(data, 900), dq, ymap + SPEED_SIZE / 2, xmap + SPEED_SIZE / 2
    try:
        kernel(*planes, **options)  # compiles it
        seconds = []
        for _ in range(3):
            begun = time.process_time()
            kernel(*planes, area_ratio=SPEED_SCALE**2, **options)
            seconds.append(time.process_time() - begun)
    except (GdaskError, KeyError, ValueError):
        return math.nan
    return float(data.size / 1e6 / min(seconds))
