"""What a product says of itself: its name, what went into it, and every step with every parameter."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
from astropy.io.fits import Header
from dask.base import tokenize

from gdask import params
from gdask.io.tables import source_tables
from gdask.types import Frame

#: Time-stamp keyword that each step leaves in the primary header (DRAGONS' keywords, FITS files in the archive).
STAMPS = {
    "prepare": "PREPARE", "add_dq": "ADDDQ", "nonlinearity_correct": "LINCORR", "adu_to_electrons": "ADUTOELE",
    "add_var": "ADDVAR", "dark_correct": "DARKCORR", "flat_correct": "FLATCORR", "make_lamp_flat": "LAMPFLAT",
    "normalize_flat": "NORMFLAT", "threshold_flatfield": "THRSFLAT", "make_bpm": "MAKEBPM",
    "separate_sky": "SEPSKY", "associate_sky": "ASSOCSKY", "sky_correct": "SUBSKY", "detect_sources": "DETECSRC",
    "add_reference_catalog": "ADDRECAT", "determine_astrometric_solution": "ASTRMTRY",
    "adjust_wcs_to_reference": "CORRWCS", "match_sky_levels": "LEVELSKY", "resample_to_common_frame": "ALIGN",
    "scale_counts_to_reference": "SCALEOBJ", "stack_frames": "STACKFRM",
}  # fmt: skip


def product_name(name: str, suffix: str) -> str:
    """The input's name with its suffix replaced: S1.fits + _flat -> S1_flat.fits."""
    stem = name.removesuffix(".fits").partition("_")[0] if not name.startswith("bpm") else name.removesuffix(".fits")
    return f"{stem}{suffix}.fits"


def product_tables(frame: Frame, checksums: Mapping[str, str]) -> dict[str, object]:
    """The tables of a product: OBJCAT, REFCAT, ASTROM (geometry of each array), HISTORY, PROVENANCE."""
    from astropy.table import Table

    tables = dict(frame.attrs["tables"]) | source_tables(frame)
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}"
    once = {(row["filename"], row["provenance_added_by"]): row for row in frame.attrs.get("provenance", ())}.values()
    inputs = [{"timestamp": now, "md5": checksums[row["path"]], **row} for row in once]
    rows = {
        "HISTORY": (("primitive", "args", "timestamp_start", "timestamp_stop"), frame.attrs.get("history", ())),
        "PROVENANCE": (("timestamp", "filename", "md5", "provenance_added_by"), inputs),
    }
    return tables | {
        name: Table([[str(row[column]) for row in content] for column in columns], names=columns)
        for name, (columns, content) in rows.items() if content
    }  # fmt: skip


def file_checksums(paths: Sequence[str]) -> object:
    """Lazy md5 of files: an object array with one text for each."""
    import dask.array as da

    return da.map_blocks(
        _md5, paths=tuple(paths), chunks=((1,) * len(paths),), dtype=object, meta=np.empty(0, object), name=f"md5-{tokenize(paths)}"
    )


def _md5(paths: tuple[str, ...], block_id: tuple[int]) -> np.ndarray:
    with open(paths[block_id[0]], "rb") as file:
        return np.array([hashlib.file_digest(file, "md5").hexdigest()], dtype=object)


def processed_header(frame: Frame, suffix: str, caltype: str) -> Header:
    """The primary header of a processed product: the keyword that says which, and the data label's ending."""
    phu = frame.attrs["phu"].copy()
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}"
    phu[{"processed_flat": "PROCFLAT", "processed_dark": "PROCDARK", "processed_bpm": "PROCBPM", "processed_science": "PROCSCI"}[caltype]] = now
    ending = "-STACK" if caltype == "processed_science" else suffix.replace("_", "-").upper()
    label = str(phu.get("DATALAB", ""))
    phu["DATALAB"] = label if label.endswith(ending) else label + ending
    return phu


def record(frame: Frame, step: str, settings: Mapping[str, params.Setting], started: datetime) -> Frame:
    stopped = datetime.now(UTC)
    args = {name: setting.value for name, setting in settings.items()}
    layers = {name: setting.layer for name, setting in settings.items() if setting.layer != "default"}
    row = {
        "primitive": step, "args": json.dumps({**args, "from": layers} if layers else args, default=str),
        "timestamp_start": f"{started:%Y-%m-%dT%H:%M:%S.%f}", "timestamp_stop": f"{stopped:%Y-%m-%dT%H:%M:%S.%f}",
    }  # fmt: skip
    phu = frame.attrs["phu"].copy()
    if step in STAMPS:
        phu[STAMPS[step]] = (f"{stopped:%Y-%m-%dT%H:%M:%S.%f}", f"UT of {step}")
    phu["GEM-TLM"] = (f"{stopped:%Y-%m-%dT%H:%M:%S.%f}", "UT last modification with GEMINI")
    return frame.assign_attrs(phu=phu, history=(*frame.attrs.get("history", ()), row))
