"""What stands between the sky and FLAMINGOS-2's array: the scale, the lit circle, the guide probe's shadow."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import erf

from gdask.simulate.exposure import Exposure
from gdask.simulate.geometry import Chip, Pose, pixel_to_sky, plane, sky_to_pixel
from gdask.types import Image

Array = npt.NDArray[np.float64]

DISTORTION_RADIUS = 180.0  # arcsec from the centre, where the distortion is given


class Circle(NamedTuple):
    """The part of the array that light reaches: 0-based centre, radius, pixels over which it fades, light outside."""

    x: float
    y: float
    radius: float
    edge: float
    stray: float


class Probe(NamedTuple):
    """A guide probe's arm, fixed to its guide star: degrees, direction to its base (degrees, +x towards +y).

    Its shadow takes `depth` of the light, is 2 x half_width wide and fades over `soft` (all pixels).
    """

    ra: float
    dec: float
    direction: float
    depth: float = 0.4
    half_width: float = 35.0
    soft: float = 12.0


SHADOW = (
    "1 - depth * (erf((c + w) / (soft sqrt 2)) - erf((c - w) / (soft sqrt 2))) / 2 / (1 + exp(-a / soft)), "
    "with a along the arm's direction and c across it, pixels from (probe_x, probe_y), 0-based on the full array; "
    "w: half_width"
)
INTRUSION = {
    "edge": 40.0,
    "deep": 350.0,
}  # pixels from the edge of the circle to the tip, without a dither
DIRECTION = 225.0  # degrees


def optics(
    scale: float, distortion: float, centre: tuple[float, float], origin: tuple[float, float]
) -> Chip:
    """From pixels to the instrument plane: u (East at position angle 0) along y, v (North) along x.

    u = scale Y (1 + k (X^2 + Y^2)), v = scale X (1 + k (X^2 + Y^2)) with X, Y from the centre of the field, less
    their values at the origin (where the telescope points); 1-based pixels. k: `distortion` at DISTORTION_RADIUS.
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


def beyond(circle: Circle, x: Array, y: Array) -> Array:
    """How far outside the circle (pixels; negative inside) the grid of 0-based columns x and rows y is: (ny, nx)."""
    return np.hypot(np.ravel(x) - circle.x, np.reshape(y, (-1, 1)) - circle.y) - circle.radius


def illumination(circle: Circle, x: Array, y: Array) -> Image:
    """Light that reaches the grid of 0-based columns x and rows y, as a fraction: (ny, nx)."""
    t = np.clip(beyond(circle, x, y) / circle.edge, 0.0, 1.0)
    return (1.0 - (1.0 - circle.stray) * t * t * (3.0 - 2.0 * t)).astype(np.float32)


def guide_probe(
    intrusion: str, circle: Circle, chip: Chip, target: tuple[float, float], pa: float
) -> Probe:
    """A probe whose guide star lies `intrusion` (a key of INTRUSION, or none) inside the circle without a dither."""
    depth = INTRUSION.get(intrusion, -1200.0)
    angle = np.radians(DIRECTION)
    x = circle.x + (circle.radius - depth) * np.cos(angle) + 1.0
    y = circle.y + (circle.radius - depth) * np.sin(angle) + 1.0
    ra, dec = pixel_to_sky(
        chip, Pose(*target, pa, 1.0, np.zeros((2, 7))), np.array([x]), np.array([y])
    )
    return Probe(
        float(ra[0]), float(dec[0]), DIRECTION, depth=0.4 if intrusion in INTRUSION else 0.0
    )


def probe_tip(probe: Probe, chip: Chip, exposure: Exposure) -> tuple[float, float]:
    """0-based full-array pixel of the tip in a frame; NaN where there is no shadow."""
    if exposure.field != "target" or not probe.depth:
        return np.nan, np.nan
    x, y = sky_to_pixel(chip, exposure.pose, np.array([probe.ra]), np.array([probe.dec]))
    return float(x[0]) - 1.0, float(y[0]) - 1.0


def shadow(probe: Probe, tip: tuple[float, float], x: Array, y: Array) -> Image:
    """What the arm leaves of the light on the grid of 0-based full-array columns x and rows y: (ny, nx). See SHADOW."""
    c, s = np.cos(np.radians(probe.direction)), np.sin(np.radians(probe.direction))
    dx, dy = np.ravel(x) - tip[0], np.reshape(y, (-1, 1)) - tip[1]
    along, across = c * dx + s * dy, c * dy - s * dx
    wide = probe.soft * np.sqrt(2.0)
    profile = (
        erf((across + probe.half_width) / wide) - erf((across - probe.half_width) / wide)
    ) / 2.0
    return (
        1.0 - probe.depth * profile / (1.0 + np.exp(-np.clip(along / probe.soft, -50.0, 50.0)))
    ).astype(np.float32)
