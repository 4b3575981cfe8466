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

from gdask.kernels.arrays import as_kernel_input
from gdask.kernels.compiled import njit
from gdask.kernels.stack.combine import combine
from gdask.kernels.stack.rejection import HIERARCHY, MIN_STARLIGHT_SCATTER
from gdask.types import Flags, Image, Mask

#: Distance (pixels) at which values decide whether a value is rejected: a rejected value has its
#: neighbours rejected only if one of these is itself rejected.
GROW_MARGIN = 2
#: DQ bits of values that are used only where no frame has a better one: nothing is decided about
#: them here.
_WORSE_THAN_PERFECT = np.uint16(sum(int(bit) for bit in HIERARCHY))
#: Values that are searched for rejected ones at a time.
_CHUNK = 32

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
            row = rejected[k, y]
            for start in range(0, nx, _CHUNK):
                stop = min(start + _CHUNK, nx)
                found = False
                for x in range(start, stop):  # nearly all chunks have none: this loop is fast
                    found |= row[x]
                if not found:
                    continue
                for x in range(start, stop):
                    if row[x]:
                        count = 0
                        for j in range(max(y - 1, 0), min(y + 2, ny)):
                            for i in range(max(x - 1, 0), min(x + 2, nx)):
                                count += rejected[k, j, i]
                        if count > 1:
                            for j in range(max(y - 1, 0), min(y + 2, ny)):
                                for i in range(max(x - 1, 0), min(x + 2, nx)):
                                    out[k, j, i] = True
    return out


def combine_without_rejected(
    result: Planes,
    planes: Planes,
    rejected: Mask,
    neighbours: Mask,
    method: str,
    weights: npt.ArrayLike | None = None,
) -> None:
    """Combine again the pixels of `result` from which neighbours of rejected values are dropped.

    result: data, variance and DQ (ny, nx), changed in place. planes: data, variance and DQ (n, ny,
    nx). rejected, neighbours: (n, ny, nx); see `grow_rejected`. method: a key of combine.METHODS;
    weights: (n,), for "wtmean". A pixel keeps all its values where nothing as good would be left,
    and in starlight, where one frame more or less changes more than a rim does.
    """
    n = len(planes[0])
    touched = np.flatnonzero(neighbours.any(axis=0))
    shape = n, touched.size
    left = np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape, np.uint16)
    data, variance = (as_kernel_input(plane, np.float32).reshape(n, -1) for plane in planes[:2])
    dq = as_kernel_input(planes[2], np.uint16).reshape(n, -1)
    first, second = (
        as_kernel_input(mask, np.bool_).reshape(n, -1) for mask in (rejected, neighbours)
    )
    count = _take_left(data, variance, dq, first, second, touched, *left)
    values, noise, flags = left[0][:, None], left[1][:, None], left[2][:, None]
    kept = np.s_[:, :, :count]
    combined: tuple[npt.NDArray[Any], ...] = combine(
        values[kept], noise[kept], flags[kept], method=method, reject="none", weights=weights
    )
    changed: tuple[npt.NDArray[Any], ...] = result
    for whole, part in zip(changed, combined[:3], strict=True):
        whole.reshape(-1)[touched[:count]] = part[0]


@njit(cache=True, nogil=True)
def _take_left(
    data: Image,
    variance: Image,
    dq: Flags,
    rejected: Mask,
    neighbours: Mask,
    touched: npt.NDArray[np.int64],
    out: Image,
    out_var: Image,
    out_dq: Flags,
) -> int:
    """Take the values of touched pixels that are left, NaN for others; see above.

    Planes are (n, pixels), results (n, touched). Pixels that nothing is dropped from are taken out
    of `touched`; those that keep all now stay: when fewer of their neighbours were known, they may
    have lost a value that they keep now. Returns the number of those that stay.
    """
    count, n = 0, data.shape[0]
    usable = np.empty(n, np.bool_)
    for place in touched:
        light = noise = 0.0
        number = fewer = 0
        for k in range(n):
            value, its_noise = data[k, place], variance[k, place]
            usable[k] = (
                abs(value) < np.inf
                and abs(its_noise) < np.inf
                and dq[k, place] & _WORSE_THAN_PERFECT == 0
                and not rejected[k, place]
            )
            if usable[k]:
                number += 1
                fewer += not neighbours[k, place]
                light += value
                noise += its_noise
        if fewer == number:
            continue
        is_sky = (MIN_STARLIGHT_SCATTER * (light / number)) ** 2 < noise / number
        drops = fewer > 0 and is_sky
        for k in range(n):
            used = usable[k] and not (drops and neighbours[k, place])
            out[k, count] = data[k, place] if used else np.float32(np.nan)
            out_var[k, count], out_dq[k, count] = variance[k, place], dq[k, place]
        touched[count] = place
        count += 1
    return count
