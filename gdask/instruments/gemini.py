"""Tags and descriptors that all Gemini instruments share.

An instrument's own module adds to them or replaces them by name.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from gdask.instruments import rules, spectra
from gdask.instruments.rules import (
    from_component_keyword,
    from_keyword,
    from_number_keyword,
    from_section_keyword,
    up_to_component_number,
    without_component_number,
)
from gdask.instruments.view import Descriptor, Rule, TagSet, tagset

if TYPE_CHECKING:
    from gdask.instruments.view import View

_FACTS = tomllib.loads(Path(__file__).with_name("gemini.toml").read_text(encoding="utf-8"))
#: Keywords of processed calibrations, DRAGONS' and Gemini IRAF's.
PROCESSED_KEYWORDS = frozenset(_FACTS["processed"])
#: Nominal centres of the wavelength bands, micron (Gemini's convention, as the archive lists
#: wavelength_band).
WAVELENGTH_BANDS: dict[str, float] = _FACTS["wavelength_bands"]
#: Central wavelengths of common filters, micron, where an instrument's facts have none of that
#: name.
FILTER_WAVELENGTHS: dict[str, float] = _FACTS["filters"]


# Tags
#: All tags that rules of Gemini's instruments give, beside the names of instruments.
KNOWN_TAGS = tagset(
    "ACQUISITION ARC AT_ZENITH AZEL_TARGET BPM CAL DARK DOMEFLAT EXTRACTED FLAT FRINGE GCALFLAT "
    "GCAL_IR_OFF GCAL_IR_ON GEMINI IFU IMAGE LAMPOFF LAMPON LS MASK MOS NODCHOP NON_SIDEREAL "
    "NORTH OVERSCAN_SUBTRACTED OVERSCAN_TRIMMED PINHOLE POL PREPARED PROCESSED PROCESSED_SCIENCE "
    "RAW SIDEREAL SOUTH SPECT STANDARD TELLURIC THRUSLIT TWILIGHT UNPREPARED"
).add


def observatory(view: View) -> TagSet:
    site = view.text("OBSERVAT").upper()
    known = {"GEMINI-NORTH": " NORTH", "GEMINI-SOUTH": " SOUTH"}
    return tagset(f"{view.facts['name']} GEMINI{known.get(site, '')}")


def acquisition(view: View) -> TagSet | None:
    return tagset("ACQUISITION") if view.get("OBSCLASS") in ("acq", "acqCal") else None


def pointing(view: View) -> TagSet | None:
    """AZEL_TARGET where the telescope does not follow the sky, AT_ZENITH at airmass 1."""
    if view.get("FRAME") != "AZEL_TOPO":
        return None
    return tagset("AZEL_TARGET AT_ZENITH" if view("airmass") == 1.0 else "AZEL_TARGET")


def sidereal(view: View) -> TagSet | None:
    if not {view.get("TRKFRAME"), view.get("FRAME")} & {"FK5", "APPT"}:
        return None
    still = view.number("DECTRACK") == 0 and view.number("RATRACK") == 0
    return tagset("SIDEREAL" if still else "NON_SIDEREAL")


def gcal_flat(view: View) -> TagSet | None:
    name = view.text("GCALLAMP")
    return tagset("GCALFLAT FLAT CAL") if name == "IRhigh" or name.startswith("QH") else None


def lamp(view: View) -> TagSet | None:
    """State of the GCAL lamp: its name stays in the header when it is off, the shutter tells."""
    name, shutter = view.text("GCALLAMP"), view.get("GCALSHUT")
    continuum = name in ("IRhigh", "IRlow") or name.startswith("QH")
    if shutter == "OPEN" and continuum:
        return tagset("GCAL_IR_ON LAMPON", blocked_by="PROCESSED")
    if shutter == "CLOSED" and (continuum or name == "No Value"):
        return tagset("GCAL_IR_OFF LAMPOFF", blocked_by="PROCESSED PINHOLE")
    return None


def bad_pixel_mask(view: View) -> TagSet | None:
    if not {"BPMASK", "PROCBPM"} & set(view.phu):
        return None
    return tagset(
        "BPM CAL PROCESSED",
        blocks="IMAGE SPECT NON_SIDEREAL AZEL_TARGET GCALFLAT LAMPON LAMPOFF "
        "GCAL_IR_ON GCAL_IR_OFF DARK",
    )


def slit_mask(view: View) -> TagSet | None:
    return tagset("MASK", blocks="IMAGE SPECT") if view.text("OBSTYPE").upper() == "MASK" else None


def mode(view: View) -> TagSet | None:
    """OBSMODE, where an instrument writes it: IMAGE, or a kind of spectrum."""
    name = view.text("OBSMODE").upper()
    return tagset(name if name == "IMAGE" else f"{name} SPECT") if name else None


def chopping(view: View) -> TagSet | None:
    return tagset("NODCHOP") if view.get("DATATYPE") == "marked-nodandchop" else None


def status(view: View) -> tuple[TagSet, ...]:
    """How far the reduction went, from the time stamps of steps in the primary header."""
    keywords = set(view.phu)
    found = [tagset("PREPARED" if any("PREPAR" in one for one in keywords) else "UNPREPARED")]
    if "GEM-TLM" not in keywords:
        found.append(tagset("RAW"))
    if keywords & PROCESSED_KEYWORDS:
        found.append(tagset("PROCESSED"))
    if keywords & {"GIFRINGE", "PROCFRNG"}:
        found.append(tagset("FRINGE CAL"))
    if "EXTRACT" in keywords:
        found.append(tagset("EXTRACTED"))
    if view.get("PROCTELL"):
        found.append(tagset("TELLURIC CAL"))
    if keywords & {"PROCSCI", "GMOSAIC"} and view.get("OBSTYPE") == "OBJECT":
        found.append(tagset("PROCESSED_SCIENCE PROCESSED", blocks="RAW"))
    for part, tag in (("TRIMOVER", "OVERSCAN_TRIMMED"), ("SUBOVER", "OVERSCAN_SUBTRACTED")):
        if any(part in one for one in keywords):
            found.append(tagset(tag))
    return tuple(found)


TAGS: dict[str, Rule] = {
    "observatory": observatory,
    "acquisition": acquisition,
    "pointing": pointing,
    "sidereal": sidereal,
    "gcal_flat": gcal_flat,
    "lamp": lamp,
    "bad_pixel_mask": bad_pixel_mask,
    "slit_mask": slit_mask,
    "mode": mode,
    "chopping": chopping,
    "status": status,
}


# Descriptors


def filter_name(
    view: View, pretty: bool = False, stripID: bool = False, keepID: bool = False
) -> str | None:
    """Filters in the beam, joined by '&'.

    With `pretty`, without component numbers, open positions and neutral densities; with `keepID`,
    the same with component numbers.
    """
    names = view.get("FILTER1"), view.get("FILTER2")
    if None in names:
        return None
    change = (
        up_to_component_number if keepID else without_component_number if pretty or stripID else str
    )
    parts = [change(str(name)) for name in names]
    if not (pretty or keepID):
        return "&".join(parts)
    shown = [
        one
        for one in parts
        if not (one.lower().startswith("nd") or "open" in one.lower() or "Clear" in one)
    ]
    shown = shown or ["open"]
    for part, name in (("Block", "blank"), ("Dark", "blank"), ("DK", "dark")):
        shown += [name] if any(part in one for one in parts) else []
    return "&".join(shown[:2])


def effective_wavelength(
    view: View, asMicrometers: bool = False, asNanometers: bool = False, asAngstroms: bool = False
) -> float | None:
    """Wavelength of the filter (image) or of the grating's setting (spectrum).

    It is in metres unless an option asks for another unit.
    """
    micron = None
    if "IMAGE" in view.tags:
        name = view("filter_name", pretty=True)
        micron = view.facts.get("filters", {}).get(name, FILTER_WAVELENGTHS.get(name))
    elif "SPECT" in view.tags:
        micron = view("central_wavelength", asMicrometers=True)
    if micron is None:
        return None
    return (
        micron
        if asMicrometers
        else micron * (1e3 if asNanometers else 1e4 if asAngstroms else 1e-6)
    )


def wavelength_band(view: View) -> str | None:
    """Name of the band whose nominal centre is nearest to the effective wavelength."""
    micron = effective_wavelength(view, asMicrometers=True)
    return (
        None
        if micron is None
        else min(WAVELENGTH_BANDS, key=lambda name: abs(WAVELENGTH_BANDS[name] - micron))
    )


def airmass(view: View) -> float | None:
    value = view.number("AIRMASS")
    return value if value is not None and value >= 1 else None


def cass_rotator_pa(view: View) -> float | None:
    value = view.number("CRPA")
    return value if value is not None and abs(value) <= 360 else None


def coadds(view: View) -> int:
    value = view.number("COADDS")
    return int(value) if value is not None and value >= 1 else 1


def exposure_time(view: View) -> float | None:
    """Seconds of one exposure.

    Where coadds are summed and the header still gives the time of one of them (raw data), it is the
    time of the sum.
    """
    value = view.number("EXPTIME")
    if value is None or value < 0:
        return None
    return value * view("coadds") if view("is_coadds_summed") and not view.prepared else value


def offset_in_pixels(name: str, factor: int, flipped: bool = False) -> Descriptor:
    """Descriptor: an offset (arcsec) in pixels of the detector.

    With `flipped`, its sign changes where the instrument is on the telescope's bottom port.
    """

    def value_of(view: View) -> float | None:
        arcsec, scale = view.number(name), view("pixel_scale")
        if arcsec is None or not scale:
            return None
        sign = -factor if flipped and view.get("INPORT") == 1 else factor
        return sign * (arcsec / scale)

    return value_of


def gcal_lamp(view: View) -> str | None:
    """Lamp in use; 'Off' if there is none or it is behind a closed shutter.

    None if the header has no keywords of GCAL.
    """
    lamps, shutter = view.text("GCALLAMP"), view.text("GCALSHUT")
    if not {"GCALLAMP", "GCALSHUT"} <= set(view.phu):
        return None
    closed = shutter.upper() == "CLOSED" and lamps.upper() in ("IRHIGH", "IRLOW")
    return "Off" if closed or lamps.upper() in ("", "NO VALUE") else lamps


def group_id(view: View, *names: str, additional: str = "") -> str:
    """Values of these descriptors in one text: frames that may be combined have the same."""
    values = [
        view(name, pretty=True) if view.accepts(name, "pretty") and name != "camera" else view(name)
        for name in names
    ]
    return "_".join([*(str(value) for value in values), *([additional] if additional else [])])


def is_in_adu(view: View) -> bool:
    units = view.each("BUNIT")
    return all(str(unit or "ADU").upper() == "ADU" for unit in units)


def from_percentile_keyword(name: str) -> Descriptor:
    """Descriptor: observing conditions ('Any', '70-percentile') as a number."""

    def value_of(view: View) -> int | None:
        text = view.text(name)
        match = re.match(r"(\d\d)-percentile$", text)
        return 100 if text == "Any" else int(match[1]) if match else None

    return value_of


def qa_state(view: View) -> str:
    met, quality = view.text("RAWPIREQ") or "UNKNOWN", view.text("RAWGEMQA") or "UNKNOWN"
    pair = met.upper(), quality.upper()
    if "UNKNOWN" in pair:
        return "Undefined"
    if pair[1] == "USABLE" and pair[0] in ("YES", "NO"):
        return "Pass" if pair[0] == "YES" else "Usable"
    if pair[1] == "BAD":
        return "Fail"
    return "CHECK" if "CHECK" in pair else f"{met}:{quality}"


def wavefront_sensor(view: View) -> str | None:
    """Sensors that guide, joined by '&'; None if there is none.

    GeMS is known by its guide stars: its probes read 'parked' while it guides.
    """
    found = [
        name for name in ("AOWFS", "OIWFS", "PWFS1", "PWFS2") if view.get(f"{name}_ST") == "guiding"
    ]
    found += ["GEMS"] if view.given("GWFS1CFG") is not None else []
    return "&".join(sorted(found)) or None


def nominal_atmospheric_extinction(view: View) -> float | None:
    """Magnitudes above one airmass, from the filter's coefficient (0 without one)."""
    mass = airmass(view)
    coefficient = view.facts.get("extinction", {}).get(view("filter_name", pretty=True), 0.0)
    return None if mass is None else coefficient * (mass - 1.0)


