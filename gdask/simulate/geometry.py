"""From a pixel to the sky and back, by the true optics of a simulated frame.

pixel (x, y), 1-based on the full array
  -> (u, v) = cubic polynomial of the array (static distortion), arcsec in the instrument plane
  -> (u, v) * plate_scale + W(u / WARP_SCALE, v / WARP_SCALE), the frame's own scale and low-order
     distortion
  -> rotation by the true position angle -> gnomonic projection about the true pointing.
The way back is Newton's method on the polynomial, to rounding error: there is no table of an
inverse.

The projection is written for the simulator alone, in closed form, so that it shares nothing with
the geometry that reduces its frames. Angles are degrees, tangent-plane coordinates (xi East, eta
North) are arcsec.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Real = TypeVar("Real", float, Array)

ARCSEC_PER_RADIAN = 3600.0 * 180.0 / np.pi

FULL_SIZE = 2048  # pixels: side of the full array of either instrument
MIDDLE = 1024.5  # 1-based pixel coordinate of the middle of a full array

WARP_SCALE = 45.0  # arcsec: the coordinate that goes into W is about -1..1 over the field
WARP_TERMS = ("x2", "xy", "y2", "x3", "x2y", "xy2", "y3")

#: Convergence of the inverses: pixels (the first), arcsec (the second), and the most iterations.
PIXEL_TOLERANCE, PLANE_TOLERANCE = 1e-11 * FULL_SIZE, 1e-10
NEWTON_STEPS, FIXED_POINT_STEPS = 20, 30


class Chip(NamedTuple):
    """Static distortion of one array.

    Coefficients of 1, x, y, x2, xy, y2, x3, x2y, xy2, y3 for u and for v, arcsec.
    """

    u: Array
    v: Array


class Pose(NamedTuple):
    """Where a frame truly pointed."""

    ra0: float  # degrees
    dec0: float  # degrees
    pa: float  # position angle, degrees East of North
    plate_scale: float  # factor on the instrument plane, about 1
    warp: Array  # (2, 7), arcsec: coefficients of WARP_TERMS for u and for v


class Window(NamedTuple):
    """A square part of an array: 0-based corner as the header gives it, side, true first row."""

    x: int
    y: int
    size: int
    true_y: int


def pixel_range(first: int, count: int) -> Array:
    """Coordinates of `count` consecutive pixels from `first`."""
    return np.arange(first, first + count, dtype=np.float64)


def plane(chip: Chip, x: Real, y: Real) -> tuple[Real, Real]:
    """Instrument-plane position (arcsec) of 1-based full-array pixels."""
    terms = (1.0, x, y, x * x, x * y, y * y, x**3, x * x * y, x * y * y, y**3)
    return sum(c * t for c, t in zip(chip.u, terms)), sum(c * t for c, t in zip(chip.v, terms))


def jacobian(chip: Chip, x: Real, y: Real) -> tuple[Real, Real, Real, Real]:
    """du/dx, du/dy, dv/dx, dv/dy in arcsec per pixel at 1-based full-array pixels."""
    dx = (1.0, 2 * x, y, 3 * x * x, 2 * x * y, y * y)
    dy = (1.0, x, 2 * y, x * x, 2 * x * y, 3 * y * y)
    by_x, by_y = (1, 3, 4, 6, 7, 8), (2, 4, 5, 7, 8, 9)
    return (
        sum(chip.u[i] * t for i, t in zip(by_x, dx)),
        sum(chip.u[i] * t for i, t in zip(by_y, dy)),
        sum(chip.v[i] * t for i, t in zip(by_x, dx)),
        sum(chip.v[i] * t for i, t in zip(by_y, dy)),
    )


def pixel_area(chip: Chip, x: Array, y: Array) -> Array:
    """Solid angle of a pixel (arcsec^2) on the grid of 1-based columns x and rows y: (ny, nx)."""
    area = np.zeros((np.size(y), np.size(x)))
    for power in _area_polynomial(chip)[::-1]:  # Horner in y; each coefficient is a polynomial in x
        area *= np.reshape(y, (-1, 1))
        area += np.polyval(power[::-1], np.ravel(x))
    return np.abs(area)


def _area_polynomial(chip: Chip) -> Array:
    """Coefficients [power of y, power of x] of du/dx dv/dy - du/dy dv/dx."""
    powers = ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2), (3, 0), (2, 1), (1, 2), (0, 3))
    by_x, by_y = np.zeros((2, 3, 3)), np.zeros((2, 3, 3))
    for axis, coefficients in enumerate(chip):
        for c, (i, j) in zip(coefficients, powers):
            if i:
                by_x[axis, j, i - 1] += i * c
            if j:
                by_y[axis, j - 1, i] += j * c
    area = np.zeros((5, 5))
    for j, i in np.ndindex(3, 3):
        area[j : j + 3, i : i + 3] += by_x[0, j, i] * by_y[1] - by_y[0, j, i] * by_x[1]
    return area


def plane_to_pixel(chip: Chip, u: Array, v: Array) -> tuple[Array, Array]:
    """The 1-based full-array pixel whose `plane` position is (u, v).

    Newton's method from the solution that is linear about the middle of the array.
    """
    ux, uy, vx, vy = jacobian(chip, MIDDLE, MIDDLE)
    u0, v0 = plane(chip, MIDDLE, MIDDLE)
    determinant = ux * vy - uy * vx
    x = MIDDLE + (vy * (u - u0) - uy * (v - v0)) / determinant
    y = MIDDLE + (ux * (v - v0) - vx * (u - u0)) / determinant
    for _ in range(NEWTON_STEPS):
        trial_u, trial_v = plane(chip, x, y)
        left_u, left_v = u - trial_u, v - trial_v
        slopes = jacobian(chip, x, y)
        area = slopes[0] * slopes[3] - slopes[1] * slopes[2]
        dx = (slopes[3] * left_u - slopes[1] * left_v) / area
        dy = (slopes[0] * left_v - slopes[2] * left_u) / area
        x, y = x + dx, y + dy
        if not np.any(np.hypot(dx, dy) > PIXEL_TOLERANCE):
            break
    return x, y


def distort(pose: Pose, u: Array, v: Array) -> tuple[Array, Array]:
    """Apply the frame's own scale and warp to instrument-plane positions (arcsec)."""
    x, y = u / WARP_SCALE, v / WARP_SCALE
    terms = (x * x, x * y, y * y, x**3, x * x * y, x * y * y, y**3)
    warp_u, warp_v = (sum(c * t for c, t in zip(row, terms)) for row in pose.warp)
    return pose.plate_scale * u + warp_u, pose.plate_scale * v + warp_v


