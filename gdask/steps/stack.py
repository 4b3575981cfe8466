"""Combine frames: darks, flats, images."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from dask.base import tokenize

from gdask.instruments import descriptor, tags
from gdask.io.chained import read_together
from gdask.io.frames import (
    array_headers,
    note,
    primary_header,
    records,
    small,
    with_headers,
    with_provenance,
    with_records,
    with_small,
)
from gdask.io.gather import gather_planes
from gdask.io.lazy_arrays import band_chunks
from gdask.io.sources import Source
from gdask.kernels.stack.combine import combine, variance_factor
from gdask.kernels.stack.counts import COUNTED, count_frames
from gdask.kernels.stack.grow import GROW_MARGIN, Planes, combine_without_rejected, grow_rejected
from gdask.model import GdaskError, late
from gdask.params import Range
from gdask.steps.frame_numbers import choose_operation
from gdask.steps.frames import (
    BAND_ROWS,
    PIXEL_BYTES,
    VARIABLE_TYPES,
    arrays_of,
    named,
    on_group,
    replaced,
    stacked_levels,
    strip_rows,
)
from gdask.steps.resample import TILE_BYTES, resampled_source
from gdask.steps.resampled import Resampled
from gdask.steps.sky_frames import SAME_EXPOSURE_SECONDS
from gdask.types import Frame, Frames, Mask, Window

if TYPE_CHECKING:
    import dask.array as da
else:
    da = late("dask.array")

Operation = Literal["mean", "weighted", "wtmean", "median", "lmedian"]
Reject = Literal["none", "minmax", "sigclip", "varclip", "noiseclip"]

#: Rows of a strip, at least. Of an image 16: it has a margin of GROW_MARGIN rows on each side, and
#: the resampling kernel needs more around that. Of frames that are not resampled 4: a thousand full
#: ones take 250 MB then.
FEWEST_ROWS, FEWEST_ROWS_IN_PLACE = 16, 4
#: Bytes that a combination takes for each byte of the strip's pixels: the cubes, the mask of what
#: is rejected, sorting. (Measured: up to 1.85 on six frames of FLAMINGOS-2.)
COMBINATION_SHARE = 1.9


@on_group
def stack_frames(
    frames: Frames,
    *,
    operation: Operation | None = None,
    reject_method: Reject = "noiseclip",
    lsigma: Annotated[float, Range(0, None)] = 3.0,
    hsigma: Annotated[float, Range(0, None)] = 3.0,
    mclip: bool = True,
    max_iters: Annotated[int, Range(1, None)] | None = None,
    nlow: Annotated[int, Range(0, None)] = 0,
    nhigh: Annotated[int, Range(0, None)] = 0,
    grow: bool = True,
    zero: bool = False,
) -> Frame:
    """Combine frames pixel by pixel into one, with DQ and propagated variance. [stackFrames]

    Parameters
    ----------
    operation
        mean, median or lmedian (the lower of the two middle values). weighted is the mean with each
        frame's weight of noise, FWHM and throughput (table FRAMES, WEIGHT), one number for all its
        pixels; wtmean weighs each value by 1/variance, bright ones less. None is mean, and weighted
        for frames of several nights (why: docs/campaigns.md).
    reject_method
        How deviant values are rejected.
        none rejects nothing, minmax so many values at each end (nlow, nhigh). sigclip clips by the
        scatter of the values, varclip by their variance, noiseclip by their median variance and, in
        starlight, the scatter of most of them: cosmic rays go, stars stay whole under changes of
        the seeing.
    lsigma, hsigma
        Limits of the clipping, in standard deviations.
    mclip
        Clip about the median; False clips about the mean.
    max_iters
        Most rounds of clipping; None goes on until nothing is rejected.
    nlow, nhigh
        Values that minmax rejects at each end, for a full set of inputs.
    grow
        Reject also all values that touch two or more touching rejected values of a frame.
        These are the faint rims of cosmic rays. Not for none and minmax.
    zero
        Not offered for stacks: levels are matched by match_sky_levels. Must be False.
    """
    if zero:
        raise GdaskError(
            "stack_frames: zero=True is not offered; match_sky_levels makes the levels consistent"
        )
    check_alike(frames)
    how, weights, of_nights = choose_operation(frames, operation)
    combination: dict[str, Any] = {
        "method": "wtmean" if how == "weighted" else how,
        "reject": reject_method,
        "lsigma": lsigma,
        "hsigma": hsigma,
        "mclip": mclip,
        "max_iters": max_iters,
        "nlow": nlow,
        "nhigh": nhigh,
    }
    combination |= {"weights": weights} if weights else {}
    grow = grow and reject_method.endswith("clip")
    *planes, counted = _combined_arrays(frames, combination, grow)
    stack = replaced(frames[0], **named(planes))
    stack = with_small(stack, inputs=_alignment_of_inputs(frames), counted=counted).assign_attrs(
        tables="", provenance=""
    )
    stack = with_records(stack, "provenance", _joined_provenance(frames))
    text = f"{len(frames)} frames{of_nights}, {how}"
    text += f" ({min(weights):.2g} to {max(weights):.2g})" if weights else ""
    text += f", {reject_method}{_check_darks(frames)}"
    removed = {key: None for key in primary_header(stack) if key.startswith("SKYFR")}
    header = combined_header(frames, how, weights)
    return note(with_headers(stack, primary=removed | header["primary"], each=header["each"]), text)


_SECOND = timedelta(seconds=1)
#: Keywords of calibrations in the primary header.
_CALIBRATIONS = ("BPMIM", "FLATIM", "DARKIM")


def combined_header(
    frames: Frames, method: str, weights: Sequence[float] | None = None
) -> dict[str, dict[str, Any]]:
    """Give the keywords of a stack, as `with_headers` takes them: `primary` and `each`.

    `method` is the operation of the stack. Gain and read noise are those where all inputs cover a
    pixel: the mean of n inputs has n times the gain of one (times the coadds that it averages), so
    that photon noise is sqrt(data / GAIN), and 1/sqrt(n) of its read noise; a median has a little
    more noise, by the factor that VAR has too.
    """
    primary: dict[str, Any] = {"NCOMBINE": (len(frames), "Number of input images")}
    for number, frame in enumerate(frames, 1):
        primary[f"IMCMB{number:03d}"] = frame.attrs["name"]
    primary |= _exposure_keywords(frames) | _calibration_keywords(frames)
    times, each = _time_keywords(frames)
    factor = variance_factor(method, len(frames)) if "median" in method else 1.0
    if weights:
        factor = len(frames) * sum(one**2 for one in weights) / sum(weights) ** 2
    together, of_array = stacked_levels(frames, factor)
    count = len(array_headers(frames[0]))
    of_array |= {key: [value] * count for key, value in each.items()}
    return {"primary": primary | times | together, "each": of_array}


def _exposure_keywords(frames: Frames) -> dict[str, Any]:
    """Give exposure times and the mean air mass."""
    seconds = float(descriptor(frames[0], "exposure_time") or 0)
    total = sum(float(descriptor(frame, "total_exposure_time") or 0) for frame in frames)
    keywords: dict[str, Any] = {
        "EXPTIME": (seconds, "Exposure time of the pixel values (s)"),
        "TOTEXP": (total, "Total exposure time of all inputs (s)"),
    }
    airmasses = [descriptor(frame, "airmass") for frame in frames]
    known = [value for value in airmasses if value is not None]
    if known:
        keywords["AIRMASS"] = (float(np.mean(known)), "Mean airmass of the inputs")
    return keywords


def _calibration_keywords(frames: Frames) -> dict[str, Any]:
    """Give the calibrations used: names, several where the inputs differ."""
    found: dict[str, Any] = {}
    for key in _CALIBRATIONS:
        names = [str(primary_header(frame).get(key, "") or "") for frame in frames]
        for number, name in enumerate(dict.fromkeys(name for name in names if name)):
            used = f"{key[:-1]}{number + 1}" if number else key
            found[used] = (name, f"for {names.count(name)} of {len(names)} inputs")
    return found


def _time_keywords(frames: Frames) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the times of a stack for the primary header, and those for each array.

    Start of the first input, end of the last, and the mean of the middles by exposure time.
    """
    known = [frame for frame in frames if descriptor(frame, "ut_datetime") is not None]
    if not known:
        return {}, {}
    first = min(known, key=lambda frame: descriptor(frame, "ut_datetime"))
    last = max(known, key=lambda frame: descriptor(frame, "mjd_end") or 0.0)
    start: datetime = descriptor(first, "ut_datetime")
    end: datetime = descriptor(last, "ut_end") or start
    weights = [float(descriptor(frame, "total_exposure_time") or 0) for frame in known]
    middles = [
        descriptor(frame, "ut_middle") or descriptor(frame, "ut_datetime") for frame in known
    ]
    after = [(middle - start).total_seconds() for middle in middles]
    is_weighted = sum(weights) > 0
    mean = float(np.average(after, weights=weights if is_weighted else None))
    mjd = float(descriptor(first, "mjd_start"))
    middle = start + (max(mean, 0.0) * _SECOND)
    stamps = {"BEG": (start, "Start, UT"), "AVG": (middle, "Middle, UT"), "END": (end, "End, UT")}
    days = {"BEG": mjd, "AVG": mjd + mean / 86400, "END": mjd + (end - start) / (86400 * _SECOND)}
    primary: dict[str, Any] = {"MJD-OBS": (mjd, "MJD at start of observation")}
    for name, (when, comment) in stamps.items():
        primary[f"DATE-{name}"] = (_iso(when), comment)
        primary[f"MJD-{name}"] = (days[name], comment.replace("UT", "MJD"))
    clock = _iso(start)[11:]
    phu = primary_header(frames[0])
    primary |= {"DATE-OBS": _iso(start)[:10], "UT": clock, "UTSTART": clock}
    primary |= {"UTEND": (_iso(end)[11:], "End of the last input")}
    primary |= {"TIME-OBS": clock} if "TIME-OBS" in phu else {}
    return primary, {"MJD-OBS": mjd, "DATE-OBS": _iso(start)}


