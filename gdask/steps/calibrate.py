"""From ADU to flat-fielded electrons: data quality, linearity, gain, variance, dark, flat."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from gdask.instruments import descriptor, instrument_of, view
from gdask.io.read import read_window, reopen
from gdask.kernels import dq as dq_kernels
from gdask.kernels import flat as flat_kernels
from gdask.kernels.linearity import linearize, linearize_variance, linearized_level
from gdask.kernels.variance import add_variance
from gdask.model import DQ, GdaskError
from gdask.params import Range
from gdask.steps.frames import array, map_planes, note, per_array, replaced, with_arrays, with_headers, with_provenance
from gdask.steps.resample import reference_area
from gdask.types import Flags, Frame, Frames, Image


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
    masks = tuple(_add_levels(f, (bpm, extra), non_linear, hidden_saturation) for f, bpm in zip(frames, bpms, strict=True))
    return _add_latents(masks, time) if latency else masks


def nonlinearity_correct(frame: Frame) -> Frame:
    """Correct detector non-linearity, in ADU or electrons; saturation and non-linear levels too. [nonlinearityCorrect]"""
    coefficients = tuple(tuple(values) for values in _facts(frame, "linearity"))
    gain = per_array(frame, "gain")
    coadds = (int(descriptor(frame, "coadds") or 1),) * len(gain)
    summed = tuple(c if descriptor(frame, "is_coadds_summed") else 1 for c in coadds)
    each = {"coefficients": coefficients, "gain": gain, "coadds": summed}
    data = map_planes(linearize, array(frame, "data"), dtype="f4", each=each)
    variance = array(frame, "variance")
    if variance is not None:
        averaged = tuple(n // many for n, many in zip(coadds, summed, strict=True))
        each = {"gain": gain, "coadds_averaged": averaged}
        variance = map_planes(linearize_variance, variance, array(frame, "data"), data, dtype="f4", each=each)
    levels = {
        keyword: [linearized_level(level, c, g, n) for level, c, g, n in zip(per_array(frame, name), coefficients, gain, summed, strict=True)]
        for keyword, name in (("SATLEVEL", "saturation_level"), ("NONLINEA", "non_linear_level"))
    }
    return with_headers(with_arrays(frame, data=data, variance=variance), each=levels)


def adu_to_electrons(frame: Frame) -> Frame:
    """Multiply by the gain; GAIN becomes 1, BUNIT electron, levels follow. [ADUToElectrons]"""
    gain = per_array(frame, "gain")
    data = map_planes(_times, array(frame, "data"), dtype="f4", each={"factor": gain})
    variance = array(frame, "variance")
    if variance is not None:
        variance = map_planes(_times, variance, dtype="f4", each={"factor": [g * g for g in gain]})
    each = {
        "SATLEVEL": [g * level for g, level in zip(gain, per_array(frame, "saturation_level"), strict=True)],
        "NONLINEA": [g * level for g, level in zip(gain, per_array(frame, "non_linear_level"), strict=True)],
        "GAIN": [1.0] * len(gain),
        "BUNIT": ["electron"] * len(gain),
    }
    return with_headers(with_arrays(frame, data=data, variance=variance), primary={"BUNIT": "electron"}, each=each)


def add_var(frame: Frame, *, read_noise: bool = True, poisson_noise: bool = True) -> Frame:
    """Variance planes from read noise and photon noise. [addVAR]

    Parameters
    ----------
    read_noise
        Include the read noise.
    poisson_noise
        Include the photon noise, max(data, 0) electrons, divided by the number of averaged coadds.
    """
    averaged = 1 if descriptor(frame, "is_coadds_summed") else int(descriptor(frame, "coadds") or 1)
    noise = per_array(frame, "read_noise")
    variance = map_planes(
        add_variance, array(frame, "data"), dtype="f4", each={"read_noise": noise},
        coadds=averaged, poisson=poisson_noise, read=read_noise,
    )  # fmt: skip
    kinds = ", ".join(kind for kind, on in (("read", read_noise), ("Poisson", poisson_noise)) if on)
    count = len(noise)
    return with_headers(with_arrays(frame, variance=variance), each={"VARNOISE": [kinds] * count, "RDNOISE": noise})


def dark_correct(frame: Frame, dark: Frame | None) -> Frame:
    """Subtract a processed dark. [darkCorrect]"""
    if dark is None:
        return frame
    dark = match_window(dark, frame)
    return with_headers(
        with_arrays(
            frame,
            data=array(frame, "data") - array(dark, "data"),
            variance=array(frame, "variance") + array(dark, "variance"),
            dq=array(frame, "dq") | array(dark, "dq"),
        ),
        primary={"DARKIM": (dark.attrs["name"], "Dark image subtracted")},
    )


def flat_correct(frame: Frame, flat: Frame | None) -> Frame:
    """Divide by a processed flat, cut to the frame's region of interest. [flatCorrect]"""
    if flat is None:
        return frame
    area = reference_area(instrument_of(flat).module.geometries(view(flat), _shape(flat)), _shape(flat))
    flat = match_window(flat, frame)
    data, variance, dq = (array(frame, name) for name in ("data", "variance", "dq"))
    by, by_variance, by_dq = (array(flat, name) for name in ("data", "variance", "dq"))
    corrected = with_arrays(
        frame,
        data=map_planes(flat_kernels.flat_data, data, by, dtype="f4"),
        variance=map_planes(flat_kernels.flat_variance, data, variance, by, by_variance, dtype="f4"),
        dq=map_planes(flat_kernels.flat_flags, dq, by, by_dq, dtype="u2"),
    )
    corrected = with_provenance(corrected.assign_attrs(reference_area=area), flat, "flat_correct")
    return with_headers(corrected, primary={"FLATIM": (flat.attrs["name"], "Flat image used")})


