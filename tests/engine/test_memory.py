"""The projection of memory: arithmetic, declarations of tasks, measurements, same bytes."""

from __future__ import annotations

import gc
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import psutil
import pytest

from gdask import GdaskError, Reduce
from gdask.engine import memory
from gdask.engine.compute import compute
from gdask.engine.memory import (
    PROCESS_BYTES,
    Projection,
    fit,
    garbage_collected,
    garbage_left,
    parse_bytes,
    project,
)
from gdask.io.dask_internals import optimised_tasks
from gdask.io.frames import array_headers, primary_header, with_headers
from gdask.io.gather import gather
from gdask.io.lazy_arrays import declared_memory, map_arrays, map_planes
from gdask.io.read import lazy_variables
from gdask.io.sources import Source
from gdask.io.stored import Plane, StoredArray
from gdask.model import UsageError, use_settings
from gdask.steps.frames import STRIP_BYTES, strip_rows
from gdask.types import Window

# Garbage ---------------------------------------------------------------------------------------


def test_garbage_is_left_by_the_client_and_collected_in_computes() -> None:
    before = gc.get_threshold()
    with pytest.raises(RuntimeError), garbage_left():
        assert gc.get_threshold()[0] == 0
        with garbage_left():  # a second reduction, in another thread
            with garbage_collected():
                assert gc.get_threshold() == before
                assert gc.get_freeze_count() > 0
            assert gc.get_threshold()[0] == 0
        assert gc.get_threshold()[0] == 0
        raise RuntimeError
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
    with garbage_collected():
        assert gc.get_threshold() == before
        assert gc.get_freeze_count() == 0


def test_freed_memory_is_kept_between_phases_where_it_is_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    returned = []
    monkeypatch.setattr(memory, "return_freed_memory", lambda: returned.append(1))
    held = psutil.Process().memory_info().rss
    with use_settings(memory=20 * held):
        memory.return_much_freed_memory()
    assert not returned
    with use_settings(memory=4 * held):
        memory.return_much_freed_memory()
    assert returned


# Arithmetic ------------------------------------------------------------------------------------


def double(plane: np.ndarray) -> np.ndarray:
    return plane * 2


def add(*planes: np.ndarray) -> np.ndarray:
    return sum(planes)


def planes(seed: int) -> da.Array:
    """Three arrays of 500 x 500 float32 pixels in a file that is never read."""
    plane = Plane(f"/nowhere/{seed}.fits", (0, 0), 1, 2880, ">f4", 0.0, 1.0, (500, 500))
    arrays = tuple(plane._replace(extension=number) for number in (1, 2, 3))
    return lazy_variables({"data": StoredArray(arrays, np.dtype("f4"))})["data"]


def tasks_of(*arrays: da.Array) -> dict:
    return optimised_tasks(arrays)


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("2GiB", 2 * 2**30),
        ("500MB", 500e6),
        ("1.5 GiB", 1.5 * 2**30),
        (2**31, 2**31),
        (None, None),
        ("3000000", 3e6),
        ("1g", 1e9),
    ],
)
def test_sizes(text: str, bytes_: float) -> None:
    assert parse_bytes(text) == bytes_


