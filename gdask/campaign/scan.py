"""Which raw files there are, and what each is, from headers alone.

What was read is kept by path, size and time in a cache that can be deleted at any time. Nothing is
written beside the raw files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from gdask.campaign import records
from gdask.campaign.describe import (
    COMPRESSED,
    USED_KINDS,
    RawFile,
    describe,
    plain_name,
    sharing,
)
from gdask.headers import each_unit, is_tiled, open_hdus, open_stream
from gdask.io.checksum import sum_stream
from gdask.model import GdaskError, UsageError, folders_below, read_text, reason_of

log = logging.getLogger("gdask")

#: Names of FITS files, with the compressions that are read.
FITS_NAME = re.compile(r".*\.(fits|fit|fts)(\.(gz|bz2|fz))?$|.*\.fz$", re.IGNORECASE | re.DOTALL)
#: Lists of checksums that the archive puts beside a download.
SUM_LISTS = ("md5sums.txt", "md5sum.txt")
#: Changes when what is kept of a file changes.
CACHE_VERSION = 1
#: More files of the last scan than this share being gone means that a disk is not there.
MAX_GONE = 0.1
#: Files of which what was read is kept at a time.
BATCH = 500
#: What gives the corrected cards of a file.
Corrected = Callable[["RawFile"], Sequence[str]]


class Memory(NamedTuple):
    """What scans know of each other. forgets: files of the last one may be gone. learns: the next
    one misses what is gone of this one."""

    forgets: bool = False
    learns: bool = True


_NOT_APART = "results cannot go into the folder of raw files; give them folders of their own"


def check_apart(places: Sequence[str], out: str) -> None:
    """Raise UsageError where results would go into a folder of raw files itself."""
    if os.path.realpath(out) in map(os.path.realpath, places):
        raise UsageError(f"{out}: {_NOT_APART}")


def scan(
    places: Sequence[str],
    cache: str | os.PathLike[str] | None = None,
    skip: str | os.PathLike[str] | None = None,
    say: Callable[[int, int], None] | None = None,
    corrected: Corrected | None = None,
    memory: Memory = Memory(),  # noqa: B008 (a value)
) -> list[RawFile]:
    """Find the FITS files of folders, or files named, and read their headers.

    Parameters
    ----------
    places
        Folders, which are walked through, and files.
    cache
        SQLite file of what was read before.
    skip
        A folder that is not looked into, but where a place is in it: that of the results.
    say
        Called with (files read, files in all) now and then.
    corrected
        Gives the cards of a file, as KEYWORD=VALUE, that somebody has corrected.
    memory
        What the last scan has to say about this one, and this one about the next.

    Raises
    ------
    UsageError
        A place that does not exist, or no FITS file in any.
    GdaskError
        Many files of the last scan are gone: a disk is probably not mounted.
    """
    paths, listed = find_files(places, skip)
    if not paths:
        if skip and any(_is_below(os.path.realpath(p), os.path.realpath(skip)) for p in places):
            raise UsageError(f"{skip}: {_NOT_APART}")
        raise UsageError(f"{', '.join(places)}: no FITS file there")
    with closing(open_cache(cache)) as kept:
        if not memory.forgets:
            _check_not_gone([path for (path,) in kept.execute("SELECT path FROM seen")], paths)
        files, new, same = [], list[tuple[Any, ...]](), dict[Any, Any]()
        for number, path in enumerate(paths):
            status = os.stat(path)
            found = kept.execute(_FACTS, (path, status.st_size, status.st_mtime_ns)).fetchone()
            if found is None:
                file = describe(path, status)
                facts = json.dumps([*file[3:-1], dict(file.row)])
                new.append((path, file.size, file.mtime_ns, facts))
            else:
                kept_facts = _from_json(json.loads(found[0]))
                file = RawFile(path, status.st_size, status.st_mtime_ns, *kept_facts)
            if corrected and (cards := corrected(file)):
                file = describe(path, status, cards)
            files.append(sharing(file, same))
            if new and len(new) % BATCH == 0:
                _keep(kept, new)
                if say:
                    say(number + 1, len(paths))
        _keep(kept, new)
        if memory.learns:
            _remember(kept, paths)
        files = [_checked_sum(kept, file, listed) for file in files]
        files += [_missing(folder, name) for folder, name in _not_there(listed, paths)]
        return sorted(_with_duplicates(kept, files), key=lambda file: (file.path,))


def _keep(kept: sqlite3.Connection, new: list[tuple[Any, ...]]) -> None:
    """Keep what was read of files, and forget it here."""
    kept.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", new)
    kept.commit()
    new.clear()


def _remember(kept: sqlite3.Connection, paths: Sequence[str]) -> None:
    """Take these files as those that are to be there the next time; what is kept of others goes."""
    kept.execute("DELETE FROM seen")
    kept.executemany("INSERT INTO seen VALUES (?)", ((path,) for path in paths))
    kept.execute("DELETE FROM files WHERE path NOT IN (SELECT path FROM seen)")
    kept.commit()


def unseen_line(places: Iterable[str], out: str | os.PathLike[str]) -> str:
    """Say which FITS files in the folder of results nobody looks at, though a place holds it.

    They are those that no run has put there: raw files, as a rule, that were meant to be found.
    '' where there are none.
    """
    inside = os.path.realpath(out)
    if not any(_is_below(inside, os.path.realpath(place)) for place in places):
        return ""
    own = {
        os.path.join(inside, one["path"])
        for record in records.all_records(inside)
        for one in record.get("products", ())
    }
    found = [
        os.path.join(folder, name)
        for folder, names in folders_below(inside)
        for name in names
        if FITS_NAME.match(name) and not name.startswith(".")
    ]
    hidden = os.path.join(inside, records.HIDDEN)
    lost = sorted(path for path in found if path not in own and not _is_below(path, hidden))
    if not lost:
        return ""
    text = (
        f"{len(lost)} FITS files in {out} are not looked at, such as "
        f"{os.path.relpath(lost[0], inside)}: results go there. If they are raw files, give the "
        "results a folder of their own"
    )
    return text


def find_files(
    places: Iterable[str], skip: str | os.PathLike[str] | None = None
) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Give the paths of FITS files, sorted, once each; and checksums that lists beside them name.

    The second is {folder: {name: MD5}}.
    """
    found: dict[str, str] = {}
    listed: dict[str, dict[str, str]] = {}
    outside = os.path.realpath(skip) if skip else None
    for place in places:
        if not os.path.exists(place):
            raise UsageError(f"{place}: no such file or folder; check the name, or mount the disk")
        if not os.path.isdir(place):
            found.setdefault(os.path.realpath(place), os.path.abspath(place))
            continue
        is_own = outside and _is_below(os.path.dirname(os.path.realpath(place)), outside)
        for folder, names in folders_below(os.path.abspath(place)):
            real = os.path.realpath(folder)
            if outside and _is_below(real, outside) and not is_own:
                continue
            for name in names:
                path = os.path.join(folder, name)
                if FITS_NAME.match(name) and not name.startswith(".") and os.path.exists(path):
                    found.setdefault(os.path.realpath(path), path)
                elif FITS_NAME.match(name) and os.path.islink(path) and not os.path.exists(path):
                    listed.setdefault(folder, {}).setdefault(name, "")
                elif name in SUM_LISTS:
                    listed.setdefault(folder, {}).update(_read_sums(path))
    return sorted(found.values()), listed


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _read_sums(path: str) -> dict[str, str]:
    """Give {name: MD5} of a list as md5sum writes it; lines of another form are passed over."""
    try:
        text = read_text(path, errors="replace")
    except (OSError, ValueError) as error:
        log.warning(
            "%s: cannot be read (%s): no file beside it is compared with it", path, reason_of(error)
        )
        return {}
    pairs = re.findall(r"^([0-9a-f]{32})[ \t]+\*?(?:\./)?([^/\n]+?)[ \t]*$", text, re.MULTILINE)
    return {name: md5 for md5, name in pairs}


