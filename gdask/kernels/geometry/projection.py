"""The exact chain of projections between the pixels of one array and the sky.

The chain is: frame pixel, full-array pixel, instrument plane, tangent plane, sky, and back. The
instrument plane is in arcsec about the pointing origin. A static polynomial takes a pixel there,
and a fitted one moves it by a few mas. Both directions are evaluated point by point in compiled
scalar code with a fixed number of iterations, so that a point has the same bits in any company.

Arguments of compiled functions, all from `pack_geometry`: c, coefficients of the static polynomials
[axis, power of y, power of x]; k, those of the fitted ones; p, the pointing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gdask.kernels.arithmetic import arctangent, sine_cosine
from gdask.kernels.compiled import njit
from gdask.model import GdaskError
from gdask.types import Degrees, Pixels

Floats = npt.NDArray[np.float64]

ARCSEC_PER_RADIAN = 180 * 3600 / math.pi
#: Unit (arcsec) of the plane coordinates of the fitted correction, in which all its terms are of
#: order 1.
CORRECTION_UNIT = 60.0
#: Arcsec to which terms of a fitted correction are rounded (0.001 mas). Linear algebra differs in
#: its last bits from processor to processor (1e-12 arcsec); unrounded, so would all pixels.
CORRECTION_STEP = 2.0**-20
#: Newton steps of the inverse. Quadratic convergence needs 5 over a whole GSAOI array, from the
#: worst start.
NEWTON_STEPS = 9
#: Points that are not worth loading compiled code for.
FEW_POINTS = 16
#: The last Newton step (pixels) above which a point has not converged.
NEWTON_TOLERANCE = 1e-7


class Geometry(NamedTuple):
    """The pixels of one array of one frame on the sky, as plain values that can be hashed.

    x0, y0: 1-based full-array pixel of the frame's 0-based pixel (0, 0); a region of interest
        starts elsewhere.
    distortion_x, distortion_y: polynomials of the full-array pixel, arcsec in the instrument plane
        (x East, y North at position angle 0); terms 1, x, y, x2, xy, y2, x3, x2y ... to any order.
    ra, dec: pointing (degrees), where the plane is (0, 0).
    pa: position angle (degrees), xi = cos(pa) x + sin(pa) y, eta = -sin(pa) x + cos(pa) y.
    correction_x, correction_y: polynomials of (x / 60, y / 60) in the static plane, arcsec, added
        in that plane.
    """

    x0: Pixels
    y0: Pixels
    distortion_x: tuple[float, ...]
    distortion_y: tuple[float, ...]
    ra: Degrees
    dec: Degrees
    pa: Degrees
    correction_x: tuple[float, ...] = ()
    correction_y: tuple[float, ...] = ()


def to_plane(geometry: Geometry, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Convert frame pixels (0-based) to the instrument plane (arcsec), correction included.

    Arrays of any shapes that broadcast.
    """
    return _evaluate(_plane_points, pack_geometry(geometry), x, y)


