"""The computes of a run: pixels into products and checkpoints, small results back, nothing left over where one fails."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from gdask.engine import checkpoint
from gdask.engine.compute import compute, return_freed_memory
from gdask.io import write
from gdask.io.frames import lazy_small_results, with_fetched
from gdask.io.lazy_arrays import map_arrays
from gdask.io.write import no_room
from gdask.model import DQ, UNUSABLE, BadPixels, GdaskError
from gdask.reduction.provenance import file_checksums, product_tables, sources
from gdask.steps.frames import arrays_of
from gdask.types import Flags, Frame

log = logging.getLogger("gdask")

#: An array with fewer usable pixels than this is of no use.
FEWEST = 0.01
_CAUSES = (
    (DQ.NO_DATA, "NaN or no data"),
    (DQ.SATURATED, "saturated"),
    (DQ.COSMIC_RAY, "latent images"),
    (DQ.UNILLUMINATED, "unilluminated"),
    (DQ.BAD_PIXEL, "bad"),
)


class Product(NamedTuple):
    """A product under way and the Frame that it is of."""

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
    """One compute: write the pixels of products and other outputs; give the values of `wanted`, and the products' paths.

    `watched` are lazy counts of usable pixels (`usable_pixels`) by path of an input frame. Raises BadPixels where an input
    has none or cannot be read: before any product has its name.
    """
    tables = [
        (product, name, lazy)
        for product in products
        for name, lazy in lazy_small_results(product.frame).items()
    ]
    paths = sources(product.frame for product in products)
    watching = dict(watched or {}) | {
        p.output.final: usable_pixels(p.frame) for p in products if {"data", "dq"} <= set(p.frame)
    }
    lazy = [
        *wanted,
        *(each for _, _, each in tables),
        *watching.values(),
        *([file_checksums(paths, identities)] if paths else []),
    ]
    outputs = [*(product.output for product in products), *others]
    return_freed_memory()
    with discarded_on_failure(outputs):
        values: tuple[Any, ...] = compute(
            [*lazy, *(each for output in outputs for each in output.arrays)], label
        )
        return_freed_memory()
        at = len(wanted) + len(tables)
        found, counts = values[len(wanted) : at], values[at : at + len(watching)]
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
            if os.path.exists(product.output.final):
                log.info("%s: an older one is replaced", os.path.basename(product.output.final))
            written.append(write.finish(product.output, product_tables(frame, checksums)))
    return values[: len(wanted)], written


@contextmanager
def discarded_on_failure(outputs: Sequence[write.Output]) -> Iterator[None]:
    """Outputs that are removed when what is inside fails; a full disk in words, with the product that had no room."""
    try:
        yield
    except BaseException as error:
        for output in outputs:
            write.discard(output)
        if isinstance(error, OSError) and no_room(error):
            where = os.path.dirname(outputs[0].final) if outputs else "."
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
    """Compute these variables of the Frames and everything pending into a checkpoint, and the products that are due.

    `known` are `watched` and `identities` of run_phase.
    """
    outputs: list[write.Output] = []
    with discarded_on_failure(outputs):
        for number, frame in enumerate(frames):
            if any(name in frame for name in variables):
                outputs.append(
                    write.start(
                        frame, checkpoint.frame_path(folder, number, frame), variables, bare=True
                    )
                )
        pending = {
            (number, name): lazy
            for number, frame in enumerate(frames)
            for name, lazy in lazy_small_results(frame).items()
        }
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


def usable_pixels(frame: Frame) -> Any:
    """Give lazy counts for each array of a Frame with DQ: all pixels, usable ones, then those with each cause. (detector,)"""
    return map_arrays(_count, *arrays_of(frame, ("dq",)))


def _count(dq: Flags) -> np.ndarray:
    usable = int(np.count_nonzero((dq & np.uint16(UNUSABLE)) == 0))
    causes = [
        np.count_nonzero(dq & np.uint16(bit)) if usable < FEWEST * dq.size else 0
        for bit, _ in _CAUSES
    ]
    return np.array([dq.size, usable, *causes])


def _check_usable(counts: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    """Raise BadPixels for inputs, GdaskError for products without usable pixels; a warning for single arrays."""
    useless: dict[str, str] = {}
    for path, arrays in counts.items():
        fewest = (
            FEWEST if path in inputs else 0.0
        )  # arrays' windows may be a small part of a mosaic
        why = [_why_useless(each, fewest) for each in np.ravel(arrays)]
        if all(why):
            useless[path] = f"no usable pixels: {', '.join(dict.fromkeys(why))}"
        elif any(why) and path in inputs:
            text = "; ".join(
                f"array {number} is {each}" for number, each in enumerate(why, 1) if each
            )
            log.warning("%s: %s; only its other arrays are used", os.path.basename(path), text)
    bad_inputs = {path: why for path, why in useless.items() if path in inputs}
    if bad_inputs:
        raise BadPixels(bad_inputs)
    for path, reason in useless.items():
        raise GdaskError(
            f"{path}: not written, it would have {reason}; look at the frames that went into it"
        )


def _why_useless(counts: np.ndarray, fewest: float) -> str:
    total, usable, *causes = (int(count) for count in counts)
    if usable and usable >= fewest * total:
        return ""
    share, cause = max((count / total, -number) for number, count in enumerate(causes))
    return f"{100 * share:.0f} % {_CAUSES[-cause][1]}"


def how_many(frames: Sequence[Frame]) -> str:
    """'1 frame', '5 frames': a frame that is on target and sky counts once."""
    number = len({frame.attrs["name"] for frame in frames})
    return f"{number} frame" + ("" if number == 1 else "s")
