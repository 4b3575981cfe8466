"""A stack against the truth of a simulated night.

Completeness, positions, fluxes, and steps of the sky at the edges of frames.

    python -m benchmarks.accuracy.truth IMAGE.fits TRUTH_FOLDER
"""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.table import Table
from astropy.wcs import WCS

from benchmarks.accuracy.inputs import area_unit, flat_unit, read_stack, to_pixels
from benchmarks.accuracy.matched_stack import APERTURE, moffat, true_distortion
from benchmarks.accuracy.photometry import aperture_sums, are_isolated
from benchmarks.accuracy.positions import find_stars, nearest_found
from benchmarks.accuracy.statistics import (
    MEDIAN_ERROR,
    SIGMA_PER_MAD,
    linear_residuals,
    median_absolute_deviation,
    sigma_about_zero,
)
from gdask.io.tables import geometries_of
from gdask.kernels.geometry.projection import Floats, Geometry, to_sky
from gdask.model import DQ
from gdask.types import Flags, Image, Mask

#: Inner and outer radius (pixels) of the ring of sky; no flagged pixel of it counts.
SKY_RING = (44.0, 60.0)
#: Any bit of DQ.
ALL_BITS = 0xFFFF
#: DQ bits that no pixel within 6 pixels of a star may have.
UNUSABLE_NEAR_STAR = int(DQ.BAD_PIXEL | DQ.SATURATED | DQ.NO_DATA | DQ.UNILLUMINATED)
#: Width (pixels) of the strips on both sides of a frame's edge.
EDGE_STRIP = 24
#: Good pixels that each strip must have.
MIN_STRIP_PIXELS = 4000
#: Stars above this flux (e-) are measured in apertures.
MIN_APERTURE_FLUX = 1e5
#: Radius (pixels) within which the model has a star's light: all stars, and those below 3000 e-.
MODEL_RADIUS, FAINT_MODEL_RADIUS = 100, 30


class _TrueStars(NamedTuple):
    """Places (0-based pixels), electrons and mean true distortion (East, North, pixels)."""

    x: Floats
    y: Floats
    flux: Floats
    distortion: Floats


def compare_with_truth(image: str, truth: str, field: str = "target") -> dict[str, float]:
    """Figures of merit of one stack. Positions in mas after one linear transform.

    `floor`: what the mean of the frames' true distortions leaves after that transform; no
    frame-to-frame alignment can remove it without a reference catalogue. `flux_ratio`: measured
    over true electrons, where the flat-field's unit (its median pixel) is taken from the true
    flats; light of the model of all stars is subtracted around each star.
    """
    stack, folder = read_stack(image), Path(truth)
    catalog, frames = Table.read(folder / "catalog.ecsv"), Table.read(folder / "frames.ecsv")
    stars = catalog[(catalog["field"] == field) & (catalog["kind"] == "star")]
    frame_rows = frames[np.array([str(name) == field for name in frames["field"]])]
    x, y = to_pixels(stack.wcs, stars)
    throughput = float(np.mean(frame_rows["scale"]))
    flux = np.asarray(stars["flux"]) * stack.exptime * throughput * flat_unit(folder)
    if stack.astrom is not None:
        flux *= area_unit(folder, geometries_of(stack.astrom), stack.astrom["ARRAY"])
    facts = json.loads((folder / "scene.json").read_text())
    distortion = np.zeros((2, len(stars)))
    for frame in frame_rows:
        distortion += true_distortion(frame, stars, facts)
    true = _TrueStars(x, y, flux, distortion / len(frame_rows) / stack.pixel)
    fwhm, found = find_stars(stack.data, stack.variance, stack.dq)
    wanted = _whole_stars(x, y, stack.dq) & are_isolated(x, y, flux, 2.5 * fwhm, 0.02)
    figures, offset = _position_figures(
        found, true, wanted, _expected_snr(flux, stack.variance, fwhm), fwhm, 1000 * stack.pixel
    )
    true = true._replace(x=x + offset[0], y=y + offset[1])
    profiles = [ast.literal_eval(str(text)) for text in frame_rows["psf"]]
    model = stars_model(true.x, true.y, flux, profiles, stack.pixel, stack.data.shape)
    residual = stack.data - model
    figures |= _flux_figures(residual, model, stack.variance, stack.dq, true)
    if stack.astrom is not None:
        figures |= edge_steps(residual, stack.dq, stack.wcs, stack.astrom)
    return {"fwhm_px": fwhm} | figures


