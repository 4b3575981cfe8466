"""Leave objects out of sky frames, fill what they hide on all of them, and subtract the sky.

Each function goes through the pixels once: as steps of NumPy the same took more time than the
combination itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gdask.kernels.arrays import as_kernel_input
from gdask.kernels.compiled import njit
from gdask.model import DQ, UNUSABLE
from gdask.types import Flags, Image, Mask

#: The bit of a pixel whose sky is known from one sky frame of several, or from none: objects cover
#: it on all others. Such a pixel can be used, and stacks prefer frames without it. (Imaging has no
#: other use for the field's bit 32, overlap.)
FEW_SKIES = DQ.OVERLAP
_NO_DATA, _FEW_SKIES, _UNUSABLE = (np.uint16(bit) for bit in (DQ.NO_DATA, FEW_SKIES, UNUSABLE))


@njit(cache=True, nogil=True)
def _hide(dq: Flags, hidden: Mask, out: Flags) -> None:
    """Compiled part of `without_objects`."""
    for i in range(dq.size):
        out[i] = dq[i] | (_NO_DATA if hidden[i] else np.uint16(0))


@njit(cache=True, nogil=True)
def _fill(
    dq: Flags,
    hidden: Mask,
    chosen: npt.NDArray[np.int64],
    level: np.float32,
    variance: np.float32,
    counts: npt.NDArray[np.int16],
    shown: Mask,
    sky: tuple[Image, Image, Flags],
) -> None:
    """Compiled part of `fill_hidden`; counts, shown: room for one value for each pixel."""
    data, noise, flags = sky
    number = chosen.size
    for x in range(counts.size):
        counts[x], shown[x] = number, False
    for plane in chosen:
        bits, covers = dq[plane], hidden[plane]
        for x in range(counts.size):
            counts[x] -= covers[x]
            shown[x] |= bits[x] & _UNUSABLE == 0
    few = min(1, number - 1)
    for x in range(counts.size):
        if counts[x] == 0 and shown[x]:
            data[x], noise[x], flags[x] = level, variance, 0
        if counts[x] <= few:
            flags[x] |= _FEW_SKIES


@njit(cache=True, nogil=True)
def _subtract(
    frame: tuple[Image, Image, Flags],
    sky: tuple[Image, Image, Flags],
    level: np.float32,
    scale: bool,
    out: tuple[Image, Image, Flags],
) -> None:
    """Compiled part of `subtract_sky`."""
    kept, square = _NO_DATA | _FEW_SKIES, level * level
    if scale:
        for i in range(out[0].size):
            out[0][i] = frame[0][i] - sky[0][i] * level
            out[1][i] = frame[1][i] + sky[1][i] * square
    else:
        for i in range(out[0].size):
            out[0][i] = frame[0][i] - (sky[0][i] + level)
            out[1][i] = frame[1][i] + sky[1][i]
    for i in range(out[2].size):
        out[2][i] = frame[2][i] | (sky[2][i] & kept)


def without_objects(dq: Flags, hidden: Mask) -> Flags:
    """Give DQ, of any shape, with NO_DATA (16) where objects hide the sky."""
    out = np.empty(dq.shape, np.uint16)
    flags, covers = as_kernel_input(dq, np.uint16), as_kernel_input(hidden, np.bool_)
    _hide(flags.reshape(-1), covers.reshape(-1), out.reshape(-1))
    return out


def fill_hidden(
    sky: tuple[Image, Image, Flags],
    dq: Flags,
    hidden: Mask,
    chosen: Sequence[int],
    level: float,
    variance: float,
) -> None:
    """Give a sky, in place, its level where objects hide all its frames, and FEW_SKIES.

    Pixels that one sky frame of several shows have FEW_SKIES, too. Those that are bad on all frames
    stay without data.

    Parameters
    ----------
    sky
        Data, variance and DQ, (ny, nx), combined from the chosen frames.
    dq, hidden
        DQ of all frames, and where objects hide the sky: (n, ny, nx).
    chosen
        Numbers of the sky frames.
    level, variance
        What such pixels get, in the units of the sky and its variance.
    """
    count, pixels = len(dq), sky[0].size
    _fill(
        as_kernel_input(dq, np.uint16).reshape(count, -1),
        as_kernel_input(hidden, np.bool_).reshape(count, -1),
        as_kernel_input(chosen, np.int64),
        np.float32(level),
        np.float32(variance),
        np.empty(pixels, np.int16),
        np.empty(pixels, np.bool_),
        _rows(sky),
    )


def subtract_sky(
    frame: tuple[Image, Image, Flags],
    sky: tuple[Image, Image, Flags],
    level: float,
    scale: bool,
    out: tuple[Image, Image, Flags],
) -> None:
    """Put data, variance and DQ (ny, nx) of a frame without its sky, at a level, into `out`.

    scale: the sky is multiplied by the level (electrons), which else is added to it.
    """
    data, variance = (as_kernel_input(plane, np.float32).reshape(-1) for plane in frame[:2])
    given = data, variance, as_kernel_input(frame[2], np.uint16).reshape(-1)
    _subtract(given, _rows(sky), np.float32(level), scale, _rows(out))


def _rows(planes: Sequence[Image | Flags]) -> tuple[npt.NDArray, ...]:
    """View contiguous planes as one row of pixels each, to be written to."""
    return tuple(plane.reshape(-1) for plane in planes)
