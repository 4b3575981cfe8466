"""The star image of an array from its own bright stars: a smooth profile, and how its form changes over the array."""

from __future__ import annotations

import numba
import numpy as np
from scipy.optimize import nnls

from gdask.kernels.sources.star_fit import light, solve
from gdask.types import Image, Pixels

#: Radius (in FWHM) to which the mean image is known, and a fitted star subtracted before its neighbours are fitted; and
#: the radius of the first estimate, neighbours still there.
REACH, FIRST_REACH = 14.0, 8.0
#: Widths of the Gaussians that make up the mean image: sigma in units of the FWHM; how many reach to FIRST_REACH.
WIDTHS, FIRST_WIDTHS = 0.25 * 1.45 ** np.arange(10), 9
#: So many of the brightest stars weigh alike in the mean image, others by the square of their flux.
LEADING = 8
#: Stars that make the mean image, and the steps of its table in r^2.
SHAPE_STARS, STEPS = 60, 4096
#: Stars that a form of so many terms (1, linear, quadratic in x and y) needs; the most that are used.
FORM_STARS, MOST_FORMS = ((30, 6), (12, 3), (5, 1)), 300
#: Scatter of forms beyond their errors, and the size that a term of their change is expected to have.
FORM_SCATTER, FORM_PRIOR = 0.02, 0.15


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _profile(
    data: np.ndarray,
    bad: np.ndarray,
    stars: np.ndarray,
    own: np.ndarray,
    forms: np.ndarray,
    table: np.ndarray,
    table_step: float,
    step: float,
    rings: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Per star and ring of width `step` in sqrt(q): mean (value - sky) / flux (NaN where empty), mean q over all stars.
    stars: x, y, flux, sky of each; own: the flux with which each was taken out of data before, as a round image."""
    ny, nx = data.shape
    plain = np.array([1.0, 0.0, 1.0])
    out = np.empty((stars.shape[0], rings))
    q_sum, count = np.zeros(rings), np.zeros(rings)
    half = int(step * rings) + 1
    for k in range(stars.shape[0]):
        x, y, flux, sky = stars[k, 0], stars[k, 1], stars[k, 2], stars[k, 3]
        a, b, c = forms[k, 0], forms[k, 1], forms[k, 2]
        root = np.sqrt(a * c - b * b)
        total, n = np.zeros(rings), np.zeros(rings)
        for j in range(max(int(y) - half, 0), min(int(y) + half + 2, ny)):
            for i in range(max(int(x) - half, 0), min(int(x) + half + 2, nx)):
                dx, dy = i - x, j - y
                q = a * dx * dx + 2.0 * b * dx * dy + c * dy * dy
                ring = int(np.sqrt(q) / step)
                if ring < rings and not bad[j, i]:
                    share, _ = light(dx, dy, plain, table, table_step)
                    total[ring] += (data[j, i] + own[k] * share - sky) / (flux * root)
                    n[ring] += 1.0
                    q_sum[ring] += q
                    count[ring] += 1.0
        for ring in range(rings):
            out[k, ring] = total[ring] / n[ring] if n[ring] > 0 else np.nan
    return out, q_sum / count


def isolated_stars(
    x: np.ndarray, y: np.ndarray, flux: np.ndarray, usable: np.ndarray, reach: Pixels
) -> tuple[np.ndarray, bool]:
    """Indices of the bright usable stars without a neighbour of 5 % of their flux within reach, True; the brightest,
    False, where there are fewer than 3."""
    order = np.argsort(-flux, kind="stable")
    order = order[usable[order] & (flux[order] > 0)]
    alone = [
        k
        for k in order[: 10 * SHAPE_STARS]
        if np.count_nonzero((np.hypot(x - x[k], y - y[k]) < reach) & (flux > 0.05 * flux[k])) <= 1
    ]
    return np.array(alone[:SHAPE_STARS] if len(alone) >= 3 else order[:SHAPE_STARS], int), len(
        alone
    ) >= 3


def star_image(
    data: Image,
    bad: np.ndarray,
    stars: np.ndarray,
    fwhm: Pixels,
    *,
    own: np.ndarray | None = None,
    forms: np.ndarray | None = None,
    known: tuple[np.ndarray, float] | None = None,
    wide: bool = False,
) -> np.ndarray:
    """Weights (per pixel^2, sum of volumes 1) of round Gaussians with sigma WIDTHS * fwhm that describe these stars.

    stars: (n, 4) x, y, flux, sky. Where stars were taken out of data: the flux and the table `known` (from
    `tabulate`) that were used, forms round. The weighted median over stars of their mean profiles, fitted with non-negative weights
    together with a constant: a pedestal that the local background left. wide: to REACH and not to FIRST_REACH, for stars
    that stand alone; in a crowd, far wings are other stars' light.
    """
    step = max(fwhm / 6.0, 0.5)
    table, table_step = known or (np.zeros((2, 2)), 1.0)
    own = np.zeros(len(stars)) if own is None else own
    forms = round_forms(len(stars)) if forms is None else forms
    profiles, r2 = _profile(
        data,
        bad,
        stars,
        own,
        forms,
        table,
        table_step,
        step,
        int((REACH if wide else FIRST_REACH) * fwhm / step),
    )
    seen = np.isfinite(profiles).any(axis=0) & np.isfinite(r2)
    weight = np.minimum(stars[:, 2], np.sort(stars[:, 2])[-min(len(stars), LEADING)]) ** 2
    value, spread = np.array([_weighted_median(p, weight) for p in profiles[:, seen].T]).T
    sigma2 = (WIDTHS[: len(WIDTHS) if wide else FIRST_WIDTHS] * fwhm) ** 2
    basis = np.exp(-r2[seen, None] / (2 * sigma2)) / (2 * np.pi * sigma2)
    # Errors of a ring: a relative part, a sky part that falls with its pixels, and what the stars' scatter tells.
    error = 0.02 * value.clip(min=0) + 2e-4 * value.max() / np.sqrt(
        np.sqrt(r2[seen] / fwhm**2) + 0.3
    )
    error = np.hypot(error, spread)
    columns = np.column_stack(
        [basis, np.full(len(value), 1 / fwhm**2), np.full(len(value), -1 / fwhm**2)]
    )
    weights, _ = nnls(columns / error[:, None], value / error)
    weights = weights[: len(sigma2)]
    if not weights.sum() > 0:  # nothing like a star: one Gaussian of this FWHM
        weights = (np.arange(len(sigma2)) == np.argmin(np.abs(WIDTHS - 1 / 2.3548))).astype(float)
    return np.append(
        weights / weights.sum() / (2 * np.pi * sigma2), np.zeros(len(WIDTHS) - len(weights))
    )


def _weighted_median(values: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Of the finite values; and its error from their scatter (0 for one value)."""
    good = np.isfinite(values)
    values, weight = values[good], weight[good]
    order = np.argsort(values, kind="stable")
    sums = np.cumsum(weight[order])
    median = float(values[order][np.searchsorted(sums, 0.5 * sums[-1])])
    distance = np.abs(values - median)
    order = np.argsort(distance, kind="stable")
    sums = np.cumsum(weight[order])
    scatter = float(distance[order][np.searchsorted(sums, 0.5 * sums[-1])]) / 0.6745
    return median, 1.25 * scatter * float(np.sqrt((weight**2).sum()) / weight.sum())


def tabulate(weights: np.ndarray, fwhm: Pixels) -> tuple[np.ndarray, Pixels]:
    """The mean image as a table in r^2: value and -2 x its derivative by r^2; and the step in r^2."""
    step = (REACH * fwhm) ** 2 / (STEPS - 2)
    q = 1 / (2 * (WIDTHS * fwhm) ** 2)
    r2 = np.arange(STEPS) * step
    light = np.exp(-r2[:, None] * q) * weights
    return np.stack([light.sum(axis=1), 2 * (light * q).sum(axis=1)]), step


def half_maximum(weights: np.ndarray, fwhm: Pixels) -> Pixels:
    """FWHM of a sum of Gaussians."""
    r = np.linspace(0, 4 * fwhm, 2001)
    light = (np.exp(-(r[:, None] ** 2) / (2 * (WIDTHS * fwhm) ** 2)) * weights).sum(axis=1)
    return float(2 * r[np.argmax(light < light[0] / 2)])


def round_forms(n: int) -> np.ndarray:
    """(n, 3) forms of stars that look as the mean image does."""
    return np.tile(np.array([1.0, 0.0, 1.0]), (n, 1))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _regress(terms: np.ndarray, value: np.ndarray, weight: np.ndarray, prior: float) -> np.ndarray:
    """Weighted least squares with a prior of this size about 0 for every coefficient, in a fixed order of sums."""
    n = terms.shape[1]
    normal, right = np.zeros((n, n)), np.zeros(n)
    for a in range(n):
        normal[a, a] = 1.0 / prior**2
    for k in range(value.size):
        for a in range(n):
            right[a] += weight[k] * terms[k, a] * value[k]
            for b in range(a + 1):
                normal[a, b] += weight[k] * terms[k, a] * terms[k, b]
    _, out = solve(normal, right)
    return out


def smooth_forms(
    x: np.ndarray,
    y: np.ndarray,
    forms: np.ndarray,
    errors: np.ndarray,
    at_x: np.ndarray,
    at_y: np.ndarray,
    shape: tuple[int, int],
) -> np.ndarray:
    """Forms at (at_x, at_y) from those measured at (x, y): constant, linear or quadratic, as the stars support.

    forms, errors: (n, 3), NaN where nothing was measured. Outliers are left out; with fewer than 5 stars, round.
    """
    known = (
        np.isfinite(forms).all(axis=1)
        & np.isfinite(errors).all(axis=1)
        & (errors.max(axis=1) < 0.2)
    )
    x, y, off, errors = x[known], y[known], forms[known] - (1.0, 0.0, 1.0), errors[known]
    count = next((terms for stars, terms in FORM_STARS if len(x) >= stars), 0)
    out = round_forms(len(at_x))
    if not count:
        return out
    terms, wanted = _places(x, y, shape)[:, :count], _places(at_x, at_y, shape)[:, :count]
    use = np.ones(len(x), bool)
    base = 1.0 / (errors**2 + FORM_SCATTER**2)
    for last in (False, False, True):
        fits = [
            _regress(terms, off[:, c], np.where(use, base[:, c], 0.0), FORM_PRIOR) for c in range(3)
        ]
        misfit = np.stack(
            [
                (off[:, c] - (terms * fit).sum(axis=1)) * np.sqrt(base[:, c])
                for c, fit in enumerate(fits)
            ]
        )
        if not last:
            worst = np.abs(misfit).max(axis=0)
            use = worst < max(4.0, 4.0 * float(np.median(worst)))
    for c, fit in enumerate(fits):
        out[:, c] += np.clip((wanted * fit).sum(axis=1), -0.5, 1.0)
    flat = out[:, 0] * out[:, 2] - out[:, 1] ** 2 < 0.2
    out[flat] = (1.0, 0.0, 1.0)
    return out


def _places(x: np.ndarray, y: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    u, v = np.clip(2 * x / shape[1] - 1, -1, 1), np.clip(2 * y / shape[0] - 1, -1, 1)
    return np.stack([np.ones(len(u)), u, v, u * u, u * v, v * v], axis=1)
