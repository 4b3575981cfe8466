"""What is known of each frame of a stack: FWHM, sky, throughput, and the weight that it deserves.

Nothing is read for it: catalogues, levels and residuals are there when a frame has been aligned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gdask.instruments import descriptor
from gdask.io.frames import array_headers, geometries, set_aside, shape_of, small, warn, with_small
from gdask.kernels.arithmetic import exponentials, logarithms
from gdask.kernels.geometry.projection import pixel_area
from gdask.kernels.sources.centroids import POSITIONS
from gdask.kernels.sources.detection import measure_fwhm
from gdask.kernels.sources.photometry import LEAST_WIDE
from gdask.kernels.sources.throughput import STEP, relative_offsets
from gdask.steps.frames import by_night, mjd_of_middle, night_of
from gdask.types import Frame, Frames

#: Error of one star's light in a frame beyond its own, and of all stars of a frame in common, as
#: fractions: the image of a star differs over an array, and from frame to frame.
STAR_ERROR, FRAME_ERROR = 0.1, 0.02
#: Error (fraction) above which a throughput is not taken, if it is not so many errors from that of
#: the others.
MAX_ERROR, OUTSTANDING = 0.05, 5.0
#: A frame with less than this share of the stars of the others, where these have so many, is told.
FEW_STARS, FEW_OF = 0.3, 8
#: Least likeness to a star (CLASS_STAR) of a source that tells the ellipticity.
STAR_LIKE = 0.8


def weigh_frames(frames: Frames, min_weight: float) -> tuple[Frames, Frames]:
    """Give the frames with their numbers in `solution`, and those set aside for a low weight."""
    numbers = [frame_numbers(frame) for frame in frames]
    for each, value, error in zip(numbers, *relative_transparencies(frames), strict=True):
        each["transparency"], each["transparency_error"] = float(value), float(error)
    kept, left_out = [], []
    for frame, each, weight in zip(frames, numbers, frame_weights(numbers), strict=True):
        each["weight"] = float(weight)
        if weight < min_weight:
            left_out.append(set_aside(frame, _why_left_out(each, min_weight)))
        else:
            known = small(frame, "solution") or {}
            kept.append(with_small(frame, solution=known | {"numbers": each}))
    return _with_few_stars_told(kept), tuple(left_out)


def _with_few_stars_told(frames: Sequence[Frame]) -> Frames:
    """Warn of frames whose throughput is not known and that show few of the stars of the others.

    A cloud may hide the rest: the stack takes such a frame at its full weight.
    """
    solutions = [small(frame, "solution") for frame in frames]
    stars = np.array([len(each.get("residuals", ())) for each in solutions])
    usual = float(np.median(stars)) if len(stars) else 0.0
    told = []
    for frame, each, count in zip(frames, solutions, stars, strict=True):
        is_few = usual >= FEW_OF and count < FEW_STARS * usual
        if is_few and not np.isfinite(each["numbers"]["transparency"]):
            text = (
                f"{frame.attrs['name']}: {count} matched stars where frames usually have "
                f"{usual:.0f}, and its throughput is not known: a cloud? It is stacked at full "
                "weight; look at it, and leave it out of the list"
            )
            frame = warn(frame, text)
        told.append(frame)
    return tuple(told)


def _why_left_out(numbers: Mapping[str, Any], min_weight: float) -> str:
    return (
        f"its weight is {100 * numbers['weight']:.2g} % of the median frame's, less than "
        f"{100 * min_weight:g} % (throughput {numbers['transparency']:.3g} of the median, FWHM "
        f"{numbers['fwhm']:.2g} arcsec, sky {numbers['sky']:.4g} e-, {numbers['seconds']:g} s); "
        "scaleCountsToReference:min_weight=0 keeps it"
    )


def frame_numbers(frame: Frame) -> dict[str, Any]:
    """Give what a stack's table FRAMES says of a frame; NaN for what is not known.

    fwhm: arcsec, ellipticity: medians over its arrays. stars: sources that are like stars. sky: e-
    of a pixel in its exposure time, mean of the arrays with usable pixels. variance: e-^2 that this
    sky and the read noise promise for a pixel. pixel_area: arcsec^2. seconds, airmass, mjd
    (middle), night.
    """
    averaged = 1 if descriptor(frame, "is_coadds_summed") else int(descriptor(frame, "coadds") or 1)
    headers = array_headers(frame)
    sky = np.array([float(header.get("SKYMED", np.nan)) for header in headers])
    noise = np.array([float(header.get("RDNOISE", np.nan)) for header in headers])
    zero_points = descriptor(frame, "nominal_photometric_zeropoint")
    known = [value for value in zero_points if value is not None] if zero_points else []
    fwhm, ellipticity, stars, areas = _star_images(frame)
    return {
        "fwhm": fwhm,
        "ellipticity": ellipticity,
        "stars": stars,
        "sky": _mean_of_known(sky),
        "variance": _mean_of_known(np.maximum(sky, 0) / averaged + noise**2),
        "pixel_area": areas,
        "seconds": float(descriptor(frame, "exposure_time") or np.nan),
        "airmass": float(descriptor(frame, "airmass") or np.nan),
        "mjd": mjd_of_middle(frame),
        "night": night_of(frame),
        "nominal_zero_point": float(np.mean(known)) if known else float("nan"),
        "transparency": float("nan"),
        "transparency_error": float("inf"),
        "weight": float("nan"),
    }


def _mean_of_known(values: np.ndarray) -> float:
    """Give the mean over arrays without those that have no usable pixels (NaN)."""
    known = values[np.isfinite(values)]
    return float(np.mean(known)) if len(known) else float("nan")


def _star_images(frame: Frame) -> tuple[float, float, int, float]:
    """Give FWHM (arcsec) and ellipticity of a frame's stars, their number, arcsec^2 of a pixel."""
    shape, found = shape_of(frame), geometries(frame)
    middle = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    areas = [float(pixel_area(geometry, *middle)) for geometry in found]
    catalogs = small(frame, "objcat", lazy_is_none=True)
    area = float(np.mean(areas)) if areas else float("nan")
    if catalogs is None or len(catalogs) != len(areas):
        return float("nan"), float("nan"), 0, area
    widths, round_ones = [], []
    for fitted, catalog, its_area in zip(small(frame, "stars"), catalogs, areas, strict=True):
        if len(catalog):
            widths.append(fwhm_pixels(fitted, catalog, shape) * its_area**0.5)
            alike = (catalog["CLASS_STAR"] > STAR_LIKE) & (catalog["FLAGS"] == 0)
            round_ones.append(catalog["ELLIPTICITY"][alike])
    widths = [width for width in widths if np.isfinite(width)]
    ellipticities = np.concatenate(round_ones) if round_ones else np.zeros(0)
    return (
        float(np.median(widths)) if widths else float("nan"),
        float(np.median(ellipticities)) if len(ellipticities) else float("nan"),
        len(ellipticities),
        area,
    )


