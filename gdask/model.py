"""The vocabulary of a Frame: dimension and variable names, data types, DQ bits, and the checks on them."""

from __future__ import annotations

from enum import IntFlag

import numpy as np

DETECTOR, Y, X = "detector", "y", "x"
DIMS = (DETECTOR, Y, X)

#: Variables of a Frame and the type that each has, in memory and in checkpoints.
DTYPES: dict[str, np.dtype] = {
    "data": np.dtype("float32"),
    "variance": np.dtype("float32"),
    "dq": np.dtype("uint16"),
    "objects": np.dtype("bool"),
}

#: What each variable is called on disk.
EXTNAMES: dict[str, str] = {"data": "SCI", "variance": "VAR", "dq": "DQ", "objects": "OBJMASK"}


class DQ(IntFlag):
    """Data-quality bits, the field's own (as DRAGONS writes them)."""

    GOOD = 0
    BAD_PIXEL = 1
    NON_LINEAR = 2
    SATURATED = 4
    COSMIC_RAY = 8
    NO_DATA = 16
    OVERLAP = 32
    UNILLUMINATED = 64


#: Bits that make a pixel useless for levels, fits and stacks (a non-linear pixel has been corrected: it is used).
UNUSABLE = DQ.BAD_PIXEL | DQ.SATURATED | DQ.COSMIC_RAY | DQ.NO_DATA | DQ.UNILLUMINATED


class GdaskError(Exception):
    """An error that the user can act on: its text names the file, what came, what was expected and what to do."""


class UsageError(GdaskError):
    """What was asked for does not exist or is malformed (option, parameter, recipe, file name): exit code 2, nothing done."""


class BadPixels(GdaskError):
    """Pixels of input files that turned out to be of no use: `reasons`, by path. The files can be set aside."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__(reasons)
        self.reasons = reasons

    def __str__(self) -> str:
        return "; ".join(f"{path}: {reason}" for path, reason in self.reasons.items())


class BadFile(BadPixels):
    """A file whose pixels cannot be had: cut short, changed or gone since its headers were read."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__({path: reason})

    def __reduce__(self) -> tuple[type[BadFile], tuple[str, str]]:
        (item,) = self.reasons.items()
        return BadFile, item
