"""`Reduce`: files in, products out; the `reduce` command and Python scripts use it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gdask.logutils import TOLD_AT_END
from gdask.model import BadPixels, GdaskError, NoCalibration, UsageError, clean

if TYPE_CHECKING:
    from gdask.engine.account import Recorder, RunAccount
    from gdask.reduction.screening import Screened
    from gdask.types import Frames

log = logging.getLogger("gdask")

#: Products of a run of which the numbers are told: the first ones, where each frame is one.
_TOLD_PRODUCTS = 3


class Uparms(dict):
    """The user's parameters: a dictionary that also takes the older form, a list of pairs."""

    def append(self, pair: tuple[str, object]) -> None:
        """Set one parameter from its name and value."""
        self[pair[0]] = pair[1]

    def extend(self, pairs: Iterable[tuple[str, object]]) -> None:
        """Set parameters from pairs of name and value."""
        self.update(dict(pairs))


class Reduce:
    """A reduction: set the attributes, then call `runr()`.

    Attributes
    ----------
    files
        Input files; the tags of the first one choose the recipes.
    recipename
        Recipe name, or 'file.py:function'; 'default' is the default one.
    uparms
        User parameters: {'skyCorrect:offset_sky': False} or a list of pairs.
    ucals
        User calibrations: {'processed_flat': 'FILE'}, 'processed_flat:FILE', or a list of these.
    suffix
        Suffix of the last product, instead of the recipe's.
    cluster
        Where to compute: 'threads', 'processes:4', 'tcp://...'.
    memory
        Most memory of each worker, such as '2GiB'; None is what the machine or the workers have.
    performance_report
        File for a page that shows what the time was spent on; None for none.
    gates
        TOML file of limits of a product's numbers, in place of those of gates.toml; or the tables.
    strict
        Stop at the first frame that would be set aside.
    mode
        'sq', science quality: the only one.
    output_filenames
        After `runr()`: the products.
    set_aside
        After `runr()`: (name, step, reason) of each frame that was left out.
    account
        After `runr()`: seconds, bytes read and written, CPU seconds and peak memory, by phase and
        in all; `account.as_dict()` adds rates and bytes per raw byte.
    """

    def __init__(self) -> None:
        self.files: list[str] = []
        self.recipename = "default"
        self.uparms: Any = Uparms()
        self.ucals: Any = {}
        self.suffix: str | None = None
        self.cluster = "threads"
        self.memory: str | int | None = None
        self.performance_report: str | None = None
        self.config: Mapping[str, object] = {}
        self.gates: str | os.PathLike[str] | Mapping[str, Any] | None = None
        self.strict = False
        self.mode = "sq"
        self.output_filenames: list[str] = []
        self.set_aside: list[tuple[str, str, str]] = []
        self.account: RunAccount | None = None
        #: Names that parameters may hold though the files are not in the list: in a replay.
        self._left_out_before: list[str] = []

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute that a reduction has; UsageError, with the nearest, for any other one.

        A value under a name that nobody reads would be ignored without a word.
        """
        is_known = name in self.__dict__ or name.startswith("_") or hasattr(type(self), name)
        if "_left_out_before" in self.__dict__ and not is_known:
            from gdask.params import closest

            known = [known for known in self.__dict__ if not known.startswith("_")]
            raise UsageError(
                f"Reduce.{name}: no such attribute{closest(name, known)}; "
                f"there are {', '.join(sorted(known))}"
            )
        super().__setattr__(name, value)

    def runr(self) -> None:
        """Run the recipe. Raises GdaskError with what to do where it cannot."""
        from gdask.engine.account import describe_run, recorded
        from gdask.engine.memory import garbage_left
        from gdask.model import usual_errors

        self.output_filenames, self.set_aside, self.account = [], [], None
        paths = self._paths()
        with usual_errors(), recorded(paths) as recorder, garbage_left():
            self._reduce(paths, recorder)
        _tell_numbers(self.output_filenames, self._own_gates())
        if self.account:
            self.account = self.account._replace(seconds=recorder.seconds())
            log.info("%s", describe_run(self.account))

    def _reduce(self, paths: list[str], recorder: Recorder) -> None:
        """Check what was asked for, screen the files, and run the recipe where it was asked for."""
        from gdask import params
        from gdask.cluster import connect
        from gdask.engine import checkpoint, warm_up
        from gdask.engine.checkpoint import remove_stale_parts
        from gdask.engine.memory import parse_bytes
        from gdask.instruments import tags
        from gdask.reduction import gates, screening
        from gdask.reduction.recipe_library import (
            kernels_needed_by,
            known_steps,
            locate,
            steps_in,
        )

        given, ucals = params.normalise(self.uparms), self._calibrations()
        limits = self._own_gates()
        self._check_options()
        allowed = parse_bytes(self.memory)
        frames = self._keep(screening.open_all(paths))
        recipe, module = locate(
            None if self.recipename == "default" else self.recipename, tags(frames[0])
        )
        params.check_user(given, steps_in(recipe))
        params.check_user(self.config, known_steps() | steps_in(recipe), "-c")
        layers: list[tuple[str, Mapping[str, object]]] = [
            *gates.layer_of(limits),
            ("config", dict(self.config)),
            ("user", given),
        ]
        params.check_together(steps_in(recipe), layers)
        screening.check_files_given({**self.config, **given}, steps_in(recipe))
        frames = screening.with_names_listed(frames, [*paths, *self._left_out_before])
        screening.check_named_frames(frames, recipe, layers)
        for name in remove_stale_parts(os.getcwd()):
            log.info("removed %s, left by a run that did not end", name)
        log.info(
            "recipe %s: %d file%s", recipe.__name__, len(paths), "" if len(paths) == 1 else "s"
        )
        frames, advice = self._screened(frames, recipe, module, layers)
        with (
            warm_up.in_background(kernels_needed_by(recipe, tags(frames[0]))),
            checkpoint.scratch_folder(os.getcwd(), paths) as scratch,
            connect(self.cluster, memory=allowed, report=self.performance_report),
        ):
            try:
                self._run(recipe, module, frames, layers, (ucals, limits), paths, scratch)
            except NoCalibration as error:
                raise NoCalibration("\n".join([str(error), *filter(None, [advice])])) from None
            finally:
                self.account = recorder.account(self.output_filenames)

    def _screened(
        self, frames: Frames, recipe: Any, module: Any, layers: list
    ) -> tuple[Frames, str]:
        """Give the frames that the recipe takes, and what to do first with the others, or ''."""
        from gdask.reduction import screening
        from gdask.reduction.recipe_library import what_to_do_first

        kept = self._keep(screening.screen(frames, recipe, module))
        if advice := what_to_do_first(frames, kept):
            log.warning("%s", advice)
        if limit := screening.field_of_one_target(kept[0], recipe, layers):
            kept = self._keep(screening.one_target(kept, limit))
        return kept, advice

    def _run(
        self,
        recipe: Any,
        module: Any,
        frames: Frames,
        layers: list,
        given: tuple[dict[str, str], dict[str, Any]],
        paths: list[str],
        scratch: str,
    ) -> None:
        """Run the recipe, and once more without frames whose pixels turn out to be bad.

        given: the user's calibrations, and gates.
        """
        from gdask.caldb import open_databases
        from gdask.reduction.provenance import with_reduction
        from gdask.reduction.run import Run
        from gdask.reduction.screening import identity_of, with_skies, without_bad

        folder, (ucals, limits) = os.getcwd(), given
        while True:
            frames = self._keep(with_skies(frames, recipe, module, layers))
            before = list(self.set_aside)
            inputs = dict.fromkeys(paths) | {
                frame.attrs["path"]: identity_of(frame) for frame in frames
            }
            account: dict[str, Any] = {
                "layers": layers,
                "databases": open_databases(),
                "user_cals": ucals,
                "folder": folder,
                "scratch": scratch,
                "suffix": self.suffix,
                "inputs": inputs,
                "strict": self.strict,
            }
            run = Run(**account)
            try:
                about = {
                    "layers": layers,
                    "user_cals": ucals,
                    "suffix": self.suffix,
                    "left_out": before,
                    "gates": limits,
                }
                begun = with_reduction(frames, recipe, self.recipename, **about)
                _check_memory(recipe, begun, account)
                recipe(run, begun)
                break
            except BadPixels as error:
                screened = without_bad(frames, error)
                if self.strict or not screened.set_aside:
                    raise
            finally:
                run.close()
                self.output_filenames = [os.path.basename(path) for path in run.outputs]
                self.set_aside = [
                    *before,
                    *((name, step, reason) for name, step, reason in run.set_aside),
                ]
            self.set_aside = before
            frames = self._keep(screened)
            log.info(
                "once more without %s: the result is as if it had not been in the list",
                ", ".join(s.name for s in screened.set_aside),
            )

    def _keep(self, screened: Screened) -> Frames:
        """Record the frames that were set aside, with a warning for each, and give the others.

        Raises GdaskError where none is left, and at the first one if `strict`.
        """
        for name, step, reason in screened.set_aside:
            log.warning("%s: %s set aside: %s", step, name, reason, extra=TOLD_AT_END)
            if self.strict:
                raise GdaskError(f"{name}: {reason} ({step}; --strict stops here)")
        self.set_aside += [(name, step, reason) for name, step, reason in screened.set_aside]
        if not screened.frames:
            raise GdaskError(
                "every frame was set aside, for the reasons given; nothing is left to go on with"
                if len(self.set_aside) > 1
                else f"{screened.set_aside[0].name}: {screened.set_aside[0].reason}"
            )
        return screened.frames

    def _paths(self) -> list[str]:
        """Give the paths of the input files, once each; UsageError where one is not there."""
        if not self.files:
            raise UsageError("no files to reduce; give file names or @list")
        paths = [os.fspath(path) for path in self.files]
        for path in paths:
            _check_is_text(os.path.abspath(path))
        missing = [path for path in paths if not os.path.exists(path)]
        if missing:
            others = f"; {len(missing) - 1} more are missing too" if len(missing) > 1 else ""
            raise UsageError(f"{missing[0]}: no such file{others}; check names and folder")
        path_of_file: dict[str, str] = {}
        for path in paths:
            if path_of_file.setdefault(os.path.realpath(path), path) is not path:
                log.warning("%s is listed more than once: used once", path)
        return list(path_of_file.values())

    def _check_options(self) -> None:
        """Raise UsageError for a cluster, a mode or a suffix that cannot be."""
        _check_cluster(self.cluster)
        if self.mode != "sq":
            raise UsageError(
                f"mode {self.mode}: not offered: gdask has one mode, science quality (sq)"
            )
        if os.sep in (self.suffix or ""):
            raise UsageError(
                f"--suffix {self.suffix}: a part of a file name was expected, such as _mine, "
                "not a path"
            )

    def _own_gates(self) -> dict[str, Any]:
        """Give the user's gates; UsageError where they cannot be used."""
        from gdask.reduction import gates

        own = self.gates or {}
        own = own if isinstance(own, Mapping) else gates.read_own(own)
        gates.merged(own)
        return dict(own)

    def _calibrations(self) -> dict[str, str]:
        """Give the user's calibrations by kind; UsageError where one is not understood."""
        found: dict[str, str] = {}
        for kind, path in _pairs(self.ucals):
            if found.setdefault(_checked_kind(kind, path), path) != path:
                raise UsageError(f"--user_cal {kind}: {found[kind]} and {path} came; give one")
        return found


