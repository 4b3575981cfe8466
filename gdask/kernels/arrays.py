"""How kernels take their arrays: one memory layout, so that numba compiles each kernel once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gdask.model import GdaskError
from gdask.types import Image


def plain(array: npt.ArrayLike, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """A read-only, contiguous, native view of `array` (a copy only where it is not so already).

    numba makes another specialisation for each layout, byte order and writability that it meets, and arrays that come
    from another process are read-only. Seconds of compilation are saved by giving it always the same.
    """
    view = np.asarray(array, dtype=dtype, order="C").view()
    view.flags.writeable = False
    return view


def rows(*planes: npt.ArrayLike) -> tuple[Image, ...]:
    """float32 arrays of one shape, each as one row, for kernels that treat every pixel alone.

    Raises GdaskError where the shapes differ: compiled code would read beyond the smaller one.
    """
    shapes = [np.shape(plane) for plane in planes]
    if len(set(shapes)) > 1:
        raise GdaskError(
            f"planes of shapes {shapes} cannot be combined pixel by pixel: cut them to one shape first"
        )
    return tuple(plain(plane, np.float32).reshape(-1) for plane in planes)
