"""Fluxes of fitted stars: by the star image, and in circular apertures, all other stars subtracted.

Weights come from a smooth model of the variance (that of the sky about a star, and a part that
follows its image). The noise of a pixel is in its own variance, and weights from that would make
faint stars fainter. `star_fit` explains `params`, `forms`, `profile` and `profile_step`.
"""

from __future__ import annotations

import numpy as np

from gdask.kernels.arrays import as_kernel_input
from gdask.kernels.compiled import njit
from gdask.kernels.sources.star_fit import FIT_RADIUS_FWHM, star_light
from gdask.types import Image, Mask, Pixels

#: Radius of the inner part of a fit, in FWHM.
CORE_RADIUS_FWHM = 0.8
#: Radii of the annulus of the local sky, in FWHM.
SKY_INNER_FWHM, SKY_OUTER_FWHM = 2.5, 5.0
#: Number of points along each side of a pixel, to measure how much of it is inside an aperture.
SUBPIXELS = 5
#: With fewer stars than this, no error beyond the variance is measured.
MIN_FLOOR_STARS = 8

#: Radii (pixels) in which light is summed that frames are compared by, and those of the ring of sky
#: about each, in radii. They are alike in all frames, so that neighbours' light is in all of them.
#: Throughputs are those within the LEAST_WIDE-th or more; less holds a star's core alone.
WIDE_RADII, LEAST_WIDE = (4.0, 8.0, 14.0, 24.0, 40.0, 64.0), 1
WIDE_RING = (1.2, 1.6)
#: Most stars of an array that are summed, least S/N of them, and largest share of an aperture that
#: may be bad, and of its ring.
MOST_WIDE_STARS, MIN_WIDE_SNR = 40, 30.0
MOST_BAD_INSIDE, MOST_BAD_RING = 0.03, 0.5

#: Columns of `star_fluxes`. The core columns are the changes of x, y (pixels) and flux if they were
#: measured on the core alone and not on the whole star, and the variances of these three.
(FLUX, FLUX_ERROR, SKY, CHI2, CORE_X, CORE_Y, CORE_FLUX) = range(7)
(VAR_CORE_X, VAR_CORE_Y, VAR_CORE_FLUX, SKY_ERROR) = range(7, 11)


@njit(cache=True, nogil=True, error_model="numpy")
def local_sky(
    residual: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    x: float,
    y: float,
    inner: float,
    outer: float,
) -> tuple[float, float, float]:
    """Clipped mean (2.5 sigma) of an annulus with radii in pixels.

    Returns the mean, its error, and the mean variance of a pixel there; NaN with fewer than 8
    pixels.
    """
    ny, nx = residual.shape
    side, inner2, outer2, size = 2 * int(outer) + 4, inner * inner, outer * outer, 0
    values, noise = np.empty(side * side, np.float32), np.empty(side * side, np.float32)
    for j in range(max(int(y - outer), 0), min(int(y + outer) + 2, ny)):
        dy2 = (j - y) ** 2
        hole = np.sqrt(max(inner2 - dy2, 0.0)) - 1.0
        i = max(int(x - outer), 0)
        while i < min(int(x + outer) + 2, nx):
            if abs(i - x) < hole:
                i = int(x + hole)  # the last one that is surely inside the hole
            r2 = (i - x) ** 2 + dy2
            if not bad[j, i] and inner2 <= r2 <= outer2:
                values[size], noise[size] = residual[j, i], variance[j, i]
                size += 1
            i += 1
    low, high, mean, sigma, n, v = -np.inf, np.inf, 0.0, 0.0, 0.0, 0.0
    for sweep in range(4):
        n, s1, s2, v = 0.0, 0.0, 0.0, 0.0
        for k in range(size):
            z = values[k]
            if low <= z <= high:
                n += 1.0
                s1 += z
                s2 += z * z
                if sweep == 3:
                    v += noise[k]
        if n < 8:
            return np.nan, np.nan, np.nan
        mean = s1 / n
        sigma = np.sqrt(max(s2 / n - mean * mean, 0.0))
        low, high = mean - 2.5 * sigma, mean + 2.5 * sigma
    return mean, sigma / np.sqrt(n), v / n


