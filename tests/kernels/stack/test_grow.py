"""Rejection with neighbours: what goes, and that no boundary between chunks shows."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

from gdask.kernels.stack.combine import combine
from gdask.kernels.stack.counts import count_frames
from gdask.kernels.stack.grow import combine_without_rejected, grow_rejected
from gdask.model import DIMS, DQ
from gdask.steps import stack

OPTIONS = {"method": "mean", "reject": "noiseclip", "lsigma": 3.0, "hsigma": 3.0}


def planes(
    n: int = 7, shape: tuple[int, int] = (41, 60), seed: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise of 10 e-, tracks with faint rims, flagged pixels."""
    rng = np.random.default_rng(seed)
    data = rng.normal(0, 10, (n, *shape)).astype("f4")
    for k in range(n):
        for _ in range(12):
            y, x = rng.integers(1, shape[0] - 1), rng.integers(2, shape[1] - 2)
            data[k, y, x - 1 : x + 2] += 400
            data[k, y - 1 : y + 2, x - 2 : x + 3] += 15
    dq = np.where(rng.random(data.shape) < 0.05, DQ.BAD_PIXEL, 0).astype("u2")
    dq[:, 3, 4] = DQ.BAD_PIXEL
    return data, np.full(data.shape, 100, "f4"), dq


def test_two_that_touch_take_their_neighbours_and_one_alone_none() -> None:
    rejected = np.zeros((2, 9, 9), bool)
    rejected[0, 2, 2] = rejected[0, 3, 3] = rejected[0, 7, 7] = rejected[1, 3, 4] = True
    expected = np.zeros_like(rejected)
    expected[0, 1:4, 1:4] = expected[0, 2:5, 2:5] = True
    np.testing.assert_array_equal(grow_rejected(rejected), expected)


def test_rims_go_unbiased_and_a_pixel_keeps_what_nothing_could_replace() -> None:
    data, variance, dq = planes()
    clipped = combine(data, variance, dq, **OPTIONS)[:3]
    rejected = np.zeros(data.shape, bool)
    result = combine(data, variance, dq, **OPTIONS, rejected=rejected)[:3]
    for one, other in zip(clipped, result, strict=True):
        np.testing.assert_array_equal(one, other)
    neighbours = grow_rejected(rejected)
    combine_without_rejected(result, (data, variance, dq), rejected, neighbours, "mean")
    changed = result[0] != clipped[0]
    lost = (neighbours & ~rejected & (dq == 0)).any(axis=0)
    assert 20 < changed.sum() <= lost.sum()
    assert (
        clipped[0][changed].mean() > 1.5 and abs(result[0][changed].mean()) < 1.0
    )  # 15 e- in one of seven; noise is 3.8 / sqrt(200)
    assert (result[1][changed] > clipped[1][changed]).all()
    kept = [plane.copy() for plane in clipped]
    combine_without_rejected(kept, (data, variance, dq), rejected, np.ones_like(neighbours), "mean")
    np.testing.assert_array_equal(kept[0], clipped[0])  # nothing would be left


def frame(number: int, cube: tuple[np.ndarray, ...], chunks: tuple[int, int]) -> xr.Dataset:
    variables = {
        name: (DIMS, da.from_array(plane[number][None], chunks=(1, *chunks)))
        for name, plane in zip(("data", "variance", "dq"), cube, strict=True)
    }
    return xr.Dataset(variables, attrs={"name": f"N{number}"})


@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize(
    "chunks", [(41, 60), (4, 60), (5, 7), (20, 60), (39, 60), (8, 13), (2, 60)]
)
def test_chunks_and_strips_do_not_show(
    chunks: tuple[int, int], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task stacks its block in strips of `rows` rows."""
    monkeypatch.setattr("gdask.steps.frames.STRIP_BYTES", 1.0)
    monkeypatch.setattr(stack, "FEWEST_ROWS_IN_PLACE", rows)
    monkeypatch.setattr(stack, "BAND_ROWS", 17)
    cube = planes()
    expected = [plane.copy() for plane in combine(*cube, **OPTIONS)[:3]]
    rejected = np.zeros(cube[0].shape, bool)
    combine(*cube, **OPTIONS, rejected=rejected)
    combine_without_rejected(expected, cube, rejected, grow_rejected(rejected), "mean")
    frames = tuple(frame(k, cube, chunks) for k in range(7))
    *found, counted = dask.compute(*stack._combined_arrays(frames, OPTIONS, True))
    for array, plane in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array[0], plane)
    stacked = expected[0][None]
    of_all = count_frames(*cube, rejected, stacked[0], (slice(0, stacked.shape[1]), slice(None)), 0)
    np.testing.assert_array_equal(counted[0][:, :3], of_all[:, :3])
    np.testing.assert_allclose(counted[0], of_all, rtol=1e-10)


def test_rims_of_cosmic_rays_go_from_weighted_means_too() -> None:
    """The pixels that are combined again have the weights of all the others."""
    rng = np.random.default_rng(5)
    data = rng.normal(0, 1, (6, 12, 12)).astype("f4")
    planes = data, np.ones_like(data), np.zeros(data.shape, "u2")
    weights = (1.0, 2.0, 0.5, 1.0, 4.0, 1.0)
    rejected = np.zeros(data.shape, bool)
    rejected[4, 5, 5:7] = True
    neighbours = grow_rejected(rejected)
    result = combine(*planes, method="wtmean", reject="none", weights=weights)[:3]
    combine_without_rejected(result, planes, rejected, neighbours, "wtmean", weights)
    left = np.where(rejected | neighbours, 0, np.array(weights)[:, None, None])
    touched = neighbours.any(axis=0) & ~rejected.any(axis=0)
    expected = (left * data).sum(axis=0) / left.sum(axis=0)
    np.testing.assert_allclose(result[0][touched], expected[touched], atol=1e-6)
    noise = (left**2).sum(axis=0) / left.sum(axis=0) ** 2
    np.testing.assert_allclose(result[1][touched], noise[touched], rtol=1e-6)
