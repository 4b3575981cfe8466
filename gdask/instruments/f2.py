"""FLAMINGOS-2: one array; images, long-slit and multi-object spectra. Facts in f2.toml."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from gdask.instruments import f2_array, gemini, rules, spectra
from gdask.instruments.f2_array import geometries, true_sections
from gdask.instruments.rules import (
    format_section,
    from_header_if_prepared,
    parse_section,
    up_to_component_number,
    without_component_number,
)
from gdask.instruments.view import Descriptor, Rule, TagSet, as_number, header_value, tagset

if TYPE_CHECKING:
    from gdask.instruments.view import View

__all__ = ["DESCRIPTORS", "TAGS", "geometries", "true_sections"]

# Tags. Before March 2010 the keywords ended in POS: GRISMPOS, DCKERPOS, FILT1POS, LYOTPOS.


def dark(view: View) -> TagSet | None:
    closed = any(view.text(name).startswith("DK") for name in ("FILTER1", "FILTER2"))
    return (
        tagset("DARK CAL", blocks="IMAGE SPECT")
        if closed or view.get("OBSTYPE") == "DARK"
        else None
    )


def image(view: View) -> TagSet | None:
    return tagset("IMAGE") if "Open" in (view.get("GRISM"), view.get("GRISMPOS")) else None


def is_spectrum(view: View) -> bool:
    return any(view.text(name).startswith(("JH", "HK", "R3K")) for name in ("GRISM", "GRISMPOS"))


def slit(view: View) -> TagSet | None:
    deckers, mask = (view.get("DECKER"), view.get("DCKERPOS")), view.text("MOSPOS")
    return (
        _slit_tags("LS", view) if "Long_slit" in deckers or re.match(r".?pix-slit", mask) else None
    )


def mask(view: View) -> TagSet | None:
    named = "mos" in (view.get("DECKER"), view.get("DCKERPOS")) or view.text("MOSPOS").startswith(
        "mos"
    )
    return _slit_tags("MOS", view) if named else None


def _slit_tags(what: str, view: View) -> TagSet:
    """Tags of a spectrum through a slit or mask, or of an image through it (an acquisition)."""
    return (
        tagset(f"{what} SPECT")
        if is_spectrum(view)
        else tagset(f"{what} THRUSLIT", if_present="IMAGE")
    )


def calibration(view: View) -> tuple[TagSet, ...]:
    found = [tagset(f"{one} CAL") for one in ("ARC", "FLAT") if view.get("OBSTYPE") == one]
    if view.text("OBJECT").upper() == "TWILIGHT":
        found.append(tagset("TWILIGHT CAL", blocks="" if view.get("GRISM") == "Open" else "FLAT"))
    if view.get("PROCSTND"):
        found.append(tagset("STANDARD CAL"))
    if view.text("DISPERSR").startswith("DISP_WOLLASTON"):
        found.append(tagset("POL"))
    elif view.text("DISPERSR").startswith("DISP_PRISM"):
        found.append(tagset("SPECT IFU"))
    return tuple(found)


TAGS: dict[str, Rule] = {
    "dark": dark,
    "image": image,
    "slit": slit,
    "mask": mask,
    "calibration": calibration,
}


# Descriptors


def lyot_stop(view: View) -> str | None:
    """What the Lyot wheel holds: a stop, since 2022 also a filter."""
    value = view.text("LYOT") or view.text("LYOTPOS")
    return None if value in ("", "Undefined") else value


def camera(view: View, pretty: bool = False, stripID: bool = False) -> str:
    """Focal ratio from the Lyot stop, else from the keyword FOCUS, else from the pixel scale."""
    name = lyot_stop(view)
    if name is None or not name.startswith("f/"):
        focus = view.text("FOCUS")
        if not re.match(r"f/\d+$", focus):
            scale = view.number("PIXSCALE") if view.prepared else view("pixel_scale")
            fine = scale is not None and scale <= view.facts["camera_scale"]
            focus = "f/32" if fine else view.facts["camera"]
        name = focus + (view.facts["camera_id"] if focus == view.facts["camera"] else "_G9999")
    return without_component_number(name) if pretty or stripID else name


def filter_name(
    view: View, pretty: bool = False, stripID: bool = False, keepID: bool = False
) -> str | None:
    """Filters in the beam, joined by '&'.

    With `pretty`, only those that matter, without component numbers; with `keepID`, those with.
    """
    names = [view.get("FILTER1"), view.get("FILTER2")]
    if None in names:
        names = [view.get("FILT1POS"), view.get("FILT2POS")]
    if None in names:
        return None
    third = lyot_stop(view)
    if third is not None and not third.startswith(("f", "GEMS", "Hart")):
        names.append(third)
    wheels = [str(name) for name in names]
    if keepID:
        parts = [up_to_component_number(name) for name in wheels]
    else:
        parts = [without_component_number(name) for name in wheels] if pretty or stripID else wheels
    return _filters_that_matter(parts) if pretty or keepID else "&".join(parts)


def _filters_that_matter(parts: list[str]) -> str:
    """Filters joined by '&', without open positions.

    'dark', 'blank' or 'open' where no light or all of it passes.
    """
    wheels = parts[:2]
    if any("DK" in part for part in wheels):
        return "dark"
    if any("Block" in part or "Dark" in part for part in wheels):
        return "blank"
    shown = [part for part in wheels if "open" not in part.lower()] + parts[2:]
    return "&".join(shown) or "open"


def disperser(view: View, pretty: bool = False, stripID: bool = False) -> str | None:
    value = view.text("GRISM") or view.text("GRISMPOS")
    return (without_component_number(value) if pretty or stripID else value) or None


def section_or_pixels(name: str) -> Descriptor:
    """Descriptor: a section, from the keyword if the file is prepared.

    Raw headers have none: f2_array finds it.
    """

    def value_of(view: View, pretty: bool = False) -> list[Any]:
        found = (
            [parse_section(value) for value in view.each(name)]
            if view.prepared
            else [None] * len(view.ext)
        )
        found = [value or _section(view, number) for number, value in enumerate(found)]
        return [format_section(value) for value in found] if pretty else found

    return value_of


def _section(view: View, number: int) -> list[int] | None:
    size = _all_pixels(view.ext[number])
    section = f2_array.section_of(view, number, (size[3], size[1])) if size else None
    return list(section) if section else None


def data_section(view: View, pretty: bool = False) -> list[Any]:
    """All pixels that are there, unless a prepared file says otherwise."""
    found = (
        [parse_section(value) for value in view.each("DATASEC")]
        if view.prepared
        else [None] * len(view.ext)
    )
    found = [value or _all_pixels(header) for value, header in zip(found, view.ext)]
    return [format_section(value) for value in found] if pretty else found


def _all_pixels(header: Any) -> list[int] | None:
    ny, nx = (as_number(header_value(header, name)) for name in ("NAXIS2", "NAXIS1"))
    return None if None in (ny, nx) else [0, nx, 0, ny]


def central_wavelength(
    view: View, asMicrometers: bool = False, asNanometers: bool = False, asAngstroms: bool = False
) -> float | None:
    """Metres unless an option asks for another unit.

    Some filters' WAVELENG is wrong: see setting_nm in the facts.
    """
    angstrom = view.number("WAVELENG")
    nm = None if angstrom is None else angstrom * 0.1
    nm = view.facts["setting_nm"].get(view("filter_name", keepID=True), nm)
    if nm is not None and nm < 0:
        first = (view("filter_name", pretty=True) or " ")[0]
        nm = view.facts["r3k_nm"].get(first) if view("disperser", pretty=True) == "R3K" else None
    return (
        None if nm is None else spectra.to_unit(nm * 1e-9, asMicrometers, asNanometers, asAngstroms)
    )


def dispersion(
    view: View, asMicrometers: bool = False, asNanometers: bool = False, asAngstroms: bool = False
) -> list[float] | None:
    """Metres per pixel along y unless an option asks for another unit.

    That of the grism behind this filter; None for a pair that the facts do not know.
    """
    grism, name = view("disperser", pretty=True), view("filter_name", keepID=True)
    nm = view.facts["dispersion_nm"].get(grism, {}).get(name)
    return (
        None
        if nm is None
        else [spectra.to_unit(nm * 1e-9, asMicrometers, asNanometers, asAngstroms)] * len(view.ext)
    )


def slit_width(view: View) -> float | None:
    """Arcsec, for a slit named by its width in pixels; None for any other mask."""
    match, scale = re.match(r"(\d+)pix-slit$", view("focal_plane_mask") or ""), view("pixel_scale")
    return int(match[1]) * scale if match and scale else None


def focal_plane_mask(view: View, pretty: bool = False, stripID: bool = False) -> str | None:
    """Name of the mask. In images MASKNAME may hold anything: MOSPOS 'Open' wins."""
    position = view.text("MOSPOS")
    return (position if position == "Open" else view.text("MASKNAME")) or None


def read_mode(view: View) -> str | None:
    reads = view.number("LNRS")
    return None if reads is None else str(int(reads))


def array_fact(view: View, fact: str) -> float | None:
    """A fact of the array; None for a read mode that the facts do not know."""
    mode = read_mode(view)
    if mode not in view.facts["read_modes"]:
        return None
    value = view.facts["arrays"][0][fact]
    return value[mode] if isinstance(value, dict) else value


def gain(view: View) -> list[float | None]:
    """e-/ADU: reads are summed."""
    value = array_fact(view, "gain")
    return [value / view.number("LNRS") if value else None] * len(view.ext)


def read_noise(view: View) -> list[float | None]:
    """Electrons of one coadd; `prepare` writes that of the sum of all."""
    return [array_fact(view, "read_noise")] * len(view.ext)


def saturation_level(view: View) -> list[int | None]:
    """In the units of the data: the well over the present gain (1 if in electrons)."""
    well = array_fact(view, "well")
    return [
        int(well / value) if well and value and abs(value) > 1e-9 else None
        for value in view("gain")
    ]


def non_linear_level(view: View) -> list[int | None]:
    fraction = array_fact(view, "linear_fraction")
    return [
        int(fraction * level) if fraction and level else None for level in view("saturation_level")
    ]


def nominal_photometric_zeropoint(view: View) -> list[float | None]:
    """Magnitude of 1 e-/s, or of 1 ADU/s where the data are in ADU."""
    in_camera = camera(view, pretty=True) == view.facts["camera"]
    table = view.facts["zero_points"].get(filter_name(view, pretty=True)) if in_camera else None
    in_adu = view("is_in_adu")
    return [
        table[0] - (2.5 * math.log10(value) if in_adu else 0.0)
        if table and value and value > 0
        else None
        for value in view("gain")
    ]


def pixel_scale(view: View) -> float | None:
    return rules.pixel_scale(view) or view.number("PIXSCALE")


def position_angle(view: View) -> float | None:
    """Degrees, East of North, of +y."""
    value = view.number("PA")
    return None if value is None else (value + view.facts["ipa_offset"]) % 360


def reversed_offset(name: str) -> Descriptor:
    """Descriptor: a telescope offset with the other sign.

    The detector's axes are swapped and reversed against the telescope's.
    """

    def value_of(view: View) -> float | None:
        value = view.number(name)
        return None if value is None else -value

    return value_of


def detector_y_offset(view: View) -> float | None:
    value = gemini.offset_in_pixels("POFFSET", -1)(view)
    return -value if value is not None and view.get("INPORT") == 1 else value


def wcs_icrs(view: View) -> tuple[float | None, float | None]:
    """Reference position of the WCS, degrees, ICRS.

    The header of a non-sidereal frame has the apparent place, which is converted.
    """
    ra, dec = rules.wcs_position(view)
    if ra is None or dec is None:
        return ra, dec
    when = view("ut_datetime")
    if when is None or "NON_SIDEREAL" not in view.tags:
        # To radians and back: so the last digits are those of the field's listings.
        return math.degrees(math.radians(ra)), math.degrees(math.radians(dec))
    return f2_array.apparent_to_icrs(ra, dec, when)


def group_id(view: View) -> str:
    tags, additional = view.tags, ""
    names = ["observation_id", "filter_name", "camera", "exposure_time"]
    if "DARK" in tags:
        names = ["exposure_time", "coadds"]
    elif {"IMAGE", "FLAT"} <= tags:
        names, additional = (
            ["filter_name", "camera", "exposure_time", "observation_id"],
            "F2_IMAGE_FLAT",
        )
    elif {"IMAGE", "TWILIGHT"} <= tags:
        names, additional = ["filter_name", "camera"], "F2_IMAGE_TWILIGHT"
    names += ["read_mode", "detector_section"] + (
        ["disperser", "focal_plane_mask"] if "SPECT" in tags else []
    )
    return gemini.group_id(view, *names, additional=additional)


DESCRIPTORS: dict[str, Descriptor] = {
    "array_section": section_or_pixels("ARRAYSEC"),
    "camera": camera,
    "central_wavelength": central_wavelength,
    "data_section": data_section,
    "detector_section": section_or_pixels("DETSEC"),
    "detector_x_offset": gemini.offset_in_pixels("QOFFSET", -1),
    "detector_y_offset": detector_y_offset,
    "disperser": disperser,
    "dispersion": dispersion,
    "dispersion_axis": lambda view: [2] * len(view.ext),  # along y
    "filter_name": filter_name,
    "focal_plane_mask": focal_plane_mask,
    "gain": from_header_if_prepared("GAIN", gain),
    "group_id": group_id,
    "lyot_stop": lyot_stop,
    "nominal_photometric_zeropoint": nominal_photometric_zeropoint,
    "non_linear_level": from_header_if_prepared("NONLINEA", non_linear_level),
    "pixel_scale": pixel_scale,
    "position_angle": position_angle,
    "read_mode": read_mode,
    "read_noise": from_header_if_prepared("RDNOISE", read_noise),
    "saturation_level": from_header_if_prepared("SATLEVEL", saturation_level),
    "slit_width": slit_width,
    "telescope_x_offset": reversed_offset("YOFFSET"),
    "telescope_y_offset": reversed_offset("XOFFSET"),
    "wcs_dec": lambda view: wcs_icrs(view)[1],
    "wcs_ra": lambda view: wcs_icrs(view)[0],
}
