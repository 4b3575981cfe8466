"""Geometry, grid, pixel map and FITS headers against exact inverses, astropy and plain cases."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io.fits import Header
from astropy.wcs import WCS
from known_images import FULL_ARRAY, gsaoi

from gdask.kernels.geometry import projection
from gdask.kernels.geometry.grid import (
    Grid,
    common_grid,
    exact_map,
    footprint,
    grid_to_sky,
    input_window,
    map_error,
    pixel_map,
    sky_to_grid,
)
from gdask.kernels.geometry.projection import (
    Geometry,
    from_plane,
    from_sky,
    pixel_area,
    tangent_plane,
    tangent_sky,
    to_plane,
    to_sky,
)
from gdask.kernels.geometry.wcs import array_wcs, grid_from_header, grid_header
from gdask.model import GdaskError


def points(n: int = 500, low: float = -50, high: float = 2098) -> np.ndarray:
    return np.random.default_rng(1).uniform(low, high, (2, n))


@pytest.mark.parametrize("corrected", [False, True])
def test_inverse_returns_the_pixel(corrected: bool) -> None:
    x, y = points()
    for geometry in gsaoi(corrected=corrected):
        assert (
            np.abs(np.array(from_plane(geometry, *to_plane(geometry, x, y))) - (x, y)).max() < 1e-9
        )
        assert np.abs(np.array(from_sky(geometry, *to_sky(geometry, x, y))) - (x, y)).max() < 1e-6


@pytest.mark.parametrize("corrected", [False, True])
def test_a_few_points_without_compiled_code_have_the_same_bits(corrected: bool) -> None:
    """Both call the C library's functions and round each operation."""
    packed = projection.pack_geometry(gsaoi(corrected=corrected)[0])
    x, y = points(2000)
    plane = projection._plane_points(*packed, x, y)
    sky = projection._sky_points(*packed, x, y)
    pointing = projection.pointing_values(201.3, -43.0, 0.0)
    for loop, arguments in (
        (projection._plane_points, (*packed, x, y)),
        (projection._area_points, (*packed, x, y)),
        (projection._sky_points, (*packed, x, y)),
        (projection._pixel_points, (*packed, *plane)),
        (projection._array_points, (*packed, *sky)),
        (projection._project_points, (pointing, *sky)),
        (projection._deproject_points, (pointing, *plane)),
    ):
        np.testing.assert_array_equal(loop.few(*arguments), loop(*arguments))


def test_plane_is_the_published_polynomial_of_the_full_array_pixel() -> None:
    geometry = gsaoi(x0=513, y0=514)[2]
    x, y = points(20, 0, 1024)
    u, v = x + 513, y + 514
    terms = np.array([u**0, u, v, u * u, u * v, v * v, u**3, u * u * v, u * v * v, v**3])
    expected = geometry.distortion_x @ terms, geometry.distortion_y @ terms
    assert np.allclose(to_plane(geometry, x, y), expected, rtol=0, atol=1e-11)


def test_correction_is_added_in_units_of_sixty_arcsec_of_the_static_plane() -> None:
    static = gsaoi()[0]
    fitted = static._replace(
        correction_x=(0.01, 0.02, -0.03), correction_y=(0.0, 0.0, 0.0, 0.0, 0.05, 0.0)
    )
    x, y = points(20)
    u, v = np.array(to_plane(static, x, y)) / 60
    moved = np.array(to_plane(fitted, x, y)) - np.array(to_plane(static, x, y))
    assert np.allclose(moved, [0.01 + 0.02 * u - 0.03 * v, 0.05 * u * v], rtol=0, atol=1e-11)


def test_position_angle_turns_y_east_of_north() -> None:
    scale = Geometry(1, 1, (0.0, 0.02, 0.0), (0.0, 0.0, 0.02), 10.0, 60.0, 90.0)
    ra, dec = to_sky(scale, 0 - 1, 500 - 1)
    here, there = SkyCoord(10, 60, unit="deg"), SkyCoord(ra, dec, unit="deg")
    assert here.position_angle(there).deg == pytest.approx(90, abs=1e-6)
    assert here.separation(there).arcsec == pytest.approx(10, rel=1e-6)


