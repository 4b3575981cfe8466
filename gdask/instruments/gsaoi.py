"""GSAOI: four arrays behind GeMS. Facts in gsaoi.toml."""

from __future__ import annotations

import math

from gdask.instruments import gemini
from gdask.instruments.gsaoi_arrays import geometries, true_sections
from gdask.instruments.rules import (
    Descriptor,
    Rule,
    TagSet,
    View,
    as_number,
    clean,
    component,
    from_header_if_prepared,
    keyword,
    number,
    section,
    tagset,
)


def kind(view: View) -> TagSet:
    """Image, and the flats among them. Dome flats are known by OBJECT alone (their OBSTYPE is OBJECT)."""
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
    """State of the dome lamp: OBJECT says it. (GCAL's lamp is not asked: no GCAL flat was ever taken with it off.)"""
    state = {"DOMEFLAT": "LAMPON", "DOMEFLAT OFF": "LAMPOFF"}.get(view.text("OBJECT").upper())
    return tagset(state, blocked_by="PROCESSED") if state else None


__all__ = ["DESCRIPTORS", "TAGS", "geometries", "true_sections"]

TAGS: dict[str, Rule] = {"kind": kind, "dark": dark, "lamp": lamp}


def array_name(view: View) -> list[str | None]:
    """Identity of each array; of the whole detector where arrays have been put together."""
    names = view.each("ARRAYID")
    return names if None not in names else [view.get("DETECTOR")] * len(names)


def read_speed_setting(view: View) -> str:
    """Read mode as observers name it, from the number of non-destructive reads."""
    reads = view.number("LNRS")
    return view.facts["read_modes"].get("" if reads is None else str(int(reads)), "Unknown")


def of_array(view: View, fact: str) -> list[float | None]:
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
    return [round(value / root, 2) if value else None for value in of_array(view, "read_noise")]


def saturation_level(view: View) -> list[float | None]:
    """In the units of the data: the facts' ADU times the original gain, over the present one (1 if in electrons)."""
    levels = zip(of_array(view, "saturation"), of_array(view, "gain"), view("gain"))
    return [
        level * original / present if level and original and present else None
        for level, original, present in levels
    ]


def non_linear_level(view: View) -> list[float | None]:
    pairs = zip(of_array(view, "linear_fraction"), view("saturation_level"))
    return [fraction * level if fraction and level else None for fraction, level in pairs]


def nominal_photometric_zeropoint(view: View) -> list[float | None]:
    """Magnitude of 1 e-/s, or of 1 ADU/s where the data are in ADU."""
    order = [array["name"] for array in view.facts["arrays"]]
    table = view.facts["zero_points"].get(view("filter_name", pretty=True))
    in_adu = view("is_in_adu")

    def of(name: str | None, gain: float | None) -> float | None:
        if table is None or name not in order or not gain or gain <= 0:
            return None
        return table[order.index(name)] - (2.5 * math.log10(gain) if in_adu else 0.0)

    return [of(name, gain) for name, gain in zip(array_name(view), view("gain"))]


def wcs_value(axis: int, ctype: str) -> Descriptor:
    """Descriptor: CRVAL (degrees) of an axis of the first array, or of the primary header, if its CTYPE is this one."""

    def of(view: View) -> float | None:
        first = next(iter(view.ext), view.phu)
        whole = (
            clean(first, f"CRVAL{axis}") is not None and clean(first, f"CTYPE{axis}") is not None
        )
        source = first if whole else view.phu
        kind = str(clean(source, f"CTYPE{axis}")).removesuffix(
            "-SIP"
        )  # products carry their distortion
        return as_number(clean(source, f"CRVAL{axis}")) if kind == ctype else None

    return of


def group_id(view: View) -> str:
    """Domeflats with the lamp on and off have different observation ids and a night may have two UT dates: a flat's
    group is that of its programme."""
    names = (
        ("filter_name", "exposure_time", "program_id")
        if "FLAT" in view.tags
        else ("observation_id", "filter_name", "exposure_time")
    )
    return gemini.group_id(view, *names, "read_mode", "detector_section")


DESCRIPTORS: dict[str, Descriptor] = {
    "array_name": array_name,
    "array_section": section("CCDSEC"),
    "camera": component("DETECTOR"),
    "detector_name": keyword("DETECTOR"),
    "detector_y_offset": gemini.per_pixel("QOFFSET", -1),
    "gain": from_header_if_prepared("GAIN", lambda view: of_array(view, "gain")),
    "group_id": group_id,
    "nominal_photometric_zeropoint": nominal_photometric_zeropoint,
    "non_linear_level": from_header_if_prepared("NONLINEA", non_linear_level),
    "position_angle": number("PA"),
    "read_noise": from_header_if_prepared("RDNOISE", read_noise),
    "read_speed_setting": read_speed_setting,
    "saturation_level": from_header_if_prepared("SATLEVEL", saturation_level),
    "wcs_dec": wcs_value(2, "DEC--TAN"),
    "wcs_ra": wcs_value(1, "RA---TAN"),
}
