"""Memory of the calibration recipes over 6, 30 and 120 frames: projected, measured, and the same.

The frames of a set are copies of a few simulated ones. They are small, so the strips in which a
stack holds all frames are made smaller in proportion.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from astropy.table import Table

from gdask.simulate import simulate_f2, simulate_gsaoi

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's record of a peak"
)

#: Numbers of frames, and pixels a side of their arrays.
FRAMES, SIZE = (6, 30, 120), 256
#: Bytes of a strip: six frames of this size take more, as thirty full ones take more than 32 MB.
STRIP_BYTES = 4e6
#: What Python and dask themselves take for a while, how much that varies, and tasks and headers of
#: each frame, in bytes. (One array of each of 120 frames takes 80 MB with variance and DQ.)
SLACK, VARIES, FRAME_BYTES = 24e6, 4e6, 3e4
#: By recipe: kinds of raw files, in equal shares; the recipe's name.
GSAOI = {
    "dark": (("dark_long",), "default"),
    "flat": (("flat_on", "flat_off"), "default"),
    "bpm": (("flat_on", "flat_off"), "makeProcessedBPM"),
}
F2 = {
    "dark": (("dark_long",), "default"),
    "flat": (("flat_on", "flat_off"), "default"),
    "bpm": (("flat_on", "flat_off", "dark_short"), "makeProcessedBPM"),
}

MEASURE = """
import json, os, sys
import gdask.engine.compute as compute_module, gdask.engine.memory as memory
import gdask.steps.frames
from benchmarks.scaling.nights import _reduce, working_in
from benchmarks.scaling.scratch import reset_peak, resident_bytes
from gdask.io.process_memory import return_freed_memory
from gdask import Reduce, cal_service

sets, gdask.steps.frames.STRIP_BYTES = json.loads(sys.argv[1]), float(sys.argv[2])
rows = []
real, plan = compute_module._compute_in_threads, memory.fit

def planned(tasks, available, threads, what, base=0.0, fixed=False):
    result = plan(tasks, available, threads, what, base, fixed)
    rows.append([result[1].peak, len(tasks)])
    return result

def measured(*args):
    return_freed_memory()
    reset_peak()
    before = resident_bytes()
    result = real(*args)
    rows[-1].append(resident_bytes(peak=True) - before)
    return result

memory.fit, compute_module._compute_in_threads = planned, measured
found = {}
with working_in("."):
    cal_service.set_local_database().init()
    for name, recipe, paths in [sets[0], *sets]:  # the first once more: code is loaded
        reduction = Reduce()
        reduction.recipename = recipe
        rows.clear()
        _reduce(reduction, paths, {}, "threads:1", None)
        assert len(rows) == 1 and not reduction.set_aside, (rows, reduction.set_aside)
        found[name] = rows[0]
print(json.dumps(found))
"""


def measured(folder: Path, recipes: dict) -> dict[tuple[str, int], tuple[float, int, float]]:
    """Give bytes projected, tasks and bytes measured by recipe and number of frames."""
    rows = Table.read(folder / "truth" / "frames.ecsv")
    by_kind: dict[str, list[str]] = {}
    for row in rows:
        by_kind.setdefault(_kind(row), []).append(row["file"])
    sets = []
    for number in FRAMES:
        for name, (kinds, recipe) in recipes.items():
            paths = []
            for kind in kinds:
                for copy in range(number // len(kinds)):
                    source = by_kind[kind][copy % len(by_kind[kind])]
                    paths.append(_another(folder / "raw" / source, copy))
            sets.append([f"{name} {number}", recipe, paths])
    from benchmarks.scaling.scratch import MALLOC_SETTINGS

    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(sets), str(STRIP_BYTES)],
        env=os.environ | MALLOC_SETTINGS | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return {(k.split()[0], int(k.split()[1])): tuple(value) for k, value in found.items()}


def _another(source: Path, number: int) -> str:
    """Give the path of a copy of a raw file that is an exposure of its own: by its data label."""
    path = source.with_name(f"{source.stem}x{number:03d}.fits")
    if not path.exists():
        content = source.read_bytes()
        start = content.index(b"'", content.index(b"DATALAB =")) + 1
        path.write_bytes(content[:start] + b"%03d" % number + content[start + 3 :])
    return str(path)


def _kind(row: Table.Row) -> str:
    """Give the kind of a raw file, with darks by their exposure."""
    if row["kind"] != "dark" or "exptime" not in row.colnames:
        return str(row["kind"])
    return "dark_short" if row["exptime"] * row["coadds"] == 2 else "dark_long"


def check(found: dict[tuple[str, int], tuple[float, int, float]]) -> None:
    """Check what was measured against what was projected, and many frames against few."""
    for (name, number), (projected, tasks, taken) in found.items():
        print(name, number, f"{projected / 1e6:.1f} {taken / 1e6:.1f} MB, {tasks} tasks")
    for name in {name for name, _ in found}:
        few, *more = (found[name, number] for number in FRAMES)
        for number, (projected, tasks, taken) in zip(FRAMES[1:], more, strict=True):
            # Lower strips have the same margins: 17 rows for 13 with 120 frames.
            assert projected <= 1.5 * few[0], (name, number)
            assert taken <= few[2] + VARIES + number * FRAME_BYTES, (name, number)
            assert taken <= projected + SLACK + number * FRAME_BYTES, (name, number)
            # Tasks that make pixels are as many; each array of an input has one that looks at it.
            assert tasks - few[1] <= 6 * (number - FRAMES[0]), (name, number)


def test_gsaoi_calibrations_of_many_frames_take_no_more_memory(tmp_path: Path) -> None:
    simulate_gsaoi(tmp_path, size=SIZE, n_flats=2, n_darks=2, n_science=0, n_sky=0, n_std=0)
    check(measured(tmp_path, GSAOI))


def test_f2_calibrations_of_many_frames_take_no_more_memory(tmp_path: Path) -> None:
    simulate_f2(tmp_path, size=SIZE, n_science=0, n_darks=2, n_short_darks=2, n_lamps=2)
    check(measured(tmp_path, F2))
