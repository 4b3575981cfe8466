"""GSAOI: four arrays behind GeMS. Facts in gsaoi.toml.

The header WCS of the four arrays disagree with each other by up to 2 arcsec. Of them, only one
point of one array is used: the sky position at the pixel where the distortion model has its
origin. The position angle is the keyword PA: array 4's CD matrix holds that array's own rotation
of 0.8 degrees and must not be taken for it.
"""

from __future__ import annotations

import math
from datetime import date
from typing import TYPE_CHECKING

import numpy as np

from gdask.instruments import gemini
from gdask.instruments.rules import (
    from_component_keyword,
    from_header_if_prepared,
    from_keyword,
    from_number_keyword,
    from_section_keyword,
    parse_section,
)
from gdask.instruments.view import (
    Descriptor,
    Rule,
    TagSet,
    header_number,
    header_value,
    tagset,
)
from gdask.model import GdaskError

if TYPE_CHECKING:
    from gdask.instruments.view import View
    from gdask.kernels.geometry.projection import Geometry

__all__ = ["DESCRIPTORS", "TAGS", "geometries", "true_sections"]


def image_or_flat(view: View) -> TagSet:
    """IMAGE, and the tags of flats. Dome flats are known by OBJECT alone (OBSTYPE is OBJECT)."""
    tags, name = "IMAGE", view.text("OBJECT").upper()
    if view.get("OBSTYPE") == "FLAT":
        tags += " FLAT CAL"
    if "DOMEFLAT" in name:
        tags += " DOMEFLAT FLAT CAL"
    elif "TWILIGHT" in name:
        tags += " TWILIGHT FLAT CAL"
    return tagset(tags)


def dark(view: View) -> TagSet | None:
    return tagset("DARK CAL", blocks="IMAGE") if view.get("OBSTYPE") == "DARK" else None


def lamp(view: View) -> TagSet | None:
    """State of the dome lamp, from OBJECT.

    GCAL's lamp is not considered: no GCAL flat was ever taken with it off.
    """
    state = {"DOMEFLAT": "LAMPON", "DOMEFLAT OFF": "LAMPOFF"}.get(view.text("OBJECT").upper())
    return tagset(state, blocked_by="PROCESSED") if state else None


TAGS: dict[str, Rule] = {"kind": image_or_flat, "dark": dark, "lamp": lamp}


def array_name(view: View) -> list[str | None]:
    """Identity of each array; the detector's name where arrays have been put together."""
    names = view.each("ARRAYID")
    return names if None not in names else [view.get("DETECTOR")] * len(names)


def read_speed_setting(view: View) -> str:
    """Read mode as observers name it, from the number of non-destructive reads."""
    reads = view.number("LNRS")
    return view.facts["read_modes"].get("" if reads is None else str(int(reads)), "Unknown")


def array_fact(view: View, fact: str) -> list[float | None]:
    """A fact of each array; None for an array or a read mode that the facts do not know."""
    mode = read_speed_setting(view)
    known = {array["name"]: array for array in view.facts["arrays"]}
    values = [
        known.get(name, {}).get(fact) if mode != "Unknown" else None for name in array_name(view)
    ]
    return [value.get(mode) if isinstance(value, dict) else value for value in values]


def read_noise(view: View) -> list[float | None]:
    """Electrons; coadds are averaged."""
    root = math.sqrt(view("coadds"))
    return [round(value / root, 2) if value else None for value in array_fact(view, "read_noise")]


def saturation_level(view: View) -> list[float | None]:
    """Level of each array in the units of the data.

    It is the facts' level (ADU) times the original gain, over the present one (1 if in electrons).
    """
    levels = zip(array_fact(view, "saturation"), array_fact(view, "gain"), view("gain"))
    return [
        level * original / present if level and original and present else None
        for level, original, present in levels
    ]


def non_linear_level(view: View) -> list[float | None]:
    pairs = zip(array_fact(view, "linear_fraction"), view("saturation_level"))
    return [fraction * level if fraction and level else None for fraction, level in pairs]


