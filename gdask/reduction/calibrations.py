"""Calibrations of the frames of a run: the user's, or what the databases have, looked up once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gdask.model import GdaskError
from gdask.types import Frame

if TYPE_CHECKING:
    from gdask.caldb import Association

log = logging.getLogger("gdask")

#: The step that each calibration is for: where the user leaves it out, there is nothing to look for.
USED_BY = {"processed_flat": "flat_correct", "processed_dark": "dark_correct"}

#: Found so far: (type, path of the frame) -> association.
Known = dict[tuple[str, str], "Association"]


def look_up(known: Known, caltype: str, frame: Frame, databases: Sequence[Any]) -> Association:
    """The association of a frame, the first time with a warning for each calibration that would fit as well."""
    from gdask import caldb

    key = caltype, frame.attrs["path"]
    if key not in known:
        known[key] = caldb.associate(frame, caltype, databases)
        for tie in known[key].ties:
            log.warning(
                "%s: %s would fit as well as %s", frame.attrs["name"], tie, known[key].chosen
            )
    return known[key]


def missing(name: str, association: Association) -> GdaskError:
    """The error for a frame without a calibration that it needs: the nearest candidates, and the rule that each failed."""
    from gdask import caldb

    return GdaskError(f"{name}: no {association.caltype}\n{caldb.explain(association)}")


def all_missing(
    frames: Sequence[Frame], lacking: Mapping[str, Sequence[Association]]
) -> GdaskError:
    """The error where no frame has what it needs: each kind explained once, for the first frame that lacks it."""
    first: dict[str, str] = {}
    for frame in frames:
        for association in lacking[frame.attrs["name"]]:
            first.setdefault(association.caltype, str(missing(frame.attrs["name"], association)))
    return GdaskError("\n".join(first.values()))


def remarks(association: Association) -> list[str]:
    """What the log should say of an association: values taken as equal, and the note where there is no calibration."""
    if association.chosen:
        return [v.text for v in association.candidates[0].verdicts if "taken as equal" in v.text]
    return (
        [association.rules.note] if association.rules is not None and association.rules.note else []
    )
