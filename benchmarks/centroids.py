"""Positions and fluxes of single frames against the Cramer-Rao bound of simulated star images.

    python -m benchmarks.centroids [--quick] [--json FILE]

Scenes of stars at known places, drawn by the simulator's renderer, go through `detect` and
`fit_positions` as the pipeline does it. A table gives for each instrument, crowding and shape of
the star image, by S/N: rms error over the bound, bias against the pixel phase, and the width of the
pulls, for positions and for fluxes. Only stars without warning flags count. `hidden` is the share
of them that have an undetected neighbour (within 1.5 FWHM, above 3 % of the flux); those are left
out of the errors, too.

The bound is that of the scene: the Fisher information on x, y and flux of all its stars together,
sky and star image known, noise of photons, sky and read-out. A measurement that must find the sky
and the image by itself stays above it.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse import csc_matrix
from scipy.spatial import cKDTree

from gdask.kernels.sources.centroids import FAILED, MISFIT, NEIGHBOUR, fit_positions
from gdask.kernels.sources.detection import detect, measure_fwhm
from gdask.simulate.rendering import CORE_HALF_SIZE, PSF, Moffat, profile_table, render

SNR = (20.0, 50.0, 200.0, 1000.0, 5000.0)
#: Errors beyond this many sigma, estimated from the median, are outliers; their share is given.
OUTLIER_SIGMA = 6.0
#: From the median of |x| of a Gaussian to its sigma.
MEDIAN_PER_SIGMA = 0.6745


class Camera(NamedTuple):
    """An instrument's star image and noise.

    scale: arcsec per pixel; fwhm: pixels; sky: e-; read: read noise, e-.
    """

    scale: float
    psf: PSF
    fwhm: float
    sky: float
    read: float


CAMERAS = {
    "gsaoi": Camera(0.02, (Moffat(0.42, 0.083, 4), Moffat(0.58, 0.45, 3)), 4.3, 1500.0, 10.0),
    "f2": Camera(0.18, (Moffat(1.0, 0.594, 3),), 3.4, 4000.0, 12.0),
}


class Scene(NamedTuple):
    """Pixels of one array, and the truth of its stars.

    flux: e-; snr: that of each star alone; bound: (n, 3), the smallest errors of x, y and flux.
    """

    data: np.ndarray
    variance: np.ndarray
    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    snr: np.ndarray
    bound: np.ndarray


def pixel_light(camera: Camera, dx: np.ndarray, dy: np.ndarray, jacobian: np.ndarray) -> np.ndarray:
    """Share of a star's light in the pixels at (dx, dy) from it.

    Each pixel is integrated over 4 x 4 points of Gauss and Legendre. jacobian: du/dx, du/dy, dv/dx,
    dv/dy in arcsec per pixel.
    """
    nodes, weights = np.polynomial.legendre.leggauss(4)
    area = abs(jacobian[0] * jacobian[3] - jacobian[1] * jacobian[2])
    total = np.zeros(np.broadcast(dx, dy).shape)
    for wy, ny in zip(weights / 2, nodes / 2, strict=True):
        for wx, nx in zip(weights / 2, nodes / 2, strict=True):
            u, v = (
                jacobian[0] * (dx + nx) + jacobian[1] * (dy + ny),
                jacobian[2] * (dx + nx) + jacobian[3] * (dy + ny),
            )
            for _, a2, beta, peak in profile_table(camera.psf):
                total += wx * wy * peak * area * (1 + (u * u + v * v) / a2) ** -beta
    return total


def flux_of(camera: Camera, snr: np.ndarray) -> np.ndarray:
    """Fluxes (e-) that a fit with known position, sky and image measures with these S/N."""
    grid = np.arange(-60.0, 61.0)
    image = pixel_light(camera, grid, grid[:, None], camera.scale * np.array([1.0, 0, 0, 1]))
    flux = np.geomspace(1.0, 1e10, 400)
    noise = camera.sky + camera.read**2
    known = [f * np.sqrt((image**2 / (f * image + noise)).sum()) for f in flux]
    return np.exp(np.interp(np.log(snr), np.log(known), np.log(flux)))


def jacobians_of(camera: Camera, kind: str, x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    """Jacobians du/dx, du/dy, dv/dx, dv/dy (arcsec per pixel) at each star, (n, 4).

    They make images `round`; `long`: 10 % longer along a diagonal; or `varying`: longer and wider
    towards the edges, by 15 % along the radius and 5 % across at the corners.
    """
    along, across = np.zeros(len(x)), np.zeros(len(x))
    u, v = np.full(len(x), 0.6), np.full(len(x), 0.8)
    if kind == "long":
        along[:] = 0.1
    elif kind == "varying":
        dx, dy = x - size / 2, y - size / 2
        r = np.hypot(dx, dy)
        u, v = dx / r, dy / r
        along, across = 0.15 * (r / size) ** 2 * 2, 0.05 * (r / size) ** 2 * 2
    a, c = 1 / (1 + along), 1 / (1 + across)
    return camera.scale * np.stack(
        [a * u * u + c * v * v, (a - c) * u * v, (a - c) * u * v, a * v * v + c * u * u], axis=1
    )


def places(
    camera: Camera, crowding: str, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y and S/N of the stars.

    Sparse: on a jittered lattice of 16 FWHM. Dense: at random, 1 per 25 FWHM^2, fainter ones more
    numerous.
    """
    if crowding == "sparse":
        n = int(size / (16 * camera.fwhm))
        nodes = (np.arange(n) + 0.5) * size / n
        x, y = (v.ravel() + rng.uniform(-1.5, 1.5, n * n) for v in np.meshgrid(nodes, nodes))
        return x, y, rng.choice(SNR, n * n, p=(0.2, 0.25, 0.25, 0.2, 0.1))
    n = int(size**2 / (25 * camera.fwhm**2))
    x, y = rng.uniform(-camera.fwhm, size + camera.fwhm, (2, n))
    return x, y, rng.choice(SNR, n, p=(0.34, 0.30, 0.20, 0.12, 0.04))


