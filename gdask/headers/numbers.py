"""The numbers by which a product is judged, as cards of its primary header.

One table says keyword, unit and meaning of each; docs/catalogue.md says how each is measured. The
index of a campaign, gates, reports and `showd` read them by their plain names.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from gdask.headers.header import Header
from gdask.headers.reading import read_headers

#: What a number may be.
Value = float | int | str


class Number(NamedTuple):
    """A number of a product: plain name, FITS keyword, unit ('' none) and the card's comment."""

    name: str
    keyword: str
    unit: str
    comment: str


#: All numbers. MEANFWHM, MEANELLP, MEANZP, SKYLEVEL mean what they mean in DRAGONS; BPMIM, FLATIM,
#: DARKIM, NCOMBINE, EXPTIME and TOTEXP are written by the steps.
NUMBERS = tuple(
    Number(*row)
    for row in (
        ("fwhm", "MEANFWHM", "arcsec", "Mean point source FWHM (arcsec)"),
        ("ellipticity", "MEANELLP", "", "Mean point source ellipticity"),
        ("fwhm_stars", "FWHMSTAR", "", "Stars that tell MEANFWHM"),
        ("fwhm_of_frames", "FRMFWHM", "arcsec", "Mean FWHM of the frames (arcsec)"),
        ("fwhm_scatter", "FRMFWHSD", "arcsec", "Scatter of the frames' FWHM (arcsec)"),
        ("zero_point", "MEANZP", "mag", "Zero point, mag of 1 e-/s"),
        ("zero_point_error", "ZPERR", "mag", "Error of MEANZP (mag)"),
        ("zero_point_stars", "ZPSTARS", "", "Stars that tell MEANZP"),
        ("zero_point_source", "ZPSOURCE", "", "Where MEANZP is from"),
        ("zero_point_offset", "ZPOFFSET", "mag", "MEANZP minus the nominal one (mag)"),
        ("depth_5sigma", "DEPTH5", "mag", "Point source of 5 sigma (mag)"),
        ("depth_aperture", "DEPTHRAD", "arcsec", "Radius of apertures of DEPTH5 (arcsec)"),
        ("depth_places", "DEPTHNUM", "", "Empty apertures of DEPTH5"),
        ("noise_ratio", "NOISERAT", "", "Noise in empty apertures over VAR's"),
        ("wide_noise_ratio", "NOISEWID", "", "The same in apertures of 12 pixels"),
        ("depth_over_predicted", "DEPTHRAT", "", "5 sigma flux over what was promised"),
        ("sky_level", "SKYLEVEL", "electron", "Sky of a pixel in EXPTIME (e-)"),
        ("sky_scatter", "SKYSD", "electron", "Scatter of the frames' SKYLEVEL (e-)"),
        ("sky_brightness", "SKYMAG", "mag", "Sky (mag/arcsec2)"),
        ("sky_unevenness", "SKYUNEVN", "", "Scatter of local levels over pixel noise"),
        ("astrometric_rms", "ASTRRMS", "mas", "Rms of stars in frames, an axis (mas)"),
        ("astrometric_stars", "ASTRSTAR", "", "Stars of the joint solution"),
        ("fewest_matches", "ASTRMIN", "", "Fewest matched stars of a frame"),
        ("catalogue_rms", "CATRMS", "mas", "Rms to the reference catalogue (mas)"),
        ("catalogue_stars", "CATSTARS", "", "Stars that tie it to the catalogue"),
        ("frames", "NFRAMES", "", "Frames with weight"),
        ("nights", "NNIGHTS", "", "Nights with weight"),
        ("frames_considered", "NCONSID", "", "Frames considered, set aside or not"),
        ("rejected_fraction", "REJFRAC", "", "Mean rejected fraction of a frame"),
        ("worst_rejected_fraction", "REJMAX", "", "Largest rejected fraction of a frame"),
        ("lowest_weight", "WGHTMIN", "", "Lowest weight of a frame over the median"),
        ("transparency_scatter", "TRANSPSD", "", "Scatter of the frames' throughput"),
        ("mean_counts", "MEANCNTS", "electron", "Counts of the flat for which it is 1 (e-)"),
        ("dark_level", "DARKLEV", "electron", "Median level (e-)"),
        ("lamp_scatter", "LAMPSCAT", "", "Scatter of the frames' levels (fraction)"),
        ("level_scatter", "LEVSCAT", "electron", "Scatter of the frames' levels (e-)"),
        ("read_noise", "RNMEAS", "electron", "Read noise of a frame, measured (e-)"),
        ("read_noise_ratio", "RNRATIO", "", "Scatter of darks over what VAR says"),
        ("bad_fraction", "BADFRAC", "", "Fraction of bad pixels"),
        ("bad_pixels", "NBAD", "", "Bad pixels"),
        ("bad_in_flat", "NBADFLAT", "", "Bad pixels by the flat"),
        ("bad_in_dark", "NBADDARK", "", "Bad pixels by the dark"),
        ("gates", "GATES", "", "Gates: passed, or those not met"),
    )
)
#: Cards that steps write, read with the numbers.
_FROM_STEPS = (
    ("exposure_time", "EXPTIME"),
    ("total_exposure_time", "TOTEXP"),
    ("combined", "NCOMBINE"),
    ("airmass", "AIRMASS"),
    ("bpm", "BPMIM"),
    ("flat", "FLATIM"),
    ("dark", "DARKIM"),
)
KEYWORDS = tuple(number.keyword for number in NUMBERS)
#: Cards that a header has to have room for: numbers, and long texts on several.
ROOM_CARDS = len(NUMBERS) + 12
#: Digits of a number in a header: sums differ from processor to processor in the last ones.
DIGITS = 5


