"""What faults of a simulated campaign do to pixels and headers of single frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from astropy.io.fits import Header

from gdask.simulate.gemini_headers import CardLike, clock_values, header, image_cards
from gdask.simulate.geometry import MIDDLE, pixel_range, plane
from gdask.simulate.light import Detector, Night, central_window
from gdask.simulate.night import Camera
from gdask.simulate.options import F2Options, GsaoiOptions
from gdask.simulate.plan import Exposure, Identity
from gdask.simulate.seeds import generator
from gdask.types import Image

AnyNight = Night[GsaoiOptions] | Night[F2Options]

#: Cards of a faulty frame, by fault and instrument.
CARDS: dict[str, dict[str, dict[str, object]]] = {
    "acquisition": {"GSAOI": {"OBSCLASS": "acq"}, "F2": {"OBSCLASS": "acq"}},
    "exptime": {"GSAOI": {"EXPTIME": -9999.0}, "F2": {"EXPTIME": -9999.0}},
    "twilight": {
        "GSAOI": {"OBSCLASS": "dayCal"},
        "F2": {"OBSCLASS": "dayCal", "OBSTYPE": "FLAT"},
    },
    "spectrum": {
        "F2": {
            "GRISM": "JH_G5801",
            "FILTER": "JH_G0809",
            "FILTER1": "JH_G0809",
            "DECKER": "Long_slit",
            "MOSPOS": "4pix-slit",
            "MASKNAME": "4pix-slit",
        }
    },
}

TRAIL_FWHM = 0.5  # arcsec
TRAIL_NOISES = 30.0  # brightness in the middle: so many times the noise of the sky
TRAIL_READ_NOISE = 10.0  # e-, in that noise
TRAIL_SHIFT = 0.3  # of the image's side: how far from an array's middle a trail may pass

SPECTRUM_SKY, SPECTRUM_STAR = 3.0, 60.0  # e-/s in a pixel
SPECTRUM_LINES, SPECTRUM_WIDTH = 23.0, 2.5  # pixels: between sky lines, rms of the star's trace

GMOS_SIZE = 64  # pixels


class Trail(NamedTuple):
    """A straight trail in the instrument plane: angle about a point, from +u towards +v."""

    u: float  # arcsec
    v: float  # arcsec
    angle: float  # degrees
    peak: float  # electrons per coadd
    fwhm: float  # arcsec


def with_faults(night: AnyNight, camera: Camera, faults: Mapping[str, str]) -> Camera:
    """A camera whose frames have faults. faults: by file."""

    def expected(exposure: Exposure, array: int) -> Image:
        fault, detector = faults.get(exposure.file, ""), night.detectors[array]
        if fault == "spectrum":
            return spectrum(exposure, detector, night.options.size)
        image = camera.expected(exposure, array)
        if fault == "trail":
            image += trail_light(trail_of(night, exposure), detector, night.options.size)
        return image

    def primary_header(exposure: Exposure) -> Header:
        cards = camera.primary_header(exposure)
        fault = faults.get(exposure.file, "")
        cards.update(CARDS.get(fault, {}).get(night.instrument, {}))
        return cards

    columns = camera.frame_columns
    return camera._replace(
        expected=expected,
        primary_header=primary_header,
        frame_columns=_with_column(columns, faults),
    )


def _with_column(
    columns: Callable[[Exposure], dict[str, object]], faults: Mapping[str, str]
) -> Callable[[Exposure], dict[str, object]]:
    """The columns of a frame in the truth, with its fault."""
    return lambda exposure: {"fault": faults.get(exposure.file, ""), **columns(exposure)}


def trail_of(night: AnyNight, exposure: Exposure) -> Trail:
    """The satellite's trail of a frame: it crosses one of the arrays."""
    rng = generator(night.options.seed, "campaign", "trail", exposure.file)
    chip = night.detectors[int(rng.integers(len(night.detectors)))].chip
    shift = rng.uniform(-TRAIL_SHIFT, TRAIL_SHIFT, 2) * night.options.size
    u, v = plane(chip, float(MIDDLE + shift[0]), float(MIDDLE + shift[1]))
    noise = np.sqrt(exposure.light * exposure.exptime + TRAIL_READ_NOISE**2)
    angle = float(rng.uniform(0.0, 180.0))
    return Trail(float(u), float(v), angle, float(TRAIL_NOISES * noise), TRAIL_FWHM)


