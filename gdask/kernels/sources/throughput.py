"""Throughput of frames (sky transparency, losses of light) from the stars that they share.

The same sum of light over the same sky is compared: all within a radius of a star less the mean of
a ring, neighbours and all (`photometry.wide_fluxes`). What light is beyond the radius differs with
the star image. Single frames do not know how much that is, so it is an error of all stars of a
frame in common, and the radius is as large as noise allows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gdask.kernels.arithmetic import exponentials, least_squares, logarithms

#: Error of a star's flux in a frame beyond its own: flats and changes of the star image over an
#: array, as a fraction.
FLUX_FLOOR = 0.01
#: Fewest stars that a frame must share (as many of equal weight).
FEWEST_SHARED = 5
#: A star this many sigma off in a frame weighs less; so many times as many in each round: frames
#: that differ much are not taken for wrong stars at first.
REJECT_SIGMA, WIDTHS = 3.0, (20.0, 10.0, 5.0, 2.5, 1.5, 1.0, 1.0, 1.0)
#: Error that the stars of a frame have in common whatever the radius, that of the ratio of a star's
#: light within two radii, and the share by which the light beyond a radius differs from frame to
#: frame (a tenth where halos of AO images change by 3 per cent in width).
COMMON_ERROR, RATIO_ERROR, MISSING_SPREAD = 0.002, 0.002, 0.15
#: That share for the cores of stars, which are not used to scale frames.
CORE_MISSING_SPREAD = 0.05
#: A frame whose throughput is known no better than this is left alone.
LARGEST_ERROR = 0.03
#: Throughputs are used where frames differ by so many times what they are known to: the square of
#: their scatter is then the scatter's, and not the errors'.
KNOWN_BETTER = 2.0
#: A frame that is so many of its errors from the mean is scaled even if the others do not differ.
OUTSTANDING = 5.0
#: Step to which throughputs, their errors and factors are rounded.
STEP = 2.0**-20


class Throughputs(NamedTuple):
    """Throughput of each frame over the mean of all, its error, and shared stars; arrays (frames,).

    value: 1 where too few stars tell it, with an infinite error. scatter: rms of the frames' true
    throughputs about their mean, errors taken out; factor: what to multiply each frame by, 1 for
    all where the throughputs are not known better than they differ. radius: index of the aperture
    that tells it.
    """

    value: np.ndarray
    error: np.ndarray
    stars: np.ndarray
    scatter: float
    factor: np.ndarray
    radius: int


class CoreShares(NamedTuple):
    """Share of a star's light in its core in each frame, over the mean of frames; (frames,).

    value: 1 where it is not known; error: infinite there, as a fraction. scatter: rms of the true
    shares about their mean.
    """

    value: np.ndarray
    error: np.ndarray
    scatter: float


class Offsets(NamedTuple):
    """Logarithms of throughputs by one radius, their errors (inf: no star), and stars.

    stars: how many of equal weight would tell as much, less where one outweighs the others.
    """

    offset: np.ndarray
    error: np.ndarray
    stars: np.ndarray


def measure_throughputs(
    star: np.ndarray,
    frame: np.ndarray,
    flux: np.ndarray,
    error: np.ndarray,
    share: np.ndarray,
    frames: int,
) -> Throughputs:
    """Measure the throughput of frames from the fluxes of stars in them.

    star, frame: numbers from 0 of each measurement; flux, error: (n, radii) light per second within
    rising radii, NaN where not measured; share: of a star's light that this is by the star image.
    """
    radii = range(flux.shape[1])
    by_radius = [relative_offsets(star, frame, flux[:, c], error[:, c], frames) for c in radii]
    common = _still_to_come(star, frame, flux, error, share, frames)
    found = [
        each._replace(error=np.hypot(each.error, beyond))
        for each, beyond in zip(by_radius, common, strict=True)
    ]
    told = [(each.stars >= FEWEST_SHARED) & (each.error < LARGEST_ERROR) for each in found]
    most = max(int(each.sum()) for each in told)
    typical = [
        float(np.sqrt(np.mean(each.error[known] ** 2))) if most and known.sum() == most else np.inf
        for each, known in zip(found, told, strict=True)
    ]
    radius = int(np.argmin(typical))
    best, known = found[radius], told[radius]
    offset = np.where(known, best.offset, 0.0)
    offset = np.where(known, offset - (offset[known].mean() if known.any() else 0.0), 0.0)
    errors = np.where(known, best.error, np.inf)
    scatter = _scatter(offset[known], errors[known])
    # Each is taken as far as it is known better than the frames differ; one that stands out alone,
    # as by a cloud, by itself.
    differ = np.full(frames, scatter if scatter > KNOWN_BETTER * typical[radius] else 0.0)
    differ = np.where(
        np.abs(offset) > OUTSTANDING * errors, np.maximum(differ, abs(offset)), differ
    )
    factor = exponentials(-offset * differ**2 / np.maximum(differ**2 + errors**2, 1e-30))
    # Exponentials differ in their last bits from processor to processor.
    values, errors, factor = (
        np.round(each / STEP) * STEP for each in (exponentials(offset), errors, factor)
    )
    return Throughputs(values, errors, best.stars, scatter, factor, radius)


def core_shares(
    star: np.ndarray,
    frame: np.ndarray,
    flux: np.ndarray,
    error: np.ndarray,
    share: np.ndarray,
    frames: int,
) -> CoreShares:
    """Measure which share of a star's light is in its core, frame by frame.

    star, frame: numbers from 0 of each measurement; flux, error: (n, radii) light within rising
    radii of which the first is about a FWHM, NaN where not measured; share: of a star's light that
    this is by the star image. The light within the radius is taken for the whole that promises the
    least error: of the stars, and of the light beyond, which differs from frame to frame.
    """
    best = CoreShares(np.ones(frames), np.full(frames, np.inf), 0.0)
    missing, least = 1 - np.median(share, axis=0) if len(share) else np.ones(1), np.inf
    for c in range(1, flux.shape[1]):
        core, whole = flux[:, 0], flux[:, c]
        known = (core > 0) & (whole > 0) & np.isfinite(error[:, 0] + error[:, c])
        ratio = np.where(known, core, np.nan) / np.where(known, whole, 1.0)
        # What is in the core is in the whole, too: the noise of the ratio is that of the rest.
        rest = np.maximum(error[:, c] ** 2 - error[:, 0] ** 2, 0.0)
        noise = ratio * np.sqrt(rest / np.where(known, whole, 1.0) ** 2 + RATIO_ERROR**2)
        found = relative_offsets(star, frame, ratio, noise, frames)
        told = (found.stars >= FEWEST_SHARED) & (found.error < LARGEST_ERROR)
        if np.count_nonzero(told) < max(2, frames // 2):
            continue
        errors = np.hypot(found.error, max(COMMON_ERROR, CORE_MISSING_SPREAD * float(missing[c])))
        typical = float(np.sqrt(np.mean(errors[told] ** 2)))
        if typical < least:
            least, best = typical, _as_core_shares(found.offset, errors, told)
    return best


def _as_core_shares(offset: np.ndarray, error: np.ndarray, told: np.ndarray) -> CoreShares:
    """Give core shares of logarithms, each as far as it is known better than they differ."""
    offset = np.where(told, offset - offset[told].mean(), 0.0)
    square = float(np.sum(offset[told] ** 2)) / (np.count_nonzero(told) - 1)
    scatter2 = max(square - float(np.mean(error[told] ** 2)), 0.0)
    # Of a frame that is not known, the scatter of the others is the error.
    errors = np.where(told, error, np.sqrt(scatter2 + float(np.mean(error[told] ** 2))))
    taken = np.where(told, scatter2 / np.maximum(scatter2 + error**2, 1e-30), 0.0)
    values = exponentials(offset * taken)
    values, errors = (np.round(each / STEP) * STEP for each in (values, errors))
    return CoreShares(values, errors, round(float(np.sqrt(scatter2)) / STEP) * STEP)


def relative_offsets(
    star: np.ndarray,
    frame: np.ndarray,
    flux: np.ndarray,
    error: np.ndarray,
    frames: int,
    floor: float = FLUX_FLOOR,
) -> Offsets:
    """Fit fluxes of stars and throughputs of frames to their products, by logarithms.

    star, frame: numbers from 0 of each measurement; flux, error: (n) light per second; frames: how
    many there are; floor: error of a flux beyond its own, as a fraction.
    """
    known = (flux > 0) & np.isfinite(error)
    known &= error < 0.2 * np.where(known, flux, 1.0)
    seen = np.bincount(star[known], minlength=int(star.max(initial=0)) + 1)
    use = known & (seen[star] >= 2)
    star, frame = star[use], frame[use]
    z, relative = logarithms(flux[use]), error[use] / flux[use]
    weight = 1 / (relative**2 + floor**2)
    robust, pull = np.ones(len(z)), np.zeros(len(z))
    offset, stars = np.zeros(frames), len(seen)
    for width in WIDTHS:
        w = weight * robust
        offset = _solved(star, frame, z, w, stars, frames)
        total = np.bincount(star, w, stars)
        mean = np.bincount(star, w * (z - offset[frame]), stars) / np.maximum(total, 1e-300)
        pull = np.abs(z - mean[star] - offset[frame]) * np.sqrt(weight)
        robust = 1 / (1 + np.minimum(pull / (width * REJECT_SIGMA), 1e6) ** 4)
    total = np.bincount(frame, weight * robust, frames)
    # The star's mean follows each of its measurements: with two, a pull is 0.7 of what it was.
    wide = float(np.median(pull * np.sqrt(seen[star] / (seen[star] - 1.0)))) if len(z) else 0.0
    errors = max(wide / 0.6745, 1.0) / np.sqrt(np.maximum(total, 1e-300))
    w = weight * robust
    count = np.bincount(frame, w, frames) ** 2 / np.maximum(
        np.bincount(frame, w * w, frames), 1e-99
    )
    return Offsets(offset, np.where(total > 0, errors, np.inf), count)


def _solved(
    star: np.ndarray, frame: np.ndarray, z: np.ndarray, w: np.ndarray, stars: int, frames: int
) -> np.ndarray:
    """Solve z = star + frame by least squares for the frames, whose mean is 0.

    Frames without stars have 0.
    """
    by_star = np.zeros((stars, frames))
    np.add.at(by_star, (star, frame), w)
    total = np.maximum(by_star.sum(axis=1), 1e-300)
    mean = np.bincount(star, w * z, stars) / total
    right = np.bincount(frame, w * (z - mean[star]), frames)
    normal = np.diag(by_star.sum(axis=0)) - _products(by_star, by_star / total[:, None])
    held = by_star.sum(axis=0) > 0
    # What no star ties (the mean, and frames by themselves) is held at 0.
    normal += np.where(held, 1e-9, 1.0) * np.eye(frames) * max(float(normal.max(initial=0)), 1.0)
    offset = least_squares(normal, right)
    return offset - (float(offset[held].mean()) if held.any() else 0.0)


def _products(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Multiply first.T by second, (stars, frames) both, with sums in one order on any processor."""
    return np.stack([(column[:, None] * second).sum(axis=0) for column in first.T])


