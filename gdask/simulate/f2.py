"""Simulate raw FLAMINGOS-2 nights with known truth: what falls on the array.

The circle that light reaches is part of RESPONSE; the guide probe's shadow differs from frame to
frame and takes from all light.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gdask.simulate import f2_headers, truth
from gdask.simulate.detector import (
    DARK_MEDIAN,
    HOT,
    REFERENCE,
    UNLISTED,
    Pattern,
    Readout,
    fixed_pattern,
    smooth_response,
)
from gdask.simulate.f2_optics import (
    SHADOW,
    Circle,
    Probe,
    distance_outside,
    guide_probe,
    illumination,
    on_axes,
    optics,
    probe_tip,
    shadow,
)
from gdask.simulate.f2_plan import SKY_OFFSET, TARGET, exposure_time, plan
from gdask.simulate.gemini_headers import Facts
from gdask.simulate.geometry import FULL_SIZE, Chip, pixel_area, pixel_range, pointing
from gdask.simulate.light import NODE_STEP, Detector, Night, central_window, light_on_array
from gdask.simulate.night import Camera, Share, instrument_facts, write_night
from gdask.simulate.options import F2Options, f2_options
from gdask.simulate.plan import Exposure, date_of
from gdask.simulate.scene import Galaxies, Halo, Stars, galaxy_field, star_field
from gdask.simulate.seeds import generator
from gdask.types import Image

F2Night: TypeAlias = Night[F2Options]

HALF_FIELD = 183.0  # arcsec, from the middle of the field to its edge
FIELD_HALF_SIZE = 235.0  # arcsec: half the side of the square that holds stars and galaxies
PIXEL_DIAGONAL = float(np.sqrt(2.0) * 0.19)  # arcsec, generous
GALAXIES, GALAXIES_EXTENDED = 15, 60  # number in a field, and in the extended one
#: Smooth light at the target: peak as a fraction of the sky, scale in arcsec, power.
HALOS = {"crowded": (0.05, 70.0, 1.5), "extended": (1.0, 10.0, 1.2)}
DARK_SPREAD = 1.6  # by which the spread of the dark current is wider than in `fixed_pattern`
#: Powers of ten by which `fixed_pattern` raises the dark current of hot pixels: least, range.
HOT_POWERS = (3.0, 2.5)

BITS = "bits: 1 dead 2 hot 4 cluster 8 outside the illuminated circle"
POSITIONS = (
    "u, v = sums of chip.u, chip.v times 1 x y x2 xy y2 x3 x2y xy2 y3 of the 1-based full-array"
    " pixel, arcsec; X, Y = plate_scale * (u, v);"
    " xi = X cos pa + Y sin pa, eta = -X sin pa + Y cos pa; TAN about ra0, dec0"
)
GALAXY = (
    "disc (1 - bulge of the flux, half-light radius `radius` arcsec along the major axis) and bulge"
    " (0.45 radius), Spergel profiles of index 1/2 and -0.6, axis ratio `ratio`, major axis `angle`"
    " degrees East of North"
)
PEDESTAL = (
    "ADU of each strip of 64 columns of the full array, times reads and coadds;"
    " added after all else"
)


def simulate_f2(
    out: str | Path, *, progress: Callable[[str], None] | None = None, **options: Any
) -> list[Path]:
    """Write raw frames to out/raw and truth to out/truth.

    options: the fields of F2Options (seed=1, size=2048, n_science=9, ...). progress: called with
    each file's name. Returns the raw files, in order of their names. Raises GdaskError for an
    option that is unknown or out of its limits.
    """
    night = prepare_night(f2_options(**options))
    return write_night(out, night, camera(night), progress)


def load_facts() -> tuple[Facts, list[Facts]]:
    """The simulator's facts, with some of the instrument's; the instrument's array."""
    return instrument_facts("f2", ("illumination", "read_modes", "zero_points"))


# Night ------------------------------------------------------------------------------------------


