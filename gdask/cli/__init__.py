"""The command line, `gdask VERB ...`, and what its commands share.

Shared are lists of files, and a main function that ends with a message and an exit code.
"""

from __future__ import annotations

import argparse
import atexit
import difflib
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from gdask import logutils
from gdask.model import GdaskError, UsageError, clean

VERBS = {
    "typewalk": "list the files of a folder with their tags",
    "dataselect": "choose files by tags and descriptors, make lists of them",
    "showd": "show descriptors of files in a table",
    "caldb": "calibration database: add, list, remove, ask why",
    "reduce": "reduce files with a recipe",
    "run": "reduce whole nights: folders of raw files in, stacks out",
    "plan": "show the plan of a campaign, pin a job of it",
    "status": "show how a campaign stands",
    "why": "say what a file was used for, what a product was made of",
    "flag": "say what is wrong with a file of a campaign",
    "report": "write pages about a campaign or products, for a browser",
    "show": "make a picture of a file: raw, calibration or product",
    "showpars": "show the parameters of a step for a file",
    "showrecipes": "show the recipes for a file",
    "regions": "write the catalogue of a product as a region file of ds9",
    "verify": "check files: checksums, structure, units, WCS, provenance",
    "replay": "make a product again from what it says of itself, and compare",
    "warm-up": "compile for this machine what reductions need",
    "simulate": "write a raw night, or a campaign of nights, with known truth",
    "benchmark": "measure how fast this machine reduces a night",
}
EXIT_CODES = (
    "exit code: 0 done; 1 failed, or something was left out; 2 wrong usage: nothing was done"
)


#: Seconds after which a signal comes again that cannot be heeded at once.
_SIGNAL_DELAY = 0.05


def main(argv: Sequence[str] | None = None) -> int:
    """Run `gdask VERB ...`; returns the exit code: 0 ok, 1 failed, 2 wrong usage."""
    if argv is None:
        _begin_program()
    try:
        return _run_verb(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:
        return 0
    finally:
        flush_quietly()


def _run_verb(args: list[str]) -> int:
    """Run the verb that the arguments begin with, or print the help or the version."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage(), file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        from gdask import __version__

        print(f"gdask {__version__}")
        return 0
    verb = args[0]
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        print(
            f"gdask: no verb '{verb}'{f', did you mean {close[0]}?' if close else ''}  (gdask "
            "--help lists them)",
            file=sys.stderr,
        )
        return 2
    return _command_of(verb)(args[1:])


def usage() -> str:
    """The text of `gdask --help`."""
    lines = "\n".join(f"  {verb:<12} {about}" for verb, about in VERBS.items())
    return (
        "usage: gdask VERB [options] ...\n\nReduce Gemini near-infrared imaging (GSAOI, "
        "FLAMINGOS-2).\n\n"
        f"verbs (VERB --help tells more; those that DRAGONS has are also commands):\n{lines}\n\n"
        "  --version    show the version\n  --help       show this"
    )


def _command_of(verb: str) -> Callable[[list[str]], int]:
    """The main function of a verb. Imported now: a command loads only what it needs."""
    name = f"gdask.cli.{verb.replace('-', '_')}"
    try:
        return importlib.import_module(name).main
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return lambda argv: _report_absent(verb)


def _report_absent(verb: str) -> int:
    print(f"gdask: {verb} is not part of this installation", file=sys.stderr)
    return 1


def existing_file(path: str) -> str:
    """The path of a file named on the command line; UsageError where there is no such file."""
    if not os.path.exists(path):
        raise UsageError(f"{path}: no such file; check the name and the folder")
    return path


def split_commas(values: Iterable[str] | None) -> list[str]:
    """Parts of comma-separated arguments."""
    return [part.strip() for value in values or () for part in value.split(",") if part.strip()]


def flush_quietly() -> None:
    """Write out what has been printed; where nobody reads it (`| head`), leave it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        logutils.leave_closed_pipe()


def run_command(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    command: Callable[[argparse.Namespace], int],
) -> int:
    """Parse the command line, run the command, return its exit code.

    The code is 0 ok, 1 failed, 2 wrong usage. A GdaskError or OSError becomes a message; a closed
    pipe (`| head`) ends quietly; Ctrl-C gives 130, SIGTERM 143.
    """
    if argv is None:
        _begin_program()
    try:
        options = parser.parse_args(argv)
        with _terminated_in_order(at_exit=_PROGRAM["begun"]):
            code = command(options)
            sys.stdout.flush()
        return code
    except SystemExit as leave:  # argparse has printed the help or the error
        return int(leave.code or 0)
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt as stop:
        by = f" by {stop.args[0]}" if stop.args else ""
        print(
            f"{parser.prog}: stopped{by}; unfinished products are discarded, the same command "
            "again goes on from the last phase"
            if parser.prog == "reduce"
            else f"{parser.prog}: stopped{by}",
            file=sys.stderr,
        )
        return 128 + (signal.SIGTERM if stop.args else signal.SIGINT)
    except GdaskError as error:
        logutils.say(f"{parser.prog}: {error}", at_fault=True)
        return 2 if isinstance(error, UsageError) else 1
    except MemoryError as error:
        logutils.say(f"{parser.prog}: {_out_of_memory(error)}", at_fault=True)
        return 1
    except UnicodeEncodeError as error:
        print(
            f"{parser.prog}: {clean(error.object)[:200]}: a name or text that is not valid UTF-8; "
            "rename the file or folder",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        what = (
            f"{error.filename}: {error.strerror}"
            if error.filename and error.strerror
            else str(error)
        )
        logutils.say(f"{parser.prog}: {what}", at_fault=True)
        return 1
    finally:
        flush_quietly()


def _out_of_memory(error: MemoryError) -> str:
    """Say in one line what limits memory, and what to do."""
    from gdask.cluster import memory_limit

    limit, detail = memory_limit(), f" ({error})" if str(error) else ""
    return (
        f"out of memory{detail}; {limit.size / 2**30:.2f} GiB are allowed by {limit.source}; "
        "raise that limit, or give a smaller --memory, with which less runs at a time"
    )


#: Whether this process is a command and ends with it; not so in tests and notebooks.
_PROGRAM = {"begun": False}


def _begin_program() -> None:
    if not _PROGRAM["begun"]:
        _read_names_as_utf8()
        _PROGRAM["begun"] = True
        atexit.register(_ignore_signals)  # the first to be registered is the last to be called


def _read_names_as_utf8() -> None:
    """Start this command anew where Python reads names of files as ASCII, with names as UTF-8.

    Names with other letters are bytes then that fit no log, database or product.
    """
    is_ascii = sys.getfilesystemencoding().replace("-", "").lower() in ("ascii", "usascii")
    if is_ascii and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        words = [word for word in sys.orig_argv[1:] if word != "utf8=0"]
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *words])


