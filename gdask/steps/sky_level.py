"""At what level the sky is subtracted: that of the frame itself, or that of its sky frames where the target fills the field."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np

from gdask.instruments import instrument_of
from gdask.io.frames import small, with_small
from gdask.io.lazy_arrays import map_arrays
from gdask.kernels.sky.target_light import TargetLight, find_target_light
from gdask.kernels.sources.background import background_mesh
from gdask.model import UNUSABLE
from gdask.steps.frames import arrays_of
from gdask.steps.sky_frames import middle_of_exposure
from gdask.types import Flags, Frame, Frames, Image

log = logging.getLogger("gdask")

#: Cells along each side of an array.
CELLS = 8


class SkyLevel(NamedTuple):
    """How the sky is levelled: offset (shifted to the frame's level), scale, or none (the sky frames' own level); why."""

    mode: str
    why: str


def measure_background(frame: Frame) -> Frame:
    """Measure the background of each array in 8 x 8 cells: sky_correct sees whether the target fills the field.

    The result is fetched at the end of the phase.
    """
    arrays = arrays_of(frame, ("data", "dq"))
    return with_small(frame, background=map_arrays(_background_in_cells, *arrays))


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
        np.shape(small(frame, "background", lazy_is_none=True) or ()) for frame in (*frames, *skies)
    }
    if len(shapes) > 1 or shapes == {(0,)}:
        return SkyLevel(usual, "usual: background not measured on like frames")
    names = {frame.attrs["name"] for frame in frames}
    away = tuple(sky for sky in skies if sky.attrs["name"] not in names)
    light = find_target_light(
        _backgrounds_of(frames),
        _backgrounds_of(away) if away else None,
        _times(frames),
        _times(away),
    )
    if light.fills_field and not away:
        log.warning(
            "sky_correct: light in %.0f %% of the field, and no sky frames off the target: light smoother than the dithers is"
            " subtracted with the sky. Reduce together with frames of an empty field beside it (separateSky:ref_sky=NAMES"
            " says which they are)",
            100 * light.share,
        )
    return SkyLevel("none" if light.fills_field and away else usual, _reason(light, bool(away)))


def _reason(light: TargetLight, away: bool) -> str:
    seen = f"light in {100 * light.share:.0f} % of the field"
    return (
        f"{seen}, {light.excess:+.0f} +- {light.error:.0f} e- over the sky frames"
        if away
        else f"{seen}, no frames off target"
    )


def _background_in_cells(data: Image, dq: Flags) -> np.ndarray:
    return background_mesh(data, (dq & np.uint16(UNUSABLE)) != 0, max(data.shape[0] // CELLS, 1))[0]


def _backgrounds_of(frames: Frames) -> np.ndarray:
    return np.array([small(frame, "background") for frame in frames], float)


def _times(frames: Frames) -> np.ndarray:
    return np.array([middle_of_exposure(frame) for frame in frames])