def constant(value: object) -> Descriptor:
    """Descriptor: the same for all files."""
    return lambda view: value


def binning(view: View) -> str:
    return f"{view('detector_x_bin')}x{view('detector_y_bin')}"


def from_binning_keyword(name: str) -> Descriptor:
    """Descriptor: binning along an axis, 1 where the header does not speak of it."""
    return lambda view: view.number(name) or 1


def local_time(view: View) -> object:
    return rules.parse_time(view.text("LT"))


def array_name(view: View) -> list[str | None]:
    return view.each("ARRAYNAM")


def ao_seeing(view: View) -> float | None:
    """Natural seeing (arcsec at 0.5 micron) from the adaptive optics.

    Without AOSEEING it is 0.98 wavelengths over Fried's parameter (RZEROVAL, cm).
    """
    value, fried = view.number("AOSEEING"), view.number("RZEROVAL")
    return value if value is not None or not fried else (206265.0 * 0.98 * 0.5e-6) / (fried * 0.01)


def calibration_key(view: View) -> str | None:
    """The data label; that of a stack is the label of its first frame."""
    return view.text("DATALAB").replace("_stack", "") or None


DESCRIPTORS: dict[str, Descriptor] = {
    "airmass": airmass,
    "ao_seeing": ao_seeing,
    "calibration_key": calibration_key,
    "amp_read_area": from_section_keyword("AMPROA"),
    "array_name": array_name,
    "array_section": from_section_keyword("ARRAYSEC"),
    "azimuth": from_number_keyword("AZIMUTH"),
    "binning": binning,
    "bpm_used": from_keyword("BPMIM"),
    "camera": from_component_keyword("CAMERA"),
    "cass_rotator_pa": cass_rotator_pa,
    "central_wavelength": spectra.central_wavelength,
    "coadds": coadds,
    "dark_used": from_keyword("DARKIM"),
    "data_label": from_keyword("DATALAB"),
    "data_section": from_section_keyword("DATASEC"),
    "dec": rules.dec,
    "decker": from_component_keyword("DECKER"),
    "detector_name": from_keyword("DETNAME"),
    "detector_roi_setting": constant("Fixed"),
    "detector_rois_requested": constant(None),
    "detector_section": from_section_keyword("DETSEC"),
    "detector_x_bin": from_binning_keyword("XBIN"),
    "detector_x_offset": offset_in_pixels("POFFSET", 1, flipped=True),
    "detector_y_bin": from_binning_keyword("YBIN"),
    "detector_y_offset": offset_in_pixels("QOFFSET", 1),
    "disperser": from_component_keyword("DISPERSR"),
    "dispersion": spectra.dispersion,
    "dispersion_axis": spectra.dispersion_axis,
    "effective_wavelength": effective_wavelength,
    "elevation": from_number_keyword("ELEVATIO"),
    "exposure_time": exposure_time,
    "filter_name": filter_name,
    "flat_used": from_keyword("FLATIM"),
    "focal_plane_mask": from_component_keyword("FPMASK"),
    "gain": lambda view: view.each("GAIN"),
    "gain_setting": from_keyword("GAINSET"),
    "gcal_lamp": gcal_lamp,
    "group_id": lambda view: view("observation_id"),
    "instrument": lambda view: view.facts["name"],
    "is_ao": lambda view: view.get("AOFOLD") == "IN",
    "is_coadds_summed": lambda view: bool(view.facts.get("coadds_summed", True)),
    "is_in_adu": is_in_adu,
    "local_time": local_time,
    "lyot_stop": from_component_keyword("LYOTSTOP"),
    **rules.TIME_DESCRIPTORS,
    "mdf_row_id": spectra.mdf_row_id,
    "nominal_atmospheric_extinction": nominal_atmospheric_extinction,
    "nominal_photometric_zeropoint": lambda view: view.each("NOMPHOTZ"),
    "non_linear_level": lambda view: view.each("NONLINEA"),
    "number_combined": lambda view: view.number("NCOMBINE") or 1,
    "object": from_keyword("OBJECT"),
    "observation_class": from_keyword("OBSCLASS"),
    "observation_epoch": from_keyword("OBSEPOCH"),
    "observation_id": from_keyword("OBSID"),
    "observation_type": from_keyword("OBSTYPE"),
    "overscan_section": from_section_keyword("OVERSEC"),
    "pixel_scale": rules.pixel_scale,
    "position_angle": from_number_keyword("PA"),
    "program_id": from_keyword("GEMPRGID"),
    "pupil_mask": from_component_keyword("PUPILMSK"),
    "qa_state": qa_state,
    "ra": rules.ra,
    **{
        f"raw_{band}": from_percentile_keyword(f"RAW{band.upper()}")
        for band in ("bg", "cc", "iq", "wv")
    },
    "read_mode": from_keyword("READMODE"),
    "read_noise": lambda view: view.each("RDNOISE"),
    "read_speed_setting": from_keyword("RDSPDSET"),
    **{
        f"requested_{band}": from_percentile_keyword(f"REQ{band.upper()}")
        for band in ("bg", "cc", "iq", "wv")
    },
    "saturation_level": lambda view: view.each("SATLEVEL"),
    "slit": from_keyword("SLIT"),
    "slit_width": constant(None),
    "target_dec": rules.target_dec,
    "target_ra": rules.target_ra,
    "telescope": from_keyword("TELESCOP"),
    "telescope_x_offset": from_number_keyword("XOFFSET"),
    "telescope_y_offset": from_number_keyword("YOFFSET"),
    "ut_date": rules.ut_date,
    "ut_datetime": rules.ut_datetime,
    "ut_time": rules.ut_time,
    "wavefront_sensor": wavefront_sensor,
    "wavelength_band": wavelength_band,
    "wcs_dec": lambda view: rules.wcs_position(view)[1],
    "wcs_ra": lambda view: rules.wcs_position(view)[0],
    "well_depth_setting": from_keyword("WELDEPTH"),
}