def prepare_night(options: F2Options, share: Share | None = None) -> F2Night:
    """Everything but the frames: detector, catalogues, plan.

    share: what a campaign observes; None: the tutorial's night.
    """
    facts, (array_facts,) = load_facts()
    filter_facts = facts["filters"][options.filter]
    zero_point = facts["zero_points"][options.filter][0]
    circle, scale = lit_circle(facts), facts["wcs"]["pixel_scale"]
    origin = f2_headers.reference_pixel(facts, date_of(options.date).date())
    chip = optics(scale, options.distortion, (circle.x + 1.0, circle.y + 1.0), origin)
    if options.axes == "cd":
        chip = on_axes(chip, scale, f2_headers.axes_matrix(facts, date_of(options.date).date()))
    nodes = np.arange(8.5, FULL_SIZE, NODE_STEP)
    inside = distance_outside(circle, nodes - 1.0, nodes - 1.0) < 0
    mean_area = float(pixel_area(chip, nodes, nodes)[inside].mean())
    target = share.target if share else TARGET
    centres = {"target": target}
    if options.n_sky:
        centres["sky"] = pointing(target, *SKY_OFFSET, options.pa)
    made = share.detectors if share else None
    of_the_sky = options._replace(seed=share.sky_seed) if share else options
    return Night(
        instrument="F2",
        options=options,
        facts=facts,
        detectors=made or [_detector(options, facts, array_facts, chip, circle, mean_area)],
        pixel_scale=scale,
        pixel_diagonal=PIXEL_DIAGONAL,
        mean_area=mean_area,
        zero_point=zero_point,
        exptime=exposure_time(options, filter_facts),
        centres=centres,
        stars=_stars(of_the_sky, zero_point, centres),
        galaxies=_galaxies(of_the_sky, zero_point, centres),
        halo=_halo(options.field, filter_facts["sky"], target),
        half_field=HALF_FIELD,
        exposures=share.exposures if share else plan(options, filter_facts),
    )


def lit_circle(facts: Facts) -> Circle:
    """The circle of the array that light reaches."""
    light, detector = facts["illumination"], facts["detector"]
    x, y = light["centre"]
    return Circle(x, y, light["radius"], detector["edge"], detector["stray"])


def probe_of(night: F2Night) -> Probe:
    """The guide probe of a night."""
    options, chip, target = night.options, night.detectors[0].chip, night.centres["target"]
    return guide_probe(options.probe, lit_circle(night.facts), chip, target, options.pa)


def amplifier_pedestals(night: F2Night) -> npt.NDArray[np.float64]:
    """ADU that each amplifier adds in every read pair and coadd."""
    detector = night.facts["detector"]
    rng = generator(night.options.seed, "array", night.detectors[0].facts["name"], "pedestal")
    pedestals: npt.NDArray[np.float64] = rng.normal(0.0, detector["pedestal"], detector["channels"])
    return np.round(pedestals, 2)


def _detector(
    options: F2Options,
    facts: Facts,
    array_facts: Facts,
    chip: Chip,
    circle: Circle,
    mean_area: float,
) -> Detector:
    """The array, with pattern and flat of the central window.

    The mean of FLAT over the good pixels of the whole circle is 1.
    """
    corner = (FULL_SIZE - options.size) // 2
    pixels, nodes = pixel_range(corner, options.size), np.arange(7.5, FULL_SIZE, NODE_STEP)
    pattern, full_bad = fixed_pattern(
        options.seed, array_facts["name"], FULL_SIZE, 0, corner, options.size
    )
    smooth = smooth_response(options.seed, array_facts["name"], FULL_SIZE, nodes, nodes)
    lit = distance_outside(circle, nodes, nodes) < 0
    level = float((smooth * pixel_area(chip, nodes + 1.0, nodes + 1.0))[lit].mean()) / mean_area
    response = pattern.response * illumination(circle, pixels, pixels) / np.float32(level)
    bad = pattern.bad & np.uint8(255 - UNLISTED)
    bad[distance_outside(circle, pixels, pixels) > 0] |= REFERENCE
    area = (pixel_area(chip, pixels + 1.0, pixels + 1.0) / mean_area).astype(np.float32)
    dark = _dark_current(facts["detector"], pattern, circle, pixels)
    return Detector(array_facts, chip, Pattern(response, dark, bad), area * response, full_bad)


def _dark_current(
    detector: Facts, pattern: Pattern, circle: Circle, pixels: npt.NDArray[np.float64]
) -> Image:
    """Dark current, e-/s: a wide spread over the pixels, a glow at the corners, hot pixels."""
    # exp(0.3 z); times 10^3 to 10^5.5 where hot
    ratio = pattern.dark.astype(float) / DARK_MEDIAN
    outside = distance_outside(circle, pixels, pixels)
    glow = 1.0 + detector["glow"] * (1.0 + outside / circle.radius) ** 2
    cold = detector["dark"] * glow * ratio**DARK_SPREAD
    coolest, hottest = detector["hottest"]
    power = (np.log10(np.maximum(ratio, 1e-3)) - HOT_POWERS[0]) / HOT_POWERS[1]
    hot = coolest * (hottest / coolest) ** power
    return np.where(pattern.bad & HOT, hot, cold).astype(np.float32)


