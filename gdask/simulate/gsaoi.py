"""Raw GSAOI nights with known truth: what falls on each array, and the files that come of it.

Light of the sky, of the lamp and of a halo passes FLAT = RESPONSE x AREA (AREA: a pixel's solid angle over the mean of
all pixels); a star's light passes RESPONSE alone, spread over the pixels by their true shape on the sky.
"""

from __future__ import annotations

import threading
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.interpolate import RectBivariateSpline

from gdask.simulate import gsaoi_headers, gsaoi_truth
from gdask.simulate.cosmics import Hits, cosmic_rays
from gdask.simulate.detector import (
    REFERENCE,
    UNLISTED,
    Pattern,
    Readout,
    fixed_pattern,
    read_out,
    smooth_response,
    well,
)
from gdask.simulate.exposure import Exposure, pointing
from gdask.simulate.geometry import (
    Chip,
    jacobian,
    pixel_area,
    pixel_to_sky,
    plane,
    sky_to_pixel,
    within,
)
from gdask.simulate.gsaoi_plan import SKY_OFFSET, STANDARD, STANDARD_MAG, TARGET, plan, read_time
from gdask.simulate.mef import write_mef
from gdask.simulate.noise import generator
from gdask.simulate.options import GsaoiOptions, gsaoi_options
from gdask.simulate.psf import CORE, parameters, peak_fraction, radii, render
from gdask.simulate.scene import HALOS, Halo, Stars, halo_light, star_field
from gdask.simulate.sky import offset, rotate
from gdask.simulate.truth import Counts
from gdask.types import Image

FULL = gsaoi_headers.FULL
WORKERS = 2
BPM_DATE = "20121104"  # valid from: before any GSAOI science
LATENT_SPAN, LATENT_DECAY = (
    900.0,
    300.0,
)  # s: how far back a latent is traced, and its time constant
NODE = 16  # pixels between nodes at which smooth light is evaluated


class Latent(NamedTuple):
    """Saturated pixels of one array of one frame: full-array (y, x), how full (1 to 3 wells)."""

    y: npt.NDArray[np.int64]
    x: npt.NDArray[np.int64]
    fill: npt.NDArray[np.float64]


class Night(NamedTuple):
    """All that the frames of a simulation share."""

    options: GsaoiOptions
    facts: dict[str, Any]
    arrays: list[dict[str, Any]]
    chips: list[Chip]
    mean_area: float  # arcsec^2
    patterns: list[Pattern]  # of the written window
    flats: list[Image]
    bad: list[npt.NDArray[np.uint8]]  # full arrays
    stars: dict[str, Stars]
    halo: Halo | None
    exposures: list[Exposure]


def simulate_gsaoi(
    out: str | Path, *, progress: Callable[[str], None] | None = None, **options: Any
) -> list[Path]:
    """Write raw frames to out/raw and truth to out/truth; the raw files, in order of their names.

    options: the fields of GsaoiOptions (seed=1, size=2048, n_science=9, ...). progress: called with each file's name.
    Raises GdaskError for an option that is unknown or out of its limits.
    """
    night = prepare_night(gsaoi_options(**options))
    raw, tables = Path(out) / "raw", Path(out) / "truth"
    for folder in (raw, tables):
        folder.mkdir(parents=True, exist_ok=True)
    latents = _latent_finder(night)
    counts = []
    with ThreadPoolExecutor(WORKERS) as pool:
        jobs = [
            pool.submit(write_exposure, night, exposure, raw, latents)
            for exposure in night.exposures
        ]
        try:
            for exposure, job in zip(night.exposures, jobs):
                counts.append(job.result())
                if progress:
                    progress(exposure.file)
        finally:
            pool.shutdown(cancel_futures=True)
    paths = [raw / exposure.file for exposure in night.exposures]
    if not night.options.no_bpm:
        paths.append(_write_bpm(night, raw))
    gsaoi_truth.write(night, counts, tables)
    return sorted(paths)


