"""Computes: what several results share is computed once."""

from __future__ import annotations

import dask.array as da
import numpy as np

from gdask.progress import compute

CALLS: list[int] = []


def _level(block: np.ndarray) -> np.ndarray:
    CALLS.append(1)
    return np.array([[block.mean()]])


def _less(block: np.ndarray, *levels: np.ndarray) -> np.ndarray:
    return block - sum(level.item() for level in levels)


def test_what_results_share_is_computed_once() -> None:
    frames = [da.from_array(np.full((4, 4), value), chunks=4) for value in (1.0, 2.0, 3.0)]
    levels = [frame.map_blocks(_level, chunks=((1,), (1,)), dtype=float, meta=np.empty((0, 0))) for frame in frames]
    results = [frame.map_blocks(_less, *levels, dtype=float, chunks=((4,), (4,)), meta=np.empty((0, 0))) for frame in frames]
    CALLS.clear()
    values = compute(results, "a test")
    assert [value[0, 0] for value in values] == [-5.0, -4.0, -3.0]
    assert len(CALLS) == 3
