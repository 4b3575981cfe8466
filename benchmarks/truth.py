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

from gdask.kernels.centroid import refine
from gdask.kernels.detect import detect, measure_fwhm

APERTURE = 40.0  # pixels (0.8 arcsec): holds the halo of an AO image
RING = (44.0, 60.0)


def measure(image: str, truth: str, field: str = "target") -> dict[str, float]:
    """Figures of merit of one stack (see the keys); positions in mas after one linear transform of truth to image."""
    with fits.open(image) as hdus:
        data, variance, dq = (hdus[name].data.astype(kind) for name, kind in (("SCI", "f4"), ("VAR", "f4"), ("DQ", "u2")))
        header, exptime = hdus["SCI"].header, hdus[0].header["EXPTIME"]
    stars = Table.read(Path(truth) / "catalog.ecsv")
    frames = Table.read(Path(truth) / "frames.ecsv")
    stars = stars[(stars["field"] == field) & (stars["kind"] == "star")]
    used = frames[(frames["field"] == field)]
    scale = float(np.mean(used["scale"]))
    psfs = [ast.literal_eval(text) for text in used["psf"]]
    catalog, _ = detect(data, variance, dq, threshold=1.5, min_pixels=8, mesh=128)
    fwhm = measure_fwhm(catalog)
    found = refine(data, variance, dq, catalog["X_IMAGE"] - 1, catalog["Y_IMAGE"] - 1, fwhm=fwhm)
    return {"fwhm_px": float(fwhm)} | _compare(found, stars, WCS(header), data, variance, dq, exptime * scale, fwhm, psfs)


def _compare(
    found: np.ndarray, stars: Table, wcs: WCS, data: np.ndarray, variance: np.ndarray, dq: np.ndarray, time: float, fwhm: float, psfs: list
) -> dict[str, float]:
    pixel = 3600 * float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix))))
    x, y = wcs.world_to_pixel_values(stars["ra"], stars["dec"])
    x, y, flux = np.asarray(x), np.asarray(y), np.asarray(stars["flux"]) * time
    inside = _inside(x, y, dq)
    isolated = _isolated(x, y, flux, 2.5 * fwhm)
    signal = _expected_snr(x, y, flux, variance, fwhm)
    wanted = inside & isolated & (signal > 20)
    tree = cKDTree(np.column_stack([found["x"], found["y"]]))
    distance, index = tree.query(np.column_stack([x, y]), distance_upper_bound=10.0)
    good = wanted & np.isfinite(distance)
    dx, dy = _linear_residuals(x[good], y[good], found["x"][index[good]], found["y"][index[good]])
    mas = 1000 * pixel
    match = np.hypot(dx, dy) * mas < 30
    bright = (signal[good] > 100) & match & (found["flags"][index[good]] & ~1 == 0)
    lone = _isolated_of(x, y, flux, np.flatnonzero(good)[bright], APERTURE, 0.05)
    where = x[good][bright][lone], y[good][bright][lone]
    model = render(x, y, flux, psfs, pixel, data.shape)
    apertures, expected = _aperture(data, dq, *where), _aperture(model, dq, *where)
    ratio = (apertures / expected)[np.isfinite(apertures / expected)]
    offset = np.array([np.median(found["x"][index[good]] - x[good]), np.median(found["y"][index[good]] - y[good])]) * mas
    return {
        "stars": int(wanted.sum()), "recovered": float(match.sum() / max(wanted.sum(), 1)), "bright": int(bright.sum()),
        "rms_x_mas": float(dx[bright].std() * mas), "rms_y_mas": float(dy[bright].std() * mas),
        "mad_x_mas": _mad(dx[bright]) * mas, "mad_y_mas": _mad(dy[bright]) * mas,
        "offset_x_mas": float(offset[0]), "offset_y_mas": float(offset[1]), "rotation_deg": _rotation(x[good], y[good], found[index[good]]),
        "phot_stars": len(ratio), "flux_ratio": float(np.median(ratio)) if len(ratio) else float("nan"),
        "flux_ratio_error": 1.86 * _mad(ratio) / max(len(ratio), 1) ** 0.5,
        "flux_scatter": _mad(ratio) * 1.4826,
    }  # fmt: skip


def _inside(x: np.ndarray, y: np.ndarray, dq: np.ndarray) -> np.ndarray:
    i, j = np.round(x).astype(int), np.round(y).astype(int)
    ok = (i >= 8) & (j >= 8) & (i < dq.shape[1] - 8) & (j < dq.shape[0] - 8)
    ok[ok] = [not (dq[b - 6 : b + 7, a - 6 : a + 7] & 0b1010101).any() for a, b in zip(i[ok], j[ok], strict=True)]
    return ok


def _isolated(x: np.ndarray, y: np.ndarray, flux: np.ndarray, radius: float) -> np.ndarray:
    return _isolated_of(x, y, flux, np.arange(len(x)), radius, 0.02)


def _isolated_of(x: np.ndarray, y: np.ndarray, flux: np.ndarray, of: np.ndarray, radius: float, share: float) -> np.ndarray:
    tree = cKDTree(np.column_stack([x, y]))
    near = tree.query_ball_point(np.column_stack([x[of], y[of]]), radius)
    return np.array([sum(flux[j] for j in group if j != i) < share * flux[i] for i, group in zip(of, near, strict=True)], bool)


def _expected_snr(x: np.ndarray, y: np.ndarray, flux: np.ndarray, variance: np.ndarray, fwhm: float) -> np.ndarray:
    """A core of 40 % of the flux within one FWHM's circle, against the median variance of a pixel."""
    noise = np.sqrt(np.median(variance[variance > 0]) * np.pi * fwhm**2)
    core = 0.4 * flux
    return core / np.sqrt(core + noise**2)


def _linear_residuals(x: np.ndarray, y: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    return float(np.degrees(np.sum(cx * (dy - dy.mean()) - cy * (dx - dx.mean())) / np.sum(cx**2 + cy**2)))


def _mad(values: np.ndarray) -> float:
    return float(np.median(np.abs(values - np.median(values)))) if len(values) else float("nan")


def render(x: np.ndarray, y: np.ndarray, flux: np.ndarray, psfs: list, pixel: float, shape: tuple[int, int]) -> np.ndarray:
    """The image that the true stars would make: mean of the frames' Moffat sums, within 100 pixels of each star."""
    image, half = np.zeros(shape, np.float32), 100
    radius = np.arange(0, 2 * half, 0.05)
    profile = np.mean([sum(part * _moffat(radius, width / pixel, beta) for part, width, beta in psf) for psf in psfs], axis=0)
    for a, b, f in zip(x, y, flux, strict=True):
        i, j = int(round(a)), int(round(b))
        reach = half if f > 3e3 else 30
        y1, y2, x1, x2 = max(j - reach, 0), min(j + reach + 1, shape[0]), max(i - reach, 0), min(i + reach + 1, shape[1])
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
        i, j = int(round(a)), int(round(b))
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
