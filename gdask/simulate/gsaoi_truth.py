"""The truth of a simulated GSAOI night."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gdask.simulate import truth
from gdask.simulate.exposure import pointing
from gdask.simulate.geometry import WARP_SCALE, WARP_TERMS, pixel_area
from gdask.simulate.gsaoi_headers import window
from gdask.simulate.gsaoi_plan import SKY_OFFSET, TARGET

if TYPE_CHECKING:
    from gdask.simulate.gsaoi import Night

POSITIONS = (
    "u, v = static distortion of the 1-based full-array pixel, arcsec; X, Y = plate_scale * (u, v) + sum of warp[0], "
    "warp[1] times the terms of u / warp_scale, v / warp_scale; xi = X cos pa + Y sin pa, eta = -X sin pa + Y cos pa; "
    "TAN about ra0, dec0"
)


def write(night: Night, counts: list[truth.Counts], folder: Path) -> None:
    """Write every truth file into `folder`."""
    zero_point = night.facts["filters"][night.options.filter]["zp"]
    truth.write(
        folder,
        catalog=truth.star_catalog(night.stars),
        frames=truth.frame_table(night.exposures, counts, zero_point),
        cosmics=truth.cosmic_table(night.exposures, counts),
        arrays=_planes(night),
        scene=_scene(night, zero_point),
    )


def _planes(night: Night) -> Iterator[truth.Planes]:
    for array, (pattern, flat) in enumerate(zip(night.patterns, night.flats)):
        w = window(night.options.size, 0, array)
        x, y = (np.arange(w.size) + corner + 1.0 for corner in (w.x, w.y))
        area = pixel_area(night.chips[array], x, y) / night.mean_area
        yield truth.Planes(
            night.arrays[array]["name"], flat, pattern.response, area, pattern.dark, pattern.bad
        )


def _scene(night: Night, zero_point: float) -> dict[str, object]:
    options = night.options
    return {
        "instrument": "GSAOI",
        "filter": options.filter,
        "zp": zero_point,
        "pixel_scale": 0.0197,
        "mean_pixel_area": night.mean_area,
        "halo": night.halo._asdict() if night.halo else None,
        "halo_law": "amp * (1 + r^2 / scale^2)^-power, e-/s in a mean pixel, seen through FLAT and scale",
        "target": TARGET,
        "sky_field": pointing(TARGET, *SKY_OFFSET, options.pa),
        "options": options._asdict(),
        "exptime": options.exptime,
        "science_field": "target",
        "science_kind": "science",
        "warp_terms": WARP_TERMS,
        "warp_scale": WARP_SCALE,
        "positions": POSITIONS,
        "moffat": truth.MOFFAT,
    }
