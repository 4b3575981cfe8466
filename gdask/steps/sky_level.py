"""At what level the sky is subtracted: that of the frame itself, or that of its sky frames where the target fills the field."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np

from gdask.instruments import instrument_of
from gdask.kernels.sky.target_light import TargetLight, find_target_light
from gdask.kernels.sources.background import background_mesh
from gdask.model import UNUSABLE
from gdask.steps.frames import array, map_planes, pending
from gdask.steps.sky_frames import middle
from gdask.types import Flags, Frame, Frames, Image

log = logging.getLogger("gdask")

#: Cells along each side of an array.
CELLS = 8


class SkyLevel(NamedTuple):
    """How the sky is levelled: offset (shifted to the frame's level), scale, or none (the sky frames' own level); why."""

    mode: str
    why: str


def measure_background(frame: Frame) -> Frame:
    """Background of each array in 8 x 8 cells, fetched at the end of the phase: sky_correct sees whether the target
    fills the field."""
    whole = frame.chunk({"y": -1, "x": -1})
    return pending(
        frame,
        background=map_planes(
            _cells, array(whole, "data"), array(whole, "dq"), dtype=object, whole=True
        ),
    )


def choose_level(
    frames: Frames, skies: Frames, offset: bool | None, scale: bool | None
) -> SkyLevel:
    """The user's choice where there is one; else the frame's own level as is usual for the instrument, or the level of
    off-target sky frames where the target fills the field. Warns where it does and there are none."""
    usual = str(instrument_of(frames[0]).facts.get("own_sky_level", "scale"))
    if offset is not None or scale is not None:
        shifted = offset if offset is not None else usual == "offset" and not scale
        scaled = scale if scale is not None else usual == "scale" and not offset
        return SkyLevel("scale" if scaled else "offset" if shifted else "none", "as asked")
    shapes = {
        np.shape(frame.attrs.get("results", {}).get("background", ()))
        for frame in (*frames, *skies)
    }
    if len(shapes) > 1 or shapes == {(0,)}:
        return SkyLevel(usual, "usual: background not measured on like frames")
    names = {frame.attrs["name"] for frame in frames}
    away = tuple(sky for sky in skies if sky.attrs["name"] not in names)
    verdict = find_target_light(
        _cells_of(frames), _cells_of(away) if away else None, _times(frames), _times(away)
    )
    if verdict.fills_field and not away:
        log.warning(
            "sky_correct: light in %.0f %% of the field, and no sky frames off the target: light smoother than the dithers is"
            " subtracted with the sky. Reduce together with frames of an empty field beside it (separateSky:ref_sky=NAMES"
            " says which they are)",
            100 * verdict.share,
        )
    return SkyLevel("none" if verdict.fills_field and away else usual, _reason(verdict, bool(away)))


def _reason(verdict: TargetLight, away: bool) -> str:
    light = f"light in {100 * verdict.share:.0f} % of the field"
    return (
        f"{light}, {verdict.excess:+.0f} +- {verdict.error:.0f} e- over the sky frames"
        if away
        else f"{light}, no frames off target"
    )


def _cells(data: Image, dq: Flags) -> np.ndarray:
    return background_mesh(data, (dq & np.uint16(UNUSABLE)) != 0, max(data.shape[0] // CELLS, 1))[0]


def _cells_of(frames: Frames) -> np.ndarray:
    return np.array([frame.attrs["results"]["background"] for frame in frames], float)


def _times(frames: Frames) -> np.ndarray:
    return np.array([middle(frame) for frame in frames])
