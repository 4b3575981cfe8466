"""What was submitted to a batch system, by whom nothing is submitted twice.

Each array has a small file that is written before it is submitted, and again with its id: a command
that is killed in between finds its array in the queue by its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from gdask.campaign.batch import SYSTEMS, Element, Patience, Pbs, Slurm
from gdask.campaign.elsewhere import FOLDER
from gdask.campaign.records import HIDDEN
from gdask.campaign.state import State
from gdask.campaign.tables import write_whole
from gdask.model import GdaskError

#: Name, among the jobs of an array, of the one that comes last and writes the tables.
LAST = "(tables)"


class Array(NamedTuple):
    """One array. file: its own. jobs: of the campaign, by element. id: '' where none is known."""

    file: Path
    system: str
    name: str
    jobs: tuple[str, ...]
    id: str = ""
    is_over: bool = False

    @property
    def folder(self) -> Path:
        """The folder of its submission."""
        return self.file.parent.parent


class Live(NamedTuple):
    """An element that a batch system has."""

    array: Array
    element: Element


def write_array(array: Array) -> None:
    """Write the file of an array, whole or not at all."""
    table = array._asdict() | {"file": array.file.name}
    write_whole(array.file, json.dumps(table, indent=1))


def read_arrays(out: str | Path, with_ended: bool = False) -> list[Array]:
    """Read what was submitted for a campaign, oldest first; without what is known to have ended."""
    found = []
    for path in sorted((Path(out) / HIDDEN / FOLDER).glob("*/arrays/*.json")):
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            array = Array(**table | {"file": path, "jobs": tuple(table["jobs"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise GdaskError(
                f"{path}: cannot be read ({error}): it says what was submitted. Look with squeue "
                "whether anything of it is left, then remove it"
            ) from None
        if with_ended or not array.is_over:
            found.append(array)
    return found


def live_elements(out: str | Path, patience: Patience | None = None) -> list[Live]:
    """Give what batch systems have of a campaign; what has ended is marked so.

    No batch system is asked where nothing was submitted.
    """
    arrays = read_arrays(out)
    found: list[Live] = []
    for system in sorted({array.system for array in arrays}):
        elements = SYSTEMS[system](patience).queued()
        for array in arrays:
            if array.system == system:
                found += _of_array(array, elements)
    return found


def _of_array(array: Array, elements: Iterable[Element]) -> Iterator[Live]:
    own = [one for one in elements if one.name == array.name]
    known = own[0].id if own else array.id
    array = array._replace(id=known, is_over=not own)
    if own and known or array.is_over:
        write_array(array)
    return (Live(array, one) for one in own if one.number < len(array.jobs))


def with_queue(states: Mapping[str, State], live: Iterable[Live]) -> dict[str, State]:
    """Give the states of jobs, with 'waiting', 'queued' and 'running' of those submitted."""
    found = dict(states)
    for one in live:
        job, element = one.array.jobs[one.element.number], one.element
        if job not in found:
            continue
        where = f"{one.array.system} {element.id}_{element.number}"
        word = {"never": "queued"}.get(element.state, element.state)
        reasons: tuple[str, ...] = (where,)
        if element.state == "never":
            reasons = (where, f"cannot start ({element.reason}); gdask run --submit mends that")
        found[job] = State(word, reasons, True)
    return found


def system_of(name: str, patience: Patience | None = None) -> Slurm | Pbs:
    """Give the batch system of a name."""
    return SYSTEMS[name](patience)
