"""Simulate and write a night: plan, expose, read out, write headers, write the truth.

What differs between the instruments comes from them as values (`Night`) and as functions
(`Camera`).

Light of the sky, of the lamp and of a halo passes FLAT = RESPONSE x AREA (AREA: a pixel's solid
angle over the mean); a star's or a galaxy's light passes RESPONSE alone, spread over the pixels by
their true shape on the sky.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from astropy.io.fits import Header
from scipy.interpolate import RectBivariateSpline

from gdask.simulate import truth
from gdask.simulate.detector import BadBits, Hits, Pattern, Readout, cosmic_rays, read_out
from gdask.simulate.gemini_headers import Facts
from gdask.simulate.geometry import (
    FULL_SIZE,
    Chip,
    Window,
    jacobian,
    near_pixel,
    offset,
    pixel_area,
    pixel_range,
    pixel_to_sky,
    plane,
    sky_to_pixel,
)
from gdask.simulate.options import F2Options, GsaoiOptions
from gdask.simulate.plan import Exposure
from gdask.simulate.rendering import (
    CORE_HALF_SIZE,
    add_galaxy,
    galaxy_extent,
    profile_table,
    render,
    stamp_radii,
)
from gdask.simulate.scene import Galaxies, Halo, Stars, halo_light, magnitude_to_flux
from gdask.simulate.seeds import generator
from gdask.simulate.sky_light import FLAT, SkyShape, row_noise, share_of_sky, sky_shape
from gdask.simulate.truth import Counts
from gdask.types import Image

Array = npt.NDArray[np.float64]
AnyOptions = TypeVar("AnyOptions", GsaoiOptions, F2Options)

WRITERS = 2  # threads
NODE_STEP = 16  # pixels between nodes at which smooth light and pixel areas are evaluated
MOST_MOMENTS = 200  # in which a trailing star is drawn
FITS_BLOCK = 2880  # bytes: headers are padded with blanks, data with zeros


class Detector(NamedTuple):
    """One array of the camera."""

    facts: Facts  # name, gain, read noise, saturation, linearity, ...
    chip: Chip
    pattern: Pattern  # of the written window
    flat: Image  # of the written window
    full_bad: BadBits  # bits of the bad pixels of the full array


class Night(NamedTuple, Generic[AnyOptions]):
    """All that the frames of a simulation share."""

    instrument: str
    options: AnyOptions
    facts: Facts
    detectors: list[Detector]
    pixel_scale: float  # arcsec, nominal
    pixel_diagonal: float  # arcsec, at least that of a pixel
    mean_area: float  # arcsec^2, of a pixel
    zero_point: float  # magnitude of 1 e-/s at mean response
    exptime: float  # s, of a coadd of science frames
    centres: dict[str, tuple[float, float]]  # of the fields, degrees
    stars: dict[str, Stars]  # by field
    galaxies: dict[str, Galaxies]  # by field
    halo: Halo | None  # at the target
    half_field: float  # arcsec, over which the sky's slopes are told
    exposures: list[Exposure]


class Share(NamedTuple):
    """What is observed in one filter of a campaign, instead of the tutorial's target and plan."""

    target: tuple[float, float]  # degrees
    sky_seed: int  # of the stars about it
    exposures: list[Exposure]
    #: Made before for the same instrument, filter, size and seed; None: to be made.
    detectors: list[Detector] | None = None


class Camera(NamedTuple):
    """What an instrument does to a frame, and what the truth says of it.

    The functions take an exposure, and most of them an array (from 0).
    """

    expected: Callable[[Exposure, int], Image]  # electrons per coadd, before noise
    readout: Callable[[Exposure, int], Readout]
    stored: Callable[[Exposure, Image], npt.NDArray[np.generic]]  # from ADU, mean of coadds
    primary_header: Callable[[Exposure], Header]
    image_header: Callable[[Exposure, int], Header]
    frame_columns: Callable[[Exposure], dict[str, object]]  # added to the table of frames
    scene: dict[str, object]  # added to scene.json
    bits: str  # what the bits of the bad-pixel maps mean


def instrument_facts(instrument: str, shared: tuple[str, ...]) -> tuple[Facts, list[Facts]]:
    """The simulator's facts of an instrument, and the instrument's arrays.

    shared: names of the instrument's own facts that are added.
    """
    name = f"{instrument}.toml"
    from_instrument = tomllib.loads((files("gdask.instruments") / name).read_text())
    facts = tomllib.loads((files("gdask.simulate") / name).read_text())
    return facts | {key: from_instrument[key] for key in shared}, from_instrument["arrays"]


