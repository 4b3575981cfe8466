"""Where GSAOI's arrays look: true sections of regions of interest, pointing, and the geometry of each array.

The header WCS of the four arrays disagree with each other by up to 2 arcsec, so only one point of one of them is used:
the sky position at the pixel where the distortion model has its origin. Position angle: the keyword PA; array 4's CD
matrix holds that array's own rotation of 0.8 degrees and must not be taken for it.
"""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np

from gdask.instruments.rules import View, parse_section
from gdask.model import GdaskError

if TYPE_CHECKING:
    from gdask.kernels.geometry import Geometry

Section = tuple[int, int, int, int]

#: From this date the rows of the central 1K x 1K region of interest are one off: +1 on arrays 1 and 2, -1 on 3 and 4
#: (found by the field on standards; the only region of interest that the instrument offers).
CENTRAL_ROI = [512, 1536, 512, 1536]
ROW_SHIFT_FROM = date(2013, 5, 13)
ROW_SHIFT = (1, 1, -1, -1)


def true_sections(view: View, shape: tuple[int, int]) -> tuple[Section, ...]:
    """0-based half-open (x1, x2, y1, y2) of each array's pixels on the full 2048 x 2048 array."""
    sections = [parse_section(value) for value in view.each("CCDSEC")]
    return tuple(_true(view, section, number, shape) for number, section in enumerate(sections))


def geometries(view: View, shape: tuple[int, int]) -> tuple[Geometry, ...]:
    """The geometry of each array as the headers have it: static distortion, pointing, no fitted correction."""
    from gdask.kernels.geometry import Geometry  # compiled code: header-only commands do without it

    ra, dec = pointing(view)
    pa = view("position_angle") or 0.0
    found = []
    for section, array in zip(true_sections(view, shape), view.facts["arrays"], strict=False):
        x0, y0 = section[0] + 1.0, section[2] + 1.0
        found.append(Geometry(x0, y0, tuple(array["distortion_x"]), tuple(array["distortion_y"]), ra, dec, pa))
    return tuple(found)


def pointing(view: View) -> tuple[float, float]:
    """RA, Dec (degrees) of the distortion model's origin, from the header WCS of the array that it falls on."""
    from gdask.kernels.geometry import tangent_sky

    names = [array["name"] for array in view.facts["arrays"]]
    number = names.index(view.facts["origin_array"])
    header = view.ext[number] if len(view.ext) > number else view.ext[-1]
    values = {key: header.get(key, view.phu.get(key)) for key in ("CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2", "CD1_1", "CD1_2", "CD2_1", "CD2_2")}
    if any(not isinstance(value, (int, float)) for value in values.values()):
        return float(view("target_ra") or 0.0), float(view("target_dec") or 0.0)
    x, y = (at - reference for at, reference in zip(view.facts["origin_pixel"], full_crpix(view, number, values), strict=True))
    xi, eta = (3600 * (values[f"CD{i}_1"] * x + values[f"CD{i}_2"] * y) for i in (1, 2))
    ra, dec = tangent_sky(xi, eta, values["CRVAL1"], values["CRVAL2"])
    return float(ra), float(dec)


def full_crpix(view: View, number: int, values: dict[str, Any]) -> tuple[float, float]:
    """CRPIX on the full array. A region of interest has the origin of DETSEC subtracted, or (sub-arrays) of CCDSEC."""
    ccd, det = (parse_section(view.each(keyword)[number]) for keyword in ("CCDSEC", "DETSEC"))
    candidates = []
    for section in (ccd, det):
        if section is not None:
            candidates.append((values["CRPIX1"] + section[0], values["CRPIX2"] + section[2]))
    # The full-frame reference pixels lie around the middle of the mosaic, off the array by less than half of it.
    centre = np.array([-300.0, -500.0])
    return min(candidates, key=lambda point: float(np.hypot(*(np.array(point) - centre))), default=(values["CRPIX1"], values["CRPIX2"]))


def _true(view: View, section: list[int] | None, number: int, shape: tuple[int, int]) -> Section:
    full = view.facts["array_shape"]
    if section is None:
        if shape != tuple(full):
            raise GdaskError(f"{view.path}: array {number + 1} has no CCDSEC and is not full frame; add CCDSEC")
        return 0, full[1], 0, full[0]
    x1, x2, y1, y2 = section
    taken = view("ut_date")
    off = section == CENTRAL_ROI and "BPM" not in view.tags and taken is not None and taken >= ROW_SHIFT_FROM
    shift = ROW_SHIFT[number] if off and number < 4 else 0
    return x1, x2, y1 + shift, y2 + shift