def _tell_numbers(products: list[str], limits: Mapping[str, Any]) -> None:
    """Log the numbers of products, and a warning for each gate that is not met.

    limits: the user's gates.
    """
    from gdask.headers.numbers import read_numbers
    from gdask.reduction import gates

    for number, name in enumerate(products):
        numbers = read_numbers(name)
        for line in gates.describe(numbers) if number < _TOLD_PRODUCTS else ():
            log.info("%s: %s", name, line)
        for verdict in gates.judge(numbers, table=gates.merged(limits)):
            if not verdict.is_met:
                log.warning("%s: %s", name, gates.sentence(verdict))


def _pairs(given: Any) -> list[tuple[str, str]]:
    """Give kind and file of each calibration: of a dictionary, 'KIND:FILE', or a list of these.

    A text may hold several, between commas or blanks.
    """
    if given is None:
        return []
    if isinstance(given, str):
        parts = [part for part in re.split(r"[,\s]+(?=\w+:)", given.strip()) if part]
        pairs: list[tuple[Any, Any]] = [part.partition(":")[::2] for part in parts]
    elif isinstance(given, Mapping):
        pairs = list(given.items())
    elif isinstance(given, list | tuple | set):
        if len(given) == 2 and not any(":" in str(one) or isinstance(one, tuple) for one in given):
            pairs = [tuple(given)]
        else:
            return [pair for item in given for pair in _pairs(item)]
    else:
        raise _no_calibration(given)
    return [(str(kind).strip(), _one_path(kind, path)) for kind, path in pairs]