@pytest.mark.parametrize("text", ["2", "many", "-1GiB", "2XB", "", "GiB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match=f"--memory {text}: .*2GiB"):
        parse_bytes(text)


def test_the_peak_is_the_most_that_is_there_at_once() -> None:
    """Two sources into a sum, then a reduction to one number, in bytes."""
    from dask._task_spec import Task, TaskRef

    graph = {
        "a": Task("a", np.ones, 1),
        "b": Task("b", np.ones, 1),
        "sum": Task("sum", np.add, TaskRef("a"), TaskRef("b")),
        "end": Task("end", np.sum, TaskRef("sum")),
    }
    cost = {"a": 5.0, "b": 3.0, "sum": 4.0, "end": 0.0}
    scratch = {"a": 0.0, "b": 10.0, "sum": 1.0, "end": 2.0}
    needs = {key: tuple(task.dependencies) for key, task in graph.items()}
    costs = {key: memory.Cost(memory.Value(1, cost[key]), scratch[key]) for key in graph}
    simulate = memory.simulate
    assert simulate(["a", "b", "sum", "end"], needs, costs, 1) == Projection(
        4, 13.0, 18.0
    )  # while b is made, a is there
    assert simulate(["b", "a", "sum", "end"], needs, costs, 1).peak == 13.0
    assert simulate(["b", "a", "sum", "end"], needs, costs, 2).peak == 18.0  # side by side
    view = costs | {
        "sum": memory.Cost(memory.Value(1, 4.0), 0.0, "a")
    }  # a view keeps all of a, and b is gone
    assert simulate(["a", "b", "sum", "end"], needs, view, 1) == Projection(4, 13.0, 18.0)


def test_results_that_nothing_waits_for_any_more_are_gone() -> None:
    one, many = (project(tasks_of(*(add_up(seed) for seed in range(count)))) for count in (1, 8))
    assert many.tasks > 7 * one.tasks and many.peak < 1.3 * one.peak


def add_up(seed: int) -> da.Array:
    """One number for each detector, through two kernels."""
    return map_arrays(float_sum, map_planes(double, planes(seed), dtype="f8"))


def float_sum(plane: np.ndarray) -> float:
    return float(plane.sum())


def test_more_at_a_time_needs_more_and_fewer_are_chosen_to_fit() -> None:
    tasks = tasks_of(*(add_up(seed) for seed in range(4)))
    alone, four = project(tasks, 1).peak, project(tasks, 4).peak
    assert 3 * alone < four < 4.5 * alone
    threads, projection = fit(tasks, PROCESS_BYTES + 0.6 * four, 4, "phase 1")
    assert threads in (2, 3) and PROCESS_BYTES + projection.peak <= PROCESS_BYTES + 0.6 * four
    with pytest.raises(
        GdaskError,
        match=r"phase 1: needs 0\.\d+ GiB in one worker .* GiB may be used.*;"
        r" give --memory \d+\.\dGiB",
    ) as caught:
        fit(tasks, PROCESS_BYTES + 0.5 * alone, 4, "phase 1")
    assert "\n" not in str(caught.value)
    with pytest.raises(GdaskError, match="or workers with fewer than 4 threads"):
        fit(tasks, PROCESS_BYTES + 0.6 * four, 4, "phase 1", fixed=True)


def test_what_the_refusal_names_is_enough() -> None:
    import re

    tasks = tasks_of(*(add_up(seed) for seed in range(4)))
    with pytest.raises(GdaskError) as caught:
        fit(tasks, PROCESS_BYTES, 1, "phase 1")
    assert (
        fit(tasks, parse_bytes(re.search(r"--memory (\S+)", str(caught.value))[1]), 1, "phase 1")[0]
        == 1
    )


def band_of_many(
    sources: tuple[Source, ...], detector: int, window: Window, **bound: object
) -> np.ndarray:
    raise AssertionError("never run")


def test_a_gathering_task_needs_what_it_declares_and_the_blocks_it_is_given() -> None:
    """Sources are read inside the task; blocks of other lazy arrays are there before it begins."""

    def gathered(arrays: list[da.Array], **more: object) -> Projection:
        array = gather(
            band_of_many,
            arrays,
            name="gathered",
            dtype="f4",
            chunks=((1,), (100, 400), (500,)),
            windows=lambda _, detector, window: [(detector, window)],
            scratch=3e6,
            **more,
        )
        return project(tasks_of(array))

    largest = 4.0 * 400 * 500
    stored = gathered([planes(1), planes(2)])
    assert stored.largest == largest + 3e6 and stored.tasks == 3  # two blocks, and the sources
    changed = planes(1) + np.float32(1)
    one = gathered([changed, planes(2)])
    assert one.largest == pytest.approx(largest + 3e6 + 4.0 * 500 * 500)
    assert gathered([planes(1)], result_bytes=7e6).largest == 1e7


def test_strips_hold_a_fixed_number_of_bytes() -> None:
    """However much memory is allowed: names of graphs, and so checkpoints, do not depend on it."""
    for allowed in (None, PROCESS_BYTES + 1e8, PROCESS_BYTES + 1e11):
        with use_settings(memory=allowed, threads=2):
            assert strip_rows(1e6, 16) == STRIP_BYTES / 1e6
            assert strip_rows(1e9, 16) == 16 and strip_rows(0, 16) == STRIP_BYTES


def test_nothing_runs_that_does_not_fit() -> None:
    ran = []

    def kernel(plane: np.ndarray) -> np.ndarray:
        ran.append(1)
        return plane

    with (
        use_settings(memory=PROCESS_BYTES + 1e4),
        dask.config.set(scheduler="threads"),
        pytest.raises(GdaskError, match="phase 7: needs"),
    ):
        compute([map_planes(kernel, planes(1), dtype="f8")], "phase 7")
    assert ran == []


def test_blocks_come_together_as_dask_would_put_them() -> None:
    array = map_planes(
        double, da.random.default_rng(1).normal(size=(3, 50, 50), chunks=(1, 50, 50)), dtype="f8"
    )
    own, by_dask = compute([array, array.sum()], "phase 1"), dask.compute(array, array.sum())
    assert (
        np.array_equal(own[0], by_dask[0])
        and own[1] == by_dask[1]
        and isinstance(own[0], np.ndarray)
    )


def test_headers_that_do_not_change_are_shared_and_others_are_copied(tmp_path: Path) -> None:
    from astropy.io import fits

    import gdask

    arrays = [
        fits.ImageHDU(np.ones((4, 4), "f4"), fits.Header({"GAIN": 2.0}), name="SCI", ver=ver)
        for ver in (1, 2)
    ]
    fits.HDUList([fits.PrimaryHDU(header=fits.Header({"OBJECT": "sky"})), *arrays]).writeto(
        tmp_path / "a.fits"
    )
    frame = gdask.open(tmp_path / "a.fits")
    named, scaled = (
        with_headers(frame, primary={"OBJECT": "star"}),
        with_headers(frame, each={"GAIN": [3.0, 4.0]}),
    )
    objects = [primary_header(each)["OBJECT"] for each in (frame, named, scaled)]
    assert objects == ["sky", "star", "sky"]
    gains = [header["GAIN"] for each in (frame, scaled) for header in array_headers(each)]
    assert gains == [2.0, 2.0, 3.0, 4.0]
    texts = [each.coords["header"].to_numpy().tolist() for each in (frame, named)]
    assert all(one is other for one, other in zip(*texts, strict=True))
    assert scaled.attrs["phu"] is frame.attrs["phu"]
    assert primary_header(scaled) is primary_header(frame)


# Declarations ----------------------------------------------------------------------------------


def test_all_functions_of_the_recipes_are_declared(
    calibrated: Path, night: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not is projected with a guess that is high: fewer at a time than there could be."""
    from gdask.io import lazy_arrays

    seen: set[str] = set()
    real_need = lazy_arrays.need_of

    def noting(function: Callable[..., object], *sizes: float) -> lazy_arrays.Need:
        seen.add(f"{function.__module__}.{function.__name__}")
        return real_need(function, *sizes)

    counts: list[int] = []
    real_fit = memory.fit

    def counting(graph: dict, *more: object, **options: object) -> tuple[int, Projection]:
        counts.append(len(graph))
        return real_fit(graph, *more, **options)

    monkeypatch.setattr(lazy_arrays, "need_of", noting)
    monkeypatch.setattr(memory, "fit", counting)
    for files, parameters in (
        ([*night.flat_on, *night.flat_off], {}),
        (night.sequence, {"prepare:bad_wcs": "fix", "skyCorrect:offset_sky": False}),
    ):
        reduction = Reduce()
        reduction.files.extend(files)
        reduction.uparms = parameters
        reduction.runr()
    assert {name for name in seen if name.startswith("gdask.")} - set(declared_memory()) == set()
    assert len(seen) > 20
    assert max(counts[1:-1]) < 100 * len(
        night.sequence
    )  # tasks of a phase, for each frame; the last phase's go with the image's area


def test_every_declaration_is_of_a_function_that_is_there() -> None:
    for label, row in declared_memory().items():
        module, _, name = label.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name)), label
        assert row.keys() <= {"scratch", "fixed", "result"} and all(
            value >= 0 for value in row.values()
        )


# Measured --------------------------------------------------------------------------------------

MEASURE = """
import json, logging, sys
from pathlib import Path
import gdask.engine.memory as memory, gdask.engine.compute as compute_module
from benchmarks.scaling.nights import reduce_f2_night, reduce_night
from benchmarks.scaling.scratch import ScratchRecord, reset_peak, resident_bytes
from gdask.io import gather, lazy_arrays
from gdask.io.process_memory import return_freed_memory

reduce_night = reduce_f2_night if sys.argv[2] == "f2" else reduce_night

rows = []
real, plan = compute_module._compute_in_threads, memory.fit

def planned(tasks, available, threads, what, base=0.0, fixed=False):
    result = plan(tasks, available, threads, what, base, fixed)
    rows.append([what, result[1].peak])
    return result

def measured(*args):
    return_freed_memory()
    reset_peak()
    before = resident_bytes()
    result = real(*args)
    rows[-1] += [resident_bytes(peak=True) - before]
    return result

memory.fit, compute_module._compute_in_threads = planned, measured
reduce_night(sys.argv[1], "threads:1")  # loads the compiled kernels
rows.clear()
Path(sys.argv[1], "cal_manager.db").unlink()
reduce_night(sys.argv[1], "threads:1")
memory.fit, compute_module._compute_in_threads = plan, real
record = ScratchRecord()
for module in (lazy_arrays, gather):
    module.with_need = record.with_need
Path(sys.argv[1], "cal_manager.db").unlink()
reduce_night(sys.argv[1], "threads:1")
print(record.report())
exceeding = [name for name, row in record.rows.items() if row.exceeds()]
print(json.dumps([rows, len(record.rows), exceeding]))
"""


def measured_phases(
    folder: Path, frames: int, size: int, instrument: str = "gsaoi"
) -> tuple[list[tuple[str, float, float]], int, list[str]]:
    """Of a reduction with one task at a time: (phase, bytes projected, bytes measured) of each.

    Both are beyond what was there before. Also the number of functions that tasks call, and those
    that take more than they declare.
    """
    import json

    from benchmarks.scaling.nights import make_f2_night, make_night
    from benchmarks.scaling.scratch import MALLOC_SETTINGS

    (make_f2_night if instrument == "f2" else make_night)(folder, frames, size)
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), instrument],
        env=os.environ | MALLOC_SETTINGS | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    phases, functions, exceeding = json.loads(done.stdout.splitlines()[-1])
    return phases, functions, exceeding


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's record of a peak"
)
@pytest.mark.parametrize(
    ("instrument", "frames", "size", "phases"),
    [
        ("gsaoi", 4, 320, 6),
        pytest.param("f2", 5, 512, 17, marks=pytest.mark.slow),
        pytest.param("gsaoi", 6, 1028, 6, marks=pytest.mark.slow),
        pytest.param("f2", 6, 1024, 17, marks=pytest.mark.slow),
    ],
)
def test_nothing_takes_more_than_was_projected(
    tmp_path: Path, instrument: str, frames: int, size: int, phases: int
) -> None:
    """Calibrations and image, in a process that runs one task at a time: phases, and each task."""
    measured_by_phase, functions, exceeding = measured_phases(tmp_path, frames, size, instrument)
    assert functions > 20 and exceeding == []
    slack = 24e6  # what Python and dask themselves take for a while
    for name, projected, measured in measured_by_phase:
        print(f"{name}: {projected / 1e6:.0f} MB projected, {measured / 1e6:.0f} MB measured")
    assert len(measured_by_phase) == phases
    assert [row for row in measured_by_phase if row[2] > row[1] + slack] == []
    assert max(projected for _, projected, _ in measured_by_phase) < 4 * max(
        measured for _, _, measured in measured_by_phase
    )


@pytest.mark.slow
def test_the_peak_does_not_grow_with_the_number_of_frames(tmp_path: Path) -> None:
    """Of the whole process tree; and 64 frames do with 48 open files (16 are summed at once).

    The frames of the shorter run are the first ones of the longer. The system itself holds the
    limit of open files: files that are open for a moment are not seen by looking now and then.
    """
    from benchmarks.scaling.measured_run import measure_in_threads
    from benchmarks.scaling.nights import first_frames_of, make_night

    night = make_night(tmp_path / "night", 64, 320)
    few, many = (
        measure_in_threads(first_frames_of(night, 16, tmp_path / "few")),
        measure_in_threads(night, max_files=48),
    )
    print(few, many)
    assert many["peak"] < 1.1 * few["peak"]
    assert many["tasks"] / 64 < 1.1 * few["tasks"] / 16


# Same bytes ------------------------------------------------------------------------------------


def test_little_memory_gives_the_same_bytes(calibrated: Path, reduced: Path, night: object) -> None:
    """As little as the largest task needs: one task at a time."""
    from test_cluster import IMAGE
    from test_cluster import planes as planes_of

    reduction = Reduce()
    reduction.files.extend(night.sequence)
    reduction.uparms = {"prepare:bad_wcs": "fix", "skyCorrect:offset_sky": False}
    reduction.memory = int(psutil.Process().memory_info().rss + 600e6)
    reduction.runr()
    made, expected = planes_of(IMAGE), planes_of(reduced / IMAGE)
    assert [key for key in expected if made[key] != expected[key]] == []
