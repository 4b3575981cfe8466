"""Tags and descriptors that all Gemini instruments share. An instrument's own module adds to them or replaces them by name."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np

from gdask.instruments import rules
from gdask.instruments.rules import (
    Descriptor,
    Rule,
    TagSet,
    View,
    component,
    keyword,
    number,
    section,
    tagset,
    with_id_only,
    without_id,
)

_FACTS = tomllib.loads(Path(__file__).with_name("gemini.toml").read_text(encoding="utf-8"))
#: Keywords of processed calibrations, DRAGONS' and Gemini IRAF's.
PROCESSED = frozenset(_FACTS["processed"])
#: Nominal centres of the wavelength bands, micron (Gemini's convention, as the archive lists wavelength_band).
BANDS: dict[str, float] = _FACTS["wavelength_bands"]
#: Central wavelengths of common filters, micron, where an instrument's facts have none of that name.
FILTERS: dict[str, float] = _FACTS["filters"]
#: Factor from metres to the unit that an option asks for.
UNITS = {"asMicrometers": 1e6, "asNanometers": 1e9, "asAngstroms": 1e10}


# Tags


def observatory(view: View) -> TagSet:
    site = view.text("OBSERVAT").upper()
    known = {"GEMINI-NORTH": " NORTH", "GEMINI-SOUTH": " SOUTH"}
    return tagset(f"{view.facts['name']} GEMINI{known.get(site, '')}")


def acquisition(view: View) -> TagSet | None:
    return tagset("ACQUISITION") if view.get("OBSCLASS") in ("acq", "acqCal") else None


def pointing(view: View) -> TagSet | None:
    """AZEL_TARGET: the telescope does not follow the sky."""
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
    """How far the reduction went: time stamps of the steps in the primary header."""
    keywords = set(view.phu)
    found = [tagset("PREPARED" if any("PREPAR" in one for one in keywords) else "UNPREPARED")]
    if "GEM-TLM" not in keywords:
        found.append(tagset("RAW"))
    if keywords & PROCESSED:
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


def to_unit(metres: float, asMicrometers: bool, asNanometers: bool, asAngstroms: bool) -> float:
    """Wavelength in the unit asked for (at most one), rounded to single precision as the field's listings show it."""
    wanted = {
        "asMicrometers": asMicrometers,
        "asNanometers": asNanometers,
        "asAngstroms": asAngstroms,
    }
    factors = [UNITS[name] for name, on in wanted.items() if on]
    return float(str(np.float32(metres * factors[0] if len(factors) == 1 else metres)))


def filter_name(
    view: View, pretty: bool = False, stripID: bool = False, keepID: bool = False
) -> str | None:
    """Filters in the beam, joined by '&'; pretty: without component numbers, open positions and neutral densities;
    keepID: the same with component numbers."""
    names = view.get("FILTER1"), view.get("FILTER2")
    if None in names:
        return None
    change = with_id_only if keepID else without_id if pretty or stripID else str
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
    """Wavelength of the filter (image) or of the grating's setting (spectrum); metres unless asked otherwise."""
    micron = None
    if "IMAGE" in view.tags:
        name = view("filter_name", pretty=True)
        micron = view.facts.get("filters", {}).get(name, FILTERS.get(name))
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
    micron = effective_wavelength(view, asMicrometers=True)
    return None if micron is None else min(BANDS, key=lambda name: abs(BANDS[name] - micron))


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
    """Seconds; of the sum, where coadds are summed and the header still gives the time of one (raw data)."""
    value = view.number("EXPTIME")
    if value is None or value < 0:
        return None
    return value * view("coadds") if view("is_coadds_summed") and not view.prepared else value


def per_pixel(name: str, factor: int, flipped: bool = False) -> Descriptor:
    """Descriptor: an offset (arcsec) in pixels of the detector; `flipped` changes sign at the bottom port."""

    def of(view: View) -> float | None:
        arcsec, scale = view.number(name), view("pixel_scale")
        if arcsec is None or not scale:
            return None
        sign = -factor if flipped and view.get("INPORT") == 1 else factor
        return sign * (arcsec / scale)

    return of