def load_facts() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The simulator's facts with the instrument's read modes and border; the instrument's arrays."""
    instrument = tomllib.loads((files("gdask.instruments") / "gsaoi.toml").read_text())
    facts = tomllib.loads((files("gdask.simulate") / "gsaoi.toml").read_text())
    return facts | {k: instrument[k] for k in ("read_modes", "border", "zero_points")}, instrument[
        "arrays"
    ]


def prepare_night(options: GsaoiOptions) -> Night:
    """Everything but the frames: detectors, catalogues, plan."""
    facts, arrays = load_facts()
    chips = [Chip(np.array(a["distortion_x"]), np.array(a["distortion_y"])) for a in arrays]
    middle = np.arange(8.5, FULL, 16.0)
    mean_area = float(np.mean([pixel_area(chip, middle, middle).mean() for chip in chips]))
    filter_facts = facts["filters"][options.filter]
    patterns, flats, bad = _detectors(options, facts, arrays, chips, mean_area)
    stars = _stars(options, filter_facts["zp"], chips)
    halo = HALOS.get(options.field)
    sky_halo = Halo(halo[0], *offset(*TARGET, 0.0, halo[1]), *halo[2:]) if halo else None
    return Night(
        options,
        facts,
        arrays,
        chips,
        mean_area,
        patterns,
        flats,
        bad,
        stars,
        sky_halo,
        plan(options, chips, filter_facts),
    )


def _detectors(
    options: GsaoiOptions,
    facts: dict[str, Any],
    arrays: list[dict[str, Any]],
    chips: list[Chip],
    mean_area: float,
) -> tuple[list[Pattern], list[Image], list[npt.NDArray[np.uint8]]]:
    """Patterns and flats of the central window, bad pixels of the full arrays.

    The mean of FLAT over the good pixels of all full arrays is 1 (to 1e-4: single pixels are left out of it).
    """
    zero_points = facts["zero_points"].get(options.filter, facts["zero_points"]["Kshort"])
    corner = (FULL - options.size) // 2
    at, coarse = np.arange(corner, corner + options.size) + 1.0, np.arange(8.5, FULL, NODE)
    patterns, flats, bad, levels = [], [], [], []
    for array, chip, zero_point in zip(arrays, chips, zero_points):
        efficiency = 10.0 ** (0.4 * (zero_point - np.mean(zero_points)))
        pattern, full_bad = fixed_pattern(
            options.seed, array["name"], FULL, facts["border"], corner, options.size
        )
        patterns.append(pattern._replace(response=pattern.response * np.float32(efficiency)))
        flats.append(
            (pixel_area(chip, at, at) / mean_area).astype(np.float32) * patterns[-1].response
        )
        bad.append(full_bad)
        smooth = smooth_response(options.seed, array["name"], FULL, coarse - 1.0, coarse - 1.0)
        levels.append(
            efficiency * float((smooth * pixel_area(chip, coarse, coarse)).mean()) / mean_area
        )
    scale = np.float32(1.0 / np.mean(levels))
    patterns = [pattern._replace(response=pattern.response * scale) for pattern in patterns]
    return patterns, [flat * scale for flat in flats], bad


def _stars(options: GsaoiOptions, zero_point: float, chips: list[Chip]) -> dict[str, Stars]:
    """Catalogues of the target, sky and standard fields; two very bright stars near the middle of arrays 2 and 4."""
    bright = []
    for chip, shift, mag in ((chips[1], (2.4, 2.0), 10.4), (chips[3], (-2.2, 1.5), 12.6)):
        xi, eta = _near_middle(chip, shift, options.pa)
        bright.append((xi, eta, mag))
    centres = {"target": TARGET, "sky": pointing(TARGET, *SKY_OFFSET, options.pa), "std": STANDARD}
    kinds = {"target": options.field, "sky": "sky", "std": "std"}
    placed = {"target": tuple(bright), "std": ((0.0, 0.0, STANDARD_MAG),)}
    return {
        name: star_field(options.seed, name, kinds[name], *centre, zero_point, placed.get(name, ()))
        for name, centre in centres.items()
    }


