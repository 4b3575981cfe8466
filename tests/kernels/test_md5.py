"""MD5 sums of many streams at once are those of hashlib."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest

from gdask.kernels.md5 import LANES, LEAST_STREAMS, PIECE_BYTES, md5_sums


class Slow(io.BytesIO):
    """A stream that gives fewer bytes than it is asked for, as pipes and networks do."""

    def readinto(self, room: memoryview) -> int:  # type: ignore[override]
        return super().readinto(room[: max(1, len(room) // 3)])


def streams(*sizes: int, kind: type[io.BytesIO] = io.BytesIO) -> list[io.BytesIO]:
    random = np.random.default_rng(len(sizes))
    return [kind(random.bytes(size)) for size in sizes]


@pytest.mark.parametrize(
    "sizes",
    [
        (0, 1, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128),
        (PIECE_BYTES - 64, PIECE_BYTES - 9, PIECE_BYTES - 8, PIECE_BYTES - 1, PIECE_BYTES),
        (PIECE_BYTES + 1, 5, 2 * PIECE_BYTES, 3 * PIECE_BYTES - 1, 0, 3 * PIECE_BYTES + 70),
        (PIECE_BYTES,) * LANES,
        tuple(range(1000, 1000 + LANES)),
        *((n * 1000,) * n for n in range(1, LEAST_STREAMS + 1)),
    ],
)
@pytest.mark.parametrize("kind", [io.BytesIO, Slow])
def test_sums_are_those_of_hashlib(sizes: tuple[int, ...], kind: type[io.BytesIO]) -> None:
    given = streams(*sizes, kind=kind)
    wanted = [hashlib.md5(stream.getvalue()).hexdigest() for stream in given]
    assert md5_sums(given) == wanted


def test_streams_go_on_from_where_they_are() -> None:
    given = streams(*(100,) * 5)
    for stream in given:
        stream.seek(30)
    assert md5_sums(given) == [hashlib.md5(one.getvalue()[30:]).hexdigest() for one in given]
