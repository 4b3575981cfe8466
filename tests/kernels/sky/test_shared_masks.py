"""Tests of object masks that frames of one sky share."""

from __future__ import annotations

import time

import numpy as np
import pytest

from gdask.kernels.sky import shared_masks
from gdask.kernels.sky.shared_masks import OUTLINE_PIXELS, Outline, outline, share_outlines
from gdask.types import Mask

#: Cells of the sky by which each frame is dithered (down, right), and of a turned one more.
DITHERS = ((0, 0), (7, 11), (-9, 4), (3, -13))
SIDE = 60


def corners(dither: tuple[int, int], error: tuple[float, float] = (0.0, 0.0)) -> list[np.ndarray]:
    """Give x and y of the corners of blocks, slightly turned, dithered, with an error."""
    y, x = np.mgrid[: SIDE + 1, : SIDE + 1].astype(float)
    return [
        100 + x - 0.01 * y + dither[1] + error[1],
        100 + y + 0.01 * x + dither[0] + error[0],
    ]


def frame_of(number: int, spots: list[tuple[int, int]], **pointing: object) -> Outline:
    """Make the outline of a frame that has found spots of 3 x 3 blocks at places of the sky."""
    blocks = np.zeros((SIDE, SIDE), bool)
    down, right = DITHERS[number]
    for row, column in spots:
        y, x = row - 100 - down, column - 100 - right
        blocks[y - 1 : y + 2, x - 1 : x + 2] = True
    return Outline(number, blocks, *corners(DITHERS[number], **pointing))


def around(number: int, spot: tuple[int, int], blocks: Mask) -> Mask:
    down, right = DITHERS[number]
    y, x = spot[0] - 100 - down, spot[1] - 100 - right
    return blocks[y - 1 : y + 2, x - 1 : x + 2]


def test_an_outline_has_every_block_with_a_masked_pixel() -> None:
    mask = np.zeros((30, 41), bool)
    mask[5, 17] = mask[29, 40] = True
    blocks = outline(mask)
    assert blocks.shape == (8, 11) and blocks.sum() == 2
    assert blocks[5 // OUTLINE_PIXELS, 17 // OUTLINE_PIXELS] and blocks[-1, -1]


@pytest.mark.parametrize("error", [(0.0, 0.0), (5.0, -4.0)])
def test_what_one_frame_misses_is_masked_where_the_others_show_it(error: tuple) -> None:
    spots = [(120, 125), (140, 130), (125, 145), (143, 143)]
    all_found = [frame_of(n, spots) for n in (0, 2, 3)]
    missed = frame_of(1, spots[1:], error=error)
    first, added, *others = share_outlines([all_found[0], missed, *all_found[1:]], reach=12)
    assert around(1, spots[0], added).all()
    assert added.sum() <= 5 * 5 and not first.any() and not any(each.any() for each in others)


def test_a_false_find_of_one_frame_among_many_is_not_shared() -> None:
    spots = [(120, 125), (140, 130)]
    many = [frame_of(0, spots)._replace(frame=n) for n in range(20)]
    false = frame_of(0, [*spots, (130, 142)])._replace(frame=20)
    assert not any(each.any() for each in share_outlines([*many, false], reach=3))
    assert share_outlines([*many[:5], false], reach=3)[0].any()


def test_frames_that_show_other_parts_of_the_sky_share_nothing() -> None:
    one = frame_of(0, [(120, 125)])
    far = one._replace(frame=1, x=one.x + 1000)
    assert not any(each.any() for each in share_outlines([one, far], reach=3))


def test_keys_are_made_unique_fast() -> None:
    """A night's masks have millions of keys, and the client waits for them alone."""
    rng = np.random.default_rng(3)
    parts = [rng.integers(-300, 300, 50_000) * 2**32 + rng.integers(0, 600, 50_000) for _ in "abc"]
    began = time.thread_time()
    found = shared_masks._unique(parts)
    taken = time.thread_time() - began
    assert np.array_equal(found, np.unique(np.concatenate(parts)))
    assert len(shared_masks._unique([])) == 0 and len(shared_masks._unique([parts[0][:1]])) == 1
    began = time.thread_time()
    np.sort(np.concatenate(parts))
    assert taken < 10 * (time.thread_time() - began) + 0.002
