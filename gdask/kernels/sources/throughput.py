"""Throughput of frames (sky transparency, losses of light) from the stars that they share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gdask.kernels.arrays import exponentials, logarithms

#: Error of a star's flux in a frame beyond its own: flats and changes of the star image over an
#: array, as a fraction.
FLUX_FLOOR = 0.01
#: Fewest stars that a frame must share, and rounds of means over stars and over frames.
FEWEST_SHARED, ROUNDS = 5, 40
#: A star this many sigma off in a frame weighs less.
REJECT_SIGMA = 3.0
#: Errors of curves of growth are taken so many times as large, with this one added: on simulated
#: crowded fields whose sky is not flat, frames differ by so much more than they say.
ERROR_FACTOR, ERROR_FLOOR = 1.5, 0.004
#: A frame whose throughput is known no better than this is left alone.
LARGEST_ERROR = 0.03
#: Throughputs are used where frames differ by so many times what they are known to: the square of
#: their scatter is then the scatter's, and not the errors'.
KNOWN_BETTER = 2.0


#: Step to which throughputs, their errors and factors are rounded.
STEP = 2.0**-20


class Throughputs(NamedTuple):
    """Throughput of each frame over the mean of all, its error, and shared stars; arrays (frames,).

    value: 1 where too few stars tell it, with an infinite error. scatter: rms of the frames' true
    throughputs about their mean, errors taken out; factor: what to multiply each frame by, 1 for
    all where the throughputs are not known better than they differ.
    """

    value: np.ndarray
    error: np.ndarray
    stars: np.ndarray
    scatter: float
    factor: np.ndarray


def measure_throughputs(
    star: np.ndarray,
    frame: np.ndarray,
    array: np.ndarray,
    flux: np.ndarray,
    error: np.ndarray,
    scale_error: np.ndarray,
    frames: int,
) -> Throughputs:
    """Measure the throughput of frames from the fluxes of stars in them.

    star, frame, array: numbers from 0 of each measurement; flux, error: per second, all light;
    scale_error: (frames, arrays) error of the fluxes that all stars of an array have in common, as
    a fraction, NaN where unknown.
    """
    known = np.isfinite(scale_error[frame, array]) & (flux > 0) & np.isfinite(error)
    seen = np.bincount(star[known], minlength=int(star.max(initial=0)) + 1)
    use = known & (seen[star] >= 2)
    star, frame, array = star[use], frame[use], array[use]
    z, relative = logarithms(flux[use]), error[use] / flux[use]
    weight = 1 / (relative**2 + FLUX_FLOOR**2)
    offset, robust = np.zeros(frames), np.ones(len(z))
    for _ in range(ROUNDS):
        w = weight * robust
        total = np.bincount(star, w, len(seen))
        mean = np.bincount(star, w * (z - offset[frame]), len(seen)) / np.maximum(total, 1e-300)
        total = np.bincount(frame, w, frames)
        off = np.bincount(frame, w * (z - mean[star]), frames) / np.maximum(total, 1e-300)
        offset = off - _mean_of(off, total)
        pull = np.abs(z - mean[star] - offset[frame]) * np.sqrt(weight)
        robust = 1 / (1 + np.square(np.minimum(pull / REJECT_SIGMA, 1e6) ** 2))
    count = np.bincount(frame, minlength=frames)
    errors = _errors(frame, array, weight * robust, scale_error)
    told = (count >= FEWEST_SHARED) & (errors < LARGEST_ERROR)
    offset = np.where(told, offset - (offset[told].mean() if told.any() else 0.0), 0.0)
    errors = np.where(told, errors, np.inf)
    scatter = _scatter(offset[told], errors[told])
    # Each is taken as far as it is known better than the frames differ.
    share = scatter**2 / (scatter**2 + errors**2) if scatter > 0 else np.zeros(frames)
    typical = float(np.sqrt(np.mean(errors[told] ** 2))) if told.any() else np.inf
    trusted = scatter > KNOWN_BETTER * typical
    factor = exponentials(-offset * share) if trusted else np.ones(frames)
    values, errors, factor = (
        np.round(each / STEP) * STEP for each in (exponentials(offset), errors, factor)
    )
    return Throughputs(values, errors, count, scatter, factor)


def _mean_of(values: np.ndarray, total: np.ndarray) -> float:
    """Mean over the frames that have stars."""
    return float(values[total > 0].mean()) if (total > 0).any() else 0.0


def _errors(
    frame: np.ndarray, array: np.ndarray, weight: np.ndarray, scale_error: np.ndarray
) -> np.ndarray:
    """Error of each frame's throughput: of its stars, and of what its arrays' stars have in common.

    inf where there is no star.
    """
    frames, arrays = scale_error.shape
    total = np.bincount(frame, weight, frames)
    by_array = np.bincount(frame * arrays + array, weight, frames * arrays)
    share = by_array.reshape(frames, arrays) / np.maximum(total, 1e-300)[:, None]
    scale_error = np.hypot(ERROR_FACTOR * np.nan_to_num(scale_error), ERROR_FLOOR)
    common = (share**2 * scale_error**2).sum(axis=1)
    return np.where(total > 0, np.sqrt(1 / np.maximum(total, 1e-300) + common), np.inf)


def _scatter(offset: np.ndarray, error: np.ndarray) -> float:
    """Rms of the offsets that their errors do not explain; 0 for fewer than 3.

    A single frame that is far off does not make all look different.
    """
    if len(offset) < 3:
        return 0.0
    square = float(np.sum((offset - offset.mean()) ** 2)) / (len(offset) - 1)
    square = min(square, (2 * 1.4826 * float(np.median(np.abs(offset - np.median(offset))))) ** 2)
    return float(np.sqrt(max(square - float(np.mean(error**2)), 0.0)))