def test_tangent_plane_is_astropys_across_zero_hours_and_at_the_pole() -> None:
    for ra, dec in ((359.999, -43.1), (0.001, 0.0), (120.0, 89.99)):
        wcs = WCS(Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": ra, "CRVAL2": dec}))
        xi, eta = np.random.default_rng(2).uniform(-200, 200, (2, 50))
        sky = tangent_sky(xi, eta, ra, dec)
        difference = np.array(sky) - np.array(wcs.all_pix2world(xi / 3600, eta / 3600, 1))
        assert np.abs((difference + 180) % 360 - 180).max() * 3600 * np.cos(np.radians(dec)) < 1e-8
        assert np.abs(np.array(tangent_plane(*sky, ra, dec)) - (xi, eta)).max() < 1e-9
    assert np.isnan(tangent_plane(180.0, 0.0, 0.0, 0.0)[0])


def test_pixel_area_is_the_area_between_corners_and_varies_by_three_per_cent() -> None:
    geometry = gsaoi(corrected=True)[1]
    x, y = np.meshgrid(np.linspace(0, 2047, 9), np.linspace(0, 2047, 9))
    corners = [
        np.array(to_plane(geometry, x + dx, y + dy))
        for dx, dy in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))
    ]
    diagonals = corners[2] - corners[0], corners[3] - corners[1]
    expected = np.abs(diagonals[0][0] * diagonals[1][1] - diagonals[0][1] * diagonals[1][0]) / 2
    area = pixel_area(geometry, x, y)
    assert np.allclose(area, expected, rtol=1e-8)
    assert 0.025 < np.ptp(area) / area.mean() < 0.035


def test_inverse_says_nan_where_the_polynomial_turns_over() -> None:
    folded = Geometry(0, 0, (0.0, 1.0, 0.0, -1e-3, 0.0, 0.0), (0.0, 0.0, 1.0), 0.0, 0.0, 0.0)
    x, _y = from_plane(folded, [100.0, 400.0], [0.0, 0.0])
    assert x[0] == pytest.approx(500 - np.sqrt(500**2 - 1e5), abs=1e-7)
    assert np.isnan(x[1])


def test_half_polynomials_are_rejected() -> None:
    geometry = gsaoi(corrected=True)[0]
    with pytest.raises(GdaskError, match="7 terms"):
        to_plane(geometry._replace(distortion_x=geometry.distortion_x[:7]), 0.0, 0.0)


def test_grid_has_north_up_and_east_left_and_its_header_is_astropys() -> None:
    grid = Grid(120.0, -30.0, 0.0, 0.02, 100.0, 200.0, (400, 300))
    ra, dec = grid_to_sky(grid, [100, 90, 100], [200, 200, 210])
    assert ra[1] > ra[0] == 120.0
    assert dec[2] - dec[0] == pytest.approx(0.2 / 3600, rel=1e-6)
    for turned in (grid, grid._replace(pa=37.0), grid._replace(pa=-120.0)):
        x, y = points(50, 0, 400)
        wcs = WCS(grid_header(turned, "ICRS"))
        assert np.allclose(
            wcs.all_pix2world(x, y, 0), grid_to_sky(turned, x, y), rtol=0, atol=1e-11
        )
        assert np.allclose(
            sky_to_grid(turned, *grid_to_sky(turned, x, y)), (x, y), rtol=0, atol=1e-7
        )
        assert np.allclose(
            np.hstack(grid_from_header(grid_header(turned))), np.hstack(turned), rtol=0, atol=1e-10
        )


@pytest.mark.parametrize(
    ("cards", "message"),
    [
        ({"CTYPE1": "RA---SIN"}, "RA---SIN"),
        ({"CD1_1": 5e-6}, "East left"),
        ({"CD2_2": 7e-6}, "square pixels"),
        ({"NAXIS1": None}, "NAXIS1"),
    ],
)
def test_reference_image_must_be_a_plain_tangent_plane(
    cards: dict[str, object], message: str
) -> None:
    header = grid_header(Grid(120.0, -30.0, 0.0, 0.02, 100.0, 200.0, (400, 300)))
    for key, value in cards.items():
        if value is None:
            del header[key]
        else:
            header[key] = value
    with pytest.raises(GdaskError, match=message):
        grid_from_header(header, "ref.fits")


