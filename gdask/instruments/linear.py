"""Rules for instruments without static distortion.

Geometry comes from the header WCS, properties of arrays from the facts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gdask.instruments.rules import (
    cd_matrix,
    celestial_headers,
    from_header_if_prepared,
    parse_section,
)
from gdask.instruments.view import Descriptor, header_number
from gdask.model import GdaskError

if TYPE_CHECKING:
    from gdask.instruments.view import View
    from gdask.kernels.geometry.projection import Geometry

Section = tuple[int, int, int, int]


def true_sections(view: View, shape: tuple[int, int]) -> tuple[Section, ...]:
    """The part of the full array that each array's pixels are, 0-based (x1, x2, y1, y2).

    It is DETSEC if its size is right, else all of the array. Raises GdaskError where neither fits.
    """
    found: list[Section] = []
    for value in view.each("DETSEC"):
        section = parse_section(value) or [0, 0, 0, 0]
        fits = (section[3] - section[2], section[1] - section[0]) == tuple(shape)
        if not fits and tuple(shape) != tuple(view.facts["array_shape"]):
            raise GdaskError(
                f"{view.path}: {shape[1]} x {shape[0]} pixels and no DETSEC that tells which "
                "part of the array"
            )
        x1, x2, y1, y2 = section if fits else (0, shape[1], 0, shape[0])
        found.append((x1, x2, y1, y2))
    return tuple(found)


def geometries(view: View, shape: tuple[int, int]) -> tuple[Geometry, ...]:
    """The geometry of each array from its CD matrix, CRPIX and CRVAL.

    Without a WCS, it is the facts' pixel scale with North up, at the target.
    """
    from gdask.kernels.geometry.projection import Geometry

    found, scale = [], view.facts["pixel_scale"] / 3600
    for section, header in zip(true_sections(view, shape), celestial_headers(view), strict=True):
        matrix = cd_matrix(header)
        (a, b), (d, e) = [[-scale, 0.0], [0.0, scale]] if matrix is None else matrix.tolist()
        wcs = [
            None if header is None else header_number(header, key)
            for key in ("CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2")
        ]
        target = [view("target_ra") or 0.0, view("target_dec") or 0.0]
        values: list[Any] = [shape[1] / 2, shape[0] / 2, *target] if None in wcs else wcs
        x, y, ra, dec = values
        x, y = x + section[0], y + section[2]
        east, north = ((-3600 * (i * x + j * y), 3600 * i, 3600 * j) for i, j in ((a, b), (d, e)))
        found.append(
            Geometry(section[0] + 1.0, section[2] + 1.0, east, north, float(ra), float(dec), 0.0)
        )
    return tuple(found)


def fact(name: str, keyword: str) -> Descriptor:
    """Descriptor: a fact of each array ([[arrays]], in the order of the extensions).

    Once the file is prepared, the keyword.
    """
    return from_header_if_prepared(
        keyword, lambda view: [entry.get(name) for entry, _ in zip(view.facts["arrays"], view.ext)]
    )


#: What an instrument's arrays have in ADU and electrons: gain (e-/ADU), read noise (e-), levels
#: (ADU).
DESCRIPTORS: dict[str, Descriptor] = {
    "gain": fact("gain", "GAIN"),
    "read_noise": fact("read_noise", "RDNOISE"),
    "saturation_level": fact("saturation", "SATLEVEL"),
    "non_linear_level": fact("non_linear", "NONLINEA"),
}
