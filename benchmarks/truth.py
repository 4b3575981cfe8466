"""A stack against the truth of a simulated night: completeness, positions, fluxes, sky steps at frame edges.

python -m benchmarks.truth IMAGE.fits TRUTH_FOLDER
"""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from scipy.spatial import cKDTree

from gdask.io.tables import geometries_of
from gdask.kernels.geometry.projection import Geometry, tangent_plane, to_sky
from gdask.kernels.sources.centroids import fit_positions
from gdask.kernels.sources.detection import detect, measure_fwhm
from gdask.steps.resample import reference_area

APERTURE = 12.0  # pixels (0.24 arcsec)
RING = (44.0, 60.0)


def measure(image: str, truth: str, field: str = "target") -> dict[str, float]:
    """Figures of merit of one stack. Positions in mas after one linear transform of truth to image.

    `floor`: what the mean of the frames' true distortions leaves after that transform; no frame-to-frame alignment can
    remove it without a reference catalogue. `flux_ratio`: measured over true electrons, where the flat-field's unit (its
    median pixel) is taken from the true flats; light of the model of all stars is subtracted around each star.
    """
    with fits.open(image) as hdus:
        data, variance, dq = (
            hdus[name].data.astype(kind)
            for name, kind in (("SCI", "f4"), ("VAR", "f4"), ("DQ", "u2"))
        )
        header, exptime = hdus["SCI"].header, hdus[0].header["EXPTIME"]
        astrom = Table(hdus["ASTROM"].data) if "ASTROM" in hdus else None
    folder = Path(truth)
    catalog, frames = Table.read(folder / "catalog.ecsv"), Table.read(folder / "frames.ecsv")
    stars = catalog[(catalog["field"] == field) & (catalog["kind"] == "star")]
    used = frames[np.array([str(name) == field for name in frames["field"]])]
    wcs = WCS(header)
    x, y = (np.asarray(v, float) for v in wcs.world_to_pixel_values(stars["ra"], stars["dec"]))
    flux = np.asarray(stars["flux"]) * exptime * float(np.mean(used["scale"])) * flat_unit(folder)
    if astrom is not None:
        flux *= area_unit(folder, geometries_of(astrom), astrom["ARRAY"])
    found_all, _ = detect(data, variance, dq, threshold=1.5, min_pixels=8, mesh=128)
    fwhm = measure_fwhm(found_all)
    found = fit_positions(
        data, variance, dq, found_all["X_IMAGE"] - 1, found_all["Y_IMAGE"] - 1, fwhm=fwhm
    )
    pixel = 3600 * float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix))))
    figures, offset = _positions(
        found, x, y, flux, variance, dq, fwhm, pixel, _mean_warp(used, stars, folder)
    )
    model = render(
        x + offset[0],
        y + offset[1],
        flux,
        [ast.literal_eval(str(text)) for text in used["psf"]],
        pixel,
        data.shape,
    )
    figures |= _fluxes(data - model, model, dq, x + offset[0], y + offset[1], flux)
    if astrom is not None:
        figures |= edge_steps(data - model, dq, wcs, astrom)
    return {"fwhm_px": float(fwhm)} | figures


def flat_unit(folder: Path) -> float:
    """The median of the lit pixels of the true flats over all arrays: what a normalised flat calls 1."""
    flats = [fits.getdata(path, "FLAT") for path in sorted(folder.glob("flat_?.fits*"))]
    values = np.concatenate([flat[4:-4, 4:-4].ravel()[::7] for flat in flats])
    return float(np.median(values[values > 0.3]))


def area_unit(folder: Path, geometries: tuple[Geometry, ...], arrays: np.ndarray) -> float:
    """Mean pixel area of the true flats' unit over that of the pipeline (1.000 for whole arrays; sub-arrays differ)."""
    mean = json.loads((folder / "scene.json").read_text()).get("mean_pixel_area")
    size = fits.getheader(next(iter(sorted(folder.glob("flat_1.fits*")))), 1)["NAXIS1"]
    first = {
        number: geometry for number, geometry in zip(arrays[::-1], geometries[::-1], strict=True)
    }
    corner = 1025 - size / 2
    whole = [geometry._replace(x0=corner, y0=corner) for geometry in first.values()]
    return mean / reference_area(tuple(whole), (size, size)) if mean else 1.0


