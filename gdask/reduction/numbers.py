"""The numbers of a product: what is measured with its pixels, and what becomes of it.

`with_measurements` adds what tasks of the last phase measure; `product_numbers` makes the numbers
of `gdask.headers.numbers` of that, of the tables and of the frames' own numbers, when the phase has
ended. docs/catalogue.md says how each is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from gdask.headers.numbers import kind_of, known_numbers, number_cards, rounded
from gdask.io.frames import grid_of, primary_header, shape_of, small, with_attrs, with_small
from gdask.io.gather import measure_arrays
from gdask.kernels.stack.counts import COUNTED
from gdask.model import UNUSABLE, late
from gdask.reduction import gates
from gdask.reduction.depth import empty_apertures, noise_and_depth, zero_point
from gdask.reduction.provenance import reduction_of
from gdask.steps.frame_numbers import STAR_LIKE, frame_numbers, fwhm_pixels, mean_of
from gdask.steps.frames import arrays_of
from gdask.types import Flags, Frame, Image

if TYPE_CHECKING:
    from astropy import table as astable
else:
    astable = late("astropy.table")

Values = dict[str, Any]
#: Pixels of an array that tell its level.
_LEVEL_PIXELS = 2**18
#: Largest fraction of the values that clipping at 3 sigma takes from noise: that of a few frames,
#: whose own values tell the limits.
_MOST_CLIPPED = 0.006


# Measured by tasks -------------------------------------------------------------------------------


def with_measurements(frame: Frame, set_aside: Iterable[Sequence[str]] = ()) -> Frame:
    """Give a product's Frame with small results that its last phase computes.

    set_aside: rows of name, step and reason of frames of the run; with those that were left out
    before they are frames that were considered.

    `empty`: apertures on empty sky of an image whose sources are known. `bad`: pixels and unusable
    ones of a calibration. `dark_level`: level (e-) of the arrays of a dark.
    """
    header = primary_header(frame)
    left_out = {row[0] for row in (*reduction_of(frame).get("left_out", ()), *set_aside)}
    frame = with_attrs(frame, left_out=len(left_out))
    if _is_image(frame) and {"data", "variance", "dq"} <= set(frame):
        return with_small(frame, empty=empty_apertures(frame))
    if "PROCFLAT" in header or "PROCBPM" in header or "PROCDARK" in header:
        frame = with_small(
            frame, bad=measure_arrays(_count_bad, *arrays_of(frame, ("dq",)), scratch=4)
        )
    if "PROCDARK" in header:
        planes = arrays_of(frame, ("data", "dq"))
        level = measure_arrays(_median, *planes, scratch=16, sample=_LEVEL_PIXELS)
        frame = with_small(frame, dark_level=level)
    return frame


def _is_image(frame: Frame) -> bool:
    """Tell whether a product is an image of the sky whose sources are known, or will be."""
    header = primary_header(frame)
    return "stars" in frame and not {"PROCFLAT", "PROCDARK", "PROCBPM"} & set(header)


def _count_bad(dq: Flags) -> np.ndarray:
    return np.array([dq.size, np.count_nonzero(dq & np.uint16(UNUSABLE))])


def _median(data: Image, dq: Flags) -> np.ndarray:
    good = data[((dq & np.uint16(UNUSABLE)) == 0) & np.isfinite(data)]
    return np.array([np.median(good) if good.size else np.nan, good.size])


# Numbers -----------------------------------------------------------------------------------------


def completed(frame: Frame, tables: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the tables of a product whose small results are computed, and the cards of its numbers.

    FRAMES has columns of each frame's numbers, and the card GATES says which gates are not met.
    """
    tables = with_frame_columns(frame, tables)
    values = product_numbers(frame, tables)
    kind = "frame" if _is_image(frame) and not grid_of(frame) else kind_of(primary_header(frame))
    limits = gates.merged(reduction_of(frame).get("gates", {}))
    verdicts = gates.judge(known_numbers(values, kind), table=limits)
    return tables, number_cards({**values, "gates": gates.summary(verdicts)})


def product_numbers(frame: Frame, tables: Mapping[str, Any]) -> Values:
    """Give the numbers of a product whose small results are computed, by plain name.

    tables: those that it is written with.
    """
    header = primary_header(frame)
    if _is_image(frame):
        return _image_numbers(frame, tables)
    values: Values = {}
    if bad := small(frame, "bad"):
        total, unusable = np.sum(bad, axis=0)
        values |= {"bad_fraction": unusable / total}
        values |= {"bad_pixels": int(unusable)} if "PROCBPM" in header else {}
    if "PROCBPM" in header:
        return values | _bpm_numbers(frame)
    if level := small(frame, "level"):
        values["mean_counts"] = float(level[0])
    counted = _counted(frame)
    if counted is not None:
        values |= {"frames": len(counted["used"])}
        offset = counted["difference"] / np.maximum(counted["used"], 1)
        mean = counted["stack"] / np.maximum(counted["used"], 1)
        if len(offset) > 1:
            of_flat, scatter = "PROCFLAT" in header, float(np.std(offset, ddof=1))
            values |= {"level_scatter": scatter} if not of_flat else {}
            values |= {"lamp_scatter": float(np.std(offset / mean, ddof=1))} if of_flat else {}
        values |= _rejections(counted)
        values |= _dark_numbers(frame, counted, offset) if "PROCDARK" in header else {}
    return values