def undistort(pose: Pose, u: Array, v: Array) -> tuple[Array, Array]:
    """Invert `distort` by fixed-point iteration, which contracts a thousandfold each time."""
    trial_u, trial_v = u, v
    for _ in range(FIXED_POINT_STEPS):
        bent_u, bent_v = distort(pose, trial_u, trial_v)
        trial_u, trial_v = trial_u + (u - bent_u), trial_v + (v - bent_v)
        if not np.any(np.hypot(u - bent_u, v - bent_v) > PLANE_TOLERANCE):
            break
    return trial_u, trial_v


def sky_to_pixel(chip: Chip, pose: Pose, ra: Array, dec: Array) -> tuple[Array, Array]:
    """1-based full-array pixel of each sky position (degrees)."""
    xi, eta = project(ra, dec, pose.ra0, pose.dec0)
    u, v = undistort(pose, *rotate(xi, eta, -pose.pa))
    return plane_to_pixel(chip, u, v)


def pixel_to_sky(chip: Chip, pose: Pose, x: Array, y: Array) -> tuple[Array, Array]:
    """Sky position (degrees) of each 1-based full-array pixel."""
    xi, eta = rotate(*distort(pose, *plane(chip, x, y)), pose.pa)
    return deproject(xi, eta, pose.ra0, pose.dec0)


