"""The account of a run: bytes read and written, CPU seconds, peak memory, by phase and in all.

Bytes are those of the processes' system calls, whether a disk or the page cache gave them: what a
shared file system would have to carry. Beside pixels they hold what is loaded of the code and of
compiled kernels, a few MB once for each process. Reading by memory maps would not be counted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from gdask.cluster import Usage, counters


class PhaseAccount(NamedTuple):
    """What one phase has taken, in all its processes; on workers, without the client.

    seconds: of wall. read, written: bytes. user, system: CPU seconds. memory: most bytes held, by
    all processes together. workers: their number, 0 for threads.
    """

    name: str
    seconds: float
    read: int
    written: int
    user: float
    system: float
    memory: int
    workers: int


class RunAccount(NamedTuple):
    """What a run has taken, in all its processes; workers count while they compute.

    frames: input files. raw: their bytes. product: bytes of the products. The others as in
    PhaseAccount; `memory` is also that between phases.
    """

    frames: int
    raw: int
    product: int
    seconds: float
    read: int
    written: int
    user: float
    system: float
    memory: int
    phases: tuple[PhaseAccount, ...]

    def as_dict(self) -> dict[str, Any]:
        """Give names and numbers, ready for JSON, with rates and bytes per raw byte (0: no raw)."""
        rates = {
            "frames_per_minute": 60 * self.frames / max(self.seconds, 1e-9),
            "raw_bytes_per_second": self.raw / max(self.seconds, 1e-9),
        }
        phases = [one._asdict() | per_raw(one, self.raw) for one in self.phases]
        return self._asdict() | rates | per_raw(self, self.raw) | {"phases": phases}


class Recorder:
    """Keeps the account of a run of these input files from now on."""

    def __init__(self, paths: Sequence[str] = ()) -> None:
        self.frames, self.raw = len(paths), sum(os.path.getsize(path) for path in paths)
        self.phases: list[PhaseAccount] = []
        self._begun, self._before, self._peak_before = time.monotonic(), counters(), peak_memory()

    def seconds(self) -> float:
        """Give the seconds since the beginning."""
        return time.monotonic() - self._begun

    def account(self, products: Sequence[str] = ()) -> RunAccount:
        """Give what has been taken until now, for these products.

        To be asked while workers that this process has started live: the kernel adds the bytes of
        processes that have ended to those of the process that started them.
        """
        own = [now - then for now, then in zip(counters(), self._before, strict=True)]
        away = [one for one in self.phases if one.workers]
        read, written, user, system = (
            mine + sum(getattr(one, name) for one in away)
            for mine, name in zip(own, counters()._fields, strict=True)
        )
        memory = max(
            peak_since(self._peak_before, resident_memory()),
            *(one.memory for one in self.phases),
            0,
        )
        return RunAccount(
            self.frames,
            self.raw,
            sum(os.path.getsize(path) for path in products if os.path.exists(path)),
            self.seconds(),
            int(read),
            int(written),
            user,
            system,
            memory,
            tuple(self.phases),
        )


_CURRENT: ContextVar[Recorder | None] = ContextVar("gdask_account", default=None)


@contextmanager
def recorded(paths: Sequence[str]) -> Iterator[Recorder]:
    """Keep the account of what is computed inside the `with` block from these input files."""
    recorder = Recorder(paths)
    token = _CURRENT.set(recorder)
    try:
        yield recorder
    finally:
        _CURRENT.reset(token)


def raw_bytes() -> int:
    """Give the bytes of the input files of the run that is recorded here; 0 where none is."""
    recorder = _CURRENT.get()
    return recorder.raw if recorder else 0


def record_phase(name: str, seconds: float, usage: Usage) -> None:
    """Add a phase that has ended well to the run that is recorded here, if one is."""
    if recorder := _CURRENT.get():
        recorder.phases.append(
            PhaseAccount(
                name,
                seconds,
                usage.read,
                usage.written,
                usage.user,
                usage.system,
                usage.together or usage.memory,
                usage.workers,
            )
        )


def per_raw(taken: Any, raw: int) -> dict[str, float]:
    """Give the bytes that were read and written (`.read`, `.written`) per raw byte; 0 without."""
    return {f"{name}_per_raw": getattr(taken, name) / raw if raw else 0.0 for name in _BYTES}


_BYTES = ("read", "written")


# Memory ---------------------------------------------------------------------------------------


def resident_memory() -> int:
    """Give the bytes of memory that this process holds now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_memory() -> int:
    """Give the most bytes of memory that this process has ever held; 0 where nothing tells."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration, ValueError):
        return 0


def peak_since(before: int, seen: int) -> int:
    """Give the most bytes held since `peak_memory` was `before`.

    It is exact if that was a new peak of the process; otherwise it is what was `seen`, by looking
    now and then.
    """
    now = peak_memory()
    return now if now > before else seen


# Texts ----------------------------------------------------------------------------------------


def describe_time(seconds: float) -> str:
    """Say '42 s', '7 min' or '3.1 h'."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def describe_usage(usage: Usage) -> str:
    """Say 'read 1.2 GB, wrote 0.4 GB, 1.1 of 6.2 GiB used', and the number of workers if many."""
    return f"{describe_bytes(usage, 0)}, {_memory_text(usage)}"


def describe_phase(usage: Usage, raw: int) -> str:
    """Say what a phase has taken: as `describe_usage`, with bytes per raw byte and CPU seconds."""
    return f"{describe_bytes(usage, raw)}, {_cpu_text(usage)}, {_memory_text(usage)}"


def describe_run(run: RunAccount) -> str:
    """Say in one line what a run has taken."""
    figures = run.as_dict()
    return (
        f"{run.frames} file{'' if run.frames == 1 else 's'} in {run.seconds:.1f} s: "
        f"{figures['frames_per_minute']:.3g} frames/min, "
        f"{figures['raw_bytes_per_second'] / 1e6:.3g} MB/s of raw data; "
        f"{describe_bytes(run, run.raw)}; {_cpu_text(run)}; "
        f"peak memory {run.memory / 2**30:.2f} GiB"
    )


def describe_bytes(taken: Any, raw: int) -> str:
    """Say 'read 3.4 GB (3.2x raw), wrote 30 MB (0.0x raw)'; without raw bytes no ratios."""
    ratios = per_raw(taken, raw)
    read, written = (f" ({ratios[f'{name}_per_raw']:.1f}x raw)" if raw else "" for name in _BYTES)
    return f"read {_bytes_text(taken.read)}{read}, wrote {_bytes_text(taken.written)}{written}"


def _cpu_text(taken: Any) -> str:
    return f"CPU {taken.user:.1f} s user + {taken.system:.1f} s system"


def _memory_text(usage: Usage) -> str:
    workers = f" in the fullest of {usage.workers} workers" if usage.workers > 1 else ""
    return f"{usage.memory / 2**30:.1f} of {usage.limit / 2**30:.1f} GiB used{workers}"


def _bytes_text(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
