"""Rejection by the noise that a pixel should have, which leaves the cores of stars whole.

It is for stacks of sky-subtracted images. In starlight, frames differ by more than noise (seeing,
Strehl ratio, throughput). Limits by the noise alone would cut the cores of stars, and limits by the
scatter of the values would miss a lone outlier among few. Here the noise is the median variance of
the planes, and starlight may scatter further, as far as most planes do.
"""

from __future__ import annotations

import numpy as np

from gdask.kernels.compiled import njit
from gdask.kernels.stack.rejection import Floats, Work, drop_outside, median_of_ordered

#: Shares of a pixel's light by which frames may scatter beyond their noise before a value is
#: clipped: the first always, up to the second where the values themselves scatter so. The first is
#: what seeing whose width changes by 5 % does to cores and wings. Nine values tell their own
#: scatter too roughly to go below it (with 3 %, the stars of a simulated FLAMINGOS-2 night lost
#: 0.07 %). The second keeps a cosmic ray on a star from passing for seeing.
MIN_STARLIGHT_SCATTER, MAX_STARLIGHT_SCATTER = 0.1, 0.3
#: Standard deviation of Gaussian values over their median absolute deviation.
_SIGMA_PER_MAD = 1.4826


@njit(cache=True, nogil=True)
def clip_noise(
    low: float, high: float, rounds: int, about_median: bool, size: int, work: Work
) -> None:
    """Clip beyond low, high times the noise that a pixel should have, the same for all planes.

    A cosmic ray's own variance is inflated by its charge; the median variance of the planes is not.
    Survivors are a stretch of the ordered values. The other arguments are those of `rejection`.
    """
    n = work.use.shape[0]
    least = np.full(size, np.float32(np.inf))  # variance of each pixel
    centre = np.zeros(size)
    buffer = np.empty(n, np.float64)
    for x in range(size):
        centre[x] = median_of_ordered(work.ordered, 0, work.last[x], x) if work.last[x] else 0.0
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
                sigma = _expected_noise(centre[x], x, buffer, work)
                clipped |= _clip_stretch(low * sigma, high * sigma, rounds, about_median, x, work)
    if clipped:
        drop_outside(size, work)


@njit(cache=True, nogil=True)
def _expected_noise(centre: float, x: int, buffer: Floats, work: Work) -> float:
    """Return the noise that one value of pixel x should have.

    It is the median variance and, in starlight, the robust scatter of the planes. centre: median of
    the values. buffer: work space, one number per plane.
    """
    number = 0
    for k in range(work.use.shape[0]):
        if work.use[k, x]:
            buffer[number] = work.variances[k, x]
            number += 1
    variance = _median_of_buffer(buffer, number)
    for k in range(number):
        buffer[k] = abs(work.ordered[k, x] - centre)
    scatter = _SIGMA_PER_MAD * _median_of_buffer(buffer, number)
    light = max(centre, 0.0)
    beyond_noise = min(
        max(scatter * scatter - variance, (MIN_STARLIGHT_SCATTER * light) ** 2),
        (MAX_STARLIGHT_SCATTER * light) ** 2,
    )
    return np.sqrt(variance + beyond_noise)


@njit(cache=True, nogil=True)
def _median_of_buffer(buffer: Floats, number: int) -> float:
    """Return the median of the first `number` values."""
    values = np.sort(buffer[:number])
    return 0.5 * (values[(number - 1) // 2] + values[number // 2])


@njit(cache=True, nogil=True)
def _clip_stretch(
    below: float, above: float, rounds: int, about_median: bool, x: int, work: Work
) -> bool:
    """Narrow ordered[first:last] of pixel x to the values within the limits of its centre.

    Returns True if any value was dropped. below, above: limits in the unit of the data.
    """
    ordered, first, last = work.ordered, work.first[x], work.last[x]
    for turn in range(rounds):
        centre = median_of_ordered(ordered, first, last, x)
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
