"""Regions, basins, wings and meshes against plain code that does the same slowly."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from gdask.kernels.sources.background import interpolate_mesh, mesh_values
from gdask.kernels.sources.segmentation import (
    MIN_RISE_FRACTION,
    MIN_RISE_SIGMA,
    SMOOTHED_NOISE,
    bad_pixels,
    connected_regions,
    raise_saturated,
    segment,
    subtract_and_smooth,
    with_wings,
)
from gdask.model import DQ, UNUSABLE

ONE = np.ones((1, 1))
SQUARE = np.ones((3, 3))


def bumpy(shape, seed, coarse=2.0):
    """Smooth noise of sigma about 1, float32."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), coarse)
    return (noise / noise.std()).astype("f4")


@pytest.mark.parametrize("cells", [(1, 1), (1, 4), (3, 2), (7, 9)])
def test_a_mesh_is_bilinear_between_the_centres_of_its_cells(cells):
    mesh = np.random.default_rng(0).normal(size=cells)
    shape = (40, 55)
    out = interpolate_mesh(mesh, shape)
    centres = [(np.arange(m) + 0.5) * n / m - 0.5 for m, n in zip(cells, shape, strict=True)]
    rows = np.array([np.interp(np.arange(shape[1]), centres[1], row) for row in mesh])
    full = np.array([np.interp(np.arange(shape[0]), centres[0], column) for column in rows.T]).T
    assert np.abs(out - full).max() < 1e-6
    pixels = np.arange(out.size)
    assert (mesh_values(mesh, pixels, shape) == out.ravel()).all()


def test_smoothing_leaves_out_bad_pixels():
    rng = np.random.default_rng(1)
    data = rng.normal(5, 1, (30, 41)).astype("f4")
    bad = rng.uniform(size=data.shape) < 0.3
    data[bad] = np.nan
    free, smoothed = subtract_and_smooth(data, bad, 5.0 * ONE)
    assert np.array_equal(free, data - np.float32(5.0), equal_nan=True)
    kernel = np.outer([1, 2, 1], [1, 2, 1])
    top = ndimage.convolve(np.where(bad, 0, free).astype(float), kernel, mode="constant")
    norm = ndimage.convolve((~bad).astype(float), kernel, mode="constant")
    expected = np.where(norm >= 6, top / np.maximum(norm, 1), 0.0)
    assert np.abs(smoothed - expected).max() < 1e-5


def test_bad_pixels_and_saturated_cores():
    data, variance = np.ones((4, 5), "f4"), np.ones((4, 5), "f4")
    dq = np.zeros((4, 5), "u2")
    data[0, 0], variance[0, 1], data[0, 2] = np.nan, np.inf, -np.inf
    dq[1, 0], dq[1, 1] = int(DQ.SATURATED), int(DQ.SATURATED | DQ.NON_LINEAR)
    dq[1, 2] = int(DQ.SATURATED | DQ.BAD_PIXEL)
    bad, cores = bad_pixels(data, variance, dq, int(UNUSABLE), int(DQ.SATURATED))
    assert cores == 2 and sorted(np.flatnonzero(bad)) == [0, 1, 2, 5, 6, 7]
    smoothed = np.zeros_like(data)
    data[2, 2], data[1, 0] = 70.0, 900.0
    raise_saturated(smoothed, data, dq, int(UNUSABLE), int(DQ.SATURATED))
    assert (smoothed.ravel()[[5, 6]] == 70.0).all() and smoothed.sum() == 140.0


@pytest.mark.parametrize("shape", [(60, 83), (1, 50), (50, 1), (64, 64)])
@pytest.mark.parametrize("fewest", [1, 9])
def test_regions_are_those_of_scipy(shape, fewest):
    for seed in range(4):
        plane, bad = bumpy(shape, seed, 1.0), bumpy(shape, seed + 9, 1.0) > 1.2
        labels, n = ndimage.label(plane > np.float32(0.4), SQUARE)
        good = ndimage.sum(~bad, labels, np.arange(n + 1))
        expected = (labels > 0) & (good >= fewest)[labels]
        assert (connected_regions(plane, 0.4 * ONE, bad, 1.0, fewest) == expected).all()


