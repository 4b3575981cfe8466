"""Runs a recipe: resolves parameters, records provenance, sets frames aside, computes phases. The only place that computes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gdask.model import GdaskError
from gdask.types import Frame

if TYPE_CHECKING:
    from gdask.caldb import Association
import os
from collections.abc import Callable
from datetime import UTC, datetime

from gdask import params, steps
from gdask.caldb import Association
from gdask.engine import checkpoint
from gdask.instruments import instrument_of, step_defaults, tags
from gdask.io import write
from gdask.io.frames import (
    frames_in,
    map_frames,
    set_aside,
    with_primary_header,
    without_set_aside,
)
from gdask.io.read import open_frame
from gdask.model import EXTNAMES
from gdask.reduction.phases import Product, how_many, run_phase, save_phase, usable_pixels
from gdask.reduction.provenance import check_target, entry, processed_header, product_name, record
from gdask.reduction.screening import SetAside
from gdask.steps import SUFFIXES
from gdask.types import Frames

log = logging.getLogger("gdask")


class Run:
    """What a recipe is given, and a notebook can make: `gdask.Run()`.

    `run(step, x)` calls a step with the parameters of all layers and keeps its record, `run.each` maps a step of one Frame,
    `run.calibration` finds calibrations, `run.save` and `run.fetch` end a phase, `run.write` and `run.store` make products.

    Parameters
    ----------
    layers
        Parameter layers from low to high, (name, settings).
    databases
        Calibration databases in order; None are those of the configuration (`caldb config` shows them).
    user_cals
        Calibrations given by the user: type -> path.
    folder, scratch
        Where products and checkpoints go.
    suffix, inputs
        Of the last product, instead of the recipe's; files that no product may replace, with size and time (ns) when opened.
    strict
        The first frame that would be set aside stops the run.
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
        self._begun: list[write.Output] = []
        self._known: Known = {}
        self._watched: dict[str, object] = {}
        self._seen: set[str] = set()
        self._phase = 0
        self._remarks: dict[str, dict[str, None]] = {}

    @property
    def databases(self) -> tuple[Any, ...]:
        """Calibration databases in order."""
        if self._databases is None:
            from gdask.caldb import open_databases

            self._databases = tuple(open_databases())
        return self._databases

    def __call__(
        self, step: Callable[..., object], frames: object, *others: object, **pinned: object
    ) -> object:
        """Call `step` once on all frames, with the user's parameters; give what it gives, without frames set aside."""
        settings = self._settings(step, frames, pinned)
        if _is_skipped(step, settings, "Frame" if hasattr(frames, "data_vars") else "Frames"):
            return frames
        started = datetime.now(UTC)
        result = step(frames, *others, **params.own_values(step, settings))
        return self._account(step, settings, started, result)

    def each(
        self, step: Callable[..., Frame], frames: Frames, *others: object, **pinned: object
    ) -> Frames:
        """Call a one-frame step for every frame; an argument that is a tuple of the same length is dealt out."""
        settings = self._settings(step, frames, pinned)
        if _is_skipped(step, settings, "Frame"):
            return frames
        started = datetime.now(UTC)
        values = params.own_values(step, settings)
        result = tuple(
            step(frame, *(_deal(other, number, len(frames)) for other in others), **values)
            for number, frame in enumerate(frames)
        )
        return self._account(step, settings, started, result)  # type: ignore[return-value]

    def save(self, frames: Frames, variables: Sequence[str] = tuple(EXTNAMES)) -> Frames:
        """End of a phase: compute these variables of the Frames, and all small results on the way, in one compute.

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
            self._keep(
                save_phase(
                    frames,
                    variables,
                    folder,
                    due,
                    what,
                    watched=self._take_watched(),
                    identities=self.inputs,
                )
            )
        return checkpoint.resume(frames, variables, folder, checkpoint.read_fetched(folder))

    def fetch(self, frames: Frames) -> Frames:
        """End of a phase that leaves no pixels: compute only the small results."""
        return self.save(frames, variables=())

    def write(self, frame: Frame, suffix: str, kind: str = "processed_science") -> Frame:
        """Compute one Frame, the end of a recipe, and write it as a product: input name + suffix, whole or not at all."""
        return self.write_each(
            (with_primary_header(frame, processed_header(frame, suffix, kind)),), suffix
        )[0]

    def write_each(self, frames: Frames, suffix: str) -> Frames:
        """Compute and write several Frames as products, in one phase."""
        self._phase += 1
        due = self._take_due({self._path(frame, self.suffix or suffix) for frame in frames})
        products = [self._product(frame, self.suffix or suffix) for frame in frames]
        label = (
            f"phase {self._phase}: {os.path.basename(products[0].output.final)}"
            if products
            else "nothing"
        )
        self._keep(
            run_phase(
                [*products, *due], [], label, watched=self._take_watched(), identities=self.inputs
            )[1]
        )
        for product in products:
            log.info("%s written", os.path.basename(product.output.final))
        return tuple(open_frame(product.output.final) for product in products)

    def need(self, frames: Frames, *caltypes: str) -> Frames:
        """The frames that have these calibrations, looked up before any work; the others are set aside.

        Raises GdaskError with all that is missing, and why, where no frame has them.
        """
        lacking: dict[str, list[Association]] = {}
        for caltype in caltypes:
            if caltype in self.user_cals or self._is_left_out(caltype, frames):
                continue
            for frame in frames:
                association = look_up(self._known, caltype, frame, self.databases)
                if association.chosen is None:
                    lacking.setdefault(frame.attrs["name"], []).append(association)
        if frames and len(lacking) == len(frames):
            raise all_missing(frames, lacking)
        text = {
            name: f"no {' and no '.join(a.caltype for a in each)} (caldb why says why)"
            for name, each in lacking.items()
        }
        marked = tuple(
            set_aside(f, text[f.attrs["name"]]) if f.attrs["name"] in text else f for f in frames
        )
        return self._drop("calibrations", marked)  # type: ignore[return-value]

    def calibration(
        self, caltype: str, frames: Frames, *, required: bool = True
    ) -> tuple[Frame | None, ...]:
        """The processed calibration of each frame: the user's, or the one that the database associates.

        Raises GdaskError with the nearest candidates and the rule that each failed, where `required` and none fits.
        """
        opened: dict[str, Frame] = {}
        found: list[Frame | None] = []
        if self._is_left_out(caltype, frames):
            return (None,) * len(frames)
        for frame in frames:
            path = self.user_cals.get(caltype) or self._associate(caltype, frame, required)
            if path and path not in opened:
                opened[path] = open_frame(path)
            found.append(opened[path] if path else None)
        for path in opened:
            self.calibrations[caltype] = path
            log.info("%s: %s", caltype, os.path.relpath(path, self.folder))
        if without := sum(one is None for one in found):
            log.info("%s: none for %d of %d frames, goes on without", caltype, without, len(found))
        for remark in self._remarks.pop(caltype, {}):
            log.info("%s: %s", caltype, remark)
        return tuple(found)

    def store(self, frame: Frame, suffix: str, caltype: str) -> Frame:
        """Write a processed calibration, keep a copy under calibrations/, and register it in the databases."""
        from gdask import caldb

        stored = self.write(frame, suffix, caltype)
        caldb.store(self.outputs[-1], self.databases)
        return stored

    def split(self, frames: Frames, tag: str) -> tuple[Frames, Frames]:
        """The Frames with a tag, and those without it."""
        return tuple(f for f in frames if tag in tags(f)), tuple(
            f for f in frames if tag not in tags(f)
        )

    def _associate(self, caltype: str, frame: Frame, required: bool) -> str | None:
        association = look_up(self._known, caltype, frame, self.databases)
        if association.chosen is None and required:
            raise missing(frame.attrs["name"], association)
        self._remarks.setdefault(caltype, {}).update(dict.fromkeys(remarks(association)))
        return association.chosen

    def _is_left_out(self, caltype: str, frames: Frames) -> bool:
        step = getattr(steps, USED_BY[caltype]) if caltype in USED_BY else None
        return step is not None and bool(self._settings(step, frames, {})["skip_primitive"].value)

    def _settings(
        self, step: Callable[..., object], frames: object, pinned: Mapping[str, object]
    ) -> dict[str, params.Setting]:
        first = frames_in(frames)
        facts = step_defaults(instrument_of(first[0]), step.__name__) if first else {}
        settings = params.resolve(step, [("instrument", facts), *self.layers], pinned)
        for name, setting in settings.items():
            wanted = next(
                (
                    values[key]
                    for _, values in self.layers
                    for key in (f"{step.__name__}:{name}",)
                    if key in values
                ),
                None,
            )
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
        result: object,
    ) -> object:
        kept = self._drop(step.__name__, result)
        row = entry(step.__name__, settings, started)
        kept = map_frames(lambda frame: record(frame, row), kept)
        frames = frames_in(kept)
        self._watch(frames)
        notes = list(
            dict.fromkeys(frame.attrs["note"] for frame in frames if frame.attrs.get("note"))
        )
        for note in notes or [params.changed(settings)]:
            log.info("%s: %s%s", step.__name__, how_many(frames), note and f", {note}")
        for text in dict.fromkeys(
            frame.attrs["warning"] for frame in frames if frame.attrs.get("warning")
        ):
            log.warning("%s: %s", step.__name__, text)
        if settings["write_outputs"].value:
            suffix = settings["suffix"].value or f"_{SUFFIXES.get(step.__name__, step.__name__)}"
            self._due += [
                self._product(frame, str(suffix))
                for frame in {f.attrs["name"]: f for f in frames}.values()
            ]
        return map_frames(lambda frame: frame.assign_attrs(note="", warning=""), kept)

    def _take_due(self, finals: set[str]) -> list[Product]:
        """The step outputs that wait for a compute, without those that a product of the same name replaces."""
        due, self._due = self._due, []
        for product in due:
            if product.output.final in finals:
                write.discard(product.output)
        return [product for product in due if product.output.final not in finals]

    def _keep(self, written: Sequence[str]) -> None:
        self.outputs = [path for path in self.outputs if path not in written] + list(written)

    def _watch(self, frames: Sequence[Frame]) -> None:
        """Count the usable pixels of each input in the compute that first makes its data quality."""
        for frame in frames:
            path = frame.attrs["path"]
            if path in self.inputs and path not in self._seen and {"data", "dq"} <= set(frame):
                self._seen.add(path)
                self._watched[path] = usable_pixels(frame)

    def _take_watched(self) -> dict[str, object]:
        watched, self._watched = self._watched, {}
        return watched

    def _path(self, frame: Frame, suffix: str) -> str:
        return os.path.join(self.folder, product_name(frame.attrs["name"], suffix))

    def _product(self, frame: Frame, suffix: str) -> Product:
        path = self._path(frame, suffix)
        check_target(path, frame, self.inputs)
        self._begun.append(write.start(frame, path))
        return Product(self._begun[-1], frame)

    def _drop(self, step: str, result: object) -> object:
        for frame in frames_in(result):
            if frame.attrs.get("set_aside"):
                self.set_aside.append(SetAside(frame.attrs["name"], step, frame.attrs["set_aside"]))
                log.warning(
                    "%s: %s set aside: %s", step, frame.attrs["name"], frame.attrs["set_aside"]
                )
                if self.strict:
                    raise GdaskError(
                        f"{frame.attrs['name']}: {frame.attrs['set_aside']} ({step}; --strict stops here)"
                    )
        kept = without_set_aside(result)
        if frames_in(result) and not frames_in(kept):
            raise GdaskError(
                f"{step}: every frame was set aside, for the reasons given; nothing is left to go on with"
            )
        return kept

    def close(self) -> None:
        """Remove what was begun and not finished."""
        for output in self._begun:
            write.discard(output)


def _is_skipped(
    step: Callable[..., object], settings: Mapping[str, params.Setting], given: str
) -> bool:
    """Whether the user leaves a step out; GdaskError where it makes something else of the `given` Frame or Frames."""
    if not settings["skip_primitive"].value:
        return False
    gives = step.__annotations__.get("return")
    if gives != given and gives in ("Frame", "Frames", "tuple[Frames, Frames]"):
        raise GdaskError(
            f"{step.__name__} cannot be left out: the recipe goes on with what it makes; take another recipe"
        )
    log.info("%s: skipped, as asked", step.__name__)
    return True


def _deal(other: object, number: int, count: int) -> object:
    return other[number] if isinstance(other, tuple) and len(other) == count else other


#: The step that each calibration is for: where the user leaves it out, there is nothing to look for.
USED_BY = {"processed_flat": "flat_correct", "processed_dark": "dark_correct"}

#: Found so far: (type, path of the frame) -> association.
Known = dict[tuple[str, str], "Association"]


def look_up(known: Known, caltype: str, frame: Frame, databases: Sequence[Any]) -> Association:
    """The association of a frame, the first time with a warning for each calibration that would fit as well."""
    from gdask import caldb

    key = caltype, frame.attrs["path"]
    if key not in known:
        known[key] = caldb.associate(frame, caltype, databases)
        for tie in known[key].ties:
            log.warning(
                "%s: %s would fit as well as %s", frame.attrs["name"], tie, known[key].chosen
            )
    return known[key]


def missing(name: str, association: Association) -> GdaskError:
    """The error for a frame without a calibration that it needs: the nearest candidates, and the rule that each failed."""
    from gdask import caldb

    return GdaskError(f"{name}: no {association.caltype}\n{caldb.explain(association)}")


def all_missing(
    frames: Sequence[Frame], lacking: Mapping[str, Sequence[Association]]
) -> GdaskError:
    """The error where no frame has what it needs: each kind explained once, for the first frame that lacks it."""
    first: dict[str, str] = {}
    for frame in frames:
        for association in lacking[frame.attrs["name"]]:
            first.setdefault(association.caltype, str(missing(frame.attrs["name"], association)))
    return GdaskError("\n".join(first.values()))


def remarks(association: Association) -> list[str]:
    """What the log should say of an association: values taken as equal, and the note where there is no calibration."""
    if association.chosen:
        return [v.text for v in association.candidates[0].verdicts if "taken as equal" in v.text]
    return (
        [association.rules.note] if association.rules is not None and association.rules.note else []
    )
