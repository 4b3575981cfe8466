"""Rejection by the noise that a pixel should have, for stacks of sky-subtracted images: stars keep their cores.

Frames differ in starlight by more than noise (seeing, Strehl ratio, throughput), so that limits of the noise alone cut
cores, and limits of the values' scatter miss a lone outlier among few. Here the noise is the planes' median variance, and
starlight may scatter further, as far as most planes do.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gdask.kernels.stack.rejection import Factors, Work, drop_outside, middle

#: Share of a pixel's light by which frames may scatter beyond their noise (seeing, Strehl ratio, throughput) before a
#: value counts as deviant: at least, and at most where the values themselves scatter so. The least is what seeing whose
#: width changes by 5 % does to cores and wings: nine values tell their own scatter too roughly to go below it (with 3 %,
#: the stars of a simulated FLAMINGOS-2 night lost 0.07 %). The most keeps a cosmic ray on a star from passing for seeing.
LEAST_SCATTER, MOST_SCATTER = 0.1, 0.3


@njit(cache=True, nogil=True)
def clip_noise(
    low: float, high: float, rounds: int, about_median: bool, size: int, work: Work
) -> None:
    """Clip by the noise that the pixel should have, the same for all planes: survivors are a stretch of ordered values.

    A cosmic ray's own variance is inflated by its charge; the median variance of the planes is not.
    """
    n = work.use.shape[0]
    least, centre = np.full(size, np.float32(np.inf)), np.zeros(size)
    buffer = np.empty(n, np.float64)
    for x in range(size):
        centre[x] = middle(work.ordered, 0, work.last[x], x) if work.last[x] else 0.0
    for k in range(n):
        use, variances = work.use[k], work.variances[k]
        for x in range(size):
            least[x] = min(least[x], variances[x]) if use[x] else least[x]
    clipped = False
    for x in range(size):
        last = work.last[x]
        if rounds > 0 and last > 2:
            sigma = np.sqrt(np.float64(max(least[x], np.float32(0))))
            if (
                work.ordered[0, x] < centre[x] - low * sigma
                or work.ordered[last - 1, x] > centre[x] + high * sigma
            ):
                sigma = _expected(centre[x], x, buffer, work)
                clipped |= _clip_stretch(low * sigma, high * sigma, rounds, about_median, x, work)
    if clipped:
        drop_outside(size, work)


@njit(cache=True, nogil=True)
def _expected(centre: float, x: int, buffer: Factors, work: Work) -> float:
    """Noise of one value of a pixel: the median variance and, in starlight, the planes' own robust scatter."""
    number = 0
    for k in range(work.use.shape[0]):
        if work.use[k, x]:
            buffer[number] = work.variances[k, x]
            number += 1
    variance = _median(buffer, number)
    for k in range(number):
        buffer[k] = abs(work.ordered[k, x] - centre)
    scatter = 1.4826 * _median(buffer, number)  # of Gaussian values: the standard deviation
    light = max(centre, 0.0)
    more = min(
        max(scatter * scatter - variance, (LEAST_SCATTER * light) ** 2), (MOST_SCATTER * light) ** 2
    )
    return np.sqrt(variance + more)


@njit(cache=True, nogil=True)
def _median(buffer: Factors, number: int) -> float:
    values = np.sort(buffer[:number])
    return 0.5 * (values[(number - 1) // 2] + values[number // 2])


@njit(cache=True, nogil=True)
def _clip_stretch(
    below: float, above: float, rounds: int, about_median: bool, x: int, work: Work
) -> bool:
    """Narrow ordered[first:last] of a pixel to what lies within the limits of its centre; True if anything went."""
    ordered, first, last = work.ordered, work.first[x], work.last[x]
    for turn in range(rounds):
        centre = middle(ordered, first, last, x)
        if turn > 0 and not about_median:
            total = 0.0
            for k in range(first, last):
                total += ordered[k, x]
            centre = total / (last - first)
        new_first, new_last = first, last
        while new_first < last and ordered[new_first, x] < centre - below:
            new_first += 1
        while new_last > new_first and ordered[new_last - 1, x] > centre + above:
            new_last -= 1
        if new_last == new_first or new_last - new_first == last - first:
            break
        first, last = new_first, new_last
    changed = last - first < work.last[x] - work.first[x]
    work.first[x], work.last[x] = first, last
    return changed
