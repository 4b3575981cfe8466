"""Runs a recipe: resolves parameters, records provenance, sets frames aside, computes phases. The only place that computes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
from astropy.io.fits import Header
from dask.base import tokenize

from gdask import params
from gdask.io import checkpoint, write
from gdask.io.read import open_frame, reopen
from gdask.model import EXTNAMES, GdaskError
from gdask.progress import compute
from gdask.steps import SUFFIXES
from gdask.types import Frame, Frames, Headers

log = logging.getLogger("gdask")

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


class SetAside(NamedTuple):
    """A frame that was left out, at which step, and why."""

    name: str
    step: str
    reason: str


class Run:
    """What a recipe is given. `run(step, x)` calls a step, `run.each` maps it, `run.save` ends a phase.

    Parameters
    ----------
    layers
        Parameter layers from low to high, (name, settings).
    databases
        Calibration databases in order.
    user_cals
        Calibrations given by the user: type -> path.
    folder, scratch
        Where products and checkpoints go.
    """

    def __init__(
        self,
        layers: Sequence[tuple[str, Mapping[str, object]]] = (),
        databases: Sequence[object] = (),
        user_cals: Mapping[str, str] | None = None,
        folder: str = ".",
        scratch: str | None = None,
        suffix: str | None = None,
    ) -> None:
        self.layers = tuple(layers)
        self.databases = tuple(databases)
        self.user_cals = dict(user_cals or {})
        self.folder = os.path.abspath(folder)
        self.scratch = scratch or os.path.join(self.folder, ".gdask")
        self.suffix = suffix
        self.outputs: list[str] = []
        self.set_aside: list[SetAside] = []
        self.calibrations: dict[str, str] = {}
        self._due: list[write.Output] = []
        self._phase = 0

    def __call__(self, step: Callable[..., object], frames: object, *others: object, **pinned: object) -> object:
        """Call `step` once on all frames, with the user's parameters; give what it gives, without frames set aside."""
        settings = self._settings(step, frames, pinned)
        if settings["skip_primitive"].value:
            log.info("%s: skipped, as asked", step.__name__)
            return frames
        started = datetime.now(UTC)
        result = step(frames, *others, **_values(step, settings))
        return self._account(step, settings, started, result)

    def each(self, step: Callable[..., Frame], frames: Frames, *others: object, **pinned: object) -> Frames:
        """Call a one-frame step for every frame; an argument that is a tuple of the same length is dealt out."""
        settings = self._settings(step, frames, pinned)
        if settings["skip_primitive"].value:
            log.info("%s: skipped, as asked", step.__name__)
            return frames
        started = datetime.now(UTC)
        values = _values(step, settings)
        result = tuple(
            step(frame, *(_deal(other, number, len(frames)) for other in others), **values)
            for number, frame in enumerate(frames)
        )
        return self._account(step, settings, started, result)  # type: ignore[return-value]

    def save(self, frames: Frames, variables: Sequence[str] = tuple(EXTNAMES)) -> Frames:
        """End of a phase: compute these variables of the Frames, and all small results on the way, in one compute.

        Gives Frames that read the saved pixels back by window, small results in `attrs["results"]`.
        """
        if not frames:
            return frames
        self._phase += 1
        folder = checkpoint.folder_of(frames, variables, self.scratch)
        due, self._due = self._due, []
        if checkpoint.is_complete(folder) and not due:
            log.info("phase %d: %d frames already on disk, continuing from there", self._phase, len(frames))
        else:
            self._compute_phase(frames, variables, folder, due)
        return checkpoint.resume(frames, variables, folder, checkpoint.fetched_of(folder))

    def fetch(self, frames: Frames) -> Frames:
        """End of a phase that leaves no pixels: compute only the small results."""
        return self.save(frames, variables=())

    def write(self, frame: Frame, suffix: str) -> Frame:
        """Compute one Frame, the end of a recipe, and write it as a product: input name + suffix, whole or not at all."""
        self._phase += 1
        name = product_name(frame.attrs["name"], self.suffix or suffix)
        output = write.start(frame, os.path.join(self.folder, name))
        due, self._due = self._due, []
        pending = list(frame.attrs["pending"].items())
        paths = list(dict.fromkeys(row["path"] for row in frame.attrs.get("provenance", ())))
        arrays = [*(array for _, array in pending), *([_checksums(paths)] if paths else [])]
        writes = [array for each in (output, *due) for array in each.arrays]
        try:
            results = compute([*arrays, *writes], f"phase {self._phase}: {name}")
            fetched = dict(zip((key for key, _ in pending), results, strict=False))
            checksums = dict(zip(paths, results[len(pending)], strict=True)) if paths else {}
            tables = frame.attrs["tables"] | _tables_of(frame, fetched) | provenance_tables(frame, checksums)
            self._finish([*due], {})
            self.outputs.append(write.finish(output, tables))
        except BaseException:
            for other in (output, *due):
                write.discard(other)
            raise
        log.info("%s written", name)
        return open_frame(self.outputs[-1])

    def calibration(self, caltype: str, frames: Frames, *, required: bool = True) -> tuple[Frame | None, ...]:
        """The processed calibration of each frame: the user's, or the one that the database associates.

        Raises GdaskError with the nearest candidates and the rule that each failed, where `required` and none fits.
        """
        opened: dict[str, Frame] = {}
        found: list[Frame | None] = []
        for frame in frames:
            path = self.user_cals.get(caltype) or self._associate(caltype, frame, required)
            found.append(opened.setdefault(path, open_frame(path)) if path else None)
        for path in opened:
            self.calibrations[caltype] = path
            log.info("%s: %s", caltype, os.path.relpath(path, self.folder))
        return tuple(found)

    def store(self, frame: Frame, suffix: str, caltype: str) -> Frame:
        """Write a processed calibration, keep a copy under calibrations/, and register it in the databases."""
        from gdask import caldb

        stored = self.write(frame.assign_attrs(phu=_processed(frame, suffix, caltype)), suffix)
        caldb.store(self.outputs[-1], self.databases)
        return stored

    def write_each(self, frames: Frames, suffix: str) -> Frames:
        """Write every Frame as a product."""
        return tuple(self.write(frame, suffix) for frame in frames)

    def by_rows(self, frames: Frames, rows: int = 256) -> Frames:
        """The raw Frames read in row bands: for recipes whose steps all work pixel by pixel."""
        return tuple(reopen(frame, rows=rows, tag="rows") for frame in frames)

    def split(self, frames: Frames, tag: str) -> tuple[Frames, Frames]:
        """The Frames with a tag, and those without it."""
        from gdask.instruments import tags

        return tuple(f for f in frames if tag in tags(f)), tuple(f for f in frames if tag not in tags(f))

    def _associate(self, caltype: str, frame: Frame, required: bool) -> str | None:
        from gdask import caldb

        association = caldb.associate(headers_of(frame), caltype, self.databases)
        for tie in association.ties:
            log.warning("%s: %s would fit as well as %s", frame.attrs["name"], tie, association.chosen)
        if association.chosen is None and required:
            raise GdaskError(f"{frame.attrs['name']}: no {caltype}\n{caldb.explain(association)}")
        if association.chosen is None:
            log.info("%s: none for %s (goes on without)", caltype, frame.attrs["name"])
        return association.chosen

    def _settings(
        self, step: Callable[..., object], frames: object, pinned: Mapping[str, object]
    ) -> dict[str, params.Setting]:
        from gdask.instruments import instrument_of, step_defaults

        first = _frames_in(frames)
        facts = step_defaults(instrument_of(first[0]), step.__name__) if first else {}
        settings = params.resolve(step, [("instrument", facts), *self.layers], pinned)
        for name, setting in settings.items():
            wanted = next((values[key] for _, values in self.layers for key in (f"{step.__name__}:{name}",) if key in values), None)
            if setting.layer == "recipe" and wanted is not None:
                log.warning("%s:%s=%s is pinned by the recipe to %s", step.__name__, name, wanted, setting.value)
        return settings

    def _account(
        self, step: Callable[..., object], settings: Mapping[str, params.Setting], started: datetime, result: object
    ) -> object:
        kept = self._drop(step.__name__, result)
        kept = _map_frames(lambda frame: _record(frame, step.__name__, settings, started), kept)
        frames = _frames_in(kept)
        notes = list(dict.fromkeys(frame.attrs["note"] for frame in frames if frame.attrs.get("note")))
        for note in notes or [_changed(settings)]:
            log.info("%s: %d frame%s%s", step.__name__, len(frames), "" if len(frames) == 1 else "s", note and f", {note}")
        if settings["write_outputs"].value:
            suffix = settings["suffix"].value or f"_{SUFFIXES.get(step.__name__, step.__name__)}"
            self._due += [self._start_output(frame, str(suffix)) for frame in frames]
        return _map_frames(lambda frame: frame.assign_attrs(note=""), kept)

    def _start_output(self, frame: Frame, suffix: str) -> write.Output:
        return write.start(frame, os.path.join(self.folder, product_name(frame.attrs["name"], suffix)))

    def _drop(self, step: str, result: object) -> object:
        for frame in _frames_in(result):
            if frame.attrs.get("set_aside"):
                self.set_aside.append(SetAside(frame.attrs["name"], step, frame.attrs["set_aside"]))
                log.warning("%s: %s set aside: %s", step, frame.attrs["name"], frame.attrs["set_aside"])
        return _without_set_aside(result)

    def _compute_phase(
        self, frames: Frames, variables: Sequence[str], folder: str, due: Sequence[write.Output]
    ) -> None:
        started = time.monotonic()
        outputs = [] if not variables else [
            write.start(frame, checkpoint.path_in(folder, number, frame), variables)
            for number, frame in enumerate(frames) if any(name in frame for name in variables)
        ]  # fmt: skip
        pending = [
            ((number, name), array)
            for number, frame in enumerate(frames)
            for name, array in frame.attrs["pending"].items()
        ]
        try:
            arrays = [array for output in (*outputs, *due) for array in output.arrays]
            results = compute([*arrays, *(array for _, array in pending)], f"phase {self._phase}: {len(frames)} frames")
            fetched = dict(zip((key for key, _ in pending), results[len(arrays) :], strict=True))
            self._finish(outputs, {}, checksum=False)
            self._finish(due, {})
        except BaseException:
            for output in (*outputs, *due):
                write.discard(output)
            raise
        checkpoint.complete(folder, {key: tuple(value.ravel()) for key, value in fetched.items()})
        log.info("phase %d: %d frames, %.1f s", self._phase, len(frames), time.monotonic() - started)

    def _finish(self, outputs: Sequence[write.Output], tables: Mapping[str, object], checksum: bool = True) -> None:
        for output in outputs:
            path = write.finish(output, tables, checksum=checksum)  # type: ignore[arg-type]
            if checksum:
                self.outputs.append(path)


