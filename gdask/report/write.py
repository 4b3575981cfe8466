"""Writes a report: what has changed alone, and nothing that it did not write itself.

The folder OUT/report holds a manifest of what was written. Pages that do not belong any more are
removed if the manifest names them; other files there are left alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from gdask.campaign.records import HIDDEN
from gdask.campaign.showing import PICTURES, are_fresh, picture_folder
from gdask.io.whole import whole_file, write_whole
from gdask.model import GdaskError, UsageError, read_json
from gdask.report import pages as pages_
from gdask.report.campaign import raw_paths
from gdask.report.colour import draw_colour, stacks_in_colour
from gdask.report.facts import FILE, FOLDER, gather
from gdask.report.pictures import described, draw_one, shows_ratio, thumbnail
from gdask.report.private import cleaned, cleaner

Facts = dict[str, Any]
_MANIFEST = "manifest.json"
#: Stacks and calibrations of which all pages and pictures fit well into one file. Frames, whose
#: pictures are small (0.2 MB), come with them.
MAX_IN_ONE_FILE = 20
#: Bytes of pictures in one file: a browser keeps all of them in memory.
MAX_BYTES_IN_ONE_FILE = 100e6
#: Date of the files in a zip: the first that it can hold, so that equal reports are equal bytes.
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
#: What gives the bytes of a file of the report.
Source = Path | bytes


def write_report(
    out: str | os.PathLike[str],
    *,
    internal: bool = False,
    old: str | os.PathLike[str] | None = None,
    draw: bool = True,
    as_zip: bool = False,
    as_one_file: bool = False,
    runs: tuple[Mapping[str, Any], ...] = (),
    raw: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> str:
    """Write OUT/report, and with `as_zip`, `as_one_file` OUT/report.zip, OUT/report.html.

    draw: whether pictures that are missing or older than their product are made first. runs: of
    `reduce` in a folder that is no campaign's; raw: paths of their inputs, by name. Gives the path
    of the first page, or of the zip or one file. Raises UsageError where there is nothing to report
    on, or too much for one file; GdaskError where the report cannot be written.
    """
    report = gather(out, internal=internal, old=old, runs=runs)
    number = sum(one["of"] != "frame" for one in report["products"])
    if as_one_file and number > MAX_IN_ONE_FILE:
        raise UsageError(
            f"--one-file: {number} stacks and calibrations are too many for one file, "
            f"{MAX_IN_ONE_FILE} at most; use --zip, or send the folder"
        )
    root = Path(out)
    _check_writable(root / FOLDER)
    _draw_ratios(root, report, say)
    if draw:
        _draw_missing(root, report, raw or raw_paths(os.fspath(out)), say)
    pictures, files = _pictures(root, report)
    if as_one_file:
        _check_size(files)
    pictures = cleaned(pictures, cleaner(os.path.abspath(out), (), internal), frozenset({"file"}))
    folder = root / FOLDER
    _write_folder(folder, report, pictures, files)
    if as_one_file:
        return _write_one(root / "report.html", report, pictures, files)
    if as_zip:
        return _write_zip(root / "report.zip", folder)
    return str(folder / "index.html")


def _check_size(files: Mapping[str, Source]) -> None:
    """Raise UsageError where pictures are too large for one file."""
    sizes = [len(one) if isinstance(one, bytes) else one.stat().st_size for one in files.values()]
    if sum(sizes) > MAX_BYTES_IN_ONE_FILE:
        raise UsageError(
            f"--one-file: {len(sizes)} pictures of {sum(sizes) / 1e6:.0f} MB are too much for one "
            "file; use --zip, or send the folder"
        )


def _check_writable(folder: Path) -> None:
    """Raise GdaskError, before anything is drawn, where the report cannot be written."""
    try:
        folder.mkdir(exist_ok=True)
        probe = folder / f".{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise GdaskError(
            f"{folder}: cannot be written ({error.strerror}); copy the results to a folder of "
            "yours and give that"
        ) from error


# Pictures --------------------------------------------------------------------------------------


def _draw_missing(
    root: Path, report: Facts, raw: Mapping[str, str], say: Callable[[str], None]
) -> None:
    """Make pictures of products that have none, and of an input of jobs that failed."""
    for one in report["products"]:
        path = root / one["path"]
        if path.is_file() and not are_fresh(path, picture_folder(path)):
            _tell(say, draw_one(path))
    for job, path, folder in _inputs_of_failed(root, report, raw):
        if not are_fresh(path, folder):
            _tell(say, draw_one(path, folder, raw=True), f"{job}: ")


def _draw_ratios(root: Path, report: Facts, say: Callable[[str], None]) -> None:
    """Make pictures of flats over their predecessors, which the jobs that made them do not know."""
    for later, first in report["before"].items():
        path, before = root / later, root / first
        if path.is_file() and before.is_file() and not shows_ratio(picture_folder(path), before):
            _tell(say, draw_one(path, predecessor=before))


def _tell(say: Callable[[str], None], trouble: str, before: str = "") -> None:
    if trouble:
        say(before + trouble)


def _inputs_of_failed(
    root: Path, report: Facts, raw: Mapping[str, str]
) -> Iterator[tuple[str, Path, Path]]:
    """Give for each job that failed an input to look at, and where its pictures are.

    The input is the first that its cause or log names, else the first.
    """
    for job in report["jobs"]:
        said = " ".join([job["cause"], *job["log"]])
        named = sorted(job["inputs"], key=lambda name: name.split(".")[0] not in said)
        paths = [Path(raw[name]) for name in named if raw.get(name)]
        found = next((path for path in paths if path.is_file()), None)
        if job["state"] == "failed" and found is not None:
            name = found.name.split(".")[0]
            yield job["id"], found, _folder_of_inputs(root, report, job) / name


def _folder_of_inputs(root: Path, report: Facts, job: Facts) -> Path:
    """Give the folder of the pictures of what went into a job that failed."""
    return _drawn(root, report) / "inputs" / PurePosixPath(job["page"]).stem


def _drawn(root: Path, report: Facts) -> Path:
    """Give the folder of pictures that belong to no product."""
    return root / HIDDEN / PICTURES if report["kind"] == "campaign" else root / PICTURES


def _pictures(root: Path, report: Facts) -> tuple[dict[str, list[Facts]], dict[str, Source]]:
    """Give the pictures of each page, and the files of all of them by path below the report."""
    found: dict[str, list[Facts]] = {}
    files: dict[str, Source] = {}
    for one in report["products"]:
        path = root / one["path"]
        key = PurePosixPath(one["page"]).stem
        own = described(path, picture_folder(path), key)
        found[one["path"]] = own + _thumbnails(one, own, key, files)
    for job in report["jobs"]:
        if job["state"] == "failed":
            key = PurePosixPath(job["page"]).stem
            found[job["id"]] = _of_failed(_folder_of_inputs(root, report, job), f"job-{key}")
    products = {one["path"]: one for one in report["products"]}
    for target in report["targets"]:
        stacks = stacks_in_colour(target, products)
        picture = draw_colour(stacks, root, _drawn(root, report) / "colour") if stacks else None
        if picture:
            file = f"{PICTURES}/target-{PurePosixPath(target['page']).stem}/colour.png"
            found[f"colour:{target['name']}"] = [picture | {"file": file}]
    for each in found.values():
        for picture in each:
            files.setdefault(picture["file"], picture.pop("source", b""))
    return {name: own for name, own in found.items() if own}, files


def _of_failed(folder: Path, key: str) -> list[Facts]:
    """Give the pictures that were made of an input of a job that failed."""
    lists = sorted(folder.glob("*/pictures.json"))
    return described(None, lists[0].parent, key) if lists else []


def _thumbnails(
    product: Facts, own: list[Facts], key: str, files: dict[str, Source]
) -> list[Facts]:
    """Give a small picture of a stack, for pages that show many."""
    preview = next((one for one in own if one["key"] == pages_.PREVIEW), None)
    if preview is None or product["of"] != "image":
        return []
    try:
        data, width, height = thumbnail(preview["source"], preview["width"], preview["height"])
    except (OSError, ValueError):
        return []
    file = f"pictures/{key}/thumbnail.png"
    files[file] = data
    small = {"file": file, "width": width, "height": height}
    return [preview | small | {"key": "thumbnail", "source": data}]


# Files -----------------------------------------------------------------------------------------


def _write_folder(
    folder: Path, report: Facts, pictures: Mapping[str, list[Facts]], files: Mapping[str, Source]
) -> None:
    """Write report.json, pages and pictures that have changed; remove what does not belong."""
    before = _read_manifest(folder)
    if folder.exists() and not (folder / _MANIFEST).exists() and any(folder.iterdir()):
        raise UsageError(
            f"{folder}: there is something in it that is no report; move it away, then try again"
        )
    folder.mkdir(parents=True, exist_ok=True)
    way = pages_.folder_way()
    listed = pages_.page_list(report)
    names = [FILE, *(page.path for page in listed), *files]
    # Written first, with both: what a stopped run has written is known to the next one.
    _write_manifest(folder, {*before, *names})
    text = json.dumps(report, indent=1, ensure_ascii=False, sort_keys=True)
    _put(folder / FILE, (text + "\n").encode("utf-8", "backslashreplace"))
    for name, source in files.items():
        _put_picture(folder / name, source)
    for page in reversed(listed):  # the first page last: what it leads to is there
        text = pages_.render(page, report, pictures, way)
        _put(folder / page.path, text.encode("utf-8", "backslashreplace"))
    for name in sorted(before - set(names)):
        _remove(folder, name)
    _write_manifest(folder, names)


def _put(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all, where it has other bytes or is not there."""
    with contextlib.suppress(OSError):
        if path.read_bytes() == data:
            return
    write_whole(path, data, durable=False)