def scene(camera: Camera, crowding: str, shape: str, size: int, seed: int) -> Scene:
    """Draw one array with photon and read noise and a flat sky.

    Its variance is made of the noisy counts, as that of real data is.
    """
    rng = np.random.default_rng(seed)
    x, y, snr = places(camera, crowding, size, rng)
    flux = flux_of(camera, snr)
    jacobians = jacobians_of(camera, shape, x, y, size)
    image = np.zeros((size, size), "f4")
    reach = np.full(len(x), 120 * camera.scale)
    render(image, x, y, flux, jacobians, reach, profile_table(camera.psf), CORE_HALF_SIZE)
    mean = image.astype(float) + camera.sky
    variance = mean + camera.read**2
    data = rng.poisson(mean) + rng.normal(0, camera.read, mean.shape)
    claimed = data.clip(min=0) + camera.read**2
    bound = bounds(camera, variance, x, y, flux, jacobians)
    return Scene(data.astype("f4"), claimed.astype("f4"), x, y, flux, snr, bound)


def bounds(
    camera: Camera,
    variance: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    flux: np.ndarray,
    jacobians: np.ndarray,
) -> np.ndarray:
    """Smallest errors of x, y (pixels) and flux (e-) of each star, (n, 3), all fitted together."""
    half = int(9 * camera.fwhm)
    size, step = variance.shape[0], 1e-3
    rows, columns, values = [], [], []
    for k in range(len(x)):
        i = np.arange(int(x[k]) - half, int(x[k]) + half + 1)
        j = np.arange(int(y[k]) - half, int(y[k]) + half + 1)
        i, j = i[(i >= 0) & (i < size)], j[(j >= 0) & (j < size)][:, None]
        dx, dy = i - x[k], j - y[k]
        image = partial(pixel_light, camera, jacobian=jacobians[k])
        gx = (image(dx - step, dy) - image(dx + step, dy)) / (2 * step)
        gy = (image(dx, dy - step) - image(dx, dy + step)) / (2 * step)
        root = np.sqrt(variance[j, i])
        for c, g in enumerate((gx * flux[k], gy * flux[k], image(dx, dy))):
            rows.append((j * size + i).ravel())
            columns.append(np.full(rows[-1].size, 3 * k + c))
            values.append((g / root).ravel())
    matrix = csc_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
        (size * size, 3 * len(x)),
    )
    fisher = (matrix.T @ matrix).toarray()
    unit = np.sqrt(np.diag(fisher)).clip(1e-30)
    inverse = np.linalg.inv(fisher / np.outer(unit, unit) + 1e-9 * np.eye(len(unit)))
    return np.sqrt(np.diag(inverse)).reshape(-1, 3) / unit.reshape(-1, 3)


