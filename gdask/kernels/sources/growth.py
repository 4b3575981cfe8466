"""The total light of stars against the fitted star image: curves of growth of bright stars.

The fitted image is good in the core. Its wings, and so the share of the light that it calls one,
are known only as well as wings can be told from the sky: to a few per cent on an AO image, to a
factor of ten where the array is hardly wider than the star. Here the light of bright stars is
summed within an aperture, and their wings are fitted beyond it with a few smooth forms that fall as
real wings do, together with a sky of each star. The factor between this total and the fitted flux
is common to all stars of the image; leaving out stars in turn tells its error.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from gdask.kernels.arithmetic import nonnegative_least_squares
from gdask.kernels.compiled import njit
from gdask.kernels.sources.array_fit import StarFits
from gdask.kernels.sources.photometry import error_beyond
from gdask.kernels.sources.star_fit import star_light
from gdask.types import Image, Pixels

#: Radius within which the light is summed, and the rings beyond and about it in which the wings are
#: fitted, in FWHM.
CORE_RADIUS_FWHM = 2.5
RING_EDGES_FWHM = 1.5 * np.cumprod([1.0, *[20 ** (1 / 21)] * 21])
#: Sectors of the rings: of a lone star, they are left out in turn.
SECTORS = 8
#: Wings are sums of Moffat's functions with these powers and radii (FWHM).
WING_POWERS, WING_RADII_FWHM = (
    (2.5, 3.0, 4.0),
    0.6 * np.cumprod([1.0, *[math.sqrt(math.sqrt(10.0))] * 4]),
)
#: Most stars that are used, the S/N that they have, and that where too few have it.
MOST_STARS, GOOD_SNR, LEAST_SNR = 60, 100.0, 30.0
#: With fewer stars than this, sectors are left out in turn; groups of stars otherwise.
FEWEST_STARS, MOST_GROUPS = 8, 12
#: A star is not used beside another with this share of its flux within so many FWHM.
NEIGHBOUR_SHARE, NEIGHBOUR_FWHM = 0.5, 8.0
#: Relative error of a ring's light beyond noise: images differ a little over an array.
RING_SCATTER = 0.01
#: Share of the light beyond the last ring by which it may be wrong.
EXTRAPOLATION_ERROR = 0.5
#: Error of the factor by the forms of the wings: a fraction, and a share of the light beyond the
#: aperture. On simulated images it is off by 0.2 % rms where 2 % of the light is there (seeing), by
#: 0.7 % with 38 % (AO halos, whose forms can only add light where noise hides that there is none).
FORM_ERROR, WINGS_ERROR = 0.002, 0.015
#: Fits of the wings: those after the first have the wings of neighbours subtracted, as they have
#: been found. Most neighbours.
NEIGHBOUR_ROUNDS, MOST_NEIGHBOURS = 3, 1500
#: Rounds of robust weights; rings this many sigma off weigh less.
ROUNDS, REJECT_SIGMA = 4, 3.0
#: Radii (FWHM) at which the light of wings is tabulated: beyond the corners of the squares.
_TABLE = np.linspace(RING_EDGES_FWHM[0], 1.5 * RING_EDGES_FWHM[-1], 1500)


class Growth(NamedTuple):
    """Total light over fitted flux of an image's stars, and its error (NaN where nothing tells it).

    stars: how many were used; scatter: of the total of single stars over their fitted flux, beyond
    noise, as a fraction (NaN with fewer than FEWEST_STARS): images differ over an array.
    """

    factor: float
    error: float
    stars: int
    scatter: float


class _Rings(NamedTuple):
    """Sums of bright stars over their flux: (stars, sectors), or (stars, sectors, rings).

    core, core_area, core_variance: light, pixels and variance within the aperture, of which bad
    pixels have the fitted image's light. light, area, variance, r2: of the rings; sums over pixels,
    r2 of the squares of the distances. flux: (stars,).
    """

    core: np.ndarray
    core_area: np.ndarray
    core_variance: np.ndarray
    light: np.ndarray
    area: np.ndarray
    variance: np.ndarray
    r2: np.ndarray
    flux: np.ndarray


#: Of each star, the numbers of good pixels of its cells, sectors and rings (the last ring: the
#: aperture) that are not 0: their places in that array, and the numbers.
_Cells = list[tuple[np.ndarray, np.ndarray]]


def curve_of_growth(
    fits: StarFits,
    variance: Image,
    flux: np.ndarray,
    flux_error: np.ndarray,
    clean: np.ndarray,
    fwhm: Pixels,
) -> Growth:
    """Measure the total light of an image's stars over their fitted flux.

    flux, flux_error: of all stars; clean: those that may be used (bool).
    """
    stars = _choose_stars(fits.params, flux, flux_error, clean, fwhm)
    if not len(stars):
        return Growth(1.0, float("nan"), 0, float("nan"))
    measured, cells = _measure_rings(fits, variance, stars, flux[stars], fwhm)
    rings, (totals, noise, beyond, wings) = measured, _total_light(measured, fwhm)
    for _ in range(NEIGHBOUR_ROUNDS - 1):
        if not np.isfinite(totals).all():
            break
        left = _light_not_subtracted(fits, flux, stars, wings, fwhm)
        rings = _without_others(measured, cells, fits, stars, left, wings, fwhm)
        totals, noise, beyond, wings = _total_light(rings, fwhm)
    factor = _robust_mean(totals, noise)
    parts = [_robust_mean(*_total_light(part, fwhm)[:2]) for part in _left_out_in_turn(rings)]
    spread = np.array(parts) - np.mean(parts)
    error = float(np.sqrt((len(parts) - 1) * np.mean(np.square(spread))))
    in_wings = float((wings * _shares_beyond(CORE_RADIUS_FWHM**2)).sum())
    error = math.hypot(error, EXTRAPOLATION_ERROR * beyond)
    error = math.hypot(error, FORM_ERROR * factor, WINGS_ERROR * in_wings)
    if not (np.isfinite(factor) and np.isfinite(error) and factor > 0):
        return Growth(1.0, float("nan"), len(stars), float("nan"))
    # Of the brightest third: what neighbours leave in apertures is less of a bright star's light.
    best = max(FEWEST_STARS, len(stars) // 3)
    scatter = error_beyond(totals[:best], noise[:best]) / factor
    return Growth(factor, error / factor, len(stars), scatter)


def _choose_stars(
    params: np.ndarray, flux: np.ndarray, error: np.ndarray, clean: np.ndarray, fwhm: Pixels
) -> np.ndarray:
    """Choose the brightest clean stars (indices) without a neighbour that rivals them."""
    snr = np.where(clean & (flux > 0), flux / np.maximum(error, 1e-30), 0.0)
    limit = GOOD_SNR if np.count_nonzero(snr > GOOD_SNR) >= 3 else LEAST_SNR
    order = np.argsort(-flux, kind="stable")
    order = order[snr[order] > limit][: 4 * MOST_STARS]
    x, y, chosen = params[:, 0], params[:, 1], []
    for k in map(int, order):
        near = np.hypot(x - x[k], y - y[k]) < NEIGHBOUR_FWHM * fwhm
        near[k] = False
        if not np.any(flux[near] > NEIGHBOUR_SHARE * flux[k]):
            chosen.append(k)
    return np.array(chosen[:MOST_STARS] or order[:1].tolist(), np.int64)


def _light_not_subtracted(
    fits: StarFits, flux: np.ndarray, stars: np.ndarray, wings: np.ndarray, fwhm: Pixels
) -> np.ndarray:
    """Light of all stars that their subtraction left, in cells of one FWHM: per pixel.

    Their wings as fitted, without what was subtracted. Within the rings' inner radius, where stars
    are not used beside others, it is that at this radius. stars: indices of the bright ones.
    """
    out = np.zeros(tuple(int(n / fwhm) + 1 for n in fits.residual.shape))
    brightest = np.argsort(-flux, kind="stable")[:MOST_NEIGHBOURS]
    table = _wings_table(wings, fwhm)
    for k in map(int, np.union1d(brightest[flux[brightest] > 0], stars)):
        out[_cells_about(fits, k, fwhm)] += _left_of_star(fits, k, flux[k], table, fwhm)
    return out


def _cells_about(fits: StarFits, k: int, fwhm: Pixels) -> tuple[slice, slice]:
    """Rows and columns of the cells that the rings of a star reach."""
    reach = math.ceil(RING_EDGES_FWHM[-1]) + 1
    rows, columns = (int(n / fwhm) + 1 for n in fits.residual.shape)
    x, y = fits.params[k, :2] / fwhm
    return (
        slice(max(int(y) - reach, 0), min(int(y) + reach + 1, rows)),
        slice(max(int(x) - reach, 0), min(int(x) + reach + 1, columns)),
    )


def _wings_table(wings: np.ndarray, fwhm: Pixels) -> np.ndarray:
    """Light per pixel of a star of one unit, as the wings say, at the radii of _TABLE."""
    return (_basis(_TABLE**2) * wings).sum(axis=-1) / fwhm**2


def _left_of_star(
    fits: StarFits, k: int, flux: float, wings: np.ndarray, fwhm: Pixels
) -> np.ndarray:
    """Light per pixel that the subtraction of a star left, in `_cells_about` it; wings: a table."""
    x, y = fits.params[k, :2] / fwhm
    rows, columns = (np.arange(part.start, part.stop) + 0.5 for part in _cells_about(fits, k, fwhm))
    r2 = np.maximum((rows[:, None] - y) ** 2 + (columns - x) ** 2, RING_EDGES_FWHM[0] ** 2)
    light = np.interp(np.sqrt(r2), _TABLE, wings)
    entries = np.arange(fits.profile.shape[1], dtype=float)
    subtracted, inside = np.zeros(r2.shape), r2 * fwhm**2 < fits.radii[k] ** 2
    distances = r2[inside] * fwhm**2 / fits.profile_step
    subtracted[inside] = np.interp(distances, entries, fits.profile[0], right=0.0)
    return flux * light - fits.params[k, 2] * subtracted


def _measure_rings(
    fits: StarFits, variance: Image, stars: np.ndarray, flux: np.ndarray, fwhm: Pixels
) -> tuple[_Rings, _Cells]:
    """Sum up the stars in their apertures and rings, each put back alone."""
    rings = len(RING_EDGES_FWHM) - 1
    cores, sums = np.zeros((len(stars), SECTORS, 3)), np.zeros((len(stars), SECTORS, rings, 4))
    cell_of, cells = (np.arange(max(variance.shape)) / fwhm).astype(np.int64), []
    for number, k in enumerate(map(int, stars)):
        rows, columns = _cells_about(fits, k, fwhm)
        places = (rows.stop - rows.start) * (columns.stop - columns.start)
        counts = np.zeros((places, SECTORS, rings + 1), np.int32)
        _sum_star(
            fits.residual,
            variance,
            fits.bad,
            fits.params[k],
            fits.forms[k],
            fits.profile,
            fits.profile_step,
            fits.radii[k],
            np.append((CORE_RADIUS_FWHM * fwhm) ** 2, (RING_EDGES_FWHM * fwhm) ** 2),
            cell_of,
            (rows.start, columns.start, columns.stop - columns.start),
            cores[number],
            sums[number],
            counts,
        )
        seen = np.flatnonzero(counts)
        cells.append((seen, counts.ravel()[seen]))
    core, core_area, core_variance = np.moveaxis(cores, -1, 0)
    light, area, noise, r2 = np.moveaxis(sums, -1, 0)
    return _Rings(core, core_area, core_variance, light, area, noise, r2, flux), cells


@njit(cache=True, nogil=True, error_model="numpy")
def _sum_star(
    residual: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    star: np.ndarray,
    form: np.ndarray,
    profile: np.ndarray,
    profile_step: float,
    subtracted: float,
    limits: np.ndarray,
    cell_of: np.ndarray,
    cells: tuple[int, int, int],
    cores: np.ndarray,
    sums: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Sum up the pixels about a star, all others subtracted; its sums are zero before.

    star, form: rows of `StarFits`; subtracted: of its radii. limits: squares of the radii (pixels)
    of the aperture and of the rings' edges. cores: (sectors, 3) light, area and variance, where a
    bad pixel has the light of the fitted image; sums: (sectors, rings, 4) light, area, variance and
    squares of the distances. cell_of: cell of each row or column; cells: the first row and column
    of those about the star, and how many columns; counts: (cells, sectors, rings + 1) good pixels
    of each ring and, last, of the aperture.
    """
    x, y, radius, rings = star[0], star[1], np.sqrt(limits[-1]), sums.shape[1]
    edges = limits[1:]
    j1, j2 = max(int(y - subtracted), 0), int(y + subtracted) + 2  # as it was subtracted
    i1, i2 = max(int(x - subtracted), 0), int(x + subtracted) + 2
    for j in range(max(int(y - radius), 0), min(int(y + radius) + 2, residual.shape[0])):
        dy, ring = j - y, rings
        half = np.sqrt(max(limits[-1] - dy * dy, 0.0)) + 1.0
        row = (cell_of[j] - cells[0]) * cells[2] - cells[1]
        for i in range(max(int(x - half), 0), min(int(x + half) + 2, residual.shape[1])):
            dx = i - x
            r2 = dx * dx + dy * dy
            while ring >= 0 and r2 < edges[ring]:
                ring -= 1
            while ring < rings and r2 >= edges[ring + 1]:
                ring += 1
            inside, good = r2 < limits[0], variance[j, i] > 0 and not bad[j, i]
            if not (inside or (good and 0 <= ring < rings)):
                continue
            light, value = 0.0, 0.0
            if not good or (j1 <= j < j2 and i1 <= i < i2):
                share, _ = star_light(dx, dy, form, profile, profile_step)
                light = star[2] * share
            value = residual[j, i] + light if good else light + star[3]
            sector, place = _octant(dx, dy), row + cell_of[i]
            if inside:
                cores[sector, 0] += value
                cores[sector, 1] += 1.0
                if good:
                    cores[sector, 2] += variance[j, i]
                    counts[place, sector, rings] += 1
            if good and 0 <= ring < rings:
                out = sums[sector, ring]
                out[0] += value
                out[1] += 1.0
                out[2] += variance[j, i]
                out[3] += r2
                counts[place, sector, ring] += 1