def _still_to_come(
    star: np.ndarray,
    frame: np.ndarray,
    flux: np.ndarray,
    error: np.ndarray,
    share: np.ndarray,
    frames: int,
) -> list[float]:
    """Error that a frame's stars have in common by each radius, as a fraction.

    MISSING_SPREAD of the light beyond, and how frames differ in what they grow by to the next
    radius, where that is more than noise: further out, the sky differs more than the stars.
    """
    count, out = flux.shape[1], []
    missing = 1 - np.median(share, axis=0) if len(share) else np.ones(count)
    for c in range(count):
        square = COMMON_ERROR**2 + (MISSING_SPREAD * missing[c]) ** 2
        grown = [0.0]
        for d in range(c + 1, min(c + 2, count)):
            ratio = flux[:, d] / flux[:, c]
            less, more = error[:, c] / flux[:, c], error[:, d] / flux[:, d]
            noise = ratio * np.sqrt(np.maximum(more**2 - less**2, 0.0) + RATIO_ERROR**2)
            change = relative_offsets(star, frame, ratio, noise, frames)
            told = (change.stars >= FEWEST_SHARED) & (change.error < LARGEST_ERROR)
            n = np.count_nonzero(told)
            if n > 2:
                noise2 = float(np.mean(change.error[told] ** 2)) * (1 + 2 * np.sqrt(2 / (n - 1)))
                grown.append(float(np.var(change.offset[told], ddof=1)) - noise2)
        out.append(float(np.sqrt(square + max(grown))))
    return out


def _scatter(offset: np.ndarray, error: np.ndarray) -> float:
    """Rms of the offsets that their errors do not explain; 0 for fewer than 3.

    A single frame that is far off does not make all look different.
    """
    if len(offset) < 3:
        return 0.0
    square = float(np.sum((offset - offset.mean()) ** 2)) / (len(offset) - 1)
    square = min(square, (2 * 1.4826 * float(np.median(np.abs(offset - np.median(offset))))) ** 2)
    return float(np.sqrt(max(square - float(np.mean(error**2)), 0.0)))
