"""Rejection of the neighbours of rejected values: the faint rims of cosmic rays.

No limit finds these rims by their own light. A cosmic ray leaves charge below any limit beside the
pixels that are found, and resampling spreads it. Of the charge of cosmic rays, 2 % (GSAOI;
FLAMINGOS-2 in Y: 14 %) lies in pixels below 3 sigma of a frame, and 0.3 % (5 %) remains if the
pixels that touch one above 3 sigma are rejected, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gdask.kernels.compiled import njit
from gdask.kernels.stack.combine import combine
from gdask.kernels.stack.noise_clip import MIN_STARLIGHT_SCATTER
from gdask.kernels.stack.rejection import HIERARCHY
from gdask.types import Flags, Image, Mask

#: Distance (pixels) at which values decide whether a value is rejected: a rejected value has its
#: neighbours rejected only if one of these is itself rejected.
GROW_MARGIN = 2
#: DQ bits of values that are used only where no frame has a better one: nothing is decided about
#: them here.
_WORSE_THAN_PERFECT = np.uint16(sum(int(bit) for bit in HIERARCHY))

Planes = tuple[Image, Image, Flags]


@njit(cache=True, nogil=True)
def grow_rejected(rejected: Mask) -> Mask:
    """Return the 3 x 3 pixels about each rejected value that has a rejected neighbour in its plane.

    rejected: (n, ny, nx), as the result. A single rejected value may be noise; resampled cosmic
    rays are wider than a pixel. Neighbours are rejected whatever their values, so that the mean of
    the remaining values is not biased.
    """
    out = np.zeros_like(rejected)
    n, ny, nx = rejected.shape
    for k in range(n):
        for y in range(ny):
            for x in range(nx):
                if not rejected[k, y, x]:
                    continue
                y1, y2, x1, x2 = max(y - 1, 0), min(y + 2, ny), max(x - 1, 0), min(x + 2, nx)
                count = 0
                for j in range(y1, y2):
                    for i in range(x1, x2):
                        count += rejected[k, j, i]
                if count > 1:
                    out[k, y1:y2, x1:x2] = True
    return out


def combine_without_rejected(
    result: Planes, planes: Planes, rejected: Mask, neighbours: Mask, method: str
) -> None:
    """Combine again the pixels of `result` from which neighbours of rejected values are dropped.

    result: data, variance and DQ (ny, nx), changed in place. planes: data, variance and DQ (n, ny,
    nx). rejected, neighbours: (n, ny, nx); see `grow_rejected`. method: a key of combine.METHODS. A
    pixel keeps all its values where nothing as good would be left, and in starlight, where one
    frame more or less changes more than a rim does.
    """
    n = len(planes[0])
    touched = np.flatnonzero(neighbours.any(axis=0))

    def at_touched(plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the values (n, pixels) at the pixels that are touched."""
        return np.ascontiguousarray(plane.reshape(n, -1)[:, touched])

    data, variance, dq = (at_touched(plane) for plane in planes)
    is_neighbour = at_touched(neighbours)
    usable = np.isfinite(data) & np.isfinite(variance) & ((dq & _WORSE_THAN_PERFECT) == 0)
    usable &= ~at_touched(rejected)
    number = np.maximum(usable.sum(axis=0), 1)
    light, mean_variance = (
        np.where(usable, values, 0).sum(axis=0, dtype=np.float64) / number
        for values in (data, variance)
    )
    fewer = usable & ~is_neighbour
    # Pixels that keep their values now are combined again, too: when fewer of their neighbours were
    # known, they may have lost a value that they keep now.
    again = (fewer != usable).any(axis=0)
    is_sky = (MIN_STARLIGHT_SCATTER * light) ** 2 < mean_variance
    use = np.where(fewer.any(axis=0) & is_sky, fewer, usable)
    data, variance, dq = (
        np.ascontiguousarray(plane[:, None, again]) for plane in (data, variance, dq)
    )
    data[~use[:, None, again]] = np.nan
    changed: tuple[npt.NDArray[Any], ...] = result
    combined: tuple[npt.NDArray[Any], ...] = combine(
        data, variance, dq, method=method, reject="none"
    )
    for whole, part in zip(changed, combined[:3], strict=True):
        whole.reshape(-1)[touched[again]] = part[0]