def _one_path(kind: object, path: object) -> str:
    """Give the path of a calibration; UsageError where it is none, or more than one."""
    if isinstance(path, list | tuple) and len(path) == 1:
        path = path[0]
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise _no_calibration(f"{kind}:{path}" if path else kind)
    return os.fspath(path).strip()


def _no_calibration(given: object) -> UsageError:
    return UsageError(
        f"--user_cal {given}: expected KIND:FILE, such as "
        "processed_flat:S20170505S0030_flat.fits (ucals: a dictionary, or a list of these)"
    )


def _check_memory(recipe: Any, frames: Frames, account: Mapping[str, Any]) -> None:
    """Raise MemoryRefused where a phase of the recipe would not fit a small budget."""
    from gdask.engine.memory import is_ample

    if not is_ample(frames[0]):
        from gdask.reduction.rehearsal import rehearse

        rehearse(recipe, frames, **account)


def _check_is_text(path: str) -> None:
    """Raise UsageError where a name is bytes that fit no log, database or product."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{clean(path)}: a name that is not valid UTF-8 text (or Python reads names as ASCII: "
            "set PYTHONUTF8=1); rename the file or folder"
        ) from None


def _check_cluster(spec: str) -> None:
    from gdask.cluster import profile_of

    try:
        profile_of(spec)
    except GdaskError as error:
        raise UsageError(str(error)) from None


def _checked_kind(kind: str, path: str) -> str:
    """Give the kind of a user's calibration; UsageError where it, or its file, will not do."""
    from gdask.caldb.database import CALTYPES
    from gdask.instruments import tags
    from gdask.params import closest

    known = ("processed_flat", "processed_dark", "processed_bpm", "processed_standard")
    if kind not in known:
        raise UsageError(
            f"--user_cal {kind}: not a kind of calibration; expected "
            f"{', '.join(known)}{closest(kind, known)}"
        )
    if not os.path.exists(path):
        raise UsageError(f"--user_cal {kind}:{path}: no such file")
    if kind != "processed_standard" and not (
        CALTYPES[kind] <= tags(path) or "PROCESSED" in tags(path)
    ):
        wanted, has = (" ".join(sorted(names)) for names in (CALTYPES[kind], tags(path)))
        raise UsageError(
            f"--user_cal {kind}:{path}: not a {kind}: its tags are {has}, {wanted} was expected; "
            "reduce it first"
        )
    return kind
