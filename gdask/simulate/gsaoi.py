"""Simulate raw GSAOI nights with known truth: what falls on each of its four arrays."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from astropy.io.fits import Header

from gdask.simulate import gsaoi_headers, truth
from gdask.simulate.detector import (
    REFERENCE,
    UNLISTED,
    Readout,
    fixed_pattern,
    full_well,
    smooth_response,
)
from gdask.simulate.gemini_headers import Facts
from gdask.simulate.geometry import (
    FULL_SIZE,
    MIDDLE,
    WARP_SCALE,
    WARP_TERMS,
    Chip,
    Window,
    offset,
    pixel_area,
    pixel_range,
    plane,
    pointing,
    rotate,
)
from gdask.simulate.gsaoi_plan import (
    SKY_OFFSET,
    STANDARD,
    STANDARD_MAG,
    TARGET,
    frame_window,
    plan,
    read_time,
)
from gdask.simulate.light import NODE_STEP, Detector, Night, add_stars, cutout, light_on_array
from gdask.simulate.night import Camera, Share, instrument_facts, write_mef, write_night
from gdask.simulate.options import GsaoiOptions, gsaoi_options
from gdask.simulate.plan import Exposure
from gdask.simulate.rendering import peak_fraction
from gdask.simulate.scene import Halo, Stars, star_field
from gdask.types import Image

GsaoiNight: TypeAlias = Night[GsaoiOptions]

BPM_DATE = "20121104"  # valid from: before any GSAOI science
PIXEL_SCALE = 0.0197  # arcsec
PIXEL_DIAGONAL = 0.03  # arcsec, generous
HALF_FIELD = 42.0  # arcsec, from the middle of the field to its edge
FIELD_HALF_SIZE = 68.0  # arcsec: half the side of the square of stars, for any position angle
LATENT_MAX_AGE = 900.0  # s: how far back a latent is traced
LATENT_DECAY_TIME = 300.0  # s
LATENT_MAX_FILL = 3.0  # wells
#: Stars whose peak pixel holds less than this fraction of the well are not searched for latents.
LATENT_MIN_PEAK = 0.4

#: Smooth light at the target, an unresolved background or a galaxy: e-/s in a mean pixel, arcsec
#: North of the pointing, scale in arcsec, power.
HALOS = {"crowded": (2.0, 35.0, 70.0, 1.5), "extended": (60.0, -5.0, 8.0, 1.0)}
#: Two very bright stars: array, arcsec (u, v) from its middle, magnitude.
BRIGHT_STARS = ((1, (2.4, 2.0), 10.4), (3, (-2.2, 1.5), 12.6))

BITS = "bits: 1 dead 2 hot 4 cluster 8 reference 16 not in the BPM"
POSITIONS = (
    "u, v = static distortion of the 1-based full-array pixel, arcsec; X, Y = plate_scale * (u, v)"
    " + sum of warp[0], warp[1] times the terms of u / warp_scale, v / warp_scale;"
    " xi = X cos pa + Y sin pa, eta = -X sin pa + Y cos pa; TAN about ra0, dec0"
)


class Latent(NamedTuple):
    """Saturated pixels of one array of one frame."""

    y: npt.NDArray[np.int64]  # on the full array
    x: npt.NDArray[np.int64]
    fill: npt.NDArray[np.float64]  # how full, 1 to LATENT_MAX_FILL wells


#: The latent of the exposure at an index of the night's list, on an array (from 0).
LatentFinder: TypeAlias = Callable[[int, int], Latent]


def simulate_gsaoi(
    out: str | Path, *, progress: Callable[[str], None] | None = None, **options: Any
) -> list[Path]:
    """Write raw frames to out/raw and truth to out/truth.

    options: the fields of GsaoiOptions (seed=1, size=2048, n_science=9, ...). progress: called with
    each file's name. Returns the raw files, in order of their names. Raises GdaskError for an
    option that is unknown or out of its limits.
    """
    night = prepare_night(gsaoi_options(**options))
    paths = write_night(out, night, camera(night), progress)
    if not night.options.no_bpm:
        paths.append(write_bpm(night, Path(out) / "raw"))
    return sorted(paths)


def load_facts() -> tuple[Facts, list[Facts]]:
    """The simulator's facts, with some of the instrument's; the instrument's arrays."""
    return instrument_facts("gsaoi", ("read_modes", "border", "zero_points"))


# Night ------------------------------------------------------------------------------------------


