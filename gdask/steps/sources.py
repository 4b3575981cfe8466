"""Find sources: object masks for the sky, catalogues and centroids for the alignment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from dask.base import tokenize

from gdask.instruments import instrument_of
from gdask.io.frames import (
    array_headers,
    geometries,
    note,
    shape_of,
    small,
    warn,
    with_headers,
    with_small,
)
from gdask.io.gather import gather
from gdask.io.lazy_arrays import map_arrays, map_planes
from gdask.io.sources import Source
from gdask.kernels.arithmetic import cosines, sines
from gdask.kernels.detector.quality import flag_strips
from gdask.kernels.geometry.grid import Grid, common_grid, sky_to_grid
from gdask.kernels.geometry.projection import Geometry, from_sky, to_sky
from gdask.kernels.geometry.wcs import grid_from_header
from gdask.kernels.sky.shared_masks import OUTLINE_PIXELS, Outline, outline, share_outlines
from gdask.kernels.sources.centroids import PHOTOMETRY, POSITIONS, fit_photometry, fit_positions
from gdask.kernels.sources.detection import detect, measure_fwhm, object_mask
from gdask.model import DQ
from gdask.params import Range
from gdask.steps.frames import array, arrays_of, by_night, named, with_arrays
from gdask.types import Flags, Frame, Frames, Image, Mask, Window

#: Pixels between the points of an array at which its place on a stack is computed exactly.
NODE_SPACING = 16
#: By how much the pointings of two headers may differ from the truth. (Guided offsets are good to
#: 0.25 arcsec, frames of a sky that is not guided are worse.)
POINTING_ERROR_ARCSEC = 1.0
#: A trail is at least so long, as a share of the array's shorter side, and so narrow (1 - b/a). It
#: is flagged out to so many times the rms width of what was detected of it: its light ends there.
TRAIL_LENGTH, TRAIL_ELLIPTICITY, TRAIL_WIDTH = 0.5, 0.85, 4.0
#: Points along a trail that are looked for on other frames.
TRAIL_POINTS = 9
#: Bytes for each pixel of an array that looking up its place on a stack takes (indices,
#: interpolated twice): measured 31 beside the stack's mask, with a quarter added.
_LOOK_UP_BYTES = 40.0


def detect_sources(
    frame: Frame,
    *,
    threshold: Annotated[float, Range(0.1, None)] = 2.0,
    min_pixels: Annotated[int, Range(1, None)] = 8,
    mesh: Annotated[int, Range(8, None)] = 32,
    products: Literal["mask", "catalog", "centroids"] = "centroids",
) -> Frame:
    """Find sources on each array: OBJMASK, OBJCAT and centroids. [detectSources]

    OBJCAT and centroids are fetched at the end of the phase.

    Parameters
    ----------
    threshold
        Detection limit in standard deviations of the background.
    min_pixels
        Connected pixels above the limit.
    mesh
        Pixels of a cell of the background mesh.
    products
        What to make: mask (OBJMASK, and its outline for share_objects), catalog (for a stack) or
        centroids (for a frame). catalog makes OBJMASK, and OBJCAT with fitted stars and apertures;
        centroids makes OBJMASK, OBJCAT and precise positions for the alignment.
    """
    planes = [each.rechunk((1, -1, -1), method="tasks") for each in arrays_of(frame)]
    detection: dict[str, Any] = {"threshold": threshold, "min_pixels": min_pixels, "mesh": mesh}
    if products == "mask":
        mask = map_planes(
            object_mask, planes[0], planes[2], dtype="bool", pixelwise=False, **detection
        )
        outlined = map_arrays(_outline, mask)
        return with_small(with_arrays(frame, objects=mask), outline=outlined)
    found = map_arrays(_detect, *planes, **detection)
    mask = map_planes(_mask, planes[0], found, dtype="bool", pixelwise=False, shape=shape_of(frame))
    stars = (
        map_arrays(_photometry, *planes, found)
        if products == "catalog"
        else map_arrays(_stars, *planes, found)
    )
    if products == "centroids":
        # The frame goes on in the whole arrays that detection needs anyway: if bands were written
        # by themselves, dask's order would write those of all frames and arrays before the first
        # detection, and keep them (9 frames: 1.6 GB in place of 0.6).
        frame = with_arrays(frame, **named(planes))
    return with_small(
        with_arrays(frame, objects=mask),
        objcat=map_arrays(_catalog, found),
        stars=stars,
    )


def _detect(
    data: Image, variance: Image, dq: Flags, threshold: float, min_pixels: int, mesh: int
) -> tuple[np.ndarray, np.ndarray]:
    """Give the catalogue of an array, and its object mask as packed bits."""
    catalog, mask = detect(
        data, variance, dq, threshold=threshold, min_pixels=min_pixels, mesh=mesh
    )
    return catalog, np.packbits(mask)


def _catalog(found: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return found[0]


def _mask(data: Image, found: tuple[np.ndarray, np.ndarray], shape: tuple[int, int]) -> Mask:
    bits = found[1]
    return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).astype(bool)


def _stars(
    data: Image,
    variance: Image,
    dq: Flags,
    found: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    catalog = found[0]
    fwhm = measure_fwhm(catalog, data.shape)
    if not np.isfinite(fwhm):
        return np.zeros(0, POSITIONS)
    x, y = catalog["X_IMAGE"] - 1, catalog["Y_IMAGE"] - 1
    return fit_positions(data, variance, dq, x, y, fwhm=fwhm)


def _photometry(
    data: Image, variance: Image, dq: Flags, found: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    catalog = found[0]
    fwhm = measure_fwhm(catalog, data.shape)
    if not np.isfinite(fwhm):
        return np.zeros(0, PHOTOMETRY)
    return fit_photometry(
        data, variance, dq, catalog["X_IMAGE"] - 1, catalog["Y_IMAGE"] - 1, fwhm=fwhm
    )


def flag_trails(frames: Frames) -> Frames:
    """Flag trails of satellites and planes in aligned frames (DQ 8). [flagTrails]

    A trail is a source that is long and narrow, on a frame whose fellows have its place in their
    field and show nothing like it there. All of the line is flagged, across the array.
    """
    found = [_long_sources(frame) for frame in frames]
    flagged = []
    for number, frame in enumerate(frames):
        others = [(frames[n], found[n]) for n in range(len(frames)) if n != number]
        trails = [
            [one for one in own if _is_trail(frame, detector, one, others)]
            for detector, own in enumerate(found[number])
        ]
        if any(trails):
            frame = _with_trails(frame, trails)
        flagged.append(frame)
    return tuple(flagged)


def _long_sources(frame: Frame) -> list[list[np.ndarray]]:
    """Give for each array the sources, rows of its catalogue, that may be trails."""
    catalogs = small(frame, "objcat", lazy_is_none=True)
    if catalogs is None:
        return [[] for _ in range(frame.sizes["detector"])]
    least = TRAIL_LENGTH * min(shape_of(frame)) / 12**0.5  # rms of an even line
    return [
        list(each[(each["A_IMAGE"] > least) & (each["ELLIPTICITY"] > TRAIL_ELLIPTICITY)])
        for each in catalogs
    ]


def _is_trail(
    frame: Frame,
    detector: int,
    source: np.ndarray,
    others: Sequence[tuple[Frame, list[list[np.ndarray]]]],
) -> bool:
    """Tell whether other frames have the place of a long source, and none shows it there."""
    x, y, angle, _ = _strip(source)
    along = float(source["A_IMAGE"]) * np.linspace(-1.5, 1.5, TRAIL_POINTS)
    (c,), (s,) = cosines([angle]), sines([angle])
    places = to_sky(geometries(frame)[detector], x + along * c, y + along * s)
    is_seen = np.zeros(TRAIL_POINTS, bool)
    for other, found in others:
        ny, nx = shape_of(other)
        for geometry, sources in zip(geometries(other), found, strict=True):
            px, py = from_sky(geometry, *places)
            inside = (px > 0) & (px < nx - 1) & (py > 0) & (py < ny - 1)
            is_seen |= inside
            for one in sources:
                x1, y1, turn, half = _strip(one)
                (c1,), (s1,) = cosines([turn]), sines([turn])
                near = inside & (np.abs(c1 * (py - y1) - s1 * (px - x1)) < half)
                if near.sum() > 0.5 * inside.sum():
                    return False
    return bool(is_seen.any())


def _strip(source: np.ndarray) -> tuple[float, float, float, float]:
    """Give the strip that covers a long source, as `flag_strips` takes it."""
    return (
        float(source["X_IMAGE"]) - 1,
        float(source["Y_IMAGE"]) - 1,
        float(source["THETA_IMAGE"]),
        TRAIL_WIDTH * float(source["B_IMAGE"]),
    )


def _with_trails(frame: Frame, trails: Sequence[Sequence[np.ndarray]]) -> Frame:
    """Give the frame with the lines of these sources, by array, flagged; warns of it."""
    strips = [[_strip(one) for one in own] for own in trails]
    (dq,) = arrays_of(frame, ("dq",))
    flagged = map_planes(
        flag_strips,
        dq,
        dtype="u2",
        each={"strips": strips},
        windowed=True,
        flag=int(DQ.COSMIC_RAY),
    )
    where = ", ".join(
        f"array {number}: {2 * half:.0f} pixels wide through ({x:.0f}, {y:.0f}) at {angle:.0f} deg"
        for number, own in enumerate(strips, 1)
        for x, y, angle, half in own
    )
    text = f"{frame.attrs['name']}: a trail that no other frame shows is flagged ({where})"
    return warn(with_arrays(frame, dq=flagged), text)


def share_objects(frames: Frames) -> Frames:
    """Mask on all frames of a night what was found on one of them at the same place of the sky.

    A star that was missed on a frame, because its sky frames had light at the same pixels, would
    be in the sky of others, which are of its night (`associate_sky`). Frames without outlines,
    which detect_sources with products=mask makes, stay as they are.
    """
    shared: dict[str, Frame] = {}
    for night in by_night(frames):
        shared |= {frame.attrs["name"]: frame for frame in _share_in_night(night)}
    return tuple(shared[frame.attrs["name"]] for frame in frames)


def _share_in_night(frames: Frames) -> Frames:
    """Mask on all frames of one night what was found on one of them."""
    known = [frame for frame in frames if small(frame, "outline", lazy_is_none=True) is not None]
    if len(known) < 2:
        return frames
    outlines, reach = _outlines(known)
    found = share_outlines(outlines, reach)
    share, own = (
        100 * float(np.mean([each.mean() for each in of_all]))
        for of_all in (found, [each.blocks for each in outlines])
    )
    text = f"{share:.2g} % of the pixels masked that another frame shows, beside {own:.2g} %"
    shared, added = {}, iter(found)
    for frame in known:
        blocks = [next(added) for _ in range(frame.sizes["detector"])]
        objects = map_planes(
            _with_blocks,
            array(frame, "objects"),
            dtype="bool",
            each={"bits": [np.packbits(each) for each in blocks]},
            windowed=True,
            shape=blocks[0].shape,
        )
        cover = (round(share + own, 2), "percent of the sky frames that objects cover")
        masked = with_headers(with_arrays(frame, objects=objects), primary={"SKYCOVER": cover})
        shared[frame.attrs["name"]] = note(masked, text)
    return tuple(shared.get(frame.attrs["name"], frame) for frame in frames)


def _outline(mask: Mask) -> np.ndarray:
    return np.packbits(outline(mask))


def _outlines(frames: Sequence[Frame]) -> tuple[list[Outline], int]:
    """Give the outlines of all arrays of frames, and the cells by which pointings may be off."""
    arcsec = OUTLINE_PIXELS * float(instrument_of(frames[0]).facts["output_pixel_scale"])
    placed = [(geometry, shape_of(frame)) for frame in frames for geometry in geometries(frame)]
    found, shapes = [geometry for geometry, _ in placed], [shape for _, shape in placed]
    grid = common_grid(found, shapes, arcsec, 0.0, found[0].ra, found[0].dec)
    outlines = []
    for number, frame in enumerate(frames):
        size = tuple(-(-pixels // OUTLINE_PIXELS) for pixels in shape_of(frame))
        for geometry, bits in zip(geometries(frame), small(frame, "outline"), strict=True):
            blocks = np.unpackbits(bits, count=size[0] * size[1]).reshape(size).astype(bool)
            outlines.append(Outline(number, blocks, *_corners(geometry, size, grid)))
    return outlines, int(np.ceil(POINTING_ERROR_ARCSEC / arcsec))


def _corners(
    geometry: Geometry, size: tuple[int, ...], grid: Grid
) -> tuple[np.ndarray, np.ndarray]:
    """Give x and y on a grid of the corners of the blocks of an array.

    They are exact at every NODE_SPACING blocks and interpolated between.
    """
    nodes = [np.arange(0, n + 1 + NODE_SPACING, NODE_SPACING) * OUTLINE_PIXELS - 0.5 for n in size]
    y, x = np.meshgrid(*nodes, indexing="ij")
    gx, gy = sky_to_grid(grid, *to_sky(geometry, x, y))
    gx, gy = (_interpolate_nodes(values, size[0] + 1, size[1] + 1) for values in (gx, gy))
    return gx + 0.5, gy + 0.5


def _with_blocks(mask: Mask, bits: np.ndarray, shape: tuple[int, int], window: Window) -> Mask:
    """Give the pixels of `window` of a mask with the blocks of `bits` masked, too."""
    y1, y2, x1, x2 = window
    top, bottom = y1 // OUTLINE_PIXELS, -(-y2 // OUTLINE_PIXELS)
    left, right = x1 // OUTLINE_PIXELS, -(-x2 // OUTLINE_PIXELS)
    first, last = top * shape[1], bottom * shape[1]  # of the blocks in these rows
    unpacked = np.unpackbits(bits[first // 8 : -(-last // 8)])[first % 8 :]
    blocks = unpacked[: last - first].reshape(bottom - top, shape[1])[:, left:right]
    rows = blocks.repeat(OUTLINE_PIXELS, axis=1)[:, x1 - left * OUTLINE_PIXELS :].view(bool)
    pixels = rows.repeat(OUTLINE_PIXELS, axis=0)[y1 - top * OUTLINE_PIXELS :]
    return mask | pixels[: y2 - y1, : x2 - x1]


def objects_from_stack(frames: Frames, deep: Frame, aligned: Frames) -> Frames:
    """Add to each frame's object mask what is masked on the stack.

    Frames that are not in the stack keep their own mask.

    Parameters
    ----------
    frames
        The frames, with object masks of their own or without.
    deep
        The stack, with OBJMASK and a plain TAN WCS.
    aligned
        The frames of the stack, with their geometry.
    """
    header = array_headers(deep)[0].copy()
    header["NAXIS1"], header["NAXIS2"] = deep.sizes["x"], deep.sizes["y"]
    grid = grid_from_header(header, deep.attrs["name"])
    solved = {frame.attrs["name"]: geometries(frame) for frame in aligned}
    return tuple(
        _with_mask_of_stack(frame, deep, grid, solved[frame.attrs["name"]])
        if frame.attrs["name"] in solved
        else frame
        for frame in frames
    )


def _with_mask_of_stack(
    frame: Frame, deep: Frame, grid: Grid, solved: tuple[Geometry, ...]
) -> Frame:
    """Give a frame with its object mask and that of the stack. solved: geometry of its arrays."""
    mask_of_frame = array(frame, "objects")
    arrays = arrays_of(deep, ("objects",))
    if mask_of_frame is not None:
        arrays.append(mask_of_frame)
    ny, nx = shape_of(frame)
    whole = (0, grid.shape[0], 0, grid.shape[1])
    mask = gather(
        _look_up,
        arrays,
        name=f"objects_from_stack-{tokenize([each.name for each in arrays], solved, grid)}",
        dtype="bool",
        chunks=((1,) * frame.sizes["detector"], (ny,), (nx,)),
        windows=lambda number, detector, window: [(detector, window)] if number else [(0, whole)],
        scratch=_LOOK_UP_BYTES * ny * nx + float(grid.shape[0]) * grid.shape[1],
        solved=solved,
        grid=grid,
    )
    return with_arrays(frame, objects=mask)


def _look_up(
    sources: tuple[Source, ...],
    detector: int,
    window: Window,
    solved: tuple[Geometry, ...],
    grid: Grid,
) -> Mask:
    """Look up the nearest pixel of the stack's mask for every pixel of an array.

    Places on the stack are exact at every NODE_SPACING pixels and interpolated between. sources:
    the stack's mask, and that of the frame, if it has one.
    """
    deep = sources[0].read(0, (0, grid.shape[0], 0, grid.shape[1]), {})
    ny, nx = window[1], window[3]
    nodes = [np.arange(0, size + NODE_SPACING, NODE_SPACING, dtype=float) for size in (ny, nx)]
    y, x = np.meshgrid(*nodes, indexing="ij")
    geometry = solved[detector]
    gx, gy = sky_to_grid(grid, *to_sky(geometry, x, y))
    places = [_interpolate_nodes(values, ny, nx) for values in (gy, gx)]
    j, i = (
        np.clip(np.rint(place).astype(np.int32), 0, size - 1)
        for place, size in zip(places, deep.shape, strict=True)
    )
    mask = deep[j, i]
    return mask if len(sources) < 2 else mask | sources[1].read(detector, window, {})


def _interpolate_nodes(nodes: np.ndarray, ny: int, nx: int) -> np.ndarray:
    """Interpolate values at every NODE_SPACING pixels bilinearly.

    The distortion bends by 2e-4 pixel between nodes.
    """
    fy, fx = (np.arange(n) / NODE_SPACING for n in (ny, nx))
    iy, ix = fy.astype(int), fx.astype(int)
    ty, tx = (fy - iy)[:, None], fx - ix
    rows = nodes[iy] * (1 - ty) + nodes[iy + 1] * ty
    return rows[:, ix] * (1 - tx) + rows[:, ix + 1] * tx
