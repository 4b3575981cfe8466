"""What a stack tells of each of its frames: values rejected, level and scatter about the stack."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gdask.model import UNUSABLE
from gdask.types import Flags, Image, Mask

#: What `count_frames` counts of each frame. covered: usable values. rejected: those of them that
#: the stack does not use. Of the others: number, sum and sum of squares of value minus stack, sum
#: of the stack, and of the variances that VAR gives.
COUNTED = ("covered", "rejected", "used", "difference", "square", "stack", "variance")
#: One row of so many is counted, by its number in the image: some 10^5 values of each array of each
#: frame tell a fraction of 0.1 % to 3 %, at a share of the stack's time that does not show.
EVERY_ROWS = 16
#: Values are rounded to this (e-, e-^2) and limited before they are added up: sums of whole steps
#: are exact in any order, so that the numbers do not depend on tiles. Noise is far above it.
STEP, LIMIT = 2.0**-6, 2.0**15


def count_frames(
    data: Image,
    variance: Image,
    dq: Flags,
    rejected: Mask,
    stack: Image,
    part: tuple[slice, slice],
    first_row: int,
) -> npt.NDArray[np.float64]:
    """Count values of each frame: (n, len(COUNTED)).

    data, variance, dq, rejected: (n, ny, nx) of the frames; stack: (ny, nx). part: rows and columns
    that count, which begin with row number `first_row` of the image.
    """
    rows, columns = part
    begin = rows.start + -first_row % EVERY_ROWS
    lines = slice(begin, rows.stop, EVERY_ROWS)
    counted = np.zeros((len(data), len(COUNTED)))
    if begin >= rows.stop:
        return counted
    level = _in_steps(stack[lines, columns])
    for k, row in enumerate(counted):
        values, noise = (cube[k, lines, columns].astype(np.float64) for cube in (data, variance))
        usable = (dq[k, lines, columns] & np.uint16(UNUSABLE)) == 0
        usable &= np.isfinite(values) & np.isfinite(noise)
        dropped = usable & rejected[k, lines, columns]
        used = usable & ~dropped
        apart = np.clip(_in_steps(values) - level, -LIMIT, LIMIT)[used]
        row[:] = (
            np.count_nonzero(usable),
            np.count_nonzero(dropped),
            apart.size,
            apart.sum(),
            (apart * apart).sum(),
            level[used].sum(),
            _in_steps(noise[used]).sum(),
        )
    return counted


def _in_steps(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Round values to STEP; what is no number or beyond any level stays what it is, limited."""
    limited = np.clip(values.astype(np.float64), -(2.0**30), 2.0**30)
    return np.asarray(np.round(limited / STEP) * STEP, np.float64)
