"""Sources on each array: object masks for the sky, catalogues and centroids for the alignment."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from gdask.kernels.centroid import POSITIONS, refine
from gdask.kernels.detect import detect, measure_fwhm, object_mask
from gdask.params import Range
from gdask.steps.frames import array, item, map_planes, pending, with_arrays
from gdask.types import Flags, Frame, Image, Mask


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
        What is made: mask (OBJMASK), catalog (OBJCAT too), centroids (precise positions for the alignment too).
    """
    whole = frame.chunk({"y": -1, "x": -1})
    planes = [array(whole, name) for name in ("data", "variance", "dq")]
    how = {"threshold": threshold, "min_pixels": min_pixels, "mesh": mesh}
    chunks = frame["data"].data.chunks
    if products == "mask":
        return with_arrays(frame, objects=map_planes(object_mask, planes[0], planes[2], dtype="bool", **how).rechunk(chunks))
    found = map_planes(_detect, *planes, dtype=object, whole=True, **how)
    shape = (frame.sizes["y"], frame.sizes["x"])
    masked = with_arrays(frame, objects=map_planes(_mask, planes[0], found, dtype="bool", shape=shape).rechunk(chunks))
    masked = pending(masked, objcat=map_planes(item, found, dtype=object, whole=True, name=0))
    if products == "catalog":
        return masked
    return pending(masked, stars=map_planes(_stars, *planes, found, dtype=object, whole=True))


def _detect(data: Image, variance: Image, dq: Flags, threshold: float, min_pixels: int, mesh: int) -> object:
    catalog, mask = detect(data, variance, dq, threshold=threshold, min_pixels=min_pixels, mesh=mesh)
    return catalog, np.packbits(mask)


def _mask(data: Image, found: np.ndarray, shape: tuple[int, int]) -> Mask:
    bits = found[0, 0][1]
    return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).astype(bool)


def _stars(data: Image, variance: Image, dq: Flags, found: np.ndarray) -> np.ndarray:
    catalog = found[0, 0][0]
    fwhm = measure_fwhm(catalog)
    if not np.isfinite(fwhm):
        return np.zeros(0, POSITIONS)
    return refine(data, variance, dq, catalog["X_IMAGE"] - 1, catalog["Y_IMAGE"] - 1, fwhm=fwhm)