def nominal_photometric_zeropoint(view: View) -> list[float | None]:
    """Magnitude of 1 e-/s, or of 1 ADU/s where the data are in ADU."""
    order = [array["name"] for array in view.facts["arrays"]]
    table = view.facts["zero_points"].get(view("filter_name", pretty=True))
    in_adu = view("is_in_adu")

    def value_of(name: str | None, gain: float | None) -> float | None:
        if table is None or name not in order or not gain or gain <= 0:
            return None
        return table[order.index(name)] - (2.5 * math.log10(gain) if in_adu else 0.0)

    return [value_of(name, gain) for name, gain in zip(array_name(view), view("gain"))]


def wcs_value(axis: int, ctype: str) -> Descriptor:
    """Descriptor: CRVAL (degrees) of an axis, None where its CTYPE is not this one.

    It is that of the first array if it has CRVAL and CTYPE, else that of the primary header.
    """

    def value_of(view: View) -> float | None:
        first = next(iter(view.ext), view.phu)
        whole = (
            header_value(first, f"CRVAL{axis}") is not None
            and header_value(first, f"CTYPE{axis}") is not None
        )
        source = first if whole else view.phu
        found = str(header_value(source, f"CTYPE{axis}"))
        if found.removesuffix("-SIP") != ctype:  # products carry their distortion
            return None
        return header_number(source, f"CRVAL{axis}")

    return value_of


def group_id(view: View) -> str:
    """Observation, filter and exposure time; for flats, the programme in place of the observation.

    Domeflats with the lamp on and off have different observation ids, and a night may have two UT
    dates.
    """
    names = (
        ("filter_name", "exposure_time", "program_id")
        if "FLAT" in view.tags
        else ("observation_id", "filter_name", "exposure_time")
    )
    return gemini.group_id(view, *names, "read_mode", "detector_section")


DESCRIPTORS: dict[str, Descriptor] = {
    "array_name": array_name,
    "array_section": from_section_keyword("CCDSEC"),
    "camera": from_component_keyword("DETECTOR"),
    "detector_name": from_keyword("DETECTOR"),
    "detector_y_offset": gemini.offset_in_pixels("QOFFSET", -1),
    "gain": from_header_if_prepared("GAIN", lambda view: array_fact(view, "gain")),
    "group_id": group_id,
    "nominal_photometric_zeropoint": nominal_photometric_zeropoint,
    "non_linear_level": from_header_if_prepared("NONLINEA", non_linear_level),
    "position_angle": from_number_keyword("PA"),
    "read_noise": from_header_if_prepared("RDNOISE", read_noise),
    "read_speed_setting": read_speed_setting,
    "saturation_level": from_header_if_prepared("SATLEVEL", saturation_level),
    "wcs_dec": wcs_value(2, "DEC--TAN"),
    "wcs_ra": wcs_value(1, "RA---TAN"),
}


# Where the arrays look

Section = tuple[int, int, int, int]

#: From this date the rows of the central 1K x 1K region of interest are off by one: +1 on arrays 1
#: and 2, -1 on arrays 3 and 4 (found by the field on standards). It is the only region of interest
#: that the instrument offers; x1, x2, y1, y2, 0-based half-open.
CENTRAL_ROI = [512, 1536, 512, 1536]
ROW_SHIFT_FROM = date(2013, 5, 13)
ROW_SHIFT = (1, 1, -1, -1)


def true_sections(view: View, shape: tuple[int, int]) -> tuple[Section, ...]:
    """The part of the full 2048 x 2048 array that each array's pixels are, (x1, x2, y1, y2).

    0-based half-open; `shape` (ny, nx) is that of the planes. Raises GdaskError where nothing tells
    it.
    """
    sections = [parse_section(value) for value in view.each("CCDSEC")]
    return tuple(
        _true_section(view, section, number, shape) for number, section in enumerate(sections)
    )


def geometries(view: View, shape: tuple[int, int]) -> tuple[Geometry, ...]:
    """The geometry of each array from the headers: static distortion, pointing, no fit."""
    from gdask.kernels.geometry.projection import Geometry

    plain = [
        Geometry(
            section[0] + 1.0,
            section[2] + 1.0,
            tuple(array["distortion_x"]),
            tuple(array["distortion_y"]),
            0.0,
            0.0,
            0.0,
        )
        for section, array in zip(true_sections(view, shape), view.facts["arrays"], strict=False)
    ]
    # In a region of interest the origin of DETSEC was taken from CRPIX, otherwise that of CCDSEC:
    # the one that fits is right.
    fits = [(_rigid_fit(view, plain, keyword), keyword) for keyword in ("CCDSEC", "DETSEC")]
    _, keyword = min(fits, key=lambda fit: fit[0])
    ra, dec = _pointing(view, keyword)
    # The arrays' header WCS say nothing better: they are turned against PA by 0.02 to 0.03 degrees
    # in headers of 2018, whatever the true angle is.
    pa = float(view("position_angle") or 0.0)
    return tuple(geometry._replace(ra=ra, dec=dec, pa=pa) for geometry in plain)


