"""Several sources of one array, read together: what kernels make of others in one compiled call.

`chained` finds the kernels between files and the pixels that are wanted, as a chain for
`kernels.detector.chains`. Other kernels, and what such a chain has no room for, are called one
after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gdask.io.sources import Awaited, Blocks, Bound, Mapped, Source, read_once
from gdask.io.stored import StoredArray
from gdask.kernels.arrays import as_kernel_input
from gdask.kernels.detector.chains import (
    COPY,
    COPY_FLAGS,
    FIRST_OF_FLAGS,
    IN_PLACE,
    INPUTS,
    NONE,
    OUTPUTS,
    PARTS,
    PLACES,
    ROOMS,
    Chain,
    Part,
    run_chain,
)
from gdask.types import Memo, Window

#: Rows in which pixels are made that kernels compute from others, so that all that lies in between
#: stays in the processor's cache. `sky_subtraction` takes as many at a time, since kept windows of
#: calibrations are found by their rows.
STRIP_ROWS = 16
#: What the chain of sources is found by in a memo.
_CHAIN = "chain"


def prepared(
    sources: Sequence[Source], detector: int, window: Window, chain: Chained | None = None
) -> Memo:
    """Read what a window of these sources needs from files, for `read_together` to use.

    chain: of these sources, for rows among which the window is; it is found where none is given.
    """
    at_hand: Memo = {_CHAIN: chain or chained(sources, detector, window[:2])}
    for source in sources:
        prepare = getattr(source, "prepare", None)
        if prepare is not None:
            prepare(detector, window, at_hand)
    return at_hand


def read_together(
    sources: Sequence[Source],
    detector: int,
    window: Window,
    out: Sequence[np.ndarray] | None = None,
    at_hand: Memo | None = None,
) -> tuple[np.ndarray, ...]:
    """Read a window of several sources of one array, such as the variables of a frame.

    What they have in common is made once. Pixels that kernels make of others are made in strips of
    rows; `out` has planes to put the pixels into, `at_hand` what `prepared` has read. Nobody may
    write into the result without `out`.
    """
    if out is None and all(isinstance(source, (StoredArray, Blocks)) for source in sources):
        memo: Memo = {}
        return tuple(read_once(source, detector, window, memo) for source in sources)
    y1, y2, x1, x2 = window
    shape = y2 - y1, x2 - x1
    planes = out or tuple(np.empty(shape, source.dtype) for source in sources)
    at_hand = prepared(sources, detector, window) if at_hand is None else at_hand
    chain: Chained = at_hand[_CHAIN]
    others = [number for number in range(len(sources)) if number not in chain.made]
    for start in range(y1, y2, STRIP_ROWS):
        strip = start, min(start + STRIP_ROWS, y2), x1, x2
        parts = [plane[start - y1 : strip[1] - y1] for plane in planes]
        memo = dict(at_hand)
        if chain.made:
            _fill_chained(chain, detector, strip, parts, memo)
        for number in others:
            parts[number][:] = read_once(sources[number], detector, strip, memo)
    return tuple(planes)


class Chained(NamedTuple):
    """What kernels make of sources pixel by pixel, to be made in one compiled call.

    Attributes
    ----------
    chain
        The kernels.
    images, flags
        Sources that are read for them.
    made
        Numbers of the sources that are made, those of data and variance first.
    values
        Small results that the sources await.
    rooms
        Of the work arrays, of each kind.
    """

    chain: Chain
    images: tuple[Any, ...]
    flags: tuple[Any, ...]
    made: tuple[int, ...]
    values: Mapping[tuple[str, int], Any]
    rooms: tuple[int, int]


def _fill_chained(
    made: Chained, detector: int, window: Window, planes: Sequence[np.ndarray], memo: Memo
) -> None:
    """Make a window of what a chain makes. planes: those of all sources, to be filled."""
    memo.update(made.values)
    images, flags = (
        [as_kernel_input(read_once(each, detector, window, memo), dtype) for each in group]
        for group, dtype in ((made.images, np.float32), (made.flags, np.uint16))
    )
    wanted = [planes[number] for number in made.made]
    out = [
        plane if plane.flags.c_contiguous else np.empty(plane.shape, plane.dtype)
        for plane in wanted
    ]
    out_images = [plane for plane in out if plane.dtype.kind == "f"]
    run_chain(made.chain, images, flags, out_images, out[len(out_images) :], window, made.rooms)
    for plane, filled in zip(wanted, out, strict=True):
        if filled is not plane:
            plane[:] = filled


# How a chain is found ---------------------------------------------------------------------------


class _Links(NamedTuple):
    """A chain that is being made.

    Attributes
    ----------
    detector, rows
        For which it is.
    values
        Small results that the sources have.
    uses
        How often each source is used, by id.
    found
        Operands of sources, by id and whether they are flags.
    steps
        Codes with operands, and numbers, so far.
    listed
        Lists of pixels, so far.
    inputs
        Sources that are read, of each kind; 0 is none of them.
    rooms
        Of the work arrays, in use.
    """

    detector: int
    rows: tuple[int, int]
    values: dict[tuple[str, int], Any]
    uses: dict[int, int]
    found: dict[tuple[int, bool], int]
    steps: list[tuple[list[int], list[float]]]
    listed: list[np.ndarray]
    inputs: tuple[list[Any], list[Any]]
    rooms: list[int]


def chained(sources: Sequence[Any], detector: int, rows: tuple[int, int]) -> Chained:
    """Find the chain of kernels that makes what it can of these sources.

    What kernels make that `chains.PARTS` does not have is read, like a file. Of listed pixels the
    chain has those in the rows (first, last + 1).
    """
    links = _Links(detector, rows, {}, {}, {}, [], [], ([None], [None]), [0, 0])
    tops = [_core(source, links.values) for source in sources]
    _count_uses(tops, links)
    known = [number for number, top in enumerate(tops) if _part_of(top)]
    images = [number for number in known if tops[number].dtype.kind == "f"]
    flags = [number for number in known if number not in images]
    try:
        for group in (images, flags):
            for place, number in enumerate(group, 1):
                _link(links, tops[number], place)
    except LookupError:  # also for a small result that the memo alone has
        return _NO_CHAIN
    if (
        max(len(images), len(flags)) >= OUTPUTS
        or max(map(len, links.inputs)) > INPUTS
        or max(links.rooms) > ROOMS
    ):
        return _NO_CHAIN
    chain = Chain(
        np.array([step for step, _ in links.steps], np.int64).reshape(-1, 6),
        np.array([numbers for _, numbers in links.steps], np.float64).reshape(-1, 6),
        np.concatenate([_NO_CHAIN.chain.listed, *links.listed]),
    )
    read_images, read_flags = (tuple(each[1:]) for each in links.inputs)
    made, rooms = (*images, *flags), (links.rooms[0], links.rooms[1])
    return Chained(chain, read_images, read_flags, made, links.values, rooms)


_NO_CHAIN = Chained(
    Chain(np.empty((0, 6), np.int64), np.empty((0, 6)), np.empty(0, np.int32)),
    (),
    (),
    (),
    {},
    (0, 0),
)


def _core(source: Any, values: dict[tuple[str, int], Any]) -> Any:
    """Give a source without the small results that are bound to it, which go into `values`."""
    while isinstance(source, Bound):
        values |= source.values
        source = source.source
    return source


def _part_of(source: Any) -> Part | None:
    """Give what chains know of the kernel of a source; None where they do not."""
    part = PARTS.get(source.kernel) if isinstance(source, Mapped) else None
    if part is None:
        return None
    return part if source.dtype == ("u2" if part.code >= FIRST_OF_FLAGS else "f4") else None


def _planes_of(source: Mapped, links: _Links) -> Iterator[Any]:
    """Yield what the kernel of a source is given as planes, None where it is given none."""
    for each in source.sources:
        if not isinstance(each, Awaited):
            yield _core(each, links.values)


def _count_uses(tops: Sequence[Any], links: _Links) -> None:
    waiting = list(tops)
    while waiting:
        source = waiting.pop()
        links.uses[id(source)] = links.uses.get(id(source), 0) + 1
        if links.uses[id(source)] == 1 and _part_of(source):
            waiting += [each for each in _planes_of(source, links) if each is not None]


def _link(links: _Links, source: Any, place: int) -> None:
    """Add the steps that make a source that is wanted, in the plane of this number."""
    is_flags = source.dtype.kind != "f"
    if links.uses[id(source)] == 1:
        _operand(links, source, is_flags, place)
        return
    made = _operand(links, source, is_flags)
    code, operands = (COPY_FLAGS, [NONE, made]) if is_flags else (COPY, [made, NONE])
    links.steps.append(([code, place, *operands, NONE, NONE], [0.0] * 6))


def _operand(links: _Links, source: Any, is_flags: bool, place: int | None = None) -> int:
    """Give the operand of a source, after adding the steps that make it.

    place: where to make it; None for a room of the work array.
    """
    known = links.found.get((id(source), is_flags))
    if known is not None:
        return known
    part = _part_of(source)
    if part is None or (part.code >= FIRST_OF_FLAGS) != is_flags:
        if source.dtype.kind not in ("ui" if is_flags else "f") or source.dtype.itemsize > 4:
            raise LookupError("kernels would work in another precision")
        links.inputs[is_flags].append(source)
        made = len(links.inputs[is_flags]) - 1
    else:
        if place is None:
            place = PLACES * links.rooms[is_flags]
            links.rooms[is_flags] += 1
        made = place
        _add_steps(links, source, part, place)
    links.found[id(source), is_flags] = made
    return made


def _add_steps(links: _Links, source: Mapped, part: Part, place: int) -> None:
    """Add the steps of the kernel of a source, and those before them."""
    images, flags = [], []
    for each, kind in zip(_planes_of(source, links), part.takes, strict=True):
        if kind == "i":
            images.append(_operand(links, each, False))
        elif each is None:
            flags.append(NONE)
        elif part.marks and not flags and _part_of(each) and links.uses[id(each)] == 1:
            _operand(links, each, True, place)
            flags.append(IN_PLACE)
        else:
            flags.append(_operand(links, each, True))
    is_flags = part.code >= FIRST_OF_FLAGS
    operands = [*(images or [NONE]), *flags] if is_flags else images
    operands = [*operands, NONE, NONE, NONE][:4]
    small = [
        links.values[each.name, links.detector]
        for each in source.sources
        if isinstance(each, Awaited)
    ]
    keywords = dict(source.shared) | {
        name: items[links.detector] for name, items in source.values.items()
    }
    if part.listed is None:
        numbers = [*map(float, part.numbers(*small, **keywords)), *[0.0] * 6][:6]
        links.steps.append(([part.code, place, *operands], numbers))
        return
    for indices, *others in part.listed(*small, **keywords):
        _, width, _, up = others
        ends = np.searchsorted(indices, [(row + up) * width for row in links.rows])
        begin = sum(each.size for each in links.listed)
        links.listed.append(indices[ends[0] : ends[1]])
        numbers = [begin, begin + links.listed[-1].size, *map(float, others)]
        links.steps.append(([part.code, place, *operands], numbers))
        operands[1] = IN_PLACE
