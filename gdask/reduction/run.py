"""`Run`, what a recipe is given: it calls steps, finds calibrations, ends phases, makes products.

It is the only place that starts a compute. After the class: steps that the user leaves out.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from gdask import caldb, params, steps
from gdask.caldb import Association
from gdask.caldb.association import doubts_of, remarks_on
from gdask.caldb.report import no_calibrations
from gdask.engine import checkpoint
from gdask.headers.numbers import ROOM_CARDS
from gdask.instruments import instrument_of, step_defaults, tags
from gdask.io import write
from gdask.io.frames import (
    frames_in,
    map_frames,
    set_aside,
    with_attrs,
    with_primary_header,
    without_set_aside,
)
from gdask.io.read import open_frame
from gdask.model import EXTNAMES, GdaskError
from gdask.reduction import provenance
from gdask.reduction.numbers import with_measurements
from gdask.reduction.phases import (
    COUNTED_PIXELS,
    Product,
    how_many,
    is_skipped,
    run_phase,
    save_phase,
    usable_pixels,
)
from gdask.reduction.provenance import check_target, entry, processed_header, product_name, record
from gdask.reduction.screening import SetAside
from gdask.steps import SUFFIXES
from gdask.types import Frame, Frames

log = logging.getLogger("gdask")

#: The step that applies each type of calibration: none is looked for where the user skips the step.
APPLIED_BY = {"processed_flat": "flat_correct", "processed_dark": "dark_correct"}


class Run:
    """The account of one reduction, which recipes are given; in a notebook, make it: `gdask.Run()`.

    `run(step, x)` calls a step with the parameters of all layers and keeps its record, `run.each`
    maps a step of one Frame, `run.calibration` finds calibrations, `run.save` and `run.fetch` end a
    phase, `run.write` and `run.store` make products.

    Parameters
    ----------
    layers
        Parameter layers from low to high, (name, settings).
    databases
        Calibration databases in order; None are those of the configuration (`caldb config` shows
        them).
    user_cals
        Calibrations given by the user: type -> path.
    folder, scratch
        Where products and checkpoints go.
    suffix
        Suffix of the last product, instead of the recipe's.
    inputs
        Files that no product may replace: path -> size (bytes) and modification time (ns) when
        opened, or None.
    strict
        Whether the first frame that would be set aside stops the run.
    """

    def __init__(
        self,
        layers: Sequence[tuple[str, Mapping[str, object]]] = (),
        databases: Sequence[Any] | None = None,
        user_cals: Mapping[str, str] | None = None,
        folder: str = ".",
        scratch: str | None = None,
        suffix: str | None = None,
        inputs: Mapping[str, tuple[int, int] | None] | None = None,
        strict: bool = False,
    ) -> None:
        self.layers = tuple(layers)
        self._databases = None if databases is None else tuple(databases)
        self.user_cals = dict(user_cals or {})
        self.folder = os.path.abspath(folder)
        self.scratch = scratch or os.path.join(self.folder, ".gdask")
        self.suffix = suffix
        self.inputs = {os.path.abspath(path): identity for path, identity in (inputs or {}).items()}
        self.strict = strict
        self.outputs: list[str] = []
        self.set_aside: list[SetAside] = []
        self.calibrations: dict[str, str] = {}
        self._due: list[Product] = []
        self._begun: list[str] = []  # paths of products
        self._associations: dict[tuple[str, str], Association] = {}  # by type and path
        self._answers: dict[tuple[str, ...], Any] = {}
        self._watched: dict[str, object] = {}
        self._seen: set[str] = set()
        self._phase = 0
        self._remarks: dict[str, dict[str, None]] = {}

    @property
    def databases(self) -> tuple[Any, ...]:
        """The calibration databases in order."""
        if self._databases is None:
            from gdask.caldb import open_databases

            self._databases = tuple(open_databases())
        return self._databases

    def __call__(
        self, step: Callable[..., object], frames: object, *others: object, **pinned: object
    ) -> object:
        """Call `step` once on all frames, with the user's parameters.

        Gives the result of the step, without the frames that it has set aside.
        """
        settings = self._settings(step, frames, pinned)
        if is_skipped(step, settings, "Frame" if hasattr(frames, "data_vars") else "Frames"):
            return frames
        started = datetime.now(UTC)
        result = step(frames, *others, **params.own_values(step, settings))
        return self._account(step, settings, started, result)

    def each(
        self, step: Callable[..., Frame], frames: Frames, *others: object, **pinned: object
    ) -> Frames:
        """Call a one-frame step for every frame.

        An argument that is a tuple of as many members as there are frames is dealt out to them.
        """
        settings = self._settings(step, frames, pinned)
        if is_skipped(step, settings, "Frame"):
            return frames
        started = datetime.now(UTC)
        values = params.own_values(step, settings)
        result = tuple(
            step(frame, *(_share(other, number, len(frames)) for other in others), **values)
            for number, frame in enumerate(frames)
        )
        return self._account(step, settings, started, result)

    def save(self, frames: Frames, variables: Sequence[str] = tuple(EXTNAMES)) -> Frames:
        """End a phase: compute these variables of the Frames, and all their small results, at once.

        Gives Frames that read the saved pixels back by window, with their small results computed.
        """
        if not frames:
            return frames
        self._phase += 1
        folder = checkpoint.checkpoint_folder(frames, variables, self.scratch)
        due, self._due = self._due, []
        what = f"phase {self._phase}: {how_many(frames)}"
        if not due and checkpoint.is_whole(folder):
            log.info("%s already on disk, continuing from there", what)
            self._watched.clear()
        else:
            known: dict[str, Any] = {"watched": self._take_watched(), "identities": self.inputs}
            self._keep(save_phase(frames, variables, folder, due, what, **known))
        return checkpoint.resume(frames, variables, folder, checkpoint.read_fetched(folder))

    def fetch(self, frames: Frames) -> Frames:
        """End a phase that saves no pixels: compute only the small results."""
        return self.save(frames, variables=())

    def write(
        self, frame: Frame, suffix: str, kind: str = "processed_science", ending: str = ""
    ) -> Frame:
        """Compute one Frame, the end of a recipe, and write it as a product, whole or not at all.

        Its name is that of the input with the suffix (or the user's) and the ending.
        """
        product = with_primary_header(frame, processed_header(frame, suffix + ending, kind))
        return self.write_each((product,), suffix, ending)[0]

    def write_each(self, frames: Frames, suffix: str, ending: str = "") -> Frames:
        """Compute and write several Frames as products, in one phase; names as of `write`."""
        self._phase += 1
        suffix = (self.suffix or suffix) + ending
        due = self._take_due({self._path(frame, suffix) for frame in frames})
        measured = [
            with_measurements(frame, self.set_aside) for frame in provenance.distinct(frames)
        ]
        products = [self._product(frame, suffix) for frame in measured]
        label = "nothing"
        if products:
            label = f"phase {self._phase}: {os.path.basename(products[0].output.final)}"
        known: dict[str, Any] = {"watched": self._take_watched(), "identities": self.inputs}
        self._keep(run_phase([*products, *due], [], label, **known)[1])
        for product in products:
            log.info("%s written", os.path.basename(product.output.final))
        return tuple(open_frame(product.output.final) for product in products)

    def need(self, frames: Frames, *caltypes: str) -> Frames:
        """Set aside, before any work, the frames that lack one of these calibrations.

        Gives the others. Raises GdaskError with all that is missing, and why, where none is left.
        """
        lacking: dict[str, list[Association]] = {}
        for caltype in caltypes:
            if caltype in self.user_cals or self._is_left_out(caltype, frames):
                continue
            for frame in frames:
                association = self._association(caltype, frame)
                if association.chosen is None:
                    lacking.setdefault(frame.attrs["name"], []).append(association)
        if frames and len(lacking) == len(frames):
            names = [frame.attrs["name"] for frame in frames]
            raise no_calibrations((name, one) for name in names for one in lacking[name])
        reasons = {
            name: f"no {' and no '.join(a.caltype for a in associations)} (caldb why says why)"
            for name, associations in lacking.items()
        }
        marked = tuple(
            set_aside(frame, reasons[frame.attrs["name"]])
            if frame.attrs["name"] in reasons
            else frame
            for frame in frames
        )
        return self._drop("calibrations", marked)

    def calibration(
        self, caltype: str, frames: Frames, *, required: bool = True
    ) -> tuple[Frame | None, ...]:
        """Give the processed calibration of each frame: the user's, or the one of the databases.

        Raises GdaskError with the nearest candidates and the rule that each failed, where none fits
        and one is `required`.
        """
        opened: dict[str, Frame] = {}
        found: list[Frame | None] = []
        if self._is_left_out(caltype, frames):
            return (None,) * len(frames)
        self._doubt(caltype, frames)
        for frame in frames:
            path = self.user_cals.get(caltype) or self._associate(caltype, frame, required)
            if path and path not in opened:
                opened[path] = open_frame(path, keep=True)
            found.append(opened[path] if path else None)
        for path in opened:
            self.calibrations[caltype] = path
            log.info("%s: %s", caltype, os.path.relpath(path, self.folder))
        if without := sum(one is None for one in found):
            level, text = self._without(caltype, frames)
            log.log(
                level,
                "%s: none in the databases for %d of %d frames%s",
                caltype,
                without,
                len(found),
                text,
            )
        for remark in self._remarks.pop(caltype, {}):
            log.info("%s: %s", caltype, remark)
        return tuple(found)

    def _doubt(self, caltype: str, frames: Frames) -> None:
        """Warn of a calibration of the user's that the rules would not take, and say why."""
        path = self.user_cals.get(caltype)
        for text, names in doubts_of(frames, path, caltype).items() if path else ():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            log.warning("%s %s: for %s%s: %s; used as asked", caltype, path, names[0], more, text)

    def store(self, frame: Frame, suffix: str, caltype: str) -> Frame:
        """Write a processed calibration, copy it to calibrations/, register it in the databases."""
        stored = self.write(frame, suffix, caltype)
        caldb.store(self.outputs[-1], self.databases)
        self._answers.clear()
        return stored

    def split(self, frames: Frames, tag: str) -> tuple[Frames, Frames]:
        """Give the Frames with a tag, and those without it."""
        tagged = tuple(frame for frame in frames if tag in tags(frame))
        return tagged, tuple(frame for frame in frames if tag not in tags(frame))

    def _without(self, caltype: str, frames: Frames) -> tuple[int, str]:
        """Give the level of the log, and words, for frames without a calibration.

        A mask that there should be is worth a warning, if no mask of the user's takes its place.
        """
        if caltype != "processed_bpm":
            return logging.INFO, ", goes on without"
        if self._settings(steps.add_dq, frames, {})["user_bpm"].value:
            return logging.INFO, ", that of user_bpm alone is used"
        text = ": known bad pixels are not flagged"
        if self._remarks.get(caltype):
            return logging.INFO, text
        return logging.WARNING, f"{text} (caldb add registers a mask, caldb why FILE says more)"

    def _associate(self, caltype: str, frame: Frame, required: bool) -> str | None:
        association = self._association(caltype, frame)
        if association.chosen is None and required:
            raise no_calibrations([(frame.attrs["name"], association)])
        self._remarks.setdefault(caltype, {}).update(dict.fromkeys(remarks_on(association)))
        return association.chosen

    def _association(self, caltype: str, frame: Frame) -> Association:
        """Give the association of a frame; warn, the first time, of what would fit as well."""
        known, key = self._associations, (caltype, frame.attrs["path"])
        if key not in known:
            known[key] = caldb.associate(frame, caltype, self.databases, answers=self._answers)
            name, chosen = frame.attrs["name"], known[key].chosen
            for tie in known[key].ties:
                log.warning("%s: %s would fit as well as %s", name, tie, chosen)
        return known[key]

    def _is_left_out(self, caltype: str, frames: Frames) -> bool:
        step = getattr(steps, APPLIED_BY[caltype]) if caltype in APPLIED_BY else None
        return step is not None and bool(self._settings(step, frames, {})["skip_primitive"].value)

    def _settings(
        self, step: Callable[..., object], frames: object, pinned: Mapping[str, object]
    ) -> dict[str, params.Setting]:
        first = frames_in(frames)
        facts = step_defaults(instrument_of(first[0]), step.__name__) if first else {}
        settings = params.resolve(step, [("instrument", facts), *self.layers], pinned)
        for name, setting in settings.items():
            key = f"{step.__name__}:{name}"
            wanted = next((values[key] for _, values in self.layers if key in values), None)
            if setting.layer == "recipe" and wanted is not None and name != "write_outputs":
                log.warning(
                    "%s:%s=%s is pinned by the recipe to %s",
                    step.__name__,
                    name,
                    wanted,
                    setting.value,
                )
        return settings

    def _account(
        self,
        step: Callable[..., object],
        settings: Mapping[str, params.Setting],
        started: datetime,
        result: Any,
    ) -> Any:
        """Record a step that has run, in its frames, in the log and in what a product will need."""
        kept = self._drop(step.__name__, result)
        row = entry(step.__name__, settings, started)
        kept = map_frames(lambda frame: record(frame, row), kept)
        frames = frames_in(kept)
        self._watch(frames)
        notes = _texts(frames, "note") or [params.changed(settings)]
        for note in notes:
            log.info("%s: %s%s", step.__name__, how_many(frames), note and f", {note}")
        for warning in _texts(frames, "warning"):
            log.warning("%s: %s", step.__name__, warning)
        if settings["write_outputs"].value:
            suffix = settings["suffix"].value or f"_{SUFFIXES.get(step.__name__, step.__name__)}"
            self._due += [
                self._product(frame, str(suffix)) for frame in provenance.distinct(frames)
            ]
        return map_frames(_without_remarks, kept)

    def _take_due(self, finals: set[str]) -> list[Product]:
        """Take the step outputs that wait for a compute, and discard those named in `finals`.

        A product that is to be written replaces a step output of the same name.
        """
        due, self._due = self._due, []
        for product in due:
            if product.output.final in finals:
                write.discard(product.output.final)
        return [product for product in due if product.output.final not in finals]

    def _keep(self, written: Sequence[str]) -> None:
        self.outputs = [path for path in self.outputs if path not in written] + list(written)

    def _watch(self, frames: Sequence[Frame]) -> None:
        """Count the usable pixels of each input in the compute that first makes its DQ."""
        for frame in frames:
            path = frame.attrs["path"]
            if path in self.inputs and path not in self._seen and {"data", "dq"} <= set(frame):
                self._seen.add(path)
                self._watched[path] = usable_pixels(frame, COUNTED_PIXELS)

    def _take_watched(self) -> dict[str, object]:
        watched, self._watched = self._watched, {}
        return watched

    def _path(self, frame: Frame, suffix: str) -> str:
        return os.path.join(self.folder, product_name(frame.attrs["name"], suffix))

    def _product(self, frame: Frame, suffix: str) -> Product:
        path = self._path(frame, suffix)
        check_target(path, frame, self.inputs)
        self._begun.append(path)  # before the file is there: a signal may come at any time
        return Product(write.start(frame, path, room=ROOM_CARDS), frame)

    def _drop(self, step: str, result: Any) -> Any:
        """Give a step's result without the frames that it has set aside; GdaskError if all are."""
        for frame in frames_in(result):
            if frame.attrs.get("set_aside"):
                self.set_aside.append(SetAside(frame.attrs["name"], step, frame.attrs["set_aside"]))
                log.warning(
                    "%s: %s set aside: %s", step, frame.attrs["name"], frame.attrs["set_aside"]
                )
                if self.strict:
                    raise GdaskError(
                        f"{frame.attrs['name']}: {frame.attrs['set_aside']} "
                        f"({step}; --strict stops here)"
                    )
        kept = without_set_aside(result)
        if frames_in(result) and not frames_in(kept):
            raise GdaskError(
                f"{step}: every frame was set aside, for the reasons given; "
                "nothing is left to go on with"
            )
        return kept

    def close(self) -> None:
        """Remove products that were begun and not finished."""
        for path in self._begun:
            write.discard(path)


# Calling steps ---------------------------------------------------------------------------------


def _share(argument: object, number: int, count: int) -> object:
    """Give the part of an argument that is for the frame `number` of `count`, or all of it."""
    if isinstance(argument, tuple) and len(argument) == count:
        return argument[number]
    return argument


def _without_remarks(frame: Frame) -> Frame:
    """Give the Frame without the remarks of the step that has been logged."""
    has_any = frame.attrs.get("note") or frame.attrs.get("warning")
    return with_attrs(frame, note="", warning="") if has_any else frame


def _texts(frames: Sequence[Frame], name: str) -> list[str]:
    """Give the texts that a step has left in an attribute of its frames, once each."""
    return list(dict.fromkeys(frame.attrs[name] for frame in frames if frame.attrs.get(name)))