def fwhm_pixels(stars: np.ndarray, catalog: np.ndarray, shape: tuple[int, int]) -> float:
    """Give the FWHM (pixels) of the star image that was fitted to an array, of this shape.

    stars: what was fitted. Where there is none, it is that of the catalogue; NaN for no stars.
    """
    if len(stars) and stars["fwhm"][0] > 0:
        return float(stars["fwhm"][0])
    return measure_fwhm(catalog, shape) if len(catalog) else float("nan")


def relative_transparencies(frames: Frames) -> tuple[np.ndarray, np.ndarray]:
    """Give the throughput of each frame over the median of all, and its error (a fraction).

    It is that of the stars that frames share, however few, by the light of their fitted images
    within 8 pixels (`photometry.WIDE_RADII`): the wings of an image that few stars tell, and so
    its whole light, may be wrong by a factor of two. The throughput is NaN where it
    is known no better than to MAX_ERROR and does not stand out either, its error infinite where no
    star tells it.
    """
    columns: list[tuple[np.ndarray, ...]] = []
    for number, frame in enumerate(frames):
        rows = (small(frame, "solution") or {}).get("residuals")
        if rows is not None and len(rows):
            share = of_residuals(rows, small(frame, "stars"), "share")[:, LEAST_WIDE]
            good = (rows["flags"] == 0) & (rows["flux"] > 0) & np.isfinite(share)
            rows, light = rows[good], share[good] / float(descriptor(frame, "exposure_time") or 1.0)
            of_frame = np.full(len(rows), number)
            columns.append((rows["star"], of_frame, rows["flux"] * light, rows["eflux"] * light))
    unknown = np.full(len(frames), np.nan)
    if not sum(len(each[0]) for each in columns):
        return unknown, np.full(len(frames), np.inf)
    star, of_frame, flux, error = (np.concatenate(each) for each in zip(*columns, strict=True))
    star = np.unique(star, return_inverse=True)[1]
    found = relative_offsets(star, of_frame, flux, error, len(frames), STAR_ERROR)
    stars = np.maximum(found.stars, 1e-9)
    errors = np.hypot(found.error, np.hypot(FRAME_ERROR, STAR_ERROR / np.sqrt(stars)))
    told = np.isfinite(errors)
    if not told.any():
        return unknown, errors
    offset = found.offset - np.median(found.offset[told])
    # Exponentials differ in their last bits from processor to processor.
    values = np.round(exponentials(np.where(told, offset, 0.0)) / STEP) * STEP
    errors = np.round(errors / STEP) * STEP
    known = told & ((errors < MAX_ERROR) | stands_out(values, errors))
    return np.where(known, values, np.nan), errors