def gcal_lamp(view: View) -> str | None:
    """Lamp in use; 'Off' if none is, or behind a closed shutter; None if the header does not speak of GCAL."""
    lamps, shutter = view.text("GCALLAMP"), view.text("GCALSHUT")
    if not {"GCALLAMP", "GCALSHUT"} <= set(view.phu):
        return None
    closed = shutter.upper() == "CLOSED" and lamps.upper() in ("IRHIGH", "IRLOW")
    return "Off" if closed or lamps.upper() in ("", "NO VALUE") else lamps


def group_id(view: View, *names: str, additional: str = "") -> str:
    """Values of descriptors, in one string: frames that may be combined have the same."""
    values = [
        view(name, pretty=True) if view.accepts(name, "pretty") and name != "camera" else view(name)
        for name in names
    ]
    return "_".join([*(str(value) for value in values), *([additional] if additional else [])])


def is_in_adu(view: View) -> bool:
    units = view.each("BUNIT")
    return all(str(unit or "ADU").upper() == "ADU" for unit in units)


def percentile(name: str) -> Descriptor:
    """Descriptor: a band of observing conditions ('Any', '70-percentile') as a number."""

    def of(view: View) -> int | None:
        text = view.text(name)
        match = re.match(r"(\d\d)-percentile$", text)
        return 100 if text == "Any" else int(match[1]) if match else None

    return of


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
    """Sensors that guide, joined by '&'. GeMS shows by its guide stars: its probes read 'parked' while it guides."""
    found = [
        name for name in ("AOWFS", "OIWFS", "PWFS1", "PWFS2") if view.get(f"{name}_ST") == "guiding"
    ]
    found += ["GEMS"] if view.given("GWFS1CFG") is not None else []
    return "&".join(sorted(found)) or None


def nominal_atmospheric_extinction(view: View) -> float | None:
    """Magnitudes, from the coefficient of the filter (0 where the facts give none)."""
    mass = airmass(view)
    coefficient = view.facts.get("extinction", {}).get(view("filter_name", pretty=True), 0.0)
    return None if mass is None else coefficient * (mass - 1.0)


def constant(value: object) -> Descriptor:
    """Descriptor: the same for all files."""
    return lambda view: value


def binning(view: View) -> str:
    return f"{view('detector_x_bin')}x{view('detector_y_bin')}"


def detector_bin(name: str) -> Descriptor:
    """Descriptor: binning along an axis, 1 where the header does not speak of it."""
    return lambda view: view.number(name) or 1


def local_time(view: View) -> object:
    return rules.parse_time(view.text("LT"))


def array_name(view: View) -> list[str | None]:
    return view.each("ARRAYNAM")


def central_wavelength(
    view: View, asMicrometers: bool = False, asNanometers: bool = False, asAngstroms: bool = False
) -> float | None:
    """Central wavelength in metres unless asked otherwise; the WAVELENG keyword is in Angstrom."""
    angstrom = view.number("WAVELENG")
    if angstrom is None or angstrom < 0:
        return None
    return to_unit(angstrom * 1e-10, asMicrometers, asNanometers, asAngstroms)


def mdf_row_id(view: View) -> list[object] | None:
    """Row of the mask definition for each cut-out spectrum."""
    return view.each("MDFROW") if view.prepared and "IMAGE" not in view.tags else None


def dispersion(
    view: View, asMicrometers: bool = False, asNanometers: bool = False, asAngstroms: bool = False
) -> list[float | None] | None:
    """Metres per pixel unless asked otherwise: WDELTA of each array, or of the primary header; None for images."""
    found = [rules.as_number(value) for value in view.each("WDELTA")] or [None]
    found = found if found != [None] * len(found) else [view.number("WDELTA")] * len(view.ext)
    return (
        None
        if None in found or not found
        else [to_unit(one, asMicrometers, asNanometers, asAngstroms) for one in found]
    )


def dispersion_axis(view: View) -> list[object] | None:
    """1 (x) or 2 (y) for each array of a prepared file."""
    return view.each("DISPAXIS") if view.prepared else None


def ao_seeing(view: View) -> float | None:
    """Natural seeing (arcsec at 0.5 micron) as the adaptive optics measure it, or from Fried's parameter (cm)."""
    value, fried = view.number("AOSEEING"), view.number("RZEROVAL")
    return value if value is not None or not fried else (206265.0 * 0.98 * 0.5e-6) / (fried * 0.01)