def headers_of(frame: Frame) -> Headers:
    """The headers of a Frame as the instrument rules and the calibration rules take them."""
    return Headers(frame.attrs["phu"], frame.attrs["headers"], frame.attrs["path"])


def _processed(frame: Frame, suffix: str, caltype: str) -> Header:
    """The primary header of a processed calibration: the keyword that says which, and the data label's ending."""
    phu = frame.attrs["phu"].copy()
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}"
    phu[{"processed_flat": "PROCFLAT", "processed_dark": "PROCDARK", "processed_bpm": "PROCBPM"}[caltype]] = now
    ending = suffix.replace("_", "-").upper()
    label = str(phu.get("DATALAB", ""))
    phu["DATALAB"] = label if label.endswith(ending) else label + ending
    return phu


def product_name(name: str, suffix: str) -> str:
    """The input's name with its suffix replaced: S1.fits + _flat -> S1_flat.fits."""
    stem = name.removesuffix(".fits").partition("_")[0] if not name.startswith("bpm") else name.removesuffix(".fits")
    return f"{stem}{suffix}.fits"


def provenance_tables(frame: Frame, checksums: Mapping[str, str]) -> dict[str, object]:
    """PROVENANCE and HISTORY tables of a product, in the field's columns."""
    from astropy.table import Table

    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}"
    inputs = [{"timestamp": now, "md5": checksums[row["path"]], **row} for row in frame.attrs.get("provenance", ())]
    rows = {
        "HISTORY": (("primitive", "args", "timestamp_start", "timestamp_stop"), frame.attrs.get("history", ())),
        "PROVENANCE": (("timestamp", "filename", "md5", "provenance_added_by"), inputs),
    }
    return {
        name: Table([[str(row[column]) for row in content] for column in columns], names=columns)
        for name, (columns, content) in rows.items() if content
    }  # fmt: skip


