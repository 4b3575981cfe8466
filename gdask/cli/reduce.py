"""reduce: raw files in, products out."""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gdask import logutils
from gdask.cli import parser_for, run_command
from gdask.cli.lists import expand_files
from gdask.model import clean, read_text

if TYPE_CHECKING:
    from gdask.reduction.reduce import Reduce


#: Options of DRAGONS' that are refused: the reason, and a value that asks for nothing else.
_NOT_OFFERED = {
    "drpkg": (
        "gdask's recipes are its own; a recipe from a file is given with -r FILE.py:FUNCTION",
        "geminidr",
    ),
    "adpkg": (
        "gdask reads GSAOI and FLAMINGOS-2 by rules of its own; docs/extending.md adds others",
        "gemini_instruments",
    ),
    "upload": ("gdask sends nothing anywhere; leave the option out", ""),
    "local_db_dir": ("name the database in dragonsrc, under [calibs]; caldb config shows it", ""),
}


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = parser_for(
        "reduce",
        "Reduce a list of files with the recipe that fits the first one.",
        "  reduce @flats.list\n  reduce @science.list -r checkWCS\n"
        "  reduce @science.list -p skyCorrect:offset_sky=False prepare:bad_wcs=fix",
    )
    parser.add_argument("files", nargs="*", help="FITS files, or @FILE for a list of them")
    parser.add_argument(
        "-r", "--recipe", metavar="NAME", default="default", help="recipe name, or FILE.py:FUNCTION"
    )
    parser.add_argument(
        "-p",
        "--param",
        metavar="PAR=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="parameters: par=value for every step that has it, step:par=value for one step",
    )
    parser.add_argument(
        "--user_cal",
        metavar="KIND:FILE",
        nargs="+",
        action="extend",
        default=[],
        help="calibrations to use instead of the database's, e.g. processed_flat:FILE",
    )
    parser.add_argument("--suffix", help="suffix of the last product, e.g. _mine")
    parser.add_argument(
        "-c", "--config", metavar="FILE", help="TOML file of parameters, overridden by -p"
    )
    parser.add_argument(
        "--gates", metavar="FILE", help="TOML file of limits of a product's numbers (gates.toml)"
    )
    _add_run_options(parser)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    """Options of how the reduction runs: where, with what memory and log."""
    parser.add_argument(
        "--cluster",
        metavar="SPEC",
        default="threads",
        help=(
            "where to compute: threads[:N], processes[:N], tcp://host:port, a scheduler file, "
            "slurm, pbs, ssh:hosts, FILE.yaml"
        ),
    )
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="most memory of each worker, such as 2GiB (default: from the machine)",
    )
    parser.add_argument(
        "--performance-report",
        metavar="FILE",
        help="write what the time was spent on, as a page for a browser (needs bokeh)",
    )
    parser.add_argument(
        "--account",
        metavar="FILE",
        help="write what the run took, by phase, as JSON: bytes, CPU seconds, memory",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="write report/ in the working folder: pages with numbers and pictures of its products",
    )
    parser.add_argument(
        "--preview", action="store_true", help="write a picture beside each product: NAME.png"
    )
    parser.add_argument(
        "--strict", action="store_true", help="stop at the first frame that would be left out"
    )
    parser.add_argument("--logfile", default="reduce.log", help="log file (default: reduce.log)")
    parser.add_argument(
        "--logmode",
        choices=tuple(logutils.MODES),
        help="what is shown on the screen: standard, quiet (only warnings and errors), debug "
        "(more), null (nothing but products and what was left out)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="as --logmode quiet")
    parser.add_argument("--debug", action="store_true", help="as --logmode debug")
    parser.add_argument("-V", "-v", "--version", action="store_true", help="show the version")
    # Options of DRAGONS' that are refused, or say what is so anyway.
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    for option in _NOT_OFFERED:
        parser.add_argument(f"--{option}", nargs="*", help=argparse.SUPPRESS)
    for mode in ("--qa", "--ql"):
        parser.add_argument(mode, action="store_true", help=argparse.SUPPRESS)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 1 failed or frames left out, 2 usage."""
    parser = build_parser()
    code = run_command(parser, argv, lambda args: _reduce(parser, args))
    if argv is None:
        gc.freeze()  # the process ends: Python would look for garbage first, 0.2 CPU s
    return code


def _reduce(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.version:
        from gdask import __version__

        print(f"gdask {__version__}")
        return 0
    _check_peers_options(parser, args)
    if not args.files:
        taken = next(
            (text for text in (*args.param, *args.user_cal) if "=" not in text and ":" not in text),
            None,
        )
        parser.error(
            "no files; give file names or @LIST"
            + (f", before -p and --user_cal: {taken} was taken for one of these" if taken else "")
        )
    from gdask import params
    from gdask.model import UsageError
    from gdask.reduction.reduce import Reduce

    _load()

    logutils.config(args.logfile, args.logmode, tells_at_end=True)
    reduction = Reduce()
    reduction.files.extend(expand_files(args.files))
    if not reduction.files:
        raise UsageError(f"{' '.join(args.files)}: names no file; the list is empty")
    reduction.recipename, reduction.suffix, reduction.cluster, reduction.strict = (
        args.recipe,
        args.suffix,
        args.cluster,
        args.strict,
    )
    reduction.memory, reduction.performance_report = args.memory, args.performance_report
    reduction.gates = args.gates
    reduction.uparms = params.parse_pairs(args.param)
    reduction.ucals = [_calibration(text) for text in args.user_cal]
    reduction.config = params.read_config(args.config) if args.config else {}
    if args.account:
        _check_writable(args.account)
    cause = ""
    try:
        reduction.runr()
    except BaseException as error:
        cause = "" if isinstance(error, UsageError) else str(error) or type(error).__name__
        raise
    finally:
        _print_products(reduction)
        if args.report and (cause or reduction.output_filenames):
            _write_report(args, reduction, cause)
    if args.preview:
        _write_previews(reduction.output_filenames)
    if args.account and reduction.account:
        figures = reduction.account.as_dict() | {"left_out": len(reduction.set_aside)}
        Path(args.account).write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if reduction.set_aside else 0


def _write_report(args: argparse.Namespace, reduction: Reduce, cause: str) -> None:
    """Write the report of the working folder, also of a run that failed; never an error."""
    from gdask.model import GdaskError
    from gdask.report import write_report
    from gdask.report.folder import run_facts

    account = reduction.account.as_dict() if reduction.account else {}
    run = run_facts(
        sys.argv[1:],
        reduction.files,
        recipe=args.recipe,
        cause=cause,
        log=_last_lines(args.logfile),
        account=account,
        products=reduction.output_filenames,
        left_out=reduction.set_aside,
    )
    raw = {Path(name).name: name for name in reduction.files}
    try:
        page = write_report(".", runs=(run,), raw=raw, say=logutils.say)
        logutils.say(page)
    except (GdaskError, OSError) as error:
        logutils.say(f"reduce: the report was not written: {error}", at_fault=True)


def _last_lines(path: str, most: int = 12) -> list[str]:
    """Give the last lines of the log; none where it cannot be read."""
    try:
        text = read_text(path, errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-most:]


def _check_peers_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with an error where an option of DRAGONS' asks for what gdask does not have."""
    mode = "qa" if args.qa else "ql" if args.ql else args.mode or "sq"
    if mode != "sq":
        parser.error(
            f"mode {mode}: --mode, --qa and --ql: not offered: gdask has one mode, science quality "
            "(sq); leave the option out"
        )
    for option, (why, same) in _NOT_OFFERED.items():
        given = getattr(args, option)
        if given is not None and given != [same]:
            parser.error(f"{' '.join([f'--{option}', *given])}: not offered: {why}")
    asked = {word for word in ("quiet", "debug") if getattr(args, word)} | {args.logmode} - {None}
    if len(asked) > 1:
        parser.error(f"{' and '.join(sorted(asked))}: two log modes; give one")
    args.logmode = asked.pop() if asked else "standard"


def _load() -> None:
    """Load what every reduction needs, without looking for garbage in it (a fifth of the time)."""
    gc.disable()
    try:
        importlib.import_module("gdask.io.dask_internals").load_dask_array()
        importlib.import_module("gdask.reduction.run")
        importlib.import_module("gdask.reduction.recipe_library").libraries()
        gc.freeze()
    finally:
        gc.enable()


def _check_writable(path: str) -> None:
    """Raise UsageError, before any work, where the file of the account cannot be written."""
    from gdask.model import UsageError

    try:
        with open(path, "a"):
            pass
    except OSError as error:
        raise UsageError(f"--account {path}: cannot be written ({error.strerror})") from None


def _calibration(text: str) -> tuple[str, str]:
    from gdask.model import UsageError

    kind, colon, path = text.partition(":")
    if not colon:
        raise UsageError(
            f"--user_cal {text}: expected KIND:FILE, such as "
            "processed_flat:S20170505S0030_flat.fits"
        )
    return kind, path


def _write_previews(products: list[str]) -> None:
    """Write a picture beside each product; one that cannot be made is told, and costs nothing."""
    from gdask.model import GdaskError
    from gdask.plot.show import write_preview

    for product in products:
        try:
            print(clean(write_preview(product)))
        except (GdaskError, OSError) as error:
            logutils.say(f"reduce: no preview of {product}: {error}", at_fault=True)


def _print_products(reduction: Reduce) -> None:
    """Print what was made, and a table of what was left out, where, and why."""
    for name in reduction.output_filenames:
        print(clean(name))
    left_out = [(clean(name), step, clean(reason)) for name, step, reason in reduction.set_aside]
    rows = [("file", "left out at", "because"), *left_out]
    if len(rows) > 1:
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        lines = [f"{name:{first}}  {step:{second}}  {reason}" for name, step, reason in rows]
        logutils.say("", at_fault=True)
        logutils.say("\n    ".join([f"{len(rows) - 1} left out:", *lines]), at_fault=True)


if __name__ == "__main__":
    sys.exit(main())