# Writing ----------------------------------------------------------------------------------------


def write_night(
    out: str | Path,
    night: Night[AnyOptions],
    camera: Camera,
    progress: Callable[[str], None] | None,
) -> list[Path]:
    """Write raw frames to out/raw, several at a time, and truth to out/truth.

    progress: called with each file's name. Returns the raw files, in order of their names.
    """
    raw, tables = Path(out) / "raw", Path(out) / "truth"
    for folder in (raw, tables):
        folder.mkdir(parents=True, exist_ok=True)
    counts = write_frames(night, camera, lambda _: raw, progress)
    write_truth(night, camera, counts, tables)
    return sorted(raw / exposure.file for exposure in night.exposures)


def write_frames(
    night: Night[AnyOptions],
    camera: Camera,
    folder: Callable[[Exposure], Path],
    progress: Callable[[str], None] | None,
) -> list[Counts]:
    """Write raw frames, several at a time, each into its `folder`, which exists.

    progress: called with each file's name. Returns what happened in each frame.
    """
    counts = []
    with ThreadPoolExecutor(WRITERS) as pool:
        jobs = [
            pool.submit(write_exposure, night, camera, exposure, folder(exposure))
            for exposure in night.exposures
        ]
        try:
            for exposure, job in zip(night.exposures, jobs):
                counts.append(job.result())
                if progress:
                    progress(exposure.file)
        finally:
            pool.shutdown(cancel_futures=True)
    return counts


def write_exposure(
    night: Night[AnyOptions], camera: Camera, exposure: Exposure, folder: Path
) -> Counts:
    """Simulate and write one frame, and return its saturated pixels and cosmic rays by array."""
    hits: list[Hits] = []
    saturated: list[int] = []

    def images() -> Iterator[tuple[Header, npt.NDArray[np.generic]]]:
        options = night.options
        for array in range(len(night.detectors)):
            # an instrument with one array has no array number in its purpose
            purpose = (exposure.file, array) if len(night.detectors) > 1 else (exposure.file,)
            light = camera.expected(exposure, array)
            rate = options.cr_rate * exposure.exptime * exposure.coadds * light.size / FULL_SIZE**2
            rng = generator(options.seed, "cosmics", *purpose)
            hits.append(cosmic_rays(rng, (light.shape[0], light.shape[1]), rate))
            readout = camera.readout(exposure, array)
            rng = generator(options.seed, "pixels", *purpose)
            raw = read_out(rng, light, readout, hits[-1])
            if options.row_noise:
                rows = generator(options.seed, "rows", *purpose)
                raw += row_noise(rows, raw.shape, options.row_noise / readout.gain)
            saturated.append(int((raw >= readout.saturation).sum()))
            yield camera.image_header(exposure, array), camera.stored(exposure, raw)

    write_mef(folder / exposure.file, camera.primary_header(exposure), images())
    return Counts(tuple(saturated), tuple(hits))


def write_mef(
    path: Path, primary: Header, extensions: Iterable[tuple[Header, npt.NDArray[np.generic]]]
) -> Path:
    """Write a multi-extension FITS file, whole or not at all.

    `extensions` may be a generator, so that one array is in memory at a time. Data: float32, int32
    and uint8 as they are, uint16 with BZERO 32768.
    """
    unfinished = path.with_name(path.name + ".part")
    try:
        with unfinished.open("wb") as out:
            out.write(primary.tostring().encode("ascii"))
            for header, data in extensions:
                out.write(header.tostring().encode("ascii"))
                raw = _big_endian(data)
                out.write(raw)
                out.write(bytes(-len(raw) % FITS_BLOCK))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _big_endian(data: npt.NDArray[np.generic]) -> bytes:
    """The bytes of data as FITS has them."""
    if data.dtype == np.uint16:
        data = (data.astype(np.int32) - 32768).astype(np.int16)
    return data.astype(data.dtype.newbyteorder(">"), copy=False).tobytes()


# Light ------------------------------------------------------------------------------------------


def central_window(size: int) -> Window:
    """The central `size` square of an array."""
    corner = (FULL_SIZE - size) // 2
    return Window(corner, corner, size, corner)


def light_on_array(
    night: Night[AnyOptions], exposure: Exposure, array: int, window: Window
) -> Image:
    """Expected electrons per coadd of all light on a window of an array, without dark current."""
    detector, kept = night.detectors[array], cutout(night.options.size, window)
    image = np.zeros((window.size, window.size), np.float32)
    if exposure.field:
        add_stars(night, exposure, array, image, window)
        if exposure.field in night.galaxies:
            _add_galaxies(night, exposure, array, image, window)
    image *= detector.pattern.response[kept]
    light = _smooth_light(night, exposure, array, window) * exposure.exptime
    image += (detector.flat[kept] * light).astype(np.float32)
    return image


