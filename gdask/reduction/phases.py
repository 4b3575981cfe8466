"""The computes of a run, one for each phase.

Each writes pixels into products and checkpoints, and gives small results back. Where it fails,
nothing is left over.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from gdask import params
from gdask.engine import checkpoint
from gdask.engine.compute import compute
from gdask.engine.memory import return_much_freed_memory
from gdask.io import write
from gdask.io.frames import lazy_small_results, with_fetched
from gdask.io.gather import measure_arrays
from gdask.io.write import no_room
from gdask.model import DQ, UNUSABLE, BadPixels, GdaskError
from gdask.reduction.numbers import completed
from gdask.reduction.provenance import file_checksums, product_tables, sources
from gdask.steps.frames import arrays_of
from gdask.types import Flags, Frame

log = logging.getLogger("gdask")

#: An array of an input with a smaller share of usable pixels than this is of no use.
MIN_USABLE_SHARE = 0.01
#: Pixels of an input's array in whose rows usable ones are counted, and bytes for each.
COUNTED_PIXELS = 2**18
_COUNT_BYTES = 8.0
#: DQ bits that make pixels unusable, and the words for them.
_CAUSES = (
    (DQ.NO_DATA, "NaN or no data"),
    (DQ.SATURATED, "saturated"),
    (DQ.COSMIC_RAY, "latent images"),
    (DQ.UNILLUMINATED, "unilluminated"),
    (DQ.BAD_PIXEL, "bad"),
)


class Product(NamedTuple):
    """A product that is being written, and its Frame."""

    output: write.Output
    frame: Frame


def run_phase(
    products: Sequence[Product],
    wanted: Sequence[Any],
    label: str,
    others: Sequence[write.Output] = (),
    watched: Mapping[str, Any] | None = None,
    identities: Mapping[str, tuple[int, int] | None] | None = None,
) -> tuple[tuple[Any, ...], list[str]]:
    """Write the pixels of products and other outputs, in one compute.

    Gives the values of `wanted`, which are lazy arrays, and the paths of the products. `watched`
    are lazy counts of usable pixels (`usable_pixels`) by path of an input frame; `identities` size
    and modification time (ns) of the inputs. Raises BadPixels where an input has no usable pixels
    or cannot be read: before any product has its name.
    """
    tables = [
        (product, name, lazy)
        for product in products
        for name, lazy in lazy_small_results(product.frame).items()
    ]
    used = sources(product.frame for product in products)
    paths, sums = file_checksums(used, identities) if used else ([], None)
    watching = dict(watched or {}) | {
        p.output.final: usable_pixels(p.frame) for p in products if {"data", "dq"} <= set(p.frame)
    }
    lazy = [
        *wanted,
        *(each for _, _, each in tables),
        *watching.values(),
        *([sums] if paths else []),
    ]
    outputs = [*(product.output for product in products), *others]
    return_much_freed_memory()
    with discarded_on_failure([output.final for output in outputs]):
        values: tuple[Any, ...] = compute(
            [*lazy, *(each for output in outputs for each in output.arrays)], label
        )
        return_much_freed_memory()
        end = len(wanted) + len(tables)
        found, counts = values[len(wanted) : end], values[end : end + len(watching)]
        checksums = dict(zip(paths, values[len(lazy) - 1], strict=True)) if paths else {}
        _check_usable(dict(zip(watching, counts, strict=True)), watched or {})
        written = []
        for product in products:
            small = {
                name: tuple(np.ravel(v))
                for (p, name, _), v in zip(tables, found, strict=True)
                if p is product
            }
            frame = with_fetched(product.frame, small)
            _check_light(product.output.final, small.get("level", ()))
            if os.path.exists(product.output.final):
                log.info("%s: an older one is replaced", os.path.basename(product.output.final))
            stored, cards = completed(frame, product_tables(frame, checksums))
            written.append(write.finish(product.output, stored, cards=cards))
    return values[: len(wanted)], written


@contextmanager
def discarded_on_failure(paths: Sequence[str]) -> Iterator[None]:
    """Discard products of these paths when the `with` block fails; explain a full disk.

    The block may add to `paths`, best before it begins a file: a signal may come at any time.
    """
    try:
        yield
    except BaseException as error:
        for path in paths:
            write.discard(path)
        if isinstance(error, OSError) and no_room(error):
            where = os.path.dirname(paths[0]) if paths else "."
            raise GdaskError(
                f"{where}: could not be written ({error.strerror}); free space and run again"
            ) from error
        raise


def save_phase(
    frames: Sequence[Frame],
    variables: Sequence[str],
    folder: str,
    due: Sequence[Product],
    label: str,
    **known: Mapping[str, Any],
) -> list[str]:
    """Compute these variables of the Frames, and their small results, into a checkpoint.

    Pixels that can be made from files again are not stored, but the small results are on which they
    wait.

    Writes the products that are `due` in the same compute, and gives their paths. `known` are
    `watched` and `identities` of run_phase.
    """
    paths: list[str] = []
    with discarded_on_failure(paths):
        outputs = begun_outputs(frames, variables, folder)
        paths += [output.final for output in outputs]
        pending = lazy_results(frames)
        places = [each for output in outputs for each in output.arrays]
        values, written = run_phase(due, [*pending.values(), *places], label, outputs, **known)
        for output in outputs:
            write.finish(output, checksum=False)
        small = dict(zip(pending, values, strict=False))
        windows = checkpoint.window_records(outputs, values[len(pending) :])
        checkpoint.complete(
            folder, {key: tuple(np.ravel(value)) for key, value in small.items()}, windows
        )
    return written


def begun_outputs(
    frames: Sequence[Frame], variables: Sequence[str], folder: str
) -> list[write.Output]:
    """Begin the files of a checkpoint: of those variables that have to be stored."""
    outputs: list[write.Output] = []
    paths: list[str] = []
    with discarded_on_failure(paths):
        for number, frame in enumerate(frames):
            if stored := checkpoint.stored_variables(frame, variables):
                path = checkpoint.frame_path(folder, number, frame)
                paths.append(path)
                outputs.append(write.start(frame, path, stored, bare=True))
    return outputs


def lazy_results(frames: Sequence[Frame]) -> dict[tuple[int, str], Any]:
    """Give the small results that a phase of these Frames computes, by frame number and name.

    Those on which pixels wait are under checkpoint.ALL_FRAMES.
    """
    pending = {
        (number, name): lazy
        for number, frame in enumerate(frames)
        for name, lazy in lazy_small_results(frame).items()
    }
    for frame in frames:
        awaited = checkpoint.awaited_small_results(frame)
        pending |= {(checkpoint.ALL_FRAMES, name): lazy for name, lazy in awaited.items()}
    return pending


def usable_pixels(frame: Frame, sample: int | None = None) -> Any:
    """Count, lazily, for each array of a Frame: all pixels, usable ones, those with each cause.

    Gives an array of objects, (detector,). The Frame must have DQ. `sample`: see `measure_arrays`.
    """
    return measure_arrays(_count, *arrays_of(frame, ("dq",)), scratch=_COUNT_BYTES, sample=sample)


def _count(dq: Flags) -> np.ndarray:
    usable = int(np.count_nonzero((dq & np.uint16(UNUSABLE)) == 0))
    causes = [
        np.count_nonzero(dq & np.uint16(bit)) if usable < MIN_USABLE_SHARE * dq.size else 0
        for bit, _ in _CAUSES
    ]
    return np.array([dq.size, usable, *causes])


def _check_usable(counts: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    """Raise BadPixels for inputs, GdaskError for products, that have no usable pixels.

    Where only some arrays of an input have none, a warning names them.
    """
    useless: dict[str, str] = {}
    for path, arrays in counts.items():
        # The windows of a product's arrays may be a small part of a mosaic.
        min_share = MIN_USABLE_SHARE if path in inputs else 0.0
        reasons = [_why_useless(each, min_share) for each in np.ravel(arrays)]
        if all(reasons):
            useless[path] = f"no usable pixels: {', '.join(dict.fromkeys(reasons))}"
        elif any(reasons) and path in inputs:
            text = "; ".join(
                f"array {number} is {reason}" for number, reason in enumerate(reasons, 1) if reason
            )
            log.warning("%s: %s; only its other arrays are used", os.path.basename(path), text)
    bad_inputs = {path: why for path, why in useless.items() if path in inputs}
    if bad_inputs:
        raise BadPixels(bad_inputs)
    for path, reason in useless.items():
        raise GdaskError(
            f"{path}: not written, it would have {reason}; look at the frames that went into it"
        )


def _check_light(path: str, levels: Sequence[float]) -> None:
    """Raise GdaskError for a flat without light: its level (electrons), lamp on minus lamp off.

    Divided by such a level, the noise of frames without light looks like a flat.
    """
    if levels and min(levels) <= 0:
        raise GdaskError(
            f"{path}: not written: the lamp gave no light, its median over all arrays is "
            f"{min(levels):.1f} e- (lamp on minus lamp off, or lamp off minus dark); look at the "
            "frames, and give those of a lamp that was on"
        )


def _why_useless(counts: np.ndarray, min_share: float) -> str:
    """Name the main cause why an array is useless; '' if it has usable pixels enough."""
    total, usable, *causes = (int(count) for count in counts)
    if usable and usable >= min_share * total:
        return ""
    share, cause = max((count / total, -number) for number, count in enumerate(causes))
    return f"{100 * share:.0f} % {_CAUSES[-cause][1]}"


def how_many(frames: Sequence[Frame]) -> str:
    """Say '1 frame' or '5 frames'; a frame that is on target and on sky counts once."""
    number = len({frame.attrs["name"] for frame in frames})
    return f"{number} frame" + ("" if number == 1 else "s")


def is_skipped(
    step: Callable[..., object], settings: Mapping[str, params.Setting], given: str
) -> bool:
    """Tell whether the user skips a step that is given one `Frame` or `Frames` (`given`).

    Raises GdaskError where the step gives something else than it is given.
    """
    if not settings["skip_primitive"].value:
        return False
    gives = step.__annotations__.get("return")
    if gives != given and gives in ("Frame", "Frames", "tuple[Frames, Frames]"):
        raise GdaskError(
            f"{step.__name__} cannot be left out: the recipe goes on with what it makes; "
            "take another recipe"
        )
    log.info("%s: skipped, as asked", step.__name__)
    return True