def measure(
    camera: Camera, crowding: str, shape: str, size: int, seed: int
) -> dict[str, np.ndarray]:
    """Let the pipeline's kernels measure a scene.

    Returns for each star of the scene that was found (within half a FWHM): snr; dx, dy (pixels) and
    ratio, measured minus true x and y, and measured over true flux; bx, by, bf and ex, ey, ef,
    their bounds and claimed errors; flags; px, py, the pixel phase; hidden. Also all, the S/N of
    all stars that are not near the edge, and times, the seconds of detection and fits.
    """
    s = scene(camera, crowding, shape, size, seed)
    dq = np.zeros(s.data.shape, "u2")
    started = time.process_time()
    catalog, _ = detect(s.data, s.variance, dq, threshold=2.0, min_pixels=8, mesh=32)
    found = time.process_time()
    x, y, fwhm = catalog["X_IMAGE"] - 1, catalog["Y_IMAGE"] - 1, measure_fwhm(catalog)
    out = fit_positions(s.data, s.variance, dq, x, y, fwhm=fwhm)
    ended = time.process_time()
    source = matched(s, out, camera.fwhm)
    inside = (np.minimum(s.x, s.y) > 4 * camera.fwhm) & (
        np.maximum(s.x, s.y) < size - 4 * camera.fwhm
    )
    hit = np.flatnonzero((source >= 0) & inside)
    got = out[source[hit]]
    return {
        "snr": s.snr[hit],
        "dx": got["x"] - s.x[hit],
        "dy": got["y"] - s.y[hit],
        "ratio": got["flux"] / s.flux[hit],
        "bx": s.bound[hit, 0],
        "by": s.bound[hit, 1],
        "bf": s.bound[hit, 2] / s.flux[hit],
        "ex": got["ex"],
        "ey": got["ey"],
        "ef": got["eflux"] / s.flux[hit],
        "flags": got["flags"],
        "px": s.x[hit] % 1,
        "py": s.y[hit] % 1,
        "all": s.snr[inside],
        "hidden": hidden(s, source < 0, camera.fwhm)[hit],
        "times": np.array([found - started, ended - found]),
    }


def matched(s: Scene, out: np.ndarray, fwhm: float) -> np.ndarray:
    """Find the source of each star; -1 where there is none.

    From bright to faint, it is the nearest one that is within half a FWHM and not yet taken.
    """
    near = cKDTree(np.column_stack([out["x"], out["y"]])).query_ball_point(
        np.column_stack([s.x, s.y]), 0.5 * fwhm
    )
    source, free = np.full(len(s.x), -1), np.ones(len(out), bool)
    for k in np.argsort(-s.flux, kind="stable"):
        candidates = [
            (np.hypot(out["x"][j] - s.x[k], out["y"][j] - s.y[k]), j) for j in near[k] if free[j]
        ]
        if candidates:
            source[k] = min(candidates)[1]
            free[source[k]] = False
    return source


def hidden(s: Scene, unseen: np.ndarray, fwhm: float) -> np.ndarray:
    """Whether each star has a neighbour that was not found as a source of its own.

    The neighbour is within 1.5 FWHM and brighter than 3 % of the star's flux.
    """
    places = np.column_stack([s.x, s.y])
    answer = np.zeros(len(s.x), bool)
    for k, neighbours in enumerate(cKDTree(places).query_ball_point(places, 1.5 * fwhm)):
        answer[k] = any(j != k and unseen[j] and s.flux[j] > 0.03 * s.flux[k] for j in neighbours)
    return answer


def summary(parts: list[dict[str, np.ndarray]]) -> list[dict[str, float]]:
    """Summarise scenes in a row for each S/N.

    Fluxes are relative to the median of the brightest clean stars of each scene: one zero point.
    """
    for part in parts:
        top = (part["snr"] >= SNR[-2]) & (part["flags"] == 0)
        zero_point = np.median(part["ratio"][top])
        part["flux"] = part["ratio"] / zero_point - 1
        part["top"] = np.full(len(part["snr"]), zero_point)
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return [_row(whole, snr) for snr in SNR]


