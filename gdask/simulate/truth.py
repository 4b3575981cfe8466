"""Truth beside simulated raw frames: catalogue, frames, flats, bad pixels, cosmic rays, scene.

A star's electrons in a frame are flux x scale x exptime x RESPONSE(x, y); its pixel follows from the frame's ra0, dec0,
pa, plate_scale and warp through the static distortion (scene.json says how).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from astropy.io import fits
from astropy.table import Table, vstack

from gdask.simulate.cosmics import Hits
from gdask.simulate.geometry import WARP_SCALE, WARP_TERMS, pixel_area
from gdask.simulate.gsaoi_headers import window
from gdask.simulate.gsaoi_plan import SKY_OFFSET, TARGET, pointing

if TYPE_CHECKING:
    from gdask.simulate.gsaoi import Night

POSITIONS = (
    "u, v = static distortion of the 1-based full-array pixel, arcsec; X, Y = plate_scale * (u, v) + sum of warp[0], "
    "warp[1] times the terms of u / warp_scale, v / warp_scale; xi = X cos pa + Y sin pa, eta = -X sin pa + Y cos pa; "
    "TAN about ra0, dec0"
)


class Counts(NamedTuple):
    """What happened in one frame, by array: number of saturated pixels, cosmic rays."""

    saturated: tuple[int, ...]
    hits: tuple[Hits, ...]


def write(night: Night, counts: list[Counts], folder: Path) -> None:
    """Write every truth file into `folder`."""
    _catalog(night).write(folder / "catalog.ecsv", format="ascii.ecsv", overwrite=True)
    _frames(night, counts).write(folder / "frames.ecsv", format="ascii.ecsv", overwrite=True)
    _cosmics(night, counts).write(folder / "cosmic_rays.fits", overwrite=True)
    for array in range(len(night.arrays)):
        _flat(night, array).writeto(folder / f"flat_{array + 1}.fits", overwrite=True)
    _bad_pixels(night).writeto(folder / "bad_pixels.fits", overwrite=True)
    (folder / "scene.json").write_text(json.dumps(_scene(night), indent=1))


def _catalog(night: Night) -> Table:
    tables = []
    for name, stars in night.stars.items():
        n = len(stars.id)
        tables.append(Table({"id": stars.id, "field": [name] * n, "kind": ["star"] * n, "ra": stars.ra,
                             "dec": stars.dec, "mag": stars.mag, "flux": stars.flux}))
    table = vstack(tables, metadata_conflicts="silent")
    table["ra"].unit = table["dec"].unit = "deg"
    table["flux"].unit = "electron / s"
    table.meta["comment"] = "flux: e-/s for scale = 1 and mean response = 1 (all flux, no aperture loss)"
    return table


def _frames(night: Night, counts: list[Counts]) -> Table:
    zero_point = night.facts["filters"][night.options.filter]["zp"]
    rows = []
    for e, count in zip(night.exposures, counts):
        on_sky = bool(e.field)
        rows.append({
            "file": e.file, "kind": e.kind, "field": e.field, "night": e.night, "mjd": e.mjd, "exptime": e.exptime,
            "coadds": e.coadds, "lnrs": e.lnrs, "roi": e.roi, "sky": e.light, "fault": "", "bad_wcs": e.bad_wcs,
            "ra0": e.pose.ra0, "dec0": e.pose.dec0, "pa": e.pose.pa, "plate_scale": e.pose.plate_scale,
            "header_ra0": e.header_ra0, "header_dec0": e.header_dec0, "scale": e.scale,
            "psf": repr([tuple(part) for part in e.psf]) if on_sky else "", "zp": zero_point if on_sky else np.nan,
            "warp": json.dumps(e.pose.warp.tolist()) if on_sky else "",
            "saturated": sum(count.saturated), "cosmic_pixels": sum(hits.x.size for hits in count.hits),
        })
    return Table(rows=rows)


def _cosmics(night: Night, counts: list[Counts]) -> Table:
    """One row for each pixel that a cosmic ray hit: file, array 1..4, 0-based pixel of the written image, electrons."""
    columns: dict[str, list[object]] = {name: [] for name in ("file", "array", "x", "y", "electrons")}
    for exposure, count in zip(night.exposures, counts):
        for array, hits in enumerate(count.hits):
            columns["file"] += [exposure.file] * hits.x.size
            columns["array"] += [array + 1] * hits.x.size
            for name in ("x", "y", "electrons"):
                columns[name] += getattr(hits, name).tolist()
    kinds = ("U40", "u1", "i2", "i2", "f4")
    return Table({name: np.array(values, kind) for (name, values), kind in zip(columns.items(), kinds)})


def _flat(night: Night, array: int) -> fits.HDUList:
    pattern, flat = night.patterns[array], night.flats[array]
    area = _area(night, array)
    hdus = [fits.PrimaryHDU()]
    hdus[0].header["ARRAY"] = night.arrays[array]["name"]
    for name, data, comment in (
        ("FLAT", flat, "response to uniform surface brightness, mean 1 over good pixels"),
        ("RESPONSE", pattern.response, "response to one photon (what a star sees)"),
        ("AREA", area, "pixel solid angle / mean"),
        ("DARK", pattern.dark, "dark current, e-/s"),
    ):
        hdu = fits.ImageHDU(data.astype(np.float32), name=name)
        hdu.header["COMMENT"] = comment
        hdus.append(hdu)
    return fits.HDUList(hdus)


def _area(night: Night, array: int) -> np.ndarray:
    w = window(night.options.size, 0, array)
    x, y = (np.arange(w.size) + corner + 1.0 for corner in (w.x, w.y))
    return pixel_area(night.chips[array], x, y) / night.mean_area


def _bad_pixels(night: Night) -> fits.HDUList:
    hdus = [fits.PrimaryHDU(), *(fits.ImageHDU(p.bad, name="BAD", ver=i + 1) for i, p in enumerate(night.patterns))]
    hdus[0].header["COMMENT"] = "bits: 1 dead 2 hot 4 cluster 8 reference 16 not in the BPM"
    return fits.HDUList(hdus)


def _scene(night: Night) -> dict[str, object]:
    options = night.options
    zero_point = night.facts["filters"][options.filter]["zp"]
    return {
        "instrument": "GSAOI", "filter": options.filter, "zp": zero_point, "pixel_scale": 0.0197,
        "mean_pixel_area": night.mean_area, "halo": night.halo._asdict() if night.halo else None,
        "halo_law": "amp * (1 + r^2 / scale^2)^-power, e-/s in a mean pixel, seen through FLAT and scale",
        "target": TARGET, "sky_field": pointing(options, TARGET, *SKY_OFFSET), "options": options._asdict(),
        "exptime": options.exptime, "science_field": "target", "science_kind": "science",
        "warp_terms": WARP_TERMS, "warp_scale": WARP_SCALE, "positions": POSITIONS,
        "moffat": "fraction (beta - 1) / (pi a^2) (1 + r^2 / a^2)^-beta, a = fwhm / (2 sqrt(2^(1 / beta) - 1)), arcsec",
    }
