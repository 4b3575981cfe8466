"""Decide which pixels belong to which source: smoothing, thresholds and the splitting of blends."""

from __future__ import annotations

import numpy as np

from gdask.kernels.compiled import njit
from gdask.types import Image, Mask

#: sqrt(sum of squares) of the 3x3 kernel 1 2 1 / 2 4 2 / 1 2 1 over 16: the noise of smoothed white
#: noise of sigma 1.
SMOOTHED_NOISE = 0.375
#: A peak is a source of its own when it rises above its highest saddle by this many sigma of the
#: smoothed noise (the highest of some 100 independent noise bumps on a broad core reaches 3.5) ...
MIN_RISE_SIGMA = 5.0
#: ... and by this fraction of the saddle, so that flat-field ripple and speckle in a bright halo is
#: not split off.
MIN_RISE_FRACTION = 0.05
#: Wings are followed in the mean of (2 WING_HALF_WIDTH + 1)^2 pixels, down to MIN_WING_SIGMA sigma
#: of that mean.
WING_HALF_WIDTH = 4
MIN_WING_SIGMA = 2.0


@njit(cache=True, nogil=True, error_model="numpy")
def smooth_3x3(data: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Smooth data with the 3x3 kernel 1 2 1 / 2 4 2 / 1 2 1, without the bad pixels.

    The weights of the good pixels are renormalised. data: float32 (ny, nx), bad: bool. The result,
    float32, is 0 where less than 3/8 of the kernel's weight is good.
    """
    ny, nx = data.shape
    out = np.zeros((ny, nx), np.float32)
    value = np.zeros((3, nx + 2), np.float32)
    weight = np.zeros((3, nx + 2), np.float32)
    for y in range(-1, ny):
        k = (y + 1) % 3
        for x in range(nx):
            good = y + 1 < ny and not bad[y + 1, x]
            weight[k, x + 1] = 1.0 if good else 0.0
            value[k, x + 1] = data[y + 1, x] if good else 0.0
        if y < 0:
            continue
        below, here, above = (y - 1) % 3, y % 3, (y + 1) % 3
        if y == 0:
            value[below] = 0.0
            weight[below] = 0.0
        for x in range(nx):
            top = np.float32(0.0)
            norm = np.float32(0.0)
            for i in range(3):
                w = np.float32(1 + (i == 1))
                top += w * (
                    value[below, x + i] + np.float32(2.0) * value[here, x + i] + value[above, x + i]
                )
                norm += w * (
                    weight[below, x + i]
                    + np.float32(2.0) * weight[here, x + i]
                    + weight[above, x + i]
                )
            out[y, x] = top / norm if norm >= 6.0 else 0.0
    return out


@njit(cache=True, nogil=True)
def _root(parent: np.ndarray, i: int) -> int:
    """Find the basin into which basin i was merged."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True, nogil=True, error_model="numpy")
def _flood_basins(
    order: np.ndarray,
    smoothed: np.ndarray,
    variance: np.ndarray,
    sigma: np.ndarray,
    min_area: int,
    labels: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flood from the top: each pixel joins the highest basin beside it.

    Where basins meet, the lower one is swallowed unless it stands out. A later contact lies lower,
    so the first one decides. Edits labels; returns (parent, peak, blended) of each basin.
    """
    ny, nx = smoothed.shape
    parent = np.zeros(order.size + 1, np.int64)
    peak = np.zeros(order.size + 1, np.int64)
    area = np.zeros(order.size + 1, np.int64)
    blended = np.zeros(order.size + 1, np.bool_)
    n = 0
    for p in order:
        y, x = p // nx, p % nx
        value = smoothed[y, x]
        best, best_value = 0, np.float32(-np.inf)
        for yy in range(max(y - 1, 0), min(y + 2, ny)):
            for xx in range(max(x - 1, 0), min(x + 2, nx)):
                if labels[yy, xx] > 0 and smoothed[yy, xx] > best_value:
                    best, best_value = labels[yy, xx], smoothed[yy, xx]
        if best == 0:
            n += 1
            parent[n], peak[n], area[n] = n, p, 1
            labels[y, x] = n
            continue
        best = _root(parent, best)
        for yy in range(max(y - 1, 0), min(y + 2, ny)):
            for xx in range(max(x - 1, 0), min(x + 2, nx)):
                if labels[yy, xx] == 0:
                    continue
                neighbour = _root(parent, labels[yy, xx])
                if neighbour == best:
                    continue
                # Basins are numbered from the highest peak down.
                high, low = min(best, neighbour), max(best, neighbour)
                ty, tx = peak[low] // nx, peak[low] % nx
                rise = smoothed[ty, tx] - value
                noise = np.sqrt(np.fmax(variance[ty, tx], sigma[ty, tx] ** 2)) * SMOOTHED_NOISE
                limit = max(MIN_RISE_SIGMA * noise, MIN_RISE_FRACTION * value)
                if rise >= limit and area[low] >= min_area:
                    blended[low] = True
                    blended[high] = True
                else:
                    parent[low] = high
                    area[high] += area[low]
                    blended[high] |= blended[low]
                    if best == low:
                        best = high
        labels[y, x] = best
        area[best] += 1
    return parent[: n + 1], peak[: n + 1], blended[: n + 1]


@njit(cache=True, nogil=True)
def _number_sources(
    labels: np.ndarray, bad: np.ndarray, parent: np.ndarray, blended: np.ndarray, min_pixels: int
) -> np.ndarray:
    """Resolve merged basins, drop those without enough good pixels, and number the rest.

    Sources are numbered 1..n from the highest peak down. Edits labels; returns the basin of each
    source.
    """
    good = np.zeros(parent.size, np.int64)
    ny, nx = labels.shape
    for i in range(1, parent.size):
        parent[i] = _root(parent, i)
    for y in range(ny):
        for x in range(nx):
            if labels[y, x] > 0:
                labels[y, x] = parent[labels[y, x]]
                if not bad[y, x]:
                    good[labels[y, x]] += 1
    new = np.zeros(parent.size, np.int32)
    n = 0
    for i in range(1, parent.size):
        if parent[i] == i and good[i] >= (max(min_pixels // 4, 3) if blended[i] else min_pixels):
            n += 1
            new[i] = n
    for y in range(ny):
        for x in range(nx):
            labels[y, x] = new[labels[y, x]]
    kept = np.zeros(n, np.int64)
    for i in range(1, parent.size):
        if new[i] > 0:
            kept[new[i] - 1] = i
    return kept


def segment(
    smoothed: Image, variance: Image, sigma: Image, bad: Mask, *, threshold: float, min_pixels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split a smoothed plane without sky into sources.

    smoothed and sigma (sky noise before smoothing) are float32 (ny, nx) in one unit. variance is
    that of a pixel with the sources' own photons, in the unit squared. Pixels above threshold *
    sigma count, connected by sides or corners, at least min_pixels of them not bad (a quarter of it
    for a peak that stands out of a brighter neighbour).
    Returns labels (ny, nx) int32, 0 for sky and 1..n from the highest peak down; peak, the flat
    index of each peak; blended, True where a source touches another.
    """
    pixels = np.flatnonzero(smoothed > np.float32(threshold) * sigma)
    order = pixels[np.argsort(-smoothed.ravel()[pixels], kind="stable")]
    labels = np.zeros(smoothed.shape, np.int32)
    parent, peak, blended = _flood_basins(
        order, smoothed, variance, sigma, max(min_pixels // 4, 3), labels
    )
    kept = _number_sources(labels, bad, parent, blended, min_pixels)
    return labels, peak[kept], blended[kept]


@njit(cache=True, nogil=True, error_model="numpy")
def connected_regions(
    smoothed: np.ndarray, sigma: np.ndarray, bad: np.ndarray, threshold: float, min_pixels: int
) -> np.ndarray:
    """Find the pixels of sources as `segment` does, without splitting blends.

    Returns bool (ny, nx), True in connected regions above threshold * sigma with at least
    min_pixels good pixels. The arguments are those of `segment`.
    """
    ny, nx = smoothed.shape
    seen = np.zeros((ny, nx), np.bool_)
    out = np.zeros((ny, nx), np.bool_)
    queue = np.empty(ny * nx, np.int64)
    for y in range(ny):
        for x in range(nx):
            if seen[y, x] or not smoothed[y, x] > threshold * sigma[y, x]:
                continue
            seen[y, x] = True
            queue[0] = y * nx + x
            first, last, good = 0, 1, 0
            while first < last:
                v, u = queue[first] // nx, queue[first] % nx
                good += not bad[v, u]
                first += 1
                for j in range(max(v - 1, 0), min(v + 2, ny)):
                    for i in range(max(u - 1, 0), min(u + 2, nx)):
                        if not seen[j, i] and smoothed[j, i] > threshold * sigma[j, i]:
                            seen[j, i] = True
                            queue[last] = j * nx + i
                            last += 1
            if good >= min_pixels:
                for q in queue[:last]:
                    out[q // nx, q % nx] = True
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _box_mean(data: np.ndarray, bad: np.ndarray, half: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the good pixels of the square within `half` of each pixel, and how many they are."""
    ny, nx = data.shape
    mean = np.zeros((ny, nx), np.float32)
    count = np.zeros((ny, nx), np.float32)
    total = np.zeros(nx)
    number = np.zeros(nx)
    for y in range(-half, ny):
        if y + half < ny:
            for x in range(nx):
                if not bad[y + half, x]:
                    total[x] += data[y + half, x]
                    number[x] += 1.0
        if y - half - 1 >= 0:
            for x in range(nx):
                if not bad[y - half - 1, x]:
                    total[x] -= data[y - half - 1, x]
                    number[x] -= 1.0
        if y < 0:
            continue
        t, n = 0.0, 0.0
        for x in range(-half, nx):
            if x + half < nx:
                t += total[x + half]
                n += number[x + half]
            if x - half - 1 >= 0:
                t -= total[x - half - 1]
                n -= number[x - half - 1]
            if x >= 0 and n > 0.5:
                mean[y, x] = t / n
                count[y, x] = n
    return mean, count


@njit(cache=True, nogil=True, error_model="numpy")
def _follow_wings(
    core: np.ndarray, mean: np.ndarray, count: np.ndarray, sigma: np.ndarray, limit: float
) -> np.ndarray:
    """Add to the core what is connected to it and above `limit` sigma of the local mean."""
    ny, nx = core.shape
    out = core.copy()
    stack = np.empty(ny * nx, np.int64)
    n = 0
    for p in range(ny * nx):
        if out[p // nx, p % nx]:
            stack[n] = p
            n += 1
    while n > 0:
        n -= 1
        y, x = stack[n] // nx, stack[n] % nx
        for yy in range(max(y - 1, 0), min(y + 2, ny)):
            for xx in range(max(x - 1, 0), min(x + 2, nx)):
                if (
                    not out[yy, xx]
                    and mean[yy, xx] * np.sqrt(count[yy, xx]) > limit * sigma[yy, xx]
                ):
                    out[yy, xx] = True
                    stack[n] = yy * nx + xx
                    n += 1
    return out


def with_wings(data: Image, bad: Mask, core: Mask, sigma: Image) -> Mask:
    """Add the faint wings of sources to their pixels (`core`): the object mask for a sky estimate.

    data: plane without sky, float32 (ny, nx). sigma: sky noise per pixel. Wings are pixels
    connected to a source where the mean of 9x9 good pixels is above 2 of its own sigma: a star is
    followed down to a quarter of the sky noise.
    """
    mean, count = _box_mean(data, bad, WING_HALF_WIDTH)
    return _follow_wings(core, mean, count, sigma, MIN_WING_SIGMA)