# What is kept ----------------------------------------------------------------------------------

_FACTS = "SELECT facts FROM files WHERE path = ? AND size = ? AND mtime_ns = ?"
_HAS_SEEN = "SELECT 1 FROM sqlite_master WHERE name = 'seen'"


def open_cache(path: str | os.PathLike[str] | None) -> sqlite3.Connection:
    """Open the cache; one of another version, or damaged, begins anew. One that is in use waits."""
    for again in (True, False):
        connection = sqlite3.connect(":memory:" if path is None else os.fspath(path), timeout=60)
        try:
            if connection.execute("PRAGMA user_version").fetchone()[0] != CACHE_VERSION:
                connection.executescript(
                    "BEGIN IMMEDIATE; DROP TABLE IF EXISTS files; DROP TABLE IF EXISTS sums;"
                    "DROP TABLE IF EXISTS seen;"
                    "CREATE TABLE files (path TEXT PRIMARY KEY, size, mtime_ns, facts TEXT);"
                    "CREATE TABLE sums (name, size, mtime_ns, what, value,"
                    " PRIMARY KEY (name, size, mtime_ns, what));"
                    f"PRAGMA user_version = {CACHE_VERSION}; COMMIT"
                )
            # A cache of before this table: what is in it was there the last time.
            if not connection.execute(_HAS_SEEN).fetchone():
                connection.executescript(
                    "BEGIN IMMEDIATE; CREATE TABLE IF NOT EXISTS seen (path TEXT PRIMARY KEY);"
                    "INSERT OR IGNORE INTO seen SELECT path FROM files; COMMIT"
                )
            return connection
        except sqlite3.DatabaseError as error:
            connection.close()
            if not again or path is None or isinstance(error, sqlite3.OperationalError):
                raise  # busy, or not to be written: no reason to remove what others use
            os.unlink(path)
    raise AssertionError("unreachable")


