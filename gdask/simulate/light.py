"""Light on the arrays of a night: stars, galaxies, a moving object, the sky, a halo.

Light of the sky, of the lamp and of a halo passes FLAT = RESPONSE x AREA (AREA: a pixel's solid
angle over the mean); a star's or a galaxy's light passes RESPONSE alone, spread over the pixels by
their true shape on the sky.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.interpolate import RectBivariateSpline

from gdask.simulate.detector import BadBits, Pattern
from gdask.simulate.gemini_headers import Facts
from gdask.simulate.geometry import (
    FULL_SIZE,
    Chip,
    Window,
    jacobian,
    near_pixel,
    offset,
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
from gdask.simulate.sky_light import FLAT, SkyShape, share_of_sky, sky_shape
from gdask.types import Image

Array = npt.NDArray[np.float64]
AnyOptions = TypeVar("AnyOptions", GsaoiOptions, F2Options)
NODE_STEP = 16  # pixels between nodes at which smooth light and pixel areas are evaluated
MOST_MOMENTS = 200  # in which a trailing star is drawn


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