def trail_light(trail: Trail, detector: Detector, size: int) -> Image:
    """Electrons per coadd of a trail on the central `size` square of an array: (size, size)."""
    window = central_window(size)
    x, y = np.meshgrid(pixel_range(window.x + 1, size), pixel_range(window.y + 1, size))
    u, v = plane(detector.chip, x, y)
    c, s = np.cos(np.radians(trail.angle)), np.sin(np.radians(trail.angle))
    across = c * (v - trail.v) - s * (u - trail.u)
    light = trail.peak * np.exp(-4.0 * np.log(2.0) * (across / trail.fwhm) ** 2)
    return light.astype(np.float32) * detector.pattern.response


def spectrum(exposure: Exposure, detector: Detector, size: int) -> Image:
    """Electrons per coadd of a long-slit spectrum: sky lines along rows, a star along columns."""
    pixels = np.arange(size)
    lines = 1.0 + np.cos(2.0 * np.pi * pixels / SPECTRUM_LINES) ** 8
    star = np.exp(-0.5 * ((pixels - size / 2.0) / SPECTRUM_WIDTH) ** 2)
    light = SPECTRUM_SKY * lines[:, None] + SPECTRUM_STAR * star[None, :]
    image = (light * exposure.exptime).astype(np.float32) * detector.pattern.response
    return image + detector.pattern.dark * np.float32(exposure.exptime)


def gmos_frame(seed: int, exposure: Exposure) -> tuple[Header, list[tuple[Header, Image]]]:
    """Primary header and extensions of a small GMOS-S image, taken as an exposure says."""
    who = exposure.identity or Identity("", "GS-ENG", 1)
    label = f"{who.program}-{who.observation}"
    cards: list[CardLike] = [
        ("SIMPLE", True, ""),
        ("BITPIX", 8, ""),
        ("NAXIS", 0, ""),
        ("EXTEND", True, ""),
        ("INSTRUME", "GMOS-S", "Instrument used to acquire data"),
        ("OBJECT", who.object, "Object Name"),
        ("OBSTYPE", "OBJECT", "Observation type"),
        ("OBSCLASS", "science", "Observe class"),
        ("GEMPRGID", who.program, "Gemini programme ID"),
        ("OBSID", label, "Gemini Observation ID"),
        ("DATALAB", f"{label}-{exposure.number:03d}", "Gemini Datalabel"),
        ("OBSERVAT", "Gemini-South", "Observatory"),
        ("TELESCOP", "Gemini-South", "Telescope"),
        ("RA", exposure.ra, "Target Right Ascension"),
        ("DEC", exposure.dec, "Target Declination"),
        *((name, value, "") for name, value in clock_values(exposure.mjd).items()),
        ("EXPTIME", exposure.exptime, "Exposure time"),
        ("GRATING", "MIRROR", "Disperser"),
        ("MASKNAME", "None", "Mask"),
        ("FILTER1", "r_G0326", "Filter 1"),
        ("FILTER2", "open2-8", "Filter 2"),
    ]
    rng = generator(seed, "campaign", "gmos", exposure.file)
    extensions = []
    for number in range(1, 4):
        names: list[CardLike] = [("EXTNAME", "SCI", ""), ("EXTVER", number, "")]
        image = rng.normal(1000.0, 10.0, (GMOS_SIZE, GMOS_SIZE)).astype(np.float32)
        extensions.append((header([*image_cards(image.shape, -32), *names]), image))
    return header(cards), extensions
