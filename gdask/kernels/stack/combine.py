"""Combination of many planes into one, pixel by pixel.

Values are chosen by their DQ, some of them are rejected, and variance is propagated.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gdask.kernels.arrays import INNER, as_kernel_input
from gdask.kernels.compiled import njit
from gdask.kernels.stack.averages import average_used, combine_common
from gdask.kernels.stack.medians import combine_medians, list_pixel
from gdask.kernels.stack.rejection import (
    Counts,
    Floats,
    Stack,
    Work,
    clip_noise,
    clip_scatter,
    clip_variance,
    empty_work,
    reject_minmax,
    sort_rows,
    sorting_network,
    use_best,
)
from gdask.model import GdaskError
from gdask.types import Flags, Image, Mask

#: Pixels that are worked on together, and their values in all planes: at most so many, for their
#: buffers (20 bytes a value) stay in the processor's cache, and do not grow with the planes.
BLOCK_PIXELS, BLOCK_VALUES, FEWEST_PIXELS = 1024, 2**15, 64
_KEPT = threading.local()


class Choice(NamedTuple):
    """A method or a rejection: its number in the compiled code, and what it does."""

    code: int
    text: str


METHODS: dict[str, Choice] = {
    "mean": Choice(0, "mean; variance sum(var) / n^2"),
    "wtmean": Choice(
        1, "weighted mean, weights 1/var unless given; variance sum(w^2 var) / sum(w)^2"
    ),
    "median": Choice(2, "median; variance mean(var) / n times the median's for Gaussian values"),
    "lmedian": Choice(3, "lower of the middle two where their number is even; variance likewise"),
}
REJECTIONS: dict[str, Choice] = {
    "none": Choice(0, "use all"),
    "minmax": Choice(
        1, "drop int(n nlow / nplanes + 0.001) lowest, likewise highest, of the n usable (IRAF)"
    ),
    "sigclip": Choice(2, "clip beyond lsigma, hsigma times the values' own standard deviation"),
    "varclip": Choice(3, "clip beyond lsigma, hsigma times each value's sqrt(variance)"),
    "noiseclip": Choice(
        4,
        "clip beyond lsigma, hsigma times the pixel's noise,"
        " and in starlight the planes' own scatter",
    ),
}

#: n times the variance of the median of n standard normal values (index n), by numerical
#: integration of the densities of the order statistics. They agree with the textbook tables (n = 3:
#: 1.346) and with simulation.
_MEDIAN_VARIANCE = (
    *(0, 1, 1, 1.3460, 1.1928, 1.4342, 1.2885),
    *(1.4731, 1.3455, 1.4949, 1.3833, 1.5088, 1.4102, 1.5184),
    *(1.4304, 1.5254, 1.4460, 1.5308, 1.4585, 1.5350, 1.4688),
)
#: The same for the lower median: the lower of the middle two values where their number is even.
_LOWER_MEDIAN_VARIANCE = (
    *(0, 1, 1.3634, 1.3460, 1.4418, 1.4342, 1.4773),
    *(1.4731, 1.4975, 1.4949, 1.5105, 1.5088, 1.5197, 1.5184),
    *(1.5264, 1.5254, 1.5315, 1.5308, 1.5356, 1.5350, 1.5389),
)
#: Beyond the tables: pi/2 (1 - s/n), the limit of Laplace with a second term fitted to n = 20..200.
#: s of the median of an even number of values, and of other medians.
_SECOND_TERM_EVEN, _SECOND_TERM = 1.34, 0.43


@lru_cache(maxsize=64)
def _variance_factors(method: str, number: int) -> Floats:
    """Return n * variance of the result / variance of one value, for n = 0..number: 1 for means."""
    if METHODS[method].code < 2:
        return as_kernel_input(np.ones(number + 1), np.float64)
    table = _LOWER_MEDIAN_VARIANCE if method == "lmedian" else _MEDIAN_VARIANCE
    n = np.maximum(np.arange(number + 1), 1)
    second = np.where((n % 2 == 0) & (method == "median"), _SECOND_TERM_EVEN, _SECOND_TERM)
    values = np.pi / 2 * (1 - second / n)
    values[: len(table)] = table[: number + 1]
    return as_kernel_input(values, np.float64)


def variance_factor(method: str, number: int) -> float:
    """Return `number` times the variance of the result over that of one value: 1 for means."""
    return float(_variance_factors(method, number)[number])


@njit(cache=True, nogil=True, borrows=True)
def _combine(
    planes: tuple[Image, Image, Flags],
    chosen: npt.NDArray[np.int64],
    weights: Image,
    levels: tuple[Floats, Floats],
    pairs: npt.NDArray[np.int64],
    variance_factors: Floats,
    choice: tuple[int, int],
    limits: tuple[float, float, int, bool],
    work: Work,
    listed: Work,
    out: Stack,
    rejected: Mask,
) -> None:
    """Combine planes (.., pixels) block by block into `out`; what a block leaves over is listed.

    planes: data, variance, dq. chosen: numbers of the n planes that are combined. rejected: (n,
    pixels), to be set where `reject` drops a value, or (n, 0). weights, and levels (scale, zero):
    see `combine`. pairs: sorting_network. choice: codes of METHODS and REJECTIONS. limits: low,
    high, rounds, about_median; see `rejection`. work, listed: buffers for a block and for the list.
    """
    dq, pixels, number = planes[2], planes[0].shape[1], 0
    block = work.left.size
    fixed = pairs, variance_factors, choice
    common = not (rejected.size > 0 and choice[1] == 1)
    medians = choice[0] >= 2 and choice[1] <= 1 and common
    for start in range(0, pixels, block):
        size = min(block, pixels - start)
        if medians:
            left = combine_medians(planes, chosen, levels, *fixed, limits, start, size, work, out)
        else:
            left = combine_common(
                planes, chosen, weights, levels, *fixed, limits, common, start, size, work, out
            )
        if left == size and not medians:
            for x in range(size):
                work.pixels[x] = start + x
            for k in range(chosen.size):
                for x in range(size):
                    work.flags[k, x] = dq[chosen[k], start + x]
            _combine_any(weights, *fixed, limits, size, work, out, rejected)
            continue
        for x in range(size if left or not medians else 0):
            if work.left[x]:
                list_pixel(planes, chosen, levels, start + x, number, listed)
                number += 1
                if number == block:
                    _combine_any(weights, *fixed, limits, number, listed, out, rejected)
                    number = 0
    if number:
        _combine_any(weights, *fixed, limits, number, listed, out, rejected)


@njit(nogil=True, **INNER)
def _combine_any(
    weights: Image,
    pairs: npt.NDArray[np.int64],
    variance_factors: Floats,
    choice: tuple[int, int],
    limits: tuple[float, float, int, bool],
    size: int,
    work: Work,
    out: Stack,
    rejected: Mask,
) -> None:
    """Combine the first `size` pixels in `work`, whatever they are like."""
    (method, reject), (low, high, rounds, about_median) = choice, limits
    use_best(size, work)
    if rejected.size:
        for k in range(rejected.shape[0]):
            for x in range(size):
                rejected[k, work.pixels[x]] = work.use[k, x]
    if method >= 2 or reject >= 1:
        sort_rows(pairs, size, work.ordered)
    if reject == 1:
        reject_minmax(low, high, size, work)
    elif reject == 2:
        clip_scatter(low, high, rounds, about_median, size, work)
    elif reject == 3:
        clip_variance(low, high, rounds, about_median, size, work)
    elif reject == 4:
        clip_noise(pairs, low, high, rounds, about_median, size, work)
    if rejected.size:
        for k in range(rejected.shape[0]):
            for x in range(size):
                rejected[k, work.pixels[x]] &= not work.use[k, x]
    average_used(weights, variance_factors, method, size, work, out)


def _buffers(planes: int) -> tuple[Work, Work]:
    """Give this thread's buffers for a block and for the list of so many planes.

    To make them takes as long as to combine a thousand pixels.
    """
    kept: tuple[Work, Work] | None = getattr(_KEPT, "buffers", None)
    if kept is None or kept[0].values.shape[0] != planes:
        block = max(min(BLOCK_PIXELS, BLOCK_VALUES // planes), FEWEST_PIXELS)
        kept = empty_work(planes, block), empty_work(planes, block)
        _KEPT.buffers = kept
    return kept


def _choice(table: dict[str, Choice], kind: str, name: str) -> Choice:
    """Return an entry of METHODS or REJECTIONS; raises GdaskError for an unknown name."""
    if name not in table:
        raise GdaskError(f"unknown {kind} {name!r}: choose one of {', '.join(table)}")
    return table[name]


def _weight_rows(weights: npt.ArrayLike | None, method: str, shape: tuple[int, ...]) -> Image:
    """Return weights as (n, 1), (n, pixels), or (n, 0) for 1/variance.

    Raises GdaskError for other shapes.
    """
    if weights is None:
        return as_kernel_input(np.empty((shape[0], 0)), np.float32)
    if method != "wtmean":
        raise GdaskError(f"weights were given for method {method!r}: only 'wtmean' uses them")
    if np.shape(weights) not in ((shape[0],), shape):
        raise GdaskError(
            f"weights of shape {np.shape(weights)} for planes of {shape}:"
            " give one per plane or per pixel"
        )
    return as_kernel_input(weights, np.float32).reshape(shape[0], -1)


def _per_plane(values: npt.ArrayLike | None, default: float, count: int, name: str) -> Floats:
    """Return one number per plane, `default` for None; raises GdaskError for other shapes."""
    factors = np.full(count, default) if values is None else np.asarray(values, dtype=np.float64)
    if factors.shape != (count,):
        raise GdaskError(
            f"{name} of shape {factors.shape} for {count} planes: give one number per plane"
        )
    return as_kernel_input(factors, np.float64)


def combine(
    data: Image,
    variance: Image,
    dq: Flags,
    *,
    method: str = "mean",
    reject: str = "sigclip",
    weights: npt.ArrayLike | None = None,
    nlow: int = 0,
    nhigh: int = 0,
    lsigma: float = 3.0,
    hsigma: float = 3.0,
    max_iters: int | None = None,
    mclip: bool = True,
    scale: npt.ArrayLike | None = None,
    zero: npt.ArrayLike | None = None,
    rejected: Mask | None = None,
    chosen: Sequence[int] | None = None,
) -> tuple[Image, Image, Flags, Counts]:
    """Combine planes (n, ny, nx) into data, variance, DQ and number of planes, each (ny, nx).

    The planes are first scaled: data * scale + zero and variance * scale^2 (`scale`, `zero`: one
    number per plane). Each pixel then uses the planes whose DQ is least bad by
    `rejection.HIERARCHY`, never NO_DATA (16) or values that are not finite. Of those `reject` (a
    key of REJECTIONS) drops some, and `method` (a key of METHODS) combines the rest; `weights`,
    (n,) or (n, ny, nx), are for "wtmean". Output DQ is the OR of the bits of the used planes; with
    nothing to use, data and variance are 0 and DQ is 16.

    nlow, nhigh are for "minmax", the rest for clipping. lsigma, hsigma: limits below and above the
    centre. The centre is the median (without `mclip`, the mean after the first round). Rounds go on
    until nothing changes or `max_iters` are done, and never reject all. Fewer than 3 values are not
    clipped by scatter; of two that disagree, "varclip" keeps both.

    "sigclip" takes sigma as the population standard deviation of the values themselves, outliers
    included, so that at limits of 3 a lone outlier among n < 8 always stays (it deviates by n /
    sqrt(n - 1) sigma at most). By simulation, half of the outliers are rejected at 33 sigma of the
    other values for n = 8, at 9 for n = 9, at 5 for n = 12. Of good Gaussian values none is lost
    for n < 8, 0.02 % for n = 9, 0.2 % for n = 32.

    "varclip", which knows the noise, finds 7 sigma from n = 3 on and loses 0.3 to 0.5 %. It also
    takes changes of the seeing for outliers.

    "noiseclip", for sky-subtracted images, takes one sigma for all planes: the median of their
    variances plus, where there is starlight, the scatter of most planes (10 to 30 % of the light),
    so that a star's core stays whole.

    The median after symmetric min-max rejection is the median of all, and its variance is given as
    such. A trimmed mean has the variance of the mean of the values that are left, up to a third too
    large.

    rejected: an array (n, ny, nx) of False, to be set to True where `reject` dropped a value.

    chosen: numbers of the planes to be combined, in this order, as if they alone had been given.

    Raises GdaskError for names, shapes and counts that do not fit.
    """
    average, rejection = (
        _choice(METHODS, "method", method),
        _choice(REJECTIONS, "rejection", reject),
    )
    if data.ndim != 3 or not data.shape == variance.shape == dq.shape:
        raise GdaskError(
            f"planes of shapes {data.shape}, {variance.shape}, {dq.shape}:"
            " data, variance and DQ must agree"
        )
    count, ny, nx = data.shape
    picked = np.arange(count) if chosen is None else np.asarray(chosen, np.int64)
    n = len(picked)
    if not all(0 <= number < count for number in picked):
        raise GdaskError(f"planes {list(picked)} of {count} were chosen: count from 0")
    if reject == "minmax" and not 0 <= nlow + nhigh < n:
        raise GdaskError(
            f"min-max rejection of {nlow} low and {nhigh} high values leaves nothing of {n} planes"
        )
    out = Stack(
        *(np.empty(ny * nx, dtype) for dtype in (np.float32, np.float32, np.uint16, np.uint16))
    )
    low, high = (nlow, nhigh) if reject == "minmax" else (lsigma, hsigma)
    rounds = 100 if max_iters is None else int(max_iters)
    _combine(
        (
            as_kernel_input(data, np.float32).reshape(count, -1),
            as_kernel_input(variance, np.float32).reshape(count, -1),
            as_kernel_input(dq, np.uint16).reshape(count, -1),
        ),
        as_kernel_input(picked, np.int64),
        _weight_rows(weights, method, (n, ny, nx)),
        (_per_plane(scale, 1.0, n, "scale"), _per_plane(zero, 0.0, n, "zero")),
        sorting_network(n),
        _variance_factors(method, n),
        (average.code, rejection.code),
        (float(low), float(high), rounds, bool(mclip)),
        *_buffers(n),
        out,
        np.empty((n, 0), np.bool_) if rejected is None else rejected.reshape(n, -1),
    )
    shape = ny, nx
    return (
        out.data.reshape(shape),
        out.variance.reshape(shape),
        out.dq.reshape(shape),
        out.used.reshape(shape),
    )
