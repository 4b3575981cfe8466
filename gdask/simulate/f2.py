"""Raw FLAMINGOS-2 nights with known truth: what falls on the array, and the files that come of it.

Light of the sky, of the lamp and of a halo passes FLAT = RESPONSE x AREA (AREA: a pixel's solid angle over the mean);
a star's or a galaxy's light passes RESPONSE alone, spread over the pixels by their true shape on the sky. The circle
that light reaches is part of RESPONSE; the guide probe's shadow differs from frame to frame and takes from both.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.interpolate import RectBivariateSpline

from gdask.simulate import f2_headers, f2_truth
from gdask.simulate.cosmics import cosmic_rays
from gdask.simulate.detector import (
    HOT,
    REFERENCE,
    UNLISTED,
    Pattern,
    Readout,
    fixed_pattern,
    read_out,
    smooth_response,
)
from gdask.simulate.exposure import Exposure, pointing
from gdask.simulate.f2_optics import (
    Circle,
    Probe,
    beyond,
    guide_probe,
    illumination,
    optics,
    probe_tip,
    shadow,
)
from gdask.simulate.f2_plan import SKY_OFFSET, TARGET, plan
from gdask.simulate.f2_scene import FEW, MANY, Galaxies, add_galaxy, galaxy_field
from gdask.simulate.geometry import Chip, jacobian, pixel_area, pixel_to_sky, sky_to_pixel, within
from gdask.simulate.mef import write_mef
from gdask.simulate.noise import generator
from gdask.simulate.options import F2Options, f2_options
from gdask.simulate.psf import CORE, parameters, radii, render
from gdask.simulate.scene import Halo, Stars, halo_light, star_field
from gdask.simulate.truth import Counts
from gdask.types import Image

FULL = f2_headers.FULL
WORKERS = 2
HALF_SIZE = 235.0  # arcsec: half the side of the square that holds stars and galaxies
NODE = 16  # pixels between nodes at which smooth light is evaluated
#: Smooth light at the target: of the sky's in the middle, arcsec, power.
HALOS = {"crowded": (0.05, 70.0, 1.5), "extended": (1.0, 10.0, 1.2)}


class Night(NamedTuple):
    """All that the frames of a simulation share."""

    options: F2Options
    facts: dict[str, Any]
    filter: dict[str, Any]
    zero_point: float
    array: dict[str, Any]
    chip: Chip
    mean_area: float  # arcsec^2
    circle: Circle
    pattern: Pattern  # of the written window
    pedestal: npt.NDArray[np.float64]  # ADU by amplifier, in every read pair and coadd
    flat: Image
    stars: dict[str, Stars]
    galaxies: dict[str, Galaxies]
    halo: Halo | None
    probe: Probe
    exposures: list[Exposure]


def simulate_f2(
    out: str | Path, *, progress: Callable[[str], None] | None = None, **options: Any
) -> list[Path]:
    """Write raw frames to out/raw and truth to out/truth; the raw files, in order of their names.

    options: the fields of F2Options (seed=1, size=2048, n_science=9, ...). progress: called with each file's name.
    Raises GdaskError for an option that is unknown or out of its limits.
    """
    night = prepare_night(f2_options(**options))
    raw, tables = Path(out) / "raw", Path(out) / "truth"
    for folder in (raw, tables):
        folder.mkdir(parents=True, exist_ok=True)
    counts = []
    with ThreadPoolExecutor(WORKERS) as pool:
        jobs = [pool.submit(write_exposure, night, exposure, raw) for exposure in night.exposures]
        try:
            for exposure, job in zip(night.exposures, jobs):
                counts.append(job.result())
                if progress:
                    progress(exposure.file)
        finally:
            pool.shutdown(cancel_futures=True)
    f2_truth.write(night, counts, tables)
    return sorted(raw / exposure.file for exposure in night.exposures)


def load_facts() -> tuple[dict[str, Any], dict[str, Any]]:
    """The simulator's facts, with the instrument's circle, read modes and zero points; the instrument's array."""
    instrument = tomllib.loads((files("gdask.instruments") / "f2.toml").read_text())
    facts = tomllib.loads((files("gdask.simulate") / "f2.toml").read_text())
    return facts | {
        k: instrument[k] for k in ("illumination", "read_modes", "zero_points")
    }, instrument["arrays"][0]


