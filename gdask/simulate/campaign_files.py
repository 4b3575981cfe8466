"""Files of a simulated campaign: compressed, listed with their md5, damaged, copied."""

from __future__ import annotations

import bz2
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from astropy.table import Table

from gdask.simulate.campaign_options import CampaignOptions
from gdask.simulate.campaign_plan import Planned

#: With `compress` some, every so many files of a night ...
FILES_PER_COMPRESSED = 5
COMPRESSION = 6  # of bz2, 1 to 9
WHOLE_FRACTION = 0.6  # of a file whose download broke off
ERROR_PAGE = (
    b"<html>\n<head><title>504 Gateway Time-out</title></head>\n"
    b"<body><center><h1>504 Gateway Time-out</h1></center></body>\n</html>\n"
)
AGAIN = "again"  # folder of second copies
LIST = "md5sum.txt"

Row = dict[str, Any]


def damage_and_list(
    options: CampaignOptions,
    frames: list[Planned],
    raw: Path,
    folder: Callable[[Planned], Path],
) -> tuple[list[Row], list[Path]]:
    """Compress files, write md5sum.txt in each folder, damage files, add second copies.

    Returns one row for each file (those that are missing, too), and the files that are there.
    """
    rows, sources = [], []
    for frame in frames:
        path = folder(frame) / frame.exposure.file
        if _is_compressed(options, frame):
            path = _compress(path)
        rows.append(_row(frame, path, raw))
        if frame.fault == "duplicate":
            sources.append((frame, path))
    for mask in sorted(raw.glob("bpm*.fits")):
        path = _compress(mask) if options.compress == "all" else mask
        rows.append(_empty_row(path, raw) | {"instrument": "gsaoi", "kind": "bpm"})
    copies = [_copied(source, path, i, raw) for i, (source, path) in enumerate(sources)]
    rows += copies
    _write_lists(raw, rows)
    for row in rows:
        _damage(raw / row["path"], row["fault"])
    paths = [raw / row["path"] for row in rows if row["fault"] != "missing"]
    return rows, paths


def _is_compressed(options: CampaignOptions, frame: Planned) -> bool:
    """Whether a file is written as .fits.bz2; with `some`, only files with which all is well."""
    if options.compress == "some":
        number = int(frame.exposure.file.removesuffix(".fits")[-4:])
        return not frame.fault and number % FILES_PER_COMPRESSED == 0
    return options.compress == "all"


def _compress(path: Path) -> Path:
    """Replace a file by its compressed form."""
    packed = path.with_name(path.name + ".bz2")
    packed.write_bytes(bz2.compress(path.read_bytes(), COMPRESSION))
    path.unlink()
    return packed


def _copied(frame: Planned, path: Path, number: int, raw: Path) -> Row:
    """Copy a file: under another name, the next one compressed (or not, if the first copy is)."""
    content = path.read_bytes()
    whole = bz2.decompress(content) if path.suffix == ".bz2" else content
    folder = raw / AGAIN
    folder.mkdir(exist_ok=True)
    stem = frame.exposure.file.removesuffix(".fits")
    copy = folder / (f"{stem}_copy.fits" if number % 2 == 0 else f"{stem}.fits.bz2")
    copy.write_bytes(whole if copy.suffix == ".fits" else bz2.compress(whole, COMPRESSION))
    original = path.relative_to(raw).as_posix()
    return _row(frame, copy, raw) | {"fault": "duplicate", "copy_of": original}


def _row(frame: Planned, path: Path, raw: Path) -> Row:
    """What is true of a file that was taken. The original of a copy has no fault."""
    block, exposure, identity = frame.block, frame.exposure, frame.exposure.identity
    row = _empty_row(path, raw) | {
        "instrument": "gmos" if frame.fault == "other" else block.instrument,
        "filter": block.filter,
        "kind": exposure.kind if block.kind == "science" else block.kind,
        "night": exposure.file[1:9],
        "mjd": exposure.mjd,
        "exptime": exposure.exptime,
        "target": block.target,
        "fault": "" if frame.fault == "duplicate" else frame.fault,
    }
    if identity is not None:
        label = f"{identity.program}-{identity.observation}"
        row |= {"program_id": identity.program, "observation_id": label}
        row["data_label"] = f"{label}-{exposure.number:03d}"
    return row


def _empty_row(path: Path, raw: Path) -> Row:
    """The columns of a file, most of them empty."""
    return {
        "path": path.relative_to(raw).as_posix(),
        "md5": hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest(),
        "instrument": "",
        "filter": "",
        "kind": "",
        "night": "",
        "mjd": 0.0,
        "exptime": 0.0,
        "target": -1,
        "program_id": "",
        "observation_id": "",
        "data_label": "",
        "fault": "",
        "copy_of": "",
    }


def _write_lists(raw: Path, rows: list[Row]) -> None:
    """Write md5sum.txt in each folder, as md5sum does: what was to be downloaded."""
    by_folder: dict[Path, list[str]] = {}
    for row in rows:
        path = raw / row["path"]
        by_folder.setdefault(path.parent, []).append(f"{row['md5']}  {path.name}\n")
    for folder, lines in by_folder.items():
        (folder / LIST).write_text("".join(lines))


def _damage(path: Path, fault: str) -> None:
    """Do to a file what its fault says."""
    if fault == "truncated":
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * WHOLE_FRACTION)])
    elif fault == "unreadable":
        path.write_bytes(ERROR_PAGE)
    elif fault == "missing":
        path.unlink()


def write_tables(
    truth: Path, summary: dict[str, object], rows: list[Row], faults: dict[str, object]
) -> None:
    """Write campaign.json, files.ecsv and faults.json."""
    (truth / "campaign.json").write_text(json.dumps(summary, indent=1) + "\n")
    (truth / "faults.json").write_text(json.dumps(faults, indent=1) + "\n")
    Table(rows=rows).write(truth / "files.ecsv", format="ascii.ecsv", overwrite=True)