def _from_json(values: list[Any]) -> Iterator[Any]:
    return (tuple(value) if isinstance(value, list) else value for value in values)


def _check_not_gone(known: Iterable[str], paths: Sequence[str]) -> None:
    """Raise GdaskError where a folder of the last scan, or a tenth of its files, is gone.

    Files that are now in another folder, or compressed, are not gone.
    """
    names = {plain_name(path) for path in paths}
    before = list(known)
    gone = [path for path in before if plain_name(path) not in names]
    folders = {os.path.dirname(path) for path in gone}
    left = {os.path.dirname(path) for path in before if plain_name(path) in names}
    empty = sorted(folders - left - {os.path.dirname(path) for path in paths})
    if gone and (empty or len(gone) > MAX_GONE * len(before)):
        what = f"all of {empty[0]}" if empty else f"such as {gone[0]}"
        raise GdaskError(
            f"{len(gone)} of the {len(before)} raw files of the last scan are gone, {what}: is a "
            "disk not mounted? If they are really gone, --forget-missing goes on without them"
        )


# Checksums -------------------------------------------------------------------------------------


def data_sums(path: str) -> str:
    """Give the FITS checksums of the data of all units of a file, as one text.

    They are those of the uncompressed file: a file compressed anew has the same. Tile-compressed
    images are taken as the pixels that they hold.
    """
    sums = []
    with open_stream(path) as stream:
        for unit in each_unit(stream, path):
            if is_tiled(unit.header):
                return _sums_of_tiled(path)
            sums.append(sum_stream(stream, unit.size))
    return "-".join(f"{one:08x}" for one in sums)


