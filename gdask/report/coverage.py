"""How much of a stack has its exposure: of the middle of its field, and of all that it covers."""

from __future__ import annotations

from typing import Any

import numpy as np

from gdask.model import UNUSABLE, late

fits = late("astropy.io.fits")

#: One row and column of so many is looked at: 10^4 pixels of a stack tell a fraction to 0.5 %.
_STEP = 32
#: Of so small a stack all pixels are looked at.
_LEAST_SIDE = 1024
#: Pixels that are looked at, without which nothing is told.
_LEAST = 50
#: Percentile of VAR that is the full exposure's: the deepest pixels, without the odd ones.
_DEEPEST = 10


def coverage(units: Any) -> dict[str, float]:
    """Give how a stack (open units of astropy) covers its field; {} where VAR cannot tell.

    A pixel has half of the exposure where its VAR is at most twice that of the deepest tenth of
    all. `centre_covered`: fraction of the pixels of the middle half of the picture along x and y
    (those without data are not covered), if at least half of them have data: the middle of small
    regions of four arrays is a gap. `area_covered`: fraction of the pixels with data. Pixels of
    objects (OBJMASK), whose own light is in VAR, do not count.
    """
    planes = {unit.name: unit for unit in units if unit.ver == 1}
    if "VAR" not in planes or len([unit for unit in units if unit.name == "VAR"]) != 1:
        return {}
    shape = planes["VAR"].shape
    step = _STEP if min(shape) >= _LEAST_SIDE else 1
    variance = sampled(planes["VAR"], step).astype(float)
    good = np.isfinite(variance) & (variance > 0)
    if "DQ" in planes:
        good &= (sampled(planes["DQ"], step) & UNUSABLE) == 0
    counted = np.ones_like(good)
    if "OBJMASK" in planes:
        counted = sampled(planes["OBJMASK"], step) == 0
    good &= counted
    ny, nx = variance.shape
    middle = (slice(ny // 4, ny - ny // 4), slice(nx // 4, nx - nx // 4))
    if good.sum() < _LEAST:
        return {}
    deep = good & (variance <= 2 * np.percentile(variance[good], _DEEPEST))
    found = {"area_covered": deep.sum() / good.sum()}
    if good[middle].sum() > max(_LEAST, counted[middle].sum() / 2):
        found["centre_covered"] = deep[middle].sum() / counted[middle].sum()
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def sampled(unit: Any, step: int) -> np.ndarray:
    """Read one row and column of `step` of an image (unit of astropy): whole rows, which is thirty
    times as fast as to let astropy pick each pixel."""
    return np.asarray(unit.section[step // 2 :: step, :][:, step // 2 :: step])