def prepare_night(options: F2Options) -> Night:
    """Everything but the frames: detector, catalogues, plan."""
    facts, array = load_facts()
    exposures = plan(options, facts["filters"][options.filter])
    detector, light = facts["detector"], facts["illumination"]
    circle = Circle(*light["centre"], light["radius"], detector["edge"], detector["stray"])
    day = datetime.strptime(options.date, "%Y%m%d").date()
    chip = optics(
        facts["wcs"]["pixel_scale"],
        options.distortion,
        (circle.x + 1.0, circle.y + 1.0),
        f2_headers.reference_pixel(facts, day),
    )
    middle = np.arange(8.5, FULL, NODE)
    area = pixel_area(chip, middle, middle)
    mean_area = float(area[beyond(circle, middle - 1.0, middle - 1.0) < 0].mean())
    pattern, flat = _detector(options, facts, array, chip, circle, mean_area)
    zero_point = facts["zero_points"][options.filter][0]
    stars, galaxies, halo = _scene(options, zero_point, facts["filters"][options.filter]["sky"])
    probe = guide_probe(options.probe, circle, chip, TARGET, options.pa)
    offsets = generator(options.seed, "array", array["name"], "pedestal")
    pedestal = np.round(offsets.normal(0.0, detector["pedestal"], detector["channels"]), 2)
    return Night(
        options,
        facts,
        facts["filters"][options.filter],
        zero_point,
        array,
        chip,
        mean_area,
        circle,
        pattern,
        pedestal,
        flat,
        stars,
        galaxies,
        halo,
        probe,
        exposures,
    )


def _detector(
    options: F2Options,
    facts: dict[str, Any],
    array: dict[str, Any],
    chip: Chip,
    circle: Circle,
    mean_area: float,
) -> tuple[Pattern, Image]:
    """Pattern and flat of the central window. The mean of FLAT over the good pixels of the whole circle is 1."""
    corner = (FULL - options.size) // 2
    at, coarse = np.arange(corner, corner + options.size, dtype=float), np.arange(7.5, FULL, NODE)
    pattern, _ = fixed_pattern(options.seed, array["name"], FULL, 0, corner, options.size)
    smooth = smooth_response(options.seed, array["name"], FULL, coarse, coarse)
    lit = beyond(circle, coarse, coarse) < 0
    level = float((smooth * pixel_area(chip, coarse + 1.0, coarse + 1.0))[lit].mean()) / mean_area
    response = pattern.response * illumination(circle, at, at) / np.float32(level)
    bad = pattern.bad & np.uint8(255 - UNLISTED)
    bad[beyond(circle, at, at) > 0] |= REFERENCE
    area = (pixel_area(chip, at + 1.0, at + 1.0) / mean_area).astype(np.float32)
    return Pattern(
        response, _dark_current(facts["detector"], pattern, circle, at), bad
    ), area * response


def _dark_current(
    detector: dict[str, Any], pattern: Pattern, circle: Circle, at: npt.NDArray[np.float64]
) -> Image:
    """Dark current, e-/s: a wide spread from pixel to pixel, a glow towards the corners, hot pixels."""
    ratio = pattern.dark / np.float32(0.009)  # exp(0.3 z); times 10^3 to 10^5.5 where hot
    glow = 1.0 + detector["glow"] * (1.0 + beyond(circle, at, at) / circle.radius) ** 2
    cold = detector["dark"] * glow * ratio.astype(float) ** 1.6
    low, high = detector["hottest"]
    hot = low * (high / low) ** ((np.log10(np.maximum(ratio, 1e-3)) - 3.0) / 2.5)
    return np.where(pattern.bad & HOT, hot, cold).astype(np.float32)


def _scene(
    options: F2Options, zero_point: float, sky: float
) -> tuple[dict[str, Stars], dict[str, Galaxies], Halo | None]:
    """Stars and galaxies of the target's and the sky's field; smooth light at the target."""
    centres = {"target": TARGET}
    if options.n_sky:
        centres["sky"] = pointing(TARGET, *SKY_OFFSET, options.pa)
    stars, galaxies = {}, {}
    for name, centre in centres.items():
        kind = options.field if name == "target" else "sky"
        stars[name] = star_field(
            options.seed, name, f"f2-{kind}", *centre, zero_point, half_size=HALF_SIZE
        )
        count = MANY if kind == "extended" else FEW
        galaxies[name] = galaxy_field(options.seed, name, count, *centre, zero_point, HALF_SIZE)
    share = HALOS.get(options.field)
    return stars, galaxies, Halo(share[0] * sky, *TARGET, *share[1:]) if share else None


