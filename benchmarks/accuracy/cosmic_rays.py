"""Charge of cosmic rays that stays in a stack, and what rejection takes from stars."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table

from benchmarks.accuracy.matched_stack import (
    APERTURE,
    MatchedStack,
    frame_names,
    frames_per_pixel,
)
from benchmarks.accuracy.noise import blank_pixels, local_level
from benchmarks.accuracy.photometry import UNMEASURABLE
from gdask.kernels.geometry.projection import to_sky
from gdask.model import DQ
from gdask.types import Flags, Image, Mask

#: Frames that must cover a place before rejection can be asked for anything.
MIN_FRAMES = 5
#: Parameters that leave all rejection out.
NO_REJECTION = ("stackFrames:reject_method=none",)
#: Electrons of the stack by which cosmic rays must change a pixel to count.
MIN_CHANGE = 3.0
#: Peak (e- a frame) above which a star's loss by rejection is measured.
MIN_STAR_PEAK = 500

Planes = tuple[Image, Flags]


def charge_figures(stack: MatchedStack) -> dict[str, float]:
    """Charge at the places of cosmic rays, over what would be there without rejection.

    In blank parts of the stack under MIN_FRAMES frames or more. Nothing where there are none.
    """
    hits = Table.read(stack.truth / "cosmic_rays.fits")
    names, depth = frame_names(stack.astrom), frames_per_pixel(stack)
    sigma = np.sqrt(np.maximum(stack.variance, 1e-9))
    blank = (stack.model < sigma) & (_stacked_frames(stack, depth) >= MIN_FRAMES)
    (ny, nx), injected = stack.data.shape, 0.0
    touched = np.zeros((ny, nx), bool)
    for row, geometry in enumerate(stack.geometries):
        in_frame = hits["file"] == f"{names[row]}.fits"
        on_array = hits[in_frame & (hits["array"] == stack.astrom["ARRAY"][row])]
        if not len(on_array):
            continue
        x, y = stack.wcs.world_to_pixel_values(
            *to_sky(geometry, np.asarray(on_array["x"], float), np.asarray(on_array["y"], float))
        )
        i, j = np.rint(x).astype(int), np.rint(y).astype(int)
        inside = (i > 4) & (j > 4) & (i < nx - 5) & (j < ny - 5)
        inside[inside] = blank[j[inside], i[inside]]
        i, j = i[inside], j[inside]
        injected += float(np.sum(np.asarray(on_array["electrons"])[inside] / depth[j, i]))
        for b, a in zip(j, i, strict=True):
            touched[b - 2 : b + 3, a - 2 : a + 3] = True
    touched &= stack.variance > 0
    if injected <= 0:
        return {}
    residual = stack.residual - local_level(stack.residual, blank_pixels(stack, 0.1))
    error = np.sqrt(stack.variance[touched].sum()) / injected
    return {
        "cosmic_removed_percent": 100 * (1 - float(residual[touched].sum()) / injected),
        "cosmic_removed_error_percent": 100 * float(error),
    }


def _stacked_frames(stack: MatchedStack, depth: Image) -> Image:
    """Frames that are in each pixel of the stack, by its variance.

    Arrays cover places that they do not see (field stop).
    """
    deepest = int(depth.max())
    whole = stack.variance[(depth == deepest) & (stack.variance > 0)]
    if not len(whole):
        return depth
    share = np.median(whole) / np.maximum(stack.variance, 1e-9)
    return np.minimum(depth, np.rint(deepest * share))


def rejection_figures(stack: MatchedStack, reduce: Callable[..., Path]) -> dict[str, float]:
    """Measure cosmic rays and rejection exactly: the same night and noise with and without either.

    stack: of the night without cosmic rays, with rejection. reduce(cosmics, *parameters): the
    image of the night with (cosmics True) or without cosmic rays.

    Charge: sum over the pixels that cosmic rays touch (difference of the stacks without
    rejection), with rejection over without. Loss: flux in apertures without rejection less that
    with it, over the expected flux, of stars that saturate in no frame, under MIN_FRAMES frames
    or more.
    """
    hit, hit_all, clean, clean_all = (
        _read_planes(reduce(cosmics, *parameters))
        for cosmics, parameters in (
            (True, ()),
            (True, NO_REJECTION),
            (False, ()),
            (False, NO_REJECTION),
        )
    )
    # The flag of a cosmic ray is no reason to leave a pixel out.
    unusable = np.uint16(UNMEASURABLE & ~int(DQ.COSMIC_RAY))
    usable = np.all([dq & unusable == 0 for _, dq in (hit, hit_all, clean, clean_all)], axis=0)
    usable &= frames_per_pixel(stack) >= MIN_FRAMES
    injected = np.where(usable, hit_all[0] - clean_all[0], 0)
    touched = np.abs(injected) > MIN_CHANGE
    left = np.where(usable & touched, hit[0] - clean[0], 0)
    # Cosmic rays change levels and sky frames, too, by a fraction of an electron everywhere.
    left[usable & touched] -= np.median((hit[0] - clean[0])[usable & ~touched])
    kept = 100 * float(np.abs(left).sum()) / float(np.abs(injected[touched]).sum())
    return {
        "cosmic_removed_percent": 100 * (1 - float(left.sum()) / float(injected[touched].sum())),
        "cosmic_left_over_absolute_percent": kept,
    } | _star_losses(stack, clean, clean_all, usable)


def _star_losses(
    stack: MatchedStack, rejected: Planes, unrejected: Planes, usable: Mask
) -> dict[str, float]:
    """Flux that rejection takes from stars (%): of all, and the worst of the brightest quarter."""
    whole = usable & ((rejected[1] | unrejected[1]) & np.uint16(DQ.SATURATED) == 0)
    change = rejected[0] - unrejected[0]
    peak, half = stack.profiles[:, 0].mean(), int(APERTURE)
    losses: list[tuple[float, float]] = []
    for k in np.flatnonzero(stack.frame_count > 0):
        i, j = round(float(stack.x[k])), round(float(stack.y[k]))
        cut = np.s_[j - half : j + half + 1, i - half : i + half + 1]
        inside = min(i, j) > half and whole[cut].size == (2 * half + 1) ** 2
        if inside and stack.flux[k] * peak > MIN_STAR_PEAK and whole[cut].all():
            losses.append((-float(change[cut].sum()), float(stack.flux[k])))
    nan = float("nan")
    if not losses:
        return {"star_loss_percent": nan, "star_loss_worst_percent": nan, "loss_stars": 0}
    lost, flux = np.array(losses).T
    bright = flux > np.percentile(flux, 75)
    worst = 100 * float(np.max(lost[bright] / flux[bright])) if bright.any() else nan
    return {
        "star_loss_percent": 100 * float(lost.sum() / flux.sum()),
        "star_loss_worst_percent": worst,
        "loss_stars": len(losses),
    }


def _read_planes(image: Path) -> Planes:
    """Science and DQ plane of an image."""
    with fits.open(image) as hdus:
        return hdus["SCI"].data.astype("f4"), hdus["DQ"].data.astype("u2")
