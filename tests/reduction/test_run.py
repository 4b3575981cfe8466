"""`Run`: calls of steps, phases, products, provenance, frames set aside."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import dask.array as da
import numpy as np
import pytest
from astropy.io import fits
from helpers import assert_same, computed, raw

import gdask
from gdask.engine.compute import COMPUTES
from gdask.io.frames import lazy_small_results, note, records, set_aside, small, with_small
from gdask.io.lazy_arrays import is_stored, map_arrays, source_of
from gdask.model import GdaskError
from gdask.params import Range
from gdask.reduction.provenance import product_name
from gdask.reduction.run import Run
from gdask.steps import add_var, adu_to_electrons, detect_sources
from gdask.steps.frames import with_arrays
from gdask.types import Frame, Frames


def twice(
    frame: Frame, other: Frame | None = None, *, factor: Annotated[float, Range(0, 10)] = 2.0
) -> Frame:
    """A step for the tests.

    Parameters
    ----------
    factor
        What to multiply by.
    """
    scaled = with_arrays(frame, data=frame["data"].data * np.float32(factor))
    return note(scaled, f"other {other.attrs['name']}" if other is not None else "")


def measured(frame: Frame) -> Frame:
    """Give a frame a small result, as a step does."""
    return with_small(frame, top=map_arrays(np.max, frame["data"].data, dtype="f8"))


def drop_second(frames: Frames) -> Frames:
    return tuple(
        set_aside(frame, "as asked") if number == 1 else frame
        for number, frame in enumerate(frames)
    )


@pytest.fixture
def frames(night: object) -> Frames:
    """Open three frames."""
    return gdask.open_many(night.science[:3])


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(folder=str(tmp_path))


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "gdask"]


def test_steps_are_called_with_the_users_parameters(frames: Frames, tmp_path: Path) -> None:
    run = Run([("user", {"twice:factor": "3"})], folder=str(tmp_path))
    expected = frames[0].data.data.compute()
    np.testing.assert_allclose(run(twice, frames[0]).data.data.compute(), 3 * expected, rtol=1e-6)
    dealt = run.each(twice, frames, tuple(frames[::-1]))
    assert [json.loads(records(f, "history")[-1]["args"])["factor"] for f in dealt] == [3.0] * 3
    assert json.loads(records(dealt[0], "history")[-1]["args"])["from"] == {"factor": "user"}
    assert [f.attrs["name"] for f in dealt] == [f.attrs["name"] for f in frames]
    assert all("history" not in frame.attrs for frame in frames)


def test_arguments_are_dealt_out_one_to_a_frame(
    frames: Frames, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gdask")
    run.each(twice, frames, tuple(frames[::-1]))
    names = [frame.attrs["name"] for frame in frames[::-1]]
    assert messages(caplog) == [f"twice: 3 frames, other {name}" for name in names]


def test_one_line_for_a_step_and_not_twice(
    frames: Frames, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gdask")
    run.each(twice, frames)
    run(twice, frames[0])
    assert messages(caplog) == ["twice: 3 frames", "twice: 1 frame"]


def test_skipped_steps_change_nothing(frames: Frames, tmp_path: Path) -> None:
    run = Run([("user", {"twice:skip_primitive": "True"})], folder=str(tmp_path))
    assert run.each(twice, frames) is frames and run(twice, frames[0]) is frames[0]


def test_a_value_that_the_recipe_pins_is_reported(
    frames: Frames, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run([("user", {"twice:factor": "3"})], folder=str(tmp_path))
    frame = run(twice, frames[0], factor=5.0)
    assert json.loads(records(frame, "history")[-1]["args"])["factor"] == 5.0
    assert "twice:factor=3 is pinned by the recipe to 5.0" in messages(caplog)


def test_instrument_defaults_lie_below_the_users(frames: Frames, tmp_path: Path) -> None:
    def args(run: Run) -> dict:
        electrons = run.each(adu_to_electrons, (with_dq(raw(frames[0].attrs["path"])),))
        (found,) = run.each(detect_sources, run.each(add_var, electrons))
        return json.loads(records(found, "history")[-1]["args"])

    assert args(Run(folder=str(tmp_path)))["min_pixels"] == 20
    assert args(Run([("user", {"min_pixels": 9})], folder=str(tmp_path)))["min_pixels"] == 9


def with_dq(frame: Frame) -> Frame:
    return with_arrays(frame, dq=da.zeros(frame.data.shape, "u2", chunks=frame.data.data.chunks))


def test_frames_set_aside_are_reported_and_gone(
    frames: Frames, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    kept = run(drop_second, frames)
    assert [frame.attrs["name"] for frame in kept] == [
        frames[0].attrs["name"],
        frames[2].attrs["name"],
    ]
    assert run.set_aside == [(frames[1].attrs["name"], "drop_second", "as asked")]
    assert f"drop_second: {frames[1].attrs['name']} set aside: as asked" in messages(caplog)


def test_nothing_left_is_an_error_in_words(frames: Frames, run: Run) -> None:
    def drop_all(frames: Frames) -> Frames:
        return tuple(set_aside(frame, "as asked") for frame in frames)

    with pytest.raises(GdaskError, match="drop_all: every frame was set aside"):
        run(drop_all, frames)


def test_a_phase_is_one_compute_and_fetches_small_results(
    frames: Frames, run: Run, no_compute: None
) -> None:
    built = run.each(measured, run.each(twice, frames))  # builds: computes nothing
    import dask

    before = COMPUTES["count"]
    with dask.config.set(scheduler="threads"):
        saved = run.save(built)
        assert COMPUTES["count"] == before + 1
        for frame, original in zip(saved, frames, strict=True):
            expected = 2 * original.data.data.compute()
            assert frame.data.data.compute().tobytes() == expected.tobytes()
            assert [float(top) for top in small(frame, "top")] == [
                plane.max() for plane in expected
            ]
            assert lazy_small_results(frame) == {}
        fetched = run.fetch(run.each(measured, saved))
        assert COMPUTES["count"] == before + 2
    for frame, original in zip(fetched, saved, strict=True):
        assert frame["data"].data.name == original["data"].data.name
        assert is_stored(source_of(frame["data"].data))


def test_the_next_run_goes_on_from_a_complete_phase(frames: Frames, tmp_path: Path) -> None:
    def phase() -> Frames:
        run = Run(folder=str(tmp_path))
        return run.save(run.each(measured, run.each(twice, frames)))

    first = phase()
    pixels = [computed(frame) for frame in first]
    before = COMPUTES["count"]
    second = phase()
    assert COMPUTES["count"] == before
    for one, other, expected in zip(first, second, pixels, strict=True):
        assert_same(expected, computed(other))
        assert small(one, "top") == small(other, "top") and len(small(one, "top")) == 4
    (folder,) = (tmp_path / ".gdask").iterdir()
    (folder / "complete").unlink()  # as if it had been killed
    (folder / f"00001_{frames[1].attrs['name']}").write_bytes(b"half")
    third = phase()
    assert COMPUTES["count"] == before + 1
    assert_same(pixels[1], computed(third[1]))


def test_other_parameters_have_another_checkpoint(frames: Frames, tmp_path: Path) -> None:
    for factor in (2.0, 3.0):
        run = Run([("user", {"factor": factor})], folder=str(tmp_path))
        (saved,) = run.save(run.each(twice, frames[:1]))
        np.testing.assert_array_equal(
            saved.data.data.compute(), np.float32(factor) * frames[0].data.data.compute()
        )


def fails(block: np.ndarray) -> np.ndarray:
    raise RuntimeError("as asked")


def test_a_phase_that_fails_leaves_nothing_that_counts(
    frames: Frames, run: Run, tmp_path: Path
) -> None:
    broken = with_arrays(
        frames[2],
        data=frames[2].data.data.map_blocks(fails, dtype="f4", meta=np.empty((0, 0, 0), "f4")),
    )
    with pytest.raises(RuntimeError, match="as asked"):
        run.save((*frames[:2], broken))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_write_outputs_writes_the_steps_frames_with_the_phase(
    frames: Frames, tmp_path: Path
) -> None:
    run = Run([("user", {"twice:write_outputs": True})], folder=str(tmp_path))
    run.save(run.each(twice, frames[:2]))
    names = sorted(path.name for path in tmp_path.glob("*.fits"))
    assert names == [product_name(frame.attrs["name"], "_twice") for frame in frames[:2]]
    assert [Path(path).name for path in run.outputs] == names
    expected = 2 * frames[0].data.data.compute()
    np.testing.assert_array_equal(gdask.open(tmp_path / names[0]).data.data.compute(), expected)
    run = Run(
        [("user", {"twice:write_outputs": "True", "twice:suffix": "_mine"})], folder=str(tmp_path)
    )
    run.save(run.each(twice, frames[:1]))
    assert (tmp_path / product_name(frames[0].attrs["name"], "_mine")).exists()


def test_products_hold_provenance_and_history(night: object, tmp_path: Path) -> None:
    import hashlib

    run = Run([("user", {"adu_to_electrons:suffix": "_x"})], folder=str(tmp_path))
    frame = run.each(adu_to_electrons, (raw(night.science[0]),))[0]
    run.write(frame, "_test")
    with fits.open(tmp_path / product_name(frame.attrs["name"], "_test")) as hdus:
        provenance, history = hdus["PROVENANCE"].data, hdus["HISTORY"].data
        assert provenance.names == ["timestamp", "filename", "md5", "provenance_added_by"]
        assert history.names == ["primitive", "args", "timestamp_start", "timestamp_stop"]
        assert provenance["filename"][0] == Path(night.science[0]).name
        assert provenance["md5"][0] == hashlib.md5(Path(night.science[0]).read_bytes()).hexdigest()
        assert list(history["primitive"]) == ["adu_to_electrons"]
        assert json.loads(history["args"][0])["from"] == {"suffix": "user"}
        assert "ADUTOELE" in hdus[0].header and "GEM-TLM" in hdus[0].header


def test_several_products_are_written_in_one_compute(
    frames: Frames, run: Run, tmp_path: Path
) -> None:
    before = COMPUTES["count"]
    written = run.write_each(run.each(twice, frames), "_two")
    assert COMPUTES["count"] == before + 1
    for frame, original in zip(written, frames, strict=True):
        np.testing.assert_array_equal(frame.data.data.compute(), 2 * original.data.data.compute())


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("S1.fits", "S1_flat.fits"),
        ("S1_skyCorrected.fits", "S1_flat.fits"),
        ("bpm_2012_x.fits", "bpm_2012_x_flat.fits"),
    ],
)
def test_names_of_products(name: str, product: str) -> None:
    assert product_name(name, "_flat") == product


def test_split_by_tag(night: object, run: Run) -> None:
    frames = gdask.open_many([*night.flat_on, *night.dark])
    darks, others = run.split(frames, "DARK")
    assert [f.attrs["path"] for f in darks] == night.dark and [
        f.attrs["path"] for f in others
    ] == night.flat_on


def test_a_missing_calibration_is_explained(frames: Frames, workspace: Path) -> None:
    from gdask.caldb import open_databases

    run = Run(databases=open_databases(), folder=str(workspace))
    with pytest.raises(GdaskError, match=f"{frames[0].attrs['name']}: no processed_flat"):
        run.calibration("processed_flat", frames)
    assert run.calibration("processed_bpm", frames, required=False) == (None, None, None)


def test_a_small_result_is_asked_for_before_it_is_computed(frames: Frames, run: Run) -> None:
    (frame,) = run.each(measured, frames[:1])
    with pytest.raises(GdaskError, match="top is not computed yet; end the phase with run.save"):
        small(frame, "top")
    assert small(frame, "top", lazy_is_none=True) is None and small(frame, "bottom") is None


def test_small_results_stay_computed_where_a_frame_is_put_into_other_blocks(
    frames: Frames, run: Run, no_compute: None
) -> None:
    import dask

    with dask.config.set(scheduler="threads"):
        saved = run.fetch(run.each(measured, frames[:1]))
    (frame,) = saved
    for rechunked in (frame.chunk({"y": 50}), frame.chunk({"detector": 1, "y": 50})):
        assert (
            small(rechunked, "top") == small(frame, "top") and lazy_small_results(rechunked) == {}
        )
    one = frame.chunk({"y": 50}).isel(detector=[2])
    assert small(one, "top") == small(frame, "top")[2:3]


def test_databases_are_those_of_the_configuration_unless_they_are_given(workspace: Path) -> None:
    from gdask.caldb import database_at, open_databases

    assert [str(each) for each in Run().databases] == [str(each) for each in open_databases()]
    assert Run(databases=()).databases == ()
    mine = database_at(str(workspace / "mine.db"))
    assert Run(databases=[mine]).databases == (mine,)