def header_sky(
    view: View, number: int, x: float, y: float, keyword: str
) -> tuple[float, float] | None:
    """RA, Dec (degrees) that one array's header WCS gives for a 1-based full-array pixel.

    keyword: the section whose origin was taken from CRPIX. None where the header has no WCS.
    """
    from gdask.kernels.geometry.projection import tangent_sky

    header = view.ext[number]
    names = ("CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2", "CD1_1", "CD1_2", "CD2_1", "CD2_2")
    values = {key: header_number(header if key in header else view.phu, key) for key in names}
    if None in values.values():
        return None
    section = parse_section(view.each(keyword)[number]) or [0, 0, 0, 0]
    dx, dy = x - values["CRPIX1"] - section[0], y - values["CRPIX2"] - section[2]
    xi, eta = (3600 * (values[f"CD{i}_1"] * dx + values[f"CD{i}_2"] * dy) for i in (1, 2))
    ra, dec = tangent_sky(xi, eta, values["CRVAL1"], values["CRVAL2"])
    return float(ra), float(dec)


def _pointing(view: View, keyword: str) -> tuple[float, float]:
    """RA, Dec (degrees) of the distortion model's origin, by the WCS of the array it falls on."""
    names = [array["name"] for array in view.facts["arrays"]]
    number = min(names.index(view.facts["origin_array"]), len(view.ext) - 1)
    x, y = view.facts["origin_pixel"]
    sky = header_sky(view, number, x, y, keyword)
    return sky or (float(view("target_ra") or 0.0), float(view("target_dec") or 0.0))


def _rigid_fit(view: View, plain: list[Geometry], keyword: str) -> float:
    """Fit the header's array centres by a rotation of the distortion model's plane.

    Returns the rms that is left (arcsec).
    """
    from gdask.kernels.geometry.projection import tangent_plane, to_plane

    middle = (np.array(view.facts["array_shape"][::-1]) + 1) / 2
    x, y = middle
    found = [header_sky(view, number, x, y, keyword) for number in range(len(plain))]
    centres = [centre for centre in found if centre is not None]
    if len(plain) < 3 or len(centres) < len(plain):
        return float(np.inf)
    ra, dec = _pointing(view, keyword)
    sky = np.array([tangent_plane(*centre, ra, dec) for centre in centres])
    plane = np.array([to_plane(g, middle[0] - g.x0, middle[1] - g.y0) for g in plain])
    sky, plane = sky - sky.mean(axis=0), plane - plane.mean(axis=0)
    # xi = cos pa x + sin pa y, eta = -sin pa x + cos pa y
    angle = np.arctan2(
        (plane[:, 1] * sky[:, 0] - plane[:, 0] * sky[:, 1]).sum(), (plane * sky).sum()
    )
    c, s = np.cos(angle), np.sin(angle)
    residuals = sky - np.column_stack(
        [c * plane[:, 0] + s * plane[:, 1], c * plane[:, 1] - s * plane[:, 0]]
    )
    return float(np.sqrt((residuals**2).sum(axis=1).mean()))


def _true_section(
    view: View, section: list[int] | None, number: int, shape: tuple[int, int]
) -> Section:
    """One array's section of the full array, corrected for the shift of ROW_SHIFT."""
    full = view.facts["array_shape"]
    if section is None:
        if shape != tuple(full):
            raise GdaskError(
                f"{view.path}: array {number + 1} has no CCDSEC and is not full frame; add CCDSEC"
            )
        return 0, full[1], 0, full[0]
    x1, x2, y1, y2 = section
    taken = view("ut_date")
    is_shifted = (
        section == CENTRAL_ROI
        and "BPM" not in view.tags
        and taken is not None
        and taken >= ROW_SHIFT_FROM
    )
    shift = ROW_SHIFT[number] if is_shifted and number < 4 else 0
    return x1, x2, y1 + shift, y2 + shift
