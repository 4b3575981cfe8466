"""The sky of a stack against an ideal stack of the same truth, split by depth.

Blocks, steps at the edges of frames, and blank apertures with a local ring of sky and without.

    python -m benchmarks.accuracy.sky IMAGE.fits TRUTH_FOLDER
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from astropy.table import Table
from scipy.ndimage import label
from scipy.signal import fftconvolve

from benchmarks.accuracy.background import leave_galaxies_out
from benchmarks.accuracy.ideal import IdealStack, ideal_stack
from benchmarks.accuracy.inputs import array_size
from benchmarks.accuracy.matched_stack import MatchedStack, read_matched_stack
from benchmarks.accuracy.photometry import are_isolated
from benchmarks.accuracy.positions import displacement, find_stars
from benchmarks.accuracy.statistics import ROBUST_WIDTH_ERROR, robust_sigma
from gdask.kernels.geometry.projection import Geometry, to_sky
from gdask.types import Image, Mask

#: Side (pixels) of the blocks whose mean residuals are compared.
BLOCK = 64
#: Fewest blocks of a region that has a surface of its own.
MIN_SURFACE_BLOCKS = 20
#: Least share of good pixels in a block.
MIN_BLOCK_SHARE = 0.2
#: Radii (pixels) of blank apertures, and radii of their ring of sky.
APERTURES, RING = (6, 12, 15), (40, 56)
#: Depths that are told apart: so many of the deepest, as (name, least share, largest share).
DEPTHS = (("full", 0.99, 1.0), ("half", 0.5, 0.99), ("shallow", 0.0, 0.5))
#: Pixels are blank where the true stars have less light than so many sigma of the noise.
BLANK_SIGMA = 0.1
#: Pixels on each side of a frame's edge whose means are compared, beyond a gap of EDGE_GAP.
EDGE_DEPTH, EDGE_GAP = 24, 5
#: Good pixels that each side of an edge must have, as a share of a strip along the whole edge.
MIN_EDGE_SHARE = 0.15
#: Fewest apertures for a width.
MIN_APERTURES = 40


def sky_figures(stack: MatchedStack, ideal: IdealStack) -> dict[str, float]:
    """Give the figures of the sky: e-, or as multiples of what VAR and CORRFAC predict.

    A quadratic surface over each region that frames connect is taken out before.
    """
    sigma = np.sqrt(np.maximum(stack.variance, 1e-9))
    light = ideal.stars + stack.smooth_light
    blank = (ideal.stars < BLANK_SIGMA * sigma) & (stack.dq == 0) & (stack.variance > 0)
    catalog = Table.read(stack.truth / "catalog.ecsv")
    leave_galaxies_out(blank, stack.wcs, stack.pixel, catalog[catalog["kind"] == "galaxy"])
    residual = (stack.data - light).astype(np.float32)
    blank &= np.abs(residual - np.median(residual[blank])) < 8 * sigma
    residual -= _overall_surface(residual, stack.variance, blank, ideal.depth)
    figures = _block_figures(residual, stack.variance, blank, ideal.depth)
    figures |= _edge_figures(stack, residual, blank, ideal.depth)
    factor = float(stack.header.get("CORRFAC", 1.0))
    for radius in APERTURES:
        for name, pulls in _aperture_pulls(residual, stack.variance, blank, ideal.depth, radius):
            if len(pulls) >= MIN_APERTURES:
                figures[f"{name}_pull"] = float(np.sqrt(np.mean(_clipped(pulls) ** 2))) / factor
                figures[f"{name}_pull_error"] = ROBUST_WIDTH_ERROR / len(pulls) ** 0.5
    return figures


def _overall_surface(residual: Image, variance: Image, blank: Mask, depth: Image) -> Image:
    """Give the quadratic surface closest to the residuals of each region that frames connect.

    No overlap of frames tells it from light: a reduction leaves it to the user.
    """
    regions, count = label(depth > 0)
    surface = np.zeros(residual.shape, np.float32)
    for number in range(1, count + 1):
        region = regions == number
        rows = _blocks(residual, variance, blank & region)
        if len(rows) >= MIN_SURFACE_BLOCKS:
            surface[region] = _fitted_surface(rows, region)
    return surface


def _fitted_surface(rows: np.ndarray, region: Mask) -> np.ndarray:
    """Give the values of a quadratic surface through blocks, outliers left out, in a region."""
    mean, variance = rows[:, :2].T
    middle, half = rows[:, 2:].mean(axis=0), max(float(np.ptp(rows[:, 2:])) / 2, BLOCK)

    def terms(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        y, x = (y - middle[0]) / half, (x - middle[1]) / half
        return np.column_stack([np.ones_like(x), x, y, x * x, x * y, y * y])

    places, keep = terms(*rows[:, 2:].T), np.ones(len(rows), bool)
    for _ in range(5):
        weight = 1 / np.sqrt(variance[keep])
        factors = np.linalg.lstsq(places[keep] * weight[:, None], mean[keep] * weight)[0]
        rest = (mean - places @ factors) / np.sqrt(variance)
        keep = np.abs(rest) < 5 * max(robust_sigma(rest[keep]), 1.0)
    y, x = np.nonzero(region)
    return terms(y - (BLOCK - 1) / 2, x - (BLOCK - 1) / 2) @ factors


def _clipped(pulls: np.ndarray) -> np.ndarray:
    """Pulls within 5 robust sigma of their median."""
    return pulls[np.abs(pulls - np.median(pulls)) < 5 * robust_sigma(pulls)]


def _classes(depth: Image) -> list[tuple[str, Mask]]:
    """Pixels of each class of depth."""
    share = depth / max(float(depth.max()), 1.0)
    return [(name, (share > low) & (share <= high)) for name, low, high in DEPTHS]


def _block_figures(residual: Image, variance: Image, blank: Mask, depth: Image) -> dict[str, float]:
    """Rms of the mean residuals of blocks, and what an ideal stack of this VAR has.

    A block has pixels of one class of depth.
    """
    figures: dict[str, float] = {}
    every: list[np.ndarray] = []
    for name, chosen in _classes(depth):
        rows = _blocks(residual, variance, blank & chosen)
        if len(rows) >= 4:
            figures |= _rms_figures(f"block_{name}", rows)
            every.append(rows)
    if every:
        figures |= _rms_figures("block", np.concatenate(every))
    return figures


def _rms_figures(name: str, rows: np.ndarray) -> dict[str, float]:
    """Rms of means about their weighted mean, of an ideal stack, and their ratio."""
    mean, variance = rows[:, :2].T
    middle = float(np.average(mean, weights=1 / variance))
    found, ideal = float(np.sqrt(np.mean((mean - middle) ** 2))), float(np.sqrt(variance.mean()))
    return {f"{name}_rms_e": found, f"{name}_ideal_e": ideal, f"{name}_ratio": found / ideal}


def _blocks(residual: Image, variance: Image, good: Mask) -> np.ndarray:
    """Mean residual, its variance, first row and column of each block with enough good pixels."""
    rows = []
    for y in range(0, residual.shape[0] - BLOCK + 1, BLOCK):
        for x in range(0, residual.shape[1] - BLOCK + 1, BLOCK):
            cut = np.s_[y : y + BLOCK, x : x + BLOCK]
            n = int(good[cut].sum())
            if n > MIN_BLOCK_SHARE * BLOCK**2:
                chosen = good[cut]
                mean = residual[cut][chosen].mean(dtype=float)
                rows.append((mean, variance[cut][chosen].sum(dtype=float) / n**2, y, x))
    return np.array(rows).reshape(-1, 4)


def _edge_figures(
    stack: MatchedStack, residual: Image, blank: Mask, depth: Image
) -> dict[str, float]:
    """Rms of the steps across edges of arrays of frames, beyond their noise."""
    steps, errors = [], []
    size = array_size(stack.truth)
    good = blank & (depth > 0)
    for geometry in stack.geometries:
        for side in range(4):
            inner, outer = (
                _strip(stack, residual, good, geometry, (side, sign, size)) for sign in (1, -1)
            )
            if min(len(inner), len(outer)) > MIN_EDGE_SHARE * size * EDGE_DEPTH:
                steps.append(inner[:, 0].mean() - outer[:, 0].mean())
                errors.append(sum(s[:, 1].sum() / len(s) ** 2 for s in (inner, outer)))
    if not steps:
        return {}
    found, noise = np.mean(np.square(steps)), np.mean(errors)
    return {
        "edges": len(steps),
        "edge_step_rms_e": float(np.sqrt(found)),
        "edge_noise_e": float(np.sqrt(noise)),
        "edge_beyond_noise_e": float(np.sqrt(max(found - noise, 0.0))),
        "edge_step_worst_e": float(np.abs(steps).max()),
    }


def _strip(
    stack: MatchedStack,
    residual: Image,
    good: Mask,
    geometry: Geometry,
    where: tuple[int, int, int],
) -> np.ndarray:
    """Residual and variance of good pixels beside an edge, (n, 2).

    where: side (0 left, 1 right, 2 bottom, 3 top), 1 inside or -1 outside, pixels of the array.
    """
    side, sign, size = where
    along = np.arange(20.0, size - 20)
    across = sign * np.arange(EDGE_GAP, EDGE_DEPTH + EDGE_GAP, 1.0) + 4.0
    across = across if side % 2 == 0 else size - 1 - across
    x, y = np.meshgrid(across, along) if side < 2 else np.meshgrid(along, across)
    sx, sy = stack.wcs.world_to_pixel_values(*to_sky(geometry, x.ravel(), y.ravel()))
    i, j = np.rint(sx).astype(int), np.rint(sy).astype(int)
    inside = (i >= 0) & (j >= 0) & (i < good.shape[1]) & (j < good.shape[0])
    i, j = i[inside], j[inside]
    chosen = good[j, i]
    i, j = i[chosen], j[chosen]
    return np.column_stack([residual[j, i], stack.variance[j, i]]).astype(float)


def _aperture_pulls(
    residual: Image, variance: Image, blank: Mask, depth: Image, radius: int
) -> list[tuple[str, np.ndarray]]:
    """Blank apertures that do not overlap: names, sums over sqrt(sum of VAR).

    With the ring of sky (its mean, and that mean's variance, count) and without.
    """
    offsets = np.arange(-RING[1], RING[1] + 1)
    distance = np.hypot(*np.meshgrid(offsets, offsets))
    ring = ((distance >= RING[0]) & (distance <= RING[1])).astype(np.float32)
    disk = np.hypot(*np.meshgrid(*[np.arange(-radius, radius + 1)] * 2)) <= radius
    values, weights = np.where(blank, residual, 0), np.where(blank, variance, 0)
    of_disk = [_summed(plane, disk) for plane in (values, weights, blank)]
    step = 2 * radius + 1
    places = np.zeros(blank.shape, bool)
    places[radius::step, radius::step] = True
    whole = places & (of_disk[2] > disk.sum() - 0.5)
    of_ring = [_summed(plane, ring) for plane in (values, weights, blank)]
    total, noise = of_disk[0], of_disk[1]
    n_ring = np.maximum(of_ring[2], 1)
    pixels = disk.sum()
    with_ring = total - pixels * of_ring[0] / n_ring
    ring_noise = noise + pixels**2 * of_ring[1] / n_ring**2
    results = []
    enough = whole & (of_ring[2] > 0.25 * ring.sum())
    for name, chosen in [("", np.ones(blank.shape, bool)), *_classes(depth)]:
        suffix = f"_{name}" if name else ""
        pulls = total[whole & chosen] / np.sqrt(noise[whole & chosen])
        local = with_ring[enough & chosen] / np.sqrt(ring_noise[enough & chosen])
        results += [(f"blank{radius}{suffix}", pulls), (f"ring{radius}{suffix}", local)]
    return results


def _summed(plane: Image | Mask, kernel: np.ndarray) -> np.ndarray:
    """Sums of a plane over a symmetric kernel about each pixel."""
    return fftconvolve(plane.astype(float), kernel.astype(float), mode="same")


def measure(image: str, truth: str, catalog_mas: float | None = None) -> dict[str, float]:
    """Figures of the sky of one stack."""
    stack = read_matched_stack(image, truth)
    fwhm, found = find_stars(stack.data, stack.variance, stack.dq)
    isolated = are_isolated(stack.x, stack.y, stack.flux, 2.5 * fwhm, 0.05)
    moved = displacement(stack, found, isolated, catalog_mas is None)
    return sky_figures(stack, ideal_stack(stack, moved))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy.sky",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image")
    parser.add_argument("truth")
    args = parser.parse_args()
    print(json.dumps(measure(args.image, args.truth), indent=1))