def _counted(frame: Frame) -> dict[str, np.ndarray] | None:
    """Give what the stack has counted of each frame, of all arrays together; None for no stack."""
    counted = small(frame, "counted")
    if counted is None or not len(counted):
        return None
    return dict(zip(COUNTED, np.sum(counted, axis=0).T, strict=True))


def _rejections(counted: Mapping[str, np.ndarray]) -> Values:
    share = counted["rejected"] / np.maximum(counted["covered"], 1)
    return {
        "rejected_fraction": float(np.mean(share)),
        "worst_rejected_fraction": float(np.max(share)),
    }


def _dark_numbers(frame: Frame, counted: Mapping[str, np.ndarray], offset: np.ndarray) -> Values:
    """Give level and read noise of a dark, this from the scatter of frames about their mean."""
    levels = np.array([level for level, _ in small(frame, "dark_level")])
    number, used = len(offset), np.maximum(counted["used"], 1)
    values: Values = {"dark_level": float(np.nanmean(levels))}
    if number < 2:
        return values
    clipped = np.sum(counted["rejected"]) / max(np.sum(counted["covered"]), 1)
    square = np.mean(counted["square"] / used - offset**2) / _left_by_clipping(float(clipped))
    noise = square * number / (number - 1)
    given, photons = (float(np.mean(counted[name] / used)) for name in ("variance", "stack"))
    values["read_noise"] = float(np.sqrt(max(noise - max(photons, 0.0), 0.0)))
    values["read_noise_ratio"] = float(np.sqrt(noise / given)) if given > 0 else None
    return values


def _left_by_clipping(fraction: float) -> float:
    """Give the share of a Gaussian's variance that is left when this fraction is clipped off.

    Of more than _MOST_CLIPPED the rest are cosmic rays.
    """
    fraction = min(fraction, _MOST_CLIPPED)
    if fraction <= 0:
        return 1.0
    limit = NormalDist().inv_cdf(1 - fraction / 2)
    return 1 - 2 * limit * NormalDist().pdf(limit) / (1 - fraction)


def _bpm_numbers(frame: Frame) -> Values:
    kinds = small(frame, "bad_kinds")
    if not kinds:
        return {}
    by_flat, by_dark = np.sum(kinds, axis=0)
    return {"bad_in_flat": int(by_flat), "bad_in_dark": int(by_dark)}


def _image_numbers(frame: Frame, tables: Mapping[str, Any]) -> Values:
    """Give the numbers of a stack, or of one sky-subtracted frame."""
    inputs = small(frame, "inputs") or ()
    numbers = [source["numbers"] for source in inputs if "numbers" in source]
    own = None if inputs else frame_numbers(frame)
    values: Values = _stars(frame, own)
    values |= _frames(frame, inputs, numbers) if inputs else {}
    values |= _alignment(inputs, tables)
    if (counted := _counted(frame)) is not None:
        values |= _rejections(counted)
    each = numbers or ([own] if own else [])
    known = zero_point(frame, tables, each)
    return values | known | _sky(each, known) | noise_and_depth(frame, each, known, tables)


def _stars(frame: Frame, own: Mapping[str, Any] | None) -> Values:
    """Give FWHM and ellipticity of a stack's stars; those of a frame are `own`."""
    if own is not None:
        return {"fwhm": own["fwhm"], "ellipticity": own["ellipticity"], "fwhm_stars": own["stars"]}
    grid, catalogs = grid_of(frame), small(frame, "objcat")
    if grid is None or not catalogs or not len(catalogs[0]):
        return {}
    catalog = catalogs[0]
    alike = (catalog["CLASS_STAR"] > STAR_LIKE) & (catalog["FLAGS"] == 0)
    return {
        "fwhm": fwhm_pixels(small(frame, "stars")[0], catalog, shape_of(frame)) * grid.scale,
        "ellipticity": float(np.median(catalog["ELLIPTICITY"][alike])) if alike.any() else None,
        "fwhm_stars": int(alike.sum()),
    }


