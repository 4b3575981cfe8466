"""Memory that each kernel takes beyond its inputs and its result: the source of memory.toml.

    python -m benchmarks.scaling.scratch FOLDER

runs the flat and the image recipe on a simulated night in FOLDER (raw/) with one thread, and prints
for each function of a task the most bytes it took beyond inputs and result: for each pixel of its
largest plane, and as a share of its inputs. Linux only (the kernel's own record of a process's
peak, reset before each call).
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

#: Environment in which freed memory goes back to the system at once, so that the peak of a call
#: starts from what is truly in use.
MALLOC_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "MALLOC_ARENA_MAX": "1",
}


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


class ScratchRecord:
    """The call of each function with the largest scratch: rows of scratch, pixels, inputs, result.

    All but the pixels in bytes.
    """

    def __init__(self) -> None:
        self.rows: dict[str, tuple[int, int, int, int]] = {}

    def wrap(
        self, function: Callable[..., object], label: Callable[[dict], str]
    ) -> Callable[..., object]:
        """The function, measured at each call under the label of its keyword arguments."""

        @functools.wraps(function)
        def measured(*args: object, **kwargs: object) -> object:
            reset_peak()
            before = resident_bytes()
            result = function(*args, **kwargs)
            taken = resident_bytes(peak=True) - before
            arrays = [a for a in args if isinstance(a, np.ndarray)]
            pixels = max(
                [a.size for a in arrays if a.dtype != object] + [np.size(np.asarray(result))]
            )
            inputs, gives = sum(size_of(a) for a in arrays), size_of(result)
            row = (taken - gives, pixels, inputs, gives)
            self.rows[label(kwargs)] = max(row, self.rows.get(label(kwargs), row))
            return result

        return measured

    def report(self) -> str:
        """A table, one line for each function."""
        head = "B/pixel", "x inputs", "inputs/px", "result/px", "pixels"
        widths = 8, 8, 9, 9, 9
        titles = " ".join(f"{text:>{width}}" for text, width in zip(head, widths, strict=True))
        lines = [f"{'function':<58} {titles}"]
        for name, (scratch, pixels, inputs, result) in sorted(self.rows.items()):
            lines.append(
                f"{name:<58} {scratch / pixels:8.2f} {scratch / max(inputs, 1):8.2f}"
                f" {inputs / pixels:9.2f} {result / pixels:9.3f} {pixels:9d}"
            )
        return "\n".join(lines)


def _label(function: str, options: dict[str, Any]) -> str:
    """The kernel that a call was given, else the function itself."""
    kernel = options.get("kernel")
    return f"{kernel.__module__}.{kernel.__qualname__}" if kernel else function


def main(folder: str) -> None:
    """Reduce the night in `folder` and print the table."""
    if any(os.environ.get(key) != value for key, value in MALLOC_SETTINGS.items()):
        os.execve(
            sys.executable,
            [sys.executable, "-m", "benchmarks.scaling.scratch", *sys.argv[1:]],
            os.environ | MALLOC_SETTINGS,
        )
    import gdask.io.read
    import gdask.io.write
    import gdask.steps.frames
    import gdask.steps.quality
    import gdask.steps.resample
    import gdask.steps.sky
    import gdask.steps.stack
    from benchmarks.scaling.nights import reduce_night

    record = ScratchRecord()
    for module, name in (
        (gdask.io.read, "_read_block"),
        (gdask.io.write, "_write_block"),
        (gdask.steps.frames, "_call"),
        (gdask.steps.quality, "_packed_saturation"),
        (gdask.steps.resample, "_resample_tile"),
        (gdask.steps.stack, "_stack_tile"),
        (gdask.steps.sky, "_combine_skies"),
        (gdask.steps.sky, "_level"),
        (gdask.steps.sky, "_minus_sky"),
    ):
        label = functools.partial(_label, f"{module.__name__}.{name}")
        setattr(module, name, record.wrap(getattr(module, name), label))
    for _ in range(2):  # the first pass loads or compiles the kernels
        record.rows.clear()
        Path(folder, "cal_manager.db").unlink(missing_ok=True)  # the flat once more
        reduce_night(folder, "threads:1")
    print(record.report())


if __name__ == "__main__":
    main(sys.argv[1])
