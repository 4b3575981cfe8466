"""Type aliases with the meaning of numbers and arrays, for all modules; cheap to import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import xarray as xr

    Frame: TypeAlias = xr.Dataset
    Frames: TypeAlias = tuple[xr.Dataset, ...]
else:  # xarray is heavy, and header-only commands do without it
    Frame = Any
    Frames = tuple[Any, ...]

Pixels: TypeAlias = float
Arcsec: TypeAlias = float
Degrees: TypeAlias = float
Seconds: TypeAlias = float
Electrons: TypeAlias = float
Fraction: TypeAlias = float

Image: TypeAlias = npt.NDArray[np.float32]
Mask: TypeAlias = npt.NDArray[np.bool_]
Flags: TypeAlias = npt.NDArray[np.uint16]


#: What a task has at hand while it reads sources: planes by (id of the source, detector, window),
#: each made once; (window, plane) of a stored array by (id, detector); small results on which
#: pixels wait, by (name, detector).
Memo: TypeAlias = dict[Any, Any]
#: Half-open (y1, y2, x1, x2) in 0-based pixels of an array or an image.
Window: TypeAlias = tuple[int, int, int, int]
