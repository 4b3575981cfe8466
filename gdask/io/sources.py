"""Sources: what gives pixels by window, such as a variable of a file or the result of a kernel.

The order of this module: what a source is; sources that are made of others; blocks that a task was
given. Arrays in files are in `stored`; `chained` reads several sources together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from gdask.io.stored import StoredArray
from gdask.types import Memo, Window


class Source(Protocol):
    """An array (detector, y, x) that gives its pixels by window."""

    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def read(self, detector: int, window: Window, memo: Memo) -> np.ndarray:
        """Give the pixels [y1:y2, x1:x2] of one array (detector from 0), as a plane.

        What the source reads of other sources for this is kept in `memo`, by `read_once`.
        """
        ...


def read_once(source: Source, detector: int, window: Window, memo: Memo) -> np.ndarray:
    """Read a window of a source, or give what the same task has read before.

    Nobody may write into the result.
    """
    key = id(source), detector, window
    if key not in memo:
        memo[key] = source.read(detector, window, memo)
    return memo[key]


def stored_arrays(sources: Sequence[object]) -> list[StoredArray]:
    """Give the variables of files of which these sources are made, each once."""
    found: dict[int, StoredArray] = {}
    waiting = list(sources)
    while waiting:
        source = waiting.pop()
        if isinstance(source, StoredArray):
            found[id(source)] = source
        elif isinstance(source, Mapped):
            waiting += source.sources
        elif isinstance(source, (Bound, Cut)):
            waiting.append(source.source)
    return list(found.values())


# Sources that are made of other sources --------------------------------------------------------


class Mapped(NamedTuple):
    """What a kernel makes of other sources pixel by pixel.

    Attributes
    ----------
    kernel
        A function of planes, one from each of `sources`.
    sources
        The sources; None where the kernel is given None.
    values
        Keyword arguments of the kernel that have one value for each detector.
    shared
        Keyword arguments that are the same for all detectors.
    windowed
        Whether the kernel takes the keyword `window`.
    dtype
        Type of the result.
    """

    kernel: Callable[..., object]
    sources: tuple[Any, ...]
    values: Mapping[str, tuple]
    shared: Mapping[str, Any]
    windowed: bool
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        return next(source.shape for source in self.sources if hasattr(source, "shape"))

    def read(self, detector: int, window: Window, memo: Memo) -> np.ndarray:
        planes = [
            None if source is None else read_once(source, detector, window, memo)
            for source in self.sources
        ]
        keywords = dict(self.shared) | {
            name: items[detector] for name, items in self.values.items()
        }
        if self.windowed:
            keywords["window"] = window
        return np.asarray(self.kernel(*planes, **keywords))

    def prepare(self, detector: int, window: Window, memo: Memo) -> None:
        """Read what is stored in files."""
        if (id(self), detector) in memo:
            return
        memo[id(self), detector] = True
        for source in self.sources:
            if hasattr(source, "prepare"):
                source.prepare(detector, window, memo)


class Awaited(NamedTuple):
    """A small result on which pixels wait, such as the level of an array, by the name of its array.

    The task that reads the pixels is given its value.
    """

    name: str

    def read(self, detector: int, window: Window, memo: Memo) -> Any:
        return memo[self.name, detector]


class Bound(NamedTuple):
    """A source with the values of all that it awaits, by (name, detector)."""

    source: Any
    values: Mapping[tuple[str, int], Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.source.shape

    @property
    def dtype(self) -> np.dtype:
        return self.source.dtype

    def read(self, detector: int, window: Window, memo: Memo) -> np.ndarray:
        memo.update(self.values)
        return self.source.read(detector, window, memo)

    def prepare(self, detector: int, window: Window, memo: Memo) -> None:
        """Read what is stored in files."""
        if hasattr(self.source, "prepare"):
            self.source.prepare(detector, window, memo)


class Cut(NamedTuple):
    """A part of another source.

    `places` has for each detector the (detector, y, x) in the other source of the part's pixel
    (0, 0); `size` is (ny, nx).
    """

    source: Any
    places: tuple[tuple[int, int, int], ...]
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        return (len(self.places), *self.size)

    @property
    def dtype(self) -> np.dtype:
        return self.source.dtype

    def read(self, detector: int, window: Window, memo: Memo) -> np.ndarray:
        return read_once(self.source, *self._place(detector, window), memo)

    def prepare(self, detector: int, window: Window, memo: Memo) -> None:
        """Read what is stored in files."""
        if hasattr(self.source, "prepare"):
            self.source.prepare(*self._place(detector, window), memo)

    def _place(self, detector: int, window: Window) -> tuple[int, Window]:
        number, y, x = self.places[detector]
        y1, y2, x1, x2 = window
        return number, (y1 + y, y2 + y, x1 + x, x2 + x)


class Field(NamedTuple):
    """One of the planes of a source that makes several at once."""

    planes: Any
    number: int
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.planes.shape

    def read(self, detector: int, window: Window, memo: Memo) -> np.ndarray:
        return read_once(self.planes, detector, window, memo)[self.number]


class Blocks(NamedTuple):
    """Blocks of a lazy array that a task was given, as a source.

    `corners` has the (detector, y, x) of each block's first pixel.
    """

    blocks: tuple[np.ndarray, ...]
    corners: tuple[tuple[int, int, int], ...]
    shape: tuple[int, int, int]
    dtype: np.dtype

    def read(self, detector: int, window: Window, memo: Memo) -> np.ndarray:
        y1, y2, x1, x2 = window
        for block, (first, top, left) in zip(self.blocks, self.corners, strict=True):
            _, ny, nx = block.shape
            rows, columns = slice(y1 - top, y2 - top), slice(x1 - left, x2 - left)
            is_in_block = top <= y1 and y2 <= top + ny and left <= x1 and x2 <= left + nx
            if is_in_block and first <= detector < first + block.shape[0]:
                return block[
                    detector - first, rows, columns
                ]  # a view: copying costs as much as reading
        out = np.empty((y2 - y1, x2 - x1), self.dtype)
        for block, (first, top, left) in zip(self.blocks, self.corners, strict=True):
            if not first <= detector < first + block.shape[0]:
                continue
            ya, yb = max(y1, top), min(y2, top + block.shape[1])
            xa, xb = max(x1, left), min(x2, left + block.shape[2])
            if ya < yb and xa < xb:
                plane = block[detector - first]
                out[ya - y1 : yb - y1, xa - x1 : xb - x1] = plane[
                    ya - top : yb - top, xa - left : xb - left
                ]
        return out
