"""The command line, `gdask VERB ...`, and what its commands share.

Shared are lists of files, and a main function that ends with a message and an exit code.
"""

from __future__ import annotations

import argparse
import atexit
import difflib
import glob
import importlib
import json
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from gdask import __version__
from gdask.model import GdaskError, UsageError, clean, clean_lines, owner, why_no_file

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
    "showpars": "show the parameters of a step for a file",
    "showrecipes": "show the recipes for a file",
    "verify": "check files: checksums, structure, units, WCS, provenance",
    "replay": "make a product again from what it says of itself, and compare",
    "warm-up": "compile for this machine what reductions need",
    "simulate": "write a raw night, or a campaign of nights, with known truth",
    "benchmark": "measure how fast this machine reduces a night",
}
#: Bounds of lists: bytes of one, names and lists in all, lists inside each other. They are far
#: above what a reduction can use.
LIST_MAX_BYTES, MAX_NAMES, MAX_LISTS, MAX_LIST_DEPTH = 16 << 20, 200_000, 1000, 20
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


def expand_files(args: Iterable[str], *, stdin: bool = False) -> list[str]:
    """File names from a command line.

    `@LIST` becomes the names in that file, a pattern the files that match it. A list has one name
    per line; blank lines and what follows a # are ignored; it may hold patterns and other @LISTs
    (looked for in the working folder, then beside the list). With `stdin`, no arguments or '-'
    stand for the names that come through a pipe.

    Raises UsageError if a list is missing, contains itself, is no list, or if a pattern matches
    nothing.
    """
    names = list(args)
    if stdin and (not names or "-" in names):
        place = names.index("-") if names else 0
        names[place : place + 1] = _names_from_pipe()
    found: list[str] = []
    opened: list[str] = []
    for name in names:
        _expand_name(name, (), found, opened)
    return found


def _expand_name(name: str, lists: tuple[str, ...], found: list[str], opened: list[str]) -> None:
    """Append the files that one name stands for. `lists`: the lists that it was found in."""
    if "\0" in name:
        raise UsageError(f"{name!r}{_origin(lists)}: not a name of a file")
    if isinstance(name, _Quoted):
        found.append(str(name))
    elif name.startswith("@"):
        _expand_list(name[1:], lists, found, opened)
    elif glob.has_magic(name) and not os.path.exists(name):
        matching = sorted(glob.glob(name))
        if not matching:
            raise UsageError(
                f"no file matches {name}{_origin(lists)}; check the pattern and the folder"
            )
        found += matching
    else:
        found.append(name)
    if len(found) > MAX_NAMES:
        raise UsageError(f"more than {MAX_NAMES} names{_origin(lists)}; give fewer")


def _expand_list(name: str, lists: tuple[str, ...], found: list[str], opened: list[str]) -> None:
    beside = os.path.join(os.path.dirname(lists[-1]), name) if lists else name
    path = name if os.path.exists(name) else beside
    if os.path.realpath(path) in map(os.path.realpath, lists):
        raise UsageError(f"@{name}: the list contains itself ({' -> '.join((*lists, path))})")
    opened.append(path)
    if len(lists) >= MAX_LIST_DEPTH or len(opened) > MAX_LISTS:
        raise UsageError(
            f"@{name}: more than {MAX_LIST_DEPTH} lists inside each other, or {MAX_LISTS} in all; "
            "write one with all names"
        )
    try:
        lines = _list_text(path).splitlines()
    except (OSError, ValueError) as error:
        unread = isinstance(error, UnicodeDecodeError)
        reason = (error.strerror if isinstance(error, OSError) else "") or (
            "not a text file" if unread else str(error)
        )
        raise UsageError(f"@{name}: the list cannot be read{_origin(lists)}: {reason}") from error
    for line in _names_in(lines):
        _expand_name(line, (*lists, path), found, opened)


def _origin(lists: tuple[str, ...]) -> str:
    return f" (named in {lists[-1]})" if lists else ""


def _list_text(path: str) -> str:
    """Text of a list.

    Raises ValueError where it is none: a device, binary, too long, a pipe that has a name.
    """
    problem = why_no_file(path)
    if problem.startswith("not a regular file"):
        raise ValueError(problem)
    with open(path, "rb") as stream:
        content = stream.read(LIST_MAX_BYTES + 1)
    if len(content) > LIST_MAX_BYTES:
        raise ValueError(f"longer than {LIST_MAX_BYTES >> 20} MB")
    return content.decode("utf-8-sig")


def _names_in(lines: Iterable[str]) -> list[str]:
    """Names without comments: a # at the beginning of a line or after a blank.

    A name in double quotes, with escapes as in JSON, is that file and no pattern or list.
    """
    return [name for name in map(_name_in, lines) if name]


def _name_in(line: str) -> str:
    text = line.strip()
    if text.startswith('"'):
        try:
            name, end = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):
            return text.partition(" #")[0].strip()
        if not text[end:].strip() or text[end:].strip().startswith("#"):
            return _Quoted(name)
    return f" {line}".partition(" #")[0].strip()


class _Quoted(str):
    """A name that was in quotes: to be taken as it is."""

    __slots__ = ()


def list_line(name: str) -> str:
    """Give the line of a list, or of a pipe, from which this name is read again.

    Names that would be taken for something else (outer blanks, ` #`, `@`, line breaks, escapes)
    are in double quotes.
    """
    is_plain = name.isprintable() and not name.startswith(("@", '"', "#"))
    return name if is_plain and _names_in([name]) == [name] else json.dumps(name)


def write_list(path: str, about: Iterable[str], names: Iterable[str]) -> None:
    """Write names to a list, after comments; whole or not at all.

    Raises GdaskError, with the name of the list, where it cannot be written.
    """
    lines = [*(f"# {clean(text)}" for text in about), *map(list_line, names)]
    content = "".join(f"{line}\n" for line in lines)
    is_special = os.path.exists(path) and not os.path.isfile(path)  # /dev/stdout, a pipe
    part = path if is_special else f"{os.path.realpath(path)}.{owner()}.part"
    try:
        try:
            with open(part, "w", encoding="utf-8", opener=_open_at_once) as out:
                out.write(content)
            if not is_special:
                os.replace(part, os.path.realpath(path))
        except OSError:
            if not is_special:
                with suppress(OSError):
                    os.unlink(part)
            raise
    except OSError as error:
        raise GdaskError(f"{path}: the list cannot be written ({error.strerror})") from None


def _open_at_once(path: str, flags: int) -> int:
    """Open a file for writing; a pipe that nobody reads is an error, and not waited for."""
    place = os.open(path, flags | (os.O_NONBLOCK if _is_pipe(path) else 0), 0o666)
    os.set_blocking(place, True)
    return place


def _is_pipe(path: str) -> bool:
    return os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode)


def _names_from_pipe() -> list[str]:
    """Names from standard input, none if it is a terminal."""
    return (
        [] if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty() else _names_in(sys.stdin)
    )


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
        # Python flushes at exit: there must be something to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
        print(clean_lines(f"{parser.prog}: {error}"), file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except MemoryError as error:
        print(f"{parser.prog}: {_out_of_memory(error)}", file=sys.stderr)
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
        print(clean_lines(f"{parser.prog}: {what}"), file=sys.stderr)
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
