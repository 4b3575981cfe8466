"""Make processed flats and bad-pixel masks from lamp frames and darks."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

import numpy as np

from gdask.instruments import descriptor, instrument_of, tags
from gdask.io.frames import (
    note,
    records,
    refuse_part,
    warn,
    with_headers,
    with_records,
    with_small,
)
from gdask.io.gather import measure_arrays
from gdask.io.lazy_arrays import map_arrays, map_planes, of_all_arrays
from gdask.kernels.detector import flat as flat_kernels
from gdask.kernels.statistics import fit_sky_level, median_from_histograms, mergeable_histogram
from gdask.model import DQ, GdaskError
from gdask.params import Range
from gdask.steps.frames import arrays_of, on_group, replaced, with_arrays
from gdask.steps.stack import Operation, Reject, check_alike, same_exposure, stack_frames
from gdask.types import Flags, Frame, Frames, Image

#: Time of the day (UT) at which a night's calibrations begin, and the pause that ends them.
NIGHT_BEGINS, NIGHT_GAP = timedelta(hours=18), timedelta(hours=2)


@on_group
def make_lamp_flat(
    frames: Frames,
    darks: Frames = (),
    *,
    operation: Operation = "mean",
    reject_method: Reject = "sigclip",
    lsigma: Annotated[float, Range(0, None)] = 3.0,
    hsigma: Annotated[float, Range(0, None)] = 3.0,
) -> Frame:
    """Make one flat from lamp-on and lamp-off frames. [makeLampFlat]

    The flat is lamp-on minus lamp-off. Frames bluer than 1.4 micron have no thermal light worth a
    lamp-off frame: where there are none, they are combined as they are (GSAOI). In K the closed
    shutter's thermal light is the lamp: the flat is lamp-off frames minus darks of their exposure
    time (F2). Without darks the frames are taken to have theirs subtracted already.

    Parameters
    ----------
    operation
        How the frames of one kind are combined.
    reject_method
        How deviant pixels are rejected.
    lsigma, hsigma
        Limits of the clipping, in standard deviations.
    """
    combination: dict[str, Any] = {
        "operation": operation,
        "reject_method": reject_method,
        "lsigma": lsigma,
        "hsigma": hsigma,
    }
    _check_are_flats(frames)
    on = tuple(frame for frame in frames if "LAMPOFF" not in tags(frame))
    off = tuple(frame for frame in frames if "LAMPOFF" in tags(frame))
    blue_limit = float(instrument_of(frames[0]).facts.get("lamp_off_from", 0.0))
    wavelength = descriptor(frames[0], "effective_wavelength")
    check_alike(frames)
    if needs_dark(frames):
        return _warn_of_nights(_thermal_flat(off, on, darks, combination), off)
    if wavelength is not None and wavelength * 1e6 < blue_limit and not (on and off):
        text = f"{len(frames)} frames as they are (bluer than {blue_limit} micron)"
        return _warn_of_nights(note(stack_frames(frames, **combination), text), frames)
    if not on or not off:
        missing, have = ("lamp-off", "lamp-on") if on else ("lamp-on", "lamp-off")
        raise GdaskError(
            f"{frames[0].attrs['name']} ...: {len(frames)} {have} flats but no {missing} ones; "
            f"a {descriptor(frames[0], 'filter_name', pretty=True)} flat needs both: "
            f"add the {missing} frames to the list"
        )
    bright, faint = stack_frames(on, **combination), stack_frames(off, **combination)
    times = {float(descriptor(frame, "exposure_time")) for frame in frames}
    text = f"{len(on)} lamp-on minus {len(off)} lamp-off" + (
        f"; exposure times differ: {sorted(times)} s" if len(times) > 1 else ""
    )
    return _warn_of_nights(note(_difference(bright, faint), text), frames)


def _warn_of_nights(flat: Frame, frames: Frames) -> Frame:
    """Give the flat with a warning where its frames are of several nights, which names them.

    A flat changes from night to night: the lamp, dust, the wheels' positions.
    """
    nights = nights_of(frames)
    if len(nights) < 2:
        return flat
    parts = [
        f"{names[0]}{f' to {names[-1]}' if names[1:] else ''} ({len(names)} of {date})"
        for date, names in nights
    ]
    return warn(
        flat,
        f"frames of {len(nights)} nights go into one flat: {', '.join(parts)}; reduce each night's "
        "by themselves if that was not meant",
    )


def nights_of(frames: Frames) -> list[tuple[str, list[str]]]:
    """Sort frames into nights: the UT date of the first frame of each, and the names.

    A night, with the calibrations of its day, goes from 18 h UT to 18 h UT (14 h in Chile); frames
    that follow each other within NIGHT_GAP are of one. Frames without a date are left out.
    """
    starts = [(descriptor(frame, "ut_datetime"), frame.attrs["name"]) for frame in frames]
    nights: list[tuple[str, list[str]]] = []
    last = None
    for start, name in sorted(pair for pair in starts if pair[0] is not None):
        numbers = [(when - NIGHT_BEGINS).toordinal() for when in (start, last or start)]
        if last is None or (numbers[0] != numbers[1] and start - last > NIGHT_GAP):
            nights.append((f"{start:%Y-%m-%d}", []))
        nights[-1][1].append(name)
        last = start
    return nights


def _check_are_flats(frames: Frames) -> None:
    """Raise GdaskError for a frame that is no flat: it would pass as a lamp-on frame."""
    for frame in frames:
        if "FLAT" not in tags(frame):
            raise GdaskError(
                f"{frame.attrs['name']}: not a flat (object {descriptor(frame, 'object')!r}, "
                f"tags {' '.join(sorted(tags(frame)))}); take it out of the list of flats"
            )


def needs_dark(frames: Frames) -> bool:
    """Whether the lamp of these flats is the thermal light of the closed shutter.

    Such flats are lamp-off frames minus darks.
    """
    limit = instrument_of(frames[0]).facts.get("lamp_is_thermal_from")
    wavelength = descriptor(frames[0], "effective_wavelength")
    return limit is not None and wavelength is not None and wavelength * 1e6 >= limit


def split_darks(darks: Frames, flats: Frames) -> tuple[Frames, Frames]:
    """Split darks into those that thermal flats need, and the others.

    The former have the exposure time, coadds and read mode of the flats.
    """
    if not needs_dark(flats):
        return (), darks
    needed = tuple(dark for dark in darks if same_exposure(dark, flats[0]))
    return needed, tuple(dark for dark in darks if not same_exposure(dark, flats[0]))


def _thermal_flat(off: Frames, on: Frames, darks: Frames, combination: dict[str, Any]) -> Frame:
    """Combine lamp-off frames and subtract darks of their exposure time."""
    if not off:
        raise GdaskError(
            f"{on[0].attrs['name']} ...: {len(on)} lamp-on flats but no lamp-off ones; "
            f"a {descriptor(on[0], 'filter_name', pretty=True)} flat is made of lamp-off frames "
            "minus darks: give the lamp-off frames"
        )
    ignored = f"; {len(on)} lamp-on frames left out" if on else ""
    time = float(descriptor(off[0], "exposure_time"))
    alike = tuple(dark for dark in darks if same_exposure(dark, off[0]))
    if not alike and darks:
        times = ", ".join(
            sorted({f"{float(descriptor(dark, 'exposure_time')):g}" for dark in darks})
        )
        raise GdaskError(
            f"{off[0].attrs['name']}: no dark of {time:g} s in the list, which has {times} s; "
            "add some, or none at all"
        )
    bright = stack_frames(off, **combination)
    if not alike:
        return note(bright, f"{len(off)} lamp-off frames, dark subtracted{ignored}")
    dark = stack_frames(alike, reject_method="varclip")
    return note(
        _difference(bright, dark),
        f"{len(off)} lamp-off frames minus {len(alike)} darks of {time:g} s{ignored}",
    )


def normalize_flat(flat: Frame) -> Frame:
    """Divide all arrays by the median of the good pixels of all arrays together. [normalizeFlat]"""
    refuse_part(flat, "normalize_flat", "its level is the median over all pixels of all arrays")
    data, variance, dq = arrays_of(flat)
    level = of_all_arrays(median_from_histograms, map_arrays(_histogram, data, dq), dtype="f8")
    scaled = with_arrays(
        flat,
        data=map_planes(_divided, data, level, dtype="f4"),
        variance=map_planes(_divided_by_square, variance, level, dtype="f4"),
    )
    scaled = with_headers(
        scaled, primary={"BUNIT": "1"}, each={"BUNIT": ["1"] * flat.sizes["detector"]}
    )
    return with_small(scaled, level=level)


def threshold_flatfield(
    flat: Frame, *, lower: float | None = 0.01, upper: float | None = 10.0
) -> Frame:
    """Flag pixels outside the limits as unilluminated. [thresholdFlatfield]

    They, and all pixels below the lower limit, become 1.

    Parameters
    ----------
    lower, upper
        Limits of the normalised flat; None: no limit.
    """
    data, dq = arrays_of(flat, ("data", "dq"))
    low = -np.inf if lower is None else lower
    high = np.inf if upper is None else upper
    return with_arrays(
        flat,
        data=map_planes(_threshold_data, data, dq, dtype="f4", lower=low, upper=high),
        dq=map_planes(_threshold_flags, data, dq, dtype="u2", lower=low, upper=high),
    )


def make_bpm(
    flat: Frame,
    dark: Frame | None = None,
    *,
    flat_lo_thresh: float | None = 0.5,
    flat_hi_thresh: float | None = None,
    dark_lo_thresh: float | None = None,
    dark_hi_thresh: float | None = None,
) -> Frame:
    """Make a bad-pixel mask: pixels of the flat or of a short dark outside limits. [makeBPM]

    Parameters
    ----------
    flat_lo_thresh, flat_hi_thresh
        Limits of the normalised flat.
    dark_lo_thresh, dark_hi_thresh
        Limits of the dark in electrons; None: no lower one, the upper one from the dark itself.
        That is its median plus 10 standard deviations.
    """
    mask = map_planes(
        _bad_in_flat,
        *arrays_of(flat, ("data", "dq")),
        dtype="u2",
        lower=flat_lo_thresh,
        upper=flat_hi_thresh,
    )
    by_flat, from_dark = mask, None
    if dark is not None:
        dark_data, dark_dq = (
            each.rechunk((1, -1, -1), method="tasks") for each in arrays_of(dark, ("data", "dq"))
        )
        from_dark = map_planes(
            _bad_in_dark,
            dark_data,
            dark_dq,
            dtype="u2",
            pixelwise=dark_hi_thresh is not None,
            lower=dark_lo_thresh,
            upper=dark_hi_thresh,
        )
        mask = map_planes(
            np.bitwise_or, mask.rechunk((1, -1, -1), method="tasks"), from_dark, dtype="u2"
        )
    kinds = measure_arrays(_count_kinds, by_flat, from_dark, scratch=4.0)
    frame = with_small(replaced(flat, dq=mask), bad_kinds=kinds)
    keywords = {
        "OBJECT": "BPM",
        "OBSTYPE": "BPM",
        "OBSCLASS": "dayCal",
        "BPMASK": flat.attrs["name"],
    }
    return with_headers(frame, primary=keywords, each={"BUNIT": [None] * flat.sizes["detector"]})


def _difference(bright: Frame, faint: Frame) -> Frame:
    """Subtract one flat from another; the provenance is that of both."""
    data, variance, dq = zip(arrays_of(bright), arrays_of(faint), strict=True)
    difference = with_arrays(
        bright,
        data=map_planes(np.subtract, *data, dtype="f4"),
        variance=map_planes(np.add, *variance, dtype="f4"),
        dq=map_planes(np.bitwise_or, *dq, dtype="u2"),
    )
    return with_records(difference, "provenance", records(faint, "provenance"))


def _histogram(data: Image, dq: Flags) -> object:
    return mergeable_histogram(data, dq=dq)


def _divided(data: Image, level: float) -> Image:
    return data / np.float32(level)


def _divided_by_square(variance: Image, level: float) -> Image:
    return variance / np.float32(level**2)


def _threshold_data(data: Image, dq: Flags, lower: float, upper: float) -> Image:
    return flat_kernels.threshold(data, dq, lower, upper)[0]


def _threshold_flags(data: Image, dq: Flags, lower: float, upper: float) -> Flags:
    return flat_kernels.threshold(data, dq, lower, upper)[1]


def _bad_in_flat(data: Image, dq: Flags, lower: float | None, upper: float | None) -> Flags:
    return flat_kernels.bpm_from_flat(data, dq, lower, upper)


def _count_kinds(by_flat: Flags, by_dark: Flags | None) -> np.ndarray:
    """Count the pixels that the flat and the dark call bad."""
    masks, bad = (by_flat, by_dark), np.uint16(DQ.BAD_PIXEL)
    return np.array([0 if mask is None else np.count_nonzero(mask & bad) for mask in masks])


def _bad_in_dark(data: Image, dq: Flags, lower: float | None, upper: float | None) -> Flags:
    if upper is None:
        level, sigma, _ = fit_sky_level(data, None)
        upper = level + 10.0 * sigma
    return flat_kernels.bpm_from_dark(data, dq, lower, upper)
