"""caldb: the calibration database on the command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from gdask.cal_service import LocalDB, config_text, fits_files, only_database
from gdask.caldb.config import (
    Database,
    database_at,
    open_databases,
    sqlite_path,
)
from gdask.cli import run_command
from gdask.model import GdaskError, clean, clean_lines

DESCRIPTION = """\
Register calibrations, and see which one a frame gets and why.
The database is that of ~/.dragons/dragonsrc (or $DRAGONSRC), section [calibs], \
lines 'databases = PATH get store';
without that, cal_manager.db in the working folder, which needs no set-up."""

EXAMPLES = """\
examples:
  caldb init                           make the database (not needed: it is made when first used)
  caldb add raw/bpm*.fits              register bad-pixel masks
  caldb add calibrations -k            register what is in a folder and below
  caldb list                           what is registered
  caldb why raw/S20170505S0095.fits    which flat and BPM this frame gets, and why not the others
  caldb why FILE flat                  the same for one type
exit code: 0 done, 1 something could not be done, 2 wrong usage"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `caldb`; returns the exit code: 0 done, 1 something could not be done, 2 wrong usage."""
    parser = build_parser()

    def run(options: argparse.Namespace) -> int:
        if options.action is None:
            parser.print_help(sys.stderr)
            return 2
        return options.run(options)

    return run_command(parser, argv, run)


def build_parser() -> argparse.ArgumentParser:
    """The command line of `caldb`."""
    parser = argparse.ArgumentParser(
        prog="caldb",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="action", metavar="VERB")
    verb = _verb(verbs, "init", _init, "make the database")
    verb.add_argument(
        "-w",
        "--wipe",
        action="store_true",
        help="forget everything that is registered (the calibration files stay on disk)",
    )
    verb = _verb(verbs, "add", _add, "register calibration files")
    verb.add_argument(
        "files", nargs="+", metavar="PATH", help="FITS file, or a folder with FITS files"
    )
    verb.add_argument("-k", "--walk", action="store_true", help="look into the folders below, too")
    verb = _verb(verbs, "remove", _remove, "forget calibration files (they stay on disk)")
    verb.add_argument(
        "files",
        nargs="+",
        metavar="NAME",
        help="file name; where several have it, with its folder: the path that 'caldb list' shows",
    )
    _verb(verbs, "list", _list, "what is registered")
    _verb(verbs, "config", _config, "which databases are configured")
    verb = _verb(verbs, "why", _why, "which calibration a frame gets, and why")
    verb.add_argument("file", metavar="FILE", help="a frame: science, standard, flat ...")
    verb.add_argument(
        "type", nargs="?", help="flat, dark, bpm ... (default: every type that the frame can need)"
    )
    return parser


def _verb(
    verbs: argparse._SubParsersAction,
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    verb.add_argument(
        "-c", "--config", metavar="FILE", help="configuration file (default: ~/.dragons/dragonsrc)"
    )
    verb.add_argument(
        "-d",
        "--database",
        metavar="PATH",
        help="this database instead: a file or a postgresql:// URL",
    )
    verb.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="accepted for habit's sake: caldb says what it does",
    )
    verb.set_defaults(run=run)
    return verb


def _databases(options: argparse.Namespace) -> tuple[Database, ...]:
    return (database_at(options.database),) if options.database else open_databases(options.config)


def _init(options: argparse.Namespace) -> int:
    from gdask.caldb.database import init

    database = only_database(_databases(options))
    path = sqlite_path(database)
    existed = path is None or path.exists()
    init(database, options.wipe)
    if options.wipe and existed:
        print(f"{database.name}: wiped, ready")
    elif path is not None and existed:
        print(f"{database.name}: exists, contents kept; 'caldb init -w' forgets them")
    else:
        print(f"{database.name}: ready")
    return 0


def _add(options: argparse.Namespace) -> int:
    database, code = only_database(_databases(options)), 0
    for path in options.files:
        if os.path.isdir(path):
            results = [_add_one(database, file) for file in fits_files(path, options.walk)]
            print(
                f"{path}: {sum(results)} of {len(results)} FITS files are calibrations and "
                "were added"
            )
            code = code if any(results) else 1
        elif not _add_one(database, path):
            code = 1
    return code


def _add_one(database: Database, path: str | os.PathLike[str]) -> bool:
    from gdask.caldb.database import add

    try:
        row = add(database, path)
    except GdaskError as error:
        _print_error(error)
        return False
    print(clean(f"{path}: added to {database.name} as {row['caltype']} of {row['instrument']}"))
    return True


def _remove(options: argparse.Namespace) -> int:
    database, code = LocalDB(only_database(_databases(options))), 0
    for name in options.files:
        try:
            database.remove_cal(name)
            print(f"{os.path.basename(name)}: removed from {database.name}")
        except GdaskError as error:
            code = _print_error(error)
    return code


def _list(options: argparse.Namespace) -> int:
    from gdask.caldb.database import exists, rows

    for database in _databases(options):
        print(clean(f"Database: {database.name}"))
        if not database.url:
            print("  a remote service: never asked")
            continue
        found = rows(database)
        width = max((len(row["name"]) for row in found), default=0)
        for row in found:
            gone = "" if os.path.exists(row["path"]) else "  (gone from disk)"
            print(
                clean(
                    f"{row['name']:<{width}}  {row['caltype']:<19} {row['instrument']:<6} "
                    f"{row['filter_name'] or '-':<10} "
                    f"{row['ut_datetime'] or '-'!s:.10}  {os.path.dirname(row['path'])}{gone}"
                )
            )
        if not found:
            print(
                "There are no files in the database"
                if exists(database)
                else "It does not exist yet"
            )
    return 0


def _config(options: argparse.Namespace) -> int:
    print(clean_lines(config_text(options.config)))
    if options.database:
        print(f"\nInstead, by --database: {database_at(options.database).name}")
    return 0


def _why(options: argparse.Namespace) -> int:
    from gdask.caldb import associate, explain, needed_types, rules_for
    from gdask.headers import read_headers
    from gdask.instruments import tags

    headers = read_headers(options.file)
    found = tags(headers)
    types = (options.type,) if options.type else needed_types(found, rules_for(headers))
    if not types:
        print(f"{options.file}: needs no calibration (tags {' '.join(sorted(found))})")
    answers = [associate(headers, caltype, _databases(options)) for caltype in types]
    for number, answer in enumerate(answers):
        print("\n" * bool(number) + clean_lines(explain(answer, limit=None)))
    missing = [answer for answer in answers if answer.chosen is None]
    # Rules with a note: such a calibration is usually absent.
    return int(any(not (answer.rules and answer.rules.note) for answer in missing))


def _print_error(error: GdaskError) -> int:
    print(clean_lines(f"caldb: {error}"), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
