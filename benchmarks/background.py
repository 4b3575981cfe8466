"""The background of a stack against the truth of a simulated night: what is left in blocks after the true light.

python -m benchmarks.background IMAGE.fits TRUTH_FOLDER [--block 64]
"""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from benchmarks.truth import flat_unit, render
from gdask.simulate.scene import Halo, halo_light

#: Pixels count where the true stars give less than this many standard deviations of the sky's noise ...
FAINT = 0.5
#: ... and further than this many half-light radii, or this many arcsec, from any galaxy.
GALAXY = (8.0, 2.0)


def measure(image: str, truth: str, block: int = 64, field: str = "target") -> dict[str, float]:
    """Scatter of the blocks' mean residual about its median, e-, plain and robust, with what VAR predicts for both.

    A block counts where half of its pixels do. The true smooth light (halo) is subtracted like the stars.
    """
    residual, good, variance = residuals(image, truth, field)
    level, error = blocks(residual, good, variance, block)
    rest = level - np.median(level)
    predicted = float(np.sqrt(np.mean(error**2)))
    robust = 1.4826 * float(np.median(np.abs(rest)))
    return {
        "blocks": len(rest),
        "plain_e": float(rest.std()),
        "robust_e": robust,
        "worst_e": float(rest[np.argmax(np.abs(rest))]),
        "predicted_e": predicted,
        "plain_over_predicted": float(rest.std()) / predicted,
        "robust_over_predicted": robust / predicted,
    }


def residuals(
    image: str, truth: str, field: str = "target"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stack less true stars and halo; where its pixels are sky; variance. All (ny, nx)."""
    with fits.open(image) as hdus:
        data, variance, dq = (
            hdus[name].data.astype(kind)
            for name, kind in (("SCI", "f4"), ("VAR", "f4"), ("DQ", "u2"))
        )
        wcs, exptime = WCS(hdus["SCI"].header), hdus[0].header["EXPTIME"]
    folder = Path(truth)
    catalog, frames = Table.read(folder / "catalog.ecsv"), Table.read(folder / "frames.ecsv")
    scene = json.loads((folder / "scene.json").read_text())
    used = frames[np.array([str(name) == field for name in frames["field"]])]
    inside = catalog[catalog["field"] == field]
    stars, galaxies = inside[inside["kind"] == "star"], inside[inside["kind"] == "galaxy"]
    unit = exptime * float(np.mean(used["scale"])) * flat_unit(folder)
    pixel = 3600 * float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix))))
    x, y = (np.asarray(v, float) for v in wcs.world_to_pixel_values(stars["ra"], stars["dec"]))
    model = render(
        x,
        y,
        np.asarray(stars["flux"]) * unit,
        [ast.literal_eval(str(text)) for text in used["psf"]],
        pixel,
        data.shape,
    )
    good = (dq == 0) & (variance > 0) & np.isfinite(data)
    good &= model < FAINT * np.sqrt(np.median(variance[good]))
    for row in galaxies:
        near = max(GALAXY[0] * row["radius"], GALAXY[1]) / pixel
        gx, gy = (float(v) for v in wcs.world_to_pixel_values(row["ra"], row["dec"]))
        (y1, y2), (x1, x2) = (
            np.clip([v - near, v + near + 2], 0, size).astype(int)
            for v, size in zip((gy, gx), data.shape, strict=True)
        )
        yy, xx = np.mgrid[y1:y2, x1:x2]
        good[y1:y2, x1:x2] &= np.hypot(xx - gx, yy - gy) > near
    if scene["halo"]:
        ny, nx = data.shape
        yy, xx = np.mgrid[0:ny:16, 0:nx:16]
        light = (
            halo_light(Halo(**scene["halo"]), *wcs.pixel_to_world_values(xx, yy))
            * unit
            * (pixel**2 / scene["mean_pixel_area"])
        )
        model += _between(light, data.shape)
    return data - model, good, variance


def _between(nodes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    from scipy.ndimage import map_coordinates

    y, x = np.mgrid[: shape[0], : shape[1]] / 16.0
    return map_coordinates(nodes, [y, x], order=3, mode="nearest").astype(np.float32)


def blocks(
    residual: np.ndarray, good: np.ndarray, variance: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the good pixels (clipped at 4 sigma about the median) of each block, and its error from the variance."""
    level, error = [], []
    for y in range(0, residual.shape[0] - size + 1, size):
        for x in range(0, residual.shape[1] - size + 1, size):
            cut = np.s_[y : y + size, x : x + size]
            values, noise = residual[cut][good[cut]], variance[cut][good[cut]]
            if 2 * values.size < size * size:
                continue
            near = np.abs(values - np.median(values)) < 4 * np.sqrt(noise)
            level.append(values[near].mean(dtype=float))
            error.append(np.sqrt(noise[near].sum(dtype=float)) / near.sum())
    return np.array(level), np.array(error)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image")
    parser.add_argument("truth")
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--field", default="target")
    args = parser.parse_args()
    print(json.dumps(measure(args.image, args.truth, args.block, args.field), indent=1))