@njit(cache=True, nogil=True, error_model="numpy")
def _mean_share_in_annulus(
    bad: np.ndarray,
    x: float,
    y: float,
    form: np.ndarray,
    profile: np.ndarray,
    profile_step: float,
    inner: float,
    outer: float,
) -> float:
    """Mean share of a star's light in a pixel of its annulus (radii in pixels)."""
    total, n = 0.0, 0.0
    for j in range(max(int(y - outer), 0), min(int(y + outer) + 2, bad.shape[0])):
        for i in range(max(int(x - outer), 0), min(int(x + outer) + 2, bad.shape[1])):
            r2 = (i - x) ** 2 + (j - y) ** 2
            if not bad[j, i] and inner * inner <= r2 <= outer * outer:
                total += star_light(i - x, j - y, form, profile, profile_step)[0]
                n += 1.0
    return total / n if n > 0 else 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def _variance_slope(
    variance: np.ndarray,
    bad: np.ndarray,
    x: float,
    y: float,
    flux: float,
    form: np.ndarray,
    profile: np.ndarray,
    profile_step: float,
    radius: float,
    sky_variance: float,
) -> float:
    """Variance beyond that of the sky, per unit of the star's modelled light; at least 0."""
    extra, model = 0.0, 0.0
    for j in range(max(int(y - radius), 0), min(int(y + radius) + 2, bad.shape[0])):
        for i in range(max(int(x - radius), 0), min(int(x + radius) + 2, bad.shape[1])):
            if not bad[j, i] and (i - x) ** 2 + (j - y) ** 2 < radius * radius:
                extra += variance[j, i] - sky_variance
                model += flux * star_light(i - x, j - y, form, profile, profile_step)[0]
    return max(extra / model, 0.0) if model > 0 else 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def star_fluxes(
    residual: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    params: np.ndarray,
    forms: np.ndarray,
    profile: np.ndarray,
    profile_step: float,
    fwhm: float,
) -> np.ndarray:
    """Fit the flux of each star with position and local sky known.

    residual: the pixels with all stars of params (x, y, flux ...) subtracted. Returns a float64
    table (n, 11): flux and its error, sky, chi-square per pixel, the six core columns, and the
    error of the sky, named above. NaN where too little is measured.
    """
    ny, nx = residual.shape
    out = np.full((params.shape[0], 11), np.nan)
    radius, core = FIT_RADIUS_FWHM * fwhm, CORE_RADIUS_FWHM * fwhm
    inner, outer = SKY_INNER_FWHM * fwhm, SKY_OUTER_FWHM * fwhm
    for k in range(params.shape[0]):
        x, y, flux, form = params[k, 0], params[k, 1], params[k, 2], forms[k]
        sky, e_sky, v_sky = local_sky(residual, variance, bad, x, y, inner, outer)
        if not (np.isfinite(sky) and v_sky > 0 and flux > 0):
            continue
        slope = _variance_slope(
            variance, bad, x, y, flux, form, profile, profile_step, radius, v_sky
        )
        sky_share = _mean_share_in_annulus(bad, x, y, form, profile, profile_step, inner, outer)
        s = np.zeros((2, 6))  # sums over the whole star and over its core
        chi2, n, ws = 0.0, 0.0, 0.0
        for j in range(max(int(y - radius), 0), min(int(y + radius) + 2, ny)):
            for i in range(max(int(x - radius), 0), min(int(x + radius) + 2, nx)):
                dx, dy = i - x, j - y
                r2 = dx * dx + dy * dy
                if bad[j, i] or r2 > radius * radius:
                    continue
                share, g = star_light(dx, dy, form, profile, profile_step)
                gx = flux * g * (form[0] * dx + form[1] * dy)
                gy = flux * g * (form[1] * dx + form[2] * dy)
                w = 1.0 / (v_sky + slope * flux * share)
                r = residual[j, i] - sky
                chi2 += w * r * r
                n += 1.0
                ws += w * share
                for part in range(2 if r2 < core**2 else 1):
                    s[part, 0] += w * share * r
                    s[part, 1] += w * share * share
                    s[part, 2] += w * gx * r
                    s[part, 3] += w * gx * gx
                    s[part, 4] += w * gy * r
                    s[part, 5] += w * gy * gy
        if n < 8 or not s[0, 1] > 0 or not s[1, 1] > 0 or not s[1, 3] > 0 or not s[1, 5] > 0:
            continue
        # What is left of the star's light is in its annulus, too: both are linear in the change of
        # flux.
        whole = s[0, 1] - ws * sky_share
        if not whole > 0.1 * s[0, 1]:
            continue
        change = s[0, 0] / whole
        out[k, FLUX] = flux + change
        out[k, FLUX_ERROR] = np.sqrt(s[0, 1] + (ws * e_sky) ** 2) / whole
        out[k, SKY] = sky - change * sky_share
        out[k, CHI2] = (chi2 - s[0, 0] ** 2 / s[0, 1]) / max(n - 4.0, 1.0)
        out[k, SKY_ERROR] = e_sky
        for c in range(3):
            a, b = (2, 3) if c == 0 else ((4, 5) if c == 1 else (0, 1))
            out[k, CORE_X + c] = s[1, a] / s[1, b] - s[0, a] / s[0, b]
            out[k, VAR_CORE_X + c] = 1.0 / s[1, b] - 1.0 / s[0, b]
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def aperture_fluxes(
    residual: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    params: np.ndarray,
    sky: np.ndarray,
    sky_error: np.ndarray,
    forms: np.ndarray,
    profile: np.ndarray,
    profile_step: float,
    radii: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flux and its variance in circles of `radii` pixels (rising), and the bad share of each.

    residual: the pixels with all stars of params subtracted. Each star is put back alone, so that
    neighbours do not count. A bad pixel, or one outside the array, counts as the star image says.
    Pixels at the rim count by the share of their area that is inside. sky, sky_error: of each star.
    Returns three arrays of shape (stars, radii).
    """
    ny, nx = residual.shape
    n, m = params.shape[0], radii.size
    flux, noise, lost = np.zeros((n, m)), np.zeros((n, m)), np.zeros((n, m))
    for k in range(n):
        x, y, star_flux = params[k, 0], params[k, 1], params[k, 2]
        widest = radii[m - 1] + 1.0
        for j in range(int(np.floor(y - widest)), int(y + widest) + 2):
            for i in range(int(np.floor(x - widest)), int(x + widest) + 2):
                dx, dy = i - x, j - y
                r = np.sqrt(dx * dx + dy * dy)
                if r > widest:
                    continue
                measured = (
                    0 <= j < ny
                    and 0 <= i < nx
                    and not bad[min(max(j, 0), ny - 1), min(max(i, 0), nx - 1)]
                )
                value = star_flux * star_light(dx, dy, forms[k], profile, profile_step)[0]
                if measured:
                    value += residual[j, i] - sky[k]
                for c in range(m):
                    if r > radii[c] + 0.75:
                        continue
                    area = 1.0 if r < radii[c] - 0.75 else _share_inside(dx, dy, radii[c])
                    flux[k, c] += area * value
                    noise[k, c] += area * variance[j, i] if measured else 0.0
                    lost[k, c] += 0.0 if measured else area
        for c in range(m):
            area = np.pi * radii[c] ** 2
            noise[k, c] += (area * sky_error[k]) ** 2
            lost[k, c] /= area
    return flux, noise, lost


def wide_fluxes(
    data: Image, variance: Image, bad: Mask, params: np.ndarray, profile: np.ndarray, step: float
) -> tuple[np.ndarray, np.ndarray]:
    """Light within WIDE_RADII of stars less the mean of a ring, and errors; two arrays (n, radii).

    Nothing is subtracted: the same sum over the same sky in two frames has the ratio of their
    throughputs, whatever else is there, and whatever the star images, if they are narrow in
    comparison. params: (n, 6) of the stars; a bad pixel has the star's own light of the profile
    (entries by `step`) and the mean of the ring. NaN where too much is bad or outside.
    """
    stars = np.ascontiguousarray(params[:, :3])
    planes = (as_kernel_input(plane, np.float32) for plane in (data, variance))
    return _wide_fluxes(
        *planes, as_kernel_input(bad, np.bool_), stars, profile, step, np.array(WIDE_RADII)
    )


@njit(cache=True, nogil=True, error_model="numpy")
def _wide_fluxes(
    data: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    stars: np.ndarray,
    profile: np.ndarray,
    step: float,
    radii: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Do what `wide_fluxes` does for x, y and flux of stars (n, 3)."""
    flux = np.full((stars.shape[0], radii.size), np.nan)
    error = flux.copy()
    for n in range(stars.shape[0]):
        x, y = stars[n, 0], stars[n, 1]
        margin = min(x, y, data.shape[1] - 1 - x, data.shape[0] - 1 - y)
        for c in range(radii.size):
            if margin < radii[c]:
                break
            flux[n, c], error[n, c] = _wide_flux(
                data, variance, bad, x, y, stars[n, 2], profile, step, radii[c]
            )
    return flux, error


@njit(cache=True, nogil=True, error_model="numpy")
def _wide_flux(
    data: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    x: float,
    y: float,
    star_flux: float,
    profile: np.ndarray,
    step: float,
    radius: float,
) -> tuple[float, float]:
    """Sum up one circle about a star: its light over the ring's sky, and the error of it.

    Pixels less the sky are rounded to float32, as NumPy would.
    """
    inner, outer, last = WIDE_RING[0] * radius, WIDE_RING[1] * radius, profile.shape[1] - 1
    area, lost, ring, count, ring_light, ring_noise = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(max(int(y - outer - 1.0), 0), min(int(y + outer + 1.0) + 2, data.shape[0])):
        for i in range(max(int(x - outer - 1.0), 0), min(int(x + outer + 1.0) + 2, data.shape[1])):
            r2 = (i - x) * (i - x) + (j - y) * (j - y)
            good = variance[j, i] > 0 and not bad[j, i]
            if inner * inner < r2 < outer * outer:
                ring += 1.0
                if good:
                    count += 1.0
                    ring_light += data[j, i]
                    ring_noise += variance[j, i]
            elif r2 < (radius + 0.5) * (radius + 0.5):
                share = min(radius + 0.5 - np.sqrt(r2), 1.0)
                area += share
                lost += 0.0 if good else share
    ring = max(ring, np.pi * (WIDE_RING[1] ** 2 - WIDE_RING[0] ** 2) * radius * radius)
    if count < (1 - MOST_BAD_RING) * ring or lost > MOST_BAD_INSIDE * area:
        return np.nan, np.nan
    sky, light, noise = np.float32(ring_light / count), 0.0, 0.0
    for j in range(max(int(y - radius - 1.0), 0), min(int(y + radius + 1.0) + 2, data.shape[0])):
        for i in range(
            max(int(x - radius - 1.0), 0), min(int(x + radius + 1.0) + 2, data.shape[1])
        ):
            r2 = (i - x) * (i - x) + (j - y) * (j - y)
            if r2 >= (radius + 0.5) * (radius + 0.5):
                continue
            share = min(radius + 0.5 - np.sqrt(r2), 1.0)
            if variance[j, i] > 0 and not bad[j, i]:
                light += share * np.float32(data[j, i] - sky)
                noise += share * share * variance[j, i]
            else:
                place = min(r2 / step, last - 1.0)
                k = int(place)
                value = profile[0, k] + (place - k) * (profile[0, k + 1] - profile[0, k])
                light += share * star_flux * value
    return light, np.sqrt(noise + (area / count) ** 2 * ring_noise)


def wide_shares(profile: np.ndarray, step: float) -> np.ndarray:
    """Share of a star's light that `wide_fluxes` measures, by the star image, for each radius."""
    r = np.sqrt(np.arange(profile.shape[1]) * step)
    # Within the radii r, by the trapezium rule: steps are equal in r^2.
    light = np.pi * step * (np.cumsum(profile[0]) - 0.5 * (profile[0] + profile[0, 0]))
    shares = []
    for radius in WIDE_RADII:
        inside, inner, outer = (
            float(np.interp(radius * factor, r, light)) for factor in (1.0, *WIDE_RING)
        )
        shares.append(inside - (outer - inner) / (WIDE_RING[1] ** 2 - WIDE_RING[0] ** 2))
    return np.maximum(np.array(shares), 0.05)


@njit(cache=True, nogil=True)
def _share_inside(dx: float, dy: float, radius: float) -> float:
    """Share of the area of the pixel at (dx, dy) that lies within the radius."""
    n = 0
    for j in range(SUBPIXELS):
        for i in range(SUBPIXELS):
            u, v = dx + (i + 0.5) / SUBPIXELS - 0.5, dy + (j + 0.5) / SUBPIXELS - 0.5
            n += u * u + v * v < radius * radius
    return n / (SUBPIXELS * SUBPIXELS)


def error_beyond(difference: np.ndarray, variance: np.ndarray) -> float:
    """Find the error, beyond `variance`, that differences show about their median.

    The median is common to all stars and does not count. With the right error e, the median of
    d^2 / (variance + e^2) is that of a squared Gaussian, 0.4549. NaN with fewer than 8.
    """
    good = np.isfinite(difference) & np.isfinite(variance) & (variance > 0)
    if good.sum() < MIN_FLOOR_STARS:
        return float("nan")
    d2, v = (difference[good] - np.median(difference[good])) ** 2, variance[good]
    low, high = 0.0, float(np.sqrt(d2.max()) * 2)
    for _ in range(40):
        half = (low + high) / 2
        low, high = (half, high) if np.median(d2 / (v + half**2)) > 0.4549 else (low, half)
    return high if high > 1e-6 * np.sqrt(d2.max()) else 0.0


def error_floors(table: np.ndarray, flux: np.ndarray, stars: np.ndarray) -> tuple[Pixels, float]:
    """Errors of positions (pixels) and of fluxes (as a fraction) due to the star image's own error.

    They do not depend on the S/N. They come from the differences between core and whole fit of
    bright isolated stars: with a right star image, those would be noise alone. table: of
    `star_fluxes`; flux: fitted fluxes; stars: indices from bright to faint, of which the brightest
    third counts, at least 8 (unseen neighbours disturb the others more). NaN with fewer.
    """
    stars = stars[: max(MIN_FLOOR_STARS, len(stars) // 3)]
    core, flux = table[stars], flux[stars]
    error_x = error_beyond(core[:, CORE_X], core[:, VAR_CORE_X])
    error_y = error_beyond(core[:, CORE_Y], core[:, VAR_CORE_Y])
    return float(np.hypot(error_x, error_y) / np.sqrt(2)), error_beyond(
        core[:, CORE_FLUX] / flux, core[:, VAR_CORE_FLUX] / flux**2
    )