def stands_out(throughput: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Tell whether throughputs (over the median) differ from 1 by more than errors explain."""
    return np.abs(logarithms(np.maximum(throughput, STEP))) > OUTSTANDING * error


def of_residuals(rows: np.ndarray, measured: Sequence[np.ndarray], name: str) -> np.ndarray:
    """Give a column of the arrays' stars for rows of residuals, which have the same positions.

    measured: the stars of each array. Two-dimensional, (rows, values of the column); NaN for rows
    without a star.
    """
    # So many also where no array has a star: rows of this frame stand beside those of others.
    width = math.prod(POSITIONS[name].shape)
    out = np.full((len(rows), width), np.nan)
    for number, stars in enumerate(measured):
        mine = np.flatnonzero(rows["array"] == number)
        if not len(mine) or not len(stars):
            continue
        places, wanted = (
            np.float32(each["x"]).astype(float) * 65536 + np.float32(each["y"])
            for each in (stars, rows[mine])
        )
        order = np.argsort(places, kind="stable")
        found = order[np.minimum(np.searchsorted(places[order], wanted), len(order) - 1)]
        same = places[found] == wanted
        out[mine[same]] = stars[name].reshape(len(stars), width)[found[same]]
    return out


def frame_weights(numbers: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Give the weight that each frame deserves, over the median of all; NaN where it is not known.

    It is the inverse variance of a faint star's flux: (throughput x exposure time)^2 over noise^2
    and FWHM^2. What is not known of a frame is taken as that of the others.
    """
    rate = _filled(numbers, "transparency") * np.array([each["seconds"] for each in numbers])
    weight = rate**2 / (_filled(numbers, "variance") * _filled(numbers, "fwhm") ** 2)
    known = weight[np.isfinite(weight)]
    return weight / np.median(known) if len(known) else weight


def stack_weights(frames: Frames) -> tuple[float, ...]:
    """Give the weight of each frame in a stack, over the median: `frame_weights`, to 1/4096.

    One that is not known is 1; all are 1 where `scale_counts_to_reference` has weighed nothing.
    """
    solutions = (small(frame, "placed") or small(frame, "solution") or {} for frame in frames)
    known = np.array([each.get("numbers", {}).get("weight", np.nan) for each in solutions], float)
    # What a processor does in the last bits must not reach pixels.
    rounded = np.maximum(np.round(known * 4096), 1) / 4096
    return tuple(map(float, np.where(np.isfinite(known), rounded, 1.0)))


def choose_operation(
    frames: Frames, operation: str | None
) -> tuple[str, tuple[float, ...] | None, str]:
    """Give the operation of a stack, its weights (None: all alike), and words on its nights.

    Without one asked for it is a mean; weighted where frames of several nights have weights.
    """
    nights, known = len(by_night(frames)), stack_weights(frames)
    chosen = operation or ("weighted" if nights > 1 and len(set(known)) > 1 else "mean")
    text = f" of {nights} nights" if nights > 1 else ""
    return chosen, known if chosen == "weighted" else None, text


def mean_of(numbers: Sequence[Mapping[str, Any]], name: str) -> float:
    """Give the mean over frames of one of their numbers; NaN where none has it."""
    known = [each[name] for each in numbers if np.isfinite(each[name])]
    return float(np.mean(known)) if known else float("nan")


def _filled(numbers: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Give a number of each frame, the median where it is not known; 1 where no frame has it."""
    values = np.array([each[name] for each in numbers], float)
    known = values[np.isfinite(values)]
    return np.where(np.isfinite(values), values, np.median(known) if len(known) else 1.0)
