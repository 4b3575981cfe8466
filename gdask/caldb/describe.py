"""What the store knows of a file, all of it from headers: its type and the descriptors that association rules use."""

from __future__ import annotations

import difflib
import hashlib
import os
from typing import Any

from gdask.model import GdaskError
from gdask.types import Headers

#: Columns of the store that hold descriptors, and the descriptor that each holds.
DESCRIPTORS: dict[str, str] = {
    "ut_datetime": "ut_datetime",
    "data_label": "data_label",
    "filter_name": "filter_name_pretty",
    "disperser": "disperser",
    "lyot_stop": "lyot_stop",
    "focal_plane_mask": "focal_plane_mask",
    "camera": "camera",
    "read_mode": "read_mode",
    "read_speed_setting": "read_speed_setting",
    "gain_setting": "gain_setting",
    "well_depth_setting": "well_depth_setting",
    "exposure_time": "exposure_time",
    "coadds": "coadds",
    "detector_x_bin": "detector_x_bin",
    "detector_y_bin": "detector_y_bin",
    "array_name": "array_name",
    "detector_section": "detector_section",
}

#: Types of calibration, and the tags that make a file one (first match wins).
CALTYPES: dict[str, frozenset[str]] = {
    "processed_bpm": frozenset({"BPM"}),
    "processed_flat": frozenset({"PROCESSED", "FLAT"}),
    "processed_dark": frozenset({"PROCESSED", "DARK"}),
    "processed_arc": frozenset({"PROCESSED", "ARC"}),
    "processed_standard": frozenset({"PROCESSED", "STANDARD"}),
}

Row = dict[str, Any]


def caltype_name(text: str) -> str:
    """The full name of a type of calibration: 'flat' and 'processed_flat' both give 'processed_flat'."""
    name = text.strip().lower()
    for candidate in (name, f"processed_{name}"):
        if candidate in CALTYPES:
            return candidate
    near = difflib.get_close_matches(name, CALTYPES, n=1, cutoff=0.4)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise GdaskError(f"'{text}': unknown type of calibration; expected one of {', '.join(CALTYPES)}{hint}")


def caltype_of(tags: set[str]) -> str | None:
    """The type of calibration that a file with these tags is, None if it is not one."""
    return next((caltype for caltype, needed in CALTYPES.items() if needed <= tags), None)


def describe(source: str | os.PathLike[str] | Headers) -> Row:
    """The descriptors of a file as a row of the store: {column: value}, None where unknown; headers are read, no pixels.

    'caltype' is None for a file that is not a calibration; 'shape' lists [nx, ny] of each array.
    """
    from gdask.instruments import descriptor, tags
    from gdask.io.headers import read_headers

    headers = source if isinstance(source, Headers) else read_headers(os.fspath(source))
    row: Row = {name: _known(descriptor(headers, wanted)) for name, wanted in DESCRIPTORS.items()}
    row["instrument"] = descriptor(headers, "instrument")
    row["caltype"] = caltype_of(set(tags(headers)))
    row["shape"] = _shapes(headers)
    return row


def describe_file(path: str | os.PathLike[str]) -> Row:
    """`describe` plus the file's identity: absolute path, name, size in bytes, mtime in ns, md5 of the whole file."""
    full = os.path.abspath(os.fspath(path))
    row = describe(full)
    status = os.stat(full)
    identity = {"path": full, "name": os.path.basename(full), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    return row | identity | {"md5": md5_of(full)}


def md5_of(path: str | os.PathLike[str]) -> str:
    """The MD5 sum of a file, in hexadecimal (the checksum that the field's databases use; no secret depends on it)."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def what_is_wrong(row: Row) -> str:
    """Why a registered file cannot be used: gone, unreadable or changed; '' if it is as it was when registered.

    Same size and time: taken as unchanged. Same size, other time: the checksum decides.
    """
    try:
        status = os.stat(row["path"])
        if status.st_size != row["size"]:
            return f"changed on disk: {status.st_size} bytes, {row['size']} when registered; add it again"
        if status.st_mtime_ns != row["mtime_ns"] and md5_of(row["path"]) != row["md5"]:
            return "changed on disk: another checksum than when registered; add it again"
    except OSError as error:
        return f"gone from disk ({error.strerror}: {row['path']})"
    return ""


def _known(value: Any) -> Any:
    """A value that a database column can hold: sections as lists of integers, NumPy scalars as Python's own."""
    if isinstance(value, list | tuple):
        return [_known(item) for item in value]
    return value.item() if hasattr(value, "item") else value


def _shapes(headers: Headers) -> list[list[int | None]]:
    science = [header for header in headers.ext if header.get("EXTNAME", "SCI") in {"SCI", ""}] or headers.ext
    return [[header.get("NAXIS1"), header.get("NAXIS2")] for header in science]
