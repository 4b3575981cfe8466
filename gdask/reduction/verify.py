"""Verification: whether a file, raw or product, is whole and says what it is.

Checks of checksums, structure, pixels, instrument, units, WCS and provenance, in this order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gdask.headers import RECORD_BYTES, Headers, Unit, each_unit, is_tiled, open_stream
from gdask.instruments import View, view
from gdask.instruments.view import COMPANION_EXTENSIONS
from gdask.io.checksum import wrong_sums
from gdask.io.read import stored_arrays
from gdask.io.stored import StoredArray
from gdask.model import DTYPES, EXTNAMES, GdaskError, late

if TYPE_CHECKING:
    from astropy.io import fits
else:
    fits = late("astropy.io.fits")

#: All DQ bits that have a meaning.
KNOWN_DQ_BITS = 0x7F
#: Rows that are read at a time.
ROWS_AT_A_TIME = 256
#: Largest distance between a raw frame's WCS and its target and offsets, as a share of the field
#: of view.
MAX_POINTING_ERROR = 0.5
_TABLES = {
    "HISTORY": {"primitive", "args", "timestamp_start", "timestamp_stop"},
    "REDUCTION": {"item", "value"},
    "PROVENANCE": {"timestamp", "filename", "md5", "provenance_added_by"},
    "RECIPE": {"line"},
}


class Fault(NamedTuple):
    """One thing that is wrong: the file, the place in it (an extension, or ''), and what it is."""

    path: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.where + ': ' if self.where else ''}{self.what}"


class Report(NamedTuple):
    """What a file is, in a few words, and what is wrong with it."""

    path: str
    kind: str
    faults: tuple[Fault, ...]


def verify(path: str | os.PathLike[str]) -> Report:
    """Check one file.

    Reads it once for the checksums and once for the pixels, in bands of rows.
    """
    name = os.fspath(path)
    try:
        units = _units(name)
        headers = Headers(units[0].header, tuple(u.header for u in units if _is_image(u)), name)
        faults = [(f"extension {number}", text) for number, text in wrong_sums(name)]
    except GdaskError as error:
        return Report(name, "unreadable", (Fault(name, "", str(error).removeprefix(f"{name}: ")),))
    ours = "REDUCTION" in map(_name, units)
    kind = "FITS file"
    checks = [_structure(units, name, ours), _pixels(name)]
    try:
        seen = view(headers)
        kind = _kind(seen, ours)
        checks += [_instrument(seen), _units_of_pixels(units, seen, ours), _wcs(seen)]
    except GdaskError as error:
        faults.append(("primary header", str(error).removeprefix(f"{name}: ")))
    checks.append(_provenance(name, units, headers.phu))
    for check in checks:
        faults += check
    return Report(
        name, kind, tuple(Fault(name, where, what) for where, what in dict.fromkeys(faults))
    )


#: Faults of a file: the place in it, and what is wrong.
Found = Iterator[tuple[str, str]]


def _units(name: str) -> list[Unit]:
    with open_stream(name) as stream:
        return list(each_unit(stream, name))


def _is_image(unit: Unit) -> bool:
    return is_tiled(unit.header) or str(unit.header.get("XTENSION", "")).strip() == "IMAGE"


def _name(unit: Unit) -> str:
    return str(unit.header.get("EXTNAME") or "").strip().upper()


def _label(unit: Unit) -> str:
    name = _name(unit)
    return f"{name},{unit.header.get('EXTVER', 1)}" if name else f"extension {unit.number}"


def _kind(seen: View, ours: bool) -> str:
    special = [tag for tag in ("BPM", "FLAT", "DARK", "SPECT", "IMAGE") if tag in seen.tags]
    state = (
        "raw"
        if "RAW" in seen.tags
        else "gdask product"
        if ours
        else "processed"
        if "PREPARED" in seen.tags
        else "changed"
    )
    return " ".join(
        [
            seen.facts["name"],
            state,
            *special[:1],
            f"{len(seen.ext)} array{'s' * (len(seen.ext) != 1)}",
        ]
    )


def _structure(units: Sequence[Unit], name: str, ours: bool) -> Found:
    """Check records, names and shapes of the units."""
    size = os.path.getsize(name)
    end = max(unit.begin + unit.size + -unit.size % RECORD_BYTES for unit in units)
    with open_stream(name) as stream:
        stream.seek(end)
        rest = stream.read(1)
    if rest:
        text = f"there are bytes after the last extension, which ends at byte {end}"
        yield "", f"{text}; copy the file again"
    elif size % RECORD_BYTES and not name.endswith((".gz", ".bz2")) and size < end:
        yield (
            "",
            (
                f"its {size} bytes are no whole number of FITS records of {RECORD_BYTES}; "
                "copy it again"
            ),
        )
    labels = [_label(unit) for unit in units[1:] if _name(unit)]
    for label in sorted({one for one in labels if labels.count(one) > 1}):
        yield label, "there is more than one extension of this name and version"
    if ours:
        for unit in units:
            if not {"CHECKSUM", "DATASUM"} <= set(unit.header):
                yield (
                    _label(unit) if unit.number else "primary header",
                    "no CHECKSUM and DATASUM, which every product has",
                )
    yield from _companions(units)


def _companions(units: Sequence[Unit]) -> Found:
    """Check that VAR, DQ and OBJMASK are as many as SCI, of their shape and of the right type."""
    groups: dict[str, list[Unit]] = {}
    for unit in units[1:]:
        if _is_image(unit) and not is_tiled(unit.header):
            groups.setdefault(_name(unit) or "SCI", []).append(unit)
    arrays = groups.get("SCI", [])
    if not arrays and not any(_is_image(unit) or unit.header.get("NAXIS") for unit in units):
        yield "", "no image extension; SCI arrays were expected"
    for name in sorted(COMPANION_EXTENSIONS & set(groups)):
        if arrays and len(groups[name]) != len(arrays):
            yield (
                name,
                f"{len(groups[name])} extensions, {len(arrays)} of SCI; one for each was expected",
            )
        for unit, array in zip(groups[name], arrays):
            if _shape(unit) != _shape(array):
                yield _label(unit), f"shape {_shape(unit)}, that of its SCI is {_shape(array)}"
    for unit in groups.get("DQ", ()):
        if unit.header["BITPIX"] < 0:
            yield (
                _label(unit),
                f"BITPIX {unit.header['BITPIX']}: DQ are bits, an integer type was expected",
            )
    for unit in groups.get("VAR", ()):
        if unit.header["BITPIX"] > 0:
            yield (
                _label(unit),
                f"BITPIX {unit.header['BITPIX']}: a floating-point type was expected",
            )


def _shape(unit: Unit) -> tuple[int, ...]:
    return tuple(unit.header[f"NAXIS{axis}"] for axis in range(unit.header["NAXIS"], 0, -1))


def _pixels(name: str) -> Found:
    """Find NaN and negative variance in good pixels, unknown DQ bits, planes of one value."""
    try:
        stored = {key: array for key, array in stored_arrays(name).items() if key in DTYPES}
        for number in range(max((array.shape[0] for array in stored.values()), default=0)):
            yield from _pixels_of_array(stored, number)
    except GdaskError as error:
        yield "", str(error).removeprefix(f"{name}: ")


def _pixels_of_array(stored: Mapping[str, StoredArray], number: int) -> Found:
    """Check the pixels of one detector array, which `stored` has by variable."""
    planes = {key: array.planes[number] for key, array in stored.items()}
    if len({plane.shape for plane in planes.values()}) != 1:
        return
    counts: dict[str, int] = dict.fromkeys(("data", "variance", "dq"), 0)
    low, high, (ny, nx) = np.inf, -np.inf, next(iter(planes.values())).shape
    # A packed plane is unpacked whole for each window.
    is_packed = any(plane.offset < 0 for plane in planes.values())
    rows = ny if is_packed else ROWS_AT_A_TIME
    for y1 in range(0, ny, rows):
        y2 = min(y1 + rows, ny)
        read = {key: array.read(number, (y1, y2, 0, nx), {}) for key, array in stored.items()}
        good = read["dq"] == 0 if "dq" in read else np.ones((y2 - y1, nx), bool)
        if "data" in read:
            finite = np.isfinite(read["data"])
            counts["data"] += int(np.count_nonzero(good & ~finite))
            low = min(low, float(np.min(read["data"], where=finite, initial=np.inf)))
            high = max(high, float(np.max(read["data"], where=finite, initial=-np.inf)))
        if "variance" in read:
            counts["variance"] += int(np.count_nonzero(good & ~(read["variance"] >= 0)))
        if "dq" in read:
            counts["dq"] += int(np.count_nonzero(read["dq"] & np.uint16(0xFFFF ^ KNOWN_DQ_BITS)))
    words = {
        "data": "no finite number",
        "variance": "negative or no number",
        "dq": f"with DQ bits beyond {KNOWN_DQ_BITS}",
    }
    for key, count in counts.items():
        if count:
            calls = "" if key == "dq" or "dq" not in planes else ", though DQ calls them good"
            yield (
                f"{EXTNAMES[key]},{number + 1}",
                f"{count} of {ny * nx} pixels {words[key]}{calls}",
            )
    if "data" in planes and not low < high:  # also where nothing is finite
        yield (
            f"SCI,{number + 1}",
            f"all pixels are {low:g}" if low == high else "no pixel has a finite value",
        )


def _instrument(seen: View) -> Found:
    """Check what a file of the instrument must have.

    Arrays, sections that fit, time, exposure time and filter.
    """
    expected = len(seen.facts["arrays"]) if "arrays" in seen.facts else len(seen.ext)
    if len(seen.ext) != expected and not seen.tags & {"PROCESSED_SCIENCE"}:
        yield "", f"{len(seen.ext)} arrays, {seen.facts['name']} has {expected}"
    for name in ("DATASEC", "CCDSEC", "ARRAYSEC") if "RAW" in seen.tags else ():
        for number, (text, header) in enumerate(zip(seen.each(name), seen.ext), 1):
            sizes = (
                [int(part) for part in re.findall(r"\d+", text)] if isinstance(text, str) else []
            )
            wanted = (
                [abs(sizes[1] - sizes[0]) + 1, abs(sizes[3] - sizes[2]) + 1]
                if len(sizes) == 4
                else None
            )
            if wanted and wanted != [header.get("NAXIS1"), header.get("NAXIS2")]:
                shape = f"{header.get('NAXIS1')} x {header.get('NAXIS2')}"
                yield f"array {number}", f"{name} {text} is not of its {shape} pixels"
    for name, keywords in (
        ("ut_datetime", "DATE-OBS"),
        ("exposure_time", "EXPTIME"),
        ("filter_name", "FILTER1, FILTER2"),
    ):
        if seen(name) is None and "BPM" not in seen.tags:
            yield "primary header", f"{name.replace('_', ' ')} is unknown (no valid {keywords})"


def _units_of_pixels(units: Sequence[Unit], seen: View, ours: bool) -> Found:
    """Check BUNIT, which must be a unit.

    In our products that of VAR is the square of that of SCI, and DQ and masks have none (DRAGONS
    copies that of SCI to all).
    """
    from astropy.units import Unit as PhysicalUnit

    found: dict[tuple[str, int], Any] = {}
    for number, unit in enumerate(units[1:]):
        text = str(unit.header.get("BUNIT") or "").strip()
        if not _is_image(unit):
            continue
        if _name(unit) in ("DQ", "OBJMASK"):
            if ours and text:
                yield _label(unit), f"BUNIT '{text}': flags have no unit"
            continue
        try:
            found[_name(unit) or "SCI", unit.header.get("EXTVER", number)] = PhysicalUnit(
                text.lower() if text == "ADU" else text
            )
        except (ValueError, TypeError):
            yield _label(unit), f"BUNIT '{text}' is no unit; 'electron' or 'adu' was expected"
    for (name, version), physical in found.items():
        science = found.get(("SCI", version))
        if ours and name == "VAR" and science is not None and physical != science**2:
            yield (
                f"VAR,{version}",
                f"BUNIT '{physical}', that of SCI is '{science}': its square was expected",
            )
    if seen.prepared and not seen.tags & {"FLAT", "BPM"}:
        for (name, version), physical in found.items():
            if name == "SCI" and str(physical) == "":
                yield f"SCI,{version}", "no BUNIT"


def _wcs(seen: View) -> Found:
    """Check the WCS of each array of an image.

    It must be there, have the instrument's scale, be invertible, and lie where the header points.
    """
    if "IMAGE" not in seen.tags or seen.tags & {"CAL", "AZEL_TARGET"}:
        return
    for number, header in enumerate(seen.ext, 1):
        where = f"array {number}"
        ra = header.get("CRVAL1", seen.phu.get("CRVAL1"))
        if not isinstance(ra, (int, float)) or isinstance(ra, bool):
            yield where, "no WCS (CRVAL1, CRVAL2, CD)"
            continue
        yield from (
            (where, text)
            for text in _one_wcs(header if "CRVAL1" in header else seen.phu, header, seen)
        )
    from gdask.kernels.geometry.projection import tangent_plane

    center = seen("wcs_ra"), seen("wcs_dec")
    target = seen("target_ra", offset=True), seen("target_dec", offset=True)
    if "RAW" in seen.tags and None not in (*center, *target):
        off = float(np.hypot(*tangent_plane(*center, *target)))
        if off > MAX_POINTING_ERROR * seen.facts.get("field_of_view", 120.0) or not np.isfinite(
            off
        ):
            fact = f"{off:.0f} arcsec from the target and offsets in the primary header"
            yield "array 1", f"its WCS is {fact}; reduce with prepare:bad_wcs=fix"


def _one_wcs(header: fits.Header, size: fits.Header, seen: View) -> Iterator[str]:
    """Check the WCS in `header`, of an array whose NAXIS keywords `size` has."""
    import warnings

    from astropy.wcs import WCS

    from gdask.instruments.rules import cd_matrix

    if "A_ORDER" in header and not str(header.get("CTYPE1")).endswith("-SIP"):
        yield f"its WCS has SIP coefficients, and CTYPE1 '{header.get('CTYPE1')}' has no -SIP"
    matrix = cd_matrix(header)
    if matrix is None or not np.linalg.det(matrix):
        yield "its WCS has no scale, or one that cannot be inverted (CD matrix)"
        return
    scale = 3600 * np.sqrt(abs(np.linalg.det(matrix)))
    usual = seen.facts.get(
        "output_pixel_scale" if "PROCESSED_SCIENCE" in seen.tags else "pixel_scale", scale
    )
    if not 0.9 < scale / usual < 1.1 and "PROCESSED_SCIENCE" not in seen.tags:
        yield f"its WCS has {scale:.4g} arcsec a pixel, {usual:g} was expected"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wcs = WCS(header.copy(), naxis=2, fix=False)
            corners = np.array([(0.0, 0.0), (size["NAXIS1"] - 1.0, size["NAXIS2"] - 1.0)])
            back = wcs.all_world2pix(wcs.all_pix2world(corners, 0), 0, quiet=True)
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        MemoryError,
        OSError,
    ) as error:  # wcslib's are ValueError
        lines = str(error).strip().splitlines()
        yield f"its WCS is not valid: {lines[0] if lines else type(error).__name__}"
        return
    off = float(np.abs(back - corners).max())
    if not off < 0.1:
        yield f"its WCS does not lead back to the same pixel (off by {off:.2g})"


def _provenance(name: str, units: Sequence[Unit], phu: fits.Header) -> Found:
    """Check that a product's tables are there, have their columns, and name inputs by checksum."""
    present = {_name(unit) for unit in units}
    if "REDUCTION" in present:
        for table in sorted({"HISTORY", "PROVENANCE"} - present):
            yield table, "is missing; a product says what was done to what"
    for unit in units[1:]:
        wanted = _TABLES.get(_name(unit))
        if wanted and str(unit.header.get("XTENSION")).strip() == "BINTABLE":
            have = {str(unit.header[key]).strip() for key in unit.header if key.startswith("TTYPE")}
            if lost := sorted(wanted - have):
                yield _name(unit), f"no column {', '.join(lost)}"
    if {"PROVENANCE", "REDUCTION"} <= present:
        from gdask.io.tables import read_rows

        for table, column, pattern in (
            ("PROVENANCE", "md5", r"[0-9a-f]{32}"),
            ("REDUCTION", "item", r"\w+"),
        ):
            for number, row in enumerate(read_rows(name, table), 1):
                if not re.fullmatch(pattern, row.get(column, "")):
                    yield table, f"row {number}: {column} is '{row.get(column, '')[:40]}'"