def _iso(when: datetime) -> str:
    """Give a time as FITS has it, to a millisecond."""
    return when.isoformat(timespec="milliseconds")


def check_alike(frames: Frames) -> None:
    """Raise GdaskError where frames to be combined differ in shape or filter, or are none."""
    if not frames:
        raise GdaskError("nothing to combine: every frame was set aside (see the list of reasons)")
    expected = _shape_and_filter(frames[0])
    for frame in frames[1:]:
        for what, value in _shape_and_filter(frame).items():
            if value != expected[what]:
                raise GdaskError(
                    f"{frame.attrs['name']}: {what} {value}, but {frames[0].attrs['name']} has "
                    f"{expected[what]}; reduce them apart"
                )


def _shape_and_filter(frame: Frame) -> dict[str, Any]:
    return {
        "shape": dict(frame.sizes),
        "filter": descriptor(frame, "filter_name", pretty=True),
    }


def same_exposure(first: Frame, second: Frame) -> bool:
    """Whether two frames have the same exposure time, coadds and read mode.

    Exposure times are compared to 0.01 s: headers say 60.001 and 60.002 s.
    """
    times = [float(descriptor(frame, "exposure_time")) for frame in (first, second)]
    alike = all(
        descriptor(first, name) == descriptor(second, name) for name in ("coadds", "read_mode")
    )
    return alike and abs(times[0] - times[1]) <= SAME_EXPOSURE_SECONDS


