"""Descriptors of spectra that all Gemini instruments share: wavelengths, dispersion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gdask.instruments.view import as_number

if TYPE_CHECKING:
    from gdask.instruments.view import View

#: Factor from metres to the unit that an option asks for.
PER_METRE = {"asMicrometers": 1e6, "asNanometers": 1e9, "asAngstroms": 1e10}


def to_unit(metres: float, asMicrometers: bool, asNanometers: bool, asAngstroms: bool) -> float:
    """Wavelength in the unit asked for (at most one of them; else metres).

    It is rounded to single precision, as the field's listings show it.
    """
    wanted = {
        "asMicrometers": asMicrometers,
        "asNanometers": asNanometers,
        "asAngstroms": asAngstroms,
    }
    factors = [PER_METRE[name] for name, on in wanted.items() if on]
    return float(str(np.float32(metres * factors[0] if len(factors) == 1 else metres)))


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
    """Metres per pixel unless an option asks for another unit; None for images.

    It is WDELTA of each array, or else of the primary header.
    """
    found = [as_number(value) for value in view.each("WDELTA")] or [None]
    found = found if found != [None] * len(found) else [view.number("WDELTA")] * len(view.ext)
    return (
        None
        if None in found or not found
        else [to_unit(one, asMicrometers, asNanometers, asAngstroms) for one in found]
    )


def dispersion_axis(view: View) -> list[object] | None:
    """1 (x) or 2 (y) for each array of a prepared file."""
    return view.each("DISPAXIS") if view.prepared else None
