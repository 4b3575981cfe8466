"""What is between the sky and FLAMINGOS-2's array: scale, lit circle, the guide probe's shadow."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import erf

from gdask.simulate.geometry import Chip, Pose, pixel_to_sky, plane, sky_to_pixel
from gdask.simulate.plan import Exposure
from gdask.types import Image

Array = npt.NDArray[np.float64]

DISTORTION_RADIUS = 180.0  # arcsec from the centre, where the distortion is given


class Circle(NamedTuple):
    """The part of the array that light reaches."""

    x: float  # 0-based centre
    y: float
    radius: float  # pixels
    edge: float  # pixels over which the light fades
    stray: float  # fraction of the light that is left outside


class Probe(NamedTuple):
    """A guide probe's arm, fixed to its guide star, and its shadow."""

    ra: float  # of the guide star, degrees
    dec: float  # degrees
    direction: float  # from the tip to the arm's base, degrees, +x towards +y
    depth: float = 0.4  # fraction of the light that the shadow takes
    half_width: float = 35.0  # pixels
    soft: float = 12.0  # pixels over which the shadow fades


SHADOW = (
    "1 - depth * (erf((c + w) / (soft sqrt 2)) - erf((c - w) / (soft sqrt 2))) / 2"
    " / (1 + exp(-a / soft)), with a along the arm's direction and c across it, pixels from"
    " (probe_x, probe_y), 0-based on the full array; w: half_width"
)
#: Pixels from the edge of the circle inwards to the tip, without a dither, by option `probe`.
PROBE_INTRUSION = {"edge": 40.0, "deep": 350.0}
NO_PROBE_INTRUSION = -1200.0  # pixels: far outside
PROBE_DIRECTION = 225.0  # degrees


def on_axes(chip: Chip, scale: float, cd: Array) -> Chip:
    """The same array with scale and axes of a CD matrix (2, 2), degrees, at position angle 0."""
    (c11, c12), (c21, c22) = cd * 3600.0 / scale
    return Chip(c12 * chip.u + c11 * chip.v, c22 * chip.u + c21 * chip.v)


def optics(
    scale: float, distortion: float, centre: tuple[float, float], origin: tuple[float, float]
) -> Chip:
    """From pixels to the instrument plane: u (East at position angle 0) along y, v (North) along x.

    u = scale Y (1 + k (X^2 + Y^2)), v = scale X (1 + k (X^2 + Y^2)) with X, Y from the centre of
    the field, less their values at the origin (where the telescope points); 1-based pixels, scale
    in arcsec per pixel. k: `distortion` (a fraction) at DISTORTION_RADIUS.
    """
    k = distortion * (scale / DISTORTION_RADIUS) ** 2
    cx, cy = centre
    u = scale * np.array(
        [
            -cy - k * (cx * cx * cy + cy**3),
            2 * k * cx * cy,
            1 + k * (cx * cx + 3 * cy * cy),
            -k * cy,
            -2 * k * cx,
            -3 * k * cy,
            0.0,
            k,
            0.0,
            k,
        ]
    )
    v = scale * np.array(
        [
            -cx - k * (cy * cy * cx + cx**3),
            1 + k * (cy * cy + 3 * cx * cx),
            2 * k * cx * cy,
            -3 * k * cx,
            -2 * k * cy,
            -k * cx,
            k,
            0.0,
            k,
            0.0,
        ]
    )
    u0, v0 = plane(Chip(u, v), *origin)
    u[0], v[0] = u[0] - u0, v[0] - v0
    return Chip(u, v)


def distance_outside(circle: Circle, x: Array, y: Array) -> Array:
    """How far outside the circle (pixels; negative inside) a grid is: (ny, nx).

    x, y: 0-based columns and rows of the grid.
    """
    return np.hypot(np.ravel(x) - circle.x, np.reshape(y, (-1, 1)) - circle.y) - circle.radius


def illumination(circle: Circle, x: Array, y: Array) -> Image:
    """Fraction of the light that reaches the grid of 0-based columns x and rows y: (ny, nx)."""
    t = np.clip(distance_outside(circle, x, y) / circle.edge, 0.0, 1.0)
    return (1.0 - (1.0 - circle.stray) * t * t * (3.0 - 2.0 * t)).astype(np.float32)


def guide_probe(
    intrusion: str, circle: Circle, chip: Chip, target: tuple[float, float], pa: float
) -> Probe:
    """A probe whose guide star lies inside the circle, without a dither, by an `intrusion`.

    intrusion: a key of PROBE_INTRUSION, or none. target: degrees. pa: position angle, degrees.
    """
    angle = np.radians(PROBE_DIRECTION)
    radius = circle.radius - PROBE_INTRUSION.get(intrusion, NO_PROBE_INTRUSION)
    x = circle.x + radius * np.cos(angle) + 1.0
    y = circle.y + radius * np.sin(angle) + 1.0
    pose = Pose(*target, pa, 1.0, np.zeros((2, 7)))
    ra, dec = pixel_to_sky(chip, pose, np.array([x]), np.array([y]))
    depth = 0.4 if intrusion in PROBE_INTRUSION else 0.0
    return Probe(float(ra[0]), float(dec[0]), PROBE_DIRECTION, depth=depth)


def probe_tip(probe: Probe, chip: Chip, exposure: Exposure) -> tuple[float, float]:
    """0-based full-array pixel of the tip in a frame; NaN where there is no shadow."""
    if exposure.field != "target" or not probe.depth:
        return np.nan, np.nan
    x, y = sky_to_pixel(chip, exposure.pose, np.array([probe.ra]), np.array([probe.dec]))
    return float(x[0]) - 1.0, float(y[0]) - 1.0


def shadow(probe: Probe, tip: tuple[float, float], x: Array, y: Array) -> Image:
    """Fraction of the light that the arm leaves on a grid: (ny, nx). The text SHADOW is the law.

    tip: 0-based full-array pixel. x, y: 0-based full-array columns and rows of the grid.
    """
    c, s = np.cos(np.radians(probe.direction)), np.sin(np.radians(probe.direction))
    dx, dy = np.ravel(x) - tip[0], np.reshape(y, (-1, 1)) - tip[1]
    along, across = c * dx + s * dy, c * dy - s * dx
    width = probe.soft * np.sqrt(2.0)
    left = erf((across - probe.half_width) / width)
    profile = (erf((across + probe.half_width) / width) - left) / 2.0
    fade = 1.0 + np.exp(-np.clip(along / probe.soft, -50.0, 50.0))
    return (1.0 - probe.depth * profile / fade).astype(np.float32)
