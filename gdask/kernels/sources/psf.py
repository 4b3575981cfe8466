"""Make the star image of an array from its own bright stars, and its change over the array.

The mean image is a sum of round Gaussians; the form of a star (see `star_fit`) says how its image
is stretched against the mean one.
"""

from __future__ import annotations

import numpy as np

from gdask.kernels.arithmetic import exponentials, nonnegative_least_squares
from gdask.kernels.compiled import njit
from gdask.kernels.sources.star_fit import solve_cholesky, star_light
from gdask.types import Image, Pixels

#: Radius to which the mean image is known, and to which a fitted star is subtracted before its
#: neighbours are fitted, in FWHM.
PROFILE_RADIUS_FWHM = 14.0
#: Radius of the first estimate, when neighbours are still there, in FWHM.
FIRST_PROFILE_RADIUS_FWHM = 8.0
#: Sigma of the Gaussians that make up the mean image, in FWHM.
GAUSSIAN_SIGMAS_FWHM = 0.25 * np.cumprod([1.0, *[1.45] * 9])
#: Number of them, from the narrowest, that is used within FIRST_PROFILE_RADIUS_FWHM.
FIRST_GAUSSIANS = 9
#: Number of the brightest stars that weigh alike in the mean image; others weigh by the square of
#: their flux.
EQUAL_WEIGHT_STARS = 8
#: Most stars that make the mean image.
MAX_PROFILE_STARS = 60
#: Weights that differ from half of all by a smaller share are half of it.
HALF_TOLERANCE = 1e-9
#: Entries of the profile, in equal steps of r^2.
PROFILE_ENTRIES = 4096
#: (stars, terms): number of terms (1, linear, quadratic in x and y) of a form, for at least that
#: number of stars.
FORM_TERMS = ((30, 6), (12, 3), (5, 1))
#: Most stars whose forms are fitted.
MAX_FORM_STARS = 300
#: Scatter of forms beyond their errors, and the size that a term of their change is expected to
#: have.
FORM_SCATTER, FORM_PRIOR = 0.02, 0.15