def from_plane(geometry: Geometry, xp: npt.ArrayLike, yp: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Convert the instrument plane (arcsec) to frame pixels (0-based), exact to 1e-7 pixel.

    NaN where Newton's method does not converge.
    """
    return _evaluate(_pixel_points, pack_geometry(geometry), xp, yp)


def to_sky(geometry: Geometry, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Convert frame pixels (0-based) to RA, Dec (degrees), by the exact gnomonic projection."""
    return _evaluate(_sky_points, pack_geometry(geometry), x, y)


def from_sky(geometry: Geometry, ra: npt.ArrayLike, dec: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Convert RA, Dec (degrees) to frame pixels (0-based).

    NaN on the other hemisphere and where Newton's method does not converge.
    """
    return _evaluate(_array_points, pack_geometry(geometry), ra, dec)


def pixel_area(geometry: Geometry, x: npt.ArrayLike, y: npt.ArrayLike) -> Floats:
    """Return the area of pixels in the tangent plane (arcsec^2): the Jacobian of `to_plane`.

    It is the area on the sky to 3e-7.
    """
    return _evaluate(_area_points, pack_geometry(geometry), x, y)[0]


def tangent_plane(
    ra: npt.ArrayLike, dec: npt.ArrayLike, ra0: Degrees, dec0: Degrees
) -> tuple[Floats, Floats]:
    """Convert RA, Dec (degrees) to xi, eta (arcsec, East and North) about (ra0, dec0).

    NaN on the other hemisphere.
    """
    return _evaluate(_project_points, (pointing_values(ra0, dec0, 0.0),), ra, dec)


def tangent_sky(
    xi: npt.ArrayLike, eta: npt.ArrayLike, ra0: Degrees, dec0: Degrees
) -> tuple[Floats, Floats]:
    """Convert xi, eta (arcsec, East and North) about (ra0, dec0) to RA, Dec (degrees)."""
    return _evaluate(_deproject_points, (pointing_values(ra0, dec0, 0.0),), xi, eta)


@lru_cache(maxsize=4096)
def pack_geometry(geometry: Geometry) -> tuple[Floats, Floats, Floats]:
    """Return the geometry as read-only arrays for compiled code.

    They are the static and the fitted coefficients, and the pointing. Coefficients are [axis, power
    of y, power of x]. The pointing is (RA, sin Dec, cos Dec, cos PA, sin PA, x0, y0).
    """
    point = np.concatenate(
        [pointing_values(geometry.ra, geometry.dec, geometry.pa), [geometry.x0, geometry.y0]]
    )
    arrays = (
        _coefficient_arrays(geometry.distortion_x, geometry.distortion_y),
        _coefficient_arrays(geometry.correction_x, geometry.correction_y),
        point,
    )
    for array in arrays:
        array.setflags(write=False)
    return arrays


def pointing_values(ra: Degrees, dec: Degrees, pa: Degrees) -> Floats:
    """Return (RA, sin Dec, cos Dec, cos PA, sin PA), RA in degrees."""
    (sin_dec, cos_dec), (sin_pa, cos_pa) = sine_cosine.few(dec), sine_cosine.few(pa)
    return np.array([ra, sin_dec, cos_dec, cos_pa, sin_pa])


def rounded_terms(terms: Sequence[float]) -> tuple[float, ...]:
    """Round the terms of a correction (arcsec at CORRECTION_UNIT) to whole CORRECTION_STEPs."""
    return tuple(round(float(value) / CORRECTION_STEP) * CORRECTION_STEP for value in terms)


def polynomial_order(count: int) -> int:
    """Return the order of a complete polynomial in x and y with `count` terms, -1 for none.

    Raises GdaskError if no order has so many terms.
    """
    order = (math.isqrt(8 * count + 1) - 3) // 2
    if (order + 1) * (order + 2) // 2 != count:
        raise GdaskError(
            f"a polynomial in x and y came with {count} terms;"
            " expected 1, 3, 6, 10 ...: give all terms"
        )
    return order


def powers(order: int) -> list[tuple[int, int]]:
    """Return the powers (of x, of y) of the terms 1, x, y, x2, xy, y2 ... up to `order`."""
    return [(d - k, k) for d in range(order + 1) for k in range(d + 1)]


def _coefficient_arrays(cx: tuple[float, ...], cy: tuple[float, ...]) -> Floats:
    """Return the terms of two polynomials as one array [axis, power of y, power of x]."""
    order = max(polynomial_order(len(cx)), polynomial_order(len(cy)))
    out = np.zeros((2, order + 1, order + 1))
    for axis, terms in enumerate((cx, cy)):
        for (i, j), value in zip(powers(polynomial_order(len(terms))), terms, strict=True):
            out[axis, j, i] = value
    return out


def _evaluate(
    points: Any, packed: tuple[Floats, ...], a: npt.ArrayLike, b: npt.ArrayLike
) -> tuple[Floats, Floats]:
    """Run a compiled loop over points on inputs that broadcast.

    The inputs are converted to float64, and the results have their shape. A few points that come
    before compiled code is loaded (0.6 s) do not wait for it; the bits are the same.
    """
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    if a.size <= FEW_POINTS and not points.is_loaded and np.isfinite(a + b).all():
        points = points.few
    out_a, out_b = points(*packed, np.ascontiguousarray(a).ravel(), np.ascontiguousarray(b).ravel())
    return out_a.reshape(a.shape)[()], out_b.reshape(a.shape)[()]


@njit(cache=True, nogil=True)
def _polynomial(c: Floats, x: float, y: float) -> tuple[float, float, float]:
    """Return sum c[j, i] x^i y^j, i + j <= order, and its derivatives by x and y.

    It is evaluated by Horner's rule.
    """
    n = c.shape[0]
    value = 0.0
    dx = 0.0
    dy = 0.0
    for j in range(n - 1, -1, -1):
        row = 0.0
        slope = 0.0
        for i in range(n - 1 - j, -1, -1):
            slope = slope * x + row
            row = row * x + c[j, i]
        dy = dy * y + value
        dx = dx * y + slope
        value = value * y + row
    return value, dx, dy


@njit(cache=True, nogil=True)
def plane_point(
    c: Floats, k: Floats, xf: float, yf: float
) -> tuple[float, float, float, float, float, float]:
    """Return the plane position (arcsec) of a full-array pixel, and its derivatives.

    In this order: xp, yp, dxp/dx, dxp/dy, dyp/dx, dyp/dy.
    """
    xs, a, b = _polynomial(c[0], xf, yf)
    ys, d, e = _polynomial(c[1], xf, yf)
    if k.shape[1] == 0:
        return xs, ys, a, b, d, e
    u, ux, uy = _polynomial(k[0], xs / CORRECTION_UNIT, ys / CORRECTION_UNIT)
    v, vx, vy = _polynomial(k[1], xs / CORRECTION_UNIT, ys / CORRECTION_UNIT)
    ux, uy = 1 + ux / CORRECTION_UNIT, uy / CORRECTION_UNIT
    vx, vy = vx / CORRECTION_UNIT, 1 + vy / CORRECTION_UNIT
    return xs + u, ys + v, ux * a + uy * d, ux * b + uy * e, vx * a + vy * d, vx * b + vy * e


@njit(cache=True, nogil=True)
def pixel_point(c: Floats, k: Floats, xp: float, yp: float) -> tuple[float, float]:
    """Return the full-array pixel of a plane position (arcsec), by Newton's method.

    The number of steps is fixed. NaN where the polynomial turns over on the way, and where the last
    step is too long.
    """
    x = 0.0
    y = 0.0
    step = 0.0
    handedness = c[0, 0, 1] * c[1, 1, 0] - c[0, 1, 0] * c[1, 0, 1]
    for _ in range(NEWTON_STEPS):
        u, v, a, b, d, e = plane_point(c, k, x, y)
        det = a * e - b * d
        if not det * handedness > 0:
            return math.nan, math.nan
        sx = ((xp - u) * e - (yp - v) * b) / det
        sy = ((yp - v) * a - (xp - u) * d) / det
        x += sx
        y += sy
        step = max(abs(sx), abs(sy))
    if not step < NEWTON_TOLERANCE:
        return math.nan, math.nan
    return x, y


@njit(cache=True, nogil=True)
def project(point: Floats, ra: float, dec: float) -> tuple[float, float]:
    """Return xi, eta (arcsec, East and North) of RA, Dec (degrees); NaN on the other hemisphere."""
    sr, cr = sine_cosine((ra - point[0] + 180.0) % 360.0 - 180.0)
    sd, cd = sine_cosine(dec)
    side = cd * cr
    cosine = sd * point[1] + side * point[2]
    if not cosine > 0:
        return math.nan, math.nan
    return ARCSEC_PER_RADIAN * cd * sr / cosine, ARCSEC_PER_RADIAN * (
        sd * point[2] - side * point[1]
    ) / cosine


@njit(cache=True, nogil=True)
def deproject(point: Floats, xi: float, eta: float) -> tuple[float, float]:
    """Return RA in [0, 360) and Dec (degrees) of xi, eta (arcsec)."""
    x = xi / ARCSEC_PER_RADIAN
    y = eta / ARCSEC_PER_RADIAN
    side = point[2] - y * point[1]
    ra = (point[0] + arctangent(x, side)) % 360.0
    return ra, arctangent(point[1] + y * point[2], np.sqrt(x * x + side * side))


@njit(cache=True, nogil=True)
def sky_point(c: Floats, k: Floats, p: Floats, x: float, y: float) -> tuple[float, float]:
    """Return RA, Dec (degrees) of a frame pixel."""
    u, v, _a, _b, _d, _e = plane_point(c, k, x + p[5], y + p[6])
    return deproject(p, p[3] * u + p[4] * v, p[3] * v - p[4] * u)


@njit(cache=True, nogil=True)
def array_point(c: Floats, k: Floats, p: Floats, ra: float, dec: float) -> tuple[float, float]:
    """Return the frame pixel of RA, Dec (degrees)."""
    xi, eta = project(p, ra, dec)
    x, y = pixel_point(c, k, p[3] * xi - p[4] * eta, p[4] * xi + p[3] * eta)
    return x - p[5], y - p[6]


@njit(cache=True, nogil=True)
def _plane_points(c: Floats, k: Floats, p: Floats, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return the plane positions (arcsec) of frame pixels."""
    xp, yp = np.empty_like(x), np.empty_like(x)
    for n in range(x.size):
        xp[n], yp[n], _a, _b, _d, _e = plane_point(c, k, x[n] + p[5], y[n] + p[6])
    return xp, yp


@njit(cache=True, nogil=True)
def _area_points(c: Floats, k: Floats, p: Floats, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return the areas (arcsec^2) of frame pixels, twice, as the other loops return two arrays."""
    area = np.empty_like(x)
    for n in range(x.size):
        _u, _v, a, b, d, e = plane_point(c, k, x[n] + p[5], y[n] + p[6])
        area[n] = abs(a * e - b * d)
    return area, area


@njit(cache=True, nogil=True)
def _pixel_points(c: Floats, k: Floats, p: Floats, xp: Floats, yp: Floats) -> tuple[Floats, Floats]:
    """Return the frame pixels of plane positions (arcsec)."""
    x, y = np.empty_like(xp), np.empty_like(xp)
    for n in range(xp.size):
        x[n], y[n] = pixel_point(c, k, xp[n], yp[n])
    return x - p[5], y - p[6]


@njit(cache=True, nogil=True)
def _sky_points(c: Floats, k: Floats, p: Floats, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return RA, Dec (degrees) of frame pixels."""
    ra, dec = np.empty_like(x), np.empty_like(x)
    for n in range(x.size):
        ra[n], dec[n] = sky_point(c, k, p, x[n], y[n])
    return ra, dec


@njit(cache=True, nogil=True)
def _array_points(
    c: Floats, k: Floats, p: Floats, ra: Floats, dec: Floats
) -> tuple[Floats, Floats]:
    """Return the frame pixels of RA, Dec (degrees)."""
    x, y = np.empty_like(ra), np.empty_like(ra)
    for n in range(ra.size):
        x[n], y[n] = array_point(c, k, p, ra[n], dec[n])
    return x, y


@njit(cache=True, nogil=True)
def _project_points(p: Floats, ra: Floats, dec: Floats) -> tuple[Floats, Floats]:
    """Return xi, eta (arcsec) of RA, Dec (degrees)."""
    xi, eta = np.empty_like(ra), np.empty_like(ra)
    for n in range(ra.size):
        xi[n], eta[n] = project(p, ra[n], dec[n])
    return xi, eta


@njit(cache=True, nogil=True)
def _deproject_points(p: Floats, xi: Floats, eta: Floats) -> tuple[Floats, Floats]:
    """Return RA, Dec (degrees) of xi, eta (arcsec)."""
    ra, dec = np.empty_like(xi), np.empty_like(xi)
    for n in range(xi.size):
        ra[n], dec[n] = deproject(p, xi[n], eta[n])
    return ra, dec
