"""FLAMINGOS-2's spectra, as far as headers speak of them: wavelengths, dispersion, slits."""

from __future__ import annotations

import re

from gdask.instruments import gemini
from gdask.instruments.rules import View


def central_wavelength(
    view: View, asMicrometers: bool = False, asNanometers: bool = False, asAngstroms: bool = False
) -> float | None:
    """Metres unless asked otherwise; some filters' WAVELENG is wrong: see setting_nm in the facts."""
    angstrom = view.number("WAVELENG")
    nm = None if angstrom is None else angstrom * 0.1
    nm = view.facts["setting_nm"].get(view("filter_name", keepID=True), nm)
    if nm is not None and nm < 0:
        first = (view("filter_name", pretty=True) or " ")[0]
        nm = view.facts["r3k_nm"].get(first) if view("disperser", pretty=True) == "R3K" else None
    return (
        None if nm is None else gemini.to_unit(nm * 1e-9, asMicrometers, asNanometers, asAngstroms)
    )


def dispersion(
    view: View, asMicrometers: bool = False, asNanometers: bool = False, asAngstroms: bool = False
) -> list[float] | None:
    """Metres per pixel along y unless asked otherwise, of the grism behind this filter; None for any other pair."""
    grism, name = view("disperser", pretty=True), view("filter_name", keepID=True)
    nm = view.facts["dispersion_nm"].get(grism, {}).get(name)
    return (
        None
        if nm is None
        else [gemini.to_unit(nm * 1e-9, asMicrometers, asNanometers, asAngstroms)] * len(view.ext)
    )


def slit_width(view: View) -> float | None:
    """Arcsec, of a slit named by its width in pixels."""
    match, scale = re.match(r"(\d+)pix-slit$", view("focal_plane_mask") or ""), view("pixel_scale")
    return int(match[1]) * scale if match and scale else None
