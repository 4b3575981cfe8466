"""A stack beside the truth of its night: where each star should be, how bright, under which frames; the model image."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from numba import njit

from benchmarks.truth import area_unit, flat_unit
from gdask.io.tables import geometries_of
from gdask.kernels.geometry.projection import Geometry, from_sky, tangent_plane

#: Aperture radius and ring of the sky, pixels of the stack.
APERTURE, RING = 12.0, (40.0, 56.0)
#: Radii (pixels) of the table of a star's profile.
RADII = np.arange(0.0, 160.0, 0.05)


class Scene(NamedTuple):
    """data, variance, dq: the stack. pixel: its scale (arcsec). psf: one radial profile (per pixel^2, at RADII) for each
    frame. x, y: true places of the stars (0-based); flux: their expected electrons; share: expected fraction of the flux
    in the aperture; frames: how many cover each; warp: mean true distortion East, North (arcsec) of all frames.
    model: the stars' image; smooth: that of unresolved light. used: rows of the truth's frames."""

    data: np.ndarray
    variance: np.ndarray
    dq: np.ndarray
    header: fits.Header
    wcs: WCS
    pixel: float
    psf: np.ndarray
    stars: Table
    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    share: np.ndarray
    frames: np.ndarray
    warp: np.ndarray
    model: np.ndarray
    smooth: np.ndarray
    used: Table
    geometries: tuple[Geometry, ...]
    astrom: Table
    catalog: Table
    unit: float
    truth: Path

    @property
    def rest(self) -> np.ndarray:
        """What is left of the stack without the true light."""
        return self.data - self.model - self.smooth


def read(image: str | Path, truth: str | Path, field: str = "target") -> Scene:
    """A stack with ASTROM and OBJCAT, and the truth folder of its night."""
    folder = Path(truth)
    with fits.open(image) as hdus:
        data, variance, dq = (
            hdus[name].data.astype(kind)
            for name, kind in (("SCI", "f4"), ("VAR", "f4"), ("DQ", "u2"))
        )
        header, exptime = hdus["SCI"].header.copy(), float(hdus[0].header["EXPTIME"])
        astrom, catalog = Table(hdus["ASTROM"].data), Table(hdus["OBJCAT"].data)
    facts = json.loads((folder / "scene.json").read_text())
    frames = Table.read(folder / "frames.ecsv")
    names = [str(name).split("_")[0].removesuffix(".fits") for name in astrom["NAME"]]
    rows = {str(row["file"]).removesuffix(".fits"): row for row in frames}
    used = frames[np.isin(frames["file"], [f"{name}.fits" for name in names])]
    geometries, wcs = geometries_of(astrom), WCS(header)
    pixel = 3600 * float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix))))
    every = Table.read(folder / "catalog.ecsv")
    stars = every[(every["field"] == field) & (every["kind"] == "star")]
    x, y = (np.asarray(v, float) for v in wcs.world_to_pixel_values(stars["ra"], stars["dec"]))
    near = (x > -200) & (y > -200) & (x < data.shape[1] + 200) & (y < data.shape[0] + 200)
    stars, x, y = stars[near], x[near], y[near]
    psf = {
        name: profile(ast.literal_eval(str(rows[name]["psf"])), pixel)
        for name in dict.fromkeys(names)
    }
    unit = flat_unit(folder) * area_unit(folder, geometries, astrom["ARRAY"])
    scale, share, count, warp = _coverage(stars, names, rows, geometries, psf, folder, facts)
    flux = np.asarray(stars["flux"]) * exptime * scale * unit
    dark = np.zeros(data.shape, np.float32)
    smooth = _halo(
        facts,
        data.shape,
        wcs,
        exptime * unit * float(np.mean(used["scale"])),
        pixel,
        folder,
        geometries,
        astrom,
    )
    return Scene(
        data,
        variance,
        dq,
        header,
        wcs,
        pixel,
        np.array(list(psf.values())),
        stars,
        x,
        y,
        flux,
        share,
        count,
        warp,
        dark,
        smooth,
        used,
        geometries,
        astrom,
        catalog,
        unit,
        folder,
    )


def coverage(scene: Scene, step: int = 16) -> np.ndarray:
    """How many arrays of frames cover each pixel of the stack, by the middle of squares of `step` pixels; float32."""
    ny, nx = scene.data.shape
    y, x = np.meshgrid(
        np.arange(step / 2, ny + step, step), np.arange(step / 2, nx + step, step), indexing="ij"
    )
    ra, dec = scene.wcs.pixel_to_world_values(x, y)
    size = fits.getheader(next(iter(sorted(scene.truth.glob("flat_1.fits*")))), 1)["NAXIS1"]
    count = np.zeros(x.shape, np.float32)
    for geometry in scene.geometries:
        px, py = from_sky(geometry, ra, dec)
        count += (px > 4) & (py > 4) & (px < size - 5) & (py < size - 5)
    return np.kron(count, np.ones((step, step), np.float32))[:ny, :nx]


def with_model(scene: Scene, dx: np.ndarray, dy: np.ndarray) -> Scene:
    """The scene with the image of its stars, each moved by (dx, dy) pixels to where the stack has it."""
    least = 0.02 * float(np.sqrt(np.median(scene.variance[scene.variance > 0])))
    x, y = scene.x + dx, scene.y + dy
    return scene._replace(
        model=stars_image(scene.data.shape, x, y, scene.flux, scene.psf.mean(axis=0), least)
    )


def profile(parts: list, pixel: float) -> np.ndarray:
    """A star's profile at RADII (share of its light per pixel), averaged over a square pixel in all directions."""
    nodes, weights = np.polynomial.legendre.leggauss(6)
    out = np.zeros(RADII.size)
    angles = np.radians([2.8125, 8.4375, 14.0625, 19.6875, 25.3125, 30.9375, 36.5625, 42.1875])
    for a, wa in zip(nodes / 2, weights / 2, strict=True):
        for b, wb in zip(nodes / 2, weights / 2, strict=True):
            for angle in angles:
                r2 = (RADII * np.cos(angle) + a) ** 2 + (RADII * np.sin(angle) + b) ** 2
                out += (
                    wa
                    * wb
                    / angles.size
                    * sum(part * _moffat2(r2, width / pixel, beta) for part, width, beta in parts)
                )
    return out


