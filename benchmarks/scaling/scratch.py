"""Memory that each task takes beyond its inputs and its result: the source of task_memory.toml.

    python -m benchmarks.scaling.scratch FOLDER [f2]

runs the flat and the image recipe on a simulated night in FOLDER (raw/; `f2`: of FLAMINGOS-2, all
its recipes) with one thread, and prints for each function of a task the most that it took beyond
inputs and result, and the size of its result, beside what is declared: in bytes for each pixel of
its largest plane (gdask/io/task_memory.toml), and in MB (for tasks of `gdask.io.gather`, whose
steps declare bytes). Linux only (the kernel's own record of a process's peak, reset before each
call).
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from gdask.io.lazy_arrays import Need

#: Environment in which freed memory goes back to the system at once, so that the peak of a call
#: starts from what is truly in use.
MALLOC_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "MALLOC_ARENA_MAX": "1",
}

#: Bytes that Python and NumPy may take for a while beside any declaration.
SMALL = 3e5


def resident_bytes(peak: bool = False) -> int:
    """Bytes of this process in memory now, or at its peak since `reset_peak`."""
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def reset_peak() -> None:
    """Let the record of this process's peak begin at what is in use now."""
    Path("/proc/self/clear_refs").write_text("5")


def size_of(value: object) -> int:
    """Bytes of an array; of boxed results the bytes of what is in the box."""
    if isinstance(value, np.ndarray):
        return (
            sum(size_of(item) for item in value.ravel()) if value.dtype == object else value.nbytes
        )
    return sum(size_of(item) for item in value) if isinstance(value, tuple) else 64


class Measured(NamedTuple):
    """The call of one function with the largest scratch, in bytes; the declaration has pixels."""

    scratch: float
    result: float
    need: Need

    def exceeds(self) -> bool:
        """Tell whether the call took more than is declared, or its result did."""
        most = self.need.pixels * self.need.item + SMALL
        return self.scratch > self.need.scratch + SMALL or self.result > most


class ScratchRecord:
    """The call of each function with the largest scratch, and the one with the largest result."""

    def __init__(self) -> None:
        self.rows: dict[str, Measured] = {}

    def with_need(
        self, function: Callable[..., object], need: Need, bound: Mapping[str, object]
    ) -> Callable[..., object]:
        """What `gdask.io.lazy_arrays.with_need` gives, measured at each call."""
        call, label = functools.partial(function, **bound), label_of(function, bound)

        @functools.wraps(function)
        def measured(*args: object) -> object:
            reset_peak()
            before = resident_bytes()
            result = call(*args)
            taken = resident_bytes(peak=True) - before
            gives = size_of(result)
            self._add(label, Measured(taken - gives, gives, need))
            return result

        measured.need = need  # type: ignore[attr-defined]
        return measured

    def _add(self, label: str, row: Measured) -> None:
        """Keep the row whose scratch exceeds its declaration the most, with the largest result."""
        old = self.rows.get(label, row)
        worse = max(old, row, key=lambda each: each.scratch / max(each.need.scratch, 1.0))
        result = max(old.result, row.result) if old.need == row.need else worse.result
        self.rows[label] = worse._replace(result=result)

    def report(self) -> str:
        """A table, one line for each function; `!` marks what exceeds its declaration."""
        titles = ("B/pixel", "declared", "MB", "declared", "result", "declared", "pixels")
        lines = [f"{'function':<58} " + " ".join(f"{title:>9}" for title in titles)]
        for name, row in sorted(self.rows.items()):
            scratch, result, need = row
            pixels = need.pixels
            values = (scratch / pixels, need.scratch / pixels, scratch / 1e6, need.scratch / 1e6)
            sizes = (result / pixels, need.item)
            numbers = " ".join(f"{value:9.2f}" for value in (*values, *sizes))
            lines.append(f"{name:<58} {numbers} {pixels:9.0f} {'!' if row.exceeds() else ''}")
        return "\n".join(lines)


def label_of(function: Callable[..., object], bound: Mapping[str, object]) -> str:
    """Module and name of the kernel that a task is given, else of the function itself."""
    inner = bound.get("bound")  # what a task of `gdask.io.gather` hands on
    kernel = inner.get("kernel") if isinstance(inner, Mapping) else None
    kernel = kernel or bound.get("kernel") or bound.get("function") or function
    return f"{kernel.__module__}.{kernel.__qualname__}"  # type: ignore[attr-defined]


def main(folder: str, instrument: str = "gsaoi") -> None:
    """Reduce the night in `folder` and print the table."""
    if any(os.environ.get(key) != value for key, value in MALLOC_SETTINGS.items()):
        os.execve(
            sys.executable,
            [sys.executable, "-P", "-m", "benchmarks.scaling.scratch", *sys.argv[1:]],
            os.environ | MALLOC_SETTINGS | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    from benchmarks.scaling.nights import reduce_f2_night, reduce_night
    from gdask.io import gather, lazy_arrays

    record = ScratchRecord()
    for module in (lazy_arrays, gather):
        module.with_need = record.with_need  # type: ignore[attr-defined]
    for _ in range(2):  # the first pass loads or compiles the kernels
        record.rows.clear()
        Path(folder, "cal_manager.db").unlink(missing_ok=True)  # the flat once more
        (reduce_f2_night if instrument == "f2" else reduce_night)(folder, "threads:1")
    print(record.report())


if __name__ == "__main__":
    main(*sys.argv[1:])
