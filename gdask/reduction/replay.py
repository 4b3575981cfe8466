"""Replay: make a product again from what it says of itself, and compare the two."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gdask.caldb.database import md5_of
from gdask.headers import Unit, each_unit, open_stream
from gdask.io.tables import read_rows
from gdask.model import GdaskError, folders_below, read_text, reason_of, why_no_file
from gdask.reduction.provenance import STAMPS, digest, versions

#: Keywords whose values are times of the reduction, or follow from them.
TIME_KEYWORDS = frozenset(
    {
        *STAMPS.values(),
        "GEM-TLM",
        "DATE",
        "PROCFLAT",
        "PROCDARK",
        "PROCBPM",
        "PROCSCI",
        "CHECKSUM",
        "DATASUM",
    }
)
#: Columns of tables that are times of the reduction.
TIME_COLUMNS = frozenset({"timestamp", "timestamp_start", "timestamp_stop"})


class Account(NamedTuple):
    """What a product says of its reduction."""

    product: str
    recipe: dict[str, str]
    parameters: dict[str, dict[str, object]]
    suffix: str | None
    versions: dict[str, str]
    files: tuple[dict[str, Any], ...]  # role, name, size, md5 of every file that went in
    source: tuple[str, ...]  # the recipe's text, line by line
    left_out: tuple[list[str], ...]
    gates: dict[str, Any] | None = None


class Replayed(NamedTuple):
    """The result of a replay: differences in words (none: the same), and versions that changed."""

    differences: tuple[str, ...]
    versions: tuple[str, ...]


def account_of(product: str | os.PathLike[str]) -> Account:
    """Read what a product says of its reduction; GdaskError if it does not say it."""
    name = os.fspath(product)
    rows = [(row.get("item", ""), row.get("value", "")) for row in read_rows(name, "REDUCTION")]
    if not rows:
        raise GdaskError(
            f"{name}: no table REDUCTION: not a product of gdask's reduce, so it cannot be replayed"
        )
    try:
        values = [(item, json.loads(value)) for item, value in rows]
        single = {
            item: value
            for item, value in values
            if item in ("versions", "recipe", "parameters", "suffix", "gates")
        }
        roles = ("input", "calibration", "user_cal", "file")
        files = tuple({"role": item, **value} for item, value in values if item in roles)
        for file in files:
            if (
                not all(isinstance(file[key], str) for key in ("name", "md5"))
                or os.path.basename(file["name"]) != file["name"]
            ):
                raise ValueError("a file without a name and a checksum")
        layers = {layer: dict(settings) for layer, settings in single["parameters"].items()}
        recipe = {key: str(value) for key, value in single["recipe"].items()}
        source = tuple(row.get("line", "") for row in read_rows(name, "RECIPE"))
        left_out = tuple(value for item, value in values if item == "left_out")
        return Account(
            name,
            recipe,
            layers,
            single["suffix"],
            dict(single["versions"]),
            files,
            source,
            left_out,
            dict(single.get("gates", {})),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise GdaskError(
            f"{name}: table REDUCTION is damaged ({error}); it cannot be replayed"
        ) from error


def find_files(account: Account, folders: Sequence[str]) -> dict[tuple[str, str], str]:
    """Find every file that went in, below these folders; give the paths by (name, md5).

    Raises GdaskError that names each file that is missing or has another checksum.
    """
    wanted = {file["name"] for file in account.files}
    places: dict[str, list[str]] = {}
    for folder in dict.fromkeys(os.path.abspath(folder) for folder in folders):
        for where, names in sorted(folders_below(folder)):
            for name in wanted.intersection(names):
                places.setdefault(name, []).append(os.path.join(where, name))
    found, wrong = {}, []
    for file in account.files:
        paths = places.get(file["name"], [])
        same = next((path for path in paths if md5_of(path) == file["md5"]), None)
        if same:
            found[file["name"], file["md5"]] = same
        elif paths:
            wrong.append(
                f"{file['name']} ({file['role']}): {paths[0]} has another checksum than "
                f"{file['md5']}"
            )
        else:
            size = f"{file['size']} bytes, " if file.get("size") else ""
            wrong.append(f"{file['name']} ({file['role']}): not found ({size}md5 {file['md5']})")
    if wrong:
        where = ", ".join(folders)
        raise GdaskError(
            f"{account.product}: cannot be replayed: "
            + "; ".join(wrong)
            + f"; looked in {where}: name folders with --inputs"
        )
    return found


def replay(
    product: str | os.PathLike[str],
    folders: Sequence[str] = (),
    recipe: str | None = None,
    cluster: str = "threads",
    keep: str | None = None,
) -> Replayed:
    """Run the reduction of a product again and compare what comes out with it.

    Parameters
    ----------
    product
        A product of gdask.
    folders
        Where its inputs and calibrations are looked for, besides the working folder and that of
        the product.
    recipe
        'FILE.py:function', where it was a recipe of the user's. Its text in the product is never
        run: it must be named.
    cluster
        Where to compute, as in `reduce`.
    keep
        Folder for the new product; None: a temporary one, removed in the end.

    Raises
    ------
    GdaskError
        An input is missing or changed, the recipe is another one, or the reduction fails.
    """
    account = account_of(product)
    if Path(keep or "").resolve() == Path(product).resolve().parent and keep:
        raise GdaskError(f"--keep {keep}: the folder of the product itself; name another one")
    name = _recipe_name(account, recipe)
    own = {os.path.dirname(path(product)) for path in (os.path.abspath, os.path.realpath)}
    found = find_files(account, [*folders, ".", *sorted(own)])
    with contextlib.ExitStack() as stack:
        folder = keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="gdask-replay-"))
        os.makedirs(folder, exist_ok=True)
        again = _reduce(account, found, name, cluster, os.path.abspath(folder))
        return Replayed(
            tuple(differences(os.fspath(product), again)),
            tuple(_changed_versions(account.versions)),
        )


def _recipe_name(account: Account, named: str | None) -> str:
    """Give the recipe's name for `reduce`.

    Raises GdaskError where it is a file that the user has not `named`, or one with another text.
    """
    name, function_then = account.recipe.get("name", ""), account.recipe.get("function")
    # A file, by whatever name: no product may name code.
    is_file = bool(name) and not name.isidentifier()
    if is_file and not named:
        raise GdaskError(
            f"{account.product}: made by the recipe {function_then} of a file "
            f"{account.recipe.get('file')}; name it: --recipe FILE.py:{function_then} "
            "(--show-recipe prints its text)"
        )
    if not is_file:
        return name
    path, _, function = str(named).partition(":")
    if problem := why_no_file(path):
        raise GdaskError(f"--recipe {path}: cannot be read ({problem})")
    try:
        text = read_text(path, errors="replace")
    except (OSError, ValueError) as error:
        raise GdaskError(f"--recipe {path}: cannot be read ({reason_of(error)})") from error
    if digest(text) != account.recipe.get("sha256"):
        raise GdaskError(
            f"--recipe {path}: not the file that the product was made with "
            f"(SHA-256 {account.recipe.get('sha256')})"
        )
    return f"{os.path.abspath(path)}:{function or function_then}"


def _reduce(
    account: Account, found: Mapping[tuple[str, str], str], recipe: str, cluster: str, folder: str
) -> str:
    """Make the new product; give its path.

    From the same files, parameters and calibrations, in a folder with a database of its own.
    """
    from gdask import cal_service
    from gdask.reduction.reduce import Reduce

    of_role = {
        role: [file for file in account.files if file["role"] == role]
        for role in ("input", "calibration", "user_cal", "file")
    }
    paths = {
        role: [found[file["name"], file["md5"]] for file in files]
        for role, files in of_role.items()
    }
    given = {
        str(file.get("given")): path
        for file, path in zip(of_role["file"], paths["file"], strict=True)
    }
    layers = {
        layer: {key: given.get(str(value), value) for key, value in settings.items()}
        for layer, settings in account.parameters.items()
    }
    reduction = Reduce()
    reduction.files.extend(paths["input"])
    reduction._left_out_before = [str(row[0]) for row in account.left_out if row]
    reduction.recipename, reduction.cluster, reduction.suffix = (
        recipe,
        os.path.abspath(cluster) if os.path.isfile(cluster) else cluster,
        account.suffix,
    )
    reduction.uparms, reduction.config = layers.get("user", {}), layers.get("config", {})
    reduction.gates = account.gates
    reduction.ucals = {
        str(file.get("kind")): path
        for file, path in zip(of_role["user_cal"], paths["user_cal"], strict=True)
    }
    with _working_folder(folder):
        database = cal_service.set_local_database("replay.db")
        database.init()
        # A file that a parameter names is no calibration of the database's as well.
        named = set(paths["file"])
        for path in paths["calibration"]:
            if path not in named:
                database.add_cal(path)
        reduction.runr()
    names = reduction.output_filenames
    same = os.path.basename(account.product)
    if same not in names and len(names) != 1:
        raise GdaskError(
            f"{account.product}: the reduction gives {', '.join(names) or 'no product'}, "
            "none of this name"
        )
    return os.path.join(folder, same if same in names else names[0])


#: What a replay writes under a name of its own. Products replace what has their name.
_WRITTEN_HERE = (
    *("replay.rc", "replay.db", "replay.db-journal", "replay.db-wal", "replay.db-shm"),
    *(".gdask", "calibrations"),
)


@contextlib.contextmanager
def _working_folder(folder: str) -> Iterator[None]:
    """Work in `folder` inside the `with` block, with its replay.db as the only database."""
    config = Path(folder, "replay.rc")
    for path in (Path(folder, name) for name in _WRITTEN_HERE):
        if path.is_symlink():  # writing would go to what it points at
            raise GdaskError(f"{path}: a symbolic link; remove it, or name another folder")
        problem = why_no_file(path) if path.suffix and path.exists() else ""
        if path.is_file() and path.stat().st_nlink > 1:
            problem = "has another name elsewhere (a hard link)"
        if problem:
            raise GdaskError(f"{path}: {problem}; remove it, or name another folder")
    config.write_text("[calibs]\ndatabases = ./replay.db get\n")
    before = os.environ.get("DRAGONSRC")
    with contextlib.chdir(folder):
        os.environ["DRAGONSRC"] = str(config)
        try:
            yield
        finally:
            if before is None:
                os.environ.pop("DRAGONSRC")
            else:
                os.environ["DRAGONSRC"] = before


def differences(one: str, other: str) -> Iterator[str]:
    """Say what differs between two products; times of the reduction do not count."""
    first, second = _content(one), _content(other)
    if list(first) != list(second):
        yield f"extensions: {', '.join(first)} and {', '.join(second)}"
    for label in (label for label in first if label in second):
        (unit, raw), (twin, again) = first[label], second[label]
        yield from (f"{label}: {text}" for text in _header_differences(unit, twin))
        if raw != again and label.partition(",")[0] in ("HISTORY", "PROVENANCE", "REDUCTION"):
            name = label.partition(",")[0]
            yield from (
                f"{label}: {text}"
                for text in _row_differences(read_rows(one, name), read_rows(other, name))
            )
        elif raw != again:
            if len(raw) == len(again):
                unlike = np.frombuffer(raw, "u1") != np.frombuffer(again, "u1")
                yield f"{label}: {np.count_nonzero(unlike)} of {len(raw)} bytes differ"
            else:
                yield f"{label}: {len(raw)} bytes and {len(again)}"


def _content(path: str) -> dict[str, tuple[Unit, bytes]]:
    """Read each unit of a file and its bytes, by EXTNAME and EXTVER."""
    found = {}
    with open_stream(path) as stream:
        for unit in each_unit(stream, path):
            name = (
                f"{unit.header.get('EXTNAME', 'primary')},{unit.header.get('EXTVER', 1)}"
                if unit.number
                else "primary"
            )
            found[name] = (unit, stream.read(unit.size))
    return found


def _header_differences(one: Unit, other: Unit) -> Iterator[str]:
    """Say which cards differ.

    In tables of texts with times, the widths of columns follow from the texts, and do not count.
    """
    has_times = str(one.header.get("EXTNAME")) in ("HISTORY", "PROVENANCE", "REDUCTION")
    sizes = ("NAXIS1", "NAXIS2", "TFORM") if has_times else ()
    for key in dict.fromkeys([*one.header, *other.header]):
        if key in TIME_KEYWORDS or key.startswith(sizes):
            continue
        pair = [
            repr(str(unit.header[key]) if key in ("HISTORY", "COMMENT", "") else unit.header[key])
            if key in unit.header
            else "nothing"
            for unit in (one, other)
        ]
        if pair[0] != pair[1]:
            yield f"{key} is {pair[0]}, again {pair[1]}"


def _row_differences(
    one: Sequence[Mapping[str, str]], other: Sequence[Mapping[str, str]]
) -> Iterator[str]:
    if len(one) != len(other):
        yield f"{len(one)} rows and {len(other)}"
    for number, (row, twin) in enumerate(zip(one, other), 1):
        if row.get("item") in ("versions", "left_out", "file", "parameters", "recipe"):
            continue  # compared by themselves, or names of places
        for column in row:
            same = _without_folders(row[column]) == _without_folders(twin.get(column, ""))
            if column not in TIME_COLUMNS and not same:
                yield (
                    f"row {number}: {column} is {row[column][:60]}, "
                    f"again {twin.get(column, 'nothing')[:60]}"
                )


def _without_folders(text: str) -> str:
    """Leave the names of the files that a text quotes, without their folders."""
    return re.sub(r'"[^"]*/([^"/]+)"', r'"\1"', text)


def _changed_versions(then: Mapping[str, str]) -> Iterable[str]:
    now = versions()
    for name in dict.fromkeys([*then, *now]):
        if then.get(name) != now.get(name):
            text = f"{name} {then.get(name, '?')} then, {now.get(name, '?')} now"
            other = name == "processors" and name in then
            yield f"made on another kind of processor ({text})" if other else text
