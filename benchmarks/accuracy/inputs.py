"""What every measurement reads: the planes of a stack and the units of the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from gdask.kernels.geometry.projection import Floats, Geometry
from gdask.steps.resample import reference_area
from gdask.types import Flags, Image


class StackFile(NamedTuple):
    """A stack as it is on disk.

    data (e-), variance (e-^2), dq: (ny, nx). exptime: s. pixel: arcsec. astrom, catalog: its
    tables ASTROM and OBJCAT, None where it has none.
    """

    data: Image
    variance: Image
    dq: Flags
    header: fits.Header
    wcs: WCS
    exptime: float
    pixel: float
    astrom: Table | None
    catalog: Table | None


def read_stack(image: str | Path) -> StackFile:
    """Read SCI, VAR, DQ and the tables of a stack."""
    with fits.open(image) as hdus:
        data, variance, dq = (
            hdus[name].data.astype(kind)
            for name, kind in (("SCI", "f4"), ("VAR", "f4"), ("DQ", "u2"))
        )
        header, exptime = hdus["SCI"].header.copy(), float(hdus[0].header["EXPTIME"])
        astrom, catalog = (
            Table(hdus[name].data) if name in hdus else None for name in ("ASTROM", "OBJCAT")
        )
    wcs = WCS(header)
    pixel = 3600 * float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix))))
    return StackFile(data, variance, dq, header, wcs, exptime, pixel, astrom, catalog)


def to_pixels(wcs: WCS, stars: Table) -> tuple[Floats, Floats]:
    """x, y (0-based pixels) of the rows of a table with ra and dec (degrees)."""
    x, y = (np.asarray(v, float) for v in wcs.world_to_pixel_values(stars["ra"], stars["dec"]))
    return x, y


def array_size(truth: Path) -> int:
    """Pixels of a side of the night's arrays."""
    return int(fits.getheader(next(iter(sorted(truth.glob("flat_1.fits*")))), 1)["NAXIS1"])


def flat_unit(truth: Path) -> float:
    """The response that a normalised flat calls 1: the median lit pixel of all true flats."""
    flats = [fits.getdata(path, "FLAT") for path in sorted(truth.glob("flat_?.fits*"))]
    values = np.concatenate([flat[4:-4, 4:-4].ravel()[::7] for flat in flats])
    return float(np.median(values[values > 0.3]))


def area_unit(truth: Path, geometries: tuple[Geometry, ...], arrays: np.ndarray) -> float:
    """Mean pixel area of the true flats' unit over that of the pipeline.

    arrays: array number of each geometry. 1.000 for whole arrays; sub-arrays differ.
    """
    mean = json.loads((truth / "scene.json").read_text()).get("mean_pixel_area")
    size = array_size(truth)
    first = {
        number: geometry for number, geometry in zip(arrays[::-1], geometries[::-1], strict=True)
    }
    corner = 1025 - size / 2
    whole = [geometry._replace(x0=corner, y0=corner) for geometry in first.values()]
    return mean / reference_area(tuple(whole), (size, size)) if mean else 1.0
