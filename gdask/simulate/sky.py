"""Positions on the sky: gnomonic projection, rotation by the position angle, and where the sky is at a given time.

Written for the simulator alone, in closed form, so that it shares nothing with the geometry that reduces its frames.
Angles are degrees, tangent-plane coordinates (xi East, eta North) are arcsec.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

ARCSEC = 3600.0 * 180.0 / np.pi  # arcsec in a radian


def project(ra: Array, dec: Array, ra0: float, dec0: float) -> tuple[Array, Array]:
    """Gnomonic (TAN) projection of `ra`, `dec` about (`ra0`, `dec0`): xi, eta in arcsec.

    Calabretta & Greisen 2002, A&A 395, 1077, section 5.1.3, by way of unit vectors.
    """
    east, north, axis = _frame(ra0, dec0)
    star = _vector(ra, dec)
    depth = _along(axis, star)
    return ARCSEC * _along(east, star) / depth, ARCSEC * _along(north, star) / depth


def deproject(xi: Array, eta: Array, ra0: float, dec0: float) -> tuple[Array, Array]:
    """The inverse of `project`: ra (0..360), dec in degrees."""
    east, north, axis = (v[:, None] for v in _frame(ra0, dec0))
    v = east * np.ravel(xi) / ARCSEC + north * np.ravel(eta) / ARCSEC + axis
    v /= np.sqrt((v * v).sum(axis=0))
    ra, dec = (
        np.degrees(np.arctan2(v[1], v[0])) % 360.0,
        np.degrees(np.arctan2(v[2], np.hypot(v[0], v[1]))),
    )
    return ra.reshape(np.shape(xi)), dec.reshape(np.shape(xi))


def offset(ra0: float, dec0: float, xi: float, eta: float) -> tuple[float, float]:
    """The sky position that lies (xi, eta) arcsec East and North of (ra0, dec0) in the tangent plane."""
    ra, dec = deproject(np.array([xi]), np.array([eta]), ra0, dec0)
    return float(ra[0]), float(dec[0])


def rotate(x: Array, y: Array, pa: float) -> tuple[Array, Array]:
    """Instrument plane (x, y) to tangent plane: xi = x cos PA + y sin PA, eta = -x sin PA + y cos PA."""
    c, s = np.cos(np.radians(pa)), np.sin(np.radians(pa))
    return c * x + s * y, c * y - s * x


def sidereal_time(mjd: float, longitude: float) -> float:
    """Mean sidereal time in degrees at East `longitude` (Meeus, Astronomical Algorithms, eq. 12.4, without UT1-UTC)."""
    return (280.46061837 + 360.98564736629 * (mjd - 51544.5) + longitude) % 360.0


def horizontal(hour_angle: float, dec: float, latitude: float) -> tuple[float, float, float]:
    """Azimuth (North through East), elevation and parallactic angle, degrees, of a point at `hour_angle`, `dec`."""
    h, d, phi = np.radians([hour_angle, dec, latitude])
    up = np.sin(phi) * np.sin(d) + np.cos(phi) * np.cos(d) * np.cos(h)
    north = np.cos(phi) * np.sin(d) - np.sin(phi) * np.cos(d) * np.cos(h)
    east = -np.cos(d) * np.sin(h)
    parallactic = np.arctan2(np.sin(h), np.tan(phi) * np.cos(d) - np.sin(d) * np.cos(h))
    azimuth = np.degrees(np.arctan2(east, north)) % 360.0
    return float(azimuth), float(np.degrees(np.arcsin(up))), float(np.degrees(parallactic))


def _vector(ra: Array, dec: Array) -> Array:
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])


def _along(axis: Array, vectors: Array) -> Array:
    return axis[0] * vectors[0] + axis[1] * vectors[1] + axis[2] * vectors[2]


def _frame(ra0: float, dec0: float) -> tuple[Array, Array, Array]:
    """Unit vectors East, North and outwards at (ra0, dec0)."""
    a, d = np.radians(ra0), np.radians(dec0)
    east = np.array([-np.sin(a), np.cos(a), 0.0])
    north = np.array([-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)])
    return east, north, np.array([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])
