"""A stack beside the truth of its night: place, flux and number of frames of each true star."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.io import fits
from astropy.table import Row, Table
from astropy.wcs import WCS
from numba import njit

from benchmarks.accuracy.inputs import (
    StackFile,
    area_unit,
    array_size,
    flat_unit,
    read_stack,
    to_pixels,
)
from gdask.io.tables import geometries_of
from gdask.kernels.geometry.projection import Floats, Geometry, from_sky, tangent_plane
from gdask.types import Flags, Image, Mask

#: Radius of the aperture, and inner and outer radius of the ring of sky (pixels of the stack).
APERTURE, SKY_RING = 12.0, (40.0, 56.0)
#: Radii (pixels) at which a star's profile is tabulated.
RADII = np.arange(0.0, 160.0, 0.05)
#: Stars that are further than this (pixels) from the stack give it no light.
FIELD_MARGIN = 200


class MatchedStack(NamedTuple):
    """A stack and the true stars on it.

    data (e-), variance (e-^2), dq: (ny, nx). pixel: arcsec. profiles: (frames, RADII), share of a
    star's light per pixel; frame_flux: by frame, in the same order, its e- of each star. x, y:
    true places (0-based pixels); flux: expected e-; aperture_share:
    expected share of it in the aperture; frame_count: frames that cover each star;
    mean_distortion: (2, stars), mean true distortion of all frames, East and North (arcsec).
    model: image of the stars (e-); smooth_light: that of unresolved light. frame_rows: the truth's
    rows of the stacked frames. geometries: of the arrays in `astrom`, the stack's table ASTROM.
    catalog: its OBJCAT. truth: the folder.
    """

    data: Image
    variance: Image
    dq: Flags
    header: fits.Header
    wcs: WCS
    pixel: float
    profiles: Floats
    frame_flux: dict[str, Floats]
    stars: Table
    x: Floats
    y: Floats
    flux: Floats
    aperture_share: Floats
    frame_count: Floats
    mean_distortion: Floats
    model: Image
    smooth_light: Image
    frame_rows: Table
    geometries: tuple[Geometry, ...]
    astrom: Table
    catalog: Table
    truth: Path

    @property
    def residual(self) -> Image:
        """The stack without the true light (e-)."""
        return self.data - self.model - self.smooth_light


class _StarCoverage(NamedTuple):
    """For each star: mean throughput, share of flux in the aperture, frames, mean distortion."""

    throughput: Floats
    aperture_share: Floats
    frame_count: Floats
    mean_distortion: Floats


def read_matched_stack(image: str | Path, truth: str | Path, field: str = "target") -> MatchedStack:
    """Read a stack with ASTROM and OBJCAT, and the truth folder of its night.

    ValueError where the stack has not got both tables.
    """
    folder, stack = Path(truth), read_stack(image)
    if stack.astrom is None or stack.catalog is None:
        raise ValueError(f"{image} has no table ASTROM or OBJCAT")
    facts = json.loads((folder / "scene.json").read_text())
    frames = Table.read(folder / "frames.ecsv")
    names = frame_names(stack.astrom)
    rows = {str(row["file"]).removesuffix(".fits"): row for row in frames}
    frame_rows = frames[np.isin(frames["file"], [f"{name}.fits" for name in names])]
    geometries = geometries_of(stack.astrom)
    stars, x, y = _stars_near(stack, Table.read(folder / "catalog.ecsv"), field)
    profiles = {
        name: radial_profile(ast.literal_eval(str(rows[name]["psf"])), stack.pixel)
        for name in dict.fromkeys(names)
    }
    unit = flat_unit(folder) * area_unit(folder, geometries, stack.astrom["ARRAY"])
    # What the reduction multiplied each frame by, to bring it to the mean throughput.
    columns = stack.astrom.colnames
    factors = (
        np.asarray(stack.astrom["SCALED_BY"]) if "SCALED_BY" in columns else np.ones(len(names))
    )
    applied = dict(zip(names, map(float, factors), strict=True))
    throughput = {name: float(rows[name]["scale"]) * factor for name, factor in applied.items()}
    size = array_size(folder)
    cover = _star_coverage(stars, names, rows, throughput, geometries, profiles, size, facts)
    electrons = stack.exptime * unit * float(np.mean(list(throughput.values())))
    return MatchedStack(
        stack.data,
        stack.variance,
        stack.dq,
        stack.header,
        stack.wcs,
        stack.pixel,
        np.array(list(profiles.values())),
        {
            name: np.asarray(stars["flux"]) * stack.exptime * throughput[name] * unit
            for name in profiles
        },
        stars,
        x,
        y,
        np.asarray(stars["flux"]) * stack.exptime * cover.throughput * unit,
        cover.aperture_share,
        cover.frame_count,
        cover.mean_distortion,
        np.zeros(stack.data.shape, np.float32),
        _smooth_light(facts, stack, electrons),
        frame_rows,
        geometries,
        stack.astrom,
        stack.catalog,
        folder,
    )


def frame_names(astrom: Table) -> list[str]:
    """Name of the raw frame of each row of ASTROM, without suffixes."""
    return [str(name).split("_")[0].removesuffix(".fits") for name in astrom["NAME"]]


def _stars_near(stack: StackFile, catalog: Table, field: str) -> tuple[Table, Floats, Floats]:
    """Rows, x and y of the true stars of a field that are on or near the stack."""
    stars = catalog[(catalog["field"] == field) & (catalog["kind"] == "star")]
    x, y = to_pixels(stack.wcs, stars)
    ny, nx = stack.data.shape
    near = (x > -FIELD_MARGIN) & (y > -FIELD_MARGIN)
    near &= (x < nx + FIELD_MARGIN) & (y < ny + FIELD_MARGIN)
    return stars[near], x[near], y[near]


def frames_per_pixel(stack: MatchedStack, step: int = 16) -> Image:
    """Number of arrays of frames that cover each pixel of the stack, float32 (ny, nx).

    Squares of `step` pixels have the number of their middle.
    """
    ny, nx = stack.data.shape
    y, x = np.meshgrid(
        np.arange(step / 2, ny + step, step), np.arange(step / 2, nx + step, step), indexing="ij"
    )
    ra, dec = stack.wcs.pixel_to_world_values(x, y)
    size = array_size(stack.truth)
    count = np.zeros(x.shape, np.float32)
    for geometry in stack.geometries:
        count += on_array(*from_sky(geometry, ra, dec), size)
    return np.kron(count, np.ones((step, step), np.float32))[:ny, :nx]


def on_array(x: Floats, y: Floats, size: int) -> Mask:
    """True where a place is on an array's light-sensitive pixels (4 at each edge are not)."""
    return (x > 4) & (y > 4) & (x < size - 5) & (y < size - 5)