def edge_steps(residual: Image, dq: Flags, wcs: WCS, astrom: Table) -> dict[str, float]:
    """Steps of the sky (e-) across each edge of each array of each frame.

    Only where other frames cover both sides.
    """
    steps = []
    for geometry in geometries_of(astrom):
        for side in range(4):
            outside, inside = (
                _edge_strip(residual, dq, wcs, geometry, side, depth)
                for depth in (-EDGE_STRIP, EDGE_STRIP)
            )
            if min(len(outside), len(inside)) > MIN_STRIP_PIXELS:
                steps.append(float(np.median(inside) - np.median(outside)))
    nan = float("nan")
    return {
        "edges": len(steps),
        "edge_step_rms_e": float(np.sqrt(np.mean(np.square(steps)))) if steps else nan,
        "edge_step_median_abs_e": float(np.median(np.abs(steps))) if steps else nan,
        "edge_step_worst_e": float(np.max(np.abs(steps))) if steps else nan,
    }


def _edge_strip(
    residual: Image, dq: Flags, wcs: WCS, geometry: Geometry, side: int, depth: int
) -> Image:
    """Good residuals in a strip of |depth| pixels along one edge of an array.

    side: 0 left, 1 right, 2 bottom, 3 top. depth > 0: inside the edge, < 0: outside.
    """
    size = 2049 - 2 * (geometry.x0 - 1) if geometry.x0 > 1 else 2048
    along = np.arange(60, size - 60, 1.0)
    inwards = np.sign(depth) * np.arange(5, abs(depth), 1.0)
    across = inwards + 4.0 if side % 2 == 0 else (size - 5) - inwards
    along_grid, across_grid = np.meshgrid(along, across)
    x, y = (across_grid, along_grid) if side < 2 else (along_grid, across_grid)
    stack_x, stack_y = wcs.world_to_pixel_values(*to_sky(geometry, x.ravel(), y.ravel()))
    i, j = np.round(stack_x).astype(int), np.round(stack_y).astype(int)
    inside = (i >= 0) & (j >= 0) & (i < dq.shape[1]) & (j < dq.shape[0])
    i, j = i[inside], j[inside]
    values = residual[j, i]
    if not len(values):
        return values
    return values[(dq[j, i] == 0) & (np.abs(values - np.median(values)) < 150)]


def _position_figures(
    found: np.ndarray, true: _TrueStars, wanted: Mask, snr: Floats, fwhm: float, mas: float
) -> tuple[dict[str, float], tuple[float, float]]:
    """Figures, and the median offset (pixels) of the stack. mas: of a pixel."""
    wanted = wanted & (snr > 20)
    distance, index = nearest_found(found, true.x, true.y, 10.0)
    good = wanted & np.isfinite(distance)
    star, x, y = found[index[good]], true.x[good], true.y[good]
    dx, dy = linear_residuals(x, y, np.array([star["x"], star["y"]]), sigma_about_zero)
    match = np.hypot(dx, dy) * mas < max(30, 0.1 * fwhm * mas)
    bright = (snr[good] > 100) & match & (star["flags"] & ~1 == 0)
    east, north = true.distortion[:, good]
    fx, fy = linear_residuals(x, y, np.array([x + east, y + north]), sigma_about_zero)
    offset = float(np.median(star["x"] - x)), float(np.median(star["y"] - y))
    mad = median_absolute_deviation
    return {
        "stars": int(wanted.sum()),
        "recovered": float(match.sum() / max(wanted.sum(), 1)),
        "bright": int(bright.sum()),
        "rms_all_x_mas": float(dx[match].std() * mas),
        "rms_all_y_mas": float(dy[match].std() * mas),
        "rms_x_mas": float(dx[bright].std() * mas),
        "rms_y_mas": float(dy[bright].std() * mas),
        "mad_x_mas": mad(dx[bright]) * mas,
        "mad_y_mas": mad(dy[bright]) * mas,
        "floor_rms_x_mas": float(fx[bright].std() * mas),
        "floor_rms_y_mas": float(fy[bright].std() * mas),
        "floor_mad_x_mas": mad(fx[bright]) * mas,
        "floor_mad_y_mas": mad(fy[bright]) * mas,
        "beyond_floor_mad_x_mas": min(mad((dx + s * fx)[bright]) for s in (1, -1)) * mas,
        "beyond_floor_mad_y_mas": min(mad((dy + s * fy)[bright]) for s in (1, -1)) * mas,
        "offset_x_mas": offset[0] * mas,
        "offset_y_mas": offset[1] * mas,
        "rotation_deg": _rotation(x, y, star),
    }, offset


