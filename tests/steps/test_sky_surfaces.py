"""Arrays that share no part of the sky: their levels are not made up in silence."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import raw

from gdask.io.frames import with_fetched, with_headers
from gdask.kernels.sky.matching import KINDS, Surfaces
from gdask.steps.sky_surfaces import _apart_text, _count_in_blocks, _levels_apart
from gdask.types import Frames

#: Levels (e-) of the four arrays, over the sky of their frame.
OVER = np.array([-26.0, -22.0, 20.0, 28.0])


def frames(path: str, over: np.ndarray, mode: str, skies: str) -> Frames:
    """Three frames whose sky is 1500 e-, 1510 e- and 1490 e-."""
    measured = []
    for number, sky in enumerate((1500.0, 1510.0, 1490.0)):
        frame = raw(path).assign_attrs(name=f"S{number}.fits", skies=skies)
        frame = with_headers(frame, primary={"SKYLEVEL": mode})
        background = tuple(np.full((8, 8), sky + each) for each in over)
        measured.append(with_fetched(frame, {"background": background}))
    return tuple(measured)


def solution(groups: list[int]) -> Surfaces:
    """Three frames of four arrays, in such groups."""
    zero = np.zeros(12)
    group = np.array(groups * 3)
    return Surfaces(
        KINDS["offset"], zero[:, None], np.zeros((3, 0)), group, zero + 50, zero, 1.0, zero
    )


ON_TARGET, OFF_TARGET = '["S0.fits", "S1.fits"]', '["S7.fits", "S8.fits"]'


@pytest.mark.parametrize("tied", [True, False])
def test_the_number_is_told(night: object, tied: bool) -> None:
    own = frames(night.science[0], OVER, "offset", ON_TARGET)
    apart = _levels_apart(own, solution([0, 1, 2, 3]))
    np.testing.assert_allclose(apart[:4], OVER - OVER.mean(), atol=1e-9)
    text = _apart_text(own, apart, tied)
    assert "4 groups" in text and "54 e-" in text and f"tie={not tied}" in text


@pytest.mark.parametrize(
    ("over", "mode", "skies", "groups"),
    [
        (OVER, "none", OFF_TARGET, [0, 1, 2, 3]),  # the level of frames off the target
        (OVER, "offset", OFF_TARGET, [0, 1, 2, 3]),
        (OVER, "offset", ON_TARGET, [0, 0, 0, 0]),  # all are connected
        (OVER / 20, "offset", ON_TARGET, [0, 1, 2, 3]),  # as flat as any sky
    ],
)
def test_there_is_no_word_where_levels_are_known(
    night: object, over: np.ndarray, mode: str, skies: str, groups: list[int]
) -> None:
    told = frames(night.science[0], over, mode, skies)
    assert not len(_levels_apart(told, solution(groups)))


@pytest.mark.parametrize("shape", [(64, 48), (61, 47), (5, 3)])
def test_good_pixels_of_blocks_are_counted(shape: tuple[int, int]) -> None:
    good = np.random.default_rng(1).random(shape) < 0.7
    expected = [
        [np.count_nonzero(good[y : y + 8, x : x + 8]) for x in range(0, shape[1], 8)]
        for y in range(0, shape[0], 8)
    ]
    np.testing.assert_array_equal(_count_in_blocks(good), expected)