def _check_darks(frames: Frames) -> str:
    """Raise GdaskError where darks of one stack differ in exposure time, coadds or read mode.

    Gives a remark where the headers' exposure times differ by a little, else ''.
    """
    if "DARK" not in tags(frames[0]):
        return ""
    for frame in frames[1:]:
        if not same_exposure(frames[0], frame):
            raise GdaskError(
                f"{frame.attrs['name']}: a dark of {_exposure_text(frame)}, but "
                f"{frames[0].attrs['name']} has {_exposure_text(frames[0])}; reduce them apart"
            )
    times = sorted({float(descriptor(frame, "exposure_time")) for frame in frames})
    return f"; {times[0]:g} to {times[-1]:g} s taken as one exposure time" if len(times) > 1 else ""


def _exposure_text(frame: Frame) -> str:
    seconds, coadds = float(descriptor(frame, "exposure_time")), descriptor(frame, "coadds")
    return f"{seconds:g} s x {coadds}, read mode {descriptor(frame, 'read_mode')}"


def _alignment_of_inputs(frames: Frames) -> tuple[dict[str, object], ...]:
    """Give for each input its name, geometry of its arrays, and how well it was aligned."""
    return tuple(
        {
            "name": frame.attrs["name"],
            "geometry": (),
            **(small(frame, "placed") or small(frame, "solution") or {}),
        }
        for frame in frames
    )