def match_window(calibration: Frame, frame: Frame) -> Frame:
    """A calibration cut to the region of interest of a frame, chunked as the frame is.

    Raises GdaskError where the calibration does not contain the frame's arrays.
    """
    wanted, have = true_sections(frame), true_sections(calibration)
    windows = set()
    for section, outer in zip(wanted, have, strict=True):
        x1, x2, y1, y2 = section[0] - outer[0], section[1] - outer[0], section[2] - outer[2], section[3] - outer[2]
        if x1 < 0 or y1 < 0 or section[1] > outer[1] or section[3] > outer[3]:
            raise GdaskError(
                f"{calibration.attrs['name']} covers {have}, {frame.attrs['name']} needs {wanted}; use a full-frame one"
            )
        windows.add((x1, x2, y1, y2))
    rows = frame["data"].data.chunks[1]
    if windows == {(0, calibration.sizes["x"], 0, calibration.sizes["y"])}:
        return reopen(calibration, rows=max(rows), tag="") if max(rows) < frame.sizes["y"] else calibration
    return _cut(calibration, [_window(s, o) for s, o in zip(wanted, have, strict=True)], rows)


def true_sections(frame: Frame) -> tuple[tuple[int, int, int, int], ...]:
    """Where each array's pixels truly lie on the array: 0-based half-open (x1, x2, y1, y2)."""
    return instrument_of(frame).module.true_sections(view(frame), (frame.sizes["y"], frame.sizes["x"]))


def _window(section: tuple[int, ...], outer: tuple[int, ...]) -> tuple[int, int, int, int]:
    return section[0] - outer[0], section[1] - outer[0], section[2] - outer[2], section[3] - outer[2]


def _cut(frame: Frame, windows: list[tuple[int, int, int, int]], rows: tuple[int, ...]) -> Frame:
    """Each array cut to its own window (the arrays of a region of interest may lie a row apart)."""
    import dask.array as da

    cut = {}
    for name in frame.data_vars:
        pixels = frame[name].data
        planes = [pixels[d : d + 1, y1:y2, x1:x2] for d, (x1, x2, y1, y2) in enumerate(windows)]
        cut[name] = da.concatenate(planes).rechunk((1, rows, -1))
    return replaced(frame, **cut)


def _facts(frame: Frame, name: str) -> tuple[object, ...]:
    """One fact of each array of the frame, from the instrument's table by array name (or in order)."""
    arrays = instrument_of(frame).facts["arrays"]
    by_name = {entry["name"]: entry for entry in arrays}
    names = per_array(frame, "array_name")
    return tuple(by_name.get(n, entry)[name] for n, entry in zip(names, arrays, strict=False))


def _shape(frame: Frame) -> tuple[int, int]:
    return frame.sizes["y"], frame.sizes["x"]


def _times(plane: Image, factor: float) -> Image:
    return plane * np.float32(factor)


def _open_bpm(path: str) -> Frame:
    from gdask.io.read import open_frame

    return open_frame(path)