def with_star_model(stack: MatchedStack, displacement: Floats) -> MatchedStack:
    """The stack with `model`, each star moved to where the stack has it.

    displacement: (2, stars), pixels in x and y.
    """
    faintest = 0.02 * float(np.sqrt(np.median(stack.variance[stack.variance > 0])))
    x, y = stack.x + displacement[0], stack.y + displacement[1]
    profile = stack.profiles.mean(axis=0)
    return stack._replace(model=stars_image(stack.data.shape, x, y, stack.flux, profile, faintest))


def radial_profile(parts: list, pixel: float) -> Floats:
    """A star's profile at RADII (share of its light per pixel).

    The mean over a square pixel, and over all directions. parts: (share, FWHM in arcsec, beta) of
    each Moffat function. pixel: arcsec.
    """
    nodes, weights = np.polynomial.legendre.leggauss(6)
    profile = np.zeros(RADII.size)
    angles = np.radians([2.8125, 8.4375, 14.0625, 19.6875, 25.3125, 30.9375, 36.5625, 42.1875])
    for a, weight_a in zip(nodes / 2, weights / 2, strict=True):
        for b, weight_b in zip(nodes / 2, weights / 2, strict=True):
            for angle in angles:
                r2 = (RADII * np.cos(angle) + a) ** 2 + (RADII * np.sin(angle) + b) ** 2
                light = sum(part * moffat(r2, width / pixel, beta) for part, width, beta in parts)
                profile += weight_a * weight_b / angles.size * light
    return profile


def moffat(r2: Floats, fwhm: float, beta: float) -> Floats:
    """Moffat function of the squared radius, with integral 1 (Moffat 1969). fwhm: pixels."""
    alpha2 = (fwhm / 2) ** 2 / (2 ** (1 / beta) - 1)
    return (beta - 1) / (np.pi * alpha2) * (1 + r2 / alpha2) ** -beta