def _stars(
    options: F2Options, zero_point: float, centres: dict[str, tuple[float, float]]
) -> dict[str, Stars]:
    """Stars of the target's and the sky's field."""
    kinds = {"target": f"f2-{options.field}", "sky": "f2-sky"}
    return {
        name: star_field(options.seed, name, kinds[name], centre, zero_point, FIELD_HALF_SIZE)
        for name, centre in centres.items()
    }


def _galaxies(
    options: F2Options, zero_point: float, centres: dict[str, tuple[float, float]]
) -> dict[str, Galaxies]:
    """Galaxies of the target's and the sky's field."""
    counts = {
        "target": GALAXIES_EXTENDED if options.field == "extended" else GALAXIES,
        "sky": GALAXIES,
    }
    return {
        name: galaxy_field(options.seed, name, counts[name], centre, zero_point, FIELD_HALF_SIZE)
        for name, centre in centres.items()
    }


def _halo(field: str, sky: float, target: tuple[float, float]) -> Halo | None:
    """Smooth light at the target, if the field has any. sky: usual, e-/s in a mean pixel."""
    if field not in HALOS:
        return None
    share, scale, power = HALOS[field]
    return Halo(share * sky, *target, scale, power)


# Frames -----------------------------------------------------------------------------------------


def camera(night: F2Night) -> Camera:
    """What FLAMINGOS-2 does to the frames of a night."""
    facts, options, chip = night.facts, night.options, night.detectors[0].chip
    probe, pedestals = probe_of(night), amplifier_pedestals(night)
    return Camera(
        expected=lambda exposure, _: expected(night, exposure),
        readout=lambda exposure, _: readout(night, exposure),
        stored=lambda exposure, raw: summed(raw, exposure, pedestals),
        primary_header=lambda exposure: f2_headers.primary_header(
            facts, options, exposure, (probe.ra, probe.dec)
        ),
        image_header=lambda exposure, _: f2_headers.image_header(facts, options, exposure),
        frame_columns=lambda exposure: dict(
            zip(("probe_x", "probe_y"), probe_tip(probe, chip, exposure))
        ),
        scene={
            "chip": {"u": chip.u.tolist(), "v": chip.v.tolist()},
            "positions": POSITIONS,
            "moffat": truth.MOFFAT,
            "galaxy": GALAXY,
            "pedestal": pedestals.tolist(),
            "pedestal_law": PEDESTAL,
            "circle": lit_circle(facts)._asdict(),
            "probe": probe._asdict(),
            "shadow": SHADOW,
        },
        bits=BITS,
    )


def readout(night: F2Night, exposure: Exposure) -> Readout:
    """How the array is read in an exposure.

    Reads are summed, so that an ADU is worth fewer electrons and saturation comes later.
    """
    facts, reads = night.detectors[0].facts, exposure.lnrs
    return Readout(
        gain=facts["gain"] / reads,
        read_noise=facts["read_noise"][night.facts["read_modes"][str(reads)]],
        saturation=facts["saturation"] * reads,
        linearity=tuple(facts["linearity"]),
        coadds=exposure.coadds,
        pedestal=night.facts["detector"]["read"] / exposure.exptime,
    )


def expected(night: F2Night, exposure: Exposure) -> Image:
    """Expected electrons per coadd on the window of the array: the truth of its pixels."""
    window = central_window(night.options.size)
    # Without a sky (option sky=0) the halo is left out too.
    lit = night if exposure.light else night._replace(halo=None)
    image = light_on_array(lit, exposure, 0, window)
    probe, chip = probe_of(night), night.detectors[0].chip
    tip = probe_tip(probe, chip, exposure)
    if np.isfinite(tip[0]):
        pixels = pixel_range(window.x, window.size)
        image *= shadow(probe, tip, pixels, pixels)
    image += night.detectors[0].pattern.dark * np.float32(exposure.exptime)
    return image


def summed(
    raw: Image, exposure: Exposure, pedestals: npt.NDArray[np.float64]
) -> npt.NDArray[np.int32]:
    """Counts as they are stored: with the amplifiers' pedestals, summed over the coadds, whole."""
    size = raw.shape[1]
    corner = (FULL_SIZE - size) // 2
    columns = np.repeat(pedestals, FULL_SIZE // pedestals.size)[corner : corner + size]
    offset = (columns * exposure.lnrs).astype(np.float32)
    return np.rint((raw + offset) * np.float32(exposure.coadds)).astype(np.int32)
