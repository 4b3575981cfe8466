"""The command line: `gdask VERB ...`; the field's verbs are also commands of their own."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Sequence

from gdask import __version__

VERBS = {
    "typewalk": "list the files of a folder with their tags",
    "dataselect": "choose files by tags and descriptors, make lists of them",
    "showd": "show descriptors of files in a table",
    "caldb": "calibration database: add, list, remove, ask why",
    "reduce": "reduce files with a recipe",
    "showpars": "show the parameters of a step for a file",
    "showrecipes": "show the recipes for a file",
    "verify": "check files: checksums, structure, units, WCS, provenance",
    "replay": "make a product again from what it says of itself, and compare",
    "simulate": "write a raw night with known truth",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `gdask VERB ...`; returns the exit code: 0 ok, 1 failed, 2 wrong usage."""
    args = list(sys.argv[1:] if argv is None else argv)
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
            f"gdask: no verb '{verb}'{f', did you mean {close[0]}?' if close else ''}  (gdask --help lists them)",
            file=sys.stderr,
        )
        return 2
    return _load(verb)(args[1:])


def usage() -> str:
    """The text of `gdask --help`."""
    lines = "\n".join(f"  {verb:<12} {about}" for verb, about in VERBS.items())
    return (
        f"usage: gdask VERB [options] ...\n\nReduce Gemini near-infrared imaging (GSAOI, FLAMINGOS-2).\n\n"
        f"verbs (VERB --help tells more; those that DRAGONS has are also commands):\n{lines}\n\n"
        "  --version    show the version\n  --help       show this"
    )


def _load(verb: str) -> Callable[[list[str]], int]:
    """The verb's main. Imported now: a command loads only what it needs."""
    name = f"gdask.cli.{verb}"
    try:
        return importlib.import_module(name).main
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return lambda argv: _absent(verb)


def _absent(verb: str) -> int:
    print(f"gdask: {verb} is not part of this installation", file=sys.stderr)
    return 1