@njit(cache=True, nogil=True, error_model="numpy")
def _octant(dx: float, dy: float) -> int:
    """Number of the octant of a direction, from 0, counted from x to y."""
    below = dy < 0
    u, v = -dx if below else dx, abs(dy)
    upper = 0 if u > v else (1 if u > 0 else (2 if v > -u else 3))
    return upper + 4 if below else upper


def _without_others(
    rings: _Rings,
    cells: _Cells,
    fits: StarFits,
    stars: np.ndarray,
    left: np.ndarray,
    wings: np.ndarray,
    fwhm: Pixels,
) -> _Rings:
    """Give the sums without the light of other stars that was not subtracted.

    left: the light of all stars, of `_light_not_subtracted`; wings: those of which it was made.
    """
    table, shape = _wings_table(wings, fwhm), (SECTORS, rings.light.shape[-1] + 1)
    core, light = rings.core.copy(), rings.light.copy()
    for number, k in enumerate(map(int, stars)):
        own = _left_of_star(fits, k, rings.flux[number], table, fwhm)
        others = (left[_cells_about(fits, k, fwhm)] - own).ravel()
        place, part = np.divmod(cells[number][0], shape[0] * shape[1])
        sums = np.bincount(part, others[place] * cells[number][1], shape[0] * shape[1])
        light[number] -= sums.reshape(shape)[:, :-1]
        core[number] -= sums.reshape(shape)[:, -1]
    return rings._replace(core=core, light=light)


