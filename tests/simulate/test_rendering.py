"""Rendered stars and galaxies against sums over fine grids and closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from gdask.simulate.rendering import (
    CORE_HALF_SIZE,
    DISC_INDEX,
    Moffat,
    add_galaxy,
    half_light,
    profile_table,
    render,
    stamp_radii,
)


@pytest.mark.parametrize(
    "psf", [(Moffat(0.42, 0.083, 4), Moffat(0.58, 0.45, 3)), (Moffat(1.0, 0.5, 3),)]
)
def test_a_rendered_star_has_its_flux_and_place(psf: tuple[Moffat, ...]) -> None:
    jacobian = np.array([[0.0197, 0.0004, 0.0002, 0.0195]])
    image = np.zeros((401, 401), np.float32)
    x, y = np.array([200.37]), np.array([199.81])
    radii = stamp_radii(psf, np.array([1e7]))
    table = profile_table(psf)
    render(image, x, y, np.array([1e7]), jacobian, radii, table, CORE_HALF_SIZE)
    assert image.sum(dtype=float) == pytest.approx(1e7, rel=1e-3)
    near = np.s_[190:211, 190:211]
    fine = (np.arange(21 * 20) + 0.5) / 20 - 0.5 + 190
    dx, dy = np.meshgrid(fine - x[0], fine - y[0])
    u, v = 0.0197 * dx + 0.0004 * dy, 0.0002 * dx + 0.0195 * dy
    total = np.zeros_like(u)
    for fraction, fwhm, beta in psf:
        a2 = fwhm**2 / 4 / (2 ** (1 / beta) - 1)
        total += fraction * (beta - 1) / (np.pi * a2) * (1 + (u * u + v * v) / a2) ** -beta
    truth = total.reshape(21, 20, 21, 20).mean((1, 3)) * 1e7 * (0.0197 * 0.0195 - 0.0004 * 0.0002)
    np.testing.assert_allclose(image[near], truth, rtol=3e-4)
    weight = image[near].astype(float)
    rows, columns = np.mgrid[near]
    for axis in (columns, rows):
        got, want = (weight * axis).sum() / weight.sum(), (truth * axis).sum() / truth.sum()
        assert got == pytest.approx(want, abs=1e-4)


def test_a_galaxy_without_size_is_a_star() -> None:
    psf, jacobian = (Moffat(1.0, 0.6, 3),), np.array([0.001, 0.1797, 0.1797, -0.001])
    star, galaxy = np.zeros((2, 101, 101), np.float32)
    radii = stamp_radii(psf, np.array([1e8]))
    render(
        star,
        np.array([50.3]),
        np.array([49.6]),
        np.array([1e8]),
        jacobian[None],
        radii,
        profile_table(psf),
        CORE_HALF_SIZE,
    )
    add_galaxy(galaxy, 50.3, 49.6, 1e8, jacobian, 0.0, psf, 1e-3, 1.0, 0.0, 0.0)
    assert np.abs(star - galaxy).max() / star.max() < 4e-4


@pytest.mark.parametrize("pa", [0.0, 50.0])
def test_a_disc_has_its_flux_place_size_and_angle_on_the_sky(pa: float) -> None:
    psf = (Moffat(1.0, 0.6, 6),)
    jacobian = np.array([0.0, 0.18, 0.18, 0.0])
    image = np.zeros((401, 401), np.float32)
    add_galaxy(image, 200.25, 199.5, 1e5, jacobian, pa, psf, 1.5, 0.5, 30.0, 0.0)
    assert image.sum(dtype=float) == pytest.approx(1e5, rel=1e-4)
    rows, columns = np.mgrid[:401, :401]
    weight = image / image.sum(dtype=float)
    x, y = (weight * columns).sum(), (weight * rows).sum()
    np.testing.assert_allclose([x, y], [200.25, 199.5], atol=1e-3)
    u, v = 0.18 * (rows - y), 0.18 * (columns - x)
    c, s = np.cos(np.radians(pa)), np.sin(np.radians(pa))
    xi, eta = c * u + s * v, -s * u + c * v
    major = xi * np.sin(np.radians(30.0)) + eta * np.cos(np.radians(30.0))
    minor = xi * np.cos(np.radians(30.0)) - eta * np.sin(np.radians(30.0))
    # <x^2> of an exponential disc of scale h is 3 h^2, of a Moffat profile a^2 / 2 (beta - 2),
    # of a pixel 1/12
    h, blur = 1.5 / 1.67835, (0.3**2 / (2 ** (1 / 6) - 1)) / 2 / 4 + 0.18**2 / 12
    assert (weight * major**2).sum() == pytest.approx(3 * h**2 + blur, rel=2e-3)
    assert (weight * minor**2).sum() == pytest.approx(3 * (h / 2) ** 2 + blur, rel=2e-3)
    assert (weight * major * minor).sum() == pytest.approx(0.0, abs=2e-3)


def test_half_light_radius_of_an_exponential_disc() -> None:
    r = half_light(DISC_INDEX)
    assert (1 + r) * np.exp(-r) == pytest.approx(0.5, abs=1e-9)
