"""What the store knows of a file, all of it from headers: its type and the descriptors that association rules use."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from gdask.model import GdaskError
from gdask.types import Headers

if TYPE_CHECKING:
    from gdask.types import Frame

#: Descriptors that the store keeps, one column each, and how a value is made fit for its column.
DESCRIPTORS: dict[str, Callable[[Any], Any]] = {
    "instrument": str,
    "ut_datetime": lambda value: value,
    **dict.fromkeys(
        (
            "data_label",
            "filter_name",
            "disperser",
            "lyot_stop",
            "focal_plane_mask",
            "camera",
            "read_mode",
            "read_speed_setting",
            "gain_setting",
            "well_depth_setting",
        ),
        str,
    ),
    **dict.fromkeys(("exposure_time",), float),
    **dict.fromkeys(("coadds", "detector_x_bin", "detector_y_bin"), int),
    **dict.fromkeys(("array_name", "detector_section"), list),
}
PRETTY = frozenset(
    {"filter_name"}
)  # without component numbers: the same filter may have had several

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
    short = {caltype.removeprefix("processed_"): caltype for caltype in CALTYPES}
    near = difflib.get_close_matches(name.removeprefix("processed_"), short, n=1, cutoff=0.4)
    hint = f"; did you mean '{short[near[0]]}'?" if near else ""
    raise GdaskError(
        f"'{text}': unknown type of calibration; expected one of {', '.join(CALTYPES)}{hint}"
    )


def caltype_of(tags: Iterable[str]) -> str | None:
    """The type of calibration that a file with these tags is, None if it is not one."""
    return next((caltype for caltype, needed in CALTYPES.items() if needed.issubset(tags)), None)


def describe(source: str | os.PathLike[str] | Headers | Frame) -> Row:
    """The descriptors of a file as a row of the store: {column: value}, None where unknown; headers are read, no pixels.

    'caltype' is None for a file that is not a calibration; 'shape' lists [nx, ny] of each array.
    """
    from gdask.instruments import view

    seen = view(source)
    row: Row = {}
    for name, fit in DESCRIPTORS.items():
        value = seen(name, **({"pretty": True} if name in PRETTY else {}))
        row[name] = None if value is None else fit(value)
    row["caltype"] = caltype_of(seen.tags)
    row["shape"] = [[header.get("NAXIS1"), header.get("NAXIS2")] for header in seen.ext]
    return row


def describe_file(path: str | os.PathLike[str]) -> Row:
    """`describe` plus the file's identity: absolute path, name, size in bytes, mtime in ns, md5 of the whole file."""
    full = os.path.abspath(os.fspath(path))
    row = describe(full)
    status = os.stat(full)
    identity = {
        "path": full,
        "name": os.path.basename(full),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }
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