def calibration_key(view: View) -> str | None:
    """The data label, a stack's as that of its first frame."""
    return view.text("DATALAB").replace("_stack", "") or None


DESCRIPTORS: dict[str, Descriptor] = {
    "airmass": airmass,
    "ao_seeing": ao_seeing,
    "calibration_key": calibration_key,
    "amp_read_area": section("AMPROA"),
    "array_name": array_name,
    "array_section": section("ARRAYSEC"),
    "azimuth": number("AZIMUTH"),
    "binning": binning,
    "camera": component("CAMERA"),
    "cass_rotator_pa": cass_rotator_pa,
    "central_wavelength": central_wavelength,
    "coadds": coadds,
    "data_label": keyword("DATALAB"),
    "data_section": section("DATASEC"),
    "dec": rules.dec,
    "decker": component("DECKER"),
    "detector_name": keyword("DETNAME"),
    "detector_roi_setting": constant("Fixed"),
    "detector_rois_requested": constant(None),
    "detector_section": section("DETSEC"),
    "detector_x_bin": detector_bin("XBIN"),
    "detector_x_offset": per_pixel("POFFSET", 1, flipped=True),
    "detector_y_bin": detector_bin("YBIN"),
    "detector_y_offset": per_pixel("QOFFSET", 1),
    "disperser": component("DISPERSR"),
    "dispersion": dispersion,
    "dispersion_axis": dispersion_axis,
    "effective_wavelength": effective_wavelength,
    "elevation": number("ELEVATIO"),
    "exposure_time": exposure_time,
    "filter_name": filter_name,
    "focal_plane_mask": component("FPMASK"),
    "gain": lambda view: view.each("GAIN"),
    "gain_setting": keyword("GAINSET"),
    "gcal_lamp": gcal_lamp,
    "group_id": lambda view: view("observation_id"),
    "instrument": lambda view: view.facts["name"],
    "is_ao": lambda view: view.get("AOFOLD") == "IN",
    "is_coadds_summed": lambda view: bool(view.facts.get("coadds_summed", True)),
    "is_in_adu": is_in_adu,
    "local_time": local_time,
    "lyot_stop": component("LYOTSTOP"),
    "mdf_row_id": mdf_row_id,
    "nominal_atmospheric_extinction": nominal_atmospheric_extinction,
    "nominal_photometric_zeropoint": lambda view: view.each("NOMPHOTZ"),
    "non_linear_level": lambda view: view.each("NONLINEA"),
    "object": keyword("OBJECT"),
    "observation_class": keyword("OBSCLASS"),
    "observation_epoch": keyword("OBSEPOCH"),
    "observation_id": keyword("OBSID"),
    "observation_type": keyword("OBSTYPE"),
    "overscan_section": section("OVERSEC"),
    "pixel_scale": rules.pixel_scale,
    "position_angle": number("PA"),
    "program_id": keyword("GEMPRGID"),
    "pupil_mask": component("PUPILMSK"),
    "qa_state": qa_state,
    "ra": rules.ra,
    **{f"raw_{band}": percentile(f"RAW{band.upper()}") for band in ("bg", "cc", "iq", "wv")},
    "read_mode": keyword("READMODE"),
    "read_noise": lambda view: view.each("RDNOISE"),
    "read_speed_setting": keyword("RDSPDSET"),
    **{f"requested_{band}": percentile(f"REQ{band.upper()}") for band in ("bg", "cc", "iq", "wv")},
    "saturation_level": lambda view: view.each("SATLEVEL"),
    "slit": keyword("SLIT"),
    "slit_width": constant(None),
    "target_dec": rules.target_dec,
    "target_ra": rules.target_ra,
    "telescope": keyword("TELESCOP"),
    "telescope_x_offset": number("XOFFSET"),
    "telescope_y_offset": number("YOFFSET"),
    "ut_date": rules.ut_date,
    "ut_datetime": rules.ut_datetime,
    "ut_time": rules.ut_time,
    "wavefront_sensor": wavefront_sensor,
    "wavelength_band": wavelength_band,
    "wcs_dec": lambda view: rules.wcs_position(view)[1],
    "wcs_ra": lambda view: rules.wcs_position(view)[0],
    "well_depth_setting": keyword("WELDEPTH"),
}
