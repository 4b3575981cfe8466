"""Decide which pixels belong to which source: smoothing, thresholds and the splitting of blends.

Sky and noise come as coarse meshes (`background`) and are interpolated row by row where they are
needed: planes of them would cost more than all arithmetic on them.
"""

from __future__ import annotations

import numpy as np

from gdask.kernels.compiled import njit
from gdask.kernels.sources.background import mesh_columns, mesh_row, mesh_value
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
#: Wings are followed in the mean of 9x9 pixels, the half of which is WING_HALF_WIDTH, down to
#: MIN_WING_SIGMA sigma of that mean.
WING_HALF_WIDTH = 4
MIN_WING_SIGMA = 2.0
#: Bits of a float32 that each pass of the sort by brightness looks at: three passes for 32 bits.
DIGIT_BITS = 11


@njit(cache=True, nogil=True, error_model="numpy")
def bad_pixels(
    data: np.ndarray, variance: np.ndarray, dq: np.ndarray, unusable: int, saturated: int
) -> tuple[np.ndarray, int]:
    """Find pixels with unusable DQ bits or without a finite value and variance.

    Returns bool (ny, nx), and how many pixels are saturated and without any other unusable bit.
    """
    ny, nx = data.shape
    bad = np.empty((ny, nx), np.bool_)
    bits, full = np.uint16(unusable), np.uint16(saturated)
    cores = 0
    for y in range(ny):
        for x in range(nx):
            z = (data[y, x] - data[y, x]) + (variance[y, x] - variance[y, x])  # 0 where finite
            bad[y, x] = ((dq[y, x] & bits) != 0) | (z != 0)
            cores += (dq[y, x] & bits) == full
    return bad, cores


