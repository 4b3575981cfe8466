"""What the tables of one product say, for its page: frames, skies, sources, parameters."""

from __future__ import annotations

import json
import math
import os
from typing import Any

from gdask.headers import open_hdus
from gdask.model import GdaskError, late
from gdask.report.coverage import coverage

fits = late("astropy.io.fits")

#: Columns of FRAMES that a report shows: of the table, and their names here.
_FRAMES = {
    "NAME": "name",
    "MJD": "mjd",
    "N_STARS": "matches",
    "RMS_MAS": "rms",
    "FWHM": "fwhm",
    "ELLIPTIC": "ellipticity",
    "SKY": "sky",
    "EXPTIME": "exposure_time",
    "AIRMASS": "airmass",
    "THRUPUT": "throughput",
    "WEIGHT": "weight",
    "REJECTED": "rejected",
}
#: Metres: the stop of Gemini's telescopes in the infrared is their secondary mirror (7.9 m).
_APERTURE = 7.9
_ARCSEC = math.degrees(1.0) * 3600.0


def tables_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the tables of a product: frames, skies, sources, settings, versions, wavelength (m).

    What a product has not is empty or None. One that cannot be read has `trouble`, in words.
    """
    found: dict[str, Any] = {
        "frames": [], "skies": [], "sources": None, "settings": {}, "versions": {},
        "recipe": "", "wavelength": _wavelength(path), "trouble": "", "coverage": {},
    }  # fmt: skip
    try:
        with open_hdus(path) as units:
            names = [unit.name for unit in units]
            catalogs = [unit for unit in units if unit.name == "OBJCAT"]
            if catalogs:
                found["sources"] = sum(int(unit.header["NAXIS2"]) for unit in catalogs)
            if "FRAMES" in names:
                found["frames"] = _frames(units["FRAMES"].data)
            if "PROVENANCE" in names:
                found["skies"] = _skies(units["PROVENANCE"].data)
            if "REDUCTION" in names:
                found |= _reduction(units["REDUCTION"].data)
            found["object"] = str(units[0].header.get("OBJECT", ""))
            if "PROCSCI" in units[0].header:
                found["coverage"] = coverage(units)
    except (OSError, KeyError, ValueError, TypeError, IndexError) as error:
        found["trouble"] = f"its tables cannot be read: {error}"
    return found


def _wavelength(path: str | os.PathLike[str]) -> float | None:
    from gdask.instruments import view

    try:
        value = view(os.fspath(path))("central_wavelength")
    except (GdaskError, OSError, ValueError, TypeError, KeyError):
        return None
    return float(value) if isinstance(value, int | float) else None


def strehl_proxy(fwhm: float | None, wavelength: float | None) -> float | None:
    """Give (wavelength / aperture / FWHM) squared: 1 for a star as sharp as the telescope allows.

    It goes with the Strehl ratio and is none. fwhm: arcsec. wavelength: m.
    """
    if not fwhm or not wavelength:
        return None
    return _digits((wavelength / _APERTURE * _ARCSEC / fwhm) ** 2)


def _digits(value: float) -> float:
    return float(f"{value:.5g}")


def _frames(table: Any) -> list[dict[str, Any]]:
    columns = {name: key for name, key in _FRAMES.items() if name in table.names}
    return [{key: _plain(row[name]) for name, key in columns.items()} for row in table]


def _plain(value: Any) -> Any:
    """Give a value of a table as JSON knows it; None for what is not known."""
    if isinstance(value, str | bytes):
        return value.strip() if isinstance(value, str) else value.decode("ascii", "replace").strip()
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, float):
        return float(f"{number:.11g}") if math.isfinite(number) else None
    return number


def _skies(table: Any) -> list[str]:
    """Give the files of which the sky of a frame was made."""
    return [
        str(row["filename"]).strip()
        for row in table
        if str(row["provenance_added_by"]).strip() in ("sky_correct", "subtract_sky")
    ]


def _reduction(table: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in table:
        item, text = str(row[0]).strip(), str(row[1])
        if item == "parameters":
            found["settings"] = json.loads(text)
        elif item == "versions":
            found["versions"] = json.loads(text)
        elif item == "recipe":
            found["recipe"] = str(json.loads(text).get("name", ""))
    return found