def _left_out_in_turn(rings: _Rings) -> list[_Rings]:
    """Give the sums without each group of stars, or of few stars without each sector."""
    count = len(rings.flux)
    if count < FEWEST_STARS:
        keep = [np.arange(SECTORS) != left_out for left_out in range(SECTORS)]
        return [
            rings._replace(**{name: getattr(rings, name)[:, kept] for name in _Rings._fields[:-1]})
            for kept in keep
        ]
    groups = min(count, MOST_GROUPS)
    keep = [np.arange(count) % groups != left_out for left_out in range(groups)]
    return [_Rings(*(column[kept] for column in rings)) for kept in keep]


def _total_light(rings: _Rings, fwhm: Pixels) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Total light of each star over its fitted flux, and its variance.

    Then what lies beyond the rings, and the light of each form of the wings. NaN where nothing is
    measured. Where sectors are left out, the others stand for them.
    """
    area = rings.area.sum(axis=1)
    seen = area.sum(axis=0) > 0
    if np.count_nonzero(seen) < 6:
        none = np.full(len(area), np.nan), np.ones(len(area)), float("nan")
        return *none, np.zeros(len(WING_POWERS) * len(WING_RADII_FWHM))
    divisor = np.where(area > 0, area, 1.0)
    value = np.where(area > 0, rings.light.sum(axis=1) / divisor, 0.0) / rings.flux[:, None]
    noise = rings.variance.sum(axis=1) / divisor**2 / rings.flux[:, None] ** 2
    r2 = rings.r2.sum(axis=1) / divisor
    wings, sky, weight = _fit_wings(value, noise, r2 / fwhm**2, area > 0, fwhm)
    parts = SECTORS / rings.core.shape[1]
    core_area = rings.core_area.sum(axis=1)
    core = (rings.core.sum(axis=1) / rings.flux - sky * core_area) * parts
    core_area = core_area * parts
    limit2 = core_area / np.pi / fwhm**2
    beyond_core = np.array([(wings * _shares_beyond(limit)).sum() for limit in limit2])
    total = core + beyond_core
    noise = rings.core_variance.sum(axis=1) / rings.flux**2 * parts**2
    noise += core_area**2 / np.maximum(weight, 1e-30)  # of the sky
    last = RING_EDGES_FWHM[1:][seen & (area > 0).any(axis=0)][-1]
    return total, noise, float((wings * _shares_beyond(last**2)).sum()), wings


def _falling(base: Any, power: float) -> Any:
    """Give base^-power for a power of whole or half numbers: products, the same everywhere."""
    whole = base
    for _ in range(int(power) - 1):
        whole = whole * base
    return 1 / (whole * np.sqrt(base) if power % 1 else whole)


def _basis(r2: np.ndarray) -> np.ndarray:
    """(..., forms) surface brightness of wings of one unit of light, per FWHM^2; r2 in FWHM^2."""
    forms = [
        (power - 1) / (np.pi * a * a) * _falling(1 + r2 / (a * a), power)
        for power in WING_POWERS
        for a in WING_RADII_FWHM
    ]
    return np.stack(forms, axis=-1)


def _shares_beyond(r2: float) -> np.ndarray:
    """Share of each form's light beyond a radius; r2 in FWHM^2."""
    return np.array(
        [_falling(1 + r2 / (a * a), power - 1) for power in WING_POWERS for a in WING_RADII_FWHM]
    )


