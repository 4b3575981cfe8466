"""Provenance: what a product says of itself.

Its name, what went into it, and every step with every parameter. In this order: names of products;
their tables; what is needed to run a reduction again; checksums of files; headers and history.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
from dask.base import tokenize

from gdask import __version__, params
from gdask.engine.checkpoint import code_digest
from gdask.headers import Header
from gdask.instruments import tags
from gdask.io.frames import primary_header, records, with_attrs, with_headers, with_records
from gdask.io.lazy_arrays import map_blocks
from gdask.io.tables import source_tables
from gdask.kernels.md5 import LANES, LEAST_STREAMS, md5_sums
from gdask.model import (
    BadFile,
    GdaskError,
    UsageError,
    arithmetic_of_processor,
    read_text,
    settings,
)
from gdask.types import Frame, Frames

#: Time-stamp keyword that each step leaves in the primary header: DRAGONS' keywords, as in FITS
#: files in the archive.
STAMPS = {
    "prepare": "PREPARE",
    "add_dq": "ADDDQ",
    "nonlinearity_correct": "LINCORR",
    "adu_to_electrons": "ADUTOELE",
    "add_var": "ADDVAR",
    "dark_correct": "DARKCORR",
    "flat_correct": "FLATCORR",
    "make_lamp_flat": "LAMPFLAT",
    "normalize_flat": "NORMFLAT",
    "threshold_flatfield": "THRSFLAT",
    "make_bpm": "MAKEBPM",
    "separate_sky": "SEPSKY",
    "associate_sky": "ASSOCSKY",
    "sky_correct": "SUBSKY",
    "detect_sources": "DETECSRC",
    "add_reference_catalog": "ADDRECAT",
    "determine_astrometric_solution": "ASTRMTRY",
    "adjust_wcs_to_reference": "CORRWCS",
    "match_sky_levels": "LEVELSKY",
    "resample_to_common_frame": "ALIGN",
    "scale_counts_to_reference": "SCALEOBJ",
    "stack_frames": "STACKFRM",
}


def product_name(name: str, suffix: str) -> str:
    """Replace the suffix of an input's name: S1_x.fits and _flat give S1_flat.fits.

    Raises UsageError where the suffix is a path.
    """
    if os.sep in suffix or "\0" in suffix:
        raise UsageError(
            f"suffix {suffix!r}: a part of a file name was expected, such as _mine, not a path"
        )
    stem = name.removesuffix(".fits")
    if not name.startswith("bpm"):
        stem = stem.partition("_")[0]
    return f"{stem}{suffix}.fits"


def distinct(frames: Iterable[Frame]) -> list[Frame]:
    """Give each Frame once, where each gives a product of another name.

    Raises GdaskError where two inputs have names of which the products would have one name.
    """
    found: dict[str, Frame] = {}
    for frame in frames:
        stem = product_name(frame.attrs["name"], "")
        own = frame.attrs.get("path") or frame.attrs["name"]
        other = found.setdefault(stem, frame)
        if (other.attrs.get("path") or other.attrs["name"]) != own:
            raise GdaskError(
                f"{own} and {other.attrs.get('path')}: their products would have one name, that "
                "up to the first _ of theirs; rename one of them"
            )
        found[stem] = frame
    return list(found.values())


def check_target(path: str, frame: Frame, inputs: Iterable[str]) -> None:
    """Refuse a product that would replace one of its inputs, under whatever name, or a raw file.

    Raises GdaskError.
    """
    used = {os.path.realpath(source) for source in (*inputs, *sources([frame]))}
    remedy = "work in another folder or give another --suffix"
    if os.path.realpath(path) in used or any(
        os.path.samefile(path, source)
        for source in used
        if os.path.exists(path) and os.path.exists(source)
    ):
        raise GdaskError(f"{path}: the product would replace an input; {remedy}")
    if os.path.exists(path) and _is_raw(path):
        raise GdaskError(f"{path}: the product would replace a raw file; {remedy}")


def _is_raw(path: str) -> bool:
    try:
        return "RAW" in tags(path)
    except GdaskError:  # no file of a known instrument
        return False


def product_tables(frame: Frame, checksums: Mapping[str, str]) -> dict[str, object]:
    """Give the tables of a product by name.

    They are OBJCAT, REFCAT, ASTROM (geometry of each array), HISTORY, PROVENANCE, REDUCTION and
    RECIPE. `checksums` are md5 by path of each file of `sources`.
    """
    from astropy.table import Table

    tables = source_tables(frame)
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}"
    once = {
        (row["filename"], row["provenance_added_by"]): row for row in records(frame, "provenance")
    }.values()
    inputs = [{"timestamp": now, "md5": checksums[row["path"]], **row} for row in once]
    reduction = reduction_of(frame)
    rows = {
        "HISTORY": (
            ("primitive", "args", "timestamp_start", "timestamp_stop"),
            records(frame, "history"),
        ),
        "PROVENANCE": (("timestamp", "filename", "md5", "provenance_added_by"), inputs),
        "REDUCTION": (
            ("item", "value"),
            reduction_rows(reduction, once, checksums) if reduction else (),
        ),
        "RECIPE": (
            ("line",),
            [{"line": line} for line in reduction.get("recipe", {}).get("text", "").splitlines()],
        ),
    }
    return tables | {
        name: Table([[_ascii(row[column]) for row in content] for column in columns], names=columns)
        for name, (columns, content) in rows.items()
        if content
    }


def _ascii(value: object) -> str:
    """Give a value as text that a FITS table can hold."""
    return str(value).encode("ascii", "backslashreplace").decode()


def sources(frames: Iterable[Frame]) -> list[str]:
    """Give the paths of all files whose checksums the products of these Frames name, once each."""
    frames = tuple(frames)
    used = [row["path"] for frame in frames for row in records(frame, "provenance")]
    inputs = [path for frame in frames for path in reduction_of(frame).get("inputs", ())]
    return list(dict.fromkeys([*used, *inputs]))


def reduction_of(frame: Frame) -> dict[str, Any]:
    """Give what `with_reduction` keeps with a Frame; nothing where the Frame is of no reduction."""
    return _parsed(frame.attrs["reduction"]) if frame.attrs.get("reduction") else {}


@lru_cache(maxsize=64)  # one text for all frames of a run
def _parsed(text: str) -> dict[str, Any]:
    return json.loads(text)


def with_reduction(
    frames: Frames, recipe: Callable[..., object], name: str, **given: Any
) -> Frames:
    """Keep with the Frames that a recipe is given all that is needed to run it again.

    `gdask.reduction.replay` reads it from the product.

    name
        The recipe as the user named it.
    given
        `layers` of parameters, `user_cals` (type -> path), `suffix`, `left_out` (rows of name,
        step, reason), `gates` (the user's).
    """
    path = inspect.getsourcefile(inspect.unwrap(recipe)) or ""
    source = read_text(path, errors="replace") if os.path.isfile(path) else ""
    about = {
        "recipe": {
            "name": name,
            "function": recipe.__name__,
            "file": os.path.basename(path),
            "sha256": digest(source),
            "text": source,
        },
        "inputs": [frame.attrs["path"] for frame in frames],
        "versions": versions(),
        **given,
    }
    text = json.dumps(about, default=str)
    return tuple(with_attrs(frame, reduction=text) for frame in frames)


def reduction_rows(
    about: Mapping[str, Any], used: Iterable[Mapping[str, str]], checksums: Mapping[str, str]
) -> list[dict[str, str]]:
    """Give the rows of the table REDUCTION: item and value (JSON).

    They are versions, recipe, parameters and each file. `about` is what `with_reduction` keeps,
    `used` rows of provenance, `checksums` md5 by path.
    """

    def described(path: str, **more: str) -> dict[str, object]:
        found = checksums[path] if path in checksums else _md5_now(path)
        return {
            "name": os.path.basename(path),
            "size": os.path.getsize(path) if os.path.exists(path) else None,
            "md5": found,
            **more,
        }

    user_cals = {path: kind for kind, path in about.get("user_cals", {}).items()}
    known = {*about["inputs"], *user_cals}
    calibrations = dict.fromkeys(row["path"] for row in used if row["path"] not in known)
    settings = {name: dict(values) for name, values in about.get("layers", ())}
    files = [
        value
        for values in settings.values()
        for value in values.values()
        if isinstance(value, str) and os.path.isfile(value)
    ]
    recipe = {key: value for key, value in about["recipe"].items() if key != "text"}
    rows: list[tuple[str, object]] = [
        ("versions", about["versions"]),
        ("recipe", recipe),
        ("parameters", settings),
        ("suffix", about.get("suffix")),
        *((("gates", about["gates"]),) if about.get("gates") else ()),
        *(("input", described(path)) for path in about["inputs"]),
        *(("calibration", described(path)) for path in calibrations),
        *(("user_cal", described(path, kind=kind)) for path, kind in user_cals.items()),
        *(("file", described(path, given=path)) for path in dict.fromkeys(files)),
        *(("left_out", list(row)) for row in about.get("left_out", ())),
    ]
    return [{"item": item, "value": json.dumps(value, default=str)} for item, value in rows]


def versions() -> dict[str, str]:
    """Give what the bits of a product may depend on, by name.

    Versions of gdask, Python and libraries, the machine, a digest of gdask's code, and the kinds of
    the processors that work, of which products do not depend, as far as is known.
    """
    from importlib import metadata

    found = {
        name: metadata.version(name)
        for name in ("numpy", "scipy", "numba", "llvmlite", "astropy", "dask", "xarray")
    }
    return {
        "gdask": __version__,
        "code": code_digest(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processors": " ".join(settings().processors or (arithmetic_of_processor(),)),
        **found,
    }


def digest(text: str) -> str:
    """Give the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def _md5_now(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def file_checksums(
    paths: Sequence[str], identities: Mapping[str, tuple[int, int] | None] | None = None
) -> tuple[list[str], object]:
    """Give paths in the order of their sums, and the lazy md5 of these files.

    The latter is an array of objects, (file,), one text for each. `identities` are size (bytes) and
    modification time (ns) when they were opened, by path. The compute raises BadFile where a file
    has another one now. One task sums files of about one size.
    """
    known = {path: (identities or {}).get(path) for path in paths}
    groups = _of_one_size({path: _size(path, identity) for path, identity in known.items()})
    return [path for group in groups for path in group], map_blocks(
        _md5,
        name=f"md5-{tokenize(groups, known)}",
        dtype="object",
        chunks=(tuple(len(group) for group in groups),),
        placed=True,
        groups=tuple(tuple((path, known[path]) for path in group) for group in groups),
    )


def _size(path: str, identity: tuple[int, int] | None) -> int:
    if identity:
        return identity[0]
    return os.path.getsize(path) if os.path.exists(path) else 0


def _of_one_size(sizes: Mapping[str, int]) -> list[list[str]]:
    """Give paths in groups whose files are summed side by side: of sizes 5 % apart at most."""
    alike: list[list[str]] = []
    for path in sorted(sizes, key=lambda path: sizes[path]):
        if alike and sizes[path] <= 1.05 * sizes[alike[-1][0]]:
            alike[-1].append(path)
        else:
            alike.append([path])
    groups = []
    for paths in alike:
        length = -(-len(paths) // -(-len(paths) // LANES)) if len(paths) >= LEAST_STREAMS else 1
        groups += [paths[start : start + length] for start in range(0, len(paths), length)]
    return groups


def _md5(
    place: tuple[int], groups: tuple[tuple[tuple[str, tuple[int, int] | None], ...], ...]
) -> np.ndarray:
    group = groups[place[0]]
    with ExitStack() as opened:
        files = [opened.enter_context(_unchanged(*one)) for one in group]
        try:
            sums = md5_sums(files)
        except OSError:  # which file it was is found one by one
            sums = [_md5_alone(path, file) for (path, _), file in zip(group, files, strict=True)]
    return np.array(sums, dtype=object)


def _unchanged(path: str, identity: tuple[int, int] | None) -> BinaryIO:
    """Open a file; BadFile where it is another one than when it was opened first."""
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115 (the caller closes it)
    except OSError as error:
        raise _vanished(path, error) from None
    stat = os.fstat(file.fileno())
    if identity and (stat.st_size, stat.st_mtime_ns) != tuple(identity):
        file.close()
        raise BadFile(path, "changed during the run; run again with the file at rest")
    return file


def _md5_alone(path: str, file: BinaryIO) -> str:
    try:
        file.seek(0)
        return md5_sums([file])[0]
    except OSError as error:
        raise _vanished(path, error) from None


def _vanished(path: str, error: OSError) -> BadFile:
    why = f"vanished during the run ({error.strerror}); put it back and run again"
    return BadFile(path, why)


def processed_header(frame: Frame, suffix: str, caltype: str) -> Header:
    """Give the primary header of a product: its PROC keyword, and its ending of the data label."""
    phu = primary_header(frame)
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}"
    keyword = {
        "processed_flat": "PROCFLAT",
        "processed_dark": "PROCDARK",
        "processed_bpm": "PROCBPM",
        "processed_science": "PROCSCI",
    }[caltype]
    ending = "-STACK" if caltype == "processed_science" else suffix.replace("_", "-").upper()
    label = str(phu.get("DATALAB", ""))
    return phu.changed(
        {keyword: now, "DATALAB": label if label.endswith(ending) else label + ending}
    )


def entry(step: str, settings: Mapping[str, params.Setting], started: datetime) -> dict[str, str]:
    """Give the row of a product's history for a step that has ended now.

    It has the step's parameters and the layers from which they came.
    """
    args = {name: setting.value for name, setting in settings.items()}
    layers = {
        name: setting.layer for name, setting in settings.items() if setting.layer != "default"
    }
    return {
        "primitive": step,
        "args": json.dumps({**args, "from": layers} if layers else args, default=str),
        "timestamp_start": f"{started:%Y-%m-%dT%H:%M:%S.%f}",
        "timestamp_stop": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}",
    }


def record(frame: Frame, row: dict[str, str]) -> Frame:
    """Record a step in a Frame's history, and stamp it in the primary header.

    `row` is one `entry` for all frames of the step.
    """
    step, stopped = row["primitive"], row["timestamp_stop"]
    stamps = {STAMPS[step]: (stopped, f"UT of {step}")} if step in STAMPS else {}
    stamps["GEM-TLM"] = (stopped, "UT last modification with GEMINI")
    return with_records(with_headers(frame, primary=stamps), "history", [row])
