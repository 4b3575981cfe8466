"""Tags that all Gemini instruments share. An instrument's own module adds to them or replaces them by name."""

from __future__ import annotations

from gdask.instruments.rules import Rule, TagSet, View, tagset

#: Keywords of processed calibrations, DRAGONS' and Gemini IRAF's.
PROCESSED = {
    "PROCARC",
    "PROCBIAS",
    "PROCDARK",
    "PROCFLAT",
    "PROCFRNG",
    "PROCPNHL",
    "PROCSTND",
    "PROCILLM",
    "GBIAS",
    "GIFLAT",
    "GIFRINGE",
}


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
