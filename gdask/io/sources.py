"""Sources: what gives pixels by window. A file's variable is one (`StoredArray`), and so is what follows from others.

Nothing else has to know where pixels live: a task that needs a window asks the source, which reads a file, or calls the
kernels that make these pixels of what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from gdask.io.stored import Memo
from gdask.types import Window


class Source(Protocol):
    """What gives pixels by window."""

    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def read(self, detector: int, window: Window, memo: Memo) -> np.ndarray: ...


class Mapped(NamedTuple):
    """What a kernel makes of other sources pixel by pixel. `values` are its arguments that go by the detector."""

    kernel: Callable[..., np.ndarray]
    sources: tuple[Any, ...]  # None where the kernel is given None
    values: Mapping[str, tuple]
    shared: Mapping[str, Any]
    windowed: bool
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        return next(source.shape for source in self.sources if source is not None)

    def read(self, detector: int, window: Window, memo: Memo) -> np.ndarray:
        planes = [
            None if one is None else read_once(one, detector, window, memo) for one in self.sources
        ]
        given = dict(self.shared) | {name: items[detector] for name, items in self.values.items()}
        if self.windowed:
            given["window"] = window
        return np.asarray(self.kernel(*planes, **given))


class Cut(NamedTuple):
    """A part of another source: for each detector, the other's detector and where its pixel (0, 0) lies there (y, x)."""

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
        number, y, x = self.places[detector]
        y1, y2, x1, x2 = window
        return read_once(self.source, number, (y1 + y, y2 + y, x1 + x, x2 + x), memo)


class Field(NamedTuple):
    """One variable of a source of records."""

    records: Any
    name: str

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.records.shape

    @property
    def dtype(self) -> np.dtype:
        return self.records.dtype[self.name]

    def read(self, detector: int, window: Window, memo: Memo) -> np.ndarray:
        return np.ascontiguousarray(read_once(self.records, detector, window, memo)[self.name])


class Blocks(NamedTuple):
    """Blocks of a lazy array that a task was given, as a source; `corners` are the (detector, y, x) of each block's first
    pixel."""

    blocks: tuple[np.ndarray, ...]
    corners: tuple[tuple[int, int, int], ...]
    shape: tuple[int, int, int]
    dtype: np.dtype

    def read(self, detector: int, window: Window, memo: Memo) -> np.ndarray:
        y1, y2, x1, x2 = window
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


def read_once(source: Source, detector: int, window: Window, memo: Memo) -> np.ndarray:
    """Read a window of a source, or give what the same task has read before. Nobody may write into the result."""
    key = id(source), detector, window
    if key not in memo:
        memo[key] = source.read(detector, window, memo)
    return memo[key]