def _add_levels(frame: Frame, bpms: tuple[Frame | None, ...], non_linear: bool, hidden: bool) -> Frame:
    saturated = per_array(frame, "saturation_level")
    linear = per_array(frame, "non_linear_level") if non_linear else saturated
    masks = [match_window(bpm, frame) for bpm in bpms if bpm is not None]
    planes = [array(mask, "dq") if "dq" in mask else array(mask, "data") for mask in masks]
    static = planes[0] if planes else None
    for other in planes[1:]:
        static = map_planes(_either, static, other, dtype="u2")
    # The flags read the raw pixels for themselves: they wait for earlier frames' latent images, and pixels that were
    # shared with the calibration of the data would wait with them, for all frames at once.
    data = array(reopen(frame, rows=max(frame["data"].data.chunks[1]), tag="dq"), "data")
    dq = map_planes(_flag, data, static, dtype="u2", each={"non_linear": linear, "saturated": saturated}, hidden=hidden)
    border = instrument_of(frame).facts.get("border", 0)
    if border:
        full = tuple(instrument_of(frame).facts["array_shape"])
        corners = [(section[0], section[2]) for section in true_sections(frame)]
        dq = map_planes(_flag_border, dq, dtype="u2", each={"corner": corners}, windowed=True, full=full, width=border)
    for mask in masks:
        frame = with_provenance(frame, mask, "add_dq")
    used = [mask.attrs["name"] for mask in masks]
    frame = with_headers(
        with_arrays(frame, dq=dq),
        each={"SATLEVEL": saturated, "NONLINEA": per_array(frame, "non_linear_level"), "RDNOISE": per_array(frame, "read_noise"), "GAIN": per_array(frame, "gain")},
    )
    return note(frame, "static BPM " + (", ".join(used) if used else "none: no known bad pixels are flagged"))


def _flag(data: Image, bpm: np.ndarray | None, non_linear: float, saturated: float, hidden: bool) -> Flags:
    static = None if bpm is None else bpm.astype(np.uint16)
    dq = dq_kernels.flag_levels(data, static, non_linear, saturated)
    return dq | dq_kernels.hidden_saturation(data, dq, non_linear) if hidden else dq


def _either(one: np.ndarray, other: np.ndarray) -> Flags:
    return one.astype(np.uint16) | other.astype(np.uint16)


def _flag_border(
    dq: Flags, corner: tuple[int, int], window: tuple[int, int, int, int], full: tuple[int, int], width: int
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
            other for other, start in enumerate(starts)
            if start is not None and starts[number] is not None and masks[other] is not None
            and 0 < (starts[number] - start).total_seconds() < time
        ]  # fmt: skip
        dq = array(frame, "dq")
        if earlier:
            offsets = [[_offset(sections[other][d], sections[number][d]) for other in earlier] for d in range(dq.shape[0])]
            shapes = tuple((frames[other].sizes["y"], frames[other].sizes["x"]) for other in earlier)
            dq = map_planes(_flag_latents, dq, *(masks[other] for other in earlier), dtype="u2", each={"offsets": offsets}, shapes=shapes)
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
    import dask.array as da
    from dask.base import tokenize

    planes = layout["data"]
    levels = tuple(zip(per_array(frame, "non_linear_level"), per_array(frame, "saturation_level"), strict=True))
    return da.map_blocks(
        _packed_saturation, planes=planes, levels=levels, name=f"saturated-{tokenize(planes, levels)}",
        chunks=((1,) * len(planes), (1,), (1,)), dtype=object, meta=np.empty((0, 0, 0), object),
    )  # fmt: skip


def _packed_saturation(planes: tuple, levels: tuple, block_id: tuple[int, int, int]) -> np.ndarray:
    plane = planes[block_id[0]]
    data = read_window(plane, 0, plane.shape[0], 0, plane.shape[1], np.dtype("f4"))
    boxed = np.empty((1, 1, 1), object)
    boxed[0, 0, 0] = dq_kernels.pack_mask(dq_kernels.saturation_mask(data, None, *levels[block_id[0]], include_non_linear=True))
    return boxed


def _flag_latents(dq: Flags, *packed: np.ndarray, offsets: list[tuple[int, int]], shapes: tuple) -> Flags:
    result = dq.copy()
    for box, (dx, dy), shape in zip(packed, offsets, shapes, strict=True):
        mask = dq_kernels.unpack_mask(box[0, 0], shape)
        y1, y2 = max(0, -dy), min(dq.shape[0], shape[0] - dy)
        x1, x2 = max(0, -dx), min(dq.shape[1], shape[1] - dx)
        if y2 > y1 and x2 > x1:
            part = result[y1:y2, x1:x2]
            part[mask[y1 + dy : y2 + dy, x1 + dx : x2 + dx]] |= np.uint16(DQ.COSMIC_RAY)
    return result
