"""Random numbers that depend on what they are for, and on nothing else."""

from __future__ import annotations

from zlib import crc32

import numpy as np


def generator(seed: int, *key: str | int) -> np.random.Generator:
    """A generator for one purpose: the same (seed, key) gives the same numbers in any order, thread or subset."""
    words = [crc32(part.encode()) if isinstance(part, str) else part for part in key]
    return np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence([seed, *words])))