def _near_middle(chip: Chip, shift: tuple[float, float], pa: float) -> tuple[float, float]:
    """Tangent-plane position (arcsec) of a point `shift` arcsec from the middle of an array."""
    u, v = plane(chip, 1024.5, 1024.5)
    xi, eta = rotate(np.asarray(u + shift[0]), np.asarray(v + shift[1]), pa)
    return float(xi), float(eta)


def readout(night: Night, exposure: Exposure, array: int) -> Readout:
    """How an array is read in an exposure."""
    facts = night.arrays[array]
    noise = facts["read_noise"][night.facts["read_modes"][str(exposure.lnrs)]]
    pedestal = read_time(exposure) * exposure.lnrs / 2 / exposure.exptime
    return Readout(
        facts["gain"],
        noise,
        facts["saturation"],
        tuple(facts["linearity"]),
        exposure.coadds,
        pedestal,
    )


def _add_stars(
    night: Night,
    exposure: Exposure,
    array: int,
    image: Image,
    corner: tuple[int, int],
    brighter_than: float = 0.0,
) -> None:
    """Add the field's stars, in electrons per coadd before RESPONSE; corner: full-array (x, y) of the first pixel."""
    stars, chip, psf = night.stars[exposure.field], night.chips[array], exposure.psf
    electrons = stars.flux * exposure.scale * exposure.exptime
    reach = radii(psf, electrons)
    half = image.shape[0] / 2
    near = within(
        chip,
        exposure.pose,
        stars.ra,
        stars.dec,
        corner[0] + half,
        corner[1] + half,
        0.03 * half + reach,
    )
    near &= electrons >= brighter_than
    x, y = sky_to_pixel(chip, exposure.pose, stars.ra[near], stars.dec[near])
    px, py = x - 1.0 - corner[0], y - 1.0 - corner[1]
    jacobians = np.stack(jacobian(chip, x, y), axis=1) * exposure.pose.plate_scale
    render(image, px, py, electrons[near], jacobians, reach[near], parameters(psf), CORE)


def _smooth_light(
    night: Night, exposure: Exposure, array: int, shape: tuple[int, int], corner: tuple[int, int]
) -> npt.NDArray[np.float64] | float:
    """Sky, lamp and halo, e-/s in a mean pixel."""
    if night.halo is None or exposure.field != "target":
        return exposure.light
    ny, nx = shape
    ys, xs = np.arange(-NODE, ny + 2 * NODE, NODE), np.arange(-NODE, nx + 2 * NODE, NODE)
    x, y = np.meshgrid(xs + corner[0] + 1.0, ys + corner[1] + 1.0)
    nodes = halo_light(night.halo, *pixel_to_sky(night.chips[array], exposure.pose, x, y))
    return exposure.light + exposure.scale * RectBivariateSpline(ys, xs, nodes)(
        np.arange(ny), np.arange(nx)
    )


def expected(
    night: Night, exposure: Exposure, array: int, latents: Callable[[int, int], Latent | None]
) -> Image:
    """Expected electrons per coadd on the frame's window of an array, before noise: the truth of its pixels."""
    w = gsaoi_headers.window(night.options.size, exposure.roi, array)
    origin = (FULL - night.options.size) // 2
    cut = np.s_[
        w.true_y - origin : w.true_y - origin + w.size, w.x - origin : w.x - origin + w.size
    ]
    image = np.zeros((w.size, w.size), np.float32)
    if exposure.field:
        _add_stars(night, exposure, array, image, (w.x, w.true_y))
    image *= night.patterns[array].response[cut]
    light = _smooth_light(night, exposure, array, image.shape, (w.x, w.true_y))
    image += (night.flats[array][cut] * (light * exposure.exptime)).astype(np.float32)
    image += night.patterns[array].dark[cut] * np.float32(exposure.exptime)
    _add_latents(night, exposure, array, image, (w.x, w.true_y), latents)
    return image


def _latent_finder(night: Night) -> Callable[[int, int], Latent | None]:
    """A function of (index of an exposure, array) that remembers which pixels were saturated there."""
    known: dict[tuple[int, int], Latent] = {}
    lock = threading.Lock()

    def find(index: int, array: int) -> Latent | None:
        with lock:
            if (index, array) not in known:
                known[index, array] = saturated(night, night.exposures[index], array)
            return known[index, array]

    return find


