"""The truth beside simulated raw frames: catalogue, frames, flats, bad pixels, cosmic rays, scene.

A star's electrons in a frame are flux x scale x exptime x RESPONSE(x, y); its pixel follows from
the frame's ra0, dec0, pa, plate_scale and warp through the instrument's static geometry (scene.json
says how).
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

from gdask.simulate.detector import Hits
from gdask.simulate.plan import Exposure
from gdask.simulate.scene import Galaxies, Stars
from gdask.types import Image

MOFFAT = (
    "fraction (beta - 1) / (pi a^2) (1 + r^2 / a^2)^-beta, "
    "a = fwhm / (2 sqrt(2^(1 / beta) - 1)), arcsec"
)
FLUX = "flux: e-/s for scale = 1 and mean response = 1 (all flux, no aperture loss)"
SKY = (
    "sky_shape: [[a, b, c, d, e], ring, half]: the sky is its level times 1 + a x + b y"
    " + c (x^2 - 1/3) + d xy + e (y^2 - 1/3) + ring exp(-((r - 0.6) / 0.12)^2 / 2),"
    " x = u / half, y = v / half, r^2 = x^2 + y^2, u and v arcsec of the instrument's plane"
)
HALO = "amp * (1 + r^2 / scale^2)^-power, e-/s in a mean pixel, seen through FLAT and scale"

GALAXY_SHAPE = ("radius", "ratio", "angle", "bulge")
#: Columns of the table of cosmic rays: 0-based pixel of the written image; array from 1.
COSMIC_RAY_COLUMNS = {"file": "U40", "array": "u1", "x": "i2", "y": "i2", "electrons": "f4"}


class Counts(NamedTuple):
    """What happened in one frame, by array."""

    saturated: tuple[int, ...]  # number of pixels
    hits: tuple[Hits, ...]  # cosmic rays


class Planes(NamedTuple):
    """What is true of one array on the window that is written, (ny, nx) each."""

    name: str
    flat: Image
    response: Image
    area: npt.NDArray[np.float64]  # pixel solid angle over the mean
    dark: Image  # e-/s
    bad: npt.NDArray[np.uint8]  # bits


def write(
    folder: Path,
    *,
    catalog: Table,
    frames: Table,
    cosmics: Table,
    arrays: Iterable[Planes],
    scene: dict[str, object],
    bits: str,
) -> None:
    """Write every truth file into `folder`. bits: what the bits of the bad-pixel maps mean."""
    catalog.write(folder / "catalog.ecsv", format="ascii.ecsv", overwrite=True)
    frames.write(folder / "frames.ecsv", format="ascii.ecsv", overwrite=True)
    cosmics.write(folder / "cosmic_rays.fits", overwrite=True)
    maps = []
    for number, planes in enumerate(arrays, 1):
        _array_file(planes).writeto(folder / f"flat_{number}.fits", overwrite=True)
        maps.append(fits.ImageHDU(planes.bad, name="BAD", ver=number))
    primary = fits.PrimaryHDU()
    primary.header["COMMENT"] = bits
    fits.HDUList([primary, *maps]).writeto(folder / "bad_pixels.fits", overwrite=True)
    (folder / "scene.json").write_text(json.dumps(scene, indent=1))


def source_catalog(stars: dict[str, Stars], galaxies: dict[str, Galaxies]) -> Table:
    """The sources of all fields: stars, then galaxies, if there are any, with their shapes."""
    catalog = vstack(
        [_sources("star", field, sources) for field, sources in stars.items()],
        metadata_conflicts="silent",
    )
    catalog["ra"].unit = catalog["dec"].unit = "deg"
    catalog["flux"].unit = "electron / s"
    catalog.meta["comment"] = FLUX
    if not galaxies:
        return catalog
    for name in GALAXY_SHAPE:
        catalog[name] = np.nan
    tables = [_sources("galaxy", field, sources) for field, sources in galaxies.items()]
    return vstack([catalog, *tables], metadata_conflicts="silent")


def _sources(kind: str, field: str, sources: Stars | Galaxies) -> Table:
    """The sources of one kind in one field."""
    count = len(sources.id)
    columns = sources._asdict() | {"field": [field] * count, "kind": [kind] * count}
    numbers = [name for name in sources._fields if name not in ("id", "field")]
    return Table({name: columns[name] for name in ("id", "field", "kind", *numbers)})


def frame_table(
    exposures: list[Exposure],
    counts: list[Counts],
    zero_point: float,
    more_columns: Callable[[Exposure], dict[str, object]],
) -> Table:
    """One row for each frame. more_columns: those that the instrument adds."""
    rows = []
    for exposure, count in zip(exposures, counts):
        on_sky, pose = bool(exposure.field), exposure.pose
        rows.append(
            {
                "file": exposure.file,
                "kind": exposure.kind,
                "field": exposure.field,
                "night": exposure.night,
                "mjd": exposure.mjd,
                "exptime": exposure.exptime,
                "coadds": exposure.coadds,
                "lnrs": exposure.lnrs,
                "roi": exposure.roi,
                "sky": exposure.light,
                "fault": "",
                "bad_wcs": exposure.bad_wcs,
                "ra0": pose.ra0,
                "dec0": pose.dec0,
                "pa": pose.pa,
                "plate_scale": pose.plate_scale,
                "header_ra0": exposure.header_ra0,
                "header_dec0": exposure.header_dec0,
                "scale": exposure.scale,
                "psf": repr([tuple(part) for part in exposure.psf]) if on_sky else "",
                "zp": zero_point if on_sky else np.nan,
                "warp": json.dumps(pose.warp.tolist()) if on_sky else "",
                **_moving_columns(exposure),
                **more_columns(exposure),
                "saturated": sum(count.saturated),
                "cosmic_pixels": sum(hits.x.size for hits in count.hits),
            }
        )
    return Table(rows=rows)


def _moving_columns(exposure: Exposure) -> dict[str, object]:
    """Where a moving object is in the middle of an exposure (degrees); {} without any."""
    if exposure.moving is None:
        return {}
    return {"moving_ra": exposure.moving[0], "moving_dec": exposure.moving[1]}


def cosmic_ray_table(exposures: list[Exposure], counts: list[Counts]) -> Table:
    """One row for each pixel that a cosmic ray hit; COSMIC_RAY_COLUMNS says what is in it."""
    columns: dict[str, list[object]] = {name: [] for name in COSMIC_RAY_COLUMNS}
    for exposure, count in zip(exposures, counts):
        for array, hits in enumerate(count.hits, 1):
            columns["file"] += [exposure.file] * hits.x.size
            columns["array"] += [array] * hits.x.size
            for name in ("x", "y", "electrons"):
                columns[name] += getattr(hits, name).tolist()
    return Table({name: np.array(columns[name], kind) for name, kind in COSMIC_RAY_COLUMNS.items()})


def _array_file(planes: Planes) -> fits.HDUList:
    """Flat, response, pixel area and dark current of one array."""
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