def prepare_night(options: GsaoiOptions, share: Share | None = None) -> GsaoiNight:
    """Everything but the frames: detectors, catalogues, plan.

    share: what a campaign observes; None: the tutorial's night.
    """
    facts, arrays = load_facts()
    chips = chips_of(arrays)
    nodes = np.arange(8.5, FULL_SIZE, NODE_STEP)
    mean_area = float(np.mean([pixel_area(chip, nodes, nodes).mean() for chip in chips]))
    filter_facts = facts["filters"][options.filter]
    target = share.target if share else TARGET
    centres = {"target": target, "sky": pointing(target, *SKY_OFFSET, options.pa)}
    if share is None:
        centres["std"] = STANDARD
    made = share.detectors if share else None
    of_the_sky = options._replace(seed=share.sky_seed) if share else options
    return Night(
        instrument="GSAOI",
        options=options,
        facts=facts,
        detectors=made or _detectors(options, facts, arrays, chips, mean_area),
        pixel_scale=PIXEL_SCALE,
        pixel_diagonal=PIXEL_DIAGONAL,
        mean_area=mean_area,
        zero_point=filter_facts["zp"],
        exptime=options.exptime,
        centres=centres,
        stars=_stars(of_the_sky, filter_facts["zp"], chips, centres),
        galaxies={},
        halo=_halo(options.field, target),
        half_field=HALF_FIELD,
        exposures=share.exposures if share else plan(options, chips, filter_facts),
    )


def chips_of(arrays: list[Facts]) -> list[Chip]:
    """Static distortion of each array."""
    return [Chip(np.array(a["distortion_x"]), np.array(a["distortion_y"])) for a in arrays]


def _detectors(
    options: GsaoiOptions,
    facts: Facts,
    arrays: list[Facts],
    chips: list[Chip],
    mean_area: float,
) -> list[Detector]:
    """The arrays, with patterns and flats of the central window.

    The mean of FLAT over the good pixels of all full arrays is 1 (to 1e-4: single pixels are left
    out of it).
    """
    zero_points = facts["zero_points"].get(options.filter, facts["zero_points"]["Kshort"])
    corner = (FULL_SIZE - options.size) // 2
    pixels, nodes = pixel_range(corner, options.size) + 1.0, np.arange(8.5, FULL_SIZE, NODE_STEP)
    detectors, levels = [], []
    for array_facts, chip, zero_point in zip(arrays, chips, zero_points):
        efficiency = 10.0 ** (0.4 * (zero_point - np.mean(zero_points)))
        pattern, full_bad = fixed_pattern(
            options.seed, array_facts["name"], FULL_SIZE, facts["border"], corner, options.size
        )
        pattern = pattern._replace(response=pattern.response * np.float32(efficiency))
        area = (pixel_area(chip, pixels, pixels) / mean_area).astype(np.float32)
        detectors.append(Detector(array_facts, chip, pattern, area * pattern.response, full_bad))
        smooth = smooth_response(
            options.seed, array_facts["name"], FULL_SIZE, nodes - 1.0, nodes - 1.0
        )
        levels.append(
            efficiency * float((smooth * pixel_area(chip, nodes, nodes)).mean()) / mean_area
        )
    scale = np.float32(1.0 / np.mean(levels))
    return [
        detector._replace(
            pattern=detector.pattern._replace(response=detector.pattern.response * scale),
            flat=detector.flat * scale,
        )
        for detector in detectors
    ]


def _stars(
    options: GsaoiOptions,
    zero_point: float,
    chips: list[Chip],
    centres: dict[str, tuple[float, float]],
) -> dict[str, Stars]:
    """Catalogues of the target, sky and standard fields, with the stars that must be there."""
    bright = []
    for array, shift, mag in BRIGHT_STARS:
        xi, eta = _near_middle(chips[array], shift, options.pa)
        bright.append((xi, eta, mag))
    kinds = {"target": options.field, "sky": "sky", "std": "std"}
    placed = {"target": tuple(bright), "sky": (), "std": ((0.0, 0.0, STANDARD_MAG),)}
    return {
        name: star_field(
            options.seed, name, kinds[name], centre, zero_point, FIELD_HALF_SIZE, placed[name]
        )
        for name, centre in centres.items()
    }


def _near_middle(chip: Chip, shift: tuple[float, float], pa: float) -> tuple[float, float]:
    """Tangent-plane position (arcsec) of a point `shift` arcsec from the middle of an array."""
    u, v = plane(chip, MIDDLE, MIDDLE)
    xi, eta = rotate(u + shift[0], v + shift[1], pa)
    return float(xi), float(eta)


def _halo(field: str, target: tuple[float, float]) -> Halo | None:
    """Smooth light at the target, if the field has any."""
    if field not in HALOS:
        return None
    amp, north, scale, power = HALOS[field]
    return Halo(amp, *offset(*target, 0.0, north), scale, power)


# Frames -----------------------------------------------------------------------------------------


