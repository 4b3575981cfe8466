"""Fluxes of fitted stars on what all other stars leave: by the star image, and in circular apertures.

Weights come from a smooth model of the variance (that of the sky about a star, and a part that follows its image): the
noise of a pixel is in its own variance, and weights from it would make faint stars fainter.
"""

from __future__ import annotations

import numba
import numpy as np

from gdask.kernels.sources.star_fit import light
from gdask.types import Pixels

#: In units of the FWHM: radius of the fit, of its inner part, the annulus of the local sky.
FIT, CORE, SKY_IN, SKY_OUT = 2.5, 0.8, 2.5, 5.0
#: Points to a pixel's side at which the edge of an aperture is followed.
EDGE_POINTS = 5


@numba.njit(cache=True, nogil=True, error_model="numpy")
def local_sky(
    left: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    x: float,
    y: float,
    inner: float,
    outer: float,
) -> tuple[float, float, float]:
    """Clipped mean of an annulus (pixels), its error, and the mean variance of a pixel there."""
    ny, nx = left.shape
    low, high, mean, sigma, n, v = -np.inf, np.inf, 0.0, 0.0, 0.0, 0.0
    for _ in range(4):
        n, s1, s2, v = 0.0, 0.0, 0.0, 0.0
        for j in range(max(int(y - outer), 0), min(int(y + outer) + 2, ny)):
            for i in range(max(int(x - outer), 0), min(int(x + outer) + 2, nx)):
                r2 = (i - x) ** 2 + (j - y) ** 2
                if bad[j, i] or r2 < inner * inner or r2 > outer * outer:
                    continue
                z = left[j, i]
                if low <= z <= high:
                    n += 1.0
                    s1 += z
                    s2 += z * z
                    v += variance[j, i]
        if n < 8:
            return np.nan, np.nan, np.nan
        mean = s1 / n
        sigma = np.sqrt(max(s2 / n - mean * mean, 0.0))
        low, high = mean - 2.5 * sigma, mean + 2.5 * sigma
    return mean, sigma / np.sqrt(n), v / n


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _mean_share(
    bad: np.ndarray,
    x: float,
    y: float,
    form: np.ndarray,
    table: np.ndarray,
    step: float,
    inner: float,
    outer: float,
) -> float:
    """Mean share of a star's light in a pixel of its annulus."""
    total, n = 0.0, 0.0
    for j in range(max(int(y - outer), 0), min(int(y + outer) + 2, bad.shape[0])):
        for i in range(max(int(x - outer), 0), min(int(x + outer) + 2, bad.shape[1])):
            r2 = (i - x) ** 2 + (j - y) ** 2
            if not bad[j, i] and inner * inner <= r2 <= outer * outer:
                total += light(i - x, j - y, form, table, step)[0]
                n += 1.0
    return total / n if n > 0 else 0.0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def star_fluxes(
    left: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    p: np.ndarray,
    forms: np.ndarray,
    table: np.ndarray,
    step: float,
    fwhm: float,
) -> np.ndarray:
    """Fluxes with position and local sky known: a float64 table (n, 11) of flux, error, sky, chi-square per pixel,
    what the core (CORE FWHM) alone says of x, y (pixels) and flux beyond the whole, the variances of these three, and the
    error of the sky.

    left: residual pixels with all stars of p (x, y, flux ...) taken out. NaN where too little is measured.
    """
    ny, nx = left.shape
    out = np.full((p.shape[0], 11), np.nan)
    radius = FIT * fwhm
    for k in range(p.shape[0]):
        x, y, flux, form = p[k, 0], p[k, 1], p[k, 2], forms[k]
        sky, e_sky, v_sky = local_sky(left, variance, bad, x, y, SKY_IN * fwhm, SKY_OUT * fwhm)
        if not (np.isfinite(sky) and v_sky > 0 and flux > 0):
            continue
        y0, y1 = max(int(y - radius), 0), min(int(y + radius) + 2, ny)
        x0, x1 = max(int(x - radius), 0), min(int(x + radius) + 2, nx)
        extra, model = 0.0, 0.0
        for j in range(y0, y1):
            for i in range(x0, x1):
                if not bad[j, i] and (i - x) ** 2 + (j - y) ** 2 < radius * radius:
                    extra += variance[j, i] - v_sky
                    model += flux * light(i - x, j - y, form, table, step)[0]
        slope = max(extra / model, 0.0) if model > 0 else 0.0
        own = _mean_share(bad, x, y, form, table, step, SKY_IN * fwhm, SKY_OUT * fwhm)
        s = np.zeros((2, 6))
        chi2, n, ws = 0.0, 0.0, 0.0
        for j in range(y0, y1):
            for i in range(x0, x1):
                dx, dy = i - x, j - y
                r2 = dx * dx + dy * dy
                if bad[j, i] or r2 > radius * radius:
                    continue
                share, g = light(dx, dy, form, table, step)
                gx, gy = (
                    flux * g * (form[0] * dx + form[1] * dy),
                    flux * g * (form[1] * dx + form[2] * dy),
                )
                w = 1.0 / (v_sky + slope * flux * share)
                r = left[j, i] - sky
                chi2 += w * r * r
                n += 1.0
                ws += w * share
                for part in range(2 if r2 < (CORE * fwhm) ** 2 else 1):
                    s[part, 0] += w * share * r
                    s[part, 1] += w * share * share
                    s[part, 2] += w * gx * r
                    s[part, 3] += w * gx * gx
                    s[part, 4] += w * gy * r
                    s[part, 5] += w * gy * gy
        if n < 8 or not s[0, 1] > 0 or not s[1, 1] > 0 or not s[1, 3] > 0 or not s[1, 5] > 0:
            continue
        # What is left of the star's own light is in its annulus, too: both are linear in the change of flux.
        whole = s[0, 1] - ws * own
        if not whole > 0.1 * s[0, 1]:
            continue
        change = s[0, 0] / whole
        out[k, 0] = flux + change
        out[k, 1] = np.sqrt(s[0, 1] + (ws * e_sky) ** 2) / whole
        out[k, 2], out[k, 3] = (
            sky - change * own,
            (chi2 - s[0, 0] ** 2 / s[0, 1]) / max(n - 4.0, 1.0),
        )
        out[k, 10] = e_sky
        for c in range(3):
            a, b = (2, 3) if c == 0 else ((4, 5) if c == 1 else (0, 1))
            out[k, 4 + c] = s[1, a] / s[1, b] - s[0, a] / s[0, b]
            out[k, 7 + c] = 1.0 / s[1, b] - 1.0 / s[0, b]
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def aperture_fluxes(
    left: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    p: np.ndarray,
    sky: np.ndarray,
    e_sky: np.ndarray,
    forms: np.ndarray,
    table: np.ndarray,
    step: float,
    radii: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flux and its variance in circles of `radii` pixels, (n, radii) each, and how much of each circle is bad.

    left: residual pixels with all stars of p taken out: each is put back alone, so that neighbours do not count. A bad
    pixel counts as the star image says. Pixels at the rim count by the share of their area that is inside.
    """
    ny, nx = left.shape
    m = radii.size
    flux, noise, lost = (
        np.zeros((p.shape[0], m)),
        np.zeros((p.shape[0], m)),
        np.zeros((p.shape[0], m)),
    )
    for k in range(p.shape[0]):
        x, y, f = p[k, 0], p[k, 1], p[k, 2]
        widest = radii[m - 1] + 1.0
        for j in range(int(np.floor(y - widest)), int(y + widest) + 2):
            for i in range(int(np.floor(x - widest)), int(x + widest) + 2):
                dx, dy = i - x, j - y
                r = np.sqrt(dx * dx + dy * dy)
                if r > widest:
                    continue
                inside = (
                    0 <= j < ny
                    and 0 <= i < nx
                    and not bad[min(max(j, 0), ny - 1), min(max(i, 0), nx - 1)]
                )
                value = f * light(dx, dy, forms[k], table, step)[0]
                if inside:
                    value += left[j, i] - sky[k]
                for c in range(m):
                    if r > radii[c] + 0.75:
                        continue
                    area = 1.0 if r < radii[c] - 0.75 else _inside(dx, dy, radii[c])
                    flux[k, c] += area * value
                    noise[k, c] += area * variance[j, i] if inside else 0.0
                    lost[k, c] += 0.0 if inside else area
        for c in range(m):
            area = np.pi * radii[c] ** 2
            noise[k, c] += (area * e_sky[k]) ** 2
            lost[k, c] /= area
    return flux, noise, lost


@numba.njit(cache=True, nogil=True)
def _inside(dx: float, dy: float, radius: float) -> float:
    """Share of the pixel at (dx, dy) that lies within the radius."""
    n = 0
    for j in range(EDGE_POINTS):
        for i in range(EDGE_POINTS):
            u, v = dx + (i + 0.5) / EDGE_POINTS - 0.5, dy + (j + 0.5) / EDGE_POINTS - 0.5
            n += u * u + v * v < radius * radius
    return n / (EDGE_POINTS * EDGE_POINTS)


def excess(difference: np.ndarray, variance: np.ndarray) -> float:
    """The error beyond `variance` that differences show about their median, which is common to all stars:
    median(d^2 / (variance + excess^2)) is that of a Gaussian. NaN with fewer than 8."""
    good = np.isfinite(difference) & np.isfinite(variance) & (variance > 0)
    if good.sum() < 8:
        return float("nan")
    d2, v = (difference[good] - np.median(difference[good])) ** 2, variance[good]
    low, high = 0.0, float(np.sqrt(d2.max()) * 2)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if np.median(d2 / (v + middle**2)) > 0.4549 else (low, middle)
    return high if high > 1e-6 * np.sqrt(d2.max()) else 0.0


def floors(table: np.ndarray, flux: np.ndarray, stars: np.ndarray) -> tuple[Pixels, float]:
    """Errors of positions (pixels) and of fluxes (as a fraction) that the star image's own error makes, whatever the S/N.

    From bright isolated stars: what their cores say beyond the whole fit, with a right star image noise alone.
    table: of `star_fluxes`; stars: from bright to faint, of which the brightest third counts, at least 8 (unseen neighbours
    disturb the others more). NaN with fewer.
    """
    stars = stars[: max(8, len(stars) // 3)]
    place = [excess(table[stars, 4 + axis], table[stars, 7 + axis]) for axis in (0, 1)]
    return float(np.hypot(*place) / np.sqrt(2)), excess(
        table[stars, 6] / flux[stars], table[stars, 9] / flux[stars] ** 2
    )