def edge_steps(residual: np.ndarray, dq: np.ndarray, wcs: WCS, astrom: Table) -> dict[str, float]:
    """Steps of the sky across each edge of each array of each frame, where other frames cover both sides (e-)."""
    steps = []
    for geometry in geometries_of(astrom):
        for side in range(4):
            values = [_strip(residual, dq, wcs, geometry, side, depth) for depth in (-STRIP, STRIP)]
            if min(len(v) for v in values) > 4000:
                steps.append(float(np.median(values[1]) - np.median(values[0])))
    return {
        "edges": len(steps),
        "edge_step_rms_e": float(np.sqrt(np.mean(np.square(steps)))) if steps else float("nan"),
        "edge_step_median_abs_e": float(np.median(np.abs(steps))) if steps else float("nan"),
        "edge_step_worst_e": float(np.max(np.abs(steps))) if steps else float("nan"),
    }


STRIP = 24


def _strip(
    residual: np.ndarray, dq: np.ndarray, wcs: WCS, geometry: Geometry, side: int, depth: int
) -> np.ndarray:
    """Good residuals in a strip of |depth| pixels inside (> 0) or outside (< 0) one edge of an array."""
    size = 2049 - 2 * (geometry.x0 - 1) if geometry.x0 > 1 else 2048
    along = np.arange(60, size - 60, 1.0)
    across = (
        np.sign(depth) * np.arange(5, abs(depth), 1.0) + (4 if side % 2 == 0 else size - 5) * 1.0
    )
    across = (
        across if side % 2 == 0 else (size - 5) - np.sign(depth) * np.arange(5, abs(depth), 1.0)
    )
    a, b = np.meshgrid(along, across)
    px, py = (b, a) if side < 2 else (a, b)
    gx, gy = wcs.world_to_pixel_values(*to_sky(geometry, px.ravel(), py.ravel()))
    i, j = np.round(gx).astype(int), np.round(gy).astype(int)
    ok = (i >= 0) & (j >= 0) & (i < dq.shape[1]) & (j < dq.shape[0])
    i, j = i[ok], j[ok]
    values = residual[j, i]
    return (
        values[(dq[j, i] == 0) & (np.abs(values - np.median(values)) < 150)]
        if len(values)
        else values
    )