def camera(night: GsaoiNight) -> Camera:
    """What GSAOI does to the frames of a night."""
    facts, arrays = night.facts, [detector.facts for detector in night.detectors]
    latents = latent_finder(night)
    return Camera(
        expected=lambda exposure, array: expected(night, exposure, array, latents),
        readout=lambda exposure, array: readout(night, exposure, array),
        stored=lambda _, raw: raw,
        primary_header=lambda exposure: gsaoi_headers.primary_header(
            facts, night.options, exposure, night.stars
        ),
        image_header=lambda exposure, array: gsaoi_headers.image_header(
            facts, arrays, array, night.options, exposure
        ),
        frame_columns=lambda _: {},
        scene={
            "warp_terms": WARP_TERMS,
            "warp_scale": WARP_SCALE,
            "positions": POSITIONS,
            "moffat": truth.MOFFAT,
        },
        bits=BITS,
    )


def readout(night: GsaoiNight, exposure: Exposure, array: int) -> Readout:
    """How an array is read in an exposure."""
    facts = night.detectors[array].facts
    return Readout(
        gain=facts["gain"],
        read_noise=facts["read_noise"][night.facts["read_modes"][str(exposure.lnrs)]],
        saturation=facts["saturation"],
        linearity=tuple(facts["linearity"]),
        coadds=exposure.coadds,
        pedestal=read_time(exposure) * exposure.lnrs / 2 / exposure.exptime,
    )


def expected(night: GsaoiNight, exposure: Exposure, array: int, latents: LatentFinder) -> Image:
    """Expected electrons per coadd on the frame's window of an array: the truth of its pixels."""
    window = frame_window(night.options.size, exposure.roi, array)
    image = light_on_array(night, exposure, array, window)
    dark = night.detectors[array].pattern.dark[cutout(night.options.size, window)]
    image += dark * np.float32(exposure.exptime)
    _add_latents(night, exposure, array, image, window, latents)
    return image


def latent_finder(night: GsaoiNight) -> LatentFinder:
    """A function that finds which pixels were saturated, and remembers what it found."""
    known: dict[tuple[int, int], Latent] = {}
    lock = threading.Lock()

    def find(index: int, array: int) -> Latent:
        with lock:
            if (index, array) not in known:
                known[index, array] = saturated_pixels(night, night.exposures[index], array)
            return known[index, array]

    return find


def saturated_pixels(night: GsaoiNight, exposure: Exposure, array: int) -> Latent:
    """Pixels that bright stars saturate, from their noiseless images."""
    window = frame_window(night.options.size, exposure.roi, array)
    well = full_well(readout(night, exposure, array))
    faintest = LATENT_MIN_PEAK * well / peak_fraction(exposure.psf, night.mean_area)
    image = np.zeros((window.size, window.size), np.float32)
    add_stars(night, exposure, array, image, window, brighter_than=faintest)
    image += np.float32(exposure.light * exposure.exptime)
    y, x = np.nonzero(image >= well)
    fill = np.minimum(image[y, x] / well, LATENT_MAX_FILL)
    return Latent(y + window.true_y, x + window.x, fill)


def _add_latents(
    night: GsaoiNight,
    exposure: Exposure,
    array: int,
    image: Image,
    window: Window,
    latents: LatentFinder,
) -> None:
    """Add the charge that recently saturated pixels release, in place.

    afterglow x well x fill / LATENT_MAX_FILL, decaying exponentially, for LATENT_MAX_AGE.
    """
    if not night.options.afterglow or not exposure.field:
        return
    charge_full = night.options.afterglow * full_well(readout(night, exposure, array))
    for index, earlier in enumerate(night.exposures):
        age = (exposure.mjd - earlier.mjd) * 86400.0 - earlier.exptime * earlier.coadds
        if not earlier.field or not 0.0 < age < LATENT_MAX_AGE:
            continue
        latent = latents(index, array)
        y, x = latent.y - window.true_y, latent.x - window.x
        inside = (y >= 0) & (y < image.shape[0]) & (x >= 0) & (x < image.shape[1])
        end = age + exposure.exptime * exposure.coadds
        released = np.exp(-age / LATENT_DECAY_TIME) - np.exp(-end / LATENT_DECAY_TIME)
        charge = charge_full * latent.fill[inside] / LATENT_MAX_FILL * released / exposure.coadds
        image[y[inside], x[inside]] += charge.astype(np.float32)


def write_bpm(night: GsaoiNight, folder: Path) -> Path:
    """Write the bad-pixel mask in the archive's form.

    Full arrays, 1 where bad, the dark border too.
    """
    arrays = [detector.facts for detector in night.detectors]

    def images() -> Iterator[tuple[Header, npt.NDArray[np.generic]]]:
        for array, detector in enumerate(night.detectors):
            bad = detector.full_bad
            listed = (bad != 0) & ((bad & UNLISTED == 0) | (bad & REFERENCE != 0))
            header = gsaoi_headers.image_header(night.facts, arrays, array, night.options, None)
            yield header, listed.astype(np.uint16)

    path = folder / f"bpm_{BPM_DATE}_gsaoi_gsaoi_11_full_4amp.fits"
    return write_mef(path, gsaoi_headers.bpm_header(night.facts, BPM_DATE), images())