def _put_picture(path: Path, source: Source) -> None:
    """Copy a picture where it has changed: where its size or bytes are others."""
    _put(path, source if isinstance(source, bytes) else source.read_bytes())


def _read_manifest(folder: Path) -> set[str]:
    """Give the files that a report wrote there, below the folder; nothing of others."""
    try:
        found = read_json(folder / _MANIFEST)
        return {str(name) for name in found["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _write_manifest(folder: Path, names: Any) -> None:
    text = json.dumps({"files": sorted(names)}, indent=1) + "\n"
    path = folder / _MANIFEST
    with contextlib.suppress(OSError):
        if path.read_bytes() == text.encode():
            return
    write_whole(path, text)


def _remove(folder: Path, name: str) -> None:
    """Remove a file of an earlier report, and its folder where that is empty then."""
    parts = PurePosixPath(name).parts
    if name == _MANIFEST or not parts or ".." in parts or PurePosixPath(name).is_absolute():
        return
    path = folder.joinpath(*parts)
    with contextlib.suppress(OSError):
        path.unlink()
    for parent in path.parents:
        if parent == folder:
            return
        with contextlib.suppress(OSError):
            parent.rmdir()


def _write_zip(path: Path, folder: Path) -> str:
    """Pack the files of a report; equal reports give equal bytes."""
    with whole_file(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in sorted(_read_manifest(folder)):
            about = zipfile.ZipInfo(f"{FOLDER}/{name}", _ZIP_DATE)
            about.compress_type, about.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            packed.writestr(about, (folder / name).read_bytes())
    return str(path)


def _write_one(
    path: Path, report: Facts, pictures: Mapping[str, list[Facts]], files: Mapping[str, Source]
) -> str:
    """Write all pages as one file, with the pictures in it."""

    def data(file: str) -> bytes:
        source = files[file]
        return source if isinstance(source, bytes) else source.read_bytes()

    text = pages_.one_file(report, pictures, pages_.one_file_way(data))
    _put(path, text.encode("utf-8", "backslashreplace"))
    return str(path)
