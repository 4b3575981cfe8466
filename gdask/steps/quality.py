"""Data quality: bad pixels, borders, non-linear and saturated pixels, latent images."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from dask.base import tokenize

from gdask.instruments import descriptor, instrument_of, tags
from gdask.io.lazy_arrays import map_blocks
from gdask.io.read import read_window, reopen
from gdask.kernels.detector import quality as dq_kernels
from gdask.kernels.detector.probe_shadows import (
    binned_medians,
    binned_usable_counts,
    find_shadows,
    unbin_window,
)
from gdask.kernels.geometry.projection import from_sky, to_sky
from gdask.model import DQ
from gdask.params import Range
from gdask.steps.frames import (
    array,
    map_planes,
    note,
    pending,
    per_array,
    with_arrays,
    with_headers,
    with_provenance,
)
from gdask.steps.regions import match_window, true_sections
from gdask.types import Flags, Frame, Frames, Image, Mask

#: An array with a larger share of saturated pixels saw no such light: its read-out failed, and nothing is left in the next.
_NO_LIGHT = 0.9


def add_dq(
    frames: Frames,
    bpms: tuple[Frame | None, ...],
    *,
    user_bpm: str | None = None,
    non_linear: bool = True,
    hidden_saturation: bool = True,
    latency: bool = True,
    time: Annotated[float, Range(0, None)] = 900.0,
) -> Frames:
    """Data-quality planes: bad pixels, border, non-linear and saturated pixels, latent images. [addDQ]

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
        Flag as latent images (bit 8) what was saturated or non-linear in frames begun up to `time` seconds earlier.
    time
        Seconds for which a bright pixel leaves a latent image.
    """
    extra = _open_bpm(user_bpm) if user_bpm else None
    masks = tuple(
        _add_levels(f, (bpm, extra), non_linear, hidden_saturation)
        for f, bpm in zip(frames, bpms, strict=True)
    )
    return _add_latents(masks, time) if latency else masks


def measure_shadows(frame: Frame) -> Frame:
    """Median level of each array in small cells, fetched at the end of the phase for flag_shadows; flat-fielded frames."""
    whole = frame.chunk({"y": -1, "x": -1})
    return pending(
        frame,
        shadows=map_planes(
            _cells, array(whole, "data"), array(whole, "dq"), dtype=object, whole=True
        ),
    )


def flag_shadows(frames: Frames, *, depth: Annotated[float, Range(0.02, 1)] = 0.15) -> Frames:
    """Flag as unilluminated (bit 64) the shadow of a guide probe that reaches into the field, by what measure_shadows saw.

    Nothing gives the light back, and the shadow moves with the dithers: left in, it would spoil the sky of other frames.
    A shadow found on one frame is flagged on the others of the same guide star too, moved with the star: there may be
    its tip, too faint to be found.

    Parameters
    ----------
    depth
        Fraction of the sky's light that must be missing in the darkest part, on one frame.
    """
    if any("shadows" not in frame.attrs.get("results", {}) for frame in frames):
        return tuple(note(frame, "nothing done: measure_shadows was left out") for frame in frames)
    units = [
        (n, d, cells)
        for n, frame in enumerate(frames)
        for d, cells in enumerate(frame.attrs["results"]["shadows"])
    ]
    shadows: dict[tuple[int, int], Mask] = {}
    for array_number, shape in sorted({(d, cells.shape) for _, d, cells in units}):
        alike = [
            (n, cells[0]) for n, d, cells in units if (d, cells.shape) == (array_number, shape)
        ]
        places = _places([frames[n] for n, _ in alike], array_number)
        found = find_shadows([levels for _, levels in alike], places, depth)
        shadows |= {(n, array_number): mask for (n, _), mask in zip(alike, found, strict=True)}
    pixels = [0] * len(frames)
    for n, d, cells in units:
        pixels[n] += int(cells[1][shadows[n, d]].sum())
    dark = [count for count in pixels if count]
    text = (
        f"{len(dark)} of them with the shadow of a guide probe, {min(dark)} to {max(dark)} pixels each"
        if dark
        else "no shadow of a guide probe"
    )
    return tuple(
        note(
            _with_shadow(frame, [shadows[n, d] for d in range(frame.sizes["detector"])])
            if pixels[n]
            else frame,
            text,
        )
        for n, frame in enumerate(frames)
    )


def _cells(data: Image, dq: Flags) -> np.ndarray:
    """Median level, and number of usable pixels, of each cell: (2, my, mx)."""
    return np.stack([binned_medians(data, dq), binned_usable_counts(dq)])


def _places(frames: list[Frame], number: int) -> np.ndarray:
    """The pixel (x, y) of one point of the sky on an array of each frame; NaN on unguided frames. Shape (frames, 2)."""
    geometries = [frame.attrs["geometry"][number] for frame in frames]
    guided = [descriptor(frame, "wavefront_sensor") is not None for frame in frames]
    centre = to_sky(geometries[0], frames[0].sizes["x"] / 2, frames[0].sizes["y"] / 2)
    return np.array(
        [
            np.ravel(from_sky(g, *centre)) if ok else (np.nan, np.nan)
            for g, ok in zip(geometries, guided, strict=True)
        ]
    )


def _with_shadow(frame: Frame, masks: list[Mask]) -> Frame:
    return with_arrays(
        frame,
        dq=map_planes(
            _flag_shadow, array(frame, "dq"), dtype="u2", each={"cells": masks}, windowed=True
        ),
    )


def _flag_shadow(dq: Flags, cells: Mask, window: tuple[int, int, int, int]) -> Flags:
    return dq | np.where(unbin_window(cells, *window), np.uint16(DQ.UNILLUMINATED), np.uint16(0))


def _open_bpm(path: str) -> Frame:
    from gdask.io.read import open_frame

    return open_frame(path)


def _add_levels(
    frame: Frame, bpms: tuple[Frame | None, ...], non_linear: bool, hidden: bool
) -> Frame:
    saturated = per_array(frame, "saturation_level")
    linear = per_array(frame, "non_linear_level") if non_linear else saturated
    masks = [match_window(bpm, frame) for bpm in bpms if bpm is not None]
    planes = [array(mask, "dq") if "dq" in mask else array(mask, "data") for mask in masks]
    static = planes[0] if planes else None
    for other in planes[1:]:
        static = map_planes(_either, static, other, dtype="u2")
    # The flags read the raw pixels for themselves: they wait for earlier frames' latent images, and pixels that were
    # shared with the calibration of the data would wait with them, for all frames at once.
    # The hole of a saturated core may reach into the next band: looking for holes needs the whole array.
    rows = frame.sizes["y"] if hidden else max(frame["data"].data.chunks[1])
    data = array(reopen(frame, rows=rows, tag="dq"), "data")
    dq = map_planes(
        _flag,
        data,
        static,
        dtype="u2",
        each={"non_linear": linear, "saturated": saturated},
        hidden=hidden,
    )
    dq = _flag_unilluminated(frame, dq)
    for mask in masks:
        frame = with_provenance(frame, mask, "add_dq")
    used = [mask.attrs["name"] for mask in masks]
    frame = with_headers(
        with_arrays(frame, dq=dq),
        each={
            "SATLEVEL": saturated,
            "NONLINEA": per_array(frame, "non_linear_level"),
            "RDNOISE": per_array(frame, "read_noise"),
            "GAIN": per_array(frame, "gain"),
        },
    )
    return note(
        frame,
        "static BPM " + (", ".join(used) if used else "none: no known bad pixels are flagged"),
    )


def _flag(
    data: Image, bpm: np.ndarray | None, non_linear: float, saturated: float, hidden: bool
) -> Flags:
    static = None if bpm is None else bpm.astype(np.uint16)
    dq = dq_kernels.flag_levels(data, static, non_linear, saturated)
    return dq | dq_kernels.hidden_saturation(data, dq, non_linear) if hidden else dq


def _either(one: np.ndarray, other: np.ndarray) -> Flags:
    return one.astype(np.uint16) | other.astype(np.uint16)


def _flag_border(
    dq: Flags,
    corner: tuple[int, int],
    window: tuple[int, int, int, int],
    full: tuple[int, int],
    width: int,
) -> Flags:
    y1, _, x1, _ = window
    edge = dq_kernels.border_mask(dq.shape, corner[0] + x1, corner[1] + y1, full, width)
    return dq | np.where(edge, np.uint16(DQ.UNILLUMINATED), np.uint16(0))


def _add_latents(frames: Frames, time: float) -> Frames:
    """Bit 8 where an earlier frame was saturated.

    The earlier frame's mask comes from a task that reads its raw pixels again and gives packed bits: frames then wait
    for small masks, never for each other's pixels.
    """
    starts = [descriptor(frame, "ut_datetime") for frame in frames]
    masks = [_saturation_masks(frame) for frame in frames]
    sections = [true_sections(frame) for frame in frames]
    result = []
    for number, frame in enumerate(frames):
        earlier = [
            other
            for other, start in enumerate(starts)
            if start is not None
            and starts[number] is not None
            and masks[other] is not None
            and 0 < (starts[number] - start).total_seconds() < time
        ]
        dq = array(frame, "dq")
        if earlier:
            offsets = [
                [_offset(sections[other][d], sections[number][d]) for other in earlier]
                for d in range(dq.shape[0])
            ]
            shapes = tuple(
                (frames[other].sizes["y"], frames[other].sizes["x"]) for other in earlier
            )
            dq = map_planes(
                _flag_latents,
                dq,
                *(masks[other] for other in earlier),
                dtype="u2",
                each={"offsets": offsets},
                shapes=shapes,
            )
        result.append(note(with_arrays(frame, dq=dq), frame.attrs["note"]))
    return tuple(result)


def _offset(inner: tuple[int, ...], outer: tuple[int, ...]) -> tuple[int, int]:
    """What to add to a pixel (x, y) of the outer window to get that of the inner one."""
    return outer[0] - inner[0], outer[2] - inner[2]


def _saturation_masks(frame: Frame) -> object:
    """Packed saturation bits of each array, read from the file by tasks of their own. None where there is no file."""
    layout = frame.attrs.get("layout")
    if not layout:
        return None
    planes = layout["data"]
    levels = tuple(
        zip(per_array(frame, "non_linear_level"), per_array(frame, "saturation_level"), strict=True)
    )
    return map_blocks(
        _packed_saturation,
        name=f"saturated-{tokenize(planes, levels)}",
        dtype=object,
        chunks=((1,) * len(planes), (1,), (1,)),
        placed=True,
        planes=planes,
        levels=levels,
    )


def _packed_saturation(place: tuple[int, int, int], planes: tuple, levels: tuple) -> np.ndarray:
    plane = planes[place[0]]
    data = read_window(plane, 0, plane.shape[0], 0, plane.shape[1], np.dtype("f4"))
    boxed = np.empty((1, 1, 1), object)
    mask = dq_kernels.saturation_mask(data, None, *levels[place[0]], include_non_linear=True)
    if mask.mean() > _NO_LIGHT:
        mask[:] = False
    boxed[0, 0, 0] = dq_kernels.pack_mask(mask)
    return boxed


def _flag_latents(
    dq: Flags, *packed: np.ndarray, offsets: list[tuple[int, int]], shapes: tuple
) -> Flags:
    result = dq.copy()
    for box, (dx, dy), shape in zip(packed, offsets, shapes, strict=True):
        mask = dq_kernels.unpack_mask(box[0, 0], shape)
        y1, y2 = max(0, -dy), min(dq.shape[0], shape[0] - dy)
        x1, x2 = max(0, -dx), min(dq.shape[1], shape[1] - dx)
        if y2 > y1 and x2 > x1:
            part = result[y1:y2, x1:x2]
            part[mask[y1 + dy : y2 + dy, x1 + dx : x2 + dx]] |= np.uint16(DQ.COSMIC_RAY)
    return result


def _flag_unilluminated(frame: Frame, dq: object) -> object:
    """Bit 64 on the border and outside the circle that the instrument lights, where its facts have such; not on darks."""
    facts = instrument_of(frame).facts
    corners = [(section[0], section[2]) for section in true_sections(frame)]
    if facts.get("border"):
        full = tuple(facts["array_shape"])
        dq = map_planes(
            _flag_border,
            dq,
            dtype="u2",
            each={"corner": corners},
            windowed=True,
            full=full,
            width=facts["border"],
        )
    circle = facts.get("illumination")
    if circle and "DARK" not in tags(frame):
        how = {"centre": tuple(circle["centre"]), "radius": circle["radius"]}
        dq = map_planes(
            _flag_outside, dq, dtype="u2", each={"corner": corners}, windowed=True, **how
        )
    return dq


def _flag_outside(
    dq: Flags,
    corner: tuple[int, int],
    window: tuple[int, int, int, int],
    centre: tuple[float, float],
    radius: float,
) -> Flags:
    y1, _, x1, _ = window
    outside = dq_kernels.outside_circle_mask(
        dq.shape, corner[0] + x1, corner[1] + y1, centre, radius
    )
    return dq | np.where(outside, np.uint16(DQ.UNILLUMINATED), np.uint16(0))