def _flux_figures(
    residual: Image, model: Image, variance: Image, dq: Flags, true: _TrueStars
) -> dict[str, float]:
    """Ratio of measured to true flux of bright stars in an aperture.

    The model takes their neighbours' light out.
    """
    chosen = np.flatnonzero(_whole_stars(true.x, true.y, dq) & (true.flux > MIN_APERTURE_FLUX))
    x, y, flux = true.x[chosen], true.y[chosen], true.flux[chosen]
    left, modelled = (
        aperture_sums(image, variance, dq, x, y, APERTURE, SKY_RING, ALL_BITS, np.median)[0]
        for image in (residual, model)
    )
    ratio = 1 + left / modelled
    ratio = ratio[np.isfinite(ratio) & (modelled > 0.3 * flux) & (modelled < 1.1 * flux)]
    mad = median_absolute_deviation(ratio)
    return {
        "phot_stars": len(ratio),
        "flux_ratio": float(np.median(ratio)) if len(ratio) else float("nan"),
        "flux_ratio_error": MEDIAN_ERROR * SIGMA_PER_MAD * mad / max(len(ratio), 1) ** 0.5,
        "flux_scatter": SIGMA_PER_MAD * mad,
    }


def _whole_stars(x: Floats, y: Floats, dq: Flags) -> Mask:
    """Stars with no unusable pixel within 6 pixels."""
    i, j = np.round(x).astype(int), np.round(y).astype(int)
    whole = (i >= 8) & (j >= 8) & (i < dq.shape[1] - 8) & (j < dq.shape[0] - 8)
    whole[whole] = [
        not (dq[b - 6 : b + 7, a - 6 : a + 7] & UNUSABLE_NEAR_STAR).any()
        for a, b in zip(i[whole], j[whole], strict=True)
    ]
    return whole


def _expected_snr(flux: Floats, variance: Image, fwhm: float) -> Floats:
    """S/N of a core of 40 % of the flux in a circle of one FWHM, at the median variance."""
    noise = np.sqrt(np.median(variance[variance > 0]) * np.pi * fwhm**2)
    core = 0.4 * flux
    return core / np.sqrt(core + noise**2)


def _rotation(x: Floats, y: Floats, found: np.ndarray) -> float:
    """Rotation (degrees) of found stars against their true places."""
    cx, cy = x - x.mean(), y - y.mean()
    dx, dy = found["x"] - x, found["y"] - y
    near = np.hypot(dx - np.median(dx), dy - np.median(dy)) < 3
    cx, cy, dx, dy = (v[near] for v in (cx, cy, dx, dy))
    return float(
        np.degrees(np.sum(cx * (dy - dy.mean()) - cy * (dx - dx.mean())) / np.sum(cx**2 + cy**2))
    )


def stars_model(
    x: Floats, y: Floats, flux: Floats, psfs: list, pixel: float, shape: tuple[int, ...]
) -> Image:
    """The image of the true stars (e-): the mean of the frames' Moffat sums about each star.

    psfs: (share, FWHM in arcsec, beta) of each Moffat function of each frame. pixel: arcsec.
    """
    image = np.zeros(shape, np.float32)
    radius = np.arange(0, 2 * MODEL_RADIUS, 0.05)
    profile = np.mean(
        [sum(part * moffat(radius**2, w / pixel, beta) for part, w, beta in psf) for psf in psfs],
        axis=0,
    )
    for a, b, electrons in zip(x, y, flux, strict=True):
        i, j = round(float(a)), round(float(b))
        half = MODEL_RADIUS if electrons > 3e3 else FAINT_MODEL_RADIUS
        y1, y2 = max(j - half, 0), min(j + half + 1, shape[0])
        x1, x2 = max(i - half, 0), min(i + half + 1, shape[1])
        if y1 < y2 and x1 < x2:
            r = np.hypot(np.arange(x1, x2)[None, :] - a, np.arange(y1, y2)[:, None] - b)
            image[y1:y2, x1:x2] += electrons * np.interp(r, radius, profile)
    return image


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy.truth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image")
    parser.add_argument("truth")
    parser.add_argument("--field", default="target")
    args = parser.parse_args()
    print(json.dumps(compare_with_truth(args.image, args.truth, args.field), indent=1))