def test_common_grid_holds_all_arrays_in_any_order() -> None:
    frames = [*gsaoi(pa=37.0), *(g._replace(ra=0.003, dec=-43.098) for g in gsaoi(pa=36.9))]
    grid = common_grid(frames, [FULL_ARRAY] * 8, 0.02, 10.0, 359.99, -43.1)
    assert grid == common_grid(frames[::-1], [FULL_ARRAY] * 8, 0.02, 10.0, 359.99, -43.1)
    assert sky_to_grid(grid, 359.99, -43.1) == pytest.approx((grid.x_ref, grid.y_ref), abs=1e-9)
    x, y = np.array([-0.5, 2047.5, 2047.5, -0.5]), np.array([-0.5, -0.5, 2047.5, 2047.5])
    corners = np.concatenate(
        [np.array(sky_to_grid(grid, *to_sky(g, x, y))) for g in frames], axis=1
    )
    assert corners.min() >= -0.5
    assert corners.min() < 0.5
    assert np.all(corners.max(axis=1) <= np.array(grid.shape[::-1]) - 0.5)
    assert np.all(corners.max(axis=1) > np.array(grid.shape[::-1]) - 1.5)


def test_footprint_and_input_window_hold_what_the_map_needs() -> None:
    geometry = gsaoi(pa=2.0, x0=513, y0=513)[3]
    grid = common_grid(gsaoi(), [FULL_ARRAY] * 4, 0.02, 0.0, 359.99, -43.1)
    y1, y2, x1, x2 = footprint(geometry, (1024, 1000), grid)
    y, x = pixel_map(geometry, grid, (0, *grid.shape[:1], 0, *grid.shape[1:]))
    inside = (y > -0.5) & (y < 1023.5) & (x > -0.5) & (x < 999.5)
    rows, columns = np.nonzero(inside)
    assert 0 <= rows.min() - y1 <= 2
    assert 0 <= columns.min() - x1 <= 2
    assert 0 <= y2 - rows.max() - 1 <= 2
    assert 0 <= x2 - columns.max() - 1 <= 2
    tile = (y1 + 300, y1 + 500, x1 + 350, x1 + 480)
    v1, v2, u1, u2 = input_window(geometry, (1024, 1000), grid, tile, 3)
    seen = np.s_[tile[0] : tile[1], tile[2] : tile[3]]
    assert 3 <= y[seen].min() - v1 <= 7
    assert 3 <= v2 - 1 - y[seen].max() <= 7
    assert 3 <= x[seen].min() - u1 <= 7
    assert 3 <= u2 - 1 - x[seen].max() <= 7
    assert input_window(geometry, (1024, 1000), grid, (0, 50, 0, 50), 3) is None
    assert footprint(geometry._replace(ra=100.0), FULL_ARRAY, grid) == (0, 0, 0, 0)


def test_pixel_map_is_exact_to_a_thousandth_of_its_budget() -> None:
    grid = common_grid(gsaoi(), [FULL_ARRAY] * 4, 0.02, 0.0, 359.99, -43.1)
    for geometry in gsaoi(corrected=True):
        window = footprint(geometry, FULL_ARRAY, grid)
        assert 0 < map_error(geometry, grid, window) < 1e-7
        assert map_error(geometry, grid, window, 128) > 10 * map_error(geometry, grid, window, 64)
        y1, _y2, x1, _x2 = window
        tile = (y1 + 200, y1 + 300, x1 + 301, x1 + 333)
        y, x = np.mgrid[tile[0] : tile[1], tile[2] : tile[3]].reshape(2, -1).astype(float)
        exact = np.array(exact_map(geometry, grid, x, y))
        assert np.abs(np.array(pixel_map(geometry, grid, tile)).reshape(2, -1) - exact).max() < 1e-7


def test_exact_map_is_the_public_chain() -> None:
    geometry, grid = (
        gsaoi(corrected=True)[0],
        Grid(359.99, -43.1, 5.0, 0.02, 1000.0, 900.0, (2000, 2000)),
    )
    x, y = points(100, 0, 2000)
    assert np.allclose(
        exact_map(geometry, grid, x, y)[::-1],
        from_sky(geometry, *grid_to_sky(grid, x, y)),
        rtol=0,
        atol=1e-12,
    )


def test_pixel_map_has_the_same_bits_in_every_tile() -> None:
    geometry = gsaoi(corrected=True)[1]
    grid = common_grid(gsaoi(), [FULL_ARRAY] * 4, 0.02, 12.3, 359.99, -43.1)
    y1, y2, x1, x2 = window = (500, 911, 400, 777)
    whole = np.array(pixel_map(geometry, grid, window))
    rng = np.random.default_rng(4)
    for _ in range(6):
        a, b = np.sort(rng.choice(np.arange(y1, y2), 2, replace=False))
        c, d = np.sort(rng.choice(np.arange(x1, x2), 2, replace=False))
        tile = np.array(pixel_map(geometry, grid, (a, b, c, d)))
        assert np.array_equal(tile, whole[:, a - y1 : b - y1, c - x1 : d - x1])