def near_pixel(
    chip: Chip, pose: Pose, ra: Array, dec: Array, x: float, y: float, radius: Array
) -> npt.NDArray[np.bool_]:
    """Which sky positions lie within `radius` arcsec, to a per cent, of a 1-based pixel (x, y)."""
    u, v = rotate(*project(ra, dec, pose.ra0, pose.dec0), -pose.pa)
    u0, v0 = plane(chip, x, y)
    return np.hypot(u - u0, v - v0) < radius + 1.0


# Projection and rotation ------------------------------------------------------------------------


def project(ra: Array, dec: Array, ra0: float, dec0: float) -> tuple[Array, Array]:
    """Project `ra`, `dec` gnomonically (TAN) about (`ra0`, `dec0`): xi, eta in arcsec.

    Calabretta & Greisen 2002, A&A 395, 1077, section 5.1.3, by way of unit vectors.
    """
    east, north, outward = _tangent_frame(ra0, dec0)
    star = _unit_vector(ra, dec)
    depth = _dot(outward, star)
    return ARCSEC_PER_RADIAN * _dot(east, star) / depth, (
        ARCSEC_PER_RADIAN * _dot(north, star) / depth
    )


def deproject(xi: Array, eta: Array, ra0: float, dec0: float) -> tuple[Array, Array]:
    """Invert `project`: ra (0..360), dec in degrees."""
    east, north, outward = (vector[:, None] for vector in _tangent_frame(ra0, dec0))
    star = (
        east * np.ravel(xi) / ARCSEC_PER_RADIAN + north * np.ravel(eta) / ARCSEC_PER_RADIAN
    ) + outward
    star /= np.sqrt((star * star).sum(axis=0))
    ra = np.degrees(np.arctan2(star[1], star[0])) % 360.0
    dec = np.degrees(np.arctan2(star[2], np.hypot(star[0], star[1])))
    return ra.reshape(np.shape(xi)), dec.reshape(np.shape(xi))


def offset(ra0: float, dec0: float, xi: float, eta: float) -> tuple[float, float]:
    """The sky position (xi, eta) arcsec East and North of (ra0, dec0) in the tangent plane."""
    ra, dec = deproject(np.array([xi]), np.array([eta]), ra0, dec0)
    return float(ra[0]), float(dec[0])


def rotate(x: Real, y: Real, pa: float) -> tuple[Real, Real]:
    """Rotate the instrument plane (x, y) by a position angle to the tangent plane (xi, eta).

    xi = x cos PA + y sin PA, eta = -x sin PA + y cos PA.
    """
    c, s = np.cos(np.radians(pa)), np.sin(np.radians(pa))
    return c * x + s * y, c * y - s * x


def pointing(target: tuple[float, float], p: float, q: float, pa: float) -> tuple[float, float]:
    """Sky position of the offset (p, q) arcsec from the target at a position angle (degrees)."""
    xi, eta = rotate(p, q, pa)
    return offset(*target, float(xi), float(eta))


def _unit_vector(ra: Array, dec: Array) -> Array:
    """Unit vectors towards sky positions, (3, n)."""
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])


def _dot(axis: Array, vectors: Array) -> Array:
    """Product of an axis with each of the vectors (3, n)."""
    return axis[0] * vectors[0] + axis[1] * vectors[1] + axis[2] * vectors[2]


def _tangent_frame(ra0: float, dec0: float) -> tuple[Array, Array, Array]:
    """Unit vectors East, North and outwards at (ra0, dec0)."""
    a, d = np.radians(ra0), np.radians(dec0)
    east = np.array([-np.sin(a), np.cos(a), 0.0])
    north = np.array([-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)])
    return east, north, np.array([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])
