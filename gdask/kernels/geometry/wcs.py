"""FITS headers of geometries and grids: TAN-SIP for an array, plain TAN for the output."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np

from gdask.kernels.arithmetic import (
    arctangent,
    inverse_of_two,
    least_squares,
    sine_cosine,
    times_two,
)
from gdask.kernels.geometry.grid import Grid
from gdask.kernels.geometry.projection import (
    Floats,
    Geometry,
    from_plane,
    polynomial_order,
    powers,
    tangent_plane,
    to_sky,
)
from gdask.model import GdaskError, late
from gdask.types import Degrees, Pixels

if TYPE_CHECKING:
    from astropy.io import fits
else:
    fits = late("astropy.io.fits")

#: Order of the SIP polynomials where a fitted correction makes the order of the exact chain too
#: high for SIP.
SIP_ORDER = 5
#: Points along each side of an array to which polynomials are fitted, and at which their error is
#: measured.
FIT_POINTS_PER_SIDE = 33
#: The most by which sides of a reference image's pixels may differ (relative), and axes from a
#: right angle (radian).
SQUARENESS_TOLERANCE = 1e-4


#: Keywords of a celestial WCS.
_WCS_KEYWORD = re.compile(
    r"(CRPIX|CRVAL|CTYPE|CUNIT|CDELT|CROTA)[12]|(CD|PC)[12]_[12]|(A|B|AP|BP)_(ORDER|\d_\d)"
    r"|RADECSYS|RADESYS|EQUINOX|WCSAXES"
)


def remove_wcs(header: fits.Header) -> None:
    """Remove the celestial WCS of a header, in place.

    What is left of an earlier one would be part of the next: astropy applies SIP coefficients also
    where CTYPE does not name them.
    """
    for keyword in [key for key in header if _WCS_KEYWORD.fullmatch(key)]:
        del header[keyword]


def array_wcs(
    geometry: Geometry, shape: tuple[int, int], radesys: str = "FK5"
) -> tuple[fits.Header, Pixels]:
    """Return TAN-SIP cards for one array, and their greatest error over it (pixels).

    shape: (ny, nx) of the array. A cubic static distortion is exact in SIP about the pixel where
    the plane is zero (CRVAL is the pointing then). With a fitted correction SIP is a fit, about the
    array's middle. AP and BP (sky to pixel) are good to 0.01 pixel: a starting value for astropy's
    iteration. SIP: Shupe et al. 2005, ASPC 347, 491.
    """
    order = polynomial_order(len(geometry.distortion_x))
    x0, y0 = (float(v) for v in from_plane(geometry, 0.0, 0.0))
    if geometry.correction_x or geometry.correction_y or not math.isfinite(x0):
        order, x0, y0 = SIP_ORDER, (shape[1] - 1) / 2, (shape[0] - 1) / 2
    ra, dec = (float(v) for v in to_sky(geometry, x0, y0))
    u, v, plane = _sample_points(geometry, shape, x0, y0, ra, dec)
    forward = _fit_polynomials(u, v, plane, order)
    cd = np.array([[forward[axis][(1, 0)], forward[axis][(0, 1)]] for axis in (0, 1)])
    back_cd = inverse_of_two(cd)
    sip = _multiply(back_cd, forward)
    u_powers, v_powers = _powers(u, order), _powers(v, order)
    model = [
        sum(c * u_powers[i] * v_powers[j] for (i, j), c in forward[axis].items()) for axis in (0, 1)
    ]
    error = np.hypot(*times_two(back_cd, np.stack(model) - plane))
    header = _tan_cards((x0, y0), (ra, dec), cd / 3600, radesys, "-SIP" if order > 1 else "")
    if order > 1:
        linear = times_two(back_cd, plane)
        back = _fit_polynomials(
            linear[0], linear[1], np.stack([u - linear[0], v - linear[1]]), SIP_ORDER
        )
        _sip_cards(header, ("A", "B"), sip, order, 2)
        _sip_cards(header, ("AP", "BP"), back, SIP_ORDER, 1)
    return header, float(error.max())


def grid_header(grid: Grid, radesys: str = "FK5") -> fits.Header:
    """Return the plain TAN cards of an output image, with its size."""
    s, c = sine_cosine.few(grid.pa)
    cd = np.array([[-c, s], [s, c]]) * grid.scale / 3600
    header = _tan_cards((grid.x_ref, grid.y_ref), (grid.ra, grid.dec), cd, radesys, "")
    size = {"NAXIS": 2, "NAXIS1": grid.shape[1], "NAXIS2": grid.shape[0]}
    for position, (key, value) in enumerate(size.items()):
        header.insert(position, (key, value))
    return header


def grid_from_header(header: fits.Header, name: str = "reference") -> Grid:
    """Return the grid of an existing image; `name` is for messages.

    Raises GdaskError unless it is a plain TAN image with square pixels, East to the left of North.
    """
    axes = tuple(str(header.get(f"CTYPE{axis}")) for axis in (1, 2))
    if axes != ("RA---TAN", "DEC--TAN"):
        raise GdaskError(
            f"{name}: axes are {axes}; expected RA---TAN, DEC--TAN:"
            " give an image with a plain TAN WCS"
        )
    if "NAXIS1" not in header or "NAXIS2" not in header:
        raise GdaskError(
            f"{name}: NAXIS1 or NAXIS2 is missing; expected the size of an image:"
            " name an image extension"
        )
    from astropy.wcs import WCS

    wcs = WCS(header, naxis=2)
    cd = wcs.pixel_scale_matrix
    scale = math.sqrt(abs(cd[0, 0] * cd[1, 1] - cd[0, 1] * cd[1, 0]))
    pa = float(arctangent.few(cd[0, 1] + cd[1, 0], cd[1, 1] - cd[0, 0]))
    s, c = sine_cosine.few(pa)
    square_cd = np.array([[-c, s], [s, c]]) * scale
    if not scale > 0 or np.abs(cd - square_cd).max() > SQUARENESS_TOLERANCE * scale:
        raise GdaskError(
            f"{name}: CD is {cd.tolist()}; expected square pixels, East left of North:"
            " resample it first"
        )
    (ra, dec), (x, y) = wcs.wcs.crval, wcs.wcs.crpix - 1
    shape = (int(header["NAXIS2"]), int(header["NAXIS1"]))
    return Grid(float(ra), float(dec), pa, scale * 3600, float(x), float(y), shape)


def _sample_points(
    geometry: Geometry, shape: tuple[int, int], x0: Pixels, y0: Pixels, ra: Degrees, dec: Degrees
) -> tuple[Floats, Floats, Floats]:
    """Return points over an array: offsets from a pixel, and tangent-plane coordinates.

    The offsets u, v are from the pixel (x0, y0); (xi, eta) are in arcsec about (ra, dec).
    """
    y, x = np.meshgrid(
        *(np.linspace(-0.5, n - 0.5, FIT_POINTS_PER_SIDE) for n in shape), indexing="ij"
    )
    x, y = x.ravel(), y.ravel()
    return x - x0, y - y0, np.stack(tangent_plane(*to_sky(geometry, x, y), ra, dec))


def _fit_polynomials(
    u: Floats, v: Floats, values: Floats, order: int
) -> list[dict[tuple[int, int], float]]:
    """Fit a polynomial in (u, v) without a constant to each row of `values`.

    The results are coefficients by powers of (u, v).
    """
    terms = powers(order)[1:]
    unit = max(np.abs(u).max(), np.abs(v).max())
    u_powers, v_powers = _powers(u / unit, order), _powers(v / unit, order)
    matrix = np.stack([u_powers[i] * v_powers[j] for i, j in terms], axis=1)
    solution = least_squares(matrix, values.T)
    return [
        {(i, j): c / unit ** (i + j) for (i, j), c in zip(terms, row, strict=True)}
        for row in solution.T
    ]


def _powers(values: Floats, order: int) -> Floats:
    """Give the powers of values from 0 to `order`, as rows: products, the same everywhere."""
    return np.cumprod(np.stack([np.ones_like(values), *[values] * order]), axis=0, dtype=float)


def _multiply(
    matrix: Floats, polynomials: list[dict[tuple[int, int], float]]
) -> list[dict[tuple[int, int], float]]:
    """Return the two polynomials of matrix @ (first polynomial, second polynomial)."""
    first, second = polynomials
    return [{key: a * first[key] + b * second[key] for key in first} for a, b in matrix]


def _tan_cards(
    pixel: tuple[Pixels, Pixels], sky: tuple[Degrees, Degrees], cd: Floats, radesys: str, sip: str
) -> fits.Header:
    """Return the cards of a gnomonic projection.

    `pixel` (x, y) is 0-based, `cd` in degrees, `sip` the ending of CTYPE.
    """
    header = fits.Header()
    header["WCSAXES"] = 2
    for axis, name in enumerate(("RA---TAN", "DEC--TAN")):
        header[f"CTYPE{axis + 1}"] = name + sip
        header[f"CUNIT{axis + 1}"] = "deg"
        header[f"CRPIX{axis + 1}"] = pixel[axis] + 1
        header[f"CRVAL{axis + 1}"] = sky[axis]
        for pixel_axis in (0, 1):
            header[f"CD{axis + 1}_{pixel_axis + 1}"] = float(cd[axis, pixel_axis])
    header["RADESYS"] = radesys
    if radesys == "FK5":
        header["EQUINOX"] = 2000.0
    return header


def _sip_cards(
    header: fits.Header,
    names: tuple[str, str],
    polynomials: list[dict[tuple[int, int], float]],
    order: int,
    lowest: int,
) -> None:
    """Add SIP coefficients of all orders from `lowest` to `order`."""
    for name, polynomial in zip(names, polynomials, strict=True):
        header[f"{name}_ORDER"] = order
        for (i, j), value in polynomial.items():
            if i + j >= lowest:
                header[f"{name}_{i}_{j}"] = value
