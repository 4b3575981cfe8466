"""Lists that hold calibrations beside what needs them: what to do first, in words."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable

from gdask.instruments import tags
from gdask.model import GdaskError
from gdask.types import Frame, Frames

#: Kinds of files in the order in which they are dealt with: name, tags that they have and have
#: not, and how `dataselect` chooses them.
_KINDS: tuple[tuple[str, set[str], set[str], str], ...] = (
    ("bad-pixel masks", {"BPM"}, set(), ""),
    ("darks", {"DARK", "RAW"}, set(), "--tags DARK"),
    ("flats", {"FLAT", "RAW"}, {"DARK"}, "--tags FLAT"),
    ("images", {"IMAGE", "RAW"}, {"CAL"}, "--tags IMAGE --xtags CAL"),
)


def what_to_do_first(frames: Frames, kept: Frames) -> str:
    """Say in which order a list is reduced that holds several kinds of files; '' for one kind.

    frames: all that could be opened; kept: those that the recipe takes.
    """
    taken = {frame.attrs["path"] for frame in kept}
    kinds = [(name, _of_kind(frames, has, lacks), how) for name, has, lacks, how in _KINDS]
    present = [(name, found, how) for name, found, how in kinds if found]
    if len(present) < 2 or all(f.attrs["path"] in taken for _, found, _ in present for f in found):
        return ""
    counts = ", ".join(f"{len(found)} {name}" for name, found, _ in present)
    lines = [f"the list holds several kinds of files ({counts}); one is reduced at a time:"]
    for name, found, how in present:
        now = "  (this run)" if any(f.attrs["path"] in taken for f in found) else ""
        lines.append(f"    {_command(name, found, how)}{now}")
    return "\n".join(lines)


def _of_kind(frames: Iterable[Frame], has: set[str], lacks: set[str]) -> list[Frame]:
    found = []
    for frame in frames:
        try:
            own = tags(frame)
        except GdaskError:  # of no known instrument
            continue
        if has <= own and not lacks & own:
            found.append(frame)
    return found


def _command(name: str, found: list[Frame], how: str) -> str:
    """Give the command that deals with the files of a kind."""
    if not how:
        return "caldb add " + " ".join(shlex.quote(_shown(frame)) for frame in found)
    folders = dict.fromkeys(os.path.dirname(_shown(frame)) for frame in found)
    patterns = " ".join(os.path.join(shlex.quote(f) if f else "", "*.fits") for f in folders)
    return f"dataselect {patterns} {how} -o {name}.list; reduce @{name}.list"


def _shown(frame: Frame) -> str:
    """Give the path of a file as one below the working folder, where it is."""
    path = os.path.abspath(frame.attrs["path"])
    near = os.path.relpath(path)
    return path if near.startswith("..") else near
