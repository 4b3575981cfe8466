"""The background of a stack against the truth of a simulated night.

Mean residual of blocks after the true light.

    python -m benchmarks.accuracy.background IMAGE.fits TRUTH_FOLDER [--block 64]
"""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path

import numpy as np
from astropy.table import Table
from astropy.wcs import WCS
from scipy.ndimage import map_coordinates

from benchmarks.accuracy.inputs import flat_unit, read_stack, to_pixels
from benchmarks.accuracy.statistics import robust_sigma
from benchmarks.accuracy.truth import stars_model
from gdask.kernels.geometry.projection import Floats
from gdask.simulate.scene import Halo, halo_light
from gdask.types import Image, Mask

#: Pixels count where true stars give less than so many standard deviations of the sky's noise,
MAX_STARLIGHT_SIGMA = 0.5
#: and are further than so many half-light radii, and so many arcsec, from any galaxy.
MIN_GALAXY_RADII, MIN_GALAXY_DISTANCE = 8.0, 2.0
#: Half-light radius (arcsec) of a galaxy of 1000 e-/s where the truth does not tell it; it grows
#: with the root of the flux.
RADIUS_OF_FLUX = 0.6
#: The true halo is evaluated at nodes that are so many pixels apart.
HALO_STEP = 16


def block_figures(
    image: str, truth: str, block: int = 64, field: str = "target"
) -> dict[str, float]:
    """Scatter (e-) of the blocks' mean residual about its median, and what VAR predicts for it.

    block: pixels of a side. A block counts where half of its pixels do. The true smooth light
    (halo) is subtracted like the stars.
    """
    residual, good, variance = sky_residual(image, truth, field)
    level, error = block_levels(residual, good, variance, block)
    deviation = level - np.median(level)
    predicted = float(np.sqrt(np.mean(error**2)))
    robust = robust_sigma(level)
    return {
        "blocks": len(level),
        "plain_e": float(deviation.std()),
        "robust_e": robust,
        "worst_e": float(deviation[np.argmax(np.abs(deviation))]),
        "predicted_e": predicted,
        "plain_over_predicted": float(deviation.std()) / predicted,
        "robust_over_predicted": robust / predicted,
    }


def sky_residual(image: str, truth: str, field: str = "target") -> tuple[Image, Mask, Image]:
    """Stack less true stars and halo; where its pixels are sky; variance. All (ny, nx)."""
    stack, folder = read_stack(image), Path(truth)
    catalog, frames = Table.read(folder / "catalog.ecsv"), Table.read(folder / "frames.ecsv")
    facts = json.loads((folder / "scene.json").read_text())
    frame_rows = frames[np.array([str(name) == field for name in frames["field"]])]
    in_field = catalog[catalog["field"] == field]
    stars = in_field[in_field["kind"] == "star"]
    unit = stack.exptime * float(np.mean(frame_rows["scale"])) * flat_unit(folder)
    model = stars_model(
        *to_pixels(stack.wcs, stars),
        np.asarray(stars["flux"]) * unit,
        [ast.literal_eval(str(text)) for text in frame_rows["psf"]],
        stack.pixel,
        stack.data.shape,
    )
    good = (stack.dq == 0) & (stack.variance > 0) & np.isfinite(stack.data)
    good &= model < MAX_STARLIGHT_SIGMA * np.sqrt(np.median(stack.variance[good]))
    leave_galaxies_out(good, stack.wcs, stack.pixel, in_field[in_field["kind"] == "galaxy"])
    if facts["halo"]:
        ny, nx = stack.data.shape
        y, x = np.mgrid[0:ny:HALO_STEP, 0:nx:HALO_STEP]
        light = halo_light(Halo(**facts["halo"]), *stack.wcs.pixel_to_world_values(x, y))
        electrons = light * unit * (stack.pixel**2 / facts["mean_pixel_area"])
        model += _between_nodes(electrons, stack.data.shape)
    return stack.data - model, good, stack.variance


def leave_galaxies_out(good: Mask, wcs: WCS, pixel: float, galaxies: Table) -> None:
    """Set `good` (ny, nx) to False around galaxies. pixel: arcsec."""
    radii = (
        galaxies["radius"]
        if "radius" in galaxies.colnames
        else RADIUS_OF_FLUX * np.sqrt(np.asarray(galaxies["flux"]) / 1000)
    )
    for row, half_light in zip(galaxies, radii, strict=True):
        radius = max(MIN_GALAXY_RADII * half_light, MIN_GALAXY_DISTANCE) / pixel
        gx, gy = (float(v) for v in wcs.world_to_pixel_values(row["ra"], row["dec"]))
        (y1, y2), (x1, x2) = (
            np.clip([place - radius, place + radius + 2], 0, size).astype(int)
            for place, size in zip((gy, gx), good.shape, strict=True)
        )
        y, x = np.mgrid[y1:y2, x1:x2]
        good[y1:y2, x1:x2] &= np.hypot(x - gx, y - gy) > radius


def _between_nodes(nodes: Floats, shape: tuple[int, ...]) -> Image:
    """Cubic interpolation of values at every HALO_STEP-th pixel."""
    y, x = np.mgrid[: shape[0], : shape[1]] / float(HALO_STEP)
    return map_coordinates(nodes, [y, x], order=3, mode="nearest").astype(np.float32)


def block_levels(residual: Image, good: Mask, variance: Image, size: int) -> tuple[Floats, Floats]:
    """Mean of the good pixels of each block, and its error from the variance.

    Pixels beyond 4 sigma from the block's median are left out.
    """
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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy.background",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image")
    parser.add_argument("truth")
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--field", default="target")
    args = parser.parse_args()
    print(json.dumps(block_figures(args.image, args.truth, args.block, args.field), indent=1))