@njit(cache=True, nogil=True, error_model="numpy")
def subtract_and_smooth(
    data: np.ndarray, bad: np.ndarray, mesh: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Subtract the sky, and smooth with the 3x3 kernel 1 2 1 / 2 4 2 / 1 2 1 without bad pixels.

    data: float32 (ny, nx), bad: bool. mesh: the sky's level in cells. Returns the plane without
    sky, and the smoothed plane, for which the weights of the good pixels are renormalised; it is 0
    where less than 3/8 of the kernel's weight is good. Both are float32.
    """
    ny, nx = data.shape
    first, part = mesh_columns(mesh.shape[1], nx)
    free, smoothed = np.empty((ny, nx), np.float32), np.empty((ny, nx), np.float32)
    values, weights = np.zeros((3, nx + 2), np.float32), np.zeros((3, nx + 2), np.float32)
    sky, two = np.empty(nx, np.float32), np.float32(2.0)
    column, norm = np.empty(nx + 2, np.float32), np.empty(nx + 2, np.float32)
    for y in range(ny + 1):
        value, weight = values[y % 3], weights[y % 3]
        if y < ny:
            mesh_row(mesh, y, ny, first, part, sky)
            for x in range(nx):
                v = data[y, x] - sky[x]
                free[y, x] = v
                weight[x + 1] = np.float32(0.0) if bad[y, x] else np.float32(1.0)
                value[x + 1] = np.float32(0.0) if bad[y, x] else v
        else:
            value[:] = np.float32(0.0)
            weight[:] = np.float32(0.0)
        if y == 0:
            continue
        below, middle = values[(y + 1) % 3], values[(y + 2) % 3]
        for x in range(nx + 2):
            column[x] = below[x] + two * middle[x] + value[x]
        below, middle = weights[(y + 1) % 3], weights[(y + 2) % 3]
        for x in range(nx + 2):
            norm[x] = below[x] + two * middle[x] + weight[x]
        row = smoothed[y - 1]
        for x in range(nx):
            total = column[x] + two * column[x + 1] + column[x + 2]
            n = norm[x] + two * norm[x + 1] + norm[x + 2]
            row[x] = total / n if n >= 6.0 else np.float32(0.0)
    return free, smoothed


@njit(cache=True, nogil=True, error_model="numpy")
def raise_saturated(
    smoothed: np.ndarray, sky_free: np.ndarray, dq: np.ndarray, unusable: int, saturated: int
) -> None:
    """Raise saturated pixels to one plateau above everything, in place in `smoothed`.

    This keeps the dead core of a star from splitting it into a ring of sources. Pixels with another
    unusable bit stay as they are.
    """
    ny, nx = smoothed.shape
    bits, full, zero = np.uint16(unusable), np.uint16(saturated), np.float32(0.0)
    highest = np.zeros(nx, np.float32)
    for y in range(ny):
        for x in range(nx):
            v = sky_free[y, x]
            v = v if ((dq[y, x] & bits) != full) & (v - v == zero) else zero
            v = max(smoothed[y, x], v)
            highest[x] = max(highest[x], v)
    top = zero
    for x in range(nx):
        top = max(top, highest[x])
    for y in range(ny):
        for x in range(nx):
            if (dq[y, x] & bits) == full:
                smoothed[y, x] = top


@njit(cache=True, nogil=True)
def _root(parent: np.ndarray, i: int) -> int:
    """Find the basin or run into which i was merged."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True, nogil=True, error_model="numpy")
def _connected_runs(
    smoothed: np.ndarray, mesh: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Find runs of pixels above threshold * sigma in the rows, and which of them are connected.

    mesh: the noise in cells. Pixels are connected by sides or corners. Returns for each run the
    flat index of its first pixel, its length and the number of its region; and how many regions.
    """
    ny, nx = smoothed.shape
    first, part = mesh_columns(mesh.shape[1], nx)
    sigma, above = np.empty(nx, np.float32), np.zeros(nx + 1, np.bool_)
    most = ny * (nx // 2 + 1)  # of which only the pages that are used are ever there
    start, stop = np.empty(most, np.int32), np.empty(most, np.int32)
    parent = np.empty(most, np.int32)
    limit, last_row, n = np.float32(threshold), 0, 0
    for y in range(ny):
        mesh_row(mesh, y, ny, first, part, sigma)
        for x in range(nx):
            above[x] = smoothed[y, x] > limit * sigma[x]
        other, last_row, base, x = last_row, n, y * nx, 0
        while x < nx:
            if not above[x]:
                x += 1
                continue
            start[n], parent[n] = base + x, n
            while above[x]:
                x += 1
            stop[n] = base + x
            while other < last_row and stop[other] + nx < start[n]:
                other += 1
            touching = other
            while touching < last_row and start[touching] + nx <= stop[n]:
                a, b = _root(parent, touching), _root(parent, n)
                parent[max(a, b)] = min(a, b)
                touching += 1
            n += 1
    region, regions = np.empty(n, np.int32), 0
    for k in range(n):
        stop[k] -= start[k]
        if parent[k] == k:
            region[k] = regions
            regions += 1
        else:
            region[k] = region[_root(parent, k)]
    return start[:n].copy(), stop[:n].copy(), region, regions


@njit(cache=True, nogil=True, error_model="numpy")
def _regions_with(
    start: np.ndarray,
    length: np.ndarray,
    region: np.ndarray,
    regions: int,
    bad: np.ndarray,
    fewest: int,
) -> np.ndarray:
    """Pixels of the regions with at least `fewest` good pixels: bool (ny, nx)."""
    good, out = np.zeros(regions, np.int64), np.zeros(bad.shape, np.bool_)
    flat_bad, flat_out = bad.reshape(-1), out.reshape(-1)
    for k in range(start.size):
        for p in range(start[k], start[k] + length[k]):
            good[region[k]] += not flat_bad[p]
    for k in range(start.size):
        if good[region[k]] >= fewest:
            for p in range(start[k], start[k] + length[k]):
                flat_out[p] = True
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _sorted_pixels(
    start: np.ndarray,
    length: np.ndarray,
    region: np.ndarray,
    regions: int,
    smoothed: np.ndarray,
    fewest: int,
) -> np.ndarray:
    """Flat indices of the pixels of regions of `fewest` pixels, region by region, bright to faint.

    Equal values stay in the order of their indices. It is a radix sort, least digit first; the
    region is the greatest. Values must be positive.
    """
    size, place = np.zeros(regions, np.int64), np.zeros(regions, np.int64)
    for k in range(start.size):
        size[region[k]] += length[k]
    n = 0
    for k in range(regions):
        place[k] = n
        n += size[k] if size[k] >= fewest else 0
    pixel, owner = np.empty(n, np.int64), np.empty(n, np.int32)
    key, order = np.empty((2, n), np.uint32), np.empty((2, n), np.int32)
    bits, n = smoothed.reshape(-1).view(np.uint32), 0
    for k in range(start.size):
        if size[region[k]] < fewest:
            continue
        for p in range(start[k], start[k] + length[k]):
            pixel[n], owner[n], order[0, n] = p, region[k], n
            key[0, n] = ~bits[p]  # falling values: rising keys
            n += 1
    counts = np.empty(1 << DIGIT_BITS, np.int64)
    for digit in range(3):
        shift, mask = np.uint32(digit * DIGIT_BITS), np.uint32((1 << DIGIT_BITS) - 1)
        old, new = digit % 2, 1 - digit % 2
        counts[:] = 0
        for k in range(n):
            counts[(key[old, k] >> shift) & mask] += 1
        total = 0
        for d in range(counts.size):
            total, counts[d] = total + counts[d], total
        for k in range(n):
            d = (key[old, k] >> shift) & mask
            key[new, counts[d]], order[new, counts[d]] = key[old, k], order[old, k]
            counts[d] += 1
    out = np.empty(n, np.int64)
    for k in range(n):
        found = order[1, k]
        out[place[owner[found]]] = pixel[found]
        place[owner[found]] += 1
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _flood_basins(
    order: np.ndarray,
    smoothed: np.ndarray,
    variance: np.ndarray,
    mesh: np.ndarray,
    bad: np.ndarray,
    min_area: int,
    labels: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Flood from the top: each pixel joins the highest basin beside it.

    Where basins meet, the lower one is swallowed unless it stands out. A later contact lies lower,
    so the first one decides. Edits labels; returns (parent, peak, blended, good pixels) of each
    basin; the parent is that into which it was swallowed in the end.
    """
    ny, nx = smoothed.shape
    parent, peak = np.zeros(order.size + 1, np.int32), np.zeros(order.size + 1, np.int64)
    area, good = np.zeros(order.size + 1, np.int64), np.zeros(order.size + 1, np.int64)
    blended, n = np.zeros(order.size + 1, np.bool_), 0
    for p in order:
        y, x = p // nx, p % nx
        value = smoothed[y, x]
        best, best_value, mixed = 0, np.float32(-np.inf), False
        for yy in range(max(y - 1, 0), min(y + 2, ny)):
            for xx in range(max(x - 1, 0), min(x + 2, nx)):
                label, level = labels[yy, xx], smoothed[yy, xx]
                mixed |= (label > 0) & (best > 0) & (label != best)
                higher = (label > 0) & (level > best_value)
                best, best_value = label if higher else best, level if higher else best_value
        if best == 0:
            n += 1
            parent[n], peak[n], area[n], good[n], best = n, p, 0, 0, n
        best = _root(parent, best)
        for yy in range(max(y - 1, 0), min(y + 2, ny) if mixed else 0):
            for xx in range(max(x - 1, 0), min(x + 2, nx)):
                neighbour = _root(parent, labels[yy, xx])
                if neighbour == 0 or neighbour == best:
                    continue
                # Basins of a region are numbered from the highest peak down.
                high, low = min(best, neighbour), max(best, neighbour)
                ty, tx = peak[low] // nx, peak[low] % nx
                rise, sigma = smoothed[ty, tx] - value, mesh_value(mesh, ty, tx, ny, nx)
                noise = np.sqrt(np.fmax(variance[ty, tx], sigma**2)) * SMOOTHED_NOISE
                limit = max(MIN_RISE_SIGMA * noise, MIN_RISE_FRACTION * value)
                if rise >= limit and area[low] >= min_area:
                    blended[low] = True
                    blended[high] = True
                else:
                    parent[low] = high
                    area[high] += area[low]
                    good[high] += good[low]
                    blended[high] |= blended[low]
                    best = min(best, high)
        labels[y, x] = best
        area[best] += 1
        good[best] += not bad[y, x]
    for i in range(1, n + 1):
        parent[i] = _root(parent, i)
    return parent[: n + 1], peak[: n + 1], blended[: n + 1], good[: n + 1]


def segment(
    smoothed: Image,
    variance: Image,
    noise: np.ndarray,
    bad: Mask,
    *,
    threshold: float,
    min_pixels: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split a smoothed plane without sky into sources.

    smoothed is float32 (ny, nx); noise is the mesh of the sky's noise before smoothing, in the same
    unit. variance is that of a pixel with the sources' own photons, in the unit squared. Pixels
    above threshold * noise count, connected by sides or corners, at least min_pixels of them not
    bad (a quarter of it for a peak that stands out of a brighter neighbour).
    Returns labels (ny, nx) int32, 0 for sky and 1..n from the highest peak down; peak, the flat
    index of each peak; blended, True where a source touches another.
    """
    few = max(min_pixels // 4, 3)
    runs = _connected_runs(smoothed, noise, threshold)
    pixels = _sorted_pixels(*runs, smoothed, min(few, min_pixels))
    labels = np.zeros(smoothed.shape, np.int32)
    parent, peak, blended, good = _flood_basins(pixels, smoothed, variance, noise, bad, few, labels)
    kept = parent == np.arange(parent.size)
    kept &= good >= np.where(blended, few, min_pixels)
    kept[0] = False
    basins = np.flatnonzero(kept)
    basins = basins[np.lexsort((peak[basins], -smoothed.reshape(-1)[peak[basins]]))]
    number = np.zeros(parent.size, np.int32)
    number[basins] = np.arange(1, basins.size + 1)
    flat = labels.reshape(-1)
    flat[pixels] = number[parent[flat[pixels]]]
    return labels, peak[basins], blended[basins]


def connected_regions(
    smoothed: Image, noise: np.ndarray, bad: Mask, threshold: float, min_pixels: int
) -> Mask:
    """Find the pixels of sources as `segment` does, without splitting blends.

    Returns bool (ny, nx), True in connected regions above threshold * noise with at least
    min_pixels good pixels. The arguments are those of `segment`.
    """
    return _regions_with(*_connected_runs(smoothed, noise, threshold), bad, min_pixels)


@njit(cache=True, nogil=True, error_model="numpy")
def _faint_and_core(
    data: np.ndarray, bad: np.ndarray, core: np.ndarray, mesh: np.ndarray, limit: float
) -> np.ndarray:
    """Tell pixels of the core (2), others with faint light (1) and sky (0): uint8 (ny + 2, nx + 2).

    Light is faint where the mean of the good pixels of 9x9 is above `limit` sigma of that mean.
    mesh: the noise in cells. The rim is 0.
    """
    (ny, nx), half = data.shape, WING_HALF_WIDTH
    first, part = mesh_columns(mesh.shape[1], nx)
    state = np.zeros((ny + 2, nx + 2), np.uint8)
    total, number = np.zeros(nx + 2 * half), np.zeros(nx + 2 * half, np.float32)
    two, four, sigma = np.empty(nx + 7), np.empty(nx + 5), np.empty(nx, np.float32)
    two_n, four_n = np.empty(nx + 7, np.float32), np.empty(nx + 5, np.float32)
    inner, inner_number = total[half : half + nx], number[half : half + nx]
    for y in range(-half, ny):
        if y + half < ny:
            row, bad_row = data[y + half], bad[y + half]
            for x in range(nx):
                inner[x] += np.float32(0.0) if bad_row[x] else row[x]
                inner_number[x] += np.float32(0.0) if bad_row[x] else np.float32(1.0)
        if y - half - 1 >= 0:
            row, bad_row = data[y - half - 1], bad[y - half - 1]
            for x in range(nx):
                inner[x] -= np.float32(0.0) if bad_row[x] else row[x]
                inner_number[x] -= np.float32(0.0) if bad_row[x] else np.float32(1.0)
        if y < 0:
            continue
        for x in range(nx + 7):
            two[x], two_n[x] = total[x] + total[x + 1], number[x] + number[x + 1]
        for x in range(nx + 5):
            four[x], four_n[x] = two[x] + two[x + 2], two_n[x] + two_n[x + 2]
        mesh_row(mesh, y, ny, first, part, sigma)
        out, core_row = state[y + 1, 1 : nx + 1], core[y]
        for x in range(nx):
            light = four[x] + four[x + 4] + total[x + 8]
            n = four_n[x] + four_n[x + 4] + number[x + 8]
            faint = light > limit * np.float64(sigma[x]) * np.sqrt(n)
            out[x] = np.uint8(2) if core_row[x] else np.uint8(faint)
    return state


@njit(cache=True, nogil=True, error_model="numpy")
def _follow_wings(state: np.ndarray) -> np.ndarray:
    """Pixels of the core and the faint ones connected to it; edits the state."""
    ny, nx = state.shape[0] - 2, state.shape[1] - 2
    flat, width = state.reshape(-1), state.shape[1]
    stack, n = np.empty(flat.size, np.int32), 0
    out = np.empty((ny, nx), np.bool_)
    for p in range(width, flat.size - width):
        if flat[p] != 2:
            continue
        stack[0], n = p, 1
        while n > 0:
            n -= 1
            here = stack[n]
            for base in range(here - width, here + width + 1, width):
                for q in range(base - 1, base + 2):
                    if flat[q] == 1:
                        flat[q], stack[n] = 2, q
                        n += 1
    for y in range(ny):
        for x in range(nx):
            out[y, x] = state[y + 1, x + 1] == 2
    return out


def with_wings(data: Image, bad: Mask, core: Mask, noise: np.ndarray) -> Mask:
    """Add the faint wings of sources to their pixels (`core`): the object mask for a sky estimate.

    data: plane without sky, float32 (ny, nx). noise: mesh of the sky noise of a pixel. Wings are
    pixels connected to a source where the mean of 9x9 good pixels is above 2 of its own sigma: a
    star is followed down to a quarter of the sky noise.
    """
    return _follow_wings(_faint_and_core(data, bad, core, noise, MIN_WING_SIGMA))
