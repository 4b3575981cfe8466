"""Checksums of raw files that jobs elsewhere have computed: one small file for each job.

The cache of a scan has one writer, for databases and many hosts do not go together. A job that runs
in a batch system or on a worker keeps what it computed in a file of its own; the next scan takes it
over.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gdask.campaign.describe import RawFile
from gdask.campaign.records import HIDDEN
from gdask.campaign.scan import data_sums, open_cache
from gdask.io.whole import write_whole
from gdask.model import read_json

#: Folder of these files, below the hidden folder of a campaign.
FOLDER = "sums"


class SharedSums:
    """Checksums of the pixels of raw files, by name, size and time.

    job: whose own file new ones go to. others: jobs whose files are read. given: known already.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        job: str,
        others: Iterable[str] = (),
        given: Mapping[str, str] | None = None,
    ) -> None:
        self._path = Path(out) / HIDDEN / FOLDER / f"{job}.json"
        self._own = _read(self._path)
        self._known = dict(given or {})
        for other in others:
            self._known |= _read(self._path.with_name(f"{other}.json"))
        self._is_new = False

    def of(self, file: RawFile) -> str:
        """Give `scan.data_sums` of a file."""
        name = sum_name(file)
        found = self._own.get(name) or self._known.get(name)
        if found is None:
            found = self._own[name] = data_sums(file.path)
            self._is_new = True
        return found

    def keep(self) -> None:
        """Write what was computed, whole or not at all."""
        if self._is_new:
            write_whole(self._path, json.dumps(self._own))
            self._is_new = False


def sum_name(file: RawFile) -> str:
    """Give by what a checksum is kept: not by the folder, so also of a file that was moved."""
    return json.dumps([os.path.basename(file.path), file.size, file.mtime_ns])


def known_sums(cache: str | os.PathLike[str], files: Iterable[RawFile]) -> dict[str, str]:
    """Give the checksums of files that the cache of the scan has; none is computed."""
    if not os.path.exists(cache):
        return {}
    with contextlib.closing(open_cache(cache)) as kept:
        rows = kept.execute("SELECT name, size, mtime_ns, value FROM sums WHERE what = 'data'")
        all_sums = {json.dumps([*row[:3]]): str(row[3]) for row in rows}
    names = {sum_name(file) for file in files}
    return {name: all_sums[name] for name in names if name in all_sums}


def take_over(out: str | os.PathLike[str], cache: str | os.PathLike[str]) -> None:
    """Put what jobs elsewhere have computed into the cache of the scan."""
    files = sorted((Path(out) / HIDDEN / FOLDER).glob("*.json"))
    rows: list[tuple[Any, ...]] = []
    for path in files:
        rows += [(*json.loads(name), "data", value) for name, value in _read(path).items()]
    if rows:
        with contextlib.closing(open_cache(cache)) as kept:
            kept.executemany("INSERT OR IGNORE INTO sums VALUES (?, ?, ?, ?, ?)", rows)
            kept.commit()


def _read(path: Path) -> dict[str, str]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}
