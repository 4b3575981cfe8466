"""Small products whose pixels and directions are known, for tests of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy.io import fits


def sky_header(
    shape: tuple[int, int], *, turn: float = 0.0, scale: float = 0.1, flip: bool = False
) -> fits.Header:
    """Give a TAN header: North is `turn` degrees from up towards the left; arcsec per pixel.

    flip: East to the right.
    """
    angle = np.radians(turn)
    c, s = np.cos(angle), np.sin(angle)
    right = 1 if flip else -1
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CRVAL1"], header["CRVAL2"] = 150.0, -35.0
    header["CRPIX1"], header["CRPIX2"] = (shape[1] + 1) / 2, (shape[0] + 1) / 2
    # A step North is (-sin, cos) pixels; a step East is `right` times (cos, sin).
    steps = np.array([[right * c, -s], [right * s, c]])
    cd = np.linalg.inv(steps) * scale / 3600
    for axis in (1, 2):
        header[f"CUNIT{axis}"] = "deg"
        for pixel in (1, 2):
            header[f"CD{axis}_{pixel}"] = cd[axis - 1, pixel - 1]
    header["RADESYS"], header["EQUINOX"] = "FK5", 2000.0
    return header


def write_product(
    path: Path,
    data: np.ndarray,
    *,
    variance: np.ndarray | None = None,
    dq: np.ndarray | None = None,
    header: fits.Header | None = None,
    kind: str = "PROCSCI",
    tables: tuple[fits.BinTableHDU, ...] = (),
) -> Path:
    """Write a product of one array (or of several: 3-D)."""
    primary = fits.PrimaryHDU()
    primary.header[kind] = "2026-01-01T00:00:00"
    hdus: list[fits.hdu.base.ExtensionHDU] = []
    for number, plane in enumerate(np.atleast_3d(data) if data.ndim == 3 else [data]):
        index = number if data.ndim == 3 else ...
        planes = (("SCI", plane), ("VAR", variance), ("DQ", dq))
        for name, values in planes:
            if values is None:
                continue
            values = values if name == "SCI" or data.ndim == 2 else values[index]
            kept = np.asarray(values, "u2" if name == "DQ" else "f4")
            hdu = fits.ImageHDU(kept, header=header, name=name)
            hdu.ver = number + 1
            if name != "DQ":
                hdu.header["BUNIT"] = "electron" if name == "SCI" else "electron**2"
            hdus.append(hdu)
    fits.HDUList([primary, *hdus, *tables]).writeto(path, overwrite=True)
    return path


def noisy(shape: tuple[int, int], *, level: float = 100.0, sigma: float = 5.0) -> np.ndarray:
    """Give a sky with noise."""
    return (level + sigma * np.random.default_rng(7).normal(size=shape)).astype("f4")