def _row(whole: dict[str, np.ndarray], snr: float) -> dict[str, float]:
    """Summarise the stars of one S/N; positions in 1/1000 pixel, fluxes as fractions."""
    here = whole["snr"] == snr
    clean = here & ((whole["flags"] & (FAILED | NEIGHBOUR | MISFIT)) == 0)
    good = clean & ~whole["hidden"]
    v = {name: column[good] for name, column in whole.items() if name not in ("all", "times")}
    d, b, e = (np.concatenate([v[a], v[c]]) for a, c in (("dx", "dy"), ("bx", "by"), ("ex", "ey")))
    phase = 2 * np.pi * np.concatenate([v["px"], v["py"]])
    good_positions = _without_outliers(d / b)
    waves = [np.sin(phase), np.cos(phase), np.sin(2 * phase), np.cos(2 * phase)]
    waves_at_good = np.column_stack(waves)[good_positions]
    amplitude = np.linalg.lstsq(waves_at_good, d[good_positions], rcond=None)[0]
    rms = _rms(d[good_positions])
    f = v["flux"] - np.median(v["flux"]) if good.any() else v["flux"]
    good_fluxes = _without_outliers(f / v["bf"])
    return {
        "snr": snr,
        "n": int(good.sum()),
        "found": here.sum() / max((whole["all"] == snr).sum(), 1),
        "clean": clean.sum() / max(here.sum(), 1),
        "hidden": 1 - good.sum() / max(clean.sum(), 1),
        "outliers": 1 - good_positions.sum() / max(len(good_positions), 1),
        "bound_mpx": 1e3 * _median(b),
        "rms_mpx": 1e3 * rms,
        "rms_over_bound": _rms((d / b)[good_positions]),
        "pull": _rms((d / e)[good_positions]),
        "phase_mpx": 1e3 * float(np.hypot(*amplitude[:2])),
        "phase_error_mpx": 1e3 * rms * float(np.sqrt(2 / max(good_positions.sum(), 1))),
        "flux_bound": _median(v["bf"]),
        "flux_rms": _rms(f[good_fluxes]),
        "flux_rms_over_bound": _rms((f / v["bf"])[good_fluxes]),
        "flux_bias": _median(v["flux"]),
        "flux_pull": _rms((f / v["ef"])[good_fluxes]),
        "zero_point": _median(v["top"]),
    }


def _without_outliers(pull: np.ndarray) -> np.ndarray:
    """Which values are within OUTLIER_SIGMA of 0, with sigma estimated from the median."""
    return np.abs(pull) < OUTLIER_SIGMA * _median(np.abs(pull)) / MEDIAN_PER_SIGMA


def _median(values: np.ndarray) -> float:
    """Median; NaN of no values."""
    return float(np.median(values)) if len(values) else float("nan")


def _rms(values: np.ndarray) -> float:
    """Root of the mean square; NaN of no values."""
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else float("nan")


def table(name: str, rows: list[dict[str, float]]) -> str:
    """Write the rows as Markdown.

    Positions are in 1/1000 pixel, fluxes in per cent, errors over the bound; pulls by their width.
    """
    columns = ["S/N", "n", "found", "clean", "hidden"]
    columns += ["bound mpx", "rms mpx", "rms/bound", "pull", "phase mpx"]
    columns += ["flux rms %", "rms/bound", "bias %", "pull"]
    lines = [f"\n{name}\n", f"| {' | '.join(columns)} |", "|" + "---:|" * len(columns)]
    for r in rows:
        phase = f"{r['phase_mpx']:.2f} +- {r['phase_error_mpx']:.2f}"
        cells = [f"{r['snr']:.0f}", f"{r['n']}"]
        cells += [f"{r[key]:.2f}" for key in ("found", "clean", "hidden")]
        cells += [f"{r[key]:.2f}" for key in ("bound_mpx", "rms_mpx", "rms_over_bound", "pull")]
        cells += [phase, f"{100 * r['flux_rms']:.3f}", f"{r['flux_rms_over_bound']:.2f}"]
        cells += [f"{100 * r['flux_bias']:.3f}", f"{r['flux_pull']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure scenes of each kind, and print a table for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one scene of each kind, not four")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--json", help="write the figures to this file")
    given = parser.parse_args()
    size, seeds = (1024, 1) if given.quick else (1024, 4)
    figures = {}
    for label, camera in CAMERAS.items():
        for crowding in ("sparse", "dense"):
            for shape in ("round", "long", "varying"):
                name = f"{label} {crowding} {shape}"
                if given.only not in name:
                    continue
                area = size if crowding == "sparse" else size // 2
                parts = [measure(camera, crowding, shape, area, seed) for seed in range(seeds)]
                figures[name] = summary(parts)
                times = np.sum([part["times"] for part in parts], axis=0)
                seconds = f"(detection {times[0]:.2f} s, fits {times[1]:.2f} s)"
                print(table(f"{name}   {seconds}", figures[name]), flush=True)
    if given.json:
        Path(given.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
