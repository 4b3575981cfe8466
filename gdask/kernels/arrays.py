"""Give kernels their arrays in one memory layout, so that numba compiles each kernel once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gdask.model import GdaskError
from gdask.types import Image

#: Options of functions that only compiled code calls: without entry points for Python and C, and
#: without files of their own (their callers' files hold them), they take a fifth less to compile.
INNER: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def as_kernel_input(array: npt.ArrayLike, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """View `array` as read-only, contiguous and of native byte order; copy only if it is not so.

    numba compiles another specialisation for each layout, byte order and writability that it
    meets, and arrays that come from another process are read-only. Giving it always the same kind
    of array saves seconds of compilation.
    """
    view = np.asarray(array, dtype=dtype, order="C").view()
    view.flags.writeable = False
    return view


def flatten_planes(*planes: npt.ArrayLike) -> tuple[Image, ...]:
    """Flatten arrays of one shape to one-dimensional float32, for kernels that work pixel by pixel.

    Raises GdaskError where the shapes differ: compiled code would read beyond the smaller one.
    """
    shapes = [np.shape(plane) for plane in planes]
    if len(set(shapes)) > 1:
        raise GdaskError(
            f"planes of shapes {shapes} cannot be combined pixel by pixel: "
            "cut them to one shape first"
        )
    return tuple(as_kernel_input(plane, np.float32).reshape(-1) for plane in planes)