def light_in_aperture(profile: Floats) -> float:
    """Share of a star's light within APERTURE."""
    disk = np.clip(APERTURE + 0.5 - RADII, 0, 1)
    return float(np.trapezoid(2 * np.pi * RADII * profile * disk, RADII))


def _star_coverage(
    stars: Table,
    names: list[str],
    rows: dict[str, Row],
    scales: dict[str, float],
    geometries: tuple[Geometry, ...],
    profiles: dict[str, Floats],
    size: int,
    facts: dict[str, Any],
) -> _StarCoverage:
    within = {name: light_in_aperture(profile) for name, profile in profiles.items()}
    count, throughput, share = np.zeros((3, len(stars)))
    for name, geometry in zip(names, geometries, strict=True):
        covered = on_array(*from_sky(geometry, stars["ra"], stars["dec"]), size)
        scale = scales[name]
        count += covered
        throughput += covered * scale
        share += covered * scale * within[name]
    # The solution ties every frame to all others: a star that is under some of them only moves
    # with the mean of all.
    distortion = np.zeros((2, len(stars)))
    for name in dict.fromkeys(names):
        distortion += true_distortion(rows[name], stars, facts) / len(set(names))
    return _StarCoverage(
        throughput / np.maximum(count, 1), share / np.maximum(throughput, 1e-9), count, distortion
    )


def true_distortion(frame: Row, stars: Table, facts: dict[str, Any]) -> Floats:
    """A frame's own true distortion at the stars: (2, stars), East and North (arcsec).

    facts: the truth's scene.json.
    """
    scale = facts.get("warp_scale", 45.0)
    if "warp" not in frame.colnames:
        return np.zeros((2, len(stars)))
    warp, pa = np.array(ast.literal_eval(str(frame["warp"]))), np.radians(frame["pa"])
    xi, eta = tangent_plane(stars["ra"], stars["dec"], frame["ra0"], frame["dec0"])
    u, v = (
        (np.cos(pa) * xi - np.sin(pa) * eta) / scale,
        (np.sin(pa) * xi + np.cos(pa) * eta) / scale,
    )
    w = warp @ np.array([u * u, u * v, v * v, u**3, u * u * v, u * v * v, v**3])
    return np.array([np.cos(pa) * w[0] + np.sin(pa) * w[1], np.cos(pa) * w[1] - np.sin(pa) * w[0]])


def stars_image(
    shape: tuple[int, ...], x: Floats, y: Floats, flux: Floats, profile: Floats, faintest: float
) -> Image:
    """The image of stars with one radial profile, each out to where it falls below `faintest`."""
    image = np.zeros(shape, np.float32)
    cut = np.searchsorted(-profile, -faintest / np.maximum(flux, 1e-9))
    _add_stars(image, x, y, flux, RADII[cut.clip(40, RADII.size - 2)], profile, RADII[1])
    return image


@njit(cache=True, nogil=True)
def _add_stars(
    image: Image,
    x: Floats,
    y: Floats,
    flux: Floats,
    radius: Floats,
    profile: Floats,
    step: float,
) -> None:
    ny, nx = image.shape
    for k in range(x.size):
        for j in range(max(int(y[k] - radius[k]), 0), min(int(y[k] + radius[k]) + 2, ny)):
            for i in range(max(int(x[k] - radius[k]), 0), min(int(x[k] + radius[k]) + 2, nx)):
                r = np.sqrt((i - x[k]) ** 2 + (j - y[k]) ** 2)
                if r < radius[k]:
                    place = r / step
                    n = int(place)
                    slope = profile[n + 1] - profile[n]
                    image[j, i] += flux[k] * (profile[n] + (place - n) * slope)


def _smooth_light(facts: dict[str, Any], stack: StackFile, electrons: float) -> Image:
    """Unresolved light of the truth on the stack (e-).

    electrons: of the stack for 1 e-/s in a mean pixel, which is scaled to the output's pixel.
    """
    halo, shape = facts.get("halo"), stack.data.shape
    if not halo:
        return np.zeros(shape, np.float32)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    hx, hy = (float(v) for v in stack.wcs.world_to_pixel_values(halo["ra"], halo["dec"]))
    r2 = ((x - hx) ** 2 + (y - hy) ** 2) * stack.pixel**2
    light = halo["amp"] * (1 + r2 / halo["scale"] ** 2) ** -halo.get("power", 1.5)
    return (light * electrons * stack.pixel**2 / facts["mean_pixel_area"]).astype(np.float32)
