"""The figures of merit of one stack: positions, fluxes, noise, background, cosmic rays."""

from __future__ import annotations

import numpy as np
from astropy.table import Table
from scipy.ndimage import maximum_filter, uniform_filter
from scipy.spatial import cKDTree

from benchmarks.accuracy.scene import APERTURE, RADII, RING, Scene, coverage, with_model
from gdask.kernels.geometry.projection import to_sky
from gdask.kernels.sources.centroids import fit_positions
from gdask.kernels.sources.detection import detect, measure_fwhm

#: DQ bits without which a pixel can be measured: bad, cosmic ray, no data, unilluminated.
UNFIT = 0b1011001
#: Photon limit (pixels) of a star that counts as bright, and S/N of stars whose flux pulls and presence are looked at.
BRIGHT, FAINT, SEEN = 0.015, (5.0, 40.0), 10.0
#: Pixels of a block of the background map; radius of the blank apertures.
BLOCK, BLANK = 64, 6.0
#: How well the image of the true stars describes a neighbour's light: profiles are means over the frames.
MODEL = 0.02
#: Frames that must cover a place before rejection can be asked for anything.
DEPTH = 5


def measure(
    scene: Scene, catalog_mas: float | None = None
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Figures by name, and what the plots show."""
    fwhm, found = _centroids(scene)
    scene = with_model(
        scene, *_displaced(scene, found, isolated(scene, 2.5 * fwhm, 0.05), catalog_mas is None)
    )
    limit = photon_limit(scene)
    whole = _whole(scene)
    alone = isolated(scene, 2.5 * fwhm, 0.01)
    figures: dict[str, float] = {"fwhm_px": fwhm, "frames": len(scene.used)}
    plots: dict[str, np.ndarray] = {}
    for part in (
        _positions(scene, found, limit, whole & alone, catalog_mas, plots),
        _fluxes(scene, whole, plots),
        _noise(scene, plots),
        _background(scene, plots),
        _cosmic_rays(scene),
        _completeness(scene, whole & alone, limit, fwhm),
    ):
        figures |= part
    return figures, plots


def _centroids(scene: Scene) -> tuple[float, np.ndarray]:
    detected, _ = detect(
        scene.data, scene.variance, scene.dq, threshold=1.5, min_pixels=8, mesh=128
    )
    fwhm = float(measure_fwhm(detected))
    return fwhm, fit_positions(
        scene.data,
        scene.variance,
        scene.dq,
        detected["X_IMAGE"] - 1,
        detected["Y_IMAGE"] - 1,
        fwhm=fwhm,
    )


def _displaced(scene: Scene, found: np.ndarray, alone: np.ndarray, with_warp: bool) -> np.ndarray:
    """How far the stack's stars are from their true places (pixels): linear in x and y, and the frames' mean distortion."""
    warp = np.array([scene.warp[0], -scene.warp[1]]) / scene.pixel * with_warp
    bright = alone & (scene.frames > 0) & (scene.flux > 2e4)
    distance, index = cKDTree(np.column_stack([found["x"], found["y"]])).query(
        np.column_stack([scene.x, scene.y]), distance_upper_bound=5.0
    )
    bright &= np.isfinite(distance)
    if bright.sum() < 6:
        return warp
    star = found[index[bright]]
    shift = np.array([star["x"] - scene.x[bright], star["y"] - scene.y[bright]]) - warp[:, bright]
    rest = linear_rest(scene.x[bright], scene.y[bright], shift)
    keep = np.all(np.abs(rest) < 5 * robust(rest) + 1e-3, axis=0)
    design = np.column_stack([np.ones_like(scene.x), scene.x / 1000, scene.y / 1000])
    fit = np.linalg.lstsq(design[bright][keep], shift[:, keep].T, rcond=None)[0]
    return warp + (design @ fit).T


def photon_limit(scene: Scene) -> np.ndarray:
    """Cramer-Rao bound (pixels, per axis) of each star's position: mean true profile, the stack's median VAR of blank
    pixels scaled to the star's number of frames, and the star's own photons."""
    table = scene.psf.mean(axis=0)
    slope = np.gradient(table, RADII)
    blank = scene.variance[
        (scene.model < 3 * np.sqrt(np.maximum(scene.variance, 1e-9))) & (scene.variance > 0)
    ]
    deepest = np.median(blank) * np.max(scene.frames)
    out = np.full(len(scene.x), np.inf)
    for k in np.flatnonzero(scene.frames > 0):
        sky = deepest / scene.frames[k]
        information = (
            (scene.flux[k] * slope) ** 2
            / (sky + scene.flux[k] * table / scene.frames[k])
            * np.pi
            * RADII
        )
        out[k] = np.trapezoid(information, RADII) ** -0.5
    return out


def _whole(scene: Scene) -> np.ndarray:
    """Stars in the stack, all pixels about them usable."""
    margin = int(APERTURE) + 2
    i, j = np.rint(scene.x).astype(int), np.rint(scene.y).astype(int)
    ok = (
        (i >= margin)
        & (j >= margin)
        & (i < scene.dq.shape[1] - margin)
        & (j < scene.dq.shape[0] - margin)
        & (scene.frames > 0)
    )
    bad = maximum_filter(((scene.dq & (UNFIT | 4)) != 0).astype(np.uint8), size=2 * 8 + 1)
    ok[ok] = bad[j[ok], i[ok]] == 0
    return ok


def isolated(scene: Scene, radius: float, share: float) -> np.ndarray:
    """True where neighbours within `radius` have less than `share` of the star's flux together."""
    xy = np.column_stack([scene.x, scene.y])
    near = cKDTree(xy).query_ball_point(xy, radius)
    return np.array(
        [
            sum(scene.flux[j] for j in group if j != k) < share * scene.flux[k]
            for k, group in enumerate(near)
        ],
        bool,
    )


# Positions ------------------------------------------------------------------------------------------------------------


def _positions(
    scene: Scene,
    found: np.ndarray,
    limit: np.ndarray,
    wanted: np.ndarray,
    catalog_mas: float | None,
    plots: dict,
) -> dict[str, float]:
    mas = 1000 * scene.pixel
    distance, index = cKDTree(np.column_stack([found["x"], found["y"]])).query(
        np.column_stack([scene.x, scene.y]), distance_upper_bound=5.0
    )
    good = wanted & np.isfinite(distance) & (limit < BRIGHT)
    star = found[index[good]]
    clean = (star["flags"] & ~1) == 0
    good[np.flatnonzero(good)[~clean]] = False
    star = star[clean]
    shift = np.array([star["x"] - scene.x[good], star["y"] - scene.y[good]]) * mas
    warp = (
        np.array([-scene.warp[0][good], scene.warp[1][good]]) * 1000
    )  # +x is West; the stack has its stars at minus this
    bound = limit[good] * mas
    figures: dict[str, float] = {"bright_stars": int(good.sum()), "photon_limit_mas": _rms(bound)}
    if good.sum() < 10:
        return figures
    x, y = scene.x[good], scene.y[good]
    rest, floor = linear_rest(x, y, shift), linear_rest(x, y, warp)
    # Without a catalogue no frame-to-frame alignment can see the mean of the frames' true distortions.
    own = linear_rest(x, y, shift + warp) if catalog_mas is None else rest
    plots |= {"star_x": x, "star_y": y, "shift": own, "bound": bound}
    figures |= {
        "rms_mas": _rms(rest),
        "mad_sigma_mas": robust(rest),
        "floor_mas": _rms(floor),
        "beyond_floor_rms_mas": _rms(own),
        "astrometry_mas": _beyond(_rms(own), _rms(bound)),
        "astrometry_mad_mas": _beyond(robust(own), float(np.median(bound))),
        "offset_east_mas": -float(np.median(shift[0])),
        "offset_north_mas": float(np.median(shift[1])),
        "rotation_mas_per_arcmin": _rotation(x, y, shift) * 60 / scene.pixel,
    }
    if catalog_mas is not None:
        many = wanted & np.isfinite(distance) & (limit < 5 * BRIGHT)
        # The tie's own weights: at the few brightest stars alone the fitted terms are worse than in the mean.
        weight = 1 / ((limit[many] * mas) ** 2 + catalog_mas**2)
        place = found[index[many]]
        each = np.array([place["x"] - scene.x[many], place["y"] - scene.y[many]]) * mas
        near = np.all(
            np.abs(each - np.median(each, axis=1, keepdims=True)) < 5 * mas * limit[many] + 1.0,
            axis=0,
        )
        offset = (each * weight * near).sum(axis=1) / (weight * near).sum()
        inside = (
            (scene.frames > 0)
            & (np.argsort(np.argsort(scene.stars["mag"], kind="stable"), kind="stable") < 3000)
            & (limit < 0.3)
        )
        expected = np.sum(1 / (catalog_mas**2 + (limit[inside] * mas) ** 2)) ** -0.5
        drawn = _drawn(scene, inside, 1 / (catalog_mas**2 + (limit * mas) ** 2), catalog_mas)
        figures |= {
            "tie_stars": int(inside.sum()),
            "tie_expected_mas": float(expected),
            "catalog_limit_mas": float(expected * np.sqrt(10)),  # ten terms per axis of the tie
            "tie_ratio": float(np.hypot(*offset) / np.sqrt(2) / expected),
            "tie_beyond_catalog_mas": float(
                np.hypot(-offset[0] - drawn[0], offset[1] - drawn[1]) / np.sqrt(2)
            ),
        }
    return figures


def _drawn(scene: Scene, inside: np.ndarray, weight: np.ndarray, catalog_mas: float) -> np.ndarray:
    """Mean error (East, North, mas) that the case's catalogue happens to have: no tie to it can be better."""
    catalog = Table.read(scene.truth.parent / f"catalog_{catalog_mas:g}mas.fits")
    cosine = np.cos(np.radians(np.mean(scene.stars["dec"])))
    true = np.column_stack([np.asarray(scene.stars["ra"]) * cosine, scene.stars["dec"]])
    listed = np.column_stack([np.asarray(catalog["RAJ2000"]) * cosine, catalog["DEJ2000"]])
    distance, index = cKDTree(listed).query(true)
    known = inside & (distance < 10 * catalog_mas / 3.6e6)
    return np.average((listed[index[known]] - true[known]) * 3.6e6, axis=0, weights=weight[known])


def linear_rest(x: np.ndarray, y: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Residuals of each row of values after a linear function of x and y, fitted with outliers left out."""
    design = np.column_stack([np.ones_like(x), (x - x.mean()) / 1000, (y - y.mean()) / 1000])
    out = []
    for row in values:
        keep = np.ones(len(x), bool)
        for _ in range(8):
            fit = np.linalg.lstsq(design[keep], row[keep], rcond=None)[0]
            rest = row - design @ fit
            keep = np.abs(rest) < max(5 * robust(rest[keep]), 1e-3)
        out.append(rest)
    return np.array(out)


def _rotation(x: np.ndarray, y: np.ndarray, shift: np.ndarray) -> float:
    cx, cy = x - x.mean(), y - y.mean()
    return float(np.sum(cx * shift[1] - cy * shift[0]) / np.sum(cx**2 + cy**2))


# Fluxes ---------------------------------------------------------------------------------------------------------------


def _fluxes(scene: Scene, whole: np.ndarray, plots: dict) -> dict[str, float]:
    """Aperture fluxes over what the truth expects in the aperture, all other stars' light taken out by the model."""
    mean_share = float(
        np.trapezoid(
            2 * np.pi * RADII * scene.psf.mean(axis=0) * np.clip(APERTURE + 0.5 - RADII, 0, 1),
            RADII,
        )
    )
    expected = scene.flux * scene.share
    alone = isolated(scene, 2 * APERTURE, 0.1)
    chosen = np.flatnonzero(
        whole
        & alone
        & (expected > 3 * APERTURE * np.sqrt(np.median(scene.variance[scene.variance > 0])))
    )
    total, noise = apertures(
        scene.rest, scene.variance, scene.dq, scene.x[chosen], scene.y[chosen], APERTURE
    )
    own = scene.flux[chosen] * mean_share
    others = np.abs(
        apertures(
            scene.model, scene.variance, scene.dq, scene.x[chosen], scene.y[chosen], APERTURE
        )[0]
        - own
    )
    ratio, error = (total + own) / expected[chosen], noise / expected[chosen]
    # The model of the neighbours is good to MODEL of their light: stars on which that would tell are left out.
    known = (
        np.isfinite(ratio) & (error > 0) & (MODEL * others < np.maximum(0.2 * noise, 2e-4 * own))
    )
    bright, faint = known & (error < 0.01), known & (error < 1 / FAINT[0]) & (error > 1 / FAINT[1])
    out: dict[str, float] = {"phot_stars": int(bright.sum())}
    if faint.sum() > 20:
        pull = ((ratio - 1) / error)[faint]
        # The error of a width from the median absolute deviation of n Gaussian values is 1.17 / sqrt(n).
        out |= {
            "flux_pull": robust(pull),
            "flux_pull_error": 1.17 / len(pull) ** 0.5,
            "flux_pull_plain": float(pull.std()),
            "flux_pull_stars": int(faint.sum()),
            "flux_pull_mean": float(pull.mean()),
        }
    if bright.sum() < 12:
        return out
    plots |= {
        "phot_x": scene.x[chosen][bright],
        "phot_y": scene.y[chosen][bright],
        "ratio": ratio[bright],
        "ratio_error": error[bright],
        "phot_flux": expected[chosen][bright],
    }
    spread = robust(ratio[bright])
    weight = 1 / (error[bright] ** 2 + 0.002**2)
    out |= {
        "flux_bias_percent": 100 * (float(np.median(ratio[bright])) - 1),
        "flux_scatter_percent": 100 * spread,
        "flux_bias_error_percent": 100 * 1.2533 * spread / bright.sum() ** 0.5,
    }
    peak, floor = _surface(scene.x[chosen][bright], scene.y[chosen][bright], ratio[bright], weight)
    return out | {
        "flux_surface_percent": 100 * peak,
        "flux_surface_noise_percent": 100 * floor,
        "flux_position_percent": 100 * _beyond(peak, floor),
    }


def _surface(
    x: np.ndarray, y: np.ndarray, ratio: np.ndarray, weight: np.ndarray
) -> tuple[float, float]:
    """Peak to peak at the stars of a quadratic surface through the ratios, and what noise alone gives in the mean."""
    u, v = (x - x.mean()) / np.ptp(x) * 2, (y - y.mean()) / np.ptp(y) * 2
    design = np.column_stack([np.ones_like(u), u, v, u * u, u * v, v * v])
    keep = np.abs(ratio - np.median(ratio)) < 5 * robust(ratio)

    def fitted(values: np.ndarray) -> np.ndarray:
        root = np.sqrt(weight[keep])[:, None]
        return (
            design @ np.linalg.lstsq(design[keep] * root, values[keep] * root[:, 0], rcond=None)[0]
        )

    surface = fitted(ratio)
    # The stars' own scatter about the surface, shuffled, is the noise.
    random, rest = np.random.default_rng(3), (ratio - surface)[keep]
    peaks = []
    for _ in range(200):
        values = np.zeros(len(ratio))
        values[keep] = random.permutation(rest)
        peaks.append(np.ptp(fitted(values)))
    return float(np.ptp(surface)), float(np.mean(peaks))


def apertures(
    data: np.ndarray,
    variance: np.ndarray,
    dq: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    radius: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Sum in a disk over the ring's median, and its error; NaN where a pixel of the disk is unfit."""
    out, error = np.full((2, len(x)), np.nan)
    half = int(RING[1]) + 2
    grid_y, grid_x = np.mgrid[-half : half + 1, -half : half + 1]
    for k, (a, b) in enumerate(zip(x, y, strict=True)):
        i, j = round(float(a)), round(float(b))
        if min(i, j) < half or i >= data.shape[1] - half or j >= data.shape[0] - half:
            continue
        cut, noise, flags = (
            p[j - half : j + half + 1, i - half : i + half + 1] for p in (data, variance, dq)
        )
        r = np.hypot(grid_x + i - a, grid_y + j - b)
        disk, ring = (
            np.clip(radius + 0.5 - r, 0, 1),
            (r > RING[0]) & (r < RING[1]) & ((flags & UNFIT) == 0),
        )
        if ((flags[disk > 0] & UNFIT) != 0).any() or ring.sum() < 500:
            continue
        values = np.clip(cut[ring], *np.percentile(cut[ring], [2, 98]))
        out[k] = (cut * disk).sum() - values.mean() * disk.sum()
        error[k] = np.sqrt(
            (noise * disk**2).sum() + disk.sum() ** 2 * noise[ring].mean() / ring.sum()
        )
    return out, error


# Noise and background -------------------------------------------------------------------------------------------------


def _noise(scene: Scene, plots: dict) -> dict[str, float]:
    """Pulls of blank pixels and of blank apertures, about the local level (the background map has its own column)."""
    blank = _blank(scene, 0.1)
    rest = scene.rest
    level = _local(rest, blank)
    pixel, large = (float(scene.header.get(name, 1.0)) for name in ("CORRPIX", "CORRFAC"))
    pull = ((rest - level) / np.sqrt(np.maximum(scene.variance, 1e-9)))[blank] / pixel
    figures = {
        "corrpix": pixel,
        "corrfac": large,
        "sky_pull": robust(pull),
        "sky_pull_plain": float(np.std(pull[np.abs(pull) < 8])),
        "sky_pixels": int(blank.sum()),
        "sky_tail_permille": 1000 * float(np.mean(np.abs(pull) > 5)),
    }
    plots["sky_pull"] = pull[:: max(1, len(pull) // 200000)]
    step = int(2 * BLANK + 4)
    half = int(BLANK) + 1
    y, x = np.mgrid[
        half : scene.data.shape[0] - half : step, half : scene.data.shape[1] - half : step
    ]
    grid_y, grid_x = np.mgrid[-half : half + 1, -half : half + 1]
    disk = np.hypot(grid_x, grid_y) <= BLANK
    sums = []
    for j, i in zip(y.ravel(), x.ravel(), strict=True):
        cut = np.s_[j - half : j + half + 1, i - half : i + half + 1]
        if blank[cut][disk].all():
            sums.append(
                (rest[cut] - level[cut])[disk].sum()
                / np.sqrt(scene.variance[cut][disk].sum())
                / large
            )
    if len(sums) > 50:
        # The local level is the mean of a window: what the aperture adds to it is missing from the difference.
        figures |= {
            "aperture_pull": robust(np.array(sums)),
            "aperture_pull_error": 1.17 / len(sums) ** 0.5,
            "aperture_pull_plain": float(np.std(sums)),
            "apertures": len(sums),
        }
    return figures


def _blank(scene: Scene, sigmas: float) -> np.ndarray:
    """Usable pixels with next to no starlight."""
    sigma = np.sqrt(np.maximum(scene.variance, 1e-9))
    return (scene.model < sigmas * sigma) & (scene.dq == 0) & (scene.variance > 0)


def _local(rest: np.ndarray, blank: np.ndarray) -> np.ndarray:
    """Mean of the blank pixels about each, over 129 x 129 pixels, deviant ones held back."""
    spread = robust(rest[blank]) if blank.any() else 1.0
    values = np.where(blank, np.clip(rest, -4 * spread, 4 * spread), 0).astype(np.float64)
    return (
        uniform_filter(values, 129)
        / np.maximum(uniform_filter(blank.astype(np.float64), 129), 1e-6)
    ).astype(np.float32)


def _background(scene: Scene, plots: dict) -> dict[str, float]:
    """A map of blank pixels' mean residual in blocks: its level, its rms about it, and what VAR predicts for the rms."""
    ny, nx = (n // BLOCK for n in scene.data.shape)
    blank, rest = _blank(scene, 0.3), scene.rest
    sigma = np.sqrt(np.median(scene.variance[blank])) if blank.any() else 1.0
    level, noise = np.full((2, ny, nx), np.nan)
    for j in range(ny):
        for i in range(nx):
            cut = np.s_[j * BLOCK : (j + 1) * BLOCK, i * BLOCK : (i + 1) * BLOCK]
            good = blank[cut] & (np.abs(rest[cut]) < 8 * sigma)
            if good.sum() > 0.2 * BLOCK**2:
                level[j, i], noise[j, i] = (
                    rest[cut][good].mean(),
                    scene.variance[cut][good].mean() / good.sum(),
                )
    plots["background"] = level
    known = np.isfinite(level)
    if known.sum() < 4:
        return {}
    rms, predicted = float(np.std(level[known])), float(np.sqrt(noise[known].mean()))
    return {
        "background_level_e": float(np.mean(level[known])),
        "background_rms_e": rms,
        "background_predicted_e": predicted,
        "background_ratio": rms / predicted,
    }


# Cosmic rays and completeness -----------------------------------------------------------------------------------------


def _cosmic_rays(scene: Scene) -> dict[str, float]:
    """Charge at the places of cosmic rays in blank parts of the stack under DEPTH frames or more, over what would be
    there unrejected."""
    hits = Table.read(scene.truth / "cosmic_rays.fits")
    name = np.array([str(n).split("_")[0].removesuffix(".fits") for n in scene.astrom["NAME"]])
    depth = coverage(scene)
    blank = (scene.model < np.sqrt(np.maximum(scene.variance, 1e-9))) & (
        _used(scene, depth) >= DEPTH
    )
    rest, mask = (
        scene.rest - _local(scene.rest, _blank(scene, 0.1)),
        np.zeros(scene.data.shape, bool),
    )
    injected = 0.0
    for row, geometry in enumerate(scene.geometries):
        mine = hits[
            (hits["file"] == f"{name[row]}.fits") & (hits["array"] == scene.astrom["ARRAY"][row])
        ]
        if not len(mine):
            continue
        x, y = scene.wcs.world_to_pixel_values(
            *to_sky(geometry, np.asarray(mine["x"], float), np.asarray(mine["y"], float))
        )
        i, j = np.rint(x).astype(int), np.rint(y).astype(int)
        ok = (i > 4) & (j > 4) & (i < mask.shape[1] - 5) & (j < mask.shape[0] - 5)
        ok[ok] = blank[j[ok], i[ok]]
        injected += float(np.sum(np.asarray(mine["electrons"])[ok] / depth[j[ok], i[ok]]))
        for b, a in zip(j[ok], i[ok], strict=True):
            mask[b - 2 : b + 3, a - 2 : a + 3] = True
    mask &= scene.variance > 0
    if injected <= 0:
        return {}
    error = np.sqrt(scene.variance[mask].sum()) / injected
    return {
        "cosmic_removed_percent": 100 * (1 - float(rest[mask].sum()) / injected),
        "cosmic_removed_error_percent": 100 * float(error),
    }


def _used(scene: Scene, depth: np.ndarray) -> np.ndarray:
    """Frames that are in each pixel of the stack, by its variance: arrays cover places that they do not see (field stop)."""
    deepest = int(depth.max())
    whole = scene.variance[(depth == deepest) & (scene.variance > 0)]
    return (
        np.minimum(depth, np.rint(deepest * np.median(whole) / np.maximum(scene.variance, 1e-9)))
        if len(whole)
        else depth
    )


def _completeness(
    scene: Scene, wanted: np.ndarray, limit: np.ndarray, fwhm: float
) -> dict[str, float]:
    """Share of isolated stars with S/N above SEEN (of the photon limit: FWHM / 2.35 / sigma) that OBJCAT has."""
    wanted = wanted & (fwhm / 2.3548 / limit > SEEN)
    place = np.column_stack([scene.catalog["X_IMAGE"] - 1, scene.catalog["Y_IMAGE"] - 1])
    distance, _ = cKDTree(place).query(np.column_stack([scene.x, scene.y]))
    return {
        "completeness_percent": 100 * float(np.mean(distance[wanted] < 0.75 * fwhm))
        if wanted.any()
        else float("nan"),
        "complete_stars": int(wanted.sum()),
    }


def robust(values: np.ndarray) -> float:
    """Standard deviation of a Gaussian with this median absolute deviation; both axes together about their medians."""
    values = np.atleast_2d(values)
    return (
        float(1.4826 * np.median(np.abs(values - np.median(values, axis=1, keepdims=True))))
        if values.size
        else float("nan")
    )


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if np.size(values) else float("nan")


def _beyond(total: float, part: float) -> float:
    return float(np.sqrt(max(total**2 - part**2, 0.0)))