def _joined_provenance(frames: Frames) -> list[dict[str, str]]:
    """Give the provenance rows of all frames, each once.

    A frame that has none begins with the stack, as a product that is stacked does: the row is its
    own file.
    """
    noted = [
        frame if records(frame, "provenance") else with_provenance(frame, frame, "stack_frames")
        for frame in frames
    ]
    rows = [row for frame in noted for row in records(frame, "provenance")]
    return list({tuple(sorted(row.items())): row for row in rows}.values())


def _combined_arrays(frames: Frames, combination: dict[str, Any], grow: bool) -> list[da.Array]:
    """Give data, variance and DQ of the stack, and what was counted of each frame; all lazy.

    Each task makes a block from all frames, in strips of rows, one frame after another. Neither the
    memory of a task nor the number of tasks grows with the frames. (With a tile of each frame as a
    task, 64 frames of 4 x 320 x 320 pixels were 5365 tasks with a peak of 975 MB.) combination:
    parameters of the kernel `combine`.
    """
    of_frames: list[Sequence[Any]] = []
    for frame in frames:
        source = resampled_source(frame)
        of_frames.append(arrays_of(frame) if source is None else [source])
    arrays = [each for of_frame in of_frames for each in of_frame]
    first = arrays_of(frames[0], ("data",))[0]
    chunks, size = first.chunks, first.shape[1:]
    if first.numblocks[1:] == (1, 1):
        chunks = (chunks[0], band_chunks(size[0], BAND_ROWS), chunks[2])
    row_bytes = len(frames) * max(chunks[2]) * PIXEL_BYTES
    margin = GROW_MARGIN if grow else 0
    is_in_place = all(resampled_source(frame) is None for frame in frames)
    fewest = FEWEST_ROWS_IN_PLACE if is_in_place else FEWEST_ROWS
    rows = min(strip_rows(row_bytes, fewest), max(chunks[1]))

    def windows(_: int, detector: int, window: Window) -> list[tuple[int, Window]]:
        return [(detector, _widened(window, margin, size))]

    identity = [getattr(each, "name", None) or each.identity for each in arrays]
    strip_pixels = (rows + 2 * margin) * (max(chunks[2]) + 2 * margin)
    held = COMBINATION_SHARE * len(frames) * strip_pixels * PIXEL_BYTES
    return gather_planes(
        _stack_block,
        arrays,
        name=f"stack-{tokenize(identity, combination, grow, chunks)}",
        dtypes=VARIABLE_TYPES,
        chunks=chunks,
        windows=windows,
        scratch=held + TILE_BYTES * strip_pixels,
        total=_added,
        counts=tuple(len(of_frame) for of_frame in of_frames),
        size=size,
        rows=rows,
        combination=combination,
        grow=grow,
    )


