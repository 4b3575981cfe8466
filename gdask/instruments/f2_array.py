"""Where the array of FLAMINGOS-2 looks: its section, pointing, and geometry.

No static distortion is known beyond the linear one, which is the header's. At position angle 0, +y
is East and +x is North. The pointing is that of the header WCS, whose reference pixel is constant
(the offsets go to CRVAL).
"""

from __future__ import annotations

import datetime as dt
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gdask.instruments.rules import cd_matrix, celestial_headers, parse_section
from gdask.instruments.view import header_number
from gdask.kernels.arithmetic import arctangent, sine_cosine
from gdask.model import GdaskError

if TYPE_CHECKING:
    from gdask.instruments.view import View
    from gdask.kernels.geometry.projection import Geometry

Section = tuple[int, int, int, int]

#: A CD matrix that differs by more (fraction of a pixel; 0.6 degrees) says nothing of the array.
MAX_AXES_ERROR = 0.01


def true_sections(view: View, shape: tuple[int, int]) -> tuple[Section, ...]:
    """The part of the full array that the pixels are, 0-based half-open (x1, x2, y1, y2).

    Raises GdaskError where nothing tells it.
    """
    sections = [section_of(view, number, shape) for number in range(len(view.ext))]
    found = tuple(section for section in sections if section is not None)
    if len(found) < len(sections):
        raise GdaskError(
            f"{view.path}: {shape[1]} x {shape[0]} pixels, and no CRPIX1, CRPIX2 that tell "
            "which part of the array"
        )
    return found


def section_of(view: View, number: int, shape: tuple[int, int]) -> Section | None:
    """The section of an array; None where nothing tells it.

    It is all of the array for a full frame, DETSEC if its size is right, else it follows from how
    far the reference pixel is shifted.
    """
    ny, nx = view.facts["array_shape"]
    if tuple(shape) == (ny, nx):
        return 0, nx, 0, ny
    section = parse_section(view.each("DETSEC")[number])
    if section and (section[3] - section[2], section[1] - section[0]) == tuple(shape):
        x1, x2, y1, y2 = section
        return x1, x2, y1, y2
    pixel = _reference_pixel(view, number)
    if pixel is None:
        return None
    x1, y1 = (
        round(full - value)
        for full, value in zip(_optics(view)["reference_pixel"], pixel, strict=True)
    )
    inside = 0 <= x1 <= nx - shape[1] and 0 <= y1 <= ny - shape[0]
    return (x1, x1 + shape[1], y1, y1 + shape[0]) if inside else None


def geometries(view: View, shape: tuple[int, int]) -> tuple[Geometry, ...]:
    """The geometry of the array from the headers: scale and axes, pointing, no fit."""
    from gdask.kernels.geometry.projection import Geometry

    pa, found = position_angle(view), []
    for number, (x1, _, y1, _) in enumerate(true_sections(view, shape)):
        pixel = _reference_pixel(view, number)
        x, y = (pixel[0] + x1, pixel[1] + y1) if pixel else _optics(view)["reference_pixel"]
        axes = [(-(a * x + b * y), a, b) for a, b in _axes(view, number, pa)]
        found.append(Geometry(x1 + 1.0, y1 + 1.0, axes[0], axes[1], *_pointing(view, number), pa))
    return tuple(found)


def _axes(view: View, number: int, pa: float) -> list[list[float]]:
    """Arcsec along x and y of the instrument plane for a pixel along x and y of the array.

    The header's CD matrix, turned back by the position angle: it knows scale, turn and skew of the
    array, which PA does not (0.1797 arcsec per pixel for 0.17973, a skew of 0.09 degrees, a turn of
    0.04 in headers of 2013). Where it is far from PA and the facts, as in a flat, these are taken.
    """
    scale = _optics(view)["pixel_scale"]
    plain = np.array([[0.0, scale], [scale, 0.0]])
    matrix = cd_matrix(celestial_headers(view)[number])
    if matrix is None:
        return plain.tolist()
    s, c = sine_cosine.few(pa)
    # xi = c x + s y, eta = -s x + c y
    axes = 3600 * np.stack([c * matrix[0] - s * matrix[1], s * matrix[0] + c * matrix[1]])
    return (axes if np.abs(axes - plain).max() < MAX_AXES_ERROR * scale else plain).tolist()


def position_angle(view: View) -> float:
    """Degrees East of North of the telescope's position angle.

    It is the keyword PA; where that says nothing (-9999), the CD matrix gives it. By how much the
    matrix differs from PA (up to 0.18 degrees), the axes of the array say, see `_axes`.
    """
    keyword = view.number("PA")
    if keyword is not None and abs(keyword) <= 360:
        return float(keyword)
    matrix = cd_matrix(next(iter(celestial_headers(view)), None))
    # s [[sin pa, cos pa], [cos pa, -sin pa]]
    return (
        0.0
        if matrix is None
        else float(arctangent.few(matrix[0, 0] - matrix[1, 1], matrix[0, 1] + matrix[1, 0]))
    )


def _pointing(view: View, number: int) -> tuple[float, float]:
    """RA, Dec (degrees) at the reference pixel: of the WCS, else of the target."""
    header = celestial_headers(view)[number]
    names = ("CRVAL1", "CRVAL2") if header is not None else ()
    values = [header_number(header, name) for name in names]
    if not values or None in values:
        values = [view("target_ra") or 0.0, view("target_dec") or 0.0]
    return float(values[0]), float(values[1])


def _reference_pixel(view: View, number: int) -> tuple[float, float] | None:
    """CRPIX as the header has it."""
    header = celestial_headers(view)[number] or view.ext[number]
    x, y = (header_number(header, name) for name in ("CRPIX1", "CRPIX2"))
    return None if x is None or y is None else (float(x), float(y))


def _optics(view: View) -> dict[str, Any]:
    """Reference pixel of full frames and pixel scale at the time of the frame."""
    taken, epochs = view("ut_date"), view.facts["optics"]
    fitting = [epoch for epoch in epochs if taken is None or epoch["from"] <= taken]
    return fitting[-1] if fitting else epochs[0]


def apparent_to_icrs(ra: float, dec: float, when: dt.datetime) -> tuple[float, float]:
    """ICRS position (degrees) of an apparent place at a UTC time, by SOFA (pyerfa).

    ra, dec: apparent geocentric place, equinox of date, degrees.
    """
    import warnings

    import erfa

    seconds = when.second + when.microsecond / 1e6
    date = (when.year, when.month, when.day, when.hour, when.minute, seconds)
    with warnings.catch_warnings():
        # A date for which no leap second is known yet is right within seconds: enough here.
        warnings.simplefilter("ignore", erfa.ErfaWarning)
        utc = erfa.dtf2d("UTC", *date)
        tt = erfa.taitt(*erfa.utctai(*utc))
    tdb = erfa.tttdb(*tt, erfa.dtdb(*tt, 0.0, 0.0, 0.0, 0.0))
    # The equation of the origins changes by 0.1 mas in a minute: UTC in the place of TDB is
    # harmless, and gives the digits that the field's listings show.
    _, origins = erfa.apci13(*utc)
    astrometry, _ = erfa.apci13(*tdb)
    found = erfa.aticq(math.radians(ra) + origins, math.radians(dec), astrometry)
    return math.degrees(found[0]) % 360.0, math.degrees(found[1])
