"""Pictures of a product's pixels: preview, mask, overlays of flags and depth, ratio to another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gdask.io.frames import array_headers
from gdask.plot import measures, raster
from gdask.plot.layout import Layout, compose, compose_flags
from gdask.plot.material import Made, Material, Missing, Picture
from gdask.plot.planes import Planes, frame_of, means_on_one_level, read_planes

#: Bytes that a preview may take; a larger one has half of the grey levels.
PREVIEW_BYTES = 1_400_000


def preview(material: Material) -> list[Made]:
    """Make the view of the pixels; of a mask, of its bits."""
    if material.kind == "bpm":
        return _mask_preview(material)
    picture = compose(means_on_one_level(material.planes, material.kind), material.layout)
    limits = raster.limits_of(picture, linear=material.kind in ("flat", "dark"))
    levels, coarse, content = raster.grey_levels(picture, limits), 1, b""
    while not content or (len(content) > PREVIEW_BYTES and coarse < 16):
        shown = raster.grey_picture(np.where(levels, (levels - 1) // coarse * coarse + 1, 0))
        if material.kind not in ("flat", "dark"):
            raster.mark_sky(shown, material.layout)
        content, coarse = raster.png_bytes(shown), 2 * coarse
    unit = str(array_headers(material.frame)[0].get("BUNIT") or "counts")
    unit = "" if unit == "1" else f" {unit}"  # a ratio has no unit to name
    known = np.isfinite(picture)
    share = known.mean() if picture.size else 0.0
    scale = "asinh" if math.isfinite(limits.soft) else "linear"
    alt = (
        f"{_what(material)} of {_size_text(material)}, in grey levels ({scale}) "
        f"from {limits.low:.4g} to {limits.high:.4g}{unit}"
        + (", each array moved to one level" if _is_moved(material) else "")
        + "; "
        + (f"{100 * share:.0f} % of the picture has data" if known.any() else "no pixel has data")
        + ("" if material.kind in ("flat", "dark") else _direction_text(material.layout))
        + "."
    )
    return [_made("preview", "Preview", alt, shown, content)]


def _is_moved(material: Material) -> bool:
    return not material.kind and len(material.planes) > 1


_NAMES = {"image": "Image", "frame": "Frame", "flat": "Flat", "dark": "Dark", "bpm": "Mask"}


def _what(material: Material) -> str:
    """Say what a picture shows: a kind of product, or the name of a file that is none."""
    name = str(material.frame.attrs.get("name", ""))
    return _NAMES.get(material.kind, f"File {name}".strip())


def _size_text(material: Material) -> str:
    count, (ny, nx) = len(material.planes), material.planes[0].shape
    return f"{nx} x {ny} pixels" if count == 1 else f"{count} arrays of {nx} x {ny} pixels"


def _direction_text(layout: Layout) -> str:
    if layout.north is None or layout.scale is None:
        return ", directions on the sky are not known"
    north, east = layout.north, layout.east
    up = _direction(north)
    side = ""
    if east is not None:
        is_left = north[0] * east[1] > north[1] * east[0]
        straight = _direction(east)
        side = (
            straight if straight in _SIDES.values() else "left of it" if is_left else "right of it"
        )
        side = f", East is {side}"
    return f", North is {up}{side}, the field is {layout.shape[1] * layout.scale:.3g} arcsec wide"


_SIDES = {0: "up", 90: "left", -90: "right", 180: "down", -180: "down"}


def _direction(vector: tuple[float, float]) -> str:
    """Say where a direction in a picture (x to the right, y up) points."""
    angle = math.degrees(math.atan2(-vector[0], vector[1]))
    for side, word in _SIDES.items():
        if abs(angle - side) < 0.5:
            return word
    return f"{abs(angle):.0f} degrees {'counterc' if angle > 0 else 'c'}lockwise of up"


def _made(
    key: str, title: str, alt: str, picture: Any, content: bytes, overlay_of: str = ""
) -> Made:
    width, height = picture.size
    return Picture(key, f"{key}.png", title, alt, width, height, overlay_of), content


def mask_view(planes: Sequence[Planes], layout: Layout) -> Any:
    """Draw the bits of a mask in colours on black, as a picture of pillow; clear between arrays."""
    flags = compose_flags([_flags(plane) for plane in planes], layout)
    inside = compose([np.ones_like(plane.mean) for plane in planes], layout)
    levels = raster.flag_levels(flags) + np.where(np.isfinite(inside), 1, 0).astype("u1")
    return raster.overlay(levels, [(24, 24, 24, 255), *(c[:3] + (255,) for c in DQ_RGBA)])


def flags_view(planes: Sequence[Planes], layout: Layout) -> Any:
    """Draw flagged pixels in colours on nothing, as a picture of pillow."""
    flags = compose_flags([_flags(plane) for plane in planes], layout)
    return raster.overlay(raster.flag_levels(flags), DQ_RGBA)


def _mask_preview(material: Material) -> list[Made]:
    shown = mask_view(material.planes, material.layout)
    bad = material.numbers.get("bad_fraction")
    alt = (
        f"Bad-pixel mask of {_size_text(material)}: {raster.dq_sentence(_counts(material))}"
        + (f"; {100 * bad:.3g} % of the pixels are bad" if isinstance(bad, float) else "")
        + "."
    )
    return [_made("preview", "Bad-pixel mask", alt, shown, raster.png_bytes(shown))]


DQ_RGBA = [colour for _, _, colour in raster.DQ_COLOURS]


def _flags(plane: Planes) -> Any:
    return plane.flags if plane.flags is not None else np.zeros(plane.mean.shape, "u2")


def _counts(material: Material) -> dict[int, int]:
    return {
        bit: sum(plane.counts[bit] for plane in material.planes)
        for bit in material.planes[0].counts
    }


def dq_overlay(material: Material) -> list[Made]:
    if material.kind == "bpm":
        return []
    if any(plane.flags is None for plane in material.planes):
        raise Missing("the file has no DQ")
    shown = flags_view(material.planes, material.layout)
    step = material.planes[0].step
    alt = f"Flagged pixels over the preview: {raster.dq_sentence(_counts(material))}." + (
        f" A point stands for {step} x {step} pixels of which one or more are flagged."
        if step > 1
        else ""
    )
    return [_made("dq", "Data quality", alt, shown, raster.png_bytes(shown), "preview")]


#: Steps of the overlay of depth in mag, and their number: 16 of 0.125 reach 2 mag.
_DEPTH_STEP, _DEPTH_LEVELS = 0.125, 16


def depth_overlay(material: Material) -> list[Made]:
    if any(plane.variance is None for plane in material.planes):
        raise Missing("the file has no VAR")
    variance = compose([plane.variance for plane in material.planes], material.layout)  # type: ignore
    good = np.isfinite(variance) & (variance > 0)
    if not good.any():
        raise Missing("no pixel has a variance")
    deepest = np.percentile(variance[good], 1)
    loss = np.zeros_like(variance)
    loss[good] = 1.25 * np.log10(variance[good] / deepest)
    levels = np.clip(loss / _DEPTH_STEP, 0, _DEPTH_LEVELS - 1).astype("u1") + 1
    shown = raster.overlay(np.where(good, levels, 0).astype("u1"), _depth_colours())
    half = float((loss[good] < 0.376).mean())
    alt = (
        f"Depth over the preview, in steps of {_DEPTH_STEP:g} mag from the deepest (bright) to "
        f"2 mag less (dark): {100 * half:.0f} % of the covered pixels have half of the exposure "
        f"time or more; the median is {float(np.median(loss[good])):.2f} mag below the deepest."
    )
    return [_made("depth", "Depth", alt, shown, raster.png_bytes(shown), "preview")]


def _depth_colours() -> list[tuple[int, int, int, int]]:
    import matplotlib

    colours = matplotlib.colormaps["cividis"](np.linspace(1, 0, _DEPTH_LEVELS))
    return [(int(255 * r), int(255 * g), int(255 * b), 130) for r, g, b, _ in colours]


def ratio(material: Material) -> list[Made]:
    """Make the picture of a flat over its predecessor."""
    if material.predecessor is None:
        return []
    earlier = frame_of(material.predecessor)
    if dict(earlier.sizes) != dict(material.frame.sizes):
        raise Missing(f"{material.predecessor.name} has arrays of another shape")
    step = material.planes[0].step
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = [
            np.where(plane.empty & other.empty, plane.mean / other.mean, np.nan)
            for plane, other in zip(material.planes, read_planes(earlier, step), strict=True)
        ]
    picture = compose(ratios, material.layout)
    known = picture[np.isfinite(picture)]
    if not len(known):
        raise Missing(f"no pixel is usable in both, {material.predecessor.name} and this one")
    limits = raster.limits_of(picture, linear=True)
    shown = raster.grey_picture(raster.grey_levels(picture, limits))
    alt = (
        f"The flat over {material.predecessor.name}: median {np.median(known):.4f}, scatter "
        f"{measures.robust_scatter(known):.2g}; grey levels from {limits.low:.4f} to "
        f"{limits.high:.4f}."
    )
    return [_made("ratio", "Over its predecessor", alt, shown, raster.png_bytes(shown))]