def saturated(night: Night, exposure: Exposure, array: int) -> Latent:
    """Pixels that bright stars saturate, from their noiseless images."""
    w = gsaoi_headers.window(night.options.size, exposure.roi, array)
    full = well(readout(night, exposure, array))
    faintest = 0.4 * full / peak_fraction(exposure.psf, night.mean_area)
    image = np.zeros((w.size, w.size), np.float32)
    _add_stars(night, exposure, array, image, (w.x, w.true_y), brighter_than=faintest)
    image += np.float32(exposure.light * exposure.exptime)
    y, x = np.nonzero(image >= full)
    return Latent(y + w.true_y, x + w.x, np.minimum(image[y, x] / full, 3.0))


def _add_latents(
    night: Night,
    exposure: Exposure,
    array: int,
    image: Image,
    corner: tuple[int, int],
    latents: Callable[[int, int], Latent | None],
) -> None:
    """Charge that pixels saturated within LATENT_SPAN release: afterglow x well x fill / 3, decaying exponentially."""
    if not night.options.afterglow or not exposure.field:
        return
    full = well(readout(night, exposure, array))
    for index, earlier in enumerate(night.exposures):
        gap = (exposure.mjd - earlier.mjd) * 86400.0 - earlier.exptime * earlier.coadds
        if not earlier.field or not 0.0 < gap < LATENT_SPAN:
            continue
        latent = latents(index, array)
        y, x = latent.y - corner[1], latent.x - corner[0]
        inside = (y >= 0) & (y < image.shape[0]) & (x >= 0) & (x < image.shape[1])
        duration = exposure.exptime * exposure.coadds
        released = np.exp(-gap / LATENT_DECAY) - np.exp(-(gap + duration) / LATENT_DECAY)
        charge = (
            night.options.afterglow * full * latent.fill[inside] / 3.0 * released / exposure.coadds
        )
        image[y[inside], x[inside]] += charge.astype(np.float32)


def write_exposure(
    night: Night, exposure: Exposure, folder: Path, latents: Callable[[int, int], Latent | None]
) -> Counts:
    """Simulate and write one frame; its saturated pixels and cosmic rays by array."""
    hits: list[Hits] = []
    full: list[int] = []

    def images() -> Any:
        for array in range(len(night.arrays)):
            rng = generator(night.options.seed, "pixels", exposure.file, array)
            light = expected(night, exposure, array, latents)
            time = exposure.exptime * exposure.coadds
            rate = night.options.cr_rate * time * light.size / FULL**2
            hits.append(
                cosmic_rays(
                    generator(night.options.seed, "cosmics", exposure.file, array),
                    light.shape,
                    rate,
                )
            )
            raw = read_out(rng, light, readout(night, exposure, array), hits[-1])
            full.append(int((raw >= night.arrays[array]["saturation"]).sum()))
            yield (
                gsaoi_headers.extension_header(
                    night.facts, night.arrays, array, night.options, exposure
                ),
                raw,
            )

    primary = gsaoi_headers.primary_header(night.facts, night.options, exposure, night.stars)
    write_mef(folder / exposure.file, primary, images())
    return Counts(tuple(full), tuple(hits))


def _write_bpm(night: Night, folder: Path) -> Path:
    """The bad-pixel mask in the archive's form: full arrays, 1 where bad, the dark border too."""

    def images() -> Any:
        for array, bad in enumerate(night.bad):
            listed = (bad != 0) & ((bad & UNLISTED == 0) | (bad & REFERENCE != 0))
            yield (
                gsaoi_headers.extension_header(
                    night.facts, night.arrays, array, night.options, None
                ),
                listed.astype(np.uint16),
            )

    path = folder / f"bpm_{BPM_DATE}_gsaoi_gsaoi_11_full_4amp.fits"
    return write_mef(path, gsaoi_headers.bpm_header(night.facts, BPM_DATE), images())