def _frames(frame: Frame, inputs: Sequence[Any], numbers: Sequence[Mapping[str, Any]]) -> Values:
    """Give what the frames of a stack have in common, and how they differ."""
    of_name = {name: np.array([each[name] for each in numbers], float) for name in _OF_FRAMES}
    known = {name: column[np.isfinite(column)] for name, column in of_name.items()}
    used = of_name["weight"] != 0
    left_out = int(frame.attrs.get("left_out", 0))
    values: Values = {
        "frames": len(inputs),
        "nights": len(
            {each["night"] for each, has_weight in zip(numbers, used, strict=True) if has_weight}
        )
        or None,
        "frames_considered": len(inputs) + left_out,
    }
    if len(known["fwhm"]):
        values |= {"fwhm_of_frames": float(np.mean(known["fwhm"]))}
    for name, of_number in (
        ("fwhm_scatter", "fwhm"),
        ("sky_scatter", "sky"),
        ("transparency_scatter", "transparency"),
    ):
        if len(known[of_number]) > 1:
            values[name] = float(np.std(known[of_number], ddof=1))
    if len(known["weight"]):
        values["lowest_weight"] = float(known["weight"].min())
    return values


#: Numbers of frames that a stack sums up.
_OF_FRAMES = ("fwhm", "sky", "transparency", "weight")


def _alignment(inputs: Sequence[Any], tables: Mapping[str, Any]) -> Values:
    """Give residuals and stars of the joint solution, and of its tie to a catalogue."""
    fitted = [
        source
        for source in inputs
        if np.isfinite(source.get("rms_mas", np.nan)) and source.get("matches")
    ]
    if not fitted:
        return {}
    matches = np.array([source["matches"] for source in fitted], float)
    square = np.average([source["rms_mas"] ** 2 for source in fitted], weights=matches)
    shared = [np.count_nonzero(source["stars"]["n"] >= 2) for source in inputs if "stars" in source]
    values: Values = {
        "astrometric_rms": float(np.sqrt(square)),
        "astrometric_stars": int(max(shared, default=0)),
        "fewest_matches": int(matches.min()),
    }
    ties = (source.get("reference_tie") for source in inputs)
    tie: Values = next((each for each in ties if each), {})
    if tie.get("ok"):
        values |= {"catalogue_rms": float(tie["rms"]), "catalogue_stars": int(tie["n"])}
    return values


def _sky(numbers: Sequence[Mapping[str, Any]], known: Values) -> Values:
    """Give level and brightness of the sky that was subtracted, mean of the frames."""
    sky, seconds = (mean_of(numbers, name) for name in ("sky", "seconds"))
    values: Values = {"sky_level": sky}
    if known.get("zero_point") is not None and sky > 0 and seconds > 0:
        rates = [each["sky"] / each["seconds"] / each["pixel_area"] for each in numbers]
        rate = float(np.nanmean(rates))
        values["sky_brightness"] = known["zero_point"] - 2.5 * np.log10(rate) if rate > 0 else None
    return values


# The table FRAMES --------------------------------------------------------------------------------

#: Columns that FRAMES has of each frame's numbers: name, unit, description.
_COLUMNS = (
    ("FWHM", "fwhm", "arcsec", "FWHM of its stars"),
    ("ELLIPTIC", "ellipticity", "", "ellipticity of its stars"),
    ("SKY", "sky", "", "sky of a pixel in its exposure time (electron)"),
    ("EXPTIME", "seconds", "s", "exposure time"),
    ("AIRMASS", "airmass", "", "air mass"),
    ("THRUPUT", "transparency", "", "throughput over the median"),
    ("WEIGHT", "weight", "", "weight that it deserves, over the median"),
)


def with_frame_columns(frame: Frame, tables: dict[str, Any]) -> dict[str, Any]:
    """Give the tables of a stack with what is known of each frame in FRAMES."""
    inputs = [source for source in small(frame, "inputs") or () if "numbers" in source]
    counted = _counted(frame)
    if not inputs or not _is_image(frame) or counted is None:
        return tables
    if "FRAMES" in tables:
        table = tables["FRAMES"]
    else:
        names = [source["name"] for source in inputs]
        rows = np.arange(1, len(names) + 1, dtype="i2")
        table = astable.Table(
            {"FRAME": rows, "NAME": names, "MJD": [s["numbers"]["mjd"] for s in inputs]}
        )
    names = [str(name) for name in table["NAME"]]
    of_name = {source["name"]: source["numbers"] for source in inputs}
    if not set(names) <= set(of_name):
        return tables
    for column, name, unit, text in _COLUMNS:
        values = [rounded(of_name[row][name]) for row in names]
        table[column] = np.array([np.nan if value is None else value for value in values], "f4")
        table[column].unit, table[column].description = unit or None, text
    order = [source["name"] for source in small(frame, "inputs")]
    share = counted["rejected"] / np.maximum(counted["covered"], 1)
    table["REJECTED"] = np.array([share[order.index(row)] for row in names], "f4")
    table["REJECTED"].description = "fraction of its pixels that the stack rejected"
    return tables | {"FRAMES": table}
