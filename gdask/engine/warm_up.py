"""Compile ahead of need: all at once for an installation, or in the background of a reduction.

kernels.toml lists the compiled functions that recipes call, with the types of their arguments, in
the order in which a night needs them. `benchmarks/kernel_list.py` writes it.

Compiling holds one lock in each process, so that several processes share the list: each takes what
no other has taken (`gdask.kernels.compiled`). The reduction itself waits for what is being compiled
and compiles what nobody has begun.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from gdask.kernels.compiled import ACCOUNT, by_name, types_of
from gdask.kernels.compiled_files import Use, is_claimed, is_kept, release_all

log = logging.getLogger("gdask")

LIST = Path(__file__).with_name("kernels.toml")
#: Processes that compile at most: more would wait for the longest function.
MOST_PROCESSES = 4
#: Seconds between two looks of a background process at whether its reduction still lives.
PARENT_INTERVAL = 0.2


def listed(recipes: str = "all") -> list[Use]:
    """Give the compiled functions that a module of recipes needs, in order; 'all' for all."""
    with open(LIST, "rb") as file:
        kernels = tomllib.load(file)["kernel"]
    return [
        Use(kernel["module"], kernel["function"], kernel["types"])
        for kernel in kernels
        if recipes == "all" or recipes in kernel["recipes"]
    ]


def missing(uses: Sequence[Use]) -> list[Use]:
    """Give those of the functions that are not compiled for this machine."""
    return [use for use in uses if not is_kept(use)]


def compile_one(use: Use) -> None:
    """Compile a function for some types, or load it where it is kept."""
    by_name(use.module, use.function).dispatcher.compile(types_of(use.types))


def compile_listed(uses: Sequence[Use], report: Callable[[Use], None]) -> None:
    """Compile functions in order, first those that no other process has begun.

    `report` is called with each as it is done.
    """
    begun = []
    for use in uses:
        if is_kept(use):
            continue
        if is_claimed(use):
            begun.append(use)
            continue
        compile_one(use)
        report(use)
    for use in begun:
        if not is_kept(use):
            compile_one(use)
            report(use)


def process_count() -> int:
    """Give the number of processes that compile side by side on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, MOST_PROCESSES)


def start_processes(recipes: str, count: int) -> list[subprocess.Popen[bytes]]:
    """Start processes that compile what a module of recipes needs; they end with this process."""
    command = [sys.executable, "-m", __name__, str(os.getpid()), recipes]
    return [
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(count)
    ]


@contextmanager
def in_background(recipes: str) -> Iterator[None]:
    """Compile what a module of recipes needs and this machine lacks, beside the `with` block.

    At its end what is still being compiled is given up, and the log says what compiling has cost.
    '' needs nothing.
    """
    if not recipes:
        yield
        return
    processes: list[subprocess.Popen[bytes]] = []
    # Not in a thread: two threads that import numba at once may wait for each other for ever.
    with suppress(Exception):  # without it, everything is compiled when it is needed
        if missing(listed(recipes)):
            processes = start_processes(recipes, process_count())
    try:
        yield
    finally:
        end_processes(processes)
        ACCOUNT.report()


def end_processes(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes of `start_processes`, and give up what they had begun."""
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
        release_all(process.pid)


def _main(parent: str, recipes: str) -> None:
    """Compile what recipes need, as a process of its own that ends with its parent.

    Its priority is not lower: the reduction waits for what it has begun.
    """

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(PARENT_INTERVAL)
        release_all(os.getpid())
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    compile_listed(listed(recipes), lambda use: None)


if __name__ == "__main__":
    _main(*sys.argv[1:])