def cutout(size: int, window: Window) -> tuple[slice, slice]:
    """Where a window lies in the central `size` square of its array, on which patterns are kept."""
    corner = (FULL_SIZE - size) // 2
    y, x = window.true_y - corner, window.x - corner
    return slice(y, y + window.size), slice(x, x + window.size)


def add_stars(
    night: Night[AnyOptions],
    exposure: Exposure,
    array: int,
    image: Image,
    window: Window,
    brighter_than: float = 0.0,
) -> None:
    """Add the field's stars to a window's image, in electrons per coadd before RESPONSE, in place.

    brighter_than: electrons per coadd of the faintest star.
    """
    stars: Stars = _with_moving(night, exposure)
    psf, electrons = exposure.psf, stars.flux * exposure.scale * exposure.exptime
    radii, table = stamp_radii(psf, electrons), profile_table(psf)
    moments = _moments(exposure)
    for moment, moved in moments:
        ra, dec = stars.ra.copy(), stars.dec.copy()
        if exposure.moving is not None:
            ra[-1], dec[-1] = moved
        there: Stars = stars._replace(ra=ra, dec=dec)
        chosen = _near_window(night, moment, array, window, there, radii)
        chosen &= electrons >= brighter_than
        x, y, jacobians = _on_window(night, moment, array, window, ra[chosen], dec[chosen])
        light = electrons[chosen] / len(moments)
        render(image, x, y, light, jacobians, radii[chosen], table, CORE_HALF_SIZE)


def _with_moving(night: Night[AnyOptions], exposure: Exposure) -> Stars:
    """The stars of an exposure's field, and behind them the moving object, if there is one."""
    stars: Stars = night.stars[exposure.field]
    if exposure.moving is None:
        return stars
    mag = np.array([night.options.object_mag])
    return Stars(
        stars.field,
        [*stars.id, "moving"],
        np.append(stars.ra, exposure.moving[0]),
        np.append(stars.dec, exposure.moving[1]),
        np.append(stars.mag, mag),
        np.append(stars.flux, magnitude_to_flux(mag, night.zero_point)),
    )


def _moments(exposure: Exposure) -> list[tuple[Exposure, tuple[float, float]]]:
    """An exposure at moments of equal length, and where the moving object is in each.

    The telescope moves by its tracking rate and the object by its own; a moment is so short that
    neither moves by more than a third of the star's core.
    """
    place, pose = exposure.moving or (np.nan, np.nan), exposure.pose
    fastest = max(np.hypot(*exposure.tracking), np.hypot(*exposure.rate))
    duration = exposure.exptime * exposure.coadds
    if not fastest:
        return [(exposure, place)]
    longest = min(part.fwhm for part in exposure.psf) / 3.0
    count = int(np.clip(np.ceil(fastest * duration / longest), 1, MOST_MOMENTS))
    moments = []
    for seconds in duration * ((np.arange(count) + 0.5) / count - 0.5):
        (east, north), own = np.multiply(exposure.tracking, seconds), exposure.rate
        ra0, dec0 = offset(pose.ra0, pose.dec0, float(east), float(north))
        moment = exposure._replace(pose=pose._replace(ra0=ra0, dec0=dec0))
        moments.append((moment, offset(*place, own[0] * seconds, own[1] * seconds)))
    return moments


def _add_galaxies(
    night: Night[AnyOptions], exposure: Exposure, array: int, image: Image, window: Window
) -> None:
    """Add the field's galaxies, as `add_stars` adds stars."""
    galaxies, psf = night.galaxies[exposure.field], exposure.psf
    electrons = galaxies.flux * exposure.scale * exposure.exptime
    radii = galaxy_extent(galaxies.radius, psf)
    moments = _moments(exposure)
    for moment, _ in moments:
        chosen = np.flatnonzero(_near_window(night, moment, array, window, galaxies, radii))
        ra, dec = galaxies.ra[chosen], galaxies.dec[chosen]
        x, y, jacobians = _on_window(night, moment, array, window, ra, dec)
        for i, galaxy in enumerate(chosen):
            add_galaxy(
                image,
                x[i],
                y[i],
                electrons[galaxy] / len(moments),
                jacobians[i],
                exposure.pose.pa,
                psf,
                galaxies.radius[galaxy],
                galaxies.ratio[galaxy],
                galaxies.angle[galaxy],
                galaxies.bulge[galaxy],
            )


