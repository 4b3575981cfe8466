"""Truth beside simulated raw frames: catalogue, frames, flats, bad pixels, cosmic rays, scene.

A star's electrons in a frame are flux x scale x exptime x RESPONSE(x, y); its pixel follows from the frame's ra0, dec0,
pa, plate_scale and warp through the instrument's static geometry (scene.json says how).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.table import Table, vstack

from gdask.simulate.cosmics import Hits
from gdask.simulate.exposure import Exposure
from gdask.simulate.scene import Stars
from gdask.types import Image

BITS = "bits: 1 dead 2 hot 4 cluster 8 reference 16 not in the BPM"
MOFFAT = "fraction (beta - 1) / (pi a^2) (1 + r^2 / a^2)^-beta, a = fwhm / (2 sqrt(2^(1 / beta) - 1)), arcsec"
FLUX = "flux: e-/s for scale = 1 and mean response = 1 (all flux, no aperture loss)"


class Counts(NamedTuple):
    """What happened in one frame, by array: number of saturated pixels, cosmic rays."""

    saturated: tuple[int, ...]
    hits: tuple[Hits, ...]


class Planes(NamedTuple):
    """What is true of one array on the window that is written."""

    name: str
    flat: Image
    response: Image
    area: npt.NDArray[np.float64]
    dark: Image
    bad: npt.NDArray[np.uint8]


def write(
    folder: Path,
    *,
    catalog: Table,
    frames: Table,
    cosmics: Table,
    arrays: Iterable[Planes],
    scene: dict[str, object],
    bits: str = BITS,
) -> None:
    """Write every truth file into `folder`."""
    catalog.write(folder / "catalog.ecsv", format="ascii.ecsv", overwrite=True)
    frames.write(folder / "frames.ecsv", format="ascii.ecsv", overwrite=True)
    cosmics.write(folder / "cosmic_rays.fits", overwrite=True)
    maps = []
    for number, planes in enumerate(arrays, 1):
        _flat(planes).writeto(folder / f"flat_{number}.fits", overwrite=True)
        maps.append(fits.ImageHDU(planes.bad, name="BAD", ver=number))
    first = fits.PrimaryHDU()
    first.header["COMMENT"] = bits
    fits.HDUList([first, *maps]).writeto(folder / "bad_pixels.fits", overwrite=True)
    (folder / "scene.json").write_text(json.dumps(scene, indent=1))


def star_catalog(fields: dict[str, Stars]) -> Table:
    """The stars of all fields, as the catalogue lists them."""
    tables = []
    for name, stars in fields.items():
        n = len(stars.id)
        tables.append(
            Table(
                {
                    "id": stars.id,
                    "field": [name] * n,
                    "kind": ["star"] * n,
                    "ra": stars.ra,
                    "dec": stars.dec,
                    "mag": stars.mag,
                    "flux": stars.flux,
                }
            )
        )
    table = vstack(tables, metadata_conflicts="silent")
    table["ra"].unit = table["dec"].unit = "deg"
    table["flux"].unit = "electron / s"
    table.meta["comment"] = FLUX
    return table


def frame_table(
    exposures: list[Exposure],
    counts: list[Counts],
    zero_point: float,
    more: Callable[[Exposure], dict[str, object]] = lambda _: {},
) -> Table:
    """One row for each frame; more: columns that the instrument adds."""
    rows = []
    for e, count in zip(exposures, counts):
        on_sky = bool(e.field)
        rows.append(
            {
                "file": e.file,
                "kind": e.kind,
                "field": e.field,
                "night": e.night,
                "mjd": e.mjd,
                "exptime": e.exptime,
                "coadds": e.coadds,
                "lnrs": e.lnrs,
                "roi": e.roi,
                "sky": e.light,
                "fault": "",
                "bad_wcs": e.bad_wcs,
                "ra0": e.pose.ra0,
                "dec0": e.pose.dec0,
                "pa": e.pose.pa,
                "plate_scale": e.pose.plate_scale,
                "header_ra0": e.header_ra0,
                "header_dec0": e.header_dec0,
                "scale": e.scale,
                "psf": repr([tuple(part) for part in e.psf]) if on_sky else "",
                "zp": zero_point if on_sky else np.nan,
                "warp": json.dumps(e.pose.warp.tolist()) if on_sky else "",
                **more(e),
                "saturated": sum(count.saturated),
                "cosmic_pixels": sum(hits.x.size for hits in count.hits),
            }
        )
    return Table(rows=rows)


def cosmic_table(exposures: list[Exposure], counts: list[Counts]) -> Table:
    """One row for each pixel that a cosmic ray hit: file, array 1..4, 0-based pixel of the written image, electrons."""
    columns: dict[str, list[object]] = {
        name: [] for name in ("file", "array", "x", "y", "electrons")
    }
    for exposure, count in zip(exposures, counts):
        for array, hits in enumerate(count.hits):
            columns["file"] += [exposure.file] * hits.x.size
            columns["array"] += [array + 1] * hits.x.size
            for name in ("x", "y", "electrons"):
                columns[name] += getattr(hits, name).tolist()
    kinds = ("U40", "u1", "i2", "i2", "f4")
    return Table(
        {name: np.array(values, kind) for (name, values), kind in zip(columns.items(), kinds)}
    )


def _flat(planes: Planes) -> fits.HDUList:
    hdus = [fits.PrimaryHDU()]
    hdus[0].header["ARRAY"] = planes.name
    for name, data, comment in (
        ("FLAT", planes.flat, "response to uniform surface brightness, mean 1 over good pixels"),
        ("RESPONSE", planes.response, "response to one photon (what a star sees)"),
        ("AREA", planes.area, "pixel solid angle / mean"),
        ("DARK", planes.dark, "dark current, e-/s"),
    ):
        hdu = fits.ImageHDU(data.astype(np.float32), name=name)
        hdu.header["COMMENT"] = comment
        hdus.append(hdu)
    return fits.HDUList(hdus)
