"""The truth of a simulated FLAMINGOS-2 night."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from astropy.table import Table, vstack

from gdask.simulate import truth
from gdask.simulate.exposure import Exposure, pointing
from gdask.simulate.f2_optics import SHADOW, probe_tip
from gdask.simulate.f2_plan import SKY_OFFSET, TARGET, exposure_time
from gdask.simulate.geometry import pixel_area

if TYPE_CHECKING:
    from gdask.simulate.f2 import Night

BITS = "bits: 1 dead 2 hot 4 cluster 8 outside the illuminated circle"
POSITIONS = (
    "u, v = sums of chip.u, chip.v times 1 x y x2 xy y2 x3 x2y xy2 y3 of the 1-based full-array pixel, arcsec; "
    "X, Y = plate_scale * (u, v); xi = X cos pa + Y sin pa, eta = -X sin pa + Y cos pa; TAN about ra0, dec0"
)
GALAXY = (
    "disc (1 - bulge of the flux, half-light radius `radius` arcsec along the major axis) and bulge (0.45 radius), "
    "Spergel profiles of index 1/2 and -0.6, axis ratio `ratio`, major axis `angle` degrees East of North"
)
PEDESTAL = "ADU of each strip of 64 columns of the full array, times reads and coadds; added after all else"


def write(night: Night, counts: list[truth.Counts], folder: Path) -> None:
    """Write every truth file into `folder`."""
    size = night.options.size
    at = np.arange(size) + (2048 - size) // 2 + 1.0
    pattern = night.pattern
    planes = truth.Planes(
        night.array["name"],
        night.flat,
        pattern.response,
        pixel_area(night.chip, at, at) / night.mean_area,
        pattern.dark,
        pattern.bad,
    )

    def tip(exposure: Exposure) -> dict[str, object]:
        return dict(zip(("probe_x", "probe_y"), probe_tip(night.probe, night.chip, exposure)))

    truth.write(
        folder,
        catalog=_catalog(night),
        arrays=[planes],
        scene=_scene(night),
        bits=BITS,
        frames=truth.frame_table(night.exposures, counts, night.zero_point, tip),
        cosmics=truth.cosmic_table(night.exposures, counts),
    )


def _catalog(night: Night) -> Table:
    """Stars, then galaxies with their shapes."""
    stars = truth.star_catalog(night.stars)
    shapes = ("radius", "ratio", "angle", "bulge")
    for name in shapes:
        stars[name] = np.nan
    tables = [stars]
    for field, galaxies in night.galaxies.items():
        n = len(galaxies.id)
        columns = {name: getattr(galaxies, name) for name in ("ra", "dec", "mag", "flux", *shapes)}
        tables.append(
            Table({"id": galaxies.id, "field": [field] * n, "kind": ["galaxy"] * n, **columns})
        )
    return vstack(tables, metadata_conflicts="silent")


def _scene(night: Night) -> dict[str, object]:
    options = night.options
    return {
        "instrument": "F2",
        "filter": options.filter,
        "zp": night.zero_point,
        "pixel_scale": night.facts["wcs"]["pixel_scale"],
        "mean_pixel_area": night.mean_area,
        "halo": night.halo._asdict() if night.halo else None,
        "halo_law": "amp * (1 + r^2 / scale^2)^-power, e-/s in a mean pixel, seen through FLAT and scale",
        "target": TARGET,
        "sky_field": pointing(TARGET, *SKY_OFFSET, options.pa) if options.n_sky else None,
        "options": options._asdict(),
        "exptime": exposure_time(options, night.filter),
        "science_field": "target",
        "science_kind": "science",
        "chip": {"u": night.chip.u.tolist(), "v": night.chip.v.tolist()},
        "positions": POSITIONS,
        "moffat": truth.MOFFAT,
        "galaxy": GALAXY,
        "pedestal": night.pedestal.tolist(),
        "pedestal_law": PEDESTAL,
        "circle": night.circle._asdict(),
        "probe": night.probe._asdict(),
        "shadow": SHADOW,
    }
