"""The memory of a whole recipe, checked before its first pixel.

A recipe is called once with a Run that computes nothing: each phase's graph is built and its memory
projected, and the recipe goes on with small results that are made up. They decide neither which
frames are read nor how large the image is; where they do (a step finds nothing to go on with), the
rehearsal ends there, and the phases after it are checked when their turn comes.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from gdask.engine import checkpoint
from gdask.engine.compute import check_memory
from gdask.kernels.sources.centroids import POSITIONS
from gdask.kernels.sources.detection import CATALOG
from gdask.model import EXTNAMES, GdaskError, MemoryRefused
from gdask.reduction.numbers import with_measurements
from gdask.reduction.phases import begun_outputs, how_many, lazy_results
from gdask.reduction.run import Run
from gdask.types import Frames

log = logging.getLogger("gdask")

#: Small results that steps go on with, made up for one array: no stars, an even background. Steps
#: take them as they take those of an empty field.
_MADE_UP: dict[str, np.ndarray] = {
    "stars": np.zeros(0, POSITIONS),
    "objcat": np.zeros(0, CATALOG),
    "background": np.ones((8, 8)),
    "levels": np.zeros((8, 0)),
    "shadows": np.ones((2, 8, 8)),
}


#: Small results without which steps do nothing, as they do where these were not measured.
_LEFT_OUT = ("outline", "sky_counts")
#: What steps raise on an input that they cannot use. The run itself will meet it, and say so.
_FAILURES = (GdaskError, OSError, ValueError, TypeError, LookupError, ArithmeticError)


class RehearsalEnd(Exception):
    """What comes next cannot be rehearsed, or need not be."""


def rehearse(recipe: Callable[..., object], frames: Frames, **account: Any) -> None:
    """Check the memory of each phase of a recipe for these frames, computing nothing.

    `account`: what `Run` is given. Raises MemoryRefused, for the first phase that does not fit the
    budget. Any other failure ends the rehearsal: the run itself will show it, with its message.
    """
    with tempfile.TemporaryDirectory(prefix="rehearsal-", dir=account["scratch"]) as folder:
        run = Rehearsal(**{**account, "scratch": folder, "strict": False})
        try:
            with _in_silence():
                recipe(run, frames)
        except MemoryRefused:
            raise
        except RehearsalEnd:
            log.debug("memory of %d phases checked before the first", run.checked)
        except _FAILURES as error:
            log.debug("memory of %d phases checked, not of more: %s", run.checked, error)
        finally:
            run.close()


@contextmanager
def _in_silence() -> Iterator[None]:
    """Log nothing: remarks and warnings come when the recipe is run."""
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


class Rehearsal(Run):
    """A Run whose phases are checked and not computed.

    Attributes
    ----------
    checked
        Phases of which the memory is enough.
    """

    checked = 0

    def save(self, frames: Frames, variables: Sequence[str] = tuple(EXTNAMES)) -> Frames:
        """Check a phase; give Frames as if their pixels had been saved."""
        if not frames:
            return frames
        self._phase += 1
        folder = os.path.join(self.scratch, str(self._phase))
        os.mkdir(folder)
        outputs = begun_outputs(frames, variables, folder)
        self._begun += [output.final for output in outputs]
        pending = lazy_results(frames)
        places = [each for output in outputs for each in output.arrays]
        self._check([*pending.values(), *places, *self._take_watched().values()], how_many(frames))
        for output in outputs:
            os.replace(output.temporary, output.final)
        made_up = {
            key: tuple(_made_up(*key, number) for number in range(len(lazy)))
            for key, lazy in pending.items()
        }
        resumed = checkpoint.resume(frames, variables, folder, made_up)
        return tuple(frame.drop_vars(_LEFT_OUT, errors="ignore") for frame in resumed)

    def write_each(self, frames: Frames, suffix: str, ending: str = "") -> Frames:
        """Check the phase of products, and end the rehearsal: they are what comes last."""
        self._phase += 1
        suffix = (self.suffix or suffix) + ending
        measured = [with_measurements(frame, self.set_aside) for frame in frames]
        products = [self._product(frame, suffix) for frame in measured]
        arrays = [each for product in products for each in product.output.arrays]
        small = lazy_results([product.frame for product in products])
        self._check(
            [*arrays, *small.values(), *self._take_watched().values()],
            os.path.basename(products[0].output.final) if products else "nothing",
        )
        raise RehearsalEnd

    def _check(self, arrays: Sequence[Any], what: str) -> None:
        check_memory(arrays, f"phase {self._phase}: {what}")
        self.checked = self._phase


def _made_up(number: int, name: str, detector: int) -> np.ndarray:
    """Make up the small result `name` of one array of frame `number`.

    Pixels wait for levels (numbers), which are ones.
    """
    return np.asarray(1.0) if number == checkpoint.ALL_FRAMES else _MADE_UP.get(name, np.zeros(0))