def readout(night: Night, exposure: Exposure) -> Readout:
    """How the array is read: reads are summed, so that an ADU is worth fewer electrons and saturation comes later."""
    array, reads = night.array, exposure.lnrs
    noise = array["read_noise"][night.facts["read_modes"][str(reads)]]
    pedestal = night.facts["detector"]["read"] / exposure.exptime
    return Readout(
        array["gain"] / reads,
        noise,
        array["saturation"] * reads,
        tuple(array["linearity"]),
        exposure.coadds,
        pedestal,
    )


def _add_sources(night: Night, exposure: Exposure, image: Image, corner: int) -> None:
    """Add the field's stars and galaxies, in electrons per coadd before RESPONSE; corner: of the window."""
    chip, psf, pose, half = night.chip, exposure.psf, exposure.pose, image.shape[0] / 2
    span = np.sqrt(2.0) * half * 0.19  # arcsec from the window's centre to its corner
    for catalog in (night.stars[exposure.field], night.galaxies[exposure.field]):
        electrons = catalog.flux * exposure.scale * exposure.exptime
        reach = (
            radii(psf, electrons)
            if isinstance(catalog, Stars)
            else 12.0 * catalog.radius + 10.0 * psf[0].fwhm
        )
        near = within(
            chip, pose, catalog.ra, catalog.dec, corner + half, corner + half, span + reach
        )
        x, y = sky_to_pixel(chip, pose, catalog.ra[near], catalog.dec[near])
        px, py = x - 1.0 - corner, y - 1.0 - corner
        jacobians = np.stack(jacobian(chip, x, y), axis=1) * pose.plate_scale
        if isinstance(catalog, Stars):
            render(image, px, py, electrons[near], jacobians, reach[near], parameters(psf), CORE)
            continue
        shapes = zip(
            *(
                column[near]
                for column in (catalog.radius, catalog.ratio, catalog.angle, catalog.bulge)
            )
        )
        for row in zip(px, py, electrons[near], jacobians, shapes):
            add_galaxy(image, *row[:4], pose.pa, psf, *row[4])


def _smooth_light(
    night: Night, exposure: Exposure, size: int, corner: int
) -> npt.NDArray[np.float64] | float:
    """Sky, lamp and halo, e-/s in a mean pixel."""
    if night.halo is None or exposure.field != "target":
        return exposure.light
    at = np.arange(-NODE, size + 2 * NODE, NODE)
    x, y = np.meshgrid(at + corner + 1.0, at + corner + 1.0)
    nodes = halo_light(night.halo, *pixel_to_sky(night.chip, exposure.pose, x, y))
    return exposure.light + exposure.scale * RectBivariateSpline(at, at, nodes)(
        np.arange(size), np.arange(size)
    )


def expected(night: Night, exposure: Exposure) -> Image:
    """Expected electrons per coadd on the window of the array, before noise: the truth of its pixels."""
    size = night.options.size
    corner = (FULL - size) // 2
    image = np.zeros((size, size), np.float32)
    if exposure.field:
        _add_sources(night, exposure, image, corner)
        image *= night.pattern.response
    if exposure.light:
        image += (
            night.flat * (_smooth_light(night, exposure, size, corner) * exposure.exptime)
        ).astype(np.float32)
    tip = probe_tip(night.probe, night.chip, exposure)
    if np.isfinite(tip[0]):
        at = np.arange(corner, corner + size, dtype=float)
        image *= shadow(night.probe, tip, at, at)
    image += night.pattern.dark * np.float32(exposure.exptime)
    return image


def write_exposure(night: Night, exposure: Exposure, folder: Path) -> Counts:
    """Simulate and write one frame; its saturated pixels and cosmic rays."""
    options, facts = night.options, night.facts
    light, how = expected(night, exposure), readout(night, exposure)
    rate = options.cr_rate * exposure.exptime * exposure.coadds * light.size / FULL**2
    hits = cosmic_rays(generator(options.seed, "cosmics", exposure.file), light.shape, rate)
    raw = read_out(generator(options.seed, "pixels", exposure.file), light, how, hits)
    full = int((raw >= how.saturation).sum())
    corner = (FULL - options.size) // 2
    offset = (
        np.repeat(night.pedestal, FULL // night.pedestal.size)[corner : corner + options.size]
        * exposure.lnrs
    )
    summed = np.rint((raw + offset.astype(np.float32)) * np.float32(exposure.coadds)).astype(
        np.int32
    )
    primary = f2_headers.primary_header(facts, options, exposure, (night.probe.ra, night.probe.dec))
    write_mef(
        folder / exposure.file,
        primary,
        [(f2_headers.extension_header(facts, options, exposure), summed)],
    )
    return Counts((full,), (hits,))