def _fit_wings(
    value: np.ndarray, noise: np.ndarray, r2: np.ndarray, seen: np.ndarray, fwhm: Pixels
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit wings that all stars share, and a sky of each, to the rings (stars, rings).

    Returns the light of each form, the sky of each star (per pixel), and the weight of that.
    """
    forms = _basis(r2) / fwhm**2
    level = np.median(value, axis=0)
    wings, sky, weight = np.zeros(forms.shape[-1]), np.zeros(len(value)), np.zeros(len(value))
    share = np.ones_like(value)
    for _ in range(ROUNDS):
        variance = noise + (RING_SCATTER * np.maximum(level, 0.0)) ** 2
        w = np.where(seen & (noise > 0), share / np.maximum(variance, 1e-300), 0.0)
        weight = w.sum(axis=1)
        divisor = np.maximum(weight, 1e-300)
        mean = (w * value).sum(axis=1) / divisor
        mean_forms = (w[..., None] * forms).sum(axis=1) / divisor[:, None]
        root = np.sqrt(w)
        rows = (root[..., None] * (forms - mean_forms[:, None])).reshape(-1, forms.shape[-1])
        right = (root * (value - mean[:, None])).ravel()
        scale = np.sqrt(np.maximum((rows**2).sum(axis=0), 1e-300))
        wings = nonnegative_least_squares(rows / scale, right) / scale
        sky = mean - (mean_forms * wings).sum(axis=1)
        model = (forms * wings).sum(axis=-1)
        pull = np.abs(value - model - sky[:, None]) / np.sqrt(np.maximum(variance, 1e-300))
        share = 1 / (1 + np.square(np.minimum(pull / REJECT_SIGMA, 1e6) ** 2))
        level = np.median(model, axis=0)
    return wings, sky, weight


def _robust_mean(values: np.ndarray, variance: np.ndarray) -> float:
    """Weighted mean of values that may scatter beyond their errors; those far off weigh less."""
    middle = float(np.median(values))
    if not np.isfinite(values).all():
        return float("nan")
    floor = error_beyond(values, variance) if len(values) >= FEWEST_STARS else 0.0
    for _ in range(4):
        weight = 1 / np.maximum(variance + floor**2, 1e-30)
        weight = weight / (1 + ((values - middle) ** 2 * weight / REJECT_SIGMA**2) ** 2)
        middle = float((weight * values).sum() / weight.sum())
    return middle
