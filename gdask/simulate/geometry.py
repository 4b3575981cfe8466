"""From a pixel to the sky and back, by the true optics of a simulated frame.

pixel (x, y), 1-based on the full array
  -> (u, v) = cubic polynomial of the array (static distortion), arcsec in the instrument plane
  -> (u, v) * plate_scale + W(u / WARP_SCALE, v / WARP_SCALE)      the frame's own scale and low-order distortion
  -> rotation by the true position angle -> gnomonic projection about the true pointing.
The way back is Newton's method on the polynomial, to rounding: no table of an inverse.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gdask.simulate.sky import deproject, project, rotate

Array = npt.NDArray[np.float64]

WARP_SCALE = 45.0  # arcsec: the coordinate that goes into W is about -1..1 over the field
WARP_TERMS = ("x2", "xy", "y2", "x3", "x2y", "xy2", "y3")


class Chip(NamedTuple):
    """Static distortion of one array: coefficients of 1, x, y, x2, xy, y2, x3, x2y, xy2, y3 for u and for v."""

    u: Array
    v: Array


class Pose(NamedTuple):
    """Where a frame truly pointed: degrees, degrees, degrees East of North, factor, arcsec (2, 7)."""

    ra0: float
    dec0: float
    pa: float
    plate_scale: float
    warp: Array


def plane(chip: Chip, x: Array, y: Array) -> tuple[Array, Array]:
    """Instrument-plane position (arcsec) of 1-based full-array pixels."""
    terms = (1.0, x, y, x * x, x * y, y * y, x**3, x * x * y, x * y * y, y**3)
    return sum(c * t for c, t in zip(chip.u, terms)), sum(c * t for c, t in zip(chip.v, terms))


def jacobian(chip: Chip, x: Array, y: Array) -> tuple[Array, Array, Array, Array]:
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
    """Solid angle of a pixel, arcsec^2, on the grid of 1-based columns x (nx) and rows y (ny): (ny, nx)."""
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


def pixel(chip: Chip, u: Array, v: Array) -> tuple[Array, Array]:
    """The 1-based full-array pixel whose `plane` position is (u, v), by Newton's method from the linear solution."""
    ux, uy, vx, vy = (float(j) for j in jacobian(chip, 1024.5, 1024.5))
    u0, v0 = plane(chip, 1024.5, 1024.5)
    det = ux * vy - uy * vx
    x = 1024.5 + (vy * (u - u0) - uy * (v - v0)) / det
    y = 1024.5 + (ux * (v - v0) - vx * (u - u0)) / det
    for _ in range(20):
        pu, pv = plane(chip, x, y)
        ux, uy, vx, vy = jacobian(chip, x, y)
        det = ux * vy - uy * vx
        dx, dy = (vy * (u - pu) - uy * (v - pv)) / det, (ux * (v - pv) - vx * (u - pu)) / det
        x, y = x + dx, y + dy
        if not np.any(np.hypot(dx, dy) > 1e-11 * 2048):
            break
    return x, y


def distort(pose: Pose, u: Array, v: Array) -> tuple[Array, Array]:
    """The frame's own scale and warp, applied to instrument-plane positions (arcsec)."""
    x, y = u / WARP_SCALE, v / WARP_SCALE
    terms = (x * x, x * y, y * y, x**3, x * x * y, x * y * y, y**3)
    wx, wy = (sum(c * t for c, t in zip(row, terms)) for row in pose.warp)
    return pose.plate_scale * u + wx, pose.plate_scale * v + wy


def undistort(pose: Pose, u: Array, v: Array) -> tuple[Array, Array]:
    """The inverse of `distort`, by fixed-point iteration (it contracts a thousandfold each time)."""
    a, b = u, v
    for _ in range(30):
        pu, pv = distort(pose, a, b)
        a, b = a + (u - pu), b + (v - pv)
        if not np.any(np.hypot(u - pu, v - pv) > 1e-10):
            break
    return a, b


def sky_to_pixel(chip: Chip, pose: Pose, ra: Array, dec: Array) -> tuple[Array, Array]:
    """1-based full-array pixel of each sky position (degrees)."""
    xi, eta = project(ra, dec, pose.ra0, pose.dec0)
    u, v = undistort(pose, *rotate(xi, eta, -pose.pa))
    return pixel(chip, u, v)


def within(
    chip: Chip, pose: Pose, ra: Array, dec: Array, x: float, y: float, radius: Array
) -> Array:
    """Which sky positions lie within `radius` arcsec (to a per cent) of the 1-based full-array pixel (x, y)."""
    u, v = rotate(*project(ra, dec, pose.ra0, pose.dec0), -pose.pa)
    u0, v0 = plane(chip, x, y)
    return np.hypot(u - u0, v - v0) < radius + 1.0


def pixel_to_sky(chip: Chip, pose: Pose, x: Array, y: Array) -> tuple[Array, Array]:
    """Sky position (degrees) of each 1-based full-array pixel."""
    xi, eta = rotate(*distort(pose, *plane(chip, x, y)), pose.pa)
    return deproject(xi, eta, pose.ra0, pose.dec0)
