"""Flag bad pixels, borders, shadows, non-linear and saturated pixels, latent images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from gdask.instruments import descriptor, instrument_of, tags
from gdask.io.frames import (
    geometries,
    note,
    sections,
    shape_of,
    small,
    with_headers,
    with_provenance,
    with_small,
)
from gdask.io.gather import measure_arrays
from gdask.io.lazy_arrays import map_planes
from gdask.io.read import open_frame
from gdask.kernels.detector import quality as dq_kernels
from gdask.kernels.detector import saturation
from gdask.kernels.detector.probe_shadows import (
    binned_medians,
    binned_usable_counts,
    find_shadows,
    unbin_window,
)
from gdask.kernels.geometry.projection import from_sky, to_sky
from gdask.model import DQ, GdaskError, late
from gdask.params import Range
from gdask.steps.frames import (
    array,
    arrays_of,
    match_region,
    night_of,
    on_group,
    per_array,
    with_arrays,
)
from gdask.types import Flags, Frame, Frames, Image, Mask, Window

if TYPE_CHECKING:
    import dask.array as da
else:
    da = late("dask.array")

#: Fraction of saturated pixels above which an array's read-out has failed: it saw no such light,
#: which therefore leaves no latent image.
_FAILED_READOUT_FRACTION = 0.9
#: Bytes for each pixel of an array that looking for saturated pixels takes (the pixels, the
#: bad-pixel mask and as much again), and that measuring cells takes (with data and flags).
_SATURATION_BYTES, _CELL_BYTES = 12.0, 19.0


@on_group
def add_dq(
    frames: Frames,
    bpms: tuple[Frame | None, ...],
    *,
    user_bpm: str | None = None,
    non_linear: bool = True,
    hidden_saturation: bool = True,
    latency: bool = True,
    time: Annotated[float, Range(0, None)] = 900.0,
    bad_arrays: str = "",
) -> Frames:
    """Make data-quality planes. [addDQ]

    They flag bad pixels, the border, non-linear and saturated pixels, and latent images.

    Parameters
    ----------
    frames
        Frames in ADU, dims (detector, y, x).
    bpms
        The static bad-pixel mask of each frame, or None.
    user_bpm
        File with another bad-pixel mask, OR-ed to the static one.
    non_linear
        Flag pixels between the non-linear and the saturation level.
    hidden_saturation
        Flag the holes of saturated cores, which read low after Fowler sampling.
    latency
        Flag latent images (bit 8) of what was saturated or non-linear in earlier frames.
        Earlier frames are those begun up to `time` seconds before.
    time
        Seconds for which a bright pixel leaves a latent image.
    bad_arrays
        Arrays that are bad as a whole, on some frames: NAME:NUMBER,... with numbers from 1.
    """
    spoilt = _spoilt_arrays(frames, bad_arrays)
    extra = open_frame(user_bpm, keep=True) if user_bpm else None
    listed: list[da.Array | None] = []
    flagged = []
    for frame, bpm in zip(frames, bpms, strict=True):
        masks = [match_region(mask, frame) for mask in (bpm, extra) if mask is not None]
        text = _masks_text(bpm, extra)
        static = _static_mask(masks)
        listed.append(
            _listed_pixels(frame, static, non_linear) if hidden_saturation or latency else None
        )
        holes = listed[-1] if hidden_saturation else None
        made = _flag_bad_and_bright(frame, masks, static, holes, non_linear)
        if any(bad := spoilt[frame.attrs["name"]]):
            (dq,) = arrays_of(made, ("dq",))
            made = with_arrays(made, dq=map_planes(_flag_whole, dq, dtype="u2", each={"bad": bad}))
            text += f", bad as a whole: {sum(bad)} of its {len(bad)} arrays"
        flagged.append(note(made, text))
    return _add_latents(tuple(flagged), listed, time) if latency else tuple(flagged)


def _spoilt_arrays(frames: Frames, bad_arrays: str) -> dict[str, list[bool]]:
    """Tell of each frame, by name, which of its arrays are bad as a whole.

    Raises GdaskError for what is no NAME:NUMBER of an array; names of other frames do not count.
    """
    found = {frame.attrs["name"]: [False] * frame.sizes["detector"] for frame in frames}
    for part in filter(None, (one.strip() for one in bad_arrays.split(","))):
        name, _, number = part.rpartition(":")
        for each, bad in found.items():
            if name not in (each, each.partition(".")[0]):
                continue
            if not number.isdigit() or not 1 <= int(number) <= len(bad):
                raise GdaskError(
                    f"addDQ:bad_arrays={part}: expected NAME:NUMBER, with a number from 1 to "
                    f"{len(bad)} for {each}"
                )
            bad[int(number) - 1] = True
    return found


def _flag_whole(dq: Flags, bad: bool) -> Flags:
    return dq | np.uint16(DQ.BAD_PIXEL if bad else 0)


def measure_shadows(frame: Frame) -> Frame:
    """Measure the median level of each array in small cells, for flag_shadows.

    The frame must be flat-fielded. The result is fetched at the end of the phase.
    """
    cells = measure_arrays(
        _level_and_count_in_cells, *arrays_of(frame, ("data", "dq")), scratch=_CELL_BYTES
    )
    return with_small(frame, shadows=cells)


@on_group
def flag_shadows(frames: Frames, *, depth: Annotated[float, Range(0.02, 1)] = 0.15) -> Frames:
    """Flag as unilluminated (bit 64) the shadow of a guide probe that reaches into the field.

    Shadows are found in the levels of measure_shadows. The lost light cannot be restored, and the
    shadow moves with the dithers: left in, it would spoil the sky of other frames. A shadow found
    on one frame is flagged on the others of its night too, moved with the guide star: its tip may
    be there, too faint to be found.

    Parameters
    ----------
    depth
        Fraction of the sky's light that must be missing in the darkest part, on one frame.
    """
    measured = [small(frame, "shadows") for frame in frames]
    if any(cells is None for cells in measured):
        return tuple(note(frame, "nothing done: measure_shadows was left out") for frame in frames)
    shadows = _find_shadows(frames, measured, depth)
    pixels = [
        sum(int(counts[mask].sum()) for (_, counts), mask in zip(cells, masks, strict=True))
        for cells, masks in zip(measured, shadows, strict=True)
    ]
    shadowed = [count for count in pixels if count]
    text = (
        f"{len(shadowed)} of them with the shadow of a guide probe, "
        f"{min(shadowed)} to {max(shadowed)} pixels each"
        if shadowed
        else "no shadow of a guide probe"
    )
    return tuple(
        note(_with_shadow(frame, masks) if count else frame, text)
        for frame, masks, count in zip(frames, shadows, pixels, strict=True)
    )


def _find_shadows(
    frames: Frames, measured: Sequence[Sequence[np.ndarray]], depth: float
) -> list[list[Mask]]:
    """Find the cells in shadow: a mask for each array of each frame.

    measured: for each frame and array, level and number of usable pixels of its cells (2, my, mx).
    Frames of a night are compared array by array, if their cells have the same shape.
    """
    shadows: list[list[Any]] = [[None] * len(of_arrays) for of_arrays in measured]
    kinds: dict[tuple[int, int, tuple[int, ...]], list[int]] = {}
    for number, (frame, of_arrays) in enumerate(zip(frames, measured, strict=True)):
        for array_number, cells in enumerate(of_arrays):
            kind = night_of(frame), array_number, cells.shape
            kinds.setdefault(kind, []).append(number)
    for (_, array_number, _), numbers in sorted(kinds.items()):
        levels = [measured[number][array_number][0] for number in numbers]
        places = _places([frames[number] for number in numbers], array_number)
        masks = find_shadows(levels, places, depth)
        for number, mask in zip(numbers, masks, strict=True):
            shadows[number][array_number] = mask
    return shadows


def _level_and_count_in_cells(data: Image, dq: Flags) -> np.ndarray:
    """Measure the median level and the number of usable pixels of each cell: (2, my, mx)."""
    return np.stack([binned_medians(data, dq), binned_usable_counts(dq)])


def _places(frames: list[Frame], number: int) -> np.ndarray:
    """Give the pixel (x, y) of one point of the sky on an array of each frame.

    Shape (frames, 2); NaN on unguided frames.
    """
    of_array = [geometries(frame)[number] for frame in frames]
    guided = [descriptor(frame, "wavefront_sensor") is not None for frame in frames]
    centre = to_sky(of_array[0], frames[0].sizes["x"] / 2, frames[0].sizes["y"] / 2)
    return np.array(
        [
            np.ravel(from_sky(geometry, *centre)) if is_guided else (np.nan, np.nan)
            for geometry, is_guided in zip(of_array, guided, strict=True)
        ]
    )


def _with_shadow(frame: Frame, masks: list[Mask]) -> Frame:
    """Flag the cells of the masks, one mask for each array."""
    dq = map_planes(
        _flag_shadow, array(frame, "dq"), dtype="u2", each={"cells": masks}, windowed=True
    )
    return with_arrays(frame, dq=dq)


def _flag_shadow(dq: Flags, cells: Mask, window: Window) -> Flags:
    return dq | unbin_window(cells, *window) * np.uint16(DQ.UNILLUMINATED)


def _static_mask(masks: Sequence[Frame]) -> da.Array | None:
    """Give bad-pixel masks OR-ed together; None without any."""
    planes = [arrays_of(mask, ("dq" if "dq" in mask else "data",))[0] for mask in masks]
    static = planes[0] if planes else None
    for plane in planes[1:]:
        static = map_planes(_or_masks, static, plane, dtype="u2")
    return static


def _flag_bad_and_bright(
    frame: Frame,
    masks: Sequence[Frame],
    static: da.Array | None,
    listed: da.Array | None,
    non_linear: bool,
) -> Frame:
    """Add a DQ plane that flags what the frame itself and the bad-pixel masks show.

    static: the masks together. listed: of `_listed_pixels`, where holes are to be flagged.
    """
    saturated = per_array(frame, "saturation_level")
    linear = per_array(frame, "non_linear_level") if non_linear else saturated
    levels = {"non_linear": linear, "saturated": saturated}
    dq = map_planes(dq_kernels.flag_levels, array(frame, "data"), static, dtype="u2", each=levels)
    if listed is not None:
        dq = map_planes(
            dq_kernels.flag_holes, dq, listed, dtype="u2", windowed=True, width=dq.shape[2]
        )
    dq = _flag_unilluminated(frame, dq)
    for mask in masks:
        frame = with_provenance(frame, mask, "add_dq")
    used = dict.fromkeys(mask.attrs["name"] for mask in masks)
    return with_headers(
        with_arrays(frame, dq=dq),
        primary={"BPMIM": (",".join(used) or "none", "Bad-pixel mask used")},
        each={
            "SATLEVEL": saturated,
            "NONLINEA": per_array(frame, "non_linear_level"),
            "RDNOISE": per_array(frame, "read_noise"),
            "GAIN": per_array(frame, "gain"),
        },
    )


def _masks_text(static: Frame | None, extra: Frame | None) -> str:
    """Say which bad-pixel masks are used."""
    if extra is not None:
        first = static.attrs["name"] if static is not None else "none"
        return f"static BPM {first}, user_bpm {extra.attrs['name']}"
    if static is not None:
        return f"static BPM {static.attrs['name']}"
    return "static BPM none: no known bad pixels are flagged"


def _listed_pixels(frame: Frame, static: da.Array | None, non_linear: bool) -> da.Array:
    """List the saturated pixels of each array, shape (detector,).

    The list is short, so that pixels that wait for it, of this frame and of later ones, can be
    made from the file again wherever they are needed.
    """
    levels = {
        "non_linear": per_array(frame, "non_linear_level"),
        "saturated": per_array(frame, "saturation_level"),
    }
    return measure_arrays(
        _list_saturated,
        array(frame, "data"),
        static,
        each=levels,
        scratch=_SATURATION_BYTES,
        flag_non_linear=non_linear,
    )


def _list_saturated(
    data: Image,
    bpm: np.ndarray | None,
    non_linear: float,
    saturated: float,
    flag_non_linear: bool,
) -> np.ndarray:
    """List saturated pixels: the number of those in holes, these, and those of latent images."""
    static = None if bpm is None else bpm.astype(np.uint16, copy=False)
    holes, bright = saturation.saturated_pixels(
        data, static, non_linear, saturated, flag_non_linear=flag_non_linear
    )
    if bright.size > _FAILED_READOUT_FRACTION * data.size:
        bright = bright[:0]
    return np.concatenate([np.array([holes.size], np.int32), holes, bright])


def _or_masks(first: np.ndarray, second: np.ndarray) -> Flags:
    return first.astype(np.uint16) | second.astype(np.uint16)


def _add_latents(frames: Frames, listed: Sequence[da.Array | None], time: float) -> Frames:
    """Set bit 8 where a frame begun up to `time` seconds earlier was saturated or non-linear.

    listed: of `_listed_pixels`, of each frame.
    """
    starts = [descriptor(frame, "ut_datetime") for frame in frames]
    frame_sections = [sections(frame) for frame in frames]
    result = []
    for number, frame in enumerate(frames):
        earlier = [
            n
            for n, start in enumerate(starts)
            if start is not None
            and starts[number] is not None
            and 0 < (starts[number] - start).total_seconds() < time
        ]
        dq = arrays_of(frame, ("dq",))[0]
        if earlier:
            dq = map_planes(
                dq_kernels.flag_latents,
                dq,
                *(listed[n] for n in earlier),
                dtype="u2",
                windowed=True,
                each={
                    "offsets": [
                        [_offset(frame_sections[n][d], frame_sections[number][d]) for n in earlier]
                        for d in range(dq.shape[0])
                    ]
                },
                widths=tuple(shape_of(frames[n])[1] for n in earlier),
            )
        result.append(with_arrays(frame, dq=dq))
    return tuple(result)


def _offset(earlier: tuple[int, ...], later: tuple[int, ...]) -> tuple[int, int]:
    """Give what to add to a pixel (x, y) of the later frame to get that of the earlier one."""
    return later[0] - earlier[0], later[2] - earlier[2]


def _flag_unilluminated(frame: Frame, dq: da.Array) -> da.Array:
    """Set bit 64 on the border, and outside the circle that the instrument lights.

    Both are flagged where the instrument's facts have them, the circle not on darks.
    """
    facts = instrument_of(frame).facts
    corners = [(section[0], section[2]) for section in sections(frame)]
    if facts.get("border"):
        full = tuple(facts["array_shape"])
        dq = map_planes(
            dq_kernels.flag_border,
            dq,
            dtype="u2",
            each={"corner": corners},
            windowed=True,
            full=full,
            width=facts["border"],
        )
    circle = facts.get("illumination")
    if circle and "DARK" not in tags(frame):
        dq = map_planes(
            dq_kernels.flag_outside,
            dq,
            dtype="u2",
            each={"corner": corners},
            windowed=True,
            centre=tuple(circle["centre"]),
            radius=circle["radius"],
        )
    return dq
