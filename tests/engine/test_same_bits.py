"""The same bits for any chunking, order of tasks, number of workers and memory.

Step by step, and of whole reductions.

Steps come from the registry (`gdask.steps.__all__`): one that the sequence below does not call
fails the first test.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import dask
import numpy as np
import psutil
import pytest
from astropy.io import fits
from astropy.table import Table
from helpers import TIME_OF_RUN, content, on_disk

import gdask
from gdask import Reduce, cal_service, params, steps
from gdask.engine import compute as engine
from gdask.headers import Header
from gdask.io.frames import (
    array_headers,
    frames_in,
    geometries,
    map_frames,
    pixel_variables,
    primary_header,
)
from gdask.reduction.run import Run
from gdask.types import Frame

#: Limits of the rows that a task makes at a time: in a graph, and in strips inside a task.
BAND_ROWS = ("gdask.steps.sky_subtraction.BAND_ROWS", "gdask.steps.stack.BAND_ROWS")
STRIP_ROWS = (
    "gdask.io.chained.STRIP_ROWS",
    "gdask.steps.sky_subtraction._MOST_ROWS",
    "gdask.steps.sky_subtraction._FEWEST_ROWS",
)
#: Side of the tiles that a resampled frame is made in.
TILE_SIDE = "gdask.steps.resample.TILE_SIDE"
#: Attributes of a Frame that must not depend on how its pixels are chunked.
COMPARED_ATTRIBUTES = ("skies", "set_aside", "grid", "reference_area", "refcat")


# Step by step ----------------------------------------------------------------------------------


def bits(value: object) -> object:
    """Give a value that is equal to another's only where every bit is."""
    if isinstance(value, np.ndarray):
        return (
            value.dtype.str,
            value.shape,
            tuple(bits(v) for v in value.ravel()) if value.dtype == object else value.tobytes(),
        )
    if isinstance(value, Mapping) and not isinstance(value, (fits.Header, Header)):
        return {key: bits(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(bits(each) for each in value)
    if isinstance(value, (fits.Header, Header)):
        return tuple(str(card) for card in value.cards if not TIME_OF_RUN.search(str(card)))
    return bits(np.asarray(value)) if isinstance(value, (np.generic, Table)) else repr(value)


def outcome(result: object, most: int = 2) -> dict[str, object]:
    """Give all of the first frames of a result: pixels, small results, headers, geometry."""
    frames = frames_in(result)[:most]
    lazy = {f"{n} {name}": f[name].data for n, f in enumerate(frames) for name in f.data_vars}
    values = dict(zip(lazy, dask.compute(*lazy.values(), scheduler="threads"), strict=True))
    return {name: bits(value) for name, value in values.items()} | {
        f"{n} {name}": bits(value)
        for n, f in enumerate(frames)
        for name, value in metadata(f).items()
    }


def metadata(frame: Frame) -> dict[str, object]:
    """Give what a Frame has beside its variables."""
    return {name: frame.attrs[name] for name in COMPARED_ATTRIBUTES if name in frame.attrs} | {
        "primary header": primary_header(frame),
        "headers": array_headers(frame),
        "geometry": geometries(frame),
        "places": [frame.coords[name].to_numpy() for name in ("y", "x", "y_offset", "x_offset")],
    }


def heights(ny: int, rng: random.Random) -> tuple[int, ...]:
    """Give random heights of bands that add up to ny."""
    cuts = sorted(rng.sample(range(1, ny), rng.randint(1, 4)))
    return tuple(np.diff([0, *cuts, ny]).tolist())


def rechunked(value: object, rng: random.Random) -> object:
    """Give the Frames with the pixels of each in bands of random heights."""

    def in_bands(frame: Frame) -> Frame:
        bands = {"y": heights(frame.sizes["y"], rng)}
        return frame.assign({name: frame[name].chunk(bands) for name in pixel_variables(frame)})

    return map_frames(in_bands, value)


@contextmanager
def rows_at_a_time(band: int, strip: int, side: int | None = None) -> Iterator[None]:
    """Let tasks make bands of `band` rows in strips of `strip`, and tiles of `side` pixels."""
    with pytest.MonkeyPatch.context() as patch:
        for name in BAND_ROWS:
            patch.setattr(name, band)
        for name in STRIP_ROWS:
            patch.setattr(name, strip)
        patch.setattr("gdask.steps.stack.strip_rows", lambda row_bytes, fewest: strip)
        if side:
            patch.setattr(TILE_SIDE, side)
        yield


class Checked(Run):
    """A run whose steps are each called again with other chunks."""

    def __init__(self, chunkings: int, **more: object) -> None:
        super().__init__(**more)  # type: ignore[arg-type]
        self.chunkings, self.seen, self.differ = chunkings, set(), []

    def __call__(self, step: Any, frames: Any, *others: object, **pinned: object) -> object:
        self._check(
            step, (frames, *others), params.own_values(step, self._settings(step, frames, pinned))
        )
        return super().__call__(step, frames, *others, **pinned)

    def each(self, step: Any, frames: Any, *others: object, **pinned: object) -> Any:
        first = tuple(o[0] if isinstance(o, tuple) and len(o) == len(frames) else o for o in others)
        self._check(
            step, (frames[0], *first), params.own_values(step, self._settings(step, frames, pinned))
        )
        return super().each(step, frames, *others, **pinned)

    def _check(self, step: Any, given: tuple, values: dict[str, Any]) -> None:
        self.seen.add(step.__name__)
        expected = outcome(step(*given, **values))
        for seed in range(self.chunkings):
            rng = random.Random(f"{step.__name__} {seed}")
            rows = rng.randint(16, 256), rng.randint(5, 100), rng.randint(50, 300)
            with rows_at_a_time(*rows):
                found = outcome(step(*(rechunked(each, rng) for each in given), **values))
            wrong = [
                name
                for name in expected.keys() | found.keys()
                if expected.get(name) != found.get(name)
            ]
            self.differ += (
                [f"{step.__name__}, chunking {seed}: {', '.join(sorted(wrong))}"] if wrong else []
            )


def all_steps(run: Checked, night: Any, folder: Path) -> None:
    """Make a flat, a bad-pixel mask and an image, through every step that there is."""

    def lamps(paths: list[str]) -> Any:
        frames = run(
            steps.add_dq,
            run(steps.prepare, gdask.open_many(paths)),
            (None,) * len(paths),
            hidden_saturation=False,
            latency=False,
        )
        return run.each(steps.add_var, run.each(steps.adu_to_electrons, frames))

    level = run(
        steps.normalize_flat,
        run(steps.make_lamp_flat, lamps([*night.flat_on[:2], *night.flat_off[:2]])),
    )
    (flat,) = on_disk((run(steps.threshold_flatfield, level),), folder)
    dark = run(steps.stack_frames, lamps(night.dark), reject_method="varclip")
    run(steps.make_bpm, flat, dark)
    (dark,) = on_disk((dark,), folder)

    frames = run(steps.check_wcs, gdask.open_many(night.science[:3] + night.sky[:2]))
    frames = run(steps.prepare, frames, bad_wcs="fix")
    frames = run(steps.add_dq, frames, (None,) * len(frames))
    for step, *others in (
        (steps.nonlinearity_correct,),
        (steps.adu_to_electrons,),
        (steps.add_var,),
        (steps.dark_correct, dark),
        (steps.flat_correct, flat),
    ):
        frames = run.each(step, frames, *((other,) * len(frames) for other in others))
    frames = run.save(run.each(steps.measure_background, run.each(steps.measure_shadows, frames)))
    frames = run.save(run(steps.flag_shadows, frames), variables=["dq"])
    targets, skies = run(steps.separate_sky, frames)
    targets = run(
        steps.sky_correct, run(steps.associate_sky, targets, skies), skies, mask_objects=False
    )
    targets = run.save(run.each(steps.detect_sources, targets))
    targets = run(steps.check_sky, targets)
    targets = run(
        steps.determine_astrometric_solution,
        run(steps.add_reference_catalog, targets, source=str(catalogue(night, folder))),
    )
    targets = run(steps.adjust_wcs_to_reference, tuple(f.drop_vars("solution") for f in targets))
    targets = run(steps.flag_trails, targets)
    targets = run(steps.match_sky_levels, run.fetch(run(steps.measure_sky_levels, targets)))
    aligned = targets
    targets = run(steps.resample_to_common_frame, run(steps.scale_counts_to_reference, targets))
    deep = run(steps.stack_frames, targets)
    run(steps.detect_sources, deep, products="catalog", mesh=128)
    run(steps.subtract_stack, frames, run.save((deep,))[0], aligned)


def catalogue(night: Any, folder: Path) -> Path:
    """Write a catalogue of stars of the field, as a user would give it."""
    stars = Table.read(night.truth / "catalog.ecsv")
    table = Table({"RAJ2000": stars["ra"], "DEJ2000": stars["dec"]})
    table.write(folder / "stars.csv", overwrite=True)
    return folder / "stars.csv"


@pytest.mark.parametrize("chunkings", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_every_step_gives_the_same_bits_in_any_chunks(
    night: Any, tmp_path: Path, chunkings: int
) -> None:
    run = Checked(chunkings, folder=str(tmp_path), scratch=str(tmp_path / "scratch"))
    all_steps(run, night, tmp_path)
    assert run.seen == set(steps.__all__)
    assert run.differ == []


# Whole reductions ------------------------------------------------------------------------------


def in_random_order(seed: int) -> Any:
    """Give a scheduler that runs one task at a time, a random one of those that could run."""
    from dask._task_spec import convert_legacy_graph
    from dask.local import nested_get

    def get(graph: Mapping, keys: list, **ignored: object) -> object:
        rng, tasks, done = random.Random(seed), convert_legacy_graph(dict(graph)), {}
        missing = {
            key: {need for need in task.dependencies if need in tasks}
            for key, task in tasks.items()
        }
        waiting_for: dict[object, list] = {}
        for key, needs in missing.items():
            for need in needs:
                waiting_for.setdefault(need, []).append(key)
        ready = [key for key, needs in missing.items() if not needs]
        while ready:
            chosen = rng.randrange(len(ready))
            ready[chosen], ready[-1] = ready[-1], ready[chosen]
            key = ready.pop()
            done[key] = tasks[key]({need: done[need] for need in tasks[key].dependencies})
            for waiting in waiting_for.get(key, ()):
                missing[waiting].discard(key)
                if not missing[waiting]:
                    ready.append(waiting)
        return nested_get(keys, done)

    return get


@contextmanager
def scheduled_by(get: Any) -> Iterator[None]:
    """Let a scheduler take the place of dask's threads inside the `with` block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dask.threaded, "get", get)
        patch.setitem(dask.base.named_schedulers, "threads", get)
        yield


@contextmanager
def as_asked(rows: int | None, order: int | None) -> Iterator[None]:
    """Let bands have `rows` rows, strips half as many, and tasks run in the random `order`.

    None leaves these as they are.
    """
    bands = rows_at_a_time(rows, max(rows // 2, 5)) if rows else nullcontext()
    with bands, scheduled_by(in_random_order(order)) if order is not None else nullcontext():
        yield


def image_of(
    folder: Path,
    cluster: str = "threads:2",
    memory: str | float | None = None,
    rows: int | None = None,
    order: int | None = None,
    more_memory: float | None = None,
) -> dict:
    """Make the image of the night in `folder`, and before it its flat where there is none.

    more_memory: bytes beyond what this process holds, which depends on the tests before.
    """
    from benchmarks.scaling.nights import IMAGE_PARAMETERS, raw_files_of_kinds, working_in

    def reduce(paths: Sequence[str], parameters: Mapping[str, object]) -> Path:
        reduction = Reduce()
        reduction.files.extend(paths)
        reduction.uparms.update(parameters)
        reduction.cluster, reduction.memory = cluster, memory
        reduction.runr()
        return Path(reduction.output_filenames[-1])

    if more_memory is not None:
        memory = psutil.Process().memory_info().rss + more_memory
    with working_in(folder), as_asked(rows, order):
        if not Path("cal_manager.db").exists():
            cal_service.set_local_database().init()
            reduce(raw_files_of_kinds(("flat_on", "flat_off")), {})
        product = reduce(raw_files_of_kinds(("science", "sky")), IMAGE_PARAMETERS)
        found = content(product)
        product.unlink()
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Give a night of five frames, and its image as made with default settings."""
    from benchmarks.scaling.nights import make_night

    folder = make_night(tmp_path_factory.mktemp("small"), 5, 256)
    return folder, image_of(folder)


WAYS = {
    "another order of tasks, low bands": {"order": 1, "rows": 24},
    "one process, little memory, uneven bands": {
        "cluster": "processes:1",
        "memory": "1GiB",
        "rows": 57,
    },
}
MORE_WAYS = {
    "one thread": {"cluster": "threads:1"},
    "two processes": {"cluster": "processes:2"},
    "four processes": {"cluster": "processes:4"},
    "bands of 16 rows": {"rows": 16},
    "bands of 100 rows": {"rows": 100},
    "whole arrays": {"rows": 4096},
    "another order of tasks": {"order": 2},
    "yet another": {"order": 3},
    "0.6 GB more than is held": {"more_memory": 6e8},
    "8 GiB": {"memory": "8GiB"},
}


@pytest.mark.parametrize(
    "way", [*WAYS, *(pytest.param(way, marks=pytest.mark.slow) for way in MORE_WAYS)]
)
def test_the_image_has_the_same_bits(small: tuple[Path, dict], way: str) -> None:
    folder, expected = small
    found = image_of(folder, **(WAYS | MORE_WAYS)[way])
    assert {"SCI", "VAR", "DQ", "OBJCAT"} <= {name for name, _ in expected}
    assert found.keys() == expected.keys()
    assert [key for key in expected if found[key] != expected[key]] == []


def test_the_flat_has_the_same_bits(small: tuple[Path, dict], tmp_path: Path) -> None:
    """Made in another order of tasks, from other bands; and the image from it."""
    folder, expected = small
    for part in ("raw", "truth"):
        (tmp_path / part).symlink_to(folder / part)
    found = image_of(tmp_path, order=4, rows=40)
    (mine,), (other,) = tmp_path.glob("*_flat.fits"), folder.glob("*_flat.fits")
    assert content(mine) == content(other) and found == expected


# Names of graphs -------------------------------------------------------------------------------


@contextmanager
def recorded_names() -> Iterator[list[tuple[str, ...]]]:
    """Record the names of arrays and layers of each compute, except those that write files.

    What writes a file has the file's temporary name in its own.
    """
    names: list[tuple[str, ...]] = []
    real = engine.compute

    def recording(arrays: Sequence[Any], text: str) -> tuple[object, ...]:
        kept = [array for array in arrays if not array.name.startswith("write-")]
        layers = {layer for array in arrays for layer in array.dask.layers}
        names.append(tuple(array.name for array in kept))
        names.append(tuple(sorted(name for name in layers if not name.startswith("write-"))))
        return real(arrays, text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gdask.reduction.phases.compute", recording)
        yield names


@contextmanager
def files_of_one_time() -> Iterator[None]:
    """Give checkpoints one time of modification, which is in the names of their arrays."""
    from gdask.io import write

    real = write.finish

    def finish(*given: object, **options: object) -> str:
        path = real(*given, **options)
        os.utime(path, ns=(1, 1))
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "finish", finish)
        yield


@contextmanager
def nothing_is_refused() -> Iterator[None]:
    """Let nothing be refused for want of memory: what fits is not the question here."""
    from gdask.engine import memory

    with pytest.MonkeyPatch.context() as patch:
        real = memory.fit
        patch.setattr(
            memory, "fit", lambda graph, available, *more, **how: real(graph, 1e12, *more, **how)
        )
        yield


def test_names_of_graphs_do_not_depend_on_the_memory_that_is_allowed(
    small: tuple[Path, dict], tmp_path: Path
) -> None:
    """In the flat's and the image's recipe: checkpoints are found with more or less memory."""
    from benchmarks.scaling.nights import IMAGE_PARAMETERS, raw_files_of_kinds, working_in

    def names_with(memory: float, kinds: tuple[str, ...], **parameters: object) -> list:
        reduction = Reduce()
        reduction.files.extend(raw_files_of_kinds(kinds))
        reduction.uparms.update(parameters)
        reduction.memory = memory
        with recorded_names() as names:
            reduction.runr()
        return names

    for part in ("raw", "truth"):
        (tmp_path / part).symlink_to(small[0] / part)
    with working_in(tmp_path), nothing_is_refused(), files_of_one_time():
        cal_service.set_local_database().init()
        little, much = (names_with(memory, ("flat_on", "flat_off")) for memory in (4e8, 8e9))
        assert len(little) >= 2 and little == much
        kinds = ("science", "sky")
        little, much = (names_with(memory, kinds, **IMAGE_PARAMETERS) for memory in (4e8, 8e9))
        assert len(little) >= 2 * 5 and little == much
        assert sum(len(names) for names in little) > 100
