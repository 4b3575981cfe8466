"""Calibrate frames from ADU to flat-fielded electrons: linearity, gain, variance, dark, flat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gdask.instruments import descriptor, instrument_of
from gdask.io.frames import (
    geometries,
    primary_header,
    refuse_part,
    shape_of,
    with_attrs,
    with_headers,
    with_provenance,
)
from gdask.io.gather import measure_arrays
from gdask.io.lazy_arrays import map_planes
from gdask.kernels.detector import flat as flat_kernels
from gdask.kernels.detector.linearity import (
    add_variance,
    linearize,
    linearize_variance,
    linearized_level,
    times,
)
from gdask.model import GdaskError
from gdask.steps.frames import array, arrays_of, match_region, per_array, with_arrays
from gdask.steps.resample import reference_area
from gdask.types import Frame

#: Pixels of an array from whose rows the level of its sky is measured, where only what stands above
#: it counts: the median is good to 1.25 sigma / sqrt(65536).
_LEVEL_PIXELS = 2**20
#: Bytes for each of them: data, flags, those of the flat, the raw pixels and what they become on
#: their way, and the ratio. (Measured: 22.5.)
_LEVEL_BYTES = 24.0


def nonlinearity_correct(frame: Frame) -> Frame:
    """Correct the detector's non-linearity, in ADU or electrons. [nonlinearityCorrect]

    Saturation and non-linear levels are corrected too.
    """
    coefficients = tuple(tuple(values) for values in _array_facts(frame, "linearity"))
    gain = per_array(frame, "gain")
    coadds = (int(descriptor(frame, "coadds") or 1),) * len(gain)
    summed = tuple(c if descriptor(frame, "is_coadds_summed") else 1 for c in coadds)
    each: dict[str, Sequence[Any]] = {"coefficients": coefficients, "gain": gain, "coadds": summed}
    data = map_planes(linearize, array(frame, "data"), dtype="f4", each=each)
    variance = array(frame, "variance")
    if variance is not None:
        averaged = tuple(n // n_summed for n, n_summed in zip(coadds, summed, strict=True))
        each = {"gain": gain, "coadds_averaged": averaged}
        variance = map_planes(
            linearize_variance, variance, array(frame, "data"), data, dtype="f4", each=each
        )
    levels = {
        keyword: [
            linearized_level(level, c, g, n)
            for level, c, g, n in zip(
                per_array(frame, name), coefficients, gain, summed, strict=True
            )
        ]
        for keyword, name in (("SATLEVEL", "saturation_level"), ("NONLINEA", "non_linear_level"))
    }
    return with_headers(with_arrays(frame, data=data, variance=variance), each=levels)


def adu_to_electrons(frame: Frame) -> Frame:
    """Multiply data, variance and levels by the gain, which becomes 1. [ADUToElectrons]"""
    gain = per_array(frame, "gain")
    data = map_planes(times, array(frame, "data"), dtype="f4", each={"factor": gain})
    variance = array(frame, "variance")
    if variance is not None:
        variance = map_planes(times, variance, dtype="f4", each={"factor": [g * g for g in gain]})
    each = {
        "SATLEVEL": [
            g * level for g, level in zip(gain, per_array(frame, "saturation_level"), strict=True)
        ],
        "NONLINEA": [
            g * level for g, level in zip(gain, per_array(frame, "non_linear_level"), strict=True)
        ],
        "GAIN": [1.0] * len(gain),
        "BUNIT": ["electron"] * len(gain),
    }
    # Some instruments' raw files have the gain in the primary header too.
    primary: dict[str, Any] = {"BUNIT": "electron"}
    primary |= {"GAIN": 1.0} if "GAIN" in primary_header(frame) else {}
    return with_headers(
        with_arrays(frame, data=data, variance=variance), primary=primary, each=each
    )


def add_var(frame: Frame, *, read_noise: bool = True, poisson_noise: bool = True) -> Frame:
    """Make variance planes from read noise and photon noise. [addVAR]

    Parameters
    ----------
    read_noise
        Include the read noise.
    poisson_noise
        Include the photon noise: max(data, 0) electrons over the number of averaged coadds.
    """
    averaged = 1 if descriptor(frame, "is_coadds_summed") else int(descriptor(frame, "coadds") or 1)
    noise = per_array(frame, "read_noise")
    variance = map_planes(
        add_variance,
        array(frame, "data"),
        dtype="f4",
        each={"read_noise": noise},
        coadds=averaged,
        poisson=poisson_noise,
        read=read_noise,
    )
    kinds = ", ".join(kind for kind, on in (("read", read_noise), ("Poisson", poisson_noise)) if on)
    count = len(noise)
    return with_headers(
        with_arrays(frame, variance=variance), each={"VARNOISE": [kinds] * count, "RDNOISE": noise}
    )


def dark_correct(frame: Frame, dark: Frame | None) -> Frame:
    """Subtract a processed dark. [darkCorrect]"""
    if dark is None:
        return frame
    _check_has_dq(dark, "dark")
    dark = match_region(dark, frame)
    data, variance, dq = zip(arrays_of(frame), arrays_of(dark), strict=True)
    corrected = with_arrays(
        frame,
        data=map_planes(np.subtract, *data, dtype="f4"),
        variance=map_planes(np.add, *variance, dtype="f4"),
        dq=map_planes(np.bitwise_or, *dq, dtype="u2"),
    )
    corrected = with_provenance(corrected, dark, "dark_correct")
    return with_headers(
        corrected, primary={"DARKIM": (dark.attrs["name"], "Dark image subtracted")}
    )


def flat_correct(frame: Frame, flat: Frame | None) -> Frame:
    """Divide by a processed flat, cut to the frame's region of interest. [flatCorrect]

    The variance holds the flat's noise in what stands above the sky's level, array by array: the
    error that the flat makes in the sky is removed with the sky frames, which have it too, pixel by
    pixel.
    """
    if flat is None:
        return frame
    _check_has_dq(flat, "flat")
    refuse_part(flat, "flat_correct", "a flat is 1 in the middle of all its arrays together")
    # 12 digits: what a number in a header holds, so that a frame that was written to a file and
    # one that was not are stacked alike.
    area = float(f"{reference_area(geometries(flat), shape_of(flat)):.12g}")
    flat = match_region(flat, frame)
    data, variance, dq = arrays_of(frame)
    flat_data, flat_variance, flat_dq = arrays_of(flat)
    level = measure_arrays(
        flat_kernels.sky_level,
        *(data, dq, flat_data, flat_dq),
        dtype="f8",
        scratch=_LEVEL_BYTES,
        sample=_LEVEL_PIXELS,
    )
    corrected = with_arrays(
        frame,
        data=map_planes(flat_kernels.flat_data, data, flat_data, dtype="f4"),
        variance=map_planes(
            flat_kernels.flat_variance, data, variance, flat_data, flat_variance, level, dtype="f4"
        ),
        dq=map_planes(flat_kernels.flat_flags, dq, flat_data, flat_dq, dtype="u2"),
    )
    corrected = with_provenance(with_attrs(corrected, reference_area=area), flat, "flat_correct")
    return with_headers(
        corrected,
        primary={
            "FLATIM": (flat.attrs["name"], "Flat image used"),
            "FLATAREA": (area, "arcsec2 of the pixel for which the flat is 1"),
        },
    )


def _check_has_dq(calibration: Frame, kind: str) -> None:
    if "dq" not in calibration:
        raise GdaskError(
            f"{calibration.attrs['name']}: has no DQ, so it is not a processed {kind}; "
            "name another one"
        )


def _array_facts(frame: Frame, name: str) -> tuple[Any, ...]:
    """Give one fact of each array, from the instrument's table by array name (or in order)."""
    arrays = instrument_of(frame).facts["arrays"]
    by_name = {entry["name"]: entry for entry in arrays if "name" in entry}
    names = per_array(frame, "array_name")
    return tuple(by_name.get(n, entry)[name] for n, entry in zip(names, arrays, strict=False))