def names() -> tuple[str, ...]:
    """Give the plain names of all numbers that `read_numbers` may give."""
    return (*(number.name for number in NUMBERS), *(name for name, _ in _FROM_STEPS))


def read_numbers(
    product: str | os.PathLike[str] | Header | Mapping[str, object],
) -> dict[str, Value]:
    """Read the numbers of a product: its path, or its primary header. Plain names to values.

    Numbers that the product does not have are left out; `kind` says what it is. Raises BadFile
    where it cannot be read.
    """
    header: Any = product
    if isinstance(product, str | os.PathLike):
        header = read_headers(os.fspath(product)).phu
    pairs = (*((number.name, number.keyword) for number in NUMBERS), *_FROM_STEPS)
    found = ((name, header.get(keyword)) for name, keyword in pairs)
    numbers = {name: value for name, value in found if isinstance(value, float | int | str)}
    return {"kind": kind_of(header), **numbers} if kind_of(header) else numbers


def kind_of(header: Any) -> str:
    """Say what a product is: image (a stack), frame (sky-subtracted), flat, dark, bpm; '' else."""
    kinds = {"PROCBPM": "bpm", "PROCFLAT": "flat", "PROCDARK": "dark", "PROCSCI": "image"}
    found = [kind for keyword, kind in kinds.items() if keyword in header]
    return found[0] if found else "frame" if "FWHMSTAR" in header else ""


def known_numbers(values: Mapping[str, Value | None], kind: str) -> dict[str, Value]:
    """Give measured numbers as `read_numbers` would: rounded, without those that are not known."""
    found = {number.name: rounded(values.get(number.name)) for number in NUMBERS}
    return {"kind": kind, **{name: value for name, value in found.items() if value is not None}}


def number_cards(values: Mapping[str, Value | None]) -> dict[str, tuple[Value, str] | None]:
    """Give the cards of numbers by plain name; None for those that a product has not.

    So a product made of other products keeps no number of theirs. Floats are rounded to DIGITS.
    """
    cards: dict[str, tuple[Value, str] | None] = {}
    for number in NUMBERS:
        value = rounded(values.get(number.name))
        cards[number.keyword] = None if value is None else (value, number.comment)
    return cards


def rounded(value: Value | None) -> Value | None:
    """Round a number to DIGITS significant digits; None where it is not finite."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return value
    return float(f"{float(value):.{DIGITS}g}") if math.isfinite(value) else None