@njit(cache=True, nogil=True, error_model="numpy")
def _ring_means(
    data: np.ndarray,
    bad: np.ndarray,
    stars: np.ndarray,
    subtracted_flux: np.ndarray,
    forms: np.ndarray,
    profile: np.ndarray,
    profile_step: float,
    ring_width: float,
    rings: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of (value - sky) / flux per star and ring, and the mean q of each ring over all stars.

    Rings have equal widths in sqrt(q); the mean is NaN where a ring is empty. stars: x, y, flux,
    sky of each. subtracted_flux: the flux with which each was subtracted from data before, as a
    round image.
    """
    ny, nx = data.shape
    round_form = np.zeros(3)
    round_form[0], round_form[2] = 1.0, 1.0
    out = np.empty((stars.shape[0], rings))
    q_sum, count = np.zeros(rings), np.zeros(rings)
    half = int(ring_width * rings) + 1
    for k in range(stars.shape[0]):
        x, y, flux, sky = stars[k, 0], stars[k, 1], stars[k, 2], stars[k, 3]
        a, b, c = forms[k, 0], forms[k, 1], forms[k, 2]
        root = np.sqrt(a * c - b * b)
        total, n = np.zeros(rings), np.zeros(rings)
        for j in range(max(int(y) - half, 0), min(int(y) + half + 2, ny)):
            for i in range(max(int(x) - half, 0), min(int(x) + half + 2, nx)):
                dx, dy = i - x, j - y
                q = a * dx * dx + 2.0 * b * dx * dy + c * dy * dy
                ring = int(np.sqrt(q) / ring_width)
                if ring < rings and not bad[j, i]:
                    share, _ = star_light(dx, dy, round_form, profile, profile_step)
                    total[ring] += (data[j, i] + subtracted_flux[k] * share - sky) / (flux * root)
                    n[ring] += 1.0
                    q_sum[ring] += q
                    count[ring] += 1.0
        for ring in range(rings):
            out[k, ring] = total[ring] / n[ring] if n[ring] > 0 else np.nan
    return out, q_sum / count


def isolated_stars(
    x: np.ndarray, y: np.ndarray, flux: np.ndarray, usable: np.ndarray, radius: Pixels
) -> tuple[np.ndarray, bool]:
    """Find the brightest isolated stars among the usable ones.

    Isolated stars have no neighbour of 5 % of their flux within `radius`. Returns indices from
    bright to faint, and True; where there are fewer than 3 such stars, those of the brightest
    usable ones, and False.
    """
    order = np.argsort(-flux, kind="stable")
    order = order[usable[order] & (flux[order] > 0)]
    candidates = order[: 10 * MAX_PROFILE_STARS]
    isolated = candidates[_have_no_neighbour(candidates, x, y, flux, radius)]
    enough = len(isolated) >= 3
    return (isolated if enough else order)[:MAX_PROFILE_STARS], enough


@njit(cache=True, nogil=True, error_model="numpy")
def _have_no_neighbour(
    stars: np.ndarray, x: np.ndarray, y: np.ndarray, flux: np.ndarray, radius: float
) -> np.ndarray:
    """Tell which stars (indices) have no other one of 5 % of their flux within `radius`."""
    out = np.ones(stars.size, np.bool_)
    for n in range(stars.size):
        k = stars[n]
        for other in range(x.size):
            dx, dy = x[other] - x[k], y[other] - y[k]
            if dx * dx + dy * dy < radius * radius and flux[other] > 0.05 * flux[k] and other != k:
                out[n] = False
                break
    return out


def mean_star_image(
    data: Image,
    bad: np.ndarray,
    stars: np.ndarray,
    fwhm: Pixels,
    *,
    subtracted_flux: np.ndarray | None = None,
    forms: np.ndarray | None = None,
    subtracted_profile: tuple[np.ndarray, float] | None = None,
    isolated: bool = False,
) -> np.ndarray:
    """Describe stars by round Gaussians with sigma GAUSSIAN_SIGMAS_FWHM * fwhm.

    stars: (n, 4) x, y, flux, sky. Where stars were subtracted from data: subtracted_flux and
    subtracted_profile (from `tabulate`) are what was used, with round forms. isolated: the stars
    stand alone, and the image reaches to PROFILE_RADIUS_FWHM and not to FIRST_PROFILE_RADIUS_FWHM;
    in a crowd, far wings are other stars' light.
    Returns the weights of the Gaussians, per pixel^2, the sum of their volumes being 1.

    The weighted median over stars of their ring means is fitted with non-negative weights, together
    with a constant: a pedestal that the local background left.
    """
    ring_width = max(fwhm / 6.0, 0.5)
    radius = PROFILE_RADIUS_FWHM if isolated else FIRST_PROFILE_RADIUS_FWHM
    profile, profile_step = subtracted_profile or (np.zeros((2, 2)), 1.0)
    profiles, r2 = _ring_means(
        data,
        bad,
        stars,
        np.zeros(len(stars)) if subtracted_flux is None else subtracted_flux,
        round_forms(len(stars)) if forms is None else forms,
        profile,
        profile_step,
        ring_width,
        int(radius * fwhm / ring_width),
    )
    seen = np.isfinite(profiles).any(axis=0) & np.isfinite(r2)
    full_weight_flux = np.sort(stars[:, 2])[-min(len(stars), EQUAL_WEIGHT_STARS)]
    weight = np.minimum(stars[:, 2], full_weight_flux) ** 2
    value, scatter = np.array([_weighted_median(p, weight) for p in profiles[:, seen].T]).T
    sigmas = GAUSSIAN_SIGMAS_FWHM[: None if isolated else FIRST_GAUSSIANS]
    sigma2 = (sigmas * fwhm) ** 2
    basis = exponentials(-r2[seen, None] / (2 * sigma2)) / (2 * np.pi * sigma2)
    # Errors of a ring: a relative part, a sky part that falls with its number of pixels, and that
    # from the scatter of the stars.
    sky_part = 2e-4 * value.max() / np.sqrt(np.sqrt(r2[seen] / fwhm**2) + 0.3)
    error = np.hypot(0.02 * value.clip(min=0) + sky_part, scatter)
    pedestal = np.full(len(value), 1 / fwhm**2)
    columns = np.column_stack([basis, pedestal, -pedestal])
    weights = nonnegative_least_squares(columns / error[:, None], value / error)
    weights = weights[: len(sigma2)]
    if not weights.sum() > 0:  # nothing like a star: one Gaussian of this FWHM
        nearest = np.argmin(np.abs(GAUSSIAN_SIGMAS_FWHM - 1 / 2.3548))
        weights = (np.arange(len(sigma2)) == nearest).astype(float)
    unused = np.zeros(len(GAUSSIAN_SIGMAS_FWHM) - len(weights))
    return np.append(weights / weights.sum() / (2 * np.pi * sigma2), unused)


def _weighted_median(values: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Weighted median of the finite values, and its error from their scatter (0 for one value)."""
    good = np.isfinite(values)
    values, weight = values[good], weight[good]
    median = _middle(values, weight)
    scatter = _middle(np.abs(values - median), weight) / 0.6745
    return median, 1.25 * scatter * float(np.sqrt((weight**2).sum()) / weight.sum())


def _middle(values: np.ndarray, weight: np.ndarray) -> float:
    """Value below and above which lies half of the weight; between two values, their mean.

    Stars of equal weight come in even numbers, so that half of it lies between two of them: which
    one a comparison of rounded sums takes would be up to the last bit of a weight.
    """
    order = np.argsort(values, kind="stable")
    sums = np.cumsum(weight[order])
    near = 0.5 * sums[-1] * np.array([1 - HALF_TOLERANCE, 1 + HALF_TOLERANCE])
    low, high = np.minimum(np.searchsorted(sums, near), len(sums) - 1)
    return float((values[order[low]] + values[order[high]]) / 2)


def tabulate(weights: np.ndarray, fwhm: Pixels) -> tuple[np.ndarray, Pixels]:
    """Tabulate the mean image against r^2: the profile of `star_fit`, and its step in r^2.

    Row 0 is the value, row 1 is -2 x its derivative by r^2.
    """
    profile_step = (PROFILE_RADIUS_FWHM * fwhm) ** 2 / (PROFILE_ENTRIES - 2)
    exponent = 1 / (2 * (GAUSSIAN_SIGMAS_FWHM * fwhm) ** 2)
    r2 = np.arange(PROFILE_ENTRIES) * profile_step
    terms = exponentials(-r2[:, None] * exponent) * weights
    return np.stack([terms.sum(axis=1), 2 * (terms * exponent).sum(axis=1)]), profile_step


def fwhm_of_image(weights: np.ndarray, fwhm: Pixels) -> Pixels:
    """FWHM of a sum of Gaussians with these weights; `fwhm` scales their widths."""
    r = np.linspace(0, 4 * fwhm, 2001)
    exponent = -(r[:, None] ** 2) / (2 * (GAUSSIAN_SIGMAS_FWHM * fwhm) ** 2)
    value = (exponentials(exponent) * weights).sum(axis=1)
    return float(2 * r[np.argmax(value < value[0] / 2)])


def round_forms(n: int) -> np.ndarray:
    """(n, 3) forms of stars that look as the mean image does."""
    return np.tile(np.array([1.0, 0.0, 1.0]), (n, 1))


def _regress(terms: np.ndarray, value: np.ndarray, weight: np.ndarray, prior: float) -> np.ndarray:
    """Fit coefficients by weighted least squares, with sums in a fixed order.

    Every coefficient has a prior of this size about 0.
    """
    n = terms.shape[1]
    rows, columns = np.tril_indices(n)
    weighted = weight[:, None] * terms
    products = np.zeros((len(value) + 1, rows.size + n))
    products[0, : rows.size] = np.where(rows == columns, 1.0 / prior**2, 0.0)
    products[1:, : rows.size] = weighted[:, rows] * terms[:, columns]
    products[1:, rows.size :] = weighted * value[:, None]
    sums = np.cumsum(products, axis=0)[-1]  # one after another: a sum would go pairwise
    normal, out = np.zeros((n, n)), np.zeros(n)
    normal[rows, columns] = sums[: rows.size]
    solve_cholesky(normal, sums[rows.size :].copy(), out, np.zeros((n, n)))
    return out


def smooth_forms(
    x: np.ndarray,
    y: np.ndarray,
    forms: np.ndarray,
    errors: np.ndarray,
    wanted_x: np.ndarray,
    wanted_y: np.ndarray,
    shape: tuple[int, int],
) -> np.ndarray:
    """Predict forms at (wanted_x, wanted_y) from those measured at (x, y), all in pixels.

    The change over an array of `shape` (ny, nx) is constant, linear or quadratic, as the number of
    stars supports. forms, errors: (n, 3), NaN where nothing was measured. Outliers are left out;
    with fewer than 5 stars, all forms are round.
    """
    measured = np.isfinite(forms).all(axis=1) & np.isfinite(errors).all(axis=1)
    measured &= errors.max(axis=1) < 0.2
    x, y, errors = x[measured], y[measured], errors[measured]
    change = forms[measured] - (1.0, 0.0, 1.0)
    count = next((terms for stars, terms in FORM_TERMS if len(x) >= stars), 0)
    out = round_forms(len(wanted_x))
    if not count:
        return out
    terms = polynomial_terms(x, y, shape)[:, :count]
    wanted_terms = polynomial_terms(wanted_x, wanted_y, shape)[:, :count]
    use = np.ones(len(x), bool)
    weight = 1.0 / (errors**2 + FORM_SCATTER**2)
    for final in (False, False, True):
        fits = [
            _regress(terms, change[:, c], np.where(use, weight[:, c], 0.0), FORM_PRIOR)
            for c in range(3)
        ]
        if not final:
            misfit = [
                (change[:, c] - (terms * fit).sum(axis=1)) * np.sqrt(weight[:, c])
                for c, fit in enumerate(fits)
            ]
            worst = np.abs(misfit).max(axis=0)
            use = worst < max(4.0, 4.0 * float(np.median(worst)))
    for c, fit in enumerate(fits):
        out[:, c] += np.clip((wanted_terms * fit).sum(axis=1), -0.5, 1.0)
    degenerate = out[:, 0] * out[:, 2] - out[:, 1] ** 2 < 0.2
    out[degenerate] = (1.0, 0.0, 1.0)
    return out


def polynomial_terms(x: np.ndarray, y: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Give (n, 6) terms 1, u, v, u^2, u v, v^2 with u, v from -1 to 1 over an array of (ny, nx)."""
    u, v = np.clip(2 * x / shape[1] - 1, -1, 1), np.clip(2 * y / shape[0] - 1, -1, 1)
    return np.stack([np.ones(len(u)), u, v, u * u, u * v, v * v], axis=1)
