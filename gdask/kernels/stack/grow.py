"""The neighbours of rejected values: the faint rims of cosmic rays, which no limit finds by their own light.

A cosmic ray leaves charge below any limit beside what is found, and resampling spreads it: 2 % of the charge of GSAOI's
(14 % of FLAMINGOS-2's in Y) lies in pixels below 3 sigma of a frame, 0.3 % (5 %) if those that touch one above it go, too.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gdask.kernels.stack.combine import combine
from gdask.kernels.stack.noise_clip import LEAST_SCATTER
from gdask.kernels.stack.rejection import HIERARCHY
from gdask.types import Flags, Image, Mask

#: How far (pixels) away values decide whether a value goes: a neighbour that goes does so for a neighbour of its own.
REACH = 2
#: Any of these bits, and a value is not grown over: it is used only where no frame has a better one.
_WORSE = np.uint16(sum(int(bit) for bit in HIERARCHY))

Planes = tuple[Image, Image, Flags]


@njit(cache=True, nogil=True)
def grown(rejected: Mask) -> Mask:
    """The 3 x 3 pixels about each rejected value that has a rejected neighbour in its plane. rejected: (n, ny, nx).

    One alone may be noise; resampled cosmic rays are wider than a pixel. What lies about it goes whatever its value, so
    that the mean of what stays is not biased.
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


def without(result: Planes, planes: Planes, rejected: Mask, neighbours: Mask, method: str) -> None:
    """Combine again, without rejected values and neighbours (n, ny, nx), the pixels of `result` that lose a value.

    result: (ny, nx) planes, changed in place. A pixel keeps its value where nothing as good would be left, and in
    starlight, where what a frame more or less changes is more than a rim.
    """
    n = len(planes[0])
    at = np.flatnonzero(neighbours.any(axis=0))
    data, variance, dq, rejected, neighbours = (
        np.ascontiguousarray(each.reshape(n, -1)[:, at]) for each in (*planes, rejected, neighbours)
    )
    usable = np.isfinite(data) & np.isfinite(variance) & ((dq & _WORSE) == 0) & ~rejected
    number = np.maximum(usable.sum(axis=0), 1)
    light, square = (
        np.where(usable, each, 0).sum(axis=0, dtype=np.float64) / number
        for each in (data, variance)
    )
    fewer = usable & ~neighbours
    lost = (fewer != usable).any(axis=0)
    # Others are combined again, too: with fewer of their neighbours known they may have lost a value before.
    use = np.where(fewer.any(axis=0) & ((LEAST_SCATTER * light) ** 2 < square), fewer, usable)
    at, some = (
        at[lost],
        [np.ascontiguousarray(each[:, None, lost]) for each in (data, variance, dq)],
    )
    some[0][~use[:, None, lost]] = np.nan
    for whole, part in zip(result, combine(*some, method=method, reject="none")[:3], strict=True):
        whole.reshape(-1)[at] = part[0]
