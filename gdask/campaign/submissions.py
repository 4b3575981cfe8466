"""What was submitted to a batch system, by whom nothing is submitted twice.

Each array has a small file that is written before it is submitted, and again with its id: a command
that is killed in between finds its array in the queue by its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from gdask.campaign.batch import SYSTEMS, Element, Patience, Pbs, Slurm, user_name
from gdask.campaign.elsewhere import FOLDER
from gdask.campaign.records import HIDDEN
from gdask.campaign.state import State
from gdask.io.whole import write_whole
from gdask.model import GdaskError, read_json

#: Name, among the jobs of an array, of the one that comes last and writes the tables.
LAST = "(tables)"


class Array(NamedTuple):
    """One array. file: its own. jobs: of the campaign, by element. id: '' where none is known.

    user: who submitted it; where: name of the cluster whose batch system has it.
    """

    file: Path
    system: str
    name: str
    jobs: tuple[str, ...]
    user: str
    where: str
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
            table = read_json(path)
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
    for name in sorted({array.system for array in arrays}):
        system, own = SYSTEMS[name](patience), [one for one in arrays if one.system == name]
        here = system.where()
        for array in own:
            if array.where != here:
                raise GdaskError(
                    f"{array.folder}: submitted on the cluster {array.where}, and this is {here}; "
                    "type it there, or wait until all of that has ended and remove the folder"
                )
        for user in sorted({array.user for array in own}):
            elements = system.queued(user)
            for array in own:
                if array.user == user:
                    found += _of_array(array, elements)
    return found


def _of_array(array: Array, elements: Iterable[Element]) -> Iterator[Live]:
    """Give the elements of an array that there are, and write what is new of it.

    Of another user's array it is not certain that all of it is seen.
    """
    own = [one for one in elements if one.name == array.name]
    now = array._replace(
        id=own[0].id if own else array.id, is_over=not own and array.user == user_name()
    )
    if now != array:
        write_array(now)
    return (Live(now, one) for one in own if one.number < len(array.jobs))


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


def last_ends(out: str | Path, names: Iterable[str], system: Slurm | Pbs) -> dict[str, str]:
    """Give how the last element of each job has ended, where the site keeps account of it."""
    last: dict[str, tuple[str, int]] = {}
    for array in read_arrays(out, with_ended=True):
        if array.id and array.system == system.name:
            last |= {job: (array.id, number) for number, job in enumerate(array.jobs)}
    wanted = {name: last[name] for name in names if name in last}
    ends = system.ended(sorted({id_ for id_, _ in wanted.values()}))
    return {name: ends[place] for name, place in wanted.items() if place in ends}
