"""`Reduce`: files in, products out. What the `reduce` command and the field's Python scripts use."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

from gdask.model import GdaskError

log = logging.getLogger("gdask")


class Uparms(dict):
    """The user's parameters: a dictionary that also takes the older form, a list of pairs."""

    def append(self, pair: tuple[str, object]) -> None:
        self[pair[0]] = pair[1]

    def extend(self, pairs: Iterable[tuple[str, object]]) -> None:
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
        User calibrations: {'processed_flat': 'FILE'}.
    suffix
        Suffix of the last product, instead of the recipe's.
    cluster
        Where to compute: 'threads', 'processes:4', 'tcp://...'.
    output_filenames
        After `runr()`: the products.
    set_aside
        After `runr()`: (name, step, reason) of each frame that was left out.
    """

    def __init__(self) -> None:
        self.files: list[str] = []
        self.recipename = "default"
        self.uparms: Any = Uparms()
        self.ucals: dict[str, str] = {}
        self.suffix: str | None = None
        self.cluster = "threads"
        self.config: Mapping[str, object] = {}
        self.output_filenames: list[str] = []
        self.set_aside: list[tuple[str, str, str]] = []

    def runr(self) -> None:
        """Run the recipe. Raises GdaskError with what to do where it cannot."""
        from gdask import params
        from gdask.caldb import open_databases
        from gdask.cluster import connect
        from gdask.instruments import tags
        from gdask.io import checkpoint
        from gdask.io.read import open_frame
        from gdask.recipe_library import find_recipe, steps_in
        from gdask.run import Run

        if not self.files:
            raise GdaskError("no files to reduce; give file names or @list")
        paths = _unique(self.files)
        for path in paths:
            if not os.path.isfile(path):
                raise GdaskError(f"{path}: no such file")
        recipe = find_recipe(None if self.recipename == "default" else self.recipename, tags(paths[0]))
        given = params.normalise(self.uparms)
        params.check_user(given, steps_in(recipe))
        ucals = {_caltype(kind, path): path for kind, path in dict(self.ucals).items()}
        if os.sep in (self.suffix or ""):
            raise GdaskError(f"--suffix {self.suffix}: a part of a file name was expected, such as _mine, not a path")
        folder = os.getcwd()
        run = Run([("config", dict(self.config)), ("user", given)], open_databases(), ucals, folder, suffix=self.suffix, inputs=paths)
        for name in checkpoint.remove_stale_parts(folder):
            log.info("removed %s, left by a run that did not end", name)
        log.info("recipe %s: %d file%s", recipe.__name__, len(paths), "" if len(paths) == 1 else "s")
        frames = tuple(open_frame(path) for path in paths)
        try:
            with connect(self.cluster):
                recipe(run, frames)
        finally:
            self.output_filenames = [os.path.basename(path) for path in run.outputs]
            self.set_aside = [tuple(entry) for entry in run.set_aside]
        checkpoint.clean(run.scratch)


def _unique(files: Iterable[str]) -> list[str]:
    paths = list(dict.fromkeys(os.fspath(path) for path in files))
    for path in paths:
        if list(files).count(path) > 1:
            log.warning("%s is listed more than once: used once", path)
    return paths


def _caltype(kind: str, path: str) -> str:
    from gdask.caldb.describe import CALTYPES
    from gdask.instruments import tags
    from gdask.params import closest

    known = ("processed_flat", "processed_dark", "processed_bpm", "processed_standard")
    if kind not in known:
        raise GdaskError(f"--user_cal {kind}: not a kind of calibration; expected {', '.join(known)}{closest(kind, known)}")
    if kind != "processed_standard" and not (CALTYPES[kind] <= tags(path) or "PROCESSED" in tags(path)):
        wanted, has = (" ".join(sorted(names)) for names in (CALTYPES[kind], tags(path)))
        raise GdaskError(f"--user_cal {kind}:{path}: not a {kind}: its tags are {has}, {wanted} was expected; reduce it first")
    return kind