def _mean_warp(used: Table, stars: Table, folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """The mean of the frames' true distortions at the stars (East, North, arcsec), where the truth says how."""
    scene = json.loads((folder / "scene.json").read_text())
    scale = scene.get("warp_scale", 45.0)
    total = np.zeros((2, len(stars)))
    for frame in used:
        warp, pa = np.array(ast.literal_eval(str(frame["warp"]))), np.radians(frame["pa"])
        xi, eta = tangent_plane(stars["ra"], stars["dec"], frame["ra0"], frame["dec0"])
        u, v = (
            (np.cos(pa) * xi - np.sin(pa) * eta) / scale,
            (np.sin(pa) * xi + np.cos(pa) * eta) / scale,
        )
        w = warp @ np.array([u * u, u * v, v * v, u**3, u * u * v, u * v * v, v**3])
        total += np.array(
            [np.cos(pa) * w[0] + np.sin(pa) * w[1], np.cos(pa) * w[1] - np.sin(pa) * w[0]]
        )
    return total[0] / len(used), total[1] / len(used)


def _positions(
    found: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    flux: np.ndarray,
    variance: np.ndarray,
    dq: np.ndarray,
    fwhm: float,
    pixel: float,
    warp: tuple[np.ndarray, np.ndarray],
) -> tuple[dict[str, float], tuple[float, float]]:
    mas = 1000 * pixel
    signal = _expected_snr(flux, variance, fwhm)
    wanted = _inside(x, y, dq) & _isolated(x, y, flux, 2.5 * fwhm, 0.02) & (signal > 20)
    distance, index = cKDTree(np.column_stack([found["x"], found["y"]])).query(
        np.column_stack([x, y]), distance_upper_bound=10.0
    )
    good = wanted & np.isfinite(distance)
    star = found[index[good]]
    dx, dy = _linear_residuals(x[good], y[good], star["x"], star["y"])
    match = np.hypot(dx, dy) * mas < max(30, 0.1 * fwhm * mas)
    bright = (signal[good] > 100) & match & (star["flags"] & ~1 == 0)
    fx, fy = _linear_residuals(
        x[good], y[good], x[good] + warp[0][good] / pixel, y[good] + warp[1][good] / pixel
    )
    offset = float(np.median(star["x"] - x[good])), float(np.median(star["y"] - y[good]))
    return {
        "stars": int(wanted.sum()),
        "recovered": float(match.sum() / max(wanted.sum(), 1)),
        "bright": int(bright.sum()),
        "rms_all_x_mas": float(dx[match].std() * mas),
        "rms_all_y_mas": float(dy[match].std() * mas),
        "rms_x_mas": float(dx[bright].std() * mas),
        "rms_y_mas": float(dy[bright].std() * mas),
        "mad_x_mas": _mad(dx[bright]) * mas,
        "mad_y_mas": _mad(dy[bright]) * mas,
        "floor_rms_x_mas": float(fx[bright].std() * mas),
        "floor_rms_y_mas": float(fy[bright].std() * mas),
        "floor_mad_x_mas": _mad(fx[bright]) * mas,
        "floor_mad_y_mas": _mad(fy[bright]) * mas,
        "beyond_floor_mad_x_mas": min(_mad((dx + s * fx)[bright]) for s in (1, -1)) * mas,
        "beyond_floor_mad_y_mas": min(_mad((dy + s * fy)[bright]) for s in (1, -1)) * mas,
        "offset_x_mas": offset[0] * mas,
        "offset_y_mas": offset[1] * mas,
        "rotation_deg": _rotation(x[good], y[good], star),
    }, offset


def _fluxes(
    residual: np.ndarray,
    model: np.ndarray,
    dq: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    flux: np.ndarray,
) -> dict[str, float]:
    """Ratio of measured to true flux of stars above 1e5 e- in an aperture, neighbours' light taken out by the model."""
    ok = np.flatnonzero(_inside(x, y, dq) & (flux > 1e5))
    own = _aperture(residual, dq, x[ok], y[ok])
    true = _aperture(model, dq, x[ok], y[ok])
    ratio = 1 + own / true
    ratio = ratio[np.isfinite(ratio) & (true > 0.3 * flux[ok]) & (true < 1.1 * flux[ok])]
    error = 1.2533 * 1.4826 * _mad(ratio) / max(len(ratio), 1) ** 0.5
    return {
        "phot_stars": len(ratio),
        "flux_ratio": float(np.median(ratio)) if len(ratio) else float("nan"),
        "flux_ratio_error": error,
        "flux_scatter": 1.4826 * _mad(ratio),
    }


def _inside(x: np.ndarray, y: np.ndarray, dq: np.ndarray) -> np.ndarray:
    i, j = np.round(x).astype(int), np.round(y).astype(int)
    ok = (i >= 8) & (j >= 8) & (i < dq.shape[1] - 8) & (j < dq.shape[0] - 8)
    ok[ok] = [
        not (dq[b - 6 : b + 7, a - 6 : a + 7] & 0b1010101).any()
        for a, b in zip(i[ok], j[ok], strict=True)
    ]
    return ok


def _isolated(
    x: np.ndarray, y: np.ndarray, flux: np.ndarray, radius: float, share: float
) -> np.ndarray:
    """True where neighbours within `radius` have less than `share` of the star's flux together."""
    xy = np.column_stack([x, y])
    near = cKDTree(xy).query_ball_point(xy, radius)
    return np.array(
        [sum(flux[j] for j in group if j != i) < share * flux[i] for i, group in enumerate(near)],
        bool,
    )


def _expected_snr(flux: np.ndarray, variance: np.ndarray, fwhm: float) -> np.ndarray:
    """A core of 40 % of the flux within one FWHM's circle, against the median variance of a pixel."""
    noise = np.sqrt(np.median(variance[variance > 0]) * np.pi * fwhm**2)
    core = 0.4 * flux
    return core / np.sqrt(core + noise**2)


def _linear_residuals(
    x: np.ndarray, y: np.ndarray, u: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    design = np.column_stack([np.ones_like(x), x, y])
    out = []
    for value in (u, v):
        keep = np.ones(len(x), bool)
        for _ in range(8):
            fit = np.linalg.lstsq(design[keep], value[keep], rcond=None)[0]
            residual = value - design @ fit
            keep = np.abs(residual) < max(5 * 1.4826 * np.median(np.abs(residual[keep])), 1e-3)
        out.append(residual)
    return out[0], out[1]


def _rotation(x: np.ndarray, y: np.ndarray, found: np.ndarray) -> float:
    cx, cy = x - x.mean(), y - y.mean()
    dx, dy = found["x"] - x, found["y"] - y
    near = np.hypot(dx - np.median(dx), dy - np.median(dy)) < 3
    cx, cy, dx, dy = (v[near] for v in (cx, cy, dx, dy))
    return float(
        np.degrees(np.sum(cx * (dy - dy.mean()) - cy * (dx - dx.mean())) / np.sum(cx**2 + cy**2))
    )


def _mad(values: np.ndarray) -> float:
    return float(np.median(np.abs(values - np.median(values)))) if len(values) else float("nan")


def render(
    x: np.ndarray, y: np.ndarray, flux: np.ndarray, psfs: list, pixel: float, shape: tuple[int, int]
) -> np.ndarray:
    """The image that the true stars would make: mean of the frames' Moffat sums, within 100 pixels of each star."""
    image, half = np.zeros(shape, np.float32), 100
    radius = np.arange(0, 2 * half, 0.05)
    profile = np.mean(
        [
            sum(part * _moffat(radius, width / pixel, beta) for part, width, beta in psf)
            for psf in psfs
        ],
        axis=0,
    )
    for a, b, f in zip(x, y, flux, strict=True):
        i, j = round(float(a)), round(float(b))
        reach = half if f > 3e3 else 30
        y1, y2, x1, x2 = (
            max(j - reach, 0),
            min(j + reach + 1, shape[0]),
            max(i - reach, 0),
            min(i + reach + 1, shape[1]),
        )
        if y1 < y2 and x1 < x2:
            r = np.hypot(np.arange(x1, x2)[None, :] - a, np.arange(y1, y2)[:, None] - b)
            image[y1:y2, x1:x2] += f * np.interp(r, radius, profile)
    return image


def _moffat(r: np.ndarray, fwhm: float, beta: float) -> np.ndarray:
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    return (beta - 1) / (np.pi * alpha**2) * (1 + (r / alpha) ** 2) ** -beta


def _aperture(data: np.ndarray, dq: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sum within APERTURE over the median of RING, NaN where a pixel is unusable or off the image."""
    out = np.full(len(x), np.nan)
    half = int(RING[1]) + 2
    grid_y, grid_x = np.mgrid[-half : half + 1, -half : half + 1]
    for k, (a, b) in enumerate(zip(x, y, strict=True)):
        i, j = round(float(a)), round(float(b))
        if min(i, j) < half or i >= data.shape[1] - half or j >= data.shape[0] - half:
            continue
        cut, flags = (p[j - half : j + half + 1, i - half : i + half + 1] for p in (data, dq))
        r = np.hypot(grid_x + i - a, grid_y + j - b)
        disk, ring = np.clip(APERTURE + 0.5 - r, 0, 1), (r > RING[0]) & (r < RING[1]) & (flags == 0)
        if (flags[disk > 0] & 0b1011001).any() or ring.sum() < 500:
            continue
        out[k] = (cut * disk).sum() - np.median(cut[ring]) * disk.sum()
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image")
    parser.add_argument("truth")
    parser.add_argument("--field", default="target")
    args = parser.parse_args()
    print(json.dumps(measure(args.image, args.truth, args.field), indent=1))