@pytest.mark.parametrize("corrected", [False, True])
def test_array_header_is_the_chain_for_astropy(corrected: bool) -> None:
    x, y = np.meshgrid(np.linspace(0, 1023, 21), np.linspace(0, 1023, 21))
    for geometry in gsaoi(corrected=corrected, x0=513, y0=514):
        header, error = array_wcs(geometry, (1024, 1024))
        wcs = WCS(header)
        found = np.array(from_sky(geometry, *wcs.all_pix2world(x, y, 0)))
        assert np.abs(found - (x, y)).max() < 1e-5
        assert error < 1e-5
        assert np.abs(np.array(wcs.all_world2pix(*to_sky(geometry, x, y), 0)) - (x, y)).max() < 1e-4
        offset = (
            np.array(wcs.wcs_world2pix(*to_sky(geometry, x, y), 1)) - wcs.wcs.crpix[:, None, None]
        )
        start = (
            offset
            + [sip_sum(wcs.sip.ap, *offset), sip_sum(wcs.sip.bp, *offset)]
            + wcs.wcs.crpix[:, None, None]
            - 1
        )
        assert np.abs(start - (x, y)).max() < 0.01


def sip_sum(coefficients: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The SIP convention's polynomial, written out."""
    return sum(c * u**i * v**j for (i, j), c in np.ndenumerate(coefficients))


def test_array_header_states_the_error_that_it_has() -> None:
    rough = gsaoi()[0]._replace(correction_x=(0.0,) * 27 + (2.0,), correction_y=(0.0,) * 28)
    header, error = array_wcs(rough, FULL_ARRAY)
    x, y = np.meshgrid(np.linspace(-0.5, 2047.5, 33), np.linspace(-0.5, 2047.5, 33))
    found = np.array(from_sky(rough, *WCS(header).all_pix2world(x, y, 0)))
    assert np.hypot(*(found - (x, y))).max() == pytest.approx(error, rel=0.05)
    assert error > 1e-4


def test_header_of_a_linear_instrument_is_a_plain_tangent_plane() -> None:
    linear = Geometry(1, 1, (-190.0, 0.001, 0.18), (-191.0, 0.18, -0.001), 80.0, -60.0, 20.0)
    wcs = WCS(array_wcs(linear, FULL_ARRAY, "ICRS")[0])
    x, y = points(30)
    assert wcs.sip is None
    assert np.allclose(wcs.wcs.crval, (80, -60), rtol=0, atol=1e-12)
    assert np.allclose(wcs.all_pix2world(x, y, 0), to_sky(linear, x, y), rtol=0, atol=1e-10)


def test_sine_and_cosine_of_any_angle_are_good_to_the_last_bits() -> None:
    """And exact at multiples of 90 degrees; compiled or not, they have the same bits."""
    angles = np.concatenate([np.linspace(-720, 720, 2001), np.linspace(-1e-3, 1e-3, 101)])
    found = np.array([projection.sine_cosine(angle) for angle in angles])
    exact = np.array([exact_sine_cosine(angle) for angle in angles])
    assert np.abs(found - exact).max() < 2.3e-16
    for angle, expected in ((0.0, (0, 1)), (90.0, (1, 0)), (180.0, (0, -1)), (-90.0, (-1, 0))):
        assert projection.sine_cosine(angle) == expected
    few = np.array([projection.sine_cosine.few(float(angle)) for angle in angles])
    assert few.tobytes() == found.tobytes()


def exact_sine_cosine(angle: float) -> tuple[float, float]:
    """Sum Taylor's series in fractions, about the nearest multiple of 90 degrees."""
    pi = Fraction("3.14159265358979323846264338327950288")
    quarter = round(angle / 90)
    x = ((Fraction(angle) - 90 * quarter) * pi / 180).limit_denominator(10**25)
    sine = sum((-1) ** k * x ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(10))
    cosine = sum((-1) ** k * x ** (2 * k) / math.factorial(2 * k) for k in range(10))
    turned = [(sine, cosine), (cosine, -sine), (-sine, -cosine), (-cosine, sine)]
    return float(turned[quarter % 4][0]), float(turned[quarter % 4][1])
