"""warm-up: compile for this machine what reductions need, before the first one."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from gdask.cli import parser_for, run_command

#: Seconds between two looks at what has been compiled.
LOOK_INTERVAL = 0.2


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = parser_for(
        "warm-up",
        "Compile for this machine all functions that recipes need. Without it, the first\n"
        "reductions do so as they go (a minute in all on two cores).\n\n"
        "Compiled code goes where reductions look for it: the folder NUMBA_CACHE_DIR if that is "
        "set,\nelse beside the package if it can be written there (as by an installer, for all "
        "users),\nelse ~/.cache/gdask. Processes and nodes may share a folder, also while it is "
        "written;\nother processors and other versions keep their own code in it. Only people who "
        "are trusted\nshould be able to write there: it is code.",
        "  gdask warm-up\n  gdask warm-up --check\n"
        "  gdask warm-up --folder /shared/gdask-code   (then export "
        "NUMBA_CACHE_DIR=/shared/gdask-code)",
    )
    parser.add_argument("--folder", metavar="DIR", help="put compiled code there")
    parser.add_argument(
        "-j", "--jobs", metavar="N", type=int, help="processes side by side (default: the cores)"
    )
    parser.add_argument(
        "--check", action="store_true", help="compile nothing: code 1 if something is missing"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 all is compiled, 1 something is missing or failed, 2 usage."""
    parser = build_parser()
    return run_command(parser, argv, lambda args: _warm_up(parser, args))


def _warm_up(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.jobs is not None and args.jobs < 1:
        parser.error(f"-j {args.jobs}: expected 1 or more processes")
    if args.folder:
        os.environ["NUMBA_CACHE_DIR"] = os.path.abspath(args.folder)
    from gdask.engine import warm_up
    from gdask.kernels.compiled_files import folder

    listed = warm_up.listed()
    absent = warm_up.missing(listed)
    begun = time.monotonic()
    if absent and not args.check:
        _check_writable(folder())
        _compile(absent, args.jobs or warm_up.process_count(), args.quiet)
        absent = warm_up.missing(listed)
    if not args.quiet:
        kept = len(listed) - len(absent)
        print(
            f"{kept} of {len(listed)} functions are compiled, {time.monotonic() - begun:.0f} s\n"
            f"{folder()}: {_size(folder()) / 1e6:.1f} MB"
        )
        if args.folder:
            print(f"for commands to use it: export NUMBA_CACHE_DIR={os.environ['NUMBA_CACHE_DIR']}")
    if absent and not args.check:
        warm_up.compile_one(absent[0])  # its error says why
    return int(bool(absent))


def _check_writable(folder: Path) -> None:
    """Raise OSError, which names the folder, where nothing can be written there."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f"probe.{os.getpid()}"
    probe.touch()
    probe.unlink()


def _compile(absent: list, jobs: int, quiet: bool) -> None:
    """Compile functions in processes side by side; show how far they are."""
    from gdask.engine import warm_up

    processes = warm_up.start_processes("all", min(jobs, len(absent)))
    shown = 0
    try:
        while any(process.poll() is None for process in processes):
            done = len(absent) - len(warm_up.missing(absent))
            if done > shown and not quiet:
                shown = done
                print(f"compiled {done} of {len(absent)}", flush=True)
            time.sleep(LOOK_INTERVAL)
    finally:
        warm_up.end_processes(processes)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*")) if folder.is_dir() else 0


if __name__ == "__main__":
    sys.exit(main())
