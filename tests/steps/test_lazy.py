"""Steps take Frames from anywhere: the same bits, and no more tasks than have to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

import gdask
from gdask import steps
from gdask.engine.compute import COMPUTES
from gdask.io.dask_internals import optimised_tasks
from gdask.steps import resample
from gdask.types import Frame, Frames

VARIABLES = ("data", "variance", "dq")


@pytest.fixture(scope="module")
def calibrated(night: Any) -> Frames:
    """Three frames on target, lazy from raw counts, with sky frames of each other."""
    frames = steps.prepare(gdask.open_many(night.science[:3]), bad_wcs="fix")
    frames = steps.add_dq(frames, (gdask.open(night.bpm),) * 3)
    frames = tuple(steps.add_var(steps.adu_to_electrons(frame)) for frame in frames)
    return steps.associate_sky(frames, frames)


def touched(frames: Frames) -> Frames:
    """The frames with pixels that no file has, though they are the same."""
    return tuple(frame.assign(data=frame.data + 0) for frame in frames)


def in_memory(frames: Frames) -> Frames:
    return tuple(frame.assign({n: frame[n].compute() for n in VARIABLES}) for frame in frames)


def stacked(frames: Frames) -> Frame:
    return steps.stack_frames(steps.resample_to_common_frame(frames))


def pixels(frames: Frame | Frames) -> list[np.ndarray]:
    each = frames if isinstance(frames, tuple) else (frames,)
    return list(dask.compute(*(frame[name].data for frame in each for name in VARIABLES)))


def n_tasks(frame: Frame) -> int:
    return len(optimised_tasks([frame[name].data for name in VARIABLES]))


@pytest.mark.parametrize("change", [touched, in_memory])
@pytest.mark.parametrize(
    "step",
    [
        stacked,
        lambda frames: steps.sky_correct(frames, frames, offset_sky=True),
        lambda frames: steps.stack_frames(frames),
    ],
)
def test_no_step_asks_where_pixels_live(calibrated: Frames, step: Any, change: Any) -> None:
    for one, other in zip(pixels(step(calibrated)), pixels(step(change(calibrated))), strict=True):
        assert one.tobytes() == other.tobytes()


def test_a_harmless_change_adds_what_has_to_be_done(
    calibrated: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tile of a changed frame takes two tasks: one resamples it, one changes it."""
    monkeypatch.setattr(resample, "TILE_SIDE", 256)
    written = [gdask.write(frame, tmp_path / frame.attrs["name"]) for frame in calibrated]
    frames = steps.resample_to_common_frame(gdask.open_many(written))
    before = COMPUTES["count"]
    stack, changed = steps.stack_frames(frames), steps.stack_frames(touched(frames))
    n_tiles = stack.data.data.npartitions
    assert n_tiles > 25 and n_tasks(stack) <= 4 * n_tiles + 1
    assert n_tasks(changed) <= n_tasks(stack) + len(frames) * (2 * n_tiles + 1)
    assert COMPUTES["count"] == before
    for one, other in zip(pixels(stack), pixels(changed), strict=True):
        assert one.tobytes() == other.tobytes()
