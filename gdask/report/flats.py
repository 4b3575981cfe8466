"""How a flat differs from the one before it: lamps, filters and dust move, arrays do not."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from gdask.headers import open_hdus
from gdask.model import UNUSABLE, late
from gdask.report.coverage import sampled

fits = late("astropy.io.fits")

#: One row and column of so many is looked at: 10^4 pixels of an array of GSAOI tell 0.1 %.
_STEP = 16
_SIGMA_PER_MAD = 1.4826


def flat_ratio(path: str | os.PathLike[str], before: str | os.PathLike[str]) -> dict[str, Any]:
    """Give median and robust scatter of a flat over its predecessor, and those of each array.

    On every 16th row and column, good pixels of both alone. `trouble` says in words why nothing
    can be compared.
    """
    try:
        with open_hdus(path) as new, open_hdus(before) as old:
            arrays = [one.ver for one in new if one.name == "SCI"]
            ratios = [_ratio(new, old, number) for number in arrays]
    except (OSError, KeyError, ValueError) as error:
        return {"trouble": f"cannot be compared: {error}"}
    known = [ratio for ratio in ratios if ratio.size]
    if not known:
        return {"trouble": "no pixel is good in both"}
    middle, scatter = _middle_and_scatter(np.concatenate(known))
    each = [_middle_and_scatter(ratio) for ratio in known]
    middles = [one[0] for one in each]
    return {"trouble": "", "median": middle, "scatter": scatter, "arrays": middles}


def _ratio(new: Any, old: Any, number: int) -> np.ndarray:
    """Give the ratio of the good pixels of an array that are looked at, flattened."""
    shapes = [file["SCI", number].shape for file in (new, old)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"array {number} has {shapes[0]} pixels, and had {shapes[1]}")
    good = (sampled(new["DQ", number], _STEP) & UNUSABLE) == 0
    good &= (sampled(old["DQ", number], _STEP) & UNUSABLE) == 0
    top, bottom = (sampled(file["SCI", number], _STEP)[good].astype(float) for file in (new, old))
    ratio = top / np.where(bottom == 0, np.nan, bottom)
    return ratio[np.isfinite(ratio)]


def _middle_and_scatter(ratio: np.ndarray) -> tuple[float, float]:
    middle = float(np.median(ratio))
    scatter = _SIGMA_PER_MAD * float(np.median(np.abs(ratio - middle)))
    return float(f"{middle:.5g}"), float(f"{scatter:.4g}")