def _moffat2(r2: np.ndarray, fwhm: float, beta: float) -> np.ndarray:
    alpha2 = (fwhm / 2) ** 2 / (2 ** (1 / beta) - 1)
    return (beta - 1) / (np.pi * alpha2) * (1 + r2 / alpha2) ** -beta


def _coverage(
    stars: Table,
    names: list[str],
    rows: dict,
    geometries: tuple[Geometry, ...],
    psf: dict,
    folder: Path,
    facts: dict,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean throughput, share of flux in the aperture, number of frames at each star; mean true distortion of all frames."""
    size = fits.getheader(next(iter(sorted(folder.glob("flat_1.fits*")))), 1)["NAXIS1"]
    within = {
        name: float(
            np.trapezoid(2 * np.pi * RADII * p * np.clip(APERTURE + 0.5 - RADII, 0, 1), RADII)
        )
        for name, p in psf.items()
    }
    count, scale, share = np.zeros((3, len(stars)))
    warp = np.zeros((2, len(stars)))
    for name, geometry in zip(names, geometries, strict=True):
        x, y = from_sky(geometry, stars["ra"], stars["dec"])
        here = (x > 4) & (y > 4) & (x < size - 5) & (y < size - 5)
        throughput = float(rows[name]["scale"])
        count += here
        scale += here * throughput
        share += here * throughput * within[name]
    # The solution ties every frame to all others: a star under some of them still moves with the mean of all.
    for name in dict.fromkeys(names):
        warp += distortion(rows[name], stars, facts) / len(set(names))
    share = share / np.maximum(scale, 1e-9)
    return scale / np.maximum(count, 1), share, count, warp


def distortion(frame: object, stars: Table, facts: dict) -> np.ndarray:
    """A frame's own true distortion at the stars: East, North (arcsec)."""
    scale = facts.get("warp_scale", 45.0)
    warp, pa = np.array(ast.literal_eval(str(frame["warp"]))), np.radians(frame["pa"])
    xi, eta = tangent_plane(stars["ra"], stars["dec"], frame["ra0"], frame["dec0"])
    u, v = (
        (np.cos(pa) * xi - np.sin(pa) * eta) / scale,
        (np.sin(pa) * xi + np.cos(pa) * eta) / scale,
    )
    w = warp @ np.array([u * u, u * v, v * v, u**3, u * u * v, u * v * v, v**3])
    return np.array([np.cos(pa) * w[0] + np.sin(pa) * w[1], np.cos(pa) * w[1] - np.sin(pa) * w[0]])


def stars_image(
    shape: tuple[int, int],
    x: np.ndarray,
    y: np.ndarray,
    flux: np.ndarray,
    table: np.ndarray,
    least: float,
) -> np.ndarray:
    """The image of stars with one radial profile, each out to where it falls below `least`."""
    image = np.zeros(shape, np.float32)
    reach = RADII[np.searchsorted(-table, -least / np.maximum(flux, 1e-9)).clip(40, RADII.size - 2)]
    _add(image, x, y, flux, reach, table, RADII[1])
    return image


@njit(cache=True, nogil=True)
def _add(
    image: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    flux: np.ndarray,
    reach: np.ndarray,
    table: np.ndarray,
    step: float,
) -> None:
    ny, nx = image.shape
    for k in range(x.size):
        for j in range(max(int(y[k] - reach[k]), 0), min(int(y[k] + reach[k]) + 2, ny)):
            for i in range(max(int(x[k] - reach[k]), 0), min(int(x[k] + reach[k]) + 2, nx)):
                r = np.sqrt((i - x[k]) ** 2 + (j - y[k]) ** 2)
                if r < reach[k]:
                    place = r / step
                    n = int(place)
                    image[j, i] += flux[k] * (table[n] + (place - n) * (table[n + 1] - table[n]))


def _halo(
    facts: dict,
    shape: tuple[int, int],
    wcs: WCS,
    electrons: float,
    pixel: float,
    folder: Path,
    geometries: tuple[Geometry, ...],
    astrom: Table,
) -> np.ndarray:
    """Unresolved light of the truth on the stack: e-/s in a mean pixel, times an output pixel over a mean one."""
    halo = facts.get("halo")
    if not halo:
        return np.zeros(shape, np.float32)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    hx, hy = (float(v) for v in wcs.world_to_pixel_values(halo["ra"], halo["dec"]))
    r2 = ((x - hx) ** 2 + (y - hy) ** 2) * pixel**2
    light = halo["amp"] * (1 + r2 / halo["scale"] ** 2) ** -halo["power"]
    return (light * electrons * pixel**2 / facts["mean_pixel_area"]).astype(np.float32)


__all__ = [
    "APERTURE",
    "RADII",
    "RING",
    "Scene",
    "coverage",
    "distortion",
    "profile",
    "read",
    "stars_image",
    "with_model",
]