def _checksums(paths: Sequence[str]) -> object:
    """Lazy md5 of files: an object array with one text for each."""
    import dask.array as da

    return da.map_blocks(
        _md5, paths=tuple(paths), chunks=((1,) * len(paths),), dtype=object, meta=np.empty(0, object), name=f"md5-{tokenize(paths)}"
    )


def _md5(paths: tuple[str, ...], block_id: tuple[int]) -> np.ndarray:
    with open(paths[block_id[0]], "rb") as file:
        return np.array([hashlib.file_digest(file, "md5").hexdigest()], dtype=object)


def _tables_of(frame: Frame, fetched: Mapping[str, object]) -> dict[str, object]:
    finishers = frame.attrs.get("finishers", {})
    return {name: finishers[name](frame, value) for name, value in fetched.items() if name in finishers}


def _values(step: Callable[..., object], settings: Mapping[str, params.Setting]) -> dict[str, object]:
    own = {name for name, parameter in params.parameters(step).items() if parameter not in params.COMMON}
    return {name: setting.value for name, setting in settings.items() if name in own}


def _changed(settings: Mapping[str, params.Setting]) -> str:
    return ", ".join(f"{name}={s.value} ({s.layer})" for name, s in settings.items() if s.layer not in ("default", "recipe"))


def _record(frame: Frame, step: str, settings: Mapping[str, params.Setting], started: datetime) -> Frame:
    stopped = datetime.now(UTC)
    args = {name: setting.value for name, setting in settings.items()}
    layers = {name: setting.layer for name, setting in settings.items() if setting.layer != "default"}
    row = {
        "primitive": step, "args": json.dumps({**args, "from": layers} if layers else args, default=str),
        "timestamp_start": f"{started:%Y-%m-%dT%H:%M:%S.%f}", "timestamp_stop": f"{stopped:%Y-%m-%dT%H:%M:%S.%f}",
    }  # fmt: skip
    phu = frame.attrs["phu"].copy()
    if step in STAMPS:
        phu[STAMPS[step]] = (f"{stopped:%Y-%m-%dT%H:%M:%S.%f}", f"UT time stamp for {step}")
    phu["GEM-TLM"] = (f"{stopped:%Y-%m-%dT%H:%M:%S.%f}", "UT last modification with GEMINI")
    return frame.assign_attrs(phu=phu, history=(*frame.attrs.get("history", ()), row))


def _deal(other: object, number: int, count: int) -> object:
    return other[number] if isinstance(other, tuple) and len(other) == count else other


def _is_frame(value: object) -> bool:
    return hasattr(value, "data_vars")


def _frames_in(value: object) -> list[Frame]:
    if _is_frame(value):
        return [value]  # type: ignore[list-item]
    return [frame for item in value for frame in _frames_in(item)] if isinstance(value, (tuple, list)) else []


def _map_frames(function: Callable[[Frame], Frame], value: object) -> object:
    if _is_frame(value):
        return function(value)  # type: ignore[arg-type]
    return tuple(_map_frames(function, item) for item in value) if isinstance(value, tuple) else value


def _without_set_aside(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(_without_set_aside(item) for item in value if not (_is_frame(item) and item.attrs.get("set_aside")))
    return value
