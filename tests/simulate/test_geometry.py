"""The simulator's geometry against astropy's projection."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.wcs import WCS

from gdask.simulate import geometry, gsaoi
from gdask.simulate.f2_optics import optics
from gdask.simulate.geometry import Chip, Pose, pixel_to_sky, plane, plane_to_pixel

CHIPS = gsaoi.chips_of(gsaoi.load_facts()[1])


def test_pixel_to_sky_is_the_projection_of_astropy() -> None:
    x, y = np.random.default_rng(1).uniform(-100.0, 2150.0, (2, 200))
    pose = Pose(201.3, -43.1, 37.0, 1.0002, np.random.default_rng(2).normal(0.0, 0.01, (2, 7)))
    ra, dec = geometry.pixel_to_sky(CHIPS[2], pose, x, y)
    u, v = geometry.distort(pose, *geometry.plane(CHIPS[2], x, y))
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [pose.ra0, pose.dec0]
    c, s = np.cos(np.radians(37.0)), np.sin(np.radians(37.0))
    wcs.wcs.cd = np.array([[c, s], [-s, c]]) / 3600.0
    np.testing.assert_allclose(np.array(wcs.wcs_pix2world(u, v, 1)), [ra, dec], rtol=0, atol=1e-11)
    np.testing.assert_allclose(
        geometry.sky_to_pixel(CHIPS[2], pose, ra, dec), [x, y], rtol=0, atol=1e-7
    )


def test_origin_falls_where_target_and_offsets_land() -> None:
    x, y = geometry.plane_to_pixel(CHIPS[3], np.zeros(1), np.zeros(1))
    np.testing.assert_allclose([x[0], y[0]], [195.5, 212.2], atol=0.5)


def test_pixel_area_is_the_determinant_of_the_jacobian() -> None:
    x, y = np.array([1.0, 700.0, 2048.0]), np.array([3.0, 1500.0])
    ux, uy, vx, vy = geometry.jacobian(CHIPS[1], *np.meshgrid(x, y))
    np.testing.assert_allclose(geometry.pixel_area(CHIPS[1], x, y), ux * vy - uy * vx, rtol=1e-12)


@pytest.mark.parametrize("pa", [0.0, 37.0, 180.0])
def test_axes_are_swapped_as_in_the_headers(pa: float) -> None:
    """CD = s [[sin PA, cos PA], [cos PA, -sin PA]], about CRPIX, in astropy's projection."""
    chip = optics(0.1797, 0.0, (1050.9, 1055.9), (1064.9, 1054.24))
    x, y = np.random.default_rng(1).uniform(1.0, 2048.0, (2, 50))
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = (
        ["RA---TAN", "DEC--TAN"],
        [25.06, -35.0],
        [1064.9, 1054.24],
    )
    c, s = np.cos(np.radians(pa)), np.sin(np.radians(pa))
    wcs.wcs.cd = 0.1797 / 3600.0 * np.array([[s, c], [c, -s]])
    got = pixel_to_sky(chip, Pose(25.06, -35.0, pa, 1.0, np.zeros((2, 7))), x, y)
    np.testing.assert_allclose(got, wcs.wcs_pix2world(x, y, 1), rtol=0, atol=1e-11)


def test_distortion_is_radial_and_the_origin_stays() -> None:
    chip = optics(0.18, 0.01, (1001.0, 1003.0), (1011.0, 990.0))
    assert np.hypot(*plane(chip, 1011.0, 990.0)) < 1e-12
    u, v = plane(chip, np.array([1001.0, 1601.0, 2001.0]), np.array([1003.0, 1803.0, 1003.0]))
    # 1000 pixels from the centre are 180 arcsec
    np.testing.assert_allclose([v[2] - v[0], u[2] - u[0]], [180.0 * 1.01, 0.0], atol=1e-9)
    np.testing.assert_allclose([v[1] - v[0], u[1] - u[0]], [108.0 * 1.01, 144.0 * 1.01], atol=1e-9)
    np.testing.assert_allclose(
        plane_to_pixel(chip, u, v), [[1001.0, 1601.0, 2001.0], [1003.0, 1803.0, 1003.0]], atol=1e-8
    )


def test_chip_is_plain_numbers() -> None:
    chip = optics(0.18, 0.0, (1.0, 1.0), (1.0, 1.0))
    assert isinstance(chip, Chip) and chip.u[2] == chip.v[1] == 0.18
