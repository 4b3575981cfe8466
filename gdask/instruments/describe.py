"""What a file is, in plain values: descriptors as lists, numbers and texts, and the sky coordinates of each array."""

from __future__ import annotations

from typing import Any


def descriptor(source: Any, name: str, **options: Any) -> Any:
    """A descriptor of a file (path) or Frame in plain form.

    Sections are 0-based half-open [x1, x2, y1, y2], wavelengths metres, one value per array in a list, None where
    unknown; dates and times are ISO texts. `gdask.instruments.descriptor` gives dates and times as objects.
    """
    from gdask.instruments import descriptor as value_of

    value = value_of(source, name, **options)
    return value.isoformat() if hasattr(value, "isoformat") else value


def wcs(frame: Any) -> list[Any]:
    """An astropy WCS for each array of a Frame: TAN-SIP of the exact geometry, or the plain TAN of a stack."""
    from astropy.wcs import WCS

    from gdask.instruments import instrument_of, view

    stacked = frame.attrs.get("grid") is not None or "NCOMBINE" in frame.attrs["phu"]
    if stacked or not hasattr(instrument_of(frame).module, "geometries"):
        return [WCS(header.copy()) for header in frame.attrs["headers"]]
    from gdask.kernels.geometry.wcs import array_wcs

    shape = (frame.sizes["y"], frame.sizes["x"])
    geometries = frame.attrs.get("geometry") or instrument_of(frame).module.geometries(
        view(frame), shape
    )
    return [WCS(array_wcs(geometry, shape)[0]) for geometry in geometries]