def _near_window(
    night: Night[AnyOptions],
    exposure: Exposure,
    array: int,
    window: Window,
    sources: Stars | Galaxies,
    radii: Array,
) -> npt.NDArray[np.bool_]:
    """Which sources of radii (arcsec) may shed light on a window."""
    half = window.size / 2
    return near_pixel(
        night.detectors[array].chip,
        exposure.pose,
        sources.ra,
        sources.dec,
        window.x + half,
        window.true_y + half,
        night.pixel_diagonal * half + radii,
    )


def _on_window(
    night: Night[AnyOptions], exposure: Exposure, array: int, window: Window, ra: Array, dec: Array
) -> tuple[Array, Array, Array]:
    """0-based pixels of sky positions in a window, and their jacobians (n, 4), arcsec per pixel."""
    chip, pose = night.detectors[array].chip, exposure.pose
    x, y = sky_to_pixel(chip, pose, ra, dec)
    jacobians = np.stack(jacobian(chip, x, y), axis=1) * pose.plate_scale
    return x - 1.0 - window.x, y - 1.0 - window.true_y, jacobians


def _smooth_light(
    night: Night[AnyOptions], exposure: Exposure, array: int, window: Window
) -> Array | float:
    """Sky, lamp and halo, e-/s in a mean pixel."""
    shape = shape_of_sky(night, exposure)
    halo = night.halo if exposure.field == "target" else None
    if halo is None and shape is FLAT:
        return exposure.light
    nodes = np.arange(-NODE_STEP, window.size + 2 * NODE_STEP, NODE_STEP)
    x, y = np.meshgrid(nodes + window.x + 1.0, nodes + window.true_y + 1.0)
    pixels, chip = np.arange(window.size), night.detectors[array].chip
    light: Array | float = exposure.light
    if shape is not FLAT:
        share = share_of_sky(shape, *plane(chip, x, y))
        light = exposure.light * RectBivariateSpline(nodes, nodes, share)(pixels, pixels)
    if halo is not None:
        of_halo = halo_light(halo, *pixel_to_sky(chip, exposure.pose, x, y))
        light = light + exposure.scale * RectBivariateSpline(nodes, nodes, of_halo)(pixels, pixels)
    return light


def shape_of_sky(night: Night[AnyOptions], exposure: Exposure) -> SkyShape:
    """How the light of the sky differs over the field in an exposure."""
    options = night.options
    return sky_shape(
        options.seed,
        exposure.field,
        exposure.mjd,
        options.sky_gradient,
        options.sky_pattern,
        night.half_field,
    )


# Truth ------------------------------------------------------------------------------------------


def write_truth(
    night: Night[AnyOptions], camera: Camera, counts: list[Counts], folder: Path
) -> None:
    """Write every truth file of a night into `folder`. counts: of each frame."""
    truth.write(
        folder,
        catalog=truth.source_catalog(night.stars, night.galaxies),
        frames=truth.frame_table(
            night.exposures,
            counts,
            night.zero_point,
            lambda exposure: (
                {"sky_shape": json.dumps(shape_of_sky(night, exposure))}
                | camera.frame_columns(exposure)
            ),
        ),
        cosmics=truth.cosmic_ray_table(night.exposures, counts),
        arrays=_planes(night),
        scene=_shared_scene(night) | camera.scene,
        bits=camera.bits,
    )


def _planes(night: Night[AnyOptions]) -> Iterator[truth.Planes]:
    """What is true of each array."""
    window = central_window(night.options.size)
    pixels = pixel_range(window.x, window.size) + 1.0
    for detector in night.detectors:
        area = pixel_area(detector.chip, pixels, pixels) / night.mean_area
        pattern = detector.pattern
        yield truth.Planes(
            detector.facts["name"], detector.flat, pattern.response, area, pattern.dark, pattern.bad
        )


def _shared_scene(night: Night[AnyOptions]) -> dict[str, object]:
    """What scene.json says of a night of any instrument."""
    return {
        "instrument": night.instrument,
        "filter": night.options.filter,
        "zp": night.zero_point,
        "pixel_scale": night.pixel_scale,
        "mean_pixel_area": night.mean_area,
        "halo": night.halo._asdict() if night.halo else None,
        "halo_law": truth.HALO,
        "sky_law": truth.SKY,
        "target": night.centres["target"],
        "sky_field": night.centres.get("sky"),
        "options": night.options._asdict(),
        "exptime": night.exptime,
        "science_field": "target",
        "science_kind": "science",
    }