@contextmanager
def _terminated_in_order(at_exit: bool) -> Iterator[None]:
    """Inside, SIGTERM acts like Ctrl-C: what was begun is discarded on the way out.

    Behind it the handlers are as before or, where the process ends then (`at_exit`), those of
    `_leave`.

    Batch systems and shutdowns send it. A signal that comes while LLVM calls back, when compiled
    code is made or loaded, comes again a little later: an exception there is printed and lost.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if _is_called_back(frame):
            again = threading.Timer(_SIGNAL_DELAY, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        raise KeyboardInterrupt("SIGTERM")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A connection to the database that a signal breaks is told by SQLAlchemy with a traceback,
    # where nobody listens to it. What it raises is told by the command.
    logging.getLogger("sqlalchemy").addHandler(logging.NullHandler())
    before = {number: signal.signal(number, stop) for number in _stopping_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, _leave if at_exit else handler)


def _leave(number: int, _: FrameType | None) -> None:
    """End at once, with the code of a signal: what was to be done is done, or discarded."""
    os._exit(128 + number)


def _ignore_signals() -> None:
    """Let the interpreter end as it would: it takes its handlers away before it has ended."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _stopping_signals() -> list[signal.Signals]:
    """Give the signals that stop a command; not Ctrl-C where it is ignored, as under nohup."""
    ignored = signal.getsignal(signal.SIGINT) != signal.default_int_handler
    return [signal.SIGTERM] if ignored else [signal.SIGTERM, signal.SIGINT]


def _is_called_back(frame: FrameType | None) -> bool:
    """Tell whether code is running that LLVM has called."""
    while frame is not None:
        if frame.f_code.co_filename.endswith("executionengine.py"):
            return True
        frame = frame.f_back
    return False


def parser_for(prog: str, description: str, examples: str) -> argparse.ArgumentParser:
    """An argument parser whose help shows the description and the examples as they are written."""
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=f"examples:\n{examples}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=True,
    )