def _widened(window: Window, margin: int, size: tuple[int, int]) -> Window:
    """Widen a window by a margin, up to the edges of the image."""
    (y1, y2, x1, x2), (ny, nx) = window, size
    return max(y1 - margin, 0), min(y2 + margin, ny), max(x1 - margin, 0), min(x2 + margin, nx)


def _added(*counted: np.ndarray) -> np.ndarray:
    """Add up what was counted in blocks."""
    return np.sum(counted, axis=0)


def _stack_block(
    sources: tuple[Source, ...],
    detector: int,
    window: Window,
    counts: tuple[int, ...],
    size: tuple[int, int],
    rows: int,
    combination: dict[str, Any],
    grow: bool,
) -> tuple[np.ndarray, ...]:
    """Combine the frames in a window, so many rows at a time. counts: sources of each frame.

    Gives data, variance and DQ, and the sum of what `count_frames` counts in the strips.
    """
    ends = np.cumsum((0, *counts))
    of_frames = [sources[start:stop] for start, stop in pairwise(ends)]
    y1, y2, x1, x2 = window
    shape = y2 - y1, x2 - x1
    block = np.empty(shape, "f4"), np.empty(shape, "f4"), np.empty(shape, "u2")
    counted = np.zeros((len(counts), len(COUNTED)))
    for y in range(y1, y2, rows):
        strip = y, min(y + rows, y2), x1, x2
        *planes, of_strip = _stack_strip(of_frames, detector, strip, size, combination, grow)
        counted += of_strip
        for whole, part in zip(block, planes, strict=True):
            whole[y - y1 : strip[1] - y1] = part
    return *block, counted


def _stack_strip(
    of_frames: Sequence[Sequence[Any]],
    detector: int,
    strip: Window,
    size: tuple[int, int],
    combination: dict[str, Any],
    grow: bool,
) -> tuple[np.ndarray, ...]:
    """Stack one strip with a margin, so that neighbours of rejected pixels are known.

    Gives data, variance, DQ, and what `count_frames` counts.
    """
    wide = _widened(strip, GROW_MARGIN if grow else 0, size)
    shape = len(of_frames), wide[1] - wide[0], wide[3] - wide[2]
    cubes = np.empty(shape, "f4"), np.empty(shape, "f4"), np.empty(shape, "u2")
    for number, sources in enumerate(of_frames):
        planes = cubes[0][number], cubes[1][number], cubes[2][number]
        if isinstance(sources[0], Resampled):
            sources[0].fill(wide, planes)
            continue
        read_together(sources, detector, wide, planes)
    rows = slice(strip[0] - wide[0], strip[1] - wide[0])
    columns = slice(strip[2] - wide[2], strip[3] - wide[2])
    rejected = np.zeros(shape, bool)  # none where `reject` drops so many at each end
    stack = _combine_planes(cubes, combination, grow, rejected)
    counted = count_frames(*cubes, rejected, stack[0], (rows, columns), strip[0])
    return *(plane[rows, columns] for plane in stack), counted


def _combine_planes(
    cubes: Planes, combination: dict[str, Any], grow: bool, rejected: Mask | None = None
) -> Planes:
    """Combine planes (n, ny, nx) into data, variance and DQ (ny, nx) of the stack.

    rejected: (n, ny, nx) of False, set where clipping has rejected a value.
    """
    rejected = np.zeros(cubes[0].shape, bool) if rejected is None else rejected
    clips = combination["reject"].endswith("clip")
    data, variance, dq = combine(*cubes, **combination, rejected=rejected if clips else None)[:3]
    if grow:
        neighbours = grow_rejected(rejected)
        how = combination["method"], combination.get("weights")
        combine_without_rejected((data, variance, dq), cubes, rejected, neighbours, *how)
    return data, variance, dq