def flooded(smoothed, variance, sigma, bad, threshold, min_pixels):
    """Labels and peaks as `segment` defines them: all pixels from the highest down, one by one."""
    few = max(min_pixels // 4, 3)
    root, peak, area, good, blended = {}, {}, {}, {}, {}
    labels = np.zeros(smoothed.shape, int)

    def top(k):
        return k if root[k] == k else top(root[k])

    order = np.argsort(-smoothed.ravel(), kind="stable")
    for p in order[smoothed.ravel()[order] > threshold * sigma]:
        y, x = divmod(int(p), smoothed.shape[1])
        near = (slice(max(y - 1, 0), y + 2), slice(max(x - 1, 0), x + 2))
        values = np.where(labels[near] > 0, smoothed[near], -np.inf)
        if values.max() == -np.inf:
            best = len(root) + 1
            root[best], peak[best], area[best], good[best], blended[best] = best, p, 0, 0, False
        else:
            best = top(labels[near].ravel()[values.argmax()])
            for other in labels[near].ravel():
                if other == 0 or top(other) == best:
                    continue
                high, low = sorted((best, top(other)))
                noise = np.sqrt(max(variance.ravel()[peak[low]], sigma**2)) * SMOOTHED_NOISE
                limit = max(MIN_RISE_SIGMA * noise, MIN_RISE_FRACTION * smoothed[y, x])
                if smoothed.ravel()[peak[low]] - smoothed[y, x] >= limit and area[low] >= few:
                    blended[low] = blended[high] = True
                    continue
                root[low], best = high, high
                area[high], good[high] = area[high] + area[low], good[high] + good[low]
                blended[high] |= blended[low]
        labels[y, x] = best
        area[best], good[best] = area[best] + 1, good[best] + (not bad[y, x])
    kept = [k for k in root if root[k] == k and good[k] >= (few if blended[k] else min_pixels)]
    number = {k: n for n, k in enumerate(kept, 1)}
    found = [[number.get(top(k), 0) if k else 0 for k in row] for row in labels]
    return np.array(found), [peak[k] for k in kept], [blended[k] for k in kept]


@pytest.mark.parametrize("min_pixels", [1, 6, 20])
def test_basins_are_those_of_a_flood_pixel_by_pixel(min_pixels):
    for seed in range(3):
        plane = 30 * bumpy((70, 81), seed)
        plane[20:22, 5:60] = np.rint(plane[20:22, 5:60])  # equal values
        bad = bumpy(plane.shape, seed + 5, 1.0) > 1.5
        variance = np.full(plane.shape, 2.0, "f4")
        labels, peak, blended = segment(
            plane, variance, 1.5 * ONE, bad, threshold=8.0, min_pixels=min_pixels
        )
        expected = flooded(plane, variance, 1.5, bad, 8.0, min_pixels)
        assert (labels == expected[0]).all() and labels.max() > 10
        assert list(peak) == expected[1] and list(blended) == expected[2]


def test_wings_are_pixels_with_faint_light_that_touch_the_core():
    rng = np.random.default_rng(2)
    data = (4 * bumpy((90, 77), 3, 5.0) + rng.normal(size=(90, 77))).astype("f4")
    bad = rng.uniform(size=data.shape) < 0.2
    core = (data > 12) & ~bad
    data[bad] = np.nan
    clean = np.where(bad, 0, data).astype(float)
    light, n = (
        ndimage.convolve(v.astype(float), np.ones((9, 9)), mode="constant") for v in (clean, ~bad)
    )
    labels, _ = ndimage.label(core | (light > 2.0 * 3.0 * np.sqrt(n)), SQUARE)
    expected = np.isin(labels, np.unique(labels[core]))
    assert core.any() and core.sum() < expected.sum() < 0.7 * expected.size
    assert (with_wings(data, bad, core, 3.0 * ONE) == expected).all()
