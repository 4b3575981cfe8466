"""Sources on each array: object masks for the sky, catalogues and centroids for the alignment."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from gdask.io.read import Plane, on_disk, read_window
from gdask.kernels.geometry.grid import Grid, sky_to_grid
from gdask.kernels.geometry.projection import Geometry, to_sky
from gdask.kernels.geometry.wcs import grid_from_header
from gdask.kernels.sources.centroids import PHOTOMETRY, POSITIONS, fit_photometry, fit_positions
from gdask.kernels.sources.detection import detect, measure_fwhm, object_mask
from gdask.params import Range
from gdask.steps.frames import array, item, map_planes, pending, with_arrays
from gdask.types import Flags, Frame, Frames, Image, Mask

#: Pixels between the points at which an array's place on a stack is computed exactly.
BLOCK = 16


def detect_sources(
    frame: Frame,
    *,
    threshold: Annotated[float, Range(0.1, None)] = 2.0,
    min_pixels: Annotated[int, Range(1, None)] = 8,
    mesh: Annotated[int, Range(8, None)] = 32,
    products: Literal["mask", "catalog", "centroids"] = "centroids",
) -> Frame:
    """Find sources on each array: OBJMASK, and (fetched at the end of the phase) OBJCAT and centroids. [detectSources]

    Parameters
    ----------
    threshold
        Detection limit in standard deviations of the background.
    min_pixels
        Connected pixels above the limit.
    mesh
        Pixels of a cell of the background mesh.
    products
        What is made: mask (OBJMASK), catalog (OBJCAT with fitted stars and apertures too: for a stack), centroids (OBJCAT
        and precise positions for the alignment too: for a frame).
    """
    whole = frame.chunk({"y": -1, "x": -1})
    planes = [array(whole, name) for name in ("data", "variance", "dq")]
    how = {"threshold": threshold, "min_pixels": min_pixels, "mesh": mesh}
    chunks = frame["data"].data.chunks
    if products == "mask":
        return with_arrays(
            frame,
            objects=map_planes(object_mask, planes[0], planes[2], dtype="bool", **how).rechunk(
                chunks
            ),
        )
    found = map_planes(_detect, *planes, dtype=object, whole=True, **how)
    shape = (frame.sizes["y"], frame.sizes["x"])
    masked = with_arrays(
        frame,
        objects=map_planes(_mask, planes[0], found, dtype="bool", shape=shape).rechunk(chunks),
    )
    masked = pending(masked, objcat=map_planes(item, found, dtype=object, whole=True, name=0))
    measure = _photometry if products == "catalog" else _stars
    return pending(masked, stars=map_planes(measure, *planes, found, dtype=object, whole=True))


def _detect(
    data: Image, variance: Image, dq: Flags, threshold: float, min_pixels: int, mesh: int
) -> object:
    catalog, mask = detect(
        data, variance, dq, threshold=threshold, min_pixels=min_pixels, mesh=mesh
    )
    return catalog, np.packbits(mask)


def _mask(data: Image, found: np.ndarray, shape: tuple[int, int]) -> Mask:
    bits = found[0, 0][1]
    return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).astype(bool)


def _stars(data: Image, variance: Image, dq: Flags, found: np.ndarray) -> np.ndarray:
    catalog = found[0, 0][0]
    fwhm = measure_fwhm(catalog)
    if not np.isfinite(fwhm):
        return np.zeros(0, POSITIONS)
    return fit_positions(
        data, variance, dq, catalog["X_IMAGE"] - 1, catalog["Y_IMAGE"] - 1, fwhm=fwhm
    )


def _photometry(data: Image, variance: Image, dq: Flags, found: np.ndarray) -> np.ndarray:
    catalog = found[0, 0][0]
    fwhm = measure_fwhm(catalog)
    if not np.isfinite(fwhm):
        return np.zeros(0, PHOTOMETRY)
    return fit_photometry(
        data, variance, dq, catalog["X_IMAGE"] - 1, catalog["Y_IMAGE"] - 1, fwhm=fwhm
    )


def objects_from_stack(frames: Frames, deep: Frame, aligned: Frames) -> Frames:
    """Add to each frame's object mask what is masked on the stack; frames that are not in the stack keep their own.

    deep: the stack, with OBJMASK and a plain TAN WCS, on disk. aligned: the frames of the stack, with their geometry.
    """
    header = deep.attrs["headers"][0].copy()
    header["NAXIS1"], header["NAXIS2"] = deep.sizes["x"], deep.sizes["y"]
    grid = grid_from_header(header, deep.attrs["name"])
    source = on_disk(deep, "objects")[0]
    solved = {frame.attrs["name"]: frame.attrs["geometry"] for frame in aligned}
    return tuple(
        _mask_from_stack(frame, source, grid, solved[frame.attrs["name"]])
        if frame.attrs["name"] in solved
        else frame
        for frame in frames
    )


def _mask_from_stack(
    frame: Frame, source: Plane, grid: Grid, geometries: tuple[Geometry, ...]
) -> Frame:
    planes = array(frame, "data"), array(frame, "objects")
    mask = map_planes(
        _look_up, *planes, dtype="bool", each={"geometry": geometries}, source=source, grid=grid
    )
    return with_arrays(frame, objects=mask)


def _look_up(data: Image, own: Mask | None, geometry: Geometry, source: Plane, grid: Grid) -> Mask:
    """The nearest pixel of the stack's mask for every pixel of an array, by the centres of blocks of BLOCK pixels."""
    deep = read_window(source, 0, source.shape[0], 0, source.shape[1], np.dtype(bool))
    ny, nx = data.shape
    nodes = [np.arange(0, size + BLOCK, BLOCK, dtype=float) for size in (ny, nx)]
    y, x = np.meshgrid(*nodes, indexing="ij")
    gx, gy = sky_to_grid(grid, *to_sky(geometry, x, y))
    places = [_between(nodes_of, ny, nx) for nodes_of in (gy, gx)]
    j, i = (
        np.clip(np.rint(place).astype(np.int32), 0, size - 1)
        for place, size in zip(places, deep.shape, strict=True)
    )
    mask = deep[j, i]
    return mask if own is None else mask | own


def _between(nodes: np.ndarray, ny: int, nx: int) -> np.ndarray:
    """Bilinear interpolation of values at every BLOCK pixels: the distortion bends by 2e-4 pixel within a block."""
    fy, fx = (np.arange(n) / BLOCK for n in (ny, nx))
    iy, ix = fy.astype(int), fx.astype(int)
    ty, tx = (fy - iy)[:, None], fx - ix
    rows = nodes[iy] * (1 - ty) + nodes[iy + 1] * ty
    return rows[:, ix] * (1 - tx) + rows[:, ix + 1] * tx