def _sums_of_tiled(path: str) -> str:
    """The sums of the pixels of images that are compressed in tiles, in the order of FITS bytes."""
    import io

    import numpy as np

    sums = []
    with open_hdus(path, do_not_scale_image_data=True) as units:
        for unit in units:
            data = getattr(unit, "data", None)
            content = b"" if data is None else np.asarray(data, data.dtype.newbyteorder(">"))
            stream = io.BytesIO(bytes(content))
            sums.append(sum_stream(stream, stream.getbuffer().nbytes))
    return "-".join(f"{one:08x}" for one in sums)


def known_sum(cache: str | os.PathLike[str] | None, file: RawFile) -> str:
    """Give `data_sums` of a file, kept by name, size and time: so also of one that was moved."""
    with closing(open_cache(cache)) as kept:
        return _kept_sum(kept, file, "data", lambda: data_sums(file.path))


def _kept_sum(kept: sqlite3.Connection, file: RawFile, what: str, make: Callable[[], str]) -> str:
    key = (os.path.basename(file.path), file.size, file.mtime_ns, what)
    found = kept.execute(
        "SELECT value FROM sums WHERE name = ? AND size = ? AND mtime_ns = ? AND what = ?", key
    ).fetchone()
    if found:
        return str(found[0])
    value = make()
    kept.execute("INSERT OR REPLACE INTO sums VALUES (?, ?, ?, ?, ?)", (*key, value))
    kept.commit()
    return value


def _checked_sum(
    kept: sqlite3.Connection, file: RawFile, listed: dict[str, dict[str, str]]
) -> RawFile:
    """Give the file; as unreadable where a list of checksums beside it names another MD5."""
    folder, name = os.path.split(file.path)
    wanted = listed.get(folder, {}).get(name)
    if wanted is None or file.kind == "unreadable":
        return file

    def md5() -> str:
        with open(file.path, "rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False))
        return digest.hexdigest()

    found = _kept_sum(kept, file, "md5", md5)
    if found == wanted:
        return file
    why = f"its MD5 is {found}, the list beside it says {wanted}; copy the file again"
    return file._replace(kind="unreadable", why=why)


def _not_there(
    listed: dict[str, dict[str, str]], paths: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Give folder and name of FITS files that lists of checksums name and that are not there."""
    names = {os.path.basename(path) for path in paths}
    for folder, sums in sorted(listed.items()):
        for name in sorted(sums):
            plain = COMPRESSED.sub("", name)  # unpacked after the download
            if FITS_NAME.match(name) and not {name, plain} & names:
                yield folder, name


def _missing(folder: str, name: str) -> RawFile:
    path = os.path.join(folder, name)
    why = "named in the list of checksums beside it, and not there; download it again"
    if os.path.islink(path):
        why = f"a link to {os.readlink(path)}, which is not there: is a disk not mounted?"
    return RawFile(path, 0, 0, COMPRESSED.sub("", name), "missing", why)


def _with_duplicates(kept: sqlite3.Connection, files: Sequence[RawFile]) -> Iterator[RawFile]:
    """Mark all but one of the files that hold one exposure; always the same one is left.

    It is the uncompressed one, then the first by name and path. One with other pixels says so.
    """
    by_key: dict[str, list[RawFile]] = {}
    for file in files:
        if file.kind in USED_KINDS:
            by_key.setdefault(file.key, []).append(file)
        else:
            yield file
    for group in by_key.values():
        first, *others = sorted(group, key=_order_of_copies)
        yield first
        for other in others:
            sums = [
                _kept_sum(kept, one, "data", lambda one=one: data_sums(one.path))  # type: ignore[misc]
                for one in (first, other)
            ]
            text = f"the same exposure as {first.path}"
            if sums[0] != sums[1]:
                text += f", but with OTHER pixels (checksums {sums[1]} and {sums[0]}); remove one"
            yield other._replace(kind="duplicate", why=text)


def _order_of_copies(file: RawFile) -> tuple[bool, str, str]:
    base = os.path.basename(file.path)
    return bool(COMPRESSED.search(base)), base, file.path
