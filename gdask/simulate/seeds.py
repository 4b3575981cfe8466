"""Random numbers that depend on the seed and on their purpose, and on nothing else."""

from __future__ import annotations

from zlib import crc32

import numpy as np


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """Make the random generator of one purpose.

    The same (seed, purpose) gives the same numbers in any order, in any thread, and whatever else
    is simulated.
    """
    words = [crc32(part.encode()) if isinstance(part, str) else part for part in purpose]
    return np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence([seed, *words])))
