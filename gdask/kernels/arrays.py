"""Give kernels their arrays in one memory layout, so that numba compiles each kernel once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gdask.model import GdaskError
from gdask.types import Image

_FLOAT32 = np.dtype(np.float32)
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
    view.setflags(write=False)
    return view


def flatten_planes(*planes: npt.ArrayLike) -> tuple[Image, ...]:
    """Flatten arrays of one shape to one-dimensional float32, for kernels that work pixel by pixel.

    Raises GdaskError where the shapes differ: compiled code would read beyond the smaller one.
    """
    arrays = [np.asarray(plane, _FLOAT32) for plane in planes]
    shape, flat = arrays[0].shape, []
    for array in arrays:
        if array.shape != shape:
            raise GdaskError(
                f"planes of shapes {[each.shape for each in arrays]} cannot be combined pixel by "
                "pixel: cut them to one shape first"
            )
        values = array.reshape(-1)  # another view, or a copy
        values.setflags(write=False)
        flat.append(values)
    return tuple(flat)
